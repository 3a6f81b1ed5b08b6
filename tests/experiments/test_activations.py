"""The comparison of activations at their usual and critical initializations."""

import dataclasses

import numpy as np
import pytest

from experiments import activations as experiment
from experiments._kit import Estimate
from experiments._kit import options as kit_options
from jaxgrad import activations
from tests.experiments.legible import legible, message

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


def test_report_says_what_survives(rows):
    report = experiment.report(rows, SMALL)
    lines = [line.split() for line in report.sections[0].splitlines()]
    assert ["selu", "critical", "0.4768", "0"] in [line[:4] for line in lines]
    assert [line[-1] for line in lines[-3:]] == ["survives", "vanishes", "survives"]
    (table,) = report.details
    words = [line.split()[:-5] for line in table.splitlines()[-3:]]
    assert words[0] == ["selu", "LeCun", "no"]
    assert words[1] == ["selu", "critical", "dying"]
    assert words[2] == ["selu", "critical,", "q", "=", "1", "yes"]
    assert max(map(len, report.text(verbose=True).splitlines())) <= 100


def test_report_tells_kinds_of_criticality_apart():
    report = experiment.report(ROWS, SMALL)
    words = [line.split()[:3] for line in report.details[0].splitlines()[-5:]]
    assert words == [
        ["relu", "He", "yes"],
        ["tanh", "LeCun", "dying"],
        ["elu", "He", "no"],
        ["elu", "critical", "dying"],
        ["softplus", "LeCun", "never"],
    ]
    # Over 29 layers the log10 of a norm changes by 29 / (2 log 10) = 6.3 times the growth.
    gradients = [line.split()[-1] for line in report.sections[0].splitlines()[-5:]]
    assert gradients == ["survives", "survives", "survives", "survives", "vanishes"]
    assert " ".join(report.sections[1].split()) == (
        "Of 4 activations, 3 keep their gradient over 30 layers with a usual recipe, and 3 with a "
        "usual or a critical one."
    )


def test_claims_are_of_the_predicted_regime():
    claims = experiment.report(ROWS, SMALL).claims
    assert [claim.relation for claim in claims] == ["equal", "equal", "equal", "less"]
    assert [claim.test()[0] for claim in claims] == [True] * 4
    wrong = ROWS[0]._replace(growth=Estimate(-1.0, 0.001, 7))
    assert not experiment.claim(wrong, 30).test()[0]
    grows = ROWS[0]._replace(growth=Estimate(1.0, 0.001, 7), typical=1.0)
    assert experiment.claim(grows, 30).relation == "greater"
    assert experiment.claim(grows, 30).test()[0]


def test_every_activation_has_a_usual_recipe():
    for name in activations.TABLE:
        assert all(recipe.w_variance > 0 for recipe in experiment.usual(name))
    assert experiment.usual("parametric_relu")[0].w_variance == pytest.approx(2 / 1.0625)
    assert [recipe.name for recipe in experiment.usual("gelu")] == ["He", "unit gain"]
    assert experiment.usual("selu") == [experiment.Recipe("LeCun", 1.0)]


def test_figure_is_ordered_by_the_gradient_at_the_depth():
    figure = legible(lambda: experiment.figure(ROWS, 30))
    (ax,) = figure.axes
    names = ["softplus", "tanh", "relu", "elu"]
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    assert "Of 4 activations, 3 keep their gradient over 30 layers" in message(figure)
    points = {c.get_label(): c.lines[0].get_xdata() for c in ax.containers}
    scale = 29 / (2 * np.log(10))
    np.testing.assert_allclose(points["LeCun"], scale * np.array([-1.2, -0.05]))
    np.testing.assert_allclose(points["critical"], scale * np.array([-0.09]))


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
