"""The ordered and the chaotic phase over weight and bias variance, measured and predicted."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxgrad import _validate
from jaxgrad.plotting import style
from jaxgrad.plotting.style import check_dataset, halo, heat_map, name_region, palette

if TYPE_CHECKING:
    import xarray
    from matplotlib.figure import Figure

FACTORS = (0.5, 0.7, 0.9, 1.0, 1.1, 1.4, 2.0)
SCALES = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 100.0)


def phase_diagram(measured: xarray.Dataset, theory: xarray.Dataset, title: str = "") -> Figure:
    """Draw the phases of one activation over (weight variance, bias variance).

    The colour is measured: growth per layer of the squared gradient, mean over seeds. The lines are
    theory: where it is level, and over how many layers it changes by e.

    Args:
      measured: `growth` over (seed, b_variance, w_variance), natural logs.
      theory: `q` and `chi_perp` of `jaxgrad.theory.limit` over (b_variance, w_variance), and in its
        attributes the name of the `activation` and the weight and bias variance of a `critical`
        point, or NaN.
      title: a sentence for the title, such as where the critical point is.
    """
    _validate.installed("plotting.phase_diagram", "experiments", "matplotlib")
    from matplotlib.figure import Figure

    check_dataset("measured", measured, ("growth", "seed", "b_variance", "w_variance"))
    check_dataset("theory", theory, ("q", "chi_perp", "b_variance", "w_variance"))
    _validate.text("title", title)
    figure = Figure(figsize=(style.WIDTH, 6.4), layout="constrained")
    ax = figure.subplots()
    growth = measured["growth"].transpose("seed", "b_variance", "w_variance").values.mean(axis=0)
    # Symmetric around 0, so that the middle colour is a level gradient.
    bar = {
        "label": "measured: factor of the squared gradient per layer",
        "ticks": np.log(FACTORS),
        "format": lambda value, _: "level" if value == 0 else f"× {np.exp(value):.2g}",
    }
    w, b = (measured[name].values for name in ("w_variance", "b_variance"))
    mesh = heat_map(ax, w, b, growth, np.log(FACTORS[-1]))
    figure.colorbar(mesh, ax=ax, extend="both", **bar)
    w, b = (theory[name].values for name in ("w_variance", "b_variance"))
    q, chi = (
        theory[name].transpose("b_variance", "w_variance").values for name in ("q", "chi_perp")
    )
    # The critical line is drawn over the lines of equal scale.
    handles = [*_scales(ax, w, b, chi), *_critical_line(ax, w, b, q, chi)]
    handles += _undefined(ax, w, b, q, chi)
    _regions(ax, w, b, q, chi)
    point = theory.attrs["critical"]
    if w[0] <= point[0] <= w[-1] and b[0] <= point[1] <= b[-1]:
        colors = {"color": palette().theory, "markeredgecolor": palette().paper}
        look = {"marker": "*", "markersize": 18, **colors}
        label = "theory: critical point"
        handles += ax.plot(*point, ls="none", clip_on=False, zorder=6, label=label, **look)
    ax.set(xlim=(w[0], w[-1]), ylim=(b[0], b[-1]))
    ax.set(xlabel="weight variance × fan-in", ylabel="bias variance")
    heading = f"{theory.attrs['activation']}: where gradients vanish and where they explode"
    style.headline(figure, heading)
    ax.set_title(textwrap.fill(title, 80))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _scales(ax: Any, w: np.ndarray, b: np.ndarray, chi: np.ndarray) -> list[Any]:
    """Draw lines of equal depth scale `1 / |log chi|`."""
    with np.errstate(divide="ignore"):
        log_chi = np.log(chi)
    # A squared gradient changes by e over this many layers; infinitely many on the line.
    scale = 1 / np.maximum(np.abs(log_chi), 1e-9)
    levels = [level for level in SCALES if scale.min() < level < scale.max()]
    if not levels:
        return []
    # Each side alone, or a line would connect a scale below with one above the critical line.
    for side in (np.minimum(log_chi, 0.0), np.maximum(log_chi, 0.0)):
        values = sorted(np.sign(side.sum()) / level for level in levels)
        look = {"colors": palette().ink, "linestyles": "solid", "linewidths": 0.8}
        lines = ax.contour(w, b, side, values, **look)
        # Names of phases are in the middle, so labels are near the top of their lines.
        points = [path.vertices for path in lines.get_paths() if len(path.vertices)]
        places = [v[np.argmin(np.abs(v[:, 1] - 0.85 * b[-1] - 0.15 * b[0]))] for v in points]
        label = {"fmt": lambda value: f"{1 / abs(value):.3g}", "fontsize": style.NOTE}
        texts = ax.clabel(lines, manual=places, **label)
        for text in texts:
            text.set_path_effects(halo(2))
    return ax.plot([], [], color=palette().ink, lw=0.8, label="theory: depth scale ξ in layers")


def _critical_line(ax: Any, w: Any, b: Any, q: np.ndarray, chi: np.ndarray) -> list[Any]:
    """Draw where `chi` is 1 and lengths are bounded."""
    with np.errstate(divide="ignore"):
        bounded = np.ma.masked_where(np.isinf(q), np.log(chi))
    if not (bounded.count() and bounded.min() < 0 < bounded.max()):
        return []
    # log chi = 0.
    border = ax.contour(w, b, bounded, [0.0], colors=palette().theory, linewidths=3.5)
    border.set_path_effects(halo(6))
    return ax.plot([], [], color=palette().theory, linewidth=3.5, label="theory: gradient level")


def _undefined(ax: Any, w: Any, b: Any, q: np.ndarray, chi: np.ndarray) -> list[Any]:
    """Hatch regions without a bounded signal, or without any prediction."""
    from matplotlib.patches import Patch

    handles = []
    for region, hatch, words in (
        (np.isinf(q), "//", "theory: signal grows without bound"),
        (np.isnan(chi), "xx", "theory: nothing is defined"),
    ):
        if region.any():
            ax.contourf(w, b, region.astype(float), [0.5, 1.5], colors="none", hatches=[hatch])
            handles.append(
                Patch(facecolor="none", edgecolor=palette().ink, hatch=hatch, label=words)
            )
    return handles


def _regions(ax: Any, w: np.ndarray, b: np.ndarray, q: np.ndarray, chi: np.ndarray) -> None:
    """Name the phases, each in the middle of its region."""
    for region, words in (
        (chi < 1, "ordered:\ngradients vanish"),
        (chi > 1, "chaotic:\ngradients explode"),
    ):
        # A phase that is mostly without a bounded signal is not called chaotic.
        if (region & np.isinf(q)).sum() > region.sum() / 2:
            words = words.replace("chaotic", "no stable length")
        if region.mean() > 0.02:
            name_region(ax, w, b, region, words)
