"""Where a store may be, and what is on the disk when."""

import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import zarr

from jaxgrad import sweeps
from jaxgrad.sweeps import Variable, _location

AXES = {"x": range(4)}


def run(store, **options):
    options = {"key": jax.random.key(1), "chunk_cells": 2, **options}
    return sweeps.run(
        lambda key, point: {"y": jax.random.normal(key, (2,)) * point["x"]},
        AXES,
        {"y": Variable(("k",))},
        store=store,
        **options,
    )


@pytest.fixture(scope="module")
def expected():
    return run(None)


class StopError(Exception):
    pass


def stop_after_one_chunk(done, total):
    if done == 2:
        raise StopError


def places(folder):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").rm("/", recursive=True)
    yield "path", folder / "a"
    yield "text", str(folder / "b")
    yield "file", (folder / "with space").as_uri()
    yield "memory", "memory://bucket/sweep.zarr"
    yield "zarr memory", zarr.storage.MemoryStore()
    yield "zarr local", zarr.storage.LocalStore(folder / "c")
    options = {"auto_mkdir": True}
    url = (folder / "d").as_uri()
    yield "zarr fsspec", zarr.storage.FsspecStore.from_url(url, storage_options=options)
    try:
        import obstore.store
    except ImportError:
        return
    (folder / "e").mkdir()
    yield "obstore", zarr.storage.ObjectStore(obstore.store.LocalStore(str(folder / "e")))


@pytest.mark.slow
def test_a_store_is_created_resumed_and_repaired_anywhere_that_zarr_can_write(expected, tmp_path):
    for name, place in places(tmp_path):
        with pytest.raises(StopError):
            run(place, progress=stop_after_one_chunk)
        assert int(sweeps.open_store(place)["computed"].sum()) == 2, name
        log = []
        run(place, progress=lambda done, total, log=log: log.append((done, total)))
        assert log == [(2, 4), (4, 4)], name
        # Damage a chunk by Zarr's own interface.
        zarr.open_group(_location.locate("store", place).zarr_store, mode="r+")["y"][2:] = 5.0
        with pytest.raises(sweeps.DamagedStoreError, match=r"y/c/1/0 \(x=2 to 3\)"):
            sweeps.open_store(place)["y"].load()
        with pytest.warns(UserWarning, match="computed again"):
            repaired = run(place, repair=True)
        np.testing.assert_array_equal(repaired["y"], expected["y"])
        with pytest.raises(ValueError, match="holds another sweep"):
            run(place, config={"a": 1})
    assert (tmp_path / "with space" / "zarr.json").exists()


def test_an_object_store_over_the_network(expected, monkeypatch):
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="sweeps")
        with pytest.raises(StopError):
            run("s3://sweeps/one.zarr", progress=stop_after_one_chunk)
        resumed = run("s3://sweeps/one.zarr")
        np.testing.assert_array_equal(resumed["y"], expected["y"])
    finally:
        server.stop()


def test_the_home_folder_is_expanded(expected, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("~/sweeps/one")
    run(pathlib.Path("~/sweeps/one"), progress=lambda done, total: None)
    assert os.listdir(tmp_path) == ["sweeps"]


@pytest.mark.parametrize(
    ("store", "error", "message"),
    [
        ("", ValueError, "must be a path of one or more characters without NUL, got ''"),
        ("a\0b", ValueError, ".*without NUL"),
        (b"sweep", TypeError, "must be a path or a URL, got b'sweep'"),
        (3, TypeError, "must be a path or a URL, got 3"),
        ("~nobody-here/sweep", ValueError, "must be in a known home"),
        ("nonsense://a", ValueError, "cannot be opened, got 'nonsense://a'.*Protocol not known"),
    ],
)
def test_bad_places_are_named(store, error, message):
    with pytest.raises(error, match=f"store {message}"):
        run(store)
    with pytest.raises(error, match=f"path {message}"):
        sweeps.open_store(store)


def test_values_are_on_the_disk_before_a_chunk_is_marked(tmp_path, monkeypatch):
    events, opened = [], {}
    write, fsync, open_file = zarr.Array.__setitem__, os.fsync, os.open

    def spy_open(path, *args, **options):
        descriptor = open_file(path, *args, **options)
        opened[descriptor] = os.path.relpath(path, tmp_path / "sweep")
        return descriptor

    def spy_fsync(descriptor):
        events.append(opened[descriptor])
        fsync(descriptor)

    def spy_write(array, selection, value):
        events.append(f"write {array.name.strip('/')}")
        write(array, selection, value)

    run(tmp_path / "sweep", progress=lambda done, total: done and events.append("done"))
    events.clear()
    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(zarr.Array, "__setitem__", spy_write)
    (tmp_path / "sweep/computed/c/1").unlink()
    run(tmp_path / "sweep")
    digests = "chunk-digests/c/1/0/0"
    writes = ["write y", "write chunk-digests"]
    assert events[:2] == writes
    assert set(events[2:-1]) >= {"y/c/1/0", digests, "y/c/1", "chunk-digests/c/1/0"}
    assert events[-1] == "write computed"
    # The folders of a new chunk, and those that list them.
    events.clear()
    run(tmp_path / "other")
    assert {"../other/y/c", "../other/y/c/0", "../other/y/c/0/0", "../other/y"} <= set(events)


KILLED = """
import os, sys
import jax
from jaxgrad import sweeps

partial = sys.argv[2]
replace = os.replace
count = 0

def kill(source, target):
    os._exit(9)

def cell(key, point):
    return {"y": jax.random.normal(key, (2,)) * point["x"]}

import pathlib
if partial == "creation":
    os.replace = kill
else:
    whole = pathlib.Path.replace
    def killed(self, target):
        if "y" in target.parts and "1" in target.parts and self.suffix == ".partial":
            os._exit(9)
        return whole(self, target)
    pathlib.Path.replace = killed
sweeps.run(cell, {"x": range(4)}, {"y": sweeps.Variable(("k",))}, key=jax.random.key(1),
           store=sys.argv[1], chunk_cells=2)
"""


@pytest.mark.parametrize("moment", [pytest.param("creation", marks=pytest.mark.slow), "chunk"])
def test_nothing_is_left_of_a_process_that_was_killed(expected, tmp_path, moment):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "sweep"), moment]
    assert subprocess.run(command).returncode == 9
    assert list(tmp_path.rglob("*.partial"))
    # A file of a living process is left alone.
    living = tmp_path / f".sweep.{_location.socket.gethostname()}.{os.getpid()}.ab.partial"
    living.mkdir()

    def cell(key, point):
        return {"y": jax.random.normal(key, (2,)) * point["x"]}

    options = {"key": jax.random.key(1), "store": tmp_path / "sweep", "chunk_cells": 2}
    table = sweeps.run(cell, AXES, {"y": Variable(("k",))}, **options)
    np.testing.assert_array_equal(table["y"], expected["y"])
    assert list(tmp_path.rglob("*.partial")) == [living]
    assert not list(tmp_path.rglob("*.lease"))


MEMORY = """
import resource, sys, time
import jax, jax.numpy as jnp
from jaxgrad import sweeps
import xarray, zarr

cells, chunks = int(sys.argv[2]), int(sys.argv[3])

class Stop(Exception):
    pass

def progress(done, total):
    if done >= chunks * 655:
        raise Stop

def cell(key, point):
    return {"y": jnp.zeros(25_000) + point["seed"] // 10**7}

def peak():
    # Of this process alone; ru_maxrss begins with that of the process that started it.
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

jax.block_until_ready(jax.jit(jnp.sin)(1.0))
before, start = peak(), time.perf_counter()
try:
    sweeps.run(cell, {"seed": range(cells)}, {"y": sweeps.Variable(("k",))}, store=sys.argv[1],
               key=jax.random.key(0), progress=progress, memory_limit=2**26)
except Stop:
    pass
print(peak() - before, time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize(("cells", "chunks"), [(10**6, 3), (10**5, 10**5)])
def test_memory_does_not_grow_with_the_sweep(tmp_path, cells, chunks):
    """A sweep of 100 GB, of which some chunks are computed; all of one of 10 GB."""
    command = [sys.executable, "-c", textwrap.dedent(MEMORY), str(tmp_path / "sweep")]
    output = subprocess.run([*command, str(cells), str(chunks)], check=True, capture_output=True)
    memory, seconds = map(float, output.stdout.split())
    assert memory < 2**26 + 400e6
    assert seconds < 60 or chunks > 3
    assert sweeps.open_store(tmp_path / "sweep")["y"].nbytes == cells * 100_000
