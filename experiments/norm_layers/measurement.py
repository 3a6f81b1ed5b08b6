"""Options, networks with and without norms, and what is measured of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _kit as kit
from experiments._kit import classifier, typical
from jaxgrad import activations, layers, propagation, theory
from jaxgrad.layers import Layer

KINDS = {
    "plain": ("dense", "phi"),
    "batch norm before": ("dense", "batch_norm", "phi"),
    "batch norm after": ("dense", "phi", "batch_norm"),
    "layer norm before": ("dense", "layer_norm", "phi"),
}
"""What a hidden layer is made of: the norm is before or after the activation."""
TRAINING, TEST = 1078, 360
"""Examples of the training and the test set, 60 % and 20 % of the digits."""
COMPILER = {"xla_backend_optimization_level": 1}
"""The time is spent in products of matrices, which are compiled already."""


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the comparison of norms, on scikit-learn's digits."""

    seeds: int = kit.option(7, "Networks for each kind, variance and rate.", minimum=2)
    output: Path = kit.option(Path("results/norm_layers.png"), "Where to write the figure.")
    activation: str = kit.option("relu", "Activation.", choices=tuple(activations.TABLE))
    w_variances: tuple[float, ...] = kit.option(
        (0.5, 1.0, 2.0, 4.0), "Weight variances, times fan-in.", above=0
    )
    learning_rates: tuple[float, ...] = kit.option(
        (0.005, 0.02), "Learning rates; the best one by dev accuracy is reported.", above=0
    )
    depth: int = kit.option(20, "Hidden layers of trained networks.", minimum=3)
    width: int = kit.option(40, "Units of their hidden layers.", minimum=1)
    steps: int = kit.option(160, "Steps of training.", minimum=1)
    every: int = kit.option(40, "Steps between measurements of the gradients.", minimum=1)
    batch_size: int = kit.option(64, "Examples of a batch.", minimum=2, maximum=TRAINING)
    start_depth: int = kit.option(40, "Layers of the untrained networks.", minimum=2)
    start_width: int = kit.option(128, "Units of their layers.", minimum=1)
    start_examples: int = kit.option(
        256, "Examples in the one batch that they see.", minimum=4, maximum=TRAINING
    )
    start_seeds: int = kit.option(6, "Number of untrained networks of each kind.", minimum=2)

    def check(self) -> None:
        """Evaluations must divide the steps."""
        if self.steps % self.every:
            raise ValueError(
                f"steps must be a multiple of every, got {self.steps} and {self.every}"
            )


class Start(NamedTuple):
    """Log squared gradients before training, relative to depth 0, of one kind."""

    measured: np.ndarray  # [seeds, variances, depth]
    predicted: np.ndarray  # at infinite width and for a large batch, [variances, depth]

    def growth(self) -> list[np.ndarray]:
        """Per layer in the deeper half: `[seeds, variances]`, and predicted `[variances]`."""
        return [typical.per_layer(logs, logs.shape[-1] // 2) for logs in self]


class Trained(NamedTuple):
    """Training of one kind, `[seeds, variances, rates, ...]` or the best rate only."""

    gradient: Any  # log10 of its norm at the input of each layer, [..., evaluations, layers]
    dev: Any  # accuracy on the dev set with running statistics, [..., evaluations]
    train: Any  # accuracy after the last step, with running statistics
    test: Any
    test_batch: Any  # accuracy with statistics of the test set itself
    rate: Any = None  # index of the rate of best mean dev accuracy, [variances]

    def best(self) -> Trained:
        """Those with the rate of best mean dev accuracy."""
        rate = np.argmax(self.dev[..., -1].mean(axis=0), axis=-1)
        variance = np.arange(len(rate))
        return Trained(*(part[:, variance, rate] for part in self[:-1]), rate=rate)

    def ratio(self) -> np.ndarray:
        """Log10 of the first layer's gradient over the last's, NaN where lost, `[..., evals]`."""
        with np.errstate(invalid="ignore"):
            return self.gradient[..., 0] - self.gradient[..., -1]


class Results(NamedTuple):
    """All measurements, by kind; of training those at the best rates."""

    start: dict[str, Start]
    trained: dict[str, Trained]


def block(kind: str, width: int, activation: str, w_variance: Any = 1.0) -> Layer:
    """A hidden layer; biases start at 0."""
    parts = {
        "dense": layers.dense(width, w_variance=w_variance, bias=True),
        "phi": layers.activation(activation),
        "batch_norm": layers.batch_norm(1e-5),
        "layer_norm": layers.layer_norm(1e-5),
    }
    return layers.sequential(*(parts[name] for name in KINDS[kind]))


def network(kind: str, activation: str, width: int, depth: int) -> Layer:
    """A classifier with `depth` hidden layers, the first of which is linear."""
    first, last = layers.dense(width, bias=True), layers.dense(10, bias=True)
    return layers.sequential(first, layers.repeat(block(kind, width, activation), depth - 1), last)


def draw(options: Options, width: int, depth: int, count: int) -> tuple[np.ndarray, Any]:
    """Seeds, and for each a plain network of weight variance 1 that all comparisons start from."""
    layer = network("plain", options.activation, width, depth)

    def one(seed):
        key = jax.random.fold_in(jax.random.key(2), seed)
        return layer.draw((64,), key=key, dtype=jnp.float32)[0]

    seeds = options.first_seed + np.arange(count)
    return seeds, kit.mapped(one, seeds)


def prepare(drawn: Any, kind: str, depth: int, w_variance: Any) -> Any:
    """One of the networks, cut to `depth`, with another weight variance, and with norms."""
    first, (dense, phi), last = drawn
    width = last["kernel"].shape[0]
    norm = {"scale": jnp.ones((depth - 1, width)), "shift": jnp.zeros((depth - 1, width))}
    # All kinds and depths start from the same weights.
    dense, phi = jax.tree.map(lambda a: a[: depth - 1], (dense, phi))
    first, dense = (p | {"kernel": p["kernel"] * jnp.sqrt(w_variance)} for p in (first, dense))
    parts = {"dense": dense, "phi": phi, "batch_norm": norm, "layer_norm": norm}
    return first, tuple(parts[name] for name in KINDS[kind]), last


def gradients(kind: str, activation: str, params: Any, examples: kit.Examples) -> jax.Array:
    """Log10 of the norm of the loss's gradient with respect to each repeated layer's inputs.

    Those with respect to weights are alike in all layers even where gradients vanish: the gradient
    has become small on its way back where the signal is still large.
    """
    first, hidden, last = params
    copies, width, _ = hidden[0]["kernel"].shape
    layer = block(kind, width, activation)

    def through(h, parts):
        tap, params = parts
        # Without a state, norms take the statistics of the batch, as in training.
        return layer.apply(params, None, h + tap)[0], None

    def loss(taps):
        # Taps are zeros, so that the gradient with respect to them is that of what they add to.
        h, _ = layers.dense(width, bias=True).apply(first, None, examples.x)
        h, _ = jax.lax.scan(through, h, (taps, hidden))
        outputs, _ = layers.dense(10, bias=True).apply(last, None, h)
        return classifier.cross_entropy(outputs, examples.labels)

    gradient = jax.grad(loss)(jnp.zeros((copies, len(examples.x), width)))
    return jnp.log10(jnp.sum(jnp.square(gradient), axis=(1, 2))) / 2


def train(kind: str, drawn: Any, sets: Any, options: Options) -> Trained:
    """One program for all networks of `draw`, variances and rates; those with the best rates."""
    size, (training, dev, test) = (options.activation, options.width, options.depth), sets
    layer = network(kind, *size)
    # The gradients are measured on as many examples as a batch has.
    few = jax.tree.map(lambda a: a[: options.batch_size], training)

    def score(params, state, examples):
        outputs = classifier.logits(layer, params, state, examples.x)
        return classifier.accuracy(outputs, examples.labels)

    def evaluate(params, state):
        accuracy = score(params, state, dev)
        return 1 - accuracy, (gradients(kind, options.activation, params, few), accuracy)

    how: dict[str, Any] = {"evaluate": evaluate, "every": options.every}
    how |= {"steps": options.steps, "batch_size": options.batch_size}

    def one(seeded, w_variance, rate):
        key = jax.random.fold_in(jax.random.key(3), seeded[0])
        params, optimizer = (
            prepare(seeded[1], kind, options.depth, w_variance),
            optax.sgd(rate, 0.9),
        )
        fit = classifier.train(layer, params, optimizer, training, key=key, **how)
        gradient, dev = fit.record
        trained, tested = (score(fit.params, fit.state, part) for part in (training, test))
        return Trained(gradient, dev, trained, tested, score(fit.params, None, test))

    grid = (np.asarray(values) for values in (options.w_variances, options.learning_rates))
    return kit.mapped(one, drawn, *grid, compiler_options=COMPILER).best()


def start(kind: str, drawn: Any, x: Any, options: Options) -> Start:
    """Gradients of networks of `draw` that are not trained, measured and predicted."""
    width, depth = options.start_width, options.start_depth
    repeated = layers.repeat(block(kind, width, options.activation), depth)

    def measured(seeded, w_variance):
        first, copies, _ = prepare(seeded[1], kind, depth + 1, w_variance)
        h, _ = layers.dense(width, bias=True).apply(first, None, x)
        key = jax.random.fold_in(jax.random.key(4), seeded[0])
        return propagation.probe(repeated, copies, h, key=key).log_gradient

    def predicted(w_variance):
        first = layers.dense(width, w_variance=w_variance, bias=True).predict(moments)
        # Gradients count from the input of the first repeated layer.
        first = replace(first, log_gradient=jnp.zeros_like(first.log_q))
        scaled = block(kind, width, options.activation, w_variance)
        return propagation.predict(layers.repeat(scaled, depth), first).log_gradient

    variances = np.asarray(options.w_variances)
    values = kit.mapped(measured, drawn, variances, compiler_options=COMPILER)
    moments = theory.moments_of(np.asarray(x, np.float64), gap=True)
    return Start(values.astype(np.float64), np.stack([predicted(float(v)) for v in variances]))


def measure(options: Options, progress: kit.Progress = None) -> Results:
    """Measure every kind, untrained and trained."""
    digits, key = kit.load("digits"), jax.random.key(options.first_seed)
    sets = kit.split(digits.x, digits.labels, (0.6, 0.2, 0.2), key=key)
    drawn = draw(options, options.width, options.depth, options.seeds)
    deep = draw(options, options.start_width, options.start_depth + 1, options.start_seeds)
    x = sets[0].x[: options.start_examples]
    jobs: dict[Any, Any] = {("start", k): partial(start, k, deep, x, options) for k in KINDS}
    jobs |= {("trained", kind): partial(train, kind, drawn, sets, options) for kind in KINDS}
    results = kit.in_threads(jobs, progress)
    return Results(*({kind: results[part, kind] for kind in KINDS} for part in Results._fields))
