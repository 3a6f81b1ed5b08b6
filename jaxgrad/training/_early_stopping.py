"""Early stopping: the parameters with the smallest error, and when to stop."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgrad import _validate


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
    # A scan carries the state, whose structure may not change.
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
    # Once stopped, nothing is counted any more.
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
