"""The last stage of a check: from the rows of all leaves to one report."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxgrad._numerics import norm
from jaxgrad.checking._arguments import LeafInfo
from jaxgrad.checking._autodiff import Autodiff
from jaxgrad.checking._compare import element, relative
from jaxgrad.checking._directions import leaf_indices
from jaxgrad.checking._numeric import Numeric
from jaxgrad.checking._prepare import Problem
from jaxgrad.checking._report import FAILURES, NAMES, Identity, Leaf, Report, Verdict, sort_leaves

NOISE = 10  # So many times the error of a function may violate an identity.


def conclude(
    problem: Problem, autodiff: Autodiff, leaves: list[Leaf], numeric: Numeric, strict: bool
) -> Report:
    """Return the report on one problem; `leaves` are its rows, all leaves for each mode."""
    tolerance, noise = numeric.tolerance, _noise_by_leaf(problem, numeric)
    identities = tuple(_unless_noise(i, problem, autodiff, noise) for i in autodiff.identities)
    rows = []
    for i, row in enumerate(leaves):
        # The leaves repeat for each mode.
        index = i % len(problem.leaves)
        row = _with_working_error(row, problem.leaves[index], autodiff)
        others = [other.verdict for other in leaves[index :: len(problem.leaves)]]
        rows.append(_with_identities(row, index, identities, others))
    notes = list(problem.notes)
    if tolerance.raised:
        notes.append(
            f"f has loops that stop at a tolerance: a relative error of {tolerance.rtol:g} may pass"
        )
    # Parts of the function whose derivative may be meant to differ from its values.
    if any(row.verdict is Verdict.WRONG for row in rows):
        if problem.facts.stops:
            notes.append(
                "f calls stop_gradient: its derivative may be meant to differ from its body"
            )
        if problem.facts.rules:
            rules = ", ".join(problem.facts.rules)
            notes.append(f"functions with a custom derivative rule: {rules}")
    return _report(problem, rows, identities, notes, strict)


def _noise_by_leaf(problem: Problem, numeric: Numeric) -> np.ndarray:
    """Return the largest error of the function that directions through each leaf show, `[L]`."""
    noise = np.zeros(len(problem.leaves))
    # The pilot of a leaf may show none, as where no step gives an estimate.
    shown = np.where(np.isfinite(numeric.derivative.error), numeric.derivative.noise, 0.0)
    np.maximum.at(noise, leaf_indices(numeric.directions), shown)
    return np.fmax(noise, numeric.plan.noise) if len(numeric.plan.noise) else noise


def _unless_noise(identity: Identity, problem: Problem, autodiff: Autodiff, noise) -> Identity:
    """Let an identity hold if it is violated by less than errors of the function explain."""
    if identity.holds is not False or autodiff.gradient is None:
        return identity
    info, scale = problem.leaves[identity.leaf], problem.scales[identity.leaf]
    size = norm(autodiff.gradient[info.part]) or 1.0
    # An error of f by e is one of e / scale in a slope. All terms of a slope may cancel, so that
    # nothing of the gradient is left to compare a violation with.
    explained = NOISE * float(noise[identity.leaf]) / scale * math.sqrt(info.size)
    return identity._replace(holds=bool(identity.error * size <= explained))


def reject(problem: Problem, verdict: Verdict, reason: str, strict: bool) -> Report:
    """Return the report on a function that cannot be checked at all."""
    rows = [Leaf(i.path, verdict, i.shape, dtype=i.dtype, reason=reason) for i in problem.leaves]
    return _report(problem, rows, (), problem.notes, strict)


def _report(problem, rows, identities, notes, strict) -> Report:
    precision = "float64" if problem.numeric.wide else "the type of the arguments"
    leaves = sort_leaves(rows)
    return Report(leaves, identities, problem.left_out, precision, tuple(notes), strict)


def combine(lower: Report, higher: Report, problem: Problem) -> Report:
    """Return one report for several orders; `problem` is that of the report `higher`."""
    if problem.nearby:
        # The user did not ask about this point, so only an error there is reported.
        place = "at a point close by, the first derivative: "
        leaves = [
            dataclasses.replace(leaf, order=2, reason=place + leaf.reason)
            for leaf in higher.leaves
            if leaf.verdict is Verdict.WRONG
        ]
        return dataclasses.replace(lower, leaves=sort_leaves([*lower.leaves, *leaves]))
    # An identity that holds in a higher order says nothing new, except for symmetry.
    identities = [i for i in higher.identities if i.holds is False or i.name == "symmetry"]
    return dataclasses.replace(
        lower,
        leaves=sort_leaves([*lower.leaves, *higher.leaves]),
        identities=(*lower.identities, *identities),
        notes=tuple(dict.fromkeys((*lower.notes, *higher.notes))),
    )


def _with_working_error(row: Leaf, info: LeafInfo, autodiff: Autodiff) -> Leaf:
    """Compare the gradient in the arguments' types with the float64 one, where both exist."""
    if autodiff.original is None or autodiff.gradient is None or row.mode != "rev":
        return row
    original, wide = autodiff.original[info.part], autodiff.gradient[info.part]
    row = dataclasses.replace(row, working_error=relative(original, wide))
    # The gradient that the user computes is what counts, whatever float64 shows.
    bad = ~np.isfinite(original) & np.isfinite(wide)
    if not bad.any() or row.verdict in FAILURES:
        return row
    index, value, _ = element(info, int(np.argmax(bad)), original, original)
    return dataclasses.replace(
        row,
        verdict=Verdict.NONFINITE,
        worst_index=index,
        autodiff=value,
        reason=f"autodiff is not finite in {info.dtype}, though it is in float64",
    )


def _with_identities(row: Leaf, index: int, identities: Sequence[Identity], others) -> Leaf:
    """Mark a leaf as wrong where the error of an identity that fails is largest.

    `others` are the verdicts on the same leaf in all modes.
    """
    for identity in identities:
        # Symmetry is a property of the whole second derivative, not of a leaf.
        if identity.holds is not False or identity.leaf != index or identity.name == "symmetry":
            continue
        words = f"does not hold: {NAMES[identity.name]}"
        if identity.name == "transpose" and row.verdict is Verdict.AGREE:
            if Verdict.WRONG in others:
                continue
            blamed = "forward" if row.mode == "rev" else "reverse"
            words += f"; this mode agrees with the numeric derivative, so {blamed} mode is wrong"
        verdict = row.verdict if row.verdict in FAILURES else Verdict.WRONG
        reason = f"{row.reason}; {words}" if row.reason else words
        row = dataclasses.replace(row, verdict=verdict, reason=reason)
    return row
