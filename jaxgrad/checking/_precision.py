"""The widest precision in which a function can be evaluated, found by trying.

A derivative shows best in float64, but some functions do not accept it, and some cannot be traced.
"""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxgrad._numerics import float_eps
from jaxgrad.checking._arguments import Arguments
from jaxgrad.checking._programs import Programs, build_programs, precision, reuse, to_float64
from jaxgrad.checking._trace import UNTRACED, Facts, trace

# Whether the moved leaves, and whether the fixed arrays, are converted to float64.
PRECISIONS = ((True, True), (True, False), (False, False))


class Computation(NamedTuple):
    """A function and its arguments in one precision; `key` is that of the compile cache."""

    programs: Programs
    moved: list[Any]
    fixed: list[Any]
    wide: bool
    eps: float  # machine epsilon of the narrowest type that values pass through
    key: Any


def choose_precision(arguments: Arguments) -> tuple[Computation, Facts, bool, str]:
    """Choose the first of: traced or not, in float64 or as given, that the function allows.

    Returns it, facts about its trace, whether two traces, or two calls, agree, and the error that
    it raised in float64, or "".
    """
    errors: list[Exception] = []
    for traced in (True, False):
        for wide, wide_fixed in PRECISIONS:
            try:
                attempt = _attempt(arguments, traced, wide, wide_fixed)
            except Exception as error:
                errors.append(error)
                continue
            obstacle = "" if wide else f"{type(errors[-2]).__name__}: {first_line(errors[-2])}"
            return *attempt, obstacle
    # A traced call as the user would make it; if it cannot be traced, a plain call.
    error = errors[-1 if isinstance(errors[2], jax.errors.ConcretizationTypeError) else 2]
    raise ValueError(
        f"f raised {type(error).__name__} at the given arguments: {first_line(error)}"
    ) from error


def _attempt(arguments: Arguments, traced: bool, wide: bool, wide_fixed: bool):
    function, facts, key = arguments.function, UNTRACED, None
    with precision(wide):
        moved = [to_float64(v) if wide else v for v in arguments.moved]
        fixed = [to_float64(v) if wide_fixed else v for v in arguments.fixed]
        try:
            if traced:
                facts, again = (trace(function, moved, fixed) for _ in range(2))
                deterministic = facts.fingerprint == again.fingerprint
            else:
                pairs = zip(function(moved, fixed), function(moved, fixed), strict=False)
                deterministic = all(np.array_equal(a, b, equal_nan=True) for a, b in pairs)
        except jax.errors.UnexpectedTracerError:
            # The function stored an intermediate value of its first call for its second.
            facts, deterministic = UNTRACED, False
        build = functools.partial(build_programs, function, moved, fixed, wide=wide)
        if facts.fingerprint and deterministic:
            key = (function, facts.fingerprint, wide)
        # Nothing is known of a function that cannot be traced, so nothing is stored.
        programs = reuse(key, build) if key else build(compiled=False)
    eps = max(facts.eps, *(float_eps(value.dtype) for value in moved))
    return Computation(programs, moved, fixed, wide, eps, key), facts, deterministic


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0][:200]
