"""A classifier is a `jaxgrad.layers.Layer` whose outputs are logits; here it is trained and used.

All functions are pure and made to be called inside `jax.jit`, mapped over seeds and over numbers
such as variances, learning rates and penalties, which may be traced leaves of the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments._kit.data import Examples
from jaxgrad import training


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy of logits `[examples, classes]`."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def error_rate(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of examples whose largest logit is that of another class."""
    return jnp.mean(jnp.argmax(logits, axis=-1) != labels)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of examples whose largest logit is that of their class."""
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels)


def logits(layer: Any, params: Any, state: Any, x: jax.Array) -> jax.Array:
    """Outputs of a network in use: no dropout, and the running statistics of batch norm."""
    return layer.apply(params, state, x, key=None)[0]


def train(
    layer: Any,
    params: Any,
    optimizer: optax.GradientTransformation,
    examples: Examples,
    *,
    key: jax.Array,
    steps: int,
    batch_size: int,
    penalty: Callable[[Any], Any] | None = None,
    inputs: Callable[[Any, jax.Array], jax.Array] | None = None,
    **options: Any,
) -> training.Fit:
    """Minimize the mean cross entropy of a classifier, by `jaxgrad.training.fit` with `options`.

    Args:
      layer: the network; a state, as batch norm has, starts at `layer.init_state(params)`.
      params: where training starts.
      optimizer: an optax optimizer.
      examples: the training set. Its inputs may be anything that `inputs` turns into inputs.
      key: of the order of examples, and of dropout and `inputs` in each step.
      penalty: of the parameters, to be added to the loss.
      inputs: `(batch.x, key) -> inputs` of the network, for example augmented images; then the key
        of a step is split, for `inputs` and for the network.
    """

    def loss(params, state, batch, key):
        x = batch.x
        if inputs is not None:
            key_inputs, key = jax.random.split(key)
            x = inputs(x, key_inputs)
        outputs, state = layer.apply(params, state, x, key=key)
        value = cross_entropy(outputs, batch.labels)
        return value if penalty is None else value + penalty(params), state

    options |= {"steps": steps, "batch_size": batch_size, "state": layer.init_state(params)}
    return training.fit(loss, params, optimizer, examples, key=key, **options)
