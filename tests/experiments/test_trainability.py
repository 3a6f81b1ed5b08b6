"""The map of trained networks."""

import dataclasses
import multiprocessing
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray
from scipy import stats

from experiments._kit import options as kit_options
from experiments.trainability import __main__ as trainability
from experiments.trainability import measurement
from jaxgrad import sweeps, theory
from tests.experiments.legible import legible

pytestmark = pytest.mark.slow

SMALL = measurement.Options(
    activation="relu",
    depths=(1, 3),
    w_variance_min=1.0,
    w_variance_max=2.0,
    w_variances=3,
    width=16,
    steps=80,
    rates=(0.1, 1e30),
    batch=32,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return measurement.measure(SMALL, store=tmp_path_factory.mktemp("map") / "map.zarr")


def assert_same(result, expected):
    """To rounding, by which one of the 359 test images may change sides."""
    np.testing.assert_allclose(result["loss"], expected["loss"], rtol=1e-4)
    np.testing.assert_allclose(result["accuracy"], expected["accuracy"], atol=1.01 / 359, rtol=0)


def made(accuracy, depths, w_variances):
    """A map of given accuracies `[w_variance, depth]`, alike for two seeds."""
    values = np.stack([accuracy, accuracy])[:, None].transpose(0, 1, 3, 2)
    dims = ("seed", "rate", "depth", "w_variance")
    coords = {"depth": depths, "w_variance": w_variances}
    return xarray.Dataset({"accuracy": (dims, values), "loss": (dims, 1 - values)}, coords)


def test_networks_learn_and_diverging_ones_cost_their_own_cell_alone(dataset):
    sizes = {"kind": 1, "depth": 2, "rate": 2, "w_variance": 3, "seed": 2}
    assert dataset["accuracy"].sizes == sizes
    learns, diverges = dataset.isel(rate=0), dataset.isel(rate=1)
    assert float(learns["accuracy"].min()) > 0.4
    assert float(diverges["accuracy"].max()) < 0.3
    assert np.isfinite(learns["loss"].values).all()
    assert not np.isfinite(diverges["loss"].values).any()
    result = measurement.compare(dataset.isel(kind=0), np.ones(3))
    expected = learns["accuracy"].isel(kind=0).mean("seed").transpose("w_variance", "depth")
    np.testing.assert_allclose(result.accuracy, expected)
    assert result.diverged == 0.5


def test_a_network_does_not_depend_on_the_others_of_its_map(dataset):
    alone = measurement.measure(dataclasses.replace(SMALL, depths=(3,), rates=(0.1,)))
    assert_same(alone, dataset.sel(depth=[3], rate=[0.1]))


def trainer(options, depth, rate, steps):
    """A compiled function `(key, w_variance, active)` that trains one network."""
    data = measurement.digits(options)

    def train(key, w_variance, active):
        net = measurement.network("plain", options, depth, w_variance, 0.05, active)
        return measurement.train(net, rate, steps, options.batch, data, key=key)

    return jax.jit(train)


def test_a_cell_is_a_network_of_its_own_depth_and_variance(dataset):
    point = {"kind": "plain", "depth": 3, "rate": 0.1, "w_variance": 2.0, "seed": 1}
    key = sweeps.cell_key(point, key=jax.random.key(0))
    expected = trainer(SMALL, 3, 0.1, SMALL.steps)(key, jnp.float32(2.0), None)
    assert_same(dataset.sel(point), expected)


def test_networks_learn_where_theory_says_so():
    options = measurement.Options(
        depths=(2, 24),
        w_variance_max=1.77,
        w_variances=2,
        steps=120,
        rates=(0.03,),
        width=32,
        batch=32,
    )
    result = measurement.compare(
        measurement.measure(options).isel(kind=0), measurement.scales("plain", options)
    )
    np.testing.assert_array_equal(result.predicted, [[True, False], [True, True]])
    np.testing.assert_array_equal(result.learns, result.predicted)
    assert result.right.all()


def killed(store, small):
    def kill(done, total):
        if done:
            os.kill(os.getpid(), signal.SIGKILL)

    measurement.measure(small, kill, store)


def test_a_killed_map_goes_on_where_it_was(dataset, tmp_path, monkeypatch):
    store, seen, small = tmp_path / "map.zarr", [], dataclasses.replace(SMALL, depths=(1,))
    # The process compiles as the tests do.
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    process = multiprocessing.get_context("spawn").Process(target=killed, args=(store, small))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    measurement.measure(small, lambda *progress: seen.append(progress), store)
    assert 0 < seen[0][0] < seen[0][1] == seen[-1][0] == 12
    assert_same(xarray.open_zarr(store), dataset.sel(depth=[1]))


def test_cells_are_trained_again_at_their_own_depth_and_variance():
    small = dataclasses.replace(SMALL, rates=(0.1,), longer=3, steps=20)
    again = measurement.measure_again("plain", small, np.array([[2, 0], [0, 1]]))
    assert again["accuracy"].sizes == {"cell": 2, "rate": 1, "seed": 2}
    train = trainer(small, 3, 0.1 / 3, 60)
    for cell, (w_variance, depth) in enumerate([(2.0, 1), (1.0, 3)]):
        key = sweeps.cell_key({"cell": cell, "rate": 0.1, "seed": 1}, key=jax.random.key(0))
        expected = train(key, jnp.float32(w_variance), depth)
        assert_same(again.isel(cell=cell, rate=0, seed=1), expected)


@pytest.mark.parametrize("kind", ["plain", "orthogonal", "critical", "batch_norm", "residual"])
def test_every_kind_draws_its_weights_and_has_a_scale(key, kind):
    variances = {"w_variance_min": 1.2, "w_variance_max": 2.5, "w_variances": 2}
    options = dataclasses.replace(SMALL, activation="tanh", depths=(40,), width=32, **variances)
    net = measurement.network(kind, options, 4, 1.7, 0.05)
    params, shape = net.draw((64,), key=key, dtype=jnp.float32)
    assert shape == (10,)
    kernel = params[1][0]["kernel"]
    assert kernel.shape == (3, 32, 32)
    product = np.einsum("lij,lkj->lik", kernel, kernel) / 1.7
    off = np.abs(product - np.eye(32)[None]).max()
    assert (off < 1e-5) == (kind == "orthogonal")
    assert np.mean(np.diagonal(product, axis1=1, axis2=2)) == pytest.approx(1, abs=0.1)
    scale = measurement.scales(kind, options)
    assert scale.shape == (2,)
    assert np.all(scale > 1)
    if kind in ("plain", "orthogonal"):
        expected = theory.correlation("tanh", options.variances, np.full(2, 0.05)).xi_c
        np.testing.assert_allclose(scale, expected)
    if kind == "critical":
        assert np.all(scale > 1e3)


def test_critical_biases_are_those_of_the_critical_line():
    options = dataclasses.replace(SMALL, activation="tanh", w_variance_min=0.5, w_variance_max=2.0)
    small, _, large = measurement.biases("critical", options)
    assert small == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(theory.critical("tanh", large).w_variance, 2.0, rtol=1e-5)


def test_report_counts_what_agrees_with_theory():
    depths = (2, 8, 32)
    options = dataclasses.replace(SMALL, depths=depths, w_variance_min=0.5, w_variance_max=2.0)
    scale = np.array([0.5, 2.0, 20.0])
    accuracy = np.array([[0.9, 0.1, 0.1], [0.9, 0.8, 0.1], [0.9, 0.9, 0.2]])
    result = measurement.compare(made(accuracy, list(depths), [0.5, 1.0, 2.0]), scale)
    assert result.threshold == pytest.approx(0.5)
    np.testing.assert_array_equal(result.learns, accuracy > 0.5)
    np.testing.assert_array_equal(result.predicted, [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    expected = stats.spearmanr(scale[:, None] / np.array(depths)[None], accuracy, axis=None)
    assert result.rank_correlation == pytest.approx(expected.statistic)
    table = trainability.depth_table("plain", result, options)
    rows = [line.split() for line in table.splitlines() if line.startswith("32 ")]
    assert rows[0][1:6] == ["2.00", "to", "2.00", "none", "20%"]
    row = trainability.summary({"plain": result}, options).splitlines()[-1].split()
    assert row[:5] == ["plain", "56%", "0%", "90%", "67%"]
    # 8 of 9 cells are as predicted, none learns beyond 6 scales, one does not learn within.
    assert row[5:9] == ["88.9%", f"{expected.statistic:+.2f}", "0", "1"]
    assert row[9:] == [f"{6 * 20 / 32:.2f}", "0.0%"]
    cells, beyond = measurement.exceptions_and_control(result)
    assert cells.tolist() == [[2, 2]]
    assert beyond.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("within", "beyond", "counts", "agree"),
    [
        ([True], [], ["1 of 1", "0 of 0", "0 of 0"], 9 / 9),
        ([True], [True], ["1 of 1", "0 of 0", "1 of 1"], 8 / 9),
        ([False], [True], ["0 of 1", "0 of 1", "1 of 1"], 7 / 9),
    ],
)
def test_cells_that_learn_later_count_as_predicted(within, beyond, counts, agree):
    scale = np.array([0.5, 2.0, 20.0])
    accuracy = np.array([[0.9, 0.1, 0.1], [0.9, 0.8, 0.1], [0.9, 0.9, 0.2]])
    result = measurement.compare(made(accuracy, [2, 8, 32], [0.5, 1.0, 2.0]), scale)
    row = trainability.again_row("plain", result, np.array(within), np.array(beyond, bool))
    assert row == ("plain", *counts, pytest.approx(agree))
    table = trainability.again_table([row], SMALL)
    assert table.splitlines()[-1].split()[-1] == f"{agree:.1%}"


@pytest.mark.parametrize("kinds", [1, 2, 5])
def test_figure_says_what_its_axes_are(kinds):
    options = dataclasses.replace(
        SMALL, depths=(1, 4, 16), w_variance_min=0.5, w_variance_max=4.0, w_variances=4
    )
    border = np.array([2.0, 10.0, np.inf, 5.0])
    learns = np.ones((4, 3), bool)
    predicted = np.concatenate([[[False] * 3], learns[1:]])
    result = measurement.Map(learns / 2, learns, predicted, 0.5, np.zeros((4, 3)), 0.0)
    maps = {f"kind {i}": result for i in range(kinds)}
    drawing = legible(lambda: trainability.draw(maps, dict.fromkeys(maps, border), options))
    panels = [ax for ax in drawing.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == [f"kind {i}: 75.0% right" for i in range(kinds)]
    assert "depth" in panels[-1].get_xlabel()
    assert "weight variance" in panels[0].get_ylabel()
    assert "relu" in drawing.get_suptitle()
    assert panels[0].lines[0].get_xdata()[2] > panels[0].get_xlim()[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "swish9"}, "activation must be one of"),
        ({"depths": ()}, "depths must have at least 1 value"),
        ({"depths": (3, 3)}, "depths must have no value twice"),
        ({"depths": (8, 4)}, "depths must have its values in ascending order"),
        ({"rates": (-1.0, 0.1)}, "rates must have values above 0"),
        ({"rates": (float("inf"),)}, "rates must have values above 0"),
        ({"w_variance_min": 5.0}, "w_variance_min and w_variance_max must be in this order"),
        ({"b_variance": -0.1}, "b_variance must be at least 0"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"longer": 0}, "longer must be at least 1"),
        ({"kinds": ()}, "kinds must have at least 1 value"),
        ({"kinds": ("batchnorm",)}, "kinds must have values one of plain"),
        ({"kinds": ("critical",)}, "activation must have a critical point for every large"),
    ],
)
def test_bad_input_is_named_before_anything_runs(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "map", **change)
    with pytest.raises(ValueError, match=message):
        kit_options.check(options)
