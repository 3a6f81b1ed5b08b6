"""High bias and high variance, distinguished by the errors on two sets."""

import jax
import numpy as np
import pytest

from jaxgrad.training.bias_variance import diagnose


@pytest.mark.parametrize(
    ("train", "dev", "attainable", "label"),
    [
        (0.01, 0.11, 0.0, "high variance"),
        (0.15, 0.16, 0.0, "high bias"),
        (0.15, 0.30, 0.0, "high bias and high variance"),
        (0.005, 0.01, 0.0, "neither"),
        (0.15, 0.16, 0.15, "neither"),
        (0.15, 0.30, 0.15, "high variance"),
        (0.02, 0.04, 0.0, "neither"),
        (0.0201, 0.0201, 0.0, "high bias"),
    ],
)
@pytest.mark.parametrize("dtype", [float, np.float32])
def test_labels_are_those_of_the_course(train, dev, attainable, label, dtype):
    assert diagnose(dtype(train), dtype(dev), dtype(attainable)).label == label


def test_gaps_and_advice():
    result = diagnose(0.15, 0.30, 0.05)
    assert result.avoidable_bias == pytest.approx(0.10)
    assert result.variance == pytest.approx(0.15)
    assert result.bias_high
    assert result.variance_high
    for words in ("larger network", "longer training", "more data", "regularization"):
        assert words in result.advice
    assert "more data" not in diagnose(0.15, 0.16).advice
    assert "larger network" not in diagnose(0.01, 0.11).advice
    assert "show no problem" in diagnose(0.0, 0.0).advice


def test_a_gap_within_two_standard_errors_is_not_high():
    # 3 of 30 wrong: the standard error of the difference is 5.5 %.
    result = diagnose(0.01, 0.10, train_examples=1000, dev_examples=30)
    expected = 2 * np.sqrt(0.01 * 0.99 / 1000 + 0.1 * 0.9 / 30)
    assert result.variance_threshold == pytest.approx(expected)
    assert not result.variance_high
    assert diagnose(0.01, 0.10, train_examples=1000, dev_examples=3000).variance_high
    result = diagnose(0.10, 0.10, 0.05, train_examples=40)
    assert result.bias_threshold == pytest.approx(2 * np.sqrt(0.1 * 0.9 / 40))
    assert not result.bias_high
    assert diagnose(0.10, 0.10, 0.05, train_examples=4000).bias_high
    # The tolerance stays where the examples are many.
    assert diagnose(0.01, 0.02, dev_examples=10**6).label == "neither"
    assert diagnose(0.01, 0.02, dev_examples=10**6, tolerance=0.0).label == (
        "high bias and high variance"
    )


def test_errors_the_wrong_way_round_are_said_so():
    result = diagnose(0.10, 0.08)
    assert result.label == "high bias"
    assert result.variance == pytest.approx(-0.02)
    assert "dev error lies below the training error" in result.advice
    assert "training error lies below the attainable" in diagnose(0.01, 0.02, 0.05).advice
    assert "lies below" not in diagnose(0.01, 0.11).advice


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"train_error": 15.0}, ValueError, "train_error must be at most 1, .* divide percentages"),
        ({"dev_error": -0.1}, ValueError, "dev_error must be at least 0"),
        ({"dev_error": np.nan}, ValueError, "dev_error must be finite"),
        ({"attainable_error": 2.0}, ValueError, "attainable_error must be at most 1"),
        ({"train_error": "low"}, TypeError, "train_error must be a number"),
        ({"train_error": np.ones(2)}, ValueError, "train_error must be one number"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be at least 0"),
        ({"dev_examples": 0}, ValueError, "dev_examples must be at least 1"),
        ({"train_examples": 1.5}, TypeError, "train_examples must be a whole number"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        diagnose(**{"train_error": 0.1, "dev_error": 0.1} | arguments)


def test_traced_errors_are_refused():
    with pytest.raises(TypeError, match="dev_error must be known"):
        jax.jit(lambda error: diagnose(0.1, error).variance)(0.1)
