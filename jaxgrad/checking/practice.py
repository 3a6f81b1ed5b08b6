"""The course's advice on gradient checks as functions.

Check the terms of a loss one by one, so that none hides behind another, and check again after some
training, when parameters have left their special starting point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
import optax

from jaxgrad import _validate
from jaxgrad.checking.check import check_grads
from jaxgrad.checking.report import Report


def check_terms(f: Callable[..., Any], *args: Any, **options: Any) -> dict[str, Report]:
    """Check each term of a loss by itself.

    In a sum the gradient of a large term, such as a regulariser, hides errors in a small one.

    Args:
      f: returns a pytree of terms, for example `{"data": ..., "regulariser": ...}`.
      *args: its arguments.
      **options: of `check_grads`; not `has_aux`.

    Returns:
      A report for each leaf of the output, by its `jax.tree_util.keystr`.

    Raises:
      ValueError, TypeError: as of `check_grads`.

    Source: CS231n, "Gradient checks: don't let the regularization overwhelm the data".

    >>> import jax.numpy as jnp
    >>> def loss(w):
    ...     return {"data": jnp.sum(jnp.sin(w)), "regulariser": 1e6 * jnp.sum(w**2)}
    >>> {name: report.ok for name, report in check_terms(loss, jnp.ones(3)).items()}
    {"['data']": True, "['regulariser']": True}
    """
    if "has_aux" in options:
        raise TypeError("has_aux must not be given, got has_aux; let f return its terms alone")
    shape = jax.eval_shape(lambda: f(*args))
    paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(shape)[0]]
    return {
        jax.tree_util.keystr(path): check_grads(_Term(f, i), *args, **options)
        for i, path in enumerate(paths)
    }


class _Term:
    """One leaf of what a function returns; equal to another of the same function and leaf."""

    def __init__(self, f: Callable[..., Any], index: int):
        self.f, self.index = f, index

    def __call__(self, *args: Any) -> Any:
        return jax.tree.leaves(self.f(*args))[self.index]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Term) and (self.f, self.index) == (other.f, other.index)

    def __hash__(self) -> int:
        return hash((self.f, self.index))


def check_along_training(
    loss: Callable[..., Any],
    params: Any,
    batches: Iterable[tuple[Any, ...]],
    optimizer: optax.GradientTransformation,
    *,
    at: Iterable[int] = (0, 10),
    has_aux: bool = False,
    **options: Any,
) -> dict[int, Report]:
    """Check a gradient before training and again after some steps of an optimizer.

    Some errors show only once parameters have grown, and at the very start a network may sit in a
    corner that hides them.

    Args:
      loss: `loss(params, *batch)` returns a scalar.
      params: where training starts; a pytree of floating-point arrays.
      batches: yields one tuple of further arguments for each step, at least as many as the largest
        of `at` and one more.
      optimizer: any of optax.
      at: numbers of steps after which to check, on the batch that comes next.
      has_aux: whether `loss` returns a pair.
      **options: of `check_grads`.

    Returns:
      A report for each of `at`. Training goes on with gradients as they are, right or wrong.

    Raises:
      ValueError, TypeError: as of `check_grads`, or if the batches run out.

    Source: CS230, "Gradient checking implementation notes"; CS231n, "Kinks ... gradcheck during a
    characteristic mode of operation".

    >>> import jax.numpy as jnp, optax
    >>> def loss(w, x):
    ...     return jnp.mean((x @ w) ** 2)
    >>> x = jnp.eye(4)
    >>> found = check_along_training(loss, jnp.ones(4), [(x,)] * 11, optax.sgd(0.1))
    >>> {step: report.ok for step, report in found.items()}
    {0: True, 10: True}
    """
    wanted = sorted({_validate.integer("at", step, 0) for step in at})
    if not wanted:
        raise ValueError("at must not be empty, got no steps; give at least one")

    @jax.jit
    def step(params, state, *batch):
        gradient = jax.grad(loss, has_aux=has_aux)(params, *batch)
        gradient = gradient[0] if has_aux else gradient
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    reports = {}
    count = -1
    for count, batch in enumerate(batches):
        if count in wanted:
            for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
                if not np.all(np.isfinite(np.asarray(leaf))):
                    raise ValueError(
                        f"params must stay finite, got NaN or infinity at "
                        f"{jax.tree_util.keystr(path)} after {count} steps; lower the rate"
                    )
            reports[count] = check_grads(loss, params, *batch, has_aux=has_aux, **options)
        if count == wanted[-1]:
            return reports
        params, state = step(params, state, *batch)
    raise ValueError(
        f"batches must have at least {wanted[-1] + 1} entries to check after {wanted[-1]} steps, "
        f"got {count + 1}; repeat them, for example with itertools.cycle"
    )
