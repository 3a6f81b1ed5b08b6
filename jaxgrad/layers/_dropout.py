"""Dropout, as a function of an array and as a layer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad._numerics import in_float64
from jaxgrad.layers._layer import Layer, layer, number
from jaxgrad.theory import Tokens


def drop_units(
    x: Float[Array, "*shape"], rate: Any, *, key: PRNGKeyArray | None
) -> Float[Array, "*shape"]:
    """Set each element to zero with probability `rate`, and divide the others by `1 - rate`.

    The expectation is `x`, so that nothing needs scaling when dropout is off: without a key nothing
    changes. The rate is at least 0, below 1, and may be traced.

    Source: Srivastava et al. (2014), in the inverted form.

    >>> drop_units(jnp.ones(6), 0.5, key=jax.random.key(0)).tolist()
    [0.0, 0.0, 2.0, 2.0, 0.0, 2.0]
    """
    x = _validate.real("x", x)
    _check_rate(rate)
    if key is None:
        return x
    _validate.key("key", key)
    # Drawn in float32, so that a key gives the same mask in every precision.
    stays = jax.random.uniform(key, x.shape, jnp.float32) < 1 - rate
    return jnp.where(stays, x / jnp.asarray(1 - rate, x.dtype), 0.0)


@layer
class Dropout(Layer):
    """Dropout; see `dropout`."""

    rate: Any

    homogeneous = True

    def draw(self, shape, *, key, dtype):
        return {}, shape

    def apply(self, params, state, h, *, key=None):
        return drop_units(h, self.rate, key=key), state

    @in_float64
    def predict(self, moments):
        # E (mask / keep)^2 = 1 / keep, and the masks of two examples are independent.
        keep = 1 - jnp.asarray(self.rate, float)
        tokens = moments.tokens
        if tokens is not None:
            # Tokens draw masks of their own, too.
            gap, change_gap = ((1 - keep) + keep * a for a in (tokens.gap, tokens.change_gap))
            tokens = Tokens(tokens.count, gap, change_gap, tokens.width)
        return dataclasses.replace(
            moments,
            log_q=moments.log_q - jnp.log(keep),
            log_gradient=moments.log_gradient - jnp.log(keep),
            mean=moments.mean * jnp.sqrt(keep),
            gap=None if moments.gap is None else (1 - keep) + keep * moments.gap,
            gaussian=False,
            tokens=tokens,
        )


def dropout(rate: Any) -> Dropout:
    """Make a layer of `drop_units`, in which each example draws its own mask.

    The prediction is that of dropout switched on.

    Source of the prediction: Schoenholz et al. (2017), sec. 4.
    """
    _check_rate(rate)
    return Dropout(number(rate))


def _check_rate(rate):
    _validate.scalar("rate", rate, minimum=0.0)
    if not _validate.is_traced(rate) and rate >= 1:
        raise ValueError(
            f"rate must be below 1, got {rate}; it is the share of units that are set to zero"
        )
