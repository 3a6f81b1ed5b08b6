"""Checks of a figure that hold for all: no text on text, one font, named axes, a dark theme."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from jaxgrad.plotting import style

SIZES = {style.NOTE, style.TEXT, style.TITLE}
SLACK = 1.0  # pixels that boxes of neighbouring texts may share


def legible(draw: Callable[[], Any]) -> Any:
    """Check what `draw` draws in both themes, and return it as drawn in the light one."""
    results = []
    for theme in ("dark", "light"):
        with style.theme(theme):
            results.append(draw())
            parts = results[-1] if isinstance(results[-1], Mapping) else {"": results[-1]}
            for figure in parts.values():
                check(figure, theme)
    return results[-1]


def message(figure: Any) -> str:
    """The title of a figure in one line."""
    return " ".join(figure.get_suptitle().split())


def check(figure: Any, theme: str) -> None:
    """Check a figure that was made in a theme."""
    texts = drawn_texts(figure)
    assert figure.get_size_inches()[0] == style.WIDTH
    assert figure.get_suptitle(), "no message"
    assert max(map(len, figure.get_suptitle().splitlines())) <= style.COLUMNS
    assert len(figure.get_suptitle().splitlines()) <= 2, figure.get_suptitle()
    for text, box in texts:
        assert text.get_fontname() == style.FONT
        assert text.get_fontsize() in SIZES, (text.get_text(), text.get_fontsize())
        inside = (box[:2] > -SLACK).all() and (box[2:] < figure.bbox.max + SLACK).all()
        assert inside, f"{text.get_text()!r} is cut"
        if not text.get_path_effects():
            ratio = contrast(text.get_color(), figure.get_facecolor())
            assert ratio > 4.5, (text.get_text(), ratio)
    for (one, box), (other, next_box) in itertools.combinations(texts, 2):
        shared = np.minimum(box[2:], next_box[2:]) - np.maximum(box[:2], next_box[:2])
        assert not (shared > SLACK).all(), f"{one.get_text()!r} lies on {other.get_text()!r}"
    assert (luminance(figure.get_facecolor()) < 0.2) == (theme == "dark")
    for ax in figure.axes:
        if ax.axison and ax.has_data() and not hasattr(ax, "_colorbar"):
            check_axes(ax)


def check_axes(ax: Any) -> None:
    """Check that both axes are named, by a label, by their ticks, or by those of a neighbour."""
    for name in ("x", "y"):
        group = getattr(ax, f"get_shared_{name}_axes")().get_siblings(ax)
        label = any(getattr(one, f"get_{name}label")() for one in group)
        ticks = [
            text.get_text() for one in group for text in getattr(one, f"get_{name}ticklabels")()
        ]
        assert label or any(any(c.isalpha() for c in text) for text in ticks), f"no {name} label"


def drawn_texts(figure: Any) -> list[tuple[Text, np.ndarray]]:
    """All texts that are drawn, with their boxes in pixels."""
    drawn: list[Text] = []
    plain = Text.draw

    def draw(self, renderer, *args, **kwargs):
        drawn.append(self)
        return plain(self, renderer, *args, **kwargs)

    with mock.patch.object(Text, "draw", draw):
        FigureCanvasAgg(figure).draw()
    assert drawn
    unique = {id(text): text for text in drawn if text.get_text().strip()}
    return [(text, np.array(text.get_window_extent().extents)) for text in unique.values()]


def luminance(color: Any) -> float:
    """Relative luminance, as the guidelines for web content define it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def contrast(color: Any, other: Any) -> float:
    """Ratio of contrast between two colours."""
    low, high = sorted((luminance(color), luminance(other)))
    return (high + 0.05) / (low + 0.05)
