"""Statistics from sums, against those of the same arrays in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.inspection._statistics import is_exact, measure, statistics

NORMAL = np.random.default_rng(1).normal(size=(64, 33))
HUGE, TINY = 3e38, 2e-38
ARRAYS = {
    "normal numbers": NORMAL,
    "half are zero": np.where(NORMAL > 0, NORMAL, 0),
    "zeros": np.zeros((3, 4)),
    "one number": np.array(-2.0),
    "empty": np.zeros((0, 4)),
    "the largest numbers": np.array([HUGE, -HUGE, 1.0, 0.0]),
    "the smallest normal numbers": np.array([TINY, -TINY, 0.0]),
    "squares overflow": 1e25 * NORMAL,
    "squares underflow": 1e-25 * NORMAL,
    # Smaller numbers count as zero in XLA.
    "some squares underflow": np.maximum(np.exp(20 * NORMAL) * 1e-19, TINY),
    "infinite": np.array([np.inf, 2.0, 0.0, -4.0]),
    "NaN": np.array([np.nan, 2.0, 0.0, -4.0]),
    "NaN last": np.concatenate([NORMAL.ravel(), [np.nan]]),
    "nothing else": np.array([np.nan, np.inf]),
}
SPOILED = {"infinite", "NaN", "NaN last", "nothing else"}
BEYOND = {
    *("the largest numbers", "the smallest normal numbers"),
    *("squares overflow", "squares underflow"),
}


def expected(x):
    """Return the statistics by the definition."""
    a = np.abs(np.asarray(x).astype(np.result_type(np.asarray(x).dtype, np.float64)))
    finite = a[np.isfinite(a)]
    with np.errstate(divide="ignore"):
        return (
            np.log(np.mean(finite**2)) if finite.size else -np.inf,
            np.log(np.max(finite, initial=0)),
            np.mean(a == 0) if a.size else 1.0,
            1 - finite.size / a.size if a.size else 0.0,
        )


@pytest.mark.parametrize("name", ARRAYS)
def test_exact_statistics_are_those_of_finite_elements(name):
    x = jnp.asarray(ARRAYS[name], jnp.float32)
    sums = jax.device_get(measure(x, exact=True))
    assert is_exact(sums)
    np.testing.assert_allclose(statistics(sums, np), expected(x), rtol=2e-6, atol=2e-6)
    # With JAX logs are of float32.
    np.testing.assert_allclose(statistics(sums, jnp), expected(x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", ARRAYS)
def test_plain_sums_say_whether_they_are_exact(name):
    x = jnp.asarray(ARRAYS[name], jnp.float32)
    sums = jax.device_get(measure(x, exact=False))
    assert is_exact(sums) == (name not in SPOILED | BEYOND)
    values = statistics(sums, np)
    if is_exact(sums):
        np.testing.assert_allclose(values, expected(x), rtol=2e-6, atol=2e-6)
    else:
        assert np.isnan(values.non_finite) == (name in SPOILED)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "complex64", "complex128"])
@pytest.mark.parametrize("exact", [False, True])
def test_other_types(dtype, exact, x64):
    x = jnp.asarray(ARRAYS["half are zero"] * (1 + 0.5j if "complex" in dtype else 1), dtype)
    sums = jax.device_get(measure(x, exact=exact))
    assert is_exact(sums)
    np.testing.assert_allclose(statistics(sums, np), expected(x), rtol=2e-6, atol=2e-6)


def test_float64_has_a_range_of_its_own(x64):
    x = jnp.asarray(1e-120 * NORMAL)
    sums = jax.device_get(measure(x, exact=False))
    assert is_exact(sums)
    np.testing.assert_allclose(statistics(sums, np), expected(x), rtol=1e-12)
