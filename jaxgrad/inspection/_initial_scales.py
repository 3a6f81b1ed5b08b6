"""The name of an initial scale: which initializer draws weights of a variance."""

from typing import NamedTuple

# The standard deviation of a normal number cut off at two.
TRUNCATION = 0.87962566
# Variances times fan-in that initializers of JAX, Flax, Equinox and Haiku, or theory, have.
KNOWN = (1.0, 2.0, 1 / 3, 0.5, 4.0)
PRECISION = 0.03  # relative; besides the sampling error of the variance


class Weights(NamedTuple):
    """The variance of weights (the mean square), their number, and their fans."""

    variance: float
    size: int
    fan_in: int
    fan_out: int
    receptive_field: int


def rounded(variance: float, error: float) -> float:
    """Return the known variance that agrees with a measured one, or the measured one."""
    near = min(KNOWN, key=lambda known: abs(known - variance))
    return near if abs(near - variance) <= 2 * error + PRECISION * near else variance


def cause(weights: Weights, target: float) -> str:
    """Say why the variance differs from `target / fan-in`, or return "" if no cause is known."""
    # The variance of n normal numbers has a relative error of sqrt(2 / n).
    limit = PRECISION + 3 * (2 / max(weights.size, 1)) ** 0.5

    def equal(value: float, known: float) -> bool:
        return abs(value / known - 1) <= limit

    level = weights.variance * weights.fan_in
    usual = (target, 1.0, 2.0)
    if any(equal(level, known * TRUNCATION**2) for known in usual):
        return "a truncated normal whose standard deviation, 0.8796, is not corrected"
    if weights.receptive_field > 1 and any(
        equal(level / weights.receptive_field, known) for known in usual
    ):
        return "the receptive field is missing in the fan"
    if weights.fan_in != weights.fan_out and equal(weights.variance * weights.fan_out, target):
        return "the variance is in units of 1 / fan-out: the wrong fan"
    if equal(level, 4 * target):
        return "the weights are doubled"
    if equal(level, 1 / 3):
        return "uniform between +-1 / sqrt(fan-in)"
    average = 2 * weights.fan_in / (weights.fan_in + weights.fan_out)
    names = {1.0: "LeCun's variance", 2.0: "He's variance"}
    name = next((text for known, text in names.items() if equal(level, known)), "")
    return name or ("Glorot's variance" if equal(level, average) else "")
