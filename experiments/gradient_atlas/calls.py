"""Domains, arguments of functions that need particular ones, and what is not searched.

The tables are `calls.txt` and `not_searched.txt`. A function is not reported for arguments outside
of its domain; where it returns NaN, the search knows so by itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple


class Domain(NamedTuple):
    """An interval; `text` completes a sentence that begins with the name of an argument."""

    text: str
    low: float = -math.inf
    high: float = math.inf


DOMAINS = {
    "real": Domain("finite"),
    "positive": Domain("> 0", 1e-45),
    "half": Domain("> 0.5", 0.50001),
    "above_one": Domain("≥ 1", 1.0),
    "below_minus_one": Domain("≤ -1", high=-1.0),
    "nonnegative": Domain("≥ 0", 0.0),
    "nonpositive": Domain("≤ 0", high=0.0),
    "unit": Domain("in [0, 1]", 0.0, 1.0),
    "signed": Domain("in [-1, 1]", -1.0, 1.0),
    "percent": Domain("in [0, 100]", 0.0, 100.0),
    "angle": Domain("in [-π, π]", -3.1415925, 3.1415925),
    "turn": Domain("in [0, 2π]", 0.0, 6.283185),
}


def table(name: str) -> list[list[str]]:
    """The two columns of a text file."""
    text = (Path(__file__).parent / name).read_text(encoding="utf-8").replace("\n+", "")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [line.split(" | ") for line in lines]


CALLS = {name: row for names, row in table("calls.txt") for name in names.split()}
"""Arguments and expression by name."""
NOT_SEARCHED = {
    name: reason for reason, names in table("not_searched.txt") for name in names.split()
}
"""Reasons by name."""
