"""The widest precision in which a function can be evaluated, and facts that its trace shows.

A derivative shows best in float64, but some functions do not accept it, and some cannot be traced.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._jaxprs import equations_of, function_name, is_program, rule_places, short_place
from jaxgrad._numerics import float_eps
from jaxgrad.checking._arguments import Arguments
from jaxgrad.checking._programs import Programs, build_programs, precision, reuse, to_float64

LOOPS = {"scan", "while", "cond"}
# Operations with such names may have a rule for reverse mode alone.
NO_FORWARD = ("vjp", "callback", "ffi", "hi_primitive")
SIMPLE = (bool, int, float, str, type(None))
MOST_ORDERED = 4  # More arguments are not tried in other orders.
HOST_EPS = float(np.finfo(np.float32).eps)
# Whether the moved leaves, and whether the fixed arrays, are converted to float64.
PRECISIONS = ((True, True), (True, False), (False, False))


class Facts(NamedTuple):
    """Facts about the trace of a function, and about that of its gradient by reverse mode."""

    fingerprint: str  # equal for traces of the same computation with the same constants
    eps: float  # machine epsilon of the narrowest floating-point type that values pass through
    equations: int  # number of operations; those inside a loop count once
    loops: bool  # whether there are loops or branches
    iterates: bool  # whether numbers decide when a loop stops, as in an iterative solver
    stops: bool  # whether `stop_gradient` is called
    rules: tuple[str, ...]  # names of the functions with a custom derivative rule
    forward: bool  # whether forward mode is defined; a `custom_vjp` does not define it
    on_host: bool = False  # whether it or its gradient calls the host
    backward_eps: float = 0.0  # as `eps`, of the gradient


# Of a function that cannot be traced nothing is known: it may have loops and no forward mode.
UNTRACED = Facts("", 0.0, 0, True, False, False, (), False)


class Computation(NamedTuple):
    """A function and its arguments in one precision; `key` is that of the compile cache."""

    programs: Programs
    moved: list[Any]
    fixed: list[Any]
    wide: bool
    eps: float  # machine epsilon of the narrowest type that values pass through
    key: Any
    conversions: Any = None  # see `_convert_arrays`


def choose_precision(arguments: Arguments) -> tuple[Computation, Facts, bool, str]:
    """Choose the first of: traced or not, in float64 or as given, that the function allows.

    Returns it, facts about its trace, whether two traces, or two calls, agree, and the error that
    it raised in float64, or "".
    """
    errors: list[Exception] = []
    conversions, user_rules = _convert_arrays(arguments)
    for traced in (True, False):
        for wide, wide_fixed in PRECISIONS:
            try:
                checked, facts, same = _attempt(arguments, traced, wide, wide_fixed, user_rules)
            except Exception as error:
                errors.append(error)
                continue
            obstacle = "" if wide else f"{type(errors[-2]).__name__}: {first_line(errors[-2])}"
            return checked._replace(conversions=conversions), facts, same, obstacle
    error = errors[-1 if isinstance(errors[2], jax.errors.ConcretizationTypeError) else 2]
    first, *rest = arguments.function.arguments(arguments.moved, arguments.fixed)
    as_in_jax = isinstance(first, (tuple, list)) and rest and isinstance(rest[0], int)
    hint = "; jaxgrad.testing.check_grads takes arguments as JAX's does" if as_in_jax else ""
    hint = hint or _order_hint(arguments)
    raise ValueError(
        f"f raised {type(error).__name__} at the given arguments: {first_line(error)}{hint}"
    ) from error


def _order_hint(arguments: Arguments) -> str:
    """Say how a function takes its arguments, if it takes others or in another order."""
    function, inputs = arguments.function, (arguments.moved, arguments.fixed)
    values = function.arguments(*inputs)
    count = len(values)
    try:
        inspect.signature(function.f).bind(*values)
    except TypeError:
        return "; pass all arguments of f after f, in the order in which f takes them"
    except ValueError:  # A function without a signature.
        return ""
    orders = itertools.permutations(range(count)) if count <= MOST_ORDERED else ()
    for order in orders:
        with contextlib.suppress(Exception):  # whatever the function raises
            reordered = lambda *args, order=order: function.f(*(args[i] for i in order))  # noqa: E731
            jax.make_jaxpr(dataclasses.replace(function, f=reordered))(*inputs)
            names = ", ".join(f"args[{i}]" for i in order)
            return f"; f works with another order: pass f, {names}, for which argnums counts anew"
    return ""


def _convert_arrays(arguments: Arguments) -> tuple[list[Any], bool]:
    """Trace the function and its gradient in the caller's precision, and return the traces.

    JAX converts a NumPy array that a function holds once, and remembers the result for as long as
    a program uses it, even if another precision is set. While these traces exist, the function's
    arrays are what they are in the caller's own calls, and no conversion to float64 replaces them.

    Returns whether the function may have derivative rules that are not JAX's, too. Without any, the
    gradient holds no other arrays than the function, so it is not traced.
    """
    inputs, gradient = (arguments.moved, arguments.fixed), None
    try:
        # JAX remembers the trace of a function, so a new function is traced each time.
        values = jax.make_jaxpr(lambda *args: arguments.function(*args))(*inputs)
    except jax.errors.UnexpectedTracerError as error:
        raise ValueError(f"f raised {type(error).__name__}: {first_line(error)}") from error
    except Exception:  # A function that cannot be traced may be called point by point.
        return [], True
    user_rules = any(map(_has_user_rule, equations_of(values.jaxpr)))
    if user_rules:
        # There may be forward mode alone.
        with contextlib.suppress(Exception):
            backward = functools.partial(pull_back, arguments.function)
            gradient = jax.make_jaxpr(lambda *args: backward(*args))(*inputs)
    return [values, gradient], user_rules


def _has_user_rule(equation: Any) -> bool:
    """Whether an operation may have a derivative rule that is not JAX's."""
    name = equation.primitive.name
    custom = name.startswith("custom_") or any(word in name for word in NO_FORWARD)
    return custom and os.path.dirname(jax.__file__) not in _rule_place(equation)


def pull_back(function: Callable[..., Any], moved: Any, fixed: Any) -> Any:
    """Return the outputs, and the gradient of their sum by reverse mode."""
    outputs, pullback = jax.vjp(lambda leaves: function(leaves, fixed), moved)
    return outputs, pullback([jnp.ones_like(output) for output in outputs])


def _attempt(arguments: Arguments, traced: bool, wide: bool, wide_fixed: bool, user_rules: bool):
    function, facts, key = arguments.function, UNTRACED, None
    with precision(wide):
        moved = [to_float64(v) if wide else v for v in arguments.moved]
        fixed = [to_float64(v) if wide_fixed else v for v in arguments.fixed]
        try:
            if traced:
                inputs = (function, moved, fixed)
                facts, deterministic = _facts(*inputs) if user_rules else _stored_facts(*inputs)
            else:
                pairs = zip(function(moved, fixed), function(moved, fixed), strict=False)
                deterministic = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
        except jax.errors.UnexpectedTracerError:
            # The function stored an intermediate value of its first call for its second.
            facts, deterministic = UNTRACED, False
        build = functools.partial(build_programs, function, moved, fixed, wide=wide)
        if facts.fingerprint and deterministic:
            key = (function, facts.fingerprint, wide)
        # Nothing is known of a function that cannot be traced, so nothing is stored.
        programs = reuse(key, build) if key else build(compiled=False)
        if key:
            # What runs on the host may refuse float64, and a program may not compile.
            outputs = jax.block_until_ready(programs.outputs(moved, fixed))
            if facts.on_host and facts.backward_eps:
                cotangents = list(map(jnp.ones_like, outputs))
                jax.block_until_ready(programs.backward(moved, fixed, cotangents))
    eps = max(facts.eps, *map(_epsilon, moved))
    return Computation(programs, moved, fixed, wide, eps, key), facts, deterministic


def _facts(function: Callable[..., Any], moved: Any, fixed: Any) -> tuple[Facts, bool]:
    """Return the facts, and whether two traces of the function agree."""
    facts, again = (trace(function, moved, fixed) for _ in range(2))
    if facts.fingerprint != again.fingerprint:
        return facts, False
    try:
        gradient = trace(functools.partial(pull_back, function), moved, fixed)
    except Exception:  # whatever a user's rule raises; there may be forward mode
        return facts, True
    # A rule can change while the values of the function stay what they are.
    fingerprint = facts.fingerprint + gradient.fingerprint
    on_host = facts.on_host or gradient.on_host
    facts = facts._replace(fingerprint=fingerprint, on_host=on_host, backward_eps=gradient.eps)
    return facts, True


class _ChangingError(Exception):
    """Two traces of a function differ; `args` are the facts of the first one."""


def _stored_facts(function: Callable[..., Any], moved: Any, fixed: Any) -> tuple[Facts, bool]:
    """Return the same for a function with no rules but those of JAX, mostly after one trace.

    All its operations are in the trace of its gradient, and if that equals an earlier one, so do
    theirs. Tracing takes most of a repeated check of a model with many leaves.
    """

    def build():
        facts, same = _facts(function, moved, fixed)
        if not same:
            raise _ChangingError(facts)  # so that nothing is stored
        return facts

    try:
        gradient = trace(functools.partial(pull_back, function), moved, fixed)
        return reuse(("facts", function, gradient.fingerprint), build), True
    except _ChangingError as changing:
        return changing.args[0], False
    except Exception:  # There may be forward mode.
        return _facts(function, moved, fixed)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0][:200]


def trace(function: Callable[..., Any], *args: Any) -> Facts:
    """Trace `function` anew and collect facts; raises whatever `function` raises."""
    # JAX remembers the trace of a function, so a new function is traced each time.
    closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
    equations = list(equations_of(closed.jaxpr))
    for equation in equations:
        _require_types(equation)
    names = [equation.primitive.name for equation in equations]
    rules = [_rule_name(e) for e in equations if e.primitive.name.startswith("custom_")]
    inputs = (_epsilon(variable.aval) for variable in closed.jaxpr.invars)
    reverse_only = any(name.startswith("custom_vjp") for name in names)
    doubtful = any(word in name for name in names for word in NO_FORWARD)
    return Facts(
        fingerprint=_fingerprint(closed, equations),
        eps=max([0.0, *inputs, *map(_narrowed_to, equations)]),
        equations=len(equations),
        loops=not LOOPS.isdisjoint(names),
        iterates=any(_has_tolerance(e) for e in equations if e.primitive.name == "while"),
        stops="stop_gradient" in names,
        rules=tuple(dict.fromkeys(rules)),
        on_host=any("callback" in name for name in names),
        forward=not doubtful or (not reverse_only and _has_forward_mode(function, *args)),
    )


def _require_types(equation: Any) -> None:
    """Raise an error if a loop or branch computes in another type than that of its inputs."""
    # JAX makes such programs of a loop that was traced before, or that starts at a NumPy array that
    # it has converted before, and compiles some of them nevertheless.
    params, inputs = equation.params, equation.invars
    if equation.primitive.name == "while":
        programs, inputs = [params["body_jaxpr"]], inputs[params["cond_nconsts"] :]
    elif equation.primitive.name == "cond":
        programs, inputs = params["branches"], inputs[1:]
    else:
        programs = [params["jaxpr"]] if equation.primitive.name == "scan" else []
    for program in programs:
        for inner, outer in zip(program.in_avals, inputs, strict=True):
            needed, actual = (getattr(aval, "dtype", None) for aval in (inner, outer.aval))
            if needed != actual:
                raise TypeError(f"a loop or branch of {needed} numbers gets {actual} ones")


def _has_forward_mode(function: Callable[..., Any], moved: Any, fixed: Any) -> bool:
    def tangent(leaves):
        return jax.jvp(lambda leaves: function(leaves, fixed), (leaves,), (leaves,))[1]

    try:
        jax.jit(tangent).lower(moved)
    except Exception:  # whatever a user's rule raises
        return False
    return True


def _fingerprint(closed: Any, equations: list[Any]) -> str:
    # Addresses of Python objects differ from trace to trace without meaning.
    words = re.sub(r"0x[0-9a-f]+", "", "\n".join(_words(closed.jaxpr)))
    digest = hashlib.blake2b(words.encode())
    # A printed array is abbreviated, so its contents are added.
    for constant in closed.consts:
        digest.update(_bytes(constant))
    for equation in equations:
        for variable in equation.invars:
            if getattr(getattr(variable, "val", None), "shape", None):
                digest.update(_bytes(variable.val))
    return digest.hexdigest()


def _words(jaxpr: Any) -> Iterator[str]:
    """Describe a program; JAX's own way to print one takes longer than the trace of it."""
    numbers: dict[Any, int] = {}

    def name(atom):
        if hasattr(atom, "val"):
            return f"{atom.val!r}:{atom.aval}"
        return f"{numbers.setdefault(atom, len(numbers))}:{atom.aval}"

    yield from map(name, (*jaxpr.constvars, *jaxpr.invars))
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        yield from map(name, (*equation.invars, *equation.outvars))
        for key, value in equation.params.items():
            parts = (
                [value] if isinstance(value, SIMPLE) else jax.tree.leaves(value, is_leaf=is_program)
            )
            if not any(map(is_program, parts)):
                yield f"{key}={value}"
                continue
            for part in parts:
                yield key
                yield from _words(getattr(part, "jaxpr", part)) if is_program(part) else [str(part)]
    yield from map(name, jaxpr.outvars)


def _narrowed_to(equation: Any) -> float:
    """Return the epsilon of the type that an operation rounds to, 0 if it does not narrow."""
    # A callback runs on the host, which may compute in any precision.
    host = HOST_EPS if "callback" in equation.primitive.name else 0.0
    inputs = [_epsilon(variable.aval) for variable in equation.invars]
    outputs = [_epsilon(variable.aval) for variable in equation.outvars]
    # What is made of integers alone is exact: a constant of a narrow type loses no more.
    finest = min((eps for eps in inputs if eps), default=np.inf)
    return max([host, *(eps for eps in outputs if eps > finest)])


def _has_tolerance(loop: Any) -> bool:
    """Whether floating-point numbers decide when a loop stops; a counter does not depend on any."""
    test, body = (loop.params[f"{name}_jaxpr"].jaxpr for name in ("cond", "body"))
    start, body_start = loop.params["cond_nconsts"], loop.params["body_nconsts"]
    seen, needed = _behind(test, test.outvars), set()
    while True:
        carried = {i for i, variable in enumerate(test.invars[start:]) if variable in seen}
        carried |= {i for i, variable in enumerate(body.invars[body_start:]) if variable in seen}
        if carried <= needed:
            return any(_epsilon(variable.aval) for variable in seen)
        needed |= carried
        seen |= _behind(body, [body.outvars[i] for i in needed])


def _behind(program: Any, variables: Any) -> set[Any]:
    """Return the variables of an open program that some of its variables are computed from."""
    seen = {variable for variable in variables if not hasattr(variable, "val")}
    for equation in reversed(program.eqns):
        if not seen.isdisjoint(equation.outvars):
            seen |= {variable for variable in equation.invars if not hasattr(variable, "val")}
    return seen


def _epsilon(value: Any) -> float:
    """Return the machine epsilon of the type of a value, 0 if it is not floating point."""
    return float_eps(getattr(value, "dtype", None))


def _rule_name(equation: Any) -> str:
    """The name of a function with a rule, and where the rule is."""
    name = function_name(equation) or "a function"
    place = short_place(_rule_place(equation))
    return f"{name} (rule: {place})" if place else name


def _rule_place(equation: Any) -> str:
    return next(iter(rule_places(equation)), "")


def _bytes(value: Any) -> bytes:
    if jnp.issubdtype(getattr(value, "dtype", np.dtype(object)), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value).tobytes()
