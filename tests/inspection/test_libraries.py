"""Models of other libraries are opened without a change."""

import equinox
import haiku
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxgrad.inspection import xray


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.Dense(16)(x))
        return linen.Dense(4)(x)


@pytest.fixture
def x(key):
    return jax.random.normal(key, (6, 8))


def linen_model(key, x):
    model = Linen()
    params = model.init(key, x)
    return model.apply, params, "['params']['Dense_{}']['kernel']"


def haiku_model(key, x):
    model = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([16, 4])(x)))
    return model.apply, model.init(key, x), "['mlp/~/linear_{}']['w']"


def equinox_model(key, x):
    model = equinox.nn.MLP(8, 4, 16, 1, key=key)
    return lambda model, x: jax.vmap(model)(x), model, ".layers[{}].weight"


def nnx_model(key, x):
    rngs = nnx.Rngs(0)
    model = nnx.List([nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 4, rngs=rngs)])
    return lambda m, x: m[1](nnx.relu(m[0](x))), model, "[{}].kernel"


@pytest.mark.slow
@pytest.mark.parametrize("make", [linen_model, haiku_model, equinox_model, nnx_model])
def test_products_are_named_by_their_parameters(key, x, make):
    apply, params, path = make(key, x)

    def loss(params, x):
        return jnp.mean(apply(params, x) ** 2)

    trace = xray(loss, params, x)
    first, relu, second = trace.sites[:3]
    assert relu.operation == "relu"
    for i, site in enumerate((first, second)):
        assert site.operation == "dot_general"
        assert site.parameter.startswith(path.format(i))
        assert site.backward.non_finite == 0
    assert trace.value == pytest.approx(float(loss(params, x)), rel=1e-6)
    # By the library's own means, since its models hold more than arrays.
    gradient = gradient_of(loss, params, x)
    for value, other in zip(jax.tree.leaves(trace.gradient), gradient, strict=True):
        # Compiled in one program and operation by operation, float32 rounds otherwise.
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=1e-7)


def gradient_of(loss, params, x):
    if isinstance(params, nnx.Module):
        return jax.tree.leaves(nnx.grad(loss)(params, x))
    if isinstance(params, equinox.Module):
        return jax.tree.leaves(equinox.filter_grad(loss)(params, x))
    return jax.tree.leaves(jax.grad(loss)(params, x))
