"""Fully connected networks: a parameter pytree and pure functions that make and use it.

A network of depth `L` is `L` layers `h_l = phi(h_{l-1} W_l + b_l)` and, if asked for, a linear
readout. Layers 2 to L are stacked along a leading axis, so that `jax.lax.scan` runs over depth and
a thousand layers compile as fast as four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations, initializers
from jaxgrad.activations import Activation
from jaxgrad.initializers import Initializer
from jaxgrad._old_layers import Layer, repeat

Params = dict[str, Any]
"""`{"first": layer, "hidden": layers, "readout": layer}`.

A layer is `{"kernel": [in, out], "bias": [out], "activation": {name: []}}`; `bias` is there if
biases were asked for, `activation` if the activation has trained parameters. `hidden` holds the
layers 2 to L with a leading axis of L - 1; `readout` is there if it was asked for.
"""


def init(
    key: jax.Array,
    in_features: int,
    width: int,
    depth: int,
    *,
    out_features: int | None = None,
    activation: str | Activation | Callable[..., Any] = "tanh",
    kernel_init: Initializer | None = None,
    bias_init: Initializer | None = None,
    dtype: Any = jnp.float32,
) -> Params:
    """Draw the parameters of a fully connected network.

    Layer `l` draws from `fold_in(key, l)`, so a deeper network of the same key begins with the
    layers of the shallower one.

    Args:
      key: PRNG key.
      in_features: number of input features.
      width: units of every layer.
      depth: number of layers, each a matrix product and an activation.
      out_features: outputs of a linear readout after the last layer; `None` for no readout.
      activation: read for its trained parameters only, see `jaxgrad.activations.get`.
      kernel_init: initializer of the kernels `[in, out]`; `None` for `initializers.lecun()`, the
        variance 1 / fan_in that `scale` and `jaxgrad.propagation` multiply.
      bias_init: initializer of the biases `[out]`; `None` for a network without biases.
      dtype: floating dtype of the parameters.

    Returns:
      The parameters, see `Params`.

    Raises:
      ValueError, TypeError: if a size is not a whole number of at least 1, the activation is
        unknown, the dtype is not floating, or an initializer returns another shape.

    >>> import jax
    >>> params = init(jax.random.key(0), 3, 8, 5, out_features=2, bias_init=initializers.zeros())
    >>> params["hidden"]["kernel"].shape, params["readout"]["bias"].shape
    ((4, 8, 8), (2,))
    """
    in_features = _validate.integer("in_features", in_features, 1)
    width = _validate.integer("width", width, 1)
    depth = _validate.integer("depth", depth, 1)
    trained = activations.get(activation).parameters
    kernel_init = initializers.lecun() if kernel_init is None else kernel_init
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"dtype must be floating, got {jnp.dtype(dtype)}; pass jnp.float32")

    def draw(name, initializer, key, shape):
        value = initializer(key, shape, dtype)
        if value.shape != shape:
            raise ValueError(
                f"{name} must return the shape it is asked for, {shape}, got {value.shape}; "
                "use an initializer of jaxgrad.initializers or jax.nn.initializers"
            )
        return value

    def layer(key_layer, n_in, n_out, activated=True):
        if bias_init is None:
            made: Params = {"kernel": draw("kernel_init", kernel_init, key_layer, (n_in, n_out))}
        else:
            key_kernel, key_bias = jax.random.split(key_layer)
            made = {
                "kernel": draw("kernel_init", kernel_init, key_kernel, (n_in, n_out)),
                "bias": draw("bias_init", bias_init, key_bias, (n_out,)),
            }
        if trained and activated:
            made["activation"] = {name: jnp.asarray(value, dtype) for name, value in trained}
        return made

    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(depth + 1))
    # A loop, not a vmap, and a square first layer in it: draws are what takes long to compile.
    square = in_features == width
    hidden = jax.lax.map(lambda key_layer: layer(key_layer, width, width), keys[2 - square :])
    if square:
        first, hidden = (
            jax.tree.map(lambda a, part=part: a[part], hidden) for part in (0, np.s_[1:])
        )
    else:
        first = layer(keys[1], in_features, width)
    params = {"first": first, "hidden": hidden}
    if out_features is not None:
        out_features = _validate.integer("out_features", out_features, 1)
        params["readout"] = layer(keys[0], width, out_features, activated=False)
    return params


def apply(
    params: Params,
    x: jax.Array,
    activation: str | Activation | Callable[..., Any] = "tanh",
    *,
    key: jax.Array | None = None,
) -> jax.Array:
    """The network's outputs: of the readout if there is one, else of the last layer.

    Args:
      params: from `init`.
      x: inputs, `[batch, in_features]`, floating point.
      activation: the one given to `init`, see `jaxgrad.activations.get`.
      key: PRNG key for a randomized activation; `None` applies its mean.

    Returns:
      `[batch, out_features]`, or `[batch, width]` without a readout.

    Raises:
      ValueError, TypeError: if the parameters and inputs do not fit each other, the inputs are not
        floating point or not finite, or the activation is unknown.

    >>> import jax, jax.numpy as jnp
    >>> params = init(jax.random.key(0), 3, 8, 5)
    >>> apply(params, jnp.ones((2, 3)), "relu").shape
    (2, 8)
    """
    phi = activations.get(activation)
    x = check(params, x, phi)

    def layer(h, parameters, index):
        return applied(phi, parameters, affine(parameters, h), key, index)

    def step(carry, parameters):
        h, index = carry
        return (layer(h, parameters, index), index + 1), None

    h = layer(x, params["first"], 1)
    (h, _), _ = jax.lax.scan(step, (h, 2), params["hidden"])
    return affine(params["readout"], h) if "readout" in params else h


def affine(parameters: Params, h: jax.Array) -> jax.Array:
    """`h W + b` of one layer, `[..., in] -> [..., out]`."""
    z = h @ parameters["kernel"]
    return z + jnp.broadcast_to(parameters["bias"], z.shape) if "bias" in parameters else z


def applied(
    phi: Activation, parameters: Params, z: jax.Array, key: jax.Array | None, index: Any
) -> jax.Array:
    """`phi(z)` with the trained parameters of one layer, and its draws if it is randomized."""
    draws = {}
    if phi.randomized and key is not None:
        draws["key"] = jax.random.fold_in(key, index)
    return phi(z, **parameters.get("activation", {}), **draws)


def scale(params: Params, w_variance: Any = 1.0, b_variance: Any = 1.0) -> Params:
    """Multiply the variance of the layers' kernels and biases; the readout stays as it is.

    Parameters drawn once with unit variance thus serve every variance of a sweep.

    Args:
      params: from `init`.
      w_variance, b_variance: factors of at least 0, may be traced.

    Returns:
      Parameters of the same structure.

    Raises:
      ValueError, TypeError: if a factor is not one finite number of at least 0.
    """
    _validate.scalar("w_variance", w_variance, minimum=0.0)
    _validate.scalar("b_variance", b_variance, minimum=0.0)
    factors = {"kernel": jnp.sqrt(w_variance), "bias": jnp.sqrt(b_variance)}

    def scaled(layer):
        return layer | {
            name: (layer[name] * factor).astype(layer[name].dtype)
            for name, factor in factors.items()
            if name in layer
        }

    return params | {"first": scaled(params["first"]), "hidden": scaled(params["hidden"])}


def check(params: Params, x: jax.Array, phi: Activation) -> jax.Array:
    """Return the inputs as an array if they and the activation fit the parameters, or raise.

    Raises:
      ValueError, TypeError: see `apply`.
    """
    x = _validate.floating("x", x, 2, "[batch, in_features]")
    try:
        in_features, width = params["first"]["kernel"].shape
        hidden = params["hidden"]["kernel"].shape
    except (KeyError, TypeError, AttributeError, ValueError):
        raise TypeError(
            "params must be the pytree that jaxgrad.networks.init returns, got "
            f"{jax.tree.structure(params)}"
        ) from None
    if hidden[1:] != (width, width):
        raise ValueError(
            f"params must have hidden kernels of shape [depth - 1, {width}, {width}] to follow "
            f"{width} units, got {hidden}; make them with jaxgrad.networks.init"
        )
    if x.shape[1] != in_features:
        raise ValueError(
            f"x must have the {in_features} features that params take, got shape {x.shape}; "
            f"pass in_features={x.shape[1]} to jaxgrad.networks.init"
        )
    missing = {name for name, _ in phi.parameters} - set(params["first"].get("activation", ()))
    if missing:
        raise ValueError(
            f"params must hold {sorted(missing)} of activation {phi.name!r}, got none; "
            f"pass activation={phi.name!r} to jaxgrad.networks.init"
        )
    return x


def init_blocks(
    key: jax.Array, block: Layer, shape: Sequence[int], depth: int, *, dtype: Any = jnp.float32
) -> Any:
    """Draw the parameters of `depth` copies of one block.

    Block `l` draws as of `jaxgrad.layers.repeat`.

    Args:
      key: PRNG key.
      block: a layer that keeps the shape of its input, see `jaxgrad.layers`.
      shape: of one example, without the batch: `(features,)` or `(*spatial, channels)`.
      depth: number of blocks.
      dtype: floating dtype of the parameters.

    Returns:
      The block's parameters, each with a leading axis of `depth`.

    Raises:
      ValueError, TypeError: if the depth or shape is not as described, or the block changes the
        shape or has no parameters.

    >>> import jax
    >>> from jaxgrad import _old_layers as layers
    >>> block = layers.residual(layers.sequential(layers.activation("relu"), layers.dense(8)))
    >>> params = init_blocks(jax.random.key(0), block, (8,), 100)
    >>> apply_blocks(params, jnp.ones((2, 8)), block).shape
    (2, 8)
    """
    depth = _validate.integer("depth", depth, 1)
    shape = _validate.shape("shape", shape, 1)
    if not jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
        raise TypeError(f"dtype must be floating, got {jnp.dtype(dtype)}; pass jnp.float32")

    return repeat(block, depth).init(key, shape, dtype)[0]


def apply_blocks(
    params: Any, x: jax.Array, block: Layer, *, key: jax.Array | None = None
) -> jax.Array:
    """The output of the last of a stack of blocks, by one scan over depth.

    Args:
      params: from `init_blocks`.
      x: inputs, `[batch, *shape]`, floating point.
      block: the one given to `init_blocks`.
      key: PRNG key of dropout and of randomized activations; `None` switches both off.

    Returns:
      `[batch, *shape]`.

    Raises:
      ValueError, TypeError: if the parameters, inputs and block do not fit each other, or the
        inputs are not floating point or not finite.
    """
    x, depth = check_blocks(params, x, block)

    return repeat(block, depth).apply(params, x, key)


def check_blocks(params: Any, x: jax.Array, block: Layer) -> tuple[jax.Array, int]:
    """Return the inputs in the dtype of the outputs, and the depth, if all fit, or raise.

    Raises:
      ValueError, TypeError: see `apply_blocks`.
    """
    x = _validate.floating("x", x, max(np.ndim(x), 2), "[batch, *shape]")
    if not isinstance(block, Layer):
        raise TypeError(f"block must be a jaxgrad.layers.Layer, got {block!r}; see that module")
    depths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(params)}
    if len(depths) != 1 or () in depths or (0,) in depths:
        raise ValueError(
            "params must be arrays with one leading axis, the depth, got leading axes "
            f"{sorted(depths)}; make them with jaxgrad.networks.init_blocks"
        )
    ((depth,),) = depths
    layer = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), params)
    x = x.astype(jnp.result_type(x, *jax.tree.leaves(params)))
    out = jax.eval_shape(lambda layer, h: block.apply(layer, h, None), layer, x)
    if (out.shape, out.dtype) != (x.shape, x.dtype):
        raise ValueError(
            f"block must map x of {x.dtype} and shape {x.shape} to the same, got {out.dtype} and "
            f"{out.shape}; fit x to the shape given to jaxgrad.networks.init_blocks"
        )
    return x, depth
