"""The comparison of activations at their usual and critical initialisations."""

import dataclasses

import numpy as np
import pytest

from experiments import activations as experiment
from jaxgrad import activations, plotting

SMALL = experiment.Config(
    activations=("selu",), width=48, depth=30, seeds=8, examples=4, data="gaussian"
)


@pytest.fixture(scope="module")
def rows():
    return experiment.compare(SMALL)


def made(name, recipe, w_variance, growth, critical, only_small=False):
    numbers = dict.fromkeys(experiment.Row._fields[7:], 0.0)
    return experiment.Row(
        name,
        recipe,
        w_variance,
        0.0,
        critical,
        only_small,
        growth,
        **numbers | {"error": 0.001, "last": growth, "typical": growth},
    )


MADE = [
    made("relu", "He", 2.0, 0.001, True),
    made("tanh", "LeCun", 1.0, -0.05, True, only_small=True),
    made("elu", "He", 2.0, 0.1, False),
    made("elu", "critical", 1.0, -0.09, True, only_small=True),
    made("softplus", "LeCun", 1.0, -1.2, False),
]


def test_lecun_selu_explodes_by_the_known_factor(rows):
    lecun, small, unit = rows
    assert [row.recipe for row in rows] == ["LeCun", "critical", "critical, q = 1"]
    assert not lecun.critical
    assert np.exp(lecun.last) == pytest.approx(1.071575, abs=1e-5)
    assert small.critical
    assert small.only_small
    assert unit.critical
    assert not unit.only_small
    assert unit.last == pytest.approx(0.0, abs=1e-4)


def test_measured_growth_is_that_of_theory_at_this_width(rows):
    for row in rows:
        assert abs(row.growth - row.typical) < 3.5 * row.error
    assert rows[0].growth > 3 * rows[0].error
    # LeCun-normal SELU keeps mean 0 and variance 1.
    assert abs(rows[0].signal) < 0.02
    assert all(0 <= row.dead <= row.saturated <= 1 for row in rows)


def test_report_names_what_is_not_critical(rows):
    text = experiment.report(rows, SMALL)
    (line,) = [line for line in text.splitlines() if line.startswith("- selu with LeCun")]
    assert "multiplied by 1.072 a layer" in line
    assert "critical instead: weight variance 0.4768 and bias variance 0 or weight" in line


def test_report_tells_kinds_of_criticality_apart():
    text = experiment.report(MADE, SMALL)
    failing = [line for line in text.splitlines() if line.startswith("- ")]
    assert [line.split()[1] for line in failing] == ["elu", "softplus"]
    assert failing[0].endswith("critical instead: weight variance 1 and bias variance 0.")
    assert failing[1].endswith("no point exists.")
    sound, dying = text.split("Critical as they are")[1].split("Critical, but only")
    assert "relu with He" in sound
    assert "tanh" not in sound
    assert "tanh with LeCun" in dying
    assert "elu" not in dying


def test_every_activation_has_a_usual_recipe():
    for name in activations.TABLE:
        assert all(recipe.w_variance > 0 for recipe in experiment.usual(name))
    assert experiment.usual("parametric_relu")[0].w_variance == pytest.approx(2 / 1.0625)
    assert [recipe.name for recipe in experiment.usual("gelu")] == ["He", "unit gain"]
    assert experiment.usual("selu") == [experiment.Recipe("LeCun", 1.0)]


def test_figure_is_ordered_and_counts_what_is_not_critical():
    figure = plotting.activations(MADE, 30)
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["relu", "tanh", "elu", "softplus"]
    assert "not critical for 2 of 4" in ax.get_title()
    words = [text.get_text().strip() for text in ax.texts]
    assert words.count("no critical point exists") == 1
    assert ax.get_xlabel()
    assert ax.get_ylabel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": ()}, "activations must be different names"),
        ({"activations": ("relu", "relu")}, "activations must be different names"),
        ({"activations": ("swish9",)}, "activation must be one of"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"depth": 1}, "depth must be at least 2"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    config = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        experiment.checked(config)
