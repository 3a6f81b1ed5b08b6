"""The results in a Zarr store: created as metadata, written block by block, verified when read.

Beside each variable, the boolean array `computed` marks the computed cells, and `chunk-digests`
holds a digest of every chunk. A digest is that of the values, bound to the sweep, the name of the
variable and the cells, so that a chunk that is missing, old or in the place of another differs. A
record of the versions that computed the chunk follows the digests of its variables.
"""

import hashlib
import json
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.sweeps import _identity, _location, _versions
from jaxgrad.sweeps._grid import Block, Chunks, block_shape
from jaxgrad.sweeps._location import METADATA, Location

MARKER = "computed"
"""Name of the boolean array of a store that marks the computed cells."""

# No identifier, so that no variable can have this name.
DIGESTS = "chunk-digests"
_DIGEST_BYTES = 16
_SEAL, _LABELS = "metadata_sha256", "labels_sha256"
# A store names the code that reads it. Only these names are looked up.
_CODECS = {"bytes", "zstd", "crc32c", "vlen-utf8"}
_TYPES = {"bool", "string", "complex64", "complex128", "float16", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class Variable(NamedTuple):
    """Description of one output: names of its inner dimensions, its unit and a line of text."""

    dims: tuple[str, ...] = ()
    units: str = "1"
    description: str = ""


class Store(NamedTuple):
    """An open store."""

    location: Location
    identity: dict[str, Any]  # see `_identity.describe`
    attributes: dict[str, str]
    arrays: dict[str, Any]  # of Zarr, by name
    chunks: Chunks
    binding: bytes | None  # None: a store of 0.1, which has no digests


REPAIR = "; pass repair=True to sweeps.run to write it again"
UNREADABLE = "its bytes are not those that were written"


class DamagedStoreError(ValueError):
    """A store whose files are not those that were written."""


def fill_value(dtype: Any) -> np.ndarray:
    """Return the value of what is not computed; only floating-point types have one for that."""
    return np.array(np.nan if np.dtype(dtype).kind in "fc" else 0, dtype)


def create(
    location: Location, identity: dict[str, Any], attributes: dict[str, str], chunks: Chunks
) -> None:
    """Create a store without results, or write the metadata of a damaged one again."""
    files = _new_files(identity, attributes, chunks)
    if _location.exists(location):
        _location.write(location, files)
    else:
        _location.create(location, files)


def _new_files(identity, attributes, chunks: Chunks) -> dict[str, bytes]:
    """Return the metadata and labels of a store; no file of values, however large the grid."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    files: dict[str, Any] = {}
    group = zarr.create_group(MemoryStore(files), attributes=attributes)
    codecs: Any = {"compressors": (ZstdCodec(level=0), Crc32cCodec())}
    axes, variables = tuple(identity["axis_order"]), identity["variables"]
    for name, labels in (identity["axes"] | identity["coords"]).items():
        values = np.asarray(labels)
        text = (
            {"dtype": str, "data": None, "shape": values.shape} if values.dtype.kind == "U" else {}
        )
        units = {"units": identity["units"][name]} if name in identity["units"] else {}
        options = {
            "data": values,
            "attributes": units,
            "dimension_names": (name,),
            **codecs,
            **text,
        }
        array = group.create_array(name, chunks=(max(1, len(labels)),), **options)
        if text:
            array[...] = values.astype(object)
    for name, variable in variables.items():
        inner = tuple(variable["shape"])
        group.create_array(
            name,
            shape=chunks.shape + inner,
            dtype=variable["dtype"],
            # Inner dimensions are never cut. A dimension of size 0 has chunks of size 1.
            chunks=chunks.chunk + tuple(max(1, size) for size in inner),
            fill_value=fill_value(variable["dtype"])[()],
            dimension_names=(*axes, *variable["dims"]),
            attributes={text: variable[text] for text in ("units", "description")},
            **codecs,
        )
    options: Any = {"dimension_names": axes, "fill_value": False, **codecs}
    group.create_array(MARKER, shape=chunks.shape, dtype=bool, chunks=chunks.chunk, **options)
    inner = (len(variables) + 1, _DIGEST_BYTES)
    group.create_array(
        DIGESTS,
        shape=chunks.counts + inner,
        dtype="uint8",
        chunks=(1,) * len(axes) + inner,
        fill_value=0,
        dimension_names=(*(f"chunk-{name}" for name in axes), "variable", "byte"),
        attributes={"variables": [*variables, _versions.CHUNK_VERSIONS]},
        **codecs,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(group.store)
    key, versions = _versions.file(identity["versions"])
    return _sealed({name: buffer.to_bytes() for name, buffer in files.items()} | {key: versions})


def _sealed(files: dict[str, bytes]) -> dict[str, bytes]:
    metadata = {name: data for name, data in files.items() if name.endswith(METADATA)}
    root = json.loads(metadata[METADATA])
    labels = {n: hashlib.sha256(d).hexdigest() for n, d in files.items() if n not in metadata}
    root["attributes"][_LABELS] = json.dumps(labels)
    root["attributes"][_SEAL] = _seal(metadata | {METADATA: json.dumps(root).encode()})
    return files | {METADATA: json.dumps(root, indent=2).encode()}


def _seal(metadata: Mapping[str, bytes]) -> str:
    """Return the digest of all metadata, as JSON values, except for itself."""
    parsed = {name: json.loads(data) for name, data in metadata.items()}
    parsed[METADATA]["attributes"].pop(_SEAL, None)
    return hashlib.sha256(json.dumps(parsed, sort_keys=True).encode()).hexdigest()


def open_verified(argument: str, location: Location, mode: Any = "r") -> Store:
    """Open a store whose metadata and labels are verified, or raise."""
    import zarr

    attributes, names = _verified_attributes(argument, location)
    identity = json.loads(attributes["fingerprint"])
    # Zarr does not write chunks of fill values by default, and takes any NaN for another.
    with zarr.config.set({"array.write_empty_chunks": True}):
        store = location.zarr_store
        if mode == "r" and store.supports_writes and not store.read_only:
            store = store.with_read_only(True)
        group = zarr.open_group(store, mode=mode, zarr_format=3)
        arrays: dict[str, Any] = {name: group[name] for name in names}
    for name, labels in (identity["axes"] | identity["coords"]).items():
        try:
            stored = arrays[name][...].tolist()
        except OSError:
            raise
        except Exception as error:
            raise damaged(location, f"{name}/c/0", UNREADABLE) from error
        if stored != labels:
            raise damaged(location, f"{name}/c/0", "labels differ from those in zarr.json")
    shape = tuple(len(identity["axes"][name]) for name in identity["axis_order"])
    binding = _identity.binding(identity) if "format" in identity else None
    chunks = Chunks(shape, arrays[MARKER].chunks)
    return Store(location, identity, attributes, arrays, chunks, binding)


def _verified_attributes(argument: str, location: Location) -> tuple[dict[str, str], list[str]]:
    """Return the attributes of a store and the names of its arrays, without running its codecs."""
    nothing = "" if _location.exists(location) else ", where there is nothing"
    got = f"got {location.name!r}{nothing}; pass another path"
    foreign = ValueError(f"{argument} must be the store of a sweep, {got}")
    data = _location.read(location, METADATA)
    if data is None and _location.read(location, f"{DIGESTS}/{METADATA}") is not None:
        raise damaged(location, METADATA, "it is missing")
    try:
        root = json.loads(data or b"")
        attributes = root["attributes"]
        consolidated = root["consolidated_metadata"]["metadata"]
        identity = json.loads(attributes["fingerprint"])
        names = [*identity["variables"], *identity["axes"], *identity["coords"], MARKER]
        # Any one of these makes it a store of today, so that damage cannot make it one of 0.1.
        today = _SEAL in attributes or "format" in identity or DIGESTS in consolidated
        names += [DIGESTS] * today
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        if data is not None and _location.read(location, f"{MARKER}/{METADATA}") is not None:
            raise damaged(location, METADATA, UNREADABLE) from error
        raise foreign from None
    if MARKER not in consolidated:
        raise foreign
    if today:
        metadata = {METADATA: data or b""}
        for name in names:
            key = f"{name}/{METADATA}"
            if (part := _location.read(location, key)) is None:
                raise damaged(location, key, "it is missing")
            metadata[key] = part
        try:
            seal = _seal(metadata)
        except ValueError as error:
            raise damaged(location, METADATA, UNREADABLE) from error
        if seal != attributes.pop(_SEAL, None):
            raise damaged(location, METADATA, "metadata are not those that were written")
        # Before they are decoded: a wrong file may ask for any amount of memory.
        for key, expected in json.loads(attributes.pop(_LABELS, "{}")).items():
            data = _location.read(location, key)
            if data is not None and hashlib.sha256(data).hexdigest() != expected:
                raise damaged(location, key, "it is not the one that zarr.json names")
    for name in names:
        _check_codecs(location, name, consolidated.get(name, {}))
    return attributes, names


def _check_codecs(location: Location, name: str, metadata: dict[str, Any]) -> None:
    """Raise unless an array is read by codecs that run nothing else."""
    codecs = [str(codec.get("name")) for codec in metadata.get("codecs", [])]
    kinds = [str(metadata.get("data_type")), *map(str, metadata.get("storage_transformers", []))]
    if not codecs or not _CODECS.issuperset(codecs) or not all(kind in _TYPES for kind in kinds):
        rule = f"{name} must have codecs of {', '.join(sorted(_CODECS))} and plain numbers or text"
        got = f"got {codecs} and {kinds}; this is no store of a sweep"
        raise ValueError(f"store {location.name!r} is refused: {rule}, {got}")


def damaged(location: Location, key: str, reason: str, cells: str = "") -> DamagedStoreError:
    """Return the error that names a file, its cells and the remedy."""
    place = f"{key}{cells and f' ({cells})'}"
    return DamagedStoreError(f"store {location.name!r} is damaged: {place}: {reason}{REPAIR}")


def damaged_chunk(store: Store, name: str, number: int, reason: str) -> DamagedStoreError:
    """Return the error that names a file of values, its cells and the remedy."""
    cells, block = [], store.chunks.block(number)
    for axis, part in zip(store.identity["axis_order"], block, strict=True):
        labels = store.identity["axes"][axis][part]
        last = f" to {labels[-1]!r}" if len(labels) > 1 else ""
        cells.append(f"{axis}={labels[0]!r}{last}")
    return damaged(store.location, chunk_key(store, name, number), reason, ", ".join(cells))


def chunk_key(store: Store, name: str, number: int) -> str:
    """Return the name of the file that holds a block of an array."""
    index = store.chunks.position(number)
    inner = 2 if name == DIGESTS else store.arrays[name].ndim - len(index)
    return "/".join([name, "c", *map(str, index + (0,) * inner)])


def digest(store: Store, name: str, block: Block, values: np.ndarray) -> bytes:
    """Return the digest of a chunk, which differs for the same values in another place."""
    place = [name, str(values.dtype), values.shape, [part.start for part in block]]
    whole = hashlib.sha256(store.binding or b"")
    whole.update(json.dumps(place).encode())
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    data: Any = np.ascontiguousarray(little).reshape(-1).view(np.uint8)
    whole.update(data)
    return whole.digest()[:_DIGEST_BYTES]


def has_records(store: Store) -> bool:
    """Return whether a store says which versions computed a chunk; the first ones do not."""
    count = len(store.identity["variables"])
    return store.binding is not None and store.arrays[DIGESTS].shape[-2] > count


def write_block(store: Store, number: int, results: Mapping[str, np.ndarray]) -> None:
    """Write the results of a block, arrays `[cells, ...]`, then mark it as computed."""
    block = store.chunks.block(number)
    shape = block_shape(block)
    shaped = {name: v.reshape(shape + v.shape[1:]) for name, v in results.items()}
    if store.binding is not None:
        digests = [digest(store, n, block, shaped[n]) for n in store.identity["variables"]]
        if has_records(store):
            parts = (store.location, store.identity, store.binding, block)
            digests.append(_versions.record(*parts))
        shaped[DIGESTS] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)
    keys = [chunk_key(store, name, number) for name in shaped]
    folders = _location.new_folders(store.location, keys)
    _location.remove_partial(store.location, [*keys, chunk_key(store, MARKER, number)])
    for name, values in shaped.items():
        selection = store.chunks.position(number) if name == DIGESTS else (*block, ...)
        store.arrays[name][selection] = values
    _location.flush(store.location, keys, folders)
    # Last, so that a process that is killed leaves no marked chunk without its values. A mark that
    # is lost costs a chunk, and so it does not wait for the disk.
    store.arrays[MARKER][block] = True


def remove_block(store: Store, number: int) -> None:
    """Remove the files of a block, its mark first."""
    for name in (MARKER, DIGESTS, *store.identity["variables"]):
        _location.remove(store.location, chunk_key(store, name, number))
