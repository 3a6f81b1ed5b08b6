"""An activation made for one depth: the leaky ReLU that keeps examples just far enough apart."""

from __future__ import annotations

import math

from jaxgrad import _validate, activations
from jaxgrad.activations import Activation


def tailored_relu(depth: int, target: float = 0.9) -> Activation:
    """The leaky ReLU that takes uncorrelated examples to a correlation of `target`.

    A deep ReLU network makes all examples alike; a linear one leaves their angles as they are but
    computes nothing new. Between them, the slope is chosen by the depth. Weights are to be drawn by
    `jaxgrad.initializers.he(negative_slope=...)` with this slope, without biases.

    Args:
      depth: number of layers, each a matrix product and the activation.
      target: correlation after the last layer of two examples that had none, between 0 and 1.

    Returns:
      `jaxgrad.activations.leaky_relu` of a slope from 0 to 1, which its `constants` hold.

    Raises:
      ValueError, TypeError: if an argument is not as described, or even ReLU stays below the target
        at this depth, so that there is nothing to tailor.

    Source: Zhang, Botev, Martens (2022), Deep learning without shortcuts, sec. 4.

    >>> dict(tailored_relu(100).constants)["slope"] > 0.5
    True
    """
    depth = _validate.integer("depth", depth, 1)
    _validate.scalar("target", target, minimum=0.0, above=True)
    target = float(target)
    if target >= 1:
        raise ValueError(f"target must be less than 1, got {target:g}; pass a smaller number")
    if _gap(depth, 1.0) > 1 - target:
        raise ValueError(
            f"target must be at most {1 - _gap(depth, 1.0):.6g}, the correlation that plain ReLU "
            f"reaches in {depth} layers, got {target:g}; depth {depth} needs no tailoring, use "
            "'relu'"
        )
    # How fast angles shrink is a factor from 0, of a linear network, to 1, of ReLU.
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if _gap(depth, middle) > 1 - target:
            low = middle
        else:
            high = middle
    # The root of (1 - a)^2 = factor (1 + a^2), without cancellation.
    factor = (low + high) / 2
    slope = (1 - factor) / (1 + math.sqrt(factor * (2 - factor)))
    return activations.leaky_relu(slope)


def _gap(depth: int, factor: float) -> float:
    """`1 - c` after layers of `c' = c + factor (sin t - t cos t) / pi`, with `t = arccos c`."""
    gap = 1.0
    for _ in range(depth):
        angle = 2 * math.asin(math.sqrt(gap / 2))
        if angle > 0.05:
            change = math.sin(angle) - angle * math.cos(angle)
        else:
            square = angle * angle
            change = angle * square * (1 / 3 - square / 30 * (1 - square / 28))
        gap -= factor * change / math.pi
    return gap
