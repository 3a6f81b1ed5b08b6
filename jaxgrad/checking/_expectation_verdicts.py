"""Verdicts on the leaves: tests for a bias, what could have been seen, and a search for jumps."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from jaxgrad.checking import _expectation_samples as sampling
from jaxgrad.checking._expectation_prepare import Experiment
from jaxgrad.checking._expectation_report import (
    ExpectationLeaf,
    ExpectationVerdict,
    with_error,
)
from jaxgrad.checking._expectation_samples import Moments
from jaxgrad.checking._expectation_steps import LARGEST_SHARE, Plan, reliable_errors

POWER = 0.9  # probability with which the visible bias is seen
MANY_JUMPS = 0.3  # A smaller step is used if so many keys have jumps, of which one is searched.


@dataclass(frozen=True)
class _Row:
    """A row of the report, and the index in `Moments` of the coordinate whose numbers it has."""

    leaf: ExpectationLeaf
    position: int


def judge(experiment: Experiment, plan: Plan, moments: Moments, alpha, resolution) -> list[_Row]:
    """Test each leaf for a bias, and correct the p-values for their number."""
    rows = [
        _test(experiment, plan, moments, j, alpha, resolution)
        for j in range(len(experiment.leaves))
    ]
    verdict, judged = ExpectationVerdict, []
    p_values = _holm([row.leaf.p_value for row in rows])
    for row, p_value in zip(rows, p_values, strict=True):
        leaf = dataclasses.replace(row.leaf, p_value=p_value)
        # A gradient that is not finite has no p-value.
        if leaf.verdict in (verdict.UNBIASED, verdict.UNRESOLVED) and p_value <= alpha:
            reason = _compare(leaf)
            leaf = dataclasses.replace(leaf, verdict=verdict.BIASED, reason=reason)
        judged.append(dataclasses.replace(row, leaf=leaf))
    return judged


def _compare(leaf: ExpectationLeaf) -> str:
    size = abs(leaf.numeric)
    if size > 4 * leaf.numeric_error and leaf.autodiff:
        ratio = with_error(leaf.autodiff / leaf.numeric, leaf.difference_error / size)
        return f"the mean gradient is {ratio} times the gradient of the mean"
    if size > 4 * leaf.numeric_error:
        return "the mean gradient is zero, the gradient of the mean is not"
    return "the gradient of the mean is zero within its error, the mean gradient is not"


@np.errstate(all="ignore")
def _test(experiment: Experiment, plan: Plan, moments: Moments, j: int, alpha, resolution) -> _Row:
    """Return the row of a leaf as if there were no bias, and its p-value before Holm's method."""
    info, part, version = experiment.leaves[j], experiment.part(j), plan.versions[j]
    index, numeric = sampling.DIFFERENCE[version], sampling.NUMERIC[version]
    # Of a single coordinate the vector says nothing new.
    part, count = (part if info.size > 1 else part[:1]), info.size
    mean, error = moments.mean[:, part], moments.error[:, part]
    reliable, share = reliable_errors(moments, index)[part], moments.share[index, part]
    reliable = np.maximum(reliable, plan.rare[j])
    sizes = np.abs([mean[sampling.AUTODIFF], mean[numeric], error[sampling.AUTODIFF]])
    size = float(np.max(sizes[:, :count]))
    spread = np.append(np.ones(count), np.abs(plan.vectors[info.part]).sum())[: len(part)]
    bias = moments.step_bias[part] + experiment.tolerance * size * spread
    excess = np.maximum(np.abs(mean[index]) - bias, 0.0)
    scores = np.where(excess > 0, excess / reliable, 0.0)
    worst = int(np.argmax(np.nan_to_num(scores[:count], nan=-1.0)))
    # Half of the level is for the elements, together, the other half for the vector.
    tests = 2 * count if count > 1 else 1
    p_values = [min(1.0, tests * math.erfc(scores[worst] / math.sqrt(2)))]
    if count > 1:
        p_values.append(min(1.0, 2 * math.erfc(scores[count] / math.sqrt(2))))
    # A bias spread over many elements may show in none of them.
    selected = count if p_values[-1] < alpha <= p_values[0] else worst
    normal = NormalDist()
    level = alpha / (2 * tests * len(experiment.leaves))
    visible = (normal.inv_cdf(1 - level) + normal.inv_cdf(POWER)) * reliable[:count]
    detectable = float(np.max(visible + bias[:count]))
    verdict, reason = ExpectationVerdict.UNBIASED, ""
    # Without a difference, only a bias that would have been seen is excluded.
    if not detectable <= resolution * size:
        verdict = ExpectationVerdict.UNRESOLVED
        reason = _why_unresolved(moments, visible, bias[:count], share[:count], size, resolution)
    finite = [np.isfinite(mean[i, :count]).all() for i in (sampling.AUTODIFF, sampling.RAW)]
    if not all(finite):
        verdict = ExpectationVerdict.UNRESOLVED
        reason = "f is not finite for some keys within one step"
        if finite[1]:
            verdict = ExpectationVerdict.NONFINITE
            reason = "the gradient is not finite for some keys, though f is"
            selected = worst = int(np.argmin(np.isfinite(mean[sampling.AUTODIFF, :count])))
        p_values = [1.0]
    place = np.unravel_index(worst, info.axes)[len(info.axes) - len(info.shape) :]
    leaf = ExpectationLeaf(
        path=info.path,
        verdict=verdict,
        shape=info.shape,
        worst_index=tuple(int(i) for i in place) if selected == worst else None,
        autodiff=float(mean[sampling.AUTODIFF, selected]),
        autodiff_error=float(error[sampling.AUTODIFF, selected]),
        numeric=float(mean[numeric, selected]),
        numeric_error=float(error[numeric, selected]),
        difference=float(mean[index, selected]),
        difference_error=float(error[index, selected]),
        step=float(plan.steps[j]),
        step_bias=float(bias[selected]),
        p_value=min(p_values),
        minimum_detectable=detectable,
        gradient_size=size,
        largest_share=float(share[selected]),
        reason=reason,
    )
    return _Row(leaf, int(part[selected]))


def _why_unresolved(moments: Moments, visible, bias, share, size, resolution) -> str:
    if np.max(share) > LARGEST_SHARE:
        share = f"one key of {moments.samples} has {np.max(share):.0%} of the variance"
        return f"{share}, so that standard errors say little; more samples may help"
    detectable = float(np.max(visible + bias))
    words = f"only a bias of {detectable:.2g} could have been seen"
    if size > 0:
        words += f", {detectable / size:.0%} of the mean gradient"
    room = resolution * size - bias
    if np.all(room > 0):
        # The noise falls with the root of the number of keys.
        needed = moments.samples * float(np.max(visible / room)) ** 2
        words += f"; {resolution:.0%} would need samples={needed:.1g}"
    return words


def _holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number (Holm, 1979)."""
    order, corrected, largest = np.argsort(p_values), [1.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def confirm(plan: Plan, rows: list[_Row], smaller: Sequence[Moments]) -> list[_Row]:
    """Withdraw each bias of which not even half shows with steps that are smaller.

    Near the edge of a domain, as at the probability 0.01, no larger step shows that it is too
    large: the mean has a kink there, and the bias of the quotient hardly depends on the step.
    """
    confirmed = []
    for row, version in zip(rows, plan.versions, strict=True):
        leaf = row.leaf
        if leaf.verdict is ExpectationVerdict.BIASED:
            index = (sampling.DIFFERENCE[version], row.position)
            shares = [float(moments.mean[index]) / leaf.difference for moments in smaller]
            # The noise is larger there, so no more than a half is asked for.
            if not min(shares) > 0.5:
                size = max(leaf.minimum_detectable, abs(leaf.difference))
                leaf = dataclasses.replace(
                    leaf,
                    verdict=ExpectationVerdict.UNRESOLVED,
                    minimum_detectable=size,
                    reason=f"a difference of {leaf.difference:.2g} is not seen with smaller steps, "
                    "so that the step may be the reason",
                )
        confirmed.append(dataclasses.replace(row, leaf=leaf))
    return confirmed


def explain(experiment: Experiment, plan: Plan, rows: list[_Row], keys, chunk: int):
    """Search jumps of `f` at fixed keys, which may be the reason for a difference or for noise."""
    first, steps = experiment.measure("jumps", keys[0], chunk, plan.steps, plan.vectors), plan.steps
    shares = first.mean[sampling.JUMPS]
    starts = [info.start for info in experiment.leaves]
    small = steps.copy()
    # Only one jump of each key is searched, so steps are made so small that few keys have two.
    while np.any(shares[starts] > MANY_JUMPS) and np.all(small > 1e-3 * steps):
        small = np.where(shares[starts] > MANY_JUMPS, small / 4, small)
        shares = experiment.measure("jumps", keys[0], chunk, small, plan.vectors).mean[0]
    moments = experiment.measure("jumps", keys[1], chunk, small, plan.vectors)
    explained = []
    for j, (info, row) in enumerate(zip(experiment.leaves, rows, strict=True)):
        leaf, verdict = row.leaf, ExpectationVerdict
        if leaf.verdict in (verdict.UNBIASED, verdict.NONFINITE):
            explained.append(leaf)
            continue
        share = float(first.mean[sampling.JUMPS, info.start])
        contribution = float(moments.mean[sampling.CONTRIBUTION, row.position])
        error = float(moments.error[sampling.CONTRIBUTION, row.position])
        matches = float(moments.mean[sampling.MATCHES, info.start])
        fields: dict[str, Any] = {"jump_share": share, "jump_contribution": contribution}
        jumps = f"for {share:.2g} of the keys f jumps within a step of {steps[j]:.2g}"
        if share > 0 and leaf.verdict is verdict.UNRESOLVED:
            fields["reason"] = f"{leaf.reason}; {jumps}"
        elif share > 0:
            added = with_error(contribution, error)
            fields["reason"] = f"{leaf.reason}; {jumps}, which adds {added} to the latter"
            # The derivative of each key is right, and jumps make up for the difference.
            if matches > 0.9 and -contribution / leaf.difference > 0.5:
                fields["verdict"] = verdict.DISCONTINUOUS
        explained.append(dataclasses.replace(leaf, jump_error=error, **fields))
    return explained
