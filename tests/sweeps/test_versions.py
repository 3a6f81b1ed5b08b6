"""Stores that several versions have computed: which chunk comes from which."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import zarr

from benchmarks import damaged_stores
from jaxgrad import sweeps
from jaxgrad.sweeps import Variable, _identity
from tests.sweeps.test_sweeps import StopError, sweep_of_0_1

VERSIONS = _identity.versions()
NAME = "chunk-versions"
AXES = {"x": [0.5, 1.5, 2.5], "seed": range(4)}


def cell(key, point):
    return {"y": jax.random.normal(key, (2,)) * point["x"], "n": point["seed"]}


def run(store, monkeypatch, version, cells=12, **options):
    """Compute at least so many cells by a version of JAX."""
    monkeypatch.setattr(_identity, "versions", lambda: VERSIONS | {"jax": version})

    def progress(done, total):
        if done >= cells and done < total:
            raise StopError

    variables = {"y": Variable(("k",)), "n": Variable()}
    options = {"key": jax.random.key(1), "chunk_cells": 2, "progress": progress, **options}
    try:
        return sweeps.run(cell, AXES, variables, store=store, **options)
    except StopError:
        return sweeps.open_store(store)


def of_jax(table):
    """The version of JAX of every cell."""
    assert table[NAME].dims == ("x", "seed")
    texts = [text.split(", ") for text in table[NAME].values.ravel().tolist()]
    others = {f"{name} {version}" for name, version in VERSIONS.items() if name != "jax"}
    assert all(not text[0] or set(text) > others for text in texts)
    return ["".join(p[4:] for p in text if p.startswith("jax ")) for text in texts]


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_a_table_says_which_versions_computed_which_cells(tmp_path, monkeypatch, kind):
    store = tmp_path / "sweep" if kind == "folder" else zarr.storage.MemoryStore()
    assert NAME not in run(store, monkeypatch, "1", cells=4)
    # Nothing is recorded of versions that compute nothing, nor of those that began it.
    assert NAME not in run(store, monkeypatch, "2", cells=4, other_versions=True)
    assert of_jax(run(store, monkeypatch, "2", 6, other_versions=True)) == [*"111122", *6 * [""]]
    run(store, monkeypatch, "3", 8, other_versions=True)
    assert of_jax(run(store, monkeypatch, "1")) == [*"111122331111"]
    table = sweeps.open_store(store)
    assert '"jax": "1"' in table.attrs["versions"]
    assert bool(table["computed"].all())
    assert of_jax(table.isel(x=[1], seed=slice(1, 3))) == ["2", "3"]


def test_a_store_of_one_version_is_as_before(tmp_path, monkeypatch):
    table = run(tmp_path / "sweep", monkeypatch, "1")
    assert set(table.data_vars) == {"y", "n"}
    assert set(sweeps.open_store(tmp_path / "sweep").data_vars) == {"y", "n", "computed"}


@pytest.fixture
def mixed(tmp_path, monkeypatch):
    store = tmp_path / "sweep"
    run(store, monkeypatch, "1", cells=4)
    run(store, monkeypatch, "2", other_versions=True)
    return store


def version_files(store):
    return {path.read_text().split('"jax": "')[1][0]: path for path in store.rglob("versions/*")}


@pytest.mark.parametrize("damage", ["missing", "other", "bit"])
def test_versions_that_are_damaged_are_named_and_their_chunks_repaired(mixed, monkeypatch, damage):
    files = version_files(mixed)
    whole = sweeps.open_store(mixed).load()
    if damage == "missing":
        files["2"].unlink()
    elif damage == "other":
        shutil.copy(files["1"], files["2"])
    else:
        files["2"].write_text(files["2"].read_text().replace('"jax": "2"', '"jax": "3"'))
    message = r"chunk-digests/c/1/0/0/0 \(x=1.5, seed=0 to 1\): its record of versions"
    for name in {"y", NAME} & set(sweeps.open_store(mixed).data_vars):
        with pytest.raises(sweeps.DamagedStoreError, match=message):
            sweeps.open_store(mixed)[name].load()
    # Chunks of other versions are not concerned.
    np.testing.assert_array_equal(sweeps.open_store(mixed)["y"][0], whole["y"][0])
    with pytest.warns(UserWarning, match="cells are computed again"):
        repaired = run(mixed, monkeypatch, "2", other_versions=True, repair=True)
    assert repaired.load().identical(whole.drop_vars("computed"))


def test_chunks_cannot_exchange_their_versions(mixed):
    digests = zarr.open_group(mixed, mode="r+")["chunk-digests"]
    values = digests[...]
    values[[0, 2], :, 2] = values[[2, 0], :, 2]
    digests[...] = values
    table = sweeps.open_store(mixed)
    for name in ("y", NAME):
        with pytest.raises(sweeps.DamagedStoreError, match="record of versions is damaged"):
            table[name].load()
        table[name][1].load()


def test_metadata_that_another_version_repairs_change_no_record(mixed, monkeypatch):
    (mixed / "zarr.json").unlink()
    with pytest.warns(UserWarning, match="metadata and labels are written again"):
        repaired = run(mixed, monkeypatch, "2", other_versions=True, repair=True)
    assert '"jax": "2"' in repaired.attrs["versions"]
    assert of_jax(repaired) == [*"111122222222"]


def test_no_random_damage_of_versions_is_read_in_silence(mixed):
    whole = sweeps.open_store(mixed).load()
    files = list(version_files(mixed).values())
    for kind in ("flipped bit", "shortened file", "empty file", "zeros"):
        for file in files:
            before = file.read_bytes()
            damaged_stores.DAMAGES[kind](damaged_stores.random.Random(0), file, file)
            assert damaged_stores.outcome(mixed, whole) == "error"
            file.write_bytes(before)
    assert damaged_stores.outcome(mixed, whole) == "unchanged"


def test_stores_without_records_open_and_resume(tmp_path):
    path = Path(__file__).parent
    store = shutil.copytree(path / "store_without_versions", tmp_path / "sweep")
    assert int(sweeps.open_store(store).load()["computed"].sum()) == 3
    resumed = sweep_of_0_1(store=store, other_versions=True).load()
    assert NAME not in resumed
    assert resumed.drop_attrs().identical(sweep_of_0_1().drop_attrs())
    # Its values are still verified.
    shutil.copy(store / "y/c/0/0/0", store / "y/c/2/0/0")
    with pytest.raises(sweeps.DamagedStoreError, match="y/c/2/0/0"):
        sweeps.open_store(store).load()
