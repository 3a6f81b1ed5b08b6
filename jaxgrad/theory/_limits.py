"""The length and correlation that deep layers approach, and how fast."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxgrad import _validate, activations
from jaxgrad._numerics import FloatArray, bracketed_secant
from jaxgrad.theory import _moments
from jaxgrad.theory._fixed_points import TOUCH, end_slopes, excess, first_index, logs, polish, solve
from jaxgrad.theory._maps import ActivationLike, prediction
from jaxgrad.theory._quadrature import interpolate, table


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


@prediction(_validate.numbers)
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
    one = functools.partial(_limit_of_one, table(activations.get(activation)))
    return _moments.map_elements(one, w_variance, b_variance, q, batch_size=256)


@prediction(_validate.numbers)
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
    phi = activations.get(activation)
    w_variance, b_variance, q = jnp.broadcast_arrays(w_variance, b_variance, q)
    length = limit(phi, w_variance, b_variance, q)
    log_q = jnp.log(jnp.where((length.q > 0) & jnp.isfinite(length.q), length.q, jnp.nan))
    square = w_variance * jnp.exp(_moments.statistics(phi, log_q).log_square)
    # Equal biases bring examples closer: of the next variance, only the share w M differs.
    share = square / (square + b_variance)

    def step(log_gap, log_q=log_q, share=share):
        gap, slopes, _ = _moments.pair(phi, log_q, jnp.exp(log_gap))
        return gap * share, slopes * w_variance

    # Where chi_perp <= 1, examples become parallel: the gap is 0, and its map has slope chi_perp.
    # Else the c-map, convex from c = 0 on, has one stable fixed point there: below it the gap
    # grows, above it the gap shrinks.
    ordered, low = length.chi_perp <= 1, jnp.full_like(log_q, jnp.log(1e-12))
    high = jnp.where(ordered | jnp.isnan(log_q), low, 0.0)
    fixed = jax.lax.stop_gradient((log_q, share))
    log_gap = bracketed_secant(
        lambda x: jnp.log(step(x, *fixed)[0]) - x, low, high, tolerance=1e-11
    )
    gap, chi = step(log_gap)
    # A Newton step, through which derivatives pass: d(gap map)/d(gap) is w E phi'(u) phi'(v).
    newton = jnp.exp(log_gap) + (gap - jnp.exp(log_gap)) / (1 - jax.lax.stop_gradient(chi))
    chi = jnp.where(ordered, length.chi_perp, step(jnp.log(jnp.where(ordered, 1.0, newton)))[1])
    return Correlation(jnp.where(ordered, 0.0 * length.q, newton), chi)


def _limit_of_one(known, w_variance, b_variance, q):
    grid = known.log_q
    log_w, log_b, start = logs(w_variance, b_variance, q)
    start = jnp.clip(start, grid[0], grid[-1])
    value = excess(known.rows[0, 0], grid, log_w, log_b)
    here = excess(interpolate(known, start)[0], start, log_w, log_b)
    still, up = jnp.abs(here) < TOUCH, here > 0
    # The length moves in one direction, up to the first point where the excess has no such sign.
    stops = jnp.where(up, (grid > start) & (value <= TOUCH), (grid < start) & (value >= -TOUCH))
    index = jnp.where(up, first_index(stops), len(grid) - 1 - first_index(stops[::-1]))
    near = jnp.clip(jnp.where(up, index - 1, index + 1), 0, len(grid) - 1)
    inner, outer = jnp.asarray(grid)[near], jnp.asarray(grid)[index]
    inner = jnp.where(up, jnp.maximum(inner, start), jnp.minimum(inner, start))
    root = jnp.where(still, start, solve(known, inner, outer, log_w, log_b))
    converges = jnp.any(stops) | still
    averages, root = functools.partial(interpolate, known), jnp.where(converges, root, 0.0)
    root, chi_par, chi_perp = polish(averages, root, log_w, b_variance)
    low, high = (end_slopes(known, end, log_w) for end in (0, -1))
    ends = Limit(*(jnp.where(up, *pair) for pair in ((jnp.inf, 0.0), *zip(high, low, strict=True))))
    inside = Limit(jnp.exp(root), chi_par, chi_perp)
    return jax.tree.map(lambda a, b: jnp.where(converges, a, b), inside, ends)
