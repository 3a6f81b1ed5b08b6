"""Derivatives of a traced function in arbitrary precision, from differences over tiny steps.

The function is evaluated at the point and on both sides of it. Over a step of 1e-60 the difference
quotient errs by its square, if numbers have 200 digits. No rule for derivatives is used.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.checking._arbitrary_arrays import exact_numbers, objects
from jaxgrad.checking._arbitrary_precision import arithmetic, evaluate
from jaxgrad.checking._arbitrary_scalars import UnknownError
from jaxgrad.checking._arguments import LeafInfo
from jaxgrad.checking._directions import Direction
from jaxgrad.checking._programs import gradient_of, precision, traced

BITS_PER_DIGIT = math.log2(10)
GUARD = 60  # binary digits beyond those that a step and the result need
FINE = 1600  # binary digits of a step that is shorter than any number of float64


class Slopes(NamedTuple):
    """Derivatives along `P` directions in arbitrary precision; NaN where there is none."""

    value: np.ndarray  # the derivative
    left: np.ndarray
    right: np.ndarray
    jumps: np.ndarray  # whether the function jumps at the point


def budget(operations: int) -> Callable[[int], None]:
    """Return a function that counts operations and raises after so many."""
    left = operations

    def spend(count):
        nonlocal left
        left -= count
        if left < 0:
            raise UnknownError(
                f"f takes more than {operations:,} operations on numbers; raise `operations`, or "
                "try fewer elements"
            )

    return spend


def _free(count: int) -> None:
    """Count nothing: what follows is paid for."""


class ExactFunction(NamedTuple):
    """The trace of a problem's function, its inputs, and their precision."""

    problem: Any  # has the function, cotangents, leaves, point and scales of a `Problem`
    closed: Any
    moved: list[Any]
    fixed: list[Any]
    wide: bool


def exact_function(problem: Any, moved: list[Any], fixed: list[Any], *, wide: bool):
    """Trace the problem's function at `moved` and `fixed`, in float64 if `wide`."""
    with precision(wide):
        closed, _ = traced(problem.function, list(moved), list(fixed))
    return ExactFunction(problem, closed, list(moved), list(fixed), wide)


def _bits(step: int, digits: int) -> int:
    """Return the binary digits of numbers whose differences over `2**-step` have `digits`."""
    # Subtraction cancels as many digits as the step has, and curvature as many again.
    return 2 * (step + math.ceil(digits * BITS_PER_DIGIT)) + GUARD


def exact_value(exact: ExactFunction, digits: int, spend: Callable[[int], None]) -> Any:
    """Return the weighted sum of the outputs at the point."""
    return _values(exact, [None], 0, _bits(0, digits), spend)[0]


def operations_of(exact: ExactFunction, digits: int, spend: Callable[[int], None]) -> int:
    """Return the number of operations on numbers that one evaluation takes."""
    counts: list[int] = []

    def count(operations):
        spend(operations)
        counts.append(operations)

    exact_value(exact, digits, count)
    return sum(counts)


def gradient_program(exact: ExactFunction) -> Any:
    """Return the trace of the gradient by autodiff."""
    problem = exact.problem
    with precision(exact.wide):
        cotangents = [jnp.asarray(c) for c in problem.cotangents]
        inputs = (exact.moved, exact.fixed, cotangents)
        return traced(lambda *args: gradient_of(problem.function, *args), *inputs)[0]


def exact_gradient(
    exact: ExactFunction, digits: int, spend: Callable[[int], None], program: Any = None
) -> np.ndarray:
    """Return the gradient by autodiff, its operations carried out exactly, as coordinates.

    `program` is the `gradient_program` if it is known already.
    """
    problem = exact.problem
    rules = arithmetic(_bits(0, digits), spend)
    closed = program or gradient_program(exact)
    with precision(exact.wide):
        cotangents = [jnp.asarray(c) for c in problem.cotangents]
        inputs = (exact.moved, exact.fixed, cotangents)
        # A leaf that no output depends on has no operations behind its gradient.
        leaves = evaluate(closed, jax.tree.leaves(inputs), rules)
    parts: list[Any] = []
    for info, leaf in zip(problem.leaves, leaves, strict=True):
        flat = np.broadcast_to(leaf, info.shape).ravel()
        parts += [x.real for x in flat]
        # JAX's gradient is df/dx - i df/dy.
        parts += [-x.imag for x in flat] if info.complex else []
    return objects(parts, (len(parts),))


def exact_slopes(
    exact: ExactFunction, directions: Sequence[Direction], digits: int, spend: Callable[[int], None]
) -> Slopes:
    """Return the derivatives along directions to so many digits.

    One that is smaller than the function by a factor of 1e-600 counts as zero.

    Raises:
      UnknownError: if they are not known.
    """
    first = math.ceil(digits * BITS_PER_DIGIT) + GUARD
    shorter = first // 2
    # One evaluation tells what all of them take, before they take it.
    spend(operations_of(exact, digits, spend) * 4 * len(directions))
    before, after = (
        _quotients(exact, directions, step, digits) for step in (first, first + shorter)
    )
    pairs = zip(before, after, strict=True)
    rows = [_limit(coarse, fine, shorter, digits) for coarse, fine in pairs]
    # Without any change, more digits have to show whether the derivative is only small.
    unsettled = [i for i, row in enumerate(rows) if row is None or not (row[1] or row[2])]
    if unsettled:
        # The function may have a tiny scale, so steps become shorter than any argument.
        chosen = [directions[i] for i in unsettled]
        before, after = (_quotients(exact, chosen, step, digits) for step in (FINE, FINE + first))
        for i, coarse, fine in zip(unsettled, before, after, strict=True):
            rows[i] = _limit(coarse, fine, first, digits)
    known = [row for row in rows if row is not None]
    if len(known) < len(rows):
        raise UnknownError("the differences of f do not settle, however short the step")
    value, left, right = (objects([row[k] for row in known], (len(known),)) for k in range(3))
    return Slopes(value, left, right, np.array([row[3] for row in known], bool))


def _quotients(exact: ExactFunction, directions, step: int, digits: int):
    """Return the difference quotients on both sides, for steps of `2**-step` of the coordinate."""
    # Below the smallest number of its type a derivative is zero, so a change of that size must
    # show beside values of size one, over a step that is relative to a tiny coordinate.
    sizes = [abs(_size(exact.problem, direction)) for direction in directions]
    least = min([float(jnp.finfo(info.dtype).tiny) for info in exact.problem.leaves])
    extra = -math.log2(least) + max(0.0, -math.log2(min(sizes, default=1.0)))
    bits = _bits(step, digits) + math.ceil(extra)
    base, *values = _values(exact, [None, *directions], step, bits, _free)
    quotients = []
    for direction, plus, minus in zip(directions, values[::2], values[1::2], strict=True):
        unit = _step(base.context, exact.problem, direction, step)
        quotients.append(((base - minus) / unit, (plus - base) / unit))
    return quotients


def _values(exact: ExactFunction, directions, step: int, bits: int, spend) -> list[Any]:
    """Return the weighted outputs on both sides along directions, or at the point for `None`."""
    problem, rules = exact.problem, arithmetic(bits, spend)
    c = rules.context
    weights = [exact_numbers(c, w) for w in problem.cotangents]
    point = [exact_numbers(c, x) for x in exact.moved]

    def weighted(leaves):
        with precision(exact.wide):
            outputs = evaluate(exact.closed, [*leaves, *exact.fixed], rules)
        total = c.zero
        for weight, value in zip(weights, outputs, strict=True):
            for w, v in zip(weight.ravel(), np.ravel(value), strict=True):
                # An output without a weight may be infinite.
                total = total + c.re(w * v) if w != 0 else total
        return total

    values = []
    for direction in directions:
        if direction is None:
            values.append(weighted(point))
            continue
        unit, j = _step(c, problem, direction, step), direction.leaf
        for shift in (unit, -unit):
            moved = _shifted(c, point[j], problem.leaves[j], direction, shift)
            values.append(weighted([*point[:j], moved, *point[j + 1 :]]))
    return values


def _step(context: Any, problem: Any, direction: Direction, step: int) -> Any:
    """Return a step of `2**-step`, relative to the largest coordinate that is moved."""
    return context.ldexp(context.mpf(_size(problem, direction)), -step)


def _size(problem: Any, direction: Direction) -> float:
    part = problem.point[direction.start : direction.start + len(direction.values)]
    return float(np.max(np.abs(part))) or float(problem.scales[direction.leaf])


def _shifted(c: Any, leaf: np.ndarray, info: LeafInfo, direction: Direction, unit: Any):
    """Return a leaf whose coordinates are moved along a direction."""
    flat = leaf.ravel().copy()
    count = flat.size
    for k, value in enumerate(direction.values.tolist()):
        position = direction.start - info.start + k
        # Imaginary parts come after all real ones.
        shift = unit * c.mpf(value) if position < count else c.mpc(0, unit * c.mpf(value))
        flat[position % count] = flat[position % count] + shift
    return flat.reshape(leaf.shape)


def _limit(before, after, bits: int, digits: int) -> tuple[Any, Any, Any, bool] | None:
    """Return the derivative, those of both sides, and whether there is a jump.

    `before` and `after` are quotients from both sides, those of a step `2**bits` times smaller
    last. The result is `None` if they have not settled.
    """
    sides, jump = [], False
    for x, y in zip(before, after, strict=True):
        side, jumps = _side(x, y, bits, digits)
        if side is None:
            return None
        sides.append(side)
        jump |= jumps
    left, right = sides
    c = left.context
    if not (c.isfinite(left) and c.isfinite(right)):
        return c.nan, left, right, jump
    if not is_settled(left, right, 10):
        return c.nan, left, right, jump
    # The mean of both sides errs by the square of the step only.
    return (after[0] + after[1]) / 2 if left or right else c.zero, left, right, jump


def _side(before: Any, after: Any, bits: int, digits: int) -> tuple[Any, bool]:
    """Return the limit of a quotient, or `None`, and whether its function jumps."""
    c = after.context
    if not (c.isfinite(before) and c.isfinite(after)):
        return (c.nan if c.isnan(after) else after), False
    if is_settled(before, after, digits):
        return after, False
    if before == 0 or after == 0:
        return None, False
    growth = c.mag(after) - c.mag(before)
    if growth < -bits / 4:
        # The quotient shrinks with the step, as that of a square at zero.
        return c.zero, False
    if growth > bits / 4:
        # The change stays while the step shrinks, or shrinks as a root does.
        return c.inf * c.sign(after), growth > 0.9 * bits
    return None, False


def is_settled(a: Any, b: Any, digits: int) -> bool:
    return abs(a - b) <= max(abs(a), abs(b)) * a.context.mpf(10) ** -digits
