"""Notebooks as text, made of tutorials: `python -m docs.from_tutorials` writes them anew.

A notebook has the text and the code of its tutorial. Outputs are left out, since running it makes
them. Links lead to the site and figures come from it, since Colab knows no other pages.
"""

import posixpath
import re
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = ("wrong_rule", "transformer", "own_map")
SITE = "https://jaxgrad.github.io/jaxgrad/"
HEADER = """# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""
INSTALL = """# Where jaxgrad is not installed, as in Colab, this installs it.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("jaxgrad") is None:
    command = [sys.executable, "-m", "pip", "install", "-q", "jaxgrad[experiments]"]
    subprocess.run(command, check=True)"""
# A block of code with its marks before it and its output after it.
BLOCK = re.compile(
    r"(?:^<!-- .*? -->\n)?^```python\n(.*?)^```$(?:\n+^```\n.*?^```$)?", re.DOTALL | re.MULTILINE
)
# A figure for light pages and the same for dark ones.
PICTURES = re.compile(r"(!\[[^\]]*\]\()\.\./figures/(\w+)\.svg#only-light\)\n!.*?#only-dark\)")
LINK = re.compile(r"\]\((\.\.?/|)([\w/]+)\.md(#[\w-]+)?\)")


def notebook(page: str) -> str:
    """The notebook of a tutorial's text, in the percent format of jupytext."""
    page = page.replace("\n", " (notebook)\n", 1)
    # The sentence on how to run the page is for the page.
    page = re.sub(r"^All blocks .*\n\n", "", page, flags=re.MULTILINE)
    # Text and code alternate.
    title, *parts = BLOCK.split(page)
    cells = [_markdown(title), "# %%\n" + INSTALL]
    for i, part in enumerate(parts):
        cells += [_markdown(part)] if i % 2 else ["# %%\n" + part.strip()]
    return HEADER + "\n" + "\n\n".join(cell for cell in cells if cell) + "\n"


def _markdown(text: str) -> str:
    text = PICTURES.sub(rf"\1{SITE}figures/\2.svg)", text)
    lines = LINK.sub(_absolute, text).strip().splitlines()
    return "\n".join(
        ["# %% [markdown]", *(f"# {line}".rstrip() for line in lines)] if lines else []
    )


def _absolute(match: re.Match[str]) -> str:
    path = posixpath.normpath(posixpath.join("tutorials", match[1] + match[2]))
    return f"]({SITE}{path}/{match[3] or ''})"


def main() -> None:
    """Write all notebooks."""
    for name in NAMES:
        page = (FOLDER / "tutorials" / f"{name}.md").read_text()
        (FOLDER / "notebooks" / f"{name}.py").write_text(notebook(page))


if __name__ == "__main__":
    main()
