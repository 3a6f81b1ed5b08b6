"""Fans: by counting, and by the variance that a convolution keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers
from jaxgrad.initializers import Fans


@pytest.mark.parametrize("make", [initializers.normal, initializers.uniform])
def test_given_variance_without_fans(key, make):
    draws = make(0.3)(key, (100_000,))
    assert float(draws.var()) == pytest.approx(0.3, rel=0.02)
    assert float(make(0.0)(key, (5,)).var()) == 0


@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((100, 50), {}, Fans(100, 50)),
        ((3, 3, 16, 32), {}, Fans(144, 288)),
        ((3, 3, 16, 32), {"strides": 2}, Fans(144, 72)),
        ((3, 3, 4, 32), {"groups": 4}, Fans(36, 72)),
        ((3, 3, 1, 64), {"groups": 64}, Fans(9, 9)),
        ((3, 3, 1, 128), {"groups": 64}, Fans(9, 18)),
        ((4, 4, 16, 8), {"strides": 2, "transposed": True}, Fans(64, 128)),
        ((5, 16, 8), {"strides": (5,), "transposed": True}, Fans(16, 40)),
    ],
)
def test_fans_by_counting(shape, options, expected):
    assert initializers.fans(shape, **options) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((3, 3, 8, 16), {}),
        ((3, 3, 2, 16), {"groups": 4}),
        ((3, 3, 1, 16), {"groups": 8}),
        ((4, 4, 8, 16), {"strides": 2}),
        ((4, 4, 8, 16), {"strides": 2, "transposed": True}),
    ],
)
@pytest.mark.parametrize("mode", ["fan_in", "fan_out"])
def test_fans_keep_the_variance_of_a_real_convolution(key, shape, options, mode):
    groups, strides = options.get("groups", 1), options.get("strides", 1)
    transposed = options.get("transposed", False)
    init = initializers.variance_scaling(1.0, mode, **options)

    def convolve(x, kernel):
        if transposed:
            return jax.lax.conv_transpose(
                x, kernel, (strides,) * 2, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (strides,) * 2,
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def one(key):
        key_x, key_kernel, key_v = jax.random.split(key, 3)
        x = jax.random.normal(key_x, (1, 16, 16, shape[2] * groups))
        y, pull = jax.vjp(lambda x: convolve(x, init(key_kernel, shape)), x)
        z = y if mode == "fan_in" else pull(jax.random.normal(key_v, y.shape))[0]
        edge = z.shape[1] // 4
        return jnp.mean(z[:, edge:-edge, edge:-edge] ** 2)

    squares = np.asarray(jax.lax.map(one, jax.random.split(key, 100)), np.float64)
    error = squares.std(ddof=1) / 10
    # Away from the border every output adds up exactly fan_in products of unit variance.
    assert abs(squares.mean() - 1) < 3 * error, (squares.mean(), error)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: initializers.fans((3, 3, 4, 10), groups=4), "groups must divide the 10 output"),
        (lambda: initializers.fans((3, 3, 4, 8), strides=(2,)), "strides must give one number"),
        (lambda: initializers.fans((3, 4, 8), strides=0), "strides must be at least 1, got 0"),
    ],
)
def test_errors(call, match):
    with pytest.raises(ValueError, match=match):
        call()
