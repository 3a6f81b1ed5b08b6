"""Shared numerics against plain formulas in higher precision, at sizes that overflow float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import _numerics


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1.0, 1e200, 1e308])
def test_norm_and_rms_at_any_size(size):
    values = np.array([[0.6, -0.8]]) * size
    np.testing.assert_allclose(_numerics.norm(values), size, rtol=1e-15)
    np.testing.assert_allclose(_numerics.rms(values), size / math.sqrt(2), rtol=1e-15)


def test_norm_and_rms_of_complex_numbers():
    values = np.array([3.0 + 4.0j, 0.0])
    assert _numerics.norm(values) == pytest.approx(5.0, rel=1e-15)
    assert _numerics.rms(values) == pytest.approx(5.0 / math.sqrt(2), rel=1e-15)


def test_norm_and_rms_of_nothing_and_of_zeros():
    for values in (np.zeros(0), np.zeros(3)):
        assert _numerics.norm(values) == 0.0
        assert _numerics.rms(values) == 0.0


def test_norm_of_what_is_not_finite_is_nan_and_rms_leaves_it_out():
    for bad in (np.nan, np.inf):
        values = np.array([3.0, bad, 4.0])
        assert math.isnan(_numerics.norm(values))
        assert _numerics.rms(values) == pytest.approx(math.sqrt(12.5), rel=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("log_size", [-80.0, 0.0, 80.0])
def test_log_mean_square_beyond_the_range_of_squares(log_size):
    rows = np.array([[1.0, -2.0], [3.0, 0.0]])
    a = jnp.asarray(rows * math.exp(log_size), jnp.float32)
    expected = np.log([2.5, 4.5]) + 2 * log_size
    np.testing.assert_allclose(_numerics.log_mean_square(a, axis=1), expected, rtol=2e-6, atol=1e-6)
    both = _numerics.log_mean_square(a, axis=(0, 1))
    np.testing.assert_allclose(both, math.log(3.5) + 2 * log_size, rtol=2e-6, atol=1e-6)


def test_log_mean_square_of_zeros_infinities_and_nan():
    a = jnp.asarray([[0.0, 0.0], [1.0, -jnp.inf], [1.0, jnp.nan]])
    np.testing.assert_array_equal(_numerics.log_mean_square(a, axis=1), [-np.inf, np.inf, np.nan])


def test_derivative_of_log_mean_square():
    a = jnp.asarray([3e30, 4e30])
    derivative = jax.grad(lambda a: _numerics.log_mean_square(a, axis=0))(a)
    np.testing.assert_allclose(derivative, 2 * np.array([3.0, 4.0]) / 25e30, rtol=1e-6)


def test_rescale_divides_each_example_by_its_root_mean_square():
    a = jnp.asarray([[[1e30, -1e30]], [[3e-30, 4e-30]], [[0.0, 0.0]]])
    scaled, shift, log_square = jax.jit(lambda a: _numerics.rescale(a, together=False))(a)
    np.testing.assert_allclose(jnp.mean(scaled**2, axis=(1, 2)), [1.0, 1.0, 0.0], rtol=1e-5)
    assert scaled.shape == a.shape
    np.testing.assert_array_equal(shift[:2], log_square[:2])
    assert shift[2] == 0.0
    assert log_square[2] == -jnp.inf


def test_rescale_together_keeps_ratios():
    a = jnp.asarray([[1e30, 1e30], [2e30, -2e30]])
    scaled, shift, log_square = _numerics.rescale(a, together=True)
    np.testing.assert_allclose(scaled, [[0.5, 0.5], [1.0, -1.0]], rtol=1e-5)
    np.testing.assert_allclose(shift, [math.log(4e60)] * 2, rtol=1e-6)
    np.testing.assert_allclose(log_square, np.log([1e60, 4e60]), rtol=1e-6)


def test_log_mean_exp():
    logs = jnp.asarray([[1000.0, 1000.0], [-1000.0, -jnp.inf]])
    np.testing.assert_allclose(_numerics.log_mean_exp(logs), [1000.0, -1000.0 - math.log(2)])
    along = _numerics.log_mean_exp(logs, axis=(0, 1))
    np.testing.assert_allclose(along, 1000.0 - math.log(2))


def test_weighted_log_sum_exp():
    def value(*weights):
        return _numerics.weighted_log_sum_exp(weights, (1000.0, 999.0))

    np.testing.assert_allclose(value(2.0, 3.0), 1000 + math.log(2 + 3 / math.e), rtol=1e-7)
    np.testing.assert_allclose(value(0.0, 3.0), 999 + math.log(3), rtol=1e-7)
    assert _numerics.weighted_log_sum_exp((0.0, 0.0), (1.0, 2.0)) == -jnp.inf


def test_derivatives_of_weighted_log_sum_exp_where_a_weight_is_zero():
    by_weights = jax.grad(
        lambda w, b: _numerics.weighted_log_sum_exp((w, b), (-2.0, 0.0)), argnums=(0, 1)
    )
    np.testing.assert_allclose(by_weights(1.5, 0.0), (1 / 1.5, math.exp(2) / 1.5), rtol=1e-6)
    by_log = jax.grad(lambda log: _numerics.weighted_log_sum_exp((1.5, 0.0), (log, 0.0)))
    assert by_log(-2.0) == pytest.approx(1.0, rel=1e-6)


def test_bisection_finds_known_roots_in_either_direction(x64):
    targets = jnp.asarray([0.5, 2.0, 3.0])

    def function(x):
        return x**2 - targets

    roots = _numerics.bisect(function, jnp.zeros(3), jnp.full(3, 2.0), steps=60)
    np.testing.assert_allclose(roots, np.sqrt(targets), rtol=1e-14)
    roots = _numerics.bisect(function, jnp.full(3, 2.0), jnp.zeros(3), steps=60)
    np.testing.assert_allclose(roots, np.sqrt(targets), rtol=1e-14)


def test_bisection_without_a_change_of_sign_ends_at_a_bound(x64):
    above = _numerics.bisect(lambda x: x + 1.0, 0.0, 1.0, steps=50)
    below = _numerics.bisect(lambda x: -x - 1.0, 0.0, 1.0, steps=50, sign=1.0)
    np.testing.assert_allclose((above, below), (1.0, 0.0), atol=1e-14)


@pytest.mark.parametrize("steep", [0.0, 200.0])
def test_secants_find_roots_with_few_evaluations(x64, steep):
    roots, evaluations = np.array([-27.5, -3.0, -1e-9, 0.0]), []

    def function(x):
        jax.debug.callback(lambda _: evaluations.append(1), x[0])
        return jnp.tanh((roots - x) * (0.3 + steep)) * jnp.exp(x / 4)

    low, high = np.full(4, -30.0), np.zeros(4)
    found = _numerics.bracketed_secant(function, low, high, tolerance=1e-11)
    jax.effects_barrier()
    np.testing.assert_allclose(found, roots, rtol=0, atol=1.1e-11)
    # Bisection takes 41.
    assert len(evaluations) <= (20 if not steep else 60)


def test_secants_stop_where_no_digits_are_left_or_nothing_is_known():
    root = _numerics.bracketed_secant(lambda x: 0.3 - x, 0.0, 1.0, tolerance=1e-30)
    assert abs(root - 0.3) < 1e-6
    nothing = _numerics.bracketed_secant(lambda x: x * jnp.nan, 0.0, 1.0, tolerance=1e-3)
    assert 0 <= nothing <= 1


def test_bisection_halves_the_interval_in_every_step():
    root = _numerics.bisect(lambda x: x - 0.3, 0.0, 1.0, steps=2)
    assert root == 0.375


def test_golden_section_finds_known_minima(x64):
    def cost(x):
        return (x - jnp.asarray([0.2, 1.7])) ** 2

    least = _numerics.golden_section(cost, jnp.full(2, -1.0), jnp.full(2, 3.0), steps=70)
    np.testing.assert_allclose(least, [0.2, 1.7], atol=1e-7)
    kink = _numerics.golden_section(lambda x: jnp.abs(x - 0.7), 0.0, 1.0, steps=70)
    np.testing.assert_allclose(kink, 0.7, atol=1e-13)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32, np.float64, jnp.complex64])
def test_float_eps_of_floating_types(dtype):
    assert _numerics.float_eps(dtype) == float(jnp.finfo(dtype).eps)


def test_float_eps_of_other_types_is_zero():
    for dtype in (jnp.int32, bool, jax.random.key(0).dtype, None):
        assert _numerics.float_eps(dtype) == 0.0


def test_float64_scope_returns_numpy_and_rounds_for_traced_programs():
    @_numerics.in_float64
    def third(x):
        return jnp.asarray(1.0) / x

    assert third(3.0).dtype == np.float64
    assert isinstance(third(3.0), np.ndarray)
    assert third(3.0) == 1 / 3
    assert jax.jit(third)(3.0).dtype == jnp.float32
    with jax.enable_x64(True):
        assert jax.jit(third)(3.0).dtype == jnp.float64
