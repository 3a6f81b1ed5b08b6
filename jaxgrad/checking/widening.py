"""A traced function evaluated again with every floating-point number in float64.

A function may round to a narrower type inside, by a cast or beside an array that it holds, and then
a difference of two of its values says little about its derivative. Its trace says what it computes;
here that is computed without the rounding.

This file alone reads JAX's program representation operation by operation. Whatever it does not know
makes `widened` return `None`, and the function is then evaluated as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

INLINED = ("call_jaxpr", "jaxpr", "fun_jaxpr")


class _UnknownError(Exception):
    """An operation whose widened form is not known."""


def widened(
    call: Callable[..., list[jax.Array]], moved: Sequence[Any], fixed: Sequence[Any]
) -> Callable[..., list[jax.Array]] | None:
    """`call` with the same arguments, in float64 throughout; `None` where that is not possible.

    To be called in the precision that `call` is traced in; what it returns, in float64.
    """
    closed = jax.make_jaxpr(lambda moved, fixed: call(moved, fixed))(list(moved), list(fixed))

    def wide(moved, fixed):
        flat = jax.tree.leaves((list(moved), list(fixed)))
        return _evaluate(closed, flat)

    with jax.enable_x64(True):
        try:
            jax.eval_shape(wide, [_wide(v) for v in moved], [_wide(v) for v in fixed])
        except Exception:  # what an operation raises that does not allow it
            return None
    return wide


def _wide(value: Any) -> Any:
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return value
    return jnp.asarray(value).astype(_wide_type(dtype))


def _wide_type(dtype: Any) -> Any:
    return jnp.complex128 if jnp.issubdtype(dtype, jnp.complexfloating) else jnp.float64


def _is_inexact(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and bool(jnp.issubdtype(dtype, jnp.inexact))


def _evaluate(program: Any, args: Sequence[Any]) -> list[Any]:
    """Evaluate a closed program, or an open one without constants."""
    jaxpr, consts = getattr(program, "jaxpr", program), getattr(program, "consts", ())
    known: dict[Any, Any] = {}

    def read(atom):
        return _wide(jnp.asarray(atom.val)) if hasattr(atom, "val") else known[atom]

    known.update(zip(jaxpr.constvars, map(_wide, consts), strict=True))
    known.update(zip(jaxpr.invars, map(_wide, args), strict=True))
    for equation in jaxpr.eqns:
        found = _apply(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, map(_wide, found), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(equation: Any, args: list[Any]) -> Sequence[Any]:
    name, params = equation.primitive.name, equation.params
    if equation.effects:
        raise _UnknownError(name)
    if name in _CONTROL:
        return _CONTROL[name](params, args)
    inner = [params[key] for key in INLINED if key in params]
    if len(inner) == 1 and not isinstance(inner[0], tuple):
        return _evaluate(inner[0], args)
    if any(hasattr(getattr(value, "jaxpr", value), "eqns") for value in params.values()):
        raise _UnknownError(name)
    if any(word in name for word in ("callback", "ffi", "custom_call", "pallas", "shard_map")):
        raise _UnknownError(name)

    def plain(params):
        found = equation.primitive.bind(*args, **params)
        return found if equation.primitive.multiple_results else [found]

    if not any(map(_is_inexact, args)):
        return plain(params)
    if name == "bitcast_convert_type":
        raise _UnknownError(name)
    made = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in equation.outvars]
    if name == "reduce_precision" or (name == "convert_element_type" and made[0]):
        complex_made = jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.complexfloating)
        return [args[0].astype(jnp.complex128) if complex_made else args[0]]
    return plain({key: _wide_parameter(key, value) for key, value in params.items()})


def _wide_parameter(key: str, value: Any) -> Any:
    if key == "precision":
        return jax.lax.Precision.HIGHEST
    try:
        dtype = jnp.dtype(value) if isinstance(value, (type, jnp.dtype)) else None
    except TypeError:
        return value
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return value
    return jnp.dtype(_wide_type(dtype))


def _scan(params, args):
    consts, carry = params["num_consts"], params["num_consts"] + params["num_carry"]

    def body(state, xs):
        out = _evaluate(params["jaxpr"], [*args[:consts], *state, *xs])
        return out[: params["num_carry"]], out[params["num_carry"] :]

    last, stacked = jax.lax.scan(
        body,
        args[consts:carry],
        args[carry:],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*last, *stacked]


def _while(params, args):
    for_test, for_body = params["cond_nconsts"], params["body_nconsts"]
    test, body = args[:for_test], args[for_test : for_test + for_body]
    return jax.lax.while_loop(
        lambda state: _evaluate(params["cond_jaxpr"], [*test, *state])[0],
        lambda state: _evaluate(params["body_jaxpr"], [*body, *state]),
        args[for_test + for_body :],
    )


def _cond(params, args):
    branches = [lambda *given, b=branch: _evaluate(b, given) for branch in params["branches"]]
    return jax.lax.switch(args[0], branches, *args[1:])


def _linear_solve(params, args):
    lengths = params["const_lengths"]
    before = lengths.matvec + lengths.vecmat
    total = before + lengths.solve + lengths.transpose_solve
    solve = args[before : before + lengths.solve]
    return _evaluate(params["jaxprs"].solve, [*solve, *args[total:]])


def _scatter(function):
    names = ("dimension_numbers", "indices_are_sorted", "unique_indices", "mode")

    def apply(params, args):
        return [function(*args, **{name: params[name] for name in names})]

    return apply


_CONTROL: dict[str, Callable[[Any, list[Any]], Sequence[Any]]] = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
    "scatter": _scatter(jax.lax.scatter),
    "scatter-add": _scatter(jax.lax.scatter_add),
    "scatter_add": _scatter(jax.lax.scatter_add),
    "scatter_mul": _scatter(jax.lax.scatter_mul),
    "scatter_min": _scatter(jax.lax.scatter_min),
    "scatter_max": _scatter(jax.lax.scatter_max),
}
