"""Results read from a store, one chunk after the other, each of which is verified."""

import itertools
import math
from typing import Any

import numpy as np

from jaxgrad.sweeps import _location, _store, _versions
from jaxgrad.sweeps._store import DIGESTS, MARKER, DamagedStoreError, Store
from jaxgrad.sweeps._versions import CHUNK_VERSIONS

# Zarr holds kilobytes for every chunk that it reads at a time.
_READ_TOGETHER = 4096


def read_computed(store: Store) -> np.ndarray:
    """Return which cells are computed."""
    array, (step, *_) = store.arrays[MARKER], store.chunks.chunk
    computed = np.zeros(store.chunks.shape, bool)
    rows = step * max(1, _READ_TOGETHER // math.prod(store.chunks.counts[1:]))
    try:
        for start in range(0, len(computed), rows):
            part = slice(start, min(start + rows, len(computed)))
            computed[part] = array[part]
    except OSError:
        raise
    except Exception:
        # One after the other, to name the chunk that cannot be read.
        for number in range(store.chunks.total):
            computed[store.chunks.block(number)] = read_block(store, MARKER, number)
    return computed


def _read(store: Store, name: str, selection: Any, number: int) -> np.ndarray:
    try:
        return np.asarray(store.arrays[name][selection])
    except OSError:
        raise
    # Each codec has its own errors for bytes that it did not write.
    except Exception as error:
        raise _store.damaged_chunk(store, name, number, _store.UNREADABLE) from error


def read_block(store: Store, name: str, number: int) -> np.ndarray:
    """Return the values of a block; what is not computed has the fill value. Raise if damaged."""
    block = store.chunks.block(number)
    marked = _read(store, MARKER, block, number)
    if name == MARKER:
        return marked
    if name == CHUNK_VERSIONS:
        versions = _versions_of(store, number, _digests(store, number)) if marked.any() else {}
        text = ", ".join(f"{package} {version}" for package, version in versions.items())
        return np.where(marked, np.array(text, object), "")
    if not marked.any():
        array = store.arrays[name]
        return np.full(marked.shape + array.shape[marked.ndim :], _store.fill_value(array.dtype))
    values = _read(store, name, block, number)
    if store.binding is not None:
        digests = _digests(store, number)
        digest = digests[list(store.identity["variables"]).index(name)].tobytes()
        if not marked.all() or digest != _store.digest(store, name, block, values):
            raise _store.damaged_chunk(store, name, number, "values are not those of the sweep")
        if _store.has_records(store):
            _versions_of(store, number, digests)
    return values


def _digests(store: Store, number: int) -> np.ndarray:
    return _read(store, DIGESTS, store.chunks.position(number), number)


def _versions_of(store: Store, number: int, digests: np.ndarray) -> dict[str, str]:
    """Return the versions that computed a block; raise if their record is damaged."""
    parts = (store.location, store.identity, store.binding or b"", store.chunks.block(number))
    versions = _versions.of_record(*parts, digests[-1].tobytes())
    if versions is None:
        raise _store.damaged_chunk(store, DIGESTS, number, "its record of versions is damaged")
    return versions


def read_selection(store: Store, name: str, key: tuple[Any, ...]) -> np.ndarray:
    """Return the part at integers, slices and vectors of positions, one for each dimension."""
    chunks, array = store.chunks, store.arrays[name]
    axes, inner = key[: len(chunks.shape)], key[len(chunks.shape) :]
    rows = [np.arange(n)[part].ravel() for n, part in zip(chunks.shape, axes, strict=True)]
    sizes = [np.arange(n)[k].size for n, k in zip(array.shape[len(axes) :], inner, strict=True)]
    result = np.empty([*map(len, rows), *sizes], array.dtype)
    # Of each axis: the chunks that are concerned, and where their positions are in the result.
    pieces = []
    for positions, step in zip(rows, chunks.chunk, strict=True):
        parts = positions // step
        order = np.argsort(parts, kind="stable")
        concerned, starts = np.unique(parts[order], return_index=True)
        places = np.split(order, starts[1:])[: len(concerned)]  # of none, NumPy makes one
        pieces.append(list(zip(concerned, places, strict=True)))
    for combination in itertools.product(*pieces):
        index, places = zip(*combination, strict=True)
        number = int(np.ravel_multi_index(index, chunks.counts))
        values = read_block(store, name, number)
        for axis, (part, place) in enumerate(combination):
            values = values[_along(axis, rows[axis][place] - part * chunks.chunk[axis])]
        for axis, part in enumerate(inner, len(axes)):
            # A single position keeps its dimension until all are selected.
            whole = slice(part, part + 1 or None) if isinstance(part, (int, np.integer)) else part
            values = values[(slice(None),) * axis + (whole,)]
        result[np.ix_(*places)] = values
    dropped = tuple(i for i, k in enumerate(key) if isinstance(k, (int, np.integer)))
    return result.reshape([n for i, n in enumerate(result.shape) if i not in dropped])


def _along(axis: int, positions: np.ndarray) -> tuple[Any, ...]:
    # A slice makes no copy.
    if len(positions) and np.array_equal(positions, np.arange(len(positions)) + positions[0]):
        return (slice(None),) * axis + (slice(positions[0], positions[-1] + 1),)
    return (slice(None),) * axis + (positions,)


def missing_file(store: Store, number: int) -> DamagedStoreError | None:
    """Return an error if a file of a computed block does not exist in a folder of this machine."""
    if store.location.folder is None or store.binding is None:
        return None
    for name in (DIGESTS, *store.identity["variables"]):
        key = _store.chunk_key(store, name, number)
        # Nothing is written for dimensions of size 0.
        if store.arrays[name].size and not _location.exists(store.location, key):
            return _store.damaged_chunk(store, name, number, "it is missing")
    return None


def verify_block(store: Store, number: int) -> bool:
    """Return whether a block is computed; raise if its values are not those that were computed."""
    if not read_block(store, MARKER, number).any():
        return False
    for name in store.identity["variables"]:
        read_block(store, name, number)
    return True


def is_marked(store: Store, number: int) -> bool:
    """Return whether a block has been computed, perhaps by another process."""
    return _location.exists(store.location, _store.chunk_key(store, MARKER, number))
