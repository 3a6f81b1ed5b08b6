"""Operations that repeat with depth, and by how much the signal and the gradient grow in each."""

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgrad import regimes

LEAST_BLOCKS = 4  # Fewer blocks show no growth per block.
CHANGE = 0.05  # largest probability of a change that is none, at any of the blocks
STABLE = 2 * math.log(regimes.Thresholds().ratio)  # log of a mean square that changes little
RESOLUTION = 1e-3  # of the change in a block, which is rounded


class Growth(NamedTuple):
    """Growth of the root mean square per block, with standard errors.

    A stream may start or end unlike it goes on. If so, the growth is that of the blocks from one
    change to the next that add up to most, see `steady`. The logs of the sizes there are fitted by
    a line. The standard errors are those of its slope if the changes in the blocks are independent,
    as those of random weights are.

    Attributes:
      operation, parameter, line: as in `Site`; `#` stands for the number of a block.
      blocks: how many there are.
      forward, forward_error: factor by which the signal grows from one block to the next.
      backward, backward_error: factor by which the gradient grows from a block to the one before.
      forward_range, backward_range: the first and the last of the blocks that do so.
    """

    operation: str
    parameter: str
    line: str
    blocks: int
    forward: float
    forward_error: float
    backward: float
    backward_error: float
    forward_range: tuple[int, int]
    backward_range: tuple[int, int]


def growth(sites: Sequence[Any]) -> list[Growth]:
    """Return the growth of each operation that is repeated, in the order of computation.

    An operation is repeated by the iterations of the innermost scan around it, or as several sites
    of one line of code whose scopes and parameters differ by nothing but numbers.
    """
    groups, order = [], {id(site): i for i, site in enumerate(sites)}
    for group in repeated(sites, lambda site: site):
        # A scan is a group by itself, as are all others of its line.
        outside = [site for site in group if not np.ndim(site.forward.zeros)]
        groups += [[site] for site in group if np.ndim(site.forward.zeros)]
        groups += [outside] if outside else []
    results = []
    for members in sorted(groups, key=lambda members: order[id(members[0])]):
        first = members[0]
        operation, line = first.operation, first.line
        parameter = without_numbers(first.parameter)
        series = [_series([getattr(m, name) for m in members]) for name in ("forward", "backward")]
        signal, gradient = (_slope(values) for values in series)
        if signal is None or gradient is None:
            continue
        (forward, forward_error, first), (backward, backward_error, second) = signal, gradient
        # A slope of the log of the mean square is twice that of the root; gradients go backward.
        up, down = np.exp(forward / 2), np.exp(-backward / 2)
        rates = (up, up * forward_error / 2, down, down * backward_error / 2)
        place = (operation, parameter, line, series[0].shape[-1])
        results.append(Growth(*place, *rates, first, second))
    return results


def without_numbers(text: str) -> str:
    """Return a name with `#` for each number in it."""
    return re.sub(r"\d+", "#", text)


def repeated(items: Sequence[Any], site: Callable[[Any], Any]) -> list[list[Any]]:
    """Group items whose sites are the same operation in several blocks.

    The names of their scopes and parameters differ by the number of the block. Of several numbers,
    it is the one with the most values; others that do not follow from it tell groups apart, as in
    `blocks_3/conv_1` and `blocks_3/conv_2`.
    """
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for item in items:
        place = site(item)
        names = f"{place.scope} {place.parameter}"
        # Operations of different shapes, as of narrower layers, are not the same.
        key = (place.operation, without_numbers(names), place.line, place.shape, place.scan)
        groups.setdefault(key, []).append((re.findall(r"\d+", names), item))
    results = []
    for group in groups.values():
        columns = list(zip(*(numbers for numbers, _ in group), strict=True))
        block = max(columns, key=lambda column: len(set(column)), default=())
        others = [c for c in columns if len(set(zip(block, c, strict=True))) > len(set(block))]
        parts: dict[tuple[str, ...], list[Any]] = {}
        for i, (_, item) in enumerate(group):
            parts.setdefault(tuple(column[i] for column in others), []).append(item)
        results += parts.values()
    return results


def _series(statistics: list[Any]) -> np.ndarray:
    """Return logs of the mean square with depth as the last axis."""
    logs = [np.asarray(part.log_mean_square, np.float64) for part in statistics]
    return logs[0] if logs[0].ndim else np.array(logs)


def _slope(values: np.ndarray) -> tuple[float, float, tuple[int, int]] | None:
    """Return the slope of logs along their last axis, its standard error, and of which blocks."""
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else np.empty((0, 0))
    if rows.shape[-1] < LEAST_BLOCKS or not np.all(np.isfinite(rows)):
        return None
    # The mean over iterations of the outer scans.
    logs = rows.mean(axis=0)
    start, stop = steady(np.diff(logs))
    logs = logs[start : stop + 1]
    depth = np.arange(len(logs)) - (len(logs) - 1) / 2
    slope = float(depth @ logs / (depth @ depth))
    # The variance of the slope of a random walk of n values is about 6 / (5 n) of that of a step.
    n = len(logs)
    error = math.sqrt(1.2 * (n * n + 1) / (n * n - 1) / n) * float(np.std(np.diff(logs), ddof=1))
    return slope, error, changed_by(start, stop)


def steady(steps: np.ndarray) -> tuple[int, int]:
    """Return where the regime starts and stops that the changes `steps` add up most in.

    The changes are those of the log of a mean square. Regimes are what lies between two changes of
    their mean; one of less than `LEAST_BLOCKS` blocks is none. If even the largest one is stable,
    so are all, and they are taken together.
    """
    parts = [(a, b) for a, b in _segments(steps, 0) if b - a >= LEAST_BLOCKS - 1]
    totals = [abs(float(np.sum(steps[a:b]))) for a, b in parts]
    largest = max(totals, default=0.0)
    return parts[totals.index(largest)] if largest > STABLE else (0, len(steps))


def changed_by(start: int, stop: int) -> tuple[int, int]:
    """Return the first and the last of the blocks that make the changes `start` to `stop`."""
    # The first block has none before it to be compared with.
    return (start + 1 if start else 0), stop


def changes_of(blocks: tuple[int, int]) -> int:
    """Return how many changes the blocks from the first to the last make."""
    first, last = blocks
    return last - first + (first > 0)


def in_blocks(blocks: tuple[int, int], count: int) -> str:
    """Write a part of the blocks, "" for all of them."""
    first, last = blocks
    if last == count - 1:
        return f" from block {first} on" if first else ""
    return f" in blocks {first} to {last}" if first else f" up to block {last}"


def _segments(steps: np.ndarray, start: int) -> list[tuple[int, int]]:
    """Return the parts between which the mean of `steps` changes, as their starts and stops.

    The part that differs most from all others is compared with them by a t test, corrected for all
    parts that it might have been (Olshen et al. 2004, "Circular binary segmentation").
    """
    count = len(steps)
    if count < LEAST_BLOCKS - 1:
        return [(start, start + count)]
    # Without their mean the squares lose no digits.
    sums = np.concatenate([[0.0], np.cumsum(steps - steps.mean())])
    i, j = np.triu_indices(count + 1, 1)
    inside = j - i
    i, j, inside = (values[inside < count] for values in (i, j, inside))
    between = np.square(sums[j] - sums[i]) * (1 / inside + 1 / (count - inside))
    k = int(np.argmax(between))
    within = float(count * np.var(steps) - between[k])
    variance = max(within / (count - 2), RESOLUTION**2)
    if len(i) / 2 * _probability(between[k] / variance, count - 2) > CHANGE:
        return [(start, start + count)]
    # Of the three parts one is empty if there is one change.
    ends = sorted({0, int(i[k]), int(j[k]), count})
    parts = itertools.pairwise(ends)
    return [segment for a, b in parts for segment in _segments(steps[a:b], start + a)]


def _probability(t_squared: float, freedom: int) -> float:
    """Return the probability of a larger Student's t in either direction (Wallace, 1959)."""
    z = math.sqrt(freedom * math.log1p(t_squared / freedom))
    return math.erfc(z * (8 * freedom + 1) / (8 * freedom + 3) / math.sqrt(2))
