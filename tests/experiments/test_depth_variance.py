"""The map of depth against variance: its theory is right, and the measurement agrees."""

import dataclasses

import numpy as np
import pytest

from experiments import depth_variance
from experiments._kit import typical
from jaxgrad import plotting
from tests.experiments.legible import legible

pytestmark = pytest.mark.slow

SMALL = depth_variance.Options(
    activations=("relu",), depth=8, width=64, w_variances=9, examples=8, seeds=12
)


@pytest.fixture(scope="module")
def predicted():
    return depth_variance.predict(SMALL).sel(activation="relu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    output = tmp_path_factory.mktemp("map") / "small"
    return depth_variance.measure(dataclasses.replace(SMALL, output=output)).load()


def test_relu_gradient_grows_by_half_the_variance_a_layer(predicted):
    w = predicted["w_variance"].values[:, None]
    between = np.arange(SMALL.depth)[None]
    np.testing.assert_allclose(predicted["log_ratio"], between * np.log(w / 2), atol=1e-9)
    signal = np.log(np.mean(SMALL.inputs().astype(np.float64) ** 2)) + (between + 1) * np.log(w / 2)
    np.testing.assert_allclose(predicted["log_activation"], signal, atol=1e-9)
    profile = predicted["log_profile"] - predicted["log_profile"].isel(layer=-1)
    np.testing.assert_allclose(profile, between[:, ::-1] * np.log(w / 2), atol=1e-9)
    fine = predicted["fine_w_variance"].values
    away = np.abs(fine / 2 - 1) > 1e-6
    expected = 1 / np.abs(np.log(fine[away] / 2))
    np.testing.assert_allclose(predicted["xi"].values[away], expected, rtol=1e-9)


def test_the_critical_variance_is_among_those_compared():
    assert 2.0 in depth_variance.compared_variances(SMALL, "relu")
    # With biases the length grows at 2, so that no point is critical.
    options = dataclasses.replace(SMALL, b_variance=0.05)
    compared = depth_variance.compared_variances(options, "relu")
    assert np.isin(compared, SMALL.grid).all()


def test_a_typical_example_is_as_theory_says_at_this_width(dataset, predicted):
    sample = typical.per_layer(dataset["log_typical"].sel(activation="relu").values)
    error = sample.std(axis=0, ddof=1) / np.sqrt(SMALL.seeds)
    finite = typical.per_layer(predicted["log_typical"].values)
    infinite = typical.per_layer(predicted["log_infinite"].values)
    assert np.all(np.abs(sample.mean(axis=0) - finite) < 3 * error)
    # k / (2 n), with k = 5 for ReLU.
    np.testing.assert_allclose(infinite - finite, 5 / 2 / SMALL.width, rtol=0.05)


def test_comparison_shows_and_claims_the_critical_variance(dataset, predicted):
    theories = predicted.expand_dims("activation")
    text, claims = depth_variance.comparison(dataset, theories, "relu", SMALL)
    row = next(line.split() for line in text.splitlines() if line.startswith("2 "))
    assert row[4] in ("+0.0000", "-0.0000")
    assert [claim.relation for claim in claims] == ["equal"]
    assert claims[0].test()[0]


def test_a_narrow_deep_network_vanishes_though_critical():
    points = (np.array([2.0]), np.zeros(1), np.ones((1, 4)))
    result = typical.predict("relu", 256, *points, width=32)
    totals = [value[0, -1] - value[0, 0] for value in (result.infinite, result.typical)]
    assert abs(totals[0]) < 1e-9
    assert np.exp(totals[1] / 2) < 1e-4


def test_without_a_critical_variance_the_report_has_no_claim(dataset, predicted):
    options = dataclasses.replace(SMALL, w_variance_min=2.5)
    assert np.all(depth_variance.compared_variances(options, "relu") >= 2.49)
    changed = predicted.assign(compared_w_variance=predicted["compared_w_variance"] + 0.1)
    theories = changed.expand_dims("activation")
    text, claims = depth_variance.comparison(dataset, theories, "relu", options)
    assert "relu has no critical weight variance from 2.5 to 8" in text
    assert claims == []


def test_figure_draws_theory_over_the_measurement(dataset, predicted):
    theory = predicted.expand_dims("activation")
    figure = legible(lambda: plotting.depth_map(dataset, theory=theory))
    level, scale = figure.axes[0].lines[-2:]
    # A network of one layer has no level gradient.
    first, *others = np.asarray(level.get_ydata())
    assert np.isnan(first)
    np.testing.assert_allclose(others, 2.0, rtol=1e-6)
    np.testing.assert_allclose(np.asarray(scale.get_xdata()), 6 * predicted["xi"])
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "theory, infinite width: gradient level" in words
    alone = plotting.depth_map(dataset)
    assert len(alone.legends[0].get_texts()) == 4
