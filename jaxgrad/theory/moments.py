"""What mean-field theory carries from layer to layer, and what an activation makes of it.

In a wide random network the pre-activations of one layer are Gaussian across its units, so that a
few moments say all: the mean square over units, how far two examples are from being parallel, and
how much a small random change has grown. The growth of a change carried forward is also that of a
gradient carried back, since both are the squared norm of one Jacobian, per output.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.activations import Activation
from jaxgrad.theory import quadrature
from jaxgrad.theory._float64 import in_float64

_FAR = 60.0
"""Beyond this log variance an activation is taken to follow its power law."""

_LINEAR = 1e-16
"""Below this gap two examples see one slope."""

_CROWD, _BOUND = 200, 60.0
_AROUND = tuple(sign * step for sign in (-1, 1) for step in (1.0, 2.0, 4.0, 6.0, 8.0, 10.0))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["log_q", "log_gradient", "mean", "gap"],
    meta_fields=["gaussian", "fresh"],
)
@dataclass(frozen=True)
class Moments:
    """Moments of a signal and of a change of it; every array has shape `[...]`, logs are natural.

    Attributes:
      log_q: log of `q`, the mean square over units.
      log_gradient: log of the mean square of the change over units.
      mean: mean over units divided by `sqrt(q)`, from -1 to 1.
      gap: `1 - c`, where `c` is the mean product of two examples divided by `q`; `None` where it
        is not followed.
      gaussian: whether the units are independent draws from `N(0, q)`, as after a layer of
        weights; only then is an activation's average known.
      fresh: whether weights have been met since the start; only then is a branch independent of
        what it is added to.
    """

    log_q: Any
    log_gradient: Any = 0.0
    mean: Any = 0.0
    gap: Any = None
    gaussian: bool = False
    fresh: bool = False


class Statistics(NamedTuple):
    """Averages over `x ~ N(0, q)` of an activation `phi`; each has the shape of `log_q`.

    Attributes:
      log_square: log of `M = E phi^2`.
      log_slope: log of `D = E phi'^2`.
      mean: `E phi / sqrt(M)`.
      elasticity: `d log M / d log q`.
      slope_elasticity: `d log D / d log q`.
    """

    log_square: jax.Array
    log_slope: jax.Array
    mean: jax.Array
    elasticity: jax.Array
    slope_elasticity: jax.Array


def statistics(activation: Activation, log_q: Any) -> Statistics:
    """Average an activation over pre-activations of variance `exp(log_q)`, `[...]`.

    Returns:
      `Statistics`; NaN where the second moment diverges or lies beyond 14 standard deviations, and
      where the variance is too large for the oscillations of the activation to be followed.
    """
    mesh = quadrature.mesh(activation)
    return _each(functools.partial(_statistics, activation, mesh), jnp.asarray(log_q))


def pair(activation: Activation, log_q: Any, gap: Any) -> tuple[jax.Array, jax.Array]:
    """Average an activation over two pre-activations of correlation `1 - gap`.

    Relative to itself the new gap is right to about `1e-16 / sqrt(gap)`.

    Returns:
      The gap of the activations, and `E phi'(u) phi'(v)`, each of the arguments' shape; NaN where
      the activation oscillates too often within 14 standard deviations.
    """
    log_q, gap = jnp.broadcast_arrays(jnp.asarray(log_q), jnp.asarray(gap))
    return _each(functools.partial(_pair, activation, quadrature.mesh(activation)), log_q, gap)


@in_float64
def activate(moments: Moments, activation: Activation) -> Moments:
    """The moments after an activation.

    Raises:
      ValueError: if the units are not Gaussian, so that their moments do not say enough.
    """
    if not moments.gaussian:
        raise ValueError(
            f"activation {activation.name!r} must follow a layer of weights, whose outputs are "
            "Gaussian, for its moments to be known; put a dense layer or a convolution before it"
        )
    found = statistics(activation, moments.log_q)
    gap = None if moments.gap is None else pair(activation, moments.log_q, moments.gap)[0]
    return replace(
        moments,
        log_q=found.log_square,
        log_gradient=moments.log_gradient + found.log_slope,
        mean=found.mean,
        gap=gap,
        gaussian=False,
    )


def _each(function, *arrays):
    """Apply a function of scalars to every element, some at a time to bound the memory."""
    if arrays[0].ndim == 0:
        return function(*arrays)
    flat = jax.lax.map(
        lambda scalars: function(*scalars), tuple(a.ravel() for a in arrays), batch_size=32
    )
    return jax.tree.map(lambda leaf: leaf.reshape(arrays[0].shape), flat)


def _statistics(activation, mesh, log_q):
    near = jnp.clip(log_q, -_FAR, _FAR)
    x, weights = quadrature.nodes(mesh.edges, near)
    weights = jnp.where(near <= mesh.log_q, weights, jnp.nan)
    parts = jnp.zeros((4, *x.shape))
    for share, function in quadrature.versions(activation):
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        parts += share * jnp.stack([value, value * value, slope * slope, value * slope * x])
    mean, square, slope_square, cross = parts
    m, d = jnp.sum(square * weights), jnp.sum(slope_square * weights)
    z = x * jnp.exp(-0.5 * near)
    # What lies at the ends tells of what lies beyond them.
    end = jnp.sum(jnp.where(jnp.abs(z) > quadrature.REACH - 1, square * weights, 0.0))
    m = jnp.where(end > 1e-12 * m, jnp.nan, m)
    elasticity = jnp.sum(cross * weights) / m
    slope_elasticity = jnp.sum(slope_square * weights * (z * z - 1)) / (2 * d)
    beyond = log_q - near
    return Statistics(
        jnp.log(m) + elasticity * beyond,
        jnp.log(d) + slope_elasticity * beyond,
        jnp.sum(mean * weights) / jnp.sqrt(m),
        elasticity,
        slope_elasticity,
    )


def _pair(activation, mesh, log_q, gap):
    """Rotated to sum and difference: `u = a + b`, `v = a - b` with independent `a` and `b`."""
    near = jnp.clip(log_q, -_FAR, _FAR)
    safe = jnp.maximum(gap, _LINEAR)
    log_a = near + jnp.log1p(-jnp.minimum(safe / 2, 1 - 1e-16))
    log_b = near + jnp.log(safe / 2)
    edges, kinks = np.asarray(mesh.edges), np.asarray(mesh.kinks)
    crowded = len(edges) > _CROWD
    if crowded:
        edges = edges[np.abs(edges) < _BOUND]
    # Seen through the difference, a kink is as wide as the difference.
    around = kinks[:, None] + jnp.exp(0.5 * log_b) * np.asarray(_AROUND)[None]
    outer = quadrature.nodes(jnp.concatenate([edges, around.ravel()]), log_a)

    versions = quadrature.versions(activation)

    def function(x):
        return sum(share * version(x) for share, version in versions)

    def inner(a):
        b, weights = quadrature.nodes(jnp.concatenate([edges - a, a - edges]), log_b, reach=10.0)
        parts = [jax.jvp(function, (a + sign * b,), (jnp.ones_like(b),)) for sign in (1, -1)]
        (u, du), (v, dv) = parts
        return jnp.sum(weights * (u - v) ** 2) / 2, jnp.sum(weights * du * dv)

    square, slopes = jax.lax.map(inner, outer.x, batch_size=64)
    square, slopes = (jnp.sum(outer.weights * part) for part in (square, slopes))
    x, weights = quadrature.nodes(edges, near)
    m = sum(share * jnp.sum(weights * version(x) ** 2) for share, version in versions)
    # Draws of their own keep two equal examples apart.
    apart = (m - jnp.sum(weights * function(x) ** 2)) / m if len(versions) > 1 else 0.0
    known = (near < 2 * np.log(_BOUND / quadrature.REACH)) | (not crowded)
    gap = jnp.where(known, apart + square / m * (gap / safe), jnp.nan)
    return gap, jnp.where(known, slopes, jnp.nan)
