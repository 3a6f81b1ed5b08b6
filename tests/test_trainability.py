"""The map of trained networks."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from experiments import trainability
from jaxgrad import plotting, theory

SMALL = trainability.Config(
    activation="relu",
    depths=(1, 3),
    w_variance_min=1.0,
    w_variance_max=2.0,
    w_variances=3,
    width=16,
    steps=80,
    rates=(0.1, 1e38),
    batch=32,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return trainability.measure(SMALL, store=tmp_path_factory.mktemp("map") / "map.zarr")


def made(accuracy, depths, w_variances):
    """A map of given accuracies `[w_variance, depth]`, alike for two seeds."""
    values = np.stack([accuracy, accuracy])[:, None].transpose(0, 1, 3, 2)
    dims = ("seed", "rate", "depth", "w_variance")
    coords = {"depth": depths, "w_variance": w_variances}
    return xarray.Dataset({"accuracy": (dims, values), "loss": (dims, 1 - values)}, coords)


def test_networks_learn_and_diverging_ones_cost_their_own_cell_alone(dataset):
    assert dataset["accuracy"].sizes == {"depth": 2, "rate": 2, "w_variance": 3, "seed": 2}
    learns, diverges = dataset.isel(rate=0), dataset.isel(rate=1)
    assert float(learns["accuracy"].min()) > 0.4
    assert float(diverges["accuracy"].max()) < 0.3
    assert np.isfinite(learns["loss"].values).all()
    assert not np.isfinite(diverges["loss"].values).any()
    accuracy, error = trainability.trained(dataset)
    expected = learns["accuracy"].mean("seed").transpose("w_variance", "depth")
    np.testing.assert_allclose(accuracy, expected)
    assert np.all(error >= 0)


def test_a_finished_map_is_read_from_its_store(dataset, tmp_path):
    again = trainability.measure(
        dataclasses.replace(SMALL, depths=(1,), output=tmp_path / "other"),
        store=tmp_path / "map.zarr",
    )
    # A cell's network depends on its own coordinates alone.
    np.testing.assert_allclose(
        again["accuracy"].isel(rate=0), dataset["accuracy"].isel(rate=0).sel(depth=[1]), atol=0.01
    )


@pytest.mark.parametrize("kind", ["plain", "orthogonal", "batch_norm", "residual"])
def test_every_kind_draws_its_weights_and_has_a_scale(key, kind):
    config = dataclasses.replace(SMALL, kind=kind, activation="tanh", depths=(40,), width=32)
    net = trainability.network(config, 4, 1.7)
    params, shape = net.init(key, (64,), jnp.float32)
    assert shape == (10,)
    kernel = params[1][0]["kernel"]
    assert kernel.shape == (3, 32, 32)
    product = np.einsum("lij,lkj->lik", kernel, kernel) / 1.7
    off = np.abs(product - np.eye(32)[None]).max()
    assert (off < 1e-5) == (kind == "orthogonal")
    assert np.mean(np.diagonal(product, axis1=1, axis2=2)) == pytest.approx(1, abs=0.1)
    scale = trainability.scales(config, np.array([1.2, 2.5]))
    assert scale.shape == (2,)
    assert np.all(scale > 1)
    if kind in ("plain", "orthogonal"):
        expected = theory.correlation("tanh", np.array([1.2, 2.5]), 0.05).xi_c
        np.testing.assert_allclose(scale, expected)


def test_report_counts_what_agrees_with_theory():
    depths, variances = np.array([2, 8, 32]), np.array([0.5, 1.0, 2.0])
    scale = np.array([0.5, 2.0, 20.0])
    accuracy = np.array([[0.9, 0.1, 0.1], [0.9, 0.8, 0.1], [0.9, 0.9, 0.2]])
    text = trainability.report(made(accuracy, depths, variances), scale, SMALL)
    learns, should, threshold = trainability.sides(accuracy, depths, scale)
    assert threshold == pytest.approx(0.5)
    np.testing.assert_array_equal(learns, accuracy > 0.5)
    np.testing.assert_array_equal(should, [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    assert "88.9% of 9 cells" in text
    assert "0 learn beyond 6 scales, 1 do not learn within" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("32 ")]
    assert rows[0][1:6] == ["2.00", "to", "2.00", "none", "20%"]


def test_figure_says_what_its_axes_are():
    depths, variances = np.array([1, 4, 16]), np.array([0.5, 1.0, 2.0, 4.0])
    reach = np.array([2.0, 10.0, np.nan, 5.0])
    figure = plotting.trainability(np.ones((4, 3)) / 2, depths, variances, reach, 1.76, "tanh")
    ax = figure.axes[0]
    assert "depth" in ax.get_xlabel()
    assert "weight variance" in ax.get_ylabel()
    assert "tanh" in ax.get_title()
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert any("critical weight variance 1.76" in label for label in labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "swish9"}, "activation must be one of"),
        ({"depths": ()}, "depths must be different numbers above 0"),
        ({"depths": (3, 3)}, "depths must be different numbers above 0"),
        ({"rates": (0.1, -1.0)}, "rates must be different numbers above 0"),
        ({"rates": (float("inf"),)}, "rates must be finite"),
        ({"w_variance_min": 5.0}, "w_variance_min and w_variance_max must be above 0"),
        ({"b_variance": -0.1}, "b_variance must be at least 0"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_bad_input_is_named_before_anything_runs(change, message, tmp_path):
    config = dataclasses.replace(SMALL, output=tmp_path / "map", **change)
    with pytest.raises(ValueError, match=message):
        trainability.checked(config)
