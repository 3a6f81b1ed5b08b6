"""The faults of a training run and the rules that find them.

Every rule compares quantities of the run with each other (a layer with another layer, an update
with its weights, the loss with itself at the start), so that scales of data and loss do not matter.
Each threshold is a constant of this module with its reason. `jaxgrad.training.diagnosis` applies
the rules.
"""

from __future__ import annotations

import enum
import math
from typing import Any, NamedTuple

import numpy as np

GROWN = 30.0
"""Factor between the first and the last layer: about 1.2 a layer over the course's 20 layers."""

FLAT = 0.25
"""A loss that has fallen by less than this share of its first value has hardly fallen.

Merely from a random guess to an even one it falls by a tenth or more.
"""

UNFINISHED = 0.5
"""A loss that has fallen by less than this share has more to fall."""

RISEN = 3.0
"""Factor above the first loss that no change of batches explains, only a step too far."""

RESTLESS = 0.3
"""Standard deviation of the last losses, as a share of the first loss, that is no convergence."""

RATIO_HIGH = 0.1
"""Update over weights that is a hundred times the customary 1e-3."""

RATIO_LOW = 1e-4
"""Update over weights that is a tenth of the customary 1e-3."""

INSENSITIVE = 1e-3
"""|gradient| |weights| / loss, about the share of the loss that doubling a layer would change.

About 0.1 to 1 where the gradient arrives.
"""

FROZEN = 1e-3
"""A layer's update over weights, as a share of the other layers', that is no movement."""

HALF = 0.5
"""Share of a layer's units (or of its saturated pairs) from which it has lost most of its use."""

GAP = 0.2
"""Dev less train error at the end, as a share of the dev error at the start, that is large."""

LEARNT = 0.05
"""Train error, as a share of that at the start, from which the examples are known by heart."""

CENTRED = 3.0
"""|mean| / standard deviation of the median feature, below which inputs count as centred.

The mean direction then has ten times the curvature of all others.
"""

APART = 30.0
"""Ratio of standard deviations, 90 % over 10 % quantile of the features: curvatures 900 apart."""

CONTRADICTED = 0.1
"""Train less dev error, as a share of the error at the start: three standard errors of a dev set of
a few hundred examples. What a network was fitted to it knows no worse, so that chance is no excuse.
"""


class Fault(enum.StrEnum):
    """What may ail a run; causes before what they cause."""

    INPUTS = "unnormalised inputs"
    FROZEN = "frozen layer"
    SATURATED = "saturated units"
    EXPLODING = "exploding"
    DEAD = "dead units"
    VANISHING = "vanishing"
    RATE_LOW = "rate too low"
    RATE_HIGH = "rate too high"
    LABELS = "label noise"
    OVERFITTING = "overfitting"


class Finding(NamedTuple):
    """One fault.

    Attributes:
      fault: which, equal to a string such as `"dead units"`.
      layer: name of the layer where it shows most, `None` if no one layer is meant.
      step: the step where it began, from 0.
      words: the numbers it was seen by, and what to do.
    """

    fault: Fault
    layer: str | None
    step: int
    words: str


class Run(NamedTuple):
    """The steps that were taken; NumPy."""

    loss: Any  # [steps]
    fallen: float  # share of the first loss
    ratio: Any  # log update / weights, [steps, layers], NaN for weights of 0; None without norms
    start: (
        Any  # log |gradient| |weights| / loss before the first step, [layers]; None without norms
    )
    sensitivity: Any  # the largest of these in the first tenth of the steps, [layers]
    input_size: Any  # log root mean square of the inputs or None
    units: Any  # Units [times, layers] or None
    unit_steps: Any  # [times]
    names: tuple[str, ...]


def middle(values):
    """Median over the first axis of what is a number; -inf counts, NaN does not."""
    bad = np.isnan(values)
    # Sorting puts NaN last.
    half = np.maximum((~bad).sum(axis=0) - 1, 0) // 2
    return np.take_along_axis(np.sort(values, axis=0), half[None], 0)[0]


def largest(values, axis=None):
    """Maximum of what is a number, -inf if nothing is."""
    return np.max(np.where(np.isnan(values), -np.inf, values), axis=axis, initial=-np.inf)


def unnormalised(inputs):
    """Inputs on scales that make the loss a long valley."""
    if inputs is None:
        return
    x = np.asarray(inputs, np.float64)
    if x.ndim < 2 or 0 in x.shape:
        raise ValueError(f"inputs must be [examples, features], none empty, got shape {x.shape}")
    x = x.reshape(len(x), -1)
    if not np.all(np.isfinite(x)):
        raise ValueError("inputs must be finite, got NaN or infinity; remove or impute them")
    mean, std = x.mean(axis=0), x.std(axis=0)
    varies = std > 1e-6 * np.abs(x).max(axis=0)
    if not varies.any():
        raise ValueError("inputs must vary over examples, got constant features only")
    mean, std = mean[varies], std[varies]
    offset = float(np.median(np.abs(mean) / std))
    low, high = np.quantile(std, [0.1, 0.9])
    if offset > CENTRED or high > APART * low:
        yield Finding(
            Fault.INPUTS,
            None,
            0,
            f"the mean of the median feature is {offset:.2g} standard deviations from 0, and "
            f"standard deviations are a factor {high / low:.2g} apart; standardize the inputs by "
            "jaxgrad.normalization.",
        )


def frozen(run):
    """A layer that stays while the others move."""
    if run.ratio is None or run.ratio.shape[1] < 2:
        return
    usual, peak = middle(run.ratio), largest(run.ratio, axis=0)
    for layer, name in enumerate(run.names):
        others = middle(np.delete(usual, layer))
        if not (np.isfinite(others) and peak[layer] < others + math.log(FROZEN)):
            continue
        arrives = run.sensitivity[layer] > math.log(INSENSITIVE)
        # Dead units or vanishing that take a layer's gradient take that of those before it too.
        alone = run.sensitivity[layer] < largest(run.sensitivity[:layer]) + math.log(FROZEN)
        if arrives or alone:
            why = "though its gradient is not 0" if arrives else "and it alone gets no gradient"
            yield Finding(
                Fault.FROZEN,
                name,
                0,
                f"the weights of {name} do not change, {why}; look at the optimizer's masks and at "
                "stop_gradient.",
            )


def flat_units(run):
    """Units that are dead, or saturated where the activation is flat on both sides."""
    if run.units is None:
        return
    if np.any(run.units.saturated_above > 0):
        fault, share = Fault.SATURATED, run.units.saturated
        words = "outputs of {} are saturated; start from smaller weights or biases, use a smaller "
        words += "rate or a norm layer."
        # What has learnt to be sure of its answers ends saturated too.
        harmless = run.fallen > UNFINISHED
    else:
        fault, share, harmless = Fault.DEAD, run.units.dead, False
        words = "units of {} are flat on every example; use biases of 0, a smaller rate or a leaky "
        words += "activation."
    begun = {}
    for layer in range(share.shape[1]):
        good = np.flatnonzero(~(share[:, layer] > HALF))
        since = int(good[-1]) + 1 if len(good) else 0
        if since == 0 or (since < len(share) and not harmless):
            begun[layer] = since
    if begun:
        # Of those that began first the worst, and of equals the one nearest to the input.
        layer = min(begun, key=lambda layer: (begun[layer], -share[begun[layer], layer]))
        yield Finding(
            fault,
            run.names[layer],
            int(run.unit_steps[begun[layer]]),
            f"{share[begun[layer], layer]:.0%} of the {words.format(run.names[layer])}",
        )


def lost_signal(run):
    """Exploding and vanishing: what the layers do to signal and gradient at the start."""
    forward = backward = 0.0
    last = len(run.names) - 1
    if run.units is not None:
        last = run.units.dead.shape[1] - 1
        size = run.units.log_preactivation[0] / 2
        begin = size[0] if run.input_size is None else run.input_size
        with np.errstate(invalid="ignore"):
            forward = float(np.nan_to_num(size[-1] - begin, nan=np.inf))
    if run.start is not None:
        with np.errstate(invalid="ignore"):
            backward = float(np.nan_to_num(run.start[0] - run.start[-1], nan=0.0))
    broken = np.flatnonzero(~np.isfinite(run.loss))
    if max(forward, backward) > math.log(GROWN):
        way, layer = "signal grows", last
        if backward > forward:
            way, layer = "gradient grows on its way back", 0
        yield Finding(
            Fault.EXPLODING,
            run.names[layer],
            0,
            f"at the start the {way} by a factor of {_power(max(forward, backward))} over the "
            "layers; draw smaller weights (jaxgrad.initializers) or add norm layers.",
        )
    elif len(broken) and (broken[0] == 0 or _too_far(run) is None):
        yield Finding(
            Fault.EXPLODING,
            None,
            int(broken[0]),
            "the loss is no number from there on; clip gradients and look for logarithms of 0.",
        )
    if run.sensitivity is None or len(broken) or run.fallen >= FLAT:
        return
    best = largest(run.sensitivity)
    if min(forward, backward) < -math.log(GROWN) or best < math.log(INSENSITIVE):
        layer = int(np.argmin(run.sensitivity))
        yield Finding(
            Fault.VANISHING,
            run.names[layer],
            0,
            f"the loss fell by {run.fallen:.1%} only; its sensitivity to the weights of "
            f"{run.names[layer]} is {_power(run.sensitivity[layer])}, to those of the best placed "
            f"layer {_power(best)}; draw larger weights (jaxgrad.initializers), use another "
            "activation, residual connections or norm layers.",
        )


def _too_far(run):
    """First step whose update is too large for the weights of the median layer, or None."""
    if run.ratio is None:
        return None
    far = np.flatnonzero(middle(run.ratio.T) > math.log(RATIO_HIGH))
    return int(far[0]) if len(far) else None


def wrong_rate(run):
    """Updates too large or too small for the weights, and a loss that shows it."""
    if run.ratio is None:
        return
    peak = largest(run.ratio)
    far, finite = _too_far(run), run.loss[np.isfinite(run.loss)]
    if far is not None and len(finite):
        first, top = abs(finite[0]) or 1.0, float(finite.max())
        restless = float(np.std(finite[-max(2, len(finite) // 10) :])) / first
        if (
            len(finite) < len(run.loss)
            or top - finite[0] > (RISEN - 1) * first
            or restless > RESTLESS
            or run.fallen < FLAT
        ):
            yield Finding(
                Fault.RATE_HIGH,
                None,
                far,
                f"updates reach {_power(peak)} of the weights; the loss, at first {finite[0]:.3g}, "
                f"peaks at {top:.3g} and ends at {run.loss[-1]:.3g}; use a rate ten times smaller.",
            )
    if (
        peak < math.log(RATIO_LOW)
        and run.fallen < UNFINISHED
        and largest(run.sensitivity) >= math.log(INSENSITIVE)
    ):
        yield Finding(
            Fault.RATE_LOW,
            None,
            0,
            f"updates are at most {_power(peak)} of the weights in every layer and the loss fell "
            f"by {run.fallen:.1%} only; use a rate ten times larger.",
        )


def _power(log):
    """`exp(log)` in words, for any size."""
    if not math.isfinite(log):
        return "0" if log < 0 else "infinity"
    return f"{math.exp(log):.2g}" if abs(log) < 600 else f"1e{log / math.log(10):.0f}"


def errors(dev, train, every):
    """Overfitting and label noise, from errors of as many evaluations."""
    if dev is None or train is None or not np.isfinite(dev).any():
        return
    start, best, last = max(train[0], dev[0]), int(np.nanargmin(dev)), len(dev) - 1
    # Of two evaluations in a row, the second of which has learnt something.
    excess = np.minimum(train[1:] - dev[1:], train[:-1] - dev[:-1])
    excess = np.where(dev[1:] < UNFINISHED * start, excess, -np.inf)
    if largest(excess) > CONTRADICTED * start:
        at = int(np.nanargmax(excess)) + 1
        yield Finding(
            Fault.LABELS,
            None,
            0,
            f"at step {at * every} the dev error was {dev[at]:.3g} and the train error "
            f"{train[at]:.3g}: what is right on the dev set contradicts labels of the training "
            "set; look at the labels that the network of that step gets most surely wrong.",
        )
    known = train[-1] <= LEARNT * train[0]
    falling = best < last and train[-1] < train[best]
    if dev[-1] - train[-1] > GAP * dev[0] and (known or falling):
        yield Finding(
            Fault.OVERFITTING,
            None,
            best * every,
            f"at the end the dev error is {dev[-1]:.3g} and the train error {train[-1]:.3g}, the "
            f"least dev error was {dev[best]:.3g}; use more data, regularise or stop early.",
        )
