"""Fixup: initializers for deep residual networks without normalization."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxgrad import _validate
from jaxgrad.initializers._random import Initializer, variance_scaling, zeros


class Fixup(NamedTuple):
    """Initializers of `inner` kernels of a branch, and zeros for its `last` and the classifier."""

    inner: Initializer
    last: Initializer


def fixup(blocks: Any, layers: int = 2, **convolution: Any) -> Fixup:
    """Start each residual block as the identity, with smaller inner weights in deeper networks.

    Then one step of gradient descent changes the output by the same amount at any depth. `inner` is
    He's initializer by `fan_out`, with the standard deviation times `blocks^(-1 / (2 layers - 2))`.
    Start biases at 0, and the scalar multiplier that the source adds to each branch at 1.

    There are at least 1 `blocks`, which may be traced, and at least 2 `layers` (kernels) in each
    branch. For `convolution` see `variance_scaling`. Source: Zhang, Dauphin, Ma (2019), sec. 3.
    """
    _validate.scalar("blocks", blocks, minimum=1.0)
    layers = _validate.integer("layers", layers, 2)
    # A branch of m kernels with standard deviations times L^(-1 / (2 m - 2)), of which m - 1 are
    # not zero, contributes L^(-1/2) times the step of its last kernel.
    variance = 2.0 * jnp.asarray(blocks, jnp.float32) ** (-1 / (layers - 1))
    return Fixup(variance_scaling(variance, "fan_out", **convolution), zeros())
