"""Does the library reproduce the worked examples of the course texts?

Run `python -m experiments.course_examples`, or `--help` for its options.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _kit
from experiments._kit import Claim, Estimate, Report, option, table, verdicts
from jaxgrad import initializers, layers
from jaxgrad.checking import finite_differences
from jaxgrad.training import normalization

SEEDS = 256
"""Draws behind each sampled row."""
TOLERANCE = 0.02
"""Relative difference that does not matter in a sampled row."""
ROUNDING = 1e-5
"""Relative difference that does not matter in any other row, 84 roundings of float32."""


@dataclass(frozen=True)
class Options(_kit.Options):
    """Options of the worked examples."""

    seed: int = option(0, "Seed of everything that is drawn.", minimum=0, maximum=2**32 - 1)
    output: Path = option(Path("results/course_examples"), "Where to write: OUTPUT.json.")


def examples(key: jax.Array) -> list[Claim]:
    """Measure every example; beyond rounding, only sampled rows depend on the key."""
    keys = jax.random.split(key, 3)
    return [
        *linear_networks(),
        *sigmoid_networks(keys[0]),
        *variance_of_a_sum(keys[1]),
        *two_sided_difference(),
        *initializer_variances(keys[2]),
        *normalized_inputs(),
        *tiers_of_planted_errors(),
    ]


def exact(text: str, expected: float, measured: Any, rounding: float = ROUNDING) -> Claim:
    """Claim that a number of a text equals the number measured without sampling."""
    # The smallest tolerance is that of an expected 0.
    tolerance = max(rounding * abs(expected), 1e-9)
    return Claim(text, Estimate.exact(float(measured)), "equal", float(expected), tolerance, ".4g")


def sampled(text: str, expected: float, sample: jax.Array) -> Claim:
    """Claim that a number of a text equals the mean of a sample."""
    estimate = Estimate.of(np.asarray(sample, np.float64))
    return Claim(text, estimate, "equal", expected, TOLERANCE * abs(expected), ".4g")


def linear_networks(width: int = 16, depth: int = 20) -> Iterator[Claim]:
    """With weights of equal mean, a linear network's output and gradient are powers of it."""
    for weight in (0.9, 1.2):
        # Equal inputs are multiplied by width * (weight / width) in each layer.
        constant = initializers.constant(weight / width)
        network = layers.mlp(width, depth, "linear", kernel_init=constant)
        params, _ = layers.init(network, (width,), key=jax.random.key(0))

        def output(x, network=network, params=params):
            return jnp.mean(layers.apply(network, params, None, x)[0])

        mean, slope = jax.value_and_grad(output)(jnp.ones((1, width)))
        text = f"mean weight {weight}, {depth} linear layers: "
        yield exact(text + "output of input 1", weight**depth, mean)
        yield exact(text + "backward factor", weight**depth, slope.sum())


def sigmoid_networks(key: jax.Array, width: int = 32, depth: int = 10) -> Iterator[Claim]:
    """The slope of a sigmoid is a quarter at 0 and smaller elsewhere."""
    bound, text = 0.25**depth, f"{depth} sigmoid layers: "
    weights, biases = initializers.constant(1.0), initializers.constant(-0.5)
    # sigmoid(0) = 1/2 and a bias of -1/2 keep every pre-activation at 0.
    inits: dict[str, Any] = {"kernel_init": weights, "bias_init": biases}
    balanced = layers.mlp(1, depth, "sigmoid", bias=True, b_variance=1.0, **inits)
    params, _ = layers.init(balanced, (1,), key=key)

    def output(network, params, x):
        return layers.apply(network, params, None, x)[0]

    slope = jax.grad(lambda x: output(balanced, params, x).sum())(jnp.full((1, 1), 0.5))
    yield exact(text + "backward factor with every pre-activation 0", bound, slope[0, 0])

    # Orthogonal weights keep every length, so that only the slopes shrink the gradient.
    network = layers.mlp(width, depth, "sigmoid", kernel_init=initializers.orthogonal())

    @jax.jit
    def largest(key):
        key_params, key_x = jax.random.split(key)
        params, _ = layers.init(network, (width,), key=key_params)
        x = jax.random.normal(key_x, (width,))
        jacobian = jax.jacobian(lambda x: output(network, params, x[None])[0])(x)
        return jnp.linalg.norm(jacobian, ord=2)

    norm = float(jnp.max(jax.lax.map(largest, jax.random.split(key, 16))))
    text += "backward factor of random orthogonal ones is at most"
    yield Claim(text, Estimate.exact(norm), "less", bound * (1 + ROUNDING), form=".4g")


def variance_of_a_sum(key: jax.Array, fan_in: int = 100) -> Iterator[Claim]:
    """Var(z) = n Var(w) Var(x) at the first layer, with inputs of variance 1."""

    @jax.jit
    def squares(key, variance):
        network = layers.mlp(32, 1, "linear", kernel_init=initializers.normal(variance))

        def one(key):
            key_params, key_x = jax.random.split(key)
            params, _ = layers.init(network, (fan_in,), key=key_params)
            x = jax.random.normal(key_x, (32, fan_in))
            return jnp.mean(jnp.square(layers.apply(network, params, None, x)[0]))

        # One mean square for each draw, so that the standard error is over draws.
        return jax.lax.map(one, jax.random.split(key, SEEDS))

    for row, variance in enumerate((0.01, 0.25, 1e-4)):
        text = f"Var(z) of {fan_in} inputs of variance 1, weights of variance {variance:g}"
        yield sampled(text, fan_in * variance, squares(jax.random.fold_in(key, row), variance))


def two_sided_difference() -> Iterator[Claim]:
    """The course's example of a gradient check: theta^2 at 3 with a step of 1e-4."""
    with jax.enable_x64(True):
        theta = jnp.asarray(3.0)
        numeric = finite_differences.central_difference(jnp.square, theta, eps=1e-4)
        error = finite_differences.relative_error(numeric, jax.grad(jnp.square)(theta))
    yield exact("two-sided difference of theta^2 at 3", 6.0, numeric, 1e-9)
    yield exact("relative error of that difference", 0.0, error)


def initializer_variances(key: jax.Array, shape: tuple[int, int] = (100, 50)) -> Iterator[Claim]:
    """The variances of the weights that the texts recommend."""
    fan_in, fan_out = shape
    recommended = (
        ("He, 2 / fan_in", initializers.he(), 2 / fan_in),
        ("LeCun (Xavier for tanh in two texts), 1 / fan_in", initializers.lecun(), 1 / fan_in),
        ("Glorot, 2 / (fan_in + fan_out)", initializers.glorot(), 2 / (fan_in + fan_out)),
        (
            "one text's variant, 1 / (fan_in + fan_out)",
            # 0.5 / fan_avg with fan_avg = (fan_in + fan_out) / 2.
            initializers.variance_scaling(0.5, "fan_avg"),
            1 / (fan_in + fan_out),
        ),
    )
    for row, (name, init, variance) in enumerate(recommended):
        keys = jax.random.split(jax.random.fold_in(key, row), SEEDS)
        draws = jax.vmap(lambda key, init=init: init(key, shape))(keys)
        text = f"weight variance {fan_in} -> {fan_out}: {name}"
        yield sampled(text, variance, jnp.var(draws, axis=(1, 2), ddof=1))


def normalized_inputs() -> Iterator[Claim]:
    """Dividing by the standard deviation makes features alike; by the variance, it does not.

    After division by the variance `s^2` a feature has the variance `1 / s^2`: the small ones become
    the large ones, and the ratio of largest to smallest is the same as before.
    """
    x = _kit.load("wine").x
    with jax.enable_x64(True):
        standardizer = normalization.fit(x)
        by_std = np.asarray(normalization.apply(standardizer, x)).var(axis=0)
        # Normalization then divides by the variance.
        squared = standardizer._replace(std=standardizer.std**2)
        by_variance = np.asarray(normalization.apply(squared, x)).var(axis=0)
    ratio, expected = (v.max() / v.min() for v in (by_variance, x.var(axis=0)))
    text = "wine over its standard deviation: "
    yield exact(text + "largest variance", 1.0, by_std.max())
    yield exact(text + "smallest variance", 1.0, by_std.min())
    text = "wine over its variance (one text): largest over smallest variance, as if raw"
    yield exact(text, expected, ratio)


def tiers_of_planted_errors() -> Iterator[Claim]:
    """Scale a correct derivative to a chosen relative error, and compare each text's word."""
    for text, error, word in (
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
            numeric = finite_differences.central_difference(cubic, theta)
            # |a - b| / (|a| + |b|) of a and a (1 + e) / (1 - e) is e.
            planted = jax.grad(cubic)(theta) * ((1 + error) / (1 - error))
            measured = float(finite_differences.relative_error(numeric, planted))
        claim = exact(f"{text}, “{word}” at a relative error of {error:g}", error, measured, 0.05)
        # The word counts only if the measured error has it.
        right = finite_differences.tier(measured, text) == word
        yield claim if right else exact(claim.text, np.inf, measured)


def cubic(theta: jax.Array) -> jax.Array:
    """A function whose derivative is not constant."""
    return jnp.sum(theta**3)


def rows(claims: list[Claim]) -> list[tuple[str, ...]]:
    """List for each claim the text's number, the measured one, and whether they agree."""
    cells = []
    for verdict in verdicts(claims):
        claim, estimate = verdict.claim, verdict.claim.estimate
        measured = f"{estimate.mean:.4g}"
        if not estimate.is_exact:
            measured += f" ± {estimate.standard_error:.1g}"
        agrees = "yes" if verdict.outcome == "HOLDS" else "NO"
        cells.append((claim.text, f"{claim.expected:.4g}", measured, agrees))
    return cells


def run(options: Options) -> None:
    """Print the course texts' worked examples beside what the library measures."""
    claims = examples(jax.random.key(options.seed))
    cells = rows(claims)
    summary = (
        f"{sum(row[-1] == 'yes' for row in cells)} of {len(cells)} agree. ± is one standard error "
        f"over {SEEDS} seeds;\nsuch a row agrees if its difference is certainly below "
        f"{TOLERANCE:.0%}, corrected for all rows."
    )
    headings = ("example", "in the text", "measured", "agrees")
    report = Report([table(headings, cells), summary], estimates={c[0]: c[1:] for c in cells})
    _kit.publish(report, options)


if __name__ == "__main__":
    _kit.command(Options, run)
