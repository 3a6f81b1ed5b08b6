"""Do the default initializations of Flax, Equinox and Haiku survive depth, and does training agree?

Run `python -m experiments.xray_gallery`, or `--help` for its options.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments import _kit as kit
from experiments._kit import Estimate, figures
from experiments.xray_gallery.measurement import Options, Record, measure_all

SIDES = ("default", "prescribed")
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
    sections = [answer(records, options), before_after, seen]
    return kit.Report(sections, claims(records, options), numbers)


def figure(records: Records, options: Options) -> Any:
    """Signal and gradient over relative depth, and the loss after training, before and after."""
    names, deepest = options.models, max(options.depths)
    size = (1.2 + 2.1 * len(names), 8.2)
    result, axes = figures.panels(3, len(names), size, sharey="row")
    for (name, depth), record in records.items():
        column = axes[:, names.index(name)]
        color = figures.LOOKS[options.depths.index(depth) % len(figures.LOOKS)]["color"]
        position = np.arange(1, depth + 1) / depth
        # What has underflowed ends the line.
        logs = np.where(np.isfinite(record.relative), record.relative, np.nan)
        for i, (line, marker) in enumerate((("solid", "o"), ("dotted", "D"))):
            style = {"color": color, "label": f"{depth} blocks, {SIDES[i]}"}
            for part, ax in enumerate(column[:2]):
                sizes = Estimate.of(logs[:, i, part])
                figures.error_band(ax, position, sizes, linestyle=line, linewidth=2, **style)
            # Both sides of a model that is left as it is lie on each other.
            fill = color if i == 0 else "none"
            look = {"marker": marker, "markersize": 6 + 3 * i, "markerfacecolor": fill}
            figures.error_bars(column[2], depth, Estimate.of(record.losses[:, i]), **look, **style)
    for name, column in zip(names, axes.T, strict=True):
        unchanged = not records[name, deepest].changed.any()
        column[0].set_title(name + ("\n(left as it is)" if unchanged else "\n"), fontsize=10)
        for ax in column[:2]:
            # Within a factor of 10 of where they come from.
            ax.axhspan(-1, 1, color="0.88", zorder=0, linewidth=0)
            ax.set_xlabel("depth, relative")
        column[2].axhline(CHANCE, color="0.6", linewidth=0.8)
        column[2].set(xscale="log", xlabel="blocks", ylim=(0, 1.1 * CHANCE))
        figures.ticks(column[2].xaxis, options.depths)
    axes[0, 0].set_ylabel("size of the signal,\nlog10, first block = 0")
    axes[1, 0].set_ylabel("size of the gradient,\nlog10, last block = 0")
    axes[2, 0].set_ylabel(f"loss after {options.steps} steps\n(open: prescribed, line: chance)")
    figures.legend_below(result, axes[0, 0], len(options.depths))
    # Counts of the mean over seeds, by side.
    deep = [records[name, deepest] for name in names]
    survive, learn = (
        [sum(values[:, i].mean() < limit for values in column) for i in (0, 1)]
        for column, limit in (
            ([r.change for r in deep], 1),
            ([r.losses for r in deep], CHANCE - LEARNED),
        )
    )
    # The message of the figure.
    result.suptitle(
        f"Of {len(names)} default initializations, {deepest} blocks deep, {survive[0]} keep signal "
        f"and gradient within a factor of 10 (grey) and {learn[0]} learn; after prescription "
        f"{survive[1]} and {learn[1]}"
    )
    return result


def run(options: Options) -> None:
    """X-ray models with default initializations before and after prescription, and train them."""
    records = measure_all(options, kit.progress("steps"))
    kit.publish(report(records, options), options, figure(records, options))


if __name__ == "__main__":
    kit.command(Options, run)
