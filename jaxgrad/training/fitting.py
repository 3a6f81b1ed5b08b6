"""A whole training run as one pure function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgrad import _validate, regularization


class Step(NamedTuple):
    """What a monitor sees of one step.

    Attributes:
      params, state: before the step.
      batch, key: what `loss` got.
      loss, gradient: what came of it.
      updates: what the optimizer adds to the parameters.
    """

    params: Any
    state: Any
    batch: Any
    key: jax.Array
    loss: jax.Array
    gradient: Any
    updates: Any


class Fit(NamedTuple):
    """What a training run gives; `E` is the number of evaluations, `steps / every + 1`.

    Attributes:
      params, state: after the last step that was taken.
      best: `jaxgrad.regularization.EarlyStopping`, whose `params` is the pair of parameters and
        state with the smallest error; `None` without `evaluate`.
      loss: of each step's batch before the step, `[steps]`; NaN for steps that were not taken since
        it had stopped.
      error: what `evaluate` watches, `[E]`; `None` without `evaluate`.
      record: what else it returns, arrays `[E, ...]`; `None` without `evaluate`.
      trace: what `monitor` returns, arrays `[steps, ...]`; zeros for steps that were not taken;
        `None` without `monitor`.
    """

    params: Any
    state: Any
    best: Any
    loss: jax.Array
    error: Any
    record: Any
    trace: Any


def fit(
    loss: Callable[[Any, Any, Any, jax.Array], tuple[jax.Array, Any]],
    params: Any,
    optimizer: optax.GradientTransformation,
    data: Any,
    key: jax.Array,
    *,
    steps: int,
    batch_size: int,
    state: Any = (),
    evaluate: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    every: int = 1,
    patience: Any = None,
    monitor: Callable[[Step], Any] | None = None,
) -> Fit:
    """Train by an optax optimizer, in one scan.

    Made to be called in a function of your own that is jitted, and mapped by `jax.vmap` over what
    you search: learning rates and other numbers of the optimizer, penalties, keys, initial
    parameters, data. All of these may be traced, so that a search compiles once.

    An epoch sees every example once, in a new order each time; examples that do not fill a last
    batch wait for another epoch. A run that goes to NaN or infinity goes on to its end with that.

    Args:
      loss: `(params, state, batch, key) -> (scalar, state)`; the key is another for each step.
      params: a pytree of floating-point arrays, where training starts.
      optimizer: any of optax; it gets the loss, too, as L-BFGS and Polyak steps want it.
      data: a pytree of arrays `[examples, ...]`; a batch is some of their rows.
      key: PRNG key of the order of examples and of `loss`.
      steps: number of steps, a multiple of `every`.
      batch_size: examples in a batch, at most all.
      state: what `loss` carries from step to step beside the parameters, see
        `jaxgrad.layers.init_state`.
      evaluate: `(params, state) -> (error, record)`, called before the first step and after each
        `every`: one number for early stopping to watch, such as the dev error, and a pytree of
        whatever else is to be kept.
      every: steps between evaluations.
      patience: stop after so many evaluations in a row without a smaller error, may be traced;
        `None` goes on to the end. Either way the best parameters are returned beside the last.
      monitor: from a `Step` to a pytree of what is to be kept of each, such as norms; see
        `jaxgrad.training.monitoring`.

    Returns:
      `Fit`.

    Raises:
      ValueError, TypeError: if an argument is not as described, before anything is compiled.

    >>> import jax, jax.numpy as jnp, optax
    >>> x = jax.random.normal(jax.random.key(0), (64, 3))
    >>> data = {"x": x, "y": x @ jnp.asarray([1.0, -2.0, 0.5])}
    >>> def loss(w, state, batch, key):
    ...     return jnp.mean((batch["x"] @ w - batch["y"]) ** 2), state
    >>> def run(rate):
    ...     optimizer = optax.sgd(rate)
    ...     return fit(
    ...         loss, jnp.zeros(3), optimizer, data, jax.random.key(1), steps=50, batch_size=16
    ...     )
    >>> jax.vmap(run)(jnp.asarray([1e-3, 0.1])).params.round(2).tolist()[1]
    [1.0, -2.0, 0.5]
    """
    steps = _validate.integer("steps", steps, 1)
    every = _validate.integer("every", every, 1)
    if steps % every:
        raise ValueError(
            f"steps must be a multiple of every, got {steps} and {every}; take "
            f"{steps + every - steps % every}"
        )
    examples = _examples(data)
    data = jax.tree.map(jnp.asarray, data)
    batch_size = _validate.integer("batch_size", batch_size, 1)
    if batch_size > examples:
        raise ValueError(
            f"batch_size must be at most the {examples} examples of data, got {batch_size}; "
            "pass a smaller number"
        )
    if patience is not None:
        _validate.scalar("patience", patience, minimum=1.0)
        if evaluate is None:
            raise ValueError(
                "patience must come with evaluate, whose error it watches, got no evaluate"
            )
    _validate.key("key", key)
    _check_optimizer(optimizer)
    _check_params(params)
    _check_callables(loss=loss, evaluate=evaluate, monitor=monitor)
    _check_loss(loss, params, state, data, batch_size, key)
    if evaluate is not None:
        _check_evaluate(evaluate, params, state)

    optimizer = optax.with_extra_args_support(optimizer)
    key_order, key_loss = jax.random.split(key)
    rows = _batches(key_order, examples, batch_size, steps).reshape(-1, every, batch_size)
    step_keys = jax.random.split(key_loss, steps)
    step_keys = step_keys.reshape(-1, every, *step_keys.shape[1:])

    def step(carry, inputs):
        params, before, slots = carry
        chosen, key_step = inputs
        batch = jax.tree.map(lambda a: a[chosen], data)
        (value, state), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, before, batch, key_step
        )
        updates, slots = optimizer.update(
            gradient,
            slots,
            params,
            value=value,
            grad=gradient,
            value_fn=lambda params: loss(params, before, batch, key_step)[0],
        )
        seen = None
        if monitor is not None:
            seen = monitor(Step(params, before, batch, key_step, value, gradient, updates))
        return (optax.apply_updates(params, updates), state, slots), (value, seen)

    def steps_of_one_evaluation(carry, chunk):
        return jax.lax.scan(step, carry, chunk)

    carry = (params, state, optimizer.init(params))
    chunks = (rows, step_keys)
    if evaluate is None:
        (params, state, _), kept = jax.lax.scan(steps_of_one_evaluation, carry, chunks)
        losses, trace = jax.tree.map(_joined, kept)
        return Fit(params, state, None, losses, None, None, trace)

    kinds = jax.eval_shape(steps_of_one_evaluation, carry, jax.tree.map(lambda a: a[0], chunks))[1]

    def skipped(carry, chunk):
        losses, trace = jax.tree.map(lambda kind: jnp.zeros(kind.shape, kind.dtype), kinds)
        return carry, (losses + jnp.nan, trace)

    def turn(carry, inputs):
        trained, best = carry
        index, chunk = inputs

        def go_on(trained, chunk):
            if patience is None:
                return steps_of_one_evaluation(trained, chunk)
            return jax.lax.cond(best.stopped, skipped, steps_of_one_evaluation, trained, chunk)

        # The first turn only evaluates, so that `evaluate` is compiled once.
        trained, kept = jax.lax.cond(index == 0, skipped, go_on, trained, chunk)
        error, record = evaluate(*trained[:2])
        best = regularization.watch(best, trained[:2], error, patience)
        return (trained, best), (kept, jnp.asarray(error), record)

    padded = jax.tree.map(lambda a: jnp.concatenate([a[:1], a]), chunks)
    best = regularization.early_stopping((params, state))
    ((params, state, _), best), (kept, errors, record) = jax.lax.scan(
        turn, (carry, best), (jnp.arange(len(rows) + 1), padded)
    )
    losses, trace = jax.tree.map(lambda a: _joined(a[1:]), kept)
    return Fit(params, state, best, losses, errors, record, trace)


def _joined(chunks):
    """`[evaluations, steps of each, ...]` to `[steps, ...]`."""
    return chunks.reshape(-1, *chunks.shape[2:])


def _batches(key, examples, batch_size, steps):
    """Rows of each step's batch, `[steps, batch_size]`."""
    per_epoch = examples // batch_size
    keys = jax.random.split(key, -(-steps // per_epoch))
    order = jax.lax.map(lambda k: jax.random.permutation(k, examples), keys)
    return order[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]


def _examples(data):
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            "data must be arrays with one leading axis, the examples, got leading axes "
            f"{sorted(sizes)}; give inputs and targets of the same examples"
        )
    ((examples,),) = sizes
    return examples


def _check_optimizer(optimizer):
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"optimizer must be one of optax, got {optimizer!r}; pass optax.sgd(0.1), for example"
        )


def _check_callables(**functions):
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "loss"):
            raise TypeError(
                f"{name} must be a function, got {function!r}; see jaxgrad.training.fit"
            )


def _check_params(params):
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        dtype = getattr(leaf, "dtype", None) or np.result_type(type(leaf))
        if not jnp.issubdtype(dtype, jnp.floating):
            what = dtype if hasattr(leaf, "dtype") else repr(leaf)
            raise TypeError(
                f"params must be floating point, got {what} at {jax.tree_util.keystr(path)}; keep "
                "what is not trained out of them, and let loss put it back"
            )


def _check_evaluate(evaluate, params, state):
    out = jax.eval_shape(evaluate, params, state)
    if not (isinstance(out, tuple) and len(out) == 2 and getattr(out[0], "shape", None) == ()):
        raise TypeError(
            "evaluate must return a pair, one number and what else to keep, got "
            f"{jax.tree.map(jnp.shape, out)}; return (error, ()) if there is nothing else"
        )


def _check_loss(loss, params, state, data, batch_size, key):
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((batch_size, *jnp.shape(a)[1:]), jnp.result_type(a)), data
    )
    out = jax.eval_shape(loss, params, state, batch, key)
    if not (isinstance(out, tuple) and len(out) == 2 and getattr(out[0], "shape", None) == ()):
        raise TypeError(
            "loss must return a pair, a scalar and the next state, got "
            f"{jax.tree.map(jnp.shape, out)}; return (loss, state), with state as it came if there "
            "is none"
        )
    before, after = (jax.tree.map(_kind, part) for part in (state, out[1]))
    if before != after:
        raise ValueError(
            f"loss must return a state like the one it gets, {before}, got {after}; start from "
            "jaxgrad.layers.init_state"
        )


def _kind(leaf):
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
