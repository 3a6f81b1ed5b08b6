"""Reading and evaluating programs that JAX has traced."""

import itertools
import os
import re
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.core
from jax.extend import source_info_util

# Operations that do nothing but call one program with their own inputs, in several versions of JAX.
CALLS = frozenset(
    [
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "core_closed_call",
        "checkpoint",
        "remat",
        "remat2",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
        "custom_vmap_call",
    ]
)
CALLED = ("call_jaxpr", "jaxpr", "fun_jaxpr", "call")
# Calls of functions with a derivative rule by hand.
RULES = frozenset(["custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"])
FRAMES = 200  # Frames of an operation that are looked through for the user's code.
# Packages of the user and of the system too.
LIBRARIES = re.compile(r"[/\\](site|dist)-packages[/\\]")
# Code that evaluates programs: what it was called by is not where an operation comes from.
EVALUATION = (__file__, os.path.join(os.path.dirname(__file__), "inspection"))
LOOPS = ("scan", "while", "cond")
# Folders of code that the user has not written: other packages, Python's library and this package.
INSTALLED = (
    *{sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")},
    os.path.dirname(__file__),
    "<frozen",
)


def is_program(value: Any) -> bool:
    """Whether a parameter of an operation is a program, closed or open."""
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def inner_programs(equation: Any) -> Iterator[Any]:
    """The programs among the parameters of an operation, closed or open."""
    # Branches of `cond` are a tuple, those of `custom_linear_solve` a named one.
    for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=is_program):
        if is_program(value):
            yield value


def is_rule(equation: Any) -> bool:
    """Whether an operation calls a function with a derivative rule by hand."""
    return equation.primitive.name in RULES


def equations_of(program: Any) -> Iterator[Any]:
    """All operations, those of inner programs (loops, branches, calls) included."""
    for equation in getattr(program, "jaxpr", program).eqns:
        yield equation
        for inner in inner_programs(equation):
            yield from equations_of(inner)


def called_program(equation: Any) -> Any:
    """Return the program that an operation calls with its own inputs; `None` if it does more.

    A function with a custom rule becomes its operations, so nothing may differentiate the result.
    """
    if equation.primitive.name not in CALLS:
        return None
    # Which parameter holds the program depends on the operation and on the version of JAX.
    programs = [equation.params[name] for name in CALLED if name in equation.params]
    return programs[0] if len(programs) == 1 and is_program(programs[0]) else None


def opened(equation: Any) -> list[Any]:
    """Return the programs that a scan, a choice of branches or a call carries out, else none."""
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        return list(params["branches"])
    called = params["jaxpr"] if name == "scan" else called_program(equation)
    return [] if called is None else [called]


def split_scan_inputs(params: Any, inputs: Sequence[Any]) -> tuple[list[Any], ...]:
    """Return the constants, the first carry and the scanned inputs of a scan."""
    if "ft_in" in params:  # from JAX 0.11 on
        consts, carry, xs = params["ft_in"].update(list(inputs)).unpack()
        return list(consts), list(carry), list(xs)
    start, stop = params["num_consts"], params["num_consts"] + params["num_carry"]
    return list(inputs[:start]), list(inputs[start:stop]), list(inputs[stop:])


def repeat(equation: Any, inputs: Sequence[Any], run: Callable[[Any, list[Any]], Any]) -> Any:
    """Return the results of one of `LOOPS`, with `run` to evaluate its programs.

    `run(program, inputs)` returns the results of a program, and is traced.
    """
    name, params = equation.primitive.name, equation.params
    if name == "cond":
        branches = [lambda *args, b=b: run(b, list(args)) for b in params["branches"]]
        return jax.lax.switch(inputs[0], branches, *inputs[1:])
    if name == "while":
        # Constants of the test come first, then those of the body, then the carry.
        first, second = params["cond_nconsts"], params["body_nconsts"]
        test, body = inputs[:first], inputs[first : first + second]
        return jax.lax.while_loop(
            lambda carry: run(params["cond_jaxpr"], [*test, *carry])[0],
            lambda carry: run(params["body_jaxpr"], [*body, *carry]),
            list(inputs[first + second :]),
        )
    consts, carry, xs = split_scan_inputs(params, inputs)

    def step(carry, x):
        out = list(run(params["jaxpr"], [*consts, *carry, *x]))
        return out[: len(carry)], out[len(carry) :]

    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    last, stacked = jax.lax.scan(step, carry, xs, **options)
    return [*last, *stacked]


def source_line(equation: Any) -> str:
    """Return file, line and function of the code that an operation comes from, JAX left out."""
    return source_info_util.summarize(equation.source_info)


def source_frames(equation: Any) -> list[str]:
    """Return the calls that led to an operation as in `source_line`, the innermost first."""
    frames = source_info_util.summarize(equation.source_info, num_frames=FRAMES).splitlines()
    return [frame for frame in reversed(frames) if frame != "unknown"]


def user_line(equation: Any, around: str = "") -> str:
    """Return file, line, column and function of the innermost code outside of installed packages.

    It may be `around`, the line of the call around. If there is none, it is that of a package.
    """
    inside = itertools.takewhile(lambda f: not f.startswith(EVALUATION), source_frames(equation))
    frames = [frame for frame in (*inside, around) if frame]
    return next((f for f in frames if not is_installed(f)), next(iter(frames), ""))


def is_installed(place: str) -> bool:
    """Whether a file belongs to an installed package, Python's library or this package."""
    return place.startswith(INSTALLED) or bool(LIBRARIES.search(place))


def scope(equation: Any) -> str:
    """Return the names of `jax.named_scope` and of transformations around an operation."""
    return str(equation.source_info.name_stack)


def function_name(equation: Any) -> str:
    """Return the name of the function that a call, or a function with a rule, calls; or ""."""
    params = equation.params
    inner = params.get("call_jaxpr") or params.get("jaxpr")
    info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return str(getattr(info, "func_name", None) or params.get("name", ""))


def hide_frames(file: str) -> None:
    """Let the code of a file never count as the line that an operation comes from."""
    source_info_util.register_exclusion(file)


def is_traced(value: Any) -> bool:
    """Whether a value stands for an array in a function that is traced."""
    return isinstance(value, jax.core.Tracer)


def concrete(value: Any) -> Any:
    """Return the array behind a value that is differentiated, or the shape of one that is traced.

    Other values are returned as they are.
    """
    while is_traced(value):
        if not hasattr(value, "primal"):
            return jax.ShapeDtypeStruct(value.shape, value.dtype)
        value = value.primal  # type: ignore
    return value


def short_place(place: str) -> str:
    """Return a function and where it is defined, or a line, without the folders of its file."""
    function, separator, file = place.rpartition(" at ")
    return function + (separator and " defined at ") + re.split(r"[/\\]", file)[-1]


def rule_places(equation: Any) -> list[str]:
    """Return function, file and line of the derivative rule of a call, such as `bwd at f.py:3`.

    They are followed by those of the forward pass of a `custom_vjp`. If a rule is assembled by JAX,
    as by `defjvps`, they are of the function that it belongs to.
    """
    params, called = equation.params, called_program(equation)
    rules = [params.get(name) for name in ("bwd", "jvp_jaxpr_fun", "fwd_jaxpr_thunk")]
    functions = [*rules, getattr(called, "jaxpr", called)]
    infos = [getattr(function, "debug_info", None) for function in functions]
    places = [str(getattr(info, "func_src_info", "")) for info in infos]
    return [p for p in places if " at " in p and "custom_derivatives.py" not in p]


def has_user_rule(equation: Any) -> bool:
    """Whether an operation has a derivative rule that is not one of an installed package."""
    if equation.primitive.name not in RULES:
        return False
    files = [place.rpartition(" at ")[2] for place in rule_places(equation)]
    return not all(map(is_installed, files))


def argument_names(equation: Any) -> list[str]:
    """Return a name for each input of a call of a function with a rule, "" for what it captures."""
    params = equation.params
    called = called_program(equation)
    names: tuple[str, ...] = ()
    # Of the two, only one knows its arguments' names.
    for source in (params.get("fwd_jaxpr_thunk"), getattr(called, "jaxpr", called)):
        info = getattr(source, "debug_info", None)
        names = names or getattr(info, "arg_names", None) or ()
    total, captured = len(equation.invars), params.get("num_consts", 0)
    if len(names) == total - captured:
        return [""] * captured + [str(name) for name in names]
    return list(map(str, names)) if len(names) == total else [""] * total


def stacks(program: Any) -> list[list[tuple[str, str, int]]]:
    """Return the calls in which the operations of a program were traced, each once.

    A stack has function, file and line of each call, the innermost one first.
    """
    traces = {equation.source_info.traceback for equation in equations_of(program)}
    frames = [trace.frames for trace in traces if trace is not None]
    return [[(f.function_name, f.file_name, f.line_num) for f in stack] for stack in frames]


def evaluate(
    program: Any,
    args: Sequence[Any],
    apply: Callable[[Any, list[Any]], Sequence[Any]],
    convert: Callable[[Any], Any] = lambda value: value,
    literal: Callable[[Any], Any] = lambda atom: atom.val,
) -> list[Any]:
    """Evaluate a closed program, or an open one without constants.

    Args:
      program, args: the program and its inputs.
      apply: returns the results of an operation from its inputs.
      convert: of every constant, input and result.
      literal: the value of a literal.
    """
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    values: dict[Any, Any] = {}

    # A literal has its value with it, everything else is a variable.
    def read(atom):
        return literal(atom) if hasattr(atom, "val") else values[atom]

    def write(variables, results):
        values.update(zip(variables, map(convert, results), strict=True))

    write(jaxpr.constvars, consts)
    write(jaxpr.invars, args)
    for equation in jaxpr.eqns:
        write(equation.outvars, apply(equation, list(map(read, equation.invars))))
    return list(map(read, jaxpr.outvars))


def bind(equation: Any, inputs: Sequence[Any], **params: Any) -> Sequence[Any]:
    """Return the results of an operation as JAX computes them, with other `params` in part."""
    primitive = equation.primitive
    results = primitive.bind(*inputs, **primitive.get_bind_params(equation.params | params))
    return results if primitive.multiple_results else [results]
