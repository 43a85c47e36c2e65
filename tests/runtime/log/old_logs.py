"""Stores as older versions of Rayfold have written them.

`format_2.json` has every pair of a log that the last version with format 2 wrote: two aggregates `Stock`, seven
commands, nine events of two kinds, and a snapshot. The classes that wrote it are those below, without what they have
gained since. A log of format 1 is made of it: its stream index never lagged, and it did not store how far it is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import lmdb

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.durable_files import encode_facts
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, PackedCommand, pack
from rayfold.runtime.log.format import DATABASES, META, META_FORMAT, META_INDEXED, STREAMS, encode_meta, pack_position
from rayfold.runtime.log.index_buffer import appends_in, index_entry
from rayfold.runtime.store.store import Store, open_store
from rayfold.runtime.stream import StreamId

NAILS, SCREWS = StreamId("Stock", "nails"), StreamId("Stock", "screws")


class Restock(Command):
    pieces: int
    note: str = ""


class Take(Command):
    pieces: int
    reason: str | None = None
    """What it has gained since."""


class Changed(Event):
    by: int


class Noted(Event):
    text: str


class Stock(Aggregate, placement=Shared(), snapshot_every=4):
    pieces: int = 0

    @decide
    def restock(self, command: Restock) -> list[Changed | Noted]:
        return [Changed(by=command.pieces), *([Noted(text=command.note)] if command.note else [])]

    @decide
    def take(self, command: Take) -> Changed:
        return Changed(by=-command.pieces)

    @evolve
    def changed(self, event: Changed) -> None:
        self.pieces += event.by

    @evolve
    def noted(self, event: Noted) -> None:
        pass


CATALOGUE = Catalogue([Stock])

STORED: list[tuple[StreamId, Command, int, int]] = [
    (NAILS, Restock(pieces=10), 1, 1),
    (NAILS, Restock(pieces=5, note="found"), 3, 3),
    (NAILS, Take(pieces=3), 4, 4),
    (SCREWS, Restock(pieces=7, note="new"), 6, 2),
    (NAILS, Take(pieces=2), 7, 5),
    (NAILS, Restock(pieces=1), 8, 6),
    (SCREWS, Take(pieces=1), 9, 3),
]
"""Stream, command, and the position and version of the receipt that it was given, in the order of their ids from 1."""


def sent_again() -> list[PackedCommand]:
    """The commands that are stored, as a program of today sends them."""
    return [
        pack(Envelope(Stock, stream.id, command, UUID(int=number)))[0]
        for number, (stream, command, _, _) in enumerate(STORED, 1)
    ]


def old_store(folder: Path, log_format: int) -> Store:
    """A store whose log has format 1 or 2."""
    facts: dict[str, Any] = json.loads((Path(__file__).parent / "format_2.json").read_text())
    manifest = {name: value for name, value in facts["manifest"].items() if name != "checksum"}
    pairs = {
        name: {bytes.fromhex(key): bytes.fromhex(value) for key, value in facts["pairs"][name.decode()]}
        for name in DATABASES
    }
    if log_format == 1:
        records = [pairs[b"events"][key] for key in sorted(pairs[b"events"])]
        pairs[STREAMS] = dict(index_entry(events) for events in appends_in(records))
        del pairs[META][META_INDEXED]
        pairs[META][META_FORMAT] = encode_meta(META_FORMAT, pack_position(1))
    (folder / "partition-00000").mkdir(parents=True)
    environment = lmdb.open(str(folder / "partition-00000"), max_dbs=16, lib_version=0)
    with environment.begin(write=True) as transaction:
        for name, content in pairs.items():
            database = environment.open_db(name, txn=transaction)
            for key, value in content.items():
                transaction.put(key, value, db=database)
    environment.close()
    (folder / "store.json").write_bytes(encode_facts(manifest))
    return open_store(folder)
