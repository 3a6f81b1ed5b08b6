# The names of models and of their parts say what they are.
# ruff: noqa: D101, D103
"""Models with and without a fault: plain functions, and models of Flax, Equinox and Haiku.

`FAULTS` has models with one planted fault each, `HEALTHY` models without any. A model is made by a
function of a key, which returns a loss and its arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox
import haiku
import jax
import jax.numpy as jnp
from flax import linen, nnx

WIDTH, BATCH, TOKENS, HEADS = 32, 8, 16, 4

Loss = tuple[Callable[..., Any], tuple[Any, ...]]


class Case(NamedTuple):
    """A model, and for a faulty one what an x-ray should name.

    Attributes:
      name: of the model and of its fault.
      make: a function of a key that returns a loss and its arguments.
      code: a part of the line of code at fault.
      block: index of the block at fault, `None` if the fault is not in one of equal blocks.
    """

    name: str
    make: Callable[[jax.Array], Loss]
    code: str = ""
    block: int | None = None


# ---------------------------------------------------------------------------------- plain networks


def weights(key, depth: int, gain: float, width: int = WIDTH):
    """Matrices with the variance gain^2 / fan-in, stacked."""
    return gain * jax.random.normal(key, (depth, width, width)) / width**0.5


def data(key, *shape):
    return jax.random.normal(jax.random.fold_in(key, 99), shape or (BATCH, WIDTH))


def mean_square(out: Any):
    return jnp.mean(out**2)


def tanh_block(w, x):
    return jnp.tanh(x @ w)


def relu_block(p, x):
    return jax.nn.relu(x @ p["w"] + p["b"])


def plain_tanh(key, change: Callable = lambda w: w, depth: int = 12) -> Loss:
    def loss(params, x):
        for w in params:
            x = tanh_block(w, x)
        return jnp.mean(x**2)

    return loss, (list(change(weights(key, depth, 1.0))), data(key))


def scanned_relu(key, change=lambda p: p, gain=2**0.5, depth=16, remat=False, dtype=jnp.float32):
    params = {"w": weights(key, depth, gain), "b": jnp.zeros((depth, WIDTH))}
    params = jax.tree.map(lambda p: p.astype(dtype), change(params))
    block = jax.checkpoint(relu_block) if remat else relu_block

    def loss(params, x):
        out = jax.lax.scan(lambda x, p: (block(p, x), None), x, params)[0]
        return jnp.mean(out.astype(jnp.float32) ** 2)

    return loss, (params, data(key).astype(dtype))


def residual(key, scale: float, depth: int = 24, zero: bool = False) -> Loss:
    keys = jax.random.split(key, 2)
    params = {"up": weights(keys[0], depth, 2**0.5), "down": weights(keys[1], depth, 1.0)}
    if zero:
        params["down"] *= 0.0

    def block(x, p):
        branch = jax.nn.relu(x @ p["up"]) @ p["down"]
        return x + scale * branch, None

    def loss(params, x):
        return jnp.mean(jax.lax.scan(block, x, params)[0] ** 2)

    return loss, (params, data(key))


def rezero(key, depth: int = 12) -> Loss:
    params = {"w": weights(key, depth, 2**0.5), "alpha": jnp.zeros((depth,))}

    def loss(params, x):
        def block(x, p):
            return x + p["alpha"] * jax.nn.relu(x @ p["w"]), None

        return jnp.mean(jax.lax.scan(block, x, params)[0] ** 2)

    return loss, (params, data(key))


def ntk(key, depth: int = 8) -> Loss:
    """Weights of unit variance, products divided by the root of the fan-in (Jacot et al., 2018)."""

    def loss(params, x):
        for w in params:
            x = jax.nn.relu(x @ w / WIDTH**0.5) * 2**0.5
        return jnp.mean(x**2)

    return loss, (list(jax.random.normal(key, (depth, WIDTH, WIDTH))), data(key))


def siren(key, depth: int = 5) -> Loss:
    """Sines with the initialization of Sitzmann et al. (2020)."""
    bound = (6 / WIDTH) ** 0.5 / 30
    params = [jax.random.uniform(k, (WIDTH, WIDTH), minval=-bound, maxval=bound) for k in
              jax.random.split(key, depth)]  # fmt: skip

    def loss(params, x):
        for w in params:
            x = jnp.sin(30 * (x @ w))
        return jnp.mean(x**2)

    return loss, (params, data(key))


def recurrent(key, gain: float = 1.0, steps: int = 30, scale=lambda w: w) -> Loss:
    """One matrix at all steps, as in a recurrent network."""
    orthogonal = jnp.linalg.qr(jax.random.normal(key, (WIDTH, WIDTH)))[0]
    params = {"hidden": scale(gain * orthogonal), "input": weights(key, 1, 0.3)[0]}

    def loss(params, xs):
        def inner(h, x):
            return h @ params["hidden"] + 0.1 * x @ params["input"], None

        h = jax.lax.scan(inner, xs[0], xs)[0]
        return jnp.mean(h**2)

    return loss, (params, data(key, steps, BATCH, WIDTH))


# ----------------------------------------------------------------------------------- transformers


def normalize(x, scale):
    mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-6) * scale


def attention(p, x):
    q, k, v = (jnp.reshape(x @ p[n], (*x.shape[:2], HEADS, -1)) for n in ("q", "k", "v"))
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (WIDTH // HEADS) ** 0.5
    probabilities = jax.nn.softmax(logits * p["temperature"])
    mixed = jnp.einsum("bhqk,bkhd->bqhd", probabilities, v)
    return mixed.reshape(x.shape) @ p["out"]


def feed_forward(p, x):
    return jax.nn.gelu(x @ p["up"]) @ p["down"]


def pre_norm(p, x):
    x = x + attention(p, normalize(x, p["scale1"]))
    return x + feed_forward(p, normalize(x, p["scale2"]))


def post_norm(p, x):
    x = normalize(x + attention(p, x), p["scale1"])
    return normalize(x + feed_forward(p, x), p["scale2"])


def transformer_params(key, depth: int, std: float | None = None):
    names = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "out": (WIDTH, WIDTH)}
    names |= {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    keys = jax.random.split(key, len(names))
    params = {
        name: jax.random.normal(k, (depth, *shape)) * (std or shape[0] ** -0.5)
        for k, (name, shape) in zip(keys, names.items(), strict=True)
    }
    ones = jnp.ones((depth, WIDTH))
    return params | {"scale1": ones, "scale2": ones, "temperature": jnp.ones((depth,))}


def transformer(
    key, change=lambda p: p, block=pre_norm, depth=8, scanned=True, std=None, remat=False, emb=0.02
) -> Loss:
    params = {
        "embedding": emb * jax.random.normal(key, (50, WIDTH)),
        "blocks": change(transformer_params(key, depth, std)),
        "scale": jnp.ones(WIDTH),
        "head": jax.random.normal(key, (WIDTH, 50)) / WIDTH**0.5,
    }
    tokens = jax.random.randint(key, (BATCH, TOKENS), 0, 50)
    body = jax.checkpoint(block) if remat else block

    def loss(params, tokens):
        x = params["embedding"][tokens]
        if scanned:
            x = jax.lax.scan(lambda x, p: (body(p, x), None), x, params["blocks"])[0]
        else:
            for i in range(depth):
                x = body(jax.tree.map(lambda p, i=i: p[i], params["blocks"]), x)
        logits = normalize(x, params["scale"]) @ params["head"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)
        return -jnp.mean(chosen)

    return loss, (params, tokens)


def at(name: str, i: int, factor: float):
    """A change of one block's weights."""
    return lambda p: p | {name: p[name].at[i].multiply(factor)}


# ------------------------------------------------------------------------------ models of libraries


class LinenMLP(linen.Module):
    depth: int = 10
    stop: int | None = None

    @linen.compact
    def __call__(self, x):
        for i in range(self.depth):
            x = linen.relu(linen.Dense(WIDTH, kernel_init=linen.initializers.he_normal())(x))
            if i == self.stop:
                x = jax.lax.stop_gradient(x)
        return linen.Dense(1)(x)


def linen_mlp(key, change=lambda p: p, **options) -> Loss:
    model = LinenMLP(**options)
    x = data(key)
    return lambda params, x: mean_square(model.apply(params, x)), (change(model.init(key, x)), x)


def kernel_of(i: int, factor: float, module: str = "Dense"):
    """A change of one module's kernel."""

    def change(variables):
        params = variables["params"]
        kernel = params[f"{module}_{i}"]["kernel"] * factor
        return {"params": params | {f"{module}_{i}": params[f"{module}_{i}"] | {"kernel": kernel}}}

    return change


class LinenAttention(linen.Module):
    factor: float = 1.0
    depth: int = 4

    @linen.compact
    def __call__(self, x):
        for _ in range(self.depth):
            y = linen.LayerNorm()(x) * self.factor
            x = x + linen.MultiHeadDotProductAttention(HEADS)(y)
            x = x + linen.Dense(WIDTH)(linen.gelu(linen.Dense(2 * WIDTH)(linen.LayerNorm()(x))))
        return linen.Dense(1)(linen.LayerNorm()(x))


def linen_attention(key, **options) -> Loss:
    model, x = LinenAttention(**options), data(key, BATCH, TOKENS, WIDTH)
    return lambda params, x: mean_square(model.apply(params, x)), (model.init(key, x), x)


class Decoder(linen.Module):
    """Small maps made larger by transposed convolutions."""

    wrong: bool = False

    @linen.compact
    def __call__(self, x):
        for features in (64, 32):
            init = linen.initializers.he_normal()
            if self.wrong:
                # The fan-in of a kernel that is stored the other way round.
                init = linen.initializers.variance_scaling(2.0 * 16, "fan_in", "normal")
            layer = linen.ConvTranspose(features, (4, 4), (2, 2), kernel_init=init)
            x = linen.relu(layer(x))
        return linen.Conv(3, (3, 3))(x)


def decoder(key, **options) -> Loss:
    model, x = Decoder(**options), data(key, 2, 4, 4, 64)
    return lambda params, x: mean_square(model.apply(params, x)), (model.init(key, x), x)


class ConvBlock(nnx.Module):
    def __init__(self, rngs):
        init = nnx.initializers.he_normal()
        self.conv1 = nnx.Conv(16, 16, (3, 3), rngs=rngs, kernel_init=init)
        self.conv2 = nnx.Conv(16, 16, (3, 3), rngs=rngs, kernel_init=init)
        self.norm = nnx.GroupNorm(16, 4, rngs=rngs)

    def __call__(self, x):
        return x + self.norm(self.conv2(nnx.relu(self.conv1(x))))


def nnx_convolutions(key, change=lambda blocks: None, depth=6) -> Loss:
    rngs = nnx.Rngs(3)
    blocks = nnx.List([ConvBlock(rngs) for _ in range(depth)])
    change(blocks)

    def loss(blocks, x):
        for block in blocks:
            x = block(x)
        return jnp.mean(x**2)

    return loss, (blocks, data(key, 2, 8, 8, 16))


def scale_conv(i: int, factor: float):
    def change(blocks):
        kernel = blocks[i].conv1.kernel
        kernel[...] = kernel[...] * factor

    return change


def equinox_mlp(key, change=lambda model: model, depth=8) -> Loss:
    model = change(equinox.nn.MLP(WIDTH, WIDTH, WIDTH, depth, jnp.tanh, key=key))
    return lambda model, x: jnp.mean(jax.vmap(model)(x) ** 2), (model, data(key))


def equinox_weight(i: int, factor: float):
    return lambda model: equinox.tree_at(
        lambda m: m.layers[i].weight, model, model.layers[i].weight * factor
    )


def haiku_mlp(key, change=lambda p: p, detach: bool = False) -> Loss:
    init = haiku.initializers.VarianceScaling(2.0)

    def network(x):
        for i in range(6):
            y = jax.nn.relu(haiku.Linear(WIDTH, w_init=init, name=f"up_{i}")(x))
            y = haiku.Linear(WIDTH, name=f"down_{i}")(y)
            if detach and i == 3:
                y = jax.lax.stop_gradient(y)
            x = x + 0.3 * y
        return x

    model = haiku.without_apply_rng(haiku.transform(network))
    x = data(key)
    return lambda p, x: mean_square(model.apply(p, x)), (change(model.init(key, x)), x)


def haiku_weight(name: str, factor: float):
    return lambda p: p | {name: p[name] | {"w": p[name]["w"] * factor}}


# ------------------------------------------------------------------------------------------ faults


def dead_bias(p):
    return p | {"b": p["b"].at[5].add(-100.0)}


def all_temperatures(p):
    return p | {"temperature": 20 * p["temperature"]}


@jax.custom_vjp
def gelu(x):
    return jax.nn.gelu(x)


# The factor of the cotangent is missing in part.
gelu.defvjp(lambda x: (gelu(x), x), lambda x, ct: (0.5 * ct * jax.grad(jax.nn.gelu)(1.0),))


def wrong_rule(p, x):
    x = x + attention(p, normalize(x, p["scale1"]))
    return x + gelu(normalize(x, p["scale2"]) @ p["up"]) @ p["down"]


def square_root(key) -> Loss:
    loss, (params, x) = plain_tanh(key, depth=4)

    def with_distance(params, x):
        norm = jnp.sqrt(jnp.sum((x - x[:1]) ** 2, -1))
        return loss(params, x) + jnp.mean(norm * params[0][0, 0])

    def through(params, x):
        return with_distance(params, x @ params[0])

    return through, (params, x)


def half_precision(key) -> Loss:
    loss, args = scanned_relu(key, dtype=jnp.float16)
    return lambda *args: 1e-6 * loss(*args), args


FAULTS = [
    Case("tanh network, weights x 10", lambda k: plain_tanh(k, lambda w: w.at[4].multiply(10)),
         "jnp.tanh(x @ w)", 4),
    Case("scanned ReLU network, weights x 10", lambda k: scanned_relu(k, at("w", 9, 10.0)),
         'x @ p["w"]', 9),
    Case("scanned ReLU network, weights / 10", lambda k: scanned_relu(k, at("w", 3, 0.1)),
         'x @ p["w"]', 3),
    Case("checkpointed ReLU network, first weights x 10",
         lambda k: scanned_relu(k, at("w", 0, 10.0), remat=True), 'x @ p["w"]', 0),
    Case("scanned ReLU network, dead block", lambda k: scanned_relu(k, dead_bias), 'p["w"]', 5),
    Case("scanned ReLU network, wrong gain", lambda k: scanned_relu(k, gain=0.8), 'x @ p["w"]'),
    Case("tanh network, gain 3", lambda k: plain_tanh(k, lambda w: 3.0 * w), "jnp.tanh(x @ w)"),
    Case("residual network without scale", lambda k: residual(k, 1.0), "x + scale * branch"),
    Case("transformer, weights x 10", lambda k: transformer(k, at("up", 5, 10.0)),
         'x @ p["up"]', 5),
    Case("transformer, block of zeros", lambda k: transformer(k, at("v", 2, 0.0)), "x @ p[n]", 2),
    Case("transformer, logits x 20", lambda k: transformer(k, all_temperatures), "softmax"),
    Case("transformer, logits x 20 in a block",
         lambda k: transformer(k, at("temperature", 6, 20.0)), "softmax", 6),
    Case("unrolled transformer, keys x 20",
         lambda k: transformer(k, at("k", 3, 20.0), scanned=False), "x @ p[n]", 3),
    Case("post-norm transformer, weights x 10",
         lambda k: transformer(k, at("down", 1, 10.0), post_norm, emb=1.0), 'p["down"]', 1),
    Case("transformer, wrong derivative rule", lambda k: transformer(k, block=wrong_rule), "gelu("),
    Case("square root at zero", square_root, "jnp.sqrt"),
    Case("half precision, gradient underflows", half_precision, 'x @ p["w"]'),
    Case("Linen, weights x 10", lambda k: linen_mlp(k, kernel_of(6, 10.0)), "linen.Dense(WIDTH", 6),
    Case("Linen, detached", lambda k: linen_mlp(k, stop=5), "stop_gradient"),
    Case("Linen attention, inputs x 20", lambda k: linen_attention(k, factor=20.0),
         "MultiHeadDotProductAttention"),
    Case("Linen, wrong fan of a transposed convolution", lambda k: decoder(k, wrong=True),
         "layer(x)"),
    Case("NNX convolutions, weights x 10", lambda k: nnx_convolutions(k, scale_conv(2, 10.0)),
         "self.conv1(x)", 2),
    Case("Equinox, weights x 10", lambda k: equinox_mlp(k, equinox_weight(5, 10.0)),
         "jax.vmap(model)", 5),
    Case("Haiku, detached branch", lambda k: haiku_mlp(k, detach=True), "stop_gradient"),
]  # fmt: skip

HEALTHY = [
    Case("tanh network", plain_tanh),
    Case("deep tanh network", lambda k: plain_tanh(k, depth=48)),
    Case("ReLU network", scanned_relu),
    Case("deep ReLU network", lambda k: scanned_relu(k, depth=48)),
    Case("checkpointed ReLU network", lambda k: scanned_relu(k, remat=True)),
    Case("bfloat16 ReLU network", lambda k: scanned_relu(k, dtype=jnp.bfloat16)),
    Case("residual network", lambda k: residual(k, 24**-0.5)),
    Case("residual network, last weights zero", lambda k: residual(k, 1.0, zero=True)),
    Case("ReZero", rezero),
    Case("NTK parametrization", ntk),
    Case("SIREN", siren),
    Case("recurrent network", recurrent),
    Case("transformer", transformer),
    Case("deep transformer", lambda k: transformer(k, depth=48)),
    Case("unrolled transformer", lambda k: transformer(k, scanned=False, depth=4)),
    Case("checkpointed transformer", lambda k: transformer(k, remat=True)),
    Case("transformer with the scale of GPT-2", lambda k: transformer(k, std=0.02)),
    Case("post-norm transformer", lambda k: transformer(k, block=post_norm, emb=1.0)),
    Case("Linen", linen_mlp),
    Case("Linen attention", linen_attention),
    Case("Linen transposed convolutions", decoder),
    Case("NNX convolutions", nnx_convolutions),
    Case("Equinox", lambda k: equinox_mlp(k, depth=3)),
    Case("Haiku", haiku_mlp),
]
