"""The map of gradients: what its legend lists, which curves it draws, and how axes are numbered."""

import re

import numpy as np
import pytest
import xarray as xr

from jaxgrad import plotting
from jaxgrad.plotting import style
from tests.experiments.legible import drawn_texts, legible

VANISHES, EXPLODES = "measured: vanishes from here", "measured: explodes from here"
LEVEL, BANDS = "measured: gradient level", "bands: standard error"
DEPTHS = np.array([2, 4, 8, 16, 32])


def dataset(growth, values, noise=0.0, depths=DEPTHS):
    """Networks whose log squared gradient grows by `growth(value)` a block, the noise by depth."""
    generator = np.random.default_rng(0)
    rates = growth(np.asarray(values))
    draws = 1 + 0.02 * generator.standard_normal((4, 1, 1))
    ratio = draws * rates[:, None] * (depths - 1)
    ratio = ratio + noise * generator.standard_normal((4, 1, len(depths)))
    layer = np.arange(1, depths[-1] + 1)
    return xr.Dataset(
        {
            "log_ratio": (("activation", "seed", "w_variance", "depth"), ratio[None]),
            "log_profile": (
                ("activation", "seed", "w_variance", "layer"),
                (draws * rates[:, None] * (depths[-1] - layer))[None],
            ),
        },
        {
            "activation": ["net"],
            "seed": range(4),
            "w_variance": values,
            "depth": depths,
            "layer": layer,
        },
    )


def relu(w):
    return np.log(w / 2)


def residual(gain):
    return np.log1p(gain**2)


VARIANCES = np.geomspace(0.5, 8, 21)
GAINS = np.geomspace(0.05, 3, 15)


def listed(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def curves(figure):
    """Labels of the curves on the right, from the largest variance to the smallest."""
    return [text.get_text() for text in figure.axes[1].get_legend().get_texts()]


@pytest.mark.parametrize(
    ("growth", "values", "expected"),
    [
        (relu, VARIANCES, [VANISHES, EXPLODES, LEVEL, BANDS]),
        (relu, np.geomspace(3, 8, 21), [EXPLODES, BANDS]),
        (relu, np.geomspace(0.5, 1.9, 21), [VANISHES, BANDS]),
        (residual, GAINS, [EXPLODES, BANDS]),
        (residual, GAINS[:5], [BANDS]),
    ],
)
def test_the_legend_lists_what_is_drawn(growth, values, expected):
    figure = legible(lambda: plotting.depth_map(dataset(growth, values)))
    assert listed(figure) == expected


def test_noise_around_zero_is_no_level():
    """A residual network with small branches changes its gradient by less than it varies."""
    noisy = dataset(residual, GAINS, noise=0.3)
    crossings = (noisy["log_ratio"] < 0).any("w_variance").sum("seed").values
    assert (crossings > 1).any()
    figure = plotting.depth_map(noisy)
    assert LEVEL not in listed(figure)
    assert not any("level" in label for label in curves(figure))


def test_curves_are_spread_over_the_grid_around_the_level_one():
    values = np.geomspace(0.5, 8, 41)
    assert curves(plotting.depth_map(dataset(relu, values))) == ["8", "4", "2 (level)", "1", "0.5"]
    labels = curves(plotting.depth_map(dataset(residual, GAINS)))
    assert [labels[0], labels[-1]] == ["3", "0.05"]
    assert len(labels) == 5
    # Those that are not finite have no curve.
    part = dataset(relu, values)
    part["log_profile"] = part["log_profile"].where(part["w_variance"] < 3.9)
    assert curves(plotting.depth_map(part))[0] == f"{values[values < 3.9][-1]:.3g}"


@pytest.mark.parametrize("theme", [None, "light", "dark"])
@pytest.mark.parametrize(("growth", "values"), [(relu, VARIANCES), (residual, GAINS)])
def test_no_legend_lies_on_a_panel(growth, values, theme):
    """Neither in a style of the library nor in Matplotlib's."""

    def check():
        figure = plotting.depth_map(dataset(growth, values), label="gain of the residual branches")
        drawn_texts(figure)
        boxes = [ax.get_legend().get_window_extent() for ax in figure.axes if ax.get_legend()]
        boxes += [legend.get_window_extent() for legend in figure.legends]
        assert len(boxes) == 2
        for box in boxes:
            assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.axes)

    if theme is None:
        check()
    else:
        with style.theme(theme):
            check()


@pytest.mark.parametrize("values", [GAINS, GAINS[:5], np.geomspace(0.98, 1.02, 5)])
def test_ticks_are_plain_numbers(values):
    figure = plotting.depth_map(dataset(lambda gain: residual(gain / 5), values))
    texts = [text.get_text() for text, _ in drawn_texts(figure)]
    assert not [text for text in texts if "times" in text]
    for ax in figure.axes[:2]:
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert len(labels) >= 3
        assert all(re.fullmatch(r"[\d.]+", label) for label in labels)
        low, high = ax.get_ylim()
        assert all(low <= tick <= high for tick in ax.get_yticks())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.5, 8, "0.5 1 2 5"),
        (0.05, 3, "0.05 0.1 0.2 0.5 1 2"),
        (1, 1e4, "1 10 100 1000 10000"),
        (0.98, 1.02, "0.98 0.99 1 1.01 1.02"),
        (1e-12, 1e6, "$10^{-12}$ $10^{-9}$ $10^{-6}$ $10^{-3}$ 1 $10^{3}$ $10^{6}$"),
    ],
)
def test_ticks_of_logarithmic_axes(low, high, expected):
    marks, words = style.log_ticks(np.log10(low), np.log10(high))
    assert words == expected.split()
    assert len(marks) == len(words)
