"""Compute a function in every cell of a grid."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from jaxgrad import _validate
from jaxgrad.sweeps import _compile, _grid, _store
from jaxgrad.sweeps._store import MARKER, Variable

if TYPE_CHECKING:
    import xarray


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
    store: str | os.PathLike[str] | None = None,
    chunk_cells: int | None = None,
    memory_limit: int = 2**30,
    static: str | Sequence[str] = (),
    vectorized: bool = True,
    devices: Sequence[Any] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> xarray.Dataset:
    """Compute `function` in every cell of the grid that `axes` span.

    Args:
      function: Pure function of one cell, `function(key, point, *args) -> {name: array}`. `point`
        maps the names of the axes to values. Numbers are traced scalars (int32 or float32 unless
        x64 is enabled). Strings and booleans are Python values, and each combination of them is
        compiled once.
      axes: Names and distinct values, all numbers, all strings or all booleans. The grid is their
        product; the first axis varies slowest.
      variables: Description of each array that `function` returns.
      key: A `jax.random.key`. Each cell gets its `cell_key`.
      args: Pytrees of arrays that every cell takes as a whole.
      coords: Labels of inner dimensions; without an entry a dimension has no labels.
      units: Units of axes and of `coords`, by name.
      config: Mapping or dataclass of JSON values. The code of `function` is not stored, so put
        everything here that its results depend on.
      store: Path of a Zarr directory. It is created, or resumed if it holds the same sweep. A chunk
        counts as computed once all its values are written. It is then not computed again, even if
        the process was killed. Only one process may use a store at a time.
      chunk_cells: Largest number of cells that are stored together, by default a sixteenth of the
        grid. A resumed store keeps its chunks.
      memory_limit: Bytes that a program may use on each device, as the compiler counts them. A
        chunk that needs more is computed in several batches.
      static: Names of axes whose numbers are also Python values, such as a depth that decides
        shapes. Each value is compiled.
      vectorized: Whether a device computes the cells of a batch together. If not, each cell has the
        cache to itself, which is faster on CPUs for large cells such as training runs.
      devices: Devices that each batch is spread over, by default `jax.local_devices()`.
      progress: Called as `progress(done_cells, total_cells)` at the start and whenever a chunk has
        been stored.

    Returns:
      The variables over the axes and their inner dimensions, in memory, or read lazily from
      `store`. NaN and infinity are valid results. The attributes contain units, config, key,
      versions and devices.

    Raises:
      ValueError, TypeError: If an argument is invalid, `store` holds something else, or one cell
        takes more than `memory_limit`.
      OSError: If `store` cannot be written.
      ImportError: Without xarray or zarr.

    >>> import jax
    >>> def cell(key, point):
    ...     return {"mean": jax.random.normal(key, (100,)).mean() + point["shift"]}
    >>> axes = {"shift": [0.0, 5.0], "seed": range(3)}
    >>> run(cell, axes, {"mean": Variable()}, key=jax.random.key(0))["mean"].shape
    (2, 3)
    """
    _store.import_xarray()
    progress = (lambda done, total: None) if progress is None else progress
    _check_callables(function=function, progress=progress)
    _check_key(key)
    grid = _grid.make_grid(axes, static)
    variables = _validate.mapping("variables", variables)
    units = _validate.mapping("units", units or {})
    labels = {
        name: _grid.checked_labels(f"coords[{name!r}]", values)
        for name, values in _validate.mapping("coords", coords or {}).items()
    }
    _check_names(grid, variables, labels, units)
    config = _checked_config(config)
    mesh = _compile.make_mesh(devices)
    total = math.prod(_grid.sizes(grid))
    chunk_cells = max(mesh.size, -(-total // 16)) if chunk_cells is None else chunk_cells
    chunk_cells = _validate.integer("chunk_cells", chunk_cells, 1)
    memory_limit = _validate.integer("memory_limit", memory_limit, 1)
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write args=(value,)")

    # Shapes come from an abstract evaluation; nothing is compiled yet.
    shared = jax.device_put((key, tuple(args)), NamedSharding(mesh, P()))
    cell = functools.partial(_compile.evaluate_cell, function, tuple(grid), tuple(variables))
    outputs = _compile.output_shapes(cell, grid, variables, labels, shared)
    identity = _store.identity(grid, variables, outputs, labels, units, config, shared)
    table = _store.empty_table(grid, variables, outputs, identity, mesh)
    chunk = _grid.chunk_shape(grid, chunk_cells)
    if store is None:
        table = table.copy(deep=True)
        arrays = {name: array.values for name, array in table.data_vars.items()}
    else:
        if not os.path.lexists(store):
            _store.create(Path(store), table, chunk)
        arrays = _store.resume(Path(store), identity)
        chunk = arrays[MARKER].chunks

    computed = np.array(arrays[MARKER][...])
    done = int(computed.sum())
    progress(done, total)
    pending = [block for block in _grid.blocks(grid, chunk) if not computed[block].all()]
    limits = {"memory_limit": memory_limit, "cells": math.prod(chunk), "vectorized": vectorized}
    compiler = functools.partial(_compile.compile_cells, cell, grid, mesh, shared, **limits)
    for block, results in _compile.compute_blocks(grid, pending, compiler):
        _store.write(arrays, block, results)
        done += computed[block].size
        progress(done, total)
    return (table if store is None else _store.open_store(store)).drop_vars(MARKER)


def _check_callables(**functions: Any) -> None:
    for name, value in functions.items():
        if not callable(value):
            raise TypeError(f"{name} must be callable, got {value!r}; pass a function")


def _check_key(key: Any) -> None:
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape != ():
        raise TypeError(f"key must be one typed key, got {key!r}; pass jax.random.key(0)")
    if str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(
            f"key must be of implementation threefry2x32, got {jax.random.key_impl(key)}, whose "
            "draws change with the batch; pass jax.random.key(0, impl='threefry2x32')"
        )


def _check_names(grid, variables, coords, units) -> None:
    """Check that names are identifiers, used once, and that labels and units refer to them."""
    if not (grid and variables):
        raise ValueError("axes and variables must not be empty; pass one or more of each")
    for name, variable in variables.items():
        _check_variable(name, variable)
    inner = {dim: None for variable in variables.values() for dim in variable.dims}
    names = [*grid, *variables, *inner, MARKER]
    for name in names:
        if not name.isidentifier():
            raise ValueError(f"names must be Python identifiers, got {name!r}; rename it")
        if names.count(name) > 1:
            raise ValueError(
                f"axes, variables, dims and {MARKER!r} must not share a name, got {name!r}; rename "
                "one"
            )
    for argument, entries, allowed, kind in (
        ("coords", coords, inner, "an inner dimension"),
        ("units", units, {**grid, **coords}, "an axis or one of coords"),
    ):
        for name in entries:
            if name not in allowed:
                raise ValueError(f"{argument} must name {kind}, got {name!r}; remove it")


def _check_variable(name: str, variable: Any) -> None:
    valid = isinstance(variable, Variable) and isinstance(variable.dims, tuple)
    if not valid or not all(isinstance(v, str) for v in (*variable.dims, *variable[1:])):
        raise TypeError(
            f"variables[{name!r}] must be a Variable of a tuple of names and two strings, got "
            f"{variable!r}; write for example Variable(('layer',), '1', 'norm')"
        )
    if len(set(variable.dims)) < len(variable.dims):
        raise ValueError(
            f"variables[{name!r}].dims must not repeat a name, got {variable.dims}; rename one"
        )


def _checked_config(config: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    config = _validate.mapping("config", {} if config is None else config)
    # Through JSON and back, so that tuples compare equal to the lists that a store returns.
    try:
        return json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"config must hold JSON values, got {config!r} ({error}); pass text or finite numbers"
        ) from None
