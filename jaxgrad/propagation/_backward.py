"""Gradients of every entry of the depth axis for the loss of every depth, in reverse mode."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.layers import Layer, Mlp, Scaled, Stack
from jaxgrad.propagation import _mlp
from jaxgrad.propagation._forward import check_arguments, forward, working_inputs
from jaxgrad.propagation._result import Propagation
from jaxgrad.propagation._reverse import Run, reverse


def exact(
    layer: Layer,
    params: Any,
    x: Float[Array | np.ndarray, "batch *shape"],
    *,
    key: PRNGKeyArray,
    depths: Sequence[int] | None = None,
    loss: Callable[[Array], Array] | None = None,
    segments: int = 8,
    saturation: Any = 0.02,
) -> Propagation:
    """Compute the gradient of a loss at each depth with respect to each entry, by reverse mode.

    The cotangents of all depths go back through the entries together, and are normalized on the
    way. For an `mlp` the norm of the gradient of a kernel is taken from the Gram matrices of its
    two factors, and the gradient itself is never formed; for any other layer it is formed for one
    entry at a time.

    Args:
      layer, params, x, saturation: as of `probe`.
      key: PRNG key of the random losses and of the draws of the layers; not the one that drew
        `params`.
      depths: increasing depths that have a loss; `None` for every depth.
      loss: maps the outputs of an entry, `[batch, *shape]`, to a scalar; `None` for a random one,
        see `Propagation`. A new function compiles the program anew.
      segments: more of them waste less work and take longer to compile.

    Fields `[depth]` that need a loss are NaN at other depths than `depths`. Zero gradients have the
    log -inf; what is not finite is returned, not raised.
    """
    x = check_arguments(layer, params, x, key=key, saturation=saturation)
    segments = _validate.integer("segments", segments, 1)
    if depths is not None:
        depths = _validate.integers("depths", depths, 1)
    # The loss is a static argument, so it is checked here rather than where JAX hashes it.
    if loss is not None and not callable(loss):
        raise TypeError(
            f"loss must map outputs to a scalar, got {_validate.show(loss)}; pass a function"
        )
    return _exact(layer, params, x, key, saturation, depths, loss, segments)


@functools.partial(jax.jit, static_argnames=("depths", "loss", "segments"))
def _exact(layer, params, x, key, saturation, depths, loss, segments):
    x = working_inputs(layer, params, x)
    if isinstance(layer, Mlp):
        signal, h, slope = _mlp.forward(layer, params, x, saturation, key=key)
        runs, outputs, key_loss = [_mlp.reverse_run(layer, params, x, h, slope)], [h], key
    else:
        key_loss, key_layers = jax.random.split(key)
        stacks = layer.stacks(params, key=key_layers)
        signal, inputs, outputs = forward(stacks, x, saturation)
        runs = [_run(stack, h) for stack, h in zip(stacks, inputs, strict=True)]
    depths = _check_depths(depths, len(signal.gap))
    cotangents = _cotangents(loss, outputs, depths, key=key_loss)
    log_gradient, log_weight_gradient = reverse(runs, cotangents, depths, segments=segments)
    if isinstance(layer, Mlp):
        # Row d of the gradients ends at layer depths[d].
        log_last = log_gradient[np.arange(len(depths)), depths - 1]
    else:
        squares = [jnp.sum(jnp.square(c), axis=tuple(range(1, c.ndim))) for c in cotangents]
        log_last = jnp.log(jnp.concatenate(squares))

    def by_depth(values):
        # NaN where no loss was asked for, so that measurements of other depths can be compared.
        return signal.gap.at[depths - 1].set(values)

    return signal._replace(
        log_gradient=by_depth(log_gradient[:, 0]),
        log_weight_gradient=by_depth(log_weight_gradient[:, 0]),
        log_last_gradient=by_depth(log_last),
        depths=jnp.asarray(depths),
        log_layer_gradient=log_gradient,
        log_layer_weight_gradient=log_weight_gradient,
    )


def _run(stack: Stack, inputs: Scaled) -> Run:
    """Return how cotangents go back through the copies of a layer."""
    # A sum over the inputs of an example is their number times the mean.
    log_size = math.log(math.prod(inputs.value.shape[2:]))

    def fresh(cotangents):
        return Scaled(cotangents, jnp.zeros(cotangents.shape[:2], cotangents.dtype))

    def pull(rows, index):
        copy, h = jax.tree.map(lambda a: a[index], (stack.copies, inputs))
        # The entry is evaluated again, which costs less memory than all of its intermediate values.
        _, derivative = copy.linearize(stack.layer, h)
        rows, log_weight = jax.vmap(derivative.pull)(rows)
        rows, log_square = jax.vmap(Scaled.normalized)(rows)
        return rows, (jax.nn.logsumexp(log_square, axis=1) + log_size, log_weight)

    return Run(stack.depth, fresh, pull)


def _cotangents(loss, outputs, depths, *, key):
    """Return the gradients of the losses by the outputs, for each run those that end in it."""
    cotangents, start = [], 0
    for values in outputs:
        count, shape = len(values.value), values.value.shape[1:]
        ends = depths[(depths > start) & (depths <= start + count)]
        if loss is None:

            def draw(depth, shape=shape):
                # A depth has the same loss whichever other depths are selected.
                return jax.random.normal(jax.random.fold_in(key, depth), shape, jnp.float32)

            # Variance 1 / (number of outputs) makes the expected squared norm 1.
            drawn = jax.lax.map(draw, jnp.asarray(ends, jnp.int32)) / math.sqrt(math.prod(shape))
            cotangents.append(drawn.astype(values.value.dtype))
        else:
            selected = jax.tree.map(lambda a, ends=ends, start=start: a[ends - start - 1], values)
            cotangents.append(jax.vmap(jax.grad(loss))(jax.vmap(Scaled.plain)(selected)))
        start += count
    return cotangents


def _check_depths(depths: tuple[int, ...] | None, depth: int) -> np.ndarray:
    if depths is None:
        return np.arange(1, depth + 1)
    if not depths or max(depths) > depth or sorted(set(depths)) != list(depths):
        raise ValueError(
            f"depths must increase and end by the network's depth {depth}, got {list(depths)}"
        )
    return np.asarray(depths)
