"""Learning-rate schedules that optax does not have."""

from collections.abc import Callable
from typing import Any

from jaxgrad import _validate


def inverse_time(learning_rate: Any, decay: Any) -> Callable[[Any], Any]:
    """1/t annealing: the learning rate `learning_rate / (1 + decay * step)`.

    The schedule, a function of the step count, is for any optax optimizer. The learning rate is
    halved after `1 / decay` steps. `learning_rate` must be greater than 0 and `decay` at least 0,
    otherwise ValueError is raised. Both may be traced. optax has the other common schedules:
    `piecewise_constant_schedule`, `exponential_decay` and `cosine_decay_schedule`.

    Source: Robbins, Monro (1951); CS231n, "Annealing the learning rate".

    >>> schedule = inverse_time(0.1, decay=0.01)
    >>> schedule(0), schedule(100)
    (0.1, 0.05)
    """
    _validate.scalar("learning_rate", learning_rate, minimum=0.0, above=True)
    _validate.scalar("decay", decay, minimum=0.0)
    return lambda step: learning_rate / (1 + decay * step)
