"""The figure of `experiments.hyperparameters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import LINES, THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINES = tuple(
    (colour, marker, style)
    for (colour, marker), style in zip(
        (LINES[2], LINES[0], LINES[3], (THEORY, "P"), LINES[1]),
        ("solid", "dashed", "dashdot", (0, (6, 1)), "dotted"),
        strict=True,
    )
)


def hyperparameters(
    tried: Mapping[str, tuple[np.ndarray, np.ndarray]],
    best: Mapping[str, np.ndarray],
    losses: Mapping[str, Mapping[str, np.ndarray]],
    works: float,
    words: str = "",
) -> Figure:
    """All runs over their learning rate; the best so far of each search; training losses.

    Args:
      tried: learning rates and dev errors of each way to search, of the same shape.
      best: lowest dev error so far of each way to search, `[searches, runs]`, above 0.
      losses: by panel and name, `[seeds, epochs]`, above 0; two panels.
      works: dev error below which a run counts as one that works.
      words: a sentence or two for the title.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15.5, 6.6), layout="constrained")
    panels = figure.subplot_mosaic([["runs", "best", "a"], ["runs", "best", "b"]])
    _runs(panels["runs"], tried, works)
    _searches(panels["best"], best)
    for name, (title, curves) in zip("ab", losses.items(), strict=True):
        _losses(panels[name], title, curves)
    panels["b"].set_xlabel("epochs")
    figure.suptitle(words, fontsize=14)
    return figure


def _runs(ax: Any, tried: Mapping[str, tuple[np.ndarray, np.ndarray]], works: float) -> None:
    """Dev error against learning rate."""
    for (name, (rates, errors)), (colour, marker, _) in zip(tried.items(), _LINES, strict=False):
        share = np.mean(errors < works)
        ax.plot(
            rates.ravel(),
            100 * errors.ravel(),
            linestyle="none",
            marker=marker,
            markersize=4,
            alpha=0.6,
            color=colour,
            label=f"{name}: {share:.1%} work",
        )
    ax.axhline(100 * works, color=THEORY, linestyle="dashed", linewidth=1.8)
    ax.set(
        xscale="log",
        xlabel="learning rate, on a log axis",
        ylabel="dev error in percent (100: diverged)",
        ylim=(0, 103),
    )
    ax.set_title("Every run; those below the line work")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def _searches(ax: Any, best: Mapping[str, np.ndarray]) -> None:
    """The lowest dev error so far against the number of runs."""
    for (name, errors), (colour, marker, style) in zip(best.items(), _LINES, strict=False):
        runs = np.arange(1, errors.shape[1] + 1)
        mean, error = _mean_and_error(100 * errors)
        ax.plot(runs, mean, color=colour, marker=marker, markersize=4, linestyle=style, label=name)
        ax.fill_between(runs, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
    _error_axis(ax)
    ax.set(xlabel="runs tried", ylabel="best dev error so far in percent (band: standard error)")
    ax.set_title("What a search finds")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False, ncols=2)


def _error_axis(ax: Any) -> None:
    ax.set_yscale("log")
    ax.set_yticks([5, 10, 20, 50, 100], ["5", "10", "20", "50", "100"])
    ax.minorticks_off()


def _losses(ax: Any, title: str, curves: Mapping[str, np.ndarray]) -> None:
    """Training loss against epochs, geometric mean over seeds."""
    for (name, losses), (colour, marker, style) in zip(curves.items(), _LINES, strict=False):
        mean, error = _mean_and_error(np.log(losses))
        epochs = np.arange(1, losses.shape[1] + 1)
        ax.plot(
            epochs,
            np.exp(mean),
            color=colour,
            marker=marker,
            markersize=4,
            linestyle=style,
            label=name,
        )
        ax.fill_between(
            epochs, np.exp(mean - error), np.exp(mean + error), color=colour, alpha=0.2, linewidth=0
        )
    ax.set(yscale="log", ylabel="training loss")
    ax.set_title(title, fontsize=11)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))
