"""JAX's gradient tests, judged by `jaxgrad.testing.check_grads` instead of JAX's function.

Run `python -m benchmarks.jax_gradient_tests SOURCE [--files lax_autodiff_test.py ...] [--cases 4]`.

`SOURCE` is a folder with JAX's `tests/`, of the version that is installed. The tests are run by
pytest as they are; only the name `check_grads` stands for the drop-in, both in `jax.test_util` and
in the module of JAX's own tests. Of each file those tests are selected that call `check_grads`,
directly or through a function of the same file, and each in a few of its generated cases.

A call that JAX's function accepts and the drop-in does not is a failure. For each one the report
names the test and says how the drop-in's report begins.
"""

from __future__ import annotations

import argparse
import ast
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAME = "check_grads"
# Other folders of JAX's tests hold kernels that need an accelerator.
PATTERN = "tests/*_test.py"


def gradient_tests(source: str) -> set[str]:
    """Return the names of the test methods that call `check_grads`, directly or not."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    mentions = {
        function.name: {
            getattr(node, "attr", getattr(node, "id", ""))
            for node in ast.walk(function)
            if isinstance(node, (ast.Attribute, ast.Name))
        }
        for function in functions
    }
    callers: set[str] = set()
    while True:
        wanted = {*callers, NAME, f"{NAME}_bilinear"}
        more = {name for name, names in mentions.items() if names & wanted}
        if more <= callers:
            return {name for name in callers if name.startswith("test")}
        callers |= more


def spread(count: int, most: int) -> list[int]:
    """Return at most so many of the numbers below `count`, evenly spread."""
    return sorted({round(i * (count - 1) / max(most - 1, 1)) for i in range(min(count, most))})


def plugin(cases: int, tests: dict[str, dict[str, str]]) -> Any:
    """Return a pytest plugin that selects at most so many cases of each test, and fills `tests`."""

    def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
        names = {path: gradient_tests(path.read_text()) for path in {item.path for item in items}}
        methods = collections.defaultdict(list)
        for item in items:
            # Generated cases have the name of the method and a number or words.
            fits = [n for n in names[item.path] if re.fullmatch(rf"{n}(\d.*|_.*)?", item.name)]
            if fits:
                methods[item.path, item.cls, max(fits, key=len)].append(item)
        few = {id(one[i]) for one in methods.values() for i in spread(len(one), cases)}
        config.hook.pytest_deselected(items=[item for item in items if id(item) not in few])
        items[:] = [item for item in items if id(item) in few]

    def pytest_runtest_logreport(report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            detail = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            detail = detail or getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
            tests[report.nodeid] = {"outcome": report.outcome, "reason": detail[:500]}

    return types.SimpleNamespace(
        pytest_collection_modifyitems=pytest_collection_modifyitems,
        pytest_runtest_logreport=pytest_runtest_logreport,
    )


def run_file(source: Path, file: str, cases: int) -> dict[str, Any]:
    """Run the gradient tests of one file in this process."""
    import jax.test_util
    import pytest
    from jax._src import public_test_util, test_util

    from jaxgrad import testing

    calls: list[dict[str, Any]] = []
    tests: dict[str, dict[str, str]] = {}

    def check_grads(*args, **options):
        # pytest says here which test runs, and in which of its phases.
        call: dict[str, Any] = {"test": os.environ["PYTEST_CURRENT_TEST"].rpartition(" (")[0]}
        call |= {"outcome": "passed", "report": ""}
        calls.append(call)
        start = time.process_time()
        try:
            testing.check_grads(*args, **options)
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            call |= {"outcome": "failed", "report": kind + str(error).strip()}
            raise
        finally:
            call["seconds"] = time.process_time() - start

    for module in (jax.test_util, public_test_util, test_util):
        setattr(module, NAME, check_grads)
    # Warnings are not what is measured, and messages of the tests are not shown.
    options = ["-q", "-W", "default", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-n0"]
    options += ["-c", str(source / "pyproject.toml"), "--rootdir", str(source)]
    pytest.main([*options, str(source / file)], plugins=[plugin(cases, tests)])
    for call in calls:
        # A test may expect an error, as of a function without forward mode.
        if tests.get(call["test"], {}).get("outcome") == "passed":
            call["outcome"] = "passed"
    return {"file": file, "calls": calls, "tests": tests}


def run_files(source: Path, files: list[str], cases: int) -> Iterator[dict[str, Any]]:
    """Run each file in a process, since JAX stores every program that it compiles."""
    environment = os.environ | {"JAX_NUM_GENERATED_CASES": str(cases), "JAX_PLATFORMS": "cpu"}
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            command = [sys.executable, "-m", "benchmarks.jax_gradient_tests", str(source)]
            command += ["--one", file, "--json", str(path), "--cases", str(cases)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if not path.exists():
                sys.exit(f"error: {file} could not be run:\n{done.stdout}{done.stderr}")
            yield json.loads(path.read_text())


def main() -> None:
    """Run JAX's gradient tests and print how the drop-in judged them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore
    parser.add_argument("source", type=Path, help="folder with JAX's tests/")
    parser.add_argument("--files", nargs="+", help="names of test files; by default all")
    parser.add_argument("--cases", type=int, default=4, help="cases of each test at most")
    parser.add_argument("--lines", type=int, default=4, help="lines shown of a failed report")
    parser.add_argument("--json", type=Path, help="write all calls to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        sys.argv = sys.argv[:1]  # JAX's tests read options from here.
        options.json.write_text(json.dumps(run_file(options.source, options.one, options.cases)))
        return
    paths = sorted(options.source.glob(PATTERN))
    files = [f"tests/{p.name}" for p in paths if gradient_tests(p.read_text())]
    if options.files:
        files = [file for file in files if Path(file).name in options.files]
    if not files:
        sys.exit(f"error: no gradient tests in {options.source / 'tests'}")
    print(f"{'file':44s} tests skipped failed  calls passed failed  CPU s")
    results = []
    for result in run_files(options.source, files, options.cases):
        results.append(result)
        _print_row(result["file"], [result])
    _print_row("all", results)
    for call in (call for result in results for call in result["calls"]):
        if call["outcome"] == "failed":
            lines = [line for line in call["report"].splitlines() if line][: options.lines]
            print("\n".join(["", call["test"], *lines]))
    _print_others(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def _print_others(results: list[dict[str, Any]]) -> None:
    """Print why tests were skipped, and which failed though no call of the drop-in did."""
    failed = {call["test"] for r in results for call in r["calls"] if call["outcome"] == "failed"}
    tests = [(name, test) for result in results for name, test in result["tests"].items()]
    reasons = [test["reason"] for _, test in tests if test["outcome"] == "skipped"]
    for reason in dict.fromkeys(reasons):
        print(f"\n{reasons.count(reason)} skipped: {reason}")
    for name, test in tests:
        if test["outcome"] == "failed" and name not in failed:
            print(f"\nfailed, though no check did: {name}\n{test['reason']}")


def _print_row(name: str, results: list[dict[str, Any]]) -> None:
    calls = [call for result in results for call in result["calls"]]
    outcomes = [test["outcome"] for result in results for test in result["tests"].values()]
    passed = sum(call["outcome"] == "passed" for call in calls)
    row = (len(outcomes), outcomes.count("skipped"), outcomes.count("failed"))
    row += (len(calls), passed, len(calls) - passed)
    seconds = sum(call["seconds"] for call in calls)
    columns = "{:44s}{:6d}{:8d}{:7d}{:7d}{:7d}{:7d}{:7.0f}"
    print(columns.format(name, *row, seconds), flush=True)


if __name__ == "__main__":
    main()
