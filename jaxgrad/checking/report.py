"""What a person reads of a check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgrad.checking import identities
from jaxgrad.checking.identities import Identity
from jaxgrad.checking.verdicts import FAILURES, ORDER, Verdict, worst


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
      minimum_detectable: an error of one element that this check would have caught, in the units of
        the gradient. For a large leaf it is one that each random direction of signs shows; an
        error of ten times that norm spread over elements is missed with `miss_probability`.
      worst_index: of the element that is furthest off; `None` for a large leaf in order.
      autodiff, numeric: the two derivatives there, or along the direction that is furthest off.
      coverage: "every element" or "directions".
      miss_probability: bound for an error of ten times the norm `minimum_detectable`, of any shape:
        that each normal direction lies so nearly across it.
      working_error: relative distance of the gradient in the leaf's own dtype from the float64 one;
        `None` where they are the same computation.
      reason: what is wrong, or why it could not be resolved, in words.
      mode: "rev" or "fwd".
      order: of the derivative.
    """

    path: str
    verdict: Verdict
    shape: tuple[int, ...]
    relative_error: float
    error_bar: float
    minimum_detectable: float
    worst_index: tuple[int, ...] | None
    autodiff: complex
    numeric: complex
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
      identities: what needs no finite differences.
      left_out: (path, what it is) of the leaves that are not differentiated.
      precision: the type in which the numeric derivative was taken.
      notes: what else a reader should know.
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
        """The worst leaf's."""
        return worst(leaf.verdict for leaf in self.leaves)

    @property
    def ok(self) -> bool:
        """Nothing wrong, non-finite or non-deterministic; with `strict`, nothing unresolved."""
        return not (
            self.verdict in FAILURES or (self.strict and self.verdict is Verdict.UNRESOLVED)
        )

    def __str__(self) -> str:
        rows = [("leaf", "verdict", "relative error", "at", "autodiff", "numeric", "±", "finds")]
        for leaf in self.leaves:
            where = "" if leaf.worst_index is None else _index(leaf.worst_index)
            if leaf.worst_index is None and leaf.coverage == "directions":
                where = "a direction"
            rows.append(
                (
                    _title(leaf, self.leaves),
                    str(leaf.verdict),
                    f"{leaf.relative_error:.1e}",
                    where,
                    _number(leaf.autodiff),
                    _number(leaf.numeric),
                    f"{leaf.error_bar:.0e}",
                    f"{leaf.minimum_detectable:.0e}",
                )
            )
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 2 or i == 3 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        head = f"{self.verdict}: " + _headline(self)
        out = [head, "", *lines]
        reasons = [
            f"{_title(leaf, self.leaves)}: {leaf.reason}" for leaf in self.leaves if leaf.reason
        ]
        failed = [
            f"does not hold: {identities.NAMES[i.name]} (relative error {i.error:.1e})"
            for i in self.identities
            if i.holds is False
        ]
        held = [i.name for i in self.identities if i.holds]
        precision = [
            f"{_title(leaf, self.leaves)}: {_precision(leaf)}"
            for leaf in self.leaves
            if leaf.working_error is not None and leaf.working_error > 1e3 * _eps(leaf.dtype)
        ]
        notes = list(self.notes)
        partly = [leaf for leaf in self.leaves if leaf.coverage == "directions"]
        if partly:
            chance = max(leaf.miss_probability for leaf in partly)
            notes.append(
                "checked along directions: "
                + ", ".join(_title(leaf, self.leaves) for leaf in partly)
                + '; one element off by more than "finds" is always seen, errors of ten times '
                f"that norm over many elements are missed with a probability below {chance:.0e}"
            )
        if held:
            notes.append("identities that hold: " + ", ".join(held))
        for identity in self.identities:
            if identity.holds is None:
                notes.append(f"identity {identity.name} left out: {identity.reason}")
        if self.left_out:
            notes.append(
                "not differentiated: "
                + ", ".join(f"{p or 'args'} ({why})" for p, why in self.left_out)
            )
        for block in (reasons + failed, precision, notes):
            if block:
                out += ["", *block]
        return "\n".join(out)


def sort(leaves: list[Leaf]) -> tuple[Leaf, ...]:
    """Worst verdict first, then largest relative error."""

    def rank(leaf):
        error = leaf.relative_error if np.isfinite(leaf.relative_error) else np.inf
        return ORDER.index(leaf.verdict), -error

    return tuple(sorted(leaves, key=rank))


def _headline(report: Report) -> str:
    counts = [
        f"{sum(leaf.verdict is v for leaf in report.leaves)} {v}"
        for v in ORDER
        if any(leaf.verdict is v for leaf in report.leaves)
    ]
    return f"{', '.join(counts)}; numeric derivative in {report.precision}"


def _title(leaf: Leaf, leaves) -> str:
    name = leaf.path or "argument"
    if len({item.mode for item in leaves}) > 1:
        name += f" {leaf.mode}"
    if len({item.order for item in leaves}) > 1:
        name += f" order {leaf.order}"
    return name


def _index(index: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, index)) + "]" if index else ""


def _number(value: complex) -> str:
    return f"{value:.6g}"


def _eps(dtype: Any) -> float:
    import jax.numpy as jnp

    return float(jnp.finfo(dtype).eps)


def _precision(leaf: Leaf) -> str:
    """How many digits the user's own type keeps."""
    error = float(leaf.working_error or 0.0)
    lost = np.log10(max(error, 1e-300) / _eps(leaf.dtype))
    kept = max(-np.log10(max(error, 1e-300)), 0.0)
    return (
        f"{leaf.dtype} loses {lost:.0f} digits here and keeps {kept:.0f} "
        f"(relative distance {error:.1e} from the float64 gradient)"
    )
