"""Heartbeats: when each actor of a system last gave a sign of life.

Beside all steps. Each is asked again as soon as it has answered, and not before: a frozen process gets no further
calls. An error of Rayfold's is a sign of life too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from ...runtime.errors import RayfoldError
from ..cluster.rpc import Reply

__all__ = ["STARTING_MAX_S", "Heartbeats"]

Ask = Callable[[], Future[Reply[Any]]]
"""Asks an actor something that it answers at once."""

Heard = Callable[[Any], None]
"""Gets what the actor has answered."""

Note = Callable[[RayfoldError | None], None]
"""Called with the problem that the actor has reported, or with none."""


STARTING_MAX_S: Final = 300.0
"""How long Ray may take to start a process before it counts as silent: it gives one 60 s to register and then starts
another, and on a machine where everything starts at once the third may be the first that is in time."""


_ABSENT_MIN_S: Final = 2.0
"""Two looks are a second apart. On a busy machine they may be two."""


class Heartbeats:
    """Signs of life, by the name of the actor. Used on one event loop only."""

    def __init__(self, silent_s: float) -> None:
        """`silent_s`: how long an actor may be silent, in seconds."""
        self._silent_s = silent_s
        self._heard_s: dict[str, float] = {}
        """When it last answered, or when it was first asked."""
        self._excused_s: dict[str, float] = {}
        """Since when it is being started, if it has not answered since."""
        self._asked: dict[str, asyncio.Future[Reply[Any]]] = {}
        self._looked_s = 0.0
        """When `keep` was last called; 0 before the first time."""

    def take(self, who: str, ask: Ask, note: Note | None = None, heard: Heard | None = None) -> None:
        """Ask for a sign of life, unless the last question is open. Returns at once."""
        self._heard_s.setdefault(who, asyncio.get_running_loop().time())
        if who in self._asked:
            return
        try:
            asked = asyncio.wrap_future(ask())
        except Exception:  # it has ended for good
            return
        self._asked[who] = asked
        asked.add_done_callback(lambda answered: self._answered(who, answered, note, heard))

    def silent(self) -> list[str]:
        """Those that were asked and have not answered for too long."""
        before_s = asyncio.get_running_loop().time() - self._silent_s
        return [who for who, heard_s in self._heard_s.items() if heard_s < before_s]

    def starting(self) -> list[str]:
        """Those that were excused and have not answered since."""
        return list(self._excused_s)

    def excuse(self, who: str) -> bool:
        """It is only being started, and counts as silent from now on. False if that has taken too long."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._excused_s.setdefault(who, now_s) > STARTING_MAX_S:
            return False
        self._heard_s[who] = now_s
        return True

    def forget(self, who: str) -> None:
        """Forget an actor that was replaced or removed."""
        self._heard_s.pop(who, None)
        self._excused_s.pop(who, None)
        self._asked.pop(who, None)

    def keep(self, those: set[str]) -> None:
        """Forget all but those. Called once at each look: if this process itself was stopped since the last one, as by
        Ctrl-Z, or did not get to look, that is no silence of theirs, and it counts anew."""
        now_s = asyncio.get_running_loop().time()
        if self._looked_s and now_s - self._looked_s > max(_ABSENT_MIN_S, self._silent_s / 2):
            self._heard_s = dict.fromkeys(self._heard_s, now_s)
        self._looked_s = now_s
        for who in self._heard_s.keys() - those:
            self.forget(who)

    def _answered(self, who: str, answered: asyncio.Future[Reply[Any]], note: Note | None, heard: Heard | None) -> None:
        if self._asked.get(who) is not answered:  # it has been replaced
            if not answered.cancelled():
                answered.exception()
            return
        del self._asked[who]
        if answered.cancelled() or answered.exception() is not None:
            return
        reply = answered.result()
        self._heard_s[who] = asyncio.get_running_loop().time()
        self._excused_s.pop(who, None)
        if note is not None:
            note(reply.error)
        if heard is not None and reply.error is None:
            heard(reply.unwrap())
