"""From function values at a sequence of steps to a derivative with an error bar.

A sequence holds `f(x + h) - f(x)` and `f(x - h) - f(x)` for steps `h` that shrink by `RATIO`. Large
steps err by the curvature of `f`, small steps by its rounding, and a kink or an edge of the domain
may lie anywhere between. The sequence alone decides which step to use: nothing here knows the
derivative that autodiff gives. Everything is NumPy in float64, for many sequences at once.
"""

from typing import Any, NamedTuple

import numpy as np

RATIO = 8.0
LARGEST_STEP = 0.125  # relative to the size of the leaf
CALM = 10.0  # Noise is at most so many times the largest change of `f` by the smallest steps.
STAIRS = 1000  # A function of more stairs than this within a large step may be a rounded one.
TINY = 1e-10  # A function that is made of larger steps than this is meant to be one of steps.


class Derivative(NamedTuple):
    """Numeric derivatives; each field has shape `[P]`, one entry for each sequence of steps.

    Attributes:
      value: central estimate, or the one-sided one at an edge of the domain; NaN if there is none.
      error: its error bar; infinite if nothing is known.
      left, right: the smaller and the larger one-sided derivative if `kink`, else the value.
      kink: whether the one-sided derivatives differ by more than curvature and rounding explain.
      sides: on how many sides the function is finite close by: 2, 1 at an edge, or 0.
      noise: size of the errors of `f` that the sequence shows.
      step: the step that was used.
      reach: size of the slope over the largest step; 0 if `f` changes there by rounding alone.
    """

    value: np.ndarray
    error: np.ndarray
    left: np.ndarray
    right: np.ndarray
    kink: np.ndarray
    sides: np.ndarray
    noise: np.ndarray
    step: np.ndarray
    reach: np.ndarray

    def select(self, rows: np.ndarray) -> "Derivative":
        """Return the entries `rows`."""
        return Derivative(*(values[rows] for values in self))

    def replace(self, rows: np.ndarray, other: "Derivative") -> "Derivative":
        """Return a copy with `other` in the places `rows`."""
        copies = [values.copy() for values in self]
        for values, new in zip(copies, other, strict=True):
            values[rows] = new
        return Derivative(*copies)


def estimate(
    steps, plus, minus, floor=0.0, coarsest=np.inf, group=None, rounding: float = 0.0
) -> Derivative:
    """Estimate derivatives from sequences of steps.

    The estimate of each step is corrected by that of the next larger step (Richardson, 1911). Its
    error bar is the size of this correction plus the noise over the step. All smaller steps bear
    witness to the noise: where curvature no longer counts, their estimates differ by the errors of
    `f` over the step. The step with the smallest error bar is used.

    Args:
      steps: `[P, K]`, positive, each `RATIO` times smaller than the one before, `K >= 3`.
      plus, minus: `f(x + h) - f(x)` and `f(x - h) - f(x)`, `[P, K]`; not finite outside the domain.
      floor: least error of a value of `f`, `[P]`, such as its rounding.
      coarsest: the largest change that rounding of `f` can make; a larger one is a jump of `f`.
      group: labels, `[P]`, of sequences whose errors have one size. As one may look less noisy than
        it is, each in a group of four or more is taken for at least as noisy as their median.
      rounding: least rounding of a value of `f`; twice as much is a change.
    """
    first = np.max(np.nan_to_num(np.abs([plus[:, 0], minus[:, 0]]), posinf=0.0), axis=0)
    reach = np.where(first > 2 * rounding, first / steps[:, 0], 0.0)
    derivative = _estimate(steps, plus, minus, floor, coarsest, reach)
    if group is None:
        return derivative
    common = np.zeros(len(steps))
    for label in np.unique(group):
        rows = (group == label) & np.isfinite(derivative.error)
        if rows.sum() >= 4:
            common[group == label] = np.median(derivative.noise[rows])
    return _estimate(steps, plus, minus, np.maximum(floor, common), coarsest, reach)


def _estimate(steps, plus, minus, floor, coarsest, reach) -> Derivative:
    floor = np.broadcast_to(np.asarray(floor, np.float64), steps.shape[:1])
    with np.errstate(all="ignore"):
        # Errors are not larger than the changes that the smallest steps make, if they make any.
        last = np.abs(np.concatenate([plus[:, -3:], minus[:, -3:]], axis=1))
        last = np.max(np.where(np.isfinite(last), last, 0.0), axis=1)
        floor = np.where(last > 0, np.minimum(floor, last), floor)
        unit = _rounding_unit(plus, minus, coarsest)
        floor = np.maximum(floor, unit)
        stair = _stair(plus, minus, steps, unit)
        most = _largest_noise(plus, minus, last, coarsest)
        central = _best((plus - minus) / (2 * steps), steps, 2, floor, most)
        right = _best(plus / steps, steps, 1, floor)
        left = _best(-minus / steps, steps, 1, floor)
        kink, low, high, spread = _kink(steps, plus, minus, central[2])
    inside_left, inside_right = (np.isfinite(side[:, -2:]).all(axis=1) for side in (minus, plus))
    sides = inside_left.astype(int) + inside_right
    kink &= sides == 2

    value, error, noise, step = (
        np.where(sides == 2, both, np.where(inside_right, from_right, from_left))
        for both, from_right, from_left in zip(central, right, left, strict=True)
    )
    value = np.where(sides > 0, value, np.nan)
    # Where a staircase may be rounding, it is not known whether its stairs or its slope is meant.
    error = np.where((sides > 0) & (step > stair), error, np.inf)
    error = np.where(kink, np.maximum(error, spread), error)
    left, right = (np.where(kink, side, value) for side in (low, high))
    return Derivative(value, error, left, right, kink, sides, noise, step, reach)


def _largest_noise(plus, minus, last, coarsest):
    """Return the largest noise, `[P]`, that an estimate may be based on; more is no noise."""
    # Where `f` turns many times within a step, its values differ at random, but no more so than
    # rounding allows if the smallest steps change `f` by far less, and never by as much as `f`
    # itself changes.
    whole = np.abs(np.concatenate([plus, minus], axis=1))
    whole = np.max(np.where(np.isfinite(whole), whole, 0.0), axis=1)
    still = ((plus == 0) & (minus == 0)).any(axis=1)
    calm = np.where(still, np.inf, CALM * last)
    return np.maximum(coarsest, np.minimum(calm, whole / 8))


def _best(raw, steps, order, floor, most: Any = np.inf) -> tuple[np.ndarray, ...]:
    """Return the best of the estimates `raw`, `[P, K]`, its error bar, the noise and the step.

    An estimate with more than `most` noise is not used.
    """
    none = np.full_like(raw[:, :1], np.nan)
    raw = np.where(np.isfinite(raw), raw, np.nan)
    larger = np.concatenate([none, raw[:, :-1]], axis=1)
    smaller = np.concatenate([raw[:, 1:], none], axis=1)
    # raw(h) = f' + c h^p with p the order, so f' = raw(h) + (raw(h) - raw(r h)) / (r^p - 1).
    correction = (raw - larger) / (RATIO**order - 1)
    value = np.where(np.isfinite(correction), raw + correction, raw)
    before = np.concatenate([none, value[:, :-1]], axis=1)
    curvature = np.fmin(np.abs(correction), np.abs(value - before))
    # The largest step has no larger one; the next smaller one shows its error instead.
    curvature = np.where(np.isfinite(correction), curvature, np.abs(raw - smaller))

    noise = np.zeros_like(raw)
    for k in range(raw.shape[1] - 1):
        # An error of f by e changes the estimate of a step h by e / h.
        error = np.abs(raw[:, k + 1 :] - value[:, [k]]) * steps[:, k + 1 :]
        noise[:, k] = np.nanmax(np.where(np.isfinite(error), error, 0.0), axis=1)
    error = curvature + (RATIO * noise + 4 * floor[:, None]) / steps
    # A function rounds its argument as a whole at least once, whatever a few small steps show.
    size = steps[:, :1] / LARGEST_STEP
    error += 4 * np.finfo(np.float64).eps * np.abs(value) * (1 + size / steps)
    usable = np.isfinite(error) & np.isfinite(smaller) & (noise <= np.reshape(most, (-1, 1)))
    error = np.where(usable, error, np.inf)
    best = np.argmin(error, axis=1)
    rows = np.arange(len(raw))
    value, error, noise, step = (a[rows, best] for a in (value, error, noise, steps))
    return np.where(np.isfinite(error), value, np.nan), error, np.maximum(noise, floor), step


def _rounding_unit(plus, minus, coarsest):
    """Return the smallest change of `f`, `[P]`, where smaller steps change nothing, else 0."""
    # A plateau of exact zeros shows that `f` is rounded to multiples of that change, if rounding
    # can make it. Where `f` cancels, its values are multiples of a tiny unit, of which larger steps
    # change `f` by many; a jump is one change at all steps.
    size = np.abs(np.concatenate([plus, minus], axis=1))
    still, known = (plus == 0) & (minus == 0), np.isfinite(size) & (size > 0)
    smallest = np.min(np.where(known, size, np.inf), axis=1)
    largest = np.max(np.where(known, size, 0.0), axis=1)
    mantissa, exponent = np.frexp(np.where(known, size, 0.0))
    digits = (mantissa * 2.0**53).astype(np.int64)
    lowest = np.ldexp((digits & -digits).astype(np.float64), exponent - 53)
    unit = np.min(np.where(known, lowest, np.inf), axis=1)
    cancels = (unit <= TINY) & (smallest <= 64 * unit) & (largest >= 16 * unit)
    rounded = still.any(axis=1) & ((smallest <= coarsest) | cancels) & np.isfinite(smallest)
    return np.where(rounded, smallest, 0.0)


def _stair(plus, minus, steps, unit):
    """Return up to which step rounding inside of `f` may be why it does not change, `[P]`.

    Larger steps then show a slope, which `f` climbs by many stairs. It is 0 where they do not.
    """
    slope = np.abs(plus - minus) / (2 * steps)
    change = np.where(np.isfinite(slope), slope * steps, 0.0)
    moves = (plus != 0) & (minus != 0) & (change > 0)
    last = plus.shape[1] - 1 - np.argmax(moves[:, ::-1], axis=1)
    rows, before = np.arange(len(plus)), np.maximum(last - 1, 0)
    trend = slope[rows, before] / slope[rows, np.maximum(last - 2, 0)]
    stairs = change.max(axis=1) >= STAIRS * change[rows, last]
    still = ((plus == 0) & (minus == 0)).any(axis=1) & moves.any(axis=1)
    doubtful = still & (unit == 0) & stairs & (trend > 0.5) & (trend < 2.0)
    return np.where(doubtful, steps[rows, last], 0.0)


def _kink(steps, plus, minus, noise):
    """Return whether one-sided derivatives differ; the smaller, the larger and their error bar."""
    jump = (plus + minus) / steps
    doubt = RATIO * noise[:, None] / steps
    clear = np.isfinite(jump) & (np.abs(jump) > 2 * doubt)
    # Curvature makes the jump shrink with the step; a kink at this point does not.
    ratio = jump[:, 1:] / jump[:, :-1]
    stays = clear[:, 1:] & clear[:, :-1] & (ratio > 0.6) & (ratio < 1.6)
    rows = np.arange(len(jump))
    last = jump.shape[1] - 2 - np.argmax(stays[:, ::-1], axis=1)
    size = np.abs(jump[rows, last + 1])[:, None]
    # A kink close by is invisible to steps that are shorter than its distance.
    gone = np.abs(jump) < 0.5 * size - doubt
    gone &= np.arange(jump.shape[1])[None] > last[:, None]
    kink = stays.any(axis=1) & ~gone.any(axis=1)

    slopes = np.stack([-minus, plus]) / steps
    change = (slopes[..., 1:] - slopes[..., :-1]) / (RATIO - 1)
    spread = np.where(stays, np.max(np.abs(change), axis=0) + doubt[:, 1:], np.inf)
    best = np.argmin(spread, axis=1)
    sides = (slopes[..., 1:] + change)[:, rows, best]
    return kink, sides.min(axis=0), sides.max(axis=0), spread[rows, best]
