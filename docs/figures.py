"""The figures of the site, each with the command that draws it.

`python -m docs build` runs the commands of figures that are not there. Results and stores go to
`results/site/`, so that a drawing is quick the next time; the figures go to `docs/figures/`. Below
each figure a page has its command. Those that would train networks for an hour are smaller than
their defaults.
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
THEMES = ("", "dark")


class Figure(NamedTuple):
    """A module, its options, and the parts that have a figure each."""

    module: str
    options: str = ""
    parts: tuple[str, ...] = ("",)
    page: bool = False  # whether it also writes an interactive page

    @property
    def shown(self) -> str:
        """The command that a reader would type."""
        return f"python -m {self.module} {self.options}".strip()

    def command(self, name: str) -> str:
        """The command that draws the figure for the site."""
        return f"{self.shown} --theme both --output {WORK}/{name}.svg"

    def files(self, name: str) -> list[str]:
        """The names of the files that the command writes."""
        words = [[name, part, theme] for part in self.parts for theme in THEMES]
        pages = [f"{name}.html"] if self.page else []
        return ["_".join(filter(None, parts)) + ".svg" for parts in words] + pages


FIGURES = {
    "depth_variance": Figure("experiments.depth_variance", "--html", page=True),
    "depth_variance_transformer": Figure("experiments.depth_variance", "--network transformer"),
    "own_map": Figure("docs.page_figure", "tutorials/own_map"),
    "phase_diagram": Figure("experiments.phase_diagram"),
    "activations": Figure("experiments.activations"),
    "trainability": Figure(
        "experiments.trainability",
        "--kinds plain orthogonal critical batch_norm residual --w-variances 12 --longer 1",
    ),
    "trainability_transformers": Figure("experiments.trainability.transformers"),
    "xray_gallery": Figure("experiments.xray_gallery", "--seeds 3"),
    "gradient_check": Figure(
        "experiments.gradient_check", "--parts kinks steps", ("kinks", "steps")
    ),
    "input_normalization": Figure("experiments.input_normalization"),
    "data_splits": Figure("experiments.data_splits"),
    "norm_layers": Figure("experiments.norm_layers"),
    "learning_rate": Figure("experiments.learning_rate"),
    "regularization": Figure("experiments.regularization"),
    "bias_variance": Figure("experiments.bias_variance"),
    "diagnosis": Figure("experiments.diagnosis"),
    "hyperparameters": Figure("experiments.hyperparameters"),
}


def images() -> dict[str, str]:
    """The command that a reader would type, by path of each image within `docs/`."""
    return {
        f"figures/{file}": figure.shown
        for name, figure in FIGURES.items()
        for file in figure.files(name)
    }


def draw(redraw: bool = False) -> None:
    """Run the commands of all figures that are not there, or of all."""
    missing = {
        name: figure
        for name, figure in FIGURES.items()
        if redraw or not all((FOLDER / file).exists() for file in figure.files(name))
    }
    for i, (name, figure) in enumerate(missing.items()):
        command, files = figure.command(name), figure.files(name)
        print(f"Figure {i + 1} of {len(missing)}: {command}", flush=True)
        arguments = [sys.executable, *command.split()[1:]]
        subprocess.run(arguments, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        FOLDER.mkdir(exist_ok=True)
        for file in files:
            shutil.copy(ROOT / WORK / file, FOLDER)


def placeholder(path: str, command: str) -> str:
    """What stands in the place of a figure that has not been drawn: the command that draws it."""
    if path.endswith(".html"):
        return f"<!doctype html><title>{path}</title><p>{command}</p>"
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
