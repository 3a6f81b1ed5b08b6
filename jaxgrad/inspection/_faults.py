"""Rules that say what is wrong with a model, from what `xray` has measured.

A rule looks at causes, not at sizes alone: a signal may start small, grow with depth or be scaled
by a normalization in a healthy model. The rules stand in the order in which one explains another:
weights that are too large saturate a function, and what is saturated has no gradient.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgrad import regimes
from jaxgrad._jaxprs import short_place
from jaxgrad.inspection._depth import (
    LEAST_BLOCKS,
    Growth,
    changed_by,
    changes_of,
    growth,
    in_blocks,
    repeated,
    steady,
    without_numbers,
)
from jaxgrad.inspection._problem import Problem
from jaxgrad.inspection._streams import Stream, streams

OUTLIER = 2 * math.log(3)  # A block whose weights are 3 times as large as its neighbours' is one.
SPREAD = 8  # An outlier also exceeds so many times the spread of the others.
LARGEST_VARIANCE = 8.0  # of weights, times fan-in; He et al. (2015) have 2
SPARSE = 0.9  # A product with inputs like one-hot vectors adds up fewer terms than its fan-in.
CONCENTRATED, LEAST_KEYS = 0.75, 8  # share of a softmax on one of at least so many keys
GROWTH = regimes.Thresholds(ratio=100.0, z=3.0)  # over all blocks together
# How far branches may dilute a residual stream. Losses after 60 steps of models of
# `experiments.xray_gallery`, minus those with scaled branches: NNX ResNets that dilute 7, 18 and 58
# times lose 0.3 +- 0.1, 0.8 +- 0.3 and 1.4 +- 0.3; post-norm transformers that dilute 8, 60, 400
# and 3000 times lose 0.0, 0.3, 0.8 and 1.4, each +- 0.1; pre-norm ones, 2 times, lose nothing. Liu
# et al. (2020, "Understanding the difficulty of training transformers") explain it.
DILUTED = regimes.Thresholds(ratio=10.0, z=3.0)
DILUTED_NORMALIZED = regimes.Thresholds(ratio=40.0, z=3.0)
NOTHING = -math.inf


class Fault(NamedTuple):
    """Something in a model that is likely to be a mistake.

    Attributes:
      kind: "rule", "weights", "zero", "detached", "attention", "jump", "branches", "growth" or
        "range".
      text: what is wrong, in words.
      operation, scope, parameter, line: where, as in `Site`.
      block: index of the block in a sequence of equal ones, `None` if there is none.
    """

    kind: str
    text: str
    operation: str
    scope: str
    parameter: str
    line: str
    block: int | None


def rule_fault(rule: Any) -> Fault:
    """Return the fault of a derivative rule that an audit has shown wrong."""
    size = f"is {rule.factor:.3g} times the right one" if rule.factor is not None else "is wrong"
    direction = {"rev": "reverse", "fwd": "forward"}[rule.mode]
    text = f"the {direction} derivative of {rule.name} with respect to {rule.argument} {size}"
    place = f" (rule: {short_place(rule.rule)})" if rule.rule else ""
    return Fault("rule", text + place, rule.name, "", "", rule.call, None)


class _Instance(NamedTuple):
    """A site, or one iteration of it; logs are of mean squares."""

    site: Any
    iteration: int | None
    signal: float
    gradient: float
    weight: float
    variance: float
    zeros: float
    input_zeros: float
    dead: float

    @property
    def name(self) -> str:
        place = self.site.parameter or self.site.scope or self.site.operation
        return place if self.iteration is None else f"{place} of iteration {self.iteration}"

    def fault(self, kind: str, text: str, block: int | None = None) -> Fault:
        site = self.site
        block = self.iteration if block is None else block
        return Fault(kind, text, site.operation, site.scope, site.parameter, site.line, block)


def find_faults(sites: Sequence[Any], problem: Problem) -> list[Fault]:
    """Return what is wrong with a model, the most likely cause first."""
    instances = list(instances_of(sites))
    groups = repeated(instances, lambda instance: instance.site)
    faults = [
        *_outlying_weights(groups),
        *_large_weights(instances, groups),
        *_dead(instances, groups),
        *_zero_gradients(instances),
        *_concentrated(instances),
        *_jumps(groups),
        *_branches(sites, problem),
        *_growth(sites),
        *_range(instances),
    ]
    # Of several rules on one operation, the first says why.
    first: dict[tuple[Any, ...], Fault] = {}
    for fault in faults:
        first.setdefault((fault.line, fault.parameter, fault.block), fault)
    return list(first.values())


def instances_of(sites: Sequence[Any]) -> Iterator[_Instance]:
    """Return all sites in the order of computation, those of a scan once for each iteration."""
    start = 0
    while start < len(sites):
        stop = start + 1
        while sites[start].scan and stop < len(sites) and sites[stop].scan == sites[start].scan:
            stop += 1
        length = len(np.atleast_1d(sites[start].forward.zeros))
        for i in range(length):
            for site in sites[start:stop]:
                yield _instance(site, i if site.scan else None)
        start = stop


def _instance(site: Any, iteration: int | None) -> _Instance:
    def value(field):
        part = np.asarray(field, np.float64)
        part = part if iteration is None else part[iteration]
        # Iterations of inner scans are taken together.
        return float(np.mean(part)) if part.size else math.nan

    details = site.details
    return _Instance(
        site,
        iteration,
        value(site.forward.log_mean_square),
        value(site.backward.log_mean_square),
        value(details.log_weight),
        value(site.variance),
        value(site.forward.zeros),
        value(details.input_zeros),
        value(details.dead),
    )


def _outlying_weights(groups: list[list[_Instance]]) -> Iterator[Fault]:
    """Yield weights that are larger or smaller than those of the blocks around."""
    for group in groups:
        logs = np.array([instance.weight for instance in group])
        # A block of zeros may be one on purpose, but not if it is the only one.
        if len(group) < 4 or np.any(np.isnan(logs)) or np.mean(np.isfinite(logs)) < 0.5:
            continue
        differences = np.array([_from_neighbours(logs, i) for i in range(len(logs))])
        finite = np.abs(differences[np.isfinite(differences)])
        spread = float(np.median(finite)) if len(finite) else 0.0
        for i, instance in enumerate(group):
            if abs(differences[i]) > max(OUTLIER, SPREAD * spread):
                factor = math.exp(differences[i] / 2)
                yield instance.fault(
                    "weights",
                    f"the weights {instance.name} are {factor:.3g} times as large as those of the "
                    f"blocks beside, multiply them by {1 / factor:.3g}"
                    if factor
                    else f"the weights {instance.name} are zero, those of other blocks are not",
                    i,
                )


def _from_neighbours(logs: np.ndarray, i: int) -> float:
    """Return how far a number is from the median of the three before and the three after."""
    # One outlier among three others does not move their median.
    near = [k for k in range(max(i - 3, 0), min(i + 4, len(logs))) if k != i]
    values = logs[near][np.isfinite(logs[near])]
    return float(logs[i] - np.median(values)) if len(values) else 0.0


def _large_weights(instances, groups) -> Iterator[Fault]:
    """Yield weights with a variance that no initialization has."""
    for instance in instances:
        if instance.variance > LARGEST_VARIANCE and instance.input_zeros < SPARSE:
            yield instance.fault(
                "weights",
                f"the weights {instance.name} have the variance {instance.variance:.3g} / fan-in; "
                f"the usual ones have 1 to 2 / fan-in, so multiply them by "
                f"{math.sqrt(2 / instance.variance):.2g}",
                _block(instance, groups),
            )


def _dead(instances: Sequence[_Instance], groups) -> Iterator[Fault]:
    """Yield the first non-linear function between two products whose results are all zero."""
    products = [i for i, instance in enumerate(instances) if instance.site.fan_in > 0]
    for i in products[:-1]:
        before, after = instances[i], instances[i + 1]
        if before.signal > NOTHING and after.zeros == 1.0 and not math.isnan(after.dead):
            text = f"all results of {after.site.operation} after {before.name} are zero"
            yield before.fault("zero", text, _block(before, groups))
            return


def _block(instance: _Instance, groups) -> int | None:
    """Return the index of the block that an instance is in, if it is in one of several."""
    (group,) = [group for group in groups if any(other is instance for other in group)]
    position = [other is instance for other in group].index(True)
    return position if len(group) > 1 else None


def _zero_gradients(instances: Sequence[_Instance]) -> Iterator[Fault]:
    """Yield where the gradient ends on its way back, if parameters before get none at all."""
    consumer, stop = None, None
    for instance in reversed(instances):
        if instance.gradient != NOTHING:
            # What lies after in the order of computation is where the gradient comes from.
            stop = instance if instance.site.operation == "stop_gradient" else stop
            consumer = instance
            continue
        product = instance.site.fan_in > 0 and instance.weight > NOTHING
        # Beyond weights of zero there is no gradient, and that may be so on purpose.
        if product and (consumer is None or consumer.weight != NOTHING):
            yield _end_of_gradient(instance, consumer, stop)
            return


def _end_of_gradient(instance: _Instance, consumer: _Instance | None, stop) -> Fault:
    narrow = jnp.finfo(instance.site.dtype).bits < 32
    if stop is not None:
        text = f"no gradient passes here, so that {instance.name} gets none"
        return stop.fault("detached", text)
    if narrow and (consumer is None or jnp.finfo(consumer.site.dtype).bits >= 32):
        text = f"the gradient of {instance.name} is below the smallest {instance.site.dtype}"
        return instance.fault("range", f"{text}: scale the loss, or use bfloat16")
    return instance.fault("detached", f"no gradient reaches {instance.name}")


def _concentrated(instances: Sequence[_Instance]) -> Iterator[Fault]:
    """Yield each softmax that is close to one-hot, as by logits that are far too large."""
    for instance in instances:
        if instance.site.operation != "softmax" or not instance.site.shape:
            continue
        keys = instance.site.shape[-1]
        # The mean of sum(p^2) is 1 if all is on one key, 1 / keys if it is spread evenly.
        share = math.exp(instance.signal) * keys
        if keys >= LEAST_KEYS and share > CONCENTRATED:
            yield instance.fault(
                "attention",
                f"softmax over {keys} keys is close to one-hot (mean sum of squares {share:.2f}): "
                "the logits are too large, divide them by the square root of the head's width",
            )


def _jumps(groups: list[list[_Instance]]) -> Iterator[Fault]:
    """Yield the block in which the signal grows or shrinks unlike in all others."""
    for group in groups:
        logs = np.array([instance.signal for instance in group])
        if len(group) < 5 or not np.all(np.isfinite(logs)):
            continue
        steps = np.diff(logs)
        median = np.median(steps)
        # A stream may start small, so the first steps are those of a healthy model.
        spread = np.median(np.abs(steps - median))
        large = np.flatnonzero(np.abs(steps - median) > max(2 * math.log(4), SPREAD * spread))
        large = large[large >= 2]
        if len(large):
            i = int(large[0]) + 1
            factor = math.exp(steps[i - 1] / 2)
            name = group[i].site.parameter or group[i].site.operation
            text = f"the signal at {name} is {factor:.3g} times that of the block before"
            yield group[i].fault("jump", f"{text}; others change by {math.exp(median / 2):.3g}", i)


def _branches(sites: Sequence[Any], problem: Problem) -> Iterator[Fault]:
    """Yield a residual stream of which little is left beside what its branches add."""
    for stream in streams(sites, problem):
        if not np.all(np.isfinite(stream.dilution[1:])):
            continue
        # The first block has no stream before it that is known in every model.
        steps = stream.dilution[1:]
        start, stop = steady(2 * steps)
        count = stop - start
        # The stream of a pre-norm network, which starts small, grows ever more slowly.
        late = steps[stop - count // 2 : stop]
        if len(late) < LEAST_BLOCKS:
            continue
        rate, error = float(np.mean(late)), float(np.std(late, ddof=1) / math.sqrt(len(late)))
        normalized = stream.growth < np.sum(steps) / 2
        limits = DILUTED_NORMALIZED if normalized else DILUTED
        if _regime(rate, error, count, limits) == regimes.Regime.EXPLODING:
            mean, blocks = float(np.mean(steps[start:stop])), changed_by(start, stop)
            yield _branch_fault(sites, stream, mean, blocks, normalized)


def _regime(rate: float, error: float, count: int, limits: regimes.Thresholds) -> int:
    """Return the regime of a size whose log changes by `rate` in each of `count` blocks."""
    total, total_error = 2 * count * rate, 2 * count * error
    return int(regimes.classify_mean(total, total_error, count + 1, limits).regime)


def _branch_fault(sites, stream: Stream, rate: float, blocks, normalized: bool) -> Fault:
    site, count, excess = sites[stream.site], len(stream.dilution), math.expm1(2 * rate)
    # With this scale all branches together grow the stream by the square root of 2.
    scale = math.sqrt(math.expm1(math.log(2) / count) / excess)
    effect = "" if normalized else "the stream grows, and "
    variance = _variance([sites[i] for i in stream.weights], blocks, count)
    ending = f" of variance {variance:.3g} / fan-in" if variance else ""
    text = (
        f"{excess / (1 + excess):.0%} of the stream is what each of {count} blocks adds"
        f"{in_blocks(blocks, count)}, so that {effect}what comes before is diluted "
        f"{math.exp(changes_of(blocks) * rate):.2g} times: multiply the branches, or the "
        f"weights that end them such as {stream.parameter}{ending}, by {scale:.2g}"
    )
    return Fault("branches", text, site.operation, site.scope, site.parameter, site.line, None)


def _variance(weights: Sequence[Any], blocks: tuple[int, int], count: int) -> float:
    """Return the median variance of the weights of some blocks, 0 if it is not known."""
    values = np.concatenate([np.ravel(site.variance) for site in weights] or [np.empty(0)])
    values = values[blocks[0] : blocks[1] + 1] if len(values) == count else values
    return float(np.median(values)) if len(values) and np.all(np.isfinite(values)) else 0.0


def _growth(sites: Sequence[Any]) -> Iterator[Fault]:
    """Yield a growth with depth, of the signal or of the gradient, that adds up to much."""
    rows = growth(sites)
    # Sums are the stream of a residual model; without one, products are the signal.
    sums = [row for row in rows if row.operation.startswith("add")]
    rows = sums or [row for row in rows if row.parameter] or rows
    candidates = []
    for row in rows:
        for name, factor, error, blocks in (
            ("signal", row.forward, row.forward_error, row.forward_range),
            ("gradient", row.backward, row.backward_error, row.backward_range),
        ):
            count = changes_of(blocks)
            rate = math.log(factor) if factor > 0 else 0.0
            if _regime(rate, error / (factor or 1.0), count, GROWTH) != regimes.Regime.STABLE:
                fault = _growth_fault(sites, row, name, (factor, error), blocks)
                candidates.append((abs(rate) * count, fault))
    # The others are of the same cause.
    yield from [fault for _, fault in sorted(candidates, key=lambda pair: -pair[0])[:1]]


def _growth_fault(sites, row: Growth, name: str, rate: tuple[float, float], blocks) -> Fault:
    factor, error = rate
    verb = "grows" if factor > 1 else "shrinks"
    text = (
        f"the {name} {verb} by {factor:.3g} +- {error:.1g} a block in {row.blocks} blocks"
        f"{in_blocks(blocks, row.blocks)}"
    )
    site = next(s for s in sites if _is_of(s, row))
    # The weights of the block whose variance decides.
    weights = [s for s in sites if s.fan_in > 0 and _is_of(s, row)]
    variance = _variance(weights, blocks, row.blocks)
    if row.operation.startswith("add"):
        text += f"; multiply what is added by {1 / math.sqrt(row.blocks):.2g}, or normalize it"
    elif variance:
        site = weights[0]
        text += (
            f", because {row.parameter} has the variance {variance:.3g} / fan-in; "
            f"level would be {variance / factor**2:.3g}"
        )
    return Fault("growth", text, site.operation, site.scope, site.parameter, site.line, None)


def _is_of(site: Any, row: Growth) -> bool:
    """Whether a row of growth is that of a site."""
    return (site.operation, without_numbers(site.parameter), site.line) == row[:3]


def _range(instances: Sequence[_Instance]) -> Iterator[Fault]:
    """Yield a gradient that is below the numbers of its type."""
    for instance in reversed(instances):
        info = jnp.finfo(instance.site.dtype)
        least = 2 * math.log(float(info.smallest_subnormal))
        if info.bits < 32 and NOTHING < instance.gradient < least + 2 * math.log(2):
            text = f"the gradient there is below the smallest numbers of {info.dtype}"
            yield instance.fault("range", f"{text}: scale the loss, or compute in bfloat16")
            return
