"""Facts about a function that its trace shows before the function is run."""

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking._programs import epsilon

LOOPS = {"scan", "while", "cond"}
HOST_EPS = float(np.finfo(np.float32).eps)


class Facts(NamedTuple):
    """Facts about one trace."""

    fingerprint: str  # equal for traces of the same computation with the same constants
    eps: float  # machine epsilon of the narrowest floating-point type that values pass through
    equations: int  # number of operations; those inside a loop count once
    loops: bool  # whether there are loops or branches
    iterates: bool  # whether a loop runs until a condition holds, as in an iterative solver
    stops: bool  # whether `stop_gradient` is called
    rules: tuple[str, ...]  # names of the functions with a custom derivative rule
    forward: bool  # whether forward mode is defined; a `custom_vjp` does not define it


# Of a function that cannot be traced nothing is known: it may have loops and no forward mode.
UNTRACED = Facts("", 0.0, 0, True, False, False, (), False)


def trace(function: Callable[..., Any], *args: Any) -> Facts:
    """Trace `function` anew and collect facts; raises whatever `function` raises."""
    # JAX remembers the trace of a function, so a new function is traced each time.
    closed = jax.make_jaxpr(lambda *args: function(*args))(*args)
    equations = list(_equations(closed.jaxpr))
    names = [equation.primitive.name for equation in equations]
    rules = [_rule_name(e) for e in equations if e.primitive.name.startswith("custom_")]
    inputs = (epsilon(variable.aval) for variable in closed.jaxpr.invars)
    return Facts(
        fingerprint=_fingerprint(closed, equations),
        eps=max([0.0, *inputs, *map(_narrowed_to, equations)]),
        equations=len(equations),
        loops=not LOOPS.isdisjoint(names),
        iterates="while" in names,
        stops="stop_gradient" in names,
        rules=tuple(dict.fromkeys(rules)),
        forward=not any(name.startswith("custom_vjp") for name in names),
    )


def _fingerprint(closed: Any, equations: list[Any]) -> str:
    # Addresses of Python objects differ from trace to trace without meaning.
    digest = hashlib.blake2b(re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr)).encode())
    # The printed program abbreviates arrays, so their contents are added.
    for constant in closed.consts:
        digest.update(_bytes(constant))
    for equation in equations:
        for variable in equation.invars:
            if getattr(getattr(variable, "val", None), "shape", None):
                digest.update(_bytes(variable.val))
    return digest.hexdigest()


def _narrowed_to(equation: Any) -> float:
    """Return the epsilon of the type that an operation rounds to, 0 if it does not narrow."""
    # A callback runs on the host, which may compute in any precision.
    host = HOST_EPS if "callback" in equation.primitive.name else 0.0
    inputs = [epsilon(variable.aval) for variable in equation.invars]
    outputs = [epsilon(variable.aval) for variable in equation.outvars]
    # What is made of integers alone is exact: a constant of a narrow type loses no more.
    finest = min((eps for eps in inputs if eps), default=np.inf)
    return max([host, *(eps for eps in outputs if eps > finest)])


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All operations, those of inner programs (loops, branches, calls) included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from _equations(getattr(value, "jaxpr", value))


def is_program(value: Any) -> bool:
    """Whether a parameter of an operation is a program, closed or open."""
    return hasattr(getattr(value, "jaxpr", value), "eqns")


def _rule_name(equation: Any) -> str:
    inner = equation.params.get("call_jaxpr") or equation.params.get("jaxpr")
    info = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
    return str(getattr(info, "func_name", None) or equation.params.get("name", "")) or "a function"


def _bytes(value: Any) -> bytes:
    if jnp.issubdtype(getattr(value, "dtype", np.dtype(object)), jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    return np.asarray(value).tobytes()
