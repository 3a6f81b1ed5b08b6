import re
import time
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, initializers, networks
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


def fresh(key, in_features=3, depth=4, *, out_features=2, activation="parametric_relu", **options):
    options = {"bias_init": initializers.normal(0.5), "dtype": jnp.float64} | options
    return networks.init(
        key, in_features, 5, depth, out_features=out_features, activation=activation, **options
    )


@pytest.mark.parametrize("in_features", [3, 5])
@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize("biases", [True, False])
def test_init_equals_a_loop_of_draws(x64, key, in_features, depth, biases):
    bias_init = initializers.normal(0.5) if biases else None
    params = fresh(key, in_features, depth, bias_init=bias_init)
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
        np.testing.assert_allclose(layer["kernel"], expected, rtol=1e-6)
        slope = {} if index == 0 else {"activation": {"slope": 0.25}}
        names = {"kernel": 0} | ({"bias": 0} if biases else {}) | slope
        assert set(layer) == set(names)
        assert layer.get("activation", {}) == slope.get("activation", {})
    assert len(layers_of(params)) == depth


@pytest.mark.parametrize("in_features", [3, 5])
@pytest.mark.parametrize("depth", [1, 5])
@pytest.mark.parametrize("readout", [None, 2])
def test_apply_and_its_gradient_equal_a_loop(x64, key, in_features, depth, readout):
    params = fresh(key, in_features, depth, out_features=readout)
    # Every layer a slope of its own, or a mix-up of layers would not show.
    slopes = jnp.linspace(-0.5, 0.9, depth)
    params["first"]["activation"]["slope"] = slopes[0]
    params["hidden"]["activation"]["slope"] = slopes[1:]
    x = jax.random.normal(jax.random.key(1), (7, in_features), jnp.float64)
    phi = activations.get("parametric_relu")
    out = networks.apply(params, x, "parametric_relu")
    assert out.shape == (7, readout or 5)
    np.testing.assert_allclose(out, loop(params, x, phi), rtol=1e-13, atol=1e-13)

    weights = jax.random.normal(jax.random.key(2), out.shape, jnp.float64)
    gradient = jax.grad(lambda p, x: jnp.sum(weights * networks.apply(p, x, phi)), (0, 1))
    expected = jax.grad(lambda p, x: jnp.sum(weights * loop(p, x, phi)), (0, 1))
    allclose(gradient(params, x), expected(params, x), 1e-12)
    assert np.any(gradient(params, x)[0]["first"]["activation"]["slope"] != 0)


@pytest.mark.parametrize("name", activations.TABLE)
def test_apply_takes_every_activation(key, name):
    params = networks.init(key, 3, 8, 3, activation=name, bias_init=initializers.normal(0.1))
    x = jax.random.normal(jax.random.key(1), (4, 3))
    expected = loop(params, x, activations.get(name))
    np.testing.assert_allclose(networks.apply(params, x, name), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("in_features", [3, 5])
def test_a_deeper_network_begins_with_the_shallower(x64, key, in_features):
    shallow, deep = fresh(key, in_features, 3), fresh(key, in_features, 9)
    allclose(layers_of(deep)[:3], layers_of(shallow), 1e-15)
    allclose(deep["readout"], shallow["readout"], 1e-15)
    kernels = np.stack([np.asarray(layer["kernel"]).ravel()[:15] for layer in layers_of(deep)])
    assert len(np.unique(kernels[:, 0])) == 9


@pytest.mark.parametrize("in_features", [3, 8])
def test_a_square_first_layer_is_not_special(key, in_features):
    params = networks.init(key, in_features, 8, 4, bias_init=initializers.normal(1.0))
    assert params["first"]["kernel"].shape == (in_features, 8)
    assert params["first"]["bias"].shape == (8,)
    assert params["hidden"]["kernel"].shape == (3, 8, 8)
    assert params["hidden"]["bias"].shape == (3, 8)


def compile_parts(depth):
    """The two programs of a network, lowered: its draws and its gradient."""
    init = jax.jit(lambda key: networks.init(key, 8, 8, depth, bias_init=initializers.normal(1.0)))
    shapes = jax.eval_shape(init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    gradient = jax.jit(jax.grad(lambda p, x: networks.apply(p, x).sum()))
    return init.lower(jax.random.key(0)), gradient.lower(shapes, x)


def test_a_thousand_layers_make_the_same_program_as_four():
    for four, thousand in zip(compile_parts(4), compile_parts(1000), strict=True):
        four, thousand = (re.sub(r"\d+", "N", part.as_text()) for part in (four, thousand))
        assert four == thousand


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
    params = networks.init(key, 8, 8, 1000, kernel_init=initializers.orthogonal())
    x = jax.random.normal(key, (4, 8))
    out = networks.apply(params, x, "linear")
    np.testing.assert_allclose(
        jnp.linalg.norm(out, axis=1), jnp.linalg.norm(x, axis=1), rtol=1000 * 1e-6
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_scale_multiplies_variances_of_layers_only(key, dtype):
    params = fresh(key, dtype=dtype)
    scaled = networks.scale(params, 4.0, 9.0)
    for name in ("first", "hidden"):
        allclose(scaled[name]["kernel"], params[name]["kernel"] * 2, 0)
        np.testing.assert_allclose(
            scaled[name]["bias"].astype(jnp.float32),
            params[name]["bias"].astype(jnp.float32) * 3,
            rtol=float(jnp.finfo(dtype).eps),
        )
        allclose(scaled[name]["activation"], params[name]["activation"], 0)
    allclose(scaled["readout"], params["readout"], 0)
    assert jax.tree.map(jnp.result_type, scaled) == jax.tree.map(jnp.result_type, params)
    allclose(networks.scale(params), params, 0)
    assert not np.any(networks.scale(params, 0.0)["hidden"]["kernel"])


def test_scale_takes_traced_variances(key):
    params = networks.init(key, 3, 5, 4)
    x = jnp.ones((2, 3))

    def out(variance):
        return networks.apply(networks.scale(params, variance), x, "relu").sum()

    variances = jnp.asarray([0.5, 1.0, 2.0])
    # ReLU is homogeneous: the output is multiplied by the standard deviation once a layer.
    expected = out(1.0) * variances**2
    np.testing.assert_allclose(jax.jit(jax.vmap(out))(variances), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.grad(out)(1.0), 2 * out(1.0), rtol=1e-5)


@pytest.mark.parametrize("in_features", [3, 5])
def test_vmap_over_keys_jit_and_grad_agree_with_eager(key, in_features):
    x = jax.random.normal(key, (4, in_features))
    keys = jax.random.split(key, 3)

    def value_and_grad(key):
        params = fresh(key, in_features, dtype=jnp.float32)
        return jax.value_and_grad(lambda p: jnp.sum(networks.apply(p, x, phi) ** 2))(params)

    phi = "parametric_relu"
    eager = value_and_grad(keys[1])
    mapped = jax.vmap(value_and_grad)(keys)
    rtol = tolerances.rtol(jnp.float32)
    allclose(jax.tree.map(lambda a: a[1], mapped), eager, rtol)
    allclose(jax.jit(value_and_grad)(keys[1]), eager, rtol)
    assert len(np.unique(mapped[0])) == 3


def test_randomized_activation_draws_anew_in_each_layer(key):
    phi = activations.get("randomized_leaky_relu")
    params = networks.init(key, 3, 5, 4, activation=phi, bias_init=initializers.normal(1.0))
    x = jax.random.normal(key, (6, 3))
    one = networks.apply(params, x, phi, key=jax.random.key(1))
    expected = loop(params, x, phi, jax.random.key(1))
    np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one, networks.apply(params, x, phi, key=jax.random.key(1)))
    assert np.any(one != networks.apply(params, x, phi, key=jax.random.key(2)))

    mean = networks.apply(params, x, phi)
    expected = loop(params, x, activations.leaky_relu((1 / 8 + 1 / 3) / 2))
    np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(one - mean).max(axis=0) > 1e-4)


def test_a_deterministic_activation_ignores_the_key(key):
    params, x = networks.init(key, 3, 5, 4), jnp.ones((2, 3))
    np.testing.assert_array_equal(networks.apply(params, x, key=key), networks.apply(params, x))


@pytest.mark.parametrize(
    ("kernel_init", "alike"),
    [
        (initializers.zeros(), True),
        (initializers.constant(0.3), True),
        (initializers.lecun(), False),
    ],
)
def test_equal_units_stay_equal_under_training(key, kernel_init, alike):
    params = start = networks.init(
        key,
        3,
        6,
        3,
        out_features=2,
        kernel_init=kernel_init,
        bias_init=initializers.zeros(),
    )
    x, y = jax.random.normal(key, (8, 3)), jax.random.normal(jax.random.key(1), (8, 2))

    @jax.jit
    def step(params):
        gradient = jax.grad(lambda p: jnp.mean((networks.apply(p, x, "sigmoid") - y) ** 2))
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
    params = networks.init(key, 3, 6, 3, out_features=2, kernel_init=initializers.zeros())
    gradient = jax.grad(lambda p: networks.apply(p, jnp.ones((4, 3)), "tanh").sum())(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_equals_flax_with_copied_weights(key):
    params = networks.init(key, 3, 8, 4, out_features=2, bias_init=initializers.normal(0.3))
    parts = [part for _ in range(4) for part in (flax.linen.Dense(8), jnp.tanh)]
    model: Any = flax.linen.Sequential([*parts, flax.linen.Dense(2)])
    copied = {f"layers_{2 * i}": layer for i, layer in enumerate(layers_of(params))}
    variables = {"params": copied | {"layers_8": params["readout"]}}
    x = jax.random.normal(key, (5, 3))
    # Flax adds biases of another rank.
    with jax.numpy_rank_promotion("allow"):
        expected = model.apply(variables, x)
        expected_slope = jax.grad(lambda x: jnp.sum(jnp.sin(model.apply(variables, x))))(x)
    np.testing.assert_allclose(networks.apply(params, x), expected, rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(networks.apply(params, x))))(x)
    np.testing.assert_allclose(slope, expected_slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype(key, dtype):
    params = fresh(key, dtype=dtype)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert networks.apply(params, jnp.ones((2, 3), dtype), "parametric_relu").dtype == dtype


def test_sizes_may_be_any_whole_number(key):
    sizes: Any = (np.int64(3), np.int32(4), np.uint8(2))
    params = networks.init(key, *sizes)
    assert params["hidden"]["kernel"].shape == (1, 4, 4)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"width": 0}, ValueError, "width must be at least 1, got 0"),
        ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"depth": 0}, ValueError, "depth must be at least 1, got 0"),
        ({"depth": -2}, ValueError, "depth must be at least 1, got -2"),
        ({"depth": True}, TypeError, "depth must be a whole number, got True"),
        ({"depth": np.bool_(True)}, TypeError, "depth must be a whole number"),
        ({"depth": 2.0}, TypeError, "depth must be a whole number, got 2.0"),
        ({"width": "8"}, TypeError, "width must be a whole number, got '8'"),
        ({"out_features": 0}, ValueError, "out_features must be at least 1, got 0"),
        ({"out_features": 1.5}, TypeError, "out_features must be a whole number, got 1.5"),
        ({"activation": "tahn"}, ValueError, "activation must be one of .*got 'tahn'"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be floating, got int32; pass jnp.float32"),
        (
            {"kernel_init": lambda key, shape, dtype: jnp.ones((2, 2), dtype)},
            ValueError,
            r"kernel_init must return the shape it is asked for, \(4, 4\), got \(2, 2\)",
        ),
        (
            {"bias_init": lambda key, shape, dtype: jnp.ones((1, 4), dtype)},
            ValueError,
            r"bias_init must return the shape it is asked for, \(4,\), got \(1, 4\)",
        ),
        ({"kernel_init": initializers.lecun(groups=3)}, ValueError, "groups must divide the 4"),
    ],
)
def test_init_errors(key, change, error, match):
    arguments = {"in_features": 3, "width": 4, "depth": 2} | change
    with pytest.raises(error, match=match):
        networks.init(key, **arguments)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.ones((2, 4)), ValueError, r"the 3 features .*got shape \(2, 4\); pass in_features=4"),
        (np.ones(3), ValueError, r"x must have shape \[batch, in_features\].*got \(3,\)"),
        (np.ones((0, 3)), ValueError, r"no empty dimension, got \(0, 3\)"),
        (np.ones((2, 3), int), TypeError, "x must be floating point, got int"),
        (np.ones((2, 3), bool), TypeError, "x must be floating point, got bool"),
        (np.ones((2, 3), complex), TypeError, "x must be floating point, got complex"),
        (np.full((2, 3), np.nan), ValueError, "x must be finite, got 6 NaN or infinite of 6"),
        (np.array([[1, 2, np.inf]]), ValueError, "x must be finite, got 1 NaN or infinite of 3"),
        ("x", TypeError, "x must be an array of numbers, got str"),
    ],
)
def test_input_errors(key, x, error, match):
    with pytest.raises(error, match=match):
        networks.apply(networks.init(key, 3, 4, 2), x)


@pytest.mark.parametrize(
    ("spoil", "error", "match"),
    [
        (lambda p: None, TypeError, "params must be the pytree that jaxgrad.networks.init"),
        (lambda p: [1.0], TypeError, r"jaxgrad.networks.init returns, got .*\[\*\]"),
        (lambda p: {"first": p["first"]}, TypeError, "params must be the pytree"),
        (lambda p: p | {"hidden": {}}, TypeError, "params must be the pytree"),
        (lambda p: p | {"first": {"kernel": jnp.ones(3)}}, TypeError, "params must be the pytree"),
        (
            lambda p: p | {"hidden": {"kernel": jnp.ones((1, 5, 5))}},
            ValueError,
            r"hidden kernels of shape \[depth - 1, 4, 4\] to follow 4 units, got \(1, 5, 5\)",
        ),
        (
            lambda p: p | {"hidden": {"kernel": jnp.ones((4, 4))}},
            ValueError,
            r"hidden kernels of shape .*got \(4, 4\)",
        ),
    ],
)
def test_parameter_errors(key, spoil, error, match):
    params = spoil(networks.init(key, 3, 4, 2))
    with pytest.raises(error, match=match):
        networks.apply(params, jnp.ones((2, 3)))


@pytest.mark.parametrize(
    ("variances", "match"),
    [
        ((-1.0,), "w_variance must be at least 0, got -1"),
        ((1.0, -0.5), "b_variance must be at least 0, got -0.5"),
        ((float("nan"),), "w_variance must be finite, got nan"),
        ((np.ones(2),), r"w_variance must be one number, got shape \(2,\); use jax.vmap"),
        ((1.0, "a"), "b_variance must be a number, got 'a'"),
    ],
)
def test_scale_errors(key, variances, match):
    with pytest.raises((ValueError, TypeError), match=match):
        networks.scale(networks.init(key, 3, 4, 2), *variances)
