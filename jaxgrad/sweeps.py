"""A pure function of one cell, mapped over a labelled grid: chunked, sharded and resumable.

A cell's random draws depend on its coordinates alone (`cell_key`), so cutting a grid into chunks,
spreading it over devices, growing, reordering, splitting or resuming it changes no result beyond
rounding. This module writes files, if a store is asked for. It needs the extra `experiments`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shutil
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgrad import _validate

if TYPE_CHECKING:
    import xarray

MARKER = "computed"
"""Name of the store's boolean array over the axes: which cells are computed."""


_PACKAGES = ("jaxgrad", "jax", "jaxlib", "numpy")
_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


class Variable(NamedTuple):
    """What one output is: the names of its inner dimensions, its unit, and one line about it."""

    dims: tuple[str, ...] = ()
    units: str = "1"
    description: str = ""


class _Axis(NamedTuple):
    labels: list[Any]
    ids: np.ndarray  # what the key folds in
    traced: np.ndarray | None  # None: static values, one program each


def cell_key(key: jax.Array, point: Mapping[str, Any]) -> jax.Array:
    """The key that `run` gives to the cell at `point`, wherever in whatever grid it lies.

    It folds in one number per axis, axes in alphabetical order: a whole number from 0 to 2^32 - 1
    (`3` and `3.0` alike) itself, any other value the CRC-32 of its text.

    >>> import jax
    >>> key = jax.random.key(0)
    >>> bool(cell_key(key, {"seed": 3}) == jax.random.fold_in(key, 3))
    True
    """
    return _fold(key, {name: np.uint32(_label_id(value)) for name, value in point.items()})


def run(
    function: Callable[..., Mapping[str, Any]],
    axes: Mapping[str, Iterable[Any]],
    variables: Mapping[str, Variable],
    *,
    key: jax.Array,
    args: Sequence[Any] = (),
    coords: Mapping[str, Iterable[Any]] | None = None,
    units: Mapping[str, str] | None = None,
    config: Any = None,
    store: str | os.PathLike[str] | None = None,
    chunk_cells: int | None = None,
    memory_limit: int = 2**30,
    static: Sequence[str] = (),
    vectorized: bool = True,
    devices: Sequence[Any] | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> xarray.Dataset:
    """Compute `function` in every cell of the grid that `axes` span.

    Args:
      function: pure `function(key, point, *args) -> {name: array}` of one cell. `point` maps axis
        names to values: numbers are traced scalars (int32 or float32, unless x64 is enabled),
        strings and booleans are Python values, and each combination of them is compiled once.
      axes: names and distinct values, all numbers, all strings or all booleans. The grid is their
        product, the first axis slowest.
      variables: what `function` returns.
      key: a `jax.random.key`; each cell gets its `cell_key`.
      args: pytrees of arrays that every cell takes whole.
      coords: labels of inner dimensions; a dimension without has none.
      units: units of axes and `coords`, by name.
      config: mapping or dataclass of JSON values. A store cannot see the code of `function`: put
        here whatever its results depend on.
      store: path of a Zarr directory to create, or to resume if it holds this very sweep. A chunk
        counts as computed once all its values are written, and is then never computed again, even
        if the process is killed. One process at a time.
      chunk_cells: at most how many cells are stored at once, by default a sixteenth of the grid.
        A resumed store keeps its own.
      memory_limit: bytes that the program may take on each device, by the compiler's count; a
        chunk that takes more is computed in several batches.
      static: names of axes whose numbers, too, are Python values, such as a depth that decides
        shapes; each is compiled.
      vectorized: whether a device computes the cells of a batch together. One after the other they
        have the cache to themselves, which on CPUs is faster for large cells such as training runs.
      devices: over which each batch is spread, by default `jax.local_devices()`.
      progress: called as `progress(done_cells, total_cells)` at the start and after each chunk is
        stored.

    Returns:
      The variables over the axes and their inner dimensions, in memory, or read from `store` when
      used. NaN and infinities are results like others. Attributes tell units, config, key,
      versions and devices.

    Raises:
      ValueError, TypeError: if an argument is not as described, `store` holds something else, or
        one cell takes more than `memory_limit`.
      OSError: if `store` cannot be written.
      ImportError: without xarray or zarr.

    >>> import jax
    >>> def cell(key, point):
    ...     return {"mean": jax.random.normal(key, (100,)).mean() + point["shift"]}
    >>> axes = {"shift": [0.0, 5.0], "seed": range(3)}
    >>> run(cell, axes, {"mean": Variable()}, key=jax.random.key(0))["mean"].shape
    (2, 3)
    """
    xr = _extras()
    progress = (lambda done, total: None) if progress is None else progress
    for name, value in (("function", function), ("progress", progress)):
        if not callable(value):
            raise TypeError(f"{name} must be callable, got {value!r}; pass a function")
    _check_key(key)
    grid = {name: _axis(name, values) for name, values in _mapping("axes", axes).items()}
    for name in (static,) if isinstance(static, str) else static:
        _require(name in grid, f"static must name axes, {', '.join(grid)}; got {name!r}")
        grid[name] = grid[name]._replace(traced=None)
    variables, units = _mapping("variables", variables), _mapping("units", units or {})
    labels = {
        name: _labels(f"coords[{name!r}]", values)
        for name, values in _mapping("coords", coords or {}).items()
    }
    _check_names(grid, variables, labels, units)
    settings = _settings(config)
    devices = jax.local_devices() if devices is None else devices
    if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise TypeError(f"devices must be JAX devices, got {devices!r}; see jax.local_devices()")
    _validate.distinct("devices", devices)
    mesh = Mesh(np.array(devices), ("cells",))
    sizes, cuts = _sizes(grid)
    total = math.prod(sizes)
    chunk_cells = max(mesh.size, -(-total // 16)) if chunk_cells is None else chunk_cells
    chunk_cells = _validate.integer("chunk_cells", chunk_cells, 1)
    memory_limit = _validate.integer("memory_limit", memory_limit, 1)
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write args=(value,)")
    shared = jax.device_put((key, tuple(args)), NamedSharding(mesh, P()))
    cell = functools.partial(_cell, function, tuple(grid), tuple(variables))
    outputs = _outputs(cell, grid, variables, labels, shared)

    identity = {
        "axes": {name: axis.labels for name, axis in grid.items()},
        "axis_order": list(grid),
        "variables": {
            name: variables[name]._asdict() | {"shape": out.shape, "dtype": str(out.dtype)}
            for name, out in outputs.items()
        },
        "coords": labels,
        "units": units,
        "config": settings,
        "key": jax.random.key_data(key).tolist(),
        "args": [_digest(leaf) for leaf in jax.tree.leaves(shared[1])],
    }
    table = xr.Dataset(attrs=_attributes(identity, mesh))
    for name, values in (identity["axes"] | labels).items():
        known = {"units": units[name]} if name in units else {}
        table = table.assign_coords({name: (name, np.asarray(values), known)})
    for name, (dims, unit, description) in variables.items():
        values = np.broadcast_to(_fill(outputs[name].dtype), sizes + outputs[name].shape)
        table[name] = ((*grid, *dims), values, {"units": unit, "description": description})
    table[MARKER] = (tuple(grid), np.broadcast_to(np.False_, sizes))
    chunk = _chunk_shape(sizes, cuts, chunk_cells)
    if store is None:
        table = table.copy(deep=True)
        arrays = {name: array.values for name, array in table.data_vars.items()}
    else:
        if not os.path.lexists(store):
            _create(Path(store), table, chunk)
        arrays = _resume(Path(store), identity)
        chunk = arrays[MARKER].chunks

    computed = np.array(arrays[MARKER][...])
    done = int(computed.sum())
    progress(done, total)
    groups: dict[Any, list[tuple[slice, ...]]] = {}
    for block in _blocks(sizes, chunk):
        if not computed[block].all():
            groups.setdefault(_static(grid, block), []).append(block)
    limits = memory_limit, math.prod(chunk), vectorized
    compiler = functools.partial(_compile, cell, grid, mesh, shared, *limits)
    calls = itertools.chain(_calls(grid, groups, compiler), [((), False, {})])
    batches = []
    # Taking calls in pairs starts the next batch before this one's results are waited for.
    for (block, last, results), _ in itertools.pairwise(calls):
        batches.append(jax.device_get(results))
        if last:
            shape = computed[block].shape
            for name, out in outputs.items():
                values = np.concatenate([batch[name] for batch in batches])[: math.prod(shape)]
                arrays[name][(*block, ...)] = values.reshape(shape + out.shape)
            arrays[MARKER][block] = True
            batches = []
            done += math.prod(shape)
            progress(done, total)
    return (table if store is None else open_store(store)).drop_vars(MARKER)


def open_store(path: str | os.PathLike[str]) -> xarray.Dataset:
    """Open the `store` of a `run`, finished or not; values are read when they are used.

    Returns:
      What `run` returns, and the variable `computed` over the axes: where it is false, the other
      variables are NaN, or 0 if they are not floating point.

    Raises:
      ValueError: if `path` is not the store of a sweep.
      ImportError: without xarray or zarr.
    """
    xr = _extras()
    _group("path", Path(path), "r")
    table = xr.open_zarr(path, chunks=None, decode_times=False, decode_timedelta=False)
    texts = {
        name: (name, np.array(c.values.tolist()), c.attrs)
        for name, c in table.coords.items()
        if c.dtype.kind == "T"
    }
    return table.assign_coords(texts)


def _extras():
    try:
        import xarray
        import zarr  # noqa: F401
    except ImportError as error:
        raise ImportError(
            'sweeps need xarray and zarr; run python -m pip install "jaxgrad[experiments]"'
        ) from error
    return xarray


def _require(ok: Any, message: str) -> None:
    if not ok:
        raise ValueError(message)


def _check_key(key: Any) -> None:
    typed = hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape != ():
        raise TypeError(f"key must be one typed key, got {key!r}; pass jax.random.key(0)")
    if str(jax.random.key_impl(key)) != "threefry2x32":
        raise ValueError(
            f"key must be of implementation threefry2x32, got {jax.random.key_impl(key)}, whose "
            "draws change with the batch; pass jax.random.key(0, impl='threefry2x32')"
        )


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must map names to values, got {value!r}; pass a dict")
    return dict(value)


def _labels(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of values, got {values!r}; pass a list")
    labels: list[Any] = [v.item() if getattr(v, "ndim", None) == 0 else v for v in values]
    _require(labels, f"{name} must not be empty, got no values; give at least one")
    kinds = {"number" if type(v) in (int, float) else type(v).__name__ for v in labels}
    if len(kinds) > 1 or not kinds <= {"number", "str", "bool"}:
        raise TypeError(
            f"{name} must be all numbers, all strings or all booleans, got {sorted(kinds)}; give "
            "names and look up in the function what they stand for"
        )
    for v in labels if kinds == {"number"} else ():
        fits = math.isfinite(v) if isinstance(v, float) else abs(v) < 2**63
        _require(fits, f"{name} must be finite and fit 64 bits, got {v}; drop that value")
    return [float(v) for v in labels] if float in map(type, labels) else labels


def _axis(name: str, values: Any) -> _Axis:
    labels = _labels(f"axes[{name!r}]", values)
    _validate.distinct(f"axes[{name!r}]", labels)
    ids = np.array([_label_id(label) for label in labels], np.uint32)
    exact = np.asarray(labels)
    if exact.dtype.kind not in "if":
        return _Axis(labels, ids, None)
    dtype = jax.dtypes.canonicalize_dtype(exact.dtype)
    with np.errstate(over="ignore"):
        traced = exact.astype(dtype)
    fits = np.isfinite(traced) if dtype.kind == "f" else traced == exact
    if not fits.all() or len(np.unique(traced)) < len(traced):
        raise ValueError(
            f"axes[{name!r}] must stay finite and distinct as {dtype}, got {labels}; rescale it, "
            "or enter jax.enable_x64(True)"
        )
    return _Axis(labels, ids, traced)


def _check_names(grid, variables, coords, units) -> None:
    _require(grid and variables, "axes and variables must not be empty; give one or more of each")
    for name, variable in variables.items():
        valid = isinstance(variable, Variable) and isinstance(variable.dims, tuple)
        if not valid or not all(isinstance(v, str) for v in (*variable.dims, *variable[1:])):
            raise TypeError(
                f"variables[{name!r}] must be a Variable of a tuple of names and two strings, got "
                f"{variable!r}; write for example Variable(('layer',), '1', 'norm')"
            )
        _require(
            len(set(variable.dims)) == len(variable.dims),
            f"variables[{name!r}].dims must not repeat a name, got {variable.dims}; rename one",
        )
    inner = {dim: None for variable in variables.values() for dim in variable.dims}
    names = [*grid, *variables, *inner, MARKER]
    for name in names:
        _require(name.isidentifier(), f"names must be Python identifiers, got {name!r}; rename it")
        _require(
            names.count(name) == 1,
            f"axes, variables, dims and {MARKER!r} must not share a name, got {name!r}; rename one",
        )
    for argument, given, known in (("coords", coords, inner), ("units", units, {**grid, **coords})):
        kind = "an inner dimension" if given is coords else "an axis or one of coords"
        for name in given:
            _require(name in known, f"{argument} must name {kind}, got {name!r}; remove it")


def _settings(config: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    config = _mapping("config", {} if config is None else config)
    try:
        return json.loads(json.dumps(config, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"config must hold JSON values, got {config!r} ({error}); pass text or finite numbers"
        ) from None


# Cells


def _label_id(value: Any) -> int:
    if isinstance(value, (str, bool, np.bool_)):
        return zlib.crc32(str(value).encode())
    if value == int(value):
        number = int(value)
        return number if 0 <= number < 2**32 else zlib.crc32(str(number).encode())
    return zlib.crc32(repr(float(value)).encode())


def _fold(key, ids):
    for name in sorted(ids):
        key = jax.random.fold_in(key, ids[name])
    return key


def _cell(function, names, outputs, static, shared, ids, traced):
    key, args = shared
    point = dict(static) | traced
    out = function(_fold(key, ids), {name: point[name] for name in names}, *args)
    arrays = isinstance(out, Mapping) and all(isinstance(v, _ARRAYS) for v in out.values())
    if not arrays or set(out) != set(outputs):
        raise TypeError(
            f"function must return a dict of arrays, exactly {', '.join(outputs)} as in variables; "
            f"got {out!r}"
        )
    return {name: jnp.asarray(out[name]) for name in outputs}


def _inputs(grid: Mapping[str, _Axis], index):
    """Key numbers and traced values at `index`, one row of positions for each axis."""
    rows = dict(zip(grid, index, strict=True))
    traced = {n: axis.traced[rows[n]] for n, axis in grid.items() if axis.traced is not None}
    return {n: axis.ids[rows[n]] for n, axis in grid.items()}, traced


def _sizes(grid: Mapping[str, _Axis]) -> tuple[tuple[int, ...], list[bool]]:
    axes = grid.values()
    return tuple(len(axis.labels) for axis in axes), [axis.traced is None for axis in axes]


def _static(grid: Mapping[str, _Axis], block) -> tuple[tuple[str, Any], ...]:
    pairs = zip(grid.items(), block, strict=True)
    return tuple((name, a.labels[part.start]) for (name, a), part in pairs if a.traced is None)


def _outputs(cell, grid, variables, coords, shared) -> dict[str, Any]:
    """Shape and dtype of each variable in one cell, alike for all static values."""
    known = {name: len(labels) for name, labels in coords.items()}
    found: dict[str, Any] = {}
    sizes, cuts = _sizes(grid)
    for block in _blocks(sizes, _chunk_shape(sizes, cuts, math.prod(sizes))):
        static = _static(grid, block)
        inputs = _inputs(grid, [part.start for part in block])
        for name, out in jax.eval_shape(functools.partial(cell, static), shared, *inputs).items():
            dims, shape, dtype = variables[name].dims, out.shape, out.dtype
            expected = tuple(map(known.setdefault, dims, shape))
            if len(dims) != len(shape) or expected != shape:
                raise ValueError(
                    f"variables[{name!r}].dims {dims} must fit what function returns, got shape "
                    f"{shape} where other cells, variables or coords say {expected}; name each "
                    "dimension once and keep its size"
                )
            numeric = not jnp.issubdtype(dtype, jax.dtypes.extended) and dtype.kind in "biufc"
            if not numeric or found.setdefault(name, out).dtype != dtype:
                raise TypeError(
                    f"function must return one dtype of NumPy's for {name!r}, got {dtype} at "
                    f"{dict(static)}; convert it, for example to float32"
                )
    return found


# Chunks and programs


def _chunk_shape(sizes, static, cells: int) -> tuple[int, ...]:
    """At most `cells` consecutive cells: trailing axes whole, one cut evenly, the rest 1.

    Static axes are always 1, so that one program computes a chunk.
    """
    shape = []
    for size, cut in zip(reversed(sizes), reversed(static), strict=True):
        take = 1 if cut else -(-size // -(-size // min(size, cells)))
        cells //= take
        shape.append(take)
    return tuple(reversed(shape))


def _blocks(sizes, chunk) -> Iterator[tuple[slice, ...]]:
    starts = (range(0, size, step) for size, step in zip(sizes, chunk, strict=True))
    for corner in itertools.product(*starts):
        ends = (min(a + step, size) for a, step, size in zip(corner, chunk, sizes, strict=True))
        yield tuple(map(slice, corner, ends))


def _compile(cell, grid, mesh, shared, memory_limit, cells, vectorized, static):
    """The program of one static combination, and how many cells it takes at once."""
    one = functools.partial(cell, static)

    def mapped(shared, *inputs):
        if vectorized:
            return jax.vmap(one, in_axes=(None, 0, 0))(shared, *inputs)
        return jax.lax.map(lambda inputs: one(shared, *inputs), inputs)

    specs = (P(), P("cells"), P("cells"))
    # check_vma would refuse a cell with a scan that starts from a constant.
    spread = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
    share = -(-cells // mesh.size)
    while True:
        inputs = _inputs(grid, np.zeros((len(grid), share * mesh.size), int))
        program = jax.jit(spread).lower(shared, *inputs).compile()
        sizes = ("temp_size_in_bytes", "output_size_in_bytes", "argument_size_in_bytes")
        used = sum(getattr(program.memory_analysis(), size, 0) for size in sizes)
        if used <= memory_limit:
            return functools.partial(program, shared), share * mesh.size
        _require(
            share > 1,
            f"memory_limit must be at least the {used} bytes that one cell takes, got "
            f"{memory_limit}; raise it or make the cell smaller",
        )
        share = max(1, min(share // 2, share * memory_limit // used))


def _calls(grid, groups, compiler):
    """Start each batch: its block, whether it ends the block, and its results to come."""
    for static, blocks in groups.items():
        program, batch = compiler(static)
        for block in blocks:
            index = np.array(list(itertools.product(*(range(p.start, p.stop) for p in block))))
            for start in range(0, len(index), batch):
                rows = np.minimum(np.arange(start, start + batch), len(index) - 1)
                yield block, start + batch >= len(index), program(*_inputs(grid, index[rows].T))


# The store


def _fill(dtype) -> np.ndarray:
    return np.array(np.nan if np.dtype(dtype).kind in "fc" else 0, dtype)


def _attributes(identity: Mapping[str, Any], mesh: Mesh) -> dict[str, str]:
    packages = [d for d in importlib.metadata.distributions() if d.name in _PACKAGES]
    versions = {d.name: d.version for d in packages}
    device = mesh.devices.flat[0]
    return {
        "config": json.dumps(identity["config"]),
        "key": json.dumps({"impl": "threefry2x32", "data": identity["key"]}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": json.dumps(versions | {"python": platform.python_version()}),
        "device": f"{mesh.size} x {device.device_kind} ({device.platform})",
        "fingerprint": json.dumps(identity),
    }


def _digest(leaf: jax.Array) -> str:
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    values = np.asarray(jax.random.key_data(leaf) if typed else leaf)
    return f"{leaf.dtype}{list(leaf.shape)} {hashlib.sha256(values.tobytes()).hexdigest()[:16]}"


def _leaves(value: Any, path: str) -> dict[str, str]:
    if isinstance(value, list):
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    elif isinstance(value, dict):
        items = [(f"{path}.{name}" if path else name, item) for name, item in value.items()]
    else:
        return {path: json.dumps(value)}
    return {name: leaf for inner, item in items for name, leaf in _leaves(item, inner).items()}


def _create(store: Path, table: xarray.Dataset, chunk: tuple[int, ...]) -> None:
    """Build an empty store beside its place and move it there whole."""
    temporary = store.with_name(f".{store.name}.{uuid.uuid4().hex}.partial")
    texts = {n: c.astype(object) for n, c in table.coords.items() if c.dtype.kind == "U"}
    encoding = {
        name: {
            "chunks": chunk + tuple(max(1, size) for size in array.shape[len(chunk) :]),
            "fill_value": _fill(array.dtype)[()],
        }
        for name, array in table.data_vars.items()
    }
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            # Zarr writes no chunk that is all fill values, so this writes the metadata alone.
            table.assign_coords(texts).to_zarr(
                temporary, zarr_format=3, consolidated=True, encoding=encoding
            )
        os.replace(temporary, store)
    except OSError as error:
        raise OSError(
            f"store cannot be created at {str(store)!r} ({error.strerror or error}); pass a path "
            "in a folder that can be written"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _group(argument: str, path: Path, mode: Any) -> Any:
    import zarr

    try:
        group = zarr.open_group(path, mode=mode, zarr_format=3)
        if "fingerprint" in group.attrs and MARKER in group:
            return group
    except (OSError, ValueError):
        pass
    raise ValueError(
        f"{argument} must be the store of a sweep, got {str(path)!r}; pass another path"
    )


def _resume(store: Path, identity: Mapping[str, Any]) -> dict[str, Any]:
    group = _group("store", store, "r+")
    old = _leaves(json.loads(group.attrs["fingerprint"]), "")
    new = _leaves(json.loads(json.dumps(identity)), "")
    for name in {**old, **new}:
        was, now = old.get(name, "nothing"), new.get(name, "nothing")
        _require(
            was == now,
            f"store {str(store)!r} holds another sweep ({name}: {was} in the store, {now} now); "
            "pass another path, or delete it",
        )
    if not group[MARKER][...].all() and not os.access(store, os.W_OK):
        raise OSError(f"store {str(store)!r} cannot be written; make it writable or copy it")
    return {name: group[name] for name in (*identity["variables"], MARKER)}
