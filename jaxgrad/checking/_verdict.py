"""The verdicts of a check, from worst to best."""

import enum
from collections.abc import Iterable


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
