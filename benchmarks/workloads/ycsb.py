"""YCSB A to F, mapped onto aggregates and a read model.

After Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", 2010: records of ten fields of 100 characters.

=================== ===================================================================================
record              an aggregate `Row` with ten fields
insert              `Insert`, all fields: one event of 1 KB
update              `Update`, one field: one event of 100 bytes
read                a query to the read model `Rows`, whole row; it may be a little behind the writes
scan                a query to `Rows`: up to 100 rows from a key on, in the order of keys
read-modify-write   a query, then `Update`; the two are not one step, as in YCSB itself
=================== ===================================================================================

| workload | mix | keys |
|---|---|---|
| A | 50 % read, 50 % update | zipfian |
| B | 95 % read, 5 % update | zipfian |
| C | 100 % read | zipfian |
| D | 95 % read, 5 % insert | the latest inserted most of all |
| E | 95 % scan, 5 % insert | zipfian |
| F | 50 % read, 50 % read-modify-write | zipfian |

The oracle: after the run, every field of every row in the read model is that of the acknowledged write with the highest
version, known from the receipts alone.
"""

from __future__ import annotations

import random
from bisect import bisect_left, insort
from typing import Final, NamedTuple

from pydantic import Field

from rayfold import (
    Aggregate,
    Command,
    Event,
    Projection,
    Query,
    Recorded,
    Rejected,
    Shared,
    answer,
    decide,
    evolve,
    project,
)

from .keys import draw

FIELDS: Final = 10
FIELD_CHARS: Final = 100
SCAN_MAX: Final = 100

WORKLOADS: Final[dict[str, dict[str, int]]] = {
    "A": {"read": 50, "update": 50},
    "B": {"read": 95, "update": 5},
    "C": {"read": 100},
    "D": {"read latest": 95, "insert": 5},
    "E": {"scan": 95, "insert": 5},
    "F": {"read": 50, "read-modify-write": 50},
}
"""Percent of each operation."""


class Insert(Command):
    """Make a row."""

    values: tuple[str, ...] = Field(min_length=FIELDS, max_length=FIELDS)


class Update(Command):
    """Change one field."""

    field: int = Field(ge=0, lt=FIELDS)
    value: str


class Inserted(Event):
    """A row came into being."""

    values: tuple[str, ...]


class Updated(Event):
    """A field changed."""

    field: int
    value: str


class Row(Aggregate, placement=Shared()):
    """A record. It keeps nothing but whether it is there: no rule needs the fields."""

    present: bool = False

    @decide(creates=True)
    def insert(self, command: Insert) -> Inserted | Rejected:
        """Once."""
        return Rejected("there_already") if self.present else Inserted(values=command.values)

    @decide
    def update(self, command: Update) -> Updated:
        """Any field of a row that is there."""
        return Updated(field=command.field, value=command.value)

    @evolve
    def inserted(self, event: Inserted) -> None:
        self.present = True

    @evolve
    def updated(self, event: Updated) -> None:
        """Still there."""


class ReadRow(Query[list[str]]):
    """All fields of a row."""

    row: str


class Scan(Query[list[list[str]]]):
    """Rows in the order of their keys."""

    first: str
    limit: int = Field(ge=1, le=SCAN_MAX)


class AllRows(Query[dict[str, list[str]]]):
    """Everything: what the oracle reads."""


class Rows(Projection):
    """Every row, and its key in order."""

    rows: dict[str, list[str]] = {}
    order: list[str] = []

    @project
    def inserted(self, event: Inserted, recorded: Recorded) -> None:
        self.rows[recorded.stream.id] = list(event.values)
        insort(self.order, recorded.stream.id)

    @project
    def updated(self, event: Updated, recorded: Recorded) -> None:
        self.rows[recorded.stream.id][event.field] = event.value

    @answer
    def row(self, query: ReadRow) -> list[str]:
        """Empty, if it is not there, or not yet."""
        return self.rows.get(query.row, [])

    @answer
    def scan(self, query: Scan) -> list[list[str]]:
        """From the first key that is not before."""
        start = bisect_left(self.order, query.first)
        return [self.rows[key] for key in self.order[start : start + query.limit]]

    @answer
    def all(self, query: AllRows) -> dict[str, list[str]]:
        return self.rows


class Operation(NamedTuple):
    """One operation of a workload."""

    number: int
    kind: str
    row: str
    """For `read latest`: none, since the latest is only known while it runs."""
    field: int
    limit: int


def row_name(number: int) -> str:
    """The key of the n-th row; the same as the keys of the other workloads."""
    return f"account-{number:06d}"


def value(number: int) -> str:
    """A field's content: `number` and what fills it up."""
    return f"{number:020d}".ljust(FIELD_CHARS, "x")


def drawn(workload: str, seed: int, rows: int, count: int) -> list[Operation]:
    """So many operations over so many rows; inserts come after those."""
    chosen = random.Random(f"ycsb/{workload}/{seed}")
    mix = WORKLOADS[workload]
    kinds = chosen.choices(list(mix), list(mix.values()), k=count)
    keys = draw("zipfian", seed, rows, count)
    operations, inserted = [], rows
    for number, (kind, key) in enumerate(zip(kinds, keys, strict=True)):
        if kind == "insert":
            key, inserted = row_name(inserted), inserted + 1
        operations.append(Operation(number, kind, key, chosen.randrange(FIELDS), chosen.randint(1, SCAN_MAX)))
    return operations
