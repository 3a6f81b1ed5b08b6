"""The figure of `experiments.phase_diagram`."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad.plotting.style import THEORY, halo, middle, shades

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

_FACTORS = (0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0)
_SCALES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)


def phase_diagram(measured: xarray.Dataset, theory: xarray.Dataset, words: str = "") -> Figure:
    """The phases of one activation over (weight variance, bias variance).

    The colour is measured: growth per layer of the squared gradient, mean over seeds. The lines are
    theory: where it is level, and over how many layers it changes by e.

    Args:
      measured: of `experiments.phase_diagram`: `growth` over (seed, b_variance, w_variance),
        natural logs.
      theory: of the same experiment: `q` and `chi_perp` over (b_variance, w_variance), and the name
        of the `activation` and the weight and bias variance of a `critical` point, or NaN, in its
        attributes.
      words: a sentence for the title, such as where the critical point is.

    Returns:
      A matplotlib figure, to be shown or saved by the caller.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 8), layout="constrained")
    ax = figure.subplots()
    growth = measured["growth"].transpose("seed", "b_variance", "w_variance").values.mean(axis=0)
    reach = np.log(_FACTORS[-1])
    mesh = ax.pcolormesh(
        measured["w_variance"].values,
        measured["b_variance"].values,
        growth,
        cmap=shades(),
        vmin=-reach,
        vmax=reach,
        rasterized=True,
    )
    figure.colorbar(
        mesh,
        ax=ax,
        extend="both",
        label="measured: factor of the squared gradient per layer, on its way back",
        ticks=np.log(_FACTORS),
        format=lambda value, _: "level" if value == 0 else f"× {np.exp(value):.2g}",
    )
    w, b = (theory[name].values for name in ("w_variance", "b_variance"))
    q, chi = (
        theory[name].transpose("b_variance", "w_variance").values for name in ("q", "chi_perp")
    )
    handles = _lines(ax, w, b, q, chi)
    _regions(ax, w, b, q, chi)
    point = theory.attrs["critical"]
    if w[0] <= point[0] <= w[-1] and b[0] <= point[1] <= b[-1]:
        star = ax.plot(
            *point,
            linestyle="none",
            marker="*",
            markersize=20,
            color=THEORY,
            markeredgecolor="white",
            clip_on=False,
            zorder=6,
            label="theory: critical point",
        )
        handles += star
    ax.set(
        xlim=(w[0], w[-1]),
        ylim=(b[0], b[-1]),
        xlabel="weight variance × fan-in",
        ylabel="bias variance",
    )
    title = f"{theory.attrs['activation']}: where gradients vanish and where they explode"
    ax.set_title("\n".join([title, *textwrap.wrap(words, 80)]), fontsize=13)
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _lines(ax: Any, w: np.ndarray, b: np.ndarray, q: np.ndarray, chi: np.ndarray) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = []
    with np.errstate(divide="ignore"):
        log_chi = np.log(chi)
    scale = 1 / np.maximum(np.abs(log_chi), 1e-9)
    within = [level for level in _SCALES if scale.min() < level < scale.max()]
    if within:
        # Between a scale below and one above the critical line there is no contour of it alone.
        for side in (np.minimum(log_chi, 0.0), np.maximum(log_chi, 0.0)):
            levels = sorted(np.sign(side.sum()) / level for level in within)
            lines = ax.contour(
                w, b, side, levels, colors="black", linestyles="solid", linewidths=0.8
            )
            ax.clabel(lines, fmt=lambda value: f"{1 / abs(value):.3g}", fontsize=9)
        handles.append(
            Line2D([], [], color="black", linewidth=0.8, label="theory: depth scale ξ in layers")
        )
    bounded = np.ma.masked_where(np.isinf(q), log_chi)
    if bounded.count() and bounded.min() < 0 < bounded.max():
        border = ax.contour(w, b, bounded, [0.0], colors=THEORY, linewidths=3.5)
        border.set_path_effects(halo(6))
        handles.append(Line2D([], [], color=THEORY, linewidth=3.5, label="theory: gradient level"))
    for lost, words in (
        (np.isinf(q), "theory: signal grows without bound"),
        (np.isnan(chi), "theory: nothing is defined"),
    ):
        if lost.any():
            hatch = "//" if np.isinf(q[lost]).any() else "xx"
            ax.contourf(w, b, lost.astype(float), [0.5, 1.5], colors="none", hatches=[hatch])
            handles.append(Patch(facecolor="none", edgecolor="black", hatch=hatch, label=words))
    return handles


def _regions(ax: Any, w: np.ndarray, b: np.ndarray, q: np.ndarray, chi: np.ndarray) -> None:
    for where, words in (
        (chi < 1, "ordered:\ngradients vanish"),
        (chi > 1, "chaotic:\ngradients explode"),
    ):
        lost = where & np.isinf(q)
        # Words go where the phase has most room, those of a phase without bound say so.
        if lost.sum() > where.sum() / 2:
            words = words.replace("chaotic", "no stable length")
        spot = middle(where)
        if spot is not None and where.mean() > 0.02:
            ax.text(
                w[spot[1]],
                b[spot[0]],
                words,
                ha="center",
                va="center",
                fontsize=15,
                fontweight="bold",
                path_effects=halo(4),
            )
