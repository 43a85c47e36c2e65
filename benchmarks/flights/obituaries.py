"""Obituaries: what Ray prints about a worker that was killed, kept off the screen of the demo that killed it.

Ray writes eight lines about it, with guesses at the cause, to the standard output of the driver, whatever the log
level and `log_to_driver` say (Ray 2.60). Everything else that Ray prints still comes through.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

__all__ = ["without_obituaries"]

_BEGINNING: Final = "A worker died or was killed"


@contextmanager
def without_obituaries() -> Iterator[None]:
    """Enter once Ray is connected. Does nothing with a Ray that prints in another way."""
    from ray._private import worker

    printer: Any = getattr(worker, "print_worker_logs", None)
    if printer is None:
        yield
        return

    def print_others(data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        lines = [line for line in data.get("lines", ()) if not line.startswith(_BEGINNING)]
        if lines:
            printer({**data, "lines": lines}, *args, **kwargs)

    vars(worker)["print_worker_logs"] = print_others
    try:
        yield
    finally:
        vars(worker)["print_worker_logs"] = printer
