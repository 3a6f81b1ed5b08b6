"""Predictions over tokens: of each layer and of whole transformers, against what is measured."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation, theory
from jaxgrad.theory import Cotangent, Moments, Tokens

COUNT = 8


def drawn(layer, x, seeds=48):
    """Return what a layer does: mean squares and gaps of outputs and of changes, and errors."""

    def gap_of(a):
        square = jnp.mean(a * a)
        total = jnp.sum(a, axis=1)
        pairs = (jnp.mean(total * total) - COUNT * square) / (COUNT * (COUNT - 1))
        return jnp.stack([square, pairs])

    def one(key):
        keys = jax.random.split(key)
        params, _ = layers.init(layer, x.shape[1:], key=keys[0])
        tangent = jax.random.normal(keys[1], x.shape)
        outputs, change = jax.jvp(
            lambda x: layers.apply(layer, params, None, x)[0], (x,), (tangent,)
        )
        return jnp.stack([gap_of(outputs), gap_of(change)])

    samples = np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(5), seeds)), float)
    return samples.mean(0), samples.std(0) / np.sqrt(seeds)


BRANCH = layers.sequential(layers.dense(96), layers.activation("gelu"), layers.dense(64))
LAYERS = {
    "dense with biases": layers.dense(64, w_variance=2.0, b_variance=0.3, bias=True),
    "activation": layers.sequential(layers.dense(256), layers.activation("gelu")),
    "layer norm": layers.layer_norm(1e-6),
    "layer norm of an activation": layers.sequential(
        layers.dense(256), layers.activation("relu"), layers.layer_norm(), layers.dense(64)
    ),
    "rms norm": layers.rms_norm(1e-6),
    "residual": layers.residual(BRANCH, 0.7, skip=1.5),
    "gated": layers.sequential(layers.gated(512, "silu"), layers.dense(64)),
    "attention": layers.attention(4, query_variance=2.0, bias=True, b_variance=0.2),
    "causal attention": layers.attention(4, key_variance=3.0, causal=True),
    "attention with a scale of 1/d": layers.attention(2, scale="1/d", logit_scale=8.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_does_what_is_predicted(name):
    layer, keys = LAYERS[name], jax.random.split(jax.random.key(2))
    shared, each = (
        jax.random.normal(key, (8, n, 64)) for key, n in zip(keys, (1, COUNT), strict=True)
    )
    x = 1.5 * (0.6 * shared + 0.8 * each)
    after = layer.predict(dataclasses.replace(theory.moments_of(x, tokens=True), gaussian=True))
    predicted = np.array(
        [
            [np.exp(log), np.exp(log) * (1 - gap)]
            for log, gap in (
                (after.log_q, after.tokens.gap),
                (after.log_gradient, after.tokens.change_gap),
            )
        ]
    )
    measured, error = drawn(layer, x)
    # Norms take away one or two of 64 directions, and a product of two maps squares the length of
    # a token, whose relative variance is 2 / 64. All else is exact.
    allowed = 0.04 if "norm" in name or name == "gated" else 0.0
    scale = measured[:, :1]
    assert (np.abs(predicted - measured) < 4 * error + allowed * scale).all()
    assert (error < 0.05 * scale).all()


@pytest.mark.slow
def test_gaps_of_changes_are_followed():
    # The first layer of a stack makes changes alike, which later attention passes on.
    network = layers.repeat(layers.attention(4, logit_scale=0.0), 3)
    moments = Moments(0.0, tokens=Tokens(COUNT, 1.0))
    prediction = propagation.predict(network, moments)
    # Uniform attention averages once; the mean token then stays.
    np.testing.assert_allclose(np.exp(prediction.log_gradient), 1 / COUNT, rtol=1e-9)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_uniform_attention_in_a_residual_block(scale):
    # The mean token grows by 1 + a^2 in the square, while deviations stay.
    block = layers.residual(layers.attention(2, logit_scale=0.0), scale)
    moments = Moments(0.0, tokens=Tokens(COUNT, 0.4))
    after = block.predict(moments)
    deviations = np.exp(after.log_q) * after.tokens.gap
    np.testing.assert_allclose(deviations, 0.4, rtol=1e-9)
    mean = 0.6 + 0.4 / COUNT
    growth = (np.exp(after.log_q) - deviations * (1 - 1 / COUNT)) / mean
    np.testing.assert_allclose(growth, 1 + scale**2, rtol=1e-9)


@pytest.mark.parametrize("gap", [1.0, 0.3, 1e-9])
def test_post_norm_attention_with_uniform_weights(gap):
    # The squared gradient of uncorrelated cotangents: (1 + 1/n) / (1 + rho + (1 - rho)/n).
    block = layers.block(layers.attention(2, logit_scale=0.0), layers.layer_norm(), "post")
    back = theory.pull_back(block.predict, Moments(0.0, tokens=Tokens(COUNT, gap)), Cotangent())
    expected = (1 + 1 / COUNT) / (2 - gap + gap / COUNT)
    np.testing.assert_allclose(np.exp(back.log_square), expected, rtol=1e-9)
    # At rank collapse 1/2 for many tokens, while a feed-forward block of equal growth has 1.
    if gap == 1e-9:
        np.testing.assert_allclose(expected, 0.5 * (1 + 1 / COUNT), rtol=1e-8)
        linear = layers.block(layers.dense(8), layers.layer_norm(), "post")
        one = theory.pull_back(linear.predict, Moments(0.0, tokens=Tokens(COUNT, gap)))
        np.testing.assert_allclose(np.exp(one.log_square), 1.0, rtol=1e-12)


def test_layers_over_positions_refuse_tokens():
    moments = Moments(0.0, tokens=Tokens(4, 1.0))
    for layer in (layers.convolution(3, (3,)), layers.batch_norm()):
        with pytest.raises(ValueError, match="moments must have no tokens"):
            layer.predict(moments)
    with pytest.raises(ValueError, match="known width"):
        layers.attention(2, scale="1/d").predict(moments)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize(("depth", "seeds"), [(4, 64), (64, 24), (256, 8)])
def test_growth_of_a_whole_transformer(placement, depth, seeds):
    network = layers.transformer(depth, 64, 4, placement=placement, query_variance=1.5)
    x = jax.random.normal(jax.random.key(0), (2, 16, 64))
    prediction = propagation.predict(network, x, tokens=True)

    def one(key):
        keys = jax.random.split(key)
        params, _ = layers.init(network, x.shape[1:], key=keys[0])
        measured = propagation.probe(network, params, x, key=keys[1])
        return measured.log_activation, measured.log_gradient

    samples = jax.lax.map(one, jax.random.split(jax.random.key(1), seeds))
    for name, logs in zip(("log_activation", "log_gradient"), samples, strict=True):
        predicted, logs = getattr(prediction, name), np.asarray(logs, float)
        # Growth per block between a quarter of the depth and the end, of the typical network.
        start = depth // 4 - 1
        blocks = depth - 1 - start
        growth = (logs[:, -1] - logs[:, start]) / blocks
        error = growth.std(ddof=1) / np.sqrt(seeds)
        difference = growth.mean() - (predicted[-1] - predicted[start]) / blocks
        assert abs(difference) < max(0.03, 2 * error), (name, difference, error)
        assert error < 0.03
