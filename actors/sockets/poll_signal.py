"""PollSignal: wakes a thread that waits in a poll, from any other thread.

Beside steps [6] and [8]. Used by the servers and links whose one thread attends to many connections.
"""

from __future__ import annotations

import os
import threading

__all__ = ["PollSignal"]


class PollSignal:
    """A descriptor to poll: there is something to read from when `wake` was called until `clear` is."""

    def __init__(self) -> None:
        """Raises `OSError`."""
        self.descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """-1 once it is closed."""
        self._using = threading.Lock()
        """Held while it is written to, and while it is closed: its number may be another file's afterwards."""

    def wake(self) -> None:
        """Wake the thread. Nothing once it is closed."""
        with self._using:
            if self.descriptor >= 0:
                os.eventfd_write(self.descriptor, 1)

    def clear(self) -> None:
        """The thread is awake. It takes what it was woken for after this, so that none of it is missed."""
        os.eventfd_read(self.descriptor)

    def close(self) -> None:
        """Closing twice is allowed."""
        with self._using:
            descriptor, self.descriptor = self.descriptor, -1
            if descriptor >= 0:
                os.close(descriptor)
