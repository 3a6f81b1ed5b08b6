"""The experiment on bias and variance: a small run, and reports of numbers that are known."""

import dataclasses

import numpy as np
import pytest

from experiments import _kit as kit
from experiments import bias_variance as experiment
from jaxgrad.training.bias_variance import diagnose
from tests.experiments.legible import legible, message
from tests.reference.record import hold

pytestmark = pytest.mark.slow

SMALL = experiment.Options(
    widths=(1, 16), examples=(32, 64, 128), steps=60, batch_size=16, seeds=3, learning_rate=0.03
)


@pytest.fixture(scope="module")
def points():
    return experiment.measure(SMALL)


def test_a_small_run_has_the_numbers_of_version_0_1(points):
    out = {str(size): point._asdict() for size, point in points.items()}
    hold("experiments.bias_variance", out, tolerance=10, single=True)


def test_masked_runs_differ_in_size_only(points):
    assert set(points) == set(SMALL.sizes())
    for (width, examples), point in points.items():
        assert (point.width, point.examples) == (width, examples)
        assert point.train.shape == point.dev.shape == (3,)
        # Errors are whole numbers of examples.
        np.testing.assert_allclose(
            point.train * examples, np.round(point.train * examples), atol=1e-3
        )
    # One unit cannot separate ten digits; sixteen learn 128 examples.
    assert points[1, 128].train.min() > 0.4
    assert points[1, 128].diagnosis.bias_high
    assert points[16, 128].train.max() < 0.1
    assert points[16, 128].diagnosis.label == "high variance"
    assert points[16, 128].dev.mean() < points[16, 32].dev.mean()


def test_report_compares_both_remedies(points):
    report = experiment.report(points, SMALL)
    assert "1 unit, 64 examples" in str(report)
    texts = [claim.text for claim in report.claims]
    assert "1 unit, 64 examples: larger network lowers the dev error more than more data" in texts
    assert "1 unit, 64 examples: more data lowers the dev error more than larger network" not in (
        texts
    )


def point(width, examples, train, dev, seeds=12):
    noise = 1e-4 * np.arange(seeds)
    diagnosis = diagnose(train, dev, 0.01)
    return experiment.Point(width, examples, train + noise, dev + noise**2, diagnosis)


@pytest.mark.parametrize(("dev", "outcome"), [(0.05, "HOLDS"), (0.55, "DOES NOT HOLD")])
def test_advice_that_fails_is_reported_as_failing(dev, outcome):
    points = {
        **{(1, n): point(1, n, 0.5, 0.5) for n in (32, 64, 128)},
        **{(16, n): point(16, n, 0.0, error) for n, error in ((32, 0.3), (64, dev), (128, dev))},
    }
    results = kit.verdicts(experiment.report(points, SMALL).claims)
    outcomes = {v.claim.text: v.outcome for v in results if "more than" in v.claim.text}
    assert outcomes == {
        "1 unit, 64 examples: larger network lowers the dev error more than more data": outcome
    }


def test_a_large_network_with_few_examples_needs_more_data():
    options = dataclasses.replace(SMALL, widths=(1, 8, 16), small=1)
    points = {size: point(*size, 0.0, 0.3) for size in options.sizes()}
    points |= {(8, 128): point(8, 128, 0.0, 0.1)}
    results = kit.verdicts(experiment.report(points, options).claims)
    outcomes = {v.claim.text: v.outcome for v in results}
    text = "8 units, 64 examples: more data lowers the dev error more than larger network"
    assert outcomes[text] == "HOLDS"


def test_a_step_that_lowers_the_error_is_told_from_one_that_does_not():
    down = experiment.step(point(1, 64, 0.5, 0.5), point(16, 64, 0.0, 0.2))
    assert (down.remedy, down.advised, down.kind) == ("larger network", True, "train")
    assert down.change["train"].mean == pytest.approx(-0.5)
    flat = experiment.step(point(16, 64, 0.0, 0.2), point(16, 128, 0.0, 0.2))
    assert (flat.remedy, flat.advised, flat.kind) == ("more data", True, "dev")
    results = kit.verdicts(experiment.claims([down, flat], []))
    assert [v.outcome for v in results] == ["HOLDS", "UNDECIDED"]


def test_figure_shows_both_remedies(points):
    figure = legible(lambda: experiment.figure(points, SMALL))
    (ax,) = figure.axes
    assert "dev error" in ax.get_xlabel()
    assert "The diagnosis advises the better remedy in" in message(figure)
    words = [text.get_text() for text in ax.get_yticklabels()]
    assert words[0] == "1 unit, 64 examples\nhigh bias:\nlarger network advised"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"widths": (4, 2)}, "widths must have its values in ascending order"),
        ({"examples": (32, 64)}, "examples must have at least 3 values"),
        ({"examples": (32, 64, 2000)}, "examples must have values at least 1 and at most 1078"),
        ({"small": 16}, "small must be one of"),
        ({"batch_size": 256}, "batch_size must be at most 128"),
        ({"attainable": 2.0}, "attainable must be at least 0 and at most 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ],
)
def test_bad_options_are_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit.check(options)
