"""Broken rules are named with their lines, and the same rules unbroken are not accused."""

import pytest

from benchmarks import audited_rules

CASES = audited_rules.cases()
# One of each way to break a rule, and one of each mode of JAX's operations.
FEW = (
    *("gated missing [1] in checkpoint", "gated residual 1 in rule"),
    *("unit element [0] in alone", "cumsum transpose x1.01"),
)
SLOW = ("dense mean for sum [2] in while", "logaddexp custom in softplus x1.01")


@pytest.mark.parametrize("part", [*FEW, *(pytest.param(p, marks=pytest.mark.slow) for p in SLOW)])
def test_a_few_rules(part):
    (case,) = [case for case in CASES if case.name == part]
    assert audited_rules.problem(case) == ""


def test_there_are_enough():
    assert len({case.name for case in CASES}) == len(CASES) >= 100
    ways = {way.name.split(" [")[0] for ways in audited_rules.BREAKS.values() for way in ways}
    assert {"x1.01", "sign", "missing", "element", "reversed", "mean for sum"} <= ways


# `python -m benchmarks.audited_rules` runs all of them.
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES[::5], ids=lambda case: case.name)
def test_more_rules(case):
    assert audited_rules.problem(case) == ""
