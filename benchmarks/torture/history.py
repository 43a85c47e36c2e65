"""The history: what was sent, when, and what its sender was answered. The other half of every check is the log.

A client that is killed together with its node has sent commands and got outcomes that no other process knows. What it
knew is in its journal: each command before it leaves, each outcome when it has come. The checks read the journals of
all programs as one history.

Rules kept here: what is sent is noted before it is sent, so nothing in the log can be a surprise; an outcome is noted
with the moment at which the caller had it; a command without an outcome, or with an unknown one, stays unknown.
Times are those of one monotonic clock, which all processes of a machine have. A line of a journal is written by one
call, unbuffered: what the kernel has taken is there when the program is killed, and of a last line that is not whole
nothing is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack

from rayfold import Envelope, Overloaded, RayfoldError, Receipt, Rejected, Unavailable
from rayfold.actors.client.command_router import CommandRouter
from rayfold.runtime.encoding.envelope import PackedCommand, pack, unpack_batch
from rayfold.runtime.encoding.outcome import decode_outcomes, encode_outcomes

__all__ = ["ENTRIES_MAX", "Entry", "History", "JournaledHistory", "Sender", "is_refused", "read_journals"]

ENTRIES_MAX: Final = 1_000_000
"""Commands of one scenario: some 500 MB of history. A load that has sent so many ends."""

_SEND_AGAIN: Final = 0.02
"""The share of acknowledged commands that are sent once more: they have to get the first receipt."""

_SENT, _TOLD, _SENT_AGAIN = range(3)
"""Kinds of lines of a journal."""

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
        """The answers when it was sent again after it had been acknowledged."""

    @property
    def took_ms(self) -> float:
        """Until its sender had the outcome."""
        return (self.told_s - self.sent_s) * 1e3


class History:
    """All entries, and how long the answers took."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.refused: Counter[str] = Counter()
        """Attempts that were answered with anything but a receipt, by the name of the error."""
        self.going = asyncio.Event()
        """Clients begin with no further command while it is not set."""
        self.going.set()
        self.on_their_way = 0
        """Attempts without an outcome."""
        self.latest_s = 0.0
        """How long after its deadline an attempt was answered, at most."""

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
        """It had been acknowledged, was sent once more, and was answered with this."""
        entry.repeats.append(receipt)

    def acknowledged(self) -> Iterator[tuple[Entry, Receipt]]:
        """Those whose senders have a receipt."""
        for entry in self.entries:
            if isinstance(entry.outcome, Receipt):
                yield entry, entry.outcome

    def latencies_ms(self, since_s: float = 0.0, until_s: float = float("inf")) -> list[float]:
        """Of all that were answered, sent in a span of time."""
        return [e.took_ms for e in self.entries if e.outcome is not None and since_s <= e.sent_s < until_s]


class JournaledHistory(History):
    """The history of one program, which is written down as well."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._numbers: dict[int, int] = {}
        """Of an entry, by its `id`: they all live as long as this."""

    def begin(self, packed: PackedCommand, blob: bytes) -> Entry:
        """See `History`."""
        entry = super().begin(packed, blob)
        number = self._numbers[id(entry)] = len(self._numbers)
        self._write(_SENT, number, entry.sent_s, blob)
        return entry

    def tell(self, entry: Entry, outcome: Receipt | RayfoldError) -> None:
        """See `History`."""
        super().tell(entry, outcome)
        self._write(_TOLD, self._numbers[id(entry)], entry.told_s, encode_outcomes([outcome]))

    def tell_again(self, entry: Entry, receipt: Receipt) -> None:
        """See `History`."""
        super().tell_again(entry, receipt)
        self._write(_SENT_AGAIN, self._numbers[id(entry)], time.monotonic(), encode_outcomes([receipt]))

    def _write(self, kind: int, number: int, at_s: float, content: bytes) -> None:
        line: bytes = msgpack.packb((kind, number, at_s, content))
        written = os.write(self._file, line)
        assert written == len(line), "a local disk takes a line whole, or is full"


def read_journals(paths: Iterable[Path]) -> History:
    """What all programs knew, as one history."""
    history = History()
    for path in paths:
        entries: list[Entry] = []
        content = path.read_bytes()
        unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=max(1, len(content)))
        unpacker.feed(content)
        for kind, number, at_s, carried in unpacker:
            if kind == _SENT:
                assert number == len(entries)
                entries.append(Entry(next(unpack_batch(carried))))
                entries[-1].sent_s = at_s
                continue
            entry = entries[number]
            [outcome] = decode_outcomes(carried, [entry.packed])
            if kind == _SENT_AGAIN:
                assert isinstance(outcome, Receipt)
                entry.repeats.append(outcome)
                continue
            entry.outcome, entry.told_s = outcome, at_s
            if not isinstance(outcome, Receipt):
                history.refused[type(outcome).__name__] += 1
        history.entries += entries
    return history


class Sender:
    """One client: a router of its own, some commands in flight, and every outcome noted."""

    def __init__(self, router: CommandRouter, history: History, seed: int, timeout_s: float = 20.0) -> None:
        self.history = history
        self._router = router
        self._rng = random.Random(seed)
        self._timeout_s = timeout_s

    async def send(self, envelope: Envelope, timeout_s: float | None = None) -> Entry:
        """Send one command and note what it was answered. Raises nothing that is an outcome."""
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
            with contextlib.suppress(Unavailable, Overloaded):  # the earlier receipt holds all the same
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
    """Whether its outcome is one with which nothing is stored."""
    return isinstance(entry.outcome, Rejected | Overloaded)
