"""The maps of a fully connected layer `z = W phi(z') + b` at infinite width.

Weights have variance `w_variance / fan_in`, biases `b_variance`; `q` is the variance of the
pre-activations. Poole et al. (2016) derive the maps, Schoenholz et al. (2017) the slopes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import _validate, activations
from jaxgrad.activations import Activation
from jaxgrad.theory import moments
from jaxgrad.theory._float64 import in_float64

Phi = str | Activation | Callable[..., Any]


def second_moment(activation: Phi, q: Any) -> jax.Array:
    """`M(q) = E phi(sqrt(q) z)^2`, with `z` standard normal.

    Args:
      activation: see `jaxgrad.activations.get`.
      q: variances above 0, of any shape.

    Returns:
      `M`, of the shape of `q`, right to about 1e-12; NaN where the moment diverges.

    Raises:
      ValueError, TypeError: if a variance is not above 0, or the activation is not elementwise, NaN
        somewhere, or nowhere smooth.

    >>> round(float(second_moment("relu", 3.0)), 12)
    1.5
    """
    return _average(activations.get(activation), _positive("q", q), "log_square")


def slope_moment(activation: Phi, q: Any) -> jax.Array:
    """`D(q) = E phi'(sqrt(q) z)^2`, with `z` standard normal.

    Args, Returns, Raises: as `second_moment`.

    >>> round(float(slope_moment("relu", 3.0)), 12)
    0.5
    """
    return _average(activations.get(activation), _positive("q", q), "log_slope")


def q_map(activation: Phi, q: Any, w_variance: Any, b_variance: Any = 0.0) -> jax.Array:
    """The variance of the next layer's pre-activations, `w_variance M(q) + b_variance`.

    Args:
      activation, q: as of `second_moment`.
      w_variance, b_variance: at least 0, broadcast with `q`.

    Raises:
      ValueError, TypeError: if a variance is negative, and as `second_moment`.
    """
    w_variance, b_variance = variances(w_variance, b_variance)
    return w_variance * second_moment(activation, q) + b_variance


def c_map(activation: Phi, gap: Any, q: Any, w_variance: Any, b_variance: Any = 0.0) -> jax.Array:
    """The correlation of two examples in the next layer, in terms of `gap = 1 - c`.

    Both examples have variance `q`. Near `c = 1` the gap keeps the digits that `c` loses.

    Args:
      activation, q, w_variance, b_variance: as of `q_map`.
      gap: `1 - c`, from 0 to 2, broadcast with `q`.

    Returns:
      The next layer's gap; relative to itself right to about 1e-16 / sqrt(gap).

    Raises:
      ValueError, TypeError: as `q_map`.

    >>> round(float(c_map("relu", 1.0, 1.0, 2.0)), 6)  # 1 - 1 / pi
    0.68169
    """
    w_variance, b_variance = variances(w_variance, b_variance)
    return _c_map(activations.get(activation), gap, _positive("q", q), w_variance, b_variance)


def chi_perp(activation: Phi, q: Any, w_variance: Any) -> jax.Array:
    """`w_variance D(q)`: growth per layer of a squared gradient, and of a small angle squared.

    Args, Raises: as `q_map`.
    """
    return variances(w_variance, 0.0)[0] * slope_moment(activation, q)


def chi_par(activation: Phi, q: Any, w_variance: Any) -> jax.Array:
    """`w_variance M'(q)`, the slope of the q-map: below 1 the length is stable.

    Args, Raises: as `q_map`.
    """
    w_variance = variances(w_variance, 0.0)[0]
    return w_variance * _average(activations.get(activation), _positive("q", q), "slope")


def variances(w_variance: Any, b_variance: Any) -> tuple[Any, Any]:
    """Return both if they are at least 0 and finite, or raise."""
    for name, value in (("w_variance", w_variance), ("b_variance", b_variance)):
        _validate.numbers(name, value, minimum=0.0)
    return w_variance, b_variance


def next_log_q(log_square: Any, log_w: Any, b_variance: Any) -> jax.Array:
    """`log(w M + b)` from logs of `M` and `w`, with its derivative by `b` where that is 0."""
    weighted = log_w + log_square
    positive = b_variance > 0
    both = jnp.logaddexp(weighted, jnp.log(jnp.where(positive, b_variance, 1.0)))
    inverse = jnp.exp(-jnp.where(jnp.isfinite(weighted), weighted, 0.0))
    return jnp.where(positive, both, weighted + b_variance * jax.lax.stop_gradient(inverse))


def _positive(name, value):
    _validate.numbers(name, value, minimum=0.0, above=True)
    return value


@in_float64
@functools.partial(jax.jit, static_argnums=(0, 2))
def _average(phi, q, which):
    q = jnp.asarray(q, jnp.float64)
    found = moments.statistics(phi, jnp.log(q))
    if which == "slope":
        return found.elasticity * jnp.exp(found.log_square) / q
    return jnp.exp(getattr(found, which))


@in_float64
@functools.partial(jax.jit, static_argnums=0)
def _c_map(phi, gap, q, w_variance, b_variance):
    q = jnp.asarray(q, jnp.float64)
    log_q, gap = jnp.broadcast_arrays(jnp.log(q), jnp.asarray(gap, jnp.float64))
    square = w_variance * jnp.exp(moments.statistics(phi, log_q).log_square)
    return moments.pair(phi, log_q, gap)[0] * square / (square + b_variance)
