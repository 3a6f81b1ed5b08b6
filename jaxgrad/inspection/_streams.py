"""How much residual branches add to their stream, from the sizes that an x-ray has measured."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxgrad.inspection._dataflow import Flow, Product, Residual, split_numbers
from jaxgrad.inspection._depth import LEAST_BLOCKS
from jaxgrad.inspection._graph import SAME_PARAMETER, Plan
from jaxgrad.inspection._levels import Logs, open_model, size
from jaxgrad.inspection._problem import Problem
from jaxgrad.inspection._sites import plan_sites

# A branch that is correlated with its stream may be larger than the sum of both.
LARGEST_SHARE = 0.999


class Stream(NamedTuple):
    """A residual stream of several blocks.

    Attributes:
      site: index of its last sum.
      parameter: path of the weights that end its largest branches; `#` stands for the number of a
        block.
      weights: indices of the sites of their products.
      branches: how many are added in each block.
      dilution: `[blocks]`, log of the factor by which the branches of a block make what was in the
        stream before them a smaller part of it.
      growth: log of the factor by which the stream grows from the first block to the last.
    """

    site: int
    parameter: str
    weights: tuple[int, ...]
    branches: int
    dilution: np.ndarray
    growth: float


def streams(sites: Sequence[Any], problem: Problem) -> list[Stream]:
    """Return the residual streams of a model in the order of computation."""
    flow, plan = open_model(problem).flow, plan_sites(problem.program, problem.call.labels)
    index = {key: i for i, key in enumerate(_keys(plan))}
    nodes = {i: index[n.key] for i, n in enumerate(flow.nodes) if n.equation and n.key in index}
    logs = {i: np.asarray(sites[k].forward.log_mean_square, np.float64) for i, k in nodes.items()}
    logs = _with_same_size(flow, logs, problem)
    groups: dict[tuple[Any, ...], list[Residual]] = {}
    for r in flow.residuals:
        if r.total in nodes and not _is_recurrent(flow, r):
            path = split_numbers(_weights(flow, r).parameter.path)[0]
            site = sites[nodes[r.total]]
            # Each sum in a scan is one by itself.
            name = r.total if site.scan else (flow.nodes[r.total].place, path)
            groups.setdefault((site.scan, site.shape, name), []).append(r)
    # A block may have several sums, such as after attention and after the layers beside it.
    blocks: dict[tuple[Any, ...], list[list[Residual]]] = {}
    for (scan, shape, _), group in groups.items():
        blocks.setdefault((scan, shape, len(group)), []).append(group)
    results = []
    for parts in blocks.values():
        dilution = [np.ravel([_dilution(flow, logs, r) for r in part]) for part in parts]
        # The branch that adds the most is the one to name.
        largest = parts[int(np.argmax([np.nan_to_num(d).mean() for d in dilution]))]
        sums = max(parts, key=lambda part: part[-1].total)
        totals = np.ravel([logs[r.total] for r in sums])
        if len(totals) >= LEAST_BLOCKS:
            weights = [_weights(flow, r) for r in largest]
            path = weights[-1].parameter.path
            # The numbers of unrolled blocks differ.
            path = path if len(sums) == 1 else split_numbers(path)[0]
            products = tuple(nodes[product.node] for product in weights)
            place = (nodes[sums[-1].total], path, products, len(parts))
            results.append(Stream(*place, np.sum(dilution, axis=0), (totals[-1] - totals[0]) / 2))
    return sorted(results, key=lambda stream: stream.site)


def _keys(plan: Plan, key: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
    """Yield the keys of the nodes that are measured, in the order of the sites."""
    for i, entry in enumerate(plan.entries):
        inner = (*key, i)
        if isinstance(entry, list):
            for k, branch in enumerate(entry):
                yield from _keys(branch, (*inner, k))
        elif isinstance(entry, Plan):
            yield from _keys(entry, inner)
        elif entry is not None:
            yield inner


def _weights(flow: Flow, residual: Residual) -> Product:
    """Return the product with the weights that end a branch."""
    return flow.products[(*sorted(residual.inside), *residual.last)[-1]]


def _is_recurrent(flow: Flow, residual: Residual) -> bool:
    """Whether all iterations share the weights of a branch, as in time, or scans are nested."""
    lengths = flow.nodes[residual.total].lengths
    parts = [flow.products[p].parameter.lengths for p in residual.inside]
    return len(lengths) > 1 or any(part is not None and len(part) < len(lengths) for part in parts)


def _dilution(flow: Flow, logs: Logs, residual: Residual) -> np.ndarray:
    """Return the log of the root mean square of a sum over that of the stream before."""
    total, branch = (size(flow, logs, i) for i in (residual.total, residual.branch))
    direct = total - size(flow, logs, residual.skip)
    # Where the stream is not measured, as after a normalization, the branch tells as much.
    with np.errstate(over="ignore"):
        share = np.minimum(np.exp(branch - total), LARGEST_SHARE)
    return np.where(np.isfinite(direct), direct, -np.log1p(-share)) / 2


def _with_same_size(flow: Flow, logs: Logs, problem: Problem) -> Logs:
    """Add the nodes whose size follows from that of another one."""
    logs = dict(logs)
    for i, node in enumerate(flow.nodes):
        signals = [k for k in node.inputs if k in logs]
        if i in logs or node.equation is None or len(signals) != 1:
            continue
        log, name = logs[signals[0]], node.primitive
        others = [flow.nodes[k].parameter for k in node.inputs if k not in logs]
        if name in SAME_PARAMETER and name not in ("slice", "dynamic_slice"):
            logs[i] = log
        elif name in ("mul", "div") and (number := _number(node.equation)):
            logs[i] = log + 2 * math.log(number) * (1 if name == "mul" else -1)
        elif name == "add" and others[0]:
            # A bias, which does not depend on the signal.
            bias = np.mean(np.square(np.asarray(problem.moved[others[0].leaf], np.float64)))
            logs[i] = np.logaddexp(log, math.log(bias) if bias > 0 else -np.inf)
    return logs


def _number(equation: Any) -> float:
    """Return the size of the number in the code by which a signal is multiplied, 0 if none."""
    values = [atom.val for atom in equation.invars if hasattr(atom, "val")]
    return abs(float(values[0])) if values and not np.ndim(values[0]) else 0.0
