"""InHand: which command, query or event a process is working on, kept where the death of the process does not reach.

Beside steps [4], [7] and [8]. Before user code is called, the key of what it is called for is written into a small
file that is mapped into memory (0.1 us, no system call). If the process ends meanwhile, killed, by a fault in native
code, or because the code called `os._exit`, the next process finds the key there: that is evidence, and not a guess,
of what was in hand. Code that has closed the descriptors of its process is found when it comes back, and the process
is ended there: it would end at its next write, with nothing in hand. The next process counts the deaths of each key,
and what was in hand at `DEATHS_MAX` deaths, or was ended because it took too long, is refused for a while.

Rules kept here: a death counts against what was in hand and nothing else; the list is bounded in items and in time;
each entry has the incarnation of the process that ended; nothing that is read from the file is executed or decoded,
it is fixed fields. The record is the process's own: a child that user code has forked ends when it comes back from that
code (`disown`), before it writes, commits or answers anything in its parent's place.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from .printable import printable_log
from .private import open_private

__all__ = ["DEATHS_MAX", "KEY_BYTES", "REFUSED_S", "Fallen", "InHand", "key_in_hand_at_death", "keys_in_hand"]

log = printable_log(__name__)

KEY_BYTES: Final = 16

DEATHS_MAX: Final = 2
"""What was in hand when a process ended may be a victim (the process was killed from outside), and is tried once
more."""

REFUSED_S: Final = 600.0
"""How long a key is refused, and how long a first death is remembered: longer than callers retry."""

_ENTRIES_MAX: Final = 56
"""Keys remembered: more deaths than that within ten minutes are not the fault of single keys."""

_MAGIC: Final = b"rayhand1"
_HEAD: Final = struct.Struct(">8s8sB7x16s8s16s")
"""Magic, incarnation, state, key; incarnation before, and what that one had in hand when it ended."""
_NOW: Final = struct.Struct(">B7x16s")
"""State and key."""
_STATE_AT: Final = 16
_KEY_AT: Final = 24
_IDLE, _BUSY, _STUCK = 0, 1, 2
_ANY: Final = b"any of a batch".ljust(KEY_BYTES, b".")
"""The key of a batch of which it is not known what has ended the process."""

_begin: Final = _NOW.pack_into

_ENTRY: Final = struct.Struct(">16s8sBBd")
"""Key, incarnation of the process that ended last, deaths, whether it took too long, seconds since 1970."""
_ENTRIES_AT: Final = 64
_SIZE_BYTES: Final = 4096


class Fallen(NamedTuple):
    """A key that was in hand when a process ended."""

    key: bytes
    incarnation: bytes
    """The incarnation of the process that ended last."""
    deaths: int
    stuck: bool
    """The process was ended because this took too long."""
    at_s: float

    @property
    def refused(self) -> bool:
        """Whether it is not to be tried again."""
        return self.stuck or self.deaths >= DEATHS_MAX


class InHand:
    """The record of one process. One thread at a time calls `begin` and `end`; others may look."""

    def __init__(self, path: Path | None, *, was_stuck: bool = False) -> None:
        """Take over the record at `path`: what its last process had in hand has fallen once more. None: nothing is
        kept. `was_stuck`: that process was ended because of it. Raises `OSError`."""
        self.incarnation = os.urandom(8)
        self.count = 0
        """Number of what was begun: the watchdog detects progress by it."""
        self.patience = 1
        """How many times as long as others what is in hand may take."""
        self.fallen: dict[bytes, Fallen] = {}
        self._map: mmap.mmap | bytearray = bytearray(_SIZE_BYTES)
        if path is not None:
            self._map = _mapped(path)
        self._ended_at = 0
        """What `count` was at the last `end`."""
        self._take_over(was_stuck)

    def _take_over(self, was_stuck: bool) -> None:
        magic, incarnation, state, key, _, _ = _HEAD.unpack_from(self._map)
        if magic == _MAGIC:
            for index in range(_ENTRIES_MAX):
                entry = Fallen(*_ENTRY.unpack_from(self._map, _ENTRIES_AT + index * _ENTRY.size))
                if entry.deaths:
                    self.fallen[entry.key] = entry._replace(stuck=bool(entry.stuck))
        last = key if state else b""
        _HEAD.pack_into(self._map, 0, _MAGIC, self.incarnation, _IDLE, b"", incarnation, last)
        if magic == _MAGIC and state in (_BUSY, _STUCK):
            self.note(key, stuck=was_stuck or state == _STUCK, incarnation=incarnation)

    def begin(self, key: bytes, patience: int = 1) -> None:
        """User code is about to be called for this key, of which the first `KEY_BYTES` bytes count."""
        if self.fallen:
            self._check_descriptors()
        self.count += 1
        self.patience = patience
        _begin(self._map, _STATE_AT, _BUSY, key)

    def step(self, number: int) -> None:
        """The last byte of the key is this now: user code is about to be called for another part of the same batch."""
        if number:
            self._check_descriptors()
        self._map[_KEY_AT + KEY_BYTES - 1] = number

    def end(self) -> None:
        """Nothing is in hand any more."""
        self._check_descriptors()
        self._map[_STATE_AT], self._ended_at = _IDLE, self.count

    def _check_descriptors(self) -> None:
        """End this process if user code has closed its descriptors, that of this record with them. It is looked for
        after each batch, and once something has fallen after each key: of several keys it is not known which it was."""
        if not isinstance(self._map, mmap.mmap):
            return
        try:
            is_there = self._map.size() == _SIZE_BYTES  # the number may be another file's by now
        except (OSError, ValueError):
            is_there = False
        if not is_there:
            if self.count - self._ended_at > 1 and not self.fallen:
                _begin(self._map, _STATE_AT, _BUSY, _ANY)
            os._exit(1)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While the block waits for another process, neither the time nor the end of this one is held against what is
        in hand."""
        state, self._map[_STATE_AT] = self._map[_STATE_AT], _IDLE
        try:
            yield
        finally:
            self._map[_STATE_AT] = state

    def came_back(self) -> None:
        """User code has come back: a child that it has forked ends here, as it does in `begin`, `step` and `end`. For
        places that write before they reach one of these."""

    def disown(self) -> None:
        """This process was forked from the one whose record this is: it ends at the next call, whatever is called."""
        self.__class__ = _Disowned  # rather than a check of the process id for each command

    def stuck(self) -> None:
        """What is in hand takes too long, and the process is about to be ended for it."""
        self._map[_STATE_AT] = _STUCK

    def now(self) -> bytes:
        """What is in hand; empty if nothing is."""
        return bytes(self._map[_KEY_AT : _KEY_AT + KEY_BYTES]) if self._map[_STATE_AT] else b""

    def note(self, key: bytes, *, stuck: bool = False, deaths: int = 1, incarnation: bytes = b"") -> Fallen:
        """A process, this one's predecessor or another one that works for it, has ended with this in hand."""
        self._expire()
        before = self.fallen.pop(key, None)
        total = min(255, deaths + (before.deaths if before else 0))
        fallen = Fallen(
            key, incarnation or self.incarnation, total, stuck or bool(before and before.stuck), time.time()
        )
        while len(self.fallen) >= _ENTRIES_MAX:
            del self.fallen[next(iter(self.fallen))]
        self.fallen[key] = fallen
        self._write()
        return fallen

    def find(self, key: bytes) -> Fallen | None:
        """What is remembered of a key."""
        found = self.fallen.get(key)
        if found is not None and abs(time.time() - found.at_s) > REFUSED_S:
            self._expire()
            return None
        return found

    def forgive(self, key: bytes) -> None:
        """It has been done after all: the death had another cause."""
        if self.fallen.pop(key, None) is not None:
            self._write()

    def _expire(self) -> None:
        now_s = time.time()
        for key in [key for key, one in self.fallen.items() if abs(now_s - one.at_s) > REFUSED_S]:
            del self.fallen[key]

    def _write(self) -> None:
        packed = b"".join(_ENTRY.pack(*one) for one in self.fallen.values())
        self._map[_ENTRIES_AT : _ENTRIES_AT + _ENTRIES_MAX * _ENTRY.size] = packed.ljust(
            _ENTRIES_MAX * _ENTRY.size, b"\0"
        )


class _Disowned(InHand):
    """The record in a forked child. What is done next is the parent's to do, and it does it."""

    def begin(self, key: bytes, patience: int = 1) -> None:
        """See `InHand.disown`."""
        _end_child()

    def step(self, number: int) -> None:
        """See `InHand.disown`."""
        _end_child()

    def end(self) -> None:
        """See `InHand.disown`."""
        _end_child()

    def came_back(self) -> None:
        """See `InHand.disown`."""
        _end_child()


def _end_child() -> NoReturn:
    """At once: what Python does at its end, and Ray, is the parent's."""
    log.error(
        "process %d was forked by user code in process %d, returned from that code and is ended; "
        "end such a child with os._exit, or start it with subprocess or multiprocessing",
        os.getpid(),
        os.getppid(),
    )
    os._exit(1)


def keys_in_hand(path: Path) -> list[bytes] | None:
    """What the last process has in hand, and what the one before it had when it ended; None if there is no record."""
    try:
        magic, _, state, key, _, last = _HEAD.unpack_from(path.read_bytes())
    except (OSError, struct.error):
        return None
    if magic != _MAGIC:
        return None
    return [bytes(one) for one in (key if state else b"", last) if one.strip(b"\0")]


def key_in_hand_at_death(path: Path, incarnation: bytes) -> bytes | None:
    """What a process of this incarnation had in hand when it ended, empty if nothing; None if that is not known here:
    there is no such record on this machine, or it is of another incarnation."""
    try:
        content = path.read_bytes()
        magic, written, state, key, before, last = _HEAD.unpack_from(content)
    except (OSError, struct.error):
        return None
    if magic == _MAGIC and written == incarnation:
        return bytes(key) if state else b""
    if magic == _MAGIC and before == incarnation:
        return b"" if last == bytes(KEY_BYTES) else bytes(last)
    return None


def _mapped(path: Path) -> mmap.mmap:
    """The file in memory, with a shared lock on it that is held as long as it is mapped: `mmap` keeps a descriptor of
    its own of the same open file."""
    descriptor = open_private(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if os.fstat(descriptor).st_nlink == 0:  # it was removed as an old one between the two
            return _mapped(path)
        if os.fstat(descriptor).st_size != _SIZE_BYTES:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, _SIZE_BYTES)
        return mmap.mmap(descriptor, _SIZE_BYTES)
    finally:
        os.close(descriptor)
