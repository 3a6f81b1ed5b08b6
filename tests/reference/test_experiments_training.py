"""Experiments that train networks, in a small configuration: the numbers of 0.1.

Others are compared where the same run is tested: in `tests/experiments`.
Training multiplies rounding, so errors of its last steps are compared with a wider tolerance.
"""

import dataclasses

import numpy as np
import pytest

from experiments.diagnosis import __main__ as diagnosis
from experiments.diagnosis import planted_faults
from experiments.norm_layers import measurement as norm_layers
from experiments.regularization import measurement as regularization
from experiments.trainability import measurement as trainability
from tests.reference.record import hold, table

pytestmark = pytest.mark.slow


def test_regularization():
    options = regularization.Options(
        l2=(8.0,),
        l1=(3.0,),
        dropout_rates=(0.5,),
        train=40,
        dev=50,
        width=8,
        steps=40,
        every=20,
        batch_size=20,
        learning_rate=0.1,
        copies=3,
        seeds=2,
    )
    out = table(regularization.measure(options).load())
    renamed = ("kind", "descent_keep_prob")
    hold("experiments.regularization", out, tolerance=100, left_out=renamed, single=True)


def test_norm_layers(monkeypatch):
    # So few steps of so small networks take less time to run than to optimize.
    monkeypatch.setattr(norm_layers, "COMPILER", {})
    options = norm_layers.Options(
        w_variances=(0.5, 2.0),
        learning_rates=(0.002, 0.05),
        depth=3,
        width=16,
        steps=20,
        every=10,
        batch_size=32,
        seeds=2,
        start_depth=6,
        start_width=32,
        start_examples=64,
        start_seeds=3,
    )
    results = norm_layers.measure(options)
    trained = {(kind, 3): one for kind, one in results.trained.items()}
    best = {name: np.asarray(options.learning_rates)[t.rate] for name, t in trained.items()}
    out = {"start": results.start, "trained": trained, "rates": best}
    losses = [f"trained/{name}/{part}_loss" for name in trained for part in ("train", "test")]
    hold("experiments.norm_layers", out, tolerance=100, single=True, left_out=tuple(losses))


def test_trainability():
    options = trainability.Options(
        activation="relu",
        depths=(1, 3),
        w_variance_min=1.0,
        w_variance_max=2.0,
        w_variances=3,
        width=16,
        steps=20,
        rates=(0.1, 1e38),
        batch=32,
    )
    longer = dataclasses.replace(options, rates=(0.1,), longer=3)
    out = {
        "measure": table(trainability.measure(options).load()),
        "scales": trainability.scales("plain", options),
        "again": table(trainability.measure_again("plain", longer, np.array([[2, 0], [0, 1]]))),
    }
    hold("experiments.trainability", out, tolerance=100, single=True)


def test_diagnosis():
    steps = 2 * planted_faults.EVERY
    group = planted_faults.Group(
        "relu", 3, "sgd", "breast_cancer", rate=0.05, w_variance=2.0, width=8, steps=steps
    )
    plants = (
        planted_faults.Plant(None, 1),
        planted_faults.Plant("exploding", 2, w_variance=1e4),
        planted_faults.Plant("dead units", 3, bias=-20),
    )
    out = {}
    for case in diagnosis.measure(diagnosis.Options(seeds=1, repeats=3), {group: plants}):
        for run in case:
            findings = run.diagnosis.findings
            out[str(run.plant.fault)] = {
                "loss": run.fit.loss,
                "error": run.fit.error,
                "names": np.asarray(run.names),
                "log_gradient": run.fit.trace.log_gradient[::8],
                "findings": [
                    {"fault": str(f.fault), "layer": str(f.layer), "step": f.step} for f in findings
                ],
                "healthy": run.diagnosis.healthy,
            }
    hold("experiments.diagnosis", out, tolerance=100, single=True)
