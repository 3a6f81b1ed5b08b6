"""Compute a function in every cell of a grid, by programs that compute many cells at once."""

import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Array, Key

from jaxgrad import _validate
from jaxgrad.sweeps import (
    _forecast,
    _grid,
    _leases,
    _location,
    _programs,
    _reading,
    _store,
    _table,
)
from jaxgrad.sweeps._forecast import Forecast
from jaxgrad.sweeps._leases import Leases
from jaxgrad.sweeps._location import Location
from jaxgrad.sweeps._store import MARKER, Store, Variable
from jaxgrad.sweeps._sweep import Sweep, prepare, resume

if TYPE_CHECKING:
    import distributed
    import xarray
    import zarr.abc.store

_POLL_SECONDS = 0.2


def run(
    function: Callable[..., Mapping[str, Any]],
    axes: Mapping[str, Iterable[Any]],
    variables: Mapping[str, Variable],
    *,
    key: Key[Array, ""],
    args: Sequence[Any] = (),
    coords: Mapping[str, Iterable[Any]] | None = None,
    units: Mapping[str, str] | None = None,
    config: Any = None,
    store: "str | os.PathLike[str] | zarr.abc.store.Store | None" = None,
    repair: bool = False,
    other_versions: bool = False,
    chunk_cells: int | None = None,
    memory_limit: int = 2**30,
    static: str | Sequence[str] = (),
    vectorized: bool = True,
    devices: Sequence[Any] | None = None,
    progress: Callable[[int, int], Any] | None = None,
    on_forecast: Callable[[Forecast], Any] | None = None,
    client: "distributed.Client | None" = None,
) -> "xarray.Dataset":
    """Compute `function` in every cell of the grid that `axes` span.

    Args:
      function: Pure function of one cell, `function(key, point, *args) -> {name: array}`. `point`
        maps the names of the axes to values. Numbers are traced scalars (int32 or float32 unless
        x64 is enabled). Strings and booleans are Python values; each combination is compiled once.
      axes: Names and distinct values, all numbers, all strings or all booleans. The grid is their
        product; the first axis varies slowest.
      variables: Description of each array that `function` returns.
      key: A `jax.random.key`. Each cell gets its `cell_key`.
      args: Pytrees of arrays that every cell takes as a whole.
      coords: Labels of inner dimensions, by name.
      units: Units of axes and of `coords`, by name.
      config: Mapping or dataclass of JSON values. The code of `function` is not stored, so put
        everything here that its results depend on.
      store: Path of a Zarr directory, a URL such as `s3://bucket/sweep.zarr`, or a store of Zarr.
        It is created, or resumed if it holds the same sweep: the same axes and coords with their
        units, `static` axes, variables, config, key, args, settings of JAX, versions. A chunk whose
        values are all written is not computed again, even if the process was killed. Several
        processes may share a directory: each takes chunks that no other computes, and takes over
        those of a process that died. Elsewhere there are no such leases, and each process computes
        all that is missing.
      repair: Whether to verify what is computed, and compute chunks that are missing or damaged
        again. Otherwise they raise an error when their values are read.
      other_versions: Whether to resume a store that other versions of JAX, NumPy or this package
        have begun. Its values may then differ by rounding, or in their draws, from chunk to chunk.
        The table has a variable `chunk-versions`, which says which cells come from which.
      chunk_cells: Largest number of cells that are stored together, by default a sixteenth of the
        grid; fewer if they would take more than 64 MiB. A resumed store keeps its chunks.
      memory_limit: Bytes of a program on each device. Larger chunks are computed in batches.
      static: Names of axes whose numbers are also Python values, such as a depth that decides
        shapes. Each value is compiled.
      vectorized: Whether a device computes the cells of a batch together. One after the other is
        faster on CPUs for large cells such as training runs, because each has the cache to itself.
      devices: Devices of this process that each batch is spread over, by default
        `jax.local_devices()`.
      progress: Called as `progress(done_cells, total_cells)` at the start and after each chunk.
      on_forecast: Called with a `Forecast` when the first program is compiled, before any cell is
        computed, and again after the first chunk, when the time is known.
      client: A `dask.distributed.Client`, whose workers then compute the chunks; the extra
        `cluster` is required. They need `store`, in a place that all of them reach, and the same
        packages. Each computes one chunk at a time on all of its own devices, and keeps its
        programs. The chunk of a worker that dies is computed by another one. `on_forecast` is first
        called after the first chunk.

    Returns:
      The variables over the axes and their inner dimensions, in memory, or read lazily from
      `store`. NaN and infinity are valid. Attributes hold units, config, key, versions, devices.

    Raises:
      ValueError, TypeError: If an argument is invalid, `store` holds something else, is damaged or
        was begun by other versions, or one cell takes more than `memory_limit`.
      OSError: If `store` cannot be written.
      ImportError: Without xarray or zarr, or with `client` without distributed.
      RuntimeError: If workers die wherever a certain chunk is computed.

    >>> import jax
    >>> def cell(key, point):
    ...     return {"mean": jax.random.normal(key, (100,)).mean() + point["shift"]}
    >>> axes = {"shift": [0.0, 5.0], "seed": range(3)}
    >>> run(cell, axes, {"mean": Variable()}, key=jax.random.key(0))["mean"].shape
    (2, 3)
    """
    _table.import_xarray()
    calls = _checked_calls(progress=progress, on_forecast=on_forecast)
    _check_flags(repair=repair, other_versions=other_versions)
    location = None if store is None else _location.locate("store", store)
    _check_client(client, store, devices)
    arguments = {
        "function": function,
        "axes": axes,
        "variables": variables,
        "key": key,
        "args": args,
        "coords": coords,
        "units": units,
        "config": config,
        "chunk_cells": chunk_cells,
        "memory_limit": memory_limit,
        "static": static,
        "vectorized": vectorized,
        "devices": devices,
    }
    sweep = prepare(**arguments)
    # Without a store the table is filled in memory.
    if location is None:
        arrays = _table.empty_arrays(sweep.identity, sweep.chunks.shape)
        _compute(sweep, None, arrays, arrays[MARKER], **calls)
        attributes = _table.attributes(sweep.identity, sweep.compiler.mesh)
        return _table.table(sweep.identity, attributes, arrays).drop_vars(MARKER)
    target = _open(location, sweep, repair, other_versions)
    computed = _intact(target, repair)
    if not computed.all() and location.folder and not os.access(location.folder, os.W_OK):
        raise OSError(f"store {location.name!r} cannot be written; make it writable or copy it")
    # A resumed store keeps its chunks, and its keys.
    sweep = resume(sweep, target, static, other_versions)
    if client is None:
        _compute(sweep, target, {}, computed, **calls)
    else:
        from jaxgrad.sweeps import _cluster

        job = _cluster.make_job(sweep, arguments, location, other_versions)
        _cluster.compute(client, job, sweep, computed, **calls)
    return _table.open_store(location.zarr_store).drop_vars(MARKER)


def _open(location: Location, sweep: Sweep, repair: bool, other_versions: bool) -> Store:
    """Open the store of a sweep, or create it."""
    attributes = _table.attributes(sweep.identity, sweep.compiler.mesh)
    if not _location.exists(location):
        _store.create(location, sweep.identity, attributes, sweep.chunks)
    try:
        store = _store.open_verified("store", location, "r+")
    except _store.DamagedStoreError as error:
        if not repair:
            raise
        # Chunks stay, and those that fit the digests of this sweep stay valid.
        _warn("metadata and labels are written again", error)
        _store.create(location, sweep.identity, attributes, sweep.chunks)
        store = _store.open_verified("store", location, "r+")
    return store


def _warn(repair: str, error: Exception) -> None:
    # Without the hint to do what is being done.
    warnings.warn(f"{repair}: {str(error).removesuffix(_store.REPAIR)}", stacklevel=4)


def _checked_calls(**calls: Any) -> dict[str, Callable[..., Any]]:
    """Return functions that are called during a sweep, by name, without None."""
    for name, call in calls.items():
        if call is not None and not callable(call):
            got = f"got {_validate.show(call)}; pass a function"
            raise TypeError(f"{name} must be callable, {got}")
    return {name: call or (lambda *values: None) for name, call in calls.items()}


def _check_flags(**flags: Any) -> None:
    for name, flag in flags.items():
        _validate.flag(name, flag)


def _check_client(client: Any, store: Any, devices: Any) -> None:
    """Raise unless a client, if there is one, can be used."""
    if client is None:
        return
    _validate.installed("client", "cluster", "distributed")
    import distributed

    if not isinstance(client, distributed.Client) or client.asynchronous:
        remedy = "pass distributed.Client(address)"
        rule = "client must be a synchronous dask.distributed.Client"
        raise TypeError(f"{rule}, got {_validate.show(client)}; {remedy}")
    if store is None:
        raise ValueError("store must be a path or a URL if there is a client, got None; pass one")
    if devices is not None:
        remedy = "leave it out, and start each worker with the devices that it shall use"
        raise ValueError(f"devices must be None if there is a client, got {devices!r}; {remedy}")


def _intact(store: Store, repair: bool) -> np.ndarray:
    """Return which cells are computed; raise if they are damaged, or remove them to be repaired."""
    if not repair:
        computed = _reading.read_computed(store)
        for number in np.flatnonzero(store.chunks.complete(computed)).tolist():
            if (error := _reading.missing_file(store, number)) is not None:
                raise error
        return computed
    # All values are read and hashed.
    computed = np.zeros(store.chunks.shape, bool)
    for number in range(store.chunks.total):
        try:
            computed[store.chunks.block(number)] = _reading.verify_block(store, number)
        except _store.DamagedStoreError as error:
            _warn("cells are computed again", error)
            _store.remove_block(store, number)
    return computed


def _compute(sweep: Sweep, store: Store | None, arrays, computed, progress, on_forecast) -> None:
    """Compute and write all blocks that are not computed yet."""
    chunks, total, done = sweep.chunks, computed.size, int(computed.sum())
    pending = np.flatnonzero(~chunks.complete(computed))
    programs = len(_grid.programs(sweep.compiler.grid, chunks, pending))
    watch = _forecast.watch(total - done, len(pending), programs, sweep.cell_bytes, on_forecast)
    progress(done, total)

    def advance(number: int) -> None:
        nonlocal done
        done += math.prod(_grid.block_shape(chunks.block(number)))
        progress(done, total)

    # Other stores than folders cannot create a file exclusively.
    folder = store.location.folder if store else None
    with _leases.hold(folder and folder / MARKER / "leases") as leases:
        numbers = _claim(sweep, store, leases, pending, advance)
        blocks = _programs.compute_blocks(sweep.compiler, chunks, numbers, watch.compiled)
        for number, results in blocks:
            if store is None:
                block = chunks.block(number)
                for name, values in results.items():
                    arrays[name][block] = values.reshape(arrays[name][block].shape)
                computed[block] = True
            else:
                _store.write_block(store, number, results)
            leases.release(number)
            watch.computed()
            advance(number)


def _claim(
    sweep: Sweep, store: Store | None, leases: Leases, pending: np.ndarray, skip: Any
) -> Iterator[int | None]:
    """Yield blocks that this process is to compute, None before it waits for other processes."""
    first = True
    while len(pending):
        # All blocks of one program follow one another, so that only one is held in memory.
        groups = _grid.programs(sweep.compiler.grid, sweep.chunks, pending)
        deferred = []
        for number in itertools.chain.from_iterable(group.tolist() for group in groups):
            # Another process may have computed a block since this one has looked.
            if not leases.acquire(number):
                deferred.append(number)
            elif store is not None and _reading.is_marked(store, number):
                leases.release(number)
                skip(number)
            else:
                yield number
                # The time of the first chunk is measured, and so it has no company. A process that
                # shares a store has one block at a time, which is all that is lost if it is killed.
                if first or (store is not None and store.location.folder):
                    yield None
                first = False
        if len(deferred) == len(pending):
            yield None
            time.sleep(_POLL_SECONDS)
        pending = np.array(deferred, int)
