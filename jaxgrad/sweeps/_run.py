"""Compute a function in every cell of a grid, by programs that compute many cells at once."""

import dataclasses
import functools
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from jaxgrad import _validate
from jaxgrad.sweeps import _grid, _store
from jaxgrad.sweeps._grid import Block
from jaxgrad.sweeps._store import MARKER, Variable

if TYPE_CHECKING:
    import xarray

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


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
      store: Path of a Zarr directory. It is created, or resumed if it holds the same sweep. A chunk
        whose values are all written is not computed again, even if the process was killed. Only one
        process may use a store at a time.
      chunk_cells: Largest number of cells that are stored together, by default a sixteenth of the
        grid. A resumed store keeps its chunks.
      memory_limit: Bytes of a program on each device. Larger chunks are computed in batches.
      static: Names of axes whose numbers are also Python values, such as a depth that decides
        shapes. Each value is compiled.
      vectorized: Whether a device computes the cells of a batch together. One after the other is
        faster on CPUs for large cells such as training runs, because each has the cache to itself.
      devices: Devices that each batch is spread over, by default `jax.local_devices()`.
      progress: Called as `progress(done_cells, total_cells)` at the start and after each chunk.

    Returns:
      The variables over the axes and their inner dimensions, in memory, or read lazily from
      `store`. NaN and infinity are valid. Attributes hold units, config, key, versions, devices.

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
    _check_types(function, key, args, progress)
    grid = _grid.make_grid(axes, static)
    variables = _validate.mapping("variables", variables)
    units = _validate.mapping("units", units or {})
    coords = _validate.mapping("coords", coords or {})
    labels = {n: _grid.checked_labels(f"coords[{n!r}]", values) for n, values in coords.items()}
    _check_names(grid, variables, labels, units)
    config = _checked_config(config)
    devices = jax.local_devices() if devices is None else devices
    if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise TypeError(f"devices must be JAX devices, got {devices!r}; see jax.local_devices()")
    _validate.distinct("devices", devices)
    total = math.prod(_grid.sizes(grid))
    chunk_cells = max(len(devices), -(-total // 16)) if chunk_cells is None else chunk_cells
    chunk_cells = _validate.integer("chunk_cells", chunk_cells, 1)
    memory_limit = _validate.integer("memory_limit", memory_limit, 1)

    # What each cell returns, by an abstract evaluation that compiles nothing.
    mesh = Mesh(np.array(devices), ("cells",))
    shared = jax.device_put((key, tuple(args)), NamedSharding(mesh, P()))
    cell = functools.partial(_evaluate_cell, function, tuple(grid), tuple(variables))
    outputs = _output_shapes(cell, grid, variables, labels, shared)

    # The table to be filled, in memory or in the store, and what is computed already.
    identity = _store.identity(grid, variables, outputs, labels, units, config, shared)
    table = _store.empty_table(grid, variables, outputs, identity, mesh)
    chunk = _grid.chunk_shape(grid, chunk_cells)
    if store is None:
        table = table.copy(deep=True)
        arrays = {name: array.values for name, array in table.data_vars.items()}
    else:
        arrays = _store.create_or_resume(Path(store), table, chunk, identity)
        chunk = arrays[MARKER].chunks
    computed = np.array(arrays[MARKER][...])
    done = int(computed.sum())
    progress(done, total)

    # The remaining chunks; each is written before it counts as computed.
    pending = [block for block in _grid.blocks(grid, chunk) if not computed[block].all()]
    limits = (memory_limit, math.prod(chunk), vectorized)
    compiler = functools.partial(_compile_cells, cell, grid, mesh, shared, *limits)
    for block, results in _compute_blocks(grid, pending, compiler):
        _store.write(arrays, block, results)
        done += computed[block].size
        progress(done, total)
    return (table if store is None else _store.open_store(store)).drop_vars(MARKER)


def _check_types(function, key, args, progress) -> None:
    for name, value in {"function": function, "progress": progress}.items():
        if not callable(value):
            raise TypeError(f"{name} must be callable, got {value!r}; pass a function")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write args=(value,)")
    # Old keys do not say which implementation they belong to.
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape != ():
        raise TypeError(f"key must be one typed key, got {key!r}; pass jax.random.key(0)")
    # The draws of some other implementations depend on the batch that a key is in.
    if (impl := str(jax.random.key_impl(key))) != "threefry2x32":
        remedy = "pass jax.random.key(0, impl='threefry2x32')"
        raise ValueError(f"key must be of implementation threefry2x32, got {impl}; {remedy}")


def _check_names(grid, variables, coords, units) -> None:
    if not grid or not variables:
        raise ValueError("axes and variables must not be empty; pass one or more of each")
    for name, variable in variables.items():
        valid = isinstance(variable, Variable) and isinstance(variable.dims, tuple)
        if not valid or not all(isinstance(v, str) for v in (*variable.dims, *variable[1:])):
            rule = f"variables[{name!r}] must be a Variable of a tuple of names and two strings"
            remedy = "write for example Variable(('layer',), '1', 'norm')"
            raise TypeError(f"{rule}, got {variable!r}; {remedy}")
    inner = {dim: None for variable in variables.values() for dim in variable.dims}
    names = [*grid, *variables, *inner, MARKER]
    for name in names:
        if not name.isidentifier():
            raise ValueError(f"names must be Python identifiers, got {name!r}; rename it")
        # All of them become names in one dataset.
        if names.count(name) > 1:
            rule = f"axes, variables, dims and {MARKER!r} must not share a name"
            raise ValueError(f"{rule}, got {name!r}; rename one of them")
    for name in coords:
        _validate.choice("coords", name, inner)
    for name in units:
        _validate.choice("units", name, {**grid, **coords})


def _checked_config(config: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    config = _validate.mapping("config", {} if config is None else config)
    # Through JSON and back, so that tuples compare equal to the lists that a store returns.
    try:
        return json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        got = f"got {config!r} ({error}); pass text or finite numbers"
        raise type(error)(f"config must hold JSON values, {got}") from None


def _evaluate_cell(function, names, outputs, static, shared, ids, traced):
    """Call the user's function for one cell and check the structure of its result."""
    key, args = shared
    point = dict(static) | traced
    out = function(_grid.fold_ids(ids, key=key), {name: point[name] for name in names}, *args)
    arrays = isinstance(out, Mapping) and all(isinstance(v, _ARRAYS) for v in out.values())
    if not arrays or set(out) != set(outputs):
        rule = f"return a dict of arrays, exactly {', '.join(outputs)} as in variables"
        raise TypeError(f"function must {rule}; got {out!r}")
    return {name: jnp.asarray(out[name]) for name in outputs}


def _output_shapes(cell, grid, variables, coords, shared) -> dict[str, Any]:
    """Return shape and dtype of each variable in one cell; they are the same for all programs."""
    dim_sizes = {name: len(labels) for name, labels in coords.items()}
    outputs: dict[str, Any] = {}
    # Chunks of any number of cells: one for each combination of values that are not traced.
    for block in _grid.blocks(grid, _grid.chunk_shape(grid, math.prod(_grid.sizes(grid)))):
        static = _grid.static_values(grid, block)
        inputs = _grid.cell_inputs(grid, [part.start for part in block])
        for name, out in jax.eval_shape(functools.partial(cell, static), shared, *inputs).items():
            dims, shape, dtype = variables[name].dims, out.shape, out.dtype
            # The first variable with a dimension decides its size, unless coords do.
            expected = tuple(map(dim_sizes.setdefault, dims, shape))
            if not len(dims) == len(set(dims)) == len(shape) or expected != shape:
                got = f"got shape {shape} where other cells, variables or coords say {expected}"
                remedy = "name each dimension once and keep its size"
                rule = f"variables[{name!r}].dims {dims} must fit the result of function"
                raise ValueError(f"{rule}, {got}; {remedy}")
            numeric = not jnp.issubdtype(dtype, jax.dtypes.extended) and dtype.kind in "biufc"
            if not numeric or outputs.setdefault(name, out).dtype != dtype:
                got = f"got {dtype} at {dict(static)}; convert it, for example to float32"
                raise TypeError(f"function must return one dtype of NumPy's for {name!r}, {got}")
    return outputs


def _compile_cells(cell, grid, mesh: Mesh, shared, memory_limit, cells, vectorized, static):
    """Return the program for some static values, and how many of `cells` it computes at once."""
    one = functools.partial(cell, static)

    def mapped(shared, *inputs):
        if vectorized:
            return jax.vmap(one, in_axes=(None, 0, 0))(shared, *inputs)
        return jax.lax.map(lambda inputs: one(shared, *inputs), inputs)

    specs = (P(), P("cells"), P("cells"))
    # check_vma would reject a cell with a scan whose initial carry is a constant.
    spread = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
    share = -(-cells // mesh.size)
    while True:
        inputs = _grid.cell_inputs(grid, np.zeros((len(grid), share * mesh.size), int))
        program = jax.jit(spread).lower(shared, *inputs).compile()
        parts = ("temp_size_in_bytes", "output_size_in_bytes", "argument_size_in_bytes")
        used = sum(getattr(program.memory_analysis(), part, 0) for part in parts)
        if used <= memory_limit:
            return functools.partial(program, shared), share * mesh.size
        if share == 1:
            rule = f"be at least the {used} bytes that one cell takes"
            remedy = "raise it or make the cell smaller"
            raise ValueError(f"memory_limit must {rule}, got {memory_limit}; {remedy}")
        # Memory is nearly proportional to the number of cells; halve it at least.
        share = max(1, min(share // 2, share * memory_limit // used))


def _compute_blocks(grid, pending, compiler):
    """Yield each block with its results by name, arrays `[cells, ...]`."""
    # All blocks of one program follow one another, so that only one program is held in memory.
    groups: dict[Any, list[Block]] = {}
    for block in pending:
        groups.setdefault(_grid.static_values(grid, block), []).append(block)
    calls = itertools.chain(_started_calls(grid, groups, compiler), [((), False, {})])
    batches = []
    # In pairs, the next batch is started before the results of the current one are awaited.
    for (block, is_last, results), _ in itertools.pairwise(calls):
        batches.append(jax.device_get(results))
        if is_last:
            cells = math.prod(part.stop - part.start for part in block)
            joined = {n: np.concatenate([batch[n] for batch in batches])[:cells] for n in results}
            yield block, joined
            batches = []


def _started_calls(grid, groups, compiler):
    """Start one batch after the other; yield its block, whether it is the last, and its results."""
    for static, members in groups.items():
        program, batch = compiler(static)
        for block in members:
            cells = np.array(list(itertools.product(*(range(p.start, p.stop) for p in block))))
            for start in range(0, len(cells), batch):
                # The last batch is filled up with copies of the last cell.
                rows = np.minimum(np.arange(start, start + batch), len(cells) - 1)
                results = program(*_grid.cell_inputs(grid, cells[rows].T))
                yield block, start + batch >= len(cells), results
