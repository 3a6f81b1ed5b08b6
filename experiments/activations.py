"""Which usual initialisations keep gradients alive, for each activation, and which do not?

Run `python -m experiments.activations`, or `--help` for its options.
"""

from __future__ import annotations

import functools
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import frontend, growth
from jaxgrad import activations, initializers, networks, plotting, propagation, theory


@dataclass(frozen=True)
class Config:
    """Options of the comparison of activations."""

    activations: tuple[str, ...] = tuple(activations.TABLE)
    """Names of jaxgrad.activations.TABLE."""
    width: int = 256
    """Units of every layer."""
    depth: int = 50
    """Number of layers."""
    seeds: int = 6
    """How many networks for each activation and initialisation, at least 2."""
    first_seed: int = 0
    """The seeds are first_seed, first_seed + 1, ..."""
    data: str = "digits"
    """digits, wine, breast_cancer, gaussian, or a .npy or .csv file, [examples, features]."""
    examples: int = 16
    """How many examples, drawn at random and standardized."""
    output: Path = Path("results/activations.png")
    """Where to write the figure."""


class Recipe(NamedTuple):
    """A way to draw a network: variances of the weights, times fan-in, and of the biases."""

    name: str
    w_variance: float
    b_variance: float = 0.0


class Row(NamedTuple):
    """One activation with one recipe; growth is per layer, of the log, of a typical example.

    Attributes:
      activation, recipe, w_variance, b_variance: which.
      critical: whether theory calls the variances critical.
      only_small: whether they are so only in the limit of a signal that has died out.
      growth, error: of the squared gradient, mean over seeds and standard error.
      infinite, typical: what theory says, at infinite width and at the width.
      last: the same at infinite width, of the last layer alone.
      signal: growth of the mean square of the layers' outputs.
      dead, saturated: shares of units in the last layer, as of `jaxgrad.propagation.Signal`.
    """

    activation: str
    recipe: str
    w_variance: float
    b_variance: float
    critical: bool
    only_small: bool
    growth: float
    error: float
    infinite: float
    typical: float
    last: float
    signal: float
    dead: float
    saturated: float


_HE_SLOPES = {
    "relu": 0.0,
    "leaky_relu": 0.01,
    "randomized_leaky_relu": (1 / 8 + 1 / 3) / 2,
    "parametric_relu": 0.25,
    # Courses give these He's variance for ReLU.
    "elu": 0.0,
    "gelu": 0.0,
    "gelu_tanh": 0.0,
    "silu": 0.0,
}
_UNIT_GAIN = ("gelu", "gelu_tanh", "silu")


def usual(name: str) -> list[Recipe]:
    """What courses and libraries draw networks of an activation with."""
    if name not in _HE_SLOPES:
        return [Recipe("LeCun", 1.0)]
    recipes = [Recipe("He", 2 / (1 + _HE_SLOPES[name] ** 2))]
    return recipes + [Recipe("unit gain", 1.0)] * (name in _UNIT_GAIN)


def critical(name: str) -> list[tuple[Recipe, theory.Critical]]:
    """Where theory sees gradients level: at the smallest biases; for SELU also at unit variance."""
    points = [("critical", theory.critical(name))]
    if name == "selu":
        points.append(("critical, q = 1", theory.critical_line(name, 1.0)))
    return [
        (Recipe(label, float(point.w_variance), float(point.b_variance)), point)
        for label, point in points
        if np.isfinite(point.w_variance)
    ]


def measure(name: str, recipes: list[Recipe], x: np.ndarray, config: Config) -> dict[str, Any]:
    """Growth and units of every recipe, arrays `[seeds, recipes]`; all share a seed's draws."""
    # One draw serves all activations, but for those that have parameters of their own.
    params = _draws(config, x.shape[1], name if activations.get(name).parameters else "linear")
    variances = np.array([recipe[1:] for recipe in recipes], np.float32)

    def network(drawn, x, variances):
        seed, params = drawn
        key = jax.random.fold_in(jax.random.key(1), seed)

        def at(pair):
            w_variance, b_variance = pair
            signal = propagation.probe(
                params, x, key, name, w_variance=w_variance, b_variance=b_variance
            ).signal
            logs = growth.measure(params, x, key, name, w_variance, b_variance)
            return {
                "growth": growth.per_layer(logs),
                "signal": growth.per_layer(signal.log_activation),
                "dead": signal.dead[-1],
                "saturated": signal.saturated[-1],
            }

        return jax.vmap(at)(variances)

    @jax.jit
    def every(params, x, variances):
        return jax.lax.map(lambda drawn: network(drawn, x, variances), (_seeds(config), params))

    return jax.device_get(every(params, jnp.asarray(x), jnp.asarray(variances)))


def _seeds(config: Config) -> jax.Array:
    return jnp.arange(config.first_seed, config.first_seed + config.seeds)


@functools.lru_cache(maxsize=2)
def _draws(config: Config, features: int, name: str) -> networks.Params:
    def draw(seed):
        return networks.init(
            jax.random.fold_in(jax.random.key(0), seed),
            features,
            config.width,
            config.depth,
            activation=name,
            bias_init=initializers.normal(1.0),
        )

    return jax.jit(jax.vmap(draw))(_seeds(config))


def compare(config: Config, progress: Any = None) -> list[Row]:
    """Measure and predict every activation with every recipe."""
    x = frontend.inputs(config.data, config.examples, config.first_seed)
    _draws(config, x.shape[1], "linear")
    rows = []
    # Nearly all the time is spent compiling, one thread a program.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(_rows, name, x, config) for name in config.activations]
        for done, job in enumerate(jobs):
            rows += job.result()
            if progress is not None:
                progress(done + 1, len(jobs))
    return rows


def _rows(name: str, x: np.ndarray, config: Config) -> list[Row]:
    points = critical(name)
    recipes = usual(name)
    recipes += [r for r, _ in points if not any(_alike(r, other) for other in recipes)]
    measured = measure(name, recipes, x, config)
    mean = {key: values.mean(axis=0) for key, values in measured.items()}
    error = measured["growth"].std(axis=0, ddof=1) / np.sqrt(config.seeds)
    w_variance, b_variance = np.array([recipe[1:] for recipe in recipes]).T
    found = growth.follow(name, config.depth, w_variance, b_variance, x, width=config.width)
    infinite, typical = growth.per_layer(found.infinite), growth.per_layer(found.typical)
    last = found.infinite[:, -1] - found.infinite[:, -2]
    rows = []
    for i, recipe in enumerate(recipes):
        same = [point for r, point in points if _alike(r, recipe)]
        numbers = (mean["growth"], error, infinite, typical, last)
        units = (mean[key] for key in ("signal", "dead", "saturated"))
        rows.append(
            Row(
                name,
                *recipe,
                bool(same),
                any(float(point.q) == 0 for point in same),
                *(float(values[i]) for values in (*numbers, *units)),
            )
        )
    return rows


def _alike(one: Recipe, other: Recipe) -> bool:
    return bool(np.allclose(one[1:], other[1:], rtol=1e-9, atol=1e-9))


def report(rows: list[Row], config: Config) -> str:
    """The table, then in words what is not critical and what is so only barely."""
    cells = [
        (
            row.activation,
            row.recipe,
            f"{row.w_variance:.4g}",
            f"{row.b_variance:.3g}",
            f"{row.growth:+.4f} ± {row.error:.4f}",
            f"{row.infinite:+.4f}",
            f"{row.typical:+.4f}",
            growth.z_score(row.growth, row.error, row.typical),
            f"{row.signal:+.3f}",
            f"{row.dead:.0%}",
            f"{row.saturated:.0%}",
        )
        for row in rows
    ]
    headings = (
        "activation",
        "recipe",
        "w var",
        "b var",
        "gradient, measured",
        "infinite",
        f"width {config.width}",
        "z",
        "signal",
        "dead",
        "saturated",
    )
    lines = [
        "Growth per layer of the log squared gradient of a typical example, of the log squared",
        f"signal, and units of layer {config.depth}; mean over {config.seeds} seeds ± standard "
        "error; z: from",
        f"theory at width {config.width}, in standard errors.",
        frontend.table(headings, cells),
        "\nCommon recipes that are not critical:",
    ]
    lines += [_failing(row, rows) for row in rows if row.recipe in _COMMON and not row.critical]
    lines += _sound(rows, config)
    return "\n".join(lines)


_COMMON = ("LeCun", "He", "unit gain")


def _failing(row: Row, rows: list[Row]) -> str:
    remedy = [r for r in rows if r.activation == row.activation and r.critical]
    instead = " or ".join(
        f"weight variance {r.w_variance:.4g} and bias variance {r.b_variance:.3g}" for r in remedy
    )
    return (
        f"- {row.activation} with {row.recipe} (weight variance {row.w_variance:.4g}): the squared "
        f"gradient is multiplied by {np.exp(row.last):.4g} a layer in deep layers of infinite "
        f"width, measured {np.exp(row.growth):.4g} ± {np.exp(row.growth) * row.error:.1g}; "
        f"critical instead: {instead or 'no point exists'}."
    )


def _sound(rows: list[Row], config: Config) -> list[str]:
    common = [row for row in rows if row.recipe in _COMMON and row.critical]
    lines = []
    for only_small, words in (
        (False, "Critical as they are"),
        (True, "Critical, but only for signals that die out, and gradients with them by a power"),
    ):
        named = ", ".join(
            f"{row.activation} with {row.recipe} (x {np.exp(row.growth * (config.depth - 1)):.2g})"
            for row in common
            if row.only_small == only_small
        )
        if named:
            lines.append(f"\n{words} (squared gradient over {config.depth} layers):\n{named}.")
    return lines


def checked(config: Config) -> None:
    """Raise if the config cannot be run, before anything starts."""
    if not config.activations or len(set(config.activations)) != len(config.activations):
        raise ValueError(
            f"activations must be different names, at least one, got {config.activations}; "
            "drop the repeats"
        )
    for name in config.activations:
        if name not in activations.TABLE:
            activations.get(name)
    least = {"width": 1, "depth": 2, "seeds": 2, "examples": 1, "first_seed": 0}
    for name, minimum in least.items():
        if getattr(config, name) < minimum:
            raise ValueError(
                f"{name} must be at least {minimum}, got {getattr(config, name)}; raise it"
            )
    frontend.writable("output", config.output)


def run(config: Config) -> None:
    """Compare activations: do their usual initialisations keep gradients alive?"""
    checked(config)
    start = time.perf_counter()
    rows = compare(config, frontend.Bar("networks"))
    print(report(rows, config))
    plotting.activations(rows, config.depth).savefig(config.output, dpi=110)
    print(f"\n{len(rows) * config.seeds} networks, {time.perf_counter() - start:.1f} s in all.")
    print(f"Figure: {config.output}")


if __name__ == "__main__":
    frontend.use_all_cores()
    frontend.main(Config, run)
