"""Where the values of a program that are not finite come from.

Beside each value goes the time of the operation that made it infinite or NaN: a count of the
operations carried out so far, from which the operation and the iterations of the enclosing loops
are read. It costs one reduction for each operation and a few integers for each value.

Each operation is computed by itself. XLA would turn the product with a mask into a selection,
`log(exp(x))` into `x` and `a / b / c` into `a / (b * c)`, which hides values that are not finite,
or makes them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs

# Element i of their result depends on elements i of their inputs alone.
ELEMENTWISE = frozenset(
    [
        *("add", "add_any", "sub", "mul", "div", "rem", "pow", "integer_pow", "square", "max"),
        *("min", "neg", "abs", "sign", "exp", "exp2", "expm1", "log", "log1p", "sqrt", "rsqrt"),
        *("cbrt", "tanh", "logistic", "sin", "cos", "tan", "sinh", "cosh", "asin", "acos", "atan"),
        *("asinh", "acosh", "atanh", "atan2", "erf", "erfc", "erf_inv", "lgamma", "digamma"),
        *("select_n", "clamp", "convert_element_type", "stop_gradient", "copy", "real", "imag"),
    ]
)
# XLA merges these with what follows them, unless they are separated.
SIMPLIFIED = frozenset(
    [
        *("mul", "div", "pow", "integer_pow", "square", "sqrt", "rsqrt", "exp", "exp2", "expm1"),
        *("log", "log1p", "convert_element_type"),
    ]
)
QUICKLY = {
    "xla_disable_hlo_passes": "fusion",
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
NEVER = 2**31 - 1  # The time of a finite value.
# Added to the time of an infinite argument or number, which may be intended, as in a mask.
CONSTANT = 2**30


class Times(NamedTuple):
    """Times of the operations that a value comes from, `NEVER` if there are none.

    Attributes:
      first: that made an infinite value or NaN, from which the value comes.
      nan: that made NaN, which may have come from an infinite value.
      hidden: that made one which a finite value was computed from, as in `1 / inf`.
    """

    first: Any
    nan: Any
    hidden: Any


class Step(NamedTuple):
    """One operation as it was carried out.

    Attributes:
      equations: the enclosing operations, from the outermost on, and the operation itself.
      indices: positions in the data of the enclosing scans.
    """

    equations: tuple[Any, ...]
    indices: tuple[int, ...]


class _Traced(NamedTuple):
    value: Any
    time: Any  # when it first was not finite
    nan: Any  # when it first had NaN
    hidden: Any  # when what it was computed from first was not finite


def by_operations(program: Any, args: Sequence[Any]) -> list[Any]:
    """Return the outputs of a closed program whose operations are computed one by one."""
    return [x.value for x in _evaluate(program, list(program.consts), args, None)]


def evaluated(function: Callable[..., Any], *args: Any) -> Any:
    """Return the result of a function whose operations are computed one by one."""
    program, result = jax.make_jaxpr(function, return_shape=True)(*args)
    leaves = _quickly(functools.partial(by_operations, program))(jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(result), leaves)


def origins(program: Any, args: Sequence[Any]) -> tuple[list[Any], list[Times]]:
    """Return the outputs of a closed program, and when each first was not finite.

    The time of argument i is -1 - i, constants of the program come after the arguments.
    """

    def evaluate(consts, args):
        return [tuple(x) for x in _evaluate(program, consts, args, jnp.int32(0))]

    # Constants are arguments here, so that none is copied into the compiled program.
    results = _quickly(evaluate)(list(program.consts), list(args))
    return [value for value, *_ in results], [Times(*map(int, times)) for _, *times in results]


def _quickly(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is compiled without the optimizations that take longest."""
    # Fused with each other, the times of many operations would take minutes to compile.
    return jax.jit(function, compiler_options=QUICKLY if jax.default_backend() == "cpu" else None)


def _evaluate(program: Any, consts: Sequence[Any], args: Sequence[Any], time: Any) -> list[_Traced]:
    inputs = [*args, *consts]
    values = [_argument(x, None if time is None else -1 - i) for i, x in enumerate(inputs)]
    return _run(program.jaxpr, [*values[len(args) :], *values[: len(args)]], time)


def find(program: Any, time: int) -> Step:
    """Return the operation that is carried out at a time."""
    for equation in getattr(program, "jaxpr", program).eqns:
        size = _size(equation)
        if time >= size:
            time -= size
            continue
        # The time is counted through all iterations and all branches.
        inner, index = _jaxprs.opened(equation), ()
        if equation.primitive.name == "scan":
            length = equation.params["length"]
            iteration, time = divmod(time, size // length)
            index = (length - 1 - iteration if equation.params["reverse"] else iteration,)
        for part in inner:
            if time < _program_size(part):
                step = find(part, time)
                return Step((equation, *step.equations), (*index, *step.indices))
            time -= _program_size(part)
        return Step((equation,), index)
    raise ValueError(f"time must be within the program, got {time} operations more")


def _size(equation: Any) -> int:
    inner = sum(map(_program_size, _jaxprs.opened(equation)))
    return equation.params["length"] * inner if equation.primitive.name == "scan" else inner or 1


def _program_size(program: Any) -> int:
    return sum(map(_size, getattr(program, "jaxpr", program).eqns))


def _run(jaxpr: Any, values: Sequence[_Traced], start: Any) -> list[_Traced]:
    """Evaluate an open program whose constants, if any, come first among `values`."""
    time = start
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], values, strict=True))

    def read(atom):
        return _number(atom.val, time) if hasattr(atom, "val") else known[atom]

    for equation in jaxpr.eqns:
        results = _apply(equation, list(map(read, equation.invars)), time)
        known.update(zip(equation.outvars, results, strict=True))
        time = _later(time, _size(equation))
    return list(map(read, jaxpr.outvars))


def _later(time: Any, steps: int) -> Any:
    """Return the time after some operations; `None` if time is not counted."""
    return None if time is None else time + steps


def _apply(equation: Any, inputs: list[_Traced], time: Any) -> list[_Traced]:
    inner = _jaxprs.opened(equation)
    if equation.primitive.name == "scan":
        return _scan(equation.params, inputs, time)
    if equation.primitive.name == "cond":
        starts = [_later(time, sum(map(_program_size, inner[:i]))) for i in range(len(inner))]
        branches = [
            functools.partial(_closed, branch, start=start)
            for branch, start in zip(inner, starts, strict=True)
        ]
        return jax.lax.switch(inputs[0].value, branches, inputs[1:])
    if inner:
        return _closed(inner[0], inputs, start=time)
    results = _jaxprs.bind(equation, [x.value for x in inputs])
    if equation.primitive.name in SIMPLIFIED:
        results = list(map(_separate, results))
    if time is None:
        return [_Traced(y, None, None, None) for y in results]
    return [_trace(equation, inputs, y, time) for y in results]


def _separate(x: Any) -> Any:
    """Return a result as it is, such that XLA does not see which operation it comes from."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    # An `optimization_barrier` keeps layouts too, with which XLA may not compile a matrix product.
    return jax.lax.clamp(*(jnp.asarray(y, x.dtype) for y in (-np.inf, x, np.inf)))


def _closed(program: Any, values: Sequence[_Traced], start: Any) -> list[_Traced]:
    consts = [_argument(value, start) for value in getattr(program, "consts", ())]
    return _run(getattr(program, "jaxpr", program), [*consts, *values], start)


def _scan(params: Any, inputs: list[_Traced], time: Any) -> list[_Traced]:
    consts, carry, xs = _jaxprs.split_scan_inputs(params, inputs)
    size = _program_size(params["jaxpr"])

    # The time is carried, since each iteration goes on where the one before stopped.
    def body(state, x):
        (now, carried), values = state, x
        sliced = [_slice(v, x) for v, x in zip(values, xs, strict=True)]
        out = _closed(params["jaxpr"], [*consts, *carried, *sliced], start=now)
        return (_later(now, size), out[: len(carry)]), out[len(carry) :]

    options = {key: params[key] for key in ("length", "reverse", "unroll")}
    (_, last), ys = jax.lax.scan(body, (time, carry), [x.value for x in xs], **options)
    # The earliest of all iterations.
    earliest = functools.partial(jax.tree.map, lambda times: jnp.min(times, initial=NEVER))
    stacked = [_Traced(y.value, *map(earliest, y[1:])) for y in ys]
    return [*last, *stacked]


def _trace(equation: Any, inputs: list[_Traced], result: Any, time: Any) -> _Traced:
    """Return a result with its time, from those of the inputs."""
    never = jnp.int32(NEVER)
    if not _inexact(result):
        return _Traced(result, never, never, never)
    bad, missing = ~jax.lax.is_finite(_real(result)), _is_nan(result)
    nan = jnp.any(missing)
    times, times_if_nan, times_of_nan, hidden = [], [], [], []
    name = equation.primitive.name
    elementwise = name in ELEMENTWISE and len(inputs) > 1 and result.size > 1
    for i, x in enumerate(inputs):
        if isinstance(x.time, int):  # A finite number in the code.
            continue
        some, some_nan = x.time != NEVER, x.nan != NEVER
        same = elementwise and jnp.shape(x.value) == result.shape
        if _inexact(x.value) and (same or name == "select_n"):
            # Infinite elements elsewhere have no part in it, nor have those of another branch.
            taken = inputs[0].value == jnp.asarray(i - 1, inputs[0].value.dtype)
            part = taken if name == "select_n" else True
            some = jnp.any(bad & part & ~jax.lax.is_finite(_real(x.value)))
            some_nan = jnp.any(missing & part & _is_nan(x.value))
        times.append(jax.lax.select(some, x.time, never))
        times_if_nan.append(jax.lax.select(some_nan & nan, x.time, never))
        times_of_nan.append(jax.lax.select(some_nan & nan, x.nan, never))
        # What is not selected is not used, and hides nothing.
        used = (x.time < CONSTANT // 2) & (name != "select_n")
        hidden += [x.hidden, jax.lax.select(used, x.time, never)]
    # NaN comes from NaN if there is any, and otherwise from what is infinite.
    first, first_if_nan, first_nan = map(_earliest, (times, times_if_nan, times_of_nan))
    first = jax.lax.select(first_if_nan == NEVER, first, first_if_nan)
    # What makes NaN of intended infinities makes it itself.
    created = (first == NEVER) | ((first > CONSTANT // 2) & nan)
    first = jax.lax.select(created, time, first)
    first_nan = jax.lax.select(first_nan == NEVER, time, first_nan)
    return _Traced(
        result,
        jax.lax.select(jnp.any(bad), first, never),
        jax.lax.select(nan, first_nan, never),
        _earliest(hidden),
    )


def _earliest(times: list[Any]) -> Any:
    return functools.reduce(jax.lax.min, times, jnp.int32(NEVER))


def _argument(x: Any, time: Any) -> _Traced:
    """Return an array that comes in at a time."""
    if time is None:
        return _Traced(x, None, None, None)
    never = jnp.int32(NEVER)
    if not _inexact(x):
        return _Traced(x, never, never, never)
    time = jnp.int32(time)
    nan = jnp.any(jnp.isnan(x))
    intended = jnp.where(nan, time, time + jnp.int32(CONSTANT))
    return _slice(x, _Traced(x, intended, time, never))


def _slice(x: Any, whole: _Traced) -> _Traced:
    """Return a part of an array, with the times of the array if it is not finite itself."""
    if whole.time is None or not _inexact(x):
        return whole._replace(value=x)
    never = jnp.int32(NEVER)
    times = (
        jnp.where(jnp.all(jnp.isfinite(x)), never, whole.time),
        jnp.where(jnp.any(jnp.isnan(x)), whole.nan, never),
    )
    return _Traced(x, *times, whole.hidden)


def _number(x: Any, time: Any) -> _Traced:
    """Return a number in the code."""
    if time is not None and (not _inexact(x) or np.all(np.isfinite(x))):
        return _Traced(x, NEVER, NEVER, NEVER)
    return _argument(x, time)


def _real(x: Any) -> Any:
    return jnp.abs(x) if jnp.iscomplexobj(x) else x


def _is_nan(x: Any) -> Any:
    return jax.lax.ne(x, x)


def _inexact(x: Any) -> bool:
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return bool(jnp.issubdtype(dtype, jnp.inexact))
