"""The figure: gradients at the start and in training, and accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments._kit import Estimate, figures
from experiments.norm_layers.measurement import (
    KINDS,
    LEARNS,
    Options,
    Results,
    Start,
    Trained,
)
from jaxgrad.plotting import style

LOOKS = (
    {"color": "#000000", "marker": "o", "linestyle": "solid"},
    {"color": "#b35a12", "marker": "^", "linestyle": "dashed"},
    {"color": "#d99a2b", "marker": "D", "linestyle": "dashdot"},
    {"color": "#2f5fa8", "marker": "s", "linestyle": "dotted"},
)
"""Colour, marker and line of each kind, plain first."""


def figure(results: Results, options: Options) -> Any:
    """Gradients of plain and normalized networks at the start and in training, and accuracy."""
    result, axes = figures.panels(2, 2, (14, 9.5))
    depth, variances = max(options.depths), np.asarray(options.w_variances)
    trained = {kind: results.trained[kind, depth] for kind in KINDS}
    draw_start(axes[0, 0], results.start, options)
    draw_accuracy(axes[0, 1], trained, options)
    # In training, the variances where a plain network vanishes and where it explodes.
    ends = ((int(variances.argmin()), "small"), (int(variances.argmax()), "large"))
    for ax, (i, words) in zip(axes[1], ends, strict=True):
        draw_training(ax, trained, i, options.every)
        title = f"In training, weight variance {variances[i]:g} ({words}), {depth} layers"
        ax.set_title(title)
    figures.legend_below(result, axes[0, 1], 4)
    # The message of the figure: without norms most variances fail.
    counts = (f"{k}: {(t.test.mean(axis=0) > LEARNS).sum()}" for k, t in trained.items())
    question = f"At how many of {len(variances)} weight variances do {depth} layers learn at all?"
    result.suptitle(f"{question}\n{', '.join(counts)}", fontsize=15)
    return result


def draw_start(ax: Any, start: dict[str, Start], options: Options) -> None:
    """Gradients across depth before training, with theory."""
    depth, scale = np.arange(1, options.start_depth + 1), 1 / np.log(10)
    thin = {"linestyle": "solid", "markersize": 5, "markevery": max(len(depth) // 8, 1), "lw": 1}
    for (kind, one), look in zip(start.items(), LOOKS, strict=True):
        # Norms make the variance indifferent, so that one line stands for all.
        for i in range(len(options.w_variances) if kind == "plain" else 1):
            estimate = Estimate.of(one.measured[:, i]) * scale
            figures.error_band(ax, depth, estimate, **look | thin)
            label = "theory" if kind == "plain" and i == 0 else None
            dashed = {"color": style.THEORY, "linestyle": "dashed", "label": label}
            ax.plot(depth, one.predicted[i] * scale, **dashed)
            if kind == "plain":
                words = f"plain, variance {options.w_variances[i]:g}"
                ax.text(depth[-1] + 0.5, estimate.mean[-1], words, va="center")
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xlabel="depth, layers", ylabel="log10 of the squared gradient across so many layers")
    ax.set_title("Before training: plain at each variance, norms at any")
    ax.set_xlim(0, 1.33 * options.start_depth)
    ax.legend(frameon=False, loc="lower left")


def draw_accuracy(ax: Any, trained: dict[str, Trained], options: Options) -> None:
    """Test accuracy of the deepest networks by weight variance."""
    order = np.argsort(options.w_variances)
    values = np.asarray(options.w_variances)[order]
    for (kind, one), look in zip(trained.items(), LOOKS, strict=True):
        estimate = Estimate.of(one.test[:, order])
        figures.error_bars(ax, values, estimate, markersize=8, label=kind, **look)
    ax.axhline(0.1, color="0.6", linewidth=0.8)
    ax.text(np.sqrt(values[0] * values[-1]), 0.11, "chance")
    ax.set_xscale("log")
    critical = options.w_variances[options.critical]
    labels = [f"{value:g}" + "\n(critical)" * bool(value == critical) for value in values]
    figures.ticks(ax.xaxis, values, labels)
    figures.percent(ax.yaxis)
    ax.set(ylim=(0, 1.03), xlabel="weight variance × fan-in", ylabel="test accuracy")
    ax.set_title(f"After training, {max(options.depths)} layers")


def draw_training(ax: Any, trained: dict[str, Trained], i: int, every: int) -> None:
    """First over last gradient in training, up to where it is lost."""
    for (kind, one), look in zip(trained.items(), LOOKS, strict=True):
        logs = one.ratio()[:, i]
        # Lines end where a gradient of any seed is 0 or not finite.
        finite = np.asarray(np.isfinite(logs).all(axis=0))
        count = len(finite) if finite.all() else int(finite.argmin())
        steps, estimate = every * np.arange(count), Estimate.of(logs[:, :count])
        figures.error_band(ax, steps, estimate, markersize=6, **look)
        if 0 < count < len(finite):
            place = {"xytext": (10, 0), "textcoords": "offset points", "va": "center"}
            words = f"{kind}: 0 or not finite after this"
            ax.annotate(words, (steps[-1], estimate.mean[-1]), **place)
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xlabel="step", ylabel="log10 of gradient norm, first over last layer")
