"""The numeric derivative of a function of a pytree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxgrad import _arguments

TIERS = {
    "course": ((1e-7, "right"), (1e-5, "look again"), (1e-3, "suspicious"), (jnp.inf, "wrong")),
    "second text": ((1e-7, "right"), (1e-4, "acceptable"), (1e-2, "look"), (jnp.inf, "wrong")),
}
"""What each seed text says of a relative error below the number."""


def central_difference(f: Callable[[Any], jax.Array], x: Any, eps: float = 1e-4) -> Any:
    """The plain two-sided difference `(f(x + eps e_i) - f(x - eps e_i)) / (2 eps)`, vmapped.

    One fixed step for every coordinate, as the course has it: the error is of order `eps^2` plus
    rounding of order `|f| 2^-24 / eps` in float32, so use it under `jax.enable_x64(True)`.

    Args:
      f: maps a pytree to a scalar.
      x: a pytree of floating-point arrays.
      eps: the step, positive.

    Returns:
      A pytree like `x` with the numeric gradient.

    Raises:
      ValueError, TypeError: if the step is not positive, a leaf is not floating point, or `f` does
        not return a scalar.

    Source: CS230/Deep Learning Specialization, "Gradient checking".

    >>> with jax.enable_x64(True):
    ...     slope = central_difference(lambda theta: theta**2, jnp.asarray(3.0))
    >>> round(float(slope), 6)
    6.0
    """
    _arguments.scalar("eps", eps, minimum=0.0, above=True)
    for leaf in jax.tree.leaves(x):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise TypeError(
                f"x must have floating-point leaves, got {jnp.result_type(leaf)}; close over the "
                "others"
            )
    out = jax.eval_shape(f, x)
    if getattr(out, "shape", None) != ():
        raise ValueError(f"f must return a scalar, got {out}; sum or weigh its outputs")
    theta, unravel = ravel_pytree(x)

    def along(direction):
        step = eps * direction
        return (f(unravel(theta + step)) - f(unravel(theta - step))) / (2 * eps)

    return unravel(jax.vmap(along)(jnp.eye(theta.size, dtype=theta.dtype)))


def relative_error(numeric: Any, autodiff: Any) -> jax.Array:
    """`|numeric - autodiff| / (|numeric| + |autodiff|)` of the ravelled pytrees, Euclidean norms.

    Args:
      numeric, autodiff: pytrees of the same structure and shapes.

    Returns:
      A scalar between 0 and 1; 0 where both are zero, NaN where an entry is NaN or infinite.

    Raises:
      ValueError: if the structures or shapes differ.

    Source: CS230/Deep Learning Specialization, "Gradient checking".
    """
    if jax.tree.structure(numeric) != jax.tree.structure(autodiff):
        raise ValueError(
            f"autodiff must have the structure of numeric, {jax.tree.structure(numeric)}, got "
            f"{jax.tree.structure(autodiff)}"
        )
    shapes = tuple(list(map(jnp.shape, jax.tree.leaves(tree))) for tree in (numeric, autodiff))
    if shapes[0] != shapes[1]:
        raise ValueError(f"autodiff must have the shapes of numeric, {shapes[0]}, got {shapes[1]}")
    a, b = ravel_pytree(numeric)[0], ravel_pytree(autodiff)[0]
    # Over the largest entry, so that no square underflows; comparisons that let a NaN through.
    size = jnp.max(jnp.abs(jnp.concatenate([a, b])), initial=0.0)
    a, b = (part / jnp.where(size == 0, 1.0, size) for part in (a, b))
    total = jnp.linalg.norm(a) + jnp.linalg.norm(b)
    return jnp.linalg.norm(a - b) / jnp.where(size == 0, 1.0, total)


def tier(error: float, text: str = "course") -> str:
    """What a seed text says of a relative error.

    Args:
      error: a relative error.
      text: a key of `TIERS`.

    Raises:
      ValueError: if the text is unknown.

    >>> tier(1e-8), tier(1e-6), tier(1e-2)
    ('right', 'look again', 'wrong')
    """
    _arguments.choice("text", text, TIERS)
    # A NaN is below nothing, so it comes out as the last tier, wrong.
    return next((name for limit, name in TIERS[text] if error < limit), TIERS[text][-1][1])
