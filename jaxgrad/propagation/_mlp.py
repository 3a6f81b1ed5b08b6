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
from jaxgrad.propagation._result import Propagation, signal_of
from jaxgrad.propagation._reverse import Run


def forward(
    layer: Mlp,
    params: Any,
    x: Float[Array, "batch in_features"],
    saturation: Any,
    *,
    key: PRNGKeyArray,
    tangent: Float[Array, "batch width"] | None = None,
) -> tuple[Propagation, Any, Any]:
    """Run one scan over depth that carries a tangent or, without one, keeps the arrays.

    Returns: the signal, with the size of the last slope as `log_last_gradient` and of the tangent
    as `log_example_gradient`; the activations and the slopes, `Scaled`, or `None` with a tangent.
    """
    first, hidden, depth = params["first"], params["hidden"], layer.depth
    rest = ({name: part[name] for name in part if name != "kernel"} for part in (first, hidden))
    rest = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), *rest)
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
        log_h_square = _log_mean_square(h)
        signal = signal_of(Units(_log_mean_square(z), slope), log_h_square, saturation)
        signal = signal._replace(log_last_gradient=_numerics.log_mean_exp(_log_mean_square(slope)))
        record = (signal, h, slope)
        if moved is not None:
            moved = _push(moved, slope, kernel, log_w)
            record = (signal._replace(log_example_gradient=moved.log_square), None, None)
        return (Scaled(h.value @ kernel, h.log_scale), 0.5 * log_h_square, moved), record

    zeros = jnp.zeros(len(x), x.dtype)
    carry = (
        Scaled(x @ first["kernel"].astype(x.dtype), zeros),
        0.5 * jnp.log(jnp.mean(x * x, axis=-1)),
        None if tangent is None else Moved(tangent, jnp.ones_like(zeros), zeros),
    )
    return jax.lax.scan(step, carry, (jnp.arange(1, depth + 1), rest))[1]


class Moved(NamedTuple):
    """Vectors `factor * value`, which were divided by sizes of square `log_square` on their way.

    Tangents have one factor for each example, cotangents one for each depth of a loss.
    """

    value: Float[Array, "..."]
    factor: Float[Array, " rows"]
    log_square: Float[Array, " rows"]


def _push(moved: Moved, slope: Scaled, kernel: Array, log_w: Array) -> Moved:
    """Take tangents through an activation and the next kernel."""
    tangent = slope.value * (moved.value * moved.factor[:, None])
    square = jnp.mean(tangent * tangent, axis=-1)
    log_square = moved.log_square + jnp.log(square) + 2 * slope.log_scale
    # To divide after the product is as exact, and is fused with the next activation.
    factor = jnp.where(square > 0, jnp.exp(log_w - 0.5 * jnp.log(square)), 0.0)
    return Moved(tangent @ kernel, factor, log_square)


def reverse_run(layer: Mlp, params: Any, x: Array, h: Scaled, slope: Scaled) -> Run:
    """Return how cotangents go back through the layers, from the arrays that `forward` keeps."""
    # With one scale for a layer small examples may underflow, which changes no norm over all.
    inputs = jax.tree.map(lambda a: a[:-1], h)
    slope, inputs = (jax.vmap(Scaled.shared)(arrays) for arrays in (slope, inputs))
    gram = jnp.concatenate([(x @ x.T)[None], inputs.value @ inputs.value.mT])
    log_input = jnp.concatenate([jnp.zeros(1, x.dtype), inputs.log_scale[:, 0]])
    log_w = jnp.asarray(layer.log_gains[0], x.dtype)

    def fresh(cotangents):
        ones = jnp.ones(len(cotangents), x.dtype)
        return Moved(cotangents, ones, jnp.zeros_like(ones))

    def pull(rows, index):
        delta = rows.value * rows.factor[:, None, None] * slope.value[index][None]
        # Now delta is the gradient with respect to z, divided by the sizes of the layers after.
        square = jnp.sum(delta * delta, axis=(1, 2))
        log_square = rows.log_square + jnp.log(square) + 2 * slope.log_scale[index, 0]
        # |h^T delta|^2 = sum((h h^T) * (delta delta^T)), from matrices [batch, batch].
        weight_square = jnp.sum((delta @ delta.mT) * gram[index][None], axis=(1, 2))
        log_weight = log_square + jnp.log(weight_square / square) + 2 * log_input[index]
        log_weight = jnp.where(square > 0, log_weight, -jnp.inf)
        factor = jnp.where(square > 0, jnp.exp(log_w - 0.5 * jnp.log(square)), 0.0)
        if layer.depth > 1:
            kernel = params["hidden"]["kernel"][jnp.maximum(index, 1) - 1].astype(delta.dtype)
            delta = (delta.reshape(-1, layer.features) @ kernel.T).reshape(delta.shape)
        return Moved(delta, factor, log_square), (log_square, log_weight)

    return Run(layer.depth, fresh, pull)


def _log_mean_square(a: Scaled) -> Float[Array, " batch"]:
    # Values lie within the window, where squares neither overflow nor all underflow.
    return jnp.log(jnp.mean(jnp.square(a.value), axis=-1)) + 2 * a.log_scale
