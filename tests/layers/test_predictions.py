"""Predictions at infinite width against networks, within standard errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.theory import Moments

WIDTH, DEPTH, SEEDS, BATCH = 256, 4, 10, 16
START = Moments(0.0, 0.0, 0.0, None, gaussian=True, fresh=True)


def predicted(block, start=START, depth=DEPTH):
    """The moments after each copy, one by one rather than by the scan of `repeat`."""
    with jax.enable_x64(True):
        step, results = jax.jit(lambda block, moments: block.predict(moments)), [start]
        for _ in range(depth):
            results.append(step(block, results[-1]))
        return jax.tree.map(np.asarray, results[1:])


def measured(block, shape=(WIDTH,), batch=BATCH, seeds=SEEDS, depth=DEPTH, outputs=False):
    """`Propagation` over seeds, and outputs if asked for, from standard normal inputs."""
    stack = layers.repeat(block, depth)

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 3)
        params, _ = layers.init(stack, shape, key=keys[0])
        x = jax.random.normal(keys[1], (batch, *shape))
        report = propagation.probe(stack, params, x, key=keys[2])
        if not outputs:
            return report
        return report, layers.apply(stack, params, None, x, key=keys[2])[0]

    return run(jax.random.split(jax.random.key(7), seeds))


def agrees(log_values, log_expected, allowance):
    """Means of ratios to what is expected are 1 within 3 standard errors and an allowance."""
    ratio = np.exp(np.asarray(log_values, np.float64) - np.asarray(log_expected))
    error = ratio.std(axis=0, ddof=1) / np.sqrt(len(ratio))
    deviation = np.abs(ratio.mean(axis=0) - 1)
    assert np.all(deviation < 3 * error + allowance), (ratio.mean(axis=0), error)


def moments_of(predictions, name):
    return np.stack([np.asarray(getattr(moments, name)) for moments in predictions])


# What theory says, against networks

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
    report, expected = measured(BLOCKS[name]), predicted(BLOCKS[name])
    # Beyond chance a mean is off by a few times depth / width.
    allowance = 2 * np.arange(1, DEPTH + 1) / N
    agrees(report.log_activation, moments_of(expected, "log_q"), allowance)
    agrees(report.log_gradient, moments_of(expected, "log_gradient"), allowance)


def variance_over_examples(outputs):
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
    report, outputs = measured(block, batch=N, seeds=6, outputs=True)
    expected = predicted(block, dataclasses.replace(START, gap=1.0))
    # The batch is finite, too.
    allowance = 4 * np.arange(1, DEPTH + 1) / N
    agrees(report.log_gradient, moments_of(expected, "log_gradient"), allowance)
    log_variance = expected[-1].log_q + np.log(expected[-1].gap)
    agrees(np.log(variance_over_examples(outputs)), log_variance, allowance[-1])
    assert 0.02 < expected[-1].gap < 0.9


@pytest.mark.parametrize(
    ("name", "growth"), [("relu", np.pi / (np.pi - 1)), ("tanh", 1.177807), ("gelu", 1.318845)]
)
def test_growth_under_batch_norm_of_a_large_batch(name, growth):
    block = layers.sequential(
        layers.dense(4, w_variance=3.0), layers.batch_norm(), layers.activation(name)
    )
    logs = moments_of(predicted(block, dataclasses.replace(START, gap=0.4), 3), "log_gradient")
    np.testing.assert_allclose(np.exp(np.diff(logs)), growth, rtol=4e-7)


def test_growth_under_batch_norm_of_a_small_batch():
    batch = 8
    block = layers.sequential(layers.dense(512), layers.batch_norm())
    report = measured(block, (512,), batch, seeds=16)
    layer = np.arange(1, DEPTH + 1)
    agrees(report.log_gradient, layer * np.log((batch - 2) / (batch - 3)), 4 * layer / 512)


@pytest.mark.parametrize(("w_variance", "b_variance"), [(7.0, 0.0), (1.5, 0.4)])
def test_growth_under_layer_norm(w_variance, b_variance):
    block = layers.sequential(
        layers.dense(4, w_variance=w_variance, b_variance=b_variance, bias=True),
        layers.layer_norm(),
        layers.activation("relu"),
    )
    logs = moments_of(predicted(block, depth=3), "log_gradient")
    chi = w_variance * 0.5 / (w_variance * 0.5 + b_variance)
    np.testing.assert_allclose(np.exp(np.diff(logs)), chi, rtol=1e-12)


def test_growth_of_residual_networks():
    def branch(w_variance, scale=1.0):
        inner = layers.sequential(layers.activation("relu"), layers.dense(4, w_variance=w_variance))
        return layers.residual(inner, scale)

    logs = moments_of(predicted(branch(0.6), depth=20), "log_gradient")
    np.testing.assert_allclose(logs[-1], 20 * np.log1p(0.3), rtol=1e-12)
    one = predicted(branch(0.6, 10_000**-0.5), depth=1)[0]
    np.testing.assert_allclose(10_000 * one.log_gradient, 0.3, rtol=1e-4)


def test_layers_of_ones_own():
    @layers.layer
    class Absolute(layers.Layer):
        homogeneous = True

        def draw(self, shape, *, key, dtype):
            return {}, shape

        def apply(self, params, state, h, *, key=None):
            return jnp.abs(h), state

        def predict(self, moments):
            return dataclasses.replace(moments, mean=jnp.sqrt(2 / jnp.pi), gaussian=False)

    block = layers.sequential(layers.dense(N, w_variance=1.5), Absolute(), layers.layer_norm())
    report = measured(block)
    expected = moments_of(predicted(block), "log_gradient")
    np.testing.assert_allclose(np.diff(expected), -np.log(1 - 2 / np.pi), rtol=1e-6)
    agrees(report.log_gradient, expected, 4 * np.arange(1, DEPTH + 1) / N)


# Convolutions


def test_zero_padding_fades_at_the_borders():
    block = layers.sequential(
        layers.convolution(200, (3,), padding="SAME", w_variance=2.5, b_variance=0.1, bias=True),
        layers.activation("relu"),
    )
    start = dataclasses.replace(START, log_q=np.zeros(6), log_gradient=np.zeros(6))
    expected = predicted(block, start)
    report, outputs = measured(block, (6, 200), batch=4, outputs=True)
    allowance = 2 * DEPTH / 200
    agrees(np.log(np.mean(outputs**2, axis=(1, 3))), expected[-1].log_q, allowance)
    assert expected[-1].log_q[2] - expected[-1].log_q[0] > 0.5
    over_positions = np.log(np.mean(np.exp(moments_of(expected, "log_gradient")), axis=1))
    agrees(report.log_gradient, over_positions, allowance)
    np.testing.assert_allclose(expected[-1].log_q, expected[-1].log_q[::-1], rtol=1e-12)


def test_batch_norm_over_positions():
    block = layers.sequential(
        layers.convolution(160, (3,), padding="SAME", w_variance=2.0), layers.batch_norm(spatial=1)
    )
    start = Moments(np.zeros(4), np.zeros(4), np.zeros(4), np.ones(4), True, True)
    expected = predicted(block, start, 3)
    report, outputs = measured(block, (4, 160), batch=64, depth=3, seeds=6, outputs=True)
    agrees(np.log(np.mean(outputs**2, axis=(1, 3))), expected[-1].log_q, 6 / 160)
    over_positions = np.log(np.mean(np.exp(moments_of(expected, "log_gradient")), axis=1))
    agrees(report.log_gradient, over_positions, 6 / 160)
    assert np.ptp(expected[-1].log_q) > 0.4
