"""A process whose disk is full while a DuckDB handler runs: files of it may have a few megabytes, then more.

Prints what became of the events: the error, the quarantine, and what is in the table once there is room again.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path

from rayfold.runtime.domain.aggregate import Aggregate, Shared, evolve
from rayfold.runtime.domain.messages import Event, Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.read_store import DuckDb
from rayfold.runtime.domain.sql import Sql
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.stream import ANY, StreamId


class Filled(Event):
    rows: int


class Tank(Aggregate, placement=Shared()):
    @evolve
    def filled(self, event: Filled) -> None: ...


class Rows(Query[int]):
    pass


class Table(Projection, store=DuckDb("CREATE TABLE IF NOT EXISTS t (a VARCHAR)"), on_failure="quarantine"):
    sql: Sql

    @project
    def filled(self, event: Filled) -> None:
        self.sql("INSERT INTO t SELECT md5(range::VARCHAR) || range FROM range(?)", [event.rows])

    @answer
    def rows(self, query: Rows) -> int:
        return int(self.sql("SELECT count(*) FROM t").fetchone()[0])


def main(folder: Path) -> None:
    """One small event, then one that needs 100 MB."""
    log = MemoryLog()
    epoch = log.activate()
    for rows in (10, 2_000_000):
        event = NewEvent("Filled", 1, encode_message(Filled(rows=rows)))
        log.append(epoch, [Append(StreamId("Tank", "a"), ANY, (event,), os.urandom(16), bytes(16))])
    model = ReadModel(Table, Catalogue([Tank], [Table]), {0: log}, directory=folder)
    model.open()
    model.catch_up(0, 1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, resource.RLIM_INFINITY))
    for _ in range(4):
        try:
            model.catch_up(0)
            print("taken in")
        except RayfoldError as error:
            print(type(error).__name__)
    print(model.positions, len(model.quarantined))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    model.catch_up(0)
    print(model.positions, len(model.quarantined), model.failed)
    model.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
