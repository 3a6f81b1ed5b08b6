"""Two numbers and an error bar to a verdict."""

from __future__ import annotations

import enum

import numpy as np

from jaxgrad.checking.ladders import Derivative


class Verdict(enum.StrEnum):
    """What a check says of a gradient; worst first."""

    NONDETERMINISTIC = "NONDETERMINISTIC"
    """The function returns two values for one input."""
    NONFINITE = "NONFINITE"
    """Autodiff gives NaN or infinity where the function is finite around the point."""
    WRONG = "WRONG"
    """Autodiff lies outside of the numeric derivative's error bar and the tolerance."""
    UNRESOLVED = "UNRESOLVED"
    """The numeric derivative's error bar is too wide to tell."""
    KINK = "KINK"
    """The one-sided derivatives differ, and autodiff lies between them."""
    AGREE = "AGREE"
    """Autodiff equals the numeric derivative."""


ORDER = tuple(Verdict)
FAILURES = (Verdict.NONDETERMINISTIC, Verdict.NONFINITE, Verdict.WRONG)


def worst(verdicts) -> Verdict:
    """The gravest of some verdicts; `AGREE` of none."""
    return min(verdicts, key=ORDER.index, default=Verdict.AGREE)


def judge(
    autodiff: np.ndarray, numeric: Derivative, tolerance: np.ndarray, wide: np.ndarray
) -> np.ndarray:
    """Judge each number by itself.

    Args:
      autodiff: `[P]`.
      numeric: the numeric derivatives, `[P]`.
      tolerance: what may separate the two besides the error bar, `[P]`.
      wide: the error bar beyond which nothing is said, `[P]`.

    Returns:
      Verdicts as positions in `ORDER`, `[P]`.
    """
    with np.errstate(invalid="ignore"):
        slack = numeric.error + tolerance
        apart = np.abs(autodiff - numeric.value) > slack
        outside = (autodiff < numeric.left - slack) | (autodiff > numeric.right + slack)
        known = np.isfinite(numeric.error)
        # A cusp has an infinite slope, so at an edge an infinity may be the truth.
        finite = (numeric.sides == 2) | ((numeric.sides == 1) & np.isnan(autodiff))
        found = np.full(autodiff.shape, ORDER.index(Verdict.AGREE))
        for verdict, where in (
            (Verdict.UNRESOLVED, ~(numeric.error <= wide)),
            (Verdict.KINK, numeric.kink),
            (Verdict.WRONG, np.where(numeric.kink, outside, apart) & known),
            (Verdict.UNRESOLVED, ~np.isfinite(autodiff)),
            (Verdict.NONFINITE, ~np.isfinite(autodiff) & finite),
        ):
            found = np.where(where, ORDER.index(verdict), found)
    return found
