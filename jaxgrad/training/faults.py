"""The faults of a training run and the rules that find them.

Every rule compares quantities of the run with each other (a layer with another layer, an update
with its weights, the loss with itself at the start), so that scales of data and loss do not matter.
Each threshold is a constant with its reason. `jaxgrad.training.diagnosis` applies the rules.
"""

import enum
import math
from typing import NamedTuple

import numpy as np

from jaxgrad.training._records import RISEN, Run, largest, middle, since

GROWN = 30.0
"""Factor between the first and the last layer: about 1.2 a layer over the course's 20 layers."""

FLAT = 0.25
"""A loss that has fallen by less than this share of its first value has hardly fallen.

Merely from a random guess to an even one it falls by a tenth or more.
"""

UNFINISHED = 0.5
"""A loss that has fallen by less than this share has more to fall."""

LEVEL = 0.01
"""A loss that has fallen by less than this share has not fallen."""

CHANCE = 2.5
"""Standard errors by which a loss that has fallen is lower, of several means that are looked at."""

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
    STUCK = "stuck"
    """What is said where the records do not tell why."""


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


def frozen(run: Run):
    """A layer that stays while the others move."""
    if run.ratio is None or run.ratio.shape[1] < 2:
        return
    for layer, name in enumerate(run.names):
        others = middle(np.delete(run.ratio, layer, axis=1).T)
        with np.errstate(invalid="ignore"):
            step = since(run.ratio[:, layer] < others + math.log(FROZEN))
        if step is None:
            continue
        sensitivity = largest(run.relative[step : step + run.early], axis=0)
        arrives = sensitivity[layer] > math.log(INSENSITIVE)
        # Dead units or vanishing that take a layer's gradient take that of those before it too.
        alone = sensitivity[layer] < largest(sensitivity[:layer]) + math.log(FROZEN)
        if arrives or alone:
            why = "though its gradient is not 0" if arrives else "and it alone gets no gradient"
            yield Finding(
                Fault.FROZEN,
                name,
                step,
                f"the weights of {name} do not change, {why}; look at the optimizer's masks and at "
                "stop_gradient.",
            )


def flat_units(run: Run):
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
        words = "units of {} are flat on every example; use biases of 0, a smaller rate or an "
        words += "activation that is steeper there."
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


def lost_signal(run: Run):
    """Exploding and vanishing: what the layers do to signal and gradient at the start."""
    forward = backward = 0.0
    last = len(run.names) - 1
    if run.units is not None:
        last = run.units.dead.shape[1] - 1
        size = run.units.log_preactivation[0] / 2
        begin = size[0] if run.input_size is None else run.input_size
        with np.errstate(invalid="ignore"):
            forward = float(np.nan_to_num(size[-1] - begin, nan=np.inf))
    if run.relative is not None:
        start = run.relative[0]
        with np.errstate(invalid="ignore"):
            backward = float(np.nan_to_num(start[0] - start[-1], nan=0.0))
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
    elif (risen := run.risen()) is not None and _too_far(run) is None:
        yield Finding(
            Fault.EXPLODING,
            None,
            risen,
            f"the loss, {run.ends}; use a smaller rate or clip gradients.",
        )
    if run.relative is None or len(broken):
        return
    sensitivity, step = run.sensitivity(), 0
    vanishes = run.fallen < FLAT and (
        min(forward, backward) < -math.log(GROWN)
        or (not run.from_zero.all() and largest(sensitivity) < math.log(INSENSITIVE))
    )
    if not vanishes and run.fallen < UNFINISHED:
        usable = largest(run.relative, axis=1)
        step = since(usable < math.log(INSENSITIVE)) or 0
        # Near a minimum gradients shrink too, but not from one step to the next.
        vanishes = step and usable[step] < usable[step - 1] - math.log(GROWN)
        sensitivity = largest(run.relative[step : step + run.early], axis=0)
    if vanishes:
        layer = int(np.argmin(np.where(run.from_zero & (step == 0), np.inf, sensitivity)))
        yield Finding(
            Fault.VANISHING,
            run.names[layer],
            step,
            f"{run.course}; its sensitivity to the weights of {run.names[layer]} is "
            f"{_power(sensitivity[layer])}, to those of the best placed layer "
            f"{_power(largest(sensitivity))}; draw larger weights (jaxgrad.initializers), use "
            "another activation, residual connections or norm layers.",
        )


def _too_far(run: Run):
    """First step whose update is too large for the weights of the median layer, or None.

    Where all weights start at 0, only the loss tells.
    """
    if run.ratio is None:
        return None
    if run.from_zero.all():
        return run.risen()
    far = np.flatnonzero(middle(run.ratio[:, ~run.from_zero].T) > math.log(RATIO_HIGH))
    return int(far[0]) if len(far) else None


def wrong_rate(run: Run):
    """Updates too large or too small for the weights, and a loss that shows it."""
    if run.ratio is None:
        return
    scaled = ~run.from_zero
    peak = largest(run.ratio[:, scaled])
    far, finite = _too_far(run), run.loss[np.isfinite(run.loss)]
    if far is not None and len(finite):
        first, top = abs(finite[0]) or 1.0, float(finite.max())
        restless = float(np.std(finite[-max(2, len(finite) // 10) :])) / first
        # Weights that start small are soon small no more.
        late = middle(run.ratio[-run.early :, scaled].ravel()) if scaled.any() else np.inf
        settled = late < math.log(RATIO_HIGH)
        if (
            len(finite) < len(run.loss)
            or top - finite[0] > (RISEN - 1) * first
            or restless > RESTLESS
            or (run.fallen < FLAT and not settled)
        ):
            updates = f"updates reach {_power(peak)} of the weights; " if scaled.any() else ""
            yield Finding(
                Fault.RATE_HIGH,
                None,
                far,
                f"{updates}the loss, {run.ends}; use a rate ten times smaller.",
            )
    if scaled.any():
        slow = run.fallen < UNFINISHED and peak < math.log(RATIO_LOW)
        slow = slow and largest(run.sensitivity()) >= math.log(INSENSITIVE)
        seen = f"updates are at most {_power(peak)} of the weights in every layer"
    else:
        slow = run.fallen < FLAT and run.steady > HALF
        seen = "all updates go the same way"
    if slow:
        yield Finding(
            Fault.RATE_LOW,
            None,
            0,
            f"{seen} and {run.course}; use a rate ten times larger.",
        )


def stuck(run: Run):
    """A loss that has not fallen, or no more than by chance."""
    last = run.loss[-run.early :]
    # From one batch to the next, as a fall is not noise.
    jumps = np.diff(run.loss[len(run.loss) // 2 :])
    noise = math.sqrt(np.sum(jumps**2) / 2 / max(1, len(jumps)))
    # What learns at once shows in the first loss, what learns slowly in the mean of many.
    for steps in 2 ** np.arange(run.early.bit_length()):
        chance = CHANCE * noise * math.sqrt(1 / steps + 1 / run.early)
        if run.fallen > LEVEL and np.mean(run.loss[:steps]) - np.mean(last) > chance:
            return
    missing = ["norms"] if run.ratio is None else []
    if run.units is None and len(run.names) != 1:
        missing.append("units")
    tell = "look whether the inputs tell of the targets"
    if missing:
        tell = f"give {' and '.join(missing)} of jaxgrad.training.monitoring too"
    chance = ", no more than its batches differ" if run.fallen > LEVEL else ""
    yield Finding(
        Fault.STUCK,
        None,
        0,
        f"{run.course}{chance}, and the records do not tell why; {tell}, and try other rates.",
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
