"""The figure: train and dev error against the strength of each way to regularize."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures
from experiments.regularization.measurement import KINDS, Options, best, ways
from jaxgrad.plotting import style

PANELS = {
    "l2": ("L2", "λ", "λ of the penalty λ / (2 m) · sum of w²\nstronger →"),
    "l1": ("L1", "λ", "λ of the penalty λ / (2 m) · sum of |w|\nstronger →"),
    "dropout": ("Dropout", "rate", "share of hidden units that are dropped\nstronger →"),
}


def figure(dataset: xarray.Dataset, options: Options) -> Any:
    """Train and dev error against strength; horizontal lines are ways without a strength."""
    result, axes = figures.panels(1, len(PANELS), (12.9, 5.6), sharey=True)
    dev = dataset["dev"].values
    none, reached = dev[:, 0].mean(), ways(dataset, "dev")
    lines = (
        ("no regularization", none, "black", "dotted"),
        ("early stopping", reached["early stopping"].mean(), style.THEORY, "dashed"),
        ("augmentation", reached["augmentation"].mean(), style.SHADES[1], "dashdot"),
    )
    for ax, kind in zip(axes[0], PANELS, strict=True):
        for name, height, color, line in lines:
            look = {"color": color, "linestyle": line, "linewidth": 1.8}
            ax.axhline(height, label=f"{name}: dev error", **look)
        draw_curves(ax, dataset.isel(setting=np.flatnonzero(dataset["kind"] == kind)), kind)
    axes[0, 0].set_ylabel("error, mean of seeds (bars: two standard errors)")
    figures.percent(axes[0, 0].yaxis)
    # Strengths that ruin the network would flatten everything else.
    top = 1.7 * max(none, *(dev[:, best(dataset, kind)].mean() for kind in KINDS), 0.01)
    axes[0, 0].set_ylim(-0.03 * top, top)
    result.suptitle(headline(dataset, options), fontsize=13)
    figures.legend_below(result, axes[0, 0], 3)
    return result


def headline(dataset: xarray.Dataset, options: Options) -> str:
    """The dev errors of all ways that lower it by the rule of evidence."""
    dev, errors = dataset["dev"].values[:, 0], ways(dataset, "dev")
    tests = [Claim(name, Estimate.paired(v, dev), "less") for name, v in errors.items()]
    lower = [v.claim.text for v in kit.verdicts(tests) if v.outcome == "HOLDS"]
    # Only those are named whose difference the rule of evidence confirms.
    lower.sort(key=lambda name: errors[name].mean())
    words = ", ".join(f"{errors[name].mean():.0%} ({name.split(',')[0]})" for name in lower)
    none = f"dev error of {dev.mean():.0%}"
    return (
        (f"Regularized, the {none} falls to {words}" if lower else f"Nothing lowers the {none}")
        + f"\nWithout, train error is {dataset['train'].values[:, 0].mean():.0%}, though "
        f"{options.mislabelled:.0%} of the training labels are drawn at random"
    )


def draw_curves(ax: Any, part: xarray.Dataset, kind: str) -> None:
    """Both errors over strength, the gap between them and the best dev error."""
    part = part.sortby("strength")
    strength, mean = part["strength"].values, {}
    for name, (color, marker) in (("dev", style.LINES[0]), ("train", style.LINES[4])):
        estimate = Estimate.of(part[name].transpose("seed", "setting").values)
        look = {"color": color, "marker": marker, "zorder": 4, "label": f"{name} error"}
        figures.error_bars(ax, strength, estimate, **look)
        mean[name] = estimate.mean
    train, dev = mean["train"], mean["dev"]
    gap = {"color": style.SHADES[4], "alpha": 0.35, "label": "gap: train error is lower"}
    ax.fill_between(strength, train, dev, where=dev >= train, interpolate=True, lw=0, **gap)
    index = int(dev.argmin())
    # The strength that the dev set chooses.
    ring = {"markersize": 17, "markerfacecolor": "none", "markeredgecolor": "black"}
    ax.plot(strength[index], dev[index], "o", label="best dev error", zorder=5, **ring)
    title, symbol, words = PANELS[kind]
    ax.set_title(f"{title}: best at {symbol} = {strength[index]:g}")
    ax.set_xlabel(words)
    if symbol == "λ":
        ax.set_xscale("log")
        figures.ticks(ax.xaxis, strength)
