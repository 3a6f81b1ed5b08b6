"""Regularization: penalties on the weights, dropout and early stopping.

`jaxgrad.training.augmentation` has the random changes of images.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgrad import _validate

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
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    mask = [bool(selects(name, leaf)) for name, (_, leaf) in zip(names, paths, strict=True)]
    if not any(mask):
        raise ValueError(
            f"where must select at least one leaf of params, got none of {names}; pass a regular "
            "expression that matches the path of each weight"
        )
    return jax.tree.unflatten(structure, mask)


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

    Args:
      params: A pytree of real arrays.
      strength: As in `l2`.
      examples: As in `l2`.
      where: As in `l2`.

    Returns:
      The penalty, a scalar.

    Raises:
      ValueError, TypeError: If a number is out of range, or no leaf is selected.

    Source: Tibshirani (1996). The factor 1/2 is that of the course notes.
    """
    return _penalty(params, strength, examples, where, jnp.abs)


def _penalty(params, strength, examples, where, size):
    _validate.scalar("strength", strength, minimum=0.0)
    _validate.scalar("examples", examples, minimum=0.0, above=True)
    mask = jax.tree.leaves(select(params, where))
    leaves = [
        leaf for leaf, selected in zip(jax.tree.leaves(params), mask, strict=True) if selected
    ]
    return strength / (2 * examples) * sum(jnp.sum(size(leaf)) for leaf in leaves)


def dropout(h: jax.Array, rate: Any, *, key: Any) -> jax.Array:
    """Interim."""
    _validate.scalar("rate", rate, minimum=0.0)
    if not _validate.is_traced(rate) and rate >= 1:
        raise ValueError(f"rate must be below 1, got {rate}; it is the share of units dropped")
    if key is None:
        return h
    keep_prob = 1 - rate
    kept = jax.random.uniform(key, h.shape, jnp.float32) < keep_prob
    return jnp.where(kept, h / jnp.asarray(keep_prob, h.dtype), 0.0)


class EarlyStopping(NamedTuple):
    """The best parameters so far, and whether training should stop.

    Attributes:
      params: The parameters with the smallest error.
      error: The smallest error; infinity before the first evaluation.
      best: Index of the evaluation with the smallest error; -1 before the first.
      evaluations: Number of evaluations until training stopped.
      waited: Number of evaluations since the best one.
      stopped: Whether `patience` evaluations have passed without an improvement.
    """

    params: Any
    error: Float[Array, ""]
    best: Int[Array, ""]
    evaluations: Int[Array, ""]
    waited: Int[Array, ""]
    stopped: Bool[Array, ""]


def early_stopping(params: Any) -> EarlyStopping:
    """Return the state of early stopping before the first evaluation.

    Args:
      params: A pytree of arrays. They are the best parameters until an evaluation gives a number.
    """
    zero = jnp.zeros((), jnp.int32)
    error = jnp.full((), jnp.inf, float)
    return EarlyStopping(params, error, zero - 1, zero, zero, jnp.zeros((), bool))


def watch(
    state: EarlyStopping,
    params: Any,
    error: Any,
    *,
    patience: Any = None,
    min_delta: Any = 0.0,
) -> EarlyStopping:
    """Update early stopping with one evaluation. Once it has stopped, nothing changes.

    Args:
      state: From `early_stopping` or an earlier call.
      params: The parameters that were evaluated, with the structure of `state.params`.
      error: Their error on the dev set, one number. NaN never counts as an improvement.
      patience: Stop after this many evaluations in a row without an improvement, at least 1, may
        be traced. `None` never stops but still selects the best parameters.
      min_delta: An error improves on the best one if it is smaller by more than this, at least 0,
        may be traced.

    Returns:
      The next state.

    Raises:
      ValueError, TypeError: If the structure or the shapes of the parameters differ, or a number
        is out of range.

    Source: Prechelt (1998), "Early stopping - but when?".

    >>> import jax.numpy as jnp
    >>> state = early_stopping(jnp.zeros(()))
    >>> for step, error in enumerate([0.5, 0.3, 0.4, 0.35, 0.1]):
    ...     state = watch(state, jnp.asarray(float(step)), error, patience=2)
    >>> float(state.params), bool(state.stopped), int(state.evaluations)
    (1.0, True, 4)
    """
    shapes, expected = (jax.tree.map(jnp.shape, tree) for tree in (params, state.params))
    if shapes != expected:
        raise ValueError(
            "params must have the structure and shapes of those that early stopping began with, "
            f"{expected}, got {shapes}; begin again with early_stopping(params)"
        )
    if patience is not None:
        _validate.scalar("patience", patience, minimum=1.0)
    _validate.scalar("min_delta", min_delta, minimum=0.0)
    if jnp.shape(error) != ():
        raise ValueError(f"error must be one number, got shape {jnp.shape(error)}; use jax.vmap")
    error = jnp.asarray(error, state.error.dtype)
    # A comparison with NaN is false, so that NaN never improves.
    better = ~state.stopped & (error < state.error - min_delta)
    one = jnp.where(state.stopped, 0, 1).astype(jnp.int32)
    waited = jnp.where(better, 0, state.waited + one)
    stopped = state.stopped if patience is None else state.stopped | (waited >= patience)
    return EarlyStopping(
        jax.tree.map(lambda new, old: jnp.where(better, new, old), params, state.params),
        jnp.where(better, error, state.error),
        jnp.where(better, state.evaluations, state.best),
        state.evaluations + one,
        waited,
        stopped,
    )
