"""The comparison of searches and optimizers: a tiny run, and what is said of known numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import hyperparameters as experiment
from experiments import tuning
from jaxgrad.training import schedules, search

SMALL = tuning.Config(
    grid=2,
    rounds=2,
    searches=2,
    rates=3,
    threshold=2.2,
    seeds=2,
    train=40,
    dev=50,
    width=8,
    steps=20,
    batch_size=10,
    depth=3,
    deep_rates=(0.01, 1e9),
)


@pytest.fixture(scope="module")
def found():
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "CHUNK", 16)
        result = tuning.measure(SMALL, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (tuning.count(SMALL), tuning.count(SMALL))
    return result


def test_a_small_run_compiles_once_and_measures_what_it_names(found):
    assert found.traces == (1, 1)
    assert found.searches.dev.shape == found.tried.shape == (6, 2, 8)
    assert found.optimizers.losses.shape == (4, 2, 20)
    assert found.annealed.dev.shape == (5, 2, 2)
    assert found.clipped.test.shape == (2, 2, 2)
    for runs in (found.searches, found.optimizers, found.annealed, found.clipped):
        assert ((runs.dev >= 0) & (runs.dev <= 1)).all()
        assert (runs.dev[runs.diverged] == tuning.LOST).all()
    assert np.isfinite(found.optimizers.losses).all()
    # Without clipping the large rate overflows; clipping bounds a step.
    assert found.clipped.diverged.all(axis=2)[:, 1].tolist() == [True, False]
    assert np.isnan(found.clipped.final[0, 1]).all()
    grid = found.tried[tuning.METHODS.index("grid")]
    np.testing.assert_allclose(np.sort(grid, axis=1), [[1e-6] * 4 + [10.0] * 4] * 2, rtol=1e-5)


def test_runs_of_the_same_point_and_number_are_the_same(found):
    first = SMALL.budget // SMALL.rounds
    random, refined = (tuning.METHODS.index(name) for name in ("log scale", "coarse to fine"))
    for values in (found.tried, found.searches.dev, found.searches.final):
        np.testing.assert_allclose(values[random, :, :first], values[refined, :, :first], rtol=1e-5)
    assert (found.tried[random, :, first:] != found.tried[refined, :, first:]).all()


def test_coarse_to_fine_is_the_search_of_the_library():
    config = dataclasses.replace(SMALL, grid=3, rounds=3)

    def error(point):
        return jnp.log10(point["rate"] * 100) ** 2 + point["keep_prob"] * point["l2"] ** 0.1

    keys = jax.random.split(jax.random.key(3), 2)
    points = tuning.coarse_to_fine(keys, lambda points, first: error(points), config)
    for i, key in enumerate(keys):
        alone = search.search(key, error, tuning.SPACE, count=9, rounds=3, keep=config.keep).points
        for name, values in alone.items():
            np.testing.assert_allclose(points[name][i], values, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SGD", optax.sgd(0.1)),
        ("momentum", optax.sgd(0.1, momentum=0.9)),
        ("Nesterov", optax.sgd(0.1, momentum=0.9, nesterov=True)),
        ("Adam", optax.adam(0.1)),
    ],
)
def test_an_optimizer_chosen_by_data_is_that_of_optax(name, expected):
    def path(optimizer):
        def step(carry, _):
            w, state = carry
            updates, state = optimizer.update(w * jnp.asarray([1.0, 3.0]), state, w)
            return (w + updates, state), w

        w = jnp.asarray([1.0, -2.0])
        return jax.lax.scan(step, (w, optimizer.init(w)), None, 5)[1]

    chosen = jax.jit(lambda i: path(tuning.optimizer(i, 0.1)))
    index = tuning.OPTIMIZERS.index(name)
    np.testing.assert_allclose(chosen(index), path(expected), rtol=1e-5)


def test_a_schedule_chosen_by_data_is_that_of_its_name():
    expected = {
        "constant": optax.constant_schedule(0.3),
        "step": lambda t: 0.3 * (1.0 if t < 50 else 0.1 if t < 75 else 0.01),
        "exponential": lambda t: 0.3 * 0.01 ** (t / 100),
        "1/t": schedules.inverse_time(0.3, 0.2),
        "cosine": lambda t: 0.15 * (1 + np.cos(np.pi * t / 100)),
    }
    for i, name in enumerate(tuning.SCHEDULES):
        rate = tuning.scheduled(i, 0.3, 100)
        for t in (0, 10, 60, 90):
            np.testing.assert_allclose(rate(jnp.asarray(t)), expected[name](t), rtol=1e-5)


def test_steps_are_counted_until_the_mean_of_an_epoch_is_low():
    config = dataclasses.replace(SMALL, threshold=0.5, train=20, batch_size=10)
    losses = np.array([[1.0, 1.0, 0.2, 0.2, 0.2], [0.9] * 5, [0.1, np.nan, 0.1, 0.1, 0.1]])
    np.testing.assert_allclose(tuning.epoch_means(losses, config)[0], [1.0, 0.6, 0.2, 0.2])
    # The second never, the third once NaN has left the window.
    assert tuning.steps_until(losses, config).tolist() == [4, 5, 4]
    trial = tuning.Runs(None, None, np.array([[3.0], [1.0], [np.nan]]), losses[:, None], None)
    assert tuning.quickest(trial, config) == 0
    late = trial._replace(losses=np.ones((3, 1, 5)))
    assert tuning.quickest(late, config) == 1


def test_the_chosen_run_is_that_of_the_least_dev_error():
    runs = tuning.Runs(np.array([[0.5, 0.2, 0.3]]), np.array([[0.1, 0.4, 0.2]]), *[None] * 3)
    assert experiment.so_far(runs.dev).tolist() == [[0.5, 0.2, 0.2]]
    assert experiment.of_chosen(runs).tolist() == [0.4]


def test_verdicts_follow_from_standard_errors(found):
    high, low = np.array([3.0, 3.2, 2.9]), np.array([1.0, 1.1, 1.3])
    assert experiment.verdict(high, low) == "holds"
    assert experiment.verdict(low, high) == "is the other way round"
    assert experiment.verdict(high, high) == "does not show"
    assert experiment.verdict(high, high + np.array([1.0, -1.0, 0.1])) == "does not show"
    assert experiment.verdict(high, low * np.nan) == "does not show"
    dev = np.full((6, 3, 8), 0.5)
    dev[0] -= np.array([0.30, 0.31, 0.32])[:, None]
    known = found._replace(searches=found.searches._replace(dev=dev))
    rows = {row[0].split(":")[0]: row for row in experiment.claims(known, SMALL)}
    assert rows["rate"][1:] == ("50.0 ± 0.0", "19.0 ± 0.6", "holds")
    assert rows["coarse to fine, not one round"][-1] == "is the other way round"
    assert "Search learning rates on a log scale: 0.0% of" in experiment.headline(known, SMALL)


def test_report_and_figure_show_every_part(found):
    text = experiment.report(found, SMALL)
    for name in (*tuning.METHODS, *tuning.OPTIMIZERS, *tuning.SCHEDULES[1:], "clip"):
        assert name in text
    assert "traced: 1 and 1" in text
    drawn = experiment.figure(found, SMALL)
    assert drawn.get_suptitle() == experiment.headline(found, SMALL)
    labels = [ax.get_legend_handles_labels()[1] for ax in drawn.axes]
    assert labels[1:] == [
        list(experiment.SHOWN),
        list(tuning.OPTIMIZERS),
        list(tuning.SCHEDULES),
    ]
    assert all("percent" in ax.get_ylabel() for ax in drawn.axes[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": 1}, "grid must be from 2"),
        ({"rounds": 3}, "rounds must divide the 8 runs of a search into two or more, got 3"),
        ({"rounds": 8}, "rounds must divide"),
        ({"dev": 1757}, "dev must be from 1 to 1756, got 1757"),
        ({"keep": float("nan")}, "keep must be from"),
        ({"steps": 3}, "steps must be at least one epoch, 4, got 3"),
        ({"deep_rates": (0.1, 0.1)}, "deep_rates must be different numbers above 0"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    config = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        tuning.checked(config)
