"""Moments of a signal and a gradient in a wide random network, and how activations change them.

The pre-activations of a layer are Gaussian across its units, so a few moments determine everything:
the mean square over units, the correlation of two examples, and the growth of a small random
change. A change carried forward grows like a gradient carried back, since both are the squared norm
of the same Jacobian, per output.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from jaxgrad import _validate, activations
from jaxgrad._numerics import in_float64
from jaxgrad.activations import Activation
from jaxgrad.theory._quadrature import FAR, REACH, extends_beyond, mesh, nodes, sample, versions

_LINEAR = 1e-16  # Below this gap two examples see the same slope.
# With more panels than this, averages over pairs use those with |x| below the bound only.
_MANY_PANELS, _BOUND = 200, 60.0
_AROUND = tuple(sign * step for sign in (-1, 1) for step in (1.0, 2.0, 4.0, 6.0, 8.0, 10.0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Tokens:
    """How alike the tokens of an example are, all pairs of them; arrays have shape `[...]`.

    Attributes:
      count: number of tokens, at least 2.
      gap: `1 - c`, where `c` is the mean product of two tokens divided by `q`.
      change_gap: the same of the change, whose tokens are at first independent.
      width: number of features of a token, for the corrections of attention at finite width; `None`
        for infinitely many.
      normalized: whether all tokens have the same length, as they have after a norm.
    """

    count: int = field(metadata={"static": True})
    gap: Any
    change_gap: Any = 1.0
    width: int | None = field(default=None, metadata={"static": True})
    normalized: bool = field(default=False, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Moments of a signal and of a small change of it; every array has shape `[...]`.

    Attributes:
      log_q, log_gradient: natural logs of `q` and of that of the change, mean squares over units.
      mean: mean over units divided by `sqrt(q)`, from -1 to 1.
      gap: `1 - c`, where `c` is the mean product of two examples divided by `q`; `None` if unknown.
      gaussian: whether the units are independent draws from `N(0, q)`, as they are after a layer of
        weights. The average of an activation is known only then.
      fresh: whether there was a layer of weights since the start. Only then is a residual branch
        independent of the signal that it is added to.
      tokens: how alike the tokens of an example are. The other moments are then means over tokens;
        `None` where there are none, or where the moments are those of every position.
    """

    log_q: Any
    log_gradient: Any = 0.0
    mean: Any = 0.0
    gap: Any = None
    gaussian: bool = field(default=False, metadata={"static": True})
    fresh: bool = field(default=False, metadata={"static": True})
    tokens: Tokens | None = None


class Statistics(NamedTuple):
    """Averages of an activation over `x ~ N(0, q)`: logs of `M` and `D`, and `E phi / sqrt(M)`.

    The elasticities are `d log M / d log q` and `d log D / d log q`. All have the shape of `log_q`.
    """

    log_square: Float[Array, "..."]
    log_slope: Float[Array, "..."]
    mean: Float[Array, "..."]
    elasticity: Float[Array, "..."]
    slope_elasticity: Float[Array, "..."]


class Pair(NamedTuple):
    """Averages of an activation over two pre-activations `u` and `v`, of the shape of `log_q`.

    Attributes:
      gap: that of the activations.
      slopes: `E phi'(u) phi'(v)`.
      slope_gap: `1 - E phi'(u) phi'(v) / E phi'^2`, which keeps its digits where both are alike.
    """

    gap: Float[Array, "..."]
    slopes: Float[Array, "..."]
    slope_gap: Float[Array, "..."]


def statistics(activation: Activation, log_q: ArrayLike) -> Statistics:
    """Average an activation over pre-activations of variance `exp(log_q)`, of any shape.

    The result is NaN where the second moment diverges or needs pre-activations beyond 14 standard
    deviations, and where the activation oscillates too often for this variance.
    """
    return map_elements(functools.partial(_statistics, activation), log_q)


def pair(activation: Activation, log_q: ArrayLike, gap: ArrayLike) -> Pair:
    """Average an activation over two pre-activations `u`, `v` of correlation `1 - gap`.

    The gap has a relative error of about `1e-16 / sqrt(gap)`. All are NaN where the activation
    oscillates too often.
    """
    return map_elements(functools.partial(_pair, activation), log_q, gap)


@in_float64
def activate(moments: Moments, activation: Activation) -> Moments:
    """Compute the moments after an activation that is applied to each unit.

    Raises a ValueError if the units are not Gaussian, so that their moments do not determine it.
    """
    _validate.instance("moments", moments, Moments, "moments_of")
    activation = activations.get(activation)
    if not moments.gaussian:
        raise ValueError(
            f"activation {activation.name!r} must follow a layer of weights, whose outputs are "
            "Gaussian, for its moments to be known; put a dense layer or a convolution before it"
        )
    # The derivative of the activation multiplies the change: its mean square is that of the slope.
    averages = statistics(activation, moments.log_q)
    gap = None if moments.gap is None else pair(activation, moments.log_q, moments.gap).gap
    log_gradient = moments.log_gradient + averages.log_slope
    tokens = moments.tokens
    if tokens is not None:
        two = pair(activation, moments.log_q, tokens.gap)
        # The covariance of the change is multiplied by E phi'(u) phi'(v), its variance by E phi'^2.
        change_gap = two.slope_gap + (1 - two.slope_gap) * tokens.change_gap
        tokens = Tokens(tokens.count, two.gap, change_gap, tokens.width)
    mean, fresh = averages.mean, moments.fresh
    return Moments(averages.log_square, log_gradient, mean, gap, fresh=fresh, tokens=tokens)


def moments_of(x: Any, *, gap: bool = False, tokens: bool = False) -> Moments:
    """Measure the moments of finite inputs `[batch, *spatial, features]`, averaged over the batch.

    Args:
      x: the inputs.
      gap: whether to average the gap of two examples over all pairs of at least two.
      tokens: whether the one spatial axis is one of tokens, to be averaged over.

    Returns:
      `Moments` of shape `spatial`, or `[]` with tokens.
    """
    x = _validate.floating("x", x, 2, "[batch, *spatial, features]", more=True)
    _validate.flag("gap", gap)
    _validate.flag("tokens", tokens)
    if gap and len(x) < 2:
        raise ValueError("x must have at least 2 examples for a gap, got 1; pass more")
    if not tokens:
        return _moments_of(x, gap)
    if x.ndim != 3 or x.shape[1] < 2:
        raise ValueError(
            f"x must be [batch, tokens, features] with at least 2 tokens, got shape {x.shape}; "
            "pass tokens=False for the moments of every position"
        )
    return _moments_of_tokens(x, gap)


@in_float64
def _moments_of_tokens(x, gap):
    # A token as an example: the gap of two tokens is that of the pairs of one example.
    each = jax.vmap(lambda example: _moments_of(example, True))(x)
    weights = jnp.exp(each.log_q)
    q = jnp.mean(weights)
    count, width = x.shape[1:]
    tokens = Tokens(count, jnp.mean(weights * each.gap) / q, jnp.ones(()), width)
    mean = jnp.mean(each.mean * jnp.sqrt(weights)) / jnp.sqrt(q)
    between = None
    if gap:
        places = _moments_of(x, True)
        between = jnp.mean(jnp.exp(places.log_q) * places.gap) / q
    return Moments(jnp.log(q), jnp.zeros(()), mean, between, tokens=tokens)


@in_float64
def _moments_of(x, gap):
    x = x.astype(jnp.float64)
    q = jnp.mean(x * x, axis=(0, -1))
    between = None
    if gap:
        # (sum_i x_i)^2 = sum_i x_i^2 + sum_(i != j) x_i x_j.
        total = jnp.sum(x, axis=0)
        others = (jnp.mean(total * total, axis=-1) - len(x) * q) / (len(x) * (len(x) - 1))
        between = 1 - others / q
    zero = jnp.zeros_like(q)
    return Moments(jnp.log(q), zero, jnp.mean(x, axis=(0, -1)) / jnp.sqrt(q), between)


def map_elements(function: Callable[..., Any], *arrays: ArrayLike, batch_size: int = 32) -> Any:
    """Apply a function of scalars to every element, in batches that bound the memory."""
    elements = jnp.broadcast_arrays(*map(jnp.asarray, arrays))
    shape = elements[0].shape
    if shape == ():
        return function(*elements)
    flat = tuple(a.ravel() for a in elements)
    results = jax.lax.map(lambda scalars: function(*scalars), flat, batch_size=batch_size)
    return jax.tree.map(lambda leaf: leaf.reshape(shape), results)


def _statistics(activation, log_q):
    near = jnp.clip(log_q, -FAR, FAR)
    x, weights, value, slope = sample(activation, near)
    square, slope_square = value * value * weights, slope * slope * weights
    m, d = jnp.sum(square), jnp.sum(slope_square)
    z = x * jnp.exp(-0.5 * near)
    m = jnp.where(extends_beyond(z, square), jnp.nan, m)
    # With x = sqrt(q) z: q dM/dq = E phi phi' x. For D, whose terms may jump, the derivative is
    # taken of the density instead: q dD/dq = E phi'^2 (z^2 - 1) / 2.
    elasticity = jnp.sum(value * slope * x * weights) / m
    slope_elasticity = jnp.sum(slope_square * (z * z - 1)) / (2 * d)
    log_square = jnp.log(m) + elasticity * (log_q - near)
    log_slope = jnp.log(d) + slope_elasticity * (log_q - near)
    mean = jnp.sum(value * weights) / jnp.sqrt(m)
    return Statistics(log_square, log_slope, mean, elasticity, slope_elasticity)


def _pair(activation, log_q, gap):
    """Average over `u = a + b` and `v = a - b`, where `a` and `b` are independent.

    Their variances are `q (1 - gap / 2)` and `q gap / 2`. Then the new gap is an average of
    `(phi(u) - phi(v))^2 / 2`, which loses no digits if the gap is small; that of slopes likewise.
    """
    near = jnp.clip(log_q, -FAR, FAR)
    safe = jnp.maximum(gap, _LINEAR)
    log_a = near + jnp.log1p(-jnp.minimum(safe / 2, 1 - 1e-16))
    log_b = near + jnp.log(safe / 2)
    edges, kinks = map(np.asarray, mesh(activation)[:2])
    many = len(edges) > _MANY_PANELS
    if many:
        edges = edges[np.abs(edges) < _BOUND]
    # Averaged over b, a kink of phi becomes a bend of width sqrt(variance of b).
    around = kinks[:, None] + jnp.exp(0.5 * log_b) * np.asarray(_AROUND)[None]
    outer, outer_weights = nodes(jnp.concatenate([edges, around.ravel()]), log_a)
    functions = versions(activation)

    def mean_function(x):
        return sum(share * function(x) for share, function in functions)

    def inner(a):
        b, weights = nodes(jnp.concatenate([edges - a, a - edges]), log_b, reach=10.0)
        one = (jnp.ones_like(b),)
        (u, du), (v, dv) = (jax.jvp(mean_function, (x,), one) for x in (a + b, a - b))
        square, slope_square = (jnp.sum(weights * a * a) / 2 for a in (u - v, du - dv))
        return square, jnp.sum(weights * du * dv), slope_square

    parts = jax.lax.map(inner, outer, batch_size=64)
    square, slopes, slope_square = (jnp.sum(outer_weights * part) for part in parts)
    x, weights = nodes(edges, near)

    def mean_squares(function):
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        return jnp.stack([jnp.sum(weights * a * a) for a in (value, slope)])

    moments = sum((share * mean_squares(f) for share, f in functions), start=jnp.zeros(2))
    m, d = moments[0], moments[1]
    # Two examples draw independently, so a random activation separates even equal ones.
    several = len(functions) > 1
    drawn = (moments - mean_squares(mean_function)) / moments if several else jnp.zeros(2)
    known = (near < 2 * np.log(_BOUND / REACH)) | (not many)
    # Where the gap was raised to _LINEAR, the new gaps are proportional to it, and that of slopes
    # with a jump to its root: u and v lie on both sides of a kink that often.
    ratio = gap / safe
    slope_ratio = jnp.sqrt(ratio) if activation.kinks else ratio
    pair = Pair(drawn[0] + square / m * ratio, slopes, drawn[1] + slope_square / d * slope_ratio)
    return jax.tree.map(lambda a: jnp.where(known, a, jnp.nan), pair)
