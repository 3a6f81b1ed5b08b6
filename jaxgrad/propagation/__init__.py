"""What a signal and a gradient do with depth in any layer: measured, and predicted by theory.

`probe` carries the signal and a random tangent forward, `exact` takes gradients back in reverse
mode, and `predict` follows moments at infinite width. All return a `Propagation`, so that a
prediction can be subtracted from a measurement field by field:

>>> import jax
>>> from jaxgrad import layers, propagation
>>> network = layers.mlp(64, 20, "relu", w_variance=2.0)
>>> x = jax.random.normal(jax.random.key(0), (8, 16))
>>> params, _ = layers.init(network, (16,), key=jax.random.key(1))
>>> measured = propagation.probe(network, params, x, key=jax.random.key(2))
>>> difference = measured - propagation.predict(network, x)
>>> bool(abs(difference.log_gradient[-1]) < 2.0)
True

`lyapunov` and `singular_values` say what becomes of every direction rather than of their mean.

Whatever grows or shrinks with depth is carried as an array of ordinary size and the logarithm of
its scale, so that ten thousand layers neither overflow nor underflow. All functions raise
`ValueError` or `TypeError` if an argument is not as described.
"""

from jaxgrad.propagation._backward import exact
from jaxgrad.propagation._directions import (
    Isometry,
    Lyapunov,
    isometry,
    lyapunov,
    singular_values,
)
from jaxgrad.propagation._forward import probe
from jaxgrad.propagation._prediction import predict
from jaxgrad.propagation._result import Propagation

__all__ = [
    "Isometry",
    "Lyapunov",
    "Propagation",
    "exact",
    "isometry",
    "lyapunov",
    "predict",
    "probe",
    "singular_values",
]
