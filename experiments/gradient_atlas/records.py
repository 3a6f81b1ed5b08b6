"""The search of one function and its record: a file that is complete at every moment.

A record holds what it was made with and a checksum, so that a run that was interrupted goes on
where it was, and damaged records and those of other versions or options are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxgrad
from experiments._kit.report import write_json
from experiments.gradient_atlas.calls import DOMAINS
from experiments.gradient_atlas.functions import GLOBALS, Entry
from jaxgrad import checking

CONFIRMING = {
    "WRONG": (checking.Cause.RULE_WRONG, checking.Cause.KINK),
    "NONFINITE": (checking.Cause.RULE_WRONG, checking.Cause.ROUNDING, checking.Cause.KINK),
    "LOST": (checking.Cause.ROUNDING, checking.Cause.RULE_WRONG),
}
"""Causes that `jaxgrad.checking.reference` may give for each kind of finding."""
# A function that cannot be searched has a record too, or it would be tried again.
EMPTY: dict[str, Any] = {"findings": [], "tried": 0, "judged": 0, "states": {}, "notes": []}
PATIENCE = 10  # so many times the limit of CPU time, in seconds of a clock


def identity(search: dict[str, Any]) -> dict[str, Any]:
    """What all records of a run have in common: versions, and the options of the search."""
    versions = {name: version(name) for name in ("jax", "jaxlib", "optax", "numpy")}
    versions["jaxgrad"] = jaxgrad.__version__
    return {"format": 1, "search": search, "versions": versions}


def folder(root: Path, common: dict[str, Any]) -> Path:
    """The folder of the records of one version of JAX and one choice of options."""
    return root / f"jax-{common['versions']['jax']}-{digest(common)[:8]}"


def digest(content: Any) -> str:
    """A checksum of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read(path: Path, made_with: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The result in a record, `None` if there is none, and whether the file is damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, False
    # Half a file, or bytes that are no text.
    except (OSError, ValueError):
        return None, True
    body = record.get("body") if isinstance(record, dict) else None
    if body is None or record.get("checksum") != digest(body):
        return None, True
    # A row of the table of arguments may have changed since.
    return (body["result"], False) if body["made_with"] == made_with else (None, False)


def searched(entry: Entry, common: dict[str, Any], where: Path) -> tuple[dict[str, Any], bool]:
    """The result of a function, from its record if there is one, and whether that was damaged."""
    path = where / f"{entry.name}.json"
    arguments = list(map(str, entry.arguments))
    made_with = common | {"source": entry.source, "arguments": arguments}
    result, damaged = read(path, made_with)
    if result is None:

        def write(result):
            body = {"made_with": made_with, "result": result}
            write_json(path, {"body": body, "checksum": digest(body)})

        seconds = PATIENCE * common["search"]["seconds"]
        error = f"an operation does not end within {seconds} s"
        with restart_after(seconds, lambda: write(EMPTY | {"error": error})):
            result = search(entry, **common["search"])
        write(result)
    return result, damaged


@contextmanager
def restart_after(seconds: float, prepare: Callable[[], None]) -> Iterator[None]:
    """After so many seconds call `prepare` and start the program anew with its own arguments.

    A loop of XLA that does not end can be stopped neither by a signal nor by an exception. The new
    process goes on after the function that did not end, since that one has a record by then.
    """

    def restart():
        prepare()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

    timer = threading.Timer(seconds, restart)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class OutOfTime(BaseException):
    """The time for a function is over; it passes through handlers of `Exception`."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Raise `OutOfTime` after so many seconds of CPU; the operations of mpmath have no bound."""

    def stop(*_):
        raise OutOfTime

    previous = signal.signal(signal.SIGPROF, stop)
    # The time of the processor, so that a busy machine leads to the same result.
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def search(entry: Entry, *, points: int, judged: int, operations: int, seconds: int) -> dict:
    """Search the domain of a function, as plain values for a record."""
    function = entry.function

    def f(*args):
        return function(*args)

    intervals = [
        checking.interval(DOMAINS[a.domain].low, DOMAINS[a.domain].high, shape=a.shape)
        for a in entry.arguments
    ]
    bounds: dict[str, Any] = {"points": points, "judged": judged, "operations": operations}
    try:
        with time_limit(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            report = checking.check_domain(f, *intervals, **bounds)
            findings = [finding_of(entry, f, finding) for finding in report.findings]
    except OutOfTime:
        return EMPTY | {"error": f"it takes more than {seconds} s of CPU"}
    # A function may refuse points of its domain with any error.
    except Exception as error:
        return EMPTY | {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
    return {
        "findings": findings,
        "tried": report.tried,
        "judged": report.judged,
        "states": dict(report.states),
        "notes": list(report.notes),
        "error": None,
    }


def finding_of(entry: Entry, f: Any, finding: checking.Finding) -> dict[str, Any]:
    """A finding as plain values, with a line that was run and the cause that `reference` gives."""
    text = f"({entry.source})" if entry.source.startswith("lambda") else entry.source
    # `check_domain` calls the function `f`; the source of it stands for itself.
    line = re.sub(r"grad\(f\b", lambda _: f"grad({entry.source}", finding.code)
    line = re.sub(r"\bf\b(?=\()", lambda _: text, line)
    # The element that the finding names, after the number of the argument if there are several.
    place = tuple(map(int, filter(None, finding.element.split(", "))))
    count = len(finding.arguments)
    which, index = (place[0], place[1:]) if count > 1 else (0, place)
    line += f"[{which}]" if count > 1 else ""
    line += str(list(index)) if index else ""
    # The line is run here, so that a reader sees the same number.
    try:
        value = float(np.asarray(eval(line, dict(GLOBALS))))
        reproduced = bool(np.isclose(value, finding.autodiff, rtol=1e-3, equal_nan=True))
    except Exception:  # of any operation of the function
        reproduced = False
    try:
        answer = checking.reference(weighted(f), *finding.arguments, argnums=tuple(range(count)))
        leaf = next(leaf for leaf in answer.leaves if leaf.path == f"[{which}]")
        cause = str(leaf.causes[index])
        confirmed = leaf.causes[index] in CONFIRMING[finding.kind]
    except (NotImplementedError, ValueError) as error:
        confirmed, cause = None, str(error)
    return {
        "kind": finding.kind,
        "arguments": [np.asarray(value).tolist() for value in finding.arguments],
        "autodiff": repr(float(np.float32(finding.autodiff))),
        "derivative": finding.derivative,
        "region": finding.region,
        "line": line,
        "reproduced": reproduced,
        "confirmed": confirmed,
        "cause": cause,
    }


def weighted(f: Any) -> Any:
    """The sum of the elements of an output with the weights 1, 2, 3, ..., as in `check_domain`."""

    def total(*args):
        output = jnp.ravel(f(*args))
        return output[0] if output.size == 1 else jnp.vdot(jnp.arange(1.0, output.size + 1), output)

    return total
