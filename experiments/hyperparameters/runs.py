"""Options and training runs: searches, optimizers, schedules and clipping, in two programs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from experiments import _kit
from experiments._kit import Examples, classifier, option
from jaxgrad import layers
from jaxgrad.training import regularization, schedules, search

CLASSES = 10
OPTIMIZERS = ("SGD", "momentum", "Nesterov", "Adam")
MOMENTUM = OPTIMIZERS.index("momentum")
SCHEDULES = ("constant", "step", "exponential", "1/t", "cosine")
CHOOSING = 3  # seeds that choose an optimizer's learning rate; other seeds measure it
CHUNK = 64  # runs that are trained together; the program is compiled for this many
DIVERGED_ERROR = 1.0  # a network that diverges counts as wrong on every example

# As in the course notes: 10 ** uniform(-6, 1) for learning rate and lambda.
SPACE = {
    "learning_rate": search.log_uniform(1e-6, 10.0),
    "l2": search.log_uniform(1e-6, 10.0),
    "keep_prob": search.uniform(0.05, 1.0),
}
RANDOM = {
    "log scale": SPACE,
    "learning rate on a linear scale": SPACE | {"learning_rate": search.uniform(1e-6, 10.0)},
    "lambda on a linear scale": SPACE | {"l2": search.uniform(1e-6, 10.0)},
    "keep_prob on a log scale": SPACE | {"keep_prob": search.log_uniform(0.05, 1.0)},
}
METHODS = (*RANDOM, "grid", "coarse to fine")


@dataclass(frozen=True)
class Options(_kit.FigureOptions):
    """Options of the searches and of the comparison of optimizers, on scikit-learn's digits."""

    grid: int = option(3, "Values of each of 3 numbers; a search has GRID^3 runs.", minimum=2)
    rounds: int = option(3, "Rounds of the search from coarse to fine.", minimum=1)
    keep: float = option(0.34, "Share of a round's runs to search next.", above=0, maximum=1)
    searches: int = option(12, "Repetitions of each search, with data of its own.", minimum=2)
    works: float = option(0.1, "Dev error below which a run works.", above=0, maximum=1)
    learning_rates: int = option(32, "Learning rates that each optimizer tries.", minimum=1)
    threshold: float = option(0.1, "Training loss to be reached.", above=0)
    high_rate: float = option(0.1, "Learning rate to be annealed beside the best.", above=0)
    seeds: int = option(16, "Networks for each optimizer and schedule.", minimum=2)
    train: int = option(320, "Training examples.", minimum=1)
    dev: int = option(600, "Dev examples; the rest are for the test.", minimum=1)
    width: int = option(32, "ReLU units of each hidden layer.", minimum=1)
    steps: int = option(300, "Training steps.", minimum=1)
    batch_size: int = option(16, "Examples in a batch.", minimum=1)
    depth: int = option(16, "Hidden layers of the deep networks, 2 elsewhere.", minimum=2)
    w_variance: float = option(3.0, "Their weight variance; 2 / fan-in is level.", minimum=0)
    max_norm: float = option(3.0, "Global norm to which gradients are clipped.", above=0)
    deep_rates: tuple[float, ...] = option((0.003, 0.01, 0.03, 0.1), "Their rates.", above=0)
    output: Path = option(Path("results/hyperparameters.png"), "Where to write the figure.")

    @property
    def budget(self) -> int:
        """Runs of one search."""
        return self.grid**3

    @property
    def epoch(self) -> int:
        """Steps of one epoch."""
        return self.train // self.batch_size

    def check(self) -> None:
        """Parts and batches must fit, an epoch must be trained, and rounds divide a search."""
        rest, runs = len(_kit.load("digits").x) - self.train, self.budget // self.rounds
        for name, value, least, most in (
            ("dev", self.dev, 1, rest - 1),
            ("batch_size", self.batch_size, 1, self.train),
            ("steps", self.steps, self.epoch, math.inf),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}, got {value}")
        if self.budget % self.rounds or runs < 2:
            raise ValueError(
                f"rounds must divide the {self.budget} runs of a search into two or more, got "
                f"{self.rounds}; change it or grid"
            )


class Runs(NamedTuple):
    """Trained networks."""

    dev: Any  # error, [..., runs]
    test: Any
    final: Any  # training loss at the end; NaN where it is not finite
    losses: Any  # of each step's batch, [..., runs, steps]; NaN where not finite
    diverged: Any  # whether an output is not finite


class Result(NamedTuple):
    """All runs."""

    searches: Runs  # [methods, searches, runs], in the order in which they were tried
    learning_rates: np.ndarray  # of the searches, same shape
    best_rates: np.ndarray  # the best learning rate of each optimizer, [optimizers]
    optimizers: Runs  # with that rate, [optimizers, seeds]
    annealed: Runs  # momentum from its best rate and from a high one, [schedules, 2, seeds]
    clipped: Runs  # deep networks without and with clipping, [2, rates, seeds]
    traces: tuple[int, int]  # how often each of the two programs was traced


def schedule(index: Any, learning_rate: Any, steps: int) -> Callable[[jax.Array], jax.Array]:
    """One of `SCHEDULES`, starting from `learning_rate`; its index is data."""
    # A tenth of the rate after half of the steps, and again after three quarters.
    tenths = {steps // 2: 0.1, 3 * steps // 4: 0.1}
    choices = (
        optax.constant_schedule(learning_rate),
        optax.piecewise_constant_schedule(learning_rate, tenths),
        optax.exponential_decay(learning_rate, steps, 0.01),
        schedules.inverse_time(learning_rate, 20 / steps),
        optax.cosine_decay_schedule(learning_rate, steps),
    )
    # All schedules are computed and one is selected, so one program serves all.
    return lambda step: jnp.stack([jnp.asarray(f(step), jnp.float32) for f in choices])[index]


def optimizer(index: Any, learning_rate: Any) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`; its index is data, so that all are one program."""
    momentum, nesterov = optax.trace(0.9), optax.trace(0.9, nesterov=True)
    choices = (optax.identity(), momentum, nesterov, optax.scale_by_adam())

    def init(params):
        return tuple(choice.init(params) for choice in choices)

    def update(updates, state, params=None):
        pairs = [c.update(updates, s, params) for c, s in zip(choices, state, strict=True)]
        updates, state = zip(*pairs, strict=True)
        # With mapped runs this is faster than an index into a stack.
        return jax.tree.map(lambda *values: jax.lax.select_n(index, *values), *updates), state

    selected = optax.GradientTransformation(init, update)
    return optax.chain(selected, optax.scale_by_learning_rate(learning_rate))


def train(network: Any, steps: Any, point: Mapping[str, Any], data: Any, options: Options) -> Runs:
    """Train one network by the optax transformation `steps` and measure it."""
    x, labels, orders = data
    order = orders[point["split"]]
    # Consecutive parts of the shuffled data: training, dev and test.
    ends = (0, options.train, options.train + options.dev, len(x))
    rows = [order[start:end] for start, end in itertools.pairwise(ends)]
    # One scale for all pixels, since some are constant in a small training set.
    parts = _kit.standardized([Examples(x[i], labels[i]) for i in rows], per_feature=False)
    key_init, key_fit = jax.random.split(jax.random.key(point["run"]))
    params, _ = network.draw(x.shape[1:], key=key_init, dtype=jnp.float32)
    fit = classifier.train(
        network,
        params,
        steps,
        parts[0],
        key=key_fit,
        steps=options.steps,
        batch_size=options.batch_size,
        penalty=lambda params: regularization.l2(params, point["l2"], examples=options.train),
    )
    logits = [classifier.logits(network, fit.params, fit.state, part.x) for part in parts]
    diverged = ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(part)) for part in logits]))
    errors = [classifier.error_rate(o, p.labels) for o, p in zip(logits, parts, strict=True)]
    dev, test = (jnp.where(diverged, DIVERGED_ERROR, error) for error in errors[1:])
    losses = (classifier.cross_entropy(logits[0], parts[0].labels), fit.loss)
    final, batches = (jnp.where(jnp.isfinite(loss), loss, jnp.nan) for loss in losses)
    return Runs(dev, test, final, batches, diverged)


def shallow(point: Mapping[str, Any], data: Any, options: Options) -> Runs:
    """Train two hidden layers with dropout, without biases, whose draws compile slowly."""
    # He's variance keeps the signal of a ReLU network level.
    dense, relu = layers.dense(options.width, w_variance=2.0), layers.activation("relu")
    hidden = (dense, relu, layers.dropout(1 - point["keep_prob"]))
    network = layers.sequential(*hidden, *hidden, layers.dense(CLASSES))
    rate = schedule(point["schedule"], point["learning_rate"], options.steps)
    return train(network, optimizer(point["optimizer"], rate), point, data, options)


def deep(point: Mapping[str, Any], data: Any, options: Options) -> Runs:
    """Train a deep network whose gradients explode and are clipped to the norm `max_norm`."""
    dense = layers.dense(options.width, w_variance=options.w_variance)
    hidden = layers.sequential(dense, layers.activation("relu"))
    others = layers.repeat(hidden, options.depth - 1)
    network = layers.sequential(hidden, others, layers.dense(CLASSES))
    # An infinite norm clips nothing, so both cases are one program.
    clip, sgd = optax.clip_by_global_norm(point["max_norm"]), optax.sgd(point["learning_rate"])
    return train(network, optax.chain(clip, sgd), point, data, options)


def compiled(
    function: Callable[..., Runs], options: Options, advance: Callable[[int], Any], traces: Counter
) -> Callable[..., Runs]:
    """A function that trains a network at each of many points by `function`, compiled once.

    Its points broadcast; they are trained in chunks spread over all devices. `advance` is called
    with the size of each chunk, and `traces` counts how often `function` was traced.
    """
    digits = _kit.load("digits")
    generator, splits = np.random.default_rng(0), max(options.searches, CHOOSING + options.seeds)
    orders = np.stack([generator.permutation(len(digits.x)) for _ in range(splits)])
    data = (digits.x.astype(np.float32), digits.labels, orders.astype(np.int32))

    def mapped(points, data):
        traces[function.__name__] += 1
        return jax.vmap(lambda point: function(point, data, options))(points)

    mesh = Mesh(np.array(jax.devices()), ("runs",))
    # The next multiple of the number of devices.
    chunk = -(-CHUNK // mesh.size) * mesh.size
    specs = {"in_specs": (P("runs"), P()), "out_specs": P("runs")}
    # check_vma would refuse a scan that starts from a constant.
    call = jax.jit(jax.shard_map(mapped, mesh=mesh, check_vma=False, **specs))

    def train_all(**points):
        arrays = dict(zip(points, np.broadcast_arrays(*points.values()), strict=True))
        shape, count, parts = arrays["run"].shape, arrays["run"].size, []
        for start in range(0, count, chunk):
            # The last chunk repeats its last run, so that all chunks have one shape.
            rows = np.minimum(np.arange(start, start + chunk), count - 1)
            # Fixed types, since a program is compiled again for any other type.
            kinds = {"i": np.int32, "f": np.float32}
            part = {k: v.ravel()[rows].astype(kinds[v.dtype.kind]) for k, v in arrays.items()}
            parts.append(jax.device_get(call(part, data)))
            advance(min(chunk, count - start))
        whole = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
        return jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]), whole)

    return train_all


def stack(points: Any) -> Any:
    """Points of several searches or methods, by name, in arrays with one more axis."""
    return jax.tree.map(lambda *arrays: np.stack(arrays), *points)


def coarse_to_fine(
    keys: jax.Array, score: Callable[[Any, int], Any], options: Options
) -> dict[str, np.ndarray]:
    """Return the points that `training.search.search` tries for each key, `[searches, runs]`.

    All searches do a round together, since each alone would compile its own program.
    `score` takes points `[searches, runs of a round]` and the number of the first run.
    """
    count, rounds = options.budget // options.rounds, []
    spaces: list[search.Space] = [SPACE] * len(keys)
    for i in range(options.rounds):
        points = [
            search.draw(space, count, key=jax.random.fold_in(key, i))
            for key, space in zip(keys, spaces, strict=True)
        ]
        rounds.append(stack(points))
        results = zip(spaces, points, score(rounds[-1], i * count), strict=True)
        spaces = [search.narrow(*result, keep=options.keep) for result in results]
    return {name: np.concatenate([r[name] for r in rounds], axis=1) for name in SPACE}


def run_searches(program: Callable[..., Runs], options: Options) -> tuple[Runs, np.ndarray]:
    """Train the runs of every method, `[methods, searches, runs]`; also return learning rates.

    Runs of the same search and number have the same data and first weights with every method.
    """
    keys = jax.random.split(jax.random.key(0), options.searches)
    points = [
        stack([search.draw(space, options.budget, key=jax.random.fold_in(k, 0)) for k in keys])
        for space in RANDOM.values()
    ]
    # In random order, since half of a grid in its own order would have one learning rate only.
    orders = np.tile(np.arange(options.budget), (options.searches, 1))
    orders = np.random.default_rng(1).permuted(orders, axis=1)
    grid = search.grid(SPACE, options.grid)
    points.append({name: np.asarray(values)[orders] for name, values in grid.items()})
    splits = np.arange(options.searches)[:, None]
    momentum = {"optimizer": MOMENTUM, "schedule": 0, "split": splits}

    def trained(points, first=0):
        index = first + np.arange(points["learning_rate"].shape[-1])
        return program(**points, **momentum, run=splits * options.budget + index)

    # Only the last method depends on results; the others run in one call.
    independent, rounds = trained(stack(points)), []

    def score(points, first):
        rounds.append(trained(points, first))
        return rounds[-1].dev

    points.append(coarse_to_fine(keys, score, options))
    last = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1)[None], *rounds)
    runs = jax.tree.map(lambda *arrays: np.concatenate(arrays), independent, last)
    return runs, np.stack([one["learning_rate"] for one in points])


def network_count(options: Options) -> int:
    """Number of networks that are trained."""
    selection = len(OPTIMIZERS) * (CHOOSING * options.learning_rates + options.seeds)
    others = 2 * (len(SCHEDULES) + len(options.deep_rates)) * options.seeds
    return len(METHODS) * options.searches * options.budget + selection + others


def measure(options: Options, progress: _kit.Progress = None) -> Result:
    """Run the searches, and compare optimizers, schedules and clipping."""
    counts = Counter()  # trained networks, and traces of each program

    def advance(networks):
        counts["networks"] += networks
        if progress is not None:
            progress(counts["networks"], network_count(options))

    program, clipping = (compiled(kind, options, advance, counts) for kind in (shallow, deep))
    searches, learning_rates = run_searches(program, options)

    plain = {"l2": 0.0, "keep_prob": 1.0}
    # The seeds that choose a rate would favour it, so others measure it.
    splits = np.split(np.arange(CHOOSING + options.seeds), [CHOOSING])
    choosing, seeds = ({"split": s, "run": 10**6 + s} for s in splits)
    space = {"learning_rate": SPACE["learning_rate"]}
    points = search.draw(space, options.learning_rates, key=jax.random.key(1))
    rates = np.asarray(points["learning_rate"])[:, None]
    index, kinds = np.arange(len(OPTIMIZERS))[:, None], np.arange(len(SCHEDULES))[:, None, None]
    trial = {"learning_rate": rates, "optimizer": index[..., None], "schedule": 0}
    best = rates[quickest(program(**trial, **plain, **choosing), options)]
    starts = np.array([best[MOMENTUM, 0], options.high_rate])[:, None]
    norms = np.array([np.inf, options.max_norm])[:, None, None]
    deep_rates = np.array(options.deep_rates)[:, None]
    return Result(
        searches,
        learning_rates,
        best[:, 0],
        program(learning_rate=best, optimizer=index, schedule=0, **plain, **seeds),
        program(learning_rate=starts, optimizer=MOMENTUM, schedule=kinds, **plain, **seeds),
        clipping(learning_rate=deep_rates, max_norm=norms, l2=0.0, **seeds),
        (counts["shallow"], counts["deep"]),
    )


def epoch_means(losses: np.ndarray, options: Options) -> np.ndarray:
    """Loss over the last epoch's batches, `[..., steps - steps of an epoch + 1]`."""
    windows = np.lib.stride_tricks.sliding_window_view(losses, options.epoch, axis=-1)
    return windows.mean(axis=-1)


def steps_until(losses: np.ndarray, options: Options) -> np.ndarray:
    """Steps after which the last epoch's loss is below the threshold; all if it never is."""
    below = epoch_means(losses, options) < options.threshold
    # Window i ends after i + epoch steps.
    return np.where(below.any(axis=-1), below.argmax(axis=-1) + options.epoch, losses.shape[-1])


def quickest(trial: Runs, options: Options) -> np.ndarray:
    """Index of the rate with the fewest steps, then the lowest loss, of `[..., rates, seeds]`."""
    steps = steps_until(trial.losses, options).mean(axis=-1)
    loss = np.nan_to_num(trial.final.mean(axis=-1), nan=np.inf)
    # The last key counts first: steps, and then the loss.
    return np.lexsort((loss, steps))[..., 0]
