"""Constant weights, and independent random weights whose variance follows from the fans."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.initializers._fans import Strides, fans

Distribution = Literal["normal", "uniform", "truncated"]
Mode = Literal["fan_in", "fan_out", "fan_avg"]

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal variable truncated to (-2, 2)."""

# A field with this metadata belongs to the structure of the pytree; other fields are leaves.
_STATIC = {"static": True}


@runtime_checkable
class Initializer(Protocol):
    """A callable that draws weights, as every function of `jaxgrad.initializers` returns."""

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        """Draw an array of `shape` and `dtype` from `key`."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Constant:
    value: Any

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return jax.nn.initializers.constant(self.value, dtype)(key, tuple(shape), dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Independent:
    """Entries of variance `scale`, divided by the fan of the kernel if there is a mode."""

    scale: Any
    distribution: Distribution = field(metadata=_STATIC)
    mode: Mode | None = field(default=None, metadata=_STATIC)
    convolution: tuple[tuple[str, Any], ...] = field(default=(), metadata=_STATIC)

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        variance = self.scale
        if self.mode is not None:
            n_in, n_out = fans(shape, **dict(self.convolution))
            by_mode = {"fan_in": n_in, "fan_out": n_out, "fan_avg": (n_in + n_out) / 2}
            variance = variance / by_mode[self.mode]
        # Drawn in float32, whatever the dtype, so that a key gives one network in every precision.
        shape = tuple(shape)
        if self.distribution == "normal":
            unit = jax.nn.initializers.normal(1.0)(key, shape, jnp.float32)
        elif self.distribution == "truncated":
            # Cutting the tails lowers the standard deviation, which is divided out.
            unit = jax.nn.initializers.truncated_normal(1 / TRUNCATED_STD)(key, shape, jnp.float32)
        else:
            # U(-a, a) has variance a^2 / 3.
            unit = jax.random.uniform(key, shape, jnp.float32, -math.sqrt(3), math.sqrt(3))
        return (unit * jnp.sqrt(jnp.asarray(variance, jnp.float32))).astype(dtype)


def constant(value: Any) -> Initializer:
    """Set every entry to `value`, finite, may be traced; all units of a layer then stay alike."""
    _validate.scalar("value", value)
    return _Constant(value)


def zeros() -> Initializer:
    """Set every entry to zero, as is usual for biases."""
    return constant(0.0)


def normal(variance: Any) -> Initializer:
    """Draw independent normal entries of mean 0 and `variance`, at least 0, which may be traced."""
    _validate.scalar("variance", variance, minimum=0.0)
    return _Independent(variance, "normal")


def uniform(variance: Any) -> Initializer:
    """Draw independent entries from `U(-a, a)`, where `a = sqrt(3 variance)`; see `normal`."""
    _validate.scalar("variance", variance, minimum=0.0)
    return _Independent(variance, "uniform")


def variance_scaling(
    scale: Any,
    mode: Mode = "fan_in",
    distribution: Distribution = "normal",
    *,
    groups: int = 1,
    strides: Strides = 1,
    transposed: bool = False,
) -> Initializer:
    """Draw independent entries of mean 0 and variance `scale / fan`.

    The variance `1 / (fan_in + fan_out)`, which some course notes call Glorot's (see `glorot` for
    his), is `variance_scaling(0.5, "fan_avg")`.

    Args:
      scale: one number of at least 0, may be traced.
      mode: the fan to divide by: `fan_in`, `fan_out`, or `fan_avg`, their arithmetic mean.
      distribution: `normal`, `uniform`, or `truncated`: a normal distribution that is cut at two
        standard deviations and then scaled back to the required variance.
      groups, strides, transposed: options of a convolution, see `fans`.
    """
    _validate.scalar("scale", scale, minimum=0.0)
    _validate.choice("mode", mode, ("fan_in", "fan_out", "fan_avg"))
    _validate.choice("distribution", distribution, ("normal", "uniform", "truncated"))
    # A list could not be part of a pytree's structure, which has to be hashable.
    strides = strides if isinstance(strides, int) else tuple(strides)
    options = (("groups", groups), ("strides", strides), ("transposed", transposed))
    return _Independent(scale, distribution, mode, options)


def lecun(distribution: Distribution = "normal", **convolution: Any) -> Initializer:
    """Draw entries of variance `1 / fan_in`, which keeps the variance of a linear signal.

    For the arguments see `variance_scaling`. Some course notes call this initializer Xavier.
    Source: LeCun, Bottou, Orr, Mueller (1998), Efficient backprop, eq. 16.
    """
    return variance_scaling(1.0, "fan_in", distribution, **convolution)


def glorot(distribution: Distribution = "normal", **convolution: Any) -> Initializer:
    """Draw entries of variance `2 / (fan_in + fan_out)`: a compromise of signal and gradient.

    For the arguments see `variance_scaling`. Source: Glorot, Bengio (2010), eq. 12 and 16.
    """
    return variance_scaling(1.0, "fan_avg", distribution, **convolution)


def he(
    distribution: Distribution = "normal",
    mode: Mode = "fan_in",
    negative_slope: Any = 0.0,
    **convolution: Any,
) -> Initializer:
    """Draw entries of variance `2 / ((1 + a^2) fan)`, for (leaky) ReLU of `negative_slope` `a`.

    With `fan_in` this keeps the mean square of the signal, with `fan_out` that of the gradient. The
    slope may be traced; see also `variance_scaling`. Source: He, Zhang, Ren, Sun (2015), eq. 10-15.
    """
    _validate.scalar("negative_slope", negative_slope)
    # E phi(z)^2 = (1 + a^2) / 2 E z^2 for z symmetric about 0.
    return variance_scaling(2.0 / (1 + negative_slope**2), mode, distribution, **convolution)
