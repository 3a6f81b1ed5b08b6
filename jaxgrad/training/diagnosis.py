"""Find the faults of a training run from its records, with advice in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxgrad.training._records import read_run
from jaxgrad.training._rules import FLAT, RULES, Fault, describe_loss
from jaxgrad.training.monitoring import Norms, Units

__all__ = ["Diagnosis", "Fault", "Finding", "diagnose"]


class Finding(NamedTuple):
    """One fault of a run.

    Attributes:
      fault: The fault, equal to a string such as `"dead units"`.
      layer: Name of the most affected layer; `None` if it is not a fault of one layer.
      step: The step at which it began, from 0.
      words: The numbers that show it, and what to do.
    """

    fault: Fault
    layer: str | None
    step: int
    words: str


class Diagnosis(NamedTuple):
    """The faults of a run.

    Attributes:
      findings: All `Finding`s, ordered by the step at which they began; causes come first.
      healthy: Whether there are no findings.
      words: The words of all findings. Without findings, how far the loss fell.
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
    """Find the faults of a training run. More records allow more faults to be found.

    The losses of `fit` alone show whether they diverge or do not fall, but not why. `norms`
    distinguish learning rates that are too low or too high, frozen layers and vanishing gradients.
    `units` show dead and saturated units, and signals that shrink or grow over the layers. In a
    ReLU network without biases only `units` show those, because the gradient norms of all weights
    are alike. If all weights start at 0, updates have no scale, and learning rates are judged by
    the loss and by the path of the weights. Overfitting and label noise need both errors. Label
    noise can be found only with a dev set of some hundred correctly labelled examples.

    Args:
      fit: The `jaxgrad.training.Fit` of one run. After `jax.vmap`, select a run with
        `jax.tree.map(lambda a: a[i], fit)`.
      norms: Norms of each step, `[steps, layers]`, recorded with
        `jaxgrad.training.monitoring.layer_norms` as the monitor.
      units: From `jaxgrad.training.monitoring.units`, `[evaluations, layers]` or `[steps, layers]`.
      names: Names of the layers of `norms`, from `jaxgrad.training.monitoring.layer_names`. `None`
        numbers them from 1. Layer `k` of `units` is layer `k` of `norms`, which may also have a
        readout.
      inputs: Inputs of the network, `[examples, features]`.
      train_error: Share of wrong examples, or loss, on the training set at each evaluation,
        `[evaluations]`, without dropout and augmentation.
      dev_error: The same on the dev set. `None` takes `fit.error`. The number of evaluations may
        differ from that of `fit`.

    Raises:
      ValueError, TypeError: If shapes do not fit each other, or an argument is traced.

    Source: The course notes: "vanishing: loss hardly falls, weights hardly change; exploding: loss
    NaN or suddenly diverges"; A. Karpathy, CS231n notes, "Ratio of weights:updates".

    >>> from types import SimpleNamespace
    >>> run = SimpleNamespace(loss=[2.3, 9.0, float("nan"), float("nan")], error=None, best=None)
    >>> result = diagnose(run)
    >>> result.healthy, str(result.findings[0].fault), result.findings[0].step
    (False, 'exploding', 2)
    """
    records = {"inputs": inputs, "train_error": train_error, "dev_error": dev_error}
    run = read_run(fit, norms, units, names=names, **records)
    findings = [
        Finding(fault, *finding)
        for fault, rule in RULES.items()
        if fault is not Fault.STUCK
        for finding in rule(run)
    ]
    # The rule of the last resort: no other rule explains why the loss does not fall.
    if not findings:
        findings = [Finding(Fault.STUCK, *finding) for finding in RULES[Fault.STUCK](run)]
    # A stable sort: faults that began at one step stay in the order of `Fault`, causes first.
    findings.sort(key=lambda finding: finding.step)
    words = " ".join(f"{finding.fault.capitalize()}: {finding.words}" for finding in findings)
    if not findings:
        words = f"No fault found; {describe_loss(run)}."
        if norms is None and run.decrease < FLAT:
            words += " Pass norms to find out whether another learning rate makes it fall further."
    return Diagnosis(tuple(findings), not findings, words)
