"""Dense layers: draws, parameterizations, biases, initializers."""

import dataclasses

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers, layers
from jaxgrad.theory import Moments

START = Moments(0.0, 0.0, 0.0, None, gaussian=True, fresh=True)


def test_dense_layers_equal_those_of_flax(key):
    x = 3 + 2 * jax.random.normal(key, (6, 4, 5))
    layer = layers.dense(7, w_variance=2.0, b_variance=0.5, bias=True)
    params, _ = layers.init(layer, (4, 5), key=key)
    expected = flax.linen.Dense(7).apply({"params": params}, x)
    np.testing.assert_allclose(layers.apply(layer, params, None, x)[0], expected, rtol=1e-5)


def test_draws_are_those_of_the_initializer(key):
    layer = layers.dense(5, w_variance=1.7, b_variance=0.3, bias=True)
    params, _ = layers.init(layer, (3,), key=key)
    key_kernel, key_bias = jax.random.split(key)
    expected = initializers.lecun()(key_kernel, (3, 5)) * np.sqrt(1.7)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-6)
    np.testing.assert_allclose(params["bias"], initializers.normal(0.3)(key_bias, (5,)), rtol=1e-6)
    # Without biases the kernel stays the same.
    without, _ = layers.init(layers.dense(5, w_variance=1.7), (3,), key=key)
    np.testing.assert_array_equal(without["kernel"], params["kernel"])
    assert set(without) == {"kernel"}


@pytest.mark.parametrize(
    "make",
    [
        lambda **options: layers.dense(5, **options),
        lambda **options: layers.convolution(5, (3,), **options),
        lambda **options: layers.mlp(5, 4, "parametric_relu", out_features=3, **options),
        lambda **options: layers.mlp(5, 4, bias_init=initializers.uniform(1.0), **options),
    ],
    ids=["dense", "convolution", "mlp", "bias_init"],
)
def test_ntk_and_standard_give_the_same_outputs(key, make):
    layer = make(bias=True, w_variance=1.7, b_variance=0.3)
    shape = (5,) if isinstance(layer, layers.Mlp) else (6, 5)
    x = jax.random.normal(key, (4, *shape))

    def outputs(parameterization):
        layer = make(bias=True, w_variance=1.7, b_variance=0.3, parameterization=parameterization)
        params, _ = layers.init(layer, shape, key=key)
        return layers.apply(layer, params, None, x)[0]

    np.testing.assert_allclose(outputs("ntk"), outputs("standard"), rtol=1e-5, atol=1e-6)


def test_ntk_parameters_serve_all_variances_with_one_product(key):
    def layer(variance):
        options = {"bias": True, "b_variance": variance, "parameterization": "ntk"}
        return layers.mlp(8, 3, "tanh", w_variance=variance, **options)

    params, _ = layers.init(layer(1.0), (8,), key=key)
    x = jax.random.normal(key, (4, 8))
    variances = jnp.asarray([0.5, 1.0, 3.0])

    def run(variance):
        return layers.apply(layer(variance), params, None, x)[0]

    mapped = jax.vmap(run)(variances)
    for variance, out in zip((0.5, 1.0, 3.0), mapped, strict=True):
        standard = layers.mlp(8, 3, bias=True, w_variance=variance, b_variance=variance)
        drawn, _ = layers.init(standard, (8,), key=key)
        np.testing.assert_allclose(out, layers.apply(standard, drawn, None, x)[0], rtol=1e-4)
    # The first product has no axis of variances: `dot_general` of [4, 8] and [8, 8].
    first = str(jax.make_jaxpr(jax.vmap(run))(variances)).split("dot_general")[0].splitlines()[-1]
    assert "f32[4,8]" in first


@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
@pytest.mark.parametrize("variance", [0.0, 0.7])
def test_initial_variances(key, parameterization, variance):
    layer = layers.convolution(
        400, bias=True, w_variance=1.7, b_variance=variance, parameterization=parameterization
    )
    params, _ = layers.init(layer, (5, 5, 30), key=key)
    w_variance, b_variance = (1.7, variance) if parameterization == "standard" else (1.0, 1.0)
    assert params["kernel"].shape == (3, 3, 30, 400)
    size = params["kernel"].size
    assert abs(params["kernel"].var() * 270 / w_variance - 1) < 3 * np.sqrt(2 / size)
    assert abs(params["bias"].var() - b_variance) <= 3 * np.sqrt(2 / 400) * b_variance


def test_any_initializer_serves(key):
    plain = jax.nn.initializers.normal(0.5)
    layer = layers.dense(4, w_variance=4.0, kernel_init=plain)
    params, _ = layers.init(layer, (3,), key=key)
    expected = 2 * plain(jax.random.split(key)[0], (3, 4), jnp.float32)
    np.testing.assert_allclose(params["kernel"], expected, rtol=1e-6)
    orthogonal = layers.dense(4, kernel_init=initializers.orthogonal())
    params, _ = layers.init(orthogonal, (4,), key=key)
    np.testing.assert_allclose(params["kernel"] @ params["kernel"].T, np.eye(4), atol=1e-6)


@pytest.mark.slow
def test_variances_may_be_traced(key):
    def block(w_variance):
        weights = layers.dense(6, w_variance=w_variance, b_variance=w_variance, bias=True)
        return layers.residual(layers.sequential(layers.activation("relu"), weights), w_variance)

    values = jnp.asarray([0.0, 0.5, 2.0])

    def draw(w_variance):
        return layers.init(layers.repeat(block(w_variance), 3), (6,), key=key)[0]

    together = jax.jit(jax.vmap(draw))(values)
    for i, value in enumerate((0.0, 0.5, 2.0)):
        one = draw(value)
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-6), together, one
        )
    predicted = jax.jit(jax.vmap(lambda w: block(w).predict(START).log_q))(values)
    w = np.asarray(values)
    np.testing.assert_allclose(predicted, np.log(1 + w**2 * (w / 2 + w)), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_derivatives_at_zero():
    log_q = np.asarray([0.0, -2000.0, 2000.0])
    start = dataclasses.replace(START, log_q=log_q, log_gradient=-log_q, gap=np.full(3, 0.5))

    def scaled(scale):
        branch = layers.sequential(layers.dense(4, w_variance=2.0), layers.activation("linear"))
        result = layers.residual(branch, scale).predict(start)
        return jnp.stack([result.log_q, result.log_gradient, result.gap])

    def biased(b_variance):
        layer = layers.dense(4, w_variance=2.0, b_variance=b_variance, bias=True)
        result = layer.predict(start)
        return jnp.stack([result.log_q, result.gap])

    with jax.enable_x64(True):
        value, slope = jax.jit(lambda s: jax.jvp(scaled, (s,), (1.0,)))(0.0)
        np.testing.assert_array_equal(value, [log_q, -log_q, np.full(3, 0.5)])
        np.testing.assert_array_equal(slope, 0.0)
        value, slope = jax.jit(lambda b: jax.jvp(biased, (b,), (1.0,)))(0.0)
        np.testing.assert_allclose(value[0], np.log(2.0) + log_q, rtol=1e-12)
        np.testing.assert_allclose(value[1], 0.5, rtol=1e-12)
        assert np.all(np.isfinite(slope))
        np.testing.assert_allclose(slope[:, 0], [0.5, -0.25], rtol=1e-12)


@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_predictions_do_not_depend_on_the_parameterization(parameterization):
    start = dataclasses.replace(START, log_q=0.3, log_gradient=0.2, gap=0.5)
    layer = layers.dense(
        3, w_variance=1.5, b_variance=0.4, bias=True, parameterization=parameterization
    )
    result = layer.predict(start)
    q = 1.5 * np.exp(0.3) + 0.4
    np.testing.assert_allclose(np.exp(result.log_q), q, rtol=1e-12)
    np.testing.assert_allclose(result.gap * q, 1.5 * np.exp(0.3) * 0.5, rtol=1e-12)
    np.testing.assert_allclose(result.log_gradient, 0.2 + np.log(1.5), rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"w_variance": -1.0}, ValueError, "w_variance must be at least 0, got -1"),
        ({"w_variance": np.nan}, ValueError, "w_variance must be finite, got nan"),
        ({"w_variance": np.ones(2)}, ValueError, r"one number, got shape \(2,\); use jax.vmap"),
        ({"b_variance": -1.0, "bias": True}, ValueError, "b_variance must be at least 0"),
        ({"b_variance": "a"}, TypeError, "b_variance must be a number, got 'a'"),
        ({"b_variance": 0.5}, ValueError, "b_variance is for layers with biases.*pass bias=True"),
        ({"bias": 1.0}, TypeError, "bias must be True or False, got 1.0"),
        ({"kernel_init": 0.5}, TypeError, "kernel_init must be a function of"),
        ({"parameterization": "mup"}, ValueError, "parameterization must be one of standard, ntk"),
    ],
)
def test_errors(options, error, match):
    with pytest.raises(error, match=match):
        layers.dense(**({"features": 3} | options))


def test_a_traced_b_variance_needs_biases():
    with pytest.raises(ValueError, match="pass bias=True"):
        jax.jit(lambda b: layers.dense(3, b_variance=b).w_variance)(0.0)


def test_an_initializer_of_another_shape_is_refused(key):
    layer = layers.dense(3, kernel_init=lambda key, shape, dtype: jnp.ones((2, 2), dtype))
    message = r"kernel_init must return the shape it is asked for, \(4, 3\), got \(2, 2\)"
    with pytest.raises(ValueError, match=message):
        layers.init(layer, (4,), key=key)
