"""The course notes' update formulas are those of the optax optimizers that `fit` takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import training
from jaxgrad.training import schedules

STEPS, RATE, MU = 30, 0.07, 0.9
CURVATURES = np.array([1.0, 3.0, 0.2])
START = np.array([1.0, -2.0, 5.0])


def path(optimizer):
    """Parameters after each step on a quadratic bowl, by `fit`."""
    data = jnp.ones((4, 1))

    def loss(x, state, batch, key):
        count, seen = state
        value = jnp.mean(batch) * jnp.sum(jnp.asarray(CURVATURES) * x**2) / 2
        return value, (count + 1, seen.at[count].set(x))

    state = (jnp.zeros((), jnp.int32), jnp.zeros((STEPS, 3)))
    fitted = training.fit(
        loss,
        jnp.asarray(START),
        optimizer,
        data,
        key=jax.random.key(0),
        steps=STEPS,
        batch_size=4,
        state=state,
    )
    return np.concatenate([fitted.state[1][1:], fitted.params[None]])


def by_hand(step):
    x, memory, steps = START.copy(), {}, []
    for t in range(STEPS):
        x = step(x, CURVATURES * x, memory, t)
        steps.append(x)
    return np.array(steps)


def plain(x, gradient, memory, t):
    return x - RATE * gradient


def momentum(x, gradient, memory, t):
    memory["v"] = MU * memory.get("v", 0.0) - RATE * gradient
    return x + memory["v"]


def nesterov(x, gradient, memory, t):
    before = memory.get("v", np.zeros(3))
    memory["v"] = MU * before - RATE * gradient
    return x - MU * before + (1 + MU) * memory["v"]


def adam(x, gradient, memory, t):
    memory["m"] = 0.9 * memory.get("m", 0.0) + 0.1 * gradient
    memory["s"] = 0.999 * memory.get("s", 0.0) + 0.001 * gradient**2
    first, second = memory["m"] / (1 - 0.9 ** (t + 1)), memory["s"] / (1 - 0.999 ** (t + 1))
    return x - RATE * first / (np.sqrt(second) + 1e-8)


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        (optax.sgd(RATE), plain),
        (optax.sgd(RATE, momentum=MU), momentum),
        (optax.sgd(RATE, momentum=MU, nesterov=True), nesterov),
        (optax.adam(RATE), adam),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_update_formulas(x64, optimizer, step):
    np.testing.assert_allclose(path(optimizer), by_hand(step), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (
            optax.piecewise_constant_schedule(RATE, {10: 0.5, 20: 0.5}),
            lambda t: RATE * 0.5 ** (t // 10),
        ),
        (optax.exponential_decay(RATE, 1, np.exp(-0.1)), lambda t: RATE * np.exp(-0.1 * t)),
        (schedules.inverse_time(RATE, 0.2), lambda t: RATE / (1 + 0.2 * t)),
        (
            optax.cosine_decay_schedule(RATE, STEPS),
            lambda t: RATE / 2 * (1 + np.cos(np.pi * t / STEPS)),
        ),
    ],
    ids=["step", "exponential", "1/t", "cosine"],
)
def test_annealing(x64, schedule, formula):
    expected = by_hand(lambda x, gradient, memory, t: x - formula(t) * gradient)
    np.testing.assert_allclose(path(optax.sgd(schedule)), expected, rtol=1e-11)


def test_clipping_keeps_the_direction_and_bounds_the_norm(x64):
    def clipped(x, gradient, memory, t):
        return x - RATE * gradient / max(1.0, np.linalg.norm(gradient) / 0.5)

    result = path(optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(RATE)))
    np.testing.assert_allclose(result, by_hand(clipped), rtol=1e-11)
    lengths = np.linalg.norm(np.diff(result, axis=0), axis=1)
    assert np.all(lengths <= 0.5 * RATE * (1 + 1e-12))


def test_a_changing_rate_parts_the_two_ways_to_write_momentum(x64):
    """The notes' velocity remembers old rates, optax's trace is multiplied by the newest."""
    rates = [RATE * 0.5 ** (t // 10) for t in range(STEPS)]

    def remembers(x, gradient, memory, t):
        memory["v"] = MU * memory.get("v", 0.0) - rates[t] * gradient
        return x + memory["v"]

    def newest(x, gradient, memory, t):
        memory["v"] = MU * memory.get("v", 0.0) + gradient
        return x - rates[t] * memory["v"]

    result = path(optax.sgd(optax.piecewise_constant_schedule(RATE, {10: 0.5, 20: 0.5}), MU))
    np.testing.assert_allclose(result, by_hand(newest), rtol=1e-11)
    assert np.max(np.abs(result - by_hand(remembers))) > 0.01


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"learning_rate": 0.0}, "learning_rate must be greater than 0"),
        ({"learning_rate": jnp.ones(2)}, "learning_rate must be one number"),
        ({"decay": -1.0}, "decay must be at least 0"),
        ({"decay": float("nan")}, "decay must be finite"),
    ],
)
def test_schedule_errors(arguments, match):
    with pytest.raises(ValueError, match=match):
        schedules.inverse_time(**{"learning_rate": 0.1, "decay": 0.1} | arguments)
