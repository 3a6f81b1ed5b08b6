"""Critical points: on the critical line, and where there are none."""

import numpy as np
import pytest

from jaxgrad import theory


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "erf", "hard_tanh", "elu", "selu", "gelu", "sigmoid"])
def test_critical_points_lie_on_the_critical_line(name):
    line = theory.critical_line(name, np.geomspace(1e-3, 1e3, 13))
    exists = np.isfinite(line.w_variance)
    assert exists.any()
    for w, b, q in zip(*(part[exists] for part in line[:3]), strict=True):
        np.testing.assert_allclose(theory.chi_perp(name, q, w), 1.0, rtol=1e-12)
        np.testing.assert_allclose(theory.q_map(name, q, w, b), q, rtol=1e-12)
    stable = exists & (line.chi_par < 0.999)
    assert stable.sum() >= 3
    for w, b, q in zip(*(part[stable][:3] for part in line[:3]), strict=True):
        point = theory.critical(name, b)
        np.testing.assert_allclose([point.w_variance, point.q], [w, q], rtol=1e-7)


@pytest.mark.slow
def test_where_there_is_no_critical_point():
    assert np.isnan(theory.critical("relu", 0.1).w_variance)
    assert np.isnan(theory.critical("gelu", 0.1).w_variance)
    assert np.isnan(theory.critical("softplus").w_variance)
    # A critical sigmoid needs weights so large that its own output is the bias.
    sigmoid = theory.critical("sigmoid", 0.0)
    assert sigmoid.w_variance > 100
    assert np.isnan(theory.critical_line("sigmoid", 10.0).w_variance)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: theory.critical("tanh", -1.0), "b_variance"),
        (lambda: theory.critical_line("tanh", 0.0), "q must"),
    ],
)
def test_wrong_numbers_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
