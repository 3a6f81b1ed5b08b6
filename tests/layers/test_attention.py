"""Attention against flax: values, gradients, masks; and on signals beyond the range of floats."""

from typing import Any

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.layers import Scaled
from jaxgrad.layers._attention import softmax
from jaxgrad.theory import Moments, Tokens


def as_flax(params, heads):
    """The parameters in the shapes of flax, whose kernels have an axis of heads."""
    result = {}
    for name, part in params.items():
        kernel, bias = part["kernel"], part.get("bias")
        shape = (heads, -1, kernel.shape[1]) if name == "output" else (len(kernel), heads, -1)
        part = {"kernel": kernel.reshape(shape)}
        if bias is not None:
            part["bias"] = bias if name == "output" else bias.reshape(heads, -1)
        result["out" if name == "output" else name] = part
    return result


CASES = {
    "one head": (layers.attention(1), (5, 4)),
    "heads": (layers.attention(3, query_variance=4.0, value_variance=0.5), (7, 6)),
    "causal": (layers.attention(2, causal=True, key_variance=9.0), (6, 8)),
    "biases": (layers.attention(2, bias=True, b_variance=0.7), (5, 8)),
    "wide heads": (layers.attention(2, head_features=6, bias=True, b_variance=0.3), (4, 5)),
    "one token": (layers.attention(2), (1, 4)),
    "mask": (layers.attention(2, mask=np.tri(5, k=1) - np.tri(5, k=-3) > 0), (5, 4)),
    "causal mask": (layers.attention(2, causal=True, mask=np.eye(5)[::-1] + np.eye(5) > 0), (5, 4)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_equal_those_of_flax(key, name):
    layer, shape = CASES[name]
    params, state = layers.init(layer, shape, key=key)
    assert state == ()
    x, weights = jax.random.normal(jax.random.fold_in(key, 1), (2, 3, *shape))
    inner = params["query"]["kernel"].shape[1]
    reference: Any = flax.linen.MultiHeadDotProductAttention(
        layer.heads, qkv_features=inner, out_features=shape[1], use_bias=layer.bias
    )
    allowed = np.tri(shape[0], dtype=bool) if layer.causal else np.ones((shape[0],) * 2, bool)
    allowed = allowed if layer.mask is None else allowed & layer.mask

    def ours(params, x):
        out, _ = layers.apply(layer, params, None, x)
        return jnp.sum(jnp.sin(out) * weights), out

    def expected(params, x):
        variables = {"params": as_flax(params, layer.heads)}
        out = reference.apply(variables, x, mask=allowed[None, None])
        return jnp.sum(jnp.sin(out) * weights), out

    differentiate = [jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True)) for f in (ours, expected)]
    results = [f(params, x) for f in differentiate]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


def test_scales_of_logits(key):
    """`1/d` and a factor of the logits are those of `1/sqrt(d)` with other queries."""
    shape, x = (5, 8), jax.random.normal(key, (2, 5, 8))
    params, _ = layers.init(layers.attention(2), shape, key=key)
    base, _ = layers.apply(layers.attention(2), params, None, x)
    scaled = params | {"query": {"kernel": 2 * params["query"]["kernel"]}}  # d = 4
    same, _ = layers.apply(layers.attention(2, scale="1/d"), scaled, None, x)
    np.testing.assert_allclose(same, base, rtol=1e-5, atol=1e-6)
    same, _ = layers.apply(layers.attention(2, logit_scale=0.5), scaled, None, x)
    np.testing.assert_allclose(same, base, rtol=1e-5, atol=1e-6)
    # Without logits each token gets the mean of the values.
    uniform, _ = layers.apply(layers.attention(2, logit_scale=0.0), params, None, x)
    mean = jnp.mean(x, axis=1) @ params["value"]["kernel"] @ params["output"]["kernel"]
    np.testing.assert_allclose(
        uniform, jnp.broadcast_to(mean[:, None], x.shape), rtol=1e-5, atol=1e-5
    )


@pytest.mark.slow
def test_draws_have_the_variances_asked_for(key):
    variances = {"query": 2.0, "key": 0.5, "value": 3.0, "output": 0.25}
    named: dict[str, Any] = {f"{name}_variance": value for name, value in variances.items()}
    layer = layers.attention(2, **named, head_features=40, bias=True, b_variance=4.0)
    params, _ = layers.init(layer, (3, 100), key=key)
    assert list(params) == ["key", "output", "query", "value"]
    for name, part in params.items():
        count, fan_in = part["kernel"].size, len(part["kernel"])
        drawn = np.mean(part["kernel"] ** 2) * fan_in
        np.testing.assert_allclose(drawn, variances[name], rtol=4 * np.sqrt(2 / count))
        np.testing.assert_allclose(np.mean(part["bias"] ** 2), 4, rtol=4 * np.sqrt(2 / 80))
    # They are leaves, so that one program serves all of them.
    assert jax.tree.structure(layer) != jax.tree.structure(layers.attention(2))
    one, other = layers.attention(2, logit_scale=3.0, query_variance=2.0), layers.attention(2)
    assert jax.tree.structure(one) == jax.tree.structure(other)


@pytest.mark.slow
def test_softmax_of_masked_rows():
    logits = jnp.asarray([[1.0, 2.0, 1e30], [5.0, 1.0, 2.0], [-1e30, 3e30, 2e30]])
    allowed = jnp.asarray([[True, True, False], [False, False, False], [True, True, True]])

    def total(logits):
        weights = softmax(logits, allowed)
        return jnp.sum(weights * jnp.arange(9.0).reshape(3, 3)), weights

    (_, weights), slope = jax.value_and_grad(total, has_aux=True)(logits)
    expected = [1 / (1 + np.e), np.e / (1 + np.e), 0]
    np.testing.assert_allclose(weights, [expected, [0, 0, 0], [0, 1, 0]], rtol=1e-6)
    assert weights[0, 2] == 0
    p = expected[0] * expected[1]
    np.testing.assert_allclose(slope, [[-p, p, 0], [0, 0, 0], [0, 0, 0]], rtol=1e-5)


def test_large_logits_select_one_token_in_compiled_programs(key):
    """Compiled, a product is rounded in one place and not in another."""
    product, gain = jax.random.normal(key, (64, 8)), jnp.asarray(1e10)
    weights = jax.jit(lambda product, gain: softmax(product * gain))(product, gain)
    expected = np.eye(8)[np.argmax(product, axis=-1)]
    np.testing.assert_array_equal(weights, expected)


def test_a_masked_token_changes_nothing(key):
    layer = layers.attention(2, causal=True)
    params, _ = layers.init(layer, (6, 4), key=key)
    x = jax.random.normal(key, (2, 6, 4))
    out, _ = layers.apply(layer, params, None, x)
    changed, _ = layers.apply(layer, params, None, x.at[:, 4:].set(1e4))
    np.testing.assert_array_equal(changed[:, :4], out[:, :4])
    # A mask that is traced may leave a token none to attend to.
    mask = jnp.zeros((6, 6), bool)

    def run(mask):
        layer = layers.attention(2, mask=mask)
        return jax.value_and_grad(lambda x: layers.apply(layer, params, None, x)[0].sum())(x)

    value, slope = jax.jit(run)(mask)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@pytest.mark.slow
@pytest.mark.parametrize("log_scale", [-150.0, 150.0])
@pytest.mark.parametrize("biases", [None, 0.0, 1.0])
def test_signals_beyond_the_range_of_floats(key, log_scale, biases):
    """Float32 with a log scale equals float64, which holds the signal itself."""
    layer = layers.attention(2, bias=biases is not None)
    params, _ = layers.init(layer, (5, 4), key=key)
    if biases is not None:
        params = {k: p | {"bias": p["bias"] + biases} for k, p in params.items()}
    value, tangent, cotangent = jax.random.normal(jax.random.fold_in(key, 1), (3, 2, 5, 4))
    logs = [log_scale, log_scale / 2]

    def plain(a):
        return np.asarray(a.value, np.float64) * np.exp(
            np.asarray(a.log_scale, np.float64)[:, None, None]
        )

    @jax.jit
    def run(params):
        scales = jnp.asarray(logs)
        out, derivative = layer.linearize(params, Scaled(value, scales))
        pushed = derivative.push(Scaled(tangent, scales))
        return out, pushed, derivative.pull(Scaled(cotangent, jnp.zeros(2)))[0]

    results = [plain(a) for a in run(params)]
    with jax.enable_x64(True):
        wide = jax.tree.map(
            lambda a: np.asarray(a, np.float64), (params, value, tangent, cotangent)
        )
        params, value, tangent, cotangent = wide
        factor = np.exp(np.asarray(logs))[:, None, None]

        def function(h):
            return layer.apply(params, None, h)[0]

        expected = jax.jvp(function, (value * factor,), (tangent * factor,))
        expected = [*expected, jax.vjp(function, value * factor)[1](cotangent)[0]]
        expected = [np.asarray(array) for array in expected]
    for result, array in zip(results, expected, strict=True):
        size = np.max(np.abs(array), axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(result / size, array / size, rtol=1e-3, atol=1e-3)


def test_errors(key):
    with pytest.raises(ValueError, match="moments must have tokens for attention"):
        layers.attention(2).predict(Moments(0.0))
    with pytest.raises(ValueError, match=r"heads must divide the 5 features .*got 2; pass head_f"):
        layers.init(layers.attention(2), (3, 5), key=key)
    with pytest.raises(ValueError, match=r"shape must be \(tokens, features\).*got \(4,\)"):
        layers.init(layers.attention(2), (4,), key=key)
    with pytest.raises(ValueError, match=r"mask must have shape .*\(3, 3\) here, got \(2, 2\)"):
        layers.init(layers.attention(2, mask=np.ones((2, 2), bool)), (3, 4), key=key)
    with pytest.raises(TypeError, match="mask must be an array of booleans"):
        layers.attention(2, mask=np.ones((2, 2)))
    with pytest.raises(ValueError, match="mask must let each token .*none for token 1"):
        layers.attention(2, mask=np.array([[True, True], [False, False]]))
    with pytest.raises(ValueError, match="mask must let each token .*none for token 0"):
        layers.attention(2, causal=True, mask=np.array([[False, True], [True, False]]))


@pytest.mark.slow
def test_a_masked_layer_is_predicted_and_can_be_differentiated(key):
    """Each token attends to itself and its neighbours on a circle of ten."""
    tokens, width, draws = 10, 64, 300
    distance = np.abs(np.subtract.outer(np.arange(tokens), np.arange(tokens)))
    mask = np.minimum(distance, tokens - distance) <= 1
    layer = layers.attention(1, mask=mask, query_variance=2.0)

    def one(key):
        keys = jax.random.split(key, 3)
        x = jax.random.normal(keys[0], (1, tokens, width))
        params, _ = layers.init(layer, (tokens, width), key=keys[1])
        out, back = jax.vjp(lambda x: layers.apply(layer, params, None, x)[0], x)
        (gradient,) = back(jax.random.normal(keys[2], x.shape))
        mean = jnp.mean(out, axis=1)
        return jnp.mean(out**2), jnp.mean(gradient**2), jnp.mean(mean**2)

    samples = np.array(jax.lax.map(one, jax.random.split(key, draws), batch_size=50))
    means, errors = samples.mean(axis=1), samples.std(axis=1) / np.sqrt(draws)
    inputs = Moments(0.0, gaussian=True, tokens=Tokens(tokens, 1.0, width=width))
    after = propagation.predict(layer, inputs)
    variance, gradient = np.exp(after.log_activation[-1]), np.exp(after.log_gradient[-1])
    tokens_after = layer.predict(inputs).tokens
    assert tokens_after is not None
    gap = tokens_after.gap
    # The mean token has the variance and tokens' mean correlation.
    mean_token = variance * (1 - gap * (tokens - 1) / tokens)
    predicted = np.array([variance, gradient, mean_token])
    assert np.all(np.abs(means - predicted) < 3.5 * errors + 0.003 * predicted)
    assert np.all(errors < 0.02 * means)
    # The mask is part of the structure, so that a layer can be differentiated by its numbers.
    x = jax.random.normal(key, (1, tokens, 4))
    params, _ = layers.init(layer, (tokens, 4), key=key)
    slope = jax.grad(lambda layer: jnp.sum(layers.apply(layer, params, None, x)[0] ** 2))(layer)
    assert float(slope.logit_scale) != 0


@pytest.mark.slow
def test_a_traced_mask_can_be_applied_but_not_predicted():
    moments = Moments(0.0, tokens=Tokens(4, 1.0))

    def predict(mask):
        return layers.attention(1, mask=mask).predict(moments).log_q

    with pytest.raises(ValueError, match="mask must not be traced"):
        jax.jit(predict)(np.ones((4, 4), bool))
    assert float(predict(np.eye(4, dtype=bool))) == pytest.approx(0, abs=1e-9)
