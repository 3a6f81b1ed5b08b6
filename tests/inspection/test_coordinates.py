"""Exponents of signals and their changes, against those that theory of wide networks knows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxgrad.inspection import coordinate_check
from jaxgrad.inspection._coordinates import _verdicts

FEATURES, WIDTHS = 8, (32, 64, 128)


def loss(params, batch):
    x, y = batch
    h = x @ params["first"]
    for w in params["hidden"]:
        h = jax.nn.relu(h) @ w
    return jnp.mean((jax.nn.relu(h) @ params["out"] - y) ** 2)


def make(width, depth, key, *, output=0.5):
    """A network whose last weights have the standard deviation `width ** -output`."""
    keys = jax.random.split(key, 3)
    params = {
        "first": jax.random.normal(keys[0], (FEATURES, width)) / FEATURES**0.5,
        "hidden": jax.random.normal(keys[1], (depth, width, width)) * (2 / width) ** 0.5,
        "out": jax.random.normal(keys[2], (width, 4)) * width**-output,
    }
    params["hidden"] = list(params["hidden"])
    x = jax.random.normal(jax.random.key(5), (8, FEATURES))
    return params, loss, (x, jnp.sin(x[:, :4]))


def exponents(check, operation="dot_general"):
    rows = [e for e in check.exponents if e.operation == operation]
    return {(e.parameter.strip("[]'").split("'")[0], e.quantity): e for e in rows}


@pytest.mark.slow
def test_the_standard_parametrization_with_adam_grows(key):
    # Each weight moves by the learning rate, along a signal of `width` elements.
    check = coordinate_check(make, widths=WIDTHS, optimizer=optax.adam(1e-3), key=key, seeds=8)
    rows = exponents(check)
    for name in ("first", "hidden"):
        assert rows[name, "size"].verdict == "level"
    assert abs(rows["out", "size"].slope) < 3 * rows["out", "size"].error < 0.4
    assert rows["hidden", "change"].verdict == "grows"
    assert rows["out", "change"].verdict == "grows"
    # The readout alone would give an exponent of 1, the weights before it 3/2.
    assert 0.9 < rows["out", "change"].slope < 1.6
    assert rows["out", "change"].p < 0.05
    text = str(check).splitlines()
    assert "grows as width^" in text[1]
    assert "test_coordinates.py" in text[1]


@pytest.mark.slow
def test_the_readout_alone_grows_as_the_width(key):
    # The first step of Adam is the rate times the sign of each gradient.
    def readout(width, depth):
        rates = {"still": optax.set_to_zero(), "trained": optax.adam(1e-3)}
        return optax.multi_transform(
            rates, {"first": "still", "hidden": ["still"] * depth, "out": "trained"}
        )

    options = {"depths": (1,), "steps": 1, "seeds": 8}
    rows = exponents(coordinate_check(make, widths=WIDTHS, optimizer=readout, key=key, **options))
    change = rows["out", "change"]
    assert change.slope == pytest.approx(1, abs=3 * change.error)
    assert change.error < 0.1
    assert rows["hidden", "change"].verdict == "zero"


def maximal_update(width, depth):
    """Rates of 1 / width for all weights whose input is as wide as the network."""
    labels = {"first": "input", "hidden": ["wide"] * depth, "out": "wide"}
    rates = {"input": optax.adam(1e-3), "wide": optax.adam(0.032 / width)}
    return optax.multi_transform(rates, labels)


@pytest.mark.slow
def test_the_maximal_update_parametrization_is_level(key):
    check = coordinate_check(
        functools.partial(make, output=1.0),
        widths=WIDTHS,
        optimizer=maximal_update,
        key=key,
        seeds=8,
    )
    rows = exponents(check)
    for name in ("first", "hidden", "out"):
        assert rows[name, "change"].verdict == "level", rows[name, "change"]
    # The output of a random network with weights of size 1 / width.
    assert rows["out", "size"].slope == pytest.approx(-0.5, abs=3 * rows["out", "size"].error)
    assert 0 < rows["out", "size"].error < 0.15


@pytest.mark.slow
def test_a_residual_stream_without_scale_grows_with_depth(key):
    def residual(width, depth, key):
        ws = jax.random.normal(key, (depth, width, width)) / (width * 1.0) ** 0.5
        x = jax.random.normal(jax.random.key(5), (8, width))

        def mean(ws, x):
            step = lambda x, w: (x + x @ w / jnp.sqrt(jnp.mean(x**2)), None)  # noqa: E731
            return jnp.mean(jax.lax.scan(step, x, ws)[0][:, 0] ** 2)

        return ws, mean, x

    check = coordinate_check(
        residual, widths=(32,), depths=(8, 16, 32), optimizer=optax.sgd(0.0), key=key, steps=1
    )
    rows = exponents(check, "add")
    # The mean square of the sum of d unit branches is 1 + d.
    logs = [np.mean(np.log(1 + np.arange(1, d + 1))) / 2 for d in (8, 16, 32)]
    slope = np.polyfit(np.log([8, 16, 32]), logs, 1)[0]
    (size,) = [e for e in rows.values() if e.quantity == "size"]
    assert size.axis == "depth"
    assert size.verdict == "grows"
    assert size.slope == pytest.approx(slope, abs=0.05)
    # Nothing has changed.
    (change,) = [e for e in rows.values() if e.quantity == "change"]
    assert change.verdict == "zero"


@pytest.mark.slow
def test_changes_are_those_of_a_network_trained_by_hand(key):
    widths = (4, 8)
    optimizer = optax.adam(0.01)
    check = coordinate_check(
        make, widths=widths, depths=(1,), optimizer=optimizer, key=key, steps=2, seeds=3
    )
    (name,) = [name for name in check.changes if name[1] == "['out']"]
    params, _, batch = make(8, 1, jax.random.split(key, 3)[2])
    state = optimizer.init(params)

    def output(params):
        h = jax.nn.relu(batch[0] @ params["first"])
        return jax.nn.relu(h @ params["hidden"][0]) @ params["out"]

    first = output(params)
    for _ in range(2):
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state)
        params = optax.apply_updates(params, updates)
    change = jnp.log(jnp.mean((output(params) - first) ** 2)) / 2
    size = jnp.log(jnp.mean(first**2)) / 2
    assert check.changes[name].shape == (3, 2, 1, 3)
    assert check.changes[name][2, 1, 0, 2] == pytest.approx(float(change), abs=1e-3)
    assert check.sizes[name][2, 1, 0, 0] == pytest.approx(float(size), abs=1e-4)
    assert np.all(np.isneginf(check.changes[name][..., 0]))


def test_verdicts_are_corrected_for_their_number():
    slopes = ((0.5, 0.05), (0.0, 0.08), (-0.5, 0.1), (0.45, 0.1), (-np.inf, 0.0), (np.nan, np.nan))
    place = ("dot_general", "['w']", "model.py:1", "size", "width")
    rows = list(_verdicts([(place, *pair) for pair in slopes], 4))
    alone = stats.t.sf([0.25 / 0.05, 0.25 / 0.08, 0.25 / 0.1, 0.2 / 0.1], 4)
    # Holm: times the number of claims that are not more certain, and never below those.
    expected = np.maximum.accumulate(alone * [4, 3, 2, 1])
    np.testing.assert_allclose([row.p for row in rows[:4]], expected, rtol=1e-5)
    assert alone[2] < 0.05 < expected[2]
    verdicts = [row.verdict for row in rows]
    assert verdicts == ["grows", "unresolved", "unresolved", "unresolved", "zero", "unresolved"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"widths": (8,)}, ValueError, "widths must have two values or more"),
        ({"widths": (8, 8)}, ValueError, "widths must not repeat"),
        ({"widths": (0, 8)}, ValueError, r"widths must be at least 1"),
        ({"seeds": 2}, ValueError, "seeds must be at least 3"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"key": 3}, TypeError, "key must be one PRNG key"),
        ({"make": 3}, TypeError, "make must be a function, got int"),
        ({"make": lambda *_: 3}, TypeError, "make must return params, loss and batch, got int"),
        ({"make": lambda *_: (jnp.ones(2), 3, 4)}, TypeError, "loss must be a function"),
    ],
)
def test_bad_arguments(key, changes, error, message):
    options = {"make": make, "widths": (4, 8), "key": key, "optimizer": optax.sgd(0.1)} | changes
    function = options.pop("make")
    with pytest.raises(error, match=message):
        coordinate_check(function, **options)
