"""Fixup: scales that do not depend on depth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad.initializers import fixup
from tests.tolerances import within_errors


@pytest.mark.parametrize(("layers", "power"), [(2, -1.0), (3, -0.5)])
def test_fixup(key, layers, power):
    found = fixup(16, layers)
    kernel = found.inner(key, (3, 3, 32, 64))
    within_errors(kernel.ravel() ** 2, 2 / (9 * 64) * 16.0**power)
    assert not np.any(found.last(key, (3, 3, 32, 64)))
    traced = jax.jit(lambda blocks: fixup(blocks, layers).inner(key, (3, 3, 32, 64)))(16)
    np.testing.assert_allclose(traced, kernel, rtol=1e-5)


@pytest.mark.slow
def test_fixup_one_step_moves_the_output_as_much_at_any_depth(key):
    @functools.partial(jax.jit, static_argnums=0)
    def moved(depth):
        init = fixup(depth)
        keys = jax.random.split(key, depth)
        first = jax.vmap(lambda key: init.inner(key, (64, 64)))(keys)
        params = {"first": first, "last": jnp.zeros_like(first)}
        x = jax.random.normal(key, (1, 64))

        def output(params):
            def block(h, layer):
                return h + jax.nn.relu(h @ layer["first"]) @ layer["last"], None

            return jax.lax.scan(block, x, params)[0].mean()

        step = jax.tree.map(lambda p, g: p - 0.01 * g, params, jax.grad(output)(params))
        return abs(output(step) - output(params))

    assert float(moved(256)) == pytest.approx(float(moved(4)), rel=0.5)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: fixup(0), "blocks must be at least 1"),
        (lambda: fixup(4, 1), "layers must be at least 2"),
    ],
)
def test_errors(call, match):
    with pytest.raises((ValueError, TypeError), match=match):
        call()
