"""The fifth stage of a check: where a gradient is wrong, or why it could not be checked.

A leaf that was checked element by element shows its wrong elements at once. A large leaf was
checked along random directions only. `_by_bits` finds the wrong element from a few more: directions
masked by each bit of the index along each axis. An error in one element is seen on one side of
every mask, an error in one row on one side of every mask of the rows.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxgrad._numerics import rms
from jaxgrad.checking._autodiff import Autodiff, slopes
from jaxgrad.checking._compare import Comparison, differences, judge
from jaxgrad.checking._directions import SIGNS, Direction, leaf_indices, unit_directions
from jaxgrad.checking._numeric import FEW_STEPS, TOO_WIDE, Numeric, measure, measure_closely
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._report import ORDER, Leaf, Verdict
from jaxgrad.checking._step_sizes import Derivative

BASES = 3  # random vectors for each mask
PARTS = 16  # Ranges of elements are cut into so many.


class Location(NamedTuple):
    """The place of an error within a leaf."""

    worst: tuple[int, ...]  # index of the worst element
    axes: tuple[int | None, ...]  # for each axis the only index with errors
    alone: bool  # whether the error is in that element alone


def localize(
    problem: Problem, autodiff: Autodiff, numeric: Numeric, comparison: Comparison, generator
) -> Leaf:
    """Return the row of a leaf with a reason; the verdict on a large one may change."""
    position, _, slopes, part, _, verdicts, worst, row = comparison
    complete = bool(numeric.tolerance.complete[position])
    # Along a direction, one element that is not finite hides all others, so they are searched.
    searched = not complete and not np.all(np.isfinite(slopes))
    match row.verdict:
        case Verdict.AGREE:
            return row
        case Verdict.KINK if not complete:
            reason = f"kink along {int(part.kink.sum())} of {len(part.kink)} directions"
        case Verdict.KINK:
            count = int(np.sum(verdicts == ORDER.index(Verdict.KINK)))
            sides = f"one-sided slopes {part.left[worst]:.4g} and {part.right[worst]:.4g}"
            if not part.kink[worst]:
                sides = "within the smallest step that this precision resolves"
            reason = f"kink at {count} of {len(part.kink)} coordinates, {sides}"
        case Verdict.UNRESOLVED if _is_lost(numeric, comparison):
            true = f"in arbitrary precision it is {part.value[worst]:.4g}, and so is autodiff"
            reason = f"rounding loses the gradient: {true}"
        case Verdict.UNRESOLVED | Verdict.NONFINITE if not searched:
            reason = _why(problem, row.verdict, part, worst, slopes)
        case _ if complete:
            reason = _mistake(problem.leaves[position].axes, comparison)
        case _:
            return _search(problem, autodiff, numeric, comparison, generator)
    return dataclasses.replace(row, reason=reason)


def _is_lost(numeric: Numeric, comparison: Comparison) -> bool:
    """Whether the number that the verdict rests on would be right without rounding."""
    rows = np.flatnonzero(leaf_indices(numeric.directions) == comparison.position)
    return numeric.lost is not None and bool(numeric.lost[rows[comparison.worst]])


def _why(problem: Problem, verdict: Verdict, numeric: Derivative, worst: int, slopes) -> str:
    """Explain why a number is not finite or could not be resolved, and what would help."""
    if verdict is Verdict.NONFINITE:
        where = "around" if numeric.sides[worst] == 2 else "here and on one side"
        return f"autodiff is {slopes[worst]:.3g} where the function is finite {where}"
    if problem.partial and not np.isfinite(slopes[worst]):
        return "an output of f is not finite here, and neither is autodiff; move the point"
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
    autodiff, numeric, verdicts = comparison.autodiff, comparison.numeric, comparison.verdicts
    # The worst kind of verdict alone: beside wrong elements, others may be unresolved.
    wrong = (verdicts == verdicts.min()).reshape(axes)
    location = _locate(wrong, differences(autodiff, numeric.value).reshape(axes))
    reason = ""
    if len(autodiff) == 1 and numeric.value[0] != 0:
        reason = _scaled_by(float(autodiff[0] / numeric.value[0]))
    elif not location.alone:
        # A mistake in the whole leaf explains every element, if only roughly.
        slack = numeric.error + 10 * comparison.allowed
        reason = _usual_mistake(autodiff.reshape(axes), np.ravel, numeric.value, slack)
    return reason or _wrong_in(location, axes, int(wrong.sum()))


def _search(problem, autodiff, measured, comparison, generator) -> Leaf:
    """Look for the elements behind a large leaf's error, and judge them one by one."""
    plan, tolerance = measured.plan, measured.tolerance
    j, directions, by_direction, numeric, allowed, _, _, row = comparison
    info, gradient = problem.leaves[j], None
    if row.mode == "rev" and autodiff.gradient is not None:
        gradient = autodiff.gradient[info.part]

    def error_along(vectors):
        """The error of autodiff along vectors over the leaf, and its error bar."""
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
        shaped, slack = gradient.reshape(info.axes), bars + 1e-5 * size
        reason = _usual_mistake(shaped, lambda g: rows @ g.ravel(), numeric.value, slack)
    index = np.unravel_index(positions[worst], info.axes)[len(info.axes) - len(info.shape) :]
    return dataclasses.replace(
        row,
        verdict=verdict,
        reason=reason or _wrong_in(location, info.axes, None),
        worst_index=tuple(int(i) for i in index),
        autodiff=float(slope[worst]),
        numeric=float(by_element.value[worst]),
        error_bar=float(by_element.error[worst]),
    )


def _candidates(info, gradient, error_along, generator) -> tuple[list[int], Location]:
    """Return the elements of a large leaf to look at, and where its errors seem to be."""
    if gradient is not None and not np.all(np.isfinite(gradient)):
        bad = ~np.isfinite(gradient)
        location = _locate(bad.reshape(info.axes), bad.reshape(info.axes))
        return np.flatnonzero(bad)[:8].tolist(), location
    location = _by_bits(info.axes, error_along, generator)
    positions = [int(np.ravel_multi_index(location.worst, info.axes))]
    if not location.alone:
        # Masks mix up the indices of several wrong elements; a descent ends at one of them.
        positions.append(_by_descent(info.size, error_along, generator))
    return positions, location


def _by_bits(shape: tuple[int, ...], error_along, generator) -> Location:
    """Find the wrong elements by masks for each bit of the index; `worst` has to be checked."""
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


def _usual_mistake(gradient: np.ndarray, project: Callable, numeric: np.ndarray, slack) -> str:
    """Return the usual mistake that explains every numeric derivative, in words, or "".

    The `gradient` by autodiff has the axes of the leaf. `project` maps a gradient to derivatives,
    which may differ from the `numeric` ones by the `slack`, all `[P]`.
    """
    known = np.isfinite(numeric) & np.isfinite(slack)
    if known.sum() < 2:
        return ""

    def explains(predicted):
        return bool(np.all(np.abs(predicted - numeric)[known] <= slack[known]))

    if not np.any(gradient):
        return _scaled_by(0.0)
    projected = project(gradient)
    product = float(np.sum((projected * numeric)[known]))
    square = float(np.sum(np.square(numeric[known])))
    if square > 0 and product != 0:
        # The factor by least squares; one near 1 would explain anything that is nearly right.
        factor = product / square
        if abs(factor - 1) > 1e-4 and explains(projected / factor):
            return _scaled_by(factor)
    for words, other in _rearrangements(gradient):
        for sign, with_sign in ((1, ""), (-1, " and of the opposite sign")):
            if not np.array_equal(other, gradient) and explains(sign * project(other)):
                return f"autodiff is {words}{with_sign}"
    return ""


def _scaled_by(factor: float) -> str:
    """Describe a gradient that is `factor` times the right one."""
    if factor == 0:
        return "autodiff is zero"
    if abs(factor + 1) < 1e-3:
        return "autodiff is of the opposite sign"
    return f"autodiff is {factor:.4g} times the numeric one"


def _rearrangements(gradient: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a mistake in words and the right gradient if that mistake made it `gradient`."""
    shape = gradient.shape
    if gradient.ndim == 2 and min(shape) > 1:
        words = "transposed" if shape[0] == shape[1] else "transposed, then reshaped"
        yield words, gradient.reshape(shape[::-1]).T
    for axis, size in enumerate(shape):
        if size > 1:
            along = f" along axis {axis}" if len(shape) > 1 else ""
            yield f"reversed{along}", np.flip(gradient, axis)
            for shift in (1, -1) if size > 2 else (1,):
                yield f"shifted by one{along}", np.roll(gradient, shift, axis)


def _locate(wrong: np.ndarray, error: np.ndarray) -> Location:
    """Return the place of the errors of `wrong` elements; both have the axes of the leaf."""
    worst = np.unravel_index(int(np.argmax(np.where(wrong, np.abs(error), -1.0))), wrong.shape)
    axes = []
    for axis, size in enumerate(wrong.shape):
        others = tuple(i for i in range(wrong.ndim) if i != axis)
        indices = np.flatnonzero(wrong.any(axis=others))
        axes.append(int(indices[0]) if len(indices) == 1 and size > 1 else None)
    return Location(tuple(int(i) for i in worst), tuple(axes), int(wrong.sum()) == 1)


def _wrong_in(location: Location, shape: tuple[int, ...], count: int | None) -> str:
    """Describe a location: an element, a row, a column, or `count` elements of the leaf."""
    if location.alone:
        return "wrong at one element"
    single = [(axis, index) for axis, index in enumerate(location.axes) if index is not None]
    if single and len(single) < len(shape):
        if len(shape) == 2:
            axis, index = single[0]
            return f"wrong at {'row' if axis == 0 else 'column'} {index}"
        indices = ", ".join(":" if index is None else str(index) for index in location.axes)
        return f"wrong at slice [{indices}]"
    if count is None:
        return "wrong at many elements"
    size = int(np.prod(shape))
    return "wrong at every element" if count == size else f"wrong at {count} of {size} elements"
