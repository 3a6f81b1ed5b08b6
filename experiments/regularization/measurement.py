"""Options, and what is measured of each way to regularize."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray

from experiments import _kit as kit
from experiments._kit.classifier import error_rate, logits
from jaxgrad import layers, sweeps
from jaxgrad.training import augmentation, normalization, regularization

SMALL_WEIGHT = 1e-3
"""Steps of gradient descent jump over 0, so that a weight this small counts as 0."""
NEAR_LINEAR = 0.5
"""Below this size of its argument tanh is within 8 % of the identity."""
MASKS = 16
"""Number of dropout masks that are averaged."""
DESCENT_DROPOUT, DESCENT_STEPS, DESCENT_RATE = (0.0, 0.2, 0.5), 200, 0.1
"""Full-batch gradient descent, to see whether the cost falls in every step."""


@dataclass(frozen=True)
class Options(kit.SeededOptions):
    """Options of the comparison of ways to regularize, on the digits of scikit-learn."""

    output: Path = kit.option(Path("results/regularization.png"), "Where to write the figure.")
    l2: tuple[float, ...] = kit.option(
        (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0), "Strengths lambda of L2.", above=0
    )
    l1: tuple[float, ...] = kit.option(
        (0.1, 0.3, 1.0, 2.0, 4.0, 8.0), "Strengths lambda of L1.", above=0
    )
    dropout_rates: tuple[float, ...] = kit.option(
        (0.8, 0.7, 0.6, 0.5, 0.35, 0.2, 0.1), "Rates of dropout.", above=0, below=1
    )
    shift: int = kit.option(1, "Augmentation: largest shift in pixels.", minimum=0)
    degrees: float = kit.option(10.0, "Augmentation: largest rotation.", minimum=0)
    noise: float = kit.option(
        0.1, "Augmentation: standard deviation of noise; pixels are from 0 to 1.", minimum=0
    )
    copies: int = kit.option(100, "Augmentation: changed copies of the training set.", minimum=1)
    train: int = kit.option(250, "Training examples.", minimum=1)
    dev: int = kit.option(500, "Dev examples; the rest are for the test.", minimum=1)
    mislabelled: float = kit.option(
        0.2, "Share of training labels that are drawn at random.", minimum=0, maximum=1
    )
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


class Strength(NamedTuple):
    """How strongly a network is regularized; all may be traced."""

    l2: Any = 0.0  # lambda of lambda / (2 m) sum of w^2
    l1: Any = 0.0  # lambda of lambda / (2 m) sum of |w|
    dropout: Any = 0.0  # rate
    augmented: Any = False


VARIABLES = {
    "train": "error on the training set, as it is labelled",
    "dev": "error on the dev set",
    "test": "error on the test set",
    "stopped_train": "train error of the parameters of the best dev error",
    "stopped_dev": "their dev error",
    "stopped_test": "their test error",
    "stopped_step": "number of steps after which they were reached",
    "squares": "sum of squared weights",
    "small": f"share of weights below {SMALL_WEIGHT:g}",
    "near": f"share of hidden units whose argument is below {NEAR_LINEAR:g} in size",
    "linear": "share of the logits' variance that a linear function of the inputs explains",
    "spread": "how evenly a unit spreads its squared weights over hidden units, 1 for equal sizes",
    "masked": "dev error with one dropout mask",
    "averaged": f"dev error of the mean of {MASKS} masked networks",
}


def network(width: int, dropout: Any) -> tuple[layers.Layer, ...]:
    """Two hidden layers of tanh, each followed by dropout, and the layer of logits."""
    tanh, drop = layers.activation("tanh"), layers.dropout(dropout)
    hidden = (layers.dense(width, bias=True), tanh, drop)
    return (*hidden, *hidden, layers.dense(10, bias=True))


def flat(standardizer: normalization.Standardizer, images: jax.Array) -> jax.Array:
    """Inputs of the network, `[examples, 64]`, all pixels standardized alike.

    Each by itself would enlarge the pixels that hardly vary, as soon as an image is shifted.
    """
    return normalization.apply(standardizer, images.reshape(-1, 1)).reshape(len(images), -1)


def draw_data(
    key: jax.Array, images: jax.Array, labels: jax.Array, options: Options
) -> tuple[list[kit.Examples], normalization.Standardizer]:
    """Images and labels of a training, dev and test set; some training labels are wrong."""
    key_order, key_chosen, key_label = jax.random.split(key, 3)
    # Wrong labels in the training set only: the errors on the others are those of the truth.
    order = jax.random.permutation(key_order, len(images))
    images, labels = images[order], labels[order]
    count = options.train
    wrong = jax.random.uniform(key_chosen, (count,), jnp.float32) < options.mislabelled
    drawn = jax.random.randint(key_label, (count,), 0, 10, labels.dtype)
    labels = labels.at[:count].set(jnp.where(wrong, drawn, labels[:count]))
    ends = (0, count, count + options.dev, len(images))
    parts = [kit.Examples(images[i:j], labels[i:j]) for i, j in itertools.pairwise(ends)]
    return parts, normalization.fit(parts[0].x.reshape(-1, 1))


def draw_versions(
    key: jax.Array, images: jax.Array, standardizer: Any, options: Options
) -> jax.Array:
    """Training inputs as they are, at index 0, and changed copies, `[copies + 1, examples, 64]`.

    Drawn before training, so that networks with and without augmentation are one program.
    """

    def changed(key):
        key_shift, key_rotate, key_noise = jax.random.split(key, 3)
        copy = augmentation.shift(images, options.shift, key=key_shift)
        copy = augmentation.rotate(copy, options.degrees, key=key_rotate)
        return flat(standardizer, augmentation.noise(copy, options.noise, key=key_noise))

    copies = jax.lax.map(changed, jax.random.split(key, options.copies))
    return jnp.concatenate([flat(standardizer, images)[None], copies])


def train(
    key: jax.Array, sets: list[kit.Examples], versions: Any, strength: Strength, options: Options
) -> dict[str, jax.Array]:
    """Train one network on the versions of its training set and measure `VARIABLES`."""
    key_init, key_fit, key_masks = jax.random.split(key, 3)
    parts = network(options.width, strength.dropout)
    layer = layers.sequential(*parts)
    params, _ = layer.draw((64,), key=key_init, dtype=jnp.float32)

    def inputs(rows, key):
        changed = jax.random.randint(key, rows.shape, 1, len(versions))
        return versions[jnp.where(strength.augmented, changed, 0), rows]

    def penalty(params):  # lambda / (2 m) times the sum of w^2 or |w|
        strengths = ((regularization.l2, strength.l2), (regularization.l1, strength.l1))
        return sum(function(params, value, examples=options.train) for function, value in strengths)

    def errors(params, state):
        return [error_rate(logits(layer, params, state, x), y) for x, y in sets]

    dev, schedule = sets[1], optax.cosine_decay_schedule(options.learning_rate, options.steps)
    fitted = kit.classifier.train(
        layer,
        params,
        optax.sgd(schedule, momentum=0.9),
        kit.Examples(jnp.arange(options.train), sets[0].labels),
        key=key_fit,
        steps=options.steps,
        batch_size=options.batch_size,
        inputs=inputs,
        penalty=penalty,
        evaluate=lambda params, state: (errors(params, state)[1], ()),
        every=options.every,
    )
    names = ("train", "dev", "test")
    results = dict(zip(names, errors(fitted.params, fitted.state), strict=True))
    stopping: Any = fitted.best
    stopped = zip(names, errors(*stopping.params), strict=True)
    results |= {f"stopped_{name}": error for name, error in stopped}
    results["stopped_step"] = stopping.best * options.every
    # Dropout stays on, to compare masked networks with the scaled one.
    masked = jax.vmap(lambda key: layer.apply(fitted.params, None, dev.x, key=key)[0])(
        jax.random.split(key_masks, MASKS)
    )
    results["masked"] = jnp.mean(jax.vmap(error_rate, (0, None))(masked, dev.labels))
    results["averaged"] = error_rate(jnp.mean(jax.nn.softmax(masked), axis=0), dev.labels)
    return results | weights(fitted.params) | linearity(parts, fitted.params, sets)


def weights(params: Any) -> dict[str, jax.Array]:
    """How large weights are, how many are small and how evenly they are spread."""
    chosen = jax.tree.leaves(regularization.select(params))
    kernels = list(itertools.compress(jax.tree.leaves(params), chosen))
    values = jnp.concatenate([kernel.ravel() for kernel in kernels])

    def spread(kernel):
        # Relative to the largest of each unit, so that no power underflows.
        largest = jnp.max(jnp.abs(kernel), axis=0, keepdims=True)
        squares = jnp.square(kernel / jnp.maximum(largest, 1e-30))
        return jnp.mean(squares, axis=0) ** 2 / jnp.mean(squares**2, axis=0)

    return {
        "squares": jnp.sum(values**2),
        "small": jnp.mean(jnp.abs(values) < SMALL_WEIGHT),
        "spread": jnp.mean(jnp.concatenate([spread(kernel) for kernel in kernels[1:]])),
    }


def linearity(parts: Any, params: Any, sets: list[kit.Examples]) -> dict[str, jax.Array]:
    """How near hidden units, on the training set, and logits, on the test set, are to linear."""

    def after(count, x):
        return logits(layers.sequential(*parts[:count]), params[:count], None, x)

    x, test = sets[0].x, sets[2].x
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
    cost = kit.classifier.train(
        layer,
        params,
        optax.sgd(DESCENT_RATE),
        examples,
        key=key_fit,
        steps=DESCENT_STEPS,
        batch_size=options.train,
    ).loss
    # The order of the examples changes the rounding of their mean.
    return jnp.mean(cost[1:] > cost[:-1] * (1 + 10 * jnp.finfo(cost.dtype).eps))


def settings(options: Options) -> dict[tuple[str, float], Strength]:
    """Every network of a seed, by kind and strength."""
    return {
        ("none", 0.0): Strength(),
        **{("l2", value): Strength(l2=value) for value in options.l2},
        **{("l1", value): Strength(l1=value) for value in options.l1},
        **{("dropout", value): Strength(dropout=value) for value in options.dropout_rates},
        ("augmentation", 0.0): Strength(augmented=True),
    }


def measure(options: Options, progress: kit.Progress = None) -> xarray.Dataset:
    """`VARIABLES` over (seed, setting), with coordinates `kind` and `strength`; and `rises`.

    A cell is a seed, whose networks share data, first weights and order of examples.
    """
    table, digits = settings(options), kit.load("digits")
    # One program for all settings of a seed: their strengths are data.
    strengths = Strength(*map(jnp.asarray, zip(*table.values(), strict=True)))

    def cell(key, point, images, labels, strengths, dropout):
        key_data, key_versions, key_train = jax.random.split(key, 3)
        parts, standardizer = draw_data(key_data, images, labels, options)
        versions = draw_versions(key_versions, parts[0].x, standardizer, options)
        sets = [kit.Examples(flat(standardizer, x), y) for x, y in parts]
        results = jax.vmap(lambda s: train(key_train, sets, versions, s, options))(strengths)
        descent = jax.vmap(lambda rate: rises(key_train, sets[0], rate, options))
        return results | {"rises": descent(dropout)}

    variables = {name: sweeps.Variable(("setting",), "1", s) for name, s in VARIABLES.items()}
    words = "share of steps in which the cost rises"
    variables["rises"] = sweeps.Variable(("descent_dropout",), "1", words)
    images = jnp.asarray(digits.x.reshape(-1, 8, 8, 1) / 16, jnp.float32)
    rates = jnp.asarray(DESCENT_DROPOUT, jnp.float32)
    dataset = sweeps.run(
        cell,
        {"seed": options.seed_values},
        variables,
        key=jax.random.key(0),
        args=(images, jnp.asarray(digits.labels), strengths, rates),
        coords={"descent_dropout": DESCENT_DROPOUT},
        progress=progress,
    )
    kinds, values = zip(*table, strict=True)
    return dataset.assign_coords(kind=("setting", list(kinds)), strength=("setting", list(values)))


KINDS = {"l2": "L2, lambda", "l1": "L1, lambda", "dropout": "dropout, rate"}


def best(dataset: xarray.Dataset, kind: str) -> int:
    """The setting of a kind with the smallest dev error, mean over seeds."""
    dev = dataset["dev"].mean("seed").where(dataset["kind"] == kind, np.inf)
    return int(dev.argmin("setting"))


def select_by_dev(dataset: xarray.Dataset, kind: str, name: str) -> np.ndarray:
    """An error where, in each seed by itself, the strength is that of the smallest dev error."""
    # Having no strength at all is one of the choices.
    tried = dataset.isel(setting=np.flatnonzero(np.isin(dataset["kind"], ("none", kind))))
    return tried[name].isel(setting=tried["dev"].argmin("setting")).values


def label(dataset: xarray.Dataset, index: int) -> str:
    """Kind and strength of a setting in words."""
    kind = str(dataset["kind"].values[index])
    return f"{KINDS[kind]} {float(dataset['strength'][index]):g}" if kind in KINDS else kind


def ways(dataset: xarray.Dataset, name: str) -> dict[str, np.ndarray]:
    """An error `[seeds]` of each way to regularize, at its best strength by dev error."""
    values = dataset[name].values
    columns = {label(dataset, i): values[:, i] for i in (best(dataset, kind) for kind in KINDS)}
    columns["early stopping"] = dataset[f"stopped_{name}"].values[:, 0]
    return columns | {"augmentation": values[:, -1]}
