"""The protocol of a layer, and the two functions that draw and apply any layer.

A layer is a frozen dataclass and a pytree. What decides the program, such as a number of features,
is a static field; what is only a number in it, such as a variance, is a leaf. A layer is therefore
an argument of a compiled program like any array: layers of equal structure share one program, and
`jax.vmap` maps over hyper-parameters.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.layers import _log_space
from jaxgrad.layers._log_space import Derivative, Scaled, Stack
from jaxgrad.theory import Moments

Params = Any
"""Parameters of a layer: any pytree of arrays."""

State = Any
"""What a layer carries from batch to batch: any pytree of arrays, `()` for nothing."""

Shape = tuple[int, ...]
"""Shape of one example: `(features,)` or `(*spatial, channels)`."""

T = TypeVar("T")


def static(**options: Any) -> Any:
    """Declare a field of a layer that is part of its structure, not a number in its program.

    Args:
      **options: as of `dataclasses.field`, for example `default`.
    """
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def layer(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree, as every layer is.

    Fields declared with `static()` must be hashable. The others are leaves, or pytrees such as
    other layers. The generated `__init__` should not check values, since JAX calls it with tracers;
    check them in a function that builds the layer.
    """
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class Layer:
    """Base class of all layers; see `layer` for how to make one.

    A subclass defines `draw` and `apply`, and `predict` if its theory is known.
    """

    def draw(self, shape: Shape, *, key: PRNGKeyArray, dtype: Any) -> tuple[Params, Shape]:
        """Draw the parameters.

        Args:
          shape: of one input example, without the batch.
          key: PRNG key.
          dtype: floating dtype of the parameters.

        Returns:
          The parameters, and the shape of one output example.
        """
        raise NotImplementedError(f"{type(self).__name__} must define draw")

    def apply(
        self,
        params: Params,
        state: State,
        h: Float[Array, "batch *shape"],
        *,
        key: PRNGKeyArray | None = None,
    ) -> tuple[Float[Array, "batch *out"], State]:
        """Compute the outputs and the next state; see `jaxgrad.layers.apply`."""
        raise NotImplementedError(f"{type(self).__name__} must define apply")

    def predict(self, moments: Moments) -> Moments:
        """Return the moments of the outputs at infinite width, from those of the inputs."""
        raise NotImplementedError(
            f"{type(self).__name__} has no prediction; define predict(self, moments)"
        )

    def init_state(self, params: Params) -> State:
        """Return the state before the first batch of training; `()` if nothing is carried."""
        return ()

    def linearize(
        self, params: Params, h: Scaled, *, key: PRNGKeyArray | None = None
    ) -> tuple[Scaled, Derivative]:
        """Apply the layer, as it is drawn, to a signal and differentiate it there.

        The default differentiates `apply`. A layer overrides it if its outputs or slopes can leave
        the range of floating-point numbers where their logs do not.
        """
        return _log_space.linearize(self, params, h, key=key)

    def stacks(self, params: Params, *, key: PRNGKeyArray | None = None) -> tuple[Stack, ...]:
        """Return the entries of the layer's depth axis in order; by default it is one entry."""
        return (_log_space.single(self, params, key=key),)

    def predict_each(self, moments: Moments) -> tuple[Moments, ...]:
        """Return the moments after each entry of the depth axis, which is their leading axis.

        There is one item for each of `stacks`.
        """
        return (jax.tree.map(lambda a: jnp.asarray(a)[None], self.predict(moments)),)

    @property
    def homogeneous(self) -> bool:
        """Whether `c h` gives `c` times the outputs of `h`, for every `c > 0` of each example.

        The signal of such a layer is rescaled on its way through a deep network, which is exact.
        """
        return False

    @property
    def mixes(self) -> bool:
        """Whether an output depends on other examples of the batch, as in batch norm."""
        return False


def init(
    layer: Layer, shape: Sequence[int], *, key: PRNGKeyArray, dtype: Any = jnp.float32
) -> tuple[Params, State]:
    """Draw the parameters of a layer, and its state before the first batch.

    The program is compiled once for each structure of the layer, shape and dtype.

    Args:
      layer: any layer.
      shape: of one example, without the batch: `(features,)` or `(*spatial, channels)`.
      key: PRNG key.
      dtype: floating dtype of the parameters.

    Returns:
      The parameters, and the state for `apply`.

    Raises:
      ValueError, TypeError: if an argument is not as described, or the layer does not take inputs
        of this shape.

    >>> from jaxgrad import layers
    >>> params, state = layers.init(layers.dense(8), (3,), key=jax.random.key(0))
    >>> params["kernel"].shape, state
    ((3, 8), ())
    """
    _check_layer(layer)
    shape = _validate.shape("shape", shape, 1)
    _validate.key("key", key)
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"dtype must be floating, got {jnp.dtype(dtype)}; pass jnp.float32")
    return _init(layer, shape, key, jnp.dtype(dtype))


def apply(
    layer: Layer,
    params: Params,
    state: State,
    x: Float[Array | np.ndarray, "batch *shape"],
    *,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "batch *out"], State]:
    """Compute the outputs of a layer: as it is drawn, in training or in use.

    The program is compiled once for each structure of the layer and shapes of the arrays.

    Args:
      layer: any layer.
      params: from `init`.
      state: `None` for the layer as it is drawn: nothing is carried, and batch norm takes the
        statistics of the batch. Otherwise from `init` or an earlier call.
      x: inputs, `[batch, *shape]`, floating point, finite.
      key: PRNG key of dropout and randomized activations; `None` switches both off. With a state,
        a key means training: batch norm takes the statistics of the batch and updates the running
        ones. No key means use: batch norm takes the running statistics.

    Returns:
      The outputs, `[batch, *out]`, and the next state, which changes in training only.

    Raises:
      ValueError, TypeError: if an argument is not as described, or the parameters, the state and
        the inputs do not fit the layer.

    >>> from jaxgrad import layers
    >>> network = layers.sequential(layers.dense(8), layers.batch_norm(1e-5), layers.dropout(0.1))
    >>> params, state = layers.init(network, (4,), key=jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (32, 4))
    >>> h, state = layers.apply(network, params, state, x, key=jax.random.key(2))  # training
    >>> h, _ = layers.apply(network, params, state, x)  # use
    >>> h.shape
    (32, 8)
    """
    _check_layer(layer)
    x = _validate.floating("x", x, max(np.ndim(x), 2), "[batch, *shape]")
    if key is not None:
        _validate.key("key", key)
    return _apply(layer, params, state, x, key)


@functools.partial(jax.jit, static_argnums=(1, 3))
def _init(layer, shape, key, dtype):
    params, _ = layer.draw(shape, key=key, dtype=dtype)
    return params, layer.init_state(params)


@jax.jit
def _apply(layer, params, state, x, key):
    # Shapes are known while tracing, so that these checks cost nothing in later calls.
    check_fit(layer, params, state, x)
    return layer.apply(params, state, x, key=key)


def check_fit(layer: Layer, params: Params, state: State, x: Array) -> None:
    """Raise unless `params` and `state` have the structure that the layer draws for `x`."""
    shape = x.shape[1:]
    # Only shapes matter here, so any key will do.
    drawn = jax.eval_shape(
        lambda layer: layer.draw(shape, key=jax.random.key(0), dtype=jnp.float32)[0], layer
    )
    _check_tree("params", params, drawn, shape)
    if state is not None:
        _check_tree("state", state, jax.eval_shape(layer.init_state, drawn), shape)


def _check_tree(name, given, expected, shape):
    advice = (
        f"; take {name} from jaxgrad.layers.init(layer, {shape}, ...), or pass x of the shape that "
        "they were drawn for"
    )
    if jax.tree.structure(given) != jax.tree.structure(expected):
        raise ValueError(
            f"{name} must have the structure {jax.tree.structure(expected)} that the layer draws "
            f"for x of shape [batch, *{shape}], got {jax.tree.structure(given)}{advice}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(expected)
    for (path, leaf), value in zip(leaves, jax.tree.leaves(given), strict=True):
        if np.shape(value) != leaf.shape:
            label = jax.tree_util.keystr(path, simple=True, separator="/")
            raise ValueError(
                f"{name} must fit x of shape [batch, *{shape}], which takes {label!r} of shape "
                f"{leaf.shape}, got {np.shape(value)}{advice}"
            )


def check_is_layer(name: str, value: Any) -> None:
    """Raise unless `value` is a `Layer`."""
    if not isinstance(value, Layer):
        raise TypeError(
            f"{name} must be a Layer, got {value!r}; make one with a function of jaxgrad.layers, "
            "or derive a class from jaxgrad.layers.Layer and decorate it with @jaxgrad.layers.layer"
        )


def _check_layer(layer):
    check_is_layer("layer", layer)
    for leaf in jax.tree.leaves(layer):
        if not isinstance(leaf, (int, float, np.ndarray, np.generic, jax.Array)):
            raise TypeError(
                f"layer must hold numbers, arrays and layers in its fields, got {leaf!r}; declare "
                "fields of another kind with jaxgrad.layers.static()"
            )


def number(value: Any) -> Any:
    """Return a hyper-parameter as a `float` or an array, so that 1 and 1.0 make one program."""
    return value if isinstance(value, jax.Array) else float(value)


def fold_key(key: PRNGKeyArray | None, index: Any) -> PRNGKeyArray | None:
    """Return the key of one part of a layer; `None` stays."""
    return None if key is None else jax.random.fold_in(key, index)
