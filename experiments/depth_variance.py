"""Where in (depth, weight variance) do the gradients of a network vanish, explode or survive?

Run `python -m experiments.depth_variance`, or `--help` for its options.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from experiments import frontend, growth
from jaxgrad import (
    activations,
    initializers,
    networks,
    plotting,
    propagation,
    regimes,
    sweeps,
    theory,
)

INITIALIZERS = {
    "normal": initializers.lecun("normal"),
    "uniform": initializers.lecun("uniform"),
    "truncated": initializers.lecun("truncated"),
    "orthogonal": initializers.orthogonal(),
}

_COMPARED = 7
"""So many weight variances are compared with theory in numbers."""


@dataclass(frozen=True)
class Config:
    """Options of the map of depth against weight variance."""

    activations: tuple[str, ...] = ("tanh", "relu")
    """Names of jaxgrad.activations.TABLE."""
    depth: int = 64
    """Largest depth; every depth from 1 up to it is measured in one pass."""
    width: int = 128
    """Units of every layer."""
    w_variance_min: float = 0.5
    """Smallest weight variance, times fan-in."""
    w_variance_max: float = 8.0
    """Largest weight variance, times fan-in."""
    w_variances: int = 41
    """How many variances, evenly spaced in the logarithm."""
    b_variance: float = 0.0
    """Variance of the biases."""
    initializer: Literal["normal", "uniform", "truncated", "orthogonal"] = "normal"
    """Distribution of the weights."""
    data: str = "digits"
    """digits, wine, breast_cancer, gaussian, or a .npy or .csv file, [examples, features]."""
    examples: int = 64
    """How many examples, drawn at random and standardized."""
    seeds: int = 8
    """How many networks for each point of the map, at least 2."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    gradient: Literal["probe", "exact"] = "probe"
    """probe: random tangents carried forward. exact: reverse mode from every depth, slower."""
    ratio: float = 10.0
    """A gradient norm that changes by less than this factor counts as stable."""
    z: float = 2.0
    """A change within this many standard errors of none counts as stable."""
    output: Path = Path("results/depth_variance")
    """Where to write: OUTPUT.zarr with the measurements and OUTPUT.png with the figure."""
    overwrite: bool = False
    """Measure again even if OUTPUT.zarr is there; without it, an unfinished one is resumed."""
    memory: int = 1024
    """Bound on the memory of one chunk, in MiB."""


VARIABLES = {
    "log_ratio": sweeps.Variable(
        ("w_variance", "depth"),
        "1",
        "natural log of the squared gradient at the first layer over that at the last",
    ),
    "log_gradient": sweeps.Variable(
        ("w_variance", "depth"),
        "1",
        "natural log of the mean squared gradient of the first layer's pre-activations",
    ),
    "log_activation": sweeps.Variable(
        ("w_variance", "depth"), "1", "natural log of the last layer's mean square activation"
    ),
    "dead": sweeps.Variable(
        ("w_variance", "depth"), "1", "share of the last layer's units saturated on every example"
    ),
    "saturated": sweeps.Variable(
        ("w_variance", "depth"), "1", "share of the last layer's saturated unit-example pairs"
    ),
    "log_profile": sweeps.Variable(
        ("w_variance", "layer"),
        "1",
        "natural log of the squared gradient of each layer's pre-activations, deepest network",
    ),
    "log_typical": sweeps.Variable(
        ("compared", "depth"),
        "1",
        "mean over examples of the natural log of the squared gradient of the first layer's "
        "pre-activations, at the variances of the comparison with theory",
    ),
}


def measure(config: Config, progress: Any = None) -> xarray.Dataset:
    """Measure the map, or what is missing of it in the store.

    A cell is one activation and one seed. It draws one network of the greatest depth; every
    variance scales the same draws, so that neighbouring variances differ by the variance alone.
    """
    checked(config)
    x = frontend.inputs(config.data, config.examples, config.first_seed)
    store = frontend.writable("output", config.output.with_name(config.output.name + ".zarr"))
    if config.overwrite and store.exists():
        # Raises if the folder is something else, which must not be lost.
        sweeps.open_store(store).close()
        shutil.rmtree(store)
    variances = grid(config)
    compared = np.stack([compared_variances(config, name) for name in config.activations])
    bias = None if config.b_variance == 0 else initializers.normal(1.0)

    def cell(key, point, x, variances, compared):
        name = point["activation"]
        key_init, key_gradient = jax.random.split(key)
        params = networks.init(
            key_init,
            x.shape[1],
            config.width,
            config.depth,
            activation=name,
            kernel_init=INITIALIZERS[config.initializer],
            bias_init=bias,
        )

        def gradients(w_variance, measurement, **options):
            return measurement(
                params,
                x,
                key_gradient,
                name,
                w_variance=w_variance,
                b_variance=config.b_variance,
                **options,
            )

        def profile(w_variance):
            last = gradients(w_variance, propagation.exact, depths=(config.depth,))
            return last.log_gradient[0]

        def ratios(w_variance):
            if config.gradient == "probe":
                out = gradients(w_variance, propagation.probe)
                log_gradient = out.log_gradient
            else:
                out = gradients(w_variance, propagation.exact)
                log_gradient = out.log_gradient[:, 0]
            return {
                "log_ratio": out.log_ratio,
                "log_gradient": log_gradient - np.log(x.shape[0] * config.width),
                "log_activation": out.signal.log_activation,
                "dead": out.signal.dead,
                "saturated": out.signal.saturated,
            }

        # One matrix product serves all variances of a probe; the rows of `exact` are many already.
        over = jax.vmap(ratios) if config.gradient == "probe" else _mapped(ratios)
        typical = jax.vmap(
            lambda w: growth.measure(params, x, key_gradient, name, w, config.b_variance)
        )
        return over(variances) | {
            "log_profile": _mapped(profile)(variances),
            "log_typical": typical(compared[config.activations.index(name)]),
        }

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return sweeps.run(
        cell,
        {"activation": config.activations, "seed": tuple(seeds)},
        VARIABLES,
        key=jax.random.key(0),
        args=tuple(jnp.asarray(array, jnp.float32) for array in (x, variances, compared)),
        coords={
            "w_variance": variances,
            "depth": np.arange(1, config.depth + 1),
            "layer": np.arange(1, config.depth + 1),
        },
        units={"w_variance": "1/fan_in", "depth": "layers"},
        config=measured(config),
        store=store,
        memory_limit=config.memory * 2**20,
        progress=progress,
    )


def grid(config: Config) -> np.ndarray:
    """The weight variances of the map."""
    return np.geomspace(config.w_variance_min, config.w_variance_max, config.w_variances)


def compared_variances(config: Config, name: str) -> np.ndarray:
    """A few weight variances of the map, the one nearest to the critical one replaced by it."""
    at = np.linspace(0, config.w_variances - 1, min(_COMPARED, config.w_variances))
    chosen = grid(config)[at.round().astype(int)]
    critical = float(theory.critical(name, config.b_variance).w_variance)
    if config.w_variance_min < critical < config.w_variance_max:
        chosen[np.abs(np.log(chosen / critical)).argmin()] = critical
    return chosen


def predict(config: Config) -> xarray.Dataset:
    """What theory says of the map, of its profiles and of the compared variances.

    Variables over the activation and, in this order, what the measurement has but no seed:
    `log_ratio` and `log_profile` at infinite width; `log_infinite` and `log_typical` for a typical
    example, at infinite width and at the width; `compared_w_variance`; and `xi`, the layers over
    which a squared gradient changes by e, over a finer grid of variances.
    """
    x = frontend.inputs(config.data, config.examples, config.first_seed)
    square = np.mean(np.square(x, dtype=np.float64))
    fine = np.geomspace(config.w_variance_min, config.w_variance_max, 401)
    rows = []
    for name in config.activations:
        variances = compared_variances(config, name)
        every = np.append(grid(config), variances)
        biases = np.full_like(every, config.b_variance)
        found = growth.follow(name, config.depth, every, biases, x, width=config.width)
        first, last = found.log_gradient[: config.w_variances], found.log_last_gradient
        # A network cut off below layer k has the gradient of the whole, less that of the rest.
        below = first[:, :-1] + np.log(grid(config))[:, None, None]
        below = np.concatenate([np.zeros_like(first[:, :1]), below], axis=1)
        limit = theory.limit(name, fine, config.b_variance, fine * square + config.b_variance)
        rows.append(
            {
                "log_ratio": _log_mean(first) - _log_mean(last[: config.w_variances]),
                "log_profile": _log_mean(first[:, -1:] - below),
                "log_infinite": found.infinite[config.w_variances :],
                "log_typical": found.typical[config.w_variances :],
                "compared_w_variance": variances,
                "xi": np.asarray(limit.xi_gradient),
            }
        )
    dims = {name: variable.dims for name, variable in VARIABLES.items()} | {
        "log_infinite": ("compared", "depth"),
        "compared_w_variance": ("compared",),
        "xi": ("fine_w_variance",),
    }
    layers = np.arange(1, config.depth + 1)
    return xarray.Dataset(
        {
            name: (("activation", *dims[name]), np.stack([r[name] for r in rows]))
            for name in rows[0]
        },
        {
            "activation": list(config.activations),
            "w_variance": grid(config),
            "fine_w_variance": fine,
            "depth": layers,
            "layer": layers,
        },
    )


def _log_mean(logs):
    return np.logaddexp.reduce(logs, axis=-1) - np.log(logs.shape[-1])


def _mapped(function):
    return lambda values: jax.lax.map(function, values)


def measured(config: Config) -> dict[str, Any]:
    """The part of the config that the measurements depend on."""
    apart = {"output", "overwrite", "memory", "ratio", "z"}
    return {k: v for k, v in frontend.described(config).items() if k not in apart}


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    for name in ("depth", "width", "examples", "memory"):
        _at_least(name, getattr(config, name), 1)
    for name in ("seeds", "w_variances"):
        _at_least(name, getattr(config, name), 2)
    for name in ("first_seed", "b_variance", "z"):
        _at_least(name, getattr(config, name), 0)
    if not 0 < config.w_variance_min < config.w_variance_max < np.inf:
        raise ValueError(
            "w_variance_min and w_variance_max must be positive, finite and in this order, got "
            f"{config.w_variance_min:g} and {config.w_variance_max:g}; swap or correct them"
        )
    if not config.ratio > 1:
        raise ValueError(f"ratio must be above 1, got {config.ratio:g}; try 10")
    if not config.activations or len(set(config.activations)) != len(config.activations):
        raise ValueError(
            f"activations must be different names, at least one, got {config.activations}; "
            "drop the repeats"
        )
    for name in config.activations:
        activations.get(name)


def _at_least(name: str, value: float, minimum: float) -> None:
    if not minimum <= value < np.inf:
        raise ValueError(f"{name} must be finite and at least {minimum}, got {value:g}; change it")


def report(dataset: xarray.Dataset, config: Config) -> str:
    """What a person reads: for each depth the stable variances, and the one that keeps level."""
    thresholds = regimes.Thresholds(config.ratio, config.z)
    depths, variances = dataset["depth"].values, dataset["w_variance"].values
    shown = [d for d in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if d < config.depth]
    shown = sorted({*shown, config.depth})
    lines = []
    for name in config.activations:
        chosen = dataset.sel(activation=name)
        log_ratio = chosen["log_ratio"].transpose("seed", "w_variance", "depth").values
        classified = regimes.classify(log_ratio, depths, thresholds)
        level = regimes.level(log_ratio, variances)
        rows = []
        for depth in shown:
            at = depth - 1
            stable = np.asarray(classified.regime[:, at]) == regimes.Regime.STABLE
            rows.append(
                (
                    str(depth),
                    _ranges(stable, variances),
                    _level(float(level.variance[at]), float(level.variance_se[at])),
                )
            )
        headings = ("depth", "stable weight variances", "level at (± standard error)")
        lines += [f"\n{name}, weight variance x fan-in:", frontend.table(headings, rows)]
        lines += _unheld(chosen)
    return "\n".join(lines)


def compare(dataset: xarray.Dataset, predicted: xarray.Dataset, config: Config) -> str:
    """Measured and predicted growth per layer, and what only the width makes vanish."""
    lines = [
        "\nTheory beside measurement: growth per layer of the log squared gradient of a typical",
        f"example over {config.depth} layers, mean over {config.seeds} seeds ± standard error;",
        f"z: difference from theory at width {config.width}, in standard errors.",
    ]
    if config.depth < 2:
        return "\nOne layer has no growth to compare with theory."
    for name in config.activations:
        expected = predicted.sel(activation=name)
        chosen = dataset["log_typical"].sel(activation=name).transpose("seed", "compared", "depth")
        sample = growth.per_layer(np.asarray(chosen.values, np.float64))
        mean, error = (np.asarray(part) for part in regimes.mean_and_error(sample))
        infinite, typical = (
            growth.per_layer(expected[key].values) for key in ("log_infinite", "log_typical")
        )
        variances = expected["compared_w_variance"].values
        rows = [
            (
                f"{variances[i]:.4g}",
                f"{mean[i]:+.4f} ± {error[i]:.4f}",
                f"{infinite[i]:+.4f}",
                f"{typical[i]:+.4f}",
                f"{mean[i] - typical[i]:+.4f}",
                growth.z_score(mean[i], error[i], typical[i]),
            )
            for i in range(len(variances))
        ]
        headings = (
            "weight variance",
            "measured",
            "infinite width",
            f"width {config.width}",
            "difference",
            "z",
        )
        lines += [f"\n{name}:", frontend.table(headings, rows)]
        critical = float(theory.critical(name, config.b_variance).w_variance)
        at = np.flatnonzero(variances == critical)
        if at.size:
            totals = [(config.depth - 1) * value[at[0]] for value in (infinite, typical, mean)]
            lines.append(_at_critical(name, critical, totals, config))
        else:
            lines.append(
                f"{name} has no critical weight variance from {config.w_variance_min:g} to "
                f"{config.w_variance_max:g} with this bias variance."
            )
    return "\n".join(lines)


def _at_critical(name: str, critical: float, totals: list[Any], config: Config) -> str:
    infinite, typical, measured = (np.exp(total / 2) for total in totals)
    text = (
        f"At the critical weight variance {critical:.4g} the gradient norm changes over "
        f"{config.depth} layers by a factor of {infinite:.3g} at infinite width, and of "
        f"{typical:.3g} in a typical network of width {config.width} (measured: {measured:.3g})"
    )
    if typical * config.ratio < 1 <= infinite * config.ratio:
        text += f": critical at infinite width, {name} vanishes at this width and depth"
    return text + "."


def _ranges(stable: np.ndarray, variances: np.ndarray) -> str:
    edges = np.flatnonzero(np.diff(np.pad(stable.astype(int), 1)))
    parts = []
    for start, stop in zip(edges[::2], edges[1::2] - 1, strict=True):
        # At the edge of the grid the range may well go on.
        low = f"{'<= ' if start == 0 else ''}{variances[start]:.2f}"
        high = f"{'>= ' if stop == len(variances) - 1 else ''}{variances[stop]:.2f}"
        parts.append(f"{low} to {high}")
    return ", ".join(parts) or "none"


def _level(variance: float, error: float) -> str:
    return f"{variance:.3f} ± {error:.3f}" if np.isfinite(variance) else "not in range"


def _unheld(chosen: xarray.Dataset) -> list[str]:
    lines = []
    for what, variable in (("gradient", "log_gradient"), ("signal", "log_activation")):
        label = np.asarray(regimes.storage(chosen[variable].values))
        for value, word in (
            (regimes.Storage.UNDERFLOW, "too small"),
            (regimes.Storage.OVERFLOW, "too large"),
        ):
            if share := np.mean(label == value):
                lines.append(f"The {what} is {word} for float32 in {share:.1%} of the networks.")
    return lines


def run(config: Config) -> None:
    """Map where, in depth and weight variance, gradients vanish, explode or survive."""
    start = time.perf_counter()
    dataset = measure(config, frontend.Bar("networks"))
    print(report(dataset, config))
    predicted = predict(config)
    print(compare(dataset, predicted, config))
    thresholds = regimes.Thresholds(config.ratio, config.z)
    figure = plotting.depth_variance(dataset, thresholds, predicted)
    path = config.output.with_name(config.output.name + ".png")
    figure.savefig(path, dpi=110)
    count = config.seeds * config.w_variances * config.depth * len(config.activations)
    print(f"\n{count} networks in {time.perf_counter() - start:.1f} s, on {config.data}.")
    print(f"Figure: {path}\nMeasurements: {path.with_suffix('.zarr')}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
