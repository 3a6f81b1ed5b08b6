"""Compiled programs that compute many cells at once, over devices and within a memory limit."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgrad import _validate
from jaxgrad.sweeps._grid import (
    Block,
    Grid,
    blocks,
    cell_inputs,
    chunk_shape,
    fold_ids,
    sizes,
    static_values,
)

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def make_mesh(devices: Sequence[Any] | None) -> Mesh:
    """Return a mesh with the axis `cells`, of all local devices by default."""
    devices = jax.local_devices() if devices is None else devices
    if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise TypeError(f"devices must be JAX devices, got {devices!r}; see jax.local_devices()")
    _validate.distinct("devices", devices)
    return Mesh(np.array(devices), ("cells",))


def evaluate_cell(function, names, outputs, static, shared, ids, traced):
    """Call the user's function for one cell and check the structure of its result."""
    key, args = shared
    point = dict(static) | traced
    out = function(fold_ids(ids, key=key), {name: point[name] for name in names}, *args)
    arrays = isinstance(out, Mapping) and all(isinstance(v, _ARRAYS) for v in out.values())
    if not arrays or set(out) != set(outputs):
        raise TypeError(
            f"function must return a dict of arrays, exactly {', '.join(outputs)} as in variables; "
            f"got {out!r}"
        )
    return {name: jnp.asarray(out[name]) for name in outputs}


def output_shapes(cell, grid: Grid, variables, coords, shared) -> dict[str, Any]:
    """Return shape and dtype of each variable in one cell; they are the same for all programs."""
    dim_sizes = {name: len(labels) for name, labels in coords.items()}
    outputs: dict[str, Any] = {}
    # One block for each combination of values that are not traced.
    for block in blocks(grid, chunk_shape(grid, math.prod(sizes(grid)))):
        static = static_values(grid, block)
        inputs = cell_inputs(grid, [part.start for part in block])
        for name, out in jax.eval_shape(functools.partial(cell, static), shared, *inputs).items():
            dims, shape, dtype = variables[name].dims, out.shape, out.dtype
            # The first variable with a dimension decides its size, unless coords do.
            expected = tuple(map(dim_sizes.setdefault, dims, shape))
            if len(dims) != len(shape) or expected != shape:
                raise ValueError(
                    f"variables[{name!r}].dims {dims} must fit the result of function, got shape "
                    f"{shape} where other cells, variables or coords say {expected}; name each "
                    "dimension once and keep its size"
                )
            numeric = not jnp.issubdtype(dtype, jax.dtypes.extended) and dtype.kind in "biufc"
            if not numeric or outputs.setdefault(name, out).dtype != dtype:
                raise TypeError(
                    f"function must return one dtype of NumPy's for {name!r}, got {dtype} at "
                    f"{dict(static)}; convert it, for example to float32"
                )
    return outputs


def compile_cells(
    cell, grid: Grid, mesh: Mesh, shared, *, memory_limit: int, cells: int, vectorized: bool, static
) -> tuple[Callable[..., Any], int]:
    """Compile the program for one combination of static values.

    Returns:
      The program, and how many cells it computes at once: `cells` or, if they take more memory than
      `memory_limit` on a device, fewer.
    """
    one = functools.partial(cell, static)

    def mapped(shared, *inputs):
        if vectorized:
            return jax.vmap(one, in_axes=(None, 0, 0))(shared, *inputs)
        return jax.lax.map(lambda inputs: one(shared, *inputs), inputs)

    specs = (P(), P("cells"), P("cells"))
    # check_vma would reject a cell with a scan whose initial carry is a constant.
    spread = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
    share = -(-cells // mesh.size)
    while True:
        inputs = cell_inputs(grid, np.zeros((len(grid), share * mesh.size), int))
        program = jax.jit(spread).lower(shared, *inputs).compile()
        parts = ("temp_size_in_bytes", "output_size_in_bytes", "argument_size_in_bytes")
        used = sum(getattr(program.memory_analysis(), part, 0) for part in parts)
        if used <= memory_limit:
            return functools.partial(program, shared), share * mesh.size
        if share == 1:
            raise ValueError(
                f"memory_limit must be at least the {used} bytes that one cell takes, got "
                f"{memory_limit}; raise it or make the cell smaller"
            )
        # Memory is nearly proportional to the number of cells; halve at least.
        share = max(1, min(share // 2, share * memory_limit // used))


def compute_blocks(
    grid: Grid, pending: Sequence[Block], compiler: Callable[..., Any]
) -> Iterator[tuple[Block, dict[str, np.ndarray]]]:
    """Yield each pending block with its results, arrays of shape `[cells, ...]` by name.

    `compiler` is `compile_cells` as a function of `static` alone. Blocks with the same static
    values follow one another, so that each program is compiled once and then released.
    """
    groups: dict[Any, list[Block]] = {}
    for block in pending:
        groups.setdefault(static_values(grid, block), []).append(block)
    calls = itertools.chain(_started_calls(grid, groups, compiler), [None])
    batches = []
    # In pairs, the next batch is started before the results of the current one are awaited.
    for (block, is_last, results), _ in itertools.pairwise(calls):
        batches.append(jax.device_get(results))
        if is_last:
            cells = math.prod(part.stop - part.start for part in block)
            yield (
                block,
                {n: np.concatenate([batch[n] for batch in batches])[:cells] for n in batches[0]},
            )
            batches = []


def _started_calls(grid, groups, compiler):
    """Start one batch after the other; yield its block, whether it is the last, and its results."""
    for static, members in groups.items():
        program, batch = compiler(static=static)
        for block in members:
            cells = np.array(list(itertools.product(*(range(p.start, p.stop) for p in block))))
            for start in range(0, len(cells), batch):
                # The last batch is filled up with copies of the last cell.
                rows = np.minimum(np.arange(start, start + batch), len(cells) - 1)
                is_last = start + batch >= len(cells)
                yield block, is_last, program(*cell_inputs(grid, cells[rows].T))
