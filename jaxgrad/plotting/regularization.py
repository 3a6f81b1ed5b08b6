"""The figure of `experiments.regularization`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import LINES, SHADES, THEORY

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

_PANELS = {
    "l2": ("L2", "λ", "λ of the penalty λ / (2 m) · sum of w²\nstronger →"),
    "l1": ("L1", "λ", "λ of the penalty λ / (2 m) · sum of |w|\nstronger →"),
    "keep_prob": ("Dropout", "keep_prob", "share of hidden units kept\n← stronger"),
}


def regularization(found: xarray.Dataset, words: str = "") -> Figure:
    """Train and dev error against the strength of each way to regularise.

    The gap is shaded where dev error is the higher one. Horizontal lines are dev errors of what has
    one strength only.

    Args:
      found: of `experiments.regularization`: `train`, `dev` and `stopped_dev` over (seed, setting),
        with coordinates `kind` and `strength` of the settings.
      words: a sentence or two for the title, such as how far dev error falls.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    kinds = [kind for kind in _PANELS if (found["kind"] == kind).any()]
    figure = Figure(figsize=(4.3 * len(kinds), 5.6), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    references = _references(found)
    for ax, kind in zip(panels, kinds, strict=True):
        for label, (level, style) in references.items():
            ax.axhline(level, label=f"{label}: dev error", linewidth=1.8, **style)
        _curves(ax, found.isel(setting=np.flatnonzero(found["kind"] == kind)), kind)
    panels[0].set_ylabel("error in percent, mean of seeds (bars: two standard errors)")
    # Strengths that ruin the network would flatten everything else.
    best = 100 * found["dev"].mean("seed").groupby(found["kind"]).min()
    top = 1.7 * max(float(best.max()), references["no regularisation"][0], 1.0)
    panels[0].set_ylim(-0.03 * top, top)
    figure.suptitle(words, fontsize=13)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _references(found: xarray.Dataset) -> dict[str, tuple[float, dict[str, Any]]]:
    """Level and style of the horizontal lines."""

    def level(name: str, kind: str) -> float:
        return 100 * float(found[name].values[:, found["kind"].values == kind].mean())

    return {
        "no regularisation": (level("dev", "none"), {"color": "black", "linestyle": "dotted"}),
        "early stopping": (level("stopped_dev", "none"), {"color": THEORY, "linestyle": "dashed"}),
        "augmentation": (
            level("dev", "augmentation"),
            {"color": SHADES[1], "linestyle": "dashdot"},
        ),
    }


def _curves(ax: Any, chosen: xarray.Dataset, kind: str) -> None:
    """Both errors over strength, the gap between them and the best of dev."""
    chosen = chosen.sortby("strength")
    strength = chosen["strength"].values
    middle = {}
    for name, (colour, marker) in (("dev", LINES[0]), ("train", LINES[4])):
        values = 100 * chosen[name].transpose("seed", "setting").values
        middle[name] = values.mean(axis=0)
        ax.errorbar(
            strength,
            middle[name],
            yerr=2 * values.std(axis=0, ddof=1) / np.sqrt(len(values)),
            color=colour,
            marker=marker,
            capsize=3,
            label=f"{name} error",
            zorder=4,
        )
    train, dev = middle["train"], middle["dev"]
    ax.fill_between(
        strength,
        train,
        dev,
        where=dev >= train,
        interpolate=True,
        color=SHADES[4],
        alpha=0.35,
        linewidth=0,
        label="gap: train error is lower",
    )
    best = int(dev.argmin())
    ax.plot(
        strength[best],
        dev[best],
        linestyle="none",
        marker="o",
        markersize=17,
        markerfacecolor="none",
        markeredgecolor="black",
        markeredgewidth=1.6,
        label="best dev error",
        zorder=5,
    )
    title, symbol, words = _PANELS[kind]
    ax.set_title(f"{title}: best at {symbol} = {strength[best]:g}")
    ax.set_xlabel(words)
    if symbol == "λ":
        ax.set_xscale("log")
        ax.set_xticks(strength, [f"{value:g}" for value in strength])
        ax.minorticks_off()
