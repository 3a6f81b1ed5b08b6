"""Placements of norms, recipes of residual scales, and whole transformers."""

from typing import Any, cast

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad._numerics import log_mean_exp
from jaxgrad.theory import Moments
from tests.layers.test_attention import as_flax

NORM = layers.layer_norm(1e-6)


def as_norm(params):
    return {"params": {"scale": params["scale"], "bias": params["shift"]}}


@pytest.mark.parametrize("placement", ["pre", "post", "sandwich", "none"])
def test_blocks_place_their_norms(key, placement):
    branch, x = layers.dense(4), jax.random.normal(key, (3, 5, 4))
    layer = layers.block(branch, layers.rms_norm(), placement, scale=0.5, skip=2.0)
    params, _ = layers.init(layer, (5, 4), key=key)
    out, _ = layers.apply(layer, params, None, x)
    kernel = next(leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 2)

    def norm(h):
        return h / jnp.sqrt(jnp.mean(h**2, axis=-1, keepdims=True))

    expected = {
        "pre": lambda: 2 * x + 0.5 * norm(x) @ kernel,
        "post": lambda: norm(2 * x + 0.5 * x @ kernel),
        "sandwich": lambda: 2 * x + 0.5 * norm(norm(x) @ kernel),
        "none": lambda: 2 * x + 0.5 * x @ kernel,
    }[placement]()
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_predictions_of_placements_in_closed_form():
    """With 0.5 of the variance in the branch: `q`, and the growth of the squared gradient."""
    branch, start = layers.dense(4, w_variance=0.5), Moments(np.log(3.0))
    expected: dict[Any, Any] = {
        "pre": (4 * 3 + 0.25 * 0.5, 4 + 0.25 * 0.5 / 3),
        "post": (1.0, (4 + 0.25 * 0.5) / (3 * (4 + 0.25 * 0.5))),
        "sandwich": (4 * 3 + 0.25, 4 + 0.25 / 3),
        "none": (3 * (4 + 0.25 * 0.5), 4 + 0.25 * 0.5),
    }
    for placement, (q, growth) in expected.items():
        layer = layers.block(branch, layers.rms_norm(), placement, scale=0.5, skip=2.0)
        result = layer.predict(start)
        np.testing.assert_allclose(np.exp(result.log_q), q, rtol=1e-12)
        np.testing.assert_allclose(np.exp(result.log_gradient), growth, rtol=1e-12)


def test_recipes():
    def recipe(name, branches, **options):
        return layers.residual_scale(name, branches, **options)

    np.testing.assert_allclose(recipe("1/sqrt(L)", 16).scale, 0.25)
    np.testing.assert_allclose(recipe("1/L", 16).scale, 0.0625)
    assert recipe("1/L", 16)[1:] == (None, False, 1.0, 1.0)
    # DeepNet of N = 18 layers, 36 branches: alpha = 36^(1/4), beta = 144^(-1/4).
    deep = recipe("deepnorm", 36)
    np.testing.assert_allclose(deep.skip, (2 * 18) ** 0.25)
    np.testing.assert_allclose(np.sqrt(deep.w_variance), (8 * 18) ** -0.25)
    assert (deep.scale, deep.trained, deep.last_variance) == (1.0, False, deep.w_variance)
    assert recipe("skipinit", 5)[:3] == (0.0, None, True)
    # Fixup multiplies weights by L^(-1 / (2 m - 2)), which is L^(-1/4) for three layers.
    three = recipe("fixup", 16, layers=3)
    np.testing.assert_allclose(np.sqrt(three.w_variance), 0.5)
    assert (three.scale, three.trained, three.last_variance) == (1.0, True, 0.0)


@pytest.mark.parametrize("per_feature", [False, True])
def test_a_trained_scale_is_a_parameter(key, per_feature):
    branch = layers.sequential(layers.dense(4), layers.activation("tanh"))
    layer = layers.residual(branch, 0.3, trained=True, per_feature=per_feature)
    params, _ = layers.init(layer, (4,), key=key)
    assert params["scale"].shape == ((4,) if per_feature else ())
    np.testing.assert_allclose(params["scale"], 0.3)
    x = jax.random.normal(key, (6, 4))
    fixed, _ = layers.apply(layers.residual(branch, 0.3), params["branch"], None, x)
    np.testing.assert_allclose(layers.apply(layer, params, None, x)[0], fixed, rtol=1e-6)
    scale = params["scale"] + 0.1 * jnp.arange(params["scale"].size).reshape(params["scale"].shape)

    def loss(scale):
        return layers.apply(layer, params | {"scale": scale}, None, x)[0].sum()

    added = jnp.tanh(x @ params["branch"][0]["kernel"])
    expected = jnp.sum(added, axis=0) if per_feature else jnp.sum(added)
    np.testing.assert_allclose(jax.grad(loss)(scale), expected, rtol=1e-5, atol=1e-5)
    # The prediction is that of the first scale.
    start = Moments(0.3)
    predicted = layer.predict(start).log_gradient
    assert predicted == layers.residual(branch, 0.3).predict(start).log_gradient


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["pre", "post", "sandwich"])
def test_a_transformer_equals_one_written_with_flax(key, placement):
    network = layers.transformer(3, 8, 2, placement=placement, causal=True, bias=True, scale=0.7)
    params, _ = layers.init(network, (5, 8), key=key)
    params = jax.tree.map(lambda a: a + 0.1, params)
    x = jax.random.normal(key, (2, 5, 8))
    mixing: Any = flax.linen.MultiHeadDotProductAttention(2)
    norm: Any = flax.linen.LayerNorm(epsilon=1e-6)
    mask = flax.linen.make_causal_mask(x[..., 0])

    def attend(params, h):
        return mixing.apply({"params": as_flax(params, 2)}, h, mask=mask)

    def feed(params, h):
        h = flax.linen.gelu(h @ params[0]["kernel"] + params[0]["bias"][None, None], False)
        return h @ params[2]["kernel"] + params[2]["bias"][None, None]

    def placed(function, params, h):
        if placement == "post":
            branch, after = params
            return norm.apply(as_norm(after), h + 0.7 * function(branch, h))
        before, branch, *after = params
        added = function(branch, norm.apply(as_norm(before), h))
        return h + 0.7 * (norm.apply(as_norm(after[0]), added) if after else added)

    def expected(params, h):
        for i in range(3):
            first, second = jax.tree.map(lambda a, i=i: a[i], params)
            h = placed(feed, second, placed(attend, first, h))
        return h

    def ours(params, h):
        return layers.apply(network, params, None, h)[0]

    def differentiated(function):
        def loss(params, x):
            out = function(params, x)
            return jnp.mean(jnp.sin(3 * out)), out

        return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, x)

    results = [differentiated(function) for function in (ours, expected)]
    chex.assert_trees_all_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("placement", "logit_scale"),
    [
        pytest.param("pre", 1.0, marks=pytest.mark.slow),
        pytest.param("post", 1.0, marks=pytest.mark.slow),
        ("none", 1.0),
        pytest.param("none", 0.0, marks=pytest.mark.slow),
    ],
)
def test_depth_64_is_measured_without_overflow(key, placement, logit_scale):
    """Large weights, for which an unnormalized signal leaves the range of float32."""
    options: dict[str, Any] = dict.fromkeys(
        ("value_variance", "hidden_variance", "last_variance"), 30.0
    )
    options |= {"activation": "relu", "logit_scale": logit_scale}
    network = layers.transformer(64, 8, 2, placement=placement, **options)
    params, _ = layers.init(network, (4, 8), key=key)
    x = jax.random.normal(key, (2, 4, 8))
    keys = jax.random.split(key, 64)

    def averaged(measure, **options):
        results = jax.vmap(lambda key: measure(network, params, x, key=key, **options))(keys)
        return results, log_mean_exp(results.log_gradient, 0)

    measured, from_tangents = averaged(propagation.probe)
    exact, from_losses = averaged(propagation.exact, depths=(8, 64), segments=1)
    assert np.all(np.isfinite(measured.log_activation))
    assert np.all(np.isfinite(measured.log_gradient))
    assert np.all(np.isfinite(exact.log_layer_gradient[:, 1]))
    assert np.all(np.isfinite(exact.log_layer_weight_gradient[:, 1]))
    if placement == "none":
        assert measured.log_activation[0, -1] > 2 * np.log(3e38)
    # Where unnormalized tokens become equal but for rounding, their large logits have no derivative
    # in float32. A square of one Gaussian number, the worst case, has a relative variance of 2.
    for depth in [8] if placement == "none" and logit_scale else [8, 64]:
        difference = from_tangents[depth - 1] - from_losses[depth - 1]
        assert abs(difference) < 4 * np.sqrt(2 * 2 / len(keys))
    assert not network.homogeneous


@pytest.mark.slow
def test_gated_units_take_the_place_of_an_activation(key):
    network = layers.transformer(2, 4, 2, gate=True, activation="silu", hidden=6, bias=True)
    params, _ = layers.init(network, (3, 4), key=key)
    feed_forward = params[1][1]
    assert feed_forward[0]["value"]["kernel"].shape == (2, 4, 6)
    assert feed_forward[1]["kernel"].shape == (2, 6, 4)
    expected = layers.gated(6, "silu", bias=True)
    assert network.block.layers[1].branch.layers[1].layers[0] == expected


def test_errors():
    with pytest.raises(ValueError, match=r"heads must divide the 6 features, got 4"):
        layers.transformer(1, 6, 4)
    with pytest.raises(ValueError, match="per_feature is for trained scales"):
        layers.residual(layers.dense(3), per_feature=True)
    with pytest.raises(ValueError, match="placement must be one of pre, post, sandwich, none"):
        layers.block(layers.dense(3), NORM, cast(Any, "middle"))
