"""Factors of weights that level the signal and the gradient, by measurement.

Each stage takes and returns the logs of factors by leaf, and measures the model in between.
"""

import math
from typing import NamedTuple

import numpy as np

from jaxgrad.inspection import _levels
from jaxgrad.inspection._levels import Group, Levels, Logs, Model, growth_of_sums

FORWARD, BACKWARD = math.log(1.02), math.log(1.05)  # log growth per block that counts as level
OUTLIER = math.log(2)  # log of a block's weights over those of the others
LOGITS = 3.0  # root mean square of logits from which on a softmax is concentrated
STABLE = math.log(10)  # log growth over all blocks that is left alone, as in `regimes`
DILUTION = math.log(1e3)  # log of the factor by which the first signal may shrink in the stream
ENTRANCES = (0.5, 0.25, 2.0, 4.0, 0.125, 8.0)  # sizes of the first signal that are tried


class Stage(NamedTuple):
    """The result of a stage: logs of factors, the groups that it changed, and remarks."""

    logs: Logs
    groups: tuple[Group, ...] = ()
    notes: tuple[str, ...] = ()
    homogeneous: bool = False  # whether the gain of a product is that of its weights alone


def add(model: Model, logs: Logs, group: Group, change: float) -> Logs:
    """Add to the log of the factor of each leaf of a group."""
    return logs | {i: logs.get(i, np.array(0.0)) + change for i in model.leaves(group)}


def level_blocks(model: Model, logs: Logs) -> Stage:
    """Scale the weights of single blocks that are unlike those of all others."""
    changed, notes = [], []
    for group in model.groups:
        sizes = _weight_sizes(model, group)
        shapes = {shape for shape, _, _ in sizes}
        for shape in shapes:
            values = np.concatenate([np.ravel(v) for s, _, v in sizes if s == shape])
            middle = np.median(values[np.isfinite(values)]) if np.isfinite(values).any() else 0.0
            spread = np.median(np.abs(values - middle)) if np.isfinite(values).all() else 0.0
            limit = max(OUTLIER, 10 * spread)
            alike = np.mean(np.abs(values - middle) <= limit)
            # Several kinds of blocks are a design, one among many is a fault.
            if len(values) < 4 or alike < 0.75 or alike == 1:
                continue
            for s, leaf, v in sizes:
                outlier = np.isfinite(v) & (np.abs(v - middle) > limit)
                if s == shape and np.any(outlier):
                    change = np.where(outlier, middle - v, 0.0)
                    logs = logs | {leaf: logs.get(leaf, np.array(0.0)) + change}
                    changed.append(group)
            if np.isneginf(values).any():
                notes.append(f"all weights of one block of {group.name} are zero: draw them again")
    return Stage(logs, tuple(dict.fromkeys(changed)), tuple(notes))


def _weight_sizes(model: Model, group: Group) -> list[tuple[tuple[int, ...], int, np.ndarray]]:
    """Return shape, leaf and log root mean square of each weight, by iteration of its scans."""
    results = []
    for leaf in model.leaves(group):
        parameters = [model.flow.products[p].parameter for p in group.products]
        lengths = next(p.lengths for p in parameters if p.leaf == leaf)
        array = np.asarray(model.problem.moved[leaf], np.float64)
        axes = tuple(range(len(lengths or ()), array.ndim))
        with np.errstate(divide="ignore"):
            log = np.log(np.mean(np.square(array), axis=axes)) / 2
        results.append((array.shape[len(lengths or ()) :], leaf, log))
    return results


def level_logits(model: Model, logs: Logs) -> Stage:
    """Scale queries and keys where the logits of attention are large."""
    flow, levels = model.flow, _levels.measure(model, logs)
    changed, notes = [], []
    large: dict[tuple[str, ...], list[float]] = {}
    names = {p: group for group in model.groups for p in group.products}
    for attention in flow.attention:
        size = float(np.exp(np.median(levels.forward[attention.logits]) / 2))
        groups = dict.fromkeys(names[p] for p in attention.products if p in names)
        if attention.shared or len(groups) != 2:
            key = ("shared", *(g.name for g in groups))
        else:
            key = tuple(g.name for g in groups)
        large.setdefault(key, []).append(size)
    for key, sizes in large.items():
        size = float(np.median(sizes))
        # Also where a size is not known.
        if not size > LOGITS:
            continue
        if key[0] == "shared":
            notes.append(
                f"the logits of attention have size {size:.3g}, and queries and keys share a "
                f"weight with other parts: divide the logits by {size:.3g}"
            )
            continue
        for group in model.groups:
            if group.name in key:
                logs = add(model, logs, group, -math.log(size) / 2)
                changed.append(group)
        text = f"the logits of attention have size {size:.3g}, so that its softmax is concentrated"
        notes.append(f"{text}: scale the weights of queries and keys so that it is 1")
    return Stage(logs, tuple(changed), tuple(notes))


def branch_groups(model: Model) -> list[tuple[Group, list[int]]]:
    """Return groups that end residual branches, with the indices of their sums."""
    results = []
    for group in model.groups:
        sums = [
            k for k, r in enumerate(model.flow.residuals) if r.last and r.last[-1] in group.products
        ]
        results += [(group, sums)] if sums else []
    return results


def stream(model: Model) -> Group | None:
    """Return the sums that end the blocks of a residual network, as a group."""
    groups = branch_groups(model)
    if not groups:
        return None
    sums = tuple(model.flow.residuals[k].total for k in groups[-1][1])
    return Group("", sums, _count(model, sums))


def _count(model: Model, nodes: tuple[int, ...]) -> int:
    return sum(math.prod(model.flow.nodes[i].lengths) for i in nodes)


def count_sums(model: Model) -> int:
    """Return how many residual branches are added to the stream."""
    sums = [k for _, part in branch_groups(model) for k in part]
    return _count(model, tuple(model.flow.residuals[k].total for k in sums))


def level_branches(model: Model, logs: Logs, total: float | None) -> Stage:
    """Scale the last product of each residual branch, so that the stream grows by `total`."""
    groups, sums = branch_groups(model), stream(model)
    if sums is None:
        return Stage(logs)
    start = logs
    levels = _levels.measure(model, logs)
    # Streams that grow little are left alone, unless it is asked for.
    forward, backward = growth(levels, [sums])
    stable = is_stable(forward, backward, sums.blocks) and _dilution(model, levels) < DILUTION
    if stable and total is None:
        grown = [math.exp(abs(x) * sums.blocks) for x in (forward, backward)]
        text = (
            f"over {sums.blocks} blocks the stream changes by {grown[0]:.2g} and its gradient by "
            f"{grown[1]:.2g}, which does no harm; prescribe(trace, total=1.4) scales its branches"
        )
        return Stage(logs, (), () if is_level(forward, backward) else (text,))
    total = math.sqrt(2) if total is None else float(total)
    first = _shares(model, levels, groups)
    # The same share for each sum: (1 + share)^sums = total^2.
    target = total ** (2 / count_sums(model)) - 1
    active = [k for k, share in enumerate(first) if share > target]
    for step in range(12):
        shares = _shares(model, levels, groups)
        if all(abs(math.log(shares[k] / target)) < 0.02 for k in active):
            break
        for k in active:
            change = math.log(target / shares[k]) / 2
            logs = add(model, logs, groups[k][0], change)
            # With its bias a branch is scaled as a whole.
            for leaf in _biases(model, groups[k][1]):
                logs = logs | {leaf: logs.get(leaf, np.array(0.0)) + change}
        levels = _levels.measure(model, logs)
        if step == 0:
            # A normalization after the last product takes its factor away.
            after = _shares(model, levels, groups)
            fixed = [k for k in active if abs(math.log(after[k] / shares[k])) < 1e-3]
            if fixed:
                notes = tuple(_ending(groups[k][0], first[k], target) for k in fixed)
                return Stage(start, (), notes)
    return Stage(logs, tuple(groups[k][0] for k in active))


def _dilution(model: Model, levels: Levels) -> float:
    """Return the log of the factor by which the sums dilute the first signal of the stream.

    A normalization after each sum hides it from the size of the stream.
    """
    sums = [np.ravel(values) for values in growth_of_sums(model, levels)]
    return float(np.nansum(np.concatenate(sums))) / 2


def _biases(model: Model, sums: list[int]) -> set[int]:
    return {leaf for k in sums for leaf in model.flow.residuals[k].biases}


def _ending(group: Group, share: float, target: float) -> str:
    scale = math.sqrt(target / share)
    return (
        f"a normalization after {group.name} ends the residual branch, so that no factor of "
        f"weights matters: start its gain, or scale the branch, with {scale:.3g}"
    )


def _shares(model: Model, levels: Levels, groups: list[tuple[Group, list[int]]]) -> list[float]:
    """Return by which share of itself the mean square of the stream grows in each sum."""
    growth = growth_of_sums(model, levels)
    results = []
    for _, sums in groups:
        values = np.concatenate([np.ravel(growth[k]) for k in sums])
        values = values[np.isfinite(values)]
        share = float(np.expm1(np.mean(values))) if values.size else 0.0
        results.append(max(share, 1e-30))
    return results


def chain_groups(model: Model) -> list[Group]:
    """Return the groups of products that follow one another, outside of residual branches."""
    inside = frozenset().union(*(r.inside for r in model.flow.residuals))
    attended = {p for a in model.flow.attention for p in a.products}
    # Weights that the iterations of a scan share are those of a recurrence, not of depth.
    shared = {
        i
        for i, p in model.flow.products.items()
        if p.parameter.lengths is not None
        and len(p.parameter.lengths) < len(model.flow.nodes[i].lengths)
    }
    return [g for g in model.groups if not (inside | attended | shared).intersection(g.products)]


def growth(levels: Levels, groups: list[Group]) -> tuple[float, float]:
    """Return the log growth per block of the signal and of the gradient, of the first group."""
    return _levels.slope(levels.forward, groups[0]), -_levels.slope(levels.backward, groups[0])


def is_level(forward: float, backward: float, margin: float = 1.0) -> bool:
    """Whether both growths count as level; False if one is not known."""
    return abs(forward) <= margin * FORWARD and abs(backward) <= margin * BACKWARD


def is_stable(forward: float, backward: float, blocks: int) -> bool:
    """Whether both change by less than a factor of 10 over all blocks."""
    return max(abs(forward), abs(backward)) * blocks < STABLE


def is_harmless(forward: float, backward: float, blocks: int) -> bool:
    """Whether both are level, or change by less than a factor of two over all blocks."""
    limits = (max(limit, math.log(2) / blocks) for limit in (FORWARD, BACKWARD))
    return all(abs(x) <= limit for x, limit in zip((forward, backward), limits, strict=True))


def level_chain(model: Model, logs: Logs) -> Stage:
    """Scale the weights of a network without residual branches; all blocks by one factor."""
    gain, start = _levels.gains(model), logs
    levels = _levels.measure(model, logs)
    groups = [g for g in chain_groups(model) if np.isfinite(gain(levels, g)).any()]
    if not groups:
        return Stage(logs)
    forward, backward = growth(levels, groups)
    if is_stable(forward, backward, groups[0].blocks):
        return Stage(logs)
    if _is_noise(gain(levels, groups[0]), forward, backward):
        text = "which random weights of this width do that are level on average"
        return Stage(logs, (), (f"{_remaining(forward, backward)}, {text}",))
    # Where activations are homogeneous the gain of a product is that of its weights.
    homogeneous = False
    for step in range(3):
        changes = [-np.nanmean(gain(levels, g)) / 2 for g in groups]
        if not all(math.isfinite(c) for c in changes):
            break
        for group, change in zip(groups, changes, strict=True):
            logs = add(model, logs, group, float(change))
        levels = _levels.measure(model, logs)
        if max(map(abs, changes)) < 1e-3:
            homogeneous = step == 1
            break
    logs, levels = _balance(model, logs, groups)
    # The size of the signal matters to activations that are not homogeneous.
    if not homogeneous:
        logs, levels = _enter(model, logs, groups, levels)
    if not is_harmless(*growth(levels, groups), groups[0].blocks):
        logs, levels = _block_by_block(model, logs, groups, levels)
    forward, backward = growth(levels, groups)
    level = is_harmless(forward, backward, groups[0].blocks)
    notes = () if level else (_remaining(forward, backward),)
    # A model without any effect of its weights, as behind a normalization, is left alone.
    before = growth(_levels.measure(model, start), groups)
    if notes and _cost(forward, backward) > 0.9 * _cost(*before):
        text = "no scale of the weights levels them, as where a normalization follows each product"
        return Stage(start, (), (f"{_remaining(*before)}: {text}",))
    return Stage(logs, tuple(groups), notes, homogeneous)


def _is_noise(gains: np.ndarray, forward: float, backward: float) -> bool:
    """Whether the growth is that of random weights whose blocks are level on average."""
    known = gains[np.isfinite(gains)]
    if known.size < 4:
        return False
    error = np.std(known, ddof=1) / math.sqrt(known.size) / 2
    return max(abs(forward), abs(backward)) < 2 * float(error)


def _remaining(forward: float, backward: float) -> str:
    return (
        f"per block the signal grows by {math.exp(forward):.3g} and the gradient by "
        f"{math.exp(backward):.3g}"
    )


def _cost(forward: float, backward: float) -> float:
    cost = math.hypot(forward / FORWARD, backward / BACKWARD)
    return cost if math.isfinite(cost) else math.inf


def _balance(model: Model, logs: Logs, groups: list[Group]) -> tuple[Logs, Levels]:
    """Find the common factor at which the growth of signal and gradient balance.

    Both increase with the factor. Where they are level at the same one, that is the root.
    """

    def evaluate(x):
        moved = logs
        for group in groups:
            moved = add(model, moved, group, x / len(groups))
        levels = _levels.measure(model, moved)
        forward, backward = growth(levels, groups)
        return forward / FORWARD + backward / BACKWARD, moved, levels

    # Of a linear network, whose growth per block is the factor itself.
    slope = 1 / FORWARD + 1 / BACKWARD
    x, bounds, best = 0.0, [-math.inf, math.inf], None
    for _ in range(12):
        y, moved, levels = evaluate(x)
        if not math.isfinite(y):
            break
        cost = _cost(*growth(levels, groups))
        if best is None or cost < best[0]:
            best = (cost, moved, levels)
        if abs(y) < 0.05:
            break
        bounds[int(y > 0)] = x
        # Secant steps until the root is enclosed, then bisection.
        step = x - max(-1.0, min(1.0, y / slope))
        inside = bounds[0] < step < bounds[1]
        x = step if inside and not all(map(math.isfinite, bounds)) else sum(bounds) / 2
    return (best[1], best[2]) if best else (logs, evaluate(0.0)[2])


def _enter(model: Model, logs: Logs, groups: list[Group], levels: Levels) -> tuple[Logs, Levels]:
    """Change the size of the signal that enters the first block, where that levels more."""
    entrance = _entrance(model, groups)
    if is_harmless(*growth(levels, groups), groups[0].blocks) or entrance is None:
        return logs, levels
    best = (_cost(*growth(levels, groups)), logs, levels)
    for size in ENTRANCES:
        leaf, log = entrance(size)
        moved = logs | {leaf: logs.get(leaf, np.array(0.0)) + log}
        moved, levels = _balance(model, moved, groups)
        cost = _cost(*growth(levels, groups))
        best = min(best, (cost, moved, levels), key=lambda entry: entry[0])
        if is_level(*growth(levels, groups), margin=0.8):
            break
    return best[1], best[2]


def _entrance(model: Model, groups: list[Group]):
    """Return a function of a factor: the leaf of the first product, and the log of its factor."""
    first = groups[0].products[0]
    parameter = model.flow.products[first].parameter
    chain = {p for g in groups for p in g.products}
    # The product before the first block, or else that block itself.
    before = [p for p in model.flow.products if p < first and p not in chain]
    if before:
        leaf = model.flow.products[before[-1]].parameter.leaf
        return lambda size: (leaf, np.array(math.log(size)))
    if parameter.lengths is None:
        return None
    if parameter.lengths:
        once = np.zeros(parameter.lengths)
        once[..., 0] = 1.0
        return lambda size: (parameter.leaf, math.log(size) * once)
    return lambda size: (parameter.leaf, np.array(math.log(size)))


def _block_by_block(model, logs, groups, levels) -> tuple[Logs, Levels]:
    """Level each block by itself, at the size of the first."""
    products = [model.flow.products[p] for g in groups for p in g.products]
    leaves = [product.parameter.leaf for product in products]
    if any(p.parameter.lengths is None for p in products) or len(set(leaves)) < len(leaves):
        return logs, levels
    best = (_cost(*growth(levels, groups)), logs, levels)
    gain = _levels.gains(model)
    for _ in range(20):
        for group in groups:
            values = np.nan_to_num(gain(levels, group))
            for p in group.products:
                parameter = model.flow.products[p].parameter
                count = int(np.prod(parameter.lengths))
                part, values = values[:count], values[count:]
                change = -part.reshape(parameter.lengths) / 2
                logs = logs | {parameter.leaf: logs.get(parameter.leaf, np.array(0.0)) + change}
        levels = _levels.measure(model, logs)
        cost = _cost(*growth(levels, groups))
        best = min(best, (cost, logs, levels), key=lambda entry: entry[0])
        if cost < 0.2:
            break
    return best[1], best[2]
