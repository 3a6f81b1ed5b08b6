"""Layers and fully connected networks: draws, outputs, gradients, states, predictions of 0.1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers, layers
from jaxgrad.layers._normalization import normalize, statistics, update
from jaxgrad.theory import Moments
from tests.reference.record import hold

# What these numbers hold is tested by quicker tests, too.
pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
ORTHOGONAL, DELTA = initializers.orthogonal(), initializers.delta_orthogonal()

# Options of a network of width 6 and depth 4 on 5 features, options on top for the scaled one.
NETWORKS = {
    "plain": ({}, {}),
    "square": ({"activation": "relu", "in_features": 6}, {}),
    "biases": ({"bias": True, "b_variance": 0.5}, {"b_variance": 0.15}),
    "readout": (
        {
            "activation": "relu",
            "out_features": 2,
            "bias": True,
            "b_variance": 1.0,
            "bias_init": initializers.zeros(),
            "kernel_init": initializers.he(),
        },
        {},
    ),
    "parametric": ({"activation": "parametric_relu"}, {}),
    "one_layer": ({"activation": "gelu", "depth": 1}, {}),
    "orthogonal": (
        {
            "activation": "erf",
            "in_features": 6,
            "kernel_init": ORTHOGONAL,
            "bias": True,
            "b_variance": 0.1,
        },
        {"b_variance": 0.03},
    ),
    "randomized": ({"activation": "randomized_leaky_relu"}, {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_mlp(name):
    options, scaled = NETWORKS[name]
    options = {"width": 6, "depth": 4, "in_features": 5} | options
    in_features = options.pop("in_features")
    x = jax.random.normal(jax.random.key(3), (3, in_features))
    network = layers.mlp(**options)
    params, _ = layers.init(network, (in_features,), key=KEY)

    def loss(x):
        return jnp.sum(jnp.sin(layers.apply(network, params, None, x)[0]))

    out = {
        "params": params,
        "output": layers.apply(network, params, None, x)[0],
        "gradient": jax.grad(loss)(x),
        "drawn": layers.apply(network, params, None, x, key=jax.random.key(4))[0],
    }
    # Variances that were multiplied into parameters, and now are the layer's.
    for parameterization in ("standard", "ntk"):
        more = {"w_variance": 2.5, "parameterization": parameterization} | scaled
        larger = layers.mlp(**options | more)
        larger_params, _ = layers.init(larger, (in_features,), key=KEY)
        out["scaled"] = layers.apply(larger, larger_params, None, x)[0]
        hold(f"networks.{name}", out)


M = Moments(log_q=0.3, log_gradient=0.1, mean=0.2, gap=0.7)
GAUSSIAN = Moments(log_q=0.3, log_gradient=0.1, mean=0.2, gap=0.7, gaussian=True)
BY_POSITION = Moments(log_q=jnp.linspace(-1.0, 1.0, 5), gap=0.5)
BOTH_BY_POSITION = Moments(log_q=jnp.linspace(-1.0, 1.0, 3), gap=jnp.linspace(0.2, 0.9, 3))
ONE_UNIT = layers.dense(2, b_variance=0.1, bias=True)

# The layer, the shape of its inputs, the moments whose prediction is compared.
LAYERS = {
    "dense": (layers.dense(4, w_variance=2.0), (3,), M),
    "dense_bias": (
        layers.dense(4, w_variance=1.5, b_variance=0.2, bias=True, kernel_init=ORTHOGONAL),
        (3,),
        M,
    ),
    "convolution": (layers.convolution(3, w_variance=1.5), (4, 4, 2), M),
    "convolution_zero": (
        layers.convolution(2, (3,), padding="SAME", w_variance=1.5, b_variance=0.1, bias=True),
        (5, 2),
        BY_POSITION,
    ),
    "convolution_delta": (layers.convolution(3, (3,), kernel_init=DELTA), (4, 2), M),
    "activation_tanh": (layers.activation("tanh"), (4,), GAUSSIAN),
    "activation_randomized": (layers.activation("randomized_leaky_relu"), (4,), GAUSSIAN),
    "activation_parametric": (layers.activation("parametric_relu"), (4,), GAUSSIAN),
    "layer_norm": (layers.layer_norm(1e-5), (5,), M),
    "batch_norm": (layers.batch_norm(1e-5), (3,), M),
    "batch_norm_spatial": (
        layers.batch_norm(1e-3, spatial=1, momentum=0.8),
        (3, 2),
        BOTH_BY_POSITION,
    ),
    "dropout": (layers.dropout(0.25), (6,), M),
    "residual": (
        layers.residual(
            layers.sequential(layers.activation("relu"), layers.dense(4, w_variance=1.3)), 0.5
        ),
        (4,),
        GAUSSIAN,
    ),
    "sequential": (
        layers.sequential(
            layers.dense(4),
            layers.batch_norm(1e-5),
            layers.activation("relu"),
            layers.dropout(0.25),
            ONE_UNIT,
        ),
        (3,),
        M,
    ),
    "repeat": (
        layers.repeat(
            layers.sequential(layers.dense(4, w_variance=1.5), layers.activation("tanh")), 5
        ),
        (4,),
        M,
    ),
    "repeat_norm": (
        layers.repeat(
            layers.residual(
                layers.sequential(
                    layers.batch_norm(1e-5),
                    layers.activation("relu"),
                    layers.dropout(0.25),
                    layers.dense(4),
                )
            ),
            3,
        ),
        (4,),
        GAUSSIAN,
    ),
    "repeat_active": (
        layers.repeat(
            layers.sequential(layers.dense(4, w_variance=1.5), layers.activation("relu")),
            5,
            active=3,
        ),
        (4,),
        M,
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    layer, shape, moments = LAYERS[name]
    params, state = layers.init(layer, shape, key=KEY)
    x = jax.random.normal(jax.random.key(5), (4, *shape)) + 0.3
    out = {"params": params, "homogeneous": layer.homogeneous, "mixes": layer.mixes}
    out |= applied(layer, params, state, x)
    out["shape"] = np.asarray(out["plain"].shape[1:])
    after = layer.predict(moments)
    names = ("log_q", "log_gradient", "mean", "gap", "gaussian")
    out["predict"] = {name: getattr(after, name) for name in names}
    hold(f"layers.{name}", out)


@functools.partial(jax.jit, static_argnums=0)
def applied(layer, params, state, x):
    """The outputs of all ways to apply a layer, from one program."""
    key = jax.random.key(6)

    def apply(x, key=None, state=None):
        return layers.apply(layer, params, state, x, key=key)

    out = {
        "drawn": apply(x, key)[0],
        "plain": apply(x)[0],
        "gradient": jax.grad(lambda x: jnp.sum(jnp.sin(apply(x, key)[0])))(x),
    }
    _, state = apply(x, key, state)
    out["training"], state = apply(2 * x, jax.random.key(8), state)
    out["use"], _ = apply(x, None, state)
    return out | {"state": state}


def test_parts_of_norms():
    h = jax.random.normal(jax.random.key(1), (4, 3, 2)) + 0.5
    batch, spatial = statistics(h, (0,)), statistics(h, (0, 1))
    constant = h.at[:, 0].set(1.0)
    out = {
        "batch": batch,
        "spatial": spatial,
        "normalized": normalize(h, batch),
        "constant": normalize(constant, statistics(constant, (0,))),
        "epsilon": normalize(h, spatial, 0.1),
        "updated": update(batch, statistics(h * 2, (0,)), 0.7),
    }
    hold("normalization.parts", out)
