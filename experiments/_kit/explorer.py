"""An interactive page of maps: each cell shows the signal and the gradient over its layers.

The page holds its data, its code and its plotting library, so that it needs no network.
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import xarray

from jaxgrad import regimes, sweeps

OptionsType = TypeVar("OptionsType")

DECADES = 4
"""Colours of the map reach so far, in powers of ten of a norm."""
FEWEST_DEPTHS = 2
MOST_NUMBERS = 250_000
"""With more, of 4 bytes each, the page would exceed 3 MB; the library takes half of that."""
LINES = ("vanishing", "exploding", "theory", "level")
DASHES: dict[str, Any] = {"exploding": [9, 5], "level": "dotted"}
WORDS = {
    regimes.Regime.VANISHING: "vanishes",
    regimes.Regime.STABLE: "survives",
    regimes.Regime.EXPLODING: "explodes",
}
# Powers of ten at the ticks of all axes, which count decades.
POWERS = """
const digits = "⁰¹²³⁴⁵⁶⁷⁸⁹", power = Math.round(tick);
if (power === 0) return "1";
return "10" + (power < 0 ? "⁻" : "") + [...String(Math.abs(power))].map(d => digits[d]).join("");
"""
VARIANCES = "return String(Number((2 ** tick).toPrecision(2)))"


class Map(NamedTuple):
    """The map of one kind of network.

    Attributes:
      name: of the kind.
      dataset: `log_ratio` and `log_activation` over (activation, seed, w_variance, depth) and
        `log_profile` over (activation, seed, w_variance, layer), natural logs of squares.
      theory: the same without seeds; where its profile is NaN, the gradient inside of a network is
        that of the deepest one only.
      thresholds: of the regimes.
      block: "layer" if gradients are those at layers, "block" if at the inputs of blocks.
      quantity: words for the gradient.
      rows: words for what `activation` names.
    """

    name: str
    dataset: xarray.Dataset
    theory: xarray.Dataset
    thresholds: regimes.Thresholds
    block: str = "layer"
    quantity: str = "gradient"
    rows: str = "activation"


def map_size(dataset: xarray.Dataset) -> tuple[int, ...]:
    """Numbers of activations, seeds, variances and depths."""
    return tuple(dataset.sizes[name] for name in ("activation", "seed", "w_variance", "depth"))


def check(sizes: Sequence[tuple[int, ...]]) -> None:
    """Raise unless a page can be made of maps of these sizes, see `map_size`."""
    if importlib.util.find_spec("bokeh") is None:
        raise ImportError(
            'html needs Bokeh; run python -m pip install -e ".[html]" in this repository'
        )
    depth = min(size[-1] for size in sizes)
    if depth < FEWEST_DEPTHS:
        raise ValueError(f"html needs a depth of at least {FEWEST_DEPTHS}, got {depth}")
    # The gradient, the signal, and for some networks a profile.
    numbers = 3 * sum(map(math.prod, sizes))
    if numbers > MOST_NUMBERS:
        got = f"got {numbers}; measure fewer depths, variances or seeds, or omit html"
        raise ValueError(f"html must hold at most {MOST_NUMBERS} numbers, {got}")


def finished(
    path: Path, options_type: Callable[..., OptionsType]
) -> tuple[OptionsType, xarray.Dataset]:
    """Open the store of a finished map, with the options that it was measured with."""
    got = f"got {str(path)!r}"
    try:
        dataset = sweeps.open_store(path)
        config = json.loads(dataset.attrs["config"])
        options = options_type(
            **{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
        )
        map_size(dataset)
    except (TypeError, KeyError, ValueError, OSError) as error:
        rule = "html_stores must be stores that this command has written"
        raise ValueError(f"{rule}, {got} ({error})") from error
    if not dataset["computed"].values.all():
        raise ValueError(f"html_stores must be finished, {got}; run its command again")
    return options, dataset


def write(path: Path, maps: Sequence[Map], note: str) -> None:
    """Write a page with these maps, and a note about the measurement below them."""
    figures = {"map": _map_figure(), "signal": _curve_figure(), "gradient": _curve_figure()}
    items = {name: _bokeh("embed").json_item(figure, name) for name, figure in figures.items()}
    # Of the library, only what draws: no widgets and no tables.
    how = {"mode": "inline", "components": ["bokeh"], "log_level": "error"}
    library = _bokeh("resources").Resources(**how).render_js()
    folder = Path(__file__).parent
    parts = {
        "NOTE": note,
        "LIBRARY": library,
        "DATA": _script_text({"figures": items, "maps": [_content(part) for part in maps]}),
        "SCRIPT": (folder / "explorer.js").read_text(encoding="utf-8"),
    }
    page = (folder / "explorer.html").read_text(encoding="utf-8")
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text)
    path.write_text(page, encoding="utf-8")


def _script_text(value: Any) -> str:
    """JSON that cannot end the element it is written in."""
    return json.dumps(value, allow_nan=False).replace("</", "<\\/")


def _content(page: Map) -> dict[str, Any]:
    names = [str(name) for name in page.dataset["activation"].values]
    return {
        "name": page.name,
        "block": page.block,
        "quantity": page.quantity,
        "rowWords": page.rows,
        "variances": page.dataset["w_variance"].values.tolist(),
        "depths": page.dataset["depth"].values.tolist(),
        "seeds": page.dataset.sizes["seed"],
        "reach": DECADES,
        "rows": [_row(page, name) for name in names],
    }


def _row(page: Map, name: str) -> dict[str, Any]:
    """What the page needs of one activation; numbers are decades of norms."""
    measured, theory = page.dataset.sel(activation=name), page.theory.sel(activation=name)
    arrays = {
        key: measured[variable].transpose("seed", "w_variance", "depth").values
        for key, variable in (("gradient", "log_ratio"), ("signal", "log_activation"))
    }
    for key, variable in (("gradientTheory", "log_ratio"), ("signalTheory", "log_activation")):
        arrays[key] = theory[variable].transpose("w_variance", "depth").values
    if np.isnan(theory["log_profile"].values).any():
        profile = measured["log_profile"].transpose("seed", "w_variance", "layer").values
        arrays["deepest"] = profile - profile[..., :1]
    depths = page.dataset["depth"].values
    regime = np.asarray(regimes.classify(arrays["gradient"], depths, page.thresholds).regime)
    lines, words = _lines(page, arrays, regime)
    content: dict[str, Any] = {k: _encoded(v / (2 * np.log(10))) for k, v in arrays.items()}
    content |= {"regime": _encoded(regime), "inputs": page.block == "block"}
    return content | {"name": name, "lines": lines, "words": words}


def _encoded(values: np.ndarray) -> str:
    """An array as little-endian numbers of 4 bytes, in base64."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _lines(page: Map, arrays: dict[str, np.ndarray], regime: np.ndarray) -> tuple[Any, Any]:
    """Lines over the map by name, and the words in its regions; heights are log2 of variances."""
    from contourpy import contour_generator

    variances, depths = page.dataset["w_variance"].values, page.dataset["depth"].values
    height = np.log2(variances)
    lines: dict[str, list[list[list[float]]]] = {name: [] for name in LINES}
    # Regimes are -1, 0 and 1, so that their borders are contours at -1/2 and 1/2.
    borders = contour_generator(depths, height, regime.astype(float))
    for name, edge in (("vanishing", -0.5), ("exploding", 0.5)):
        lines[name] = [np.transpose(np.asarray(line)).tolist() for line in borders.lines(edge)]
    # `level` takes seeds, and a prediction has none: two equal ones stand for them.
    predicted = np.stack([arrays["gradientTheory"]] * 2)
    for name, values in (("level", arrays["gradient"]), ("theory", predicted)):
        level = np.log2(np.asarray(regimes.level(values, variances, page.thresholds).variance))
        # In networks of one layer the first one is also the last.
        finite = np.isfinite(level) & (depths > depths[0])
        lines[name] = [[depths[finite].tolist(), level[finite].tolist()]]
    # No word lies over the lines of level gradients.
    near = np.zeros_like(regime, bool)
    for name in ("level", "theory"):
        columns, heights = lines[name][0]
        if columns:
            line = np.interp(depths, columns, heights)
            near |= np.isclose(height[:, None], line, atol=0.3)
    words = []
    for value, word in WORDS.items():
        if (cell := _innermost((regime == value) & ~near)) is not None:
            words.append([float(depths[cell[1]]), float(height[cell[0]]), word])
    return lines, words


def _innermost(region: np.ndarray) -> tuple[int, int] | None:
    """The cell of a region that is farthest from its border; `None` if the region is small."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = region.shape
    # In units of the map's sides; a word needs more room to its sides than above.
    sampling = (1 / rows, 0.4 / columns)
    room = np.asarray(distance_transform_edt(np.pad(region, 1), sampling))[1:-1, 1:-1]
    if room.max(initial=0) < 1 / 24:
        return None
    # Of several cells with almost as much room, the one in their middle.
    best = np.argwhere(room > 0.95 * room.max())
    row, column = best[np.abs(best - best.mean(axis=0)).sum(axis=1).argmin()]
    return int(row), int(column)


def _bokeh(module: str) -> Any:
    """A module of the plotting library, whose types do not know its properties."""
    return importlib.import_module(f"bokeh.{module}")


def _map_figure() -> Any:
    """The map without its data, which the page fills in."""
    models = _bokeh("models")
    plot = _figure(430)
    plot.yaxis.axis_label = "weight variance × fan-in"
    plot.yaxis.formatter = models.CustomJSTickFormatter(code=VARIANCES)
    plot.yaxis.ticker = models.FixedTicker(ticks=list(range(-10, 11)))
    plot.grid.visible = False
    palette = _bokeh("palettes").Cividis256
    colors = models.LinearColorMapper(palette, low=-DECADES, high=DECADES, nan_color="#888888")
    # Edges in the same colour leave no seams between cells.
    look = {key: {"field": "value", "transform": colors} for key in ("fill_color", "line_color")}
    columns = dict.fromkeys(("x", "y", "height", "value"), ())
    plot.rect("x", "y", 1, "height", source=columns, name="cells", **look)
    for name in LINES:
        ink = {"line_color": "#ff4fc3" if name == "theory" else "black", "line_width": 2.5}
        ink["line_dash"] = DASHES.get(name, "solid")
        # A measured level that is that of theory leaves it visible.
        halo = {"line_color": "white", "line_width": 0 if name == "level" else 6}
        for end, look in ((" halo", halo), ("", ink)):
            plot.multi_line("x", "y", source={"x": [], "y": []}, name=name + end, **look)
    words = {"text_color": "white", "text_font_style": "bold", "text_font_size": "16px"}
    words |= {"text_align": "center", "text_baseline": "middle"}
    box = {"background_fill_color": "#1b1b1f", "background_fill_alpha": 0.75, "border_radius": 4}
    columns = dict.fromkeys(("x", "y", "text"), ())
    plot.text("x", "y", "text", source=columns, name="words", padding=5, **words, **box)
    for name, color, width in (("mark halo", "white", 7), ("mark", "black", 3)):
        ring = {"size": 17, "fill_color": None, "line_color": color, "line_width": width}
        plot.scatter("x", "y", source={"x": [], "y": []}, name=name, **ring)
    bar = models.ColorBar(color_mapper=colors, height=12, padding=4, name="bar")
    bar.ticker = models.FixedTicker(ticks=list(range(-DECADES, DECADES + 1)))
    bar.formatter = models.CustomJSTickFormatter(code=POWERS)
    plot.add_layout(bar, "above")
    return plot


def _curve_figure() -> Any:
    """A panel over the layers without its data."""
    models = _bokeh("models")
    plot = _figure(215)
    plot.yaxis.formatter = models.CustomJSTickFormatter(code=POWERS)
    for axis in (plot.xaxis, plot.yaxis):
        axis.ticker = models.AdaptiveTicker(mantissas=[1, 2, 5], min_interval=1)
    plot.yaxis.ticker.desired_num_ticks = 5
    plot.add_layout(models.Span(location=0, dimension="width", line_color="#888888"))
    columns = dict.fromkeys(("x", "low", "high"), ())
    plot.varea("x", "low", "high", source=columns, name="band", fill_alpha=0.3)
    for name, dash, size in (("theory", "dashed", 6), ("measured", "solid", 5)):
        columns = {"x": [], "y": []}
        plot.line("x", "y", line_width=2.5, line_dash=dash, source=columns, name=name)
        # Points that have no neighbours to be joined to.
        plot.scatter("x", "y", size=size, source=columns, name=f"{name} points")
    return plot


def _figure(height: int) -> Any:
    ranges = {name: _bokeh("models").Range1d(0, 1) for name in ("x_range", "y_range")}
    return _bokeh("plotting").figure(
        height=height,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        # Room for half of the last tick's label.
        min_border_right=18,
        outline_line_color=None,
        **ranges,
    )
