"""Theory is computed in float64 whatever JAX's setting is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate

P = ParamSpec("P")
R = TypeVar("R")


def in_float64(function: Callable[P, R]) -> Callable[P, R]:
    """Run `function` in float64 and return what its caller can use.

    Called with numbers, it returns NumPy arrays of float64. Under a transformation of a program
    that has no float64, it rounds its result to float32 on the way out.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        if jax.config.read("jax_enable_x64"):
            return function(*args, **kwargs)
        # A tracer may stand for a Python number, whose type would change with the setting.
        args, kwargs = jax.tree.map(_settled, (args, kwargs))
        with jax.enable_x64(True):
            return jax.tree.map(_returned, function(*args, **kwargs))

    return wrapped


def _settled(leaf: Any) -> Any:
    return jnp.asarray(leaf) if _validate.is_traced(leaf) else leaf


def _returned(leaf: Any) -> Any:
    if not _validate.is_traced(leaf):
        return np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf
    return leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf
