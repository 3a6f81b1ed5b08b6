import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxgrad import layers, networks, propagation
from jaxgrad.theory import Moments
from tests.tolerances import rtol

WIDTH, DEPTH, SEEDS, BATCH = 256, 4, 10, 16
START = Moments(0.0, 0.0, 0.0, None, gaussian=True, fresh=True)


def predicted(block, start=START, depth=DEPTH):
    with jax.enable_x64(True):
        step, found = jax.jit(block.predict), [start]
        for _ in range(depth):
            found.append(step(found[-1]))
        return jax.tree.map(np.asarray, found[1:])


def measured(block, shape=(WIDTH,), batch=BATCH, seeds=SEEDS, depth=DEPTH, outputs=False):
    """`Blocks` over seeds, and outputs if asked for, from independent standard normal inputs."""

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 3)
        params = networks.init_blocks(keys[0], block, shape, depth)
        x = jax.random.normal(keys[1], (batch, *shape))
        found = propagation.probe_blocks(params, x, keys[2], block)
        return (found, networks.apply_blocks(params, x, block, key=keys[2])) if outputs else found

    return run(jax.random.split(jax.random.key(7), seeds))


def agrees(log_values, log_expected, allowance):
    """Means of ratios to what is expected are 1 within 3 standard errors and an allowance."""
    ratio = np.exp(np.asarray(log_values, np.float64) - np.asarray(log_expected))
    error = ratio.std(axis=0, ddof=1) / np.sqrt(len(ratio))
    away = np.abs(ratio.mean(axis=0) - 1)
    assert np.all(away < 3 * error + allowance), (ratio.mean(axis=0), error)


def moments_of(found, name):
    return np.stack([np.asarray(getattr(moments, name)) for moments in found])


# What theory says, against networks

N = WIDTH
BLOCKS = {
    "sequence": layers.sequential(
        layers.activation("tanh"),
        layers.dense(N, 1.5, 0.1),
        layers.activation("randomized_leaky_relu"),
        layers.layer_norm(0.1),
        layers.dense(N, 2.5),
    ),
    "means": layers.sequential(
        layers.dense(N),
        layers.activation("relu"),
        layers.residual(layers.sequential(layers.dense(N, 2.0), layers.activation("relu")), 0.8),
        layers.dropout(0.5),
        layers.layer_norm(),
    ),
    "residual": layers.residual(
        layers.sequential(
            layers.layer_norm(),
            layers.dense(N, 2.0),
            layers.activation("gelu"),
            layers.dense(N, 1.5),
        ),
        0.7,
    ),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_predictions_hold(name):
    found, expected = measured(BLOCKS[name]), predicted(BLOCKS[name])
    # Beyond chance a mean is off by a few times depth / width.
    allowance = 2 * np.arange(1, DEPTH + 1) / N
    agrees(found.log_signal, moments_of(expected, "log_q"), allowance)
    agrees(found.log_gradient, moments_of(expected, "log_gradient"), allowance)


def apart(outputs):
    """`q (1 - c)` of each seed, from all pairs of examples."""
    h = np.asarray(outputs, np.float64).reshape(len(outputs), outputs.shape[1], -1)
    square = np.mean(h**2, axis=(1, 2))
    total = np.mean(h.sum(axis=1) ** 2, axis=1)
    batch = h.shape[1]
    return square - (total / batch - square) / (batch - 1)


def test_gaps_hold():
    block = layers.sequential(
        layers.dense(N, 0.5, 0.2),
        layers.batch_norm(),
        layers.dense(N, 0.5, 0.6),
        layers.residual(
            layers.sequential(
                layers.activation("relu"), layers.dense(N, 2.0, 0.1), layers.activation("relu")
            ),
            0.5,
        ),
        layers.dropout(0.7),
        layers.layer_norm(),
    )
    found, outputs = measured(block, batch=N, seeds=6, outputs=True)
    expected = predicted(block, dataclasses.replace(START, gap=1.0))
    # The batch is finite, too.
    allowance = 4 * np.arange(1, DEPTH + 1) / N
    agrees(found.log_gradient, moments_of(expected, "log_gradient"), allowance)
    log_apart = expected[-1].log_q + np.log(expected[-1].gap)
    agrees(np.log(apart(outputs)), log_apart, allowance[-1])
    assert 0.02 < expected[-1].gap < 0.9


@pytest.mark.parametrize(
    ("name", "growth"), [("relu", np.pi / (np.pi - 1)), ("tanh", 1.177807), ("gelu", 1.318845)]
)
def test_growth_under_batch_norm_of_a_large_batch(name, growth):
    block = layers.sequential(layers.dense(4, 3.0), layers.batch_norm(), layers.activation(name))
    logs = moments_of(predicted(block, dataclasses.replace(START, gap=0.4), 3), "log_gradient")
    np.testing.assert_allclose(np.exp(np.diff(logs)), growth, rtol=4e-7)


def test_growth_under_batch_norm_of_a_small_batch():
    batch = 8
    block = layers.sequential(layers.dense(512), layers.batch_norm())
    found = measured(block, (512,), batch, seeds=16)
    layer = np.arange(1, DEPTH + 1)
    agrees(found.log_gradient, layer * np.log((batch - 2) / (batch - 3)), 4 * layer / 512)


@pytest.mark.parametrize(("w_variance", "b_variance"), [(7.0, 0.0), (1.5, 0.4)])
def test_growth_under_layer_norm(w_variance, b_variance):
    block = layers.sequential(
        layers.dense(4, w_variance, b_variance), layers.layer_norm(), layers.activation("relu")
    )
    logs = moments_of(predicted(block, depth=3), "log_gradient")
    chi = w_variance * 0.5 / (w_variance * 0.5 + b_variance)
    np.testing.assert_allclose(np.exp(np.diff(logs)), chi, rtol=1e-12)


def test_growth_of_residual_networks():
    def branch(w_variance, scale=1.0):
        inner = layers.sequential(layers.activation("relu"), layers.dense(4, w_variance))
        return layers.residual(inner, scale)

    logs = moments_of(predicted(branch(0.6), depth=20), "log_gradient")
    np.testing.assert_allclose(logs[-1], 20 * np.log1p(0.3), rtol=1e-12)
    one = predicted(branch(0.6, 10_000**-0.5), depth=1)[0]
    np.testing.assert_allclose(10_000 * one.log_gradient, 0.3, rtol=1e-4)


def test_layers_of_ones_own():
    def absolute():
        return layers.Layer(
            init=lambda key, shape, dtype: ({}, shape),
            apply=lambda params, h, key: jnp.abs(h),
            predict=lambda m: dataclasses.replace(m, mean=jnp.sqrt(2 / jnp.pi), gaussian=False),
            homogeneous=True,
        )

    block = layers.sequential(layers.dense(N, 1.5), absolute(), layers.layer_norm())
    found = measured(block)
    expected = moments_of(predicted(block), "log_gradient")
    np.testing.assert_allclose(np.diff(expected), -np.log(1 - 2 / np.pi), rtol=1e-6)
    agrees(found.log_gradient, expected, 4 * np.arange(1, DEPTH + 1) / N)


# Convolutions


def test_zero_padding_fades_at_the_borders():
    block = layers.sequential(
        layers.convolution(200, (3,), "zero", 2.5, 0.1), layers.activation("relu")
    )
    start = dataclasses.replace(START, log_q=np.zeros(6), log_gradient=np.zeros(6))
    expected = predicted(block, start)
    found, outputs = measured(block, (6, 200), batch=4, outputs=True)
    allowance = 2 * DEPTH / 200
    agrees(np.log(np.mean(outputs**2, axis=(1, 3))), expected[-1].log_q, allowance)
    assert expected[-1].log_q[2] - expected[-1].log_q[0] > 0.5
    over_positions = np.log(np.mean(np.exp(moments_of(expected, "log_gradient")), axis=1))
    agrees(found.log_gradient, over_positions, allowance)
    np.testing.assert_allclose(expected[-1].log_q, expected[-1].log_q[::-1], rtol=1e-12)


def test_two_axes_and_gaps_position_by_position(key):
    q, gap = np.exp(np.asarray(jax.random.normal(key, (2, 3, 4, 5)), np.float64))
    gap = gap / gap.max()
    start = Moments(np.log(q), np.log(q), 0.0, gap)
    (found,) = predicted(layers.convolution(2, (3, 1), "circular", 1.7, 0.3), start, 1)
    moved = [np.roll(q * gap, shift, axis=1) for shift in (-1, 0, 1)]
    mean = sum(np.roll(q, shift, axis=1) for shift in (-1, 0, 1)) / 3
    np.testing.assert_allclose(np.exp(found.log_q), 1.7 * mean + 0.3, rtol=1e-12)
    np.testing.assert_allclose(np.exp(found.log_gradient), 1.7 * mean, rtol=1e-12)
    np.testing.assert_allclose(np.exp(found.log_q) * found.gap, 1.7 * sum(moved) / 3, rtol=1e-12)
    (zero,) = predicted(layers.convolution(2, (3, 5), "zero", 1.7), start, 1)
    padded = np.pad(q, ((0, 0), (1, 1), (2, 2)))
    mean = sum(padded[:, i : i + 4, j : j + 5] for i in range(3) for j in range(5)) / 15
    np.testing.assert_allclose(np.exp(zero.log_q), 1.7 * mean, rtol=1e-12)
    alike = Moments(0.0, 0.0, 0.0, 0.4)
    convolved = layers.convolution(2, (3, 3), "circular", 1.7, 0.3).predict(alike)
    assert convolved == layers.dense(2, 1.7, 0.3).predict(alike)


def test_batch_norm_over_positions():
    block = layers.sequential(
        layers.convolution(160, (3,), "zero", 2.0), layers.batch_norm(spatial=1)
    )
    start = Moments(np.zeros(4), np.zeros(4), np.zeros(4), np.ones(4), True, True)
    expected = predicted(block, start, 3)
    found, outputs = measured(block, (4, 160), batch=64, depth=3, seeds=6, outputs=True)
    agrees(np.log(np.mean(outputs**2, axis=(1, 3))), expected[-1].log_q, 6 / 160)
    over_positions = np.log(np.mean(np.exp(moments_of(expected, "log_gradient")), axis=1))
    agrees(found.log_gradient, over_positions, 6 / 160)
    assert np.ptp(expected[-1].log_q) > 0.4


# The functions themselves, against flax


@pytest.mark.parametrize("padding", ["circular", "zero"])
def test_convolutions_equal_those_of_flax(key, padding):
    layer = layers.convolution(5, (3, 5), padding, 2.0, 0.3)
    x = jax.random.normal(key, (2, 6, 7, 3))
    params, shape = layer.init(key, (6, 7, 3), jnp.float32)
    assert shape == (6, 7, 5)
    names = {"circular": "CIRCULAR", "zero": "SAME"}
    expected = linen.Conv(5, (3, 5), padding=names[padding]).apply({"params": params}, x)
    np.testing.assert_allclose(layer.apply(params, x, None), expected, rtol=1e-5, atol=1e-5)


def test_dense_layers_and_norms_equal_those_of_flax(key):
    x = 3 + 2 * jax.random.normal(key, (6, 4, 5))
    dense = layers.dense(7, 2.0, 0.5)
    params, _ = dense.init(key, (4, 5), jnp.float32)
    expected = linen.Dense(7).apply({"params": params}, x)
    np.testing.assert_allclose(dense.apply(params, x, None), expected, rtol=1e-5, atol=1e-5)

    params = {"scale": jnp.arange(1.0, 6.0), "shift": jnp.arange(5.0)}
    theirs = {"params": {"scale": params["scale"], "bias": params["shift"]}}
    expected = linen.LayerNorm(epsilon=0.3).apply(theirs, x)
    found = layers.layer_norm(0.3).apply(params, x, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    norm = linen.BatchNorm(use_running_average=False, epsilon=0.3)
    statistics = {"batch_stats": {"mean": jnp.zeros(5), "var": jnp.ones(5)}}
    expected, _ = norm.apply(theirs | statistics, x, mutable=["batch_stats"])
    found = layers.batch_norm(0.3, spatial=1).apply(params, x, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_what_is_constant_becomes_zero(key):
    x = jnp.ones((3, 4))
    for layer in (layers.layer_norm(), layers.batch_norm()):
        params, _ = layer.init(key, (4,), jnp.float32)
        value, slope = jax.value_and_grad(lambda x, f=layer.apply, p=params: f(p, x, None).sum())(x)
        assert value == 0
        assert np.all(np.isfinite(slope))


def test_dropout_needs_a_key(key):
    layer = layers.dropout(0.25)
    x = jnp.ones((200, 300))
    np.testing.assert_array_equal(layer.apply({}, x, None), x)
    kept = layer.apply({}, x, key)
    assert set(np.unique(kept)) == {0.0, 4.0}
    assert abs(float(kept.mean()) - 1) < 3 * np.sqrt(3 / x.size)
    stack = layers.sequential(layer, layer)
    assert set(np.unique(stack.apply(((), ()), x, key))) == {0.0, 16.0}


@pytest.mark.parametrize("bias", [0.0, 0.7])
def test_initial_variances(key, bias):
    layer = layers.convolution(400, (3, 3), w_variance=1.7, b_variance=bias)
    params, _ = layer.init(key, (5, 5, 30), jnp.float32)
    assert params["kernel"].shape == (3, 3, 30, 400)
    size = params["kernel"].size
    assert abs(params["kernel"].var() * 270 / 1.7 - 1) < 3 * np.sqrt(2 / size)
    assert ("bias" in params) == (bias > 0)
    if bias:
        assert abs(params["bias"].var() / bias - 1) < 3 * np.sqrt(2 / 400)


# Stacks


def test_blocks_equal_the_plain_network(key):
    name = "tanh"
    block = layers.sequential(layers.dense(10, b_variance=0.4), layers.activation(name))
    params = networks.init_blocks(key, block, (10,), 6)
    plain = {
        "first": jax.tree.map(lambda a: a[0], params[0]),
        "hidden": jax.tree.map(lambda a: a[1:], params[0]),
    }
    x, tangent = jax.random.normal(key, (2, 4, 10))
    np.testing.assert_allclose(
        networks.apply_blocks(params, x, block), networks.apply(plain, x, name), rtol=1e-5
    )

    @jax.jit
    def both(x, tangent):
        moved = tangent @ params[0]["kernel"][0]
        return (
            propagation.probe_blocks(params, x, key, block, tangent=tangent),
            propagation.probe(plain, x, key, name, tangent=moved),
        )

    found, expected = both(x, tangent)
    np.testing.assert_allclose(found.log_gradient, expected.log_gradient, atol=1e-5)
    np.testing.assert_allclose(found.log_signal, expected.signal.log_activation, atol=1e-5)


def test_the_tangent_is_the_derivative_of_the_whole_batch(key):
    block = layers.sequential(layers.dense(5), layers.batch_norm(), layers.dropout(0.9))
    params = networks.init_blocks(key, block, (5,), 3)
    x, tangent = 1 + jax.random.normal(key, (2, 4, 5))
    found = propagation.probe_blocks(params, x, key, block, tangent=tangent)
    draws = jax.random.split(key)[1]
    _, moved = jax.jvp(
        lambda x: networks.apply_blocks(params, x, block, key=draws), (x,), (tangent,)
    )
    np.testing.assert_allclose(found.log_norm[-1], jnp.log(jnp.mean(moved**2, axis=1)), atol=1e-4)
    np.testing.assert_allclose(found.log_gradient[-1], jnp.log(jnp.mean(moved**2)), atol=1e-4)


@pytest.mark.parametrize(("w_variance", "residual"), [(0.5, False), (1.0, True)])
def test_ten_thousand_layers_stay_finite(key, w_variance, residual):
    block = layers.sequential(layers.activation("relu"), layers.dense(32, w_variance))
    block = layers.residual(block) if residual else block
    params = networks.init_blocks(key, block, (32,), 10_000)
    x = 1e-6 * jax.random.normal(key, (2, 32)) * jnp.asarray([[1.0], [1e9]])
    found = propagation.probe_blocks(params, x, key, block)
    expected = np.log(1.5 if residual else w_variance / 2)
    # A layer's log varies by 5 / width and has a mean lower by half of that.
    for logs in (found.log_signal, found.log_gradient, *found.log_norm.T):
        assert np.all(np.isfinite(logs))
        assert abs(logs[-1] / 10_000 - expected) < 0.1


def test_homogeneity_is_told_truly(key):
    x = jax.random.normal(key, (3, 6))
    factor = jnp.asarray([[0.25], [4.0], [2.0]])
    made = {
        "relu": (layers.activation("relu"), True),
        "randomized": (layers.activation("randomized_leaky_relu"), True),
        "own": (layers.activation(lambda x: 3 * jnp.abs(x)), True),
        "elu": (layers.activation("elu"), False),
        "gelu": (layers.activation("gelu"), False),
        "tanh": (layers.activation("tanh"), False),
        "dense": (layers.dense(6), True),
        "biases": (layers.dense(6, b_variance=1.0), False),
        "norm": (layers.layer_norm(), False),
        "dropout": (layers.dropout(0.5), True),
        "residual": (layers.residual(layers.dense(6)), True),
        "batch": (layers.batch_norm(), False),
    }
    for name, (layer, expected) in made.items():
        assert layer.homogeneous == expected, name
        assert layer.mixes == (name == "batch")
        params, _ = layer.init(key, (6,), jnp.float32)
        apply = jax.jit(layer.apply)
        scaled = apply(params, x * factor, key)
        homogeneous = np.allclose(scaled, factor * apply(params, x, key), rtol=1e-5)
        assert homogeneous == expected, name


def test_deeper_stacks_begin_with_the_shallower(key):
    block = layers.sequential(layers.dense(4, b_variance=1.0), layers.activation("tanh"))
    deep, shallow = (networks.init_blocks(key, block, (4,), depth) for depth in (5, 3))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:3], b), deep, shallow)
    assert len({float(a) for a in deep[0]["kernel"][:, 0, 0]}) == 5


# Traced hyper-parameters


def test_variances_may_be_traced(key):
    def block(w_variance):
        return layers.residual(
            layers.sequential(layers.activation("relu"), layers.dense(6, w_variance, w_variance)),
            w_variance,
        )

    values = jnp.asarray([0.0, 0.5, 2.0])
    x = jax.random.normal(key, (3, 6))

    def run(w_variance):
        params = networks.init_blocks(key, block(w_variance), (6,), 3)
        return propagation.probe_blocks(params, x, key, block(w_variance)).log_gradient

    together = jax.jit(jax.vmap(run))(values)
    np.testing.assert_allclose(together[1], jax.jit(run)(0.5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(together[0], together[0, 0], atol=1e-6)
    found = jax.jit(jax.vmap(lambda w: block(w).predict(START).log_q))(values)
    w = np.asarray(values)
    np.testing.assert_allclose(found, np.log(1 + w**2 * (w / 2 + w)), rtol=rtol(jnp.float32))


def test_derivatives_at_zero():
    log_q = np.asarray([0.0, -2000.0, 2000.0])
    start = dataclasses.replace(START, log_q=log_q, log_gradient=-log_q, gap=np.full(3, 0.5))

    def scaled(scale):
        branch = layers.sequential(layers.dense(4, 2.0), layers.activation("linear"))
        found = layers.residual(branch, scale).predict(start)
        return jnp.stack([found.log_q, found.log_gradient, found.gap])

    def biased(b_variance):
        found = layers.dense(4, 2.0, b_variance).predict(start)
        return jnp.stack([found.log_q, found.gap])

    with jax.enable_x64(True):
        value, slope = jax.jit(lambda s: jax.jvp(scaled, (s,), (1.0,)))(0.0)
        np.testing.assert_array_equal(value, [log_q, -log_q, np.full(3, 0.5)])
        np.testing.assert_array_equal(slope, 0.0)
        value, slope = jax.jit(lambda b: jax.jvp(biased, (b,), (1.0,)))(0.0)
        np.testing.assert_allclose(value[0], np.log(2.0) + log_q, rtol=1e-12)
        np.testing.assert_allclose(value[1], 0.5, rtol=1e-12)
        assert np.all(np.isfinite(slope))
        np.testing.assert_allclose(slope[:, 0], [0.5, -0.25], rtol=1e-12)


# What is wrong is said


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: layers.dense(0), "features must be at least 1"),
        (lambda: layers.dense(3, -1.0), "w_variance must be at least 0"),
        (lambda: layers.dense(3, 1.0, -1.0), "b_variance must be at least 0"),
        (lambda: layers.convolution(3, (2, 3)), "window must have odd sizes"),
        (lambda: layers.convolution(3, padding="same"), "padding must be one of"),
        (lambda: layers.activation("nope"), "activation must be one of"),
        (lambda: layers.layer_norm(-1.0), "epsilon must be at least 0"),
        (lambda: layers.dropout(0.0), "keep_prob must be greater than 0"),
        (lambda: layers.dropout(1.5), "keep_prob must be at most 1"),
        (lambda: layers.residual(layers.dense(3), np.ones(2)), "scale must be one number"),
        (lambda: layers.batch_norm().predict(START), "moments must have a gap"),
        (
            lambda: layers.convolution(3, padding="zero").predict(START),
            "moments must have 2 spatial axes",
        ),
        (
            lambda: layers.residual(layers.dropout(0.5)).predict(START),
            "branch must have weights",
        ),
        (
            lambda: layers.residual(layers.residual(layers.dense(3))).predict(START),
            "branch must have weights in every path",
        ),
        (
            lambda: layers.sequential(layers.dropout(0.5), layers.activation("relu")).predict(
                START
            ),
            "must follow a layer of weights",
        ),
    ],
)
def test_bad_layers(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_stacks(key):
    with pytest.raises(TypeError, match="layers must each be a Layer"):
        layers.sequential([layers.dense(3)])
    with pytest.raises(ValueError, match="branch must keep the shape"):
        layers.residual(layers.dense(3)).init(key, (4,), jnp.float32)
    with pytest.raises(ValueError, match="shape must have 2 spatial axes"):
        layers.convolution(3).init(key, (4, 3), jnp.float32)
    with pytest.raises(ValueError, match="pass spatial=2 to batch_norm"):
        layers.batch_norm().init(key, (4, 4, 3), jnp.float32)
    with pytest.raises(ValueError, match="first layer of your own"):
        networks.init_blocks(key, layers.dense(3), (4,), 2)
    with pytest.raises(ValueError, match="block must have parameters"):
        networks.init_blocks(key, layers.activation("relu"), (4,), 2)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        networks.init_blocks(key, layers.dense(4), (4,), 0)
    with pytest.raises(TypeError, match="dtype must be floating"):
        networks.init_blocks(key, layers.dense(4), (4,), 2, dtype=jnp.int32)
    zeros = layers.dense(4, kernel_init=lambda key, shape, dtype: jnp.zeros((2, 2)))
    with pytest.raises(ValueError, match="kernel_init must return the shape"):
        zeros.init(key, (4,), jnp.float32)
    block = layers.dense(4)
    params = networks.init_blocks(key, block, (4,), 2)
    with pytest.raises(TypeError, match="block must be a jaxgrad.layers.Layer"):
        networks.apply_blocks(params, jnp.ones((2, 4)), "dense")
    with pytest.raises(ValueError, match="params must be arrays with one leading axis"):
        networks.apply_blocks({"a": jnp.ones(2), "b": jnp.ones(3)}, jnp.ones((2, 4)), block)
    norm = layers.sequential(layers.activation("relu"), layers.layer_norm())
    wide = networks.init_blocks(key, norm, (4,), 2)
    with pytest.raises((ValueError, TypeError)):
        networks.apply_blocks(wide, jnp.ones((2, 5)), norm)
    with pytest.raises(ValueError, match="tangent must have the shape of x"):
        propagation.probe_blocks(params, jnp.ones((2, 4)), key, block, tangent=jnp.ones((1, 4)))
    with pytest.raises(ValueError, match="x must be finite"):
        propagation.probe_blocks(params, jnp.full((2, 4), jnp.nan), key, block)
