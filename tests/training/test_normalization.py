from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets
from sklearn.preprocessing import StandardScaler

from jaxgrad.training import normalization


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "digits", "iris"])
def test_equals_scikit_learn(x64, name):
    # Digits has constant features and iris has few.
    table = getattr(datasets, f"load_{name}")().data.astype(np.float64)
    train, test = table[::2], table[1::2]
    standardizer = normalization.fit(train)
    scaler: Any = StandardScaler().fit(train)
    np.testing.assert_allclose(standardizer.mean, scaler.mean_, rtol=1e-12)
    np.testing.assert_allclose(standardizer.std, scaler.scale_, rtol=1e-12)
    for part in (train, test):
        np.testing.assert_allclose(
            normalization.apply(standardizer, part), scaler.transform(part), rtol=1e-11, atol=1e-11
        )


def test_result_has_mean_0_and_variance_1_on_the_training_set(x64):
    wine: Any = datasets.load_wine()
    train = wine.data
    out = normalization.apply(normalization.fit(train), train)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(out.var(axis=0), 1, rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("rows", [1, 3, 1000, 100_000])
def test_constant_features_become_zero(x64, dtype, rows):
    values = jnp.asarray([0.0, 0.1, -7.7, 1e4 + 0.3, 1e-12], dtype)
    x = jnp.broadcast_to(values[None], (rows, 5))
    standardizer = normalization.fit(x)
    np.testing.assert_array_equal(standardizer.std, 1)
    out = normalization.apply(standardizer, x)
    assert out.dtype == dtype
    rounding = 4 * jnp.finfo(dtype).eps * np.abs(values)
    assert np.all(np.abs(out) <= rounding[None])
    # What differs later on is not hidden.
    np.testing.assert_allclose(normalization.apply(standardizer, x[0] + 2), 2, rtol=1e-2)


def test_a_feature_that_hardly_varies_is_not_constant(x64):
    x = jnp.asarray([[1.0], [1.0 + 1e-12], [1.0 - 1e-12]])
    np.testing.assert_allclose(normalization.fit(x).std, 1e-12 * np.sqrt(2 / 3), rtol=1e-3)


def test_float32_with_a_large_mean():
    spread = np.random.default_rng(0).standard_normal((20_000, 3)) * [1.0, 3.0, 0.5]
    x = (spread + np.array([1e4, -3e4, 1e3])).astype(np.float32)
    exact_mean, exact_std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    standardizer = normalization.fit(jnp.asarray(x))
    assert standardizer.mean.dtype == standardizer.std.dtype == jnp.float32
    eps = float(np.finfo(np.float32).eps)
    # A variance as mean square minus squared mean would be off by 1e8 eps, so by 12.
    np.testing.assert_allclose(standardizer.mean, exact_mean, rtol=4 * eps)
    np.testing.assert_allclose(standardizer.std, exact_std, rtol=1e-5)
    off = np.abs(normalization.apply(standardizer, x) - (x - exact_mean) / exact_std)
    assert np.all(off.max(axis=0) < 4 * eps * np.abs(exact_mean) / exact_std)


@pytest.mark.slow
def test_is_a_pytree_and_agrees_under_jit_and_vmap(key):
    sets = 3.0 + 2.0 * jax.random.normal(key, (4, 50, 6))
    eager = [normalization.fit(x) for x in sets]
    mapped = jax.vmap(normalization.fit)(sets)
    jitted = jax.jit(normalization.fit)(sets[2])
    for name in normalization.Standardizer._fields:
        expected = [getattr(s, name) for s in eager]
        np.testing.assert_allclose(getattr(mapped, name), expected, rtol=1e-5)
        np.testing.assert_allclose(getattr(jitted, name), expected[2], rtol=1e-5)
    out = jax.jit(normalization.apply)(eager[1], sets[1])
    np.testing.assert_allclose(out, normalization.apply(eager[1], sets[1]), rtol=1e-5, atol=1e-6)
    one_by_one = jax.vmap(normalization.apply, (None, 0))(eager[1], sets[1])
    np.testing.assert_allclose(one_by_one, out, rtol=1e-5, atol=1e-6)
    assert len(jax.tree.leaves(mapped)) == 2


def test_applies_to_one_example_and_to_stacks(key):
    x = jax.random.normal(key, (5, 7, 3))
    standardizer = normalization.Standardizer(
        jnp.asarray([1.0, 2.0, 3.0]), jnp.asarray([2.0, 4, 8])
    )
    out = normalization.apply(standardizer, x)
    np.testing.assert_array_equal(out[2, 4], normalization.apply(standardizer, x[2, 4]))
    np.testing.assert_allclose(
        normalization.apply(standardizer, jnp.asarray([3.0, 2.0, -5.0])), [1.0, 0.0, -1.0]
    )


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.array([[1.0, np.nan]]), ValueError, "x must be finite, got 1 NaN or infinite of 2"),
        (np.array([[1.0, np.inf]] * 2), ValueError, "x must be finite, got 2 NaN or infinite of 4"),
        (np.ones((3, 2), int), TypeError, "x must be floating point, got int"),
        (np.ones(3), ValueError, r"shape \[examples, features\].*got \(3,\)"),
        (np.ones((2, 3, 4)), ValueError, r"shape \[examples, features\].*got \(2, 3, 4\)"),
        (np.ones((0, 3)), ValueError, r"no empty dimension, got \(0, 3\)"),
        ("wine", TypeError, "x must be an array of numbers, got '"),
    ],
)
def test_fit_errors(x, error, match):
    with pytest.raises(error, match=match):
        normalization.fit(x)


@pytest.mark.parametrize("shape", [(), (2,), (5, 4), (3, 5)])
def test_wrong_number_of_features(shape):
    standardizer = normalization.Standardizer(jnp.zeros(3), jnp.ones(3))
    with pytest.raises(ValueError, match=rf"x must have the 3 features .*\({str(shape)[1:-1]}\)"):
        normalization.apply(standardizer, jnp.ones(shape))
