"""Normalization, regularization, augmentation, splits: the numbers of 0.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.training import augmentation, bias_variance, normalization, regularization, splits
from tests.reference.record import hold

pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
PARAMS = {
    "a": {"kernel": jnp.arange(6.0).reshape(2, 3) - 2, "bias": jnp.ones(3)},
    "b": {"w": jnp.asarray([3.0, -4.0]), "scale": jnp.full(2, 9.0)},
}
IMAGES = jax.random.normal(jax.random.key(2), (3, 5, 4, 1))
AUGMENTATIONS = {
    "flip": {},
    "flip_height": {"probability": 0.8, "axis": "height"},
    "shift": {"pixels": 2, "fill": 0.5},
    "crop": {"shape": (3, 2)},
    "rotate": {"degrees": 40.0, "fill": 0.2},
    "zoom": {"factor": 1.5},
    "noise": {"std": 0.3},
}


def test_standardizer():
    x = (jax.random.normal(jax.random.key(1), (9, 4)) * 3 + 1).at[:, 2].set(5.0)
    standardizer = normalization.fit(x)
    applied = normalization.apply(standardizer, x[:3] + 1)
    hold("normalization.inputs", {"standardizer": standardizer, "applied": applied})


def test_penalties():
    l1, l2, select = regularization.l1, regularization.l2, regularization.select
    out = {
        "select": select(PARAMS),
        "select_bias": select(PARAMS, "bias"),
        "l2": l2(PARAMS, 0.3, examples=7),
        "l1": l1(PARAMS, 0.3, examples=7),
        "l2_all": l2(PARAMS, 0.3, where=lambda path, leaf: True),
        "l1_bias": l1(PARAMS, 0.3, where="bias"),
    }
    hold("regularization.penalties", out)


def test_dropout():
    h = jax.random.normal(jax.random.key(1), (5, 6))
    out = {str(rate): regularization.dropout(h, rate, key=KEY) for rate in (0.75, 0.5, 0.0)}
    hold("regularization.dropout", out)


def test_early_stopping():
    options = {"patience": {"patience": 2}, "none": {}, "delta": {"patience": 3, "min_delta": 0.15}}
    out = {}
    for name, option in options.items():
        state = regularization.early_stopping(jnp.zeros(()))
        for step, error in enumerate([0.5, 0.3, 0.4, 0.2, jnp.nan, 0.35, 0.1, 0.05]):
            state = regularization.watch(state, jnp.asarray(step + 1.0), error, **option)
        out[name] = state
    hold("regularization.early_stopping", out)


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation(name):
    change = getattr(augmentation, name.split("_")[0])
    hold(f"augmentation.{name}", change(IMAGES, key=KEY, **AUGMENTATIONS[name]))


def test_fractions():
    counts = (100, 10_000, 20_000, 100_000, 999_999, 1_000_000, 5_000_000)
    out = {
        "dev": np.asarray([splits.fractions(count) for count in counts]),
        "no_dev": np.asarray([splits.fractions(count, dev=False) for count in counts]),
    }
    hold("training.splits.fractions", out)


def test_split():
    labels = np.repeat([0, 1, 2], [11, 7, 5])
    out = {
        "labels": splits.split(labels, (0.5, 0.3, 0.2), key=KEY),
        "count": splits.split(17, (0.6, 0.4), key=KEY),
        "classes": splits.split(labels, (0.7, 0.3), key=KEY, classes=3),
    }
    hold("training.splits.split", out)


def test_compare():
    first = jax.random.normal(jax.random.key(1), (30, 3))
    second = jax.random.normal(jax.random.key(2), (25, 3)).at[:, 1].add(1.0)
    shifted = splits.compare(first, second, key=KEY, permutations=199)
    second = second.at[:, 1].add(-1.0).at[:, 2].set(0.0)
    same = splits.compare(first, second, key=KEY, permutations=99)
    decisions = [splits.same(shifted), splits.same(same), splits.same(same, level=0.5)]
    out = {"shifted": shifted, "same": same, "decisions": jnp.stack(decisions)}
    hold("training.splits.compare", out)


def test_bias_variance():
    diagnose = bias_variance.diagnose
    rows = {
        "variance": diagnose(0.01, 0.11),
        "bias": diagnose(0.15, 0.16),
        "both": diagnose(0.15, 0.3),
        "neither": diagnose(0.15, 0.16, 0.15),
        "few": diagnose(0.01, 0.11, train_examples=1000, dev_examples=30),
        "below": diagnose(0.1, 0.05, 0.2, tolerance=0.01),
    }
    hold("training.bias_variance", rows)
