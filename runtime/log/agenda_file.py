"""AgendaFile: how far a partition's log was read for its agenda, and what was still to be done there, in a file.

Beside step [5], for `processes/agenda.py`. Everything in it is a function of the log: it saves the time to read that
again, and nothing is lost with it. A million timers are a million rows, of which a start reads the first.

Layout, an LMDB environment of its own beside the logs; numbers have 8 bytes, big-endian::

    timers    when it is due, in microseconds since 1970 | stream | name    ->  version of the event that armed it
    armed     stream | name                                                ->  when it is due | version
    sends     stream | number of what is sent                              ->  version of the event that has it
    parked    stream                                                       ->  why it stands still
    places    the name of a place                                          ->  its value

Rules kept here: rows and places change in one transaction, fsynced; a file that cannot be opened is left alone, and its
log is read instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import StorageFailed
from ..private import make_private_folder
from .environment import Environment

if TYPE_CHECKING:
    import lmdb

__all__ = ["ARMED", "PARKED", "PLACES", "SENDS", "TIMERS", "AgendaFile", "open_agenda_file"]

TIMERS: Final = b"timers"
ARMED: Final = b"armed"
SENDS: Final = b"sends"
PARKED: Final = b"parked"
PLACES: Final = b"places"

_DATABASES: Final = (TIMERS, ARMED, SENDS, PARKED, PLACES)

_MAP_BYTES: Final = 1 << 26
"""The map of a new one: sparse; doubled whenever it is full."""

Changes = Mapping[bytes, Mapping[bytes, bytes | None]]
"""By database and key: the new value, or None for what is removed."""


class AgendaFile:
    """The rows of one partition. Used from one thread."""

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    @property
    def readonly(self) -> bool:
        """Whether it was opened beside the process that writes it."""
        return self._environment.readonly

    def rows(self, database: bytes, after: bytes = b"", limit: int = 1 << 62) -> list[tuple[bytes, bytes]]:
        """The rows behind a key, in the order of their keys, at most so many."""

        def read(transaction: lmdb.Transaction[bytes]) -> list[tuple[bytes, bytes]]:
            cursor = transaction.cursor(self._environment.database(database))
            found: list[tuple[bytes, bytes]] = []
            there = cursor.set_range(after) if after else cursor.first()
            if there and cursor.key() == after:
                there = cursor.next()
            for row in cursor.iternext() if there else ():
                if len(found) >= limit:
                    break
                found.append(row)
            return found

        return self._environment.read(read)

    def find(self, database: bytes, key: bytes) -> bytes | None:
        """The value of one row; None if there is none."""
        return self._environment.read(lambda transaction: transaction.get(key, db=self._environment.database(database)))

    def count(self, database: bytes) -> int:
        """How many rows there are."""
        return self._environment.entries(database)

    def write(self, changes: Changes, *, anew: bool = False) -> None:
        """Put and remove rows in one transaction; they are on the disk when this returns. `anew`: everything that is
        there goes first. Raises `StorageFailed`."""

        def put(transaction: lmdb.Transaction[bytes]) -> None:
            for name in _DATABASES if anew else ():
                transaction.drop(self._environment.database(name), delete=False)
            for name, rows in changes.items():
                database = self._environment.database(name)
                for key, value in sorted(rows.items()):
                    if value is None:
                        transaction.delete(key, db=database)
                    else:
                        transaction.put(key, value, db=database)

        self._environment.write(put)

    def close(self) -> None:
        """Release the file. Closing twice is allowed."""
        self._environment.close()


def open_agenda_file(folder: Path, name: str, *, readonly: bool = False) -> AgendaFile:
    """The file in this folder, made if it is missing; errors call it `name`. `readonly`: beside the process that writes
    it. Raises `Damaged`, `StorageFailed`, `StoreMismatch`."""
    try:
        if not readonly:
            make_private_folder(folder)
    except OSError as error:
        raise StorageFailed(str(folder), error.strerror or str(error)) from error
    map_bytes = 0 if readonly else _MAP_BYTES
    return AgendaFile(Environment(folder, name, readonly=readonly, map_bytes=map_bytes, databases=_DATABASES))
