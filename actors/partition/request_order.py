"""RequestOrder: which of a client's batches may be executed now, so that order is kept and nothing late is executed.

Beside step [3]. A router numbers its attempts at each actor and has at most two in flight. Each names the attempt that
must have been executed just before it, if that one is still on its way. Refused are:

- a late one: when an attempt gets no answer, the same commands are sent again under a later number. Should the first
  arrive after all, the client has an outcome since, and a command that was rejected then might be accepted
- one whose predecessor was lost, or sent some commands elsewhere: commands to one aggregate would overtake each other

The router answers a refusal by waiting until nothing is in flight and sending everything again in order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

from ...runtime.encoding.outcome import Answered, Redirect, RetryAfter
from ...runtime.errors import Fenced

__all__ = ["RequestOrder"]

_CLIENTS_MAX: Final = 1024
"""Clients whose last attempt is remembered; a forgotten one only loses protection from its own late duplicates."""

_BARRED: Final = -1
"""Equals no predecessor."""


_SENT_AGAIN: Final = frozenset({Redirect, RetryAfter, Fenced})
"""Answers after which the client sends a command again, here or elsewhere."""


class RequestOrder:
    """The last attempt of each client."""

    def __init__(self, clients_max: int = _CLIENTS_MAX) -> None:
        self._last: OrderedDict[bytes, tuple[int, int]] = OrderedDict()
        """Client -> the last attempt, and which predecessor may be named: the same, unless barred."""
        self._clients_max = clients_max

    def run(
        self, client: bytes, attempt: int, predecessor: int, execute: Callable[[], Sequence[Answered]]
    ) -> Sequence[Answered] | None:
        """What `execute` answers; None, without calling it, if this attempt may not be executed now. What is in flight
        behind it is refused if some of its commands are sent again, or if `execute` raises: then all of them are."""
        if not self.admit(client, attempt, predecessor):
            return None
        try:
            answers = execute()
        except BaseException:
            self.bar(client)
            raise
        if not _SENT_AGAIN.isdisjoint(map(type, answers)):
            self.bar(client)
        return answers

    def admit(self, client: bytes, attempt: int, predecessor: int) -> bool:
        """Whether this attempt may be executed, `predecessor` being the one just before it (0: whichever it was)."""
        last, expected = self._last.get(client, (0, _BARRED))
        if attempt <= last or (predecessor and predecessor != expected):
            return False
        self._last[client] = attempt, attempt
        self._last.move_to_end(client)
        if len(self._last) > self._clients_max:
            self._last.popitem(last=False)
        return True

    def bar(self, client: bytes) -> None:
        """Refuse what is in flight behind the last attempt: some of its commands have been sent elsewhere."""
        last, _ = self._last.get(client, (0, _BARRED))
        self._last[client] = last, _BARRED
