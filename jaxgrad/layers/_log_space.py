"""Signals and derivatives whose size is carried as a logarithm, so that depth cannot overflow them.

A signal is `value * exp(log_scale)` with a `value` of ordinary size. A layer maps such a signal to
another one, and its derivative maps tangents forward and cotangents back. Log scales of tangents
and cotangents never depend on their values, so that the maps stay linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad import _numerics

_LARGE = 80.0
"""The exponential of this number is still finite in float32."""


class Scaled(NamedTuple):
    """The array `value * exp(log_scale)`, with one log scale for each example."""

    value: Float[Array, "batch *shape"]
    log_scale: Float[Array, " batch"]

    def times(self, log_factor: Any) -> Scaled:
        """Multiply by `exp(log_factor)`, one number or one for each example."""
        return Scaled(self.value, self.log_scale + log_factor)

    def plain(self) -> Float[Array, "batch *shape"]:
        """Return the array itself, which may overflow or underflow."""
        return self.relative_to(jnp.zeros_like(self.log_scale))

    def relative_to(self, log_scale: Float[Array, "*batch"]) -> Float[Array, "batch *shape"]:
        """Return the array divided by `exp(log_scale)`, which may overflow or underflow."""
        return self.value * _columns(jnp.exp(self.log_scale - log_scale), self.value)

    def shared(self) -> Scaled:
        """Return the same array with one log scale for all examples, the largest."""
        # Examples that are smaller than the largest by more than a float's range underflow to zero.
        top = jnp.broadcast_to(jnp.max(self.log_scale), self.log_scale.shape)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        return Scaled(self.relative_to(top), top)

    def log_mean_square(self) -> Float[Array, " batch"]:
        """Return the log of the mean square of each example."""
        flat = self.value.reshape(len(self.value), -1)
        return _numerics.log_mean_square(flat, 1) + 2 * self.log_scale

    def normalized(self) -> tuple[Scaled, Float[Array, " batch"]]:
        """Return the same array with a value of mean square 1, and the log of its mean square."""
        value, shift, log_square = _numerics.rescale(self.value, together=False)
        return Scaled(value, self.log_scale + shift / 2), log_square + 2 * self.log_scale


def add(a: Scaled, b: Scaled, weight: Any = 1.0) -> Scaled:
    """Return `a + weight * b`."""
    # Where the weight is zero, b must not set the scale, however large it is.
    top = jnp.maximum(a.log_scale, jnp.where(weight != 0, b.log_scale, -jnp.inf))
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    factor = (weight * jnp.exp(jnp.minimum(b.log_scale - top, _LARGE))).astype(b.value.dtype)
    return Scaled(a.relative_to(top) + b.value * _columns(factor, b.value), top)


class Units(NamedTuple):
    """The units of an activation at one signal.

    Attributes:
      log_square: log mean square of the pre-activations of each example.
      slope: the derivatives of the activation.
    """

    log_square: Float[Array, " batch"]
    slope: Scaled


class Derivative(NamedTuple):
    """The derivative of a layer at one signal, as maps of tangents and cotangents.

    Attributes:
      push: maps a tangent of the input to that of the output.
      pull: maps a cotangent of the output to that of the input and the log of the squared norm of
        the gradient with respect to the layer's kernels, its parameters of two or more axes.
      units: those of the last activation in the layer; `None` without one.
    """

    push: Callable[[Scaled], Scaled]
    pull: Callable[[Scaled], tuple[Scaled, Float[Array, ""] | float]]
    units: Units | None = None

    def times(self, log_factor: Any) -> Derivative:
        """Multiply by `exp(log_factor)`, in which no kernel takes part."""

        def pull(cotangent):
            cotangent, log_square = self.pull(cotangent)
            return cotangent.times(log_factor), log_square

        return Derivative(lambda tangent: self.push(tangent).times(log_factor), pull, self.units)


class Stack(NamedTuple):
    """Copies of one layer, one after the other: a part of the depth axis.

    Attributes:
      layer: the layer.
      copies: the parameters and draws of each copy, with a leading axis of their number.
    """

    layer: Any
    copies: Copy

    @property
    def depth(self) -> int:
        """Number of copies."""
        return len(self.copies.index)

    def scan(self, step: Callable[[Any, Copy], tuple[Any, Any]], carry: Any) -> tuple[Any, Any]:
        """Run `jax.lax.scan` over the copies; a single one may change the shapes of the carry."""
        if self.depth > 1:
            return jax.lax.scan(step, carry, self.copies)
        carry, out = step(carry, jax.tree.map(lambda a: a[0], self.copies))
        return carry, jax.tree.map(lambda a: a[None], out)


class Copy(NamedTuple):
    """One copy of a layer.

    Attributes:
      params: its parameters.
      index: its number in the stack, from 0.
      key: PRNG key; `None` switches dropout and randomized activations off.
      active: whether it acts rather than returns its input; `None` if it does.
    """

    params: Any
    index: Any
    key: Any = None
    active: Any = None

    def linearize(self, layer: Any, h: Scaled) -> tuple[Scaled, Derivative]:
        """Apply this copy of a layer to a signal and differentiate it there."""
        out, derivative = layer.linearize(self.params, h, key=self.key)
        if self.active is None:
            return out, derivative

        # A copy that does not act is the identity, with the identity as its derivative.
        def select(result, unchanged):
            return jax.tree.map(lambda a, b: jnp.where(self.active, a, b), result, unchanged)

        return select(out, h), Derivative(
            lambda tangent: select(derivative.push(tangent), IDENTITY.push(tangent)),
            lambda cotangent: select(derivative.pull(cotangent), IDENTITY.pull(cotangent)),
            derivative.units,
        )


def linearize(
    layer: Any, params: Any, h: Scaled, *, key: Array | None
) -> tuple[Scaled, Derivative]:
    """Apply any layer to a signal and differentiate it there, through `layer.apply`.

    The scale of the signal passes by a homogeneous layer; any other layer needs the signal itself.
    """

    def comparable(signal):
        # Examples that influence each other must share a scale.
        return signal.shared() if layer.mixes else signal

    h = comparable(h)
    # For c > 0 a homogeneous layer has f(c h) = c f(h), and the same derivative at c h and at h.
    value, log_scale = h if layer.homogeneous else (h.plain(), jnp.zeros_like(h.log_scale))

    def function(params, value):
        return layer.apply(params, None, value, key=key)[0]

    def push(tangent):
        tangent = comparable(tangent)
        change = (tangent.value.astype(value.dtype),)
        moved = jax.jvp(lambda value: function(params, value), (value,), change)[1]
        return Scaled(moved, tangent.log_scale)

    def pull(cotangent):
        cotangent = comparable(cotangent)
        out, transpose = jax.vjp(function, params, value)
        gradient = transpose(cotangent.value.astype(out.dtype))[1]
        # The gradient with respect to a kernel sums over examples, each at the signal's scale.
        weighted = cotangent.times(log_scale).shared()
        by_params = transpose(weighted.value.astype(out.dtype))[0]
        # Biases, scales and slopes have fewer axes; an mlp of depth 1 has an empty kernel.
        logs = [
            _numerics.log_mean_square(leaf.ravel(), 0) + math.log(leaf.size)
            for leaf in jax.tree.leaves(by_params)
            if leaf.ndim >= 2 and leaf.size
        ]
        log_square = jax.nn.logsumexp(jnp.stack(logs)) if logs else -jnp.inf
        return Scaled(gradient, cotangent.log_scale), log_square + 2 * weighted.log_scale[0]

    return Scaled(function(params, value), log_scale), Derivative(push, pull)


def compose(first: Derivative, second: Derivative) -> Derivative:
    """Return the derivative of one layer after another."""

    def pull(cotangent):
        # Squared norms of the gradients of different kernels add up.
        cotangent, log_square = second.pull(cotangent)
        cotangent, log_square_first = first.pull(cotangent)
        return cotangent, jnp.logaddexp(log_square, log_square_first)

    units = first.units if second.units is None else second.units
    return Derivative(lambda tangent: second.push(first.push(tangent)), pull, units)


IDENTITY = Derivative(lambda tangent: tangent, lambda cotangent: (cotangent, -jnp.inf))


def _columns(per_example: Array, like: Array) -> Array:
    """Give an array `[batch]` as many axes as `like` has."""
    return per_example.reshape(-1, *(1,) * (like.ndim - 1))
