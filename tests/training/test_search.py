"""Search of hyper-parameters: scales, grids, coarse to fine, one compilation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxgrad import training
from jaxgrad.training import search

SPACE = {"rate": search.log_uniform(1e-6, 10.0), "dropout": search.uniform(0.2, 1.0)}


def test_points_are_even_on_their_scale(key):
    """rate = 10 ** U(-6, 1), as the course notes have it."""
    points = search.draw(SPACE, 5000, key=key)
    for name, ends in (("rate", (-6.0, 7.0)), ("dropout", (0.2, 0.8))):
        values = np.asarray(points[name], np.float64)
        values = np.log10(values) if name == "rate" else values
        assert scipy.stats.kstest(values, "uniform", args=ends).pvalue > 0.01
    correlation = scipy.stats.spearmanr(points["rate"], points["dropout"]).statistic
    assert abs(correlation) < 3 / np.sqrt(5000)


def test_grid_has_all_combinations():
    points = search.grid(SPACE, {"rate": 8, "dropout": 3})
    np.testing.assert_allclose(np.unique(points["rate"]), 10.0 ** np.arange(-6, 2), rtol=2e-5)
    pairs = set(zip(points["rate"].tolist(), points["dropout"].tolist(), strict=True))
    assert len(pairs) == 24
    np.testing.assert_allclose(points["dropout"][:3], [0.2, 0.6, 1.0], rtol=1e-6)
    middle = search.grid(SPACE, 1)
    np.testing.assert_allclose(middle["rate"], np.sqrt(1e-6 * 10), rtol=1e-5)


@pytest.mark.slow
def test_random_points_try_more_values_of_what_matters(key):
    """Bergstra, Bengio (2012): of 25 points of a grid only 5 differ in the rate."""

    def error(point):
        return jnp.abs(jnp.log10(point["rate"]) + 2.3)

    regular = jnp.min(error(search.grid(SPACE, 5)))
    keys = jax.random.split(key, 200)
    random = jax.vmap(lambda k: jnp.min(error(search.draw(SPACE, 25, key=k))))(keys)
    assert np.mean(random) + 3 * np.std(random) / np.sqrt(200) < regular


def test_narrowed_ranges_hold_the_best_points():
    points = {"rate": 10.0 ** jnp.arange(-6.0, 2.0), "dropout": jnp.linspace(0.2, 1.0, 8)}
    scores = jnp.abs(jnp.arange(8) - 3.0).at[3].set(jnp.nan)
    result = search.narrow(SPACE, points, scores, keep=0.25)
    # The two best are at 1e-4 and 1e-2, half a step is a quarter of seven powers of ten.
    np.testing.assert_allclose(np.log10(result["rate"][:2]), [-5.75, -0.25], rtol=1e-5)
    assert result["rate"].log
    low, high, _ = result["dropout"]
    assert 0.2 <= low < points["dropout"][2] < points["dropout"][4] < high <= 1.0


@pytest.mark.parametrize("rounds", [1, 3])
def test_coarse_to_fine_finds_the_minimum_with_one_compilation(key, rounds):
    traces = []

    def error(point):
        traces.append(1)
        return (jnp.log10(point["rate"]) + 2) ** 2 + 4 * (point["dropout"] - 0.5) ** 2

    result = search.search(error, SPACE, key=key, count=60, rounds=rounds)
    assert len(traces) == 1
    assert result.scores.shape == result.points["rate"].shape == (60 * rounds,)
    assert float(result.best["rate"]) == float(result.points["rate"][np.argmin(result.scores)])
    sizes = [np.log(space["rate"].high / space["rate"].low) for space in result.spaces]
    assert all(later < earlier for earlier, later in itertools.pairwise(sizes))
    closest = np.abs(np.log10(float(result.best["rate"])) + 2)
    assert closest < (0.4 if rounds == 1 else 0.05)


def test_a_training_run_is_searched_and_divergence_is_the_worst_score(key):
    x = jax.random.normal(key, (64, 3))
    data = {"x": x, "y": x @ jnp.asarray([1.0, -2.0, 0.5])}

    def loss(w, state, batch, key):
        return jnp.mean((batch["x"] @ w - batch["y"]) ** 2), state

    def error(point):
        fitted = training.fit(
            loss, jnp.zeros(3), optax.sgd(point["rate"]), data, key=key, steps=40, batch_size=16
        )
        return loss(fitted.params, (), data, key)[0]

    space = {"rate": search.log_uniform(1e-6, 1e6)}
    result = search.search(error, space, key=key, count=40, rounds=2)
    assert not np.all(np.isfinite(result.scores))
    assert np.nanmin(result.scores) < 1e-6
    assert 0.05 < float(result.best["rate"]) < 1.0


def test_a_round_without_a_number_is_a_result(key):
    result = search.search(lambda point: jnp.nan * point["rate"], SPACE, key=key, count=3, rounds=2)
    assert np.isnan(result.scores).all()
    assert result.scores.shape == (6,)
    assert result.spaces == (SPACE, SPACE)
    assert all(np.isnan(value) for value in result.best.values())


def test_points_lie_within_their_range():
    for low, high in np.random.default_rng(0).uniform(0, 1, (200, 2)).round(2):
        if low < high:
            values = search.grid({"a": search.uniform(low, high)}, 5)["a"]
            assert values.min() >= np.float32(low)
            assert values.max() <= np.float32(high)


def never(point):
    raise AssertionError("it ran")


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (
            lambda key: search.search(never, SPACE, key=key, count=3, keep=2.0),
            "keep must be at most 1, got 2",
        ),
        (
            lambda key: search.search(never, SPACE, key=0, count=3),
            "key must be one PRNG key, got 0",
        ),
        (
            lambda key: jax.jit(lambda k: search.search(never, SPACE, key=k, count=3).scores)(key),
            "key must be known, got a traced array; call search outside",
        ),
        (
            lambda key: jax.jit(lambda s: search.narrow(SPACE, search.grid(SPACE, 2), s))(
                jnp.ones(4)
            ),
            "points must be known, got a traced array; call narrow outside",
        ),
        (
            lambda key: search.search(lambda p: (p["rate"], p["rate"]), SPACE, key=key, count=3),
            r"f must return one number, got shape \(\(\), \(\)\)",
        ),
        (lambda key: search.uniform(1.0, 1.0), "low must be below high, got 1 and 1"),
        (lambda key: search.log_uniform(0.0, 1.0), "low must be greater than 0 for log_uniform"),
        (lambda key: search.uniform(0.0, np.inf), "high must be finite"),
        (lambda key: search.draw({}, 3, key=key), "space must not be empty"),
        (lambda key: search.draw({"rate": (0, 1)}, 3, key=key), "space must map names to ranges"),
        (lambda key: search.draw(SPACE, 0, key=key), "count must be at least 1"),
        (lambda key: search.grid(SPACE, {"rate": 3}), r"counts must have the names of space"),
        (
            lambda key: search.narrow(SPACE, search.grid(SPACE, 2), np.ones(3)),
            r"points must have one value of each .* \(3,\)",
        ),
        (
            lambda key: search.narrow(SPACE, search.grid(SPACE, 2), np.full(4, np.nan)),
            "scores must have a number",
        ),
        (
            lambda key: search.search(lambda point: jnp.ones(2), SPACE, key=key, count=3),
            r"f must return one number, got shape \(2,\)",
        ),
    ],
)
def test_errors(key, call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call(key)
