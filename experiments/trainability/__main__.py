"""The command: tables, claims, cells that are trained again, and the figure."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray

from experiments import _kit
from experiments._kit import Claim, Estimate, Report, paragraph, table
from experiments.trainability import figure
from experiments.trainability.measurement import (
    SCALES,
    Map,
    Options,
    best_rate,
    compare,
    exceptions_and_control,
    measure,
    measure_again,
    scales,
)

NEAR = 1.5
"""A cell within this factor of the border in depth is near it."""


def map_report(kind: str, result: Map, options: Options) -> list[str]:
    """Compare the predicted and the measured region, and count the exceptions."""
    rows = []
    for i, depth in enumerate(options.depths):
        learns, inside = result.learns[:, i], result.predicted[:, i]
        accuracy = result.accuracy[:, i]
        # A side of the border without cells has no mean.
        means = (f"{accuracy[s].mean():.0%}" if s.any() else "" for s in (inside, ~inside))
        regions = (_range(options.variances, cells) for cells in (inside, learns))
        rows.append((str(depth), *regions, *means, f"{np.mean(learns == inside):.0%}"))
    headings = ("depth", "theory: trains", "measured", "accuracy inside", "outside", "agree")
    title = (
        f"{options.activation}, {kind}, width {options.width}: weight variances (x fan-in) at "
        f"which networks learn, after {options.steps} steps; theory: depth up to {SCALES} scales; "
        f"measured: test accuracy above {result.threshold:.0%}, half of the way from chance to the "
        "best."
    )
    # Exceptions on both sides of the border.
    late, early = result.learns & ~result.predicted, ~result.learns & result.predicted
    text = (
        f"{result.agreement:.1%} of {late.size} cells are as predicted; rank correlation of "
        f"accuracy with log({SCALES} scale / depth): {result.rank_correlation:+.2f}."
    )
    if (late | early).any():
        # exp(|margin|) is the factor in depth between a cell and the border.
        factor = np.exp(np.median(np.abs(result.margin[late | early])))
        distance = f"within a factor {factor:.2f} of" if factor < 10 else "far from"
        text += (
            f" Exceptions: {late.sum()} learn beyond {SCALES} scales, {early.sum()} do not learn "
            f"within; half of all are {distance} the border in depth."
        )
    if result.diverged:
        text += f" {result.diverged:.1%} of the runs ended with a loss that is not finite."
    return [table(headings, rows, title), paragraph(text)]


def again_report(
    result: Map,
    cells: np.ndarray,
    again: xarray.Dataset,
    control: xarray.Dataset | None,
    options: Options,
) -> str:
    """Report how many cells learn when they are trained again, and where the others are."""
    learned = best_rate(again) > result.threshold
    text = (
        f"The {len(cells)} that do not learn within, trained again at 1/{options.longer} of the "
        f"rate for {options.longer} times the steps: {learned.sum()} learn."
    )
    if not learned.all():
        rest = cells[~learned]
        near = np.sum(np.exp(result.margin[tuple(rest.T)]) < NEAR)
        depths = ", ".join(map(str, np.unique(np.asarray(options.depths)[rest[:, 1]])))
        text += (
            f" Of the other {len(rest)}, of depth {depths}, {near} are within a factor {NEAR:g} of "
            "the border in depth."
        )
    # Exceptions that learn after all are as predicted; controls that learn are not.
    count = (result.learns == result.predicted).sum() + learned.sum()
    if control is not None:
        beyond = best_rate(control) > result.threshold
        count -= beyond.sum()
        text += f" Of the {beyond.size} nearest beyond, trained alike, {beyond.sum()} learn."
    return paragraph(f"{text} Then {count / result.learns.size:.1%} of the cells are as predicted.")


def summary(maps: Mapping[str, Map], options: Options) -> str:
    """Compare all kinds in one table."""
    rows = [
        (
            kind,
            f"{result.learns.mean():.0%}",
            f"{result.learns[:, -1].mean():.0%}",
            f"{result.accuracy.max():.0%}",
            f"{result.predicted.mean():.0%}",
            f"{result.agreement:.1%}",
            f"{result.rank_correlation:+.2f}",
        )
        for kind, result in maps.items()
    ]
    deepest = f"at depth {max(options.depths)}"
    headings = ("kind", "cells that learn", deepest, "best accuracy", "theory: learn", "agree")
    return table((*headings, "rank correlation"), rows)


def _range(variances: np.ndarray, inside: np.ndarray) -> str:
    if not inside.any():
        return "none"
    index = np.flatnonzero(inside)
    # Without gaps there are as many indices as from the first to the last.
    gaps = "" if len(index) == index[-1] - index[0] + 1 else ", with gaps"
    return f"{variances[index[0]]:.2f} to {variances[index[-1]]:.2f}{gaps}"


def run(options: Options) -> None:
    """Train a network for each depth and weight variance, and compare with theory's depth scale."""
    dataset = measure(options, _kit.progress("networks"), options.store())
    borders = {kind: SCALES * scales(kind, options) for kind in options.kinds}
    maps = {k: compare(dataset.sel(kind=k), border / SCALES) for k, border in borders.items()}
    sections, claims = [], []
    for kind, result in maps.items():
        sections += map_report(kind, result, options)
        cells, beyond = exceptions_and_control(result)
        # Slow learning looks like none, so exceptions get more steps, with a control.
        if len(cells) and options.longer > 1:
            parts = {"again": cells} | ({"control": beyond} if len(beyond) else {})
            again = {
                name: measure_again(
                    kind, options, part, _kit.progress(name), options.store(f"_{kind}_{name}")
                )
                for name, part in parts.items()
            }
            text = again_report(result, cells, again["again"], again.get("control"), options)
            sections.append(text)
        text = f"{kind}: cells are as predicted more often than by the more frequent outcome"
        # A guess without theory names the more frequent outcome for every cell.
        more = max(result.learns.mean(), 1 - result.learns.mean())
        estimate = Estimate.exact(result.agreement)
        claims.append(Claim(text, estimate, "greater", float(more), form=".1%"))
    if len(maps) > 1:
        sections.append(summary(maps, options))
    sections.append(f"{dataset['accuracy'].size} networks in {options.store()}")
    estimates = {kind: result._asdict() for kind, result in maps.items()}
    _kit.publish(Report(sections, claims, estimates), options, figure.draw(maps, borders, options))


if __name__ == "__main__":
    _kit.use_all_cores()
    _kit.command(Options, run, resumable=True)
