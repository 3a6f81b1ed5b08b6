"""Results as HTML: what they show; `tests/browser` opens them."""

from html.parser import HTMLParser

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from jaxgrad._html import curve, fragment

VOID = {"meta", "line", "polyline"}


class Tables(HTMLParser):
    """The cells of all rows, and whether each element is closed."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.opened = [], []
        self.feed(text)
        assert not self.opened

    def handle_starttag(self, tag, attrs):
        self.opened += [] if tag in VOID else [tag]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        if self.opened and self.opened[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@jax.custom_jvp
def square(x):
    return x**2


square.defjvp(lambda primals, tangents: (square(*primals), 2.2 * primals[0] * tangents[0]))


def loss(params, x):
    for w in params:
        x = jax.nn.relu(x @ w)
    return jnp.sum(square(x))


@pytest.fixture
def trace(key):
    x = jax.random.normal(key, (3, 4))
    return jaxgrad.xray(loss, list(jax.random.normal(key, (5, 4, 4))), x)


@pytest.mark.slow
def test_an_xray_has_its_summary_curves_and_sites(trace):
    text = trace._repr_html_()
    rows = Tables(text).rows
    assert rows[0][:3] == ["operation", "scope", "parameter"]
    assert [row[2] for row in rows[1:] if row[2]] == [f"[{i}]" for i in range(5)]
    assert "derivative of square" in text
    assert text.count("<polyline") == 2


@pytest.mark.slow
def test_a_report_and_an_audit_have_their_rows():
    report = jaxgrad.check_grads(lambda x: jnp.sum(square(x)), jnp.ones(3))
    rows = Tables(report._repr_html_()).rows
    assert rows[1][:2] == ["argument", "WRONG"]
    # The table is there once.
    assert report._repr_html_().count("relative error") == 1
    audit = jaxgrad.audit(lambda x: jnp.sum(square(x)), jnp.ones(3))
    names = [row[0] for row in Tables(audit._repr_html_()).rows]
    assert names[0] == "function"
    assert "square" in names


def test_text_is_escaped_and_cells_stand_out():
    text = fragment("a < b", "x & y", ["<i>"], [["<b>"], ["WRONG"]], bad=("WRONG",))
    assert "<b>" not in text
    assert "<i>" not in text
    assert Tables(text).rows == [["<i>"], ["<b>"], ["WRONG"]]
    assert '<td class="bad">WRONG</td>' in text


def test_a_curve_is_interrupted_where_a_value_is_not_finite():
    panel = curve("signal", [1.0, 2.0, np.nan, 3.0, 4.0], "#000", "place")
    assert [part.count(",") for part in panel.split('points="')[1:]] == [2, 4 - 2]
    assert curve("signal", [np.inf], "#000", "place") == ""
    # Larger values lie higher.
    first, second = panel.split('points="')[1].split('"')[0].split()
    assert float(first.split(",")[1]) > float(second.split(",")[1])


def test_a_labelled_data_set_has_the_iterations_of_scans(key):
    def scanned(w, x):
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]
        return jnp.sum(jnp.sin(x))

    trace = jaxgrad.xray(scanned, jax.random.normal(key, (5, 4, 4)), jnp.ones((2, 4)))
    data = trace.to_xarray()
    assert data.sizes == {"site": len(trace.sites), "iteration": 5}
    expected = trace.sites[1].forward.log_mean_square / (2 * np.log(10))
    np.testing.assert_allclose(data.signal[data.operation == "tanh"][0], expected)
    assert data.signal[-1].notnull().values.tolist() == [True] + 4 * [False]


def test_a_page_is_written(trace, tmp_path):
    trace.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "http" not in page
    Tables(page.removeprefix("<!DOCTYPE html>"))
