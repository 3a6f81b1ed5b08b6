"""Theory inside jitted, mapped and differentiated programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation, theory
from jaxgrad.theory import Moments


@pytest.mark.slow
def test_theory_composes_with_transformations():
    @jax.jit
    def slope(w):
        return jax.grad(lambda w: theory.limit("tanh", w, 0.05).q)(w)

    h = 1e-4
    steps = (theory.limit("tanh", 1.3 + h, 0.05).q - theory.limit("tanh", 1.3 - h, 0.05).q) / (
        2 * h
    )
    np.testing.assert_allclose(slope(1.3), steps, rtol=1e-5)
    assert slope(1.3).dtype == jnp.float32
    assert isinstance(theory.limit("tanh", 1.3).q, np.ndarray)
    b = jnp.array([0.01, 0.05])
    critical = jax.jit(jax.vmap(lambda b: theory.critical("tanh", b).w_variance))(b)
    np.testing.assert_allclose(critical, [1.424205, 1.760955], rtol=1e-6)
    with jax.enable_x64(True):
        derivative = jax.grad(lambda b: theory.critical("tanh", b).w_variance)(0.05)
        steps = (
            theory.critical("tanh", 0.05 + h).w_variance
            - theory.critical("tanh", 0.05 - h).w_variance
        )
        np.testing.assert_allclose(derivative, steps / (2 * h), rtol=1e-5)


def predicted(activation, b_variance):
    network = layers.mlp(1, 3, activation, w_variance=1.2, b_variance=b_variance, bias=True)
    return propagation.predict(network, Moments(log_q=0.0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "function",
    [
        lambda b: predicted("relu", b).log_gradient[-1] + b,
        lambda b: predicted("tanh", b).log_preactivation[-1],
        lambda b: theory.limit("tanh", 1.5, b).q,
        lambda b: theory.finite_width.gradient_law("tanh", 3, 1.2, b, width=50).mean_log[-1],
    ],
    ids=["gradient", "signal", "limit", "finite width"],
)
def test_derivatives_where_there_is_no_bias(function):
    with jax.enable_x64(True):
        h = 1e-6
        forward = (-function(2 * h) + 4 * function(h) - 3 * function(0.0)) / (2 * h)
        np.testing.assert_allclose(jax.grad(function)(0.0), forward, rtol=1e-4)
    assert jax.jvp(function, (0.1,), (1.0,))[1].dtype == jnp.float32
