"""The compiled programs of a sweep, and the blocks that they compute batch by batch."""

import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgrad.sweeps import _grid
from jaxgrad.sweeps._grid import Chunks, Grid

Static = tuple[tuple[str, Any], ...]


class Program(NamedTuple):
    """A compiled function of the ids and traced values of a number of cells."""

    call: Callable[..., Any]
    cells: int  # a multiple of the number of devices
    memory_bytes: int  # on each device


class Compiler(NamedTuple):
    """How the programs of a sweep are made."""

    cell: Callable[..., Any]  # (static, shared, ids, traced) -> {name: array}
    grid: Grid
    mesh: Mesh
    shared: Any  # arguments of all cells
    memory_limit: int
    vectorized: bool


class _Batch(NamedTuple):
    number: int  # of the block
    positions: np.ndarray  # of its cells, `[axis, cell]`
    is_last: bool
    results: Any  # arrays by name that may still be computed, or the error


def compile_cells(compiler: Compiler, static: Static, cells: int) -> Program:
    """Return the program for some static values, for at most `cells` cells at once."""
    one, mesh = functools.partial(compiler.cell, static), compiler.mesh

    def mapped(shared, *inputs):
        if compiler.vectorized:
            return jax.vmap(one, in_axes=(None, 0, 0))(shared, *inputs)
        return jax.lax.map(lambda inputs: one(shared, *inputs), inputs)

    specs = (P(), P("cells"), P("cells"))
    # check_vma would reject a cell with a scan whose initial carry is a constant.
    spread = jax.shard_map(mapped, mesh=mesh, in_specs=specs, out_specs=specs[1], check_vma=False)
    share, limit = -(-cells // mesh.size), compiler.memory_limit
    while True:
        positions = np.zeros((len(compiler.grid), share * mesh.size), int)
        inputs = _grid.cell_inputs(compiler.grid, positions)
        program = jax.jit(spread).lower(compiler.shared, *inputs).compile()
        parts = ("temp_size_in_bytes", "output_size_in_bytes", "argument_size_in_bytes")
        used = sum(getattr(program.memory_analysis(), part, 0) for part in parts)
        if used <= limit:
            call = functools.partial(program, compiler.shared)
            return Program(call, share * mesh.size, used)
        if share == 1:
            rule = f"be at least the {used} bytes that one cell takes"
            remedy = "raise it or make the cell smaller"
            raise ValueError(f"memory_limit must {rule}, got {limit}; {remedy}")
        # Memory is nearly proportional to the number of cells; halve it at least.
        share = max(1, min(share // 2, share * limit // used))


def compute_blocks(
    compiler: Compiler,
    chunks: Chunks,
    numbers: Iterable[int | None],
    compiled: Callable[[int, float], Any] = lambda memory_bytes, seconds: None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Yield the number of each block with its results by name, arrays `[cells, ...]`.

    Args:
      compiler: How programs are made; one is held at a time.
      chunks: The division of the grid into blocks.
      numbers: Blocks in the order in which they are computed. None means that the next one has to
        be waited for, so that what is being computed is finished first.
      compiled: Called with the bytes of each new program and the seconds that compiling it took.
    """
    # The program in use, by static values, and results of the block that is being computed.
    programs: dict[Static, Program] = {}
    results: list[dict[str, np.ndarray]] = []
    calls = itertools.chain(_start_batches(compiler, chunks, numbers, programs, compiled), [None])
    # In pairs, the next batch is started before the results of the current one are awaited.
    for batch, _ in itertools.pairwise(calls):
        if batch is None:
            continue
        results.append(_finish(compiler, chunks, batch, programs))
        if batch.is_last:
            cells = math.prod(_grid.block_shape(chunks.block(batch.number)))
            yield batch.number, _join(results, cells)
            results = []


def _start_batches(compiler, chunks, numbers, programs, compiled) -> Iterator[_Batch | None]:
    """Start one batch after the other."""
    for number in numbers:
        if number is None:
            yield None
            continue
        block = chunks.block(number)
        static = _grid.static_values(compiler.grid, block)
        if static not in programs:
            programs.clear()
            begin = time.perf_counter()
            programs[static] = compile_cells(compiler, static, math.prod(chunks.chunk))
            compiled(programs[static].memory_bytes, time.perf_counter() - begin)
        start, cells = 0, math.prod(_grid.block_shape(block))
        while start < cells:
            program = programs[static]
            stop = start + program.cells
            # The last batch is filled up with copies of the last cell.
            positions = _grid.block_positions(block, start, stop)
            yield _start(compiler, program, _Batch(number, positions, stop >= cells, None))
            start = stop


def _finish(compiler, chunks, batch: _Batch, programs) -> dict[str, np.ndarray]:
    """Return the results of a batch, by smaller ones if the memory of a device is exhausted."""
    try:
        return _fetch(batch)
    except jax.errors.JaxRuntimeError as error:
        _raise_unless_halved(error, batch.positions.shape[1], compiler.mesh.size)
    static = _grid.static_values(compiler.grid, chunks.block(batch.number))
    size = cells = batch.positions.shape[1]
    program, start, parts = None, 0, []
    while start < size:
        if program is None:
            # A multiple of the number of devices.
            smaller = max(1, cells // 2 // compiler.mesh.size) * compiler.mesh.size
            text = f"memory is exhausted by {cells} cells at a time; continuing with {smaller}"
            warnings.warn(f"{text}; a smaller memory_limit avoids this", stacklevel=2)
            program = compile_cells(compiler, static, smaller)
            cells = program.cells
        index = np.minimum(np.arange(start, start + cells), size - 1)
        try:
            part = batch._replace(positions=batch.positions[:, index])
            parts.append(_fetch(_start(compiler, program, part)))
            start += cells
        except jax.errors.JaxRuntimeError as error:
            _raise_unless_halved(error, cells, compiler.mesh.size)
            program = None
    # Later batches are small from the start, unless another program is in use.
    if program is not None and static in programs:
        programs[static] = program
    return _join(parts, size)


def _raise_unless_halved(error: Exception, cells: int, devices: int) -> None:
    if "RESOURCE_EXHAUSTED" not in str(error) or cells <= devices:
        raise error


def _fetch(batch: _Batch) -> dict[str, np.ndarray]:
    if isinstance(batch.results, Exception):
        raise batch.results
    return jax.device_get(batch.results)


def _start(compiler: Compiler, program: Program, batch: _Batch) -> _Batch:
    try:
        results = program.call(*_grid.cell_inputs(compiler.grid, batch.positions))
    except jax.errors.JaxRuntimeError as error:
        results = error
    return batch._replace(results=results)


def _join(parts: list[dict[str, np.ndarray]], cells: int) -> dict[str, np.ndarray]:
    if len(parts) == 1:
        return {name: values[:cells] for name, values in parts[0].items()}
    return {name: np.concatenate([part[name] for part in parts])[:cells] for name in parts[0]}
