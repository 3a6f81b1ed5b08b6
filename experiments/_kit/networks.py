"""Networks whose blocks repeat: how they are built, measured at all depths, and predicted."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import xarray

from experiments._kit.cluster import cluster
from experiments._kit.grid import in_threads
from experiments._kit.report import sweep_progress
from jaxgrad import layers, propagation, sweeps, theory

MAP, PROFILE = ("w_variance", "depth"), ("w_variance", "layer")

VARIABLES = {
    "log_ratio": "natural log of the squared gradient at the first block over that at the outputs",
    "log_gradient": "natural log of the mean squared gradient of the first block's inputs",
    "log_activation": "natural log of the last block's mean square output",
    "log_profile": "natural log of the squared gradient of each block, in the deepest network",
}
"""What `measure` returns."""


class Network(NamedTuple):
    """A network without its first layer, and that layer.

    Attributes:
      name: a row of a map.
      stem: makes the signal, `[batch, *space, features]` of mean square 1 at each position, of
        examples `[batch, *space, inputs]`.
      body: maps the variance of all weights, times their fan-in, to a `repeat` of blocks.
      tokens: whether the loss depends on how tokens differ, and not on their mean.
    """

    name: str
    stem: layers.Layer
    body: Callable[[Any], layers.Layer]
    tokens: bool = False

    def centred(self, h: jax.Array) -> jax.Array:
        """Outputs, or changes of them, as the loss takes them."""
        return h - jnp.mean(h, axis=1, keepdims=True) if self.tokens else h

    def loss(self, outputs: jax.Array) -> jax.Array:
        """A sum with weights of variance `1 / size`, as of `propagation.exact`."""
        weights = jax.random.normal(jax.random.key(0), outputs.shape[1:], jnp.float32)
        return jnp.sum(weights[None] * self.centred(outputs)) / math.sqrt(weights.size)


def build(
    kind: str,
    depth: int,
    width: int,
    activations: tuple[str, ...],
    placements: tuple[str, ...],
) -> list[Network]:
    """Build a network for each activation and, if it is residual, for each placement of its norms.

    The kinds are "conv", "resnet" and "transformer".
    """
    # Circular padding leaves no position that differs from the others, nor does the norm.
    first = layers.dense(width) if kind == "transformer" else layers.convolution(width)
    stem = layers.sequential(first, layers.layer_norm(1e-6))
    if kind == "conv":

        def conv(w_variance, activation):
            weights = layers.convolution(width, w_variance=w_variance, parameterization="ntk")
            return layers.sequential(weights, layers.activation(activation))

        return [
            Network(name, stem, lambda w, name=name: layers.repeat(conv(w, name), depth))
            for name in activations
        ]
    make = _transformer if kind == "transformer" else _resnet
    rows = []
    for placement, activation in itertools.product(placements, activations):
        name = "no norms" if placement == "none" else f"{placement}-norm"
        name += f", {activation}" if len(activations) > 1 else ""
        body = functools.partial(
            make, depth=depth, width=width, placement=placement, activation=activation
        )
        rows.append(Network(name, stem, body, kind == "transformer"))
    return rows


def _transformer(w_variance, depth, width, placement, activation):
    variances = ("query", "key", "value", "output", "hidden", "last")
    options: dict[str, Any] = {f"{name}_variance": w_variance for name in variances}
    heads = math.gcd(width, 4)
    return layers.transformer(
        depth, width, heads, placement=placement, activation=activation, **options
    )


def _resnet(w_variance, depth, width, placement, activation):
    branch = layers.sequential(
        layers.convolution(width, w_variance=w_variance),
        layers.activation(activation),
        layers.convolution(width, w_variance=w_variance),
    )
    return layers.repeat(layers.block(branch, layers.layer_norm(1e-6), placement), depth)


def tiled(x: np.ndarray, kind: str) -> np.ndarray:
    """Arrange examples `[batch, features]` in space: rows as tokens, or an image of one channel."""
    count = x.shape[1]
    rows = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    shape = (rows, count // rows) if kind == "transformer" else (rows, count // rows, 1)
    return x.reshape(len(x), *shape)


def measure(
    network: Network, x: jax.Array, variances: jax.Array, *, key: jax.Array
) -> dict[str, jax.Array]:
    """Measure a network of one seed at all variances, `[w_variance, depth]` each.

    Every variance has the same draws, but for their size. `log_ratio` is the log of the squared
    gradient by the first block's input over that by the output; `log_profile` has it by each
    block's input, in the deepest network. The loss is random; that of a transformer depends on how
    tokens differ, and not on their mean, whose gradient survives where all tokens become equal.
    """
    key_stem, key_body, key_tangent = jax.random.split(key, 3)
    params, _ = layers.init(network.stem, x.shape[1:], key=key_stem)
    h, _ = layers.apply(network.stem, params, None, x)
    # Tangents that start as standard normal ones estimate the gradients of all depths in one pass.
    tangent = jax.random.normal(key_tangent, h.shape)

    def one(w_variance):
        body = network.body(w_variance)
        params, _ = layers.init(body, h.shape[1:], key=key_body)
        log_change, log_square = carry_forward(network, body, params, h, tangent)
        last = propagation.exact(
            body,
            params,
            h,
            key=key_tangent,
            depths=(len(log_square),),
            loss=network.loss,
            segments=1,
        )
        return {
            # The loss itself has a gradient by the outputs as it takes them.
            "log_ratio": log_change - jnp.log(jnp.mean(network.centred(tangent) ** 2)),
            # From the sum over examples and units to the mean.
            "log_gradient": log_change - math.log(h.size),
            "log_activation": log_square,
            "log_profile": last.log_layer_gradient[0],
        }

    return jax.lax.map(one, variances)


def carry_forward(
    network: Network, body: layers.Layer, params: Any, h: jax.Array, tangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Carry a signal and a tangent through all blocks.

    Returns: logs of the mean squares of the tangent, as the loss takes it, and of the signal after
    each block, `[depth]`.
    """
    (stack,) = body.stacks(params)

    def step(carry, copy):
        out, derivative = copy.linearize(stack.layer, carry[0])
        moved, log_tangent = derivative.push(carry[1]).normalized()
        out, log_square = out.normalized()
        share = jnp.mean(network.centred(moved.value) ** 2, axis=tuple(range(1, h.ndim)))
        return (out, moved), (_log_mean(log_tangent + jnp.log(share)), _log_mean(log_square))

    zeros = jnp.zeros(len(h))
    return stack.scan(step, (layers.Scaled(h, zeros), layers.Scaled(tangent, zeros)))[1]


PREDICTED_VARIANCES = 9
"""Theory over tokens takes seconds a variance; between these, its logs are interpolated."""


def predict(network: Network, variances: np.ndarray, x: np.ndarray) -> dict[str, np.ndarray]:
    """Predict `log_ratio` and `log_activation` at infinite width, for examples as of `tiled`.

    Returns: both `[w_variance, depth]`, as `measure` does.
    """

    def one(w_variance):
        (each,) = network.body(w_variance).predict_each(start)
        logs = {"log_ratio": each.log_gradient, "log_activation": each.log_q}
        if each.tokens is not None:
            # The share of a change that is in the differences of tokens.
            logs["log_ratio"] += jnp.log(each.tokens.change_gap)
        return logs

    # All positions are alike, and the first layer's outputs are Gaussian.
    start = theory.Moments(log_q=0.0, gaussian=True, fresh=True)
    points = np.asarray(variances, float)
    if network.tokens:
        # Random first weights keep how alike tokens are, on average.
        tokens = theory.moments_of(x, tokens=True).tokens
        assert tokens is not None
        start = dataclasses.replace(start, tokens=theory.Tokens(tokens.count, tokens.gap))
        count = min(len(points), PREDICTED_VARIANCES)
        points = np.geomspace(points[0], points[-1], count)
    with jax.enable_x64(True):
        logs = jax.device_get(jax.lax.map(one, jnp.asarray(points)))
    target, known = np.log(np.asarray(variances, float)), np.log(points)
    return {
        name: np.stack([np.interp(target, known, column) for column in values.T], axis=1)
        for name, values in logs.items()
    }


def measure_map(options: Any, progress: Any = None) -> xarray.Dataset:
    """Measure the map of a network, or the part of it that is missing in the store.

    A cell is one row of the map and one seed, at all variances and depths. Rows are named by
    `activation`, as in the map of an mlp.
    """
    remove_store(options)
    rows = _rows(options)

    def cell(key, point, x, variances):
        return measure(rows[point["activation"]], x, variances, key=key)

    variables = {
        name: sweeps.Variable(PROFILE if name == "log_profile" else MAP, "1", text)
        for name, text in VARIABLES.items()
    }
    arrays = (tiled(options.inputs(), options.network), options.grid)
    # A network is large, so that the next one would only compete for the cache.
    how = {"rows": list(rows), "unit": "blocks", "vectorized": False}
    return sweep_map(options, cell, variables, arrays, progress, **how)


def sweep_map(
    options: Any,
    cell: Callable[..., Any],
    variables: dict[str, sweeps.Variable],
    arrays: Sequence[Any],
    progress: Any,
    *,
    unit: str,
    rows: Sequence[str] | None = None,
    **how: Any,
) -> xarray.Dataset:
    """Fill the store of a map, by default of activations; a cell is a row and a seed."""
    numbers = np.arange(1, options.depth + 1)
    with cluster(options) as workers:
        return sweeps.run(
            cell,
            {"activation": rows or options.activations, "seed": options.seed_values},
            variables,
            key=jax.random.key(0),
            args=tuple(jnp.asarray(array, jnp.float32) for array in arrays),
            coords={"w_variance": options.grid, "depth": numbers, "layer": numbers},
            units={"w_variance": "1/fan_in", "depth": unit},
            config=options.identity(),
            store=options.store,
            memory_limit=options.memory * 2**20,
            **how,
            **workers,
            **sweep_progress(progress),
        )


def remove_store(options: Any) -> None:
    """Remove the store of a map if it is to be overwritten."""
    if options.overwrite and options.store.exists():
        # Raises if the folder is something else, which must not be lost.
        sweeps.open_store(options.store).close()
        shutil.rmtree(options.store)


def predict_map(options: Any) -> xarray.Dataset:
    """Predict the map at infinite width; the profile only where tokens are not followed."""
    rows, x = _rows(options), tiled(options.inputs(), options.network)
    x = np.asarray(x, np.float32)
    jobs = {name: functools.partial(predict, row, options.grid, x) for name, row in rows.items()}
    results = list(in_threads(jobs).values())
    log_ratio, log_activation = (
        np.stack([logs[name] for logs in results]) for name in ("log_ratio", "log_activation")
    )
    # A network without its first k blocks has the gradient of the whole over that of the k.
    before = np.pad(log_ratio, ((0, 0), (0, 0), (1, 0)))[..., :-1]
    profile = log_ratio[..., -1:] - before
    # How alike the tokens of a change are depends on where it starts.
    profile = np.where([[[network.tokens]] for network in rows.values()], np.nan, profile)
    numbers = np.arange(1, options.depth + 1)
    coords = {"activation": list(rows), "w_variance": options.grid}
    variables = {
        "log_ratio": (("activation", *MAP), log_ratio),
        "log_activation": (("activation", *MAP), log_activation),
        "log_profile": (("activation", *PROFILE), profile),
    }
    return xarray.Dataset(variables, coords | {"depth": numbers, "layer": numbers})


def _rows(options):
    size = (options.network, options.depth, options.width)
    built = build(*size, options.activations, options.placements)
    return {network.name: network for network in built}


def _log_mean(logs: jax.Array) -> jax.Array:
    return jax.nn.logsumexp(logs, axis=-1) - math.log(logs.shape[-1])
