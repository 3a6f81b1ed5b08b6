"""At which variances do the gradients of a network vanish, and at which do they explode?

Run `python -m experiments.phase_diagram`, or `--help` for its options.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from experiments import _kit
from experiments._kit import Claim, Estimate, Report, option, paragraph, table, typical
from jaxgrad import activations, layers, plotting, sweeps, theory


@dataclass(frozen=True)
class Options(_kit.SeededOptions):
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
    data: str = option("digits", _kit.INPUT_HELP)
    examples: int = option(8, "Number of examples, drawn at random.", minimum=1)
    output: Path = option(Path("results/phase_diagram.png"), "Where to write the figure.")

    def check(self) -> None:
        """Raise ValueError if a range is empty or the data cannot be used."""
        _kit.check_range(self, "w_variance")
        _kit.check_range(self, "b_variance")
        self.inputs()

    def inputs(self) -> np.ndarray:
        """Standardized inputs, `[examples, features]`."""
        return _kit.inputs(self.data, self.examples, self.first_seed)

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
        progress=progress,
    )


def growth_estimate(measured: xarray.Dataset) -> Estimate:
    """Growth over the seeds, `[b_variance, w_variance]`."""
    values = measured["growth"].transpose("seed", "b_variance", "w_variance").values
    return Estimate.of(values.astype(np.float64))


def agreement(measured: xarray.Dataset, predicted: xarray.Dataset) -> tuple[float, int]:
    """Return the share of points with the predicted phase, and how many points have a phase.

    Points whose growth is within two standard errors of 0 belong to no phase.
    """
    growth = growth_estimate(measured)
    # A layer multiplies the squared gradient by chi_perp: above 1 it explodes.
    chi = predicted["chi_perp"].interp(
        w_variance=measured["w_variance"], b_variance=measured["b_variance"]
    )
    clear = np.abs(growth.mean) > 2 * growth.standard_error
    known = clear & np.isfinite(chi.values)
    same = np.sign(growth.mean) == np.sign(np.log(chi.values))
    return float(np.mean(same[known])) if known.any() else float("nan"), int(known.sum())


def comparison(measured: xarray.Dataset, predicted: xarray.Dataset, options: Options) -> str:
    """Tabulate measured and predicted growth at nine points."""
    growth, half = growth_estimate(measured), options.depth // 2
    # Weights away from the edges of the range, where a phase is clear.
    indices = [
        (round(b * (options.b_measured - 1)), round(w * (options.w_measured - 1)))
        for b in (0.0, 0.5, 1.0)
        for w in (0.15, 0.5, 0.85)
    ]
    coords = options.grids(options.w_measured, options.b_measured)
    b_variance = np.array([coords["b_variance"][b] for b, _ in indices])
    w_variance = np.array([coords["w_variance"][w] for _, w in indices])
    size, pairs = (options.activation, options.depth), (w_variance, b_variance)
    theories = typical.predict(*size, *pairs, options.inputs(), width=options.width)
    logs = (theories.infinite, theories.typical)
    infinite, finite = (typical.per_layer(part, half) for part in logs)
    points = {
        "w_variance": xarray.DataArray(w_variance, dims="point"),
        "b_variance": xarray.DataArray(b_variance, dims="point"),
    }
    # Where the signal grows without bound, the effect of a width is only roughly known.
    unbounded = np.isinf(predicted["q"].sel(points, method="nearest").values)
    rows = []
    for i, index in enumerate(indices):
        mean, error = growth.mean[index], growth.standard_error[index]
        variances = (f"{variance[i]:.3g}" for variance in (w_variance, b_variance))
        numbers = (f"{mean:+.4f} ± {error:.4f}", f"{infinite[i]:+.4f}", f"{finite[i]:+.4f}")
        z = typical.z_score(mean, error, finite[i]) + (" *" if unbounded[i] else "  ")
        rows.append((*variances, *numbers, z))
    width = f"width {options.width}"
    headings = ("weight variance", "bias variance", "measured", "infinite width", width, "z")
    title = (
        f"{options.activation}: growth per layer of the log squared gradient of a typical example, "
        f"layers {half} to {options.depth}, mean over {options.seeds} seeds ± standard error; z: "
        f"difference from theory at {width}, in standard errors."
    )
    note = "\n* The signal grows without bound: the effect of a width is only roughly known."
    return table(headings, rows, title) + note * bool(unbounded.any())


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
    measured = measure(options, _kit.progress("networks"))
    words, (share, count) = headline(options, predicted), agreement(measured, predicted)
    total = options.w_measured * options.b_measured
    summary = (
        f"Theory: {words}. Measured growth differs from none at {count} of {total} points; at "
        f"{share:.1%} of these it has the sign that theory predicts at infinite width."
    )
    # A sign drawn at random would be right at half of the points.
    text = f"the phase is the predicted one at more than half of the {count} points"
    claims = [Claim(text, Estimate.exact(share), "greater", 0.5, form=".1%")] if count else []
    sections = [comparison(measured, predicted, options), paragraph(summary)]
    estimates = {"same phase": share, "points": count, "growth": growth_estimate(measured)}
    figure = plotting.phase_diagram(measured, predicted, words)
    _kit.publish(Report(sections, claims, estimates), options, figure)


if __name__ == "__main__":
    _kit.use_all_cores()
    _kit.command(Options, run)
