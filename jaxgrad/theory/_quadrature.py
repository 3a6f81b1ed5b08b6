"""Gaussian averages of an activation, to nearly all digits of float64, at any variance.

Gauss-Hermite nodes fail at kinks, and where the Gaussian is much wider than the scale on which the
activation changes. Here the mesh of the activation, divided by `sqrt(q)`, is merged with the panels
that the Gaussian needs, and each panel gets Gauss-Legendre nodes. The number of panels does not
depend on `q`, so `q` may be traced.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxgrad.activations import Activation
from jaxgrad.theory._mesh import NODES, REACH, WEIGHTS, mesh, versions

# Beyond this absolute log variance, averages are extrapolated as powers of the variance.
FAR = 60.0


def standard_nodes(edges: Any, centre: Any, scale: Any, *, reach: float = REACH) -> tuple[Any, Any]:
    """Nodes `z` and weights for a standard normal up to `reach`, `[..., nodes]`.

    No panel contains one of the `edges` in terms of `x = centre + scale z`, where `centre` and
    `scale` are NumPy arrays `[..., 1]` or traced scalars.
    """
    xp = np if isinstance(scale, np.ndarray) else jnp
    # Panels of one standard deviation serve the Gaussian's density.
    regular = np.linspace(-reach, reach, math.ceil(reach) + 1)
    inner = xp.clip((xp.asarray(edges) - centre) / scale, -reach, reach)
    regular = xp.broadcast_to(regular, (*inner.shape[:-1], len(regular)))
    bounds = xp.sort(xp.concatenate([regular, inner], axis=-1), axis=-1)
    half = ((bounds[..., 1:] - bounds[..., :-1]) / 2)[..., None]
    z = ((bounds[..., 1:] + bounds[..., :-1]) / 2)[..., None] + half * NODES[None]
    density = xp.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    shape = (*inner.shape[:-1], -1)
    return z.reshape(shape), (half * WEIGHTS[None] * density).reshape(shape)


def nodes(
    edges: ArrayLike, log_q: ArrayLike, mean: ArrayLike = 0.0, *, reach: float = REACH
) -> tuple[Array, Array]:
    """Nodes `x` and weights for `N(mean, exp(log_q))` on panels that contain none of the `edges`.

    Only the weights carry derivatives of `sum(weights * f(x))`, so these are right where `f` jumps.
    """
    scale = jnp.exp(0.5 * jnp.asarray(log_q))
    fixed, centre = jax.lax.stop_gradient((scale, jnp.asarray(mean)))
    z, weights = standard_nodes(edges, centre, fixed, reach=reach)
    x = centre + fixed * z
    # The factor is 1, but its derivative is that of the density: N(x; mean, scale) / N(x; fixed).
    shifted = (x - mean) / scale
    return x, weights * (fixed / scale * jnp.exp((z * z - shifted * shifted) / 2))


def sample(activation: Activation, log_q: Float[Array, ""]) -> list[Float[Array, " nodes"]]:
    """Evaluate an activation at the nodes `x` of `N(0, exp(log_q))`, with `|log_q| <= FAR`.

    Returns `x`, weights, values and slopes; `sum(weights * f(value, slope))` is an average over the
    activation's draws, too. Weights are NaN if the mesh is not valid for the variance.
    """
    panels = mesh(activation)
    x, weights = nodes(np.asarray(panels.edges), log_q)
    weights = jnp.where(log_q <= panels.log_q, weights, jnp.nan)
    # An average over the draws of an activation is one over its versions, with their shares.
    parts = []
    for share, function in versions(activation):
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        parts.append((x, share * weights, value, slope))
    return [*map(jnp.concatenate, zip(*parts, strict=True))]


def extends_beyond(z, terms, total):
    """Whether the last standard deviation contributes to the sum `total` of `terms` at `z`."""
    xp = np if isinstance(terms, np.ndarray) else jnp
    end = xp.sum(xp.where(abs(z) > REACH - 1, terms, 0.0), axis=-1)
    return end > 1e-12 * total
