"""Which operation, line and cause is told for gradients that are not finite.

Run `python -m benchmarks.nan_gradients` for a table with a line for each case. It fails if fewer
than 38 operations and lines or 36 causes of 40 are right, in proportion, or if anything is accused
in a function whose loss and gradient are finite, alone or beside a fault.
"""

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks.nan_gradients_clean import CLEAN
from benchmarks.nan_gradients_functions import CASES, CAUSES, Case
from jaxgrad.inspection import explain_non_finite

LEAST_PLACES, LEAST_CAUSES = 38 / 40, 36 / 40


class Result(NamedTuple):
    """Whether the first operation that is told is the right one."""

    operation: bool
    line: bool
    cause: bool
    text: str
    rewrite: str


def run(case: Case) -> Result:
    """Diagnose one case."""
    results = explain_non_finite(case.loss, *case.args)
    if not results:
        return Result(False, False, False, "nothing", "")
    first = results[0]
    if case.operation == "argument":
        # An argument has no line of code, but a path.
        right = first.parameter == f"args[{1 if len(case.args) > 1 else 0}]"
    else:
        right = f"nan_gradients_functions.py:{case.line}" in re.findall(r"\w+\.py:\d+", first.line)
    cause = first.cause.startswith(CAUSES[case.cause])
    # What "0 * inf" begins is told by the words that follow.
    cause = cause and (case.cause == "branch" or "branch" not in first.cause)
    return Result(first.operation == case.operation, right, cause, str(first), first.rewrite)


def table(cases: Sequence[Case]) -> list[Result]:
    """Print a line for each case, and return the results."""
    results = []
    for case in cases:
        result = run(case)
        marks = ["right" if ok else "WRONG" for ok in result[:3]]
        print(f"{case.source:32}{case.loss.__name__:45}", *marks, "|", result.text, flush=True)
        results.append(result)
    return results


def accusations(f: Callable[..., Any], args: Sequence[Any]) -> list[str]:
    """Return those in a function without faults, alone and beside a square root of 0."""

    def with_fault(arguments, *rest):
        x, y = arguments
        return f(x, *rest) + jnp.sqrt(y)

    alone = explain_non_finite(f, *args)
    beside = explain_non_finite(with_fault, (args[0], np.float32(0)), *args[1:])
    wrong = [r for r in beside if "with_fault" not in r.line]
    missed = [] if len(beside) > len(wrong) else [f"{f.__name__}: the fault beside it is missed"]
    return [*map(str, [*alone, *wrong]), *missed]


def main() -> None:
    """Print the table and the totals, and fail below the limits."""
    results = table(CASES)
    accused = [text for f, args in CLEAN for text in accusations(f, args)]
    print(*accused, sep="\n")
    places = sum(r.operation and r.line for r in results)
    causes = sum(r.cause for r in results)
    count = len(results)
    print(f"operation and line right in {places} of {count}, cause in {causes}")
    print(f"a rewrite that was tried in {sum(bool(r.rewrite) for r in results)}")
    print(f"{len(accused)} accusations in {len(CLEAN)} clean functions")
    if places < LEAST_PLACES * count or causes < LEAST_CAUSES * count or accused:
        sys.exit(1)


if __name__ == "__main__":
    main()
