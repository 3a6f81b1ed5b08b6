"""Weight initializers with the signature of `jax.nn.initializers`: `(key, shape, dtype) -> Array`.

Every function here returns an initializer. Variances, scales and gains may be traced values, so
one compiled program serves a whole sweep. Draws are made in float32 and then converted, so that a
key gives the same network in every precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from jaxgrad import _arguments

Distribution = Literal["normal", "uniform", "truncated"]
Mode = Literal["fan_in", "fan_out", "fan_avg"]

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal truncated to (-2, 2)."""


class Initializer(Protocol):
    """What every function of this module returns."""

    def __call__(self, key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
        """Draw an array of `shape` and `dtype` from `key`."""
        ...


class Fans(NamedTuple):
    """How many values a unit adds up (`fan_in`), and into how many its own value goes (`fan_out`).

    Floats, because strides divide them.
    """

    fan_in: float
    fan_out: float


def fans(
    shape: Sequence[int], *, groups: int = 1, strides: int | Sequence[int] = 1, transposed=False
) -> Fans:
    """The effective fans of a kernel, the ones that keep a variance.

    Args:
      shape: kernel shape `(*window, in, out)`, as in `flax.linen.Conv` and in JAX's `HWIO`; a
        dense kernel is `(in, out)`. Of a grouped convolution `in` is the number of input channels
        of one group, and `out` counts the channels of all groups.
      groups: number of groups; a depthwise convolution has as many as input channels and `in` 1.
      strides: of the window, one for all dimensions or one each.
      transposed: whether the strides are those of a transposed (fractionally strided) convolution.

    Returns:
      `Fans`. A window of `k` positions at stride `s` gives `fan_in = k in`, `fan_out = k out /
      (groups s)`. Transposed, each output meets only every s-th tap: `fan_in = k in / s`,
      `fan_out = k out / groups`.

    Raises:
      ValueError, TypeError: if the shape has fewer than two dimensions, or groups do not divide
        the output channels, or a stride is not a positive whole number.

    Source: He et al. (2015), sec. 2.2, for convolutions; strides and groups by counting terms.

    >>> fans((3, 3, 16, 32))
    Fans(fan_in=144.0, fan_out=288.0)
    >>> fans((3, 3, 1, 64), groups=64)
    Fans(fan_in=9.0, fan_out=9.0)
    >>> fans((4, 4, 16, 8), strides=2, transposed=True)
    Fans(fan_in=64.0, fan_out=128.0)
    """
    *window, n_in, n_out = _arguments.shape("shape", shape, 2)
    groups = _arguments.integer("groups", groups, 1)
    if n_out % groups:
        raise ValueError(
            f"groups must divide the {n_out} output channels of shape {tuple(shape)}, got {groups}"
        )
    steps = [strides] * len(window) if isinstance(strides, int) else list(strides)
    if len(steps) != len(window):
        raise ValueError(
            f"strides must give one number for each of the {len(window)} window dimensions of "
            f"shape {tuple(shape)}, got {strides!r}"
        )
    size = math.prod(window)
    stride = math.prod(_arguments.integer("strides", step, 1) for step in steps)
    fan_in, fan_out = float(size * n_in), size * n_out / groups
    return Fans(fan_in / stride, fan_out) if transposed else Fans(fan_in, fan_out / stride)


def _draw(distribution: Distribution, key, shape, dtype, variance) -> jax.Array:
    std = jnp.sqrt(jnp.asarray(variance, jnp.float32))
    if distribution == "normal":
        unit = jax.nn.initializers.normal(1.0)(key, shape, jnp.float32)
    elif distribution == "truncated":
        unit = jax.nn.initializers.truncated_normal(1 / TRUNCATED_STD)(key, shape, jnp.float32)
    else:
        unit = jax.random.uniform(key, shape, jnp.float32, -math.sqrt(3), math.sqrt(3))
    return (unit * std).astype(dtype)


def constant(value: Any) -> Initializer:
    """Every entry equal to `value`: all units of a layer stay alike, symmetry is never broken.

    Args:
      value: one finite number, may be traced.

    Raises:
      ValueError, TypeError: if it is not.
    """
    _arguments.scalar("value", value)

    def init(key, shape, dtype=jnp.float32):
        return jax.nn.initializers.constant(value, dtype)(key, tuple(shape), dtype)

    return init


def zeros() -> Initializer:
    """Every entry zero: usual for biases; for weights, it shows why symmetry must be broken.

    >>> import jax
    >>> zeros()(jax.random.key(0), (2,)).tolist()
    [0.0, 0.0]
    """
    return constant(0.0)


def normal(variance: Any) -> Initializer:
    """Independent normal entries of mean 0 and the given `variance`.

    Args:
      variance: one number of at least 0, may be traced.

    Raises:
      ValueError, TypeError: if it is not.
    """
    _arguments.scalar("variance", variance, minimum=0.0)

    def init(key, shape, dtype=jnp.float32):
        return _draw("normal", key, tuple(shape), dtype, variance)

    return init


def uniform(variance: Any) -> Initializer:
    """Independent entries from `U(-a, a)` with `a = sqrt(3 variance)`, so of the given `variance`.

    Args:
      variance: one number of at least 0, may be traced.

    Raises:
      ValueError, TypeError: if it is not.
    """
    _arguments.scalar("variance", variance, minimum=0.0)

    def init(key, shape, dtype=jnp.float32):
        return _draw("uniform", key, tuple(shape), dtype, variance)

    return init


def variance_scaling(
    scale: Any,
    mode: Mode = "fan_in",
    distribution: Distribution = "normal",
    *,
    groups: int = 1,
    strides: int | Sequence[int] = 1,
    transposed: bool = False,
) -> Initializer:
    """Independent entries of mean 0 and variance `scale / fan`.

    One text of the course writes `1 / (fan_in + fan_out)` under Glorot's name; that variant is
    `variance_scaling(0.5, "fan_avg")`. Glorot's own is twice as large: see `glorot`.

    Args:
      scale: one number of at least 0, may be traced.
      mode: which fan divides: `fan_in`, `fan_out`, or `fan_avg`, their arithmetic mean.
      distribution: `normal`, `uniform`, or `truncated`, a normal cut at two standard deviations
        and widened so that its variance is the stated one.
      groups, strides, transposed: of a convolution, see `fans`.

    Raises:
      ValueError, TypeError: if an argument is none of these; at the draw, if the shape does not
        fit them.

    >>> import jax
    >>> kernel = variance_scaling(2.0, "fan_out")(jax.random.key(0), (100, 400))
    >>> bool(abs(kernel.var() * 400 - 2) < 0.1)
    True
    """
    _arguments.scalar("scale", scale, minimum=0.0)
    _arguments.choice("mode", mode, ("fan_in", "fan_out", "fan_avg"))
    _arguments.choice("distribution", distribution, ("normal", "uniform", "truncated"))

    def init(key, shape, dtype=jnp.float32):
        fan_in, fan_out = fans(shape, groups=groups, strides=strides, transposed=transposed)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[mode]
        return _draw(distribution, key, tuple(shape), dtype, scale / fan)

    return init


def lecun(distribution: Distribution = "normal", **convolution: Any) -> Initializer:
    """Variance `1 / fan_in`: keeps a linear signal; two of the course's texts say "Xavier".

    Args:
      distribution, convolution: see `variance_scaling`.

    Source: LeCun, Bottou, Orr, Mueller (1998), Efficient backprop, eq. 16.
    """
    return variance_scaling(1.0, "fan_in", distribution, **convolution)


def glorot(distribution: Distribution = "normal", **convolution: Any) -> Initializer:
    """Variance `2 / (fan_in + fan_out)`: a compromise between signal and gradient.

    Args:
      distribution, convolution: see `variance_scaling`.

    Source: Glorot, Bengio (2010), eq. 12 and 16.
    """
    return variance_scaling(1.0, "fan_avg", distribution, **convolution)


def he(
    distribution: Distribution = "normal",
    mode: Mode = "fan_in",
    negative_slope: Any = 0.0,
    **convolution: Any,
) -> Initializer:
    """Variance `2 / ((1 + a^2) fan)`: keeps the signal of a (leaky) ReLU network of slope `a`.

    Args:
      distribution, mode, convolution: see `variance_scaling`.
      negative_slope: the slope `a` of the activation's negative side, may be traced.

    Raises:
      ValueError, TypeError: if the slope is not one finite number, and as `variance_scaling`.

    Source: He, Zhang, Ren, Sun (2015), eq. 10, 14 and 15.
    """
    _arguments.scalar("negative_slope", negative_slope)
    return variance_scaling(2.0 / (1 + negative_slope**2), mode, distribution, **convolution)


def orthogonal(gain: Any = 1.0) -> Initializer:
    """A uniformly random orthogonal matrix times `gain`, widened where the layer widens.

    The kernel is read as a matrix of `in * window` rows and `out` columns. With more columns than
    rows an orthogonal map keeps the norm and so thins the variance; the factor
    `max(sqrt(out / rows), 1)` restores it, so that the mean square is multiplied by `gain^2` for
    every shape.

    Args:
      gain: one finite number, may be traced.

    Raises:
      ValueError, TypeError: if it is not; at the draw, if the shape has fewer than two dimensions.

    Source: Saxe, McClelland, Ganguli (2014); the correction by counting rows and columns.

    >>> import jax, jax.numpy as jnp
    >>> kernel = orthogonal()(jax.random.key(0), (8, 8))
    >>> bool(jnp.allclose(kernel.T @ kernel, jnp.eye(8), atol=1e-5))
    True
    """
    _arguments.scalar("gain", gain)

    def init(key, shape, dtype=jnp.float32):
        sizes = _arguments.shape("shape", shape, 2)
        widening = max(math.sqrt(sizes[-1] / math.prod(sizes[:-1])), 1.0)
        matrix = jax.nn.initializers.orthogonal(1.0)(key, sizes, jnp.float32)
        return (matrix * (gain * widening)).astype(dtype)

    return init
