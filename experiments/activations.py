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

USUAL = ("LeCun", "He", "unit gain")


@dataclass(frozen=True)
class Options(typical.Options):
    """Options of the comparison of activations."""

    activations: tuple[str, ...] = option(
        tuple(activations.TABLE), "Names of activations.", choices=tuple(activations.TABLE)
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


def report(rows: list[Row], options: Options) -> kit.Report:
    """Tabulate growth and units of all rows, and claim that the usual recipes fail as predicted."""
    headings = {"activation": "", "recipe": "", "w var": ".4g", "b var": ".3g", "gradient": "+.4f"}
    headings |= {"infinite": "+.4f", f"width {options.width}": "+.4f", "z": "+.1f"}
    title = "Growth per layer of the log squared gradient of a typical example, mean over "
    title += f"{options.seeds} seeds ± standard error; z: from theory at width {options.width}, in "
    title += "standard errors."
    cells = [
        (row.activation, *row.recipe, row.growth, row.infinite, row.typical)
        + (row.growth.z_score(row.typical),)
        for row in rows
    ]
    sections = [kit.table(headings, cells, title, left=2)]
    possible = {row.activation for row in rows if row.critical}
    headings = {"activation": "", "recipe": "", "critical": "", "deep layers": ".4g"}
    headings |= {f"{options.depth} layers": ".2g", "signal": "+.3f", "dead": ".0%"}
    title = "Whether theory calls the variances critical (dying: only for a signal that dies out); "
    title += "the factor of the squared gradient in a deep layer of infinite width, and measured "
    title += f"over {options.depth} layers; growth per layer of the log squared signal, and units "
    title += f"of layer {options.depth}."
    cells = []
    for row in rows:
        words = "no" if row.activation in possible else "never"
        if row.critical:
            words = "dying" if row.only_small else "yes"
        factors = np.exp([row.last, row.growth.mean * (options.depth - 1)])
        units = (row.signal, row.dead, row.saturated)
        cells.append((row.activation, row.recipe.name, words, *factors, *units))
    sections.append(kit.table(headings | {"saturated": ".0%"}, cells, title, left=3))
    claims = [
        kit.Claim(
            f"{row.activation} with {row.recipe.name}: gradients change with depth as predicted",
            # Times the sign of the prediction, so agreement is always above 0.
            row.growth * float(np.sign(row.last)),
            "greater",
            form="+.4f",
        )
        for row in rows
        if row.recipe.name in USUAL and not row.critical
    ]
    return kit.Report(sections, claims, {"rows": [row._asdict() for row in rows]})


def figure(rows: list[Row], depth: int) -> Any:
    """The growth of the gradient per layer with recipes that are not critical, and with others."""
    ordered = sorted(rows, key=lambda row: row.growth.mean)
    groups = {
        "not critical": [row for row in ordered if not row.critical],
        "critical": [row for row in ordered if row.critical],
    }
    groups = {name: group for name, group in groups.items() if group}
    result, (panels,) = figures.panels(1, len(groups), (13, 6.5), sharex=True)
    # Growth has either sign and spans two orders of magnitude.
    panels[0].set_xscale("symlog", linthresh=0.1)
    for ax, (name, group) in zip(panels, groups.items(), strict=True):
        labels = [f"{row.activation}, {row.recipe.name}" for row in group]
        pairs = [{"measured": r.growth, "theory": Estimate.exact(r.typical)} for r in group]
        figures.dots(ax, dict(zip(labels, pairs, strict=True)))
        ax.axvline(0.0, color="black", linewidth=1)
        low, high = (np.exp(group[i].growth.mean) for i in (0, -1))
        ax.set_title(f"{name}: × {low:.2g} to × {high:.3g} per layer")
        ax.set_xlabel(f"factor of the squared gradient per layer ({depth} layers)")
        ax.legend(frameon=False)
    factors = (0.1, 0.5, 0.9, 1.0, 1.1)
    figures.ticks(panels[0].xaxis, np.log(factors), [f"× {factor:g}" for factor in factors])
    count = len({row.activation for row in rows})
    failing = {r.activation for r in rows if r.recipe.name in USUAL and not r.critical}
    result.suptitle(
        f"Usual initializations are not critical for {len(failing)} of {count} activations"
    )
    return result


def run(options: Options) -> None:
    """Compare activations: do their usual initializations keep gradients alive?"""
    rows = compare(options, kit.progress("activations"))
    kit.publish(report(rows, options), options, figure(rows, options.depth))


if __name__ == "__main__":
    kit.use_all_cores()
    kit.command(Options, run)
