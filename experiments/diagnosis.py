"""A training run misbehaves: is what ails it told from what was recorded, and what does it cost?

Run `python -m experiments.diagnosis`, or `--help` for its options.
"""

from __future__ import annotations

import os
import textwrap
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

from experiments import frontend, planted_faults
from experiments.planted_faults import CASES, Group, Plant
from jaxgrad import networks, plotting, training
from jaxgrad.training import monitoring
from jaxgrad.training.diagnosis import Diagnosis, diagnose

APART = 1000
"""Between the seeds of one repetition and the next, so that no two runs share one."""
SHOWN = {
    ("tanh", "momentum"): (None, "rate too high", "rate too low", "overfitting"),
    ("sigmoid", "sgd"): ("vanishing",),
    ("relu", "sgd"): ("exploding", "dead units"),
}
"""Rows of the figure: planted faults by activation and optimizer."""
QUOTED = (None, "rate too high", "vanishing", "dead units")
"""Rows of the figure whose diagnosis is printed in words."""
TIMED = Group("relu", 8, "sgd", "digits", rate=0.01, w_variance=2.0, width=64, steps=200, batch=64)
WATCHED = ("nothing", "norms of every step", "norms, and units at evaluations")


@dataclass(frozen=True)
class Config:
    """Options of the judgement of diagnoses, on data of scikit-learn."""

    seeds: int = 1
    """How often all runs are repeated with other data, parameters and orders of examples."""
    first_seed: int = 0
    """The first repetition; 0 is that of the tests."""
    repeats: int = 15
    """How many timings of each watched and unwatched run, at least 3."""
    output: Path = Path("results/diagnosis.png")
    """Where to write the figure."""


class Watched(NamedTuple):
    """One run and what was said of it.

    Attributes:
      group, plant: as of `CASES`; the seed of `plant` is that of the first repetition.
      fit: `jaxgrad.training.Fit` with `layer_norms` as the trace and, in the record, `units` and
        `train_error`.
      names: of the layers.
      found: the diagnosis.
    """

    group: Group
    plant: Plant
    fit: Any
    names: tuple[str, ...]
    found: Diagnosis

    @property
    def first(self) -> str | None:
        """The first fault found, `None` for none."""
        return None if self.found.healthy else str(self.found.findings[0].fault)

    @property
    def right(self) -> bool:
        """Whether it is the planted one, in the planted layer if one is."""
        frozen = self.plant.frozen
        return self.first == self.plant.fault and (
            frozen is None or self.found.findings[0].layer == self.names[frozen]
        )

    @property
    def epochs(self) -> float:
        """How many passes through the data a step is."""
        return self.group.batch / planted_faults.EXAMPLES[self.group.data]


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    for name, least, most in (("seeds", 1, 1000), ("first_seed", 0, 10**6), ("repeats", 3, 1000)):
        value = getattr(config, name)
        if isinstance(value, bool) or not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, got {value}; change it")
    frontend.writable("output", config.output)


def measure(
    config: Config,
    cases: dict[Group, tuple[Plant, ...]] = CASES,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Watched]]:
    """Train and diagnose every run: the repetitions of each case, in the order of `cases`."""
    repetitions = range(config.first_seed, config.first_seed + config.seeds)

    def of_group(item):
        group, plants = item
        found = [[] for _ in plants]
        for repetition in repetitions:
            seeded = [plant._replace(seed=plant.seed + APART * repetition) for plant in plants]
            watched = planted_faults.runs(group, seeded)
            for plant, kept, (given, named) in zip(plants, found, watched, strict=True):
                said = diagnose(*given, **named)
                kept.append(Watched(group, plant, given[0], named["names"], said))
        return found

    found, total = [], config.seeds * sum(map(len, cases.values()))
    # Compilation takes most of the time, and one of them keeps one core busy.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for runs in threads.map(of_group, cases.items()):
            found += runs
            if progress is not None:
                progress(sum(map(len, found)), total)
    return found


def cost(
    config: Config,
    group: Group = TIMED,
    optimizers: Sequence[str] = ("sgd", "adam"),
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Seconds of a run by optimizer, `[repeats, WATCHED]`, one after the other in every repeat."""
    data = planted_faults.pieces(group, Plant(None))
    classes = int(data["dev"]["label"].max()) + 1
    features = data["dev"]["x"].shape[1]
    params = networks.init(
        jax.random.key(0), features, group.width, group.depth, out_features=classes
    )
    params = networks.scale(params, group.w_variance)

    def trained(name, watched):
        def loss(params, state, batch, key):
            return planted_faults.cross_entropy(params, batch, group.activation), state

        def evaluate(params, state):
            logits, z = planted_faults.forward(params, data["dev"]["x"], group.activation)
            record = monitoring.units(z, group.activation) if "units" in watched else ()
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
                monitor=monitor if "norms" in watched else None,
            )
        )

    given = (params, jax.random.key(1), group.rate)
    columns = [(name, column) for name in optimizers for column in range(len(WATCHED))]
    lowered = [trained(name, WATCHED[column]).lower(*given) for name, column in columns]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        compiled = threads.map(lambda program: program.compile(), lowered)
        programs = dict(zip(columns, compiled, strict=True))
    seconds = {name: np.zeros((config.repeats, len(WATCHED))) for name in optimizers}
    for program in programs.values():
        jax.block_until_ready(program(*given))
    for repeat in range(config.repeats):
        for name, column in columns:
            # Each goes first as often as the others, as a machine's speed drifts.
            column = (column + repeat) % len(WATCHED)
            start = time.perf_counter()
            jax.block_until_ready(programs[name, column](*given))
            seconds[name][repeat, column] = time.perf_counter() - start
        if progress is not None:
            progress(repeat + 1, config.repeats)
    return seconds


def setting(group: Group) -> str:
    """A group in words."""
    net = f"{group.activation}, {group.depth} layers" if group.depth else "softmax from zeros"
    return f"{net}, {group.optimizer}, {group.data}"


def departure(plant: Plant) -> str:
    """What was planted, in words."""
    words = {
        "rate": f"rate x {plant.rate:g}",
        "w_variance": f"weight variance x {plant.w_variance:g}",
        "bias": f"biases {plant.bias:g}",
        "examples": f"{plant.examples} examples",
        "noise": f"{plant.noise:.0%} labels redrawn",
        "frozen": f"layer {(plant.frozen or 0) + 1} held",
        "raw": "raw inputs",
    }
    usual = Plant(None)
    planted = [text for name, text in words.items() if getattr(plant, name) != getattr(usual, name)]
    if plant.since:
        planted[-1] += f" from step {plant.since}"
    return ", ".join(planted) or ("the setting" if plant.fault else "nothing")


def _counted(values: Sequence[str], shown: int | None = None) -> str:
    """The most common, with counts where there are several."""
    counts = Counter(values).most_common()
    if len(counts) == 1:
        return values[0]
    return ", ".join(f"{value} ({n} of {len(values)})" for value, n in counts[:shown])


def _share(right: np.ndarray) -> str:
    """Count and share of `[cases, repetitions]`, with the standard error over repetitions."""
    text = f"{right.sum()} of {right.size}"
    if right.shape[1] > 1:
        error = right.mean(axis=0).std(ddof=1) / np.sqrt(right.shape[1])
        text += f" ({right.mean():.1%} ± {error:.1%})"
    return text


def score(found: list[list[Watched]]) -> str:
    """How many faults were named, and healthy runs left alone."""
    right = np.asarray([[run.right for run in case] for case in found])
    planted = np.asarray([case[0].plant.fault is not None for case in found])
    return (
        f"{_share(right[planted])} planted faults named, "
        f"{_share(right[~planted])} healthy runs called healthy"
    )


def report(found: list[list[Watched]], seconds: dict[str, np.ndarray]) -> str:
    """Every run with its diagnosis, the score, some diagnoses in words, and the cost."""
    rows, last = [], None
    for case in found:
        group, plant = case[0].group, case[0].plant
        findings = [run.found.findings[0] for run in case if run.first]
        steps = sorted({finding.step for finding in findings})
        right = np.asarray([run.right for run in case])
        rows.append(
            (
                setting(group) if group != last else "",
                departure(plant),
                plant.fault or "healthy",
                _counted([run.first or "healthy" for run in case]),
                _counted([finding.layer or "all" for finding in findings], 1),
                f"{steps[0]}" + (f" to {steps[-1]}" if len(steps) > 1 else "") if steps else "",
                ("yes" if right[0] else "NO") if len(case) == 1 else f"{right.mean():.0%}",
            )
        )
        last = group
    headings = ("setting", "planted", "which is", "found first", "layer", "from step on", "right")
    text = [frontend.table(headings, rows), f"\n{score(found)}.", "\nIn words:"]
    for run in shown(found):
        if run.plant.fault in QUOTED:
            said = f"- {run.plant.fault or 'healthy'} ({departure(run.plant)}): {run.found.words}"
            text += textwrap.wrap(said, 99, subsequent_indent="  ")
    examples = planted_faults.DEV[TIMED.data]
    text += [
        "\nWhat watching costs, time over that of a run unwatched, median (quartiles); width "
        f"{TIMED.width}, depth {TIMED.depth},",
        f"batch {TIMED.batch}, units of {examples} examples every {planted_faults.EVERY} steps:",
    ]
    for name, taken in seconds.items():
        for column, watched in enumerate(WATCHED[1:], 1):
            low, half, high = np.quantile(taken[:, column] / taken[:, 0], [0.25, 0.5, 0.75])
            text.append(f"- {name}, {watched}: {half:.2f} ({low:.2f} to {high:.2f})")
        step = np.median(taken[:, 0]) / TIMED.steps
        text.append(f"- {name}, {WATCHED[0]}: {1e6 * step:.0f} microseconds a step")
    return "\n".join(text)


def shown(found: list[list[Watched]]) -> list[Watched]:
    """The runs of the figure, of the first repetition, one for each fault."""
    rows = {}
    for case in found:
        run = case[0]
        key = run.group.activation, run.group.optimizer
        if run.plant.fault in SHOWN.get(key, ()):
            rows.setdefault((key, run.plant.fault), run)
    keys = [(key, fault) for key, faults in SHOWN.items() for fault in faults]
    return [rows[key] for key in keys if key in rows]


def run(config: Config) -> None:
    """Plant faults in training runs, diagnose them, and time what watching costs."""
    checked(config)
    start = time.perf_counter()
    found = measure(config, progress=frontend.Bar("runs"))
    trained = time.perf_counter() - start
    seconds = cost(config, progress=frontend.Bar("timings"))
    print(report(found, seconds))
    rows = shown(found)
    right = sum(row.right for row in rows)
    title = f"What ails a run shows in its records: {right} of {len(rows)} diagnoses are right"
    plotting.diagnosis(rows, monitoring.EDGES, title).savefig(config.output, dpi=110)
    print(f"\n{sum(map(len, found))} networks watched in {trained:.0f} s.\nFigure: {config.output}")


if __name__ == "__main__":
    frontend.main(Config, run)
