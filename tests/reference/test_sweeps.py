"""Sweeps: the tables of 0.1."""

import zipfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import sweeps
from jaxgrad.sweeps import Variable
from tests.reference.record import hold

# What these numbers hold is tested by quicker tests, too.
pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
AXES = {"scale": [0.5, 1.0, 2.5], "kind": ["sin", "cos"], "seed": [7, 3, 11]}
VARIABLES = {
    "path": Variable(("step",), "m", "a short walk"),
    "first": Variable(),
    "bits": Variable(("word",), description="key data"),
}
COORDS = {"step": [0.0, 0.1, 0.2, 0.3, 0.4]}
OPTIONS = {"key": KEY, "coords": COORDS}


def walk(key, point, shift=0.0):
    def step(x, noise):
        x = getattr(jnp, point["kind"])(x) * point["scale"] + noise
        return x, x

    noise = jax.random.normal(key, (5,), jnp.float32)
    path = jax.lax.scan(step, jnp.float32(0), noise)[1]
    first = noise[0] + point["seed"]
    return {"path": path + shift, "first": first, "bits": jax.random.key_data(key)}


def table(dataset):
    out = {name: dataset[name].values for name in [*dataset.data_vars, *dataset.coords]}
    out["dims"] = {name: np.asarray(dataset[name].dims) for name in dataset.data_vars}
    units = {name: dataset[name].attrs.get("units", "") for name in dataset.data_vars}
    return out | {"units": units}


def test_run():
    dataset = sweeps.run(walk, AXES, VARIABLES, units={"scale": "m"}, config={"a": 1}, **OPTIONS)
    hold("sweeps.run", table(dataset))


def test_run_with_arguments_one_cell_after_the_other():
    options = OPTIONS | {"args": (jnp.float32(2.0),), "chunk_cells": 2, "vectorized": False}
    hold("sweeps.run_args", table(sweeps.run(walk, AXES, VARIABLES, **options)))


def test_static_axes():
    def cell(key, point):
        return {"y": jnp.sum(jax.random.normal(key, (point["size"],))) * point["flag"]}

    axes = {"size": [2, 5], "flag": [True, False], "x": [0.1, -3, 1e10]}
    dataset = sweeps.run(cell, axes, {"y": Variable()}, key=KEY, static=("size",))
    hold("sweeps.static", table(dataset))


def test_cell_keys():
    values = [0, 3.0, -1, -2.5, 0.1, 2**31 - 1, 2**40, "relu", True]
    keys = [sweeps.cell_key({"b": value, "a": 1}, key=KEY) for value in values]
    hold("sweeps.cell_key", {"keys": jnp.stack([jax.random.key_data(key) for key in keys])})


def test_store_of_0_1_is_read_and_resumed(tmp_path):
    store = tmp_path / "store.zarr"
    zipfile.ZipFile(Path(__file__).parent / "store_v0_1.zip").extractall(store)
    assert 0 < int(sweeps.open_store(store)["computed"].sum()) < 18
    done = []
    options = OPTIONS | {"units": {"scale": "m"}, "config": {"a": 1}, "store": store}
    progress = {"progress": lambda *counts: done.append(counts)}
    dataset = sweeps.run(walk, AXES, VARIABLES, **options, **progress).load()
    hold("sweeps.store", table(dataset))
    assert done[0] == (9, 18)
