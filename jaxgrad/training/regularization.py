"""Regularization: penalties on the weights, dropout and early stopping.

`jaxgrad.training.augmentation` has the random changes of images.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxgrad import _validate
from jaxgrad.layers import drop_units as dropout
from jaxgrad.training._early_stopping import EarlyStopping, early_stopping, watch

__all__ = [
    "WEIGHTS",
    "EarlyStopping",
    "Where",
    "dropout",
    "early_stopping",
    "l1",
    "l2",
    "select",
    "watch",
]

Where = str | Callable[[str, Any], bool]
"""Selects leaves: a regular expression searched in a leaf's path, or a function of path and leaf.

Paths are those of `jax.tree_util.keystr` with `simple=True, separator="/"`: `first/kernel`, `0/w`.
"""

WEIGHTS = r"(^|/)(kernel|weights?|[wW])_?\d*$"
"""Matches the paths of weights in jaxgrad, flax (`kernel`), equinox (`weight`) and haiku (`w`).

Biases, and the scales and shifts of normalization layers, do not match.
"""


def select(params: Any, where: Where = WEIGHTS) -> Any:
    """Mark the leaves that a penalty applies to.

    Args:
      params: A pytree of arrays.
      where: Which leaves to select, see `Where`.

    Returns:
      A pytree of `bool` with the structure of `params`, which is also a mask for optax.

    Raises:
      ValueError: If no leaf is selected.

    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    >>> select(params)
    {'dense': {'bias': False, 'kernel': True}}
    """
    selects = where if callable(where) else lambda path, leaf: re.search(where, path) is not None
    leaves = leaf_paths(params)
    mask = [bool(selects(path, leaf)) for path, leaf in leaves]
    if not any(mask):
        raise ValueError(
            "where must select at least one leaf of params, got none of "
            f"{[path for path, _ in leaves]}; pass a regular expression that matches each weight"
        )
    return jax.tree.unflatten(jax.tree.structure(params), mask)


def l2(
    params: Any, strength: Any, *, examples: Any = 1, where: Where = WEIGHTS
) -> Float[Array, ""]:
    """L2 penalty `strength / (2 * examples) * sum(w**2)`, to be added to a mean loss.

    With this penalty a step of gradient descent multiplies the weights by
    `1 - learning_rate * strength / examples` before it adds the update of the loss. That is weight
    decay: `optax.add_decayed_weights(strength / examples, select(params))` before `optax.sgd`.
    The two differ for optimizers that rescale the gradient, such as Adam.

    Args:
      params: A pytree of real arrays.
      strength: The coefficient lambda, at least 0, may be traced.
      examples: Number of examples that the loss averages over, greater than 0, may be traced.
      where: Which leaves are penalized, see `Where`. By default weights but not biases.

    Returns:
      The penalty, a scalar.

    Raises:
      ValueError, TypeError: If a number is out of range, or no leaf is selected.

    Source: Krogh, Hertz (1992); Loshchilov, Hutter (2019) for the difference from weight decay.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.asarray([3.0, -4.0]), "b": jnp.asarray([100.0])}
    >>> float(l2(params, 0.5, examples=10)), float(l1(params, 0.5, examples=10))
    (0.625, 0.17499999701976776)
    """
    return _penalty(params, strength, examples, where, jnp.square)


def l1(
    params: Any, strength: Any, *, examples: Any = 1, where: Where = WEIGHTS
) -> Float[Array, ""]:
    """L1 penalty `strength / (2 * examples) * sum(|w|)`, to be added to a mean loss.

    The derivative at 0 is taken to be 0. Gradient descent steps across 0 and rarely lands on it, so
    weights become small rather than exactly 0. To count zeros, use a threshold or a proximal step.

    The arguments are those of `l2`.

    Source: Tibshirani (1996). The factor 1/2 is that of the course notes.
    """
    return _penalty(params, strength, examples, where, jnp.abs)


def leaf_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return the path and the value of each leaf."""
    # Paths of dictionaries, tuples and attributes are written alike.
    return [
        (jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]


def _penalty(params, strength, examples, where, size):
    _validate.scalar("strength", strength, minimum=0.0)
    _validate.scalar("examples", examples, minimum=0.0, above=True)
    # The mask is made of Python booleans, so this selection costs nothing under jit.
    mask = jax.tree.leaves(select(params, where))
    pairs = zip(jax.tree.leaves(params), mask, strict=True)
    total = sum(jnp.sum(size(leaf)) for leaf, selected in pairs if selected)
    return strength / (2 * examples) * total
