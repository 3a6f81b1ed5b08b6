"""Theory against closed forms, mpmath, published numbers, itself in other forms, and bad input."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jaxgrad import activations, theory
from jaxgrad.theory import quadrature
from jaxgrad.theory.fixed_points import Stability

SCALES = (1e-8, 1e-3, 0.3, 1.0, 30.0, 1e4)
PI = np.pi
SELU, ALPHA = activations.SELU_SCALE, activations.SELU_ALPHA


def _half_normal_exp(q, a):
    """E exp(a x) for x < 0, x ~ N(0, q), in 40 digits."""
    s = mpmath.sqrt(q)
    return mpmath.exp(a * a * q / 2) * mpmath.erfc(a * s / mpmath.sqrt(2)) / 2


def _selu_square(q):
    q = mpmath.mpf(q)
    negative = _half_normal_exp(q, 2) - 2 * _half_normal_exp(q, 1) + mpmath.mpf(1) / 2
    return SELU**2 * (q / 2 + ALPHA**2 * negative)


def _selu_slope(q):
    q = mpmath.mpf(q)
    return SELU**2 * (mpmath.mpf(1) / 2 + ALPHA**2 * _half_normal_exp(q, 2))


CLOSED = {
    "linear": (lambda q: q, lambda q: 1),
    "relu": (lambda q: q / 2, lambda q: 0.5),
    "leaky_relu": (lambda q: q * (1 + 1e-4) / 2, lambda q: (1 + 1e-4) / 2),
    # The mean square of a slope that is uniform between 1/8 and 1/3.
    "randomized_leaky_relu": (lambda q: q * (1 + 97 / 1728) / 2, lambda q: (1 + 97 / 1728) / 2),
    "erf": (
        lambda q: 2 / PI * mpmath.asin(2 * q / (1 + 2 * q)),
        lambda q: 4 / PI / mpmath.sqrt(1 + 4 * q),
    ),
    "sin": (lambda q: -mpmath.expm1(-2 * q) / 2, lambda q: (1 + mpmath.exp(-2 * q)) / 2),
    "hard_tanh": (
        lambda q: (
            q * mpmath.erf(1 / mpmath.sqrt(2 * q))
            - mpmath.sqrt(2 * q / mpmath.pi) * mpmath.exp(-1 / (2 * mpmath.mpf(q)))
            + mpmath.erfc(1 / mpmath.sqrt(2 * q))
        ),
        lambda q: mpmath.erf(1 / mpmath.sqrt(2 * mpmath.mpf(q))),
    ),
    "selu": (_selu_square, _selu_slope),
}


@pytest.mark.parametrize("q", SCALES)
@pytest.mark.parametrize("name", CLOSED)
def test_moments_equal_closed_forms(name, q):
    with mpmath.workdps(40):
        square, slope = (float(f(mpmath.mpf(q))) for f in CLOSED[name])
    np.testing.assert_allclose(theory.second_moment(name, q), square, rtol=1e-12)
    np.testing.assert_allclose(theory.slope_moment(name, q), slope, rtol=1e-12)


@pytest.mark.parametrize("q", [1e-8, 0.7, 1e4])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "silu", "gelu", "elu"])
def test_moments_equal_those_of_mpmath(name, q):
    functions = {
        "tanh": mpmath.tanh,
        "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
        "softplus": lambda x: mpmath.log1p(mpmath.exp(-abs(x))) + max(x, 0),
        "silu": lambda x: x / (1 + mpmath.exp(-x)),
        "gelu": lambda x: x * mpmath.ncdf(x),
        "elu": lambda x: x if x > 0 else mpmath.expm1(x),
    }
    with mpmath.workdps(20):
        s = mpmath.sqrt(q)

        def density(z):
            return functions[name](s * z) ** 2 * mpmath.npdf(z)

        # Panels that double away from zero, where the function turns.
        ends = [
            mpmath.mpf(2) ** k / max(s, 1) for k in range(-2, 5 + int(mpmath.log(max(s, 1), 2)))
        ]
        ends = [end for end in ends if end < 13] + [13]
        exact = mpmath.quad(density, [-e for e in reversed(ends)] + [0, *ends], maxdegree=5)
    np.testing.assert_allclose(theory.second_moment(name, q), float(exact), rtol=1e-12)


def test_kinks_that_nobody_told_are_found():
    found = quadrature.mesh(activations.get(lambda x: jnp.abs(x - 0.3) + (x > 1.7)))
    np.testing.assert_allclose(found.kinks, [0.3, 1.7], atol=1e-12)
    told = activations.Activation("told", lambda x: jnp.abs(x - 0.3), kinks=(0.3,))
    hidden = activations.get(lambda x: jnp.abs(x - 0.3))
    for q in SCALES:
        expected = theory.second_moment(told, q)
        np.testing.assert_allclose(theory.second_moment(hidden, q), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_activations_of_another_scale(scale):
    scaled = theory.second_moment(lambda x: jnp.tanh(scale * x), 0.5)
    np.testing.assert_allclose(scaled, theory.second_moment("tanh", 0.5 * scale**2), rtol=1e-11)


@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "gelu", "selu", "relu"])
def test_derivatives_of_moments(name):
    with jax.enable_x64(True):
        for function in (theory.second_moment, theory.slope_moment):
            by_autodiff = jax.jit(jax.grad(lambda q, f=function: f(name, q)))(0.7)
            h = 1e-4
            steps = (function(name, 0.7 + h) - function(name, 0.7 - h)) / (2 * h)
            np.testing.assert_allclose(by_autodiff, steps, rtol=1e-6, atol=1e-9)
        slope = jax.grad(lambda q: theory.second_moment(name, q))(0.7)
        np.testing.assert_allclose(theory.chi_par(name, 0.7, 1.3), 1.3 * slope, rtol=1e-11)


def test_the_correlation_map_equals_closed_forms():
    gaps = [2.0, 1.3, 1.0, 0.1, 1e-3, 1e-6, 1e-9, 1e-12]
    with mpmath.workdps(40):

        def relu(gap):
            c = 1 - mpmath.mpf(gap)
            return 1 - (mpmath.sqrt(1 - c * c) + (mpmath.pi - mpmath.acos(c)) * c) / mpmath.pi

        def erf(gap, q=0.7):
            q, c = mpmath.mpf(q), 1 - mpmath.mpf(gap)
            top = mpmath.asin(2 * q / (1 + 2 * q))
            return (top - mpmath.asin(2 * q * c / (1 + 2 * q))) / top

        exact = {"relu": [float(relu(g)) for g in gaps], "erf": [float(erf(g)) for g in gaps]}
    for name, expected in exact.items():
        found = theory.c_map(name, np.array(gaps), 0.7, 2.0)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
        np.testing.assert_allclose(found[:4], expected[:4], rtol=1e-13)
    # Two examples with draws of their own come apart even if they are equal.
    apart = theory.c_map("randomized_leaky_relu", 1e-14, 1.0, 2.0)
    mean, square = 11 / 48, 97 / 1728
    np.testing.assert_allclose(apart, (square - mean**2) / (1 + square), rtol=1e-6)


def test_the_correlation_map_with_biases_follows_sampled_networks(key):
    q, gap, w, b = 0.8, 0.3, 1.7, 0.1
    u = np.random.default_rng(0).standard_normal((2, 4_000_000)) * np.sqrt(q)
    v = (1 - gap) * u[0] + np.sqrt(1 - (1 - gap) ** 2) * u[1]
    product = np.tanh(u[0]) * np.tanh(v)
    error = product.std() / np.sqrt(product.size)
    after = float(theory.q_map("tanh", q, w, b))
    expected = ((1 - theory.c_map("tanh", gap, q, w, b)) * after - b) / w
    assert abs(product.mean() - expected) < 3 * error


@pytest.mark.parametrize("name", ["tanh", "erf", "hard_tanh", "elu", "selu", "gelu", "sigmoid"])
def test_critical_points_lie_on_the_critical_line(name):
    line = theory.critical_line(name, np.geomspace(1e-3, 1e3, 13))
    exists = np.isfinite(line.w_variance)
    assert exists.any()
    for w, b, q in zip(*(part[exists] for part in line[:3]), strict=True):
        np.testing.assert_allclose(theory.chi_perp(name, q, w), 1.0, rtol=1e-12)
        np.testing.assert_allclose(theory.q_map(name, q, w, b), q, rtol=1e-12)
    stable = exists & (line.chi_par < 0.999)
    assert stable.sum() >= 3
    for w, b, q in zip(*(part[stable][:3] for part in line[:3]), strict=True):
        point = theory.critical(name, b)
        np.testing.assert_allclose([point.w_variance, point.q], [w, q], rtol=1e-7)


def test_where_there_is_no_critical_point():
    assert np.isnan(theory.critical("relu", 0.1).w_variance)
    assert np.isnan(theory.critical("gelu", 0.1).w_variance)
    assert np.isnan(theory.critical("softplus").w_variance)
    # A critical sigmoid needs weights so large that its own output is the bias.
    sigmoid = theory.critical("sigmoid", 0.0)
    assert sigmoid.w_variance > 100
    assert np.isnan(theory.critical_line("sigmoid", 10.0).w_variance)


def test_all_fixed_points_with_their_stability():
    def kinds(*args):
        found = theory.fixed_points(*args)
        there = found.stability != Stability.NONE
        return found.q[there], [Stability(s).name for s in found.stability[there]], found

    q, names, _ = kinds("tanh", 2.0, 0.0)
    np.testing.assert_allclose(q, [0.0, 0.617965], atol=1e-6)
    assert names == ["UNSTABLE", "STABLE"]
    assert kinds("tanh", 0.9, 0.0)[1] == kinds("tanh", 1.0, 0.0)[1] == ["STABLE"]
    assert kinds("relu", 2.0, 0.0)[1] == ["NEUTRAL"]
    np.testing.assert_allclose(kinds("relu", 1.5, 0.1)[0], [0.4], rtol=1e-12)
    assert len(kinds("relu", 2.5, 0.1)[0]) == 0
    # Near the point where both slopes are 1, GELU has three.
    q, names, found = kinds("gelu", 1.99, 0.16)
    assert names == ["STABLE", "UNSTABLE", "STABLE"]
    for value, slope in zip(q, found.chi_par, strict=False):
        np.testing.assert_allclose(theory.q_map("gelu", value, 1.99, 0.16), value, rtol=1e-12)
        np.testing.assert_allclose(theory.chi_par("gelu", value, 1.99), slope, rtol=1e-9)


def _step(x):
    return jnp.tanh(x / 4) ** 2


@pytest.mark.parametrize(
    ("phi", "w", "b"), [(_step, 60.0, 0.5), ("gelu", 1.985, 0.17)], ids=["step", "gelu"]
)
def test_several_fixed_points_are_those_of_a_fine_scan(phi, w, b):
    grid = np.geomspace(1e-4, 1e4, 20001)
    gain = theory.q_map(phi, grid, w, b) - grid
    crossings = np.sqrt(grid[1:] * grid[:-1])[gain[1:] * gain[:-1] < 0]
    found = theory.fixed_points(phi, w, b)
    there = found.stability >= 0
    assert len(crossings) == 3
    np.testing.assert_allclose(found.q[there], crossings, rtol=1e-3)
    down = np.sign(gain[:-1])[gain[1:] * gain[:-1] < 0] > 0
    expected = np.where(down, Stability.STABLE, Stability.UNSTABLE)
    np.testing.assert_array_equal(found.stability[there], expected)


def test_a_touching_fixed_point_is_half_stable():
    # The second moment is convex and then concave, so that a line can touch it from below: the
    # length map has slope 1 at q and, with this bias, passes through it.
    q = 2.0
    w = 1 / theory.chi_par(_step, q, 1.0)
    b = q - w * theory.second_moment(_step, q)
    found = theory.fixed_points(_step, w, b)
    there = found.stability >= 0
    assert Stability.HALF_STABLE in found.stability[there]
    at = int(np.flatnonzero(found.stability == Stability.HALF_STABLE)[0])
    np.testing.assert_allclose(found.q[at], q, rtol=1e-4)


def test_limits_are_where_iteration_ends():
    for name, w, b, start in (
        ("tanh", 2.5, 0.3, 7.0),
        ("gelu", 1.9, 0.2, 0.01),
        ("selu", 1.0, 0.0, 5.0),
        ("sigmoid", 4.0, 0.1, 1.0),
    ):
        q = start
        for _ in range(3000):
            q, before = float(theory.q_map(name, q, w, b)), q
            if abs(q - before) < 1e-14 * q:
                break
        np.testing.assert_allclose(theory.limit(name, w, b, start).q, q, rtol=1e-10)
    assert theory.limit("relu", 3.0).q == np.inf
    assert theory.limit("relu", 1.0).q == 0
    assert theory.limit("relu", 2.0, 0.0, 3.0).q == 3.0


def test_correlations_of_arrays_are_those_of_their_elements():
    w, b = np.array([0.8, 1.3, 2.5]), np.array([[0.05], [0.3]])
    together = theory.correlation("tanh", w, b)
    for i, j in np.ndindex(2, 3):
        alone = theory.correlation("tanh", w[j], b[i, 0])
        np.testing.assert_allclose(together.gap[i, j], alone.gap, rtol=1e-10)
        np.testing.assert_allclose(together.chi[i, j], alone.chi, rtol=1e-10)


def test_the_chaotic_angle_is_a_fixed_point_of_the_correlation_map():
    w, b = 2.5, 0.05
    where, angle = theory.limit("tanh", w, b), theory.correlation("tanh", w, b)
    assert where.chi_perp > 1
    np.testing.assert_allclose(
        theory.c_map("tanh", angle.gap, where.q, w, b), angle.gap, rtol=1e-10
    )
    h = 1e-5
    above, below = (theory.c_map("tanh", angle.gap + s * h, where.q, w, b) for s in (1, -1))
    np.testing.assert_allclose(angle.chi, (above - below) / (2 * h), rtol=1e-7)
    assert theory.correlation("tanh", 1.3, 0.05).gap == 0


def test_predictions_approach_criticality_as_power_laws():
    relu = theory.predict("relu", 2000, 2.0, input_gap=1.0)
    approach = np.arange(1, 2001) ** 2 * relu.gap
    assert abs(approach[-1] - 9 * PI**2 / 2) < 0.02 * 44.413
    assert abs(approach[-1] - 44.413) < 0.6 * abs(approach[999] - 44.413)
    tanh = theory.predict("tanh", 3000, 1.0)
    np.testing.assert_allclose(2 * 3000 * np.exp(tanh.log_preactivation[-1]), 1.0, atol=2e-3)
    # A power law: the logarithm of the gradient falls like that of the depth.
    fall = tanh.log_ratio[-1] - tanh.log_ratio[299]
    np.testing.assert_allclose(fall, -np.log(10), rtol=0.02)
    deep = theory.predict("relu", 1000, 4.0)
    np.testing.assert_allclose(np.diff(deep.log_gradient), np.log(2), rtol=1e-9)
    far = theory.predict("relu", 20_000, 4.0)
    np.testing.assert_allclose(far.log_preactivation[-1] / np.log(2), 20_001, rtol=1e-9)


def test_theory_composes_with_transformations():
    @jax.jit
    def slope(w):
        return jax.grad(lambda w: theory.limit("tanh", w, 0.05).q)(w)

    h = 1e-4
    steps = (theory.limit("tanh", 1.3 + h, 0.05).q - theory.limit("tanh", 1.3 - h, 0.05).q) / (
        2 * h
    )
    np.testing.assert_allclose(slope(1.3), steps, rtol=1e-5)
    assert slope(1.3).dtype == jnp.float32
    assert isinstance(theory.limit("tanh", 1.3).q, np.ndarray)
    b = jnp.array([0.01, 0.05])
    critical = jax.jit(jax.vmap(lambda b: theory.critical("tanh", b).w_variance))(b)
    np.testing.assert_allclose(critical, [1.424205, 1.760955], rtol=1e-6)
    with jax.enable_x64(True):
        derivative = jax.grad(lambda b: theory.critical("tanh", b).w_variance)(0.05)
        steps = (
            theory.critical("tanh", 0.05 + h).w_variance
            - theory.critical("tanh", 0.05 - h).w_variance
        )
        np.testing.assert_allclose(derivative, steps / (2 * h), rtol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda b: theory.predict("relu", 3, 1.2, b).log_gradient[-1] + b,
        lambda b: theory.predict("tanh", 3, 1.2, b).log_preactivation[-1],
        lambda b: theory.limit("tanh", 1.5, b).q,
        lambda b: theory.finite_width.gradient_law("tanh", 3, 1.2, b, width=50).mean_log[-1],
    ],
    ids=["gradient", "signal", "limit", "finite width"],
)
def test_derivatives_where_there_is_no_bias(function):
    with jax.enable_x64(True):
        h = 1e-6
        forward = (-function(2 * h) + 4 * function(h) - 3 * function(0.0)) / (2 * h)
        np.testing.assert_allclose(jax.grad(function)(0.0), forward, rtol=1e-4)
    assert jax.jvp(function, (0.1,), (1.0,))[1].dtype == jnp.float32


def test_a_phase_diagram_has_no_nan():
    w, b = np.meshgrid(np.linspace(0.01, 4.0, 60), np.linspace(0.0, 1.0, 50))
    found = theory.limit("tanh", w, b)
    assert found.q.shape == w.shape
    for field in found:
        assert not np.isnan(field).any()
    ordered = found.chi_perp < 1
    line = np.array([theory.critical("tanh", value).w_variance for value in b[::10, 0]])
    np.testing.assert_array_equal(ordered[::10], w[::10] < line[:, None])


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda x: x / jnp.linalg.norm(x), "element by element"),
        (lambda x: jax.nn.softmax(x), "element by element"),
        (lambda x: x - jnp.mean(x), "element by element"),
        (jnp.log, "NaN"),
        (jnp.sqrt, "NaN"),
        (lambda x: jnp.sign(x) * jnp.sqrt(jnp.abs(x)), "rough"),
        (lambda x: jnp.zeros_like(x), "second moment"),
    ],
    ids=["norm", "softmax", "mean", "log", "sqrt", "cusp", "zero"],
)
def test_wrong_activations_are_refused(function, match):
    with pytest.raises(ValueError, match=match):
        theory.fixed_points(function, 1.0, 0.1)


def test_moments_that_diverge_are_not_numbers():
    def steep(x):
        return jnp.exp(x * x / 8)

    np.testing.assert_allclose(theory.second_moment(steep, 0.5), (1 - 0.25) ** -0.5, rtol=1e-12)
    assert np.isnan(theory.second_moment(steep, np.array([2.0, 2.5, 8.0]))).all()
    assert np.isnan(theory.second_moment(jnp.exp, 100.0))
    np.testing.assert_allclose(theory.second_moment(jnp.exp, 1.0), np.exp(2.0), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: theory.second_moment("tanh", -1.0), "q must be finite and greater than 0, got -1"),
        (lambda: theory.q_map("tanh", 1.0, -1.0), "w_variance .* got -1"),
        (lambda: theory.limit("tanh", 1.0, -0.1), "b_variance .* got -0.1"),
        (lambda: theory.fixed_points("tanh", np.nan), "w_variance"),
        (lambda: theory.critical("tanh", -1.0), "b_variance"),
        (lambda: theory.critical_line("tanh", 0.0), "q must"),
        (lambda: theory.predict("tanh", 0, 1.0), "depth"),
        (lambda: theory.predict("tanh", 3, 1.0, input_square=0.0), "input_square"),
        (lambda: theory.second_moment("tan", 1.0), "activation must be one of"),
        (lambda: theory.moments_of(jnp.ones((1, 3)), gap=True), "2 examples"),
    ],
)
def test_wrong_numbers_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
