import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, layers, propagation
from tests.propagation import cases
from tests.tolerances import rtol, within_errors

# The signal


@pytest.mark.parametrize(
    "activation",
    [
        *("tanh", "relu", "gelu", "parametric_relu"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("sigmoid", "selu")),
    ],
)
def test_signal_equals_the_network(key, activation):
    network = cases.mlp(16, 6, activation, w_variance=1.7, b_variance=0.3)
    params = cases.draw(network, key)
    x = jax.random.normal(key, (5, 10))
    result = propagation.probe(network, params, x, key=key)
    signal = outputs_of_layers(network, params, x)
    expected = [float(jnp.log(jnp.mean(h**2))) for h in signal]
    np.testing.assert_allclose(result.log_activation, expected, atol=1e-5)
    np.testing.assert_allclose(signal[-1], cases.apply(network, params, x), rtol=1e-5, atol=1e-6)


def outputs_of_layers(network, params, x):
    """The outputs of each layer, from one unrolled program."""

    @jax.jit
    def run(entries_params, x):
        outputs = []
        for (function, _), entry_params in zip(entries, entries_params, strict=True):
            x = function(entry_params, x)
            outputs.append(x)
        return outputs

    entries = cases.unrolled(network, params)
    return run([entry_params for _, entry_params in entries], x)


def test_preactivation_dead_and_saturated(key):
    network = cases.plain_mlp(16, 3, "relu")
    params = cases.draw(network, key, (16,))
    x = jax.random.normal(key, (5, 16))
    result = propagation.probe(network, params, x, key=key, saturation=0.5)
    # A block that contains the activation knows the same.
    stack, pairs = as_blocks(network, params)
    blocks = propagation.probe(stack, pairs, x, key=key, saturation=0.5)
    h = x
    for layer, kernel in enumerate([params["first"]["kernel"], *params["hidden"]["kernel"]]):
        z = h @ kernel
        off = np.asarray(z <= 0)
        for signal in (result, blocks):
            np.testing.assert_allclose(
                signal.log_preactivation[layer], jnp.log(jnp.mean(z**2)), rtol=1e-4
            )
            np.testing.assert_allclose(signal.saturated[layer], off.mean(), rtol=1e-6)
            np.testing.assert_allclose(signal.dead[layer], off.all(axis=0).mean(), rtol=1e-6)
        h = jax.nn.relu(z)


def as_blocks(network, params):
    """An mlp of inputs as wide as its layers as equal blocks, with its parameters."""
    stacked = jax.tree.map(
        lambda a, b: jnp.concatenate([a[None], b]), params["first"], params["hidden"]
    )
    trained = stacked.pop("activation", {})
    return network.layers, (stacked, trained)


def test_a_block_without_activation_knows_no_units(key):
    network = layers.repeat(layers.dense(4), 3)
    params = cases.draw(network, key, (4,))
    result = propagation.probe(network, params, jnp.ones((2, 4)), key=key)
    for name in ("log_preactivation", "dead", "saturated", "log_weight_gradient", "gap"):
        np.testing.assert_array_equal(getattr(result, name), [np.nan] * 3)
    np.testing.assert_array_equal(result.log_last_gradient, 0.0)


# The tangent


def test_a_given_tangent_goes_by_the_jvp(key):
    network = cases.plain_mlp(16, 4, "gelu")
    params = cases.draw(network, key)
    x, change = jax.random.normal(key, (2, 3, 10))
    tangent = change @ params["first"]["kernel"]
    out = propagation.probe(network, params, x, key=key, tangent=tangent)
    _, moved = jax.jvp(lambda x: outputs_of_layers(network, params, x), (x,), (change,))
    expected = [float(jnp.log(jnp.mean(each**2))) for each in moved]
    np.testing.assert_allclose(out.log_gradient, expected, atol=1e-4)
    with pytest.raises(ValueError, match=r"tangent must have shape \(3, 16\), .*got \(3, 10\)"):
        propagation.probe(network, params, x, key=key, tangent=change)


@pytest.mark.slow
def test_the_tangent_is_the_derivative_of_the_whole_batch(key):
    block = layers.sequential(layers.dense(5), layers.batch_norm(), layers.dropout(0.1))
    network = layers.repeat(block, 3)
    params = cases.draw(network, key, (5,))
    x, tangent = 1 + jax.random.normal(key, (2, 4, 5))
    result = propagation.probe(network, params, x, key=key, tangent=tangent)
    draws = jax.random.split(key)[1]
    _, moved = jax.jvp(lambda x: cases.apply(network, params, x, draws), (x,), (tangent,))
    np.testing.assert_allclose(
        result.log_example_gradient[-1], jnp.log(jnp.mean(moved**2, axis=1)), atol=1e-4
    )
    np.testing.assert_allclose(result.log_gradient[-1], jnp.log(jnp.mean(moved**2)), atol=1e-4)


@pytest.mark.slow
def test_probe_is_unbiased_for_one_network(key):
    depth = 6
    network = cases.mlp(16, depth, w_variance=1.5, b_variance=0.2)
    params = cases.draw(network, key)
    x = jax.random.normal(key, (3, 10))

    def outputs(first):
        return jnp.stack(outputs_of_layers(network, params | {"first": first}, x))

    jacobian = jax.jacrev(outputs)(params["first"])["kernel"]
    # The gradient is that with respect to the kernel as it acts, with its variance.
    norms = np.sum(np.square(jacobian), axis=(1, 2, 3, 4)) / 1.5 / (3 * 16)
    keys = jax.random.split(key, 4000)
    probe = lambda k: propagation.probe(network, params, x, key=k)  # noqa: E731
    measured = jax.jit(jax.vmap(lambda k: probe(k).log_weight_gradient))(keys)
    within_errors(np.exp(np.asarray(measured, np.float64)), norms)
    # tanh' = 1 - tanh^2
    slopes = [float(jnp.mean((1 - h**2) ** 2)) for h in outputs(params["first"])]
    np.testing.assert_allclose(np.exp(probe(key).log_last_gradient), slopes, rtol=1e-4)


def test_randomized_activation_draws(key):
    network = cases.plain_mlp(16, 4, "randomized_leaky_relu")
    params = cases.draw(network, key)
    x = jax.random.normal(key, (3, 10))
    first, again, other = (
        propagation.probe(network, params, x, key=k).log_activation
        for k in (key, key, jax.random.fold_in(key, 1))
    )
    assert np.all(first != other)
    np.testing.assert_array_equal(first, again)
    h = cases.apply(network, params, x, key)
    np.testing.assert_allclose(first[-1], jnp.log(jnp.mean(h**2)), rtol=1e-5)


# Layers of layers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "parameterization"), [("tanh", "ntk"), ("parametric_relu", "standard")]
)
def test_an_mlp_equals_blocks_of_dense_layers_and_activations(key, activation, parameterization):
    options = {"w_variance": 1.8, "b_variance": 0.4, "parameterization": parameterization}
    network = cases.mlp(12, 6, activation, **options)
    params = cases.draw(network, key, (12,))
    stack, pairs = as_blocks(network, params)
    x, tangent = jax.random.normal(key, (2, 4, 12))
    gain = 1.8**0.5 if parameterization == "ntk" else 1.0
    moved = gain * tangent @ params["first"]["kernel"]
    blocks = propagation.probe(stack, pairs, x, key=key, tangent=tangent)
    expected = propagation.probe(network, params, x, key=key, tangent=moved)
    for name in (
        "log_preactivation",
        "log_activation",
        "dead",
        "saturated",
        "log_gradient",
        "log_example_gradient",
    ):
        np.testing.assert_allclose(
            getattr(blocks, name), getattr(expected, name), rtol=1e-5, atol=1e-5, err_msg=name
        )


@pytest.mark.slow
def test_a_sequence_has_the_entries_of_its_parts(key):
    block = cases.block_of(6, "relu", w_variance=2.0)
    network = layers.sequential(
        layers.dense(6),
        layers.repeat(block, 3),
        layers.mlp(5, 2, "tanh", out_features=4),
        layers.activation("tanh"),
    )
    params = cases.draw(network, key)
    x, tangent = jax.random.normal(key, (2, 3, 10))
    result = propagation.probe(network, params, x, key=key, tangent=tangent)
    assert result.log_gradient.shape == (1 + 3 + 2 + 1 + 1,)
    out, moved = jax.jvp(lambda x: cases.apply(network, params, x), (x,), (tangent,))
    np.testing.assert_allclose(result.log_gradient[-1], jnp.log(jnp.mean(moved**2)), atol=1e-5)
    np.testing.assert_allclose(result.log_activation[-1], jnp.log(jnp.mean(out**2)), atol=1e-5)
    np.testing.assert_array_equal(
        np.isfinite(result.dead), [False, True, True, True, True, True, False, True]
    )


@pytest.mark.slow
@pytest.mark.parametrize("active", [0, 2, 4])
def test_copies_that_do_not_act_return_what_they_get(key, active):
    block = cases.block_of(6, "tanh", w_variance=2.0)
    network = layers.repeat(block, 4, active=active)
    params = cases.draw(network, key, (6,))
    x = jax.random.normal(key, (3, 6))
    result = propagation.probe(network, params, x, key=key)
    every = propagation.probe(layers.repeat(block, 4), params, x, key=key)
    tangent = jax.random.normal(jax.random.split(key)[0], x.shape)
    log_square = [jnp.log(jnp.mean(tangent**2)), *every.log_gradient]
    expected = jnp.stack([log_square[min(depth, active)] for depth in range(1, 5)])
    np.testing.assert_allclose(result.log_gradient, expected, rtol=1e-5, atol=1e-6)


# Depth


@pytest.mark.slow
@pytest.mark.parametrize(
    "activation", ["tanh", "relu", "sigmoid", "erf", "sin", "gelu", "softplus"]
)
def test_ten_thousand_layers_stay_finite_at_any_variance(ten_thousand_layers, key, activation):
    x = jax.random.normal(key, (3, 10))

    @jax.jit
    @jax.vmap
    def run(w_variance, b_variance):
        variances = {"w_variance": w_variance, "b_variance": b_variance}
        network = cases.mlp(24, 10_000, activation, **variances)
        return propagation.probe(network, ten_thousand_layers, x, key=key)

    variances = [(1e-8, 0), (0.3, 0), (1.0, 0.1), (5.0, 1e-3), (1e3, 0), (1e6, 1)]
    out = run(*jnp.asarray(variances).T)
    for leaf in jax.tree.leaves(out._replace(gap=None)):
        assert np.all(np.isfinite(leaf))


@pytest.fixture(scope="module")
def ten_thousand_layers():
    """Parameters of unit variance, which serve all activations."""
    return cases.draw(cases.mlp(24, 10_000), jax.random.key(5))


@pytest.mark.slow
@pytest.mark.parametrize(("w_variance", "residual"), [(0.5, False), (1.0, True)])
def test_thousands_of_blocks_stay_finite(key, w_variance, residual):
    block = layers.sequential(layers.activation("relu"), layers.dense(32, w_variance=w_variance))
    network = layers.repeat(layers.residual(block) if residual else block, 3000)
    params = cases.draw(network, key, (32,))
    x = 1e-6 * jax.random.normal(key, (2, 32)) * jnp.asarray([[1.0], [1e9]])
    result = propagation.probe(network, params, x, key=key)
    expected = np.log(1.5 if residual else w_variance / 2)
    # A layer's log varies by 5 / width and has a mean lower by half of that.
    for logs in (result.log_activation, result.log_gradient, *result.log_example_gradient.T):
        assert np.all(np.isfinite(logs))
        assert abs(logs[-1] / 3000 - expected) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("activation", "w_variance", "b_variance"),
    [
        ("relu", 4.0, 1.0),
        ("relu", 0.5, 0.0),
        ("tanh", 1e4, 1.0),
        ("tanh", 0.1, 0.0),
        ("gelu", 5.0, 0.3),
    ],
)
def test_a_thousand_blocks_with_biases_equal_the_mlp(key, activation, w_variance, b_variance):
    """Signals and slopes go out of the range of float32, in blocks as in an mlp."""
    options = {"w_variance": w_variance, "b_variance": b_variance, "parameterization": "ntk"}
    network = cases.mlp(24, 1000, activation, **options)
    params = cases.draw(network, key, (24,))
    stack, pairs = as_blocks(network, params)
    x = jax.random.normal(key, (2, 24))
    tangent = jax.random.normal(jax.random.fold_in(key, 1), (2, 24))
    blocks = propagation.probe(stack, pairs, x, key=key, tangent=tangent)
    moved = w_variance**0.5 * tangent @ params["first"]["kernel"]
    expected = propagation.probe(network, params, x, key=key, tangent=moved)
    assert np.max(np.abs(expected.log_gradient)) > 90
    # The log of a saturated slope is twice a pre-activation of size 100, which is rounded.
    rtol = 2e-3 if w_variance > 100 else 3e-4
    for name in ("log_preactivation", "log_activation", "log_gradient"):
        np.testing.assert_allclose(
            getattr(blocks, name), getattr(expected, name), rtol=rtol, atol=2e-2, err_msg=name
        )


@pytest.mark.slow
def test_log_space_equals_float64_where_that_still_holds(key):
    """Small variances take tanh into its linear asymptote; float64 has no need of it."""
    network = cases.plain_mlp(24, 120, w_variance=0.1)
    params = cases.draw(network, key)
    x = jax.random.normal(key, (3, 10))
    single = propagation.probe(network, params, x, key=key)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        h, signal = x.astype(jnp.float64), []
        for kernel in [double["first"]["kernel"], *double["hidden"]["kernel"]]:
            h = jnp.tanh(h @ kernel * jnp.sqrt(0.1))
            signal.append(float(jnp.log(jnp.mean(h**2))))
    assert signal[-1] < -250
    np.testing.assert_allclose(single.log_activation, signal, atol=2e-3)


@pytest.mark.parametrize(
    ("phi", "slope", "w_variance", "depth"),
    [
        ("tanh", lambda z: 1 / jnp.cosh(z) ** 2, 3e4, 6),
        (lambda z: z * jnp.abs(z), lambda z: 2 * jnp.abs(z), 100.0, 6),
    ],
    ids=["saturated", "squared"],
)
def test_gradient_equals_float64_where_float32_ends(key, phi, slope, w_variance, depth):
    """Slopes of e^-100 and less, and signals whose log doubles with each layer."""
    network = cases.plain_mlp(4, depth, phi, w_variance=w_variance)
    params = cases.draw(network, key)
    x = jax.random.normal(key, (3, 10))
    tangent = jax.random.normal(jax.random.fold_in(key, 1), (3, 4))
    single = propagation.probe(network, params, x, key=key, tangent=tangent)
    with jax.enable_x64(True):
        scale = np.sqrt(w_variance)
        kernels = [params["first"]["kernel"], *params["hidden"]["kernel"]]
        h, t, logs = np.asarray(x, np.float64), np.asarray(tangent, np.float64), []
        for layer, kernel in enumerate(np.asarray(k, np.float64) for k in kernels):
            z = h @ kernel * scale
            t = slope(z) * (t if layer == 0 else t @ kernel * scale)
            h = activations.get(phi)(z)
            logs.append(float(jnp.log(jnp.mean(t**2))))
    assert max(map(abs, logs)) > 90
    # A saturated slope's log is twice its pre-activation, hundreds here, rounded to float32.
    np.testing.assert_allclose(single.log_gradient, logs, rtol=2e-4)


@pytest.mark.slow
def test_dead_network_is_a_result(key):
    network = layers.mlp(3, 100, "relu")
    params = cases.draw(network, key)
    out = propagation.probe(network, params, -jnp.ones((1, 10)), key=key)
    assert out.log_gradient[-1] == -jnp.inf
    assert out.dead[-1] == 1
    assert not np.any(np.isnan(out.log_gradient))
    block = layers.residual(cases.block_of(4, "relu", w_variance=0.0), scale=0.0)
    for layer, expected in ((block.branch, -np.inf), (block, 0.0)):
        stack = layers.repeat(layer, 3)
        params = cases.draw(stack, key, (4,))
        out = propagation.probe(stack, params, jnp.ones((2, 4)), key=key, tangent=jnp.ones((2, 4)))
        np.testing.assert_allclose(out.log_gradient, expected, atol=1e-6)


# Transforms


@pytest.mark.slow
def test_jit_and_vmap_agree_with_eager(key):
    params = cases.draw(cases.mlp(), key)
    x = jax.random.normal(key, (4, 10))

    def f(v):
        return propagation.probe(cases.mlp(w_variance=v, b_variance=0.1), params, x, key=key)

    variances = jnp.array([0.5, 1.0, 3.0])
    batched = jax.jit(jax.vmap(f))(variances)
    for i, v in enumerate(variances):
        single = jax.tree.map(lambda a: a[i], batched)  # noqa: B023
        chex.assert_trees_all_close(f(v), single, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_variances_of_blocks_may_be_traced(key):
    def network(w_variance):
        inner = layers.sequential(
            layers.activation("relu"),
            layers.dense(6, w_variance=w_variance, b_variance=w_variance, bias=True),
        )
        return layers.repeat(layers.residual(inner, w_variance), 3)

    x = jax.random.normal(key, (3, 6))

    def run(w_variance):
        params = cases.draw(network(w_variance), key, (6,))
        return propagation.probe(network(w_variance), params, x, key=key).log_gradient

    together = jax.jit(jax.vmap(run))(jnp.asarray([0.0, 0.5, 2.0]))
    np.testing.assert_allclose(together[1], run(0.5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[0], together[0, 0], atol=1e-6)


def test_one_product_serves_all_variances(key):
    """Under vmap over variances no kernel is copied for each of them."""
    params = cases.draw(cases.mlp(16, 4), key, (16,))
    x = jnp.ones((2, 16))

    def mapped(w_variance):
        network = cases.mlp(16, 4, w_variance=w_variance)
        stack, pairs = as_blocks(network, params)
        return (
            propagation.probe(network, params, x, key=key).log_gradient,
            propagation.probe(stack, pairs, x, key=key).log_gradient,
        )

    text = str(jax.make_jaxpr(jax.vmap(mapped))(jnp.ones(7)))
    assert "[7,2,16]" in text
    assert "[7,16,16]" not in text


@pytest.mark.parametrize(
    ("dtype", "blocks"),
    [(jnp.float16, False), (jnp.bfloat16, True), (jnp.float64, False), (jnp.float64, True)],
)
def test_dtypes(key, dtype, blocks):
    layer = cases.mlp()
    params = cases.draw(layer, key, (16,))
    x = jax.random.normal(key, (4, 16), jnp.float32)
    if blocks:
        layer, params = as_blocks(layer, params)
    single = propagation.probe(layer, params, x, key=key)
    with jax.enable_x64(True):
        cast = jax.tree.map(lambda a: a.astype(dtype), params)
        out = propagation.probe(layer, cast, x.astype(dtype), key=key)
    assert out.log_gradient.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    tolerance = max(rtol(dtype) / 10, 1e-4)
    np.testing.assert_allclose(out.log_gradient, single.log_gradient, atol=tolerance)


def test_depth_does_not_change_the_program(key):
    def size(make, depth):
        network = make(depth)
        params = jax.eval_shape(lambda: cases.draw(network, key, (16,)))
        x = jax.ShapeDtypeStruct((4, 16), jnp.float32)
        probe = lambda p, x: propagation.probe(network, p, x, key=key)  # noqa: E731
        return str(jax.make_jaxpr(probe)(params, x)).count(" = ")

    for make in (
        lambda depth: layers.mlp(16, depth),
        lambda depth: layers.repeat(cases.block_of(16), depth),
    ):
        assert size(make, 4) == size(make, 1000)


@pytest.mark.slow
def test_a_thousand_layers_compile_as_fast_as_four(key):
    def seconds(depth):
        network = layers.mlp(16, depth)
        params = jax.eval_shape(lambda: cases.draw(network, key, (8,)))
        x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
        start = time.perf_counter()
        jax.jit(lambda p, x: propagation.probe(network, p, x, key=key)).lower(params, x).compile()
        return time.perf_counter() - start

    seconds(3)
    assert min(seconds(1000), seconds(1001)) < 2 * max(seconds(4), seconds(5))


# Errors


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"saturation": -0.1}, "saturation must be at least 0"),
        (
            {"x": jnp.ones((2, 9))},
            r"params must have the shapes .*\(9, 16\).* to fit x",
        ),
        ({"x": jnp.ones((2, 10), int)}, "x must be floating point, got int32; convert"),
        ({"x": jnp.full((2, 10), jnp.nan)}, "x must be finite, got 20 NaN .* remove or impute"),
        ({"x": jnp.ones(10)}, r"x must have shape \[batch, \*shape\].*\(10,\)"),
        ({"x": "digits"}, "x must be an array of numbers, got '"),
        ({"params": {"w": 1}}, "params must have the shapes .*got {'w': ..}"),
        ({"layer": cases.mlp(16, 3, "parametric_relu")}, "params must have the shapes .*slope"),
        ({"layer": "mlp"}, "layer must be a Layer, got 'mlp'"),
        ({"key": 0}, "key must be one PRNG key, got 0"),
    ],
)
@pytest.mark.parametrize("measure", [propagation.probe, propagation.exact])
def test_errors(key, measure, change, match):
    network = cases.mlp(16, 3)
    arguments = {"layer": network, "params": cases.draw(network, key), "x": jnp.ones((2, 10))}
    with pytest.raises((ValueError, TypeError), match=match):
        measure(**(arguments | {"key": key} | change))


def test_tangents_of_another_shape_are_refused(key):
    network = layers.repeat(layers.dense(4), 2)
    params = cases.draw(network, key, (4,))
    with pytest.raises(ValueError, match=r"tangent must have shape \(2, 4\), got \(1, 4\)"):
        propagation.probe(network, params, jnp.ones((2, 4)), key=key, tangent=jnp.ones((1, 4)))
