"""A whole training run as one pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxgrad import _validate
from jaxgrad.training._early_stopping import EarlyStopping, early_stopping, watch


class Step(NamedTuple):
    """One training step, as a monitor sees it."""

    params: Any  # before the step
    state: Any  # before the step
    batch: Any  # the batch and the key that `loss` was called with
    key: PRNGKeyArray
    loss: Float[Array, ""]
    gradient: Any
    updates: Any  # what the optimizer adds to the parameters


class Fit(NamedTuple):
    """The result of a training run. There are `steps / every + 1` evaluations.

    Attributes:
      params: Parameters after the last step.
      state: State after the last step.
      best: A `jaxgrad.training.regularization.EarlyStopping`, whose `params` is the pair of
        parameters and state with the smallest error.
      loss: Loss of each step's batch before the step. NaN for steps after an early stop.
      error: Error of each evaluation. Without `evaluate` it is `None`, as are `best` and `record`.
      record: The records of all evaluations, arrays `[evaluations, ...]`.
      trace: The results of `monitor`, arrays `[steps, ...]`, zeros for steps after an early stop;
        `None` without `monitor`.
    """

    params: Any
    state: Any
    best: EarlyStopping | None
    loss: Float[Array, " steps"]
    error: Float[Array, " evaluations"] | None
    record: Any
    trace: Any


def fit(
    loss: Callable[[Any, Any, Any, Any], tuple[Any, Any]],
    params: PyTree,
    optimizer: optax.GradientTransformation,
    data: PyTree,
    *,
    key: PRNGKeyArray,
    steps: int,
    batch_size: int,
    state: Any = (),
    evaluate: Callable[[Any, Any], tuple[Any, Any]] | None = None,
    every: int = 1,
    patience: Any = None,
    monitor: Callable[[Step], Any] | None = None,
) -> Fit:
    """Train with an optax optimizer, in one `jax.lax.scan`.

    Call it within a function of your own that is jitted, and mapped by `jax.vmap` over the
    quantities that you search: learning rates and other numbers of the optimizer, penalties, keys,
    initial parameters, data. All of them may be traced, so that a search compiles once.

    Each epoch visits the examples in a new random order. Examples that do not fill a last batch
    are left out of that epoch. A run whose loss becomes NaN or infinite continues to its end.

    Args:
      loss: `loss(params, state, batch, key) -> (scalar, state)`. Each step gets another key.
      params: Initial parameters, a pytree of floating-point arrays.
      optimizer: Any optax optimizer, including those that need the loss, such as L-BFGS.
      data: A pytree of arrays `[examples, ...]`. A batch holds some of their rows.
      key: Key that draws the order of the examples and the keys of `loss`.
      steps: Number of steps, a multiple of `every`.
      batch_size: Number of examples in a batch.
      state: What `loss` carries besides the parameters; see `jaxgrad.layers.init`.
      evaluate: `evaluate(params, state) -> (error, record)`, called before the first step and then
        once in `every` steps. The error is one number, such as the dev error, that early stopping
        watches. The record is a pytree of anything else that should be recorded.
      every: Number of steps between evaluations.
      patience: Stop after this many evaluations in a row without a smaller error, may be traced.
        `None` trains to the end. In both cases `Fit.best` has the best parameters.
      monitor: Called with each `Step`; returns a pytree that is recorded, such as norms. See
        `jaxgrad.training.monitoring`.

    Raises:
      ValueError, TypeError: If an argument is out of range or has another structure, before
        anything is compiled.

    >>> import jax, jax.numpy as jnp, optax
    >>> x = jax.random.normal(jax.random.key(0), (64, 3))
    >>> data = {"x": x, "y": x @ jnp.asarray([1.0, -2.0, 0.5])}
    >>> def loss(w, state, batch, key):
    ...     return jnp.mean((batch["x"] @ w - batch["y"]) ** 2), state
    >>> def run(learning_rate):
    ...     optimizer, key = optax.sgd(learning_rate), jax.random.key(1)
    ...     return fit(loss, jnp.zeros(3), optimizer, data, key=key, steps=50, batch_size=16)
    >>> jax.vmap(run)(jnp.asarray([1e-3, 0.1])).params.round(2).tolist()[1]
    [1.0, -2.0, 0.5]
    """
    steps, every = _checked_steps(steps, every)
    examples = _examples(data)
    batch_size = _checked_batch_size(batch_size, examples)
    data = jax.tree.map(jnp.asarray, data)
    _check_patience(patience, evaluate)
    _validate.key("key", key)
    _check_optimizer(optimizer)
    _check_params(params)
    _check_callables(loss=loss, evaluate=evaluate, monitor=monitor)
    _check_loss(loss, params, state, data, batch_size, key)
    if evaluate is not None:
        _check_evaluate(evaluate, params, state)

    optimizer = optax.with_extra_args_support(optimizer)
    key_order, key_loss = jax.random.split(key)
    rows = _batches(key_order, examples, batch_size, steps)
    # One chunk of steps for each evaluation but the first: [chunks, every, ...].
    chunks = jax.tree.map(
        lambda a: a.reshape(-1, every, *a.shape[1:]), (rows, jax.random.split(key_loss, steps))
    )
    step = _step_function(loss, optimizer, data, monitor)

    def train(carry, chunk):
        return jax.lax.scan(step, carry, chunk)

    # The state of the optimizer is called slots, to distinguish it from that of the layers.
    carry = (params, state, optimizer.init(params))
    if evaluate is not None:
        return _fit_and_evaluate(train, carry, chunks, evaluate, patience)
    (params, state, _), outputs = jax.lax.scan(train, carry, chunks)
    losses, trace = jax.tree.map(_joined, outputs)
    return Fit(params, state, None, losses, None, None, trace)


def _step_function(loss, optimizer, data, monitor):
    """Return one training step, `(carry, (rows, key)) -> (carry, (loss, trace))`."""

    def step(carry, inputs):
        params, state, slots = carry
        rows, key = inputs
        batch = jax.tree.map(lambda a: a[rows], data)
        (value, new_state), gradient = jax.value_and_grad(loss, has_aux=True)(
            params, state, batch, key
        )
        # Line searches and Polyak steps need the loss and its function.
        updates, slots = optimizer.update(
            gradient,
            slots,
            params,
            value=value,
            grad=gradient,
            value_fn=lambda params: loss(params, state, batch, key)[0],
        )
        trace = None
        if monitor is not None:
            trace = monitor(Step(params, state, batch, key, value, gradient, updates))
        return (optax.apply_updates(params, updates), new_state, slots), (value, trace)

    return step


def _fit_and_evaluate(train, carry, chunks, evaluate, patience):
    """Alternate evaluations with chunks of steps, and stop early."""
    # Skipped steps return arrays of the same shapes.
    first_chunk = jax.tree.map(lambda a: a[0], chunks)
    outputs_like = jax.eval_shape(train, carry, first_chunk)[1]

    def skip(carry, chunk):
        losses, trace = jax.tree.map(lambda out: jnp.zeros(out.shape, out.dtype), outputs_like)
        return carry, (losses + jnp.nan, trace)

    def train_and_evaluate(carry, inputs):
        trained, best = carry
        index, chunk = inputs

        def unless_stopped(trained, chunk):
            if patience is None:
                return train(trained, chunk)
            return jax.lax.cond(best.stopped, skip, train, trained, chunk)

        # Turn 0 only evaluates. Inside the scan, `evaluate` is compiled once.
        trained, outputs = jax.lax.cond(index == 0, skip, unless_stopped, trained, chunk)
        # The pair of parameters and state, without the optimizer's.
        error, record = evaluate(*trained[:2])
        best = watch(best, trained[:2], error, patience=patience)
        return (trained, best), (outputs, jnp.asarray(error), record)

    # Turn 0 gets the first chunk too, but does not use it.
    padded = jax.tree.map(lambda a: jnp.concatenate([a[:1], a]), chunks)
    turns = jnp.arange(len(padded[0]))
    best = early_stopping(carry[:2])
    ((params, state, _), best), (outputs, errors, records) = jax.lax.scan(
        train_and_evaluate, (carry, best), (turns, padded)
    )
    losses, trace = jax.tree.map(lambda a: _joined(a[1:]), outputs)
    return Fit(params, state, best, losses, errors, records, trace)


def _joined(chunks):
    """`[chunks, steps of each, ...]` to `[steps, ...]`."""
    return chunks.reshape(-1, *chunks.shape[2:])


def _batches(key, examples, batch_size, steps):
    """Rows of each step's batch, `[steps, batch_size]`."""
    # One permutation for each epoch, without the rows that fill no batch.
    per_epoch = examples // batch_size
    keys = jax.random.split(key, -(-steps // per_epoch))
    order = jax.lax.map(lambda k: jax.random.permutation(k, examples), keys)
    return order[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]


def _examples(data):
    # The leading axes of all arrays, which must be one.
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            "data must be arrays with one leading axis, the examples, got leading axes "
            f"{sorted(sizes)}; pass inputs and targets of the same examples"
        )
    ((examples,),) = sizes
    return examples


def _checked_steps(steps, every):
    steps = _validate.integer("steps", steps, 1)
    every = _validate.integer("every", every, 1)
    if steps % every:
        raise ValueError(
            f"steps must be a multiple of every, got {steps} and {every}; take "
            f"{steps + every - steps % every}"
        )
    return steps, every


def _checked_batch_size(batch_size, examples):
    batch_size = _validate.integer("batch_size", batch_size, 1)
    if batch_size > examples:
        raise ValueError(
            f"batch_size must be at most the {examples} examples of data, got {batch_size}; "
            "pass a smaller number"
        )
    return batch_size


def _check_patience(patience, evaluate):
    if patience is None:
        return
    _validate.scalar("patience", patience, minimum=1.0)
    if evaluate is None:
        raise ValueError(
            f"patience must come with evaluate, whose error it watches, got {patience} without "
            "evaluate; pass both or neither"
        )


def _check_optimizer(optimizer):
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise TypeError(
            f"optimizer must be one of optax, got {optimizer!r}; pass for example optax.sgd(0.1)"
        )


def _check_callables(**functions):
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "loss"):
            raise TypeError(
                f"{name} must be a function, got {function!r}; see jaxgrad.training.fit"
            )


def _check_params(params):
    # Functions and whole numbers have no gradient.
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        dtype = getattr(leaf, "dtype", None) or np.result_type(type(leaf))
        if not jnp.issubdtype(dtype, jnp.floating):
            description = dtype if hasattr(leaf, "dtype") else repr(leaf)
            raise TypeError(
                f"params must be floating point, got {description} at "
                f"{jax.tree_util.keystr(path)}; leave out what is not trained and add it in loss"
            )


def _check_evaluate(evaluate, params, state):
    out = jax.eval_shape(evaluate, params, state)
    if not _is_scalar_pair(out):
        raise TypeError(
            "evaluate must return a pair, one number and a record, got "
            f"{jax.tree.map(jnp.shape, out)}; return (error, ()) if there is nothing to record"
        )


def _check_loss(loss, params, state, data, batch_size, key):
    # An abstract evaluation, by shapes and dtypes alone.
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((batch_size, *jnp.shape(a)[1:]), jnp.result_type(a)), data
    )
    out = jax.eval_shape(loss, params, state, batch, key)
    if not _is_scalar_pair(out):
        raise TypeError(
            "loss must return a pair, a scalar and the next state, got "
            f"{jax.tree.map(jnp.shape, out)}; return (loss, state), with an unchanged state if "
            "there is none"
        )
    # A scan carries the state, so its structure, shapes and dtypes may not change.
    before, after = (jax.tree.map(_describe, part) for part in (state, out[1]))
    if before != after:
        raise ValueError(
            f"loss must return a state like the one it gets, {before}, got {after}; start from "
            "the state of jaxgrad.layers.init"
        )


def _is_scalar_pair(out):
    return isinstance(out, tuple) and len(out) == 2 and getattr(out[0], "shape", None) == ()


def _describe(leaf):
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
