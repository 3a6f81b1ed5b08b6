"""The fourth stage of a check: autodiff against numeric derivatives, number by number."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from jaxgrad._numerics import norm, rms
from jaxgrad.checking._arguments import LeafInfo
from jaxgrad.checking._autodiff import Autodiff
from jaxgrad.checking._directions import Direction, leaf_indices
from jaxgrad.checking._numeric import Numeric
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._report import Leaf
from jaxgrad.checking._step_sizes import Derivative
from jaxgrad.checking._tolerance import Tolerance
from jaxgrad.checking._verdict import ORDER, judge

TOO_WIDE = 0.05
"""An error bar of more than this share of the gradient decides nothing."""


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


def compare(
    problem: Problem, autodiff: Autodiff, numeric: Numeric, tolerance: Tolerance
) -> list[Comparison]:
    """Compare both derivatives of each leaf, in each mode."""
    comparisons = []
    leaves = leaf_indices(numeric.directions)
    for mode, slopes in numeric.slopes.items():
        for j, info in enumerate(problem.leaves):
            rows = np.flatnonzero(leaves == j)
            slope, part = slopes[rows], numeric.derivative.select(rows)
            allowed = tolerance.of(j, part)
            # No error bar is small beside a gradient that is nothing but rounding.
            least = 0.0
            if _is_rounding(autodiff, info):
                least = 1e-3 * problem.total / problem.scales[j]
            size = np.maximum(np.abs(part.value), max(rms(part.value), least))
            verdicts = judge(slope, part, allowed, TOO_WIDE * size)
            complete = bool(tolerance.complete[j])
            worst, row = _worst_and_row(info, slope, part, allowed, verdicts, complete)
            row = dataclasses.replace(row, mode=mode, order=problem.order)
            directions = [numeric.directions[i] for i in rows]
            comparisons.append(
                Comparison(j, directions, slope, part, allowed, verdicts, worst, row)
            )
    return comparisons


def _is_rounding(autodiff: Autodiff, info: LeafInfo) -> bool:
    """Whether the gradient of a leaf is zero, or another one if it is rounded otherwise."""
    if autodiff.gradient is None:
        return False
    part = slice(info.start, info.stop)
    gradient = autodiff.gradient[part]
    others = [g for g in (autodiff.original, autodiff.mapped) if g is not None]
    with np.errstate(invalid="ignore", over="ignore"):
        return max(norm(other[part] - gradient) for other in others) >= 0.1 * norm(gradient)


def _worst_and_row(info, autodiff, numeric, allowed, verdicts, complete) -> tuple[int, Leaf]:
    """Return the index of the number that a leaf's verdict rests on, and the leaf's row."""
    difference = differences(autodiff, numeric.value)
    excess = difference - numeric.error - allowed
    worst = int(np.argmax(np.where(np.isnan(excess), -np.inf, excess)))
    if complete:
        worst = int(np.argmax(np.where(verdicts == verdicts.min(), difference, -1.0)))
    # An error is seen if it exceeds the bar wherever in the bar the truth lies.
    visible = (2 * numeric.error + allowed)[np.isfinite(numeric.error)]
    visible = float(np.max(visible)) if len(visible) else math.inf
    row = Leaf(
        path=info.path,
        verdict=ORDER[int(verdicts.min())],
        shape=info.shape,
        relative_error=relative(autodiff, numeric.value),
        error_bar=float(numeric.error[worst]),
        minimum_detectable=visible if complete else visible or math.inf,
        autodiff=float(autodiff[worst]),
        numeric=float(numeric.value[worst]),
        dtype=info.dtype,
    )
    if complete:
        index, *values = element(info, worst, autodiff, numeric.value)
        row = dataclasses.replace(row, worst_index=index, autodiff=values[0], numeric=values[1])
        return worst, row
    # A normal direction shows an error e as a normal number of size |e|, below 0.1 |e| with
    # probability erf(0.1 / sqrt(2)); half of the directions are normal.
    missed = math.erf(0.1 / math.sqrt(2)) ** (len(autodiff) // 2)
    return worst, dataclasses.replace(row, coverage="directions", miss_probability=missed)


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


def element(
    info: LeafInfo, position: int, autodiff: np.ndarray, numeric: np.ndarray
) -> tuple[tuple[int, ...], float | complex, float | complex]:
    """Return the index of a coordinate and both derivatives of its element, as `jax.grad` does."""
    index = tuple(int(i) for i in np.unravel_index(position, info.axes))
    if not info.complex:
        return index, float(autodiff[position]), float(numeric[position])
    half = info.size // 2
    position %= half
    first, second = (complex(a[position], -a[position + half]) for a in (autodiff, numeric))
    return index[1:], first, second
