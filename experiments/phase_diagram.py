"""At which variances do the gradients of a network vanish, and at which do they explode?

Run `python -m experiments.phase_diagram`, or `--help` for its options.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from experiments import _kit as kit
from experiments._kit import Estimate, option, typical
from jaxgrad import activations, layers, plotting, sweeps, theory


@dataclass(frozen=True)
class Options(typical.Options):
    """Options of the map of weight variance against bias variance."""

    activation: str = option("tanh", "Name of an activation.", choices=tuple(activations.TABLE))
    w_variance_min: float = option(0.25, "Smallest weight variance, times fan-in.", above=0)
    w_variance_max: float = option(4.0, "Largest weight variance, times fan-in.", above=0)
    b_variance_min: float = option(0.0, "Smallest variance of the biases.", minimum=0)
    b_variance_max: float = option(0.4, "Largest variance of the biases.", above=0)
    w_points: int = option(300, "Number of weight variances for theory.", minimum=2)
    b_points: int = option(250, "Number of bias variances for theory.", minimum=2)
    w_measured: int = option(24, "Number of weight variances to measure.", minimum=2)
    b_measured: int = option(20, "Number of bias variances to measure.", minimum=2)
    width: int = option(128, "Units of every layer.", minimum=1)
    depth: int = option(60, "Number of layers; growth is that of the second half.", minimum=4)
    seeds: int = option(4, "Networks for each measured point.", minimum=2)
    examples: int = option(8, "Number of examples, drawn at random.", minimum=1)
    output: Path = option(Path("results/phase_diagram.png"), "Where to write the figure.")

    def check(self) -> None:
        """Raise ValueError if a range is empty or the data cannot be used."""
        kit.check_range(self, "w_variance")
        kit.check_range(self, "b_variance")
        super().check()

    def grids(self, w_points: int, b_points: int) -> dict[str, np.ndarray]:
        """Evenly spaced variances over the ranges."""
        return {
            "b_variance": np.linspace(self.b_variance_min, self.b_variance_max, b_points),
            "w_variance": np.linspace(self.w_variance_min, self.w_variance_max, w_points),
        }


def predict(options: Options) -> xarray.Dataset:
    """Predict the limits of deep networks: `q` and `chi_perp` of `jaxgrad.theory.Limit`."""
    coords = options.grids(options.w_points, options.b_points)
    w_variance, b_variance = coords["w_variance"][None], coords["b_variance"][:, None]
    limit = theory.limit(options.activation, w_variance, b_variance)
    dims = ("b_variance", "w_variance")
    return xarray.Dataset(
        {"q": (dims, np.asarray(limit.q)), "chi_perp": (dims, np.asarray(limit.chi_perp))},
        coords,
        {"activation": options.activation, "critical": critical_point(options)},
    )


def measure(options: Options, progress: Any = None) -> xarray.Dataset:
    """Measure the growth per layer of a typical example's log squared gradient.

    A cell is one network; every point of the coarser grid scales the same draws.
    """
    coords = options.grids(options.w_measured, options.b_measured)
    size = (options.width, options.depth, options.activation)

    def cell(key, point, x, b_variances, w_variances):
        key_init, key_gradient = jax.random.split(key)
        # Parameters of unit variance, which are scaled for each point.
        network = typical.network(*size, 1.0, 1.0)
        params, _ = layers.init(network, x.shape[1:], key=key_init)

        def growth(b_variance, w_variance):
            network = typical.network(*size, w_variance, b_variance)
            logs = typical.measure(network, params, x, key=key_gradient)
            # In the second half of the network the signal is near its limit.
            return typical.per_layer(logs, options.depth // 2)

        # Variances of a row share one matrix product; rows bound the memory.
        row = jax.vmap(growth, (None, 0))
        return {"growth": jax.lax.map(lambda b: row(b, w_variances), b_variances)}

    description = "growth per layer of the natural log of the squared gradient"
    return sweeps.run(
        cell,
        {"seed": options.seed_values},
        {"growth": sweeps.Variable(("b_variance", "w_variance"), "1", description)},
        key=jax.random.key(0),
        args=tuple(jnp.asarray(a, jnp.float32) for a in (options.inputs(), *coords.values())),
        coords=coords,
        units={"w_variance": "1/fan_in"},
        **kit.sweep_progress(progress),
    )


def growth_estimate(measured: xarray.Dataset) -> Estimate:
    """Growth over the seeds, `[b_variance, w_variance]`."""
    return Estimate.of(measured["growth"].transpose("seed", "b_variance", "w_variance").values)


def agreement(measured: xarray.Dataset, predicted: xarray.Dataset) -> tuple[float, int]:
    """Return the share of points with the predicted phase, and how many points have a phase.

    Points whose growth is within two standard errors of 0 belong to no phase.
    """
    growth = growth_estimate(measured)
    # A layer multiplies the squared gradient by chi_perp: above 1 it explodes.
    chi = predicted["chi_perp"].interp(
        w_variance=measured["w_variance"], b_variance=measured["b_variance"]
    )
    known = (np.abs(growth.mean) > 2 * growth.standard_error) & np.isfinite(chi.values)
    same = np.sign(growth.mean) == np.sign(np.log(chi.values))
    return float(np.mean(same[known])) if known.any() else float("nan"), int(known.sum())


def comparison(measured: xarray.Dataset, predicted: xarray.Dataset, options: Options) -> str:
    """Tabulate measured and predicted growth at nine points."""
    half, width = options.depth // 2, f"width {options.width}"
    # Weights away from the edges of the range, where a phase is clear.
    b_index = [round(b * (options.b_measured - 1)) for b in (0.0, 0.5, 1.0)]
    w_index = [round(w * (options.w_measured - 1)) for w in (0.15, 0.5, 0.85)]
    nine = measured.isel(b_variance=b_index, w_variance=w_index)
    pairs = np.meshgrid(nine["w_variance"], nine["b_variance"])
    w_variance, b_variance = (axis.ravel() for axis in pairs)
    size, x = (options.activation, options.depth), options.inputs()
    theories = typical.predict(*size, w_variance, b_variance, x, width=options.width)
    logs = (theories.infinite, theories.typical)
    infinite, finite = (typical.per_layer(part, half) for part in logs)
    growth = growth_estimate(nine)
    growth = Estimate(growth.mean.ravel(), growth.standard_error.ravel(), options.seeds - 1)
    nearest = {axis: nine[axis] for axis in ("b_variance", "w_variance")}
    q = predicted["q"].sel(nearest, method="nearest")
    marks = np.where(np.isinf(q.values.ravel()), " *", "  ")
    z_scores = [f"{z:+.1f}{mark}" for z, mark in zip(growth.z_score(finite), marks, strict=True)]
    title = f"{options.activation}: growth per layer of the log squared gradient of a typical "
    title += f"example, layers {half} to {options.depth}, mean over {options.seeds} seeds ± "
    title += f"standard error; z: difference from theory at {width}, in standard errors; *: the "
    title += "signal grows without bound, so that the effect of a width is only roughly known."
    headings = {"weight variance": ".3g", "bias variance": ".3g", "measured": "+.4f"}
    headings |= {"infinite width": "+.4f", width: "+.4f", "z": ""}
    columns = (w_variance, b_variance, growth, infinite, finite, z_scores)
    return kit.table(headings, zip(*columns, strict=True), title)


def critical_point(options: Options) -> tuple[float, float]:
    """Weight and bias variance of the critical point with the smallest bias variance in range.

    If the smallest of the range has none, take the smallest that has one; NaN if none has.
    """
    point = theory.critical(options.activation, options.b_variance_min)
    # The critical line may begin at a larger bias variance.
    if np.isnan(point.w_variance):
        point = theory.critical(options.activation)
        return float(point.w_variance), float(point.b_variance)
    return float(point.w_variance), options.b_variance_min


def headline(options: Options, predicted: xarray.Dataset) -> str:
    """Describe where the phases meet, for the report and the figure."""
    name, (w_variance, b_variance) = options.activation, critical_point(options)
    if np.isnan(w_variance):
        return (
            f"{name} has no critical point at any variance: where gradients would no longer "
            "vanish, signals grow without bound"
        )
    point = f"weight variance {w_variance:.4g}, bias variance {b_variance:.3g}"
    # The line is where chi_perp passes 1 while signals stay bounded.
    chi = predicted["chi_perp"].where(np.isfinite(predicted["q"])).values
    line = np.nanmin(chi) < 1 < np.nanmax(chi)
    inside = options.w_variance_min <= w_variance <= options.w_variance_max
    if inside and options.b_variance_min <= b_variance <= options.b_variance_max:
        return f"{name} is critical at {point}" + (" and along the line" if line else "")
    if line:
        return f"{name} is critical along the line, which continues outside to {point}"
    return f"{name} has no critical point in this range; it has one at {point}"


def run(options: Options) -> None:
    """Map, over the variances of weights and biases, where gradients vanish and explode."""
    predicted = predict(options)
    measured = measure(options, kit.progress("networks"))
    words, (share, count) = headline(options, predicted), agreement(measured, predicted)
    summary = f"Theory: {words}. Measured growth differs from none at {count} of "
    summary += f"{options.w_measured * options.b_measured} points; at {share:.1%} of these it has "
    summary += "the sign that theory predicts at infinite width."
    # A sign drawn at random would be right at half of the points.
    text = f"the phase is the predicted one at more than half of the {count} points"
    claims = [kit.Claim(text, Estimate.exact(share), "greater", 0.5, form=".1%")] if count else []
    sections = [comparison(measured, predicted, options), kit.paragraph(summary)]
    estimates = {"same phase": share, "points": count, "growth": growth_estimate(measured)}
    draw = functools.partial(plotting.phase_diagram, measured, predicted, words)
    kit.publish(kit.Report(sections, claims, estimates), options, draw)


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
