"""Measurements of the experiments, in a small configuration: the numbers of 0.1."""

import jax
import numpy as np
import pytest

from experiments import activations, course_examples, data_splits, depth_variance, phase_diagram
from experiments.gradient_check import dropout, kinks, network, regularizer, steps, training
from experiments.input_normalization import measurement as inputs
from tests.reference.record import hold, recorded, table

pytestmark = pytest.mark.slow


MAP = {"depth": 6, "width": 12, "w_variances": 5, "examples": 8, "seeds": 3}


@pytest.mark.parametrize("gradient", ["probe", "exact"])
def test_depth_variance(gradient, tmp_path):
    options = depth_variance.Options(**MAP, gradient=gradient, output=tmp_path / "map")
    dataset = depth_variance.measure(options).load()
    hold(f"experiments.depth_variance.{gradient}", table(dataset))


def test_depth_variance_in_theory():
    dataset = depth_variance.predict(depth_variance.Options(**MAP))
    hold("experiments.depth_variance.predict", table(dataset))


def test_phase_diagram():
    options = phase_diagram.Options(
        activation="relu",
        w_variance_min=1.0,
        w_variance_max=3.0,
        w_points=7,
        b_points=5,
        w_measured=3,
        b_measured=3,
        width=48,
        depth=12,
        examples=4,
        seeds=4,
    )
    out = {
        "predict": table(phase_diagram.predict(options)),
        "measure": table(phase_diagram.measure(options)),
        "critical": np.asarray(phase_diagram.critical_point(options)),
    }
    hold("experiments.phase_diagram", out)


CHECK = network.Options(
    width=5,
    examples=4,
    networks=3,
    kink_examples=(24,),
    largest_strength=1e6,
    training_steps=(0, 30),
    batch_size=16,
)


def texts(rows):
    """Verdicts one by one, as 0.1 had them."""
    return {name: [np.asarray(str(verdict)) for verdict in row] for name, row in rows.items()}


def test_gradient_check_steps():
    result = steps.measure(CHECK)
    # Near its smallest error an error is rounding, which no two programs share.
    old = recorded()["experiments.gradient_check.steps"]
    np.testing.assert_array_equal(result.steps, old["steps"])
    for i, method in enumerate(result.methods):
        before = old[f"methods/{i}/error"]
        np.testing.assert_allclose(method.error, before, rtol=1e-3, atol=3e3 * method.rounding)
        assert method.order == old[f"methods/{i}/order"]
        assert method.rounding == old[f"methods/{i}/rounding"]
        np.testing.assert_allclose(method.slope, old[f"methods/{i}/slope"], rtol=0.02)
    np.testing.assert_allclose(result.gradient_error, old["found_error"], rtol=0.5)
    np.testing.assert_allclose(result.gradient_bar, old["found_bar"], rtol=0.5)


def test_gradient_check_kinks():
    result = kinks.measure(CHECK)
    out = {
        "steps": kinks.STEPS,
        "error": result.error,
        "crossed": result.crossed,
        "alarms": {dtype: rows.mean(axis=1) for dtype, rows in result.jax_alarms.items()},
        "examples": {"0": result.examples[0]},
        "verdicts": texts({"0": result.verdicts[0]}),
    }
    hold("experiments.gradient_check.kinks", out, left_out=("error",))
    # The errors of smooth networks are rounding; those of kinks are larger by far.
    old = recorded()["experiments.gradient_check.kinks"]["error"]
    np.testing.assert_allclose(result.error, old, rtol=1e-4, atol=1e-6)


def test_gradient_check_regularizer():
    result = regularizer.measure(CHECK)
    out = {
        "planted": result.planted_error,
        "strengths": result.strengths,
        "verdicts": texts(result.verdicts),
        "checkers": regularizer.CHECKERS,
    }
    hold("experiments.gradient_check.regulariser", out, left_out=("error", "leaf_error", "tiers"))
    old = recorded()["experiments.gradient_check.regulariser"]
    np.testing.assert_allclose(result.error, old["error"], rtol=1e-4, atol=1e-9)
    for name, error in result.leaf_error.items():
        np.testing.assert_allclose(error, old[f"leaf_error/{name}"], rtol=1e-4, atol=1e-9)


def test_gradient_check_dropout():
    result = dropout.measure(CHECK)
    old = recorded()["experiments.gradient_check.dropout"]
    for i, case in enumerate(result):
        assert str(case.verdict) == old[f"{i}/verdict"]
        np.testing.assert_allclose(case.autodiff, old[f"{i}/autodiff"], rtol=1e-9, atol=1e-12)
        # A difference of two numbers of size 1, divided by a step of 1e-4.
        np.testing.assert_allclose(case.numeric, old[f"{i}/numeric"], rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(case.error, old[f"{i}/error"], rtol=1e-2)


def test_gradient_check_training():
    result = training.measure(CHECK)
    out = {"at": result.steps, "verdicts": texts(result.verdicts)}
    hold("experiments.gradient_check.training", out, left_out=("error",))
    old = recorded()["experiments.gradient_check.training"]
    for name, error in result.error.items():
        np.testing.assert_allclose(error, old[f"error/{name}"], rtol=1e-4, atol=1e-9)


def test_input_normalization():
    options = inputs.Options(
        data=("wine",), seeds=2, cap=200, starts=2, dev_sizes=(2, 20, 1000), dev_draws=20
    )
    out = {"compare": inputs.measure_all(options), "bowls": inputs.bowls(options)}
    # The condition number of raw wine is 1e7, by which rounding grows.
    hold("experiments.input_normalization", out, tolerance=1e5)


def test_data_splits():
    options = data_splits.Options(
        splits=40, train_examples=100, dev_sizes=(20, 80), trials=6, permutations=39, shift=1.5
    )
    spread, detected = data_splits.spread(options), data_splits.detect(options)
    out = {
        "spread": {
            "sizes": spread.sizes,
            "error": spread.error,
            "measured": spread.measured.mean,
            "uncertainty": spread.measured.standard_error,
            "binomial": spread.binomial,
        },
        "shares": data_splits.shares(options),
        "detect": [
            {
                "rate": row.rate.mean,
                "features": row.features,
                "joint": row.joint,
                "named": {"0": row.largest[0], "1": row.largest[1]},
            }
            for row in detected
        ],
    }
    words = tuple(f"detect/{i}/{name}" for i in range(6) for name in ("name", "trials"))
    hold("experiments.data_splits", out, left_out=words, single=True)


def test_activations():
    options = activations.Options(
        activations=("selu", "tanh"), width=24, depth=15, seeds=3, examples=4, data="gaussian"
    )
    out = {
        f"{row.activation} {row.recipe.name}": row._asdict()
        | {
            "w_variance": row.recipe.w_variance,
            "b_variance": row.recipe.b_variance,
            "growth": row.growth.mean,
            "error": row.growth.standard_error,
        }
        for row in activations.compare(options)
    }
    hold("experiments.activations", out, single=True)


def test_course_examples():
    claims = course_examples.examples(jax.random.key(0))
    old = recorded()["experiments.course_examples"]
    for i, claim in enumerate(claims[:18]):
        assert claim.text == old[f"{i}/claim"]
        np.testing.assert_allclose(claim.expected, old[f"{i}/text_value"], rtol=2e-5)
        # The tenth is a relative error of rounding.
        close = {"rtol": 1e-5, "atol": 1e-11 if i == 10 else 0.0}
        np.testing.assert_allclose(claim.estimate.mean, old[f"{i}/measured"], **close)
        if f"{i}/error_bar" in old:
            error = claim.estimate.standard_error
            np.testing.assert_allclose(error, old[f"{i}/error_bar"], rtol=1e-4)
