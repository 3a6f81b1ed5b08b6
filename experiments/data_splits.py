"""What does the way of splitting decide: dev set size, class shares, dev and test of one kind?

Run `python -m experiments.data_splits`, or `--help` for its options.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures, option
from experiments._kit.evidence import interval
from jaxgrad.plotting import style
from jaxgrad.training import normalization, splits

AGREEMENT = 0.2
"""Standard deviations are called equal if they differ by less than this share."""
RANDOM, SELF = "random split", "dev standardized by its own statistics"
ORDER, CLASSES = "neighbouring blocks of the file", "other class shares"
SHIFTED, UNPAIRED = "one feature of test shifted", "each feature of test shuffled by itself"
WAYS = (RANDOM, SELF, ORDER, CLASSES, SHIFTED, UNPAIRED)
"""Ways of splitting, of which only the first gives dev and test the same distribution."""


@dataclass(frozen=True)
class Options(kit.FigureOptions):
    """Options of the experiment on splits."""

    splits: int = option(500, "Random splits of digits, and of wine.", minimum=10)
    train_examples: int = option(400, "Digits that are trained on.", minimum=65, maximum=1796)
    dev_sizes: tuple[int, ...] = option(
        (12, 25, 50, 100, 200, 400), "Sizes of the dev set.", minimum=1, ascending=True
    )
    penalty: float = option(30.0, "Ridge penalty of the classifier.", above=0)
    trials: int = option(200, "Pairs of dev and test set for each way to split.", minimum=2)
    permutations: int = option(199, "Permutations in each comparison.", minimum=1)
    level: float = option(
        0.05, "Share of equal pairs that may be called different.", above=0, below=1
    )
    shift: float = option(0.75, "Shift of one feature, in standard deviations.")
    first_seed: int = option(0, "Seed of all draws.", minimum=0)
    output: Path = option(Path("results/data_splits.png"), "Where to write the figure.")

    def check(self) -> None:
        """Dev sets must fit, and p-values must be able to reach half of the level."""
        most = 1797 - self.train_examples
        if self.dev_sizes[-1] > most:
            raise ValueError(f"dev_sizes must be at most {most}, got {self.dev_sizes[-1]}")
        if self.permutations + 1 < 2 / self.level:
            raise ValueError(
                f"permutations must be at least {2 / self.level - 1:.0f} for level "
                f"{self.level:g}, got {self.permutations}"
            )


def deviation(values: np.ndarray) -> Estimate:
    """Standard deviation over the first axis, with an error that is right for any distribution."""
    measured = values.std(axis=0, ddof=1)
    variance = Estimate.of(np.square(values - values.mean(axis=0)))
    # sd = sqrt(var), so its error is that of the variance divided by 2 sd.
    error = variance.standard_error / np.where(measured > 0, 2 * measured, 1.0)
    return Estimate(measured, error, len(values) - 1)


class Spread(NamedTuple):
    """Noise of the dev error over random splits, by size of the dev set."""

    sizes: np.ndarray  # of the dev set
    error: float  # mean over all splits
    measured: Estimate  # standard deviations over splits, [sizes]
    binomial: np.ndarray  # those of shares of independent examples, [sizes]


def spread(options: Options) -> Spread:
    """Fit a ridge classifier of digits to random training sets, and measure its dev errors."""
    digits, sizes = kit.load("digits"), np.array(options.dev_sizes)
    count, share = len(digits.labels), options.train_examples / len(digits.labels)
    x = jnp.asarray(np.c_[digits.x / 16, np.ones(count)], jnp.float32)
    y = jnp.asarray(digits.labels)

    def one(key):
        train, rest = splits.split(count, (share, 1 - share), key=key)
        inputs, targets = x[train], 2 * jax.nn.one_hot(y[train], 10) - 1
        # (X'X + penalty) W = X'Y; pixels are divided by 16, and the penalty with them.
        gram = inputs.T @ inputs + options.penalty / 16 * jnp.eye(x.shape[1])
        weights = jnp.linalg.solve(gram, inputs.T @ targets)
        wrong = (jnp.argmax(x @ weights, axis=1) != y)[rest]
        # The rest is in random order, so its first examples are a random dev set.
        return jnp.cumsum(wrong)[sizes - 1] / sizes, jnp.mean(wrong)

    keys = jax.random.split(jax.random.key(options.first_seed), options.splits)
    errors, whole = kit.mapped(one, keys)
    p = float(whole.mean())
    return Spread(sizes, p, deviation(errors), np.sqrt(p * (1 - p) / sizes))


def shares(options: Options) -> dict[str, Any]:
    """Draw dev sets of wine with and without regard to class: shares of the rarest class."""
    wine = kit.load("wine")
    count, rarest = len(wine.labels), int(np.argmin(np.bincount(wine.labels)))

    def draw(key):
        parts = splits.fractions(count)
        return {
            "plain": splits.split(count, parts, key=key)[1],
            "stratified": splits.split(wine.labels, parts, key=key)[1],
        }

    keys = jax.random.split(jax.random.key(options.first_seed + 1), options.splits)
    devs = kit.mapped(draw, keys)
    p, size = float((wine.labels == rarest).mean()), devs["plain"].shape[1]
    # The variance of the hypergeometric distribution, of a plain draw.
    expected = float(np.sqrt(p * (1 - p) / size * (count - size) / (count - 1)))
    measured = {way: (wine.labels[dev] == rarest).mean(axis=1) for way, dev in devs.items()}
    name = wine.classes[rarest].replace("_", " ")
    return {"name": name, "size": size, "whole": p, "expected": expected, **measured}


def pairs(options: Options) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Each way, its dev and test sets `[trials, 2, examples, features]`, and shifted features."""
    cancer, trials = kit.load("breast_cancer"), options.trials
    x, labels, count = cancer.x, cancer.labels, len(cancer.labels)

    def one(key):
        train, dev, test = splits.split(labels, splits.fractions(count), key=key)
        size = min(len(dev), len(test))
        return jnp.stack([dev[:size], test[:size]]), normalization.fit(jnp.float32(x)[train])

    keys = jax.random.split(jax.random.key(options.first_seed + 2), trials)
    random, training = kit.mapped(one, keys)
    mean, std = (statistic[:, None, None] for statistic in training)
    size = random.shape[2]
    for way in WAYS:
        generator = np.random.default_rng(options.first_seed)
        shifted = generator.integers(x.shape[1], size=trials)
        rows = random
        if way == ORDER:
            starts = generator.integers(count, size=(trials, 1, 1))
            rows = (starts + np.arange(2 * size).reshape(2, size)) % count
        elif way == CLASSES:
            draws = [draw_classes(generator, labels, size, p) for p in (0.25, 0.5) * trials]
            rows = np.reshape(draws, random.shape)
        # Both are standardized by the training set, as they should be.
        values = (x[rows] - mean) / std
        dev, test = values[:, 0], values[:, 1]
        if way == SELF:
            dev[:] = (dev - dev.mean(axis=1, keepdims=True)) / dev.std(axis=1, keepdims=True)
        elif way == SHIFTED:
            test[np.arange(trials), :, shifted] += options.shift
        elif way == UNPAIRED:
            test[:] = generator.permuted(test, axis=1)
        yield way, values.astype(np.float32), shifted


def draw_classes(generator: Any, labels: np.ndarray, size: int, share: float) -> np.ndarray:
    """Rows of which a share has label 0."""
    zeros = round(share * size)
    counts = ((0, zeros), (1, size - zeros))
    draws = [generator.choice(np.flatnonzero(labels == c), n, replace=False) for c, n in counts]
    return np.concatenate(draws)


class Detection(NamedTuple):
    """How often pairs of dev and test sets, split in one way, are called different."""

    name: str  # the way of splitting
    rate: Estimate  # share of pairs that are called different
    features: float  # share in which single features differ
    joint: float  # share in which all features jointly differ
    largest: tuple[str, float]  # the feature that most often differs most, and its share of pairs


def detect(options: Options, progress: kit.Progress = None) -> list[Detection]:
    """Compare dev and test sets that were split in different ways."""
    names, results = kit.load("breast_cancer").features, []

    def one(trial):
        key, (dev, test) = trial
        return splits.compare(dev, test, key=key, permutations=options.permutations)

    compare = jax.jit(lambda *trials: jax.lax.map(one, trials))
    for i, (way, sets, shifted) in enumerate(pairs(options)):
        key = jax.random.fold_in(jax.random.key(options.first_seed + 3), i)
        comparison = jax.device_get(compare(jax.random.split(key, options.trials), sets))
        same = np.asarray(splits.same(comparison, level=options.level))
        rate = Estimate.share(np.sum(~same), options.trials)
        # Two tests share the level: the smallest p-value of the features, and the joint one.
        features = float(np.mean(comparison.feature_p_values.min(axis=1) <= options.level / 2))
        joint = float(np.mean(comparison.p_value <= options.level / 2))
        largest = comparison.ks.argmax(axis=1)
        often = np.bincount(largest) / options.trials
        label = (names[often.argmax()], float(often.max()))
        if way == SHIFTED:
            label = ("the shifted one", float((largest == shifted).mean()))
        results.append(Detection(way, rate, features, joint, label))
        if progress is not None:
            progress(i + 1, len(WAYS))
    return results


def report(
    noise: Spread, drawn: dict[str, Any], detections: list[Detection], options: Options
) -> kit.Report:
    """A table for each of the three questions, and the claims."""
    p, sd, level = noise.error, noise.measured, options.level
    name, size, expected = drawn["name"], drawn["size"], drawn["expected"]
    title = f"Digits, ridge classifier of {options.train_examples} examples, mean error {p:.2%}: "
    title += f"standard deviation of the dev error over {options.splits} random splits; "
    title += f"two of them are 1 % with {4 * p * (1 - p) / 0.01**2:,.0f} dev examples."
    headings = {"dev examples": "d", "measured": ".2%", "sqrt(p(1-p)/n)": ".2%", "z": "+.1f"}
    rows = zip(noise.sizes, sd, noise.binomial, sd.z_score(noise.binomial), strict=True)
    tables = [kit.table(headings, rows, title)]
    title = f"Wine, {name}, {drawn['whole']:.2%} of all: its share in dev sets of {size}, "
    title += f"{options.splits} splits. A plain draw has a standard deviation of {expected:.2%}; "
    title += f"whole examples can differ by up to {1 / size:.2%}."
    headings = {"split": "", "mean": ".2%", "standard deviation": ".2%", "range": ""}
    rows = [
        (way, Estimate.of(v), deviation(v), f"{v.min():.1%} to {v.max():.1%}")
        for way, v in drawn.items()
        if way in ("plain", "stratified")
    ]
    tables.append(kit.table(headings, rows, title))
    title = f"Breast cancer: dev and test are called different at level {level:g}, share of "
    title += f"{options.trials} pairs ± standard error."
    headings = {"way of splitting": "", "different": ".1%", "by a feature": ".0%", "jointly": ".0%"}
    rows = [(*row[:4], f"{row.largest[0]} ({row.largest[1]:.0%})") for row in detections]
    tables.append(kit.table(headings | {"differs most (share)": ""}, rows, title))
    ratios = {
        f"{n} dev examples: the dev error varies as a binomial share": measured * (1 / binomial)
        for n, measured, binomial in zip(noise.sizes, sd, noise.binomial, strict=True)
    }
    plain, change = deviation(drawn["plain"]), np.abs(drawn["stratified"] - drawn["whole"]).max()
    text = f"a plain split varies the share of {name} as a draw without replacement"
    ratios[text] = plain * (1 / expected)
    claims = [
        Claim(f"{text}, within {AGREEMENT:.0%} (ratio)", ratio, "equal", 1.0, AGREEMENT, ".2f")
        for text, ratio in ratios.items()
    ]
    text = "a stratified split changes it by less than one example"
    claims.append(Claim(text, Estimate.exact(change), "less", 1 / size, form=".2%"))
    text = f"random splits are called different in less than {level:.0%} of pairs"
    claims.append(Claim(text, detections[0].rate, "less", level, form=".1%"))
    for row in detections[1:]:
        text = f"{row.name}: called different in more than {level:.0%} of pairs"
        claims.append(Claim(text, row.rate, "greater", level, form=".1%"))
    numbers = {
        "dev_error_deviation": dict(zip(noise.sizes, sd, strict=True)),
        "class_share_deviation": plain,
        "called_different": {row.name: row.rate for row in detections},
    }
    return kit.Report(tables, claims, numbers)


def figure(detections: list[Detection], options: Options) -> Any:
    """How often a comparison of dev and test notices how they were split."""
    random, *faulty = (row.rate.mean for row in detections)
    counts = {
        textwrap.fill(row.name, 20): {"": (round(row.rate.mean * options.trials), options.trials)}
        for row in detections
    }
    # Those whose interval of 95 % is above the level.
    noticed = sum(interval(*pair[""])[0] > options.level for pair in list(counts.values())[1:])
    title = (
        f"Comparing dev with test notices {noticed} of {len(faulty)} faulty ways to split, and "
        f"takes {random:.1%} of random splits for faulty"
    )
    result, ((ax,),) = figures.panels(title, height=3.8)
    figures.shares(ax, counts)
    color = style.palette().theory
    ax.axvline(options.level, color=color, label=f"level of the comparison, {options.level:.0%}")
    ax.set(xlim=(-0.03, 1.03), xlabel="pairs that are called different (bars: 95 %)")
    ax.legend(handles=ax.get_lines()[-1:], loc="upper right")
    return result


def run(options: Options) -> None:
    """Measure what the split decides: noise of the dev error, class shares, dev against test."""
    noise, drawn = spread(options), shares(options)
    detections = detect(options, kit.progress("comparisons"))
    results = report(noise, drawn, detections, options)
    kit.publish(results, options, lambda: figure(detections, options))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
