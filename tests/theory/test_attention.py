"""Moments after attention: closed forms, and simulations of whole layers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import transformer_moments
from benchmarks.transformer_moments import Case
from jaxgrad import theory
from jaxgrad.theory import Cotangent, Moments, Tokens

CASES = [
    Case(64, 16, 1.0, 0.0, 0.0, 0.5, 1.0),
    Case(64, 16, 2.0, 0.3, 0.5, 4.0, 0.5),
    Case(64, 16, 0.5, 0.8, 0.3, 8.0, 2.0),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_moments_equal_those_of_drawn_layers(case):
    result = transformer_moments.attention(case, 600, jax.random.key(3))
    scale = result.measured[[0, 0, 2, 2]]
    assert (np.abs(result.predicted - result.measured) < 3.5 * result.error + 0.003 * scale).all()
    assert (result.error < 0.03 * scale).all()


@pytest.mark.parametrize("count", [2, 5, 64])
@pytest.mark.parametrize("gap", [1.0, 0.4, 1e-6])
def test_uniform_attention(count, gap):
    moments = Moments(0.0, tokens=Tokens(count, gap))
    options = {"logit_gain": 0.0, "value_variance": 3.0}
    after = theory.attend(moments, **options)
    # The outputs are all the mean token: w_v (rho + (1 - rho) / T).
    np.testing.assert_allclose(np.exp(after.log_q), 3 * (1 - gap + gap / count), rtol=1e-12)
    assert abs(after.tokens.gap) < 1e-12
    for cotangent_gap in (1.0, 0.3, 0.0):
        back = theory.pull_back(
            functools.partial(theory.attend, **options), moments, Cotangent(gap=cotangent_gap)
        )
        r = 1 - cotangent_gap
        np.testing.assert_allclose(np.exp(back.log_square), 3 * (r + (1 - r) / count), rtol=1e-9)


@pytest.mark.parametrize("count", [3, 50])
def test_small_logits(count):
    # Of a signal of variance q: d s_V^2 (rho + (1 - rho) / T), with w_v = d s_V^2.
    moments = Moments(np.log(2.0), tokens=Tokens(count, 0.7))
    after = theory.attend(moments, logit_gain=1e-10, value_variance=1.5)
    np.testing.assert_allclose(np.exp(after.log_q), 3 * (0.3 + 0.7 / count), rtol=1e-8)


def test_biases_are_shared_by_all_tokens():
    moments = Moments(0.0, tokens=Tokens(4, 1.0))
    after = theory.attend(moments, logit_gain=0.0, b_variance=0.5, output_variance=2.0)
    # w_o (w_v / T + b) + b.
    np.testing.assert_allclose(np.exp(after.log_q), 2 * (0.25 + 0.5) + 0.5, rtol=1e-12)
    # Biases of queries make logits, and make them alike.
    one, other = (theory.attend(moments, b_variance=b, output_variance=1.0) for b in (0.0, 3.0))
    assert other.tokens.gap < one.tokens.gap


def test_causal_uniform_attention():
    count = 5
    moments = Moments(0.0, tokens=Tokens(count, 1.0))
    after = theory.attend(moments, logit_gain=0.0, causal=True)
    harmonic = sum(1 / n for n in range(1, count + 1))
    np.testing.assert_allclose(np.exp(after.log_q), harmonic / count, rtol=1e-12)
    np.testing.assert_allclose(np.exp(after.log_gradient), harmonic / count, rtol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_back_are_changes_forward(causal):
    # Both are the squared norm of the same Jacobian where elements are independent.
    moments = Moments(0.3, gaussian=True, tokens=Tokens(12, 0.8, width=64))
    attend = functools.partial(theory.attend, head_features=16, logit_gain=2.0, causal=causal)
    forward, back = attend(moments), theory.pull_back(attend, moments)
    np.testing.assert_allclose(forward.log_gradient, back.log_square, rtol=1e-12)


def test_rank_collapses_cubically_without_skips():
    # Dong, Cordonnier, Loukas (2021): the distance from rank one decays with exponent 3.
    moments = Moments(0.0, tokens=Tokens(8, 0.02))
    gaps = [0.02]
    for _ in range(2):
        moments = theory.attend(moments)
        gaps.append(float(moments.tokens.gap))
    # gap' = v (1 - c) gap (1 - 1 / T) / T with v = q^2 gap and 1 - c = gap.
    for before, after in itertools.pairwise(gaps):
        np.testing.assert_allclose(after, before**3 * (1 - 1 / 8) / 8, rtol=0.05)


def test_concentrated_logits_are_not_predicted_beyond_the_grid():
    after = theory.attend(Moments(3.0, tokens=Tokens(8, 1.0)))
    assert np.isnan(after.log_q)
    assert np.isnan(after.log_gradient)


def test_moments_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="moments must have tokens"):
        theory.attend(Moments(0.0))
    with pytest.raises(ValueError, match="moments must have no gap of examples"):
        theory.attend(Moments(0.0, gap=1.0, tokens=Tokens(4, 1.0)))
    with pytest.raises(ValueError, match="moments must have tokens"):
        theory.pull_back(lambda moments: moments, Moments(0.0))


@pytest.mark.slow
def test_moments_of_tokens():
    key, shape = jax.random.key(0), (200, 6, 64)
    shared, each = jax.random.normal(key, (200, 1, 64)), jax.random.normal(jax.random.key(1), shape)
    x = 2 * (jnp.sqrt(0.3) * shared + jnp.sqrt(0.7) * each)
    moments = theory.moments_of(x, tokens=True, gap=True)
    assert moments.tokens.count == 6
    assert moments.tokens.width == 64
    np.testing.assert_allclose(np.exp(moments.log_q), 4, rtol=0.02)
    np.testing.assert_allclose(moments.tokens.gap, 0.7, rtol=0.02)
    np.testing.assert_allclose(moments.gap, 1.0, rtol=0.02)
    with pytest.raises(ValueError, match="x must be"):
        theory.moments_of(x[0], tokens=True)


@pytest.mark.parametrize("count", [2, 3, 4, 7, 64])
def test_differences_of_tokens_end_at_uniform_attention(count):
    # A change of zero mean over tokens, of gap T / (T - 1), has no mean square afterwards.
    moments = Moments(0.0, tokens=Tokens(count, 1.0, count / (count - 1)))
    after = theory.attend(moments, logit_gain=0.0)
    assert np.exp(after.log_gradient) < 1e-14
    assert np.isfinite(after.tokens.change_gap)
