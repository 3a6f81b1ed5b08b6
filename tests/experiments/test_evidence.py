"""Estimates, claims and the rule of evidence, against SciPy and by simulation."""

import numpy as np
import pytest
from scipy import stats

from experiments._kit import Claim, Estimate, verdicts
from experiments._kit.evidence import FAILS, HOLDS, UNDECIDED, holm


@pytest.fixture
def generator():
    return np.random.default_rng(5)


@pytest.mark.parametrize("relation", ["greater", "less"])
def test_p_values_are_those_of_the_t_test(generator, relation):
    values = generator.normal(0.4, 1.0, 9)
    supports, p_value = Claim("", Estimate.of(values), relation, 0.1).test()
    expected = stats.ttest_1samp(values, 0.1)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-10)
    assert supports == ((values.mean() > 0.1) == (relation == "greater"))


def test_paired_and_independent_differences_are_those_of_scipy(generator):
    first, second = generator.normal(0.0, 1.0, 8), generator.normal(1.0, 3.0, 12)
    paired = Claim("", Estimate.paired(first, second[:8]), "less")
    assert paired.test()[1] == pytest.approx(stats.ttest_rel(first, second[:8]).pvalue)
    welch = Claim("", Estimate.of(first) - Estimate.of(second), "less")
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert welch.test()[1] == pytest.approx(expected.pvalue)


@pytest.mark.parametrize(("mean", "supports"), [(0.02, True), (0.3, False), (-0.3, False)])
def test_equality_is_shown_within_the_tolerance_and_refuted_outside(mean, supports):
    values = mean + 0.02 * np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    claim = Claim("", Estimate.of(values), "equal", 0.0, tolerance=0.1)
    sides = [
        stats.ttest_1samp(values, border, alternative=alternative).pvalue
        for border, alternative in ((-0.1, "greater"), (0.1, "less"))
    ]
    expected = 2 * max(sides) if supports else 2 * (1 - max(sides))
    assert claim.test() == (supports, pytest.approx(expected, rel=1e-8))


def test_noise_neither_shows_nor_refutes_equality(generator):
    claim = Claim("", Estimate.of(generator.normal(0.0, 1.0, 6)), "equal", 0.0, tolerance=0.01)
    assert claim.test()[1] > 0.5
    assert verdicts([claim])[0].outcome == UNDECIDED


def test_ratio_has_the_error_of_simulated_ratios(generator):
    noise = generator.normal(0.0, 0.2, (4000, 20, 3))
    values, others = 3 + noise[..., 0] + noise[..., 2], 2 + noise[..., 1] + noise[..., 2]
    ratios = values.mean(axis=1) / others.mean(axis=1)
    estimate = Estimate.ratio(values, others, axis=1)
    np.testing.assert_allclose(estimate.mean, ratios)
    assert estimate.standard_error.mean() == pytest.approx(ratios.std(), rel=0.03)


def test_shares_have_the_binomial_error():
    estimate = Estimate.share(np.array([0, 50]), 200)
    assert estimate.mean.tolist() == [0.0, 0.25]
    smoothed = 1 / 202
    assert estimate.standard_error[0] == np.sqrt(smoothed * (1 - smoothed) / 200)
    assert estimate.standard_error[1] == pytest.approx(np.sqrt(0.25 * 0.75 / 200), rel=0.01)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == []


def test_one_claim_is_decided_that_many_together_are_not(generator):
    claim = Claim("", Estimate(2.5, 1.0), "greater")
    assert [v.outcome for v in verdicts([claim])] == [HOLDS]
    assert {v.outcome for v in verdicts([claim] * 5)} == {UNDECIDED}
    opposite = Claim("", Estimate(2.5, 1.0), "less")
    assert [v.outcome for v in verdicts([opposite])] == [FAILS]


def test_wrong_decisions_in_a_report_are_as_rare_as_the_level():
    generator = np.random.default_rng(11)
    samples = generator.normal(0.0, 1.0, (2000, 8, 6))
    estimates = Estimate.of(samples, axis=1)
    border = {"greater": 0.0, "less": 0.0, "equal": 0.5}
    wrong = []
    for row in range(2000):
        claims = [
            # The truth lies on the border of every claim, where any decision is a mistake.
            Claim("", estimates[row, i] - border[relation], relation, tolerance=border[relation])
            for i, relation in enumerate(("greater", "less", "equal") * 2)
        ]
        wrong.append(any(v.outcome != UNDECIDED for v in verdicts(claims)))
    share, error = np.mean(wrong), np.sqrt(0.05 * 0.95 / 2000)
    assert 0.05 - 4 * error < share < 0.05 + 3 * error


def test_true_claims_are_found():
    generator = np.random.default_rng(12)
    estimates = Estimate.of(generator.normal(3.0, 1.0, (8, 5)))
    results = verdicts([Claim("", estimates[i], "greater") for i in range(5)])
    assert {v.outcome for v in results} == {HOLDS}


def test_exact_numbers_are_compared_without_a_test():
    claims = [
        Claim("all steps agree", Estimate.exact(0.0), "equal", 0.0, tolerance=0.5, form=".0f"),
        Claim("more than 3", Estimate.exact(3), "greater", 3),
        Claim("noisy", Estimate(2.0, 1.0), "greater"),
    ]
    results = verdicts(claims)
    assert [v.outcome for v in results] == [HOLDS, FAILS, HOLDS]
    assert [v.p_value for v in results][:2] == [None, None]
    assert results[2].p_value == pytest.approx(2 * stats.norm.sf(2.0))
    assert results[0].row() == ("HOLDS", "all steps agree", "0", "exact")


def test_repetitions_without_spread_are_a_sign_test():
    claim = Claim("", Estimate.of(np.full(8, 0.3)), "greater")
    assert claim.test() == (True, 2 * 0.5**8)
    assert Claim("", Estimate.of(np.zeros(8)), "greater").test() == (False, 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_undecided(value):
    estimate = Estimate.of(np.array([1.0, value, 2.0]))
    assert verdicts([Claim("", estimate, "greater")])[0].outcome == UNDECIDED


def test_format_and_z_score():
    estimate = Estimate(-0.123, 0.0456)
    assert f"{estimate:+.1%}" == "-12.3% ± 4.6%"
    assert f"{-estimate * 100:.1f}" == "12.3 ± 4.6"
    assert estimate.z_score(-0.0318) == pytest.approx(-2.0)
    assert np.isnan(Estimate(1.0, 0.0).z_score(0.0))
    row = verdicts([Claim("it falls", estimate, "less", form="+.1%")])[0].row()
    assert row == ("HOLDS", "it falls", "-12.3% ± 4.6%", "0.007")


@pytest.mark.parametrize(("relation", "tolerance"), [("equal", 0.0), ("less", 0.1)])
def test_a_tolerance_belongs_to_equality(relation, tolerance):
    with pytest.raises(ValueError, match="tolerance must be above 0 for the relation equal"):
        Claim("", Estimate(0.0, 1.0), relation, tolerance=tolerance)
