"""Which sweeps share a store, and which numbers stand for labels."""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

from jaxgrad import sweeps
from jaxgrad.sweeps import Variable, _grid, _identity


def run(store, args=(), function=lambda key, point, *args: {"y": jnp.float32(point["x"])}):
    options = {"key": jax.random.key(0), "args": args, "store": store}
    return sweeps.run(function, {"x": [1, 2]}, {"y": Variable()}, **options)


ONE, TWO = np.float32(1), np.float32(2)
STRUCTURES = [
    (({"a": ONE},), ({"b": ONE},), r"args\[0\]\['a'\]"),
    (([ONE, TWO],), ((ONE, TWO),), "structure"),
    (([ONE, TWO],), ([ONE], TWO), r"args\[0\]\[1\]"),
    (([ONE], None), ([ONE],), "structure"),
    (([ONE],), ([TWO],), r"args\[0\]\[0\]"),
]


@pytest.mark.parametrize(("before", "after", "place"), STRUCTURES)
def test_the_structure_of_arguments_is_part_of_a_sweep(tmp_path, before, after, place):
    run(tmp_path / "sweep", before)
    run(tmp_path / "sweep", before)
    with pytest.raises(ValueError, match=f"holds another sweep .{place}"):
        run(tmp_path / "sweep", after)


def test_addresses_of_functions_are_no_part_of_a_sweep(tmp_path):
    functions = [lambda x: x for _ in range(2)]
    for function in functions:
        run(tmp_path / "sweep", (jax.tree_util.Partial(function, ONE),))


def test_precision_is_part_of_a_sweep(tmp_path):
    run(tmp_path / "sweep")
    message = r"settings.jax_default_matmul_precision: null in the store, \"highest\" now"
    with jax.default_matmul_precision("highest"), pytest.raises(ValueError, match=message):
        run(tmp_path / "sweep")
    with jax.enable_x64(True), pytest.raises(ValueError, match="jax_enable_x64: false in the sto"):
        run(tmp_path / "sweep")


def test_static_axes_are_part_of_a_sweep(tmp_path):
    """A program of a static axis computes one value of it, and a chunk may have several."""

    def sweep(name, static=(), **options):
        how = {"key": jax.random.key(0), "store": tmp_path / name, "chunk_cells": 4}
        axes = {"a": [0, 1], "n": [1, 2, 3, 4], "kind": ["relu"]}
        variables = {"y": Variable()}
        return sweeps.run(
            lambda key, point: {"y": 1.0 * point["n"]},
            axes,
            variables,
            static=static,
            **how,
            **options,
        )

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep("sweep", progress=stop)
    message = r'another sweep .static\[0\]: nothing in the store, "n" now'
    with pytest.raises(ValueError, match=message):
        sweep("sweep", static="n")
    # Texts are never traced, so that it says nothing to call them static.
    np.testing.assert_array_equal(sweep("sweep", static="kind")["y"][..., 0], [[1, 2, 3, 4]] * 2)
    sweep("static", static="n")
    with pytest.raises(ValueError, match=r'static\[0\]: "n" in the store, nothing now'):
        sweep("static")


def test_an_axis_with_more_values_is_refused_with_a_way_to_join_them(tmp_path):
    def sweep(seeds, name="sweep"):
        how = {"key": jax.random.key(0), "store": tmp_path / name}
        axes = {"seed": seeds}
        return sweeps.run(
            lambda key, point: {"y": jax.random.normal(key)}, axes, {"y": Variable()}, **how
        )

    first = sweep(range(2))
    for more in (range(3), [2, 0, 1]):
        with pytest.raises(ValueError, match=r"axes\.seed\[.\]: .*; sweep the new values alone to"):
            sweep(more)
    # Values that are left out are no new ones.
    for other in (range(1), [0, 2]):
        with pytest.raises(ValueError, match="pass another path, or delete it"):
            sweep(other)
    joined = xr.concat([first, sweep([2], "more")], "seed", combine_attrs="override")
    assert joined.load().drop_attrs().identical(sweep(range(3), "all").load().drop_attrs())


@pytest.mark.parametrize("package", ["jaxgrad", "jax", "jaxlib", "numpy"])
def test_other_versions_are_named_and_resumed_if_asked(tmp_path, monkeypatch, package):
    versions = _identity.versions()
    assert versions["jax"] == jax.__version__
    monkeypatch.setattr(_identity, "versions", lambda: versions | {package: "1.2.3"})
    run(tmp_path / "sweep")
    monkeypatch.undo()
    place = rf'versions.{package}: "1.2.3" in the store, "{versions[package]}" now'
    message = rf"was begun by other versions \({place}\); pass other_versions=True"
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "sweep")
    options = {"key": jax.random.key(0), "store": tmp_path / "sweep", "other_versions": True}

    def function(key, point):
        return {"y": jnp.float32(point["x"])}

    resumed = sweeps.run(function, {"x": [1, 2]}, {"y": Variable()}, **options)
    assert f'"{package}": "1.2.3"' in resumed.attrs["versions"]
    with pytest.raises(ValueError, match="holds another sweep .axes"):
        sweeps.run(function, {"x": [1, 3]}, {"y": Variable()}, **options)


def test_labels_with_one_crc32_draw_different_numbers(key):
    labels = ["plumless", "buckeroo"]
    assert _grid._label_ids("axis", labels, "crc32").tolist() == [[1306201125]] * 2
    one, other = (sweeps.cell_key({"a": label}, key=key) for label in labels)
    assert not bool(one == other)
    table = sweeps.run(
        lambda key, point: {"y": jax.random.normal(key)}, {"a": labels}, {"y": Variable()}, key=key
    )
    assert table["y"][0] != table["y"][1]
    assert table["y"][0] == jax.random.normal(one)


def test_the_number_of_a_label_is_its_documented_hash():
    digest = hashlib.blake2b(b"relu", digest_size=8).digest()
    high, low = np.frombuffer(digest, ">u4").tolist()
    mixed = _grid._label_ids("axis", [3, 0.5], _grid.CELL_IDS)
    assert _grid._label_ids("axis", ["relu"], _grid.CELL_IDS).tolist() == [[high, 1, low]]
    assert mixed[0].tolist() == [3, 0, 0]
    # Whole numbers need no second number, and draw what they drew in 0.1.
    assert _grid._label_ids("axis", [3, 5], _grid.CELL_IDS).tolist() == [[3], [5]]


def test_labels_of_equal_hashes_are_refused(key, monkeypatch):
    monkeypatch.setattr(_grid, "_label_id", lambda value, cell_ids: (7, 1, len(value)))
    axes = {"a": ["relu", "abs", "tanh"]}
    with pytest.raises(ValueError, match=r"axes\['a'\] must have .* got 'relu' and 'tanh'; rename"):
        sweeps.run(lambda key, point: {"y": 1.0}, axes, {"y": Variable()}, key=key)
