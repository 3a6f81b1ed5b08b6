"""What batch and layer norm do to gradients: at the start, and while a deep network trains.

Run `python -m experiments.norm_layers`, or `--help` for its options.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _kit as kit
from experiments._kit import Claim, Estimate, classifier, figures
from jaxgrad import activations, layers, propagation, theory
from jaxgrad.layers import Layer
from jaxgrad.plotting import style

KINDS = {
    "plain": ("dense", "phi"),
    "batch norm before": ("dense", "batch_norm", "phi"),
    "batch norm after": ("dense", "phi", "batch_norm"),
    "layer norm before": ("dense", "layer_norm", "phi"),
}
"""What a hidden layer is made of: the norm is before or after the activation."""
GROWTH_TOLERANCE = 0.1
"""Difference from theory that does not matter: 10 % of the squared gradient a layer."""
LEARNS = 0.2
"""Test accuracy of a network that learns at all, twice that of chance."""
TRAINING = 1078
"""Training examples, 60 % of the digits."""
COMPILER = {"xla_backend_optimization_level": 1}
"""The time is spent in products of matrices, which are compiled already."""


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the comparison of norms, on scikit-learn's digits."""

    seeds: int = kit.option(3, "Networks for each kind, depth, variance and rate.", minimum=2)
    output: Path = kit.option(Path("results/norm_layers.png"), "Where to write the figure.")
    activation: str = kit.option("relu", "A name of jaxgrad.activations.TABLE.")
    w_variances: tuple[float, ...] = kit.option(
        (0.5, 2.0, 4.0), "Weight variances, times fan-in.", above=0
    )
    rates: tuple[float, ...] = kit.option(
        (0.002, 0.02), "Learning rates; the best one by dev accuracy is reported.", above=0
    )
    depths: tuple[int, ...] = kit.option((8, 20), "Hidden layers of trained networks.", minimum=3)
    width: int = kit.option(40, "Units of their hidden layers.", minimum=1)
    steps: int = kit.option(160, "Steps of training.", minimum=1)
    every: int = kit.option(20, "Steps between measurements of the gradients.", minimum=1)
    batch_size: int = kit.option(64, "Examples of a batch.", minimum=2, maximum=TRAINING)
    start_depth: int = kit.option(40, "Layers of the untrained networks.", minimum=2)
    start_width: int = kit.option(128, "Units of their layers.", minimum=1)
    start_examples: int = kit.option(
        256, "Examples in the one batch that they see.", minimum=4, maximum=TRAINING
    )
    start_seeds: int = kit.option(6, "Number of untrained networks of each kind.", minimum=2)

    def check(self) -> None:
        """The activation must exist, and evaluations divide the steps."""
        activations.get(self.activation)
        if self.steps % self.every:
            raise ValueError(
                f"steps must be a multiple of every, got {self.steps} and {self.every}"
            )

    @property
    def start_seed_values(self) -> range:
        """Seeds of the untrained networks."""
        return range(self.first_seed, self.first_seed + self.start_seeds)

    @property
    def critical(self) -> int:
        """Index of the weight variance that is nearest to the critical one."""
        critical = float(theory.critical(self.activation).w_variance)
        return int(np.argmin(np.abs(np.log(np.array(self.w_variances) / critical))))


class Start(NamedTuple):
    """Log squared gradients before training, relative to depth 0, of one kind."""

    measured: np.ndarray  # [seeds, variances, depth]
    predicted: np.ndarray  # at infinite width and for a large batch, [variances, depth]

    def growth(self) -> tuple[np.ndarray, np.ndarray]:
        """Per layer in the deeper half: `[seeds, variances]`, and predicted `[variances]`."""
        depth = self.measured.shape[-1]
        half = depth // 2
        slopes = ((a[..., -1] - a[..., half - 1]) / (depth - half) for a in self)
        measured, predicted = slopes
        return measured, predicted


class Trained(NamedTuple):
    """Training of one kind at one depth, `[seeds, variances, rates, ...]` or the best rate only."""

    gradient: Any  # log10 of its norm at the input of each layer, [..., evaluations, layers]
    dev: Any  # accuracy on the dev set with running statistics, [..., evaluations]
    train_loss: Any  # after the last step, with running statistics
    train: Any  # accuracy
    test_loss: Any
    test: Any
    test_batch: Any  # accuracy with statistics of the test set itself

    def best(self) -> tuple[Trained, np.ndarray]:
        """Those with the rate of best mean dev accuracy, and its index, `[variances]`."""
        rate = np.argmax(self.dev[..., -1].mean(axis=0), axis=-1)
        variance = np.arange(len(rate))
        return Trained(*(part[:, variance, rate] for part in self)), rate

    def ratio(self) -> np.ndarray:
        """Log10 of the first layer's gradient over the last's, NaN where lost, `[..., evals]`."""
        with np.errstate(invalid="ignore"):
            return self.gradient[..., 0] - self.gradient[..., -1]


@layers.layer
class Tap(Layer):
    """Adds its parameters, zeros: the gradient with respect to them is that of what passes."""

    def draw(self, shape, *, key, dtype):
        """Zeros for one example; `gradients` passes them for a batch."""
        return jnp.zeros(shape, dtype), shape

    def apply(self, params, state, h, *, key=None):
        """The sum of signal and parameters."""
        return h + params, state


def block(kind: str, width: int, activation: str, w_variance: Any = 1.0) -> Layer:
    """A hidden layer; biases start at 0."""
    parts = {
        "dense": layers.dense(width, w_variance=w_variance, bias=True),
        "phi": layers.activation(activation),
        "batch_norm": layers.batch_norm(1e-5),
        "layer_norm": layers.layer_norm(1e-5),
    }
    return layers.sequential(*(parts[name] for name in KINDS[kind]))


def network(kind: str, activation: str, width: int, depth: int, *, tapped: bool = False) -> Layer:
    """A classifier with `depth` hidden layers, the first of which is linear."""
    hidden = block(kind, width, activation)
    hidden = layers.sequential(Tap(), hidden) if tapped else hidden
    first, last = layers.dense(width, bias=True), layers.dense(10, bias=True)
    return layers.sequential(first, layers.repeat(hidden, depth - 1), last)


def draw(activation: str, width: int, depth: int, seeds: Any) -> Any:
    """Plain networks of weight variance 1, one for each seed, that all comparisons start from."""
    layer = network("plain", activation, width, depth)

    def one(seed):
        key = jax.random.fold_in(jax.random.key(2), seed)
        return layer.draw((64,), key=key, dtype=jnp.float32)[0]

    return jax.jit(jax.vmap(one))(seeds)


def prepare(drawn: Any, kind: str, depth: int, w_variance: Any) -> Any:
    """One of the networks, cut to `depth`, with another weight variance, and with norms."""
    first, (dense, phi), last = drawn
    width = last["kernel"].shape[0]
    norm = {"scale": jnp.ones((depth - 1, width)), "shift": jnp.zeros((depth - 1, width))}
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
    layer = network(kind, activation, width, copies + 1, tapped=True)

    def loss(taps):
        # Without a state, norms take the statistics of the batch, as in training.
        outputs, _ = layer.apply((first, (taps, hidden), last), None, examples.x)
        return classifier.cross_entropy(outputs, examples.labels)

    gradient = jax.grad(loss)(jnp.zeros((copies, len(examples.x), width)))
    return jnp.log10(jnp.sum(jnp.square(gradient), axis=(1, 2))) / 2


def train(kind: str, depth: int, drawn: Any, sets: Any, options: Options) -> Trained:
    """One program for all variances, rates and seeds."""
    layer = network(kind, options.activation, options.width, depth)

    def one(seed, drawn, w_variance, rate, sets):
        training, dev, test = sets
        few = jax.tree.map(lambda a: a[: options.batch_size], training)

        def evaluate(params, state):
            outputs = classifier.logits(layer, params, state, dev.x)
            accuracy = classifier.accuracy(outputs, dev.labels)
            return 1 - accuracy, (gradients(kind, options.activation, params, few), accuracy)

        fitted = classifier.train(
            layer,
            prepare(drawn, kind, depth, w_variance),
            optax.sgd(rate, momentum=0.9),
            training,
            key=jax.random.fold_in(jax.random.key(3), seed),
            steps=options.steps,
            batch_size=options.batch_size,
            evaluate=evaluate,
            every=options.every,
        )
        numbers = []
        for x, labels in (training, test):
            outputs = classifier.logits(layer, fitted.params, fitted.state, x)
            measures = (classifier.cross_entropy, classifier.accuracy)
            numbers += [measure(outputs, labels) for measure in measures]
        outputs = classifier.logits(layer, fitted.params, None, test.x)
        return Trained(*fitted.record, *numbers, classifier.accuracy(outputs, test.labels))

    every = jax.vmap(one, (None, None, None, 0, None))  # rates
    every = jax.vmap(every, (None, None, 0, None, None))  # variances
    every = jax.vmap(every, (0, 0, None, None, None))  # seeds
    every = jax.jit(every, compiler_options=COMPILER)
    variances, rates = (jnp.asarray(values) for values in (options.w_variances, options.rates))
    return jax.device_get(every(jnp.array(options.seed_values), drawn, variances, rates, sets))


def start(kind: str, drawn: Any, x: Any, options: Options) -> Start:
    """Gradients of networks that are not trained, measured and predicted."""
    width, depth = options.start_width, options.start_depth
    repeated = layers.repeat(block(kind, width, options.activation), depth)

    def measured(seed, drawn, w_variance, x):
        first, copies, _ = prepare(drawn, kind, depth + 1, w_variance)
        h, _ = layers.dense(width, bias=True).apply(first, None, x)
        key = jax.random.fold_in(jax.random.key(4), seed)
        return propagation.probe(repeated, copies, h, key=key).log_gradient

    def predicted(w_variance):
        first = layers.dense(width, w_variance=w_variance, bias=True).predict(moments)
        # Gradients count from the input of the first repeated layer.
        first = replace(first, log_gradient=jnp.zeros_like(first.log_q))
        scaled = block(kind, width, options.activation, w_variance)
        return propagation.predict(layers.repeat(scaled, depth), first).log_gradient

    every = jax.vmap(jax.vmap(measured, (None, None, 0, None)), (0, 0, None, None))
    every = jax.jit(every, compiler_options=COMPILER)
    variances = jnp.asarray(options.w_variances)
    values = every(jnp.array(options.start_seed_values), drawn, variances, x)
    moments = theory.moments_of(np.asarray(x, np.float64), gap=True)
    expected = np.stack([np.asarray(predicted(w_variance)) for w_variance in options.w_variances])
    return Start(np.asarray(values, np.float64), expected)


class Results(NamedTuple):
    """By kind: `start`; by kind and depth: `trained` at the best rates, and these rates."""

    start: dict[str, Start]
    trained: dict[tuple[str, int], Trained]
    rates: dict[tuple[str, int], np.ndarray]


def load_digits(options: Options) -> list[kit.Examples]:
    """Train, dev and test set, 60/20/20, standardized alike."""
    digits, key = kit.load("digits"), jax.random.key(options.first_seed)
    return kit.split(digits.x, digits.labels, (0.6, 0.2, 0.2), key=key)


def measure(options: Options, progress: Callable[[int, int], None] | None = None) -> Results:
    """Measure every kind and depth; half of the time is spent compiling, one thread a program."""
    sets, seeds = load_digits(options), jnp.array(options.seed_values)
    drawn = draw(options.activation, options.width, max(options.depths), seeds)
    seeds = jnp.array(options.start_seed_values)
    deep = draw(options.activation, options.start_width, options.start_depth + 1, seeds)
    x = sets[0].x[: options.start_examples]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs: dict[Any, Any] = {kind: pool.submit(start, kind, deep, x, options) for kind in KINDS}
        for depth, kind in itertools.product(options.depths, KINDS):
            jobs[kind, depth] = pool.submit(train, kind, depth, drawn, sets, options)
        finished = {}
        for name, job in jobs.items():
            finished[name] = job.result()
            if progress is not None:
                progress(len(finished), len(jobs))
    best = {name: finished[name].best() for name in finished if name not in KINDS}
    rates = {name: np.asarray(options.rates)[rate] for name, (_, rate) in best.items()}
    trained = {name: result for name, (result, _) in best.items()}
    return Results({kind: finished[kind] for kind in KINDS}, trained, rates)


def claims(results: Results, options: Options) -> list[Claim]:
    """Gradients grow as theory says, norms learn at any variance, and what training changes."""
    growth = {kind: one.growth() for kind, one in results.start.items()}
    form, statements = {"form": "+.3f"}, []
    for kind, (measured, predicted) in growth.items():
        for i, w_variance in enumerate(options.w_variances):
            if kind == "plain" or i == 0:  # norms make the variance indifferent
                text = f"{kind}, weight variance {w_variance:g}: growth as in theory, within 10 %"
                difference = Estimate.of(measured[:, i] - predicted[i])
                tolerance = {"tolerance": GROWTH_TOLERANCE}
                statements.append(Claim(text, difference, "equal", **tolerance, **form))
        if "batch" in kind:
            text = f"{kind}: gradients explode at every variance (smallest growth)"
            statements.append(Claim(text, Estimate.of(measured.min(axis=1)), "greater", **form))
    critical, share = options.critical, {"form": ".1%"}
    for (kind, depth), one in results.trained.items():
        text = f"{kind}, depth {depth}: test accuracy above 20 % at every weight variance"
        worst = Estimate.of(one.test.min(axis=1))
        statements.append(Claim(text, worst, "greater", LEARNS, **share))
    for depth in options.depths:
        plain = results.trained["plain", depth]
        ratio = plain.ratio()[:, critical]
        text = f"plain, depth {depth}, critical: log10 of first over last gradient stays within 1"
        drift = Estimate.of(ratio[:, -1] - ratio[:, 0])
        statements.append(Claim(text, drift, "equal", tolerance=1.0, form="+.2f"))
        for kind in KINDS:
            one = results.trained[kind, depth]
            fitted = min(float(t.train[:, critical].mean()) for t in (one, plain))
            # A loss gap says something about overfitting only where both networks have fitted.
            if kind != "plain" and fitted >= 0.95:
                gaps = ((t.test_loss - t.train_loss)[:, critical] for t in (one, plain))
                text = f"{kind}, depth {depth}: smaller gap of test and train loss than plain"
                statements.append(Claim(text, Estimate.paired(*gaps), "less", **form))
    text = "running statistics change the accuracy of batch norm by less than 2 %"
    change = Estimate.of(statistics_change(results))
    return [*statements, Claim(text, change, "equal", tolerance=0.02, form="+.1%")]


def statistics_change(results: Results) -> np.ndarray:
    """Test accuracy with running statistics less that with those of the test set, by network."""
    changes = [
        one.test - one.test_batch for (kind, _), one in results.trained.items() if "batch" in kind
    ]
    return np.concatenate([change.ravel() for change in changes])


def report(results: Results, options: Options) -> kit.Report:
    """Gradients at the start, accuracies and gradients after training, and the claims."""
    rows = []
    for kind, one in results.start.items():
        measured, predicted = one.growth()
        for i, w_variance in enumerate(options.w_variances):
            estimate, factor = Estimate.of(measured[:, i]), np.exp(measured[:, i].mean())
            row = (kind if i == 0 else "", f"{w_variance:g}", f"{estimate:+.3f}")
            rows.append(
                (*row, f"{predicted[i]:+.3f}", f"{factor:.3g}", f"{np.exp(predicted[i]):.4g}")
            )
    title = (
        f"{options.activation}, before training: growth per layer of the log squared gradient, "
        f"layers {options.start_depth // 2} to {options.start_depth}, width {options.start_width}, "
        f"one batch of {options.start_examples} digits; mean over {options.start_seeds} seeds ± "
        "standard error; theory: of infinite width and a large batch. At a finite width the growth "
        "of a plain network's typical gradient is lower, for relu by 2.5 / width = "
        f"{2.5 / options.start_width:.3f}."
    )
    headings = ("kind", "w var", "measured", "theory", "factor", "theory")
    first = kit.table(headings, rows, title)

    def show(values, form):
        return f"{Estimate.of(values):{form}}" if np.isfinite(values).all() else "lost"

    rows = []
    for (kind, depth), one in results.trained.items():
        ratio, rates = one.ratio(), results.rates[kind, depth]
        for i, w_variance in enumerate(options.w_variances):
            row = (f"{kind}, {depth}" if i == 0 else "", f"{w_variance:g}", f"{rates[i]:g}")
            accuracies = (show(v[:, i], ".1%") for v in (one.train, one.test, one.test_batch))
            rows.append((*row, *accuracies, *(show(ratio[:, i, j], "+.2f") for j in (0, -1))))
    title = (
        f"After {options.steps} steps of gradient descent with momentum 0.9 (width "
        f"{options.width}, batches of {options.batch_size}), each at the rate of best dev "
        "accuracy; first/last: log10 of the norm of the gradient with respect to the input of the "
        f"first repeated layer over that of the last; mean over {options.seeds} seeds ± standard "
        "error; lost: 0 or no longer finite."
    )
    accuracies = ("train accuracy", "test accuracy", "by batch statistics")
    headings = ("kind, depth", "w var", "rate", *accuracies, "first/last, start", "end")
    second = kit.table(headings, rows, title)
    numbers = {
        f"{kind}, depth {depth}": {"test": Estimate.of(one.test), "train": Estimate.of(one.train)}
        for (kind, depth), one in results.trained.items()
    }
    sections = [first, second, in_words(results, options)]
    return kit.Report(sections, claims(results, options), numbers)


def in_words(results: Results, options: Options) -> str:
    """Where training fails, how far gradients drift, and what running statistics change."""
    lines = ["Mean test accuracy below 20 %, twice that of chance:"]
    for depth, kind in itertools.product(options.depths, KINDS):
        lost = results.trained[kind, depth].test.mean(axis=0) < LEARNS
        places = ", ".join(f"{w:g}" for w in itertools.compress(options.w_variances, lost))
        words = f"weight variance {places}" if places else "nowhere"
        lines.append(f"- {kind}, depth {depth}: {words}.")
    for depth in options.depths:
        ratio = results.trained["plain", depth].ratio()[:, options.critical]
        drift = np.max(np.abs(ratio - ratio[:, :1]))
        words = f"drifts at most {10**drift:.3g}-fold in any network at any time"
        words = words if np.isfinite(drift) else "is lost, 0 or no longer finite"
        near = f"weight variance {options.w_variances[options.critical]:g}"
        lines.append(f"First over last gradient, plain, depth {depth}, {near}: it {words}.")
    lines.append("Loss gaps are compared where both networks have a train accuracy of 95 %.")
    largest = np.abs(statistics_change(results)).max()
    lines.append(f"Running statistics change one batch norm network by at most {largest:.1%}.")
    return "\n".join(lines)


LOOKS = (
    {"color": "#000000", "marker": "o", "linestyle": "solid"},
    {"color": "#b35a12", "marker": "^", "linestyle": "dashed"},
    {"color": "#d99a2b", "marker": "D", "linestyle": "dashdot"},
    {"color": "#2f5fa8", "marker": "s", "linestyle": "dotted"},
)
"""Colour, marker and line of each kind, plain first."""


def figure(results: Results, options: Options) -> Any:
    """Gradients of plain and normalized networks at the start and in training, and accuracy."""
    result, axes = figures.panels(2, 2, (14, 9.5))
    depth, variances = max(options.depths), np.asarray(options.w_variances)
    trained = {kind: results.trained[kind, depth] for kind in KINDS}
    draw_start(axes[0, 0], results.start, options)
    draw_accuracy(axes[0, 1], trained, options)
    ends = ((int(variances.argmin()), "small"), (int(variances.argmax()), "large"))
    for ax, (i, words) in zip(axes[1], ends, strict=True):
        draw_training(ax, trained, i, options.every)
        title = f"In training, weight variance {variances[i]:g} ({words}), {depth} layers"
        ax.set_title(title)
    figures.legend_below(result, axes[0, 1], 4)
    counts = (f"{k}: {(t.test.mean(axis=0) > LEARNS).sum()}" for k, t in trained.items())
    question = f"At how many of {len(variances)} weight variances do {depth} layers learn at all?"
    result.suptitle(f"{question}\n{', '.join(counts)}", fontsize=15)
    return result


def draw_start(ax: Any, start: dict[str, Start], options: Options) -> None:
    """Gradients across depth before training, with theory."""
    depth = np.arange(1, options.start_depth + 1)
    for (kind, one), look in zip(start.items(), LOOKS, strict=True):
        # Norms make the variance indifferent, so that one line stands for all.
        for i in range(len(options.w_variances) if kind == "plain" else 1):
            estimate = Estimate.of(one.measured[:, i] / np.log(10))
            every = max(len(depth) // 8, 1)
            solid = look | {"linestyle": "solid", "markersize": 5, "markevery": every, "lw": 1}
            figures.error_band(ax, depth, estimate, **solid)
            label = "theory" if kind == "plain" and i == 0 else None
            theory = {"color": style.THEORY, "linestyle": "dashed", "label": label}
            ax.plot(depth, one.predicted[i] / np.log(10), **theory)
            if kind == "plain":
                words, place = (
                    f"plain, variance {options.w_variances[i]:g}",
                    (depth[-1] + 0.5, estimate.mean[-1]),
                )
                ax.annotate(words, place, va="center")
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xlabel="depth, layers", ylabel="log10 of the squared gradient across so many layers")
    ax.set_title("Before training: plain at each variance, norms at any")
    ax.set_xlim(0, 1.33 * options.start_depth)
    ax.legend(frameon=False, loc="lower left")


def draw_accuracy(ax: Any, trained: dict[str, Trained], options: Options) -> None:
    """Test accuracy of the deepest networks by weight variance."""
    order = np.argsort(options.w_variances)
    values = np.asarray(options.w_variances)[order]
    for (kind, one), look in zip(trained.items(), LOOKS, strict=True):
        estimate = Estimate.of(one.test[:, order])
        figures.error_bars(ax, values, estimate, markersize=8, label=kind, **look)
    ax.axhline(0.1, color="0.6", linewidth=0.8)
    ax.text(np.sqrt(values[0] * values[-1]), 0.11, "chance")
    ax.set_xscale("log")
    critical = options.w_variances[options.critical]
    labels = [f"{value:g}" + "\n(critical)" * bool(value == critical) for value in values]
    figures.ticks(ax.xaxis, values, labels)
    figures.percent(ax.yaxis)
    ax.set(ylim=(0, 1.03), xlabel="weight variance × fan-in", ylabel="test accuracy")
    ax.set_title(f"After training, {max(options.depths)} layers")


def draw_training(ax: Any, trained: dict[str, Trained], i: int, every: int) -> None:
    """First over last gradient in training, up to where it is lost."""
    for (kind, one), look in zip(trained.items(), LOOKS, strict=True):
        logs = one.ratio()[:, i]
        finite = np.isfinite(logs).all(axis=0)
        count = len(finite) if finite.all() else int(finite.argmin())
        steps, estimate = every * np.arange(count), Estimate.of(logs[:, :count])
        figures.error_band(ax, steps, estimate, markersize=6, **look)
        if 0 < count < len(finite):
            place = {"xytext": (10, 0), "textcoords": "offset points", "va": "center"}
            words = f"{kind}: 0 or not finite after this"
            ax.annotate(words, (steps[-1], estimate.mean[-1]), **place)
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set(xlabel="step", ylabel="log10 of gradient norm, first over last layer")


def run(options: Options) -> None:
    """Compare plain networks with batch and layer norm: gradients at the start and in training."""
    results = measure(options, kit.progress("networks"))
    kit.publish(report(results, options), options, figure(results, options))


if __name__ == "__main__":
    kit.command(Options, run)
