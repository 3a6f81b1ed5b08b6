"""The results as a labelled table, in memory or read from a store when they are used."""

import functools
import json
import os
import platform
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.sharding import Mesh

from jaxgrad import _validate
from jaxgrad.sweeps import _location, _reading, _store, _versions
from jaxgrad.sweeps._store import MARKER, Store
from jaxgrad.sweeps._versions import CHUNK_VERSIONS

if TYPE_CHECKING:
    import xarray


def import_xarray() -> Any:
    """Import the optional packages that a sweep needs."""
    _validate.installed("jaxgrad.sweeps", "experiments", "xarray", "zarr")
    import xarray

    return xarray


def open_store(path: "str | os.PathLike[str] | Any") -> "xarray.Dataset":
    """Open the `store` of a `run`, finished or not. Values are read when they are used.

    Metadata and labels are verified now, and each chunk of values when it is read: nothing damaged
    is read in silence. A chunk is read and hashed as a whole, which Zarr does for reading alone.
    Stores of version 0.1 have no digests of their values.

    The dataset has an additional variable `computed` over the axes. Where it is false the other
    variables are NaN, or 0 if they are not floating point. If several versions of the packages have
    computed it, `chunk-versions` names those of each cell.

    Args:
      path: Path, URL or Zarr store, as the `store` of `run`.

    Raises:
      ValueError: If `path` is not the store of a sweep, or, then and when values are read, if it is
        damaged; the error names the file, the cells and the remedy.
      ImportError: Without xarray or zarr.
    """
    import_xarray()
    location = _location.locate("path", path)
    return lazy_table(_store.open_verified("path", location))


def lazy_table(store: Store) -> "xarray.Dataset":
    """Return the results in a store, which are read and verified when they are used."""
    names = [*store.identity["variables"], MARKER]
    if _store.has_records(store) and _versions.are_several(store.location):
        # No array of Zarr has them; only the shape and the type of this one are used.
        empty = np.broadcast_to(np.array("", object), store.chunks.shape)
        store = store._replace(arrays=store.arrays | {CHUNK_VERSIONS: empty})
        names.append(CHUNK_VERSIONS)
    arrays = {name: _lazy(store, name) for name in names}
    return table(store.identity, store.attributes, arrays)


def _lazy(store: Store, name: str) -> Any:
    """Return an array of a store for xarray, which calls it with the parts that it needs."""
    from xarray.backends import BackendArray
    from xarray.core import indexing

    class Lazy(BackendArray):
        shape, dtype = store.arrays[name].shape, store.arrays[name].dtype

        def __getitem__(self, key):
            read = functools.partial(_reading.read_selection, store, name)
            # Vectors of positions are combined as in an outer product.
            outer = indexing.IndexingSupport.OUTER
            return indexing.explicit_indexing_adapter(key, self.shape, outer, read)

    return indexing.LazilyIndexedArray(Lazy())


def table(identity: dict[str, Any], attributes: dict[str, str], arrays: Any) -> "xarray.Dataset":
    """Return arrays by name as a labelled table."""
    xr, axes = import_xarray(), tuple(identity["axis_order"])
    units, columns = identity["units"], {}
    # Labels are those of the description, which are verified more easily than files.
    for name in axes + tuple(identity["coords"]):
        labels = (identity["axes"] | identity["coords"])[name]
        columns[name] = (name, np.asarray(labels), {"units": units[name]} if name in units else {})
    results = {}
    for name, variable in identity["variables"].items():
        attrs = {text: variable[text] for text in ("units", "description")}
        results[name] = ((*axes, *variable["dims"]), arrays[name], attrs)
    # Of a table in memory it is dropped when all is computed.
    results[MARKER] = (axes, arrays[MARKER])
    if CHUNK_VERSIONS in arrays:
        results[CHUNK_VERSIONS] = (axes, arrays[CHUNK_VERSIONS])
    return xr.Dataset(results, columns, attributes)


def attributes(identity: dict[str, Any], mesh: Mesh) -> dict[str, str]:
    """Return the attributes of the table."""
    device = mesh.devices.flat[0]
    return {
        "config": json.dumps(identity["config"]),
        "key": json.dumps({"impl": "threefry2x32", "data": identity["key"]}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": json.dumps(identity["versions"] | {"python": platform.python_version()}),
        "device": f"{mesh.size} x {device.device_kind} ({device.platform})",
        "fingerprint": json.dumps(identity),
    }


def empty_arrays(identity: dict[str, Any], shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Return the arrays in memory before anything is computed."""
    arrays = {
        name: np.full(shape + tuple(v["shape"]), _store.fill_value(v["dtype"]))
        for name, v in identity["variables"].items()
    }
    return arrays | {MARKER: np.zeros(shape, bool)}
