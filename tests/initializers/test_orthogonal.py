"""Orthogonal and delta-orthogonal kernels keep norms and mean squares."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers
from jaxgrad.initializers import delta_orthogonal
from tests.convolutions import convolve
from tests.tolerances import within_errors


@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32), (3, 3, 8, 72)])
def test_orthogonal_keeps_the_mean_square(key, shape):
    def one(key):
        key_kernel, key_x = jax.random.split(key)
        kernel = initializers.orthogonal(1.5)(key_kernel, shape).reshape(-1, shape[-1])
        return jnp.mean((jax.random.normal(key_x, (8, kernel.shape[0])) @ kernel) ** 2)

    squares = np.asarray(jax.lax.map(one, jax.random.split(key, 100)), np.float64)
    assert abs(squares.mean() - 2.25) < 3 * squares.std(ddof=1) / 10
    kernel = initializers.orthogonal()(key, shape).reshape(-1, shape[-1])
    singular = np.linalg.svd(np.asarray(kernel, np.float64), compute_uv=False)
    np.testing.assert_allclose(singular, singular[0], rtol=1e-5)


@pytest.mark.parametrize("window", [(3, 3), (5,), ()])
def test_delta_orthogonal_keeps_every_norm(key, window):
    x = jax.random.normal(key, (4, *(6,) * len(window), 8))
    kernel = delta_orthogonal()(key, (*window, 8, 8))
    y = convolve(x, kernel) if window else x @ kernel
    norms = [np.linalg.norm(a.reshape(4, -1), axis=1) for a in (x, y)]
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-5)


@pytest.mark.parametrize(("n_in", "n_out"), [(6, 24), (24, 6)])
def test_delta_orthogonal_keeps_the_mean_square_of_rectangles(key, n_in, n_out):
    def one(key):
        key_x, key_kernel = jax.random.split(key)
        x = jax.random.normal(key_x, (2, 4, n_in))
        return jnp.mean(convolve(x, delta_orthogonal(1.5)(key_kernel, (3, n_in, n_out))) ** 2)

    within_errors(jax.lax.map(one, jax.random.split(key, 100)), 2.25)


def test_delta_orthogonal_keeps_the_dtype(key):
    kernel = delta_orthogonal()(key, (3, 4, 4), jnp.bfloat16)
    assert kernel.dtype == jnp.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: delta_orthogonal(float("nan")), "gain must be finite"),
        (lambda: delta_orthogonal()(jax.random.key(0), (2, 3, 4, 4)), "odd window.*(2, 3, 4, 4)"),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
