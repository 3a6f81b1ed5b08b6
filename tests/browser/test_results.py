"""Results of the library as pages: a click sorts their tables, and everyone can read them."""

import jax
import jax.numpy as jnp
import pytest

import jaxgrad
from jaxgrad._html import fragment, save
from tests.browser.conftest import overflow, violations

pytestmark = pytest.mark.slow


def test_a_click_on_a_heading_sorts_the_table(opened, tmp_path):
    body = fragment("title", "", ["name", "size"], [["a", "10"], ["b", "-2"], ["c", "9"]])
    save(tmp_path / "page.html", "title", body)
    with opened((tmp_path / "page.html").as_uri()) as page:
        for direction, names in (("ascending", ["b", "c", "a"]), ("descending", ["a", "c", "b"])):
            heading = page.get_by_role("columnheader", name="size")
            heading.click()
            assert heading.get_attribute("aria-sort") == direction
            assert page.locator("td:first-child").all_inner_texts() == names
        heading.press("Enter")
        assert heading.get_attribute("aria-sort") == "ascending"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_of_an_xray_fits_and_can_be_read_by_all(opened, tmp_path, key, width):
    def loss(params, x):
        for w in params:
            x = jax.nn.relu(x @ w)
        return jnp.sum(x)

    trace = jaxgrad.xray(loss, list(jax.random.normal(key, (5, 4, 4))), jnp.ones((3, 4)))
    trace.save_html(tmp_path / "page.html")
    with opened((tmp_path / "page.html").as_uri(), width) as page:
        assert overflow(page) == 0
        assert violations(page) == {}
