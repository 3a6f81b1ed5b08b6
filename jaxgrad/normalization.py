"""Standardize inputs with the statistics of the training set."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _arguments


class Standardizer(NamedTuple):
    """Mean and standard deviation of each feature of the training set, `[features]` each."""

    mean: jax.Array
    std: jax.Array


def fit(x: ArrayLike) -> Standardizer:
    """Measure the features of a training set.

    A feature that does not vary gets the standard deviation 1, so that it becomes 0.

    Args:
      x: training inputs, `[examples, features]`, floating point, finite.

    Returns:
      `Standardizer`, a pytree, to be applied to every other set too.

    Raises:
      ValueError, TypeError: if the inputs are not as described.

    >>> import jax.numpy as jnp
    >>> standardizer = fit(jnp.asarray([[1.0, 5.0], [3.0, 5.0]]))
    >>> apply(standardizer, jnp.asarray([[3.0, 6.0]])).tolist()
    [[1.0, 1.0]]
    """
    x = _arguments.floating("x", x, 2, "[examples, features]")
    std = jnp.std(x, axis=0)
    # Rounding of the mean alone leaves a constant feature this much.
    noise = 4 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=0)
    return Standardizer(jnp.mean(x, axis=0), jnp.where(std > noise, std, 1.0))


def apply(standardizer: Standardizer, x: ArrayLike) -> jax.Array:
    """`(x - mean) / std`, feature by feature.

    One text of the course divides by the variance instead; that gives unit variance only where the
    variance is 1 already.

    Args:
      standardizer: from `fit`.
      x: inputs, `[..., features]`.

    Returns:
      Standardized inputs of the same shape.

    Raises:
      ValueError: if the number of features differs.
    """
    x = jnp.asarray(x)
    if x.ndim == 0 or x.shape[-1] != len(standardizer.mean):
        raise ValueError(
            f"x must have the {len(standardizer.mean)} features of the training set, got shape "
            f"{x.shape}; fit a standardizer on inputs of this kind"
        )
    mean, std = (jnp.broadcast_to(part, x.shape) for part in standardizer)
    return (x - mean) / std
