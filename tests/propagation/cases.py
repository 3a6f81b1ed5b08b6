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


def jacobian_squares(network, params, x, loss):
    """Squared gradients of the loss at each depth `[depth, ...]`, from one unrolled program.

    Returns those by the inputs of each entry and by its kernels, `[depth, depth]` with NaN beyond
    the depth of the loss, and those by the outputs of the last entry, `[depth]`.
    """
    entries = unrolled(network, params)
    shapes, h = [], x
    for function, entry_params in entries:
        shapes.append(h.shape)
        h = jax.eval_shape(function, entry_params, h)

    def losses(all_params, shifts):
        h, values, ends = x, [], []
        for (function, _), entry_params, shift in zip(entries, all_params, shifts, strict=True):
            h = function(entry_params, h + shift)
            values.append(loss(h))
            ends.append(jnp.sum(jax.grad(loss)(h) ** 2))
        return jnp.stack(values), jnp.stack(ends)

    by_params, by_shift, ends = squares_by_depth(
        losses, [entry_params for _, entry_params in entries], [jnp.zeros(s) for s in shapes]
    )
    return by_shift, by_params, ends


def squares_by_depth(losses, all_params, shifts):
    """Squared norms `[depth, depth]` of the derivatives of `[depth]` losses by lists of trees."""
    jacobians, ends = jax.jit(jax.jacrev(losses, (0, 1), has_aux=True))(all_params, shifts)

    def squares(trees, axes):
        """By entry and depth, from the arrays of at least some number of axes."""
        leaves = [[a for a in jax.tree.leaves(tree) if a.ndim > axes] for tree in trees]
        rows = [[np.sum(np.square(a).reshape(len(a), -1), axis=1) for a in row] for row in leaves]
        values = np.stack([sum(row, start=np.zeros(len(trees))) for row in rows], axis=1)
        return np.where(np.tri(len(trees)), values, np.nan)

    # Kernels are the parameters with at least two axes.
    return squares(jacobians[0], 2), squares(jacobians[1], 1), ends
