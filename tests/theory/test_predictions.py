"""Predictions of deep networks follow the power laws of criticality."""

import numpy as np
import pytest

from jaxgrad import layers, propagation
from jaxgrad.theory import Moments


def predicted(activation, depth, w_variance, gap=None):
    network = layers.mlp(1, depth, activation, w_variance=w_variance)
    return propagation.predict(network, Moments(log_q=0.0, gap=gap))


@pytest.mark.slow
def test_predictions_approach_criticality_as_power_laws():
    relu = predicted("relu", 2000, 2.0, gap=1.0)
    approach = np.arange(1, 2001) ** 2 * relu.gap
    assert abs(approach[-1] - 9 * np.pi**2 / 2) < 0.02 * 44.413
    assert abs(approach[-1] - 44.413) < 0.6 * abs(approach[999] - 44.413)
    tanh = predicted("tanh", 3000, 1.0)
    np.testing.assert_allclose(2 * 3000 * np.exp(tanh.log_preactivation[-1]), 1.0, atol=2e-3)
    # A power law: the logarithm of the gradient falls like that of the depth.
    fall = tanh.log_ratio[-1] - tanh.log_ratio[299]
    np.testing.assert_allclose(fall, -np.log(10), rtol=0.02)
    deep = predicted("relu", 1000, 4.0)
    np.testing.assert_allclose(np.diff(deep.log_gradient), np.log(2), rtol=1e-9)
    far = predicted("relu", 20_000, 4.0)
    np.testing.assert_allclose(far.log_preactivation[-1] / np.log(2), 20_001, rtol=1e-9)
