"""The largest curvature of a loss, which limits the learning rate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad._numerics import divide_by_largest


class Curvature(NamedTuple):
    """The largest eigenvalue of a Hessian; rates below `2 / value` are stable.

    Attributes:
      value: estimate of the largest eigenvalue, never above it but for rounding.
      residual: norm of `H v - value v`; an eigenvalue is not farther from `value` than that.
      vector: the direction `v` of unit norm, a pytree like the parameters.
    """

    value: Float[Array, ""]
    residual: Float[Array, ""]
    vector: Any


def largest_curvature(
    loss: Callable[..., Any], params: Any, *args: Any, key: PRNGKeyArray, steps: int = 32
) -> Curvature:
    """Compute the largest eigenvalue of the Hessian of a loss by Lanczos iterations.

    Each step takes one product of the Hessian with a direction, which costs about two gradients,
    and stores the direction, so that memory is `steps` times that of the parameters. It can be
    jitted and mapped. The step at which plain gradient descent on the full batch begins to diverge
    is `2 / value`, as long as the curvature stays the same.

    Args:
      loss: `loss(params, *args)` returns a scalar.
      params: a pytree of floating-point arrays.
      args: further arguments of `loss`, such as the batch.
      key: draws the first direction.
      steps: number of iterations. If `residual` is not small next to `value`, take more.

    Sources: Lanczos (1950); LeCun, Simard, Pearlmutter (1992), Automatic learning rate maximization
    by on-line estimation of the Hessian's eigenvectors.

    >>> def loss(w):
    ...     return 3.0 * w[0] ** 2 + 0.5 * w[1] ** 2 - w[2] ** 2
    >>> result = largest_curvature(loss, jnp.ones(3), key=jax.random.key(0))
    >>> round(float(result.value), 4)
    6.0
    """
    _validate.function("loss", loss)
    _validate.tree("params", params, floating=True)
    _validate.key("key", key)
    steps = _validate.integer("steps", steps, 1)
    out = jax.eval_shape(loss, params, *args)
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        got = f"got {jax.tree.map(lambda leaf: leaf.shape, out)}; take for example its mean"
        raise TypeError(f"loss must return one floating-point number, {got}")
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))

    def multiply(vector):
        gradient = jax.grad(lambda flat: loss(unravel(flat), *args))
        return jax.jvp(gradient, (flat,), (vector,))[1]

    value, residual, vector = _lanczos(multiply, flat, key, min(steps, flat.size))
    return Curvature(value, residual, unravel(vector))


def _lanczos(multiply, like, key, steps):
    """Return the largest Ritz value, the norm of its residual, and its vector."""
    start = jax.random.normal(key, like.shape, jnp.float32).astype(like.dtype)
    basis = jnp.zeros((steps + 1, like.size), like.dtype).at[0].set(start / _norm(start))
    # Rounding of a product is of this size, relative to the largest one so far.
    eps = jnp.finfo(like.dtype).eps * like.size**0.5

    def step(index, carry):
        basis, diagonal, beside = carry
        product = multiply(basis[index])
        size = _norm(product)
        diagonal = diagonal.at[index].set(basis[index] @ product)
        # In float32 once is not enough to make the next direction orthogonal to all before.
        for _ in range(2):
            product = product - (basis @ product) @ basis
        length = _norm(product)
        # Where an invariant subspace ends, what remains is rounding; then all others are zero.
        live = (length > eps * size) & (size > 0)
        basis = basis.at[index + 1].set(jnp.where(live, product / jnp.where(live, length, 1), 0))
        return basis, diagonal, beside.at[index].set(jnp.where(live, length, 0))

    zeros = jnp.zeros(steps, like.dtype)
    basis, diagonal, beside = jax.lax.fori_loop(0, steps, step, (basis, zeros, zeros))
    # Divided by the largest entry, all eigenvalues are between -3 and 3. A direction that is zero
    # has none, and must not have the largest one.
    largest = jnp.maximum(jnp.max(jnp.abs(diagonal)), jnp.max(beside))
    scale = jnp.where(largest > 0, largest, 1.0)
    live = jnp.cumprod(jnp.append(1.0, beside[:-1] > 0)) > 0
    diagonal, beside = jnp.where(live, diagonal / scale, -4.0), beside[:-1] / scale
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    vector = jnp.linalg.eigh(matrix)[1][:, -1] @ basis[:-1]
    vector = vector / _norm(vector)
    product = multiply(vector)
    value = vector @ product
    return value, _norm(product - value * vector), vector


def _norm(vector):
    """The Euclidean norm without overflow of the squares."""
    scaled, log_divisor = divide_by_largest(vector, 0)
    return jnp.linalg.norm(scaled) * jnp.exp(log_divisor[0])
