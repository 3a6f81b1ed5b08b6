"""Measured propagation against what theory predicts, and against exact laws."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.theory import Moments
from tests.propagation import cases
from tests.tolerances import within_errors

pytestmark = pytest.mark.slow

WIDTH, DEPTH, SEEDS, BATCH = 256, 4, 10, 16
START = Moments(0.0, 0.0, 0.0, None, gaussian=True, fresh=True)


# Blocks


def predicted(block, start=START, depth=DEPTH):
    """The prediction block by block, whose kind of moments may change."""
    moments, results = start, []
    for _ in range(depth):
        moments = block.predict(moments)
        results.append(moments)
    return results


def measured(block, shape=(WIDTH,), batch=BATCH, seeds=SEEDS, depth=DEPTH, outputs=False):
    """`Propagation` over seeds, and outputs if asked for, of standard normal inputs."""
    network = layers.repeat(block, depth)

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 3)
        params = cases.draw(network, keys[0], shape)
        x = jax.random.normal(keys[1], (batch, *shape))
        result = propagation.probe(network, params, x, key=keys[2])
        return (result, cases.apply(network, params, x, keys[2])) if outputs else result

    return run(jax.random.split(jax.random.key(7), seeds))


def agrees(log_values, log_expected, allowance):
    """Means of ratios to what is expected are 1 within 3 standard errors and an allowance."""
    ratio = np.exp(np.asarray(log_values, np.float64) - np.asarray(log_expected))
    error = ratio.std(axis=0, ddof=1) / np.sqrt(len(ratio))
    distance = np.abs(ratio.mean(axis=0) - 1)
    assert np.all(distance < 3 * error + allowance), (ratio.mean(axis=0), error)


def field(results, name):
    return np.stack([np.asarray(getattr(moments, name)) for moments in results])


N = WIDTH
BLOCKS = {
    "sequence": layers.sequential(
        layers.activation("tanh"),
        layers.dense(N, w_variance=1.5, b_variance=0.1, bias=True),
        layers.activation("randomized_leaky_relu"),
        layers.layer_norm(0.1),
        layers.dense(N, w_variance=2.5),
    ),
    "means": layers.sequential(
        layers.dense(N),
        layers.activation("relu"),
        layers.residual(
            layers.sequential(layers.dense(N, w_variance=2.0), layers.activation("relu")), 0.8
        ),
        layers.dropout(0.5),
        layers.layer_norm(),
    ),
    "residual": layers.residual(
        layers.sequential(
            layers.layer_norm(),
            layers.dense(N, w_variance=2.0),
            layers.activation("gelu"),
            layers.dense(N, w_variance=1.5),
        ),
        0.7,
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_predictions_hold(name):
    result = measured(BLOCKS[name])
    expected = propagation.predict(layers.repeat(BLOCKS[name], DEPTH), START)
    # Beyond chance a mean is off by a few times depth / width.
    allowance = 2 * np.arange(1, DEPTH + 1) / N
    agrees(result.log_activation, expected.log_activation, allowance)
    agrees(result.log_gradient, expected.log_gradient, allowance)


def distance_between_examples(outputs):
    """`q (1 - c)` of each seed, from all pairs of examples."""
    h = np.asarray(outputs, np.float64).reshape(len(outputs), outputs.shape[1], -1)
    square = np.mean(h**2, axis=(1, 2))
    total = np.mean(h.sum(axis=1) ** 2, axis=1)
    batch = h.shape[1]
    return square - (total / batch - square) / (batch - 1)


def test_gaps_hold():
    block = layers.sequential(
        layers.dense(N, w_variance=0.5, b_variance=0.2, bias=True),
        layers.batch_norm(),
        layers.dense(N, w_variance=0.5, b_variance=0.6, bias=True),
        layers.residual(
            layers.sequential(
                layers.activation("relu"),
                layers.dense(N, w_variance=2.0, b_variance=0.1, bias=True),
                layers.activation("relu"),
            ),
            0.5,
        ),
        layers.dropout(0.3),
        layers.layer_norm(),
    )
    result, outputs = measured(block, batch=N, seeds=6, outputs=True)
    start = dataclasses.replace(START, gap=1.0)
    expected = propagation.predict(layers.repeat(block, DEPTH), start)
    # The batch is finite, too.
    allowance = 4 * np.arange(1, DEPTH + 1) / N
    agrees(result.log_gradient, expected.log_gradient, allowance)
    log_distance = expected.log_activation[-1] + np.log(expected.gap[-1])
    agrees(np.log(distance_between_examples(outputs)), log_distance, allowance[-1])
    assert 0.02 < expected.gap[-1] < 0.9


@pytest.mark.parametrize(
    ("name", "growth"), [("relu", np.pi / (np.pi - 1)), ("tanh", 1.177807), ("gelu", 1.318845)]
)
def test_growth_under_batch_norm_of_a_large_batch(name, growth):
    block = layers.sequential(
        layers.dense(4, w_variance=3.0), layers.batch_norm(), layers.activation(name)
    )
    start = dataclasses.replace(START, gap=0.4)
    logs = propagation.predict(layers.repeat(block, 3), start).log_gradient
    np.testing.assert_allclose(np.exp(np.diff(logs)), growth, rtol=4e-7)


def test_growth_under_batch_norm_of_a_small_batch():
    batch = 8
    block = layers.sequential(layers.dense(512), layers.batch_norm())
    result = measured(block, (512,), batch, seeds=16)
    layer = np.arange(1, DEPTH + 1)
    agrees(result.log_gradient, layer * np.log((batch - 2) / (batch - 3)), 4 * layer / 512)


@pytest.mark.parametrize(("w_variance", "b_variance"), [(7.0, 0.0), (1.5, 0.4)])
def test_growth_under_layer_norm(w_variance, b_variance):
    block = layers.sequential(
        layers.dense(4, w_variance=w_variance, b_variance=b_variance, bias=True),
        layers.layer_norm(),
        layers.activation("relu"),
    )
    logs = propagation.predict(layers.repeat(block, 3), START).log_gradient
    chi = w_variance * 0.5 / (w_variance * 0.5 + b_variance)
    np.testing.assert_allclose(np.exp(np.diff(logs)), chi, rtol=1e-12)


def test_growth_of_residual_networks():
    def network(w_variance, scale, depth):
        inner = layers.sequential(layers.activation("relu"), layers.dense(4, w_variance=w_variance))
        return layers.repeat(layers.residual(inner, scale), depth)

    logs = propagation.predict(network(0.6, 1.0, 20), START).log_gradient
    np.testing.assert_allclose(logs[-1], 20 * np.log1p(0.3), rtol=1e-12)
    logs = propagation.predict(network(0.6, 10_000**-0.5, 1), START).log_gradient
    np.testing.assert_allclose(10_000 * logs[0], 0.3, rtol=1e-4)


@layers.layer
class Absolute(layers.Layer):
    homogeneous = True

    def draw(self, shape, *, key, dtype):
        return {}, shape

    def apply(self, params, state, h, *, key=None):
        return jnp.abs(h), state

    def predict(self, moments):
        return dataclasses.replace(moments, mean=jnp.sqrt(2 / jnp.pi), gaussian=False)


def test_layers_of_a_users_making():
    block = layers.sequential(layers.dense(N, w_variance=1.5), Absolute(), layers.layer_norm())
    result = measured(block)
    expected = field(predicted(block), "log_gradient")
    np.testing.assert_allclose(np.diff(expected), -np.log(1 - 2 / np.pi), rtol=1e-6)
    agrees(result.log_gradient, expected, 4 * np.arange(1, DEPTH + 1) / N)


# Convolutions


def test_zero_padding_fades_at_the_borders():
    block = layers.sequential(
        layers.convolution(200, (3,), padding="SAME", w_variance=2.5, b_variance=0.1, bias=True),
        layers.activation("relu"),
    )
    start = dataclasses.replace(START, log_q=np.zeros(6), log_gradient=np.zeros(6))
    expected = propagation.predict(layers.repeat(block, DEPTH), start)
    result, outputs = measured(block, (6, 200), batch=4, outputs=True)
    allowance = 2 * DEPTH / 200
    last = expected.log_activation[-1]
    agrees(np.log(np.mean(outputs**2, axis=(1, 3))), last, allowance)
    assert last[2] - last[0] > 0.5
    over_positions = np.log(np.mean(np.exp(expected.log_gradient), axis=1))
    agrees(result.log_gradient, over_positions, allowance)
    np.testing.assert_allclose(last, last[::-1], rtol=1e-12)


def test_batch_norm_over_positions():
    block = layers.sequential(
        layers.convolution(160, (3,), padding="SAME", w_variance=2.0), layers.batch_norm(spatial=1)
    )
    start = Moments(np.zeros(4), np.zeros(4), np.zeros(4), np.ones(4), True, True)
    expected = propagation.predict(layers.repeat(block, 3), start)
    result, outputs = measured(block, (4, 160), batch=64, depth=3, seeds=6, outputs=True)
    agrees(np.log(np.mean(outputs**2, axis=(1, 3))), expected.log_activation[-1], 6 / 160)
    over_positions = np.log(np.mean(np.exp(expected.log_gradient), axis=1))
    agrees(result.log_gradient, over_positions, 6 / 160)
    assert np.ptp(expected.log_activation[-1]) > 0.4


# Fully connected networks


@pytest.mark.parametrize(
    ("width", "depth", "seeds"),
    [
        (16, 12, 4096),
        # Standard errors of about 0.1: a factor that is off by 1 % a layer is seen.
        (64, 32, 1024),
        (256, 32, 128),
    ],
)
def test_relu_mean_squared_gradient_is_exact_at_any_width(optimized, key, width, depth, seeds):
    """E|J|^2 / n = (w_variance / 2)^L without biases, at every width and depth."""
    x = jax.random.normal(key, (1, width))
    variances = jnp.array([1.0, 2.0, 3.0])

    def one(key):
        params = cases.draw(cases.plain_mlp(width, depth, "relu"), key, (width,))

        def log_gradient(variance):
            network = cases.plain_mlp(width, depth, "relu", w_variance=variance)
            return propagation.probe(network, params, x, key=key).log_gradient

        return jax.vmap(log_gradient)(variances)

    logs = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=512 if width == 16 else 64))(
        jax.random.split(key, seeds)
    )
    # The gradient is taken at z_1: one slope, then a product and a slope for each further layer.
    products = np.arange(depth) * np.log(np.asarray(variances)[:, None] / 2)
    within_errors(np.exp(np.asarray(logs, np.float64) - products), 0.5)


def test_tanh_growth_a_layer_is_that_of_mean_field(optimized, key):
    """Schoenholz et al. (2017): chi = 0.880164 at (1.3, 0.05)."""
    depth, width, seeds, start = 40, 768, 12, 12
    x = jax.random.normal(key, (8, 64))
    network = cases.mlp(width, depth, w_variance=1.3, b_variance=0.05)

    def one(key):
        out = propagation.probe(network, cases.draw(network, key, (64,)), x, key=key)
        return (out.log_gradient[-1] - out.log_gradient[start]) / (depth - 1 - start)

    growth = np.exp(
        np.asarray(jax.jit(lambda k: jax.lax.map(one, k))(jax.random.split(key, seeds)))
    )
    error = growth.std(ddof=1) / np.sqrt(seeds)
    assert abs(growth.mean() - 0.880164) < max(2 * error, 0.01 * 0.88), (growth.mean(), error)


def test_relu_thousand_layers_double_each(optimized, key):
    """w_variance 4, depth 1000: slope 1 in log2, finite in float32."""
    width, seeds = 128, 16
    x = jax.random.normal(key, (4, 10))
    network = cases.plain_mlp(width, 1000, "relu", w_variance=4.0)

    def one(key):
        return propagation.probe(network, cases.draw(network, key), x, key=key).log_gradient

    logs = np.asarray(jax.jit(lambda k: jax.lax.map(one, k))(jax.random.split(key, seeds)))
    assert np.all(np.isfinite(logs))
    slope = (logs[:, -1] - logs[:, 0]) / 999 / np.log(2)
    # The mean of a log lies below the log of the mean by half the variance, 5 / (2 width) a layer.
    error = slope.std(ddof=1) / np.sqrt(seeds)
    assert abs(slope.mean() - (1 - 2.5 / width / np.log(2))) < 3 * error + 5 / width**2
    assert abs(slope.mean() - 1) < 0.04
