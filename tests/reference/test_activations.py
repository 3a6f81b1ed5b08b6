"""Activations, regimes: the numbers of 0.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, regimes
from tests.reference.record import hold

pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
GRID = np.concatenate([np.linspace(-6, 6, 25), [-30.0, 1e-3, 30.0]]).astype(np.float32)


def value_and_slope(phi):
    value, pull = jax.vjp(phi, jnp.asarray(GRID))
    return {"value": value, "slope": pull(jnp.ones_like(value))[0]}


@pytest.mark.parametrize("name", activations.TABLE)
def test_table(name):
    phi = activations.get(name)
    out = value_and_slope(phi)
    with jax.enable_x64(True):
        out["value_float64"] = phi(jnp.asarray(GRID, jnp.float64))
    out["kinks"] = np.asarray(phi.kinks)
    out["constants"] = dict(phi.constants)
    out["parameters"] = dict(phi.parameters)
    out["degrees"] = np.asarray(phi.degrees)
    if phi.scaled_slope is not None:
        out["scaled_slope"] = phi.scaled_slope(jnp.stack([jnp.asarray(GRID), 40 + GRID]))
    if phi.randomized:
        out["drawn"] = phi(jnp.asarray(GRID), key=KEY)
    hold(f"activations.{name}", out)


def test_constructors():
    elu, parametric = activations.elu(0.5), activations.parametric_relu(0.1)
    randomized, x = activations.randomized_leaky_relu(0.1, 0.4), jnp.asarray(GRID)
    out = {
        "leaky_relu": value_and_slope(activations.leaky_relu(0.2)),
        "elu": value_and_slope(elu) | {"kinks": np.asarray(elu.kinks)},
        "parametric_relu": value_and_slope(parametric) | {"given": parametric(x, slope=0.4)},
        "randomized_leaky_relu": {"mean": randomized(x), "drawn": randomized(x, key=KEY)},
    }
    hold("activations.constructors", out)


def test_classify():
    shift, size = jnp.asarray([0.0, -9.0, 9.0, 4.0]), jnp.asarray([0.1, 1.0, 3.0, 9.0])
    ratio = jax.random.normal(jax.random.key(1), (5, 4, 6))
    ratio = ratio * size[None, :, None] + shift[None, :, None]
    ratio = ratio.at[0, 0, 0].set(jnp.nan).at[:, 1, 1].set(-jnp.inf).at[:, 2, 2].set(jnp.inf)
    depths = jnp.asarray([1, 2, 4, 8, 16, 32])
    out = {
        "default": regimes.classify(ratio, depths),
        "strict": regimes.classify(ratio, depths, regimes.Thresholds(2.0, 0.5)),
        "mean_and_error": regimes.mean_and_error(ratio),
    }
    hold("regimes.classify", out)


def test_storage():
    logs = [-3000.0, -300.0, -170.0, -20.0, 0.0, 20.0, 23.0, 176.0, 180.0, 3000.0]
    logs = jnp.asarray([*logs, jnp.nan, -jnp.inf, jnp.inf])
    dtypes = ("float16", "bfloat16", "float32", "float64")
    hold("regimes.storage", {dtype: regimes.storage(logs, dtype) for dtype in dtypes})


def test_level():
    variances = np.geomspace(0.5, 4.0, 9)
    levels = jnp.asarray([1.0, 2.5, 9.0])[None, None]
    ratio = 4 * jnp.log(jnp.asarray(variances))[None, :, None] - levels
    ratio = ratio + 0.3 * jax.random.normal(jax.random.key(1), (5, 9, 3))
    infinite = ratio.at[:, 0].set(-jnp.inf).at[:, -1].set(jnp.inf)
    out = {"level": regimes.level(ratio, variances), "infinite": regimes.level(infinite, variances)}
    hold("regimes.level", out)
