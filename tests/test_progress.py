"""Functions that may take long call `progress(done, total)`."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxgrad
from jaxgrad import inspection


def loss(weights, x):
    x, _ = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, weights)
    return jnp.mean(x**2)


WEIGHTS, X = 0.5 * jnp.stack(6 * [jnp.eye(4)]), jnp.ones((2, 4))


def xray(progress):
    jaxgrad.xray(loss, WEIGHTS, X, progress=progress)


def prescribe(progress):
    jaxgrad.prescribe(jaxgrad.xray(loss, WEIGHTS, X), progress=progress)


def audit(progress):
    jaxgrad.audit(lambda x: jax.nn.relu(jnp.logaddexp(x, 1.0)), X, progress=progress)


def audit_of_nothing(progress):
    jaxgrad.audit(jnp.sin, X, progress=progress)


def coordinate_check(progress):
    def make(width, depth, key):
        w = jax.random.normal(key, (width, width))
        return w, lambda w, x: jnp.mean((x @ w) ** 2), jnp.ones((2, width))

    options = {"widths": (2, 4), "depths": (1, 2), "optimizer": optax.sgd(0.1), "seeds": 3}
    inspection.coordinate_check(make, key=jax.random.key(0), progress=progress, **options)


@pytest.mark.parametrize(
    ("function", "total"),
    [(xray, 3), (prescribe, 5), (audit, 2), (audit_of_nothing, 0), (coordinate_check, 4)],
)
def test_progress_goes_from_nothing_to_all(function, total):
    calls = []
    function(lambda *call: calls.append(call))
    assert calls == [(done, total) for done in range(total + 1)]
    with pytest.raises(TypeError, match="progress must be callable, got 3; pass a function"):
        function(3)
