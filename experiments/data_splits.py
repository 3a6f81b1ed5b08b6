"""What does the way of splitting decide: dev set size, class shares, dev and test of one kind?

Run `python -m experiments.data_splits`, or `--help` for its options.
"""

from __future__ import annotations

import functools
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, figures
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
class Options(kit.Options):
    """Options of the experiment on splits."""

    splits: int = kit.option(500, "Random splits of digits, and of wine.", minimum=10)
    train_examples: int = kit.option(400, "Digits that are trained on.", minimum=65, maximum=1796)
    dev_sizes: tuple[int, ...] = kit.option(
        (12, 25, 50, 100, 200, 400), "Sizes of the dev set.", minimum=1, ascending=True
    )
    penalty: float = kit.option(30.0, "Ridge penalty of the classifier.", above=0)
    trials: int = kit.option(200, "Pairs of dev and test set for each way to split.", minimum=2)
    permutations: int = kit.option(199, "Permutations in each comparison.", minimum=1)
    level: float = kit.option(
        0.05, "Share of equal pairs that may be called different.", above=0, below=1
    )
    shift: float = kit.option(0.75, "Shift of one feature, in standard deviations.")
    first_seed: int = kit.option(0, "Seed of all draws.", minimum=0)
    output: Path = kit.option(Path("results/data_splits.png"), "Where to write the figure.")

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
    """Standard deviation over the first axis, and its standard error by the fourth moment.

    The formula for normal values would not do: shares of few examples are not normal.
    """
    measured = values.std(axis=0, ddof=1)
    squares = np.square(values - values.mean(axis=0))
    # sd = sqrt(var), so its error is that of the variance divided by 2 sd.
    spread = np.where(measured > 0, 2 * measured, 1.0)
    error = squares.std(axis=0, ddof=1) / np.sqrt(len(values)) / spread
    return Estimate(measured, error, len(values) - 1)


class Spread(NamedTuple):
    """Noise of the dev error over random splits, by size of the dev set."""

    sizes: np.ndarray  # of the dev set
    error: float  # mean over all splits
    measured: Estimate  # standard deviations over splits, [sizes]
    binomial: np.ndarray  # those of shares of independent examples, [sizes]


def spread(options: Options) -> Spread:
    """Fit a ridge classifier of digits to random training sets, and measure its dev errors."""
    digits = kit.load("digits")
    count, share = len(digits.labels), options.train_examples / len(digits.labels)
    x = jnp.asarray(np.c_[digits.x / 16, np.ones(count)], jnp.float32)
    y, sizes = jnp.asarray(digits.labels), np.array(options.dev_sizes)

    def one(key):
        train, rest = splits.split(count, (share, 1 - share), key=key)
        inputs, targets = x[train], 2 * jax.nn.one_hot(y[train], 10) - 1
        # (X'X + penalty) W = X'Y; pixels are divided by 16, and the penalty with them.
        gram = inputs.T @ inputs + options.penalty / 16 * jnp.eye(x.shape[1])
        weights = jnp.linalg.solve(gram, inputs.T @ targets)
        wrong = jnp.argmax(x[rest] @ weights, axis=1) != y[rest]
        # The rest is in random order, so its first examples are a random dev set.
        return jnp.cumsum(wrong)[sizes - 1] / sizes, jnp.mean(wrong)

    keys = jax.random.split(jax.random.key(options.first_seed), options.splits)
    errors, whole = jax.device_get(
        jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=20))(keys)
    )
    p = float(whole.mean())
    return Spread(sizes, p, deviation(errors), np.sqrt(p * (1 - p) / sizes))


class Shares(NamedTuple):
    """The share of one class in the dev set, drawn in two ways."""

    name: str  # of the class
    size: int  # of the dev set
    whole: float  # the share in all data
    plain: np.ndarray  # in dev sets, [splits]
    stratified: np.ndarray  # in dev sets, [splits]
    expected: float  # standard deviation of a plain draw without replacement


def shares(options: Options) -> Shares:
    """Draw dev sets of wine with and without regard to class, and count the rarest class."""
    wine = kit.load("wine")
    count, rarest = len(wine.labels), int(np.argmin(np.bincount(wine.labels)))
    keys = jax.random.split(jax.random.key(options.first_seed + 1), options.splits)
    parts = splits.fractions(count)

    def draw(key):
        return [splits.split(way, parts, key=key)[1] for way in (count, wine.labels)]

    devs = jax.jit(jax.vmap(draw))(keys)
    plain, stratified = ((wine.labels[np.asarray(dev)] == rarest).mean(axis=1) for dev in devs)
    whole, size = float((wine.labels == rarest).mean()), devs[0].shape[1]
    # The variance of the hypergeometric distribution.
    expected = np.sqrt(whole * (1 - whole) / size * (count - size) / (count - 1))
    name = wine.classes[rarest].replace("_", " ")
    return Shares(name, size, whole, plain, stratified, float(expected))


class Detection(NamedTuple):
    """How often pairs of dev and test sets, split in one way, are called different."""

    name: str  # the way of splitting
    rate: Estimate  # share of pairs that are called different
    features: float  # share in which single features differ
    joint: float  # share in which all features jointly differ
    largest: tuple[str, float]  # the feature that most often differs most, and its share of pairs


@functools.lru_cache(maxsize=1)
def random_pairs(options: Options) -> tuple[np.ndarray, ...]:
    """Rows of dev and test sets of breast cancer, and mean and deviation of the training sets."""
    cancer = kit.load("breast_cancer")
    x = jnp.asarray(cancer.x, jnp.float32)

    def one(key):
        parts = splits.fractions(len(cancer.labels))
        train, dev, test = splits.split(cancer.labels, parts, key=key)
        size = min(len(dev), len(test))
        return dev[:size], test[:size], *normalization.fit(x[train])

    keys = jax.random.split(jax.random.key(options.first_seed + 2), options.trials)
    return jax.device_get(jax.jit(jax.vmap(one))(keys))


def pairs(way: str, options: Options) -> tuple[np.ndarray, np.ndarray]:
    """Dev and test sets `[trials, 2, examples, features]`, and the shifted features `[trials]`."""
    cancer = kit.load("breast_cancer")
    dev, test, mean, std = random_pairs(options)
    count, size = len(cancer.labels), dev.shape[1]
    generator = np.random.default_rng(options.first_seed)
    shifted = generator.integers(cancer.x.shape[1], size=options.trials)
    results = []
    for trial, feature in enumerate(shifted):
        rows = [dev[trial], test[trial]]
        if way == ORDER:
            start = generator.integers(count)
            rows = [(start + np.arange(i, i + size)) % count for i in (0, size)]
        elif way == CLASSES:
            rows = [draw_classes(generator, cancer.labels, size, share) for share in (0.25, 0.5)]
        # Both are standardized by the training set, as they should be.
        first, second = ((cancer.x[row] - mean[trial]) / std[trial] for row in rows)
        if way == SELF:
            first = (first - first.mean(axis=0)) / first.std(axis=0)
        if way == SHIFTED:
            second[:, feature] += options.shift
        elif way == UNPAIRED:
            second = generator.permuted(second, axis=0)
        results.append((first, second))
    return np.array(results, np.float32), shifted


def draw_classes(generator: Any, labels: np.ndarray, size: int, share: float) -> np.ndarray:
    """Rows of which a share has label 0."""
    zeros = round(share * size)
    counts = ((0, zeros), (1, size - zeros))
    return np.concatenate(
        [generator.choice(np.flatnonzero(labels == c), n, replace=False) for c, n in counts]
    )


def detect(options: Options, progress: kit.Progress = None) -> list[Detection]:
    """Compare dev and test sets that were split in different ways."""
    names = kit.load("breast_cancer").features

    @jax.jit
    def compare(keys, sets):
        def one(arguments):
            key, (first, second) = arguments
            comparison = splits.compare(first, second, key=key, permutations=options.permutations)
            return comparison, splits.same(comparison, level=options.level)

        return jax.lax.map(one, (keys, (sets[:, 0], sets[:, 1])))

    results = []
    for i, way in enumerate(WAYS):
        sets, shifted = pairs(way, options)
        key = jax.random.fold_in(jax.random.key(options.first_seed + 3), i)
        comparison, same = jax.device_get(compare(jax.random.split(key, options.trials), sets))
        largest = comparison.ks.argmax(axis=1)
        often = np.bincount(largest, minlength=len(names)) / options.trials
        label = (names[often.argmax()], float(often.max()))
        if way == SHIFTED:
            label = ("the shifted one", float((largest == shifted).mean()))
        rate = Estimate.share((~same).sum(), options.trials)
        # Two tests share the level: the smallest p-value of the features, and the joint one.
        p_values = (comparison.feature_p_values.min(axis=1), comparison.p_value)
        features, joint = (float((p <= options.level / 2).mean()) for p in p_values)
        results.append(Detection(way, rate, features, joint, label))
        if progress is not None:
            progress(i + 1, len(WAYS))
    return results


def claims(noise: Spread, drawn: Shares, rows: list[Detection], level: float) -> list[Claim]:
    """Formulas for the noise hold, stratified shares stay, and faulty splits are noticed."""

    def equal(text, estimate, expected):
        ratio = estimate * (1 / expected)
        text = f"{text}, within {AGREEMENT:.0%} (ratio)"
        return Claim(text, ratio, "equal", 1.0, tolerance=AGREEMENT, form=".2f")

    results = [
        equal(
            f"{size} dev examples: the dev error varies as a binomial share", noise.measured[i], p
        )
        for i, (size, p) in enumerate(zip(noise.sizes, noise.binomial, strict=True))
    ]
    text = f"a plain split varies the share of {drawn.name} as a draw without replacement"
    results.append(equal(text, deviation(drawn.plain), drawn.expected))
    change = Estimate.exact(np.abs(drawn.stratified - drawn.whole).max())
    text = "a stratified split changes it by less than one example"
    results.append(Claim(text, change, "less", 1 / drawn.size, form=".2%"))
    text = f"random splits are called different in less than {level:.0%} of pairs"
    results.append(Claim(text, rows[0].rate, "less", level, form=".1%"))
    for row in rows[1:]:
        text = f"{row.name}: called different in more than {level:.0%} of pairs"
        results.append(Claim(text, row.rate, "greater", level, form=".1%"))
    return results


def report(
    noise: Spread, drawn: Shares, detections: list[Detection], options: Options
) -> kit.Report:
    """A table for each of the three questions, and the claims."""
    p, sd = noise.error, noise.measured
    z_scores = sd.z_score(noise.binomial)
    rows = [
        (str(size), f"{sd[i]:.2%}", f"{noise.binomial[i]:.2%}", f"{z_scores[i]:+.1f}")
        for i, size in enumerate(noise.sizes)
    ]
    title = f"Digits, ridge classifier of {options.train_examples} examples, mean error {p:.2%}: "
    title += f"standard deviation of the dev error over {options.splits} random splits."
    first = kit.table(("dev examples", "measured", "sqrt(p(1-p)/n)", "z"), rows, title)
    needed = kit.paragraph(
        f"{noise.sizes[0]} dev examples give the error to ± {2 * sd.mean[0]:.1%} (two standard "
        f"deviations), {noise.sizes[-1]} to ± {2 * sd.mean[-1]:.1%}; ± 1 % takes "
        f"{4 * p * (1 - p) / 1e-4:,.0f} examples."
    )
    rows = [
        (way, f"{Estimate.of(v):.2%}", f"{deviation(v):.2%}", f"{v.min():.1%} to {v.max():.1%}")
        for way, v in (("plain", drawn.plain), ("stratified", drawn.stratified))
    ]
    title = f"Wine, {drawn.name}, {drawn.whole:.2%} of all: its share in dev sets of {drawn.size}, "
    title += f"{options.splits} splits. A plain draw has a standard deviation of "
    title += f"{drawn.expected:.2%}; whole examples can differ by up to {1 / drawn.size:.2%}."
    second = kit.table(("split", "mean", "standard deviation", "range"), rows, title)
    rows = [
        (row.name, f"{row.rate:.1%}", f"{row.features:.0%}", f"{row.joint:.0%}")
        + (f"{row.largest[0]} ({row.largest[1]:.0%})",)
        for row in detections
    ]
    headings = ("way of splitting", "different", "by a feature", "jointly", "differs most (share)")
    title = f"Breast cancer: dev and test are called different at level {options.level:g}, share "
    title += f"of {options.trials} pairs ± standard error."
    third = kit.table(headings, rows, title)
    numbers = {
        "dev_error_deviation": {size: sd[i] for i, size in enumerate(noise.sizes)},
        "class_share_deviation": deviation(drawn.plain),
        "called_different": {row.name: row.rate for row in detections},
    }
    statements = claims(noise, drawn, detections, options.level)
    return kit.Report([f"{first}\n{needed}", second, third], statements, numbers)


def figure(noise: Spread, drawn: Shares, detections: list[Detection], options: Options) -> Any:
    """Noise of the dev error, class shares, and how often faulty splits are noticed."""
    from matplotlib.figure import Figure

    result = Figure(figsize=(12, 8.6), layout="constrained")
    axes = result.subplot_mosaic([["noise", "shares"], ["rates", "rates"]])
    draw_noise(axes["noise"], noise)
    draw_shares(axes["shares"], drawn)
    draw_rates(axes["rates"], detections, options)
    figures.legend_below(result, axes["rates"], 4)
    return result


def draw_noise(ax: Any, noise: Spread) -> None:
    """Measured standard deviations over the binomial curve."""
    p, measured = noise.error, noise.measured
    sizes = np.geomspace(noise.sizes[0], noise.sizes[-1], 100)
    curve = np.sqrt(p * (1 - p) / sizes)
    label = r"binomial: $\sqrt{p\,(1-p)\,/\,n}$"
    ax.plot(sizes, curve, color=style.THEORY, linestyle="dashed", label=label)
    look = {"color": style.SHADES[0], "marker": "o", "linestyle": "none", "capsize": 4}
    figures.error_bars(ax, noise.sizes, measured, label="measured ± two standard errors", **look)
    low, high = measured.mean.min() / 1.3, measured.mean.max() * 1.3
    ax.set(xscale="log", yscale="log", ylim=(low, high), xlabel="examples in the dev set")
    ax.set_ylabel("standard deviation of the dev error\nover random splits")
    values = [v for v in (0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 30) if low <= v / 100 <= high]
    figures.ticks(ax.xaxis, noise.sizes)
    figures.ticks(ax.yaxis, [v / 100 for v in values], [f"{v} %" for v in values])
    wide, narrow = (2 * measured.mean[i] for i in (0, -1))
    ax.set_title(
        f"{noise.sizes[-1]} dev examples give an error of {p:.0%}\n"
        f"to ± {narrow:.1%}, {noise.sizes[0]} to ± {wide:.0%}"
    )
    ax.legend(frameon=False)


def draw_shares(ax: Any, drawn: Shares) -> None:
    """Distributions of the class share in plain and stratified dev sets."""
    whole = [np.round(v * drawn.size).astype(int) for v in (drawn.stratified, drawn.plain)]
    counts = np.arange(np.min(whole), np.max(whole) + 1)
    looks = ((style.SHADES[4], "//", 0.9, "stratified"), (style.SHADES[1], None, 0.6, "plain"))
    for values, (color, hatch, width, name) in zip(whole, looks, strict=True):
        heights = [np.mean(values == count) for count in counts]
        look = {"color": color, "hatch": hatch, "edgecolor": "white", "label": f"{name} split"}
        ax.bar(counts / drawn.size, heights, width=width / drawn.size, **look)
    ax.axvline(drawn.whole, color="black", linestyle="dotted", label="in all data")
    figures.percent(ax.xaxis)
    figures.percent(ax.yaxis)
    ax.set_xlabel(f"share of {drawn.name} of wine in the dev set ({drawn.size} examples)")
    ax.set_ylabel("share of random splits")
    low, high = drawn.plain.min(), drawn.plain.max()
    ax.set_title(
        f"A class of {drawn.whole:.0%} has {low:.0%} to {high:.0%} of plain dev sets,\n"
        f"{drawn.stratified.mean():.0%} of stratified ones"
    )
    ax.legend(loc="center right", frameon=False, fontsize=9, handlelength=1.2)


def draw_rates(ax: Any, detections: list[Detection], options: Options) -> None:
    """How often each way of splitting is noticed, by either test and by both."""
    heights = np.arange(len(detections))[::-1]
    kinds = (
        ("by a feature", [row.features for row in detections], style.LINES[3], 0.2),
        ("by all features jointly", [row.joint for row in detections], style.LINES[1], -0.2),
    )
    for label, rates, (color, marker), offset in kinds:
        ax.barh(heights + offset, rates, height=0.18, color=color, alpha=0.35, linewidth=0)
        look = {"color": color, "marker": marker, "linestyle": "none", "clip_on": False}
        ax.plot(rates, heights + offset, label=label, **look)
    rates = np.array([row.rate.mean for row in detections])
    bars = [2 * row.rate.standard_error for row in detections]
    look = {"color": "black", "marker": "o", "linestyle": "none", "capsize": 4, "zorder": 5}
    ax.errorbar(rates, heights, xerr=bars, label="by either ± two standard errors", **look)
    level = {"color": style.THEORY, "linestyle": "dashed", "label": f"level {options.level:.0%}"}
    ax.axvline(options.level, **level)
    for y, row in zip(heights, detections, strict=True):
        if row.features > 3 * options.level:  # otherwise no feature stands out
            words = f"most often {row.largest[0]}"
            ax.text(1.04, y, words, va="center", fontsize=9, color="0.3")
    ax.set_yticks(heights, [textwrap.fill(row.name, 24) for row in detections])
    ax.set_xlabel(f"pairs of dev and test set that are called different ({options.trials} pairs)")
    ax.set_xlim(0, 1.03)
    figures.percent(ax.xaxis)
    ax.set_title(
        f"Comparing dev with test: random splits differ in {rates[0]:.1%} of pairs,\n"
        f"faulty ones in {rates[1:].min():.0%} to {rates[1:].max():.0%}"
    )


def run(options: Options) -> None:
    """Measure what the split decides: noise of the dev error, class shares, dev against test."""
    noise, drawn = spread(options), shares(options)
    detections = detect(options, kit.progress("comparisons"))
    results = (noise, drawn, detections, options)
    kit.publish(report(*results), options, figure(*results))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
