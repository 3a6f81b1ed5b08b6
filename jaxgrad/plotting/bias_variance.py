"""The figure of `experiments.bias_variance`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import SHADES, halo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BANDS = {
    "high bias": (SHADES[2], "high\nbias"),
    "high bias and high variance": ("0.85", "both\nhigh"),
    "high variance": (SHADES[4], "high\nvariance"),
    "neither": ("white", "neither"),
}
_TICKS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


def bias_variance(curves: Any, attainable: float) -> Figure:
    """Training and dev errors against the size of the network and of the training set.

    Args:
      curves: of `experiments.bias_variance`: by name what is varied, sequences of its `Point`.
      attainable: the error that is taken to be attainable.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(curves), 5.6), layout="constrained")
    axes = figure.subplots(1, len(curves), sharey=True)
    for ax, (name, points) in zip(axes, curves.items(), strict=True):
        _curve(ax, name.startswith("units"), points, attainable)
    axes[0].set_ylabel("error")
    axes[0].set_yscale("symlog", linthresh=0.01, linscale=0.6)
    axes[0].set_ylim(-0.002, 1.0)
    axes[0].set_yticks(_TICKS, [f"{100 * tick:g} %" for tick in _TICKS])
    axes[0].minorticks_off()
    figure.suptitle(_title(curves), fontsize=14)
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    return figure


def _curve(ax: Any, of_units: bool, points: Any, attainable: float) -> None:
    values = np.array([point.width if of_units else point.examples for point in points], float)
    edges = np.sqrt(values[1:] * values[:-1])
    edges = np.r_[values[0] ** 2 / edges[0], edges, values[-1] ** 2 / edges[-1]]
    labels = [point.diagnosis.label for point in points]
    begin = 0
    for i in range(1, len(labels) + 1):
        if i == len(labels) or labels[i] != labels[begin]:
            colour, words = _BANDS[labels[begin]]
            ax.axvspan(edges[begin], edges[i], color=colour, alpha=0.55, linewidth=0)
            middle = np.sqrt(edges[begin] * edges[i])
            ax.text(middle, 0.004, words, ha="center", va="center", path_effects=halo(3))
            begin = i
    for kind, colour, marker, style in (
        ("dev", SHADES[-1], "s", "solid"),
        ("train", SHADES[0], "o", "dashed"),
    ):
        errors = np.stack([getattr(point, kind) for point in points], axis=1)
        ax.errorbar(
            values,
            errors.mean(axis=0),
            yerr=2 * errors.std(axis=0, ddof=1) / np.sqrt(len(errors)),
            color=colour,
            marker=marker,
            linestyle=style,
            capsize=3,
            label=f"{kind} error ± two standard errors",
        )
    ax.axhline(attainable, color="black", linestyle="dotted", label="attainable error")
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.minorticks_off()
    ax.set_xlim(edges[0], edges[-1])
    first, last = (f"{100 * points[i].dev.mean():.2g} %" for i in (0, -1))
    if of_units:
        ax.set_xlabel("units of the hidden layer")
        fixed = f"{points[0].examples} training examples"
    else:
        ax.set_xlabel("training examples")
        fixed = f"{points[0].width} unit{'s' * (points[0].width > 1)}"
    ax.set_title(f"{fixed}: dev error {first} to {last}", fontsize=11)


def _title(curves: Any) -> str:
    """By what factor each remedy takes the dev error down."""
    words = []
    for name, points in curves.items():
        factor = points[0].dev.mean() / points[-1].dev.mean()
        if name.startswith("units"):
            words.append(f"a larger network divides the dev error by {factor:.2g}")
        else:
            units = f"{points[0].width} unit{'s' * (points[0].width > 1)}"
            words.append(f"more data with {units} by {factor:.2g}")
    joined = ", ".join(words)
    return joined[0].upper() + joined[1:]
