"""Measurements of the experiments, in a small configuration: the numbers of 0.1.

Others are compared where the same run is tested: in `tests/experiments`.
"""

import numpy as np
import pytest

from experiments import activations, data_splits, depth_variance, phase_diagram
from tests.reference.record import hold, table

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
