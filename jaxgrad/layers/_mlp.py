"""Fully connected networks."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxgrad import _validate, activations
from jaxgrad.activations import Activation
from jaxgrad.layers._activation import Elementwise
from jaxgrad.layers._composite import Repeat, Sequential
from jaxgrad.layers._layer import Layer, fold_key, layer, static
from jaxgrad.layers._weights import Dense, Parameterization, Weights, weights


@layer
class Mlp(Weights):
    """A fully connected network whose layers have `features` units; see `mlp`."""

    depth: int = static()
    function: Activation = static()
    out_features: int | None = static()

    homogeneous = property(lambda self: self.layers.homogeneous)

    def draw(self, shape, *, key, dtype):
        if len(shape) != 1:
            raise ValueError(
                f"shape must be (in_features,) for an mlp, got {tuple(shape)}; flatten the inputs"
            )
        (in_features,), width = shape, self.features
        keys = fold_key(key, jnp.arange(self.depth + 1))

        def draw(key_layer, n_in):
            params = _draw(self, key_layer, (n_in, width), dtype)
            trained, _ = Elementwise(self.function).draw((width,), key=key_layer, dtype=dtype)
            return params | ({"activation": trained} if trained else {})

        # Draws take the longest to compile: all layers share those of one loop, a first one of
        # equal shape included.
        square = in_features == width
        hidden = jax.lax.map(lambda key_layer: draw(key_layer, width), keys[2 - square :])
        first = jax.tree.map(lambda a: a[0], hidden) if square else draw(keys[1], in_features)
        hidden = jax.tree.map(lambda a: a[1:], hidden) if square else hidden
        params = {"first": first, "hidden": hidden}
        if self.out_features is None:
            return params, (width,)
        readout = _draw(self._readout, keys[0], (width, self.out_features), dtype)
        return params | {"readout": readout}, (self.out_features,)

    def apply(self, params, state, h, *, key=None):
        def step(carry, layer_params):
            h, index = carry
            z = self.scale_and_shift(layer_params, h @ layer_params["kernel"])
            # The index of a layer, from 1, sets its draws.
            trained, key_layer = layer_params.get("activation", {}), fold_key(key, index)
            h, _ = Elementwise(self.function).apply(trained, None, z, key=key_layer)
            return (h, index + 1), None

        carry, _ = step((h, 1), params["first"])
        (h, _), _ = jax.lax.scan(step, carry, params["hidden"])
        # A readout is linear: weights of variance 1 and no activation.
        if self.out_features is not None:
            h, _ = self._readout.apply(params["readout"], None, h)
        return h, state

    # The one that is inherited is for a single layer of weights.
    linearize = Layer.linearize

    def stacks(self, params, *, key=None):
        # The first layer may have another shape than the others, which are copies of each other.
        first = jax.tree.map(lambda a: a[None], params["first"])
        parts, pairs = [], []
        for layer_params, depth in ((first, 1), (params["hidden"], self.depth - 1)):
            if depth:
                parts.append(dataclasses.replace(self.layers, depth=depth))
                rest = dict(layer_params)
                trained = rest.pop("activation", {})
                pairs.append((rest, trained))
        if self.out_features is not None:
            parts.append(self._readout)
            pairs.append(params["readout"])
        return Sequential(tuple(parts)).stacks(pairs, key=key)

    def predict_each(self, moments):
        return self._parts.predict_each(moments)

    def predict(self, moments):
        return self._parts.predict(moments)

    @property
    def layers(self) -> Repeat:
        """The layers without the readout, as equal blocks of a dense layer and an activation."""
        return Repeat(Sequential((self._dense(), Elementwise(self.function))), self.depth, None)

    @property
    def _readout(self):
        return self._dense(features=self.out_features, w_variance=1.0)

    @property
    def _parts(self):
        return Sequential((self.layers, *([] if self.out_features is None else [self._readout])))

    def _dense(self, **changes):
        weights = {field.name: getattr(self, field.name) for field in dataclasses.fields(Dense)}
        return Dense(**(weights | changes))


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
    `depth` with a leading axis of `depth - 1`: one scan runs over them, and a thousand layers
    compile as fast as four. Layer `l` draws from `fold_in(key, l)`, so a deeper network of the same
    key begins with the layers of the shallower one.

    Args:
      width: units of every layer.
      depth: number of layers, each a matrix product and an activation.
      activation: see `jaxgrad.activations.get`.
      out_features: outputs of a linear readout after the last layer; `None` for no readout. The
        readout has `w_variance` 1, and biases as the other layers.
      w_variance, b_variance, bias, kernel_init, parameterization: as of `dense`.
      bias_init: initializer of unit variance, whose variance is multiplied by `b_variance`; `None`
        for a normal one.

    >>> from jaxgrad import layers
    >>> network = mlp(8, 5, "relu", out_features=2, bias=True)
    >>> params, _ = layers.init(network, (3,), key=jax.random.key(0))
    >>> params["hidden"]["kernel"].shape, params["readout"]["bias"].shape
    ((4, 8, 8), (2,))
    """
    width = _validate.integer("width", width, 1)
    fields = weights(width, w_variance, b_variance, bias, kernel_init, parameterization, bias_init)
    if out_features is not None:
        out_features = _validate.integer("out_features", out_features, 1)
    return Mlp(
        **fields,
        depth=_validate.integer("depth", depth, 1),
        function=activations.get(activation),
        out_features=out_features,
    )


def _draw(weights, key, shape, dtype):
    # A kernel without biases takes the whole key.
    keys = jax.random.split(key) if weights.bias else (key, None)
    return weights.draw_weights(keys, shape, dtype)
