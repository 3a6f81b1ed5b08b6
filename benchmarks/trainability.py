"""The map of trained networks, 768 of them: jaxgrad beside a PyTorch loop over the same networks.

Run `python -m benchmarks.trainability`. Width 64, 300 steps of batches of 64 digits, depths 1-128.
PyTorch trains a sample of cells in full, and its time is scaled by depth; jaxgrad trains all, its
time includes compiling. Each runs in a process of its own, on all cores. Needs PyTorch; without it
only jaxgrad's time is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
import subprocess
import sys
import time
from typing import Any

import numpy as np

from experiments import _kit
from experiments.trainability import measurement as trainability

SAMPLE = (1, 4, 16, 45, 128)
"""Depths that PyTorch trains."""


def pytorch(cells: int) -> dict[str, Any]:
    """Seconds and accuracy of `cells` networks of each sampled depth, spread over the variances."""
    import torch  # pyright: ignore[reportMissingImports]

    config = trainability.Options()
    arrays = [a for part in trainability.digits(config) for a in part]
    x, y, x_test, y_test = (torch.from_numpy(np.array(a)) for a in arrays)
    y, y_test = y.long(), y_test.long()
    variances = np.geomspace(config.w_variance_min, config.w_variance_max, config.w_variances)
    chosen = np.linspace(0, len(variances) - 1, cells + 2).round().astype(int)[1:-1]
    torch.manual_seed(0)

    def train(depth: int, w_variance: float, steps: int) -> tuple[float, float]:
        parts: list[Any] = []
        fan_in = x.shape[1]
        for _ in range(depth):
            linear = torch.nn.Linear(fan_in, config.width)
            torch.nn.init.normal_(linear.weight, std=math.sqrt(w_variance / fan_in))
            torch.nn.init.normal_(linear.bias, std=math.sqrt(config.b_variance))
            parts += [linear, torch.nn.Tanh()]
            fan_in = config.width
        readout = torch.nn.Linear(fan_in, trainability.CLASSES)
        torch.nn.init.normal_(readout.weight, std=math.sqrt(1 / fan_in))
        torch.nn.init.zeros_(readout.bias)
        network = torch.nn.Sequential(*parts, readout)
        optimizer = torch.optim.SGD(network.parameters(), lr=config.rates[0])
        start = time.perf_counter()
        order, at = torch.randperm(len(x)), 0
        for _ in range(steps):
            if at + config.batch > len(x):
                order, at = torch.randperm(len(x)), 0
            rows, at = order[at : at + config.batch], at + config.batch
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        with torch.no_grad():
            accuracy = (network(x_test).argmax(1) == y_test).double().mean().item()
        return seconds, accuracy

    train(2, 1.0, 20)
    found = [
        (depth, int(v), *train(depth, float(variances[v]), config.steps))
        for depth in SAMPLE
        for v in chosen
    ]
    return {"runs": found}


def jaxgrad() -> dict[str, Any]:
    """Seconds for the whole map, accuracy of every cell, and the rates of arithmetic."""
    _kit.use_all_cores()
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, PartitionSpec

    config = trainability.Options()
    devices = np.array(jax.local_devices())

    def timed(function) -> tuple[float, Any]:
        start = time.perf_counter()
        result = jax.block_until_ready(function())
        return time.perf_counter() - start, result

    seconds, dataset = timed(lambda: trainability.measure(config))
    compiling, _ = timed(lambda: trainability.measure(dataclasses.replace(config, steps=1)))
    products = 3 * 2 * config.width**2 * config.batch * config.steps
    each = config.w_variances * config.seeds * len(config.rates)
    arithmetic = products * each * sum(config.depths)

    def rate(operations: int, function, *args) -> float:
        jax.block_until_ready(function(*args))
        return operations / min(timed(lambda: function(*args))[0] for _ in range(5))

    def chain(h, weights):
        return jax.lax.fori_loop(0, count, lambda _, h: h @ weights, h)

    spec, count = PartitionSpec("device"), 20_000
    # One chain on each device, as the map has one network on each.
    chains = jax.jit(
        jax.shard_map(
            lambda h, w: chain(h[0], w)[None],
            mesh=Mesh(devices, ("device",)),
            in_specs=(spec, PartitionSpec()),
            out_specs=spec,
            check_vma=False,
        )
    )
    small = 2 * config.batch * config.width**2 * count * len(devices)
    h, w = jnp.ones((len(devices), config.batch, config.width)), jnp.eye(config.width)
    large = jnp.ones((2048, 2048))
    accuracy = dataset["accuracy"].isel(kind=0, rate=0)
    accuracy = accuracy.transpose("depth", "w_variance", "seed").values
    return {
        "seconds": seconds,
        "compiling": compiling,
        "accuracy": accuracy.tolist(),
        "overall": arithmetic / seconds,
        "running": arithmetic / (seconds - compiling),
        "small": rate(small, chains, h, w),
        "large": rate(2 * 2048**3, jax.jit(jnp.matmul), large, large),
    }


def in_process(part: str, cells: int) -> dict[str, Any]:
    """Run one part in a fresh process and return what it found."""
    command = [sys.executable, "-m", "benchmarks.trainability", "--part", part]
    command += ["--cells", str(cells)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: the part {part!r} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run both and print times, their ratio and the accuracies' difference."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--cells", type=int, default=4, help="PyTorch networks for each depth")
    parser.add_argument("--part", choices=("pytorch", "jaxgrad"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(pytorch(options.cells) if options.part == "pytorch" else jaxgrad()))
        return
    config = trainability.Options()
    each = config.w_variances * config.seeds
    ours = in_process("jaxgrad", 0)
    print(
        f"jaxgrad: {len(config.depths) * each} networks in {ours['seconds']:.0f} s, compiling "
        f"included; {ours['compiling']:.0f} s with a single step of training"
    )
    rates = [f"{ours[name] / 1e9:.0f}" for name in ("overall", "running", "small", "large")]
    print(
        "         products at {} GF/s, {} without compiling; nothing but products of this size {}, "
        "a large one {}".format(*rates)
    )
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed; nothing to compare with.")
        return
    runs = np.array(in_process("pytorch", options.cells)["runs"])
    mean = [runs[runs[:, 0] == depth, 2].mean() for depth in SAMPLE]
    total = each * np.interp(config.depths, SAMPLE, mean).sum()
    print(
        f"pytorch: {total:.0f} s, scaled from {len(runs)} networks; {total / ours['seconds']:.2f} x"
    )
    accuracy = np.array(ours["accuracy"])
    rows = [config.depths.index(int(depth)) for depth in runs[:, 0]]
    cells = accuracy[rows, runs[:, 1].astype(int)]
    apart = runs[:, 3] - cells.mean(axis=1)
    error = apart.std(ddof=1) / np.sqrt(len(apart))
    print(f"accuracy: pytorch less jaxgrad {apart.mean():+.3f} ± {error:.3f}, over these networks")


if __name__ == "__main__":
    main()
