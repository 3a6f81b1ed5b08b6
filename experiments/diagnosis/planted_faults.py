"""Small recorded training runs on real data, healthy or with one planted fault.

Faults are data, so all runs of a group are one compiled program. `CASES` holds the runs on which
`jaxgrad.training.diagnosis` is tested.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _kit as kit
from experiments._kit import classifier
from jaxgrad import activations, layers, training
from jaxgrad.training import monitoring, normalization

EVERY = 20
"""Steps between evaluations."""
# Training and dev examples of each data set.
EXAMPLES = {"digits": 600, "breast_cancer": 320, "wine": 120}
DEV = {"digits": 200, "breast_cancer": 200, "wine": 58}
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
}


class Group(NamedTuple):
    """The settings that all runs of one compiled program share.

    `depth` counts hidden layers; with 0 it is softmax regression, whose weights start at 0. The
    learning rate and the variance of the weights are those of a healthy run.
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

    @property
    def stacked(self) -> str | None:
        """The paths of parameters with a leading axis of layers, `None` if there are none."""
        return "^hidden/" if self.depth else None


class Plant(NamedTuple):
    """One run: how it differs from the healthy runs of its group, which have the defaults.

    The learning rate and the variance of the weights at the start are multiplied by `rate` and
    `w_variance`; hidden units start with `bias`. There are `examples` distinct training examples,
    which are repeated, and a share `noise` of their labels is redrawn. Inputs that are `raw` are
    not standardized. The layer of the index `frozen` is not updated. `rate` and `frozen` hold from
    step `since` on. The seed draws the data, the parameters and the order of examples.
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
    data = kit.load(group.data)
    x, labels = data.x.astype(np.float32), data.labels
    rng = np.random.default_rng(plant.seed)
    order = rng.permutation(len(labels))
    # Dev examples are fixed before the training set is reduced.
    train, dev, _ = np.split(order, np.cumsum([EXAMPLES[group.data], DEV[group.data]]))
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
        "train": kit.Examples(x[train], noisy),
        "dev": kit.Examples(x[dev], labels[dev]),
    }


def forward(params: Any, x: Any, activation: str) -> tuple[jax.Array, Any]:
    """Logits `[batch, classes]`, pre-activations `[depth, batch, width]` (`None` for depth 0)."""

    def affine(layer, h):
        z = h @ layer["kernel"]
        return z + jnp.broadcast_to(layer["bias"], z.shape)

    if "first" not in params:
        return affine(params["readout"], x), None
    phi = activations.get(activation)
    z = affine(params["first"], x)

    def step(z, layer):
        z = affine(layer, phi(z))
        return z, z

    last, rest = jax.lax.scan(step, z, params["hidden"])
    return affine(params["readout"], phi(last)), jnp.concatenate([z[None], rest])


def optimizer(name: str, rate: Any, moving: Any, since: Any) -> optax.GradientTransformation:
    """One of `OPTIMIZERS`, whose updates are multiplied by `moving` from step `since` on."""

    def update(updates, state, params=None):
        factors = jnp.where(state >= since, moving, 1.0)
        # Parameters of the hidden layers are stacked, so their factor is a vector.
        shares = {"first": factors[0], "hidden": factors[1:-1], "readout": factors[-1]}

        def scaled(part, a):
            share = shares[part]
            return a * share.reshape(share.shape + (1,) * (a.ndim - share.ndim))

        parts = {p: jax.tree.map(functools.partial(scaled, p), updates[p]) for p in updates}
        return parts, state + 1

    # After the optimizer, since Adam would undo a factor of the gradients.
    counted = optax.GradientTransformation(lambda params: jnp.int32(0), update)
    return optax.chain(OPTIMIZERS[name](rate), counted)


def initial(group: Group, data: Any, key: jax.Array) -> Any:
    """Parameters at the start of the run with these `arrays`."""
    features, classes = data["train"].x.shape[1], len(kit.load(group.data).classes)
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


def train(
    group: Group, params: Any, optimizer: Any, data: Any, key: jax.Array, records: Collection[str]
) -> training.Fit:
    """Train on the `arrays` of a plant; the error is that of the dev set.

    The records are of `norms` of every step, the trace, and of `units` of the dev set and the
    `train_error` at evaluations.
    """

    def loss(params, state, batch, key):
        logits, _ = forward(params, batch.x, group.activation)
        return classifier.cross_entropy(logits, batch.labels), state

    def evaluate(params, state):
        logits, z = forward(params, data["dev"].x, group.activation)
        # Nothing is computed that is not recorded, so that each record can be timed.
        record = {}
        if "units" in records:
            record["units"] = None if z is None else monitoring.units(z, group.activation)
        if "train_error" in records:
            outputs, _ = forward(params, data["train"].x, group.activation)
            record["train_error"] = classifier.error_rate(outputs, data["train"].labels)
        return classifier.error_rate(logits, data["dev"].labels), record

    norms = functools.partial(monitoring.layer_norms, stacked=group.stacked)
    sizes = {"steps": group.steps, "batch_size": group.batch, "every": EVERY}
    watch: Any = {"evaluate": evaluate, "monitor": norms if "norms" in records else None}
    return training.fit(loss, params, optimizer, data["train"], key=key, **sizes, **watch)


# Small networks compile for longer than they run; both options are of every backend.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@functools.partial(jax.jit, static_argnames="group", compiler_options=QUICK)
def _fits(group: Group, data: Any) -> training.Fit:
    def one(data):
        key_init, key_fit = jax.random.split(jax.random.key(data["seed"]))
        update = optimizer(group.optimizer, group.rate, data["moving"], data["since"])
        params = initial(group, data, key_init)
        return train(group, params, update, data, key_fit, ("norms", "units", "train_error"))

    return jax.vmap(one)(data)


def runs(group: Group, plants: Sequence[Plant]) -> Iterator[tuple[tuple, dict[str, Any]]]:
    """Train every plant of a group, in one call.

    Yields the arguments of `jaxgrad.training.diagnosis.diagnose` for each: `(fit, norms, units)`,
    and a dictionary of `names`, `inputs` and `train_error`. All arrays are NumPy's.
    """
    data = [arrays(group, plant) for plant in plants]
    fits = jax.device_get(_fits(group, jax.tree.map(lambda *a: np.stack(a), *data)))
    for index, one in enumerate(data):
        fit = jax.tree.map(lambda a, index=index: a[index], fits)
        names = monitoring.layer_names(fit.params, stacked=group.stacked)
        errors = {"train_error": fit.record["train_error"]}
        named = {"names": names, "inputs": one["train"].x}
        yield (fit, fit.trace, fit.record["units"]), named | errors
