"""The figure of `experiments.data_splits`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import LINES, SHADES, THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def data_splits(spread: Any, shares: Any, detected: Any, level: float) -> Figure:
    """Noise of the dev error, class shares, and how often unlike dev and test sets are found.

    Args:
      spread, shares, detected: of `experiments.data_splits`, its `Spread`, its `Shares` and a
        sequence of its `Detected`, the random split first.
      level: share of equal pairs that may be taken for different.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8.6), layout="constrained")
    axes = figure.subplot_mosaic([["noise", "shares"], ["found", "found"]])
    _noise(axes["noise"], spread)
    _shares(axes["shares"], shares)
    _found(axes["found"], detected, level)
    return figure


def _noise(ax: Any, spread: Any) -> None:
    sizes = np.geomspace(spread.sizes[0], spread.sizes[-1], 100)
    p = spread.error
    ax.plot(
        sizes,
        100 * np.sqrt(p * (1 - p) / sizes),
        color=THEORY,
        linestyle="dashed",
        label=r"binomial: $\sqrt{p\,(1-p)\,/\,n}$",
    )
    ax.errorbar(
        spread.sizes,
        100 * spread.measured,
        yerr=200 * spread.uncertainty,
        color=SHADES[0],
        marker="o",
        linestyle="none",
        capsize=4,
        label="measured ± two standard errors",
    )
    ax.set_xscale("log")
    ax.set_yscale("log")
    low, high = 100 * spread.measured.min() / 1.3, 100 * spread.measured.max() * 1.3
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 30) if low <= t <= high]
    ax.set_xticks(spread.sizes, [str(size) for size in spread.sizes])
    ax.set_yticks(ticks, [f"{t} %" for t in ticks])
    ax.minorticks_off()
    ax.set(
        ylim=(low, high),
        xlabel="examples in the dev set",
        ylabel="standard deviation of the dev error\nover random splits",
    )
    ax.set_title(
        f"{spread.sizes[-1]} dev examples tell an error of {p:.0%}\n"
        f"to ± {2 * spread.measured[-1]:.1%}, {spread.sizes[0]} to ± {2 * spread.measured[0]:.0%}"
    )
    ax.legend(frameon=False)


def _shares(ax: Any, shares: Any) -> None:
    plain = np.round(shares.plain * shares.size).astype(int)
    stratified = np.round(shares.stratified * shares.size).astype(int)
    low, high = min(plain.min(), stratified.min()), max(plain.max(), stratified.max())
    counts = np.arange(low, high + 1)
    for values, colour, hatch, width, label in (
        (stratified, SHADES[4], "//", 0.9, "split class by class"),
        (plain, SHADES[1], None, 0.6, "plain random split"),
    ):
        ax.bar(
            100 * counts / shares.size,
            [np.mean(values == count) for count in counts],
            width=100 * width / shares.size,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=label,
        )
    ax.axvline(100 * shares.whole, color="black", linestyle="dotted", label="in all data")
    ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    ax.set(
        xlabel=f"share of {shares.name} of wine in the dev set ({shares.size} examples)",
        ylabel="share of random splits",
    )
    ax.set_title(
        f"A class of {shares.whole:.0%} has {_range(shares.plain)} of plain dev sets,\n"
        f"{_range(shares.stratified)} of those split class by class"
    )
    ax.legend(loc="center right", frameon=False, fontsize=9, handlelength=1.2)


def _range(values: np.ndarray) -> str:
    low, high = f"{values.min():.0%}", f"{values.max():.0%}"
    return low if low == high else f"{low} to {high}"


def _found(ax: Any, detected: Any, level: float) -> None:
    at = np.arange(len(detected))[::-1]
    kinds = (
        ("by a feature", [row.features for row in detected], LINES[3], 0.2),
        ("by all features jointly", [row.joint for row in detected], LINES[1], -0.2),
    )
    for label, rates, (colour, marker), offset in kinds:
        ax.barh(
            at + offset, 100 * np.array(rates), height=0.18, color=colour, alpha=0.35, linewidth=0
        )
        ax.plot(
            100 * np.array(rates),
            at + offset,
            color=colour,
            marker=marker,
            linestyle="none",
            label=label,
            clip_on=False,
        )
    ax.errorbar(
        [100 * row.rate for row in detected],
        at,
        xerr=[200 * row.error for row in detected],
        color="black",
        marker="o",
        linestyle="none",
        capsize=4,
        label="by either ± two standard errors",
        zorder=5,
    )
    ax.axvline(100 * level, color=THEORY, linestyle="dashed", label=f"level {level:.0%}")
    for y, row in zip(at, detected, strict=True):
        if row.features > 3 * level:
            ax.text(
                104,
                y,
                f"most often {row.named[0]}",
                va="center",
                fontsize=9,
                color="0.3",
            )
    ax.set_yticks(at, [textwrap.fill(row.name, 24) for row in detected])
    ax.set(
        xlim=(0, 103),
        xlabel="pairs of dev and test set that are taken for different "
        f"(of {detected[0].trials} pairs)",
    )
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0f} %")
    equal, *unlike = (row.rate for row in detected)
    ax.set_title(
        f"Comparing dev with test: random splits differ in {equal:.1%} of pairs,\n"
        f"faulty ones in {min(unlike):.0%} to {max(unlike):.0%}"
    )
    ax.figure.legend(
        *ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False
    )
