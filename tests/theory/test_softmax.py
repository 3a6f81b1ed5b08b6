"""Averages over the weights of a softmax: closed forms, simulations, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import theory


def draw(variance, tokens, correlation, draws, seed=0):
    """Return means and standard errors of the averages over drawn logits."""
    rng = np.random.default_rng(seed)
    shared = np.sqrt(correlation) * rng.normal(size=(draws, tokens))
    z, y = (shared + np.sqrt(1 - correlation) * rng.normal(size=(draws, tokens)) for _ in range(2))
    p, r = (np.exp(np.sqrt(variance) * a) for a in (z, y))
    p, r = (a / a.sum(1, keepdims=True) for a in (p, r))
    mean, overlap = (p * z).sum(1, keepdims=True), (p * r).sum(1)
    samples = theory.SoftmaxMoments(
        square=(p**2).sum(1),
        cube=(p**3).sum(1),
        squared_square=(p**2).sum(1) ** 2,
        spread=(p**2 * (z - mean) ** 2).sum(1),
        squared_mean=mean[:, 0] ** 2,
        overlap=overlap,
        square_overlap=(p**2 * r).sum(1),
        squared_overlap=overlap**2,
    )
    means, errors = (np.array([f(a) for a in samples]) for f in (np.mean, np.std))
    return means, errors / np.sqrt(draws)


@pytest.mark.parametrize("tokens", [2, 7, 40])
@pytest.mark.parametrize(("variance", "correlation"), [(0.3, 0.0), (3.0, 0.5), (12.0, 0.9)])
def test_averages_equal_those_of_drawn_logits(variance, tokens, correlation):
    averages = theory.softmax_moments(variance, tokens, correlation=correlation)
    # From equal logits two rows have equal overlaps of either kind.
    means, errors = draw(variance, tokens, correlation, 40_000)
    assert (np.abs(np.array(averages) - means) < 4 * errors + 1e-9).all()
    assert (errors < 0.03 * means).all()


def test_uniform_weights():
    averages = theory.softmax_moments(0.0, np.array([2.0, 9.0, 1e6]), correlation=0.3)
    tokens = np.array([2.0, 9.0, 1e6])
    np.testing.assert_allclose(averages.square, 1 / tokens, rtol=1e-12)
    np.testing.assert_allclose(averages.cube, tokens**-2.0, rtol=1e-12)
    np.testing.assert_allclose(averages.squared_overlap, tokens**-2.0, rtol=1e-12)
    # A mean of independent normal numbers, and of squares about it.
    np.testing.assert_allclose(averages.squared_mean, 1 / tokens, rtol=1e-12)
    np.testing.assert_allclose(averages.spread, (1 - 1 / tokens) / tokens, rtol=1e-9)


@pytest.mark.parametrize("variance", [1e-3, 1.0, 30.0, 100.0])
@pytest.mark.parametrize("tokens", [2, 5, 200, 1e9])
def test_rows_of_independent_and_of_equal_logits(variance, tokens):
    independent = theory.softmax_moments(variance, tokens)
    equal = theory.softmax_moments(min(variance, 2.0), tokens, correlation=1.0)
    # Each weight is 1 / T on average.
    np.testing.assert_allclose(independent.overlap, 1 / tokens, rtol=3e-6)
    np.testing.assert_allclose(equal.overlap, equal.square, rtol=1e-5)
    np.testing.assert_allclose(equal.square_overlap, equal.cube, rtol=1e-5)
    np.testing.assert_allclose(equal.squared_overlap, equal.squared_square, rtol=1e-5)


@pytest.mark.parametrize(("variance", "correlation"), [(0.25, 0.0), (1.0, 0.5)])
def test_variance_of_a_weight_among_many(variance, correlation):
    # (e^((1 - r) s2) - 1) / T^2 for logits of variance s2 and correlation r.
    tokens = 1e5
    square = theory.softmax_moments((1 - correlation) * variance, tokens).square
    weight_variance = square / tokens - tokens**-2
    expected = (np.exp((1 - correlation) * variance) - 1) / tokens**2
    np.testing.assert_allclose(weight_variance, expected, rtol=1e-3)


@pytest.mark.parametrize("beta", [2.0, 3.0])
def test_concentrated_weights_of_the_random_energy_model(beta):
    # The limit 1 - sqrt(2) / beta is approached like 1 / log T, which two sizes remove.
    logs = np.array([50.0, 100.0]) / beta**2
    square = theory.softmax_moments(beta**2 * logs, np.exp(logs)).square
    limit = 2 * square[1] - square[0]
    assert abs(limit - (1 - np.sqrt(2) / beta)) < 0.03
    assert square[0] > square[1] > limit


def test_uniform_below_the_condensation():
    # Far below beta = sqrt(2) the weights are spread: sum p^2 -> e^v / T.
    log_tokens = 25.0
    variance = 0.2**2 * log_tokens
    square = theory.softmax_moments(variance, np.exp(log_tokens)).square
    np.testing.assert_allclose(square, np.exp(variance - log_tokens), rtol=1e-6)


@pytest.mark.parametrize("variance", [0.0, 2.0])
def test_causal_rows_are_means_over_their_lengths(variance):
    tokens = 6
    causal = theory.softmax_moments(variance, tokens, correlation=0.4, causal=True)
    rows = [theory.softmax_moments(variance, n, correlation=0.4) for n in range(2, tokens + 1)]
    # The first row has one weight of 1.
    for name, first in (("square", 1.0), ("cube", 1.0), ("squared_square", 1.0), ("spread", 0.0)):
        expected = (first + sum(getattr(row, name) for row in rows)) / tokens
        np.testing.assert_allclose(getattr(causal, name), expected, rtol=1e-9)
    if variance == 0:
        # Rows of m < n tokens share m weights of 1 / m and 1 / n.
        pairs = [1 / n for n in range(2, tokens + 1) for _ in range(1, n)]
        np.testing.assert_allclose(causal.overlap, np.mean(pairs), rtol=1e-12)


def test_causal_overlaps_equal_those_of_drawn_logits():
    variance, tokens, correlation, draws = 4.0, 5, 0.6, 20_000
    rng = np.random.default_rng(1)
    shared = np.sqrt(correlation) * rng.normal(size=(draws, 1, tokens))
    z = shared + np.sqrt(1 - correlation) * rng.normal(size=(draws, tokens, tokens))
    p = np.exp(np.sqrt(variance) * z) * np.tri(tokens)
    p /= p.sum(-1, keepdims=True)
    i, j = np.triu_indices(tokens, 1)
    p, r = p[:, i], p[:, j]
    overlap = (p * r).sum(-1)
    mixed = ((p**2 * r).sum(-1) + (p * r**2).sum(-1)) / 2
    averages = theory.softmax_moments(variance, tokens, correlation=correlation, causal=True)
    for name, samples in (
        ("overlap", overlap),
        ("square_overlap", mixed),
        ("squared_overlap", overlap**2),
    ):
        samples = samples.mean(1)
        error = samples.std() / np.sqrt(draws)
        assert abs(getattr(averages, name) - samples.mean()) < 4 * error < 0.05 * samples.mean()


def test_it_can_be_traced_and_keeps_small_differences():
    @jax.jit
    def difference(variance, correlation):
        averages = theory.softmax_moments(variance, 16, correlation=correlation)
        return averages.square - averages.overlap

    with jax.enable_x64(True):
        small = difference(jnp.float64(1e-6), jnp.float64(0.999))
    # To first order v (1 - c) (1 - 1 / T) / T.
    np.testing.assert_allclose(small, 1e-9 * (1 - 1 / 16) / 16, rtol=1e-4)


@pytest.mark.slow
def test_a_mask_of_all_and_a_causal_one_are_as_none_and_causal():
    full = theory.softmax_moments(3.0, 6, correlation=0.4, mask=np.ones((6, 6), bool))
    np.testing.assert_allclose(full, theory.softmax_moments(3.0, 6, correlation=0.4), rtol=1e-6)
    causal = theory.softmax_moments(3.0, 6, correlation=0.4, causal=True)
    for mask, options in ((np.tri(6, dtype=bool), {}), (np.ones((6, 6), bool), {"causal": True})):
        masked = theory.softmax_moments(3.0, 6, correlation=0.4, mask=mask, **options)
        np.testing.assert_allclose(masked, causal, rtol=1e-6)


def test_rows_that_share_no_token_do_not_overlap():
    mask = np.kron(np.eye(2, dtype=bool), np.ones((3, 3), bool))
    blocks = theory.softmax_moments(2.0, 6, correlation=0.5, mask=mask)
    alone = theory.softmax_moments(2.0, 3, correlation=0.5)
    for field in ("square", "cube", "squared_square", "spread", "squared_mean"):
        np.testing.assert_allclose(getattr(blocks, field), getattr(alone, field), rtol=1e-6)
    # Of 5 other rows, 2 are of the same block.
    for field in ("overlap", "square_overlap", "squared_overlap"):
        np.testing.assert_allclose(getattr(blocks, field), 0.4 * getattr(alone, field), rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 4), bool), r"mask must be an array of booleans \[4, 4\]"),
        (np.ones((4, 4)), "mask must be an array of booleans"),
        (np.zeros((4, 4), bool), "mask must let each row see at least one token"),
    ],
)
def test_bad_masks(mask, message):
    with pytest.raises(ValueError, match=message):
        theory.softmax_moments(1.0, 4, mask=mask)
    with pytest.raises(ValueError, match="mask must not be traced"):
        jax.jit(lambda mask: theory.softmax_moments(1.0, 4, mask=mask))(np.ones((4, 4), bool))
