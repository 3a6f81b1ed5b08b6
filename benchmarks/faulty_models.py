"""Whether an x-ray names the fault of a model, and whether it accuses healthy ones.

Run `python -m benchmarks.faulty_models`. It prints the first line of each summary, and in front of
it whether it is right: the first fault of a model with one is on the right line of code and in the
right block, and a healthy model has none.
"""

from __future__ import annotations

import argparse
import linecache
import re

import jax

import jaxgrad
from benchmarks.faulty_models_models import FAULTS, HEALTHY, Case


def first_fault(trace) -> tuple[str, str, int | None]:
    """Return line, text and block of what the summary says first; empty if it accuses nothing."""
    if trace.non_finite:
        first = trace.non_finite[0]
        return first.line, str(first), None
    if trace.faults:
        fault = trace.faults[0]
        return fault.line, f"{fault.kind}: {fault.text}", fault.block
    return "", "nothing stands out", None


def judge(case: Case, seed: int = 0) -> tuple[bool, str]:
    """Return whether the summary is right, and its first line."""
    with jax.numpy_rank_promotion("allow"):
        loss, args = case.make(jax.random.key(seed))
        line, text, block = first_fault(jaxgrad.xray(loss, *args))
    if not case.code:
        return not line, text
    place = re.match(r"(.*?):(\d+)", line)
    code = linecache.getline(place[1], int(place[2])) if place else ""
    right = case.code in code and (case.block is None or case.block == block)
    return right, f"{text} ({line.rpartition('/')[2]}, block {block})"


def main() -> None:
    """Judge all models and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="models whose names contain this")
    options = parser.parse_args()
    for title, cases in (("one fault", FAULTS), ("no fault", HEALTHY)):
        right = 0
        cases = [case for case in cases if options.only in case.name]
        for case in cases:
            good, text = judge(case)
            right += good
            print(f"{'ok   ' if good else 'WRONG'} {case.name}: {text}", flush=True)
            jax.clear_caches()
        print(f"{right} of {len(cases)} models with {title} are judged rightly\n")


if __name__ == "__main__":
    main()
