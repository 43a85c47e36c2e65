"""Agenda: what is still to be carried out of what was decided in one partition, and its timers.

Beside step [5]. Before it: a step of a process, which has stored what is to be sent and woken. After it: the courier
(`courier.py`), which carries it out and has the outcome stored.

Rules kept here: the agenda is a function of the log, up to a position, and of nothing else; so a rebuild, a restore and
a start lead to the same one. Its file (`log/agenda_file.py`) saves reading all of the log at a start, and is used only
if the log still has the very record that it was saved after.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple, Protocol

from ..errors import RayfoldError
from ..log.agenda_file import PARKED, PLACES, SENDS, AgendaFile
from ..log.format import CHAIN_START, chain_of
from ..printable import printable_log
from ..stream import StreamId
from .stored_step import StoredStep
from .timers import KINDS, Timers, key_parts

__all__ = ["Agenda", "AgendaLog", "OpenSend", "is_of_another_state", "saved_place"]

logger = printable_log(__name__)

_FOLDED: Final = b"folded"
"""The name of the place up to which the log was read: format, position, and the link of that record."""

_FORMAT: Final = 1
_PLACE: Final = struct.Struct(">BQ32s")

READ_AGAIN_MAX: Final = 20_000
"""Records that change nothing here, and are read again at a start: a tenth of a second."""

_NUMBER: Final = struct.Struct(">Q")


class AgendaLog(Protocol):
    """As much of a log as the agenda needs."""

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """See `Reader`."""
        ...


class OpenSend(NamedTuple):
    """What a process has sent, and has no outcome of yet."""

    stream: StreamId
    """The instance."""
    number: int
    """Of what it has sent."""
    version: int
    """The version of the step in which it is."""


class Agenda:
    """Of one partition. Used from one thread."""

    def __init__(self, file: AgendaFile | None = None) -> None:
        """`file`: where it is saved; without it all of the log has to be read at each start."""
        self.position = 0
        """Up to here the log was read."""
        self.parked: dict[StreamId, str] = {}
        """Instances that stand still until they are retried, skipped or ended, and why."""
        self.timers = Timers()
        self._file = file
        self._saved_at = 0
        self._link = CHAIN_START
        self._sends: dict[StreamId, dict[int, int]] = {}
        """By instance and number: the version of the step. In the order in which they were decided."""
        self._count = 0
        self._changed: dict[bytes, bytes | None] = {}
        self._parked_changed: dict[bytes, bytes | None] = {}

    def open(self, log: AgendaLog) -> None:
        """Take over what was saved, if it is of this log; else begin with its first record."""
        if self._file is None:
            return
        try:
            self._take_over(self._file, log)
        except RayfoldError as error:
            logger.warning("the agenda is read from the log anew: %s", error)
            self._file = None
            self.timers = Timers()

    def _take_over(self, file: AgendaFile, log: AgendaLog) -> None:
        saved = file.find(PLACES, _FOLDED)
        place = _place_in(saved, log)
        if place is None and saved is not None:
            logger.warning("the agenda is read from the log anew: its file is of another state of the log")
        if place is None and file.readonly:
            file.close()
            self._file = None
            return
        if place is None:
            file.write({}, anew=True)
        else:
            self.position, self._link = place
            self._saved_at = self.position
            for key, version in file.rows(SENDS):
                stream, number = key_parts(key[:-8])[0], _NUMBER.unpack(key[-8:])[0]
                self._sends.setdefault(stream, {})[number] = _NUMBER.unpack(version)[0]
                self._count += 1
            for key, why in file.rows(PARKED):
                self.parked[key_parts(key)[0]] = why.decode()
        self.timers = Timers(file)

    def fold(self, step: StoredStep) -> None:
        """Take in what a record holds."""
        stream = step.stream
        if step.is_process:
            if step.answered is not None:
                self.close(stream, step.answered)
            for sent in step.sends:
                self._sends.setdefault(stream, {})[sent.number] = step.version
                self._count += 1
                self._changed[stream.key + _NUMBER.pack(sent.number)] = _NUMBER.pack(step.version)
            if step.parked or self.parked:
                self._note_parked(stream, step.parked)
        if step.fired is not None:
            self.timers.end(stream, *step.fired)
        for name in step.forgotten:
            self.timers.end(stream, name)
        for armed in step.timers:
            self.timers.arm(stream, armed.name, armed.due_us, step.version)

    def reached(self, record: bytes, position: int) -> None:
        """All records up to this one were taken in."""
        self.position, self._link = position, chain_of(record)

    def is_open(self, stream: StreamId, number: int) -> bool:
        """Whether this was sent and has no outcome yet."""
        return number in self._sends.get(stream, ())

    def close(self, stream: StreamId, number: int) -> None:
        """Its outcome is known."""
        sends = self._sends.get(stream)
        if sends is None or sends.pop(number, None) is None:
            return
        if not sends:
            del self._sends[stream]
        self._count -= 1
        key = stream.key + _NUMBER.pack(number)
        if self._changed.get(key) is None:
            self._changed[key] = None
        else:  # sent since the last save: the file does not have it
            del self._changed[key]

    @property
    def open_count(self) -> int:
        """How many sends have no outcome yet."""
        return self._count

    def open_sends(self) -> Iterator[OpenSend]:
        """All sends without an outcome; those of one instance in order."""
        for stream, sends in self._sends.items():
            for number, version in sends.items():
                yield OpenSend(stream, number, version)

    @property
    def unsaved(self) -> int:
        """How much has changed since the last save."""
        return len(self._changed) + self.timers.unsaved

    @property
    def worth_saving(self) -> bool:
        """Whether that, or the way that the log was read since, would take a while to be read again."""
        return bool(self.unsaved or self._parked_changed) or self.position - self._saved_at > READ_AGAIN_MAX

    def save(self) -> None:
        """Write what has changed, with the place. A file that cannot be written is not used any more."""
        self._saved_at = self.position
        if self._file is None:
            self._changed.clear()
            self._parked_changed.clear()
            self.timers.saved()
            return
        place = _PLACE.pack(_FORMAT, self.position, self._link)
        changes = self.timers.changes()
        changes |= {
            SENDS: self._changed,
            PARKED: self._parked_changed,
            PLACES: {_FOLDED: place, KINDS: self.timers.packed_kinds()},
        }
        self._file.write(changes)
        self.timers.saved()
        self._changed.clear()
        self._parked_changed.clear()

    def rows(self) -> dict[bytes, dict[bytes, bytes]]:
        """What its file would hold, by database and key, of one that has none."""
        timers = {
            database: {key: value for key, value in rows.items() if value is not None}
            for database, rows in self.timers.changes().items()
        }
        sends = {
            stream.key + _NUMBER.pack(number): _NUMBER.pack(version)
            for stream, sent in self._sends.items()
            for number, version in sent.items()
        }
        parked = {stream.key: why.encode() for stream, why in self.parked.items()}
        return {SENDS: sends, PARKED: parked, **timers}

    def shut(self) -> None:
        """Release the file. Saves nothing."""
        if self._file is not None:
            self._file.close()

    def _note_parked(self, stream: StreamId, why: str) -> None:
        if why:
            self.parked[stream] = why
            self._parked_changed[stream.key] = why.encode()
        elif self.parked.pop(stream, None) is not None:
            self._parked_changed[stream.key] = None


def is_of_another_state(file: AgendaFile, log: AgendaLog) -> bool:
    """Whether this file was saved of a log that has gone on otherwise, as before a restore."""
    saved = file.find(PLACES, _FOLDED)
    return saved is not None and _place_in(saved, log) is None


def saved_place(file: AgendaFile, log: AgendaLog) -> int:
    """Up to where the log was read for this file; 0 if it is of another log."""
    place = _place_in(file.find(PLACES, _FOLDED), log)
    return 0 if place is None else place[0]


def _place_in(saved: bytes | None, log: AgendaLog) -> tuple[int, bytes] | None:
    """The position and link of a place that was saved of this very log; None if it was not."""
    if saved is None or len(saved) != _PLACE.size or saved[0] != _FORMAT:
        return None
    _, position, link = _PLACE.unpack(saved)
    there = log.read(position - 1, 1) if position else []
    return (position, link) if position and there and chain_of(there[0]) == link else None
