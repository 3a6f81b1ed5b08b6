"""The command: run the chosen parts, then print, draw and store what they measured."""

from tqdm import tqdm

from experiments._kit import Report, command, publish
from experiments.gradient_check import dropout, kinks, regularizer, steps, training
from experiments.gradient_check.network import Options

PARTS = {"steps": steps, "kinks": kinks, "regularizer": regularizer}
PARTS |= {"dropout": dropout, "training": training}


def run(options: Options) -> None:
    """Show what goes right and wrong when the gradient of a small network is checked."""
    parts = tqdm(options.parts, unit="part", disable=None, leave=False)
    results = {name: PARTS[name].measure(options) for name in parts}
    reports = {name: PARTS[name].report(result) for name, result in results.items()}
    sections = [section for part in reports.values() for section in part.sections]
    # One report, so that the claims of all parts are decided together.
    claims = [claim for part in reports.values() for claim in part.claims]
    estimates = {name: part.estimates for name, part in reports.items()}

    def draw():
        return {name: PARTS[name].figure(result) for name, result in results.items()}

    publish(Report(sections, claims, estimates), options, draw)


if __name__ == "__main__":
    command(Options, run)
