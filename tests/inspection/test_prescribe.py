"""Prescriptions, against factors that are known in closed form and against training."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxgrad
from benchmarks import prescriptions
from jaxgrad.inspection import prescribe, xray
from jaxgrad.inspection._dataflow import dataflow
from jaxgrad.inspection._initial_scales import Weights, cause

DEPTH, WIDTH, BATCH = 24, 32, 16


@pytest.fixture
def orthogonal(key):
    """Matrices that keep the size of every signal and gradient."""
    return jnp.linalg.qr(jax.random.normal(key, (DEPTH, WIDTH, WIDTH)))[0]


@pytest.fixture
def x(key):
    return jax.random.normal(jax.random.fold_in(key, 1), (BATCH, WIDTH))


def chain(activation=lambda x: x):
    def loss(weights, x):
        if isinstance(weights, list):
            for w in weights:
                x = activation(x @ w)
        else:
            x, _ = jax.lax.scan(lambda x, w: (activation(x @ w), None), x, weights)
        return jnp.mean(x**2) + jnp.mean(x[:, 0])

    return loss


def is_level(row):
    return abs(row.forward - 1) <= 0.02 and abs(row.backward - 1) <= 0.05


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_a_linear_network_needs_the_inverse_of_its_scale(orthogonal, x, scale, unrolled):
    weights = list(scale * orthogonal[:8]) if unrolled else scale * orthogonal
    fix = prescribe(xray(chain(), weights, x))
    for factor in jax.tree.leaves(fix.factors):
        assert factor == pytest.approx(1 / scale, rel=1e-5)
    np.testing.assert_allclose(
        jnp.stack(list(fix.apply(weights))), orthogonal[: len(weights)], atol=1e-6
    )
    assert (fix.before.forward, fix.after.forward) == pytest.approx((scale, 1), rel=1e-5)
    (change,) = fix.changes
    assert change.factor == pytest.approx(1 / scale, rel=1e-5)
    assert change.variance == pytest.approx(scale**2, rel=1e-5)


def test_relu_needs_the_variance_of_he(key, x):
    weights = jax.random.normal(key, (DEPTH, WIDTH, WIDTH)) / WIDTH**0.5
    fix = prescribe(xray(chain(jax.nn.relu), weights, x))
    (change,) = fix.changes
    assert change.target == 2.0
    assert "should be 2 / fan-in" in str(fix)
    assert "LeCun's variance" in str(fix)
    assert is_level(fix.after)
    assert not is_level(fix.before)


def test_the_variance_is_the_one_that_the_x_ray_names(key, x):
    # Every third block is larger, so that the mean over blocks is not their median.
    scale = jnp.where(jnp.arange(DEPTH) % 3 == 0, 1.5, 1.0)[:, None, None]
    weights = scale * jax.random.normal(key, (DEPTH, WIDTH, WIDTH)) / (2 * WIDTH**0.5)
    trace = xray(chain(jax.nn.relu), weights, x)
    (change,) = prescribe(trace).changes
    assert f"has the variance {change.variance:.3g} / fan-in" in trace.faults[0].text


@pytest.mark.slow
@pytest.mark.parametrize("activation", [jnp.tanh, jax.nn.gelu], ids=["tanh", "gelu"])
def test_other_activations_are_level_in_both_directions(key, x, activation):
    weights = 2 * jax.random.normal(key, (2 * DEPTH, WIDTH, WIDTH)) / WIDTH**0.5
    fix = prescribe(xray(chain(activation), weights, x))
    assert is_level(fix.after)
    assert not is_level(fix.before)


@pytest.mark.slow
def test_the_scale_of_the_loss_does_not_matter(key, x):
    weights = jax.random.normal(key, (DEPTH, WIDTH, WIDTH)) / WIDTH**0.5
    loss = chain(jnp.tanh)
    factors = [
        prescribe(xray(lambda w, x, c=c: c * loss(w, x), 2 * weights, x)).factors
        for c in (1.0, 1e-6)
    ]
    np.testing.assert_allclose(*factors, rtol=1e-4)


@pytest.mark.slow
def test_healthy_models_are_left_alone(key, x, orthogonal):
    models = [(lambda x: x, orthogonal)]
    for seed in jax.random.split(key, 4):
        weights = jax.random.normal(seed, (DEPTH, WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5
        models.append((jax.nn.relu, weights))
    for activation, weights in models:
        fix = prescribe(xray(chain(activation), weights, x))
        assert fix.changes == ()
        assert fix.factors == 1.0
        assert "no weights have to be rescaled" in str(fix)


def test_growth_within_the_noise_of_the_blocks_is_left_alone(orthogonal, x):
    # Each block changes the log by 0.5, and of 48 blocks 27 do so upward: 0.06 +- 0.07 a block.
    signs = np.tile([1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, 1], 3)
    assert signs.sum() == 6
    weights = jnp.concatenate([orthogonal, orthogonal]) * np.exp(0.5 * signs)[:, None, None]
    fix = prescribe(xray(chain(), jnp.asarray(weights, jnp.float32), x))
    assert fix.changes == ()
    assert "which random weights of this width do" in str(fix)


@pytest.mark.slow
def test_a_single_block_is_rescaled_alone(orthogonal, x):
    for weights in (orthogonal.at[7].multiply(10.0), list(orthogonal.at[7].multiply(10.0)[:9])):
        fix = prescribe(xray(chain(), weights, x))
        factors = np.ravel(jnp.stack(fix.factors) if isinstance(weights, list) else fix.factors)
        expected = np.where(np.arange(len(weights)) == 7, 0.1, 1.0)
        np.testing.assert_allclose(factors, expected, rtol=1e-5)
        assert "block 7 by 0.1" in str(fix)


def residual(params, x):
    def block(x, w):
        up, down, bias = w
        return x + (jnp.maximum(x @ up, 0) @ down + bias[None]), None

    x, _ = jax.lax.scan(block, x, (params["up"], params["down"], params["bias"]))
    return jnp.mean(x[:, 0] ** 2 + x[:, 1])


@pytest.fixture
def branches(key):
    keys = jax.random.split(key, 3)
    up, down = (
        jax.random.normal(k, (2 * DEPTH, WIDTH, WIDTH)) * (2 / WIDTH) ** 0.5 for k in keys[:2]
    )
    return {"up": up, "down": down, "bias": jax.random.normal(keys[2], (2 * DEPTH, WIDTH))}


@pytest.mark.slow
@pytest.mark.parametrize("total", [2**0.5, 2.0])
def test_a_residual_stream_grows_as_asked(branches, x, total):
    branches["bias"] *= 0
    fix = prescribe(xray(residual, branches, x), total=total)
    params = fix.apply(branches)

    # A network taken apart by hand.
    stream, start = x, jnp.mean(x**2)
    for up, down in zip(params["up"], params["down"], strict=True):
        stream = stream + jnp.maximum(stream @ up, 0) @ down
    assert jnp.mean(stream**2) / start == pytest.approx(total**2, rel=0.05)
    assert is_level(fix.after)
    assert fix.factors["up"] == 1
    assert fix.branches == {"['down']": pytest.approx(float(fix.factors["down"]))}
    assert f"of which {2 * DEPTH} are added" in str(fix)


def test_the_bias_at_the_end_of_a_branch_is_scaled_with_it(branches, x):
    fix = prescribe(xray(residual, branches, x))
    assert fix.factors["bias"] == fix.factors["down"] < 0.2
    assert is_level(fix.after)


@pytest.mark.slow
def test_a_normalization_at_the_end_of_a_branch_is_named(branches, x):
    def norm(x):
        return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True))

    def loss(params, x):
        def block(x, w):
            return x + norm(jnp.maximum(x @ w[0], 0) @ w[1]) * (1 + norm(x)), None

        x, _ = jax.lax.scan(block, x, (params["up"], params["down"]))
        return jnp.mean(x[:, 0])

    fix = prescribe(xray(loss, branches, 0.1 * x))
    assert fix.changes == ()
    assert "a normalization after ['down'] ends the residual branch" in str(fix)


def test_a_stream_that_grows_little_is_left_alone(branches, x):
    params = {name: leaf[:8] for name, leaf in branches.items()}
    params = params | {"down": 0.3 * params["down"], "bias": 0 * params["bias"]}
    trace = xray(residual, params, x)
    fix = prescribe(trace)
    assert fix.changes == ()
    assert "over 8 blocks the stream changes by" in str(fix)
    asked = prescribe(trace, total=1.2)
    assert asked.factors["down"] < 1
    assert asked.after.forward**8 == pytest.approx(1.2, rel=0.1)


def test_a_post_norm_stream_that_forgets_its_start(branches, x):
    def loss(params, x):
        def block(x, w):
            x = x + jnp.maximum(x @ w[0], 0) @ w[1]
            return x / jnp.sqrt(jnp.mean(x**2, axis=-1, keepdims=True)), None

        x, _ = jax.lax.scan(block, x, (params["up"], params["down"]))
        return jnp.mean(x[:, 0])

    fix = prescribe(xray(loss, branches, x))
    # The size of the stream shows nothing, since each block normalizes it.
    assert fix.before.forward == pytest.approx(1, abs=0.01)
    assert fix.factors["down"] < 0.3


def test_weights_of_a_recurrence_are_left_alone(key, x):
    def loss(w, x):
        inputs = jnp.broadcast_to(x, (DEPTH, *x.shape))
        state, _ = jax.lax.scan(lambda h, x: (jnp.tanh(x + h @ w), None), jnp.zeros_like(x), inputs)
        return jnp.mean(state[:, 0])

    fix = prescribe(xray(loss, jax.random.normal(key, (WIDTH, WIDTH)) / WIDTH, x))
    assert fix.changes == ()


@pytest.mark.slow
def test_layers_that_only_have_running_numbers(key, x):
    keys = jax.random.split(key, 12)
    params = {
        f"dense_{i}": jax.random.normal(k, ((WIDTH, 2 * WIDTH), (2 * WIDTH, WIDTH))[i % 2])
        * (2 / (WIDTH, 2 * WIDTH)[i % 2]) ** 0.5
        for i, k in enumerate(keys)
    }

    def loss(params, x):
        for i in range(0, 12, 2):
            up, down = (params[f"dense_{k}"] for k in (i, i + 1))
            x = x + dense(down, jnp.maximum(dense(up, x), 0))
        return jnp.mean(x[:, 0] ** 2)

    def dense(w, x):
        return x @ w

    fix = prescribe(xray(loss, params, x))
    scaled = [name for name, factor in fix.factors.items() if factor != 1]
    assert sorted(scaled) == sorted(f"dense_{i}" for i in range(1, 12, 2))


@pytest.mark.slow
def test_large_logits_of_attention(key, x):
    def loss(params, x):
        def block(x, w):
            q, k, v = (x @ part for part in w)
            weights = jax.nn.softmax(q @ k.T / WIDTH**0.5)
            return x + 0.01 * weights @ v, None

        return jnp.mean(jax.lax.scan(block, x, params)[0][:, 0])

    def logits(params):
        q, k = (x @ part[0] for part in params[:2])
        return jnp.sqrt(jnp.mean((q @ k.T) ** 2) / WIDTH)

    params = jax.random.normal(key, (3, DEPTH, WIDTH, WIDTH)) / WIDTH**0.5
    params = {"q": 5 * params[0], "k": 5 * params[1], "v": params[2]}
    read = lambda params, x: loss((params["q"], params["k"], params["v"]), x)  # noqa: E731
    fix = prescribe(xray(read, params, x))
    after = fix.apply(params)
    assert logits((params["q"], params["k"])) > 10
    assert logits((after["q"], after["k"])) == pytest.approx(1, rel=0.2)
    assert fix.factors["q"] == pytest.approx(fix.factors["k"])
    assert fix.factors["v"] == 1
    assert "the logits of attention have size 2" in str(fix)


@pytest.mark.slow
def test_models_that_hold_more_than_arrays(key, x):
    model = equinox.nn.MLP(WIDTH, 10, WIDTH, 6, key=key)
    fix = prescribe(xray(lambda m, x: jnp.mean(jax.vmap(m)(x) ** 2), model, x))
    scaled = fix.apply(model)
    assert scaled.activation is model.activation
    (factor,) = {float(layer.weight) for layer in fix.factors.layers}
    assert factor == pytest.approx(6**0.5, rel=0.1)
    np.testing.assert_allclose(scaled.layers[3].weight, factor * model.layers[3].weight, rtol=1e-6)
    assert scaled.layers[3].bias is not None
    assert "uniform between +-1 / sqrt(fan-in)" in str(fix)


def test_one_program_measures_all_factors(orthogonal, x):
    traces = []

    def loss(weights, x):
        traces.append(1)
        return chain(jnp.tanh)(weights, x)

    trace = xray(loss, 2 * orthogonal, x)
    before = len(traces)
    fix = prescribe(trace)
    # One trace to measure, one of its shapes, and one of the x-ray for the names of operations.
    assert len(traces) - before <= 3
    assert fix.changes
    again = len(traces)
    prescribe(trace)
    assert len(traces) - again <= 1


@pytest.mark.slow
def test_traces_that_are_not_finite_are_refused(orthogonal, x):
    def loss(weights, x):
        return chain()(weights, jnp.log(x)) + 0 * jnp.sum(weights)

    with pytest.raises(ValueError, match=r"got a signal that is not, first at log .*test_presc"):
        prescribe(xray(loss, orthogonal, x))
    with pytest.raises(TypeError, match="trace must be an XRay, got int"):
        prescribe(3)
    with pytest.raises(ValueError, match="total must be greater than 1, got 1"):
        prescribe(xray(chain(), orthogonal, x), total=1.0)


@pytest.mark.parametrize(
    ("variance", "fans", "target", "text"),
    [
        (1 / 64, (64, 64, 1), 2.0, "LeCun's variance"),
        (0.87962566**2 / 64, (64, 64, 1), 2.0, "0.8796, is not corrected"),
        (2 / 64, (64 * 9, 64 * 9, 9), 2.0, "receptive field is missing"),
        (2 / 128, (64, 128, 1), 2.0, "the wrong fan"),
        (8 / 64, (64, 64, 1), 2.0, "doubled"),
        (1 / 3 / 64, (64, 64, 1), 2.0, "uniform"),
        (2 / (64 + 128), (64, 128, 1), 2.0, "Glorot's variance"),
        (1.37 / 64, (64, 64, 1), 2.0, ""),
    ],
)
def test_causes_of_an_initial_scale(variance, fans, target, text):
    assert text in cause(Weights(variance, 100_000, *fans), target)
    assert bool(cause(Weights(variance, 100_000, *fans), target)) == bool(text)


def test_sums_that_are_no_residual_branches():
    def loss(params, x):
        gate = jax.nn.sigmoid(x @ params["gate"])
        highway = gate * jnp.tanh(x @ params["w"]) + (1 - gate) * x
        cubic = highway + 0.044715 * highway**3
        return jnp.sum(cubic @ params["a"] + x @ params["b"])

    params = dict.fromkeys(("gate", "w", "a", "b"), jnp.eye(4))
    program = jax.make_jaxpr(loss)(params, jnp.ones((2, 4)))
    flow = dataflow(program, [*params, ""])
    assert len(flow.products) == 4
    assert flow.residuals == []


def test_fans_and_residuals_of_convolutions():
    def loss(params, x):
        y = jax.lax.conv(x, params["w"], (1, 1), "SAME")
        return jnp.sum(0.5 * x + jnp.tanh(y))

    program = jax.make_jaxpr(loss)({"w": jnp.ones((6, 6, 3, 5))}, jnp.ones((1, 6, 8, 8)))
    flow = dataflow(program, ["w", ""])
    (product,) = flow.products.values()
    assert (product.fan_in, product.fan_out, product.receptive_field) == (90, 90, 15)
    (sums,) = flow.residuals
    assert sums.last == (product.node,)


# `python -m benchmarks.prescriptions` runs all of them.
@pytest.mark.slow
@pytest.mark.parametrize("name", list(prescriptions.MODELS)[:1] + list(prescriptions.MODELS)[7:9])
def test_deep_models_are_level_and_train(name):
    record = prescriptions.measure(prescriptions.MODELS[name])
    assert record.level, str(record.fix)
    before, after = record.losses
    assert after < before - 0.1


def test_the_public_names():
    assert jaxgrad.prescribe is prescribe
