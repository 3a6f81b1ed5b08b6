"""The experiment on splits: a small run, and reports of numbers that are known."""

import dataclasses

import numpy as np
import pytest

from experiments import _kit as kit
from experiments import data_splits as experiment
from tests.experiments.legible import legible, message

pytestmark = pytest.mark.slow

SMALL = experiment.Options(
    splits=100, train_examples=100, dev_sizes=(20, 80), trials=12, permutations=39, shift=1.5
)


@pytest.fixture(scope="module")
def noise():
    return experiment.spread(SMALL)


@pytest.fixture(scope="module")
def drawn():
    return experiment.shares(SMALL)


@pytest.fixture(scope="module")
def detected():
    return experiment.detect(SMALL)


def test_dev_error_is_as_noisy_as_a_binomial_share(noise):
    z = noise.measured.z_score(noise.binomial)
    assert np.all(np.abs(z) < 3)
    p = noise.error
    np.testing.assert_allclose(noise.binomial, np.sqrt(p * (1 - p) / np.array([20, 80])))
    assert 0.03 < p < 0.3


def test_stratified_shares_stay_and_plain_ones_vary_as_without_replacement(drawn):
    assert drawn["size"] == 36
    assert drawn["whole"] == pytest.approx(48 / 178)
    assert np.abs(drawn["stratified"] - drawn["whole"]).max() < 1 / 36
    uncertainty = drawn["expected"] / np.sqrt(2 * (len(drawn["plain"]) - 1))
    assert abs(drawn["plain"].std(ddof=1) - drawn["expected"]) < 3 * uncertainty
    # The hypergeometric formula, by hand.
    assert drawn["expected"] ** 2 == pytest.approx(48 * 130 * 142 / (178**2 * 177 * 36))


def test_pairs_are_spoilt_as_they_say():
    sets = {way: (values, shifted) for way, values, shifted in experiment.pairs(SMALL)}
    plain, shifted = sets[experiment.RANDOM]
    assert plain.shape == (12, 2, 114, 30)
    own = sets[experiment.SELF][0][:, 0]
    np.testing.assert_allclose(own.mean(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(own.std(axis=1), 1.0, atol=1e-5)
    moved = (sets[experiment.SHIFTED][0] - plain).mean(axis=2)
    expected = np.zeros_like(moved)
    expected[np.arange(12), 1, shifted] = 1.5
    np.testing.assert_allclose(moved, expected, atol=1e-5)
    shuffled = sets[experiment.UNPAIRED][0]
    np.testing.assert_array_equal(np.sort(shuffled, axis=2), np.sort(plain, axis=2))
    assert (shuffled[:, 1] != plain[:, 1]).any()


def test_deviation_has_the_error_of_simulated_deviations():
    values = np.random.default_rng(3).exponential(size=(400, 2000))
    estimate = experiment.deviation(values)
    assert estimate.mean.mean() == pytest.approx(1.0, rel=0.02)
    assert estimate.standard_error.mean() == pytest.approx(estimate.mean.std(), rel=0.1)


def test_faults_are_found_and_random_splits_pass(detected):
    rows = {row.name: row for row in detected}
    assert rows[experiment.RANDOM].rate.mean <= 1 / 12
    assert rows[experiment.SHIFTED].features == 1.0
    assert rows[experiment.SHIFTED].largest == ("the shifted one", 1.0)
    assert rows[experiment.UNPAIRED].joint == 1.0
    assert rows[experiment.UNPAIRED].features <= 1 / 12
    assert all(row.rate.standard_error > 0 for row in detected)


def test_report_shows_what_was_measured(noise, drawn, detected):
    report = experiment.report(noise, drawn, detected, SMALL)
    assert f"mean error {noise.error:.2%}" in str(report)
    outcomes = {v.claim.text: v.outcome for v in kit.verdicts(report.claims)}
    for way in (experiment.SHIFTED, experiment.UNPAIRED):
        assert outcomes[f"{way}: called different in more than 5% of pairs"] == "HOLDS"
    assert outcomes["a stratified split changes it by less than one example"] == "HOLDS"


def test_claims_follow_the_numbers(noise, drawn, detected):
    share = kit.Estimate.share(np.array([100, 0]), 200)
    rows = [detected[0]._replace(rate=share[0]), detected[1]._replace(rate=share[1])]
    wide = noise._replace(binomial=2 * noise.binomial)
    results = kit.verdicts(experiment.report(wide, drawn, rows, SMALL).claims)
    outcomes = {v.claim.text: v.outcome for v in results}
    assert outcomes["random splits are called different in less than 5% of pairs"] == (
        "DOES NOT HOLD"
    )
    missed = f"{experiment.SELF}: called different in more than 5% of pairs"
    assert outcomes[missed] == "DOES NOT HOLD"
    assert outcomes[next(text for text in outcomes if text.startswith("80 dev"))] == (
        "DOES NOT HOLD"
    )


def test_figure_shows_how_often_each_way_is_noticed(detected):
    figure = legible(lambda: experiment.figure(detected, SMALL))
    (ax,) = figure.axes
    # The lower end of Wilson's interval of 12 pairs passes 5 % from 3 on.
    noticed = sum(row.rate.mean >= 3 / 12 for row in detected[1:])
    assert f"notices {noticed} of 5 faulty ways to split" in message(figure)
    assert 0 < noticed < 5
    assert "takes 0.0% of random splits" in message(figure)
    points, _, (bars,) = ax.containers[0].lines
    np.testing.assert_allclose(points.get_xdata(), [row.rate.mean for row in detected])
    ends = np.array(bars.get_segments())[:, :, 0]
    assert ends.min() >= 0
    assert ends.max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 1}, "trials must be at least 2, got 1"),
        ({"dev_sizes": (50, 20)}, "dev_sizes must have its values in ascending order"),
        ({"dev_sizes": (5000,)}, "dev_sizes must be at most 1697"),
        ({"level": 0.0}, "level must be above 0 and below 1"),
        ({"permutations": 9}, "permutations must be at least 39"),
        ({"penalty": 0.0}, "penalty must be above 0"),
        ({"shift": np.nan}, "shift must be finite"),
    ],
)
def test_bad_options_are_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit.check(options)
