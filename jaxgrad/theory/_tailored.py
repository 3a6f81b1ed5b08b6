"""A leaky ReLU whose slope is chosen for the depth of the network."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations
from jaxgrad._numerics import bisect, in_float64
from jaxgrad.activations import Activation


def tailored_relu(depth: int, target: float = 0.9) -> Activation:
    """Choose the leaky ReLU that takes uncorrelated examples to a correlation of `target`.

    A deep ReLU network makes all examples alike; a linear one keeps their angles but computes only
    linear functions. The slope in between is chosen for the depth; it is in the `constants` of the
    result. Draw the weights with `jaxgrad.initializers.he(negative_slope=...)` of this slope,
    without biases. Source: Zhang, Botev, Martens (2022), Deep learning without shortcuts, sec. 4.

    Args:
      depth: number of layers, each a matrix product and the activation.
      target: correlation, between 0 and 1, after the last layer, of two examples that have none. A
        `ValueError` reports that even ReLU stays below it at this depth, so no slope is needed.
    """
    depth = _validate.integer("depth", depth, 1)
    _validate.scalar("target", target, minimum=0.0, above=True)
    target = float(target)
    if target >= 1:
        raise ValueError(f"target must be less than 1, got {target:g}; pass a smaller number")
    with jax.ensure_compile_time_eval():
        relu_gap, slope = map(float, _solve(depth, target))
    if relu_gap > 1 - target:
        raise ValueError(
            f"target must be at most {1 - relu_gap:.6g}, the correlation that plain ReLU "
            f"reaches in {depth} layers, got {target:g}; depth {depth} needs no tailoring, use "
            "'relu'"
        )
    return activations.leaky_relu(slope)


@in_float64
@jax.jit
def _solve(depth, target):
    """The gap after `depth` layers of ReLU, and the slope that leads to the target."""

    def final_gap(factor):
        return jax.lax.fori_loop(0, depth, lambda _, gap: _next_gap(gap, factor), 1.0)

    # The speed at which angles shrink is a factor from 0, for a linear network, to 1, for ReLU:
    # factor = (1 - a)^2 / (1 + a^2) for a slope of a.
    factor = bisect(lambda f: final_gap(f) - (1 - target), 0.0, 1.0, steps=60, sign=1.0)
    # Its root with a <= 1, without cancellation.
    slope = (1 - factor) / (1 + jnp.sqrt(factor * (2 - factor)))
    return final_gap(1.0), slope


def _next_gap(gap, factor):
    """`1 - c` after a layer, `c' = c + factor (sin t - t cos t) / pi` with `t = arccos c`."""
    angle = 2 * jnp.arcsin(jnp.sqrt(gap / 2))
    # A series for small angles, where the difference cancels: t^3 / 3 - t^5 / 30 + t^7 / 840.
    square = angle * angle
    series = angle * square * (1 / 3 - square / 30 * (1 - square / 28))
    change = jnp.where(angle > 0.05, jnp.sin(angle) - angle * jnp.cos(angle), series)
    return gap - factor * change / np.pi
