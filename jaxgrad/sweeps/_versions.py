"""Which versions of the packages computed which chunk of a store.

A record beside the digests of a chunk holds the label of its versions, and binds it to the sweep
and the cells. Each label is the name of a file, so that processes of several versions may share a
store.
"""

import hashlib
import json

from jaxgrad.sweeps import _identity, _location
from jaxgrad.sweeps._grid import Block
from jaxgrad.sweeps._location import Location

CHUNK_VERSIONS = "chunk-versions"
"""Name of the variable that says so, if there are several."""
FOLDER = "chunk-digests/versions"
_LABEL_BYTES = 8  # half of a record


def _hash(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:_LABEL_BYTES]


def _check(binding: bytes, block: Block, label: bytes) -> bytes:
    return _hash(binding + label + json.dumps([part.start for part in block]).encode())


def file(versions: dict[str, str]) -> tuple[str, bytes]:
    """Return the name of the file of some versions in a store, and its content."""
    content = json.dumps(versions, sort_keys=True).encode()
    return f"{FOLDER}/{_hash(content).hex()}.json", content


def record(location: Location, identity: dict, binding: bytes, block: Block) -> bytes:
    """Return the record of a chunk that this process has computed; its versions get a file."""
    key, content = file(_identity.versions())
    # The first versions have a file since the store was created.
    if _identity.versions() != identity["versions"] and _read(location, key) is None:
        _location.write(location, {key: content})
    label = _hash(content)
    return label + _check(binding, block, label)


def of_record(
    location: Location, identity: dict, binding: bytes, block: Block, text: bytes
) -> dict[str, str] | None:
    """Return the versions of a chunk by its record, None if that or their file is damaged."""
    label = text[:_LABEL_BYTES]
    if text[_LABEL_BYTES:] != _check(binding, block, label):
        return None
    if label == _hash(file(identity["versions"])[1]):
        return identity["versions"]
    return _read(location, f"{FOLDER}/{label.hex()}.json")


def _read(location: Location, key: str) -> dict[str, str] | None:
    content = _location.read(location, key)
    # A file whose content does not have its name is not what was written.
    if content is None or key != f"{FOLDER}/{_hash(content).hex()}.json":
        return None
    return json.loads(content)


def are_several(location: Location) -> bool:
    """Return whether a store has chunks of several versions, as far as files can be listed."""
    names = _location.names(location, FOLDER)
    return sum(name.endswith(".json") for name in names) > 1
