"""Reverse mode for the losses of many depths at once.

The cotangents of all depths go back together, as rows of one array. An entry of the depth axis
needs only the rows of its own and greater depths, so the axis is cut into segments, each with as
many rows as its first entry needs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Run(NamedTuple):
    """A part of the depth axis that one scan serves.

    Attributes:
      depth: number of entries.
      fresh: maps cotangents of the outputs of an entry, `[rows, ...]`, to rows: any pytree of
        arrays with a leading axis of the number of rows.
      pull: maps the rows at the outputs of an entry and the index of that entry in the run to the
        rows at its inputs and the logs of the squared norms of its two gradients, `[rows]` each.
    """

    depth: int
    fresh: Callable[[Array], Any]
    pull: Callable[[Any, Array], tuple[Any, tuple[Array, Array]]]


def reverse(
    runs: Sequence[Run],
    cotangents: Sequence[Array],
    depths: Int[np.ndarray, " D"],
    *,
    segments: int,
) -> tuple[Float[Array, "D depth"], Float[Array, "D depth"]]:
    """Take the cotangent of every depth back through all entries before it.

    Args:
      runs: the parts of the depth axis in order.
      cotangents: for each run those of the depths that end in it, `[number of these, ...]`.
      depths: the increasing depths that have a loss.
      segments: of each run, at most.

    Returns:
      The logs of both gradients for each depth and entry; NaN for entries after the depth.
    """
    stops = np.cumsum([run.depth for run in runs]).tolist()
    last, rows, records = int(depths[-1]), None, []
    for run, stop, ends in list(zip(runs, stops, cotangents, strict=True))[::-1]:
        start = stop - run.depth
        for low, high in _segments(depths, start, min(stop, last), segments):
            begin = int(np.searchsorted(depths, low + 1))
            rows = _with_more_rows(run, rows, ends, len(depths) - begin)
            rows, record = _go_back(run, rows, ends, depths, (low, high), start)
            # Rows of smaller depths than any in this segment are not there yet.
            margins = ((0, 0), (begin, 0))
            records.append(jax.tree.map(lambda a, margins=margins: jnp.pad(a, margins), record))

    def joined(*pieces):
        logs = jnp.pad(jnp.concatenate(pieces[::-1]), ((0, stops[-1] - last), (0, 0)))
        return jnp.where(np.arange(1, stops[-1] + 1) <= depths[:, None], logs.T, jnp.nan)

    return jax.tree.map(joined, *records)


def _go_back(run, rows, ends, depths, segment, start):
    """Scan from the last entry of a segment to its first."""
    entries = np.arange(*segment)
    # The row of the smallest depth that includes an entry, and whether its loss is at this entry.
    position = np.minimum(np.searchsorted(depths, entries + 1), len(depths) - 1)
    enters = depths[position] == entries + 1
    begin, first = (int(np.searchsorted(depths, entry + 1)) for entry in (segment[0], start))

    def step(rows, inputs):
        index, position, enters = inputs

        def entered(all_rows, row):
            before = jax.lax.dynamic_index_in_dim(all_rows, position - begin, keepdims=True)
            row = jnp.where(enters, row, before)
            return jax.lax.dynamic_update_slice_in_dim(all_rows, row, position - begin, 0)

        if len(ends):
            rows = jax.tree.map(entered, rows, run.fresh(ends[position - first][None]))
        return run.pull(rows, index)

    inputs = (entries - start, position, enters)
    if len(entries) > 1:
        return jax.lax.scan(step, rows, inputs, reverse=True)
    # A single entry may have inputs of another shape than its outputs.
    rows, record = step(rows, jax.tree.map(lambda a: jnp.asarray(a[0]), inputs))
    return rows, jax.tree.map(lambda a: a[None], record)


def _with_more_rows(run, rows, ends, count):
    """Add rows of zeros before the others, up to a number of rows."""
    missing = count if rows is None else count - len(jax.tree.leaves(rows)[0])
    zeros = run.fresh(jnp.zeros((missing, *ends.shape[1:]), ends.dtype))
    return zeros if rows is None else jax.tree.map(lambda *a: jnp.concatenate(a), zeros, rows)


def _segments(depths, start, stop, segments):
    """Return ranges of entries, last first, that differ in how many rows they need."""
    if stop <= start:
        return []
    count = min(segments, stop - start) + 1
    edges = np.unique(np.linspace(start, stop, count).round().astype(int))
    needed = np.searchsorted(depths, edges[:-1] + 1)
    edges = np.append(edges[:-1][np.append(True, np.diff(needed) > 0)], stop)
    return [(int(low), int(high)) for low, high in itertools.pairwise(edges)][::-1]
