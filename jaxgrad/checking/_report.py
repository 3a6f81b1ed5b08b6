"""The results of a check and their printed form: verdicts, identities, one row for each leaf."""

import dataclasses
import enum
import json
import math
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxgrad import _validate
from jaxgrad._html import fragment, save
from jaxgrad._numerics import float_eps

if TYPE_CHECKING:
    import pandas

LOST = 0.3  # A gradient that is this far off in its own type has no right digit.
WIDTH = 100  # of printed lines
SHOWN = 10  # The printed table has at most so many of the leaves that agree.
# The visible error is the smallest error of one element that the check would have seen.
HEADINGS = "leaf,verdict,relative error,worst index,autodiff,numeric,error bar,visible error"
NAMES = {
    "linear": "the backward pass is linear in its cotangent",
    "zero": "a zero cotangent gives a zero gradient",
    "holomorphic": "the derivative is linear over the complex numbers",
    "transpose": "forward and reverse mode are transposes of each other",
    "vmap": "the gradient under vmap is the one without",
    "jit": "the gradient under jit is the one without",
    "symmetry": "second derivatives are symmetric",
}
# How the printed report names those that hold or were not tried.
SHORT = {
    "linear": "linear in the cotangent",
    "zero": "zero for a zero cotangent",
    "holomorphic": "linear over the complex numbers",
    "transpose": "forward mode is the transpose of reverse mode",
    "vmap": "same under vmap",
    "jit": "same under jit",
    "symmetry": "symmetric second derivatives",
}


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


class Identity(NamedTuple):
    """The outcome of one identity that every derivative satisfies."""

    name: str  # a key of `NAMES`
    holds: bool | None  # `None` if it was not tried
    error: float = 0.0  # the largest one, relative to the size of that leaf's gradient
    leaf: int = 0  # index of the leaf with that error
    reason: str = ""  # why it was not tried


@dataclass(frozen=True)
class Leaf:
    """The check of one leaf, in one mode and order.

    Attributes:
      path: `jax.tree_util.keystr` in the pytree that `jax.grad` returns; "" for a bare array.
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
        return min((leaf.verdict for leaf in self.leaves), key=ORDER.index, default=Verdict.AGREE)

    @property
    def ok(self) -> bool:
        """Whether no leaf fails; with `strict`, whether none is unresolved either."""
        unresolved = self.strict and self.verdict is Verdict.UNRESOLVED
        return self.verdict not in FAILURES and not unresolved

    def __bool__(self) -> bool:
        """Whether the report is `ok`, so that it can be asserted."""
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Return the report as dictionaries, lists, text and numbers."""
        fields = {"verdict": str(self.verdict), "ok": self.ok} | dataclasses.asdict(self)
        fields["leaves"] = [_plain(leaf) for leaf in self.leaves]
        fields["identities"] = [identity._asdict() for identity in self.identities]
        return fields

    def to_json(self) -> str:
        """Return `to_dict` as JSON, in which numbers that are not finite are text."""
        return json.dumps(json_numbers(self.to_dict()), allow_nan=False)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a table with a row for each leaf; needs pandas."""
        _validate.installed("to_pandas", "experiments", "pandas")
        import pandas

        return pandas.DataFrame([_plain(leaf) for leaf in self.leaves])

    def _repr_html_(self) -> str:
        """The report, with a table of all leaves that can be sorted."""
        named = [(_title(leaf, self.leaves), leaf) for leaf in self.leaves]
        rows = [_row(title, leaf) for title, leaf in named]
        text = str(self).replace("\n".join(_table(named)) + "\n\n", "")
        return fragment("Check of a gradient", text, HEADINGS.split(","), rows, bad=FAILURES)

    def save_html(self, path: Any) -> None:
        """Write a page with the report, in which the table can be sorted."""
        save(path, "Check of a gradient", self._repr_html_())

    def __str__(self) -> str:
        verdicts = [leaf.verdict for leaf in self.leaves]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ORDER if v in verdicts)
        headline = f"{self.verdict}: {counts}; numeric derivative in {self.precision}"
        named = [(_title(leaf, self.leaves), leaf) for leaf in self.leaves]
        lost = [f"{title} in {leaf.dtype}" for title, leaf in named if _is_lost(leaf)]
        headline += f"; the gradient is lost in the working type: {', '.join(lost)}" * bool(lost)
        reasons = [f"{title}: {leaf.reason}" for title, leaf in named if leaf.reason]
        reasons += [
            f"does not hold: {NAMES[identity.name]} (relative error {identity.error:.1e})"
            for identity in self.identities
            if identity.holds is False
        ]
        # A float32 gradient that has lost more than three digits deserves a word.
        digits = [
            f"{title}: {_lost_digits(leaf)}"
            for title, leaf in named
            if (leaf.working_error or 0.0) > 1e3 * float_eps(leaf.dtype)
        ]
        blocks = ([headline], _table(named), reasons, digits, _notes(self, named))
        return "\n\n".join("\n".join(block) for block in blocks if block)


def sort_leaves(leaves: Iterable[Leaf]) -> tuple[Leaf, ...]:
    """Sort by verdict, worst first, then by relative error, largest first."""

    def rank(leaf):
        error = leaf.relative_error if math.isfinite(leaf.relative_error) else math.inf
        return ORDER.index(leaf.verdict), -error

    return tuple(sorted(leaves, key=rank))


def _plain(leaf: Leaf) -> dict[str, Any]:
    """Return the fields of a leaf, with text for its verdict and dtype."""
    return dataclasses.asdict(leaf) | {"verdict": str(leaf.verdict), "dtype": str(leaf.dtype)}


def json_numbers(value: Any) -> Any:
    """Replace numbers that JSON does not have by text."""
    if isinstance(value, dict):
        return {name: json_numbers(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_numbers(entry) for entry in value]
    if isinstance(value, complex) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value


def _title(leaf: Leaf, leaves: Iterable[Leaf]) -> str:
    """Return the path, with mode and order where the report has several of them."""
    mode = f" {leaf.mode}" if any(other.mode != leaf.mode for other in leaves) else ""
    order = f" order {leaf.order}" if any(other.order != leaf.order for other in leaves) else ""
    return (leaf.path or "argument") + mode + order


def _table(named: list[tuple[str, Leaf]]) -> list[str]:
    """Return the lines of a table with a row for each leaf."""
    rows: list[Any] = [HEADINGS.split(",")]
    agree = [leaf for _, leaf in named if leaf.verdict is Verdict.AGREE]
    hidden = len(agree) - SHOWN
    # Leaves that agree come last, those with the largest errors first.
    for title, leaf in named[: -hidden if hidden > 0 else None]:
        rows.append(_row(title, leaf))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # Names are aligned to the left, numbers to the right.
    columns = [f"{{:{side}{width}}}" for side, width in zip("<<><>>>>", widths, strict=True)]
    lines = ["  ".join(columns).format(*row).rstrip() for row in rows]
    lines += [f"and {hidden} leaves more that agree, with smaller errors"] * (hidden > 0)
    return lines


def _row(title: str, leaf: Leaf) -> list[str]:
    # The index of a scalar is empty.
    index = str(list(leaf.worst_index)) if leaf.worst_index else ""
    if leaf.worst_index is None and leaf.coverage == "directions":
        index = "a direction"
    # Six digits show an error of 1e-5; error bars need no more than their magnitude.
    numbers = (f"{leaf.autodiff:.6g}", f"{leaf.numeric:.6g}")
    bars = (f"{leaf.error_bar:.0e}", f"{leaf.minimum_detectable:.0e}")
    return [title, str(leaf.verdict), f"{leaf.relative_error:.1e}", index, *numbers, *bars]


def _is_lost(leaf: Leaf) -> bool:
    """Whether not even the first digit of the gradient in the leaf's type is right."""
    return (leaf.working_error or 0.0) >= LOST


def _lost_digits(leaf: Leaf) -> str:
    error = float(leaf.working_error or 0.0)
    distance = f"relative distance {error:.1e} from the float64 gradient"
    if _is_lost(leaf):
        return f"{leaf.dtype} loses the whole gradient here ({distance})"
    # Digits beyond the type's own rounding are lost; those above the error are left.
    lost, left = math.log10(error / float_eps(leaf.dtype)), -math.log10(error)
    return f"{leaf.dtype} loses {lost:.0f} digits here and keeps {left:.0f} ({distance})"


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
    held = ", ".join(SHORT[identity.name] for identity in report.identities if identity.holds)
    notes += textwrap.wrap(f"also holds: {held}", WIDTH, subsequent_indent="  ") if held else []
    untried = [identity for identity in report.identities if identity.holds is None]
    notes += [f"not tried: {SHORT[identity.name]} ({identity.reason})" for identity in untried]
    if report.left_out:
        names = ", ".join(f"{path or 'args'} ({kind})" for path, kind in report.left_out)
        notes.append(f"not differentiated: {names}")
    return notes
