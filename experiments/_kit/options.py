"""Command-line options with bounds, and the command that parses, checks and runs."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import tyro

OptionsType = TypeVar("OptionsType", bound="Options")
FIGURE_FORMATS = (".png", ".pdf", ".svg")


@dataclass(frozen=True)
class Bounds:
    """The values that an option accepts; every number must also be finite.

    Attributes:
      minimum, maximum: limits that are accepted themselves.
      above, below: limits that are not.
      choices: the only values that are accepted.
      count: the smallest number of values of a tuple, which must all differ.
      ascending: whether the values of a tuple must be in ascending order.
    """

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Collection[Any] | None = None
    count: int = 1
    ascending: bool = False

    def __str__(self) -> str:
        """The range in words, such as `above 0 and at most 1`."""
        if self.choices is not None:
            return f"one of {', '.join(map(str, self.choices))}"
        limits = {
            "above": self.above,
            "at least": self.minimum,
            "below": self.below,
            "at most": self.maximum,
        }
        parts = [f"{words} {limit:g}" for words, limit in limits.items() if limit is not None]
        return " and ".join(parts) or "finite"

    def accept(self, value: Any) -> bool:
        """Whether one value, not a tuple of values, is within the bounds."""
        if self.choices is not None:
            return value in self.choices
        # Text, paths and switches have no limits.
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def option(default: Any, help: str, **bounds: Any) -> Any:
    """A field of an options dataclass.

    Args:
      default: the default value; its type is that of the field's annotation.
      help: one or two sentences for `--help`.
      **bounds: fields of `Bounds`. They hold for each value of a tuple.
    """
    return dataclasses.field(default=default, metadata={"help": help, "bounds": Bounds(**bounds)})


@dataclass(frozen=True)
class Options:
    """What every experiment can be told; subclasses add their own options.

    `output` is the path of a figure if its default has a suffix, and otherwise the common beginning
    of the paths that an experiment writes.
    """

    output: Path = option(Path("results/experiment.png"), "Where to write the figure.")

    def check(self) -> None:
        """Raise ValueError if options do not fit together; each by itself is checked before."""


@dataclass(frozen=True)
class SeededOptions(Options):
    """Options of an experiment that is repeated over seeds."""

    seeds: int = option(8, "Number of repetitions with different seeds.", minimum=2)
    first_seed: int = option(0, "The seeds are first_seed, first_seed + 1, ...", minimum=0)

    @property
    def seed_values(self) -> tuple[int, ...]:
        """All seeds."""
        return tuple(range(self.first_seed, self.first_seed + self.seeds))


def check(options: Options) -> None:
    """Check every option by its bounds, then all together, then the output path.

    Raises:
      ValueError: naming the option, its value and the values that are accepted.
    """
    for field in dataclasses.fields(options):
        bounds = field.metadata.get("bounds")
        if bounds is not None:
            _check_value(field.name, getattr(options, field.name), bounds)
    options.check()
    # The folder is made last, so that a wrong option leaves nothing behind.
    default = next(f.default for f in dataclasses.fields(options) if f.name == "output")
    if Path(str(default)).suffix and options.output.suffix not in FIGURE_FORMATS:
        raise ValueError(
            f"output must end in one of {', '.join(FIGURE_FORMATS)}, got {str(options.output)!r}"
        )
    check_writable("output", options.output)


def _check_value(name: str, value: Any, bounds: Bounds) -> None:
    if not isinstance(value, tuple):
        if not bounds.accept(value):
            raise ValueError(f"{name} must be {bounds}, got {value}")
        return
    problem = None
    if len(value) < bounds.count:
        problem = f"have at least {bounds.count} value{'s' * (bounds.count > 1)}"
    elif len(set(value)) < len(value):
        problem = "have no value twice"
    elif not all(map(bounds.accept, value)):
        problem = f"have values {bounds}"
    elif bounds.ascending and list(value) != sorted(value):
        problem = "have its values in ascending order"
    if problem is not None:
        raise ValueError(f"{name} must {problem}, got {' '.join(map(str, value)) or 'none'}")


def check_range(options: Any, name: str) -> None:
    """Raise ValueError unless the option `<name>_min` is below `<name>_max`."""
    low, high = (getattr(options, f"{name}_{end}") for end in ("min", "max"))
    if low >= high:
        raise ValueError(
            f"{name}_min and {name}_max must be in this order, got {low:g} and {high:g}"
        )


def check_writable(name: str, path: Path) -> None:
    """Make the folder of `path`, and raise ValueError unless a file can be written there."""
    try:
        if path.is_dir() and path.suffix in FIGURE_FORMATS:
            raise IsADirectoryError(0, "it is a folder")
        # Permissions alone do not tell: a file system may be full or read-only.
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"{name} must be in a folder that can be written, got {str(path)!r} ({error.strerror})"
        ) from None


def as_plain(options: Options) -> dict[str, Any]:
    """All options as plain values, for the attributes of a data set and for JSON."""
    plain = dataclasses.asdict(options)
    return {name: str(v) if isinstance(v, Path) else v for name, v in plain.items()}


def use_all_cores() -> None:
    """Make each CPU core a JAX device; call it before JAX starts, in `if __name__ == ...`."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def command(
    options_type: type[OptionsType], run: Callable[[OptionsType], None], *, resumable: bool = False
) -> None:
    """Parse the command line, check all options, run, and print the time that it took.

    Errors end in one line and an exit status that is not 0. Set `JAXGRAD_TRACEBACK` in the
    environment to see where an error comes from.

    Args:
      options_type: a subclass of `Options`.
      run: the experiment; its docstring is the description in `--help`.
      resumable: whether the experiment stores finished parts and continues from them.
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
    try:
        check(options)
        run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        if os.environ.get("JAXGRAD_TRACEBACK"):
            raise
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        # Only a store makes the promise true that work is not lost.
        if resumable:
            sys.exit("interrupted; the same command continues after the last part that was stored")
        sys.exit("interrupted; nothing was stored, the same command starts again")
    print(f"Time: {time.perf_counter() - start:.1f} s")


def _first_message(box: str) -> str:
    """The message inside the framed text that tyro prints, without frame, title and help."""
    # The first line is the title; a rule separates the message from a hint.
    lines = [line.strip("│ ") for line in box.splitlines()]
    message = itertools.takewhile(lambda line: not line.startswith(("─", "╰")), lines[1:])
    return f"error: {' '.join(message)}; see --help"
