"""What every experiment's command line shares: options, data, progress, errors, output files."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import tyro
from tqdm import tqdm

from jaxgrad.training import normalization

Config = TypeVar("Config")
DATA = ("digits", "wine", "breast_cancer", "gaussian")


def main(config_type: type[Config], run: Callable[[Config], None]) -> None:
    """Parse the command line into `config_type` and run; bad input ends in one line."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config = tyro.cli(config_type, description=run.__doc__)
    except SystemExit as stop:
        sys.exit(_one_line(printed.getvalue()) if stop.code else 0)
    try:
        run(config)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("JAXGRAD_TRACEBACK"):
            raise
        message = " ".join(str(error).split())
        sys.exit(f"error: {message}")
    except KeyboardInterrupt:
        sys.exit("stopped; run the same command again to go on from the last finished chunk")


def _one_line(box: str) -> str:
    """The message of the framed text that tyro prints, without frame, title and help."""
    lines = [line.strip("│ ") for line in box.splitlines()]
    message = itertools.takewhile(lambda line: not line.startswith(("─", "╰")), lines[1:])
    return f"error: {' '.join(message)}; see --help"


def use_all_cores() -> None:
    """Make each CPU core a JAX device, before JAX starts; on other backends it changes nothing."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def inputs(data: str, examples: int, seed: int) -> np.ndarray:
    """Standardized inputs, `[examples, features]`, float32.

    Args:
      data: a name of `DATA`, all but `gaussian` shipped with scikit-learn, or the path of a `.npy`
        or `.csv` file of shape [examples, features].
      examples: how many rows to draw, without repetition.
      seed: of the draw.

    Raises:
      ValueError, OSError: if there is no such data, it is not finite, or there are too few rows.
    """
    if isinstance(examples, bool) or examples < 1:
        raise ValueError(f"examples must be at least 1, got {examples}; pass a larger number")
    generator = np.random.default_rng(seed)
    if data == "gaussian":
        return generator.standard_normal((examples, 64), np.float32)
    table = _table(data)
    if examples > len(table):
        raise ValueError(
            f"examples must be at most the {len(table)} rows of {data!r}, got {examples}; "
            "pass a smaller number"
        )
    # In float64, so that a feature far from zero keeps its spread.
    with jax.enable_x64(True):
        standardized = normalization.apply(normalization.fit(table), table)
        rows = np.asarray(standardized, np.float32)
    return rows[generator.choice(len(rows), examples, replace=False)]


def _table(data: str) -> np.ndarray:
    if data in DATA:
        from sklearn import datasets

        return getattr(datasets, f"load_{data}")().data.astype(np.float64)
    path = Path(data)
    if path.suffix not in (".npy", ".csv"):
        raise ValueError(
            f"data must be one of {', '.join(DATA)}, or a .npy or .csv file; got {data!r}"
        )
    if not path.is_file():
        raise ValueError(f"data must be a file that exists, got {data!r}; check the path")
    try:
        if path.suffix == ".npy":
            table = np.load(path, allow_pickle=False)
        else:
            table = np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"data must hold a table of numbers, {data!r} does not: {error}") from None
    if table.ndim != 2 or not np.issubdtype(table.dtype, np.number):
        raise ValueError(
            f"data must have shape [examples, features] and numbers in it, {data!r} has shape "
            f"{table.shape} of {table.dtype}; reshape or convert it"
        )
    if not np.isfinite(table).all():
        raise ValueError(
            f"data must be finite, {data!r} has {(~np.isfinite(table)).sum()} NaN or infinite "
            "values; remove or impute them"
        )
    return table.astype(np.float64)


def writable(name: str, path: Path) -> Path:
    """Make the folder of `path` and show that a file can be written there, or raise."""
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"{name} must lie in a folder that can be written, got {str(path)!r} "
            f"({error.strerror}); choose another"
        ) from None
    return path


class Bar:
    """A progress bar over cells, for the `progress` argument of `jaxgrad.sweeps.run`."""

    def __init__(self, description: str):
        self._bar = tqdm(desc=description, unit="network", disable=None, leave=False)

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` cells are finished."""
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        self._bar.refresh()
        if done == total:
            self._bar.close()


def described(config: Any) -> dict[str, Any]:
    """A config as plain values, for the attributes of a result."""
    plain = dataclasses.asdict(config)
    return {name: str(v) if isinstance(v, Path) else v for name, v in plain.items()}


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Text columns, headings first, right-aligned but for the first."""
    widths = [max(len(row[i]) for row in (headings, *rows)) for i in range(len(headings))]

    def line(row):
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        return "  ".join([row[0].ljust(widths[0]), *padded[1:]])

    return "\n".join([line(headings), line(tuple("-" * w for w in widths)), *map(line, rows)])
