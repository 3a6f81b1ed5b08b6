"""Lyapunov exponents: the growth of every direction along the depth of a network.

The norm of a gradient is one number about a Jacobian; a network can keep that norm and still
squeeze most directions to nothing. A layer that mixes examples, as batch norm does, has one
Jacobian for the whole batch; any other has one for each example. Below, `rows` is the number of
Jacobians, 1 or `batch`, and `size` the number of inputs of each.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.layers import Copy, Layer, Scaled
from jaxgrad.propagation._forward import check_arguments, forward, working_inputs


class Lyapunov(NamedTuple):
    """Growth of directions along depth; logs are natural, of norms rather than squares.

    Attributes:
      exponents: mean over depth of `log_growth`, `[rows, count]`, the largest first but for
        fluctuations; -inf for directions that an entry sets to zero.
      log_growth: log growth at each entry of the depth axis, `[depth, rows, count]`.
    """

    exponents: Any
    log_growth: Any


def lyapunov(
    layer: Layer,
    params: Any,
    x: Float[Array | np.ndarray, "batch *shape"],
    *,
    key: PRNGKeyArray,
    count: int | None = None,
) -> Lyapunov:
    """Measure Lyapunov exponents by orthogonal decompositions along depth.

    Orthonormal directions, at first random, go through the Jacobian of each entry of the depth
    axis. After each they are made orthonormal again, and the logs of the divisors are recorded. For
    Gaussian weights these are independent, so that their mean has no bias; in general the influence
    of the start falls as one over depth.

    Args:
      layer: any layer.
      params: from `jaxgrad.layers.init`.
      x: inputs, floating point, finite.
      key: PRNG key of the directions and of the draws of the layers; not the one that drew
        `params`.
      count: number of exponents, at most the smallest size of a signal; `None` for as many.

    Returns:
      `Lyapunov`, of NumPy arrays computed in float64 unless an argument is traced; then in the
      precision of `x` and `params`.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Benettin, Galgani, Giorgilli, Strelcyn (1980).

    >>> from jaxgrad import initializers, layers
    >>> block = layers.dense(8, w_variance=4.0, kernel_init=initializers.orthogonal())
    >>> stack = layers.repeat(block, 100)
    >>> params, _ = layers.init(stack, (8,), key=jax.random.key(0))
    >>> result = lyapunov(stack, params, jnp.ones((1, 8)), key=jax.random.key(1), count=3)
    >>> bool(jnp.allclose(jnp.exp(result.exponents), 2.0, rtol=1e-4))
    True
    """
    x = check_arguments(layer, x, key=key)
    if count is not None:
        count = _validate.integer("count", count, 1)
    return in_float64_if_known(_lyapunov, layer, params, x, key, count)


@functools.partial(jax.jit, static_argnames=("count", "double"))
def _lyapunov(layer, params, x, key, count, *, double):
    params, x = in_precision(params, x, double=double)
    x = working_inputs(layer, params, x)
    key_start, key_layers = jax.random.split(key)
    stacks = layer.stacks(params, key=key_layers)
    rows, size = sizes(layer, x)
    smallest = _smallest_size(stacks, x, rows)
    count = smallest if count is None else count
    if count > smallest:
        raise ValueError(
            f"count must be at most {smallest}, the size of the Jacobian, got {count}; lower it"
        )
    start = jax.random.normal(key_start, (rows, size, count), jnp.float32).astype(x.dtype)

    # The exponents forget these directions, but a deterministic choice could be an invariant one.
    carry, logs = (Scaled(x, jnp.zeros(len(x), x.dtype)), jnp.linalg.qr(start)[0]), []
    for stack in stacks:

        def step(carry, copy, layer=stack.layer):
            h, moved, log_scale = push_directions(layer, copy, *carry)
            # moved = directions @ triangle; the diagonal holds the growth of each new direction.
            directions, triangle = jnp.linalg.qr(moved)
            left = jnp.abs(jnp.diagonal(triangle, axis1=1, axis2=2))
            lost = left <= rounding_of_zero(triangle)
            log_growth = jnp.log(jnp.where(lost, 1.0, left)) + log_scale[:, None]
            return (h, directions), jnp.where(lost, -jnp.inf, log_growth)

        carry, log_growth = stack.scan(step, carry)
        logs.append(log_growth)
    log_growth = jnp.concatenate(logs)
    return Lyapunov(jnp.mean(log_growth, axis=0), log_growth)


def _smallest_size(stacks, x, rows):
    """Return the smallest number of features of a signal on its way, for one Jacobian."""
    outputs = jax.eval_shape(lambda x: [r.outputs.value for r in forward(stacks, x, 0.0)], x)
    return min(x.size, *(array.size // len(array) for array in outputs)) // rows


def push_directions(
    layer: Layer, copy: Copy, h: Scaled, directions: Float[Array, "rows size count"]
) -> tuple[Scaled, Float[Array, "rows out count"], Float[Array, " rows"]]:
    """Return the signal and the directions after one entry, with a log scale of the directions."""
    out, derivative = copy.linearize(layer, h)
    rows = len(directions)

    def push(value):
        moved = derivative.push(Scaled(value, jnp.zeros_like(h.log_scale)))
        return tuple(moved.shared() if rows == 1 else moved)

    # Each direction is a tangent of the whole batch: examples do not meet if rows is their number.
    tangents = jnp.moveaxis(directions, -1, 0).reshape(-1, *h.value.shape)
    # The log scale is the same for all directions.
    moved, log_scale = jax.vmap(push, out_axes=(0, None))(tangents)
    moved = jnp.moveaxis(moved.reshape(len(moved), rows, -1), 0, -1)
    return out.normalized()[0], moved, log_scale[:rows]


def sizes(layer: Layer, x: Array) -> tuple[int, int]:
    """Return the number of Jacobians and the number of inputs of each."""
    rows = 1 if layer.mixes else len(x)
    return rows, x.size // rows


def rounding_of_zero(triangle: Float[Array, "rows a b"]) -> Float[Array, "rows b"]:
    """Return what a zero becomes by rounding in each column of a decomposition."""
    eps = jnp.finfo(triangle.dtype).eps
    return 16 * triangle.shape[1] ** 0.5 * eps * jnp.linalg.norm(triangle, axis=1)


def in_precision(params: Any, x: Array, *, double: bool) -> tuple[Any, Array]:
    """Return parameters and inputs in float64 if `double`."""
    return jax.tree.map(lambda a: a.astype(jnp.float64) if double else a, (params, x))


def in_float64_if_known(function: Any, layer: Any, params: Any, x: Array, *args: Any) -> Any:
    """Call a function in float64 and return NumPy arrays, unless an argument is traced."""
    if any(_validate.is_traced(leaf) for leaf in jax.tree.leaves((layer, params, x, args))):
        return function(layer, params, x, *args, double=False)
    # Thousands of decompositions would add up the rounding of float32.
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, function(layer, params, x, *args, double=True))
