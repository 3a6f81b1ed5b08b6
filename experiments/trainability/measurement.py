"""Options, networks, their training, and the predicted depth scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray
from scipy import stats

from experiments import _kit as kit
from experiments._kit import classifier, option
from jaxgrad import activations, initializers, layers, propagation, sweeps, theory

Kind = Literal["plain", "orthogonal", "critical", "batch_norm", "residual"]
CLASSES = 10
SCALES = 6
"""Depth scales up to which networks are trainable, Schoenholz et al. (2017)."""


@dataclass(frozen=True)
class Options(kit.SeededOptions, kit.ClusterOptions):
    """Options of the map of trained networks."""

    kinds: tuple[Kind, ...] = option(
        ("plain",),
        "plain, orthogonal (weights), critical (biases of the critical line), batch_norm (before "
        "the activation), residual (branches); a map for each.",
        choices=get_args(Kind),
    )
    activation: str = option("tanh", "Name of an activation.", choices=tuple(activations.TABLE))
    depths: tuple[int, ...] = option(
        (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 80, 96, 112, 128),
        "Numbers of hidden layers; each is compiled.",
        minimum=1,
        ascending=True,
    )
    w_variance_min: float = option(0.5, "Smallest weight variance, times fan-in.", above=0)
    w_variance_max: float = option(4.0, "Largest weight variance, times fan-in.", above=0)
    w_variances: int = option(24, "Number of weight variances, in even ratios.", minimum=2)
    b_variance: float = option(0.05, "Variance of the biases, except of critical.", minimum=0)
    rates: tuple[float, ...] = option(
        (0.01,), "Learning rates; of several the best one counts.", above=0, ascending=True
    )
    width: int = option(64, "Units of every layer.", minimum=1)
    steps: int = option(300, "Training steps.", minimum=1)
    longer: int = option(
        5,
        "Cells that do not learn against the prediction are trained again for LONGER times the "
        "steps at as many times smaller rates, and as many beyond the border; 1 skips that.",
        minimum=1,
    )
    batch: int = option(64, "Examples in a step.", minimum=1)
    seeds: int = option(2, "Networks for each cell.", minimum=2)
    output: Path = option(Path("results/trainability"), "Where to write: OUTPUT.zarr, OUTPUT.png.")

    def check(self) -> None:
        """Raise ValueError if the range is empty or a kind is not possible."""
        kit.check_range(self, "w_variance")
        for kind in self.kinds:
            biases(kind, self)
        super().check()

    @property
    def variances(self) -> np.ndarray:
        """The weight variances of the map, times fan-in."""
        return np.geomspace(self.w_variance_min, self.w_variance_max, self.w_variances)

    def identity(self) -> dict[str, Any]:
        """The options on which a network's training depends."""
        # `longer` concerns cells that are trained again, which have other stores.
        others = {"longer"} | kit.APPEARANCE | kit.CLUSTER_FIELDS
        return {k: v for k, v in kit.as_plain(self).items() if k not in others}

    def store(self, name: str = "") -> Path:
        """The path of a store of measurements."""
        return self.stem.with_name(f"{self.stem.name}{name}.zarr")


def biases(kind: str, options: Options) -> np.ndarray:
    """Variance of the biases for each weight variance.

    Critical networks have that of the critical line, or none where weights are too small for it.
    """
    if kind != "critical":
        return np.full(options.w_variances, options.b_variance)
    # Points of the line for values of q; between them, interpolation in log weights.
    line = theory.critical_line(options.activation, np.geomspace(1e-8, 1e4, 4001))
    w_line, b_line = (np.asarray(a) for a in (line.w_variance, line.b_variance))
    if not np.all(np.diff(w_line) > 0):
        raise ValueError(
            "activation must have a critical point for every large weight variance, as tanh, for "
            f"the kind critical, got {options.activation!r}; omit the kind"
        )
    return np.interp(np.log(options.variances), np.log(w_line), b_line)


def blocks(kind: str, options: Options, w_variance: Any, b_variance: Any) -> list[layers.Layer]:
    """The first hidden layer, and the block that is repeated after it."""
    kernel_init = initializers.orthogonal() if kind == "orthogonal" else None
    variances = {"w_variance": w_variance, "b_variance": b_variance}
    dense = layers.dense(options.width, bias=True, kernel_init=kernel_init, **variances)
    norm = [layers.batch_norm(1e-5)] * (kind == "batch_norm")
    hidden = layers.sequential(dense, *norm, layers.activation(options.activation))
    return [hidden, layers.residual(hidden) if kind == "residual" else hidden]


def network(
    kind: str, options: Options, depth: int, w_variance: Any, b_variance: Any, active: Any = None
) -> layers.Layer:
    """A classifier with `depth` hidden layers, of which the first `active` act."""
    first, block = blocks(kind, options, w_variance, b_variance)
    # The first hidden layer always acts; only copies of the block are switched off.
    others = None if active is None else active - 1
    stack = [layers.repeat(block, depth - 1, active=others)] if depth > 1 else []
    return layers.sequential(first, *stack, layers.dense(CLASSES, bias=True))


def digits(options: Options) -> list[kit.Examples]:
    """A training and a test set, 80/20, standardized alike."""
    data, key = kit.load("digits"), jax.random.key(options.first_seed)
    return kit.split(data.x, data.labels, (0.8, 0.2), key=key)


def train(layer: layers.Layer, rate, steps, batch, data, *, key) -> dict[str, jax.Array]:
    """Accuracy and loss of one network after training; one that diverges is trained to the end."""
    train, test = data
    key_init, key_fit = jax.random.split(key)
    params, _ = layer.draw(train.x.shape[1:], key=key_init, dtype=jnp.float32)
    sizes = {"steps": steps, "batch_size": batch}
    fit = classifier.train(layer, params, optax.sgd(rate), train, key=key_fit, **sizes)
    logits = classifier.logits(layer, fit.params, fit.state, test.x)
    right = jnp.argmax(logits, axis=1) == test.labels
    # The argmax of NaN is an index too, and must not count as right.
    finite = jnp.all(jnp.isfinite(logits), axis=1)
    return {"accuracy": jnp.mean(right & finite), "loss": fit.loss[-1]}


VARIABLES = {
    "accuracy": sweeps.Variable((), "1", "share of the test set that is right"),
    "loss": sweeps.Variable((), "nat", "of the last batch"),
}


def measure(options: Options, progress: Any = None, store: Path | None = None) -> xarray.Dataset:
    """Train every network; a cell that diverges gets a loss that is not finite."""
    variances = options.variances

    def cell(key, point, b_variances, data):
        kind, w_variance = point["kind"], point["w_variance"]
        # The bias variance follows from the weight variance; it is no axis of the map.
        b_variance = jnp.interp(w_variance, jnp.asarray(variances), b_variances[kind])
        layer = network(kind, options, point["depth"], w_variance, b_variance)
        return train(layer, point["rate"], options.steps, options.batch, data, key=key)

    axes = {"kind": options.kinds, "depth": options.depths, "rate": options.rates}
    axes |= {"w_variance": variances.tolist(), "seed": options.seed_values}
    # The depth is the structure of a network, so each depth is compiled.
    how = {"static": ["depth"], "units": {"w_variance": "1/fan_in"}, "config": options.identity()}
    args = ({kind: biases(kind, options) for kind in options.kinds}, digits(options))
    return _sweep(options, cell, axes, args, progress, store=store, **how)


def measure_again(
    kind: str, options: Options, cells: np.ndarray, progress: Any = None, store: Path | None = None
) -> xarray.Dataset:
    """Train the cells `[[w_variance index, depth index], ...]` for longer at smaller rates.

    Depths are data of one program, which has as many layers as the deepest cell.
    """
    depths = np.asarray(options.depths)[cells[:, 1]]
    variances, b_variances = (
        a[cells[:, 0]].astype(np.float32) for a in (options.variances, biases(kind, options))
    )
    # At least 2, so that there is a block to switch off.
    deepest = max(2, int(depths.max()))

    def cell(key, point, depths, variances, b_variances, data):
        index, rate = point["cell"], point["rate"] / options.longer
        numbers = variances[index], b_variances[index], depths[index]
        layer = network(kind, options, deepest, *numbers)
        return train(layer, rate, options.steps * options.longer, options.batch, data, key=key)

    axes = {"cell": range(len(cells)), "rate": options.rates, "seed": options.seed_values}
    config = options.identity() | {"kind": kind, "longer": options.longer}
    args = (depths, variances, b_variances, digits(options))
    return _sweep(options, cell, axes, args, progress, config=config, store=store)


def _sweep(
    options: Options, cell: Any, axes: Any, args: Any, progress: Any, **how: Any
) -> xarray.Dataset:
    # One network after the other, which is faster on CPUs than a batch of networks.
    how |= {"args": args, "key": jax.random.key(0), "vectorized": False}
    how |= kit.sweep_progress(progress)
    with kit.cluster(options) as workers:
        return sweeps.run(cell, axes, VARIABLES, **how, **workers)


def scales(kind: str, options: Options) -> np.ndarray:
    """Theory's depth scale by weight variance, in layers.

    For plain, orthogonal and critical networks it is the scale over which the angle between two
    examples approaches its limit. In the other kinds the angle has no such limit or hardly changes:
    for these it is the scale over which a squared gradient changes by a factor of e.
    """
    variances, b_variances = options.variances, biases(kind, options)
    if kind not in ("batch_norm", "residual"):
        return np.asarray(theory.correlation(options.activation, variances, b_variances).xi_c)
    depth = max(2, *options.depths)

    def growth(w_variance, b_variance):
        _, block = blocks(kind, options, w_variance, b_variance)
        inputs = theory.Moments(log_q=jnp.log(w_variance + b_variance), gap=1.0)
        logs = propagation.predict(layers.repeat(block, depth), inputs).log_gradient
        # The second half of the network, where growth has settled.
        return (logs[-1] - logs[depth // 2 - 1]) / (depth - depth // 2)

    with jax.enable_x64(True):
        return 1 / np.abs(kit.mapped(lambda pair: growth(*pair), (variances, b_variances)))


class Map(NamedTuple):
    """One kind of network, trained and predicted; arrays `[w_variance, depth]`.

    A cell `learns` if its accuracy at the best rate is above the threshold, half of the way from
    chance to the best accuracy. It is predicted to if its depth is at most `SCALES` depth scales;
    `margin` is the log of that depth over its own. `diverged` is the share of runs without a finite
    loss at the end.
    """

    accuracy: np.ndarray
    learns: np.ndarray
    predicted: np.ndarray
    threshold: float
    margin: np.ndarray
    diverged: float

    @property
    def right(self) -> np.ndarray:
        """Whether a cell is as predicted."""
        return self.learns == self.predicted

    @property
    def rank_correlation(self) -> float:
        """Spearman's rank correlation of accuracy and margin."""
        result: Any = stats.spearmanr(self.margin.ravel(), self.accuracy.ravel())
        return result.statistic


def best_rate(dataset: xarray.Dataset) -> np.ndarray:
    """Mean accuracy over seeds at the best rate, for each cell."""
    return dataset["accuracy"].mean("seed").max("rate").values


def compare(dataset: xarray.Dataset, scale: np.ndarray) -> Map:
    """Compare the accuracies of one kind with theory's depth scale, `[w_variance]`."""
    accuracy = best_rate(dataset.transpose("seed", "rate", "w_variance", "depth"))
    threshold = (1 / CLASSES + float(accuracy.max())) / 2
    margin = np.log(SCALES * scale[:, None] / dataset["depth"].values)
    diverged = float(np.mean(~np.isfinite(dataset["loss"].values)))
    return Map(accuracy, accuracy > threshold, margin >= 0, threshold, margin, diverged)


def exceptions_and_control(result: Map) -> tuple[np.ndarray, np.ndarray]:
    """Cells `[[w_variance, depth], ...]` that fail to learn: all within, as many nearest beyond."""
    within, beyond = (
        np.argwhere(~result.learns & side) for side in (result.predicted, ~result.predicted)
    )
    # Margins beyond the border are negative; the largest are nearest to it.
    nearest = np.argsort(-result.margin[tuple(beyond.T)], kind="stable")
    return within, beyond[nearest[: len(within)]]
