"""The size of the signal and of the gradient along the operations of a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad import _validate
from jaxgrad.plotting import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LABELS = 40  # With more operations, only some have their names at the axis.
LONGEST = 34  # Of a longer name, its end is shown.


def xray(trace: Any, title: str = "") -> Figure:
    """Draw the signal and the gradient at each operation, in the order of computation.

    Each operation takes one place on the axis, in which the iterations of its scans lie from left
    to right. Sizes are root mean squares.

    Args:
      trace: what `jaxgrad.xray` returns.
      title: a sentence above the figure.
    """
    _validate.installed("plotting.xray", "experiments", "matplotlib")
    from matplotlib.figure import Figure

    _validate.attributes("trace", trace, ("sites", "value"), "jaxgrad.xray")
    _validate.text("title", title)
    sites = trace.sites
    figure = Figure(figsize=(style.WIDTH, 6), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    (signal_color, signal_marker), (gradient_color, gradient_marker) = (
        style.palette().lines[i] for i in (4, 0)
    )
    parts = (
        ("forward", "signal", signal_color, signal_marker),
        ("backward", "gradient", gradient_color, gradient_marker),
    )
    for ax, (name, label, color, marker) in zip(axes, parts, strict=True):
        path: list[tuple[float, float]] = []
        for i, site in enumerate(sites):
            # Iterations of nested scans follow one another.
            logs = np.ravel(getattr(site, name).log_mean_square) / (2 * math.log(10))
            places = i + 0.8 * (np.arange(len(logs)) - (len(logs) - 1) / 2) / max(len(logs), 2)
            finite = np.isfinite(logs)
            size = 6 if len(logs) == 1 else 3
            ax.plot(places[finite], logs[finite], color=color, marker=marker, ms=size, lw=1.5)
            path += zip(places[finite], logs[finite], strict=True)
        # A faint line leads the eye from one operation to the next.
        ax.plot(*np.reshape(path, (-1, 2)).T, color=color, lw=0.8, alpha=0.35, zorder=1)
        ax.set_ylabel(f"{label}: log10 of its\nroot mean square")
        ax.grid(axis="y", alpha=0.3)
    shown = np.unique(np.linspace(0, len(sites) - 1, min(LABELS, len(sites))).astype(int))
    axes[1].set_xticks(shown, [_label(sites[i]) for i in shown], rotation=90, fontsize=style.NOTE)
    axes[1].set_xlabel("operation or its parameter, from the input to the loss")
    style.headline(figure, title or "Signal and gradient along the model")
    return figure


def _label(site: Any) -> str:
    """Name an operation, and the parameter that it applies."""
    name = site.parameter or f"{site.operation} {site.scope}".strip()
    return name if len(name) <= LONGEST else f"...{name[3 - LONGEST :]}"
