"""Known wrong gradients are discovered from the signature alone; right ones are left in peace."""

import jax
import pytest

from benchmarks.known_wrong_gradients_functions import FUNCTIONS as WRONG
from benchmarks.known_wrong_gradients_right import FUNCTIONS as RIGHT
from benchmarks.known_wrong_gradients_right import TRUE
from jaxgrad.checking import check_domain


@pytest.fixture(autouse=True)
def promotion():
    """Some of the functions combine arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_the_tables_are_complete():
    assert len({case.name for case in WRONG}) == 40
    assert len({case.source for case in WRONG}) >= 36
    assert len(RIGHT) >= 200
    assert {case.name for case in RIGHT} >= set(TRUE)


# All of them take half an hour: `python -m benchmarks.known_wrong_gradients`.
@pytest.mark.slow
@pytest.mark.parametrize("case", WRONG[::8], ids=lambda case: case.name)
def test_known_wrong_gradients_are_discovered(case):
    assert not check_domain(case.f, *case.domains)


@pytest.mark.slow
@pytest.mark.parametrize("case", RIGHT[::40], ids=lambda case: case.name)
def test_right_gradients_give_no_false_alarm(case):
    report = check_domain(case.f, *case.domains)
    assert report.ok != case.true, str(report)
