import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, initializers, networks, propagation
from tests.tolerances import rtol, within_errors

ACTIVATIONS = ["tanh", "relu", "sigmoid", "gelu", "selu", "parametric_relu"]


def network(key, depth, width=16, in_features=10, activation="tanh", bias=True):
    return networks.init(
        key,
        in_features,
        width,
        depth,
        activation=activation,
        bias_init=initializers.normal(1.0) if bias else None,
    )


def shallower(params, depth):
    hidden = jax.tree.map(lambda a: a[: depth - 1], params["hidden"])
    return {"first": params["first"], "hidden": hidden}


def outputs(activation, depth):
    return lambda params, x: networks.apply(shallower(params, depth), x, activation)


# The signal


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_signal_equals_the_network(key, activation):
    params = network(key, 6, activation=activation)
    x = jax.random.normal(key, (5, 10))
    signal = propagation.probe(params, x, key, activation, w_variance=1.7, b_variance=0.3).signal
    scaled = networks.scale(params, 1.7, 0.3)
    for depth in range(1, 7):
        h = outputs(activation, depth)(scaled, x)
        expected = jnp.log(jnp.mean(h**2))
        np.testing.assert_allclose(signal.log_activation[depth - 1], expected, atol=1e-5)


def test_preactivation_dead_and_saturated(key):
    params = network(key, 3, bias=False)
    x = jax.random.normal(key, (5, 10))
    signal = propagation.probe(params, x, key, "relu", saturation=0.5).signal
    h = x
    for layer, kernel in enumerate([params["first"]["kernel"], *params["hidden"]["kernel"]]):
        z = h @ kernel
        off = np.asarray(z <= 0)
        np.testing.assert_allclose(signal.log_preactivation[layer], jnp.log(jnp.mean(z**2)), 1e-4)
        np.testing.assert_allclose(signal.saturated[layer], off.mean(), rtol=1e-6)
        np.testing.assert_allclose(signal.dead[layer], off.all(axis=0).mean(), rtol=1e-6)
        h = jax.nn.relu(z)


# The gradient, in reverse mode


@pytest.mark.parametrize(
    ("activation", "segments"),
    [*((name, 3) for name in ACTIVATIONS), (lambda z: z * jnp.cos(z), 1), ("tanh", 8)],
)
def test_exact_equals_autodiff_for_every_depth_and_layer(key, activation, segments):
    depth = 5
    params = network(key, depth, activation=activation)
    x = jax.random.normal(key, (6, 10))

    def loss(h):
        return jnp.sum(jnp.sin(h) * jnp.arange(16.0)[None])

    @jax.jit
    def found(params):
        options = {"w_variance": 1.7, "b_variance": 0.3, "loss": loss, "segments": segments}
        return propagation.exact(params, x, key, activation, **options)

    @jax.jit
    def expected(params):
        """Squared gradients by kernel, and by a shift of each example's pre-activations."""
        kernels, shifts = [], []
        for d in range(1, depth + 1):
            layers = unstacked(networks.scale(params, 1.7, 0.3), d)
            f = lambda layers, shift: loss(shifted(layers, shift, x, activation))  # noqa: E731
            by_layer, by_shift = jax.grad(f, (0, 1))(layers, jnp.zeros((d, 6, 16)))
            kernels.append(jnp.stack([jnp.sum(layer["kernel"] ** 2) for layer in by_layer]))
            shifts.append(jnp.sum(by_shift**2, axis=(1, 2)))
        return kernels, shifts

    out, (kernels, shifts) = found(params), expected(params)
    for d in range(1, depth + 1):
        np.testing.assert_allclose(
            out.log_weight_gradient[d - 1, :d], jnp.log(kernels[d - 1]), atol=2e-4
        )
        np.testing.assert_allclose(out.log_gradient[d - 1, :d], jnp.log(shifts[d - 1]), atol=2e-4)
        assert np.all(np.isnan(out.log_gradient[d - 1, d:]))
        assert np.all(np.isnan(out.log_weight_gradient[d - 1, d:]))


def unstacked(params, depth):
    hidden = [jax.tree.map(lambda a, i=i: a[i], params["hidden"]) for i in range(depth - 1)]
    return [params["first"], *hidden]


def shifted(layers, shifts, x, activation):
    """The last layer's outputs with `shifts[l]` added to the pre-activations of layer l."""
    phi, h = activations.get(activation), x
    for index, layer in enumerate(layers):
        h = networks.applied(phi, layer, networks.affine(layer, h) + shifts[index], None, 0)
    return h


def test_random_readout_of_a_depth_is_the_same_whichever_depths_are_chosen(key):
    params = network(key, 9)
    x = jax.random.normal(key, (4, 10))
    every = propagation.exact(params, x, key)
    some = propagation.exact(params, x, key, depths=(2, 7))
    np.testing.assert_array_equal(some.depths, [2, 7])
    chex.assert_trees_all_close(
        (some.log_gradient, some.log_ratio),
        (every.log_gradient[jnp.array([1, 6])], every.log_ratio[jnp.array([1, 6])]),
        rtol=1e-4,
    )


def test_log_ratio_is_first_over_last(key):
    found = propagation.exact(network(key, 5), jnp.ones((2, 10)), key)
    expected = [found.log_gradient[d, 0] - found.log_gradient[d, d] for d in range(5)]
    np.testing.assert_allclose(found.log_ratio, expected, rtol=1e-6)
    assert found.log_ratio[0] == 0


def test_randomized_activation_draws_in_both_modes(key):
    params = network(key, 4, activation="randomized_leaky_relu", bias=False)
    x = jax.random.normal(key, (3, 10))

    def loss(h):
        return jnp.sum(h**3)

    found = propagation.exact(params, x, key, "randomized_leaky_relu", loss=loss)
    gradient = jax.grad(lambda p: loss(networks.apply(p, x, "randomized_leaky_relu", key=key)))(
        params
    )
    expected = jnp.log(jnp.sum(gradient["first"]["kernel"] ** 2))
    np.testing.assert_allclose(found.log_weight_gradient[-1, 0], expected, rtol=1e-4)
    other = propagation.probe(params, x, jax.random.fold_in(key, 1), "randomized_leaky_relu")
    first = propagation.probe(params, x, key, "randomized_leaky_relu")
    assert np.all(first.signal.log_activation != other.signal.log_activation)


# The two ways agree


@pytest.mark.parametrize(("activation", "w_variance"), [("tanh", 2.5), ("relu", 1.6), ("gelu", 2)])
def test_probe_and_exact_agree_within_standard_errors(key, activation, w_variance):
    seeds, depth = 300, 12
    x = jax.random.normal(key, (4, 10))

    def one(key):
        key_params, key = jax.random.split(key)
        params = network(key_params, depth)
        options = {"w_variance": w_variance, "b_variance": 0.1}
        probe = propagation.probe(params, x, key, activation, **options)
        exact = propagation.exact(params, x, key, activation, segments=2, **options)
        return (
            (probe.log_gradient, exact.log_gradient[:, 0]),
            (probe.log_weight_gradient, exact.log_weight_gradient[:, 0]),
            (probe.log_last_gradient, jnp.diagonal(exact.log_gradient)),
        )

    for forward, backward in jax.jit(jax.vmap(one))(jax.random.split(key, seeds)):
        difference = np.exp(np.asarray(forward, float)) - np.exp(np.asarray(backward, float))
        # Four, for the largest of 36 numbers.
        within_errors(difference, 0.0, k=4.0)


def test_probe_of_a_given_tangent_is_the_jvp(key):
    params = network(key, 4, bias=False)
    x, change = jax.random.normal(key, (2, 3, 10))
    tangent = change @ params["first"]["kernel"]
    out = propagation.probe(params, x, key, "gelu", tangent=tangent)
    for depth in range(1, 5):
        _, moved = jax.jvp(lambda x: outputs("gelu", depth)(params, x), (x,), (change,))  # noqa: B023
        np.testing.assert_allclose(
            out.log_gradient[depth - 1], jnp.log(jnp.mean(moved**2)), atol=1e-4
        )
    with pytest.raises(ValueError, match=r"tangent must have shape \(3, 16\), .*got \(3, 10\)"):
        propagation.probe(params, x, key, tangent=change)


def test_probe_is_unbiased_for_one_network(key):
    params = network(key, 6)
    x = jax.random.normal(key, (3, 10))
    scaled = networks.scale(params, 1.5, 0.2)
    norms = []
    for depth in range(1, 7):
        jacobian = jax.jacobian(lambda p: outputs("tanh", depth)(p, x))(scaled)  # noqa: B023
        norms.append(float(jnp.sum(jacobian["first"]["kernel"] ** 2)) / (3 * 16))
    keys = jax.random.split(key, 4000)
    found = jax.jit(
        jax.vmap(
            lambda k: (
                propagation.probe(params, x, k, w_variance=1.5, b_variance=0.2).log_weight_gradient
            )
        )
    )(keys)
    within_errors(np.exp(np.asarray(found, np.float64)), norms)
    last = propagation.probe(params, x, key, w_variance=1.5, b_variance=0.2).log_last_gradient
    z_jacobian = [
        float(jnp.mean(jax.vmap(jax.vmap(jax.grad(jnp.tanh)))(z) ** 2))
        for z in _preactivations(scaled, x, 6)
    ]
    np.testing.assert_allclose(np.exp(last), z_jacobian, rtol=1e-4)


def _preactivations(params, x, depth):
    found, h = [], x
    for layer in range(depth):
        at = params["first"]
        if layer:
            at = jax.tree.map(lambda a: a[layer - 1], params["hidden"])  # noqa: B023
        found.append(networks.affine(at, h))
        h = jnp.tanh(found[-1])
    return found


# Against theory


@pytest.mark.parametrize(
    ("width", "depth", "seeds"), [(16, 12, 4096), (64, 32, 4096), (256, 32, 512)]
)
def test_relu_mean_squared_gradient_is_exact_at_any_width(optimized, key, width, depth, seeds):
    """E|J|^2 / n = (w_variance / 2)^L without biases, at every width and depth."""
    x = jax.random.normal(key, (1, width))
    variances = jnp.array([1.0, 2.0, 3.0])

    def one(key):
        params = networks.init(key, width, width, depth)
        return jax.vmap(
            lambda v: propagation.probe(params, x, key, "relu", w_variance=v).log_gradient
        )(variances)

    logs = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=64))(jax.random.split(key, seeds))
    # The gradient is taken at z_1: one slope, then a product and a slope for each further layer.
    products = np.arange(depth) * np.log(np.asarray(variances)[:, None] / 2)
    within_errors(np.exp(np.asarray(logs, np.float64) - products), 0.5)


def test_tanh_growth_a_layer_is_that_of_mean_field(optimized, key):
    """Schoenholz et al. (2017): chi = 0.880164 at (1.3, 0.05)."""
    depth, width, seeds, start = 40, 768, 12, 12
    x = jax.random.normal(key, (8, 64))

    def one(key):
        params = network(key, depth, width, 64)
        out = propagation.probe(params, x, key, w_variance=1.3, b_variance=0.05)
        return (out.log_gradient[-1] - out.log_gradient[start]) / (depth - 1 - start)

    growth = np.exp(
        np.asarray(jax.jit(lambda k: jax.lax.map(one, k))(jax.random.split(key, seeds)))
    )
    error = growth.std(ddof=1) / np.sqrt(seeds)
    assert abs(growth.mean() - 0.880164) < max(2 * error, 0.01 * 0.88), (growth.mean(), error)


def test_relu_thousand_layers_double_each(optimized, key):
    """TARGETS row 33: w_variance 4, depth 1000, slope 1 in log2, finite in float32."""
    width, seeds = 128, 16
    x = jax.random.normal(key, (4, 10))

    def one(key):
        params = network(key, 1000, width, bias=False)
        return propagation.probe(params, x, key, "relu", w_variance=4.0).log_gradient

    logs = np.asarray(jax.jit(lambda k: jax.lax.map(one, k))(jax.random.split(key, seeds)))
    assert np.all(np.isfinite(logs))
    slope = (logs[:, -1] - logs[:, 0]) / 999 / np.log(2)
    # The mean of a log lies below the log of the mean by half the variance, 5 / (2 width) a layer.
    error = slope.std(ddof=1) / np.sqrt(seeds)
    assert abs(slope.mean() - (1 - 2.5 / width / np.log(2))) < 3 * error + 5 / width**2
    assert abs(slope.mean() - 1) < 0.04


@pytest.mark.parametrize(
    "activation", ["tanh", "relu", "sigmoid", "erf", "sin", "gelu", "softplus"]
)
def test_ten_thousand_layers_stay_finite_at_any_variance(key, activation):
    params = network(key, 10_000, 24)
    x = jax.random.normal(key, (3, 10))

    @jax.jit
    def run(w_variance, b_variance):
        return propagation.probe(
            params, x, key, activation, w_variance=w_variance, b_variance=b_variance
        )

    for w_variance, b_variance in (
        (1e-8, 0),
        (0.3, 0),
        (1.0, 0.1),
        (5.0, 1e-3),
        (1e3, 0),
        (1e6, 1),
    ):
        out = run(w_variance, b_variance)
        for leaf in jax.tree.leaves(out):
            assert np.all(np.isfinite(leaf)), (w_variance, b_variance)


def test_log_space_equals_float64_where_that_still_holds(key):
    """Small variances take tanh into its linear asymptote; float64 has no need of it."""
    params = network(key, 120, 24, bias=False)
    x = jax.random.normal(key, (3, 10))
    single = propagation.probe(params, x, key, w_variance=0.1)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: a.astype(jnp.float64), params)
        h, signal = x.astype(jnp.float64), []
        for kernel in [double["first"]["kernel"], *double["hidden"]["kernel"]]:
            h = jnp.tanh(h @ kernel * jnp.sqrt(0.1))
            signal.append(float(jnp.log(jnp.mean(h**2))))
    assert signal[-1] < -250
    np.testing.assert_allclose(single.signal.log_activation, signal, atol=2e-3)


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
    params = network(key, depth, 4, bias=False)
    x = jax.random.normal(key, (3, 10))
    tangent = jax.random.normal(jax.random.fold_in(key, 1), (3, 4))
    single = propagation.probe(params, x, key, phi, w_variance=w_variance, tangent=tangent)
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


def test_exact_survives_depth_too(key):
    params = network(key, 2000, 16, bias=False)
    x = jax.random.normal(key, (3, 10))
    for w_variance in (0.01, 100.0):
        out = propagation.exact(params, x, key, "relu", w_variance=w_variance, depths=(1000, 2000))
        assert np.all(np.isfinite(out.log_gradient[1]))
        assert np.all(np.isfinite(out.log_weight_gradient[1]))
        slope = float(out.log_gradient[1, 0] - out.log_gradient[1, -1]) / 1999
        assert slope == pytest.approx(np.log(w_variance / 2), abs=0.5)


def test_dead_network_is_a_result(key):
    params = networks.init(key, 10, 3, 100)
    out = propagation.probe(params, -jnp.ones((1, 10)), key, "relu")
    assert out.log_gradient[-1] == -jnp.inf
    assert out.signal.dead[-1] == 1
    assert not np.any(np.isnan(out.log_gradient))
    zero = propagation.exact(params, jnp.ones((2, 10)), key, "tanh", w_variance=0.0)
    assert zero.log_gradient[-1, 0] == -jnp.inf
    assert zero.log_weight_gradient[-1, 0] == -jnp.inf


# Transforms


@pytest.mark.parametrize("measure", [propagation.probe, propagation.exact])
def test_jit_and_vmap_agree_with_eager(key, measure):
    params = network(key, 5)
    x = jax.random.normal(key, (4, 10))

    def f(v):
        return measure(params, x, key, w_variance=v, b_variance=0.1)

    variances = jnp.array([0.5, 1.0, 3.0])
    batched = jax.jit(jax.vmap(f))(variances)
    for i, v in enumerate(variances):
        single = jax.tree.map(lambda a: a[i], batched)  # noqa: B023
        chex.assert_trees_all_close(f(v), single, rtol=1e-4, atol=1e-5)


def test_variances_are_data(key):
    traces = []
    params = network(key, 5)

    @jax.jit
    def f(w, b):
        traces.append(1)
        return propagation.probe(params, jnp.ones((2, 10)), key, w_variance=w, b_variance=b)

    for v in (0.5, 1.0, 2.0):
        f(v, v / 10)
    assert len(traces) == 1


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float64])
def test_dtypes(key, dtype):
    params = network(key, 5)
    x = jax.random.normal(key, (4, 10), jnp.float32)
    single = propagation.probe(params, x, key)
    with jax.enable_x64(True):
        cast = jax.tree.map(lambda a: a.astype(dtype), params)
        out = propagation.probe(cast, x.astype(dtype), key)
    assert out.log_gradient.dtype == (jnp.float64 if dtype == jnp.float64 else jnp.float32)
    tolerance = max(rtol(dtype) / 10, 1e-4)
    np.testing.assert_allclose(out.log_gradient, single.log_gradient, atol=tolerance)


def test_depth_does_not_change_the_program(key):
    def size(depth):
        params = jax.eval_shape(lambda: networks.init(key, 8, 16, depth))
        x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
        return str(jax.make_jaxpr(propagation.probe)(params, x, key)).count(" = ")

    assert size(4) == size(1000)


def test_a_thousand_layers_compile_as_fast_as_four(key):
    def seconds(depth):
        params = jax.eval_shape(lambda: networks.init(key, 8, 16, depth))
        x = jax.ShapeDtypeStruct((4, 8), jnp.float32)
        start = time.perf_counter()
        jax.jit(lambda p, x: propagation.probe(p, x, key)).lower(params, x).compile()
        return time.perf_counter() - start

    seconds(3)
    assert min(seconds(1000), seconds(1001)) < 2 * max(seconds(4), seconds(5))


# Errors


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"w_variance": -1.0}, "w_variance must be at least 0, got -1"),
        ({"b_variance": float("inf")}, "b_variance must be finite, got inf"),
        ({"saturation": -0.1}, "saturation must be at least 0"),
        ({"w_variance": jnp.ones(3)}, r"w_variance must be one number, got shape \(3,\).*vmap"),
        ({"x": jnp.ones((2, 9))}, r"x must have the 10 features .*\(2, 9\); pass in_features=9"),
        ({"x": jnp.ones((2, 10), int)}, "x must be floating point, got int32; convert"),
        ({"x": jnp.full((2, 10), jnp.nan)}, "x must be finite, got 20 NaN .* remove or impute"),
        ({"x": jnp.ones(10)}, r"x must have shape \[batch, in_features\].*\(10,\)"),
        ({"x": "digits"}, "x must be an array of numbers, got str"),
        ({"params": {"w": 1}}, "params must be the pytree that jaxgrad.networks.init returns"),
        ({"activation": "parametric_relu"}, r"params must hold \['slope'\]"),
        ({"activation": "nope"}, "activation must be one of"),
    ],
)
@pytest.mark.parametrize("measure", [propagation.probe, propagation.exact])
def test_errors(key, measure, change, match):
    arguments = {"params": network(key, 3), "x": jnp.ones((2, 10)), "key": key} | change
    with pytest.raises((ValueError, TypeError), match=match):
        measure(**arguments)


@pytest.mark.parametrize("depths", [(), (0, 1), (2, 1), (1, 1), (4,), (1.5,)])
def test_depths_errors(key, depths):
    with pytest.raises((ValueError, TypeError), match="depths must"):
        propagation.exact(network(key, 3), jnp.ones((2, 10)), key, depths=depths)
