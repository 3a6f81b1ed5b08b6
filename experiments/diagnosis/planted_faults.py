"""Small recorded training runs on real data, healthy or with one planted fault.

Faults are data, so all runs of a group are one compiled program. `CASES` holds the runs on which
`jaxgrad.training.diagnosis` is tested.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _kit
from jaxgrad import activations, layers, training
from jaxgrad.training import monitoring, normalization

STACKED = "^hidden/"
"""Paths of the parameters that have a leading axis of layers."""
EVERY = 20
"""Steps between evaluations."""
EXAMPLES = {"digits": 600, "breast_cancer": 320, "wine": 120}
"""Training examples of each data set."""
DEV = {"digits": 200, "breast_cancer": 200, "wine": 58}
"""Dev examples of each data set."""
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "adam": optax.adam,
    "rmsprop": optax.rmsprop,
}
"""Functions from a learning rate to an optimizer."""


class Group(NamedTuple):
    """The settings that all runs of one compiled program share.

    Attributes:
      activation: a name of `jaxgrad.activations.TABLE`.
      depth: number of hidden layers; 0 for softmax regression, whose weights start at 0.
      optimizer: a name of `OPTIMIZERS`.
      data: a name of `EXAMPLES`.
      rate: learning rate of a healthy run.
      w_variance: variance of a healthy run's weights at the start, times fan-in.
      width: units of every hidden layer.
      steps: of training, a multiple of `EVERY`.
      batch: examples in a step.
    """

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
    """One run: its seed and how it differs from the healthy runs of its group.

    Attributes:
      fault: a value of `jaxgrad.training.faults.Fault`, `None` for a healthy run.
      seed: of the split of the data, the parameters and the order of examples.
      rate: factor to the learning rate, from step `since` on.
      w_variance: factor to the variance of the weights at the start.
      bias: of every hidden unit at the start.
      examples: number of distinct training examples, which are repeated; `None` for all.
      noise: share of the training labels that is redrawn.
      frozen: index of the layer that is not updated from step `since` on, `None` for none.
      raw: whether inputs are not standardized.
      since: step from which `rate` and `frozen` hold.
    """

    fault: str | None
    seed: int = 0
    rate: float = 1.0
    w_variance: float = 1.0
    bias: float = 0.0
    examples: int | None = None
    noise: float = 0.0
    frozen: int | None = None
    raw: bool = False
    since: int = 0


HEALTHY = tuple(Plant(None, seed) for seed in range(3))
CASES: dict[Group, tuple[Plant, ...]] = {
    Group("tanh", 4, "momentum", "digits", rate=0.02): (
        *HEALTHY,
        Plant("rate too high", 3, rate=300),
        Plant("rate too low", 4, rate=1e-4),
        Plant("vanishing", 5, w_variance=0.02),
        Plant("saturated units", 6, w_variance=100),
        Plant("overfitting", 7, examples=30),
        Plant("frozen layer", 8, frozen=2),
        Plant("label noise", 9, noise=0.3),
        Plant("rate too high", 10, rate=300, since=70),
    ),
    Group("relu", 5, "adam", "digits", rate=0.003, w_variance=2.0): (
        *HEALTHY,
        Plant("rate too high", 3, rate=300),
        Plant("rate too low", 4, rate=1e-4),
        Plant("exploding", 5, w_variance=10),
        Plant("dead units", 6, bias=-5),
        Plant("overfitting", 7, examples=40),
        Plant("frozen layer", 8, frozen=0),
        Plant("label noise", 9, noise=0.5),
        Plant("frozen layer", 10, frozen=2, since=50),
    ),
    Group("relu", 3, "sgd", "breast_cancer", rate=0.05, w_variance=2.0, width=16): (
        *HEALTHY[:2],
        Plant("exploding", 3, w_variance=100),
        Plant("unnormalised inputs", 4, raw=True),
        Plant("dead units", 5, bias=-8),
        Plant("rate too low", 6, rate=1e-4),
        Plant("rate too high", 7, rate=1000),
        Plant("label noise", 8, noise=0.4),
        Plant("frozen layer", 9, frozen=1),
    ),
    Group("sigmoid", 3, "adam", "wine", rate=0.02, w_variance=4.0, width=16): (
        *HEALTHY[:2],
        Plant("unnormalised inputs", 3, raw=True),
        Plant("saturated units", 4, bias=12.0),
        Plant("saturated units", 5, w_variance=300),
        Plant("rate too low", 6, rate=1e-4),
    ),
    Group("sigmoid", 6, "sgd", "digits", rate=0.1, width=16): (
        Plant("vanishing", 0),
        Plant("vanishing", 1, w_variance=0.1),
    ),
    Group("linear", 0, "sgd", "digits", rate=0.1): (
        *HEALTHY,
        Plant("rate too high", 3, rate=3000),
        Plant("rate too low", 4, rate=1e-4),
        Plant("rate too low", 5, rate=1e-3),
    ),
}
"""Every fault occurs in at least two groups; most groups have healthy runs too."""


def arrays(group: Group, plant: Plant) -> dict[str, Any]:
    """The data of one run, with the same shapes for all plants of a group."""
    data = _kit.load(group.data)
    x, labels = data.x.astype(np.float32), data.labels
    rng = np.random.default_rng(plant.seed)
    order = rng.permutation(len(labels))
    train = order[: EXAMPLES[group.data]]
    # Dev examples are fixed before the training set is reduced.
    dev = order[len(train) : len(train) + DEV[group.data]]
    # Few examples are repeated, so that all runs have the same shapes.
    train = train[np.arange(len(train)) % (plant.examples or len(train))]
    # Statistics come from the training examples alone.
    if not plant.raw:
        x = np.asarray(normalization.apply(normalization.fit(x[train]), x))
    # A redrawn label may be right by chance.
    noisy = labels[train].copy()
    redrawn = rng.random(len(train)) < plant.noise
    noisy[redrawn] = rng.integers(0, labels.max() + 1, redrawn.sum())
    # A factor for the updates of each layer; 0 freezes it.
    moving = np.full(group.depth + 1, plant.rate, np.float32)
    if plant.frozen is not None:
        moving[plant.frozen] = 0
    return {
        "seed": np.int32(plant.seed),
        "w_variance": np.float32(group.w_variance * plant.w_variance),
        "bias": np.float32(plant.bias),
        "moving": moving,
        "since": np.int32(plant.since),
        "train": {"x": x[train], "label": noisy},
        "dev": {"x": x[dev], "label": labels[dev]},
    }


def affine(layer: Any, h: Any) -> jax.Array:
    """`h W + b`."""
    z = h @ layer["kernel"]
    return z + jnp.broadcast_to(layer["bias"], z.shape)


def forward(params: Any, x: Any, activation: str) -> tuple[jax.Array, Any]:
    """Logits `[batch, classes]`, pre-activations `[depth, batch, width]` (`None` for depth 0)."""
    if "first" not in params:
        return affine(params["readout"], x), None
    phi = activations.get(activation)
    z = affine(params["first"], x)

    def step(z, layer):
        z = affine(layer, phi(z))
        return z, z

    last, rest = jax.lax.scan(step, z, params["hidden"])
    return affine(params["readout"], phi(last)), jnp.concatenate([z[None], rest])


def cross_entropy(params: Any, batch: Any, activation: str) -> jax.Array:
    """Mean loss of a batch with `x` and `label`."""
    logits, _ = forward(params, batch["x"], activation)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]))


def optimizer(name: str, rate: Any, moving: Any, since: Any) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`, whose updates are multiplied by `moving` from step `since` on."""

    def update(updates, state, params=None):
        factors = jnp.where(state >= since, moving, 1.0)
        # Parameters of the hidden layers are stacked, so their factor is a vector.
        shares = {"first": factors[0], "hidden": factors[1:-1], "readout": factors[-1]}
        scaled = {
            part: jax.tree.map(
                lambda a, share=shares[part]: (
                    a * share.reshape(share.shape + (1,) * (a.ndim - share.ndim))
                ),
                updates[part],
            )
            for part in updates
        }
        return scaled, state + 1

    # After the optimizer, since Adam would undo a factor of the gradients.
    counted = optax.GradientTransformation(lambda params: jnp.int32(0), update)
    return optax.chain(OPTIMIZERS[name](rate), counted)


def initial(group: Group, data: Any, key: jax.Array, classes: int) -> Any:
    """Parameters at the start of one plant's run."""
    features = data["train"]["x"].shape[1]
    # Softmax regression has no symmetry to break, so it starts at 0.
    if group.depth == 0:
        return {"readout": {"kernel": jnp.zeros((features, classes)), "bias": jnp.zeros(classes)}}
    size, weights = (group.width, group.depth, group.activation), data["w_variance"]
    network = layers.mlp(*size, out_features=classes, w_variance=weights, bias=True)
    params, _ = layers.init(network, (features,), key=key)
    # A bias shifts hidden units into or out of their flat part.
    for part in ("first", "hidden"):
        params[part]["bias"] = params[part]["bias"] + data["bias"]
    return params


def run(group: Group, data: Any, classes: int) -> training.Fit:
    """Train on one plant's `arrays`; may be mapped over them.

    The trace of the result is `layer_norms`, its error that of the dev set, and its record has
    `units` on the dev set and `train_error`.
    """
    key_init, key_fit = jax.random.split(jax.random.key(data["seed"]))
    params = initial(group, data, key_init, classes)

    def error(params, part):
        logits, z = forward(params, part["x"], group.activation)
        return jnp.mean(jnp.argmax(logits, axis=1) != part["label"]), z

    def evaluate(params, state):
        wrong, z = error(params, data["dev"])
        return wrong, {
            "units": None if z is None else monitoring.units(z, group.activation),
            "train_error": error(params, data["train"])[0],
        }

    return training.fit(
        lambda params, state, batch, key: (cross_entropy(params, batch, group.activation), state),
        params,
        optimizer(group.optimizer, group.rate, data["moving"], data["since"]),
        data["train"],
        key=key_fit,
        steps=group.steps,
        batch_size=group.batch,
        evaluate=evaluate,
        every=EVERY,
        monitor=lambda step: monitoring.layer_norms(step, stacked=stacked(group)),
    )


def stacked(group: Group) -> str | None:
    """The paths of parameters with a leading axis of layers, `None` if there are none."""
    return STACKED if group.depth else None


# Small networks compile for longer than they run; both options are of every backend.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.partial(jax.jit, static_argnames=("group", "classes"), compiler_options=QUICK)
def _fits(group, data, classes):
    return jax.vmap(lambda data: run(group, data, classes))(data)


def runs(group: Group, plants: Sequence[Plant]) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """Train every plant of a group, in one call.

    Yields:
      The arguments of `jaxgrad.training.diagnosis.diagnose` for each: `(fit, norms, units)`, and a
      dictionary of `names`, `inputs` and `train_error`. All arrays are NumPy's.
    """
    data = [arrays(group, plant) for plant in plants]
    classes = len(_kit.load(group.data).classes)
    fits = _fits(group, jax.tree.map(lambda *a: np.stack(a), *data), classes)
    fits = jax.tree.map(np.asarray, fits)
    params = jax.tree.map(lambda a: a[0], fits.params)
    names = monitoring.layer_names(params, stacked=stacked(group))
    for index, one in enumerate(data):
        fit = jax.tree.map(lambda a, index=index: a[index], fits)
        record = {"names": names, "inputs": one["train"]["x"]}
        record["train_error"] = fit.record["train_error"]
        yield (fit, fit.trace, fit.record["units"]), record
