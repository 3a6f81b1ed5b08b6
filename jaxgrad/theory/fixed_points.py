"""Where the length of a signal stays as it is, how stable that is, and over how many layers.

The length map `q -> w_variance M(q) + b_variance` may have several fixed points. They are found by
sign on a table over all variances from 1e-12 to 1e12, including pairs that nearly or just touch,
and finished by a Newton step. Every iteration is bounded.
"""

from __future__ import annotations

import functools
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import activations
from jaxgrad.theory import moments
from jaxgrad.theory._float64 import in_float64
from jaxgrad.theory.maps import Phi, next_log_q, variances
from jaxgrad.theory.tables import GRID, interpolate, table

SLOTS = 8
"""At most so many fixed points are returned."""

_TOUCH = 1e-10
"""A map that comes this near to the identity, relative to `q`, is taken to touch it."""


class Stability(IntEnum):
    """What a small change of length does at a fixed point."""

    STABLE = 0
    """It decays."""
    UNSTABLE = 1
    """It grows."""
    HALF_STABLE = 2
    """It decays on one side and grows on the other."""
    NEUTRAL = 3
    """It stays: every length is a fixed point."""
    NONE = -1
    """There is no such fixed point: the entry is a filler."""


class FixedPoints(NamedTuple):
    """Fixed points of the length map in increasing order, `[8]` each, filled up with NaN.

    Attributes:
      q: variance of the pre-activations; 0 where a vanishing signal is a fixed point.
      chi_par: slope of the map there.
      chi_perp: growth of a squared gradient there.
      stability: values of `Stability`, int8.
    """

    q: jax.Array
    chi_par: jax.Array
    chi_perp: jax.Array
    stability: jax.Array


class Limit(NamedTuple):
    """Where the length goes; every field has the shape of the variances.

    Attributes:
      q: the limit, 0 where the signal vanishes, infinite where it grows without bound; beyond 1e-12
        and 1e12 no difference is made.
      chi_par, chi_perp: there, or in the limit towards 0 or infinity.
    """

    q: jax.Array
    chi_par: jax.Array
    chi_perp: jax.Array

    @property
    def xi_q(self) -> Any:
        """Layers over which a change of length decays by e: `-1 / ln chi_par`."""
        return _scale(self.chi_par)

    @property
    def xi_gradient(self) -> Any:
        """Layers over which a squared gradient changes by e: `1 / |ln chi_perp|`."""
        return abs(_scale(self.chi_perp))


class Correlation(NamedTuple):
    """Where the angle of two examples goes at a fixed point of the length.

    Attributes:
      gap: `1 - c` in the limit: 0 in the ordered phase, positive in the chaotic one.
      chi: slope of the c-map there.
    """

    gap: jax.Array
    chi: jax.Array

    @property
    def xi_c(self) -> Any:
        """Layers over which the angle approaches its limit by e: `-1 / ln chi`.

        Schoenholz et al. (2017) find networks trainable down to a depth of about six times this.
        """
        return _scale(self.chi)


def _scale(chi):
    xp = np if isinstance(chi, np.ndarray) else jnp
    with np.errstate(divide="ignore", invalid="ignore"):
        return -1 / xp.log(chi)


def fixed_points(activation: Phi, w_variance: Any, b_variance: Any = 0.0) -> FixedPoints:
    """All fixed points of the length, stable or not.

    Args:
      activation: see `jaxgrad.activations.get`.
      w_variance, b_variance: numbers of at least 0, may be traced; `jax.vmap` for several.

    Returns:
      `FixedPoints`. Where all lengths are fixed points, as of ReLU with weight variance 2 and no
      bias, there is one entry, of length 0 and neutral.

    Raises:
      ValueError, TypeError: if a variance is negative, and as `second_moment`.

    >>> found = fixed_points("tanh", 1.3, 0.05)
    >>> round(float(found.q[0]), 6), round(float(found.chi_perp[0]), 6)
    (0.315316, 0.880164)
    """
    w_variance, b_variance = variances(w_variance, b_variance)
    return _fixed_points(activations.get(activation), w_variance, b_variance)


def limit(activation: Phi, w_variance: Any, b_variance: Any = 0.0, q: Any = 1.0) -> Limit:
    """The fixed point that the length approaches from `q`.

    For a length map that increases; one that decreases has a single fixed point, which is returned
    even if the length circles around it (`chi_par` is then below -1).

    Args:
      activation, w_variance, b_variance: as of `fixed_points`, arrays that broadcast.
      q: variance of the first pre-activations, above 0.

    Returns:
      `Limit`, from tables that are right to about 1e-11.

    Raises:
      ValueError, TypeError: as `fixed_points`.

    >>> round(float(limit("relu", 1.0, 0.5).q), 9)
    1.0
    """
    w_variance, b_variance = variances(w_variance, b_variance)
    return _limit(activations.get(activation), w_variance, b_variance, q)


def correlation(
    activation: Phi, w_variance: Any, b_variance: Any = 0.0, q: Any = 1.0
) -> Correlation:
    """The angle between two examples that deep layers tend to, and how fast.

    Args:
      activation, w_variance, b_variance, q: as of `limit`, arrays that broadcast.

    Returns:
      `Correlation`; NaN where the length has no positive finite limit.

    Raises:
      ValueError, TypeError: as `fixed_points`.

    >>> round(float(correlation("tanh", 1.3, 0.05).xi_c), 3)
    7.834
    """
    w_variance, b_variance = variances(w_variance, b_variance)
    return _correlation(activations.get(activation), w_variance, b_variance, q)


def excess(square: Any, log_q: Any, log_w: Any, log_b: Any) -> jax.Array:
    """Log of what the map makes of a variance, relative to it; `square` is `log M`."""
    return jnp.logaddexp(log_w + square, log_b) - log_q


def _first(true):
    """Index of the first that is true; in 32 bits, which every program has."""
    return jax.lax.argmax(true, 0, jnp.int32)


def _logs(*values):
    # The logarithm of zero has no derivative; the fixed point of zero variance needs none.
    values = [jnp.asarray(value, jnp.float64) for value in values]
    return [jnp.where(v > 0, jnp.log(jnp.where(v > 0, v, 1.0)), -jnp.inf) for v in values]


def _solve(rows, low, high, log_w, log_b):
    """Bisect on the table; `low` and `high` bracket a change of sign."""
    sign = jnp.sign(excess(interpolate(rows, low)[0], low, log_w, log_b))

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        left = jnp.sign(excess(interpolate(rows, middle)[0], middle, log_w, log_b)) == sign
        return jnp.where(left, middle, low), jnp.where(left, high, middle)

    low, high = jax.lax.fori_loop(0, 34, halve, (low, high))
    return (low + high) / 2


def _exact(phi):
    def averages(at):
        found = moments.statistics(phi, at)
        return found.log_square, found.elasticity, found.log_slope

    return averages


def _tabulated(phi):
    rows = table(phi)

    def averages(at):
        return *interpolate(rows.square, at), interpolate(rows.slope, at)[0]

    return averages


def _polish(averages, at, log_w, b_variance):
    """One Newton step, through which derivatives pass, and the slopes there."""
    at = jax.lax.stop_gradient(at)
    square, elasticity, _ = averages(at)
    after = next_log_q(square, log_w, b_variance)
    slope = jax.lax.stop_gradient(jnp.exp(log_w + square - after) * elasticity - 1)
    step = (at - after) / jnp.where(jnp.abs(slope) > 1e-6, slope, jnp.inf)
    at = at + jnp.where(jnp.isfinite(step), jnp.clip(step, -1e-3, 1e-3), 0.0)
    square, elasticity, log_slope = averages(at)
    return at, elasticity * jnp.exp(log_w + square - at), jnp.exp(log_w + log_slope)


def _at_end(phi, rows_index, log_w):
    """Slopes of the map towards zero or infinity, if the length is lost there."""
    rows = table(phi)
    square, slope = rows.square[:, rows_index], rows.slope[:, rows_index]
    return (
        square[1] * jnp.exp(log_w + square[0] - GRID[rows_index]),
        jnp.exp(log_w + slope[0]),
    )


@functools.lru_cache(maxsize=64)
def known(phi) -> tuple[int, int]:
    """First and last index of the table where the averages are known."""
    rows = table(phi)
    finite = np.all(np.isfinite(np.concatenate([rows.square, rows.slope])), axis=0).tolist()
    if not any(finite):
        raise ValueError(
            f"activation {phi.name!r} must have a finite second moment that is not 0, but it has "
            "none at any variance; rescale or bound it"
        )
    first = finite.index(True)
    return first, [*finite, False].index(False, first) - 1


@in_float64
@functools.partial(jax.jit, static_argnums=0)
def _fixed_points(phi, w_variance, b_variance):
    log_w, log_b = _logs(w_variance, b_variance)
    rows = table(phi).square
    first, last = known(phi)
    grid = jnp.asarray(GRID[first : last + 1])
    value = excess(jnp.asarray(rows[0, first : last + 1]), grid, log_w, log_b)

    # Where the excess turns between two points it may touch or cross zero unseen.
    def turning(at):
        square, elasticity = interpolate(rows, at)
        share = jnp.exp(log_w + square - jnp.logaddexp(log_w + square, log_b))
        return share * elasticity - 1

    slope = turning(grid)
    turns = (slope[:-1] * slope[1:] < 0) & (value[:-1] * value[1:] > 0)
    at = jnp.nonzero(turns, size=SLOTS, fill_value=-1)[0]

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        left = jnp.sign(turning(middle)) == jnp.sign(turning(low))
        return jnp.where(left, middle, low), jnp.where(left, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (grid[at], grid[at + 1]))
    extra = jnp.where(at >= 0, (low + high) / 2, grid[0])
    order = jnp.argsort(jnp.concatenate([grid, extra]))
    grid = jnp.concatenate([grid, extra])[order]
    exact = excess(interpolate(rows, extra)[0], extra, log_w, log_b)
    value = jnp.concatenate([value, exact])[order]
    value = jnp.where(jnp.abs(value) < _TOUCH, 0.0, value)

    neutral = jnp.all(value == 0)
    crossing = value[:-1] * value[1:] < 0
    touching = jnp.concatenate([jnp.zeros(1, bool), (value[1:-1] == 0) & (value[:-2] != 0)])
    found = jnp.nonzero((crossing | touching) & ~neutral, size=SLOTS - 1, fill_value=-1)[0]
    touches = touching[found]
    low, high = grid[found], grid[jnp.minimum(found + 1, len(grid) - 1)]
    root = jnp.where(touches, low, _solve(rows, low, high, log_w, log_b))
    root, chi_par, chi_perp = _polish(_exact(phi), root, log_w, b_variance)

    before = jnp.sign(value[jnp.where(touches, found - 1, found)])
    following = value[jnp.minimum(found[:, None] + 1 + jnp.arange(3)[None], len(grid) - 1)]
    after = jnp.sign(jax.vmap(lambda row: row[_first(row != 0)])(following))
    by_slope = jnp.where(jnp.abs(chi_par) < 1, Stability.STABLE, Stability.UNSTABLE)
    by_sign = jnp.where(before > after, Stability.STABLE, Stability.UNSTABLE)
    by_sign = jnp.where(before == after, Stability.HALF_STABLE, by_sign)
    stability = jnp.where(jnp.abs(jnp.abs(chi_par) - 1) < 1e-6, by_sign, by_slope)
    there = found >= 0

    # A signal of length zero: kept if there is no bias and the activation passes through zero.
    end_par, end_perp = _at_end(phi, first, log_w)
    through = (log_b == -jnp.inf) & (rows[1, first] > 1 - 1e-6) & (log_w > -jnp.inf)
    through = through | ((log_b == -jnp.inf) & (log_w == -jnp.inf))
    above = value[_first(value != 0)]
    end = jnp.where(above < 0, Stability.STABLE, Stability.UNSTABLE)
    end = jnp.where(neutral, Stability.NEUTRAL, end)

    def entries(end_value, values):
        filled = jnp.where(there, values, jnp.nan)
        with_zero = jnp.concatenate([end_value[None], filled])
        without = jnp.concatenate([filled, jnp.full(1, jnp.nan)])
        return jnp.where(through, with_zero, without)

    stability = entries(end.astype(jnp.float64), stability.astype(jnp.float64))
    return FixedPoints(
        entries(jnp.zeros(()), jnp.exp(root)),
        entries(end_par, chi_par),
        entries(end_perp, chi_perp),
        jnp.where(jnp.isnan(stability), Stability.NONE, stability).astype(jnp.int8),
    )


@in_float64
@functools.partial(jax.jit, static_argnums=0)
def _limit(phi, w_variance, b_variance, q):
    rows = table(phi).square
    first, last = known(phi)
    grid = GRID[first : last + 1]

    def one(w_variance, b_variance, q):
        log_w, log_b, start = _logs(w_variance, b_variance, q)
        start = jnp.clip(start, grid[0], grid[-1])
        value = excess(jnp.asarray(rows[0, first : last + 1]), grid, log_w, log_b)
        here = excess(interpolate(rows, start)[0], start, log_w, log_b)
        still = jnp.abs(here) < _TOUCH
        up = here > 0
        # The first point in the direction of motion where the motion ends.
        rests = jnp.where(
            up, (grid > start) & (value <= _TOUCH), (grid < start) & (value >= -_TOUCH)
        )
        index = jnp.where(up, _first(rests), len(grid) - 1 - _first(rests[::-1]))
        near = jnp.clip(jnp.where(up, index - 1, index + 1), 0, len(grid) - 1)
        inner = jnp.asarray(grid)[near]
        inner = jnp.where(up, jnp.maximum(inner, start), jnp.minimum(inner, start))
        outer = jnp.asarray(grid)[index]
        root = jnp.where(still, start, _solve(rows, inner, outer, log_w, log_b))
        ends = jnp.any(rests) | still
        root, chi_par, chi_perp = _polish(
            _tabulated(phi), jnp.where(ends, root, 0.0), log_w, b_variance
        )
        low, high = (_at_end(phi, at, log_w) for at in (first, last))
        lost = [jnp.where(up, *pair) for pair in zip(high, low, strict=True)]
        return Limit(
            jnp.where(ends, jnp.exp(root), jnp.where(up, jnp.inf, 0.0)),
            jnp.where(ends, chi_par, lost[0]),
            jnp.where(ends, chi_perp, lost[1]),
        )

    arrays = jnp.broadcast_arrays(
        *(jnp.asarray(v, jnp.float64) for v in (w_variance, b_variance, q))
    )
    if arrays[0].ndim == 0:
        return one(*arrays)
    flat = jax.lax.map(lambda args: one(*args), tuple(a.ravel() for a in arrays), batch_size=256)
    return jax.tree.map(lambda leaf: leaf.reshape(arrays[0].shape), flat)


@in_float64
@functools.partial(jax.jit, static_argnums=0)
def _correlation(phi, w_variance, b_variance, q):
    w_variance, b_variance, q = jnp.broadcast_arrays(
        *(jnp.asarray(v, jnp.float64) for v in (w_variance, b_variance, q))
    )
    where = _limit(phi, w_variance, b_variance, q)
    log_q = jnp.log(jnp.where((where.q > 0) & jnp.isfinite(where.q), where.q, jnp.nan))
    square = w_variance * jnp.exp(moments.statistics(phi, log_q).log_square)
    share = square / (square + b_variance)

    def step(log_gap):
        gap, slopes = moments.pair(phi, log_q, jnp.exp(log_gap))
        return gap * share, slopes * w_variance

    # A c-map is convex from c = 0 on, so that it has one stable fixed point there.
    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        grows = step(middle)[0] > jnp.exp(middle)
        return jnp.where(grows, middle, low), jnp.where(grows, high, middle)

    start = jnp.full_like(log_q, jnp.log(1e-12)), jnp.zeros_like(log_q)
    low, high = jax.lax.fori_loop(0, 40, halve, start)
    log_gap = jax.lax.stop_gradient((low + high) / 2)
    gap, chi = step(log_gap)
    newton = jnp.exp(log_gap) + (gap - jnp.exp(log_gap)) / (1 - jax.lax.stop_gradient(chi))
    ordered = where.chi_perp <= 1
    safe = jnp.where(ordered, 1.0, newton)
    chaotic = step(jnp.log(safe))[1]
    return Correlation(
        jnp.where(ordered, 0.0 * where.q, newton), jnp.where(ordered, where.chi_perp, chaotic)
    )
