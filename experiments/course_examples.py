"""Does the library reproduce the worked examples of the course texts?"""

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
TOLERANCE, ROUNDING = 0.02, 1e-5
"""Relative differences that do not matter in a sampled row, over `SEEDS`, and in any other one."""


@dataclass(frozen=True)
class Options(_kit.Options):
    """Options of the worked examples."""

    seed: int = option(0, "Seed of everything that is drawn.", minimum=0, maximum=2**32 - 1)
    output: Path = option(Path("results/course_examples"), "Where to write: OUTPUT.json.")


def examples(key: jax.Array) -> list[Claim]:
    """Measure every example; beyond rounding, only sampled rows depend on the key."""
    keys = jax.random.split(key, 3)
    networks = [*linear_networks(), *sigmoid_networks(keys[0]), *variance_of_a_sum(keys[1])]
    others = [*two_sided_difference(), *initializer_variances(keys[2]), *normalized_inputs()]
    return [*networks, *others, *tiers_of_planted_errors()]


def equal(text: str, expected: float, measured: Any, rounding: float = ROUNDING) -> Claim:
    """Claim that a number of a text equals the one that is measured, or the mean of a sample."""
    sampled = np.ndim(measured) > 0
    estimate = Estimate.of(measured) if sampled else Estimate.exact(float(measured))
    # The smallest tolerance is that of an expected 0.
    tolerance = max((TOLERANCE if sampled else rounding) * abs(expected), 1e-9)
    return Claim(text, estimate, "equal", float(expected), tolerance, ".4g")


def drawn(network: Any, features: int, key: jax.Array):
    """The function that a network computes with parameters that are drawn."""
    params, _ = layers.init(network, (features,), key=key)
    return lambda x: layers.apply(network, params, None, x)[0]


def linear_networks(width: int = 16, depth: int = 20) -> Iterator[Claim]:
    """With weights of equal mean, a linear network's output and gradient are powers of it."""
    for weight in (0.9, 1.2):
        # Equal inputs are multiplied by width * (weight / width) in each layer.
        constant = initializers.constant(weight / width)
        network = layers.mlp(width, depth, "linear", kernel_init=constant)
        output, pullback = jax.vjp(drawn(network, width, jax.random.key(0)), jnp.ones((1, width)))
        text = f"mean weight {weight}, {depth} linear layers: "
        yield equal(text + "output of input 1", weight**depth, output.mean())
        slope = pullback(jnp.ones_like(output) / width)[0]
        yield equal(text + "backward factor", weight**depth, slope.sum())


def sigmoid_networks(key: jax.Array, width: int = 32, depth: int = 10) -> Iterator[Claim]:
    """The slope of a sigmoid is a quarter at 0 and smaller elsewhere."""
    bound, text = 0.25**depth, f"{depth} sigmoid layers: backward factor "
    # sigmoid(0) = 1/2 and a bias of -1/2 keep every pre-activation at 0.
    weights, biases = initializers.constant(1.0), initializers.constant(-0.5)
    inits: Any = {"kernel_init": weights, "bias_init": biases}
    balanced = layers.mlp(1, depth, "sigmoid", bias=True, b_variance=1.0, **inits)
    slope = jax.jacobian(drawn(balanced, 1, key))(jnp.full((1, 1), 0.5))
    yield equal(text + "with every pre-activation 0", bound, slope.sum())

    # Orthogonal weights keep every length, so that only the slopes shrink the gradient.
    network = layers.mlp(width, depth, "sigmoid", kernel_init=initializers.orthogonal())

    def largest(key):
        key_params, key_x = jax.random.split(key)
        x = jax.random.normal(key_x, (1, width))
        jacobian = jax.jacobian(drawn(network, width, key_params))(x)
        return jnp.linalg.norm(jacobian.reshape(width, width), ord=2)

    norm = float(_kit.mapped(largest, jax.random.split(key, 16)).max())
    text += "of random orthogonal ones is at most"
    yield Claim(text, Estimate.exact(norm), "less", bound * (1 + ROUNDING), form=".4g")


def variance_of_a_sum(key: jax.Array, fan_in: int = 100) -> Iterator[Claim]:
    """Var(z) = n Var(w) Var(x) at the first layer, with inputs of variance 1."""

    def mean_square(key, variance):
        key_params, key_x = jax.random.split(key)
        network = layers.mlp(32, 1, "linear", kernel_init=initializers.normal(variance))
        x = jax.random.normal(key_x, (32, fan_in))
        return jnp.mean(jnp.square(drawn(network, fan_in, key_params)(x)))

    # One mean square for each draw, so that the standard error is over draws.
    squares = jax.jit(jax.vmap(mean_square, (0, None)))
    for row, variance in enumerate((0.01, 0.25, 1e-4)):
        keys = jax.random.split(jax.random.fold_in(key, row), SEEDS)
        text = f"Var(z) of {fan_in} inputs of variance 1, weights of variance {variance:g}"
        yield equal(text, fan_in * variance, squares(keys, variance))


def two_sided_difference() -> Iterator[Claim]:
    """The course's example of a gradient check: theta^2 at 3 with a step of 1e-4."""
    with jax.enable_x64(True):
        numeric = finite_differences.central_difference(jnp.square, jnp.asarray(3.0), eps=1e-4)
        error = finite_differences.relative_error(numeric, jax.grad(jnp.square)(3.0))
    yield equal("two-sided difference of theta^2 at 3", 6.0, numeric, 1e-9)
    yield equal("relative error of that difference", 0.0, error)


def initializer_variances(key: jax.Array, shape: tuple[int, int] = (100, 50)) -> Iterator[Claim]:
    """The variances of the weights that the texts recommend."""
    fan_in, fan_out = shape
    # 0.5 / fan_avg with fan_avg = (fan_in + fan_out) / 2.
    variant = initializers.variance_scaling(0.5, "fan_avg")
    recommended = {
        "He, 2 / fan_in": (initializers.he(), 2 / fan_in),
        "LeCun (Xavier for tanh in two texts), 1 / fan_in": (initializers.lecun(), 1 / fan_in),
        "Glorot, 2 / (fan_in + fan_out)": (initializers.glorot(), 2 / (fan_in + fan_out)),
        "one text's variant, 1 / (fan_in + fan_out)": (variant, 1 / (fan_in + fan_out)),
    }
    for row, (name, (init, variance)) in enumerate(recommended.items()):
        keys = jax.random.split(jax.random.fold_in(key, row), SEEDS)
        draws = jax.vmap(lambda key, init=init: init(key, shape))(keys)
        text = f"weight variance {fan_in} -> {fan_out}: {name}"
        yield equal(text, variance, jnp.var(draws, axis=(1, 2), ddof=1))


def normalized_inputs() -> Iterator[Claim]:
    """Division by the deviation makes features alike; by the variance `s^2` it leaves `1 / s^2`."""
    x = _kit.load("wine").x
    with jax.enable_x64(True):
        standardizer = normalization.fit(x)
        squared = standardizer._replace(std=standardizer.std**2)
        by_std = np.asarray(normalization.apply(standardizer, x)).var(axis=0)
        by_variance = np.asarray(normalization.apply(squared, x)).var(axis=0)
    ratio, expected = (v.max() / v.min() for v in (by_variance, x.var(axis=0)))
    yield equal("wine over its standard deviation: largest variance", 1.0, by_std.max())
    yield equal("wine over its standard deviation: smallest variance", 1.0, by_std.min())
    text = "wine over its variance (one text): largest over smallest variance, as if raw"
    yield equal(text, expected, ratio)


def tiers_of_planted_errors() -> Iterator[Claim]:
    """Scale a correct derivative to a chosen relative error, and compare each text's word."""
    words = {
        "course": {5e-8: "right", 9e-6: "look again", 2e-3: "wrong"},
        "second text": {5e-8: "right", 5e-5: "acceptable", 5e-3: "look", 2e-2: "wrong"},
    }
    for text, error, word in ((t, e, w) for t, tiers in words.items() for e, w in tiers.items()):
        with jax.enable_x64(True):
            theta = jnp.linspace(-2.0, 1.0, 8)
            numeric = finite_differences.central_difference(lambda v: jnp.sum(v**3), theta)
            # |a - b| / (|a| + |b|) of a and a (1 + e) / (1 - e) is e.
            planted = 3 * theta**2 * ((1 + error) / (1 - error))
            measured = float(finite_differences.relative_error(numeric, planted))
        # The word counts only if the measured error has it.
        right = finite_differences.tier(measured, text) == word
        name = f"{text}, “{word}” at a relative error of {error:g}"
        yield equal(name, error if right else np.inf, measured, 0.05)


def rows(claims: list[Claim]) -> list[tuple[str, ...]]:
    """List for each claim the text's number, the measured one, and whether they agree."""
    cells = []
    for verdict in verdicts(claims):
        claim, estimate = verdict.claim, verdict.claim.estimate
        error = "" if estimate.is_exact else f" ± {estimate.standard_error:.1g}"
        agrees = "yes" if verdict.outcome == "HOLDS" else "NO"
        cells.append((claim.text, f"{claim.expected:.4g}", f"{estimate.mean:.4g}{error}", agrees))
    return cells


def run(options: Options) -> None:
    """Print the course texts' worked examples beside what the library measures."""
    cells = rows(examples(jax.random.key(options.seed)))
    summary = (
        f"{sum(row[-1] == 'yes' for row in cells)} of {len(cells)} agree. ± is one standard error "
        f"over {SEEDS} seeds;\nsuch a row agrees if its difference is certainly below "
        f"{TOLERANCE:.0%}, corrected for all rows."
    )
    section = table(("example", "in the text", "measured", "agrees"), cells)
    _kit.publish(Report([section, summary], estimates={c[0]: c[1:] for c in cells}), options)


if __name__ == "__main__":
    _kit.command(Options, run)
