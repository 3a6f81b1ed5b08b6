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
from experiments._kit import Estimate, figures
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

    seeds: int = kit.option(12, "Number of splits and initializations.", minimum=2)
    output: Path = kit.option(Path("results/bias_variance.png"), "Where to write the figure.")
    widths: tuple[int, ...] = kit.option(
        (1, 2, 4, 8, 16, 32, 64, 128), "Hidden units.", minimum=1, count=2, ascending=True
    )
    examples: tuple[int, ...] = kit.option(
        (32, 64, 128, 256, 512, 1024),
        "Numbers of training examples.",
        minimum=1,
        maximum=1078,
        count=3,
        ascending=True,
    )
    small: int = kit.option(1, "Units of the small network, one of the widths but the last.")
    attainable: float = kit.option(0.01, "Error that is attainable.", minimum=0, maximum=1)
    tolerance: float = kit.option(0.02, "Gap that is not yet high.", minimum=0, maximum=1)
    steps: int = kit.option(1000, "Number of training steps.", minimum=1)
    batch_size: int = kit.option(32, "Examples in a step.", minimum=1)
    learning_rate: float = kit.option(
        0.01, "Learning rate of Adam, falling to 0 as a cosine.", above=0
    )

    def check(self) -> None:
        """The small network must be one of the widths, and a batch must fit."""
        if self.small not in self.widths[:-1]:
            raise ValueError(f"small must be one of {self.widths[:-1]}, got {self.small}")
        if self.batch_size > self.examples[-1]:
            raise ValueError(
                f"batch_size must be at most {self.examples[-1]}, got {self.batch_size}"
            )

    def curves(self) -> dict[str, list[Size]]:
        """What is varied, by name, and the sizes along each curve."""
        return {
            "units": [(width, self.examples[-1]) for width in self.widths],
            "examples, large network": [(self.widths[-1], count) for count in self.examples],
            "examples, small network": [(self.small, count) for count in self.examples],
        }

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
        return list(dict.fromkeys(itertools.chain(*self.curves().values(), *self.trials())))


class Point(NamedTuple):
    """Errors of networks of one size, `[seeds]`, and the diagnosis of the mean errors."""

    width: int
    examples: int
    train: np.ndarray  # [seeds]
    dev: np.ndarray  # [seeds]
    diagnosis: bias_variance.Diagnosis

    @property
    def units(self) -> str:
        """The size of the network in words."""
        return f"{self.width} unit{'s' * (self.width > 1)}"

    @property
    def label(self) -> str:
        """The size of the network and of its training set."""
        return f"{self.units}, {self.examples} examples"


@layers.layer
class UnitMask(layers.Layer):
    """Multiplies each unit by a number, 0 for units that a smaller network would not have."""

    mask: Any

    def draw(self, shape, *, key, dtype):
        return {}, shape

    def apply(self, params, state, h, *, key=None):
        return h * self.mask[None], state


def network(width: jax.Array, widest: int) -> layers.Layer:
    """A hidden layer of ReLU with `width` units, which may be traced, and the layer of logits."""
    # Networks of all widths have arrays of the same shapes.
    mask = UnitMask((jnp.arange(widest) < width).astype(jnp.float32))
    dense = layers.dense(widest, w_variance=2.0, bias=True)
    hidden = layers.sequential(dense, layers.activation("relu"))
    # The fan-in of the last layer is that of the units that are not masked.
    output = layers.dense(10, w_variance=widest / width.astype(jnp.float32), bias=True)
    return layers.sequential(hidden, mask, output)


def errors(seed: Any, size: Any, data: kit.Examples, options: Options) -> dict[str, Any]:
    """Train one network; its size is data, so that networks of all sizes are one program."""
    width, count = size
    # Networks of all sizes share the draws of a seed, so that their errors are paired.
    key_split, key_init, key_fit = jax.random.split(jax.random.key(seed), 3)
    train, dev = kit.split(*data, (1 - DEV, DEV), key=key_split)
    layer, most = network(width, options.widths[-1]), options.examples[-1]
    params, _ = layer.draw(train.x.shape[1:], key=key_init, dtype=jnp.float32)
    fitted = kit.classifier.train(
        layer,
        params,
        optax.adam(optax.cosine_decay_schedule(options.learning_rate, options.steps)),
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
    used = jnp.arange(len(train.labels)) < count
    return {"train": jnp.sum(wrong(train) * used) / count, "dev": jnp.mean(wrong(dev))}


def measure(options: Options, progress: kit.Progress = None) -> Any:
    """Train a network of every size, once for each seed, and diagnose each: `{size: Point}`."""
    digits, sizes = kit.load("digits"), options.sizes()

    def cell(key, point, sizes, x):
        data = kit.Examples(x, digits.labels)
        return errors(point["seed"], sizes[point["size"]], data, options)

    dataset = sweeps.run(
        cell,
        {"seed": options.seed_values, "size": range(len(sizes))},
        {"train": sweeps.Variable(), "dev": sweeps.Variable()},
        key=jax.random.key(0),
        args=(jnp.array(sizes, jnp.int32), jnp.asarray(digits.x, jnp.float32)),
        vectorized=False,  # faster on CPUs: one network at a time fits in the cache
        progress=progress,
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
    remedy: str  # which of both
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


def claims(steps: list[Step], trials: list[tuple[Step, ...]]) -> list[kit.Claim]:
    """Each advised step lowers its error, and the advised remedy is better than the other one."""
    results = []
    for s in steps:
        if s.advised:  # a diagnosis says nothing about a remedy that it does not advise
            text = f"{s.before.label}: {s.remedy} lowers the {s.kind} error"
            results.append(kit.Claim(text, s.change[s.kind], "less", form="+.1%"))
    for pair in trials:
        # Nothing follows from a diagnosis that advises both remedies or none.
        if pair[0].advised != pair[1].advised:
            best, other = sorted(pair, key=lambda s: not s.advised)
            text = f"{best.before.label}: {best.remedy} lowers the dev error more than"
            change = Estimate.paired(best.after.dev, other.after.dev)
            results.append(kit.Claim(f"{text} {other.remedy}", change, "less", form="+.1%"))
    return results


def report(points: dict[Size, Point], options: Options) -> kit.Report:
    """All points with their diagnosis, the trials of both remedies, and the claims."""
    sections, steps = [], []
    for name, sizes in options.curves().items():
        curve = [points[size] for size in sizes]
        taken = [step(*pair) for pair in itertools.pairwise(curve)]
        cells = [(s.name, f"{s.kind} {s.change[s.kind]:+.1%}") for s in taken]
        rows = [
            (str(p.width), str(p.examples), f"{Estimate.of(p.train):.1%}")
            + (f"{Estimate.of(p.dev):.1%}", p.diagnosis.label, *cell)
            for p, cell in zip(curve, [*cells, ("", "")], strict=True)
        ]
        headings = ("units", "examples", "train error", "dev error", "diagnosis", "next step")
        title = f"Digits, varied: {name}; mean over {options.seeds} seeds ± standard error, and "
        title += "what the step to the next row changes (*: advised by the diagnosis)."
        sections.append(kit.table((*headings, "change"), rows, title))
        steps += taken
    # The claims about remedies compare both from the same starting point.
    trials = [
        tuple(step(points[start], points[size]) for size in sizes)
        for start, *sizes in options.trials()
    ]
    rows = [
        (s.before.label, s.before.diagnosis.label, s.name)
        + tuple(f"{change:+.1%}" for change in s.change.values())
        for s in itertools.chain(*trials)
    ]
    headings = ("start", "diagnosis", "remedy", "train error", "dev error")
    title = "Both remedies tried: the next larger network, and the next larger training set."
    sections += [averages(steps), kit.table(headings, rows, title)]
    sections.append(f"{len(points) * options.seeds} networks.")
    numbers = {p.label: {"train": p.train, "dev": p.dev} for p in points.values()}
    return kit.Report(sections, claims(steps, trials), numbers)


def averages(steps: list[Step]) -> str:
    """Average changes of both errors by each remedy, where it is advised and where not."""
    groups: dict[str, list[Step]] = {}
    for s in sorted(steps, key=lambda s: s.name):
        groups.setdefault(s.name, []).append(s)
    rows = [
        (name, str(len(group)))
        + tuple(f"{np.mean([s.change[k].mean for s in group]):+.1%}" for k in ("train", "dev"))
        for name, group in groups.items()
    ]
    headings = ("step", "number", "train error", "dev error")
    return kit.table(headings, rows, "Average change of both errors by the steps above.")


BANDS = {
    "high bias": (style.SHADES[2], "high\nbias"),
    "high bias and high variance": ("0.85", "both\nhigh"),
    "high variance": (style.SHADES[4], "high\nvariance"),
    "neither": ("white", "neither"),
}
"""Colour and words of each diagnosis in the figure."""


def figure(points: dict[Size, Point], options: Options) -> Any:
    """Training and dev errors against the size of the network and of the training set."""
    result, axes = figures.panels(1, 3, (13.8, 5.6), sharey=True)
    words = []
    for ax, (name, sizes) in zip(axes[0], options.curves().items(), strict=True):
        curve = [points[size] for size in sizes]
        draw_curve(ax, curve, name == "units", options.attainable)
        # A factor: the figure's message is which remedy is worth how much.
        factor = f"by {curve[0].dev.mean() / curve[-1].dev.mean():.2g}"
        words.append(f"more data with {curve[0].units} {factor}")
        if name == "units":
            words = [f"A larger network divides the dev error {factor}"]
    ax = axes[0, 0]
    ax.set_ylabel("error")
    # Training errors reach 0, which a logarithmic axis cannot show.
    ax.set_yscale("symlog", linthresh=0.01, linscale=0.6)
    ax.set_ylim(-0.002, 1.0)
    shares = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    figures.ticks(ax.yaxis, shares, [f"{100 * share:g} %" for share in shares])
    result.suptitle(", ".join(words), fontsize=14)
    figures.legend_below(result, ax, 3)
    return result


def draw_curve(ax: Any, curve: list[Point], of_units: bool, attainable: float) -> None:
    """One panel: a band for each diagnosis, then both errors."""
    values = np.array([p.width if of_units else p.examples for p in curve], float)
    # Bands end half-way between points, on a logarithmic axis.
    edges = np.sqrt(values[1:] * values[:-1])
    edges = np.r_[values[0] ** 2 / edges[0], edges, values[-1] ** 2 / edges[-1]]
    for label, group in itertools.groupby(range(len(curve)), lambda i: curve[i].diagnosis.label):
        band = list(group)  # neighbouring points with one diagnosis
        left, right = edges[band[0]], edges[band[-1] + 1]
        color, text = BANDS[label]
        ax.axvspan(left, right, color=color, alpha=0.55, linewidth=0)
        place = {"ha": "center", "va": "center", "path_effects": style.halo(3)}
        ax.text(np.sqrt(left * right), 0.004, text, **place)
    lines = (("dev", style.SHADES[-1], "s", "solid"), ("train", style.SHADES[0], "o", "dashed"))
    for kind, color, marker, line in lines:
        estimate = Estimate.of([getattr(point, kind) for point in curve], axis=1)
        look = {"color": color, "marker": marker, "linestyle": line}
        look["label"] = f"{kind} error ± two standard errors"
        figures.error_bars(ax, values, estimate, **look)
    ax.axhline(attainable, color="black", linestyle="dotted", label="attainable error")
    ax.set_xscale("log")
    figures.ticks(ax.xaxis, values)
    ax.set_xlim(edges[0], edges[-1])
    ax.set_xlabel("units of the hidden layer" if of_units else "training examples")
    fixed = f"{curve[0].examples} training examples" if of_units else curve[0].units
    start, end = (f"{100 * curve[i].dev.mean():.2g} %" for i in (0, -1))
    ax.set_title(f"{fixed}: dev error {start} to {end}", fontsize=11)


def run(options: Options) -> None:
    """Diagnose bias and variance of digit classifiers, and try the remedies."""
    points = measure(options, kit.progress("networks"))
    kit.publish(report(points, options), options, figure(points, options))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
