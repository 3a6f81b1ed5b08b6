"""Which common initializations keep gradients alive, for each activation, and which do not?

Run `python -m experiments.activations`, or `--help` for its options.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit as kit
from experiments._kit import Estimate, figures, option, typical
from jaxgrad import activations, layers, propagation, theory
from jaxgrad.plotting import style

USUAL = ("LeCun", "He", "unit gain")
RATIO = 10.0
"""A gradient survives if its norm changes by less than this factor."""


@dataclass(frozen=True)
class Options(typical.Options):
    """Options of the comparison of activations."""

    activations: tuple[str, ...] = option(
        # Approximated by tanh, GELU would count twice.
        tuple(name for name in activations.TABLE if name != "gelu_tanh"),
        "Names of activations.",
        choices=tuple(activations.TABLE),
    )
    width: int = option(256, "Units of every layer.", minimum=1)
    depth: int = option(50, "Number of layers.", minimum=2)
    seeds: int = option(6, "Networks for each activation and initialization.", minimum=2)
    output: Path = option(Path("results/activations.png"), "Where to write the figure.")


class Recipe(NamedTuple):
    """A way to draw a network: variances of the weights, times fan-in, and of the biases."""

    name: str
    w_variance: float
    b_variance: float = 0.0


class Row(NamedTuple):
    """One activation with one recipe; growth is per layer, of the log, of a typical example.

    Growth is predicted at infinite width, at this width (`typical`), and in the last layer alone;
    `signal` is that of the outputs' mean square, and `dead` and `saturated` are shares of units.
    """

    activation: str
    recipe: Recipe
    critical: bool
    only_small: bool  # critical only for a signal that has died out
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


def with_critical(name: str) -> dict[Recipe, theory.Critical | None]:
    """The usual recipes and the critical ones, with the critical point where there is one.

    It is that with the smallest biases, and for SELU also that at `q = 1`.
    """
    recipes: dict[Recipe, theory.Critical | None] = dict.fromkeys(usual(name))
    points = {"critical": theory.critical(name)}
    if name == "selu":
        points["critical, q = 1"] = theory.critical_line(name, 1.0)
    for label, point in points.items():
        variances = (float(point.w_variance), float(point.b_variance))
        # A usual recipe that is critical already is measured once.
        same = [r for r in recipes if np.allclose(r[1:], variances, rtol=1e-9, atol=1e-9)]
        # NaN where theory has no critical point.
        if np.isfinite(point.w_variance):
            recipes[same[0] if same else Recipe(label, *variances)] = point
    return recipes


def measure(name: str, variances: np.ndarray, options: Options) -> dict[str, Any]:
    """Measure growth and units, `[seeds, recipes]`; all recipes share the draws of a seed."""
    x = jnp.asarray(options.inputs())

    def one(draw, variances):
        seed, params = draw
        key = jax.random.fold_in(jax.random.key(1), seed)
        network = typical.network(options.width, options.depth, name, *variances)
        result = propagation.probe(network, params, x, key=key)
        return {
            "growth": typical.per_layer(typical.measure(network, params, x, key=key)),
            "signal": typical.per_layer(result.log_activation),
            "dead": result.dead[-1],
            "saturated": result.saturated[-1],
        }

    # One draw serves all activations, except those that have parameters of their own.
    params = draws(options, name if activations.get(name).parameters else "linear")
    recipes, seeds = jnp.asarray(variances, jnp.float32), jnp.asarray(options.seed_values)
    each = jax.vmap(one, (None, 0))
    # One seed at a time bounds the memory.
    run = jax.jit(lambda draws: jax.lax.map(lambda draw: each(draw, recipes), draws))
    return jax.device_get(run((seeds, params)))


@functools.lru_cache(maxsize=2)
def draws(options: Options, name: str) -> Any:
    """Parameters of unit variance for each seed."""
    network = typical.network(options.width, options.depth, name, 1.0, 1.0)
    shape = options.inputs().shape[1:]

    def draw(seed):
        return layers.init(network, shape, key=jax.random.fold_in(jax.random.key(0), seed))[0]

    return jax.jit(jax.vmap(draw))(jnp.asarray(options.seed_values))


def compare(options: Options, progress: kit.Progress = None) -> list[Row]:
    """Measure and predict every activation with every recipe."""
    # Drawn before the threads start, or each of them would draw it.
    draws(options, "linear")
    jobs = {name: functools.partial(rows_of, name, options) for name in options.activations}
    return list(itertools.chain(*kit.in_threads(jobs, progress).values()))


def rows_of(name: str, options: Options) -> list[Row]:
    """The rows of one activation."""
    recipes = with_critical(name)
    variances = np.array([recipe[1:] for recipe in recipes])
    measured = measure(name, variances, options)
    growth = Estimate.of(measured.pop("growth"))
    w_variance, b_variance = variances.T
    prediction = typical.predict(
        name, options.depth, w_variance, b_variance, options.inputs(), width=options.width
    )
    numbers = {
        "infinite": typical.per_layer(prediction.infinite),
        "typical": typical.per_layer(prediction.typical),
        # In the last layer the signal has settled, so its growth is that of deep layers.
        "last": typical.per_layer(prediction.infinite, options.depth - 1),
    }
    numbers |= {key: values.mean(axis=0) for key, values in measured.items()}
    rows = []
    for i, (recipe, point) in enumerate(recipes.items()):
        # At q = 0 gradients are level only after the signal has died out.
        only_small = point is not None and float(point.q) == 0
        fields = {key: float(values[i]) for key, values in numbers.items()}
        rows.append(Row(name, recipe, point is not None, only_small, growth[i], **fields))
    return rows


def decades(row: Row, depth: int) -> Estimate:
    """Log10 of the factor by which the gradient's norm changes over the depth."""
    return row.growth * scale(depth)


def scale(depth: int) -> float:
    """What turns growth per layer of a log square into decades of a norm over the depth."""
    return (depth - 1) / (2 * np.log(10))


def survives(row: Row, depth: int) -> bool:
    """Whether the gradient changes by less than `RATIO` over the depth, measured."""
    return abs(decades(row, depth).mean) < np.log10(RATIO)


def counts(rows: list[Row], depth: int) -> tuple[int, int, int]:
    """Activations; those that survive a usual recipe; those that survive any recipe."""
    names = dict.fromkeys(row.activation for row in rows)
    alive = [row for row in rows if survives(row, depth)]
    usually = {row.activation for row in alive if row.recipe.name in USUAL}
    return len(names), len(usually), len({row.activation for row in alive})


def claim(row: Row, depth: int) -> kit.Claim:
    """Claim what theory predicts at this width: that a gradient survives, vanishes or explodes."""
    predicted, border = row.typical * scale(depth), float(np.log10(RATIO))
    text = f"{row.activation} with {row.recipe.name}: over {depth} layers the gradient "
    if abs(predicted) < border:
        relation, bounds, words = "equal", (0.0, border), f"changes by less than {RATIO:g} times"
    elif predicted > 0:
        relation, bounds, words = "greater", (border, 0.0), f"grows more than {RATIO:g} times"
    else:
        relation, bounds, words = "less", (-border, 0.0), f"shrinks more than {RATIO:g} times"
    return kit.Claim(text + words + " (log10)", decades(row, depth), relation, *bounds, "+.2f")


def report(rows: list[Row], options: Options) -> kit.Report:
    """Tabulate the gradient at the depth, and claim what theory predicts for the usual recipes."""
    depth = options.depth
    headings = {"activation": "", "recipe": "", "w var": ".4g", "b var": ".3g", "measured": "+.2f"}
    headings |= {f"theory, width {options.width}": "+.2f", "z": "+.1f", "gradient": ""}
    title = f"Log10 of the factor by which a gradient's norm changes over {depth} layers, typical "
    title += f"example, mean over {options.seeds} seeds ± standard error; z: from theory, in "
    title += f"standard errors. It survives if it changes by less than {RATIO:g} times."
    cells = []
    for row in rows:
        change = decades(row, depth)
        words = "explodes" if change.mean > 0 else "vanishes"
        words = "survives" if survives(row, depth) else words
        expected = row.typical * scale(depth)
        cells.append(
            (row.activation, *row.recipe, change, expected, change.z_score(expected), words)
        )
    sections = [kit.table(headings, cells, title, left=2)]
    total, usually, any_recipe = counts(rows, depth)
    text = f"Of {total} activations, {usually} keep their gradient over {depth} layers with a "
    text += f"usual recipe, and {any_recipe} with a usual or a critical one."
    claims = [claim(row, depth) for row in rows if row.recipe.name in USUAL]
    numbers = {"rows": [row._asdict() for row in rows]}
    return kit.Report(
        [*sections, kit.paragraph(text)], claims, numbers, [units_table(rows, options)]
    )


def units_table(rows: list[Row], options: Options) -> str:
    """Growth per layer at infinite width, and the units of the last layer."""
    possible = {row.activation for row in rows if row.critical}
    headings = {"activation": "", "recipe": "", "critical": "", "infinite": "+.4f"}
    headings |= {"deep layers": ".4g", "signal": "+.3f", "dead": ".0%", "saturated": ".0%"}
    title = "Whether theory calls the variances critical (dying: only for a signal that dies out); "
    title += "growth per layer of the log squared gradient at infinite width, and its factor in a "
    title += "deep layer; growth per layer of the log squared signal, and units of layer "
    title += f"{options.depth}."
    cells = []
    for row in rows:
        words = "no" if row.activation in possible else "never"
        if row.critical:
            words = "dying" if row.only_small else "yes"
        units = (row.signal, row.dead, row.saturated)
        factors = (row.infinite, np.exp(row.last))
        cells.append((row.activation, row.recipe.name, words, *factors, *units))
    return kit.table(headings, cells, title, left=3)


def figure(rows: list[Row], depth: int) -> Any:
    """The change of the gradient over the depth for each activation, usual and critical."""
    total, usually, any_recipe = counts(rows, depth)
    title = (
        f"Of {total} activations, {usually} keep their gradient over {depth} layers with a usual "
        f"initialization, and {any_recipe} with a usual or the critical one"
    )
    groups: dict[str, dict[str, Row]] = {}
    # Of several critical recipes of an activation, the one that keeps the gradient best is last.
    for row in sorted(rows, key=lambda row: -abs(row.growth.mean)):
        series = row.recipe.name.split(",")[0]
        groups.setdefault(row.activation, {})[series] = row
    # Recipes are drawn in one order, and activations from vanishing to exploding.
    order = [*USUAL, "critical"]
    ends = {
        name: min(row.growth.mean for key, row in group.items() if key in USUAL)
        for name, group in groups.items()
    }
    names = sorted(groups, key=lambda name: ends[name])
    result, ((ax,),) = figures.panels(title, height=1.8 + 0.27 * len(names))
    colors, border = style.palette(), float(np.log10(RATIO))
    ax.axvspan(-border, border, color=colors.faint, zorder=0, linewidth=0)
    shown = {n: {k: groups[n][k] for k in order if k in groups[n]} for n in names}
    estimates = {n: {k: decades(r, depth) for k, r in group.items()} for n, group in shown.items()}
    figures.dots(ax, estimates, spread=0, zorder=2)
    theory = [(r.typical * scale(depth), y) for y, n in enumerate(names) for r in shown[n].values()]
    look = {"color": colors.theory, "linestyle": "none", "markersize": 11, "markeredgewidth": 1.5}
    x, y = np.transpose(theory)
    ax.plot(x, y, marker="|", label="theory at this width", zorder=3, **look)
    # Changes have either sign and span tens of powers.
    ax.set_xscale("symlog", linthresh=border)
    powers = [p for p in (-30, -10, -3, -1, 0, 1, 3, 10) if x.min() - 2 < p < x.max() + 1]
    figures.ticks(ax.xaxis, powers, ["× 1" if p == 0 else f"$10^{{{p}}}$" for p in powers])
    text = f"change of the gradient's norm over {depth} layers (grey: within a factor of {RATIO:g})"
    ax.set_xlabel(text)
    figures.legend_below(result, ax, 5)
    return result


def run(options: Options) -> None:
    """Compare activations: do their usual initializations keep gradients alive?"""
    rows = compare(options, kit.progress("activations"))
    kit.publish(report(rows, options), options, lambda: figure(rows, options.depth))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
