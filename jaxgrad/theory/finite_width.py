"""Corrections of finite width: the log of a squared gradient is random, and typically lower.

At width `n`, one layer multiplies a squared gradient by `w_variance mean(phi'(z)^2 g^2)` over its
units, with independent `z ~ N(0, q)` and `g ~ N(0, 1)`. The mean of this factor is that of infinite
width, `w_variance D`. Its log has a variance of about `k / n` and a mean lower by about
`k / (2 n)`, with `k = 3 E phi'^4 / D^2 - 1`. Over many layers this adds up to orders of magnitude.
Sources: Hanin (2018), Which neural net architectures give rise to exploding and vanishing
gradients?; Hanin, Nica (2020), Products of many large random matrices and gradients.
"""

from collections import namedtuple
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxgrad import _validate, activations
from jaxgrad._numerics import FloatArray, in_float64
from jaxgrad.activations import Activation
from jaxgrad.theory._maps import ActivationLike, next_log_q, prediction
from jaxgrad.theory._moments import statistics
from jaxgrad.theory._quadrature import FAR, sample

# Grid of u for integrals over P(log X - log S > u), and this probability for S = 1.
_STEP = 0.25
_GRID = np.arange(-36.0, 72.0, _STEP)
_SINGLE = np.exp(-np.exp(np.minimum(_GRID, 10.0)))


class LayerLaw(NamedTuple):
    """The factor by which one layer of finite width multiplies a squared gradient, given its `q`.

    `log_mean` is the log of the mean factor, `log(w_variance D)` at any width; `mean_log` and
    `var_log` are mean and variance of its log, as for a typical network, where the gradient is not
    exactly 0; `log_spread`, `log(1 + k / n)`, is the log of the mean squared factor over the
    squared mean.
    """

    log_mean: FloatArray
    mean_log: FloatArray
    var_log: FloatArray
    log_spread: FloatArray


class GradientLaw(NamedTuple):
    """The squared gradient of a network of finite width; every field has shape `[depth]`.

    Entry `l - 1` is for depth `l`, and the gradient by the first layer's pre-activations, per
    output, like `log_gradient` of `jaxgrad.propagation.Propagation`. `log_mean` is the log of the
    mean over networks; `mean_log` and `var_log` are mean and variance of the log, as for a typical
    network.
    """

    log_mean: FloatArray
    mean_log: FloatArray
    var_log: FloatArray


@prediction(_validate.scalar)
def layer_law(
    activation: ActivationLike, q: ArrayLike, w_variance: ArrayLike, width: ArrayLike
) -> LayerLaw:
    """Compute the exact law of one layer whose pre-activations are independent, from `N(0, q)`.

    `q` is above 0, `w_variance` (weight variance times fan-in) at least 0, and `width` (number of
    units) at least 1. They may be traced; use `jax.vmap` for several. The errors of mean and
    variance of the log are about 1e-8 from 8 units on. With fewer units and a slope that crosses 0,
    as GELU's, they may reach a percent, or be NaN.

    >>> law = layer_law("relu", 1.0, 2.0, 100)
    >>> round(float(law.log_mean), 12), round(100 * float(law.mean_log), 2)
    (0.0, -2.54)
    """
    phi = activations.get(activation)
    log_q = jnp.log(q)
    log_mean = jnp.log(w_variance) + statistics(phi, log_q).log_slope
    mean, variance = _log_moments(phi, log_q, width)
    # E g^4 = 3, so the squared factor has the mean (1 + k / n) times the squared mean.
    k = 3 * fourth_moments(phi, log_q)[2] - 1
    return LayerLaw(log_mean, log_mean + mean, variance, jnp.log1p(k / width))


@in_float64
def critical_w_variance(activation: ActivationLike, q: ArrayLike, width: ArrayLike) -> FloatArray:
    """Find the weight variance at which one layer keeps the squared gradient of a typical network.

    There the mean of the log of the layer's factor is 0. It is `1 / D(q)` at infinite width, and
    larger by a factor of about `1 + k / (2 n)` at width `n`. Arguments are as for `layer_law`.
    """
    return jnp.exp(-layer_law(activation, q, 1.0, width).mean_log)


@in_float64
def alive_probability(width: ArrayLike, depth: ArrayLike) -> FloatArray:
    """Compute the probability that the output of a ReLU network without biases is not 0.

    In each layer all units are off with probability `2^-width`, so it is `(1 - 2^-width)^depth`.
    Both arguments may be traced and broadcast.
    """
    _validate.numbers("width", width, minimum=1.0)
    _validate.numbers("depth", depth, minimum=0.0)
    width, depth = (jnp.asarray(number, float) for number in (width, depth))
    return jnp.exp(depth * jnp.log1p(-jnp.exp2(-width)))


@prediction(_validate.scalar)
def gradient_law(
    activation: ActivationLike,
    depth: int,
    w_variance: ArrayLike,
    b_variance: ArrayLike = 0.0,
    *,
    width: ArrayLike,
    input_square: ArrayLike = 1.0,
) -> GradientLaw:
    """Compute mean and variance of the log of a squared gradient, layer by layer.

    The result is right to first order in `1 / width`, and exact for (leaky) ReLU and linear
    networks. It includes the fluctuation of every layer, by its exact law; the fluctuation and
    drift of `q`, which change the slopes; and the drift due to the part of the gradient that is
    parallel to the signal. The second order matters where `depth / width` is not small, and earlier
    if the length is not stable.

    There are at least 1 layers and units, variances of at least 0, and one input of mean square
    `input_square` above 0. All but the depth may be traced.

    >>> law = gradient_law("relu", 50, 2.0, width=100)
    >>> round(float(law.mean_log[-1] - law.mean_log[0]), 3)
    -1.246
    """
    phi = activations.get(activation)
    log_w, zero = jnp.log(w_variance), jnp.zeros((), jnp.float64)

    def step(state, _):
        return _layer_step(phi, state, log_w, b_variance, width)

    start = _State(next_log_q(jnp.log(input_square), log_w, b_variance), *(zero,) * 8)
    return jax.lax.scan(step, start, length=depth)[1]


def fourth_moments(phi: Activation, log_q: Array) -> tuple[Array, Array, Array]:
    """Fourth moments of an activation for one log variance, over squared second ones.

    They are `E phi^4 / M^2`, `E phi^2 phi'^2 / (M D)` and `E phi'^4 / D^2`.
    """
    phi, log_q = activations.get(phi), _validate.real("log_q", log_q, 0)
    _, weights, value, slope = sample(phi, jnp.clip(log_q, -FAR, FAR))
    square, slope = value * value, slope * slope
    m, d = jnp.sum(weights * square), jnp.sum(weights * slope)
    square, slope = square / m, slope / d
    pairs = ((square, square), (square, slope), (slope, slope))
    first, second, third = (jnp.sum(weights * a * b) for a, b in pairs)
    return first, second, third


def _log_moments(phi, log_q, width):
    """Mean and variance of the log of `S = mean(phi'^2 g^2) / D`, provided that it is not 0.

    They are those of `log X - log S` without those of `log X`, for `X` exponential, since
    `P(log X - log S > u) = E exp(-e^u S)` is a power of an average over one unit.
    """
    _, weights, _, slope = sample(phi, jnp.clip(log_q, -FAR, FAR))
    slope = slope * slope / jnp.sum(weights * (slope * slope))

    def log_laplace(u):
        # Log of E exp(-t g^2) = E (1 + 2 t)^(-1/2), t = e^u s / n, accurate where it is near 1.
        log_unit = -0.5 * jnp.log1p(2 * jnp.exp(u) / width * slope)
        deficit = jnp.sum(weights * jnp.expm1(log_unit))
        near = deficit > -0.5
        far = jnp.log(jnp.where(near, 1.0, jnp.sum(weights * jnp.exp(log_unit))))
        return jnp.where(near, jnp.log1p(jnp.where(near, deficit, 0.0)), far)

    survival = jnp.exp(width * jax.lax.map(log_laplace, jnp.asarray(_GRID), batch_size=16))
    flat = jnp.sum(jnp.where(slope == 0, weights, 0.0))
    dead = jnp.where(flat > 0, jnp.exp(width * jnp.log(jnp.where(flat > 0, flat, 1.0))), 0.0)
    survival = (survival - dead) / (1 - dead)
    # E Y is the integral of P(Y > u), and E Y^2 that of 2 u P(Y > u), both relative to S = 1.
    difference = survival - _SINGLE
    mean = -_STEP * jnp.sum(difference)
    square = _STEP * jnp.sum(2 * _GRID * difference)
    # Var log S = Var(log X - log S) - Var log X, where E log X is minus Euler's constant.
    variance = square - 2 * np.euler_gamma * mean - mean**2
    covered = survival[-1] < 1e-9
    return jnp.where(covered, mean, jnp.nan), jnp.where(covered, variance, jnp.nan)


_State = namedtuple("_State", "log_q log_mean drift layer_variance mean var cov var_log turned")
"""Moments before a layer, to first order in `1 / width`; `log_q` is that of infinite width.

`mean` and `var` are those of `d`, the relative deviation of `q`; `log_mean` and `var_log` those of
`Y`, the log of the squared gradient without the layers' drift; `cov` their covariance; `turned` the
mean squared correlation of a change with the signal; `drift` and `layer_variance` sums over layers.
"""


def _layer_step(phi, state: _State, log_w, b_variance, width) -> tuple[_State, GradientLaw]:
    def elasticities(log_q):
        averages = statistics(phi, log_q)
        return (averages.elasticity, averages.slope_elasticity), averages

    # e = d log M / d log q and f = d log D / d log q.
    primal, one = (state.log_q,), (jnp.ones_like(state.log_q),)
    (e, f), (e_slope, f_slope), averages = jax.jvp(elasticities, primal, one, has_aux=True)
    square, mixed, _ = fourth_moments(phi, state.log_q)
    layer_drift, layer_variance = _log_moments(phi, state.log_q, width)
    # The activation: log D(q (1 + d)) = log D(q) + f d + ..., and f d is added to Y.
    log_mean = state.log_mean + averages.log_slope
    log_mean += f * state.mean + (f_slope - f) * state.var / 2 + 2 * f * state.turned
    var_log = state.var_log + 2 * f * state.cov + f**2 * state.var + layer_variance
    drift = state.drift + layer_drift
    layer_variance = state.layer_variance + layer_variance
    # For a normal Y the log of the mean exceeds the mean of the log by half the variance.
    record = GradientLaw(log_mean + (var_log - layer_variance) / 2, log_mean + drift, var_log)
    # The weights: d is multiplied by share * e, and mean(phi^2) fluctuates by itself.
    log_signal = log_w + averages.log_square
    log_q = next_log_q(log_signal, 0.0, b_variance)
    share = jnp.exp(log_signal - log_q)
    factor = share * e
    parallel = e**2 * jnp.exp(averages.log_square - state.log_q - averages.log_slope)
    mean = factor * state.mean + share * (e**2 - e + e_slope) * state.var / 2
    var = factor**2 * state.var + share**2 * (square - 1) / width
    cov = factor * (state.cov + f * state.var) + share * (mixed - 1) / width
    turned = share * (parallel * state.turned + mixed / width)
    log_mean = log_mean + log_w
    return _State(log_q, log_mean, drift, layer_variance, mean, var, cov, var_log, turned), record
