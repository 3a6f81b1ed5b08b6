"""Standardize inputs with the mean and standard deviation of the training set.

The parts of batch norm and layer norm are in `jaxgrad.layers`.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from jaxgrad import _validate


class Standardizer(NamedTuple):
    """Mean and standard deviation of each feature of the training set."""

    mean: Float[Array, " features"]
    std: Float[Array, " features"]


def fit(x: Float[ArrayLike, "examples features"]) -> Standardizer:
    """Measure the features of a training set. Apply the result to that set and to every other one.

    A constant feature gets the standard deviation 1, so that it is standardized to 0.

    >>> import jax.numpy as jnp
    >>> standardizer = fit(jnp.asarray([[1.0, 5.0], [3.0, 5.0]]))
    >>> apply(standardizer, jnp.asarray([[3.0, 6.0]])).tolist()
    [[1.0, 1.0]]
    """
    x = _validate.floating("x", x, 2, "[examples, features]")
    std = jnp.std(x, axis=0)
    # The mean of a constant feature is rounded, which alone gives a spread of a few eps |x|.
    noise = 4 * jnp.finfo(x.dtype).eps * jnp.max(jnp.abs(x), axis=0)
    return Standardizer(jnp.mean(x, axis=0), jnp.where(std > noise, std, 1.0))


def apply(
    standardizer: Standardizer, x: Num[ArrayLike, "*batch features"]
) -> Float[Array, "*batch features"]:
    """Standardize each feature: `(x - mean) / std`.

    The course notes divide by the variance in one place. That gives unit variance only where the
    variance already is 1, and a loss that is harder to minimize than with centred inputs alone;
    `python -m experiments.input_normalization` prints the condition numbers.
    """
    _validate.instance("standardizer", standardizer, Standardizer, "normalization.fit")
    x = _validate.real("x", x)
    features = len(standardizer.mean)
    if x.shape[-1:] != (features,):
        rule = f"have the {features} features of the training set"
        raise ValueError(f"x must {rule}, got shape {x.shape}; fit a standardizer on such inputs")
    # Explicit, because ranks may differ and some programs forbid implicit promotion.
    mean, std = (jnp.broadcast_to(part, x.shape) for part in standardizer)
    return (x - mean) / std
