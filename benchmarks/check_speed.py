"""How long `check_grads` takes on real models, in units of one jitted value-and-gradient.

Run `python -m benchmarks.check_speed`. It prints a table, one line for each model:

- `value+grad`: one call of `jax.jit(jax.value_and_grad(loss))`.
- `check`: the check of the same function at the same arguments after the first call.
- `ratio`: the latter over the former. Both are minima over repeats that alternate.
- `first`: the first check, in seconds.
- `compile`: the part of it that compiled programs. JAX reports the durations of lowering and of
  XLA's compilation to listeners of `jax.monitoring`; tracing is not in it.
- `within`: whether the ratio is at most 150, and `first` at most 3 times `compile` plus 2 s.

The models are plain functions of float32 arrays on random data: residual networks with batch
normalization, a transformer, and a network so small that a check of it is mostly tracing.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxgrad

MOST, COMPILES, SECONDS = 150, 3, 2.0  # the limits in `within`
COMPILATION = ("jaxpr_to_mlir_module_duration", "backend_compile_duration")


class Model(NamedTuple):
    """A loss and its arguments, of which the first one is differentiated."""

    loss: Callable[..., Any]
    args: tuple[Any, ...]


def _keys():
    return iter(jax.random.split(jax.random.key(0), 200))


def _normal(key: jax.Array, *shape: int) -> jax.Array:
    """Weights with the variance of He et al. (2015); the last axis is the output."""
    fan_in = math.prod(shape[:-1])
    return jax.random.normal(key, shape) * (2 / fan_in) ** 0.5


def _cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)
    return -jnp.mean(chosen)


def _normalize(p: Any, h: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    mean = jnp.mean(h, axes, keepdims=True)
    variance = jnp.mean((h - mean) ** 2, axes, keepdims=True)
    return p["scale"] * (h - mean) * jax.lax.rsqrt(variance + 1e-5) + p["bias"]


def _norm(key: jax.Array, size: int) -> dict[str, jax.Array]:
    scale, bias = 0.1 * jax.random.normal(key, (2, size))
    return {"scale": 1 + scale, "bias": bias}


def _convolve(h: jax.Array, w: jax.Array, stride: int = 1) -> jax.Array:
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(h, w, (stride, stride), "SAME", dimension_numbers=numbers)


def residual_network(bias: bool = False) -> Model:
    """Two residual blocks of 16 channels with batch norm, on 32 images of 16 x 16.

    With `bias`, convolutions have one. Batch norm takes it out again, so its gradient is zero.
    """
    keys = _keys()

    def convolution(*shape):
        b = {"b": jnp.zeros(shape[-1])} if bias else {}
        return {"w": _normal(next(keys), *shape), "norm": _norm(next(keys), shape[-1]), **b}

    def block():
        return {"first": convolution(3, 3, 16, 16), "second": convolution(3, 3, 16, 16)}

    params = {
        "stem": convolution(3, 3, 3, 16),
        "blocks": [block(), block()],
        "shortcut": _normal(next(keys), 1, 1, 16, 16),
        "head": {"w": _normal(next(keys), 16, 10), "b": 0.1 * _normal(next(keys), 1, 10)[0]},
    }
    images, labels = jax.random.normal(next(keys), (32, 16, 16, 3)), jnp.arange(32) % 10

    def layer(p, h, stride=1):
        return _normalize(p["norm"], _convolve(h, p["w"], stride) + p.get("b", 0.0), (0, 1, 2))

    def loss(params, images, labels):
        h = jax.nn.relu(layer(params["stem"], images))
        for i, p in enumerate(params["blocks"]):
            inner = layer(p["second"], jax.nn.relu(layer(p["first"], h, 1 + i)))
            h = jax.nn.relu(inner + (_convolve(h, params["shortcut"], 2) if i else h))
        return _cross_entropy(
            jnp.mean(h, (1, 2)) @ params["head"]["w"] + params["head"]["b"], labels
        )

    return Model(loss, (params, images, labels))


def transformer(blocks: int = 12, width: int = 64, heads: int = 4, length: int = 32) -> Model:
    """Blocks with normalization before attention and before the perceptron, batch of 2."""
    keys = _keys()

    def block():
        return {
            "norm1": _norm(next(keys), width),
            "qkv": _normal(next(keys), width, 3 * width),
            "out": _normal(next(keys), width, width),
            "norm2": _norm(next(keys), width),
            "up": _normal(next(keys), width, 4 * width),
            "up_bias": jnp.zeros(4 * width),
            "down": _normal(next(keys), 4 * width, width),
            "down_bias": jnp.zeros(width),
        }

    params = {
        "blocks": [block() for _ in range(blocks)],
        "embedding": jax.random.normal(next(keys), (64, width)),
        "position": jax.random.normal(next(keys), (length, width)),
        "norm": _norm(next(keys), width),
        "head": _normal(next(keys), width, 64),
    }
    tokens = jax.random.randint(next(keys), (2, length + 1), 0, 64)

    def attention(p, h):
        parts = jnp.split(h @ p["qkv"], 3, -1)
        q, k, v = (part.reshape(*h.shape[:2], heads, -1) for part in parts)
        scores = jnp.einsum("bthd,bshd->bhts", q, k) / (width // heads) ** 0.5
        weights = jax.nn.softmax(jnp.where(jnp.tri(length, dtype=bool), scores, -1e30))
        return jnp.einsum("bhts,bshd->bthd", weights, v).reshape(h.shape) @ p["out"]

    def loss(params, tokens):
        h = params["embedding"][tokens[:, :-1]] + params["position"]
        for p in params["blocks"]:
            h = h + attention(p, _normalize(p["norm1"], h, (-1,)))
            inner = _normalize(p["norm2"], h, (-1,)) @ p["up"] + p["up_bias"]
            h = h + jax.nn.gelu(inner) @ p["down"] + p["down_bias"]
        return _cross_entropy(_normalize(params["norm"], h, (-1,)) @ params["head"], tokens[:, 1:])

    return Model(loss, (params, tokens))


def convolutional_network() -> Model:
    """Three convolutions without normalization."""
    keys = _keys()
    sizes = ((3, 3, 3, 16), (3, 3, 16, 16), (3, 3, 16, 14))
    params = [{"w": _normal(next(keys), *size), "b": jnp.zeros(size[-1])} for size in sizes]
    images, labels = jax.random.normal(next(keys), (8, 16, 16, 3)), jnp.arange(8)

    def loss(params, images, labels):
        h = images
        for p in params:
            h = jnp.tanh(_convolve(h, p["w"]) + p["b"])
        return _cross_entropy(jnp.mean(h, (1, 2)), labels)

    return Model(loss, (params, images, labels))


MODELS = {
    "residual network": residual_network,
    "  with biases": lambda: residual_network(bias=True),
    "transformer": transformer,
    "three convolutions": convolutional_network,
}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def measure(model: Model, repeats: int) -> dict[str, float]:
    """Time the first check and the repeated ones of a model."""
    loss, args = model
    compiled = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith(COMPILATION):
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        start = time.perf_counter()
        report = jaxgrad.check_grads(loss, *args)
        first, during = time.perf_counter() - start, sum(compiled)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    if report.verdict != "AGREE":
        sys.exit(f"error: a right gradient must agree, got\n{report}")
    step = jax.jit(jax.value_and_grad(loss))
    jax.block_until_ready(step(*args))
    plain, again = [], []
    for _ in range(repeats):
        plain += [_seconds(lambda: step(*args)) for _ in range(10)]
        start = time.perf_counter()
        jaxgrad.check_grads(loss, *args)
        again.append(time.perf_counter() - start)
    return {"plain": min(plain), "again": min(again), "first": first, "compile": during}


def main() -> None:
    """Measure each model and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--repeats", type=int, default=5, help="repeated checks of each model")
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    options = parser.parse_args()
    titles = ("leaves", "weights", "value+grad", "check", "ratio", "first", "compile", "within")
    print(f"{'model':20s}" + "".join(f"{title:>12s}" for title in titles))
    for name in options.models:
        model = MODELS[name]()
        leaves = jax.tree.leaves(model.args[0])
        t = measure(model, options.repeats)
        ratio = t["again"] / t["plain"]
        within = ratio <= MOST and t["first"] <= COMPILES * t["compile"] + SECONDS
        cells = (
            f"{len(leaves)}",
            f"{sum(leaf.size for leaf in leaves)}",
            f"{1e3 * t['plain']:.2f} ms",
            f"{1e3 * t['again']:.0f} ms",
            f"{ratio:.0f}",
            f"{t['first']:.1f} s",
            f"{t['compile']:.1f} s",
            "yes" if within else "no",
        )
        print(f"{name:20s}" + "".join(f"{cell:>12s}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
