"""Layers of the former kind, to be removed.

Layers that compose: how each starts, what it computes, and what mean-field theory says of it.

A `Layer` is a tuple of pure functions. `sequential` and `residual` make layers of layers;
`jaxgrad.networks.init_blocks` stacks many copies of one that keeps its input's shape, so that a
thousand of them compile as fast as four. Hyper-parameters are closed over and may be traced, so
that `jax.vmap` over `w_variance` or a dropout rate works.

`apply` is a network as it is drawn: batch norm takes its statistics from the batch. For training,
`init_state` and `apply_state` carry what a layer keeps beside its parameters, such as running
statistics, and switch between training and use:

>>> import jax, jax.numpy as jnp
>>> network = sequential(dense(8), batch_norm(1e-5), activation("relu"), dropout(0.9), dense(3))
>>> params, _ = network.init(jax.random.key(0), (4,), jnp.float32)
>>> state = init_state(network, params)
>>> x = jax.random.normal(jax.random.key(1), (32, 4))
>>> out, state = apply_state(network, params, state, x, jax.random.key(2))  # in training
>>> out, _ = apply_state(network, params, state, x, None)  # in use
>>> out.shape
(32, 3)

A layer of your own is three functions and what is true of them:

>>> import dataclasses, math
>>> from jaxgrad.theory import Moments
>>> def gain(factor):
...     def init(key, shape, dtype):
...         return {"factor": jnp.asarray(factor, dtype)}, shape
...
...     def apply(params, h, key):
...         return params["factor"] * h
...
...     def predict(moments):
...         grown = 2 * math.log(factor)
...         return dataclasses.replace(
...             moments,
...             log_q=moments.log_q + grown,
...             log_gradient=moments.log_gradient + grown,
...         )
...
...     return Layer(init, apply, predict, homogeneous=True)
>>> block = sequential(dense(8), activation("relu"), gain(2.0))
>>> params, shape = block.init(jax.random.key(0), (4,), jnp.float32)
>>> block.apply(params, jnp.ones((3, 4)), None).shape, shape
((3, 8), (8,))
>>> round(float(jnp.exp(block.predict(Moments(log_q=0.0)).log_gradient)), 6)  # 1 * 1/2 * 4
2.0
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations, initializers
from jaxgrad._numerics import in_float64
from jaxgrad.activations import Activation
from jaxgrad.initializers import Initializer
from jaxgrad.layers import _dropout
from jaxgrad.layers import _normalization as normalization
from jaxgrad.theory import Moments, activate

Params = Any
"""Parameters of a layer: any pytree of arrays."""

Shape = tuple[int, ...]
"""Of one example: `(features,)` or `(*spatial, channels)`."""


State = Any
"""What a layer keeps from batch to batch: any pytree of arrays, `()` for nothing."""


class Running(NamedTuple):
    """How a layer keeps something from batch to batch beside its parameters.

    Attributes:
      init: `params -> state` before the first batch.
      apply: `(params, state, h, key) -> (h, state)`; with a key in training, with `None` in use.
    """

    init: Callable[[Params], State]
    apply: Callable[[Params, State, jax.Array, jax.Array | None], tuple[jax.Array, State]]


class Layer(NamedTuple):
    """A layer as pure functions.

    Attributes:
      init: `(key, shape, dtype) -> (params, shape)`: draws the parameters for inputs of the given
        shape and says the shape of the outputs; shapes are of one example, without the batch.
      apply: `(params, h, key) -> h`, on `h` of shape `[batch, *shape]`; `key` is a PRNG key, or
        `None` for no random draws.
      predict: `Moments -> Moments` at infinite width.
      homogeneous: whether `apply(params, c h) = c apply(params, h)` for every `c > 0`, one for each
        example; the signal is then rescaled on its way through a deep network, which is exact.
      mixes: whether an output depends on other examples of the batch, as in batch norm.
      running: what it keeps from batch to batch; `None` for nothing, see `apply_state`.
    """

    init: Callable[[jax.Array, Shape, Any], tuple[Params, Shape]]
    apply: Callable[[Params, jax.Array, jax.Array | None], jax.Array]
    predict: Callable[[Moments], Moments]
    homogeneous: bool
    mixes: bool = False
    running: Running | None = None


def init_state(layer: Layer, params: Params) -> State:
    """What a layer keeps beside its parameters, before the first batch.

    Args:
      layer: any.
      params: its parameters.

    Returns:
      A pytree for `apply_state`; `()` if the layer keeps nothing.
    """
    return () if layer.running is None else layer.running.init(params)


def apply_state(
    layer: Layer, params: Params, state: State, h: jax.Array, key: jax.Array | None
) -> tuple[jax.Array, State]:
    """The layer in training or in use.

    Args:
      layer: any.
      params: its parameters.
      state: from `init_state` or an earlier call.
      h: `[batch, *shape]`.
      key: a PRNG key in training: dropout and randomized activations draw, batch norm takes the
        batch's statistics and updates the running ones. `None` in use: nothing is drawn, batch
        norm takes the running statistics.

    Returns:
      The outputs `[batch, *shape]` and the next state, which in use is the same.
    """
    if layer.running is None:
        return layer.apply(params, h, key), state
    return layer.running.apply(params, state, h, key)


def dense(
    features: int,
    w_variance: Any = 1.0,
    b_variance: Any = 0.0,
    kernel_init: Initializer | None = None,
) -> Layer:
    """`h W + b` on the last axis.

    Args:
      features: number of outputs.
      w_variance: the weights' variance times `fan_in`, at least 0, may be traced.
      b_variance: the biases' variance, at least 0, may be traced; with the Python number 0 there
        are no biases.
      kernel_init: of mean square `1 / fan_in`, to be multiplied by `sqrt(w_variance)`; `None` for
        `initializers.lecun()`. `initializers.orthogonal()` is another.

    Returns:
      A `Layer` with parameters `{"kernel": [in, out], "bias": [out]}`.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    Source of the prediction: Poole et al. (2016), eq. 3 and 5; Schoenholz et al. (2017), eq. 9.

    >>> layer = dense(16, w_variance=2.0)
    >>> params, _ = layer.init(jax.random.key(0), (8,), jnp.float32)
    >>> params["kernel"].shape
    (8, 16)
    """
    features = _validate.integer("features", features, 1)
    init = _weights_init(features, (), w_variance, b_variance, kernel_init)

    def apply(params, h, key):
        return _biased(params, h @ params["kernel"])

    @in_float64
    def predict(moments):
        return _weighted(moments, w_variance, b_variance)

    return Layer(init, apply, predict, homogeneous=_is_zero(b_variance))


def convolution(
    channels: int,
    window: Sequence[int] = (3, 3),
    padding: Literal["circular", "zero"] = "circular",
    w_variance: Any = 1.0,
    b_variance: Any = 0.0,
    kernel_init: Initializer | None = None,
) -> Layer:
    """Convolution of stride 1 that keeps the spatial shape.

    The prediction is for weights whose variance is the same over the window. It is position by
    position: the last axes of the moments' arrays, as many as the window has, are spatial. With
    circular padding arrays of fewer axes stand for a signal that is alike everywhere.

    Args:
      channels: number of output channels.
      window: odd size for each spatial axis.
      padding: `circular` or `zero`.
      w_variance, b_variance, kernel_init: as of `dense`, with `fan_in = prod(window) in`.

    Returns:
      A `Layer` with parameters `{"kernel": [*window, in, out], "bias": [out]}`.

    Raises:
      ValueError, TypeError: if an argument is not as described; by `predict`, if the padding is
        zero and the moments have no spatial axes.

    Source of the prediction: Xiao et al. (2018), eq. 2.5, for circular padding; zeros by counting.

    >>> from jaxgrad.theory import Moments
    >>> layer = convolution(16, window=(3,), padding="zero")
    >>> moments = layer.predict(Moments(log_q=jnp.zeros(4)))
    >>> [round(float(q), 3) for q in jnp.exp(moments.log_q)]
    [0.667, 1.0, 1.0, 0.667]
    """
    channels = _validate.integer("channels", channels, 1)
    window = _validate.shape("window", window, 1)
    if any(size % 2 == 0 for size in window):
        raise ValueError(f"window must have odd sizes, to have a centre, got {window}; add 1")
    _validate.choice("padding", padding, ("circular", "zero"))
    draw = _weights_init(channels, window, w_variance, b_variance, kernel_init)
    rank = len(window)
    space = tuple(range(1, rank + 1))
    margins = [(size // 2, size // 2) for size in window]

    def init(key, shape, dtype):
        if len(shape) != rank + 1:
            raise ValueError(
                f"shape must have {rank} spatial axes, as the window has, and channels, got "
                f"{tuple(shape)}; give window {len(shape) - 1} sizes"
            )
        return draw(key, shape, dtype)

    def apply(params, h, key):
        kernel = params["kernel"]
        dtype = jnp.result_type(h, kernel)
        h = jnp.pad(h, ((0, 0), *margins, (0, 0)), "wrap" if padding == "circular" else "constant")
        numbers = jax.lax.ConvDimensionNumbers(
            (0, rank + 1, *space), (rank + 1, rank, *range(rank)), (0, rank + 1, *space)
        )
        h = jax.lax.conv_general_dilated(
            h.astype(dtype), kernel.astype(dtype), (1,) * rank, "VALID", dimension_numbers=numbers
        )
        return _biased(params, h)

    axes = tuple(range(-rank, 0))

    def window_mean(values):
        for axis, size in zip(axes, window, strict=True):
            half, length = size // 2, values.shape[axis]
            margin = [(0, 0)] * values.ndim
            margin[axis] = (half, half)
            padded = jnp.pad(values, margin, "wrap" if padding == "circular" else "constant")
            parts = [jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(size)]
            values = sum(parts[1:], start=parts[0]) / size
        return values

    @in_float64
    def predict(moments):
        arrays = [moments.log_q, moments.log_gradient, moments.mean, moments.gap]
        shape = np.broadcast_shapes(*(np.shape(array) for array in arrays if array is not None))
        if len(shape) < rank:
            if padding == "circular":
                return _weighted(moments, w_variance, b_variance)
            raise ValueError(
                f"moments must have {rank} spatial axes for a convolution with padding 'zero', "
                f"whose signal depends on the position, got shape {shape}; give log_q the shape "
                "[*spatial]"
            )
        log_q, log_gradient = (jnp.broadcast_to(array, shape) for array in arrays[:2])
        q, log_scale = _rescaled(log_q, axes)
        mixed = window_mean(q)
        gap = moments.gap
        if gap is not None:
            gap = window_mean(q * gap) / mixed
        square, log_square = _rescaled(log_gradient, axes)
        moments = dataclasses.replace(
            moments,
            log_q=jnp.log(mixed) + log_scale,
            log_gradient=jnp.log(window_mean(square)) + log_square,
            gap=gap,
        )
        return _weighted(moments, w_variance, b_variance)

    return Layer(init, apply, predict, homogeneous=_is_zero(b_variance))


def activation(function: str | Activation | Callable[..., Any]) -> Layer:
    """An elementwise function.

    Args:
      function: see `jaxgrad.activations.get`. A randomized one draws where `apply` gets a key.

    Returns:
      A `Layer` whose parameters are the trained ones of the activation.

    Raises:
      ValueError, TypeError: if the activation is unknown; by `predict`, if the units are not
        Gaussian.

    >>> activation("leaky_relu").homogeneous, activation("selu").homogeneous
    (True, False)
    """
    phi = activations.get(function)

    def init(key, shape, dtype):
        return {name: jnp.asarray(value, dtype) for name, value in phi.parameters}, shape

    def apply(params, h, key):
        draws = {"key": key} if phi.randomized and key is not None else {}
        return phi(h, **params, **draws)

    @in_float64
    def predict(moments):
        return _activate(moments, phi)

    return Layer(init, apply, predict, homogeneous=_is_homogeneous(phi))


def layer_norm(epsilon: Any = 0.0) -> Layer:
    """Subtract the mean over the last axis and divide by the standard deviation, per example.

    Args:
      epsilon: added to the variance, at least 0, may be traced. With 0 a constant example becomes
        zeros.

    Returns:
      A `Layer` with parameters `{"scale": [units], "shift": [units]}`, at first ones and zeros.

    Raises:
      ValueError, TypeError: if `epsilon` is not as described.

    Source: Ba, Kiros, Hinton (2016), eq. 4; the prediction by the law of large numbers.
    """
    _validate.scalar("epsilon", epsilon, minimum=0.0)

    def apply(params, h, key):
        own = normalization.statistics(h, (-1,))
        return _scaled(params, normalization.normalize(h, own, epsilon))

    @in_float64
    def predict(moments):
        varies = 1 - jnp.square(moments.mean)
        log_q = moments.log_q + jnp.log(varies)
        gap = None if moments.gap is None else moments.gap / varies
        return _divided(dataclasses.replace(moments, log_q=log_q, gap=gap), log_q, epsilon)

    return Layer(_scale_init, apply, predict, homogeneous=False)


def batch_norm(epsilon: Any = 0.0, spatial: int = 0, momentum: Any = 0.9) -> Layer:
    """Subtract each unit's mean over the batch and divide by its standard deviation.

    It makes growth the same at all weight variances, not level: at the start the squared gradients
    of deep ReLU networks grow by `pi / (pi - 1)` a layer, and the first steps of training mend
    that. `python -m experiments.norm_layers` measures both.

    The prediction is for a large batch: growth rates are off by order `1 / batch`. It takes all
    units to have one variance over the batch. That is so after a layer of weights; after an
    activation only where its arguments have gap 1, as in a block that normalizes too and has no
    biases, and the growth may else be off by 10 % a block. With spatial axes it takes two examples
    to be as alike at different positions as at the same one.

    Args:
      epsilon: as of `layer_norm`.
      spatial: number of spatial axes, which are averaged like the batch.
      momentum: of the running statistics, see `jaxgrad.normalization.update`; at least 0, may be
        traced.

    Returns:
      A `Layer` with parameters `{"scale": [units], "shift": [units]}`, at first ones and zeros. Its
      state is the running `jaxgrad.normalization.Statistics`, `[units]` each.

    Raises:
      ValueError, TypeError: if an argument is not as described, or inputs have other axes; by
        `predict`, if the moments have no gap, which is what says how much examples differ.

    Source: Ioffe, Szegedy (2015); Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz (2019).
    """
    _validate.scalar("epsilon", epsilon, minimum=0.0)
    _validate.scalar("momentum", momentum, minimum=0.0)
    spatial = _validate.integer("spatial", spatial, 0)
    axes = tuple(range(spatial + 1))

    def init(key, shape, dtype):
        if len(shape) != spatial + 1:
            raise ValueError(
                f"shape must have {spatial} spatial axes and units, got {tuple(shape)}; pass "
                f"spatial={len(shape) - 1} to batch_norm"
            )
        return _scale_init(key, shape, dtype)

    def apply(params, h, key):
        batch = normalization.statistics(h, axes)
        return _scaled(params, normalization.normalize(h, batch, epsilon))

    def init_running(params):
        shape = params["scale"].shape
        return normalization.Statistics(jnp.zeros(shape), jnp.ones(shape))

    def apply_running(params, running, h, key):
        used = running if key is None else normalization.statistics(h, axes)
        if key is not None:
            running = normalization.update(running, used, momentum)
        return _scaled(params, normalization.normalize(h, used, epsilon)), running

    @in_float64
    def predict(moments):
        if moments.gap is None:
            raise ValueError(
                "moments must have a gap for batch norm, which divides by how much examples "
                "differ, got None; pass for example gap=1.0, examples without correlation"
            )
        shape = np.broadcast_shapes(np.shape(moments.log_q), np.shape(moments.gap))
        axes = tuple(range(-spatial, 0)) if len(shape) >= spatial else ()
        log_q, gap = (jnp.broadcast_to(a, shape) for a in (moments.log_q, moments.gap))
        q, log_scale = _rescaled(log_q, axes)
        apart, alike = q * gap, q * (1 - gap)
        centred = apart + (alike - jnp.mean(alike, axis=axes, keepdims=True))
        variance = jnp.mean(apart, axis=axes, keepdims=True)
        return _divided(
            dataclasses.replace(moments, log_q=jnp.log(centred) + log_scale, gap=apart / centred),
            jnp.log(variance) + log_scale,
            epsilon,
        )

    running = Running(init_running, apply_running)
    return Layer(init, apply, predict, homogeneous=False, mixes=True, running=running)


def dropout(keep_prob: Any) -> Layer:
    """Keep each unit with probability `keep_prob`, divided by it, and set the others to zero.

    Two examples draw masks of their own. Without a key `apply` changes nothing; the prediction is
    of dropout switched on.

    Args:
      keep_prob: above 0, at most 1, may be traced.

    Returns:
      A `Layer` without parameters.

    Raises:
      ValueError, TypeError: if `keep_prob` is not as described.

    Source of the prediction: Schoenholz et al. (2017), sec. 4.
    """
    _dropout.check_rate(1 - keep_prob)

    def init(key, shape, dtype):
        return {}, shape

    def apply(params, h, key):
        return _dropout.drop_units(h, 1 - keep_prob, key=key)

    @in_float64
    def predict(moments):
        keep = jnp.asarray(keep_prob, float)
        return dataclasses.replace(
            moments,
            log_q=moments.log_q - jnp.log(keep),
            log_gradient=moments.log_gradient - jnp.log(keep),
            mean=moments.mean * jnp.sqrt(keep),
            gap=None if moments.gap is None else (1 - keep) + keep * moments.gap,
            gaussian=False,
        )

    return Layer(init, apply, predict, homogeneous=True)


def residual(branch: Layer, scale: Any = 1.0) -> Layer:
    """`h + scale * branch(h)`.

    Args:
      branch: a layer that keeps the shape of its input and, to be predicted, has weights.
      scale: one number, may be traced.

    Returns:
      A `Layer` with the branch's parameters.

    Raises:
      ValueError, TypeError: if `scale` is not one number; by `init`, if the branch changes the
        shape; by `predict`, if the branch has no weights that make it independent of its input.

    Source: He, Zhang, Ren, Sun (2016), eq. 1; the prediction as Yang, Schoenholz (2017), by the
    independence of the branch's weights.

    >>> from jaxgrad.theory import Moments
    >>> layer = residual(dense(8, w_variance=0.5), scale=2.0)
    >>> round(float(jnp.exp(layer.predict(Moments(log_q=0.0)).log_q)), 6)
    3.0
    """
    _validate.scalar("scale", scale)

    def init(key, shape, dtype):
        params, after = branch.init(key, shape, dtype)
        if tuple(after) != tuple(shape):
            raise ValueError(
                f"branch must keep the shape {tuple(shape)} of what it is added to, got "
                f"{tuple(after)}; end it with a layer of {shape[-1]} units"
            )
        return params, shape

    def apply(params, h, key):
        return h + (scale * branch.apply(params, h, key)).astype(h.dtype)

    @in_float64
    def predict(moments):
        added = branch.predict(dataclasses.replace(moments, fresh=False))
        if not added.fresh:
            raise ValueError(
                "branch must have weights in every path from its input, so that it is independent "
                "of what it is added to, got one without; put a dense layer into it"
            )
        factor = jnp.asarray(scale, float)
        log_q = _log_sum(
            (1.0, factor**2, 2 * factor * moments.mean * added.mean),
            (moments.log_q, added.log_q, (moments.log_q + added.log_q) / 2),
        )

        def of(part, weight, power=1.0):
            """A moment of one part, relative to the sum's."""
            return weight * jnp.exp(jnp.minimum(power * (part.log_q - log_q), _LARGE))

        gap = None
        if moments.gap is not None and added.gap is not None:
            gap = of(moments, moments.gap) + of(added, factor**2 * added.gap)
        return dataclasses.replace(
            moments,
            log_q=log_q,
            log_gradient=_log_sum((1.0, factor**2), (moments.log_gradient, added.log_gradient)),
            mean=of(moments, moments.mean, 0.5) + of(added, factor * added.mean, 0.5),
            gap=gap,
            gaussian=moments.gaussian and added.gaussian,
        )

    running = None
    if branch.running is not None:

        def apply_running(params, state, h, key):
            added, state = apply_state(branch, params, state, h, key)
            return h + (scale * added).astype(h.dtype), state

        running = Running(branch.running.init, apply_running)
    return Layer(init, apply, predict, branch.homogeneous, branch.mixes, running)


def sequential(*layers: Layer) -> Layer:
    """One layer after the other; none at all is the identity.

    Layer `i` draws from `fold_in(key, i)`.

    Returns:
      A `Layer` whose parameters are a tuple, one entry a layer.

    Raises:
      TypeError: if an argument is not a `Layer`.

    >>> block = sequential(dense(4), activation("relu"))
    >>> params, shape = block.init(jax.random.key(0), (3,), jnp.float32)
    >>> len(params), shape
    (2, (4,))
    """
    for layer in layers:
        if not isinstance(layer, Layer):
            raise TypeError(
                f"layers must each be a Layer, got {layer!r}; make one with a function of "
                "jaxgrad.layers, and pass several as sequential(first, second)"
            )

    def init(key, shape, dtype):
        made = []
        for i, layer in enumerate(layers):
            params, shape = layer.init(jax.random.fold_in(key, i), shape, dtype)
            made.append(params)
        return tuple(made), shape

    def apply(params, h, key):
        for i, (layer, part) in enumerate(zip(layers, params, strict=True)):
            h = layer.apply(part, h, None if key is None else jax.random.fold_in(key, i))
        return h

    @in_float64
    def predict(moments):
        for layer in layers:
            moments = layer.predict(moments)
        return moments

    def init_running(params):
        return tuple(map(init_state, layers, params))

    def apply_running(params, state, h, key):
        after = []
        for i, (layer, part, kept) in enumerate(zip(layers, params, state, strict=True)):
            key_layer = None if key is None else jax.random.fold_in(key, i)
            h, kept = apply_state(layer, part, kept, h, key_layer)
            after.append(kept)
        return h, tuple(after)

    keeps = any(layer.running is not None for layer in layers)
    return Layer(
        init,
        apply,
        predict,
        homogeneous=all(layer.homogeneous for layer in layers),
        mixes=any(layer.mixes for layer in layers),
        running=Running(init_running, apply_running) if keeps else None,
    )


def repeat(block: Layer, depth: int, active: Any = None) -> Layer:
    """`depth` copies of one block, one after the other, by one scan over depth.

    Copy `l` of 1, ..., depth draws from `fold_in(key, l)`, so a deeper stack of the same key begins
    with the copies of the shallower one. With `active`, networks of different depths are one
    program, and depth can be mapped over. The copies that do not act cost their memory traffic,
    and under `jax.vmap` all of their time: cut a wide range of depths into a few, each with a
    `depth` of its own.

    Args:
      block: a layer that keeps the shape of its input and has parameters.
      depth: number of copies, at least 1.
      active: how many of them act, from 0 to `depth`, may be traced; the others, last in order,
        hand on what they get, and only a penalty moves their parameters. `None` for all.

    Returns:
      A `Layer` whose parameters are the block's, each with a leading axis of `depth`.

    Raises:
      ValueError, TypeError: if an argument is not as described; by `init`, if the block changes the
        shape or has no parameters.

    >>> stack = repeat(sequential(dense(8), activation("relu")), 100)
    >>> params, shape = stack.init(jax.random.key(0), (8,), jnp.float32)
    >>> params[0]["kernel"].shape, shape
    ((100, 8, 8), (8,))
    >>> def size(depth):
    ...     shallow = repeat(sequential(dense(8), activation("relu")), 100, active=depth)
    ...     return jnp.mean(shallow.apply(params, jnp.ones((1, 8)), None) ** 2)
    >>> jax.vmap(size)(jnp.asarray([0, 1, 100])).shape
    (3,)
    """
    depth = _validate.integer("depth", depth, 1)
    if active is not None and not _validate.is_traced(active):
        active = _validate.integer("active", active, 0)
        if active > depth:
            raise ValueError(
                f"active must be at most the depth {depth}, got {active}; raise the depth"
            )

    def where_active(index, act, *passed):
        if active is None:
            return act(*passed)
        return jax.lax.cond(index < active, act, lambda *passed: passed, *passed)

    def init(key, shape, dtype):
        shape = tuple(shape)

        def draw(key_block):
            params, after = block.init(key_block, shape, dtype)
            if tuple(after) != shape:
                raise ValueError(
                    f"block must keep the shape {shape}, to be stacked, got {tuple(after)}; put "
                    "the change of width into a first layer of your own"
                )
            if not jax.tree.leaves(params):
                raise ValueError(
                    "block must have parameters, whose leading axis is the depth, got none; add a "
                    "layer of weights to it"
                )
            return params

        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(1, depth + 1))
        return jax.lax.map(draw, keys), shape

    def apply(params, h, key):
        def step(h, inputs):
            index, copy = inputs

            def act(h):
                return (block.apply(copy, h, _of_copy(key, index)),)

            return where_active(index, act, h)[0], None

        return jax.lax.scan(step, h, (jnp.arange(depth), params))[0]

    def predict(moments):
        each = predict_blocks(block.predict, moments, depth)
        if active is None:
            return jax.tree.map(lambda a: a[-1], each)
        return _after(moments, each, active)

    running = None
    if block.running is not None:

        def apply_running(params, state, h, key):
            def step(h, inputs):
                index, copy, kept = inputs

                def act(h, kept):
                    return apply_state(block, copy, kept, h, _of_copy(key, index))

                return where_active(index, act, h, kept)

            return jax.lax.scan(step, h, (jnp.arange(depth), params, state))

        running = Running(jax.vmap(block.running.init), apply_running)
    return Layer(init, apply, predict, block.homogeneous, block.mixes, running)


@in_float64
def _after(first, each, count):
    """The moments after `count` copies, `first` for none."""
    certain = {name: getattr(first, name) and getattr(each, name) for name in ("gaussian", "fresh")}
    first, each = (dataclasses.replace(moments, **certain) for moments in (first, each))
    return jax.tree.map(lambda a, b: jnp.where(count > 0, b[count - 1], a), first, each)


def _of_copy(key, index):
    return None if key is None else jax.random.fold_in(key, index)


_LARGE = 700.0
"""The exponential of this is still finite."""

_activate = jax.jit(activate, static_argnums=1)


def _weights_init(features, window, w_variance, b_variance, kernel_init):
    """Of a dense layer or a convolution; a dense one has no window."""
    _validate.scalar("w_variance", w_variance, minimum=0.0)
    _validate.scalar("b_variance", b_variance, minimum=0.0)
    kernel_init = initializers.lecun() if kernel_init is None else kernel_init

    def init(key, shape, dtype):
        key_kernel, key_bias = jax.random.split(key)
        wanted = (*window, shape[-1], features)
        kernel = kernel_init(key_kernel, wanted, dtype)
        if kernel.shape != wanted:
            raise ValueError(
                f"kernel_init must return the shape it is asked for, {wanted}, got "
                f"{kernel.shape}; use an initializer of jaxgrad.initializers"
            )
        params = {"kernel": (kernel * jnp.sqrt(w_variance)).astype(dtype)}
        if not _is_zero(b_variance):
            params["bias"] = initializers.normal(b_variance)(key_bias, (features,), dtype)
        return params, (*shape[:-1], features)

    return init


def _biased(params, h):
    return h + jnp.broadcast_to(params["bias"], h.shape) if "bias" in params else h


def _is_zero(variance):
    return isinstance(variance, (int, float)) and variance == 0


@functools.lru_cache(maxsize=256)
def _is_homogeneous(phi):
    size = np.logspace(-3, 3, 25, dtype=np.float32)
    x = np.concatenate([size, -size])
    # Compiled, since under a transformation even known numbers would else be traced.
    with jax.ensure_compile_time_eval():
        once, twice = jax.jit(lambda x: (phi(x), phi(2 * x)))(x)
    return np.allclose(twice, 2 * np.asarray(once), rtol=1e-6, atol=0.0)


def _scale_init(key, shape, dtype):
    return {"scale": jnp.ones(shape[-1:], dtype), "shift": jnp.zeros(shape[-1:], dtype)}, shape


def _scaled(params, h):
    scale, shift = (jnp.broadcast_to(params[name], h.shape) for name in ("scale", "shift"))
    return h * scale + shift


def _weighted(moments, w_variance, b_variance):
    """After weights and biases, from the moments of what a unit adds up."""
    w, b = (jnp.asarray(variance, float) for variance in (w_variance, b_variance))
    log_q = _log_sum((w, b), (moments.log_q, 0.0))
    gap = moments.gap
    if gap is not None:
        gap = gap * w * jnp.exp(jnp.minimum(moments.log_q - log_q, _LARGE))
    return dataclasses.replace(
        moments,
        log_q=log_q,
        log_gradient=moments.log_gradient + jnp.log(w),
        mean=jnp.zeros_like(log_q),
        gap=gap,
        gaussian=True,
        fresh=True,
    )


def _divided(moments, log_variance, epsilon):
    """Centred moments, divided by a standard deviation."""
    log_variance = _log_sum((1.0, epsilon), (log_variance, 0.0))
    log_q = moments.log_q - log_variance
    return dataclasses.replace(
        moments,
        log_q=log_q,
        log_gradient=moments.log_gradient - log_variance,
        mean=jnp.zeros_like(log_q),
    )


def _rescaled(log_values, axes):
    """The values divided by their largest along `axes`, and its log."""
    top = jax.lax.stop_gradient(jnp.max(log_values, axis=axes, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return jnp.exp(log_values - top), top


def _log_sum(weights, logs):
    """`log sum_i weights[i] exp(logs[i])`, with derivatives where a weight is zero."""
    parts = jnp.broadcast_arrays(*(jnp.asarray(part, float) for part in (*weights, *logs)))
    factors, exponents = (jnp.stack(half) for half in (parts[: len(logs)], parts[len(logs) :]))
    size = jnp.abs(factors)
    terms = exponents + jnp.log(jnp.where(size > 0, size, 1.0))
    top = jax.lax.stop_gradient(jnp.max(jnp.where(size > 0, terms, -jnp.inf), axis=0))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    # A term that has no weight may lie above the top by any amount.
    return top + jnp.log(jnp.sum(factors * jnp.exp(jnp.minimum(exponents - top[None], _LARGE)), 0))


@in_float64
def predict_blocks(block, first, depth):
    def double(leaf):
        return jnp.asarray(leaf, jnp.float64)

    # The first block may make Gaussian what was not; a scan needs the kind to stay.
    start = block(jax.tree.map(double, first))
    if jax.tree.structure(start) != jax.tree.structure(jax.eval_shape(block, start)):
        raise ValueError(
            "block must keep the kind of moments from its second application on, got "
            f"gaussian={start.gaussian}, fresh={start.fresh} after the first and another after "
            "the second; predict the blocks one by one"
        )
    start = jax.tree.map(double, start)

    def step(state, _):
        following = block(state)
        return following, following

    rest = jax.lax.scan(step, start, length=depth - 1)[1]
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, rest)
