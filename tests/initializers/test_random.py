"""Constant and random weights: variance, distribution, precision, and initializers as pytrees."""

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgrad import initializers

FAMILIES = [
    (initializers.lecun, 1 / 400),
    (initializers.glorot, 2 / 1000),
    (initializers.he, 2 / 400),
    (lambda d: initializers.he(d, "fan_out"), 2 / 600),
    (lambda d: initializers.he(d, "fan_avg", 0.2), 2 / 1.04 / 500),
    (lambda d: initializers.variance_scaling(0.5, "fan_avg", d), 1 / 1000),
]


@pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated"])
@pytest.mark.parametrize(("family", "variance"), FAMILIES)
def test_variance_and_distribution(key, family, variance, distribution):
    draws = np.asarray(family(distribution)(key, (400, 600)), np.float64).ravel()
    kurtosis = stats.kurtosis(draws, fisher=False)
    error = variance * np.sqrt((kurtosis - 1) / draws.size)
    assert abs(draws.var() - variance) < 3 * error
    assert abs(draws.mean()) < 3 * np.sqrt(variance / draws.size)
    law = {
        "normal": stats.norm(),
        "uniform": stats.uniform(-np.sqrt(3), 2 * np.sqrt(3)),
        "truncated": stats.truncnorm(-2, 2, scale=1 / initializers.TRUNCATED_STD),
    }[distribution]
    assert stats.kstest(draws[:5000] / np.sqrt(variance), law.cdf).pvalue > 1e-3


def test_truncated_standard_deviation():
    assert stats.truncnorm(-2, 2).std() == pytest.approx(initializers.TRUNCATED_STD, abs=1e-12)


def test_flax_layers_accept_them(key):
    layer = flax.linen.Conv(8, (3, 3), kernel_init=initializers.he("truncated", "fan_out"))
    kernel = layer.init(key, jnp.ones((1, 5, 5, 4)))["params"]["kernel"]
    assert float(kernel.var()) == pytest.approx(2 / 72, rel=0.25)


@pytest.mark.parametrize(
    "init", [initializers.normal(2.0), initializers.he("uniform"), initializers.orthogonal()]
)
def test_a_key_gives_one_network_in_every_precision(key, init):
    single = init(key, (8, 8), jnp.float32)
    with jax.enable_x64(True):
        double = init(key, (8, 8), jnp.float64)
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, single, rtol=1e-6)
    half = init(key, (8, 8), jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), single, rtol=1e-2)


def test_variances_are_data_one_compile_serves_all(key):
    traces = []

    @jax.jit
    def draw(variance):
        traces.append(1)
        return initializers.variance_scaling(variance)(key, (50, 50)).var()

    variances = [float(draw(v)) * 50 for v in (0.5, 1.0, 2.0)]
    np.testing.assert_allclose(variances, np.array([0.5, 1, 2]) * variances[1], rtol=1e-5)
    assert len(traces) == 1


INITIALIZERS = {
    "constant": initializers.constant,
    "normal": initializers.normal,
    "uniform": initializers.uniform,
    "variance_scaling": lambda scale: initializers.variance_scaling(
        scale, "fan_avg", "truncated", strides=[2]
    ),
    "he": lambda slope: initializers.he("uniform", negative_slope=slope),
    "orthogonal": initializers.orthogonal,
    "delta_orthogonal": initializers.delta_orthogonal,
}


@pytest.mark.parametrize("name", INITIALIZERS)
def test_an_initializer_is_an_argument_of_a_jitted_function(key, name):
    make, traces = INITIALIZERS[name], []

    @jax.jit
    def draw(init):
        traces.append(1)
        return init(key, (3, 4, 4))

    for number in (0.5, 2.0):
        np.testing.assert_allclose(draw(make(number)), make(number)(key, (3, 4, 4)), rtol=1e-6)
    assert len(traces) == 1
    (leaf,) = jax.tree.leaves(make(0.0))
    assert np.shape(leaf) == ()
    assert make(0.5) == make(0.5)
    assert isinstance(make(0.5), initializers.Initializer)


def test_options_are_part_of_the_structure():
    structures = {
        jax.tree.structure(init)
        for init in (
            initializers.normal(1.0),
            initializers.uniform(1.0),
            initializers.lecun(),
            initializers.lecun("uniform"),
            initializers.lecun(groups=2),
            initializers.lecun(strides=2),
            initializers.lecun(strides=2, transposed=True),
            initializers.glorot(),
        )
    }
    assert len(structures) == 8
    assert jax.tree.structure(initializers.he()) == jax.tree.structure(initializers.lecun())


def test_zero_weights_leave_units_alike(key):
    assert not np.any(initializers.zeros()(key, (3, 4)))
    assert np.all(initializers.constant(0.9)(key, (3, 4)) == np.float32(0.9))


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda k: initializers.normal(-1.0), "variance must be at least 0, got -1"),
        (lambda k: initializers.uniform(float("nan")), "variance must be finite, got nan"),
        (lambda k: initializers.normal(np.ones(3)), r"variance must be one number, got shape \(3,"),
        (lambda k: initializers.normal("big"), "variance must be a number, got 'big'"),
        (lambda k: initializers.variance_scaling(1.0, "fan"), "mode must be one of fan_in"),
        (lambda k: initializers.lecun("cauchy"), "distribution must be one of normal"),
        (lambda k: initializers.lecun()(k, (5,)), r"shape must have at least 2 dimensions.*\(5,"),
        (lambda k: initializers.lecun()(k, (0, 5)), "shape must have at least 2 .*size 1 or more"),
        (lambda k: initializers.lecun()(k, 5), "shape must be a sequence"),
        (lambda k: initializers.orthogonal(float("inf")), "gain must be finite"),
        (lambda k: initializers.he(negative_slope="a"), "negative_slope must be a number"),
        (lambda k: initializers.he(gain=2.0), "no argument 'gain', got 2.0; the options are"),
        (lambda k: initializers.lecun(stride=2), "lecun has no argument 'stride'"),
        (lambda k: initializers.glorot(fan=3), "glorot has no argument 'fan'"),
        (lambda k: initializers.fixup(3, depth=2), "fixup has no argument 'depth'"),
    ],
)
def test_errors(key, make, match):
    with pytest.raises((ValueError, TypeError), match=match):
        make(key)
