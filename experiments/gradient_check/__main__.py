"""The command: run the chosen parts, then print, draw and store what they measured."""

from experiments._kit import Report, command, publish
from experiments.gradient_check import dropout, kinks, regularizer, steps, training
from experiments.gradient_check.network import Options

PARTS = {"steps": steps, "kinks": kinks, "regularizer": regularizer}
PARTS |= {"dropout": dropout, "training": training}
"""Each part has `measure(options)`, `report(result)` and `figure(result)`."""


def run(options: Options) -> None:
    """Show what goes right and wrong when the gradient of a small network is checked."""
    sections, claims, estimates, figures = [], [], {}, {}
    for name in options.parts:
        result = PARTS[name].measure(options)
        part = PARTS[name].report(result)
        sections += part.sections
        claims += part.claims
        estimates[name] = part.estimates
        figures[f"_{name}.png"] = PARTS[name].figure(result)
    # One report, so that the claims of all parts are decided together.
    publish(Report(sections, claims, estimates), options, figures)


if __name__ == "__main__":
    command(Options, run)
