"""Command lines: bounds, errors in one line, output paths, interruptions."""

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from experiments._kit import Options, SeededOptions, as_plain, check, command, option


@dataclass(frozen=True)
class Small(SeededOptions):
    """Options of a test."""

    rate: float = option(0.5, "A share.", above=0, below=1)
    steps: int = option(3, "Number of steps.", minimum=1, maximum=10)
    sizes: tuple[int, ...] = option((1, 2), "Ascending sizes.", count=2, minimum=1, ascending=True)
    kind: str = option("a", "Which kind.", choices=("a", "b"))
    output: Path = option(Path("results/small.png"), "Where to write the figure.")

    def check(self) -> None:
        """Steps and sizes must fit together."""
        if self.steps < self.sizes[-1]:
            raise ValueError(f"steps must be at least {self.sizes[-1]}, got {self.steps}")


@dataclass(frozen=True)
class Stem(Options):
    """Options of an experiment that writes several files."""

    output: Path = option(Path("results/stem"), "Beginning of the paths.")


BAD = [
    ({"rate": 0.0}, "rate must be above 0 and below 1, got 0.0"),
    ({"rate": np.nan}, "rate must be above 0 and below 1, got nan"),
    ({"steps": 0}, "steps must be at least 1 and at most 10, got 0"),
    ({"steps": 1}, "steps must be at least 2, got 1"),
    ({"seeds": 1}, "seeds must be at least 2, got 1"),
    ({"first_seed": -1}, "first_seed must be at least 0, got -1"),
    ({"sizes": (1,)}, "sizes must have at least 2 values, got 1"),
    ({"sizes": ()}, "sizes must have at least 2 values, got none"),
    ({"sizes": (2, 1)}, "sizes must have its values in ascending order, got 2 1"),
    ({"sizes": (1, 1)}, "sizes must have no value twice, got 1 1"),
    ({"sizes": (0, 1)}, "sizes must have values at least 1, got 0 1"),
    ({"kind": "c"}, "kind must be one of a, b, got c"),
    ({"output": Path("small.txt")}, "output must end in one of .png, .pdf, .svg"),
    ({"output": Path("file.txt/small.png")}, "output must be in a folder that can be written"),
    ({"output": Path("/proc/nowhere/small.png")}, "output must be in a folder that can be"),
    ({"output": Path("folder.png")}, "output must be in a folder that can be written"),
]


def run(options):
    """Do what the test says."""
    print("ran", options.steps)
    raise ValueError("bad\nnews")


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Run a command with these arguments, and return its exit message."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "folder.png").mkdir()

    def function(options_type, function, *arguments, **options):
        monkeypatch.setattr(sys, "argv", ["small", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command(options_type, function, **options)
        return stop.value.code

    return function


def flags(**values):
    text = []
    for name, value in values.items():
        text += [f"--{name.replace('_', '-')}", *(value if isinstance(value, tuple) else (value,))]
    return text


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_bad_options_end_in_one_line_before_any_work(call, capsys, change, message):
    code = call(Small, run, *flags(**change))
    assert code.startswith("error: ")
    assert message in code or (change == {"sizes": ()} and "sizes" in code)
    assert "\n" not in code
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("change", "message"), BAD, ids=[str(change) for change, _ in BAD])
def test_bad_options_are_named_by_check(monkeypatch, tmp_path, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=re.escape(message)):
        check(Small(**change))


@pytest.mark.parametrize("text", ["deep", "--nothing"])
def test_what_cannot_be_parsed_ends_in_one_line(call, text):
    code = call(Small, run, "--steps", text)
    assert code.startswith("error: ")
    assert "\n" not in code
    assert "--help" in code


def test_errors_of_the_run_end_in_one_line(call, monkeypatch):
    assert call(Small, run) == "error: bad news"
    monkeypatch.setenv("JAXGRAD_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["small"])
    with pytest.raises(ValueError, match="bad\nnews"):
        command(Small, run)


@pytest.mark.parametrize(
    ("resumable", "message"), [(True, "continues after the last part"), (False, "starts again")]
)
def test_interruption_promises_what_is_true(monkeypatch, tmp_path, capsys, resumable, message):
    def stopped(options):
        raise KeyboardInterrupt

    ends = []
    monkeypatch.setattr(os, "_exit", ends.append)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small"])
    command(Small, stopped, resumable=resumable)
    assert ends == [130]
    assert message in capsys.readouterr().err


def test_a_good_run_gets_its_options_and_prints_the_time(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["small", *flags(steps="7", sizes=("2", "5"), seeds="3")])
    seen = []
    command(Small, seen.append)
    assert seen == [Small(steps=7, sizes=(2, 5), seeds=3)]
    assert seen[0].seed_values == (0, 1, 2)
    assert as_plain(seen[0])["output"] == "results/small.png"
    assert capsys.readouterr().out.startswith("Time: ")
    assert (tmp_path / "results").is_dir()


def test_a_stem_may_have_any_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    check(Stem())
    check(Stem(output=Path("other/name.v2")))


def test_help_shows_options_and_description(call, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert call(Small, run, "--help") == 0
    text = capsys.readouterr().out
    for words in ("Do what the test says.", "--rate", "A share.", "--first-seed", "--output"):
        assert words in text
