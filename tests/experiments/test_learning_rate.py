"""The comparison of predicted and measured largest learning rates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _kit as kit
from experiments import learning_rate as experiment
from jaxgrad import training
from tests.experiments.legible import legible, message

SMALL = experiment.Options(
    activation="linear", depths=(1, 2), widths=(32,), w_variances=(0.5, 1.0), examples=16, steps=4
)


def known(factor):
    predicted = np.log(np.geomspace(0.01, 0.1, 8)).reshape(2, 1, 2, 2)
    noise = np.array([0.0, 0.01])
    stable = predicted + np.log(factor) + noise
    limit, saved = stable - np.log(2), stable + 1.0 + noise
    return experiment.Rates(predicted, limit, stable, saved, np.full(predicted.shape, 1e-4))


@pytest.mark.slow
def test_rates_of_small_networks():
    rates = experiment.measure(SMALL)
    assert rates.stable.shape == (2, 1, 2, 2)
    assert rates.residual.max() < 1e-3
    # Above 2 / curvature the loss rises, soon or late; below it nothing does.
    ratio = np.exp(rates.stable - rates.limit)
    assert np.all((ratio > 0.8) & (ratio < 3))
    # The quadratic model falls up to the limit, and beyond it for a few steps.
    assert np.all(rates.predicted > rates.limit - 0.01)
    assert np.all(rates.saved > rates.stable - 0.05)


@pytest.mark.slow
def test_the_prediction_of_a_quadratic_loss_is_its_largest_stable_rate():
    """With a single layer of weights, the squared error is quadratic."""
    options = dataclasses.replace(SMALL, depths=(1,), widths=(1,), examples=8)
    x, targets = experiment.examples(options)
    weights = jnp.zeros((64, 10))

    def loss(w):
        return jnp.mean(jnp.sum((x @ w - targets) ** 2, axis=1)) / 2

    predicted = float(training.largest_learning_rate(loss, weights, descent_steps=4))

    def falls(rate):
        w, values = weights, []
        for _ in range(4):
            values.append(float(loss(w)))
            w = w - rate * jax.grad(loss)(w)
        return np.all(np.diff([*values, float(loss(w))]) <= 0)

    assert falls(predicted * 0.99)
    assert not falls(predicted * 1.01)


@pytest.mark.parametrize(("factor", "outcome"), [(1.2, "HOLDS"), (1.6, "DOES NOT HOLD")])
def test_report_and_figure_follow_the_numbers(factor, outcome):
    rates = known(factor)
    report = experiment.report(rates, SMALL)
    first, better, above, saved = kit.verdicts(report.claims)
    # The limit is off by a factor of two everywhere.
    assert (first.outcome, better.outcome) == (outcome, outcome)
    assert above.claim.estimate.mean == pytest.approx(np.log(2))
    assert saved.claim.estimate.mean == pytest.approx(1.005)
    figure = legible(lambda: experiment.draw(rates, SMALL))
    share = "100%" if factor < 1.5 else "0%"
    assert f"{share} within a factor 1.5" in message(figure)
    assert figure.axes[0].get_xlabel()
    assert figure.axes[0].get_ylabel()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "swish9"}, "activation must be one of"),
        ({"depths": ()}, "depths must have at least 1 value"),
        ({"w_variances": (0.0, 1.0)}, "w_variances must have values above 0"),
        ({"examples": 5000}, "examples must be at least 1 and at most 1797"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit.check(options)
