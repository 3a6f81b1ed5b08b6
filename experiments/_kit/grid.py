"""One compiled program that evaluates a function at every combination of several values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax


def mapped(function: Callable[..., Any], *values: Any, compiler_options: Any = None) -> Any:
    """Results of `function` at all combinations of `values`, as NumPy arrays.

    Args:
      function: pure and traceable; takes one element of each of `values`, and may return a pytree.
      *values: arrays, or pytrees of arrays whose first axes have one length.
      compiler_options: of `jax.jit`.

    Returns:
      The pytree of results, each array of shape `[len(values[0]), len(values[1]), ..., *shape]`.
    """
    for i in reversed(range(len(values))):
        axes = [0 if j == i else None for j in range(len(values))]
        function = jax.vmap(function, axes)
    return jax.device_get(jax.jit(function, compiler_options=compiler_options)(*values))
