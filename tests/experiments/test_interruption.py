"""Ctrl-C ends an experiment soon, with a message, and without a crash."""

import signal
import subprocess
import sys
import time

import pytest

COMMAND = """
import time
import jax, jax.numpy as jnp
from experiments import _kit as kit

def threads():
    kit.in_threads({name: job for name in range(8)})

def job():
    print("started", flush=True)
    time.sleep(60)

def computation():
    # One call of XLA that takes minutes.
    @jax.jit
    def long(x):
        return jax.lax.fori_loop(0, 10**9, lambda i, x: jnp.sin(x @ x), x)
    compiled = long.lower(jnp.eye(200)).compile()
    print("started", flush=True)
    jax.block_until_ready(compiled(jnp.eye(200)))

def loop():
    print("started", flush=True)
    while True:
        time.sleep(0.01)

def run(options: kit.Options) -> None:
    WORK()

kit.command(kit.Options, run)
"""


def start(command):
    """A process that does not ignore the signal, as those of a shell's background jobs do."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A new program inherits that a signal is ignored, but no function that handles it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, **pipes)
    finally:
        signal.signal(signal.SIGINT, before)


SLOW = [pytest.param(work, marks=pytest.mark.slow) for work in ("threads", "loop")]


@pytest.mark.slow
@pytest.mark.parametrize("work", ["computation", *SLOW])
def test_an_interrupted_command_ends_within_seconds(tmp_path, work):
    code = COMMAND.replace("WORK", work)
    command = [sys.executable, "-c", code, "--output", str(tmp_path / "a.png")]
    process = start(command)
    assert process.stdout.readline() == "started\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert time.monotonic() - begin < 20
    assert process.returncode == 130
    assert errors.splitlines()[-1].startswith("interrupted; nothing was stored")


def test_a_command_that_is_interrupted_while_it_imports_ends_at_once():
    command = [sys.executable, "-v", "-m", "experiments.course_examples"]
    process = start(command)
    # Python tells on the standard error what it imports.
    while "import 'numpy" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=50)
    assert process.returncode == -signal.SIGINT
    assert "Traceback" not in errors
