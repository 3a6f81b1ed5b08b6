"""The report of `check_expectation`: verdicts, a row for each leaf, and the printed form."""

import dataclasses
import enum
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxgrad.checking._report import json_numbers

SHOWN = 10  # The printed table has at most so many of the unbiased leaves.
HEADINGS = (
    "leaf,verdict,worst index,mean gradient,gradient of mean,difference,step bias,p,visible bias"
)


class ExpectationVerdict(enum.StrEnum):
    """Outcome of a check of a mean gradient, worst first."""

    NONFINITE = "NONFINITE"
    """The gradient is NaN or infinite for some keys for which the function is finite."""
    BIASED = "BIASED"
    """The mean gradient is not the gradient of the mean."""
    DISCONTINUOUS = "DISCONTINUOUS"
    """It is not, because for a fixed key the function jumps, and the gradient misses the jumps."""
    UNRESOLVED = "UNRESOLVED"
    """No bias is seen, but a bias of a size worth mentioning could not have been seen."""
    UNBIASED = "UNBIASED"
    """No bias is seen, and a bias of a size worth mentioning would have been seen."""


ORDER = tuple(ExpectationVerdict)
FAILURES = ORDER[:3]
CONCLUSIONS = {
    ORDER[0]: "the gradient is not finite for some keys",
    ORDER[1]: "the mean gradient is not the gradient of the mean",
    ORDER[2]: "the gradient misses jumps of the function at a fixed key",
    ORDER[3]: "these keys cannot show whether the mean gradient is the gradient of the mean",
    ORDER[4]: "the mean gradient is the gradient of the mean",
}


@dataclass(frozen=True)
class ExpectationLeaf:
    """The check of one leaf. Numbers are those of one element, or along one direction.

    Attributes:
      path: `jax.tree_util.keystr` in the pytree that `jax.grad` returns; "" for a bare array.
      worst_index: of the element with the smallest p-value; `None` if a bias shows only along a
        direction through many elements, or if nothing could be measured.
      autodiff, autodiff_error: mean gradient over keys and its standard error.
      numeric, numeric_error: difference quotient of the mean and its standard error.
      difference, difference_error: `autodiff - numeric` and its standard error, which is smaller
        than those of the two where they vary together.
      step: of the difference quotient, in units of the argument.
      step_bias: bound on the error of the difference quotient from its step and from rounding.
      p_value: probability of such a difference in some element of the leaf if there is no bias,
        corrected for the number of elements and, by Holm's method, for the number of leaves.
      minimum_detectable: smallest bias of any one element that would have been seen, with
        probability 0.9, in units of the gradient.
      gradient_size: largest element of the leaf's mean gradient, with which it is compared.
      largest_share: share of the variance of the difference that one key has; the standard error
        says little if it is large.
      jump_share: share of keys for which the function jumps within one step; `None` if no search
        was needed.
      jump_contribution, jump_error: what these jumps add to `numeric`, and its standard error.
      reason: what is wrong, or why it could not be resolved.
    """

    path: str
    verdict: ExpectationVerdict
    shape: tuple[int, ...]
    worst_index: tuple[int, ...] | None = None
    autodiff: float = math.nan
    autodiff_error: float = math.inf
    numeric: float = math.nan
    numeric_error: float = math.inf
    difference: float = math.nan
    difference_error: float = math.inf
    step: float = math.nan
    step_bias: float = math.inf
    p_value: float = 1.0
    minimum_detectable: float = math.inf
    gradient_size: float = math.nan
    largest_share: float = math.nan
    jump_share: float | None = None
    jump_contribution: float = math.nan
    jump_error: float = math.inf
    reason: str = ""


@dataclass(frozen=True)
class ExpectationReport:
    """The outcome of `checking.check_expectation`; `print` it.

    Attributes:
      leaves: worst first.
      samples: number of keys.
      alpha: probability of a false `BIASED` or `DISCONTINUOUS` in the whole report.
      resolution: size of a bias worth mentioning, relative to the leaf's largest mean gradient.
      left_out: (path, type) of the leaves that are not differentiated.
      precision: type in which everything was computed.
      notes: further remarks for the reader.
      strict: whether `UNRESOLVED` counts as a failure.
    """

    leaves: tuple[ExpectationLeaf, ...]
    samples: int
    alpha: float
    resolution: float
    left_out: tuple[tuple[str, str], ...] = ()
    precision: str = "float64"
    notes: tuple[str, ...] = ()
    strict: bool = False

    @property
    def verdict(self) -> ExpectationVerdict:
        """The worst verdict of a leaf."""
        return min((leaf.verdict for leaf in self.leaves), key=ORDER.index)

    @property
    def ok(self) -> bool:
        """Whether no leaf fails; with `strict`, whether none is unresolved either."""
        unresolved = self.strict and self.verdict is ExpectationVerdict.UNRESOLVED
        return self.verdict not in FAILURES and not unresolved

    def __bool__(self) -> bool:
        """Whether the report is `ok`, so that it can be asserted."""
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Return the report as dictionaries, lists, text and numbers."""
        fields = {"verdict": str(self.verdict), "ok": self.ok} | dataclasses.asdict(self)
        fields["leaves"] = [
            dataclasses.asdict(leaf) | {"verdict": str(leaf.verdict)} for leaf in self.leaves
        ]
        return fields

    def to_json(self) -> str:
        """Return `to_dict` as JSON, in which numbers that are not finite are text."""
        return json.dumps(json_numbers(self.to_dict()), allow_nan=False)

    def __str__(self) -> str:
        verdicts = [leaf.verdict for leaf in self.leaves]
        worst = verdicts.count(self.verdict)
        headline = f"{self.verdict}: {CONCLUSIONS[self.verdict]}"
        if len(verdicts) > 1:
            headline += f" ({worst} of {len(verdicts)} leaves)"
        # Of a leaf without a bias there is nothing to explain.
        reasons = [f"{leaf.path or 'argument'}: {leaf.reason}" for leaf in self.leaves]
        reasons = [line for line, leaf in zip(reasons, self.leaves, strict=True) if leaf.reason]
        # A reader who sees UNBIASED must know of which bias.
        notes = [
            f"{self.samples} keys in {self.precision}; ± standard error; a false alarm has a "
            f"probability of at most {self.alpha:g}",
            f"UNBIASED means: no bias is seen, and one of {self.resolution:g} of the leaf's "
            "largest mean gradient would be seen",
            *self.notes,
        ]
        if self.left_out:
            names = ", ".join(f"{path or 'args'} ({kind})" for path, kind in self.left_out)
            notes.append(f"not differentiated: {names}")
        blocks = ([headline], _rows(self.leaves), reasons, notes)
        return "\n\n".join("\n".join(block) for block in blocks if block)


def sort_expectation_leaves(leaves: Iterable[ExpectationLeaf]) -> tuple[ExpectationLeaf, ...]:
    """Sort by verdict, worst first, then by p-value, smallest first."""
    return tuple(sorted(leaves, key=lambda leaf: (ORDER.index(leaf.verdict), leaf.p_value)))


def _rows(leaves: tuple[ExpectationLeaf, ...]) -> list[str]:
    """Return the lines of a table with a row for each leaf."""
    hidden = sum(leaf.verdict is ORDER[-1] for leaf in leaves) - SHOWN
    rows: list[Any] = [HEADINGS.split(",")]
    # Unbiased leaves come last.
    for leaf in leaves[: -hidden if hidden > 0 else None]:
        # The index of a scalar is empty.
        index = "a direction" if leaf.worst_index is None else str(list(leaf.worst_index))
        rows.append(
            [
                leaf.path or "argument",
                str(leaf.verdict),
                index if leaf.shape else "",
                with_error(leaf.autodiff, leaf.autodiff_error),
                with_error(leaf.numeric, leaf.numeric_error),
                with_error(leaf.difference, leaf.difference_error),
                f"{leaf.step_bias:.0e}",
                f"{leaf.p_value:.1e}",
                f"{leaf.minimum_detectable:.0e}",
            ]
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Names are aligned to the left, numbers to the right.
    columns = [f"{{:{side}{width}}}" for side, width in zip("<<<>>>>>>", widths, strict=True)]
    lines = ["  ".join(columns).format(*row).rstrip() for row in rows]
    return lines + [f"and {hidden} leaves more without a bias"] * (hidden > 0)


def with_error(value: float, error: float) -> str:
    """Return a number and its standard error; digits beyond the error's second are not shown."""
    if not (math.isfinite(value) and math.isfinite(error)):
        return f"{value:.4g} ± {error:.1g}"
    # The last digit that is shown has the place of the error's second one.
    digits = 6
    if value and error:
        digits = 2 + math.floor(math.log10(abs(value))) - math.floor(math.log10(error))
    return f"{value:.{min(max(digits, 1), 6)}g} ± {error:.2g}"
