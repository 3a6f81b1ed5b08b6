"""Activations that are transformed for a depth, and constants of unit scaling."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.activations import Activation, leaky_relu
from jaxgrad.theory import Moments, c_map, finite_width, shaped, tailored_relu, unit_scales

NAMES = ("input_scale", "input_shift", "output_shift", "output_scale")
# The constants that the authors' implementation (google-deepmind/dks, tests) computes for `resnet`.
# Its solver stops early: they leave errors of up to 1.5e-9 in the equations.
SLOPE = {
    "tanh": (0.07461073057540868, 0.5566915199964182, -0.5034378768692127, 18.002635964442558),
    "softplus": (0.18761008168267976, 0.40688063442262007, -0.9213466151411376, 8.878672543665223),
    "gelu": (0.07043253126531114, 0.259489297927707, -0.15815378961903598, 20.21158902315857),
    "gelu_tanh": (0.07036271496383567, 0.2586837248593587, -0.15758328114374964, 20.24957330519431),
}
CURVATURE = {
    "tanh": (0.0580205218578313, 0.5218639804099805, -0.4796430704354356, 22.36066261763117),
    "softplus": (0.15011489794748328, 0.5374599901127068, -0.996481014465811, 10.54880187880574),
}


def resnet(layer, x):
    """The modified ResNet-101 of the authors; shortcuts have weight 0.6."""
    branch = layer(layer(layer(x)))
    for blocks in (3, 4, 23, 3):
        for block in range(blocks):
            shortcut = x if block else layer(x)
            x = 0.36 * shortcut + 0.64 * layer(layer(layer(x)))
    return max(layer(x), branch)


def constants(phi):
    return [dict(phi.constants)[name] for name in NAMES]


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOPE)
def test_constants_for_a_slope_are_those_of_the_authors(name):
    np.testing.assert_allclose(constants(shaped(name, resnet, slope=1.2)), SLOPE[name], rtol=2e-8)


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVATURE)
def test_constants_for_a_curvature_are_those_of_the_authors(name):
    computed = constants(shaped(name, resnet, curvature=0.2))
    np.testing.assert_allclose(computed, CURVATURE[name], rtol=3e-8)
    slope = dict(tailored_relu(resnet, 0.75).constants)["slope"]
    np.testing.assert_allclose([slope, np.sqrt(2 / (1 + slope**2))], [0.62918002903, 1.19699654978])


@pytest.mark.slow
@pytest.mark.parametrize("target", [{"slope": 1.5}, {"curvature": 0.3}], ids=str)
def test_constants_solve_the_equations_in_high_precision(target):
    a, b, shift, scale = map(mpmath.mpf, constants(shaped("tanh", 50, **target)))

    def average(function):
        def integrand(z):
            t = mpmath.tanh(a * z + b)
            parts = scale * (t + shift), scale * a * (1 - t**2), -2 * scale * a**2 * t * (1 - t**2)
            return function(z, *parts) * mpmath.npdf(z)

        return float(mpmath.quad(integrand, [-12, -6, 0, 6, 12]))

    assert average(lambda z, v, s, c: v * v) == pytest.approx(1, abs=1e-11)
    assert average(lambda z, v, s, c: v * s * z) == pytest.approx(1, abs=1e-11)
    squared_slope = average(lambda z, v, s, c: s * s)
    if "slope" in target:
        assert average(lambda z, v, s, c: v) == pytest.approx(0, abs=1e-11)
        assert squared_slope**50 == pytest.approx(1.5, rel=1e-10)
    else:
        assert squared_slope == pytest.approx(1, abs=1e-11)
        assert 50 * average(lambda z, v, s, c: c * c) == pytest.approx(0.3, rel=1e-10)


@pytest.mark.slow
def test_maps_of_a_layer_meet_the_target():
    gap = 1e-3
    phi = shaped("tanh", 1000, slope=1.5)
    log_growth = np.log(float(c_map(phi, gap, 1.0, 1.0)) / gap)
    assert 1000 * log_growth == pytest.approx(np.log(1.5), rel=2e-3)
    assert float(c_map(phi, 1.0, 1.0, 1.0)) == pytest.approx(1, abs=1e-10)
    # The gap becomes gap - curvature gap^2 / 2.
    phi = shaped("tanh", 10, curvature=0.3)
    assert 1 - float(c_map(phi, gap, 1.0, 1.0)) / gap == pytest.approx(0.015 * gap, rel=1e-3)


@pytest.mark.slow
def test_targets_of_any_depth_are_met():
    scales = [dict(shaped("tanh", depth).constants)["input_scale"] for depth in (1, 100, 100_000)]
    # Near a linear function the excess of the slope is proportional to the squared input scale.
    assert scales[0] > scales[1] > scales[2]
    assert scales[1] / scales[2] == pytest.approx(np.sqrt(1000), rel=0.01)


@pytest.mark.slow
def test_a_deep_network_is_well_behaved():
    depth, width, seeds = 100, 200, 6
    phi = shaped("gelu", depth)

    def measure(phi, seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        network = layers.mlp(width, depth, phi, w_variance=1.0)
        params, _ = layers.init(network, (width,), key=keys[0])
        x = jax.random.normal(keys[1], (2, width))
        x /= jnp.sqrt(jnp.mean(x * x, axis=1, keepdims=True))
        result = propagation.probe(network, params, x, key=keys[2])
        return result.log_preactivation[-1].mean(), result.log_gradient[-1].mean()

    run = jax.jit(jax.vmap(lambda seed: measure(phi, seed)))
    signal, gradient = map(np.asarray, run(jnp.arange(seeds)))
    law = finite_width.gradient_law(phi, depth, 1.0, width=width)
    network = layers.mlp(width, depth, phi, w_variance=1.0)
    infinite = propagation.predict(network, Moments(log_q=0.0)).log_gradient[-1]
    assert float(infinite) == pytest.approx(np.log(1.5), abs=1e-9)
    # The spread over networks is that of a finite width, about sqrt(2 depth / width) each.
    assert abs(signal.mean()) < 3 * np.sqrt(2 * depth / width / seeds)
    error = np.sqrt(float(law.var_log[-1]) / seeds)
    assert abs(gradient.mean() - float(law.mean_log[-1])) < 3 * error < 1.5
    plain, _ = jax.jit(measure, static_argnums=0)("gelu", 0)
    assert float(plain) < -50


@pytest.mark.slow
def test_a_shaped_activation_is_an_ordinary_one():
    phi = shaped("selu", 20)
    assert isinstance(phi, Activation)
    assert phi == shaped("selu", 20)
    assert hash(phi) == hash(shaped("selu", 20))
    a, b, shift, scale = constants(phi)
    np.testing.assert_allclose(phi.kinks, [-b / a], rtol=1e-12)
    x = jnp.linspace(-3.0, 3.0, 7)
    expected = scale * (jax.nn.selu(a * x + b) + shift)
    np.testing.assert_allclose(phi(x), expected, rtol=1e-6)


def test_unit_scales_of_targets():
    np.testing.assert_allclose(unit_scales("gelu"), [1.70092624, 1.48111441], rtol=1e-8)
    # Var relu = (1 - 1 / pi) q / 2, and half of the slopes are 1.
    forward, backward = unit_scales("relu", np.array([1.0, 4.0]))
    np.testing.assert_allclose(forward, np.sqrt(2 / (1 - 1 / np.pi)) / [1, 2], rtol=1e-12)
    np.testing.assert_allclose(backward, np.sqrt([2, 2]), rtol=1e-12)


@pytest.mark.parametrize(("depth", "target"), [(1, 0.3), (100, 0.99)])
def test_tailored_relu_meets_its_target(depth, target):
    phi = tailored_relu(depth, target)
    slope = dict(phi.constants)["slope"]
    assert 0 <= slope < 1
    assert phi == leaky_relu(slope)
    gap = 1.0
    for _ in range(depth):
        gap = c_map(phi, gap, 1.0, 2 / (1 + slope**2))
    assert float(gap) == pytest.approx(1 - target, rel=1e-9)


def test_tailored_relu_bends_less_in_deeper_networks():
    slopes = [dict(tailored_relu(depth).constants)["slope"] for depth in (20, 100, 1000)]
    assert 0 < slopes[0] < slopes[1] < slopes[2] < 1
    assert dict(tailored_relu(1, 1 / np.pi - 1e-12).constants)["slope"] < 1e-5


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: tailored_relu(0), "depth must be at least 1, got 0"),
        (lambda: tailored_relu(10, 1.0), "target must be less than 1, got 1"),
        (lambda: tailored_relu(10, 0.0), "target must be greater than 0, got 0"),
        (lambda: tailored_relu(2, 0.9), "depth 2 needs no tailoring, use 'relu'"),
        (lambda: tailored_relu(lambda layer, x: x), "depth must have layers, got a function with"),
        (lambda: shaped("tanh", abs), "depth must compose a map .* raised TypeError"),
        (lambda: shaped("tanh", 10, slope=1.0), "slope must be greater than 1, got 1"),
        (lambda: shaped("tanh", 10, slope=2.0, curvature=1.0), "must not both be given"),
        (lambda: shaped("selu", 10, curvature=0.3), "smooth for a curvature, but 'selu' bends"),
        (lambda: shaped("relu", 10), "slope 1.04138 a layer, but none was found for 'relu'"),
        (lambda: shaped("randomized_leaky_relu", 10), "activation must not be randomized, got"),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
