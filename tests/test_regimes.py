from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxgrad import regimes
from jaxgrad.regimes import Regime, Storage, Thresholds

WORD: Any = "a"
SEEDS = 8
MAPS = 4000
DEPTHS = np.array([2, 9, 33, 129])
# So near 1 that the standard error alone decides.
ANY_CHANGE = Thresholds(ratio=1 + 1e-6)


def walks(drift, noise, seed=0):
    """Log ratios `[SEEDS, MAPS, depths]` of walks with this mean and deviation a layer."""
    generator = np.random.default_rng(seed)
    steps = drift + noise * generator.standard_normal((SEEDS, MAPS, DEPTHS[-1] - 1))
    return jnp.asarray(np.cumsum(steps, axis=-1)[..., DEPTHS - 2], jnp.float32)


def assert_rate(hits, probability, k=4.0):
    """The share over maps, for each depth, is `probability` within `k` standard errors."""
    error = np.sqrt(probability * (1 - probability) / MAPS)
    z = (np.mean(hits, axis=0) - probability) / error
    assert np.all(np.abs(z) < k), (np.mean(hits, axis=0), probability, z)


@pytest.mark.parametrize("z", [1.0, 2.0, 3.0])
def test_false_labels_are_as_rare_as_the_threshold_says(z):
    out = regimes.classify(walks(0.0, 0.5), DEPTHS, ANY_CHANGE._replace(z=z))
    # Eight seeds: the mean over its standard error is Student's t with seven degrees of freedom.
    tail = stats.t(SEEDS - 1).sf(z)
    for label in (Regime.VANISHING, Regime.EXPLODING):
        assert_rate(out.regime == label, tail)
    assert_rate(out.regime == Regime.STABLE, 1 - 2 * tail)


@pytest.mark.parametrize("drift", [-0.05, 0.0, 0.3])
def test_standard_errors_cover_the_planted_growth(drift):
    noise = 0.5
    out = regimes.classify(walks(drift, noise, seed=1), DEPTHS)
    covered = np.abs(out.growth - drift) < 2 * out.growth_se
    assert_rate(covered, 1 - 2 * stats.t(SEEDS - 1).sf(2))
    total = drift * (DEPTHS - 1)
    covered = np.abs(out.log_ratio - total[None]) < out.log_ratio_se
    assert_rate(covered, 1 - 2 * stats.t(SEEDS - 1).sf(1))
    # The mean squared standard error is the variance of the mean.
    np.testing.assert_allclose(
        np.mean(np.square(out.log_ratio_se), axis=0), noise**2 * (DEPTHS - 1) / SEEDS, rtol=0.04
    )
    np.testing.assert_allclose(
        np.mean(np.square(out.growth_se), axis=0), noise**2 / (DEPTHS - 1) / SEEDS, rtol=0.04
    )


@pytest.mark.parametrize(("drift", "label"), [(0.1, 1), (-0.1, -1)])
def test_planted_drift_is_named_once_it_is_large(drift, label):
    out = regimes.classify(walks(drift, 0.02), DEPTHS)
    # Totals 0.1, 0.8, 3.2 and 12.8 on either side of 2 ln 10 = 4.6.
    np.testing.assert_array_equal(out.regime[:, :3], Regime.STABLE)
    np.testing.assert_array_equal(out.regime[:, 3], label)
    assert out.confidence.min() > 0.999


def test_confidence_is_the_normal_probability_of_the_label():
    log_ratio = walks(0.04, 1.0, seed=2)
    out = regimes.classify(log_ratio, DEPTHS)
    sample = np.asarray(log_ratio, np.float64)
    law = stats.norm(sample.mean(axis=0), stats.sem(sample))
    limit = 2 * np.log(10)
    below, above = law.cdf(-limit), law.sf(limit)
    expected = np.select([out.regime < 0, out.regime > 0], [below, above], 1 - below - above)
    np.testing.assert_allclose(out.confidence, expected, atol=2e-5)
    assert set(np.unique(out.regime)) == {-1, 0, 1}
    assert expected.min() < 0.2


def test_mean_and_error_by_hand():
    sample = walks(0.1, 1.0)[:, :5]
    mean, error = regimes.mean_and_error(sample)
    np.testing.assert_allclose(mean, np.asarray(sample).mean(axis=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(error, stats.sem(np.asarray(sample, np.float64)), rtol=1e-5)


def test_means_with_known_errors_are_classified_as_their_seeds_are():
    sample = walks(0.04, 1.0, seed=3)[:, :200]
    seeds, means = (
        regimes.classify(sample, DEPTHS),
        regimes.classify_mean(*regimes.mean_and_error(sample), DEPTHS[None]),
    )
    for a, b in zip(seeds, means, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert set(np.unique(means.regime)) == {-1, 0, 1}
    with pytest.raises(ValueError, match=r"log_ratio_se must have the shape \(2,\) of log_ratio"):
        regimes.classify_mean(np.zeros(2), 0.1, 3)


def test_growth_is_per_layer_between_first_and_last():
    log_ratio = jnp.asarray([[0.0, 3.0, 30.0], [0.0, 5.0, 32.0]])
    out = regimes.classify(log_ratio, jnp.asarray([1, 2, 11]))
    np.testing.assert_allclose(out.growth, [0.0, 4.0, 3.1], rtol=1e-6)
    np.testing.assert_allclose(out.growth_se, [0.0, 1.0, 0.1], rtol=1e-5)
    np.testing.assert_allclose(out.log_ratio_se, [0.0, 1.0, 1.0], rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "label", "confidence"),
    [
        ((-np.inf, -np.inf), Regime.VANISHING, 1.0),
        ((-np.inf, 3.0), Regime.VANISHING, 1.0),
        ((np.inf, np.inf), Regime.EXPLODING, 1.0),
        ((np.inf, -3.0), Regime.EXPLODING, 1.0),
        ((np.inf, -np.inf), Regime.UNDEFINED, np.nan),
        ((np.nan, 1.0), Regime.UNDEFINED, np.nan),
        ((np.nan, np.inf), Regime.UNDEFINED, np.nan),
        ((0.0, 0.0), Regime.STABLE, 1.0),
        ((9.0, 9.0), Regime.EXPLODING, 1.0),
        ((-9.0, -9.0), Regime.VANISHING, 1.0),
    ],
)
def test_what_is_not_finite_and_what_does_not_vary(values, label, confidence):
    out = regimes.classify(jnp.asarray(values)[:, None], np.array([7]))
    assert out.regime[0] == label
    np.testing.assert_array_equal(out.confidence[0], confidence)
    if np.all(np.isfinite(values)):
        assert out.log_ratio_se[0] == 0
    else:
        assert np.isnan(out.log_ratio_se[0])
        assert np.isnan(out.growth_se[0])
    np.testing.assert_array_equal(out.log_ratio[0], np.mean(values) if label != 2 else np.nan)


def test_one_bad_entry_leaves_its_neighbours_alone():
    clean = walks(0.1, 0.5)[:, :3]
    spoilt = clean.at[2, 1, 0].set(jnp.nan).at[0, 0, 2].set(-jnp.inf)
    one, other = regimes.classify(clean, DEPTHS), regimes.classify(spoilt, DEPTHS)
    kept = np.ones((3, 4), bool)
    kept[1, 0] = kept[0, 2] = False
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(np.asarray(a)[kept], np.asarray(b)[kept])


# Mean 6 and standard error 2.5, so 2.4 standard errors from none; exp(6 / 2) = 20.1.
@pytest.mark.parametrize(
    ("thresholds", "label"),
    [
        (None, Regime.EXPLODING),
        (Thresholds(20.0, 2.0), Regime.EXPLODING),
        (Thresholds(20.2, 2.0), Regime.STABLE),
        (Thresholds(10.0, 2.39), Regime.EXPLODING),
        (Thresholds(10.0, 2.41), Regime.STABLE),
        (Thresholds(1.1, 0.0), Regime.EXPLODING),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_both_thresholds_must_be_passed(thresholds, label, sign):
    log_ratio = sign * jnp.asarray([[3.5], [8.5]])
    out = regimes.classify(log_ratio, np.array([7]), thresholds)
    assert out.log_ratio_se[0] == pytest.approx(2.5)
    assert out.regime[0] == sign * label


def test_labels_partition_and_only_shrink_as_thresholds_grow():
    log_ratio = walks(0.05, 1.0, seed=3)
    previous = None
    for ratio, z in ((1.5, 0.5), (3.0, 1.0), (10.0, 2.0), (30.0, 3.0)):
        regime = np.asarray(regimes.classify(log_ratio, DEPTHS, Thresholds(ratio, z)).regime)
        assert regime.dtype == np.int8
        assert set(np.unique(regime)) <= {-1, 0, 1}
        if previous is not None:
            # A label may become stable, and nothing else.
            assert np.all((regime == previous) | (regime == 0))
            assert np.sum(regime != previous) > 100
        previous = regime


@pytest.mark.slow
def test_classify_agrees_under_jit_and_vmap():
    log_ratio = walks(0.03, 0.5)[:, :6].at[0, 0, 0].set(jnp.nan).at[1, 1, 1].set(jnp.inf)
    thresholds = Thresholds(2.0, 1.0)
    eager = regimes.classify(log_ratio, DEPTHS, thresholds)
    jitted = jax.jit(regimes.classify)(log_ratio, jnp.asarray(DEPTHS), thresholds)
    mapped = jax.vmap(lambda a: regimes.classify(a, DEPTHS, thresholds), 1)(log_ratio)
    for other in (jitted, mapped):
        for a, b in zip(eager, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    swept = jax.vmap(lambda r: regimes.classify(log_ratio, DEPTHS, Thresholds(r)).regime)
    for ratio, regime in zip((2.0, 8.0), swept(jnp.asarray([2.0, 8.0])), strict=True):
        one = regimes.classify(log_ratio, DEPTHS, Thresholds(ratio)).regime
        np.testing.assert_array_equal(regime, one)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (
            {"log_ratio": np.ones((1, 3))},
            ValueError,
            r"at least 2 seeds, got \(1, 3\); measure more",
        ),
        ({"log_ratio": np.ones(3)}, ValueError, r"\[seeds, ..., depths\].*got \(3,\)"),
        ({"depths": np.ones(2)}, ValueError, r"depths must have shape \(3,\).*got \(2,\)"),
        ({"depths": 3}, ValueError, r"depths must have shape \(3,\).*got \(\)"),
        (
            {"thresholds": Thresholds(1.0)},
            ValueError,
            "thresholds.ratio must be greater than 1, got",
        ),
        ({"thresholds": Thresholds(0.1)}, ValueError, "thresholds.ratio must be greater than 1"),
        ({"thresholds": Thresholds(np.nan)}, ValueError, "thresholds.ratio must be finite"),
        ({"thresholds": Thresholds(z=-1)}, ValueError, "thresholds.z must be at least 0, got -1"),
        ({"thresholds": Thresholds(WORD)}, TypeError, "thresholds.ratio must be a number, got 'a'"),
    ],
)
def test_classify_errors(change, error, match):
    arguments = {"log_ratio": np.ones((4, 3)), "depths": np.arange(1, 4)} | change
    with pytest.raises(error, match=match):
        regimes.classify(**arguments)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_storage_at_the_edges_of_a_type(dtype):
    info = jnp.finfo(dtype)
    sizes = np.array([float(info.tiny), float(info.max)])
    for factor, expected in ((0.999, (-1, 0)), (1.001, (0, 1))):
        label = regimes.storage(jnp.asarray(2 * np.log(sizes * factor), jnp.float32), dtype)
        assert label.tolist() == list(expected)
        assert label.dtype == jnp.int8


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("jitted", [True, False])
def test_storage_is_what_arithmetic_does(dtype, jitted):
    info = jnp.finfo(dtype)
    edges = np.log(np.array([float(info.tiny), float(info.max)]))
    wanted = np.concatenate([edges[0] + np.linspace(-9, 3, 41), edges[1] + np.linspace(-3, 9, 41)])
    factor = jnp.asarray(np.exp(wanted / 2), dtype)
    square = jax.jit(jnp.square) if jitted else jnp.square
    got = np.asarray(square(factor)).astype(np.float64)
    exact = np.square(np.asarray(factor).astype(np.float64))
    label = np.asarray(regimes.storage(jnp.asarray(2 * np.log(exact), jnp.float32), dtype))
    # Numbers this near an edge may be rounded over it.
    clear = np.min(np.abs(np.log(exact)[:, None] - edges), axis=1) > 0.02
    np.testing.assert_array_equal(np.isinf(got)[clear], (label == Storage.OVERFLOW)[clear])
    with np.errstate(invalid="ignore"):
        off = np.abs(got / exact - 1)
    assert np.all(off[clear & (label == Storage.HELD)] <= float(info.eps))
    # Below the edge a number is zero, or has lost bits, all the more the smaller it is.
    lost = (label == Storage.UNDERFLOW) & (np.log(exact) < edges[0] - 6)
    assert lost.any()
    assert np.all(off[lost] > float(info.eps))
    assert {-1, 0, 1} == set(label[clear].tolist())


def test_storage_of_what_is_not_finite():
    values = jnp.asarray([[jnp.nan, -jnp.inf], [jnp.inf, 0.0]])
    expected = [[Storage.UNDEFINED, Storage.UNDERFLOW], [Storage.OVERFLOW, Storage.HELD]]
    assert regimes.storage(values).tolist() == expected
    assert jax.jit(regimes.storage)(values).tolist() == expected
    assert jax.vmap(regimes.storage)(values).tolist() == expected


def test_storage_in_float64_holds_more(x64):
    values = jnp.asarray([-1500.0, -1400.0, -200.0, 200.0, 1400.0, 1500.0])
    assert regimes.storage(values, jnp.float64).tolist() == [-1, 0, 0, 0, 0, 1]
    assert regimes.storage(values, "float32").tolist() == [-1, -1, -1, 1, 1, 1]


def test_storage_errors():
    with pytest.raises(TypeError, match=r"dtype must be floating, got int32; pass jnp\.float32"):
        regimes.storage(jnp.zeros(2), jnp.int32)


VARIANCES = np.geomspace(0.5, 8.0, 41)


def lines(roots, depth=16.0):
    """`[seeds, variances, ...]`: a straight line in the log variance through each root."""
    roots = np.asarray(roots)
    log = np.log(VARIANCES).reshape(1, -1, *(1,) * (roots.ndim - 1))
    return jnp.asarray(depth * (log - np.log(roots)[:, None]), jnp.float32)


def test_level_of_straight_lines_is_exact():
    roots = np.array([[1.1, 5.0], [1.3, 7.0], [0.9, 6.0]])
    out = regimes.level(lines(roots), VARIANCES)
    mean = stats.gmean(roots)
    np.testing.assert_allclose(out.variance, mean, rtol=1e-5)
    expected = np.sqrt(np.sum((roots - mean) ** 2, axis=0) / 2 / 3)
    np.testing.assert_allclose(out.variance_se, expected, rtol=1e-4)


def test_level_of_a_curve_is_its_root_to_second_order():
    def error(count):
        variances = np.geomspace(0.5, 8.0, count)
        curve = np.tanh(variances - 1.7) + 0.3 * (variances - 1.7) ** 3
        return float(regimes.level(jnp.asarray([curve, curve]), variances).variance) - 1.7

    assert abs(error(101)) < 2e-3
    assert abs(error(11)) < 0.05
    assert abs(error(101)) < abs(error(11)) / 20


def test_standard_error_of_the_level_covers():
    roots = 2.0 * np.exp(0.03 * np.random.default_rng(0).standard_normal((SEEDS, MAPS)))
    out = regimes.level(lines(roots), VARIANCES)
    covered = np.abs(out.variance - 2.0) < 2 * out.variance_se
    assert_rate(covered, 1 - 2 * stats.t(SEEDS - 1).sf(2))


def test_level_takes_the_first_upward_crossing():
    log = np.log(VARIANCES)
    # Roots at 1, 2 and 4: up, down, up.
    curve = (log - np.log(1.0)) * (log - np.log(2.0)) * (log - np.log(4.0))
    both = jnp.asarray([curve, curve])
    assert float(regimes.level(both, VARIANCES).variance) == pytest.approx(1.0, abs=1e-3)
    assert float(regimes.level(-both, VARIANCES).variance) == pytest.approx(2.0, abs=1e-3)


@pytest.mark.parametrize("roots", [(20.0, 30.0), (0.1, 0.2), (0.1, 20.0), (2.0, 20.0), (0.1, 2.0)])
def test_no_level_unless_two_seeds_cross(roots):
    out = regimes.level(lines(np.array(roots)), VARIANCES)
    assert np.isnan(out.variance)
    assert np.isnan(out.variance_se)


def test_only_downward_is_no_level():
    out = regimes.level(-lines(np.array([2.0, 3.0])), VARIANCES)
    assert np.isnan(out.variance)


def test_seeds_that_do_not_cross_are_left_out():
    any_mean = regimes.Thresholds(z=0.0)
    three = regimes.level(lines(np.array([2.0, 20.0, 3.0])), VARIANCES, any_mean)
    two = regimes.level(lines(np.array([2.0, 3.0])), VARIANCES)
    np.testing.assert_allclose(three, two, rtol=1e-6)


def test_noise_around_zero_is_no_level():
    """As in a residual network, whose small branches change its gradient by less than its noise."""
    noise = np.random.default_rng(0).standard_normal((SEEDS, 1, 2000))
    variances = VARIANCES[None, :, None]
    log_ratio = noise * variances + 0.3 * variances**2
    falls_and_rises = (log_ratio[:, 0] < 0) & (log_ratio[:, -1] > 0)
    assert (falls_and_rises.sum(axis=0) > 1).mean() > 0.8
    for z in (2.0, 3.0):
        out = regimes.level(log_ratio, VARIANCES, regimes.Thresholds(z=z))
        assert 0 < np.isfinite(out.variance).mean() <= stats.t(SEEDS - 1).sf(z)
    # A mean far below zero is no noise.
    out = regimes.level(log_ratio - 5.0, VARIANCES)
    assert np.isfinite(out.variance).mean() > 0.95


@pytest.mark.parametrize(
    ("row", "root"),
    [
        ((-np.inf, np.inf, np.inf), 2.0),
        ((-np.inf, 1.0, 2.0), 4.0),
        ((-1.0, np.inf, np.inf), 1.0),
        ((-np.inf, -1.0, 1.0), 8.0),
        ((-1.0, 0.0, 1.0), 4.0),
        ((0.0, 0.0, 0.0), np.nan),
        ((-1.0, np.nan, np.nan), np.nan),
        ((np.nan, 1.0, 2.0), np.nan),
        ((-1.0, np.nan, 1.0), np.nan),
        ((np.nan, -1.0, 1.0), 8.0),
        ((-np.inf, -np.inf, -np.inf), np.nan),
        ((np.nan, np.nan, np.nan), np.nan),
    ],
)
def test_level_of_what_is_not_finite(row, root):
    out = regimes.level(jnp.asarray([row, row]), np.array([1.0, 4.0, 16.0]))
    np.testing.assert_allclose(out.variance, root, rtol=1e-5)
    np.testing.assert_allclose(out.variance_se, 0 * root, atol=1e-5)


def test_level_agrees_under_jit_and_vmap():
    generator = np.random.default_rng(0)
    log_ratio = lines(2.0 * np.exp(0.3 * generator.standard_normal((SEEDS, 3, 4))))
    log_ratio = log_ratio.at[:, :, 0, 0].set(-1.0)
    eager = regimes.level(log_ratio, VARIANCES)
    assert eager.variance.shape == (3, 4)
    jitted = jax.jit(lambda a: regimes.level(a, VARIANCES))(log_ratio)
    mapped = jax.vmap(lambda a: regimes.level(a, VARIANCES), 2)(log_ratio)
    for other in (jitted, mapped):
        np.testing.assert_allclose(other, eager, rtol=1e-5, atol=1e-6)
    assert np.isnan(eager.variance).sum() == 1


@pytest.mark.parametrize(
    ("log_ratio", "variances", "match"),
    [
        (np.ones((4, 3)), [1.0, 2.0], r"shape \[seeds, 2, ...\].*got \(4, 3\); put seeds first"),
        (np.ones(3), [1.0, 2.0, 3.0], r"shape \[seeds, 3, ...\].*got \(3,\)"),
        (np.ones((4, 3)), [1.0, 3.0, 2.0], r"increasing positive numbers, got \[1.0, 3.0, 2.0\]"),
        (np.ones((4, 3)), [1.0, 1.0, 2.0], "increasing positive numbers"),
        (np.ones((4, 3)), [0.0, 1.0, 2.0], "increasing positive numbers"),
        (np.ones((4, 3)), [1.0, np.nan, 2.0], "increasing positive numbers"),
        (np.ones((4, 3)), [np.nan, 1.0, 2.0], "increasing positive numbers"),
        (np.ones((4, 3)), [1.0, 2.0, np.inf], "increasing positive numbers"),
        (np.ones((4, 1)), [1.0], "at least two increasing positive numbers"),
        (np.ones((4, 3)), np.ones((3, 1)), "at least two increasing positive numbers"),
    ],
)
def test_level_errors(log_ratio, variances, match):
    with pytest.raises(ValueError, match=match):
        regimes.level(log_ratio, variances)
