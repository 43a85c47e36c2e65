"""A system of effects without threads, whose runners, couriers and messages end, are lost and are late.

What is outside is a counter of calls by their keys. An attempt reaches it some time before its timeout, whatever has
become of the courier that had it begun; its end may never be reported.
"""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

from rayfold.runtime.domain.aggregate import Aggregate
from rayfold.runtime.effects.call_attempt import CallAttempt
from rayfold.runtime.effects.call_queue import RunnerName
from rayfold.runtime.effects.results import Done, NotDone, Result, packed_not_called, packed_result
from rayfold.runtime.effects.running import event_of
from rayfold.runtime.processes.agenda import Agenda
from rayfold.runtime.processes.courier import Courier
from rayfold.runtime.processes.effects import Effects
from rayfold.runtime.processes.places import stored_places
from tests.support.process_world import World

TIMEOUT_US = 2_000_000


class EffectWorld(World):
    """Of effects whose functions have `look` for their `@settle`, and a timeout of two seconds."""

    def __init__(
        self, aggregates: list[type[Aggregate]], effects: list[type[Effects]], seed: int | None = None
    ) -> None:
        self.paid: Counter[bytes] = Counter()
        """By key: how often the call has taken effect outside."""
        self.looked = 0
        self.refuse = 0
        """How many attempts are `NotDone` from now on."""
        self.not_called = 0
        """How many attempts are not made from now on, since their runner has just ended."""
        self.results: list[Result] = []
        """What attempts come to that is not `Done()`: the next one first."""
        self._names = count(1)
        self._in_hand: list[tuple[int, int, Courier, CallAttempt]] = []
        super().__init__(aggregates, effects, seed=seed)  # type: ignore[arg-type]  # effects are processes here

    def _courier(self, number: int) -> Courier:
        log, places = self.logs[number], stored_places(self.logs[number])
        for name in self.catalogue.processes:
            places.since.setdefault(name, 0)
        agenda = Agenda()
        agenda.open(log)
        own = b"courier %d" % next(self._names)
        courier = Courier(number, self.partitions, self.partition_of, self.catalogue, log, agenda, places, own)
        for name in self.catalogue.processes:
            for alone in (False, True):
                courier.runner_is_up(RunnerName(name, alone), True)
        self._store_places(number, courier.present_places())
        return courier

    def _turn(self) -> bool:
        done = super()._turn()
        for courier in [*self.couriers, *self._ghosts]:
            for call in courier.take_calls():
                late_us = self._random.randrange(TIMEOUT_US) if self._faults else 0
                heapq.heappush(self._in_hand, (self.now_us + late_us, next(self._names), courier, call))
                done = True
        while self._in_hand and self._in_hand[0][0] <= self.now_us:
            _, _, courier, call = heapq.heappop(self._in_hand)
            self._made(courier, call)
            done = True
        return done or self._wait_for_call()

    def _wait_for_call(self) -> bool:
        """Let time pass until the next call reaches what is outside, if no timer is due before."""
        if not self._in_hand:
            return False
        due = [due_us for one in self.couriers if (due_us := one.next_us()) is not None]
        self.now_us = max(self.now_us, min([self._in_hand[0][0], *due]))
        return True

    def _made(self, courier: Courier, call: CallAttempt) -> None:
        """The attempt is made outside, and its end is reported, or not."""
        event_of(call, self.catalogue)
        if self.not_called or (self._faults and self._random.random() < 0.1):
            self.not_called = max(self.not_called - 1, 0)
            if courier in self.couriers:
                courier.called(call, packed_not_called("its runner has just ended"), self.now_us)
            return
        result: Result = self.results.pop(0) if self.results else Done()
        if call.method == "look":
            self.looked += 1
            result = Done() if self.paid[call.key] else NotDone("it is not there")
        elif isinstance(result, Done):
            self.paid[call.key] += 1
        reported = self._random.random() >= 0.2 if self._faults else True
        if reported and courier in self.couriers:
            courier.called(call, packed_result(result), self.now_us)
