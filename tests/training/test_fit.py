"""A whole training run as one function."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import layers, training
from jaxgrad.training import regularization


@pytest.fixture
def data(key):
    x = jax.random.normal(key, (40, 3))
    return {"x": x, "y": x @ jnp.asarray([1.0, -2.0, 0.5]) + 0.1}


def loss(w, state, batch, key):
    return jnp.mean((batch["x"] @ w - batch["y"]) ** 2), state


def fit(data, key, rate=0.05, loss=loss, **change):
    options: Any = {"steps": 24, "batch_size": 10} | change
    return training.fit(loss, jnp.zeros(3), optax.sgd(rate), data, key=key, **options)


@pytest.mark.slow
def test_full_batches_are_gradient_descent(key, data):
    result = fit(data, key, batch_size=40)
    w = jnp.zeros(3)
    for value in result.loss:
        expected, gradient = jax.value_and_grad(lambda w: loss(w, (), data, None)[0])(w)
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        w = w - 0.05 * gradient
    np.testing.assert_allclose(result.params, w, rtol=1e-4)
    assert result.best is None


def test_an_epoch_sees_every_example_once_in_a_new_order(key):
    def record(w, state, batch, key):
        count, seen = state
        return jnp.sum(w * 0.0), (count + 1, seen.at[count].set(batch))

    state = (jnp.zeros((), jnp.int32), jnp.zeros((24, 10), jnp.int32))
    result = training.fit(
        record, jnp.ones(1), optax.sgd(0.1), jnp.arange(43), key=key, steps=24, batch_size=10,
        state=state,
    )  # fmt: skip
    epochs = np.asarray(result.state[1]).reshape(6, 40)
    assert all(len(set(epoch)) == 40 for epoch in epochs)
    assert set(epochs.ravel()) == set(range(43))
    assert len({tuple(epoch) for epoch in epochs}) == 6


def test_optimizer_numbers_and_keys_are_data(key, data):
    traces = []

    @jax.jit
    def run(rate, key):
        traces.append(1)
        return fit(data, key, rate).params

    rates, keys = jnp.asarray([0.01, 0.1]), jax.random.split(key, 2)
    mapped = jax.vmap(run)(rates, keys)
    for i in range(2):
        np.testing.assert_allclose(mapped[i], run(rates[i], keys[i]), rtol=1e-4)
    assert len(traces) == 1


@pytest.mark.slow
def test_rate_variance_penalty_depth_and_seed_are_mapped_by_one_program(data):
    traces = []

    def run(point, deepest, depth):
        block = layers.sequential(
            layers.dense(8, w_variance=point["w_variance"], bias=True), layers.activation("tanh")
        )
        rest = layers.repeat(block, deepest - 1, active=depth)
        net = layers.sequential(block, rest, layers.dense(1))
        key_init, key_fit = jax.random.split(jax.random.key(point["seed"]))
        params, _ = layers.init(net, (3,), key=key_init)

        def loss(params, state, batch, key):
            traces.append(1)
            outputs, _ = layers.apply(net, params, None, batch["x"])
            errors = outputs[:, 0] - batch["y"]
            return jnp.mean(errors**2) + regularization.l2(params, point["strength"]), state

        sgd = optax.sgd(point["rate"])
        result = training.fit(loss, params, sgd, data, key=key_fit, steps=20, batch_size=10)
        return result.loss

    points = {
        "rate": jnp.asarray([0.01, 0.1, 0.01, 0.01, 0.01]),
        "w_variance": jnp.asarray([1.0, 1.0, 3.0, 1.0, 1.0]),
        "strength": jnp.asarray([0.0, 0.0, 0.0, 0.5, 0.0]),
        "seed": jnp.asarray([0, 0, 0, 0, 1]),
    }
    depths = jnp.asarray([2, 3, 2, 4, 3])
    mapped = jax.jit(jax.vmap(lambda point, depth: run(point, 4, depth - 1)))
    result = mapped(points, depths)
    count = len(traces)
    mapped(points, depths[::-1])
    assert len(traces) == count
    # Copies that do not act are penalised as well: at strength 0.5 all four act.
    for index in (1, 3):
        point = jax.tree.map(lambda a: a[index], points)  # noqa: B023
        np.testing.assert_allclose(result[index], run(point, int(depths[index]), None), rtol=1e-5)
    assert all(np.abs(result[index] - result[0]).max() > 1e-3 for index in range(1, 5))


@pytest.mark.slow
def test_evaluations_come_before_the_first_step_and_after_each_every(key, data):
    def evaluate(w, state):
        return jnp.sum(w**2), {"w": w}

    result = fit(data, key, evaluate=evaluate, every=6)
    assert result.error.shape == (5,)
    np.testing.assert_array_equal(result.record["w"][0], 0)
    np.testing.assert_allclose(result.record["w"][-1], result.params)
    shorter = fit(data, key, evaluate=evaluate, every=3)
    np.testing.assert_allclose(shorter.record["w"][::2], result.record["w"], rtol=1e-5)
    np.testing.assert_allclose(shorter.loss, result.loss, rtol=1e-5)
    assert int(result.best.best) == 0
    without = fit(data, key)
    np.testing.assert_allclose(without.params, result.params, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [False, True])
def test_early_stopping_stops_and_returns_the_best(key, data, mapped):
    """The error falls until the sum of the parameters' squares passes 1, then rises."""

    def evaluate(w, state):
        return jnp.abs(jnp.sum(w**2) - 1.0), jnp.sum(w**2)

    def run(key):
        return fit(data, key=key, steps=60, evaluate=evaluate, every=2, patience=3)

    result = jax.vmap(run)(key[None]) if mapped else run(key)
    result = jax.tree.map(lambda a: a[0], result) if mapped else result
    best = int(result.best.best)
    assert bool(result.best.stopped)
    assert best == int(np.argmin(result.error)) > 0
    steps = 2 * (best + 3)
    assert np.all(np.isfinite(result.loss[:steps]))
    assert np.all(np.isnan(result.loss[steps:]))
    params, _ = result.best.params
    np.testing.assert_allclose(np.sum(params**2), result.record[best], rtol=1e-5)
    np.testing.assert_allclose(np.sum(result.params**2), result.record[best + 3], rtol=1e-5)
    np.testing.assert_allclose(result.record[best + 3 :], result.record[-1], rtol=1e-6)


def test_divergence_is_a_result(key, data):
    def evaluate(w, state):
        return jnp.sum(w**2), ()

    result = fit(data, key, rate=1e20, evaluate=evaluate, every=12)
    assert not np.isfinite(result.loss[-1])
    assert int(result.best.best) == 0
    chex.assert_trees_all_equal(result.best.params[0], jnp.zeros(3))


def test_every_step_has_a_key_of_its_own(key):
    def record(w, state, batch, key):
        count, seen = state
        return jnp.sum(w * 0.0), (count + 1, seen.at[count].set(jax.random.key_data(key)))

    state = (jnp.zeros((), jnp.int32), jnp.zeros((6, 2), jnp.uint32))
    result = training.fit(
        record, jnp.ones(1), optax.sgd(0.1), jnp.arange(8), key=key, steps=6, batch_size=4, every=2,
        state=state,
    )  # fmt: skip
    assert len({tuple(row) for row in np.asarray(result.state[1]).tolist()}) == 6


def test_keys_of_the_old_style(key, data):
    old = jax.random.key_data(key)
    np.testing.assert_array_equal(fit(data, old, every=2).loss, fit(data, key, every=2).loss)


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.lbfgs(),
        optax.polyak_sgd(),
        optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau()),
    ],
    ids=["lbfgs", "polyak", "plateau"],
)
def test_optimizers_that_want_the_loss(key, data, optimizer):
    result = training.fit(loss, jnp.zeros(3), optimizer, data, key=key, steps=40, batch_size=40)
    assert float(result.loss[-1]) < 0.1 * float(result.loss[0])


def test_numpy_data(key, data):
    result = fit(jax.tree.map(np.asarray, data), key)
    np.testing.assert_allclose(result.params, fit(data, key).params, rtol=1e-6)


def one_value(w, state, batch, key):
    return jnp.sum(w)


def grows(w, state, batch, key):
    return jnp.sum(w), (state, 1.0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"every": 7}, "steps must be a multiple of every, got 24 and 7; take 28"),
        ({"batch_size": 41}, "batch_size must be at most the 40 examples of data, got 41"),
        ({"patience": 2}, "patience must come with evaluate"),
        ({"patience": 0, "evaluate": lambda w, s: (0.0, ())}, "patience must be at least 1"),
        ({"data": {"x": jnp.ones((40, 3)), "y": jnp.ones(39)}}, r"leading axes \[\(39,\), \(40,\)"),
        ({"data": {}}, r"data must be arrays with one leading axis, .* got leading axes \[\]"),
        ({"loss": one_value}, "loss must return a pair, a scalar and the next state"),
        ({"loss": grows}, "loss must return a state like the one it gets"),
        ({"loss": None}, "loss must be a function, got None"),
        ({"monitor": 3}, "monitor must be a function, got 3"),
        ({"evaluate": lambda w, s: (w, ())}, r"evaluate must return a pair, .* \(\(3,\), \(\)\)"),
        ({"evaluate": lambda w, s: 0.0}, r"evaluate must return a pair, .* got \(\); return"),
        ({"key": 0}, r"key must be one PRNG key, got 0; pass jax.random.key\(0\)"),
    ],
)
def test_errors(key, data, change, match):
    with pytest.raises((ValueError, TypeError), match=match):
        fit(**{"data": data, "key": key} | change)


@pytest.mark.parametrize("optimizer", [0.1, "adam", optax.sgd])
def test_an_optimizer_that_is_none_is_named(key, data, optimizer):
    with pytest.raises(TypeError, match="optimizer must be one of optax, got"):
        training.fit(loss, jnp.zeros(3), optimizer, data, key=key, steps=1, batch_size=4)


def test_parameters_must_be_arrays(key, data):
    with pytest.raises(TypeError, match=r"params must be floating point, got .* at \['f'\]; leave"):
        training.fit(loss, {"f": jnp.tanh}, optax.sgd(0.1), data, key=key, steps=1, batch_size=4)


def test_parameters_must_be_floating_point(key, data):
    with pytest.raises(TypeError, match=r"params must be floating point, got int32 at \['n'\]"):
        training.fit(
            loss,
            {"n": jnp.ones(3, jnp.int32)},
            optax.sgd(0.1),
            data,
            key=key,
            steps=1,
            batch_size=4,
        )


@pytest.mark.parametrize("evaluated", [False, True])
def test_a_monitor_sees_every_step(key, data, evaluated):
    def monitor(step):
        return {"loss": step.loss, "w": step.params, "update": step.updates, "x": step.batch["x"]}

    options = {"evaluate": lambda w, state: (jnp.sum(w**2), ()), "every": 8} if evaluated else {}
    result = fit(data, key, monitor=monitor, **options)
    np.testing.assert_array_equal(result.trace["loss"], result.loss)
    after = np.concatenate([result.trace["w"][1:], result.params[None]])
    np.testing.assert_allclose(result.trace["w"] + result.trace["update"], after, rtol=1e-6)
    assert result.trace["x"].shape == (24, 10, 3)
    np.testing.assert_allclose(result.params, fit(data, key).params, rtol=1e-6)


def test_a_monitor_sees_the_state_before_the_step(key, data):
    result = training.fit(
        lambda w, state, batch, key: (loss(w, (), batch, key)[0], state + 1),
        jnp.zeros(3), optax.sgd(0.1), data, key=key, steps=4, batch_size=10,
        state=jnp.zeros(()), monitor=lambda step: step.state,
    )  # fmt: skip
    np.testing.assert_array_equal(result.trace, [0, 1, 2, 3])


@pytest.mark.slow
def test_what_a_monitor_saw_ends_where_training_stops(key, data):
    result = fit(
        data,
        key,
        steps=20,
        evaluate=lambda w, state: (jnp.sum(w**2), ()),
        every=2,
        patience=2,
        monitor=lambda step: step.loss,
    )
    np.testing.assert_array_equal(result.trace[:4], result.loss[:4])
    np.testing.assert_array_equal(result.trace[4:], 0)
    assert np.all(np.isnan(result.loss[4:]))
