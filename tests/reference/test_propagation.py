"""Measured and predicted propagation, singular values: the numbers of 0.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers, layers, propagation, theory
from jaxgrad.theory import Moments
from tests.reference.record import PARTS, difference, hold, recorded
from tests.reference.test_theory import every, named

# What these numbers hold is tested by quicker tests, too.
pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
WIDTH, BATCH, DEPTH = 10, 3, 12
X = jax.random.normal(jax.random.key(3), (BATCH, 5))
FIELDS = (
    "log_preactivation",
    "log_activation",
    "dead",
    "saturated",
    "log_gradient",
    "log_weight_gradient",
    "log_last_gradient",
    "log_ratio",
)


def swish_like(x):
    return x * jax.nn.sigmoid(1.3 * x) + 0.1


def drawn(activation, *, depth=DEPTH, parameterization="ntk", **variances):
    bias = "b_variance" in variances
    options = {"parameterization": parameterization, "bias": bias} | variances
    network = layers.mlp(WIDTH, depth, activation, **options)
    return network, layers.init(network, (5,), key=KEY)[0]


# Options of the network, options of `probe`.
PROBES = {
    **{
        name: ({"activation": name}, {})
        for name in (
            "tanh",
            "relu",
            "gelu",
            "sigmoid",
            "selu",
            "sin",
            "parametric_relu",
            "randomized_leaky_relu",
        )
    },
    "callable": ({"activation": swish_like}, {}),
    "tanh_small": ({"activation": "tanh", "w_variance": 1e-3}, {}),
    "tanh_large": ({"activation": "tanh", "w_variance": 1e4}, {}),
    "relu_large": ({"activation": "relu", "w_variance": 1e6}, {}),
    "relu_bias": ({"activation": "relu", "w_variance": 2.0, "b_variance": 0.1}, {}),
    "gelu_bias": ({"activation": "gelu", "w_variance": 1.9, "b_variance": 0.4}, {}),
    "tanh_bias_large": ({"activation": "tanh", "w_variance": 30.0, "b_variance": 1e3}, {}),
    "relu_tangent": (
        {"activation": "relu", "w_variance": 2.0},
        {"tangent": jax.random.normal(jax.random.key(9), (BATCH, WIDTH))},
    ),
    "softplus_saturation": ({"activation": "softplus", "w_variance": 3.0}, {"saturation": 0.3}),
    "one_layer": ({"activation": "relu", "depth": 1}, {}),
    "zero_weights": ({"activation": "tanh", "w_variance": 0.0, "b_variance": 0.5}, {}),
}


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("name", PROBES)
def test_probe(name, parameterization):
    options, more = PROBES[name]
    network, params = drawn(parameterization=parameterization, **options)
    result = propagation.probe(network, params, X, key=jax.random.key(1), **more)
    hold(f"propagation.probe.{name}", {field: getattr(result, field) for field in FIELDS})


def mean_square(h):
    return jnp.mean(jnp.square(h))


EXACTS = {
    "tanh": ({"activation": "tanh"}, {}),
    "relu_bias": ({"activation": "relu", "w_variance": 2.0, "b_variance": 0.1}, {}),
    "gelu_depths": ({"activation": "gelu", "w_variance": 2.0}, {"depths": (2, 5, 11)}),
    "relu_loss": ({"activation": "relu", "w_variance": 2.0}, {"loss": mean_square}),
    "tanh_large": ({"activation": "tanh", "w_variance": 1e3}, {"segments": 3}),
    "callable": ({"activation": swish_like}, {}),
    "one_layer": ({"activation": "relu", "depth": 1}, {}),
    "parametric": ({"activation": "parametric_relu", "w_variance": 2.0}, {}),
    "randomized": ({"activation": "randomized_leaky_relu", "w_variance": 2.0}, {}),
}


@pytest.mark.parametrize("name", EXACTS)
def test_exact(name):
    options, more = EXACTS[name]
    network, params = drawn(**options)
    result = propagation.exact(network, params, X, key=jax.random.key(1), **more)
    out = {field: getattr(result, field) for field in FIELDS[:4]} | {
        "depths": result.depths,
        "log_gradient": result.log_layer_gradient,
        "log_weight_gradient": result.log_layer_weight_gradient,
        "log_ratio": result.log_ratio[result.depths - 1],
    }
    hold(f"propagation.exact.{name}", out)


def block_of(activation, **options):
    return layers.sequential(layers.dense(8, **options), layers.activation(activation))


GELU = layers.activation("gelu")
BLOCKS = {
    "relu": block_of("relu", w_variance=2.0),
    "tanh_bias": block_of("tanh", w_variance=1.5, b_variance=0.1, bias=True),
    "relu_huge": block_of("relu", w_variance=1e8),
    "residual": layers.residual(
        layers.sequential(layers.layer_norm(1e-5), GELU, layers.dense(8)), 0.7
    ),
    "batch_norm": layers.sequential(
        layers.dense(8), layers.batch_norm(1e-5), layers.activation("relu")
    ),
    "convolution": layers.sequential(
        layers.convolution(3, w_variance=2.0), layers.activation("relu")
    ),
    "dropout": layers.sequential(
        layers.dense(8, w_variance=2.0), layers.activation("relu"), layers.dropout(0.25)
    ),
}


def stacked(block, depth, shape):
    stack = layers.repeat(block, depth)
    return stack, layers.init(stack, shape, key=KEY)[0]


def of_blocks(result):
    return {
        "log_signal": result.log_activation,
        "log_gradient": result.log_gradient,
        "log_norm": result.log_example_gradient,
    }


@pytest.mark.parametrize("name", BLOCKS)
def test_probe_of_blocks(name):
    shape = (4, 4, 3) if name == "convolution" else (8,)
    stack, params = stacked(BLOCKS[name], 10, shape)
    x, key = jax.random.normal(jax.random.key(3), (4, *shape)), jax.random.key(1)

    def measure(params, x):
        return of_blocks(propagation.probe(stack, params, x, key=key))

    # Ten layers of batch norm multiply rounding.
    out = {
        "probe": jax.jit(measure, compiler_options=PARTS)(params, x),
        "output": layers.apply(stack, params, None, x)[0],
        "output_drawn": layers.apply(stack, params, None, x, key=jax.random.key(2))[0],
    }
    if name == "relu":
        tangent = jnp.cos(x)
        out["tangent"] = of_blocks(propagation.probe(stack, params, x, key=key, tangent=tangent))
    hold(f"propagation.blocks.{name}", out)


JACOBIANS = {name: BLOCKS[name] for name in ("relu", "tanh_bias", "residual", "batch_norm")} | {
    "orthogonal": block_of("tanh", w_variance=1.2, kernel_init=initializers.orthogonal()),
    "dense_small": layers.dense(8, w_variance=1e-3),
    "dropout": BLOCKS["dropout"],
}


@pytest.mark.parametrize("name", JACOBIANS)
def test_jacobians(name):
    stack, params = stacked(JACOBIANS[name], 20, (8,))
    x, key = jax.random.normal(jax.random.key(3), (2, 8)), jax.random.key(1)
    values = propagation.singular_values(stack, params, x)
    out = {
        "lyapunov": propagation.lyapunov(stack, params, x, key=key),
        "three": propagation.lyapunov(stack, params, x, key=key, count=3).exponents,
        "singular_values": values,
    }
    if np.isfinite(values).all():
        out["isometry"] = propagation.isometry(values)
    # Computed in float64 from weights in float32, whose last digit depends on the processor.
    tolerance = 1e5
    hold(f"jacobians.{name}", out, left_out=("lyapunov/log_growth",), tolerance=tolerance)
    growth, old = out["lyapunov"].log_growth, recorded()[f"jacobians.{name}"]["lyapunov/log_growth"]
    assert difference(without_arbitrary(growth), without_arbitrary(old)) <= tolerance


def without_arbitrary(log_growth):
    """Leave out directions after a layer has set one to zero; rounding decides where they go on."""
    lost = np.logical_or.accumulate(np.isneginf(log_growth), axis=-1)
    before = np.logical_or.accumulate(lost, axis=0)[:-1]
    before = np.concatenate([np.zeros_like(lost[:1]), before])
    return np.where(before, 0.0, log_growth)


def test_isometry():
    logs = [[0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [50.0, 0.0, -800.0], [0.0, -1.0, -jnp.inf]]
    hold("jacobians.isometry", propagation.isometry(jnp.asarray(logs)))


PREDICTED = ("log_preactivation", "log_activation", "log_gradient", "log_last_gradient", "gap")


def predicted(activation, depth, w_variance, b_variance, square=1.0, gap=None):
    bias = {"bias": True, "b_variance": b_variance} if b_variance else {}
    network = layers.mlp(8, depth, activation, w_variance=w_variance, **bias)
    moments = Moments(log_q=np.log(square), gap=gap)
    result = propagation.predict(network, moments, pairs=gap is not None)
    return {field: getattr(result, field) for field in (*PREDICTED, "log_ratio")}


@every()
def test_predict(name):
    phi = named(name)
    biased, unbiased = predicted(phi, 6, 1.6, 0.1, 0.9, 0.4), predicted(phi, 6, 1.6, 0.0)
    hold(f"theory.predict.{name}", {"biased": biased, "unbiased": unbiased})


def test_predict_for_several_inputs():
    squares, gaps = np.asarray([0.1, 1.0, 9.0]), np.asarray([0.1, 0.5, 1.0])
    hold("theory.many_inputs", predicted("tanh", 4, 1.6, 0.1, squares, gaps))


MOMENTS = Moments(0.3, 0.0, 0.0, 0.5)
PREDICTED_BLOCKS = {
    "dense_tanh": (BLOCKS["tanh_bias"], MOMENTS),
    "residual_gelu": (
        layers.residual(layers.sequential(GELU, layers.dense(8, w_variance=1.3)), 0.7),
        Moments(0.3, 0.0, 0.0, 0.5, gaussian=True),
    ),
    "batch_norm": (BLOCKS["batch_norm"], MOMENTS),
    "layer_norm": (layers.sequential(layers.dense(8), layers.layer_norm(1e-5), GELU), MOMENTS),
    "dropout": (BLOCKS["dropout"], MOMENTS),
    "convolution_zero": (
        layers.sequential(
            layers.convolution(8, (3,), padding="SAME", w_variance=2.0), layers.activation("relu")
        ),
        Moments(np.zeros(4), 0.0, 0.0, 0.5),
    ),
}


@pytest.mark.parametrize("name", PREDICTED_BLOCKS)
def test_predict_blocks(name):
    block, moments = PREDICTED_BLOCKS[name]
    each = []
    for _ in range(5):
        moments = block.predict(moments)
        each.append([moments.log_q, moments.log_gradient, moments.mean, moments.gap])
    rows = [np.stack(part) for part in zip(*each, strict=True)]
    out = dict(zip(("log_q", "log_gradient", "mean", "gap"), rows, strict=True))
    hold(f"theory.predict_blocks.{name}", out)
    result = propagation.predict(layers.repeat(block, 5), PREDICTED_BLOCKS[name][1], pairs=True)
    fields = {
        "log_q": result.log_activation,
        "log_gradient": result.log_gradient,
        "gap": result.gap,
    }
    if name != "convolution_zero":
        hold(f"theory.predict_blocks.{name}", fields, left_out=("mean",))


def test_gradients_of_theory():
    def last(w_variance):
        network = layers.mlp(8, 5, "gelu", w_variance=w_variance, b_variance=0.1, bias=True)
        return propagation.predict(network, Moments(log_q=0.0)).log_gradient[-1]

    with jax.enable_x64(True):
        out = {
            "limit": jax.grad(lambda w: theory.limit("tanh", w, 0.1).q)(1.6),
            "critical": jax.grad(lambda b: theory.critical("tanh", b).w_variance)(0.05),
            "predict": jax.grad(last)(1.6),
        }
    hold("theory.gradients", out)
