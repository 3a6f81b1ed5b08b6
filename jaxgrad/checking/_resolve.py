"""Numeric derivatives in arbitrary precision, where float64 leaves a doubt.

Where a function cancels or saturates, its values in float64 do not show its derivative: differences
are rounding, or zero. If the function is small and its operations are known, the doubtful
derivatives are taken in arbitrary precision instead.
"""

import importlib.util
import math

import numpy as np

from jaxgrad.checking._arbitrary_scalars import UnknownError
from jaxgrad.checking._autodiff import Autodiff
from jaxgrad.checking._compare import Comparison, compare
from jaxgrad.checking._directions import leaf_indices
from jaxgrad.checking._exact_derivatives import (
    ExactFunction,
    budget,
    exact_function,
    exact_gradient,
    exact_slopes,
    operations_of,
)
from jaxgrad.checking._numeric import TOO_WIDE, Numeric
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._report import ORDER, Verdict

DIGITS = 25  # more than any type of JAX shows
# One evaluation, and all of them, take at most this many operations on numbers.
ONE, ALL = 20_000, 400_000
# The same where nothing contradicts autodiff, as with unused arguments.
ONE_UNSEEN, ROWS_UNSEEN = 2_000, 4
MOST_ROWS = 32
EPS64 = float(np.finfo(np.float64).eps)
LARGEST = 4096  # coordinates of functions that are looked at
DOUBTFUL = (ORDER.index(Verdict.WRONG), ORDER.index(Verdict.UNRESOLVED))


def resolve(problem: Problem, autodiff: Autodiff, numeric: Numeric) -> Numeric:
    """Return `numeric` with doubtful derivatives in arbitrary precision, where they are known.

    A derivative is doubtful if it says that autodiff is wrong, or if it decides nothing. So is a
    zero by autodiff that no difference could have contradicted.
    """
    rows, unseen = _doubtful(numeric, compare(problem, autodiff, numeric))
    agreed = not len(rows)
    rows, one, most = (unseen, ONE_UNSEEN, ROWS_UNSEEN) if agreed else (rows, ONE, MOST_ROWS)
    small = problem.facts.fingerprint and len(problem.point) <= LARGEST
    # A function that rounds to a narrower type on purpose is another one without rounding.
    same = problem.numeric.eps <= EPS64
    # mpmath is optional.
    if not (len(rows) and small and same and importlib.util.find_spec("mpmath")):
        return numeric
    checked = problem.checked
    try:
        exact = exact_function(problem, checked.moved, checked.fixed, wide=checked.wide)
        cost = operations_of(exact, DIGITS, budget(one))
        rows = rows[: min(most, ALL // (4 * max(cost, 1)))]
        slopes = exact_slopes(exact, [numeric.directions[i] for i in rows], DIGITS, budget(ALL))
    except UnknownError:
        return numeric
    value, left, right = (np.array(list(map(float, side))) for side in slopes[:3])
    # Where the function jumps or its slope is infinite, float64 has seen as much.
    known = np.isfinite(left) & np.isfinite(right) & ~slopes.jumps
    kink, before = np.isnan(value), numeric.derivative.select(rows)
    middle = np.where(kink, (left + right) / 2, value)
    low, high = (np.where(kink, f(left, right), middle) for f in (np.minimum, np.maximum))
    size = np.maximum(np.abs(low), np.abs(high))
    # What float64 has shown as well keeps its error bar.
    confirmed = (np.abs(low - before.left) <= before.error) & (kink == before.kink)
    confirmed &= (np.abs(high - before.right) <= before.error) & (before.sides == 2)
    chosen = known & ~(confirmed & (before.error <= TOO_WIDE * size))
    # A zero that was right before.
    chosen &= ~(agreed & (size == 0))
    derivative = before._replace(
        value=middle,
        error=4 * EPS64 * size,
        left=low,
        right=high,
        kink=kink,
        sides=np.full(len(rows), 2),
        reach=np.maximum(before.reach, np.abs(middle)),
    )
    rows = rows[chosen]
    derivative = numeric.derivative.replace(rows, derivative.select(chosen))
    numeric = numeric._replace(derivative=derivative)
    if autodiff.eps > EPS64:
        return numeric
    return numeric._replace(lost=_lost(problem, autodiff, numeric, exact, rows))


def _doubtful(numeric: Numeric, comparisons: list[Comparison]) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of doubtful directions, the worst first, and of zeros without evidence."""
    rank = np.full(len(numeric.directions), len(ORDER))
    unseen = np.zeros(len(numeric.directions), bool)
    leaves = leaf_indices(numeric.directions)
    for comparison in comparisons:
        rows = np.flatnonzero(leaves == comparison.position)
        derivative = comparison.numeric
        # The function does not change at all, or by no more than its errors.
        still = (derivative.reach == 0) | (derivative.error > 0)
        unseen[rows] |= (comparison.autodiff == 0) & still & ~derivative.kink
        rank[rows] = np.minimum(rank[rows], comparison.verdicts)
    rows = np.flatnonzero(np.isin(rank, DOUBTFUL))
    return rows[np.argsort(rank[rows], kind="stable")], np.flatnonzero(unseen)


def _lost(
    problem: Problem, autodiff: Autodiff, numeric: Numeric, exact: ExactFunction, rows: np.ndarray
) -> np.ndarray:
    """Return whether autodiff would be right along each direction without rounding, `[P]`."""
    lost = np.zeros(len(numeric.directions), bool)
    leaves = leaf_indices(numeric.directions)
    wrong = np.zeros(len(numeric.directions), bool)
    for comparison in compare(problem, autodiff, numeric):
        rows_of_leaf = np.flatnonzero(leaves == comparison.position)
        wrong[rows_of_leaf] |= comparison.verdicts == ORDER.index(Verdict.WRONG)
    rows = rows[wrong[rows]]
    if not len(rows):
        return lost
    # Terms of a backward pass may cancel to a derivative that is tiny beside the function.
    values = np.abs(numeric.derivative.value[rows])
    smallest = np.min(values, where=values > 0, initial=problem.total)
    digits = DIGITS + math.ceil(math.log10(problem.total / smallest)) if smallest else DIGITS
    try:
        gradient = exact_gradient(exact, digits, budget(ALL))
    except UnknownError:
        return lost
    for i in rows:
        direction = numeric.directions[i]
        part = gradient[direction.start :][: len(direction.values)]
        slope = float(sum(g * float(v) for g, v in zip(part, direction.values, strict=True)))
        value = numeric.derivative.value[i]
        lost[i] = abs(slope - value) <= numeric.tolerance.rtol * abs(value)
    return lost
