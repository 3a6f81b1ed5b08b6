"""The headline comparisons in one command, both sides in one run, with their spread.

Run `python -m benchmarks`. Each line compares jaxgrad with what people would use instead, in
processes that follow one another, several times. A ratio is the other's time over jaxgrad's in one
run, compilation included; the line has the median and the range. The numbers go to a dated JSON
file, and the ratios to a figure. Lines with PyTorch are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxgrad
from experiments._kit import figures
from jaxgrad.plotting import style

GRID, CHECK = "benchmarks.depth_grid", "benchmarks.gradient_check_speed"


class Side(NamedTuple):
    """One part of a benchmark, whose last line of output is JSON with its `seconds`."""

    module: str
    part: str
    size: int = 0


class Pair(NamedTuple):
    """What is compared."""

    task: str
    other: str  # what people would use instead
    ours: Side
    theirs: Side


PROBE, EXACT = (Side(GRID, part) for part in ("probe", "exact"))
PER_DEPTH, TORCH_GRID = Side(GRID, "jax per depth", 5), Side(GRID, "pytorch", 256)
EVERY = Side(CHECK, "exhaustive")
PAIRS = [
    Pair("gradients of 16,384 networks, estimated", "jax.grad, jitted per depth", PROBE, PER_DEPTH),
    Pair("gradients of 16,384 networks, exact", "jax.grad, jitted per depth", EXACT, PER_DEPTH),
    Pair("gradients of 16,384 networks, estimated", "a PyTorch loop", PROBE, TORCH_GRID),
    Pair("differences of 84,480 weights", "lax.map over weights", EVERY, Side(CHECK, "plain")),
    Pair("differences of 84,480 weights", "torch gradcheck", EVERY, Side(CHECK, "pytorch")),
]


def seconds(side: Side) -> float:
    """Run a part in a process of its own and return the time that it measured."""
    command = [sys.executable, "-m", side.module, "--part", side.part]
    command += ["--size", str(side.size)] if side.module == GRID else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command[1:])} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def measure(pairs: list[Pair], repeats: int) -> list[dict[Side, float]]:
    """Return the times of all sides, each once a run."""
    sides = list(dict.fromkeys(side for pair in pairs for side in (pair.ours, pair.theirs)))
    runs = []
    for i in range(repeats):
        runs.append({})
        for side in sides:
            runs[-1][side] = seconds(side)
            print(f"run {i + 1}: {side.part} {runs[-1][side]:.2f} s", file=sys.stderr, flush=True)
    return runs


def draw(pairs: list[Pair], ratios: np.ndarray) -> Any:
    """Return the figure of ratios `[pair, run]`."""
    title, middle = "How much longer the others take", np.median(ratios, axis=1)
    figure, ((ax,),) = figures.panels(title, height=1 + 0.5 * len(pairs))
    rows = np.arange(len(pairs))[::-1]
    reach = np.abs(np.stack([ratios.min(axis=1), ratios.max(axis=1)]) - middle)
    ax.errorbar(middle, rows, xerr=reach, fmt="o", capsize=4)
    ax.axvline(1, color=style.palette().muted, linewidth=1)
    ax.set_yticks(rows, [f"{pair.task}\nbeside {pair.other}" for pair in pairs])
    ax.margins(y=0.3)
    ax.set(xscale="log", xlabel="time of the other over that of jaxgrad; range over runs")
    return figure


def main() -> None:
    """Measure, print the table, write the numbers and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("--repeats", type=int, default=3, help="runs of everything")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks.png"))
    options = parser.parse_args()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    torch = importlib.util.find_spec("torch") is not None
    pairs = [pair for pair in PAIRS if torch or pair.theirs.part != "pytorch"]
    runs = measure(pairs, options.repeats)
    ratios = np.array([[run[pair.theirs] / run[pair.ours] for run in runs] for pair in pairs])
    print(f"{'task':40} {'beside':27} {'ours':>8} {'ratio':>7}  range")
    for pair, row in zip(pairs, ratios, strict=True):
        ours = np.median([run[pair.ours] for run in runs])
        low, middle, high = np.quantile(row, [0, 0.5, 1])
        line = f"{pair.task:40} {pair.other:27} {ours:6.2f} s {middle:7.1f}"
        print(f"{line}  {low:.1f} to {high:.1f}")
    figures.save(lambda: draw(pairs, ratios), options.output)
    now = datetime.now(UTC)
    versions = {"jaxgrad": jaxgrad.__version__, "jax": jax.__version__}
    numbers = {
        "date": now.isoformat(timespec="seconds"),
        "versions": versions | {"python": platform.python_version()},
        "cores": len(os.sched_getaffinity(0)),
        "seconds": [{f"{s.module} {s.part}": v for s, v in run.items()} for run in runs],
        "ratios": {
            f"{p.task}, {p.other}": row.tolist() for p, row in zip(pairs, ratios, strict=True)
        },
    }
    path = options.output.with_name(f"{options.output.stem}_{now:%Y-%m-%d}.json")
    path.write_text(json.dumps(numbers, indent=1))
    print(f"Figure: {options.output}\nNumbers: {path}")


if __name__ == "__main__":
    main()
