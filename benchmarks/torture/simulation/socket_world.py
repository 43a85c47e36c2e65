"""Socket world: routers, connections, servers and partitions of one simulation, and aggregates that move about.

Real are the router with its routing, the choice between socket and Ray, both ends' protocols, the order of requests and
the write loop. Simulated are the network (`socket_network.py`, and Ray's calls in `network.py`), the clock, and what
happens to processes: they are killed and start again with a new epoch, are taken for dead and go on, are sealed while
their partition moves, and have aggregates of theirs decided in actors of their own, which are lost too.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

from rayfold.actors.client.command_router import CommandRouter
from rayfold.actors.client.socket_client import SocketConnection
from rayfold.actors.client.socket_protocol import ClientProtocol
from rayfold.actors.client.transport import PartitionTransport
from rayfold.actors.partition.request_order import RequestOrder
from rayfold.actors.partition.socket_protocol import Request, ServerProtocol
from rayfold.actors.settings import Settings
from rayfold.actors.sockets.transport_choice import TransportChoice
from rayfold.runtime.encoding.envelope import PackedCommand, unpack_batch
from rayfold.runtime.encoding.outcome import Answered, Redirect, RetryAfter, encode_answer
from rayfold.runtime.errors import Fenced, RayfoldError
from rayfold.runtime.log.contract import Append, Appended, CommandEntry
from rayfold.runtime.stream import StreamId, partition_of
from rayfold.runtime.write.write_loop import AlreadyStored, WriteLoop

from .network import ActorHandle, Process, ProcessEnded
from .purses import CATALOGUE
from .socket_network import Link, RecordedConnection, SocketLoop
from .story import CLIENTS, LASTS_MS, PARTITIONS, PURSES, Fault, Kind, SocketTrouble, Story, Trouble, draw_acts, probes
from .world import RESTART_S, Build, Killed, PartitionProcess, SimulatedProcess, SimulatedRouter, World

__all__ = ["PROBE_S", "SocketBuild", "SocketWorld", "draw_socket_story"]

SETTINGS: Final = Settings(timeout_s=2.0, attempt_timeout_s=0.4)
FEW_IN_FLIGHT: Final = 4
"""Commands that a client may have on their way in some of the stories, which is soon too few."""

PROBE_S: Final = 10.0
"""When nothing has been wrong for a while, each client puts something into every purse."""

PROBES_FROM: Final = 1_000
"""The number of the first of these commands."""

REPLACED_S: Final = 0.4
"""Within which every client has learned that a partition has moved."""

LOADING_S: Final = 0.1
OWN_LIVES_S: Final = 0.1
"""How long an own actor lives at most that is killed."""

AWAY_MS: Final = 4_000
"""How long a partition that has ended may be kept from starting again: deadlines pass meanwhile."""

TROUBLES: Final[tuple[Trouble | SocketTrouble, ...]] = (
    *SocketTrouble.__args__,  # type: ignore[attr-defined]
    "loading",  # twice, and what is about own actors too: they concern one aggregate of many
    "own actor",
    "own actor killed",
    "kill partition",
    "kill before commit",
    "kill after commit",
    "two copies",
    "full disk",
    "calls lost",
    "answers lost",
    "calls late",
)


@dataclass(frozen=True, slots=True)
class SocketBuild(Build):
    """The parts that are under test. A planted bug replaces one of them."""

    client: type[ClientProtocol] = ClientProtocol
    server: type[ServerProtocol] = ServerProtocol
    choice: type[TransportChoice[SocketConnection]] = TransportChoice


def draw_socket_story(seed: int) -> Story:
    """The story of a seed. Commands come in bursts, since order is at stake only among those that are on their way at
    the same time; and most troubles come with a burst."""
    rng = random.Random(seed)
    troubles = rng.sample(TROUBLES, rng.choice((1, 2, 3, len(TROUBLES))))
    purses = rng.randint(1, PURSES)
    kinds: dict[Kind, int] = {"put": 5, "take": rng.choice((1, 4, 12))}
    bursts = [rng.randrange(LASTS_MS) for _ in range(rng.choice((2, 4, 8)))]
    wide_ms, clients = rng.choice((4, 15, 60)), rng.choice((1, CLIENTS))
    acts = draw_acts(rng, lambda: rng.choice(bursts) + rng.randrange(wide_ms), clients, kinds, purses, careful=0.2)
    faults = []
    for trouble in rng.choices(troubles, k=rng.randint(0, 8)):
        longest_ms = AWAY_MS if trouble == "kept away" else 1_500
        at_ms, for_ms = max(0, rng.choice(bursts) + rng.randrange(-20, 60)), rng.randrange(50, longest_ms)
        faults.append(Fault(at_ms, trouble, rng.randrange(PARTITIONS), for_ms))
    last = probes(PROBES_FROM, PROBE_S, "put", careful=False)
    return Story(seed, (*acts, *last), tuple(sorted(faults)))


class ServingProcess(PartitionProcess):
    """What `actors/partition/actor.py` is, with its socket, its seal, and the aggregates that it decides elsewhere."""

    def __init__(self, world: SocketWorld, partition: int) -> None:
        self.path = f"partition-{partition}.{len(world.listening)}"
        self.sealed = False
        """Handed over: what comes is refused, and belongs to the process at the new home."""
        self.own_actors: dict[StreamId, OwnProcess] = {}
        self._links: list[Link] = []
        self._sockets = world
        super().__init__(world, partition)
        world.listening[self.path] = self

    def _end_parts(self) -> None:
        for link in self._links:
            link.end_process()
        for own in self.own_actors.values():
            own.end()

    def connect(self, client: RecordedConnection) -> Link:
        """Let a client in."""
        link = Link(self._world.network, self._partition, client, self._sockets.build.server(), self._request)
        self._links.append(link)
        return link

    def cut(self) -> None:
        """Break every connection."""
        for link in self._links:
            link.cut()

    def handle(self, method: str, *arguments: Any) -> Any:
        """`socket_path`, `lost` and `execute`."""
        if self.ended:
            raise ProcessEnded
        if method == "socket_path":
            return self.path
        if method == "lost":
            stream, name, _ = arguments
            if stream in self.own_actors and self.own_actors[stream].name == name:
                self.own_actors.pop(stream).end()
            return None
        return self._execute(*arguments)

    def _request(self, request: Request) -> bytes:
        if self.ended:
            raise ProcessEnded
        return self._execute(*request)

    def _execute(self, client: bytes, attempt: int, predecessor: int, blob: bytes) -> bytes:
        answers = self._attempts.run(client, attempt, predecessor, lambda: self._answer(list(unpack_batch(blob))))
        return b"" if answers is None else encode_answer(answers, batch_cost_s=0.0)

    def _answer(self, commands: Sequence[PackedCommand]) -> Sequence[Answered]:
        if self.sealed:
            return [Fenced(f"partition {self._partition}", 0, 0)] * len(commands)
        elsewhere = {stream: Redirect(own.name) for stream, own in self.own_actors.items()}
        return self._decide(commands, {**self._loading(), **elsewhere})

    def _decide(self, commands: Sequence[PackedCommand], elsewhere: Mapping[StreamId, Answered]) -> list[Answered]:
        try:
            batch = self._loop.execute([command for command in commands if command.stream not in elsewhere])
        except Killed:
            self.end()
            raise ProcessEnded from None
        if any(isinstance(outcome, Fenced) for outcome in batch.outcomes):
            self.end()
            raise ProcessEnded
        if batch.records:
            self._world.broadcast(self._partition, batch.records)
        outcomes = iter(batch.outcomes)
        return [elsewhere.get(command.stream) or next(outcomes) for command in commands]

    def _loading(self) -> dict[StreamId, Answered]:
        """What is being loaded aside now. It may be loaded by the next batch, and given up by the one after."""
        network, partition = self._world.network, self._partition
        fault = network.trouble("loading", partition)
        if fault is None or network.chance(f"loaded of {partition}") < 0.5:
            return {}
        return {stream: RetryAfter(LOADING_S) for stream in self._sockets.some_stream(partition, fault.at_ms)}

    def begin_own(self, stream: StreamId, name: str) -> OwnProcess:
        """Have an aggregate decided in an actor of its own from now on, and in no other."""
        if stream in self.own_actors:
            return self.own_actors[stream]
        self._loop.residents.forget(stream)
        self.own_actors[stream] = own = OwnProcess(self._sockets, self, self._partition, stream, name)
        return own

    @property
    def epoch(self) -> int:
        """Of its activation."""
        return self._loop.epoch


class OwnLog:
    """The log as an own actor sees it: what `PartitionLog` is in `actors/partition/own_actor.py`."""

    def __init__(self, world: SocketWorld, home: ServingProcess, partition: int, stream: StreamId, name: str) -> None:
        self.given_up = False
        self._disk = world.disks[partition]
        self._home, self._stream, self._name = home, stream, name
        self._ids: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._disk, name)

    def activate(self) -> int:
        """The epoch is the partition's."""
        return 0

    def declare(self, shapes: Mapping[tuple[str, int], bytes]) -> None:
        """The partition has declared them."""

    def find_commands(self, command_ids: Sequence[bytes]) -> dict[bytes, CommandEntry | RayfoldError]:
        """The ids are asked about with the next append."""
        self._ids.extend(command_ids)
        return {}

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        """One call to the partition, which may not know this actor any more."""
        ids, self._ids = self._ids, []
        own = self._home.own_actors.get(self._stream)
        if self._home.ended or self._home.sealed or own is None or own.name != self._name:
            self.given_up = True
            raise Fenced(self._name, 0, 0)
        stored: dict[bytes, CommandEntry] = {}
        for command_id, entry in self._disk.find_commands(ids).items():
            if isinstance(entry, RayfoldError):
                raise entry
            stored[command_id] = entry
        if stored:
            raise AlreadyStored(stored)
        return self._disk.append(self._home.epoch, appends)


class OwnProcess(SimulatedProcess):
    """What `actors/partition/own_actor.py` is: one aggregate, decided in a process of its own, whose end its partition
    learns from clients."""

    def __init__(self, world: SocketWorld, home: ServingProcess, partition: int, stream: StreamId, name: str) -> None:
        self.name, self.partition = name, partition
        self._home = home
        self._log = OwnLog(world, home, partition, stream, name)
        self._attempts: RequestOrder = world.build.attempts()
        log: Any = self._log
        self._loop: WriteLoop = world.build.write_loop(partition, log, CATALOGUE, residents_max=1)

    def handle(self, method: str, *arguments: Any) -> bytes:
        """`execute`, the only call there is."""
        if self.ended:
            raise ProcessEnded
        client, attempt, predecessor, blob = arguments
        answers = self._attempts.run(client, attempt, predecessor, lambda: self._answer(list(unpack_batch(blob))))
        return b"" if answers is None else encode_answer(answers, batch_cost_s=0.0)

    def _answer(self, commands: Sequence[PackedCommand]) -> Sequence[Answered]:
        outcomes: list[Answered] = [Redirect("")] * len(commands)
        if not self._log.given_up:
            try:
                decided = self._loop.execute(commands).outcomes
            except Killed:
                self._home.end()
                raise ProcessEnded from None
            if any(isinstance(outcome, Fenced) for outcome in decided) and not self._log.given_up:
                self._home.end()
                raise ProcessEnded
            if not self._log.given_up:
                outcomes = [*decided]
        return outcomes


class SocketRouter(SimulatedRouter):
    """The router of one client: own actors are found without a thread, after a while."""

    def __init__(self, world: SocketWorld, partitions: Sequence[Any], settings: Settings) -> None:
        build = world.build

        class Connection(RecordedConnection):
            protocol_class = build.client

        class Transport(PartitionTransport):
            choice_class = build.choice
            connection_class = Connection

        self.transport_class = Transport
        self._world = world
        super().__init__(build, partitions, settings)

    async def _find(self, names: Sequence[str]) -> None:
        await asyncio.sleep(self._world.network.delay_s("look-up"))
        own = self._world.own_actors
        handles = {name: self._world.handle(own[name]) for name in names if name in own and not own[name].ended}
        self._routing.found(self._loop.time(), {name: self._own_actor_transport(one) for name, one in handles.items()})
        self._carry_out()


@dataclass
class SocketWorld(World):
    """Everything, and what every client was answered."""

    loses_answers: ClassVar[frozenset[str]] = World.loses_answers | {
        "kill partition",
        "kill before commit",
        "kept away",
        "connections cut",
        "bytes late",
        "server full",
        "moved",
        "client detached",
        "own actor killed",
    }

    build: SocketBuild
    links: list[Link] = field(default_factory=list)
    listening: dict[str, ServingProcess] = field(default_factory=dict)
    own_actors: dict[str, OwnProcess] = field(default_factory=dict)

    async def run(self) -> None:
        """The whole story, until everything has come to rest."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SocketLoop)
        loop.connect = self._connect
        self._former: dict[tuple[int, int], ServingProcess] = {}
        """By partition and which of its homes it was: the process that was sealed there."""
        self._homes = [0] * PARTITIONS
        """How often each partition has moved."""
        loop.call_at(PROBE_S, self._end_troubles)
        await super().run()

    def _end_troubles(self) -> None:
        """No process ends any more at a commit that was yet to come."""
        for disk in self.disks:
            disk.kill_at = ""

    def new_process(self, partition: int) -> ServingProcess:
        """See `World`."""
        return ServingProcess(self, partition)

    def new_router(self) -> CommandRouter:
        """See `World`. In one story of five a client may have but few commands on their way."""
        few = self.story.seed % 5 == 0
        settings = replace(SETTINGS, in_flight_max=FEW_IN_FLIGHT) if few else SETTINGS
        return SocketRouter(self, [self._at_home(number) for number in range(PARTITIONS)], settings)

    def handle(self, own: OwnProcess) -> ActorHandle:
        """Of an own actor."""
        return ActorHandle(self.network, own.partition, lambda: own)

    def _at_home(self, partition: int) -> ActorHandle:
        """The handle of a partition where it is at home now, which it stays when the partition moves on."""
        home = self._homes[partition]

        def current() -> Process:
            return self._former.get((partition, home)) or self._current(partition)

        return ActorHandle(self.network, partition, current)

    async def _connect(self, client: Any, path: str) -> None:
        process = self.listening[path]
        await asyncio.sleep(self.network.delay_s("connect"))
        if process.ended:
            raise ConnectionRefusedError(path)
        link = process.connect(client)
        self.links.append(link)
        client.connection_made(link)
        if self.network.trouble("server full", process._partition):
            link.close_server()

    def _begin(self, trouble: str, partition: int) -> None:
        """See `World`."""
        process = self.partitions[partition]
        assert isinstance(process, ServingProcess)
        if trouble == "connections cut":
            process.cut()
        elif trouble == "kept away":
            process.end()
        elif trouble == "moved":
            self._move(partition, process)
        elif trouble == "client detached":
            self._detach(self.routers[int(self.network.chance("who is detached") * CLIENTS)])
        elif trouble in ("own actor", "own actor killed"):
            for stream in self.some_stream(partition, int(self.loop.time() * 1000)):
                own = process.begin_own(stream, f"own-{len(self.own_actors)}")
                self.own_actors[own.name] = own
                if trouble == "own actor killed":
                    self.loop.call_later(OWN_LIVES_S * self.network.chance("own actor lives"), own.end)
        else:
            super()._begin(trouble, partition)

    def _restart(self, partition: int) -> None:
        """See `World`."""
        if self.network.trouble("kept away", partition):
            self.loop.call_later(RESTART_S, self._restart, partition)
        else:
            super()._restart(partition)

    def some_stream(self, partition: int, number: int) -> list[StreamId]:
        """One of the aggregates of a partition that the story is about, if it has any."""
        streams = sorted({_purse(act.purse) for act in self.story.acts if act.number < PROBES_FROM})
        here = [stream for stream in streams if partition_of(stream, PARTITIONS) == partition]
        return [here[number % len(here)]] if here else []

    def _move(self, partition: int, old: ServingProcess) -> None:
        """Seal the log, have a process at the new home take it over, and notify one client after the other."""
        old.sealed = True
        self._former[partition, self._homes[partition]] = old
        self._homes[partition] += 1
        self.partitions[partition] = self.new_process(partition)
        for router in self.routers:
            delay_s = REPLACED_S * self.network.chance("replaced")
            self.loop.call_later(delay_s, self._replace, router, partition)

    def _replace(self, router: CommandRouter, partition: int) -> None:
        router.replace(partition, self._at_home(partition))

    def _detach(self, router: CommandRouter) -> None:
        router.detach("the head of the cluster does not answer")
        self.loop.call_later(REPLACED_S * self.network.chance("attached"), self._attach, router)

    def _attach(self, router: CommandRouter) -> None:
        for partition in range(PARTITIONS):
            self._replace(router, partition)
        router.set_unavailable({})


def _purse(number: int) -> StreamId:
    return StreamId("Purse", f"purse-{number}")
