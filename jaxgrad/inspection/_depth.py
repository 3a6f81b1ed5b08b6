"""Operations that repeat with depth, and by how much the signal and the gradient grow in each."""

import re
from collections.abc import Sequence
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
    groups: dict[tuple[str, ...], list[Any]] = {}
    for site in sites:
        names = (_without_numbers(site.scope), _without_numbers(site.parameter))
        # A scan is a group by itself, as are all others of its line.
        number = (str(len(groups)),) if np.ndim(site.forward.zeros) else ()
        groups.setdefault((site.operation, *names, site.line, *number), []).append(site)
    results = []
    for (operation, _, parameter, line, *_), members in groups.items():
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


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "#", text)


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
