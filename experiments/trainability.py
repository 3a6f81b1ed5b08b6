"""Which networks can be trained, over depth and weight variance, and did theory say so before?

Run `python -m experiments.trainability`, or `--help` for its options. A run that was stopped goes
on where it was when the same command is given again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray
from scipy import stats

from experiments import frontend
from jaxgrad import (
    activations,
    initializers,
    layers,
    plotting,
    sweeps,
    theory,
    training,
)
from jaxgrad.training import normalization

Kind = Literal["plain", "orthogonal", "critical", "batch_norm", "residual"]
CLASSES = 10
SCALES = 6
"""Depth scales to which networks are trainable, Schoenholz et al. (2017)."""
NEAR = 1.5
"""In depth, a cell within this factor of the border is on it."""


@dataclass(frozen=True)
class Config:
    """Options of the map of trained networks."""

    kinds: tuple[Kind, ...] = ("plain",)
    """plain, orthogonal (weights), critical (biases as the weights' variance needs them, to keep
    angles longest), batch_norm (before the activation), residual (branches); a map of each."""
    activation: str = "tanh"
    """A name of jaxgrad.activations.TABLE."""
    depths: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 11, 16, 22, 32, 45, 64, 80, 96, 112, 128)
    """Numbers of hidden layers; each is compiled."""
    w_variance_min: float = 0.5
    """Smallest weight variance, times fan-in."""
    w_variance_max: float = 4.0
    """Largest weight variance, times fan-in."""
    w_variances: int = 24
    """How many weight variances, in even ratios, at least 2."""
    b_variance: float = 0.05
    """Variance of the biases at the start, but for the kind critical."""
    rates: tuple[float, ...] = (0.01,)
    """Learning rates of gradient descent; of several the best one counts, cell by cell."""
    width: int = 64
    """Units of every layer."""
    steps: int = 300
    """Of training."""
    longer: int = 5
    """Cells that do not learn although theory says so are trained again, for so many times the
    steps at as many times smaller rates, and as many beyond theory's border; 1 leaves them."""
    batch: int = 64
    """Examples in a step."""
    seeds: int = 2
    """How many networks for each cell, at least 2."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    output: Path = Path("results/trainability")
    """Where to write the store (.zarr) and the figure (.png)."""


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    activations.get(config.activation)
    for name, least in (
        *((name, 2) for name in ("w_variances", "seeds")),
        *((name, 1) for name in ("width", "steps", "longer", "batch")),
        ("first_seed", 0),
    ):
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}; raise it")
    for name in ("depths", "rates"):
        values = getattr(config, name)
        if not values or not np.all(np.diff([0, *values]) > 0):
            raise ValueError(f"{name} must be ascending numbers above 0, got {values}; sort them")
    if any(depth != int(depth) for depth in config.depths):
        raise ValueError(f"depths must be whole numbers, got {config.depths}; round them")
    kinds = get_args(Kind)
    if not config.kinds or len(set(config.kinds)) < len(config.kinds) or {*config.kinds} - {*kinds}:
        raise ValueError(f"kinds must be different ones of {', '.join(kinds)}; got {config.kinds}")
    if not np.isfinite(config.rates).all():
        raise ValueError(f"rates must be finite, got {config.rates}; correct them")
    if not 0 < config.w_variance_min < config.w_variance_max < np.inf:
        raise ValueError(
            "w_variance_min and w_variance_max must be above 0, finite and in this order, got "
            f"{config.w_variance_min:g} and {config.w_variance_max:g}; swap or correct them"
        )
    if not 0 <= config.b_variance < np.inf:
        raise ValueError(
            f"b_variance must be at least 0 and finite, got {config.b_variance:g}; correct it"
        )
    if "critical" in config.kinds:
        biases("critical", config)
    frontend.writable("output", config.output)


def w_variances(config: Config) -> np.ndarray:
    """The weight variances of the map, times fan-in."""
    return np.geomspace(config.w_variance_min, config.w_variance_max, config.w_variances)


def biases(kind: str, config: Config) -> np.ndarray:
    """Variance of the biases for each weight variance.

    On the critical line where that is possible; weights too small for it want no biases.
    """
    variances = w_variances(config)
    if kind != "critical":
        return np.full(len(variances), config.b_variance)
    line = theory.critical_line(config.activation, np.geomspace(1e-8, 1e4, 4001))
    w_line, b_line = (np.asarray(a) for a in (line.w_variance, line.b_variance))
    if not np.all(np.diff(w_line) > 0):
        raise ValueError(
            "activation must have a critical point for every large weight variance, as tanh, for "
            f"the kind critical, got {config.activation!r}; leave the kind out"
        )
    return np.interp(np.log(variances), np.log(w_line), b_line)


def hidden(kind: str, config: Config, w_variance: Any, b_variance: Any) -> layers.Layer:
    """One hidden layer; its biases are drawn, or start at 0, and are trained."""
    kernel_init = initializers.orthogonal() if kind == "orthogonal" else None
    dense = layers.dense(config.width, w_variance, jnp.asarray(b_variance), kernel_init=kernel_init)
    phi = layers.activation(config.activation)
    if kind == "batch_norm":
        return layers.sequential(dense, layers.batch_norm(1e-5), phi)
    return layers.sequential(dense, phi)


def repeated(kind: str, config: Config, w_variance: Any, b_variance: Any) -> layers.Layer:
    """What every hidden layer but the first is: `hidden`, or a branch of it."""
    layer = hidden(kind, config, w_variance, b_variance)
    return layers.residual(layer) if kind == "residual" else layer


def network(
    kind: str, config: Config, depth: int, w_variance: Any, b_variance: Any, active: Any = None
) -> layers.Layer:
    """A classifier of `depth` hidden layers, of which `active` act."""
    first, block = (make(kind, config, w_variance, b_variance) for make in (hidden, repeated))
    others = None if active is None else active - 1
    rest = [layers.repeat(block, depth - 1, others)] if depth > 1 else []
    return layers.sequential(first, *rest, layers.dense(CLASSES, 1.0, jnp.zeros(())))


def digits(config: Config) -> tuple[np.ndarray, ...]:
    """Inputs and labels of a training and a test set, 80/20, standardized alike."""
    from sklearn import datasets

    loaded: Any = datasets.load_digits()
    x, y = loaded.data.astype(np.float32), loaded.target.astype(np.int32)
    key = jax.random.key(config.first_seed)
    train, test = (np.asarray(rows) for rows in training.splits.split(y, (0.8, 0.2), key=key))
    x = np.asarray(normalization.apply(normalization.fit(x[train]), x))
    return x[train], y[train], x[test], y[test]


def train(net: layers.Layer, key, rate, steps, batch, data) -> dict[str, jax.Array]:
    """Accuracy and loss of one network after training; what diverges goes on to its end."""
    x, y, x_test, y_test = data
    key_init, key_fit = jax.random.split(key)
    params, _ = net.init(key_init, (x.shape[1],), jnp.float32)

    def loss(params, state, batch, key):
        logits, state = layers.apply_state(net, params, state, batch[0], key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return jnp.mean(losses), state

    fitted = training.fit(
        loss,
        params,
        optax.sgd(rate),
        (x, y),
        key=key_fit,
        steps=steps,
        batch_size=batch,
        state=layers.init_state(net, params),
    )
    logits, _ = layers.apply_state(net, fitted.params, fitted.state, x_test, None)
    right = (jnp.argmax(logits, axis=1) == y_test) & jnp.all(jnp.isfinite(logits), axis=1)
    return {"accuracy": jnp.mean(right), "loss": fitted.loss[-1]}


VARIABLES = {
    "accuracy": sweeps.Variable((), "1", "share of the test set that is right"),
    "loss": sweeps.Variable((), "nat", "of the last batch"),
}


def measure(config: Config, progress: Any = None, store: Path | None = None) -> xarray.Dataset:
    """Train every network; a cell that diverges gets a loss that is not finite and goes on."""
    variances = w_variances(config)

    def cell(key, point, b_variances, *data):
        kind, w_variance = point["kind"], point["w_variance"]
        b_variance = jnp.interp(w_variance, jnp.asarray(variances), b_variances[kind])
        net = network(kind, config, point["depth"], w_variance, b_variance)
        return train(net, key, point["rate"], config.steps, config.batch, data)

    return sweeps.run(
        cell,
        {
            "kind": config.kinds,
            "depth": config.depths,
            "rate": config.rates,
            "w_variance": variances.tolist(),
            "seed": range(config.first_seed, config.first_seed + config.seeds),
        },
        VARIABLES,
        key=jax.random.key(0),
        args=({kind: biases(kind, config) for kind in config.kinds}, *digits(config)),
        units={"w_variance": "1/fan_in"},
        config=identity(config),
        store=store,
        static=["depth"],
        vectorized=False,
        progress=progress,
    )


def identity(config: Config) -> dict[str, Any]:
    """The options that decide a network's training."""
    return {k: v for k, v in frontend.described(config).items() if k not in ("output", "longer")}


def measure_again(
    kind: str,
    config: Config,
    cells: np.ndarray,
    progress: Any = None,
    store: Path | None = None,
) -> xarray.Dataset:
    """Train the cells at `[[w_variance index, depth index], ...]` for longer at smaller rates.

    Their depths are data of one program, which has layers for the deepest.
    """
    depths = np.asarray(config.depths)[cells[:, 1]]
    variances, b_variances = (
        a[cells[:, 0]].astype(np.float32) for a in (w_variances(config), biases(kind, config))
    )
    deepest = max(2, int(depths.max()))

    def cell(key, point, depths, variances, b_variances, *data):
        index = point["cell"]
        found = variances[index], b_variances[index], depths[index]
        net = network(kind, config, deepest, *found)
        rate = point["rate"] / config.longer
        return train(net, key, rate, config.steps * config.longer, config.batch, data)

    return sweeps.run(
        cell,
        {
            "cell": range(len(cells)),
            "rate": config.rates,
            "seed": range(config.first_seed, config.first_seed + config.seeds),
        },
        VARIABLES,
        key=jax.random.key(0),
        args=(depths, variances, b_variances, *digits(config)),
        config=identity(config) | {"kind": kind, "longer": config.longer},
        store=store,
        vectorized=False,
        progress=progress,
    )


def scales(kind: str, config: Config) -> np.ndarray:
    """Theory's depth scale by weight variance, in layers.

    Of plain, orthogonal and critical networks that over which the angle between two examples
    approaches its limit; of the others that over which a squared gradient changes by e, as their
    angles have no such limit or hardly move.
    """
    variances, b_variances = w_variances(config), biases(kind, config)
    if kind not in ("batch_norm", "residual"):
        return np.asarray(theory.correlation(config.activation, variances, b_variances).xi_c)

    def growth(w_variance, b_variance):
        block = repeated(kind, config, w_variance, b_variance)
        first = theory.Moments(log_q=jnp.log(w_variance + b_variance), gap=1.0)
        depth = max(2, *config.depths)
        logs = theory.predict_blocks(block.predict, first, depth).log_gradient
        return (logs[-1] - logs[depth // 2 - 1]) / (depth - depth // 2)

    with jax.enable_x64(True):
        return 1 / np.abs(np.asarray(jax.vmap(growth)(*map(jnp.asarray, (variances, b_variances)))))


class Map(NamedTuple):
    """What became of one kind of network beside what theory says; arrays `[w_variance, depth]`.

    Attributes:
      accuracy: at the best rate, mean over seeds.
      learns: more than half of the way from chance to the best accuracy of the map.
      should: whether theory says so, a depth of up to `SCALES` depth scales.
      threshold: of the accuracy.
      room: log of the depth to which theory says so over the depth.
      lost: share of runs whose loss is not finite at the end.
    """

    accuracy: np.ndarray
    learns: np.ndarray
    should: np.ndarray
    threshold: float
    room: np.ndarray
    lost: float

    @property
    def agree(self) -> float:
        """Share of cells on the side that theory says."""
        return float(np.mean(self.learns == self.should))

    @property
    def rank_correlation(self) -> float:
        """Spearman's, of accuracy with the room that theory leaves."""
        found: Any = stats.spearmanr(self.room.ravel(), self.accuracy.ravel())
        return found.statistic


def best_rate(dataset: xarray.Dataset) -> np.ndarray:
    """Mean accuracy over seeds, at the rate where it is highest, over the other axes."""
    return dataset["accuracy"].mean("seed").max("rate").values


def compared(dataset: xarray.Dataset, scale: np.ndarray) -> Map:
    """Set the accuracies of one kind beside theory's depth scale, `[w_variance]`."""
    accuracy = best_rate(dataset.transpose("seed", "rate", "w_variance", "depth"))
    threshold = (1 / CLASSES + float(accuracy.max())) / 2
    room = np.log(SCALES * scale[:, None] / dataset["depth"].values[None])
    lost = float(np.mean(~np.isfinite(dataset["loss"].values)))
    return Map(accuracy, accuracy > threshold, room >= 0, threshold, room, lost)


def report(kind: str, found: Map, config: Config) -> str:
    """Theory's trainable region against accuracy: a table, a share, a correlation, exceptions."""
    variances = w_variances(config)
    rows = []
    for i, depth in enumerate(config.depths):
        learns, should, accuracy = (a[:, i] for a in (found.learns, found.should, found.accuracy))
        means = (f"{accuracy[s].mean():.0%}" if s.any() else "" for s in (should, ~should))
        agree = f"{np.mean(learns == should):.0%}"
        rows.append((str(depth), _range(variances, should), _range(variances, learns)))
        rows[-1] += (*means, agree)
    headings = ("depth", "theory: trains", "measured", "accuracy inside", "outside", "agree")
    late, early = found.learns & ~found.should, ~found.learns & found.should
    text = [
        f"{config.activation}, {kind}, width {config.width}: weight variances (x fan-in) at which",
        f"networks learn, after {config.steps} steps; theory: depth up to {SCALES} scales;",
        f"measured: test accuracy above {found.threshold:.0%}, half of the way from chance to the "
        "best.",
        frontend.table(headings, rows),
        f"\n{found.agree:.1%} of {late.size} cells lie on the side that theory says; rank "
        f"correlation of accuracy with log({SCALES} scale / depth): {found.rank_correlation:+.2f}.",
    ]
    if (late | early).any():
        factor = np.exp(np.median(np.abs(found.room[late | early])))
        text.append(
            f"Exceptions: {late.sum()} learn beyond {SCALES} scales, {early.sum()} do not learn "
            "within; half of all lie "
            + (f"within a factor {factor:.2f} of" if factor < 10 else "far from")
            + " the border in depth."
        )
    if found.lost:
        text.append(f"{found.lost:.1%} of the runs ended with a loss that is not finite.")
    return "\n".join(text)


def exceptions_and_control(found: Map) -> tuple[np.ndarray, np.ndarray]:
    """Cells `[[w_variance, depth], ...]` that do not learn: all within, as many nearest beyond."""
    within, beyond = (np.argwhere(~found.learns & side) for side in (found.should, ~found.should))
    nearest = np.argsort(-found.room[tuple(beyond.T)], kind="stable")
    return within, beyond[nearest[: len(within)]]


def report_again(
    found: Map,
    cells: np.ndarray,
    again: xarray.Dataset,
    control: xarray.Dataset | None,
    config: Config,
) -> str:
    """What became of the cells that were trained again, and of which it remains to be said why."""
    learnt = best_rate(again) > found.threshold
    text = (
        f"The {len(cells)} that do not learn within, trained again at 1/{config.longer} of the rate"
        f" for {config.longer} times the steps: {learnt.sum()} learn."
    )
    if not learnt.all():
        rest = cells[~learnt]
        near = np.sum(np.exp(found.room[tuple(rest.T)]) < NEAR)
        depths = ", ".join(map(str, np.unique(np.asarray(config.depths)[rest[:, 1]])))
        text += (
            f"\nOf the other {len(rest)}, of depth {depths}, {near} lie within a factor "
            f"{NEAR:g} of the border in depth."
        )
    as_said = (found.learns == found.should).sum() + learnt.sum()
    if control is not None:
        strayed = best_rate(control) > found.threshold
        as_said -= strayed.sum()
        text += f"\nOf the {strayed.size} nearest beyond, trained alike, {strayed.sum()} learn."
    return f"{text}\nThen {as_said / found.learns.size:.1%} of the cells are as theory says."


def summary(maps: dict[str, Map], config: Config) -> str:
    """The kinds beside each other."""
    rows = [
        (
            kind,
            f"{found.learns.mean():.0%}",
            f"{found.learns[:, -1].mean():.0%}",
            f"{found.accuracy.max():.0%}",
            f"{found.should.mean():.0%}",
            f"{found.agree:.1%}",
            f"{found.rank_correlation:+.2f}",
        )
        for kind, found in maps.items()
    ]
    deepest = f"at depth {max(config.depths)}"
    headings = ("kind", "cells that learn", deepest, "best accuracy", "theory: learn", "agree")
    return frontend.table((*headings, "rank correlation"), rows)


def _range(variances: np.ndarray, inside: np.ndarray) -> str:
    if not inside.any():
        return "none"
    at = np.flatnonzero(inside)
    gaps = "" if len(at) == at[-1] - at[0] + 1 else ", with gaps"
    return f"{variances[at[0]]:.2f} to {variances[at[-1]]:.2f}{gaps}"


def train_again(name: str, kind: str, cells: np.ndarray, config: Config) -> xarray.Dataset:
    """`measure_again` with a bar and a store of this name."""
    store = config.output.with_name(f"{config.output.name}_{kind}_{name}.zarr")
    return measure_again(kind, config, cells, frontend.Bar(f"{kind}, {name}"), store)


def run(config: Config) -> None:
    """Train a network for each depth and weight variance, and compare with theory's depth scale."""
    checked(config)
    start = time.perf_counter()
    named = config.output.with_name
    store = named(config.output.name + ".zarr")
    dataset = measure(config, frontend.Bar("networks"), store)
    trained = dataset["accuracy"].size
    reach = {kind: SCALES * scales(kind, config) for kind in config.kinds}
    maps = {kind: compared(dataset.sel(kind=kind), reach[kind] / SCALES) for kind in config.kinds}
    for kind, found in maps.items():
        print(report(kind, found, config))
        cells, beyond = exceptions_and_control(found)
        if len(cells) and config.longer > 1:
            again = train_again("again", kind, cells, config)
            control = train_again("control", kind, beyond, config) if len(beyond) else None
            print(report_again(found, cells, again, control, config))
            trained += (len(cells) + len(beyond)) * len(config.rates) * config.seeds
        print(flush=True)
    if len(maps) > 1:
        print(summary(maps, config))
    figure = plotting.trainability(
        {kind.replace("_", " "): found.accuracy for kind, found in maps.items()},
        np.asarray(config.depths),
        w_variances(config),
        list(reach.values()),
        [found.agree for found in maps.values()],
        f"{config.activation} networks after {config.steps} steps",
    )
    path = named(config.output.name + ".png")
    figure.savefig(path, dpi=110)
    print(f"\n{trained} networks; {time.perf_counter() - start:.0f} s, without what was there.")
    print(f"Figure: {path}\nMeasurements: {store}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
