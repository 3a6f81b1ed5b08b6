"""Compiled programs that compute many cells at once, over devices and within a memory limit."""

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

from jaxgrad.sweeps import _grid
from jaxgrad.sweeps._grid import Block, Grid

_ARRAYS = (jax.Array, np.ndarray, np.generic, bool, int, float, complex)


def evaluate_cell(function, names, outputs, static, shared, ids, traced):
    """Call the user's function for one cell and check the structure of its result."""
    key, args = shared
    point = dict(static) | traced
    out = function(_grid.fold_ids(ids, key=key), {name: point[name] for name in names}, *args)
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
    # Chunks of any number of cells: one for each combination of values that are not traced.
    for block in _grid.blocks(grid, _grid.chunk_shape(grid, math.prod(_grid.sizes(grid)))):
        static = _grid.static_values(grid, block)
        inputs = _grid.cell_inputs(grid, [part.start for part in block])
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


def compile_cells(cell, grid, mesh: Mesh, shared, memory_limit, cells, vectorized, static):
    """Return the program for some static values, and how many cells it computes at once.

    These are `cells`, or fewer if `cells` take more memory than `memory_limit` on a device.
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
        inputs = _grid.cell_inputs(grid, np.zeros((len(grid), share * mesh.size), int))
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
        # Memory is nearly proportional to the number of cells; halve it at least.
        share = max(1, min(share // 2, share * memory_limit // used))


def compute_blocks(
    grid: Grid, pending: Sequence[Block], compiler: Callable[[Any], Any]
) -> Iterator[tuple[Block, dict[str, np.ndarray]]]:
    """Yield each block with its results by name, arrays `[cells, ...]`."""
    # All blocks of one program follow one another, so that only one program is held in memory.
    groups: dict[Any, list[Block]] = {}
    for block in pending:
        groups.setdefault(_grid.static_values(grid, block), []).append(block)
    calls = itertools.chain(_started_calls(grid, groups, compiler), [((), False, {})])
    batches = []
    # In pairs, the next batch is started before the results of the current one are awaited.
    for (block, is_last, results), _ in itertools.pairwise(calls):
        batches.append(jax.device_get(results))
        if is_last:
            cells = math.prod(part.stop - part.start for part in block)
            joined = {n: np.concatenate([batch[n] for batch in batches])[:cells] for n in results}
            yield block, joined
            batches = []


def _started_calls(grid, groups, compiler):
    """Start one batch after the other; yield its block, whether it is the last, and its results."""
    for static, members in groups.items():
        program, batch = compiler(static)
        for block in members:
            cells = np.array(list(itertools.product(*(range(p.start, p.stop) for p in block))))
            for start in range(0, len(cells), batch):
                # The last batch is filled up with copies of the last cell.
                rows = np.minimum(np.arange(start, start + batch), len(cells) - 1)
                results = program(*_grid.cell_inputs(grid, cells[rows].T))
                yield block, start + batch >= len(cells), results
