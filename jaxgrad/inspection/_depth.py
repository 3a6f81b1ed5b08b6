"""Operations that repeat with depth, and by how much the signal and the gradient grow in each."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST_BLOCKS = 4  # Fewer blocks show no growth per block.


class Growth(NamedTuple):
    """Growth of the root mean square per block, with standard errors.

    The logs of the sizes are fitted by a line. The standard errors are those of its slope, as if
    the deviations of the blocks from the line were independent.

    Attributes:
      operation, parameter, line: as in `Site`; `#` stands for the number of a block.
      blocks: how many there are.
      forward, forward_error: factor by which the signal grows from one block to the next.
      backward, backward_error: factor by which the gradient grows from a block to the one before.
    """

    operation: str
    parameter: str
    line: str
    blocks: int
    forward: float
    forward_error: float
    backward: float
    backward_error: float


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
        (forward, forward_error), (backward, backward_error) = signal, gradient
        # A slope of the log of the mean square is twice that of the root; gradients go backward.
        up, down = np.exp(forward / 2), np.exp(-backward / 2)
        errors = (up * forward_error / 2, down * backward_error / 2)
        results.append(
            Growth(operation, parameter, line, series[0].shape[-1], up, errors[0], down, errors[1])
        )
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


def _slope(values: np.ndarray) -> tuple[float, float] | None:
    """Return the slope of logs along their last axis and its standard error, if they have one."""
    rows = values.reshape(-1, values.shape[-1]) if values.ndim else np.empty((0, 0))
    count = rows.shape[-1]
    if count < LEAST_BLOCKS or not np.all(np.isfinite(rows)):
        return None
    # The mean over iterations of the outer scans.
    logs = rows.mean(axis=0)
    depth = np.arange(count) - (count - 1) / 2
    slope = float(depth @ logs / (depth @ depth))
    deviations = logs - logs.mean() - slope * depth
    return slope, float(np.sqrt(deviations @ deviations / (count - 2) / (depth @ depth)))
