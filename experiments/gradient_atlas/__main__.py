"""Where are the gradients of JAX's own functions wrong, not finite, or lost in rounding?"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro

from experiments import _kit as kit
from experiments._kit import option
from experiments.gradient_atlas import page, records
from experiments.gradient_atlas.functions import Entry, catalog, public


@dataclass(frozen=True)
class Options(kit.Options):
    """Options of the atlas; records of other options than these are not used."""

    functions: tuple[str, ...] = option(
        ("*",), "Names of functions, such as jax.numpy.sinc or 'jax.scipy.stats.*'."
    )
    points: int = option(256, "Points of each domain that are screened.", minimum=16)
    judged: int = option(40, "Points that are judged in arbitrary precision.", minimum=1)
    operations: int = option(300_000, "Operations in arbitrary precision.", minimum=1)
    seconds: int = option(30, "Limit of the CPU time for one function.", minimum=1, maximum=3600)
    output: Annotated[Path, tyro.conf.arg(aliases=("--out",))] = option(
        Path("results/gradient_atlas"), "Where to write: OUTPUT.html, .md, .json, and records."
    )

    def check(self) -> None:
        """Raise ValueError if a name matches no function; nothing is traced for that."""
        # The catalog would trace all of them.
        names = [name for name, _ in public()]
        for pattern in self.functions:
            if not fnmatch.filter(names, pattern):
                raise ValueError(unknown(pattern))


def unknown(pattern: str) -> str:
    """The message about a pattern that matches no name."""
    return (
        f"functions must be public names of JAX or optax.losses, got {pattern!r}; write the full "
        "name, such as jax.numpy.sinc"
    )


def selected(entries: list[Entry], patterns: tuple[str, ...]) -> list[Entry]:
    """The entries whose name or alias matches a pattern; each pattern must match one."""

    def matches(entry: Entry, pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for name in (entry.name, *entry.aliases))

    # A misspelled name must not pass for a function without findings.
    for pattern in patterns:
        if not any(matches(entry, pattern) for entry in entries):
            raise ValueError(unknown(pattern))
    return [entry for entry in entries if any(matches(entry, p) for p in patterns)]


def atlas(options: Options, progress: kit.Progress = None) -> tuple[page.Atlas, int]:
    """Search all selected functions that have no record yet; also the number of damaged records."""
    everything = catalog()
    entries = selected(everything, options.functions)
    search = {k: getattr(options, k) for k in ("points", "judged", "operations", "seconds")}
    common = records.identity(search)
    where = records.folder(options.output.with_name(options.output.name + "_records"), common)
    where.mkdir(parents=True, exist_ok=True)
    chosen = [entry for entry in entries if not entry.reason and not entry.same]
    results: dict[str, dict[str, Any]] = {}
    damaged = 0
    for done, entry in enumerate(chosen, 1):
        results[entry.name], was_damaged = records.searched(entry, common, where)
        damaged += was_damaged
        if progress is not None:
            progress(done, len(chosen))
        # Each function leaves compiled programs that nothing needs again.
        if done % 20 == 0:
            jax.clear_caches()
    others = sum(1 + len(entry.aliases) for entry in everything if entry not in entries)
    return page.Atlas(entries, results, common, others), damaged


def run(options: Options) -> None:
    """Search the public functions of JAX for gradients that are wrong, not finite, or lost."""
    result, damaged = atlas(options, kit.progress("functions"))
    stem = options.output
    # Beside the JSON file, which `publish` writes.
    paths = {end: stem.with_name(stem.name + end) for end in (".html", ".md")}
    paths[".html"].write_text(page.as_html(result), encoding="utf-8")
    paths[".md"].write_text(page.as_markdown(result), encoding="utf-8")
    rows = [
        (row.kind, row.name, row.arguments, row.autodiff, row.derivative) for row in result.rows
    ]
    headings = ("kind", "function", "argument", "autodiff", "derivative")
    sections = [kit.table(headings, rows, left=3)] if rows else []
    sections.append(kit.paragraph(result.summary))
    if damaged:
        sections.append(f"{damaged} damaged records were computed again.")
    sections.append("\n".join(f"Page: {path}" for path in paths.values()))
    kit.publish(kit.Report(sections, estimates=result.plain()), options)


if __name__ == "__main__":
    kit.command(Options, run, resumable=True)
