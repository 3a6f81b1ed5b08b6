"""Several processes on one store: each chunk is computed once, and none is lost."""

import collections
import json
import os
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxgrad import sweeps
from jaxgrad.sweeps import Variable, _leases

WORKER = """
import os, sys, time
import jax
import numpy as np
import jaxgrad.sweeps as sweeps

store, log, seconds, number, count = sys.argv[1:]
if int(count) > 1:
    address = f"localhost:{sys.argv[3].split(':')[1]}"
    jax.distributed.initialize(address, num_processes=int(count), process_id=int(number))
    assert jax.process_count() == int(count) and len(jax.devices()) > len(jax.local_devices())
seconds = float(seconds.split(":")[0])

def note(x):
    # One line for each cell that is computed, by this process.
    time.sleep(seconds)
    with open(log, "a") as file:
        file.write(f"{os.getpid()} {float(x)}\\n")
    return np.float32(x)

def cell(key, point):
    shape = jax.ShapeDtypeStruct((), "float32")
    x = jax.pure_callback(note, shape, point["x"] * 1.0, vmap_method="sequential")
    return {"y": jax.random.normal(key, (3,)) + x}

sweeps.run(cell, {"x": range(12)}, {"y": sweeps.Variable(("k",))}, key=jax.random.key(1),
           store=store, chunk_cells=1, vectorized=False)
"""


def start(tmp_path, seconds, number=0, count=1, port=0):
    names = [tmp_path / "sweep", tmp_path / "log", f"{seconds}:{port}", number, count]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, "-c", WORKER, *map(str, names)], env=environment)


def computed(tmp_path):
    path = tmp_path / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(process), float(x)) for process, x in map(str.split, lines)]


def check_values(tmp_path):
    key = jax.random.key(1)
    table = sweeps.open_store(tmp_path / "sweep").load()
    assert table["computed"].all()
    for x in range(12):
        draws = jax.random.normal(jax.random.fold_in(key, x), (3,))
        np.testing.assert_allclose(table["y"].sel(x=x), draws + x, rtol=1e-6)
    assert not list(tmp_path.rglob("*.lease"))


@pytest.mark.slow
def test_two_processes_compute_each_chunk_once(tmp_path):
    workers = [start(tmp_path, 0.4) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    lines = computed(tmp_path)
    assert sorted(x for _, x in lines) == list(range(12))
    # Both have worked.
    assert set(collections.Counter(process for process, _ in lines)) == {w.pid for w in workers}
    check_values(tmp_path)


@pytest.mark.slow
def test_processes_of_jax_distributed_share_a_store(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    workers = [start(tmp_path, 0.4, number, 2, port) for number in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    lines = computed(tmp_path)
    assert sorted(x for _, x in lines) == list(range(12))
    assert len({process for process, _ in lines}) == 2
    check_values(tmp_path)


@pytest.mark.slow
def test_a_chunk_of_a_process_that_was_killed_is_taken_over(tmp_path):
    worker = start(tmp_path, 0.4)
    while len(computed(tmp_path)) < 3:
        time.sleep(0.05)
    other = start(tmp_path, 0.01)
    time.sleep(0.5)
    worker.kill()
    worker.wait()
    assert other.wait() == 0
    # At most the chunks that the other one was computing.
    counts = collections.Counter(x for _, x in computed(tmp_path))
    assert sum(counts.values()) <= 12 + 2
    check_values(tmp_path)


def run(store, **options):
    return sweeps.run(
        lambda key, point: {"y": jax.random.normal(key) * point["x"]},
        {"x": range(4)},
        {"y": Variable()},
        key=jax.random.key(1),
        store=store,
        chunk_cells=1,
        **options,
    )


def write_lease(folder, block, **owner):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{block}.lease"
    path.write_text(json.dumps({"host": "elsewhere", "process": 1, "lease": "a"} | owner))
    return path


def test_a_lease_is_exclusive_and_released(tmp_path):
    with _leases.hold(tmp_path / "leases") as one, _leases.hold(tmp_path / "leases") as other:
        assert one.acquire(0)
        assert not other.acquire(0)
        assert other.acquire(1)
        one.release(0)
        assert other.acquire(0)
        assert not one.acquire(0)
    assert not list(tmp_path.iterdir())


def test_stale_leases_are_taken_over(tmp_path, monkeypatch):
    monkeypatch.setattr(_leases, "STALE_SECONDS", 0.6)
    folder = tmp_path / "leases"
    host = socket.gethostname()
    with _leases.hold(folder) as leases:
        # Another machine: after a while without a heartbeat.
        path = write_lease(folder, 0)
        assert not leases.acquire(0)
        os.utime(path, (time.time() - 1, time.time() - 1))
        assert leases.acquire(0)
        # This machine: at once if the process is dead.
        write_lease(folder, 1, host=host, process=os.getppid())
        assert not leases.acquire(1)
        dead = subprocess.Popen([sys.executable, "-c", ""])
        dead.wait()
        write_lease(folder, 2, host=host, process=dead.pid)
        assert leases.acquire(2)
        # The heartbeat keeps the leases of a living one.
        before = (folder / "0.lease").stat().st_mtime
        time.sleep(0.8)
        assert (folder / "0.lease").stat().st_mtime > before
        with _leases.hold(folder) as other:
            assert not other.acquire(0)
    assert [path.name for path in folder.iterdir()] == ["1.lease"]


def test_a_lost_lease_is_not_released_for_its_new_holder(tmp_path):
    with _leases.hold(tmp_path / "leases") as leases:
        assert leases.acquire(0)
        path = write_lease(tmp_path / "leases", 0)
    assert path.exists()


def test_a_process_waits_for_a_lease_and_reads_what_the_other_one_wrote(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    log = []

    class StopError(Exception):
        pass

    def stop(done, total):
        if done == 2:
            raise StopError

    with pytest.raises(StopError):
        run(tmp_path / "sweep", progress=stop)
    path = write_lease(tmp_path / "sweep/computed/leases", 2)
    sleep = time.sleep

    def finish(seconds):
        # What another process would do meanwhile.
        sleep(seconds)
        if not log:
            return
        for name in ("y/c/2", "chunk-digests/c/2/0/0", "computed/c/2"):
            target = tmp_path / "sweep" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((tmp_path / "whole" / name).read_bytes())
        path.unlink(missing_ok=True)

    monkeypatch.setattr(sweeps._run.time, "sleep", finish)
    resumed = run(tmp_path / "sweep", progress=lambda done, total: log.append(done))
    assert log == [2, 3, 4]
    np.testing.assert_array_equal(resumed["y"], run(None)["y"])


def test_devices_of_other_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match="devices must belong to this process, got .*local_dev"):
        run(None, devices=jax.local_devices())
