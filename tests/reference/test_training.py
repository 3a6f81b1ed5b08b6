"""Training runs, search, monitoring, diagnosis: the numbers of 0.1."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgrad import layers, training
from jaxgrad.training import diagnosis, monitoring, regularization, schedules, search
from jaxgrad.training.monitoring import Norms, Units
from tests.reference.record import hold, recorded

# What these numbers hold is tested by quicker tests, too.
pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
INPUTS = jax.random.normal(jax.random.key(0), (40, 3))
TARGET = jnp.asarray([1.0, -2.0, 0.5])
DATA = {"x": INPUTS, "y": INPUTS @ TARGET + 0.1}


def linear_loss(w, state, batch, key):
    return jnp.mean((batch["x"] @ w - batch["y"]) ** 2), state


def fit(optimizer, **options):
    return training.fit(linear_loss, jnp.zeros(3), optimizer, DATA, key=KEY, **options)


def test_linear_model():
    hold("training.fit.linear", fit(optax.adam(0.05), steps=24, batch_size=10))


def test_early_stopping():
    def evaluate(w, state):
        return jnp.mean(jnp.abs(w - TARGET)), {"norm": jnp.sum(w**2)}

    stops = {"steps": 24, "batch_size": 10, "every": 3, "patience": 2, "evaluate": evaluate}
    goes_on = {"steps": 12, "batch_size": 7, "every": 4, "evaluate": evaluate}
    out = {"stops": fit(optax.sgd(0.45), **stops), "goes_on": fit(optax.sgd(0.05), **goes_on)}
    hold("training.fit.patience", out)


def test_network_with_batch_norm_and_dropout():
    network = layers.sequential(
        layers.dense(6),
        layers.batch_norm(1e-5),
        layers.activation("relu"),
        layers.dropout(0.25),
        layers.dense(1, b_variance=0.01, bias=True),
    )
    params, state = layers.init(network, (3,), key=jax.random.key(3))

    def loss(params, state, batch, key):
        y, state = layers.apply(network, params, state, batch["x"], key=key)
        error = jnp.mean((y[:, 0] - batch["y"]) ** 2)
        return error + regularization.l2(params, 0.01), state

    def evaluate(params, state):
        y, _ = layers.apply(network, params, state, DATA["x"])
        return jnp.mean((y[:, 0] - DATA["y"]) ** 2), {"first": y[0]}

    options = {"steps": 12, "batch_size": 10, "every": 4, "state": state, "evaluate": evaluate}
    out = training.fit(
        loss, params, optax.sgd(0.05), DATA, key=KEY, monitor=monitoring.layer_norms, **options
    )
    hold("training.fit.network", out, tolerance=5)


def test_search():
    space = {"rate": search.log_uniform(1e-6, 10.0), "rho": search.uniform(0.2, 1.0)}

    def score(point):
        error = (jnp.log10(point["rate"]) + 2) ** 2 + (point["rho"] - 0.5) ** 2
        return jnp.where(point["rho"] > 0.9, jnp.nan, error)

    points = search.draw(space, 9, key=KEY)
    out = {
        "draw": points,
        "grid": search.grid(space, {"rate": 3, "rho": 2}),
        "grid_one": search.grid(space, 1),
        "narrow": search.narrow(space, points, jax.vmap(score)(points), keep=0.4),
        "search": search.search(score, space, key=KEY, count=20, rounds=3, keep=0.3),
    }
    hold("training.search", out)


def test_monitoring():
    start = recorded()["training.monitoring.params"]
    params = {}
    for name, array in start.items():
        part, leaf = name.split("/")
        params.setdefault(part, {})[leaf] = jnp.asarray(array)
    step = SimpleNamespace(
        params=params,
        gradient=jax.tree.map(lambda a: a * 1e-30, params),
        updates=jax.tree.map(jnp.sin, params),
    )
    norms = monitoring.layer_norms(step, stacked="^hidden/")
    z = 3 * jax.random.normal(jax.random.key(1), (3, 6, 5))
    z = z.at[1, 2, 3].set(jnp.inf).at[2, :, 1].set(-20.0)
    out = {
        "stacked": norms,
        "log_ratio": norms.log_ratio,
        "biases": monitoring.layer_norms(step, where=".*bias"),
        "names": np.asarray(monitoring.layer_names(params, stacked="^hidden/")),
        "units_relu": monitoring.units(z, "relu"),
        "units_tanh": monitoring.units(z, "tanh", saturation=0.1, edges=(-1.0, 0.5)),
    }
    hold("training.monitoring", out)


def test_schedules():
    hold("training.schedules", schedules.inverse_time(0.1, 0.3)(jnp.arange(6)))


STEPS, LAYERS = 40, 4
FALLING = 2.3 * np.exp(-np.linspace(0, 3, STEPS))
RISE_AND_FALL = np.concatenate([np.linspace(0.5, 0.2, 6), np.linspace(0.25, 0.4, 5)])


def norms_of(gradient=0.0, ratio=-6.0):
    """A loss and norms of a run, made up."""
    rng = np.random.default_rng(0)
    loss = FALLING + 0.01 * rng.normal(size=STEPS)
    noise = 0.1 * rng.normal(size=(2, STEPS, LAYERS))
    gradient, ratio = (np.broadcast_to(a, (STEPS, LAYERS)) for a in (gradient, ratio))
    return loss, Norms(gradient + noise[0], np.ones((STEPS, LAYERS)), 1 + ratio + noise[1])


def units_of(dead=0.0, saturated=0.1, above=0.0, log_z=0.0):
    parts = (np.broadcast_to(np.asarray(a, float), (STEPS, LAYERS)).copy()
             for a in (log_z, dead, saturated, above))  # fmt: skip
    return Units(*parts, np.ones((STEPS, LAYERS, 8)), np.zeros((STEPS, LAYERS)))


# The loss (None for one that falls), options of `norms_of`, options of `diagnose`.
RUNS = {
    "healthy": (None, {}, {}),
    "exploding": (np.geomspace(4.3, 8.9e21, STEPS), {}, {}),
    "nan": (np.where(np.arange(STEPS) < 9, FALLING, np.nan), {}, {}),
    "peak": (np.where(np.arange(STEPS) == 30, 50.0, FALLING), {}, {}),
    "rate_high": (np.geomspace(2.3, 1e30, STEPS), {"ratio": -1.0}, {}),
    "rate_low": (2.3 - 1e-5 * np.arange(STEPS), {"ratio": -14.0}, {}),
    "stuck": (np.full(STEPS, 2.3), {}, {}),
    "vanishing": (None, {"gradient": [-20.0, -12.0, -6.0, 0.0]}, {}),
    "frozen": (
        None,
        {"gradient": [0.0, -np.inf, 0.0, 0.0], "ratio": [-6.0, -np.inf, -6.0, -6.0]},
        {},
    ),
    "inputs": (
        None,
        {},
        {"inputs": np.abs(np.random.default_rng(0).normal(size=(30, 3))) * [1.0, 100.0, 1e4]},
    ),
    "overfitting": (
        None,
        {},
        {"train_error": np.linspace(0.5, 0.0, 11), "dev_error": RISE_AND_FALL},
    ),
    "labels": (
        None,
        {},
        {
            "train_error": np.concatenate([np.linspace(0.5, 0.3, 6), np.full(5, 0.3)]),
            "dev_error": np.concatenate([np.linspace(0.5, 0.1, 6), np.full(5, 0.1)]),
        },
    ),
    "dead": (None, {}, {"units": units_of(dead=[0.0, 0.9, 0.9, 0.0])}),
    "saturated": (None, {}, {"units": units_of(saturated=0.95, above=0.5)}),
    "lost_signal": (None, {}, {"units": units_of(log_z=[0.0, -8.0, -16.0, -24.0])}),
}


@pytest.mark.parametrize("name", RUNS)
def test_diagnosis(name):
    loss, options, records = RUNS[name]
    usual, norms = norms_of(**options)
    run = SimpleNamespace(loss=usual if loss is None else loss, error=None, best=None)
    out = {}
    for label, report in {
        "fit": diagnosis.diagnose(run),
        "norms": diagnosis.diagnose(run, norms),
        "all": diagnosis.diagnose(run, norms, **records),
    }.items():
        findings = [
            {
                "fault": str(f.fault),
                "layer": "" if f.layer is None else str(f.layer),
                "step": f.step,
            }
            for f in report.findings
        ]
        out[label] = {"healthy": report.healthy, "findings": findings}
    hold(f"training.diagnosis.{name}", out)
