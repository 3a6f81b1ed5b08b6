import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from jaxgrad import activations, layers, propagation
from jaxgrad.theory import Moments
from jaxgrad.theory.finite_width import (
    alive_probability,
    critical_w_variance,
    gradient_law,
    layer_law,
)
from tests.tolerances import within_errors

WIDTHS = [1, 2, 5, 8, 64, 1000]
DEPTH = 10


@pytest.mark.slow
@pytest.mark.parametrize("width", [*WIDTHS, 10**6])
def test_linear_layer_is_log_chi_square(width):
    law = layer_law("linear", 0.3, 1.3, width)
    assert law.mean_log.dtype == np.float64
    mean = special.digamma(width / 2) + np.log(2 * 1.3 / width)
    np.testing.assert_allclose(law.mean_log, mean, rtol=0, atol=1e-13)
    np.testing.assert_allclose(law.var_log, special.polygamma(1, width / 2), rtol=1e-7)
    np.testing.assert_allclose(law.log_mean, np.log(1.3), rtol=1e-12)
    np.testing.assert_allclose(law.log_spread, np.log1p(2 / width), rtol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_relu_layer_is_a_mixture_of_log_chi_squares(width):
    law = layer_law("relu", 7.0, 2.0, width)
    on = np.arange(1, width + 1)
    share = stats.binom.pmf(on, width, 0.5)
    share /= share.sum()
    logs = special.digamma(on / 2) + np.log(4 / width)
    mean = share @ logs
    var = share @ (special.polygamma(1, on / 2) + (logs - mean) ** 2)
    np.testing.assert_allclose(law.mean_log, mean, rtol=0, atol=1e-13)
    np.testing.assert_allclose(law.var_log, var, rtol=1e-9)
    if width == 1000:
        assert float(law.mean_log) * width == pytest.approx(-2.5, abs=0.02)
        assert float(law.var_log) * width == pytest.approx(5, abs=0.03)


@pytest.mark.parametrize(
    ("activation", "k"),
    [("relu", 5), ("linear", 2), (activations.leaky_relu(0.2), 6 * 1.0016 / 1.04**2 - 1)],
)
def test_spread_over_networks_has_a_closed_form(activation, k):
    law = layer_law(activation, 1.0, 1.0, 32)
    np.testing.assert_allclose(20 * law.log_spread, 20 * np.log1p(k / 32), rtol=1e-10)


def test_leaky_relu_layer_is_a_mixture_of_two_chi_squares():
    # The mean of log(a X + b Y) for chi-squares of 2 and 4 degrees, by brute force over a grid.
    law = layer_law(activations.leaky_relu(0.5), 1.0, 2 / 1.25, 2)
    u = (np.arange(20_000) + 0.5) / 20_000
    e = -2 * np.log(u)  # chi-square of 2 degrees
    angle = np.cos(np.pi * (np.arange(2000) + 0.5) / 2000) ** 2
    both = np.log(e).mean()
    # X + Y = e in all three cases; slopes are both 1, both 1/2, or mixed with a Beta(1/2, 1/2).
    mixed = np.log(angle + 0.25 * (1 - angle))
    shares = np.array([0.25, 0.25, 0.5])
    means = np.array([0.0, np.log(0.25), mixed.mean()])
    expected = both + shares @ means + np.log(2 / 1.25 / 2)
    assert float(law.mean_log) == pytest.approx(expected, abs=1e-4)
    var = np.log(e).var() + shares @ np.array([0, np.log(0.25) ** 2, (mixed**2).mean()])
    assert float(law.var_log) == pytest.approx(var - (shares @ means) ** 2, abs=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "width"), [("tanh", 8), ("gelu", 8), ("randomized_leaky_relu", 40)]
)
def test_layer_law_against_simulation(activation, width):
    phi = activations.get(activation)
    rng = np.random.default_rng(width)
    z, g = rng.standard_normal((2, 40_000, width))
    x = jnp.asarray(1.3 * z)
    draws = {"key": jax.random.key(0)} if phi.randomized else {}
    _, slope = jax.jvp(lambda x: phi(x, **draws), (x,), (jnp.ones_like(x),))
    logs = np.log((np.asarray(slope, np.float64) ** 2 * g**2).mean(axis=1))
    law = layer_law(activation, 1.69, 1.0, width)
    within_errors(logs, law.mean_log)
    within_errors((logs - logs.mean()) ** 2, law.var_log)


def test_wide_layers_follow_the_expansion():
    width = 1e5
    law = layer_law("tanh", 0.8, 1.0, width)
    k = width * np.expm1(law.log_spread)
    assert float(width * law.var_log) == pytest.approx(k, rel=1e-3)
    assert float(width * (law.mean_log - law.log_mean)) == pytest.approx(-k / 2, rel=1e-3)


def simulated(activation, w_variance, b_variance, width, seeds):
    """Logs of squared gradients of drawn networks, each for one input and one tangent."""
    x = jnp.ones((1, 4))
    network = layers.mlp(
        width, DEPTH, activation, w_variance=w_variance, b_variance=b_variance, bias=True
    )

    def one(key):
        key_params, key_probe = jax.random.split(key)
        params, _ = layers.init(network, (4,), key=key_params)
        return propagation.probe(network, params, x, key=key_probe).log_gradient

    keys = jax.random.split(jax.random.key(11), seeds)
    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(keys), np.float64)


@pytest.mark.slow
def test_gradient_law_against_networks():
    logs = simulated("tanh", 1.760955, 0.05, 32, 400)
    law = gradient_law("tanh", DEPTH, 1.760955, 0.05, width=32)
    within_errors(logs, law.mean_log)
    within_errors((logs - logs.mean(axis=0)) ** 2, law.var_log)


def reduced(activation, w_variance, b_variance, width, draws, input_square):
    """The same law from its sufficient statistics: two lengths and the product of both."""
    phi = activations.get(activation)

    def one(key):
        def step(carry, key):
            q, product, log_gradient = carry
            z, g = jax.random.normal(key, (2, width))
            z = jnp.sqrt(q) * z
            s = product / q * z + jnp.sqrt(1 - product**2 / q) * g
            h, slope = jax.jvp(phi, (z,), (jnp.ones_like(z),))
            t = slope * s
            growth = jnp.mean(t * t)
            log_gradient = log_gradient + jnp.log(growth)
            q = w_variance * jnp.mean(h * h) + b_variance
            product = jnp.sqrt(w_variance / growth) * jnp.mean(h * t)
            return (q, product, log_gradient + jnp.log(w_variance)), log_gradient

        start = (w_variance * input_square + b_variance, 0.0, 0.0)
        return jax.lax.scan(step, start, jax.random.split(key, DEPTH))[1]

    keys = jax.random.split(jax.random.key(3), draws)
    every = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=500))(keys)
    return np.asarray(every, np.float64)


@pytest.mark.parametrize(
    ("activation", "w_variance", "b_variance", "input_square", "width", "draws"),
    [
        ("tanh", 1.3, 0.05, 3.0, 64, 10_000),
        pytest.param("tanh", 1.5, 0.0, 0.1, 128, 15_000, marks=pytest.mark.slow),
        # Second-order terms are larger where the length is nearly unstable.
        pytest.param("gelu", 1.5, 0.3, 1.0, 400, 2000, marks=pytest.mark.slow),
    ],
)
def test_gradient_law_has_every_term_of_first_order(
    activation, w_variance, b_variance, input_square, width, draws
):
    logs = reduced(activation, w_variance, b_variance, width, draws, input_square)
    law = gradient_law(
        activation, DEPTH, w_variance, b_variance, width=width, input_square=input_square
    )
    within_errors(logs, law.mean_log)
    within_errors((logs - logs.mean(axis=0)) ** 2, law.var_log)
    within_errors(np.exp(logs - np.asarray(law.log_mean)), 1.0)


def test_gradient_law_tends_to_infinite_width():
    law = gradient_law("tanh", DEPTH, 1.8, 0.1, width=1e9, input_square=2.0)
    network = layers.mlp(1, DEPTH, "tanh", w_variance=1.8, b_variance=0.1, bias=True)
    wide = propagation.predict(network, Moments(log_q=np.log(2.0)))
    for found in (law.log_mean, law.mean_log):
        np.testing.assert_allclose(found, wide.log_gradient, atol=1e-6)
    assert np.all(law.var_log < 1e-6)


def test_homogeneous_gradient_law_is_the_layers_sum():
    law = gradient_law("relu", DEPTH, 1.9, 0.3, width=10)
    layer = layer_law("relu", 1.0, 1.9, 10)
    depths = np.arange(1, DEPTH + 1)
    np.testing.assert_allclose(law.mean_log + np.log(1.9), depths * layer.mean_log, rtol=1e-11)
    np.testing.assert_allclose(law.var_log, depths * layer.var_log, rtol=1e-11)
    np.testing.assert_allclose(law.log_mean + np.log(1.9), depths * layer.log_mean, atol=1e-11)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_critical_variance_of_the_typical_network(activation):
    w_variance = critical_w_variance(activation, 0.7, 20)
    assert w_variance.dtype == np.float64
    assert abs(layer_law(activation, 0.7, w_variance, 20).mean_log) < 1e-12
    limit = np.exp(-layer_law(activation, 0.7, 1.0, 20).log_mean)
    assert w_variance > limit
    np.testing.assert_allclose(critical_w_variance(activation, 0.7, 1e9), limit, rtol=1e-7)


def test_alive_probability(key):
    assert float(alive_probability(3, 10)) == pytest.approx(0.26308, abs=5e-6)
    np.testing.assert_allclose(alive_probability([1, 60], 2), [0.25, 1 - 2 * 2.0**-60])

    network = layers.mlp(3, 10, "relu")

    def alive(key):
        params, state = layers.init(network, (3,), key=key)
        return jnp.any(layers.apply(network, params, state, jnp.ones((1, 3)))[0] > 0)

    keys = jax.random.split(key, 4000)
    within_errors(jax.jit(lambda k: jax.lax.map(alive, k, batch_size=500))(keys), 0.26308)


@pytest.mark.slow
def test_transforms():
    def mean_log(q, width):
        return layer_law("tanh", q, 1.5, width).mean_log

    both = jax.jit(jax.vmap(jax.value_and_grad(mean_log), (None, 0)))
    values, slopes = both(0.8, jnp.asarray([16.0, 64.0]))
    for width, value, slope in zip((16, 64), values, slopes, strict=True):
        assert float(value) == pytest.approx(float(mean_log(0.8, width)), rel=1e-5)
        difference = (mean_log(0.8 + 1e-4, width) - mean_log(0.8 - 1e-4, width)) / 2e-4
        assert float(slope) == pytest.approx(float(difference), rel=1e-4)

    def last(w_variance):
        return gradient_law("tanh", DEPTH, w_variance, 0.1, width=32).mean_log[-1]

    _, slope = jax.jvp(last, (jnp.float32(1.5),), (jnp.float32(1.0),))
    difference = (last(1.5 + 1e-4) - last(1.5 - 1e-4)) / 2e-4
    assert float(slope) == pytest.approx(float(difference), rel=1e-4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: layer_law("relu", 0.0, 2.0, 8), "q must be greater than 0, got 0"),
        (lambda: layer_law("relu", 1.0, -2.0, 8), "w_variance must be at least 0, got -2"),
        (lambda: layer_law("relu", 1.0, 2.0, 0), "width must be at least 1, got 0"),
        (lambda: layer_law("rely", 1.0, 2.0, 8), "activation must be one of"),
        (lambda: layer_law("relu", np.ones(2), 2.0, 8), "q must be one number, got shape"),
        (lambda: critical_w_variance("relu", 1.0, "wide"), "width must be a number"),
        (lambda: alive_probability(0, 3), "width must be finite and at least 1"),
        (lambda: alive_probability(3, -1), "depth must be finite and at least 0"),
        (lambda: gradient_law("relu", 0, 2.0, width=8), "depth must be at least 1, got 0"),
        (lambda: gradient_law("relu", 3, 2.0, -0.1, width=8), "b_variance must be .*at least 0"),
        (lambda: gradient_law("relu", 3, 2.0, width=0.5), "width must be at least 1"),
        (
            lambda: gradient_law("relu", 3, 2.0, width=8, input_square=0.0),
            "input_square must be greater than 0",
        ),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
