"""Compare the theory of attention, softmax, norms and feed-forward layers with simulations.

Run `python -m benchmarks.transformer_moments`. Layers of random sizes, variances and correlations
get Gaussian tokens and cotangents; for each the variance and the covariance between tokens of the
outputs and of the gradient are predicted, and measured over many draws of the weights. Printed are
percentiles of the relative error, beside those that a published fit states for its formulas, and of
the standard error of the simulation. The covariance is compared relative to the variance.

Source of the published percentiles: Kedia et al. (2024), "Transformers get stable: an end-to-end
signal propagation theory for language models", arXiv:2403.09635, table of errors.
"""

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxgrad import activations, layers, theory
from jaxgrad.theory import Moments, Tokens

PERCENTILES = (50, 90, 99)
MOMENTS = ("variance", "covariance", "gradient variance", "gradient covariance")
# Percentiles of the errors of published formulas, in percent, by component and moment.
PUBLISHED = {
    ("attention", "variance"): (1.4, 4.1, 7.8),
    ("attention", "gradient variance"): (2.2, 13.3, 44.5),
    ("softmax", "variance"): (0.2, 0.9, 4.0),
    ("softmax", "gradient variance"): (0.1, 0.6, 4.5),
    ("relu", "variance"): (0.5, 1.9, 3.4),
    ("relu", "gradient variance"): (0.6, 1.5, 2.6),
    ("gelu", "variance"): (0.2, 0.6, 1.3),
    ("gelu", "gradient variance"): (0.2, 0.6, 1.1),
    ("layer norm", "gradient variance"): (0.4, 1.5, 3.2),
    ("feed-forward", "variance"): (0.4, 1.4, 2.8),
    ("feed-forward", "gradient variance"): (0.2, 1.0, 2.2),
}


class Case(NamedTuple):
    """One layer: sizes, variance and correlation of its tokens, of cotangents, and its weights."""

    width: int
    tokens: int
    q: float
    correlation: float
    cotangent_correlation: float
    logit_variance: float
    value_variance: float


class Result(NamedTuple):
    """Predicted and measured moments with standard errors, `[4]` each, in the order of MOMENTS."""

    predicted: Any
    measured: Any
    error: Any


def cases(rng: np.random.Generator, number: int) -> Iterator[Case]:
    """Draw layers: from uniform attention to attention that chooses one token."""
    for _ in range(number):
        yield Case(
            width=int(rng.choice([64, 128, 256])),
            tokens=int(rng.choice([4, 16, 64, 128])),
            q=float(np.exp(rng.uniform(-2, 2))),
            correlation=float(rng.choice([0.0, 0.1, 0.3, 0.6, 0.9])),
            cotangent_correlation=float(rng.choice([0.0, 0.0, 0.3, 0.8])),
            logit_variance=float(np.exp(rng.uniform(np.log(0.02), np.log(12)))),
            value_variance=float(np.exp(rng.uniform(-1, 1))),
        )


def correlated(key: Any, tokens: int, width: int, correlation: Any) -> tuple[Any, list[Any]]:
    """Draw tokens of variance 1, and squares of their parts, whose means are 1, 1, 0 and 1."""
    keys = jax.random.split(key)
    shared = jax.random.normal(keys[0], (1, width))
    each = jax.random.normal(keys[1], (tokens, width))
    mean = jnp.mean(each, axis=0)
    squares = [jnp.mean(a * b) for a, b in ((shared, shared), (each, each), (shared[0], mean))]
    squares.append(tokens * jnp.mean(mean * mean))
    return jnp.sqrt(correlation) * shared + jnp.sqrt(1 - correlation) * each, squares


MEANS = (1.0, 1.0, 0.0, 1.0)


def variances(a: Any) -> list[Any]:
    """Return the mean square over tokens and features, and the mean product of two tokens."""
    square, total = jnp.mean(a * a), jnp.sum(a, axis=0)
    return [square, (jnp.mean(total * total) - len(a) * square) / (len(a) * (len(a) - 1))]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def draw_attention(width, tokens, draws, key, q, correlation, cotangent_correlation, weights):
    """Draw single-head layers; return their moments, and controls whose means are known."""

    def one(key):
        keys = jax.random.split(key, 5)
        x, controls = correlated(keys[0], tokens, width, correlation)
        g, more = correlated(keys[1], tokens, width, cotangent_correlation)
        query, keys_, value = (jax.random.normal(k, (width, width)) * width**-0.5 for k in keys[2:])

        def layer(x):
            logits = (x @ query) @ (x @ keys_).T * (q * weights * width**-0.5)
            return jax.nn.softmax(logits) @ (x @ value)

        # Inputs of variance 1 with the scale in the weights; the gradient is that of x sqrt(q).
        outputs, pull = jax.vjp(layer, x)
        gradient = pull(g)[0]
        mapped = [
            jnp.mean((a @ b) ** 2) for a, b in ((x, value), (g, value.T), (x @ query, keys_.T))
        ]
        return jnp.stack(variances(outputs) + variances(gradient)), jnp.stack(
            controls + more + mapped
        )

    return jax.lax.map(one, jax.random.split(key, draws))


def controlled_mean(samples: Any, controls: Any, means: Any) -> tuple[Any, Any]:
    """Return means and standard errors of samples, regressed on controls of known means."""
    samples, controls = np.asarray(samples, float), np.asarray(controls, float) - means
    design = np.concatenate([np.ones((len(samples), 1)), controls], axis=1)
    fit = np.linalg.lstsq(design, samples, rcond=None)[0]
    rest = samples - design @ fit
    variance = np.sum(rest**2, axis=0) / (len(samples) - design.shape[1])
    return fit[0], np.sqrt(variance * np.linalg.inv(design.T @ design)[0, 0])


def attention(case: Case, draws: int, key: Any) -> Result:
    """Predict and measure single-head attention."""
    # logits of variance g q^2 for weights of variance 1.
    weights = np.sqrt(case.logit_variance) / case.q
    samples, controls = draw_attention(
        case.width,
        case.tokens,
        draws,
        key,
        case.q,
        case.correlation,
        case.cotangent_correlation,
        weights,
    )
    mean, error = controlled_mean(samples, controls, (*MEANS, *MEANS, 1.0, 1.0, 1.0))
    tokens = Tokens(case.tokens, 1 - case.correlation, width=case.width)
    moments = Moments(float(np.log(case.q)), gaussian=True, tokens=tokens)
    options = {"logit_gain": weights**2, "head_features": case.width}
    options["value_variance"] = case.value_variance
    after = theory.attend(moments, **options)
    assert after.tokens is not None
    forward = np.exp(after.log_q) * np.array([1, 1 - after.tokens.gap])
    cotangent = theory.Cotangent(gap=1 - case.cotangent_correlation)
    attend = functools.partial(theory.attend, **options)
    gradient = theory.pull_back(attend, moments, cotangent)
    backward = np.exp(gradient.log_square) * np.array([1, 1 - gradient.gap])
    scale = np.array([case.q, case.q, 1, 1]) * case.value_variance
    return Result(np.concatenate([forward, backward]), mean * scale, error * scale)


def softmax(rng: np.random.Generator, draws: int, key: Any) -> Result:
    """Predict and measure a softmax of correlated logits, of one row."""
    tokens, correlation = int(rng.choice([8, 64, 256])), float(rng.uniform(0, 0.9))
    variance = float(np.exp(rng.uniform(np.log(0.05), np.log(12))))

    def row(key):
        # What logits have in common has no effect.
        z = jax.random.normal(key, (tokens,))
        p = jax.nn.softmax(jnp.sqrt(variance * (1 - correlation)) * z)
        # Over independent cotangents of variance 1: the squared norm of diag(p) - p p^T.
        square, cube = jnp.sum(p**2), jnp.sum(p**3)
        measured = square / tokens - tokens**-2, (square - 2 * cube + square**2) / tokens
        return jnp.stack(measured), jnp.stack([jnp.mean(z * z), jnp.mean(z) ** 2 * tokens])

    rows = jax.lax.map(row, jax.random.split(key, 512 * draws), batch_size=1024)
    measured, error = controlled_mean(rows[0], rows[1], (1.0, 1.0))
    averages = theory.softmax_moments(variance * (1 - correlation), tokens)
    change = averages.square - 2 * averages.cube + averages.squared_square
    predicted = np.array([averages.square / tokens - tokens**-2, change / tokens])
    return Result(predicted, measured, error)


def elementwise(name: str, rng: np.random.Generator, draws: int, key: Any) -> Result:
    """Predict and measure an activation of Gaussian inputs, of any mean square."""
    q = float(np.exp(rng.uniform(-2, 2)))
    phi = activations.get(name)

    def squares(key):
        z = jnp.sqrt(q) * jax.random.normal(key, (2048,))
        value, slope = jax.jvp(phi, (z,), (jnp.ones_like(z),))
        return jnp.stack([jnp.mean(value**2), jnp.mean(slope**2)]), jnp.mean(z * z)[None]

    samples = jax.lax.map(squares, jax.random.split(key, 16 * draws), batch_size=64)
    measured, error = controlled_mean(samples[0], samples[1], (q,))
    predicted = np.array([theory.second_moment(name, q), theory.slope_moment(name, q)])
    return Result(predicted, measured, error)


def drawn_layer(layer: Any, moments: Moments, width: int, draws: int, key: Any) -> Result:
    """Predict and measure mean squares of outputs and gradients of a layer, token by token."""

    @jax.jit
    def one(key):
        keys = jax.random.split(key, 3)
        x = jnp.exp(moments.log_q / 2) * jax.random.normal(keys[0], (1, 64, width))
        params, _ = layers.init(layer, (64, width), key=keys[1])
        outputs, pull = jax.vjp(lambda x: layers.apply(layer, params, None, x)[0], x)
        gradient = pull(jax.random.normal(keys[2], outputs.shape))[0]
        return jnp.stack([jnp.mean(outputs**2), jnp.mean(gradient**2)]), jnp.mean(x * x)[None]

    samples, squares = jax.lax.map(one, jax.random.split(key, draws))
    mean, error = controlled_mean(samples, squares, (float(np.exp(moments.log_q)),))
    after = layer.predict(moments)
    predicted = np.exp(np.array([after.log_q, after.log_gradient]))
    return Result(predicted, mean, error)


def normalized(rng: np.random.Generator, draws: int, key: Any) -> Result:
    """Predict and measure layer norm."""
    moments = Moments(float(rng.uniform(-2, 2)), gaussian=True)
    return drawn_layer(layers.layer_norm(), moments, int(rng.choice([256, 512, 1024])), draws, key)


def feed_forward(rng: np.random.Generator, draws: int, key: Any) -> Result:
    """Predict and measure a feed-forward block whose hidden layer is four times as wide."""
    width = int(rng.choice([128, 256]))
    layer = layers.sequential(
        layers.dense(4 * width, w_variance=float(np.exp(rng.uniform(-1, 1)))),
        layers.activation(str(rng.choice(["relu", "gelu"]))),
        layers.dense(width, w_variance=float(np.exp(rng.uniform(-1, 1)))),
    )
    moments = Moments(float(rng.uniform(-1, 1)), gaussian=True)
    return drawn_layer(layer, moments, width, 2 * draws, key)


COMPONENTS: dict[str, Callable[..., Result]] = {
    "softmax": softmax,
    "relu": functools.partial(elementwise, "relu"),
    "gelu": functools.partial(elementwise, "gelu"),
    "layer norm": normalized,
    "feed-forward": feed_forward,
}


def table(component: str, names: Sequence[str], results: Sequence[Result]) -> Iterator[str]:
    """Return lines with percentiles of the errors of a component, in percent."""
    for i, name in enumerate(names):
        # A covariance may be zero.
        scale = np.array([r.measured[i - i % 2 if len(names) == 4 else i] for r in results])
        errors, noise = (
            100 * np.percentile(np.abs(np.array(a)) / scale, PERCENTILES)
            for a in (
                [r.predicted[i] - r.measured[i] for r in results],
                [r.error[i] for r in results],
            )
        )
        published = PUBLISHED.get((component, name))
        columns = [errors, noise, *([published] if published else [])]
        texts = ["/".join(f"{value:.2f}" for value in column) for column in columns]
        yield f"{component:<14}{name:<22}" + "".join(f"{text:>20}" for text in texts)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=500, help="attention layers")
    parser.add_argument("--draws", type=int, default=1600, help="draws of the weights of each")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, key = np.random.default_rng(options.seed), jax.random.key(options.seed)
    keys = jax.random.split(key, options.layers + 1)
    print("percentiles 50/90/99 of |error| in %: of the theory, of the simulation, published")
    drawn = tqdm(list(cases(rng, options.layers)), desc="attention", disable=None)
    results = [attention(case, options.draws, keys[i]) for i, case in enumerate(drawn)]
    for line in table("attention", MOMENTS, results):
        print(line)
    number = max(options.layers // 10, 2)
    for name, measure in COMPONENTS.items():
        keys = jax.random.split(jax.random.fold_in(key, 1), number)
        results = [measure(rng, options.draws, key) for key in tqdm(keys, name, disable=None)]
        for line in table(name, ("variance", "gradient variance"), results):
            print(line)


if __name__ == "__main__":
    main()
