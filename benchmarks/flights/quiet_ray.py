"""Quiet: what is printed about a worker or a node that was killed, kept off the screen of the demo.

Ray writes eight lines about a worker, with guesses at the cause, and two about a node, to the standard output of the
driver, whatever the log level and `log_to_driver` are (Ray 2.60). It also carries there what the actors, and Ray inside
them, write to their own logs about a node that is gone, which the demo shows in one line. Everything else still comes
through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_ABOUT_THE_LOST: Final = (
    "A worker died or was killed",
    "The node with node id: ",
    "Attempting to recover ",
    " goes on without partition ",
    " is gone; it has partitions ",
    " is up; it has partitions ",
)
"""What such a line contains."""


@contextmanager
def hidden_lines_about_the_lost() -> Iterator[None]:
    """Enter once Ray is connected. Does nothing with a Ray that prints in another way."""
    from ray._private import worker

    printer: Any = getattr(worker, "print_worker_logs", None)
    if printer is None:
        yield
        return

    def print_others(data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        lines = [line for line in data.get("lines", ()) if not any(part in line for part in _ABOUT_THE_LOST)]
        if lines:
            printer({**data, "lines": lines}, *args, **kwargs)

    vars(worker)["print_worker_logs"] = print_others
    try:
        yield
    finally:
        vars(worker)["print_worker_logs"] = printer
