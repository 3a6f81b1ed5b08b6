"""The length and the correlation that deep layers approach, and over how many layers."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgrad import activations
from jaxgrad._numerics import FloatArray, bisect, compiled_in_float64
from jaxgrad.theory import _moments
from jaxgrad.theory._fixed_points import TOUCH, end_slopes, excess, first_index, logs, polish, solve
from jaxgrad.theory._maps import ActivationLike, check_variances
from jaxgrad.theory._tables import GRID, interpolate, known_range, table


class Limit(NamedTuple):
    """The limit of the length and the slopes there; every field has the shape of the variances.

    `q` is 0 where the signal vanishes (below 1e-12) and infinite where it grows without bound
    (above 1e12). The slopes are then those in the limit.
    """

    q: FloatArray
    chi_par: FloatArray
    chi_perp: FloatArray

    @property
    def xi_q(self) -> Any:
        """Number of layers over which a change of length decays by e: `-1 / ln chi_par`."""
        return _depth_scale(self.chi_par)

    @property
    def xi_gradient(self) -> Any:
        """Number of layers over which a squared gradient changes by e: `1 / |ln chi_perp|`."""
        return abs(_depth_scale(self.chi_perp))


class Correlation(NamedTuple):
    """The limit of the correlation of two examples, at the limit of the length.

    `gap` is `1 - c`, 0 in the ordered and positive in the chaotic phase; `chi` is the c-map's
    slope.
    """

    gap: FloatArray
    chi: FloatArray

    @property
    def xi_c(self) -> Any:
        """Number of layers over which the correlation approaches its limit by e: `-1 / ln chi`.

        Schoenholz et al. (2017) find networks trainable up to a depth of about six times this.
        """
        return _depth_scale(self.chi)


def _depth_scale(chi):
    xp = np if isinstance(chi, np.ndarray) else jnp
    with np.errstate(divide="ignore", invalid="ignore"):
        return -1 / xp.log(chi)


def limit(
    activation: ActivationLike,
    w_variance: ArrayLike,
    b_variance: ArrayLike = 0.0,
    q: ArrayLike = 1.0,
) -> Limit:
    """Find the fixed point that the length approaches from `q`, with a relative error of 1e-11.

    `q` is the variance of the first pre-activations, above 0; the other arguments are as for
    `fixed_points`, and all broadcast. If the length map decreases, its single fixed point is
    returned even if the length oscillates around it (`chi_par < -1`).

    >>> round(float(limit("relu", 1.0, 0.5).q), 9)
    1.0
    """
    return _limit(activations.get(activation), *check_variances(w_variance, b_variance), q)


def correlation(
    activation: ActivationLike,
    w_variance: ArrayLike,
    b_variance: ArrayLike = 0.0,
    q: ArrayLike = 1.0,
) -> Correlation:
    """Find the correlation of two examples that deep layers approach, and how fast.

    Arguments are as for `limit`. The result is NaN where the length has no positive finite limit.

    >>> round(float(correlation("tanh", 1.3, 0.05).xi_c), 3)
    7.834
    """
    return _correlation(activations.get(activation), *check_variances(w_variance, b_variance), q)


@compiled_in_float64(0)
def _limit(phi, w_variance, b_variance, q):
    def one(*scalars):
        return _limit_of_one(phi, *scalars)

    return _moments.map_elements(one, w_variance, b_variance, q, batch_size=256)


def _limit_of_one(phi, w_variance, b_variance, q):
    rows = table(phi)
    first, last = known_range(phi)
    grid = GRID[first : last + 1]
    log_w, log_b, start = logs(w_variance, b_variance, q)
    start = jnp.clip(start, grid[0], grid[-1])
    value = excess(jnp.asarray(rows.square[0, first : last + 1]), grid, log_w, log_b)
    here = excess(interpolate(rows.square, start)[0], start, log_w, log_b)
    still, up = jnp.abs(here) < TOUCH, here > 0
    # The length moves in one direction, up to the first point where the excess has no such sign.
    stops = jnp.where(up, (grid > start) & (value <= TOUCH), (grid < start) & (value >= -TOUCH))
    index = jnp.where(up, first_index(stops), len(grid) - 1 - first_index(stops[::-1]))
    near = jnp.clip(jnp.where(up, index - 1, index + 1), 0, len(grid) - 1)
    inner, outer = jnp.asarray(grid)[near], jnp.asarray(grid)[index]
    inner = jnp.where(up, jnp.maximum(inner, start), jnp.minimum(inner, start))
    root = jnp.where(still, start, solve(rows.square, inner, outer, log_w, log_b))
    converges = jnp.any(stops) | still

    def averages(log_q):
        return *interpolate(rows.square, log_q), interpolate(rows.slope, log_q)[0]

    root, chi_par, chi_perp = polish(averages, jnp.where(converges, root, 0.0), log_w, b_variance)
    low, high = (end_slopes(phi, end, log_w) for end in (first, last))
    ends = Limit(*(jnp.where(up, *pair) for pair in ((jnp.inf, 0.0), *zip(high, low, strict=True))))
    inside = Limit(jnp.exp(root), chi_par, chi_perp)
    return jax.tree.map(lambda a, b: jnp.where(converges, a, b), inside, ends)


@compiled_in_float64(0)
def _correlation(phi, w_variance, b_variance, q):
    w_variance, b_variance, q = jnp.broadcast_arrays(w_variance, b_variance, q)
    # The c-map is that of two examples whose lengths have reached their limit.
    length = _limit(phi, w_variance, b_variance, q)
    log_q = jnp.log(jnp.where((length.q > 0) & jnp.isfinite(length.q), length.q, jnp.nan))
    square = w_variance * jnp.exp(_moments.statistics(phi, log_q).log_square)
    # Equal biases bring examples closer: of the next variance, only the share w M differs.
    share = square / (square + b_variance)

    def step(log_gap):
        gap, slopes = _moments.pair(phi, log_q, jnp.exp(log_gap))
        return gap * share, slopes * w_variance

    # From c = 0 on the c-map is convex, so it has one stable fixed point there: below it the gap
    # grows, above it the gap shrinks.
    low, high = jnp.full_like(log_q, jnp.log(1e-12)), jnp.zeros_like(log_q)
    root = bisect(lambda x: step(x)[0] - jnp.exp(x), low, high, steps=40, sign=1.0)
    log_gap = jax.lax.stop_gradient(root)
    gap, chi = step(log_gap)
    # A Newton step, through which derivatives pass: d(gap map)/d(gap) is w E phi'(u) phi'(v).
    newton = jnp.exp(log_gap) + (gap - jnp.exp(log_gap)) / (1 - jax.lax.stop_gradient(chi))
    # Where chi_perp <= 1, examples become parallel: the gap is 0, and its map has slope chi_perp.
    ordered = length.chi_perp <= 1
    chi = jnp.where(ordered, length.chi_perp, step(jnp.log(jnp.where(ordered, 1.0, newton)))[1])
    return Correlation(jnp.where(ordered, 0.0 * length.q, newton), chi)
