"""The comparison of plain networks with batch and layer norm."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _kit as kit
from experiments.norm_layers import __main__ as command
from experiments.norm_layers import measurement as experiment
from tests.experiments.legible import legible, message

pytestmark = pytest.mark.slow

SMALL = experiment.Options(
    w_variances=(0.5, 2.0),
    learning_rates=(0.002, 0.05),
    depth=3,
    width=32,
    steps=60,
    every=30,
    batch_size=32,
    seeds=2,
    start_depth=6,
    start_width=32,
    start_examples=64,
    start_seeds=4,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(experiment, "COMPILER", {})


@pytest.fixture(scope="module")
def sets():
    digits = kit.load("digits")
    return kit.split(digits.x, digits.labels, (0.6, 0.2, 0.2), key=jax.random.key(0))


@pytest.fixture(scope="module")
def drawn():
    """Seeds, and four networks of seven hidden layers."""
    return experiment.draw(SMALL, 32, 7, 4)


@pytest.fixture(scope="module")
def plain(drawn):
    return jax.tree.map(lambda a: a[1], drawn[1])


def test_growth_at_the_start_is_that_of_theory(sets, drawn):
    x = sets[0].x[: SMALL.start_examples]
    measured, predicted = experiment.start("batch norm before", drawn, x, SMALL).growth()
    growth = kit.Estimate.of(measured)
    mean, error = growth.mean, growth.standard_error
    np.testing.assert_allclose(predicted, np.log(np.pi / (np.pi - 1)), atol=2e-3)
    # Width and batch are finite.
    assert (np.abs(mean - predicted) < 3.5 * error + 4 / SMALL.start_width).all()
    assert (mean > 5 * error).all()


def test_gradients_are_those_of_what_enters_each_layer(plain, key):
    kind = "batch norm before"
    x, y = jax.random.normal(key, (6, 64)), jnp.arange(6)
    first, hidden, last = params = experiment.prepare(plain, kind, 3, 1.3)
    block = experiment.block(kind, 32, "relu")

    @jax.jit
    @jax.grad
    def slopes(taps):
        h = x @ first["kernel"]
        for i, tap in enumerate(taps):
            h = block.apply(jax.tree.map(lambda a, i=i: a[i], hidden), None, h + tap)[0]
        logits = jax.nn.log_softmax(h @ last["kernel"])
        return -jnp.mean(logits[jnp.arange(6), y])

    expected = jnp.linalg.norm(slopes(jnp.zeros((2, 6, 32))), axis=(1, 2))
    logs = experiment.gradients(kind, "relu", params, kit.Examples(x, y))
    np.testing.assert_allclose(10**logs, expected, rtol=1e-4)


def test_all_kinds_start_from_the_same_weights(plain):
    for kind, names in experiment.KINDS.items():
        first, hidden, _ = experiment.prepare(plain, kind, 3, 4.0)
        net = experiment.network(kind, "relu", 32, 3)
        fresh = jax.eval_shape(
            lambda key, net=net: net.draw((64,), key=key, dtype=jnp.float32)[0], jax.random.key(0)
        )
        assert jax.tree.map(jnp.shape, fresh[1]) == jax.tree.map(jnp.shape, hidden)
        kernel = hidden[names.index("dense")]["kernel"]
        np.testing.assert_allclose(kernel, 2 * plain[1][0]["kernel"][:2], rtol=1e-6)
        np.testing.assert_allclose(first["kernel"], 2 * plain[0]["kernel"], rtol=1e-6)


def test_shallow_networks_learn_and_agree_in_use(sets, drawn):
    weights = jax.tree.map(lambda a: a[: SMALL.seeds], drawn)
    one = experiment.train("batch norm before", weights, sets, SMALL)
    assert one.rate.shape == (2,)
    assert one.gradient.shape == (2, 2, 3, 2)
    assert one.ratio().shape == (2, 2, 3)
    assert (one.test > 0.7).all()
    assert (one.train > 0.7).all()
    assert np.abs(one.test - one.test_batch).max() < 0.1
    assert (one.test.mean(axis=0) > command.LEARNS).all()


def test_the_best_rate_is_that_of_best_mean_dev_accuracy():
    dev = np.zeros((2, 2, 2, 1))
    dev[:, 0, 1] = dev[:, 1, 0] = 0.5
    test = np.arange(8.0).reshape(2, 2, 2)
    gradient = np.zeros((2, 2, 2, 1, 3))
    best = experiment.Trained(gradient, dev, test, test, test).best()
    assert best.rate.tolist() == [1, 0]
    assert best.test.tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert best.gradient.shape == (2, 2, 1, 3)


def known(kind):
    """Eight seeds, two variances, three evaluations, two layers."""
    ups = np.tile([1.0, 1.1], 4)[:, None]
    slope = {"plain": np.array([-1.0, 0.0]), "layer norm before": np.zeros(2)}.get(kind, np.ones(2))
    depth = np.arange(1, 11)
    growth = slope[:, None] * depth
    start = experiment.Start(ups[..., None] * growth, growth)
    gradient = np.zeros((8, 2, 3, 2))
    gradient[..., 2, 0] = ups + 0.5
    test = np.full((8, 2), 0.9)
    train = np.full((8, 2), 0.9 if kind == "layer norm before" else 0.99)
    if kind == "plain":
        gradient[:, 0, 1:] = -np.inf
        test[:, 0] = 0.1
    numbers = (gradient, gradient[..., 0], train, test, test)
    return start, experiment.Trained(*numbers, rate=np.array([0, 1]))


def test_report_and_figure_follow_the_numbers():
    every = {kind: known(kind) for kind in experiment.KINDS}
    results = experiment.Results(
        {kind: start for kind, (start, _) in every.items()},
        {kind: one for kind, (_, one) in every.items()},
    )
    report = command.report(results, SMALL)
    text, verdicts = str(report), {v.claim.text: v for v in kit.verdicts(report.claims)}
    explode = "gradients explode at every variance (smallest growth)"
    assert verdicts[f"batch norm before: {explode}"].outcome == "HOLDS"
    assert verdicts[f"batch norm after: {explode}"].outcome == "HOLDS"
    learns = "depth 3: test accuracy above 20 % at every weight variance"
    assert verdicts[f"plain, {learns}"].outcome == "DOES NOT HOLD"
    assert verdicts[f"layer norm before, {learns}"].outcome == "HOLDS"
    assert " lost\n" not in text
    assert " lost\n" in report.text(verbose=True)
    figure = legible(lambda: command.figure(results, SMALL))
    assert "learn at 1 of 2 weight variances, with any norm at 2" in message(figure)
    plain_line, *_ = figure.axes[0].get_lines()
    np.testing.assert_allclose(plain_line.get_ydata(), [0.1, 0.9])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "swish9"}, "activation must be one of"),
        ({"learning_rates": ()}, "learning_rates must have at least 1 value"),
        ({"w_variances": (0.0, 1.0)}, "w_variances must have values above 0"),
        ({"depth": 2}, "depth must be at least 3"),
        ({"seeds": 1}, "seeds must be at least 2, got 1"),
        ({"steps": 50}, "steps must be a multiple of every, got 50 and 30"),
        ({"batch_size": 2000}, "batch_size must be at least 2 and at most 1078"),
    ],
)
def test_bad_input_is_named(change, message, tmp_path):
    options = dataclasses.replace(SMALL, output=tmp_path / "figure.png", **change)
    with pytest.raises(ValueError, match=message):
        kit.check(options)
