"""A traced function, evaluated with every floating-point number in float64.

A function may round to a narrower type inside, by a cast or by an array that it holds. A difference
of two of its values then says little about its derivative. The trace of the function shows its
operations, and this file carries them out without the rounding.

This is the only file that reads JAX's program representation operation by operation. If it does not
know an operation, the function is evaluated as it is, and the report says so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad._jaxprs import LOOPS, bind, called_program, evaluate, is_program, repeat
from jaxgrad._numerics import float_eps
from jaxgrad.checking._precision import Computation, first_line
from jaxgrad.checking._programs import (
    build_programs,
    equal_within,
    precision,
    reuse,
    to_float64,
    traced,
)

EPS64 = float(np.finfo(np.float64).eps)
ACCUMULATED = ("add", "mul", "min", "max")
OPAQUE = ("callback", "ffi", "custom_call", "pallas", "shard_map")


def without_rounding(function: Callable, checked: Computation, outputs) -> tuple[Computation, str]:
    """Return the function without rounding inside, and "".

    If that is not possible, or if its `outputs` would change, return `checked` and the reason.
    """
    if checked.eps <= EPS64 or checked.key is None:
        return checked, ""

    def build():
        try:
            wide = widen(function, checked.moved, checked.fixed, wide=checked.wide)
        except NotImplementedError as error:
            return str(error)
        return build_programs(wide, moved, fixed, wide=True)

    with precision(True):
        moved, fixed = jax.tree.map(to_float64, (checked.moved, checked.fixed))
    programs = reuse(("without rounding", *checked.key), build)
    if isinstance(programs, str):
        return checked, programs
    if programs.mapped != checked.programs.mapped:
        return checked, "jax.vmap maps f in one precision only"
    for wide, narrow in zip(programs.outputs(moved, fixed), outputs, strict=True):
        # Rounding may be meant, as by a large constant that swallows the rest.
        if not equal_within(checked.eps**0.5, wide, narrow):
            return checked, "without rounding f has other values"
    return Computation(programs, moved, fixed, True, EPS64, None), ""


def widen(function: Callable, moved: Any, fixed: Any, *, wide: bool = False) -> Callable:
    """Return `function` in float64 throughout.

    It is traced at `moved` and `fixed`, in float64 if `wide`. Call the result, a function of the
    same arguments, under `jax.enable_x64(True)`. A `NotImplementedError` names an operation that
    cannot be carried out in float64.
    """

    def widened(moved, fixed):
        return _evaluate(closed, jax.tree.leaves((list(moved), list(fixed))))

    with precision(wide):
        closed, _ = traced(function, list(moved), list(fixed))

    with jax.enable_x64(True):
        jax.eval_shape(widened, *jax.tree.map(to_float64, (moved, fixed)))
    return widened


def _evaluate(program: Any, args: Sequence[Any]) -> list[Any]:
    """Evaluate a closed program, or an open one without constants."""

    def apply(equation, inputs):
        try:
            return _apply(equation, inputs)
        except NotImplementedError:
            raise
        except Exception as error:  # what JAX raises where an operation does not allow float64
            words = f"{equation.primitive.name} raised {type(error).__name__}: {first_line(error)}"
            raise NotImplementedError(words) from error

    return evaluate(
        program, args, apply, to_float64, lambda atom: to_float64(jnp.asarray(atom.val))
    )


def _apply(equation: Any, args: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    unknown = NotImplementedError(f"{name} is not known in float64")
    if equation.effects:
        raise unknown
    if name in _CONTROL:
        return _CONTROL[name](params, args)
    called = called_program(equation)
    if called is not None:
        return _evaluate(called, args)
    if name in LOOPS:
        return repeat(equation, args, _evaluate)
    if any(map(is_program, params.values())) or any(word in name for word in OPAQUE):
        raise unknown
    if not any(float_eps(arg.dtype) for arg in args):
        return bind(equation, args)
    # The bits of a float64 are others, and twice as many.
    if name == "bitcast_convert_type":
        raise unknown
    # The roundings themselves: nothing is left of them but a change to complex numbers.
    out = equation.outvars[0].aval
    if name == "reduce_precision" or (name == "convert_element_type" and float_eps(out.dtype)):
        to_complex = jnp.issubdtype(out.dtype, jnp.complexfloating)
        return [args[0].astype(jnp.complex128) if to_complex else args[0]]
    return bind(equation, args, **{k: _wide_parameter(k, value) for k, value in params.items()})


def _wide_parameter(key: str, value: Any) -> Any:
    """Replace types among the parameters of an operation, such as that of an accumulator."""
    if key == "precision":
        return jax.lax.Precision.HIGHEST
    try:
        dtype: Any = jnp.dtype(value) if isinstance(value, (type, jnp.dtype)) else None
    except TypeError:  # a class that is no type of arrays
        return value
    return np.promote_types(dtype, np.float64) if float_eps(dtype) else value


# Operations with inner programs whose arguments have to be sorted, and those whose parameters hold
# a program that a call of their public function makes anew.


def _linear_solve(params, args):
    lengths = params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    total = before + lengths.solve + lengths.transpose_solve
    solve = args[before : before + lengths.solve]
    return _evaluate(params["jaxprs"].solve, [*solve, *args[total:]])


def _scatter(function):
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")
    return lambda params, args: [function(*args, **{name: params[name] for name in names})]


_CONTROL: dict[str, Callable[[Any, list[Any]], Sequence[Any]]] = {
    "custom_linear_solve": _linear_solve,
    "scatter": _scatter(jax.lax.scatter),
    # Of two names, one is that of some versions of JAX.
    "scatter-add": _scatter(jax.lax.scatter_add),
    **{f"scatter_{n}": _scatter(getattr(jax.lax, f"scatter_{n}")) for n in ACCUMULATED},
}
