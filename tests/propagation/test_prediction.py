import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation, theory
from jaxgrad.theory import Moments
from tests.propagation import cases

START = Moments(0.0, 0.0, 0.0, None, gaussian=True, fresh=True)


@pytest.mark.slow
def test_the_prediction_of_an_mlp_is_that_of_its_blocks():
    network = layers.mlp(4, 6, "tanh", w_variance=1.7, b_variance=0.2, bias=True)
    moments = Moments(log_q=np.log([0.5, 2.0]), gap=0.6)
    result = propagation.predict(network, moments)
    blocks = propagation.predict(network.layers, moments)
    np.testing.assert_allclose(result.log_activation, blocks.log_activation, rtol=1e-12)
    # The blocks' gradient is at the input, and so is multiplied by the first weights.
    np.testing.assert_allclose(
        result.log_gradient + np.log(1.7), blocks.log_gradient, rtol=1e-12, atol=1e-14
    )
    before = np.concatenate([np.log([[0.5, 2.0]]), result.log_activation[:-1]])
    np.testing.assert_allclose(
        np.exp(result.log_preactivation), 1.7 * np.exp(before) + 0.2, rtol=1e-12
    )
    slope = theory.slope_moment("tanh", np.exp(result.log_preactivation))
    np.testing.assert_allclose(np.exp(result.log_last_gradient), slope, rtol=1e-12)
    np.testing.assert_allclose(
        theory.c_map("tanh", result.gap, np.exp(result.log_preactivation), 1.7, 0.2)[:-1],
        result.gap[1:],
        rtol=1e-10,
    )
    assert blocks.gap.shape == result.gap.shape == (6, 2)
    np.testing.assert_array_equal(blocks.log_last_gradient, 0.0)
    np.testing.assert_array_equal(blocks.log_preactivation, np.nan)


@pytest.mark.slow
def test_blocks_are_followed_one_by_one():
    block = layers.residual(
        layers.sequential(layers.activation("relu"), layers.dense(4, w_variance=0.6)), 0.5
    )
    network = layers.sequential(layers.dense(4), layers.repeat(block, 3), layers.layer_norm())
    result = propagation.predict(network, Moments(0.0, gap=0.3))
    moments, expected = Moments(0.0, gap=0.3), []
    for layer in (layers.dense(4), block, block, block, layers.layer_norm()):
        moments = layer.predict(moments)
        expected.append(moments)
    for name, field in (
        ("log_q", "log_activation"),
        ("log_gradient", "log_gradient"),
        ("gap", "gap"),
    ):
        np.testing.assert_allclose(
            getattr(result, field), [getattr(m, name) for m in expected], rtol=1e-12, atol=1e-15
        )


@pytest.mark.slow
@pytest.mark.parametrize("active", [0, 2, 3])
def test_copies_that_do_not_act(active):
    block = cases.block_of(4, "relu", w_variance=3.0)
    network = layers.repeat(block, 3, active=active)
    start = dataclasses.replace(START, log_q=np.zeros(2))
    result = propagation.predict(network, start)
    every = propagation.predict(layers.repeat(block, 3), start)
    expected = np.concatenate([np.zeros((1, 2)), every.log_activation])
    expected = np.stack([expected[min(depth, active)] for depth in range(1, 4)])
    np.testing.assert_allclose(result.log_activation, expected, rtol=1e-12)
    after = layers.sequential(network, layers.dense(4)).predict(start)
    np.testing.assert_allclose(after.log_q, expected[-1], rtol=1e-12, atol=1e-15)


def test_inputs_may_be_an_array(key):
    x = jax.random.normal(key, (6, 5, 3))
    network = layers.repeat(layers.convolution(3, (3,), padding="SAME"), 2)
    result = propagation.predict(network, x, pairs=True)
    expected = propagation.predict(network, theory.moments_of(x, gap=True))
    np.testing.assert_array_equal(result.log_activation, expected.log_activation)
    np.testing.assert_array_equal(result.gap, expected.gap)
    assert result.gap.shape == (2, 5)
    assert np.all(np.isnan(propagation.predict(network, x).gap))


def test_numbers_give_float64_and_transforms_agree():
    network = lambda w: layers.mlp(4, 5, "tanh", w_variance=w)  # noqa: E731

    def last(w):
        return propagation.predict(network(w), Moments(0.0)).log_gradient[-1]

    result = propagation.predict(network(1.3), Moments(0.0))
    assert isinstance(result.log_gradient, np.ndarray)
    assert {a.dtype for a in result if a is not None} == {np.dtype(np.float64)}
    mapped = jax.jit(jax.vmap(last))(jnp.asarray([0.7, 1.3]))
    assert mapped.dtype == jnp.float32
    np.testing.assert_allclose(mapped, [last(0.7), last(1.3)], rtol=1e-6)
    slope = (last(1.3 + 1e-5) - last(1.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(last)(1.3), slope, rtol=1e-5)


def test_errors():
    network = layers.mlp(4, 3)
    with pytest.raises(TypeError, match="layer must be a Layer"):
        propagation.predict("mlp", Moments(0.0))
    with pytest.raises(ValueError, match="inputs must have a gap to follow pairs, got None"):
        propagation.predict(network, Moments(0.0), pairs=True)
    with pytest.raises(ValueError, match="at least 2 examples"):
        propagation.predict(network, jnp.ones((1, 4)), pairs=True)
    with pytest.raises(ValueError, match="inputs must be finite"):
        propagation.predict(network, jnp.full((2, 4), jnp.nan))
    with pytest.raises(ValueError, match="moments must have a gap for batch norm"):
        propagation.predict(layers.repeat(layers.batch_norm(), 3), START)
