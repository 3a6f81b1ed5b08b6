"""What optax lacks of the ways to let a learning rate fall."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxgrad import _validate


def inverse_time(rate: Any, decay: Any) -> Callable[[jax.Array], jax.Array]:
    """`rate / (1 + decay step)`: 1/t annealing, for any optimizer of optax.

    `optax` has the other usual ones: steps (`piecewise_constant_schedule`), `exponential_decay` and
    `cosine_decay_schedule`.

    Args:
      rate: at step 0, above 0, may be traced.
      decay: how fast it falls, at least 0, may be traced; after `1 / decay` steps it is half.

    Returns:
      A function of the number of steps so far.

    Raises:
      ValueError, TypeError: if a number is not as described.

    Source: Robbins, Monro (1951); CS231n, "Annealing the learning rate".

    >>> schedule = inverse_time(0.1, decay=0.01)
    >>> schedule(0), schedule(100)
    (0.1, 0.05)
    """
    _validate.scalar("rate", rate, minimum=0.0, above=True)
    _validate.scalar("decay", decay, minimum=0.0)
    return lambda step: rate / (1 + decay * step)
