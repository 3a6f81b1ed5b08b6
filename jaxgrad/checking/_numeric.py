"""The third stage of a check: numeric derivatives, leaf by leaf.

One direction of random signs through each leaf, its pilot, is measured with many steps from the
size of the leaf down to rounding. It shows the best step and the errors of the function. All other
directions take a few steps around that one. Where these leave a doubt, many steps follow.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgrad.checking._autodiff import Autodiff, slopes
from jaxgrad.checking._directions import SIGNS, Direction, changes, leaf_indices, unit_directions
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._step_sizes import RATIO, Derivative, estimate
from jaxgrad.checking._tolerance import Tolerance

LARGEST_STEP = 0.125
"""The largest step, relative to the size of the leaf."""
FEW_STEPS = 4
MANY_STEPS = 14
REMEASURED = 256
"""At most this many directions of a leaf are measured again with many steps."""


class StepPlan(NamedTuple):
    """Steps for each leaf, from the pilot through it."""

    pilots: list[Direction]  # one for each leaf
    derivative: Derivative  # along the pilots, [L]
    largest: np.ndarray  # the largest of a few steps, [L]
    noise: np.ndarray  # size of the errors of the function, [L]


class Numeric(NamedTuple):
    """Both derivatives along `P` directions, every coordinate of a leaf or random vectors."""

    plan: StepPlan
    directions: list[Direction]
    derivative: Derivative
    slopes: dict[str, np.ndarray]  # by autodiff, for each mode, [P]


def differentiate_numerically(
    problem: Problem,
    autodiff: Autodiff,
    tolerance: Tolerance,
    modes: Sequence[str],
    count: int,
    generator: np.random.Generator,
) -> Numeric:
    """Take numeric derivatives, for large leaves along the pilot and `count - 1` random vectors."""
    plan = plan_steps(problem, generator)
    directions = []
    for j, info in enumerate(problem.leaves):
        if tolerance.complete[j]:
            directions += unit_directions(j, range(info.start, info.stop))
        else:
            pilot = plan.pilots[j]
            vectors = _random_vectors(info.size, count - 1, generator)
            vectors = [vector * np.abs(pilot.values) for vector in vectors]
            directions += [pilot, *(Direction(j, info.start, vector) for vector in vectors)]
    by_mode = {mode: slopes(problem, autodiff, directions, mode) for mode in modes}
    derivative = numeric_derivatives(problem, plan, directions, tolerance, by_mode[modes[0]])
    return Numeric(plan, directions, derivative, by_mode)


def _random_vectors(size: int, count: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield random vectors, normal ones and signs in turn.

    Signs show any error of a single element, but errors of equal size may cancel. Normal numbers
    do not cancel, but may hide an error of a single element.
    """
    for i in range(count):
        signs = generator.choice(SIGNS, size)
        yield signs if i % 2 else generator.standard_normal(size, np.float32)


def plan_steps(problem: Problem, generator: np.random.Generator) -> StepPlan:
    """Measure one direction of random signs through each leaf with many steps."""
    largest = problem.scales * LARGEST_STEP
    pilots = [
        Direction(j, info.start, generator.choice(SIGNS, info.size))
        for j, info in enumerate(problem.leaves)
    ]
    pilot = measure(problem, pilots, largest)
    stuck = np.flatnonzero(pilot.sides < 2)
    if len(stuck):
        # Beside an edge of the domain, a step of the size of the leaf would carry small elements
        # outside, so each element moves by a share of its own size.
        for j in stuck:
            info, values = problem.leaves[j], pilots[j].values
            size = np.abs(problem.point[info.start : info.stop])
            share = np.where(size > 0, size / problem.scales[j], 1.0)
            pilots[j] = pilots[j]._replace(values=values * share.astype(np.float32))
        again = measure(problem, [pilots[j] for j in stuck], largest[stuck])
        pilot = pilot.replace(stuck, again)
    known = np.isfinite(pilot.error)
    # The best step stands second, with a larger one to correct it and two smaller ones.
    largest = np.where(known, np.minimum(pilot.step * RATIO, largest), largest)
    return StepPlan(pilots, pilot, largest, np.where(known, pilot.noise, 0.0))


def numeric_derivatives(
    problem: Problem,
    plan: StepPlan,
    directions: list[Direction],
    tolerance: Tolerance,
    expected: np.ndarray | None = None,
) -> Derivative:
    """Return the numeric derivative along each direction, to a tenth of the tolerance if possible.

    Where derivatives that are `expected`, `[P]`, are far off, the numeric ones are measured again,
    with steps that again do not depend on the expected ones.
    """
    measured = np.array([direction is plan.pilots[direction.leaf] for direction in directions])
    rows = np.flatnonzero(~measured)
    rest = [directions[i] for i in rows]
    leaves = leaf_indices(directions)
    owners = leaves[rows]
    numeric = measure(problem, rest, plan.largest[owners], FEW_STEPS, plan.noise[owners])
    expected = None if expected is None else expected[rows]
    doubtful = _doubtful(owners, numeric, tolerance, expected)
    if len(doubtful):
        before = numeric.select(doubtful)
        again = measure_closely(problem, plan, [rest[i] for i in doubtful])
        better = ~_confirms(again, before) | before.kink | again.kink | (before.sides < 2)
        numeric = numeric.replace(doubtful[better], again.select(better))
    order = np.argsort(np.concatenate([np.flatnonzero(measured), rows]))
    pilots = plan.derivative.select(leaves[measured])
    return Derivative(*(np.concatenate(pair)[order] for pair in zip(pilots, numeric, strict=True)))


def _doubtful(
    leaves: np.ndarray, numeric: Derivative, tolerance: Tolerance, expected: np.ndarray | None
) -> np.ndarray:
    """Return the directions, leaf by leaf and worst first, where a few steps leave a doubt."""
    selected: list[int] = []
    for leaf in np.unique(leaves):
        rows = np.flatnonzero(leaves == leaf)
        part = numeric.select(rows)
        enough = tolerance.of(int(leaf), part)
        doubt = ~(part.error <= 0.1 * enough) | part.kink | (part.sides < 2)
        rank = np.where(np.isfinite(part.error), part.error, np.inf)
        if expected is not None:
            with np.errstate(invalid="ignore"):
                far = ~(np.abs(expected[rows] - part.value) <= part.error + enough)
            doubt, rank = doubt | far, np.where(far, np.inf, rank)
        worst = np.flatnonzero(doubt)
        selected += rows[worst[np.argsort(-rank[worst], kind="stable")][:REMEASURED]].tolist()
    return np.array(selected, int)


def measure(
    problem: Problem,
    directions: Sequence[Direction],
    largest: np.ndarray,
    count: int | None = None,
    noise: Any = 0.0,
) -> Derivative:
    """Return the derivative along each direction from one sequence of steps.

    There are `count` steps, by default as many as the precision allows, from the `largest` on,
    `[P]`. `noise`, a number or `[P]`, is the least error of the function.
    """
    eps, wide = problem.numeric.eps, problem.numeric.wide
    # Where values pass through a narrower type, tiny steps move nothing or only a part of f.
    count = count or (MANY_STEPS if wide and eps < 1e-12 else MANY_STEPS // 2)
    steps = largest[:, None] * RATIO ** -np.arange(count)[None]
    change = changes(problem, directions, np.concatenate([steps, -steps], axis=1))
    steps = _realized(problem, directions, steps)
    rounding = problem.total * np.finfo(np.float64 if wide else np.float32).eps
    return estimate(
        steps,
        # A step that the type of the leaf rounds to zero shows nothing.
        np.where(steps > 0, change[:, :count], np.nan),
        change[:, count:],
        floor=np.maximum(noise, rounding),
        coarsest=100 * eps * problem.total,
        group=leaf_indices(directions),
    )


def measure_closely(problem: Problem, plan: StepPlan, directions: list[Direction]) -> Derivative:
    """Return the derivative along each direction from many steps.

    They start from the size of the leaf, and from that of the coordinate if it is smaller.
    """
    leaves = leaf_indices(directions)
    largest = problem.scales[leaves] * LARGEST_STEP
    # A few sequences can underestimate the noise, so it is bounded by that of the leaf's pilot.
    noise = np.minimum(plan.noise, np.median(plan.noise))[leaves]
    numeric = measure(problem, directions, largest, noise=noise)
    single = [len(direction.values) == 1 for direction in directions]
    size = np.abs(problem.point[[direction.start for direction in directions]]) * single
    small = np.flatnonzero((size > 0) & (size < largest))
    if len(small):
        nearest = [directions[i] for i in small]
        nearer = measure(problem, nearest, size[small] * LARGEST_STEP, noise=noise[small])
        # Steps far larger than the coordinate may agree on a derivative that holds elsewhere.
        better = ~_confirms(nearer, numeric.select(small))
        numeric = numeric.replace(small[better], nearer.select(better))
    return numeric


def _realized(problem: Problem, directions: Sequence[Direction], steps: np.ndarray) -> np.ndarray:
    """Return the steps as the type of the leaf rounds them, for single coordinates."""
    steps = steps.copy()
    leaves = np.array([d.leaf if len(d.values) == 1 else -1 for d in directions])
    starts = np.array([direction.start for direction in directions])
    for j, info in enumerate(problem.leaves):
        rows = np.flatnonzero(leaves == j)
        dtype = np.float64 if problem.numeric.wide else np.dtype(jnp.finfo(info.dtype).dtype)
        x, h = problem.point[starts[rows]].astype(dtype)[:, None], steps[rows].astype(dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            up, down = ((x + step).astype(np.float64) for step in (h, -h))
        steps[rows] = (up - down) / 2
    return steps


def _confirms(again: Derivative, before: Derivative) -> np.ndarray:
    """Whether a second measurement leaves a first, more precise one standing."""
    with np.errstate(invalid="ignore"):
        agree = np.abs(again.value - before.value) <= again.error + before.error
    return (agree & (before.error < again.error)) | ~np.isfinite(again.error)
