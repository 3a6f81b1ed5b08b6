"""Classification of gradients as vanishing, stable or exploding, with a confidence.

The input is the log of the *squared* gradient at the first layer over that at the last, as
`jaxgrad.propagation` measures it, for several seeds. Averages are means of logs, which describe a
typical network; the log of the mean is larger at finite width. The growth per layer is the total
divided by the number of layers between, the estimate of least variance if each layer multiplies the
gradient independently.
"""

import functools
import math
from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int8

from jaxgrad import _validate


class Regime(IntEnum):
    """What happens to a gradient on its way to the first layer; UNDEFINED if it is NaN."""

    VANISHING = -1
    STABLE = 0
    EXPLODING = 1
    UNDEFINED = 2


class Storage(IntEnum):
    """Whether a floating-point type can represent a number; UNDEFINED if the number is NaN."""

    UNDERFLOW = -1
    HELD = 0
    OVERFLOW = 1
    UNDEFINED = 2


class Thresholds(NamedTuple):
    """Which gradients count as stable.

    Attributes:
      ratio: the largest factor of a norm in total, above 1. With 10 the squared gradient may change
        by 100, about five depth scales.
      z: the largest growth per layer in standard errors, at least 0.
    """

    ratio: float = 10.0
    z: float = 2.0


class Classification(NamedTuple):
    """Labels and the numbers behind them; every field has the input's shape without seeds.

    `regime` holds values of `Regime`, `log_ratio` the mean over seeds of the log squared ratio,
    `growth` that per layer (0 at depth 1), and `_se` their standard errors. `confidence` is the
    probability, by the normal distribution, that the true mean of the log ratio lies in the range
    of the regime: NaN where it is undefined, and below one half for a gradient that is called
    stable only because its change is not significant.
    """

    regime: Int8[Array, "..."]
    log_ratio: Float[Array, "..."]
    log_ratio_se: Float[Array, "..."]
    growth: Float[Array, "..."]
    growth_se: Float[Array, "..."]
    confidence: Float[Array, "..."]


def classify(
    log_ratio: ArrayLike, depths: ArrayLike, thresholds: Thresholds | None = None
) -> Classification:
    """Classify the gradients of networks of several depths.

    A gradient vanishes or explodes if its norm changes by more than `thresholds.ratio` in total
    *and* its growth per layer differs from zero by more than `thresholds.z` standard errors. A
    ratio of 0 (log -inf) vanishes, an infinite one explodes, and NaN is undefined.

    Args:
      log_ratio: natural log of the squared gradient at the first layer over that at the last,
        `[seeds, ..., depths]`, at least two seeds. The results have shape `[..., depths]`.
      depths: the depths of the networks, `[depths]`.
      thresholds: `None` for the defaults.

    >>> log_ratio = jnp.asarray([[0.0, -9.0], [0.1, -9.2], [-0.1, -9.1]])
    >>> classify(log_ratio, jnp.asarray([1, 10])).regime.tolist()
    [0, -1]
    """
    thresholds = _checked(thresholds)
    _validate.numbers("depths", depths, minimum=1.0)
    log_ratio, depths = _validate.real("log_ratio", log_ratio), jnp.asarray(depths)
    if log_ratio.ndim < 2 or len(log_ratio) < 2:
        rule = "have shape [seeds, ..., depths] with at least 2 seeds"
        raise ValueError(f"log_ratio must {rule}, got {log_ratio.shape}; measure more seeds")
    if depths.shape != log_ratio.shape[-1:]:
        rule = f"have shape {log_ratio.shape[-1:]} as the last axis of log_ratio"
        raise ValueError(f"depths must {rule}, got {depths.shape}; pass the depth of each entry")
    return _classify_seeds(log_ratio, depths, thresholds)


def classify_mean(
    log_ratio: ArrayLike,
    log_ratio_se: ArrayLike,
    depths: ArrayLike,
    thresholds: Thresholds | None = None,
) -> Classification:
    """Classify means of log ratios whose standard errors are known, as `classify` does.

    For a single network of random blocks, say, these follow from the blocks themselves.

    Args:
      log_ratio, log_ratio_se: of the squared gradient, and its standard error, `[...]` each.
      depths: of the networks, of the same shape or one that broadcasts to it.
      thresholds: `None` for the defaults.

    >>> classify_mean([-3.0, -30.0, -30.0], [1.0, 1.0, 20.0], 10).regime.tolist()
    [0, -1, 0]
    """
    thresholds = _checked(thresholds)
    _validate.numbers("depths", depths, minimum=1.0)
    mean = _validate.real("log_ratio", log_ratio)
    error = _validate.real("log_ratio_se", log_ratio_se)
    if mean.shape != error.shape:
        rule = f"have the shape {mean.shape} of log_ratio"
        raise ValueError(f"log_ratio_se must {rule}, got {error.shape}; pass one for each mean")
    return _classify(mean, error, jnp.asarray(depths), thresholds)


def _checked(thresholds: Thresholds | None) -> Thresholds:
    thresholds = Thresholds() if thresholds is None else thresholds
    _validate.instance("thresholds", thresholds, Thresholds, "jaxgrad.regimes.Thresholds()")
    _validate.scalar("thresholds.ratio", thresholds.ratio, minimum=1.0, above=True)
    _validate.scalar("thresholds.z", thresholds.z, minimum=0.0)
    return thresholds


@jax.jit
def _classify_seeds(log_ratio, depths, thresholds):
    return _classify(*mean_and_error(log_ratio), depths, thresholds)


@jax.jit
def _classify(mean, error, depths, thresholds):
    # The ratio is of squares, so its log is twice that of the norm.
    limit = 2 * jnp.log(thresholds.ratio)
    significant = _significant(mean, error, thresholds.z)
    sign = jnp.where(significant & (jnp.abs(mean) > limit), jnp.sign(mean), 0)
    regime = jnp.where(jnp.isnan(mean), Regime.UNDEFINED, sign).astype(jnp.int8)
    # Probabilities that the true mean lies below -limit and below limit.
    spread = jnp.where(error > 0, error, jnp.finfo(mean.dtype).tiny)
    below, above = (jax.scipy.stats.norm.cdf((edge - mean) / spread) for edge in (-limit, limit))
    inside = jnp.select([sign < 0, sign > 0], [below, 1 - above], above - below)
    confidence = jnp.where(jnp.isinf(mean), 1.0, jnp.where(jnp.isnan(mean), jnp.nan, inside))
    # A network of depth L has L - 1 layers between the first and the last.
    layers = jnp.broadcast_to(jnp.maximum(depths - 1, 1), mean.shape)
    return Classification(regime, mean, error, mean / layers, error / layers, confidence)


def _significant(mean, error, z):
    # An infinite mean has no standard error, and is significant without one.
    return jnp.isinf(mean) | (jnp.abs(mean) > z * error)


def mean_and_error(values: ArrayLike) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Mean over the first axis and its standard error, `[seeds, ...] -> [...]` each.

    An infinite mean has a NaN error, and so has the mean of one seed. Two
    infinities of opposite sign, or a NaN, give a NaN mean.
    """
    values = _validate.real("values", values)
    if values.ndim == 0 or len(values) == 0:
        rule = "have shape [seeds, ...] with at least 1 seed"
        raise ValueError(f"values must {rule}, got {values.shape}; pass the value of each seed")
    mean = jnp.mean(values, axis=0)
    finite = jnp.isfinite(mean)
    # inf - inf would be NaN, and so would be the derivative.
    deviation = jnp.std(jnp.where(finite, values, 0.0), axis=0, ddof=1)
    return mean, jnp.where(finite, deviation / math.sqrt(len(values)), jnp.nan)


def storage(log_mean_square: ArrayLike, dtype: Any = jnp.float32) -> Int8[Array, "..."]:
    """Find out whether a floating-point type can represent numbers of a given log mean square.

    A network that is stable by `classify` may still be impossible to train in a small type. Values
    of `Storage` are returned, of any shape: `UNDERFLOW` where the root mean square is below the
    smallest normal number, since accelerators replace such numbers by zero.

    >>> storage(jnp.asarray([-300.0, 0.0, 300.0])).tolist()
    [-1, 0, 1]
    """
    log_mean_square = _validate.real("log_mean_square", log_mean_square)
    return _storage(log_mean_square, _validate.dtype("dtype", dtype))


@functools.partial(jax.jit, static_argnames="dtype")
def _storage(log_mean_square, dtype):
    info, log_size = jnp.finfo(dtype), 0.5 * log_mean_square
    low, high = (float(np.log(np.float64(edge))) for edge in (info.tiny, info.max))
    conditions = [jnp.isnan(log_size), log_size < low, log_size > high]
    labels = [Storage.UNDEFINED, Storage.UNDERFLOW, Storage.OVERFLOW]
    return jnp.select(conditions, labels, Storage.HELD).astype(jnp.int8)


class Level(NamedTuple):
    """The result of `level`, `[...]` each; NaN where there is none."""

    variance: Float[Array, "..."]
    variance_se: Float[Array, "..."]


def level(
    log_ratio: ArrayLike, variances: ArrayLike, thresholds: Thresholds | None = None
) -> Level:
    """Find the variance at which the gradient neither grows nor shrinks, by interpolation.

    The log ratio of each seed, `[seeds, variances, ...]`, is a function of the log variance. Its
    first upward crossing of zero is found by linear interpolation. The result is the geometric mean
    over the seeds that cross. It is NaN if fewer than two do, and unless the mean over all seeds is
    below zero at a smaller variance and above it at a larger one, by more than `thresholds.z`
    standard errors each: noise around zero is no level. The variances are positive and increase.

    >>> level([[-2.0, 1.9], [-1.9, 2.0]], [1.0, 4.0]).variance.round(2).tolist()
    2.0
    >>> level([[-0.1, 1.9], [0.1, 2.0]], [1.0, 4.0]).variance.tolist()
    nan
    """
    thresholds = _checked(thresholds)
    log_ratio = _validate.real("log_ratio", log_ratio)
    values = _validate.in_float64("variances", variances)
    increasing = values.ndim == 1 and len(values) > 1 and np.all(np.diff(values) > 0)
    if not (increasing and values[0] > 0 and values[-1] < np.inf):
        rule = "be at least two increasing positive numbers"
        raise ValueError(f"variances must {rule}, got {values.tolist()}")
    if log_ratio.ndim < 2 or 0 in log_ratio.shape or log_ratio.shape[1] != len(values):
        rule = f"have shape [seeds, {len(values)}, ...] to fit the variances"
        raise ValueError(f"log_ratio must {rule}, got {log_ratio.shape}; put seeds first")
    return _level(log_ratio, jnp.log(jnp.asarray(values, log_ratio.dtype)), thresholds.z)


@jax.jit
def _level(log_ratio, log_values, z):
    # A line can be drawn through 1e30. NaN stays NaN, which is on neither side of zero.
    finite = jnp.nan_to_num(log_ratio, nan=jnp.nan, posinf=1e30, neginf=-1e30)
    low, high = finite[:, :-1], finite[:, 1:]
    crosses = (low < 0) & (high >= 0)
    crossed = jnp.any(crosses, axis=1)
    index = jnp.argmax(crosses, axis=1)[:, None]
    low, high = (jnp.take_along_axis(a, index, axis=1)[:, 0] for a in (low, high))
    share = jnp.where(crossed, -low / jnp.where(crossed, high - low, 1.0), 0.0)
    start = log_values[index[:, 0]]
    root = start + share * (log_values[index[:, 0] + 1] - start)
    count = crossed.sum(axis=0)
    log_variance = jnp.sum(jnp.where(crossed, root, 0.0), axis=0) / jnp.maximum(count, 1)
    variance = jnp.exp(log_variance)
    # The standard error over the seeds that cross; the denominators are safe for fewer than two.
    deviation = jnp.where(crossed, jnp.exp(root) - variance[None], 0.0)
    error = jnp.sum(deviation**2, axis=0) / jnp.maximum(count - 1, 1) / jnp.maximum(count, 1)
    mean, mean_error = mean_and_error(log_ratio)
    significant = _significant(mean, mean_error, z)
    # How far each variance is above the level; one at the level may be on either side.
    distance = jnp.expand_dims(log_values, range(1, mean.ndim)) - log_variance[None]
    below = jnp.any(significant & (mean < 0) & (distance <= 0), axis=0)
    above = jnp.any(significant & (mean > 0) & (distance >= 0), axis=0)
    known = (count > 1) & below & above
    return Level(jnp.where(known, variance, jnp.nan), jnp.where(known, jnp.sqrt(error), jnp.nan))
