"""One sweep, ready to be computed: its arguments checked, its results known by their shapes."""

import dataclasses
import functools
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgrad import _validate
from jaxgrad.sweeps import _grid, _identity
from jaxgrad.sweeps._grid import Chunks
from jaxgrad.sweeps._programs import Compiler
from jaxgrad.sweeps._store import MARKER, Store, Variable

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
_CHUNK_BYTES = 2**26
"""Largest size of a chunk of more than one cell, which is held in memory a few times."""


class Sweep(NamedTuple):
    """One sweep."""

    identity: dict[str, Any]  # see `_identity.describe`
    chunks: Chunks
    cell_bytes: int  # of the results
    compiler: Compiler


def prepare(
    function: Any,
    axes: Any,
    variables: Any,
    *,
    key: Any,
    args: Any,
    coords: Any,
    units: Any,
    config: Any,
    chunk_cells: int | None,
    memory_limit: int,
    static: Any,
    vectorized: bool,
    devices: Any,
) -> Sweep:
    """Check the arguments of `run` and evaluate `function` abstractly; nothing is compiled."""
    _check_types(function, key, args)
    _validate.flag("vectorized", vectorized)
    grid = _grid.make_grid(axes, static, _grid.CELL_IDS)
    variables = _validate.mapping("variables", variables)
    units = _validate.mapping("units", {} if units is None else units)
    coords = _validate.mapping("coords", {} if coords is None else coords)
    labels = {n: _grid.checked_labels(f"coords[{n!r}]", values) for n, values in coords.items()}
    _check_names(grid, variables, labels, units)
    config, devices = _checked_config(config), _checked_devices(devices)
    total = math.prod(_grid.sizes(grid))
    chunk_cells = max(len(devices), -(-total // 16)) if chunk_cells is None else chunk_cells
    chunk_cells = _validate.integer("chunk_cells", chunk_cells, 1)
    memory_limit = _validate.integer("memory_limit", memory_limit, 1)

    mesh = Mesh(np.array(devices), ("cells",))
    shared = _placed(key, args, mesh)
    cell = functools.partial(_evaluate_cell, function, tuple(grid), tuple(variables))
    outputs = _output_shapes(cell, grid, variables, labels, shared)
    cell_bytes = sum(math.prod(out.shape) * out.dtype.itemsize for out in outputs.values())
    most = max(1, _CHUNK_BYTES // max(1, cell_bytes))
    chunks = Chunks(_grid.sizes(grid), _grid.chunk_shape(grid, min(chunk_cells, most)))
    identity = _identity.describe(grid, variables, outputs, labels, units, config, shared)
    compiler = Compiler(cell, grid, mesh, shared, memory_limit, vectorized)
    return Sweep(identity, chunks, cell_bytes, compiler)


def resume(sweep: Sweep, store: Store, static: Any, other_versions: bool) -> Sweep:
    """Return a sweep with the chunks and the keys of a store, which must be one of that sweep."""
    _identity.check(store.location.name, store.identity, sweep.identity, other_versions)
    for (name, axis), step in zip(sweep.compiler.grid.items(), store.chunks.chunk, strict=True):
        # One program would compute several of its values. Only stores of 0.1 do not say which axes
        # are static.
        if axis.traced is None and step > 1:
            remedy = "leave it out, or pass another path"
            got = f"got {name!r}, of which the store computes {step} values together"
            raise ValueError(f"static must be as when the store was begun, {got}; {remedy}")
    sweep = sweep._replace(chunks=store.chunks)
    if store.binding is not None:
        return sweep
    grid = _grid.make_grid(sweep.identity["axes"], static, "crc32")
    return sweep._replace(compiler=sweep.compiler._replace(grid=grid))


def _placed(key: Any, args: Any, mesh: Mesh) -> Any:
    """Return key and arguments on all devices."""
    try:
        return jax.device_put((key, tuple(args)), NamedSharding(mesh, P()))
    except (TypeError, ValueError, OverflowError) as error:
        got = f"got {_validate.show(args)} ({_validate.show(str(error))})"
        raise TypeError(
            f"args must be pytrees of arrays, {got}; pass NumPy or JAX arrays"
        ) from None


def _checked_devices(devices: Any) -> Sequence[Any]:
    devices = jax.local_devices() if devices is None else devices
    if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        got = f"got {_validate.show(devices)}; see jax.local_devices()"
        raise TypeError(f"devices must be JAX devices, {got}")
    _validate.distinct("devices", devices)
    if foreign := [d for d in devices if d.process_index != jax.process_index()]:
        remedy = "pass jax.local_devices(), and one store to all processes"
        raise ValueError(f"devices must belong to this process, got {foreign[0]}; {remedy}")
    return devices


def _check_types(function, key, args) -> None:
    if not callable(function):
        got = f"got {_validate.show(function)}; pass a function"
        raise TypeError(f"function must be callable, {got}")
    if not isinstance(args, (tuple, list)):
        raise TypeError(f"args must be a tuple, got {type(args).__name__}; write args=(value,)")
    _validate.tree("args", args, empty=True)
    _check_signature(function, args)
    # Old keys do not say which implementation they belong to.
    typed = isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    if not typed or key.shape != ():
        got = f"got {_validate.show(key)}; pass jax.random.key(0)"
        raise TypeError(f"key must be one typed key, {got}")
    for name, value in {"key": key, "args": args}.items():
        _validate.known(name, value, "sweeps.run")
    # The draws of some other implementations depend on the batch that a key is in.
    if (impl := str(jax.random.key_impl(key))) != "threefry2x32":
        remedy = "pass jax.random.key(0, impl='threefry2x32')"
        raise ValueError(f"key must be of implementation threefry2x32, got {impl}; {remedy}")


def _check_signature(function, args) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return  # of some functions that are written in C, Python knows none
    try:
        signature.bind(None, None, *args)
    except TypeError as error:
        rule = f"function must take a key, a point and the {len(args)} values of args"
        got = f"got one of {signature} ({error}); change its arguments, or args"
        raise TypeError(f"{rule}, {got}") from None


def _check_names(grid, variables, coords, units) -> None:
    for name, value in {"axes": grid, "variables": variables}.items():
        if not value:
            raise ValueError(f"{name} must not be empty, got {{}}; pass one or more")
    for name, variable in variables.items():
        valid = isinstance(variable, Variable) and isinstance(variable.dims, tuple)
        if not valid or not all(isinstance(v, str) for v in (*variable.dims, *variable[1:])):
            rule = f"variables[{name!r}] must be a Variable of a tuple of names and two strings"
            remedy = "write for example Variable(('layer',), '1', 'norm')"
            raise TypeError(f"{rule}, got {_validate.show(variable)}; {remedy}")
    inner = {dim: None for variable in variables.values() for dim in variable.dims}
    names = [*grid, *variables, *inner, MARKER]
    for name in names:
        if not name.isidentifier():
            rule = "names in axes and variables must be Python identifiers"
            raise ValueError(f"{rule}, got {name!r}; rename it")
        # All of them become names in one dataset.
        if names.count(name) > 1:
            rule = f"axes, variables, dims and {MARKER!r} must not share a name"
            raise ValueError(f"{rule}, got {name!r}; rename one of them")
    for name in coords:
        _validate.choice("coords", name, inner)
    for name, unit in units.items():
        _validate.choice("units", name, {**grid, **coords})
        _validate.text(f"units[{name!r}]", unit)


def _checked_config(config: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    config = _validate.mapping("config", {} if config is None else config)
    # Through JSON and back, so that tuples compare equal to the lists that a store returns.
    try:
        return json.loads(json.dumps(config, allow_nan=False), object_pairs_hook=_distinct)
    except (TypeError, ValueError) as error:
        got = f"got {_validate.show(config)} ({error}); pass text or finite numbers"
        raise type(error)(f"config must hold JSON values, {got}") from None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs as a dictionary; JSON writes the names 1 and "1" alike."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("two names are written alike")
    return dict(pairs)


def _evaluate_cell(function, names, outputs, static, shared, ids, traced):
    """Call the user's function for one cell and check the structure of its result."""
    key, args = shared
    point = dict(static) | traced
    out = function(_grid.fold_ids(ids, key=key), {name: point[name] for name in names}, *args)
    arrays = isinstance(out, Mapping) and all(isinstance(v, _ARRAYS) for v in out.values())
    if not arrays or set(out) != set(outputs):
        rule = f"return a dict of arrays, exactly {', '.join(outputs)} as in variables"
        raise TypeError(f"function must {rule}; got {_validate.show(out)}")
    try:
        return {name: jnp.asarray(out[name]) for name in outputs}
    except (TypeError, ValueError, OverflowError):
        got = f"got {_validate.show(out)}; convert them, for example to float32"
        raise TypeError(f"function must return arrays of dtypes of JAX, {got}") from None


def _output_shapes(cell, grid, variables, coords, shared) -> dict[str, Any]:
    """Return shape and dtype of each variable in one cell; they are the same for all programs."""
    dim_sizes = {name: len(labels) for name, labels in coords.items()}
    outputs: dict[str, Any] = {}
    # Chunks of any number of cells: one for each combination of values that are not traced.
    shape = _grid.sizes(grid)
    chunks = Chunks(shape, _grid.chunk_shape(grid, math.prod(shape)))
    for block in map(chunks.block, range(math.prod(chunks.counts))):
        static = _grid.static_values(grid, block)
        inputs = _grid.cell_inputs(grid, [part.start for part in block])
        for name, out in jax.eval_shape(functools.partial(cell, static), shared, *inputs).items():
            dims, shape, dtype = variables[name].dims, out.shape, out.dtype
            # The first variable with a dimension decides its size, unless coords do.
            for dim, size in zip(dims, shape, strict=False):
                if len(coords.get(dim, range(size))) != size:
                    got = f"got {len(coords[dim])} for the {size} values of {name!r}"
                    remedy = "pass as many labels as the function returns values"
                    raise ValueError(f"coords[{dim!r}] must have a label for each, {got}; {remedy}")
            expected = tuple(map(dim_sizes.setdefault, dims, shape))
            if not len(dims) == len(set(dims)) == len(shape) or expected != shape:
                got = f"got shape {shape} where other cells or variables say {expected}"
                remedy = "name each dimension once and keep its size"
                rule = f"variables[{name!r}].dims {dims} must fit the result of function"
                raise ValueError(f"{rule}, {got}; {remedy}")
            numeric = not jnp.issubdtype(dtype, jax.dtypes.extended) and dtype.kind in "biufc"
            if not numeric or outputs.setdefault(name, out).dtype != dtype:
                got = f"got {dtype} at {dict(static)}; convert it, for example to float32"
                raise TypeError(f"function must return one dtype of NumPy's for {name!r}, {got}")
    return outputs
