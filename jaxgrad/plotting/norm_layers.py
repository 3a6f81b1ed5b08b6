"""The figure of `experiments.norm_layers`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_KINDS = (
    ("#000000", "o", "solid"),
    ("#b35a12", "^", "dashed"),
    ("#d99a2b", "D", "dashdot"),
    ("#2f5fa8", "s", "dotted"),
)
"""Colour, marker and line of each kind, plain first."""


def norm_layers(results: Any, w_variances: Sequence[float], every: int, critical: int) -> Figure:
    """Gradients of plain and normalized networks at the start and in training, and accuracy.

    Args:
      results: of `experiments.norm_layers.compare`.
      w_variances: weight variances, times fan-in.
      every: steps between looks at the gradients.
      critical: which of the variances is the critical one.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 9.5), layout="constrained")
    ((at_start, accuracy), (low, high)) = figure.subplots(2, 2)
    depth = max(depth for _, depth in results.trained)
    _start(at_start, results.start, w_variances)
    _accuracy(accuracy, results.trained, w_variances, depth, critical)
    smallest, largest = int(np.argmin(w_variances)), int(np.argmax(w_variances))
    for ax, at, words in ((low, smallest, "small"), (high, largest, "large")):
        _training(ax, results.trained, at, depth, every)
        ax.set_title(f"In training, weight variance {w_variances[at]:g} ({words}), {depth} layers")
    handles, labels = accuracy.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=11)
    figure.suptitle(_message(results.trained, w_variances, depth), fontsize=15)
    return figure


def _message(trained: Any, w_variances: Sequence[float], depth: int) -> str:
    names = dict.fromkeys(kind for kind, _ in trained)
    counts = {name: int((trained[name, depth].test.mean(axis=0) > 0.2).sum()) for name in names}
    said = ", ".join(f"{name}: {count}" for name, count in counts.items())
    asked = f"At how many of {len(w_variances)} weight variances do {depth} layers learn at all?"
    return f"{asked}\n{said}"


def _start(ax: Any, start: Any, w_variances: Sequence[float]) -> None:
    for (kind, one), (colour, marker, _) in zip(start.items(), _KINDS, strict=True):
        depth = np.arange(1, one.measured.shape[-1] + 1)
        # Norms make the variance indifferent, so that one line stands for all.
        shown = range(len(w_variances)) if kind == "plain" else [0]
        for at in shown:
            logs = one.measured[:, at] / np.log(10)
            mean, error = logs.mean(axis=0), logs.std(axis=0, ddof=1) / np.sqrt(len(logs))
            ax.fill_between(
                depth, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0
            )
            ax.plot(
                depth,
                mean,
                color=colour,
                marker=marker,
                markersize=5,
                markevery=max(len(depth) // 8, 1),
                linewidth=1,
            )
            ax.plot(
                depth,
                one.predicted[at] / np.log(10),
                color=THEORY,
                linestyle="dashed",
                linewidth=1.6,
                label="theory" if kind == "plain" and at == 0 else None,
            )
            if kind == "plain":
                ax.annotate(
                    f"plain, variance {w_variances[at]:g}",
                    (depth[-1], mean[-1]),
                    (5, 0),
                    textcoords="offset points",
                    va="center",
                )
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(
        xlabel="depth, layers",
        ylabel="log10 of the squared gradient across so many layers",
        title="Before training: plain at each variance, norms at any",
    )
    ax.set_xlim(0, 1.33 * next(iter(start.values())).measured.shape[-1])
    ax.legend(frameon=False, loc="lower left")


def _accuracy(
    ax: Any, trained: Any, w_variances: Sequence[float], depth: int, critical: int
) -> None:
    order = np.argsort(w_variances)
    values = np.asarray(w_variances)[order]
    names = [kind for kind, layers in trained if layers == depth]
    for name, (colour, marker, line) in zip(names, _KINDS, strict=True):
        test = trained[name, depth].test[:, order]
        ax.errorbar(
            values,
            100 * test.mean(axis=0),
            100 * test.std(axis=0, ddof=1) / np.sqrt(len(test)),
            color=colour,
            marker=marker,
            linestyle=line,
            markersize=8,
            capsize=3,
            label=name,
        )
    ax.axhline(10, color="0.6", linewidth=0.8)
    ax.annotate("chance", (np.sqrt(values[0] * values[-1]), 10), (0, 5), textcoords="offset points")
    ax.set_xscale("log")
    ax.minorticks_off()
    ticks = [
        f"{value:g}" + ("\n(critical)" if w_variances[critical] == value else "")
        for value in values
    ]
    ax.set_xticks(values, ticks)
    ax.set(
        ylim=(0, 103),
        xlabel="weight variance × fan-in",
        ylabel="test accuracy, %",
        title=f"After training, {depth} layers",
    )


def _training(ax: Any, trained: Any, at: int, depth: int, every: int) -> None:
    names = [kind for kind, layers in trained if layers == depth]
    for name, (colour, marker, line) in zip(names, _KINDS, strict=True):
        logs = trained[name, depth].ratio()[:, at]
        steps = every * np.arange(logs.shape[-1])
        lost = np.flatnonzero(~np.isfinite(logs).all(axis=0))
        if lost.size:
            steps, logs = steps[: lost[0]], logs[:, : lost[0]]
        mean, error = logs.mean(axis=0), logs.std(axis=0, ddof=1) / np.sqrt(len(logs))
        ax.plot(steps, mean, color=colour, marker=marker, linestyle=line, markersize=6)
        ax.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
        if lost.size and len(steps):
            ax.annotate(
                f"{name}: 0 or not finite after this",
                (steps[-1], mean[-1]),
                (10, 0),
                textcoords="offset points",
                va="center",
            )
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xlabel="step", ylabel="log10 of gradient norm, first over last layer")
