"""Weight initializers with the signature of `jax.nn.initializers`: `(key, shape, dtype) -> Array`.

Every function here returns an initializer. Variances, scales and gains may be traced values, so
one compiled program serves a whole sweep. Draws are made in float32 and then converted, so that a
key gives the same network in every precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations, theory
from jaxgrad.activations import Activation
from jaxgrad.theory import finite_width

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
    *window, n_in, n_out = _validate.shape("shape", shape, 2)
    groups = _validate.integer("groups", groups, 1)
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
    stride = math.prod(_validate.integer("strides", step, 1) for step in steps)
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
    _validate.scalar("value", value)

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
    _validate.scalar("variance", variance, minimum=0.0)

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
    _validate.scalar("variance", variance, minimum=0.0)

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
    _validate.scalar("scale", scale, minimum=0.0)
    _validate.choice("mode", mode, ("fan_in", "fan_out", "fan_avg"))
    _validate.choice("distribution", distribution, ("normal", "uniform", "truncated"))

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
    _validate.scalar("negative_slope", negative_slope)
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
    _validate.scalar("gain", gain)

    def init(key, shape, dtype=jnp.float32):
        sizes = _validate.shape("shape", shape, 2)
        widening = max(math.sqrt(sizes[-1] / math.prod(sizes[:-1])), 1.0)
        matrix = jax.nn.initializers.orthogonal(1.0)(key, sizes, jnp.float32)
        return (matrix * (gain * widening)).astype(dtype)

    return init


def delta_orthogonal(gain: Any = 1.0) -> Initializer:
    """A convolution kernel that is zero but for its centre, which is `orthogonal`.

    A linear circular convolution with it keeps the norm of every image, of whatever wavelengths, as
    long as it does not thin its channels.

    Args:
      gain: one finite number, may be traced; see `orthogonal`, also for kernels that are not
        square.

    Raises:
      ValueError, TypeError: if the gain is not as described; at the draw, if the shape has fewer
        than two dimensions, or a window of even size, which has no centre.

    Source: Xiao, Bahri, Sohl-Dickstein, Schoenholz, Pennington (2018), sec. 3.

    >>> import jax
    >>> kernel = delta_orthogonal()(jax.random.key(0), (3, 3, 4, 4))
    >>> bool(jnp.all(kernel[0] == 0)), round(float(jnp.sum(kernel[1, 1] ** 2)), 4)
    (True, 4.0)
    """
    make = orthogonal(gain)

    def init(key, shape, dtype=jnp.float32):
        *window, n_in, n_out = _validate.shape("shape", shape, 2)
        if any(size % 2 == 0 for size in window):
            raise ValueError(
                f"shape must have odd window sizes, whose kernel has a centre, got {tuple(shape)}; "
                "use orthogonal for an even window"
            )
        centre = tuple(size // 2 for size in window)
        matrix = make(key, (n_in, n_out), dtype)
        return jnp.zeros((*window, n_in, n_out), dtype).at[centre].set(matrix)

    return init


class Critical(NamedTuple):
    """Initializers at a point of the critical line, and which point it is.

    Attributes:
      kernel, bias: initializers of the kernels and biases.
      w_variance: variance of the weights times fan-in.
      b_variance: variance of the biases.
      q: variance of the pre-activations that these keep; 0 for a point that holds only in the limit
        of small signals, as tanh's (1, 0).
    """

    kernel: Initializer
    bias: Initializer
    w_variance: Any
    b_variance: Any
    q: Any


def critical(
    activation: str | Activation | Callable[..., Any],
    b_variance: Any = None,
    *,
    q: Any = None,
    width: Any = None,
    distribution: Distribution = "normal",
    **convolution: Any,
) -> Critical:
    """Initializers that let a gradient neither vanish nor explode, for any activation.

    Args:
      activation: see `jaxgrad.activations.get`.
      b_variance: variance of the biases, at least 0, may be traced; `None` for the smallest that
        has a critical point with a stable length.
      q: instead of `b_variance`, the variance of the pre-activations, above 0, may be traced; a
        point whose length is not stable is then accepted, see `jaxgrad.theory.Critical.chi_par`.
      width: units of the layers, at least 1, may be traced. With it, the weights are as much larger
        as keeps the mean of the *log* of a squared gradient, what a typical network of this width
        has, in a layer of this `q`; `None` keeps the mean over networks. For (leaky) ReLU that is
        exact; where slopes depend on `q`, which larger weights raise, a part of the drift remains,
        see `jaxgrad.theory.finite_width.gradient_law`.
      distribution, convolution: of the kernels, see `variance_scaling`.

    Returns:
      `Critical`. Of traced variances without a critical point, NaN.

    Raises:
      ValueError, TypeError: if an argument is not as described, both variances are given, or there
        is no critical point.

    Source: Poole et al. (2016); Schoenholz et al. (2017); `jaxgrad.theory` for the numbers.

    >>> found = critical("tanh", 0.05)
    >>> round(float(found.w_variance), 6), round(float(found.q), 6)
    (1.760955, 0.570048)
    >>> found.kernel(jax.random.key(0), (20, 30)).shape
    (20, 30)
    """
    phi = activations.get(activation)
    if b_variance is not None and q is not None:
        raise ValueError(
            "b_variance and q must not both be given, since one follows from the other; got "
            f"{b_variance!r} and {q!r}; leave one out"
        )
    if q is None:
        point = theory.critical(phi, b_variance)
    else:
        _validate.scalar("q", q, minimum=0.0, above=True)
        point = theory.critical_line(phi, q)
    w_variance = point.w_variance
    if not _validate.is_traced(w_variance) and not np.isfinite(w_variance):
        if q is not None:
            asked = f"q {float(q):g}, which would need a negative bias variance; pass another q"
        elif b_variance is not None:
            asked = f"b_variance {float(b_variance):g}; leave it out for the smallest that has one"
        else:
            asked = "any b_variance; choose another activation or normalize the layers"
        raise ValueError(f"activation {phi.name!r} has no stable critical point for {asked}")
    if width is not None:
        _validate.scalar("width", width, minimum=1.0)
        # A point in the limit of small signals has the law of small signals.
        at = jnp.maximum(point.q, 1e-12) if _validate.is_traced(point.q) else max(point.q, 1e-12)
        w_variance = finite_width.critical_w_variance(phi, at, width)
    kernel = variance_scaling(w_variance, "fan_in", distribution, **convolution)
    return Critical(kernel, normal(point.b_variance), w_variance, point.b_variance, point.q)


class Fixup(NamedTuple):
    """Initializers for residual networks without normalization.

    Attributes:
      inner: for every kernel of a residual branch but its last.
      last: for the last kernel of every branch and for the classifier: zeros.
    """

    inner: Initializer
    last: Initializer


def fixup(blocks: Any, layers: int = 2, **convolution: Any) -> Fixup:
    """Start each residual block as the identity, with inner weights smaller in deeper networks.

    Then one step of gradient descent changes the output by as much at any depth.

    Args:
      blocks: number of residual blocks, at least 1, may be traced.
      layers: number of kernels in each branch, at least 2.
      convolution: see `variance_scaling`.

    Returns:
      `Fixup`; `inner` is He's by `fan_out`, with standard deviations times
      `blocks^(-1 / (2 layers - 2))`. Biases are to start at 0, and the scalar multiplier that the
      source adds to each branch at 1.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source: Zhang, Dauphin, Ma (2019), Fixup initialization, sec. 3.

    >>> kernel = fixup(16).inner(jax.random.key(0), (3, 3, 32, 64))
    >>> bool(abs(kernel.var() * (9 * 64) * 16 - 2) < 0.1)
    True
    """
    _validate.scalar("blocks", blocks, minimum=1.0)
    layers = _validate.integer("layers", layers, 2)
    variance = 2.0 * jnp.asarray(blocks, jnp.float32) ** (-1 / (layers - 1))
    return Fixup(variance_scaling(variance, "fan_out", **convolution), zeros())


class UnitVariance(NamedTuple):
    """Weights scaled to layers of unit variance.

    Attributes:
      params: of the structure and dtypes of those given.
      std: standard deviation of each scaled layer's output with these parameters, `[]` or, stacked,
        `[layers]`; `None` for leaves that are not scaled.
      passes: how many times the scales were changed.
    """

    params: Any
    std: Any
    passes: jax.Array


def unit_variance(
    params: Any,
    outputs: Callable[[Any], Any],
    *,
    stacked: Any = False,
    tolerance: float = 0.01,
    iterations: int = 20,
) -> UnitVariance:
    """Scale weights so that each layer's output has unit variance on given data.

    The source scales one layer after another. Here all are scaled together, by Newton's method for
    the logs of the scales, so that nobody has to say in which order the layers come, and branches
    may join. Where a layer's output overflows or is constant, it waits until those before it are
    right. A start with `orthogonal` weights is the caller's choice, which the source recommends.

    Args:
      params: pytree of arrays, any structure.
      outputs: pure function of such parameters that closes over the data. It returns the same
        structure with, for each leaf that is to be scaled, the array that its layer puts out (a
        pre-activation, any shape), and `None` for every other leaf, as biases. It must admit
        forward-mode differentiation.
      stacked: whether a leaf holds a stack of layers along its first axis, whose outputs have the
        same first axis. A bool or a tree prefix of `params` with bools, as
        `{"first": False, "hidden": True}`.
      tolerance: the largest relative deviation of a standard deviation from 1, above 0.
      iterations: at most so many passes, each with one forward derivative per layer, at least 1.

    Returns:
      `UnitVariance`. A layer that cannot be scaled to unit variance, as one with a bias of larger
      variance, shows in `std`. The function may be jitted, with `params` as data.

    Raises:
      ValueError, TypeError: if an argument is not as described, or no leaf is to be scaled.

    Source: Mishkin, Matas (2016), All you need is a good init.

    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> found = unit_variance({"w": jnp.ones((8, 4))}, lambda params: {"w": x @ params["w"]})
    >>> round(float(found.std["w"]), 4)
    1.0
    """
    _validate.scalar("tolerance", tolerance, minimum=0.0, above=True)
    iterations = _validate.integer("iterations", iterations, 1)
    leaves, treedef = jax.tree.flatten(params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    try:
        many = jax.tree.leaves(jax.tree.broadcast(stacked, params))
    except ValueError as error:
        raise ValueError(
            f"stacked must be a bool or a tree prefix of params with bools, got {stacked!r}; "
            f"{error}"
        ) from None

    def found(leaves):
        out = outputs(jax.tree.unflatten(treedef, leaves))
        parts, structure = jax.tree.flatten(out, is_leaf=lambda leaf: leaf is None)
        if structure != treedef:
            raise ValueError(
                f"outputs must return the structure of params, {treedef}, with None for leaves "
                f"that are not to be scaled, got {structure}"
            )
        return parts

    shapes = jax.eval_shape(found, leaves)
    chosen = [i for i, part in enumerate(shapes) if part is not None]
    if not chosen:
        raise ValueError(
            "outputs must return an array for at least one leaf of params, got None for all; "
            "return each layer's pre-activations in the place of its kernel"
        )
    for i in chosen:
        if many[i] and (shapes[i].shape[:1] != leaves[i].shape[:1] or leaves[i].ndim == 0):
            raise ValueError(
                f"outputs must return an array with the first axis of the stacked leaf {names[i]} "
                f"of shape {leaves[i].shape}, got {shapes[i].shape}; set stacked to False for it "
                "or stack its layers' outputs"
            )
    sizes = [leaves[i].shape[0] if many[i] else 1 for i in chosen]
    starts = np.cumsum([0, *sizes])

    def scaled(log_scale):
        result = list(leaves)
        for i, start, size in zip(chosen, starts, sizes, strict=False):
            factor = jnp.exp(log_scale[start : start + size])
            factor = factor.reshape((size,) + (1,) * (leaves[i].ndim - 1)) if many[i] else factor[0]
            result[i] = (leaves[i].astype(factor.dtype) * factor).astype(leaves[i].dtype)
        return result

    def log_std(log_scale):
        parts = found(scaled(log_scale))
        rows = [
            parts[i].reshape(size, -1).astype(log_scale.dtype)
            for i, size in zip(chosen, sizes, strict=True)
        ]
        return jnp.concatenate([_log_std(row) for row in rows])

    def right(value):
        return jnp.abs(jnp.expm1(value)) <= tolerance

    def unfinished(state):
        _, value, passes = state
        return (passes < iterations) & ~jnp.all(right(value))

    def improve(state):
        log_scale, value, passes = state
        _, derivative = jax.linearize(log_std, log_scale)
        jacobian = jax.lax.map(derivative, jnp.eye(len(log_scale), dtype=log_scale.dtype)).T
        # What does not respond to its own scale is left alone, and so is what has none yet.
        free = jnp.isfinite(value) & (jnp.diagonal(jacobian) > 1e-3)
        both = free[:, None] & free[None, :] & jnp.isfinite(jacobian)
        matrix = jnp.where(both, jacobian, 0.0) + jnp.diag(jnp.where(free, 0.0, 1.0))
        step = jnp.linalg.solve(matrix, jnp.where(free, -value, 0.0))
        log_scale = log_scale + jnp.where(jnp.isfinite(step), step, 0.0)
        return log_scale, log_std(log_scale), passes + 1

    @jax.jit
    def fitted():
        dtype = jnp.result_type(jnp.float32, *(leaves[i] for i in chosen))
        log_scale = jnp.zeros(starts[-1], dtype)
        state = (log_scale, log_std(log_scale), jnp.zeros((), jnp.int32))
        log_scale, value, passes = jax.lax.while_loop(unfinished, improve, state)
        return scaled(log_scale), jnp.exp(value), passes

    result, value, passes = fitted()
    std: list[Any] = [None] * len(leaves)
    for i, start, size in zip(chosen, starts, sizes, strict=False):
        std[i] = value[start : start + size] if many[i] else value[start]
    return UnitVariance(treedef.unflatten(result), treedef.unflatten(std), passes)


def _log_std(rows: jax.Array) -> jax.Array:
    """Log of the standard deviation of each row, without overflow of a square."""
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    largest = jax.lax.stop_gradient(largest)
    rows = rows / jnp.where(largest > 0, largest, 1.0)
    return 0.5 * jnp.log(jnp.var(rows, axis=1)) + jnp.log(largest[:, 0])
