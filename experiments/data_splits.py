"""What does the way of splitting decide: dev set size, class shares, dev and test of one kind?

Run `python -m experiments.data_splits`, or `--help` for its options.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

from experiments import frontend
from jaxgrad import plotting
from jaxgrad.training import normalization, splits


@dataclass(frozen=True)
class Config:
    """Options of the experiment on splits."""

    splits: int = 500
    """Random splits of digits, and of wine, at least 10."""
    train_examples: int = 400
    """Digits that the classifier is fitted to."""
    dev_sizes: tuple[int, ...] = (12, 25, 50, 100, 200, 400)
    """Sizes of the dev set, ascending."""
    penalty: float = 30.0
    """Ridge penalty of the classifier, above 0."""
    trials: int = 200
    """Pairs of dev and test set to be compared for each way of splitting, at least 2."""
    permutations: int = 199
    """Of each comparison."""
    level: float = 0.05
    """Share of equal pairs that may be taken for different."""
    shift: float = 0.75
    """By how many standard deviations one feature is shifted."""
    first_seed: int = 0
    """Of all draws."""
    output: Path = Path("results/data_splits.png")
    """Where to write the figure."""


class Spread(NamedTuple):
    """Dev errors over random splits, arrays `[sizes]`.

    Attributes:
      sizes: of the dev set.
      error: mean error over all splits, one number.
      measured, uncertainty: standard deviation over splits, and its standard error.
      binomial: standard deviation of a share of independent examples.
    """

    sizes: np.ndarray
    error: float
    measured: np.ndarray
    uncertainty: np.ndarray
    binomial: np.ndarray


class Shares(NamedTuple):
    """A class's share in the dev set, `[splits]`, drawn in two ways.

    Attributes:
      name: of the class.
      size: of the dev set.
      whole: the class's share in all data.
      plain, stratified: in dev sets.
      expected: standard deviation of a plain draw without replacement.
    """

    name: str
    size: int
    whole: float
    plain: np.ndarray
    stratified: np.ndarray
    expected: float


class Detected(NamedTuple):
    """How often pairs of dev and test sets, split in one way, are taken for different.

    Attributes:
      name: the way of splitting.
      rate: share of pairs that do not pass as one distribution.
      features, joint: share in which the single features differ, or all jointly do.
      named: the feature that most often differs most, and the share of pairs where it does.
      trials: how many pairs.
    """

    name: str
    rate: float
    features: float
    joint: float
    named: tuple[str, float]
    trials: int

    @property
    def error(self) -> float:
        """Standard error of the rate, by Laplace's rule not zero where all pairs agree."""
        likely = (self.rate * self.trials + 1) / (self.trials + 2)
        return float(np.sqrt(likely * (1 - likely) / self.trials))


def spread(config: Config) -> Spread:
    """Fit a ridge classifier of digits to many random training sets, and measure its dev errors."""
    x, y = datasets.load_digits(return_X_y=True)
    count = len(y)
    x = jnp.asarray(np.c_[x / 16, np.ones(count)], jnp.float32)
    y = jnp.asarray(y, jnp.int32)
    share = config.train_examples / count

    def one(key):
        train, rest = splits.split(count, (share, 1 - share), key=key)
        inputs, targets = x[train], 2 * jax.nn.one_hot(y[train], 10) - 1
        gram = inputs.T @ inputs + config.penalty / 16 * jnp.eye(x.shape[1])
        weights = jnp.linalg.solve(gram, inputs.T @ targets)
        wrong = jnp.argmax(x[rest] @ weights, axis=1) != y[rest]
        # What is left comes in random order, so its head is a random dev set.
        of_sizes = jnp.cumsum(wrong)[np.array(config.dev_sizes) - 1] / jnp.array(config.dev_sizes)
        return of_sizes, jnp.mean(wrong)

    keys = jax.random.split(jax.random.key(config.first_seed), config.splits)
    errors, all_errors = jax.device_get(
        jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=20))(keys)
    )
    error, sizes = float(all_errors.mean()), np.array(config.dev_sizes)
    measured = errors.std(axis=0, ddof=1)
    # Of a standard deviation, by the fourth moment, since shares of few examples are not normal.
    squares = (errors - errors.mean(axis=0)) ** 2
    uncertainty = squares.std(axis=0, ddof=1) / np.sqrt(config.splits) / (2 * measured)
    return Spread(sizes, error, measured, uncertainty, np.sqrt(error * (1 - error) / sizes))


def shares(config: Config) -> Shares:
    """Draw dev sets of wine with and without regard to class, and count the rarest class."""
    wine: Any = datasets.load_wine()
    labels, names = wine.target, [str(name) for name in wine.target_names]
    count, rarest = len(labels), int(np.argmin(np.bincount(labels)))
    keys = jax.random.split(jax.random.key(config.first_seed + 1), config.splits)
    parts = splits.fractions(count)
    ways = (count, labels)
    devs = jax.jit(jax.vmap(lambda key: [splits.split(way, parts, key=key)[1] for way in ways]))(
        keys
    )
    plain, stratified = ((labels[np.asarray(dev)] == rarest).mean(axis=1) for dev in devs)
    whole, size = float((labels == rarest).mean()), devs[0].shape[1]
    expected = np.sqrt(whole * (1 - whole) / size * (count - size) / (count - 1))
    return Shares(names[rarest].replace("_", " "), size, whole, plain, stratified, float(expected))


RANDOM, ORDER, CLASSES = "random split", "neighbouring blocks of the file", "other class shares"
OWN, SHIFTED = "dev standardised by its own statistics", "one feature of test shifted"
UNPAIRED = "each feature of test shuffled by itself"
WAYS = (RANDOM, OWN, ORDER, CLASSES, SHIFTED, UNPAIRED)


def _breast_cancer() -> tuple[np.ndarray, np.ndarray]:
    table, labels = datasets.load_breast_cancer(return_X_y=True)
    return np.asarray(table), np.asarray(labels)


@functools.lru_cache(maxsize=1)
def _drawn(config: Config) -> tuple[np.ndarray, ...]:
    """Dev and test rows of random splits of breast cancer, mean and deviation of training sets."""
    table, labels = _breast_cancer()
    table = jnp.asarray(table, jnp.float32)

    def one(key):
        train, dev, test = splits.split(labels, splits.fractions(len(labels)), key=key)
        size = min(len(dev), len(test))
        return dev[:size], test[:size], *normalization.fit(table[train])

    keys = jax.random.split(jax.random.key(config.first_seed + 2), config.trials)
    return jax.device_get(jax.jit(jax.vmap(one))(keys))


def pairs(way: str, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Dev and test sets of breast cancer `[trials, 2, examples, features]`, shifted `[trials]`."""
    table, labels = _breast_cancer()
    dev, test, mean, std = _drawn(config)
    count, size = len(labels), dev.shape[1]
    generator = np.random.default_rng(config.first_seed)
    feature = generator.integers(table.shape[1], size=config.trials)
    made = []
    for trial in range(config.trials):
        rows = [dev[trial], test[trial]]
        if way == ORDER:
            start = generator.integers(count)
            rows = [(start + np.arange(i, i + size)) % count for i in (0, size)]
        elif way == CLASSES:
            rows = [_of_classes(generator, labels, size, share) for share in (0.25, 0.5)]
        first, second = ((table[chosen] - mean[trial]) / std[trial] for chosen in rows)
        if way == OWN:
            first = (first - first.mean(axis=0)) / first.std(axis=0)
        at = feature[trial]
        if way == SHIFTED:
            second[:, at] += config.shift
        elif way == UNPAIRED:
            second = generator.permuted(second, axis=0)
        made.append((first, second))
    return np.array(made, np.float32), feature


def _of_classes(generator: Any, labels: np.ndarray, size: int, share: float) -> np.ndarray:
    """Rows of which a share has label 0."""
    zeros = round(share * size)
    return np.concatenate(
        [
            generator.choice(np.flatnonzero(labels == label), many, replace=False)
            for label, many in ((0, zeros), (1, size - zeros))
        ]
    )


def detect(config: Config, progress: Any = None) -> list[Detected]:
    """Compare dev and test sets that were split in different ways."""
    described: Any = datasets.load_breast_cancer()
    names = [str(name) for name in described.feature_names]

    @jax.jit
    def compared(keys, sets):
        def one(arguments):
            key, (first, second) = arguments
            found = splits.compare(first, second, key=key, permutations=config.permutations)
            return found, splits.same(found, level=config.level)

        return jax.lax.map(one, (keys, (sets[:, 0], sets[:, 1])))

    results = []
    for i, way in enumerate(WAYS):
        sets, shifted = pairs(way, config)
        key = jax.random.fold_in(jax.random.key(config.first_seed + 3), i)
        found, passed = jax.device_get(compared(jax.random.split(key, config.trials), sets))
        smallest = found.feature_p_values.min(axis=1)
        most = found.ks.argmax(axis=1)
        if way == SHIFTED:
            named = ("the shifted one", float((most == shifted).mean()))
        else:
            often = np.bincount(most, minlength=len(names))
            named = (names[often.argmax()], float(often.max() / config.trials))
        results.append(
            Detected(
                way,
                float((~passed).mean()),
                float((smallest <= config.level / 2).mean()),
                float((found.p_value <= config.level / 2).mean()),
                named,
                config.trials,
            )
        )
        if progress is not None:
            progress(i + 1, len(WAYS))
    return results


def report(measured: Spread, drawn: Shares, found: list[Detected], config: Config) -> str:
    """Three tables, and after each what it says."""
    z = (measured.measured - measured.binomial) / measured.uncertainty
    rows = [
        (str(size), f"{m:.2%} ± {u:.2%}", f"{b:.2%}", f"{score:+.1f}")
        for size, m, u, b, score in zip(*measured[:1], *measured[2:], z, strict=True)
    ]
    p = measured.error
    widest = int(np.abs(z).argmax())
    lines = [
        f"Digits, ridge classifier of {config.train_examples} examples, mean error {p:.2%}: "
        f"standard deviation",
        f"of the dev error over {config.splits} random splits ± standard error.",
        frontend.table(("dev examples", "measured", "binomial", "z"), rows),
        f"The largest difference from sqrt(p (1 - p) / n) is {np.abs(z[widest]):.1f} standard "
        f"errors, a factor of {measured.measured[widest] / measured.binomial[widest]:.2f}.",
        f"So {measured.sizes[0]} dev examples tell the error to ± "
        f"{2 * measured.measured[0]:.1%} (two standard deviations), {measured.sizes[-1]} to ± "
        f"{2 * measured.measured[-1]:.1%}; for ± 1 % it takes {4 * p * (1 - p) / 1e-4:,.0f}.",
    ]
    rows = [
        (
            way,
            f"{values.mean():.2%} ± {values.std(ddof=1) / np.sqrt(len(values)):.2%}",
            f"{values.std(ddof=1):.2%}",
            f"{values.min():.1%} to {values.max():.1%}",
        )
        for way, values in (("plain", drawn.plain), ("stratified", drawn.stratified))
    ]
    lines += [
        f"\nWine, {drawn.name}, {drawn.whole:.2%} of all: its share in dev sets of {drawn.size}, "
        f"{config.splits} splits.",
        frontend.table(("split", "mean", "standard deviation", "range"), rows),
        f"Chance alone: a standard deviation of {drawn.expected:.2%} for plain splits. Rounding to "
        f"whole examples allows a stratified share to differ by {1 / drawn.size:.2%}; it differs "
        f"by {np.abs(drawn.stratified - drawn.whole).max():.2%} at most.",
    ]
    rows = [
        (
            row.name,
            f"{row.rate:.1%} ± {row.error:.1%}",
            f"{row.features:.0%}",
            f"{row.joint:.0%}",
            f"{row.named[0]} ({row.named[1]:.0%})",
        )
        for row in found
    ]
    lines += [
        f"\nBreast cancer: dev and test taken for different at level {config.level:g}, share of "
        f"{config.trials} pairs ± standard error.",
        frontend.table(
            ("way of splitting", "different", "by a feature", "jointly", "differs most (share)"),
            rows,
        ),
        verdict(found, config),
    ]
    return "\n".join(lines)


def verdict(found: list[Detected], config: Config) -> str:
    """What the comparison finds and what it does not, in words."""
    equal = next(row for row in found if row.name == RANDOM)
    holds = equal.rate <= config.level + 2 * equal.error
    others = [row for row in found if row is not equal]
    seen = [row.name for row in others if row.rate - 3 * row.error > config.level]
    missed = [row.name for row in others if row.name not in seen]
    words = [
        f"Random splits are taken for different in {equal.rate:.1%}, "
        + (f"as level {config.level:g} allows." if holds else "MORE than the level allows.")
    ]
    if seen:
        words.append(f"Found more often than by chance: {'; '.join(seen)}.")
    if missed:
        words.append(f"Not found: {'; '.join(missed)}.")
    return "\n".join(words)


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    least = {"splits": 10, "train_examples": 65, "trials": 2, "permutations": 1, "first_seed": 0}
    for name, minimum in least.items():
        if getattr(config, name) < minimum:
            raise ValueError(
                f"{name} must be at least {minimum}, got {getattr(config, name)}; raise it"
            )
    most = 1797 - config.train_examples
    sizes = config.dev_sizes
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)) or sizes[-1] > most:
        raise ValueError(
            f"dev_sizes must be ascending from 1 to the {most} digits that are not for training, "
            f"got {sizes}; correct them"
        )
    if not 0 < config.level < 1:
        raise ValueError(f"level must be between 0 and 1, got {config.level:g}; take 0.05")
    if config.permutations + 1 < 2 / config.level:
        raise ValueError(
            f"permutations must be at least {2 / config.level - 1:.0f} for level {config.level:g}, "
            f"got {config.permutations}; raise it"
        )
    if not 0 < config.penalty < np.inf:
        raise ValueError(f"penalty must be above 0 and finite, got {config.penalty:g}; take 30")
    if not np.isfinite(config.shift):
        raise ValueError(f"shift must be finite, got {config.shift:g}; take 0.75")
    frontend.writable("output", config.output)


def run(config: Config) -> None:
    """Measure what the split decides: noise of the dev error, class shares, dev against test."""
    checked(config)
    start = time.perf_counter()
    measured, drawn = spread(config), shares(config)
    found = detect(config, frontend.Bar("comparisons"))
    print(report(measured, drawn, found, config))
    plotting.data_splits(measured, drawn, found, config.level).savefig(config.output, dpi=110)
    print(f"\n{time.perf_counter() - start:.1f} s in all.")
    print(f"Figure: {config.output}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
