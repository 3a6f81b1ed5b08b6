"""A sweep on the workers of a `dask.distributed` cluster, which schedules and replaces them.

The client creates the store and hands out numbers of blocks. A worker computes one block and writes
it to the store, which all of them must reach. Nothing but the numbers comes back.
"""

import collections
import contextlib
import itertools
import math
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from distributed import Client, KilledWorker, WorkerPlugin, as_completed, get_worker

from jaxgrad.sweeps import _grid, _location, _programs, _reading, _store
from jaxgrad.sweeps._forecast import Forecast
from jaxgrad.sweeps._location import Location
from jaxgrad.sweeps._sweep import Sweep, prepare, resume

IN_FLIGHT = 256
"""Blocks that the scheduler knows of at a time, which is more than there are workers."""
DEATHS = 10
"""Deaths of workers during one block, in units of the scheduler's limit, until it is given up."""


class Job(NamedTuple):
    """All that a worker needs to compute any block of a sweep."""

    arguments: Mapping[str, Any]  # of `prepare`, with keys as `_Key`
    store: Any  # path, URL or store of Zarr
    settings: Mapping[str, Any]  # of JAX, see `_identity.describe`
    other_versions: bool


class Done(NamedTuple):
    """A block that is in the store."""

    number: int
    memory_bytes: int  # of the program, 0 if none was needed
    seconds: float  # without compiling


class _Key(NamedTuple):
    """A key of JAX as an array, which can be sent."""

    data: np.ndarray
    implementation: str


def make_job(
    sweep: Sweep, arguments: Mapping[str, Any], location: Location, other_versions: bool
) -> Job:
    """Return what workers need of a sweep, whose arguments may be used up."""
    # Workers may run in another folder.
    folder = location.folder
    store = str(folder.absolute()) if folder else location.zarr_store
    # Labels are plain values, and make the same grid.
    names = ("axes", "coords", "units", "config")
    plain = dict(arguments) | {name: sweep.identity[name] for name in names}
    packed = {name: jax.tree.map(_packed, plain[name]) for name in ("key", "args")}
    return Job(plain | packed, store, sweep.identity["settings"], other_versions)


def _packed(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return _Key(np.asarray(jax.random.key_data(leaf)), str(jax.random.key_impl(leaf)))
    return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf


def _unpacked(leaf: Any) -> Any:
    if isinstance(leaf, _Key):
        return jax.random.wrap_key_data(jnp.asarray(leaf.data), impl=leaf.implementation)
    return leaf


class Blocks(WorkerPlugin):
    """What a worker holds while a sweep lasts: the open store and the compiled program.

    Attributes:
      compute: computes one block; those of one worker follow one another.
    """

    def __init__(self, job: Job):
        self._job, self.compute = job, _computer(job)

    def __reduce__(self):
        # Programs stay where they are; only the job travels.
        return Blocks, (self._job,)


def _computer(job: Job) -> Callable[[int], Done]:
    """Return a function that computes one block; it opens the store when it is first called."""
    lock, opened = threading.Lock(), []

    def compute(number: int) -> Done:
        with lock, _entered(job.settings):
            call = opened.pop() if opened else _open(job)
            done = call(number)
            # After an error it is opened again.
            opened.append(call)
        return done

    return compute


def _open(job: Job) -> Callable[[int], Done]:
    """Open the store of a job and return a function that computes and writes one block."""
    packed = {name: job.arguments[name] for name in ("key", "args")}
    shared = jax.tree.map(_unpacked, packed, is_leaf=lambda node: isinstance(node, _Key))
    sweep = prepare(**(dict(job.arguments) | shared))
    store = _store.open_verified("store", _location.locate("store", job.store), "r+")
    sweep = resume(sweep, store, job.arguments["static"], job.other_versions)
    requests, programs = collections.deque(), [(0, 0.0)]

    def numbers():
        # A block is finished before the next one is asked for.
        while True:
            yield requests.popleft()
            yield None

    blocks = _programs.compute_blocks(
        sweep.compiler, sweep.chunks, numbers(), lambda *values: programs.append(values)
    )

    def compute(number: int) -> Done:
        # A worker that died may have written the block before its answer arrived.
        if _reading.is_marked(store, number):
            return Done(number, 0, 0.0)
        count, start = len(programs), time.perf_counter()
        requests.append(number)
        number, results = next(blocks)
        _store.write_block(store, number, results)
        compiling = sum(seconds for _, seconds in programs[count:])
        return Done(number, programs[-1][0], time.perf_counter() - start - compiling)

    return compute


@contextlib.contextmanager
def _entered(settings: Mapping[str, Any]) -> Iterator[None]:
    """Set what results depend on as it is where the sweep was started."""
    with (
        jax.enable_x64(settings["jax_enable_x64"]),
        jax.default_matmul_precision(settings["jax_default_matmul_precision"]),
        jax.threefry_partitionable(settings["jax_threefry_partitionable"]),
    ):
        yield


def _compute_block(name: str, number: int) -> Done:
    plugin = get_worker().plugins[name]
    assert isinstance(plugin, Blocks)
    return plugin.compute(number)


def compute_blocks(client: Client, job: Job, numbers: list[int]) -> Iterator[Done]:
    """Yield blocks as workers finish them.

    A block whose worker dies is computed by another one. Raises RuntimeError if workers die
    wherever a block is computed, and what computing a block raises.
    """
    name, waiting = f"jaxgrad-{uuid.uuid4().hex}", iter(numbers)
    deaths: collections.Counter[int] = collections.Counter()
    running: dict[Any, int] = {}

    def submit(number: int) -> Any:
        future = client.submit(
            _compute_block, name, number, key=f"{name}-{number}-{deaths[number]}"
        )
        running[future] = number
        return future

    client.register_plugin(Blocks(job), name=name)
    try:
        finished = as_completed(list(map(submit, itertools.islice(waiting, IN_FLIGHT))))
        for future in finished:
            number = running.pop(future)
            try:
                done = future.result()
            except KilledWorker as error:
                deaths[number] += 1
                if deaths[number] == DEATHS:
                    rule = f"workers die wherever block {number} is computed"
                    raise RuntimeError(
                        f"{rule}; give them more memory, or see their logs"
                    ) from error
                finished.add(submit(number))
                continue
            for following in itertools.islice(waiting, 1):
                finished.add(submit(following))
            yield done
    finally:
        # Blocks that have not begun are cancelled, unless the scheduler is gone.
        with contextlib.suppress(OSError, RuntimeError):
            client.cancel(list(running))
            client.unregister_worker_plugin(name)


def compute(
    client: Client,
    job: Job,
    sweep: Sweep,
    computed: np.ndarray,
    progress: Callable[[int, int], Any],
    on_forecast: Callable[[Forecast], Any],
) -> None:
    """Let the workers compute and write all blocks that are not computed yet."""
    chunks, total, cells_done = sweep.chunks, computed.size, int(computed.sum())
    pending = np.flatnonzero(~chunks.complete(computed))
    # Blocks of one program follow one another, so that a worker compiles few.
    groups = _grid.programs(sweep.compiler.grid, chunks, pending)
    amounts = (
        total - cells_done,
        len(pending),
        len(groups),
        (total - cells_done) * sweep.cell_bytes,
    )
    progress(cells_done, total)
    if not groups:
        return
    numbers = [number for group in groups for number in group.tolist()]
    for i, done in enumerate(compute_blocks(client, job, numbers)):
        if i == 0:
            forecast = Forecast(*amounts, done.memory_bytes, float("nan"))
            on_forecast(forecast)
            workers: Any = client.nthreads()
            on_forecast(
                forecast._replace(seconds=done.seconds * (len(pending) - 1) / max(len(workers), 1))
            )
        cells_done += math.prod(_grid.block_shape(chunks.block(done.number)))
        progress(cells_done, total)
