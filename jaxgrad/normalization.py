"""Standardize inputs with the training set's statistics, and hidden signals with their own.

`fit` and `apply` are for inputs. `statistics`, `normalize` and `update` are the parts of which
`jaxgrad.layers` makes batch and layer norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxgrad import _validate


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
    x = _validate.floating("x", x, 2, "[examples, features]")
    std = jnp.std(x, axis=0)
    # Rounding of the mean alone leaves a constant feature this much.
    noise = 4 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=0)
    return Standardizer(jnp.mean(x, axis=0), jnp.where(std > noise, std, 1.0))


def apply(standardizer: Standardizer, x: ArrayLike) -> jax.Array:
    """`(x - mean) / std`, feature by feature.

    One text of the course divides by the variance instead; that gives unit variance only where the
    variance is 1 already, and a loss harder to descend than that of inputs that are merely centred:
    `python -m experiments.input_normalization` prints condition numbers.

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


class Statistics(NamedTuple):
    """Mean and variance of a signal, of shapes that broadcast to it."""

    mean: jax.Array
    variance: jax.Array


def statistics(h: jax.Array, axes: Sequence[int]) -> Statistics:
    """Mean and variance (divided by the number of values) over some axes, which stay, of size 1.

    Over the batch and any spatial axes these are batch norm's, over the features layer norm's.

    >>> import jax.numpy as jnp
    >>> found = statistics(jnp.asarray([[1.0, 2.0], [3.0, 2.0]]), (0,))
    >>> found.mean.tolist(), found.variance.tolist()
    ([[2.0, 2.0]], [[1.0, 0.0]])
    """
    mean = jnp.mean(h, axis=tuple(axes), keepdims=True)
    return Statistics(mean, jnp.mean(jnp.square(h - mean), axis=tuple(axes), keepdims=True))


def normalize(h: jax.Array, statistics: Statistics, epsilon: Any = 0.0) -> jax.Array:
    """`(h - mean) / sqrt(variance + epsilon)`, and 0 where that root is 0.

    Args:
      h: a signal.
      statistics: of it or of other batches, of shapes that broadcast to `h`.
      epsilon: at least 0, may be traced.

    Returns:
      An array like `h`.

    Source: Ioffe, Szegedy (2015), algorithm 1; Ba, Kiros, Hinton (2016), eq. 4.
    """
    centred = h - jnp.broadcast_to(statistics.mean, h.shape)
    variance = statistics.variance + epsilon
    varies = variance > 0
    # Masked inside too, since the branch not taken still has a derivative.
    inverse = jax.lax.rsqrt(jnp.where(varies, variance, 1.0)).astype(h.dtype)
    inverse, varies = (jnp.broadcast_to(part, h.shape) for part in (inverse, varies))
    return jnp.where(varies, centred * inverse, 0.0)


def update(running: Statistics, batch: Statistics, momentum: Any) -> Statistics:
    """`momentum running + (1 - momentum) batch`, for use when there is no batch.

    The batch's variance is taken as it is, divided by the number of values, as in flax and Keras;
    PyTorch and Ioffe, Szegedy (2015) divide by one less.

    Args:
      running: so far, for example means 0 and variances 1.
      batch: statistics of as many values, in any shape.
      momentum: from 0 to 1, may be traced; 1 keeps the old.

    Returns:
      Statistics of `running`'s shapes.
    """

    def mixed(old, new):
        return momentum * old + (1 - momentum) * jnp.reshape(new, old.shape).astype(old.dtype)

    return jax.tree.map(mixed, running, batch)
