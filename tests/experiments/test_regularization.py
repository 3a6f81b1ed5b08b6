"""The comparison of ways to regularise: a tiny run, and what is said of numbers that are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray

from experiments import _kit as kit
from experiments.regularization import __main__ as command
from experiments.regularization import measurement as experiment
from tests.experiments.legible import legible, message

pytestmark = pytest.mark.slow

SMALL = experiment.Options(
    l2=(8.0,),
    l1=(3.0,),
    dropout_rates=(0.5,),
    train=40,
    dev=50,
    width=8,
    steps=120,
    every=20,
    batch_size=20,
    learning_rate=0.1,
    copies=3,
    seeds=2,
)


@pytest.fixture(scope="module")
def dataset():
    return experiment.measure(SMALL)


def known(**changes):
    """Sixteen seeds of the settings of `SMALL`, the same noise in each number."""
    coords = experiment.settings(SMALL)
    wobble = np.array([-0.01, 0.0, 0.0, 0.01] * 4)[:, None] * [[1, 2, 1, 3, 1]]
    numbers = dict.fromkeys(experiment.VARIABLES, [0.2] * 5) | changes
    values = {
        name: (("seed", "setting"), np.asarray(row)[None] + wobble) for name, row in numbers.items()
    }
    values["rises"] = (("seed", "descent_dropout"), np.tile([0.0, 0.4, 0.5], (16, 1)))
    return xarray.Dataset(values, coords | {"descent_dropout": list(experiment.DESCENT_DROPOUT)})


HELPED = known(
    train=[0.0, 0.1, 0.1, 0.1, 0.1],
    dev=[0.3, 0.15, 0.25, 0.1, 0.12],
    test=[0.3, 0.15, 0.25, 0.1, 0.12],
    stopped_dev=[0.14, 0, 0, 0, 0],
    squares=[300.0, 10.0, 50.0, 400.0, 300.0],
)


def test_a_small_run_measures_what_it_names(dataset):
    assert dataset["kind"].values.tolist() == ["none", "l2", "l1", "dropout", "augmentation"]
    for name in experiment.VARIABLES:
        assert dataset[name].shape == (2, 5)
        assert np.isfinite(dataset[name]).all(), name
    shares = [name for name in experiment.VARIABLES if name not in ("squares", "stopped_step")]
    assert all(
        0 <= float(dataset[name].min()) <= float(dataset[name].max()) <= 1 for name in shares
    )
    none, l2, l1, dropout, augmented = (dataset.isel(setting=i) for i in range(5))
    assert (l2["squares"] < none["squares"] / 4).all()
    assert (l2["near"] > none["near"]).all()
    assert (l2["linear"] > none["linear"]).all()
    assert (l1["small"] > none["small"] + 0.2).all()
    assert (dropout["masked"] > dropout["dev"]).all()
    assert (abs(dropout["squares"] / none["squares"] - 1) > 0.01).all()
    np.testing.assert_allclose(none["masked"], none["dev"], atol=1e-6)
    assert (augmented["train"] >= none["train"]).all()
    assert (dataset["stopped_dev"] <= dataset["dev"]).all()
    assert (dataset["stopped_step"] % SMALL.every == 0).all()


def test_cost_rises_only_under_dropout(dataset):
    rises = dataset["rises"].values
    assert (rises[:, 0] == 0).all()
    assert (rises[:, 1:] > 0.2).all()


def test_splits_share_nothing_and_only_training_labels_are_wrong(key):
    # Each image has one value, and another one than all others.
    x = jnp.tile(jnp.arange(100, dtype=jnp.float32)[:, None], 64)
    options = dataclasses.replace(SMALL, mislabelled=0.5)
    draw = jax.jit(lambda *keys: experiment.draw_data(keys, x, jnp.full(100, 11), options))
    sets, versions = draw(*jax.random.split(key))
    parts = [sets[name] for name in experiment.PARTS]
    assert [len(part.labels) for part in parts] == [40, 50, 10]
    assert len(np.unique(np.concatenate([part.x[:, 0] for part in parts]))) == 100
    assert 8 < int(jnp.sum(sets["train"].labels != 11)) < 32
    assert all((part.labels == 11).all() for part in parts[1:])
    inputs = np.asarray(sets["train"].x)
    np.testing.assert_allclose([inputs.mean(), inputs.std()], [0.0, 1.0], atol=1e-5)
    # Version 0 is unchanged, the others are not.
    assert versions.shape == (SMALL.copies + 1, 40, 64)
    np.testing.assert_array_equal(versions[0], inputs)
    assert (np.asarray(versions)[1:] != inputs).any(axis=(1, 2)).all()


def test_weights_are_measured_as_named():
    first = {"kernel": jnp.asarray([[3.0, 0.0], [4.0, 0.0]]), "bias": jnp.ones(2)}
    second = {"kernel": jnp.asarray([[1.0, 0.0], [-1.0, 2.0]]), "bias": jnp.ones(2)}
    dataset = jax.jit(experiment.weights)((first, {}, second))
    assert float(dataset["squares"]) == 31.0
    assert float(dataset["small"]) == 3 / 8
    # One unit weighs both of its inputs alike, the other has one.
    assert float(dataset["spread"]) == (1.0 + 0.5) / 2


RISES = "in full-batch gradient descent the cost rises in more than 1 % of the steps"


def outcomes(dataset):
    return {v.claim.text: v for v in kit.verdicts(command.report(dataset, SMALL).claims)}


def test_claims_follow_the_numbers():
    results = outcomes(HELPED)
    for text, change in (("L2, lambda 8", -0.15), ("dropout, rate 0.5", -0.2)):
        verdict = results[f"{text}: lower test error than without"]
        assert verdict.outcome == "HOLDS"
        assert verdict.claim.estimate.mean == pytest.approx(change)
    assert results["early stopping: lower test error than without"].outcome == "HOLDS"
    assert results["strongest L2: smaller weights, sum of w²"].outcome == "HOLDS"
    assert results["best dropout: smaller weights, sum of w²"].outcome == "DOES NOT HOLD"
    assert results["best dropout: weights spread over more units"].outcome == "UNDECIDED"
    text = str(command.report(HELPED, SMALL))
    assert results[f"dropout 0.2: {RISES}"].outcome == "HOLDS"
    assert "40.0% ± 0.0%" in text
    same = outcomes(known())
    assert not any(v.outcome == "HOLDS" for text, v in same.items() if "than without" in text)


def test_a_search_chooses_in_each_seed_by_its_dev_error():
    dataset = known(dev=[0.2, 0.2, 0.9, 0.9, 0.0], test=[0.5, 0.6, 0, 0, 0])
    # In the last seeds the setting's dev error is the larger one, and ties go to the first.
    np.testing.assert_allclose(command.searched(dataset), [0.58, 0.5, 0.5, 0.51] * 4)
    assert command.ways(dataset)["l2"] == "L2, lambda 8"


def test_figure_orders_the_ways_and_says_how_many_help():
    def drawn(dataset):
        report = command.report(dataset, SMALL)
        return legible(lambda: command.figure(dataset, report, SMALL))

    helped = drawn(HELPED.assign(stopped_test=HELPED["stopped_dev"]))
    names = ["none", "L1, lambda 3", "L2, lambda 8", "early stopping", "augmentation"]
    labels = [label.get_text() for label in helped.axes[0].get_yticklabels()]
    assert labels == [*names, "dropout, rate 0.5"]
    train, test = (series.lines[0].get_xdata(orig=False) for series in helped.axes[0].containers)
    np.testing.assert_allclose(train, [0.0, 0.1, 0.1, 0.2, 0.1, 0.1], atol=1e-12)
    np.testing.assert_allclose(test, [0.3, 0.25, 0.15, 0.14, 0.12, 0.1])
    words = "With 20% of the labels drawn at random, {} of 5 ways to regularize lower the test "
    assert message(helped) == words.format(5) + "error of 30%"
    assert "error" in helped.axes[0].get_xlabel()
    assert message(drawn(known())) == words.format(0) + "error of 20%"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"l2": ()}, "l2 must have at least 1 value"),
        ({"l1": (0.0, 1.0)}, "l1 must have values above 0"),
        ({"dropout_rates": (0.5, 1.0)}, "dropout_rates must have values above 0 and below 1"),
        ({"l2": (1.0, 1.0)}, "l2 must have no value twice"),
        ({"dev": 1757}, "train and dev must be at most 1796, got 1797"),
        ({"batch_size": 41}, "batch_size must be at most 40, got 41"),
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"mislabelled": 1.5}, "mislabelled must be at least 0 and at most 1"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0"),
        ({"every": 7}, "every must divide the 120 steps, got 7"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit.check(options)
