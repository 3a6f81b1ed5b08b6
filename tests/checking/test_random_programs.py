"""Random programs, right ones and ones with a planted error: no false alarm and no miss."""

import jax
import numpy as np
import pytest

from benchmarks.random_programs import autodiff_error, effect, gradient, judge, visible_plant
from benchmarks.random_programs_generate import random_program

# A part of the programs of the benchmark. The last one's modes differ by less than its values err.
SEEDS = (0, 1, 335)
# As bad as autodiff in float64 may be where a report says that it agrees.
CLOSE = 1e-4


@pytest.fixture(autouse=True)
def promotion():
    """Random programs add arrays of different ranks."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
def test_verdict(seed):
    program = random_program(seed)
    right = judge(program, None)
    assert right.ok, f"{program.names}\n{right.text}"
    if right.verdict == "AGREE":
        assert not autodiff_error(program) > CLOSE
    plant = visible_plant(program)
    if plant is not None:
        wrong = judge(program, plant)
        assert not wrong.miss, f"{program.names}\n{plant}\n{wrong.text}"


@pytest.mark.slow
def test_equal_seeds_give_equal_programs_and_different_ones_do_not():
    first, again, other = (random_program(seed) for seed in (3, 3, 4))
    assert first.names == again.names != other.names
    pair = (gradient(program, None, True) for program in (first, again))
    assert all(np.array_equal(a, b) for a, b in zip(*pair, strict=True))


@pytest.mark.slow
def test_a_planted_error_changes_the_gradient_and_its_right_counterpart_does_not():
    program = random_program(1)
    plant = visible_plant(program)
    assert plant is not None
    right, wrong = (gradient(program, plant, right) for right in (True, False))
    again = gradient(program, plant, True)
    assert effect(program, right, again) == 0
    assert effect(program, right, wrong) > 1e-4
