"""FifoLock: a lock that is given in the order in which it was asked for.

Beside step [3]. A partition's commands arrive on several threads: Ray's, and one for each connection of its socket
server.

Why not `threading.Lock`: it goes to whichever thread is quickest, and that is the one that has just released it. A busy
connection would keep it for many batches in a row, while an own actor waits to append until it gives up.
"""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["FifoLock"]


class FifoLock:
    """`with turns:` waits until all earlier callers have had their turn. Not to be nested."""

    def __init__(self) -> None:
        self._looking = threading.Lock()
        """Held for a moment, while the two below are read or changed."""
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()
        """One for each thread that waits, held until it is its turn; bounded by the number of threads."""

    def __enter__(self) -> None:
        with self._looking:
            if not self._taken:
                self._taken = True
                return
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        mine.acquire()

    def __exit__(self, *exc_info: object) -> None:
        with self._looking:
            if self._waiting:
                self._waiting.popleft().release()  # the turn is handed over: no other thread can come in between
            else:
                self._taken = False
