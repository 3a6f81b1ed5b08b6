"""What a sweep tells of itself before it begins, and after the first chunk."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import sweeps
from jaxgrad.sweeps import Forecast, Variable, _forecast


@pytest.mark.slow
def test_amounts_are_those_of_the_sweep(key, tmp_path):
    events = []

    def cell(key, point):
        draws = jax.random.normal(key, (500, 100), jnp.float32)
        return {"y": jnp.sort(draws, axis=0)[:10, 0], "n": jnp.int8(point["seed"])}

    def progress(done, total):
        events.append(done)

    options = {"key": key, "chunk_cells": 4, "devices": jax.local_devices()[:1]}
    axes = {"kind": ["a", "b", "c"], "seed": range(10)}
    variables = {"y": Variable(("k",)), "n": Variable()}
    options |= {"store": tmp_path / "sweep", "progress": progress, "on_forecast": events.append}
    sweeps.run(cell, axes, variables, **options)
    # Before anything is computed, and after the first chunk.
    assert [type(event) for event in events[:4]] == [int, Forecast, Forecast, int]
    before, after = events[1:3]
    assert before[:4] == (30, 9, 3, 30 * (10 * 4 + 1))
    assert math.isnan(before.seconds)
    assert after._replace(seconds=0) == before._replace(seconds=0)
    assert after.seconds > 0
    # At least the draws of a batch of four cells, and no more than a few times as many.
    assert 4 * 500 * 100 * 4 <= before.memory_bytes < 10 * 4 * 500 * 100 * 4
    stored = sum(sweeps.open_store(tmp_path / "sweep")[name].nbytes for name in variables)
    assert before.disk_bytes == stored
    # A finished sweep has nothing to tell.
    events.clear()
    sweeps.run(cell, axes, variables, **options)
    assert events == [30]


@pytest.mark.slow
def test_the_time_is_that_of_the_remaining_chunks(key):
    def wait(x):
        time.sleep(0.2)
        return np.float32(x)

    def cell(key, point):
        shape = jax.ShapeDtypeStruct((), "float32")
        return {"y": jax.pure_callback(wait, shape, point["x"], vmap_method="sequential")}

    times, forecasts = [], []
    sweeps.run(
        cell,
        {"x": np.arange(12.0)},
        {"y": Variable()},
        key=key,
        chunk_cells=2,
        devices=jax.local_devices()[:1],
        progress=lambda done, total: times.append(time.perf_counter()),
        on_forecast=forecasts.append,
    )
    # The first chunk is followed by five.
    assert forecasts[1].seconds == pytest.approx(times[-1] - times[1], rel=0.5)


def test_programs_that_are_still_to_be_compiled_take_their_time(monkeypatch):
    clock, results = iter([10.0, 18.0]), []
    monkeypatch.setattr(_forecast.time, "perf_counter", lambda: next(clock))
    watch = _forecast.watch(6, 6, 3, 8, results.append)
    watch.compiled(100, 2.0)
    watch.computed()
    watch.compiled(200, 4.0)
    watch.computed()
    assert len(results) == 2
    assert results[1] == Forecast(6, 6, 3, 48, 100, 5 * 8.0 + 2 * 2.0)


@pytest.mark.parametrize(
    ("forecast", "text"),
    [
        (
            Forecast(1_000_000, 1600, 1, 10**11, 2**20 + 1, math.nan),
            "1,000,000 cells, 1,600 chunks, 1 program, 93.1 GiB of values, 1 MiB of memory",
        ),
        (
            Forecast(1, 1, 2, 1000, 0, 90.0),
            "1 cell, 1 chunk, 2 programs, 1e+03 bytes of values, 0 bytes of memory, about 90 s",
        ),
    ],
)
def test_a_forecast_is_a_line_of_words(forecast, text):
    assert str(forecast) == text


@pytest.mark.parametrize("name", ["progress", "on_forecast"])
def test_what_cannot_be_called_is_named(key, name):
    options = {"key": key, name: 3}
    with pytest.raises(TypeError, match=f"{name} must be callable, got 3"):
        sweeps.run(lambda key, point: {"y": 1.0}, {"x": [1]}, {"y": Variable()}, **options)
