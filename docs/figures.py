"""The figures of the site, each with the command that draws it.

`python -m docs build` runs the commands of figures that are not there. Results and stores go to
`results/site/`, so that a drawing is quick the next time; the figures go to `docs/figures/`.
"""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "figures"
WORK = Path("results/site")
THEMES = ("", "_dark")


class Figure(NamedTuple):
    """A module of the experiments with its options, and the ends of the names of its figures."""

    module: str
    options: str = ""
    ends: tuple[str, ...] = ("",)

    def command(self, name: str) -> str:
        """What a reader would type."""
        options = f" {self.options}" if self.options else ""
        return f"python -m {self.module}{options} --theme both --output {WORK / name}.svg"


FIGURES = {
    "depth_variance": Figure("experiments.depth_variance"),
    "phase_diagram": Figure("experiments.phase_diagram"),
}


def images() -> dict[str, str]:
    """The command that draws it, by path of each image within `docs/`."""
    return {
        f"figures/{name}{end}{theme}.svg": figure.command(name)
        for name, figure in FIGURES.items()
        for end in figure.ends
        for theme in THEMES
    }


def draw(redraw: bool = False) -> None:
    """Run the commands of all figures that are not there, or of all."""
    for name, figure in FIGURES.items():
        files = [f"{name}{end}{theme}.svg" for end in figure.ends for theme in THEMES]
        if redraw or not all((FOLDER / file).exists() for file in files):
            command = figure.command(name)
            print(command, flush=True)
            subprocess.run(
                [sys.executable, *command.split()[1:]],
                check=True,
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
            )
            FOLDER.mkdir(exist_ok=True)
            for file in files:
                shutil.copy(ROOT / WORK / file, FOLDER)


def placeholder(command: str) -> str:
    """An image in place of a figure that has not been drawn, with the command that draws it."""
    lines = ["This figure has not been drawn. The command is", *textwrap.wrap(command, 60)]
    texts = "".join(
        f'<text x="350" y="{170 + 24 * i}" text-anchor="middle">{line}</text>'
        for i, line in enumerate(lines)
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 700 400" width="700" height="400">'
        '<rect width="700" height="400" fill="#767676" fill-opacity="0.12"/>'
        f'<g font-family="sans-serif" font-size="16" fill="#767676">{texts}</g></svg>'
    )
