"""What a signal and a gradient do in a fully connected network, layer by layer, in logarithms.

One pass forward serves every depth of the range, since a network of depth `l` is the first `l`
layers of a deeper one. Whatever grows or shrinks with depth is carried as an array of ordinary
size and the logarithm of its scale, so that ten thousand layers neither overflow nor underflow.

The gradient is that of a readout of the layer's outputs. By default the readout is random: the loss
of depth `l` is `sum(v * h_l)` with independent `v ~ N(0, 1 / (batch width))`, so that the mean over
`v` of a squared gradient is the squared Frobenius norm of a Jacobian, per output and example.
`exact` takes that gradient in reverse mode, for every depth and layer; `probe` estimates its mean
over `v` for the first layer by random tangents carried forward, every depth for the price of one.
Both are random, `probe` in its directions, `exact` in its readouts, and agree in expectation.

`w_variance` and `b_variance` multiply the variances that the parameters were drawn with. They may
be traced: under `jax.vmap` over variances one matrix product serves them all, with the same draws.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations, networks
from jaxgrad.activations import Activation
from jaxgrad._old_layers import Layer
from jaxgrad.networks import Params

WINDOW = 16.0
"""A pre-activation whose log size is beyond this is replaced by the activation's asymptote."""


class Signal(NamedTuple):
    """The forward signal at each layer; every field has shape `[depth]`.

    Logs are natural, of a mean over examples and units.

    Attributes:
      log_preactivation: log mean square of `z_l`.
      log_activation: log mean square of `h_l = phi(z_l)`.
      dead: share of the units that are saturated on every example.
      saturated: share of the (unit, example) pairs with a slope `|phi'(z)|` below `saturation`.
    """

    log_preactivation: jax.Array
    log_activation: jax.Array
    dead: jax.Array
    saturated: jax.Array


class Probe(NamedTuple):
    """Gradients of the first layer by depth, from tangents; every array has shape `[depth]`.

    Attributes:
      signal: the forward signal.
      log_gradient: log of the squared norm of the loss's gradient with respect to the first
        layer's pre-activations; entry `l - 1` is for the network of depth `l`.
      log_weight_gradient: the same with respect to the first layer's kernel.
      log_last_gradient: the same with respect to the last layer's pre-activations, `z_l`.
    """

    signal: Signal
    log_gradient: jax.Array
    log_weight_gradient: jax.Array
    log_last_gradient: jax.Array

    @property
    def log_ratio(self) -> jax.Array:
        """Log of the squared gradient at the first layer over that at the last, `[depth]`."""
        return self.log_gradient - self.log_last_gradient


class Exact(NamedTuple):
    """Gradients of every layer for every chosen depth, in reverse mode.

    Entry `[d, k - 1]` is for layer `k` of the network of depth `depths[d]`, NaN for layers that it
    does not have.

    Attributes:
      signal: the forward signal.
      depths: the depths that have a loss, `[D]`.
      log_gradient: log of the squared norm of the loss's gradient with respect to the layer's
        pre-activations, `[D, depth]`.
      log_weight_gradient: the same with respect to the layer's kernel, `[D, depth]`.
    """

    signal: Signal
    depths: jax.Array
    log_gradient: jax.Array
    log_weight_gradient: jax.Array

    @property
    def log_ratio(self) -> jax.Array:
        """Log of the squared gradient at the first layer over that at the last, `[D]`."""
        last = jnp.take_along_axis(self.log_gradient, self.depths[:, None] - 1, axis=1)
        return self.log_gradient[:, 0] - last[:, 0]


def probe(
    params: Params,
    x: jax.Array,
    key: jax.Array,
    activation: str | Activation | Callable[..., Any] = "tanh",
    *,
    w_variance: Any = 1.0,
    b_variance: Any = 1.0,
    saturation: float = 0.02,
    tangent: jax.Array | None = None,
) -> Probe:
    """Carry the signal and one tangent per example forward through every depth.

    The tangent starts as a standard normal change of the first layer's pre-activations. Its squared
    length at layer `l`, per output, is an unbiased estimate of the mean squared gradient.

    Args:
      params: from `jaxgrad.networks.init`; a readout is ignored.
      x: inputs, `[batch, in_features]`, floating point, finite.
      key: PRNG key of the tangents and of a randomized activation; not the one that drew `params`.
      activation: see `jaxgrad.activations.get`.
      w_variance, b_variance: factors of the kernels' and biases' variances, may be traced.
      saturation: the slope below which a unit counts as saturated.
      tangent: the change of the first layer's pre-activations, `[batch, width]`; `None` draws it.
        With another than such a draw the result is the growth in that direction.

    Returns:
      `Probe`. Zero gradients have the log -inf; what is not finite is returned, not raised.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> import jax, jax.numpy as jnp
    >>> params = networks.init(jax.random.key(0), 8, 32, 100)
    >>> out = probe(params, jnp.ones((4, 8)), jax.random.key(1), "relu", w_variance=4.0)
    >>> growth = jnp.diff(out.log_gradient).mean() / jnp.log(2)
    >>> bool(abs(growth - 1) < 0.3)
    True
    """
    phi, x, scales = _checked(params, x, activation, w_variance, b_variance, saturation)
    shape = (x.shape[0], _width(params))
    if tangent is None:
        tangent = jax.random.normal(key, shape, jnp.float32)
    tangent = _validate.floating("tangent", tangent, 2, "[batch, width]")
    if tangent.shape != shape:
        raise ValueError(
            f"tangent must have shape {shape}, batch and width, got {tangent.shape}; reshape it"
        )
    trace = _forward(params, x, phi, key, scales, saturation, tangent.astype(x.dtype))
    log_norm = trace.log_norm
    log_x = jnp.log(jnp.sum(x * x, axis=-1))
    return Probe(
        _signal(trace),
        _log_mean(log_norm),
        _log_mean(log_norm + log_x[None]),
        _log_mean(jnp.log(trace.slope_square) + 2 * trace.log_slope),
    )


def exact(
    params: Params,
    x: jax.Array,
    key: jax.Array,
    activation: str | Activation | Callable[..., Any] = "tanh",
    *,
    w_variance: Any = 1.0,
    b_variance: Any = 1.0,
    saturation: float = 0.02,
    depths: Sequence[int] | None = None,
    loss: Callable[[jax.Array], jax.Array] | None = None,
    segments: int = 8,
) -> Exact:
    """Gradients of a loss at each depth with respect to each layer, by reverse mode.

    The cotangents of all depths go back through the layers together, as rows of one matrix. A layer
    needs only those of its own and greater depths: the layers are cut into `segments`, each with as
    many rows as its first layer needs. A norm of a kernel's gradient is taken from the Gram
    matrices of its two factors; the gradient itself is never formed.

    Args:
      params, x, activation, w_variance, b_variance, saturation: as of `probe`.
      key: PRNG key of the readouts and of a randomized activation; not the one that drew `params`.
      depths: increasing depths that have a loss; `None` for every depth.
      loss: maps the outputs `h_l`, `[batch, width]`, to a scalar; `None` for the random readout.
      segments: more of them waste fewer rows and take longer to compile.

    Returns:
      `Exact`. Zero gradients have the log -inf; what is not finite is returned, not raised.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> import jax, jax.numpy as jnp
    >>> params = networks.init(jax.random.key(0), 8, 32, 6)
    >>> out = exact(params, jnp.ones((4, 8)), jax.random.key(1), depths=(2, 6))
    >>> out.log_gradient.shape
    (2, 6)
    """
    phi, x, scales = _checked(params, x, activation, w_variance, b_variance, saturation)
    depth = params["hidden"]["kernel"].shape[0] + 1
    chosen = _depths(depths, depth)
    segments = _validate.integer("segments", segments, 1)
    trace = _forward(params, x, phi, key, scales, saturation)
    if loss is None:
        cotangents = _readouts(key, chosen, (x.shape[0], _width(params))).astype(x.dtype)
    else:
        h = trace.h[chosen - 1] * jnp.exp(trace.log_h[chosen - 1])[..., None]
        cotangents = jax.vmap(jax.grad(loss))(h)
    log_gradient, log_weight_gradient = _backward(
        params, x, trace, cotangents, chosen, scales[0], segments
    )
    return Exact(_signal(trace), jnp.asarray(chosen), log_gradient, log_weight_gradient)


class _Trace(NamedTuple):
    """What the forward pass records, raw, with leading axes `[depth, batch]` unless said."""

    z_square: jax.Array  # mean square over units of the z that was evaluated
    log_z: jax.Array  # the pre-activation is that z times exp(log_z)
    h_square: jax.Array  # mean square of h over units
    log_h: jax.Array  # the signal is h exp(log_h)
    slope_square: jax.Array  # mean square of slope over units
    log_slope: jax.Array  # the derivative is slope exp(log_slope)
    dead: jax.Array  # [depth]
    saturated: jax.Array  # [depth]
    log_norm: Any  # log mean square of the tangent over units; None without a tangent
    h: Any  # [depth, batch, width]; None with a tangent
    slope: Any  # [depth, batch, width]; None with a tangent


def _forward(params, x, phi, key, scales, saturation, tangent=None) -> _Trace:
    """One scan over depth; with a tangent it is carried along, without, arrays are kept."""
    log_w, log_b = scales
    first, hidden = params["first"], params["hidden"]
    depth = len(hidden["kernel"]) + 1
    rest = {
        name: jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first[name], hidden[name])
        for name in first
        if name != "kernel"
    }
    near, far = (exponents.astype(x.dtype) for exponents in _degrees(phi))

    def step(carry, inputs):
        product, log_product, log_input, moved = carry
        index, layer = inputs
        log_size = log_w + log_input
        if "bias" in layer:
            log_size = jnp.logaddexp(log_size, log_b)
        log_size = jnp.where(jnp.isfinite(log_size), log_size, 0.0)
        beyond = log_size - jnp.clip(log_size, -WINDOW, WINDOW)
        z = product * jnp.exp(log_w + log_product - beyond)[:, None]
        if "bias" in layer:
            z = z + layer["bias"].astype(z.dtype)[None] * jnp.exp(log_b - beyond)[:, None]

        h, slope, log_slope = _activate(phi, layer, z, key, index)
        h_square = jnp.mean(h * h, axis=-1)
        degree, slope_degree = jnp.where(beyond[None] < 0, near, far)
        log_h = jnp.where(h_square > 0, degree * beyond, 0.0)
        log_slope = log_slope + slope_degree * beyond
        flat = jnp.abs(slope) < saturation * jnp.exp(-log_slope)[:, None]

        if depth > 1:
            # The product after the last layer is not used; one too many costs less than a branch.
            kernel = hidden["kernel"][jnp.minimum(index, depth - 1) - 1].astype(h.dtype)
        else:
            kernel = jnp.zeros((h.shape[1],) * 2, h.dtype)
        log_norm = None
        if moved is not None:
            u, u_scale, log_norm = moved
            t = slope * (u * u_scale[:, None])
            growth = jnp.mean(t * t, axis=-1)
            log_norm = log_norm + jnp.log(growth) + 2 * log_slope
            u_scale = jnp.where(growth > 0, jnp.exp(log_w - 0.5 * jnp.log(growth)), 0.0)
            moved = (t @ kernel, u_scale, log_norm)
        record = _Trace(
            z_square=jnp.mean(z * z, axis=-1),
            log_z=beyond,
            h_square=h_square,
            log_h=log_h,
            slope_square=jnp.mean(slope * slope, axis=-1),
            log_slope=log_slope,
            dead=jnp.mean(jnp.all(flat, axis=0)),
            saturated=jnp.mean(flat),
            log_norm=log_norm,
            h=h if tangent is None else None,
            slope=slope if tangent is None else None,
        )
        log_input = log_h + 0.5 * jnp.log(h_square)
        return (h @ kernel, log_h, log_input, moved), record

    ones = jnp.ones(len(x), x.dtype)
    carry = (
        x @ first["kernel"].astype(x.dtype),
        jnp.zeros_like(ones),
        0.5 * jnp.log(jnp.mean(x * x, axis=-1)),
        None if tangent is None else (tangent, ones, jnp.zeros_like(ones)),
    )
    return jax.lax.scan(step, carry, (jnp.arange(1, depth + 1), rest))[1]


def _backward(params, x, trace: _Trace, cotangents, chosen, log_w, segments):
    """Take every depth's cotangent back through the layers; `cotangents` is `[D, batch, width]`."""
    _, batch, width = trace.slope.shape
    depth, missing = chosen[-1], len(trace.slope) - chosen[-1]
    # One scale for all examples of a layer: the smaller rows may underflow, the norm does not care.
    log_slope = jnp.max(trace.log_slope, axis=1)
    slope = trace.slope * jnp.exp(trace.log_slope - log_slope[:, None])[..., None]
    log_h = jnp.max(trace.log_h, axis=1)
    h = trace.h[:-1] * jnp.exp(trace.log_h - log_h[:, None])[:-1, :, None]
    gram = jnp.concatenate([(x @ x.T)[None], h @ h.mT])
    log_h = jnp.concatenate([jnp.zeros(1, h.dtype), log_h[:-1]])[:depth]

    position = np.minimum(np.searchsorted(chosen, np.arange(1, depth + 1)), len(chosen) - 1)
    enters = chosen[position] == np.arange(1, depth + 1)
    delta = jnp.zeros((0, batch, width), x.dtype)
    factor = jnp.zeros(0, x.dtype)
    pieces = []
    for start, stop in _segments(chosen, depth, segments):
        begin = int(np.searchsorted(chosen, start + 1))
        entering = len(chosen) - begin - len(delta)
        delta = jnp.concatenate([jnp.zeros((entering, batch, width), x.dtype), delta])
        factor = jnp.concatenate([jnp.zeros(entering, x.dtype), factor])

        def step(carry, inputs, begin=begin):
            delta, factor = carry
            layer, at, enters = inputs
            row = jax.lax.dynamic_index_in_dim(delta, at - begin, keepdims=True)
            row = jnp.where(enters, cotangents[at][None], row * factor[at - begin])
            delta = delta * factor[:, None, None]
            delta = jax.lax.dynamic_update_slice_in_dim(delta, row, at - begin, 0)
            delta = delta * slope[layer][None]
            square = jnp.sum(delta * delta, axis=(1, 2))
            weight_square = jnp.sum((delta @ delta.mT) * gram[layer][None], axis=(1, 2))
            factor = jnp.where(square > 0, jnp.exp(log_w - 0.5 * jnp.log(square)), 0.0)
            if depth > 1:
                kernel = params["hidden"]["kernel"][jnp.maximum(layer, 1) - 1].astype(delta.dtype)
                delta = (delta.reshape(-1, width) @ kernel.T).reshape(delta.shape)
            return (delta, factor), (square, weight_square)

        inputs = (jnp.arange(start, stop), position[start:stop], enters[start:stop])
        (delta, factor), piece = jax.lax.scan(step, (delta, factor), inputs, reverse=True)
        pieces.append(jax.tree.map(lambda a, begin=begin: jnp.pad(a, ((0, 0), (begin, 0))), piece))
    square, weight_square = jax.tree.map(lambda *a: jnp.concatenate(a[::-1]), *pieces)

    present = np.arange(1, depth + 1)[:, None] <= chosen[None]
    growth = jnp.where(present, jnp.log(square) + 2 * log_slope[:depth, None], 0.0)
    log_gradient = jnp.cumsum(growth[::-1], axis=0)[::-1]
    log_weight_gradient = log_gradient + jnp.log(weight_square / square) + 2 * log_h[:, None]
    return tuple(
        jnp.pad(jnp.where(present, a, jnp.nan).T, ((0, 0), (0, missing)), constant_values=jnp.nan)
        for a in (log_gradient, jnp.where(square > 0, log_weight_gradient, -jnp.inf))
    )


def _readouts(key, chosen, shape):
    """One random readout for each chosen depth, `[D, batch, width]`; a depth keeps its own."""

    def draw(depth):
        return jax.random.normal(jax.random.fold_in(key, depth), shape, jnp.float32)

    return jax.lax.map(draw, jnp.asarray(chosen)) / math.sqrt(math.prod(shape))


def _segments(chosen: np.ndarray, depth: int, segments: int) -> list[tuple[int, int]]:
    """Runs of layers, last first, as (start, stop), that differ in how many depths they serve."""
    edges = np.unique(np.linspace(0, depth, min(segments, depth) + 1).round().astype(int))
    served = np.searchsorted(chosen, edges[:-1] + 1)
    kept = np.append(edges[:-1][np.append(True, np.diff(served) > 0)], depth)
    return [(int(a), int(b)) for a, b in itertools.pairwise(kept)][::-1]


def _activate(phi, layer, z, key, index):
    """The activation's value, and its slope as (slope, log scale of each row)."""
    h, pull = jax.vjp(lambda z: networks.applied(phi, layer, z, key, index), z)
    if phi.scaled_slope is not None:
        slope, log_slope = phi.scaled_slope(z)
        return h, slope, log_slope[:, 0]
    return h, pull(jnp.ones_like(h))[0], jnp.zeros(len(z), z.dtype)


def _degrees(phi: Activation) -> tuple[jax.Array, jax.Array]:
    """Exponents of the function and its slope, near zero and far out, as two arrays `[2]`."""
    if phi.degrees is not None:
        near, far = ((degree, max(degree - 1, 0.0)) for degree in phi.degrees)
        return jnp.asarray(near)[:, None], jnp.asarray(far)[:, None]

    def largest(log_size):
        z = jnp.exp(log_size) * jnp.concatenate([grid, -grid])
        h, pull = jax.vjp(phi, z)
        return jnp.log(jnp.stack([jnp.max(jnp.abs(a)) for a in (h, pull(jnp.ones_like(h))[0])]))

    def exponents(log_size):
        raw = (largest(log_size) - largest(log_size * 0.75)) / (log_size * 0.25)
        return jnp.where(jnp.isfinite(raw), jnp.round(2 * raw) / 2, 0.0)[:, None]

    grid = jnp.linspace(0.5, 1.0, 64, dtype=jnp.float32)
    return exponents(-WINDOW), exponents(WINDOW)


def _signal(trace: _Trace) -> Signal:
    return Signal(
        _log_mean(jnp.log(trace.z_square) + 2 * trace.log_z),
        _log_mean(jnp.log(trace.h_square) + 2 * trace.log_h),
        trace.dead,
        trace.saturated,
    )


def _log_mean(log_square: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(log_square, axis=-1) - math.log(log_square.shape[-1])


def _width(params: Params) -> int:
    return params["first"]["kernel"].shape[1]


def _depths(depths: Sequence[int] | None, depth: int) -> np.ndarray:
    if depths is None:
        return np.arange(1, depth + 1)
    chosen = [_validate.integer("depths", d, 1) for d in depths]
    if not chosen or max(chosen) > depth or sorted(set(chosen)) != chosen:
        raise ValueError(
            f"depths must increase and end by the network's depth {depth}, got {list(depths)}"
        )
    return np.asarray(chosen)


def _checked(params, x, activation, w_variance, b_variance, saturation):
    """The activation, the inputs in the working dtype, and the logs of the two deviations."""
    phi = activations.get(activation)
    x = networks.check(params, x, phi)
    _validate.scalar("w_variance", w_variance, minimum=0.0)
    _validate.scalar("b_variance", b_variance, minimum=0.0)
    _validate.scalar("saturation", saturation, minimum=0.0)
    # At least float32, so that the logarithms of a half-precision network are not rounded.
    x = x.astype(jnp.promote_types(jnp.result_type(x, params["first"]["kernel"]), jnp.float32))
    scales = tuple(0.5 * jnp.log(jnp.asarray(v, x.dtype)) for v in (w_variance, b_variance))
    return phi, x, scales


class Blocks(NamedTuple):
    """A signal and a gradient through a stack of blocks; logs are natural.

    Attributes:
      log_signal: log mean square of each block's output over examples and units, `[depth]`.
      log_gradient: log mean square of the tangent over examples and units, `[depth]`: an unbiased
        estimate, before the log, of the squared Frobenius norm of the Jacobian of the blocks so far
        with respect to `x`, per output.
      log_norm: the same for each example, `[depth, batch]`.
    """

    log_signal: jax.Array
    log_gradient: jax.Array
    log_norm: jax.Array


def probe_blocks(
    params: Any,
    x: jax.Array,
    key: jax.Array,
    block: Layer,
    *,
    tangent: jax.Array | None = None,
) -> Blocks:
    """Carry the signal and a random tangent forward through every depth of a stack of blocks.

    The whole batch moves at once, so that batch norm is seen with what it does across examples.
    Dropout and randomized activations draw. The signal of a homogeneous block is rescaled on the
    way and neither overflows nor underflows; that of another block is as the floating-point
    numbers allow.

    Args:
      params: from `jaxgrad.networks.init_blocks`.
      x: inputs, `[batch, *shape]`, floating point, finite.
      key: PRNG key of the tangent and of the blocks' draws; not the one that drew `params`.
      block: the one given to `init_blocks`.
      tangent: the change of `x`, of its shape; `None` draws it, standard normal. With another
        than such a draw the result is the growth in that direction.

    Returns:
      `Blocks`. Zero gradients have the log -inf; what is not finite is returned, not raised.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> import jax, jax.numpy as jnp
    >>> from jaxgrad import _old_layers as layers
    >>> block = layers.sequential(layers.dense(32, w_variance=4.0), layers.activation("relu"))
    >>> params = networks.init_blocks(jax.random.key(0), block, (32,), 100)
    >>> out = probe_blocks(params, jnp.ones((4, 32)), jax.random.key(1), block)
    >>> growth = jnp.diff(out.log_gradient).mean() / jnp.log(2)
    >>> bool(abs(growth - 1) < 0.3)
    True
    """
    x = _validate.floating("x", x, max(np.ndim(x), 2), "[batch, *shape]")
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    x, depth = networks.check_blocks(params, x, block)
    key_tangent, key_blocks = jax.random.split(key)
    if tangent is None:
        tangent = jax.random.normal(key_tangent, x.shape, jnp.float32)
    tangent = _validate.floating("tangent", tangent, x.ndim, "the shape of x")
    if tangent.shape != x.shape:
        raise ValueError(
            f"tangent must have the shape of x, {x.shape}, got {tangent.shape}; reshape it"
        )

    def step(carry, inputs):
        h, log_h, t, log_t = carry
        index, layer = inputs
        key_block = jax.random.fold_in(key_blocks, index)
        h, t = jax.jvp(lambda h: block.apply(layer, h, key_block), (h,), (t,))
        t, shift_t, log_square = rescaled(t, together=block.mixes)
        if block.homogeneous:
            h, shift_h, log_signal = rescaled(h, together=block.mixes)
        else:
            shift_h, log_signal = jnp.zeros_like(log_h), rescaled(h, together=False)[2]
        carry = (h, log_h + shift_h, t, log_t + shift_t)
        return carry, (log_h + log_signal, log_t + log_square)

    zeros = jnp.zeros(len(x), x.dtype)
    carry = (x, zeros, tangent.astype(x.dtype), zeros)
    log_signal, log_norm = jax.lax.scan(step, carry, (jnp.arange(depth), params))[1]
    return Blocks(_log_mean(log_signal), _log_mean(log_norm), log_norm)


def rescaled(a: jax.Array, *, together: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Divide examples by their root mean square, or all by the largest one if `together`.

    Args:
      a: `[batch, *shape]`.
      together: whether the examples must keep their ratios.

    Returns:
      The array divided; the logs of the squares that it was divided by, and of the examples' mean
      squares, both `[batch]`. What is zero stays zero.
    """
    flat = a.reshape(len(a), -1)
    largest = jnp.max(jnp.abs(flat), axis=1)
    ordinary = jnp.where(largest > 0, largest, 1.0)
    # Squares of the ratios to the largest do not overflow, nor all underflow.
    log_square = jnp.log(jnp.mean(jnp.square(flat / ordinary[:, None]), axis=1))
    log_square = log_square + 2 * jnp.log(ordinary)
    shift = jnp.broadcast_to(jnp.max(log_square), log_square.shape) if together else log_square
    shift = jnp.where(jnp.isfinite(shift), shift, 0.0)
    return (flat * jnp.exp(-shift / 2)[:, None]).reshape(a.shape), shift, log_square
