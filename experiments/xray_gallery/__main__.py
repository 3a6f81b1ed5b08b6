"""Do the default initializations of Flax, Equinox and Haiku survive depth, and does training agree?

Run `python -m experiments.xray_gallery`, or `--help` for its options.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import _kit as kit
from experiments._kit import Estimate, figures
from experiments.xray_gallery.measurement import Options, Record, measure_all
from jaxgrad.plotting import style

SIDES: tuple[str, ...] = ("default", "prescribed")
CHANCE = float(np.log(10))
"""Loss of a classifier that gives all ten digits one probability."""
LEARNED = 0.1
"""How far below chance a loss has to be to be called learned."""

Records = dict[tuple[str, int], Record]


def claims(records: Records, options: Options) -> list[kit.Claim]:
    """What is claimed of the deepest models."""
    depth, results = max(options.depths), []

    def add(text, values, expected, form):
        claim = kit.Claim(f"{name}, {text}", Estimate.of(values), "less", expected, form=form)
        results.append(claim)

    for name in options.models:
        record = records[name, depth]
        # A model that is left as it is has the same numbers on both sides.
        for i in range(1 + record.changed.any()):
            text = f"{SIDES[i]}, {depth} blocks: decades that signal or gradient change, below 1"
            add(text, record.change[:, i], 1.0, ".2f")
            text = f"{SIDES[i]}, {depth} blocks: loss after training, {LEARNED:g} below chance"
            add(text, record.losses[:, i], CHANCE - LEARNED, ".3f")
        if record.changed.any():
            # Each seed is compared with itself.
            difference = record.losses[:, 1] - record.losses[:, 0]
            add(
                f"{depth} blocks: change of the loss by prescription, below 0",
                difference,
                0.0,
                "+.3f",
            )
    return results


def answer(records: Records, options: Options) -> str:
    """Which models survive the largest depth, and which of them learn, in words."""
    depth, words = max(options.depths), []
    for i, side in enumerate(SIDES):
        changes = {name: records[name, depth].change[:, i].mean() for name in options.models}
        survive = [name for name, decades in changes.items() if decades < 1]
        others = [f"{name} 10^{decades:.1f}" for name, decades in changes.items() if decades >= 1]
        learn = [
            name
            for name in options.models
            if records[name, depth].losses[:, i].mean() < CHANCE - LEARNED
        ]
        parts = [", ".join(names) or "none" for names in (survive, others, learn)]
        words.append(
            f"{side.capitalize()} models of {depth} blocks whose signal and gradient stay within "
            f"a factor of 10: {parts[0]}. Factors of the others: {parts[1]}. Models that learn in "
            f"{options.steps} steps: {parts[2]}."
        )
    return "\n".join(map(kit.paragraph, words))


def report(records: Records, options: Options) -> kit.Report:
    """The numbers of all models, what the x-ray says of them, and the claims."""
    numbers, growth_rows, words = {}, [], []
    for (name, depth), record in records.items():
        growth, losses = Estimate.of(record.growth), Estimate.of(record.losses)
        cells = [growth[i, part] for part in (0, 1) for i in (0, 1)]
        growth_rows.append((f"{name}, {depth}", *cells, *losses))
        words.append((name, str(depth), record.summary))
        numbers[f"{name}, {depth}"] = {
            "growth": growth,
            "losses": losses,
            "change": Estimate.of(record.change),
            "changed": record.changed.mean(),
            "prescription": record.prescription,
        }
    title = (
        f"Growth per block of signal (forward) and gradient (backward) before and after "
        f"prescription, and the loss after {options.steps} steps of Adam at the rate "
        f"{options.learning_rate:g}; width {options.width}, mean over {options.seeds} seeds ± "
        f"standard error. The loss of chance is {CHANCE:.2f}."
    )
    headings = {"model, blocks": ""}
    for quantity, form in (("signal", ".3f"), ("gradient", ".3f"), ("loss", ".2f")):
        headings |= {f"{quantity} before": form, f"{quantity} after": form}
    before_after = kit.table(headings, growth_rows, title)
    title = "What the x-ray says of the defaults, for the first seed."
    seen = kit.table(("model", "blocks", "x-ray"), words, title, left=3)
    sections = [answer(records, options), before_after]
    return kit.Report(sections, claims(records, options), numbers, [seen])


def figure(records: Records, options: Options) -> Any:
    """Change of signal or gradient and loss after training of the deepest models, both sides."""
    # Differences between initializations grow with depth.
    deepest = max(options.depths)
    deep = {name: records[name, deepest] for name in options.models}
    columns = ([r.change for r in deep.values()], [r.losses for r in deep.values()])
    # Counts of the mean over seeds, by side.
    (survive, mended), (learn, taught) = (
        [sum(values[:, i].mean() < limit for values in column) for i in (0, 1)]
        for column, limit in zip(columns, (1, CHANCE - LEARNED), strict=True)
    )
    title = (
        f"Of {len(deep)} default initializations, {deepest} blocks deep, {survive} survive and "
        f"{learn} learn; after jaxgrad.prescribe {mended} and {taught}"
    )
    result, ((left, right),) = figures.panels(title, 1, 2, 3.6, sharey=True)
    for ax, column in zip((left, right), columns, strict=True):
        estimates = [Estimate.of(values) for values in column]
        rows = {
            name: dict(zip(SIDES, estimate, strict=True))
            for name, estimate in zip(deep, estimates, strict=True)
        }
        figures.dots(ax, rows)
    colors = style.palette()
    # Where `answer` says that a model survives.
    left.axvspan(0, 1, color=colors.faint, zorder=0, linewidth=0, label="within a factor of 10")
    left.set_xlabel("powers of ten by which signal or\ngradient changes, the larger one")
    chance = right.axvline(CHANCE, color=colors.theory, label="loss of chance")
    right.set(xlim=(0, None), xlabel=f"loss after {options.steps} steps of training")
    # Below both panels, with the line that only the second one has.
    handles, _ = left.get_legend_handles_labels()
    result.legend(handles=[*handles, chance], loc="outside lower center", ncols=4)
    return result


def run(options: Options) -> None:
    """X-ray models with default initializations before and after prescription, and train them."""
    records = measure_all(options, kit.progress("steps"))
    kit.publish(report(records, options), options, lambda: figure(records, options))


if __name__ == "__main__":
    kit.command(Options, run)
