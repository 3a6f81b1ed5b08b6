"""The printed form of an audit: what is wrong, in words, and a table."""

import itertools
import re
from collections.abc import Sequence

from jaxgrad._jaxprs import short_place
from jaxgrad.checking import Rule, RuleVerdict

# The body error is the distance of the rule from the derivative of the function's body.
TITLES = "function,verdict,mode,argument,worst index,rule,numeric,relative error,body error,place"
MODES = {"rev": "reverse", "fwd": "forward"}


def describe(rules: Sequence[Rule], closed: Sequence[str]) -> list[str]:
    """Return the lines that say which rules are wrong or differ from their bodies, and how."""
    groups = _groups(rules)
    if not groups:
        lines = ["no function with a derivative rule is called"]
        return [*lines, *_closed(closed)]
    failing = [g for g in groups if g[0].fails]
    wrong = [g for g in failing if not g[0].through] or failing
    through = [g for g in failing if g not in wrong]
    differing = [g for g in groups if g[0].verdict is RuleVerdict.DIFFERS]
    unresolved = sum(g[0].verdict is RuleVerdict.UNRESOLVED for g in groups)
    words = f"{_count(len(wrong))} of {len(groups)} derivative rules {_be(len(wrong))} wrong"
    if differing:
        words += f", {len(differing)} may differ from {_its(len(differing))} on purpose"
    if unresolved:
        words += f", {unresolved} could not be resolved"
    # Causes come first, then their consequences, then what may be meant.
    lines = [words + ":" * bool(failing or differing)]
    for group in (*wrong, *through, *differing):
        lines.append(f"  {group[0].name}, {_places(group[0])}:")
        uses = group[0].through
        lines += [f"    it uses {uses}, which is wrong"] if uses else []
        # Both modes of one error are one line.
        bad = [r for r in group if r.fails or r.verdict is RuleVerdict.DIFFERS]
        for reason, rows in itertools.groupby(bad, lambda row: (row.subject, row.reason)):
            modes = " and ".join(MODES[row.mode] for row in rows)
            lines.append(f"    {modes} mode, {reason[0]}: {reason[1] or 'not finite'}")
    return [*lines, *_closed(closed)]


def cells(rules: Sequence[Rule]) -> tuple[Sequence[str], list[list[str]]]:
    """Return headings and rows: one for each row that does not agree, one for a rule that does."""
    rows = []
    for group in _groups(rules):
        shown = [row for row in group if row.verdict is not RuleVerdict.AGREE]
        agree = [row for row in group if row.verdict is RuleVerdict.AGREE]
        rows += [_cells([row]) for row in shown]
        rows += [_cells(agree)] if agree else []
    return TITLES.split(","), rows


def table(rules: Sequence[Rule]) -> list[str]:
    """Return the lines of a table; none without rules."""
    headings, rows = cells(rules)
    widths = [max(map(len, column)) for column in zip(headings, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in ([headings, *rows] if rows else [])
    ]


def _groups(rules: Sequence[Rule]) -> list[list[Rule]]:
    """Return the rows of each rule and call, in the order of the worst one of each."""
    groups: dict[tuple[str, ...], list[Rule]] = {}
    for row in rules:
        groups.setdefault((row.name, row.kind, row.rule, row.call, row.inputs), []).append(row)
    return list(groups.values())


def _cells(rows: list[Rule]) -> list[str]:
    first, single = rows[0], len(rows) == 1
    modes = ", ".join(dict.fromkeys(MODES[row.mode] for row in rows))
    arguments = ", ".join(dict.fromkeys(row.argument for row in rows))
    # The index of a scalar is empty.
    index = str(list(first.element)) if single and first.element else ""
    worst = max(rows, key=lambda row: row.relative_error)
    bodies = [row.body_error for row in rows if row.body_error == row.body_error]
    return [
        *(first.name, str(first.verdict), modes, arguments, index),
        f"{first.value:.4g}" if single else "",
        f"{first.numeric:.4g}" if single else "",
        f"{worst.relative_error:.0e}",
        f"{max(bodies):.0e}" if bodies else "",
        _places(first),
    ]


def _places(row: Rule) -> str:
    """Say where a rule is and where it is called."""
    # Lines without columns, and functions without those around them.
    call = re.sub(r"(:\d+):\d+", r"\1", short_place(row.call))
    call = re.sub(r"\(.*<locals>\.", "(", call)
    parts = [short_place(row.rule), f"called at {call}" if call else ""]
    return ", ".join(filter(None, parts))


def _count(number: int) -> str:
    return str(number) if number else "none"


def _be(number: int) -> str:
    return "is" if number in (0, 1) else "are"


def _its(number: int) -> str:
    return "its body" if number == 1 else "their bodies"


def _closed(closed: Sequence[str]) -> list[str]:
    return [f"not opened, though there are rules inside: {', '.join(closed)}"] if closed else []
