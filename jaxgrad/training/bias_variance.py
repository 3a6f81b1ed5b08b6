"""What ails a fit, bias or variance, and what to do about it, from its errors on two sets."""

import math
from typing import Any, NamedTuple

from jaxgrad import _validate

LARGER_NETWORK = "a larger network, another architecture, or longer training"
MORE_DATA = "more data, regularisation, or another architecture"


class Diagnosis(NamedTuple):
    """Bias and variance of a fit in the language of its errors.

    Attributes:
      label: `high bias`, `high variance`, `high bias and high variance`, or `neither`.
      avoidable_bias: training error less attainable error.
      variance: dev error less training error.
      bias_high, variance_high: whether each is above its threshold.
      bias_threshold, variance_threshold: the tolerance, or two standard errors if more.
      advice: what to do, in words.
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
    """Tell high bias from high variance.

    The error that the training set leaves above the best that is attainable is avoidable bias; what
    the dev set adds is variance. A part is high if it is above the tolerance and, where numbers of
    examples are given, also above two standard errors of a binomial proportion: a gap that another
    draw of the examples could close is none. The standard error takes examples to be independent,
    which those that a network was fitted to are not quite.

    The attainable error is that of people or of the best known model, or zero. Where it is large,
    as with blurred images, an error of the same size is no bias.

    Args:
      train_error, dev_error: shares of examples that are wrong, from 0 to 1.
      attainable_error: the least error one may hope for, from 0 to 1.
      tolerance: gap up to which there is nothing to mend, at least 0.
      train_examples, dev_examples: how many examples the errors were measured on, or `None`.

    Returns:
      `Diagnosis`. An error below another that should be less, such as a dev error below the
      training error, is no mistake; the advice says so.

    Raises:
      ValueError, TypeError: if an argument is not as described, or is traced: words cannot be.

    Source: A. Ng, Deep Learning Specialization, course 2, week 1, "Bias / variance" and "Basic
    recipe"; course 3, week 1, "Avoidable bias".

    >>> diagnose(0.01, 0.11).label, diagnose(0.15, 0.16).label, diagnose(0.15, 0.30).label
    ('high variance', 'high bias', 'high bias and high variance')
    >>> diagnose(0.15, 0.16, attainable_error=0.15).label
    'neither'
    >>> diagnose(0.01, 0.11, train_examples=1000, dev_examples=30).label  # of 30, 3 are wrong
    'neither'
    """
    train = _checked_error("train_error", train_error)
    dev = _checked_error("dev_error", dev_error)
    attainable = _checked_error("attainable_error", attainable_error)
    _refuse_traced("tolerance", tolerance)
    _validate.scalar("tolerance", tolerance, minimum=0.0)
    train_noise = _squared_error("train_examples", train, train_examples)
    dev_noise = _squared_error("dev_examples", dev, dev_examples)
    bias, variance = train - attainable, dev - train
    bias_threshold = max(float(tolerance), 2 * math.sqrt(train_noise))
    variance_threshold = max(float(tolerance), 2 * math.sqrt(train_noise + dev_noise))
    # 0.12 - 0.1 is above 0.02 by rounding alone, more so in float32.
    bias_high, variance_high = bias > bias_threshold + 1e-7, variance > variance_threshold + 1e-7
    ails = ["high bias"] * bias_high + ["high variance"] * variance_high
    words = []
    if bias_high:
        words.append(f"High bias: {LARGER_NETWORK}.")
    if variance_high:
        words.append(f"High variance: {MORE_DATA}.")
    if not ails:
        words.append("Nothing to mend that these errors show.")
    if bias < 0:
        words.append(
            "The training error lies below the attainable one: that was set too high, or the "
            "training examples were learnt by heart."
        )
    if variance < 0:
        words.append(
            "The dev error lies below the training error: by chance, because regularisation acts "
            "in training alone, or because the dev set is easier."
        )
    return Diagnosis(
        " and ".join(ails) or "neither",
        bias,
        variance,
        bias_high,
        variance_high,
        bias_threshold,
        variance_threshold,
        " ".join(words),
    )


def _refuse_traced(name: str, value: Any) -> None:
    if _validate.is_traced(value):
        raise TypeError(
            f"{name} must be known, since the diagnosis is in words, got a traced array; call "
            "diagnose outside of jax.jit and jax.vmap"
        )


def _checked_error(name: str, value: Any) -> float:
    _refuse_traced(name, value)
    _validate.scalar(name, value, minimum=0.0)
    error = float(value)
    if error > 1:
        raise ValueError(
            f"{name} must be at most 1, got {error:g}; it is a share, divide percent by 100"
        )
    return error


def _squared_error(name: str, error: float, examples: int | None) -> float:
    """Squared standard error of a proportion, zero where the number of examples is not given."""
    if examples is None:
        return 0.0
    return error * (1 - error) / _validate.integer(name, examples, 1)
