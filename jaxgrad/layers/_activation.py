"""Elementwise functions as layers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import activations
from jaxgrad._numerics import in_float64
from jaxgrad.activations import Activation
from jaxgrad.layers._layer import Layer, layer, static
from jaxgrad.theory import activate


@layer
class Elementwise(Layer):
    """An activation; see `activation`."""

    function: Activation = static()

    @property
    def homogeneous(self) -> bool:
        """Measured once for each activation."""
        return _is_homogeneous(self.function)

    def draw(self, shape, *, key, dtype):
        return activation_parameters(self.function, dtype), shape

    def apply(self, params, state, h, *, key=None):
        draws = {"key": key} if self.function.randomized and key is not None else {}
        return self.function(h, **params, **draws), state

    @in_float64
    def predict(self, moments):
        return _predict(moments, self.function)


def activation(function: str | Activation | Callable[..., Any]) -> Elementwise:
    """Make a layer of an elementwise function.

    Its parameters are those of the activation that are trained, `{name: []}`.

    Args:
      function: see `jaxgrad.activations.get`. A randomized one draws where `apply` gets a key.

    Raises:
      ValueError, TypeError: if the activation is unknown; by `predict`, if the units are not
        Gaussian.

    >>> activation("leaky_relu").homogeneous, activation("selu").homogeneous
    (True, False)
    """
    return Elementwise(activations.get(function))


def activation_parameters(function: Activation, dtype: Any) -> dict[str, Any]:
    """Return the trained parameters of an activation at their initial values."""
    return {name: jnp.asarray(value, dtype) for name, value in function.parameters}


@functools.lru_cache(maxsize=256)
def _is_homogeneous(function):
    size = np.logspace(-3, 3, 25, dtype=np.float32)
    x = np.concatenate([size, -size])
    # Compiled and evaluated at once, since a transformation would trace even known numbers.
    with jax.ensure_compile_time_eval():
        once, twice = jax.jit(lambda x: (function(x), function(2 * x)))(x)
    return np.allclose(twice, 2 * np.asarray(once), rtol=1e-6, atol=0.0)


_predict = jax.jit(activate, static_argnums=1)
