"""Signals and random tangents, carried forward through every depth."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _numerics, _validate
from jaxgrad.layers import Layer, Mlp, Scaled, Stack, check_fit, check_is_layer
from jaxgrad.propagation import _mlp
from jaxgrad.propagation._result import Propagation, Signal, signal_of, unknown


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

    Returns:
      `Propagation`. Zero gradients have the log -inf; what is not finite is returned, not raised.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> from jaxgrad import layers
    >>> network = layers.mlp(32, 100, "relu", w_variance=4.0)
    >>> params, _ = layers.init(network, (8,), key=jax.random.key(0))
    >>> result = probe(network, params, jnp.ones((4, 8)), key=jax.random.key(1))
    >>> growth = jnp.diff(result.log_gradient).mean() / jnp.log(2)
    >>> bool(abs(growth - 1) < 0.3)
    True
    """
    x = check_arguments(layer, x, key=key, saturation=saturation)
    # Whether params fit the layer is checked while tracing, so that later calls do not pay for it.
    if tangent is not None:
        shape = (len(x), layer.features) if isinstance(layer, Mlp) else x.shape
        tangent = _validate.floating("tangent", tangent, len(shape), f"{shape}")
        if tangent.shape != shape:
            raise ValueError(
                f"tangent must have shape {shape}, got {tangent.shape}; it changes the first "
                "pre-activations of an mlp, or the input of another layer"
            )
    return _probe(layer, params, x, key, saturation, tangent)


def check_arguments(layer: Any, x: Any, *, key: Any, saturation: Any = 0.0) -> Array:
    """Return the inputs as an array, or raise if an argument of a measurement is wrong."""
    check_is_layer("layer", layer)
    x = _validate.floating("x", x, max(np.ndim(x), 2), "[batch, *shape]")
    _validate.key("key", key)
    _validate.scalar("saturation", saturation, minimum=0.0)
    return x


@jax.jit
def _probe(layer, params, x, key, saturation, tangent):
    x = working_inputs(layer, params, x)
    if isinstance(layer, Mlp):
        return _mlp.probe(layer, params, x, saturation, key=key, tangent=tangent)
    key_tangent, key_layers = jax.random.split(key)
    if tangent is None:
        tangent = jax.random.normal(key_tangent, x.shape, jnp.float32)
    tangent = Scaled(tangent.astype(x.dtype), jnp.zeros(len(x), x.dtype))
    # A standard normal tangent t has E |J t|^2 = |J|_F^2.
    records = forward(layer.stacks(params, key=key_layers), x, saturation, tangent=tangent)
    signal, log_tangent = jax.tree.map(
        lambda *a: jnp.concatenate(a), *((r.signal, r.log_tangent) for r in records)
    )
    log_gradient = _numerics.log_mean_exp(log_tangent)
    return Propagation(
        *signal,
        log_gradient=log_gradient,
        log_weight_gradient=unknown(log_gradient),
        log_last_gradient=jnp.zeros_like(log_gradient),
        gap=unknown(log_gradient),
        log_example_gradient=log_tangent,
    )


def working_inputs(layer: Layer, params: Any, x: Array) -> Array:
    """Return the inputs in the dtype of the measurement, or raise if `params` do not fit them."""
    check_fit(layer, params, None, x)
    # At least float32, so that the logs of a network in half precision are not rounded.
    dtypes = (x.dtype, jnp.float32, *(leaf.dtype for leaf in jax.tree.leaves(params)))
    return x.astype(functools.reduce(jnp.promote_types, dtypes))


class Record(NamedTuple):
    """What the forward pass records of one stack.

    Attributes:
      signal: `[depth]` each.
      log_tangent: log mean square of the tangent over units, `[depth, batch]`; `None` without one.
      inputs, outputs: of each entry, `[depth, batch, *shape]`; `None` with a tangent.
    """

    signal: Signal
    log_tangent: Any
    inputs: Any
    outputs: Any


def forward(
    stacks: Sequence[Stack], x: Array, saturation: Any, *, tangent: Scaled | None = None
) -> list[Record]:
    """Carry a signal through stacks of layers, with a tangent or, without one, keep the arrays."""
    h, records = Scaled(x, jnp.zeros(len(x), x.dtype)), []
    for stack in stacks:

        def step(carry, copy, layer=stack.layer):
            h, tangent = carry
            out, derivative = copy.linearize(layer, h)
            # Both are divided by their size at each entry; the logs remember it.
            out, log_square = out.normalized()
            log_tangent = None
            if tangent is not None:
                tangent, log_tangent = derivative.push(tangent).normalized()
            signal = signal_of(derivative.units, log_square, saturation)
            return (out, tangent), (signal, log_tangent, h if tangent is None else None)

        carry, (signal, log_tangent, inputs) = stack.scan(step, (h, tangent))
        h, tangent = carry
        outputs = None
        if inputs is not None:
            # The outputs of a single entry may have another shape than its inputs.
            outputs = jax.tree.map(lambda a: a[None], h)
            if stack.depth > 1:
                later = jax.tree.map(lambda a: a[1:], inputs)
                outputs = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), later, outputs)
        records.append(Record(signal, log_tangent, inputs, outputs))
    return records
