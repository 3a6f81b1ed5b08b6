"""At which depths and weight variances do gradients vanish, explode or survive?

Run `python -m experiments.depth_variance`, or `--help` for its options.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from experiments import _kit as kit
from experiments._kit import Estimate, option, typical
from jaxgrad import (
    activations,
    initializers,
    layers,
    plotting,
    propagation,
    regimes,
    sweeps,
    theory,
)

SIZES = {regimes.Storage.UNDERFLOW: "small", regimes.Storage.OVERFLOW: "large"}
COMPARED = 7
"""Number of weight variances that are compared with theory in numbers."""


@dataclass(frozen=True)
class Options(typical.Options, kit.ClusterOptions):
    """Options of the map of depth against weight variance."""

    activations: tuple[str, ...] = option(
        ("tanh", "relu"), "Names of activations.", choices=tuple(activations.TABLE)
    )
    depth: int = option(64, "Largest depth; all depths are measured in one pass.", minimum=1)
    width: int = option(128, "Units of every layer.", minimum=1)
    w_variance_min: float = option(0.5, "Smallest weight variance, times fan-in.", above=0)
    w_variance_max: float = option(8.0, "Largest weight variance, times fan-in.", above=0)
    w_variances: int = option(41, "Number of variances, evenly spaced in the log.", minimum=2)
    b_variance: float = option(0.0, "Variance of the biases.", minimum=0)
    initializer: Literal["normal", "uniform", "truncated", "orthogonal"] = option(
        "normal", "Distribution of the weights."
    )
    examples: int = option(64, "Number of examples, drawn at random and standardized.", minimum=1)
    gradient: Literal["probe", "exact"] = option(
        "probe", "probe: random tangents carried forward. exact: reverse mode, slower."
    )
    ratio: float = option(10.0, "A norm that changes by less than this factor is stable.", above=1)
    z: float = option(2.0, "A change within this many standard errors is stable.", minimum=0)
    output: Path = option(
        Path("results/depth_variance"), "Where to write: OUTPUT.zarr, OUTPUT.png."
    )
    overwrite: bool = option(False, "Measure again; otherwise OUTPUT.zarr is resumed.")
    memory: int = option(1024, "Bound on the memory of one chunk, in MiB.", minimum=1)

    def check(self) -> None:
        """Raise ValueError if the range is empty or the data cannot be used."""
        kit.check_range(self, "w_variance")
        super().check()

    @property
    def grid(self) -> np.ndarray:
        """The weight variances of the map."""
        return np.geomspace(self.w_variance_min, self.w_variance_max, self.w_variances)

    @property
    def store(self) -> Path:
        """The path of the measurements."""
        return self.output.with_name(self.output.name + ".zarr")

    def identity(self) -> dict[str, Any]:
        """The options on which the measurements depend."""
        # Thresholds judge a measurement and do not change it.
        others = {"output", "overwrite", "memory", "ratio", "z"} | kit.CLUSTER_FIELDS
        return {k: v for k, v in kit.as_plain(self).items() if k not in others}


MAP, PROFILE, TYPICAL = ("w_variance", "depth"), ("w_variance", "layer"), ("compared", "depth")
VARIABLES = {
    "log_ratio": "natural log of the squared gradient at the first layer over the last",
    "log_gradient": "natural log of the mean squared gradient of the first layer's pre-activations",
    "log_activation": "natural log of the last layer's mean square activation",
    "dead": "share of the last layer's units saturated on every example",
    "saturated": "share of the last layer's saturated unit-example pairs",
    "log_profile": "natural log of the squared gradient of each layer, in the deepest network",
    "log_typical": "mean over examples of the natural log of the squared gradient of the first "
    "layer's pre-activations, at the variances of the comparison with theory",
}


def measure(options: Options, progress: Any = None) -> xarray.Dataset:
    """Measure the map, or the part of it that is missing in the store.

    A cell is one activation and one seed. It draws one network of the greatest depth; every
    variance scales the same draws, so that neighbouring cells differ by the variance alone.
    """
    if options.overwrite and options.store.exists():
        # Raises if the folder is something else, which must not be lost.
        sweeps.open_store(options.store).close()
        shutil.rmtree(options.store)
    kernel_init = initializers.orthogonal()
    if options.initializer != "orthogonal":
        kernel_init = initializers.lecun(options.initializer)
    compared = np.stack([compared_variances(options, name) for name in options.activations])

    def cell(key, point, x, variances, compared):
        name = point["activation"]
        key_init, key_gradient = jax.random.split(key)

        def network(w_variance):
            size, b_variance = (options.width, options.depth), options.b_variance
            how = {"bias": b_variance > 0, "kernel_init": kernel_init}
            return typical.network(*size, name, w_variance, b_variance, **how)

        # One draw of unit variance, which every weight variance scales.
        params, _ = layers.init(network(1.0), x.shape[1:], key=key_init)

        def profile(w_variance):
            # All layers of the deepest network need a single reverse pass.
            last = propagation.exact(
                network(w_variance), params, x, key=key_gradient, depths=(options.depth,)
            )
            return last.log_layer_gradient[0]

        def ratios(w_variance):
            method = propagation.probe if options.gradient == "probe" else propagation.exact
            result = method(network(w_variance), params, x, key=key_gradient)
            return {
                "log_ratio": result.log_ratio,
                # From the sum over examples and units to the mean.
                "log_gradient": result.log_gradient - np.log(x.shape[0] * options.width),
                "log_activation": result.log_activation,
                "dead": result.dead,
                "saturated": result.saturated,
            }

        def log_typical(w_variance):
            return typical.measure(network(w_variance), params, x, key=key_gradient)

        # One matrix product serves all variances of a probe; `exact` has many rows already.
        together = len(variances) if options.gradient == "probe" else None
        return jax.lax.map(ratios, variances, batch_size=together) | {
            "log_profile": jax.lax.map(profile, variances),
            "log_typical": jax.vmap(log_typical)(compared[options.activations.index(name)]),
        }

    dims = {"log_profile": PROFILE, "log_typical": TYPICAL}
    layer_numbers = np.arange(1, options.depth + 1)
    arrays = (options.inputs(), options.grid, compared)
    with kit.cluster(options) as workers:
        return sweeps.run(
            cell,
            {"activation": options.activations, "seed": options.seed_values},
            {
                name: sweeps.Variable(dims.get(name, MAP), "1", text)
                for name, text in VARIABLES.items()
            },
            key=jax.random.key(0),
            args=tuple(jnp.asarray(array, jnp.float32) for array in arrays),
            coords={"w_variance": options.grid, "depth": layer_numbers, "layer": layer_numbers},
            units={"w_variance": "1/fan_in", "depth": "layers"},
            config=options.identity(),
            store=options.store,
            memory_limit=options.memory * 2**20,
            **workers,
            **kit.sweep_progress(progress),
        )


def compared_variances(options: Options, name: str) -> np.ndarray:
    """A few weight variances of the map; the critical one replaces the nearest of them."""
    index = np.linspace(0, options.w_variances - 1, min(COMPARED, options.w_variances))
    selected = options.grid[index.round().astype(int)]
    critical = float(theory.critical(name, options.b_variance).w_variance)
    # False for NaN, where there is no critical point.
    if options.w_variance_min < critical < options.w_variance_max:
        selected[np.abs(np.log(selected / critical)).argmin()] = critical
    return selected


def predict(options: Options) -> xarray.Dataset:
    """Predict the map, its profiles and the compared variances, at infinite width.

    `log_infinite` and `log_typical` are of a typical example, at infinite width and at the width;
    `xi` is the number of layers over which a squared gradient changes by a factor of e.
    """
    x, count, layer_numbers = options.inputs(), options.w_variances, np.arange(1, options.depth + 1)
    square = np.mean(np.square(x, dtype=np.float64))
    fine = np.geomspace(options.w_variance_min, options.w_variance_max, 401)
    coords = {"w_variance": options.grid, "fine_w_variance": fine}
    coords |= {"depth": layer_numbers, "layer": layer_numbers}
    datasets: list[xarray.Dataset] = []
    for name in options.activations:
        variances = compared_variances(options, name)
        # The grid and the compared variances are predicted in one call.
        points = np.append(options.grid, variances)
        biases = np.full_like(points, options.b_variance)
        result = typical.predict(name, options.depth, points, biases, x, width=options.width)
        first, last = result.log_gradient[:count], result.log_last_gradient[:count]
        # A network without its first k layers has the gradient of the whole over that of the k.
        rest = first[:, :-1] + np.log(options.grid)[:, None, None]
        rest = np.concatenate([np.zeros_like(first[:, :1]), rest], axis=1)
        # The signal starts at the mean square of the first layer, w <x^2> + b.
        limit = theory.limit(name, fine, options.b_variance, fine * square + options.b_variance)
        variables = {
            "log_ratio": (MAP, _log_mean(first) - _log_mean(last)),
            "log_profile": (PROFILE, _log_mean(first[:, -1:] - rest)),
            "log_infinite": (TYPICAL, result.infinite[count:]),
            "log_typical": (TYPICAL, result.typical[count:]),
            "compared_w_variance": (("compared",), variances),
            "xi": (("fine_w_variance",), np.asarray(limit.xi_gradient)),
        }
        datasets.append(xarray.Dataset(variables, coords))
    names = xarray.DataArray(list(options.activations), dims="activation", name="activation")
    return xarray.concat(datasets, names)


def _log_mean(logs):
    return np.logaddexp.reduce(logs, axis=-1) - np.log(logs.shape[-1])


def map_table(dataset: xarray.Dataset, name: str, options: Options) -> str:
    """Tabulate for each depth the stable variances, and the one that keeps the gradient level."""
    data, variances = dataset.sel(activation=name), dataset["w_variance"].values
    log_ratio = data["log_ratio"].transpose("seed", "w_variance", "depth").values
    thresholds = regimes.Thresholds(options.ratio, options.z)
    labels = regimes.classify(log_ratio, dataset["depth"].values, thresholds).regime
    level = Estimate(*map(np.asarray, regimes.level(log_ratio, variances)))
    rows = []
    # Powers of two, and the largest depth.
    for depth in sorted({*(d for d in 2 ** np.arange(1, 11) if d < options.depth), options.depth}):
        stable = np.asarray(labels[:, depth - 1]) == regimes.Regime.STABLE
        here = level[depth - 1]
        words = f"{here:.3f}" if np.isfinite(here.mean) else "not in range"
        rows.append((depth, _ranges(stable, variances), words))
    headings = {"depth": "d", "stable weight variances": "", "level at (± standard error)": ""}
    lines = [kit.table(headings, rows, f"{name}, weight variance x fan-in:")]
    for quantity, variable in (("gradient", "log_gradient"), ("signal", "log_activation")):
        storage = np.asarray(regimes.storage(data[variable].values))
        for label, word in SIZES.items():
            if share := np.mean(storage == label):
                text = f"The {quantity} is too {word} for float32 in {share:.1%} of the networks."
                lines.append(text)
    return "\n".join(lines)


def _ranges(stable: np.ndarray, variances: np.ndarray) -> str:
    # A range begins where this difference is 1 and ends where it is -1.
    edges = np.flatnonzero(np.diff(np.pad(stable.astype(int), 1)))
    parts = []
    for start, stop in zip(edges[::2], edges[1::2] - 1, strict=True):
        # A range that ends at the edge of the grid may continue beyond it.
        low = f"{'<= ' if start == 0 else ''}{variances[start]:.2f}"
        high = f"{'>= ' if stop == len(variances) - 1 else ''}{variances[stop]:.2f}"
        parts.append(f"{low} to {high}")
    return ", ".join(parts) or "none"


def comparison(
    dataset: xarray.Dataset, predicted: xarray.Dataset, name: str, options: Options
) -> tuple[str, list[kit.Claim]]:
    """Compare measured and predicted growth per layer; claim that they agree when critical."""
    theories, data = predicted.sel(activation=name), dataset["log_typical"].sel(activation=name)
    logs = data.transpose("seed", "compared", "depth").values.astype(np.float64)
    growth = Estimate.of(typical.per_layer(logs))
    infinite, finite = (
        typical.per_layer(theories[key].values) for key in ("log_infinite", "log_typical")
    )
    variances, width = theories["compared_w_variance"].values, f"width {options.width}"
    columns = (variances, growth, infinite, finite, growth.mean - finite, growth.z_score(finite))
    headings = dict.fromkeys(("measured", "infinite width", width, "difference"), "+.4f")
    headings = {"weight variance": ".4g", **headings, "z": "+.1f"}
    title = f"{name}: growth per layer of the log squared gradient of a typical example over "
    title += f"{options.depth} layers, mean over {options.seeds} seeds ± standard error; z: "
    title += f"difference from theory at {width}, in standard errors."
    section = kit.table(headings, zip(*columns, strict=True), title)
    critical = float(theory.critical(name, options.b_variance).w_variance)
    # Exact, since `compared_variances` inserts the critical variance itself.
    index = np.flatnonzero(variances == critical)
    if not index.size:
        text = f"{name} has no critical weight variance from {options.w_variance_min:g} to "
        text += f"{options.w_variance_max:g} with this bias variance."
        return f"{section}\n{text}", []
    text = f"{name} at its critical variance: growth per layer is that of theory at {width}"
    difference = growth[index[0]] - finite[index[0]]
    return section, [kit.Claim(text, difference, "equal", tolerance=0.02, form="+.4f")]


def run(options: Options) -> None:
    """Map where, in depth and weight variance, gradients vanish, explode or survive."""
    dataset = measure(options, kit.progress("networks"))
    sections, claims = [map_table(dataset, name, options) for name in options.activations], []
    predicted = predict(options)
    # A single layer has no growth.
    for name in options.activations if options.depth > 1 else ():
        section, claim = comparison(dataset, predicted, name, options)
        sections, claims = [*sections, section], claims + claim
    count = options.seeds * options.w_variances * options.depth * len(options.activations)
    sections.append(f"{count} networks, on {options.data}. Measurements: {options.store}")
    thresholds = regimes.Thresholds(options.ratio, options.z)
    figure = plotting.depth_map(dataset, thresholds, predicted)
    kit.publish(kit.Report(sections, claims), options, figure)


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run, resumable=True)
