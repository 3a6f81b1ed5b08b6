"""Options, and what is measured of each way to regularize."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray

from experiments import _kit as kit
from experiments._kit.classifier import error_rate, logits
from jaxgrad import layers, sweeps
from jaxgrad.training import augmentation, regularization

PARTS = ("train", "dev", "test")
# Kinds of regularization that have a strength.
KINDS = {"l2": "L2, lambda", "l1": "L1, lambda", "dropout": "dropout, rate"}
VARIABLES = (
    *PARTS,
    *("stopped_train", "stopped_dev", "stopped_test", "stopped_step"),
    *("squares", "small", "spread", "near", "linear", "masked", "averaged"),
)
SMALL_WEIGHT = 1e-3  # steps of gradient descent jump over 0, so a weight this small counts as 0
NEAR_LINEAR = 0.5  # below this size of its argument tanh is within 8 % of the identity
MASKS = 16  # dropout masks that are averaged
# Full-batch gradient descent, to see whether the cost falls in every step.
DESCENT_DROPOUT, DESCENT_STEPS, DESCENT_RATE = (0.0, 0.2, 0.5), 200, 0.1


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the comparison of ways to regularize, on the digits of scikit-learn."""

    output: Path = kit.option(Path("results/regularization.png"), "Where to write the figure.")
    l2: tuple[float, ...] = kit.option((0.5, 1, 2, 4, 8, 16, 32), "Lambdas of L2.", above=0)
    l1: tuple[float, ...] = kit.option((0.1, 0.3, 1, 2, 4, 8), "Lambdas of L1.", above=0)
    dropout_rates: tuple[float, ...] = kit.option(
        (0.8, 0.7, 0.6, 0.5, 0.35, 0.2, 0.1), "Rates of dropout.", above=0, below=1
    )
    shift: int = kit.option(1, "Augmentation: largest shift in pixels.", minimum=0)
    degrees: float = kit.option(10.0, "Augmentation: largest rotation.", minimum=0)
    noise: float = kit.option(0.1, "Augmentation: noise, in pixels from 0 to 1.", minimum=0)
    copies: int = kit.option(100, "Augmentation: changed copies of the training set.", minimum=1)
    train: int = kit.option(250, "Training examples.", minimum=1)
    dev: int = kit.option(500, "Dev examples; the rest are for the test.", minimum=1)
    mislabelled: float = kit.option(0.2, "Share of random training labels.", minimum=0, maximum=1)
    width: int = kit.option(64, "Units of each of two hidden layers of tanh.", minimum=1)
    steps: int = kit.option(600, "Steps of SGD with momentum 0.9.", minimum=1)
    every: int = kit.option(10, "Steps between evaluations of early stopping.", minimum=1)
    batch_size: int = kit.option(50, "Examples in a batch.", minimum=1)
    learning_rate: float = kit.option(0.05, "Learning rate, falling to 0 as a cosine.", above=0)

    def check(self) -> None:
        """A test set must be left, a batch must fit, and the evaluations divide the steps."""
        if self.train + self.dev > 1796:
            raise ValueError(f"train and dev must be at most 1796, got {self.train + self.dev}")
        if self.batch_size > self.train:
            raise ValueError(f"batch_size must be at most {self.train}, got {self.batch_size}")
        if self.steps % self.every:
            raise ValueError(f"every must divide the {self.steps} steps, got {self.every}")


def draw_data(key: Any, x: Any, labels: Any, options: Options) -> tuple[dict[str, Any], Any]:
    """Training, dev and test set, and versions of the training inputs, `[copies + 1, m, 64]`.

    Version 0 is unchanged. Versions are drawn before training, so that networks with and without
    augmentation are one program.
    """
    key_data, key_versions = key
    key_order, key_chosen, key_label = jax.random.split(key_data, 3)
    order, m = jax.random.permutation(key_order, len(x)), options.train
    x, labels = x[order], labels[order]
    # Wrong labels in the training set only: the errors on the others are those of the truth.
    wrong = jax.random.uniform(key_chosen, (m,), jnp.float32) < options.mislabelled
    drawn = jax.random.randint(key_label, (m,), 0, 10, labels.dtype)
    labels = labels.at[:m].set(jnp.where(wrong, drawn, labels[:m]))
    ends = (0, m, m + options.dev, len(x))
    parts = [kit.Examples(x[i:j], labels[i:j]) for i, j in itertools.pairwise(ends)]

    def changed(key):
        key_shift, key_rotate, key_noise = jax.random.split(key, 3)
        copy = augmentation.shift(x[:m].reshape(-1, 8, 8, 1), options.shift, key=key_shift)
        copy = augmentation.rotate(copy, options.degrees, key=key_rotate)
        return augmentation.noise(copy, options.noise, key=key_noise).reshape(m, -1)

    copies = jax.lax.map(changed, jax.random.split(key_versions, options.copies))
    versions = kit.Examples(jnp.concatenate([x[None, :m], copies]), None)
    # One scale for all pixels: some hardly vary until an image is shifted.
    *sets, versions = kit.standardized([*parts, versions], per_feature=False)
    return dict(zip(PARTS, sets, strict=True)), versions.x


def network(width: int, dropout: Any) -> tuple[layers.Layer, ...]:
    """Two hidden layers of tanh, each followed by dropout, and the layer of logits."""
    tanh, drop = layers.activation("tanh"), layers.dropout(dropout)
    hidden = (layers.dense(width, bias=True), tanh, drop)
    return (*hidden, *hidden, layers.dense(10, bias=True))


def train(key: Any, sets: Any, versions: Any, strength: Any, options: Options) -> dict[str, Any]:
    """Train one network, regularized with the strengths of all kinds, and measure it."""
    key_init, key_fit, key_masks = jax.random.split(key, 3)
    parts, m = network(options.width, strength["dropout"]), options.train
    layer = layers.sequential(*parts)
    params, _ = layer.draw((64,), key=key_init, dtype=jnp.float32)

    def inputs(rows, key):
        changed = jax.random.randint(key, rows.shape, 1, len(versions))
        return versions[jnp.where(strength["augmentation"], changed, 0), rows]

    def penalty(params):  # lambda / (2 m) times the sum of w^2 or |w|
        l2 = regularization.l2(params, strength["l2"], examples=m)
        return l2 + regularization.l1(params, strength["l1"], examples=m)

    def errors(params, state):
        return {n: error_rate(logits(layer, params, state, x), y) for n, (x, y) in sets.items()}

    schedule = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    fitted = kit.classifier.train(
        layer,
        params,
        optax.sgd(schedule, momentum=0.9),
        kit.Examples(jnp.arange(m), sets["train"].labels),
        key=key_fit,
        steps=options.steps,
        batch_size=options.batch_size,
        inputs=inputs,
        penalty=penalty,
        evaluate=lambda params, state: (errors(params, state)["dev"], ()),
        every=options.every,
    )
    params = fitted.params
    stopping: Any = fitted.best
    results = errors(params, fitted.state)
    results |= {f"stopped_{name}": error for name, error in errors(*stopping.params).items()}
    results["stopped_step"] = stopping.best * options.every
    # Dropout stays on, to compare the error of masked networks with that of the scaled one.
    x, y = sets["dev"]
    keys = jax.random.split(key_masks, MASKS)
    masked = jax.vmap(lambda key: layer.apply(params, None, x, key=key)[0])(keys)
    results["masked"] = jnp.mean(jax.vmap(error_rate, (0, None))(masked, y))
    results["averaged"] = error_rate(jnp.mean(jax.nn.softmax(masked), axis=0), y)
    return results | weights(params) | linearity(parts, params, sets)


def weights(params: Any) -> dict[str, jax.Array]:
    """The sum of squared weights, the share near 0 and how evenly each unit spreads them."""
    kernels = [layer["kernel"] for layer in params if layer]
    values = jnp.concatenate([kernel.ravel() for kernel in kernels])

    def spread(kernel):  # 1 if all are of one size
        # Relative to the largest of each unit, so that no power underflows.
        largest = jnp.max(jnp.abs(kernel), axis=0, keepdims=True)
        squares = jnp.square(kernel / jnp.maximum(largest, 1e-30))
        return jnp.mean(squares, axis=0) ** 2 / jnp.mean(squares**2, axis=0)

    return {
        "squares": jnp.sum(values**2),
        "small": jnp.mean(jnp.abs(values) < SMALL_WEIGHT),
        "spread": jnp.mean(jnp.concatenate([spread(kernel) for kernel in kernels[1:]])),
    }


def linearity(parts: Any, params: Any, sets: Any) -> dict[str, jax.Array]:
    """Share of hidden units near-linear in training, and of linear variance of test logits."""

    def after(count, x):
        return logits(layers.sequential(*parts[:count]), params[:count], None, x)

    x, test = sets["train"].x, sets["test"].x
    arguments = jnp.concatenate([after(1, x), after(4, x)], axis=1)  # of both layers of tanh
    outputs = after(len(parts), test)
    centred, x = (a - jnp.mean(a, axis=0, keepdims=True) for a in (outputs, test))
    # Residuals of the best linear function of the inputs.
    rest = centred - x @ jnp.linalg.lstsq(x, centred)[0]
    total = jnp.sum(centred**2)
    # Penalties can leave nothing but rounding, and a constant is linear.
    varies = total > 1e-10 * jnp.sum(outputs**2)
    share = 1 - jnp.sum(rest**2) / jnp.where(varies, total, 1.0)
    near = jnp.mean(jnp.abs(arguments) < NEAR_LINEAR)
    return {"near": near, "linear": jnp.where(varies, share, 1.0)}


def rises(key: jax.Array, examples: kit.Examples, dropout: Any, options: Options) -> jax.Array:
    """In which share of the steps of full-batch gradient descent the cost J rises."""
    key_init, key_fit = jax.random.split(key)
    layer = layers.sequential(*network(options.width, dropout))
    params, _ = layer.draw((64,), key=key_init, dtype=jnp.float32)
    how: dict[str, Any] = {"key": key_fit, "steps": DESCENT_STEPS, "batch_size": options.train}
    cost = kit.classifier.train(layer, params, optax.sgd(DESCENT_RATE), examples, **how).loss
    # The order of the examples changes the rounding of their mean.
    return jnp.mean(cost[1:] > cost[:-1] * (1 + 10 * jnp.finfo(cost.dtype).eps))


def label(kind: str, strength: float) -> str:
    """Kind and strength of a setting in words."""
    return f"{KINDS[kind]} {strength:.9g}" if kind in KINDS else kind


def settings(options: Options) -> dict[str, Any]:
    """Coordinates of the networks of a seed: kind, strength, and both in words."""
    strengths = {"l2": options.l2, "l1": options.l1, "dropout": options.dropout_rates}
    pairs = [(kind, value) for kind, values in strengths.items() for value in values]
    pairs = [("none", 0.0), *pairs, ("augmentation", 0.0)]
    kinds, values = map(np.array, zip(*pairs, strict=True))
    names = list(itertools.starmap(label, pairs))
    return {"setting": names, "kind": ("setting", kinds), "strength": ("setting", values)}


def measure(options: Options, progress: kit.Progress = None) -> xarray.Dataset:
    """Results of `train`, `[seed, setting]`, and of `rises`, `[seed, descent_dropout]`.

    A cell is a seed, whose networks share data, first weights and order of examples.
    """
    digits, coords = kit.load("digits"), settings(options)
    # One program for all settings: their strengths are data.
    kinds, values = coords["kind"][1], coords["strength"][1]
    strengths = {kind: jnp.asarray((kinds == kind) * values, jnp.float32) for kind in KINDS}
    strengths["augmentation"] = jnp.asarray(kinds == "augmentation")

    def cell(key, point, x, labels, strengths, rates):
        *keys, key = jax.random.split(key, 3)
        sets, versions = draw_data(keys, x, labels, options)
        results = jax.vmap(lambda s: train(key, sets, versions, s, options))(strengths)
        descent = jax.vmap(lambda rate: rises(key, sets["train"], rate, options))
        return results | {"rises": descent(rates)}

    x, rates = (jnp.asarray(array, jnp.float32) for array in (digits.x / 16, DESCENT_DROPOUT))
    dataset = sweeps.run(
        cell,
        {"seed": options.seed_values},
        dict.fromkeys(VARIABLES, sweeps.Variable(("setting",)))
        | {"rises": sweeps.Variable(("descent_dropout",))},
        key=jax.random.key(0),
        args=(x, jnp.asarray(digits.labels), strengths, rates),
        coords={"descent_dropout": DESCENT_DROPOUT},
        **kit.sweep_progress(progress),
    )
    return dataset.assign_coords(coords)
