"""Which process computes which block of a store: one file for each block that is being computed.

A lease only saves work. Blocks are written whole and marked last, so that a store stays right if
two processes compute the same one.
"""

import contextlib
import json
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from jaxgrad.sweeps._location import is_running

STALE_SECONDS = 60.0
"""Age of a lease whose process counts as dead; a living one renews it six times as often."""


class Leases(NamedTuple):
    """Leases of this process."""

    acquire: Callable[[int], bool]  # whether the block may be computed; False: somebody else does
    release: Callable[[int], None]


@contextlib.contextmanager
def hold(folder: Path | None) -> Iterator[Leases]:
    """Hold leases as files in `folder` until they are released; without a folder all are free."""
    if folder is None:
        yield Leases(lambda block: True, lambda block: None)
        return
    owner = {"host": socket.gethostname(), "process": os.getpid(), "lease": uuid.uuid4().hex}
    text, paths, stop = json.dumps(owner), {}, threading.Event()
    folder.mkdir(exist_ok=True)

    def acquire(block: int) -> bool:
        path = folder / f"{block}.lease"
        if not (_create(path, text) or (_remove_stale(path) and _create(path, text))):
            return False
        paths[block] = path
        return True

    def release(block: int) -> None:
        path = paths.pop(block)
        if _read(path) == text:
            path.unlink(missing_ok=True)

    def renew() -> None:
        while not stop.wait(STALE_SECONDS / 6):
            for path in list(paths.values()):
                with contextlib.suppress(OSError):
                    os.utime(path)

    thread = threading.Thread(target=renew, name="leases", daemon=True)
    thread.start()
    try:
        yield Leases(acquire, release)
    finally:
        stop.set()
        thread.join()
        for block in list(paths):
            release(block)
        # Fails as long as another process has leases.
        with contextlib.suppress(OSError):
            folder.rmdir()


def _create(path: Path, text: str) -> bool:
    """Create a lease unless it exists."""
    # A process that ends removes the folder if it is empty.
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("x") as file:
            file.write(text)
    except (FileExistsError, FileNotFoundError):
        return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _remove_stale(path: Path) -> bool:
    """Remove the lease of a process that is dead, or silent for long; return whether it is gone."""
    text = _read(path)
    try:
        owner = json.loads(text)
        here = owner["host"] == socket.gethostname()
        dead = here and not is_running(owner["process"])
    except (ValueError, LookupError, TypeError):
        dead = False  # it is being written
    try:
        if not dead and _now(path.parent) - path.stat().st_mtime < STALE_SECONDS:
            return False
        # Only one process can rename a file; a new lease of another one is put back.
        taken = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        path.rename(taken)
        if _read(taken) != text:
            taken.rename(path)
            return False
        taken.unlink()
    except FileNotFoundError:
        return True
    return True


def _now(folder: Path) -> float:
    """Return the time by the clock of the file system, which may be another machine's."""
    path = folder / f"{uuid.uuid4().hex}.clock"
    path.touch()
    try:
        return path.stat().st_mtime
    finally:
        path.unlink()
