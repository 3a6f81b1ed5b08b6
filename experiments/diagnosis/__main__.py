"""The command: diagnose the runs, time the cost of their records, print and draw."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit
from experiments._kit import Claim, Estimate, Report, option, paragraph, table
from experiments.diagnosis import figure, planted_faults
from experiments.diagnosis.planted_faults import CASES, Group, Plant
from jaxgrad import layers, training
from jaxgrad.training import monitoring
from jaxgrad.training.diagnosis import Diagnosis, diagnose

STRIDE = 1000
"""Difference of the seeds of two repetitions, so large that no two runs share a seed."""
SHOWN = {
    ("tanh", "momentum"): (None, "rate too high", "rate too low", "overfitting"),
    ("sigmoid", "sgd"): ("vanishing",),
    ("relu", "sgd"): ("exploding", "dead units"),
}
"""Rows of the figure: planted faults by activation and optimizer."""
QUOTED = (None, "rate too high", "vanishing", "dead units")
"""Rows of the figure whose diagnosis is printed in words."""
TIMED = Group("relu", 8, "sgd", "digits", rate=0.01, w_variance=2.0, width=64, steps=200, batch=64)
# Each item records more than the one before it.
RECORDS = ("nothing", "norms of every step", "norms, and units at evaluations")


@dataclass(frozen=True)
class Options(_kit.Options):
    """Options of the test of diagnoses, on data of scikit-learn."""

    seeds: int = option(
        1, "Repetitions of all runs with other data and parameters.", minimum=1, maximum=1000
    )
    first_seed: int = option(
        0, "The first repetition; 0 is that of the tests.", minimum=0, maximum=10**6
    )
    repeats: int = option(15, "Timings of each run.", minimum=3, maximum=1000)
    output: Path = option(Path("results/diagnosis.png"), "Where to write the figure.")


class Run(NamedTuple):
    """One run and its diagnosis.

    Attributes:
      group, plant: of `CASES`; the seed of `plant` is that of the first repetition.
      fit: `jaxgrad.training.Fit` with `layer_norms` as the trace and, in the record, `units` and
        `train_error`.
      names: the names of the layers.
      diagnosis: the diagnosis of the records.
    """

    group: Group
    plant: Plant
    fit: Any
    names: tuple[str, ...]
    diagnosis: Diagnosis

    @property
    def finding(self) -> Any:
        """The first finding, `None` for none."""
        return None if self.diagnosis.healthy else self.diagnosis.findings[0]

    @property
    def fault(self) -> str | None:
        """The fault of the first finding, `None` for none."""
        return None if self.finding is None else str(self.finding.fault)

    @property
    def right(self) -> bool:
        """Whether the first finding is the planted fault, in the planted layer if there is one."""
        # Only a frozen layer has a place; the other faults concern the whole network.
        frozen = self.plant.frozen
        return self.fault == self.plant.fault and (
            frozen is None or self.finding.layer == self.names[frozen]
        )

    @property
    def epochs(self) -> float:
        """Epochs per step: the batch size over the number of training examples."""
        return self.group.batch / planted_faults.EXAMPLES[self.group.data]


def measure(
    options: Options,
    cases: dict[Group, tuple[Plant, ...]] = CASES,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Run]]:
    """Train and diagnose every run: the repetitions of each case, in the order of `cases`."""
    repetitions = range(options.first_seed, options.first_seed + options.seeds)

    def of_group(item):
        group, plants = item
        results = [[] for _ in plants]
        for repetition in repetitions:
            # The plants of the result keep the seeds of repetition 0, which name the case.
            seeded = [plant._replace(seed=plant.seed + STRIDE * repetition) for plant in plants]
            runs = planted_faults.runs(group, seeded)
            for plant, result, (arrays, record) in zip(plants, results, runs, strict=True):
                diagnosis = diagnose(*arrays, **record)
                result.append(Run(group, plant, arrays[0], record["names"], diagnosis))
        return results

    cases_done, total = [], options.seeds * sum(map(len, cases.values()))
    # Most of the time is spent compiling, one core for each group.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for results in threads.map(of_group, cases.items()):
            cases_done += results
            if progress is not None:
                progress(sum(map(len, cases_done)), total)
    return cases_done


def timed_program(name: str, records: str, group: Group, data: Any) -> Any:
    """A jitted training run `(params, key, rate)` with some of its records."""

    def loss(params, state, batch, key):
        return planted_faults.cross_entropy(params, batch, group.activation), state

    def evaluate(params, state):
        logits, z = planted_faults.forward(params, data["dev"]["x"], group.activation)
        # Nothing is computed that is not recorded, so that a column times its records.
        record = monitoring.units(z, group.activation) if "units" in records else ()
        return jnp.mean(jnp.argmax(logits, axis=1) != data["dev"]["label"]), record

    def monitor(step):
        return monitoring.layer_norms(step, stacked=planted_faults.STACKED)

    return jax.jit(
        lambda params, key, rate: training.fit(
            loss,
            params,
            planted_faults.OPTIMIZERS[name](rate),
            data["train"],
            key=key,
            steps=group.steps,
            batch_size=group.batch,
            evaluate=evaluate,
            every=planted_faults.EVERY,
            monitor=monitor if "norms" in records else None,
        )
    )


def cost(
    options: Options,
    group: Group = TIMED,
    optimizers: Sequence[str] = ("sgd", "adam"),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Time the runs of each optimizer, in seconds, `[repeats, RECORDS]`."""
    data = planted_faults.arrays(group, Plant(None))
    classes = int(data["dev"]["label"].max()) + 1
    size, weights = (group.width, group.depth, "tanh"), group.w_variance
    network = layers.mlp(*size, out_features=classes, w_variance=weights, bias=True)
    params, _ = layers.init(network, data["dev"]["x"].shape[1:], key=jax.random.key(0))
    arguments = (params, jax.random.key(1), group.rate)
    columns = [(name, column) for name in optimizers for column in range(len(RECORDS))]
    lowered = [timed_program(n, RECORDS[c], group, data).lower(*arguments) for n, c in columns]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        compiled = threads.map(lambda program: program.compile(), lowered)
        programs = dict(zip(columns, compiled, strict=True))
    seconds = {name: np.zeros((options.repeats, len(RECORDS))) for name in optimizers}
    # The first run of a program also pays for memory, so it is not timed.
    for program in programs.values():
        jax.block_until_ready(program(*arguments))
    for repeat in range(options.repeats):
        for name, column in columns:
            # Each is first equally often, since a machine's speed drifts.
            column = (column + repeat) % len(RECORDS)
            start = time.perf_counter()
            jax.block_until_ready(programs[name, column](*arguments))
            seconds[name][repeat, column] = time.perf_counter() - start
        if progress is not None:
            progress(repeat + 1, options.repeats)
    return seconds


def setting(group: Group) -> str:
    """Describe a group in words."""
    network = f"{group.activation}, {group.depth} layers" if group.depth else "softmax from zeros"
    return f"{network}, {group.optimizer}, {group.data}"


def difference(plant: Plant) -> str:
    """Describe how a run differs from the healthy ones."""
    words = {
        "rate": f"rate x {plant.rate:g}",
        "w_variance": f"weight variance x {plant.w_variance:g}",
        "bias": f"biases {plant.bias:g}",
        "examples": f"{plant.examples} examples",
        "noise": f"{plant.noise:.0%} labels redrawn",
        "frozen": f"layer {(plant.frozen or 0) + 1} frozen",
        "raw": "raw inputs",
    }
    usual = Plant(None)
    texts = [text for name, text in words.items() if getattr(plant, name) != getattr(usual, name)]
    if plant.since:
        # A fault that starts late is the only difference of its run.
        texts[-1] += f" from step {plant.since}"
    return ", ".join(texts) or ("the setting" if plant.fault else "nothing")


def _counted(values: Sequence[str], limit: int | None = None) -> str:
    """The most common values, with counts where there are several."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return values[0]
    return ", ".join(f"{value} ({n} of {len(values)})" for value, n in counts[:limit])


def shares(cases: list[list[Run]]) -> tuple[np.ndarray, np.ndarray]:
    """Whether diagnoses are right, `[cases, repetitions]`: planted faults, healthy runs."""
    right = np.asarray([[run.right for run in case] for case in cases])
    planted = np.asarray([case[0].plant.fault is not None for case in cases])
    return right[planted], right[~planted]


def score(cases: list[list[Run]]) -> str:
    """Count the faults that were named and the healthy runs that were called healthy."""
    texts = []
    for right in shares(cases):
        text = f"{right.sum()} of {right.size}"
        # A standard error needs more than one repetition.
        if right.shape[1] > 1:
            text += f" ({Estimate.of(right.mean(axis=0)):.1%})"
        texts.append(text)
    return f"{texts[0]} planted faults named, {texts[1]} healthy runs called healthy"


def case_table(cases: list[list[Run]]) -> str:
    """Tabulate every case with its diagnosis."""
    rows, last = [], None
    for case in cases:
        group, plant = case[0].group, case[0].plant
        findings = [run.finding for run in case if run.fault]
        steps = sorted({finding.step for finding in findings})
        right = np.asarray([run.right for run in case])
        rows.append(
            (
                # A setting is printed in the first of its rows only.
                setting(group) if group != last else "",
                difference(plant),
                plant.fault or "healthy",
                _counted([run.fault or "healthy" for run in case]),
                _counted([finding.layer or "all" for finding in findings], 1) if findings else "",
                f"{steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "") if steps else "",
                ("yes" if right[0] else "NO") if len(case) == 1 else f"{right.mean():.0%}",
            )
        )
        last = group
    headings = ("setting", "planted", "fault", "diagnosis", "layer", "from step", "right")
    return table(headings, rows, left=5)


def cost_lines(seconds: dict[str, np.ndarray]) -> str:
    """State the time of runs with records, relative to a run without."""
    lines = [
        paragraph(
            "Cost of records, time over that of a run without, median (quartiles); width "
            f"{TIMED.width}, depth {TIMED.depth}, batch {TIMED.batch}, units of "
            f"{planted_faults.DEV[TIMED.data]} examples every {planted_faults.EVERY} steps:"
        )
    ]
    for name, times in seconds.items():
        for column, records in enumerate(RECORDS[1:], 1):
            # Ratios within a repeat cancel the drift of a machine's speed.
            low, half, high = np.quantile(times[:, column] / times[:, 0], [0.25, 0.5, 0.75])
            lines.append(f"- {name}, {records}: {half:.2f} ({low:.2f} to {high:.2f})")
        step = np.median(times[:, 0]) / TIMED.steps
        lines.append(f"- {name}, {RECORDS[0]}: {1e6 * step:.0f} microseconds a step")
    return "\n".join(lines)


def report(cases: list[list[Run]], seconds: dict[str, np.ndarray]) -> Report:
    """Report every run with its diagnosis, the score, some diagnoses in words, and the cost."""
    quotes = [
        paragraph(f"- {r.plant.fault or 'healthy'} ({difference(r.plant)}): {r.diagnosis.words}")
        for r in shown(cases)
        if r.plant.fault in QUOTED
    ]
    names = ("planted faults are named", "healthy runs are called healthy")
    claims = []
    for name, right in zip(names, shares(cases), strict=True):
        if right.size:
            share = Estimate.share(right.sum(), right.size)
            claims.append(Claim(f"more than nine in ten {name}", share, "greater", 0.9, form=".1%"))
    words = "\n".join(["Some diagnoses in words:", *quotes])
    sections = [case_table(cases), f"{score(cases)}.", words, cost_lines(seconds)]
    return Report(sections, claims, {"seconds": seconds})


def shown(cases: list[list[Run]]) -> list[Run]:
    """Select the runs of the figure: one for each fault, from the first repetition."""
    rows = {}
    for case in cases:
        run = case[0]
        key = run.group.activation, run.group.optimizer
        if run.plant.fault in SHOWN.get(key, ()):
            # The first run with a fault represents it.
            rows.setdefault((key, run.plant.fault), run)
    keys = [(key, fault) for key, faults in SHOWN.items() for fault in faults]
    return [rows[key] for key in keys if key in rows]


def run(options: Options) -> None:
    """Plant faults in training runs, diagnose them, and time the cost of the records."""
    cases = measure(options, progress=_kit.progress("runs"))
    seconds = cost(options, progress=_kit.progress("timings"))
    rows = shown(cases)
    right = sum(row.right for row in rows)
    title = f"The records of a run show its fault: {right} of {len(rows)} diagnoses are right"
    drawing = figure.draw(rows, monitoring.EDGES, title)
    _kit.publish(report(cases, seconds), options, drawing)


if __name__ == "__main__":
    _kit.command(Options, run)
