"""Elementwise functions as layers."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate, activations, theory
from jaxgrad._numerics import in_float64
from jaxgrad.activations import Activation
from jaxgrad.layers._layer import Layer, layer, static
from jaxgrad.layers._log_space import Derivative, Scaled, Units

WINDOW = 16.0
"""Arguments whose log size is beyond this are replaced by the activation's asymptotes."""


@layer
class Elementwise(Layer):
    """An elementwise function; see `activation`."""

    function: Activation = static()

    @property
    def homogeneous(self) -> bool:
        return self.function.degrees in (None, (1.0, 1.0)) and _is_homogeneous(self.function)

    def draw(self, shape, *, key, dtype):
        parameters = self.function.parameters
        return {name: jnp.asarray(value, dtype) for name, value in parameters}, shape

    def apply(self, params, state, h, *, key=None):
        draws = {"key": key} if self.function.randomized and key is not None else {}
        return self.function(h, **params, **draws), state

    def linearize(self, params, h, *, key=None):
        log_square = h.log_mean_square()
        # The scale passes by a homogeneous function; of any other as much as is beyond the window.
        scale = h.log_scale if self.homogeneous else beyond_window(log_square / 2)
        scale = jnp.where(jnp.isfinite(scale), scale, 0.0)
        out, slope = self.activate(params, Scaled(h.relative_to(scale), scale), key=key)

        def multiply(change):
            return Scaled(slope.value * change.value, slope.log_scale + change.log_scale)

        # The derivative is a diagonal matrix, its own transpose; there are no kernels.
        units = Units(log_square, slope)
        return out, Derivative(multiply, lambda c: (multiply(c), -jnp.inf), units)

    def activate(
        self, params: Any, z: Scaled, *, key: PRNGKeyArray | None = None
    ) -> tuple[Scaled, Scaled]:
        """Return the values and the slopes at `z`.

        Where the log scale of `z` is not 0, `z.value` must lie where the function follows its
        asymptote, a power law; its degree says what becomes of the scale.
        """
        h, pull = jax.vjp(lambda value: self.apply(params, None, value, key=key)[0], z.value)
        log_slope = jnp.zeros_like(z.log_scale)
        if self.function.scaled_slope is None:
            slope = pull(jnp.ones_like(h))[0]
        else:
            slope, log_slope = self.function.scaled_slope(z.value.reshape(len(h), -1))
            slope, log_slope = slope.reshape(h.shape), log_slope[:, 0]
        near, far = (jnp.asarray(d, z.log_scale.dtype)[:, None] for d in _degrees(self.function))
        degree, slope_degree = jnp.where(z.log_scale[None] < 0, near, far)
        nonzero = jnp.any(h != 0, axis=tuple(range(1, h.ndim)))
        return (
            Scaled(h, jnp.where(nonzero, degree * z.log_scale, 0.0)),
            Scaled(slope, log_slope + slope_degree * z.log_scale),
        )

    @in_float64
    def predict(self, moments):
        return _activate(moments, self.function)


def activation(function: str | Activation | Callable[..., Any]) -> Elementwise:
    """Make a layer of an elementwise function.

    Its parameters are those of the activation that are trained, `{name: []}`.

    Args:
      function: see `jaxgrad.activations.get`. A randomized one draws where `apply` gets a key. For
        a prediction its inputs must be Gaussian, as they are after a layer of weights.

    >>> activation("leaky_relu").homogeneous, activation("selu").homogeneous
    (True, False)
    """
    return Elementwise(activations.get(function))


def beyond_window(log_size: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the part of a log size that is outside the window, 0 where it is not finite."""
    log_size = _validate.real("log_size", log_size)
    log_size = jnp.where(jnp.isfinite(log_size), log_size, 0.0)
    return log_size - jnp.clip(log_size, -WINDOW, WINDOW)


def _degrees(function):
    """Return the exponents of a function and of its slope, near zero and far out, `[2]` each."""
    if function.degrees is not None:
        return tuple((degree, max(degree - 1, 0.0)) for degree in function.degrees)

    def largest(log_size):
        z = jnp.exp(log_size) * jnp.concatenate([grid, -grid])
        h, pull = jax.vjp(function, z)
        return jnp.log(jnp.stack([jnp.max(jnp.abs(a)) for a in (h, pull(jnp.ones_like(h))[0])]))

    def exponents(log_size):
        raw = (largest(log_size) - largest(log_size * 0.75)) / (log_size * 0.25)
        return jnp.where(jnp.isfinite(raw), jnp.round(2 * raw) / 2, 0.0)

    grid = jnp.linspace(0.5, 1.0, 64, dtype=jnp.float32)
    return exponents(-WINDOW), exponents(WINDOW)


@functools.lru_cache(maxsize=256)
def _is_homogeneous(function):
    size = np.logspace(-3, 3, 25, dtype=np.float32)
    x = np.concatenate([size, -size])
    # Inside a transformation even known numbers would be traced, but this result must be a bool.
    with jax.ensure_compile_time_eval():
        once, twice = jax.jit(lambda x: (function(x), function(2 * x)))(x)
    return np.allclose(twice, 2 * np.asarray(once), rtol=1e-6, atol=0.0)


# Averages of an activation take long to compile, so that they are compiled once for each.
_activate = jax.jit(theory.activate, static_argnums=1)
