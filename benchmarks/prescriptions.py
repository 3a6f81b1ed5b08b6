"""Twelve deep models with faulty or default initial scales, before and after `jaxgrad.prescribe`.

Run `python -m benchmarks.prescriptions`. For each model it prints the growth per block of signal
and gradient in the stream, before and after, the text of the prescription, and the loss on real
images (scikit-learn's digits) after the same short training with the same learning rate. The last
lines say in how many models growth per block is 1 +- 2 % forward and 1 +- 5 % backward.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx

import jaxgrad
from experiments import _kit as kit

DEPTH, WIDTH, BATCH, HEADS, STEPS = 48, 48, 64, 4, 60
FORWARD, BACKWARD = 0.02, 0.05


class Model(NamedTuple):
    """Parameters, a function of them and of images `[batch, 64]` that returns logits, and steps."""

    apply: Callable[[Any, Any], Any]
    params: Any
    steps: int = 200


def normal(key, shape, variance, fan_in):
    """Draw weights of a variance in units of 1 / fan-in."""
    return jax.random.normal(key, shape) * (variance / fan_in) ** 0.5


def plain(activation, variance):
    """A multi-layer perceptron in a scan."""

    def make(key):
        keys = jax.random.split(key, 3)
        params = {
            "first": normal(keys[0], (64, WIDTH), 1.0, 64),
            "blocks": normal(keys[1], (DEPTH, WIDTH, WIDTH), variance, WIDTH),
            "last": normal(keys[2], (WIDTH, 10), 1.0, WIDTH),
        }

        def apply(params, x):
            x = x @ params["first"]
            x, _ = jax.lax.scan(lambda x, w: (activation(x @ w), None), x, params["blocks"])
            return x @ params["last"]

        return Model(apply, params)

    return make


def convolutional(key):
    """A convolutional network whose variance forgets the receptive field."""
    keys = jax.random.split(key, 3)
    channels = 8
    params = {
        "first": normal(keys[0], (3, 3, 1, channels), 2.0, 9),
        "blocks": normal(keys[1], (DEPTH, 3, 3, channels, channels), 2.0, channels),
        "last": normal(keys[2], (16 * channels, 10), 1.0, 16 * channels),
    }

    def conv(x, w, stride=1):
        numbers, strides = ("NHWC", "HWIO", "NHWC"), (stride, stride)
        return jax.lax.conv_general_dilated(x, w, strides, "SAME", dimension_numbers=numbers)

    def apply(params, x):
        x = conv(x.reshape(-1, 8, 8, 1), params["first"], stride=2)
        step = lambda x, w: (conv(jax.nn.relu(x), w), None)  # noqa: E731
        x, _ = jax.lax.scan(step, x, params["blocks"])
        return x.reshape(len(x), -1) @ params["last"]

    return Model(apply, params, STEPS)


class LinenBlock(linen.Module):
    """A dense layer as `linen.scan` takes it."""

    @linen.compact
    def __call__(self, x, _):
        return linen.relu(linen.Dense(WIDTH)(x)), None


class LinenNetwork(linen.Module):
    """Scanned dense layers with the initializers of Flax."""

    @linen.compact
    def __call__(self, x):
        blocks = linen.scan(
            LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH
        )
        return linen.Dense(10)(blocks()(linen.Dense(WIDTH)(x), None)[0])


class PreNorm(linen.Module):
    """A block of a transformer with normalization before each branch."""

    @linen.compact
    def __call__(self, x, _):
        x = x + linen.MultiHeadDotProductAttention(HEADS)(linen.LayerNorm()(x))
        y = linen.gelu(linen.Dense(2 * WIDTH)(linen.LayerNorm()(x)))
        return x + linen.Dense(WIDTH)(y), None


class LinenTransformer(linen.Module):
    """A pre-norm transformer on the eight rows of an image."""

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(WIDTH)(x.reshape(-1, 8, 8))
        blocks = linen.scan(
            PreNorm, variable_axes={"params": 0}, split_rngs={"params": True}, length=DEPTH
        )
        x = linen.LayerNorm()(blocks()(x, None)[0])
        return linen.Dense(10)(x.mean(axis=1))


def flax_linen(module, steps=200):
    """A Linen module with its default initializers."""

    def make(key):
        return Model(module.apply, module.init(key, jnp.ones((1, 64))), steps)

    return make


class NnxNetwork(nnx.Module):
    """Unrolled layers with the initializers of Flax."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(64, WIDTH, rngs=rngs)])
        self.layers.extend([nnx.Linear(WIDTH, WIDTH, rngs=rngs) for _ in range(DEPTH)])
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = nnx.silu(layer(x))
        return self.head(x)


def flax_nnx(key):
    """An NNX module, whose state is the parameters."""
    graph, state = nnx.split(NnxNetwork(nnx.Rngs(params=key)))
    return Model(lambda state, x: nnx.merge(graph, state)(x), state)


def equinox_mlp(key):
    """The multi-layer perceptron of Equinox with its default initializers."""
    model = equinox.nn.MLP(64, 10, WIDTH, DEPTH, key=key)
    arrays, rest = equinox.partition(model, equinox.is_array)
    return Model(lambda arrays, x: jax.vmap(equinox.combine(arrays, rest))(x), arrays)


def haiku_mlp(key):
    """The multi-layer perceptron of Haiku with its default initializers."""
    sizes = [WIDTH] * DEPTH + [10]
    model = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP(sizes)(x)))
    return Model(model.apply, model.init(key, jnp.ones((1, 64))))


def residual_mlp(key):
    """Residual branches with He's variance and no scale."""
    keys = jax.random.split(key, 4)
    params = {
        "first": normal(keys[0], (64, WIDTH), 1.0, 64),
        "up": normal(keys[1], (DEPTH, WIDTH, 2 * WIDTH), 2.0, WIDTH),
        "down": normal(keys[2], (DEPTH, 2 * WIDTH, WIDTH), 2.0, 2 * WIDTH),
        "last": normal(keys[3], (WIDTH, 10), 1.0, WIDTH),
    }

    def block(x, weights):
        up, down = weights
        return x + jax.nn.relu(x @ up) @ down, None

    def apply(params, x):
        x, _ = jax.lax.scan(block, x @ params["first"], (params["up"], params["down"]))
        return x @ params["last"]

    return Model(apply, params)


def haiku_post_norm(key):
    """A post-norm transformer of Haiku, stacked by `layer_stack`."""

    def block(x):
        def norm(x):
            return haiku.LayerNorm(-1, create_scale=True, create_offset=True)(x)

        init = haiku.initializers.VarianceScaling(1.0)
        attention = haiku.MultiHeadAttention(HEADS, WIDTH // HEADS, w_init=init, model_size=WIDTH)
        x = norm(x + attention(x, x, x))
        y = haiku.Linear(WIDTH)(jax.nn.relu(haiku.Linear(2 * WIDTH)(x)))
        return norm(x + y)

    def network(images):
        x = haiku.Linear(WIDTH)(images.reshape(-1, 8, 8))
        y: Any = haiku.experimental.layer_stack(DEPTH)(block)(x)
        return haiku.Linear(10)(y.mean(axis=1))

    model = haiku.without_apply_rng(haiku.transform(network))
    return Model(model.apply, model.init(key, jnp.ones((1, 64))), STEPS)


class EquinoxBlock(equinox.Module):
    """A pre-norm block of Equinox."""

    norms: list
    attention: equinox.nn.MultiheadAttention
    mlp: equinox.nn.MLP

    def __init__(self, key):
        keys = jax.random.split(key)
        self.norms = [equinox.nn.LayerNorm(WIDTH) for _ in range(2)]
        self.attention = equinox.nn.MultiheadAttention(HEADS, WIDTH, key=keys[0])
        self.mlp = equinox.nn.MLP(WIDTH, WIDTH, 2 * WIDTH, 1, jax.nn.gelu, key=keys[1])

    def __call__(self, x):
        y = jax.vmap(self.norms[0])(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))


def equinox_transformer(key):
    """A pre-norm transformer of Equinox with a small embedding and logits that are too large."""
    keys = jax.random.split(key, 3)
    blocks = equinox.filter_vmap(EquinoxBlock)(jax.random.split(keys[0], DEPTH))
    where = lambda b: (b.attention.query_proj.weight, b.attention.key_proj.weight)  # noqa: E731
    blocks = equinox.tree_at(where, blocks, tuple(6 * w for w in where(blocks)))
    arrays, rest = equinox.partition(blocks, equinox.is_array)
    params = {
        "first": 0.1 * normal(keys[1], (8, WIDTH), 1.0, 8),
        "blocks": arrays,
        "last": normal(keys[2], (WIDTH, 10), 1.0, WIDTH),
    }

    def apply(params, x):
        def step(x, arrays):
            return jax.vmap(equinox.combine(arrays, rest))(x), None

        x, _ = jax.lax.scan(step, x.reshape(-1, 8, 8) @ params["first"], params["blocks"])
        x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-6)
        return x.mean(axis=1) @ params["last"]

    return Model(apply, params, STEPS)


MODELS: dict[str, Callable[[Any], Model]] = {
    "relu MLP, weights doubled": plain(jax.nn.relu, 8.0),
    "tanh MLP, weights doubled": plain(jnp.tanh, 4.0),
    "gelu MLP, LeCun's variance": plain(jax.nn.gelu, 1.0),
    "relu convolutions, receptive field missing in the fan": convolutional,
    "Linen, scanned relu MLP, defaults": flax_linen(LinenNetwork()),
    "NNX, silu MLP, defaults": flax_nnx,
    "Equinox, relu MLP, defaults": equinox_mlp,
    "Haiku, relu MLP, defaults": haiku_mlp,
    "residual relu MLP without scale": residual_mlp,
    "Linen, scanned pre-norm transformer, defaults": flax_linen(LinenTransformer(), STEPS),
    "Haiku, post-norm transformer, LeCun's variance": haiku_post_norm,
    "Equinox, pre-norm transformer, small embedding, large logits": equinox_transformer,
}


class Record(NamedTuple):
    """What is measured of one model: the prescription, and losses after training."""

    fix: jaxgrad.inspection.Prescription
    losses: tuple[float, float]
    seconds: float

    @property
    def level(self) -> bool:
        """Whether the growth after the prescription is level in both directions."""
        row = self.fix.after
        if row is None:
            return False
        return abs(row.forward - 1) <= FORWARD and abs(row.backward - 1) <= BACKWARD


def digits() -> tuple[Any, Any]:
    """Return standardized images of digits `[1797, 64]`, and labels."""
    data = kit.load("digits")
    x = (data.x - data.x.mean(axis=0)) / (data.x.std(axis=0) + 1.0)
    return jnp.asarray(x, jnp.float32), jnp.asarray(data.labels)


def measure(make: Callable[[Any], Model], *, train: bool = True, seed: int = 0) -> Record:
    """X-ray, prescribe, and train with and without the factors."""
    start, (x, labels) = time.perf_counter(), digits()
    model = make(jax.random.key(seed))

    def loss(params, x, labels):
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    trace = jaxgrad.xray(loss, model.params, x[:BATCH], labels[:BATCH])
    # Also of streams that grow so little that they would be left alone.
    fix = jaxgrad.prescribe(trace, total=2**0.5)
    if not train:
        return Record(fix, (float("nan"), float("nan")), time.perf_counter() - start)
    optimizer = optax.adam(1e-3)
    order = np.random.default_rng(seed).integers(len(x), size=(model.steps, BATCH))

    @jax.jit
    def trained(params):
        def step(state, rows):
            params, moments = state
            value, gradient = jax.value_and_grad(loss)(params, x[rows], labels[rows])
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(params, updates), moments), value

        state, values = jax.lax.scan(step, (params, optimizer.init(params)), jnp.asarray(order))
        del state
        # The mean of the last steps is less noisy than one.
        return values[-10:].mean()

    before, after = (float(trained(p)) for p in (model.params, fix.apply(model.params)))
    return Record(fix, (before, after), time.perf_counter() - start)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-training", action="store_true", help="only prescribe")
    parser.add_argument("--only", default="", help="models whose name has this text")
    options = parser.parse_args()
    records = {}
    for name, make in MODELS.items():
        if options.only in name:
            records[name] = record = measure(make, train=not options.no_training)
            before, after = record.losses
            print(f"\n{name} ({record.seconds:.0f} s)\n{record.fix}")
            print(f"loss after training: {before:.3f}, now {after:.3f}", flush=True)
    level = [name for name, record in records.items() if record.level]
    print(f"\nlevel in both directions: {len(level)} of {len(records)}")
    for name in records.keys() - level:
        print(f"not level: {name}")
    better = sum(r.losses[1] < r.losses[0] for r in records.values())
    print(f"a lower loss after training: {better} of {len(records)}")


if __name__ == "__main__":
    main()
