"""Constant, independent and orthogonal weights; the fans from which a variance follows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from jaxgrad import _validate

Distribution = Literal["normal", "uniform", "truncated"]
Mode = Literal["fan_in", "fan_out", "fan_avg"]
Strides = int | Sequence[int]

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal variable truncated to (-2, 2)."""

# A field with this metadata belongs to the structure of the pytree; other fields are leaves.
_STATIC = {"static": True}
CONVOLUTION = ("groups", "strides", "transposed")


@runtime_checkable
class Initializer(Protocol):
    """A callable that draws weights, as every function of `jaxgrad.initializers` returns."""

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        """Draw an array of `shape` and `dtype` from `key`."""
        ...


class Fans(NamedTuple):
    """Numbers of values that a unit sums, and of units that use its value; strides divide them."""

    fan_in: float
    fan_out: float


def fans(
    shape: Sequence[int], *, groups: int = 1, strides: Strides = 1, transposed: bool = False
) -> Fans:
    """Count the effective fans of a kernel: the numbers that a variance has to be divided by.

    A window of `k` positions with total stride `s` gives `fan_in = k in`,
    `fan_out = k out / (groups s)`. If transposed, each output sums only every s-th position:
    `fan_in = k in / s`, `fan_out = k out / groups`. Source: He et al. (2015), sec. 2.2.

    Args:
      shape: kernel shape `(*window, in, out)`, as in `flax.linen.Conv` and in JAX's `HWIO`; a dense
        kernel is `(in, out)`. With groups, `in` counts the input channels of one group, and `out`
        the output channels of all.
      groups: number of groups; for a depthwise convolution the number of input channels.
      strides: strides of the window, one number for all dimensions or one for each.
      transposed: whether the convolution is transposed (fractionally strided).

    >>> fans((3, 3, 16, 32))
    Fans(fan_in=144.0, fan_out=288.0)
    >>> fans((4, 4, 16, 8), strides=2, transposed=True)
    Fans(fan_in=64.0, fan_out=128.0)
    """
    *window, n_in, n_out = _validate.shape("shape", shape, 2)
    groups, strides, transposed = _checked_convolution(groups, strides, transposed)
    if n_out % groups:
        rule = f"divide the {n_out} output channels of shape {tuple(shape)}"
        raise ValueError(f"groups must {rule}, got {groups}")
    per_axis = [strides] * len(window) if isinstance(strides, int) else list(strides)
    if len(per_axis) != len(window):
        axes = f"{len(window)} window dimensions of shape {tuple(shape)}"
        raise ValueError(f"strides must give one number for each of the {axes}, got {strides!r}")
    # A unit sums one product for each position of the window and input channel of its group.
    size = math.prod(window)
    stride = math.prod(per_axis)
    fan_in, fan_out = float(size * n_in), size * n_out / groups
    # A stride thins the outputs; transposed, it thins the inputs that an output meets.
    return Fans(fan_in / stride, fan_out) if transposed else Fans(fan_in, fan_out / stride)


def _checked_convolution(groups, strides, transposed):
    """Return the options of a convolution, or raise if one of them is wrong."""
    groups = _validate.integer("groups", groups, 1)
    # A list could not be part of a pytree's structure, which has to be hashable.
    if isinstance(strides, (tuple, list)):
        strides = tuple(_validate.integer("strides", step, 1) for step in strides)
    else:
        strides = _validate.integer("strides", strides, 1)
    _validate.flag("transposed", transposed)
    return groups, strides, transposed


def check_names(function: str, options: dict[str, Any], remedies: dict[str, str] | None = None):
    """Raise a TypeError in the name of a public function for an option that no convolution has."""
    for name, value in options.items():
        if name not in CONVOLUTION:
            remedy = (remedies or {}).get(name, f"the options are {', '.join(CONVOLUTION)}")
            got = f"got {_validate.show(value)}"
            raise TypeError(f"{function} has no argument {name!r}, {got}; {remedy}")


def _checked_draw(key, shape, dtype, ndim=0):
    _validate.key("key", key)
    return _validate.shape("shape", shape, ndim), _validate.dtype("dtype", dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Constant:
    value: Any

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        shape, dtype = _checked_draw(key, shape, dtype)
        return jax.nn.initializers.constant(self.value, dtype)(key, shape, dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Independent:
    """Entries of variance `scale`, divided by the fan of the kernel if there is a mode."""

    scale: Any
    distribution: Distribution = field(metadata=_STATIC)
    mode: Mode | None = field(default=None, metadata=_STATIC)
    convolution: tuple[tuple[str, Any], ...] = field(default=(), metadata=_STATIC)

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        shape, dtype = _checked_draw(key, shape, dtype, 0 if self.mode is None else 2)
        variance = self.scale
        if self.mode is not None:
            n_in, n_out = fans(shape, **dict(self.convolution))
            by_mode = {"fan_in": n_in, "fan_out": n_out, "fan_avg": (n_in + n_out) / 2}
            variance = variance / by_mode[self.mode]
        # Drawn in float32, whatever the dtype, so that a key gives one network in every precision.
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
    options = _checked_convolution(groups, strides, transposed)
    return _Independent(scale, distribution, mode, tuple(zip(CONVOLUTION, options, strict=True)))


def lecun(distribution: Distribution = "normal", **convolution: Any) -> Initializer:
    """Draw entries of variance `1 / fan_in`, which keeps the variance of a linear signal.

    For the arguments see `variance_scaling`. Some course notes call this initializer Xavier.
    Source: LeCun, Bottou, Orr, Mueller (1998), Efficient backprop, eq. 16.
    """
    check_names("lecun", convolution)
    return variance_scaling(1.0, "fan_in", distribution, **convolution)


def glorot(distribution: Distribution = "normal", **convolution: Any) -> Initializer:
    """Draw entries of variance `2 / (fan_in + fan_out)`: a compromise of signal and gradient.

    For the arguments see `variance_scaling`. Source: Glorot, Bengio (2010), eq. 12 and 16.
    """
    check_names("glorot", convolution)
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
    check_names("he", convolution)
    _validate.scalar("negative_slope", negative_slope)
    # E phi(z)^2 = (1 + a^2) / 2 E z^2 for z symmetric about 0.
    return variance_scaling(2.0 / (1 + negative_slope**2), mode, distribution, **convolution)


class Fixup(NamedTuple):
    """Initializers of `inner` kernels of a branch, and zeros for its `last` and the classifier."""

    inner: Initializer
    last: Initializer


def fixup(blocks: Any, layers: int = 2, **convolution: Any) -> Fixup:
    """Start each residual block as the identity, with smaller inner weights in deeper networks.

    Then one step of gradient descent changes the output by the same amount at any depth. `inner` is
    He's initializer by `fan_out`, with the standard deviation times `blocks^(-1 / (2 layers - 2))`.
    Start biases at 0, and the scalar multiplier that the source adds to each branch at 1.

    There are at least 1 `blocks`, which may be traced, and at least 2 `layers` (kernels) in each
    branch. For `convolution` see `variance_scaling`. Source: Zhang, Dauphin, Ma (2019), sec. 3.
    """
    _validate.scalar("blocks", blocks, minimum=1.0)
    layers = _validate.integer("layers", layers, 2)
    check_names("fixup", convolution)
    variance_scaling(1.0, "fan_out", **convolution)  # raises for a wrong option
    # A branch of m kernels with standard deviations times L^(-1 / (2 m - 2)), of which m - 1 are
    # not zero, contributes L^(-1/2) times the step of its last kernel.
    variance = 2.0 * jnp.asarray(blocks, jnp.float32) ** (-1 / (layers - 1))
    return Fixup(variance_scaling(variance, "fan_out", **convolution), zeros())


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Orthogonal:
    gain: Any
    delta: bool = field(metadata=_STATIC)

    def __call__(self, key: PRNGKeyArray, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        sizes, dtype = _checked_draw(key, shape, dtype, 2)
        *window, n_in, n_out = sizes
        if self.delta and any(size % 2 == 0 for size in window):
            rule = "have odd window sizes, whose kernel has a centre"
            remedy = "use orthogonal for an even window"
            raise ValueError(f"shape must {rule}, got {tuple(shape)}; {remedy}")
        drawn = (n_in, n_out) if self.delta else sizes
        # More columns than rows: the norm is spread over more units, so each has less variance.
        correction = max(math.sqrt(n_out / math.prod(drawn[:-1])), 1.0)
        # In float32, so that a key gives the same matrix in every precision.
        matrix = jax.nn.initializers.orthogonal(1.0)(key, drawn, jnp.float32)
        matrix = (matrix * (self.gain * correction)).astype(dtype)
        centre = tuple(size // 2 for size in window)
        return jnp.zeros(sizes, dtype).at[centre].set(matrix) if self.delta else matrix


def orthogonal(gain: Any = 1.0) -> Initializer:
    """Draw a uniformly random orthogonal matrix, times `gain`, a finite number that may be traced.

    The kernel is read as a matrix of `window * in` rows and `out` columns. With more columns than
    rows, an orthogonal matrix keeps the norm of a signal but lowers its mean square. The factor
    `max(sqrt(out / rows), 1)` corrects this, so the mean square is multiplied by `gain^2` for every
    shape. Source: Saxe, McClelland, Ganguli (2014); the correction by counting rows and columns.

    >>> kernel = orthogonal()(jax.random.key(0), (8, 8))
    >>> bool(jnp.allclose(kernel.T @ kernel, jnp.eye(8), atol=1e-5))
    True
    """
    _validate.scalar("gain", gain)
    return _Orthogonal(gain, delta=False)


def delta_orthogonal(gain: Any = 1.0) -> Initializer:
    """Draw a convolution kernel that is zero except for a matrix at its centre, as of `orthogonal`.

    A linear circular convolution with this kernel keeps the norm of every image, whatever its
    wavelengths, if it has at least as many output as input channels. Drawing a window of even size,
    which has no centre, raises a `ValueError`. Source: Xiao, Bahri, Sohl-Dickstein, Schoenholz,
    Pennington (2018), sec. 3.
    """
    _validate.scalar("gain", gain)
    return _Orthogonal(gain, delta=True)
