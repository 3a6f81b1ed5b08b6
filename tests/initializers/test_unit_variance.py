"""Layers scaled to unit variance, on networks of several kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers, layers
from jaxgrad.initializers import unit_variance
from tests.convolutions import convolve


def network_outputs(x, activation):
    """Pre-activations of every layer of an `mlp`, in the places of its kernels."""
    phi = {"relu": jax.nn.relu, "tanh": jnp.tanh}[activation]

    def outputs(params):
        def affine(layer, h):
            z = h @ layer["kernel"]
            return z + layer["bias"][None] if "bias" in layer else z

        def step(z, layer):
            z = affine(layer, phi(z))
            return z, z

        first = affine(params["first"], x)
        last, hidden = jax.lax.scan(step, first, params["hidden"])
        out = jax.tree.map(lambda _: None, params)
        out["first"]["kernel"], out["hidden"]["kernel"] = first, hidden
        if "readout" in params:
            out["readout"]["kernel"] = affine(params["readout"], phi(last))
        return out

    return outputs


STACKED = {"first": False, "hidden": True, "readout": False}


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "bias"), [("relu", False), ("tanh", True)])
def test_unit_variance_of_every_layer_the_first_too(key, activation, bias):
    x = 7.0 * jax.random.normal(key, (128, 5))
    network = layers.mlp(32, 8, out_features=3, b_variance=0.1 if bias else 0.0, bias=bias)
    params, _ = layers.init(network, (5,), key=key)
    outputs = jax.jit(network_outputs(x, activation))
    found = unit_variance(params, outputs, stacked=STACKED)
    after = outputs(found.params)
    assert float(after["first"]["kernel"].std()) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(after["hidden"]["kernel"].std(axis=(1, 2)), 1, atol=0.01)
    assert float(after["readout"]["kernel"].std()) == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(
        found.std["hidden"]["kernel"], after["hidden"]["kernel"].std(axis=(1, 2)), rtol=1e-4
    )
    assert jax.tree.structure(found.params) == jax.tree.structure(params)
    if not bias and activation == "relu":
        assert int(found.passes) == 1
    if bias:
        assert found.std["first"]["bias"] is None
        np.testing.assert_array_equal(found.params["first"]["bias"], params["first"]["bias"])
    # Weights keep their directions.
    ratio = found.params["first"]["kernel"] / params["first"]["kernel"]
    np.testing.assert_allclose(ratio, ratio[0, 0], rtol=1e-5)


@pytest.mark.slow
def test_unit_variance_of_a_network_that_overflows(key):
    x = jax.random.normal(key, (64, 16))
    params, _ = layers.init(layers.mlp(16, 30, w_variance=1e8), (16,), key=key)
    outputs = jax.jit(network_outputs(x, "relu"))
    assert not np.all(np.isfinite(outputs(params)["hidden"]["kernel"]))
    found = unit_variance(params, outputs, stacked={"first": False, "hidden": True})
    np.testing.assert_allclose(found.std["hidden"]["kernel"], 1, atol=0.01)
    np.testing.assert_allclose(outputs(found.params)["first"]["kernel"].std(), 1, atol=0.01)
    assert int(found.passes) <= 6


@pytest.mark.slow
def test_unit_variance_of_convolutions_in_a_pytree_of_any_kind_and_order(key):
    x = 3.0 * jax.random.normal(key, (4, 6, 3))
    shapes = {"z": (3, 3, 8), "a": (3, 8, 8), "m": (3, 8, 4)}
    kernels = {name: initializers.glorot()(key, shape) for name, shape in shapes.items()}
    params = [kernels, (jnp.full((4,), 0.2),)]

    def outputs(params):
        kernels, (bias,) = params
        first = convolve(x, kernels["z"])
        branch = convolve(jax.nn.relu(first), kernels["a"])
        third = convolve(jax.nn.relu(first + branch), kernels["m"])
        third = third + jnp.broadcast_to(bias, third.shape)
        return [{"z": first, "a": branch, "m": third}, (None,)]

    def fit(params):
        found = unit_variance(params, outputs)
        return found, jax.tree.map(jnp.std, outputs(found.params))

    found, stds = jax.jit(fit)(params)
    np.testing.assert_allclose(jax.tree.leaves(stds), 1, atol=0.01)
    np.testing.assert_allclose(jax.tree.leaves(found.std), 1, atol=0.01)
    assert jax.tree.structure(found.params) == jax.tree.structure(params)


def test_unit_variance_keeps_the_dtypes(key):
    x = jax.random.normal(key, (64, 16), jnp.bfloat16)
    params = {"w": jax.random.normal(key, (16, 8), jnp.bfloat16), "b": jnp.zeros(8)}
    found = unit_variance(params, lambda params: {"w": x @ params["w"], "b": None})
    assert found.params["w"].dtype == jnp.bfloat16
    assert found.params["b"].dtype == found.std["w"].dtype == jnp.float32
    std = (x @ found.params["w"]).astype(jnp.float32).std()
    assert float(std) == pytest.approx(1, abs=0.02)


def test_unit_variance_shows_what_cannot_be_scaled(key):
    x = jax.random.normal(key, (256, 4))
    params = {"constant": jnp.zeros((4, 4)), "fine": jnp.ones((4, 4)), "other": jnp.ones(3)}

    def outputs(params):
        return {"constant": x @ params["constant"], "fine": x @ params["fine"], "other": None}

    found = unit_variance(params, outputs, iterations=3)
    assert float(found.std["constant"]) == 0
    assert float(found.std["fine"]) == pytest.approx(1, abs=0.01)
    assert int(found.passes) == 3


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: unit_variance({"w": jnp.ones(3)}, lambda p: {"w": None}), "None for all"),
        (lambda: unit_variance({"w": jnp.ones(3)}, lambda p: [p["w"]]), "structure of params"),
        (
            lambda: unit_variance({"w": jnp.ones(3)}, lambda p: {"w": p["w"][:2]}, stacked=True),
            r"first axis of the stacked leaf \['w'\]",
        ),
        (
            lambda: unit_variance({"w": jnp.ones(3)}, lambda p: p, stacked={"v": True}),
            "stacked must be a bool or a tree prefix",
        ),
        (
            lambda: unit_variance({"w": jnp.ones(3)}, lambda p: p, tolerance=0.0),
            "tolerance must be greater than 0",
        ),
        (
            lambda: unit_variance({"w": jnp.ones(3)}, lambda p: p, iterations=0),
            "iterations must be at least 1",
        ),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
