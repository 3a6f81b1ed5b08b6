"""What the trace of a function tells before it is run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LOOPS = {"scan", "while", "cond"}
HOST_EPS = float(np.finfo(np.float32).eps)


class Facts(NamedTuple):
    """What a trace contains.

    Attributes:
      fingerprint: equal for two traces of the same computation with the same constants.
      eps: relative rounding of the narrowest floating-point type that values pass through.
      equations: how many operations, those inside loops counted once.
      loops: whether there are loops or branches.
      iterates: whether a loop runs until a condition holds, as those of solvers do.
      stops: whether `stop_gradient` is called.
      rules: names of the functions with a derivative of their own.
      forward: whether forward mode is defined, as it is not for `custom_vjp`.
    """

    fingerprint: str
    eps: float
    equations: int
    loops: bool
    iterates: bool
    stops: bool
    rules: tuple[str, ...]
    forward: bool


def facts(function: Callable[..., Any], *args: Any) -> Facts:
    """Trace afresh, whatever was traced before, and look at the operations.

    Raises what `function` raises.
    """
    # Through a new function, because JAX remembers the trace of an old one.
    closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
    digest = hashlib.blake2b(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
    for constant in closed.consts:
        digest.update(_bytes(constant))
    eps = [_eps(v.aval) for v in closed.jaxpr.invars]
    count, loops, iterates, stops, rules, forward = 0, False, False, False, [], True
    for equation in _equations(closed.jaxpr):
        name = equation.primitive.name
        count += 1
        loops |= name in LOOPS
        iterates |= name == "while"
        stops |= name == "stop_gradient"
        # The host may compute in any precision.
        eps.append(HOST_EPS if "callback" in name else 0.0)
        forward &= not name.startswith("custom_vjp")
        if name.startswith("custom_"):
            rules.append(_name(equation))
        for variable in equation.invars:
            if getattr(getattr(variable, "val", None), "shape", None):
                digest.update(_bytes(variable.val))
        taken = [_eps(v.aval) for v in equation.invars]
        made = [_eps(v.aval) for v in equation.outvars]
        # Narrower than what it was made of; constants of a narrow type lose nothing any more.
        narrowed = [e for e in made if e > min((t for t in taken if t), default=e)]
        eps += narrowed
    names = tuple(dict.fromkeys(rules))
    return Facts(
        digest.hexdigest(), max(eps, default=0.0), count, loops, iterates, stops, names, forward
    )


def _equations(jaxpr: Any) -> Iterator[Any]:
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _equations(getattr(value, "jaxpr", value))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _name(equation: Any) -> str:
    inner = equation.params.get("call_jaxpr") or equation.params.get("jaxpr")
    info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return str(getattr(info, "func_name", None) or equation.params.get("name", "")) or "a function"


def _eps(aval: Any) -> float:
    dtype = getattr(aval, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return 0.0
    return float(jnp.finfo(dtype).eps)


def _bytes(value: Any) -> bytes:
    if jnp.issubdtype(getattr(value, "dtype", np.dtype(object)), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value).tobytes()
