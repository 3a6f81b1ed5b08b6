"""The first layer's gradient norm of 16,384 networks: jaxgrad beside two usual ways.

Run `python -m benchmarks.depth_grid`. The grid is tanh, width 128, batch 32, every depth 1-64, 32
weight variances from 0.25 to 4, 8 seeds. Each contender runs in a process of its own; its time is
from when its inputs are ready to when its results are NumPy arrays, compilation included, imports
not.

- `pytorch`: a loop that builds each network, draws it, and calls backward. A sample of cells,
  scaled. Needs PyTorch; without it the line is left out.
- `jax per depth`: `jax.grad` of the unrolled network, jitted once for each depth, called for each
  variance and seed. A sample of depths, scaled.
- `probe`, `exact`: jaxgrad, the whole grid, with one JAX device for each core.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

DEPTH, WIDTH, BATCH, SEEDS = 64, 128, 32, 8
VARIANCES = np.geomspace(0.25, 4.0, 32)
NETWORKS = DEPTH * len(VARIANCES) * SEEDS
INPUTS = np.random.default_rng(0).standard_normal((BATCH, WIDTH), np.float32)

Result = dict[str, object]


def pytorch(cells: int) -> Result:
    """A straightforward loop, over `cells` networks whose depths are spread evenly."""
    import torch  # pyright: ignore[reportMissingImports]

    x = torch.from_numpy(INPUTS)

    def log_gradient(depth: int, variance: float) -> float:
        layers = []
        for _ in range(depth):
            linear = torch.nn.Linear(WIDTH, WIDTH, bias=False)
            torch.nn.init.normal_(linear.weight, std=math.sqrt(variance / WIDTH))
            layers += [linear, torch.nn.Tanh()]
        network = torch.nn.Sequential(*layers)
        readout = torch.randn(BATCH, WIDTH) / math.sqrt(BATCH * WIDTH)
        (network(x) * readout).sum().backward()
        return 2 * math.log(network[0].weight.grad.norm().item())

    generator = np.random.default_rng(1)
    depths = np.arange(cells) % DEPTH
    chosen = generator.integers(len(VARIANCES), size=cells)
    torch.manual_seed(0)
    log_gradient(2, 1.0)
    values, seconds = [], []
    for depth, variance in zip(depths, chosen, strict=True):
        start = time.perf_counter()
        values.append(log_gradient(int(depth) + 1, float(VARIANCES[variance])))
        seconds.append(time.perf_counter() - start)
    total = np.mean(seconds) * NETWORKS
    return {"seconds": total, "cells": [depths.tolist(), chosen.tolist(), values]}


def jax_per_depth(depths: int) -> Result:
    """`jax.grad` of the unrolled network, compiled for each of a few depths."""
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(INPUTS)
    calls = 32

    def measure(depth: int) -> float:
        def loss(weights, readout):
            h = x
            for weight in weights:
                h = jnp.tanh(h @ weight)
            return jnp.sum(h * readout)

        @jax.jit
        def log_gradient(key, variance):
            key_weights, key_readout = jax.random.split(key)
            weights = jax.random.normal(key_weights, (depth, WIDTH, WIDTH), jnp.float32)
            weights = list(weights * jnp.sqrt(variance / WIDTH))
            readout = jax.random.normal(key_readout, (BATCH, WIDTH)) / math.sqrt(BATCH * WIDTH)
            return jnp.log(jnp.sum(jax.grad(loss)(weights, readout)[0] ** 2))

        start = time.perf_counter()
        log_gradient(jax.random.key(0), 1.0).block_until_ready()
        compiling = time.perf_counter() - start
        start = time.perf_counter()
        for seed in range(calls):
            log_gradient(jax.random.key(seed), 1.0).block_until_ready()
        each = (time.perf_counter() - start) / calls
        return compiling + each * len(VARIANCES) * SEEDS

    measure(1)
    chosen = np.linspace(1, DEPTH, depths).round().astype(int)
    seconds = [measure(int(depth)) for depth in chosen]
    return {"seconds": np.interp(np.arange(1, DEPTH + 1), chosen, seconds).sum()}


def jaxgrad(mode: str) -> Result:
    """The whole grid by `jaxgrad.propagation`, cells spread over one device for each core."""
    import jax
    import jax.numpy as jnp

    cores = len(os.sched_getaffinity(0))
    devices = max(n for n in range(1, min(cores, SEEDS) + 1) if SEEDS % n == 0)
    jax.config.update("jax_num_cpu_devices", devices)
    from jaxgrad import initializers, layers, propagation

    mesh = jax.make_mesh((devices,), ("seed",), axis_types=(jax.sharding.AxisType.Auto,))
    each, spread = jax.P(), jax.P("seed")

    def cell(seed, x, variances):
        # One map over keys draws all: draws are what takes long to compile.
        seeds = seed * (DEPTH + 1) + jnp.arange(DEPTH + 1, dtype=seed.dtype)
        kernels = jax.lax.map(
            lambda seed: initializers.lecun()(jax.random.key(seed), (WIDTH, WIDTH)), seeds
        )
        tangent = kernels[-1, :BATCH] * math.sqrt(WIDTH)
        params = {"first": {"kernel": kernels[0]}, "hidden": {"kernel": kernels[1:-1]}}
        key = jax.random.key(seeds[-1])

        def network(variance):
            return layers.mlp(WIDTH, DEPTH, w_variance=variance, parameterization="ntk")

        def by_probe(variance):
            result = propagation.probe(network(variance), params, x, key=key, tangent=tangent)
            return result.log_weight_gradient

        def by_exact(variance):
            return propagation.exact(network(variance), params, x, key=key).log_weight_gradient

        if mode == "probe":
            return jax.vmap(by_probe)(variances)
        return jax.lax.map(by_exact, variances)

    def cells(seeds, x, variances):
        return jax.lax.map(lambda seed: cell(seed, x, variances), seeds)

    # Level 1 compiles a fifth faster than the default and makes a program as fast.
    program = jax.jit(
        jax.shard_map(
            cells, mesh=mesh, in_specs=(spread, each, each), out_specs=spread, check_vma=False
        ),
        compiler_options={"xla_backend_optimization_level": 1},
    )
    variances = VARIANCES.astype(np.float32)
    jax.local_devices()
    start = time.perf_counter()
    values = np.asarray(program(np.arange(SEEDS, dtype=np.uint32), INPUTS, variances))
    seconds = time.perf_counter() - start
    # [variance, depth], over seeds
    mean, deviation = values.mean(axis=0), values.std(axis=0, ddof=1)
    return {"seconds": seconds, "mean": mean.tolist(), "deviation": deviation.tolist()}


PARTS: dict[str, Callable[..., Result]] = {
    "pytorch": pytorch,
    "jax per depth": jax_per_depth,
    "probe": jaxgrad,
    "exact": jaxgrad,
}


def in_process(part: str, size: int) -> Result:
    """Run one part in a fresh process and return what it found."""
    command = [sys.executable, "-m", "benchmarks.depth_grid", "--part", part, "--size", str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the part {part!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def agreement(sample: Result, found: Result) -> str:
    """How far the sampled networks lie from the grid's mean, in deviations of a single network."""
    depth, variance, values = (np.asarray(part) for part in sample["cells"])  # type: ignore
    mean, deviation = (np.asarray(found[name])[variance, depth] for name in ("mean", "deviation"))
    # The grid's networks of one seed share their draws, so its mean is that of 8 networks.
    z = (values - mean) / deviation
    error = math.sqrt(z.var(ddof=1) / len(z) + 1 / SEEDS)
    return f"log gradients differ by {z.mean():+.2f} ± {error:.2f} of a network's own deviation"


def main() -> None:
    """Run the parts in turn and print times and ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--cells", type=int, default=256, help="networks in the PyTorch sample")
    parser.add_argument("--depths", type=int, default=5, help="depths in the JAX sample")
    parser.add_argument("--repeats", type=int, default=3, help="runs of everything, for medians")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        argument = options.part if PARTS[options.part] is jaxgrad else options.size
        result = PARTS[options.part](argument)
        result["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return

    sizes = {"pytorch": options.cells, "probe": 0, "exact": 0, "jax per depth": options.depths}
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed; its line is left out.")
        del sizes["pytorch"]
    results: dict[str, list[Result]] = {part: [] for part in sizes}
    for repeat in range(options.repeats):
        for part, size in sizes.items():
            if part == "jax per depth" and repeat:
                continue
            results[part].append(in_process(part, size))
    print(f"\n{NETWORKS} networks, {len(os.sched_getaffinity(0))} cores, compilation included\n")
    print(f"{'':14s}{'seconds':>9s}{'memory':>10s}  against each other, run by run")
    for part, runs in results.items():
        seconds = [float(run["seconds"]) for run in runs]  # type: ignore
        line = f"{part:14s}{np.median(seconds):9.2f}{runs[0]['memory']:7.0f} MB"
        if PARTS[part] is jaxgrad and "pytorch" in results:
            others = [float(run["seconds"]) for run in results["pytorch"]]  # type: ignore
            ratios = [a / b for a, b in zip(others, seconds, strict=True)]
            line += (
                f"  pytorch takes {np.median(ratios):.0f} x ({min(ratios):.0f}-{max(ratios):.0f})"
            )
        if PARTS[part] is jaxgrad:
            other = float(results["jax per depth"][0]["seconds"])  # type: ignore
            line += f", jax per depth {other / np.median(seconds):.0f} x"
        print(line + (" (scaled from a sample)" if PARTS[part] is not jaxgrad else ""))
    if "pytorch" in results:
        for part in ("probe", "exact"):
            print(f"{part} and pytorch: {agreement(results['pytorch'][0], results[part][0])}")


if __name__ == "__main__":
    main()
