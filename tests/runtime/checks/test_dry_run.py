"""A dry run of new code over a log: states of equal content are equal, whatever objects they are made of."""

from __future__ import annotations

import functools
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rayfold import Aggregate, Command, Event, Receipt, Shared, decide, evolve
from rayfold.runtime.checks.dry_run import dry_run
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.write.write_loop import WriteLoop


class Add(Command):
    number: int


class Added(Event):
    number: int


def release(more: int = 0) -> Catalogue:
    """A release, with classes of its own; `more` is what its handlers put in place of what was added."""

    class Plain:
        def __init__(self, number: int) -> None:
            self.number = number

    class Slotted:
        __slots__ = ("inside",)

        def __init__(self, inside: Any) -> None:
            self.inside = inside

    class Empty:
        pass

    class Pair(NamedTuple):
        left: int

    @dataclass(frozen=True)
    class Price:
        cents: int

        @functools.cached_property
        def text(self) -> str:
            return str(self.cents)

    class Box(Aggregate, name="Box", placement=Shared(), snapshot_every=0):
        plain: list[Plain] = field(default_factory=list)
        slotted: dict[str, Slotted] = field(default_factory=dict)
        queue: deque[Price] = field(default_factory=deque)
        pairs: dict[Pair, Price] = field(default_factory=dict)
        empty: Empty | None = None
        unknown: float = 0.0

        @decide
        def add(self, command: Add) -> Added:
            return Added(number=command.number)

        @evolve
        def added(self, event: Added) -> None:
            number = event.number + more
            self.plain.append(Plain(number))
            self.slotted["a"] = Slotted([Plain(number)])
            self.queue.append(Price(number))
            self.pairs[Pair(1)] = Price(number)
            self.empty = Empty()
            self.unknown = float("nan")

    return Catalogue([Box])


def test_states_of_equal_content_are_equal_whatever_they_are_made_of() -> None:
    log, first = MemoryLog(), release()
    loop = WriteLoop(0, log, first)
    loop.activate()
    [box] = first.aggregates.values()
    [outcome] = loop.execute([pack(Envelope(box, "a", Add(number=1)))[0]]).outcomes
    assert isinstance(outcome, Receipt)
    same = dry_run(release(), {0: log}, against=first)
    assert (same.compared, same.differing) == (1, [])
    other = dry_run(release(more=1), {0: log}, against=first)
    assert [one.field for one in other.differing] == ["plain", "slotted", "queue", "pairs"]
