"""Initializers: the draws of 0.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgrad import initializers
from jaxgrad.initializers import critical, fans
from tests.reference.record import hold, recorded

# What these numbers hold is tested by quicker tests, too.
pytestmark = pytest.mark.slow

KEY = jax.random.key(7)
SHAPES = {"dense": (5, 7), "convolution": (3, 1, 2, 4)}
SMALL = {"dense": (2, 3)}
DISTRIBUTIONS = ("normal", "uniform", "truncated")


def drawn(initializer, shapes=None, dtype=jnp.float32):
    shapes = SHAPES if shapes is None else shapes
    return {name: initializer(KEY, shape, dtype) for name, shape in shapes.items()}


def test_plain():
    normal = initializers.normal(0.3)
    out = {
        "constant": drawn(initializers.constant(1.5), SMALL),
        "zeros": drawn(initializers.zeros(), SMALL),
        "normal": drawn(normal),
        "uniform": drawn(initializers.uniform(0.3)),
        "normal_bfloat16": drawn(normal, dtype=jnp.bfloat16),
    }
    hold("initializers.plain", out)


def test_variance_scaling():
    scaling = initializers.variance_scaling
    out = {
        f"{mode}_{distribution}": drawn(scaling(1.7, mode, distribution))
        for mode in ("fan_in", "fan_out", "fan_avg")
        for distribution in DISTRIBUTIONS
    }
    out["grouped"] = scaling(1.7, "fan_avg", groups=2, strides=(2, 1))(KEY, (3, 1, 2, 4))
    out["transposed"] = scaling(1.7, "fan_in", strides=2, transposed=True)(KEY, (4, 4, 2, 3))
    hold("initializers.variance_scaling", out)


def test_named():
    out = {
        f"{name}_{distribution}": drawn(getattr(initializers, name)(distribution))
        for name in ("lecun", "glorot", "he")
        for distribution in DISTRIBUTIONS
    }
    out["he_leaky"] = drawn(initializers.he("normal", "fan_out", 0.2))
    hold("initializers.named", out)


def test_orthogonal():
    shapes = {"square": (4, 4), "wide": (3, 5), "tall": (5, 3), "convolution": (3, 1, 2, 4)}
    out = {
        "orthogonal": drawn(initializers.orthogonal(1.3), shapes),
        "delta": drawn(initializers.delta_orthogonal(1.3), shapes),
    }
    hold("initializers.orthogonal", out)


def test_fans():
    rows = [
        fans((5, 7)),
        fans((3, 3, 16, 32)),
        fans((3, 3, 1, 64), groups=64),
        fans((3, 3, 16, 32), strides=2),
        fans((4, 4, 16, 8), strides=2, transposed=True),
        fans((3, 5, 4, 8), strides=(1, 2), groups=2),
    ]
    hold("initializers.fans", np.asarray(rows))


def test_critical():
    points = {
        "tanh": critical("tanh"),
        "tanh_bias": critical("tanh", 0.05),
        "relu": critical("relu"),
        "gelu": critical("gelu"),
        "silu_q": critical("silu", q=3.0),
        "relu_width": critical("relu", width=64),
        "tanh_width": critical("tanh", 0.05, width=64, distribution="truncated"),
        "elu_uniform": critical("elu", distribution="uniform"),
    }
    out = {
        name: {
            "w_variance": point.w_variance,
            "b_variance": point.b_variance,
            "q": point.q,
            "kernel": point.kernel(KEY, (3, 4)),
            "bias": point.bias(KEY, (4,)),
        }
        for name, point in points.items()
    }
    hold("initializers.critical", out)


def test_fixup():
    start = initializers.fixup(16, 3)
    out = {
        "inner": drawn(start.inner),
        "last": drawn(start.last, SMALL),
        "two": drawn(initializers.fixup(9).inner),
    }
    hold("initializers.fixup", out)


def test_unit_variance():
    x = jax.random.normal(jax.random.key(0), (16, 6))
    # The network that was scaled is that of another group.
    start = recorded()["initializers.unit_variance.start"]
    first, hidden = (
        {name: jnp.asarray(start[f"{part}/{name}"]) for name in ("kernel", "bias")}
        for part in ("first", "hidden")
    )

    def outputs(params):
        def step(h, layer):
            z = h @ layer["kernel"] + layer["bias"][None]
            return jnp.tanh(z), z

        h, z = step(x, params["first"])
        stacked = jax.lax.scan(step, h, params["hidden"])[1]
        return {"first": {"kernel": z, "bias": None}, "hidden": {"kernel": stacked, "bias": None}}

    params = {"first": first, "hidden": hidden}
    scaled = initializers.unit_variance(params, outputs, stacked={"first": False, "hidden": True})
    hold("initializers.unit_variance", scaled, tolerance=5)
