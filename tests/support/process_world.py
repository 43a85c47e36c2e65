"""A system of processes without threads and disks, whose messages are lost, repeated and delayed as a test has it.

Each partition has a log in memory, its write loop and its courier; what a courier sends is executed in the loop of its
target. Anything may be ended at any point, and begins anew from what its log holds.
"""

from __future__ import annotations

import random
from collections import deque

import msgpack

from rayfold.runtime.domain.aggregate import Aggregate
from rayfold.runtime.domain.messages import Command
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import Envelope, PackedCommand, new_command_id, pack, unpack_batch
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.errors import Unavailable
from rayfold.runtime.log.contract import Append
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.processes.agenda import Agenda
from rayfold.runtime.processes.courier import Courier, Delivery
from rayfold.runtime.processes.places import COURIER, Places, stored_places
from rayfold.runtime.processes.process import Process
from rayfold.runtime.read.time_travel import state_at
from rayfold.runtime.stream import ANY, StreamId, partition_of
from rayfold.runtime.write.write_loop import WriteLoop

DELAYED_MAX = 2_000
GHOSTS_MAX = 3


class World:
    """All of it."""

    def __init__(
        self,
        aggregates: list[type[Aggregate]],
        processes: list[type[Process]],
        *,
        partitions: int = 2,
        seed: int | None = None,
        since: int = 0,
    ) -> None:
        """`seed`: of the faults; without it there are none."""
        self.now_us = 1_700_000_000_000_000
        self.catalogue = Catalogue(aggregates, [], processes=processes)
        self.partitions = partitions
        self.logs = [MemoryLog(lambda: self.now_us) for _ in range(partitions)]
        self.away: set[int] = set()
        """Partitions that do not answer."""
        self.silent: set[StreamId] = set()
        """Aggregates that do not answer."""
        self.sent = 0
        self._since = since
        self._random = random.Random(seed)
        self._faults = seed is not None
        self._delayed: deque[tuple[int, PackedCommand]] = deque()
        self._ghosts: list[Courier] = []
        """Couriers of activations that another one has followed."""
        self.loops = [self._loop(number) for number in range(partitions)]
        self.couriers = [self._courier(number) for number in range(partitions)]

    def execute(self, aggregate: type[Aggregate], id: str, command: Command, **more: object) -> Outcome:
        """As a program does."""
        packed, _ = pack(Envelope(aggregate, id, command, **more))  # type: ignore[arg-type]
        return self._execute(packed)

    def state(self, aggregate: type[Aggregate], id: str) -> Aggregate:
        """As it is in the log."""
        stream = StreamId(aggregate.aggregate_type, id)
        log = self.logs[self.partition_of(stream)]
        if not log.version(stream):
            return aggregate(id)
        return state_at(self.catalogue, log, aggregate, stream, None, None)

    def run(self, *, for_us: int = 60_000_000) -> None:
        """Until nothing is left to do but to wait for timers that are due later than that."""
        until_us = self.now_us + for_us
        for _ in range(100_000):
            if self._turn():
                continue
            here = [one for number, one in enumerate(self.couriers) if number not in self.away]
            times = [due for one in here if (due := one.next_us()) is not None and due <= until_us]
            if not times:
                self.now_us = until_us
                if not self._turn():
                    return
                continue
            self.now_us = max(self.now_us, min(times))
        raise AssertionError("it does not come to rest")

    def calm(self) -> None:
        """No faults from now on."""
        self._faults = False
        self._ghosts.clear()
        while self._delayed:
            self._execute(self._delayed.popleft()[1])
        self.run()

    def crash(self, number: int) -> None:
        """The process of a partition ends, and begins anew. Sometimes it has not ended, and its courier goes on."""
        if self._faults and self._random.random() < 0.5:
            self._ghosts.append(self.couriers[number])
            del self._ghosts[:-GHOSTS_MAX]
        self.loops[number] = self._loop(number)
        self.couriers[number] = self._courier(number)

    def restore_all(self, heads: list[int]) -> None:
        """Everything ends, and begins anew with these logs, each up to there. Nothing of before is on its way."""
        self._ghosts.clear()
        self._delayed.clear()
        for number, head in enumerate(heads):
            self.restore(number, head)
        self.loops = [self._loop(number) for number in range(self.partitions)]
        self.couriers = [self._courier(number) for number in range(self.partitions)]

    def restore(self, number: int, head: int) -> None:
        """The log of a partition is an older one."""
        older = MemoryLog(lambda: self.now_us)
        older._secret = self.logs[number].secret()
        before = self.logs[number]
        log_records = before.read(0, head)
        older._records = list(log_records)
        older._kinds = dict(before._kinds)
        for key, positions in before._streams.items():
            if kept := [one for one in positions if one <= head]:
                older._streams[key] = kept
        older._commands = {key: entry for key, entry in before._commands.items() if entry.position <= head}
        self.logs[number] = older

    def partition_of(self, stream: StreamId) -> int:
        """Where it is."""
        return partition_of(stream, self.partitions)

    def save_places(self, number: int) -> None:
        """Store how far a courier is."""
        self._store_places(number, self.couriers[number].present_places())

    # -------------------------------------------------------------------------------------------------------------

    def _loop(self, number: int) -> WriteLoop:
        loop = WriteLoop(number, self.logs[number], self.catalogue)
        loop.activate()
        return loop

    def _courier(self, number: int) -> Courier:
        log = self.logs[number]
        places = stored_places(log)
        for name in self.catalogue.processes:
            places.since.setdefault(name, self._since)
        agenda = Agenda()
        agenda.open(log)
        courier = Courier(number, self.partitions, self.partition_of, self.catalogue, log, agenda, places)
        self._store_places(number, courier.present_places())
        return courier

    def _store_places(self, number: int, places: Places) -> None:
        loop = self.loops[number]
        self.logs[number].append(loop.epoch, [Append(COURIER, ANY, (places.event(),), new_command_id(), bytes(20))])

    def _turn(self) -> bool:
        """Have each courier do what it can. Whether anything was done."""
        done = False
        for number in set(range(self.partitions)) - self.away:
            courier = self.couriers[number]
            while courier.read():
                done = True
            taken = courier.take(self.now_us)
            done = done or bool(taken)
            for delivery in taken:
                self._deliver(courier, delivery)
                if self._faults and self._random.random() < 0.01:
                    self.crash(self._random.randrange(self.partitions))
            if self._faults and self._random.random() < 0.1:
                self.save_places(number)
        for ghost in [] if not self._faults or self._random.random() > 0.3 else self._ghosts:
            ghost.read()
            for delivery in ghost.take(self.now_us):
                self._deliver(ghost, delivery)
        return done

    def _deliver(self, courier: Courier, delivery: Delivery) -> None:
        command = delivery.command
        assert command is not None
        (command,) = unpack_batch(msgpack.packb(command))
        self.sent += 1
        chance = self._random.random() if self._faults else 1.0
        outcome: Outcome = Unavailable("partition", "no answer")
        if chance >= 0.05:  # else it is lost on its way
            outcome = self._execute(command)
        if chance < 0.1:  # the answer is lost
            outcome = Unavailable("partition", "no answer")
        if 0.1 <= chance < 0.15 and len(self._delayed) < DELAYED_MAX:  # it arrives once more, later
            self._delayed.append((self._random.randrange(50), command))
        if self._faults and self._delayed and self._random.random() < 0.1:
            self._execute(self._delayed.popleft()[1])
        courier.outcome(delivery, outcome, self.now_us)

    def _execute(self, command: PackedCommand) -> Outcome:
        number = self.partition_of(command.stream)
        if command.stream in self.silent:
            return Unavailable(str(command.stream), "no answer in time")
        if number in self.away:
            return Unavailable(f"partition {number}", "it was not sent: it is away")
        (outcome,) = self.loops[number].execute([command]).outcomes
        return outcome
