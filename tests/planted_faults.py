"""Training runs with one fault each, as data: a whole group of runs is one compiled program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

from jaxgrad import activations, initializers, networks, training
from jaxgrad.training import monitoring

STACKED = "^hidden/"
EXAMPLES = {"digits": 600, "cancer": 320, "wine": 120}
DEV = {"digits": 200, "cancer": 200, "wine": 58}


class Group(NamedTuple):
    """What is compiled once: activation, depth, optimizer, data, sizes."""

    activation: str
    depth: int
    optimizer: str
    data: str
    rate: float
    w_variance: float = 1.0
    width: int = 24
    steps: int = 160
    batch: int = 32


class Plant(NamedTuple):
    """One run, by its seed and by how it departs from its group."""

    fault: str | None
    seed: int = 0
    rate: float = 1.0  # factor
    w_variance: float = 1.0  # factor
    bias: float = 0.0
    examples: int | None = None
    noise: float = 0.0  # share of the training labels that is redrawn
    frozen: int | None = None  # index of a layer
    raw: bool = False  # inputs


LOADED = {
    "digits": datasets.load_digits,
    "cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
}


def pieces(group, plant):
    """The arrays of one run."""
    loaded: Any = LOADED[group.data]()
    rng = np.random.default_rng(plant.seed)
    order = rng.permutation(len(loaded.target))
    train = order[: EXAMPLES[group.data]]
    dev = order[len(train) : len(train) + DEV[group.data]]
    # Few examples over and over, so that all runs have the shapes of one.
    train = train[np.arange(len(train)) % (plant.examples or len(train))]
    x, labels = loaded.data.astype(np.float32), loaded.target.astype(np.int32)
    if not plant.raw:
        mean, std = x[train].mean(axis=0), x[train].std(axis=0)
        x = (x - mean) / np.where(std > 0, std, 1.0)
    noisy = labels[train].copy()
    redrawn = rng.random(len(train)) < plant.noise
    noisy[redrawn] = rng.integers(0, labels.max() + 1, redrawn.sum())
    moving = np.ones(group.depth + 1, np.float32)
    if plant.frozen is not None:
        moving[plant.frozen] = 0
    return {
        "seed": np.int32(plant.seed),
        "rate": np.float32(group.rate * plant.rate),
        "w_variance": np.float32(group.w_variance * plant.w_variance),
        "bias": np.float32(plant.bias),
        "moving": moving,
        "train": {"x": x[train], "label": noisy},
        "dev": {"x": x[dev], "label": labels[dev]},
    }


def forward(params, x, activation):
    """Logits, and pre-activations `[depth, batch, width]`."""
    phi = activations.get(activation)
    z = networks.affine(params["first"], x)

    def step(z, layer):
        z = networks.affine(layer, phi(z))
        return z, z

    last, rest = jax.lax.scan(step, z, params["hidden"])
    return networks.affine(params["readout"], phi(last)), jnp.concatenate([z[None], rest])


def optimizer(name, rate, moving):
    made = {
        "sgd": lambda: optax.sgd(rate),
        "momentum": lambda: optax.sgd(rate, momentum=0.9),
        "nesterov": lambda: optax.sgd(rate, momentum=0.9, nesterov=True),
        "adam": lambda: optax.adam(rate),
        "rmsprop": lambda: optax.rmsprop(rate),
    }[name]()

    def held(updates, params=None):
        shares = {"first": moving[0], "hidden": moving[1:-1], "readout": moving[-1]}
        return {
            part: jax.tree.map(
                lambda a, share=share: (
                    a * share.reshape((-1,) + (1,) * (a.ndim - 1)) if share.ndim else a * share
                ),
                updates[part],
            )
            for part, share in shares.items()
        }

    return optax.chain(made, optax.stateless(held))


def run(group, data, classes):
    key_init, key_fit = jax.random.split(jax.random.key(data["seed"]))
    params = networks.init(
        key_init,
        data["train"]["x"].shape[1],
        group.width,
        group.depth,
        out_features=classes,
        bias_init=initializers.zeros(),
    )
    params = networks.scale(params, data["w_variance"])
    for part in ("first", "hidden"):
        params[part]["bias"] = params[part]["bias"] + data["bias"]

    def loss(params, state, batch, key):
        logits, _ = forward(params, batch["x"], group.activation)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return jnp.mean(each), state

    def evaluate(params, state):
        logits, z = forward(params, data["dev"]["x"], group.activation)
        wrong = jnp.mean(jnp.argmax(logits, axis=1) != data["dev"]["label"])
        seen, _ = forward(params, data["train"]["x"], group.activation)
        labels = data["train"]["label"]
        return wrong, {
            "units": monitoring.units(z, group.activation),
            "train_error": jnp.mean(jnp.argmax(seen, axis=1) != labels),
        }

    def monitor(step):
        return monitoring.layer_norms(step, stacked=STACKED)

    return training.fit(
        loss,
        params,
        optimizer(group.optimizer, data["rate"], data["moving"]),
        data["train"],
        key_fit,
        steps=group.steps,
        batch_size=group.batch,
        evaluate=evaluate,
        every=20,
        monitor=monitor,
    )


def runs(group, plants):
    """Every run of a group, and what `diagnose` takes of each."""
    made = [pieces(group, plant) for plant in plants]
    classes = int(max(piece["dev"]["label"].max() for piece in made)) + 1
    stacked = jax.tree.map(lambda *a: np.stack(a), *made)
    fits = jax.jit(jax.vmap(lambda data: run(group, data, classes)))(stacked)
    fits = jax.tree.map(np.asarray, fits)
    names = monitoring.layer_names(jax.tree.map(lambda a: a[0], fits.params), stacked=STACKED)
    for index, piece in enumerate(made):
        fit = jax.tree.map(lambda a, index=index: a[index], fits)
        yield (
            (fit, fit.trace, fit.record["units"]),
            {
                "names": names,
                "inputs": piece["train"]["x"],
                "train_error": fit.record["train_error"],
            },
        )
