"""From function values on a ladder of steps to a derivative with an honest error bar.

A ladder holds `f(x + h) - f(x)` and `f(x - h) - f(x)` for steps `h` that shrink by `RATIO`. Large
steps err by the curvature of `f`, small ones by its rounding, and a kink or an edge of the domain
may lie anywhere between. Which step can be believed is read off the ladder alone: nothing here
knows what the derivative ought to be. Everything is NumPy in float64, over many ladders at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RATIO = 8.0


class Derivative(NamedTuple):
    """Numeric derivatives; every field has shape `[P]`, one entry for each ladder.

    Attributes:
      value: the central estimate, or the one-sided one at an edge of the domain; NaN if none.
      error: its error bar; infinite where nothing can be said.
      left, right: one-sided derivatives where `kink`, else the value.
      kink: whether the one-sided derivatives differ by more than curvature and rounding explain.
      sides: on how many sides the function is finite close by: 2, 1 at an edge, or 0.
      noise: the size of the errors of `f` that the ladder shows.
      step: the step that was believed.
    """

    value: np.ndarray
    error: np.ndarray
    left: np.ndarray
    right: np.ndarray
    kink: np.ndarray
    sides: np.ndarray
    noise: np.ndarray
    step: np.ndarray


def resolve_together(
    steps: np.ndarray,
    plus: np.ndarray,
    minus: np.ndarray,
    floor: np.ndarray | float,
    coarsest: float,
    group: np.ndarray,
) -> Derivative:
    """As `resolve`, for ladders of one function whose errors are of one size in each `group`.

    A single ladder may by chance look better than it is: none is taken for less noisy than half of
    its group, `[P]`, groups of at least four.
    """
    alone = resolve(steps, plus, minus, floor, coarsest)
    common = np.zeros(len(steps))
    for name in np.unique(group):
        rows = (group == name) & np.isfinite(alone.error)
        if rows.sum() >= 4:
            common[group == name] = np.median(alone.noise[rows])
    return resolve(steps, plus, minus, np.maximum(floor, common), coarsest)


def resolve(
    steps: np.ndarray,
    plus: np.ndarray,
    minus: np.ndarray,
    floor: np.ndarray | float = 0.0,
    coarsest: float = np.inf,
) -> Derivative:
    """The derivative at the ladder's centre.

    Args:
      steps: `[P, K]`, positive, each the one before divided by `RATIO`, `K >= 3`.
      plus, minus: `f(x + h) - f(x)` and `f(x - h) - f(x)`, `[P, K]`; not finite outside the domain.
      floor: the least error of a value of `f`, `[P]`, such as its rounding.
      coarsest: the largest change that rounding of `f` may make; a larger one is a jump of `f`.

    Returns:
      `Derivative`.

    The estimate of each step is corrected by the next larger one (Richardson, 1911). Its bar is the
    size of the correction plus the noise, for which every smaller step is a witness: where
    curvature no longer counts, estimates differ by the errors of `f` over the step. The step with
    the smallest bar is believed.
    """
    steps, plus, minus = (np.asarray(a, np.float64) for a in (steps, plus, minus))
    floor = np.broadcast_to(np.asarray(floor, np.float64), steps.shape[:1])
    with np.errstate(all="ignore"):
        # Errors are not larger than the changes that the smallest steps make, if they make any.
        last = np.abs(np.concatenate([plus[:, -3:], minus[:, -3:]], axis=1))
        last = np.max(np.where(np.isfinite(last), last, 0.0), axis=1)
        floor = np.where(last > 0, np.minimum(floor, last), floor)
        floor = np.maximum(floor, _quantum(plus, minus, coarsest))
        central = _best((plus - minus) / (2 * steps), steps, 2, floor)
        right = _best(plus / steps, steps, 1, floor)
        left = _best(-minus / steps, steps, 1, floor)
        kink, low, high, spread = _kink(steps, plus, minus, central.noise)
    closest = [np.isfinite(side[:, -2:]).all(axis=1) for side in (minus, plus)]
    sides = closest[0].astype(int) + closest[1]
    kink &= sides == 2

    def choose(name):
        one = np.where(closest[1], getattr(right, name), getattr(left, name))
        return np.where(sides == 2, getattr(central, name), one)

    value = np.where(sides > 0, choose("value"), np.nan)
    error = np.where(sides > 0, choose("error"), np.inf)
    return Derivative(
        value,
        np.where(kink, np.maximum(error, spread), error),
        np.where(kink, low, value),
        np.where(kink, high, value),
        kink,
        sides,
        choose("noise"),
        choose("step"),
    )


class _Estimate(NamedTuple):
    value: np.ndarray
    error: np.ndarray
    noise: np.ndarray
    step: np.ndarray


def _best(raw, steps, order, floor) -> _Estimate:
    """Of the estimates `raw`, whose error shrinks as `steps ** order`, the one to believe."""
    gain = RATIO**order - 1
    raw = np.where(np.isfinite(raw), raw, np.nan)
    larger = np.concatenate([np.full_like(raw[:, :1], np.nan), raw[:, :-1]], axis=1)
    smaller = np.concatenate([raw[:, 1:], np.full_like(raw[:, :1], np.nan)], axis=1)
    correction = (raw - larger) / gain
    value = np.where(np.isfinite(correction), raw + correction, raw)
    before = np.concatenate([np.full_like(raw[:, :1], np.nan), value[:, :-1]], axis=1)
    curvature = np.fmin(np.abs(correction), np.abs(value - before))
    # The largest step has no larger one, and is judged by the next smaller one instead.
    curvature = np.where(np.isfinite(correction), curvature, np.abs(raw - smaller))

    noise = np.zeros_like(raw)
    for k in range(raw.shape[1] - 1):
        apart = np.abs(raw[:, k + 1 :] - value[:, [k]]) * steps[:, k + 1 :]
        noise[:, k] = np.nanmax(np.where(np.isfinite(apart), apart, 0.0), axis=1)
    error = curvature + (RATIO * noise + 4 * floor[:, None]) / steps
    error += 4 * np.finfo(np.float64).eps * np.abs(value)
    # A step without a smaller one has no witness.
    error = np.where(np.isfinite(error) & np.isfinite(smaller), error, np.inf)
    best = np.argmin(error, axis=1)
    rows = np.arange(len(raw))
    found = np.isfinite(error[rows, best])
    return _Estimate(
        np.where(found, value[rows, best], np.nan),
        error[rows, best],
        np.maximum(noise[rows, best], floor),
        steps[rows, best],
    )


def _quantum(plus, minus, coarsest):
    """The smallest change that was seen, if smaller steps made none at all; 0 for a jump."""
    size = np.abs(np.concatenate([plus, minus], axis=1))
    still = (plus == 0) & (minus == 0)
    seen = np.min(np.where(np.isfinite(size) & (size > 0), size, np.inf), axis=1)
    return np.where(still.any(axis=1) & (seen <= coarsest) & np.isfinite(seen), seen, 0.0)


def _kink(steps, plus, minus, noise):
    """Whether one-sided derivatives differ here; the smaller, the larger and their error bar."""
    jump = (plus + minus) / steps
    doubt = RATIO * noise[:, None] / steps
    clear = np.isfinite(jump) & (np.abs(jump) > 2 * doubt)
    # Curvature makes the jump shrink with the step; a kink here keeps it.
    ratio = jump[:, 1:] / jump[:, :-1]
    stays = clear[:, 1:] & clear[:, :-1] & (ratio > 0.6) & (ratio < 1.6)
    rows = np.arange(len(jump))
    last = jump.shape[1] - 2 - np.argmax(stays[:, ::-1], axis=1)
    kept = np.abs(jump[rows, last + 1])[:, None]
    # A kink close by, but not here, is gone from steps that are shorter than its distance.
    gone = np.abs(jump) < 0.5 * kept - doubt
    gone &= np.arange(jump.shape[1])[None] > last[:, None]
    held = stays.any(axis=1) & ~gone.any(axis=1)

    slopes = np.stack([-minus, plus]) / steps
    change = (slopes[..., 1:] - slopes[..., :-1]) / (RATIO - 1)
    spread = np.where(stays, np.max(np.abs(change), axis=0) + doubt[:, 1:], np.inf)
    best = np.argmin(spread, axis=1)
    sides = (slopes[..., 1:] + change)[:, rows, best]
    return held, sides.min(axis=0), sides.max(axis=0), spread[rows, best]
