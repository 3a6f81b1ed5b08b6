"""The maps of a fully connected layer `z = W phi(z') + b` at infinite width.

Weights have variance `w_variance / fan_in` and biases `b_variance`; `q` is the variance of the
pre-activations. Poole et al. (2016) derive the maps, Schoenholz et al. (2017) their slopes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array

from jaxgrad import _validate, activations
from jaxgrad._numerics import FloatArray, compiled_in_float64, in_float64
from jaxgrad.activations import Activation
from jaxgrad.theory import _moments

ActivationLike = str | Activation | Callable[..., Any]


def second_moment(activation: ActivationLike, q: ArrayLike) -> FloatArray:
    """Compute `M(q) = E phi(sqrt(q) z)^2`, `z` standard normal, with a relative error of 1e-12.

    The variances `q`, of any shape, are above 0; for `activation` see `jaxgrad.activations.get`.
    The result has the shape of `q`, NaN where `M` diverges. A `ValueError` reports an activation
    that is not elementwise, is NaN somewhere, or is nowhere smooth.
    """
    return _average(activations.get(activation), _positive("q", q), "log_square")


def slope_moment(activation: ActivationLike, q: ArrayLike) -> FloatArray:
    """Compute `D(q) = E phi'(sqrt(q) z)^2`, with `z` standard normal; see `second_moment`."""
    return _average(activations.get(activation), _positive("q", q), "log_slope")


def q_map(
    activation: ActivationLike, q: ArrayLike, w_variance: ArrayLike, b_variance: ArrayLike = 0.0
) -> FloatArray:
    """Compute the variance of the next layer's pre-activations, `w_variance M(q) + b_variance`.

    The variances are at least 0 and broadcast with `q`; see `second_moment`.
    """
    w_variance, b_variance = check_variances(w_variance, b_variance)
    return _affine(w_variance, second_moment(activation, q), b_variance)


def c_map(
    activation: ActivationLike,
    gap: ArrayLike,
    q: ArrayLike,
    w_variance: ArrayLike,
    b_variance: ArrayLike = 0.0,
) -> FloatArray:
    """Compute the correlation `c` of two examples in the next layer, in terms of `gap = 1 - c`.

    Both have variance `q`. The gap, from 0 to 2, broadcasts with the arguments of `q_map`. Near
    `c = 1` it keeps the digits that `c` loses; its relative error is about `1e-16 / sqrt(gap)`.

    >>> round(float(c_map("relu", 1.0, 1.0, 2.0)), 6)  # 1 - 1 / pi
    0.68169
    """
    w_variance, b_variance = check_variances(w_variance, b_variance)
    return _c_map(activations.get(activation), gap, _positive("q", q), w_variance, b_variance)


def chi_perp(activation: ActivationLike, q: ArrayLike, w_variance: ArrayLike) -> FloatArray:
    """Compute `w_variance D(q)`, the growth per layer of a squared gradient or a squared angle."""
    return _affine(check_variances(w_variance, 0.0)[0], slope_moment(activation, q), 0.0)


def chi_par(activation: ActivationLike, q: ArrayLike, w_variance: ArrayLike) -> FloatArray:
    """Compute `w_variance M'(q)`, the slope of `q_map`: below 1 the length is stable."""
    slope = _average(activations.get(activation), _positive("q", q), "slope")
    return _affine(check_variances(w_variance, 0.0)[0], slope, 0.0)


def check_variances(w_variance: Any, b_variance: Any) -> tuple[Any, Any]:
    """Return both variances if they are finite and at least 0, or raise."""
    for name, value in (("w_variance", w_variance), ("b_variance", b_variance)):
        _validate.numbers(name, value, minimum=0.0)
    return w_variance, b_variance


def next_log_q(log_square: Any, log_w: Any, b_variance: Any) -> Array:
    """Compute `log(w M + b)` from the logs of `M` and `w`; its derivative by `b` is finite at 0."""
    weighted = log_w + log_square
    # logaddexp(x, -inf) has no derivative by the -inf, so b = 0 is a case of its own.
    positive = b_variance > 0
    both = jnp.logaddexp(weighted, jnp.log(jnp.where(positive, b_variance, 1.0)))
    # At b = 0, d/db log(w M + b) = 1 / (w M).
    inverse = jnp.exp(-jnp.where(jnp.isfinite(weighted), weighted, 0.0))
    return jnp.where(positive, both, weighted + b_variance * jax.lax.stop_gradient(inverse))


def _positive(name: str, value: Any) -> Any:
    _validate.numbers(name, value, minimum=0.0, above=True)
    return value


@in_float64
def _affine(w_variance, average, b_variance):
    return jnp.asarray(w_variance) * average + jnp.asarray(b_variance)


@compiled_in_float64(0, 2)
def _average(phi, q, quantity):
    averages = _moments.statistics(phi, jnp.log(q))
    if quantity == "slope":
        # M' = (d log M / d log q) M / q.
        return averages.elasticity * jnp.exp(averages.log_square) / q
    return jnp.exp(getattr(averages, quantity))


@compiled_in_float64(0)
def _c_map(phi, gap, q, w_variance, b_variance):
    log_q, gap = jnp.broadcast_arrays(jnp.log(q), gap)
    square = w_variance * jnp.exp(_moments.statistics(phi, log_q).log_square)
    # Equal biases bring examples closer: of the next variance, only the share w M differs.
    return _moments.pair(phi, log_q, gap)[0] * square / (square + b_variance)
