"""Find the faults of a training run from its records, with advice in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxgrad.training._records import read_run
from jaxgrad.training._rules import FLAT, RULES, Fault, describe_loss, stuck
from jaxgrad.training.monitoring import Norms, Units

__all__ = ["Diagnosis", "Fault", "Finding", "diagnose"]


class Finding(NamedTuple):
    """One fault of a run: the most affected layer, if any, the step at which it began, and advice.

    The fault equals a string such as `"dead units"`.
    """

    fault: Fault
    layer: str | None
    step: int
    words: str


class Diagnosis(NamedTuple):
    """The faults of a run, ordered by the step at which they began; causes come first.

    `words` are those of all findings. Without findings they say how far the loss fell.
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
    `units` show dead and saturated units, and signals that shrink or grow over the layers; in a
    ReLU network without biases only they do, because all gradient norms are alike. If all weights
    start at 0, learning rates are judged by the loss and by the path of the weights. Overfitting
    and label noise need both errors, and label noise some hundred correctly labelled dev examples.

    Args:
      fit: The `jaxgrad.training.Fit` of one run. After `jax.vmap`, select a run with
        `jax.tree.map(lambda a: a[i], fit)`.
      norms: `[steps, layers]`, from `jaxgrad.training.monitoring.layer_norms` as the monitor.
      units: From `jaxgrad.training.monitoring.units`, `[evaluations, layers]` or `[steps, layers]`.
      names: From `jaxgrad.training.monitoring.layer_names`; by default numbers from 1. The layers
        of `units` are the first ones of `norms`.
      inputs: Inputs of the network, `[examples, features]`.
      train_error: Share of wrong examples, or loss, on the training set at each evaluation,
        `[evaluations]`, without dropout and augmentation.
      dev_error: The same on the dev set; by default `fit.error`. There may be other numbers of
        evaluations than in `fit`.

    Source: The course notes: "vanishing: loss hardly falls, weights hardly change; exploding: loss
    NaN or suddenly diverges"; A. Karpathy, CS231n notes, "Ratio of weights:updates".

    >>> from types import SimpleNamespace
    >>> run = SimpleNamespace(loss=[2.3, 9.0, float("nan"), float("nan")], error=None, best=None)
    >>> result = diagnose(run)
    >>> result.healthy, str(result.findings[0].fault), result.findings[0].step
    (False, 'exploding', 2)
    """
    run = read_run(fit, norms, units, names, inputs, train_error, dev_error)
    findings = [Finding(fault, *finding) for fault, rule in RULES.items() for finding in rule(run)]
    # The last resort: no rule explains why the loss does not fall.
    findings = findings or [Finding(Fault.STUCK, *finding) for finding in stuck(run)]
    # A stable sort: faults that began at one step stay in the order of `Fault`, causes first.
    findings.sort(key=lambda finding: finding.step)
    words = " ".join(f"{finding.fault.capitalize()}: {finding.words}" for finding in findings)
    if not findings:
        words = f"No fault found; {describe_loss(run)}."
        if norms is None and run.decrease < FLAT:
            words += " Pass norms to find out whether another learning rate makes it fall further."
    return Diagnosis(tuple(findings), not findings, words)
