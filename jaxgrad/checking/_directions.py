"""Directions in the space of all coordinates, and how the function changes along them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxgrad.checking._prepare import Problem

SIGNS = np.array([-1, 1], np.float32)
# Bounds on the memory of directions as vectors, and of perturbed copies of the arguments.
CHUNK_BYTES = 2**20
ROWS_BYTES = 2**22


class Direction(NamedTuple):
    """A direction within one leaf; a single value is a single coordinate."""

    leaf: int  # index of the leaf
    start: int  # the first coordinate
    values: np.ndarray  # the values from there on


def unit_directions(leaf: int, coordinates: Sequence[int]) -> list[Direction]:
    """Return the unit vectors of some coordinates of a leaf."""
    return [Direction(leaf, i, np.ones(1, np.float32)) for i in coordinates]


def leaf_indices(directions: Sequence[Direction]) -> np.ndarray:
    """Return the index of the leaf of each direction, `[P]`."""
    return np.array([direction.leaf for direction in directions])


def evaluate(problem: Problem, kind: str, directions: Sequence[Direction], steps: np.ndarray):
    """Return the weighted "changes" of the outputs for steps along each direction, `[P, K]`.

    With "tangents" they are derivatives by forward mode, times the step.
    """
    size, results = len(problem.point), []
    computation = problem.numeric if kind == "changes" else problem.checked
    chunk = int(np.clip(CHUNK_BYTES // (4 * size), 8, 1024))
    # Copies that do not fit into the cache take longer than one evaluation after the other.
    memory = max(8 * size, computation.programs.memory)
    together = int(np.clip(ROWS_BYTES // memory, 1, 64)) if problem.batched else 1
    point = (computation.moved, computation.fixed)
    base = computation.programs.outputs(*point) if kind == "changes" else []
    for start in range(0, len(directions), chunk):
        part, moves = directions[start : start + chunk], steps[start : start + chunk]
        # All chunks have one shape, so that one program serves them.
        dense = np.zeros((chunk, size), np.result_type(*(d.values.dtype for d in part)))
        for row, (_, first, values) in zip(dense, part, strict=False):
            row[first : first + len(values)] = values
        rows = np.concatenate([[0], np.repeat(np.arange(len(part)), moves.shape[1])])
        inputs = (*point, problem.cotangents, base, dense, rows)
        program = getattr(computation.programs, kind)
        out = program(*inputs, np.concatenate([[0.0], moves.ravel()]), together)
        # Two programs may round differently, so the change for a step of zero is not quite zero.
        still = out[0] if kind == "changes" else 0.0
        results.append((out[1:] - still).reshape(moves.shape))
    return np.concatenate(results)
