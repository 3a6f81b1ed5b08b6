"""What batch and layer norm do to gradients: at the start, and while a deep network trains.

Run `python -m experiments.norm_layers`, or `--help` for its options.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import frontend
from jaxgrad import (
    activations,
    layers,
    plotting,
    propagation,
    regimes,
    theory,
    training,
)
from jaxgrad.layers import Layer
from jaxgrad.training import normalization

KINDS = {
    "plain": ("dense", "phi"),
    "batch norm before": ("dense", "batch_norm", "phi"),
    "batch norm after": ("dense", "phi", "batch_norm"),
    "layer norm before": ("dense", "layer_norm", "phi"),
}
"""What a hidden layer is made of: where the norm stands, before or after the activation."""


@dataclass(frozen=True)
class Config:
    """Options of the comparison of norms, on scikit-learn's digits."""

    activation: str = "relu"
    """A name of jaxgrad.activations.TABLE."""
    w_variances: tuple[float, ...] = (0.5, 2.0, 4.0)
    """Weight variances, times fan-in; the one nearest to the critical one is taken for it."""
    rates: tuple[float, ...] = (0.002, 0.02)
    """Learning rates of gradient descent; each network reports the best one by dev accuracy."""
    depths: tuple[int, ...] = (8, 20)
    """Numbers of hidden layers of the networks that are trained."""
    width: int = 40
    """Units of every hidden layer of the networks that are trained."""
    steps: int = 160
    """Steps of training."""
    every: int = 20
    """Steps between looks at the gradients."""
    batch_size: int = 64
    """Examples of a batch."""
    seeds: int = 3
    """How many networks for each kind, depth, variance and rate, at least 2."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    start_depth: int = 40
    """Number of layers of the networks that are not trained."""
    start_width: int = 128
    """Units of every layer of these."""
    start_examples: int = 256
    """Examples in the one batch that these see."""
    start_seeds: int = 6
    """How many of these for each kind, at least 2."""
    output: Path = Path("results/norm_layers.png")
    """Where to write the figure."""


class Start(NamedTuple):
    """Squared gradients before training, natural logs, of one kind.

    Attributes:
      measured: by depth, relative to depth 0, `[seeds, variances, depth]`.
      predicted: at infinite width and for a large batch, `[variances, depth]`.
    """

    measured: np.ndarray
    predicted: np.ndarray

    def growth(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Per layer in the deeper half: mean, standard error, prediction, `[variances]` each."""
        half = self.measured.shape[-1] // 2
        layers_between = self.measured.shape[-1] - half
        slope = (self.measured[..., -1] - self.measured[..., half - 1]) / layers_between
        mean, error = (np.asarray(part) for part in regimes.mean_and_error(slope))
        expected = (self.predicted[..., -1] - self.predicted[..., half - 1]) / layers_between
        return mean, error, expected


class Trained(NamedTuple):
    """Training of one kind at one depth, `[seeds, variances, rates, ...]` before the best is taken.

    Attributes:
      gradient: log10 of the norm of the loss's gradient with respect to what enters each layer but
        the first, `[..., looks, layers]`, for a batch of the training set.
      dev: accuracy on the dev set with running statistics, `[..., looks]`.
      train_loss, train: loss and accuracy on the training set after the last step, with running
        statistics.
      test_loss, test: the same on the test set.
      test_batch: accuracy with statistics of the test set itself.
    """

    gradient: Any
    dev: Any
    train_loss: Any
    train: Any
    test_loss: Any
    test: Any
    test_batch: Any

    def best(self) -> tuple[Trained, np.ndarray]:
        """Those with the rate of best mean dev accuracy, and its index, `[variances]`."""
        rate = np.argmax(self.dev[..., -1].mean(axis=0), axis=-1)
        at = np.arange(len(rate))
        return Trained(*(part[:, at, rate] for part in self)), rate

    def ratio(self) -> np.ndarray:
        """Log10 of the first layer's gradient over the last's, NaN where lost, `[..., looks]`."""
        with np.errstate(invalid="ignore"):
            return self.gradient[..., 0] - self.gradient[..., -1]


def block(kind: str, width: int, activation: str, w_variance: Any = 1.0) -> Layer:
    """A hidden layer; biases start at 0."""
    parts = {
        "dense": layers.dense(width, w_variance, jnp.zeros(())),
        "phi": layers.activation(activation),
        "batch_norm": layers.batch_norm(1e-5),
        "layer_norm": layers.layer_norm(1e-5),
    }
    return layers.sequential(*(parts[name] for name in KINDS[kind]))


def network(kind: str, activation: str, width: int, depth: int, *, tapped: bool = False) -> Layer:
    """A classifier with `depth` hidden layers, the first of which is linear."""
    hidden = block(kind, width, activation)
    return layers.sequential(
        layers.dense(width, 1.0, jnp.zeros(())),
        layers.repeat(layers.sequential(_TAP, hidden) if tapped else hidden, depth - 1),
        layers.dense(10, 1.0, jnp.zeros(())),
    )


def draw(activation: str, width: int, depth: int, seeds: Any) -> Any:
    """Plain networks of weight variance 1, one for each seed, that all comparisons start from."""
    net = network("plain", activation, width, depth)

    def one(seed):
        return net.init(jax.random.fold_in(jax.random.key(2), seed), (64,), jnp.float32)[0]

    return jax.jit(jax.vmap(one))(seeds)


def prepared(drawn: Any, kind: str, depth: int, w_variance: Any) -> Any:
    """One of the networks, cut to `depth`, with another weight variance, and with norms."""
    first, (dense, phi), last = drawn
    width = last["kernel"].shape[0]
    norm = {"scale": jnp.ones((depth - 1, width)), "shift": jnp.zeros((depth - 1, width))}
    dense, phi = jax.tree.map(lambda a: a[: depth - 1], (dense, phi))
    scaled = [{**part, "kernel": part["kernel"] * jnp.sqrt(w_variance)} for part in (first, dense)]
    parts = {"dense": scaled[1], "phi": phi, "batch_norm": norm, "layer_norm": norm}
    return scaled[0], tuple(parts[name] for name in KINDS[kind]), last


_TAP = Layer(
    init=lambda key, shape, dtype: (jnp.zeros(shape, dtype), shape),
    apply=lambda params, h, key: h + params,
    predict=lambda moments: moments,
    homogeneous=False,
)
"""Adds zeros, so that the gradient with respect to them is that with respect to what passes."""


def gradients(kind: str, activation: str, params: Any, x: Any, y: Any) -> jax.Array:
    """Log10 of the norm of the loss's gradient with respect to each repeated layer's inputs.

    Not with respect to weights: of these all layers have alike ones even where gradients vanish,
    since what the gradient loses on its way back the signal has still to lose.
    """
    first, hidden, last = params
    copies, width, _ = hidden[0]["kernel"].shape
    net = network(kind, activation, width, copies + 1, tapped=True)

    def loss(taps):
        # Statistics of the batch, as in training.
        return _cross_entropy(net.apply((first, (taps, hidden), last), x, None), y)

    slopes = jax.grad(loss)(jnp.zeros((copies, len(x), width)))
    return jnp.log10(jnp.sum(jnp.square(slopes), axis=(1, 2))) / 2


def _cross_entropy(logits, y):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y))


def _accuracy(logits, y):
    return jnp.mean(jnp.argmax(logits, axis=1) == y)


def digits(config: Config) -> dict[str, tuple[jax.Array, jax.Array]]:
    """Train, dev and test set, 60/20/20, standardized alike, and a `few` of the training set."""
    from sklearn import datasets

    table = datasets.load_digits(return_X_y=True)
    x, y = np.asarray(table[0], np.float32), np.asarray(table[1])
    key = jax.random.key(config.first_seed)
    train, dev, test = training.splits.split(y, (0.6, 0.2, 0.2), key=key)
    standardizer = normalization.fit(x[train])
    few = train[: config.batch_size]
    rows = {"train": train, "dev": dev, "test": test, "few": few}
    return {
        name: (normalization.apply(standardizer, x[at]), jnp.asarray(y[at]))
        for name, at in rows.items()
    }


def train(kind: str, depth: int, drawn: Any, sets: Any, config: Config) -> Trained:
    """One program for all variances, rates and seeds."""
    net = network(kind, config.activation, config.width, depth)

    def one(seed, drawn, w_variance, rate, sets):
        x, y = sets["train"]
        params = prepared(drawn, kind, depth, w_variance)

        def loss(params, state, batch, key):
            logits, state = layers.apply_state(net, params, state, batch[0], key)
            return _cross_entropy(logits, batch[1]), state

        def look(params, state):
            (x_few, y_few), (x_dev, y_dev) = (sets[name] for name in ("few", "dev"))
            logits, _ = layers.apply_state(net, params, state, x_dev, None)
            slopes = gradients(kind, config.activation, params, x_few, y_few)
            dev = _accuracy(logits, y_dev)
            return 1 - dev, (slopes, dev)

        done = training.fit(
            loss,
            params,
            optax.sgd(rate, momentum=0.9),
            sets["train"],
            key=jax.random.fold_in(jax.random.key(3), seed),
            steps=config.steps,
            batch_size=config.batch_size,
            state=layers.init_state(net, params),
            evaluate=look,
            every=config.every,
        )
        (x_test, y_test), count = sets["test"], len(y)
        together = jnp.concatenate([x, x_test])
        logits, _ = layers.apply_state(net, done.params, done.state, together, None)
        slopes, dev = done.record
        return Trained(
            gradient=slopes,
            dev=dev,
            train_loss=_cross_entropy(logits[:count], y),
            train=_accuracy(logits[:count], y),
            test_loss=_cross_entropy(logits[count:], y_test),
            test=_accuracy(logits[count:], y_test),
            test_batch=_accuracy(net.apply(done.params, x_test, None), y_test),
        )

    every = jax.vmap(one, (None, None, None, 0, None))
    every = jax.vmap(every, (None, None, 0, None, None))
    every = jax.vmap(every, (0, 0, None, None, None))
    every = jax.jit(every, compiler_options=_QUICK)
    variances, rates = (jnp.asarray(values) for values in (config.w_variances, config.rates))
    return jax.device_get(every(_seeds(config, config.seeds), drawn, variances, rates, sets))


def _seeds(config: Config, count: int) -> jax.Array:
    return jnp.arange(config.first_seed, config.first_seed + count)


_QUICK = {"xla_backend_optimization_level": 1}
"""The time is spent in products of matrices, which are compiled already."""


def start(kind: str, drawn: Any, x: Any, config: Config) -> Start:
    """Gradients of networks that are not trained, measured and predicted."""
    width, depth = config.start_width, config.start_depth
    hidden = block(kind, width, config.activation)

    def one(seed, drawn, w_variance, x):
        first, copies, _ = prepared(drawn, kind, depth + 1, w_variance)
        h = layers.dense(width).apply(first, x, None)
        key = jax.random.fold_in(jax.random.key(4), seed)
        return propagation.probe_blocks(copies, h, key, hidden).log_gradient

    def predicted(w_variance, moments):
        moments = layers.dense(width, w_variance).predict(moments)
        scaled = block(kind, width, config.activation, w_variance)
        return theory.predict_blocks(scaled.predict, moments, depth).log_gradient

    every = jax.vmap(jax.vmap(one, (None, None, 0, None)), (0, 0, None, None))
    every = jax.jit(every, compiler_options=_QUICK)
    variances = jnp.asarray(config.w_variances)
    measured = every(_seeds(config, config.start_seeds), drawn, variances, x)
    with jax.enable_x64(True):
        moments = theory.moments_of(np.asarray(x, np.float64), gap=True)
        moments = jax.tree.map(jnp.mean, moments)
        expected = jax.jit(jax.vmap(predicted, (0, None)))(np.array(config.w_variances), moments)
        expected = expected - jnp.log(np.array(config.w_variances))[:, None]
        return Start(np.asarray(measured, np.float64), np.asarray(expected))


class Results(NamedTuple):
    """By kind: `start`, a `Start`; `trained`, by depth too, a `Trained` of the best rates."""

    start: dict[str, Start]
    trained: dict[tuple[str, int], Trained]
    rates: dict[tuple[str, int], np.ndarray]


def compare(config: Config, progress: Any = None) -> Results:
    """Measure every kind and depth; half of the time is spent compiling, one thread a program."""
    sets = digits(config)
    x = sets["train"][0][: config.start_examples]
    drawn = draw(config.activation, config.width, max(config.depths), _seeds(config, config.seeds))
    deep = draw(
        config.activation,
        config.start_width,
        config.start_depth + 1,
        _seeds(config, config.start_seeds),
    )
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs: dict[tuple[str, int], Any] = {
            (kind, 0): pool.submit(start, kind, deep, x, config) for kind in KINDS
        }
        for depth in config.depths:
            for kind in KINDS:
                jobs[kind, depth] = pool.submit(train, kind, depth, drawn, sets, config)
        found = {}
        for done, (name, job) in enumerate(jobs.items()):
            found[name] = job.result()
            if progress is not None:
                progress(done + 1, len(jobs))
    best = {name: found[name].best() for name in found if name[1]}
    return Results(
        {kind: found[kind, 0] for kind in KINDS},
        {name: trained for name, (trained, _) in best.items()},
        {name: np.asarray(config.rates)[rate] for name, (_, rate) in best.items()},
    )


def _both(values: Any, form: str) -> str:
    if not np.isfinite(values).all():
        return "lost"
    mean, error = regimes.mean_and_error(np.asarray(values, np.float64))
    return f"{float(mean):{form}} ± {float(error):{form.replace('+', '')}}"


def nearest_to_critical(config: Config) -> int:
    """Which of the weight variances is nearest to the critical one."""
    critical = float(theory.critical(config.activation).w_variance)
    return int(np.argmin(np.abs(np.log(np.array(config.w_variances) / critical))))


def failed(one: Trained) -> np.ndarray:
    """At which variances test accuracy stays below twice that of chance, `[variances]`."""
    return one.test.mean(axis=0) < 0.2


def report(results: Results, config: Config) -> str:
    """Tables and, in words, what they say of each claim."""
    return "\n".join(
        [*_at_start(results, config), *_in_training(results, config), *_claims(results, config)]
    )


def _at_start(results: Results, config: Config) -> list[str]:
    rows, said = [], []
    for kind, one in results.start.items():
        mean, error, expected = one.growth()
        for i, w_variance in enumerate(config.w_variances):
            rows.append(
                (
                    kind if i == 0 else "",
                    f"{w_variance:g}",
                    f"{mean[i]:+.3f} ± {error[i]:.3f}",
                    f"{expected[i]:+.3f}",
                )
            )
        low, high = np.exp(mean.min()), np.exp(mean.max())
        span = f"{low:.3f}" if high - low < 0.01 else f"{low:.3g} to {high:.3g}"
        grows = (mean > 3 * error).all() and (expected > 0.01).all()
        said.append(
            f"- {kind}: the squared gradient is multiplied by {span} a layer, theory "
            f"{np.exp(expected.min()):.4g}"
            + (f" to {np.exp(expected.max()):.4g}" if np.ptp(expected) > 0.01 else "")
            + (": it explodes at every variance." if grows else ".")
        )
    return [
        f"{config.activation}, before training: growth per layer of the log squared gradient, "
        "layers",
        f"{config.start_depth // 2} to {config.start_depth}, width {config.start_width}, one batch "
        f"of {config.start_examples} digits; mean over {config.start_seeds} seeds ± standard "
        "error;",
        "theory: of infinite width and a large batch. At a finite width the growth of a plain "
        "network's",
        f"typical gradient is lower, for relu by 2.5 / width = {2.5 / config.start_width:.3f}.",
        frontend.table(("kind", "w var", "measured", "theory"), rows),
        *said,
    ]


def _in_training(results: Results, config: Config) -> list[str]:
    rows = []
    for (kind, depth), one in results.trained.items():
        ratio = one.ratio()
        for i, w_variance in enumerate(config.w_variances):
            rows.append(
                (
                    f"{kind}, {depth}" if i == 0 else "",
                    f"{w_variance:g}",
                    f"{results.rates[kind, depth][i]:g}",
                    _both(one.train[:, i], ".1%"),
                    _both(one.test[:, i], ".1%"),
                    _both(one.test_batch[:, i], ".1%"),
                    _both(ratio[:, i, 0], "+.2f"),
                    _both(ratio[:, i, -1], "+.2f"),
                )
            )
    headings = (
        "kind, depth",
        "w var",
        "rate",
        "train accuracy",
        "test accuracy",
        "by batch statistics",
        "first/last, start",
        "end",
    )
    return [
        f"\nAfter {config.steps} steps of gradient descent with momentum 0.9 (width "
        f"{config.width}, batches of {config.batch_size}), each at the",
        "rate of best dev accuracy; first/last: log10 of the gradient's norm with respect to what "
        "enters the",
        f"first repeated layer over the last one; mean over {config.seeds} seeds ± standard error, "
        "lost: 0 or no longer finite.",
        frontend.table(headings, rows),
    ]


def _claims(results: Results, config: Config) -> list[str]:
    lines = ["\nWhere does training fail (test accuracy below 20 %, twice that of chance)?"]
    for depth in config.depths:
        for kind in KINDS:
            lost = failed(results.trained[kind, depth])
            at = ", ".join(f"{w:g}" for w, f in zip(config.w_variances, lost, strict=True) if f)
            lines.append(
                f"- {kind}, depth {depth}: {f'weight variance {at}' if at else 'nowhere'}."
            )
    critical = nearest_to_critical(config)
    lines.append(
        "Do gradients become unstable again? First over last in the plain network at weight "
        f"variance {config.w_variances[critical]:g}:"
    )
    for depth in config.depths:
        ratio = results.trained["plain", depth].ratio()[:, critical]
        drift = ratio - ratio[:, :1]
        if not np.isfinite(drift).all():
            lines.append(f"- depth {depth}: it is lost, 0 or no longer finite.")
            continue
        mean, error = (float(part) for part in regimes.mean_and_error(drift[:, -1]))
        moved = "drifts" if abs(mean) > 3 * error else "does not drift beyond three standard errors"
        lines.append(
            f"- depth {depth}: it {moved}, by a factor 10^({mean:+.2f} ± {error:.2f}) over "
            f"training; at most {10 ** np.max(np.abs(drift)):.3g}-fold in any network at any look."
        )
    lines.append(
        "Do norms regularise? Test minus train loss there, less that of the plain network, where "
        "both have fitted:"
    )
    for depth in config.depths:
        plain = results.trained["plain", depth]
        for kind in [name for name in KINDS if name != "plain"]:
            lines.append(
                f"- {kind}, depth {depth}: "
                + _overfitting(results.trained[kind, depth], plain, critical)
            )
    off = np.concatenate(
        [
            (one.test - one.test_batch).ravel()
            for (kind, _), one in results.trained.items()
            if "batch" in kind
        ]
    )
    mean, error = (float(part) for part in regimes.mean_and_error(off))
    lines.append(
        "Running statistics instead of the test set's own change the accuracy of batch norm by "
        f"{mean:+.1%} ± {error:.1%}, in one network by at most {np.abs(off).max():.1%}."
    )
    return lines


def _overfitting(one: Trained, plain: Trained, at: int) -> str:
    fitted = [float(part.train[:, at].mean()) for part in (one, plain)]
    if min(fitted) < 0.95:
        return (
            f"not to be compared, train accuracy {fitted[0]:.1%} with it, {fitted[1]:.1%} without."
        )
    gap, plain_gap = ((part.test_loss - part.train_loss)[:, at] for part in (one, plain))
    mean, error = (float(part) for part in regimes.mean_and_error(gap - plain_gap))
    verdict = "no difference beyond three standard errors"
    if abs(mean) > 3 * error:
        verdict = "less overfitting" if mean < 0 else "more overfitting"
    return f"{mean:+.3f} ± {error:.3f} (plain {plain_gap.mean():+.3f}): {verdict}."


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    activations.get(config.activation)
    for name in ("w_variances", "rates", "depths"):
        values = getattr(config, name)
        if not values or len(set(values)) != len(values) or not min(values) > 0:
            raise ValueError(
                f"{name} must be different numbers above 0, at least one, got {values}; correct it"
            )
    if min(config.depths) < 3:
        raise ValueError(
            f"depths must be at least 3, to have a first and a last gradient, got {config.depths}"
        )
    for name, least in (
        ("width", 1),
        ("steps", 1),
        ("every", 1),
        ("batch_size", 2),
        ("seeds", 2),
        ("first_seed", 0),
        ("start_depth", 2),
        ("start_width", 1),
        ("start_examples", 4),
        ("start_seeds", 2),
    ):
        if getattr(config, name) < least:
            raise ValueError(
                f"{name} must be at least {least}, got {getattr(config, name)}; raise it"
            )
    if config.steps % config.every:
        raise ValueError(
            f"steps must be a multiple of every, got {config.steps} and {config.every}; change one"
        )
    for name in ("batch_size", "start_examples"):
        if getattr(config, name) > _TRAINING:
            raise ValueError(
                f"{name} must be at most the {_TRAINING} training examples, got "
                f"{getattr(config, name)}; lower it"
            )
    frontend.writable("output", config.output)


_TRAINING = 1078
"""60 % of the digits."""


def run(config: Config) -> None:
    """Compare plain networks with batch and layer norm: gradients at the start and in training."""
    checked(config)
    begin = time.perf_counter()
    results = compare(config, frontend.Bar("networks"))
    print(report(results, config))
    figure = plotting.norm_layers(
        results, config.w_variances, config.every, nearest_to_critical(config)
    )
    figure.savefig(config.output, dpi=110)
    print(f"\n{time.perf_counter() - begin:.1f} s in all.\nFigure: {config.output}")


if __name__ == "__main__":
    frontend.main(Config, run)
