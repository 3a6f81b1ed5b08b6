"""Fully connected networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations
from jaxgrad.activations import Activation
from jaxgrad.layers._activation import Elementwise, activation_parameters
from jaxgrad.layers._layer import fold_key, layer, static
from jaxgrad.layers._repeat import Repeat
from jaxgrad.layers._sequential import Sequential
from jaxgrad.layers._weights import (
    Dense,
    Parameterization,
    Weights,
    check_initializer,
    check_shape,
    check_weights,
)


@layer
class Mlp(Weights):
    """A fully connected network; see `mlp`. `features` is the width of the layers."""

    bias_init: Any
    depth: int = static()
    function: Activation = static()
    out_features: int | None = static()

    @property
    def homogeneous(self) -> bool:
        """If the activation is and there are no biases."""
        return not self.bias and Elementwise(self.function).homogeneous

    def draw(self, shape, *, key, dtype):
        if len(shape) != 1:
            raise ValueError(
                f"shape must be (in_features,) for an mlp, got {tuple(shape)}; flatten the inputs"
            )
        (in_features,), width = shape, self.features
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.depth + 1))

        def draw(key_layer, n_in):
            params = self._draw_layer(key_layer, n_in, width, dtype)
            trained = activation_parameters(self.function, dtype)
            return params | ({"activation": trained} if trained else {})

        # A loop, not a vmap, and a square first layer in it: the draws take longest to compile.
        square = in_features == width
        hidden = jax.lax.map(lambda key_layer: draw(key_layer, width), keys[2 - square :])
        if square:
            first, hidden = (
                jax.tree.map(lambda a, part=part: a[part], hidden) for part in (0, np.s_[1:])
            )
        else:
            first = draw(keys[1], in_features)
        params = {"first": first, "hidden": hidden}
        if self.out_features is None:
            return params, (width,)
        readout = dataclasses.replace(self, w_variance=1.0)
        params["readout"] = readout._draw_layer(keys[0], width, self.out_features, dtype)
        return params, (self.out_features,)

    def apply(self, params, state, h, *, key=None):
        def act(h, layer_params, index):
            return self.activate(layer_params, self.preactivate(layer_params, h), index, key=key)

        def step(carry, layer_params):
            h, index = carry
            return (act(h, layer_params, index), index + 1), None

        h = act(h, params["first"], 1)
        (h, _), _ = jax.lax.scan(step, (h, 2), params["hidden"])
        if self.out_features is not None:
            h, _ = self._readout.apply(params["readout"], None, h)
        return h, state

    def preactivate(self, layer_params, h):
        """Return `z = h W + b` of one layer."""
        return self.scale_and_shift(layer_params, h @ layer_params["kernel"])

    def activate(self, layer_params, z, index, *, key=None):
        """Return `phi(z)` of layer `index`, from 1, which says what a randomized one draws."""
        trained = layer_params.get("activation", {})
        return Elementwise(self.function).apply(trained, None, z, key=fold_key(key, index))[0]

    def stacks(self, params, *, key=None):
        # The first layer may have another shape than the others, which are copies of each other.
        first = jax.tree.map(lambda a: a[None], params["first"])
        parts, pairs = [], []
        for layer_params, depth in ((first, 1), (params["hidden"], self.depth - 1)):
            if depth:
                parts.append(dataclasses.replace(self.layers, depth=depth))
                rest = {name: layer_params[name] for name in layer_params if name != "activation"}
                pairs.append((rest, layer_params.get("activation", {})))
        if self.out_features is not None:
            parts.append(self._readout)
            pairs.append(params["readout"])
        return Sequential(tuple(parts)).stacks(pairs, key=key)

    def predict_each(self, moments):
        each = self.layers.predict_each(moments)
        if self.out_features is None:
            return each
        return each + self._readout.predict_each(jax.tree.map(lambda a: a[-1], each[-1]))

    def predict(self, moments):
        moments = self.layers.predict(moments)
        return moments if self.out_features is None else self._readout.predict(moments)

    @property
    def layers(self) -> Repeat:
        """The layers without the readout, as equal blocks of a dense layer and an activation."""
        return Repeat(Sequential((self._dense(), Elementwise(self.function))), self.depth, None)

    @property
    def _readout(self):
        return self._dense(features=self.out_features, w_variance=1.0)

    def _dense(self, **changes):
        weights = {field.name: getattr(self, field.name) for field in dataclasses.fields(Dense)}
        return Dense(**(weights | changes))

    def _draw_layer(self, key, n_in, n_out, dtype):
        if not self.bias:
            return {"kernel": self.draw_kernel(key, (n_in, n_out), dtype)}
        key_kernel, key_bias = jax.random.split(key)
        kernel = self.draw_kernel(key_kernel, (n_in, n_out), dtype)
        if self.bias_init is None:
            return {"kernel": kernel, "bias": self.draw_bias(key_bias, n_out, dtype)}
        bias = check_shape("bias_init", self.bias_init(key_bias, (n_out,), dtype), (n_out,))
        if self.parameterization == "standard":
            bias = (bias * jnp.sqrt(self.b_variance)).astype(dtype)
        return {"kernel": kernel, "bias": bias}


def mlp(
    width: int,
    depth: int,
    activation: str | Activation | Callable[..., Any] = "tanh",
    *,
    out_features: int | None = None,
    w_variance: Any = 1.0,
    b_variance: Any = 0.0,
    bias: bool = False,
    kernel_init: Callable[..., Any] | None = None,
    bias_init: Callable[..., Any] | None = None,
    parameterization: Parameterization = "standard",
) -> Mlp:
    """Make a fully connected network of `depth` layers `h_l = phi(h_{l-1} W_l + b_l)`.

    Its parameters are `{"first": layer, "hidden": layers, "readout": layer}`. A layer is
    `{"kernel": [in, out], "bias": [out], "activation": {name: []}}`, with `bias` if there are
    biases and `activation` if the activation has trained parameters. `hidden` holds the layers 2 to
    `depth` with a leading axis of `depth - 1`, so that one scan runs over them and a thousand
    layers compile as fast as four.

    Layer `l` draws from `fold_in(key, l)`, so a deeper network of the same key begins with the
    layers of the shallower one.

    Args:
      width: units of every layer.
      depth: number of layers, each a matrix product and an activation.
      activation: see `jaxgrad.activations.get`.
      out_features: outputs of a linear readout after the last layer; `None` for no readout. The
        readout has `w_variance` 1 and the biases of the other layers.
      w_variance, b_variance, bias, kernel_init, parameterization: as of `dense`.
      bias_init: initializer of unit variance, whose variance is multiplied by `b_variance`; `None`
        for a normal one.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> from jaxgrad import layers
    >>> network = mlp(8, 5, "relu", out_features=2, bias=True)
    >>> params, _ = layers.init(network, (3,), key=jax.random.key(0))
    >>> params["hidden"]["kernel"].shape, params["readout"]["bias"].shape
    ((4, 8, 8), (2,))
    >>> layers.apply(network, params, None, jnp.ones((6, 3)))[0].shape
    (6, 2)
    """
    width = _validate.integer("width", width, 1)
    depth = _validate.integer("depth", depth, 1)
    if out_features is not None:
        out_features = _validate.integer("out_features", out_features, 1)
    weights = check_weights(width, w_variance, b_variance, bias, kernel_init, parameterization)
    if bias_init is not None and not bias:
        raise ValueError("bias_init must be None without biases, got one; pass bias=True")
    if bias_init is not None and not _validate.is_traced(b_variance) and b_variance == 0:
        raise ValueError(
            "b_variance must be above 0 with bias_init, whose variance it multiplies, got 0; pass "
            "b_variance=1.0 to leave the draws as they are"
        )
    bias_init = check_initializer("bias_init", bias_init)
    return Mlp(*weights, bias_init, depth, activations.get(activation), out_features)
