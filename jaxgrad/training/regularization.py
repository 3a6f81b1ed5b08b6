"""Regularization: penalties on the weights, dropout and early stopping.

`jaxgrad.training.augmentation` has the random changes of images.
"""

import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxgrad import _validate, layers

dropout = layers.drop_units
Scalar = Float[Array, ""]

Where = str | Callable[[str, Any], bool]
"""Selects leaves: a regular expression searched in a leaf's path, or a function of path and leaf.

A path is that of `jax.tree_util.keystr` with `simple=True, separator="/"`, such as `first/kernel`.
"""

WEIGHTS = r"(^|/)(kernel|weights?|[wW])_?\d*$"
"""Weights of jaxgrad, flax (`kernel`), equinox (`weight`) and haiku (`w`), but no biases."""


def select(params: Any, where: Where = WEIGHTS) -> Any:
    """Mark the leaves that a penalty applies to, at least one, in a mask that optax takes as well.

    >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    >>> select(params)
    {'dense': {'bias': False, 'kernel': True}}
    """
    _validate.tree("params", params)
    if not callable(where):
        _validate.pattern("where", where)
    selects = where if callable(where) else lambda path, leaf: re.search(where, path) is not None
    leaves = leaf_paths(params)
    mask = [bool(selects(path, leaf)) for path, leaf in leaves]
    if not any(mask):
        got = f"got none of {[path for path, _ in leaves]}"
        remedy = "pass a regular expression that matches each weight"
        raise ValueError(f"where must select at least one leaf of params, {got}; {remedy}")
    return jax.tree.unflatten(jax.tree.structure(params), mask)


def l2(params: Any, strength: Any, *, examples: Any = 1, where: Where = WEIGHTS) -> Scalar:
    """L2 penalty `strength / (2 * examples) * sum(w**2)`, to be added to a mean loss.

    With this penalty a step of gradient descent multiplies the weights by
    `1 - learning_rate * strength / examples` before it adds the update of the loss. That is weight
    decay: `optax.add_decayed_weights(strength / examples, select(params))` before `optax.sgd`.
    The two differ for optimizers that rescale the gradient, such as Adam.

    Args:
      params: A pytree of real arrays, whose weights are penalized, or the leaves chosen by `where`.
      strength: The coefficient lambda, at least 0, may be traced.
      examples: Number of examples that the loss averages over, greater than 0, may be traced.

    Source: Krogh, Hertz (1992); Loshchilov, Hutter (2019) for the difference from weight decay.

    >>> params = {"w": jnp.asarray([3.0, -4.0]), "b": jnp.asarray([100.0])}
    >>> float(l2(params, 0.5, examples=10)), float(l1(params, 0.5, examples=10))
    (0.625, 0.17499999701976776)
    """
    return _penalty(params, strength, examples, where, jnp.square)


def l1(params: Any, strength: Any, *, examples: Any = 1, where: Where = WEIGHTS) -> Scalar:
    """L1 penalty `strength / (2 * examples) * sum(|w|)`, to be added to a mean loss.

    The arguments are those of `l2`. The derivative at 0 is taken to be 0. Gradient descent rarely
    lands on 0, so that weights become small rather than exactly 0. To count zeros, use a threshold.

    Source: Tibshirani (1996). The factor 1/2 is that of the course notes.
    """
    return _penalty(params, strength, examples, where, jnp.abs)


def _penalty(params, strength, examples, where, size):
    _validate.scalar("strength", strength, minimum=0.0)
    _validate.scalar("examples", examples, minimum=0.0, above=True)
    # The mask is made of Python booleans, so this selection costs nothing under jit.
    mask = jax.tree.leaves(select(params, where))
    pairs = zip(jax.tree.leaves(params), mask, strict=True)
    total = sum(jnp.sum(size(leaf)) for leaf, selected in pairs if selected)
    return strength / (2 * examples) * total


def leaf_paths(tree: Any) -> list[tuple[str, Any]]:
    """Return the path and the value of each leaf."""
    # Paths of dictionaries, tuples and attributes are written alike.
    text = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return [(text(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


class EarlyStopping(NamedTuple):
    """The parameters with the smallest error so far, and whether training should stop.

    `error` is that error, and `best` the index of its evaluation: infinity and -1 before the first.
    `evaluations` counts those until training stopped, `waited` those since the best one.
    """

    params: Any
    error: Scalar
    best: Int[Array, ""]
    evaluations: Int[Array, ""]
    waited: Int[Array, ""]
    stopped: Bool[Array, ""]


def early_stopping(params: Any) -> EarlyStopping:
    """Return the state before the first evaluation, with `params` as the best parameters so far."""
    _validate.tree("params", params)
    zero, error = jnp.zeros((), jnp.int32), jnp.full((), jnp.inf, float)
    return EarlyStopping(params, error, zero - 1, zero, zero, jnp.zeros((), bool))


def watch(
    state: EarlyStopping, params: Any, error: Any, *, patience: Any = None, min_delta: Any = 0.0
) -> EarlyStopping:
    """Update early stopping with one evaluation. Once it has stopped, nothing changes.

    Args:
      state: From `early_stopping` or an earlier call.
      params: The parameters that were evaluated, with the structure and shapes of `state.params`.
      error: Their error on the dev set, one number. NaN never counts as an improvement.
      patience: Stop after this many evaluations in a row without an improvement, at least 1.
        `None` never stops but still selects the best parameters. May be traced.
      min_delta: An error improves on the best one if it is smaller by more than this, at least 0.
        May be traced.

    Source: Prechelt (1998), "Early stopping - but when?".

    >>> state = early_stopping(jnp.zeros(()))
    >>> for step, error in enumerate([0.5, 0.3, 0.4, 0.35, 0.1]):
    ...     state = watch(state, jnp.asarray(float(step)), error, patience=2)
    >>> float(state.params), bool(state.stopped), int(state.evaluations)
    (1.0, True, 4)
    """
    _validate.instance("state", state, EarlyStopping, "early_stopping")
    _validate.tree("params", params)
    # A scan carries the state, whose structure may not change.
    shapes, expected = (jax.tree.map(jnp.shape, tree) for tree in (params, state.params))
    if shapes != expected:
        rule = f"have the structure and shapes that early stopping began with, {expected}"
        raise ValueError(f"params must {rule}, got {shapes}; call early_stopping(params) again")
    if patience is not None:
        _validate.scalar("patience", patience, minimum=1.0)
    _validate.scalar("min_delta", min_delta, minimum=0.0)
    error = _validate.real("error", error, 0).astype(state.error.dtype)
    # A comparison with NaN is false, so that NaN never improves.
    better = ~state.stopped & (error < state.error - min_delta)
    # Once stopped, nothing is counted any more.
    one = (~state.stopped).astype(jnp.int32)
    waited = jnp.where(better, 0, state.waited + one)
    stopped = state.stopped if patience is None else state.stopped | (waited >= patience)
    new, old = (params, error, state.evaluations), (state.params, state.error, state.best)
    params, error, best = jax.tree.map(lambda new, old: jnp.where(better, new, old), new, old)
    return EarlyStopping(params, error, best, state.evaluations + one, waited, stopped)
