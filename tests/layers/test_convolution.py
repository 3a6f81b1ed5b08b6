"""Convolutions: outputs against flax, predictions position by position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxgrad import layers
from jaxgrad.theory import Moments


@pytest.mark.parametrize("padding", ["CIRCULAR", "SAME"])
def test_convolutions_equal_those_of_flax(key, padding):
    layer = layers.convolution(
        5, (3, 5), padding=padding, w_variance=2.0, b_variance=0.3, bias=True
    )
    x = jax.random.normal(key, (2, 6, 7, 3))
    params, shape = layer.draw((6, 7, 3), key=key, dtype=jnp.float32)
    assert shape == (6, 7, 5)
    expected = linen.Conv(5, (3, 5), padding=padding).apply({"params": params}, x)
    out, _ = layers.apply(layer, params, None, x)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_two_axes_and_gaps_position_by_position(key):
    q, gap = np.exp(np.asarray(jax.random.normal(key, (2, 3, 4, 5)), np.float64))
    gap = gap / gap.max()
    start = Moments(np.log(q), np.log(q), 0.0, gap)
    weights = {"w_variance": 1.7, "b_variance": 0.3, "bias": True}
    result = layers.convolution(2, (3, 1), **weights).predict(start)
    moved = [np.roll(q * gap, shift, axis=1) for shift in (-1, 0, 1)]
    mean = sum(np.roll(q, shift, axis=1) for shift in (-1, 0, 1)) / 3
    np.testing.assert_allclose(np.exp(result.log_q), 1.7 * mean + 0.3, rtol=1e-12)
    np.testing.assert_allclose(np.exp(result.log_gradient), 1.7 * mean, rtol=1e-12)
    np.testing.assert_allclose(np.exp(result.log_q) * result.gap, 1.7 * sum(moved) / 3, rtol=1e-12)

    zeros = layers.convolution(2, (3, 5), padding="SAME", w_variance=1.7).predict(start)
    padded = np.pad(q, ((0, 0), (1, 1), (2, 2)))
    mean = sum(padded[:, i : i + 4, j : j + 5] for i in range(3) for j in range(5)) / 15
    np.testing.assert_allclose(np.exp(zeros.log_q), 1.7 * mean, rtol=1e-12)

    alike = Moments(0.0, 0.0, 0.0, 0.4)
    convolved = layers.convolution(2, (3, 3), **weights).predict(alike)
    assert convolved == layers.dense(2, **weights).predict(alike)


def test_errors(key):
    with pytest.raises(ValueError, match=r"kernel_size must have odd sizes.*\(2, 3\)"):
        layers.convolution(3, (2, 3))
    with pytest.raises(ValueError, match="padding must be one of CIRCULAR, SAME; got 'same'"):
        layers.convolution(3, padding="same")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="moments must have 2 spatial axes"):
        layers.convolution(3, padding="SAME").predict(Moments(0.0))
    with pytest.raises(ValueError, match="shape must have 2 spatial axes.*give kernel_size 1"):
        layers.init(layers.convolution(3), (4, 3), key=key)
