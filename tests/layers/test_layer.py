"""The protocol: layers as pytrees, `init` and `apply`, training and use, layers of one's own."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers
from jaxgrad.theory import Moments


def network(w_variance=1.0, rate=0.3, scale=0.5, epsilon=1e-5, features=6):
    block = layers.sequential(
        layers.dense(features, w_variance=w_variance, bias=True, b_variance=w_variance),
        layers.batch_norm(epsilon),
        layers.activation("tanh"),
        layers.dropout(rate),
    )
    return layers.sequential(layers.repeat(layers.residual(block, scale), 3), layers.dense(2))


# Layers as pytrees


def test_hyper_parameters_are_leaves_and_the_rest_is_structure():
    leaves, structure = jax.tree.flatten(network(2.0, 0.1, 0.7, 0.2))
    assert sorted(leaves) == sorted([2.0, 2.0, 0.2, 0.9, 0.1, 0.7, 1.0, 0.0])
    assert structure == jax.tree.structure(network())
    assert hash(structure) == hash(jax.tree.structure(network()))
    assert structure != jax.tree.structure(network(features=7))
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert rebuilt == network(2.0, 0.1, 0.7, 0.2)


@pytest.mark.parametrize(
    "make",
    [
        lambda **o: layers.dense(3, **o),
        lambda **o: layers.mlp(4, 3, "relu", **o),
        lambda **o: layers.convolution(3, (3,), **o),
        lambda kernel_init=None, bias=False: layers.activation("tanh"),
    ],
)
def test_equal_structure_is_equal(make):
    init = jax.nn.initializers.normal()
    for options in ({}, {"bias": True}, {"kernel_init": init}):
        first, second = (jax.tree.structure(make(**options)) for _ in range(2))
        assert first == second
    if make(bias=True) != make():
        assert jax.tree.structure(make(bias=True)) != jax.tree.structure(make())


@layers.layer
class Traced(layers.Layer):
    """Counts how often it is traced."""

    factor: float
    traces: list = layers.static()

    def draw(self, shape, *, key, dtype):
        return {"shift": jax.random.normal(key, shape, dtype)}, shape

    def apply(self, params, state, h, *, key=None):
        self.traces.append(h.shape)
        return self.factor * h + jnp.broadcast_to(params["shift"], h.shape), state


class Traces(list):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


def test_rebuilt_layers_compile_once(key):
    traces = Traces()

    def build(factor, variance, scale):
        branch = layers.sequential(Traced(factor, traces), layers.dense(4, w_variance=variance))
        return layers.residual(branch, scale)

    x = jax.random.normal(key, (3, 4))
    params, _ = layers.init(build(1.0, 1.0, 1.0), (4,), key=key)
    for factor, variance, scale in ((1.0, 1, 1), (2.0, 2.0, 0.5), (3.0, np.float32(4), 2)):
        out, _ = layers.apply(build(factor, variance, scale), params, None, x)
        h = factor * x + params[0]["shift"][None]
        np.testing.assert_allclose(out, x + scale * h @ params[1]["kernel"], rtol=1e-5)
    assert traces == [(3, 4)]
    layers.apply(build(1.0, 1.0, 1.0), params, None, x[:2])
    assert traces == [(3, 4), (2, 4)]


def test_init_compiles_once_and_takes_each_value(key):
    draws = Traces()

    def initializer(key, shape, dtype):
        draws.append(shape)
        return jax.random.normal(key, shape, dtype)

    for variance in (1.0, 4.0):
        layer = layers.dense(3, w_variance=variance, kernel_init=initializer)
        params, _ = layers.init(layer, (2,), key=key)
        expected = jax.random.normal(jax.random.split(key)[0], (2, 3)) * np.sqrt(variance)
        np.testing.assert_allclose(params["kernel"], expected, rtol=1e-6)
    assert draws == [(2, 3)]


@pytest.mark.slow
def test_layers_are_arguments_of_transformations(key):
    x = jax.random.normal(key, (8, 6))
    params, state = layers.init(network(), (6,), key=key)

    def loss(layer):
        return jnp.sum(layers.apply(layer, params, state, x, key=key)[0] ** 2)

    gradient = jax.grad(loss)(network())
    assert jax.tree.structure(gradient) == jax.tree.structure(network())
    scale = gradient.layers[0].block.scale
    up, down = (loss(network(scale=0.5 + step)) for step in (1e-2, -1e-2))
    np.testing.assert_allclose(scale, (up - down) / 2e-2, rtol=1e-2)
    scales = jnp.asarray([0.1, 0.5])
    mapped = jax.vmap(lambda scale: loss(network(scale=scale)))(scales)
    np.testing.assert_allclose(mapped[1], loss(network()), rtol=1e-5)


@pytest.mark.slow
def test_apply_agrees_under_jit_vmap_and_grad(key):
    layer = network()
    params, state = layers.init(layer, (6,), key=key)
    batches, keys = jax.random.normal(key, (2, 8, 6)), jax.random.split(key, 2)

    def run(x, key):
        return layers.apply(layer, params, state, x, key=key)

    mapped = jax.jit(jax.vmap(run))(batches, keys)
    one = jax.tree.map(lambda a: a[1], mapped)
    chex.assert_trees_all_close(one, run(batches[1], keys[1]), rtol=1e-4, atol=1e-5)
    drawn = jax.vmap(lambda key: layers.init(layer, (6,), key=key)[0])(keys)
    one = jax.tree.map(lambda a: a[0], drawn)
    chex.assert_trees_all_close(one, layers.init(layer, (6,), key=keys[0])[0], rtol=1e-6)


# As drawn, in training, in use


def test_three_ways_to_apply(key):
    layer = layers.sequential(layers.batch_norm(), layers.dropout(0.5))
    params, state = layers.init(layer, (4,), key=key)
    x = 3.0 + jax.random.normal(key, (32, 4))
    normalized = (x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)

    drawn, none = layers.apply(layer, params, None, x)
    np.testing.assert_allclose(drawn, normalized, rtol=1e-4, atol=1e-5)
    assert none is None
    drawn, none = layers.apply(layer, params, None, x, key=key)
    assert none is None
    assert 0.3 < np.mean(drawn == 0) < 0.7
    trained, after = layers.apply(layer, params, state, x, key=key)
    np.testing.assert_array_equal(trained, drawn)
    np.testing.assert_allclose(after[0].mean, 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(after[0].variance, 0.9 + 0.1 * x.var(0), rtol=1e-5)
    used, same = layers.apply(layer, params, state, x)
    np.testing.assert_allclose(used, x, rtol=1e-6)
    chex.assert_trees_all_equal(same, state)


def test_layers_without_state_carry_nothing(key):
    layer = layers.sequential(layers.dense(4), layers.activation("relu"), layers.dropout(0.5))
    params, state = layers.init(layer, (6,), key=key)
    assert state == ((), (), ())
    x = jax.random.normal(key, (5, 6))
    out, after = layers.apply(layer, params, state, x, key=key)
    np.testing.assert_array_equal(out, layers.apply(layer, params, None, x, key=key)[0])
    assert after == state


# Layers of one's own


@layers.layer
class Clip(layers.Layer):
    """Carries how often it was applied."""

    bound: float

    homogeneous = False

    def draw(self, shape, *, key, dtype):
        return {}, shape

    def init_state(self, params):
        return {"count": jnp.zeros((), int)}

    def apply(self, params, state, h, *, key=None):
        out = jnp.clip(h, -self.bound, self.bound)
        if state is not None and key is not None:
            state = {"count": state["count"] + 1}
        return out, state


def test_custom_layers_compose(key):
    block = layers.residual(layers.sequential(layers.dense(4), Clip(0.5)))
    stack = layers.sequential(layers.repeat(block, 3), Clip(0.25))
    params, state = layers.init(stack, (4,), key=key)
    x = 10 * jax.random.normal(key, (5, 4))
    for _ in range(2):
        out, state = layers.apply(stack, params, state, x, key=key)
    out, state = layers.apply(stack, params, state, x)
    assert np.max(np.abs(out)) == 0.25
    np.testing.assert_array_equal(state[0][1]["count"], [2, 2, 2])
    assert state[1] == {"count": 2}
    assert not stack.homogeneous
    assert not stack.mixes
    with pytest.raises(NotImplementedError, match="Clip must define predict"):
        stack.predict(Moments(0.0, gaussian=True))


def test_a_layer_must_define_draw_and_apply(key):
    @layers.layer
    class Empty(layers.Layer):
        pass

    with pytest.raises(NotImplementedError, match="Empty must define draw"):
        layers.init(Empty(), (2,), key=key)
    with pytest.raises(NotImplementedError, match="Empty must define apply"):
        Empty().apply({}, None, jnp.ones((1, 2)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        layers.dense(3).features = 4


# Errors


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"layer": "dense"}, TypeError, "layer must be a Layer, got 'dense'"),
        ({"layer": layers.dense}, TypeError, "layer must be a Layer, got <function dense"),
        ({"layer": Clip("1")}, TypeError, "layer must hold numbers.*got '1'.*static()"),
        ({"shape": 3}, TypeError, "shape must be a sequence of whole numbers, got 3"),
        ({"shape": ()}, ValueError, "shape must have at least 1 dimensions"),
        ({"shape": (0,)}, ValueError, r"all of size 1 or more, got \(0,\)"),
        ({"key": 0}, TypeError, "key must be one PRNG key, got 0"),
        ({"key": jax.random.split(jax.random.key(0))}, TypeError, "key must be one PRNG key"),
        ({"dtype": jnp.int32}, TypeError, "dtype must be floating, got int32; pass jnp.float32"),
    ],
)
def test_init_errors(key, change, error, match):
    arguments = {"layer": layers.dense(2), "shape": (3,), "key": key} | change
    with pytest.raises(error, match=match):
        layers.init(arguments.pop("layer"), arguments.pop("shape"), **arguments)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (np.ones((2, 4)), ValueError, r"x of shape \[batch, \*\(4,\)\], got .*\(3, 2\).*pass x"),
        (np.ones(3), ValueError, r"x must have shape \[batch, \*shape\].*got \(3,\)"),
        (np.ones((0, 3)), ValueError, r"no empty dimension, got \(0, 3\)"),
        (np.ones((2, 3), int), TypeError, "x must be floating point, got int"),
        (np.ones((2, 3), bool), TypeError, "x must be floating point, got bool"),
        (np.ones((2, 3), complex), TypeError, "x must be floating point, got complex"),
        (np.full((2, 3), np.nan), ValueError, "x must be finite, got 6 NaN or infinite of 6"),
        (np.array([[1, 2, np.inf]]), ValueError, "x must be finite, got 1 NaN or infinite of 3"),
        ("x", TypeError, "x must be an array of numbers, got '"),
    ],
)
def test_input_errors(key, x, error, match):
    layer = layers.dense(2)
    params, _ = layers.init(layer, (3,), key=key)
    with pytest.raises(error, match=match):
        layers.apply(layer, params, None, x)


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (lambda p, s: (None, s), r"params must have the shapes {'0/kernel': \(3, 2\)"),
        (lambda p, s: ([p[0]], s), r"params must have the shapes .*got {'0/kernel'"),
        (lambda p, s: (({"kernel": jnp.ones(3)}, p[1]), s), r"got {'0/kernel': \(3,\)"),
        (lambda p, s: (p, (s[0], ())), "state must have the shapes {'1/mean': .*got {}; take"),
        (lambda p, s: (p, s[1]), "state must have the shapes .*jaxgrad.layers.init"),
    ],
)
def test_parameters_and_state_that_do_not_fit(key, spoil, match):
    layer = layers.sequential(layers.dense(2), layers.batch_norm())
    params, state = spoil(*layers.init(layer, (3,), key=key))
    with pytest.raises(ValueError, match=match):
        layers.apply(layer, params, state, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=match):
        jax.jit(lambda x: layers.apply(layer, params, state, x))(jnp.ones((2, 3)))


def test_a_key_of_apply_is_one_key(key):
    layer = layers.dropout(0.5)
    with pytest.raises(TypeError, match="key must be one PRNG key"):
        layers.apply(layer, {}, None, jnp.ones((2, 3)), key=jax.random.split(key))
