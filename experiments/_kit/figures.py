"""Figures of experiments: panels, lines with error bars, legends, and how they are saved.

Fonts, sizes and colours are those of `jaxgrad.plotting.style`. Figures are made without `pyplot`,
so that they need no display.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments._kit.evidence import Estimate, interval
from jaxgrad.plotting import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")


def looks() -> list[dict[str, Any]]:
    """Colour, marker and line of each curve, so that they differ in grey, too."""
    pairs = zip(style.palette().lines, style.STYLES, strict=True)
    return [{"color": c, "marker": marker, "linestyle": line} for (c, marker), line in pairs]


def panels(
    title: str, rows: int = 1, columns: int = 1, height: float = 4.5, **options: Any
) -> tuple[Figure, Any]:
    """A figure with its message as title, and its axes `[rows, columns]`.

    All figures have one width; the height is in inches. Options are those of `subplots`.
    """
    from matplotlib.figure import Figure

    # Space is found for whatever is added later.
    figure = Figure(figsize=(style.WIDTH, height), layout="constrained")
    style.headline(figure, title)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def error_bars(ax: Any, x: Any, estimate: Estimate, **look: Any) -> None:
    """Means with bars of two standard errors."""
    ax.errorbar(x, estimate.mean, yerr=2 * estimate.standard_error, **{"capsize": 3, **look})


def error_band(ax: Any, x: Any, estimate: Estimate, *, color: Any, **look: Any) -> None:
    """A line through means, in a band of two standard errors."""
    low, high = (estimate.mean + sign * 2 * estimate.standard_error for sign in (-1, 1))
    ax.fill_between(x, low, high, color=color, alpha=0.22, linewidth=0)
    ax.plot(x, estimate.mean, color=color, **look)


def curves(ax: Any, x: Any, estimates: Mapping[str, Estimate], **options: Any) -> None:
    """Lines with bands of two standard errors in the looks of `looks`, labelled by name.

    A line ends where its mean is not finite; `options` are those of `Axes.plot`.
    """
    for (name, estimate), look in zip(estimates.items(), looks(), strict=False):
        error_band(ax, x, estimate, label=name, **{**look, **options})


def dots(
    ax: Any, estimates: Mapping[str, Mapping[str, Estimate]], spread: float = 0.1, **options: Any
) -> None:
    """Rows from top to bottom, with a dot with error bars for each series that the legend names.

    `estimates` are by the name of the row, then by that of the series. Dots of one row lie at
    slightly different heights, by `spread`, so that bars do not cover each other.
    """
    ends = {
        name: {key: (e.mean, 2 * e.standard_error, 2 * e.standard_error) for key, e in row.items()}
        for name, row in estimates.items()
    }
    _dots(ax, ends, spread, options)


def shares(ax: Any, counts: Mapping[str, Mapping[str, tuple[int, int]]], **options: Any) -> None:
    """As `dots`, of counts and numbers of trials, with Wilson's intervals of 95 %."""
    ends = {}
    for name, row in counts.items():
        ends[name] = {}
        for key, (count, trials) in row.items():
            low, high = interval(count, trials)
            # Rounding may put the share just outside of its interval.
            bars = np.maximum([count / trials - low, high - count / trials], 0)
            ends[name][key] = (count / trials, *bars)
    _dots(ax, ends, 0.15, options)
    percent(ax.xaxis)


def _dots(ax: Any, ends: Mapping[str, Mapping[str, tuple]], spread: float, options: Any) -> None:
    seen = dict.fromkeys(name for row in ends.values() for name in row)
    # The longest row has the best order; series that it lacks are last.
    longest = max(ends.values(), key=len)
    series = list(dict.fromkeys(longest) | seen)
    # Nearer to each other than to the next row.
    shifts = min(0.3, spread * (len(series) - 1)) * np.linspace(1, -1, len(series))
    for name, look, shift in zip(series, looks(), shifts, strict=False):
        rows = {y: row[name] for y, row in enumerate(ends.values()) if name in row}
        means, *bars = np.transpose(list(rows.values()))
        look = {**look, "linestyle": "none", "capsize": 3, "label": name, **options}
        ax.errorbar(means, np.array(list(rows)) - shift, xerr=bars, **look)
    ax.set_yticks(range(len(ends)), list(ends))
    ax.set_ylim(len(ends) - 0.5, -0.5)


def ticks(axis: Any, values: Any, labels: Any = None) -> None:
    """Ticks of an x or y axis at these values and nowhere else, for logarithmic axes, too."""
    labels = [f"{value:g}" for value in values] if labels is None else labels
    axis.set_ticks(values, labels)
    axis.set_ticks([], minor=True)


def percent(axis: Any) -> None:
    """Label the ticks of an axis of shares in percent."""
    axis.set_major_formatter(lambda value, _: f"{100 * value:g} %")


def legend_below(figure: Figure, ax: Any, columns: int) -> None:
    """One legend for all panels, below them, with the labels of one panel."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


Draw = Callable[[], Any]
"""Draws a figure, or several by name, in the style that is set when it is called."""


def save(draw: Draw, path: Path, theme: str = "light") -> list[Path]:
    """Write what is drawn in a theme, `light`, `dark` or `both`, and return the paths.

    The suffix of the path is the format, PNG without one. The names of several figures, and `dark`
    for the second of `both` themes, are added to its stem.
    """
    paths = []
    # Colours are set when a figure is made, so that each theme needs figures of its own.
    for name in style.THEMES if theme == "both" else (theme,):
        with style.theme(name):
            figures = draw()
            figures = figures if isinstance(figures, Mapping) else {"": figures}
            for part, figure in figures.items():
                words = [path.stem if path.suffix in FORMATS else path.name, part]
                words += ["dark"] * (theme == "both" and name == "dark")
                suffix = path.suffix if path.suffix in FORMATS else FORMATS[0]
                paths.append(path.with_name("_".join(filter(None, words)) + suffix))
                # A date would make equal figures differ.
                metadata = {"Date": None} if suffix == ".svg" else None
                figure.savefig(paths[-1], metadata=metadata)
    return paths
