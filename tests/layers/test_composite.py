"""Layers of layers: sequences, residual branches, stacks by one scan, active copies."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import layers
from jaxgrad.theory import Moments

BLOCK = layers.residual(
    layers.sequential(
        layers.dense(6, b_variance=0.1, bias=True),
        layers.batch_norm(1e-5),
        layers.activation("tanh"),
        layers.dropout(0.3),
    ),
    scale=0.5,
)
START = Moments(0.3, gaussian=True, fresh=True)


@pytest.fixture
def x(key):
    return 3.0 + 2.0 * jax.random.normal(key, (32, 6))


def copy_of(tree, index):
    return jax.tree.map(lambda a: a[index], tree)


@pytest.mark.slow
def test_repeat_is_its_copies_one_after_the_other(key, x):
    stack = layers.repeat(BLOCK, 3)
    params, state = layers.init(stack, (6,), key=key)
    h, after = layers.apply(stack, params, state, x, key=key)
    drawn, _ = layers.apply(stack, params, None, x, key=key)
    np.testing.assert_allclose(drawn, h, rtol=1e-6)
    expected = x
    for i in range(3):
        part = copy_of(params, i)
        alone, _ = layers.init(BLOCK, (6,), key=jax.random.fold_in(key, i + 1))
        chex.assert_trees_all_close(part, alone, rtol=1e-6)
        expected, part_state = layers.apply(
            BLOCK, part, copy_of(state, i), expected, key=jax.random.fold_in(key, i)
        )
        chex.assert_trees_all_close(part_state, copy_of(after, i), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(h, expected, rtol=1e-4, atol=1e-5)


def test_deeper_stacks_begin_with_the_shallower(key):
    block = layers.sequential(layers.dense(4, b_variance=1.0, bias=True))
    deep, shallow = (layers.init(layers.repeat(block, d), (4,), key=key)[0] for d in (5, 3))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b), deep, shallow)
    assert len({float(a) for a in deep[0]["kernel"][:, 0, 0]}) == 5


def test_repeat_predicts_as_its_copies():
    block = layers.sequential(layers.dense(6, w_variance=1.5), layers.activation("relu"))
    result = layers.repeat(block, 4).predict(Moments(log_q=0.0))
    (each,) = layers.repeat(block, 4).predict_each(Moments(log_q=0.0))
    expected = Moments(log_q=0.0)
    for i in range(4):
        expected = block.predict(expected)
        np.testing.assert_allclose(each.log_q[i], expected.log_q, rtol=1e-12)
        np.testing.assert_allclose(each.log_gradient[i], expected.log_gradient, rtol=1e-12)
    assert (result.log_q, result.log_gradient) == (each.log_q[-1], each.log_gradient[-1])


def test_a_prediction_must_keep_the_kind_of_moments():
    block = layers.residual(layers.dense(3))
    with pytest.raises(ValueError, match="branch must have weights in every path"):
        layers.repeat(layers.residual(block), 2).predict(Moments(0.0))

    @layers.layer
    class Alternate(layers.Layer):
        def predict(self, moments):
            return Moments(moments.log_q, gaussian=not moments.gaussian)

    with pytest.raises(ValueError, match="block must keep the kind of moments"):
        layers.repeat(Alternate(), 2).predict(Moments(0.0, jnp.zeros(()), jnp.zeros(())))


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1, 3])
@jax.enable_x64(True)
def test_active_copies_are_the_shorter_stack(key, x, count):
    # In float64, since the gradient of a bias before batch norm is zero but for rounding.
    x = x.astype(jnp.float64)
    params, state = layers.init(layers.repeat(BLOCK, 4), (6,), key=key, dtype=jnp.float64)

    @jax.jit
    def run(stack, params, state):
        def loss(params):
            h, after = layers.apply(stack, params, state, x, key=key)
            drawn, _ = layers.apply(stack, params, None, x)
            return jnp.sum(h**2) + jnp.sum(drawn**2), (h, drawn, after)

        return jax.value_and_grad(loss, has_aux=True)(params)

    # The count is a leaf, so that all of them share a program.
    (value, (h, drawn, after)), gradient = run(layers.repeat(BLOCK, 4, active=count), params, state)
    first, rest = (
        copy_of((gradient, after), index) for index in (slice(0, count), slice(count, None))
    )
    unchanged = jax.tree.map(lambda a: a[count:], (jax.tree.map(jnp.zeros_like, params), state))
    chex.assert_trees_all_equal(rest, unchanged)
    if count == 0:
        np.testing.assert_array_equal(h, x)
        return
    shorter = copy_of((params, state), slice(count))
    result = run(layers.repeat(BLOCK, count), *shorter)
    expected = ((value, (h, drawn, first[1])), first[0])
    chex.assert_trees_all_close(result, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_map_over_active_copies_gives_each_depth(key, x):
    block = layers.sequential(layers.dense(6, w_variance=1.5), layers.activation("tanh"))
    params, _ = layers.init(layers.repeat(block, 3), (6,), key=key)
    depths = jnp.arange(4)

    def run(depth):
        return layers.apply(layers.repeat(block, 3, active=depth), params, None, x)[0]

    mapped = jax.vmap(run)(depths)
    np.testing.assert_allclose(mapped[0], x)
    for depth in range(1, 4):
        part = copy_of(params, slice(depth))
        expected, _ = layers.apply(layers.repeat(block, depth), part, None, x)
        np.testing.assert_allclose(mapped[depth], expected, rtol=1e-5, atol=1e-6)
    predicted = [layers.repeat(block, 3, active=int(d)).predict(START).log_gradient for d in depths]
    expected = [layers.repeat(block, d).predict(START).log_gradient for d in (1, 2, 3)]
    np.testing.assert_allclose(predicted, [0.0, *expected], rtol=1e-12)


def test_depth_does_not_change_the_program(key):
    def size(depth):
        stack = layers.repeat(BLOCK, depth)
        params, state = jax.eval_shape(lambda: layers.init(stack, (6,), key=key))
        x = jax.ShapeDtypeStruct((4, 6), jnp.float32)
        program = jax.make_jaxpr(lambda p, s, x: layers.apply(stack, p, s, x, key=key))
        return str(program(params, state, x)).count(" = ")

    assert size(3) == size(500)


def test_a_stack_computes_in_the_dtype_of_its_parameters(key):
    stack = layers.repeat(layers.dense(4), 2)
    params, _ = layers.init(stack, (4,), key=key)
    assert layers.apply(stack, params, None, jnp.ones((2, 4), jnp.bfloat16))[0].dtype == jnp.float32


def test_sequences_draw_and_compute_in_order(key, x):
    parts = layers.dense(3), layers.activation("relu"), layers.dropout(0.5)
    network = layers.sequential(*parts)
    params, state = layers.init(network, (6,), key=key)
    alone, _ = layers.init(parts[0], (6,), key=jax.random.fold_in(key, 0))
    np.testing.assert_allclose(params[0]["kernel"], alone["kernel"], rtol=1e-6)
    out, _ = layers.apply(network, params, state, x, key=key)
    h = jax.nn.relu(x @ params[0]["kernel"])
    expected, _ = layers.apply(parts[2], {}, None, h, key=jax.random.fold_in(key, 2))
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layers.apply(layers.sequential(), (), (), x)[0], x)


def test_a_residual_prediction_in_closed_form():
    branch = layers.dense(4, w_variance=0.5, b_variance=0.2, bias=True)
    start = Moments(np.log(1.2), np.log(3.0), 0.3, 0.4)
    result = layers.residual(branch, -0.7).predict(start)
    added = 0.5 * 1.2 + 0.2
    q = 1.2 + 0.49 * added
    np.testing.assert_allclose(np.exp(result.log_q), q, rtol=1e-12)
    np.testing.assert_allclose(np.exp(result.log_gradient), 3.0 * (1 + 0.49 * 0.5), rtol=1e-12)
    np.testing.assert_allclose(result.mean, 0.3 * np.sqrt(1.2 / q), rtol=1e-12)
    # Biases are common to two examples, so that only the rest of the branch differs.
    np.testing.assert_allclose(result.gap * q, (1.2 + 0.49 * 0.5 * 1.2) * 0.4, rtol=1e-12)
    assert (result.gaussian, result.fresh) == (False, False)
    # Of two parts with means, the product of the means counts too.
    branch = layers.sequential(layers.dense(4), layers.activation("relu"))
    added = branch.predict(start)
    result = layers.residual(branch, 2.0).predict(start)
    cross = 2 * 2.0 * 0.3 * added.mean * np.exp((np.log(1.2) + added.log_q) / 2)
    np.testing.assert_allclose(
        np.exp(result.log_q), 1.2 + 4 * np.exp(added.log_q) + cross, rtol=1e-12
    )


def test_errors(key):
    with pytest.raises(ValueError, match="depth must be at least 1"):
        layers.repeat(BLOCK, 0)
    with pytest.raises(ValueError, match="active must be at most the depth 3, got 4"):
        layers.repeat(BLOCK, 3, active=4)
    with pytest.raises(ValueError, match="active must be at least 0"):
        layers.repeat(BLOCK, 3, active=-1)
    with pytest.raises(ValueError, match=r"block must keep the shape \(5,\)"):
        layers.init(layers.repeat(layers.dense(4), 2), (5,), key=key)
    with pytest.raises(ValueError, match="block must have parameters"):
        layers.init(layers.repeat(layers.dropout(0.5), 2), (5,), key=key)
    with pytest.raises(TypeError, match="layers must be a Layer, got \\["):
        layers.sequential([layers.dense(3)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="block must be a Layer"):
        layers.repeat(lambda h: h, 3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="branch must be a Layer"):
        layers.residual(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="scale must be one number"):
        layers.residual(layers.dense(3), np.ones(2))
    with pytest.raises(ValueError, match="branch must keep the shape"):
        layers.init(layers.residual(layers.dense(3)), (4,), key=key)
    for branch in (layers.dropout(0.5), layers.residual(layers.dense(3))):
        with pytest.raises(ValueError, match="branch must have weights in every path"):
            layers.residual(branch).predict(START)
