"""Keep a network from fitting noise: penalties on weights, dropout, early stopping.

`jaxgrad.augmentation` has the changes of images.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgrad import _validate

Where = str | Callable[[str, Any], bool]
"""Which leaves: a regular expression to be found in a leaf's path, or a function of path and leaf.

Paths are those of `jax.tree_util.keystr` with `simple=True, separator="/"`: `first/kernel`, `0/w`.
"""

WEIGHTS = r"(^|/)(kernel|weights?|[wW])_?\d*$"
"""Paths of weights as jaxgrad, flax (`kernel`), equinox (`weight`) and haiku (`w`) name them.

Neither biases nor what norms scale and shift by.
"""


def select(params: Any, where: Where = WEIGHTS) -> Any:
    """Tell the leaves that a penalty is for from the others.

    Args:
      params: a pytree of arrays.
      where: which leaves, see `Where`.

    Returns:
      A pytree of `params`' structure with a `bool` a leaf, as `optax` takes for its masks.

    Raises:
      ValueError: if no leaf is selected.

    >>> import jax.numpy as jnp
    >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    >>> select(params)
    {'dense': {'bias': False, 'kernel': True}}
    """
    chosen = where if callable(where) else lambda path, leaf: re.search(where, path) is not None
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    mask = [bool(chosen(name, leaf)) for name, (_, leaf) in zip(names, paths, strict=True)]
    if not any(mask):
        raise ValueError(
            f"where must select at least one leaf of params, got none of {names}; pass a regular "
            "expression that is found in the path of each weight"
        )
    return jax.tree.unflatten(structure, mask)


def l2(params: Any, strength: Any, examples: Any = 1, where: Where = WEIGHTS) -> jax.Array:
    """`strength / (2 examples) sum w^2`, to be added to a mean loss.

    Gradient descent at rate `lr` then multiplies weights by `1 - lr strength / examples` before
    each step: weight decay, `optax.add_decayed_weights(strength / examples, select(params))` ahead
    of `optax.sgd`. With a rescaling of gradients in between, as in Adam, the two differ.

    Args:
      params: a pytree of real arrays.
      strength: lambda, at least 0, may be traced.
      examples: number of examples that the loss is the mean of, above 0, may be traced.
      where: which leaves, see `Where`; by default weights and not biases.

    Returns:
      A scalar.

    Raises:
      ValueError, TypeError: if a number is not as described, or no leaf is selected.

    Source: Krogh, Hertz (1992); Loshchilov, Hutter (2019) for the difference.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.asarray([3.0, -4.0]), "b": jnp.asarray([100.0])}
    >>> float(l2(params, 0.5, examples=10)), float(l1(params, 0.5, examples=10))
    (0.625, 0.17499999701976776)
    """
    return _penalty(params, strength, examples, where, jnp.square)


def l1(params: Any, strength: Any, examples: Any = 1, where: Where = WEIGHTS) -> jax.Array:
    """`strength / (2 examples) sum |w|`, to be added to a mean loss.

    The slope at 0 is taken as 0. Steps of gradient descent jump over 0, so that weights come near
    it without being it: count what is small, or use a proximal step.

    Args:
      params, strength, examples, where: as of `l2`.

    Returns:
      A scalar.

    Raises:
      ValueError, TypeError: as of `l2`.

    Source: Tibshirani (1996); the factor 1/2 is that of the course notes.
    """
    return _penalty(params, strength, examples, where, jnp.abs)


def _penalty(params, strength, examples, where, size):
    _validate.scalar("strength", strength, minimum=0.0)
    _validate.scalar("examples", examples, minimum=0.0, above=True)
    chosen = jax.tree.leaves(select(params, where))
    leaves = [leaf for leaf, taken in zip(jax.tree.leaves(params), chosen, strict=True) if taken]
    return strength / (2 * examples) * sum(jnp.sum(size(leaf)) for leaf in leaves)


def dropout(key: jax.Array | None, h: jax.Array, keep_prob: Any) -> jax.Array:
    """Keep each element with probability `keep_prob`, divided by it; set the others to zero.

    The expectation is that of `h`, so that nothing needs scaling when dropout is off.

    Args:
      key: PRNG key; `None` for a network in use, which changes nothing.
      h: any shape, floating point.
      keep_prob: above 0, at most 1, may be traced.

    Returns:
      An array like `h`.

    Raises:
      ValueError, TypeError: if `keep_prob` is not as described.

    Source: Srivastava et al. (2014), in the inverted form.

    >>> import jax, jax.numpy as jnp
    >>> dropout(jax.random.key(0), jnp.ones(6), 0.5).tolist()
    [0.0, 0.0, 2.0, 2.0, 0.0, 2.0]
    """
    check_keep_prob(keep_prob)
    if key is None:
        return h
    kept = jax.random.uniform(key, h.shape, jnp.float32) < keep_prob
    return jnp.where(kept, h / jnp.asarray(keep_prob, h.dtype), 0.0)


def check_keep_prob(keep_prob: Any) -> None:
    """Raise unless `keep_prob` is one number above 0 and at most 1, or traced."""
    _validate.scalar("keep_prob", keep_prob, minimum=0.0, above=True)
    if not _validate.is_traced(keep_prob) and keep_prob > 1:
        raise ValueError(
            f"keep_prob must be at most 1, got {keep_prob}; it is the share of units that stay"
        )


class EarlyStopping(NamedTuple):
    """The best parameters so far, and whether to go on.

    Attributes:
      params: those of the smallest error.
      error: the smallest error, infinite before the first.
      best: index of the evaluation that gave it, -1 before the first.
      evaluations: how many there were until it stopped.
      waited: evaluations since the best.
      stopped: whether `patience` evaluations have passed without a better one.
    """

    params: Any
    error: jax.Array
    best: jax.Array
    evaluations: jax.Array
    waited: jax.Array
    stopped: jax.Array


def early_stopping(params: Any) -> EarlyStopping:
    """The state before the first evaluation.

    Args:
      params: a pytree of arrays, returned as the best if no evaluation gives a number.
    """
    zero = jnp.zeros((), jnp.int32)
    error = jnp.full((), jnp.inf, float)
    return EarlyStopping(params, error, zero - 1, zero, zero, jnp.zeros((), bool))


def watch(
    state: EarlyStopping,
    params: Any,
    error: Any,
    patience: Any = None,
    min_delta: Any = 0.0,
) -> EarlyStopping:
    """Take in one more evaluation; after it has stopped nothing changes any more.

    Args:
      state: from `early_stopping` or an earlier call.
      params: of the same structure as the state's.
      error: on the dev set, one number; NaN is never better.
      patience: stop after so many evaluations in a row without a better one, at least 1, may be
        traced; `None` never stops and still keeps the best.
      min_delta: better means by more than this, at least 0, may be traced.

    Returns:
      The next state.

    Raises:
      ValueError, TypeError: if the structure or shapes differ or a number is not as described.

    Source: Prechelt (1998), "Early stopping - but when?".

    >>> import jax.numpy as jnp
    >>> state = early_stopping(jnp.zeros(()))
    >>> for step, error in enumerate([0.5, 0.3, 0.4, 0.35, 0.1]):
    ...     state = watch(state, jnp.asarray(float(step)), error, patience=2)
    >>> float(state.params), bool(state.stopped), int(state.evaluations)
    (1.0, True, 4)
    """
    given, kept = (jax.tree.map(jnp.shape, tree) for tree in (params, state.params))
    if given != kept:
        raise ValueError(
            "params must have the structure and shapes of those that early stopping began with, "
            f"{kept}, got {given}; begin again with early_stopping(params)"
        )
    if patience is not None:
        _validate.scalar("patience", patience, minimum=1.0)
    _validate.scalar("min_delta", min_delta, minimum=0.0)
    if jnp.shape(error) != ():
        raise ValueError(f"error must be one number, got shape {jnp.shape(error)}; use jax.vmap")
    error = jnp.asarray(error, state.error.dtype)
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
