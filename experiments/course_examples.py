"""Do the worked examples of the course texts come out when the library measures them?

Run `python -m experiments.course_examples`, or `--help` for its options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets

from experiments import frontend
from jaxgrad import initializers, networks
from jaxgrad.checking import differences
from jaxgrad.training import normalization

SEEDS = 256
"""Draws behind each sampled row."""
ERRORS = 4.0
"""A sampled row agrees within this many standard errors."""
ROUNDING = 1e-5
"""Any other row agrees within this relative difference, 84 roundings of float32."""


@dataclass(frozen=True)
class Config:
    """Options of the worked examples."""

    seed: int = 0
    """Of everything that is drawn."""


class Example(NamedTuple):
    """One row: what a text says, and what came out.

    Attributes:
      claim: what is measured, unique among the rows.
      text_value: a number, or a verdict in words.
      measured: the same kind of value, measured.
      error_bar: standard error of `measured` over seeds; None where nothing is drawn or averaged.
      agrees: whether they agree, up to `ERRORS` standard errors or `ROUNDING`; where the claim says
        "at most", whether `measured` is positive and no larger.
    """

    claim: str
    text_value: float | str
    measured: float | str
    error_bar: float | None
    agrees: bool


def examples(key: jax.Array) -> list[Example]:
    """Measure every example; rows with an error bar depend on the key, the others hardly do.

    Args:
      key: PRNG key.
    """
    keys = jax.random.split(key, 3)
    return [
        *linear_networks(),
        *sigmoid_networks(keys[0]),
        *variance_of_a_sum(keys[1]),
        *two_sided_difference(),
        *initializer_variances(keys[2]),
        *normalized_inputs(),
        *verdicts_on_planted_errors(),
    ]


def linear_networks(width: int = 16, depth: int = 20) -> list[Example]:
    """Weights of one mean: output and gradient of a linear network are its power."""
    rows = []
    for weight in (0.9, 1.2):
        params = networks.init(
            jax.random.key(0),
            width,
            width,
            depth,
            kernel_init=initializers.constant(weight / width),
        )
        mean, slope = jax.value_and_grad(
            lambda x, params=params: jnp.mean(networks.apply(params, x, "linear"))
        )(jnp.ones((1, width)))
        claim = f"mean weight {weight}, {depth} linear layers: "
        rows.append(_exact(claim + "output of input 1", weight**depth, mean))
        rows.append(_exact(claim + "backward factor", weight**depth, slope.sum()))
    return rows


def sigmoid_networks(key: jax.Array, width: int = 32, depth: int = 10) -> list[Example]:
    """A sigmoid passes a quarter where its input is 0 and less elsewhere."""
    bound = 0.25**depth
    balanced = networks.init(
        key,
        1,
        1,
        depth,
        kernel_init=initializers.constant(1.0),
        bias_init=initializers.constant(-0.5),
    )
    slope = jax.grad(lambda x: networks.apply(balanced, x, "sigmoid").sum())(jnp.full((1, 1), 0.5))

    def largest(key):
        key_params, key_x = jax.random.split(key)
        params = networks.init(
            key_params, width, width, depth, kernel_init=initializers.orthogonal()
        )
        x = jax.random.normal(key_x, (width,))
        jacobian = jax.jacobian(lambda x: networks.apply(params, x[None], "sigmoid")[0])(x)
        return jnp.linalg.norm(jacobian, ord=2)

    # Orthogonal weights leave every length alone, so that what is lost is lost to the slopes.
    norm = float(jnp.max(jax.lax.map(jax.jit(largest), jax.random.split(key, 16))))
    claim = f"{depth} sigmoid layers: "
    return [
        _exact(claim + "backward factor with every pre-activation 0", bound, slope[0, 0]),
        Example(
            claim + "backward factor of random orthogonal ones is at most",
            bound,
            norm,
            None,
            0 < norm <= bound * (1 + ROUNDING),
        ),
    ]


def variance_of_a_sum(key: jax.Array, fan_in: int = 100) -> list[Example]:
    """Var(z) = n Var(w) Var(x) at the first layer, with inputs of variance 1."""

    @jax.jit
    def squares(key, variance):
        def one(key):
            key_params, key_x = jax.random.split(key)
            params = networks.init(
                key_params, fan_in, 32, 1, kernel_init=initializers.normal(variance)
            )
            z = networks.apply(params, jax.random.normal(key_x, (32, fan_in)), "linear")
            return jnp.mean(z * z)

        return jax.lax.map(one, jax.random.split(key, SEEDS))

    return [
        _sampled(
            f"Var(z) of {fan_in} inputs of variance 1, weights of variance {variance:g}",
            fan_in * variance,
            squares(jax.random.fold_in(key, row), variance),
        )
        for row, variance in enumerate((0.01, 0.25, 1e-4))
    ]


def two_sided_difference() -> list[Example]:
    """The course's example of a gradient check: theta^2 at 3 with a step of 1e-4."""
    with jax.enable_x64(True):
        theta = jnp.asarray(3.0)
        numeric = differences.central_difference(jnp.square, theta, eps=1e-4)
        error = float(differences.relative_error(numeric, jax.grad(jnp.square)(theta)))
    return [
        _exact("two-sided difference of theta^2 at 3", 6.0, numeric, 1e-9),
        Example("relative error of that difference", 0.0, error, None, error < 1e-9),
    ]


def initializer_variances(key: jax.Array, shape: tuple[int, int] = (100, 50)) -> list[Example]:
    """The variances of the weights that the texts recommend."""
    fan_in, fan_out = shape
    rows = []
    recommended = (
        ("He, 2 / fan_in", initializers.he(), 2 / fan_in),
        ("LeCun (Xavier for tanh in two texts), 1 / fan_in", initializers.lecun(), 1 / fan_in),
        ("Glorot, 2 / (fan_in + fan_out)", initializers.glorot(), 2 / (fan_in + fan_out)),
        (
            "one text's variant, 1 / (fan_in + fan_out)",
            initializers.variance_scaling(0.5, "fan_avg"),
            1 / (fan_in + fan_out),
        ),
    )
    for row, (name, init, variance) in enumerate(recommended):
        keys = jax.random.split(jax.random.fold_in(key, row), SEEDS)
        draws = jax.vmap(lambda key, init=init: init(key, shape))(keys)
        claim = f"weight variance {fan_in} -> {fan_out}: {name}"
        rows.append(_sampled(claim, variance, jnp.var(draws, axis=(1, 2), ddof=1)))
    return rows


def normalized_inputs() -> list[Example]:
    """Dividing by the standard deviation evens features out; by the variance, it does not.

    After division by the variance `s^2` a feature has the variance `1 / s^2`: the small ones become
    the large ones, and the largest is as many times the smallest as before.
    """
    wine: Any = datasets.load_wine()
    table = wine.data
    raw = table.var(axis=0)
    with jax.enable_x64(True):
        standardizer = normalization.fit(table)
        by_std = np.asarray(normalization.apply(standardizer, table)).var(axis=0)
        squared = standardizer._replace(std=standardizer.std**2)
        by_variance = np.asarray(normalization.apply(squared, table)).var(axis=0)
    return [
        _exact("wine over its standard deviation: largest variance", 1.0, by_std.max()),
        _exact("wine over its standard deviation: smallest variance", 1.0, by_std.min()),
        _exact(
            "wine over its variance (one text): largest over smallest variance, as if raw",
            raw.max() / raw.min(),
            by_variance.max() / by_variance.min(),
        ),
    ]


def verdicts_on_planted_errors() -> list[Example]:
    """A correct derivative scaled to a chosen relative error, against the numeric one."""
    rows = []
    for text, error, verdict in (
        ("course", 5e-8, "right"),
        ("course", 9e-6, "look again"),
        ("course", 2e-3, "wrong"),
        ("second text", 5e-8, "right"),
        ("second text", 5e-5, "acceptable"),
        ("second text", 5e-3, "look"),
        ("second text", 2e-2, "wrong"),
    ):
        with jax.enable_x64(True):
            theta = jnp.linspace(-2.0, 1.0, 8)
            numeric = differences.central_difference(_cubic, theta)
            planted = jax.grad(_cubic)(theta) * ((1 + error) / (1 - error))
            measured = float(differences.relative_error(numeric, planted))
        said = differences.tier(measured, text)
        # The verdict counts only if what was planted is what was measured.
        agrees = said == verdict and abs(measured - error) < 0.05 * error
        rows.append(
            Example(f"{text}, relative error {error:g} is", verdict, said, None, bool(agrees))
        )
    return rows


def _cubic(theta: jax.Array) -> jax.Array:
    return jnp.sum(theta**3)


def _exact(claim: str, text_value: float, measured: Any, rounding: float = ROUNDING) -> Example:
    text_value, measured = float(text_value), float(measured)
    agrees = abs(measured - text_value) <= rounding * abs(text_value)
    return Example(claim, text_value, measured, None, agrees)


def _sampled(claim: str, text_value: float, sample: jax.Array) -> Example:
    values = np.asarray(sample, np.float64)
    mean, error = float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
    return Example(claim, text_value, mean, error, abs(mean - text_value) <= ERRORS * error)


def report(rows: list[Example]) -> str:
    """The rows as a table, and how many agree."""
    cells = []
    for row in rows:
        measured = _number(row.measured)
        if row.error_bar is not None:
            measured += f" ± {row.error_bar:.1g}"
        agrees = "yes" if row.agrees else "NO"
        cells.append((row.claim, _number(row.text_value), measured, agrees))
    table = frontend.table(("claim", "the text says", "measured", "agrees"), cells)
    return f"{table}\n\n{sum(row.agrees for row in rows)} of {len(rows)} agree."


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def run(config: Config) -> None:
    """Print the course texts' worked examples beside what the library measures."""
    if config.seed < 0:
        raise ValueError(f"seed must be at least 0, got {config.seed}; pass a larger number")
    print(report(examples(jax.random.key(config.seed))))
    print("± is one standard error over seeds; such a row agrees within four.")


if __name__ == "__main__":
    frontend.main(Config, run)
