"""Entry points compile once for each structure of the layer and shapes of the arrays."""

import jax
import jax.numpy as jnp
import pytest

from jaxgrad import layers, propagation
from jaxgrad.theory import Moments
from tests.propagation import cases

TRACES = []


@layers.layer
class Counted(layers.Layer):
    """Multiplies by a factor and records each trace of `apply` and of `predict`."""

    factor: float

    homogeneous = True

    def draw(self, shape, *, key, dtype):
        return {"unused": jnp.zeros(shape, dtype)}, shape

    def apply(self, params, state, h, *, key=None):
        TRACES.append("apply")
        return self.factor * h, state

    def predict(self, moments):
        TRACES.append("predict")
        return moments


def blocks(w_variance):
    return layers.repeat(
        layers.sequential(layers.dense(8, w_variance=w_variance), Counted(float(w_variance))), 3
    )


CALLS = {
    "probe": lambda network, params, x, key: propagation.probe(network, params, x, key=key),
    "probe with a tangent": lambda network, params, x, key: propagation.probe(
        network, params, x, key=key, tangent=x, saturation=0.1
    ),
    "exact": lambda network, params, x, key: propagation.exact(network, params, x, key=key),
    "exact of some depths": lambda network, params, x, key: propagation.exact(
        network, params, x, key=key, depths=(1, 3), loss=jnp.sum
    ),
    "predict": lambda network, params, x, key: propagation.predict(network, Moments(0.5)),
    "predict from inputs": lambda network, params, x, key: propagation.predict(
        network, x, pairs=True
    ),
    "lyapunov": lambda network, params, x, key: propagation.lyapunov(network, params, x, key=key),
    "singular values": lambda network, params, x, key: propagation.singular_values(
        network, params, x
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_traces_nothing(key, name):
    call = CALLS[name]
    params = cases.draw(blocks(1.0), key, (8,))
    x = jax.random.normal(key, (4, 8))
    call(blocks(1.0), params, x, key)
    count = len(TRACES)
    assert count > 0
    # A layer built anew, other variances, parameters, inputs and another key.
    twice = jax.tree.map(lambda a: 2 * a, params)
    call(blocks(2.5), twice, 2 * x, jax.random.fold_in(key, 1))
    call(blocks(3), params, x, key)
    assert len(TRACES) == count
    if name != "predict":
        call(blocks(1.0), params, jnp.concatenate([x, x]), key)
    else:
        propagation.predict(blocks(1.0), Moments(jnp.zeros(2)))
    assert len(TRACES) > count or name == "predict from inputs"


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_a_second_call_compiles_nothing(key, name):
    """An mlp has paths of its own."""
    call = CALLS[name]

    def run(w_variance):
        network = layers.mlp(8, 3, "relu", w_variance=w_variance)
        params = cases.draw(network, key, (8,))
        call(network, params, jnp.ones((4, 8)), key)

    run(1.0)
    with jax.log_compiles(False), count_compilations() as compilations:
        run(2.0)
    assert not compilations


class count_compilations:  # noqa: N801
    """Collects the events of JAX that stand for a trace or a compilation."""

    def __enter__(self):
        self.events = []
        jax.monitoring.register_event_duration_secs_listener(self.listen)
        return self.events

    def listen(self, event, duration, **_):
        if "compil" in event or "trace" in event:
            self.events.append(event)

    def __exit__(self, *_):
        jax.monitoring.clear_event_listeners()
