"""At which depths and weight variances do gradients vanish, explode or survive?

Run `python -m experiments.depth_variance`, or `--help` for its options. `--network` takes another
architecture, and `measure_model` any model, of whatever library, to be drawn in the same way:

    def init(key, depth, w_variance):
        kernels = jax.random.normal(key, (depth, 32, 32))
        return kernels * jnp.sqrt(w_variance / 32)

    def loss(params, batch):
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), batch, params)
        return jnp.mean(h**2)

    values = np.geomspace(0.5, 8, 11)
    table = depth_variance.measure_model(init, loss, batch, depths=(2, 4, 8, 16), values=values)
    plotting.depth_map(table, block="block").savefig("map.png")

With `--html` the same measurements become an interactive page, see `_kit.explorer`.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import jax
import numpy as np
import xarray

from experiments import _kit as kit
from experiments._kit import Estimate, explorer, networks, option, typical
from experiments._kit.model_map import measure_model as measure_model
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

# An option that is `None` has the default of the architecture, once the options are made.
if TYPE_CHECKING:
    Names: TypeAlias = tuple[str, ...]
    Whole: TypeAlias = int
    Real: TypeAlias = float
else:
    Names, Whole, Real = tuple[str, ...] | None, int | None, float | None
SIZES = {regimes.Storage.UNDERFLOW: "small", regimes.Storage.OVERFLOW: "large"}
RESIDUAL = {"w_variance_min": 1 / 16, "w_variance_max": 4.0, "w_variances": 21}
PLAIN = {"activations": ("tanh", "relu"), "w_variance_min": 0.5, "w_variance_max": 8.0}
PRESETS: dict[str, dict[str, Any]] = {
    "mlp": PLAIN | {"width": 128, "w_variances": 41, "examples": 64},
    "conv": PLAIN | {"width": 32, "w_variances": 21, "examples": 4},
    "resnet": RESIDUAL | {"activations": ("relu",), "width": 32, "examples": 4},
    "transformer": RESIDUAL | {"activations": ("gelu",), "width": 64, "examples": 8},
}
"""Defaults of each architecture."""
NAMES = {
    "mlp": "fully connected",
    "conv": "convolutional",
    "resnet": "residual blocks",
    "transformer": "transformer",
}
DECADES = 4
"""Colours of the map reach so far, in powers of ten of a norm."""
COMPARED = 7
"""Number of weight variances that are compared with theory in numbers."""


@dataclass(frozen=True)
class Options(typical.Options, kit.ClusterOptions):
    """Options of the map of depth against weight variance."""

    network: Literal["mlp", "conv", "resnet", "transformer"] = option(
        "mlp", "Architecture: fully connected, convolutional, or with residual blocks."
    )
    placements: tuple[Literal["pre", "post", "sandwich", "none"], ...] = option(
        ("pre", "post"), "Where residual blocks have their norms, one row of maps for each."
    )
    activations: Names = option(
        None,
        "Names of activations; relu for resnet, gelu for transformer, else tanh and relu.",
        choices=tuple(activations.TABLE),
    )
    depth: int = option(64, "Largest depth; all depths are measured in one pass.", minimum=1)
    width: Whole = option(
        None, "Units of every layer; 128 for mlp, 32 channels, 64 features of a token.", minimum=1
    )
    w_variance_min: Real = option(
        None, "Smallest weight variance, times fan-in; 0.5, or 1/16 with residual blocks.", above=0
    )
    w_variance_max: Real = option(
        None, "Largest weight variance, times fan-in; 8, or 4 with residual blocks.", above=0
    )
    w_variances: Whole = option(
        None, "Number of variances, evenly spaced in the log; 41 for mlp, else 21.", minimum=2
    )
    b_variance: float = option(0.0, "Variance of the biases.", minimum=0)
    initializer: Literal["normal", "uniform", "truncated", "orthogonal"] = option(
        "normal", "Distribution of the weights."
    )
    examples: Whole = option(
        None,
        "Number of standardized examples; 64 for mlp, 8 for transformer, 4 otherwise.",
        minimum=1,
    )
    gradient: Literal["probe", "exact"] = option(
        "probe", "probe: random tangents carried forward. exact: reverse mode, slower."
    )
    ratio: float = option(10.0, "A norm that changes by less than this factor is stable.", above=1)
    z: float = option(2.0, "A change within this many standard errors is stable.", minimum=0)
    output: Path = option(
        Path("results/depth_variance"), "Where to write: OUTPUT.zarr, OUTPUT.png, ..."
    )
    overwrite: bool = option(False, "Measure again; otherwise OUTPUT.zarr is resumed.")
    memory: int = option(1024, "Bound on the memory of one chunk, in MiB.", minimum=1)
    html: bool = option(False, "Write OUTPUT.html, too: a page that shows every network's layers.")
    html_stores: tuple[Path, ...] = option(
        (), "Finished stores of other maps that the page offers, too.", count=0
    )

    def __post_init__(self) -> None:
        for name, value in PRESETS[self.network].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

    def check(self) -> None:
        """Raise ValueError if options do not fit together or the data cannot be used."""
        kit.check_range(self, "w_variance")
        defaults = type(self)(network=self.network)
        for name in () if self.network == "mlp" else ("gradient", "b_variance", "initializer"):
            if getattr(self, name) != getattr(defaults, name):
                raise ValueError(f"{name} is for mlp, got network={self.network}; leave it out")
        super().check()
        if self.html_stores and not self.html:
            raise ValueError("html_stores are for a page, got no html; pass html, too")
        if self.html:
            rows = len(self.activations) * (1 if self.network == "mlp" else len(self.placements))
            size = (rows, self.seeds, self.w_variances, self.depth)
            others = [explorer.finished(path, Options)[1] for path in self.html_stores]
            explorer.check([size, *map(explorer.map_size, others)])

    @property
    def grid(self) -> np.ndarray:
        """The weight variances of the map."""
        return np.geomspace(self.w_variance_min, self.w_variance_max, self.w_variances)

    @property
    def store(self) -> Path:
        """The path of the measurements."""
        return self.stem.with_name(self.stem.name + ".zarr")

    def identity(self) -> dict[str, Any]:
        """The options on which the measurements depend."""
        # Thresholds judge a measurement and do not change it. Stores of mlps were made before there
        # were other networks.
        others = {"overwrite", "memory", "ratio", "z", "html", "html_stores"}
        others |= kit.APPEARANCE | kit.CLUSTER_FIELDS
        others |= {"network", "placements"} if self.network == "mlp" else set()
        return {k: v for k, v in kit.as_plain(self).items() if k not in others}


MAP, PROFILE, TYPICAL = networks.MAP, networks.PROFILE, ("compared", "depth")
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
    networks.remove_store(options)
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
    variables = {
        name: sweeps.Variable(dims.get(name, MAP), "1", text) for name, text in VARIABLES.items()
    }
    arrays = (options.inputs(), options.grid, compared)
    return networks.sweep_map(options, cell, variables, arrays, progress, unit="layers")


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
            "log_activation": (MAP, _log_mean(result.log_activation[:count])),
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
    level = Estimate(*map(np.asarray, regimes.level(log_ratio, variances, thresholds)))
    rows = []
    # Powers of two, and the largest depth.
    for depth in sorted({*(d for d in 2 ** np.arange(1, 11) if d < options.depth), options.depth}):
        stable = np.asarray(labels[:, depth - 1]) == regimes.Regime.STABLE
        here = level[depth - 1]
        words = f"{here:.3f}" if np.isfinite(here.mean) else "none"
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


def run_networks(options: Options) -> None:
    """Map the gradients of other networks than mlps."""
    dataset = networks.measure_map(options, kit.progress("networks")).load()
    predicted, names = networks.predict_map(options), list(map(str, dataset["activation"].values))
    sections, claims = [map_table(dataset, name, options) for name in names], []
    logs = {
        name: dataset["log_ratio"].sel(activation=name).transpose("seed", ...).values[..., -1]
        for name in names
    }
    for name in names:
        expected = predicted["log_ratio"].sel(activation=name).values[..., -1]
        # Beyond the colours of the map a small difference of tokens is lost in rounding.
        inside = np.abs(expected) < 2 * DECADES * np.log(10)
        if not inside.any():
            continue
        # The mean over variances of the growth of the log per block.
        difference = Estimate.of(np.mean((logs[name] - expected)[:, inside], 1) / options.depth)
        text = f"{name}: growth per block is that of theory at infinite width"
        claims.append(kit.Claim(text, difference, "equal", tolerance=0.1, form="+.4f"))
    if {"pre-norm", "post-norm"} <= set(names):
        change = Estimate.paired(*(logs[name].mean(axis=1) for name in ("post-norm", "pre-norm")))
        text = "with norms after the sum, less of the gradient reaches the first block"
        claims.append(kit.Claim(text, change, "less", form="+.2f"))
    count = options.seeds * options.w_variances * options.depth * len(names)
    sections.append(f"{count} networks, on {options.data}. Measurements: {options.store}")
    words = {"block": "block"}
    if options.network == "transformer":
        words["quantity"] = "gradient of token differences"
    thresholds = regimes.Thresholds(options.ratio, options.z)
    draw = functools.partial(plotting.depth_map, dataset, thresholds, predicted, **words)
    kit.publish(kit.Report(sections, claims), options, draw)
    write_page(options, dataset, predicted)


def write_page(options: Options, dataset: xarray.Dataset, predicted: xarray.Dataset) -> None:
    """Write the interactive page of this map, and of others, if it is asked for."""
    if not options.html:
        return
    maps = [(options, dataset, predicted)]
    for path in options.html_stores:
        other, measured = explorer.finished(path, Options)
        expected = predict(other) if other.network == "mlp" else networks.predict_map(other)
        maps.append((other, measured, expected))
    thresholds = regimes.Thresholds(options.ratio, options.z)
    pages = []
    for part, measured, expected in maps:
        plain = part.network == "mlp"
        quantity = "gradient of token differences" if part.network == "transformer" else "gradient"
        words = {"block": "layer" if plain else "block", "quantity": quantity}
        if part.network in ("resnet", "transformer"):
            words["rows"] = "norms"
        name = f"{NAMES[part.network]}, width {part.width}"
        pages.append(explorer.Map(name, measured.load(), expected, thresholds, **words))
    path = options.stem.with_name(options.stem.name + ".html")
    explorer.write(path, pages, f"Data: {options.data}; {options.seeds} seeds.")
    print(f"Page: {path}")


def run(options: Options) -> None:
    """Map where, in depth and weight variance, gradients vanish, explode or survive."""
    if options.network != "mlp":
        run_networks(options)
        return
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
    draw = functools.partial(plotting.depth_map, dataset, thresholds, predicted)
    kit.publish(kit.Report(sections, claims), options, draw)
    write_page(options, dataset, predicted)


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run, resumable=True)
