"""The style that figures share: fonts, sizes, and colours for a light and a dark background.

Colours differ in grey and for the colour-blind. `with theme("dark"):` sets Matplotlib's defaults
for the figures made within; `palette` are the colours for the background that is set now, so that
figures also suit a style of the user's.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from jaxgrad import _validate

WIDTH = 8.0
"""Width of a figure in inches. Shown at 700 pixels, its smallest text is 11 pixels high."""
NOTE, TEXT, TITLE = 9.0, 10.0, 12.0
"""Sizes of text: ticks and notes, labels of axes and titles of panels, the title of the figure."""
FONT = "DejaVu Sans"
"""The font that comes with Matplotlib, so that figures look the same everywhere."""
COLUMNS = 78
"""Characters in a line of the title, which is bold."""


class Palette(NamedTuple):
    """Colours for one background."""

    paper: str  # the background
    ink: str  # text and axes
    muted: str  # reference lines and what is less important
    faint: str  # areas that are marked
    lines: tuple[tuple[str, str], ...]  # colour and marker of each line in a panel
    theory: str  # predictions, drawn over measurements
    shades: tuple[str, ...]  # from vanishing to exploding; the ends differ in lightness, too


LIGHT = Palette(
    "#ffffff",
    "#14171c",
    "#6b6b6b",
    "#e4e4e4",
    (("#b35a12", "^"), ("#d99a2b", "D"), ("#000000", "o"), ("#5f9ed1", "s"), ("#0b1f4b", "v")),
    "#b3157f",
    ("#0b1f4b", "#2f5fa8", "#9dbfe0", "#fbfaf5", "#f7c27a", "#e08a2b", "#b35a12"),
)
"""For a white background."""
DARK = Palette(
    "#1e2129",
    "#e6e8ec",
    "#a0a6b0",
    "#363b47",
    (("#f08c3a", "^"), ("#f5cf7a", "D"), ("#ffffff", "o"), ("#5fa8e6", "s"), ("#b9cdf5", "v")),
    "#ff6ec7",
    ("#d3e6fa", "#7fb2e5", "#37618f", "#1e2129", "#8a4a17", "#d97b22", "#ffb454"),
)
"""For a dark background."""
THEMES = {"light": LIGHT, "dark": DARK}
STYLES = ("dashed", "dotted", "solid", "dashdot", (0, (6, 1)))
"""Line styles, in the order of `Palette.lines`."""


def palette() -> Palette:
    """The colours for the background of axes in Matplotlib's settings."""
    from matplotlib import colors, rcParams

    # Relative luminance, without gamma.
    weights = (0.2126, 0.7152, 0.0722)
    return LIGHT if np.dot(weights, colors.to_rgb(rcParams["axes.facecolor"])) > 0.5 else DARK


def theme(name: str = "light") -> AbstractContextManager[None]:
    """Set fonts, sizes and the colours `light` or `dark` for figures that are made within."""
    _validate.installed("plotting.style.theme", "experiments", "matplotlib")
    import matplotlib
    from cycler import cycler

    _validate.choice("name", name, tuple(THEMES))
    colors = THEMES[name]
    text = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    paper = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    notes = ("xtick.labelsize", "ytick.labelsize", "legend.fontsize", "legend.title_fontsize")
    labels = ("font.size", "axes.labelsize", "axes.titlesize")
    settings: Any = {
        **dict.fromkeys(text, colors.ink),
        **dict.fromkeys(paper, colors.paper),
        **dict.fromkeys(notes, NOTE),
        **dict.fromkeys(labels, TEXT),
        "figure.titlesize": TITLE,
        "figure.titleweight": "bold",
        "font.family": FONT,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=[color for color, _ in colors.lines]),
        "hatch.color": colors.ink,
        "legend.frameon": False,
        "lines.markersize": 6,
        "savefig.dpi": 160,
        # Equal figures are equal files.
        "svg.hashsalt": "jaxgrad",
    }
    return matplotlib.rc_context(settings)


def headline(figure: Any, text: str) -> None:
    """Give a figure its title, a sentence, broken into lines at the left."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, COLUMNS)]
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=TITLE)


def check_dataset(name: str, dataset: Any, variables: Sequence[str]) -> None:
    """Raise unless `dataset` is an `xarray.Dataset` with these variables or coordinates."""
    _validate.attributes(name, dataset, ("data_vars", "sel"), "jaxgrad.sweeps.run")
    missing = [variable for variable in variables if variable not in dataset]
    if missing:
        got = f"got one without {', '.join(missing)}; see the documentation of the figure"
        raise ValueError(f"{name} must have {', '.join(variables)}, {got}")


def halo(width: float) -> list[Any]:
    """A border of the background's colour around text or lines that are drawn over colours."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground=palette().paper)]


def heat_map(ax: Any, x: Any, y: Any, values: Any, reach: float) -> Any:
    """Draw values from -`reach` to `reach` in diverging colours, grey where they are NaN."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("unchanged", palette().shades)
    shades = shades.with_extremes(bad="0.5")
    return ax.pcolormesh(x, y, values, cmap=shades, vmin=-reach, vmax=reach, rasterized=True)


def name_region(ax: Any, x: Any, y: Any, region: np.ndarray, words: str) -> None:
    """Write words in the place of a boolean region that is farthest from its border."""
    from scipy.ndimage import distance_transform_edt

    if not region.any():
        return
    # A fine grid of equal columns, although those of a map may be few and of any width.
    places, parts = np.linspace(x[0], x[-1], max(len(x), 240)), 4
    nearest = np.abs(np.asarray(x)[:, None] - places).argmin(axis=0)
    region = np.repeat(np.asarray(region)[:, nearest], parts, axis=0)
    sampling = (1 / len(region), 1 / len(places))  # in units of the panel's sides
    room = np.asarray(distance_transform_edt(np.pad(region, 1), sampling))[1:-1, 1:-1]
    best = np.argwhere(room > 0.95 * room.max())
    row, column = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()]
    # Near an edge the words stay within the panel.
    place = np.searchsorted([0.15, 0.85], column / (len(places) - 1))
    look = {
        "ha": ("left", "center", "right")[place],
        "va": "center",
        "fontweight": "bold",
        "path_effects": halo(4),
    }
    ax.text(places[column], y[row // parts], words, fontsize=TITLE, zorder=6, **look)


def log_ticks(low: float, high: float) -> tuple[np.ndarray, list[str]]:
    """Round numbers between two powers of ten, as exponents, and how they are written."""
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    if len(powers) > 3:
        # Multiples, so that 1 is among them.
        marks = powers[powers % -(-len(powers) // 8) == 0]
    else:
        start = np.floor(low)
        marks = (start + np.arange(np.ceil(high) - start)[:, None] + np.log10([1, 2, 5])).ravel()
        marks = np.append(marks, np.ceil(high))
        marks = marks[(marks >= low - 1e-9) & (marks <= high + 1e-9)]
    if len(marks) < 3:
        from matplotlib.ticker import MaxNLocator

        values = np.asarray(MaxNLocator(5).tick_values(10**low, 10**high))
        marks = np.log10(values[(values >= 10**low) & (values <= 10**high)])
    # Powers are words for what is very large or small.
    is_plain = np.abs(marks).max(initial=0) <= 4
    words = [f"{10**mark:g}" if is_plain or mark == 0 else f"$10^{{{mark:g}}}$" for mark in marks]
    return marks, words


def scientific(value: float) -> str:
    """A number as one digit times a power of ten, for labels of axes."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.0e}".split("e")
    if int(exponent) == 0:
        return f"{value:.0f}"
    factor = "" if mantissa == "1" else rf"{mantissa}\times "
    return rf"${factor}10^{{{int(exponent)}}}$"
