"""What becomes of every direction along the depth of a network.

The norm of a gradient is one number about a Jacobian; a network can keep that norm and still
squeeze most directions to nothing. A layer that mixes examples, as batch norm does, has one
Jacobian for the whole batch; any other has one for each example. Below, `rows` is the number of
Jacobians, 1 or `batch`, and `size` the number of inputs of each. Singular values are carried as
logarithms and keep nearly all digits even where they differ by more than floating-point numbers do.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad._numerics import in_float64
from jaxgrad.layers import Copy, Layer, Scaled, check_is_layer
from jaxgrad.propagation._forward import check_arguments, forward, working_inputs

_SWEEPS = 40


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
      layer, params, x: as of `probe`.
      key: PRNG key of the directions and of the draws of the layers; not the one that drew
        `params`.
      count: number of exponents, at most the smallest size of a signal; `None` for as many.

    Returns:
      `Lyapunov`, of NumPy arrays computed in float64 unless an argument is traced; then in the
      precision of `x` and `params`.

    Source: Benettin, Galgani, Giorgilli, Strelcyn (1980).

    >>> from jaxgrad import initializers, layers
    >>> block = layers.dense(8, w_variance=4.0, kernel_init=initializers.orthogonal())
    >>> stack = layers.repeat(block, 100)
    >>> params, _ = layers.init(stack, (8,), key=jax.random.key(0))
    >>> result = lyapunov(stack, params, jnp.ones((1, 8)), key=jax.random.key(1), count=3)
    >>> bool(jnp.allclose(jnp.exp(result.exponents), 2.0, rtol=1e-4))
    True
    """
    x = check_arguments(layer, params, x, key=key)
    if count is not None:
        count = _validate.integer("count", count, 1)
    return _in_float64_if_known(_lyapunov, layer, params, x, key, count)


@functools.partial(jax.jit, static_argnums=4)
def _lyapunov(layer, params, x, key, count):
    x = working_inputs(layer, params, x)
    key_start, key_layers = jax.random.split(key)
    stacks = layer.stacks(params, key=key_layers)
    rows, size = _sizes(layer, x)
    # The smallest number of features of a signal on its way, for one Jacobian.
    outputs = jax.eval_shape(lambda x: forward(stacks, x, 0.0)[2], x)
    smallest = min(x.size, *(h.value.size // len(h.value) for h in outputs)) // rows
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
            h, moved, log_scale = _push_directions(layer, copy, *carry)
            # moved = directions @ triangle; the diagonal holds the growth of each new direction.
            directions, triangle = jnp.linalg.qr(moved)
            log_growth = jnp.diagonal(_logs_of(triangle), axis1=1, axis2=2) + log_scale[:, None]
            return (h, directions), log_growth

        carry, log_growth = stack.scan(step, carry)
        logs.append(log_growth)
    log_growth = jnp.concatenate(logs)
    return Lyapunov(jnp.mean(log_growth, axis=0), log_growth)


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

    The arguments, types and precision are those of `lyapunov`.

    Returns:
      Natural logs, the largest first, -inf for zero: one row for each Jacobian and as many values
      as the smallest signal on the way has features. Memory grows as `rows size^2`, time as
      `rows size^3` times the depth.

    Source: Bai, Lee, Li, Xu (2011) for the product; Demmel, Veselic (1992) for the rotations.
    """
    check_is_layer("layer", layer)
    _validate.tree("params", params, empty=True)
    x = _validate.floating("x", x, 2, "[batch, *shape]", more=True)
    return _in_float64_if_known(_singular_values, layer, params, x)


def isometry(log_singular_values: Float[Array | np.ndarray, "*rows size"]) -> Isometry:
    """Summarize the spectra of Jacobians, from natural logs as of `singular_values`.

    Source: Pennington, Schoenholz, Ganguli (2017), sec. 2.

    >>> result = isometry(jnp.zeros(3))
    >>> float(result.variance), float(result.distance)
    (0.0, 0.0)
    """
    array = _validate.real("log_singular_values", log_singular_values)
    shape, dtype = array.shape, array.dtype
    if not shape or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "log_singular_values must be floating-point numbers [..., size], got shape "
            f"{shape} of {dtype}; pass what singular_values returns"
        )
    # NumPy's float64 is kept, of which JAX would make float32.
    return _isometry(log_singular_values if isinstance(log_singular_values, np.ndarray) else array)


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


@jax.jit
def _singular_values(layer, params, x):
    x = working_inputs(layer, params, x)
    rows, size = _sizes(layer, x)
    eye = jnp.broadcast_to(jnp.eye(size, dtype=x.dtype), (rows, size, size))
    h = Scaled(x, jnp.zeros(len(x), x.dtype))
    carry = (h, eye, jnp.zeros((rows, size), x.dtype), eye)
    for stack in layer.stacks(params):
        carry, _ = stack.scan(functools.partial(_multiply, stack.layer), carry)
    _, _, scales, rest = carry
    return -jnp.sort(-jax.vmap(_graded)(scales, rest), axis=1)[:, : scales.shape[1]]


def _multiply(layer, carry, copy):
    """Multiply the product by the Jacobian of an entry.

    The product is `basis diag(exp(scales)) rest`, with orthonormal columns of `basis` and unit rows
    of `rest`.
    """
    h, basis, scales, rest = carry
    h, moved, log_scale = _push_directions(layer, copy, h, basis)
    # Sorted columns, so that no entry of the triangle grows when the scales go through it.
    order = jnp.argsort(-(jnp.log(jnp.linalg.norm(moved, axis=1)) + scales), axis=1)
    moved = jnp.take_along_axis(moved, order[:, None, :], axis=2)
    scales = jnp.take_along_axis(scales, order, axis=1) + log_scale[:, None]
    rest = jnp.take_along_axis(rest, order[:, :, None], axis=1)

    # J basis diag(exp(scales)) rest = basis' (triangle diag(exp(scales))) rest, and the rows of the
    # product in brackets are normalized before they multiply `rest`.
    basis, triangle = jnp.linalg.qr(moved)
    logs = _logs_of(triangle) + scales[:, None, :]
    top = jnp.max(logs, axis=2)
    relative = jnp.exp(logs - jnp.where(jnp.isfinite(top), top, 0.0)[..., None])
    rest, log_norm = _unit((jnp.sign(triangle) * relative) @ rest)
    return (h, basis, top + log_norm, rest), None


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

        def in_order(upper, lower):
            turn = swap.reshape(half, *[1] * (upper.ndim - 1))
            return jnp.where(turn, lower, upper), jnp.where(turn, upper, lower)

        large, small = in_order(rows[:half], rows[half:][::-1])
        log_large, log_small = in_order(logs[:half], logs[half:][::-1])
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
        turned = cosine * (large - (tangent * jnp.square(ratio))[:, None] * small)
        upper, lower = in_order(turned, cosine * (small + tangent[:, None] * large))
        rows, log_norm = _unit(jnp.concatenate([upper, lower[::-1]]))
        worst = jnp.maximum(worst, jnp.max(jnp.abs(jnp.where(meets, product, 0.0))))
        return rows[seats], (logs + log_norm)[seats], worst

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


def _push_directions(
    layer: Layer, copy: Copy, h: Scaled, directions: Float[Array, "rows size count"]
) -> tuple[Scaled, Float[Array, "rows out count"], Float[Array, " rows"]]:
    """Return the signal and the directions after one entry, with a log scale common to them."""
    out, derivative = copy.linearize(layer, h)
    rows = len(directions)

    def push(value):
        moved = derivative.push(Scaled(value, jnp.zeros_like(h.log_scale)))
        return tuple(moved.shared() if rows == 1 else moved)

    # Each direction is a tangent of the whole batch: examples do not meet if rows is their number.
    tangents = jnp.moveaxis(directions, -1, 0).reshape(-1, *h.value.shape)
    moved, log_scale = jax.vmap(push, out_axes=(0, None))(tangents)
    moved = jnp.moveaxis(moved.reshape(len(moved), rows, -1), 0, -1)
    return out.normalized()[0], moved, log_scale[:rows]


def _sizes(layer: Layer, x: Array) -> tuple[int, int]:
    """Return the number of Jacobians and the number of inputs of each."""
    rows = 1 if layer.mixes else len(x)
    return rows, x.size // rows


def _logs_of(triangle: Float[Array, "rows a b"]) -> Float[Array, "rows a b"]:
    """Return the logs of the entries, -inf for those that rounding may have made of zeros."""
    size, eps = jnp.abs(triangle), jnp.finfo(triangle.dtype).eps
    column = jnp.linalg.norm(triangle, axis=1, keepdims=True)
    lost = size <= 16 * triangle.shape[1] ** 0.5 * eps * column
    return jnp.where(lost, -jnp.inf, jnp.log(jnp.where(lost, 1.0, size)))


def _in_float64_if_known(function: Any, layer: Any, params: Any, x: Array, *args: Any) -> Any:
    """Call a function in float64 and return NumPy arrays, unless an argument is traced."""
    if any(_validate.is_traced(leaf) for leaf in jax.tree.leaves((layer, params, x, args))):
        return function(layer, params, x, *args)
    # Thousands of decompositions would add up the rounding of float32.
    with jax.enable_x64(True):
        params, x = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, x))
        return jax.tree.map(np.asarray, function(layer, params, x, *args))
