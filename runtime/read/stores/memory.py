"""A read model in memory: the declared fields of the projection, and checkpoint files that save reading the whole log.

One of the stores of `domain/read_store.py`. A checkpoint file is written beside its place, fsynced, moved there, and
the folder fsynced: it is there whole or not at all. Its bytes::

    "rayfold checkpoint 1\\n" | crc (4) | length of the checkpoint (4) | checkpoint | state (`saved_state.py`)

with the crc over all that follows it. Nothing of it is ever unpickled.

Rules kept here:
- a handler that fails half-way is undone by going back to the last copy of the state, never by examining what it
  changed: so an event that succeeds costs nothing for it. The caller replays the log from there
- a copy is restored and compared before it counts; one that differs is none
- the copy is the newest of two: the checkpoint file, or the one that `keep` made when an event failed before
- a file that is damaged is passed over, and logged: the read model is then made from the log

Encoding holds the lock of the read model, writing does not: the state of a million accounts (`dict[str, int]`) is
encoded in about 0.6 s, and so much longer a query may wait while a checkpoint of it is made.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any, Final

from ...durable_files import write_durably
from ...encoding.saved_state import STATE_BYTES_MAX, check_restored, checked_state, decode_state
from ...errors import DefinitionError, InvalidMessage, StorageFailed
from ...printable import printable_log

__all__ = ["MemoryStore"]

log = printable_log(__name__)

FILE: Final = "checkpoint"
_MAGIC: Final = b"rayfold checkpoint 1\n"
_CRC_AT: Final = len(_MAGIC)

COMPARED_BYTES_MAX: Final = 256 * 1024
"""A copy up to this size is compared with the state while the lock is held, in some milliseconds; a larger one is
restored and encoded again afterwards, which needs no lock."""

_FILE_BYTES_MAX: Final = STATE_BYTES_MAX + (1 << 20)
"""A checkpoint beside the state is under 200 KiB, with a hundred events in quarantine."""


class MemoryStore:
    """The `ReadStore` of `domain/read_store.py` in memory."""

    def __init__(self) -> None:
        self._model: Any = None
        self._path: Path | None = None
        self._latest = b""
        self._copies = 0
        """Counts the copies, so that an old one which is written late does not pass for the newest."""
        self._in_file = 0
        """The number of the copy that the file holds; 0 for none that may be used."""
        self._kept: tuple[int, bytes] = (0, b"")

    def open(self, model: Any, directory: Path | None) -> bytes | None:
        """See `ReadStore`. Fills the fields of `model` from the checkpoint file, if there is a good one."""
        self._model = model
        if directory is not None:
            self._path = directory / FILE
            self._copies = self._in_file = 1
        return self._restore()

    def begin(self, *, reading: bool = False) -> None:
        """Nothing to do: the fields are there."""

    def commit(self, checkpoint: bytes) -> None:
        """Remember the place. Nothing is written: `encode` and `write` do that, when it is due."""
        self._latest = checkpoint

    def roll_back(self) -> bytes | None:
        """Put the newest copy of the state back, or the defaults where there is none."""
        return self._restore()

    def close(self) -> None:
        """Nothing to release."""

    def encode(self) -> tuple[int, bytes]:
        """The number and the bytes of a copy of the state as it is now. Raises `DefinitionError` or `InvalidMessage`
        for a state that cannot be saved."""
        state = checked_state(self._model, COMPARED_BYTES_MAX)
        content = b"%b%b%b" % (len(self._latest).to_bytes(4, "big"), self._latest, state)
        self._copies += 1
        return self._copies, content

    def write(self, copy: tuple[int, bytes]) -> int:
        """Make a copy the checkpoint file; returns its size in bytes. May run while others use the store.
        Raises `StorageFailed`, and `InvalidMessage` for a copy that would not be restored as the same."""
        assert self._path is not None  # without a folder nothing is written and read
        number, content = copy
        check_copy(type(self._model), content)
        try:
            write_durably(self._path, _MAGIC + zlib.crc32(content).to_bytes(4, "big"), content)
        except OSError as error:
            raise StorageFailed(str(self._path), f"cannot write a checkpoint: {error.strerror or error}") from error
        self._in_file = number
        return _CRC_AT + 4 + len(content)

    def keep(self) -> None:
        """Keep a copy of the state as it is now, to go back to. A state that cannot be saved leaves none at all."""
        try:
            self._kept = self.encode()
            check_copy(type(self._model), self._kept[1])
        except (DefinitionError, InvalidMessage):
            self._copies += 1
            self._kept = (self._copies, b"")

    def _restore(self) -> bytes | None:
        number, content = self._kept
        if self._path is not None and self._in_file > number:
            content = self._from_file()
        checkpoint, state = _split(content)
        model = self._model
        try:
            fields = vars(decode_state(type(model), state)) if state else vars(type(model)())
        except InvalidMessage as error:
            log.warning("the checkpoint %s is not used, the log is read instead: %s", self._path, error)
            checkpoint, fields = b"", vars(type(model)())
        model.__dict__.clear()
        model.__dict__.update(fields)
        self._latest = checkpoint
        return checkpoint or None

    def _from_file(self) -> bytes:
        """The content of the checkpoint file; none if it is missing or damaged."""
        assert self._path is not None  # without a folder nothing is written and read
        try:
            with self._path.open("rb") as file:
                data = file.read(_FILE_BYTES_MAX)
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise StorageFailed(str(self._path), f"cannot read the checkpoint: {error.strerror or error}") from error
        crc, content = data[_CRC_AT : _CRC_AT + 4], data[_CRC_AT + 4 :]
        if data.startswith(_MAGIC) and zlib.crc32(content).to_bytes(4, "big") == crc:
            return content
        log.warning("the checkpoint %s is damaged and not used, the log is read instead", self._path)
        return b""


def check_copy(cls: Any, content: bytes) -> None:
    """Restore a copy that was not compared with the state itself, and compare. Raises `InvalidMessage`."""
    state = _split(content)[1]
    if len(state) > COMPARED_BYTES_MAX:
        check_restored(cls, state)


def _split(content: bytes) -> tuple[bytes, bytes]:
    """The checkpoint and the state in the content of a copy."""
    end = 4 + int.from_bytes(content[:4], "big")
    return content[4:end], content[end:]
