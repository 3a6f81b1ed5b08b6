"""Layer-sequential unit variance: scale weights until every layer's output has unit variance."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int

from jaxgrad import _numerics, _validate

# A layer whose log standard deviation responds less than this to its log scale is not scaled.
_LEAST_RESPONSE = 1e-3


class UnitVariance(NamedTuple):
    """Weights scaled so that the layers' outputs have unit variance, after a number of `passes`.

    `params` have the structure and dtypes of the inputs. `std` is the standard deviation of each
    scaled layer's output, `[]` or, for a stacked leaf, `[layers]`; `None` for other leaves.
    """

    params: Any
    std: Any
    passes: Int[Array, ""]


def unit_variance(
    params: Any,
    outputs: Callable[[Any], Any],
    *,
    stacked: Any = False,
    tolerance: float = 0.01,
    iterations: int = 20,
) -> UnitVariance:
    """Scale weights so that each layer's output has unit variance on given data.

    The source, which starts with `orthogonal` weights, scales one layer after another. Here all are
    scaled together, by Newton's method for the logs of the scales, so the order of the layers need
    not be known, and branches may join. A layer that cannot be scaled to unit variance, such as one
    with a bias of larger variance, can be recognized by its `std`. The function may be jitted.

    Args:
      params: pytree of arrays, any structure.
      outputs: pure function of such parameters that closes over the data. It returns the same
        structure with the output of the layer (a pre-activation, any shape) in the place of each
        leaf to be scaled, and `None` in the place of every other leaf, such as a bias. Forward-mode
        differentiation must be possible.
      stacked: whether a leaf is a stack of layers along its first axis, whose outputs have the same
        first axis. A bool, or a tree prefix of `params` with bools, as `{"hidden": True}`.
      tolerance: the largest relative deviation of a standard deviation from 1, above 0.
      iterations: the largest number of passes, at least 1, of one forward derivative per layer.

    Source: Mishkin, Matas (2016), All you need is a good init.

    >>> x = jax.random.normal(jax.random.key(0), (64, 8))
    >>> result = unit_variance({"w": jnp.ones((8, 4))}, lambda params: {"w": x @ params["w"]})
    >>> round(float(result.std["w"]), 4)
    1.0
    """
    _validate.tree("params", params)
    _validate.function("outputs", outputs)
    _validate.scalar("tolerance", tolerance, minimum=0.0, above=True)
    iterations = _validate.integer("iterations", iterations, 1)
    scaling = _prepare(params, outputs, stacked)
    # A new closure over new data: there is nothing that a later call could use again.
    leaves, value, passes = jax.jit(lambda: _fit(scaling, tolerance, iterations))()
    std: list[Any] = [None] * len(leaves)
    for index, part in scaling.slots(value):
        std[index] = part
    return UnitVariance(scaling.treedef.unflatten(leaves), scaling.treedef.unflatten(std), passes)


@dataclass(frozen=True)
class _Scaling:
    """The leaves, of which those `selected` are scaled, by a vector of the logs of all scales."""

    outputs: Callable[[Any], Any]
    treedef: Any
    leaves: list[Array]
    selected: list[int]
    start: Float[Array, " scales"]
    unravel: Callable[[Array], list[Array]]

    def slots(self, vector: Float[Array, " scales"]) -> Iterator[tuple[int, Array]]:
        """Index of each selected leaf, and its part of a vector, `[]` or `[layers]`."""
        return zip(self.selected, self.unravel(vector), strict=True)

    def apply(self, log_scale: Float[Array, " scales"]) -> list[Array]:
        scaled = list(self.leaves)
        for index, part in self.slots(log_scale):
            leaf = self.leaves[index]
            factor = jnp.exp(jnp.expand_dims(part, tuple(range(part.ndim, leaf.ndim))))
            scaled[index] = (leaf.astype(factor.dtype) * factor).astype(leaf.dtype)
        return scaled

    def log_std(self, log_scale: Float[Array, " scales"]) -> Float[Array, " scales"]:
        """Log standard deviation of the output of every scaled layer, without overflow."""
        outputs, logs = _layer_outputs(self.outputs, self.treedef, self.apply(log_scale)), []
        for index, part in self.slots(log_scale):
            rows = outputs[index].reshape(part.size, -1).astype(part.dtype)
            scaled, log_divisor = _numerics.divide_by_largest(rows, axis=1)
            logs.append(0.5 * jnp.log(jnp.var(scaled, axis=1)) + log_divisor[:, 0])
        return jnp.concatenate(logs)


def _prepare(params, outputs, stacked) -> _Scaling:
    leaves, treedef = jax.tree.flatten(jax.tree.map(jnp.asarray, params))
    try:
        flags = jax.tree.leaves(jax.tree.broadcast(stacked, params))
    except ValueError as error:
        rule = "be a bool or a tree prefix of params with bools"
        raise ValueError(f"stacked must {rule}, got {stacked!r}; {error}") from None
    for value in flags:
        _validate.flag("stacked", value)
    # The outputs are only traced here, which costs no computation.
    shapes = jax.eval_shape(lambda leaves: _layer_outputs(outputs, treedef, leaves), leaves)
    selected = [index for index, part in enumerate(shapes) if part is not None]
    if not selected:
        raise ValueError(
            "outputs must return an array for at least one leaf of params, got None for all; "
            "return each layer's pre-activations in the place of its kernel"
        )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for index in selected:
        shape, leaf = shapes[index].shape, leaves[index]
        if flags[index] and (shape[:1] != leaf.shape[:1] or leaf.ndim == 0):
            raise ValueError(
                "outputs must return an array with the first axis of the stacked leaf "
                f"{jax.tree_util.keystr(paths[index])} of shape {leaf.shape}, got {shape}; set "
                "stacked to False for it or stack its layers' outputs"
            )
    dtype = jnp.result_type(jnp.float32, *(leaves[index] for index in selected))
    scales = [jnp.zeros(leaves[i].shape[:1] if flags[i] else (), dtype) for i in selected]
    return _Scaling(outputs, treedef, leaves, selected, *ravel_pytree(scales))


def _layer_outputs(outputs, treedef, leaves):
    """The layers' outputs in the order of the leaves, `None` for leaves that are not scaled."""
    result = outputs(jax.tree.unflatten(treedef, leaves))
    # By default None is no leaf, so the structures would differ.
    parts, structure = jax.tree.flatten(result, is_leaf=lambda leaf: leaf is None)
    if structure != treedef:
        rule = f"return the structure of params, {treedef}, with None for leaves not to be scaled"
        raise ValueError(f"outputs must {rule}, got {structure}")
    return parts


def _fit(scaling: _Scaling, tolerance, iterations):
    def unfinished(state):
        return (state[2] < iterations) & jnp.any(~(jnp.abs(jnp.expm1(state[1])) <= tolerance))

    def improve(state):
        log_scale, value, passes = state
        # The whole Jacobian, one column for each unit vector: scales change all later layers.
        _, derivative = jax.linearize(scaling.log_std, log_scale)
        jacobian = jax.lax.map(derivative, jnp.eye(len(log_scale), dtype=log_scale.dtype)).T
        # Leave out layers without a finite output yet, and those that do not respond to a scale.
        free = jnp.isfinite(value) & (jnp.diagonal(jacobian) > _LEAST_RESPONSE)
        both = free[:, None] & free[None, :] & jnp.isfinite(jacobian)
        matrix = jnp.where(both, jacobian, 0.0) + jnp.diag(jnp.where(free, 0.0, 1.0))
        step = jnp.linalg.solve(matrix, jnp.where(free, -value, 0.0))
        log_scale = log_scale + jnp.where(jnp.isfinite(step), step, 0.0)
        return log_scale, scaling.log_std(log_scale), passes + 1

    state = (scaling.start, scaling.log_std(scaling.start), jnp.zeros((), jnp.int32))
    log_scale, value, passes = jax.lax.while_loop(unfinished, improve, state)
    return scaling.apply(log_scale), jnp.exp(value), passes
