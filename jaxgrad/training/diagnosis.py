"""From the record of one training run to what ails it, in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad import _validate
from jaxgrad.training import _records, faults
from jaxgrad.training._records import Run
from jaxgrad.training.faults import Fault, Finding
from jaxgrad.training.monitoring import Norms, Units


class Diagnosis(NamedTuple):
    """What ails a run.

    Attributes:
      findings: `Finding`s in the order in which they began, causes first.
      healthy: whether there is none.
      words: all of them, or that there is none and how far the loss fell.
    """

    findings: tuple[Finding, ...]
    healthy: bool
    words: str


def diagnose(
    fit: Any,
    norms: Norms | None = None,
    units: Units | None = None,
    *,
    names: Sequence[str] | None = None,
    inputs: Any = None,
    train_error: Any = None,
    dev_error: Any = None,
) -> Diagnosis:
    """Tell what ails a run from what was recorded of it; the more is given, the more is told.

    Losses that diverge, or do not fall, need no more than `fit`, which does not tell why. With
    `norms` rates, frozen layers and vanishing gradients are told apart; with `units` dead and
    saturated ones, and signals that shrink or grow over layers, which in a ReLU network without
    biases no norm of a weight's gradient shows: these are alike in all layers. Where all weights
    start at 0, updates have no scale, and rates are judged by the loss and by the way gone.
    Overfitting and label noise take both errors; noise shows only against a dev set of some hundred
    examples whose labels are right.

    Args:
      fit: `jaxgrad.training.Fit` of one run; of a run under `jax.vmap` take one by
        `jax.tree.map(lambda a: a[i], fit)`.
      norms: of each step, `[steps, layers]`, from `jaxgrad.training.monitoring.layer_norms` as a
        monitor.
      units: from `monitoring.units`, `[evaluations, layers]` or `[steps, layers]`.
      names: of the layers of `norms`, from `monitoring.layer_names`; `None` numbers them from 1.
        Layer `k` of `units` is taken to be layer `k` of `norms`, which may have a readout more.
      inputs: what the network got, `[examples, features]`.
      train_error, dev_error: shares of wrong examples, or losses, at each evaluation,
        `[evaluations]`, of the network in use (no dropout or augmentation); `None` for the dev
        error takes `fit.error`. There may be more or fewer than evaluations of `fit`.

    Returns:
      `Diagnosis`.

    Raises:
      ValueError, TypeError: if an argument is not as described, shapes do not fit each other, or an
        array is traced.

    Source: the course notes' "vanishing: loss hardly falls, weights hardly change; exploding: loss
    NaN or suddenly diverges"; A. Karpathy, CS231n notes, "Ratio of weights:updates".

    >>> from types import SimpleNamespace
    >>> run = SimpleNamespace(loss=np.asarray([2.3, 9.0, np.nan, np.nan]), error=None, best=None)
    >>> found = diagnose(run)
    >>> found.healthy, str(found.findings[0].fault), found.findings[0].step
    (False, 'exploding', 2)
    """
    missing = [name for name in ("loss", "error", "best") if not hasattr(fit, name)]
    if missing:
        raise TypeError(
            f"fit must be what jaxgrad.training.fit returns, got {type(fit).__name__} without "
            f"{', '.join(missing)}"
        )
    for name, part, kind, source in (
        ("norms", norms, Norms, "fit.trace of monitor=layer_norms"),
        ("units", units, Units, "monitoring.units, recorded by evaluate"),
    ):
        if part is not None and not all(hasattr(part, field) for field in kind._fields):
            raise TypeError(
                f"{name} must be a {kind.__name__} of jaxgrad.training.monitoring, got "
                f"{type(part).__name__}; give {source}"
            )
    if names is not None and norms is None and units is None:
        raise ValueError(
            "names must come with norms or units, whose layers they name, got neither; pass them"
        )
    given = {
        **{"fit": fit.loss, "norms": norms, "units": units, "inputs": inputs},
        **{"fit.error": fit.error, "train_error": train_error, "dev_error": dev_error},
    }
    for name, value in given.items():
        if any(_validate.is_traced(leaf) for leaf in jax.tree.leaves(value)):
            raise TypeError(
                f"{name} must be known, since the diagnosis is in words, got a traced array; call "
                "diagnose outside of jax.jit and jax.vmap"
            )
    loss = np.asarray(fit.loss, np.float64)
    if loss.ndim != 1 or len(loss) == 0:
        raise ValueError(
            f"fit must be of one run, with a loss [steps], got shape {loss.shape}; take one by "
            "jax.tree.map(lambda a: a[i], fit)"
        )
    steps = len(loss)
    own = _error("fit.error", fit.error, steps)
    dev = own if dev_error is None else _error("dev_error", dev_error, steps)
    train = _error("train_error", train_error, steps)
    if train is not None and (dev is None or train.shape != dev.shape):
        raise ValueError(
            "train_error must come with as many evaluations of dev_error, got "
            f"{len(train)} and {0 if dev is None else len(dev)}; record it beside the dev error"
        )
    # When each row of units may have been recorded.
    times = {steps: np.arange(steps)}
    for error in (own, dev):
        if error is not None:
            times[len(error)] = np.arange(0, steps + 1, _every(steps, error))
    taken, every = steps, 1
    if own is not None and fit.best is not None and bool(fit.best.stopped):
        taken = max(1, (int(fit.best.evaluations) - 1) * _every(steps, own))
    if dev is not None:
        every = _every(steps, dev)
        dev, train = (
            error if error is None else error[: taken // every + 1] for error in (dev, train)
        )
    unnormalised = list(faults.unnormalised(inputs))
    run = _run(loss, taken, times, norms, units, names, inputs)
    findings = [
        *unnormalised,
        *faults.frozen(run),
        *faults.flat_units(run),
        *faults.lost_signal(run),
        *faults.wrong_rate(run),
        *faults.errors(dev, train, every),
    ]
    findings += [] if findings else faults.stuck(run)
    causes = list(Fault)
    findings.sort(key=lambda finding: (finding.step, causes.index(finding.fault)))
    words = " ".join(f"{finding.fault.capitalize()}: {finding.words}" for finding in findings)
    if not findings:
        words = f"No fault found; {run.course}."
        if norms is None and run.fallen < faults.FLAT:
            words += " Whether another rate makes it fall further, norms would tell."
    return Diagnosis(tuple(findings), not findings, words)


def _error(name, error, steps):
    """As numbers `[evaluations]`, `None` for none."""
    if error is None:
        return None
    try:
        numbers = np.asarray(error, np.float64)
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} must be numbers [evaluations], got {type(error).__name__}; give shares of "
            "wrong examples or losses"
        ) from None
    if numbers.ndim != 1 or len(numbers) < 2 or steps % (len(numbers) - 1):
        raise ValueError(
            f"{name} must be [evaluations], steps / every + 1 of them for {steps} steps, got "
            f"shape {numbers.shape}; give it as jaxgrad.training.fit does"
        )
    return numbers


def _every(steps, error):
    """Steps between evaluations."""
    return steps // (len(error) - 1)


def _run(loss, taken, times, norms, units, names, inputs):
    steps, loss = len(loss), loss[:taken]
    early = max(1, taken // 10)
    ratio = relative = from_zero = unit_steps = input_size = None
    layers, steady = 0, 0.0
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        # The first batch may be an easy one.
        first = np.fmax(loss[0], np.median(loss[:early]))
        fallen = float((first - np.median(loss[-early:])) / (abs(first) or 1.0))
        if inputs is not None:
            input_size = 0.5 * np.log(np.mean(np.square(np.asarray(inputs, np.float64))))
        if norms is not None:
            gradient, weight, update = (part[:taken] for part in _norms(norms, steps))
            layers = weight.shape[1]
            from_zero = np.isneginf(weight[0])
            steady = float(np.exp(_records.middle(weight[-1] - update.max(axis=0))) / taken)
            # Weights of 0 give no scale.
            weight = np.where(np.isneginf(weight), np.nan, weight)
            ratio = update - weight
            relative = gradient + weight - np.log(np.abs(loss))[:, None]
    if units is not None:
        units = jax.tree.map(lambda part: np.asarray(part, np.float64), units)
        if units.dead.ndim != 2 or len(units.dead) not in times:
            raise ValueError(
                "units must be arrays [evaluations, layers] or [steps, layers], with "
                f"{' or '.join(map(str, times))} rows, got shape {units.dead.shape}"
            )
        unit_steps = times[len(units.dead)]
        kept = unit_steps <= (taken - 1 if len(unit_steps) == steps else taken)
        units, unit_steps = Units(*(part[kept] for part in units)), unit_steps[kept]
        if layers and units.dead.shape[1] > layers:
            raise ValueError(
                f"units must have at most the {layers} layers of norms, got {units.dead.shape[1]}"
            )
        layers = layers or units.dead.shape[1]
    if names is None:
        names = [f"layer {index + 1}" for index in range(layers)]
    elif len(names) != layers:
        raise ValueError(
            f"names must be one for each of {layers} layers, got {len(names)}; use "
            "jaxgrad.training.monitoring.layer_names"
        )
    return Run(
        *(loss, fallen, ratio, relative, from_zero, steady, input_size, units, unit_steps),
        tuple(names),
    )


def _norms(norms, steps):
    parts = [np.asarray(part, np.float64) for part in norms]
    if {part.ndim for part in parts} != {2} or {part.shape for part in parts} != {
        (steps, parts[0].shape[-1])
    }:
        raise ValueError(
            f"norms must be three arrays [steps, layers], of {steps} steps, got shapes "
            f"{[part.shape for part in parts]}; give fit.trace of monitor=layer_norms"
        )
    return parts
