"""The second start of a command takes its compiled programs from disk."""

import os
import platform
import subprocess
import sys

import jax
import pytest

from experiments import _kit
from experiments._kit import options

NAMES = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
COMMAND = """
import jax, jax.numpy as jnp
from experiments import _kit as kit

def run(options: kit.Options) -> None:
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones(3)).block_until_ready()
    print(*(sum(name in event for event in events) for name in ("cache_hits", "cache_misses")))

kit.command(kit.Options, run)
"""


@pytest.fixture
def settings():
    before = {name: getattr(jax.config, name) for name in NAMES}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_stored_for_each_machine_unless_a_folder_is_named(
    settings, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update(NAMES[0], str(tmp_path / "named"))
    options.use_compile_cache()
    assert getattr(jax.config, NAMES[0]) == str(tmp_path / "named")
    jax.config.update(NAMES[0], None)
    jax.config.update(NAMES[1], 1.0)
    options.use_compile_cache()
    assert getattr(jax.config, NAMES[0]) == str(tmp_path / "jaxgrad" / platform.node())
    assert getattr(jax.config, NAMES[1]) == 0
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    jax.config.update(NAMES[0], None)
    options.use_compile_cache()
    assert getattr(jax.config, NAMES[0]).startswith(str(tmp_path / "home" / ".cache" / "jaxgrad"))


def test_a_command_uses_the_cache_and_an_import_does_not(monkeypatch, capsys, tmp_path):
    calls = []
    monkeypatch.setattr(options, "use_compile_cache", lambda: calls.append("cache"))
    monkeypatch.setattr(sys, "argv", ["command", "--output", str(tmp_path / "a.png")])

    def run(options: _kit.Options) -> None:
        calls.append("run")

    _kit.command(_kit.Options, run)
    assert calls == ["cache", "run"]


@pytest.mark.slow
def test_the_second_start_compiles_nothing(tmp_path):
    environment = {name: v for name, v in os.environ.items() if "COMPILATION_CACHE" not in name}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    command = [sys.executable, "-c", COMMAND, "--output", str(tmp_path / "a.png")]
    lines = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        lines.append([int(n) for n in done.stdout.splitlines()[0].split()])
    (first, missing), (second, none) = lines
    assert (first, none) == (0, 0)
    assert second == missing > 0
