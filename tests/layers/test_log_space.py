"""Every layer on signals whose size is a logarithm, against autodiff in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers
from jaxgrad.layers import Scaled
from jaxgrad.layers._log_space import add

WEIGHTS = {"w_variance": 1.7, "b_variance": 0.4, "bias": True}
CASES = {
    "dense": (layers.dense(5, **WEIGHTS), (6,)),
    "ntk": (layers.dense(5, **WEIGHTS, parameterization="ntk"), (6,)),
    "without biases": (layers.dense(5, w_variance=3.0, parameterization="ntk"), (6,)),
    "convolution": (layers.convolution(3, (3,), **WEIGHTS), (4, 2)),
    "relu": (layers.activation("relu"), (6,)),
    "tanh": (layers.activation("tanh"), (6,)),
    "parametric": (layers.activation("parametric_relu"), (6,)),
    "randomized": (layers.activation("randomized_leaky_relu"), (6,)),
    "gelu of images": (layers.activation("gelu"), (3, 2)),
    "layer norm": (layers.layer_norm(0.3), (6,)),
    "layer norm of images": (layers.layer_norm(0.3), (3, 4)),
    "layer norm without epsilon": (layers.layer_norm(), (6,)),
    "rms norm": (layers.rms_norm(0.3), (3, 4)),
    "gated": (layers.gated(5, "silu", **WEIGHTS), (3, 6)),
    "positions": (layers.positions(), (3, 4)),
    "attention": (layers.attention(2, query_variance=2.0), (3, 4)),
    "attention with biases": (layers.attention(2, bias=True, b_variance=0.5), (3, 4)),
    "batch norm": (layers.batch_norm(0.3), (6,)),
    "batch norm of images": (layers.batch_norm(0.3, spatial=1), (3, 4)),
    "dropout": (layers.dropout(0.4), (6,)),
    "mlp": (layers.mlp(5, 3, "tanh", **WEIGHTS), (6,)),
    "repeat": (layers.repeat(layers.dense(6, w_variance=2.0), 3), (6,)),
    "residual": (
        layers.residual(
            layers.sequential(layers.dense(6, **WEIGHTS), layers.activation("tanh")), -0.7
        ),
        (6,),
    ),
    "trained scales": (
        layers.residual(layers.dense(6, **WEIGHTS), -0.7, skip=1.3, trained=True, per_feature=True),
        (6,),
    ),
    "scale zero": (layers.residual(layers.dense(6), 0.0, trained=True), (6,)),
    "mixed": (
        layers.sequential(
            layers.activation("selu"),
            layers.residual(layers.sequential(layers.batch_norm(0.1), layers.dense(6)), 0.5),
            layers.layer_norm(0.2),
        ),
        (6,),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_equal_those_of_apply(x64, key, name):
    layer, shape = CASES[name]
    params = layer.draw(shape, key=key, dtype=jnp.float64)[0]
    keys = jax.random.split(jax.random.fold_in(key, 1), 4)
    value, change = (jax.random.normal(k, (4, *shape), jnp.float64) for k in keys[:2])

    def function(params, h):
        return layer.apply(params, None, h, key=key)[0]

    @jax.vmap
    def compare(log_scale):
        # Every example at a scale of its own, tangents and cotangents, too.
        scales = log_scale + jnp.asarray([0.0, 0.5, -0.5, 1.0])
        signal, tangent = Scaled(value, scales), Scaled(change, -scales)
        out, derivative = layer.linearize(params, signal, key=key)
        expected, moved = jax.jvp(
            lambda h: function(params, h), (signal.plain(),), (tangent.plain(),)
        )
        cotangent = jax.random.normal(keys[2], expected.shape, jnp.float64)
        cotangent = Scaled(cotangent, 2 * scales)
        gradient, log_square = derivative.pull(cotangent)
        by_params, by_input = jax.vjp(function, params, signal.plain())[1](cotangent.plain())
        kernels = [leaf for leaf in jax.tree.leaves(by_params) if leaf.ndim >= 2]
        square = sum(jnp.sum(kernel**2) for kernel in kernels)
        pushed = derivative.push(tangent)
        return (out.plain(), pushed.plain(), gradient.plain(), jnp.exp(log_square)), (
            expected,
            moved,
            by_input,
            square,
        )

    # Compiled as a whole, two computations may round draws of float32 differently.
    run = compare if name == "randomized" else jax.jit(compare)
    results, expected = run(jnp.asarray([0.0, 3.0, -3.0]))
    gain = 1.7 if name == "ntk" else 3.0 if name == "without biases" else 1.0
    for result, array, atol in zip(results[:3], expected[:3], (1e-12, 1e-11, 1e-11), strict=True):
        np.testing.assert_allclose(result, array, rtol=1e-9, atol=atol)
    np.testing.assert_allclose(results[3], np.divide(expected[3], gain), rtol=1e-9)


EXTREMES = {
    "dense": (layers.dense(5, **WEIGHTS), (6,)),
    "zero biases": (layers.dense(5, w_variance=2.0, bias=True), (6,)),
    "relu": (layers.activation("relu"), (6,)),
    "tanh": (layers.activation("tanh"), (6,)),
    "softplus": (layers.activation("softplus"), (6,)),
    "layer norm": (layers.layer_norm(), (6,)),
    "rms norm": (layers.rms_norm(), (6,)),
    "batch norm": (layers.batch_norm(), (6,)),
    "residual": (layers.residual(layers.dense(6, **WEIGHTS)), (6,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTREMES)
@pytest.mark.parametrize("log_scale", [-150.0, 150.0])
def test_float32_equals_float64_where_only_that_holds_the_signal(key, name, log_scale):
    """Signals of size `exp(150)` and `exp(-150)`, which overflow and underflow in float32."""
    layer, shape = EXTREMES[name]
    if name == "tanh" and log_scale > 0:
        log_scale = 30.0
    params = layer.draw(shape, key=key, dtype=jnp.float32)[0]
    value, tangent, cotangent = jax.random.normal(key, (3, 4, *shape))
    arrays = (params, value, tangent, cotangent)
    *results, log_square = linearized(layer, *arrays, np.float32(log_scale))
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), arrays)
        *expected, squares = differentiated(layer, *wide, np.float64(log_scale))
        expected = [np.asarray(array) for array in expected]
    for scaled, array in zip(results, expected, strict=True):
        scales = np.asarray(scaled.log_scale, np.float64).reshape(4, *[1] * (array.ndim - 1))
        plain = np.asarray(scaled.value, np.float64) * np.exp(scales)
        difference = np.abs(plain - array).max(axis=1)
        size = np.abs(array).max(axis=1)
        # The log scale itself is rounded to float32.
        assert np.all(difference <= 1e-4 * size), (difference, size)
    if squares:
        np.testing.assert_allclose(log_square, np.log(sum(map(float, squares))), rtol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def linearized(layer, params, value, tangent, cotangent, log_scale):
    """Output, tangent, cotangent and the squared gradient of kernels, by `linearize`."""
    signal = Scaled(value, jnp.full(4, log_scale))
    out, derivative = layer.linearize(params, signal, key=None)
    pushed = derivative.push(Scaled(tangent, jnp.zeros(4)))
    cotangent = jnp.resize(cotangent, out.value.shape)
    pulled, log_square = derivative.pull(Scaled(cotangent, jnp.zeros(4)))
    return out, pushed, pulled, log_square


@functools.partial(jax.jit, static_argnums=0)
def differentiated(layer, params, value, tangent, cotangent, log_scale):
    """The same by autodiff of `apply`, with the squares of each kernel's gradient."""

    def function(params, h):
        return layer.apply(params, None, h, key=None)[0]

    h = value * jnp.exp(log_scale)
    expected, moved = jax.jvp(lambda h: function(params, h), (h,), (tangent,))
    cotangent = jnp.resize(cotangent, expected.shape)
    by_params, by_input = jax.vjp(function, params, h)[1](cotangent)
    squares = [jnp.sum(a**2) for a in jax.tree.leaves(by_params) if a.ndim >= 2]
    return expected, moved, by_input, squares


@pytest.mark.slow
def test_saturated_slopes_do_not_underflow(key):
    layer = layers.activation("tanh")
    z = Scaled(jnp.asarray([[1.0, -1.5]]), jnp.asarray([jnp.log(200.0)]))
    _, derivative = layer.linearize({}, z, key=None)
    pushed = derivative.push(Scaled(jnp.ones((1, 2)), jnp.zeros(1)))
    # d tanh(z) = 4 exp(-2 |z|) far out.
    assert np.isclose(
        jnp.log(pushed.value[0, 0]) + pushed.log_scale[0], np.log(4.0) - 400, rtol=1e-4
    )


def test_sums():
    ones = jnp.ones((2, 3))
    small, large = Scaled(ones, jnp.full(2, -500.0)), Scaled(ones, jnp.full(2, 500.0))
    both = add(small, large)
    np.testing.assert_array_equal(both.value, 1.0)
    np.testing.assert_array_equal(both.log_scale, 500.0)
    # A part without weight does not set the scale.
    none = add(small, large, 0.0)
    np.testing.assert_array_equal(none.value, 1.0)
    np.testing.assert_array_equal(none.log_scale, -500.0)
    zero = Scaled(jnp.zeros((2, 3)), jnp.full(2, -jnp.inf))
    assert np.all(np.isfinite(add(zero, zero).value))


def test_normalized_and_shared(key):
    value = jax.random.normal(key, (3, 4)) * jnp.asarray([[1e-3], [1.0], [0.0]])
    signal = Scaled(value, jnp.asarray([400.0, -200.0, 3.0]))
    unit, log_square = signal.normalized()
    np.testing.assert_allclose(jnp.mean(unit.value[:2] ** 2, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(log_square[:2], 2 * unit.log_scale[:2], rtol=1e-5)
    np.testing.assert_allclose(log_square, signal.log_mean_square(), rtol=1e-6)
    assert log_square[2] == -jnp.inf
    shared = unit.shared()
    np.testing.assert_array_equal(shared.log_scale, jnp.max(unit.log_scale))
    np.testing.assert_allclose(shared.value[0], unit.value[0], rtol=1e-6)
