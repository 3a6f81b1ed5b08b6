"""Sizes of the signal and of the gradient at each block of a model, inside a traced program."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgrad import _validate
from jaxgrad.inspection._depth import repeated
from jaxgrad.inspection._problem import prepare
from jaxgrad.inspection._sites import Location, plan_sites
from jaxgrad.inspection._statistics import Statistics
from jaxgrad.inspection._xray import instrument


class BlockSizes(NamedTuple):
    """Sizes at the last operation of each block, the first block first.

    Attributes:
      log_signal: natural log of the mean square of its result, NaN if some of it is not finite.
      log_gradient: the same of the gradient of the loss by that result.
    """

    log_signal: Float[Array, " blocks"]
    log_gradient: Float[Array, " blocks"]


def measure_blocks(
    loss: Callable[..., Any], blocks: int, argnums: int = 0, has_aux: bool = False
) -> Callable[..., BlockSizes]:
    """Return a function that measures the blocks of a model, to be compiled or mapped.

    It takes the arguments of the loss. Blocks are the iterations of a scan, or operations of one
    line of code that differ by the number of the block, as in `XRay.growth`; an operation that a
    block has several times counts where it is last. The function raises a ValueError, while it is
    traced, if no operation is repeated with the blocks.

    Args:
      loss, argnums, has_aux: as for `xray`.
      blocks: how many there are, at least 2.

    >>> import jax, jax.numpy as jnp
    >>> def loss(params, x):
    ...     for w in params:
    ...         x = jnp.tanh(x @ w)
    ...     return jnp.sum(x)
    >>> sizes = jax.jit(measure_blocks(loss, 3))([0.1 * jnp.eye(2)] * 3, jnp.ones((1, 2)))
    >>> (sizes.log_gradient / jnp.log(10)).round(1).tolist()  # a factor of 0.1^2 a block
    [-4.0, -2.0, 0.0]
    """
    _validate.function("loss", loss)
    blocks = _validate.integer("blocks", blocks, 2)
    _validate.integer("argnums", argnums, 0)
    _validate.flag("has_aux", has_aux)

    instrumented = instrument(loss, argnums, has_aux)

    def measured(*args):
        problem = prepare(loss, args, argnums, has_aux)
        locations = plan_sites(problem.program, problem.call.labels).locations()
        indices = _last_operations(locations, blocks)
        *_, measurement = instrumented(*args)
        parts = (measurement.forward, measurement.backward)
        return BlockSizes(*(_series([part[i] for i in indices], blocks) for part in parts))

    return measured


def _last_operations(locations: Sequence[Location], blocks: int) -> list[int]:
    """Return the sites of the operation that is the last one in each block."""
    loops = [i for i, place in enumerate(locations) if place.lengths]
    outside = [i for i, place in enumerate(locations) if not place.lengths]
    # A site in a scan has an array of sizes, one for each iteration.
    groups = [[i] for i in loops if int(np.prod(locations[i].lengths)) % blocks == 0]
    groups += [g for g in repeated(outside, lambda i: locations[i]) if len(g) % blocks == 0]
    if not groups:
        raise ValueError(
            f"blocks must be the number of blocks in the model of loss, got {blocks}, and no "
            "operation is repeated as often; pass the depth with which the parameters were drawn"
        )
    return max(groups, key=max)


def _series(parts: Sequence[Statistics], blocks: int) -> Array:
    """Return the logs of mean squares as one row, the last of each block."""
    logs = jnp.concatenate([jnp.ravel(part.log_mean_square) for part in parts])
    finite = jnp.concatenate([jnp.ravel(part.non_finite) for part in parts]) == 0
    every = len(logs) // blocks
    return jnp.where(finite, logs, jnp.nan)[every - 1 :: every]
