"""The experiment that judges diagnoses: a tiny run, and what is said of findings that are known."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments._kit import options as kit_options
from experiments.diagnosis import __main__ as experiment
from experiments.diagnosis.planted_faults import (
    CASES,
    EVERY,
    EXAMPLES,
    Group,
    Plant,
    arrays,
    optimizer,
)
from jaxgrad.training.diagnosis import Diagnosis, Fault, Finding
from tests.experiments.legible import legible

pytestmark = pytest.mark.slow

SMALL = experiment.Options(seeds=2, repeats=3)
GROUP = Group(
    "relu", 3, "sgd", "breast_cancer", rate=0.05, w_variance=2.0, width=8, steps=2 * EVERY
)
PLANTS = (Plant(None, 1), Plant("exploding", 2, w_variance=1e4), Plant("dead units", 3, bias=-20))


@pytest.fixture(scope="module")
def cases():
    progress = []
    runs = experiment.measure(SMALL, {GROUP: PLANTS}, lambda *done: progress.append(done))
    assert progress == [(1, 1)]
    return runs


def diagnosed(plant, *findings) -> Any:
    """A run without records, with these findings: pairs of fault and layer."""
    results = tuple(Finding(fault, layer, 7, "do it.") for fault, layer in findings)
    names = ("first/kernel", "hidden/kernel[0]", "hidden/kernel[1]", "readout/kernel")
    fit: Any = SimpleNamespace()
    return experiment.Run(GROUP, plant, fit, names, Diagnosis(results, not results, "words"))


def test_every_repetition_of_a_case_is_a_run_of_its_own(cases):
    assert [[run.plant for run in case] for case in cases] == [[plant] * 2 for plant in PLANTS]
    for first, second in cases:
        assert not np.array_equal(first.fit.params["readout"]["bias"], [0, 0])
        assert not np.array_equal(first.fit.loss, second.fit.loss)
    for run in (*cases[1], *cases[2]):
        assert run.right, run.diagnosis.words
    again = experiment.measure(dataclasses.replace(SMALL, seeds=1, first_seed=1), {GROUP: PLANTS})
    np.testing.assert_allclose(again[0][0].fit.loss, cases[0][1].fit.loss, rtol=1e-6)


def test_plants_change_what_they_say():
    usual = arrays(GROUP, Plant(None))
    assert usual["train"].x.std(axis=0) == pytest.approx(1, abs=1e-3)
    assert arrays(GROUP, Plant("x", raw=True))["train"].x.std() > 10
    few = arrays(GROUP, Plant("x", examples=20))["train"].x
    assert (len(few), len(np.unique(few, axis=0))) == (EXAMPLES["breast_cancer"], 20)
    noisy = arrays(GROUP, Plant("x", noise=0.5))
    changed = np.mean(noisy["train"].labels != usual["train"].labels)
    # Half are redrawn, of which half get the label they had.
    assert changed == pytest.approx(0.25, abs=3 * np.sqrt(0.25 * 0.75 / EXAMPLES["breast_cancer"]))
    np.testing.assert_array_equal(noisy["dev"].labels, usual["dev"].labels)
    moving = arrays(GROUP, Plant("x", frozen=1, rate=30, since=7))
    np.testing.assert_array_equal(moving["moving"], [30, 0, 30, 30])
    assert moving["since"] == 7


def test_factors_of_updates_begin_at_their_step():
    params = {"first": jnp.ones(2), "hidden": jnp.ones((2, 3)), "readout": jnp.ones(2)}
    step = optimizer("sgd", 1.0, jnp.asarray([2.0, 0.0, 1.0, 3.0]), 1)
    slots = step.init(params)
    for factors in ((1, 1, 1, 1), (2, 0, 1, 3)):
        updates: Any
        updates, slots = step.update(params, slots)
        parts = [updates["first"], *updates["hidden"], updates["readout"]]
        for part, factor in zip(parts, factors, strict=True):
            np.testing.assert_array_equal(part, -factor)


def test_report_counts_what_was_found():
    plants = (Plant(None), Plant("dead units", bias=-8), Plant("frozen layer", frozen=1))
    dead, held = (Fault.DEAD, "first/kernel"), (Fault.FROZEN, "hidden/kernel[0]")
    runs = [
        [diagnosed(plants[0]), diagnosed(plants[0], dead)],
        [diagnosed(plants[1], dead, held), diagnosed(plants[1], dead)],
        [diagnosed(plants[2], held), diagnosed(plants[2], (Fault.FROZEN, "readout/kernel"))],
    ]
    assert [run.right for case in runs for run in case] == [1, 0, 1, 1, 1, 0]
    seconds = {"sgd": np.array([[1, 1.1, 1.5], [2, 2.4, 3], [1, 1.3, 1.5]])}
    text = str(experiment.report(runs, seconds))
    assert "3 of 4 planted faults are named, 1 of 2 healthy runs are called healthy." in text
    lines = {line.split("  ")[-1].strip(): line for line in text.splitlines() if "%" in line}
    assert "dead units" in lines["100%"]
    # The table breaks long cells, so that their counts are read before it.
    faults = [run.fault for run in runs[0]]
    assert experiment.counted(faults) == "healthy (1 of 2), dead units (1 of 2)"
    layers = [run.finding.layer for run in runs[2]]
    assert experiment.counted(layers, 1) == "hidden/kernel[0] (1 of 2)"
    words = " ".join(text.split())
    assert "healthy (1" in words
    assert "hidden/kernel[0]" in words
    assert max(map(len, text.splitlines())) <= 100
    assert "- frozen layer (layer 2 frozen): words" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("sgd ")]
    assert " ".join(rows[0][:3]) == "sgd nothing 5000"
    assert " ".join(rows[1]) == "sgd norms of every step 6500 1.20 (1.15 to 1.25)"
    single = str(experiment.report([case[1:] for case in runs], seconds))
    assert "1 of 2 planted faults are named, 0 of 1 healthy" in single
    assert single.count(" NO\n") == 2


def test_departures_are_named():
    assert experiment.difference(Plant(None, 5)) == "nothing"
    assert experiment.difference(Plant("vanishing")) == "the setting"
    words = [experiment.difference(plant) for plants in CASES.values() for plant in plants]
    assert {"raw inputs", "rate x 300", "layer 3 frozen", "30 examples", "biases -8"} <= set(words)
    assert "rate x 300 from step 70" in words
    assert all(len(text) < 30 for text in words)
    assert experiment.setting(GROUP) == "relu, 3 layers, sgd, breast_cancer"
    assert experiment.setting(GROUP._replace(depth=0)) == "softmax from zeros, sgd, breast_cancer"


def test_cost_is_timed_for_every_way_to_watch():
    group = GROUP._replace(steps=EVERY)
    seconds = experiment.cost(SMALL, group, ("adam",))
    assert set(seconds) == {"adam"}
    for taken in seconds.values():
        assert taken.shape == (3, len(experiment.RECORDS))
        assert np.all(taken > 0)


def test_figure_shows_losses_and_the_updates_of_each_layer():
    plants = (Plant(None), Plant("frozen layer", frozen=1), Plant("dead units"), Plant("vanishing"))
    cases = [[diagnosed(plant)] for plant in plants]
    for index, (run,) in enumerate(cases):
        run.fit.loss = np.full(GROUP.steps, 1.0 + index)
        ratios = np.log(10.0) * np.arange(-4, 0) * np.ones((GROUP.steps, 1))
        # A few steps have no part in a median.
        ratios[:3] = -np.inf
        run.fit.trace = SimpleNamespace(log_ratio=ratios)
    loss, ratio = legible(lambda: experiment.draw(cases)).axes
    for ax in (loss, ratio):
        assert [line.get_label() for line in ax.lines] == ["healthy", "frozen layer", "vanishing"]
        assert ax.get_yscale() == "log"
    assert [line.get_ydata()[0] for line in loss.lines] == [1, 2, 4]
    np.testing.assert_allclose(ratio.lines[0].get_ydata(), [1e-4, 1e-3, 0.01, 0.1])
    np.testing.assert_array_equal(ratio.lines[0].get_xdata(), [1, 2, 3, 4])
    assert (loss.get_xlabel(), ratio.get_xlabel()) == (
        "training step",
        "layer, from input to output",
    )


def test_runs_of_the_figure_are_of_the_first_group():
    runs = [
        [experiment.Run(group, plant, None, (), Diagnosis((), True, ""))]
        for group, plants in CASES.items()
        for plant in plants
    ]
    rows = experiment.shown(runs)
    assert [run.plant.fault for run in rows.values()] == list(experiment.SHOWN)
    assert [run.plant.seed for run in rows.values()] == [0, 8, 4, 5]
    assert {run.group for run in rows.values()} == {next(iter(CASES))}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 0}, "seeds must be at least 1 and at most 1000, got 0"),
        ({"first_seed": -1}, "first_seed must be at least 0"),
        ({"repeats": 2}, "repeats must be at least 3 and at most 1000, got 2"),
        ({"output": "/proc/nowhere/x.png"}, "output must be in a folder that can be written"),
    ],
)
def test_bad_input_is_named(change, message):
    if "output" in change:
        change["output"] = experiment.Path(change["output"])
    with pytest.raises(ValueError, match=message):
        kit_options.check(dataclasses.replace(SMALL, **change))
