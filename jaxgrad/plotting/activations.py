"""The figure of `experiments.activations`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import SHADES, THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def activations(rows: Any, depth: int) -> Figure:
    """Growth of the gradient per layer, for each activation at its usual and critical variances.

    Activations are in the order of how far their usual variances are from level.

    Args:
      rows: of `experiments.activations`, a sequence of its `Row`.
      depth: number of layers of the networks.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    common = [row for row in rows if not row.recipe.startswith("critical")]
    largest = {}
    for row in common:
        largest[row.activation] = max(largest.get(row.activation, 0.0), abs(row.growth))
    names = sorted(largest, key=lambda name: largest[name])
    figure = Figure(figsize=(11.5, 1.9 + 0.45 * len(names)), layout="constrained")
    ax = figure.subplots()
    ax.axvline(0.0, color="black", linewidth=1)
    for at, name in enumerate(names):
        if at % 2:
            ax.axhspan(at - 0.5, at + 0.5, color="0.95", linewidth=0, zorder=0)
        of_name = [row for row in rows if row.activation == name]
        offsets = np.linspace(-0.25, 0.25, len(of_name)) if len(of_name) > 1 else [0.0]
        for row, offset in zip(of_name, offsets, strict=True):
            colour, marker = (SHADES[1], "o") if row.critical else (SHADES[-1], "D")
            ax.errorbar(
                row.growth, at + offset, xerr=2 * row.error, color=colour, marker=marker, capsize=3
            )
            ax.plot(row.typical, at + offset, color=THEORY, marker="|", markersize=13, zorder=5)
            side = -1 if row.growth < 0 else 1
            ax.annotate(
                row.recipe,
                (row.growth + 2 * side * row.error, at + offset),
                xytext=(7 * side, 0),
                textcoords="offset points",
                ha="right" if side < 0 else "left",
                va="center",
                fontsize=8,
                color="0.3",
            )
        if not any(row.critical for row in of_name):
            ax.text(0.0, at, "  no critical point exists", fontsize=8, va="center")
    ax.set_yticks(range(len(names)), names)
    ax.set_xscale("symlog", linthresh=0.1, linscale=1.2)
    ticks = (0.1, 0.5, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5)
    ax.set_xticks(np.log(ticks), ["level" if f == 1 else f"× {f:g}" for f in ticks])
    ax.minorticks_off()
    ax.set(
        xlabel="factor of the squared gradient per layer, on its way back\n"
        f"(typical example, {depth} layers; bars: two standard errors; linear near “level”)",
        ylabel="activation",
        ylim=(-0.6, len(names) - 0.4),
    )
    ax.margins(x=0.12)
    failing = len({row.activation for row in common if not row.critical})
    ax.set_title(
        f"Usual initialisations are not critical for {failing} of {len(names)} activations:\n"
        "left of “level” gradients vanish, right of it they explode",
        fontsize=14,
    )
    figure.legend(
        handles=[
            Line2D([], [], color=SHADES[-1], marker="D", label="usual, not critical"),
            Line2D([], [], color=SHADES[1], marker="o", label="critical"),
            Line2D(
                [],
                [],
                color=THEORY,
                marker="|",
                markersize=13,
                linestyle="none",
                label="theory at this width",
            ),
        ],
        loc="outside lower center",
        ncols=3,
        frameon=False,
    )
    return figure
