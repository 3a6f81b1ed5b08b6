"""The networks of `experiments.hyperparameters`: searches, optimizers, schedules, clipping."""

from __future__ import annotations

import functools
import itertools
import math
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

from experiments import frontend
from jaxgrad import layers, training
from jaxgrad.training import normalization, regularization, schedules, search

CLASSES = 10
MOMENTUM = 0.9
OPTIMIZERS = ("SGD", "momentum", "Nesterov", "Adam")
SCHEDULES = ("constant", "step", "exponential", "1/t", "cosine")
CHOOSING = 3
"""Seeds by which an optimizer's rate is chosen; it is measured on others."""
CHUNK = 64
"""Runs that are trained at once; the program is compiled for so many."""
LOST = 1.0
"""The error of a run that diverged, so that it is the worst."""

SPACE = {
    "rate": search.log_uniform(1e-6, 10.0),
    "l2": search.log_uniform(1e-6, 10.0),
    "keep_prob": search.uniform(0.05, 1.0),
}
"""As the course notes have it: `10 ** uniform(-6, 1)` for what multiplies."""
RANDOM = {
    "log scale": SPACE,
    "rate on its own scale": SPACE | {"rate": search.uniform(1e-6, 10.0)},
    "lambda on its own scale": SPACE | {"l2": search.uniform(1e-6, 10.0)},
    "keep_prob on a log scale": SPACE | {"keep_prob": search.log_uniform(0.05, 1.0)},
}
METHODS = (*RANDOM, "grid", "coarse to fine")


@dataclass(frozen=True)
class Config:
    """Options of the searches and of the comparison of optimizers, on scikit-learn's digits."""

    grid: int = 3
    """Values of each of three hyper-parameters in a grid; its cube is the runs of every search."""
    rounds: int = 3
    """Of the search from coarse to fine, which divide its runs."""
    keep: float = 0.34
    """Share of a round's runs that count as best, and whose ranges the next round searches."""
    searches: int = 12
    """How often each search is done, with data and networks of its own, at least 2."""
    works: float = 0.1
    """Dev error below which a run counts as one that works."""
    rates: int = 32
    """How many learning rates each optimizer tries, on a log scale."""
    threshold: float = 0.1
    """Training loss to be reached."""
    annealed_rate: float = 0.1
    """Rather high learning rate of momentum, from which schedules anneal beside its best one."""
    seeds: int = 16
    """How many networks for each optimizer and schedule, at least 2."""
    train: int = 320
    """Training examples."""
    dev: int = 600
    """Dev examples; the rest, at least one, are for the test."""
    width: int = 32
    """Units of each hidden layer, of ReLU: two of them, but for the deep networks."""
    steps: int = 300
    """Of training."""
    batch_size: int = 16
    """Examples in a batch."""
    depth: int = 16
    """Hidden layers of the deep networks, whose gradients explode."""
    w_variance: float = 3.0
    """Their weight variance times fan-in; 2 would keep gradients level."""
    max_norm: float = 3.0
    """Global norm at which gradients are clipped."""
    deep_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    """Learning rates of SGD for the deep networks."""
    output: Path = Path("results/hyperparameters.png")
    """Where to write the figure."""

    @property
    def budget(self) -> int:
        """Runs of one search."""
        return self.grid**3


class Runs(NamedTuple):
    """Trained networks.

    Attributes:
      dev, test: errors, `[..., runs]`.
      final: training loss at the end; NaN where it is not finite.
      losses: of each step's batch, `[..., runs, steps]`; likewise.
      diverged: whether an output is not finite.
    """

    dev: Any
    test: Any
    final: Any
    losses: Any
    diverged: Any


class Found(NamedTuple):
    """What is measured.

    Attributes:
      searches: `[methods, searches, runs]`, in the order tried.
      tried: their learning rates.
      rates: the best learning rate of each optimizer.
      optimizers: at that rate, `[optimizers, seeds]`.
      annealed: momentum from its best rate and from a high one, `[schedules, 2, seeds]`.
      clipped: deep networks without and with clipping, `[2, rates, seeds]`.
      traces: how often each of the two programs was traced.
    """

    searches: Runs
    tried: np.ndarray
    rates: np.ndarray
    optimizers: Runs
    annealed: Runs
    clipped: Runs
    traces: tuple[int, int]


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    images = len(digits()[0])
    for name, least, most in (
        *((name, 2, 10**6) for name in ("grid", "searches", "seeds")),
        *((name, 1, 10**6) for name in ("rounds", "rates", "width", "steps")),
        ("depth", 2, 10**6),
        ("train", 1, images - 2),
        ("dev", 1, images - 1 - config.train),
        ("batch_size", 1, config.train),
        *((name, 1e-6, 10**6) for name in ("annealed_rate", "threshold", "max_norm")),
        ("w_variance", 0, 10**6),
        *((name, 1e-6, 1) for name in ("keep", "works")),
    ):
        value = getattr(config, name)
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, got {value}; correct it")
    if config.budget % config.rounds or config.budget // config.rounds < 2:
        raise ValueError(
            f"rounds must divide the {config.budget} runs of a search into two or more, got "
            f"{config.rounds}; change it or grid"
        )
    if config.steps < config.train // config.batch_size:
        raise ValueError(
            f"steps must be at least one epoch, {config.train // config.batch_size}, got "
            f"{config.steps}; raise it"
        )
    rates = config.deep_rates
    if not rates or len(set(rates)) < len(rates) or not all(0 < r < np.inf for r in rates):
        raise ValueError(f"deep_rates must be different numbers above 0, got {rates}; correct them")
    frontend.writable("output", config.output)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[1797, 64]` and labels."""
    from sklearn import datasets

    loaded: Any = datasets.load_digits()
    return loaded.data.astype(np.float32), loaded.target.astype(np.int32)


def scheduled(index: Any, rate: Any, steps: int) -> Callable[[jax.Array], jax.Array]:
    """One of `SCHEDULES` from `rate` on; which one is data."""
    tenths = {steps // 2: 0.1, 3 * steps // 4: 0.1}
    each = (
        optax.constant_schedule(rate),
        optax.piecewise_constant_schedule(rate, tenths),
        optax.exponential_decay(rate, steps, 0.01),
        schedules.inverse_time(rate, 20 / steps),
        optax.cosine_decay_schedule(rate, steps),
    )
    return lambda step: jnp.stack([jnp.asarray(f(step), jnp.float32) for f in each])[index]


def optimizer(index: Any, rate: Any) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`; which one is data, so that all are one program."""
    each = (
        optax.identity(),
        optax.trace(MOMENTUM),
        optax.trace(MOMENTUM, nesterov=True),
        optax.scale_by_adam(),
    )

    def update(updates, state, params=None):
        pairs = [one.update(updates, slot, params) for one, slot in zip(each, state, strict=True)]
        updates, state = zip(*pairs, strict=True)

        def of_index(*values):
            # Faster than indexing a stack of them, when runs are mapped.
            return functools.reduce(
                lambda chosen, i: jnp.where(index == i, values[i], chosen),
                range(1, len(values)),
                values[0],
            )

        return jax.tree.map(of_index, *updates), state

    chosen = optax.GradientTransformation(
        lambda params: tuple(e.init(params) for e in each), update
    )
    return optax.chain(chosen, optax.scale_by_learning_rate(rate))


def train(
    net: layers.Layer,
    optimizer: optax.GradientTransformation,
    point: Mapping[str, jax.Array],
    data: tuple[jax.Array, ...],
    config: Config,
) -> Runs:
    """Train one network and measure it."""
    x, y, orders = data
    order = orders[point["split"]]
    ends = (0, config.train, config.train + config.dev, len(x))
    rows = [order[slice(*pair)] for pair in itertools.pairwise(ends)]
    # All pixels alike: some are constant in a small training set.
    pixels = normalization.fit(x[rows[0]].reshape(-1, 1))
    x = normalization.apply(pixels, x.reshape(-1, 1)).reshape(x.shape)
    key_init, key_fit = jax.random.split(jax.random.key(point["run"]))
    params, _ = net.init(key_init, x.shape[1:], jnp.float32)

    def cost(params, x, y, key):
        logits = net.apply(params, x, key)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))

    def loss(params, state, batch, key):
        penalty = regularization.l2(params, point["l2"], examples=config.train)
        return cost(params, batch[0], batch[1], key) + penalty, state

    fitted = training.fit(
        loss,
        params,
        optimizer,
        (x[rows[0]], y[rows[0]]),
        key=key_fit,
        steps=config.steps,
        batch_size=config.batch_size,
    )
    logits = net.apply(fitted.params, x, None)
    diverged = ~jnp.all(jnp.isfinite(logits))
    wrong = jnp.argmax(logits, axis=1) != y
    dev, test = (jnp.where(diverged, LOST, jnp.mean(wrong[part])) for part in rows[1:])
    losses = (cost(fitted.params, x[rows[0]], y[rows[0]], None), fitted.loss)
    final, of_batches = (jnp.where(jnp.isfinite(loss), loss, jnp.nan) for loss in losses)
    return Runs(dev, test, final, of_batches, diverged)


def shallow(point: Mapping[str, jax.Array], data: tuple[jax.Array, ...], config: Config) -> Runs:
    """A network of two hidden layers with dropout, and no biases: their draws compile slowly."""
    hidden = (
        layers.dense(config.width, 2.0),
        layers.activation("relu"),
        layers.dropout(point["keep_prob"]),
    )
    net = layers.sequential(*hidden, *hidden, layers.dense(CLASSES))
    rate = scheduled(point["schedule"], point["rate"], config.steps)
    return train(net, optimizer(point["optimizer"], rate), point, data, config)


def deep(point: Mapping[str, jax.Array], data: tuple[jax.Array, ...], config: Config) -> Runs:
    """A deep network whose gradients explode, clipped at `max_norm`."""
    hidden = layers.sequential(
        layers.dense(config.width, config.w_variance), layers.activation("relu")
    )
    more = layers.repeat(hidden, config.depth - 1)
    net = layers.sequential(hidden, more, layers.dense(CLASSES))
    clipped = optax.chain(optax.clip_by_global_norm(point["max_norm"]), optax.sgd(point["rate"]))
    return train(net, clipped, point, data, config)


class Program:
    """A function of one run, compiled once for chunks of runs over all devices.

    `traces` counts how often it was traced.
    """

    def __init__(
        self, function: Callable[..., Runs], config: Config, advance: Callable[[int], Any]
    ):
        self.traces = 0
        self._advance = advance
        splits = max(config.searches, CHOOSING + config.seeds)
        generator = np.random.default_rng(0)
        orders = np.stack([generator.permutation(len(digits()[0])) for _ in range(splits)])
        self._data = tuple(map(jnp.asarray, (*digits(), orders.astype(np.int32))))

        def mapped(points, data):
            self.traces += 1
            return jax.vmap(lambda point: function(point, data, config))(points)

        mesh = Mesh(np.array(jax.devices()), ("runs",))
        self._chunk = -(-CHUNK // mesh.size) * mesh.size
        # check_vma would refuse a scan that starts from a constant.
        spread = jax.shard_map(
            mapped, mesh=mesh, in_specs=(P("runs"), P()), out_specs=P("runs"), check_vma=False
        )
        self._call = jax.jit(spread)

    def __call__(self, **points: Any) -> Runs:
        """Train at points of shapes that broadcast against each other; results have that shape."""
        shape = np.broadcast_shapes(*map(np.shape, points.values()))
        flat = {name: np.broadcast_to(v, shape).ravel() for name, v in points.items()}
        runs = math.prod(shape)
        parts = []
        for start in range(0, runs, self._chunk):
            rows = np.minimum(np.arange(start, start + self._chunk), runs - 1)
            chunk = {
                name: jnp.asarray(v[rows], jnp.int32 if v.dtype.kind == "i" else jnp.float32)
                for name, v in flat.items()
            }
            parts.append(jax.tree.map(np.asarray, self._call(chunk, self._data)))
            self._advance(min(self._chunk, runs - start))

        def joined(*arrays):
            whole = np.concatenate(arrays)[:runs]
            return whole.reshape(*shape, *whole.shape[1:])

        return jax.tree.map(joined, *parts)


def coarse_to_fine(
    keys: jax.Array, score: Callable[[Any, int], Any], config: Config
) -> dict[str, np.ndarray]:
    """The points that `training.search.search` tries with each of the keys, `[searches, runs]`.

    Round by round for all searches together, since each by itself would compile its own program.
    `score` takes points `[searches, runs of a round]` and the number of the first run.
    """
    count = config.budget // config.rounds
    spaces: list[search.Space] = [SPACE] * len(keys)
    rounds = []
    for i in range(config.rounds):
        drawn = [
            search.draw(space, count, key=jax.random.fold_in(key, i))
            for key, space in zip(keys, spaces, strict=True)
        ]
        rounds.append(stacked(drawn))
        scores = score(rounds[-1], i * count)
        spaces = [
            search.narrow(*found, keep=config.keep)
            for found in zip(spaces, drawn, scores, strict=True)
        ]
    return {name: np.concatenate([r[name] for r in rounds], axis=1) for name in SPACE}


def stacked(points: list[search.Points]) -> dict[str, np.ndarray]:
    """Points of many searches, `[searches, runs]`."""
    return {name: np.stack([np.asarray(one[name]) for one in points]) for name in SPACE}


def searched(program: Program, config: Config) -> tuple[Runs, np.ndarray]:
    """Every method's runs, `[methods, searches, runs]`, and their learning rates.

    The i-th runs of a search share data and first weights, whatever the method.
    """
    keys = jax.random.split(jax.random.key(0), config.searches)
    # In random order, as a grid that is half done would otherwise know one rate only.
    orders = np.random.default_rng(1).permuted(
        np.tile(np.arange(config.budget), (config.searches, 1)), axis=1
    )
    grid = search.grid(SPACE, config.grid)
    tried = [
        stacked([search.draw(space, config.budget, key=jax.random.fold_in(k, 0)) for k in keys])
        for space in RANDOM.values()
    ]
    tried.append({name: np.asarray(values)[orders] for name, values in grid.items()})
    splits = np.arange(config.searches)[:, None]
    momentum = {"optimizer": OPTIMIZERS.index("momentum"), "schedule": 0, "split": splits}

    def trained(points, first=0):
        index = first + np.arange(points["rate"].shape[-1])
        return program(**points, **momentum, run=splits * config.budget + index)

    found = trained({name: np.stack([points[name] for points in tried]) for name in SPACE})
    rounds: list[Runs] = []

    def score(points, first):
        rounds.append(trained(points, first))
        return rounds[-1].dev

    tried.append(coarse_to_fine(keys, score, config))
    last = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1)[None], *rounds)
    together = jax.tree.map(lambda *arrays: np.concatenate(arrays), found, last)
    return together, np.stack([points["rate"] for points in tried])


def count(config: Config) -> int:
    """How many networks are trained."""
    chosen = len(OPTIMIZERS) * (CHOOSING * config.rates + config.seeds)
    annealed = 2 * len(SCHEDULES) * config.seeds
    clipped = 2 * len(config.deep_rates) * config.seeds
    return len(METHODS) * config.searches * config.budget + chosen + annealed + clipped


def measure(
    config: Config, progress: Callable[[int, int], Any] = lambda done, total: None
) -> Found:
    """Search, compare optimizers and schedules, and clip."""
    done = 0

    def advance(runs):
        nonlocal done
        done += runs
        progress(done, count(config))

    program, clipping = (Program(kind, config, advance) for kind in (shallow, deep))
    searches, tried = searched(program, config)

    plain = {"l2": 0.0, "keep_prob": 1.0}
    choosing, seeds = (
        {"split": s, "run": 10**6 + s}
        for s in np.split(np.arange(CHOOSING + config.seeds), [CHOOSING])
    )
    drawn = search.draw({"rate": SPACE["rate"]}, config.rates, key=jax.random.key(1))
    rates = np.asarray(drawn["rate"])[:, None]
    which = np.arange(len(OPTIMIZERS))[:, None]
    trial = program(rate=rates, optimizer=which[..., None], schedule=0, **plain, **choosing)
    best = rates[quickest(trial, config)]
    momentum = OPTIMIZERS.index("momentum")
    return Found(
        searches,
        tried,
        best[:, 0],
        program(rate=best, optimizer=which, schedule=0, **plain, **seeds),
        program(
            rate=np.array([best[momentum, 0], config.annealed_rate])[:, None],
            optimizer=momentum,
            schedule=np.arange(len(SCHEDULES))[:, None, None],
            **plain,
            **seeds,
        ),
        clipping(
            max_norm=np.array([np.inf, config.max_norm])[:, None, None],
            rate=np.array(config.deep_rates)[:, None],
            l2=0.0,
            **seeds,
        ),
        (program.traces, clipping.traces),
    )


def epoch_means(losses: np.ndarray, config: Config) -> np.ndarray:
    """Loss over the last epoch's batches, `[..., steps - steps of an epoch + 1]`."""
    window = config.train // config.batch_size
    return np.lib.stride_tricks.sliding_window_view(losses, window, axis=-1).mean(axis=-1)


def steps_until(losses: np.ndarray, config: Config) -> np.ndarray:
    """Steps after which the last epoch's loss is below the threshold; all if it never is."""
    means = epoch_means(losses, config)
    below = means < config.threshold
    first = below.argmax(axis=-1) + config.train // config.batch_size
    return np.where(below.any(axis=-1), first, losses.shape[-1])


def quickest(trial: Runs, config: Config) -> np.ndarray:
    """The rate of fewest steps to the threshold, then least loss; of runs `[..., rates, seeds]`."""
    steps = steps_until(trial.losses, config).mean(axis=-1)
    loss = np.nan_to_num(trial.final.mean(axis=-1), nan=np.inf)
    return np.lexsort((loss, steps))[..., 0]
