"""The protocol of a layer, and the two functions that draw and apply any layer.

A layer is a frozen dataclass and a pytree. Fields that decide the program, such as a number of
features, are static; numbers that only enter it, such as a variance, are leaves. A layer can
therefore be an argument of a compiled program: layers of equal structure share one program, and
`jax.vmap` maps over hyper-parameters.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PRNGKeyArray

from jaxgrad import _validate
from jaxgrad.layers import _log_space
from jaxgrad.layers._log_space import Copy, Derivative, Scaled, Stack
from jaxgrad.theory import Moments

Params = Any
"""Parameters of a layer: any pytree of arrays."""

State = Any
"""What a layer carries from batch to batch: any pytree of arrays, `()` for nothing."""

Shape = tuple[int, ...]
"""Shape of one example: `(features,)` or `(*spatial, channels)`."""

T = TypeVar("T")


def static(**options: Any) -> Any:
    """Declare a field that is part of a layer's structure; options as of `dataclasses.field`."""
    return dataclasses.field(metadata={"static": True}, **options)


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def layer(cls: type[T]) -> type[T]:
    """Make a class a frozen dataclass and a pytree, as every layer is.

    Fields declared with `static()` are compared by `==`, so that they cannot be arrays; the others
    hold numbers, arrays or layers.
    """
    if not isinstance(cls, type):
        raise TypeError(f"cls must be a class, got {_validate.show(cls)}; decorate a class")
    # JAX calls `__init__` with tracers, so that values are checked where layers are made.
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True)(cls))


class Layer:
    """Base class of layers: define `draw`, `apply` and, where theory knows it, `predict`."""

    # The signal of a homogeneous layer may be rescaled on its way through a deep network.
    homogeneous: Any = False
    """Whether an example times `c > 0` gives outputs times `c`."""

    mixes: Any = False
    """Whether an output depends on other examples of the batch, as in batch norm."""

    vocabulary: Any = None
    """Number of ids that inputs may have, as of an embedding; `None` for floating-point inputs."""

    def draw(self, shape: Shape, *, key: PRNGKeyArray, dtype: Any) -> tuple[Params, Shape]:
        """Draw the parameters for inputs of a shape, without the batch; return the outputs' too."""
        raise NotImplementedError(f"{type(self).__name__} must define draw")

    def init_state(self, params: Params) -> State:
        """Return the state before the first batch of training; `()` if nothing is carried."""
        return ()

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
        raise NotImplementedError(f"{type(self).__name__} must define predict to be predicted")

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
        copy = Copy(params, jnp.zeros((), int), key)
        return (Stack(self, jax.tree.map(lambda leaf: leaf[None], copy)),)

    def predict_each(self, moments: Moments) -> tuple[Moments, ...]:
        """Return for each of `stacks` the moments after its entries, which are a leading axis."""
        return (jax.tree.map(lambda a: jnp.asarray(a)[None], self.predict(moments)),)


def init(
    layer: Layer, shape: Sequence[int], *, key: PRNGKeyArray, dtype: Any = jnp.float32
) -> tuple[Params, State]:
    """Draw the parameters of a layer, and return them with its state before the first batch.

    Compiled once for each structure of the layer, dtype and `shape`, which is that of one example
    without the batch: `(features,)` or `(*spatial, channels)`.

    >>> from jaxgrad import layers
    >>> params, state = layers.init(layers.dense(8), (3,), key=jax.random.key(0))
    >>> params["kernel"].shape, state
    ((3, 8), ())
    """
    _check_fields(layer)
    shape = _validate.shape("shape", shape, 1)
    _validate.key("key", key)
    return _init(layer, shape, key, _validate.dtype("dtype", dtype))


def apply(
    layer: Layer,
    params: Params,
    state: State,
    x: Num[ArrayLike, "batch *shape"],
    *,
    key: PRNGKeyArray | None = None,
) -> tuple[Float[Array, "batch *out"], State]:
    """Compute the outputs of a layer and its next state: as drawn, in training or in use.

    Compiled once for each structure of the layer and shapes of the arrays.

    Args:
      layer, params: any layer, and its parameters from `init`.
      state: `None` for the layer as it is drawn: nothing is carried, and batch norm takes the
        statistics of the batch. Otherwise from `init` or an earlier call.
      x: inputs, floating point, finite; ids of integer type if the first layer is an embedding.
      key: PRNG key of dropout and randomized activations; `None` switches both off. With a state,
        a key means training: batch norm takes the statistics of the batch and updates the running
        ones. No key means use: batch norm takes the running statistics.

    >>> from jaxgrad import layers
    >>> network = layers.sequential(layers.dense(8), layers.batch_norm(1e-5), layers.dropout(0.1))
    >>> params, state = layers.init(network, (4,), key=jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (32, 4))
    >>> h, state = layers.apply(network, params, state, x, key=jax.random.key(2))  # training
    >>> h, _ = layers.apply(network, params, state, x)  # use
    """
    _check_fields(layer)
    _validate.tree("params", params, empty=True)
    _validate.tree("state", state, empty=True)
    x = _check_inputs(layer, x)
    if key is not None:
        _validate.key("key", key)
    return _apply(layer, params, state, x, key)


# The layer is an argument: its structure selects the program, its numbers are data.
@functools.partial(jax.jit, static_argnums=(1, 3))
def _init(layer, shape, key, dtype):
    params, _ = layer.draw(shape, key=key, dtype=dtype)
    return params, layer.init_state(params)


@jax.jit
def _apply(layer, params, state, x, key):
    # Checked while tracing, where shapes are known, so that later calls do not pay for it.
    check_fit(layer, params, state, x)
    return layer.apply(params, state, x, key=key)


def check_fit(layer: Layer, params: Params, state: State, x: Array) -> None:
    """Raise unless `params` and `state` have the shapes that the layer draws for `x`."""
    check_is_layer("layer", layer)
    shape = _validate.real("x", x).shape[1:]
    # Only shapes are computed, so that any key and dtype will do.
    drawn, initial = jax.eval_shape(
        lambda layer: _init(layer, shape, jax.random.key(0), jnp.dtype(jnp.float32)), layer
    )
    initial = None if state is None else initial
    for name, value, expected in (("params", params, drawn), ("state", state, initial)):
        wanted, actual = _shapes(expected), _shapes(value)
        if wanted != actual:
            raise ValueError(
                f"{name} must have the shapes {wanted} to fit x of shape [batch, *{shape}], got "
                f"{actual}; take {name} from jaxgrad.layers.init(layer, {shape}, ...), or pass x "
                "of the shape that was given there"
            )


def _check_inputs(layer, x):
    if layer.vocabulary is None:
        return _validate.floating("x", x, 2, "[batch, *shape]", more=True)
    x = _validate.real("x", x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"x must be ids of integer type for an embedding, got {x.dtype}; pass the ids, or take "
            "the embedding out of the network"
        )
    if not x.size or x.ndim < 2:
        raise ValueError(f"x must have shape [batch, *shape] and ids, got {x.shape}; reshape it")
    if not _validate.is_traced(x) and not 0 <= np.min(x) <= np.max(x) < layer.vocabulary:
        raise ValueError(
            f"x must hold ids from 0 to {layer.vocabulary - 1}, got {np.min(x)} to {np.max(x)}; "
            "give the embedding a larger vocabulary"
        )
    return x


def _shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {keystr(path): np.shape(leaf) for path, leaf in leaves}


def check_is_layer(name: str, value: Any) -> None:
    """Raise unless `value` is a `Layer`."""
    if not isinstance(value, Layer):
        raise TypeError(
            f"{name} must be a Layer, got {_validate.show(value)}; make one with a function of "
            "jaxgrad.layers, or derive a class from jaxgrad.layers.Layer and decorate it with "
            "@jaxgrad.layers.layer"
        )


def _check_fields(layer):
    check_is_layer("layer", layer)
    # A leaf of another kind would be refused by JAX, without the name of the field.
    for leaf in jax.tree.leaves(layer):
        if not isinstance(leaf, (int, float, np.ndarray, np.generic, jax.Array)):
            raise TypeError(
                "layer must hold numbers, arrays and layers in its fields, got "
                f"{_validate.show(leaf)}; declare other fields with jaxgrad.layers.static()"
            )


def number(value: Any) -> Any:
    """Return a hyper-parameter as a `float` or an array, so that 1 and 1.0 share a program."""
    return value if isinstance(value, jax.Array) else float(value)


def fold_key(key: PRNGKeyArray | None, index: Any) -> Any:
    """Return the key of one part of a layer, or those of an array of parts; `None` stays `None`."""
    fold = jax.vmap(jax.random.fold_in, (None, 0)) if np.ndim(index) else jax.random.fold_in
    return None if key is None else fold(key, index)
