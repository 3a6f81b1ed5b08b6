"""Command-line options with bounds, and the command that parses, checks and runs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import operator
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import tyro

from experiments._kit import figures
from experiments._kit.interruption import interruption

OptionsType = TypeVar("OptionsType", bound="Options")
STEM_SUFFIXES = (".png", ".json", ".zarr", ".html")
EXAMPLE = "results/figure.png"
LARGEST_INTEGER, LARGEST_FLOAT = 2**31 - 1, 1e30

# Limits of a number by keyword of `option`: in words, and the comparison that they stand for.
LIMITS = {
    "above": ("above", operator.gt),
    "minimum": ("at least", operator.ge),
    "below": ("below", operator.lt),
    "maximum": ("at most", operator.le),
}


def option(default: Any, help: str, **bounds: Any) -> Any:
    """A field of an options dataclass; numbers must be finite and within the bounds.

    Args:
      default: the default value; its type is that of the field's annotation.
      help: one or two sentences for `--help`.
      **bounds: limits that are accepted themselves (`minimum`, `maximum`) or not (`above`,
        `below`), or the only `choices`; they hold for each value of a tuple. A tuple has at least
        `count` values, 1 by default, which all differ and may have to be `ascending`.
    """
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds})


@dataclass(frozen=True)
class Options:
    """What every experiment can be told; subclasses add their own options.

    An `output` whose default has no suffix is the common beginning of several paths.
    """

    output: Path = option(Path("results/experiment"), "Where to write: OUTPUT.json.")
    verbose: bool = option(False, "Print all tables, not only those that matter most.")

    def check(self) -> None:
        """Raise ValueError if options do not fit together; each by itself is checked before."""

    @property
    def stem(self) -> Path:
        """The common beginning of all paths: `output` without the suffix of a figure."""
        return _stem(self.output)


@dataclass(frozen=True)
class FigureOptions(Options):
    """Options of an experiment that draws."""

    output: Path = option(Path("results/experiment.png"), "Where to write the figure.")
    theme: Literal["light", "dark", "both"] = option(
        "light", "Background of figures; both also writes NAME_dark."
    )


@dataclass(frozen=True)
class SeededOptions(FigureOptions):
    """Options of an experiment that is repeated over seeds."""

    seeds: int = option(8, "Number of repetitions with different seeds.", minimum=2)
    first_seed: int = option(0, "The seeds are first_seed, first_seed + 1, ...", minimum=0)

    @property
    def seed_values(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))


def _stem(path: Path) -> Path:
    return path.with_suffix("") if path.suffix in figures.FORMATS else path


def check(options: Options) -> None:
    """Raise ValueError unless each option, all together, and the output path are accepted."""
    fields = {field.name: field for field in dataclasses.fields(options)}
    for name, field in fields.items():
        _check_value(name, getattr(options, name), **field.metadata["bounds"])
    default: Any = fields["output"].default
    # Whatever takes long to find out comes after this.
    _check_path("output", options.output, stem=not default.suffix)
    options.check()
    # The folder is made last, so that a wrong option leaves nothing behind.
    check_writable("output", options.output)


def _check_path(name: str, path: Path, *, stem: bool) -> None:
    """Raise ValueError unless a figure, or several files that begin with it, may have this path."""
    got = f"got {str(path)!r}"
    if not path.name or path.name == "..":
        raise ValueError(f"{name} must be the path of a file, {got}; pass for example {EXAMPLE}")
    if not stem and path.suffix not in figures.FORMATS:
        raise ValueError(f"{name} must end in one of {', '.join(figures.FORMATS)}, {got}")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not os.access(parent, os.W_OK) or not parent.is_dir():
        raise ValueError(f"{name} must be in a folder that can be written, {got}")
    # A folder in the place of a file, and a file in that of a folder.
    for suffix in STEM_SUFFIXES if stem else ("",):
        file = _stem(path).with_name(_stem(path).name + suffix) if suffix else path
        if file.exists() and file.is_dir() != (suffix == ".zarr"):
            kind = "file" if suffix == ".zarr" else "folder"
            got = f"but {str(file)!r} is a {kind}; choose another path"
            raise ValueError(f"{name} must be in a folder that can be written, {got}")


def _check_value(
    name: str,
    value: Any,
    *,
    choices: Collection[Any] = (),
    count: int = 1,
    ascending: bool = False,
    **limits: float,
) -> None:
    """Raise ValueError unless a value, or each value of a tuple, is within the bounds."""
    parts = [f"{words} {limits[k]:g}" for k, (words, _) in LIMITS.items() if k in limits]
    words = f"one of {', '.join(map(str, choices))}" if choices else " and ".join(parts) or "finite"

    def accept(value):
        # Text, paths and switches have no limits.
        if choices or isinstance(value, bool) or not isinstance(value, (int, float)):
            return not choices or value in choices
        if not all(LIMITS[k][1](value, limits[k]) for k in limits):
            return False
        return isinstance(value, int) or math.isfinite(value)

    values = value if isinstance(value, tuple) else (value,)
    problem = None
    if any(isinstance(part, (str, Path)) and "\0" in str(part) for part in values):
        raise ValueError(f"{name} must not contain the character NUL, got {value!r}; leave it out")
    if len(values) < count:
        problem = f"have at least {count} value{'s' * (count > 1)}"
    elif len(set(values)) < len(values):
        problem = "have no value twice"
    elif not all(map(accept, values)):
        problem = f"{'have values' if isinstance(value, tuple) else 'be'} {words}"
    elif "maximum" not in limits and any(map(_is_huge, values)):
        problem = f"be at most {LARGEST_INTEGER}, or {LARGEST_FLOAT:g} if it is no whole number"
    elif ascending and list(values) != sorted(values):
        problem = "have its values in ascending order"
    if problem is not None:
        raise ValueError(f"{name} must {problem}, got {' '.join(map(str, values)) or 'none'}")


def _is_huge(value: Any) -> bool:
    """Whether a number has no place in JAX's types of 32 bits."""
    if isinstance(value, int):
        return abs(value) > LARGEST_INTEGER
    return isinstance(value, float) and abs(value) > LARGEST_FLOAT


def check_range(options: Any, name: str) -> None:
    """Raise ValueError unless the option `<name>_min` is below `<name>_max`."""
    low, high = (getattr(options, f"{name}_{end}") for end in ("min", "max"))
    if low >= high:
        names = f"{name}_min and {name}_max"
        raise ValueError(f"{names} must be in this order, got {low:g} and {high:g}")


def check_writable(name: str, path: Path) -> None:
    """Make the folder of `path`, and raise ValueError unless a file can be written there."""
    try:
        if path.is_dir() and path.suffix in figures.FORMATS:
            raise IsADirectoryError(0, "it is a folder")
        # Permissions alone do not tell: a file system may be full or read-only.
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{name} must be in a folder that can be written, got {str(path)!r} ({error.strerror})"
        ) from None


APPEARANCE = frozenset({"output", "theme", "verbose"})
"""Options on which no measurement depends."""


def as_plain(options: Options) -> dict[str, Any]:
    """All options as plain values, for the attributes of a data set and for JSON."""
    plain = dataclasses.asdict(options)
    return {name: str(v) if isinstance(v, Path) else v for name, v in plain.items()}


def use_all_cores() -> None:
    """Make each CPU core a JAX device; call it before JAX starts, in `if __name__ == ...`."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def use_compile_cache() -> None:
    """Let JAX store compiled programs, which the next start of a command then reads.

    A folder that the environment names by `JAX_COMPILATION_CACHE_DIR` is used as it is.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is not None:
        return
    # Programs are made for the processor of this machine, and several may share a home.
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(caches / "jaxgrad" / platform.node()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def command(
    options_type: type[OptionsType], run: Callable[[OptionsType], None], *, resumable: bool = False
) -> None:
    """Parse the command line, check all options, run, and print the time that it took.

    Errors end in one line and an exit status that is not 0. Set `JAXGRAD_TRACEBACK` in the
    environment to see where an error comes from. The docstring of `run` is the description in
    `--help`; `resumable` says that finished parts are stored and not computed again.
    """
    start, messages = time.perf_counter(), io.StringIO()
    spec = sys.modules["__main__"].__spec__
    name = None if spec is None else f"python -m {spec.name.removesuffix('.__main__')}"
    try:
        # tyro prints a framed text of several lines.
        with contextlib.redirect_stderr(messages):
            options = tyro.cli(options_type, prog=name, description=run.__doc__)
    except SystemExit as stop:
        sys.exit(_first_message(messages.getvalue()) if stop.code else 0)
    # Only a store makes the promise true that work is not lost.
    stored = "the same command continues after the last part that was stored"
    lost = "nothing was stored, the same command starts again"
    try:
        with interruption(f"interrupted; {stored if resumable else lost}"):
            check(options)
            use_compile_cache()
            run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("JAXGRAD_TRACEBACK"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(f"Time: {time.perf_counter() - start:.1f} s")


def _first_message(box: str) -> str:
    """The message inside the framed text that tyro prints, without frame, title and help."""
    # The first line is the title; a rule separates the message from a hint.
    lines = [line.strip("│ ") for line in box.splitlines()]
    message = itertools.takewhile(lambda line: not line.startswith(("─", "╰")), lines[1:])
    return f"error: {' '.join(message)}; see --help"
