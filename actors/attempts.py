"""Attempts: which of a client's batches is the latest, so that a late duplicate is not executed.

Beside step [3]. A router numbers its attempts and has at most one in flight to an actor; when one gets no answer, it
sends the same commands again under the next number. Should the first one arrive after all, after the second, it is
stale: the client has been told an outcome since, and a command that was rejected then might be accepted now.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

__all__ = ["Attempts"]

_CLIENTS_MAX: Final = 1024
"""Clients whose last attempt is remembered; a forgotten one only loses protection from its own late duplicates."""


class Attempts:
    """The last attempt of each client: an earlier one that comes late is stale."""

    def __init__(self, clients_max: int = _CLIENTS_MAX) -> None:
        self._last: OrderedDict[bytes, int] = OrderedDict()
        self._clients_max = clients_max

    def is_stale(self, client: bytes, attempt: int) -> bool:
        """Whether a later attempt of this client has been seen; if not, this one is the latest now."""
        if attempt <= self._last.get(client, 0):
            return True
        self._last[client] = attempt
        self._last.move_to_end(client)
        if len(self._last) > self._clients_max:
            self._last.popitem(last=False)
        return False
