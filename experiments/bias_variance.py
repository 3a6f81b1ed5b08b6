"""Does the diagnosis of bias and variance name the remedy that works?

Run `python -m experiments.bias_variance`, or `--help` for its options.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _kit as kit
from experiments._kit import Estimate, figures, option
from jaxgrad import layers, sweeps
from jaxgrad.plotting import style
from jaxgrad.training import bias_variance

DEV = 0.4
"""Share of digits in the dev set; large, because noise of the dev error blurs the curves."""
LARGER, MORE = "larger network", "more data"
Size = tuple[int, int]
"""Units of the hidden layer, and number of training examples."""


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the experiment on bias and variance."""

    seeds: int = option(12, "Number of splits and initializations.", minimum=2)
    output: Path = option(Path("results/bias_variance.png"), "Where to write the figure.")
    widths: tuple[int, ...] = option(
        (1, 2, 4, 8, 16, 32, 64, 128), "Hidden units.", minimum=1, count=2, ascending=True
    )
    examples: tuple[int, ...] = option(
        (32, 64, 128, 256, 512, 1024),
        "Numbers of training examples.",
        minimum=1,
        maximum=1078,
        count=3,
        ascending=True,
    )
    small: int = option(1, "Units of the small network, one of the widths but the last.")
    attainable: float = option(0.01, "Error that is attainable.", minimum=0, maximum=1)
    tolerance: float = option(0.02, "Gap that is not yet high.", minimum=0, maximum=1)
    steps: int = option(1000, "Number of training steps.", minimum=1)
    batch_size: int = option(32, "Examples in a step.", minimum=1)
    learning_rate: float = option(0.01, "Learning rate of Adam, falling to 0 as a cosine.", above=0)

    def check(self) -> None:
        """The small network must be one of the widths, and a batch must fit."""
        if self.small not in self.widths[:-1]:
            raise ValueError(f"small must be one of {self.widths[:-1]}, got {self.small}")
        if self.batch_size > self.examples[-1]:
            raise ValueError(
                f"batch_size must be at most {self.examples[-1]}, got {self.batch_size}"
            )

    def curves(self) -> list[list[Size]]:
        """Three curves: the units vary, the examples of a large network, those of a small one."""
        units = [(width, self.examples[-1]) for width in self.widths]
        return [units, *([(w, n) for n in self.examples] for w in (self.widths[-1], self.small))]

    def trials(self) -> list[tuple[Size, Size, Size]]:
        """A small network with many examples and a large one with few, each with two remedies.

        The remedies are the next larger network and the next larger training set.
        """
        w, e = self.widths, self.examples
        i = w.index(self.small)
        return [
            ((w[i], e[-2]), (w[i + 1], e[-2]), (w[i], e[-1])),
            ((w[-2], e[1]), (w[-1], e[1]), (w[-2], e[2])),
        ]

    def sizes(self) -> list[Size]:
        """All sizes: those of the curves, then those of the trials."""
        return list(dict.fromkeys(itertools.chain(*self.curves(), *self.trials())))


class Point(NamedTuple):
    """Errors of networks of one size, `[seeds]`, and the diagnosis of the mean errors."""

    width: int
    examples: int
    train: np.ndarray
    dev: np.ndarray
    diagnosis: bias_variance.Diagnosis

    @property
    def label(self) -> str:
        """The size of the network and of its training set."""
        return f"{self.width} unit{'s' * (self.width > 1)}, {self.examples} examples"


def measure(options: Options, progress: kit.Progress = None) -> dict[Size, Point]:
    """Train a network of every size, once for each seed, and diagnose each."""
    digits, sizes = kit.load("digits"), options.sizes()
    widest, most = options.widths[-1], options.examples[-1]
    schedule = optax.cosine_decay_schedule(options.learning_rate, options.steps)

    # The size is data, so that networks of all sizes are one program. They share the draws of a
    # seed, so that their errors are paired.
    def cell(_, point, sizes, x):
        width, count = sizes[point["size"]]
        key_split, key_init, key_fit = jax.random.split(jax.random.key(point["seed"]), 3)
        train, dev = kit.split(x, digits.labels, (1 - DEV, DEV), key=key_split)
        # A layer within a layer, since that sets its key.
        hidden = layers.sequential(layers.dense(widest, w_variance=2.0, bias=True))
        # The fan-in of the last layer is that of the units that are used.
        output = layers.dense(10, w_variance=widest / width.astype(jnp.float32), bias=True)
        layer = layers.sequential(hidden, layers.activation("relu"), output)
        (first, *rest), _ = layer.draw(train.x.shape[1:], key=key_init, dtype=jnp.float32)
        # Units without weights stay so: their output and all their gradients are exactly 0.
        used = jnp.arange(widest) < width
        first = jax.tree.map(lambda a: a * jnp.broadcast_to(used, a.shape), first)
        fitted = kit.classifier.train(
            layer,
            (first, *rest),
            optax.adam(schedule),
            # A smaller training set is repeated up to the size of the largest.
            jax.tree.map(lambda a: a[jnp.arange(most) % count], train),
            key=key_fit,
            steps=options.steps,
            batch_size=options.batch_size,
        )

        def wrong(part):
            outputs = kit.classifier.logits(layer, fitted.params, fitted.state, part.x)
            return jnp.argmax(outputs, axis=1) != part.labels

        # The training error is that of the examples the network was trained on.
        seen = jnp.arange(len(train.labels)) < count
        return {"train": jnp.sum(wrong(train) * seen) / count, "dev": jnp.mean(wrong(dev))}

    dataset = sweeps.run(
        cell,
        {"seed": options.seed_values, "size": range(len(sizes))},
        {"train": sweeps.Variable(), "dev": sweeps.Variable()},
        key=jax.random.key(0),
        args=(jnp.array(sizes, jnp.int32), jnp.asarray(digits.x, jnp.float32)),
        vectorized=False,  # faster on CPUs: one network at a time fits in the cache
        **kit.sweep_progress(progress),
    )
    points = {}
    for i, (width, count) in enumerate(sizes):
        train, dev = (dataset[name].values[:, i].astype(np.float64) for name in ("train", "dev"))
        # A practitioner has one pair of errors; here it is the mean, whose noise is small.
        diagnosis = bias_variance.diagnose(
            train.mean(),
            dev.mean(),
            options.attainable,
            tolerance=options.tolerance,
            train_examples=count,
            dev_examples=round(DEV * len(digits.labels)),
        )
        points[width, count] = Point(width, count, train, dev, diagnosis)
    return points


class Step(NamedTuple):
    """From one point to another one with a larger network or more data."""

    before: Point
    after: Point
    remedy: str
    advised: bool  # whether the diagnosis before the step names this remedy
    kind: str  # the error that it should lower; for a larger network that on the training set
    change: dict[str, Estimate]  # of the errors train and dev, seed by seed

    @property
    def name(self) -> str:
        """The remedy, with a star where it is advised."""
        return self.remedy + " *" * self.advised


def step(before: Point, after: Point) -> Step:
    """Compare two points."""
    pairs = {"train": (after.train, before.train), "dev": (after.dev, before.dev)}
    change = {kind: Estimate.paired(*pair) for kind, pair in pairs.items()}
    if after.width > before.width:
        return Step(before, after, LARGER, before.diagnosis.bias_high, "train", change)
    return Step(before, after, MORE, before.diagnosis.variance_high, "dev", change)


def trials(points: dict[Size, Point], options: Options) -> list[list[Step]]:
    """Both remedies from the same starting points."""
    return [
        [step(points[start], points[size]) for size in remedies]
        for start, *remedies in options.trials()
    ]


def claims(steps: list[Step], trials: list[list[Step]]) -> list[kit.Claim]:
    """Each advised step lowers its error, and the advised remedy is better than the other one."""
    # A diagnosis says nothing about a remedy that it does not advise.
    changes = {
        f"{s.before.label}: {s.remedy} lowers the {s.kind} error": s.change[s.kind]
        for s in steps
        if s.advised
    }
    for pair in trials:
        best, other = sorted(pair, key=lambda s: not s.advised)
        # Nothing follows from a diagnosis that advises both remedies or none.
        if best.advised and not other.advised:
            text = f"{best.before.label}: {best.remedy} lowers the dev error more than "
            changes[text + other.remedy] = Estimate.paired(best.after.dev, other.after.dev)
    return [kit.Claim(text, change, "less", form="+.1%") for text, change in changes.items()]


def report(points: dict[Size, Point], options: Options) -> kit.Report:
    """All points with their diagnosis, the average steps, and the claims."""
    rows, steps = [], []
    for sizes in options.curves():
        curve = [points[size] for size in sizes]
        taken = [step(*pair) for pair in itertools.pairwise(curve)]
        cells = [(s.name, s.change[s.kind]) for s in taken]
        for p, cell in zip(curve, [*cells, ("", "")], strict=True):
            words = p.diagnosis.label.replace(" and high ", " and ")
            errors = (Estimate.of(p.train), Estimate.of(p.dev))
            rows.append((p.width, p.examples, *errors, words, *cell))
        steps += taken
    errors = {"train error": ".1%", "dev error": ".1%"}
    headings = {"units": "d", "examples": "d", **errors, "diagnosis": "", "next step": ""}
    title = f"Digits, {len(points) * options.seeds} networks, mean over {options.seeds} seeds ± "
    title += "standard error. The step to the next row (*: advised) changes the train error if it "
    title += "is a larger network, and the dev error if it is more data."
    sections = [kit.table({**headings, "change": "+.1%"}, rows, title)]
    headings = {"step": "", "number": "d", **dict.fromkeys(errors, "+.1%")}
    rows = []
    for name in sorted({s.name for s in steps}):
        group = [s.change for s in steps if s.name == name]
        means = (np.mean([change[kind].mean for change in group]) for kind in ("train", "dev"))
        rows.append((name, len(group), *means))
    title = "Average change of both errors by the steps above."
    sections.append(kit.table(headings, rows, title))
    numbers = {p.label: {"train": p.train, "dev": p.dev} for p in points.values()}
    return kit.Report(sections, claims(steps, trials(points, options)), numbers)


def figure(points: dict[Size, Point], options: Options) -> Any:
    """The change of the dev error by either remedy, from both starting points."""
    rows, wins = {}, 0
    for pair in trials(points, options):
        best = min(pair, key=lambda s: s.change["dev"].mean)
        wins += best.advised
        advised = " and ".join(s.remedy for s in pair if s.advised) or "no remedy"
        name = f"{best.before.label}\n{best.before.diagnosis.label}:\n{advised} advised"
        rows[name] = {s.remedy: s.change["dev"] for s in pair}
    title = f"The diagnosis advises the better remedy in {wins} of {len(rows)} trials"
    result, ((ax,),) = figures.panels(title, height=3.6)
    figures.dots(ax, rows)
    ax.axvline(0.0, color=style.palette().muted, linewidth=1)
    ax.set_xlabel("change of the dev error")
    figures.percent(ax.xaxis)
    ax.legend()
    return result


def run(options: Options) -> None:
    """Diagnose bias and variance of digit classifiers, and try the remedies."""
    points = measure(options, kit.progress("networks"))
    kit.publish(report(points, options), options, lambda: figure(points, options))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
