"""Models of Flax, Equinox and Haiku with the initializers that these libraries choose.

Each is built for a depth and a width, and classifies images of 8 x 8 pixels. Its blocks are
scanned, so that a deep model compiles as fast as a shallow one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox
import haiku
import jax
import jax.numpy as jnp
from flax import linen, nnx

CLASSES, HEADS = 10, 4


class Model(NamedTuple):
    """A function of a key that returns parameters, and one of these and images `[batch, 64]`."""

    init: Callable[[Any], Any]
    apply: Callable[[Any, Any], Any]


def of_linen(module: linen.Module) -> Model:
    """The two functions of a Linen module."""
    return Model(lambda key: module.init(key, jnp.ones((1, 64))), module.apply)


def stacked(block: Any, depth: int, width: int) -> Any:
    """Linen blocks in a scan, each with parameters drawn for it."""
    axes: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    return linen.scan(block, length=depth, **axes)(width)


class LinenDense(linen.Module):
    """A dense layer, as `linen.scan` takes it."""

    width: int

    @linen.compact
    def __call__(self, x, _):
        return linen.relu(linen.Dense(self.width)(x)), None


class LinenMLP(linen.Module):
    """Dense layers of Linen."""

    depth: int
    width: int

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(self.width)(x)
        x, _ = stacked(LinenDense, self.depth, self.width)(x, None)
        return linen.Dense(CLASSES)(x)


class PreNorm(linen.Module):
    """A transformer's block that normalizes what enters its two branches."""

    width: int

    @linen.compact
    def __call__(self, x, _):
        x = x + linen.MultiHeadDotProductAttention(HEADS)(linen.LayerNorm()(x))
        y = linen.gelu(linen.Dense(2 * self.width)(linen.LayerNorm()(x)))
        y = linen.Dense(self.width)(y)
        return x + y, None


class PostNorm(linen.Module):
    """A transformer's block that normalizes the stream after each branch, as the first ones did."""

    width: int

    @linen.compact
    def __call__(self, x, _):
        x = linen.LayerNorm()(x + linen.MultiHeadDotProductAttention(HEADS)(x))
        y = linen.gelu(linen.Dense(2 * self.width)(x))
        y = linen.Dense(self.width)(y)
        return linen.LayerNorm()(x + y), None


class LinenTransformer(linen.Module):
    """A transformer on the eight rows of an image."""

    block: Any
    depth: int
    width: int

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(self.width)(x.reshape(-1, 8, 8))
        # Attention without positions would see a set of rows.
        x = x + self.param("position", linen.initializers.normal(), (1, 8, self.width))
        x, _ = stacked(self.block, self.depth, self.width)(x, None)
        # Blocks that do not normalize what they return leave that to the end.
        x = linen.LayerNorm()(x) if self.block is PreNorm else x
        return linen.Dense(CLASSES)(x.mean(axis=1))


def equinox_mlp(depth: int, width: int) -> Model:
    """Dense layers of Equinox, stacked by `filter_vmap`."""

    def make(key):
        keys = jax.random.split(key, depth + 2)
        hidden = equinox.filter_vmap(lambda key: equinox.nn.Linear(width, width, key=key))
        first = equinox.nn.Linear(64, width, key=keys[0])
        return first, hidden(keys[2:]), equinox.nn.Linear(width, CLASSES, key=keys[1])

    # What is no array, such as sizes, is the same for all keys.
    rest = equinox.partition(make(jax.random.key(0)), equinox.is_array)[1]

    def apply(params, x):
        first, _, last = equinox.combine(params, rest)

        def step(x, arrays):
            layer = equinox.combine(arrays, rest[1])
            return jax.nn.relu(jax.vmap(layer)(x)), None

        x, _ = jax.lax.scan(step, jax.vmap(first)(x), params[1])
        return jax.vmap(last)(x)

    return Model(lambda key: equinox.filter(make(key), equinox.is_array), apply)


def haiku_mlp(depth: int, width: int) -> Model:
    """Dense layers of Haiku, stacked by `layer_stack`."""

    def network(images):
        def block(x):
            return jax.nn.relu(haiku.Linear(width)(x))

        # The first layer has another shape, so that it is outside of the stack.
        first = haiku.Linear(width)(images)
        x: Any = haiku.experimental.layer_stack(depth)(block)(first)
        return haiku.Linear(CLASSES)(x)

    model = haiku.without_apply_rng(haiku.transform(network))
    return Model(lambda key: model.init(key, jnp.ones((1, 64))), model.apply)


class NnxResidual(nnx.Module):
    """A residual branch of two convolutions, each after a rectifier."""

    def __init__(self, channels, rngs):
        self.first = nnx.Conv(channels, channels, (3, 3), rngs=rngs)
        self.second = nnx.Conv(channels, channels, (3, 3), rngs=rngs)

    def __call__(self, x):
        # The signal is added as it is, so that the identity reaches from end to end.
        y = self.second(nnx.relu(self.first(nnx.relu(x))))
        return x + y


class NnxResNet(nnx.Module):
    """Residual convolutions of NNX without norms, a quarter of the width as channels."""

    def __init__(self, depth, width, key):
        keys, channels = jax.random.split(key, 3), width // 4
        self.stem = nnx.Conv(1, channels, (3, 3), strides=2, rngs=nnx.Rngs(keys[0]))
        self.head = nnx.Linear(16 * channels, CLASSES, rngs=nnx.Rngs(keys[1]))
        make = nnx.vmap(lambda key: NnxResidual(channels, nnx.Rngs(key)))
        self.blocks = make(jax.random.split(keys[2], depth))

    def __call__(self, x):
        x, (graph, states) = self.stem(x.reshape(-1, 8, 8, 1)), nnx.split(self.blocks)
        x, _ = jax.lax.scan(lambda x, state: (nnx.merge(graph, state)(x), None), x, states)
        return self.head(nnx.relu(x).reshape(len(x), -1))


def nnx_resnet(depth: int, width: int) -> Model:
    """An NNX module, whose state is the parameters."""
    graph = nnx.split(NnxResNet(depth, width, jax.random.key(0)))[0]
    return Model(
        lambda key: nnx.split(NnxResNet(depth, width, key))[1],
        lambda state, x: nnx.merge(graph, state)(x),
    )


MODELS: dict[str, Callable[[int, int], Model]] = {
    "Equinox MLP": equinox_mlp,
    "Haiku MLP": haiku_mlp,
    "Linen MLP": lambda depth, width: of_linen(LinenMLP(depth, width)),
    "NNX ResNet": nnx_resnet,
    "Linen pre-norm": lambda depth, width: of_linen(LinenTransformer(PreNorm, depth, width)),
    "Linen post-norm": lambda depth, width: of_linen(LinenTransformer(PostNorm, depth, width)),
}
