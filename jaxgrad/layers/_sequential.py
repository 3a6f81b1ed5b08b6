"""Layers one after the other."""

import functools
import itertools
from typing import Any

import jax

from jaxgrad._numerics import in_float64
from jaxgrad.layers._layer import Layer, check_is_layer, fold_key, layer
from jaxgrad.layers._log_space import IDENTITY, compose


@layer
class Sequential(Layer):
    """One layer after the other; see `sequential`."""

    layers: Any

    @property
    def homogeneous(self) -> bool:
        return all(part.homogeneous for part in self.layers)

    @property
    def mixes(self) -> bool:
        return any(part.mixes for part in self.layers)

    def draw(self, shape, *, key, dtype):
        drawn = []
        for i, part in enumerate(self.layers):
            params, shape = part.draw(shape, key=fold_key(key, i), dtype=dtype)
            drawn.append(params)
        return tuple(drawn), shape

    def init_state(self, params):
        return tuple(part.init_state(params[i]) for i, part in enumerate(self.layers))

    def apply(self, params, state, h, *, key=None):
        before = (None,) * len(self.layers) if state is None else state
        after = []
        for i, part in enumerate(self.layers):
            h, part_state = part.apply(params[i], before[i], h, key=fold_key(key, i))
            after.append(part_state)
        return h, None if state is None else tuple(after)

    # Part i draws from fold_in(key, i), here and wherever else there is a key.
    def linearize(self, params, h, *, key=None):
        derivatives = []
        for i, part in enumerate(self.layers):
            h, derivative = part.linearize(params[i], h, key=fold_key(key, i))
            derivatives.append(derivative)
        return h, functools.reduce(compose, derivatives, IDENTITY)

    def stacks(self, params, *, key=None):
        each = (part.stacks(params[i], key=fold_key(key, i)) for i, part in enumerate(self.layers))
        return tuple(itertools.chain.from_iterable(each))

    def predict_each(self, moments):
        each = ()
        for part in self.layers:
            each += part.predict_each(moments)
            moments = jax.tree.map(lambda a: a[-1], each[-1])
        return each

    @in_float64
    def predict(self, moments):
        for part in self.layers:
            moments = part.predict(moments)
        return moments


def sequential(*layers: Layer) -> Sequential:
    """Make a layer of several, one after the other; none at all is the identity.

    Layer `i` of 0, 1, ... draws from `fold_in(key, i)`. Parameters and state are tuples with one
    entry for each layer.

    >>> import jax
    >>> from jaxgrad.layers import activation, dense, init
    >>> block = sequential(dense(4), activation("relu"))
    >>> params, state = init(block, (3,), key=jax.random.key(0))
    >>> len(params), state
    (2, ((), ()))
    """
    for part in layers:
        check_is_layer("layers", part)
    return Sequential(layers)
