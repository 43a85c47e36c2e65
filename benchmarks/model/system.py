"""A system as a queueing network: clients, partitions and projectors on the cores of machines, fed by a closed loop.

Commands travel as in the runtime: a client spreads what it has in flight evenly over the partitions; to each lead two
batches at once, halves if those are worth it, else what waits leaves with the next. A partition decides and appends a
batch, waits for the disk, answers, and broadcasts to every projector, which takes in events and queries in turns.

Where all nodes are alike one is simulated, or an equal part of it: what its clients send to other nodes arrives at its
own partitions, as what the clients of those would send to it. It costs a call through Ray at either end, and the time
that takes.

Rule kept here: whatever is drawn at random, the partition of each command, is drawn from the seed.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import gcd
from typing import Final

from rayfold.runtime.batch_queue import BATCH_BY_SOCKET_S, BATCH_ITEMS_MAX, WORTH_ITEMS, commands_worth

from .demands import QUERIES_TOGETHER_MAX, Demands
from .simulation import Cores, Process, Simulation

IN_FLIGHT_MAX: Final = 2
"""Batches of one client to one actor (`actors/client/routing.py`)."""

BROADCASTS_WAITING_MAX: Final = 256
"""For a projector; what does not fit is left to the log (`actors/partition/broadcast.py`), and it falls behind."""

COMMIT: Final = 1.5
"""Times its waits for the disk: what a partition measures of a commit. Clients decide by it what a batch is worth."""

EVENTS_MAX: Final = 800_000
"""Of one simulation: under ten seconds of CPU."""

SLICE_CORES: Final = 8
"""Of a node of many cores that is one of several, as much is simulated."""

FULL: Final = 0.93
"""From this share of its time on, something is called the bottleneck."""


@dataclass(frozen=True, slots=True)
class Size:
    """What is simulated: of one node, if there are several."""

    cores: int
    nodes: int = 1
    partitions: int = 1
    replicas: int = 0
    writers: int = 0
    readers: int = 0
    write_depth: int = 2_048
    read_depth: int = 4_096
    one_client: bool = False
    """Writer and reader are one process, as in most programs."""
    one_machine: bool = False
    """All nodes are on one machine, whose cores they share; the numbers are those of all nodes together."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What came of it, of all nodes together."""

    commands_per_s: float
    queries_per_s: float
    busy: dict[str, float]
    """By role, the share of the time of its busiest process, waits for the disk included; those alone as `disk`; and
    that of all `cores`."""
    bottleneck: str
    batch: float
    """Commands in a batch, on average."""
    behind: bool
    """Whether projectors cannot keep up, so that read models get older and older."""


class _Queue:
    """What leads from one client to one actor: counts in place of the items of `BatchQueue`."""

    __slots__ = ("in_flight", "most", "waiting", "worth")

    def __init__(self, most: int, worth: int) -> None:
        self.waiting = self.in_flight = 0
        self.most, self.worth = most, worth

    def next_batch(self) -> int:
        """How many leave now; 0 if nothing does."""
        room = IN_FLIGHT_MAX - self.in_flight
        if room <= 0 or not self.waiting:
            return 0
        worth = self.waiting // self.worth
        leaving = min(room, worth if self.in_flight else max(1, worth))
        if not leaving:
            return 0
        batch = min(self.most, -(-self.waiting // leaving))
        self.waiting -= batch
        self.in_flight += 1
        return batch


class _System:
    """One simulation."""

    def __init__(self, demands: Demands, size: Size, seed: int) -> None:
        self._demands, self._chance = demands, random.Random(seed)
        self._slices = slices = _slices(size)
        self.copies = slices if size.one_machine else slices * size.nodes
        """Of what is simulated, in the whole system."""
        self._size = size = _slice(size, slices)
        self.simulation = Simulation()
        self._cores = Cores(self.simulation, size.cores)
        self._partitions = [self._process() for _ in range(size.partitions)]
        self._projectors = [self._process() for _ in range(size.replicas)]
        self._writers = [self._process() for _ in range(size.writers)]
        self._readers = self._writers if size.one_client else [self._process() for _ in range(size.readers)]
        self._worth = commands_worth(demands.fsync_wait * 1e-6 * COMMIT + BATCH_BY_SOCKET_S)
        self.commands = self.queries = self.batches = 0
        self.behind = False

    def _process(self) -> Process:
        return Process(self.simulation, self._cores)

    def start(self) -> None:
        """Every client sends what it may have in flight."""
        size = self._size
        for writer in self._writers if size.writers else ():
            self._write(writer, {}, size.partitions * self.copies, size.write_depth)
        for reader in self._readers if size.readers else ():
            count = size.replicas * self.copies
            for replica in range(count):
                queue = _Queue(QUERIES_TOGETHER_MAX, WORTH_ITEMS)
                self._ask(reader, queue, replica, size.read_depth // count + (replica < size.read_depth % count))

    def _is_remote(self, actor: int, of_a_node: int) -> bool:
        if self._size.one_machine:
            return actor % self._size.nodes != 0
        return actor >= of_a_node * self._slices

    # Commands ----------------------------------------------------------------------------------------------------

    def _write(self, client: Process, queues: dict[int, _Queue], count: int, commands: int) -> None:
        """A client has packed so many commands, each of which goes to one of `count` partitions."""
        drawn = {0: commands} if count == 1 else Counter(self._chance.choices(range(count), k=commands))
        for partition, of_it in drawn.items():
            if partition not in queues:
                queues[partition] = _Queue(BATCH_ITEMS_MAX, self._worth)
            queues[partition].waiting += of_it
            self._send(client, queues, count, partition)

    def _send(self, client: Process, queues: dict[int, _Queue], count: int, partition: int) -> None:
        queue = queues[partition]
        while batch := queue.next_batch():
            self._execute(client, queues, count, partition, batch)

    def _execute(self, client: Process, queues: dict[int, _Queue], count: int, partition: int, batch: int) -> None:
        demands, remote = self._demands, self._is_remote(partition, self._size.partitions)
        caller, callee, wait_s = self._way(remote)
        process = self._partitions[partition % self._size.partitions]
        executed = demands.partition_batch + batch * demands.partition_command + callee

        def arrived() -> None:
            process.do(executed * 1e-6, committed, wait_s=demands.fsync_wait * 1e-6)

        def committed() -> None:
            self._broadcast(process, batch)
            self.simulation.after(wait_s, answered)

        def answered() -> None:
            client.do(batch * demands.client_command * 1e-6, resolved)

        def resolved() -> None:
            self.commands += batch
            self.batches += 1
            queues[partition].in_flight -= 1
            self._send(client, queues, count, partition)
            self._write(client, queues, count, batch)

        client.do((demands.client_batch + caller) * 1e-6, lambda: self.simulation.after(wait_s, arrived), line=1)

    def _way(self, remote: bool) -> tuple[float, float, float]:
        """To an actor and back: CPU of the two ends in microseconds, and the wait one way in seconds."""
        demands = self._demands
        return (demands.ray_caller, demands.ray_callee, demands.ray_wait * 0.5e-6) if remote else (0.0, 0.0, 0.0)

    def _broadcast(self, partition: Process, events: int) -> None:
        """To all projectors, of all nodes; what comes from partitions of other nodes comes in the same way."""
        demands, copied = self._demands, events * self.copies * 1e-6
        for projector in self._projectors:
            partition.do(copied * demands.broadcast_event, _nothing, line=1)
            if projector.waiting() < BROADCASTS_WAITING_MAX:
                projector.do(copied * demands.apply_event, _nothing)
            else:
                self.behind = True

    # Queries -----------------------------------------------------------------------------------------------------

    def _ask(self, client: Process, queue: _Queue, replica: int, queries: int) -> None:
        """So many more queries to this replica: each that was answered is followed by another one."""
        queue.waiting += queries
        while batch := queue.next_batch():
            self._query(client, queue, replica, batch)

    def _query(self, client: Process, queue: _Queue, replica: int, batch: int) -> None:
        demands = self._demands
        caller, callee, wait_s = self._way(self._is_remote(replica, self._size.replicas))
        process = self._projectors[replica % self._size.replicas]

        def arrived() -> None:
            cpu = demands.query_batch + batch * demands.answer_query + callee
            process.do(cpu * 1e-6, lambda: self.simulation.after(wait_s, answered), line=1)

        def answered() -> None:
            client.do(batch * demands.client_query * 1e-6, resolved)

        def resolved() -> None:
            self.queries += batch
            self.batches += 1
            queue.in_flight -= 1
            self._ask(client, queue, replica, batch)

        client.do((demands.query_batch + caller) * 1e-6, lambda: self.simulation.after(wait_s, arrived), line=1)

    # What came of it ---------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Commands and queries."""
        return self._size.writers * self._size.write_depth + self._size.readers * self._size.read_depth

    def used(self) -> dict[str, list[float]]:
        """By role, the time that each of its processes was busy or held."""
        roles = {"clients": [*self._writers, *([] if self._size.one_client else self._readers)]}
        roles |= {"partitions": self._partitions, "projectors": self._projectors}
        times = {role: [one.busy_s + one.held_s for one in processes] for role, processes in roles.items() if processes}
        disk = {"disk": [one.held_s for one in self._partitions]}
        return times | disk | {"cores": [self._cores.busy_s / self._size.cores]}


def _slices(size: Size) -> int:
    """Into how many equal ones a node of several can be divided, with cores enough in each to be shared as before."""
    if size.nodes == 1 or size.one_machine:
        return 1
    return gcd(max(1, size.cores // SLICE_CORES), size.partitions, size.replicas, size.writers, size.readers)


def _slice(size: Size, slices: int) -> Size:
    counts = ("cores", "partitions", "replicas", "writers", "readers")
    return replace(size, **{name: getattr(size, name) // slices for name in counts})


def _nothing() -> None:
    """No one waits for this."""


def predict(demands: Demands, size: Size, seed: int = 1) -> Prediction:
    """Simulate a system of this size until what it had in flight has gone round a few times, warm-up not counted."""
    system = _System(demands, size, seed)
    system.start()
    in_flight = system.in_flight

    def rounds(begun: tuple[int, int], times: int, least: int) -> Callable[[], bool]:
        return lambda: (
            system.commands + system.queries >= begun[0] + times * in_flight and system.batches >= begun[1] + least
        )

    system.simulation.run(events_max=EVENTS_MAX // 3, enough=rounds((0, 0), 2, 200))
    before = system.used()
    began_s, commands, queries = system.simulation.now_s, system.commands, system.queries
    batches = system.batches
    system.simulation.run(events_max=EVENTS_MAX, enough=rounds((commands + queries, batches), 3, 600))
    seconds = system.simulation.now_s - began_s
    busy = {
        role: max(after - earlier for after, earlier in zip(times, before[role], strict=True)) / seconds
        for role, times in system.used().items()
    }
    return Prediction(
        commands_per_s=(system.commands - commands) / seconds * system.copies,
        queries_per_s=(system.queries - queries) / seconds * system.copies,
        busy=busy,
        bottleneck=_bottleneck(busy),
        batch=(system.commands + system.queries - commands - queries) / max(1, system.batches - batches),
        behind=system.behind,
    )


def _bottleneck(busy: dict[str, float]) -> str:
    """All cores, if those are busy; else the roles with a process that has hardly any time left; else nothing but that
    clients wait for answers."""
    full = [role for role, share in busy.items() if share >= FULL and role != "disk"]
    if "partitions" in full and busy["disk"] > 0.5:
        full[full.index("partitions")] = "partitions, for the disk"
    return "cores" if "cores" in full else " and ".join(full) or "waiting"
