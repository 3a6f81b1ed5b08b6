"""What a finite width adds: the log of a squared gradient is random, and typically lower.

At width `n` one layer multiplies a squared gradient by `w_variance mean(phi'(z)^2 g^2)`, with
independent `z ~ N(0, q)` and `g ~ N(0, 1)` over its `n` units. The mean of this is what infinite
width says, `w_variance D`; the log of it has a variance of about `k / n` and a mean that is lower
by about `k / (2 n)`, with `k = 3 E phi'^4 / D^2 - 1`. Over `L` layers that adds up to orders of
magnitude: an average over seeds is then not what any seed does.

Source: Hanin, Nica (2020), Products of many large random matrices and gradients in deep neural
networks; Hanin (2018), Which neural net architectures give rise to exploding and vanishing
gradients?
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations
from jaxgrad.activations import Activation
from jaxgrad.theory import moments, quadrature
from jaxgrad.theory._float64 import in_float64
from jaxgrad.theory.maps import Phi, next_log_q, variances

_FAR = 60.0
_STEP = 0.25
_GRID = np.arange(-36.0, 72.0, _STEP)
_SINGLE = np.exp(-np.exp(np.minimum(_GRID, 10.0)))


class LayerLaw(NamedTuple):
    """How one layer of finite width multiplies a squared gradient, given the layer's `q`.

    Means and variances of the log are over networks in which the gradient is not exactly 0, which
    bias-free ReLU layers make it with a small probability.

    Attributes:
      log_mean: log of the mean factor, `log(w_variance D)`, whatever the width.
      mean_log: mean of the log of the factor: what a typical network does.
      var_log: variance of the log of the factor.
      log_spread: log of the mean squared factor over the squared mean, `log(1 + k / n)`.
    """

    log_mean: jax.Array
    mean_log: jax.Array
    var_log: jax.Array
    log_spread: jax.Array


class GradientLaw(NamedTuple):
    """The squared gradient of a network of finite width; every field has shape `[depth]`.

    Entry `l - 1` is for the gradient with respect to the first layer's pre-activations, per output,
    of the network of depth `l`, as `log_gradient` of `jaxgrad.theory.Prediction` and of
    `jaxgrad.propagation.Probe` for one example.

    Attributes:
      log_mean: log of the mean over networks.
      mean_log: mean over networks of the log: what a typical network does.
      var_log: variance over networks of the log.
    """

    log_mean: jax.Array
    mean_log: jax.Array
    var_log: jax.Array


def layer_law(activation: Phi, q: Any, w_variance: Any, width: Any) -> LayerLaw:
    """The exact law of one layer whose pre-activations are independent draws from `N(0, q)`.

    Args:
      activation: see `jaxgrad.activations.get`.
      q: variance of the pre-activations, above 0.
      w_variance: of the weights times fan-in, at least 0.
      width: number of units `n`, at least 1. All numbers may be traced; `jax.vmap` for several.

    Returns:
      `LayerLaw`. The logs' mean and variance are right to about 1e-8 for 8 units and more; with
      fewer units and a slope that crosses 0, as GELU's, to a percent. NaN where so few units have
      slopes so near to 0 that their logs lie out of reach.

    Raises:
      ValueError, TypeError: if an argument is not as described, and as `second_moment`.

    The moments of the log of `S` are those of `log X - log S` without those of `log X`, for `X`
    exponential: `P(log X - log S > u) = E exp(-e^u S)`, of a sum over units a power of an average
    over one.

    >>> law = layer_law("relu", 1.0, 2.0, 100)
    >>> round(float(law.log_mean), 12), round(100 * float(law.mean_log), 2)
    (0.0, -2.54)
    """
    _validate.scalar("q", q, minimum=0.0, above=True)
    _validate.scalar("w_variance", w_variance, minimum=0.0)
    _validate.scalar("width", width, minimum=1.0)
    return _layer_law(activations.get(activation), q, w_variance, width)


def critical_w_variance(activation: Phi, q: Any, width: Any) -> jax.Array:
    """The weight variance at which one layer keeps the squared gradient of a *typical* network.

    The mean of the log of the layer's factor is 0; at infinite width this is `1 / D(q)`, at width
    `n` it is larger by a factor of about `1 + k / (2 n)`.

    Args, Raises: as `layer_law`.

    >>> round(float(critical_w_variance("relu", 1.0, 64)), 4)
    2.0818
    """
    return _exp_minus(layer_law(activation, q, 1.0, width).mean_log)


def alive_probability(width: Any, depth: Any) -> jax.Array:
    """The probability that a ReLU network without biases lets an example through all its layers.

    In each layer all units are off with probability `2^-width`: the output is then 0, and so is
    every gradient.

    Args:
      width, depth: at least 1 and 0, any shapes that broadcast, may be traced.

    Returns:
      `(1 - 2^-width)^depth`.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> round(float(alive_probability(3, 10)), 5)
    0.26308
    """
    _validate.numbers("width", width, minimum=1.0)
    _validate.numbers("depth", depth, minimum=0.0)
    return _alive_probability(width, depth)


def gradient_law(
    activation: Phi,
    depth: int,
    w_variance: Any,
    b_variance: Any = 0.0,
    *,
    width: Any,
    input_square: Any = 1.0,
) -> GradientLaw:
    """Mean and variance of the log of a squared gradient, layer by layer, at finite width.

    To first order in `1 / width`, and exact for (leaky) ReLU and linear networks, whose slopes do
    not depend on `q`. Included are: every layer's own fluctuation, by its exact law; that of `q`,
    which layers hand on and which changes the slopes, with its covariance; the drift of the mean of
    `q`; and the drift from the part of the gradient's direction that has turned into the signal's.
    Neglected is the second order: it matters where `depth / width` is not small, sooner for
    networks without a stable length.

    Args:
      activation: see `jaxgrad.activations.get`.
      depth: number of layers, at least 1.
      w_variance, b_variance: numbers of at least 0, may be traced.
      width: units of every layer, a number of at least 1, may be traced.
      input_square: mean square of the one input, above 0, may be traced.

    Returns:
      `GradientLaw`.

    Raises:
      ValueError, TypeError: if an argument is not as described, and as `second_moment`.

    >>> found = gradient_law("relu", 50, 2.0, width=100)
    >>> abs(float(found.log_mean[-1] - found.log_mean[0])) < 1e-9
    True
    >>> round(float(found.mean_log[-1] - found.mean_log[0]), 3)
    -1.246
    """
    phi = activations.get(activation)
    depth = _validate.integer("depth", depth, 1)
    for name, value in (("w_variance", w_variance), ("b_variance", b_variance)):
        _validate.scalar(name, value)
    w_variance, b_variance = variances(w_variance, b_variance)
    _validate.scalar("width", width, minimum=1.0)
    _validate.scalar("input_square", input_square, minimum=0.0, above=True)
    return _gradient_law(phi, depth, w_variance, b_variance, width, input_square)


class Fourth(NamedTuple):
    """Fourth moments over `N(0, q)`, relative to the second ones; numbers.

    Attributes:
      square: `E phi^4 / M^2`.
      mixed: `E phi^2 phi'^2 / (M D)`.
      slope: `E phi'^4 / D^2`.
    """

    square: jax.Array
    mixed: jax.Array
    slope: jax.Array


def fourth(phi: Activation, log_q: jax.Array) -> Fourth:
    """Average an activation over pre-activations of variance `exp(log_q)`, one number."""
    p, value, slope = _sample(phi, log_q)
    m, d = jnp.sum(p * value), jnp.sum(p * slope)
    return Fourth(
        jnp.sum(p * value * value) / m**2,
        jnp.sum(p * value * slope) / (m * d),
        jnp.sum(p * slope * slope) / d**2,
    )


def _sample(phi, log_q):
    """Weights, squared values and squared slopes at the nodes of all versions of an activation."""
    mesh = quadrature.mesh(phi)
    near = jnp.clip(log_q, -_FAR, _FAR)
    x, weights = quadrature.nodes(mesh.edges, near)
    weights = jnp.where(near <= mesh.log_q, weights, jnp.nan)
    shares, values, slopes = [], [], []
    for share, function in quadrature.versions(phi):
        value, slope = jax.jvp(function, (x,), (jnp.ones_like(x),))
        shares.append(share * weights)
        values.append(value * value)
        slopes.append(slope * slope)
    return jnp.concatenate(shares), jnp.concatenate(values), jnp.concatenate(slopes)


def _log_moments(phi, log_q, width):
    """Mean and variance of the log of `mean(phi'^2 g^2) / D`, given that it is not 0."""
    p, _, slope = _sample(phi, log_q)
    slope = slope / jnp.sum(p * slope)

    def log_laplace(u):
        # Over g, E exp(-s g^2) is (1 + 2 s)^(-1/2).
        log_unit = -0.5 * jnp.log1p(2 * jnp.exp(u) / width * slope)
        less = jnp.sum(p * jnp.expm1(log_unit))
        near = less > -0.5
        far = jnp.log(jnp.where(near, 1.0, jnp.sum(p * jnp.exp(log_unit))))
        return jnp.where(near, jnp.log1p(jnp.where(near, less, 0.0)), far)

    survival = jnp.exp(width * jax.lax.map(log_laplace, jnp.asarray(_GRID), batch_size=16))
    flat = jnp.sum(jnp.where(slope == 0, p, 0.0))
    dead = jnp.where(flat > 0, jnp.exp(width * jnp.log(jnp.where(flat > 0, flat, 1.0))), 0.0)
    survival = (survival - dead) / (1 - dead)
    difference = survival - _SINGLE
    mean = -_STEP * jnp.sum(difference)
    square = _STEP * jnp.sum(2 * _GRID * difference)
    variance = square - 2 * np.euler_gamma * mean - mean**2
    covered = survival[-1] < 1e-9
    return jnp.where(covered, mean, jnp.nan), jnp.where(covered, variance, jnp.nan)


@in_float64
@functools.partial(jax.jit, static_argnums=0)
def _layer_law(phi, q, w_variance, width):
    log_q, width = jnp.log(jnp.asarray(q, jnp.float64)), jnp.asarray(width, jnp.float64)
    log_mean = jnp.log(jnp.asarray(w_variance, jnp.float64))
    log_mean = log_mean + moments.statistics(phi, log_q).log_slope
    mean, variance = _log_moments(phi, log_q, width)
    k = 3 * fourth(phi, log_q).slope - 1
    return LayerLaw(log_mean, log_mean + mean, variance, jnp.log1p(k / width))


@in_float64
def _exp_minus(value):
    return jnp.exp(-jnp.asarray(value))


@in_float64
@jax.jit
def _alive_probability(width, depth):
    width, depth = jnp.asarray(width, jnp.float64), jnp.asarray(depth, jnp.float64)
    return jnp.exp(depth * jnp.log1p(-jnp.exp2(-width)))


@in_float64
@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradient_law(phi, depth, w_variance, b_variance, width, input_square):
    w_variance, b_variance, width, input_square = (
        jnp.asarray(v, jnp.float64) for v in (w_variance, b_variance, width, input_square)
    )
    log_w = jnp.log(w_variance)

    def averages(log_q):
        found = moments.statistics(phi, log_q)
        return (found.elasticity, found.slope_elasticity), found

    # With d = (q - its limit at infinite width) / that limit, Y the log of the squared gradient
    # without the layers' own drift, and c the correlation of a change with the signal:
    class State(NamedTuple):
        log_q: Any
        log_mean: Any  # mean of Y
        drift: Any  # sum of the layers' own drifts
        own: Any  # sum of the layers' own variances
        mean: Any  # mean of d
        var: Any  # variance of d
        cov: Any  # covariance of d and Y
        var_log: Any  # variance of Y
        turned: Any  # mean of c^2

    def step(s, _):
        (e, f), (e_slope, f_slope), found = jax.jvp(
            averages, (s.log_q,), (jnp.ones_like(s.log_q),), has_aux=True
        )
        ratios = fourth(phi, s.log_q)
        own_drift, own = _log_moments(phi, s.log_q, width)

        log_mean = s.log_mean + found.log_slope
        log_mean += f * s.mean + (f_slope - f) * s.var / 2 + 2 * f * s.turned
        var_log = s.var_log + 2 * f * s.cov + f**2 * s.var + own
        drift, own = s.drift + own_drift, s.own + own
        record = GradientLaw(log_mean + (var_log - own) / 2, log_mean + drift, var_log)

        log_signal = log_w + found.log_square
        log_q = next_log_q(log_signal, 0.0, b_variance)
        share = jnp.exp(log_signal - log_q)
        a = share * e
        following = State(
            log_q=log_q,
            log_mean=log_mean + log_w,
            drift=drift,
            own=own,
            mean=a * s.mean + share * (e**2 - e + e_slope) * s.var / 2,
            var=a**2 * s.var + share**2 * (ratios.square - 1) / width,
            cov=a * (s.cov + f * s.var) + share * (ratios.mixed - 1) / width,
            var_log=var_log,
            turned=share
            * (
                e**2 * jnp.exp(found.log_square - s.log_q - found.log_slope) * s.turned
                + ratios.mixed / width
            ),
        )
        return following, record

    zero = jnp.zeros((), jnp.float64)
    start = State(next_log_q(jnp.log(input_square), log_w, b_variance), *(zero,) * 8)
    return jax.lax.scan(step, start, length=depth)[1]
