"""What a sweep is going to take."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple


class Forecast(NamedTuple):
    """What a sweep is going to take, for the cells that are not computed yet."""

    cells: int
    chunks: int
    programs: int
    """Number of programs that are compiled, one for each combination of values not traced."""
    disk_bytes: int
    """Bytes of the values, before compression."""
    memory_bytes: int
    """Bytes on each device of the first program, as its compiler counts them."""
    seconds: float
    """Seconds from now on, without other processes on the store; NaN before the first chunk."""

    def __str__(self) -> str:
        """Return the forecast in a line of words."""
        amounts = f"{_size(self.disk_bytes)} of values, {_size(self.memory_bytes)} of memory"
        parts = [_count(self.cells, "cell"), _count(self.chunks, "chunk")]
        text = f"{', '.join([*parts, _count(self.programs, 'program')])}, {amounts}"
        # NaN differs from itself.
        return text if self.seconds != self.seconds else f"{text}, about {_time(self.seconds)}"


class Watch(NamedTuple):
    """What a sweep reports of itself, for the forecast."""

    compiled: Callable[[int, float], None]  # bytes of a new program, and seconds that it took
    computed: Callable[[], None]  # a chunk is written


def watch(
    cells: int, chunks: int, programs: int, cell_bytes: int, on_forecast: Callable[[Any], Any]
) -> Watch:
    """Return functions that call `on_forecast` before and after the first chunk."""
    forecasts: list[Forecast] = []
    start = compile_seconds = 0.0

    def compiled(memory_bytes: int, seconds: float) -> None:
        nonlocal start, compile_seconds
        if not forecasts:
            compile_seconds = seconds
            amounts = (cells * cell_bytes, memory_bytes, float("nan"))
            forecasts.append(Forecast(cells, chunks, programs, *amounts))
            on_forecast(forecasts[0])
            start = time.perf_counter()

    def computed() -> None:
        if len(forecasts) > 1:
            return
        elapsed = time.perf_counter() - start
        seconds = elapsed * (chunks - 1) + compile_seconds * (programs - 1)
        forecasts.append(forecasts[0]._replace(seconds=seconds))
        on_forecast(forecasts[1])

    return Watch(compiled, computed)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _size(count: float) -> str:
    units = ("bytes", "KiB", "MiB", "GiB", "TiB")
    power = min(max(int(count).bit_length() - 1, 0) // 10, len(units) - 1)
    return f"{count / 1024**power:.3g} {units[power]}"


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
