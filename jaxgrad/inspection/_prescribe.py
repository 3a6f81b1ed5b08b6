"""`prescribe`: factors of the weights that level the signal and the gradient of a model."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad import _validate
from jaxgrad.inspection import _initial_scales, _levels, _rescaling
from jaxgrad.inspection._depth import Growth
from jaxgrad.inspection._levels import Group, Levels, Logs, Model
from jaxgrad.inspection._xray import XRay, xray


class Change(NamedTuple):
    """What to change in the weights of a group.

    Attributes:
      parameter: their path; `#` stands for the number of a block.
      factor: of the weights; of blocks with different ones, the median.
      variance, target: mean square of the weights times fan-in, as it is and as it should be.
      text: the same in words, with the cause where it is known.
    """

    parameter: str
    factor: float
    variance: float
    target: float
    text: str


@dataclass(frozen=True)
class Prescription:
    """Factors of the weights that level a model; `print` it to read what to change.

    Attributes:
      factors: of each array of the parameters, structured as these. They have no axis, or the axis
        of the scanned blocks first if these differ.
      changes: one for each group of weights that is rescaled.
      branches: by path of the last weights of a residual branch, the factor of the branch, for
        those who prefer to write `x + factor * branch(x)` and leave the weights.
      before, after: growth per block in the stream, as measured by `xray` without and with the
        factors; `None` if nothing repeats with depth, or the size underflows.
      notes: what factors of weights cannot do, or what else was seen.
    """

    factors: Any
    changes: tuple[Change, ...]
    branches: dict[str, float]
    before: Growth | None
    after: Growth | None
    notes: tuple[str, ...] = field(default=())

    def apply(self, params: Any) -> Any:
        """Return parameters of the same structure, multiplied by the factors."""

        def scaled(factor, leaf):
            return leaf if factor is None else leaf * jnp.asarray(factor, jnp.result_type(leaf))

        return jax.tree.map(scaled, self.factors, params, is_leaf=lambda node: node is None)

    def __str__(self) -> str:
        """What to change, and the growth per block before and after."""
        lines = [change.text for change in self.changes] or ["no weights have to be rescaled"]
        for name, part in (("signal", "forward"), ("gradient", "backward")):
            sides = [_growth(row, part) for row in (self.before, self.after)]
            # Without a change, once is enough.
            sides = sides if self.changes else sides[:1]
            lines.append(f"growth of the {name} per block: {', now '.join(sides)}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def prescribe(
    trace: XRay,
    *,
    total: float | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Prescription:
    """Return factors of the weights with which neither signal nor gradient grows with depth.

    The model is measured again with rescaled weights until it is level; it is compiled once for
    that. Only products with a parameter that repeat with depth, in the iterations of a scan or
    under numbered names, are changed, and the product before them if activations need another size
    of the signal. Biases, gains of normalizations and embeddings stay.

    - Without residual branches the products are scaled so that the sizes of signal and gradient
      stay level, all blocks by one factor unless that is impossible.
    - With residual branches the last product of each branch is scaled, with its bias, so that the
      stream grows by `total` over the whole depth.
    - A block whose weights are unlike those of all others gets their size.
    - Queries and keys are scaled if the logits of attention are larger than 3.

    A model is left as it is where signal and gradient change by less than a factor of 10 over the
    whole depth, or by no more than the noise of random weights; also weights that all iterations of
    a scan share, as in a recurrent network.

    Args:
      trace: of the model at initialization, as `xray` returns it.
      total: the factor by which the root mean square of a residual stream may grow, above 1. By
        default it is the square root of 2 for streams that have to be mended; a number is applied
        to all that grow by more.
      progress: called as `progress(done, total)` at the start and after each of the five steps:
        single blocks, logits, branches, products that follow one another, and the x-ray of the
        result. The program is compiled in the first one and in the last one.

    Raises:
      TypeError: if `trace` is no `XRay`.
      ValueError: if the trace has infinite elements or NaN. The message says where they begin.

    >>> import jax, jax.numpy as jnp
    >>> def loss(weights, x):
    ...     x, _ = jax.lax.scan(lambda x, w: (jax.nn.relu(x @ w), None), x, weights)
    ...     return jnp.mean(x**2)
    >>> keys = jax.random.split(jax.random.key(0))
    >>> weights = jax.random.normal(keys[0], (32, 64, 64)) / 8
    >>> fix = prescribe(xray(loss, weights, jax.random.normal(keys[1], (16, 64))))
    >>> (change,) = fix.changes
    >>> print(f"{change.variance:.1f} / fan-in, should be {change.target:.1f} / fan-in")
    1.0 / fan-in, should be 2.0 / fan-in
    """
    if not isinstance(trace, XRay):
        raise TypeError(
            f"trace must be an XRay, got {type(trace).__name__}; pass jaxgrad.xray(loss, params)"
        )
    if total is not None:
        _validate.scalar("total", total, minimum=1.0, above=True)
    progress = _validate.progress(progress)
    _check_finite(trace)
    progress(0, 5)
    model = _levels.open_model(trace.problem)
    # Sizes of weights come first, since all others are measured with them.
    single = _rescaling.level_blocks(model, {})
    progress(1, 5)
    logits = _rescaling.level_logits(model, single.logs)
    progress(2, 5)
    branches = _rescaling.level_branches(model, logits.logs, total)
    progress(3, 5)
    chain = _rescaling.level_chain(model, branches.logs)
    progress(4, 5)
    levels = _levels.measure(model, chain.logs)
    problem = trace.problem
    factors = [
        _levels.factor(chain.logs.get(i, np.array(0.0)), leaf).astype(leaf.dtype)
        for i, leaf in enumerate(problem.moved)
    ]
    arguments = problem.call.arguments(_levels.scaled(problem.moved, chain.logs), problem.fixed)
    after = xray(
        problem.call.loss,
        *arguments,
        argnums=problem.argnums,
        has_aux=problem.call.has_aux,
        rules=False,
    )
    progress(5, 5)
    before, grown = (_stream(model, part) for part in (trace, after))
    return Prescription(
        problem.argument(factors),
        tuple(_changes(model, chain.logs, levels, branches.groups, chain)),
        {g.name: _factor(model, g, chain.logs) for g in branches.groups},
        before,
        grown,
        (*single.notes, *logits.notes, *branches.notes, *chain.notes),
    )


def _check_finite(trace: XRay) -> None:
    for name, sites in (("signal", trace.sites), ("gradient", trace.sites[::-1])):
        for site in sites:
            part = site.forward if name == "signal" else site.backward
            if np.any(np.asarray(part.non_finite) > 0):
                place = f"at {site.operation} {site.parameter} ({site.line})"
                raise ValueError(
                    f"trace must be finite, got a {name} that is not, first {place}; "
                    "mend that operation, or scale the weights down if it overflows"
                )


def _stream(model: Model, trace: XRay) -> Growth | None:
    """Return the growth of the stream: that of the last sum in a block, or of the products."""
    sums, chain = _rescaling.stream(model), _rescaling.chain_groups(model)
    if sums is None and not chain:
        return None
    # As the x-ray names them.
    name = "" if sums else chain[0].path
    node = model.flow.nodes[(sums or chain[0]).products[0]]
    place = (node.primitive, name, node.place)
    rows = [row for row in trace.growth if (row.operation, row.parameter, row.line) == place]
    return rows[0] if rows else None


def _factor(model: Model, group: Group, logs: Logs) -> float:
    """Return the median factor of the blocks of a group."""
    values = [np.ravel(logs.get(i, np.array(0.0))) for i in model.leaves(group)]
    return float(np.exp(np.median(np.concatenate(values))))


def _changes(model, logs, levels, branches, chain):
    """Describe the factors of each group, and of each leaf outside of the groups."""
    # A leaf that two groups share is described once.
    described: set[int] = set()
    for group in model.groups:
        leaves = [i for i in model.leaves(group) if i in logs and np.any(logs[i] != 0)]
        if leaves:
            described.update(leaves)
            error = _error(model, levels, group) if chain.homogeneous else 0.0
            reason = _ending(model, group, branches, _factor(model, group, logs))
            yield _change(model, group, logs, error, reason)
    for i, log in logs.items():
        label, products = model.problem.call.labels[i], model.flow.products.values()
        if i in described or not np.any(log != 0):
            continue
        nodes = tuple(p.node for p in products if p.parameter.leaf == i)
        if nodes:
            group = Group(label, nodes[:1], 1)
            yield _change(model, group, logs, 0.0, "for the size of the first signal")
        # Biases that are zero need no words.
        elif np.any(np.asarray(model.problem.moved[i]) != 0):
            factor = float(np.exp(np.median(log)))
            text = f"{label}: multiply by {factor:.3g}, with the branch that it ends"
            yield Change(label, factor, math.nan, math.nan, text)


def _error(model: Model, levels: Levels, group: Group) -> float:
    """Return the relative standard error of the variance that levels a group."""
    values = _levels.gains(model)(levels, group)
    values = values[np.isfinite(values)]
    return float(np.std(values, ddof=1) / math.sqrt(values.size)) if values.size > 1 else 0.0


def _ending(model: Model, group: Group, branches: tuple[Group, ...], factor: float) -> str:
    if group not in branches:
        return ""
    count = _rescaling.count_sums(model)
    text = f"ends a residual branch, of which {count} are added to the stream without a scale"
    # For a branch as large as the stream the usual rule is right.
    usual = abs(math.log(factor * count**0.5)) < 0.3
    return text + (f": about 1 / sqrt({count})" if usual else "")


def _change(model: Model, group: Group, logs: Logs, error: float, reason: str) -> Change:
    weights = _weights(model, group)
    factor = _factor(model, group, logs)
    variance = weights.variance * weights.fan_in
    target = variance * factor**2
    if error:
        target = _initial_scales.rounded(target, error * target)
    values = np.exp(np.concatenate([np.ravel(logs.get(i, 0.0)) for i in model.leaves(group)]))
    others = np.flatnonzero(np.abs(values / factor - 1) > 1e-4)
    cause = reason or _initial_scales.cause(weights, target)
    # Other blocks have their weights as they are.
    if len(others) and abs(factor - 1) < 1e-9:
        blocks = ", ".join(f"{i} by {values[i]:.3g}" for i in others)
        text = f"{group.name}: unlike those of the others, multiply the weights of block {blocks}"
        return Change(group.name, factor, variance, target, text)
    text = (
        f"{group.name}: variance {variance:.3g} / fan-in, should be {target:.3g} / fan-in: "
        f"multiply by {factor:.3g}" + (f" ({cause})" if cause else "")
    )
    if len(others):
        text += f"\n  blocks differ, from {values.min():.3g} to {values.max():.3g}: see factors"
    text += f"\n  e.g. jax.nn.initializers.variance_scaling({target:.3g}, 'fan_in', 'normal')"
    return Change(group.name, factor, variance, target, text)


def _weights(model: Model, group: Group) -> _initial_scales.Weights:
    """Return the variance of the weights of most blocks of a group, and their fans."""
    arrays, products = [], []
    for p in group.products:
        product = model.flow.products[p]
        array = np.asarray(model.problem.moved[product.parameter.leaf], np.float64)
        lengths = product.parameter.lengths or ()
        rows = array.reshape(math.prod(lengths), -1)
        arrays += list(np.mean(np.square(rows), axis=1) * product.fan_in)
        products += len(rows) * [product]
    level = float(np.median(arrays))
    # The first and the last block may have other shapes.
    usual = products[len(products) // 2]
    leaf = model.problem.moved[usual.parameter.leaf]
    count = leaf.size // math.prod(usual.parameter.lengths or ()) * len(arrays)
    fans = (usual.fan_in, usual.fan_out, usual.receptive_field)
    return _initial_scales.Weights(level / usual.fan_in, count, *fans)


def _growth(row: Growth | None, part: str) -> str:
    if row is None:
        return "not known"
    return f"{getattr(row, part):.3f} +- {getattr(row, part + '_error'):.1g}"
