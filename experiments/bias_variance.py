"""Does the diagnosis of bias and variance name the remedy that works?

Run `python -m experiments.bias_variance`, or `--help` for its options.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from experiments import frontend
from jaxgrad import layers, plotting, training
from jaxgrad.training import bias_variance, normalization, splits


@dataclass(frozen=True)
class Config:
    """Options of the experiment on bias and variance."""

    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Units of the hidden layer, ascending, with all training examples."""
    examples: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    """Training examples, ascending, for a small and the largest network; at least 3."""
    small: int = 1
    """Units of the small network, one of the widths but the last."""
    attainable: float = 0.01
    """Error that is taken to be attainable."""
    tolerance: float = 0.02
    """Gap up to which neither bias nor variance is high."""
    steps: int = 1000
    """Of training."""
    batch: int = 32
    """Examples in a step."""
    rate: float = 0.01
    """Learning rate of Adam at the start; it falls to 0 as a cosine."""
    seeds: int = 12
    """Splits and initialisations, at least 2."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    output: Path = Path("results/bias_variance.png")
    """Where to write the figure."""


class Point(NamedTuple):
    """A network's errors, `[seeds]`, and what they are diagnosed as.

    Attributes:
      width, examples: units of the network and examples it was trained on.
      train, dev: errors.
      diagnosis: `jaxgrad.training.bias_variance.Diagnosis` of the mean errors.
    """

    width: int
    examples: int
    train: np.ndarray
    dev: np.ndarray
    diagnosis: bias_variance.Diagnosis

    @property
    def words(self) -> str:
        """Which network it is."""
        return f"{self.width} unit{'s' * (self.width > 1)}, {self.examples} examples"


DEV = 0.4
"""Share of digits in the dev set, large since its noise blurs the curves."""


def settings(config: Config) -> list[tuple[int, int]]:
    """Pairs of width and number of examples: of all curves, then of the remedies tried."""
    curves = [pair for curve in curves_of(config).values() for pair in curve]
    tried = [pair for start in starts(config) for pair in (start, *remedies(start, config))]
    return list(dict.fromkeys(curves + tried))


def curves_of(config: Config) -> dict[str, list[tuple[int, int]]]:
    """What is varied, by name: pairs of width and number of examples."""
    widest, most = config.widths[-1], config.examples[-1]
    return {
        "units": [(width, most) for width in config.widths],
        "examples, large network": [(widest, count) for count in config.examples],
        "examples, small network": [(config.small, count) for count in config.examples],
    }


def starts(config: Config) -> list[tuple[int, int]]:
    """A small network with many examples, and a large one with few."""
    return [(config.small, config.examples[-2]), (config.widths[-2], config.examples[1])]


def remedies(start: tuple[int, int], config: Config) -> list[tuple[int, int]]:
    """The next larger network, and the next larger training set."""
    width, count = start
    return [
        (config.widths[config.widths.index(width) + 1], count),
        (width, config.examples[config.examples.index(count) + 1]),
    ]


def measure(config: Config, progress: Any = None) -> dict[tuple[int, int], Point]:
    """Train a network of every width and number of examples, once for each seed."""
    x, y = datasets.load_digits(return_X_y=True)
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
    grid = settings(config)
    widest, most = config.widths[-1], config.examples[-1]

    def errors(seed, width, count):
        key_split, key_init, key_fit = jax.random.split(jax.random.key(seed), 3)
        train, dev = splits.split(y, (1 - DEV, DEV), key=key_split)
        inputs = normalization.apply(normalization.fit(x[train]), x)
        # Units and examples are left out by masks, so that all runs have the same shapes.
        used = (jnp.arange(widest) < width).astype(x.dtype)
        hidden = layers.sequential(
            layers.dense(widest, w_variance=2.0, b_variance=jnp.float32(0.0)),
            layers.activation("relu"),
        )
        output = layers.dense(
            10, w_variance=widest / width.astype(x.dtype), b_variance=jnp.float32(0.0)
        )
        network = layers.sequential(hidden, _masked(used), output)
        params, _ = network.init(key_init, x.shape[1:], x.dtype)

        def loss(params, state, rows, key):
            logits = network.apply(params, inputs[rows], None)
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y[rows])), state

        optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, config.steps))
        rows = train[jnp.arange(most) % count]
        fitted = training.fit(
            loss,
            params,
            optimizer,
            rows,
            key=key_fit,
            steps=config.steps,
            batch_size=config.batch,
        )
        wrong = jnp.argmax(network.apply(fitted.params, inputs, None), axis=1) != y
        return jnp.sum(wrong[train[:most]] * (jnp.arange(most) < count)) / count, jnp.mean(
            wrong[dev]
        )

    @jax.jit
    def every(seed, widths, counts):
        return jax.lax.map(lambda pair: errors(seed, *pair), (widths, counts))

    found = []
    for i in range(config.seeds):
        found.append(every(config.first_seed + i, *jnp.array(grid, jnp.int32).T))
        found[-1][0].block_until_ready()
        if progress is not None:
            progress((i + 1) * len(grid), config.seeds * len(grid))
    train, dev = (np.array(part, np.float64) for part in zip(*jax.device_get(found), strict=True))
    return {
        pair: Point(
            *pair,
            train[:, i],
            dev[:, i],
            bias_variance.diagnose(
                train[:, i].mean(),
                dev[:, i].mean(),
                config.attainable,
                tolerance=config.tolerance,
                train_examples=pair[1],
                dev_examples=round(DEV * len(y)),
            ),
        )
        for i, pair in enumerate(grid)
    }


def _masked(used: jax.Array) -> layers.Layer:
    """Multiplies units by 0 or 1."""
    return layers.Layer(
        lambda key, shape, dtype: ({}, shape),
        lambda params, h, key: h * used[None],
        lambda moments: moments,
        homogeneous=True,
    )


class Step(NamedTuple):
    """From one point to the next larger network or training set.

    Attributes:
      before, after: points.
      remedy: `larger network` or `more data`.
      advised: whether the diagnosis before has it so.
      train, dev: change of the error, each a mean over seeds and its standard error.
    """

    before: Point
    after: Point
    remedy: str
    advised: bool
    train: tuple[float, float]
    dev: tuple[float, float]

    @property
    def fell(self) -> bool:
        """Whether what the remedy is for fell by more than two standard errors."""
        change, error = self.train if self.remedy == LARGER else self.dev
        return change < -2 * error


LARGER, MORE = "larger network", "more data"
_KINDS = ("train", "dev")


def step(before: Point, after: Point) -> Step:
    """What changes from one point to another, seed by seed."""
    remedy = LARGER if after.width > before.width else MORE
    high = before.diagnosis.bias_high if remedy == LARGER else before.diagnosis.variance_high
    return Step(
        before,
        after,
        remedy,
        high,
        _mean(after.train - before.train),
        _mean(after.dev - before.dev),
    )


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))


def report(points: dict[tuple[int, int], Point], config: Config) -> str:
    """All points with their diagnosis, and whether the advice that it gives works."""
    lines, steps = [], []
    for name, curve in curves_of(config).items():
        of_curve = [points[pair] for pair in curve]
        rows = []
        for i, point in enumerate(of_curve):
            row = [
                point.words,
                *(_percent(_mean(errors)) for errors in (point.train, point.dev)),
                point.diagnosis.label,
            ]
            if i + 1 < len(of_curve):
                steps.append(step(point, of_curve[i + 1]))
                row += _predicted(steps[-1])
            rows.append((*row, *[""] * (7 - len(row))))
        headings = ("network", "train error", "dev error", "diagnosis", "step", "predicted")
        lines += [
            f"\nDigits, varied: {name}; mean over {config.seeds} seeds ± standard error, and the "
            "step to the next row.",
            frontend.table((*headings, "measured"), rows),
        ]
    return "\n".join([*lines, *_followed(steps), *_compared(points, config)])


def _predicted(taken: Step) -> tuple[str, str, str]:
    kind = "train" if taken.remedy == LARGER else "dev"
    return (
        taken.remedy,
        f"{kind} error falls" if taken.advised else "no remedy needed",
        f"{kind} {_percent(getattr(taken, kind), '+')}",
    )


def _followed(steps: list[Step]) -> list[str]:
    lines = ["\nOf the steps above:"]
    for remedy, kind in ((LARGER, "training"), (MORE, "dev")):
        for advised in (True, False):
            chosen = [s for s in steps if s.remedy == remedy and s.advised == advised]
            if not chosen:
                continue
            fell = sum(s.fell for s in chosen)
            train, dev = (np.mean([getattr(s, kind)[0] for s in chosen]) for kind in _KINDS)
            lines.append(
                f"- {remedy}, {'advised' if advised else 'not advised'}: the {kind} error falls by "
                f"more than two\n  standard errors in {fell} of {len(chosen)}; on average training "
                f"{train:+.1%}, dev {dev:+.1%}."
            )
    return lines


def trials(points: dict[tuple[int, int], Point], config: Config) -> list[tuple[Step, Step]]:
    """Both remedies tried on each of `starts`: the larger network, then more data."""
    return [
        (step(points[start], points[wider]), step(points[start], points[longer]))
        for start in starts(config)
        for wider, longer in [remedies(start, config)]
    ]


def _compared(points: dict[tuple[int, int], Point], config: Config) -> list[str]:
    rows, words = [], []
    for wider, longer in trials(points, config):
        before = wider.before
        for s in (wider, longer):
            rows.append(
                (
                    before.words,
                    before.diagnosis.label,
                    s.remedy,
                    "yes" if s.advised else "no",
                    _percent(s.train, "+"),
                    _percent(s.dev, "+"),
                )
            )
        gain, error = _mean(wider.after.dev - longer.after.dev)
        better = MORE if gain > 2 * error else LARGER if gain < -2 * error else "neither"
        advised = [s.remedy for s in (wider, longer) if s.advised]
        agrees = better in advised or (better == "neither" and len(advised) != 1)
        words.append(
            f"- {before.words}, {before.diagnosis.label}: "
            f"advised is {' and '.join(advised) or 'nothing'};\n  better is {better}, by "
            f"{_percent((abs(gain), error))} of the dev error. This "
            + ("agrees." if agrees else "does NOT agree.")
        )
    headings = ("start", "diagnosis", "remedy", "advised", "train error", "dev error")
    return [
        "\nBoth remedies tried, the next larger network and the next larger training set:",
        frontend.table(headings, rows),
        *words,
    ]


def _percent(change: tuple[float, float], sign: str = "") -> str:
    return f"{change[0]:{sign}.1%} ± {change[1]:.1%}"


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    least = {"steps": 1, "batch": 1, "seeds": 2, "first_seed": 0}
    for name, minimum in least.items():
        if getattr(config, name) < minimum:
            raise ValueError(
                f"{name} must be at least {minimum}, got {getattr(config, name)}; raise it"
            )
    for name, count in (("widths", 2), ("examples", 3)):
        values = getattr(config, name)
        if len(values) < count or values[0] < 1 or list(values) != sorted(set(values)):
            raise ValueError(
                f"{name} must be {count} or more ascending numbers from 1, got {values}; "
                "correct them"
            )
    if config.small not in config.widths[:-1]:
        raise ValueError(
            f"small must be one of the widths but the last, {config.widths[:-1]}, got "
            f"{config.small}; choose one"
        )
    if config.examples[-1] > 1078:
        raise ValueError(
            f"examples must be at most the 1078 digits for training, got {config.examples[-1]}; "
            "lower them"
        )
    if config.batch > config.examples[-1]:
        raise ValueError(
            f"batch must be at most the {config.examples[-1]} examples, got {config.batch}; "
            "lower it"
        )
    for name in ("attainable", "tolerance"):
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(
                f"{name} must be from 0 to 1, got {getattr(config, name):g}; it is a share"
            )
    if not 0 < config.rate < np.inf:
        raise ValueError(f"rate must be above 0 and finite, got {config.rate:g}; take 0.01")
    frontend.writable("output", config.output)


def run(config: Config) -> None:
    """Diagnose bias and variance of digit classifiers, and try the remedies."""
    checked(config)
    start = time.perf_counter()
    points = measure(config, frontend.Bar("networks"))
    print(report(points, config))
    curves = {name: [points[pair] for pair in c] for name, c in curves_of(config).items()}
    plotting.bias_variance(curves, config.attainable).savefig(config.output, dpi=110)
    total = len(points) * config.seeds
    print(f"\n{total} networks, {time.perf_counter() - start:.1f} s in all.")
    print(f"Figure: {config.output}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
