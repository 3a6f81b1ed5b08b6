"""The results as a labelled table, in memory or in a Zarr directory that can be resumed."""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import uuid
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxgrad.sweeps._grid import Block, Grid, sizes

if TYPE_CHECKING:
    import xarray

MARKER = "computed"
"""Name of the boolean array of a store that marks the computed cells."""

_PACKAGES = ("jaxgrad", "jax", "jaxlib", "numpy")


class Variable(NamedTuple):
    """Description of one output: names of its inner dimensions, its unit and a line of text."""

    dims: tuple[str, ...] = ()
    units: str = "1"
    description: str = ""


def import_xarray() -> Any:
    """Import the optional packages that a sweep needs."""
    try:
        import xarray
        import zarr  # noqa: F401
    except ImportError as error:
        remedy = 'run python -m pip install "jaxgrad[experiments]"'
        raise ImportError(f"sweeps need xarray and zarr; {remedy}") from error
    return xarray


def open_store(path: str | os.PathLike[str]) -> "xarray.Dataset":
    """Open the `store` of a `run`, finished or not. Values are read from disk when they are used.

    The dataset has an additional variable `computed` over the axes. Where it is false the other
    variables are NaN, or 0 if they are not floating point. ValueError is raised if `path` is not
    the store of a sweep, ImportError without xarray or zarr.
    """
    xr = import_xarray()
    _open_group("path", Path(path), "r")
    table = xr.open_zarr(path, chunks=None, decode_times=False, decode_timedelta=False)
    # Labels are stored as texts of any length; as fixed-length texts they equal those in memory.
    texts = {name: c for name, c in table.coords.items() if c.dtype.kind == "T"}
    fixed = {name: (name, np.array(c.values.tolist()), c.attrs) for name, c in texts.items()}
    return table.assign_coords(fixed)


def identity(grid, variables, outputs, labels, units, config, shared) -> dict[str, Any]:
    """Return all that must be equal for a store to be resumed, as JSON values."""
    key, args = shared
    return {
        "axes": {name: axis.labels for name, axis in grid.items()},
        "axis_order": list(grid),
        "variables": {
            name: variables[name]._asdict() | {"shape": out.shape, "dtype": str(out.dtype)}
            for name, out in outputs.items()
        },
        "coords": labels,
        "units": units,
        "config": config,
        "key": jax.random.key_data(key).tolist(),
        # Arrays may be large; their hashes tell them apart.
        "args": [_digest(leaf) for leaf in jax.tree.leaves(args)],
    }


def _digest(leaf: jax.Array) -> str:
    typed = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    values = np.asarray(jax.random.key_data(leaf) if typed else leaf)
    return f"{leaf.dtype}{list(leaf.shape)} {hashlib.sha256(values.tobytes()).hexdigest()[:16]}"


def empty_table(grid: Grid, variables, outputs, identity: dict[str, Any], mesh: Mesh) -> Any:
    """Return the table before anything is computed."""
    distributions, device = importlib.metadata.distributions(), mesh.devices.flat[0]
    versions = {d.name: d.version for d in distributions if d.name in _PACKAGES}
    attributes = {
        "config": json.dumps(identity["config"]),
        "key": json.dumps({"impl": "threefry2x32", "data": identity["key"]}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": json.dumps(versions | {"python": platform.python_version()}),
        "device": f"{mesh.size} x {device.device_kind} ({device.platform})",
        "fingerprint": json.dumps(identity),
    }
    table = import_xarray().Dataset(attrs=attributes)
    units, shape = identity["units"], sizes(grid)
    for name, values in (identity["axes"] | identity["coords"]).items():
        attrs = {"units": units[name]} if name in units else {}
        table = table.assign_coords({name: (name, np.asarray(values), attrs)})
    for name, (dims, unit, description) in variables.items():
        out = outputs[name]
        # Broadcast values take no memory.
        values = np.broadcast_to(_fill_value(out.dtype), shape + out.shape)
        table[name] = ((*grid, *dims), values, {"units": unit, "description": description})
    table[MARKER] = (tuple(grid), np.broadcast_to(np.False_, shape))
    return table


def _fill_value(dtype) -> np.ndarray:
    # Only floating-point types have a value that means "not computed".
    return np.array(np.nan if np.dtype(dtype).kind in "fc" else 0, dtype)


def create_or_resume(store: Path, table: Any, chunk: tuple[int, ...], identity: Any) -> dict:
    """Return the arrays, by name, of a store of this sweep; a new one is created from `table`."""
    if not os.path.lexists(store):
        _create(store, table, chunk)
    group = _open_group("store", store, "r+")
    old = _flatten(json.loads(group.attrs["fingerprint"]), "")
    new = _flatten(json.loads(json.dumps(identity)), "")
    for name in {**old, **new}:
        before, now = old.get(name, "nothing"), new.get(name, "nothing")
        if before != now:
            difference = f"({name}: {before} in the store, {now} now)"
            remedy = "pass another path, or delete it"
            raise ValueError(f"store {str(store)!r} holds another sweep {difference}; {remedy}")
    if not group[MARKER][...].all() and not os.access(store, os.W_OK):
        raise OSError(f"store {str(store)!r} cannot be written; make it writable or copy it")
    return {name: group[name] for name in (*identity["variables"], MARKER)}


def _create(store: Path, table: Any, chunk: tuple[int, ...]) -> None:
    # Written next to its path and then renamed, so that a store appears whole or not at all.
    temporary = store.with_name(f".{store.name}.{uuid.uuid4().hex}.partial")
    texts = {n: c.astype(object) for n, c in table.coords.items() if c.dtype.kind == "U"}
    encoding = {}
    for name, array in table.data_vars.items():
        # Inner dimensions are never cut. A dimension of size 0 has chunks of size 1.
        chunks = chunk + tuple(max(1, size) for size in array.shape[len(chunk) :])
        encoding[name] = {"chunks": chunks, "fill_value": _fill_value(array.dtype)[()]}
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            # Zarr does not write chunks of fill values, so this writes metadata and labels.
            options = {"zarr_format": 3, "consolidated": True, "encoding": encoding}
            table.assign_coords(texts).to_zarr(temporary, **options)
        os.replace(temporary, store)
    except OSError as error:
        reason = f"({error.strerror or error}); pass a path in a folder that can be written"
        raise OSError(f"store cannot be created at {str(store)!r} {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write(arrays: Mapping[str, Any], block: Block, results: Mapping[str, np.ndarray]) -> None:
    """Write the results of a block, arrays `[cells, ...]`, then mark it as computed."""
    shape = tuple(part.stop - part.start for part in block)
    for name, values in results.items():
        arrays[name][(*block, ...)] = values.reshape(shape + values.shape[1:])
    # Last, so that a process that is killed leaves no marked chunk without its values.
    arrays[MARKER][block] = True


def _open_group(argument: str, path: Path, mode: Any) -> Any:
    import zarr

    # Zarr raises one or the other for a folder or a file that is not its own.
    try:
        group = zarr.open_group(path, mode=mode, zarr_format=3)
        if "fingerprint" in group.attrs and MARKER in group:
            return group
    except (OSError, ValueError):
        pass
    got = f"got {str(path)!r}; pass another path"
    raise ValueError(f"{argument} must be the store of a sweep, {got}")


def _flatten(value: Any, path: str) -> dict[str, str]:
    """Flatten nested JSON values: `{"a": [1]}` to `{"a[0]": "1"}`."""
    if isinstance(value, list):
        items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    elif isinstance(value, dict):
        items = [(f"{path}.{name}" if path else name, item) for name, item in value.items()]
    else:
        return {path: json.dumps(value)}
    return {name: leaf for inner, item in items for name, leaf in _flatten(item, inner).items()}
