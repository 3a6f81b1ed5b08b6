import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import activations, layers, propagation
from tests.propagation import cases
from tests.propagation.test_forward import as_blocks
from tests.tolerances import within_errors

NETWORKS = {
    "residual": (
        layers.repeat(
            layers.residual(
                layers.sequential(
                    layers.layer_norm(0.1),
                    layers.dense(6, w_variance=2.0, b_variance=0.3, bias=True),
                    layers.activation("gelu"),
                    layers.dense(6, parameterization="standard"),
                ),
                0.7,
            ),
            3,
        ),
        (6,),
    ),
    "batch norm": (
        layers.repeat(
            layers.sequential(
                layers.dense(6, w_variance=3.0), layers.batch_norm(0.1), layers.activation("tanh")
            ),
            3,
        ),
        (6,),
    ),
    "convolution": (
        layers.sequential(
            layers.convolution(3, (3,), padding="SAME", b_variance=0.2, bias=True),
            layers.repeat(
                layers.sequential(layers.convolution(3, (3,)), layers.activation("selu")), 2
            ),
        ),
        (5, 2),
    ),
    "widths": (
        layers.sequential(
            cases.block_of(8),
            layers.repeat(cases.block_of(8, "relu", w_variance=2.0), 2),
            layers.mlp(5, 2, "tanh"),
            layers.dense(2),
        ),
        (4,),
    ),
    "active": (layers.repeat(cases.block_of(6), 3, active=2), (6,)),
}


def loss(h):
    weights = jnp.arange(1.0, 1 + h.size).reshape(h.shape)
    return jnp.sum(jnp.sin(h) * weights)


# Against autodiff


@pytest.mark.parametrize(
    ("activation", "segments"),
    [
        ("relu", 3),
        ("parametric_relu", 2),
        (lambda z: z * jnp.cos(z), 1),
        ("tanh", 8),
        *(pytest.param(name, 3, marks=pytest.mark.slow) for name in ("sigmoid", "gelu", "selu")),
    ],
)
def test_exact_equals_autodiff_for_every_depth_and_layer(key, activation, segments):
    depth, phi = 5, activations.get(activation)
    network = cases.mlp(16, depth, activation, w_variance=1.7, b_variance=0.3)
    params = cases.draw(network, key)
    x = jax.random.normal(key, (6, 10))

    def losses(each, shifts):
        """The loss at each depth, with `shifts[l]` added to the pre-activations of layer l."""
        h, values = x, []
        for layer, shift in zip(each, shifts, strict=True):
            z = h @ layer["kernel"] * 1.7**0.5 + layer["bias"][None] * 0.3**0.5
            h = phi(z + shift, **layer.get("activation", {}))
            values.append(loss(h))
        return jnp.stack(values), None

    hidden = [jax.tree.map(lambda a, i=i: a[i], params["hidden"]) for i in range(depth - 1)]
    each = [params["first"], *hidden]
    kernels, shifts, _ = cases.squares_by_depth(losses, each, [jnp.zeros((6, 16))] * depth)
    out = propagation.exact(network, params, x, key=key, loss=loss, segments=segments)
    # The gradient is that with respect to the kernel as it acts, with its variance.
    kernels = np.log(kernels / 1.7)
    np.testing.assert_allclose(out.log_layer_weight_gradient, kernels, atol=2e-4)
    np.testing.assert_allclose(out.log_layer_gradient, np.log(shifts), atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_exact_equals_autodiff_for_any_layer(key, name):
    network, shape = NETWORKS[name]
    params = cases.draw(network, key, shape)
    x = jax.random.normal(key, (4, *shape))
    out = propagation.exact(network, params, x, key=key, loss=loss, segments=2)
    inputs, kernels, ends = cases.jacobian_squares(network, params, x, loss)
    with np.errstate(divide="ignore"):
        inputs, kernels = np.log(inputs), np.log(kernels)
    np.testing.assert_allclose(out.log_layer_gradient, inputs, atol=2e-4)
    np.testing.assert_allclose(out.log_layer_weight_gradient, kernels, atol=2e-4)
    np.testing.assert_allclose(out.log_gradient, inputs[:, 0], atol=2e-4)
    np.testing.assert_allclose(out.log_weight_gradient, kernels[:, 0], atol=2e-4)
    np.testing.assert_allclose(out.log_last_gradient, np.log(ends), atol=1e-4)


@pytest.mark.slow
def test_an_mlp_equals_blocks_of_dense_layers_and_activations(key):
    """Gram matrices and gradients formed one by one give the same norms."""
    network = cases.mlp(12, 5, "tanh", w_variance=1.8, b_variance=0.4)
    params = cases.draw(network, key, (12,))
    stack, pairs = as_blocks(network, params)
    x = jax.random.normal(key, (4, 12))
    expected = propagation.exact(network, params, x, key=key, loss=loss, segments=1)
    blocks = propagation.exact(stack, pairs, x, key=key, loss=loss, segments=1)
    for name in ("log_preactivation", "log_activation", "log_layer_weight_gradient"):
        np.testing.assert_allclose(
            getattr(blocks, name), getattr(expected, name), rtol=1e-5, atol=2e-5, err_msg=name
        )


# Random losses and selected depths


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", *NETWORKS])
def test_random_loss_of_a_depth_is_the_same_whichever_depths_are_selected(key, name):
    network, shape = NETWORKS.get(name, (cases.mlp(16, 9), (10,)))
    params = cases.draw(network, key, shape)
    x = jax.random.normal(key, (4, *shape))
    every = propagation.exact(network, params, x, key=key, segments=1)
    some = propagation.exact(network, params, x, key=key, depths=(1, 3), segments=2)
    np.testing.assert_array_equal(some.depths, [1, 3])
    rows = jnp.array([0, 2])
    chex.assert_trees_all_close(
        (some.log_layer_gradient, some.log_layer_weight_gradient),
        (every.log_layer_gradient[rows], every.log_layer_weight_gradient[rows]),
        rtol=1e-4,
        atol=1e-5,
    )
    others = [depth - 1 for depth in range(1, len(every.log_gradient) + 1) if depth not in (1, 3)]
    for name in ("log_gradient", "log_weight_gradient", "log_last_gradient", "log_ratio"):
        values, expected = getattr(some, name), getattr(every, name)
        np.testing.assert_allclose(values[rows], expected[rows], rtol=1e-4, atol=1e-5)
        assert np.all(np.isnan(values[jnp.asarray(others)]))
        assert not np.any(np.isnan(expected))


def test_log_ratio_is_first_over_last(key):
    network = cases.mlp()
    params = cases.draw(network, key)
    result = propagation.exact(network, params, jnp.ones((2, 10)), key=key, segments=1)
    gradient = result.log_layer_gradient
    expected = [gradient[d, 0] - gradient[d, d] for d in range(5)]
    np.testing.assert_allclose(result.log_ratio, expected, rtol=1e-6)
    assert result.log_ratio[0] == 0


@pytest.mark.slow
def test_randomized_activation_draws_as_in_the_network(key):
    network = cases.plain_mlp(16, 4, "randomized_leaky_relu")
    params = cases.draw(network, key)
    x = jax.random.normal(key, (3, 10))

    def cubes(h):
        return jnp.sum(h**3)

    result = propagation.exact(network, params, x, key=key, loss=cubes, segments=1)
    gradient = jax.grad(lambda p: cubes(cases.apply(network, p, x, key)))(params)
    expected = jnp.log(jnp.sum(gradient["first"]["kernel"] ** 2))
    np.testing.assert_allclose(result.log_weight_gradient[-1], expected, rtol=1e-4)

    block = layers.sequential(layers.dense(6), layers.activation("relu"), layers.dropout(0.3))
    stack = layers.repeat(block, 3)
    params = cases.draw(stack, key, (6,))
    x = jax.random.normal(key, (3, 6))
    result = propagation.exact(stack, params, x, key=key, loss=cubes, segments=1)
    draws = jax.random.split(key)[1]
    gradient = jax.grad(lambda x: cubes(cases.apply(stack, params, x, draws)))(x)
    expected = jnp.log(jnp.sum(gradient**2))
    np.testing.assert_allclose(result.log_gradient[-1], expected, rtol=1e-4)


# The two ways agree


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "w_variance"), [("tanh", 2.5), ("relu", 1.6), ("gelu", 2)])
def test_probe_and_exact_agree_within_standard_errors(key, activation, w_variance):
    seeds, depth = 300, 12
    x = jax.random.normal(key, (4, 10))
    network = cases.mlp(16, depth, activation, w_variance=w_variance, b_variance=0.1)

    def one(key):
        key_params, key = jax.random.split(key)
        params = cases.draw(network, key_params)
        probe = propagation.probe(network, params, x, key=key)
        exact = propagation.exact(network, params, x, key=key, segments=1)
        return tuple(
            (getattr(probe, name), getattr(exact, name))
            for name in ("log_gradient", "log_weight_gradient", "log_last_gradient")
        )

    for forward, backward in jax.jit(jax.vmap(one))(jax.random.split(key, seeds)):
        difference = np.exp(np.asarray(forward, float)) - np.exp(np.asarray(backward, float))
        # Four, for the largest of 36 numbers.
        within_errors(difference, 0.0, k=4.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "batch norm", "widths", "convolution"])
def test_probe_and_exact_agree_for_any_layer(key, name):
    network, shape = NETWORKS[name]
    x = jax.random.normal(key, (4, *shape))

    def one(key):
        key_params, key = jax.random.split(key)
        params = cases.draw(network, key_params, shape)
        probe = propagation.probe(network, params, x, key=key)
        exact = propagation.exact(network, params, x, key=key, segments=1)
        return probe.log_gradient, exact.log_gradient, exact.log_last_gradient

    forward, backward, last = jax.jit(jax.vmap(one))(jax.random.split(key, 400))
    forward, backward, last = (np.exp(np.asarray(a, float)) for a in (forward, backward, last))
    within_errors(forward - backward, 0.0, k=4.0)
    within_errors(last, 1.0, k=4.0)


# Depth


@pytest.mark.slow
def test_exact_survives_depth(key):
    params = cases.draw(cases.plain_mlp(16, 2000, "relu"), key)
    x = jax.random.normal(key, (3, 10))
    for w_variance in (0.01, 100.0):
        network = cases.plain_mlp(16, 2000, "relu", w_variance=w_variance)
        out = propagation.exact(network, params, x, key=key, depths=(1000, 2000))
        assert np.all(np.isfinite(out.log_layer_gradient[1]))
        assert np.all(np.isfinite(out.log_layer_weight_gradient[1]))
        slope = float(out.log_layer_gradient[1, 0] - out.log_layer_gradient[1, -1]) / 1999
        assert slope == pytest.approx(np.log(w_variance / 2), abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "growth"),
    [
        (cases.block_of(16, "relu", w_variance=4.0, b_variance=1.0, bias=True), 2.0),
        (cases.block_of(16, "relu", w_variance=0.5, bias=True), 0.25),
        (
            layers.residual(
                layers.sequential(layers.dense(16, w_variance=2.0), layers.activation("relu"))
            ),
            2.0,
        ),
        (cases.block_of(16, "tanh", w_variance=1e4, b_variance=1.0, bias=True), None),
    ],
    ids=["growing", "shrinking", "residual", "saturated"],
)
def test_a_thousand_blocks_neither_overflow_nor_underflow(key, block, growth):
    network = layers.repeat(block, 1000)
    params = cases.draw(network, key, (16,))
    x = jax.random.normal(key, (3, 16))
    out = propagation.exact(network, params, x, key=key, depths=(500, 1000))
    for logs in (out.log_layer_gradient[1], out.log_layer_weight_gradient[1], out.log_activation):
        assert np.all(np.isfinite(logs))
    slope = float(out.log_layer_gradient[1, 0]) / 1000
    assert abs(slope) > 0.3
    if growth is not None:
        assert slope == pytest.approx(np.log(growth), abs=0.4)


@pytest.mark.slow
def test_dead_network_is_a_result(key):
    zero = propagation.exact(
        cases.plain_mlp(w_variance=0.0),
        cases.draw(cases.plain_mlp(), key),
        jnp.ones((2, 10)),
        key=key,
        segments=1,
    )
    assert zero.log_layer_gradient[-1, 0] == -jnp.inf
    assert zero.log_layer_weight_gradient[-1, 0] == -jnp.inf
    network = layers.repeat(cases.block_of(4, "relu", w_variance=0.0), 3)
    params = cases.draw(network, key, (4,))
    zero = propagation.exact(network, params, jnp.ones((2, 4)), key=key, segments=1)
    assert zero.log_gradient[-1] == -jnp.inf
    assert not np.any(np.isnan(zero.log_gradient))


# Transforms and errors


@pytest.mark.slow
def test_jit_and_vmap_agree_with_eager(key):
    params = cases.draw(cases.mlp(), key)
    x = jax.random.normal(key, (4, 10))

    def f(v):
        network = cases.mlp(w_variance=v, b_variance=0.1)
        return propagation.exact(network, params, x, key=key, segments=1)

    variances = jnp.array([0.5, 1.0, 3.0])
    batched = jax.jit(jax.vmap(f))(variances)
    for i, v in enumerate(variances):
        single = jax.tree.map(lambda a: a[i], batched)  # noqa: B023
        chex.assert_trees_all_close(f(v), single, rtol=1e-4, atol=1e-5)


def test_a_loss_may_close_over_traced_values(key):
    network = cases.mlp()
    params = cases.draw(network, key)

    @jax.jit
    def gradient(factor):
        scaled_loss = lambda h: factor * jnp.sum(h**2)  # noqa: E731
        x = jnp.ones((2, 10))
        result = propagation.exact(network, params, x, key=key, loss=scaled_loss, segments=1)
        return result.log_gradient

    np.testing.assert_allclose(gradient(3.0), gradient(1.0) + 2 * np.log(3.0), rtol=1e-4)


@pytest.mark.parametrize("depths", [(), (0, 1), (2, 1), (1, 1), (4,), (1.5,)])
def test_depths_errors(key, depths):
    for network in (cases.mlp(10, 3), layers.repeat(layers.dense(10), 3)):
        params = cases.draw(network, key)
        with pytest.raises((ValueError, TypeError), match="depths must"):
            propagation.exact(network, params, jnp.ones((2, 10)), key=key, depths=depths)


def test_other_errors(key):
    network = cases.mlp(10, 3)
    params = cases.draw(network, key)
    with pytest.raises(TypeError, match="loss must map outputs to a scalar, got 3"):
        propagation.exact(network, params, jnp.ones((2, 10)), key=key, loss=3)
    with pytest.raises(ValueError, match="segments must be at least 1"):
        propagation.exact(network, params, jnp.ones((2, 10)), key=key, segments=0)
