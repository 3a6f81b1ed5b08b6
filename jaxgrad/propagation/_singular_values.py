"""Singular values of the Jacobian of a deep network: all of them, as logarithms.

They keep nearly all digits even where they differ by more than floating-point numbers do.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxgrad import _validate
from jaxgrad._numerics import in_float64
from jaxgrad.layers import Layer, Scaled, check_is_layer
from jaxgrad.propagation._forward import working_inputs
from jaxgrad.propagation._lyapunov import (
    in_float64_if_known,
    in_precision,
    push_directions,
    rounding_of_zero,
    sizes,
)

_SWEEPS = 40


class Isometry(NamedTuple):
    """How far Jacobians are from isometries; arrays `[...]`, one entry for each Jacobian.

    Attributes:
      log_mean: log of the mean squared singular value.
      variance: variance of the squared singular values over the square of their mean; NaN if all
        are zero.
      log_condition: log of the largest singular value over the smallest; inf if that is zero.
      distance: root mean square of the logs of the singular values, 0 for an isometry and for
        nothing else; inf if one of them is zero.
    """

    log_mean: Any
    variance: Any
    log_condition: Any
    distance: Any


def singular_values(
    layer: Layer, params: Any, x: Float[Array | np.ndarray, "batch *shape"]
) -> Float[Array | np.ndarray, "rows size"]:
    """Compute the logs of all singular values of the Jacobian of the outputs by the inputs.

    The product over depth is carried as an orthogonal matrix times a diagonal one, in logs, times a
    well-conditioned one. The smallest singular value keeps its digits next to a largest one that is
    any power of ten above it, unless a single entry of the depth axis takes the ratio of two
    directions beyond the precision: an image below the rounding of others counts as zero. Dropout
    is off and randomized activations take their means.

    Args:
      layer: any layer.
      params: from `jaxgrad.layers.init`.
      x: inputs, floating point, finite.

    Returns:
      Natural logs, the largest first, -inf for zero: one row for each Jacobian, see `lyapunov`, and
      as many values as the smallest signal on the way has features. A NumPy array computed in
      float64, unless an argument is traced; then in the precision of `x` and `params`. Memory grows
      as `rows size^2`, time as `rows size^3` times the depth.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Bai, Lee, Li, Xu (2011) for the product; Demmel, Veselic (1992) for the rotations.

    >>> from jaxgrad import initializers, layers
    >>> block = layers.dense(8, w_variance=1 / 4, kernel_init=initializers.orthogonal())
    >>> stack = layers.repeat(block, 1000)
    >>> params, _ = layers.init(stack, (8,), key=jax.random.key(0))
    >>> values = singular_values(stack, params, jnp.ones((1, 8)))
    >>> bool(jnp.allclose(values / 1000, jnp.log(0.5), rtol=1e-5))
    True
    """
    check_is_layer("layer", layer)
    x = _validate.floating("x", x, max(np.ndim(x), 2), "[batch, *shape]")
    return in_float64_if_known(_singular_values, layer, params, x)


def isometry(log_singular_values: Float[Array | np.ndarray, "*rows size"]) -> Isometry:
    """Summarize the spectra of Jacobians.

    Args:
      log_singular_values: natural logs, as from `singular_values`.

    Raises:
      ValueError, TypeError: if the logs are not numbers with at least one axis, or NaN.

    Source: Pennington, Schoenholz, Ganguli (2017), sec. 2.

    >>> result = isometry(jnp.zeros(3))
    >>> float(result.variance), float(result.distance)
    (0.0, 0.0)
    """
    shape, dtype = np.shape(log_singular_values), jnp.result_type(log_singular_values)
    if not shape or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "log_singular_values must be floating-point numbers [..., size], got shape "
            f"{shape} of {dtype}; pass what singular_values returns"
        )
    return _isometry(log_singular_values)


@in_float64
@jax.jit
def _isometry(logs):
    logs = logs.astype(float)
    log_mean = jax.nn.logsumexp(2 * logs, axis=-1) - math.log(logs.shape[-1])
    # Not a difference of moments, which would cancel near an isometry.
    deviation = jnp.expm1(2 * logs - log_mean[..., None])
    return Isometry(
        log_mean,
        jnp.mean(jnp.square(deviation), axis=-1),
        jnp.max(logs, axis=-1) - jnp.min(logs, axis=-1),
        jnp.sqrt(jnp.mean(jnp.square(logs), axis=-1)),
    )


@functools.partial(jax.jit, static_argnames="double")
def _singular_values(layer, params, x, *, double):
    params, x = in_precision(params, x, double=double)
    x = working_inputs(layer, params, x)
    rows, size = sizes(layer, x)
    eye = jnp.broadcast_to(jnp.eye(size, dtype=x.dtype), (rows, size, size))
    h = Scaled(x, jnp.zeros(len(x), x.dtype))
    carry = (h, eye, jnp.zeros((rows, size), x.dtype), eye)
    for stack in layer.stacks(params):
        carry = _multiply_stack(stack, carry)
    _, _, scales, rest = carry
    return -jnp.sort(-jax.vmap(_graded)(scales, rest), axis=1)[:, : scales.shape[1]]


def _multiply_stack(stack, carry):
    """Multiply the product by the Jacobians of a stack.

    The product is `basis diag(exp(scales)) rest`, with orthonormal columns of `basis` and unit rows
    of `rest`.
    """

    def step(carry, copy):
        h, basis, scales, rest = carry
        h, moved, log_scale = push_directions(stack.layer, copy, h, basis)
        # Sorted columns, so that no entry of the triangle grows when the scales go through it.
        order = jnp.argsort(-(jnp.log(jnp.linalg.norm(moved, axis=1)) + scales), axis=1)
        moved = jnp.take_along_axis(moved, order[:, None, :], axis=2)
        scales = jnp.take_along_axis(scales, order, axis=1) + log_scale[:, None]
        rest = jnp.take_along_axis(rest, order[:, :, None], axis=1)

        # J basis diag(exp(scales)) rest = basis' (triangle diag(exp(scales))) rest, and the rows of
        # the product in brackets are normalized before they multiply `rest`.
        basis, triangle = jnp.linalg.qr(moved)
        lost = jnp.abs(triangle) <= rounding_of_zero(triangle)[:, None, :]
        logs = jnp.log(jnp.where(lost, 1.0, jnp.abs(triangle))) + scales[:, None, :]
        logs = jnp.where(lost, -jnp.inf, logs)
        top = jnp.max(logs, axis=2)
        relative = jnp.exp(logs - jnp.where(jnp.isfinite(top), top, 0.0)[..., None])
        rest, log_norm = _unit((jnp.sign(triangle) * relative) @ rest)
        return (h, basis, top + log_norm, rest), None

    return stack.scan(step, carry)[0]


def _graded(scales, rest):
    """Return the log singular values of `diag(exp(scales)) rest`.

    The rows are made orthogonal in pairs. They are unit vectors with the logs of their norms; a
    rotation of two rows needs only the difference of these, and changes each row by a term that is
    small next to it.
    """
    size = len(scales)
    # A row of zeros makes their number even. Opposite rows meet, then all but the first move one
    # seat on, so that every row meets every other once in a sweep.
    rows = jnp.concatenate([rest, jnp.zeros((size % 2, rest.shape[1]), rest.dtype)])
    logs = jnp.concatenate([scales, jnp.full(size % 2, -jnp.inf, scales.dtype)])
    half = len(logs) // 2
    seats = np.r_[0, len(logs) - 1, 1 : len(logs) - 1]
    tolerance = size * jnp.finfo(rest.dtype).eps

    def meet(_, carry):
        rows, logs, worst = carry
        # Row i of the first half meets row i from the end; the longer one of each pair comes first.
        swap = logs[:half] < logs[half:][::-1]

        def swapped(pairs):
            turn = swap.reshape(1, half, *[1] * (pairs.ndim - 2))
            return jnp.where(turn, pairs[::-1], pairs)

        large, small = swapped(jnp.stack([rows[:half], rows[half:][::-1]]))
        log_large, log_small = swapped(jnp.stack([logs[:half], logs[half:][::-1]]))
        product = jnp.sum(large * small, axis=1)
        meets = jnp.isfinite(log_small) & (jnp.abs(product) > 0)
        ratio = jnp.exp(jnp.where(meets, log_small - log_large, 0.0))
        slope = (jnp.square(ratio) - 1) / (2 * jnp.where(meets, product, 1.0))
        # The tangent of the angle, divided by the ratio so that it does not underflow.
        tangent = jnp.where(slope < 0, -1.0, 1.0) / (
            jnp.abs(slope) + jnp.sqrt(jnp.square(ratio) + jnp.square(slope))
        )
        tangent = jnp.where(meets, tangent, 0.0)
        cosine = jax.lax.rsqrt(1 + jnp.square(tangent * ratio))[:, None]
        large, small = (
            cosine * (large - (tangent * jnp.square(ratio))[:, None] * small),
            cosine * (small + tangent[:, None] * large),
        )
        upper, lower = swapped(jnp.stack([large, small]))
        upper_logs, lower_logs = swapped(jnp.stack([log_large, log_small]))
        # The rotation changes the lengths, too.
        rows, grown = _unit(jnp.concatenate([upper, lower[::-1]]))
        logs = jnp.concatenate([upper_logs, lower_logs[::-1]]) + grown
        worst = jnp.maximum(worst, jnp.max(jnp.abs(jnp.where(meets, product, 0.0))))
        return rows[seats], logs[seats], worst

    def sweep(carry):
        rows, logs, _, done = carry
        start = (rows, logs, jnp.zeros((), rows.dtype))
        return *jax.lax.fori_loop(0, len(seats) - 1, meet, start), done + 1

    def unfinished(carry):
        return (carry[2] > tolerance) & (carry[3] < _SWEEPS)

    # Convergence is quadratic once rows are nearly orthogonal.
    start = (rows, logs, jnp.ones((), rows.dtype), 0)
    return jax.lax.while_loop(unfinished, sweep, start)[1]


def _unit(rows):
    """Rows divided by their norms, and the logs of these; zeros stay zeros with log -inf."""
    norm = jnp.linalg.norm(rows, axis=-1)
    safe = jnp.where(norm > 0, norm, 1.0)
    return rows / safe[..., None], jnp.log(norm)
