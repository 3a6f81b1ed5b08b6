"""Sweeps: every cell as if alone, whatever the chunks, devices, interruptions and neighbours."""

import dataclasses
import hashlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
from jax.core import Tracer

from jaxgrad import sweeps
from jaxgrad.sweeps import Variable, _grid

AXES = {"scale": [0.5, 1.0, 2.5], "kind": ["sin", "cos"], "seed": [7, 3, 11, 12]}
VARIABLES = {
    "path": Variable(("step",), "m", "a short walk"),
    "first": Variable(),
    "bits": Variable(("word",), description="key data"),
}
COORDS = {"step": [0.0, 0.1, 0.2, 0.3, 0.4]}
ULPS = 1e-6


def walk(key, point, shift=0.0):
    def step(x, noise):
        x = getattr(jnp, point["kind"])(x) * point["scale"] + noise
        return x, x

    noise = jax.random.normal(key, (5,), jnp.float32)
    _, path = jax.lax.scan(step, jnp.float32(0), noise)
    return {
        "path": path + shift,
        "first": noise[0] + point["seed"],
        "bits": jax.random.key_data(key),
    }


def sweep(key, function=walk, axes=None, **options):
    return sweeps.run(function, axes or AXES, VARIABLES, key=key, coords=COORDS, **options)


def documented_key(key, point):
    for name in sorted(point):
        value = point[name]
        if type(value) in (int, float) and value == int(value) and 0 <= value < 2**32:
            key = jax.random.fold_in(key, int(value))
            continue
        digest = hashlib.blake2b(str(value).encode(), digest_size=8).digest()
        for half in np.frombuffer(digest, ">u4"):
            key = jax.random.fold_in(key, int(half))
    return key


def assert_close(one, other):
    assert set(one.variables) == set(other.variables)
    for name in one.variables:
        if one[name].dtype.kind == "f":
            np.testing.assert_allclose(one[name].values, other[name].values, rtol=ULPS, atol=ULPS)
        else:
            np.testing.assert_array_equal(one[name].values, other[name].values)


def without_time(dataset):
    return dataset.assign_attrs(created="")


def small(key, point):
    return {"y": jax.random.normal(key, (2,)) * point["x"]}


SMALL = {"y": Variable(("k",))}


@pytest.mark.slow
def test_equals_a_loop_over_cells_with_the_documented_key(key):
    table = sweep(key)
    assert table["path"].dims == ("scale", "kind", "seed", "step")
    for scale in AXES["scale"]:
        for kind in AXES["kind"]:
            for seed in AXES["seed"]:
                point = {"scale": scale, "kind": kind, "seed": seed}
                expected = walk(documented_key(key, point), point)
                cell = table.sel(point)
                np.testing.assert_array_equal(cell["bits"], expected["bits"])
                np.testing.assert_allclose(cell["path"], expected["path"], rtol=ULPS, atol=ULPS)
                np.testing.assert_allclose(cell["first"], expected["first"], rtol=ULPS, atol=ULPS)


@pytest.mark.parametrize("value", [0, 3.0, -1, -2.5, 0.1, 2**31 - 1, "relu", True])
def test_cell_key_is_the_documented_one(key, value):
    assert sweeps.cell_key({"b": value, "a": 1}, key=key) == documented_key(
        key, {"a": 1, "b": value}
    )


@pytest.mark.parametrize("chunk_cells", [1, 3, 4, 1000])
def test_chunks_change_no_value(key, chunk_cells):
    assert_close(sweep(key, chunk_cells=chunk_cells), sweep(key))


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_devices_change_no_value(key, count):
    if count > jax.local_device_count():
        pytest.skip(f"needs {count} devices")
    devices = jax.local_devices()[:count]
    table = sweep(key, devices=devices, chunk_cells=3)
    assert table.attrs["device"].startswith(f"{count} x ")
    assert_close(table, sweep(key, devices=jax.local_devices()[-1:]))


def batch_spy():
    """An identity that records the size of every batch it is traced with."""
    sizes = []

    @jax.custom_batching.custom_vmap
    def spy(x):
        return x

    @spy.def_vmap
    def _(axis_size, in_batched, x):
        sizes.append(axis_size)
        return x, in_batched[0]

    return spy, sizes


def test_cells_are_spread_over_the_devices(key):
    count = jax.local_device_count()
    spy, sizes = batch_spy()

    def function(key, point):
        return {"y": spy(point["x"])}

    axes = {"x": np.arange(10)}
    sweeps.run(function, axes, {"y": Variable()}, key=key, chunk_cells=10)
    assert sizes == [-(-10 // count)]


@pytest.mark.slow
def test_growing_reordering_and_splitting_keep_values(key):
    table = sweep(key)
    grown = {
        "seed": [1, 12, 11, 3, 7],
        "kind": ["tan", "cos", "sin"],
        "scale": np.array([2.5, 9.0, 0.5, 1.0]),
    }
    assert_close(sweep(key, axes=grown).sel(AXES).transpose(*table["path"].dims, "word"), table)
    halves = [sweep(key, axes=AXES | {"seed": part}) for part in ([7, 3], [11, 12])]
    assert_close(xr.concat(halves, "seed", data_vars="all"), table)


def test_one_program_for_each_static_combination(key):
    traces = []

    def function(key, point, shift):
        traces.append(point["kind"])
        return walk(key, point, shift)

    sweep(key, function, args=(1.0,), chunk_cells=1)
    assert sorted(traces) == ["cos", "cos", "sin", "sin"]  # once for the shapes, once to compile


def test_static_numbers_decide_shapes_and_change_no_key(key):
    def function(key, point):
        steps, size = point["steps"], point["size"]
        assert isinstance(steps, int)
        assert isinstance(size, Tracer)
        x = jax.random.normal(key, (steps,), jnp.float32)
        return {"y": size * jnp.sum(x), "bits": jax.random.key_data(key)}

    axes = {"size": [1.0, 3.0], "steps": [2, 5]}
    variables = {"y": Variable(), "bits": Variable(("word",))}
    result = sweeps.run(function, axes, variables, key=key, static=["steps"])
    assert result["steps"].values.tolist() == [2, 5]
    for size, steps in itertools.product(*axes.values()):
        point = {"size": size, "steps": steps}
        cell = result.sel(point)
        key_cell = sweeps.cell_key(point, key=key)
        np.testing.assert_array_equal(cell["bits"], jax.random.key_data(key_cell))
        expected = size * np.sum(np.asarray(jax.random.normal(key_cell, (steps,), jnp.float32)))
        np.testing.assert_allclose(cell["y"], expected, rtol=1e-5)


@pytest.mark.slow
def test_cells_one_after_the_other_have_the_same_values(key):
    assert_close(sweep(key, vectorized=False), sweep(key))
    spy, sizes = batch_spy()

    def function(key, point):
        return {"y": spy(jnp.float32(point["seed"]))}

    sweeps.run(
        function, {"seed": range(8)}, {"y": Variable()}, key=key, vectorized=False, chunk_cells=8
    )
    assert not sizes


def test_points_arrive_as_documented(key):
    seen = {}

    def function(key, point):
        seen.update(point)
        return {"y": jnp.float32(0)}

    axes = {"b": [True, False], "n": [1, 2], "a": [0.5], "mixed": [1, 2.5]}
    table = sweeps.run(function, axes, {"y": Variable()}, key=key)
    assert list(seen) == list(axes)
    assert type(seen["b"]) is bool
    assert [seen[name].dtype for name in ("n", "a", "mixed")] == ["int32", "float32", "float32"]
    assert [table[name].dtype for name in axes] == ["bool", "int64", "float64", "float64"]
    with jax.enable_x64(True):
        sweeps.run(function, axes, {"y": Variable()}, key=jax.random.key(0))
        assert [seen[name].dtype for name in ("n", "a")] == ["int64", "float64"]


def test_args_reach_every_cell_as_data(key):
    tree = {"w": jnp.arange(3.0), "key": jax.random.key(5)}

    def function(key, point, tree, scale):
        assert isinstance(tree["w"], Tracer)
        return {"y": (tree["w"] * point["x"] + jax.random.uniform(tree["key"])) * scale}

    table = sweeps.run(function, {"x": [1, 2, 3]}, SMALL, key=key, args=(tree, 2.0))
    expected = (np.arange(3) * np.c_[1:4] + float(jax.random.uniform(tree["key"]))) * 2
    np.testing.assert_allclose(table["y"], expected, rtol=ULPS, atol=ULPS)


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 64
    name: str = "plain"


@pytest.mark.slow
def test_labels_and_attributes_are_the_same_in_memory_and_in_a_store(key, tmp_path):
    options = {"config": Config(), "units": {"scale": "days since 2000-01-01"}, "args": (2.0,)}
    memory = sweep(key, **options)
    stored = sweep(key, store=tmp_path / "deep" / "sweep", **options)
    assert stored["path"].variable._in_memory is False
    xr.testing.assert_identical(without_time(stored.load()), without_time(memory))
    for table in (memory, stored):
        assert set(table.data_vars) == set(VARIABLES)
        assert table["path"].attrs == {"units": "m", "description": "a short walk"}
        assert table["scale"].attrs == {"units": "days since 2000-01-01"}
        assert table["kind"].values.tolist() == ["sin", "cos"]
        assert table["kind"].dtype.kind == "U"
        assert "word" not in table.coords
        assert json.loads(table.attrs["config"]) == {"width": 64, "name": "plain"}
        assert json.loads(table.attrs["versions"])["jax"] == jax.__version__
        data = jax.random.key_data(key).tolist()
        assert json.loads(table.attrs["key"]) == {"impl": "threefry2x32", "data": data}
        assert str(tmp_path) not in json.dumps(table.attrs)
    assert sorted(os.listdir(tmp_path / "deep")) == ["sweep"]


def test_any_zarr_reader_opens_the_store(key, tmp_path):
    table = sweep(key, store=tmp_path / "sweep")
    plain = xr.open_zarr(tmp_path / "sweep", chunks=None)
    assert bool(plain["computed"].all())
    np.testing.assert_array_equal(plain["path"], table["path"])
    chunks = {name: array.chunks for name, array in zarr.open_group(tmp_path / "sweep").arrays()}
    assert chunks["path"][:3] == chunks["computed"] == chunks["bits"][:3]


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "float16", "float32", "complex64"])
def test_non_finite_values_and_dtypes_survive(key, tmp_path, dtype):
    values = np.array([0, 1, np.nan, np.inf, -np.inf] if dtype[0] in "fc" else [0, 1, 1, 0, 0])
    values = values.astype(dtype)

    def function(key, point, values):
        return {"y": values[point["x"]]}

    for store in (None, tmp_path / "sweep"):
        table = sweeps.run(
            function, {"x": range(5)}, {"y": Variable()}, key=key, args=(values,), store=store
        )
        assert table["y"].dtype == dtype
        np.testing.assert_array_equal(table["y"].values, values)


class StopError(Exception):
    pass


@pytest.mark.slow
def test_resumes_after_a_stop_at_every_chunk_and_computes_none_twice(key, tmp_path):
    whole = sweep(key, chunk_cells=4, store=tmp_path / "whole")
    store, log, times = tmp_path / "stopped", [], {}

    def written(store):
        return {file: file.stat().st_mtime_ns for file in store.glob("*/c/**/*") if file.is_file()}

    def progress(done, total):
        log.append(done)
        if done and log.count(done) == 1:
            raise StopError

    for attempt in range(6):
        # Other devices, chunks and limits do not matter to a store that is there.
        devices = jax.local_devices()[: 1 + attempt % jax.local_device_count()]
        with pytest.raises(StopError):
            sweep(
                key,
                store=store,
                chunk_cells=max(1, 4 - attempt),
                devices=devices,
                progress=progress,
            )
        assert int(sweeps.open_store(store)["computed"].sum()) == 4 * attempt + 4
        # What is finished is not written again.
        before, times = times, written(store)
        assert before.items() <= times.items()
    assert log == [0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24]

    resumed = sweep(key, store=store, progress=progress)
    assert log[12:] == [24]
    assert written(store) == times
    assert_close(resumed, whole)


STORES_OF_0_1 = Path(__file__).parent / "stores_of_0_1"


def cell_of_0_1(key, point, factor):
    # Products with powers of two are exact, so that values are equal on every machine.
    scale = {"half": 0.5, "double": 2.0}[point["kind"]] * point["x"] * factor
    draws = jax.random.uniform(key, (2,), jnp.float32)
    return {"y": scale * draws, "bits": jax.random.key_data(key)}


def sweep_of_0_1(**options):
    return sweeps.run(
        cell_of_0_1,
        {"x": [-1.0, 0.25, 4.0], "kind": ["half", "double"]},
        {"y": Variable(("step",), "m", "a draw"), "bits": Variable(("word",))},
        key=jax.random.key(7),
        args=(jnp.float32(2.0),),
        coords={"step": ["a", "b"]},
        units={"x": "m"},
        config={"version": 1},
        **options,
    )


@pytest.mark.parametrize(("name", "cells"), [("finished", 6), ("half_finished", 3)])
def test_stores_of_0_1_open_and_resume_bit_for_bit(tmp_path, monkeypatch, name, cells):
    store = shutil.copytree(STORES_OF_0_1 / name, tmp_path / name)
    written = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    computed = sweeps.open_store(store)["computed"]
    assert int(computed.sum()) == cells
    log = []
    resumed = sweep_of_0_1(store=store, progress=lambda done, total: log.append((done, total)))
    assert log[0] == (cells, 6)
    assert log[-1] == (6, 6)
    assert len(log) == 1 + (6 - cells + 1) // 2
    # What 0.1 wrote is unchanged, and the rest is what 0.1 computed.
    assert {path: path.read_bytes() for path in written} == written
    finished = sweeps.open_store(STORES_OF_0_1 / "finished").drop_vars("computed")
    xr.testing.assert_identical(without_time(resumed.load()), without_time(finished.load()))
    # Sweeps of today hash labels to 64 bits.
    assert not sweep_of_0_1().drop_attrs().identical(finished.drop_attrs().load())
    monkeypatch.setattr(_grid, "CELL_IDS", "crc32")
    assert sweep_of_0_1().drop_attrs().identical(finished.drop_attrs().load())


def test_stores_of_0_1_do_not_say_which_axes_are_static_but_their_chunks_do(tmp_path):
    store = shutil.copytree(STORES_OF_0_1 / "half_finished", tmp_path / "sweep")
    with pytest.raises(
        ValueError, match=r"static .* got 'x', of which the store computes 2 values"
    ):
        sweep_of_0_1(store=store, static="x")


def test_an_unfinished_store_opens_with_nan_where_nothing_is_computed(key, tmp_path):
    def progress(done, total):
        if done:
            raise StopError

    with pytest.raises(StopError):
        sweep(key, store=tmp_path / "sweep", progress=progress)
    table = sweeps.open_store(tmp_path / "sweep")
    computed = table["computed"]
    assert 0 < int(computed.sum()) < computed.size
    assert bool((table["path"].isnull() == ~computed).all())


def test_values_are_written_before_the_chunk_counts_as_computed(key, tmp_path, monkeypatch):
    order = []
    write = zarr.Array.__setitem__

    def spy(array, selection, value):
        order.append(array.name.strip("/"))
        write(array, selection, value)

    monkeypatch.setattr(zarr.Array, "__setitem__", spy)
    axes = {"x": range(6)}
    sweep_small = {"key": key, "store": tmp_path / "sweep", "chunk_cells": 2}
    sweeps.run(small, axes, SMALL, **sweep_small)
    assert order[-9:] == ["y", "chunk-digests", "computed"] * 3


def test_a_finished_store_compiles_nothing(key, tmp_path):
    traces, log = [], []

    def function(key, point):
        traces.append(point)
        return small(key, point)

    for _ in range(2):
        traces.clear()
        sweeps.run(
            function,
            {"x": [1, 2]},
            SMALL,
            key=key,
            store=tmp_path / "sweep",
            progress=lambda *now: log.append(now),
        )
    assert len(traces) == 1  # for the shapes
    assert log[-1] == (2, 2)
    assert log.count((2, 2)) == 2


KILLED = """
import os, sys, time
import jax, jax.numpy as jnp
from jaxgrad import sweeps

def cell(key, point):
    return {"y": jax.random.normal(key, (3,)) * point["x"], "n": point["seed"]}

def progress(done, total):
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()} {done}\\n")
    time.sleep(0.02)

variables = {"y": sweeps.Variable(("k",)), "n": sweeps.Variable()}
axes = {"x": [0.5 * i for i in range(12)], "seed": range(2)}
sweeps.run(cell, axes, variables, key=jax.random.key(1), store=sys.argv[1], chunk_cells=1,
           progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_survives_kills_at_random_moments(tmp_path, kills):
    store, log = tmp_path / "killed", tmp_path / "log"
    command = [sys.executable, "-W", "error", "-c", KILLED, str(store), str(log)]
    moments = random.Random(0)

    def stamps():
        folder = store / "computed" / "c"
        return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}

    def lines():
        return log.read_text().splitlines() if log.exists() else []

    finished = {}
    for _ in range(kills):
        before = len(lines())
        process = subprocess.Popen(command)
        while len(lines()) < before + 5 and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -9
        finished = {path: stamp for path, stamp in stamps().items() if ".partial" not in path.name}
        assert int(sweeps.open_store(store)["computed"].sum()) == len(finished) < 24
    subprocess.run(command, check=True)
    assert {path: stamps()[path] for path in finished} == finished

    runs = {}
    for line in lines():
        process_id, done = line.split()
        runs.setdefault(process_id, []).append(int(done))
    counts = list(runs.values())
    assert len(counts) == kills + 1
    assert all(run == list(range(run[0], run[-1] + 1)) for run in counts)
    # A kill between the marker and the log leaves one stored chunk unlogged.
    assert all(0 <= b[0] - a[-1] <= 1 for a, b in itertools.pairwise(counts))
    assert counts[-1][-1] == 24

    subprocess.run([*command[:-2], str(tmp_path / "whole"), str(tmp_path / "other")], check=True)
    whole = sweeps.open_store(tmp_path / "whole").load()
    resumed = sweeps.open_store(store).load()
    xr.testing.assert_identical(without_time(resumed), without_time(whole))


@pytest.mark.slow
def test_memory_limit_shrinks_the_batch(key):
    spy, sizes = batch_spy()

    def function(key, point):
        matrix = jax.random.normal(key, (100, 100), jnp.float32)
        return {"y": spy(jnp.linalg.norm(jnp.sin(matrix @ matrix)))}

    def go(**options):
        sizes.clear()
        axes, variables = {"seed": range(64)}, {"y": Variable()}
        return sweeps.run(function, axes, variables, key=key, chunk_cells=64, **options)

    free = go()
    assert len(sizes) == 1
    limited = go(memory_limit=1_000_000)
    assert sizes[-1] < sizes[0]
    assert sizes[-1] * 40_000 <= 1_000_000
    assert_close(limited, free)
    with pytest.raises(ValueError, match=r"memory_limit must be at least the \d+ bytes .*got 1000"):
        go(memory_limit=1000)
    assert sizes[-1] == 1


CLASH = "must not share a name"
BAD = {
    "function": ({"function": 3}, TypeError, "function must be callable, got 3"),
    "progress": ({"progress": "bar"}, TypeError, "progress must be callable, got 'bar'"),
    "legacy key": ({"key": np.zeros(2, np.uint32)}, TypeError, r"typed key.*jax.random.key\(0\)"),
    "no key": ({"key": 0}, TypeError, "key must be one typed key, got 0"),
    "axes": ({"axes": [1, 2]}, TypeError, r"axes must map names to values, got \[1, 2\]"),
    "no axes": ({"axes": {}}, ValueError, "axes must not be empty, got {}"),
    "empty axis": ({"axes": {"x": []}}, ValueError, r"axes\['x'\] must not be empty"),
    "repeat": ({"axes": {"x": [1, 2, 1]}}, ValueError, r"axes\['x'\] must not repeat.*\[1, 2, 1\]"),
    "nan": ({"axes": {"x": [1, np.nan]}}, ValueError, r"axes\['x'\] must be finite.*got nan"),
    "inf": ({"axes": {"x": np.array([np.inf])}}, ValueError, r"must be finite.*got inf"),
    "string": ({"axes": {"x": "relu"}}, TypeError, r"axes\['x'\] must be a sequence.*'relu'"),
    "mixed": ({"axes": {"x": [1, "a"]}}, TypeError, r"all numbers.*\['number', 'str'\]"),
    "objects": ({"axes": {"x": [None]}}, TypeError, r"all numbers.*NoneType"),
    "static": ({"static": "depth"}, ValueError, "static must be one of x; got 'depth'"),
    "matrix": ({"axes": {"x": np.eye(2)}}, TypeError, r"all numbers.*ndarray"),
    "overflow": ({"axes": {"x": [1e300]}}, ValueError, r"as float32, got \[1e\+300\].*enable_x64"),
    "large": ({"axes": {"x": [2**40]}}, ValueError, r"distinct as int32.*enable_x64"),
    "same": ({"axes": {"x": [1.0, 1 + 1e-12]}}, ValueError, r"distinct as float32.*enable_x64"),
    "name": ({"axes": {"a/b": [1]}}, ValueError, "identifiers, got 'a/b'"),
    "axis and variable": ({"axes": {"y": [1]}}, ValueError, CLASH + ".*'y'"),
    "axis and dim": ({"axes": {"k": [1]}}, ValueError, CLASH + ".*'k'"),
    "marker": ({"axes": {"computed": [1]}}, ValueError, CLASH + ".*'computed'"),
    "no variables": ({"variables": {}}, ValueError, "variables must not be empty"),
    "plain variable": ({"variables": {"y": ("k",)}}, TypeError, r"variables\['y'\] must be a Var"),
    "dims": ({"variables": {"y": Variable("k")}}, TypeError, r"tuple of names.*\('layer',\)"),  # type: ignore
    "dim twice": ({"variables": {"y": Variable(("k", "k"))}}, ValueError, "each dimension once"),
    "missing": ({"variables": SMALL | {"z": Variable()}}, TypeError, "exactly y, z.*got {'y'"),
    "extra": ({"variables": {"z": Variable(("k",))}}, TypeError, "exactly z as in var.*got {'y'"),
    "rank": ({"variables": {"y": Variable()}}, ValueError, r"dims \(\) must fit.*shape \(2,\)"),
    "labels": ({"coords": {"k": [1, 2, 3]}}, ValueError, r"coords\['k'\].*got 3 for the 2 va.*'y'"),
    "coords": ({"coords": {"q": [1]}}, ValueError, "coords must be one of k; got 'q'"),
    "coord": ({"coords": {"k": [1, np.nan]}}, ValueError, r"coords\['k'\] must be finite"),
    "units": ({"units": {"q": "m"}}, ValueError, "units must be one of x; got 'q'"),
    "text": ({"function": lambda *_: {"y": "text"}}, TypeError, "dict of arrays.*'text'"),
    "array": ({"function": lambda *_: jnp.ones(2)}, TypeError, "dict of arrays"),
    "key out": ({"function": lambda k, _: {"y": k[None]}}, TypeError, r"dtype of NumPy.*key<fry>"),
    "bfloat16": (
        {"function": lambda *_: {"y": jnp.ones(2, jnp.bfloat16)}},
        TypeError,
        "dtype of NumPy.*bfloat16.*float32",
    ),
    "chunk_cells": ({"chunk_cells": 0}, ValueError, "chunk_cells must be at least 1, got 0"),
    "memory_limit": ({"memory_limit": 0}, ValueError, "memory_limit must be at least 1, got 0"),
    "config": ({"config": {"f": print}}, TypeError, "config must hold JSON.*not JSON serializable"),
    "config nan": ({"config": {"f": np.nan}}, ValueError, "config must hold JSON values"),
    "config list": ({"config": [1]}, TypeError, r"config must map names.*\[1\]"),
    "devices": ({"devices": 2}, TypeError, "devices must be JAX devices, got 2"),
    "no devices": ({"devices": []}, ValueError, "devices must not be empty"),
    "args": ({"args": np.ones(2)}, TypeError, "args must be a tuple, got ndarray"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named_before_any_work(key, tmp_path, case):
    changed, error, message = BAD[case]
    options = {"function": small, "axes": {"x": [1, 2]}, "variables": SMALL, "key": key} | changed
    calls = [options.pop(name) for name in ("function", "axes", "variables")]
    with pytest.raises(error, match=message) as caught:
        sweeps.run(*calls, store=tmp_path / "sweep", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_keys_whose_draws_depend_on_the_batch_are_refused():
    with pytest.raises(ValueError, match="threefry2x32, got rbg"):
        sweeps.run(small, {"x": [1]}, SMALL, key=jax.random.key(0, impl="rbg"))


def test_static_values_must_give_alike_outputs(key):
    def shapes(key, point):
        return {"y": jnp.zeros(3 if point["wide"] else 2)}

    def dtypes(key, point):
        return {"y": jnp.zeros(2, jnp.int32 if point["wide"] else jnp.float32)}

    axes = {"wide": [False, True]}
    with pytest.raises(ValueError, match=r"got shape \(3,\) where .* say \(2,\)"):
        sweeps.run(shapes, axes, SMALL, key=key)
    with pytest.raises(TypeError, match=r"one dtype .*got int32 at {'wide': True}"):
        sweeps.run(dtypes, axes, SMALL, key=key)


DIFFERENT = {
    r"config\.width: 64 in the store, 128 now": {"config": {"width": 128}},
    r"config\.width: 64 in the store, nothing now": {"config": {}},
    r"axes\.x\[1\]: 2 in the store, 3 now": {"axes": {"x": [1, 3], "z": [1]}},
    r"axes\.x\[0\]: 1 in the store, 1\.0 now": {"axes": {"x": [1.0, 2.0], "z": [1]}},
    r'axis_order\[0\]: "x" in the store, "z" now': {"axes": {"z": [1], "x": [1, 2]}},
    r"key\[1\]": {"key": jax.random.wrap_key_data},
    r"args\[0\]: .* in the store": {"args": (2.0,)},
    r"coords\.k\[0\]: nothing in the store, 5 now": {"coords": {"k": [5, 6]}},
    r'variables\.y\.units: "1" in the store, "m" now': {"variables": {"y": Variable(("k",), "m")}},
}


@pytest.mark.parametrize("message", DIFFERENT)
def test_another_sweep_in_the_store_is_refused_by_what_differs(tmp_path, message):
    def function(key, point, scale):
        return {"y": jnp.ones(2) * scale}

    def go(axes=None, variables=SMALL, **options):
        axes = axes or {"x": [1, 2], "z": [1]}
        options = {"key": jax.random.key(1), "args": (1.0,), "config": {"width": 64}} | options
        return sweeps.run(function, axes, variables, store=tmp_path / "sweep", **options)

    changed = dict(DIFFERENT[message])
    if "key" in changed:
        changed["key"] = jax.random.key(2)
    before = go()
    expected = f"store '.*sweep' holds another sweep .{message}"
    with pytest.raises(ValueError, match=expected) as caught:
        go(**changed)
    assert "pass another path, or delete it" in str(caught.value)
    xr.testing.assert_identical(go().load(), before.load())


def test_what_is_not_a_store_is_left_alone(key, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    xr.Dataset({"a": ("x", [1.0])}).to_zarr(tmp_path / "foreign", consolidated=False)
    for name in ("file", "folder", "foreign"):
        with pytest.raises(ValueError, match=f"store must be the store of a sweep, got .*{name}'"):
            sweeps.run(small, {"x": [1]}, SMALL, key=key, store=tmp_path / name)
        with pytest.raises(ValueError, match=f"path must be the store of a sweep, got .*{name}';"):
            sweeps.open_store(tmp_path / name)
    with pytest.raises(ValueError, match=r"got '.*nope.zarr', where there is nothing; pass anoth"):
        sweeps.open_store(tmp_path / "nope.zarr")
    assert (tmp_path / "file").read_text() == "mine"
    assert not list((tmp_path / "folder").iterdir())


def test_a_store_appears_whole_or_not_at_all(key, tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def fail(source, target):
        if target != tmp_path / "sweep":
            return replace(source, target)
        seen.append(xr.open_zarr(source, chunks=None).sizes["x"])
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"store cannot be created at .*sweep' \(disk full\)"):
        sweeps.run(small, {"x": [1, 2]}, SMALL, key=key, store=tmp_path / "sweep")
    assert seen == [2]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(key, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"store cannot be created at .*file/sweep'.*can be written"):
        sweeps.run(small, {"x": [1]}, SMALL, key=key, store=tmp_path / "file" / "sweep")

    def stop(done, total):
        raise StopError

    options = {"key": key, "store": tmp_path / "sweep"}
    with pytest.raises(StopError):
        sweeps.run(small, {"x": [1]}, SMALL, progress=stop, **options)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(OSError, match="sweep' cannot be written"):
            sweeps.run(small, {"x": [1]}, SMALL, **options)
    sweeps.run(small, {"x": [1]}, SMALL, **options)


@pytest.mark.parametrize("package", ["xarray", "zarr"])
def test_missing_packages_are_named(key, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r'python -m pip install "jaxgrad\[experiments\]"'):
        sweeps.run(small, {"x": [1]}, SMALL, key=key)


@pytest.mark.slow
def test_import_needs_no_package_and_starts_no_backend():
    code = """
import sys
sys.modules["xarray"] = sys.modules["zarr"] = None
import jaxgrad.sweeps, jax
jax.config.update("jax_num_cpu_devices", 3)  # refused once a backend runs
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("cells", range(1, 40))
def test_chunks_are_even_runs_of_at_most_the_asked_cells(cells):
    sizes, static = (3, 2, 10, 5), [1]
    axes = {f"axis_{i}": range(size) for i, size in enumerate(sizes)}
    grid = _grid.make_grid(axes, [f"axis_{i}" for i in static], _grid.CELL_IDS)
    chunk = _grid.chunk_shape(grid, cells)
    assert 1 <= np.prod(chunk) <= cells
    assert chunk[1] == 1
    seen = np.zeros(sizes, int)
    chunks = _grid.Chunks(sizes, chunk)
    for number in range(chunks.total):
        seen[chunks.block(number)] += 1
    assert (seen == 1).all()
    cut = [a for a in range(4) if a not in static and chunk[a] < sizes[a]]
    assert all(chunk[a] == 1 for a in cut[:-1])
