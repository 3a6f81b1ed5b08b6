import functools

import equinox
import flax.linen
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxgrad import activations, layers, propagation
from jaxgrad.layers import _activation

POINTS = np.concatenate([np.linspace(-6, 6, 97), [0.0, -1.0, 1.0, 1e-6, -1e-6]]).astype(np.float32)


def expm1_negative(x, alpha):
    return x if x > 0 else alpha * mpmath.expm1(x)


REFERENCE = {
    "linear": lambda x: x,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "tanh": mpmath.tanh,
    "erf": mpmath.erf,
    "hard_tanh": lambda x: max(-1, min(1, x)),
    "sin": mpmath.sin,
    "relu": lambda x: max(0, x),
    "leaky_relu": lambda x: x if x > 0 else mpmath.mpf("0.01") * x,
    "randomized_leaky_relu": lambda x: x if x > 0 else mpmath.mpf(11) / 48 * x,
    "parametric_relu": lambda x: x if x > 0 else x / 4,
    "elu": lambda x: expm1_negative(x, 1),
    "selu": lambda x: activations.SELU_SCALE * expm1_negative(x, activations.SELU_ALPHA),
    "gelu": lambda x: x * (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2,
    "gelu_tanh": lambda x: (
        x / 2 * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))
    ),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
}


def test_reference_covers_the_table():
    assert set(REFERENCE) == set(activations.TABLE)


@pytest.mark.parametrize("name", activations.TABLE)
def test_value_and_slope_equal_high_precision(name):
    phi = activations.get(name)
    smooth = np.array([x for x in POINTS if all(abs(x - k) > 1e-3 for k in phi.kinks)])
    expected = np.array([float(REFERENCE[name](mpmath.mpf(float(x)))) for x in POINTS])
    slope = np.array([float(mpmath.diff(REFERENCE[name], mpmath.mpf(float(x)))) for x in smooth])
    with jax.enable_x64(True):
        np.testing.assert_allclose(phi(jnp.asarray(POINTS, jnp.float64)), expected, atol=1e-13)
        got = jax.vmap(jax.grad(phi))(jnp.asarray(smooth, jnp.float64))
        np.testing.assert_allclose(got, slope, atol=1e-12)


@pytest.mark.parametrize("name", activations.TABLE)
def test_kinks_are_where_the_slope_jumps_and_nowhere_else(name):
    phi = activations.get(name)
    slope = jax.vmap(jax.grad(phi))
    grid = np.linspace(-4, 4, 1601)
    step = 1e-5
    with jax.enable_x64(True):
        jump = np.abs(slope(jnp.asarray(grid + step)) - slope(jnp.asarray(grid - step)))
    at_kink = np.min(np.abs(grid[:, None] - np.array([*phi.kinks, np.inf])), axis=1) < step
    assert np.all(jump[at_kink] > 0.01)
    assert np.all(jump[~at_kink] < 1e-3)
    assert at_kink.sum() == len(phi.kinks)


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("sigmoid", lambda x: mpmath.sech(x / 2) ** 2 / 4),
        ("tanh", lambda x: mpmath.sech(x) ** 2),
        ("erf", lambda x: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-x * x)),
    ],
)
@pytest.mark.parametrize("row", [(0.1, -0.5, 2.0), (21.0, -22.0, 23.5), (60.0, 60.5, -62.0)])
def test_scaled_slope_holds_where_the_slope_underflows(name, exact, row):
    slope, log_scale = activations.get(name).scaled_slope(jnp.asarray([row], jnp.float32))
    expected = [float(exact(mpmath.mpf(x)) / mpmath.exp(float(log_scale[0, 0]))) for x in row]
    np.testing.assert_allclose(slope[0], expected, rtol=1e-5, atol=1e-30)
    assert np.max(slope) > 1e-9


@pytest.mark.parametrize("name", activations.TABLE)
def test_declared_degrees_equal_measured_ones(name):
    phi = activations.get(name)
    anonymous = activations.get(functools.partial(phi))
    assert anonymous.degrees is None
    for declared, measured in zip(
        _activation._degrees(phi), _activation._degrees(anonymous), strict=True
    ):
        np.testing.assert_array_equal(declared, measured)


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("gelu", functools.partial(flax.linen.gelu, approximate=False)),
        ("silu", flax.linen.silu),
        ("elu", flax.linen.elu),
        ("selu", flax.linen.selu),
        ("softplus", flax.linen.softplus),
        ("leaky_relu", flax.linen.leaky_relu),
        ("parametric_relu", equinox.nn.PReLU(0.25)),
    ],
)
def test_equal_to_other_libraries(name, other):
    np.testing.assert_allclose(activations.get(name)(POINTS), other(POINTS), atol=1e-6)


def test_randomized_leaky_relu_draws_slopes(key):
    phi = activations.get("randomized_leaky_relu")
    slopes = phi(-jnp.ones(20_000), key=key) * -1
    assert 1 / 8 <= slopes.min() < 0.13
    assert 0.33 < slopes.max() <= 1 / 3
    error = (1 / 3 - 1 / 8) / np.sqrt(12 * 20_000)
    assert abs(slopes.mean() - 11 / 48) < 3 * error
    assert float(phi(-1.0)) == pytest.approx(-11 / 48)


def test_parametric_slope_is_a_parameter(key):
    network = layers.mlp(4, 5, "parametric_relu")
    params, state = layers.init(network, (3,), key=key)
    assert params["hidden"]["activation"]["slope"].shape == (4,)
    gradient = jax.grad(lambda p: layers.apply(network, p, state, jnp.ones((2, 3)))[0].sum())
    assert np.all(gradient(params)["hidden"]["activation"]["slope"] != 0)


@pytest.mark.parametrize(
    "equal",
    [
        ("tanh", jnp.tanh),
        ("relu", jax.nn.relu),
        ("gelu", lambda x: jax.nn.gelu(x, approximate=False)),
        ("sigmoid", jax.nn.sigmoid),
        ("softplus", lambda x: jnp.logaddexp(x, 0.0)),
    ],
    ids=lambda pair: pair[0],
)
def test_own_callable_is_as_good_as_a_name(key, equal):
    params, _ = layers.init(layers.mlp(32, 200), (6,), key=key)
    x = jax.random.normal(key, (4, 6))
    variances = jnp.asarray([1e-3, 1.5, 30.0])

    def logs(phi):
        def probe(w):
            network = layers.mlp(32, 200, phi, w_variance=w, parameterization="ntk")
            return propagation.probe(network, params, x, key=key).log_gradient

        return jax.jit(jax.vmap(probe))(variances)

    one, other = map(logs, equal)
    # Saturated slopes are rounded without scaled_slope, hence the absolute part.
    np.testing.assert_allclose(one[:, :20], other[:, :20], rtol=1e-3, atol=2e-3)


def test_activations_are_hashable_and_do_not_retrace():
    traces = []

    def count(x, phi):
        traces.append(phi)
        return activations.get(phi)(x)

    jitted = jax.jit(count, static_argnums=1)
    for phi in ("relu", activations.leaky_relu(0.2), activations.leaky_relu(0.2), "relu"):
        jitted(1.0, phi)
    assert len(traces) == 2


@pytest.mark.parametrize(
    ("wrong", "error", "match"),
    [
        ("swish9", ValueError, "activation must be one of linear, .*swish9"),
        (3, TypeError, "activation must be a name or a callable, got 3"),
        (lambda x: x.sum(), ValueError, r"element by element.*\(\)"),
        (lambda x, y: x, TypeError, "activation must accept one floating-point array"),
    ],
)
def test_errors(wrong, error, match):
    with pytest.raises(error, match=match):
        activations.get(wrong)


@pytest.mark.parametrize("make", [activations.leaky_relu, activations.parametric_relu])
@pytest.mark.parametrize("slope", [float("nan"), "steep", np.ones(2)])
def test_slope_errors(make, slope):
    with pytest.raises((ValueError, TypeError), match="slope must be"):
        make(slope)
