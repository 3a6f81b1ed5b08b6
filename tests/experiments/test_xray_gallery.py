"""The gallery of x-rays of models with default initializations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from experiments import _kit as kit
from experiments.xray_gallery import __main__ as command
from experiments.xray_gallery import measurement
from experiments.xray_gallery.models import MODELS
from tests.experiments.legible import legible, message

SMALL = measurement.Options(
    models=("Equinox MLP",), depths=(12,), width=32, seeds=2, steps=40, batch_size=16
)


def fan_in(weights):
    """Terms of each sum, of one of the stacked layers."""
    return np.prod(weights.shape[1:]) / 32


# Documented defaults: uniform within 1 / sqrt(fan-in); a normal distribution cut off at two
# standard deviations, which leaves 0.774 of its variance; the same one with that corrected.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variance"), [("Equinox MLP", 1 / 3), ("Haiku MLP", 0.7737), ("Linen MLP", 1.0)]
)
def test_weights_are_drawn_by_the_default_of_the_library(name, variance, key):
    params = MODELS[name](64, 32).init(key)
    (weights,) = (a for a in jax.tree.leaves(params) if a.shape == (64, 32, 32))
    assert weights.var() * fan_in(weights) == pytest.approx(variance, rel=0.02)
    # Each block has weights of its scale, and no two have the same.
    assert len(np.unique(weights[:, 0, 0])) == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_models_return_one_logit_for_each_class_at_any_depth(name, key):
    leaves = []
    for depth in (4, 6):
        model = MODELS[name](depth, 8)
        params = jax.eval_shape(model.init, key)
        logits = jax.eval_shape(model.apply, params, jnp.ones((3, 64)))
        assert logits.shape == (3, 10)
        leaves.append(jax.tree.leaves(params))
    # Only the axis of the blocks grows with depth.
    for shallow, deep in zip(*leaves, strict=True):
        assert deep.shape in (shallow.shape, (6, *shallow.shape[1:]))
    assert any(a.shape != b.shape for a, b in zip(*leaves, strict=True))


@pytest.mark.slow
def test_sizes_are_those_of_the_layers_computed_by_hand(key):
    model, x = MODELS["Haiku MLP"](5, 16), jax.random.normal(key, (8, 64))

    def loss(params, x):
        return jnp.mean(model.apply(params, x) ** 2)

    params = model.init(key)
    trace = jaxgrad.xray(loss, params, x)
    sizes = measurement.stream(trace, jaxgrad.prescribe(trace).before)
    (weights,) = (a for a in jax.tree.leaves(params) if a.shape == (5, 16, 16))
    first, last = (params[name]["w"] for name in ("linear", "linear_1"))

    def rest(h, i):
        for w in weights[i + 1 :]:
            h = jax.nn.relu(h) @ w
        return jnp.mean((jax.nn.relu(h) @ last) ** 2)

    # Biases are zero.
    h = x @ first
    for i, w in enumerate(weights):
        h = (jax.nn.relu(h) if i else h) @ w
        pair = (h, jax.grad(rest)(h, i))
        expected = [jnp.log10(jnp.mean(a**2)) / 2 for a in pair]
        np.testing.assert_allclose(sizes[:, i], expected, atol=1e-4)


@pytest.mark.slow
def test_a_default_that_does_not_survive_is_mended(tmp_path, capsys):
    options = dataclasses.replace(SMALL, output=tmp_path / "gallery.png", learning_rate=3e-3)
    kit.check(options)
    command.run(options)
    printed = capsys.readouterr().out
    assert "within a factor of 10: none" in printed
    results = (tmp_path / "gallery.json").read_text()
    assert (tmp_path / "gallery.png").stat().st_size > 10_000
    assert "uniform between +-1 / sqrt(fan-in)" in results
    numbers = measurement.measure_all(options)["Equinox MLP", 12]
    assert numbers.changed.all()
    # The gradient of a relu network changes by sqrt(variance / 2) a layer.
    np.testing.assert_allclose(numbers.growth[:, 0, 1], 6**-0.5, rtol=0.05)
    np.testing.assert_allclose(numbers.growth[:, 1], 1, atol=0.08)
    assert (numbers.change[:, 0] > 3).all()
    assert (numbers.change[:, 1] < 0.6).all()
    assert (numbers.losses[:, 0] > 2.2).all()
    assert (numbers.losses[:, 1] < numbers.losses[:, 0] - 0.1).all()


def known(slope, losses, changed):
    """Two seeds whose signal changes by `slope` decades in all, and whose gradient does not."""
    line = np.linspace(0, 1, 8)
    sizes = np.zeros((2, 2, 2, 8))
    sizes[:, 0, 0] = slope * line * np.array([[1.0], [1.0 + 1e-6]])
    growth = np.ones((2, 2, 2)) + 1e-3 * np.arange(2)[:, None, None]
    losses = np.asarray(losses) + 1e-6 * np.arange(2)[:, None] * np.array([1, 2])
    return measurement.Record(growth, sizes, losses, np.full(2, changed), "seen", "mended")


def test_report_and_figure_follow_the_numbers():
    options = measurement.Options(models=("Linen MLP", "NNX ResNet"), depths=(8,))
    records = {
        ("Linen MLP", 8): known(-5.0, (2.30, 1.0), True),
        ("NNX ResNet", 8): known(0.0, (1.0, 1.0), False),
    }
    report = command.report(records, options)
    verdicts = {v.claim.text: v.outcome for v in kit.verdicts(report.claims)}
    decades = "8 blocks: decades that signal or gradient change, below 1"
    learned = "8 blocks: loss after training, 0.1 below chance"
    assert verdicts == {
        f"Linen MLP, default, {decades}": "DOES NOT HOLD",
        f"Linen MLP, default, {learned}": "DOES NOT HOLD",
        # All seeds agree to the last digit, and there are only two.
        f"Linen MLP, prescribed, {decades}": "UNDECIDED",
        f"Linen MLP, prescribed, {learned}": "HOLDS",
        "Linen MLP, 8 blocks: change of the loss by prescription, below 0": "HOLDS",
        f"NNX ResNet, default, {decades}": "UNDECIDED",
        f"NNX ResNet, default, {learned}": "HOLDS",
    }
    words = " ".join(str(report).split())
    assert (
        "stay within a factor of 10: NNX ResNet. Factors of the others: Linen MLP 10^5.0." in words
    )
    figure = legible(lambda: command.figure(records, options))
    words = "Of 2 default initializations, 8 blocks deep, 1 survive and 1 learn; after "
    assert message(figure) == words + "jaxgrad.prescribe 2 and 2"
    decades, losses = figure.axes
    assert [text.get_text() for text in decades.get_yticklabels()] == list(options.models)
    for ax, values in ((decades, [[5, 0], [0, 0]]), (losses, [[2.3, 1], [1, 1]])):
        for container, expected in zip(ax.containers, values, strict=True):
            np.testing.assert_allclose(container.lines[0].get_xdata(), expected, atol=1e-4)


def test_a_gradient_that_underflows_has_changed_by_the_range_of_the_type():
    record = known(0.0, (2.3, 2.3), True)
    record.sizes[:, 0, 1, 0] = -np.inf
    assert record.change[:, 0].tolist() == [measurement.DECADES] * 2
    assert np.isfinite(record.change).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "width must be a multiple of 4, got 30"),
        ({"depths": (2, 8)}, "depths must have values at least 4"),
        ({"models": ("VGG",)}, "models must"),
        ({"steps": 5}, "steps must be at least 10"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit.check(options)
