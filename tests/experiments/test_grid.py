"""All combinations of values in one program, and programs in threads."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments._kit import in_threads, mapped


def test_results_are_those_of_all_combinations():
    traces = []

    def f(point, factor, rows):
        traces.append(point)
        return {"sum": point["x"] * factor + rows, "x": point["x"]}

    points, factors, rows = {"x": jnp.arange(2.0)}, jnp.arange(3.0), jnp.ones((4, 5))
    results = mapped(f, points, factors, rows)
    expected = np.arange(2.0)[:, None, None, None] * np.arange(3.0)[:, None, None] + np.ones((4, 5))
    np.testing.assert_array_equal(results["sum"], expected)
    assert results["x"].shape == (2, 3, 4)
    assert len(traces) == 1


def test_keys_are_mapped():
    keys = jax.random.split(jax.random.key(0), 3)
    draws = mapped(lambda key: jax.random.normal(key, (2,)), keys)
    np.testing.assert_array_equal(draws, np.stack([jax.random.normal(k, (2,)) for k in keys]))


def test_results_of_threads_are_in_the_order_of_the_jobs():
    progress = []

    def slow():
        time.sleep(0.05)
        return 1

    results = in_threads({"slow": slow, 2: lambda: 2}, lambda *counts: progress.append(counts))
    assert list(results.items()) == [("slow", 1), (2, 2)]
    assert progress == [(1, 2), (2, 2)]


def test_an_error_in_a_thread_is_raised():
    with pytest.raises(ZeroDivisionError):
        in_threads({"a": lambda: 1 // 0})
