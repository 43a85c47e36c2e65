"""The history: what was sent, when, and what its sender was told. The other half of every check is the log.

Rules kept here: what is sent is noted before it is sent, so nothing in the log can be a surprise; an outcome is noted
with the moment at which the caller had it; what was never told, or told to be unknown, stays unknown. Times are those
of one monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from rayfold import Envelope, Overloaded, RayfoldError, Receipt, Rejected, Unavailable
from rayfold.actors.client.command_router import CommandRouter
from rayfold.runtime.encoding.envelope import PackedCommand, pack

__all__ = ["ENTRIES_MAX", "Entry", "History", "Sender", "is_refused"]

ENTRIES_MAX: Final = 1_000_000
"""Commands of one scenario: some 500 MB of history. A load that has sent so many ends."""

_SEND_AGAIN: Final = 0.02
"""The share of acknowledged commands that are sent once more: they have to get the first receipt."""

_PAUSE_S: Final = 0.05
"""After `Unavailable` and `Overloaded`."""


class Entry:
    """One command and what became of it, as its sender knows."""

    __slots__ = ("outcome", "packed", "repeats", "sent_s", "told_s")

    def __init__(self, packed: PackedCommand) -> None:
        self.packed = packed
        self.sent_s = time.monotonic()
        """When it was sent for the first time."""
        self.told_s = float("inf")
        """When its sender had the outcome."""
        self.outcome: Receipt | RayfoldError | None = None
        """The last one; None while there is none. `Unavailable` is unknown."""
        self.repeats: list[Receipt] = []
        """What was told when it was sent again after it had been acknowledged."""


class History:
    """All entries, and how long the answers took."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.refused: Counter[str] = Counter()
        """Attempts that were told something else than a receipt, by the name of the error."""
        self.going = asyncio.Event()
        """Clients begin with no further command while it is not set."""
        self.going.set()
        self.on_their_way = 0
        """Attempts without an outcome."""
        self.latest_s = 0.0
        """How long after its deadline an attempt was told something, at most."""

    @property
    def full(self) -> bool:
        """No more may be sent."""
        return len(self.entries) >= ENTRIES_MAX

    def begin(self, packed: PackedCommand, blob: bytes) -> Entry:
        """A command that is about to be sent for the first time; `blob` is what travels."""
        entry = Entry(packed)
        self.entries.append(entry)
        return entry

    def tell(self, entry: Entry, outcome: Receipt | RayfoldError) -> None:
        """Its sender has this outcome now."""
        entry.outcome, entry.told_s = outcome, time.monotonic()

    def tell_again(self, entry: Entry, receipt: Receipt) -> None:
        """It had been acknowledged, was sent once more, and was told this."""
        entry.repeats.append(receipt)

    def acknowledged(self) -> Iterator[tuple[Entry, Receipt]]:
        """Those that were told that they are on the disk."""
        for entry in self.entries:
            if isinstance(entry.outcome, Receipt):
                yield entry, entry.outcome

    def latencies_ms(self, since_s: float = 0.0, until_s: float = float("inf")) -> list[float]:
        """Of all that were told something, sent in a span of time; sorted."""
        told = (e for e in self.entries if e.outcome is not None and since_s <= e.sent_s < until_s)
        return sorted((entry.told_s - entry.sent_s) * 1e3 for entry in told)


class Sender:
    """One client: a router of its own, some commands in flight, and every outcome noted."""

    def __init__(self, router: CommandRouter, history: History, seed: int, timeout_s: float = 20.0) -> None:
        self.history = history
        self._router = router
        self._rng = random.Random(seed)
        self._timeout_s = timeout_s

    async def send(self, envelope: Envelope, timeout_s: float | None = None) -> Entry:
        """Send one command and note what it was told. Raises nothing that is an outcome."""
        packed, blob = pack(envelope)
        entry = self.history.begin(packed, blob)
        await self._attempt(entry, blob, timeout_s or self._timeout_s)
        return entry

    async def drive(
        self, commands: Iterator[Envelope], stop: asyncio.Event, depth: int, *, pause_s: float = 0.0
    ) -> None:
        """Send until `stop`, so many at a time, each after a pause. Unknown ones are sent again under the same id, most
        of them."""

        async def work() -> None:
            while not stop.is_set() and not self.history.full:
                await self.history.going.wait()
                await self._see_through(next(commands), stop)
                if pause_s:
                    await asyncio.sleep(pause_s)

        await asyncio.gather(*(work() for _ in range(depth)))

    async def _see_through(self, envelope: Envelope, stop: asyncio.Event) -> None:
        packed, blob = pack(envelope)
        entry = self.history.begin(packed, blob)
        await self._attempt(entry, blob, self._timeout_s)
        while isinstance(entry.outcome, Unavailable | Overloaded) and not stop.is_set() and self._rng.random() < 0.9:
            await asyncio.sleep(_PAUSE_S)
            await self._attempt(entry, blob, self._timeout_s)
        if isinstance(entry.outcome, Receipt) and self._rng.random() < _SEND_AGAIN:
            with contextlib.suppress(Unavailable, Overloaded):  # what it was told before holds all the same
                again: Any = await self._router.submit(packed, blob, self._timeout_s)
                if isinstance(again, Receipt):
                    self.history.tell_again(entry, again)

    async def _attempt(self, entry: Entry, blob: bytes, timeout_s: float) -> None:
        deadline_s = time.monotonic() + timeout_s
        self.history.on_their_way += 1
        try:
            outcome = await self._router.submit(entry.packed, blob, timeout_s)
        except RayfoldError as error:
            outcome = error
        finally:
            self.history.on_their_way -= 1
        self.history.latest_s = max(self.history.latest_s, time.monotonic() - deadline_s)
        if not isinstance(outcome, Receipt):
            self.history.refused[type(outcome).__name__] += 1
        if isinstance(outcome, Overloaded) and isinstance(entry.outcome, Unavailable):
            return  # this attempt was not sent; the one before it is unknown still
        self.history.tell(entry, outcome)


def is_refused(entry: Entry) -> bool:
    """Whether its sender was told that nothing was stored."""
    return isinstance(entry.outcome, Rejected | Overloaded)
