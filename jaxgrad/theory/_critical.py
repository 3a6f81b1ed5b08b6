"""Variances of weights and biases at which a gradient neither vanishes nor explodes.

The critical line of an activation is parametrized by the variance `q` of its pre-activations:
`w_variance = 1 / D(q)`, `b_variance = q - M(q) / D(q)`. A point with a negative bias variance does
not exist, and a point where the length is unstable (`chi_par > 1`) is of no use.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgrad import _validate, activations
from jaxgrad._numerics import FloatArray, bisect, golden_section
from jaxgrad.activations import Activation
from jaxgrad.theory._fixed_points import first_index
from jaxgrad.theory._maps import ActivationLike, prediction
from jaxgrad.theory._moments import statistics
from jaxgrad.theory._quadrature import interpolate, table, versions

# Tolerances, relative to q: of a stable length, of the limit of small signals, and of the table.
_STABLE, _NEAR_ZERO, _ROUNDING = 1 + 1e-9, 1e-5, 1e-7


class Critical(NamedTuple):
    """A point of the critical line, where `chi_perp` is 1; NaN where there is no such point.

    The variance `q` of the pre-activations is 0 for a limit of small signals, as for tanh's (1, 0).
    """

    w_variance: FloatArray
    b_variance: FloatArray
    q: FloatArray
    chi_par: FloatArray


@prediction(_validate.numbers)
def critical_line(activation: ActivationLike, q: ArrayLike) -> Critical:
    """Compute the point of the critical line whose pre-activations have variance `q`.

    The variances `q`, of any shape, are above 0 and may be traced; for `activation` see
    `jaxgrad.activations.get`. The result is NaN where the bias variance would be negative.
    """
    point = _point(activations.get(activation), q)
    # A homogeneous activation has M = q D; what remains of the difference is rounding.
    b_variance = jnp.where(jnp.abs(point.b_variance) < 1e-13 * q, 0.0, point.b_variance)
    return _nan_unless(b_variance >= 0, point._replace(b_variance=b_variance))


def critical(activation: ActivationLike, b_variance: ArrayLike | None = None) -> Critical:
    """Find the critical point for a bias variance, or the one with the smallest bias variance.

    Args:
      activation: see `jaxgrad.activations.get`.
      b_variance: a number of at least 0, may be traced. `None` selects the smallest one for which
        there is a critical point with a stable length, `chi_par <= 1`: 0 for tanh and ReLU; for
        GELU and SiLU where both slopes are 1 (Roberts, Yaida, Hanin 2022, sec. 5.3.4).

    If there are several points, `q` is closest to 1. The result is NaN if no length is stable.

    >>> round(float(critical("tanh", 0.05).w_variance), 6)
    1.760955
    """
    phi = activations.get(activation)
    if b_variance is not None:
        return _critical(phi, b_variance)
    every, only_limit, _ = _small_signals(phi)
    if every or only_limit:
        return _critical(phi, 0.0)
    grid, relative, chi_par = _on_grid(phi)
    allowed = (chi_par <= _STABLE) & (relative > _ROUNDING)
    if not allowed.any():
        return Critical(*[np.asarray(np.nan)] * 4)
    index = int(np.argmin(np.where(allowed, relative * np.exp(grid), np.inf)))
    low, high = (grid[np.clip(index + i, 0, len(grid) - 1)] for i in (-1, 1))
    return _smallest_between(phi, low, high)


def _point(phi: Activation, q) -> Critical:
    averages = statistics(phi, jnp.log(q))
    ratio = jnp.exp(averages.log_square - averages.log_slope)
    # chi_par = w M' = (d log M / d log q) M / (q D).
    return Critical(jnp.exp(-averages.log_slope), q - ratio, q, averages.elasticity * ratio / q)


def _nan_unless(exists, point: Critical) -> Critical:
    return Critical(*(jnp.where(exists, number, jnp.nan) for number in point))


def _from_table(phi: Activation, log_q):
    """`b_variance / q` and `chi_par` on the critical line."""
    square, elasticity, slope = interpolate(table(phi), log_q)
    # b = q - M / D and w = 1 / D, so b / q = 1 - M / (q D), and chi_par = w M' = e M / (q D).
    return -jnp.expm1(square - slope - log_q), elasticity * jnp.exp(square - slope - log_q)


def _on_grid(phi: Activation):
    """The grid of the table, and `b_variance / q` and `chi_par` on it."""
    grid = table(phi).log_q
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        relative, chi_par = map(np.asarray, _from_table(phi, jnp.asarray(grid)))
    return grid, np.where(np.abs(relative) < 1e-11, 0.0, relative), chi_par


@functools.lru_cache(maxsize=64)
def _small_signals(phi: Activation) -> tuple[bool, bool, float]:
    """Whether every `q` is critical without biases, or the limit `q -> 0`; and `1 / D` there."""
    grid, relative, _ = _on_grid(phi)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        # Half of a small signal is on either side of zero, where the slopes may differ.
        sides = jnp.asarray([-1e-150, 1e-150])
        slopes = [(p, jax.jvp(f, (sides,), (jnp.ones(2),))[1]) for p, f in versions(phi)]
        slope = sum(share * float(jnp.mean(slope**2)) for share, slope in slopes)
    w_variance = 1 / slope if slope > 0 else math.inf
    every = bool(np.all(np.abs(relative) < 1e-10))
    # Without biases a small signal must shrink, or it would leave the limit.
    square, elasticity = table(phi).rows[:2, 0]
    change = square + math.log(w_variance) - grid
    shrinks = change[np.argmax(np.abs(change) > 1e-9)] < 0
    linear = abs(relative[0]) < _NEAR_ZERO and abs(elasticity[0] - 1) < _NEAR_ZERO
    return every, bool(linear and shrinks), w_variance


@prediction(_validate.scalar)
def _critical(activation: Activation, b_variance: ArrayLike) -> Critical:
    log_q, exists = _root(activation, b_variance)
    # A Newton step with exact averages, through which derivatives pass.
    one = jnp.ones_like(log_q)
    pair = jax.jvp(lambda x: _point(activation, jnp.exp(x)).b_variance, (log_q,), (one,))
    value, slope = jax.lax.stop_gradient(pair)
    step = (b_variance - value) / jnp.where(slope == 0, jnp.inf, slope)
    log_q = log_q + jnp.where(jnp.abs(step) < 1e-3, step, 0.0)
    point = _point(activation, jnp.exp(log_q))._replace(b_variance=b_variance)
    point = _nan_unless(exists, point)
    every, only_limit, w_variance = _small_signals(activation)
    if every or only_limit:
        # Without biases: any q is as good as 1, or the point is the limit of small signals.
        unbiased = Critical(*map(jnp.asarray, (w_variance, 0.0, 1.0 if every else 0.0, 1.0)))
        point = jax.tree.map(lambda a, b: jnp.where(b_variance == 0, b, a), point, unbiased)
    return point


def _root(phi: Activation, b_variance):
    """Log variance of the critical point closest to `q = 1`, and whether there is one."""
    grid, relative, chi_par = _on_grid(phi)

    def difference(log_q):
        return _from_table(phi, log_q)[0] - b_variance * jnp.exp(-log_q)

    # b(q) / q of the critical line less that of the required variance changes its sign at a root.
    value = relative - b_variance * np.exp(-grid)
    stable = np.minimum(chi_par[:-1], chi_par[1:]) <= 1.05
    clear = jnp.maximum(jnp.abs(value[:-1]), jnp.abs(value[1:])) > _ROUNDING
    crossing = (value[:-1] * value[1:] < 0) & clear & stable
    distance = jnp.where(crossing, jnp.abs((grid[:-1] + grid[1:]) / 2), jnp.inf)
    index = jnp.argsort(distance)[:4]
    low, high = (jnp.asarray(grid)[index + i] for i in (0, 1))
    roots = bisect(difference, low, high, steps=50, sign=jnp.sign(value[index]))
    roots = jax.lax.stop_gradient(roots)
    good = jnp.isfinite(distance[index]) & (_from_table(phi, roots)[1] <= 1 + 1e-5)
    return jnp.where(jnp.any(good), roots[first_index(good)], 0.0), jnp.any(good)


@prediction(_validate.scalar)
def _smallest_between(activation: Activation, low: ArrayLike, high: ArrayLike) -> Critical:
    def cost(log_q):
        relative, chi_par = _from_table(activation, log_q)
        excess = jnp.maximum(chi_par - 1, 0.0) + jnp.maximum(-relative, 0.0)
        return jnp.where(excess > 0, 1e9 + excess, relative * jnp.exp(log_q))

    return critical_line(activation, jnp.exp(golden_section(cost, low, high, steps=70)))
