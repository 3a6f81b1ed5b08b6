"""Bad options of every experiment end in one line that names the option, before any work."""

import contextlib
import dataclasses
import importlib
import io
import os
import pkgutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import experiments
from experiments._kit import command

# Packages and modules that are run with `python -m`.
MODULES = [info.name for info in pkgutil.iter_modules(experiments.__path__)]
NAMES = sorted(name for name in MODULES if not name.startswith("_"))
# "--" and "" are what a script writes for a variable that is not set.
NUMBERS = ("nan", "inf", "-inf", "1e400", "-1", "ten", "", "1,5", "1e3x", "0x10", "--", "\0")
TEXTS = ("", "other", "7", "\0", "no/file.csv", "constant.csv", "words.csv")
PATHS = ("", ".", "..", "/", "\0", "file/figure.png", "/proc/none/figure.png")
FIGURES = ("figure", "figure.txt", "figure.PNG.", "folder.png", "figure.png/x")


class StartedError(Exception):
    """The experiment began to work."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with what may stand in the way of an output or be passed as data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "constant.csv").write_text("1,2\n" * 100)
    (tmp_path / "words.csv").write_text("a,b\n" * 100)
    for name in ("folder.png", "stem.png"):
        (tmp_path / name).mkdir()
    return tmp_path


def options_of(name):
    module = importlib.import_module(f"experiments.{name}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"experiments.{name}.__main__")
    return module.Options


def bad_options(options):
    """Pairs of arguments with one bad option, and of the name that the message must have."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        flag, kinds = f"--{field.name.replace('_', '-')}", set(_kinds(hints[field.name]))
        if kinds & {int, float}:
            values = [*NUMBERS, *(("1e300", "-1e300") if float in kinds else ("0.5", "9" * 20))]
            if "minimum" not in field.metadata["bounds"]:
                values.remove("-1")
        elif Path in kinds and field.default == ():
            # Stores of other maps, of which there may be none.
            yield from (([flag, path, "--html"], field.name) for path in (*PATHS, *FIGURES))
            continue
        elif Path in kinds:
            values = [*PATHS, *(FIGURES if field.default.suffix else ("stem",))]
        else:
            values = ["yes"] if bool in kinds else TEXTS
        for value in values:
            yield [flag, value], value if bool in kinds else field.name
        if bool not in kinds:
            yield [flag], field.name
        yield [flag + "x", "1"], flag + "x"
    yield from ((["extra"], "extra"), (["--unknown"], "--unknown"))


def _kinds(hint):
    if isinstance(hint, type):
        yield hint
    for part in typing.get_args(hint):
        yield from [str] if isinstance(part, str) else _kinds(part)


def answer(options, arguments, monkeypatch):
    """The exit status of a command, and what it has printed."""

    def run(options):
        raise StartedError

    monkeypatch.setattr(sys, "argv", ["experiment", *arguments])
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            command(options, run)
        except SystemExit as stop:
            code = stop.code
        except StartedError:
            code = "started"
    return code, printed.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_bad_options_end_in_one_line_before_any_work(name, folder, monkeypatch):
    options, before = options_of(name), sorted(folder.rglob("*"))
    rows, problems = list(bad_options(options)), {}
    for arguments, expected in rows:
        code, printed = answer(options, arguments, monkeypatch)
        # Options are written with hyphens by the parser, and with underscores by the checks.
        named = expected.replace("-", "_") in str(code).replace("-", "_")
        one_line = isinstance(code, str) and code.startswith("error: ") and "\n" not in code
        if printed or not (one_line and named):
            problems[tuple(arguments)] = code, printed
    assert not problems
    assert len(rows) >= 25
    assert sorted(folder.rglob("*")) == before


def test_there_are_forty_bad_options_for_each_experiment():
    counts = [len(list(bad_options(options_of(name)))) for name in NAMES]
    assert len(counts) >= 13
    assert sum(counts) >= 40 * len(counts)


@pytest.mark.parametrize("name", NAMES)
def test_default_options_start(name, folder, monkeypatch):
    assert answer(options_of(name), [], monkeypatch) == ("started", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("course_examples", "--seed", "9" * 20),
        pytest.param(("phase_diagram", "--output", ""), marks=pytest.mark.slow),
    ],
)
def test_a_process_ends_with_a_status_and_one_line(arguments, tmp_path):
    name, *options = arguments
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{name}", *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {options[0].strip('-')} must ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
