"""All lengths that the map of a layer keeps, and how stable they are.

The length map `q -> w_variance M(q) + b_variance` may have several fixed points. They are located
by changes of sign on a table over all variances from 1e-12 to 1e12, including pairs that nearly or
just touch, and refined by a Newton step.
"""

from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int8

from jaxgrad import _validate, activations
from jaxgrad._numerics import bisect
from jaxgrad.theory import _moments
from jaxgrad.theory._maps import ActivationLike, next_log_q, prediction
from jaxgrad.theory._quadrature import Table, interpolate, table

SLOTS = 8  # The largest number of fixed points that is returned.
# A map touches the identity if it comes this close, relative to q. Where |chi_par| is marginally
# close to 1, stability follows from the signs on both sides.
TOUCH, _MARGINAL = 1e-10, 1e-6


class Stability(IntEnum):
    """How a small change of length develops at a fixed point.

    It decays (`STABLE`), grows (`UNSTABLE`), decays on one side only (`HALF_STABLE`), or remains,
    where every length is a fixed point (`NEUTRAL`). `NONE` marks a filler.
    """

    STABLE = 0
    UNSTABLE = 1
    HALF_STABLE = 2
    NEUTRAL = 3
    NONE = -1


class FixedPoints(NamedTuple):
    """Fixed points of the length map in increasing order, eight entries filled up with NaN.

    `q` is 0 where a vanishing signal is a fixed point; `stability` holds values of `Stability`.
    """

    q: Float[Array | np.ndarray, "8"]
    chi_par: Float[Array | np.ndarray, "8"]
    chi_perp: Float[Array | np.ndarray, "8"]
    stability: Int8[Array | np.ndarray, "8"]


@prediction(_validate.scalar)
def fixed_points(
    activation: ActivationLike, w_variance: ArrayLike, b_variance: ArrayLike = 0.0
) -> FixedPoints:
    """Find all fixed points of the length, stable or not.

    The variances are numbers of at least 0, which may be traced; use `jax.vmap` for several. If all
    lengths are fixed points, as for ReLU with weight variance 2, the one entry is 0 and neutral.

    >>> points = fixed_points("tanh", 1.3, 0.05)
    >>> round(float(points.q[0]), 6), round(float(points.chi_perp[0]), 6)
    (0.315316, 0.880164)
    """
    phi = activations.get(activation)
    known = table(phi)
    log_w, log_b = logs(w_variance, b_variance)
    grid, value = _refined_grid(known, log_w, log_b)
    neutral = jnp.all(value == 0)
    # A root lies between two points of opposite sign, or where the map touches.
    crossing = value[:-1] * value[1:] < 0
    touching = jnp.concatenate([jnp.zeros(1, bool), (value[1:-1] == 0) & (value[:-2] != 0)])
    index = jnp.nonzero((crossing | touching) & ~neutral, size=SLOTS - 1, fill_value=-1)[0]
    touches = touching[index]
    low, high = grid[index], grid[jnp.minimum(index + 1, len(grid) - 1)]
    root = jnp.where(touches, low, solve(known, low, high, log_w, log_b))

    def averages(log_q):
        exact = _moments.statistics(phi, log_q)
        return exact.log_square, exact.elasticity, exact.log_slope

    root, chi_par, chi_perp = polish(averages, root, log_w, b_variance)
    stability = _stability(value, index, touches, chi_par)
    # A vanishing signal is a fixed point without biases if phi(0) = 0; else M ~ q^e with e < 1.
    end_par, end_perp = end_slopes(known, 0, log_w)
    linear = (known.rows[1, 0, 0] > 1 - 1e-6) & (log_w > -jnp.inf)
    zero_is_fixed = (log_b == -jnp.inf) & (linear | (log_w == -jnp.inf))
    end = jnp.where(value[first_index(value != 0)] < 0, Stability.STABLE, Stability.UNSTABLE)
    end = jnp.where(neutral, Stability.NEUTRAL, end)

    def entries(end_value, values):
        both = jnp.concatenate([end_value[None], jnp.where(index >= 0, values, jnp.nan)])
        return jnp.where(zero_is_fixed, both, jnp.append(both[1:], jnp.nan))

    stability = entries(end.astype(jnp.float64), stability.astype(jnp.float64))
    stability = jnp.where(jnp.isnan(stability), Stability.NONE, stability).astype(jnp.int8)
    ends, inside = (jnp.zeros(()), end_par, end_perp), (jnp.exp(root), chi_par, chi_perp)
    q, chi_par, chi_perp = map(entries, ends, inside)
    return FixedPoints(q, chi_par, chi_perp, stability)


def excess(log_square: ArrayLike, log_q: ArrayLike, log_w: ArrayLike, log_b: ArrayLike) -> Array:
    """Log of the next variance relative to this one, `log((w M + b) / q)`."""
    return jnp.logaddexp(log_w + log_square, log_b) - log_q


def first_index(condition: Array) -> Array:
    """Index of the first entry that is true, in 32 bits, which every program supports."""
    return jax.lax.argmax(condition, 0, jnp.int32)


def logs(*values: ArrayLike) -> list[Array]:
    """Logs in float64, -inf for 0, where the derivative is taken to be 0 instead of infinite."""
    arrays = (jnp.asarray(value, jnp.float64) for value in values)
    return [jnp.where(a > 0, jnp.log(jnp.where(a > 0, a, 1.0)), -jnp.inf) for a in arrays]


def solve(known: Table, low: Array, high: Array, log_w: Array, log_b: Array) -> Array:
    """Bisect on the table for the log variance at which the excess changes its sign."""
    return bisect(lambda x: excess(interpolate(known, x)[0], x, log_w, log_b), low, high, steps=34)


def polish(averages: Any, log_q: Array, log_w: Array, b_variance: Any) -> tuple[Array, ...]:
    """Take a Newton step to a fixed point, through which derivatives pass.

    `averages` maps a log variance to `log M`, `d log M / d log q` and `log D`. Returns the fixed
    point as a log variance, with `chi_par` and `chi_perp` there.
    """
    log_q = jax.lax.stop_gradient(log_q)
    log_square, elasticity, _ = averages(log_q)
    following = next_log_q(log_square, log_w, b_variance)
    # Newton for g(log q) - log q = 0. Where g' = 1 the maps touch, and there is no step to take.
    slope = jax.lax.stop_gradient(jnp.exp(log_w + log_square - following) * elasticity - 1)
    step = (log_q - following) / jnp.where(jnp.abs(slope) > 1e-6, slope, jnp.inf)
    log_q = log_q + jnp.where(jnp.isfinite(step), jnp.clip(step, -1e-3, 1e-3), 0.0)
    log_square, elasticity, log_slope = averages(log_q)
    return log_q, elasticity * jnp.exp(log_w + log_square - log_q), jnp.exp(log_w + log_slope)


def end_slopes(known: Table, end: int, log_w: Array) -> tuple[Array, Array]:
    """`chi_par` and `chi_perp` at the first (0) or the last (-1) entry of the table."""
    (square, slope), (elasticity, _), _ = known.rows[..., end]
    return elasticity * jnp.exp(log_w + square - known.log_q[end]), jnp.exp(log_w + slope)


def _refined_grid(known, log_w, log_b):
    """The grid with the turning points of the excess added, and the excess on it.

    If the excess touches or crosses zero twice between two points, it has a turning point there.
    """
    grid = jnp.asarray(known.log_q)
    value = excess(known.rows[0, 0], grid, log_w, log_b)

    def derivative(log_q):
        log_square, elasticity, _ = interpolate(known, log_q)
        share = jnp.exp(log_w + log_square - jnp.logaddexp(log_w + log_square, log_b))
        return share * elasticity - 1

    slope = derivative(grid)
    turns = (slope[:-1] * slope[1:] < 0) & (value[:-1] * value[1:] > 0)
    index = jnp.nonzero(turns, size=SLOTS, fill_value=-1)[0]
    extra = bisect(derivative, grid[index], grid[index + 1], steps=40)
    extra = jnp.where(index >= 0, extra, grid[0])  # Entries that are not used.
    exact = excess(interpolate(known, extra)[0], extra, log_w, log_b)
    grid, value = jnp.append(grid, extra), jnp.append(value, exact)
    order = jnp.argsort(grid)
    return grid[order], jnp.where(jnp.abs(value) < TOUCH, 0.0, value)[order]


def _stability(value, index, touches, chi_par):
    """Stability by the slope or, where this is 1, by the signs of the excess on both sides."""
    # A touching point is zero itself, and rounding may add further zeros, so look past them.
    before = jnp.sign(value[jnp.where(touches, index - 1, index)])
    following = value[jnp.minimum(index[:, None] + 1 + jnp.arange(3)[None], len(value) - 1)]
    after = jnp.sign(jax.vmap(lambda row: row[first_index(row != 0)])(following))
    by_slope = jnp.where(jnp.abs(chi_par) < 1, Stability.STABLE, Stability.UNSTABLE)
    by_sign = jnp.where(before > after, Stability.STABLE, Stability.UNSTABLE)
    by_sign = jnp.where(before == after, Stability.HALF_STABLE, by_sign)
    return jnp.where(jnp.abs(jnp.abs(chi_par) - 1) < _MARGINAL, by_sign, by_slope)
