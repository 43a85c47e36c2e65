"""Programs in processes of their own, for one block: a peer's server, a client, the watcher of the machine.

Rule kept here: none outlives its block. It is asked to end, and killed if it does not.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

END_S: Final = 20.0
"""For a program to end once it is asked to."""


@contextlib.contextmanager
def running_program(
    command: Sequence[str | Path], *, stop: signal.Signals = signal.SIGTERM, **how: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """It runs; `stop` is how it is asked to end, after its pipes are closed. `how` is for `subprocess.Popen`."""
    process = subprocess.Popen(command, **how)
    try:
        yield process
    finally:
        for stream in filter(None, (process.stdin, process.stdout)):
            with contextlib.suppress(OSError):
                stream.close()
        process.send_signal(stop)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
