"""Draw the figure of a page by the code of that page: `python -m docs.page_figure PAGE`.

The figure is what a block of code calls `figure`. The blocks before it run once, and that block
runs for each theme.
"""

import argparse
import contextlib
import re
import tempfile
from pathlib import Path
from typing import Any

from docs.from_tutorials import BLOCK
from experiments._kit import figures

FOLDER = Path(__file__).parent
DRAWS = re.compile(r"^figure = ", re.MULTILINE)


def draw(page: str, output: Path, theme: str) -> list[Path]:
    """Run the code of a page up to its figure; return the files of the figure."""
    blocks = BLOCK.findall((FOLDER / f"{page}.md").read_text())
    count = next(i for i, block in enumerate(blocks) if DRAWS.search(block))
    names: dict[str, Any] = {"__name__": page}

    def drawn() -> Any:
        exec(compile(blocks[count], page, "exec"), names)
        return names["figure"]

    path = output.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The files that the page itself writes are not wanted here.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for block in blocks[:count]:
            exec(compile(block, page, "exec"), names)
        return figures.save(drawn, path, theme)


def main() -> None:
    """Draw the figure of a page."""
    parser = argparse.ArgumentParser("python -m docs.page_figure", description=__doc__)
    parser.add_argument("page", help="The page within docs/, such as tutorials/own_map.")
    parser.add_argument("--theme", choices=("light", "dark", "both"), default="light")
    parser.add_argument("--output", type=Path, required=True, help="The file to write.")
    options = parser.parse_args()
    for path in draw(options.page, options.output, options.theme):
        print(f"Figure: {path}")


if __name__ == "__main__":
    main()
