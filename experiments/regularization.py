"""What does each way to regularise do to dev error, how far from train error, and to weights?

Run `python -m experiments.regularization`, or `--help` for its options.
"""

from __future__ import annotations

import functools
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray

from experiments import frontend
from jaxgrad import (
    layers,
    plotting,
    regimes,
    sweeps,
    training,
)
from jaxgrad.training import augmentation, normalization, regularization

CLASSES = 10
SMALL_WEIGHT = 1e-3
NEAR_LINEAR = 0.5
"""Below this size of its argument tanh is within 8 % of the identity."""
MASKS = 16
"""How many dropout masks are averaged."""
DESCENT_KEEP_PROB = (1.0, 0.8, 0.5)
DESCENT_STEPS = 200
DESCENT_RATE = 0.1


@dataclass(frozen=True)
class Config:
    """Options of the comparison of ways to regularise, on the digits of scikit-learn."""

    l2: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Strengths lambda of lambda / (2 m) sum w^2, above 0."""
    l1: tuple[float, ...] = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
    """Strengths lambda of lambda / (2 m) sum |w|, above 0."""
    keep_prob: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.9)
    """Shares of hidden units that dropout keeps, between 0 and 1."""
    shift: int = 1
    """Augmentation: largest shift in pixels."""
    degrees: float = 10.0
    """Augmentation: largest rotation."""
    noise: float = 0.1
    """Augmentation: standard deviation of noise, where pixels lie between 0 and 1."""
    copies: int = 100
    """Augmentation: how many changed copies of the training set there are to draw from."""
    train: int = 250
    """Training examples."""
    dev: int = 500
    """Dev examples; the rest, at least one, are for the test."""
    mislabelled: float = 0.2
    """Share of training labels that are drawn at random; dev and test labels stay right."""
    width: int = 64
    """Units of each of two hidden layers, of tanh."""
    steps: int = 600
    """Steps of SGD with momentum 0.9, whose rate falls to 0 as a cosine."""
    every: int = 10
    """Steps between the evaluations of early stopping, which divide the steps."""
    batch_size: int = 50
    """Examples in a batch."""
    rate: float = 0.05
    """Learning rate at the start."""
    seeds: int = 8
    """How many splits of the data with networks of their own, at least 2."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    output: Path = Path("results/regularization.png")
    """Where to write the figure."""


class Strength(NamedTuple):
    """How strongly a network is regularised; all may be traced."""

    l2: Any = 0.0
    l1: Any = 0.0
    keep_prob: Any = 1.0
    augmented: Any = False


VARIABLES = {
    "train": "error on the training set, as it is labelled",
    "dev": "error on the dev set",
    "test": "error on the test set",
    "stopped_train": "train error of the parameters of the best dev error",
    "stopped_dev": "their dev error",
    "stopped_test": "their test error",
    "stopped_step": "after how many steps it was found",
    "squares": "sum of squared weights",
    "small": f"share of weights below {SMALL_WEIGHT:g}",
    "near": f"share of hidden units whose argument is below {NEAR_LINEAR:g} in size",
    "linear": "share of the logits' variance that a linear function of the inputs explains",
    "spread": "how evenly a unit spreads its squared weights over hidden units, 1 for equal sizes",
    "masked": "dev error with one dropout mask",
    "averaged": f"dev error of the mean of {MASKS} masked networks",
}


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    for name, limit in (("l2", np.inf), ("l1", np.inf), ("keep_prob", 1.0)):
        values = getattr(config, name)
        inside = bool(values) and all(0 < value < limit for value in values)
        if not inside or len(set(values)) < len(values):
            raise ValueError(
                f"{name} must be different numbers above 0 and below {limit:g}, got {values}; the "
                "network without any is always there, too"
            )
    images = len(digits()[0])
    for name, least, most in (
        ("train", 1, images - 2),
        ("dev", 1, images - 1 - config.train),
        ("batch_size", 1, config.train),
        *((name, 1, 10**6) for name in ("width", "steps", "every", "copies")),
        *((name, 0, 10**6) for name in ("first_seed", "shift", "degrees", "noise")),
        ("seeds", 2, 10**6),
        ("rate", 1e-6, 10**6),
        ("mislabelled", 0, 1),
    ):
        value = getattr(config, name)
        if not least <= value <= most:
            raise ValueError(f"{name} must be from {least} to {most}, got {value}; correct it")
    if config.steps % config.every:
        raise ValueError(
            f"every must divide the {config.steps} steps, got {config.every}; change one of them"
        )
    frontend.writable("output", config.output)


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images `[1797, 8, 8, 1]` with pixels between 0 and 1, and labels."""
    from sklearn import datasets

    bunch: Any = datasets.load_digits()
    return bunch.images[..., None].astype(np.float32) / 16, bunch.target.astype(np.int32)


def network(width: int, keep_prob: Any) -> tuple[layers.Layer, ...]:
    """Two hidden layers of tanh, each followed by dropout, and the layer of logits."""
    # An array, since the Python number 0 would mean that there are no biases.
    dense = functools.partial(layers.dense, b_variance=jnp.zeros(()))
    hidden = (dense(width), layers.activation("tanh"), layers.dropout(keep_prob))
    return (*hidden, *hidden, dense(CLASSES))


class Split(NamedTuple):
    """The data of one seed: images and labels, and the inputs that networks take."""

    images: jax.Array
    labels: jax.Array
    standardizer: normalization.Standardizer

    def inputs(self, images: jax.Array) -> jax.Array:
        """Flat and standardized, all pixels alike.

        Each by itself would blow up the pixels that hardly vary, as soon as an image is shifted.
        """
        pixels = normalization.apply(self.standardizer, images.reshape(-1, 1))
        return pixels.reshape(len(images), -1)


def split(key: jax.Array, images: jax.Array, labels: jax.Array, config: Config) -> list[Split]:
    """Training, dev and test set, drawn anew; some training labels are wrong."""
    key_order, key_chosen, key_label = jax.random.split(key, 3)
    order = jax.random.permutation(key_order, len(images))
    images, labels = images[order], labels[order]
    ends = (0, config.train, config.train + config.dev, len(images))
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    wrong = jax.random.uniform(key_chosen, (config.train,), jnp.float32) < config.mislabelled
    drawn = jax.random.randint(key_label, (config.train,), 0, CLASSES, labels.dtype)
    labels = labels.at[parts[0]].set(jnp.where(wrong, drawn, labels[parts[0]]))
    standardizer = normalization.fit(images[parts[0]].reshape(-1, 1))
    return [Split(images[part], labels[part], standardizer) for part in parts]


def cost(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross-entropy."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def wrong(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of examples whose largest logit is another class's."""
    return jnp.mean(jnp.argmax(logits, axis=-1) != labels)


def augmented(key: jax.Array, images: jax.Array, config: Config) -> jax.Array:
    """Images shifted, rotated and with noise."""
    key_shift, key_rotate, key_noise = jax.random.split(key, 3)
    images = augmentation.shift(images, config.shift, key=key_shift)
    images = augmentation.rotate(images, config.degrees, key=key_rotate)
    return augmentation.noise(images, config.noise, key=key_noise)


def versions(key: jax.Array, part: Split, config: Config) -> jax.Array:
    """Inputs as they are, at index 0, and of every changed copy, `[copies + 1, examples, 64]`.

    Drawn ahead of training, so that networks with and without augmentation are one program.
    """
    keys = jax.random.split(key, config.copies)
    changed = jax.lax.map(lambda k: part.inputs(augmented(k, part.images, config)), keys)
    return jnp.concatenate([part.inputs(part.images)[None], changed])


def train(
    key: jax.Array, sets: list[Split], seen: jax.Array, strength: Strength, config: Config
) -> dict[str, jax.Array]:
    """Train one network on the `versions` of its training set and measure `VARIABLES`."""
    key_init, key_fit, key_masks = jax.random.split(key, 3)
    parts = network(config.width, strength.keep_prob)
    net = layers.sequential(*parts)
    training_set, dev, _ = sets
    inputs = [part.inputs(part.images) for part in sets]
    params, _ = net.init(key_init, inputs[0].shape[1:], jnp.float32)

    def loss(params, state, batch, key):
        examples, labels = batch
        key_version, key_dropout = jax.random.split(key)
        changed = jax.random.randint(key_version, examples.shape, 1, len(seen))
        version = jnp.where(strength.augmented, changed, 0)
        logits = net.apply(params, seen[version, examples], key_dropout)
        penalty = regularization.l2(params, strength.l2, examples=config.train)
        penalty += regularization.l1(params, strength.l1, examples=config.train)
        return cost(logits, labels) + penalty, state

    def evaluate(params, state):
        return wrong(net.apply(params, inputs[1], None), dev.labels), ()

    schedule = optax.cosine_decay_schedule(config.rate, config.steps)
    fitted = training.fit(
        loss,
        params,
        optax.sgd(schedule, momentum=0.9),
        (jnp.arange(config.train), training_set.labels),
        key=key_fit,
        steps=config.steps,
        batch_size=config.batch_size,
        evaluate=evaluate,
        every=config.every,
    )
    best, _ = fitted.best.params

    def errors(params):
        logits = [net.apply(params, x, None) for x in inputs]
        return [wrong(z, part.labels) for z, part in zip(logits, sets, strict=True)]

    names = ("train", "dev", "test")
    found = dict(zip(names, errors(fitted.params), strict=True))
    found |= {f"stopped_{name}": v for name, v in zip(names, errors(best), strict=True)}
    found["stopped_step"] = fitted.best.best * config.every
    masks = jax.vmap(lambda key: net.apply(fitted.params, inputs[1], key))(
        jax.random.split(key_masks, MASKS)
    )
    found["masked"] = jnp.mean(jax.vmap(wrong, (0, None))(masks, dev.labels))
    found["averaged"] = wrong(jnp.mean(jax.nn.softmax(masks), axis=0), dev.labels)
    return found | weights(fitted.params) | linearity(parts, fitted.params, inputs)


def weights(params: Any) -> dict[str, jax.Array]:
    """How large weights are, how many are small and how evenly they are spread."""
    chosen = jax.tree.leaves(regularization.select(params))
    kernels = [w for w, taken in zip(jax.tree.leaves(params), chosen, strict=True) if taken]
    flat = jnp.concatenate([w.ravel() for w in kernels])

    def spread(kernel):
        # Relative to the largest of each unit, so that no power underflows.
        largest = jnp.max(jnp.abs(kernel), axis=0, keepdims=True)
        squares = jnp.square(kernel / jnp.maximum(largest, 1e-30))
        return jnp.mean(squares, axis=0) ** 2 / jnp.mean(squares**2, axis=0)

    return {
        "squares": jnp.sum(flat**2),
        "small": jnp.mean(jnp.abs(flat) < SMALL_WEIGHT),
        "spread": jnp.mean(jnp.concatenate([spread(kernel) for kernel in kernels[1:]])),
    }


def linearity(
    parts: tuple[layers.Layer, ...], params: Any, inputs: list[jax.Array]
) -> dict[str, jax.Array]:
    """How near hidden units, on the training set, and logits, on the test set, are to linear."""

    def after(count, x):
        return layers.sequential(*parts[:count]).apply(params[:count], x, None)

    arguments = jnp.concatenate([after(1, inputs[0]), after(4, inputs[0])], axis=1)
    outputs = after(len(parts), inputs[2])
    logits = outputs - jnp.mean(outputs, axis=0, keepdims=True)
    x = inputs[2] - jnp.mean(inputs[2], axis=0, keepdims=True)
    rest = logits - x @ jnp.linalg.lstsq(x, logits)[0]
    varies = jnp.sum(logits**2)
    # Penalties can leave nothing but rounding, and what is constant is linear.
    some = varies > 1e-10 * jnp.sum(outputs**2)
    return {
        "near": jnp.mean(jnp.abs(arguments) < NEAR_LINEAR),
        "linear": jnp.where(some, 1 - jnp.sum(rest**2) / jnp.where(some, varies, 1.0), 1.0),
    }


def rises(key: jax.Array, training_set: Split, keep_prob: Any, config: Config) -> jax.Array:
    """In which share of the steps of full-batch gradient descent the cost J goes up."""
    key_init, key_fit = jax.random.split(key)
    net = layers.sequential(*network(config.width, keep_prob))
    x = training_set.inputs(training_set.images)
    params, _ = net.init(key_init, x.shape[1:], jnp.float32)

    def loss(params, state, batch, key):
        return cost(net.apply(params, batch[0], key), batch[1]), state

    costs = training.fit(
        loss,
        params,
        optax.sgd(DESCENT_RATE),
        (x, training_set.labels),
        key=key_fit,
        steps=DESCENT_STEPS,
        batch_size=len(x),
    ).loss
    # Another order of the examples rounds the mean otherwise.
    rounding = 10 * jnp.finfo(costs.dtype).eps * costs[:-1]
    return jnp.mean(costs[1:] > costs[:-1] + rounding)


def settings(config: Config) -> dict[tuple[str, float], Strength]:
    """Every network of a seed, by kind and strength."""
    return {
        ("none", 0.0): Strength(),
        **{("l2", value): Strength(l2=value) for value in config.l2},
        **{("l1", value): Strength(l1=value) for value in config.l1},
        **{("keep_prob", value): Strength(keep_prob=value) for value in config.keep_prob},
        ("augmentation", 0.0): Strength(augmented=True),
    }


def measure(config: Config, progress: Any = None) -> xarray.Dataset:
    """`VARIABLES` over (seed, setting), with coordinates `kind` and `strength`; and `rises`.

    A cell is a seed, whose networks share data, first weights and order of examples.
    """
    table = settings(config)
    strengths = Strength(*map(jnp.asarray, zip(*table.values(), strict=True)))

    def cell(key, point, images, labels, strengths, keep_prob):
        key_split, key_versions, key_train = jax.random.split(key, 3)
        sets = split(key_split, images, labels, config)
        seen = versions(key_versions, sets[0], config)
        found = jax.vmap(lambda s: train(key_train, sets, seen, s, config))(strengths)
        descent = jax.vmap(lambda k: rises(key_train, sets[0], k, config))
        return found | {"rises": descent(keep_prob)}

    variables = {
        name: sweeps.Variable(("setting",), "1", text) for name, text in VARIABLES.items()
    } | {"rises": sweeps.Variable(("descent_keep_prob",), "1", "share of steps in which J goes up")}
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    found = sweeps.run(
        cell,
        {"seed": tuple(seeds)},
        variables,
        key=jax.random.key(0),
        args=(
            *map(jnp.asarray, digits()),
            strengths,
            jnp.asarray(DESCENT_KEEP_PROB, jnp.float32),
        ),
        coords={"descent_keep_prob": DESCENT_KEEP_PROB},
        progress=progress,
    )
    kinds, values = zip(*table, strict=True)
    return found.assign_coords(kind=("setting", list(kinds)), strength=("setting", list(values)))


KINDS = {"l2": "L2, lambda", "l1": "L1, lambda", "keep_prob": "dropout, keep_prob"}


def best(found: xarray.Dataset, kind: str) -> int:
    """The setting of a kind with the smallest dev error, mean over seeds."""
    dev = found["dev"].mean("seed").where(found["kind"] == kind, np.inf)
    return int(dev.argmin("setting"))


def searched(found: xarray.Dataset, kind: str, name: str) -> np.ndarray:
    """An error where, in each seed by itself, the strength is that of the smallest dev error."""
    tried = found.isel(setting=np.flatnonzero(np.isin(found["kind"], ("none", kind))))
    return tried[name].isel(setting=tried["dev"].argmin("setting")).values


def with_error(values: np.ndarray, scale: float = 100.0) -> str:
    """Mean over seeds and standard error, shares in percent."""
    mean, error = (float(part) * scale for part in regimes.mean_and_error(values))
    return f"{mean:.1f} ± {error:.1f}"


def direction(change: np.ndarray) -> int:
    """The sign of a change that lies more than two standard errors from none, else 0."""
    mean, error = (float(part) for part in regimes.mean_and_error(change))
    return int(np.sign(mean)) if abs(mean) > 2 * error else 0


def against(values: np.ndarray, other: np.ndarray) -> str:
    """How one error differs from another of the same seeds, in words."""
    words = {-1: "lower by", 0: "not measurably different:", 1: "higher by"}
    change = values - other
    sign = direction(change)
    return f"{words[sign]} {with_error(change * (sign or 1))} points"


def errors_table(found: xarray.Dataset) -> str:
    """Errors and weights of every setting."""
    rows = []
    for i, kind in enumerate(found["kind"].values):
        one = {name: found[name].values[:, i] for name in VARIABLES}
        strength = float(found["strength"][i])
        rows.append(
            (
                f"{KINDS[kind]} {strength:g}" if kind in KINDS else str(kind),
                *(with_error(one[name]) for name in ("train", "dev", "test")),
                f"{one['squares'].mean():.1f}",
                *(f"{one[name].mean():.1%}" for name in ("small", "near", "linear", "spread")),
            )
        )
        if kind == "none":
            stopped = (with_error(one[f"stopped_{name}"]) for name in ("train", "dev", "test"))
            rows.append(("early stopping", *stopped, *[""] * 5))
    small, near = f"|w| < {SMALL_WEIGHT:g}", f"|z| < {NEAR_LINEAR:g}"
    headings = ("error in percent", "train", "dev", "test", "sum w²", small, near)
    return frontend.table((*headings, "linear", "spread"), rows)


def claims_table(found: xarray.Dataset) -> str:
    """What is said of each way to regularise, beside what is measured."""
    none, dropout = 0, best(found, "keep_prob")
    l2, l1, weakest = (
        int(found["strength"].where(found["kind"] == kind).argmax("setting"))
        for kind in ("l2", "l1", "keep_prob")
    )
    rows = []
    for claim, name, sign, before, after in (
        ("strongest L2: smaller weights, sum w²", "squares", -1, none, l2),
        ("strongest L2: units near-linear, |z| small", "near", 1, none, l2),
        ("strongest L2: nearer to a linear function", "linear", 1, none, l2),
        ("strongest L1: more weights near 0", "small", 1, none, l1),
        ("best dropout: smaller weights, sum w²", "squares", -1, none, dropout),
        ("weakest dropout: smaller weights, sum w²", "squares", -1, none, weakest),
        ("best dropout: weights spread over units", "spread", 1, none, dropout),
    ):
        values = found[name].values
        scale = 1.0 if name == "squares" else 100.0
        pair = [with_error(values[:, at], scale) for at in (before, after)]
        verdict = {sign: "holds", 0: "not seen", -sign: "the opposite"}
        rows.append((claim, *pair, verdict[direction(values[:, after] - values[:, before])]))
    return frontend.table(("claim", "without", "with", "measured"), rows)


def report(found: xarray.Dataset, config: Config) -> str:
    """Tables, then in words what lowers the test error, at what cost, and what dropout does."""
    at = {kind: best(found, kind) for kind in KINDS}
    test = found["test"].values
    stopped = found["stopped_test"].values[:, 0]
    ways = {f"{KINDS[k]} {float(found['strength'][i]):g}": test[:, i] for k, i in at.items()}
    ways |= {"early stopping": stopped, "augmentation": test[:, -1]}
    lambdas = searched(found, "l2", "test")
    masked, averaged, scaled = (
        found[name].values[:, at["keep_prob"]] for name in ("masked", "averaged", "dev")
    )
    descent = [
        f"keep_prob {keep:g}: {with_error(found['rises'].values[:, i])} %"
        for i, keep in enumerate(found["descent_keep_prob"].values)
    ]
    lines = [
        f"\n{config.train} digits to train on, {config.mislabelled:.0%} of their labels drawn at "
        f"random, {config.dev} for dev; mean over {config.seeds} seeds ± standard error.",
        "z: argument of a hidden unit; linear: share of the logits' variance that a linear "
        "function of the inputs explains;",
        "spread: 100% if a unit weighs all hidden units alike.",
        errors_table(found),
        "\nTest error at the best dev error, against no regularisation in the same seeds:",
        *(f"- {name}: {against(values, test[:, 0])}" for name, values in ways.items()),
        f"\nEarly stopping found its parameters in one run after "
        f"{with_error(found['stopped_step'].values[:, 0], 1.0)} of {config.steps} steps: test "
        f"error {with_error(stopped)} %.",
        f"The best lambda of L2 in each seed took {len(config.l2) + 1} runs to find: "
        f"{with_error(lambdas)} %. Early stopping's is {against(stopped, lambdas)}.\n",
        claims_table(found),
        f"No weight need be 0 itself: steps of gradient descent jump over it, so {SMALL_WEIGHT:g} "
        "counts as near.",
        f"\nDropout as bagging, dev error: the mean of {MASKS} masked networks is "
        f"{against(averaged, masked)}, against one of them;",
        f"the one scaled network is {against(scaled, averaged)}, against that mean.",
        f"\nFull-batch gradient descent, steps in which J rises: {'; '.join(descent)}.",
    ]
    return "\n".join(lines)


def headline(found: xarray.Dataset, config: Config) -> str:
    """What the figure shows, in two sentences."""
    dev = found["dev"].values
    ways = {words.split(",")[0]: dev[:, best(found, kind)] for kind, words in KINDS.items()}
    ways |= {"early stopping": found["stopped_dev"].values[:, 0], "augmentation": dev[:, -1]}
    lower = [
        f"{values.mean():.0%} ({name})"
        for name, values in sorted(ways.items(), key=lambda way: way[1].mean())
        if direction(values - dev[:, 0]) < 0
    ]
    none = f"dev error of {dev[:, 0].mean():.0%}"
    return (
        (
            f"Regularised, the {none} falls to {', '.join(lower)}"
            if lower
            else f"Nothing lowers the {none} measurably"
        )
        + f"\nWithout, train error is {found['train'].values[:, 0].mean():.0%}, though "
        f"{config.mislabelled:.0%} of the training labels are drawn at random"
    )


def run(config: Config) -> None:
    """Compare L2, L1, dropout, early stopping and augmentation on few digits."""
    checked(config)
    start = time.perf_counter()
    found = measure(config, frontend.Bar("seeds"))
    print(report(found, config))
    plotting.regularization(found, headline(found, config)).savefig(config.output, dpi=110)
    count = config.seeds * (found.sizes["setting"] + found.sizes["descent_keep_prob"])
    print(f"\n{count} networks, {time.perf_counter() - start:.1f} s in all.")
    print(f"Figure: {config.output}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
