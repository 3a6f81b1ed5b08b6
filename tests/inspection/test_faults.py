"""The first cause of what is wrong with a model is named, and healthy models are not accused."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.faulty_models import judge
from benchmarks.faulty_models_models import FAULTS, HEALTHY
from jaxgrad.inspection import xray
from jaxgrad.inspection._depth import repeated

FAST = (
    "scanned ReLU network, weights x 10",
    "scanned ReLU network, dead block",
    "half precision, gradient underflows",
    "Linen, detached",
    "residual network, last weights zero",
    "ReZero",
    "SIREN",
)
CASES = {case.name: case for case in (*FAULTS, *HEALTHY)}


@pytest.mark.parametrize("name", FAST)
def test_a_fault_is_named_and_a_healthy_model_is_not_accused(name):
    right, text = judge(CASES[name])
    assert right, text


# `python -m benchmarks.faulty_models` runs all of them.
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name not in FAST][::4])
def test_more_models(name):
    right, text = judge(CASES[name])
    assert right, text


def test_weights_are_measured_in_units_of_their_fan_in(key):
    x = jax.random.normal(key, (16, 8, 8, 3))
    kernel = jax.random.normal(key, (3, 3, 3, 200))

    def loss(params, x):
        conv = jax.lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.tanh(conv) @ params["dense"])

    params = {"conv": kernel / 27**0.5, "dense": 2 * jnp.ones((200, 1))}
    sites = {site.parameter: site for site in xray(loss, params, x).sites}
    assert sites["['conv']"].fan_in == 27
    expected = float(27 * jnp.mean(params["conv"] ** 2))
    assert sites["['conv']"].variance == pytest.approx(expected, rel=1e-6)
    assert sites["['dense']"].variance == pytest.approx(800, rel=1e-6)


def test_a_transposed_convolution_adds_up_a_part_of_its_window(key):
    def loss(kernel, x):
        return jnp.sum(jax.lax.conv_transpose(x, kernel, (2, 2), "SAME"))

    kernel = jax.random.normal(key, (4, 4, 64, 3))
    (site,) = xray(loss, kernel, jnp.ones((1, 4, 4, 64))).sites
    assert site.fan_in == 4 * 4 * 64 / 4


def test_dead_and_saturated_units(key):
    x = jax.random.normal(key, (32, 10))

    def loss(scale, x):
        relu = jax.nn.relu(x * scale - jnp.where(jnp.arange(10) < 3, 100.0, 0.0)[None])
        return jnp.sum(relu) + jnp.sum(jnp.tanh(5 * x)) + jnp.sum(jax.nn.sigmoid(x))

    sites = {site.operation: site for site in xray(loss, jnp.float32(1), x).sites}
    assert sites["relu"].details.dead == pytest.approx(0.3)
    expected = np.mean(np.abs(np.tanh(5 * np.asarray(x))) > 0.98)
    assert sites["tanh"].details.saturated == pytest.approx(expected)
    # No element of x is beyond logit(0.99) = 4.6.
    assert sites["logistic"].details.saturated == 0
    assert np.isnan(sites["logistic"].details.dead)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float8_e4m3fn])
def test_bits_left_before_overflow_and_underflow(dtype):
    x = jnp.array([[8.0, 2.0]])
    (site,) = xray(lambda w, x: jnp.sum(x @ w), jnp.eye(2), x).sites
    info = jnp.finfo(dtype)
    bits = site.bits(dtype=dtype)
    assert bits.overflow == pytest.approx(np.log2(float(info.max)) - 3, abs=1e-5)
    expected = np.log2(34**0.5) - np.log2(float(info.smallest_normal))
    assert bits.underflow == pytest.approx(expected, abs=1e-5)
    # The cotangent of a sum is one.
    assert site.bits("backward").overflow == pytest.approx(128, abs=1e-5)


def test_a_cotangent_that_is_not_computed_is_zero():
    def loss(w, x):
        return jnp.sum(jax.lax.stop_gradient(jnp.tanh(x @ w)) * jnp.sum(w))

    product, tanh, stopped = xray(loss, jnp.eye(3), jnp.ones((2, 3))).sites[:3]
    for site in (product, tanh):
        assert site.backward.log_mean_square == -np.inf
        assert site.backward.zeros == 1
    assert stopped.operation == "stop_gradient"
    assert stopped.backward.log_mean_square > -np.inf


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25])
def test_a_cotangent_that_is_not_computed_is_finite_at_any_size(scale):
    def loss(w, x):
        return jnp.sum(jax.nn.logsumexp(scale * (x @ w), axis=-1))

    for site in xray(loss, jnp.eye(3), jnp.ones((2, 3))).sites:
        assert site.backward.non_finite == 0, site


def test_the_carry_of_a_scan_is_no_parameter(key):
    def loss(params, tokens):
        x = params["embedding"][tokens]
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["w"])[0]
        return jnp.sum(x @ params["embedding"].T)

    params = {"embedding": jnp.ones((5, 4)), "w": jax.random.normal(key, (3, 4, 4))}
    products = [s for s in xray(loss, params, jnp.array([1, 2])).sites if s.fan_in]
    assert [site.parameter for site in products] == ["['w']", "['embedding']"]


class Named(NamedTuple):
    parameter: str
    operation: str = "dot_general"
    scope: str = ""
    line: str = "f.py:1"
    shape: tuple[int, ...] = ()
    scan: tuple[int, ...] = ()


def test_blocks_are_told_from_other_numbers_in_names():
    sites = [Named(f"[{i}].conv{k}") for i in range(4) for k in (1, 2)]
    groups = repeated(sites, lambda site: site)
    assert [[s.parameter for s in g] for g in groups] == [
        [f"[{i}].conv{k}" for i in range(4)] for k in (1, 2)
    ]


def test_the_summary_names_the_first_cause_alone(key):
    weights = jax.random.normal(key, (12, 16, 16)) / 4
    weights = weights.at[5].multiply(50)

    def loss(weights, x):
        return jnp.mean(jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0])

    trace = xray(loss, weights, jnp.ones((4, 16)))
    assert len(trace.summary.splitlines()) == 1
    assert trace.summary.startswith("weights: the weights argument of iteration 5 are")
    assert "test_faults.py" in trace.summary
    assert str(trace).startswith(trace.summary)
