"""Gated units: products of a linear map and an activation of another one."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxgrad import _validate, activations
from jaxgrad._numerics import in_float64, weighted_log_sum_exp
from jaxgrad.activations import Activation
from jaxgrad.layers._activation import Elementwise
from jaxgrad.layers._composite import Sequential
from jaxgrad.layers._layer import Layer, fold_key, layer, number
from jaxgrad.layers._log_space import Derivative, Scaled, add
from jaxgrad.layers._weights import Dense, weights
from jaxgrad.theory import Moments, Tokens


@layer
class Gated(Layer):
    """`(h W + b) * phi(h V + c)`; see `gated`."""

    value: Any
    gate: Any

    def draw(self, shape, *, key, dtype):
        value, after = self.value.draw(shape, key=fold_key(key, 0), dtype=dtype)
        gate, _ = self.gate.draw(shape, key=fold_key(key, 1), dtype=dtype)
        return {"value": value, "gate": gate}, after

    def apply(self, params, state, h, *, key=None):
        value, _ = self.value.apply(params["value"], None, h)
        gate, _ = self.gate.apply(params["gate"], None, h, key=key)
        return value * gate, state

    def linearize(self, params, h, *, key=None):
        value, of_value = self.value.linearize(params["value"], h)
        gate, of_gate = self.gate.linearize(params["gate"], h, key=key)

        # d(a g) = da g + a dg
        def push(tangent):
            return add(
                _product(of_value.push(tangent), gate), _product(value, of_gate.push(tangent))
            )

        def pull(cotangent):
            by_value, log_square = of_value.pull(_product(cotangent, gate))
            by_gate, log_square_gate = of_gate.pull(_product(cotangent, value))
            return add(by_value, by_gate), jnp.logaddexp(log_square, log_square_gate)

        return _product(value, gate), Derivative(push, pull, of_gate.units)

    @in_float64
    def predict(self, moments):
        value, gate = self.value.predict(moments), self.gate.predict(moments)
        # The two maps are independent, and a product with a centred one is centred.
        gap = None
        if value.gap is not None and gate.gap is not None:
            gap = _joint(value.gap, gate.gap)
        # The gradients by the two factors have independent kernels, so that squares add up.
        by_value = value.log_gradient + gate.log_q
        by_gate = value.log_q + gate.log_gradient
        log_gradient = weighted_log_sum_exp((1.0, 1.0), (by_value, by_gate))
        tokens = value.tokens
        if tokens is not None:
            # A change of one factor, times the other factor.
            parts = (
                (by_value, tokens.change_gap, gate.tokens.gap),
                (by_gate, gate.tokens.change_gap, tokens.gap),
            )
            change_gap = sum(jnp.exp(log - log_gradient) * _joint(*gaps) for log, *gaps in parts)
            token_gap = _joint(tokens.gap, gate.tokens.gap)
            tokens = Tokens(tokens.count, token_gap, change_gap, tokens.width)
        return Moments(
            log_q=value.log_q + gate.log_q,
            log_gradient=log_gradient,
            mean=jnp.zeros_like(value.log_q),
            gap=gap,
            fresh=True,
            tokens=tokens,
        )


def gated(
    features: int,
    activation: str | Activation | Callable[..., Any] = "silu",
    *,
    w_variance: Any = 1.0,
    gate_variance: Any = 1.0,
    b_variance: Any = 0.0,
    bias: bool = False,
    kernel_init: Callable[..., Any] | None = None,
) -> Gated:
    """Make a layer of gated units, `(h W + b) * activation(h V + c)`.

    GLU has the activation "sigmoid", SwiGLU "silu", GeGLU "gelu". The parameters are
    `{"value": {"kernel": [in, features]}, "gate": ({"kernel": [in, features]}, parameters of the
    activation)}`, with a `"bias"` beside each kernel if there are biases.

    Args:
      features: number of units.
      activation: of the gate, see `jaxgrad.activations.get`.
      w_variance: variance of the weights `W` times `fan_in`, at least 0, may be traced.
      gate_variance: that of the weights `V`.
      b_variance, bias, kernel_init: as of `dense`, for both maps.

    Source: Dauphin et al. (2017), eq. 1; Shazeer (2020), eq. 5; the prediction by the independence
    of the two kernels.

    >>> from jaxgrad.theory import Moments
    >>> linear = gated(8, "linear", w_variance=2.0).predict(Moments(log_q=0.0))
    >>> round(float(jnp.exp(linear.log_q)), 6), round(float(jnp.exp(linear.log_gradient)), 6)
    (2.0, 4.0)
    """
    _validate.scalar("gate_variance", gate_variance, minimum=0.0)
    fields = weights(features, w_variance, b_variance, bias, kernel_init, "standard")
    gate = Dense(**(fields | {"w_variance": number(gate_variance)}))
    return Gated(Dense(**fields), Sequential((gate, Elementwise(activations.get(activation)))))


def _joint(gap, other):
    """Return the gap of products of independent factors, whose correlations multiply."""
    return gap + other - gap * other


def _product(a: Scaled, b: Scaled) -> Scaled:
    return Scaled(a.value * b.value, a.log_scale + b.log_scale)
