"""Signals and random tangents, carried forward through every depth."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _numerics, _validate
from jaxgrad.layers import Layer, Mlp, Scaled, Stack, check_fit, check_is_layer
from jaxgrad.propagation import _mlp
from jaxgrad.propagation._result import Propagation, signal_of


def probe(
    layer: Layer,
    params: Any,
    x: Float[Array | np.ndarray, "batch *shape"],
    *,
    key: PRNGKeyArray,
    saturation: Any = 0.02,
    tangent: Float[Array | np.ndarray, "batch *tangent_shape"] | None = None,
) -> Propagation:
    """Carry the signal and one tangent per example forward through every depth.

    The tangent starts as a standard normal change of the input or, for an `mlp`, of the
    pre-activations of its first layer. Its mean square at depth `l` is an unbiased estimate, before
    the log, of the mean squared gradient of that depth. All depths cost one pass.

    The whole batch moves at once, so that batch norm is seen with its effect across examples.
    Dropout and randomized activations draw. The program is compiled once for each structure of the
    layer and shapes of the arrays.

    Args:
      layer: any layer; the readout of an `mlp` is ignored.
      params: from `jaxgrad.layers.init`.
      x: inputs, floating point, finite.
      key: PRNG key of the tangent and of the draws of the layers; not the one that drew `params`.
      saturation: the slope below which a unit counts as saturated, at least 0.
      tangent: the change of the input, of the shape of `x`, or of the first pre-activations of an
        `mlp`, `[batch, width]`. If you pass a tangent, the result is its growth rather than an
        average over directions.

    >>> from jaxgrad import layers
    >>> network = layers.mlp(32, 100, "relu", w_variance=4.0)
    >>> params, _ = layers.init(network, (8,), key=jax.random.key(0))
    >>> result = probe(network, params, jnp.ones((4, 8)), key=jax.random.key(1))
    >>> growth = jnp.diff(result.log_gradient).mean() / jnp.log(2)
    >>> bool(abs(growth - 1) < 0.3)
    True
    """
    x = check_arguments(layer, params, x, key=key, saturation=saturation)
    # Whether params fit the layer is checked while tracing, so that later calls do not pay for it.
    if tangent is not None:
        shape = _tangent_shape(layer, x)
        tangent = _validate.floating("tangent", tangent, len(shape), f"{shape}")
        if tangent.shape != shape:
            raise ValueError(
                f"tangent must have shape {shape}, got {tangent.shape}; it changes the first "
                "pre-activations of an mlp, or the input of another layer"
            )
    return _probe(layer, params, x, key, saturation, tangent)


def check_arguments(layer: Any, params: Any, x: Any, *, key: Any, saturation: Any = 0.0) -> Array:
    """Return the inputs as an array, or raise if an argument of a measurement is wrong."""
    check_is_layer("layer", layer)
    _validate.tree("params", params, empty=True)
    if layer.vocabulary is not None:
        raise ValueError(
            "layer must have floating-point inputs, whose changes are followed, got one that "
            "begins with an embedding; pass the layers after it, and as x its vectors"
        )
    x = _validate.floating("x", x, 2, "[batch, *shape]", more=True)
    _validate.key("key", key)
    _validate.scalar("saturation", saturation, minimum=0.0)
    return x


@jax.jit
def _probe(layer, params, x, key, saturation, tangent):
    x = working_inputs(layer, params, x)
    is_mlp = isinstance(layer, Mlp)
    key_tangent, key_layers = (key, key) if is_mlp else jax.random.split(key)
    if tangent is None:
        # A standard normal tangent t has E |J t|^2 = |J|_F^2.
        tangent = jax.random.normal(key_tangent, _tangent_shape(layer, x), jnp.float32)
    tangent = tangent.astype(x.dtype)
    if is_mlp:
        result, _, _ = _mlp.forward(layer, params, x, saturation, key=key_layers, tangent=tangent)
        # A kernel's gradient is the outer product of the input and the gradient at z_1.
        log_square = result.log_example_gradient + jnp.log(jnp.sum(x * x, axis=-1))[None]
        result = result._replace(log_weight_gradient=_numerics.log_mean_exp(log_square))
    else:
        start = Scaled(tangent, jnp.zeros(len(x), x.dtype))
        result, _, _ = forward(layer.stacks(params, key=key_layers), x, saturation, tangent=start)
        result = result._replace(log_last_gradient=jnp.zeros_like(result.log_activation))
    return result._replace(log_gradient=_numerics.log_mean_exp(result.log_example_gradient))


def _tangent_shape(layer, x):
    return (len(x), layer.features) if isinstance(layer, Mlp) else x.shape


def working_inputs(layer: Layer, params: Any, x: Array) -> Array:
    """Return the inputs in the dtype of the measurement, or raise if `params` do not fit them."""
    check_fit(layer, params, None, x)
    # At least float32, so that the logs of a network in half precision are not rounded.
    dtypes = (x.dtype, jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(params)))
    return x.astype(functools.reduce(jnp.promote_types, dtypes))


def forward(
    stacks: Sequence[Stack], x: Array, saturation: Any, *, tangent: Scaled | None = None
) -> tuple[Propagation, tuple[Any, ...], tuple[Any, ...]]:
    """Carry a signal through stacks of layers, with a tangent or, without one, keep the arrays.

    Returns: the signal, with the tangent's size as `log_example_gradient`; for each stack the
    inputs and the outputs of its entries, `[depth, batch, *shape]`, or `None` with a tangent.
    """
    carry, records = (Scaled(x, jnp.zeros(len(x), x.dtype)), tangent), []
    for stack in stacks:

        def step(carry, copy, layer=stack.layer):
            h, tangent = carry
            out, derivative = copy.linearize(layer, h)
            # Both are divided by their size at each entry; the logs remember it.
            out, log_square = out.normalized()
            signal = signal_of(derivative.units, log_square, saturation)
            if tangent is None:
                return (out, None), (signal, h, out)
            tangent, log_tangent = derivative.push(tangent).normalized()
            return (out, tangent), (signal._replace(log_example_gradient=log_tangent), None, None)

        carry, record = stack.scan(step, carry)
        records.append(record)
    signals, inputs, outputs = zip(*records, strict=True)
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *signals), inputs, outputs
