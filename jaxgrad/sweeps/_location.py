"""Where a store is: a folder of this machine, or anything else that Zarr can write to."""

import errno
import os
import re
import shutil
import socket
import urllib.parse
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxgrad import _validate

METADATA = "zarr.json"


class Location(NamedTuple):
    """The place of a store."""

    name: str  # for messages
    folder: Path | None  # None: not a folder of this machine
    zarr_store: Any


def locate(argument: str, value: Any) -> Location:
    """Return the place that a path, a URL or a store of Zarr stands for, or raise."""
    from zarr.abc.store import Store
    from zarr.storage import LocalStore

    if isinstance(value, Store):
        folder = value.root if isinstance(value, LocalStore) else None
        return Location(str(value), folder, value)
    if isinstance(value, bytes) or not isinstance(value, (str, os.PathLike)):
        remedy = "pass a str, a pathlib.Path or a store of Zarr"
        got = f"got {_validate.show(value)}; {remedy}"
        raise TypeError(f"{argument} must be a path or a URL, {got}")
    text = os.fspath(value)
    if isinstance(text, bytes) or not text or "\0" in text:
        rule = "must be a path of one or more characters without NUL"
        raise ValueError(f"{argument} {rule}, got {text!r}; pass for example 'sweep.zarr'")
    if text.startswith("file:"):
        text = urllib.request.url2pathname(urllib.parse.urlsplit(text).path)
    if "://" in text:
        # A scheme of one letter would be a drive of Windows.
        if text.endswith("://") or text.index("://") < 2:
            rule = f"{argument} must be a URL with a place, got {text!r}"
            raise ValueError(f"{rule}; pass for example 's3://bucket/sweep.zarr'")
        return Location(text, None, _remote(argument, text))
    try:
        folder = Path(text).expanduser()
    except RuntimeError:
        remedy = "write the path of the folder in full"
        raise ValueError(f"{argument} must be in a known home, got {text!r}; {remedy}") from None
    try:
        folder.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            got = f"got {_validate.show(text)}; pass a shorter one"
            raise ValueError(f"{argument} must be a path of allowed length, {got}") from None
    return Location(str(folder), folder, LocalStore(folder))


def _remote(argument: str, url: str) -> Any:
    from zarr.storage import FsspecStore

    try:
        return FsspecStore.from_url(url)
    except (ImportError, ValueError, OSError) as error:
        remedy = "install the package that fsspec needs for it, or pass a store of Zarr"
        raise type(error)(f"{argument} cannot be opened, got {url!r} ({error}); {remedy}") from None


def _wait(operation: Any) -> Any:
    # Stores of Zarr are asynchronous and belong to its event loop, which has no public name.
    from zarr.core.sync import sync

    return sync(operation)


def read(location: Location, key: str) -> bytes | None:
    """Return the bytes of one file, None if there is none."""
    from zarr.core.buffer import default_buffer_prototype

    # Files of this machine are read without the event loop.
    if location.folder is None:
        value = _wait(location.zarr_store.get(key, prototype=default_buffer_prototype()))
        return None if value is None else value.to_bytes()
    try:
        return (location.folder / key).read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def exists(location: Location, key: str = METADATA) -> bool:
    """Return whether a file, or for a folder of this machine anything by its name, exists."""
    if location.folder is None:
        return _wait(location.zarr_store.exists(key))
    return os.path.lexists(location.folder if key == METADATA else location.folder / key)


def names(location: Location, folder: str) -> list[str]:
    """Return the names of the files in a folder of a store, none if they cannot be listed."""
    if location.folder is not None:
        path = location.folder / folder
        return os.listdir(path) if path.is_dir() else []

    async def collect() -> list[str]:
        return [name async for name in location.zarr_store.list_dir(folder)]

    return _wait(collect()) if location.zarr_store.supports_listing else []


def remove(location: Location, key: str) -> None:
    """Remove one file if it exists."""
    if location.folder is None:
        _wait(location.zarr_store.delete(key))
    else:
        (location.folder / key).unlink(missing_ok=True)


def write(location: Location, files: Mapping[str, bytes]) -> None:
    """Write files one after the other, each of them whole or not at all."""
    from zarr.core.buffer import default_buffer_prototype

    for key, data in files.items():
        if location.folder is None:
            buffer = default_buffer_prototype().buffer.from_bytes(data)
            _wait(location.zarr_store.set(key, buffer))
            continue
        path = location.folder / key
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        os.replace(temporary, path)
    flush(location, list(files))


def create(location: Location, files: Mapping[str, bytes]) -> None:
    """Write the files of a new store, which appears whole or not at all.

    Elsewhere than in a folder of this machine, the metadata that make it a store are written last.
    Nothing is changed if another process has created the store in the meantime.
    """
    if location.folder is None:
        write(location, dict(sorted(files.items(), key=lambda item: item[0] == METADATA)))
        return
    folder = location.folder
    process = f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"
    temporary = folder.with_name(f".{folder.name}.{process}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder)
        write(location._replace(folder=temporary), files)
        try:
            os.replace(temporary, folder)
        except OSError:
            # A folder that is not empty cannot be replaced.
            if not (folder / METADATA).exists():
                raise
        _flush(folder.parent)
    except OSError as error:
        reason = f"({error.strerror or error}); pass a path in a folder that can be written"
        raise OSError(f"store cannot be created at {location.name!r} {reason}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of this machine left of creating the store."""
    pattern = re.compile(rf"\.{re.escape(folder.name)}\.(.+)\.(\d+)\.[0-9a-f]+\.partial")
    for path in folder.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and match[1] == socket.gethostname() and not is_running(int(match[2])):
            shutil.rmtree(path, ignore_errors=True)


def remove_partial(location: Location, keys: list[str]) -> None:
    """Remove what a killed process left of writing files that this process is about to write."""
    # Zarr writes `0.<hexadecimal number>.partial`, and renames it to `0`.
    for path in (location.folder / key for key in keys) if location.folder else ():
        partial = re.compile(rf"{re.escape(path.stem)}\.[0-9a-f]+\.partial")
        for other in path.parent.iterdir() if path.parent.is_dir() else ():
            if partial.fullmatch(other.name):
                other.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Return whether a process of this machine exists."""
    # Signal 0 is checked and not sent.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def new_folders(location: Location, keys: list[str]) -> list[str]:
    """Return the folders that writing files is going to create."""
    if location.folder is None:
        return []
    folders = dict.fromkeys(str(folder) for key in keys for folder in Path(key).parents)
    return [folder for folder in folders if not (location.folder / folder).exists()]


def flush(location: Location, keys: list[str], folders: list[str] | None = None) -> None:
    """Wait until files are on the disk, and the folders that list them and new `folders`."""
    if location.folder is None:
        return
    if folders is None:
        folders = [str(folder) for key in keys for folder in Path(key).parents]
    parents = dict.fromkeys(Path(name).parent for name in (*keys, *folders))
    for path in [*map(Path, keys), *parents]:
        _flush(location.folder / path)


def _flush(path: Path) -> None:
    # Windows cannot open a folder, and keeps its list of files safe by itself.
    if path.is_dir() and os.name == "nt":
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
