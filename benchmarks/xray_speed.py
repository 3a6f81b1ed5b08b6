"""What an x-ray costs, in units of one jitted value-and-gradient of the same model.

Run `python -m benchmarks.xray_speed`. It prints a line for each model: the run time of the program
that `xray` compiles (`jaxgrad.inspection.instrument` with `exact=False`) over that of
`jax.value_and_grad`, both compiled, as minima over repeats that alternate; the ratios of their
temporary memory as the compiler reports it, and of tracing and compilation together; and whether
these are at most 1.5 (at width 512; 3 at width 64), 1.2 and 2.5. With `--exact` the program is that
of `instrument` by default, which `xray` needs where squares overflow, underflow or are not finite.
The last line compares transformers of 4 and of 48 scanned blocks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad import inspection

RUN, NARROW, MEMORY, COMPILE = 1.5, 3.0, 1.2, 2.5
HEADS = 8


class Model(NamedTuple):
    """A loss, its arguments and its width."""

    loss: Callable[..., Any]
    args: tuple[Any, ...]
    width: int


def perceptron(width: int, depth: int = 8, batch: int = 256) -> Model:
    """Return a ReLU network in a scan."""
    key = jax.random.key(0)
    weights = jax.random.normal(key, (depth, width, width)) * (2 / width) ** 0.5

    def loss(weights, x):
        return jnp.mean(jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, weights)[0] ** 2)

    return Model(loss, (weights, jax.random.normal(key, (batch, width))), width)


def transformer(width: int, blocks: int, scanned: bool = True, tokens: int = 64) -> Model:
    """Return a pre-norm transformer on random vectors."""
    shapes = {"q": width, "k": width, "v": width, "out": width, "up": 4 * width}
    keys = jax.random.split(jax.random.key(1), len(shapes) + 1)
    params = {
        name: jax.random.normal(key, (blocks, width, size)) * width**-0.5
        for key, (name, size) in zip(keys, shapes.items(), strict=False)
    }
    params["down"] = jnp.swapaxes(params["up"], 1, 2) / 2

    def normalize(x):
        x = x - jnp.mean(x, -1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-6)

    def block(x, p):
        q, k, v = (
            jnp.reshape(normalize(x) @ p[n], (*x.shape[:2], HEADS, width // HEADS)) for n in "qkv"
        )
        x = x + jax.nn.dot_product_attention(q, k, v).reshape(x.shape) @ p["out"]
        return x + jax.nn.gelu(normalize(x) @ p["up"]) @ p["down"], None

    def loss(params, x):
        if scanned:
            return jnp.mean(normalize(jax.lax.scan(block, x, params)[0]) ** 3)
        for i in range(blocks):
            x, _ = block(x, jax.tree.map(lambda p, i=i: p[i], params))
        return jnp.mean(normalize(x) ** 3)

    return Model(loss, (params, jax.random.normal(keys[-1], (8, tokens, width))), width)


MODELS = {
    "perceptron, width 64": lambda: perceptron(64),
    "perceptron, width 512": lambda: perceptron(512),
    "transformer, width 64, 12 blocks, scanned": lambda: transformer(64, 12),
    "transformer, width 64, 12 blocks, unrolled": lambda: transformer(64, 12, scanned=False),
    "transformer, width 512, 4 blocks, scanned": lambda: transformer(512, 4),
}


def compiled(f: Callable[..., Any], args: tuple) -> tuple[Any, float]:
    """Return a compiled function, and the seconds of tracing and compilation."""
    start = time.perf_counter()
    program = jax.jit(f).lower(*args).compile()
    return program, time.perf_counter() - start


def seconds(programs: list[Any], args: tuple, repeats: int) -> list[float]:
    """Return the least time of each program, in turns."""
    best = [float("inf")] * len(programs)
    for _ in range(repeats + 1):
        for i, program in enumerate(programs):
            start = time.perf_counter()
            jax.block_until_ready(program(*args))
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def measure(name: str, model: Model, repeats: int, exact: bool) -> str:
    """Return the line of a model."""
    plain, before = compiled(jax.value_and_grad(model.loss), model.args)
    tapped, after = compiled(inspection.instrument(model.loss, exact=exact), model.args)
    base, time_taken = seconds([plain, tapped], model.args, repeats)
    sizes = [program.memory_analysis() for program in (plain, tapped)]
    memory = sizes[1].temp_size_in_bytes / max(sizes[0].temp_size_in_bytes, 1)
    run, compilation = time_taken / base, after / before
    most = NARROW if model.width < 512 else RUN
    within = run <= most and memory <= MEMORY and compilation <= COMPILE
    return (
        f"{name:45} {1e3 * base:9.2f} ms {run:6.2f} {memory:7.2f} {compilation:8.2f} "
        f"{'yes' if within else 'no':>7}"
    )


def main() -> None:
    """Measure all models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15, help="of each run")
    parser.add_argument("--exact", action="store_true", help="measure at any size")
    options = parser.parse_args()
    print(f"{'model':45} {'value+grad':>12} {'run':>6} {'memory':>7} {'compile':>8} {'within':>7}")
    for name, make in MODELS.items():
        print(measure(name, make(), options.repeats, options.exact), flush=True)
        jax.clear_caches()
    times = []
    for blocks in (4, 48):
        model = transformer(64, blocks)
        times.append(
            compiled(inspection.instrument(model.loss, exact=options.exact), model.args)[1]
        )
    print(
        f"tracing and compilation of 48 scanned blocks: {times[1] / times[0]:.2f} times that of 4"
    )


if __name__ == "__main__":
    main()
