"""The fifth stage of a check: where a gradient is wrong, or why it could not be checked.

A leaf that was checked element by element shows its wrong elements at once. A large leaf was
checked along random directions only. `_by_bits` finds the wrong element from a few more: directions
masked by each bit of the index along each axis. An error in one element is seen on one side of
every mask, an error in one row on one side of every mask of the rows.
"""

import dataclasses
import itertools
import math

import numpy as np

from jaxgrad._numerics import rms
from jaxgrad.checking._autodiff import Autodiff, slopes
from jaxgrad.checking._compare import TOO_WIDE, Comparison, differences
from jaxgrad.checking._directions import SIGNS, Direction, unit_directions
from jaxgrad.checking._numeric import FEW_STEPS, Numeric, measure, measure_closely
from jaxgrad.checking._patterns import Location, locate, scaled_by, usual_mistake, wrong_in
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._report import Leaf
from jaxgrad.checking._step_sizes import Derivative
from jaxgrad.checking._tolerance import Tolerance
from jaxgrad.checking._verdict import ORDER, Verdict, judge

BASES = 3
"""Random vectors for each mask."""
PARTS = 16
"""Number of parts into which a range of elements is cut."""


def localize(
    problem: Problem,
    autodiff: Autodiff,
    numeric: Numeric,
    tolerance: Tolerance,
    comparison: Comparison,
    generator: np.random.Generator,
) -> Leaf:
    """Return the row of a leaf with the reason for its verdict.

    The verdict on a large leaf may change: its wrong elements are looked at one by one.
    """
    row, slopes = comparison.row, comparison.autodiff
    complete = bool(tolerance.complete[comparison.position])
    # Along a direction, one element that is not finite hides all others, so they are searched.
    searched = not complete and not np.all(np.isfinite(slopes))
    match row.verdict:
        case Verdict.AGREE:
            return row
        case Verdict.KINK:
            reason = _kink(comparison, complete)
        case Verdict.UNRESOLVED | Verdict.NONFINITE if not searched:
            reason = _why(problem, row.verdict, comparison.numeric, comparison.worst, slopes)
        case _ if complete:
            reason = _mistake(problem.leaves[comparison.position].axes, comparison)
        case _:
            return _search(problem, autodiff, numeric.plan, tolerance, comparison, generator)
    return dataclasses.replace(row, reason=reason)


def _kink(comparison: Comparison, complete: bool) -> str:
    numeric, worst = comparison.numeric, comparison.worst
    if not complete:
        return f"kink along {int(numeric.kink.sum())} of {len(numeric.kink)} directions"
    slopes = f"one-sided slopes {numeric.left[worst]:.4g} and {numeric.right[worst]:.4g}"
    if not numeric.kink[worst]:
        slopes = "within the smallest step that this precision resolves"
    count = int(np.sum(comparison.verdicts == ORDER.index(Verdict.KINK)))
    return f"kink at {count} of {len(numeric.kink)} coordinates, {slopes}"


def _why(problem: Problem, verdict: Verdict, numeric: Derivative, worst: int, slopes) -> str:
    """Explain why a number is not finite or could not be resolved, and what would help."""
    if verdict is Verdict.NONFINITE:
        return f"autodiff is {slopes[worst]:.3g} where the function is finite around"
    if numeric.sides[worst] == 0:
        return "the function is not finite close by; move the point inside the domain"
    if numeric.sides[worst] == 1:
        return "the point is at an edge of the domain, where no slope settles; move it inside"
    if not problem.numeric.wide:
        return (
            "rounding of the arguments' type hides the derivative; let f take float64, or "
            "subtract constants from its value"
        )
    return (
        f"values of f err by {numeric.noise[worst]:.1g}, or it jumps or oscillates here; a tighter "
        "solver, fewer data or another point would help"
    )


def _mistake(axes: tuple[int, ...], comparison: Comparison) -> str:
    """Describe the error of a leaf that was checked at every element."""
    _, _, autodiff, numeric, allowed, verdicts, _, _ = comparison
    # The worst kind of verdict alone: beside wrong elements, others may be unresolved.
    wrong = (verdicts == verdicts.min()).reshape(axes)
    location = locate(wrong, differences(autodiff, numeric.value).reshape(axes))
    reason = ""
    if len(autodiff) == 1 and numeric.value[0] != 0:
        reason = scaled_by(float(autodiff[0] / numeric.value[0]))
    elif not location.alone:
        # A mistake in the whole leaf explains every element, if only roughly.
        slack = numeric.error + 10 * allowed
        reason = usual_mistake(autodiff.reshape(axes), np.ravel, numeric.value, slack)
    return reason or wrong_in(location, axes, int(wrong.sum()))


def _search(problem, autodiff, plan, tolerance, comparison, generator) -> Leaf:
    """Look for the elements behind a large leaf's error, and judge them one by one."""
    j, directions, by_direction, numeric, allowed, _, _, row = comparison
    info, gradient = problem.leaves[j], None
    if row.mode == "rev" and autodiff.gradient is not None:
        gradient = autodiff.gradient[info.start : info.stop]

    def error_along(vectors):
        directions = [Direction(j, info.start, vector) for vector in vectors]
        largest = np.full(len(vectors), plan.largest[j])
        numeric = measure(problem, directions, largest, FEW_STEPS, plan.noise[j])
        error = slopes(problem, autodiff, directions, row.mode) - numeric.value
        return error, numeric.error + tolerance.direction * rms(numeric.value)

    positions, location = _candidates(info, gradient, error_along, generator)
    units = unit_directions(j, [info.start + i for i in positions])
    by_element = measure_closely(problem, plan, units)
    slope = slopes(problem, autodiff, units, row.mode)
    # The derivative along a random direction has the size of the gradient's norm.
    size = rms(numeric.value)
    typical = size / math.sqrt(info.size)
    allowed_here = tolerance.rtol * np.abs(by_element.value) + tolerance.element * typical
    wide = TOO_WIDE * np.maximum(np.abs(by_element.value), typical)
    verdicts = judge(slope, by_element, allowed_here, wide)
    worst = int(np.lexsort((-differences(slope, by_element.value), verdicts))[0])
    verdict, bars, reason = ORDER[int(verdicts[worst])], numeric.error + allowed, ""
    if verdict not in (Verdict.WRONG, Verdict.NONFINITE):
        # Many errors may each be too small to see, and matter together.
        far = differences(by_direction, numeric.value) > bars + tolerance.rtol * size
        if not np.any(far):
            harmless = Verdict.KINK if numeric.kink.any() else Verdict.AGREE
            return dataclasses.replace(row, verdict=harmless)
        verdict = Verdict.WRONG
    if verdict is Verdict.NONFINITE:
        reason = _why(problem, verdict, by_element, worst, slope)
    elif gradient is not None and not location.alone:
        rows = np.stack([direction.values for direction in directions]).astype(np.float64)
        slack = bars + 1e-5 * size
        reason = usual_mistake(
            gradient.reshape(info.axes), lambda g: rows @ g.ravel(), numeric.value, slack
        )
    index = np.unravel_index(positions[worst], info.axes)[len(info.axes) - len(info.shape) :]
    return dataclasses.replace(
        row,
        verdict=verdict,
        reason=reason or wrong_in(location, info.axes, None),
        worst_index=tuple(int(i) for i in index),
        autodiff=float(slope[worst]),
        numeric=float(by_element.value[worst]),
        error_bar=float(by_element.error[worst]),
    )


def _candidates(info, gradient, error_along, generator) -> tuple[list[int], Location]:
    """Return the elements of a large leaf to look at, and where its errors seem to be.

    `error_along` maps vectors over the leaf to the error of autodiff along each, and its error bar.
    """
    if gradient is not None and not np.all(np.isfinite(gradient)):
        bad = ~np.isfinite(gradient)
        location = locate(bad.reshape(info.axes), bad.reshape(info.axes))
        return np.flatnonzero(bad)[:8].tolist(), location
    location = _by_bits(info.axes, error_along, generator)
    positions = [int(np.ravel_multi_index(location.worst, info.axes))]
    if not location.alone:
        # Masks mix up the indices of several wrong elements; a descent ends at one of them.
        positions.append(_by_descent(info.size, error_along, generator))
    return positions, location


def _by_bits(shape: tuple[int, ...], error_along, generator) -> Location:
    """Find the wrong elements by masks for each bit of the index along each axis.

    The `worst` of the location is a candidate that has to be checked.
    """
    base = generator.choice(SIGNS, size=(BASES, *shape))
    masks = []
    for axis, size in enumerate(shape):
        along_axis = [-1 if other == axis else 1 for other in range(len(shape))]
        for bit in range(max(size - 1, 0).bit_length()):
            mask = (np.arange(size) >> bit & 1).astype(np.float32)
            masks.append((axis, bit, mask.reshape(along_axis)))
    masked = [(b * mask).ravel() for _, _, mask in masks for b in base]
    error, bar = error_along([*(b.ravel() for b in base), *masked])
    # The complement of a mask needs no evaluation of its own: derivatives are linear.
    inside, inside_bar = (a[BASES:].reshape(-1, BASES) for a in (error, bar))
    outside, outside_bar = error[:BASES] - inside, bar[:BASES] + inside_bar

    index, single = [0] * len(shape), [size > 1 for size in shape]
    for i, (axis, bit, _) in enumerate(masks):
        # The bit of the wrong index is 1 if the error lies inside the mask.
        index[axis] |= int(np.sum(inside[i] ** 2) > np.sum(outside[i] ** 2)) << bit
        sides = ((np.abs(inside[i]), inside_bar[i]), (np.abs(outside[i]), outside_bar[i]))
        both = all(np.any(size > 2 * bar) for size, bar in sides)
        neither = all(np.all(size <= bar) for size, bar in sides)
        if both or neither:
            single[axis] = False
    index = [min(i, size - 1) for i, size in zip(index, shape, strict=True)]
    axes = tuple(i if only else None for i, only in zip(index, single, strict=True))
    alone = all(only or size == 1 for only, size in zip(single, shape, strict=True))
    return Location(tuple(index), axes, alone)


def _by_descent(size: int, error_along, generator) -> int:
    """Return an element with one of the largest errors, going on into the part with most error."""
    start, stop = 0, size
    while stop - start > 1:
        edges = np.unique(np.linspace(start, stop, PARTS + 1).astype(int))
        vectors = []
        for first, last in itertools.pairwise(edges):
            for _ in range(BASES):
                vector = np.zeros(size, np.float32)
                # Normal numbers instead of signs, under which two equal errors may cancel.
                vector[first:last] = generator.standard_normal(last - first, np.float32)
                vectors.append(vector)
        error = error_along(vectors)[0].reshape(-1, BASES)
        largest = int(np.argmax(np.sum(error**2, axis=1)))
        start, stop = int(edges[largest]), int(edges[largest + 1])
    return start
