"""The sending: every command of the feed, in order, until each has an answer that settles it.

Commands are `Unavailable` while their partition's node is gone: those that are on their way wait, since the runtime
sends them again by itself, and those that come later are refused at once. Then nothing new is taken from the feed; one
command knocks until it is let in; and the feed goes on from there, under the same ids.

Rule kept here: the commands to one aggregate arrive in the order of the feed, whatever is lost on the way. So what was
refused is sent again before anything behind it. `execute_all` does its part: it lets nothing to an aggregate go past a
command that was refused, until this file has been told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Final

from rayfold import Envelope, Receipt, Runtime

from .feed import Feed
from .progress_watchdog import AGAIN_S, PATIENCE_S
from .run import Replay, Watcher

__all__ = ["Sending"]

IN_FLIGHT: Final = 8_192
"""Commands on their way at once. Enough that each of two partitions and three airports has a batch of many to
take while the last one is on its way, and below the client's limit of 32,768."""

TIMEOUT_S: Final = PATIENCE_S + 60.0
"""For one command, with all the attempts that the runtime makes: the lookout gives up before."""


class Sending:
    """The commands of one run, on their way."""

    def __init__(self, bank: Runtime, feed: Feed, run: Replay, watcher: Watcher) -> None:
        self._bank, self._feed, self._run, self._watcher = bank, feed, run, watcher
        self._again: deque[int] = deque()
        """Numbers of commands that were refused, in order; all of them come before `_ahead`."""
        self._ahead = iter(range(len(feed)))
        self._on_their_way: deque[int] = deque()
        self._kills: list[asyncio.Task[None]] = []

    async def to_the_end(self) -> None:
        """Return once every command has its answer."""
        while self._run.ledger.told < len(self._feed):
            if await self._sent(len(self._feed)):  # all of them, or those before the killer's last call
                kills, self._kills = self._kills, []
                await asyncio.gather(*kills)
                continue
            while not await self._sent(1):  # alone: packing thousands again four times a second takes half a core
                await asyncio.sleep(AGAIN_S)

    async def _sent(self, at_most: int) -> bool:
        """Send so many, or until one is refused, or a kill has to happen before the next one. Whether none was
        refused."""
        run = self._run
        envelopes = self._envelopes(at_most)
        async for _, outcome in self._bank.execute_all(envelopes, in_flight=IN_FLIGHT, timeout_s=TIMEOUT_S):
            number = self._on_their_way.popleft()
            run.ledger.note(number, outcome)
            self._watcher.answered(run.ledger.told)
            if isinstance(outcome, Receipt):
                for outage in run.killer.watch(number, outcome):
                    self._watcher.recovered(outage)
            if what := run.killer.take_due(run.sent):
                self._kills.append(asyncio.create_task(self._kill(what)))
        refused = run.ledger.take_unanswered()
        self._again.extendleft(reversed(refused))
        return not refused

    def _envelopes(self, at_most: int) -> Iterator[Envelope]:
        """The commands as they are asked for, with count kept of how far the sending has come.

        They are held back here, and not where the outcomes are read: thousands are asked for before the next outcome
        comes, and a kill that has begun would be too late.
        """
        for _ in range(at_most):
            held = self._run.ledger.unanswered or (self._kills and self._run.sent >= self._run.killer.last_call)
            number = None if held else self._next()
            if number is None:
                return
            self._on_their_way.append(number)
            self._run.sent = max(self._run.sent, number + 1)
            yield self._feed.envelope(number)

    def _next(self) -> int | None:
        return self._again.popleft() if self._again else next(self._ahead, None)

    async def _kill(self, what: str) -> None:
        outage = await self._run.killer.kill(what, self._bank, lambda: self._run.sent)
        if outage is not None:
            self._watcher.killed(outage)
        elif what in self._run.killer.spared:
            self._watcher.spared(what)
