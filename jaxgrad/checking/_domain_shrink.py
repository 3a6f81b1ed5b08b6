"""The simplest argument with a failure, and the range of numbers on which it occurs."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgrad.checking._domain_values import Interval, from_order, to_order

TRIALS = 48  # At most so many simpler points are judged for one finding.
HALVINGS = 20  # of the interval that holds the end of a range

Point = list[np.ndarray]
Fails = Callable[[Sequence[np.ndarray]], bool]


def complexity(point: Sequence[np.ndarray]) -> float:
    """Return how much a reader has to take in: digits, exponents and distinct numbers."""
    total = 0.0
    for leaf in point:
        numbers = {str(number) for number in leaf.ravel()}
        total += 3 * len(numbers)
        total += sum(_digits(number) for number in numbers)
        total += 0.1 * sum(_digits(str(number)) for number in leaf.ravel())
        # Ones on the diagonal are easier to read than ones elsewhere.
        total += 0.01 * np.count_nonzero(leaf)
    return total


def _digits(text: str) -> float:
    mantissa = text.lower().partition("e")[0]
    digits = mantissa.lstrip("-").replace(".", "").strip("0")
    if not digits:
        return 0.5 * mantissa.startswith("-")
    size = abs(math.log10(abs(float(text)))) if float(text) else 0.0
    return 2 * len(digits) + mantissa.startswith("-") + size / 4 - (digits == "1")


def simplify(point: Point, intervals: Sequence[Interval], fails: Fails) -> Point:
    """Replace numbers by simpler ones for as long as the failure remains."""
    trials = 0
    improved = True
    while improved and trials < TRIALS:
        improved = False
        for simpler in _simpler(point, intervals):
            if complexity(simpler) >= complexity(point):
                continue
            trials += 1
            if fails(simpler):
                point, improved = simpler, True
                break
            if trials >= TRIALS:
                break
    return point


def _simpler(point: Point, intervals: Sequence[Interval]) -> Iterator[Point]:
    """Yield simpler points, the simplest first: whole leaves, then single elements."""
    options: list[Point] = []

    def replace(j, leaf):
        top = float(jnp.finfo(intervals[j].dtype).max)
        leaf = np.clip(np.asarray(leaf, np.float64), -top, top)
        inside = _inside(leaf, intervals[j])
        leaf = leaf.astype(intervals[j].dtype)
        if inside and leaf.tobytes() != point[j].tobytes():
            options.append([*point[:j], leaf, *point[j + 1 :]])

    for j, leaf in enumerate(point):
        values = leaf.astype(np.float64)
        for number in dict.fromkeys([0.0, 1.0, *_near(values.flat[0])] if values.size else []):
            replace(j, np.full(leaf.shape, number))
        if values.size > 1:
            for number in np.unique(values)[:4]:
                replace(j, np.full(leaf.shape, number))
                # All others zero, or one.
                replace(j, np.where(values == number, values, 0.0))
                replace(j, np.where(values == number, values, 1.0))
            rounded = [_rounded(values, digits) for digits in (1, 2)]
            for whole in (np.round(values), *rounded, np.sign(values), np.abs(values)):
                replace(j, whole)
            for number in np.unique(values)[:9]:
                for other in _near(number):
                    replace(j, np.where(values == number, other, values))
            for i in range(min(values.size, 9)):
                for other in (0.0, 1.0):
                    changed = values.copy()
                    changed.flat[i] = other
                    replace(j, changed)
    # A number in all leaves that have it, since a failure may need them to be equal.
    if len(point) > 1:
        whole = [leaf.astype(np.float64) for leaf in point]
        for number in np.unique(np.concatenate([leaf.ravel() for leaf in whole]))[:9]:
            for other in dict.fromkeys([0.0, 1.0, *_near(number)]):
                changed = [np.where(leaf == number, other, leaf) for leaf in whole]
                if all(map(_inside, changed, intervals)):
                    pairs = zip(changed, intervals, strict=True)
                    options.append([leaf.astype(interval.dtype) for leaf, interval in pairs])
    # Arguments that are equal to each other.
    for j, leaf in enumerate(point[1:], 1):
        if leaf.shape == point[0].shape:
            replace(j, point[0])
    yield from sorted(options, key=complexity)


def _inside(leaf: np.ndarray, interval: Interval) -> bool:
    return bool(np.all((leaf >= interval.low) & (leaf <= interval.high)))


def _near(number: float) -> list[float]:
    """Return simpler numbers close to one: 0, 1, powers of ten, few digits."""
    number = float(number)
    if number == 0 or not math.isfinite(number):
        return [0.0]
    exponent = math.floor(math.log10(abs(number)))
    sign = math.copysign(1.0, number)
    # Round exponents as well, so that failures of tiny numbers end at the same one.
    exponents = [10 * round(exponent / 20), 5 * round(exponent / 6), int(exponent / 2)]
    exponents += [
        5 * round(exponent / 5),
        exponent,
        exponent + 1,
        exponent + (-1 if exponent > 0 else 1),
    ]
    powers = [sign * 10.0**k for k in exponents if -320 < k < 308]
    rounded = [float(_rounded(np.array(number), digits)) for digits in (1, 2, 3)]
    signs = [1.0, -1.0, abs(number)] if sign < 0 else [1.0]
    return [0.0, *signs, *powers, float(round(number)), round(2 * number) / 2, *rounded]


def _rounded(values: np.ndarray, digits: int) -> np.ndarray:
    return np.array([float(f"{v:.{digits}g}") for v in values.ravel()]).reshape(values.shape)


def boundary(inside: float, outside: float, dtype: Any, fails: Callable[[float], bool]) -> float:
    """Return the last number of a failing range towards a number that does not fail."""
    low, high = (to_order(np.array([x]).astype(dtype))[0] for x in (inside, outside))
    for _ in range(HALVINGS):
        if abs(int(high) - int(low)) <= 1:
            break
        middle = low + (high - low) // 2
        number = float(from_order(np.array([middle]), dtype)[0])
        low, high = (middle, high) if fails(number) else (low, middle)
    return float(from_order(np.array([low]), dtype)[0])


def range_text(low: float, high: float, leaf: Interval) -> str:
    """Return a range in words; `low` and `high` are the failing numbers at its ends."""
    if low == high:
        return f"x == {low:.6g}"
    top = float(jnp.finfo(leaf.dtype).max)
    least, most = low <= leaf.low or low <= -top / 2, high >= leaf.high or high >= top / 2
    if least and most:
        return "everywhere"
    if least:
        return f"x <= {high:.3g}"
    if most:
        return f"x >= {low:.3g}"
    return f"{low:.3g} <= x <= {high:.3g}"
