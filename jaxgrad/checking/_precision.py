"""The widest precision in which a function can be evaluated, found by trying.

A derivative shows best in float64, but some functions do not accept it, and some cannot be traced.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad._numerics import float_eps
from jaxgrad.checking._arguments import Arguments, FlatFunction
from jaxgrad.checking._cache import reuse
from jaxgrad.checking._programs import Programs, build_programs, precision
from jaxgrad.checking._trace import Facts, trace
from jaxgrad.checking._widen import to_float64, widen

EPS64 = float(np.finfo(np.float64).eps)
PRECISIONS = ((True, True), (True, False), (False, False))
"""Whether the moved leaves, and whether the fixed arrays, are converted to float64."""


class Computation(NamedTuple):
    """A function and its arguments in one precision; `key` is that of the compile cache."""

    programs: Programs
    moved: list[Any]
    fixed: list[Any]
    wide: bool
    eps: float  # machine epsilon of the narrowest type that values pass through
    key: Any


def choose_precision(arguments: Arguments) -> tuple[Computation, Facts | None, bool, str]:
    """Choose the first of: traced or not, in float64 or as given, that the function allows.

    Returns:
      The function in that precision; facts about its trace, `None` if it cannot be traced; whether
      two traces, or two calls, agree; and the error that it raised in float64, or "".
    """
    function, errors = arguments.function, []
    for traced in (True, False):
        for wide, wide_fixed in PRECISIONS:
            with precision(wide):
                moved = [to_float64(v) if wide else v for v in arguments.moved]
                fixed = [to_float64(v) if wide_fixed else v for v in arguments.fixed]
                try:
                    facts, deterministic = _try(function, moved, fixed, traced)
                except jax.errors.UnexpectedTracerError:
                    # The function stored an intermediate value of its first call for its second.
                    facts, deterministic = None, False
                except Exception as error:
                    errors.append(error)
                    continue
                key = (function, facts.fingerprint, wide) if facts and deterministic else None
                build = functools.partial(build_programs, function, moved, fixed, wide=wide)
                # Nothing is known of a function that cannot be traced, so nothing is stored.
                programs = reuse(key, build) if key else build(compiled=False)
            eps = max(float_eps(v.dtype) for v in moved)
            eps = max(facts.eps, eps) if facts else eps
            # Of the two failures in float64, the first is the plainer one.
            obstacle = "" if wide else f"{type(errors[-2]).__name__}: {first_line(errors[-2])}"
            computation = Computation(programs, moved, fixed, wide, eps, key)
            return computation, facts, deterministic, obstacle
    # A traced call as the user would make it; if it cannot be traced, a plain call.
    error = errors[2]
    if isinstance(error, jax.errors.ConcretizationTypeError):
        error = errors[-1]
    raise ValueError(
        f"f raised {type(error).__name__} at the given arguments: {first_line(error)}"
    ) from error


def _try(function: FlatFunction, moved, fixed, traced: bool) -> tuple[Facts | None, bool]:
    """Trace or call twice; return facts about the trace, and whether both times agree."""
    if traced:
        facts, again = trace(function, moved, fixed), trace(function, moved, fixed)
        return facts, facts.fingerprint == again.fingerprint
    pairs = zip(function(moved, fixed), function(moved, fixed), strict=False)
    return None, all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def without_rounding(
    function: FlatFunction, checked: Computation, outputs: list[np.ndarray]
) -> Computation:
    """Return the function without rounding to narrower types inside, if it is still the same.

    `outputs` are those of the computation `checked`, which is returned otherwise.
    """
    if checked.eps <= EPS64 or checked.key is None:
        return checked

    def build():
        with precision(checked.wide):
            wide = widen(function, checked.moved, checked.fixed)
        return wide and build_programs(wide, moved, fixed, wide=True)

    with precision(True):
        moved, fixed = ([to_float64(v) for v in part] for part in (checked.moved, checked.fixed))
    programs = reuse(("without rounding", *checked.key), build)
    if programs is None or programs.mapped != checked.programs.mapped:
        return checked
    for wide, narrow in zip(programs.outputs(moved, fixed), outputs, strict=True):
        # Rounding may be meant, as by a large constant that swallows the rest.
        tolerance = checked.eps**0.5 * largest(narrow)
        if not np.allclose(wide, narrow, rtol=0, atol=tolerance, equal_nan=True):
            return checked
    return Computation(programs, moved, fixed, True, EPS64, None)


def largest(output: np.ndarray) -> float:
    """Return the largest finite absolute value."""
    return float(np.max(np.abs(output), initial=0.0, where=np.isfinite(output)))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0][:200]
