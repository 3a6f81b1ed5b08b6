"""A branch that is added to its input."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jaxgrad import _validate
from jaxgrad._numerics import in_float64, weighted_log_sum_exp
from jaxgrad.layers._layer import Layer, check_is_layer, layer, number
from jaxgrad.layers._log_space import Derivative, add
from jaxgrad.layers._weights import LARGE


@layer
class Residual(Layer):
    """`h + scale * branch(h)`; see `residual`."""

    branch: Any
    scale: Any

    @property
    def homogeneous(self) -> bool:
        return self.branch.homogeneous

    @property
    def mixes(self) -> bool:
        return self.branch.mixes

    def draw(self, shape, *, key, dtype):
        params, after = self.branch.draw(shape, key=key, dtype=dtype)
        if tuple(after) != tuple(shape):
            raise ValueError(
                f"branch must keep the shape {tuple(shape)} of what it is added to, got "
                f"{tuple(after)}; end it with a layer of {shape[-1]} units"
            )
        return params, shape

    def init_state(self, params):
        return self.branch.init_state(params)

    def apply(self, params, state, h, *, key=None):
        added, state = self.branch.apply(params, state, h, key=key)
        # A scale of float32 must not widen a signal of half precision.
        return h + (self.scale * added).astype(h.dtype), state

    def linearize(self, params, h, *, key=None):
        added, derivative = self.branch.linearize(params, h, key=key)

        def push(tangent):
            return add(tangent, derivative.push(tangent), self.scale)

        def pull(cotangent):
            scaled = cotangent._replace(value=self.scale * cotangent.value)
            gradient, log_square = derivative.pull(scaled)
            return add(cotangent, gradient), log_square

        return add(h, added, self.scale), Derivative(push, pull, derivative.units)

    @in_float64
    def predict(self, moments):
        # Whether the branch has weights shows in what it makes of moments that are not fresh.
        added = self.branch.predict(dataclasses.replace(moments, fresh=False))
        if not added.fresh:
            raise ValueError(
                "branch must have weights in every path from its input, so that it is independent "
                "of what it is added to, got one without; put a dense layer into it"
            )
        scale = jnp.asarray(self.scale, float)
        # E (h + s b)^2 = E h^2 + s^2 E b^2 + 2 s E h E b, with h and b independent.
        log_q = weighted_log_sum_exp(
            (1.0, scale**2, 2 * scale * moments.mean * added.mean),
            (moments.log_q, added.log_q, (moments.log_q + added.log_q) / 2),
        )
        # Means and gaps are relative to the size of their part, and become so to that of the sum.
        share, added_share = (jnp.minimum(m.log_q - log_q, LARGE) for m in (moments, added))
        gap = None
        if moments.gap is not None and added.gap is not None:
            gap = moments.gap * jnp.exp(share) + scale**2 * added.gap * jnp.exp(added_share)
        mean = moments.mean * jnp.exp(share / 2) + scale * added.mean * jnp.exp(added_share / 2)
        log_gradient = weighted_log_sum_exp(
            (1.0, scale**2), (moments.log_gradient, added.log_gradient)
        )
        gaussian = moments.gaussian and added.gaussian
        # `fresh` stays that of the input, which reaches the output without weights.
        return dataclasses.replace(
            moments, log_q=log_q, log_gradient=log_gradient, mean=mean, gap=gap, gaussian=gaussian
        )


def residual(branch: Layer, scale: Any = 1.0) -> Residual:
    """Make a layer `h + scale * branch(h)`, with the parameters of the branch.

    Args:
      branch: a layer that keeps the shape of its input and, to be predicted, has weights.
      scale: one number, may be traced.

    Source: He, Zhang, Ren, Sun (2016), eq. 1; the prediction as in Yang, Schoenholz (2017), by the
    independence of the branch's weights.

    >>> from jaxgrad.layers import dense
    >>> from jaxgrad.theory import Moments
    >>> layer = residual(dense(8, w_variance=0.5), scale=2.0)
    >>> round(float(jnp.exp(layer.predict(Moments(log_q=0.0)).log_q)), 6)
    3.0
    """
    check_is_layer("branch", branch)
    _validate.scalar("scale", scale)
    return Residual(branch, number(scale))
