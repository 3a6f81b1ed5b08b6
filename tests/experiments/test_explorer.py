"""The interactive page of a map: what is refused before any work, and what the page holds."""

import base64
import importlib.util
import json

import jax
import numpy as np
import pytest
import xarray

from experiments import depth_variance
from experiments._kit import explorer
from jaxgrad import regimes, sweeps

SIZE = {"depth": 4, "width": 8, "w_variances": 3, "examples": 4, "seeds": 2}


def options(tmp_path, **changes):
    return depth_variance.Options(**SIZE | {"html": True, "output": tmp_path / "map"} | changes)


def store(path, config):
    """A store as of a map, of zeros."""
    names = ("log_ratio", "log_activation", "log_profile")
    return sweeps.run(
        lambda key, point: {name: np.zeros((3, 4), np.float32) for name in names},
        {"activation": ["tanh", "relu"], "seed": [0, 1]},
        {name: sweeps.Variable(("w_variance", "depth"), "1", name) for name in names},
        coords={"w_variance": [0.5, 1.0, 2.0], "depth": [1, 2, 3, 4]},
        config=config,
        store=path,
        key=jax.random.key(0),
    )


def test_options_that_do_not_fit_are_refused_before_work(tmp_path):
    for changes, message in (
        ({"html": False, "html_stores": (tmp_path,)}, "html_stores are for a page, got no html"),
        ({"depth": 1}, "html needs a depth of at least 2, got 1"),
        ({"seeds": 9000}, "html must hold at most 250000 numbers, got 648000"),
        ({"html_stores": (tmp_path / "no.zarr",)}, "html_stores must be stores that this command"),
    ):
        with pytest.raises(ValueError, match=message):
            options(tmp_path, **changes).check()
    store(tmp_path / "other.zarr", {"rate": 1})
    with pytest.raises(
        ValueError, match="html_stores must be stores that this command has written"
    ):
        options(tmp_path, html_stores=(tmp_path / "other.zarr",)).check()


def test_a_store_brings_its_options(tmp_path):
    made = options(tmp_path, network="transformer", placements=("post", "none"))
    store(made.store, made.identity())
    read, dataset = explorer.finished(made.store, depth_variance.Options)
    assert read.identity() == made.identity()
    assert explorer.map_size(dataset) == (2, 2, 3, 4)
    options(tmp_path, html_stores=(made.store,)).check()


def test_without_the_library_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'html needs Bokeh; run .* -e "\.\[html\]"'):
        options(tmp_path).check()
    options(tmp_path, html=False).check()


@pytest.mark.slow
def test_the_page_holds_the_numbers_and_no_address(tmp_path):
    rng = np.random.default_rng(0)
    axes, shape = ("activation", "seed", "w_variance", "depth"), (1, 2, 3, 4)
    logs = {name: (axes, rng.normal(0, 9, shape)) for name in ("log_ratio", "log_activation")}
    logs["log_profile"] = ((*axes[:3], "layer"), rng.normal(0, 9, shape))
    coords = {"activation": ["</script>"], "w_variance": [0.5, 1.0, 2.0]}
    numbers = [1, 2, 3, 4]
    data = xarray.Dataset(logs, coords | {"depth": numbers, "layer": numbers})
    page = explorer.Map("kind", data, data.isel(seed=0), regimes.Thresholds())
    explorer.write(tmp_path / "page.html", [page], "a note")
    text = (tmp_path / "page.html").read_text()
    assert "a note" in text
    assert "<!-- " not in text[: text.index("<script")]
    start = text.index('id="data">') + len('id="data">')
    content = json.loads(text[start : text.index("</script>", start)])["maps"][0]
    (row,) = content["rows"]
    assert row["name"] == "</script>"
    decades = np.frombuffer(base64.b64decode(row["gradient"]), "<f4").reshape(2, 3, 4)
    np.testing.assert_allclose(10**decades, np.exp(data["log_ratio"].values[0] / 2), rtol=1e-5)
    # The profile is known to theory, so that the gradient inside follows from depths.
    assert "deepest" not in row
    assert content["variances"] == [0.5, 1.0, 2.0]


def test_words_lie_inside_of_their_regions():
    region = np.zeros((20, 30), bool)
    region[4:15, 10:29] = True
    row, column = explorer._innermost(region)
    assert (row, abs(column - 19) <= 1) == (9, True)
    assert explorer._innermost(np.zeros((20, 30), bool)) is None
    # A strip of one row is too low for a word.
    strip = np.zeros((40, 30), bool)
    strip[7] = True
    assert explorer._innermost(strip) is None
