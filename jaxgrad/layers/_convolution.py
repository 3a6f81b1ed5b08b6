"""Convolutions of stride 1, predicted position by position."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad._numerics import in_float64
from jaxgrad.layers._layer import layer, static
from jaxgrad.layers._weights import Parameterization, Weights, weights

Padding = Literal["CIRCULAR", "SAME"]


@layer
class Convolution(Weights):
    """A convolution that keeps the spatial shape; see `convolution`."""

    kernel_size: tuple[int, ...] = static()
    padding: Padding = static()

    def draw(self, shape, *, key, dtype):
        rank = len(self.kernel_size)
        if len(shape) != rank + 1:
            raise ValueError(
                f"shape must have {rank} spatial axes, as kernel_size has, and channels, got "
                f"{tuple(shape)}; give kernel_size {len(shape) - 1} sizes"
            )
        kernel_shape = (*self.kernel_size, shape[-1], self.features)
        params = self.draw_weights(jax.random.split(key), kernel_shape, dtype)
        return params, (*shape[:-1], self.features)

    def apply(self, params, state, h, *, key=None):
        kernel, rank = params["kernel"], len(self.kernel_size)
        dtype = jnp.result_type(h, kernel)
        # Padded here, since XLA's convolutions pad with zeros only.
        h = self._pad(h, range(1, rank + 1))
        space = "0123456789"[:rank]
        axes = (f"N{space}C", f"{space}IO", f"N{space}C")
        h = jax.lax.conv_general_dilated(
            h.astype(dtype), kernel.astype(dtype), (1,) * rank, "VALID", dimension_numbers=axes
        )
        return self.scale_and_shift(params, h), state

    @in_float64
    def predict(self, moments):
        rank = len(self.kernel_size)
        # Means over tokens do not say what is in a window.
        if moments.tokens is not None:
            raise ValueError(
                "moments must have no tokens for a convolution, which is predicted position by "
                "position; take them from moments_of(x)"
            )
        shape = np.broadcast_shapes(*(np.shape(leaf) for leaf in jax.tree.leaves(moments)))
        # Without spatial axes the moments are those of every position.
        if len(shape) < rank:
            if self.padding == "CIRCULAR":
                return super().predict(moments)
            raise ValueError(
                f"moments must have {rank} spatial axes for a convolution with padding 'SAME', "
                f"whose signal depends on the position, got shape {shape}; give log_q the shape "
                "[*spatial]"
            )
        axes = tuple(range(-rank, 0))
        log_q, log_gradient = (
            jnp.broadcast_to(array, shape) for array in (moments.log_q, moments.log_gradient)
        )
        q, log_scale = exp_scaled(log_q, axes)
        square, log_square = exp_scaled(log_gradient, axes)
        # A unit adds up its window: q and q gap become their averages over it.
        mean_q = self._window_mean(q)
        moments = dataclasses.replace(
            moments,
            log_q=jnp.log(mean_q) + log_scale,
            log_gradient=jnp.log(self._window_mean(square)) + log_square,
            gap=None if moments.gap is None else self._window_mean(q * moments.gap) / mean_q,
        )
        return super().predict(moments)

    def _pad(self, a, axes):
        margins = [(0, 0)] * a.ndim
        for axis, size in zip(axes, self.kernel_size, strict=True):
            margins[axis] = (size // 2, size // 2)
        return jnp.pad(a, margins, "wrap" if self.padding == "CIRCULAR" else "constant")

    def _window_mean(self, a):
        """Average over the window around each position, with zeros where it is padded."""
        a = self._pad(a, range(-len(self.kernel_size), 0))
        window = (1,) * (a.ndim - len(self.kernel_size)) + self.kernel_size
        zero, strides = np.zeros((), a.dtype), (1,) * a.ndim
        total = jax.lax.reduce_window(a, zero, jax.lax.add, window, strides, "VALID")
        return total / math.prod(self.kernel_size)


def convolution(
    features: int,
    kernel_size: Sequence[int] = (3, 3),
    *,
    padding: Padding = "CIRCULAR",
    w_variance: Any = 1.0,
    b_variance: Any = 0.0,
    bias: bool = False,
    kernel_init: Callable[..., Any] | None = None,
    parameterization: Parameterization = "standard",
) -> Convolution:
    """Make a convolution of stride 1 that keeps the spatial shape.

    Its parameters are `{"kernel": [*kernel_size, in, features], "bias": [features]}`.

    The prediction is for weights whose variance is the same over the window. It is position by
    position: the last axes of the moments' arrays, as many as `kernel_size` has, are spatial. With
    circular padding, arrays of fewer axes stand for a signal that is equal at all positions.

    Args:
      kernel_size: odd size of the window for each spatial axis.
      padding: "CIRCULAR", or "SAME" for zeros.
      features, w_variance, b_variance, bias, kernel_init, parameterization: as of `dense`, with
        `fan_in = prod(kernel_size) in`.

    Source: Xiao et al. (2018), eq. 2.5, for circular padding; zeros by counting.

    >>> from jaxgrad.theory import Moments
    >>> moments = convolution(16, (3,), padding="SAME").predict(Moments(log_q=jnp.zeros(4)))
    >>> [round(float(q), 3) for q in jnp.exp(moments.log_q)]
    [0.667, 1.0, 1.0, 0.667]
    """
    fields = weights(features, w_variance, b_variance, bias, kernel_init, parameterization)
    kernel_size = _validate.shape("kernel_size", kernel_size, 1)
    if any(size % 2 == 0 for size in kernel_size):
        raise ValueError(
            f"kernel_size must have odd sizes, to have a centre, got {kernel_size}; add 1"
        )
    _validate.choice("padding", padding, ("CIRCULAR", "SAME"))
    return Convolution(**fields, kernel_size=kernel_size, padding=padding)


def exp_scaled(logs, axes):
    """Return `exp(logs)` divided by the largest along `axes`, and the log of the divisor."""
    # The divisor cancels in what is made of the result, so that its derivative may be left out.
    top = jax.lax.stop_gradient(jnp.max(logs, axis=axes, keepdims=True))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    return jnp.exp(logs - top), top
