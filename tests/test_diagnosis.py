"""The diagnosis names planted faults and calls healthy runs healthy.

The thresholds were chosen from other runs: ELU, hard tanh, SELU, ReLU of depth 4 and sigmoid of
depth 5, under Nesterov momentum, RMSprop and SGD, other widths and seeds.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.planted_faults import CASES, runs
from jaxgrad.training.diagnosis import diagnose
from jaxgrad.training.faults import Fault
from jaxgrad.training.monitoring import Norms, Units


def test_every_fault_is_planted_in_two_settings():
    planted = [(plant.fault, group) for group, plants in CASES.items() for plant in plants]
    for fault in Fault:
        assert len({group for name, group in planted if name == fault}) >= 2, fault
    assert sum(name is None for name, _ in planted) == 10
    assert sum(name is not None for name, _ in planted) >= 20


@pytest.mark.parametrize("group", CASES, ids=lambda group: f"{group.activation}-{group.depth}")
def test_the_first_finding_is_the_planted_fault(group):
    plants, missed = CASES[group], []
    for plant, (given, named) in zip(plants, runs(group, plants), strict=True):
        found = diagnose(*given, **named)
        first = None if found.healthy else found.findings[0]
        if (first and first.fault) != plant.fault:
            missed.append((plant, found.words))
        elif first and plant.frozen is not None:
            assert first.layer == named["names"][plant.frozen]
        assert found.healthy == (found.findings == ()) == found.words.startswith("No fault")
    assert not missed


STEPS, LAYERS = 40, 4


def a_run(seed=0, gradient: Any = 0.0, ratio: Any = -6.0, **changes) -> tuple[Any, Any]:
    """Records of a healthy run, made up: logs of norms by layer, a loss that falls to a tenth."""
    rng = np.random.default_rng(seed)
    loss = 2.3 * np.exp(-np.linspace(0, 3, STEPS)) + 0.01 * rng.normal(size=STEPS)
    noise = 0.1 * rng.normal(size=(2, STEPS, LAYERS))
    gradient, ratio = (np.broadcast_to(a, (STEPS, LAYERS)) for a in (gradient, ratio))
    norms: Any = (gradient + noise[0], np.ones((STEPS, LAYERS)), 1 + ratio + noise[1])
    fit: dict[str, Any] = {"loss": loss, "error": None, "best": None} | changes
    return SimpleNamespace(**fit), Norms(*norms)


def names(found):
    return [(str(finding.fault), finding.layer, finding.step) for finding in found.findings]


def test_a_made_up_healthy_run_is_healthy():
    assert diagnose(*a_run()).words == "No fault found; the loss fell by 94% of its first value."


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scales_of_the_loss_do_not_matter(scale):
    flat = np.full(STEPS, 2.3 * scale) + 0.01 * scale * np.sin(np.arange(STEPS))
    for ratio, expected in ((-12.0, "rate too low"), (-1.0, "rate too high")):
        run = a_run(gradient=np.log(scale), ratio=ratio, loss=flat)
        assert [name for name, *_ in names(diagnose(*run))] == [expected]


def test_a_loss_that_never_settles_tells_of_a_high_rate_and_comes_after_earlier_causes():
    fit, norms = a_run(ratio=-1.0)
    assert diagnose(fit, norms).healthy
    fit.loss[20:] = np.tile([0.1, 2.0], 10)
    assert names(diagnose(fit, norms)) == [("rate too high", None, 0)]
    dead = np.zeros((STEPS, 2))
    dead[15:] = 0.9
    found = names(diagnose(fit, norms, units(dead)))
    assert found == [("rate too high", None, 0), ("dead units", "layer 1", 15)]


def test_vanishing_is_told_from_a_low_rate_by_the_gradient():
    flat, steep = np.full(STEPS, 2.3), np.linspace(-12, 0, LAYERS)
    low = diagnose(*a_run(ratio=-12, loss=flat))
    assert names(low) == [("rate too low", None, 0)]
    steep_down = diagnose(*a_run(gradient=steep, ratio=steep - 6, loss=flat))
    assert names(steep_down) == [("vanishing", "layer 1", 0)]
    alike = diagnose(*a_run(gradient=-12, ratio=-18, loss=flat))
    assert [name for name, *_ in names(alike)] == ["vanishing"]
    # Where the loss falls all the same, there is nothing to mend.
    assert diagnose(*a_run(gradient=steep)).healthy


def test_exploding_is_told_from_a_high_rate_by_the_start():
    broken = 2.3 + np.arange(STEPS, dtype=float)
    broken[7:] = np.nan
    growing = diagnose(*a_run(gradient=np.linspace(9, 0, LAYERS), ratio=0.0, loss=broken))
    assert names(growing)[0] == ("exploding", "layer 1", 0)
    level = diagnose(*a_run(ratio=0.0, loss=broken))
    assert names(level) == [("rate too high", None, 0)]
    neither = diagnose(*a_run(loss=broken))
    assert names(neither) == [("exploding", None, 7)]
    assert names(diagnose(a_run(loss=np.full(STEPS, np.nan))[0])) == [("exploding", None, 0)]


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_frozen_layer_is_named(layer):
    ratio = np.full(LAYERS, -6.0)
    for ratio[layer] in (-np.inf, -25.0):
        found = diagnose(*a_run(ratio=ratio), names=["a", "b", "c", "d"])
        assert names(found) == [("frozen layer", "abcd"[layer], 0)]


def test_a_layer_that_is_cut_off_is_frozen_and_zero_weights_are_not():
    cut = np.asarray([0.0, -np.inf, 0.0, 0.0])
    assert names(diagnose(*a_run(gradient=cut, ratio=cut - 6))) == [("frozen layer", "layer 2", 0)]
    fit, norms = a_run()
    norms.log_weight[0, -1] = -np.inf
    assert diagnose(fit, norms).healthy


def units(dead, above=0.0) -> Any:
    zeros = np.zeros_like(dead)
    return Units(zeros, dead, dead, zeros + above, zeros[..., None], zeros)


def test_units_that_die_are_found_where_and_when_it_began():
    fit, norms = a_run(error=np.linspace(0.9, 0.1, 5))
    dead = np.zeros((5, 3))
    dead[3:, 1], dead[1, 2] = 0.8, 0.9
    assert names(diagnose(fit, norms, units(dead))) == [("dead units", "layer 2", 30)]
    # What has learnt ends saturated, which is no fault; what began so or has not learnt is.
    assert diagnose(fit, norms, units(dead, 0.1)).healthy
    dead[:, 0] = 0.7
    assert names(diagnose(fit, None, units(dead, 0.1)))[0] == ("saturated units", "layer 1", 0)


def test_what_came_after_early_stopping_does_not_count():
    fit, norms = a_run()
    fit.loss[20:] = np.nan
    for part in norms:
        part[20:] = 0
    fit.error = np.asarray([0.9, 0.1, 0.3, 9.9, 9.9])
    fit.best = SimpleNamespace(stopped=np.asarray(True), evaluations=np.asarray(3))
    assert not diagnose(fit, norms, train_error=np.asarray([0.9, 0.1, 0.04, 0, 0])).healthy
    assert diagnose(fit, norms, train_error=np.asarray([0.9, 0.15, 0.25, 0, 0])).healthy
    fit.best = None
    assert not diagnose(fit, norms).healthy


def test_errors_tell_overfitting_from_label_noise():
    fit, norms = a_run()
    dev = np.asarray([0.9, 0.3, 0.2, 0.3, 0.4])
    over = diagnose(fit, norms, train_error=[0.9, 0.28, 0.15, 0.05, 0.0], dev_error=dev)
    assert names(over) == [("overfitting", None, 20)]
    noisy = diagnose(fit, norms, train_error=[0.9, 0.45, 0.4, 0.2, 0.1], dev_error=dev)
    assert [name for name, *_ in names(noisy)] == ["label noise", "overfitting"]
    assert diagnose(fit, train_error=dev - 0.05, dev_error=dev).healthy


def test_inputs_far_from_standard_are_found():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 6))
    fit, norms = a_run()
    assert diagnose(fit, norms, inputs=x).healthy
    for raw in (x + 10, x * np.asarray([1, 1, 1, 1000, 1000, 1000])):
        assert names(diagnose(fit, norms, inputs=raw)) == [("unnormalised inputs", None, 0)]
    x[:, 2] = 7.0
    assert diagnose(fit, norms, inputs=x).healthy


def test_bad_arguments_are_named():
    fit, norms = a_run()
    batch = SimpleNamespace(loss=np.ones((3, 5)), error=None, best=None)
    cases: Any = (
        (ValueError, "fit must be of one run", (batch,), {}),
        (ValueError, "norms must be three arrays", (fit, Norms(*(a[1:] for a in norms))), {}),
        (ValueError, "units must be arrays", (fit, norms, units(np.zeros((7, 2)))), {}),
        (ValueError, "units must have at most", (fit, norms, units(np.zeros((STEPS, 5)))), {}),
        (ValueError, "names must be one for each", (fit, norms), {"names": ["a"]}),
        (ValueError, "dev_error must be", (fit,), {"dev_error": np.ones(8)}),
        (ValueError, "train_error must come with", (fit,), {"train_error": np.ones(5)}),
        (
            ValueError,
            "train_error must be one",
            (fit,),
            {"train_error": np.ones(4), "dev_error": np.ones(5)},
        ),
        (ValueError, "inputs must be finite", (fit,), {"inputs": np.full((2, 2), np.nan)}),
        (ValueError, "inputs must vary", (fit,), {"inputs": np.ones((3, 2))}),
        (ValueError, "inputs must be \\[examples", (fit,), {"inputs": np.ones(3)}),
    )
    for error, words, given, named in cases:
        with pytest.raises(error, match=words):
            diagnose(*given, **named)

    def traced(loss):
        diagnose(SimpleNamespace(loss=loss, error=None, best=None))
        return loss

    with pytest.raises(TypeError, match="fit must be known"):
        jax.jit(traced)(jnp.ones(4))
