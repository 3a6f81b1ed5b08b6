"""The curvature of a loss, and the learning rate that it allows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad._numerics import bisect, divide_by_largest

LARGEST_FACTOR = 1e4  # by which a rate may be above 2 over the largest curvature


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
    flat, multiply, unravel = _hessian(loss, params, args)
    start = jax.random.normal(key, flat.shape, jnp.float32).astype(flat.dtype)
    basis, matrix, _ = _lanczos(multiply, start, min(steps, flat.size))
    vector = jnp.linalg.eigh(matrix)[1][:, -1] @ basis
    vector = vector / _norm(vector)
    product = multiply(vector)
    value = vector @ product
    return Curvature(value, _norm(product - value * vector), unravel(vector))


def largest_learning_rate(
    loss: Callable[..., Any],
    params: Any,
    *args: Any,
    descent_steps: int = 10,
    lanczos_steps: int = 24,
) -> Float[Array, ""]:
    """Predict the largest rate at which plain gradient descent lowers the loss at each step.

    It is that of the quadratic model of the loss at `params`. There an eigenvector of the Hessian,
    with eigenvalue `h` and a share `w` of the squared gradient, lowers the loss in step `t` by
    `w r (1 - r h)^(2 t) (2 - r h) / 2` at a rate `r`. Above `2 / h` it raises the loss, ever
    faster, but as long as its share is small the others outweigh it. The rate is thus at least 2
    over the largest curvature, and more for few steps. Lanczos iterations that start at the
    gradient give eigenvalues and shares.

    Args:
      loss: `loss(params, *args)` returns a scalar.
      params: a pytree of floating-point arrays.
      args: further arguments of `loss`, such as the batch, which all steps share.
      descent_steps: steps during which the loss falls.
      lanczos_steps: of the iteration; it stores as many directions.

    Returns:
      The rate, to 0.01 %; infinite if no rate raises the loss, as where the gradient is zero.

    Source: LeCun, Simard, Pearlmutter (1992) for the limit 2 / h; Golub, Meurant (1994), Matrices,
    moments and quadrature, for the shares.

    >>> def loss(w):
    ...     return 3.0 * w[0] ** 2 + 0.5 * w[1] ** 2
    >>> start = jnp.array([0.01, 1.0])  # little of the gradient is along the largest curvature, 6
    >>> rates = [largest_learning_rate(loss, start, descent_steps=n) for n in (1, 10, 100)]
    >>> [round(float(rate), 3) for rate in rates]  # 2 / 6 in the end
    [1.965, 0.345, 0.333]
    """
    _validate.function("loss", loss)
    _validate.tree("params", params, floating=True)
    count = _validate.integer("descent_steps", descent_steps, 1)
    lanczos_steps = _validate.integer("lanczos_steps", lanczos_steps, 1)
    flat, multiply, unravel = _hessian(loss, params, args)
    gradient = jax.grad(lambda flat: loss(unravel(flat), *args))(flat)
    _, matrix, scale = _lanczos(multiply, gradient, min(lanczos_steps, flat.size))
    values, vectors = jnp.linalg.eigh(matrix)
    # The eigenvalue -4 marks directions that do not exist; no share of the gradient is theirs.
    weights, largest = vectors[0] ** 2, values[-1]

    def falls(log_factor):
        # Rates in units of 2 over the largest eigenvalue, eigenvalues in units of that one.
        product = 2 * jnp.exp(log_factor) * values / jnp.where(largest > 0, largest, 1.0)
        ratio = 1 - product
        # Divided by the largest ratio, powers do not overflow, and the sign of a sum stays.
        squares = jnp.square(ratio / jnp.max(jnp.abs(ratio)))
        shares = weights * (2 - product)
        return jnp.min(jax.vmap(lambda t: jnp.sum(shares * squares**t))(jnp.arange(count)))

    factors = jnp.linspace(0.0, jnp.log(LARGEST_FACTOR), 512, dtype=flat.dtype)
    rising = jax.lax.map(falls, factors) < 0
    first = jnp.argmax(rising)
    inside = factors[jnp.maximum(first - 1, 0)]
    factor = bisect(falls, inside, factors[first], steps=10, sign=jnp.ones_like(inside))
    rate = 2 * jnp.exp(factor) / jnp.where(largest > 0, largest * scale, 1.0)
    return jnp.where((largest > 0) & jnp.any(rising), rate, jnp.inf)


def _hessian(loss, params, args):
    """Return the parameters as a vector, the product with the Hessian, and the vector's inverse."""
    out = jax.eval_shape(loss, params, *args)
    if getattr(out, "shape", None) != () or not jnp.issubdtype(out.dtype, jnp.floating):
        got = f"got {jax.tree.map(lambda leaf: leaf.shape, out)}; take for example its mean"
        raise TypeError(f"loss must return one floating-point number, {got}")
    flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, params))

    def multiply(vector):
        gradient = jax.grad(lambda flat: loss(unravel(flat), *args))
        return jax.jvp(gradient, (flat,), (vector,))[1]

    return flat, multiply, unravel


def _lanczos(multiply, start, steps):
    """Return an orthonormal basis, the matrix in it over a scale, and that scale."""
    length = _norm(start)
    first = start / jnp.where(length > 0, length, 1)
    basis = jnp.zeros((steps + 1, start.size), start.dtype).at[0].set(first)
    # Rounding of a product is of this size, relative to the largest one so far.
    eps = jnp.finfo(start.dtype).eps * start.size**0.5

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

    zeros = jnp.zeros(steps, start.dtype)
    basis, diagonal, beside = jax.lax.fori_loop(0, steps, step, (basis, zeros, zeros))
    # Divided by the largest entry, all eigenvalues are between -3 and 3. A direction that is zero
    # has none, and must not have the largest one.
    largest = jnp.maximum(jnp.max(jnp.abs(diagonal)), jnp.max(beside))
    scale = jnp.where(largest > 0, largest, 1.0)
    live = jnp.cumprod(jnp.append(1.0, beside[:-1] > 0)) > 0
    diagonal, beside = jnp.where(live, diagonal / scale, -4.0), beside[:-1] / scale
    matrix = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)
    return basis[:-1], matrix, scale


def _norm(vector):
    """The Euclidean norm without overflow of the squares."""
    scaled, log_divisor = divide_by_largest(vector, 0)
    return jnp.linalg.norm(scaled) * jnp.exp(log_divisor[0])
