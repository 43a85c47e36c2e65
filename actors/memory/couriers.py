"""MemoryCouriers: the couriers of a system in memory, which carry out what follows from a batch before it is answered.

Beside step [5], in place of `courier/courier_thread.py`. Before it: a partition has committed, or a test has moved the
clock. After it: everything that follows has happened, up to timers that are due later.

The couriers are those of production (`runtime/processes/courier.py`). What is different is that nothing is on its way
when a call returns: a test executes a command and reads what became of it, the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from ...runtime.effects.call import Call
from ...runtime.effects.call_attempt import CallAttempt
from ...runtime.effects.call_queue import RunnerName
from ...runtime.effects.running import called_now
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.envelope import PackedCommand
from ...runtime.encoding.outcome import Outcome
from ...runtime.printable import printable_log
from ...runtime.processes.agenda import Agenda
from ...runtime.processes.courier import Courier, CourierFacts, Delivery
from ...runtime.processes.places import SENDS_OF_AGGREGATES, Places
from ...runtime.store.memory_logs import MemoryLogs
from .clock import Clock

__all__ = ["Fake", "MemoryCouriers"]

log = printable_log(__name__)

ROUNDS_MAX: Final = 1_000
"""Rounds of all couriers in which something was carried out, for one call. More of them are processes that send one
another commands without end."""

Fake = Callable[[Any, Call], Any]
"""What a test has called in place of a function of `Effects`: given the event and the `Call`, it returns a result."""

Decide = Callable[[int, Sequence[PackedCommand]], list[Outcome]]
"""Has a partition decide commands."""


class MemoryCouriers:
    """One courier for each partition. Used on the loop of the system alone."""

    def __init__(
        self, catalogue: Catalogue, logs: MemoryLogs, clock: Clock, decide: Decide, fakes: Mapping[str, Fake | None]
    ) -> None:
        """Of all processes from the first event on: those that were delivered before are repeats. `fakes`: what is
        called in place of each `@effect` and `@settle` function, by its name with that of its class."""
        self._catalogue, self._fakes = catalogue, fakes
        self._clock, self._decide, self._partition_of = clock, decide, logs.partition_of
        self._couriers: list[Courier] = []
        self._running = False
        if not catalogue.has_outputs:
            return
        for number, one in enumerate(logs.logs):
            names = [*catalogue.processes, SENDS_OF_AGGREGATES]
            places = Places(dict.fromkeys(names, 0))
            agenda = Agenda()
            agenda.open(one)
            courier = Courier(number, logs.partitions, logs.partition_of, catalogue, one, agenda, places)
            for effects in catalogue.processes:
                courier.runner_is_up(RunnerName(effects), True)
            self._couriers.append(courier)

    def facts(self, partition: int) -> CourierFacts | None:
        """For a status."""
        return self._couriers[partition].facts() if self._couriers else None

    def run(self) -> None:
        """Carry out what follows from what is committed, until nothing is left but timers that are due later. What has
        no end goes on with the next call."""
        if self._running or not self._couriers:
            return
        self._running = True
        try:
            for _ in range(ROUNDS_MAX):
                if not self._step():
                    return
        finally:
            self._running = False
        what = "processes go on without end: one reacts to what it leads to itself; stopped after %d rounds"
        log.error(what, ROUNDS_MAX)

    def advance(self, to_us: int) -> None:
        """Let time pass: what is due by then is carried out at its own time, in order."""
        while (due_us := self._next_us()) is not None and due_us <= to_us:
            self._clock.show(max(due_us, self._clock.now_us()))
            self.run()
            if self._next_us() == due_us:
                break  # nothing more comes of it
        self._clock.show(to_us)
        self.run()

    def _next_us(self) -> int | None:
        return min((due_us for one in self._couriers if (due_us := one.next_us()) is not None), default=None)

    def _step(self) -> bool:
        """Have each courier do what it can. Whether anything was done."""
        done, now_us = False, self._clock.now_us()
        for courier in self._couriers:
            while courier.read():
                done = True
            taken = courier.take(now_us)
            calls = [one for one in courier.take_calls() if self._make(courier, one)]
            done = done or bool(taken) or bool(calls)
            for number, there in self._by_partition(taken).items():
                commands = [command for _, command in there]
                for (one, _), outcome in zip(there, self._decide(number, commands), strict=True):
                    courier.outcome(one, outcome, now_us)
        return done

    def _make(self, courier: Courier, call: CallAttempt) -> bool:
        """Have the fake of a function called. Whether there is one."""
        cls: Any = self._catalogue.processes[call.stream.type]
        fake = self._fakes.get(f"{cls.__name__}.{call.method}")
        if fake is not None:
            courier.called(call, called_now(call, self._catalogue, fake), self._clock.now_us())
        return fake is not None

    def _by_partition(self, taken: Sequence[Delivery]) -> dict[int, list[tuple[Delivery, PackedCommand]]]:
        found: dict[int, list[tuple[Delivery, PackedCommand]]] = {}
        for one in taken:
            assert one.command is not None  # one that was taken has it
            found.setdefault(self._partition_of(one.command.stream), []).append((one, one.command))
        return found
