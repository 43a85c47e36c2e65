"""World: partitions, projectors and clients of one simulation: the real loops, with nothing real around them.

Real are the router with its attempts, the write loop with its residents, the plan of an append, the codec, the read
model. Simulated are the clock, the network, the disk's failures, and the ends and beginnings of processes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple
from uuid import UUID

from rayfold.actors.client.command_router import CommandRouter
from rayfold.actors.client.routing import Routing
from rayfold.actors.partition.request_order import RequestOrder
from rayfold.actors.settings import Settings
from rayfold.runtime.domain.messages import Command
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import Envelope, pack, unpack_batch
from rayfold.runtime.encoding.outcome import Outcome, encode_answer
from rayfold.runtime.errors import Fenced, Overloaded, RayfoldError, StorageFailed, Unavailable
from rayfold.runtime.log.contract import Append, Appended
from rayfold.runtime.log.format import record_position
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.own_random import OWN
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import ANY, StreamId, partition_of
from rayfold.runtime.write.write_loop import WriteLoop

from .network import ActorHandle, Killed, Network, Process, ProcessEnded
from .purses import CATALOGUE, Contents, InPurse, Purse, Put, Take
from .story import CLIENTS, PARTITIONS, Act, Story

__all__ = [
    "Build",
    "Committed",
    "Disk",
    "Killed",
    "PartitionProcess",
    "Read",
    "Sent",
    "SimulatedProcess",
    "SimulatedRouter",
    "World",
]

SETTINGS: Final = Settings(timeout_s=2.0, attempt_timeout_s=0.4, local_sockets=False)
TRIES_MAX: Final = 4
"""Of a command whose outcome is unknown, each with the same id."""

HANGS_S: Final = 10.0
"""After which what has no outcome, though its deadline was at 2 s, will never have one."""

RESTART_S: Final = 0.3
PROJECTOR_LOOKS_S: Final = 0.25
"""How often a projector reads the log by itself."""

ASK_TIMEOUT_S: Final = 2.0
SETTLED_S: Final = 3.0
"""After the last act: time for whatever is late to arrive."""


@dataclass(frozen=True, slots=True)
class Build:
    """The parts that are under test. A planted bug replaces one of them."""

    log: type[MemoryLog] = MemoryLog
    write_loop: type[WriteLoop] = WriteLoop
    attempts: type[RequestOrder] = RequestOrder
    read_model: type[ReadModel] = ReadModel
    routing: type[Routing] = Routing


class Committed(NamedTuple):
    """One append that took place."""

    at_s: float
    epoch: int
    first: int
    last: int


class Sent(NamedTuple):
    """A command of a client, and what it was answered."""

    act: Act
    began_s: float
    ended_s: float
    outcome: Outcome
    tries: int
    expected_version: int


class Refused(NamedTuple):
    """A command that was refused at once, without being sent."""

    act: Act
    error: RayfoldError


class Read(NamedTuple):
    """What a client was answered."""

    act: Act
    positions: dict[int, int]
    """How far the reader had come."""
    after: dict[int, int]
    """What it had to have seen."""
    movements: list[int]


class Disk:
    """The log of a partition, which outlives its processes; it fails as the story has it, and lists its commits."""

    def __init__(self, world: World, partition: int) -> None:
        self.log = world.build.log(now_us=lambda: int(world.loop.time() * 1e6))
        self.committed: list[Committed] = []
        self.kill_at: str = ""
        """`before` or `after` the next commit: the writing process ends there."""
        self._world, self._partition = world, partition

    def __getattr__(self, name: str) -> Any:
        return getattr(self.log, name)

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        if appends and self.kill_at == "before":
            self.kill_at = ""
            raise Killed
        if self._world.network.trouble("full disk", self._partition):
            raise StorageFailed(f"partition {self._partition}", "no space left on device")
        head = self.log.head()
        done = self.log.append(epoch, appends)
        if self.log.head() > head:
            self.committed.append(Committed(self._world.loop.time(), epoch, head + 1, self.log.head()))
            if self.kill_at == "after":
                self.kill_at = ""
                raise Killed
        return done


class SimulatedProcess:
    """A process that ends once, and with it what a subclass has beside its memory."""

    ended = False

    def end(self) -> None:
        """The process ends."""
        if not self.ended:
            self.ended = True
            self._end_parts()

    def _end_parts(self) -> None:
        """End what ends with the process: connections, own actors. Called once, after `ended` is set."""


class PartitionProcess(SimulatedProcess):
    """What `actors/partition/actor.py` is: attempts, write loop, broadcast. It ends with everything that it
    remembers."""

    def __init__(self, world: World, partition: int) -> None:
        self._world, self._partition = world, partition
        self._attempts = world.build.attempts()
        disk: Any = world.disks[partition]
        self._loop = world.build.write_loop(partition, disk, CATALOGUE, residents_max=3)
        self._loop.activate()

    def handle(self, method: str, *arguments: Any) -> bytes:
        """`execute`, the only call there is."""
        assert method == "execute", method
        if self.ended:
            raise ProcessEnded
        client, attempt, predecessor, blob = arguments
        if not self._attempts.admit(client, attempt, predecessor):
            return b""
        try:
            batch = self._loop.execute(list(unpack_batch(blob)))
        except Killed:
            self.end()
            raise ProcessEnded from None
        if any(isinstance(outcome, Fenced) for outcome in batch.outcomes):
            self.end()
            raise ProcessEnded
        if batch.records:
            self.broadcast(batch.records)
        return encode_answer(batch.outcomes, batch_cost_s=0.0)  # so that two batches are in flight whenever they can be

    def broadcast(self, records: list[bytes]) -> None:
        """Send what was committed to the projector."""
        self._world.broadcast(self._partition, records)


class ProjectorProcess(SimulatedProcess):
    """What `actors/projection/actor.py` is, for all partitions."""

    def __init__(self, world: World) -> None:
        self.model = world.build.read_model(
            Contents, CATALOGUE, {number: disk.log for number, disk in enumerate(world.disks)}
        )
        self.model.open()
        for partition in range(PARTITIONS):
            self.model.catch_up(partition)

    def handle(self, method: str, *arguments: Any) -> Any:
        """`apply` and `ask`."""
        if self.ended:
            raise ProcessEnded
        if method == "apply":
            return self.model.apply(*arguments)
        query, after = arguments
        if any(self.model.positions.get(partition, 0) < position for partition, position in after.items()):
            return None
        payload = encode_message(query)

        def encode(answers: list[Any]) -> tuple[list[int], dict[int, int]]:
            return list(answers[0]), dict(self.model.positions)

        return self.model.answer([(type(query).message_name, payload)], encode)


@dataclass
class World:
    """Everything, and what every client was answered."""

    loses_answers: ClassVar[frozenset[str]] = frozenset({"answers lost", "kill after commit"})
    """Troubles in which the answer to a command that was decided may not come: on the way, or with a process."""

    story: Story
    build: Build
    sent: list[Sent] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    hanging: list[Act] = field(default_factory=list)
    """Commands and queries without an outcome."""
    reads: list[Read] = field(default_factory=list)
    reads_logs: bool = True
    """Whether the projector reads the logs by itself now and then."""

    async def run(self) -> None:
        """The whole story, until everything has come to rest."""
        OWN.seed(self.story.seed)  # the router's jitter
        self.loop = asyncio.get_running_loop()
        self.network = Network(self.story, self.loop)
        self.disks = [Disk(self, number) for number in range(PARTITIONS)]
        self.projector = self.new_projector()
        self.partitions: list[Process] = [self.new_process(number) for number in range(PARTITIONS)]
        self._copies: dict[int, Process] = {}
        """By partition, the process that was taken for dead and is not."""
        self.routers = [self.new_router() for _ in range(CLIENTS)]
        self._versions: list[dict[int, int]] = [{} for _ in range(CLIENTS)]
        self._seen: list[dict[int, int]] = [{} for _ in range(CLIENTS)]
        for fault in self.story.faults:
            self.loop.call_at(fault.at_ms / 1000, self._begin, fault.trouble, fault.partition)
        looking = asyncio.create_task(self._look())
        acts = []
        for act in self.story.acts:
            await asyncio.sleep(act.at_ms / 1000 - self.loop.time())
            acts.append(asyncio.create_task(self._ask(act) if act.kind == "ask" else self._send(act)))
            await asyncio.sleep(0)
        await asyncio.gather(*acts)
        await asyncio.sleep(SETTLED_S)
        looking.cancel()
        OWN.seed()

    def new_process(self, partition: int) -> Process:
        """A process of a partition, which takes its log over."""
        return PartitionProcess(self, partition)

    def new_projector(self) -> ProjectorProcess:
        """A process of the projector, which reads the logs."""
        return ProjectorProcess(self)

    def new_router(self) -> CommandRouter:
        """The router of one client."""
        handles = [ActorHandle(self.network, number, partial(self._current, number)) for number in range(PARTITIONS)]
        return SimulatedRouter(self.build, handles, SETTINGS)

    def broadcast(self, partition: int, records: list[bytes]) -> None:
        """To the projector, by a network that may do with it what it likes."""
        if self.network.trouble("broadcast lost", partition) and self.network.chance("lost broadcast") < 0.5:
            return
        times = 1 + (self.network.trouble("broadcast repeated", partition) is not None)
        for _ in range(times):
            head = record_position(records[-1])
            self.network.call(self.projector, partition, "apply", partition, record_position(records[0]), records, head)

    def _begin(self, trouble: str, partition: int) -> None:
        """The troubles that are a moment and not a while."""
        process = self.partitions[partition]
        if trouble == "kill partition":
            process.end()
        elif trouble == "kill before commit":
            self.disks[partition].kill_at = "before"
        elif trouble == "kill after commit":
            self.disks[partition].kill_at = "after"
        elif trouble == "two copies":
            self._copies[partition] = process
            self.partitions[partition] = self.new_process(partition)
        elif trouble == "kill projector":
            self.projector.end()

    def _current(self, partition: int) -> Process:
        """The process that a caller takes for the actor now: while there are two copies, either."""
        copy = self._copies.get(partition)
        outdated = self.network.trouble("two copies", partition) and self.network.chance("outdated handle") < 0.5
        return copy if copy is not None and outdated and not copy.ended else self.partitions[partition]

    async def _look(self) -> None:
        """What Ray and the projector do from time to time: start again what has ended, read the log."""
        while True:
            await asyncio.sleep(PROJECTOR_LOOKS_S)
            for partition, process in enumerate(self.partitions):
                if process.ended:
                    self.loop.call_later(RESTART_S * self.network.chance("restart"), self._restart, partition)
                if self.reads_logs and not self.projector.ended:
                    self.projector.model.catch_up(partition)
            if self.projector.ended:
                self.projector = self.new_projector()

    def _restart(self, partition: int) -> None:
        if self.partitions[partition].ended:
            self.partitions[partition] = self.new_process(partition)

    async def _send(self, act: Act) -> None:
        """One command, until its client knows what became of it or gives up."""
        command: Command = Put(amount=act.amount) if act.kind == "put" else Take(amount=act.amount)
        expected = self._versions[act.client].get(act.purse, ANY) if act.careful else ANY
        packed, blob = pack(Envelope(Purse, f"purse-{act.purse}", command, UUID(int=act.number), expected))
        began_s, tries, outcome = self.loop.time(), 0, None
        while tries < TRIES_MAX and (outcome is None or isinstance(outcome, Unavailable)):
            try:
                sent = self.routers[act.client].submit(packed, blob, SETTINGS.timeout_s)
            except (Overloaded, Unavailable) as error:
                if outcome is None:
                    self.refused.append(Refused(act, error))
                    return
                break
            tries += 1
            await asyncio.wait([sent], timeout=HANGS_S)
            if not sent.done():
                self.hanging.append(act)
                return
            outcome = sent.result()
        assert outcome is not None
        if isinstance(outcome, Receipt):
            seen, versions = self._seen[act.client], self._versions[act.client]
            seen[outcome.partition] = max(outcome.position, seen.get(outcome.partition, 0))
            versions[act.purse] = max(outcome.version, versions.get(act.purse, 0))
        self.sent.append(Sent(act, began_s, self.loop.time(), outcome, tries, expected))

    async def _ask(self, act: Act) -> None:
        """One query, again until it is answered or its time is over."""
        after = dict(self._seen[act.client]) if act.careful else {}
        query = InPurse(purse=f"purse-{act.purse}")
        partition = partition_of(StreamId("Purse", query.purse), PARTITIONS)
        deadline_s = self.loop.time() + ASK_TIMEOUT_S
        while self.loop.time() < deadline_s:
            answer = self.network.call(self.projector, partition, "ask", query, after)
            try:
                found = await asyncio.wait_for(asyncio.wrap_future(answer), 0.3)
            except Exception:
                found = None
            if found is not None:
                self.reads.append(Read(act, found[1], after, found[0]))
                return
            await asyncio.sleep(0.05)


class SimulatedRouter(CommandRouter):
    """The router of one client, with the routing that is under test."""

    def __init__(self, build: Build, partitions: Sequence[Any], settings: Settings) -> None:
        self.routing_class = build.routing
        super().__init__(partitions, _no_actor, settings)


def _no_actor(name: str) -> Any:
    raise ValueError(f"no actor is named {name}")
