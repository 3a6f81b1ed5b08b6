"""The rules of diagnosis: one function for each fault of a training run.

A rule takes the records of a run and yields `(layer, step, words)` for each finding. It compares
quantities of one run with each other, so that the scales of data and loss do not matter.
"""

import enum
import math
from collections.abc import Callable, Iterator

import numpy as np

from jaxgrad.training._records import RISE, Run, first_lasting, first_step, largest, median

LAYERS_FACTOR = 30.0
"""Change from first to last layer that is too large: 1.2 per layer over 20 layers."""
FLAT, UNFINISHED, LEVEL = 0.25, 0.5, 0.01
"""A loss whose decrease is a smaller share of its first value has hardly fallen; can fall further;
has not fallen."""
CHANCE = 2.5
"""Standard errors by which a fallen loss is lower; more than two, as several means are tried."""
RESTLESS = 0.3
"""A standard deviation of the last losses above this share is no convergence."""
RATIO_HIGH, RATIO_LOW = 0.1, 1e-4
"""Update / weights of updates that are too large and too small. Usual is 1e-3."""
INSENSITIVE = 1e-3
"""|gradient| |weights| / loss of an insensitive layer. Where gradients arrive it is 0.1 to 1."""
FROZEN = 1e-3
"""A layer is frozen if its update / weights is below this share of that of the other layers."""
HALF = 0.5
"""A layer with more than this share of dead or saturated units has lost most of its use."""
GAP, LEARNT, CONTRADICTED = 0.2, 0.05, 0.1
"""Shares of the first error: an excess of the dev error that is overfitting; a train error of
memorized examples; an excess of the train error that sampling noise cannot explain."""
CENTRED, SPREAD = 3.0, 30.0
"""Standardized inputs have smaller |mean| / deviation, and 90 % / 10 % quantile of deviations."""


class Fault(enum.StrEnum):
    """A fault of a training run. Causes come before consequences. `STUCK` has an unknown cause."""

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


Findings = Iterator[tuple[str | None, int, str]]


def unnormalised_inputs(run: Run) -> Findings:
    """Yield inputs on scales that give the loss a long, narrow valley."""
    if run.feature_std is None:
        return
    # The median and quantiles ignore a few unusual features.
    offset = float(np.median(np.abs(run.feature_mean) / run.feature_std))
    low, high = np.quantile(run.feature_std, [0.1, 0.9])
    if offset > CENTRED or high > SPREAD * low:
        words = (
            f"the mean of the median feature is {offset:.2g} standard deviations from 0, and the "
            f"standard deviations differ by a factor {high / low:.2g}; standardize the inputs with "
            "jaxgrad.training.normalization."
        )
        yield None, 0, words


def frozen_layer(run: Run) -> Findings:
    """Yield layers whose weights stay while those of the other layers change."""
    if run.log_ratio is None or run.log_ratio.shape[1] < 2:
        return
    for layer, name in enumerate(run.names):
        # The median, so that a second frozen layer does not hide the first.
        others = median(np.delete(run.log_ratio, layer, axis=1).T)
        with np.errstate(invalid="ignore"):
            step = first_lasting(run.log_ratio[:, layer] < others + math.log(FROZEN))
        if step is None:
            continue
        sensitivity = run.sensitivity_from(step)
        arrives = sensitivity[layer] > math.log(INSENSITIVE)
        # Dead units and vanishing gradients affect this layer and also all layers before it.
        alone = sensitivity[layer] < largest(sensitivity[:layer]) + math.log(FROZEN)
        if arrives or alone:
            why = "though its gradient is not 0" if arrives else "and only it gets no gradient"
            words = (
                f"the weights of {name} do not change, {why}; check the masks of the optimizer and "
                "stop_gradient."
            )
            yield name, step, words


def saturated_units(run: Run) -> Findings:
    """Yield a layer whose outputs are saturated, where the activation is flat on both sides."""
    # A classifier that has learnt to be certain also ends with saturated units.
    start_only = run.decrease > UNFINISHED
    for name, step, share in _flat_layer(run, "saturated", start_only):
        words = (
            f"{share:.0%} of the outputs of {name} are saturated; start from smaller weights or "
            "biases, or use a smaller learning rate or a normalization layer."
        )
        yield name, step, words


def dead_units(run: Run) -> Findings:
    """Yield a layer whose units are flat on every example, as negative ReLUs are."""
    for name, step, share in _flat_layer(run, "dead", start_only=False):
        words = (
            f"{share:.0%} of the units of {name} are flat on every example; use biases of 0, a "
            "smaller learning rate or an activation that is steeper there."
        )
        yield name, step, words


def _flat_layer(run: Run, kind: str, start_only: bool) -> Iterator[tuple[str, int, float]]:
    """Yield the layer in which more than half of the units are flat until the end, if any is."""
    # Units are saturated if the activation is flat on both sides, and dead if on one.
    if run.units is None or np.any(run.units.saturated_above > 0) != (kind == "saturated"):
        return
    share, rows = getattr(run.units, kind), {}
    for layer in range(share.shape[1]):
        # The row after the last one in which the layer works.
        good = np.flatnonzero(~(share[:, layer] > HALF))
        row = int(good[-1]) + 1 if len(good) else 0
        if row == 0 or (row < len(share) and not start_only):
            rows[layer] = row
    if rows:
        # The earliest; of several the worst; of equal ones the closest to the input.
        layer, row = min(rows.items(), key=lambda item: (item[1], -share[item[1], item[0]]))
        yield run.names[layer], int(run.unit_steps[row]), share[row, layer]


def _log_factors(run: Run) -> tuple[float, float]:
    """Log factors over all layers at the start: of the signal, and of the gradient backward."""
    forward = backward = 0.0
    with np.errstate(invalid="ignore"):
        if run.units is not None:
            # Half of a log mean square is a log root mean square.
            size = run.units.log_preactivation[0] / 2
            start = size[0] if run.log_input_rms is None else run.log_input_rms
            forward = float(np.nan_to_num(size[-1] - start, nan=np.inf))
        if run.log_sensitivity is not None:
            start = run.log_sensitivity[0]
            backward = float(np.nan_to_num(start[0] - start[-1], nan=0.0))
    return forward, backward


def exploding(run: Run) -> Findings:
    """Yield a signal or gradient that grows over the layers, or a loss that diverges."""
    forward, backward = _log_factors(run)
    broken = first_step(~np.isfinite(run.loss))
    # Where updates are too large, the learning rate is the cause.
    by_rate = _first_large_update(run) is not None
    if max(forward, backward) > math.log(LAYERS_FACTOR):
        layers = len(run.names) if run.units is None else run.units.dead.shape[1]
        effect, layer = "signal grows", layers - 1
        if backward > forward:
            effect, layer = "gradient grows on its way back", 0
        words = (
            f"at the start the {effect} by a factor of {_power(max(forward, backward))} over the "
            "layers; draw smaller weights (jaxgrad.initializers) or add normalization layers."
        )
        yield run.names[layer], 0, words
    elif broken is not None and (broken == 0 or not by_rate):
        words = "from there on the loss is not finite; clip gradients and check logarithms of 0."
        yield None, broken, words
    elif not by_rate and (step := run.first_rise()) is not None:
        yield None, step, f"{_extremes(run)}; use a smaller learning rate or clip gradients."


def vanishing(run: Run) -> Findings:
    """Yield a loss that hardly falls because it is insensitive to the weights."""
    if run.log_sensitivity is None or not np.all(np.isfinite(run.loss)):
        return
    # Weights that start at 0 have no scale there.
    sensitivity, step = np.where(run.zero_start, -np.inf, run.sensitivity_from(0)), 0
    vanishes = run.decrease < FLAT and (
        min(_log_factors(run)) < -math.log(LAYERS_FACTOR)
        or (not run.zero_start.all() and largest(sensitivity) < math.log(INSENSITIVE))
    )
    if not vanishes and run.decrease < UNFINISHED:
        best = largest(run.log_sensitivity, axis=1)
        step = first_lasting(best < math.log(INSENSITIVE)) or 0
        # Near a minimum gradients shrink as well, but not within one step.
        vanishes = step and best[step] < best[step - 1] - math.log(LAYERS_FACTOR)
        sensitivity = run.sensitivity_from(step)
    if vanishes:
        layer = int(np.argmin(np.where(run.zero_start & (step == 0), np.inf, sensitivity)))
        words = (
            f"{describe_loss(run)}; its sensitivity to the weights of {run.names[layer]} is "
            f"{_power(sensitivity[layer])}, and {_power(largest(sensitivity))} to those of the "
            "most sensitive layer; draw larger weights (jaxgrad.initializers), or use another "
            "activation, residual connections or normalization layers."
        )
        yield run.names[layer], step, words


def _first_large_update(run: Run) -> int | None:
    """Return the first step whose update is too large for the weights of the median layer."""
    if run.log_ratio is None:
        return None
    # If all weights start at 0, only the loss can show it.
    if run.zero_start.all():
        return run.first_rise()
    return first_step(median(run.log_ratio[:, ~run.zero_start].T) > math.log(RATIO_HIGH))


def rate_too_low(run: Run) -> Findings:
    """Yield updates that are too small for the weights, with a loss that can fall further."""
    if run.log_ratio is None:
        return
    scaled = ~run.zero_start
    if scaled.any():
        peak = largest(run.log_ratio[:, scaled])
        low = run.decrease < UNFINISHED and peak < math.log(RATIO_LOW)
        # If no gradient arrives, it vanishes, and a higher rate does not help.
        sensitivity = np.where(scaled, run.sensitivity_from(0), -np.inf)
        low = low and largest(sensitivity) >= math.log(INSENSITIVE)
        evidence = f"updates are at most {_power(peak)} of the weights in every layer"
    else:
        low = run.decrease < FLAT and run.straightness > HALF
        evidence = "all updates have the same direction"
    if low:
        yield None, 0, f"{evidence} and {describe_loss(run)}; use a rate ten times larger."


def rate_too_high(run: Run) -> Findings:
    """Yield updates that are too large for the weights, with a loss that shows it."""
    step, finite = _first_large_update(run), run.loss[np.isfinite(run.loss)]
    if run.log_ratio is None or step is None or len(finite) == 0:
        return
    scaled = ~run.zero_start
    first, top = abs(finite[0]) or 1.0, float(finite.max())
    # The spread of the last tenth of the losses.
    restless = float(np.std(finite[-max(2, len(finite) // 10) :])) / first
    # Weights that start small grow soon, and then the same updates are no longer large.
    late = median(run.log_ratio[-run.tenth :, scaled].ravel()) if scaled.any() else np.inf
    settled = late < math.log(RATIO_HIGH)
    if (
        len(finite) < len(run.loss)
        or top - finite[0] > (RISE - 1) * first
        or restless > RESTLESS
        or (run.decrease < FLAT and not settled)
    ):
        peak = largest(run.log_ratio[:, scaled])
        updates = f"updates reach {_power(peak)} of the weights; " if scaled.any() else ""
        yield None, step, f"{updates}{_extremes(run)}; use a rate ten times smaller."


def label_noise(run: Run) -> Findings:
    """Yield training labels that contradict what the network knows about held-out examples."""
    dev, train = run.dev_error, run.train_error
    if train is None:
        return
    start = max(train[0], dev[0])
    # In two evaluations in a row, the second of a network that has learnt something.
    excess = np.minimum(train[1:] - dev[1:], train[:-1] - dev[:-1])
    excess = np.where(dev[1:] < UNFINISHED * start, excess, -np.inf)
    if largest(excess) > CONTRADICTED * start:
        index = int(np.nanargmax(excess)) + 1
        words = (
            f"at step {index * run.every} the dev error was {dev[index]:.3g} and the train error "
            f"{train[index]:.3g}, so labels of the training set contradict those of the dev set; "
            "check the labels that the network of that step gets most confidently wrong."
        )
        yield None, 0, words


def overfitting(run: Run) -> Findings:
    """Yield a dev error that stays far above a train error that falls further."""
    dev, train = run.dev_error, run.train_error
    if train is None:
        return
    best, last = int(np.nanargmin(dev)), len(dev) - 1
    # Either nothing is left to learn, or only the train error still falls after the best dev error.
    memorized = train[-1] <= LEARNT * train[0]
    falling = best < last and train[-1] < train[best]
    if dev[-1] - train[-1] > GAP * dev[0] and (memorized or falling):
        words = (
            f"at the end the dev error is {dev[-1]:.3g} and the train error {train[-1]:.3g}; the "
            f"smallest dev error was {dev[best]:.3g}; use more data, regularize or stop early."
        )
        yield None, best * run.every, words


def stuck(run: Run) -> Findings:
    """Yield a loss that has not fallen by more than chance."""
    last = run.loss[-run.tenth :]
    # Differences of neighbouring losses, so that a fall does not count as noise.
    jumps = np.diff(run.loss[len(run.loss) // 2 :])
    noise = math.sqrt(np.sum(jumps**2) / 2 / max(1, len(jumps)))
    # Fast learning shows in the first loss, slow learning in the mean of many.
    for steps in 2 ** np.arange(run.tenth.bit_length()):
        chance = CHANCE * noise * math.sqrt(1 / steps + 1 / run.tenth)
        if run.decrease > LEVEL and np.mean(run.loss[:steps]) - np.mean(last) > chance:
            return
    missing = ["norms"] if run.log_ratio is None else []
    if run.units is None and len(run.names) != 1:
        missing.append("units")
    advice = "check whether the inputs predict the targets"
    if missing:
        advice = f"also pass {' and '.join(missing)} of jaxgrad.training.monitoring"
    chance = ", no more than the batches differ" if run.decrease > LEVEL else ""
    words = (
        f"{describe_loss(run)}{chance}, and the records do not show the cause; {advice}, and try "
        "other learning rates."
    )
    yield None, 0, words


RULES: dict[Fault, Callable[[Run], Findings]] = {
    Fault.INPUTS: unnormalised_inputs,
    Fault.FROZEN: frozen_layer,
    Fault.SATURATED: saturated_units,
    Fault.EXPLODING: exploding,
    Fault.DEAD: dead_units,
    Fault.VANISHING: vanishing,
    Fault.RATE_LOW: rate_too_low,
    Fault.RATE_HIGH: rate_too_high,
    Fault.LABELS: label_noise,
    Fault.OVERFITTING: overfitting,
}
"""The rule of each fault. `stuck` is applied only if none of these yields anything."""


def describe_loss(run: Run) -> str:
    """Return in words how far the loss has fallen."""
    if run.decrease < -10:
        return f"the loss rose by a factor of {1 - run.decrease:.2g}"
    verb, size = "fell" if run.decrease >= 0 else "rose", abs(run.decrease)
    return f"the loss {verb} by {size:.{0 if size > 0.1 else 1}%} of its first value"


def _extremes(run: Run) -> str:
    start, top, end = run.loss[0], run.loss[np.isfinite(run.loss)].max(), run.loss[-1]
    return f"the loss starts at {start:.3g}, peaks at {top:.3g} and ends at {end:.3g}"


def _power(log: float) -> str:
    """`exp(log)` as text, for any size."""
    if not math.isfinite(log):
        return "0" if log < 0 else "infinity"
    return f"{math.exp(log):.2g}" if abs(log) < 600 else f"1e{log / math.log(10):.0f}"
