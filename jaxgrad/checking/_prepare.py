"""The first stage of a check: from a function and its arguments to a `Problem`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxgrad._numerics import rms
from jaxgrad.checking._arguments import Arguments, sort_arguments
from jaxgrad.checking._precision import Computation, choose_precision, largest, without_rounding
from jaxgrad.checking._trace import Facts
from jaxgrad.checking._verdict import Verdict

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
    facts: Facts | None  # about the trace; None if the function cannot be traced
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
    outputs, cotangents, numeric, rejection, notes = [], [], checked, CHANGING, []
    if deterministic:
        outputs, again = (
            [np.asarray(v) for v in checked.programs.outputs(checked.moved, checked.fixed)]
            for _ in range(2)
        )
        cotangents = _cotangents(outputs, holomorphic, np.random.default_rng(seed))
        numeric = without_rounding(arguments.function, checked, outputs)
        rejection = _rejection(outputs, again, checked.eps)
        if not numeric.wide:
            notes.append(f"float64 was not possible, so error bars are wide: {obstacle}")
        if facts is None:
            notes.append("f cannot be traced: it was called point by point")
    pairs = zip(cotangents, outputs, strict=True)
    sizes = [np.abs(np.where(c == 0, 0, v) * np.asarray(c, complex)) for c, v in pairs]
    return Problem(
        **vars(arguments),
        checked=checked,
        numeric=numeric,
        facts=facts,
        cotangents=cotangents,
        total=float(sum(map(np.sum, sizes))),
        batched=checked.programs.mapped,
        holomorphic=holomorphic,
        notes=tuple(notes),
        rejection=rejection,
    )


def _cotangents(
    outputs: Sequence[np.ndarray], holomorphic: bool, generator: np.random.Generator
) -> list[np.ndarray]:
    """Return 1 for a scalar function, else normal weights such that all outputs count equally."""
    first = outputs[0]
    if len(outputs) == 1 and first.shape == ():
        if np.iscomplexobj(first) and not holomorphic:
            raise TypeError(
                "f must return a real number, got a complex one; pass holomorphic=True, or take "
                "its real part or size"
            )
        # With an angle, the real and the imaginary part of a derivative both count.
        angle = np.exp(1j * generator.uniform(0.3, 1.2)) if holomorphic else 1.0
        return [(np.ones(()) * angle).astype(first.dtype)]
    cotangents = []
    for output in outputs:
        draw = generator.standard_normal(output.shape)
        if np.iscomplexobj(output):
            draw = draw + 1j * generator.standard_normal(output.shape)
        size = rms(np.asarray(output, np.complex128).ravel()) or 1.0
        draw = draw / (size * np.sqrt(max(output.size, 1)))
        # An infinite entry has no weight.
        cotangents.append(np.where(np.isfinite(output), draw, 0).astype(output.dtype))
    return cotangents


def _rejection(
    outputs: Sequence[np.ndarray], again: Sequence[np.ndarray], eps: float
) -> tuple[Verdict, str] | None:
    """Return verdict and reason if the values alone show that no check is possible."""
    for a, b in zip(outputs, again, strict=True):
        with np.errstate(invalid="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            # Parallel sums may be added in another order each time.
            close = np.abs(a - b) <= 1e3 * eps * largest(a)
        if not np.all(same | close):
            return CHANGING
    if any(value.size and not np.any(np.isfinite(value)) for value in outputs):
        return Verdict.NONFINITE, "f itself is not finite at these arguments"
    return None
