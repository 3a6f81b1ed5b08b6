"""Sizes of signals and gradients at the products and sums of a model, for any of its weights."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgrad.inspection._dataflow import Flow, Product, dataflow, plan_nodes, split_numbers
from jaxgrad.inspection._depth import LEAST_BLOCKS
from jaxgrad.inspection._problem import Call, Problem
from jaxgrad.inspection._sites import measurable
from jaxgrad.inspection._statistics import statistics
from jaxgrad.inspection._taps import run, slots, sums_of

Logs = dict[int, np.ndarray]  # by node or by leaf


class Group(NamedTuple):
    """Products that repeat with depth.

    Attributes:
      name: the path of their weights, `#` for numbers; with an example if others have it too.
      products: the nodes.
      blocks: how many there are.
      path: the path without an example.
    """

    name: str
    products: tuple[int, ...]
    blocks: int
    path: str = ""


class Levels(NamedTuple):
    """Logs of mean squares by node, of signals and cotangents, with the axes of the scans."""

    forward: Logs
    backward: Logs


class Model(NamedTuple):
    """A problem, the flow of its program, and its repeated products in order of computation."""

    problem: Problem
    flow: Flow
    groups: list[Group]

    def leaves(self, group: Group) -> list[int]:
        """Return the leaves that the products of a group apply, each once."""
        return sorted({self.flow.products[p].parameter.leaf for p in group.products})


def open_model(problem: Problem) -> Model:
    """Return the model of a problem."""
    flow = dataflow(problem.program, problem.call.labels)
    members: dict[tuple[Any, ...], list[int]] = {}
    for i, product in flow.products.items():
        node, label = flow.nodes[i], product.parameter.path
        if node.lengths:
            # Each scan is a group by itself, whose numbers are not those of blocks.
            members[(label, i)] = [i]
            continue
        place = (node.primitive, node.place, *_role(flow, product))
        members.setdefault((split_numbers(label)[0], *place), []).append(i)
    groups = []
    # Less than a few blocks show no growth.
    for (name, *_), products in members.items():
        labels = [flow.products[p].parameter.path for p in products]
        for part in _by_block(labels) if len(products) > 1 else [range(len(products))]:
            nodes = tuple(products[k] for k in part)
            blocks = sum(flow.nodes[i].lengths[-1] if flow.nodes[i].lengths else 1 for i in nodes)
            example = labels[part[0]]
            if blocks >= LEAST_BLOCKS:
                groups.append(Group(example, nodes, blocks, split_numbers(name)[0]))
    paths = [group.path for group in groups]
    for k, group in enumerate(groups):
        # Layers that only have running numbers are told from each other by an example.
        if len(group.products) > 1:
            name = group.path
            name += f" such as {group.name}" if paths.count(name) > 1 else ""
            groups[k] = group._replace(name=name)
    return Model(problem, flow, sorted(groups, key=lambda group: group.products))


def _role(flow: Flow, product: Product) -> tuple[Any, ...]:
    """Return what distinguishes the layers of a block that only have a running number."""
    shape = (product.fan_in, product.fan_out)
    for r in flow.residuals:
        if product.node in r.inside:
            return "last" if product.node in r.last else "inside", shape
    return ("chain",)


def _by_block(labels: list[str]) -> list[list[int]]:
    """Group labels that differ by nothing but the number that has the most values."""
    numbers = [split_numbers(label)[1] for label in labels]
    counts = [len(set(column)) for column in zip(*numbers, strict=True)]
    # Of a block and a layer in it, the block has more values.
    depth = int(np.argmax(counts)) if counts else 0
    parts: dict[Any, list[int]] = {}
    for k, row in enumerate(numbers):
        parts.setdefault((*row[:depth], *row[depth + 1 :]), []).append(k)
    return list(parts.values())


def scaled(leaves: Iterable[Any], logs: Logs) -> list[Any]:
    """Multiply leaves by factors whose logs have the first axes of the leaf, or none."""
    return [
        leaf * jnp.asarray(factor(logs[i], leaf), leaf.dtype) if i in logs else leaf
        for i, leaf in enumerate(leaves)
    ]


def factor(log: np.ndarray, leaf: Any) -> np.ndarray:
    """Return a factor with as many axes as the leaf, or none."""
    return np.exp(log).reshape(log.shape + (1,) * (leaf.ndim - log.ndim) if log.ndim else ())


def measure(model: Model, logs: Logs) -> Levels:
    """Measure a model whose leaves are multiplied by factors."""
    problem, flow = model.problem, model.flow
    moved = scaled(problem.moved, logs)
    # One transfer for all of them.
    trees = jax.device_get(_measure(problem.call, moved, problem.fixed))
    results: list[Logs] = []
    for tree in trees:
        results.append({})
        for i, sums in zip(_measured(flow), tree, strict=True):
            part = statistics(sums, np)
            log = np.asarray(part.log_mean_square, np.float64)
            # Infinite elements are left out of a mean square.
            results[-1][i] = np.where(np.asarray(part.non_finite) > 0, np.inf, log)
    return Levels(*results)


def _measured(flow: Flow) -> list[int]:
    """Return the nodes that are measured, in the order of their keys."""
    nodes = set(flow.products)
    for r in flow.residuals:
        nodes.update((r.total, r.branch), *(_sources(flow, i) for i in (r.skip, r.total)))
    for a in flow.attention:
        nodes.update((a.logits, a.weights))
    selected = [i for i in nodes if measurable(flow.nodes[i])]
    return sorted(selected, key=lambda i: flow.nodes[i].key)


def _sources(flow: Flow, index: int) -> list[int]:
    """Return the nodes whose sizes are those of a node: of a carry, the first and the next one."""
    return list(flow.nodes[index].inputs) if is_carry(flow, index) else [index]


def is_carry(flow: Flow, index: int) -> bool:
    """Whether a node is the carry of a scan."""
    node = flow.nodes[index]
    return node.equation is None and len(node.inputs) == 2 and node.inputs[1] > index


@functools.partial(jax.jit, static_argnums=0)
def _measure(call: Call, moved, fixed):
    """Return sums over signals and cotangents, compiled once for a call."""
    closed = jax.make_jaxpr(call)(moved, fixed)
    flow = dataflow(closed, call.labels)
    plan = plan_nodes(closed, flow, _measured(flow))

    def measured(slot_values):
        (value,), signals = run(closed, plan, slot_values, [*moved, *fixed])
        return value, signals

    # Only slots are differentiated, so that no gradient of a weight is computed.
    value, pullback, signals = jax.vjp(measured, slots(plan, True), has_aux=True)
    (cotangents,) = pullback(jnp.ones_like(value))
    return [site.signal for site in sums_of(signals)], sums_of(cotangents)


def size(flow: Flow, logs: Logs, index: int) -> np.ndarray:
    """Return the logs of a node, one for each iteration, NaN where they are not known."""
    node = flow.nodes[index]
    if index in logs:
        return logs[index]
    # Inputs of the program and of a scan are not measured.
    if not is_carry(flow, index):
        return np.full(node.lengths, np.nan)
    return _carried(node.lengths, *(logs.get(i, np.array(np.nan)) for i in node.inputs))


def _carried(lengths: tuple[int, ...], first: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return the values of a carry from its first one and those after each iteration."""
    after = fit(after, lengths)
    return np.concatenate([fit(first, (*lengths[:-1], 1)), after[..., :-1]], axis=-1)


def fit(values: np.ndarray, lengths: tuple[int, ...]) -> np.ndarray:
    """Return values of other scans as they are seen from these: the last ones of an inner scan."""
    while values.ndim > len(lengths):
        values = values[..., -1]
    values = values.reshape(values.shape + (1,) * (len(lengths) - values.ndim))
    return np.broadcast_to(values, lengths)


def growth_of_sums(model: Model, levels: Levels) -> list[np.ndarray]:
    """Return, for each residual sum, by how much the log of the stream's mean square grows."""
    flow = model.flow
    return [
        size(flow, levels.forward, r.total) - size(flow, levels.forward, r.skip)
        for r in flow.residuals
    ]


def gains(model: Model) -> Callable[[Levels, Group], np.ndarray]:
    """Return a function of levels and a group: by how much each product changes the log size.

    The size is compared with that of the products before it; it is NaN if there are none.
    """
    flow = model.flow
    sources = functools.cache(lambda index: _products_and_carries(flow, index))

    def before(forward: Logs, index: int, entered: tuple[int, ...]) -> np.ndarray:
        lengths, parts = flow.nodes[index].lengths, []
        for i in sources(index):
            if i in flow.products:
                parts.append(fit(forward[i], lengths))
            # A carry that only passes through a scan leads back to itself.
            elif i not in entered:
                first, after = (before(forward, k, (*entered, i)) for k in flow.nodes[i].inputs)
                parts.append(fit(_carried(flow.nodes[i].lengths, first, after), lengths))
        known = np.array(parts).reshape(len(parts), *lengths)
        count = np.isfinite(known).sum(axis=0)
        total = np.where(np.isfinite(known), known, 0).sum(axis=0)
        return np.where(count > 0, total / np.maximum(count, 1), np.nan)

    def gain(levels: Levels, group: Group) -> np.ndarray:
        values = []
        for p in group.products:
            size_before = before(levels.forward, flow.products[p].signal, ())
            difference = levels.forward[p] - fit(size_before, flow.nodes[p].lengths)
            values.append(np.ravel(difference))
        result = np.concatenate(values)
        return np.where(np.isfinite(result), result, np.nan)

    return gain


def _products_and_carries(flow: Flow, index: int) -> list[int]:
    """Return the nearest products, and carries of scans, that a node depends on."""
    results, seen, front = [], set(), [index]
    while front:
        i = front.pop()
        if i in seen:
            continue
        seen.add(i)
        if i in flow.products or is_carry(flow, i):
            results.append(i)
        else:
            front += flow.nodes[i].inputs
    return results


def slope(logs: Logs, group: Group) -> float:
    """Return the slope of the log of the root mean square along the blocks of a group."""
    parts = [logs[p] for p in group.products]
    values = np.concatenate([v.reshape(-1, v.shape[-1]).mean(0) if v.ndim else [v] for v in parts])
    # A product that the loss does not depend on has no gradient.
    if not np.all(np.isfinite(values)):
        return float("nan")
    return float(np.polyfit(np.arange(len(values)), values, 1)[0] / 2)
