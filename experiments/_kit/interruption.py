"""Ctrl-C ends an experiment within seconds, whatever its threads and compiled programs do."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

STATUS = 130
"""Exit status of a process that is interrupted, as of other programs: 128 and the signal's 2."""
SECONDS = 3.0


@contextlib.contextmanager
def interruption(message: str) -> Iterator[None]:
    """End the process with a message if it is interrupted; call it in the main thread.

    Python raises KeyboardInterrupt between two of its instructions, but a call of XLA may take
    minutes. What was written so far stays as it is after a kill.
    """
    signals, wakeup = socket.socketpair()
    wakeup.setblocking(False)
    # Python writes the number of each signal there at once.
    descriptor = signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    handler = signal.getsignal(signal.SIGINT)
    # See `experiments/__init__.py`. A shell lets commands in the background ignore the signal.
    if handler is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    ended = threading.Event()

    def wait() -> None:
        while number := signals.recv(1):
            if number[0] == signal.SIGINT and not ended.wait(SECONDS):
                end_process(message)

    thread = threading.Thread(target=wait, name="interruption", daemon=True)
    thread.start()
    try:
        yield
    except KeyboardInterrupt:
        end_process(message)
    finally:
        ended.set()
        signal.signal(signal.SIGINT, handler)
        signal.set_wakeup_fd(descriptor)
        wakeup.close()
        thread.join()
        signals.close()


def end_process(message: str) -> None:
    """Print a message and end the process without waiting for threads.

    Threads that compile would delay the end by minutes, or crash when the interpreter is gone.
    """
    print(message, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STATUS)
