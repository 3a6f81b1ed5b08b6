"""Activations as layers, and what layers say about homogeneity and mixing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, layers
from jaxgrad.theory import Moments

CASES = {
    "relu": (layers.activation("relu"), True),
    "randomized": (layers.activation("randomized_leaky_relu"), True),
    "own": (layers.activation(lambda x: 3 * jnp.abs(x)), True),
    "elu": (layers.activation("elu"), False),
    "gelu": (layers.activation("gelu"), False),
    "tanh": (layers.activation("tanh"), False),
    "dense": (layers.dense(6), True),
    "ntk": (layers.dense(6, w_variance=2.0, parameterization="ntk"), True),
    "biases": (layers.dense(6, b_variance=1.0, bias=True), False),
    "norm": (layers.layer_norm(), False),
    "dropout": (layers.dropout(0.5), True),
    "residual": (layers.residual(layers.dense(6)), True),
    "mlp": (layers.mlp(6, 2, "relu", out_features=6), True),
    "mlp with biases": (layers.mlp(6, 2, "relu", b_variance=1.0, bias=True), False),
    "smooth mlp": (layers.mlp(6, 2, "tanh"), False),
    "repeat": (layers.repeat(layers.sequential(layers.dense(6), layers.dropout(0.5)), 2), True),
    "batch": (layers.batch_norm(), False),
    "with batch": (layers.residual(layers.sequential(layers.batch_norm(), layers.dense(6))), False),
}


@pytest.mark.parametrize("name", CASES)
def test_homogeneity_is_told_truly(key, name):
    layer, expected = CASES[name]
    x = jax.random.normal(key, (3, 6))
    factor = jnp.asarray([[0.25], [4.0], [2.0]])
    assert layer.homogeneous == expected
    assert layer.mixes == ("batch" in name)
    params, _ = layers.init(layer, (6,), key=key)
    out, _ = layers.apply(layer, params, None, x, key=key)
    scaled, _ = layers.apply(layer, params, None, x * factor, key=key)
    assert np.allclose(scaled, factor * out, rtol=1e-5) == expected
    alone, _ = layers.apply(layer, params, None, x.at[1:].multiply(3.0), key=key)
    assert np.allclose(alone[0], out[0], rtol=1e-5) == (not layer.mixes)


def test_homogeneity_is_known_while_tracing():
    def function(x):
        return 2 * jnp.maximum(x, 0.0)

    assert jax.jit(lambda x: x * layers.activation(function).homogeneous)(1.0) == 1.0


def test_parameters_are_the_trained_ones(key):
    layer = layers.activation("parametric_relu")
    params, _ = layers.init(layer, (3,), key=key, dtype=jnp.bfloat16)
    assert params == {"slope": jnp.asarray(0.25, jnp.bfloat16)}
    x = jnp.asarray([[-2.0, 0.0, 3.0]])
    out, _ = layers.apply(layer, {"slope": jnp.asarray(0.5)}, None, x)
    np.testing.assert_allclose(out, [[-1.0, 0.0, 3.0]])


def test_a_randomized_activation_draws_with_a_key(key):
    layer = layers.activation("randomized_leaky_relu")
    x = -jnp.ones((4, 50))
    drawn, _ = layers.apply(layer, {}, None, x, key=key)
    expected = activations.get("randomized_leaky_relu")(x, key=key)
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)
    mean, _ = layers.apply(layer, {}, None, x)
    np.testing.assert_allclose(mean, -(1 / 8 + 1 / 3) / 2, rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="activation must be one of"):
        layers.activation("nope")
    with pytest.raises(ValueError, match="must follow a layer of weights"):
        layers.activation("relu").predict(Moments(0.0))
