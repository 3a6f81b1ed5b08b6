"""A call of a derivative rule as a function of its inputs, to be checked like any other one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _jaxprs
from jaxgrad._numerics import float_eps
from jaxgrad.checking._programs import equal_within, to_float64
from jaxgrad.checking._widen import widen

# Of a matrix that these take for symmetric, they read one half, and differentiate the mean of both.
SYMMETRIC = ("cholesky", "eigh", "tridiagonal")


def is_float(value: Any) -> bool:
    """Whether a value has a derivative."""
    return bool(float_eps(getattr(value, "dtype", None)))


def is_moved(equation: Any) -> list[bool]:
    """Return which inputs of an operation the rule has a derivative for.

    It has none for numbers in the program, and none for what a function captures.
    """
    captured = equation.params.get("num_consts", 0) if _jaxprs.is_rule(equation) else 0
    return [
        is_float(v.aval) and v.aval.size > 0 and not hasattr(v, "val") and i >= captured
        for i, v in enumerate(equation.invars)
    ]


@dataclasses.dataclass(frozen=True)
class Rebuilt:
    """A call of a rule as a function; equal to another with an equal derivative.

    The function takes the inputs that are moved, `None` for others, and a pair: all inputs, and
    places. Elements that are not finite cannot be moved: of such an input, listed in `holes`, the
    finite elements are moved, whose places the second part has.
    """

    fingerprint: str
    holes: tuple[int, ...]
    equation: Any = dataclasses.field(compare=False)

    def __call__(self, moved, fixed):
        inputs, places = fixed
        inputs = [i if m is None else m for i, m in zip(inputs, moved, strict=True)]
        for i, where in zip(self.holes, places, strict=True):
            whole = fixed[0][i]
            flat = jnp.ravel(whole).astype(moved[i].dtype)
            inputs[i] = flat.at[where].set(moved[i]).reshape(jnp.shape(whole))
        # A rule that was traced in float32 takes nothing else; `check_grads` passes float64.
        pairs = zip(inputs, self.equation.invars, strict=True)
        cast = [v.astype(a.aval.dtype) if is_float(v) else v for v, a in pairs]
        if self.equation.primitive.name in SYMMETRIC:
            cast[0] = (cast[0] + jnp.conj(jnp.matrix_transpose(cast[0]))) / 2
        return [r for r in _jaxprs.bind(self.equation, cast) if is_float(r)]


def rebuild(fingerprint: str, equation: Any, inputs: list[Any]) -> tuple[Rebuilt, tuple[Any, ...]]:
    """Return the call of an operation as a function, and its two arguments."""
    moved, holes, places = [], [], []
    for i, (value, moves) in enumerate(zip(inputs, is_moved(equation), strict=True)):
        finite = np.isfinite(np.asarray(value)) if moves else np.ones(())
        if not np.all(finite):
            holes.append(i)
            places.append(np.flatnonzero(finite))
            value = jnp.ravel(value)[places[-1]]
        moved.append(value if moves else None)
    return Rebuilt(fingerprint, tuple(holes), equation), (moved, (inputs, places))


@dataclasses.dataclass(frozen=True)
class Widened:
    """A call of a rule in float64, by a rule that is the trace of the original one."""

    fingerprint: str
    mode: str
    values: Callable[..., Any] = dataclasses.field(compare=False)
    derivative: Callable[..., Any] = dataclasses.field(compare=False)

    def __call__(self, moved, fixed):
        leaves, others = jax.tree.leaves(moved), jax.tree.leaves(fixed)
        if self.mode == "fwd":
            forward = jax.custom_jvp(self.values)
            forward.defjvp(lambda p, t: (self.values(*p), self.derivative(p[0], [*p[1], *t[0]])))
            return forward(leaves, others)
        reverse = jax.custom_vjp(self.values)
        reverse.defvjp(
            lambda *args: (self.values(*args), args),
            lambda args, ct: (self.derivative(args[0], [*args[1], *ct]), None),
        )
        return reverse(leaves, others)


def without_rounding(function: Rebuilt, arguments: tuple[Any, ...], mode: str) -> Widened | None:
    """Return a call in float64, `None` if that is not possible or if it would be another function.

    The derivative of the call is traced, and its operations are carried out in float64.
    """
    (leaves, structure), (others, of_fixed) = map(jax.tree.flatten, arguments)
    count = len(others)

    def flat(leaves, others):
        return function(jax.tree.unflatten(structure, leaves), jax.tree.unflatten(of_fixed, others))

    def derivative(leaves, rest):
        others, vectors = rest[:count], list(rest[count:])
        if mode == "fwd":
            return jax.jvp(lambda m: flat(m, others), (list(leaves),), (vectors,))[1]
        return jax.vjp(lambda m: flat(m, others), list(leaves))[1](vectors)[0]

    outputs = flat(leaves, others)
    try:
        values = widen(flat, leaves, others)
        vectors = leaves if mode == "fwd" else outputs
        wide = Widened(
            function.fingerprint, mode, values, widen(derivative, leaves, [*others, *vectors])
        )
        with jax.enable_x64(True):
            results = jax.tree.leaves(wide(*jax.tree.map(to_float64, arguments)))
    except Exception:  # an operation that float64 does not have, or whatever a rule raises
        return None
    # Rounding may be meant, as by a cast to a narrow type.
    eps = max(float_eps(output.dtype) for output in outputs)
    pairs = zip(results, outputs, strict=True)
    same = all(equal_within(eps**0.5, a, np.asarray(b, np.asarray(a).dtype)) for a, b in pairs)
    return wide if same else None
