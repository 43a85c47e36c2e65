"""Signal actions: what the operating system does with a signal, kept as the program has set it.

Beside all steps. Ray installs handlers of its own below Python's, for SIGTERM and for the signals of a crash. They
print C++ frames before the program's own handler runs. When Ray is shut down they are removed, and the program's with
them, so that the next SIGTERM ends the program. `signal.signal` cannot mend that: it works on the main thread alone,
and Ray is started on another.

Rule kept here: what was set before Ray was started is what is set afterwards, for exactly the signals that Ray touches.
"""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["kept_signal_actions"]

_TOUCHED: Final = (
    signal.SIGTERM,
    signal.SIGSEGV,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGBUS,
    signal.SIGTRAP,
)
"""What the failure handler of Ray's logging (abseil's) is installed for."""

_ACTION_BYTES: Final = 512
"""Over the size of `struct sigaction` on any Linux (152 bytes with glibc on x86-64)."""

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def kept_signal_actions() -> Iterator[None]:
    """Put the actions of these signals back as they were, whatever happens in the block. Safe on any thread."""
    before = {number: _action_of(number) for number in _TOUCHED}
    try:
        yield
    finally:
        for number, action in before.items():
            if action is not None:
                _libc.sigaction(int(number), action, None)


def _action_of(number: signal.Signals) -> ctypes.Array[ctypes.c_char] | None:
    action = ctypes.create_string_buffer(_ACTION_BYTES)
    return None if _libc.sigaction(int(number), None, action) else action
