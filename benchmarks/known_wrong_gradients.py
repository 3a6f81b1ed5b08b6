"""Are known wrong gradients discovered from the signature alone, and right ones left in peace?

Run `python -m benchmarks.known_wrong_gradients [--only wrong|right] [--case TEXT] [--verbose]`.

`check_domain` searches 40 functions with gradients that issue trackers call wrong, and some 200
functions with right ones on domains where they are right. Findings in the latter are false alarms,
unless the table of true findings has them: there arbitrary precision, evaluated by itself, says
that the gradient has no right digit.
"""

import argparse
import time

from benchmarks import known_wrong_gradients_functions as wrong
from benchmarks import known_wrong_gradients_right as right
from jaxgrad import checking


def search(case) -> tuple[checking.DomainReport | None, str, float]:
    """Return the report of a case, or what the search raised, and its seconds."""
    start = time.perf_counter()
    try:
        report, error = checking.check_domain(case.f, *case.domains), ""
    except Exception as exception:
        report, error = None, f"{type(exception).__name__}: {exception}"
    return report, error, time.perf_counter() - start


def first_line(report: checking.DomainReport | None, error: str) -> str:
    """Return the first finding in one line."""
    if report is None:
        return error[:110]
    return str(report.findings[0])[:110] if report.findings else "-"


def run_wrong(text: str, verbose: bool) -> None:
    """Print a table of the known wrong gradients."""
    rows = []
    for case in wrong.FUNCTIONS:
        if text in case.name:
            rows.append((case, *search(case)))
    print(f"{'function':24} {'source':28} discovered seconds  first finding")
    for case, report, error, seconds in rows:
        mark = "yes" if report is not None and report.findings else "NO"
        line = first_line(report, error)
        print(f"{case.name:24} {case.source:28} {mark:10} {seconds:7.1f}  {line}")
        if verbose:
            print(report)
    count = sum(report is not None and bool(report.findings) for _, report, _, _ in rows)
    slowest = max((seconds for *_, seconds in rows), default=0.0)
    print(f"\n{count} of {len(rows)} discovered; the slowest took {slowest:.1f} s\n")


def run_right(text: str, verbose: bool) -> None:
    """Print findings in functions whose gradients are right, and which of them are true."""
    alarms, true, total, slowest = 0, 0, 0, 0.0
    print("findings in functions with right gradients:")
    for case in right.FUNCTIONS:
        if text not in case.name:
            continue
        report, error, seconds = search(case)
        total, slowest = total + 1, max(slowest, seconds)
        if report is None or report.findings:
            true, alarms = true + case.true, alarms + (not case.true)
            mark = right.TRUE.get(case.name, "FALSE ALARM")
            print(
                f"{case.name:24} {seconds:5.1f} s  {mark}: {first_line(report, error)}", flush=True
            )
            if verbose:
                print(report)
    print(f"{total} functions: {alarms} false alarms, {true} with true findings, confirmed in")
    print(f"arbitrary precision by itself; the slowest took {slowest:.1f} s")


def main() -> None:
    """Parse the options and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=("wrong", "right"))
    parser.add_argument("--case", default="", help="only functions whose name has this text")
    parser.add_argument("--verbose", action="store_true", help="print whole reports")
    options = parser.parse_args()
    if options.only != "right":
        run_wrong(options.case, options.verbose)
    if options.only != "wrong":
        run_right(options.case, options.verbose)


if __name__ == "__main__":
    main()
