"""The comparison of searches and optimizers: a tiny run, and what is said of known numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments._kit import options as kit_options
from experiments.hyperparameters import __main__ as experiment
from experiments.hyperparameters import runs as training_runs
from jaxgrad.training import schedules, search
from tests.experiments.legible import legible, message
from tests.reference.record import hold

pytestmark = pytest.mark.slow

SMALL = training_runs.Options(
    grid=2,
    rounds=2,
    searches=2,
    learning_rates=3,
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
def result():
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_runs, "CHUNK", 16)
        measured = training_runs.measure(SMALL, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (training_runs.network_count(SMALL), training_runs.network_count(SMALL))
    return measured


def test_a_small_run_compiles_once_and_measures_what_it_names(result):
    assert result.traces == (1, 1)
    assert result.searches.dev.shape == result.learning_rates.shape == (6, 2, 8)
    assert result.optimizers.losses.shape == (4, 2, 20)
    assert result.annealed.dev.shape == (5, 2, 2)
    assert result.clipped.test.shape == (2, 2, 2)
    for runs in (result.searches, result.optimizers, result.annealed, result.clipped):
        assert ((runs.dev >= 0) & (runs.dev <= 1)).all()
        assert (runs.dev[runs.diverged] == training_runs.DIVERGED_ERROR).all()
    assert np.isfinite(result.optimizers.losses).all()
    # Without clipping the large rate overflows; clipping bounds a step.
    assert result.clipped.diverged.all(axis=2)[:, 1].tolist() == [True, False]
    assert np.isnan(result.clipped.final[0, 1]).all()
    grid = result.learning_rates[training_runs.METHODS.index("grid")]
    np.testing.assert_allclose(np.sort(grid, axis=1), [[1e-6] * 4 + [10.0] * 4] * 2, rtol=1e-5)


def test_a_small_run_has_the_numbers_of_version_0_1(result):
    out = result._asdict()
    out |= {"tried": out.pop("learning_rates"), "rates": out.pop("best_rates")}
    # Training multiplies rounding, so errors of its last steps differ by more.
    hold("experiments.hyperparameters", out, tolerance=100, single=True, left_out=("traces",))


def test_runs_of_the_same_point_and_number_are_the_same(result):
    first = SMALL.budget // SMALL.rounds
    random, refined = (
        training_runs.METHODS.index(name) for name in ("log scale", "coarse to fine")
    )
    for values in (result.learning_rates, result.searches.dev, result.searches.final):
        np.testing.assert_allclose(values[random, :, :first], values[refined, :, :first], rtol=1e-5)
    assert (
        result.learning_rates[random, :, first:] != result.learning_rates[refined, :, first:]
    ).all()


def test_coarse_to_fine_is_the_search_of_the_library():
    options = dataclasses.replace(SMALL, grid=3, rounds=3)

    def error(point):
        return (
            jnp.log10(point["learning_rate"] * 100) ** 2 + point["keep_prob"] * point["l2"] ** 0.1
        )

    keys = jax.random.split(jax.random.key(3), 2)
    points = training_runs.coarse_to_fine(keys, lambda points, first: error(points), options)
    for i, key in enumerate(keys):
        alone = search.search(
            error, training_runs.SPACE, key=key, count=9, rounds=3, keep=options.keep
        ).points
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

    chosen = jax.jit(lambda i: path(training_runs.optimizer(i, 0.1)))
    index = training_runs.OPTIMIZERS.index(name)
    np.testing.assert_allclose(chosen(index), path(expected), rtol=1e-5)


def test_a_schedule_chosen_by_data_is_that_of_its_name():
    expected = {
        "constant": optax.constant_schedule(0.3),
        "step": lambda t: 0.3 * (1.0 if t < 50 else 0.1 if t < 75 else 0.01),
        "exponential": lambda t: 0.3 * 0.01 ** (t / 100),
        "1/t": schedules.inverse_time(0.3, 0.2),
        "cosine": lambda t: 0.15 * (1 + np.cos(np.pi * t / 100)),
    }
    for i, name in enumerate(training_runs.SCHEDULES):
        rate = training_runs.schedule(i, 0.3, 100)
        for t in (0, 10, 60, 90):
            np.testing.assert_allclose(rate(jnp.asarray(t)), expected[name](t), rtol=1e-5)


def test_steps_are_counted_until_the_mean_of_an_epoch_is_low():
    options = dataclasses.replace(SMALL, threshold=0.5, train=20, batch_size=10)
    losses = np.array([[1.0, 1.0, 0.2, 0.2, 0.2], [0.9] * 5, [0.1, np.nan, 0.1, 0.1, 0.1]])
    np.testing.assert_allclose(training_runs.epoch_means(losses, options)[0], [1.0, 0.6, 0.2, 0.2])
    # The second never, the third once NaN has left the window.
    assert training_runs.steps_until(losses, options).tolist() == [4, 5, 4]
    trial = training_runs.Runs(
        None, None, np.array([[3.0], [1.0], [np.nan]]), losses[:, None], None
    )
    assert training_runs.quickest(trial, options) == 0
    late = trial._replace(losses=np.ones((3, 1, 5)))
    assert training_runs.quickest(late, options) == 1


def test_the_chosen_run_is_that_of_the_least_dev_error():
    runs = training_runs.Runs(np.array([[0.5, 0.2, 0.3]]), np.array([[0.1, 0.4, 0.2]]), *[None] * 3)
    assert experiment.selected_error(runs).tolist() == [0.4]


def with_dev_errors(result, dev):
    """The result with three searches of these dev errors."""
    searches = jax.tree.map(lambda array: np.repeat(array[:, :1], 3, axis=1), result.searches)
    rates = np.repeat(result.learning_rates[:, :1], 3, axis=1)
    return result._replace(searches=searches._replace(dev=dev), learning_rates=rates)


def drawn(result):
    report = experiment.report(result, SMALL)
    return legible(lambda: experiment.figure(result, report, SMALL))


def test_claims_compare_what_they_name_pair_by_pair(result):
    dev = np.full((6, 3, 8), 0.5)
    dev[0] -= np.array([0.30, 0.31, 0.32])[:, None]
    known = with_dev_errors(result, dev)
    claims = {claim.text.split(":")[0]: claim for claim in experiment.claims(known, SMALL)}
    assert len(claims) == 17
    # The log scale reaches 0.19 where all others stay at 0.5.
    rate = claims["a log scale for the learning rate"]
    np.testing.assert_allclose(rate.estimate.mean, -0.31, rtol=1e-6)
    np.testing.assert_allclose(rate.estimate.standard_error, 0.01 / np.sqrt(3), rtol=1e-6)
    refined = claims["coarse to fine instead of one round"]
    np.testing.assert_allclose(refined.estimate.mean, 0.31, rtol=1e-6)
    assert rate.test()[0]
    assert not refined.test()[0]
    lost = claims["clipping"]
    assert lost.text == "clipping: lower test error at the best rate"
    assert "Search learning rates on a log scale" in message(drawn(known))


def test_a_difference_that_does_not_show_is_no_headline(result):
    dev = np.full((6, 3, 8), 0.5)
    known = with_dev_errors(result, dev)
    assert "makes no difference that shows" in message(drawn(known))


def test_report_and_figure_show_every_part(result):
    text = str(experiment.report(result, SMALL))
    names = (*training_runs.METHODS, *training_runs.OPTIMIZERS, *training_runs.SCHEDULES[1:])
    for name in (*names, "clipping"):
        assert name in text
    assert max(map(len, text.splitlines())) <= 100
    runs, best = drawn(result).axes
    assert runs.get_xlabel() == "learning rate"
    assert "dev error" in runs.get_ylabel()
    # Each of the two methods with its looks in the other panel, where the legend has its name.
    lines = {line.get_label(): line for line in best.get_lines()}
    assert list(lines) == list(experiment.SHOWN)
    names = (experiment.LINEAR, experiment.LOG)
    for points, name in zip(runs.get_lines(), names, strict=True):
        index = training_runs.METHODS.index(name)
        assert points.get_color() == lines[name].get_color()
        np.testing.assert_array_equal(
            points.get_xydata().T,
            [result.learning_rates[index].ravel(), result.searches.dev[index].ravel()],
        )
        means = [result.searches.dev[index, :, : i + 1].min(axis=-1).mean() for i in range(8)]
        np.testing.assert_allclose(lines[name].get_ydata(), means, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": 1}, "grid must be at least 2, got 1"),
        ({"rounds": 3}, "rounds must divide the 8 runs of a search into two or more, got 3"),
        ({"rounds": 8}, "rounds must divide"),
        ({"dev": 1757}, "dev must be from 1 to 1756, got 1757"),
        ({"keep": float("nan")}, "keep must be above 0 and at most 1, got nan"),
        ({"steps": 3}, "steps must be from 4 to inf, got 3"),
        ({"deep_rates": (0.1, 0.1)}, "deep_rates must have no value twice"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit_options.check(options)
