"""The table of published and derived numbers: every row holds."""

import jax
import pytest

from benchmarks import targets

# The paths of the others are covered by quicker tests of each function.
QUICK = (targets.seed_texts, targets.spectra, targets.weights)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=() if part in QUICK else pytest.mark.slow, id=part.__name__)
        for part in targets.PARTS
    ],
)
def test_every_target_is_reached(part):
    # The benchmark's own setting, not the strict one of the other tests.
    with jax.numpy_rank_promotion("allow"):
        rows = list(part())
    missed = [row for row in rows if not row.holds]
    assert not missed, missed


def test_a_row_can_miss():
    assert not targets.digits("pi", 3.1416, 3.1417, 4).holds
    assert not targets.sampled("zero", 0.0, [1.0, 1.1, 0.9]).holds
