"""Layers of one protocol: how each is drawn, what it computes, and what theory predicts of it.

A network is a `Layer`. The functions of this module make layers; `sequential`, `residual` and
`repeat` make layers of layers; `mlp` makes a fully connected network. `init` draws the parameters
of any layer and `apply` computes its outputs:

>>> import jax, jax.numpy as jnp
>>> from jaxgrad import layers
>>> network = layers.sequential(layers.dense(8), layers.activation("relu"), layers.dense(3))
>>> params, state = layers.init(network, (4,), key=jax.random.key(0))
>>> outputs, state = layers.apply(network, params, state, jnp.ones((32, 4)))
>>> outputs.shape
(32, 3)

A layer is a pytree whose leaves are its hyper-parameters, so that they can be arguments of a
compiled program and swept by `jax.vmap`.

All functions raise `ValueError` or `TypeError` if an argument is not as described, or if layers,
shapes and moments do not fit each other. A layer of your own is a class with these methods:

>>> import dataclasses
>>> from jaxgrad.theory import Moments
>>> @layers.layer
... class Gain(layers.Layer):
...     factor: float
...
...     homogeneous = True
...
...     def draw(self, shape, *, key, dtype):
...         return {}, shape
...
...     def apply(self, params, state, h, *, key=None):
...         return self.factor * h, state
...
...     def predict(self, moments):
...         growth = 2 * jnp.log(self.factor)
...         return dataclasses.replace(
...             moments,
...             log_q=moments.log_q + growth,
...             log_gradient=moments.log_gradient + growth,
...         )
>>> block = layers.sequential(layers.dense(8), layers.activation("relu"), Gain(2.0))
>>> params, _ = layers.init(block, (4,), key=jax.random.key(0))
>>> layers.apply(block, params, None, jnp.ones((3, 4)))[0].shape
(3, 8)
>>> round(float(jnp.exp(block.predict(Moments(log_q=0.0)).log_gradient)), 5)  # 1 * 1/2 * 4
2.0
"""

from jaxgrad.layers._activation import Elementwise, activation, beyond_window
from jaxgrad.layers._attention import Attention, attention

# Layers of layers.
from jaxgrad.layers._composite import repeat, residual, sequential
from jaxgrad.layers._convolution import convolution
from jaxgrad.layers._dropout import drop_units, dropout
from jaxgrad.layers._embedding import embedding, positions
from jaxgrad.layers._gated import gated

# The protocol, and the two functions that draw and apply any layer.
from jaxgrad.layers._layer import (
    Layer,
    Params,
    Shape,
    State,
    apply,
    check_fit,
    check_is_layer,
    init,
    layer,
    static,
)

# Signals whose size is carried as a logarithm, with which propagation measures.
from jaxgrad.layers._log_space import Copy, Derivative, Scaled, Stack, Units
from jaxgrad.layers._mlp import Mlp, mlp
from jaxgrad.layers._normalization import batch_norm, layer_norm, rms_norm
from jaxgrad.layers._transformer import ResidualScale, block, residual_scale, transformer
from jaxgrad.layers._weights import dense

__all__ = [
    "Attention",
    "Copy",
    "Derivative",
    "Elementwise",
    "Layer",
    "Mlp",
    "Params",
    "ResidualScale",
    "Scaled",
    "Shape",
    "Stack",
    "State",
    "Units",
    "activation",
    "apply",
    "attention",
    "batch_norm",
    "beyond_window",
    "block",
    "check_fit",
    "check_is_layer",
    "convolution",
    "dense",
    "drop_units",
    "dropout",
    "embedding",
    "gated",
    "init",
    "layer",
    "layer_norm",
    "mlp",
    "positions",
    "repeat",
    "residual",
    "residual_scale",
    "rms_norm",
    "sequential",
    "static",
    "transformer",
]
