"""Splits of the data: sizes, classes, chance; are two sets of one distribution?"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.model_selection import train_test_split

from jaxgrad.training import splits
from tests.tolerances import within_errors

LABELS = np.repeat([0, 1, 2], [30, 11, 19])[np.random.default_rng(0).permutation(60)]


@pytest.mark.parametrize(
    ("examples", "with_dev", "without"),
    [
        (100, (0.6, 0.2, 0.2), (0.7, 0.3)),
        (10_000, (0.6, 0.2, 0.2), (0.7, 0.3)),
        (1_000_000, (0.98, 0.01, 0.01), (0.99, 0.01)),
        (1_000_001, (0.995, 0.0025, 0.0025), (0.9975, 0.0025)),
    ],
)
def test_fractions_are_those_of_the_table(examples, with_dev, without):
    assert splits.fractions(examples) == with_dev
    assert splits.fractions(examples, dev=False) == without


def test_fractions_between_are_a_power_of_the_number_of_examples():
    # Half-way on the logarithmic axis: the geometric mean.
    for dev, ends in ((True, (0.2, 0.01)), (False, (0.3, 0.01))):
        result = splits.fractions(100_000, dev=dev)
        assert sum(result) == pytest.approx(1.0, abs=1e-9)
        np.testing.assert_allclose(result[1:], np.sqrt(ends[0] * ends[1]), rtol=1e-9)


def test_class_counts_have_the_right_sums_and_are_rounded_shares():
    generator = np.random.default_rng(0)
    for _ in range(300):
        sets = generator.integers(2, 9)
        shares = generator.dirichlet(np.full(sets, 4.0))
        # Every class has a share of one example or more in every set.
        sizes = generator.integers(1, 40, generator.integers(1, 9)) + int(1 / shares.min())
        totals = splits._set_sizes(sizes.sum(), shares)
        counts = splits._class_counts(sizes, totals, shares)
        np.testing.assert_array_equal(counts.sum(axis=1), sizes)
        np.testing.assert_array_equal(counts.sum(axis=0), totals)
        assert np.abs(totals - sizes.sum() * shares).max() < 1
        assert np.abs(counts - sizes[:, None] * shares[None]).max() < 1
        assert counts.min() >= 1


def test_every_class_is_in_every_set_where_shares_are_less_than_an_example():
    generator = np.random.default_rng(0)
    for _ in range(100):
        sets = generator.integers(2, 6)
        sizes = sets + generator.integers(0, 60, 6)
        held_out = 6 / sizes.sum() + 0.01
        shares = np.array([held_out] * (sets - 1) + [1 - held_out * (sets - 1)])
        totals = splits._set_sizes(sizes.sum(), shares)
        counts = splits._class_counts(sizes, totals, shares)
        np.testing.assert_array_equal(counts.sum(axis=1), sizes)
        np.testing.assert_array_equal(counts.sum(axis=0), totals)
        assert counts.min() >= 1


def test_split_is_disjoint_complete_and_stratified_as_that_of_scikit_learn(key):
    train, test = splits.split(LABELS, (0.7, 0.3), key=key)
    assert train.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(np.r_[train, test]), np.arange(60))
    expected = train_test_split(np.arange(60), test_size=0.3, stratify=LABELS, random_state=0)
    for ours, other in zip((train, test), expected, strict=True):
        assert len(ours) == len(other)
        differences = np.bincount(LABELS[ours]) - np.bincount(LABELS[other])
        assert np.abs(differences).max() <= 1


def test_members_are_drawn_uniformly_within_their_class(key):
    keys = jax.random.split(key, 400)
    parts = jax.jit(jax.vmap(lambda k: splits.split(LABELS, (0.6, 0.2, 0.2), key=k)))(keys)
    assert [part.shape for part in parts] == [(400, 36), (400, 12), (400, 12)]
    for part in parts:
        chosen = np.zeros((400, 60))
        np.put_along_axis(chosen, np.asarray(part), 1.0, axis=1)
        counts = np.stack([chosen[:, c == LABELS].sum(axis=1) for c in range(3)], axis=1)
        np.testing.assert_array_equal(counts, np.broadcast_to(counts[:1], counts.shape))
        share = (counts[0] / np.bincount(LABELS))[LABELS]
        # 60 examples, most of them independent: largest of 60 normal numbers.
        within_errors(chosen, share, k=4.0)
        # Random order: the class at the head of a set is as frequent as in the set.
        within_errors(LABELS[part[:, 0]] == 0, counts[0, 0] / part.shape[1])
    # Two examples are in one set no more often than chance has it.
    zeros = np.flatnonzero(LABELS == 0)[:2]
    both = [np.isin(zeros, part).all() for part in np.asarray(parts[0])]
    taken = (LABELS[parts[0][0]] == 0).sum()
    within_errors(both, taken * (taken - 1) / (30 * 29))


def test_split_of_a_number_ignores_classes_and_keys_differ(key):
    train, dev, test = splits.split(11, (0.6, 0.2, 0.2), key=key)
    assert (len(train), len(dev), len(test)) == (7, 2, 2)
    np.testing.assert_array_equal(np.sort(np.r_[train, dev, test]), np.arange(11))
    other = splits.split(11, (0.6, 0.2, 0.2), key=jax.random.key(3))[0]
    assert not np.array_equal(np.sort(train), np.sort(other))


@pytest.mark.parametrize(
    ("labels", "fractions", "classes", "error", "message"),
    [
        (LABELS, (0.6, 0.3), None, ValueError, "fractions must sum to 1"),
        (LABELS, (1.2, -0.2), None, ValueError, "fractions must be finite and greater than 0"),
        (LABELS, (1.0, 0.0), None, ValueError, "fractions must be finite and greater than 0"),
        (LABELS, (np.nan, 1.0), None, ValueError, "fractions must be finite"),
        (LABELS, (1.0,), None, ValueError, r"fractions must have shape \[sets\] with 2 or more"),
        (LABELS, "most", None, TypeError, "fractions must be numbers"),
        (LABELS, (0.99, 0.01), None, ValueError, "got 1 of 60 examples for set 1"),
        (10, (0.97, 0.03), None, ValueError, "fractions must leave no set empty"),
        ([0, 1, -1, 1], (0.5, 0.5), None, ValueError, "labels must be from 0 to .* got -1"),
        ([0, 1, 3, 1], (0.5, 0.5), 3, ValueError, "labels must be from 0 to .* got 3"),
        ([0, 0, 2, 2], (0.5, 0.5), None, ValueError, "got 0 of class 1"),
        ([0, 0, 1, 1], (0.5, 0.5), 3, ValueError, "got 0 of class 2"),
        ([0, 0, 0, 1], (0.5, 0.5), None, ValueError, "got 1 of class 1"),
        ([0.0, np.nan], (0.5, 0.5), None, TypeError, "labels must be whole numbers, got float64"),
        ([[0], [1]], (0.5, 0.5), None, ValueError, r"labels must have shape \[examples\]"),
        (4.5, (0.5, 0.5), None, TypeError, "labels must be a whole number"),
        (4, (0.5, 0.5), 2, ValueError, "classes must be None"),
    ],
)
def test_bad_splits_are_named(key, labels, fractions, classes, error, message):
    labels = labels if np.ndim(labels) == 0 else np.asarray(labels)
    with pytest.raises(error, match=message):
        splits.split(labels, fractions, key=key, classes=classes)


def test_traced_labels_are_refused(key):
    with pytest.raises(TypeError, match="labels must be known while tracing"):
        jax.jit(lambda labels: splits.split(labels, (0.5, 0.5), key=key))(jnp.asarray(LABELS))


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_statistics_are_those_of_scipy(key):
    first, second = draw(0, 24, 4), draw(1, 16, 4) + 0.4
    # Ties within and between sets, and a feature that does not vary.
    first[:, 1], second[:, 1] = np.round(first[:, 1]), np.round(second[:, 1])
    first[:, 2] = second[:, 2] = 0.1
    result = splits.compare(first, second, key=key, permutations=19)
    expected = [scipy.stats.ks_2samp(a, b)[0] for a, b in zip(first.T, second.T, strict=True)]
    np.testing.assert_allclose(result.ks, expected, rtol=1e-6)
    assert result.ks[2] == 0.0
    assert result.feature_p_values[2] == 1.0
    # With one feature that varies, the distance is that of scipy's energy distance squared.
    first[:, [0, 3]] = second[:, [0, 3]] = 0.1
    spread = np.concatenate([first[:, 1], second[:, 1]]).std()
    expected = scipy.stats.energy_distance(first[:, 1], second[:, 1]) ** 2 / spread
    result = splits.compare(first, second, key=key, permutations=19)
    np.testing.assert_allclose(result.energy, expected, rtol=1e-5)


def test_energy_distance_is_joint_and_does_not_depend_on_scales(key):
    first, second = draw(0, 24, 4), draw(1, 16, 4) * 1.5
    pooled = np.concatenate([first, second]).astype(np.float64)
    pooled = (pooled - pooled.mean(axis=0)) / pooled.std(axis=0)
    distances = np.linalg.norm(pooled[:, None] - pooled[None], axis=-1)
    within = distances[:24, :24].mean() + distances[24:, 24:].mean()
    expected = 2 * distances[:24, 24:].mean() - within
    result = splits.compare(first, second, key=key, permutations=19)
    np.testing.assert_allclose(result.energy, expected, rtol=1e-5)
    scaled = splits.compare(100 + 5 * first, 100 + 5 * second, key=key, permutations=19)
    np.testing.assert_allclose(scaled.energy, expected, rtol=1e-3)
    np.testing.assert_allclose(scaled.ks, result.ks, rtol=1e-6)


@pytest.mark.slow
def test_p_values_are_uniform_under_one_distribution(key):
    def one(key):
        sets = jax.random.normal(key, (2, 20, 3))
        result = splits.compare(sets[0], sets[1], key=jax.random.fold_in(key, 1), permutations=39)
        return result.p_value, jnp.min(result.feature_p_values), splits.same(result, level=0.1)

    joint, smallest, passed = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=100))(
        jax.random.split(key, 400)
    )
    for level in (0.1, 0.25, 0.5):
        within_errors(joint <= level + 1e-6, level)
    # Whole-number statistics tie, which makes adjusted p-values larger, never smaller.
    for level in (0.1, 0.25, 0.5):
        rejected = np.asarray(smallest <= level + 1e-6)
        error = np.sqrt(level * (1 - level) / len(rejected))
        assert 0.5 * level < rejected.mean() < level + 3 * error
    assert np.mean(~np.asarray(passed)) < 0.1 + 3 * np.sqrt(0.1 * 0.9 / 400)


def test_a_shifted_feature_is_named_and_a_correlation_is_found_jointly(key):
    first, second = draw(0, 80, 3), draw(1, 80, 3)
    second[:, 2] += 1.5
    result = splits.compare(first, second, key=key, permutations=199)
    assert (np.asarray(result.feature_p_values) < 0.01).tolist() == [False, False, True]
    assert not splits.same(result)
    # Standard normal features in both sets, of opposite correlation.
    first, second = draw(2, 80, 3), draw(3, 80, 3)
    for rows, sign in ((first, 1), (second, -1)):
        rows[:, 1] = 0.95 * sign * rows[:, 0] + np.sqrt(1 - 0.95**2) * rows[:, 1]
    result = splits.compare(first, second, key=key, permutations=199)
    assert result.p_value <= 0.01
    assert result.feature_p_values.min() > 0.1
    assert not splits.same(result)


def test_equal_sets_and_sets_without_variation_pass(key):
    rows = draw(0, 16, 4)
    result = splits.compare(rows, rows, key=key, permutations=19)
    assert bool(splits.same(result))
    np.testing.assert_array_equal(result.feature_p_values, 1.0)
    constant = np.full_like(rows, 0.1)
    result = splits.compare(constant, constant, key=key, permutations=19)
    assert result.p_value == 1.0
    assert result.energy == 0.0


@pytest.mark.parametrize(
    ("first", "second", "permutations", "error", "message"),
    [
        (np.ones((4, 2)), np.ones((4, 3)), 9, ValueError, "second must have the 2 features"),
        (np.ones((4, 2)), np.ones((1, 2)), 9, ValueError, "at least 2 examples each"),
        (np.full((4, 2), np.nan), np.ones((4, 2)), 9, ValueError, "first must be finite"),
        (np.ones((4, 2)), np.ones((4, 2), int), 9, TypeError, "second must be floating point"),
        (np.ones((4, 2)), np.ones((4, 2)), 0, ValueError, "permutations must be at least 1"),
    ],
)
def test_bad_comparisons_are_named(key, first, second, permutations, error, message):
    with pytest.raises(error, match=message):
        splits.compare(first, second, key=key, permutations=permutations)


def test_each_of_two_tests_has_half_of_the_level():
    passed = splits.Comparison(jnp.zeros(2), jnp.array([0.03, 1]), jnp.zeros(()), jnp.array(0.03))
    assert splits.same(passed, level=0.05)
    assert not splits.same(passed, level=0.06)
    assert not splits.same(passed._replace(p_value=jnp.array(0.02)), level=0.05)
    assert not splits.same(passed._replace(feature_p_values=jnp.array([1, 0.02])), level=0.05)


def test_bad_levels_are_named():
    equal = splits.Comparison(jnp.zeros(1), jnp.ones(1), jnp.zeros(()), jnp.ones(()))
    for level in (0.0, 1.5, np.nan):
        with pytest.raises(ValueError, match="level must be"):
            splits.same(equal, level=level)
