"""Parameters and inputs of a small network."""

import jax
import pytest


@pytest.fixture
def params(key):
    keys = jax.random.split(key, 4)
    return {
        "w1": jax.random.normal(keys[0], (6, 5)),
        "b1": jax.random.normal(keys[1], (5,)),
        "w2": jax.random.normal(keys[2], (5, 3)),
        "b2": jax.random.normal(keys[3], (3,)),
    }


@pytest.fixture
def x(key):
    return jax.random.normal(jax.random.fold_in(key, 1), (7, 6))
