"""What must hold of derivatives whatever the function, at machine precision and little cost.

`transpose`: <cotangent, J v> = <J^T cotangent, v>, forward against reverse mode. `linear`: the
backward pass is linear in its cotangent, so a rule that ignores its cotangent is found, and maps
zero to zero. `vmap`: gradients under `vmap` equal those one by one. `jit`: gradients under `jit`
equal those without. For a holomorphic function the backward pass is linear over complex numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NAMES = {
    "transpose": "forward and reverse mode are transposes of each other",
    "linear": "the backward pass is linear in its cotangent",
    "zero": "a zero cotangent gives a zero gradient",
    "holomorphic": "the derivative is linear over the complex numbers",
    "vmap": "under vmap as without",
    "jit": "under jit as without",
    "symmetry": "second derivatives are symmetric",
}


class Identity(NamedTuple):
    """The outcome of one identity.

    Attributes:
      name: a key of `NAMES`.
      holds: whether it does, `None` if it does not apply.
      error: its largest error over the leaves, relative to the size of the leaf's gradient.
      leaf: position of the leaf with that error.
      reason: why it does not apply, or "".
    """

    name: str
    holds: bool | None
    error: float
    leaf: int
    reason: str


class Measured(NamedTuple):
    """Gradients, as lists over leaves.

    Attributes:
      gradient: of the weighted outputs, one backward pass.
      several: `[4, ...]`, under `vmap`, for the cotangents of `cotangents_of`; `None` if `f` cannot
        be mapped.
      pushed: <cotangent, J v_leaf> for each leaf, `[L]`; `None` without forward mode.
    """

    gradient: list[Any]
    several: list[Any] | None
    pushed: Any


def weights(holomorphic: bool) -> tuple[complex, complex]:
    """The factors of the two cotangents in the third, `a c + b d`."""
    return (0.75, -1.25) if not holomorphic else (0.75 + 0.5j, -1.25j)


def measure(
    call: Callable[..., list[jax.Array]],
    moved: Sequence[jax.Array],
    fixed: Sequence[jax.Array],
    cotangents: Sequence[jax.Array],
    tangent: Sequence[jax.Array],
    stacked: Sequence[jax.Array],
    *,
    forward: bool,
    reverse: bool,
    batched: bool,
) -> Measured:
    """Everything that autodiff says, in one program."""
    moved = list(moved)

    def back(moved, cotangents):
        return jax.vjp(lambda m: call(m, fixed), moved)[1](list(cotangents))[0]

    gradient, several, pushed = [], None, None
    if reverse:
        gradient = back(moved, cotangents)
        if batched:
            copies = [jnp.broadcast_to(v[None], (4, *v.shape)) for v in moved]
            several = jax.vmap(back)(copies, list(stacked))
        else:
            rows = [back(moved, [c[i] for c in stacked]) for i in range(4)]
            several = [jnp.stack(leaves) for leaves in zip(*rows, strict=True)]
    if forward:

        def push(which):
            one = [jnp.where(which == i, v, jnp.zeros_like(v)) for i, v in enumerate(tangent)]
            out = jax.jvp(lambda m: call(m, fixed), (moved,), (one,))[1]
            return sum(
                jnp.sum(jnp.real(c * v.astype(c.dtype)))
                for c, v in zip(cotangents, out, strict=True)
            )

        pushed = jax.lax.map(push, jnp.arange(len(moved)))
    return Measured(gradient, several, pushed)


def stack(cotangents: Sequence[np.ndarray], holomorphic: bool, seed: int) -> list[np.ndarray]:
    """The cotangents `c`, another `d`, `a c + b d` and zero, stacked for each output."""
    generator = np.random.default_rng(seed)
    a, b = weights(holomorphic)
    out = []
    for c in cotangents:
        d = np.abs(c).max(initial=0.0) * generator.standard_normal(c.shape)
        mixed = a * c + b * d
        out.append(np.stack([c, d, mixed, np.zeros_like(c)]).astype(c.dtype))
    return out


def outcome(name: str, apart: Sequence[float], scale: Sequence[float], tolerance) -> Identity:
    """Judge the differences `apart` of each leaf against its `scale` and `tolerance`."""
    apart, scale = np.asarray(apart, float), np.asarray(scale, float)
    excess = np.where(np.isfinite(apart), apart - np.asarray(tolerance), np.inf)
    leaf = int(np.argmax(np.where(np.isfinite(apart), apart / np.maximum(scale, 1e-300), np.inf)))
    failing = int(np.argmax(excess))
    holds = bool(np.all(excess <= 0))
    leaf = leaf if holds else failing
    error = float(apart[leaf] / scale[leaf]) if scale[leaf] > 0 else float(apart[leaf] > 0)
    return Identity(name, holds, error, leaf, "")


def not_applied(name: str, reason: str) -> Identity:
    """An identity that could not be tried."""
    return Identity(name, None, 0.0, 0, reason)
