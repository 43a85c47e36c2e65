"""What goes on without end is stopped: who sends to itself, processes that answer each other, timers of no time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve, woken
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.domain.outputs import Send, Wake
from rayfold.runtime.processes import courier, delivery, step
from rayfold.runtime.processes.inputs import Retry, Skip
from rayfold.runtime.processes.process import Process, accepted, react
from tests.support.process_world import World

HOPS = 40
WHY = "it goes on without end: over 10,000 inputs and commands have followed from one another, each at once; "


@pytest.fixture(autouse=True)
def few_hops(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (courier, delivery, step):
        monkeypatch.setattr(module, "HOPS_MAX", HOPS)


class Turn(Command):
    pass


class Rest(Command):
    every_s: float


class Turned(Event):
    pass


class Rested(Event):
    every_s: float


class Wheel(Aggregate, placement=Shared()):
    """Sends to itself at each turn, or wakes itself."""

    turns: int = 0
    every_s: float = 0.0

    @decide
    def turn(self, command: Turn) -> Iterator[Turned | Send]:
        yield Turned()
        yield Send(Wheel, self.id, Turn())

    @decide
    def rest(self, command: Rest) -> Iterator[Rested | Wake]:
        yield Rested(every_s=command.every_s)
        yield Wake("again", after=timedelta(seconds=command.every_s))

    @woken("again")
    def again(self) -> Iterator[Turned | Wake]:
        yield Turned()
        yield Wake("again", after=timedelta(seconds=self.every_s))

    @evolve
    def turned(self, event: Turned) -> None:
        self.turns += 1

    @evolve
    def rested(self, event: Rested) -> None:
        self.every_s = event.every_s


class Say(Command):
    pass


class Said(Event):
    pass


class Room(Aggregate, placement=Shared()):
    said: int = 0

    @decide
    def say(self, command: Say) -> Said:
        return Said()

    @evolve
    def has_said(self, event: Said) -> None:
        self.said += 1


class Parrot(Process):
    """Answers each sentence, those of its own too."""

    @react(starts=True)
    def answer(self, event: Said) -> Send:
        return Send(Room, self.id, Say())


class Ticked(Event):
    pass


class Clock(Process):
    ticks: int = 0

    @react(starts=True)
    def said(self, event: Said) -> Wake:
        return Wake("tick", after=timedelta(0))

    @woken("tick")
    def tick(self) -> Iterator[Ticked | Wake]:
        yield Ticked()
        yield Wake("tick", after=timedelta(0))

    @evolve
    def ticked(self, event: Ticked) -> None:
        self.ticks += 1


class Pages(Process):
    """Sends the next command once the last one was accepted."""

    @react(starts=True)
    def said(self, event: Turned) -> Send:
        return Send(Room, self.id, Say())

    @accepted(Say)
    def next(self) -> Send:
        return Send(Room, self.id, Say())


def test_an_aggregate_that_sends_to_itself_ends_there() -> None:
    world = World([Wheel], [])
    world.execute(Wheel, "w", Turn())
    world.run()
    assert world.state(Wheel, "w").turns == HOPS + 2  # type: ignore[attr-defined]
    assert sum(one.facts().refused for one in world.couriers) == 1
    world.execute(Wheel, "w", Turn())
    world.run()
    assert world.state(Wheel, "w").turns == 2 * (HOPS + 2)  # type: ignore[attr-defined]


def test_an_aggregate_that_wakes_itself_at_once_ends_there_and_one_that_pauses_goes_on() -> None:
    world = World([Wheel], [])
    world.execute(Wheel, "w", Rest(every_s=0.5))
    world.run(for_us=60_000_000)
    assert world.state(Wheel, "w").turns == HOPS + 1  # type: ignore[attr-defined]
    assert sum(one.agenda.timers.count for one in world.couriers) == 0
    world.execute(Wheel, "v", Rest(every_s=1.0))
    world.run(for_us=60_000_000)
    assert world.state(Wheel, "v").turns == 60  # type: ignore[attr-defined]


def test_processes_that_answer_themselves_are_parked_and_go_on_for_as_long_again() -> None:
    world = World([Room], [Parrot])
    world.execute(Room, "r", Say())
    world.run()
    said = world.state(Room, "r").said  # type: ignore[attr-defined]
    assert HOPS // 2 <= said <= HOPS + 2
    assert world.state(Parrot, "r").progress.parked.startswith(WHY)  # type: ignore[attr-defined]
    world.execute(Parrot, "r", Retry(by="ada", reason="how far does it go?"))
    world.run()
    assert said + HOPS // 2 <= world.state(Room, "r").said <= 2 * said + 2  # type: ignore[attr-defined]
    world.execute(Parrot, "r", Skip(by="ada", reason="enough"))
    world.run()
    assert not world.state(Parrot, "r").progress.parked  # type: ignore[attr-defined]


def test_a_process_that_wakes_itself_at_once_is_parked() -> None:
    world = World([Room], [Clock])
    world.execute(Room, "r", Say())
    world.run()
    one = world.state(Clock, "r")
    assert one.progress.parked.startswith(WHY)  # type: ignore[attr-defined]
    assert HOPS - 2 <= one.ticks <= HOPS  # type: ignore[attr-defined]


def test_a_process_that_sends_for_ever_what_is_accepted_is_parked() -> None:
    world = World([Wheel, Room], [Pages])
    world.execute(Wheel, "r", Rest(every_s=3_600))
    world.run(for_us=3_600_000_000)
    assert world.state(Pages, "r").progress.parked.startswith(WHY)  # type: ignore[attr-defined]


def test_what_one_event_leads_to_counts_once_however_much_it_is() -> None:
    class Fan(Process):
        @react(starts=True)
        def said(self, event: Turned) -> Iterator[Send]:
            for number in range(3 * HOPS):
                yield Send(Room, str(number), Say())

    world = World([Wheel, Room], [Fan])
    world.execute(Wheel, "r", Rest(every_s=3_600))
    world.run(for_us=3_600_000_000)
    progress = world.state(Fan, "r").progress  # type: ignore[attr-defined]
    assert (progress.parked, progress.sends) == ("", {})
