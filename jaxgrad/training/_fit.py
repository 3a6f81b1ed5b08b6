"""A whole training run as one pure function."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from jaxgrad import _validate
from jaxgrad.training.regularization import EarlyStopping, early_stopping, watch


class Step(NamedTuple):
    """One training step, as a monitor sees it: what `loss` got and gave, and the updates."""

    params: Any
    state: Any
    batch: Any
    key: PRNGKeyArray
    loss: Float[Array, ""]
    gradient: Any
    updates: Any


class Fit(NamedTuple):
    """The result of a training run. There are `steps / every + 1` evaluations.

    Attributes:
      params, state: After the last step.
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
      data: A pytree of arrays `[examples, ...]`. A batch holds `batch_size` of their rows.
      key: Key that draws the order of the examples and the keys of `loss`.
      steps: Number of steps, a multiple of `every`, the number of steps between evaluations.
      state: What `loss` carries besides the parameters; see `jaxgrad.layers.init`.
      evaluate: `evaluate(params, state) -> (error, record)`, called before the first step and then
        once in `every` steps. Early stopping watches the error, one number such as the dev error.
        The record is a pytree of anything else that should be recorded.
      patience: Stop after this many evaluations in a row without a smaller error, may be traced.
        `None` trains to the end. In both cases `Fit.best` has the best parameters.
      monitor: `monitor(step)` of each `Step` returns a pytree that is recorded; see
        `jaxgrad.training.monitoring`.

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
    examples, steps, batch_size, every = _checked_sizes(data, steps, batch_size, every)
    data = jax.tree.map(jnp.asarray, data)
    _validate.key("key", key)
    _check_types(params, optimizer, loss=loss, evaluate=evaluate, monitor=monitor)
    _check_loss(loss, params, state, data, batch_size, key)
    _check_evaluate(evaluate, patience, params, state)

    optimizer = optax.with_extra_args_support(optimizer)
    key_order, key_loss = jax.random.split(key)
    # One permutation for each epoch, without the rows that fill no batch.
    per_epoch = examples // batch_size
    keys = jax.random.split(key_order, -(-steps // per_epoch))
    order = jax.lax.map(lambda k: jax.random.permutation(k, examples), keys)
    rows = order[:, : per_epoch * batch_size].reshape(-1, batch_size)[:steps]
    inputs = (rows, jax.random.split(key_loss, steps))

    def step(carry, inputs):
        params, state, slots = carry
        rows, key = inputs
        batch = jax.tree.map(lambda a: a[rows], data)
        differentiate = jax.value_and_grad(loss, has_aux=True)
        (value, new_state), gradient = differentiate(params, state, batch, key)
        # Line searches and Polyak steps need the loss and its function.
        extra = {"value": value, "grad": gradient}
        extra["value_fn"] = lambda params: loss(params, state, batch, key)[0]
        updates, slots = optimizer.update(gradient, slots, params, **extra)
        seen = Step(params, state, batch, key, value, gradient, updates)
        trace = None if monitor is None else monitor(seen)
        return (optax.apply_updates(params, updates), new_state, slots), (value, trace)

    # The state of the optimizer is called slots, to distinguish it from that of the layers.
    carry = (params, state, optimizer.init(params))
    if evaluate is not None:
        return _fit_and_evaluate(step, carry, inputs, evaluate, every, patience)
    (params, state, _), (losses, trace) = jax.lax.scan(step, carry, inputs)
    return Fit(params, state, None, losses, None, None, trace)


def _fit_and_evaluate(step, carry, inputs, evaluate, every, patience):
    """Alternate evaluations with chunks of `every` steps, and stop early."""

    def train(carry, chunk):
        return jax.lax.scan(step, carry, chunk)

    def skip(carry, chunk):
        # Skipped steps return arrays of the same shapes.
        outputs = jax.eval_shape(train, carry, chunk)[1]
        losses, trace = jax.tree.map(jnp.zeros_like, outputs)
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

    chunks = jax.tree.map(lambda a: a.reshape(-1, every, *a.shape[1:]), inputs)
    # Turn 0 gets the first chunk too, but does not use it.
    chunks = jax.tree.map(lambda a: jnp.concatenate([a[:1], a]), chunks)
    turns = (jnp.arange(len(chunks[0])), chunks)
    carry = (carry, early_stopping(carry[:2]))
    carry, (outputs, errors, records) = jax.lax.scan(train_and_evaluate, carry, turns)
    ((params, state, _), best) = carry
    # [chunks, every, ...] to [steps, ...].
    losses, trace = jax.tree.map(lambda a: a[1:].reshape(-1, *a.shape[2:]), outputs)
    return Fit(params, state, best, losses, errors, records, trace)


def _checked_sizes(data, steps, batch_size, every):
    """Return the number of examples, and the other three as integers."""
    _validate.tree("data", data, empty=True)
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        got = f"got leading axes {sorted(sizes)}; pass inputs and targets of the same examples"
        raise ValueError(f"data must be arrays with one leading axis, the examples, {got}")
    ((examples,),) = sizes
    steps = _validate.integer("steps", steps, 1)
    every = _validate.integer("every", every, 1)
    if steps % every:
        got = f"got {steps} and {every}; take {steps + every - steps % every}"
        raise ValueError(f"steps must be a multiple of every, {got}")
    batch_size = _validate.integer("batch_size", batch_size, 1)
    if batch_size > examples:
        got = f"got {batch_size}; pass a smaller number"
        raise ValueError(f"batch_size must be at most the {examples} examples of data, {got}")
    return examples, steps, batch_size, every


def _check_types(params, optimizer, **functions):
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        remedy = "pass for example optax.sgd(0.1)"
        raise TypeError(
            f"optimizer must be one of optax, got {_validate.show(optimizer)}; {remedy}"
        )
    for name, function in functions.items():
        if not callable(function) and (function is not None or name == "loss"):
            raise TypeError(
                f"{name} must be a function, got {_validate.show(function)}; see training.fit"
            )
    if not jax.tree.leaves(params):
        raise TypeError(f"params must be floating point, got {params!r}; pass a pytree of arrays")
    # Functions and whole numbers have no gradient.
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        dtype = getattr(leaf, "dtype", None) or np.result_type(type(leaf))
        if not jnp.issubdtype(dtype, jnp.floating):
            description = dtype if hasattr(leaf, "dtype") else repr(leaf)
            got = f"got {description} at {jax.tree_util.keystr(path)}"
            remedy = "leave out what is not trained and add it in loss"
            raise TypeError(f"params must be floating point, {got}; {remedy}")


def _check_evaluate(evaluate, patience, params, state):
    if patience is not None:
        _validate.scalar("patience", patience, minimum=1.0)
    if evaluate is not None:
        remedy = "return (error, ()) if there is nothing to record"
        out = jax.eval_shape(evaluate, params, state)
        _check_pair("evaluate", "one number and a record", out, remedy)
    elif patience is not None:
        got = f"got {patience} without evaluate; pass both or neither"
        raise ValueError(f"patience must come with evaluate, whose error it watches, {got}")


def _check_loss(loss, params, state, data, batch_size, key):
    # An abstract evaluation, by shapes and dtypes alone.
    batch = jax.eval_shape(lambda data: jax.tree.map(lambda a: a[:batch_size], data), data)
    out = jax.eval_shape(loss, params, state, batch, key)
    remedy = "return (loss, state), with an unchanged state if there is none"
    _check_pair("loss", "a scalar and the next state", out, remedy)
    # A scan carries the state, so its structure, shapes and dtypes may not change.
    before, after = (
        jax.tree.map(lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", part)
        for part in (state, out[1])
    )
    if before != after:
        got = f"got {after}; start from the state of jaxgrad.layers.init"
        raise ValueError(f"loss must return a state like the one it gets, {before}, {got}")


def _check_pair(name, parts, out, remedy):
    if not (isinstance(out, tuple) and len(out) == 2 and getattr(out[0], "shape", None) == ()):
        got = jax.tree.map(jnp.shape, out)
        raise TypeError(f"{name} must return a pair, {parts}, got {got}; {remedy}")
