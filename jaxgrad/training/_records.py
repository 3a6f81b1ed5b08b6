"""The records of one run and its course, as the rules of `jaxgrad.training.faults` read them."""

from typing import Any, NamedTuple

import numpy as np

RISEN = 3.0
"""Factor above the first loss that no change of batches explains, only a step too far."""

PEAK = 10.0
"""Factor above the usual losses that a single batch, even of one example, hardly has by chance."""

MOSTLY = 0.9
"""Share of the steps from one to the end on which a condition holds that holds from there on."""


class Run(NamedTuple):
    """The steps that were taken; NumPy."""

    loss: Any  # [steps]
    fallen: float  # from the first loss, or the median of the first tenth, as a share of it
    ratio: Any  # log update / weights, [steps, layers], NaN for weights of 0; None without norms
    relative: Any  # log |gradient| |weights| / loss, [steps, layers], the same; None without norms
    from_zero: Any  # whether weights start at 0, so that neither has a scale there, [layers]
    steady: float  # length of the way from 0, over that of as many steps like the largest
    input_size: Any  # log root mean square of the inputs or None
    units: Any  # Units [times, layers] or None
    unit_steps: Any  # [times]
    names: tuple[str, ...]

    @property
    def early(self) -> int:
        """Steps in a tenth of the run."""
        return max(1, len(self.loss) // 10)

    def sensitivity(self, step: int = 0) -> Any:
        """The largest `relative` in a tenth of the run, `[layers]`, -inf if weights start at 0."""
        found = largest(self.relative[step : step + self.early], axis=0)
        return np.where(self.from_zero, -np.inf, found)

    @property
    def course(self) -> str:
        """The loss in words."""
        if self.fallen < -10:
            return f"the loss rose by a factor of {1 - self.fallen:.2g}"
        way, size = "fell" if self.fallen >= 0 else "rose", abs(self.fallen)
        return f"the loss {way} by {size:.{0 if size > 0.1 else 1}%} of its first value"

    @property
    def ends(self) -> str:
        """Where the loss began, got to and ended, in words."""
        top = self.loss[np.isfinite(self.loss)].max()
        return f"at first {self.loss[0]:.3g}, peaks at {top:.3g} and ends at {self.loss[-1]:.3g}"

    def risen(self) -> int | None:
        """First step of a peak, or of a tenth of the run that lies above the first loss, or None.

        Single examples differ a lot: the first loss may be small by chance, the largest large.
        """
        loss = np.where(np.isfinite(self.loss), self.loss, np.inf)
        first, span = abs(loss[0]) or 1.0, max(1, min(len(loss) - 1, max(10, self.early)))
        with np.errstate(invalid="ignore", over="ignore"):
            rise = loss - loss[0]
            usual = [np.quantile(part, 0.9, method="lower") for part in (loss, loss[: self.early])]
            begun = rise > (PEAK - 1) * max(first, *usual)
            spans = np.lib.stride_tricks.sliding_window_view(rise, span)
            most = (2 * RISEN - 1) * max(first, abs(np.median(loss)))
            lasts = (spans.min(axis=1) > (RISEN - 1) * first) | (np.median(spans, axis=1) > most)
            begun[: len(lasts)] |= lasts & (rise[: len(lasts)] > (RISEN - 1) * first)
        steps = np.flatnonzero(begun)
        return int(steps[0]) if len(steps) else None


def since(holds):
    """First step from which a condition holds to the end, `None` if not for the last tenth."""
    share = np.cumsum(holds[::-1])[::-1] / np.arange(len(holds), 0, -1)
    steps = np.flatnonzero(holds & (share >= MOSTLY))
    return (
        int(steps[0]) if len(steps) and steps[0] <= len(holds) - max(1, len(holds) // 10) else None
    )


def middle(values):
    """Median over the first axis of what is a number; -inf counts, NaN does not."""
    bad = np.isnan(values)
    # Sorting puts NaN last.
    half = np.maximum((~bad).sum(axis=0) - 1, 0) // 2
    return np.take_along_axis(np.sort(values, axis=0), half[None], 0)[0]


def largest(values, axis=None):
    """Maximum of what is a number, -inf if nothing is."""
    return np.max(np.where(np.isnan(values), -np.inf, values), axis=axis, initial=-np.inf)
