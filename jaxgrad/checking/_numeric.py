"""The third stage of a check: numeric derivatives, leaf by leaf.

One direction of random signs through each leaf, its pilot, is measured with many steps from the
size of the leaf down to rounding. It shows the best step and the errors of the function. All other
directions take a few steps around that one. Where these leave a doubt, many steps follow.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgrad._numerics import rms
from jaxgrad.checking._autodiff import Autodiff, slopes
from jaxgrad.checking._directions import SIGNS, Direction, evaluate, leaf_indices, unit_directions
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._step_sizes import LARGEST_STEP, RATIO, Derivative, estimate

SOLVER_RTOL = 1e-3  # relative error that may pass where loops stop at a tolerance
FEW_COORDINATES = 16  # A leaf of at most this many is always checked at each of them.
FEW_STEPS = 4
MANY_STEPS = 14
TOO_WIDE = 0.05  # An error bar of more than this share of the gradient decides nothing.
REMEASURED = 256  # At most this many directions of a leaf are measured again with many steps.


class Tolerance(NamedTuple):
    """Differences that are not taken for errors."""

    rtol: float  # relative error of an element, or of a whole leaf
    element: float  # rounding of an element, relative to the root mean square of its leaf
    direction: float  # the same for the derivative along a direction
    complete: np.ndarray  # whether each leaf is checked at every element, [L]
    raised: bool = False  # whether `rtol` is larger than the user asked for

    def of(self, leaf: int, numeric: Derivative) -> np.ndarray:
        """Return the tolerance for each derivative of a leaf, `[P]`."""
        size = rms(numeric.value)
        if self.complete[leaf]:
            return self.rtol * np.abs(numeric.value) + self.element * size
        # Along a direction one element counts little, so nothing passes but rounding.
        return np.full(numeric.value.shape, self.direction * size)


class StepPlan(NamedTuple):
    """Steps for each leaf, from the pilot through it."""

    pilots: list[Direction]  # one for each leaf
    derivative: Derivative  # along the pilots, [L]
    largest: np.ndarray  # the largest of a few steps, [L]
    noise: np.ndarray  # size of the errors of the function, [L]; NaN if it was not measured


class Joint(NamedTuple):
    """Both derivatives along random vectors in leaves that were measured together."""

    directions: list[Direction]
    derivative: Derivative
    slopes: dict[str, np.ndarray]  # by autodiff, for each mode


class Numeric(NamedTuple):
    """Both derivatives along `P` directions, every coordinate of a leaf or random vectors."""

    tolerance: Tolerance
    plan: StepPlan
    directions: list[Direction]
    derivative: Derivative
    slopes: dict[str, np.ndarray]  # by autodiff, for each mode, [P]
    # Whether autodiff is right without rounding, but not with it, [P].
    lost: np.ndarray | None = None


def choose_tolerance(problem: Problem, eps: float, rtol: float, exhaustive: int) -> Tolerance:
    """Return the tolerance of a check, where `eps` is the coarsest in the backward pass."""
    # The tolerance of a solver is an error of the function and of its derivative, not a mistake.
    raised = max(rtol, SOLVER_RTOL) if problem.facts.iterates else rtol
    # A backward pass in a narrow type adds many roundings, hence the larger multiple.
    rounding = 300 * eps if eps < 1e-4 else 30 * eps
    element = max(raised / 10, 1e-5, rounding)
    sizes = np.array([leaf.size for leaf in problem.leaves])
    complete = (sizes <= FEW_COORDINATES) | (len(problem.point) <= exhaustive)
    return Tolerance(raised, element, 30 * eps if eps > 1e-12 else 1e-11, complete, raised > rtol)


def differentiate_numerically(
    problem: Problem,
    autodiff: Autodiff,
    tolerance: Tolerance,
    modes,
    count: int,
    generator,
    joint: Joint | None = None,
) -> Numeric:
    """Take numeric derivatives, for large leaves along the pilot and `count - 1` random vectors.

    Leaves of `joint` are not measured again.
    """
    rest = np.arange(len(problem.leaves))
    if joint is not None:
        measured = np.isin(rest, leaf_indices(joint.directions))
        tolerance = tolerance._replace(complete=tolerance.complete & ~measured)
        rest = rest[~measured]
        if not len(rest):
            nothing = np.empty(0)
            plan = StepPlan([], joint.derivative.select(rest), nothing, nothing)
            return Numeric(tolerance, plan, *joint)
    plan = plan_steps(problem, generator, rest)
    directions = []
    for j in rest.tolist():
        info, pilot = problem.leaves[j], plan.pilots[j]
        if tolerance.complete[j]:
            directions += unit_directions(j, range(info.start, info.stop))
            continue
        directions.append(pilot)
        for i in range(count - 1):
            # Signs show any error of a single element, but errors of equal size may cancel. Normal
            # numbers do not cancel, but may hide an error of a single element.
            signs = generator.choice(SIGNS, info.size)
            vector = signs if i % 2 else generator.standard_normal(info.size, np.float32)
            directions.append(Direction(j, info.start, vector * np.abs(pilot.values)))
    by_mode = {mode: slopes(problem, autodiff, directions, mode) for mode in modes}
    derivative = numeric_derivatives(problem, plan, directions, tolerance, by_mode[modes[0]])
    if joint is not None:
        directions = [*joint.directions, *directions]
        derivative = Derivative(
            *map(np.concatenate, zip(joint.derivative, derivative, strict=True))
        )
        by_mode = {m: np.concatenate([joint.slopes[m], s]) for m, s in by_mode.items()}
    return Numeric(tolerance, plan, directions, derivative, by_mode)


def plan_steps(problem: Problem, generator: np.random.Generator, leaves: Any = None) -> StepPlan:
    """Measure one direction of random signs through each leaf, or some, with many steps."""
    largest = problem.scales * LARGEST_STEP
    pilots = [
        Direction(j, info.start, generator.choice(SIGNS, info.size))
        for j, info in enumerate(problem.leaves)
    ]
    leaves = np.arange(len(pilots)) if leaves is None else leaves
    measured = measure(problem, [pilots[j] for j in leaves], largest[leaves])
    stuck = np.flatnonzero(measured.sides < 2)
    if len(stuck):
        # Beside an edge of the domain, a step of the size of the leaf would carry small elements
        # outside, so each element moves by a share of its own size.
        for j in leaves[stuck]:
            size = np.abs(problem.point[problem.leaves[j].part])
            share = np.where(size > 0, size / problem.scales[j], 1.0)
            values = pilots[j].values * share.astype(np.float32)
            pilots[j] = pilots[j]._replace(values=values)
        again = measure(problem, [pilots[j] for j in leaves[stuck]], largest[leaves[stuck]])
        measured = measured.replace(stuck, again)
    # Entries of leaves that were not measured mean nothing.
    rows = np.zeros(len(pilots), int)
    rows[leaves] = np.arange(len(leaves))
    pilot = measured.select(rows)
    known = np.isfinite(pilot.error)
    # The best step stands second, with a larger one to correct it and two smaller ones.
    largest = np.where(known, np.minimum(pilot.step * RATIO, largest), largest)
    noise = np.full(len(pilots), np.nan)
    noise[leaves] = np.where(known, pilot.noise, 0.0)[leaves]
    return StepPlan(pilots, pilot, largest, noise)


def numeric_derivatives(
    problem: Problem, plan: StepPlan, directions: list[Direction], tolerance, expected=None
) -> Derivative:
    """Return the numeric derivative along each direction, to a tenth of the tolerance if possible.

    Where derivatives that are `expected`, `[P]`, are far off, the numeric ones are measured again,
    with steps that again do not depend on the expected ones.
    """
    leaves = leaf_indices(directions)
    rows = np.flatnonzero([d is not plan.pilots[d.leaf] for d in directions])
    rest, owners = [directions[i] for i in rows], leaves[rows]
    numeric = measure(problem, rest, plan.largest[owners], FEW_STEPS, plan.noise[owners])
    expected = None if expected is None else expected[rows]
    doubtful = _doubtful(owners, numeric, tolerance, expected)
    if len(doubtful):
        before = numeric.select(doubtful)
        again = measure_closely(problem, plan, [rest[i] for i in doubtful])
        unclear = before.kink | again.kink | (before.sides < 2)
        numeric = _improved(numeric, doubtful, again, unclear)
    return plan.derivative.select(leaves).replace(rows, numeric)


def _doubtful(leaves, numeric: Derivative, tolerance: Tolerance, expected) -> np.ndarray:
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
    problem: Problem, directions: Sequence[Direction], largest, count=0, noise: Any = 0.0
) -> Derivative:
    """Return the derivative along each direction from one sequence of steps.

    There are `count` steps, by default as many as the precision allows, from the `largest` on,
    `[P]`. `noise` is the least error of the function.
    """
    eps, wide = problem.numeric.eps, problem.numeric.wide
    # Where values pass through a narrower type, tiny steps move nothing or only a part of f.
    count = count or (MANY_STEPS if wide and eps < 1e-12 else MANY_STEPS // 2)
    steps = largest[:, None] * RATIO ** -np.arange(count)[None]
    change = evaluate(problem, "changes", directions, np.concatenate([steps, -steps], axis=1))
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
        rounding=float(rounding),
    )


def measure_closely(problem: Problem, plan: StepPlan, directions: list[Direction]) -> Derivative:
    """Return the derivative from many steps, from the size of the leaf or of the coordinate on."""
    leaves = leaf_indices(directions)
    largest = problem.scales[leaves] * LARGEST_STEP
    # A few sequences can underestimate the noise, so it is bounded by that of the leaf's pilot.
    noise = np.minimum(plan.noise, np.nanmedian(plan.noise))[leaves]
    numeric = measure(problem, directions, largest, noise=noise)
    single = [len(direction.values) == 1 for direction in directions]
    size = np.abs(problem.point[[direction.start for direction in directions]]) * single
    small = np.flatnonzero((size > 0) & (size < largest))
    if len(small):
        nearest = [directions[i] for i in small]
        nearer = measure(problem, nearest, size[small] * LARGEST_STEP, noise=noise[small])
        # Steps far larger than the coordinate may agree on a derivative that holds elsewhere.
        numeric = _improved(numeric, small, nearer)
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


def _improved(numeric: Derivative, rows: np.ndarray, again: Derivative, unclear: Any = False):
    """Replace `rows` by a second measurement, unless it confirms a more precise first one."""
    before = numeric.select(rows)
    with np.errstate(invalid="ignore"):
        agree = np.abs(again.value - before.value) <= again.error + before.error
    confirmed = (agree & (before.error < again.error)) | ~np.isfinite(again.error)
    better = ~confirmed | unclear
    return numeric.replace(rows[better], again.select(better))
