"""Options and training runs: searches, optimizers, schedules and clipping, in two programs."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
MOMENTUM = 0.9
OPTIMIZERS = ("SGD", "momentum", "Nesterov", "Adam")
SCHEDULES = ("constant", "step", "exponential", "1/t", "cosine")
CHOOSING = 3
"""Number of seeds that choose an optimizer's learning rate; other seeds measure it."""
CHUNK = 64
"""Runs that are trained together; the program is compiled for this many."""
# A network that diverges counts as wrong on every example.
DIVERGED_ERROR = 1.0

SPACE = {
    "learning_rate": search.log_uniform(1e-6, 10.0),
    "l2": search.log_uniform(1e-6, 10.0),
    "keep_prob": search.uniform(0.05, 1.0),
}
"""As in the course notes: `10 ** uniform(-6, 1)` for learning rate and lambda."""
RANDOM = {
    "log scale": SPACE,
    "learning rate on a linear scale": SPACE | {"learning_rate": search.uniform(1e-6, 10.0)},
    "lambda on a linear scale": SPACE | {"l2": search.uniform(1e-6, 10.0)},
    "keep_prob on a log scale": SPACE | {"keep_prob": search.log_uniform(0.05, 1.0)},
}
METHODS = (*RANDOM, "grid", "coarse to fine")


@dataclass(frozen=True)
class Options(_kit.Options):
    """Options of the searches and of the comparison of optimizers, on scikit-learn's digits."""

    grid: int = option(
        3, "Values of each of 3 hyper-parameters; a search has GRID^3 runs.", minimum=2
    )
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
        """Raise ValueError if options do not fit together."""
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
    """Trained networks.

    Attributes:
      dev, test: errors, `[..., runs]`.
      final: training loss at the end; NaN where it is not finite.
      losses: of each step's batch, `[..., runs, steps]`; NaN where not finite.
      diverged: whether an output is not finite.
    """

    dev: Any
    test: Any
    final: Any
    losses: Any
    diverged: Any


class Result(NamedTuple):
    """All runs.

    Attributes:
      searches: `[methods, searches, runs]`, in the order in which they were tried.
      learning_rates: those of the searches, same shape.
      best_rates: the best learning rate of each optimizer, `[optimizers]`.
      optimizers: runs with that rate, `[optimizers, seeds]`.
      annealed: momentum from its best rate and from a high one, `[schedules, 2, seeds]`.
      clipped: deep networks without and with clipping, `[2, rates, seeds]`.
      traces: how often each of the two programs was traced.
    """

    searches: Runs
    learning_rates: np.ndarray
    best_rates: np.ndarray
    optimizers: Runs
    annealed: Runs
    clipped: Runs
    traces: tuple[int, int]


def schedule(index: Any, learning_rate: Any, steps: int) -> Callable[[jax.Array], jax.Array]:
    """One of `SCHEDULES`, starting from `learning_rate`; its index is data."""
    # A tenth of the rate after half of the steps, and again after three quarters.
    tenths = {steps // 2: 0.1, 3 * steps // 4: 0.1}
    options = (
        optax.constant_schedule(learning_rate),
        optax.piecewise_constant_schedule(learning_rate, tenths),
        optax.exponential_decay(learning_rate, steps, 0.01),
        schedules.inverse_time(learning_rate, 20 / steps),
        optax.cosine_decay_schedule(learning_rate, steps),
    )
    # All schedules are computed and one is selected, so one program serves all.
    return lambda step: jnp.stack([jnp.asarray(f(step), jnp.float32) for f in options])[index]


def optimizer(index: Any, learning_rate: Any) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`; its index is data, so that all are one program."""
    options = (
        optax.identity(),
        optax.trace(MOMENTUM),
        optax.trace(MOMENTUM, nesterov=True),
        optax.scale_by_adam(),
    )

    def update(updates, state, params=None):
        pairs = [one.update(updates, s, params) for one, s in zip(options, state, strict=True)]
        updates, state = zip(*pairs, strict=True)

        def select(*values):
            # With mapped runs this is faster than an index into a stack.
            result = values[0]
            for i, value in enumerate(values[1:], 1):
                result = jnp.where(index == i, value, result)
            return result

        return jax.tree.map(select, *updates), state

    def init(params):
        return tuple(one.init(params) for one in options)

    selected = optax.GradientTransformation(init, update)
    return optax.chain(selected, optax.scale_by_learning_rate(learning_rate))


def train(
    network: layers.Layer,
    transformation: optax.GradientTransformation,
    point: Mapping[str, jax.Array],
    data: tuple[jax.Array, ...],
    options: Options,
) -> Runs:
    """Train one network and measure it."""
    x, labels, orders = data
    order = orders[point["split"]]
    # Consecutive parts of the shuffled data: training, dev and test.
    ends = (0, options.train, options.train + options.dev, len(x))
    parts = [order[slice(*pair)] for pair in itertools.pairwise(ends)]
    # One scale for all pixels, since some are constant in a small training set.
    examples = _kit.standardized(
        [Examples(x[part], labels[part]) for part in parts], per_feature=False
    )
    key_init, key_fit = jax.random.split(jax.random.key(point["run"]))
    params, _ = network.draw(x.shape[1:], key=key_init, dtype=jnp.float32)
    fit = classifier.train(
        network,
        params,
        transformation,
        examples[0],
        key=key_fit,
        steps=options.steps,
        batch_size=options.batch_size,
        penalty=lambda params: regularization.l2(params, point["l2"], examples=options.train),
    )
    logits = [classifier.logits(network, fit.params, fit.state, part.x) for part in examples]
    diverged = ~jnp.all(jnp.stack([jnp.all(jnp.isfinite(part)) for part in logits]))
    dev, test = (
        jnp.where(diverged, DIVERGED_ERROR, classifier.error_rate(logits[i], examples[i].labels))
        for i in (1, 2)
    )
    losses = (classifier.cross_entropy(logits[0], examples[0].labels), fit.loss)
    final, batches = (jnp.where(jnp.isfinite(loss), loss, jnp.nan) for loss in losses)
    return Runs(dev, test, final, batches, diverged)


def shallow(point: Mapping[str, jax.Array], data: tuple[jax.Array, ...], options: Options) -> Runs:
    """Train two hidden layers with dropout, without biases, whose draws compile slowly."""
    hidden = (
        # He's variance keeps the signal of a ReLU network level.
        layers.dense(options.width, w_variance=2.0),
        layers.activation("relu"),
        layers.dropout(1 - point["keep_prob"]),
    )
    network = layers.sequential(*hidden, *hidden, layers.dense(CLASSES))
    rate = schedule(point["schedule"], point["learning_rate"], options.steps)
    return train(network, optimizer(point["optimizer"], rate), point, data, options)


def deep(point: Mapping[str, jax.Array], data: tuple[jax.Array, ...], options: Options) -> Runs:
    """Train a deep network whose gradients explode and are clipped to the norm `max_norm`."""
    hidden = layers.sequential(
        layers.dense(options.width, w_variance=options.w_variance), layers.activation("relu")
    )
    others = layers.repeat(hidden, options.depth - 1)
    network = layers.sequential(hidden, others, layers.dense(CLASSES))
    # An infinite norm clips nothing, so both cases are one program.
    clip = optax.clip_by_global_norm(point["max_norm"])
    clipped = optax.chain(clip, optax.sgd(point["learning_rate"]))
    return train(network, clipped, point, data, options)


def compiled(
    function: Callable[..., Runs], options: Options, advance: Callable[[int], Any], traces: Counter
) -> Callable[..., Runs]:
    """Return a function that trains many runs, compiled once, in chunks spread over all devices.

    Args:
      function: trains one run, such as `shallow`.
      options: of the experiment.
      advance: called with the number of runs that were trained.
      traces: counts how often the function was traced.

    Returns:
      A function of points whose shapes broadcast; its results have the common shape.
    """
    digits = _kit.load("digits")
    generator, splits = np.random.default_rng(0), max(options.searches, CHOOSING + options.seeds)
    orders = np.stack([generator.permutation(len(digits.x)) for _ in range(splits)])
    x, orders = digits.x.astype(np.float32), orders.astype(np.int32)
    data = tuple(map(jnp.asarray, (x, digits.labels, orders)))

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
        shape = np.broadcast_shapes(*map(np.shape, points.values()))
        flat = {name: np.broadcast_to(v, shape).ravel() for name, v in points.items()}
        count, parts = math.prod(shape), []
        for start in range(0, count, chunk):
            # The last chunk repeats its last run, so that all chunks have one shape.
            rows = np.minimum(np.arange(start, start + chunk), count - 1)
            # Fixed types, since a program is compiled again for any other type.
            kinds = {"i": np.int32, "f": np.float32}
            part = {k: jnp.asarray(v[rows], kinds[v.dtype.kind]) for k, v in flat.items()}
            parts.append(jax.tree.map(np.asarray, call(part, data)))
            advance(min(chunk, count - start))
        whole = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
        return jax.tree.map(lambda array: array.reshape(*shape, *array.shape[1:]), whole)

    return train_all


def coarse_to_fine(
    keys: jax.Array, score: Callable[[Any, int], Any], options: Options
) -> dict[str, np.ndarray]:
    """Return the points that `training.search.search` tries for each key, `[searches, runs]`.

    All searches do a round together, since each alone would compile its own program.
    `score` takes points `[searches, runs of a round]` and the number of the first run.
    """
    count = options.budget // options.rounds
    spaces: list[search.Space] = [SPACE] * len(keys)
    rounds = []
    for i in range(options.rounds):
        points = [
            search.draw(space, count, key=jax.random.fold_in(key, i))
            for key, space in zip(keys, spaces, strict=True)
        ]
        rounds.append(stack(points))
        scores = score(rounds[-1], i * count)
        spaces = [
            search.narrow(*one, keep=options.keep)
            for one in zip(spaces, points, scores, strict=True)
        ]
    return {name: np.concatenate([r[name] for r in rounds], axis=1) for name in SPACE}


def stack(points: Sequence[search.Points]) -> dict[str, np.ndarray]:
    """Points of many searches, `[searches, runs]`."""
    return {name: np.stack([np.asarray(one[name]) for one in points]) for name in SPACE}


def run_searches(program: Callable[..., Runs], options: Options) -> tuple[Runs, np.ndarray]:
    """Train the runs of every method, `[methods, searches, runs]`; also return learning rates.

    Runs of the same search and number have the same data and first weights with every method.
    """
    keys = jax.random.split(jax.random.key(0), options.searches)
    # In random order, since half of a grid in its own order would have one learning rate only.
    orders = np.random.default_rng(1).permuted(
        np.tile(np.arange(options.budget), (options.searches, 1)), axis=1
    )
    points = [
        stack([search.draw(space, options.budget, key=jax.random.fold_in(k, 0)) for k in keys])
        for space in RANDOM.values()
    ]
    grid = search.grid(SPACE, options.grid)
    points.append({name: np.asarray(values)[orders] for name, values in grid.items()})
    splits = np.arange(options.searches)[:, None]
    momentum = {"optimizer": OPTIMIZERS.index("momentum"), "schedule": 0, "split": splits}

    def trained(points, first=0):
        index = first + np.arange(points["learning_rate"].shape[-1])
        return program(**points, **momentum, run=splits * options.budget + index)

    # Only the last method depends on results; the others run in one call.
    independent = trained({name: np.stack([one[name] for one in points]) for name in SPACE})
    rounds: list[Runs] = []

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


def measure(
    options: Options, progress: Callable[[int, int], Any] = lambda done, total: None
) -> Result:
    """Run the searches, and compare optimizers, schedules and clipping."""
    trained, traces = Counter(), Counter()

    def advance(runs):
        trained["runs"] += runs
        progress(trained["runs"], network_count(options))

    program, clipping = (compiled(kind, options, advance, traces) for kind in (shallow, deep))
    searches, learning_rates = run_searches(program, options)

    plain = {"l2": 0.0, "keep_prob": 1.0}
    # The seeds that choose a rate would favour it, so others measure it.
    choosing, seeds = (
        {"split": s, "run": 10**6 + s}
        for s in np.split(np.arange(CHOOSING + options.seeds), [CHOOSING])
    )
    space = {"learning_rate": SPACE["learning_rate"]}
    points = search.draw(space, options.learning_rates, key=jax.random.key(1))
    rates = np.asarray(points["learning_rate"])[:, None]
    index = np.arange(len(OPTIMIZERS))[:, None]
    trial = program(
        learning_rate=rates, optimizer=index[..., None], schedule=0, **plain, **choosing
    )
    best = rates[quickest(trial, options)]
    momentum = OPTIMIZERS.index("momentum")
    return Result(
        searches,
        learning_rates,
        best[:, 0],
        program(learning_rate=best, optimizer=index, schedule=0, **plain, **seeds),
        program(
            learning_rate=np.array([best[momentum, 0], options.high_rate])[:, None],
            optimizer=momentum,
            schedule=np.arange(len(SCHEDULES))[:, None, None],
            **plain,
            **seeds,
        ),
        clipping(
            max_norm=np.array([np.inf, options.max_norm])[:, None, None],
            learning_rate=np.array(options.deep_rates)[:, None],
            l2=0.0,
            **seeds,
        ),
        (traces["shallow"], traces["deep"]),
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
