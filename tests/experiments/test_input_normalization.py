"""The comparison of inputs, raw and normalized."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from experiments import _kit as kit
from experiments.input_normalization import __main__ as command
from experiments.input_normalization import measurement as experiment
from tests.experiments.legible import legible, message
from tests.reference.record import hold

pytestmark = pytest.mark.slow

SMALL = experiment.Options(
    data=("wine",), seeds=2, cap=200, starts=2, dev_sizes=(2, 20, 1000), dev_draws=20
)


@pytest.fixture(scope="module")
def results():
    return experiment.measure_all(SMALL)


@pytest.fixture(scope="module")
def bowls():
    return experiment.bowls(SMALL)


def test_a_small_run_has_the_numbers_of_version_0_1(results, bowls):
    # The condition number of raw wine is 1e7, by which rounding grows.
    out = {"compare": results, "bowls": bowls}
    hold("experiments.input_normalization", out, tolerance=1e5)


def problem(key, examples=40, features=3):
    x = jax.random.normal(key, (examples, features), jnp.float64) * jnp.asarray([[1.0, 3.0, 0.4]])
    y = jax.random.normal(jax.random.fold_in(key, 1), (examples, 2), jnp.float64)
    return x, y


def test_quadratic_is_the_least_squares_loss(x64, key):
    x, y = problem(key)
    results = experiment.quadratic(x, y)

    def loss(w):
        return jnp.mean(jnp.sum((x @ w - y) ** 2, axis=1)) / 2

    w = jnp.ones((3, 2))
    gradient = results.hessian @ (w - results.best)
    np.testing.assert_allclose(gradient, jax.grad(loss)(w), atol=1e-12)
    np.testing.assert_allclose(results.best, np.linalg.lstsq(x, y)[0], rtol=1e-10)
    np.testing.assert_allclose(results.curvatures, np.linalg.eigvalsh(results.hessian)[::-1])
    # One step along the gradient, whose excess is that of the loss.
    steps, left = experiment.descend(results, w, 0.1, 0.0, 1)
    excess = [loss(weights) - loss(results.best) for weights in (w - 0.1 * gradient, w)]
    assert int(steps) == 1
    assert float(left) == pytest.approx(float(excess[0] / excess[1]), rel=1e-12)


def test_directions_without_curvature_are_left_out(x64, key):
    x, y = problem(key)
    flat = jnp.concatenate([x, x[:, :1], jnp.zeros((len(x), 1))], axis=1)
    results = experiment.quadratic(flat, y)
    assert int(jnp.sum(results.curvatures == 0)) == 2
    assert float(results.low) > 0.01
    np.testing.assert_allclose(flat @ results.best, x @ experiment.quadratic(x, y).best, atol=1e-12)


def test_descent_takes_the_steps_that_the_curvatures_give(x64, key):
    results = experiment.quadratic(*problem(key))
    for start in jax.random.normal(key, (3, 3, 2), jnp.float64):
        taken, left = experiment.descend(
            results, start, 2 / (results.low + results.high), 1e-3, 10_000
        )
        assert left <= 1e-3
        bound, exact = experiment.step_counts(results, start, 1e-3)
        assert int(taken) == int(exact)
        assert taken <= bound


def test_treatments_are_those_of_scikit_learn(x64):
    x = kit.load("wine").x
    raw, centred, standardized, by_variance = experiment.treated(jnp.asarray(x))
    np.testing.assert_array_equal(raw, x)
    np.testing.assert_allclose(centred, StandardScaler(with_std=False).fit_transform(x), atol=1e-9)
    np.testing.assert_allclose(standardized, StandardScaler().fit_transform(x), atol=1e-10)
    np.testing.assert_allclose(by_variance, (x - x.mean(0)) / x.var(0), atol=1e-10)


def test_standardized_wine_has_a_rounder_bowl(results):
    wine = results["wine"]
    raw, centred, standardized, by_variance = wine["condition"].T
    assert (raw / standardized > 1e6).all()
    assert (by_variance / standardized > 1e4).all()
    assert (centred < raw).all()
    assert not wine["flat"].any()
    assert wine["reached"].tolist() == [[False, False, True, False]] * 2
    np.testing.assert_array_equal(wine["steps"][:, 2], wine["exact"][:, 2])
    np.testing.assert_array_equal(wine["steps"][:, 0], SMALL.cap)
    assert (wine["exact"] <= wine["bound"]).all()


def test_two_over_the_largest_curvature_is_the_limit_from_every_start(results):
    assert results["wine"]["below"].all()
    assert results["wine"]["above"].all()


def test_dev_sets_want_the_training_statistics(results):
    trained, own = np.moveaxis(results["wine"]["dev_error"], -1, 0)
    # Two sizes, since wine has fewer than 1000 rows.
    assert trained.shape == (2, 2)
    assert (own[:, 0] > trained[:, 0] + 0.1).all()
    assert (own[:, 0] > own[:, 1]).all()


def test_bowls_shrink_as_their_condition_promises(bowls):
    for bowl in bowls:
        k = np.linalg.cond(bowl["hessian"])
        assert bowl["condition"] == pytest.approx(k, rel=1e-9)
        steps = np.ceil(np.log(SMALL.shrink) / (2 * np.log((k - 1) / (k + 1))))
        assert len(bowl["path"]) - 1 == steps
        offset = bowl["path"] - bowl["best"]
        excess = np.einsum("si,ij,sj->s", offset, bowl["hessian"], offset) / 2
        assert excess[0] == pytest.approx(1.0)
        assert excess[-1] <= SMALL.shrink < excess[-2]


def outcomes(results):
    report = command.report(results, SMALL)
    return str(report), {v.claim.text: v.outcome for v in kit.verdicts(report.claims)}


ROUNDER = "wine: log10 of the condition number, standardized less raw, is below 0"


def test_report_follows_the_numbers(results):
    text, verdicts = outcomes(results)
    assert "> 200" in text
    assert verdicts["steps taken are the exact number in all 2 descents that end"] == "HOLDS"
    # Eight seeds, for enough evidence.
    twice = {
        field: np.concatenate([a, a * (1 + 1e-3) if a.dtype.kind == "f" else a] * 4)
        for field, a in results["wine"].items()
    }
    _, verdicts = outcomes({"wine": twice})
    assert verdicts[ROUNDER] == "HOLDS"
    worse = "dividing by the variance instead makes log10 of the condition number"
    assert verdicts[f"wine: {worse} larger by more than 0.05"] == "HOLDS"
    noise = 1 + 1e-3 * np.linspace(-1, 1, 8)[:, None] * np.array([1.0, -1.0, 2.0, 0.5])
    same = {**twice, "condition": noise, "dev_error": np.zeros((8, 2, 2))}
    _, verdicts = outcomes({"wine": same, "gaussian": same})
    assert verdicts[ROUNDER] == "UNDECIDED"
    assert verdicts[f"wine: {worse} larger by more than 0.05"] == "DOES NOT HOLD"
    assert verdicts[f"gaussian: {worse} the same, within 0.05"] == "HOLDS"
    harmless = "gaussian: dividing centred inputs by the deviation is harmless, raises it by less"
    assert verdicts[f"{harmless} than 0.05"] == "HOLDS"
    harm = [outcome for text, outcome in verdicts.items() if "statistics of its own" in text]
    assert harm == ["UNDECIDED"] * 4


def test_changes_are_paired_by_seed(results):
    rounder = command.report(results, SMALL).claims[0]
    logs = np.log10(results["wine"]["condition"])
    assert rounder.text == ROUNDER
    assert rounder.estimate.mean == pytest.approx((logs[:, 2] - logs[:, 0]).mean())
    assert rounder.estimate.standard_error == pytest.approx(np.ptp(logs[:, 2] - logs[:, 0]) / 2)


def test_figure_counts_the_steps(bowls):
    figure = legible(lambda: command.figure(bowls, SMALL))
    steps = [len(bowl["path"]) - 1 for bowl in bowls]
    assert f"{steps[1]} steps of descent instead of {steps[0]}" in message(figure)
    for ax, words in zip(figure.axes, ("raw", "standardized"), strict=True):
        assert words in ax.get_title()
        assert ax.get_aspect() == 1.0
        assert "weight of ash" in ax.get_xlabel()
        assert "weight of total phenols" in ax.get_ylabel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": ("iris",)}, "data must have values one of wine"),
        ({"data": ()}, "data must have at least 1 value"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"shrink": 1.0}, "shrink must be above 0 and below 1"),
        ({"dev_sizes": (1,)}, "dev_sizes must have values at least 2"),
        ({"pair": ("ash", "ash")}, "pair must have no value twice"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit.check(options)
