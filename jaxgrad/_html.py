"""Results as HTML: a text, curves and a table that can be sorted, without anything from outside."""

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, HEIGHT, MARGIN = 860, 190, 60  # of a panel, in pixels
TICKS = 4
STYLE = """
.jaxgrad { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff }
.jaxgrad pre { font: 13px/1.45 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere }
.jaxgrad svg { max-width: 100%; height: auto }
.jaxgrad .table { overflow-x: auto }
.jaxgrad table { border-collapse: collapse; width: 100% }
.jaxgrad th, .jaxgrad td { border-bottom: 1px solid #ddd; padding: .25rem .5rem; text-align: left }
.jaxgrad th { cursor: pointer; white-space: nowrap }
.jaxgrad th[aria-sort=ascending]::after { content: " \\25B2" }
.jaxgrad th[aria-sort=descending]::after { content: " \\25BC" }
.jaxgrad td { font-size: 13px; overflow-wrap: break-word }
.jaxgrad .bad { color: #b00020; font-weight: 600 }
"""
# A click on a heading sorts the rows of its table, by number where both cells begin with one.
SORT = """
const h=this, up=h.getAttribute('aria-sort')!=='ascending', i=h.cellIndex;
const body=h.closest('table').tBodies[0];
for (const other of h.parentNode.cells) other.removeAttribute('aria-sort');
h.setAttribute('aria-sort', up ? 'ascending' : 'descending');
const key=r=>r.cells[i].textContent, order=(a,b)=>{
const x=parseFloat(key(a)), y=parseFloat(key(b));
if (isNaN(x)!==isNaN(y)) return isNaN(x)-isNaN(y);
return isNaN(x) ? key(a).localeCompare(key(b)) : x-y};
[...body.rows].sort((a,b)=>up?order(a,b):order(b,a)).forEach(r=>body.append(r));
"""


def fragment(
    title: str,
    text: str,
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    curves: str = "",
    bad: Sequence[str] = (),
) -> str:
    """Return a part of a page: a heading, a text as it is, curves and a table.

    Args:
      headings, rows: of the table; cells are turned into text.
      curves: from `curve`.
      bad: texts of cells that stand out.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    sort = html.escape(" ".join(SORT.split()))
    # A heading is reached, and pressed, on the keyboard, too.
    act = f'tabindex="0" onclick="{sort}" onkeydown="if (event.key === \'Enter\') this.click()"'
    head = "".join(f'<th scope="col" {act}>{html.escape(h)}</th>' for h in headings)
    body = "\n".join(f"<tr>{''.join(_cell(cell, bad) for cell in row)}</tr>" for row in cells)
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    table = f'<div class="table">{table}</div>'
    return (
        f'<div class="jaxgrad"><style>{STYLE}</style><h2>{html.escape(title)}</h2>'
        f"<pre>{html.escape(text)}</pre>{curves}{table}</div>"
    )


def _cell(text: str, bad: Sequence[str]) -> str:
    emphasis = ' class="bad"' if text in bad else ""
    return f"<td{emphasis}>{html.escape(text)}</td>"


def curve(label: str, values: Sequence[float], color: str, xlabel: str) -> str:
    """Return a panel with one curve as SVG; values that are not finite are left out.

    Args:
      label: of the vertical axis.
      values: one for each place on the horizontal axis.
      color: of the curve.
      xlabel: of the horizontal axis.
    """
    places = np.arange(len(values))
    finite = np.isfinite(values)
    if not finite.any():
        return ""
    numbers = np.asarray(values, np.float64)
    low, high = float(numbers[finite].min()), float(numbers[finite].max())
    # A flat curve lies in the middle of one unit.
    low, high = (low, high) if high - low > 1e-6 else (low - 0.5, high + 0.5)
    across = (WIDTH - MARGIN - 10) / max(len(numbers) - 1, 1)
    up = (HEIGHT - MARGIN) / (high - low)
    x = MARGIN + places * across
    y = HEIGHT - MARGIN + 10 - (np.where(finite, numbers, low) - low) * up
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">']
    for tick in np.linspace(low, high, TICKS):
        height = HEIGHT - MARGIN + 10 - (tick - low) * up
        parts.append(
            f'<line x1="{MARGIN}" x2="{WIDTH - 10}" y1="{height:.1f}" y2="{height:.1f}" '
            f'stroke="#ddd"/><text x="{MARGIN - 6}" y="{height + 4:.1f}" font-size="11" '
            f'text-anchor="end">{tick:.{_digits(high - low)}f}</text>'
        )
    # The curve is interrupted where a value is not finite.
    runs = np.split(places, np.flatnonzero(~finite))
    for run in runs:
        points = [f"{x[i]:.1f},{y[i]:.1f}" for i in run if finite[i]]
        parts.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="2"/>'
        )
    parts.append(
        f'<text x="{MARGIN}" y="{HEIGHT - 12}" font-size="12">{html.escape(xlabel)}</text>'
        f'<text x="14" y="{(HEIGHT - MARGIN) / 2 + 10}" font-size="12" text-anchor="middle" '
        f'transform="rotate(-90 14 {(HEIGHT - MARGIN) / 2 + 10})">{html.escape(label)}</text></svg>'
    )
    return "".join(parts)


def _digits(span: float) -> int:
    """Return how many decimals tell ticks apart."""
    return max(0, 1 - math.floor(math.log10(span)))


def save(path: Any, title: str, body: str) -> None:
    """Write a fragment as a page of its own."""
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title></head>"
        f'<body style="margin: 2rem auto; max-width: 80rem; padding: 0 1rem">{body}</body></html>\n'
    )
    Path(path).write_text(page, encoding="utf-8")
