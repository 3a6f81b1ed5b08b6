"""Dropout by its rate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers
from jaxgrad.layers._dropout import drop_units
from jaxgrad.theory import Moments


def test_dropout_needs_a_key(key):
    layer = layers.dropout(0.75)
    x = jnp.ones((200, 300))
    np.testing.assert_array_equal(layers.apply(layer, {}, None, x)[0], x)
    out, _ = layers.apply(layer, {}, None, x, key=key)
    assert set(np.unique(out)) == {0.0, 4.0}
    assert abs(float(out.mean()) - 1) < 3 * np.sqrt(3 / x.size)
    stack = layers.sequential(layer, layer)
    out, _ = layers.apply(stack, ({}, {}), None, x, key=key)
    assert set(np.unique(out)) == {0.0, 16.0}


def test_rate_is_the_share_of_zeros_and_may_be_traced(key):
    x = jnp.ones((100, 100))
    rates = jnp.asarray([0.0, 0.1, 0.6])
    out = jax.vmap(lambda rate: drop_units(x, rate, key=key))(rates)
    share = np.mean(np.asarray(out) == 0, axis=(1, 2))
    np.testing.assert_allclose(share, rates, atol=3 * 0.5 / 100)
    np.testing.assert_array_equal(out[0], x)
    np.testing.assert_allclose(np.max(out, axis=(1, 2)), 1 / (1 - rates), rtol=1e-6)
    mapped = jax.vmap(lambda rate: layers.apply(layers.dropout(rate), {}, None, x, key=key)[0])(
        rates
    )
    np.testing.assert_allclose(mapped, out, rtol=1e-6)


def test_prediction_in_closed_form():
    result = layers.dropout(0.2).predict(Moments(0.3, 0.1, 0.5, 0.4, gaussian=True, fresh=True))
    np.testing.assert_allclose(result.log_q, 0.3 - np.log(0.8), rtol=1e-12)
    np.testing.assert_allclose(result.log_gradient, 0.1 - np.log(0.8), rtol=1e-12)
    np.testing.assert_allclose(result.mean, 0.5 * np.sqrt(0.8), rtol=1e-12)
    np.testing.assert_allclose(result.gap, 0.2 + 0.8 * 0.4, rtol=1e-12)
    assert (result.gaussian, result.fresh) == (False, True)


@pytest.mark.parametrize(
    ("rate", "match"),
    [
        (1.0, "rate must be below 1, got 1.0"),
        (1.5, "rate must be below 1"),
        (-0.1, "rate must be at least 0"),
        (np.ones(2), "rate must be one number"),
    ],
)
def test_errors(rate, match):
    with pytest.raises(ValueError, match=match):
        layers.dropout(rate)
    with pytest.raises(ValueError, match=match):
        drop_units(jnp.ones(3), rate, key=None)
