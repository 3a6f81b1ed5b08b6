"""High bias or high variance, from the errors on train and dev set, and what to do about it."""

import math
from typing import Any, NamedTuple

from jaxgrad import _validate


class Diagnosis(NamedTuple):
    """Bias and variance of a trained network, and advice what to do.

    Each is high above its threshold: the tolerance, or two standard errors if that is more. The
    label is "high bias", "high variance", "high bias and high variance" or "neither".
    """

    label: str
    avoidable_bias: float
    variance: float
    bias_high: bool
    variance_high: bool
    bias_threshold: float
    variance_threshold: float
    advice: str


def diagnose(
    train_error: Any,
    dev_error: Any,
    attainable_error: Any = 0.0,
    *,
    tolerance: Any = 0.02,
    train_examples: int | None = None,
    dev_examples: int | None = None,
) -> Diagnosis:
    """Distinguish high bias from high variance.

    Errors are shares of wrong examples, from 0 to 1. Avoidable bias is the train error minus the
    attainable error, which is that of humans or of the best known model. If that is large, as with
    blurred images, an equally large train error is not a bias. Variance is the dev error minus the
    train error. Each gap is high if it is above the tolerance and, where numbers of examples are
    passed, also above two standard errors of a binomial proportion, so that another sample of
    examples is unlikely to remove it. The standard error assumes that examples are independent,
    which is not quite true of those that the network was fitted to. The advice mentions an unusual
    order of the errors, such as a dev error below the train error.

    Source: A. Ng, Deep Learning Specialization, course 2, week 1, "Bias / variance" and "Basic
    recipe"; course 3, week 1, "Avoidable bias".

    >>> diagnose(0.01, 0.11).label, diagnose(0.15, 0.16).label, diagnose(0.15, 0.30).label
    ('high variance', 'high bias', 'high bias and high variance')
    >>> diagnose(0.15, 0.16, attainable_error=0.15).label
    'neither'
    >>> diagnose(0.01, 0.11, train_examples=1000, dev_examples=30).label  # 3 of 30 are wrong
    'neither'
    """
    train = _checked_share("train_error", train_error)
    dev = _checked_share("dev_error", dev_error)
    attainable = _checked_share("attainable_error", attainable_error)
    _validate.known("tolerance", tolerance, "diagnose")
    _validate.scalar("tolerance", tolerance, minimum=0.0)
    train_noise = _squared_error("train_examples", train, train_examples)
    dev_noise = _squared_error("dev_examples", dev, dev_examples)
    # train error = attainable error + bias, dev error = train error + variance
    bias, variance = train - attainable, dev - train
    # Variances of independent errors add.
    noises = (train_noise, train_noise + dev_noise)
    bias_limit, variance_limit = (max(float(tolerance), 2 * math.sqrt(noise)) for noise in noises)
    # By rounding alone 0.12 - 0.1 is above 0.02, by more in float32.
    bias_high, variance_high = bias > bias_limit + 1e-7, variance > variance_limit + 1e-7
    labels = ["high bias"] * bias_high + ["high variance"] * variance_high
    words = {
        "High bias: a larger network, another architecture, or longer training.": bias_high,
        "High variance: more data, regularization, or another architecture.": variance_high,
        "These errors show no problem.": not labels,
        "The training error lies below the attainable error: that was set too high, or the "
        "training examples are memorized.": bias < 0,
        "The dev error lies below the training error: by chance, because regularization acts only "
        "in training, or because the dev set is easier.": variance < 0,
    }
    advice = " ".join(sentence for sentence, applies in words.items() if applies)
    label, high = " and ".join(labels) or "neither", (bias_high, variance_high)
    return Diagnosis(label, bias, variance, *high, bias_limit, variance_limit, advice)


def _checked_share(name: str, value: Any) -> float:
    _validate.known(name, value, "diagnose")
    _validate.scalar(name, value, minimum=0.0)
    # A percentage is the usual mistake, so the message names it.
    if value > 1:
        raise ValueError(f"{name} must be at most 1, got {value:g}; divide percentages by 100")
    return float(value)


def _squared_error(name: str, error: float, examples: int | None) -> float:
    """Variance p (1 - p) / n of a binomial share; zero without a number of examples."""
    if examples is None:
        return 0.0
    return error * (1 - error) / _validate.integer(name, examples, 1)
