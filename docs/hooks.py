"""What MkDocs does here beyond its configuration.

- Pages and images that no file in `docs/` has: `CHANGELOG.md` and `CONTRIBUTING.md` of the top
  level, notebooks, and a drawing in place of each figure that has not been drawn.
- Below each figure is the command that draws it.
- Links to files outside of `docs/` lead to the page that is made of them, or to the repository.
- Names such as `theory.critical` lead to the reference.
- Formulas become MathML, which browsers show without a script.
"""

import html
import posixpath
import re
import sys
from pathlib import Path

import jupytext
import latex2mathml.converter
from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# The command `mkdocs` does not search the folder in which it runs.
sys.path.append(str(ROOT))

import jaxgrad  # noqa: E402
from docs import figures, from_tutorials  # noqa: E402

REPOSITORY = "https://github.com/jaxgrad/jaxgrad"
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
PAGES |= {"README.md": "index.md"}
BOOSTS = {"tutorials/": 8, "guides/": 8, "gradient_atlas.md": 0.1, "changelog.md": 0.1}
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))
# The site is a branch of the repository, from which Colab reads notebooks.
COLAB = "https://colab.research.google.com/github/jaxgrad/jaxgrad/blob/gh-pages"
LINK = re.compile(r"(?P<before>\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?P<after>[)\s])")
PICTURE = re.compile(rf"(!\[[^\]]*\]\(){from_tutorials.SITE}figures/(\w+)\.svg\)")
# The second of the two images of a figure.
DARK = re.compile(r"!\[[^\]]*\]\([^)]*(figures/\w+_dark\.svg)#only-dark\)")
FORMULA = re.compile(r'(<(span|div) class="arithmatex">)\\([(\[])(.*?)\\[)\]](</\2>)', re.DOTALL)
MODULES = "|".join(name for name in jaxgrad.__all__ if hasattr(getattr(jaxgrad, name), "__path__"))
NAME = re.compile(
    rf"<code>((?:jaxgrad\.)?(?:{MODULES}|activations|regimes|testing)\.[a-zA-Z][\w.]*"
    r"|jaxgrad\.[a-z]\w*)((?:\([^<]*\))?)</code>"
)


def on_files(files, config):
    """Add the pages and images that are made rather than read."""
    for source, page in PAGES.items():
        if page != "index.md":
            text = relinked((ROOT / source).read_text(), source, page)
            files.append(File.generated(config, page, content=text))
    for path in NOTEBOOKS:
        notebook = jupytext.read(path)
        notebook.nbformat_minor = 4  # The version without random names of cells.
        name = f"notebooks/{path.stem}"
        files.append(
            File.generated(config, f"{name}.ipynb", content=jupytext.writes(notebook, "ipynb"))
        )
        files.append(File.generated(config, f"{name}.md", content=notebook_page(notebook, name)))
    for path, command in figures.images().items():
        if files.get_file_from_path(path) is None:
            files.append(File.generated(config, path, content=figures.placeholder(path, command)))
    return files


def notebook_page(notebook, name):
    """The cells of a notebook as Markdown, below a line that says where it runs."""
    links = (
        f"[Open in Colab]({COLAB}/{name}.ipynb)",
        f"[Download]({posixpath.basename(name)}.ipynb)",
    )
    title, *parts = (
        cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"
        for cell in notebook.cells
    )
    first, _, rest = title.partition("\n")
    page = "\n\n".join([first, " · ".join(links), rest, *parts]) + "\n"
    # The site shows its own figures, in both themes.
    return PICTURE.sub(
        r"\1../figures/\2.svg#only-light)\n\1../figures/\2_dark.svg#only-dark)", page
    )


def on_page_markdown(markdown, page, **_):
    """Let links that leave `docs/` lead somewhere on the site, too."""
    uri = page.file.src_uri
    # A search finds first what says how to do something, and long tables last.
    boost = next((boost for start, boost in BOOSTS.items() if uri.startswith(start)), 1)
    page.meta.setdefault("search", {"boost": boost})
    markdown = captioned(markdown)
    # Generated pages are those of the top level, whose links are right by now.
    return markdown if uri in PAGES.values() else relinked(markdown, f"docs/{uri}", uri)


def captioned(markdown):
    """A text with the command of each figure below it."""
    commands = figures.images()
    return DARK.sub(lambda match: f"{match[0]}\n\n<small>`{commands[match[1]]}`</small>", markdown)


def relinked(markdown, source, page):
    """A text with links that are relative to the repository's file `source`, made for `page`."""

    def replace(match):
        target = match["target"]
        if re.match(r"[a-z]+:|/", target):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        inside = PAGES.get(path) or (path[5:] if path.startswith("docs/") else None)
        if inside is None:
            target = f"{REPOSITORY}/blob/main/{path}"
        else:
            target = posixpath.relpath(inside, posixpath.dirname(page) or ".")
        return match["before"] + target + (match["anchor"] or "") + match["after"]

    return LINK.sub(replace, markdown)


def on_page_content(content, page, **_):
    """Turn formulas into MathML, and names of the library into links to the reference."""

    def formula(match):
        start, _, bracket, tex, end = match.groups()
        display = "block" if bracket == "[" else "inline"
        if display == "block":
            # Where it is wider than the window it scrolls, also by the arrow keys.
            start = start.replace(" class=", ' tabindex="0" class=', 1)
        return start + latex2mathml.converter.convert(html.unescape(tex), display=display) + end

    def name(match):
        full = match[1] if match[1].startswith("jaxgrad.") else f"jaxgrad.{match[1]}"
        code = f"<code>{match[1]}{match[2]}</code>"
        return f'<autoref identifier="{full}" optional>{code}</autoref>'

    content = FORMULA.sub(formula, content)
    # A wide table scrolls, also by the arrow keys of someone who has no mouse.
    content = content.replace("<table>", '<table tabindex="0">')
    # Headings stay as they are: a link in a link is none.
    parts = re.split(r"(<h\d.*?</h\d>|<a .*?</a>|<pre.*?</pre>)", content, flags=re.DOTALL)
    return "".join(part if i % 2 else NAME.sub(name, part) for i, part in enumerate(parts))


def on_post_page(output, **_):
    """Name the dialog of the search, which the theme leaves without a name."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')
