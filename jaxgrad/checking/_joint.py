"""Numeric derivatives along directions through many leaves at once.

A model has many leaves, and a check of each takes about a hundred evaluations. If autodiff is right
for all of them, a few random directions through all leaves show it. If an error of a leaf is a
vector `e` and the direction in it a normal one, the derivative along the whole direction is off by
a normal number of size `|e|`, plus the errors in other leaves, which are independent of it and do
not make it smaller. A leaf that is not clearly right is checked by itself.

Leaves have gradients of different sizes, so each moves by a multiple of its size with which all
change the function equally. The multiples come from autodiff, the steps and error bars do not.
"""

from typing import NamedTuple

import numpy as np

from jaxgrad._numerics import norm, rms
from jaxgrad.checking._autodiff import Autodiff, is_rounding, slopes
from jaxgrad.checking._directions import SIGNS, Direction
from jaxgrad.checking._numeric import Joint, Tolerance, measure
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._step_sizes import LARGEST_STEP, RATIO, Derivative

# Of many leaves, some have kinks close by, so there are more small steps than for one, but the
# smallest ones change a function of so many numbers by rounding alone.
PILOT_STEPS, STEPS, ZERO_STEPS = 10, 5, 3
RANGE = 1e3  # Leaves of one group change the function by amounts within this ratio.
# An error must show from these shares on: of the norm of a leaf, or, if it is one of a single
# element, of the root mean square of its leaf.
VISIBLE, ELEMENT = 4e-5, 1e-3
NOTHING = 1e-9  # A change below this share of the function may be rounding.


class Group(NamedTuple):
    """Leaves that move together, and the size of an element's step in each for a unit step."""

    leaves: np.ndarray  # indices, [G]
    steps: np.ndarray  # [G]
    zero: bool  # whether autodiff gives nothing but rounding for all of them


class _Measured(NamedTuple):
    """Derivatives along directions through many leaves, [P]."""

    numeric: Derivative
    expected: np.ndarray  # by reverse mode
    slopes: dict[str, np.ndarray]  # in each mode that is checked


def measure_jointly(
    problem: Problem, autodiff: Autodiff, tolerance: Tolerance, modes, count: int, generator
) -> Joint | None:
    """Return derivatives of the leaves that `count` directions through many leaves show right.

    None are shown if the function has few coordinates, which are checked one by one, if it rounds
    to a narrow type, whose errors would hide those of a leaf, or without reverse mode.
    """
    precise = problem.numeric.wide and problem.numeric.eps < 1e-12
    if np.all(tolerance.complete) or not precise or autodiff.gradient is None:
        return None
    groups = group_leaves(problem, autodiff)
    if not groups:
        return None
    # The random numbers of other stages do not depend on whether this one takes place.
    (generator,) = generator.spawn(1)
    results = []
    for i, group in enumerate(groups):
        rows = _draw(problem, group, count, generator)
        directions = [Direction(-1 - i, 0, _whole(problem, group, vectors)) for vectors in rows]
        measured = _Measured(
            _derivatives(problem, directions, group.zero),
            slopes(problem, autodiff, directions, "rev"),
            {mode: slopes(problem, autodiff, directions, mode) for mode in modes},
        )
        for position, j in enumerate(group.leaves):
            vectors = [Direction(j, problem.leaves[j].start, row[position]) for row in rows]
            result = _of_leaf(problem, autodiff, vectors, group.steps[position], measured)
            if _is_right(problem, tolerance, group.zero, result):
                results.append(result)
    if not results:
        return None
    return Joint(
        [direction for result in results for direction in result.directions],
        Derivative(*map(np.concatenate, zip(*(r.derivative for r in results), strict=True))),
        {mode: np.concatenate([result.slopes[mode] for result in results]) for mode in modes},
    )


def group_leaves(problem: Problem, autodiff: Autodiff) -> list[Group]:
    """Return groups of leaves that can be measured together; some leaves may be in none."""
    assert autodiff.gradient is not None
    scales, groups = problem.scales, []
    # The change of the function if each element of a leaf moves by the size of the leaf.
    changes = scales * [norm(autodiff.gradient[info.part]) for info in problem.leaves]
    large = changes > NOTHING * problem.total
    zero = [
        j
        for j in np.flatnonzero(changes <= NOTHING * problem.total)
        if is_rounding(autodiff, problem.leaves[j], np.zeros(1))
    ]
    if zero:
        groups.append(Group(np.array(zero), scales[zero], True))
    rest = np.flatnonzero(large & np.isfinite(changes))
    rest = rest[np.argsort(-changes[rest], kind="stable")]
    while len(rest):
        # All leaves of a group change the function as much as the one that changes it least.
        together = changes[rest] * RANGE >= changes[rest[0]]
        leaves, rest = rest[together], rest[~together]
        shares = np.min(changes[leaves]) / changes[leaves]
        groups.append(Group(leaves, scales[leaves] * shares, False))
    # A single leaf is checked by itself as well.
    return [group for group in groups if len(group.leaves) > 1]


def _draw(problem: Problem, group: Group, count: int, generator) -> list[list[np.ndarray]]:
    """Return `count` random vectors in each leaf of a group, of signs and of normal numbers."""
    sizes = [problem.leaves[j].size for j in group.leaves]

    def draw(i, size):
        # As for a single leaf, signs show any error of one element, normal numbers those of many.
        return (
            generator.standard_normal(size, np.float32) if i % 2 else generator.choice(SIGNS, size)
        )

    return [[draw(i, size) for size in sizes] for i in range(count)]


def _whole(problem: Problem, group: Group, vectors: list[np.ndarray]) -> np.ndarray:
    whole = np.zeros(len(problem.point), np.float32)
    for j, step, vector in zip(group.leaves, group.steps, vectors, strict=True):
        whole[problem.leaves[j].part] = np.float32(step) * vector
    return whole


def _derivatives(problem: Problem, directions: list[Direction], zero: bool) -> Derivative:
    """Measure the first direction through a group with many steps, the others with a few."""
    largest = np.full(len(directions), LARGEST_STEP)
    if zero:
        # A function that does not change at all does not over the largest steps either.
        return measure(problem, directions, largest, ZERO_STEPS)
    first, *rest = directions
    pilot = measure(problem, [first], largest[:1], PILOT_STEPS)
    noise = 0.0
    if np.isfinite(pilot.error[0]):
        largest = np.minimum(largest, pilot.step[0] * RATIO)
        noise = pilot.noise[0]
    others = measure(problem, rest, largest[1:], STEPS, noise)
    return Derivative(*map(np.concatenate, zip(pilot, others, strict=True)))


def _of_leaf(problem, autodiff, directions, step, measured: _Measured) -> Joint:
    """Return the derivatives of a leaf if the whole difference from autodiff is due to it."""
    numeric, expected, by_mode = measured
    slope = slopes(problem, autodiff, directions, "rev")
    value = slope + (numeric.value - expected) / step
    numeric = numeric._replace(
        value=value,
        left=value,
        right=value,
        error=numeric.error / step,
        reach=numeric.reach / step,
    )
    by_mode = {mode: slope + (other - expected) / step for mode, other in by_mode.items()}
    return Joint(directions, numeric, by_mode)


def _is_right(problem: Problem, tolerance: Tolerance, zero: bool, result: Joint) -> bool:
    """Whether all directions agree so closely that no element of the leaf is wrong."""
    j, numeric = result.directions[0].leaf, result.derivative
    size = rms(numeric.value)
    if zero:
        enough = NOTHING * problem.total / problem.scales[j]
    else:
        # The derivative along signs is as large as the norm; an error shows from two bars on.
        share = min(VISIBLE, ELEMENT / np.sqrt(problem.leaves[j].size)) / 2
        enough = max(share, tolerance.direction) * size
    slack = numeric.error + tolerance.direction * size
    with np.errstate(invalid="ignore"):
        near = [np.abs(slope - numeric.value) <= slack for slope in result.slopes.values()]
    clear = ~numeric.kink & (numeric.sides == 2) & (numeric.error <= enough)
    return bool(np.all(clear) and np.all(near))
