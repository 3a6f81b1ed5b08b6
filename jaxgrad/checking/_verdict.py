"""The verdicts of a check, from worst to best, and how they are reached."""

import enum
from collections.abc import Iterable

import numpy as np

from jaxgrad.checking._step_sizes import Derivative


class Verdict(enum.StrEnum):
    """Outcome of a gradient check, worst first."""

    NONDETERMINISTIC = "NONDETERMINISTIC"
    """The function returns different values for the same arguments."""
    NONFINITE = "NONFINITE"
    """Autodiff gives NaN or infinity where the function is finite around the point."""
    WRONG = "WRONG"
    """Autodiff lies outside of the numeric derivative's error bar and the tolerance."""
    UNRESOLVED = "UNRESOLVED"
    """The numeric derivative's error bar is too wide to decide."""
    KINK = "KINK"
    """The one-sided derivatives differ, and autodiff lies between them."""
    AGREE = "AGREE"
    """Autodiff equals the numeric derivative."""


ORDER = tuple(Verdict)
FAILURES = (Verdict.NONDETERMINISTIC, Verdict.NONFINITE, Verdict.WRONG)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Return the worst of some verdicts; `AGREE` if there are none."""
    return min(verdicts, key=ORDER.index, default=Verdict.AGREE)


def judge(
    autodiff: np.ndarray, numeric: Derivative, allowed: np.ndarray, wide: np.ndarray
) -> np.ndarray:
    """Return the verdict on each number, as its position in `ORDER`, `[P]`.

    The two derivatives may differ by the error bar and by what is `allowed`. Nothing is decided if
    the error bar is `wide` or wider.
    """
    with np.errstate(invalid="ignore"):
        slack = numeric.error + allowed
        far = np.abs(autodiff - numeric.value) > slack
        outside = (autodiff < numeric.left - slack) | (autodiff > numeric.right + slack)
    known = np.isfinite(numeric.error)
    # The slope of a cusp is infinite, so at an edge of the domain an infinity may be right.
    finite = (numeric.sides == 2) | ((numeric.sides == 1) & np.isnan(autodiff))
    verdicts = np.full(autodiff.shape, ORDER.index(Verdict.AGREE))
    # Each line overrules those before it.
    for verdict, where in (
        (Verdict.UNRESOLVED, ~(numeric.error <= wide)),
        (Verdict.KINK, numeric.kink),
        (Verdict.WRONG, np.where(numeric.kink, outside, far) & known),
        (Verdict.UNRESOLVED, ~np.isfinite(autodiff)),
        (Verdict.NONFINITE, ~np.isfinite(autodiff) & finite),
    ):
        verdicts = np.where(where, ORDER.index(verdict), verdicts)
    return verdicts
