"""Norms of layers and statistics of units, against NumPy and the library's signal propagation."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import activations, layers, propagation, training
from jaxgrad.training import monitoring
from tests.tolerances import rtol

STACKED = "^hidden/"
NETWORK = layers.mlp(7, 4, out_features=3)


def preactivations(params, x, activation):
    """The arguments of the activations of a network without biases, `[layers, batch, units]`."""
    h, z = x, []
    for kernel in (params["first"]["kernel"], *params["hidden"]["kernel"]):
        z.append(h @ kernel)
        h = activations.get(activation)(z[-1])
    return jnp.stack(z)


def seen(params, gradient=None, updates=None):
    def scaled(factor):
        return jax.tree.map(lambda a: a * factor, params)

    trees = {"gradient": gradient or scaled(0.5), "updates": updates or scaled(-0.01)}
    return SimpleNamespace(params=params, **trees)


@pytest.fixture
def params(key):
    return layers.init(NETWORK, (5,), key=key)[0]


@pytest.mark.slow
def test_norms_are_those_of_each_layer(params):
    norms = monitoring.layer_norms(seen(params), stacked=STACKED)
    kernels = [params["first"]["kernel"], *params["hidden"]["kernel"], params["readout"]["kernel"]]
    expected = [np.log(np.linalg.norm(np.asarray(kernel, np.float64))) for kernel in kernels]
    np.testing.assert_allclose(norms.log_weight, expected, rtol=rtol(jnp.float32))
    np.testing.assert_allclose(norms.log_gradient, np.add(expected, np.log(0.5)), atol=1e-6)
    np.testing.assert_allclose(norms.log_ratio, np.log(0.01), rtol=1e-5)
    assert monitoring.layer_names(params, stacked=STACKED) == (
        "first/kernel",
        *(f"hidden/kernel[{index}]" for index in range(3)),
        "readout/kernel",
    )
    # Not told of the stack, it is one layer.
    assert monitoring.layer_norms(seen(params)).log_weight.shape == (3,)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size", [1e-37, 1e-30, 1.0, 1e30])
def test_norms_neither_overflow_nor_underflow(size, dtype):
    w = {"w": jnp.full((10, 10), size, dtype)}
    norms = monitoring.layer_norms(seen(w, w, w))
    expected = np.log(float(w["w"][0, 0])) + np.log(10)
    np.testing.assert_allclose(norms.log_gradient, [expected], atol=1e-5 * abs(expected) + 1e-5)


def test_norms_of_zero_and_of_no_numbers_say_so():
    bad = {
        "a_0": {"w": jnp.zeros(3)},
        "a_1": {"w": jnp.asarray([1.0, jnp.inf, 1.0])},
        "a_2": {"w": jnp.asarray([1.0, jnp.nan, jnp.inf])},
    }
    result = monitoring.layer_norms(seen(bad, bad, bad)).log_gradient
    np.testing.assert_array_equal(result, [-np.inf, np.inf, np.nan])


@pytest.mark.slow
def test_layers_go_from_input_to_output():
    flax = {f"Dense_{index}": {"kernel": jnp.full((2, 2), index + 1.0)} for index in range(12)}
    assert monitoring.layer_names(flax) == tuple(f"Dense_{i}/kernel" for i in range(12))
    norms = monitoring.layer_norms(seen(flax))
    np.testing.assert_allclose(norms.log_weight, np.log(2 * np.arange(1, 13)), rtol=1e-6)


@pytest.mark.slow
def test_copies_of_a_block_come_one_after_the_other(key):
    block = layers.sequential(layers.dense(6), layers.activation("relu"), layers.dense(6))
    net = layers.sequential(layers.dense(6), layers.repeat(block, 3), layers.dense(2))
    params, _ = layers.init(net, (4,), key=key)
    names = monitoring.layer_names(params, stacked="^1/")
    inner = [f"1/{part}/kernel[{copy}]" for copy in range(3) for part in (0, 2)]
    assert names == ("0/kernel", *inner, "2/kernel")
    norms = monitoring.layer_norms(seen(params), stacked="^1/")
    expected = [params[1][part]["kernel"][copy] for copy in range(3) for part in (0, 2)]
    expected = [params[0]["kernel"], *expected, params[2]["kernel"]]
    np.testing.assert_allclose(
        norms.log_weight, [np.log(np.linalg.norm(a)) for a in expected], rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "selu"])
def test_units_are_those_of_signal_propagation(key, activation):
    network = layers.mlp(7, 4, activation, w_variance=30.0)
    params, _ = layers.init(network, (5,), key=key)
    x = jax.random.normal(key, (4, 5), jnp.float32)
    result = monitoring.units(preactivations(params, x, activation), activation)
    signal = propagation.probe(network, params, x, key=key)
    np.testing.assert_allclose(result.log_preactivation, signal.log_preactivation, atol=1e-4)
    np.testing.assert_allclose(result.dead, signal.dead, atol=1e-6)
    np.testing.assert_allclose(result.saturated, signal.saturated, atol=1e-6)
    one_sided = activation in ("relu", "selu")
    assert np.all(result.saturated_above == 0) == one_sided
    assert np.any(result.saturated > 0)
    assert np.any(result.dead > 0) >= (activation == "relu")


@pytest.mark.slow
def test_a_leaky_slope_counts_as_flat_below_the_threshold_only():
    z = -jnp.ones((1, 8, 4))
    assert monitoring.units(z, "leaky_relu").dead == 1
    assert monitoring.units(z, "leaky_relu", saturation=0.005).dead == 0


@pytest.mark.slow
def test_counts_are_numpys_and_nothing_is_dropped(key):
    z = np.array(3 * jax.random.normal(key, (2, 30, 8), jnp.float32))
    z[1, :3, 0] = np.nan, np.inf, -np.inf
    edges = (-2.0, -0.5, 1.0)
    result = jax.jit(lambda z: monitoring.units(z, "tanh", edges=edges))(z)
    for layer in range(2):
        finite = z[layer][np.isfinite(z[layer])]
        expected, _ = np.histogram(finite, [-np.inf, *edges, np.inf])
        np.testing.assert_array_equal(result.counts[layer], expected)
    np.testing.assert_array_equal(result.not_finite, [0, 3])
    np.testing.assert_array_equal(result.counts.sum(axis=1) + result.not_finite, 240)
    listed = monitoring.units([z[0], z[1]], "tanh", edges=edges)
    for one, other in zip(result, listed, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_run_keeps_the_norms_of_every_step(key, params):
    x = jax.random.normal(key, (16, 5), jnp.float32)

    def loss(params, state, batch, key):
        return jnp.mean(layers.apply(NETWORK, params, None, batch)[0] ** 2), state

    @jax.jit
    @jax.vmap
    def run(rate):
        return training.fit(
            loss,
            params,
            optax.sgd(rate),
            x,
            key=key,
            steps=3,
            batch_size=8,
            monitor=lambda step: monitoring.layer_norms(step, stacked=STACKED),
        )

    trace = run(jnp.asarray([0.1, 0.2])).trace
    assert trace.log_gradient.shape == (2, 3, 5)
    rates = np.asarray([0.1, 0.2])[:, None, None]
    np.testing.assert_allclose(
        trace.log_update - trace.log_gradient, np.broadcast_to(np.log(rates), (2, 3, 5)), rtol=1e-4
    )


def test_bad_arguments_are_named(params):
    step = seen(params)
    with pytest.raises(ValueError, match="where must select"):
        monitoring.layer_norms(step, where="nothing")
    with pytest.raises(ValueError, match="stacked must match the path"):
        monitoring.layer_norms(step, stacked="^blocks/")
    with pytest.raises(ValueError, match="one leading axis of layers"):
        monitoring.layer_norms(step, where=".", stacked="(?=kernel)")
    with pytest.raises(TypeError, match="stacked must be a regular expression"):
        monitoring.layer_norms(step, stacked=3)  # type: ignore
    for z in (jnp.ones(3), [jnp.ones(3)], [], jnp.ones((2, 0, 3))):
        with pytest.raises(ValueError, match="z must be"):
            monitoring.units(z, "tanh")
    for z in (jnp.ones((1, 2, 3), int), [jnp.ones((2, 3), int)]):
        with pytest.raises(TypeError, match="z must be floating point, got int"):
            monitoring.units(z, "tanh")
    z = jnp.ones((1, 2, 3))
    with pytest.raises(TypeError, match="edges must be known"):
        jax.jit(lambda edges: monitoring.units(z, "tanh", edges=edges))(jnp.ones(2))
    with pytest.raises(ValueError, match="edges must have shape .* with 1 or more numbers"):
        monitoring.units(z, "tanh", edges=())
    for edges in ((1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="edges must be increasing"):
            monitoring.units(z, "tanh", edges=edges)
    with pytest.raises(ValueError, match="saturation must be"):
        monitoring.units(z, "tanh", saturation=-1.0)
