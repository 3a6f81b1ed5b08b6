"""Which common initializations keep gradients alive, for each activation, and which do not?

Run `python -m experiments.activations`, or `--help` for its options.
"""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit
from experiments._kit import Claim, Estimate, Report, figures, option, paragraph, table, typical
from jaxgrad import activations, layers, propagation, theory
from jaxgrad.plotting.style import SHADES, THEORY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USUAL = ("LeCun", "He", "unit gain")


@dataclass(frozen=True)
class Options(_kit.SeededOptions):
    """Options of the comparison of activations."""

    activations: tuple[str, ...] = option(
        tuple(activations.TABLE), "Names of activations.", choices=tuple(activations.TABLE)
    )
    width: int = option(256, "Units of every layer.", minimum=1)
    depth: int = option(50, "Number of layers.", minimum=2)
    seeds: int = option(6, "Networks for each activation and initialization.", minimum=2)
    data: str = option("digits", _kit.INPUT_HELP)
    examples: int = option(16, "Number of examples, drawn at random.", minimum=1)
    output: Path = option(Path("results/activations.png"), "Where to write the figure.")

    def check(self) -> None:
        """Raise ValueError if the data cannot be used."""
        self.inputs()

    def inputs(self) -> np.ndarray:
        """Standardized inputs, `[examples, features]`."""
        return _kit.inputs(self.data, self.examples, self.first_seed)


class Recipe(NamedTuple):
    """A way to draw a network: variances of the weights, times fan-in, and of the biases."""

    name: str
    w_variance: float
    b_variance: float = 0.0


class Row(NamedTuple):
    """One activation with one recipe; growth is per layer, of the log, of a typical example.

    Attributes:
      activation, recipe: which.
      critical: whether theory calls the variances critical.
      only_small: whether they are critical only in the limit of a signal that has died out.
      growth: that of the squared gradient, over the seeds.
      infinite, typical: the predicted growth, at infinite width and at the width.
      last: the predicted growth in the last layer alone, at infinite width.
      signal: growth of the mean square of the layers' outputs.
      dead, saturated: shares of units in the last layer, see `jaxgrad.propagation.Propagation`.
    """

    activation: str
    recipe: Recipe
    critical: bool
    only_small: bool
    growth: Estimate
    infinite: float
    typical: float
    last: float
    signal: float
    dead: float
    saturated: float


HE_SLOPES = {
    "relu": 0.0,
    "leaky_relu": 0.01,
    # The mean of slopes drawn from U(1/8, 1/3).
    "randomized_leaky_relu": (1 / 8 + 1 / 3) / 2,
    "parametric_relu": 0.25,
    # Courses recommend He's variance of ReLU for these.
    **dict.fromkeys(("elu", "gelu", "gelu_tanh", "silu"), 0.0),
}


def usual(name: str) -> list[Recipe]:
    """The recipes of courses and libraries for an activation."""
    if name not in HE_SLOPES:
        return [Recipe("LeCun", 1.0)]
    # He et al. (2015): 2 / (1 + slope^2) keeps the signal of a leaky ReLU level.
    recipes = [Recipe("He", 2 / (1 + HE_SLOPES[name] ** 2))]
    return recipes + [Recipe("unit gain", 1.0)] * (name in ("gelu", "gelu_tanh", "silu"))


def critical(name: str) -> list[tuple[Recipe, theory.Critical]]:
    """Critical points in theory: that with the smallest biases, and for SELU also at `q = 1`."""
    points = [("critical", theory.critical(name))]
    if name == "selu":
        points.append(("critical, q = 1", theory.critical_line(name, 1.0)))
    return [
        (Recipe(label, float(point.w_variance), float(point.b_variance)), point)
        for label, point in points
        # NaN where theory has no critical point.
        if np.isfinite(point.w_variance)
    ]


def measure(name: str, recipes: list[Recipe], options: Options) -> dict[str, Any]:
    """Measure growth and units, `[seeds, recipes]`; all recipes share the draws of a seed."""
    # One draw serves all activations, except those that have parameters of their own.
    params = draws(options, name if activations.get(name).parameters else "linear")
    variances = np.array([recipe[1:] for recipe in recipes], np.float32)

    def one_seed(draw, x, variances):
        seed, params = draw
        key = jax.random.fold_in(jax.random.key(1), seed)

        def one_recipe(pair):
            network = typical.network(options.width, options.depth, name, *pair)
            result = propagation.probe(network, params, x, key=key)
            logs = typical.measure(network, params, x, key=key)
            return {
                "growth": typical.per_layer(logs),
                "signal": typical.per_layer(result.log_activation),
                "dead": result.dead[-1],
                "saturated": result.saturated[-1],
            }

        return jax.vmap(one_recipe)(variances)

    @jax.jit
    def all_seeds(params, x, variances):
        # One seed at a time bounds the memory.
        return jax.lax.map(lambda draw: one_seed(draw, x, variances), (seeds(options), params))

    return jax.device_get(all_seeds(params, jnp.asarray(options.inputs()), jnp.asarray(variances)))


def seeds(options: Options) -> jax.Array:
    """All seeds as an array."""
    return jnp.asarray(options.seed_values)


@functools.lru_cache(maxsize=2)
def draws(options: Options, name: str) -> Any:
    """Parameters of unit variance for each seed."""
    network = typical.network(options.width, options.depth, name, 1.0, 1.0)
    shape = options.inputs().shape[1:]

    def draw(seed):
        return layers.init(network, shape, key=jax.random.fold_in(jax.random.key(0), seed))[0]

    return jax.jit(jax.vmap(draw))(seeds(options))


def compare(options: Options, progress: Any = None) -> list[Row]:
    """Measure and predict every activation with every recipe."""
    # Drawn before the threads start, or each of them would draw it.
    draws(options, "linear")
    rows = []
    # Nearly all the time is spent compiling, one thread a program.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(rows_of, name, options) for name in options.activations]
        for done, job in enumerate(jobs):
            rows += job.result()
            if progress is not None:
                progress(done + 1, len(jobs))
    return rows


def rows_of(name: str, options: Options) -> list[Row]:
    """The rows of one activation."""
    points, recipes = critical(name), usual(name)
    # A usual recipe that is critical already is measured once.
    recipes += [r for r, _ in points if not any(is_same(r, other) for other in recipes)]
    measured = measure(name, recipes, options)
    growth = Estimate.of(measured["growth"])
    mean = {key: values.mean(axis=0) for key, values in measured.items()}
    w_variance, b_variance = np.array([recipe[1:] for recipe in recipes]).T
    prediction = typical.predict(
        name, options.depth, w_variance, b_variance, options.inputs(), width=options.width
    )
    infinite, finite = prediction.infinite, typical.per_layer(prediction.typical)
    # In the last layer the signal has settled, so its growth is that of deep layers.
    last = infinite[:, -1] - infinite[:, -2]
    rows = []
    for i, recipe in enumerate(recipes):
        same = [point for r, point in points if is_same(r, recipe)]
        # At q = 0 gradients are level only after the signal has died out.
        only_small = any(float(point.q) == 0 for point in same)
        theories = (typical.per_layer(infinite)[i], finite[i], last[i])
        units = (mean[key][i] for key in ("signal", "dead", "saturated"))
        numbers = map(float, (*theories, *units))
        rows.append(Row(name, recipe, bool(same), only_small, growth[i], *numbers))
    return rows


def is_same(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes have the same variances."""
    return bool(np.allclose(one[1:], other[1:], rtol=1e-9, atol=1e-9))


def report(rows: list[Row], options: Options) -> Report:
    """Tabulate all rows, and list the usual recipes that are critical and those that are not."""
    cells = [
        (
            row.activation,
            row.recipe.name,
            f"{row.recipe.w_variance:.4g}",
            f"{row.recipe.b_variance:.3g}",
            f"{row.growth:+.4f}",
            f"{row.infinite:+.4f}",
            f"{row.typical:+.4f}",
            typical.z_score(row.growth.mean, row.growth.standard_error, row.typical),
        )
        for row in rows
    ]
    headings = ("activation", "recipe", "w var", "b var", "gradient", "infinite")
    headings += (f"width {options.width}", "z")
    title = (
        "Growth per layer of the log squared gradient of a typical example, mean over "
        f"{options.seeds} seeds ± standard error; z: from theory at width {options.width}, in "
        "standard errors."
    )
    signals = [
        (*row[:2], f"{values.signal:+.3f}", f"{values.dead:.0%}", f"{values.saturated:.0%}")
        for row, values in zip(cells, rows, strict=True)
    ]
    units = f"Growth per layer of the log squared signal, and units of layer {options.depth}."
    failing = [row for row in rows if row.recipe.name in USUAL and not row.critical]
    lines = [paragraph(failure(row, rows)) for row in failing]
    columns = ("activation", "recipe", "signal", "dead", "saturated")
    sections = [table(headings, cells, title), table(columns, signals, units)]
    if lines:
        sections.append("\n".join(["Usual recipes that are not critical:", *lines]))
    claims = [
        Claim(
            f"{row.activation} with {row.recipe.name}: gradients change with depth as predicted",
            # Times the sign of the prediction, so agreement is always above 0.
            row.growth * float(np.sign(row.last)),
            "greater",
            form="+.4f",
        )
        for row in failing
    ]
    return Report([*sections, *sound(rows, options)], claims, {"rows": [r._asdict() for r in rows]})


def failure(row: Row, rows: list[Row]) -> str:
    """Describe how a recipe that is not critical fails, and name critical ones."""
    points = [r.recipe for r in rows if r.activation == row.activation and r.critical]
    instead = " or ".join(
        f"weight variance {r.w_variance:.4g} and bias variance {r.b_variance:.3g}" for r in points
    )
    # An error of g in the log is one of exp(growth) g in the factor.
    factor = np.exp(row.growth.mean)
    return (
        f"- {row.activation} with {row.recipe.name} (weight variance {row.recipe.w_variance:.4g}): "
        f"the squared gradient is multiplied by {np.exp(row.last):.4g} per layer in deep layers of "
        f"infinite width, measured {factor:.4g} ± {factor * row.growth.standard_error:.1g}; "
        f"critical instead: {instead or 'no point exists'}."
    )


def sound(rows: list[Row], options: Options) -> list[str]:
    """List the usual recipes that are critical."""
    lines = []
    for only_small, words in (
        (False, "Critical as they are"),
        (True, "Critical, but only for signals that die out, and gradients with them by a power"),
    ):
        names = ", ".join(
            f"{row.activation} with {row.recipe.name} "
            f"(x {np.exp(row.growth.mean * (options.depth - 1)):.2g})"
            for row in rows
            if row.recipe.name in USUAL and row.critical and row.only_small == only_small
        )
        if names:
            heading = f"{words} (squared gradient over {options.depth} layers): "
            lines.append(paragraph(heading + names + "."))
    return lines


def figure(rows: list[Row], depth: int) -> Figure:
    """Plot the growth of the gradient per layer, by activation and recipe.

    Activations are sorted by how far their usual recipes are from level.
    """
    from matplotlib.lines import Line2D

    largest = {}
    for row in rows:
        if not row.recipe.name.startswith("critical"):
            size = abs(row.growth.mean)
            largest[row.activation] = max(largest.get(row.activation, 0.0), size)
    names = sorted(largest, key=lambda name: largest[name])
    figure, ((ax,),) = figures.panels(1, 1, (11.5, 1.9 + 0.45 * len(names)))
    ax.axvline(0.0, color="black", linewidth=1)
    for position, name in enumerate(names):
        if position % 2:
            ax.axhspan(position - 0.5, position + 0.5, color="0.95", linewidth=0, zorder=0)
        of_name = [row for row in rows if row.activation == name]
        offsets = np.linspace(-0.25, 0.25, len(of_name)) if len(of_name) > 1 else [0.0]
        for row, offset in zip(of_name, offsets, strict=True):
            draw_row(ax, row, position + offset)
        if not any(row.critical for row in of_name):
            ax.text(0.0, position, "  no critical point exists", fontsize=8, va="center")
    ax.set_yticks(range(len(names)), names)
    # Growth has either sign and spans two orders of magnitude.
    ax.set_xscale("symlog", linthresh=0.1, linscale=1.2)
    factors = (0.1, 0.5, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.5)
    figures.ticks(ax.xaxis, np.log(factors), ["level" if f == 1 else f"× {f:g}" for f in factors])
    ax.set(
        xlabel="factor of the squared gradient per layer, on its way back\n"
        f"(typical example, {depth} layers; bars: two standard errors; linear near “level”)",
        ylabel="activation",
        ylim=(-0.6, len(names) - 0.4),
    )
    ax.margins(x=0.12)
    failing = {r.activation for r in rows if r.recipe.name in USUAL and not r.critical}
    ax.set_title(
        f"Usual initializations are not critical for {len(failing)} of {len(names)} activations:\n"
        "left of “level” gradients vanish, right of it they explode",
        fontsize=14,
    )
    tick = {"marker": "|", "markersize": 13, "linestyle": "none"}
    handles = [
        Line2D([], [], color=SHADES[-1], marker="D", label="usual, not critical"),
        Line2D([], [], color=SHADES[1], marker="o", label="critical"),
        Line2D([], [], color=THEORY, label="theory at this width", **tick),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_row(ax: Any, row: Row, height: float) -> None:
    """Draw the measured growth with its error bar, the predicted one, and the recipe's name."""
    colour, marker = (SHADES[1], "o") if row.critical else (SHADES[-1], "D")
    mean, bar = row.growth.mean, 2 * row.growth.standard_error
    ax.errorbar(mean, height, xerr=bar, color=colour, marker=marker, capsize=3)
    ax.plot(row.typical, height, color=THEORY, marker="|", markersize=13, zorder=5)
    # The name is on the side that is away from level.
    side = -1 if mean < 0 else 1
    look = {"ha": "right" if side < 0 else "left", "va": "center", "fontsize": 8, "color": "0.3"}
    offset = {"xytext": (7 * side, 0), "textcoords": "offset points"}
    ax.annotate(row.recipe.name, (mean + side * bar, height), **offset, **look)


def run(options: Options) -> None:
    """Compare activations: do their usual initializations keep gradients alive?"""
    rows = compare(options, _kit.progress("activations"))
    _kit.publish(report(rows, options), options, figure(rows, options.depth))


if __name__ == "__main__":
    _kit.use_all_cores()
    _kit.command(Options, run)
