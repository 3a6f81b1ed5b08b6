"""What mean-field theory predicts of a signal and a gradient, transients included."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgrad import _validate, theory
from jaxgrad._numerics import in_float64
from jaxgrad.layers import Layer, Mlp, check_is_layer
from jaxgrad.propagation._result import Propagation, unknown
from jaxgrad.theory import Moments


def predict(
    layer: Layer,
    inputs: Moments | Float[Array | np.ndarray, "batch *shape"],
    *,
    pairs: bool = False,
    tokens: bool = False,
) -> Propagation:
    """Predict what a signal and a gradient do in a network of infinite width.

    The program is compiled once for each structure of the layer and shapes of the arrays.

    Args:
      layer: any layer that has a prediction; the readout of an `mlp` is ignored.
      inputs: moments of the inputs, whose arrays may have any shape `[...]`, or an array of inputs
        whose moments are taken, see `jaxgrad.theory.moments_of`.
      pairs: whether to follow the gap of two examples, too. It is always followed if `inputs` are
        moments that have one, and costs more than all the rest.
      tokens: whether the one spatial axis of an array is one of tokens, which attention needs. Then
        the moments are means over tokens, and their correlation is followed.

    Returns:
      `Propagation` with fields `[depth, ...]`. Called with numbers, it holds NumPy arrays of
      float64.

    >>> from jaxgrad import layers
    >>> prediction = predict(layers.mlp(1, 50, "relu", w_variance=2.0), Moments(log_q=0.0))
    >>> round(float(prediction.log_ratio[-1]), 12)
    0.0
    """
    check_is_layer("layer", layer)
    _validate.flag("pairs", pairs)
    _validate.flag("tokens", tokens)
    if isinstance(inputs, Moments):
        _validate.tree("inputs", inputs)
    else:
        axes = "[batch, *spatial, features]"
        inputs = _validate.floating("inputs", inputs, 2, axes, more=True)
        inputs = theory.moments_of(inputs, gap=pairs, tokens=tokens)
    if pairs and inputs.gap is None:
        raise ValueError(
            "inputs must have a gap to follow pairs, got None; pass for example gap=1.0, examples "
            "without correlation"
        )
    return _predict(layer, inputs)


@in_float64
@jax.jit
def _predict(layer, moments):
    moments = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), moments)
    if isinstance(layer, Mlp):
        return _predict_mlp(layer, moments)
    each = layer.predict_each(moments)

    def joined(name):
        parts = [getattr(part, name) for part in each]
        # A part may be the first to depend on the position.
        shape = np.broadcast_shapes(*(part.shape[1:] for part in parts))
        return jnp.concatenate([jnp.broadcast_to(a, (len(a), *shape)) for a in parts])

    log_q, log_gradient = joined("log_q"), joined("log_gradient")
    result = unknown(log_q)._replace(
        log_activation=log_q,
        log_gradient=log_gradient,
        log_last_gradient=jnp.zeros_like(log_gradient),
    )
    if moments.gap is not None:
        result = result._replace(gap=joined("gap"))
    # Only moments with tokens say how alike they become.
    if moments.tokens is None:
        return result
    gaps = [jnp.broadcast_to(part.tokens.gap, part.log_q.shape) for part in each]
    return result._replace(token_gap=jnp.concatenate(gaps))


def _predict_mlp(layer, moments):
    """Follow moments through one scan, pre-activations included."""
    # q_l = w_variance M(q_{l-1}) + b_variance, by the two parts of one layer.
    weights, activation = layer.layers.block.layers
    log_w = jnp.log(jnp.asarray(layer.w_variance, jnp.float64))
    shape = np.broadcast_shapes(*(leaf.shape for leaf in jax.tree.leaves(moments)))
    moments = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, shape), moments)

    def step(carry, _):
        log_q, gap, log_gradient = carry
        z = weights.predict(Moments(log_q, gap=gap))
        # The gradient is taken at z_1: slopes count from there on, weights between the layers.
        h = activation.predict(dataclasses.replace(z, log_gradient=jnp.zeros_like(log_q)))
        log_gradient = log_gradient + h.log_gradient
        record = unknown(log_q)._replace(
            log_preactivation=z.log_q,
            log_activation=h.log_q,
            log_gradient=log_gradient,
            log_last_gradient=h.log_gradient,
        )
        record = record if gap is None else record._replace(gap=z.gap)
        return (h.log_q, h.gap, log_gradient + log_w), record

    start = (moments.log_q, moments.gap, jnp.zeros(shape))
    return jax.lax.scan(step, start, length=layer.depth)[1]
