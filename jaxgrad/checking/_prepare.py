"""The first stage of a check: from a function and its arguments to a `Problem`."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgrad.checking._arguments import Arguments, sort_arguments
from jaxgrad.checking._cotangents import choose_cotangents
from jaxgrad.checking._precision import Computation, choose_precision
from jaxgrad.checking._trace import Facts
from jaxgrad.checking._verdict import Verdict
from jaxgrad.checking._widen import without_rounding

CHANGING = (
    Verdict.NONDETERMINISTIC,
    "f returned two values for the same arguments; hold its random key fixed and keep no state "
    "between calls",
)


@dataclass(frozen=True)
class Problem(Arguments):
    """A function at a point, ready to be differentiated.

    Autodiff differentiates `checked`, in float64 if the function allows it. Numeric derivatives are
    taken of `numeric`, without rounding to narrower types inside if that is possible. In higher
    orders `swap` holds other weights of the derivative, one for each leaf, and the index of the
    first weight among the fixed arrays.
    """

    checked: Computation
    numeric: Computation
    facts: Facts | None
    cotangents: list[np.ndarray]
    total: float  # sum of the sizes of the weighted outputs; rounding is relative to it
    batched: bool  # whether the function is evaluated under `jax.vmap`
    holomorphic: bool
    notes: tuple[str, ...] = ()
    rejection: tuple[Verdict, str] | None = None  # if the function cannot be checked at all
    order: int = 1
    nearby: bool = False  # whether the arguments are not those of the user, but close to them
    swap: tuple[list[np.ndarray], int] | None = None


def prepare(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    *,
    argnums: Any = 0,
    has_aux: bool = False,
    holomorphic: bool = False,
    seed: int = 0,
) -> Problem:
    """Prepare the check of `f` at `args`; see `check_grads` for the arguments.

    Raises `TypeError` or `ValueError` if nothing can be differentiated or if `f` raises.
    """
    arguments = sort_arguments(f, args, argnums, has_aux, holomorphic)
    checked, facts, deterministic, obstacle = choose_precision(arguments)
    cotangents, total, numeric, rejection, notes = [], 0.0, checked, CHANGING, []
    if deterministic:
        outputs, again = (
            [np.asarray(v) for v in checked.programs.outputs(checked.moved, checked.fixed)]
            for _ in range(2)
        )
        if all(map(functools.partial(_agree, eps=checked.eps), outputs, again)):
            rejection = None
            if any(v.size and not np.any(np.isfinite(v)) for v in outputs):
                rejection = (Verdict.NONFINITE, "f itself is not finite at these arguments")
        cotangents, total = choose_cotangents(outputs, holomorphic, seed)
        numeric = without_rounding(arguments.function, checked, outputs)
        if not numeric.wide:
            notes.append(f"float64 was not possible, so error bars are wide: {obstacle}")
        if facts is None:
            notes.append("f cannot be traced: it was called point by point")
    return Problem(
        **vars(arguments),
        checked=checked,
        numeric=numeric,
        facts=facts,
        cotangents=cotangents,
        total=total,
        batched=checked.programs.mapped,
        holomorphic=holomorphic,
        notes=tuple(notes),
        rejection=rejection,
    )


def _agree(a: np.ndarray, b: np.ndarray, eps: float) -> bool:
    """Whether two evaluations of an output agree; NaN equals NaN, and infinity equals itself."""
    size = np.max(np.abs(a), initial=0.0, where=np.isfinite(a))
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        # Parallel sums may be added in another order each time.
        return bool(np.all(same | (np.abs(a - b) <= 1e3 * eps * size)))
