"""Record what a network does in training: norms of each layer, and statistics of its units.

The functions are for the `monitor` and `evaluate` of `jaxgrad.training.fit`, or for another
training loop. `jaxgrad.training.diagnosis` reads their results.
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
    """Natural logs of the L2 norms of gradient, weights and update of each layer; -inf for 0."""

    log_gradient: PerLayer
    log_weight: PerLayer
    log_update: PerLayer

    @property
    def log_ratio(self) -> PerLayer:
        """Log of |update| / |weights|, about log(1e-3) in many good runs."""
        return self.log_update - self.log_weight


def layer_norms(step: Any, *, where: Where = WEIGHTS, stacked: str | None = None) -> Norms:
    """Compute the norms of the gradient, weights and update of each layer, as a `monitor`.

    Logs of norms neither overflow nor underflow. They cost more under `jax.vmap`, which computes
    both the plain sum of squares and the scaled one. See `layer_names` for the order of layers.

    Args:
      step: A `jaxgrad.training.Step`, or any object with `params`, `gradient` and `updates`.
      where: Which leaves are weights, see `jaxgrad.training.regularization.Where`.
      stacked: A regular expression that matches the paths of leaves with a leading axis of layers:
        `"^hidden/"` for `jaxgrad.layers.mlp`, `"^1/"` if part 1 of a `jaxgrad.layers.sequential` is
        a `jaxgrad.layers.repeat`. `None` if there are none.

    Source: A. Karpathy, CS231n notes, "Ratio of weights:updates".

    >>> from types import SimpleNamespace
    >>> w = {"w": jnp.asarray([3.0, 4.0])}
    >>> tiny = jax.tree.map(lambda a: a * 1e-30, w)
    >>> norms = layer_norms(SimpleNamespace(params=w, gradient=tiny, updates=tiny))
    >>> round(float(norms.log_ratio[0]), 2)  # log(1e-30)
    -69.08
    """
    _validate.attributes("step", step, ("params", "gradient", "updates"), "a step of fit")
    groups = _layer_groups(step.params, where, stacked)
    # Without the barrier XLA may fuse the optimizer into the norms and compute it twice.
    trees = jax.lax.optimization_barrier((step.gradient, step.params, step.updates))
    return Norms(*(_log_norms(tree, groups) for tree in trees))


def layer_names(
    params: Any, *, where: Where = WEIGHTS, stacked: str | None = None
) -> tuple[str, ...]:
    """Return the names of the layers in the order of `layer_norms`, from its other arguments.

    Layers are ordered by path, with numbers compared as numbers (`Dense_2` before `Dense_10`). The
    copies of a stacked block follow one another. For parameters of jaxgrad this is the order from
    input to output, as it should be for the names of other layers.

    >>> params = {"first": {"kernel": jnp.ones((2, 3))}, "hidden": {"kernel": jnp.ones((2, 3, 3))}}
    >>> layer_names(params, stacked="^hidden/")
    ('first/kernel', 'hidden/kernel[0]', 'hidden/kernel[1]')
    """
    names = []
    for paths, copies in _layer_groups(params, where, stacked):
        indices = [""] if copies is None else [f"[{copy}]" for copy in range(copies)]
        names += [path + index for index in indices for path in paths]
    return tuple(names)


def _layer_groups(params, where, stacked):
    """Return groups `(paths, copies)`: stacked blocks of leaves, and leaves with `copies=None`."""
    if stacked is not None:
        _validate.pattern("stacked", stacked)
    mask = jax.tree.leaves(select(params, where))
    pairs = zip(leaf_paths(params), mask, strict=True)
    shapes = {path: jnp.shape(leaf) for (path, leaf), selected in pairs if selected}
    groups: dict[Any, Any] = {}
    for path in sorted(shapes, key=_natural_order):
        shape, match = shapes[path], None if stacked is None else re.search(stacked, path)
        if match is None:
            groups[path, None] = ([path], None)
            continue
        # Leaves that match the same text, such as the parts of one block, form one stack.
        new = ([], shape[0] if shape else 0)
        members, copies = groups.setdefault((match.group(), True), new)
        if copies == 0 or shape[:1] != (copies,):
            got = f"got {path!r} of shape {shape} beside {copies} layers; match one stack at a time"
            raise ValueError(f"stacked must match leaves with one leading axis of layers, {got}")
        members.append(path)
    if stacked is not None and not any(copies for _, copies in groups.values()):
        got = f"got {stacked!r} and {list(shapes)}; pass None if nothing is stacked"
        raise ValueError(f"stacked must match the path of a selected leaf, {got}")
    return groups.values()


def _natural_order(path):
    """Sort key by which `Dense_2` comes before `Dense_10`, and numbers before texts."""
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _log_norms(tree, groups):
    leaves, parts = dict(leaf_paths(tree)), []
    for paths, copies in groups:
        norms = [_log_norm(leaves[path].reshape(copies or 1, -1)) for path in paths]
        # [copies, members] in row-major order: one copy of the block after the other.
        parts.append(jnp.stack(norms, axis=1).ravel())
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
      log_preactivation: Log mean square of the pre-activations `z`, infinite if one of them is.
      dead: Share of the units that are saturated on every example.
      saturated: Share of (unit, example) pairs with a slope `|phi'(z)|` below `saturation`.
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

    Call it in the `evaluate` of `jaxgrad.training.fit`, on some dev examples. In a `monitor` the
    forward pass that returns `z` would be added to every step.

    Args:
      z: Pre-activations, `[layers, batch, units]`, or a sequence of arrays `[batch, units]`.
      activation: See `jaxgrad.activations.get`. Trained parameters take their initial values, and
        randomized ones their mean.
      saturation: Slope below which a unit counts as saturated, may be traced. It includes the usual
        slope of leaky activations, 0.01.
      edges: Increasing edges of the histogram, at least one.

    >>> result = units([jnp.asarray([[-1.0, 2.0], [-3.0, jnp.inf]])], "relu", edges=(0.0,))
    >>> result.dead.tolist(), result.counts.tolist(), result.not_finite.tolist()
    ([0.5], [[2, 1]], [1])
    """
    phi = activations.get(activation)
    _validate.scalar("saturation", saturation, minimum=0.0)
    _validate.known("edges", edges, "units")
    bounds = _validate.vector("edges", edges, length=1, axes="[edges]")
    if not (np.all(np.diff(bounds) > 0) and np.all(np.isfinite(bounds))):
        raise ValueError(f"edges must be increasing numbers, got {edges!r}; sort them")
    listed = isinstance(z, (list, tuple))
    arrays, ndim = (z, 2) if listed else ([z], 3)
    shapes = [np.shape(a) for a in arrays]
    if not shapes or any(len(shape) != ndim or 0 in shape for shape in shapes):
        rule = "be an array [layers, batch, units] or a sequence of arrays [batch, units]"
        raise ValueError(f"z must {rule}, none empty, got shapes {shapes}; stack all layers")
    for dtype in map(jnp.result_type, arrays):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"z must be floating point, got {dtype}; use z.astype('float32')")

    def one(z):
        # phi'(z): phi acts on each element, so its Jacobian is diagonal.
        flat = jnp.abs(jax.vjp(phi, z)[1](jnp.ones_like(z))[0]) < saturation
        finite = jnp.isfinite(z)
        total = jnp.sum(finite)
        # A histogram by differences of cumulative counts.
        below = [jnp.sum(finite & (z < bound)) for bound in bounds]
        counts = jnp.diff(jnp.stack([jnp.zeros_like(total), *below, total]))
        size = log_mean_square(z.astype(jnp.promote_types(z.dtype, jnp.float32)), (0, 1))
        dead, saturated = jnp.mean(jnp.all(flat, axis=0)), jnp.mean(flat)
        return Units(size, dead, saturated, jnp.mean(flat & (z > 0)), counts, z.size - total)

    if not listed:
        return jax.vmap(one)(jnp.asarray(z))
    # Layers of different widths cannot be mapped.
    return jax.tree.map(lambda *parts: jnp.stack(parts), *[one(jnp.asarray(a)) for a in z])
