"""Steps of a process in the library `eventsourcing`: its process application, run by its own runners, on SQLite.

Rule kept here: nothing that would slow it down. Three applications, as with ours: the one that asks, the process, and
the one that answers; SQLite in WAL mode with `synchronous=FULL`, its default. Its runner of one thread and that of
several are both measured, and the better one is the figure.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from eventsourcing.application import Application, ProcessingEvent
from eventsourcing.domain import Aggregate, event
from eventsourcing.system import MultiThreadedRunner, ProcessApplication, SingleThreadedRunner, System

from ..harness.contract import hold

_TIMEOUT_S: Final = 120.0


class Asker(Aggregate):
    """What asks."""

    class Asked(Aggregate.Event):
        """What the process reacts to."""

        number: int

    def ask(self, number: int) -> None:
        """One more."""
        self.trigger_event(self.Asked, number=number)


class Step(Aggregate):
    """An instance of the process."""

    class Started(Aggregate.Created):
        """An event has come in."""

        asker: UUID
        number: int

    @event(Started)
    def __init__(self, asker: UUID, number: int) -> None:
        self.number = number
        self.answered = False

    @event("WasAnswered")
    def answer(self) -> None:
        """The step is whole."""
        self.answered = True


class Answerer(Aggregate):
    """What answers."""

    class Started(Aggregate.Created):
        """That it arrived."""

        step: UUID
        number: int

    @event(Started)
    def __init__(self, step: UUID, number: int) -> None:
        self.step, self.number = step, number


class Askers(Application[UUID]):
    """Saves the events that come in."""


class Steps(ProcessApplication[UUID]):
    """The process: an event in, and an outcome."""

    def __init__(self, env: Any = None) -> None:
        super().__init__(env)
        self.whole = 0
        self.wanted = 0
        self.done = threading.Event()

    def policy(self, domain_event: Any, processing_event: ProcessingEvent[UUID]) -> None:
        """What it does about an event."""
        if isinstance(domain_event, Asker.Asked):
            processing_event.collect_events(Step(asker=domain_event.originator_id, number=domain_event.number))
        elif isinstance(domain_event, Answerer.Started):
            step: Any = self.repository.get(domain_event.step)
            step.answer()
            processing_event.collect_events(step)
            self.whole += 1
            if self.whole >= self.wanted:
                self.done.set()


class Answerers(ProcessApplication[UUID]):
    """Takes what the process asks for."""

    def policy(self, domain_event: Any, processing_event: ProcessingEvent[UUID]) -> None:
        """What it does about an event."""
        if isinstance(domain_event, Step.Started):
            processing_event.collect_events(Answerer(step=domain_event.originator_id, number=domain_event.number))


def steps_per_s(folder: Path, seconds: float, *, threads: bool) -> float:
    """Whole steps in a second, from the first event to the last outcome."""
    environment = {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_LOCK_TIMEOUT": "60"}
    for name in ("ASKERS", "STEPS", "ANSWERERS"):
        environment[f"{name}_SQLITE_DBNAME"] = str(folder / f"{name}.sqlite")
    system = System(pipes=[[Askers, Steps], [Steps, Answerers], [Answerers, Steps]])
    runner: Any = (MultiThreadedRunner if threads else SingleThreadedRunner)(system, environment)
    runner.start()
    try:
        askers, steps = runner.get(Askers), runner.get(Steps)
        steps.wanted = 1 << 62
        count, begun_s = 0, time.perf_counter()
        while time.perf_counter() - begun_s < seconds:
            asker = Asker()
            asker.ask(number=count)
            askers.save(asker)
            count += 1
        steps.wanted = count
        if steps.whole < count and not steps.done.wait(_TIMEOUT_S):
            hold([f"{steps.whole} of {count} steps were whole after {_TIMEOUT_S} s"])
        taken_s = time.perf_counter() - begun_s
        hold([] if steps.whole == count else [f"{steps.whole} steps for {count} events"])
    finally:
        runner.stop()
    return count / taken_s
