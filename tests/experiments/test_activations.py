"""The comparison of activations at their usual and critical initializations."""

import dataclasses

import numpy as np
import pytest

from experiments import activations as experiment
from experiments._kit import Estimate
from experiments._kit import options as kit_options
from jaxgrad import activations

pytestmark = pytest.mark.slow

SMALL = experiment.Options(
    activations=("selu",), width=48, depth=30, seeds=8, examples=4, data="gaussian"
)


@pytest.fixture(scope="module")
def rows():
    return experiment.compare(SMALL)


def row(name, recipe, w_variance, growth, critical, only_small=False):
    numbers = dict.fromkeys(("infinite", "signal", "dead", "saturated"), 0.0)
    return experiment.Row(
        name,
        experiment.Recipe(recipe, w_variance),
        critical,
        only_small,
        Estimate(growth, 0.001),
        last=growth,
        typical=growth,
        **numbers,
    )


ROWS = [
    row("relu", "He", 2.0, 0.001, True),
    row("tanh", "LeCun", 1.0, -0.05, True, only_small=True),
    row("elu", "He", 2.0, 0.1, False),
    row("elu", "critical", 1.0, -0.09, True, only_small=True),
    row("softplus", "LeCun", 1.0, -1.2, False),
]


def test_lecun_selu_explodes_by_the_known_factor(rows):
    lecun, small, unit = rows
    assert [row.recipe.name for row in rows] == ["LeCun", "critical", "critical, q = 1"]
    assert not lecun.critical
    assert np.exp(lecun.last) == pytest.approx(1.071575, abs=1e-5)
    assert small.critical
    assert small.only_small
    assert unit.critical
    assert not unit.only_small
    assert unit.last == pytest.approx(0.0, abs=1e-4)


def test_measured_growth_is_that_of_theory_at_this_width(rows):
    for row in rows:
        difference = row.growth - row.typical
        assert abs(difference.mean) < 3.5 * difference.standard_error
    assert rows[0].growth.mean > 3 * rows[0].growth.standard_error
    # LeCun-normal SELU keeps mean 0 and variance 1.
    assert abs(rows[0].signal) < 0.02
    assert all(0 <= row.dead <= row.saturated <= 1 for row in rows)


def test_report_names_what_is_not_critical(rows):
    report = experiment.report(rows, SMALL)
    variances, factors = ([line.split() for line in s.splitlines()] for s in report.sections)
    assert ["selu", "critical", "0.4768", "0"] in [line[:4] for line in variances]
    words = [line[:-4] for line in factors[-3:]]
    assert words[0] == ["selu", "LeCun", "no", "1.072"]
    assert words[1][:3] == ["selu", "critical", "dying"]
    assert words[2] == ["selu", "critical,", "q", "=", "1", "yes", "1"]
    assert [claim.relation for claim in report.claims] == ["greater"]
    assert max(map(len, str(report).splitlines())) <= 100


def test_report_tells_kinds_of_criticality_apart():
    report = experiment.report(ROWS, SMALL)
    words = [line.split()[:3] for line in report.sections[1].splitlines()[-5:]]
    assert words == [
        ["relu", "He", "yes"],
        ["tanh", "LeCun", "dying"],
        ["elu", "He", "no"],
        ["elu", "critical", "dying"],
        ["softplus", "LeCun", "never"],
    ]
    assert [claim.text.split()[0] for claim in report.claims] == ["elu", "softplus"]
    # Both explode or vanish clearly, as predicted.
    assert [claim.test()[0] for claim in report.claims] == [True, True]


def test_every_activation_has_a_usual_recipe():
    for name in activations.TABLE:
        assert all(recipe.w_variance > 0 for recipe in experiment.usual(name))
    assert experiment.usual("parametric_relu")[0].w_variance == pytest.approx(2 / 1.0625)
    assert [recipe.name for recipe in experiment.usual("gelu")] == ["He", "unit gain"]
    assert experiment.usual("selu") == [experiment.Recipe("LeCun", 1.0)]


def test_figure_is_ordered_and_counts_what_is_not_critical():
    figure = experiment.figure(ROWS, 30)
    labels = [[tick.get_text() for tick in ax.get_yticklabels()] for ax in figure.axes]
    assert labels[0] == ["softplus, LeCun", "elu, He"]
    assert labels[1] == ["elu, critical", "tanh, LeCun", "relu, He"]
    assert "not critical for 2 of 4" in figure.get_suptitle()
    assert all(ax.get_xlabel() and ax.get_title() for ax in figure.axes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activations": ()}, "activations must have at least 1 value"),
        ({"activations": ("relu", "relu")}, "activations must have no value twice"),
        ({"activations": ("swish9",)}, "activations must have values one of"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"depth": 1}, "depth must be at least 2"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit_options.check(options)
