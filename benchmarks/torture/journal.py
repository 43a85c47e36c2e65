"""The journal: a history that is written to a file as it happens, so that it outlives the program that it is of.

A client that is killed together with its node has sent commands and been told outcomes that nobody else knows. What it
knew is in its journal: each command before it leaves, each outcome when it has come. Whoever checks reads the journals
of all programs as one history; the clock is the same for all processes of one machine.

Rule kept here: one `write` for each line, unbuffered. What the kernel has taken is there when the program is killed;
of a last line that is not whole nothing is taken.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgpack

from rayfold import RayfoldError, Receipt
from rayfold.runtime.encoding.envelope import PackedCommand, unpack_batch
from rayfold.runtime.encoding.outcome import decode_outcomes, encode_outcomes

from .history import Entry, History

__all__ = ["JournaledHistory", "read_journals"]

_SENT: Final = 0
_TOLD: Final = 1
_AGAIN: Final = 2


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
        self._write(_AGAIN, self._numbers[id(entry)], time.monotonic(), encode_outcomes([receipt]))

    def _write(self, kind: int, number: int, at_s: float, content: bytes) -> None:
        line: bytes = msgpack.packb((kind, number, at_s, content))
        written = os.write(self._file, line)
        assert written == len(line), "a local disk takes a line whole, or is full"


def read_journals(paths: Iterable[Path]) -> History:
    """What all programs knew, as one history."""
    history = History()
    for path in paths:
        _read(path, history)
    return history


def _read(path: Path, history: History) -> None:
    entries: list[Entry] = []
    content = path.read_bytes()
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=max(1, len(content)))
    unpacker.feed(content)
    for kind, number, at_s, carried in unpacker:
        if kind == _SENT:
            assert number == len(entries)
            [packed] = unpack_batch(carried)
            entry = Entry(packed)
            entry.sent_s = at_s
            entries.append(entry)
            continue
        entry = entries[number]
        [outcome] = decode_outcomes(carried, [entry.packed])
        _note(history, entry, kind, at_s, outcome)
    history.entries += entries


def _note(history: History, entry: Entry, kind: int, at_s: float, outcome: Any) -> None:
    if kind == _AGAIN:
        assert isinstance(outcome, Receipt)
        entry.repeats.append(outcome)
        return
    entry.outcome, entry.told_s = outcome, at_s
    if not isinstance(outcome, Receipt):
        history.refused[type(outcome).__name__] += 1
