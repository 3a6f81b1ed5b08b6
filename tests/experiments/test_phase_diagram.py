"""The map of weight variance against bias variance."""

import dataclasses

import numpy as np
import pytest
import xarray

from experiments import phase_diagram
from experiments._kit import options as kit_options
from experiments._kit import typical
from jaxgrad import plotting
from tests.experiments.legible import legible

pytestmark = pytest.mark.slow

SMALL = phase_diagram.Options(
    activation="relu",
    w_variance_min=1.0,
    w_variance_max=3.0,
    w_points=21,
    b_points=11,
    w_measured=3,
    b_measured=3,
    width=48,
    depth=12,
    examples=4,
    seeds=8,
)


@pytest.fixture(scope="module")
def predicted():
    return phase_diagram.predict(SMALL)


@pytest.fixture(scope="module")
def measured():
    return phase_diagram.measure(SMALL)


def test_theory_fills_the_plane_and_is_right_for_relu(predicted):
    w = predicted["w_variance"].values[None]
    chi = predicted["chi_perp"].transpose("b_variance", "w_variance").values
    np.testing.assert_allclose(chi, np.broadcast_to(w / 2, chi.shape), rtol=1e-9)
    q = predicted["q"].transpose("b_variance", "w_variance").values
    b = predicted["b_variance"].values[:, None]
    stable = w[0] < 1.95
    np.testing.assert_allclose(q[:, stable], b / (1 - w / 2)[:, stable], rtol=1e-7, atol=1e-9)
    assert np.isinf(q[1:, w[0] > 2.05]).all()


def test_measured_growth_is_that_of_theory_at_this_width(measured):
    values = measured["growth"].transpose("seed", "b_variance", "w_variance").values
    mean = values.mean(axis=0)
    error = values.std(axis=0, ddof=1) / np.sqrt(SMALL.seeds)
    # Digamma of n / 4 active units, to first order.
    expected = np.log(measured["w_variance"].values / 2) - 5 / 2 / SMALL.width
    assert np.all(np.abs(mean - expected[None]) < 3.5 * error)


def test_report_has_a_row_a_point_and_marks_growing_signals(measured, predicted):
    text = phase_diagram.comparison(measured, predicted, SMALL)
    rows = [line for line in text.splitlines() if " ± " in line and line[0].isdigit()]
    assert len(rows) == 9
    starred = [row.rstrip().endswith("*") for row in rows]
    # At weight variances of 1, 2 and 3; at 2 the signal grows by a constant a layer only.
    assert starred == [False, False, True] * 3
    assert "grows without bound" in text


@pytest.mark.parametrize(
    ("point", "chi", "words"),
    [
        ((2.0, 0.0), (0.5, 0.9), "is critical at weight variance 2, bias variance 0"),
        ((1.0, 0.0), (0.5, 1.5), "is critical at weight variance 1, bias variance 0 and along"),
        ((9.0, 0.0), (0.5, 1.5), "along the line, which continues outside to weight variance 9"),
        ((103.0, 0.0), (0.1, 0.2), "no critical point in this range; it has one at weight"),
        ((np.nan, np.nan), (0.1, 0.2), "no critical point at any variance"),
    ],
)
def test_headline_names_the_critical_point(predicted, monkeypatch, point, chi, words):
    monkeypatch.setattr(phase_diagram, "critical_point", lambda options: point)
    ramp = np.broadcast_to(np.linspace(chi[0], chi[1], 21)[None], predicted["q"].shape)
    field = predicted.assign(
        chi_perp=(("b_variance", "w_variance"), ramp), q=xarray.ones_like(predicted["q"])
    )
    assert words in phase_diagram.headline(SMALL, field)


def test_critical_point_falls_back_on_the_smallest_bias_that_has_one():
    assert phase_diagram.critical_point(SMALL) == (2.0, 0.0)
    options = dataclasses.replace(SMALL, b_variance_min=0.1)
    assert phase_diagram.critical_point(options) == (2.0, 0.0)


def test_agreement_counts_only_what_differs_from_none(predicted):
    coords = {
        "seed": [0, 1],
        "b_variance": predicted["b_variance"].values[:1],
        "w_variance": [1.2, 1.6, 2.4, 2.8],
    }
    centre = np.array([-0.5, 0.4, 0.2, 0.0])
    values = np.stack([centre - 0.01, centre + 0.01])[:, None]
    made = xarray.Dataset({"growth": (("seed", "b_variance", "w_variance"), values)}, coords)
    share, count = phase_diagram.agreement(made, predicted)
    assert count == 3
    assert share == pytest.approx(2 / 3)


def test_figure_names_phases_and_hatches_growing_signals(measured, predicted):
    figure = legible(lambda: plotting.phase_diagram(measured, predicted, "some words"))
    ax = figure.axes[0]
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert "some words" in ax.get_title()
    words = " ".join(text.get_text() for text in ax.texts)
    assert "gradients vanish" in words
    assert "gradients explode" in words
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "theory: signal grows without bound" in labels
    assert "theory: critical point" in labels
    norm = ax.collections[0].norm
    assert (norm.vmin, norm.vmax) == (-np.log(2), np.log(2))


def test_undefined_theory_is_shown_as_such(measured, predicted):
    holes = predicted.copy(deep=True)
    holes["chi_perp"][:3] = np.nan
    holes["q"][:3] = np.nan
    figure = legible(lambda: plotting.phase_diagram(measured, holes))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "theory: nothing is defined" in labels


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "swish9"}, "activation must be one of"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"depth": 3}, "depth must be at least 4"),
        ({"w_variance_min": 0.0}, "w_variance_min must be above 0"),
        ({"b_variance_max": 0.0}, "b_variance_max must be above 0"),
        ({"b_variance_min": 0.5}, "b_variance_min and b_variance_max must be in this order"),
        ({"b_variance_min": float("nan")}, "b_variance_min must be at least 0, got nan"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "map.png", **change)
    with pytest.raises(ValueError, match=message):
        kit_options.check(options)


def test_growth_of_a_geometric_series_is_its_ratio():
    logs = np.log(1.5) * np.arange(10.0)
    assert typical.per_layer(logs, 4) == pytest.approx(np.log(1.5))
