"""Watch a run: norms of each layer's gradient and update, and what its units do.

For the `monitor` and `evaluate` of `jaxgrad.training.fit`, or a loop of your own; what they return
is what `jaxgrad.training.diagnosis` reads.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate, activations
from jaxgrad.activations import Activation
from jaxgrad.training import regularization
from jaxgrad.training.regularization import WEIGHTS, Where

EDGES = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
"""Edges of the histogram of pre-activations; few, since each costs one look at all of them."""


class Norms(NamedTuple):
    """Natural logs of L2 norms, `[layers]` each; -inf where all is 0.

    Attributes:
      log_gradient: of the loss by the layer's weights.
      log_weight: of the weights, before the step.
      log_update: of what the optimizer adds to the weights.
    """

    log_gradient: jax.Array
    log_weight: jax.Array
    log_update: jax.Array

    @property
    def log_ratio(self) -> jax.Array:
        """Log of the update's norm over the weights'; about log(1e-3) in many good runs."""
        return self.log_update - self.log_weight


def layer_norms(step: Any, where: Where = WEIGHTS, stacked: str | None = None) -> Norms:
    """Norms of every layer's gradient, weights and update, to be used as a `monitor`.

    Logs of norms, scaled by the largest element, neither overflow nor underflow: an explosion shows
    as a number for as long as its elements are numbers, and as inf or NaN after that. They cost
    more under `jax.vmap`, where each is computed both ways.

    Args:
      step: `jaxgrad.training.Step`, or whatever has `params`, `gradient` and `updates`.
      where: which leaves are weights, see `jaxgrad.regularization.Where`.
      stacked: a regular expression found in the paths of leaves with a leading axis of layers:
        `"^hidden/"` for `jaxgrad.networks.init`, `"^1/"` if part 1 of `layers.sequential` is a
        `layers.repeat`; `None` for none.

    Returns:
      `Norms`; which layer is which tells `layer_names`.

    Raises:
      ValueError, TypeError: if nothing is selected or stacked leaves do not fit each other.

    Source: A. Karpathy, CS231n notes, "Ratio of weights:updates".

    >>> from types import SimpleNamespace
    >>> w = {"w": jnp.asarray([3.0, 4.0])}
    >>> tiny = jax.tree.map(lambda a: a * 1e-30, w)
    >>> norms = layer_norms(SimpleNamespace(params=w, gradient=tiny, updates=tiny))
    >>> round(float(norms.log_ratio[0]), 2)  # log(1e-30)
    -69.08
    """
    groups = _groups(step.params, where, stacked)
    # Without the barrier the optimizer's formula is worked out twice, here and in its own place.
    trees = jax.lax.optimization_barrier((step.gradient, step.params, step.updates))
    return Norms(*(_log_norms(tree, groups) for tree in trees))


def layer_names(params: Any, where: Where = WEIGHTS, stacked: str | None = None) -> tuple[str, ...]:
    """Names of the layers in the order of `layer_norms`.

    Layers are ordered by path, with numbers compared as numbers (`Dense_2` before `Dense_10`), and
    copies of a stacked block one after the other. That is from input to output for parameters of
    jaxgrad; name the layers of your own so that it is for them.

    Args:
      params, where, stacked: as of `layer_norms`.

    Raises:
      ValueError, TypeError: as of `layer_norms`.

    >>> params = {"first": {"kernel": jnp.ones((2, 3))}, "hidden": {"kernel": jnp.ones((2, 3, 3))}}
    >>> layer_names(params, stacked="^hidden/")
    ('first/kernel', 'hidden/kernel[0]', 'hidden/kernel[1]')
    """
    names = []
    for members, copies in _groups(params, where, stacked):
        if copies is None:
            names += [path for path, _ in members]
        else:
            names += [f"{path}[{copy}]" for copy in range(copies) for path, _ in members]
    return tuple(names)


def _groups(params, where, stacked):
    """Runs of leaves, `([(path, index)], copies)`, from input to output."""
    if stacked is not None and not isinstance(stacked, str):
        raise TypeError(
            f"stacked must be a regular expression, got {stacked!r}; pass a str such as '^hidden/'"
        )
    chosen = jax.tree.leaves(regularization.select(params, where))
    found = jax.tree_util.tree_flatten_with_path(params)[0]
    leaves = [
        (jax.tree_util.keystr(path, simple=True, separator="/"), index, jnp.shape(leaf))
        for index, ((path, leaf), taken) in enumerate(zip(found, chosen, strict=True))
        if taken
    ]
    groups: dict[Any, Any] = {}
    for path, index, shape in sorted(leaves, key=lambda leaf: _natural(leaf[0])):
        match = None if stacked is None else re.search(stacked, path)
        if match is None:
            groups[path, None] = ([(path, index)], None)
            continue
        members, copies = groups.setdefault((match.group(), True), ([], shape[:1]))
        if shape[:1] != copies or copies in ((), (0,)):
            raise ValueError(
                f"stacked must find leaves with one leading axis of layers, got {path!r} of shape "
                f"{shape} beside a leading axis {copies}; make it find one stack at a time"
            )
        members.append((path, index))
    if stacked is not None and not any(copies for _, copies in groups.values()):
        raise ValueError(
            f"stacked must be found in the path of a selected leaf, got {stacked!r} and "
            f"{[leaf[0] for leaf in leaves]}; pass None if nothing is stacked"
        )
    return [(members, copies and copies[0]) for members, copies in groups.values()]


def _natural(path):
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _log_norms(tree, groups):
    leaves = jax.tree.leaves(tree)
    parts = []
    for members, copies in groups:
        flat = [leaves[index].reshape(copies or 1, -1) for _, index in members]
        parts.append(jnp.stack([_log_norm(rows) for rows in flat], axis=1).reshape(-1))
    return jnp.concatenate(parts)


def _log_norm(rows):
    """Log of the norm of each row, in float32 at least."""
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    total = jnp.sum(rows * rows, axis=1)

    def scaled():
        size = jnp.abs(rows)
        largest = jnp.max(size, axis=1)
        usual = (largest > 0) & (largest < jnp.inf)
        size = size / jnp.where(usual, largest, 1.0)[:, None]
        return jnp.log(largest) + jnp.where(usual, 0.5 * jnp.log(jnp.sum(size * size, axis=1)), 0.0)

    # Squares of ordinary size need no scale, whose search takes longer than the sum.
    ordinary = jnp.all((total > 1e-20) & (total < 1e30))
    return jax.lax.cond(ordinary, lambda: 0.5 * jnp.log(total), scaled)


class Units(NamedTuple):
    """What the units of each layer do on a batch.

    Attributes:
      log_preactivation: log mean square of `z`, `[layers]`.
      dead: share of the units that are saturated on every example, `[layers]`.
      saturated: share of (unit, example) pairs with a slope `|phi'(z)|` below `saturation`,
        `[layers]`: about a half for ReLU.
      saturated_above: the same with `z > 0`, `[layers]`: 0 for ReLU and whatever else is flat on
        one side only, where it is dead units that harm.
      counts: of `z` between the edges, `[layers, edges + 1]`, the first and last beyond them.
      not_finite: how many `z` are NaN or infinite and so in no other count, `[layers]`.
    """

    log_preactivation: jax.Array
    dead: jax.Array
    saturated: jax.Array
    saturated_above: jax.Array
    counts: jax.Array
    not_finite: jax.Array


def units(
    z: Any,
    activation: str | Activation | Callable[..., Any],
    *,
    saturation: Any = 0.02,
    edges: Sequence[float] = EDGES,
) -> Units:
    """Measure pre-activations, with the definitions of `jaxgrad.propagation.Signal`.

    Best in the `evaluate` of `jaxgrad.training.fit`, on some dev examples, since it needs a pass
    forward that keeps `z`; in a `monitor` that pass would be added to every step.

    Args:
      z: pre-activations, `[layers, batch, units]`, or a sequence of arrays `[batch, units]`.
      activation: what is applied to them, see `jaxgrad.activations.get`; trained parameters take
        their initial values, randomized ones their mean.
      saturation: the slope below which a unit counts as saturated, may be traced. Where a leaky
        activation's slope, such as 0.01, is not to count, pass less.
      edges: increasing edges of the histogram, at least one.

    Returns:
      `Units`.

    Raises:
      ValueError, TypeError: if an argument is not as described.

    >>> found = units([jnp.asarray([[-1.0, 2.0], [-3.0, jnp.inf]])], "relu", edges=(0.0,))
    >>> found.dead.tolist(), found.counts.tolist(), found.not_finite.tolist()
    ([0.5], [[2, 1]], [1])
    """
    phi = activations.get(activation)
    _validate.scalar("saturation", saturation, minimum=0.0)
    if any(_validate.is_traced(edge) for edge in jax.tree.leaves(edges)):
        raise TypeError(
            "edges must be known, got a traced array; close over them or make them static"
        )
    bounds = np.asarray(edges, np.float64)
    if bounds.ndim != 1 or len(bounds) == 0 or not np.all(np.diff(bounds) > 0):
        raise ValueError(f"edges must be increasing numbers, at least one, got {edges!r}")
    listed = isinstance(z, (list, tuple))
    shapes = [np.shape(layer) for layer in z] if listed else [np.shape(z)]
    if not shapes or any(len(shape) != 3 - listed or 0 in shape for shape in shapes):
        raise ValueError(
            "z must be an array [layers, batch, units] or a sequence of arrays [batch, units], "
            f"none empty, got {'a sequence of ' if listed else ''}shapes {shapes}"
        )
    for layer in z if listed else [z]:
        if not jnp.issubdtype(jnp.result_type(layer), jnp.floating):
            raise TypeError(
                f"z must be floating point, got {jnp.result_type(layer)}; convert it by "
                "astype('float32')"
            )

    def one(z):
        slope = jax.vjp(phi, z)[1](jnp.ones_like(z))[0]
        flat = jnp.abs(slope) < saturation
        finite = jnp.isfinite(z)
        within = jnp.sum(finite)
        below = [jnp.sum(finite & (z < bound)) for bound in bounds]
        counts = jnp.diff(jnp.stack([jnp.zeros_like(within), *below, within]))
        # Infinities stay in the mean square: it is what tells of them.
        return Units(
            2 * _log_norm(z.reshape(1, -1))[0] - np.log(z.size),
            jnp.mean(jnp.all(flat, axis=0)),
            jnp.mean(flat),
            jnp.mean(flat & (z > 0)),
            counts,
            z.size - within,
        )

    if not listed:
        return jax.vmap(one)(jnp.asarray(z))
    return jax.tree.map(lambda *parts: jnp.stack(parts), *[one(jnp.asarray(a)) for a in z])
