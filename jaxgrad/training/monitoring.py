"""Record what a network does in training: norms of each layer, and statistics of its units.

These functions are for the `monitor` and `evaluate` of `jaxgrad.training.fit`, or for a training
loop of your own. `jaxgrad.training.diagnosis` reads their results.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

from jaxgrad import _validate, activations
from jaxgrad._numerics import log_mean_square
from jaxgrad.activations import Activation
from jaxgrad.training.regularization import WEIGHTS, Where, leaf_paths, select

EDGES = (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0)
"""Default edges of the histogram of pre-activations. Each edge costs one pass over all of them."""

PerLayer = Num[Array | np.ndarray, "*times layers"]


class Norms(NamedTuple):
    """Natural logs of the L2 norms of each layer; -inf where all elements are 0.

    Attributes:
      log_gradient: Gradient of the loss by the weights.
      log_weight: Weights before the step.
      log_update: What the optimizer adds to the weights.
    """

    log_gradient: PerLayer
    log_weight: PerLayer
    log_update: PerLayer

    @property
    def log_ratio(self) -> PerLayer:
        """Log of |update| / |weights|, about log(1e-3) in many good runs."""
        return self.log_update - self.log_weight


def layer_norms(step: Any, *, where: Where = WEIGHTS, stacked: str | None = None) -> Norms:
    """Compute the norms of the gradient, weights and update of each layer, as a `monitor`.

    Logs of norms neither overflow nor underflow: they are finite as long as the elements are. They
    cost more under `jax.vmap`, which computes both the plain sum of squares and the scaled one.

    Args:
      step: A `jaxgrad.training.Step`, or any object with `params`, `gradient` and `updates`.
      where: Which leaves are weights, see `jaxgrad.training.regularization.Where`.
      stacked: A regular expression that matches the paths of leaves with a leading axis of layers:
        `"^hidden/"` for `jaxgrad.layers.mlp`, `"^1/"` if part 1 of a `jaxgrad.layers.sequential` is
        a `jaxgrad.layers.repeat`. `None` if there are none.

    Returns:
      The `Norms`. See `layer_names` for the order of the layers.

    Raises:
      ValueError, TypeError: If no leaf is selected, or stacked leaves do not fit each other.

    Source: A. Karpathy, CS231n notes, "Ratio of weights:updates".

    >>> from types import SimpleNamespace
    >>> w = {"w": jnp.asarray([3.0, 4.0])}
    >>> tiny = jax.tree.map(lambda a: a * 1e-30, w)
    >>> norms = layer_norms(SimpleNamespace(params=w, gradient=tiny, updates=tiny))
    >>> round(float(norms.log_ratio[0]), 2)  # log(1e-30)
    -69.08
    """
    groups = _layer_groups(step.params, where, stacked)
    # Without the barrier XLA may fuse the optimizer into the norms and compute it twice.
    trees = jax.lax.optimization_barrier((step.gradient, step.params, step.updates))
    return Norms(*(_log_norms(tree, groups) for tree in trees))


def layer_names(
    params: Any, *, where: Where = WEIGHTS, stacked: str | None = None
) -> tuple[str, ...]:
    """Return the names of the layers in the order of `layer_norms`.

    Layers are ordered by path, with numbers compared as numbers (`Dense_2` before `Dense_10`). The
    copies of a stacked block follow one another. For parameters of jaxgrad this is the order from
    input to output; choose the names of your own layers so that it is for them.

    Args:
      params: Parameters of the network.
      where: Which leaves are weights, as in `layer_norms`.
      stacked: Which of them are stacked, as in `layer_norms`.

    >>> params = {"first": {"kernel": jnp.ones((2, 3))}, "hidden": {"kernel": jnp.ones((2, 3, 3))}}
    >>> layer_names(params, stacked="^hidden/")
    ('first/kernel', 'hidden/kernel[0]', 'hidden/kernel[1]')
    """
    names = []
    for members, copies in _layer_groups(params, where, stacked):
        if copies is None:
            names += [path for path, _ in members]
        else:
            names += [f"{path}[{copy}]" for copy in range(copies) for path, _ in members]
    return tuple(names)


def _layer_groups(params, where, stacked):
    """Return groups of leaves, `([(path, index)], copies)`, from input to output.

    All leaves of a stacked block are one group, any other leaf is a group with `copies=None`.
    """
    if stacked is not None and not isinstance(stacked, str):
        raise TypeError(
            f"stacked must be a regular expression, got {stacked!r}; pass a str such as '^hidden/'"
        )
    mask = jax.tree.leaves(select(params, where))
    leaves = [
        (path, index, jnp.shape(leaf))
        for index, (path, leaf) in enumerate(leaf_paths(params))
        if mask[index]
    ]
    groups: dict[Any, Any] = {}
    for path, index, shape in sorted(leaves, key=lambda leaf: _natural_order(leaf[0])):
        match = None if stacked is None else re.search(stacked, path)
        if match is None:
            groups[path, None] = ([(path, index)], None)
            continue
        # Leaves that match the same text, such as the parts of one block, form one stack.
        members, copies = groups.setdefault((match.group(), True), ([], shape[:1]))
        if shape[:1] != copies or copies in ((), (0,)):
            raise ValueError(
                f"stacked must match leaves with one leading axis of layers, got {path!r} of shape "
                f"{shape} beside a leading axis {copies}; match one stack at a time"
            )
        members.append((path, index))
    if stacked is not None and not any(copies for _, copies in groups.values()):
        raise ValueError(
            f"stacked must match the path of a selected leaf, got {stacked!r} and "
            f"{[leaf[0] for leaf in leaves]}; pass None if nothing is stacked"
        )
    return [(members, copies and copies[0]) for members, copies in groups.values()]


def _natural_order(path):
    """Sort key by which `Dense_2` comes before `Dense_10`."""
    # Numbers sort before texts at the same position of a path.
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _log_norms(tree, groups):
    leaves = jax.tree.leaves(tree)
    parts = []
    for members, copies in groups:
        flat = [leaves[index].reshape(copies or 1, -1) for _, index in members]
        # [copies, members] in row-major order: one copy of the block after the other.
        parts.append(jnp.stack([_log_norm(rows) for rows in flat], axis=1).reshape(-1))
    return jnp.concatenate(parts)


def _log_norm(rows):
    """Log of the norm of each row, in float32 at least."""
    rows = rows.astype(jnp.promote_types(rows.dtype, jnp.float32))
    total = jnp.sum(rows * rows, axis=1)
    # Ordinary squares need no scale, whose search takes five times as long as their sum.
    ordinary = jnp.all((total > 1e-20) & (total < 1e30))

    def scaled():  # |a|^2 = n mean(a^2)
        return log_mean_square(rows, 1) + np.log(rows.shape[1])

    return 0.5 * jax.lax.cond(ordinary, lambda: jnp.log(total), scaled)


class Units(NamedTuple):
    """Statistics of the units of each layer on a batch.

    Attributes:
      log_preactivation: Log mean square of the pre-activations `z`.
      dead: Share of the units that are saturated on every example.
      saturated: Share of (unit, example) pairs with a slope `|phi'(z)|` below `saturation`: about
        a half for ReLU.
      saturated_above: The same with `z > 0`. It is 0 for ReLU and other activations that are flat
        on one side only, for which dead units are the problem.
      counts: Histogram of `z`, `[layers, edges + 1]`; the first and last bins are unbounded.
      not_finite: Number of `z` that are NaN or infinite, which are not in `counts`.
    """

    log_preactivation: PerLayer
    dead: PerLayer
    saturated: PerLayer
    saturated_above: PerLayer
    counts: Num[Array | np.ndarray, "*times layers bins"]
    not_finite: PerLayer


def units(
    z: Float[Array | np.ndarray, "layers batch units"] | Sequence[Any],
    activation: str | Activation | Callable[..., Any],
    *,
    saturation: Any = 0.02,
    edges: Sequence[float] = EDGES,
) -> Units:
    """Compute statistics of pre-activations, defined as in `jaxgrad.propagation.Propagation`.

    Call it in the `evaluate` of `jaxgrad.training.fit`, on some dev examples, because it needs a
    forward pass that returns `z`. In a `monitor` that pass would be added to every step.

    Args:
      z: Pre-activations, `[layers, batch, units]`, or a sequence of arrays `[batch, units]`.
      activation: The activation that is applied to them, see `jaxgrad.activations.get`. Trained
        parameters take their initial values, and randomized ones their mean.
      saturation: Slope below which a unit counts as saturated, may be traced. Pass a smaller number
        if the slope of a leaky activation, such as 0.01, should not count.
      edges: Increasing edges of the histogram, at least one.

    Raises:
      ValueError, TypeError: If an argument is out of range or has another shape or dtype.

    >>> result = units([jnp.asarray([[-1.0, 2.0], [-3.0, jnp.inf]])], "relu", edges=(0.0,))
    >>> result.dead.tolist(), result.counts.tolist(), result.not_finite.tolist()
    ([0.5], [[2, 1]], [1])
    """
    phi = activations.get(activation)
    _validate.scalar("saturation", saturation, minimum=0.0)
    _validate.known("edges", edges, "units")
    bounds = _validate.vector("edges", edges, length=1, axes="[edges]")
    if not np.all(np.diff(bounds) > 0):
        raise ValueError(f"edges must be increasing numbers, got {edges!r}; sort them")
    listed = isinstance(z, (list, tuple))
    _check_preactivations(z if listed else [z], 2 if listed else 3)

    def one(z):
        # phi'(z): phi acts on each element, so its Jacobian is diagonal.
        slope = jax.vjp(phi, z)[1](jnp.ones_like(z))[0]
        flat = jnp.abs(slope) < saturation
        finite = jnp.isfinite(z)
        total = jnp.sum(finite)
        # A histogram by differences of cumulative counts.
        below = [jnp.sum(finite & (z < bound)) for bound in bounds]
        counts = jnp.diff(jnp.stack([jnp.zeros_like(total), *below, total]))
        return Units(
            # Infinities stay in the mean square, which then shows them.
            log_mean_square(z.astype(jnp.promote_types(z.dtype, jnp.float32)), (0, 1)),
            jnp.mean(jnp.all(flat, axis=0)),
            jnp.mean(flat),
            jnp.mean(flat & (z > 0)),
            counts,
            z.size - total,
        )

    if not listed:
        return jax.vmap(one)(jnp.asarray(z))
    # Layers of different widths cannot be mapped.
    return jax.tree.map(lambda *parts: jnp.stack(parts), *[one(jnp.asarray(a)) for a in z])


def _check_preactivations(arrays, ndim):
    shapes = [np.shape(a) for a in arrays]
    if not shapes or any(len(shape) != ndim or 0 in shape for shape in shapes):
        raise ValueError(
            "z must be an array [layers, batch, units] or a sequence of arrays [batch, units], "
            f"none empty, got shapes {shapes}; stack the pre-activations of all layers"
        )
    for a in arrays:
        if not jnp.issubdtype(jnp.result_type(a), jnp.floating):
            raise TypeError(
                f"z must be floating point, got {jnp.result_type(a)}; convert it by "
                "astype('float32')"
            )
