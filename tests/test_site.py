"""The documentation site: it builds without a warning, and all that is public is in its reference.

`tests/test_documentation.py` runs the examples of its pages.
"""

import importlib
import pkgutil
import re
import textwrap
import zlib
from html.parser import HTMLParser
from pathlib import Path

import jupytext
import pytest
import yaml

import jaxgrad
from docs import docstrings, figures, from_tutorials, hooks, page_figure

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MODULES = [
    "jaxgrad",
    *(
        module.name
        for module in pkgutil.walk_packages(jaxgrad.__path__, "jaxgrad.")
        if not any(part.startswith("_") for part in module.name.split("."))
    ),
]


class Settings(yaml.SafeLoader):
    """Reads the settings of MkDocs, of which some are names of Python functions."""


Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SETTINGS = yaml.load((ROOT / "mkdocs.yml").read_text(), Settings)


def public_names(module):
    names = getattr(module, "__all__", None)
    if names is not None:
        return set(names)
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    }


def entries(nav):
    """All pages below an entry of the navigation."""
    if isinstance(nav, str):
        yield nav
    else:
        for entry in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(entry)


def test_the_navigation_has_every_page_once():
    pages = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    made = [page for page in hooks.PAGES.values() if page != "index.md"]
    made += [f"notebooks/{path.stem}.md" for path in hooks.NOTEBOOKS]
    assert sorted(entries(SETTINGS["nav"])) == sorted(pages + made)


def test_images_have_a_text_and_two_themes():
    for path in [*DOCS.rglob("*.md"), ROOT / "README.md"]:
        text = path.read_text()
        for alternative, target in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", text):
            assert len(alternative) > 20, (path.name, target)
            if target.endswith(".svg#only-light"):
                dark = target.replace(".svg#only-light", "_dark.svg#only-dark")
                assert f"![{alternative}]({dark})" in text, (path.name, target)


def test_the_readme_says_how_to_serve_and_to_build_the_site():
    section = (ROOT / "README.md").read_text().partition("## Contributing")[2]
    assert all(f"`python -m docs {command}`" in section for command in ("serve", "build"))


def test_each_figure_has_a_command_that_exists():
    for name, figure in figures.FIGURES.items():
        command = figure.command(name).split()
        path = ROOT / command[2].replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


def test_pages_show_the_figures_that_have_a_command():
    pages = "".join(path.read_text() for path in DOCS.rglob("*.md"))
    shown = set(re.findall(r"figures/[\w.]+", pages))
    assert shown == set(figures.images())


def test_a_page_s_code_draws_its_figure_in_both_themes(tmp_path, monkeypatch):
    code = """
    ```python
    from pathlib import Path

    runs = [1]
    ```

    ```python
    from matplotlib.figure import Figure

    runs.append(2)
    Path("left").write_text("")
    figure = Figure()
    figure.text(0, 0, str(runs))
    ```

    ```python
    raise ValueError("it is after the figure")
    ```
    """
    (tmp_path / "page.md").write_text(textwrap.dedent(code))
    monkeypatch.setattr(page_figure, "FOLDER", tmp_path)
    monkeypatch.chdir(tmp_path)
    paths = page_figure.draw("page", Path("figures/map.svg"), "both")
    assert [path.name for path in paths] == ["map.svg", "map_dark.svg"]
    light, dark = (path.read_text() for path in paths)
    assert light != dark
    # What comes before the figure runs once, and what the page writes is not kept.
    assert "[1, 2, 2]" in dark
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "page.md"]


def test_a_notebook_s_page_shows_the_figure_of_its_tutorial():
    path = next(path for path in hooks.NOTEBOOKS if path.stem == "own_map")
    page = hooks.notebook_page(jupytext.read(path), "notebooks/own_map")
    shown = re.findall(r"^!.*", (DOCS / "tutorials" / "own_map.md").read_text(), re.MULTILINE)
    assert len(shown) == 2
    assert re.findall(r"^!.*", page, re.MULTILINE) == shown
    # Elsewhere, as in Colab, there is no file of the site.
    assert f"({from_tutorials.SITE}figures/own_map.svg)" in path.read_text()


def test_links_that_leave_the_pages_lead_to_the_repository_or_to_a_page_of_the_site():
    def relinked(target, page="guides/sweeps.md"):
        return hooks.relinked(f"[x]({target})", f"docs/{page}", page)[4:-1]

    assert relinked("training.md#x") == "training.md#x"
    assert relinked("../../CHANGELOG.md#a") == "../changelog.md#a"
    assert (
        relinked("../../jaxgrad/regimes.py") == f"{hooks.REPOSITORY}/blob/main/jaxgrad/regimes.py"
    )
    assert relinked("https://example.org/a.md") == "https://example.org/a.md"
    assert hooks.relinked("[x](docs/a.md)", "CONTRIBUTING.md", "contributing.md") == "[x](a.md)"


def test_the_command_of_a_figure_is_below_it():
    light, dark = "figures/xray_gallery.svg#only-light", "figures/xray_gallery_dark.svg#only-dark"
    images = f"![x]({light})\n![x]({dark})"
    command = "python -m experiments.xray_gallery --seeds 3"
    assert hooks.captioned(f"{images}\ntext") == f"{images}\n\n<small>`{command}`</small>\ntext"


def test_names_become_links_and_formulas_become_mathml():
    page = "<h2><code>theory.critical</code></h2><p><code>theory.critical</code> "
    page += '<code>optax.adam</code> <span class="arithmatex">\\(x^2 &lt; 1\\)</span></p>'
    content = hooks.on_page_content(page, None)
    link = '<autoref identifier="jaxgrad.theory.critical" optional><code>theory.critical</code>'
    assert content.count(link) == 1
    assert content.startswith("<h2><code>theory.critical</code></h2>")
    assert "<code>optax.adam</code>" in content
    assert "<math" in content
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in content


def test_docstrings_name_one_argument_a_line_and_have_blocks_of_code():
    text = "Args:\n  a, *b: first\n    second.\n  c: third, d: no name.\n\n>>> f(1)\n2\n\nEnd."
    arguments = "Args:\n  a: first\n    second.\n  *b: first\n    second.\n  c: third, d: no name."
    code = "```pycon\n>>> f(1)\n2\n```"
    assert docstrings.markdown(text) == f"{arguments}\n\n{code}\n\nEnd."


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_in_the_reference(site, module):
    head, _, content = (site / "objects.inv").read_bytes().partition(b"zlib.\n")
    assert head.startswith(b"# Sphinx inventory")
    names = {line.split()[0] for line in zlib.decompress(content).decode().splitlines() if line}
    public = public_names(importlib.import_module(module))
    assert public
    assert {module, *(f"{module}.{name}" for name in public)} <= names


class Texts(HTMLParser):
    """The images of a page without a text, and whether formulas or doctests are left unread."""

    def __init__(self, text):
        super().__init__()
        self.images, self.raw, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag == "img" and not dict(attrs).get("alt"):
            self.images.append(dict(attrs)["src"])
        if tag in ("pre", "code", "script", "style"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and tag == self.open[-1]:
            self.open.pop()

    def handle_data(self, data):
        if not self.open and re.search(r">>> |\\\(|\\\[|:::|```", data):
            self.raw.append(data)


@pytest.mark.slow
def test_pages_are_complete_and_their_images_have_texts(site):
    pages = sorted(site.rglob("index.html"))
    assert len(pages) > 25
    for path in pages:
        texts = Texts(path.read_text())
        assert not texts.images, path
        assert not texts.raw, path
