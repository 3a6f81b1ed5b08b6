"""Printed reports: tables of at most 100 columns, claims with verdicts, and a file of results."""

from __future__ import annotations

import itertools
import json
import os
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import jaxgrad
from experiments._kit import evidence
from experiments._kit.figures import Draw, save
from experiments._kit.options import Options, as_plain

COLUMNS = 100
LINE_SECONDS = 60
Progress = Callable[[int, int], None] | None
"""Called as `progress(done, total)`, or `None`."""


def progress(unit: str) -> Any:
    """A progress bar as a function `(done, total) -> None`, removed at the end.

    The functions of `jaxgrad` that may take long take it as `progress`: `xray`, `prescribe`,
    `audit`, `inspection.coordinate_check` and `sweeps.run`. Where nobody watches, as in the log of
    a batch job, it is a line a minute.
    """
    if not sys.stderr.isatty():
        return _progress_lines(unit)
    bar = tqdm(unit=f" {unit}", disable=None, leave=False)

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)
        bar.refresh()
        if done == total:
            bar.close()

    return show


def _progress_lines(unit: str) -> Any:
    first = start = last = None

    def show(done: int, total: int) -> None:
        nonlocal first, start, last
        now = time.monotonic()
        if first is None or start is None or last is None:
            # Of a resumed run, the first number is what was there already.
            first, start, last = done, now, now
        if now - last < LINE_SECONDS or done == first:
            return
        minutes = (now - start) / (done - first) * (total - done) / 60
        text = f"{done:,} of {total:,} {unit}, about {minutes:.0f} min left"
        print(text, file=sys.stderr, flush=True)
        last = now

    return show


def sweep_progress(progress: Any) -> dict[str, Any]:
    """Options of `jaxgrad.sweeps.run` that show a forecast, and then the progress."""
    if progress is None:
        return {}

    def show(forecast: Any) -> None:
        # Above the progress bar, if there is one.
        tqdm.write(f"{forecast}", file=sys.stderr)

    return {"progress": progress, "on_forecast": show}


def paragraph(text: str) -> str:
    """Text in lines of at most 100 columns."""
    return textwrap.fill(_joined(text), COLUMNS, break_long_words=False).replace("\xa0", " ")


def _joined(text: str) -> str:
    """Text whose estimates and errors are joined by spaces at which no line is broken."""
    return text.replace(" ± ", "\xa0±\xa0")


def table(
    headings: Sequence[str] | Mapping[str, str],
    rows: Iterable[Sequence[Any]],
    title: str = "",
    *,
    left: int = 1,
) -> str:
    """Columns with a title above; the first `left` columns are aligned to the left.

    Headings and cells of more than one word are broken into lines where that is needed to stay
    within 100 columns.

    Args:
      headings: of the columns, or headings with the format of their numbers, such as
        `{"width": "d", "error": ".1%"}`.
      rows: text, numbers and `Estimate`s; text is printed as it is, and what is not finite as lost.
    """
    forms = headings.values() if isinstance(headings, Mapping) else [""] * len(headings)
    # All rows, the headings first.
    grid = [[_joined(heading) for heading in headings]]
    grid += [[_joined(_cell(v, form)) for v, form in zip(row, forms, strict=True)] for row in rows]
    widths = _widths(list(zip(*grid, strict=True)))

    def lines(row: Sequence[str]) -> Iterator[str]:
        cells = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
        # Broken cells make the row as high as the highest one.
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            aligned = [
                part.ljust(width) if i < left else part.rjust(width)
                for i, (part, width) in enumerate(zip(parts, widths, strict=True))
            ]
            yield "  ".join(aligned).rstrip()

    rule = "  ".join("-" * width for width in widths)
    first, *rest = map(lines, grid)
    text = [*([paragraph(title)] if title else []), *first, rule, *itertools.chain(*rest)]
    return "\n".join(text).replace("\xa0", " ")


def _widths(columns: list[tuple[str, ...]]) -> list[int]:
    """The widths of columns of cells, at least those of their longest words."""
    narrowest = [
        max(len(word) for cell in column for word in cell.split(" ")) for column in columns
    ]
    widths = [max(map(len, column)) for column in columns]
    while sum(widths) + 2 * (len(widths) - 1) > COLUMNS:
        # Take a column where few cells have to be broken, and of these the widest one.
        # Words are broken only where that is not enough.
        costs = [
            (width <= narrowest[i], sum(len(cell) >= width for cell in column), -width, i)
            for i, (column, width) in enumerate(zip(columns, widths, strict=True))
        ]
        widths[min(costs)[-1]] -= 1
    return widths


def _cell(value: Any, form: str) -> str:
    if isinstance(value, str):
        return value
    mean = value.mean if isinstance(value, evidence.Estimate) else value
    return f"{value:{form}}" if np.isfinite(mean) else "lost"


@dataclass(frozen=True)
class Report:
    """What an experiment prints, and the numbers that are stored."""

    sections: Sequence[str]  # tables and paragraphs, with an empty line between them
    claims: Sequence[evidence.Claim] = ()  # decided together
    # Numbers, arrays and `Estimate`s by name, nested mappings allowed, for the file of results.
    estimates: Mapping[str, Any] = field(default_factory=dict)
    details: Sequence[str] = ()  # sections that are printed with `--verbose`

    def __str__(self) -> str:
        """The sections, then each claim with its verdict."""
        return self.text()

    def text(self, *, verbose: bool = False) -> str:
        """All sections, or those that matter most, in lines of at most 100 columns."""
        parts = [*self.sections, *(self.details if verbose else ())]
        if self.claims:
            count = sum(not claim.estimate.is_exact for claim in self.claims)
            title = f"Claims, with the p-values of {count} tests corrected together (Holm)."
            rows = [verdict.row() for verdict in evidence.verdicts(self.claims)]
            rows = [(outcome.replace(" ", "\xa0"), *rest) for outcome, *rest in rows]
            parts.append(table(("verdict", "claim", "estimate", "p"), rows, title, left=2))
        if self.details and not verbose:
            parts.append("More tables: --verbose.")
        lines = "\n\n".join(parts).splitlines()
        return "\n".join(line if len(line) <= COLUMNS else paragraph(line) for line in lines)


def publish(report: Report, options: Options, draw: Draw | None = None) -> None:
    """Print the report, draw and save figures, and store the results beside them as JSON.

    `draw` makes a figure, or several by name; `options.theme` says for which background. The path
    is `options.output`, and that of several figures begins with it.
    """
    print(report.text(verbose=options.verbose))
    paths = [] if draw is None else save(draw, options.output, getattr(options, "theme", "light"))
    results = options.stem.with_name(options.stem.name + ".json")
    write_json(results, as_json(report, options))
    print("", *(f"Figure: {path}" for path in paths), f"Results: {results}", sep="\n", flush=True)


def as_json(report: Report, options: Options) -> dict[str, Any]:
    """Options, estimates, verdicts and versions as plain values."""
    decided = evidence.verdicts(report.claims)
    content = {
        "options": as_plain(options),
        "estimates": report.estimates,
        "claims": [asdict(v.claim) | {"outcome": v.outcome, "p_value": v.p_value} for v in decided],
        "versions": {m.__name__: m.__version__ for m in (jaxgrad, jax, np)}
        | {"python": platform.python_version()},
    }
    return _plain(content)


def _plain(value: Any) -> Any:
    """The same as lists, dictionaries and numbers; JSON has no NaN and infinity, so text."""
    if isinstance(value, evidence.Estimate):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, (np.ndarray, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):  # such as np.float32
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return str(value)
    return value


def write_json(path: Path, content: Any) -> None:
    """Write a file that is complete at every moment: it is replaced as a whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
