"""RayLines: what Ray writes into the output of the program that it belongs to, and how to do without.

Beside all steps. Whenever a process ends, Ray's daemon publishes a paragraph about it, and a thread of Ray's in the
program prints it, with colour codes, on its standard output or error. What matters of it is returned by name to the
caller of the command or the query; the program's output is its own.

Why by overriding a function of Ray's: `log_to_driver=False` is for what workers print, and for these there is no
option.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any, Final

__all__ = ["without_lines_of_ray"]

_ASKED_FOR: Final = "RAY_LOG_TO_DRIVER"
"""Ray's own variable: 1 or true turns the lines on."""


@contextlib.contextmanager
def without_lines_of_ray() -> Iterator[None]:
    """A `ray.init` in here makes no thread that prints what Ray's daemons publish. One thread at a time."""
    if os.environ.get(_ASKED_FOR, "").lower() in ("1", "true"):
        yield
        return
    from ray._private import worker

    module: Any = worker
    rays_own = module.listen_error_messages
    module.listen_error_messages = _listen_to_nothing
    try:
        yield
    finally:
        module.listen_error_messages = rays_own


def _listen_to_nothing(worker: Any, threads_stopped: threading.Event) -> None:
    """In the place of Ray's thread, which ends at once."""
