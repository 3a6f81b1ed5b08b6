"""What theory says that a signal and a gradient do, layer by layer, transients included."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad import _validate, activations
from jaxgrad.theory import moments
from jaxgrad.theory._float64 import in_float64
from jaxgrad.theory.maps import Phi, next_log_q, variances
from jaxgrad.theory.moments import Moments


class Prediction(NamedTuple):
    """A fully connected network in the limit of infinite width, as `jaxgrad.propagation.Probe`.

    Every field has shape `[depth]` or, for several first variances, `[depth, ...]`; logs are
    natural.

    Attributes:
      log_preactivation: log mean square of `z_l`.
      log_activation: log mean square of `phi(z_l)`.
      log_gradient: log of the mean squared gradient with respect to the first layer's
        pre-activations, per output, of the network of depth `l`.
      log_last_gradient: the same with respect to the last layer's.
      gap: `1 - c` of two examples' pre-activations; `None` if it was not asked for.
    """

    log_preactivation: jax.Array
    log_activation: jax.Array
    log_gradient: jax.Array
    log_last_gradient: jax.Array
    gap: jax.Array | None = None

    @property
    def log_ratio(self) -> jax.Array:
        """Log of the squared gradient at the first layer over that at the last, `[depth]`."""
        return self.log_gradient - self.log_last_gradient


def predict(
    activation: Phi,
    depth: int,
    w_variance: Any,
    b_variance: Any = 0.0,
    *,
    input_square: Any = 1.0,
    input_gap: Any = None,
) -> Prediction:
    """Follow a signal and a gradient through a fully connected network.

    Args:
      activation: see `jaxgrad.activations.get`.
      depth: number of layers, at least 1.
      w_variance, b_variance: numbers of at least 0, may be traced.
      input_square: mean square of the inputs, above 0, of any shape `[...]`.
      input_gap: `1 - c` of two inputs, of a shape that broadcasts with `input_square`; `None` not
        to follow it, which is faster.

    Returns:
      `Prediction`.

    Raises:
      ValueError, TypeError: if an argument is not as described, and as `second_moment`.

    >>> found = predict("relu", 50, 2.0)
    >>> round(float(found.log_ratio[-1]), 12)
    0.0
    """
    phi = activations.get(activation)
    depth = _validate.integer("depth", depth, 1)
    w_variance, b_variance = variances(w_variance, b_variance)
    _validate.numbers("input_square", input_square, minimum=0.0, above=True)
    if input_gap is not None:
        _validate.numbers("input_gap", input_gap, minimum=0.0)
    return _predict(phi, depth, w_variance, b_variance, input_square, input_gap)


def predict_blocks(block: Callable[[Moments], Moments], first: Moments, depth: int) -> Moments:
    """Follow moments through a block that is repeated.

    Args:
      block: maps moments to moments, as the `predict` of a `jaxgrad.layers.Layer` does.
      first: the moments of the input.
      depth: how often the block is applied, at least 1.

    Returns:
      The moments after each block, every array with a leading axis of `depth`.

    Raises:
      ValueError, TypeError: if the depth is not as described, the block does not keep the kind of
        moments, or a layer does not know what becomes of them.

    >>> import jax.numpy as jnp
    >>> from dataclasses import replace
    >>> double = lambda m: replace(m, log_q=m.log_q + jnp.log(2.0))
    >>> predict_blocks(double, Moments(0.0), 3).log_q.round(3).tolist()
    [0.693, 1.386, 2.079]
    """
    depth = _validate.integer("depth", depth, 1)
    return _predict_blocks(block, first, depth)


def moments_of(x: Any, *, gap: bool = False) -> Moments:
    """The moments of given inputs, averaged over the batch and, with a gap, over pairs in it.

    Args:
      x: inputs, `[batch, *spatial, features]`, finite.
      gap: whether to measure the gap between examples, for at least two of them.

    Returns:
      `Moments` whose arrays have shape `spatial`.

    Raises:
      ValueError, TypeError: if the inputs are not as described.
    """
    shape = jnp.shape(x)
    x = _validate.floating("x", x, max(len(shape), 2), "[batch, *spatial, features]")
    if gap and len(x) < 2:
        raise ValueError("x must have at least 2 examples for a gap, got 1; pass more")
    return _moments_of(x, gap)


@in_float64
def _moments_of(x, gap):
    x = x.astype(jnp.float64)
    q = jnp.mean(x * x, axis=(0, -1))
    between = None
    if gap:
        total = jnp.sum(x, axis=0)
        others = (jnp.mean(total * total, axis=-1) - len(x) * q) / (len(x) * (len(x) - 1))
        between = 1 - others / q
    zero = jnp.zeros_like(q)
    return Moments(jnp.log(q), zero, jnp.mean(x, axis=(0, -1)) / jnp.sqrt(q), between)


@in_float64
@functools.partial(jax.jit, static_argnums=(0, 1))
def _predict(phi, depth, w_variance, b_variance, input_square, input_gap):
    w_variance, b_variance = (jnp.asarray(v, jnp.float64) for v in (w_variance, b_variance))
    log_w = jnp.log(w_variance)
    log_input = jnp.log(jnp.asarray(input_square, jnp.float64))
    gap = input_gap
    if gap is not None:
        log_input, gap = jnp.broadcast_arrays(log_input, jnp.asarray(gap, jnp.float64))

    def step(carry, _):
        log_input, gap, log_gradient = carry
        log_q = next_log_q(log_input, log_w, b_variance)
        found = moments.statistics(phi, log_q)
        before, after = gap, None
        if gap is not None:
            before = gap * jnp.exp(log_w + log_input - log_q)
            after = moments.pair(phi, log_q, before)[0]
        log_gradient = log_gradient + found.log_slope
        record = Prediction(log_q, found.log_square, log_gradient, found.log_slope, before)
        return (found.log_square, after, log_gradient + log_w), record

    start = (log_input, gap, jnp.zeros_like(log_input))
    return jax.lax.scan(step, start, length=depth)[1]


@in_float64
def _predict_blocks(block, first, depth):
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
