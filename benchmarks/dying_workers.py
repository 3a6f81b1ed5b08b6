"""Sweeps on clusters whose workers are killed and replaced at random.

Run `python -m benchmarks.dying_workers`. In each round a store is filled by 4 to 8 workers (see
`--workers`), one to four of which are killed (SIGKILL) at random moments; the cluster starts new
ones. The files must be those that one process writes, and at most one chunk may be computed twice
for each kill. A second part compares the time of 8 workers with the ideal, for cells that sleep a
second.

Numbers of the last part count waiting, not arithmetic: they hold on a machine with few cores too.
"""

from __future__ import annotations

import argparse
import functools
import os
import random
import signal
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from distributed import Client, LocalCluster

from jaxgrad import sweeps

VARIABLES = {"draw": sweeps.Variable()}
CELLS = 40


def cell(key: Any, point: Any, folder: str, seconds: float) -> dict[str, Any]:
    """Draw a number, sleep, and leave a file that says that the cell was computed."""

    def work(index):
        time.sleep(seconds)
        Path(folder, f"{int(index)}-{uuid.uuid4().hex}").touch()
        return index

    shape = jax.ShapeDtypeStruct((), jnp.int32)
    index = jax.pure_callback(work, shape, point["cell"], vmap_method="sequential")
    return {"draw": jax.random.normal(key) + index}


class Round(NamedTuple):
    """What happened in one round."""

    workers: int
    kills: int
    twice: int  # chunks that were computed again
    equal: bool  # whether the files are those that one process writes
    seconds: float


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of a store without the one that holds the time of its creation."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {str(path.relative_to(folder)): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if name != "zarr.json"}


def sweep(store: Path, log: Path, seconds: float, client: Client | None, cells: int) -> None:
    """Fill a store with cells that are a chunk each."""
    log.mkdir(exist_ok=True)
    sweeps.run(
        functools.partial(cell, folder=str(log), seconds=seconds),
        {"cell": range(cells)},
        VARIABLES,
        key=jax.random.key(0),
        chunk_cells=1,
        store=store,
        client=client,
    )


def kill(client: Client, count: int, within: float, draw: random.Random, stop: Any) -> list[int]:
    """Kill workers at random moments; returns the processes that were killed."""
    killed: list[int] = []
    moments = np.sort([draw.uniform(0, within) for _ in range(count)])
    for pause in np.diff(moments, prepend=0.0):
        if stop.wait(pause):
            break
        processes: Any = client.run(os.getpid, on_error="ignore")
        living = sorted(set(processes.values()) - set(killed))
        if living:
            killed.append(draw.choice(living))
            os.kill(killed[-1], signal.SIGKILL)
    return killed


def one_round(folder: Path, expected: dict[str, bytes], draw: random.Random, workers: int) -> Round:
    """Fill a store while workers die."""
    kills = draw.randint(1, 4)
    options = {"threads_per_worker": 1, "dashboard_address": None, "worker_dashboard_address": None}
    with LocalCluster(n_workers=workers, **options) as cluster, Client(cluster) as client:
        start, stop, killed = time.perf_counter(), threading.Event(), []
        # Kills fall within the time that the sweep would take without them.
        within = 2.0 + 0.2 * CELLS / workers
        thread = threading.Thread(
            target=lambda: killed.extend(kill(client, kills, within, draw, stop))
        )
        thread.start()
        sweep(folder / "store", folder / "log", 0.2, client, CELLS)
        stop.set()
        thread.join()
        seconds = time.perf_counter() - start
    twice = len(list((folder / "log").iterdir())) - CELLS
    equal = files(folder / "store") == expected
    return Round(workers, len(killed), twice, equal, seconds)


def main() -> None:
    """Run all rounds and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, nargs=2, default=(4, 8), help="fewest and most")
    parser.add_argument("--cells", type=int, default=400, help="of a second each, on 8 workers")
    options = parser.parse_args()
    draw, rounds = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep(folder / "store", folder / "log", 0.0, None, CELLS)
        expected = files(folder / "store")
    print("round  workers  killed  computed twice  equal   seconds")
    for i in range(options.rounds):
        with tempfile.TemporaryDirectory() as name:
            rounds.append(one_round(Path(name), expected, draw, draw.randint(*options.workers)))
        r = rounds[-1]
        row = f"{i + 1:5} {r.workers:8} {r.kills:7} {r.twice:15}  {'yes' if r.equal else 'NO':>5}"
        print(f"{row} {r.seconds:9.1f}", flush=True)
    kills, twice = (sum(column) for column in zip(*(r[1:3] for r in rounds), strict=True))
    equal, within = sum(r.equal for r in rounds), sum(r.twice <= r.kills for r in rounds)
    print(
        f"{kills} workers killed in {len(rounds)} rounds: {equal} stores equal that of one process;"
    )
    print(f"{twice} chunks computed twice, at most one a kill in {within} rounds")
    if options.cells:
        print(efficiency(options.cells))


def efficiency(cells: int, workers: int = 8) -> str:
    """Return the share of the ideal speed that workers reach with cells that sleep a second."""
    options = {"threads_per_worker": 1, "dashboard_address": None, "worker_dashboard_address": None}
    with (
        tempfile.TemporaryDirectory() as name,
        LocalCluster(n_workers=workers, **options) as cluster,
        Client(cluster) as client,
    ):
        start = time.perf_counter()
        sweep(Path(name, "store"), Path(name, "log"), 1.0, client, cells)
        seconds = time.perf_counter() - start
    share = np.ceil(cells / workers) / seconds
    return f"{cells} cells of 1 s on {workers} workers: {seconds:.1f} s, {share:.0%} of the ideal"


if __name__ == "__main__":
    main()
