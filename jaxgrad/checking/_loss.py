"""Checks of a training loss: its terms one by one, and again after some training.

A large term, such as a regularizer, hides errors in a small one. At their special starting point,
parameters may hide an error that shows once they have moved.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax

from jaxgrad import _validate
from jaxgrad.checking._check import check_grads
from jaxgrad.checking._report import Report


@dataclass(frozen=True)
class _Term:
    """One output of a function; equal to the same output of the same function."""

    f: Callable[..., Any]
    index: int

    def __call__(self, *args: Any) -> Any:
        return jax.tree.leaves(self.f(*args))[self.index]


def check_terms(f: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Report]:
    """Check the gradient of each term of a loss by itself.

    `f` returns a pytree of terms. All options are those of `check_grads`, except for `has_aux`. The
    result has a report for each leaf of the output, by its `jax.tree_util.keystr`.

    Source: CS231n, "Gradient checks: don't let the regularization overwhelm the data".

    >>> import jax.numpy as jnp
    >>> def loss(w):
    ...     return {"data": jnp.sum(jnp.sin(w)), "regularizer": 1e6 * jnp.sum(w**2)}
    >>> {name: report.ok for name, report in check_terms(loss, jnp.ones(3)).items()}
    {"['data']": True, "['regularizer']": True}
    """
    if "has_aux" in options:
        raise TypeError("has_aux must not be given, got has_aux; let f return its terms alone")
    _validate.function("f", f)
    # Paths of the terms, without computing them.
    shapes, _ = jax.tree_util.tree_flatten_with_path(jax.eval_shape(lambda: f(*args)))
    return {
        jax.tree_util.keystr(path): check_grads(_Term(f, i), *args, **options)
        for i, (path, _) in enumerate(shapes)
    }


def check_along_training(
    loss: Callable[..., Any],
    params: Any,
    batches: Iterable[tuple[Any, ...]],
    optimizer: optax.GradientTransformation,
    *,
    steps: Iterable[int] = (0, 10),
    has_aux: bool = False,
    **options: Any,
) -> dict[int, Report]:
    """Check a gradient before training and again after some steps of an optimizer.

    Args:
      loss: `loss(params, *batch)` returns a scalar, or a pair with `has_aux`.
      params: starting point of the training.
      batches: yields one tuple of further arguments for each step, at least one more than the
        largest of `steps`.
      steps: numbers of steps after which to check, on the batch that comes next.
      **options: of `check_grads`.

    Returns:
      A report for each of `steps`. Training uses the gradients of `jax.grad`, right or wrong.

    Raises:
      ValueError, TypeError: as `check_grads`, or if batches run out or parameters are not finite.

    Source: CS230, "Gradient checking implementation notes"; CS231n, "Kinks ... gradcheck during a
    characteristic mode of operation".

    >>> import jax.numpy as jnp, optax
    >>> def loss(w, x):
    ...     return jnp.mean((x @ w) ** 2)
    >>> batches = [(jnp.eye(4),)] * 11
    >>> reports = check_along_training(loss, jnp.ones(4), batches, optax.sgd(0.1))
    >>> {step: report.ok for step, report in reports.items()}
    {0: True, 10: True}
    """
    _validate.function("loss", loss)
    _validate.tree("params", params)
    _validate.flag("has_aux", has_aux)
    _validate.attributes("optimizer", optimizer, ("init", "update"), "a function of optax")
    checked = set(_validate.integers("steps", steps, 0))
    if not isinstance(batches, Iterable):
        got = f"got {_validate.show(batches)}; pass a list of tuples"
        raise TypeError(f"batches must yield the arguments of each step, {got}")

    @jax.jit
    def update(params, state, *batch):
        gradient = jax.grad(loss, has_aux=has_aux)(params, *batch)
        gradient = gradient[0] if has_aux else gradient
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    # The optimizer works on whatever `jax.grad` gives: a wrong gradient leads elsewhere.
    state, last, count = optimizer.init(params), max(checked), -1
    reports = {}
    for count, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)):
            got = f"got {_validate.show(batch)}; write (x,) for a single one"
            raise TypeError(f"batches must yield tuples of arguments, {got}")
        if count in checked:
            for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
                if not np.all(np.isfinite(np.asarray(leaf))):
                    raise ValueError(
                        f"params must stay finite, got NaN or infinity at "
                        f"{jax.tree_util.keystr(path)} after {count} steps; lower the learning rate"
                    )
            reports[count] = check_grads(loss, params, *batch, has_aux=has_aux, **options)
        # The last batch is only checked, not trained on.
        if count == last:
            return reports
        params, state = update(params, state, *batch)
    raise ValueError(
        f"batches must have at least {last + 1} entries to check after {last} steps, "
        f"got {count + 1}; repeat them, for example with itertools.cycle"
    )
