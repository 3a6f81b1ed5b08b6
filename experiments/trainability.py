"""Which networks can be trained, over depth and weight variance, and did theory say so before?

Run `python -m experiments.trainability`, or `--help` for its options. A run that was stopped goes
on where it was when the same command is given again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    normalization,
    plotting,
    sweeps,
    theory,
    training,
)

Kind = Literal["plain", "orthogonal", "batch_norm", "residual"]
CLASSES = 10
SCALES = 6
"""Depth scales to which networks are trainable, Schoenholz et al. (2017)."""


@dataclass(frozen=True)
class Config:
    """Options of the map of trained networks."""

    kind: Kind = "plain"
    """plain, orthogonal (weights), batch_norm (before the activation) or residual (branches)."""
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
    """Variance of the biases at the start."""
    rates: tuple[float, ...] = (0.01,)
    """Learning rates of gradient descent; of several the best one counts, cell by cell."""
    width: int = 64
    """Units of every layer."""
    steps: int = 300
    """Of training."""
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
        *((name, 1) for name in ("width", "steps", "batch")),
        ("first_seed", 0),
    ):
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}; raise it")
    for name in ("depths", "rates"):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values) or not min(values) > 0:
            raise ValueError(
                f"{name} must be different numbers above 0, got {values}; correct them"
            )
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
    frontend.writable("output", config.output)


def hidden(kind: Kind, config: Config, w_variance: Any) -> layers.Layer:
    """One hidden layer; its biases are drawn, or start at 0, and are trained."""
    kernel_init = initializers.orthogonal() if kind == "orthogonal" else None
    dense = layers.dense(
        config.width, w_variance, jnp.asarray(config.b_variance), kernel_init=kernel_init
    )
    phi = layers.activation(config.activation)
    if kind == "batch_norm":
        return layers.sequential(dense, layers.batch_norm(1e-5), phi)
    return layers.sequential(dense, phi)


def network(config: Config, depth: int, w_variance: Any) -> layers.Layer:
    """A classifier of `depth` hidden layers."""
    first = hidden("plain" if config.kind == "residual" else config.kind, config, w_variance)
    block = hidden(config.kind, config, w_variance)
    if config.kind == "residual":
        block = layers.residual(block)
    more = [layers.repeat(block, depth - 1)] if depth > 1 else []
    return layers.sequential(first, *more, layers.dense(CLASSES, 1.0, jnp.zeros(())))


def digits(config: Config) -> tuple[np.ndarray, ...]:
    """Inputs and labels of a training and a test set, 80/20, standardized alike."""
    from sklearn import datasets

    loaded: Any = datasets.load_digits()
    x, y = loaded.data.astype(np.float32), loaded.target.astype(np.int32)
    key = jax.random.key(config.first_seed)
    train, test = (np.asarray(rows) for rows in training.splits.split(key, y, (0.8, 0.2)))
    x = np.asarray(normalization.apply(normalization.fit(x[train]), x))
    return x[train], y[train], x[test], y[test]


def measure(config: Config, progress: Any = None, store: Path | None = None) -> xarray.Dataset:
    """Train every network; a cell that diverges gets a loss that is not finite and goes on."""

    def cell(key, point, x, y, x_test, y_test):
        net = network(config, point["depth"], point["w_variance"])
        key_init, key_fit = jax.random.split(key)
        params, _ = net.init(key_init, (x.shape[1],), jnp.float32)

        def loss(params, state, batch, key):
            logits, state = layers.apply_state(net, params, state, batch[0], key)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
            return jnp.mean(losses), state

        fitted = training.fit(
            loss,
            params,
            optax.sgd(point["rate"]),
            (x, y),
            key_fit,
            steps=config.steps,
            batch_size=config.batch,
            state=layers.init_state(net, params),
        )
        logits, _ = layers.apply_state(net, fitted.params, fitted.state, x_test, None)
        right = (jnp.argmax(logits, axis=1) == y_test) & jnp.all(jnp.isfinite(logits), axis=1)
        return {"accuracy": jnp.mean(right), "loss": fitted.loss[-1]}

    variances = np.geomspace(config.w_variance_min, config.w_variance_max, config.w_variances)
    return sweeps.run(
        cell,
        {
            "depth": config.depths,
            "rate": config.rates,
            "w_variance": variances.tolist(),
            "seed": range(config.first_seed, config.first_seed + config.seeds),
        },
        {
            "accuracy": sweeps.Variable((), "1", "share of the test set that is right"),
            "loss": sweeps.Variable((), "nat", "of the last batch"),
        },
        key=jax.random.key(0),
        args=digits(config),
        units={"w_variance": "1/fan_in"},
        config={k: v for k, v in frontend.described(config).items() if k != "output"},
        store=store,
        static=["depth"],
        vectorized=False,
        progress=progress,
    )


def scales(config: Config, w_variances: np.ndarray) -> np.ndarray:
    """Theory's depth scale by weight variance, in layers.

    Of plain and orthogonal networks that over which the angle between two examples approaches its
    limit; of the others that over which a squared gradient changes by e, as their angles have no
    such limit or hardly move.
    """
    if config.kind in ("plain", "orthogonal"):
        found = theory.correlation(config.activation, w_variances, config.b_variance)
        return np.asarray(found.xi_c)

    def growth(w_variance):
        block = hidden(config.kind, config, w_variance)
        if config.kind == "residual":
            block = layers.residual(block)
        first = theory.Moments(log_q=jnp.log(w_variance + config.b_variance), gap=1.0)
        depth = max(2, *config.depths)
        logs = theory.predict_blocks(block.predict, first, depth).log_gradient
        return (logs[-1] - logs[depth // 2 - 1]) / (depth - depth // 2)

    with jax.enable_x64(True):
        return 1 / np.abs(np.asarray(jax.vmap(growth)(jnp.asarray(w_variances))))


def trained(dataset: xarray.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy at the best rate, `[w_variance, depth]`, mean over seeds and standard error."""
    accuracy = dataset["accuracy"].transpose("seed", "rate", "w_variance", "depth").values
    best = accuracy.mean(axis=0).argmax(axis=0)
    chosen = np.take_along_axis(accuracy, best[None, None], axis=1)[:, 0]
    return chosen.mean(axis=0), chosen.std(axis=0, ddof=1) / np.sqrt(len(chosen))


def sides(accuracy: np.ndarray, depths: np.ndarray, scale: np.ndarray) -> tuple[Any, Any, float]:
    """Which cells learn, which ones theory says do, `[w_variance, depth]`; and the threshold.

    A cell learns if it gets more than half of the way from chance to the best of the map.
    """
    threshold = (1 / CLASSES + accuracy.max()) / 2
    return accuracy > threshold, depths[None] <= SCALES * scale[:, None], threshold


def report(dataset: xarray.Dataset, scale: np.ndarray, config: Config) -> str:
    """Theory's trainable region against accuracy: a table, a share, a correlation, exceptions."""
    accuracy, _ = trained(dataset)
    depths, variances = dataset["depth"].values, dataset["w_variance"].values
    learns, should, threshold = sides(accuracy, depths, scale)
    rows = [
        (
            str(depth),
            _range(variances, should[:, i]),
            _range(variances, learns[:, i]),
            *(
                f"{accuracy[side, i].mean():.0%}" if side.any() else ""
                for side in (should[:, i], ~should[:, i])
            ),
            f"{np.mean(learns[:, i] == should[:, i]):.0%}",
        )
        for i, depth in enumerate(depths)
    ]
    headings = ("depth", "theory: trains", "measured", "accuracy inside", "outside", "agree")
    agree = learns == should
    room = np.broadcast_to(np.log(SCALES * scale[:, None] / depths[None]), accuracy.shape)
    known = np.isfinite(room)
    ranked: Any = stats.spearmanr(room[known], accuracy[known])
    late, early = np.sum(learns & ~should), np.sum(~learns & should)
    lost = float(np.mean(~np.isfinite(dataset["loss"].values)))
    at = np.argwhere(~agree)
    distance = np.abs(room[~agree & known])
    text = [
        f"{config.activation}, {config.kind}, width {config.width}: weight variances (x fan-in) at",
        f"which networks learn, after {config.steps} steps; theory: depth up to {SCALES} scales;",
        f"measured: test accuracy above {threshold:.0%}, half of the way from chance to the best.",
        frontend.table(headings, rows),
        f"\n{np.mean(agree):.1%} of {agree.size} cells lie on the side that theory says; rank "
        f"correlation of accuracy with log({SCALES} scale / depth): {ranked.statistic:+.2f}.",
    ]
    if len(at):
        text.append(
            f"Exceptions: {late} learn beyond {SCALES} scales, {early} do not learn within; half "
            f"of all lie within a factor {np.exp(np.median(distance)):.2f} of the border in depth."
        )
    if lost:
        text.append(f"{lost:.1%} of the runs ended with a loss that is not finite.")
    return "\n".join(text)


def _range(variances: np.ndarray, inside: np.ndarray) -> str:
    if not inside.any():
        return "none"
    at = np.flatnonzero(inside)
    gaps = "" if len(at) == at[-1] - at[0] + 1 else ", with gaps"
    return f"{variances[at[0]]:.2f} to {variances[at[-1]]:.2f}{gaps}"


def run(config: Config) -> None:
    """Train a network for each depth and weight variance, and compare with theory's depth scale."""
    checked(config)
    start = time.perf_counter()
    store = config.output.with_name(config.output.name + ".zarr")
    dataset = measure(config, frontend.Bar("networks"), store)
    seconds = time.perf_counter() - start
    scale = scales(config, dataset["w_variance"].values)
    print(report(dataset, scale, config))
    accuracy, _ = trained(dataset)
    critical = theory.critical(config.activation, config.b_variance)
    figure = plotting.trainability(
        accuracy,
        dataset["depth"].values,
        dataset["w_variance"].values,
        SCALES * scale,
        float(critical.w_variance) if config.kind in ("plain", "orthogonal") else None,
        f"{config.activation}, {config.kind.replace('_', ' ')}",
    )
    path = config.output.with_name(config.output.name + ".png")
    figure.savefig(path, dpi=110)
    print(f"\n{dataset['accuracy'].size} networks trained in {seconds:.0f} s.")
    print(f"Figure: {path}\nMeasurements: {store}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
