"""Fully connected networks: draws, outputs, depth, activations."""

import re
import time
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, initializers, layers
from jaxgrad.theory import Moments
from tests import tolerances


def layers_of(params):
    """The layers one by one, without the readout."""
    hidden = params["hidden"]
    stacked = [jax.tree.map(lambda a, i=i: a[i], hidden) for i in range(len(hidden["kernel"]))]
    return [params["first"], *stacked]


def loop(params, x, phi, key=None):
    """A network as one would write it by hand."""
    h = x
    for index, layer in enumerate(layers_of(params), start=1):
        z = h @ layer["kernel"]
        if "bias" in layer:
            z = z + jnp.tile(layer["bias"], (len(x), 1))
        options = dict(layer.get("activation", {}))
        if key is not None:
            options["key"] = jax.random.fold_in(key, index)
        h = phi(z, **options)
    if "readout" in params:
        h = h @ params["readout"]["kernel"]
        if "bias" in params["readout"]:
            h = h + jnp.tile(params["readout"]["bias"], (len(x), 1))
    return h


def allclose(tree, other, rtol):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol), tree, other)


def build(depth=4, *, width=5, out_features=2, activation="parametric_relu", **options):
    options = {"bias": True, "b_variance": 0.5} | options
    return layers.mlp(width, depth, activation, out_features=out_features, **options)


def draw(network, key, in_features=3, dtype=jnp.float64):
    return layers.init(network, (in_features,), key=key, dtype=dtype)[0]


def apply(network, params, x, key=None):
    return layers.apply(network, params, None, x, key=key)[0]


@pytest.mark.parametrize("in_features", [3, 5])
@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize("biases", [True, False])
def test_init_equals_a_loop_of_draws(x64, key, in_features, depth, biases):
    options = {} if biases else {"bias": False, "b_variance": 0.0}
    params = draw(build(depth, w_variance=2.0, **options), key, in_features)
    # Draws are made in float32.
    for index, layer in enumerate([params["readout"], *layers_of(params)]):
        n_in = 5 if index != 1 else in_features
        n_out = 2 if index == 0 else 5
        key_kernel = key_layer = jax.random.fold_in(key, index)
        if biases:
            key_kernel, key_bias = jax.random.split(key_layer)
            expected = initializers.normal(0.5)(key_bias, (n_out,), jnp.float64)
            np.testing.assert_allclose(layer["bias"], expected, rtol=1e-6)
        expected = initializers.lecun()(key_kernel, (n_in, n_out), jnp.float64)
        expected = expected * np.sqrt(1.0 if index == 0 else 2.0)
        np.testing.assert_allclose(layer["kernel"], expected, rtol=1e-6)
        slope = {} if index == 0 else {"activation": {"slope": 0.25}}
        names = {"kernel": 0} | ({"bias": 0} if biases else {}) | slope
        assert set(layer) == set(names)
        assert layer.get("activation", {}) == slope.get("activation", {})
    assert len(layers_of(params)) == depth


# Drawn and applied by version 0.1 with the same key: corners of the kernels, outputs without and
# with a key of the activation.
RECORDED = {
    ("tanh", 3, None, None): (
        [-1.0957019, -0.1135871, 0.3024735],
        [0.1374764, 0.8360939, -0.4201022],
        [[0.0960675, 0.3772909], [-0.8518610, -0.3454571]],
        [[0.0960675, 0.3772909], [-0.8518610, -0.3454571]],
    ),
    ("parametric_relu", 8, 0.3, 2): (
        [-0.2690475, -0.5011917, -0.7732422],
        [0.8532594, -0.1345480, 0.6813703],
        [[1.9457353, -0.0464040], [1.0063221, 0.1080866]],
        [[1.9457353, -0.0464040], [1.0063221, 0.1080866]],
    ),
    ("randomized_leaky_relu", 3, 0.5, 2): (
        [-0.4393527, -0.8184426, -1.2626994],
        [0.8532594, -0.1345480, 0.6813703],
        [[2.4479997, -0.1088206], [1.2330527, 0.2974871]],
        [[2.4207752, -0.0800766], [1.2128124, 0.3123034]],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case[0])
@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_draws_and_outputs_are_those_of_version_01(key, case, parameterization):
    (activation, in_features, b_variance, out_features), recorded = case, RECORDED[case]
    network = layers.mlp(
        8,
        5,
        activation,
        out_features=out_features,
        w_variance=1.7,
        b_variance=b_variance or 0.0,
        bias=b_variance is not None,
        parameterization=parameterization,
    )
    params, _ = layers.init(network, (in_features,), key=key)
    factor = 1.0 if parameterization == "standard" else np.sqrt(1.7)
    corners = params["first"]["kernel"][0, :3], params["hidden"]["kernel"][-1, -1, :3]
    for corner, expected in zip(corners, recorded, strict=False):
        np.testing.assert_allclose(factor * corner, expected, rtol=2e-6)
    x = jnp.linspace(-1.0, 1.0, 2 * in_features).reshape(2, in_features)
    for key_apply, expected in zip((None, jax.random.key(7)), recorded[2:], strict=True):
        out = apply(network, params, x, key_apply)[:, :2]
        np.testing.assert_allclose(out, expected, rtol=5e-6, atol=1e-6)


@pytest.mark.parametrize("in_features", [3, 5])
@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize("readout", [None, 2])
def test_apply_and_its_gradient_equal_a_loop(x64, key, in_features, depth, readout):
    network = build(depth, out_features=readout)
    params = draw(network, key, in_features)
    # Every layer a slope of its own, or a mix-up of layers would not show.
    slopes = jnp.linspace(-0.5, 0.9, depth)
    params["first"]["activation"]["slope"] = slopes[0]
    params["hidden"]["activation"]["slope"] = slopes[1:]
    x = jax.random.normal(jax.random.key(1), (7, in_features), jnp.float64)
    phi = activations.get("parametric_relu")
    out = apply(network, params, x)
    assert out.shape == (7, readout or 5)
    np.testing.assert_allclose(out, loop(params, x, phi), rtol=1e-13, atol=1e-13)

    weights = jax.random.normal(jax.random.key(2), out.shape, jnp.float64)

    @jax.jit
    def gradients(p, x):
        one = jax.grad(lambda p, x: jnp.sum(weights * apply(network, p, x)), (0, 1))
        other = jax.grad(lambda p, x: jnp.sum(weights * loop(p, x, phi)), (0, 1))
        return one(p, x), other(p, x)

    gradient, expected = gradients(params, x)
    allclose(gradient, expected, 1e-12)
    assert np.any(gradient[0]["first"]["activation"]["slope"] != 0)


@pytest.mark.parametrize("name", activations.TABLE)
def test_apply_takes_every_activation(key, name):
    network = build(3, width=8, out_features=None, activation=name, b_variance=0.1)
    params = draw(network, key, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(1), (4, 3))
    expected = loop(params, x, activations.get(name))
    np.testing.assert_allclose(apply(network, params, x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("in_features", [3, 5])
def test_a_deeper_network_begins_with_the_shallower(x64, key, in_features):
    shallow, deep = (draw(build(depth), key, in_features) for depth in (3, 9))
    allclose(layers_of(deep)[:3], layers_of(shallow), 1e-15)
    allclose(deep["readout"], shallow["readout"], 1e-15)
    kernels = np.stack([np.asarray(layer["kernel"]).ravel()[:15] for layer in layers_of(deep)])
    assert len(np.unique(kernels[:, 0])) == 9


@pytest.mark.parametrize("in_features", [3, 8])
def test_a_square_first_layer_is_not_special(key, in_features):
    params = draw(build(width=8), key, in_features, jnp.float32)
    assert params["first"]["kernel"].shape == (in_features, 8)
    assert params["first"]["bias"].shape == (8,)
    assert params["hidden"]["kernel"].shape == (3, 8, 8)
    assert params["hidden"]["bias"].shape == (3, 8)


def compile_parts(depth):
    """The two programs of a network, lowered: its draws and its gradient."""
    network = layers.mlp(8, depth, bias=True, b_variance=1.0)
    init = jax.jit(lambda key: layers.init(network, (8,), key=key)[0])
    shapes = jax.eval_shape(init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    gradient = jax.jit(jax.grad(lambda p, x: apply(network, p, x).sum()))
    return init.lower(jax.random.key(0)), gradient.lower(shapes, x)


def test_a_thousand_layers_make_the_same_program_as_four():
    for four, thousand in zip(compile_parts(4), compile_parts(1000), strict=True):
        four, thousand = (re.sub(r"\d+", "N", part.as_text()) for part in (four, thousand))
        assert four == thousand


@pytest.mark.slow
def test_a_thousand_layers_compile_about_as_fast_as_four():
    def seconds(depth):
        start = time.process_time()
        for part in compile_parts(depth):
            part.compile()
        return time.process_time() - start

    seconds(4)
    # Processor time of the best of three, so that a busy machine does not fail the test.
    assert min(seconds(1000) for _ in range(3)) < 3 * min(seconds(4) for _ in range(3))


def test_a_thousand_layers_run(key):
    network = layers.mlp(8, 1000, "linear", kernel_init=initializers.orthogonal())
    params = draw(network, key, 8, jnp.float32)
    x = jax.random.normal(key, (4, 8))
    out = apply(network, params, x)
    np.testing.assert_allclose(
        jnp.linalg.norm(out, axis=1), jnp.linalg.norm(x, axis=1), rtol=1000 * 1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_variances_multiply_the_draws_of_layers_only(key, dtype):
    def params(w_variance, b_variance):
        return draw(build(w_variance=w_variance, b_variance=b_variance), key, dtype=dtype)

    unit, scaled = params(1.0, 1.0), params(4.0, 9.0)
    for name in ("first", "hidden"):
        allclose(scaled[name]["kernel"], unit[name]["kernel"] * 2, 0)
    for name in ("first", "hidden", "readout"):
        np.testing.assert_allclose(
            scaled[name]["bias"].astype(jnp.float32),
            unit[name]["bias"].astype(jnp.float32) * 3,
            # One rounding of the factor and one of the product, in either program.
            rtol=2 * float(jnp.finfo(dtype).eps),
        )
    allclose(scaled["readout"]["kernel"], unit["readout"]["kernel"], 0)
    assert not np.any(params(0.0, 1.0)["hidden"]["kernel"])
    assert not np.any(params(1.0, 0.0)["hidden"]["bias"])


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["standard", "ntk"])
def test_variances_may_be_traced(key, parameterization):
    x = jnp.ones((2, 3))

    def out(variance):
        network = layers.mlp(5, 4, "relu", w_variance=variance, parameterization=parameterization)
        return apply(network, draw(network, key, dtype=jnp.float32), x).sum()

    variances = jnp.asarray([0.5, 1.0, 2.0])
    # ReLU is homogeneous: the output is multiplied by the standard deviation once a layer.
    expected = out(1.0) * variances**2
    np.testing.assert_allclose(jax.jit(jax.vmap(out))(variances), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(out)(1.0), 2 * out(1.0), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("in_features", [3, 5])
def test_vmap_over_keys_jit_and_grad_agree_with_eager(key, in_features):
    x = jax.random.normal(key, (4, in_features))
    keys = jax.random.split(key, 3)
    network = build()

    def value_and_grad(key):
        params = draw(network, key, in_features, jnp.float32)
        return jax.value_and_grad(lambda p: jnp.sum(apply(network, p, x) ** 2))(params)

    eager = value_and_grad(keys[1])
    mapped = jax.vmap(value_and_grad)(keys)
    rtol = tolerances.rtol(jnp.float32)
    allclose(jax.tree.map(lambda a: a[1], mapped), eager, rtol)
    allclose(jax.jit(value_and_grad)(keys[1]), eager, rtol)
    assert len(np.unique(mapped[0])) == 3


@pytest.mark.slow
def test_randomized_activation_draws_anew_in_each_layer(key):
    phi = activations.get("randomized_leaky_relu")
    network = build(activation=phi, out_features=None, b_variance=1.0)
    params = draw(network, key, dtype=jnp.float32)
    x = jax.random.normal(key, (6, 3))
    one = apply(network, params, x, jax.random.key(1))
    expected = loop(params, x, phi, jax.random.key(1))
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one, apply(network, params, x, jax.random.key(1)))
    assert np.any(one != apply(network, params, x, jax.random.key(2)))

    mean = apply(network, params, x)
    expected = loop(params, x, activations.leaky_relu((1 / 8 + 1 / 3) / 2))
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(one - mean).max(axis=0) > 1e-4)


def test_a_deterministic_activation_ignores_the_key(key):
    network = build(activation="tanh")
    params, x = draw(network, key, dtype=jnp.float32), jnp.ones((2, 3))
    np.testing.assert_array_equal(apply(network, params, x, key), apply(network, params, x))


@pytest.mark.parametrize("b_variance", [None, 0.4])
def test_an_mlp_predicts_as_its_layers(b_variance):
    weights = {"b_variance": b_variance or 0.0, "bias": b_variance is not None}
    network = layers.mlp(8, 3, "relu", w_variance=1.5, out_features=2, **weights)
    moments = Moments(0.3, gap=0.5)
    result = network.predict(moments)
    for _ in range(3):
        moments = layers.dense(8, w_variance=1.5, **weights).predict(moments)
        moments = layers.activation("relu").predict(moments)
    expected = layers.dense(2, **weights).predict(moments)
    for name in ("log_q", "log_gradient", "gap"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=1e-12)
    assert result.gaussian


def test_an_mlp_is_a_layer_like_others(key):
    network = layers.sequential(layers.residual(layers.mlp(4, 2, "tanh")), layers.layer_norm())
    params, state = layers.init(network, (4,), key=key)
    x = jax.random.normal(key, (3, 4))
    h = x + loop(params[0], x, jnp.tanh)
    expected = (h - h.mean(1, keepdims=True)) / h.std(1, keepdims=True)
    out, _ = layers.apply(network, params, state, x)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel_init", "alike"),
    [
        (initializers.zeros(), True),
        (initializers.constant(0.3), True),
        (initializers.lecun(), False),
    ],
)
def test_equal_units_stay_equal_under_training(key, kernel_init, alike):
    network = layers.mlp(6, 3, "sigmoid", out_features=2, kernel_init=kernel_init, bias=True)
    params = start = draw(network, key, dtype=jnp.float32)
    x, y = jax.random.normal(key, (8, 3)), jax.random.normal(jax.random.key(1), (8, 2))

    @jax.jit
    def step(params):
        gradient = jax.grad(lambda p: jnp.mean((apply(network, p, x) - y) ** 2))
        return jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient(params))

    for _ in range(10):
        params = step(params)
    for name, units in (
        ("first", params["first"]["kernel"]),
        ("hidden", params["hidden"]["kernel"][-1]),
        ("readout", params["readout"]["kernel"].T),
    ):
        moved = np.abs(params[name]["kernel"] - start[name]["kernel"]).max()
        # From zeros the first layer moves little, as its gradient goes through the others.
        assert moved > 0, name
        spread = np.abs(units - units[:, :1]).max()
        assert (spread < 1e-3 * moved) == alike, name


def test_zero_kernels_stop_an_odd_activation_altogether(key):
    network = layers.mlp(6, 3, "tanh", out_features=2, kernel_init=initializers.zeros())
    params = draw(network, key, dtype=jnp.float32)
    gradient = jax.grad(lambda p: apply(network, p, jnp.ones((4, 3))).sum())(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_equals_flax_with_copied_weights(key):
    network = build(width=8, activation="tanh", b_variance=0.3)
    params = draw(network, key, dtype=jnp.float32)
    parts = [part for _ in range(4) for part in (flax.linen.Dense(8), jnp.tanh)]
    model: Any = flax.linen.Sequential([*parts, flax.linen.Dense(2)])
    copied = {f"layers_{2 * i}": layer for i, layer in enumerate(layers_of(params))}
    variables = {"params": copied | {"layers_8": params["readout"]}}
    x = jax.random.normal(key, (5, 3))
    # Flax adds biases of another rank.
    with jax.numpy_rank_promotion("allow"):
        expected = model.apply(variables, x)
        expected_slope = jax.grad(lambda x: jnp.sum(jnp.sin(model.apply(variables, x))))(x)
    np.testing.assert_allclose(apply(network, params, x), expected, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(apply(network, params, x))))(x)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype(key, dtype):
    network = build()
    params = draw(network, key, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert apply(network, params, jnp.ones((2, 3), dtype)).dtype == dtype


def test_sizes_may_be_any_whole_number(key):
    sizes: Any = (np.int32(4), np.uint8(2))
    params = draw(layers.mlp(*sizes), key, np.int64(3), jnp.float32)
    assert params["hidden"]["kernel"].shape == (1, 4, 4)


def ones(shape):
    return lambda key, wanted, dtype: jnp.ones(shape, dtype)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": -2}, ValueError, "depth must be at least 1, got -2"),
        ({"depth": True}, TypeError, "depth must be a whole number, got True"),
        ({"depth": np.bool_(True)}, TypeError, "depth must be a whole number"),
        ({"depth": 2.0}, TypeError, "depth must be a whole number, got 2.0"),
        ({"width": "8"}, TypeError, "width must be a whole number, got '8'"),
        ({"out_features": 0}, ValueError, "out_features must be at least 1, got 0"),
        ({"out_features": 1.5}, TypeError, "out_features must be a whole number, got 1.5"),
        ({"activation": "tahn"}, ValueError, "activation must be one of .*got 'tahn'"),
        ({"w_variance": -1.0}, ValueError, "w_variance must be at least 0, got -1"),
        ({"bias_init": ones(4)}, ValueError, "bias_init is for layers with biases"),
        (
            {"bias": True, "bias_init": ones(4)},
            ValueError,
            "b_variance must be above 0 with bias_init.*pass b_variance=1.0",
        ),
        (
            {"kernel_init": ones((2, 2))},
            ValueError,
            r"kernel_init must return the shape it is asked for, \(4, 4\), got \(2, 2\)",
        ),
        (
            {"bias": True, "b_variance": 1.0, "bias_init": ones((1, 4))},
            ValueError,
            r"bias_init must return the shape it is asked for, \(4,\), got \(1, 4\)",
        ),
        ({"kernel_init": initializers.lecun(groups=3)}, ValueError, "groups must divide the 4"),
    ],
)
def test_errors(key, change, error, match):
    arguments = {"width": 4, "depth": 2} | change
    with pytest.raises(error, match=match):
        layers.init(layers.mlp(**arguments), (3,), key=key)


def test_an_mlp_takes_flat_inputs(key):
    with pytest.raises(ValueError, match=r"shape must be \(in_features,\) .*flatten the inputs"):
        layers.init(layers.mlp(4, 2), (3, 3), key=key)


def test_stacks_of_another_size_are_refused(key):
    network = layers.mlp(4, 3)
    params = draw(network, key, dtype=jnp.float32)
    for kernel in (jnp.ones((2, 5, 5)), jnp.ones((1, 4, 4)), jnp.ones((4, 4))):
        spoiled = params | {"hidden": {"kernel": kernel}}
        with pytest.raises(ValueError, match=r"'hidden/kernel': \(2, 4, 4\)} to fit x"):
            apply(network, spoiled, jnp.ones((2, 3)))
