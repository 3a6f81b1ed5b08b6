"""Propagation through fully connected networks, where a layer is one product and one activation.

One scan serves the first layer, of any number of inputs, and all others, because the product with
the next kernel is carried from step to step. Norms of gradients of kernels come from Gram matrices,
so that the gradients themselves are never formed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _numerics
from jaxgrad.layers import Elementwise, Mlp, Scaled, Units, beyond_window
from jaxgrad.propagation._result import Propagation, Signal, signal_of, unknown
from jaxgrad.propagation._reverse import Run


class Trace(NamedTuple):
    """What the forward pass records at each layer.

    Attributes:
      signal: `[depth]` each.
      log_slope_square: log mean square of the activation's slope, `[depth, batch]`.
      log_tangent: log mean square of the tangent, `[depth, batch]`; `None` without one.
      h, slope: the activations and slopes, `[depth, batch, width]` and `[depth, batch]`; `None`
        with a tangent.
    """

    signal: Signal
    log_slope_square: Array
    log_tangent: Any
    h: Any
    slope: Any


def probe(
    layer: Mlp, params: Any, x: Array, saturation: Any, *, key: PRNGKeyArray, tangent: Array | None
) -> Propagation:
    """See `jaxgrad.propagation.probe`."""
    if tangent is None:
        tangent = jax.random.normal(key, (len(x), layer.features), jnp.float32)
    trace = forward(layer, params, x, saturation, key=key, tangent=tangent.astype(x.dtype))
    log_gradient = _numerics.log_mean_exp(trace.log_tangent)
    # A kernel's gradient is the outer product of the input and the gradient at z_1.
    log_x = jnp.log(jnp.sum(x * x, axis=-1))
    return Propagation(
        *trace.signal,
        log_gradient=log_gradient,
        log_weight_gradient=_numerics.log_mean_exp(trace.log_tangent + log_x[None]),
        log_last_gradient=_numerics.log_mean_exp(trace.log_slope_square),
        gap=unknown(log_gradient),
        log_example_gradient=trace.log_tangent,
    )


def forward(
    layer: Mlp,
    params: Any,
    x: Float[Array, "batch in_features"],
    saturation: Any,
    *,
    key: PRNGKeyArray,
    tangent: Float[Array, "batch width"] | None = None,
) -> Trace:
    """Run one scan over depth that carries a tangent or, without one, keeps the arrays."""
    first, hidden, depth = params["first"], params["hidden"], layer.depth
    rest = {
        name: jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first[name], hidden[name])
        for name in first
        if name != "kernel"
    }
    log_w, log_b = (jnp.asarray(gain, x.dtype) for gain in layer.log_gains)
    log_weight = 0.5 * jnp.log(jnp.asarray(layer.w_variance, x.dtype))

    def preactivate(product, log_input, bias):
        """Return `z`, at a scale that brings it into the window of the activation."""
        # Expected, not measured, before z itself could overflow.
        log_size = log_weight + log_input
        if bias is not None:
            bias = bias.astype(x.dtype)
            log_size = jnp.logaddexp(log_size, log_b + 0.5 * _numerics.log_mean_square(bias, 0))
        beyond = beyond_window(log_size)
        z = product.value * jnp.exp(log_w + product.log_scale - beyond)[:, None]
        if bias is not None:
            z = z + bias[None] * jnp.exp(log_b - beyond)[:, None]
        return Scaled(z, beyond)

    def step(carry, inputs):
        product, log_input, moved = carry
        index, layer_params = inputs
        z = preactivate(product, log_input, layer_params.get("bias"))
        key_layer = jax.random.fold_in(key, index)
        trained = layer_params.get("activation", {})
        h, slope = Elementwise(layer.function).activate(trained, z, key=key_layer)
        if depth > 1:
            # The product after the last layer is not used; one too many costs less than a branch.
            kernel = hidden["kernel"][jnp.minimum(index, depth - 1) - 1].astype(h.value.dtype)
        else:
            kernel = jnp.zeros((layer.features,) * 2, x.dtype)
        log_tangent = None
        if moved is not None:
            moved = _push(moved, slope, kernel, log_w)
            log_tangent = moved.log_square
        log_h_square = _log_mean_square(h)
        record = Trace(
            signal_of(Units(_log_mean_square(z), slope), log_h_square, saturation),
            log_slope_square=_log_mean_square(slope),
            log_tangent=log_tangent,
            h=h if tangent is None else None,
            slope=slope if tangent is None else None,
        )
        return (Scaled(h.value @ kernel, h.log_scale), 0.5 * log_h_square, moved), record

    zeros = jnp.zeros(len(x), x.dtype)
    carry = (
        Scaled(x @ first["kernel"].astype(x.dtype), zeros),
        0.5 * jnp.log(jnp.mean(x * x, axis=-1)),
        None if tangent is None else Moved(tangent, jnp.ones_like(zeros), zeros),
    )
    return jax.lax.scan(step, carry, (jnp.arange(1, depth + 1), rest))[1]


class Moved(NamedTuple):
    """Tangents `factor * value` at the pre-activations, divided by sizes of square `log_square`."""

    value: Float[Array, "batch width"]
    factor: Float[Array, " batch"]
    log_square: Float[Array, " batch"]


def _push(moved: Moved, slope: Scaled, kernel: Array, log_w: Array) -> Moved:
    """Take tangents through an activation and the next kernel."""
    tangent = slope.value * (moved.value * moved.factor[:, None])
    square = jnp.mean(tangent * tangent, axis=-1)
    log_square = moved.log_square + jnp.log(square) + 2 * slope.log_scale
    # To divide after the product is as exact, and is fused with the next activation.
    factor = jnp.where(square > 0, jnp.exp(log_w - 0.5 * jnp.log(square)), 0.0)
    return Moved(tangent @ kernel, factor, log_square)


class Rows(NamedTuple):
    """Cotangents `factor * delta` of several depths at one layer."""

    delta: Float[Array, "rows batch width"]
    factor: Float[Array, " rows"]


def reverse_run(layer: Mlp, params: Any, x: Array, trace: Trace) -> Run:
    """Return how cotangents go back through the layers."""
    slope, log_slope = _with_one_scale(trace.slope)
    h, log_h = _with_one_scale(jax.tree.map(lambda a: a[:-1], trace.h))
    # The first layer's inputs are x, those of any other the outputs of the layer before.
    gram = jnp.concatenate([(x @ x.T)[None], h @ h.mT])
    log_input = jnp.concatenate([jnp.zeros(1, x.dtype), log_h])
    log_w = jnp.asarray(layer.log_gains[0], x.dtype)

    def fresh(cotangents):
        return Rows(cotangents, jnp.ones(len(cotangents), x.dtype))

    def pull(rows, index):
        delta = rows.delta * rows.factor[:, None, None] * slope[index][None]
        # Now delta is the gradient with respect to z, divided by the sizes of the layers after.
        square = jnp.sum(delta * delta, axis=(1, 2))
        # |h^T delta|^2 = sum((h h^T) * (delta delta^T)), from matrices [batch, batch].
        weight_square = jnp.sum((delta @ delta.mT) * gram[index][None], axis=(1, 2))
        factor = jnp.where(square > 0, jnp.exp(log_w - 0.5 * jnp.log(square)), 0.0)
        if layer.depth > 1:
            kernel = params["hidden"]["kernel"][jnp.maximum(index, 1) - 1].astype(delta.dtype)
            delta = (delta.reshape(-1, layer.features) @ kernel.T).reshape(delta.shape)
        return Rows(delta, factor), (square, weight_square)

    def finish(record, present):
        # Each layer divides the rows by their norm, so that the logs add up from the last layer on:
        # log |g_k|^2 = sum over l >= k of log square_l + 2 log_slope_l.
        square, weight_square = record
        count = len(square)
        growth = jnp.where(present, jnp.log(square) + 2 * log_slope[:count, None], 0.0)
        log_gradient = jnp.cumsum(growth[::-1], axis=0)[::-1]
        log_weight = log_gradient + jnp.log(weight_square / square) + 2 * log_input[:count, None]
        return log_gradient, jnp.where(square > 0, log_weight, -jnp.inf)

    return Run(layer.depth, fresh, pull, finish)


def _with_one_scale(arrays: Scaled):
    """Return arrays `[depth, batch, width]` and one log scale for each layer, `[depth]`.

    Small examples may underflow, which does not change a norm over all of them.
    """
    top = jnp.max(arrays.log_scale, axis=1)
    return arrays.value * jnp.exp(arrays.log_scale - top[:, None])[..., None], top


def _log_mean_square(a: Scaled) -> Float[Array, " batch"]:
    # Values lie within the window, where squares neither overflow nor all underflow.
    return jnp.log(jnp.mean(jnp.square(a.value), axis=-1)) + 2 * a.log_scale
