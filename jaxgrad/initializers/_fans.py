"""Effective fans of dense, convolution and transposed convolution kernels."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from jaxgrad import _validate

Strides = int | Sequence[int]


class Fans(NamedTuple):
    """Numbers of values that a unit sums, and of units that use its value; strides divide them."""

    fan_in: float
    fan_out: float


def fans(
    shape: Sequence[int], *, groups: int = 1, strides: Strides = 1, transposed: bool = False
) -> Fans:
    """Count the effective fans of a kernel: the numbers that a variance has to be divided by.

    A window of `k` positions with total stride `s` gives `fan_in = k in`,
    `fan_out = k out / (groups s)`. If transposed, each output sums only every s-th position:
    `fan_in = k in / s`, `fan_out = k out / groups`. Source: He et al. (2015), sec. 2.2.

    Args:
      shape: kernel shape `(*window, in, out)`, as in `flax.linen.Conv` and in JAX's `HWIO`; a dense
        kernel is `(in, out)`. With groups, `in` counts the input channels of one group, and `out`
        the output channels of all.
      groups: number of groups; for a depthwise convolution the number of input channels.
      strides: strides of the window, one number for all dimensions or one for each.
      transposed: whether the convolution is transposed (fractionally strided).

    >>> fans((3, 3, 16, 32))
    Fans(fan_in=144.0, fan_out=288.0)
    >>> fans((4, 4, 16, 8), strides=2, transposed=True)
    Fans(fan_in=64.0, fan_out=128.0)
    """
    *window, n_in, n_out = _validate.shape("shape", shape, 2)
    groups = _validate.integer("groups", groups, 1)
    if n_out % groups:
        rule = f"divide the {n_out} output channels of shape {tuple(shape)}"
        raise ValueError(f"groups must {rule}, got {groups}")
    per_axis = [strides] * len(window) if isinstance(strides, int) else list(strides)
    if len(per_axis) != len(window):
        axes = f"{len(window)} window dimensions of shape {tuple(shape)}"
        raise ValueError(f"strides must give one number for each of the {axes}, got {strides!r}")
    # A unit sums one product for each position of the window and input channel of its group.
    size = math.prod(window)
    stride = math.prod(_validate.integer("strides", step, 1) for step in per_axis)
    fan_in, fan_out = float(size * n_in), size * n_out / groups
    # A stride thins the outputs; transposed, it thins the inputs that an output meets.
    return Fans(fan_in / stride, fan_out) if transposed else Fans(fan_in, fan_out / stride)
