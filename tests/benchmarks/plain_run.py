"""The flights through partitions and read models as plain Python, without Ray and without a disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from rayfold import Projection, Query
from rayfold.benchmarks.flights.domain import Aircraft, Airport
from rayfold.benchmarks.flights.feed import Feed
from rayfold.benchmarks.flights.figures import (
    AirportHours,
    Distances,
    EveryAircraft,
    EveryCarrier,
    EveryHour,
    EveryRoute,
    Punctuality,
    Routes,
)
from rayfold.benchmarks.flights.verification import Ledger, LogCheck
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import PackedCommand, pack
from rayfold.runtime.encoding.query_batch import PackedQuery
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.stream import partition_of
from rayfold.runtime.write.write_loop import WriteLoop

PARTITIONS = 2
BATCH = 500

QUESTIONS: dict[type[Projection], Query[Any]] = {
    Punctuality: EveryCarrier(),
    Routes: EveryRoute(),
    AirportHours: EveryHour(),
    Distances: EveryAircraft(),
}


class PlainRun:
    """A store in memory, into which flights can be sent again and again."""

    def __init__(self) -> None:
        self.catalogue = Catalogue([Airport, Aircraft], list(QUESTIONS))
        self.logs = [MemoryLog() for _ in range(PARTITIONS)]
        self._loops = [WriteLoop(number, log, self.catalogue) for number, log in enumerate(self.logs)]
        for loop in self._loops:
            loop.activate()

    def send(self, feed: Feed) -> Ledger:
        """Every command in order, in batches, and what each was answered."""
        ledger = Ledger(len(feed))
        waiting: list[list[tuple[int, PackedCommand]]] = [[] for _ in self._loops]
        for number, envelope in enumerate(feed.envelopes()):
            packed, _ = pack(envelope)
            partition = partition_of(packed.stream, PARTITIONS)
            waiting[partition].append((number, packed))
            if len(waiting[partition]) == BATCH:
                self._execute(partition, waiting[partition], ledger)
        for partition, batch in enumerate(waiting):
            self._execute(partition, batch, ledger)
        return ledger

    def events(self) -> int:
        """How many are stored."""
        return sum(log.head() for log in self.logs)

    def rows(self, projection: type[Projection], question: Query[Any] | None = None) -> tuple[Any, ...]:
        """A read model of everything stored, asked for all its rows."""
        question = question or QUESTIONS[projection]
        model = ReadModel(projection, Catalogue([Airport, Aircraft], [projection]), dict(enumerate(self.logs)))
        for partition in range(PARTITIONS):
            model.catch_up(partition)
        asked = [PackedQuery(question.message_name, encode_message(question))]
        (answer,) = model.answer(asked, lambda answers: answers)
        assert isinstance(answer, tuple), answer
        return answer

    def walk(self, feed: Feed, ledger: Ledger) -> LogCheck:
        """Every event against the receipts."""
        return walk(feed, ledger, self.logs)

    def _execute(self, partition: int, batch: list[tuple[int, PackedCommand]], ledger: Ledger) -> None:
        outcomes = self._loops[partition].execute([packed for _, packed in batch]).outcomes
        for (number, _), outcome in zip(batch, outcomes, strict=True):
            ledger.note(number, outcome)
        batch.clear()


def walk(feed: Feed, ledger: Ledger, logs: Iterable[Any]) -> LogCheck:
    """The walk over logs that need not be those of a run."""
    check = LogCheck(feed, ledger)
    for partition, log in enumerate(logs):
        check.partition(partition, log)
    check.finish()
    return check


def table_of(*flights: dict[str, Any]) -> pd.DataFrame:
    """A table of flights that never were, in the form of `read_flights`."""
    usual = {
        "year": 2013,
        "month": 1,
        "day": 1,
        "dep_time": 600.0,
        "dep_delay": 0.0,
        "arr_time": 800.0,
        "arr_delay": 0.0,
        "carrier": "UA",
        "flight": 1,
        "tailnum": "N1",
        "origin": "EWR",
        "dest": "IAH",
        "air_time": 100.0,
        "distance": 500,
        "hour": 6,
        "scheduled_min": 0,
        "departed_min": 0,
        "due_min": 120,
        "landed_min": 120,
    }
    return pd.DataFrame([usual | flight for flight in flights])
