"""Sweeps on the workers of a cluster, against those of one process."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import sweeps

distributed = pytest.importorskip("distributed")

VARIABLES = {"mean": sweeps.Variable(), "first": sweeps.Variable(("i",))}
AXES = {"kind": ["a", "b"], "shift": [0.0, 1.0, 2.5], "seed": range(4)}


def cell(key, point, scale, other):
    x = jax.random.normal(key, (20,)) + jax.random.normal(other["key"], (20,))
    sign = 1 if point["kind"] == "a" else -1
    return {"mean": sign * scale * x.mean() + point["shift"], "first": x[:2]}


@pytest.fixture(scope="module")
def client():
    """Two workers in threads of this process."""
    options = {"processes": False, "dashboard_address": None, "worker_dashboard_address": None}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=2, **options) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def options(key):
    args = (jnp.float32(1.5), {"key": jax.random.key(3)})
    return {"key": key, "args": args, "chunk_cells": 5}


def files(folder):
    """All files of a store but the one that holds the time of its creation."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.parent != folder or path.name != "zarr.json"
    }


@pytest.mark.slow
def test_workers_write_what_one_process_writes(client, options, tmp_path):
    calls, forecasts = [], []
    sweeps.run(cell, AXES, VARIABLES, store=tmp_path / "one", **options)
    together = sweeps.run(
        cell,
        {name: iter(values) for name, values in AXES.items()},
        VARIABLES,
        store=tmp_path / "many",
        client=client,
        progress=lambda done, total: calls.append((done, total)),
        on_forecast=forecasts.append,
        **options,
    )
    assert files(tmp_path / "one") == files(tmp_path / "many")
    assert together.equals(sweeps.open_store(tmp_path / "one").drop_vars(sweeps.MARKER))
    # Two values that are not traced, three rows of four cells each.
    assert calls == [(4 * i, 24) for i in range(7)]
    assert np.isnan(forecasts[0].seconds)
    assert forecasts[1]._replace(seconds=0.0)[:4] == (24, 6, 2, 24 * 12)
    assert min(forecasts[1].seconds, forecasts[1].memory_bytes) > 0
    # Nothing stays behind, and a finished store asks nothing of the workers.
    assert list(client.run(plugin_names).values()) == [[], []]
    sweeps.run(cell, AXES, VARIABLES, store=tmp_path / "many", client=client, **options)


def plugin_names(dask_worker):
    return [name for name in dask_worker.plugins if name.startswith("jaxgrad")]


@pytest.mark.slow
def test_a_store_of_another_folder_is_resumed(client, options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InterruptedError):
        sweeps.run(cell, AXES, VARIABLES, store="s", progress=interrupt, **options)
    done = int(sweeps.open_store("s")["computed"].sum())
    assert 0 < done < 24
    calls = []
    sweeps.run(
        cell,
        AXES,
        VARIABLES,
        store="s",
        client=client,
        progress=lambda *c: calls.append(c),
        **options,
    )
    assert calls[0] == (done, 24)
    assert calls[-1] == (24, 24)
    sweeps.run(cell, AXES, VARIABLES, store="one", **options)
    assert files(tmp_path / "s") == files(tmp_path / "one")


def interrupt(done, total):
    if done:
        raise InterruptedError


def test_workers_have_the_settings_of_the_client(client, key, tmp_path):
    def wide(key, point):
        return {"x": jnp.asarray(1.0) / 3 + point["shift"]}

    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        table = sweeps.run(
            wide,
            {"shift": [0.0]},
            {"x": sweeps.Variable()},
            key=key,
            store=tmp_path / "s",
            client=client,
        )
        assert table["x"].dtype == np.float64
        assert float(table["x"][0]) == 1 / 3


@pytest.mark.slow
def test_an_error_of_a_cell_is_raised_and_the_next_sweep_goes_on(client, options, tmp_path):
    # The program fails while it runs, after the first chunks.
    def failing(key, point, *args):
        def check(shift):
            if shift > 2:
                raise ArithmeticError("too large")
            return shift

        shape = jax.ShapeDtypeStruct((), jnp.float32)
        shift = jax.pure_callback(check, shape, point["shift"], vmap_method="sequential")
        return {"mean": shift, "first": jnp.zeros(2)}

    with pytest.raises(Exception, match="too large"):
        sweeps.run(failing, AXES, VARIABLES, store=tmp_path / "s", client=client, **options)
    assert 0 < int(sweeps.open_store(tmp_path / "s")["computed"].sum()) < 24
    sweeps.run(cell, AXES, VARIABLES, store=tmp_path / "t", client=client, **options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"client": "tcp://somewhere"}, "client must be a synchronous dask.distributed.Client"),
        ({"store": None}, "store must be a path or a URL if there is a client, got None"),
        ({"devices": jax.devices()[:1]}, "devices must be None if there is a client"),
    ],
)
def test_bad_arguments(client, options, tmp_path, changes, message):
    arguments = {"store": tmp_path / "s", "client": client} | options | changes
    with pytest.raises((TypeError, ValueError), match=message):
        sweeps.run(cell, AXES, VARIABLES, **arguments)
    assert not (tmp_path / "s").exists()
