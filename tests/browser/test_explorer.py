"""The interactive page of a map, in a browser: its curves are the numbers of the store."""

import io

import numpy as np
import pytest
import xarray
from PIL import Image

from experiments import depth_variance
from experiments._kit import explorer
from jaxgrad import regimes
from tests.browser.conftest import overflow, violations

pytestmark = pytest.mark.slow

FIGURES = ("map", "signal", "gradient")
DECADE = 2 * np.log(10)  # of the log of a square


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    size = {"depth": 12, "width": 16, "w_variances": 9, "examples": 8, "seeds": 3}
    output = tmp_path_factory.mktemp("page") / "map.svg"
    return depth_variance.Options(**size, output=output, html=True)


@pytest.fixture(scope="module")
def path(options):
    depth_variance.run(options)
    return options.output.with_suffix(".html")


@pytest.fixture(scope="module")
def store(path, options):
    return xarray.open_zarr(options.store, chunks=None).load()


@pytest.fixture(scope="module")
def theory(path, options):
    return depth_variance.predict(options)


@pytest.fixture
def page(opened, path):
    with opened(path.as_uri()) as page:
        page.wait_for_selector("body[data-ready=yes]")
        yield page


def drawn(page, figure, name):
    """The columns that a figure draws, by name; what is not finite is NaN."""
    data = page.evaluate(
        """([index, name]) => {
            const model = Bokeh.documents[index].get_model_by_name(name);
            return Object.fromEntries(Object.entries(model.data_source.data).map(
                ([key, values]) => [key, Array.from(values, v => Number.isFinite(v) ? v : null)]));
        }""",
        [FIGURES.index(figure), name],
    )
    return {key: np.array(values, float) for key, values in data.items()}


def choose(page, name):
    """The select box of this name."""
    return page.get_by_role("combobox", name=name)


def pixel(page, depth, variance):
    """Where the plotting library draws a cell of the map, in the window."""
    return page.evaluate(
        """([x, y]) => {
            const root = Bokeh.documents[0].roots()[0], view = Bokeh.index.get_by_id(root.id);
            const box = view.canvas_view.el.getBoundingClientRect();
            return [box.x + view.frame.x_scale.compute(x), box.y + view.frame.y_scale.compute(y)];
        }""",
        [depth, float(np.log2(variance))],
    )


def cell(data, activation, variance, depth):
    """The logs of a network and of the shallower ones, in decades, `[seeds, depth]`."""
    part = data.sel(activation=activation).isel(w_variance=variance).transpose(..., "depth")
    return (part.values if part.ndim == 2 else part.values[None])[:, :depth] / DECADE


def check_curves(page, store, theory, activation, variance, depth):
    """The curves are those of this network, and the words above them, too."""
    ratio = cell(store["log_ratio"], activation, variance, depth)
    curves = {
        "gradient": ratio[:, -1:] - ratio,
        "signal": cell(store["log_activation"], activation, variance, depth),
    }
    expected = cell(theory["log_ratio"], activation, variance, depth)[0]
    theories = {
        "gradient": expected[-1] - expected,
        "signal": cell(theory["log_activation"], activation, variance, depth)[0],
    }
    for name, curve in curves.items():
        line, band = drawn(page, name, "measured"), drawn(page, name, "band")
        np.testing.assert_array_equal(line["x"], np.arange(1, depth + 1))
        np.testing.assert_allclose(line["y"], curve.mean(axis=0), atol=1e-5)
        error = 2 * curve.std(axis=0, ddof=1) / np.sqrt(len(curve))
        np.testing.assert_allclose((band["high"] - band["low"]) / 2, error, atol=1e-5)
        np.testing.assert_allclose(drawn(page, name, "theory")["y"], theories[name], atol=1e-5)
    value = float(store["w_variance"][variance])
    text = page.inner_text("#cell")
    assert text.startswith(f"{activation}, {depth} layer{'s' * (depth > 1)}, weight variance")
    assert f"weight variance {float(f'{value:.3g}'):g}" in text
    size = 10 ** float(curves["gradient"].mean(axis=0)[0])
    if 0.01 < size < 100:
        assert f"it is {float(f'{size:.2g}'):g} × that at the last" in page.inner_text("#verdict")


def test_pointing_at_a_cell_draws_its_curves(page, store, theory):
    for variance, depth in ((7, 3), (1, 10), (4, 1)):
        page.mouse.move(*pixel(page, depth, float(store["w_variance"][variance])))
        check_curves(page, store, theory, "tanh", variance, depth)
    # A click holds the cell, and another one releases it.
    page.mouse.click(*pixel(page, 6, float(store["w_variance"][2])))
    page.mouse.move(*pixel(page, 11, float(store["w_variance"][6])))
    check_curves(page, store, theory, "tanh", 2, 6)
    page.mouse.click(*pixel(page, 11, float(store["w_variance"][6])))
    check_curves(page, store, theory, "tanh", 6, 11)


def test_the_keyboard_does_the_same(page, store, theory):
    # From the beginning of the page, as somebody who has no mouse.
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "map":
            break
    start = int(np.abs(np.log(store["w_variance"].values)).argmin())
    check_curves(page, store, theory, "tanh", start, 12)
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp"):
        page.keyboard.press(key)
    check_curves(page, store, theory, "tanh", start + 1, 10)
    page.keyboard.press("Home")
    for _ in range(9):
        page.keyboard.press("ArrowDown")
    check_curves(page, store, theory, "tanh", 0, 1)
    page.keyboard.press("End")
    check_curves(page, store, theory, "tanh", 0, 12)
    assert page.get_attribute(".status", "aria-live") == "polite"


def test_select_boxes_choose_what_is_shown(page, store, theory):
    choose(page, "activation").select_option("relu")
    choose(page, "depth").select_option("5")
    choose(page, "weight variance").select_option("8")
    check_curves(page, store, theory, "relu", 8, 5)
    for quantity, variable in (("gradient", "log_ratio"), ("signal", "log_activation")):
        choose(page, "map of").select_option(f"the {quantity}")
        expected = store[variable].sel(activation="relu").mean("seed") / DECADE
        cells = drawn(page, "map", "cells")
        np.testing.assert_allclose(cells["value"], expected.values.ravel(), atol=1e-5)
        np.testing.assert_array_equal(cells["x"], np.tile(np.arange(1, 13), 9))
    # There is only one kind of network to choose from.
    assert not page.is_visible("#kind")


def test_the_table_has_the_numbers_of_the_curves(page, store):
    page.get_by_text("The numbers of this network").click()
    choose(page, "activation").select_option("relu")
    choose(page, "weight variance").select_option("4")
    rows = [row.split("\t") for row in page.inner_text("#numbers tbody").splitlines()]
    signal = cell(store["log_activation"], "relu", 4, 12).mean(axis=0)
    assert [row[0] for row in rows] == [str(i) for i in range(1, 13)]
    assert [row[3] for row in rows] == [f"{float(f'{10**v:.2g}'):g}" for v in signal]
    assert rows[-1][1:3] == ["1", "1"]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "light"), (1280, "dark")])
def test_it_fits_the_window_and_can_be_read_by_all(opened, path, width, scheme):
    assert path.stat().st_size < 3_000_000
    with opened(path.as_uri(), width, scheme) as page:
        page.wait_for_selector("body[data-ready=yes]")
        page.get_by_text("The numbers of this network").click()
        assert overflow(page) == 0
        assert violations(page) == {}
        # Text of the figures is drawn, so that axe-core does not see it.
        plots = page.evaluate(
            """Bokeh.documents.map(d => d.roots()[0]).flatMap(p => [...p.below, ...p.left].map(
                a => [p.background_fill_color, a.major_label_text_color, a.axis_label_text_color]
            ))"""
        )
        for paper, *inks in plots:
            assert all(contrast(paper, ink) > 4.5 for ink in inks)


def luminance(color):
    channels = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    """The ratio of WCAG 2."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def test_larger_gradients_are_lighter_in_grey(page, store):
    palette = page.evaluate("Bokeh.documents[0].get_model_by_name('bar').color_mapper.palette")
    colors = [f"#{color & 0xFFFFFF:06x}" if isinstance(color, int) else color for color in palette]
    lightness = np.array([luminance(color[:7]) for color in colors])
    # Neighbours may be equal where eight bits are rounded.
    assert np.all(np.diff(lightness) >= 0)
    assert np.all(np.diff(lightness[::4]) > 0)
    choose(page, "activation").select_option("relu")
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"), float)
    # Without words and lines, along the right edge, where the gradient grows with the variance.
    shades = []
    for variance in store["w_variance"].values:
        x, y = (round(float(value)) for value in pixel(page, 12.3, variance))
        shades.append(np.median(picture[y - 3 : y + 4, x - 3 : x + 4]))
    change = store["log_ratio"].sel(activation="relu", depth=12).mean("seed").values / DECADE
    inside = np.abs(change) < explorer.DECADES
    assert inside.sum() >= 4
    assert np.all(np.diff(np.array(shades)[inside]) > 0)


def test_tokens_have_inner_gradients_in_the_deepest_network_only(opened, tmp_path):
    """A made-up map, so that a mistake in the order of blocks shows."""
    rng = np.random.default_rng(0)
    axes, layer = (
        ("activation", "seed", "w_variance", "depth"),
        ("activation", "seed", "w_variance"),
    )
    shape = (2, 3, 5, 4)
    logs = {name: (axes, rng.normal(0, 3, shape)) for name in ("log_ratio", "log_activation")}
    logs["log_profile"] = ((*layer, "layer"), rng.normal(0, 3, shape))
    numbers = np.arange(1, 5)
    coords = {"activation": ["pre-norm", "</script>"], "w_variance": 2.0 ** np.arange(-2, 3)}
    data = xarray.Dataset(logs, coords | {"depth": numbers, "layer": numbers})
    theory = data.isel(seed=0).assign(log_profile=data["log_profile"].isel(seed=0) * np.nan)
    words = {"block": "block", "quantity": "gradient of token differences"}
    part = explorer.Map("transformer", data, theory, regimes.Thresholds(), **words)
    explorer.write(tmp_path / "page.html", [part._replace(name="first"), part], "note")
    with opened((tmp_path / "page.html").as_uri()) as page:
        page.wait_for_selector("body[data-ready=yes]")
        choose(page, "network").select_option("transformer")
        row = data.isel(activation=0, w_variance=2)
        ratio, profile = row["log_ratio"].values / DECADE, row["log_profile"].values / DECADE
        curve = ratio[:, -1:] + profile - profile[:, :1]
        line = drawn(page, "gradient", "measured")
        np.testing.assert_array_equal(line["x"], np.arange(5))
        np.testing.assert_allclose(line["y"], [*curve.mean(axis=0), 0.0], atol=1e-5)
        choose(page, "depth").select_option("3")
        line = drawn(page, "gradient", "measured")
        expected = [ratio[:, 2].mean(), np.nan, np.nan, 0.0]
        np.testing.assert_allclose(line["y"], expected, atol=1e-5)
        # Two points without a neighbour are not joined, so they are drawn as points.
        points = drawn(page, "gradient", "measured points")
        np.testing.assert_array_equal(points["x"], [0, 3])
        assert "measured with 4 blocks only" in page.inner_text("#inner")
