"""The command: diagnose the runs, time the cost of their records, print and draw."""

from __future__ import annotations

import functools
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures
from experiments.diagnosis import planted_faults
from experiments.diagnosis.planted_faults import CASES, DEV, EVERY, Group, Plant, runs
from jaxgrad.plotting import style
from jaxgrad.training.diagnosis import Diagnosis, diagnose

STRIDE = 1000
"""Difference of the seeds of two repetitions, so large that no two runs share a seed."""
SHOWN = (None, "frozen layer", "rate too low", "vanishing")
"""Faults whose runs of the first group are drawn and diagnosed in words."""
DIFFERENCES = {
    "rate": "rate x {:g}",
    "w_variance": "weight variance x {:g}",
    "bias": "biases {:g}",
    "examples": "{} examples",
    "noise": "{:.0%} labels redrawn",
    "frozen": "layer {} frozen",
    "raw": "raw inputs",
}
"""How a run differs from the healthy ones, by the field of `Plant`."""
TIMED = Group("relu", 8, "sgd", "digits", rate=0.01, w_variance=2.0, width=64, steps=200, batch=64)
# Each item records more than the one before it.
RECORDS = {
    "nothing": (),
    "norms of every step": ("norms",),
    "norms, and units at evaluations": ("norms", "units"),
}


@dataclass(frozen=True)
class Options(kit.FigureOptions):
    """Options of the test of diagnoses, on data of scikit-learn."""

    seeds: int = kit.option(
        1, "Repetitions of all runs with other data and parameters.", minimum=1, maximum=1000
    )
    first_seed: int = kit.option(
        0, "The first repetition; 0 is that of the tests.", minimum=0, maximum=10**6
    )
    repeats: int = kit.option(15, "Timings of each run.", minimum=3, maximum=1000)
    output: Path = kit.option(Path("results/diagnosis.png"), "Where to write the figure.")


class Run(NamedTuple):
    """One run and its diagnosis; the seed of `plant` is that of the first repetition."""

    group: Group
    plant: Plant
    fit: Any
    names: tuple[str, ...]
    diagnosis: Diagnosis

    @property
    def finding(self) -> Any:
        """The first finding, `None` for none."""
        return next(iter(self.diagnosis.findings), None)

    @property
    def fault(self) -> str:
        """The fault of the first finding."""
        return str(self.finding.fault) if self.finding else "healthy"

    @property
    def right(self) -> bool:
        """Whether the first finding is the planted fault, in the planted layer if there is one."""
        # Only a frozen layer has a place; the other faults concern the whole network.
        frozen = self.plant.frozen
        return self.fault == (self.plant.fault or "healthy") and (
            frozen is None or self.finding.layer == self.names[frozen]
        )


def measure(
    options: Options,
    cases: Mapping[Group, Sequence[Plant]] = CASES,
    progress: kit.Progress = None,
) -> list[list[Run]]:
    """Train and diagnose every run: the repetitions of each case, in the order of `cases`."""

    def repetition(group, plants, seed):
        seeded = [plant._replace(seed=plant.seed + STRIDE * seed) for plant in plants]
        # The plants of the result have the seeds of repetition 0, which name the case.
        return [
            Run(group, plant, records[0], named["names"], diagnose(*records, **named))
            for plant, (records, named) in zip(plants, runs(group, seeded), strict=True)
        ]

    def of_group(group, plants):
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        repetitions = [repetition(group, plants, seed) for seed in seeds]
        return [list(case) for case in zip(*repetitions, strict=True)]

    jobs = {group: functools.partial(of_group, group, plants) for group, plants in cases.items()}
    # Groups are the threads, so that each is compiled once.
    return [case for results in kit.in_threads(jobs, progress).values() for case in results]


def cost(
    options: Options,
    group: Group = TIMED,
    optimizers: Sequence[str] = ("sgd", "adam"),
    progress: kit.Progress = None,
) -> dict[str, np.ndarray]:
    """Time the runs of each optimizer, in seconds, `[repeats, RECORDS]`."""
    data = planted_faults.arrays(group, Plant(None))
    params = planted_faults.initial(group, data, jax.random.key(0))
    arguments = params, jax.random.key(1), group.rate

    def compiled(name, records):
        def run(params, key, rate):
            optimizer = planted_faults.OPTIMIZERS[name](rate)
            return planted_faults.train(group, params, optimizer, data, key, RECORDS[records])

        return jax.jit(run).lower(*arguments).compile()

    def timed(program):
        start = time.perf_counter()
        jax.block_until_ready(program(*arguments))
        return time.perf_counter() - start

    columns = list(itertools.product(optimizers, RECORDS))
    programs = kit.in_threads({c: functools.partial(compiled, *c) for c in columns})
    times = {column: [] for column in columns}
    # The first run of a program also pays for memory, so it is not timed.
    jax.block_until_ready([program(*arguments) for program in programs.values()])
    for repeat in range(options.repeats):
        # Another one is first each time, since a machine's speed drifts.
        for column in np.roll(np.arange(len(columns)), -repeat):
            times[columns[column]].append(timed(programs[columns[column]]))
        if progress is not None:
            progress(repeat + 1, options.repeats)
    return {
        name: np.transpose([times[name, records] for records in RECORDS]) for name in optimizers
    }


def setting(group: Group) -> str:
    """Describe a group in words."""
    network = f"{group.activation}, {group.depth} layers" if group.depth else "softmax from zeros"
    return f"{network}, {group.optimizer}, {group.data}"


def difference(plant: Plant) -> str:
    """Describe how a run differs from the healthy ones."""
    usual, values = Plant(None)._asdict(), plant._asdict()
    changed = [name for name in DIFFERENCES if values[name] != usual[name]]
    # Layers are counted from 1.
    texts = [DIFFERENCES[name].format(values[name] + (name == "frozen")) for name in changed]
    if plant.since:
        # A fault that starts late is the only difference of its run.
        texts[-1] += f" from step {plant.since}"
    return ", ".join(texts) or ("the setting" if plant.fault else "nothing")


def counted(values: Sequence[str], limit: int | None = None) -> str:
    """The most common values, with counts where there are several."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return values[0]
    return ", ".join(f"{value} ({n} of {len(values)})" for value, n in counts[:limit])


def case_row(case: list[Run]) -> tuple[str, ...]:
    """The diagnoses of a case, after the cell of its setting."""
    plant, findings = case[0].plant, [run.finding for run in case if run.finding]
    steps = sorted(finding.step for finding in findings)
    right = np.mean([run.right for run in case])
    return (
        difference(plant),
        plant.fault or "healthy",
        counted([run.fault for run in case]),
        counted([finding.layer or "all" for finding in findings], 1) if findings else "",
        " to ".join(map(str, sorted({*steps[:1], *steps[-1:]}))),
        ("yes" if right else "NO") if len(case) == 1 else f"{right:.0%}",
    )


def cost_table(seconds: dict[str, np.ndarray]) -> str:
    """Tabulate the time of runs with records."""
    rows = []
    for name, times in seconds.items():
        for records, column in zip(RECORDS, times.T, strict=True):
            # Ratios within a repeat cancel the drift of a machine's speed.
            low, half, high = np.quantile(column / times[:, 0], [0.25, 0.5, 0.75])
            ratio = f"{half:.2f} ({low:.2f} to {high:.2f})"
            rows.append((name, records, 1e6 * np.median(column) / TIMED.steps, ratio))
    title = (
        "Cost of records, and their time over that of a run without, median (quartiles); width "
        f"{TIMED.width}, depth {TIMED.depth}, batch {TIMED.batch}, units of {DEV[TIMED.data]} "
        f"examples every {EVERY} steps."
    )
    headings = {"optimizer": "", "records": "", "microseconds a step": ".0f", "over nothing": ""}
    return kit.table(headings, rows, title, left=2)


def shown(cases: list[list[Run]]) -> dict[str, Run]:
    """The first run with each fault of `SHOWN` in the first group, by name of the fault."""
    group = cases[0][0].group
    first = {case[0].plant.fault: case[0] for case in cases[::-1] if case[0].group == group}
    return {fault or "healthy": first[fault] for fault in SHOWN if fault in first}


def report(cases: list[list[Run]], seconds: dict[str, np.ndarray]) -> kit.Report:
    """Report every run with its diagnosis, the score, some diagnoses in words, and the cost."""
    settings = [setting(case[0].group) for case in cases]
    # A setting is printed in the first of its rows only.
    rows = [
        (name if name != last else "", *case_row(case))
        for name, last, case in zip(settings, ["", *settings], cases, strict=False)
    ]
    headings = ("setting", "planted", "fault", "diagnosis", "layer", "from step", "right")
    healthy = np.asarray([case[0].plant.fault is None for case in cases], bool)
    right = np.asarray([[run.right for run in case] for case in cases])
    score, claims = [], []
    groups = {"planted faults are named": ~healthy, "healthy runs are called healthy": healthy}
    for words, group in groups.items():
        count, total = right[group].sum(), right[group].size
        score.append(f"{count} of {total} {words}")
        share = Estimate.share(count, total)
        claims.append(Claim(f"more than nine in ten {words}", share, "greater", 0.9, form=".1%"))
    quotes = [
        kit.paragraph(f"- {fault} ({difference(run.plant)}): {run.diagnosis.words}")
        for fault, run in shown(cases).items()
    ]
    words = "\n".join(["Some diagnoses in words:", *quotes])
    sections = [kit.table(headings, rows, left=5), f"{', '.join(score)}.", words]
    return kit.Report([*sections, cost_table(seconds)], claims, {"seconds": seconds})


def draw(cases: list[list[Run]]) -> Any:
    """Draw runs whose losses look alike, and the updates of their layers, which differ."""
    chosen, group = shown(cases), cases[0][0].group
    # A log axis has no 0, so its lowest tick stands for it.
    powers = [1e-8, 1e-6, 1e-4, 1e-2]
    losses, ratios = {}, {}
    for fault, run in chosen.items():
        ratio = np.exp(np.median(run.fit.trace.log_ratio, axis=0))
        losses[fault] = Estimate.exact(run.fit.loss)
        ratios[fault] = Estimate.exact(np.maximum(ratio, powers[0]))
    title = "Runs whose losses look alike are told apart by the updates of their layers"
    figure, [[left, right]] = figures.panels(title, 1, 2, height=3.9)
    steps, places = np.arange(group.steps), np.arange(group.depth + 1) + 1
    figures.curves(left, steps, losses, markevery=EVERY)
    figures.curves(right, places, ratios)
    left.set(xlabel="training step", ylabel="loss of the batch", yscale="log")
    right.set(xlabel="layer, from input to output", ylabel="update / weights (norms)", yscale="log")
    figures.ticks(right.xaxis, places)
    figures.ticks(right.yaxis, powers, ["0", *map(style.scientific, powers[1:])])
    figures.legend_below(figure, left, 4)
    return figure


def run(options: Options) -> None:
    """Plant faults in training runs, diagnose them, and time the cost of the records."""
    cases = measure(options, progress=kit.progress("groups of runs"))
    seconds = cost(options, progress=kit.progress("timings"))
    kit.publish(report(cases, seconds), options, lambda: draw(cases))


if __name__ == "__main__":
    kit.command(Options, run)
