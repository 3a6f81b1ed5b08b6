"""Embeddings of whole numbers, and positions that are added to the tokens of an example."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgrad import _validate
from jaxgrad.layers._layer import Layer, layer, number, static
from jaxgrad.layers._log_space import Scaled, add, linearize

PositionKind = Literal["learned", "sinusoidal"]


@layer
class Embedding(Layer):
    """One vector for each id; see `embedding`."""

    vocabulary: int = static()
    features: int = static()
    variance: Any

    def draw(self, shape, *, key, dtype):
        table = _draw((self.vocabulary, self.features), self.variance, key, dtype)
        return {"embedding": table}, (*shape, self.features)

    def apply(self, params, state, h, *, key=None):
        if not jnp.issubdtype(h.dtype, jnp.integer):
            raise TypeError(
                f"x must be ids of integer type for an embedding, got {h.dtype}; make it the first "
                "layer of a network, and pass ids"
            )
        # An id that is traced is not checked before; if it is too large, its vector is NaN.
        return jnp.take(params["embedding"], h, axis=0, mode="fill"), state


def embedding(vocabulary: int, features: int, *, variance: Any = 1.0) -> Embedding:
    """Make a layer that maps ids, whole numbers from 0, to vectors.

    Examples of shape `(*shape,)` become `(*shape, features)`. It can only be the first layer of a
    network, whose `apply` then takes an array of integers:

    >>> from jaxgrad import layers
    >>> network = layers.sequential(layers.embedding(10, 4), layers.dense(2))
    >>> params, _ = layers.init(network, (3,), key=jax.random.key(0))
    >>> layers.apply(network, params, None, jnp.asarray([[1, 9, 0]]))[0].shape
    (1, 3, 2)

    Its parameters are `{"embedding": [vocabulary, features]}`.

    Args:
      vocabulary: number of ids.
      features: of each vector.
      variance: of its elements, at least 0, may be traced.
    """
    _validate.scalar("variance", variance, minimum=0.0)
    vocabulary = _validate.integer("vocabulary", vocabulary, 1)
    return Embedding(vocabulary, _validate.integer("features", features, 1), number(variance))


@layer
class Positions(Layer):
    """A vector for each position, added to the signal; see `positions`."""

    kind: PositionKind = static()
    variance: Any

    def draw(self, shape, *, key, dtype):
        if len(shape) != 2:
            raise ValueError(
                f"shape must be (tokens, features) for positions, got {tuple(shape)}; give each "
                "example an axis of tokens"
            )
        # Sines are computed anew for any number of tokens.
        if self.kind == "sinusoidal":
            return {}, shape
        return {"positions": _draw(shape, self.variance, key, dtype)}, shape

    def apply(self, params, state, h, *, key=None):
        return h + jnp.broadcast_to(self._table(params, h), h.shape), state

    def linearize(self, params, h, *, key=None):
        table = jnp.broadcast_to(self._table(params, h.value), h.value.shape)
        zeros = Scaled(jnp.zeros_like(h.value), jnp.zeros_like(h.log_scale))
        # The derivative of a sum is the same for every signal.
        _, derivative = linearize(self, params, zeros, key=key)
        return add(h, Scaled(table, zeros.log_scale)), derivative

    def _table(self, params, h):
        if self.kind == "learned":
            return params["positions"][None].astype(h.dtype)
        table = sinusoids(*h.shape[1:]) * jnp.sqrt(2 * jnp.asarray(self.variance))
        return table[None].astype(h.dtype)


def positions(kind: PositionKind = "learned", *, variance: Any = 1.0) -> Positions:
    """Make a layer that adds a vector for each position to examples of shape `(tokens, features)`.

    Args:
      kind: "learned" for parameters `{"positions": [tokens, features]}`, drawn from a normal
        distribution; "sinusoidal" for sines and cosines of wavelengths from `2 pi` to
        `10000 * 2 pi`, without parameters.
      variance: mean square of the vectors' elements, at least 0, may be traced. The original
        sinusoids have 0.5.

    Source: Vaswani et al. (2017), sec. 3.5.

    >>> from jaxgrad import layers
    >>> layer = positions("sinusoidal", variance=0.5)
    >>> h, _ = layers.apply(layer, {}, None, jnp.zeros((1, 2, 4)))
    >>> [round(float(a), 4) for a in h[0, 1]]
    [0.8415, 0.5403, 0.01, 0.9999]
    """
    _validate.choice("kind", kind, ("learned", "sinusoidal"))
    _validate.scalar("variance", variance, minimum=0.0)
    return Positions(kind, number(variance))


def sinusoids(tokens: int, features: int) -> Float[Array, "tokens features"]:
    """Return sines in the even features and cosines in the odd ones, of `t / 10000^(2 i / d)`."""
    pair = np.arange(features) // 2
    angle = np.arange(tokens)[:, None] * np.exp(-math.log(10_000) * 2 * pair / features)[None]
    return jnp.asarray(np.where(np.arange(features) % 2, np.cos(angle), np.sin(angle)), jnp.float32)


def _draw(shape, variance, key, dtype):
    drawn = jax.random.normal(key, shape, dtype)
    return drawn * jnp.sqrt(variance).astype(dtype)
