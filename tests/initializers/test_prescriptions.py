import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers, layers, propagation
from jaxgrad.initializers import critical, delta_orthogonal, fixup, unit_variance
from jaxgrad.theory.finite_width import layer_law
from tests.tolerances import within_errors

TANH = (1.760955, 0.570048)  # at bias variance 0.05


def test_critical_point_of_a_bias_variance(key):
    found = critical("tanh", 0.05)
    np.testing.assert_allclose([found.w_variance, found.q], TANH, atol=1e-6)
    kernel, bias = found.kernel(key, (300, 400)), found.bias(key, (100_000,))
    within_errors(300 * kernel.ravel() ** 2, TANH[0])
    within_errors(bias**2, 0.05)


def test_critical_point_of_a_length():
    found = critical("erf", q=0.7)
    np.testing.assert_allclose(
        [found.w_variance, found.b_variance], [1.531023, 0.092944], atol=1e-6
    )


@pytest.mark.parametrize(
    ("activation", "expected"), [("relu", (2, 0, 1)), ("tanh", (1, 0, 0)), ("gelu", None)]
)
def test_critical_point_without_a_choice(activation, expected, key):
    found = critical(activation)
    if expected is None:
        expected = (1.983058, 0.172922, (3 + np.sqrt(17)) / 2)
    np.testing.assert_allclose(
        [found.w_variance, found.b_variance, found.q], expected, rtol=1e-4, atol=1e-12
    )
    assert (float(jnp.abs(found.bias(key, (9,))).max()) > 0) == (expected[1] > 0)


def test_critical_convolutions_count_their_fans(key):
    kernel = critical("relu", distribution="uniform", groups=4).kernel(key, (3, 3, 8, 512))
    within_errors(72 * kernel.ravel() ** 2, 2.0)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_critical_for_a_width_keeps_the_typical_layer(activation):
    found = critical(activation, 0.0, width=16)
    q = max(float(found.q), 1e-12)
    assert abs(layer_law(activation, q, found.w_variance, 16).mean_log) < 1e-9
    assert found.w_variance > critical(activation, 0.0).w_variance


def test_critical_for_a_width_keeps_the_median_network(key):
    def growth(key, factor):
        network = layers.mlp(16, 40, "relu", w_variance=factor)
        params, _ = layers.init(network, (16,), key=key)
        found = propagation.probe(network, params, jnp.ones((1, 16)), key=key)
        return found.log_gradient[-1] - found.log_gradient[0]

    keys = jax.random.split(key, 400)
    growths = jax.jit(lambda keys, factor: jax.lax.map(lambda key: growth(key, factor), keys))
    within_errors(growths(keys, jnp.float32(critical("relu", width=16).w_variance)), 0.0)
    with pytest.raises(AssertionError):
        within_errors(growths(keys, jnp.float32(2.0)), 0.0)


def test_critical_traces_its_variances(key):
    @jax.jit
    def draw(q):
        found = critical("tanh", q=q, width=64)
        return found.kernel(key, (8, 8)), found.w_variance, found.b_variance

    kernel, w_variance, b_variance = draw(0.5)
    expected = critical("tanh", q=0.5, width=64)
    np.testing.assert_allclose(
        [w_variance, b_variance], [expected.w_variance, expected.b_variance], rtol=1e-5
    )
    np.testing.assert_allclose(kernel, expected.kernel(key, (8, 8)), rtol=1e-5)


def convolve(x, kernel):
    """Circular convolution, `[batch, *spatial, channels]`."""
    half = [size // 2 for size in kernel.shape[:-2]]
    padded = jnp.pad(x, [(0, 0), *((size, size) for size in half), (0, 0)], mode="wrap")
    spatial = "HWD"[: len(half)]
    layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return jax.lax.conv_general_dilated(
        padded, kernel, (1,) * len(half), "VALID", dimension_numbers=layout
    )


@pytest.mark.parametrize("window", [(3, 3), (5,), ()])
def test_delta_orthogonal_keeps_every_norm(key, window):
    x = jax.random.normal(key, (4, *(6,) * len(window), 8))
    kernel = delta_orthogonal()(key, (*window, 8, 8))
    y = convolve(x, kernel) if window else x @ kernel
    norms = [np.linalg.norm(a.reshape(4, -1), axis=1) for a in (x, y)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)


@pytest.mark.parametrize(("n_in", "n_out"), [(6, 24), (24, 6)])
def test_delta_orthogonal_keeps_the_mean_square_of_rectangles(key, n_in, n_out):
    def one(key):
        key_x, key_kernel = jax.random.split(key)
        x = jax.random.normal(key_x, (2, 4, n_in))
        return jnp.mean(convolve(x, delta_orthogonal(1.5)(key_kernel, (3, n_in, n_out))) ** 2)

    within_errors(jax.lax.map(one, jax.random.split(key, 100)), 2.25)


def test_delta_orthogonal_keeps_the_dtype(key):
    kernel = delta_orthogonal()(key, (3, 4, 4), jnp.bfloat16)
    assert kernel.dtype == jnp.bfloat16


@pytest.mark.parametrize(("layers", "power"), [(2, -1.0), (3, -0.5)])
def test_fixup(key, layers, power):
    found = fixup(16, layers)
    kernel = found.inner(key, (3, 3, 32, 64))
    within_errors(kernel.ravel() ** 2, 2 / (9 * 64) * 16.0**power)
    assert not np.any(found.last(key, (3, 3, 32, 64)))
    traced = jax.jit(lambda blocks: fixup(blocks, layers).inner(key, (3, 3, 32, 64)))(16)
    np.testing.assert_allclose(traced, kernel, rtol=1e-5)


def test_fixup_one_step_moves_the_output_as_much_at_any_depth(key):
    @functools.partial(jax.jit, static_argnums=0)
    def moved(depth):
        init = fixup(depth)
        keys = jax.random.split(key, depth)
        first = jax.vmap(lambda key: init.inner(key, (64, 64)))(keys)
        params = {"first": first, "last": jnp.zeros_like(first)}
        x = jax.random.normal(key, (1, 64))

        def output(params):
            def block(h, layer):
                return h + jax.nn.relu(h @ layer["first"]) @ layer["last"], None

            return jax.lax.scan(block, x, params)[0].mean()

        step = jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(output)(params))
        return abs(output(step) - output(params))

    assert float(moved(256)) == pytest.approx(float(moved(4)), rel=0.5)


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


def test_unit_variance_of_a_network_that_overflows(key):
    x = jax.random.normal(key, (64, 16))
    params, _ = layers.init(layers.mlp(16, 30, w_variance=1e8), (16,), key=key)
    outputs = jax.jit(network_outputs(x, "relu"))
    assert not np.all(np.isfinite(outputs(params)["hidden"]["kernel"]))
    found = unit_variance(params, outputs, stacked={"first": False, "hidden": True})
    np.testing.assert_allclose(found.std["hidden"]["kernel"], 1, atol=0.01)
    np.testing.assert_allclose(outputs(found.params)["first"]["kernel"].std(), 1, atol=0.01)
    assert int(found.passes) <= 6


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
        (lambda: critical("gelu", 0.01), "'gelu' has no stable critical point for b_variance 0.01"),
        (lambda: critical("softplus", q=1.0), "'softplus' has no stable critical point for q 1"),
        (lambda: critical("tanh", 0.05, q=1.0), "b_variance and q must not both be given"),
        (lambda: critical("tanh", q=0.0), "q must be greater than 0"),
        (lambda: critical("tanh", -0.1), "b_variance must be at least 0"),
        (lambda: critical("tanh", 0.05, width=0), "width must be at least 1"),
        (lambda: critical("tanh", 0.05, distribution="cauchy"), "distribution must be one of"),
        (lambda: delta_orthogonal(float("nan")), "gain must be finite"),
        (lambda: delta_orthogonal()(jax.random.key(0), (2, 3, 4, 4)), "odd window.*(2, 3, 4, 4)"),
        (lambda: fixup(0), "blocks must be at least 1"),
        (lambda: fixup(4, 1), "layers must be at least 2"),
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
