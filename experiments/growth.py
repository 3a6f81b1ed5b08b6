"""How a squared gradient grows per layer in a typical network: measured, and predicted.

The gradient is that of one example with respect to the first layer's pre-activations. It is a
product of one factor a layer, so its log is a sum: means are means of logs, over networks and
examples. Growth is how that log changes when the network gets one layer deeper.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import propagation, theory
from jaxgrad.theory import finite_width


class Followed(NamedTuple):
    """Theory for several variances; natural logs, float64.

    Attributes:
      log_gradient: of the squared gradient at infinite width, `[points, depth, examples]`.
      log_last_gradient: the same with respect to the last layer's pre-activations.
      typical: mean over examples and networks of the log at the width, `[points, depth]`.
    """

    log_gradient: np.ndarray
    log_last_gradient: np.ndarray
    typical: np.ndarray

    @property
    def infinite(self) -> np.ndarray:
        """Mean over examples of the log at infinite width, `[points, depth]`."""
        return self.log_gradient.mean(axis=-1)


def measure(
    params: Any, x: jax.Array, key: jax.Array, activation: str, w_variance: Any, b_variance: Any
) -> jax.Array:
    """Mean over examples of the log squared gradient, by depth, `[depth]`.

    A probe of one example at a time: the log of a mean over examples is another number, nearer to
    what infinite width says. Examples whose gradient is exactly 0, in dead networks, are left out.
    """

    def one(row, key):
        options = {"w_variance": w_variance, "b_variance": b_variance}
        return propagation.probe(params, row[None], key, activation, **options).log_gradient

    logs = jax.vmap(one)(x, jax.random.split(key, len(x)))
    return jnp.mean(logs, axis=0, where=jnp.isfinite(logs))


def follow(
    activation: str,
    depth: int,
    w_variance: np.ndarray,
    b_variance: np.ndarray,
    x: np.ndarray,
    *,
    width: int,
) -> Followed:
    """Predict what `measure` finds, at the points of two arrays `[points]`, for the same inputs.

    The part that a finite width adds is that of one example of the geometric mean size.
    """
    squares = np.mean(np.square(x, dtype=np.float64), axis=1)
    central = np.exp(np.mean(np.log(squares)))

    def infinite(w_variance, b_variance):
        together = np.append(squares, central)
        return theory.predict(activation, depth, w_variance, b_variance, input_square=together)

    def at_width(w_variance, b_variance):
        law = finite_width.gradient_law(
            activation, depth, w_variance, b_variance, width=width, input_square=central
        )
        return law.mean_log

    with jax.enable_x64(True):
        points = (jnp.asarray(w_variance, float), jnp.asarray(b_variance, float))
        found = jax.vmap(infinite)(*points)
        log_gradient = np.asarray(found.log_gradient)
        log_last = np.asarray(found.log_last_gradient)
        mean_log = np.asarray(jax.vmap(at_width)(*points))
    added = mean_log - log_gradient[..., -1]
    log_gradient = log_gradient[..., :-1]
    typical = log_gradient.mean(axis=-1) + added
    return Followed(log_gradient, log_last[..., :-1], typical)


def per_layer(log_gradient: Any, start: int = 1) -> Any:
    """Growth per layer from depth `start` to the last, `[..., depth] -> [...]`."""
    layers = log_gradient.shape[-1] - start
    return (log_gradient[..., -1] - log_gradient[..., start - 1]) / layers


def z_score(mean: float, error: float, expected: float) -> str:
    """How many standard errors a measured mean is from what is expected."""
    return f"{(mean - expected) / error:+.1f}" if error > 0 else "?"
