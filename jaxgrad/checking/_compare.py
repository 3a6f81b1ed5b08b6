"""The fourth stage of a check: autodiff against numeric derivatives, number by number."""

import math
from typing import NamedTuple

import numpy as np

from jaxgrad._numerics import norm, rms
from jaxgrad.checking._arguments import LeafInfo
from jaxgrad.checking._autodiff import Autodiff, is_rounding
from jaxgrad.checking._directions import Direction, leaf_indices
from jaxgrad.checking._numeric import TOO_WIDE, Numeric
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._report import ORDER, Leaf, Verdict
from jaxgrad.checking._step_sizes import Derivative


class Comparison(NamedTuple):
    """Both derivatives of one leaf along `P` directions, and its row, still without a reason."""

    position: int  # of the leaf
    directions: list[Direction]
    autodiff: np.ndarray
    numeric: Derivative
    allowed: np.ndarray  # what may separate the two besides the error bar, [P]
    verdicts: np.ndarray  # positions in `ORDER`, [P]
    worst: int  # the number that the verdict rests on
    row: Leaf


def compare(problem: Problem, autodiff: Autodiff, numeric: Numeric) -> list[Comparison]:
    """Compare both derivatives of each leaf, in each mode."""
    comparisons, tolerance = [], numeric.tolerance
    leaves = leaf_indices(numeric.directions)
    for mode, slopes in numeric.slopes.items():
        for j, info in enumerate(problem.leaves):
            rows = np.flatnonzero(leaves == j)
            directions = [numeric.directions[i] for i in rows]
            slope, part = slopes[rows], numeric.derivative.select(rows)
            allowed = tolerance.of(j, part)
            # No error bar is small beside a gradient that is nothing but rounding.
            rounding = is_rounding(autodiff, info, slope)
            least = 1e-3 * problem.total / problem.scales[j] if rounding else 0.0
            size = np.maximum(np.abs(part.value), max(rms(part.value), least))
            # A slope of exactly zero is right if another one would have shown over a large step.
            size = np.where((slope == 0) & (part.reach > 0), part.reach, size)
            verdicts = judge(slope, part, allowed, TOO_WIDE * size, problem.partial)
            if numeric.lost is not None:
                # The rule is right; what is left of the gradient is rounding.
                verdicts = np.where(numeric.lost[rows], ORDER.index(Verdict.UNRESOLVED), verdicts)
            numbers = (slope, part, allowed, verdicts)
            complete = bool(tolerance.complete[j])
            worst, row = _worst_and_row(info, *numbers, complete, mode=mode, order=problem.order)
            comparisons.append(Comparison(j, directions, *numbers, worst, row))
    return comparisons


def judge(autodiff: np.ndarray, numeric: Derivative, allowed, wide, partial=False) -> np.ndarray:
    """Return the verdict on each number, as its position in `ORDER`, `[P]`.

    Besides the error bar a difference is `allowed`; an error bar from `wide` on decides nothing,
    nor does a difference of one to two error bars.
    If the function is finite only in a part of its outputs (`partial`), so may be its derivative.
    """
    with np.errstate(invalid="ignore"):
        slack = numeric.error + allowed
        far = np.abs(autodiff - numeric.value) > slack
        # An error bar is an estimate too, so a mistake must exceed it clearly.
        clear = np.abs(autodiff - numeric.value) > slack + numeric.error
        outside = (autodiff < numeric.left - slack) | (autodiff > numeric.right + slack)
    known = np.isfinite(numeric.error)
    # At an edge of the domain an infinite slope may be right, but nobody can use it.
    finite = (numeric.sides > 0) & (not partial)
    verdicts = np.full(autodiff.shape, ORDER.index(Verdict.AGREE))
    # Each line overrules those before it.
    for verdict, where in (
        (Verdict.UNRESOLVED, ~(numeric.error <= wide)),
        (Verdict.KINK, numeric.kink),
        (Verdict.UNRESOLVED, far & ~clear & ~numeric.kink),
        (Verdict.WRONG, np.where(numeric.kink, outside, clear) & known),
        (Verdict.UNRESOLVED, ~np.isfinite(autodiff)),
        (Verdict.NONFINITE, ~np.isfinite(autodiff) & finite),
    ):
        verdicts = np.where(where, ORDER.index(verdict), verdicts)
    return verdicts


def _worst_and_row(info, autodiff, numeric, allowed, verdicts, complete, **fields):
    """Return the index of the number that a leaf's verdict rests on, and the leaf's row."""
    difference = differences(autodiff, numeric.value)
    # An error is seen if it exceeds the bar wherever in the bar the truth lies.
    visible = (2 * numeric.error + allowed)[np.isfinite(numeric.error)]
    visible = float(np.max(visible)) if len(visible) else math.inf
    if complete:
        worst = int(np.argmax(np.where(verdicts == verdicts.min(), difference, -1.0)))
        index, *values = element(info, worst, autodiff, numeric.value)
    else:
        excess = difference - numeric.error - allowed
        worst = int(np.argmax(np.where(np.isnan(excess), -np.inf, excess)))
        index, values = None, [float(autodiff[worst]), float(numeric.value[worst])]
        visible = visible or math.inf
        # A normal direction shows an error e as a normal number of size |e|, below 0.1 |e| with
        # probability erf(0.1 / sqrt(2)); half of the directions are normal.
        missed = math.erf(0.1 / math.sqrt(2)) ** (len(autodiff) // 2)
        fields |= {"coverage": "directions", "miss_probability": missed}
    return worst, Leaf(
        path=info.path,
        verdict=ORDER[int(verdicts.min())],
        shape=info.shape,
        relative_error=relative(autodiff, numeric.value),
        error_bar=float(numeric.error[worst]),
        minimum_detectable=visible,
        worst_index=index,
        autodiff=values[0],
        numeric=values[1],
        dtype=info.dtype,
        **fields,
    )


def relative(autodiff: np.ndarray, numeric: np.ndarray) -> float:
    """Return `|autodiff - numeric| / |numeric|` where the numeric derivative is known."""
    known = np.isfinite(numeric)
    with np.errstate(invalid="ignore"):
        difference = norm((autodiff - numeric)[known])
    size = norm(numeric[known])
    if size == 0:
        return 0.0 if difference == 0 else math.inf
    return difference / size


def differences(autodiff: np.ndarray, numeric: np.ndarray) -> np.ndarray:
    """Return the absolute differences; infinite where one of the two is not finite."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(autodiff - numeric)
    return np.where(np.isfinite(difference), difference, np.inf)


def element(info: LeafInfo, position: int, autodiff: np.ndarray, numeric: np.ndarray):
    """Return the index of a coordinate and both derivatives of its element, as `jax.grad` does."""
    index = tuple(int(i) for i in np.unravel_index(position, info.axes))
    if not info.complex:
        return index, float(autodiff[position]), float(numeric[position])
    half = info.size // 2
    position %= half
    first, second = (complex(a[position], -a[position + half]) for a in (autodiff, numeric))
    return index[1:], first, second
