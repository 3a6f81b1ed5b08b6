"""Networks for the tests of propagation, and the same networks written out entry by entry."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import layers


def mlp(width=16, depth=5, activation="tanh", **options):
    options = {"bias": True, "b_variance": 1.0, "parameterization": "ntk"} | options
    return layers.mlp(width, depth, activation, **options)


def plain_mlp(width=16, depth=5, activation="tanh", **options):
    """Without biases."""
    return mlp(width, depth, activation, **({"bias": False, "b_variance": 0.0} | options))


def draw(network, key, shape=(10,)):
    return layers.init(network, shape, key=key)[0]


def block_of(width, activation="tanh", **weights):
    return layers.sequential(layers.dense(width, **weights), layers.activation(activation))


def apply(network, params, x, key=None):
    return layers.apply(network, params, None, x, key=key)[0]


def unrolled(network, params):
    """The entries of the depth axis as functions `(params, h) -> h`, with their parameters."""
    name = type(network).__name__
    if name == "Sequential":
        parts = zip(network.layers, params, strict=True)
        return [entry for part, part_params in parts for entry in unrolled(part, part_params)]
    if name == "Repeat":
        copies = range(network.depth if network.active is None else network.active)
        entries = [
            (entry_of(network.block), jax.tree.map(lambda a, i=i: a[i], params)) for i in copies
        ]
        return entries + [(lambda params, h: h, {})] * (network.depth - len(entries))
    if name == "Mlp":
        block = network.layers.block
        hidden = [
            jax.tree.map(lambda a, i=i: a[i], params["hidden"]) for i in range(network.depth - 1)
        ]
        pairs = [(p, p.get("activation", {})) for p in (params["first"], *hidden)]
        pairs = [({k: p[k] for k in p if k != "activation"}, a) for p, a in pairs]
        return [(entry_of(block), pair) for pair in pairs]
    return [(entry_of(network), params)]


def entry_of(layer):
    return lambda params, h: layer.apply(params, None, h)[0]


def kernels_square(gradient):
    """Squared norm of the gradients of parameters with at least two axes."""
    return sum(float(jnp.sum(a**2)) for a in jax.tree.leaves(gradient) if a.ndim >= 2)


def expected_gradients(network, params, x, loss):
    """Squared gradients by entry, of its inputs and kernels, for the loss at each depth."""
    entries = unrolled(network, params)
    depth = len(entries)
    inputs, kernels = np.full((2, depth, depth), np.nan)

    def run(all_params, shifts, last):
        h = x
        for (function, _), entry_params, shift in zip(
            entries[:last], all_params, shifts, strict=True
        ):
            h = function(entry_params, h + shift)
        return loss(h)

    shapes, h = [], x
    for function, entry_params in entries:
        shapes.append(h.shape)
        h = function(entry_params, h)
    for last in range(1, depth + 1):
        all_params = [entry_params for _, entry_params in entries[:last]]
        shifts = [jnp.zeros(shape, x.dtype) for shape in shapes[:last]]
        by_params, by_shift = jax.jit(jax.grad(run, (0, 1)), static_argnums=2)(
            all_params, shifts, last
        )
        for k in range(last):
            inputs[last - 1, k] = float(jnp.sum(by_shift[k] ** 2))
            kernels[last - 1, k] = kernels_square(by_params[k])
    return inputs, kernels
