"""What computations cost on paper, and how long they take.

Run `python -m benchmarks.costs`. On paper a computation has floating-point operations of matrix
products, bytes that are read and written, and random bits. A plain matrix product, a plain copy and
a plain draw tell how fast this machine does each, in the same process. The limit is the time of the
draws and of the longer of the other two, which may overlap. Each line is a computation with its
limit and its time, as the least of several runs, without the first one, which compiles:

- `probe`: draw a tanh network in float32 and carry a signal and a tangent through it, batch 32;
- `exact`: draw it and compute the gradient at the greatest depth by reverse mode;
- `sweep`: `sweeps.run` over many small networks of depth 10 and width 16, batch 4, in memory; it
  compiles its program at each call, and this time is counted;
- `difference`: a central difference of every weight of a network of two layers, in float64;
- `training`: 100 steps of gradient descent on a network of depth 8, batch 128.

The figure shows how many times the limit each of them takes. Where it is above two,
`docs/explanations/costs.md` says why. With `--processor-time` all times are those of the
processor's cores together, limits included: other programs on the machine then change little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments._kit import figures
from jaxgrad import layers, propagation, sweeps, training
from jaxgrad.checking import finite_differences
from jaxgrad.plotting import style

BATCH, TRAINED, STEPS = 32, 128, 100
FLOAT = 4  # bytes


class Cost(NamedTuple):
    """The cost of a computation on paper."""

    flops: float  # of matrix products
    bytes: float
    bits: float = 0.0  # random ones


class Limits(NamedTuple):
    """What a machine does in a second."""

    flops: float
    wide_flops: float  # in float64
    bytes: float
    bits: float

    def seconds(self, cost: Cost, wide: bool = False) -> float:
        """Return the least time of a computation."""
        flops = self.wide_flops if wide else self.flops
        return max(cost.flops / flops, cost.bytes / self.bytes) + cost.bits / self.bits


class Row(NamedTuple):
    """A computation and its times in seconds."""

    kind: str
    size: str
    limit: float
    measured: float

    @property
    def ratio(self) -> float:
        """Measured time over the limit."""
        return self.measured / self.limit


Clock = Callable[[], float]


def seconds(call: Callable[[], Any], clock: Clock, least: float = 0.3) -> float:
    """Return the time of a call, after one that compiles: the least one, or of cores the mean."""
    jax.block_until_ready(call())
    times: list[float] = []
    while len(times) < 3 or (sum(times) < least and len(times) < 200):
        start = clock()
        jax.block_until_ready(call())
        times.append(clock() - start)
    # The clock of the cores lags behind those that are busy, so that short times are no measure.
    return min(times) if clock is time.perf_counter else sum(times) / len(times)


def limits(clock: Clock) -> Limits:
    """Measure a plain matrix product, a plain copy and a plain draw, each at its fastest size."""
    product = jax.jit(lambda a: jnp.dot(a, a, precision="highest"))
    copy = jax.jit(lambda v: v + 1)
    draw = jax.jit(lambda key, count: jax.random.normal(key, (count,)), static_argnums=1)

    def flops(dtype):
        with jax.enable_x64(dtype is np.float64):
            matrices = [jnp.ones((size, size), dtype) for size in (256, 512, 1024)]
            return max(2 * len(m) ** 3 / seconds(lambda m=m: product(m), clock) for m in matrices)

    # In and out of a cache.
    vectors, key = [jnp.ones(2**power) for power in (14, 16, 18, 24)], jax.random.key(0)
    copied = max(2 * FLOAT * v.size / seconds(lambda v=v: copy(v), clock) for v in vectors)
    drawn = max(32 * v.size / seconds(lambda n=v.size: draw(key, n), clock) for v in vectors)
    return Limits(flops(np.float32), flops(np.float64), copied, drawn)


def network(width: int, depth: int) -> Any:
    """A tanh network without biases."""
    return layers.mlp(width, depth, "tanh", w_variance=1.0)


def drawn(width: int, depth: int, batch: int, passes: int) -> Cost:
    """Cost of drawing a network and of passes of a batch through it."""
    weights = depth * width**2
    # A weight is written once and read once for each pass, a signal is written and read.
    moved = (1 + passes) * weights + 2 * passes * batch * width * depth
    return Cost(2 * passes * batch * weights, FLOAT * moved, 32 * weights)


def by_network(width: int, depth: int) -> Iterator[tuple[str, str, Cost, Callable[[], Any]]]:
    """Yield the measurements of a single network."""
    layer, x = network(width, depth), jax.random.normal(jax.random.key(1), (BATCH, width))
    key = jax.random.key(2)

    @jax.jit
    def probe(key, x):
        params, _ = layers.init(layer, (width,), key=key)
        return propagation.probe(layer, params, x, key=key).log_gradient

    @jax.jit
    def exact(key, x):
        params, _ = layers.init(layer, (width,), key=key)
        return propagation.exact(layer, params, x, key=key, depths=(depth,)).log_gradient

    size = f"depth {depth:,}, width {width:,}"
    cost = drawn(width, depth, BATCH, 2)
    yield "probe", size, cost, lambda: probe(key, x)
    yield "exact", size, cost, lambda: exact(key, x)


def by_sweep(cells: int, width: int = 16, depth: int = 10, batch: int = 4) -> Any:
    """Return the computation of many small networks by a sweep."""
    layer, x = network(width, depth), jax.random.normal(jax.random.key(1), (batch, width))

    def cell(key, point, x):
        params, _ = layers.init(layer, (width,), key=key)
        return {"log": propagation.probe(layer, params, x, key=key).log_gradient[-1]}

    def call():
        axes = {"seed": range(cells)}
        return sweeps.run(cell, axes, {"log": sweeps.Variable()}, key=jax.random.key(0), args=(x,))

    one = drawn(width, depth, batch, 2)
    return "sweep", f"{cells:,} cells", Cost(*(cells * part for part in one)), call


def by_difference(inputs: int, hidden: int, batch: int = 4) -> Any:
    """Return the central difference of every weight of a network of two layers."""
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=s) / s[0] ** 0.5 for s in ((inputs, hidden), (hidden, 10))]
    x = rng.normal(size=(batch, inputs))

    def loss(weights):
        return jnp.mean(jnp.tanh(x @ weights[0]) @ weights[1] ** 2)

    difference = jax.jit(lambda weights: finite_differences.central_difference(loss, weights))

    def call():
        with jax.enable_x64(True):
            return difference(weights)

    count = sum(w.size for w in weights)
    # Two evaluations a weight of the first layer; each writes and reads the hidden units, float64,
    # and multiplies them by the second. A weight of the second layer costs next to nothing.
    evaluations = 2 * weights[0].size
    cost = Cost(
        evaluations * 2 * batch * weights[1].size, evaluations * 2 * 2 * FLOAT * batch * hidden
    )
    return "difference", f"{count:,} weights", cost, call


def by_training(width: int, depth: int = 8) -> Any:
    """Return the training of a network."""
    layer, key = network(width, depth), jax.random.key(0)
    x = jax.random.normal(jax.random.key(1), (TRAINED, width))
    params, _ = layers.init(layer, (width,), key=key)

    def loss(params, state, batch, key):
        return jnp.mean(jnp.square(layer.apply(params, state, batch, key=key)[0])), state

    @jax.jit
    def run(params, x, key):
        options = {"steps": STEPS, "batch_size": TRAINED, "state": layer.init_state(params)}
        return training.fit(loss, params, optax.sgd(0.01), x, key=key, **options).loss

    weights = depth * width**2
    # Forward, and backward to signals and to weights; weights are read three times and written.
    moved = STEPS * (4 * weights + 6 * TRAINED * width * depth)
    cost = Cost(STEPS * 6 * TRAINED * weights, FLOAT * moved)
    return "training", f"width {width:,}", cost, lambda: run(params, x, key)


def computations(full: bool) -> Iterator[tuple[str, str, Cost, Callable[[], Any]]]:
    """Yield all computations: kind, size, cost on paper, and the call."""
    depths, widths = (10, 100, 1_000, 10_000), (16, 64, 256, 1024, 2048)
    for depth in depths if full else depths[:2]:
        yield from by_network(64, depth)
    for width in widths if full else widths[:3]:
        if width != 64:
            yield from by_network(width, 10)
    for cells in (100, 10_000, 1_000_000) if full else (100,):
        yield by_sweep(cells)
    for inputs, hidden in ((16, 32), (64, 128), (64, 1024)) if full else ((16, 32),):
        yield by_difference(inputs, hidden)
    for width in (16, 128, 1024) if full else (16,):
        yield by_training(width)


def draw(rows: list[Row], machine: str) -> Any:
    """Return the figure: measured times over limits."""
    title = f"Long computations come near the limit, short ones wait ({machine})"
    figure, ((ax,),) = figures.panels(title)
    grouped = itertools.groupby(sorted(rows, key=lambda row: row.kind), lambda row: row.kind)
    for (kind, members), look in zip(grouped, figures.looks(), strict=False):
        points = sorted((row.limit, row.ratio) for row in members)
        ax.plot(*zip(*points, strict=True), **look, label=kind)
    ax.axhline(2, color=style.palette().muted, linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="limit: the least time on paper, in seconds")
    ax.set_ylabel("measured time over the limit")
    ax.legend()
    return figure


def main() -> None:
    """Measure all computations, print a table, draw the figure and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--output", type=Path, default=Path("results/costs.png"))
    parser.add_argument("--small", action="store_true", help="the smallest of each kind alone")
    parser.add_argument("--processor-time", action="store_true", help="of all cores together")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    options.output.parent.mkdir(parents=True, exist_ok=True)
    device = jax.devices()[0].device_kind
    machine = limits(clock)
    print(
        f"{device}: {machine.flops / 1e9:.1f} GFLOP/s, {machine.wide_flops / 1e9:.1f} in float64,"
    )
    print(f"{machine.bytes / 1e9:.1f} GB/s copied, {machine.bits / 32e6:.0f} million normals/s")
    print(f"{'computation':12} {'size':26} {'limit':>12} {'measured':>12} {'ratio':>7}")
    rows = []
    for kind, size, cost, call in computations(not options.small):
        limit = machine.seconds(cost, wide=kind == "difference")
        rows.append(Row(kind, size, limit, seconds(call, clock)))
        times = f"{1e3 * limit:9.3f} ms {1e3 * rows[-1].measured:9.3f} ms"
        print(f"{kind:12} {size:26} {times} {rows[-1].ratio:7.1f}", flush=True)
    figures.save(lambda: draw(rows, device), options.output)
    numbers = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device,
        "jax": jax.__version__,
        "clock": "processor" if options.processor_time else "wall",
        "limits": machine._asdict(),
        "computations": [row._asdict() | {"ratio": row.ratio} for row in rows],
    }
    options.output.with_suffix(".json").write_text(json.dumps(numbers, indent=1))
    print(f"Figure: {options.output}")


if __name__ == "__main__":
    main()
