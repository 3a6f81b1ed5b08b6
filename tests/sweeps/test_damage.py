"""Stores: nothing that is missing, damaged or in the wrong place is read as data."""

import gc
import json
import random
import re
import shutil
import tracemalloc
import warnings

import jax
import numpy as np
import pytest
import xarray as xr
import zarr

from benchmarks import damaged_stores
from jaxgrad import sweeps
from jaxgrad.sweeps import Variable, _reading

AXES = {"x": [0.5, 1.5, 2.5], "seed": range(4)}


def cell(key, point):
    return {"y": jax.random.normal(key, (2,)) * point["x"], "n": point["seed"]}


def run(store, **options):
    variables = {"y": Variable(("k",)), "n": Variable()}
    options = {"key": jax.random.key(1), "chunk_cells": 2, **options}
    return sweeps.run(cell, AXES, variables, store=store, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    store = tmp_path_factory.mktemp("finished") / "sweep"
    run(store)
    return store


@pytest.fixture
def store(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "sweep")


def files(store):
    return {
        path.relative_to(store): path.read_bytes() for path in store.rglob("*") if path.is_file()
    }


SLOW = [pytest.param(200, seed, marks=pytest.mark.slow) for seed in range(1, 11)]


@pytest.mark.slow
@pytest.mark.parametrize(("times", "seed"), [(64, 0), *SLOW])
def test_no_random_damage_is_read_in_silence(times, seed):
    counts = damaged_stores.count(times, seed)
    # The collector runs seldom in the tests, and errors hold what was read.
    gc.collect()
    assert sum(map(sum, (kind.values() for kind in counts.values()))) == times
    assert not any(kind["SILENT"] for kind in counts.values())
    # A file may be exchanged for an equal one, but other bytes in any file are an error.
    for kind in ("flipped bit", "shortened file", "empty file", "zeros"):
        assert set(counts[kind]) == {"error"}


def test_a_file_of_values_in_the_place_of_labels_is_not_decoded(tmp_path):
    store = tmp_path / "sweep"
    damaged_stores.create(store)
    # Its first bytes, taken for a number of texts, would ask for gigabytes.
    shutil.copy(store / "walk/c/0/2/0/0", store / "step/c/0")
    tracemalloc.start()
    with pytest.raises(sweeps.DamagedStoreError, match="step/c/0: it is not the one"):
        sweeps.open_store(store)
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


DAMAGES = {
    "bit": lambda chunk, other: chunk.write_bytes(chunk.read_bytes()[:-1] + b"x"),
    "missing": lambda chunk, other: chunk.unlink(),
    "other chunk": lambda chunk, other: shutil.copy(other, chunk),
}


@pytest.mark.parametrize(("kind", "name"), list(zip(DAMAGES, "yny", strict=True)))
def test_a_damaged_chunk_is_named_when_it_is_read_and_repaired(finished, store, kind, name):
    inner = "/0" * (name == "y")
    chunk, other = (store / f"{name}/c/1/{i}{inner}" for i in (1, 0))
    before = files(store)
    DAMAGES[kind](chunk, other)
    table = sweeps.open_store(store)
    # Cells of other chunks, and other variables, are not concerned.
    whole = sweeps.open_store(finished)
    np.testing.assert_array_equal(table[name][1, :2], whole[name][1, :2])
    place = rf"{name}/c/1/1{inner} \(x=1.5, seed=2 to 3\)"
    message = rf"store '.*sweep' is damaged: {place}: .*; pass repair=True to sweeps.run"
    with pytest.raises(sweeps.DamagedStoreError, match=message) as caught:
        table[name][1, 2].load()
    # Words, and no bytes.
    assert not re.search(r"b'|\\x|Error", str(caught.value))
    if kind == "missing":
        with pytest.raises(sweeps.DamagedStoreError, match=place):
            run(store)
    else:
        # A finished store is read when its values are used.
        resumed = run(store)
        with pytest.raises(sweeps.DamagedStoreError, match=place):
            resumed.load()

    log = []
    with pytest.warns(UserWarning, match=f"computed again: .*{place}") as warned:
        repaired = run(store, repair=True, progress=lambda *now: log.append(now))
    # What is being done is no advice.
    assert not [warning for warning in warned if "repair=True" in str(warning.message)]
    assert log == [(10, 12), (12, 12)]
    assert files(store) == before
    xr.testing.assert_identical(repaired.load(), whole.drop_vars("computed").load())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(store, repair=True)


def test_a_missing_file_is_an_error_before_a_store_is_resumed(store):
    (store / "n/c/2/0").unlink()
    with pytest.raises(sweeps.DamagedStoreError, match=r"n/c/2/0 \(x=2.5, seed=0 to 1\)"):
        run(store, progress=lambda *now: pytest.fail("it begins"))


def test_a_lost_mark_costs_the_chunk_and_no_error(finished, store):
    (store / "computed/c/0/1").unlink()
    table = sweeps.open_store(store)
    assert int(table["computed"].sum()) == 10
    assert np.isnan(table["y"][0, 2:]).all()
    log = []
    resumed = run(store, progress=lambda *now: log.append(now))
    assert log == [(10, 12), (12, 12)]
    xr.testing.assert_identical(resumed.load(), run(finished).load())


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def drop_seal(root):
    del root["attributes"]["metadata_sha256"]


EDITS = {
    "units": ("y/zarr.json", lambda array: array["attributes"].update(units="km")),
    "type": ("zarr.json", lambda root: meta(root, "y").update(data_type="int32")),
    "config": ("zarr.json", lambda root: root["attributes"].update(config='{"a": 2}')),
    "seal": ("zarr.json", drop_seal),
}


def meta(root, name):
    return root["consolidated_metadata"]["metadata"][name]


@pytest.mark.parametrize("kind", [*EDITS, "labels", "no labels", "no metadata", "no JSON"])
def test_damaged_metadata_and_labels_are_named_and_written_again(finished, store, kind):
    before = files(store)
    name = "zarr.json"
    if kind in EDITS:
        edit(store / EDITS[kind][0], EDITS[kind][1])
    elif kind == "labels":
        name = "seed/c/0"
        shutil.copy(store / "x/c/0", store / name)
    elif kind == "no labels":
        name = "x/c/0"
        (store / name).unlink()
    elif kind == "no metadata":
        (store / name).unlink()
    else:
        (store / name).write_text("{")
    for read in (sweeps.open_store, run):
        with pytest.raises(sweeps.DamagedStoreError, match=f"is damaged: {name}: "):
            read(store)
    with pytest.warns(UserWarning, match="metadata and labels are written again"):
        repaired = run(store, repair=True)
    xr.testing.assert_identical(
        repaired.load().assign_attrs(created=""), run(finished).load().assign_attrs(created="")
    )
    unchanged = {path for path in before if path.name != "zarr.json"}
    assert {path: files(store)[path] for path in unchanged} == {p: before[p] for p in unchanged}


def test_chunks_of_another_sweep_differ(finished, tmp_path):
    run(tmp_path / "other", key=jax.random.key(2))
    shutil.copytree(tmp_path / "other/n", tmp_path / "other/y2")
    for name in ("n", "chunk-digests"):
        shutil.rmtree(tmp_path / "other" / name)
        shutil.copytree(finished / name, tmp_path / "other" / name)
    # The values are the same, but not the sweep.
    with pytest.raises(sweeps.DamagedStoreError, match="values are not those of the sweep"):
        sweeps.open_store(tmp_path / "other")["n"].load()


def exchange(path, other):
    data = path.read_bytes(), other.read_bytes()
    path.write_bytes(data[1])
    other.write_bytes(data[0])


@pytest.mark.parametrize("pair", [("1/0", "1/1"), ("0/1", "2/1")])
def test_chunks_that_are_exchanged_with_their_digests_differ(store, pair):
    for name, inner in (("y", "/0"), ("n", ""), ("chunk-digests", "/0/0"), ("computed", "")):
        exchange(*(store / f"{name}/c/{index}{inner}" for index in pair))
    table = sweeps.open_store(store)
    for name in ("y", "n"):
        with pytest.raises(sweeps.DamagedStoreError, match=f"{name}/c/"):
            table[name].load()


def test_variables_that_are_exchanged_with_their_digests_differ(key, tmp_path):
    variables = {"a": Variable(), "b": Variable()}
    sweeps.run(
        lambda key, point: {"a": point["x"], "b": -point["x"]},
        {"x": range(3)},
        variables,
        key=key,
        store=tmp_path / "sweep",
        chunk_cells=3,
    )
    exchange(tmp_path / "sweep/a/c/0", tmp_path / "sweep/b/c/0")
    digests = zarr.open_group(tmp_path / "sweep", mode="r+")["chunk-digests"]
    digests[0] = digests[0][::-1]
    with pytest.raises(sweeps.DamagedStoreError, match="a/c/0"):
        sweeps.open_store(tmp_path / "sweep")["a"].load()


def test_chunks_of_fill_values_are_written_and_stay_as_they_are(key, tmp_path):
    values = np.array([[np.nan, -0.0], [-np.nan, np.nan]], np.float32)

    def function(key, point, values):
        return {"y": values[point["x"]], "n": 0}

    options = {"key": key, "args": (values,), "chunk_cells": 1, "store": tmp_path / "sweep"}
    for _ in range(2):
        table = sweeps.run(
            function, {"x": range(2)}, {"y": Variable(("k",)), "n": Variable()}, **options
        )
        # With the signs of NaN and zero.
        assert table["y"].values.tobytes() == values.tobytes()


def test_only_the_chunks_that_are_used_are_read(store, monkeypatch):
    read, numbers = _reading.read_block, []

    def spy(store, name, number):
        numbers.append((name, number))
        return read(store, name, number)

    monkeypatch.setattr(_reading, "read_block", spy)
    table = sweeps.open_store(store)
    assert not numbers
    table["y"].sel(x=1.5, seed=3).load()
    assert numbers == [("y", 3)]


@pytest.mark.slow
def test_selections_are_those_of_the_same_array_in_memory(finished):
    whole, draw = sweeps.open_store(finished).load(), random.Random(0)

    def index(size):
        return draw.choice(
            [
                draw.randrange(-size, size),
                slice(*sorted(draw.choices(range(size + 1), k=2)), draw.choice([1, 2])),
                slice(None, None, -1),
                [draw.randrange(size) for _ in range(3)],
                np.array([draw.random() < 0.5 for _ in range(size)]),
            ]
        )

    for _ in range(60):
        name = draw.choice(["y", "n", "computed"])
        lazy = sweeps.open_store(finished)[name]
        selection = tuple(index(size) for size in lazy.shape)
        xr.testing.assert_identical(lazy[selection].load(), whole[name][selection])
        # A selection of a selection, before anything is read.
        first = {"x": slice(1, None), "seed": [3, 0, 1]}
        assert lazy.isel(first).isel(seed=1).identical(whole[name].isel(first).isel(seed=1))
    assert lazy.isel(x=xr.DataArray([0, 2], dims="p"), seed=xr.DataArray([1, 3], dims="p")).shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codecs": [{"name": "numcodecs.pickle"}]}, r"got \['numcodecs.pickle'\]"),
        ({"codecs": [{"name": "bytes"}, {"name": "mine"}]}, r"got \['bytes', 'mine'\]"),
        ({"data_type": {"name": "object"}}, "plain numbers or text"),
        ({"storage_transformers": [{"name": "mine"}]}, "plain numbers or text"),
    ],
)
def test_a_store_cannot_choose_the_code_that_reads_it(tmp_path, changes, message):
    # Of 0.1, whose metadata have no digest that would be wrong.
    store = shutil.copytree("tests/sweeps/stores_of_0_1/finished", tmp_path / "sweep")
    for path, change in (
        (store / "zarr.json", lambda root: meta(root, "y").update(changes)),
        (store / "y/zarr.json", lambda array: array.update(changes)),
    ):
        edit(path, change)
    with pytest.raises(ValueError, match=f"is refused: y must have codecs.*{message}"):
        sweeps.open_store(store)


def test_labels_of_stores_of_0_1_are_verified(tmp_path):
    store = shutil.copytree("tests/sweeps/stores_of_0_1/finished", tmp_path / "sweep")
    (store / "x/c/0").write_bytes((store / "step/c/0").read_bytes())
    with pytest.raises(sweeps.DamagedStoreError, match="x/c/0"):
        sweeps.open_store(store)
