"""The experiments on splits and on bias and variance."""

import dataclasses

import numpy as np
import pytest

from experiments import bias_variance, data_splits
from jaxgrad.plotting.bias_variance import bias_variance as figure_of_errors
from jaxgrad.plotting.data_splits import data_splits as figure_of_splits
from jaxgrad.training.bias_variance import diagnose

SPLITS = data_splits.Config(
    splits=100, train_examples=100, dev_sizes=(20, 80), trials=12, permutations=39, shift=1.5
)
ERRORS = bias_variance.Config(
    widths=(1, 16), examples=(32, 64, 128), steps=60, batch=16, seeds=3, rate=0.03
)


@pytest.fixture(scope="module")
def spread():
    return data_splits.spread(SPLITS)


@pytest.fixture(scope="module")
def shares():
    return data_splits.shares(SPLITS)


@pytest.fixture(scope="module")
def detected():
    return data_splits.detect(SPLITS)


@pytest.fixture(scope="module")
def points():
    return bias_variance.measure(ERRORS)


def test_dev_error_is_as_noisy_as_a_binomial_share(spread):
    z = (spread.measured - spread.binomial) / spread.uncertainty
    assert np.all(np.abs(z) < 3)
    p = spread.error
    np.testing.assert_allclose(spread.binomial, np.sqrt(p * (1 - p) / np.array([20, 80])))
    assert 0.03 < p < 0.3


def test_stratified_shares_stay_and_plain_ones_vary_as_without_replacement(shares):
    assert shares.size == 36
    assert shares.whole == pytest.approx(48 / 178)
    assert np.abs(shares.stratified - shares.whole).max() < 1 / 36
    uncertainty = shares.expected / np.sqrt(2 * (len(shares.plain) - 1))
    assert abs(shares.plain.std(ddof=1) - shares.expected) < 3 * uncertainty
    # The hypergeometric formula, by hand.
    assert shares.expected**2 == pytest.approx(48 * 130 * 142 / (178**2 * 177 * 36))


def test_pairs_are_spoilt_as_they_say():
    sets = {way: data_splits.pairs(way, SPLITS) for way in data_splits.WAYS}
    plain, shifted = sets[data_splits.RANDOM]
    assert plain.shape == (12, 2, 114, 30)
    own = sets[data_splits.OWN][0][:, 0]
    np.testing.assert_allclose(own.mean(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(own.std(axis=1), 1.0, atol=1e-5)
    moved = (sets[data_splits.SHIFTED][0] - plain).mean(axis=2)
    expected = np.zeros_like(moved)
    expected[np.arange(12), 1, shifted] = 1.5
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    shuffled = sets[data_splits.UNPAIRED][0]
    np.testing.assert_array_equal(np.sort(shuffled, axis=2), np.sort(plain, axis=2))
    assert (shuffled[:, 1] != plain[:, 1]).any()


def test_faults_are_found_and_random_splits_pass(detected):
    of = {row.name: row for row in detected}
    assert of[data_splits.RANDOM].rate <= 1 / 12
    assert of[data_splits.SHIFTED].features == 1.0
    assert of[data_splits.SHIFTED].named == ("the shifted one", 1.0)
    assert of[data_splits.UNPAIRED].joint == 1.0
    assert of[data_splits.UNPAIRED].features <= 1 / 12
    assert all(row.error > 0 for row in detected)


def test_report_of_splits_says_what_was_measured(spread, shares, detected):
    text = data_splits.report(spread, shares, detected, SPLITS)
    assert f"mean error {spread.error:.2%}" in text
    assert "as level 0.05 allows" in text
    seen = next(line for line in text.splitlines() if line.startswith("Found more often"))
    assert data_splits.SHIFTED in seen
    assert data_splits.UNPAIRED in seen
    bad = [detected[0]._replace(rate=0.5), detected[1]._replace(rate=0.0)]
    words = data_splits.verdict(bad, SPLITS)
    assert "MORE than the level allows" in words
    assert f"Not found: {data_splits.OWN}." in words
    assert "Found more" not in words


def test_figure_of_splits(spread, shares, detected):
    axes = figure_of_splits(spread, shares, detected, 0.05).axes
    assert len(axes) == 3
    assert all(ax.get_xlabel() and ax.get_title() for ax in axes)
    assert "80 dev examples" in axes[0].get_title()
    rates = [row.rate for row in detected[1:]]
    assert f"faulty ones in {min(rates):.0%} to {max(rates):.0%}" in axes[2].get_title()


def test_masked_runs_differ_in_size_only(points):
    assert set(points) == set(bias_variance.settings(ERRORS))
    for (width, examples), point in points.items():
        assert (point.width, point.examples) == (width, examples)
        assert point.train.shape == point.dev.shape == (3,)
        # Errors are whole numbers of examples.
        np.testing.assert_allclose(
            point.train * examples, np.round(point.train * examples), atol=1e-3
        )
    # One unit cannot tell ten digits apart; sixteen learn 128 examples.
    assert points[1, 128].train.min() > 0.4
    assert points[1, 128].diagnosis.bias_high
    assert points[16, 128].train.max() < 0.1
    assert points[16, 128].diagnosis.label == "high variance"
    assert points[16, 128].dev.mean() < points[16, 32].dev.mean()


def test_report_names_the_remedy_that_was_better(points):
    text = bias_variance.report(points, ERRORS)
    assert "1 unit, 64 examples" in text
    assert text.count("This agrees.") + text.count("does NOT agree.") == 2


def made(width, examples, train, dev, seeds=4):
    noise = 1e-4 * np.arange(seeds)
    diagnosis = diagnose(train, dev, 0.01)
    return bias_variance.Point(width, examples, train + noise, dev + noise**2, diagnosis)


@pytest.mark.parametrize(("dev", "agrees"), [(0.05, 2), (0.55, 0)])
def test_advice_that_fails_is_reported_as_failing(dev, agrees):
    by_size = {
        **{(1, n): made(1, n, 0.5, 0.5) for n in (32, 64, 128)},
        **{(16, n): made(16, n, 0.0, error) for n, error in ((32, 0.3), (64, dev), (128, dev))},
    }
    text = bias_variance.report(by_size, ERRORS)
    assert text.count("This agrees.") == agrees
    assert text.count("does NOT agree.") == 2 - agrees


def test_a_step_that_lowers_the_error_is_told_from_one_that_does_not():
    down = bias_variance.step(made(1, 64, 0.5, 0.5), made(16, 64, 0.0, 0.2))
    assert (down.remedy, down.advised, down.fell) == ("larger network", True, True)
    assert down.train[0] == pytest.approx(-0.5)
    flat = bias_variance.step(made(16, 64, 0.0, 0.2), made(16, 128, 0.0, 0.2))
    assert (flat.remedy, flat.advised, flat.fell) == ("more data", True, False)


def test_figure_of_errors_has_a_panel_a_curve(points):
    curves = {
        name: [points[pair] for pair in curve]
        for name, curve in bias_variance.curves_of(ERRORS).items()
    }
    figure = figure_of_errors(curves, 0.01)
    assert len(figure.axes) == 3
    assert all(ax.get_xlabel() and "dev error" in ax.get_title() for ax in figure.axes)
    words = [text.get_text() for text in figure.axes[0].texts]
    assert "high\nvariance" in words


@pytest.mark.parametrize(
    ("experiment", "change", "message"),
    [
        (data_splits, {"trials": 1}, "trials must be at least 2, got 1"),
        (data_splits, {"dev_sizes": (50, 20)}, "dev_sizes must be ascending"),
        (data_splits, {"dev_sizes": (5000,)}, "dev_sizes must be ascending from 1 to the 1697"),
        (data_splits, {"level": 0.0}, "level must be between 0 and 1"),
        (data_splits, {"permutations": 9}, "permutations must be at least 39"),
        (data_splits, {"penalty": 0.0}, "penalty must be above 0"),
        (data_splits, {"shift": np.nan}, "shift must be finite"),
        (bias_variance, {"seeds": 1}, "seeds must be at least 2, got 1"),
        (bias_variance, {"widths": (4, 2)}, "widths must be 2 or more ascending"),
        (bias_variance, {"examples": (32, 64)}, "examples must be 3 or more ascending"),
        (bias_variance, {"examples": (32, 64, 2000)}, "examples must be at most the 1078"),
        (bias_variance, {"small": 16}, "small must be one of the widths but the last"),
        (bias_variance, {"batch": 256}, "batch must be at most the 128"),
        (bias_variance, {"attainable": 2.0}, "attainable must be from 0 to 1"),
        (bias_variance, {"rate": 0.0}, "rate must be above 0"),
    ],
)
def test_bad_options_are_named(experiment, change, message, tmp_path):
    config = SPLITS if experiment is data_splits else ERRORS
    config = dataclasses.replace(config, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        experiment.checked(config)
