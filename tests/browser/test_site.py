"""The documentation site in a browser: it fits small windows, and everyone can read it."""

import functools
import http.server
import re
import threading
from pathlib import Path

import pytest

from tests.browser.conftest import overflow, violations

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parent.parent.parent / "docs"
WIDTHS = (1280, 390)
# Pages of each kind, which axe-core reads; what they are made of is alike on the others.
READ = (
    "index.html",
    "tutorials/wrong_rule",
    "guides/check_gradients",
    "guides/nan",
    "explanations/mean_field_theory",
    "explanations/costs",
    "experiments",
    "glossary",
    "notebooks/own_map",
    "reference/regimes",
    "reference/activations",
)
# What someone who has only the site is asked to do, where a search leads first, and the function
# that does it, in an example of that page which `tests/test_documentation.py` runs.
TASKS = [
    ("find which leaf of this gradient is wrong", "tutorials/wrong_rule", "check_grads"),
    (
        "which weight variance for a 60-layer GELU network of width 256",
        "guides/choose_initialization",
        'initializers.critical("gelu", width=256)',
    ),
    ("why is the gradient of this model NaN", "guides/nan", "explain_non_finite"),
    ("map your own model", "tutorials/own_map", "measure_blocks"),
    ("resume a killed sweep", "guides/sweeps", "SIGKILL"),
]


@pytest.fixture(scope="module")
def served(site):
    """The built site with placeholders for its figures, served from this machine."""
    handler = functools.partial(QuietHandler, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield site, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        """Print nothing."""


# Blocks of code have one set of colours, as have the rows of a table, so that a few of each do;
# those of the reference are closed until somebody opens them.
SHORTEN = """() => {
    const rest = (name, count) => [...document.querySelectorAll(name)].slice(count);
    const long = [...rest("tbody tr", 40), ...rest("div.highlight", 12), ...rest("details", 4)];
    long.forEach(element => element.remove());
}"""


def faults_of(page, path):
    """Everything that is wrong with a page in windows of all widths."""
    faults = {}
    # What moves or fades in when the size changes is judged where it ends.
    page.add_style_tag(content="*, ::before, ::after { transition: none !important }")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        if pixels := overflow(page):
            faults[f"{width} px"] = f"{pixels} px too wide: {widest(page)}"
        # In a wide window there is navigation besides, which all pages share.
        if width == min(WIDTHS):
            page.evaluate(SHORTEN)
        elif path.parts[0] not in ("index.html", "glossary"):
            continue
        if not str(path).startswith(READ):
            continue
        faults |= {f"{rule} ({width} px)": where for rule, where in violations(page).items()}
    return faults


def widest(page):
    """Elements that reach beyond the right edge of the window and do not scroll themselves."""
    return page.evaluate(
        """() => [...document.querySelectorAll("main *")].filter(
            e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1
        ).slice(0, 3).map(e => e.outerHTML.slice(0, 120))"""
    )


def test_every_page_fits_and_can_be_read_by_all(served, opened):
    folder, address = served
    paths = [path.relative_to(folder) for path in sorted(folder.rglob("index.html"))]
    assert len(paths) > 20
    assert all(any(str(path).startswith(name) for path in paths) for name in READ)
    faults = {}
    # One tab visits all pages, which is cheaper than many tabs.
    with opened(address) as page:
        for path in paths:
            # The header moves when a window is made wider, so the page begins wide.
            page.set_viewport_size({"width": max(WIDTHS), "height": 900})
            page.goto(address + str(path))
            faults[str(path)] = faults_of(page, path)
    assert {path: parts for path, parts in faults.items() if parts} == {}


@pytest.mark.parametrize("path", ["index.html", "reference/checking/index.html"])
def test_dark_pages_have_contrast(served, opened, path):
    with opened(served[1] + path, scheme="dark") as page:
        assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"
        assert violations(page) == {}


def test_the_search_finds_a_word_without_a_network(served, opened):
    with opened(served[1] + "index.html") as page:
        page.keyboard.press("f")
        page.keyboard.type("check_grads")
        page.wait_for_selector(".md-search-result__item")
        assert "reference/" in page.get_attribute(".md-search-result__link >> nth=0", "href")


@pytest.mark.parametrize(("task", "path", "function"), TASKS, ids=lambda text: text[:20])
def test_the_first_result_of_a_search_does_the_task(served, opened, task, path, function):
    with opened(served[1] + "index.html") as page:
        # Words that are entered before the index has been read may be lost, and on a machine that
        # runs other tests reading it may take a minute.
        for _ in range(60):
            page.fill(".md-search__input", "")
            page.fill(".md-search__input", task)
            page.wait_for_timeout(3000)
            if page.query_selector(".md-search-result__item"):
                break
        first = page.get_attribute(".md-search-result__link >> nth=0", "href")
    assert path in first
    code = "".join(re.findall(r"```python\n(.*?)```", (DOCS / f"{path}.md").read_text(), re.DOTALL))
    assert function in code
