"""Timers: what is to be woken in one partition, and when.

Beside step [5], part of the agenda (`agenda.py`). A timer is armed and ended by events of its stream; a later arming
under the same name takes the place of the earlier one. In memory are those that are due next, and what has changed
since the last save; the rest is in the agenda's file (`log/agenda_file.py`), if there is one.

Rules kept here: a timer is given out once, and never before it is due by the time that is handed in; an arming that was
ended or replaced is never given out; what is in memory is bounded, however many timers there are.
"""

from __future__ import annotations

import heapq
import struct
from collections import Counter
from typing import Final, NamedTuple

import msgpack

from ..log.agenda_file import ARMED, PLACES, TIMERS, AgendaFile
from ..stream import StreamId

__all__ = ["KINDS", "Timer", "Timers", "key_parts"]

KINDS: Final = b"kinds"
"""The name of the place in the file that has how many are armed, by kind."""

LOADED_MAX: Final = 20_000
"""Timers in memory, some 10 MB: those that are due first. Those of one busy second are fewer."""

_DUE_MAX: Final = (1 << 63) - 1

_NUMBER: Final = struct.Struct(">Q")
_ARMED: Final = struct.Struct(">QQ")

_Place = tuple[int, bytes]
"""When it is due, and its stream and name as a key: the order in which timers are given out."""


class Timer(NamedTuple):
    """One that is armed."""

    stream: StreamId
    name: str
    due_us: int
    """In microseconds since 1970."""
    version: int
    """The version of the event that armed it, in its stream."""


class Timers:
    """All timers of one partition. Used from one thread."""

    def __init__(self, file: AgendaFile | None = None, *, loaded_max: int = LOADED_MAX) -> None:
        """`file`: where most of them are; without it all are in memory."""
        self.count = file.count(ARMED) if file is not None else 0
        self._file, self._loaded_max = file, loaded_max
        stored = None if file is None else file.find(PLACES, KINDS)
        self._kinds: Counter[bytes] | None = Counter(_unpacked_kinds(stored)) if stored or not self.count else None
        """How many are armed, by the type of their streams and their name (`_kind`); None where that is not known."""
        self._in_file = self.count > 0
        """Whether the file may hold any: else it need not be asked."""
        self._next: list[_Place] = []
        """A heap. An entry counts if `_loaded` has the same."""
        self._loaded: dict[bytes, tuple[int, int]] = {}
        """By key: when it is due, and its version; of all that are due up to `_horizon`, and were not given out."""
        self._horizon: _Place | None = (-1, b"") if self._in_file else None
        """All up to here are loaded; None: all are."""
        self._changed: dict[bytes, tuple[int, int] | None] = {}
        """What has changed since the last save, None where it ended; without a file, all that are armed."""
        self._stored: dict[bytes, int] = {}
        """Of what has changed: when the row in the file is due that goes."""

    def arm(self, stream: StreamId, name: str, due_us: int, version: int) -> None:
        """This is due then; what had the name before is not any more."""
        key, due_us = _key(stream, name), min(max(due_us, 0), _DUE_MAX)
        if version > 1:
            self._forget(key)
        elif self._file is not None:  # the first event of its stream: nothing was armed, so the file need not be asked
            self._stored[key] = -1
        self.count += 1
        if self._kinds is not None:
            self._kinds[_kind(key)] += 1
        self._changed[key] = due_us, version
        if self._horizon is None or (due_us, key) <= self._horizon:
            self._load(key, due_us, version)

    def end(self, stream: StreamId, name: str, version: int | None = None) -> None:
        """It is not armed any more. `version`: only that arming of it ends."""
        self._forget(_key(stream, name), version)

    def due(self, now_us: int, limit: int) -> list[Timer]:
        """Those that are due by now and were not given out, at most so many, those that are due first at first."""
        found: list[Timer] = []
        while len(found) < limit:
            if not self._next and self._horizon is not None:
                self._load_more()
            if not self._next or self._next[0][0] > now_us:
                break
            due_us, key = heapq.heappop(self._next)
            loaded = self._loaded.get(key)
            if loaded is not None and loaded[0] == due_us:
                del self._loaded[key]
                found.append(Timer(*key_parts(key), due_us, loaded[1]))
        return found

    def give_back(self, timer: Timer) -> None:
        """It was given out and not woken: it is given out again, if it is still armed."""
        key = _key(timer.stream, timer.name)
        if self._present(key) == (timer.due_us, timer.version):
            self._load(key, timer.due_us, timer.version)

    def give_again(self) -> None:
        """Some that were given out were dropped: all that are armed are given out again, those on their way too."""
        self._next, self._loaded = [], {}
        if self._in_file and self._file is not None:
            self._horizon = (-1, b"")
            return
        self._horizon = None
        for key, present in self._changed.items():
            if present is not None:
                self._load(key, *present)

    def next_due_us(self) -> int | None:
        """When the next one is due; None if none is armed, but for those that were given out."""
        while self._next or self._horizon is not None:
            if not self._next:
                self._load_more()
                continue
            due_us, key = self._next[0]
            loaded = self._loaded.get(key)
            if loaded is not None and loaded[0] == due_us:
                return due_us
            heapq.heappop(self._next)
        return None

    def kinds(self) -> Counter[tuple[str, str]]:
        """How many are armed, by the type of their streams and their name."""
        if self._kinds is None:
            self._kinds = self._counted()
        kinds = +self._kinds
        return Counter({(kind[1 : 1 + kind[0]].decode(), kind[1 + kind[0] :].decode()): kinds[kind] for kind in kinds})

    def packed_kinds(self) -> bytes:
        """The same, to be saved in the file with what has changed: a start with a million timers need not read them."""
        if self._kinds is None:
            self._kinds = self._counted()
        packed: bytes = msgpack.packb(dict(+self._kinds))
        return packed

    def _counted(self) -> Counter[bytes]:
        """Reads all of them: of a file that an earlier release wrote."""
        found = Counter(_kind(key) for key, present in self._changed.items() if present is not None)
        after = b""
        while self._in_file and self._file is not None:
            rows = self._file.rows(ARMED, after, self._loaded_max)
            found.update(_kind(key) for key, _ in rows if key not in self._changed)
            if len(rows) < self._loaded_max:
                break
            after = rows[-1][0]
        return found

    @property
    def unsaved(self) -> int:
        """How many have changed since the last save."""
        return len(self._changed) if self._file is not None else 0

    def changes(self) -> dict[bytes, dict[bytes, bytes | None]]:
        """What has to be written to the file, by database and key."""
        timers: dict[bytes, bytes | None] = {
            _NUMBER.pack(due_us) + key: None
            for key, due_us in self._stored.items()
            if due_us >= 0 and key in self._changed
        }
        armed: dict[bytes, bytes | None] = {}
        for key, present in self._changed.items():
            armed[key] = None if present is None else _ARMED.pack(*present)
            if present is not None:
                timers[_NUMBER.pack(present[0]) + key] = _NUMBER.pack(present[1])
        return {TIMERS: timers, ARMED: armed}

    def saved(self) -> None:
        """What has changed was written to the file. Of many timers those that are due late are dropped from memory."""
        self._in_file = self._in_file or any(self._changed.values())
        if self._file is not None:
            self._changed.clear()
        self._stored.clear()
        if len(self._loaded) > 2 * self._loaded_max and self._file is not None:
            kept = heapq.nsmallest(self._loaded_max, ((due_us, key) for key, (due_us, _) in self._loaded.items()))
            self._horizon = kept[-1]
            self._loaded = {key: self._loaded[key] for _, key in kept}
            self._next = kept

    def _forget(self, key: bytes, version: int | None = None) -> None:
        present = self._present(key)
        if present is None or (version is not None and present[1] != version):
            return
        self.count -= 1
        if self._kinds is not None:
            self._kinds[_kind(key)] -= 1
        self._loaded.pop(key, None)
        if self._file is not None and self._stored.get(key) != -1:
            self._changed[key] = None
        else:  # armed since the last save: the file does not have it
            del self._changed[key]

    def _present(self, key: bytes) -> tuple[int, int] | None:
        """When it is due, and its version, if it is armed."""
        if key in self._changed or self._file is None:
            return self._changed.get(key)
        stored = self._file.find(ARMED, key) if self._in_file else None
        if stored is None:
            self._stored.setdefault(key, -1)
            return None
        due_us, version = _ARMED.unpack(stored)
        self._stored.setdefault(key, due_us)
        return due_us, version

    def _load(self, key: bytes, due_us: int, version: int) -> None:
        self._loaded[key] = due_us, version
        heapq.heappush(self._next, (due_us, key))

    def _load_more(self) -> None:
        """The next ones of the file, and of what has changed since it was written."""
        assert self._horizon is not None  # the caller has looked; only what is in a file is left out
        assert self._file is not None
        due_us, key = self._horizon
        after = _NUMBER.pack(due_us) + key if due_us >= 0 else b""
        rows = self._file.rows(TIMERS, after, self._loaded_max)
        last, self._horizon = self._horizon, None
        if len(rows) == self._loaded_max:
            self._horizon = _NUMBER.unpack_from(rows[-1][0])[0], rows[-1][0][8:]
        for row, version in rows:
            if row[8:] not in self._changed:
                self._load(row[8:], _NUMBER.unpack_from(row)[0], _NUMBER.unpack(version)[0])
        for key, present in self._changed.items():
            if present is None or key in self._loaded or (present[0], key) <= last:
                continue
            if self._horizon is None or (present[0], key) <= self._horizon:
                self._load(key, *present)


def _key(stream: StreamId, name: str) -> bytes:
    return stream.key + name.encode()


def _kind(key: bytes) -> bytes:
    """The type of the stream, behind its length, and the name."""
    type_end = 1 + key[0]
    return key[:type_end] + key[type_end + 2 + int.from_bytes(key[type_end : type_end + 2], "big") :]


def _unpacked_kinds(packed: bytes | None) -> dict[bytes, int]:
    """What `Timers.packed_kinds` has packed."""
    found: dict[bytes, int] = msgpack.unpackb(packed, strict_map_key=False) if packed else {}
    return found


def key_parts(key: bytes) -> tuple[StreamId, str]:
    """The stream in a key of a stream and a name, and the name."""
    type_end = 1 + key[0]
    id_end = type_end + 2 + int.from_bytes(key[type_end : type_end + 2], "big")
    return StreamId(key[1:type_end].decode(), key[type_end + 2 : id_end].decode()), key[id_end:].decode()
