"""Actor log: how an actor's process writes what it and the code of the user logs, so that it can be found again.

Beside all steps. Ray keeps the standard output and error of each of its processes in two files of its session
(`logs/worker-*.out` and `.err`). An actor writes its name there, in a line of Ray's own kind, before any code of the
user's runs; and what is logged goes there as lines with time, level and logger. `actors/observe/session_logs.py` reads
them.

Rules kept here: what was logged is one line, or its further lines are indented, so that no text forges another line;
the level is Python's own, WARNING, unless the application's modules set another; a program that has set up logging in
its actors keeps that.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Final

from ...runtime.printable import printable

__all__ = ["NAMED", "begin_log"]

NAMED: Final = ":actor_name:"
"""The beginning of Ray's line that names the actor whose output follows."""


def begin_log() -> None:
    """Called first of all by whatever runs as an actor. Does nothing in any other process."""
    import ray
    from ray._private.worker import WORKER_MODE, global_worker

    if not ray.is_initialized() or global_worker.mode != WORKER_MODE:
        return
    name = ray.get_runtime_context().get_actor_name()
    if not name:
        return
    for stream in (sys.stdout, sys.stderr):
        print(f"{NAMED}{printable(name)}", file=stream, flush=True)
    root = logging.getLogger()
    if not root.handlers:
        lines = logging.StreamHandler()
        lines.setFormatter(_Lines())
        root.addHandler(lines)


class _Lines(logging.Formatter):
    """`2013-11-01T10:00:00.123Z WARNING bank.accounts: what was logged`, with the trace in indented lines."""

    converter = time.gmtime  # type: ignore[assignment]  # as the documentation has it

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging`."""
        return super().format(record).replace("\r", "\\r").replace("\n", "\n  ")
