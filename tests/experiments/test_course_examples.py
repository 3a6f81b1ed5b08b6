import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import course_examples

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
    "course, relative error 5e-08 is",
    "course, relative error 9e-06 is",
    "course, relative error 0.002 is",
    "second text, relative error 5e-08 is",
    "second text, relative error 5e-05 is",
    "second text, relative error 0.005 is",
    "second text, relative error 0.02 is",
]
# As the texts print them.
PRINTED = dict(
    zip(
        CLAIMS,
        (
            *(0.1216, 0.1216, 38.34, 38.34, 9.5e-7, 9.5e-7, 1, 25, 0.01, 6, 0),
            *(0.02, 0.01, 0.01333, 0.0067, 1, 1, None),
            *("right", "look again", "wrong", "right", "acceptable", "look", "wrong"),
        ),
        strict=True,
    )
)


@pytest.fixture(scope="module")
def rows():
    return {row.claim: row for row in course_examples.examples(jax.random.key(0))}


def test_every_claim_is_there_once(rows):
    assert list(rows) == CLAIMS
    assert sum(row.error_bar is not None for row in rows.values()) == SAMPLED


@pytest.mark.parametrize("claim", CLAIMS)
def test_agrees(rows, claim):
    row = rows[claim]
    assert row.agrees is True
    printed = PRINTED[claim]
    if isinstance(printed, str):
        assert row.text_value == row.measured == printed
    elif printed is not None:
        assert row.text_value == pytest.approx(printed, rel=6e-3)
    if row.error_bar is not None:
        assert abs(row.measured - row.text_value) < 3 * row.error_bar
        # Sharp enough to tell any two of the recommended variances apart.
        assert 0 < row.error_bar < 0.01 * row.text_value
    elif claim.endswith("at most"):
        assert 0.1 * row.text_value < row.measured < row.text_value
    elif not isinstance(printed, str):
        assert row.measured == pytest.approx(row.text_value, rel=1e-5, abs=1e-10)


def test_dividing_by_the_variance_leaves_features_uneven(rows):
    assert rows[CLAIMS[17]].measured > 1e6


def test_what_is_sampled_depends_on_the_key_and_the_rest_does_not(rows):
    other = {row.claim: row for row in course_examples.examples(jax.random.key(1))}
    for claim, row in rows.items():
        drawn = row.error_bar is not None or claim.endswith("at most")
        assert (row.measured != other[claim].measured) == drawn
        assert other[claim].agrees


@pytest.mark.parametrize(
    ("measured", "agrees"), [(1.0, True), (1.000009, True), (1.00002, False), (np.nan, False)]
)
def test_a_row_without_error_bar_can_disagree(measured, agrees):
    assert course_examples._exact("claim", 1.0, measured).agrees is agrees


@pytest.mark.parametrize(("off", "agrees"), [(3.9, True), (4.1, False), (-4.1, False)])
def test_a_sampled_row_can_disagree(off, agrees):
    sample = np.array([-1.0, 1.0, -1.0, 1.0])
    error = np.sqrt(1 / 3)
    row = course_examples._sampled("claim", 0.0, sample + off * error)
    assert row.agrees is agrees
    assert row.error_bar == pytest.approx(error)
    assert ("NO" in course_examples.report([row])) is not agrees


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "experiments.course_examples", *arguments],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_command_line_prints_every_claim():
    done = command("--seed", "3")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"claim +the text says +measured +agrees", lines[0])
    for claim in CLAIMS:
        assert sum(line.startswith(claim) and line.endswith("  yes") for line in lines) == 1
    assert f"{len(CLAIMS)} of {len(CLAIMS)} agree." in lines


def test_command_line_names_a_wrong_seed():
    done = command("--seed", "-1")
    assert done.returncode == 1
    assert done.stderr == "error: seed must be at least 0, got -1; pass a larger number\n"
