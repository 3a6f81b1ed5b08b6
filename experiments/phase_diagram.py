"""In which of two phases is a network: do its gradients vanish or explode, and where is the border?

Run `python -m experiments.phase_diagram`, or `--help` for its options.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from experiments import frontend, growth
from jaxgrad import activations, initializers, networks, plotting, regimes, sweeps, theory


@dataclass(frozen=True)
class Config:
    """Options of the map of weight variance against bias variance."""

    activation: str = "tanh"
    """A name of jaxgrad.activations.TABLE."""
    w_variance_min: float = 0.25
    """Smallest weight variance, times fan-in."""
    w_variance_max: float = 4.0
    """Largest weight variance, times fan-in."""
    b_variance_min: float = 0.0
    """Smallest variance of the biases."""
    b_variance_max: float = 0.4
    """Largest variance of the biases."""
    w_points: int = 300
    """How many weight variances theory computes."""
    b_points: int = 250
    """How many bias variances theory computes."""
    w_measured: int = 24
    """How many weight variances are measured, at least 2."""
    b_measured: int = 20
    """How many bias variances are measured, at least 2."""
    width: int = 128
    """Units of every layer."""
    depth: int = 60
    """Number of layers; growth is that of the second half, where lengths have settled."""
    seeds: int = 4
    """How many networks for each measured point, at least 2."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    data: str = "digits"
    """digits, wine, breast_cancer, gaussian, or a .npy or .csv file, [examples, features]."""
    examples: int = 8
    """How many examples, drawn at random and standardized."""
    output: Path = Path("results/phase_diagram.png")
    """Where to write the figure."""


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    activations.get(config.activation)
    for name, least in (
        *((name, 2) for name in ("w_points", "b_points", "w_measured", "b_measured", "seeds")),
        ("width", 1),
        ("depth", 4),
        ("examples", 1),
        ("first_seed", 0),
    ):
        value = getattr(config, name)
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}; raise it")
    for name in ("w_variance", "b_variance"):
        low, high = (getattr(config, f"{name}_{end}") for end in ("min", "max"))
        if not 0 <= low < high < np.inf:
            raise ValueError(
                f"{name}_min and {name}_max must be at least 0, finite and in this order, got "
                f"{low:g} and {high:g}; swap or correct them"
            )
    if config.w_variance_min == 0:
        raise ValueError("w_variance_min must be above 0, got 0; a network needs weights")
    frontend.writable("output", config.output)


def grids(config: Config, w_points: int, b_points: int) -> dict[str, np.ndarray]:
    """Evenly spaced variances over the ranges."""
    return {
        "b_variance": np.linspace(config.b_variance_min, config.b_variance_max, b_points),
        "w_variance": np.linspace(config.w_variance_min, config.w_variance_max, w_points),
    }


def predict(config: Config) -> xarray.Dataset:
    """Where theory sees lengths and gradients go: `q` and `chi_perp` of `jaxgrad.theory.Limit`."""
    coords = grids(config, config.w_points, config.b_points)
    found = theory.limit(
        config.activation, coords["w_variance"][None], coords["b_variance"][:, None]
    )
    dims = ("b_variance", "w_variance")
    return xarray.Dataset(
        {"q": (dims, np.asarray(found.q)), "chi_perp": (dims, np.asarray(found.chi_perp))},
        coords,
        {"activation": config.activation, "critical": critical_point(config)},
    )


def measure(config: Config, progress: Any = None) -> xarray.Dataset:
    """Growth per layer of a typical example's log squared gradient, over the coarser grid.

    A cell is one network; every pair of variances scales the same draws.
    """
    x = frontend.inputs(config.data, config.examples, config.first_seed)
    coords = grids(config, config.w_measured, config.b_measured)

    def cell(key, point, x, b_variances, w_variances):
        key_init, key_gradient = jax.random.split(key)
        params = networks.init(
            key_init,
            x.shape[1],
            config.width,
            config.depth,
            activation=config.activation,
            bias_init=initializers.normal(1.0),
        )

        def at(b_variance, w_variance):
            options = (config.activation, w_variance, b_variance)
            logs = growth.measure(params, x, key_gradient, *options)
            return growth.per_layer(logs, config.depth // 2)

        row = jax.vmap(at, (None, 0))
        return {"growth": jax.lax.map(lambda b: row(b, w_variances), b_variances)}

    seeds = range(config.first_seed, config.first_seed + config.seeds)
    description = "growth per layer of the natural log of the squared gradient"
    return sweeps.run(
        cell,
        {"seed": tuple(seeds)},
        {"growth": sweeps.Variable(("b_variance", "w_variance"), "1", description)},
        key=jax.random.key(0),
        args=tuple(jnp.asarray(array, jnp.float32) for array in (x, *coords.values())),
        coords=coords,
        units={"w_variance": "1/fan_in"},
        progress=progress,
    )


def agreement(measured: xarray.Dataset, predicted: xarray.Dataset) -> tuple[float, int]:
    """At how many points measurement and theory name the same phase, and at how many both do.

    Points whose growth is within two standard errors of none belong to no phase.
    """
    values = measured["growth"].transpose("seed", "b_variance", "w_variance").values
    mean, error = (np.asarray(part) for part in regimes.mean_and_error(values))
    chi = predicted["chi_perp"].interp(
        w_variance=measured["w_variance"], b_variance=measured["b_variance"]
    )
    known = (np.abs(mean) > 2 * error) & np.isfinite(chi.values)
    same = np.sign(mean) == np.sign(np.log(chi.values))
    return float(np.mean(same[known])) if known.any() else float("nan"), int(known.sum())


def report(measured: xarray.Dataset, predicted: xarray.Dataset, config: Config) -> str:
    """Measured and predicted growth at a few points."""
    x = frontend.inputs(config.data, config.examples, config.first_seed)
    values = measured["growth"].transpose("seed", "b_variance", "w_variance").values
    mean, error = (np.asarray(part) for part in regimes.mean_and_error(values))
    inner = [
        (round(b * (config.b_measured - 1)), round(w * (config.w_measured - 1)))
        for b in (0.0, 0.5, 1.0)
        for w in (0.15, 0.5, 0.85)
    ]
    b_variance = np.array([measured["b_variance"].values[b] for b, _ in inner])
    w_variance = np.array([measured["w_variance"].values[w] for _, w in inner])
    found = growth.follow(
        config.activation, config.depth, w_variance, b_variance, x, width=config.width
    )
    infinite, typical = (
        growth.per_layer(logs, config.depth // 2) for logs in (found.infinite, found.typical)
    )
    points = {
        "w_variance": xarray.DataArray(w_variance, dims="point"),
        "b_variance": xarray.DataArray(b_variance, dims="point"),
    }
    lost = np.isinf(predicted["q"].sel(points, method="nearest").values)
    rows = [
        (
            f"{w_variance[i]:.3g}",
            f"{b_variance[i]:.3g}",
            f"{mean[at]:+.4f} ± {error[at]:.4f}",
            f"{infinite[i]:+.4f}",
            f"{typical[i]:+.4f}",
            growth.z_score(mean[at], error[at], typical[i]) + (" *" if lost[i] else "  "),
        )
        for i, at in enumerate(inner)
    ]
    headings = (
        "weight variance",
        "bias variance",
        "measured",
        "infinite width",
        f"width {config.width}",
        "z",
    )
    return "\n".join(
        [
            f"\n{config.activation}: growth per layer of the log squared gradient of a typical",
            f"example, layers {config.depth // 2} to {config.depth}, mean over {config.seeds} "
            "seeds ± standard error;",
            f"z: difference from theory at width {config.width}, in standard errors.",
            frontend.table(headings, rows),
            *["* The signal grows without bound: what a width adds is only roughly known."]
            * bool(lost.any()),
        ]
    )


def critical_point(config: Config) -> tuple[float, float]:
    """Weight and bias variance of the critical point with the smallest bias variance in range.

    If the range's smallest has none, that of the smallest bias variance that has one; NaN if there
    is none at all.
    """
    found = theory.critical(config.activation, config.b_variance_min)
    if np.isnan(found.w_variance):
        found = theory.critical(config.activation)
        return float(found.w_variance), float(found.b_variance)
    return float(found.w_variance), config.b_variance_min


def critical_words(config: Config, predicted: xarray.Dataset) -> str:
    """Where the phases meet, in a sentence that the figure carries too."""
    name, (w_variance, b_variance) = config.activation, critical_point(config)
    if np.isnan(w_variance):
        return (
            f"{name} has no critical point at any variance: where gradients would no longer "
            "vanish, signals grow without bound"
        )
    point = f"weight variance {w_variance:.4g}, bias variance {b_variance:.3g}"
    chi = predicted["chi_perp"].where(np.isfinite(predicted["q"])).values
    line = np.nanmin(chi) < 1 < np.nanmax(chi)
    inside = config.w_variance_min <= w_variance <= config.w_variance_max
    if inside and config.b_variance_min <= b_variance <= config.b_variance_max:
        return f"{name} is critical at {point}" + (" and along the line" if line else "")
    if line:
        return f"{name} is critical along the line, which goes on outside to {point}"
    return f"{name} has no critical point in this range; it has one at {point}"


def run(config: Config) -> None:
    """Map, over the variances of weights and biases, where gradients vanish and explode."""
    checked(config)
    start = time.perf_counter()
    predicted = predict(config)
    seconds = time.perf_counter() - start
    print(f"Theory of {config.w_points * config.b_points} points in {seconds:.1f} s.")
    measured = measure(config, frontend.Bar("networks"))
    print(report(measured, predicted, config))
    words = critical_words(config, predicted)
    share, count = agreement(measured, predicted)
    total = config.w_measured * config.b_measured
    print(f"\nTheory: {words}.")
    print(
        f"Measured growth differs from none at {count} of {total} points; at {share:.1%} of these "
        "it has the sign that theory gives it at infinite width."
    )
    plotting.phase_diagram(measured, predicted, words).savefig(config.output, dpi=110)
    print(f"\n{total * config.seeds} networks, {time.perf_counter() - start:.1f} s in all.")
    print(f"Figure: {config.output}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
