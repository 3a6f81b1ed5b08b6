"""Layers in training and in use: norms against flax and PyTorch's formulas, stacks, state."""

from typing import Any

import chex
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import check_grads, layers, networks, normalization
from jaxgrad.theory import Moments


@pytest.fixture
def batches(key):
    return 3.0 + 2.0 * jax.random.normal(key, (4, 32, 6))


def started(layer, key, shape):
    params, _ = layer.init(key, shape, jnp.float32)
    return params, layers.init_state(layer, params)


# Norms


@pytest.mark.parametrize("spatial", [0, 2])
def test_batch_norm_equals_flax_in_training_and_in_use(key, batches, spatial):
    if spatial:
        batches = batches.reshape(4, 8, 2, 2, 6)
    layer = layers.batch_norm(1e-3, spatial, momentum=0.8)
    params, state = started(layer, key, batches.shape[2:])
    params = {"scale": params["scale"] * 1.7, "shift": params["shift"] - 0.4}
    theirs: Any = flax.linen.BatchNorm(momentum=0.8, epsilon=1e-3)
    variables = theirs.init(key, batches[0], use_running_average=True)
    variables = {
        "params": {"scale": params["scale"], "bias": params["shift"]},
        "batch_stats": variables["batch_stats"],
    }
    for batch in batches:
        out, state = layers.apply_state(layer, params, state, batch, key)
        expected, changed = theirs.apply(
            variables, batch, use_running_average=False, mutable=["batch_stats"]
        )
        variables |= changed
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out, layer.apply(params, batch, None), rtol=1e-6)
    np.testing.assert_allclose(state.mean, variables["batch_stats"]["mean"], rtol=1e-5)
    np.testing.assert_allclose(state.variance, variables["batch_stats"]["var"], rtol=1e-5)
    used, same = layers.apply_state(layer, params, state, batches[0], None)
    expected = theirs.apply(variables, batches[0], use_running_average=True)
    np.testing.assert_allclose(used, expected, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_equal(same, state)


def test_layer_norm_equals_flax_and_keeps_no_state(key, batches):
    layer = layers.layer_norm(1e-6)
    params, state = started(layer, key, (6,))
    assert state == ()
    theirs: Any = flax.linen.LayerNorm(epsilon=1e-6)
    expected = theirs.apply(theirs.init(key, batches[0]), batches[0])
    for mode in (key, None):
        out, _ = layers.apply_state(layer, params, state, batches[0], mode)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_in_use_an_example_does_not_depend_on_the_others(key, batches):
    layer = layers.sequential(layers.dense(5), layers.batch_norm(1e-5), layers.dropout(0.5))
    params, state = started(layer, key, (6,))
    _, state = layers.apply_state(layer, params, state, batches[0], key)
    together, _ = layers.apply_state(layer, params, state, batches[1], None)
    alone, _ = layers.apply_state(layer, params, state, batches[1][:1], None)
    np.testing.assert_allclose(alone, together[:1], rtol=1e-5, atol=1e-6)


def test_running_statistics_come_to_those_of_the_data(key):
    layer = layers.batch_norm(momentum=0.9)
    params, state = started(layer, key, (3,))
    x = jnp.asarray([1.0, -2.0, 0.0])[None, None] + 3.0 * jax.random.normal(key, (300, 64, 3))

    def step(state, batch):
        return layers.apply_state(layer, params, state, batch, key)[1], state

    state, _ = jax.lax.scan(step, state, x)
    # The last ten batches or so count, less 1 / 64 since a batch's own mean is subtracted.
    np.testing.assert_allclose(state.mean, [1, -2, 0], atol=4 * 3 / np.sqrt(64 * 19))
    np.testing.assert_allclose(state.variance, 9 * 63 / 64, rtol=4 * np.sqrt(2 / (64 * 19)))


@pytest.mark.parametrize(
    "layer",
    [layers.batch_norm(1e-5), layers.layer_norm(1e-5), layers.batch_norm()],
    ids=["batch", "layer", "batch, no epsilon"],
)
@pytest.mark.parametrize("mode", ["training", "use"])
def test_gradients_of_norms(key, layer, mode):
    params, state = started(layer, key, (3,))
    weights = jax.random.normal(key, (8, 3))

    def loss(params, x):
        out, _ = layers.apply_state(layer, params, state, x, key if mode == "training" else None)
        return jnp.sum(out * weights + jnp.sin(out))

    assert check_grads(loss, params, 2.0 + weights, argnums=(0, 1)).ok


def test_parts_of_norms(x64, batches):
    found = normalization.statistics(batches[0], (0,))
    np.testing.assert_allclose(found.mean[0], np.mean(batches[0], 0), rtol=1e-6)
    np.testing.assert_allclose(found.variance[0], np.var(batches[0], 0), rtol=1e-5)
    out = normalization.normalize(batches[0], found)
    np.testing.assert_allclose(np.mean(out**2, axis=0), 1, rtol=1e-5)
    old = normalization.Statistics(jnp.zeros(6), jnp.ones(6))
    kept = normalization.update(old, found, 1.0)
    chex.assert_trees_all_equal(kept, old)
    taken = normalization.update(old, found, 0.0)
    np.testing.assert_allclose(taken.mean, found.mean[0], rtol=1e-6)
    constant = jnp.full((4, 2), 7.0)
    zeros = normalization.normalize(constant, normalization.statistics(constant, (0,)))
    np.testing.assert_array_equal(zeros, 0)


# Layers of layers


BLOCK = layers.residual(
    layers.sequential(
        layers.dense(6, w_variance=1.0, b_variance=0.1),
        layers.batch_norm(1e-5),
        layers.activation("tanh"),
        layers.dropout(0.7),
    ),
    scale=0.5,
)


def test_repeat_is_its_copies_one_after_the_other(key, batches):
    stack = layers.repeat(BLOCK, 3)
    params, state = started(stack, key, (6,))
    h, after = layers.apply_state(stack, params, state, batches[0], key)
    expected = batches[0]
    for i in range(3):
        part, kept, one = (jax.tree.map(lambda a: a[i], t) for t in (params, state, after))  # noqa: B023
        drawn, _ = BLOCK.init(jax.random.fold_in(key, i + 1), (6,), jnp.float32)
        chex.assert_trees_all_close(part, drawn, rtol=1e-6)
        key_copy = jax.random.fold_in(key, i)
        expected, kept = layers.apply_state(BLOCK, part, kept, expected, key_copy)
        chex.assert_trees_all_close(kept, one, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)
    plain = stack.apply(params, batches[0], None)
    expected = networks.apply_blocks(params, batches[0], BLOCK)
    np.testing.assert_allclose(plain, expected, rtol=1e-6)


def test_repeat_predicts_as_its_copies():
    block = layers.sequential(layers.dense(6, w_variance=1.5), layers.activation("relu"))
    found = layers.repeat(block, 4).predict(Moments(log_q=0.0))
    expected = Moments(log_q=0.0)
    for _ in range(4):
        expected = block.predict(expected)
    np.testing.assert_allclose(found.log_q, expected.log_q, rtol=1e-12)
    np.testing.assert_allclose(found.log_gradient, expected.log_gradient, rtol=1e-12)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_active_copies_are_the_shorter_stack(key, batches, count):
    params, state = started(layers.repeat(BLOCK, 4), key, (6,))

    def run(stack, params, state, x):
        def loss(params):
            h, after = layers.apply_state(stack, params, state, x, key)
            used = stack.apply(params, x, None)
            return jnp.sum(h**2) + jnp.sum(used**2), (h, used, after)

        return jax.value_and_grad(loss, has_aux=True)(params)

    traced = jax.jit(lambda count, *given: run(layers.repeat(BLOCK, 4, count), *given))
    known = jax.jit(lambda *given: run(layers.repeat(BLOCK, 4, count), *given))
    (value, (h, used, after)), gradient = traced(count, params, state, batches[0])
    chex.assert_trees_all_equal(known(params, state, batches[0])[0][0], value)
    first, rest = (
        jax.tree.map(lambda a, s=s: a[s], (gradient, after))
        for s in (slice(0, count), slice(count, None))
    )
    chex.assert_trees_all_equal(
        rest, jax.tree.map(lambda a: a[count:], (jax.tree.map(jnp.zeros_like, params), state))
    )
    if count == 0:
        np.testing.assert_array_equal(h, batches[0])
        return
    shorter = jax.tree.map(lambda a: a[:count], (params, state))
    found = jax.jit(lambda *given: run(layers.repeat(BLOCK, count), *given))(*shorter, batches[0])
    expected = ((value, (h, used, first[1])), first[0])
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_map_over_active_copies_trains_each_depth(key, batches):
    block = layers.sequential(layers.dense(6, w_variance=1.5), layers.activation("tanh"))
    params, _ = layers.repeat(block, 3).init(key, (6,), jnp.float32)
    depths = jnp.arange(4)
    found = jax.vmap(lambda d: layers.repeat(block, 3, d).apply(params, batches[0], None))(depths)
    for depth in range(1, 4):
        part = jax.tree.map(lambda a: a[:depth], params)  # noqa: B023
        expected = layers.repeat(block, depth).apply(part, batches[0], None)
        np.testing.assert_allclose(found[depth], expected, rtol=1e-5, atol=1e-6)
    first = Moments(log_q=0.3, gaussian=True, fresh=True)
    predicted = [layers.repeat(block, 3, int(d)).predict(first).log_gradient for d in depths]
    expected = [layers.repeat(block, d).predict(first).log_gradient for d in (1, 2, 3)]
    np.testing.assert_allclose(predicted, [0.0, *expected], rtol=1e-12)


def test_layers_without_state_are_as_before(key, batches):
    layer = layers.sequential(layers.dense(4), layers.activation("relu"), layers.dropout(0.5))
    params, state = started(layer, key, (6,))
    assert jax.tree.leaves(state) == []
    out, after = layers.apply_state(layer, params, state, batches[0], key)
    np.testing.assert_array_equal(out, layer.apply(params, batches[0], key))
    assert after == state


def test_depth_does_not_change_the_program(key):
    def size(depth):
        stack = layers.repeat(BLOCK, depth)
        params = jax.eval_shape(lambda: stack.init(key, (6,), jnp.float32)[0])
        state = jax.eval_shape(lambda p: layers.init_state(stack, p), params)
        x = jax.ShapeDtypeStruct((4, 6), jnp.float32)
        step = jax.make_jaxpr(lambda p, s, x: layers.apply_state(stack, p, s, x, key))
        return str(step(params, state, x)).count(" = ")

    assert size(3) == size(500)


def test_jit_and_vmap_agree_with_eager(key, batches):
    stack = layers.repeat(BLOCK, 2)
    params, state = started(stack, key, (6,))

    def run(x, key):
        return layers.apply_state(stack, params, state, x, key)

    keys = jax.random.split(key, 4)
    mapped = jax.jit(jax.vmap(run))(batches, keys)
    one = run(batches[2], keys[2])
    chex.assert_trees_all_close(jax.tree.map(lambda a: a[2], mapped), one, rtol=1e-4, atol=1e-5)


def test_errors(key):
    with pytest.raises(ValueError, match="depth must be at least 1"):
        layers.repeat(BLOCK, 0)
    with pytest.raises(ValueError, match="active must be at most the depth 3, got 4"):
        layers.repeat(BLOCK, 3, active=4)
    with pytest.raises(ValueError, match="active must be at least 0"):
        layers.repeat(BLOCK, 3, active=-1)
    with pytest.raises(ValueError, match=r"block must keep the shape \(5,\)"):
        layers.repeat(layers.dense(4), 2).init(key, (5,), jnp.float32)
    with pytest.raises(ValueError, match="momentum must be at least 0"):
        layers.batch_norm(momentum=-1)
