"""Batches of cells: none is lost if the memory of a device is exhausted."""

import jax
import numpy as np
import pytest

from jaxgrad import sweeps
from jaxgrad.sweeps import Variable, _programs

AXES = {"kind": ["a", "b"], "x": range(11)}


def run(key, **options):
    return sweeps.run(
        lambda key, point: {"y": jax.random.normal(key) + point["x"] * len(point["kind"])},
        AXES,
        {"y": Variable()},
        key=key,
        devices=jax.local_devices()[:1],
        chunk_cells=11,
        **options,
    )


def limit(monkeypatch, most, sizes, message="RESOURCE_EXHAUSTED: Out of memory allocating 1 byte"):
    """Let programs of more than `most` cells fail, as on a device with less memory."""
    compile_cells = _programs.compile_cells

    def compiled(*args):
        program = compile_cells(*args)

        def call(ids, traced):
            sizes.append(len(traced["x"]))
            if sizes[-1] > most:
                raise jax.errors.JaxRuntimeError(message)
            return program.call(ids, traced)

        return program._replace(call=call)

    monkeypatch.setattr(_programs, "compile_cells", compiled)


@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_a_batch_that_exhausts_the_memory_is_halved(key, monkeypatch, most):
    whole, sizes = run(key), []
    limit(monkeypatch, most, sizes)
    with pytest.warns(UserWarning, match="memory is exhausted by .* at a time; conti") as log:
        halved = run(key)
    assert "exhausted by 11 cells" in str(log[0].message)
    np.testing.assert_array_equal(halved["y"], whole["y"])
    # Once for each program and size: later batches are small from the start.
    assert sum(size > most for size in sizes) <= 2 * 4


def test_one_cell_that_exhausts_the_memory_is_an_error(key, monkeypatch):
    limit(monkeypatch, 0, [])
    with (
        pytest.warns(UserWarning, match="memory is exhausted"),
        pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"),
    ):
        run(key)


def test_other_errors_of_a_program_are_not_caught(key, monkeypatch):
    sizes = []
    limit(monkeypatch, 0, sizes, "INTERNAL: broken")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL: broken"):
        run(key)
    # The next program is started before the error appears.
    assert set(sizes) == {11}


def test_an_error_that_appears_while_results_are_awaited(key, monkeypatch):
    whole, get, failures = run(key), jax.device_get, []

    def fail_once(results):
        if not failures:
            failures.append(1)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: later")
        return get(results)

    monkeypatch.setattr(jax, "device_get", fail_once)
    with pytest.warns(UserWarning, match="continuing with 5"):
        halved = run(key)
    np.testing.assert_array_equal(halved["y"], whole["y"])
