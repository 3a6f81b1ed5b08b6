"""The report of a check: one row for each leaf, and its printed form."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jaxgrad._numerics import float_eps
from jaxgrad.checking._identities import NAMES, Identity
from jaxgrad.checking._verdict import FAILURES, ORDER, Verdict, worst

# The visible error is the smallest error of one element that the check would have seen.
HEADINGS = "leaf,verdict,relative error,worst index,autodiff,numeric,error bar,visible error"


@dataclass(frozen=True)
class Leaf:
    """The check of one leaf, in one mode and order.

    Attributes:
      path: `jax.tree_util.keystr` in the pytree that `jax.grad` returns; "" for a bare array.
      verdict: see `Verdict`.
      shape, dtype: of the leaf.
      relative_error: `|numeric - autodiff| / |numeric|` over the leaf, Euclidean norms; estimated
        from random directions for a large leaf.
      error_bar: of `numeric`.
      minimum_detectable: smallest error of one element that this check would have seen, in the
        units of the gradient. For a large leaf it is one that each direction of random signs shows;
        an error of ten times that norm spread over elements is missed with `miss_probability`.
      worst_index: of the element with the largest error; `None` for a large leaf that agrees.
      autodiff, numeric: the two derivatives there, or along the direction with the largest error.
      coverage: "every element" or "directions".
      miss_probability: bound on the probability that all normal directions are nearly orthogonal to
        an error of ten times the norm `minimum_detectable`.
      working_error: relative distance of the gradient in the leaf's dtype from the float64 one;
        `None` if they are the same computation.
      reason: what is wrong, or why it could not be resolved.
      mode: "rev" or "fwd".
      order: of the derivative.
    """

    path: str
    verdict: Verdict
    shape: tuple[int, ...]
    relative_error: float = math.nan
    error_bar: float = math.inf
    minimum_detectable: float = math.inf
    worst_index: tuple[int, ...] | None = None
    autodiff: float | complex = math.nan
    numeric: float | complex = math.nan
    dtype: Any = None
    coverage: str = "every element"
    miss_probability: float = 0.0
    working_error: float | None = None
    reason: str = ""
    mode: str = "rev"
    order: int = 1


@dataclass(frozen=True)
class Report:
    """The outcome of `jaxgrad.check_grads`; `print` it.

    Attributes:
      leaves: worst first.
      identities: checks that need no finite differences.
      left_out: (path, type) of the leaves that are not differentiated.
      precision: type in which the numeric derivative was taken.
      notes: further remarks for the reader.
      strict: whether `UNRESOLVED` counts as a failure.
    """

    leaves: tuple[Leaf, ...]
    identities: tuple[Identity, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    precision: str = "float64"
    notes: tuple[str, ...] = ()
    strict: bool = False

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of a leaf."""
        return worst(leaf.verdict for leaf in self.leaves)

    @property
    def ok(self) -> bool:
        """Whether no leaf fails; with `strict`, whether none is unresolved either."""
        unresolved = self.strict and self.verdict is Verdict.UNRESOLVED
        return self.verdict not in FAILURES and not unresolved

    def __str__(self) -> str:
        titles = [_title(leaf, self.leaves) for leaf in self.leaves]
        named = list(zip(titles, self.leaves, strict=True))
        reasons = [f"{title}: {leaf.reason}" for title, leaf in named if leaf.reason]
        for identity in self.identities:
            if identity.holds is False:
                words = f"{NAMES[identity.name]} (relative error {identity.error:.1e})"
                reasons.append(f"does not hold: {words}")
        # A float32 gradient that has lost more than three digits deserves a word.
        digits = [
            f"{title}: {_lost_digits(leaf)}"
            for title, leaf in named
            if (leaf.working_error or 0.0) > 1e3 * float_eps(leaf.dtype)
        ]
        rows = [HEADINGS.split(","), *(_cells(title, leaf) for title, leaf in named)]
        blocks = ([_headline(self)], _table(rows), reasons, digits, _notes(self, named))
        return "\n\n".join("\n".join(block) for block in blocks if block)


def sort_leaves(leaves: Iterable[Leaf]) -> tuple[Leaf, ...]:
    """Sort by verdict, worst first, then by relative error, largest first."""

    def rank(leaf):
        error = leaf.relative_error if math.isfinite(leaf.relative_error) else math.inf
        return ORDER.index(leaf.verdict), -error

    return tuple(sorted(leaves, key=rank))


def _headline(report: Report) -> str:
    verdicts = [leaf.verdict for leaf in report.leaves]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ORDER if v in verdicts)
    return f"{report.verdict}: {counts}; numeric derivative in {report.precision}"


def _title(leaf: Leaf, leaves: Iterable[Leaf]) -> str:
    """Return the path, with mode and order where the report has several of them."""
    mode = f" {leaf.mode}" if any(other.mode != leaf.mode for other in leaves) else ""
    order = f" order {leaf.order}" if any(other.order != leaf.order for other in leaves) else ""
    return (leaf.path or "argument") + mode + order


def _cells(title: str, leaf: Leaf) -> list[str]:
    # The index of a scalar is empty.
    index = str(list(leaf.worst_index)) if leaf.worst_index else ""
    if leaf.worst_index is None and leaf.coverage == "directions":
        index = "a direction"
    # Six digits show an error of 1e-5; error bars need no more than their magnitude.
    numbers = (f"{leaf.autodiff:.6g}", f"{leaf.numeric:.6g}")
    bars = (f"{leaf.error_bar:.0e}", f"{leaf.minimum_detectable:.0e}")
    return [title, str(leaf.verdict), f"{leaf.relative_error:.1e}", index, *numbers, *bars]


def _table(rows: list[list[str]]) -> list[str]:
    """Align names to the left and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = [str.ljust, str.ljust, str.rjust, str.ljust, *[str.rjust] * 4]
    return [
        "  ".join(put(c, width) for put, c, width in zip(align, row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _lost_digits(leaf: Leaf) -> str:
    error = float(leaf.working_error or 0.0)
    # Digits beyond the type's own rounding are lost; those above the error are left.
    lost, left = math.log10(error / float_eps(leaf.dtype)), max(-math.log10(error), 0.0)
    return (
        f"{leaf.dtype} loses {lost:.0f} digits here and keeps {left:.0f} "
        f"(relative distance {error:.1e} from the float64 gradient)"
    )


def _notes(report: Report, named: list[tuple[str, Leaf]]) -> list[str]:
    notes = list(report.notes)
    partly = [(title, leaf) for title, leaf in named if leaf.coverage == "directions"]
    if partly:
        missed = max(leaf.miss_probability for _, leaf in partly)
        names = ", ".join(title for title, _ in partly)
        notes.append(
            f"checked along random directions: {names}; one element off by more than the visible "
            "error is always seen, errors of ten times that norm over many elements are missed "
            f"with a probability below {missed:.0e}"
        )
    # Identities that hold are named, so that a reader knows what was tried.
    held = ", ".join(identity.name for identity in report.identities if identity.holds)
    notes += [f"identities that hold: {held}"] if held else []
    for identity in report.identities:
        if identity.holds is None:
            notes.append(f"identity {identity.name} not tried: {identity.reason}")
    if report.left_out:
        names = ", ".join(f"{path or 'args'} ({kind})" for path, kind in report.left_out)
        notes.append(f"not differentiated: {names}")
    return notes
