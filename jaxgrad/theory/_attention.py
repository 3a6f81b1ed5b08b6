"""Moments after self-attention: variance and correlation of tokens, of a signal and of a change.

Let the tokens of an example be Gaussian with variance `q` and correlation `rho`. The logits of one
query are then `sqrt(v) z_j` up to what they have in common, with independent `z_j`, where
`v = g w_q q w_k q (1 - rho)`; `g` is the square of the logits' scale times `d_head`. The logits of
two queries have correlation `c = rho`. With the averages over the weights `p` and `p'` of two rows,
see `softmax_moments`, the values have

    variance           w_v q (rho + (1 - rho) E sum p^2),
    between two tokens w_v q (rho + (1 - rho) E sum p p').

A cotangent `g` reaches the input by the values, the queries and the keys. A query collects
`S W_v g`, where `S` is the covariance of the tokens under the weights `p`, and a key its share of
it. With `F = E tr K^2` and `G = E tr K K'` for `K = diag(p) - p p^T`, and relative to `w_v w_o`:

    variance of the gradient, of a cotangent of variance 1 and correlation r between tokens:
        values   E sum p^2 + (T - 1) r E sum p p'
        queries  v (1 - rho) F
        keys     v F + (T - 1) v r c G.

At a finite number `d` of features three things are not negligible: the length of a query varies;
weights and values depend on each other by the same token, which shifts the mean of the tokens under
`p` by `sqrt(v)` standard deviations along one of `d` directions; and the covariance of `T` tokens
in `d` directions has eigenvalues that spread, `tr S^2 / d = F + E (1 - sum p^2)^2 / d`. Their
averages follow by Gaussian integration by parts.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxgrad import _validate
from jaxgrad._numerics import in_float64
from jaxgrad.theory._moments import Moments, Tokens
from jaxgrad.theory._softmax import LARGEST_VARIANCE, softmax_moments, visible

_LENGTHS = 3  # Points of the distribution of the length of a query.


class Rows(NamedTuple):
    """What two rows of weights do to a signal and to a cotangent, relative to `w_v w_o`.

    Attributes:
      value, value_overlap: share of the variance of independent tokens that is left in one output,
        and in the product of two.
      same, same_correlated: `A0` and `A1` of the variance `A0 + r A1` of the gradient.
      mean, mean_correlated: `X0` and `X1` of the variance of the gradient plus `T - 1` times its
        covariance, `1 + X0 + (T - 1) r (1 + X1)`.
    """

    value: Any
    value_overlap: Any
    same: Any
    same_correlated: Any
    mean: Any
    mean_correlated: Any


@in_float64
def attend(
    moments: Moments,
    *,
    query_variance: Any = 1.0,
    key_variance: Any = 1.0,
    value_variance: Any = 1.0,
    output_variance: Any = 1.0,
    b_variance: Any = 0.0,
    logit_gain: Any = 1.0,
    head_features: int | None = None,
    causal: bool = False,
    mask: Bool[np.ndarray | Array, "tokens tokens"] | None = None,
) -> Moments:
    """Compute the moments after multi-head self-attention with random weights.

    Args:
      moments: those of the input, with `tokens`, and without a gap of examples.
      query_variance, key_variance, value_variance, output_variance: variances of the weights times
        `fan_in`, at least 0, may be traced.
      b_variance: variance of the four biases.
      logit_gain: square of the number that multiplies a query times a key, times `head_features`: 1
        for `1 / sqrt(head_features)`.
      head_features: features of one head, for the correction of a finite number; it is applied if
        `moments.tokens.width` is known, too.
      causal: whether a token attends to itself and to earlier ones only. The moments are then means
        over tokens, as if the tokens of the next layer were alike.
      mask: to which tokens (column) each token attends, likewise; not traced.

    Returns:
      `Moments`; NaN where the logits have a variance above 100.

    The error against 500 layers of Gaussian tokens is printed by
    `python -m benchmarks.attention_moments`. A `ValueError` reports moments that do not fit.

    >>> from jaxgrad.theory import Tokens
    >>> moments = Moments(log_q=0.0, tokens=Tokens(count=8, gap=1.0))
    >>> uniform = attend(moments, logit_gain=0.0)
    >>> round(float(jnp.exp(uniform.log_q)), 6), round(float(uniform.tokens.gap), 6)
    (0.125, 0.0)
    """
    tokens = _check(moments)
    variances = (query_variance, key_variance, value_variance, output_variance)
    names = ("query_variance", "key_variance", "value_variance", "output_variance")
    for name, value in zip(names, variances, strict=True):
        _validate.numbers(name, value, minimum=0.0)
    _validate.numbers("b_variance", b_variance, minimum=0.0)
    _validate.numbers("logit_gain", logit_gain, minimum=0.0)
    if head_features is not None:
        head_features = _validate.integer("head_features", head_features, 1)
    _validate.flag("causal", causal)
    if mask is not None:
        mask, causal = visible(mask, tokens.count, causal), False
    size, rho = tokens.count, 1 - jnp.asarray(tokens.gap, float)
    q = jnp.exp(jnp.asarray(moments.log_q, float))
    b = jnp.asarray(b_variance, float)
    query = query_variance * q + b
    # Biases of keys, and what tokens have in common, shift all logits of a row, without effect.
    variance = logit_gain * key_variance * q * tokens.gap * query
    # The share of the queries by which an input reaches them; biases do not depend on it.
    share = jnp.where(query > 0, query_variance * q / jnp.where(query > 0, query, 1.0), 0.0)
    correlation = 1 - share * tokens.gap
    rows = _rows(tokens, variance, correlation, share, head_features, causal, mask)
    # q' = w_o (w_v q (rho + gap E sum p^2) + b) + b, and between tokens the same with p p'.
    shift = (output_variance + 1.0) * b
    gain = output_variance * value_variance
    after = gain * q * (rho + tokens.gap * rows.value) + shift
    between = gain * q * tokens.gap * (rows.value - rows.value_overlap)
    log_change, change_gap = _push(rows, size, tokens.change_gap)
    return dataclasses.replace(
        moments,
        log_q=jnp.log(after),
        log_gradient=moments.log_gradient + jnp.log(gain) + log_change,
        mean=jnp.zeros_like(after),
        tokens=Tokens(size, between / after, change_gap, tokens.width),
        gaussian=True,
        fresh=True,
    )


def _check(moments):
    _validate.instance("moments", moments, Moments, "moments_of")
    if moments.tokens is None:
        raise ValueError(
            "moments must have tokens for attention, got None; pass for example "
            "tokens=jaxgrad.theory.Tokens(count=16, gap=1.0), or moments_of(x, tokens=True)"
        )
    if moments.gap is not None:
        raise ValueError(
            "moments must have no gap of examples for attention, which is predicted for one "
            "example; pass gap=None, or pairs=False"
        )
    _validate.instance("moments.tokens", moments.tokens, Tokens, "Tokens")
    _validate.integer("moments.tokens.count", moments.tokens.count, 2)
    return moments.tokens


def _rows(tokens, variance, correlation, share, head_features, causal, mask):
    """Average over the length of a query and the angle of two, and combine the averages."""
    epsilon, lengths, weights, angles = 0.0, np.ones(1), np.ones(1), np.zeros(1)
    if tokens.width is not None and head_features is not None:
        epsilon = 1 / tokens.width
        # Relative variances of the squared length of W_k W_q^T x: of each product and of x itself,
        # which a norm makes equal.
        inverse = 1 / head_features + (1 if tokens.normalized else 2) * epsilon
        lengths, weights = _gamma_points(1 / inverse, _LENGTHS)
        angles = np.array([-1.0, 1.0]) * inverse**0.5
    # Two more axes: points of the length, and of the angle.
    shape = jnp.broadcast_shapes(*(jnp.shape(a) for a in (variance, correlation, share)))
    grid = (*shape, len(lengths), len(angles))
    mean_v, c, share, gap = (
        jnp.broadcast_to(jnp.asarray(a)[..., None, None], grid)
        for a in (variance, correlation, share, jnp.broadcast_to(tokens.gap, shape))
    )
    c = jnp.clip(c + jnp.broadcast_to(angles, grid) * jnp.sqrt(1 - c * c), -1.0, 1.0)
    v = jnp.minimum(mean_v * jnp.broadcast_to(lengths[:, None], grid), LARGEST_VARIANCE)
    p = softmax_moments(v, tokens.count, correlation=c, causal=causal, mask=mask)
    rows = _combine(p, mean_v * share * gap, v, c, tokens.count, epsilon)
    weights = np.broadcast_to(weights[:, None], grid) / len(angles)
    predicted = variance <= LARGEST_VARIANCE
    return jax.tree.map(
        lambda a: jnp.where(predicted, jnp.sum(weights * a, axis=(-2, -1)), jnp.nan), rows
    )


def _combine(p, query_v, v, c, count, epsilon):
    """Return `Rows` from averages over the weights of logits of variance `v`.

    `query_v` is the mean of `v (1 - rho)`, of what queries have from the input; `epsilon = 1 / d`.
    """
    others, most = count - 1, 1 - epsilon
    f = p.square - 2 * p.cube + p.squared_square
    g = p.overlap - 2 * p.square_overlap + p.squared_overlap
    # tr S^2 of tokens with d - 1 directions of their own and one along the query.
    spread = most * f + 2 * epsilon * most * p.spread
    spread += epsilon * (1 - 2 * p.square + p.squared_square)
    spread_pair = most * g + epsilon * (1 - p.square) ** 2
    # By integration by parts, sqrt(v) E sum p^2 (z - z_mean) = v E (sum p^2 - 4 p^3 + 3 (p^2)^2).
    tilt = 2 * epsilon * v * (p.square - 4 * p.cube + 3 * p.squared_square)
    tilt_pair = 2 * epsilon * v * c * p.overlap * (1 - p.square)
    keys, keys_pair = v * (most * f + epsilon * p.spread), v * c * g
    queries, queries_pair = query_v * spread, query_v * spread_pair
    return Rows(
        value=most * p.square + epsilon * p.squared_mean,
        value_overlap=p.overlap + epsilon * v * c * (1 - p.square),
        same=p.square + queries + keys + tilt,
        same_correlated=others * (p.overlap + keys_pair + tilt_pair),
        # The derivatives by keys add up to 0 over tokens, and the weights of a row to 1.
        mean=queries,
        mean_correlated=queries_pair,
    )


def _push(rows, size, change_gap):
    """Return the log growth of a change, and its gap between tokens.

    The mean token and the deviations from it are eigenspaces of the covariance of tokens. A matrix
    takes the variances of a cotangent in them to those of the gradient. That of a change, carried
    forward, is its transpose, since both are of the squared norms of the same Jacobian.
    """
    same, pair, others = rows.same, rows.same_correlated, size - 1
    relative = (size * same - 1 - rows.mean) / others
    relative_pair = size * pair / others - 1 - rows.mean_correlated
    deviation = (others * relative - relative_pair) / size
    deviation_of_mean = (relative + relative_pair) / size
    # The ones cancel, which must not be left to rounding where tokens are almost equal.
    mean_of_deviation = others * (rows.mean - rows.mean_correlated) / size
    mean = 1 + (rows.mean + others * rows.mean_correlated) / size
    # Mean squares, which rounding must not make negative where they are 0.
    deviation, deviation_of_mean, mean_of_deviation = (
        jnp.maximum(a, 0.0) for a in (deviation, deviation_of_mean, mean_of_deviation)
    )
    # Of a change of mean square 1: 1 - r, and 1 + (T - 1) r.
    before, before_mean = change_gap, size - (size - 1) * change_gap
    after = deviation * before + mean_of_deviation * before_mean / (size - 1)
    after_mean = (size - 1) * deviation_of_mean * before + mean * before_mean
    growth = ((size - 1) * after + after_mean) / size
    vanishes = growth == 0
    return jnp.log(growth), jnp.where(vanishes, 1.0, after / jnp.where(vanishes, 1.0, growth))


def _gamma_points(count, number):
    """Return points and weights for the mean square of `count` standard normal numbers.

    Gauss quadrature for the gamma distribution, from the recurrence of Laguerre polynomials.
    """
    k = np.arange(number)
    off = np.sqrt(k[1:] * (k[1:] + count / 2 - 1))
    matrix = np.diag(2 * k + count / 2) + np.diag(off, 1) + np.diag(off, -1)
    points, vectors = np.linalg.eigh(matrix)
    return points / (count / 2), vectors[0] ** 2
