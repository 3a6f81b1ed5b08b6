"""The diagnosis names planted faults and calls healthy runs healthy.

The thresholds were chosen from other runs: ELU, hard tanh, SELU, ReLU of depth 4 and sigmoid of
depth 5, under Nesterov momentum, RMSprop and SGD, other widths and seeds.
"""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.diagnosis.planted_faults import CASES, runs
from jaxgrad import training
from jaxgrad.training import monitoring
from jaxgrad.training.diagnosis import Fault, diagnose
from jaxgrad.training.monitoring import Norms, Units


def test_every_fault_is_planted_in_two_settings():
    planted = [(plant.fault, group) for group, plants in CASES.items() for plant in plants]
    # A run is called stuck if the records that show the fault are missing.
    for fault in set(Fault) - {Fault.STUCK}:
        assert len({group for name, group in planted if name == fault}) >= 2, fault
    assert sum(name is None for name, _ in planted) >= 10
    assert sum(name is not None for name, _ in planted) >= 20
    assert {plant.fault for plants in CASES.values() for plant in plants if plant.since} == {
        "frozen layer",
        "rate too high",
    }


@pytest.mark.slow
@pytest.mark.parametrize("group", CASES, ids=lambda group: f"{group.activation}-{group.depth}")
def test_the_first_finding_is_the_planted_fault(group):
    plants, missed = CASES[group], []
    for plant, (records, named) in zip(plants, runs(group, plants), strict=True):
        result = diagnose(*records, **named)
        first = None if result.healthy else result.findings[0]
        if (first and first.fault) != plant.fault:
            missed.append((plant, result.words))
        elif first:
            if plant.frozen is not None:
                assert first.layer == named["names"][plant.frozen]
            if plant.fault == "frozen layer":
                assert first.step == plant.since
            elif plant.fault != "overfitting":
                # A step too far shows in the next loss.
                assert first.step in (plant.since, plant.since + 1)
        bare = diagnose(records[0])
        if plant.fault == "rate too low" and plant.rate < 1e-3:
            assert names(bare) == [("stuck", None, 0)]
        elif plant.fault is None:
            assert bare.healthy
        assert result.healthy == (result.findings == ()) == result.words.startswith("No fault")
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


def names(result):
    return [(str(finding.fault), finding.layer, finding.step) for finding in result.findings]


def test_a_made_up_healthy_run_is_healthy():
    assert diagnose(*a_run()).words == "No fault found; the loss fell by 94% of its first value."


FALLING = 2.3 * np.exp(-np.linspace(0, 3, STEPS))


@pytest.mark.parametrize(
    ("loss", "step"),
    [
        (np.geomspace(4.3, 8.9e21, STEPS), 1),
        (np.geomspace(2.3, 1e30, STEPS), 1),
        (np.where(np.arange(STEPS) < 25, FALLING, 50.0), 25),
        (np.where(np.arange(STEPS) == 30, 50.0, FALLING), 30),
        (np.where(np.arange(STEPS) == STEPS - 1, 50.0, FALLING), STEPS - 1),
        (np.where(np.arange(STEPS) < 1, 2.3, 50.0), 1),
        (np.where(abs(np.arange(STEPS) - 14.5) < 8, 50.0, FALLING), 7),
        (np.where(np.arange(STEPS) < 1, -2.3, 50.0), 1),
    ],
)
def test_a_loss_that_rises_far_is_exploding_though_finite(loss, step):
    fit, norms = a_run(loss=loss)
    for records in ((fit,), (fit, norms)):
        assert names(diagnose(*records)) == [("exploding", None, step)]
    # Where updates are far too large, they are why.
    assert names(diagnose(*a_run(loss=loss, ratio=-1.0))) == [("rate too high", None, 0)]


def test_losses_of_single_examples_are_not_exploding():
    # Squared errors of one example each, of a model that learns half of what there is.
    for seed in range(20):
        rng = np.random.default_rng(seed)
        loss = rng.chisquare(1, 400) * np.where(np.arange(400) < 100, 2.0, 1.0)
        result = diagnose(SimpleNamespace(loss=loss, error=None, best=None))
        assert {name for name, *_ in names(result)} <= {"stuck"}


def test_a_loss_that_does_not_fall_is_never_healthy():
    wave = 0.05 * np.sin(np.arange(STEPS))
    cases = (
        (np.full(STEPS, 2.3), "fell by 0.0%"),
        (2.3 + wave, ""),
        (2.3 + wave + np.linspace(0, 1.4, STEPS), "rose by 5"),
        (np.full(STEPS, 0.0), "fell by 0.0%"),
        (-2.3 + np.linspace(0, 1, STEPS), "rose by 4"),
    )
    for loss, words in cases:
        fit, norms = a_run(loss=loss)
        result = diagnose(fit)
        assert names(result) == [("stuck", None, 0)]
        assert words in result.words
        assert "pass norms and units" in result.words
        if loss.any():
            result = diagnose(fit, norms, units(np.zeros((STEPS, 2))))
            assert names(result) == [("stuck", None, 0)]
            assert "whether the inputs predict" in result.words
    rng = np.random.default_rng(0)
    for steps in (20, 160):
        flat = 2.3 + 0.1 * rng.normal(size=(200, steps))
        healthy = [diagnose(SimpleNamespace(loss=a, error=None, best=None)).healthy for a in flat]
        assert np.mean(healthy) < 0.05
    # A small fall that no batch explains is one.
    assert diagnose(a_run(loss=2.3 + 0.1 * wave - np.linspace(0, 0.3, STEPS))[0]).healthy


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(1e-5, "rate too low"), (0.02, None), (0.1, None), (0.3, None), (1.5, "rate too high")],
)
def test_weights_that_start_at_zero_give_updates_no_scale(from_zero, rate, expected):
    fit = from_zero[rate]
    result = diagnose(fit, fit.trace)
    assert (None if result.healthy else result.findings[0].fault) == expected, result.words


@pytest.fixture(scope="module")
def from_zero():
    """Linear regressions by rate, on data half of whose variance no model explains."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 4)).astype(np.float32)
    data = {"x": x, "y": x.sum(axis=1) + 2 * rng.normal(size=256).astype(np.float32)}

    def loss(w, state, batch, key):
        return jnp.mean((batch["x"] @ w["kernel"] - batch["y"]) ** 2), state

    def run(rate):
        return training.fit(
            loss,
            {"kernel": jnp.zeros(4)},
            optax.sgd(rate),
            data,
            key=jax.random.key(0),
            steps=150,
            batch_size=64,
            monitor=monitoring.layer_norms,
        )

    rates = (1e-5, 0.02, 0.1, 0.3, 1.5)
    fits = jax.tree.map(np.asarray, jax.jit(jax.vmap(run))(jnp.asarray(rates)))
    return {rate: jax.tree.map(lambda a, i=i: a[i], fits) for i, rate in enumerate(rates)}


def test_a_readout_from_zero_hides_no_low_rate():
    fit, norms = a_run(ratio=-12, loss=np.full(STEPS, 2.3))
    norms.log_weight[:, -1] = np.log(np.arange(STEPS) + 1e-9)
    norms.log_weight[0, -1] = -np.inf
    norms.log_update[:, -1] = 0
    assert names(diagnose(fit, norms)) == [("rate too low", None, 0)]


def test_what_begins_in_the_middle_has_its_step():
    late = (np.arange(STEPS) >= 20)[:, None]
    stops = a_run(ratio=np.where(late & (np.arange(LAYERS) == 2), -np.inf, -6.0))
    assert names(diagnose(*stops)) == [("frozen layer", "layer 3", 20)]
    stuck = np.where(late[:, 0], 1.4, np.linspace(2.3, 1.4, STEPS))
    for loss in (stuck, np.full(STEPS, 2.3)):
        gone = a_run(
            gradient=np.where(late, -30.0, 0.0), ratio=np.where(late, -36.0, -6.0), loss=loss
        )
        assert [(name, step) for name, _, step in names(diagnose(*gone))] == [("vanishing", 20)]
    # At a minimum the gradient shrinks too, but step by step; a pause is no end.
    down = -0.8 * np.arange(STEPS)[:, None]
    assert diagnose(*a_run(gradient=down, ratio=down - 6, loss=stuck)).healthy
    late[-6:] = False
    assert diagnose(*a_run(ratio=np.where(late & (np.arange(LAYERS) == 2), -np.inf, -6.0))).healthy


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
    result = names(diagnose(fit, norms, units(dead)))
    assert result == [("rate too high", None, 0), ("dead units", "layer 1", 15)]


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
        result = diagnose(*a_run(ratio=ratio), names=["a", "b", "c", "d"])
        assert names(result) == [("frozen layer", "abcd"[layer], 0)]


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
    result = diagnose(fit, norms, units(dead))
    assert names(result) == [("dead units", "layer 2", 30)]
    # It may be a leaky one already, whose slope counts as flat.
    assert "leaky" not in result.words
    # A network that has learnt may end saturated; it is a fault at the start or without learning.
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


def test_steps_are_counted_by_the_evaluations_of_the_run():
    fit, norms = a_run()
    fit.loss[20:] = np.nan
    fit.error = np.asarray([0.9, 0.1, 0.3, 9.9, 9.9])
    fit.best = SimpleNamespace(stopped=np.asarray(True), evaluations=np.asarray(3))
    for evaluations in (3, 9, 21):
        dev = np.linspace(0.9, 0.1, evaluations)
        assert diagnose(fit, norms, dev_error=dev, train_error=dev).healthy
    rows = np.zeros((5, 2))
    assert diagnose(fit, norms, units(rows), dev_error=np.ones(9), train_error=np.ones(9)).healthy


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
            "train_error must come with as many evaluations",
            (fit,),
            {"train_error": np.ones(3), "dev_error": np.ones(5)},
        ),
        (TypeError, "dev_error must be numbers", (fit,), {"dev_error": {"a": 1}}),
        (ValueError, "names must be one for each of the 0 layers", (fit,), {"names": ["a"]}),
        (TypeError, "norms must be a Norms", (fit, {"kernel": np.ones(3)}), {}),
        (TypeError, "norms must be a Norms", (fit, units(np.zeros((STEPS, 2)))), {}),
        (TypeError, "units must be a Units", (fit, norms, np.ones((STEPS, 2))), {}),
        (TypeError, "units must be a Units", (fit, norms, norms), {}),
        (ValueError, "inputs must be finite", (fit,), {"inputs": np.full((2, 2), np.nan)}),
        (ValueError, "inputs must vary", (fit,), {"inputs": np.ones((3, 2))}),
        (ValueError, "inputs must be \\[examples", (fit,), {"inputs": np.ones(3)}),
    )
    for error, words, records, named in cases:
        with pytest.raises(error, match=words):
            diagnose(*records, **named)

    def traced(loss):
        diagnose(SimpleNamespace(loss=loss, error=None, best=None))
        return loss

    with pytest.raises(TypeError, match="fit must be known"):
        jax.jit(traced)(jnp.ones(4))
