import re
import runpy
import sys

import jax
import numpy as np
import pytest

from experiments import course_examples
from experiments._kit import command, verdicts
from tests.reference.record import recorded

pytestmark = pytest.mark.slow

SAMPLED = 7
CLAIMS = [
    "mean weight 0.9, 20 linear layers: output of input 1",
    "mean weight 0.9, 20 linear layers: backward factor",
    "mean weight 1.2, 20 linear layers: output of input 1",
    "mean weight 1.2, 20 linear layers: backward factor",
    "10 sigmoid layers: backward factor with every pre-activation 0",
    "10 sigmoid layers: backward factor of random orthogonal ones is at most",
    "Var(z) of 100 inputs of variance 1, weights of variance 0.01",
    "Var(z) of 100 inputs of variance 1, weights of variance 0.25",
    "Var(z) of 100 inputs of variance 1, weights of variance 0.0001",
    "two-sided difference of theta^2 at 3",
    "relative error of that difference",
    "weight variance 100 -> 50: He, 2 / fan_in",
    "weight variance 100 -> 50: LeCun (Xavier for tanh in two texts), 1 / fan_in",
    "weight variance 100 -> 50: Glorot, 2 / (fan_in + fan_out)",
    "weight variance 100 -> 50: one text's variant, 1 / (fan_in + fan_out)",
    "wine over its standard deviation: largest variance",
    "wine over its standard deviation: smallest variance",
    "wine over its variance (one text): largest over smallest variance, as if raw",
    "course, “right” at a relative error of 5e-08",
    "course, “look again” at a relative error of 9e-06",
    "course, “wrong” at a relative error of 0.002",
    "second text, “right” at a relative error of 5e-08",
    "second text, “acceptable” at a relative error of 5e-05",
    "second text, “look” at a relative error of 0.005",
    "second text, “wrong” at a relative error of 0.02",
]
# As the texts print them.
PRINTED = dict(
    zip(
        CLAIMS,
        (
            *(0.1216, 0.1216, 38.34, 38.34, 9.5e-7, 9.5e-7, 1, 25, 0.01, 6, 0),
            *(0.02, 0.01, 0.01333, 0.0067, 1, 1, None),
            *(5e-8, 9e-6, 2e-3, 5e-8, 5e-5, 5e-3, 2e-2),
        ),
        strict=True,
    )
)


@pytest.fixture(scope="module")
def claims():
    return {claim.text: claim for claim in course_examples.examples(jax.random.key(0))}


def is_sampled(claim):
    return not claim.estimate.is_exact


def test_every_claim_is_there_once(claims):
    assert list(claims) == CLAIMS
    assert sum(map(is_sampled, claims.values())) == SAMPLED


def test_all_claims_hold_together(claims):
    decided = verdicts(list(claims.values()))
    assert [verdict.outcome for verdict in decided] == ["HOLDS"] * len(CLAIMS)


def test_numbers_are_those_of_version_0_1(claims):
    old = recorded()["experiments.course_examples"]
    for i, claim in enumerate(list(claims.values())[:18]):
        assert claim.text == old[f"{i}/claim"]
        np.testing.assert_allclose(claim.expected, old[f"{i}/text_value"], rtol=2e-5)
        # The tenth is a relative error of rounding.
        close = {"rtol": 1e-5, "atol": 1e-11 if i == 10 else 0.0}
        np.testing.assert_allclose(claim.estimate.mean, old[f"{i}/measured"], **close)
        if f"{i}/error_bar" in old:
            error = claim.estimate.standard_error
            np.testing.assert_allclose(error, old[f"{i}/error_bar"], rtol=1e-4)


@pytest.mark.parametrize("text", CLAIMS)
def test_agrees(claims, text):
    claim = claims[text]
    printed, mean = PRINTED[text], claim.estimate.mean
    if printed is not None:
        assert claim.expected == pytest.approx(printed, rel=6e-3)
    if is_sampled(claim):
        error = claim.estimate.standard_error
        assert abs(mean - claim.expected) < 3 * error
        # Sharp enough to tell any two of the recommended variances apart.
        assert 0 < error < 0.01 * claim.expected
    elif text.endswith("at most"):
        assert 0.1 * claim.expected < mean < claim.expected
    elif "at a relative error of" in text:
        assert mean == pytest.approx(claim.expected, rel=0.05)
    else:
        assert mean == pytest.approx(claim.expected, rel=1e-5, abs=1e-10)


def test_dividing_by_the_variance_leaves_features_uneven(claims):
    assert claims[CLAIMS[17]].estimate.mean > 1e6


def test_sampled_rows_depend_on_the_key_and_the_others_do_not(claims):
    others = course_examples.examples(jax.random.key(1))
    for claim, other in zip(claims.values(), others, strict=True):
        drawn = is_sampled(claim) or claim.text.endswith("at most")
        assert (claim.estimate.mean != other.estimate.mean) == drawn
    assert all(verdict.outcome == "HOLDS" for verdict in verdicts(others))


@pytest.mark.parametrize(
    ("measured", "agrees"), [(1.0, True), (1.000009, True), (1.00002, False), (np.nan, False)]
)
def test_a_row_without_error_bar_can_disagree(measured, agrees):
    (row,) = course_examples.rows([course_examples.equal("claim", 1.0, measured)])
    assert (row[-1] == "yes") is agrees


@pytest.mark.parametrize(("shift", "agrees"), [(0.0, True), (0.019, False), (-0.1, False)])
def test_a_sampled_row_can_disagree(shift, agrees):
    sample = 1 + shift + 0.001 * np.array([-1.0, 1.0, -1.0, 1.0])
    (row,) = course_examples.rows([course_examples.equal("claim", 1.0, sample)])
    assert (row[-1] == "yes") is agrees


def test_a_wrong_word_disagrees(monkeypatch):
    monkeypatch.setattr(course_examples.finite_differences, "tier", lambda *_: "nothing")
    claims = list(course_examples.tiers_of_planted_errors())
    assert {row[-1] for row in course_examples.rows(claims)} == {"NO"}


def test_command_line_prints_every_claim(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["course_examples", "--seed", "3"])
    monkeypatch.chdir(tmp_path)
    # runpy warns of a module that is there already.
    monkeypatch.delitem(sys.modules, "experiments.course_examples")
    runpy.run_module("experiments.course_examples", run_name="__main__", alter_sys=True)
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert re.fullmatch(r"example +in the +measured +agrees", lines[0])
    start = next(i for i, line in enumerate(lines) if line.startswith("---")) + 1
    rows = []
    for line in lines[start : lines.index("", start)]:
        text, *cells = re.split(" {2,}", line)
        # A line without numbers continues a long text.
        if cells:
            rows.append((text, *cells))
        else:
            rows[-1] = (f"{rows[-1][0]} {text}", *rows[-1][1:])
    assert [(row[0], row[-1]) for row in rows] == [(text, "yes") for text in CLAIMS]
    assert f"{len(CLAIMS)} of {len(CLAIMS)} agree." in out
    assert max(map(len, lines)) <= 101
    assert (tmp_path / "results" / "course_examples.json").is_file()


@pytest.mark.parametrize("seed", ["-1", "12345678901234567890"])
def test_command_line_names_a_wrong_seed(seed, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["course_examples", "--seed", seed])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        command(course_examples.Options, course_examples.run)
    expected = f"error: seed must be at least 0 and at most 4.29497e+09, got {seed}"
    assert stop.value.code == expected
