"""Singular values of the Jacobian of a stack of blocks, however deep: all of them, in logarithms.

The norm of a gradient is one number about a Jacobian; a network can keep that norm and still
squeeze most directions to nothing. `lyapunov` gives the growth per layer of every direction from
one pass over depth, `singular_values` the singular values of the whole product, to nearly all
digits even where they differ by more than floating-point numbers do, and `isometry` says how far
they are from being all one.

Blocks are taken as `jaxgrad.networks.init_blocks` makes them. A block that mixes examples, as batch
norm does, has one Jacobian for the whole batch; another has one for each example. Below, `rows`
counts the Jacobians, 1 or `batch`, and `size` is their number of rows and columns.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, networks, propagation
from jaxgrad._old_layers import Layer

_SWEEPS = 40


class Lyapunov(NamedTuple):
    """Growth of directions along depth; logs are natural, of norms rather than squares.

    Attributes:
      exponents: mean log growth per block, `[rows, count]`. In the order of the decomposition, the
        largest first but for fluctuations; -inf for directions that the blocks set to zero.
      log_growth: log growth at each block, `[depth, rows, count]`; its mean over depth is
        `exponents`, its cumulative sum the growth up to each depth.
    """

    exponents: jax.Array
    log_growth: jax.Array


class Isometry(NamedTuple):
    """How far a Jacobian is from an isometry; arrays `[...]`, one entry a Jacobian.

    Attributes:
      log_mean: log of the mean squared singular value.
      variance: variance of the squared singular values over the square of their mean.
      log_condition: log of the largest singular value over the smallest; inf if that is zero.
      distance: root mean square of the logs of the singular values, 0 for an isometry and for
        nothing else; inf if one of them is zero.
    """

    log_mean: jax.Array
    variance: jax.Array
    log_condition: jax.Array
    distance: jax.Array


def lyapunov(
    params: Any, x: jax.Array, key: jax.Array, block: Layer, *, count: int | None = None
) -> Lyapunov:
    """Lyapunov exponents of a stack of blocks, by orthogonal decompositions along depth.

    `count` orthonormal directions, at first random, go through the blocks' Jacobians; at each block
    they are made orthonormal again, and the logs of what that divides by are kept. For Gaussian
    weights these are independent from block to block, so that their mean has no bias; in general
    the start is forgotten at a rate of one over depth.

    Args:
      params: from `jaxgrad.networks.init_blocks`.
      x: inputs, `[batch, *shape]`, floating point, finite.
      key: PRNG key of the directions and of the blocks' draws; not the one that drew `params`.
      block: the one given to `init_blocks`.
      count: number of exponents, at most `size`; `None` for all.

    Returns:
      `Lyapunov`, computed in float64 unless an argument is traced; then in the precision of `x` and
      `params`.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Benettin, Galgani, Giorgilli, Strelcyn (1980).

    >>> import jax, jax.numpy as jnp
    >>> from jaxgrad import _old_layers as layers
    >>> from jaxgrad import initializers
    >>> block = layers.dense(8, w_variance=4.0, kernel_init=initializers.orthogonal())
    >>> params = networks.init_blocks(jax.random.key(0), block, (8,), 100)
    >>> found = lyapunov(params, jnp.ones((1, 8)), jax.random.key(1), block, count=3)
    >>> bool(jnp.allclose(jnp.exp(found.exponents), 2.0, rtol=1e-4))
    True
    """
    x = _validate.floating("x", x, max(np.ndim(x), 2), "[batch, *shape]")
    x, _ = networks.check_blocks(params, x, block)
    size = _sizes(x, block)[1]
    count = size if count is None else _validate.integer("count", count, 1)
    if count > size:
        raise ValueError(
            f"count must be at most {size}, the size of the Jacobian, got {count}; lower it"
        )
    return _in_float64(lambda params, x: _lyapunov(params, x, key, block, count), params, x)


def singular_values(params: Any, x: jax.Array, block: Layer) -> jax.Array:
    """Logs of all singular values of the Jacobian of a stack of blocks with respect to `x`.

    The product is carried as an orthogonal matrix times a diagonal one, in logs, times a
    well-conditioned one, and the decomposition is finished by rotations that know the diagonal's
    logs only through their differences. So the smallest singular value keeps its digits next to a
    largest one that is any power of ten above it, as long as no single block takes the ratio of two
    directions beyond the precision: what a block leaves of a direction, relative to the rounding of
    the direction's image, counts as zero below it. Deterministic: dropout is off and randomized
    activations take their means.

    Args:
      params: from `jaxgrad.networks.init_blocks`.
      x: inputs, `[batch, *shape]`, floating point, finite.
      block: the one given to `init_blocks`.

    Returns:
      Natural logs `[rows, size]`, the largest first, -inf for zero: float64, computed in float64,
      unless an argument is traced; then in the precision of `x` and `params`. Memory grows as
      `rows size^2`, time as `rows size^3` times the depth.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Bai, Lee, Li, Xu (2011) for the product; Demmel, Veselic (1992) for the rotations.

    >>> import jax, jax.numpy as jnp
    >>> from jaxgrad import _old_layers as layers
    >>> from jaxgrad import initializers
    >>> block = layers.dense(8, w_variance=1 / 4, kernel_init=initializers.orthogonal())
    >>> params = networks.init_blocks(jax.random.key(0), block, (8,), 1000)
    >>> values = singular_values(params, jnp.ones((1, 8)), block)
    >>> bool(jnp.allclose(values / 1000, jnp.log(0.5), rtol=1e-5))
    True
    """
    x = _validate.floating("x", x, max(np.ndim(x), 2), "[batch, *shape]")
    return _in_float64(lambda params, x: _singular_values(params, x, block), params, x)


def isometry(log_singular_values: Any) -> Isometry:
    """Summarize the spectra of Jacobians.

    Args:
      log_singular_values: natural logs `[..., size]`, as from `singular_values`.

    Returns:
      `Isometry`. `variance` is NaN if all singular values are zero.

    Raises:
      ValueError, TypeError: if the logs are not numbers with at least one axis, or NaN.

    Source: Pennington, Schoenholz, Ganguli (2017), sec. 2.

    >>> import jax.numpy as jnp
    >>> found = isometry(jnp.zeros(3))
    >>> float(found.variance), float(found.distance)
    (0.0, 0.0)
    """
    shape, dtype = np.shape(log_singular_values), jnp.result_type(log_singular_values)
    if not shape or 0 in shape or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            "log_singular_values must be floating-point numbers [..., size], got shape "
            f"{shape} of {dtype}; pass what singular_values returns"
        )
    return _in_float64(_isometry, log_singular_values)


def _isometry(logs):
    size = logs.shape[-1]
    log_mean = jax.nn.logsumexp(2 * logs, axis=-1) - jnp.log(size)
    # Not a difference of moments, which would cancel near an isometry.
    deviation = jnp.expm1(2 * logs - log_mean[..., None])
    return Isometry(
        log_mean,
        jnp.mean(jnp.square(deviation), axis=-1),
        jnp.max(logs, axis=-1) - jnp.min(logs, axis=-1),
        jnp.sqrt(jnp.mean(jnp.square(logs), axis=-1)),
    )


def _in_float64(function, *args):
    """Known numbers in float64, into arrays of NumPy; traced ones in the precision they have."""
    if any(_validate.is_traced(leaf) for leaf in jax.tree.leaves(args)):
        return function(*args)
    with jax.enable_x64(True):
        args = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), args)
        return jax.tree.map(np.asarray, function(*args))


def _sizes(x, block):
    rows = 1 if block.mixes else len(x)
    return rows, x.size // rows


def _push(block, layer, h, key, directions):
    """The signal and the directions `[rows, size, count]` after one block."""
    after, linear = jax.linearize(lambda h: block.apply(layer, h, key), h)
    if block.homogeneous:
        after = propagation.rescaled(after, together=block.mixes)[0]
    tangents = jnp.moveaxis(directions, -1, 0)
    moved = jax.vmap(linear)(tangents.reshape(-1, *h.shape))
    return after, jnp.moveaxis(moved.reshape(tangents.shape), 0, -1)


def _rounding(triangle):
    """What a zero becomes by rounding in each column of a decomposition, `[rows, count]`."""
    eps = jnp.finfo(triangle.dtype).eps
    return 16 * triangle.shape[1] ** 0.5 * eps * jnp.linalg.norm(triangle, axis=1)


def _lyapunov(params, x, key, block, count):
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x, depth = networks.check_blocks(params, x, block)
    key_start, key_blocks = jax.random.split(key)
    start = jax.random.normal(key_start, (*_sizes(x, block), count), jnp.float32).astype(x.dtype)

    def step(carry, inputs):
        h, directions = carry
        index, layer = inputs
        h, moved = _push(block, layer, h, jax.random.fold_in(key_blocks, index), directions)
        directions, triangle = jnp.linalg.qr(moved)
        left = jnp.abs(jnp.diagonal(triangle, axis1=1, axis2=2))
        lost = left <= _rounding(triangle)
        log_growth = jnp.where(lost, -jnp.inf, jnp.log(jnp.where(lost, 1.0, left)))
        return (h, directions), log_growth

    carry = (x, jnp.linalg.qr(start)[0])
    log_growth = jax.lax.scan(step, carry, (jnp.arange(depth), params))[1]
    return Lyapunov(jnp.mean(log_growth, axis=0), log_growth)


def _singular_values(params, x, block):
    x, _ = networks.check_blocks(params, x, block)
    rows, size = _sizes(x, block)

    def step(carry, layer):
        h, basis, scales, rest = carry
        h, moved = _push(block, layer, h, None, basis)
        # Sorted columns, so that no entry of the triangle grows when the scales go through it.
        order = jnp.argsort(-(jnp.log(jnp.linalg.norm(moved, axis=1)) + scales), axis=1)
        moved = jnp.take_along_axis(moved, order[:, None, :], axis=2)
        scales = jnp.take_along_axis(scales, order, axis=1)
        rest = jnp.take_along_axis(rest, order[:, :, None], axis=1)

        basis, triangle = jnp.linalg.qr(moved)
        lost = jnp.abs(triangle) <= _rounding(triangle)[:, None, :]
        logs = jnp.log(jnp.where(lost, 1.0, jnp.abs(triangle))) + scales[:, None, :]
        logs = jnp.where(lost, -jnp.inf, logs)
        top = jnp.max(logs, axis=2)
        relative = jnp.exp(logs - jnp.where(jnp.isfinite(top), top, 0.0)[..., None])
        rest, log_norm = _unit((jnp.sign(triangle) * relative) @ rest)
        return (h, basis, top + log_norm, rest), None

    eye = jnp.broadcast_to(jnp.eye(size, dtype=x.dtype), (rows, size, size))
    carry = (x, eye, jnp.zeros((rows, size), x.dtype), eye)
    _, _, scales, rest = jax.lax.scan(step, carry, params)[0]
    return -jnp.sort(-jax.vmap(_graded)(scales, rest), axis=1)[:, :size]


def _graded(scales, rest):
    """Log singular values of `diag(exp(scales)) rest`, by making its rows orthogonal in pairs.

    Rows are unit vectors with the logs of their norms. A rotation of two rows needs only the
    difference of these, and changes each row by what is small next to it.
    """
    size = len(scales)
    # A row of zeros makes their number even. Opposite rows meet, then all but the first move one
    # seat on, so that every row meets every other once in a sweep.
    rows = jnp.concatenate([rest, jnp.zeros((size % 2, size), rest.dtype)])
    logs = jnp.concatenate([scales, jnp.full(size % 2, -jnp.inf, scales.dtype)])
    half = len(logs) // 2
    seats = np.r_[0, len(logs) - 1, 1 : len(logs) - 1]
    tolerance = size * jnp.finfo(rest.dtype).eps

    def meet(_, carry):
        rows, logs, worst = carry
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

    start = (rows, logs, jnp.ones((), rows.dtype), 0)
    return jax.lax.while_loop(unfinished, sweep, start)[1]


def _unit(rows):
    """Rows divided by their norms, and the logs of these; zeros stay zeros with log -inf."""
    norm = jnp.linalg.norm(rows, axis=-1)
    safe = jnp.where(norm > 0, norm, 1.0)
    return rows / safe[..., None], jnp.log(norm)
