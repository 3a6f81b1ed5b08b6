"""The atlas as one HTML file without external resources, and as a Markdown table."""

from __future__ import annotations

import html
import string
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from experiments.gradient_atlas.functions import Entry

KINDS = {
    "WRONG": "also without rounding, autodiff differs from the derivative",
    "NONFINITE": "NaN or infinity where the derivative is a finite number",
    "LOST": "the rule is right, but no digit of the computed number is",
}
HEADINGS = ("kind", "function", "argument", "autodiff", "derivative", "where", "line")
# Style, sorting and filtering, without external resources.
TEMPLATE = string.Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
IMPORTS = "import jax, jax.numpy as jnp, jax.scipy.stats, numpy as np, optax"


class Row(NamedTuple):
    """A finding as text."""

    kind: str
    name: str
    arguments: str
    autodiff: str
    derivative: str
    region: str
    line: str


@dataclass(frozen=True)
class Atlas:
    """The public functions that were selected, and the results of those that were searched."""

    entries: list[Entry]
    results: dict[str, dict[str, Any]]
    made_with: dict[str, Any]
    others: int = 0  # public functions that were not selected

    @property
    def title(self) -> str:
        """The heading of the page."""
        return f"Atlas of gradients of JAX {self.made_with['versions']['jax']}"

    @property
    def rows(self) -> list[Row]:
        """The confirmed findings, those of the worst kind first."""
        rows = [
            row_of(name, finding)
            for name, result in self.results.items()
            for finding in result["findings"]
            if finding["confirmed"] and finding["reproduced"]
        ]
        return sorted(rows, key=lambda row: (list(KINDS).index(row.kind), row.name))

    @property
    def doubtful(self) -> list[tuple[str, str]]:
        """Findings that are not in the table, and why, by function."""
        pairs = []
        # Only what two computations of the derivative agree on is called a finding.
        for name, result in self.results.items():
            for f in result["findings"]:
                if not f["reproduced"]:
                    reason = "the line gives another number"
                elif f["confirmed"] is None:
                    reason = f"only differences of floating-point numbers show it ({f['cause']})"
                elif not f["confirmed"]:
                    reason = f"the reference gives {f['cause']}"
                else:
                    continue
                pairs.append((name, f"{f['kind']}: {f['line']}: {reason}"))
        return pairs

    @property
    def failing(self) -> list[str]:
        """Names of the functions with a confirmed finding."""
        return sorted({row.name for row in self.rows})

    @property
    def unjudged(self) -> list[tuple[str, str]]:
        """Functions of which no point was judged, and why."""
        return [(name, reason) for name, r in self.results.items() if (reason := unjudged(r))]

    @property
    def clean(self) -> list[tuple[str, str]]:
        """Functions without any finding, and how many of their points were judged."""
        # A finding that is not confirmed is reason enough not to call a function clean.
        others = {*dict(self.unjudged), *self.failing, *dict(self.doubtful)}
        return [(n, counts(r)) for n, r in self.results.items() if n not in others]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """Functions that were not searched, and why."""
        return [(entry.name, entry.reason) for entry in self.entries if entry.reason]

    @property
    def same(self) -> list[tuple[str, str]]:
        """Other names: of the same object, or with the same trace."""
        # A different object with the same trace, or the same object.
        pairs = [(entry.name, entry.same) for entry in self.entries if entry.same]
        return pairs + [(alias, entry.name) for entry in self.entries for alias in entry.aliases]

    @property
    def summary(self) -> str:
        """All public functions accounted for, in a few sentences."""
        total = sum(1 + len(entry.aliases) for entry in self.entries)
        kinds = Counter(row.kind for row in self.rows)
        tried, judged = (sum(r[key] for r in self.results.values()) for key in ("tried", "judged"))
        shown = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS)
        versions = self.made_with["versions"]
        return (
            f"JAX {versions['jax']}, optax {versions['optax']}, float32 on CPU. "
            f"Of {total} public functions {len(self.results)} were searched, {len(self.same)} are "
            f"other names of these, and {len(self.skipped)} were not searched. "
            f"{tried:,} points were screened and {judged:,} judged in arbitrary precision. "
            f"{len(self.rows)} findings in {len(self.failing)} functions ({shown}); "
            f"{len(self.clean)} functions are clean, {len(self.unjudged)} could not be judged, and "
            f"{len(self.doubtful)} findings were not confirmed. {self.others} more public "
            "functions were not selected for this run."
        )

    @property
    def lists(self) -> dict[str, list[tuple[str, str]]]:
        """What is not in the table, under headings."""
        return {
            "No finding": self.clean,
            "Findings that were not confirmed": self.doubtful,
            "Could not be judged": self.unjudged,
            "Not searched": self.skipped,
            "Other names of a function that is searched": self.same,
        }

    def plain(self) -> dict[str, Any]:
        """All results for the JSON file."""
        lists = {name: list(pairs) for name, pairs in self.lists.items()}
        return {"made_with": self.made_with, "results": self.results, **lists}


def row_of(name: str, finding: dict[str, Any]) -> Row:
    """A finding as text, its numbers as short as they are unique in float32."""
    arguments = ", ".join(map(number, finding["arguments"]))
    texts = (finding["autodiff"], finding["derivative"])
    return Row(finding["kind"], name, arguments, *texts, finding["region"], finding["line"])


def number(value: Any) -> str:
    """A number or nested list of numbers with at most 8 digits."""
    if isinstance(value, list):
        return f"[{', '.join(map(number, value))}]"
    return f"{value:.8g}" if isinstance(value, float) else str(value)


def unjudged(result: dict[str, Any]) -> str:
    """Why no point of a function was judged; empty if one was."""
    if result["error"]:
        return result["error"]
    states = result["states"]
    # Points outside of the domain, and those where the function jumps, say nothing.
    if result["findings"] or states.get("right", 0) + states.get("kink", 0):
        return ""
    return counts(result)


def counts(result: dict[str, Any]) -> str:
    """How many points were judged as which, and the notes of the search."""
    states = [f"{count} {state}" for state, count in result["states"].items() if count]
    return "; ".join([", ".join(states) or "no points", *result["notes"]])


def explanation(made_with: dict[str, Any]) -> list[str]:
    """How to read the table, as sentences."""
    options = ", ".join(f"{name} {value:,}" for name, value in made_with["search"].items())
    return [
        "Each function was searched over its domain by jaxgrad.checking.check_domain "
        f"({options}). A search does not prove that a function is clean.",
        "Each finding was confirmed by jaxgrad.checking.reference, which computes derivatives in "
        f"arbitrary precision, and its line was run. Lines need: {IMPORTS}",
        "Functions of arrays were searched with small ones. Several outputs are added with the "
        "weights 1, 2, 3, ....",
        *(f"{kind}: {text}." for kind, text in KINDS.items()),
    ]


def as_html(atlas: Atlas) -> str:
    """The whole page: a table that can be sorted and filtered, then all other functions."""
    rows = []
    for row in atlas.rows:
        kind, *cells, line = map(html.escape, row)
        middle = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><td class="{kind}">{kind}</td>{middle}<td><code>{line}</code></td></tr>')
    lists = []
    # Closed until a reader opens them.
    for heading, pairs in atlas.lists.items():
        items = [
            f"<li><code>{html.escape(name)}</code>: {html.escape(text)}</li>"
            for name, text in sorted(pairs)
        ]
        head = f"<summary>{heading} ({len(pairs)})</summary>"
        lists.append("\n".join([f"<details>{head}\n<ul>", *items, "</ul>\n</details>"]))
    sentences = (atlas.summary, *explanation(atlas.made_with))
    return TEMPLATE.substitute(
        title=atlas.title,
        text="\n".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences),
        headings="".join(f'<th scope="col">{name}</th>' for name in HEADINGS),
        rows="\n".join(rows),
        lists="\n".join(lists),
    )


def as_markdown(atlas: Atlas) -> str:
    """The table of findings and the names of all other functions."""
    parts = [f"# {atlas.title}", atlas.summary]
    parts += explanation(atlas.made_with)
    rule = "|".join(["---"] * len(HEADINGS))
    lines = [f"| {' | '.join(HEADINGS)} |", f"|{rule}|"]
    for row in atlas.rows:
        # A vertical bar would end the cell.
        cells = [cell.replace("|", "\\|") for cell in row]
        cells[1], cells[2], cells[-1] = (f"`{cells[i]}`" for i in (1, 2, -1))
        lines.append(f"| {' | '.join(cells)} |")
    parts.append("\n".join(lines))
    for heading, pairs in atlas.lists.items():
        # The same reason is written once, with all of its functions.
        reasons: dict[str, list[str]] = {}
        for name, reason in sorted(pairs):
            # In Markdown a bracket after a bracket would be a link.
            text = "" if heading == "No finding" else reason.replace("[", "\\[")
            reasons.setdefault(text, []).append(f"`{name}`")
        parts.append(f"## {heading} ({len(pairs)})")
        items = [f"{', '.join(names)}{text and f': {text}'}" for text, names in reasons.items()]
        parts.append("\n".join(f"- {item}" for item in items) or "None.")
    return "\n\n".join(parts) + "\n"
