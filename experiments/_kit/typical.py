"""The squared gradient of a typical network: its growth per layer, measured and predicted.

The gradient is that of one example with respect to the first layer's pre-activations. It is a
product of one factor per layer, so its log is a sum, and all means are means of logs. Growth is the
change of that log when the network becomes one layer deeper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments._kit import data as datasets
from experiments._kit.options import SeededOptions, option
from jaxgrad import layers, propagation, theory


@dataclass(frozen=True)
class Options(SeededOptions):
    """Options of experiments whose networks are not trained."""

    data: str = option("digits", datasets.INPUT_HELP)
    examples: int = option(16, "Number of examples, drawn at random.", minimum=1)

    def check(self) -> None:
        """Raise ValueError if the data cannot be used."""
        super().check()
        datasets.check_inputs(self.data, self.examples)

    def inputs(self) -> np.ndarray:
        """Standardized inputs, `[examples, features]`."""
        return datasets.inputs(self.data, self.examples, self.first_seed)


def network(
    width: int, depth: int, activation: str, w_variance: Any, b_variance: Any, **options: Any
) -> Any:
    """An mlp whose parameters, once drawn, serve all variances; see `jaxgrad.layers.mlp`."""
    options = {"bias": True, "w_variance": w_variance, "b_variance": b_variance, **options}
    # The variances multiply in the function and not in the draw.
    return layers.mlp(width, depth, activation, parameterization="ntk", **options)


class Prediction(NamedTuple):
    """Theory for several variances; natural logs of squared gradients, float64."""

    log_gradient: np.ndarray  # at infinite width, `[points, depth, examples]`
    log_last_gradient: np.ndarray  # with respect to the last layer's pre-activations
    typical: np.ndarray  # mean over examples and networks of the width, `[points, depth]`
    log_activation: np.ndarray  # mean square of each layer's activations, as `log_gradient`

    @property
    def infinite(self) -> np.ndarray:
        """Mean over examples of the log at infinite width, `[points, depth]`."""
        return self.log_gradient.mean(axis=-1)


def measure(layer: Any, params: Any, x: jax.Array, *, key: jax.Array) -> jax.Array:
    """Mean over examples of the log squared gradient, by depth, `[depth]`.

    Examples whose gradient is exactly 0, in dead networks, are left out.
    """

    # One example at a time: the log of a mean over examples is closer to infinite width.
    def one(row, key):
        return propagation.probe(layer, params, row[None], key=key).log_gradient

    logs = jax.vmap(one)(x, jax.random.split(key, len(x)))
    return jnp.mean(logs, axis=0, where=jnp.isfinite(logs))


def predict(
    activation: str, depth: int, w_variance: Any, b_variance: Any, x: np.ndarray, *, width: int
) -> Prediction:
    """Predict the result of `measure` at pairs of variances, two arrays `[points]`, for inputs `x`.

    The effect of a finite width is computed for one example of the geometric mean size.
    """
    input_squares = np.mean(np.square(x, dtype=np.float64), axis=1)
    central = np.exp(np.mean(np.log(input_squares)))
    inputs = theory.Moments(log_q=np.log(np.append(input_squares, central)))

    def point(w, b):
        layer = layers.mlp(1, depth, activation, w_variance=w, b_variance=b, bias=True)
        infinite = propagation.predict(layer, inputs)
        law = theory.finite_width.gradient_law(
            activation, depth, w, b, width=width, input_square=central
        )
        logs = (infinite.log_gradient, infinite.log_last_gradient, infinite.log_activation)
        return *logs, law.mean_log

    with jax.enable_x64(True):
        points = (jnp.asarray(w_variance, float), jnp.asarray(b_variance, float))
        log_gradient, log_last, squares, mean_log = jax.device_get(jax.vmap(point)(*points))
    # The last column is the central example, whose logs at both widths give the effect of a width.
    effect = mean_log - log_gradient[..., -1]
    log_gradient = log_gradient[..., :-1]
    typical = log_gradient.mean(axis=-1) + effect
    return Prediction(log_gradient, log_last[..., :-1], typical, squares[..., :-1])


def per_layer(log_gradient: Any, start: int = 1) -> Any:
    """Growth per layer from depth `start` to the last, `[..., depth] -> [...]`."""
    # Depth 1 has index 0.
    count = log_gradient.shape[-1] - start
    return (log_gradient[..., -1] - log_gradient[..., start - 1]) / count
