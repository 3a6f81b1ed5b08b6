"""Data sets, files and splits."""

import jax
import numpy as np
import pytest

from experiments._kit import inputs, load, split
from experiments._kit.data import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_data_sets_name_their_classes_and_features(name):
    data = load(name)
    assert data.x.dtype == np.float64
    assert data.x.shape == (len(data.labels), len(data.features))
    assert set(np.unique(data.labels)) == set(range(len(data.classes)))


@pytest.mark.parametrize("name", ["digits", "wine"])
def test_inputs_are_standardized_rows_without_repetition(name):
    rows = inputs(name, 178, 3)
    assert rows.dtype == np.float32
    assert len(np.unique(rows, axis=0)) == 178
    if name == "wine":
        np.testing.assert_allclose(rows.mean(axis=0), 0.0, atol=1e-5)
        np.testing.assert_allclose(rows.std(axis=0), 1.0, rtol=1e-5)
    np.testing.assert_array_equal(rows, inputs(name, 178, 3))


def test_files_hold_the_same_numbers(tmp_path):
    x = load("wine").x
    np.save(tmp_path / "wine.npy", x)
    np.savetxt(tmp_path / "wine.csv", x, delimiter=",", fmt="%.17g")
    for suffix in ("npy", "csv"):
        read = inputs(str(tmp_path / f"wine.{suffix}"), 10, 0)
        np.testing.assert_array_equal(read, inputs("wine", 10, 0))


@pytest.mark.slow
@pytest.mark.parametrize("per_feature", [True, False])
def test_parts_are_standardized_like_the_training_set(per_feature, key):
    digits = load("digits")
    train, dev = split(digits.x, digits.labels, (0.6, 0.4), key=key, per_feature=per_feature)
    assert (len(train.x), len(dev.x)) == (1078, 719)
    axis = 0 if per_feature else None
    spread = np.asarray(train.x).std(axis=axis)
    np.testing.assert_allclose(spread[spread > 0], 1.0, rtol=1e-3)
    np.testing.assert_allclose(np.asarray(train.x).mean(axis=axis), 0.0, atol=1e-4)
    whole = [np.bincount(part.labels) / len(part.labels) for part in (train, dev)]
    np.testing.assert_allclose(*whole, atol=0.002)


@pytest.mark.slow
def test_splits_can_be_mapped_over_keys():
    wine = load("wine")
    keys = jax.random.split(jax.random.key(0), 3)

    def first(key):
        return split(wine.x, wine.labels, (0.8, 0.2), key=key)[0].x

    np.testing.assert_allclose(jax.jit(jax.vmap(first))(keys)[1], first(keys[1]), atol=1e-5)
