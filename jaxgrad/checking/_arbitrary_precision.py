"""A traced function, evaluated with numbers of as many digits as wanted.

Each floating-point number of the trace becomes a number of mpmath, and each operation is carried
out without rounding to the type that it has in JAX. Integers, booleans and random keys stay what
they are. Operations that are not known raise an `UnknownError`, so that no result is a guess.

Arrays of numbers are NumPy arrays of objects.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad._numerics import float_eps
from jaxgrad.checking._arbitrary_arrays import (
    ARRAY_OPERATIONS,
    Equation,
    exact_numbers,
    is_number,
    objects,
)
from jaxgrad.checking._arbitrary_linalg import MATRIX_OPERATIONS
from jaxgrad.checking._arbitrary_scalars import COMPARISONS, UnknownError, scalar_functions
from jaxgrad.checking._arbitrary_windows import WINDOW_OPERATIONS
from jaxgrad.checking._widen import OPAQUE

IDENTITIES = {
    "copy",
    "copy_p",
    "device_put",
    "layout_constraint",
    "name",
    "optimization_barrier",
    "pvary",
    # What is left of rounding in exact arithmetic.
    "reduce_precision",
    "sharding_constraint",
    "stop_gradient",
}
TABLE = ARRAY_OPERATIONS | WINDOW_OPERATIONS | MATRIX_OPERATIONS
CONTROL = ("scan", "while", "cond", "custom_linear_solve")
# Operations on whole numbers, or on their bits, whose results are floating-point numbers.
EXACT_TO_FLOAT = ("bitcast_convert_type", "random_bits")


class Arithmetic(NamedTuple):
    """An mpmath context, its functions of numbers, and a function that counts operations."""

    context: Any
    scalars: dict[str, Callable[..., Any]]
    spend: Callable[[int], None]


def arithmetic(bits: int, spend: Callable[[int], None]) -> Arithmetic:
    """Return an arithmetic of `bits` binary digits; `spend` is told each count of operations."""
    import mpmath

    # A context of our own: the precision of the user's mpmath stays what it is.
    context: Any = mpmath.MPContext()
    context.prec = bits
    return Arithmetic(context, scalar_functions(context), spend)


def known_operations() -> tuple[str, ...]:
    """Return the names of all operations that are known in arbitrary precision."""
    scalars = arithmetic(53, lambda count: None).scalars
    return tuple(sorted({*scalars, *TABLE, *IDENTITIES, *CONTROL}))


def _value(context: Any, value: Any) -> Any:
    """Return floating-point values as exact numbers, all others as they are."""
    if is_number(value):
        return value
    # Random keys have a type of their own, which NumPy does not know.
    if not isinstance(value, (np.ndarray, np.generic)) and not hasattr(value, "dtype"):
        value = np.asarray(value)
    return exact_numbers(context, value) if float_eps(value.dtype) else value


def evaluate(program: Any, args: Sequence[Any], rules: Arithmetic) -> list[Any]:
    """Evaluate a closed program, or an open one without constants.

    Raises:
      UnknownError: if an operation, or its value at these arguments, is not known.
    """

    def value(number):
        return _value(rules.context, number)

    def literal(atom):
        # A literal has the type that the program says, whatever Python's type is.
        return value(np.asarray(atom.val, atom.aval.dtype))

    return _jaxprs.evaluate(program, args, functools.partial(_apply, rules), value, literal)


def _apply(rules: Arithmetic, equation: Any, args: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if name in CONTROL:
        return _CONTROL[name](params, args, rules)
    called = _jaxprs.called_program(equation)
    if called is not None:
        return evaluate(called, args, rules)
    if equation.effects or any(word in name for word in OPAQUE):
        raise UnknownError(f"{name} is not known in arbitrary precision")
    out = [variable.aval for variable in equation.outvars]
    rules.spend(sum(int(np.prod(getattr(aval, "shape", ()), dtype=int)) for aval in out))
    if name in IDENTITIES:
        return args
    if name == "convert_element_type":
        return [_convert(args[0], params["new_dtype"], rules.context)]
    exact = not any(map(is_number, args))
    if exact and (name in EXACT_TO_FLOAT or not any(float_eps(aval.dtype) for aval in out)):
        return _jaxprs.bind(equation, args)
    if name in rules.scalars:
        return [_elementwise(name, params, args, rules)]
    call = Equation(equation.primitive, params, out, rules.context, rules.spend)
    if name in TABLE:
        results = TABLE[name](call, *args)
        return results if isinstance(results, (tuple, list)) else [results]
    raise UnknownError(f"{name} is not known in arbitrary precision")


def _elementwise(name: str, params: Any, args: list[Any], rules: Arithmetic) -> np.ndarray:
    context = rules.context
    # Whole numbers beside floating-point ones, as in `pow`, are exact.
    args = [a if is_number(a) else exact_numbers(context, a) for a in args]
    function = np.frompyfunc(rules.scalars[name](params), len(args), 1)
    result = np.asarray(function(*args), object)
    return result.astype(bool) if name in COMPARISONS else result


def _convert(value: Any, dtype: Any, context: Any) -> Any:
    """Convert between kinds of numbers; between floating-point types nothing is rounded."""
    if not is_number(value):
        if not float_eps(dtype):
            return np.asarray(jax.lax.convert_element_type(value, dtype))
        value = exact_numbers(context, value)
    if np.issubdtype(dtype, np.complexfloating):
        return objects([context.mpc(x) for x in value.ravel()], value.shape)
    if float_eps(dtype):
        return objects([context.re(x) for x in value.ravel()], value.shape)
    if np.dtype(dtype) == np.bool_:
        return np.array([bool(x != 0) for x in value.ravel()]).reshape(value.shape)
    if not all(context.isfinite(x) and abs(x) < 2**31 for x in value.ravel()):
        raise UnknownError("a number that is not finite or very large becomes a whole one")
    return np.array([int(x) for x in value.ravel()], dtype).reshape(value.shape)


def _scan(params: Any, args: list[Any], rules: Arithmetic) -> list[Any]:
    consts, carry, xs = _jaxprs.split_scan_inputs(params, args)
    steps = range(params["length"])
    rows: list[list[Any]] = []
    for i in reversed(steps) if params["reverse"] else steps:
        # A scanned key array keeps its type when it is indexed.
        out = evaluate(params["jaxpr"], [*consts, *carry, *(x[i] for x in xs)], rules)
        carry, row = out[: len(carry)], out[len(carry) :]
        rows.append(row)
    if params["reverse"]:
        rows.reverse()
    avals = getattr(params["jaxpr"], "out_avals", None)
    assert avals is not None
    stacked = []
    for k, aval in enumerate(avals[len(carry) :]):
        column = [row[k] for row in rows]
        stacked.append(_stacked(column, aval))
    return [*carry, *stacked]


def _stacked(column: list[Any], aval: Any) -> Any:
    if column and not isinstance(column[0], (np.ndarray, np.generic)):
        return jax.numpy.stack(column)
    if column:
        return np.stack([np.asarray(value) for value in column])
    return np.empty((0, *aval.shape), object if float_eps(aval.dtype) else aval.dtype)


def _while(params: Any, args: list[Any], rules: Arithmetic) -> list[Any]:
    for_test, for_body = params["cond_nconsts"], params["body_nconsts"]
    test, body = args[:for_test], args[for_test : for_test + for_body]
    state = args[for_test + for_body :]
    while bool(evaluate(params["cond_jaxpr"], [*test, *state], rules)[0]):
        rules.spend(1)
        state = evaluate(params["body_jaxpr"], [*body, *state], rules)
    return state


def _cond(params: Any, args: list[Any], rules: Arithmetic) -> list[Any]:
    branches = params["branches"]
    index = int(np.clip(int(args[0]), 0, len(branches) - 1))
    return evaluate(branches[index], args[1:], rules)


def _linear_solve(params: Any, args: list[Any], rules: Arithmetic) -> list[Any]:
    lengths = params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    total = before + lengths.solve + lengths.transpose_solve
    solve = args[before : before + lengths.solve]
    return evaluate(params["jaxprs"].solve, [*solve, *args[total:]], rules)


_CONTROL: dict[str, Callable[..., list[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
}
