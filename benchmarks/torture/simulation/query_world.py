"""Query world: clients that ask a projector over simulated sockets, in one simulation with partitions and commands,
which broadcast to it over simulated sockets as well.

Real are the pool of replicas with its state, the search for a socket, both ends' protocols, the table of what waits,
what broadcasts, and the read model. Simulated are the network, whose bytes are late, come in pieces and are cut, the
clock, and what happens to processes: the projector is killed with what is parked in it, loses broadcasts, and comes
back.
"""

from __future__ import annotations

import asyncio
import pickle
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from rayfold.actors.client.query_connection import QueryConnection
from rayfold.actors.client.query_protocol import QueryClientProtocol
from rayfold.actors.client.replica_pool import ReplicaPool
from rayfold.actors.partition.broadcast import Broadcast, Recipient
from rayfold.actors.partition.broadcast_protocol import BroadcastClientProtocol
from rayfold.actors.partition.projector_links import ProjectorLink
from rayfold.actors.projection.broadcast_protocol import BroadcastServerProtocol, Committed
from rayfold.actors.projection.query_protocol import Asked, Awaited, QueryServerProtocol
from rayfold.actors.projection.waiting_queries import WaitingQueries, WaitingQuery
from rayfold.actors.sockets.handshake import Handshake
from rayfold.actors.sockets.query_frames import Answered, AnsweredAfter
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.query_batch import PackedQuery, split_queries
from rayfold.runtime.errors import NotYetVisible, RayfoldError

from .broadcast_network import BroadcastLink, SimulatedLinks
from .network import ActorHandle, Handle, Network, ProcessEnded
from .purses import InPurse
from .socket_network import ClientLink, SocketLoop
from .story import CLIENTS, PARTITIONS, PURSES, Act, SocketTrouble, Story, Trouble, draw, probes
from .world import ASK_TIMEOUT_S, HANGS_S, SETTINGS, Build, PartitionProcess, ProjectorProcess, Read, World

__all__ = ["PROBES_FROM", "Answer", "QueryBuild", "QueryWorld", "draw_query_story"]

PROBES_FROM: Final = 100_000
PROBE_S: Final = 8.0
"""When every purse is asked for once more: nothing is wrong any more."""

TROUBLES: Final[tuple[Trouble | SocketTrouble, ...]] = (
    "connections cut",
    "bytes late",
    "kill projector",
    "broadcast lost",
)

HARMLESS: Final = frozenset({"connections cut", "bytes late"})
"""Where nothing else happens, everything arrives by being broadcast: the projector is never asked to read a log by
itself. Whatever is lost on the way has to be followed by the head."""

ROOMS_BYTES: Final = (150, 200_000)
"""What a socket to a projector takes before it is read: in every third story less than a frame."""

LOOKS_S: Final = 0.05
"""How long a query waits before the projector sends how far it is, and reads the log."""


@dataclass(frozen=True, slots=True)
class QueryBuild(Build):
    """The parts that are under test. A planted bug replaces one of them."""

    client: type[QueryClientProtocol] = QueryClientProtocol
    server: type[QueryServerProtocol] = QueryServerProtocol
    waiting: type[WaitingQueries] = WaitingQueries
    pool: type[ReplicaPool] = ReplicaPool
    ends: type[BroadcastClientProtocol] = BroadcastClientProtocol
    reads: type[BroadcastServerProtocol] = BroadcastServerProtocol
    recipient: type[Recipient] = Recipient
    link: type[ProjectorLink] = ProjectorLink


class Answer(NamedTuple):
    """What became of one query."""

    act: Act
    began_s: float
    ended_s: float
    value: Any


def draw_query_story(seed: int) -> Story:
    """A story of the simulation of partitions with more queries in it, connections that are cut and bytes that are
    late."""
    rng = random.Random(seed)
    story = draw(seed)
    burst_ms = rng.choice((1, 200, 1_000))  # what several write at once is waited for
    acts = [
        act._replace(kind="ask" if rng.random() < 0.4 else act.kind, at_ms=act.at_ms // burst_ms * burst_ms)
        for act in story.acts
    ]
    troubles = TROUBLES[: rng.choice((1, len(TROUBLES)))]
    keeps = rng.choice((0.0, 0.4))
    faults = [
        fault
        if rng.random() < keeps
        else fault._replace(trouble=rng.choice(troubles), at_ms=fault.at_ms // burst_ms * burst_ms + rng.randrange(20))
        for fault in story.faults
    ]
    last = probes(PROBES_FROM, PROBE_S, "ask", careful=True)
    return replace(story, acts=(*sorted(acts, key=lambda act: act.at_ms), *last), faults=tuple(sorted(faults)))


class QueryLink(ClientLink):
    """One connection to a projector."""

    def __init__(self, network: Network, client: QueryConnection, server: ServingProjector) -> None:
        super().__init__(network, 0, "queries", "answers to queries", client)
        self.protocol = server.build.server()
        self._server = server
        self._handshake = Handshake("projector")

    def cut(self) -> None:
        """The connection breaks; neither end has wanted it."""
        super().cut()
        self.close_server()

    def close_server(self) -> None:
        """The projector ends the connection: there is no more to read, or it does not want it."""
        if self.server_open:
            self._server.waiting.drop(self)
        super().close_server()

    def answer(self, data: bytes) -> None:
        """The projector sends."""
        if self.server_open:
            self._down.write(data)

    def _receive(self, data: bytes) -> None:
        if self.server_open and not self._handshake.done:
            self._handshake.receive(data)
            if self._handshake.wanted_bytes:
                return
            self.answer(self._handshake.greeting())
            data = self._handshake.rest
        if self.server_open and data:
            for call in self.protocol.receive(data):
                self._server.serve(self, call)
            if self.protocol.refused:
                self.close_server()


class SendingProcess(PartitionProcess):
    """What a partition's actor is, with its broadcast to the projector."""

    def __init__(self, world: QueryWorld, partition: int) -> None:
        build, few = world.build, not world.story.seed % 3

        class SmallProtocol(build.ends):  # type: ignore[misc, name-defined]  # the one that is under test
            def __init__(self, partition: int) -> None:
                super().__init__(partition, **({"frames_max": 1} if few else {}))

        class Connected(build.link):  # type: ignore[misc, name-defined]  # the same
            protocol_class = SmallProtocol

        class Sending(Broadcast):
            def new_recipient(self, projector: Any) -> Recipient:
                return build.recipient(self, partition, projector)

        network, room_bytes = world.network, ROOMS_BYTES[not few]
        self.links = SimulatedLinks(network, partition, world.projectors, Connected, room_bytes)
        handle: Any = ActorHandle(network, partition, lambda: world.projector)
        clock, later = world.loop.time, world.loop.call_later
        self._broadcasts = Sending(partition, lambda _: handle, self.links, now_s=clock, later=later)
        self._broadcasts.set_projectors(("projector",))
        super().__init__(world, partition)

    def _end_parts(self) -> None:
        self._broadcasts.close()

    def broadcast(self, records: list[bytes]) -> None:
        """See `PartitionProcess`. In trouble some are not sent, or twice."""
        network, number = self._world.network, self._partition
        if network.trouble("broadcast lost", number) and network.chance("lost broadcast") < 0.5:
            return
        for _ in range(1 + (network.trouble("broadcast repeated", number) is not None)):
            self._broadcasts.send(records)


class ServingProjector(ProjectorProcess):
    """What `actors/projection/actor.py` is, with its socket and what waits (`query_server.py`), in simulated time."""

    def __init__(self, world: QueryWorld) -> None:
        self.path = f"projector.{len(world.projectors)}"
        self.waiting = world.build.waiting()
        self.build, self._world = world.build, world
        self._links: list[QueryLink | BroadcastLink] = []
        self._incarnation = b"%08d" % len(world.projectors)
        world.projectors[self.path] = self
        super().__init__(world)
        self.model.notify_changed = self._attend
        self._looking = world.loop.create_task(self._look())

    def _end_parts(self) -> None:
        self.stop_looking()
        for link in self._links:
            link.end_process()

    def connect(self, client: QueryConnection) -> QueryLink:
        """Let a client in."""
        link = QueryLink(self._world.network, client, self)
        self._links.append(link)
        return link

    def read_broadcasts(self, link: BroadcastLink) -> BroadcastServerProtocol | None:
        """Let a partition in."""
        if self.ended:
            return None
        self._links.append(link)
        return self.build.reads(range(PARTITIONS))

    def take_in(self, committed: Committed) -> None:
        """What a partition has broadcast."""
        if self.ended:
            raise ProcessEnded
        self.model.apply(*committed)

    def stop_looking(self) -> None:
        """Time passes no more here."""
        self._looking.cancel()

    def cut(self) -> None:
        """Break every connection."""
        for link in self._links:
            link.cut()

    def handle(self, method: str, *arguments: Any) -> Any:
        """Through Ray: `apply`, `socket_path`, `ask` and `ask_after`, and the `ask` of the checks."""
        if self.ended:
            raise ProcessEnded
        if method == "socket_path":
            return self.path
        if method == "incarnation":
            return self._incarnation
        if method == "ask" and isinstance(arguments[0], bytes):
            return self._ask(split_queries(arguments[0]), arguments[1])
        if method == "ask_after":
            return self._ask_after(split_queries(arguments[0]), arguments[1])
        return super().handle(method, *arguments)

    def serve(self, link: QueryLink, call: Asked | Awaited) -> None:
        """Over a socket."""
        if isinstance(call, Asked):
            link.answer(link.protocol.answered(call.call, *self._ask(call.queries, call.needs)))
            return
        now_s = self._world.loop.time()
        for index, (left_s, after) in enumerate(call.waits):
            entry = WaitingQuery(link, call.call, index, call.queries[index], after)
            beyond = any(self._head(partition) < position for partition, position in after.items())
            if beyond:
                self._answer(entry, self._late(entry))
            elif not self.waiting.park(entry, left_s, self.model.positions, now_s):
                self._answer(entry)

    def _attend(self) -> None:
        if not self.ended:
            for entry in self.waiting.wake(self.model.positions):
                self._answer(entry)

    async def _look(self) -> None:
        """Deadlines, lost broadcasts, and how far this is."""
        while True:
            await asyncio.sleep(LOOKS_S)
            for entry in self.waiting.expire(self._world.loop.time()):
                self._answer(entry, self._late(entry))
            for link in self.waiting.connections():
                assert isinstance(link, QueryLink)
                link.answer(link.protocol.reached(dict(self.model.positions), self._incarnation))
            for number in self.waiting.wanted() if self._world.reads_logs else ():
                self.model.catch_up(number)

    def _answer(self, entry: WaitingQuery, refusal: RayfoldError | None = None) -> None:
        link = entry.connection
        assert isinstance(link, QueryLink)
        if link.server_open:
            value = refusal or self._value((entry.name, entry.payload))
            answers = [(entry.index, pickle.dumps(value))]
            link.answer(link.protocol.some(entry.call, answers, dict(self.model.positions), self._incarnation))

    def _ask(self, queries: Sequence[tuple[str, bytes]], needs: Mapping[int, int]) -> Answered:
        positions = dict(self.model.positions)
        if any(positions[partition] < position for partition, position in needs.items()):
            return Answered(b"", positions, self._incarnation)
        return Answered(pickle.dumps([self._value(query) for query in queries]), positions, self._incarnation)

    def _ask_after(self, queries: Sequence[tuple[str, bytes]], afters: Sequence[Mapping[int, int]]) -> Any:
        positions = dict(self.model.positions)
        ready = [at for at, after in enumerate(afters) if all(positions[one] >= after[one] for one in after)]
        answers = {at: pickle.dumps(self._value(queries[at])) for at in ready}
        ends = {one: self._head(one) for one in positions}
        return AnsweredAfter(pickle.dumps(answers), positions, self._incarnation, ends)

    def _value(self, query: tuple[str, bytes]) -> Any:
        return self.model.answer([query], lambda answers: list(answers[0]))

    def _head(self, partition: int) -> int:
        return self._world.disks[partition].log.head()

    def _late(self, entry: WaitingQuery) -> RayfoldError:
        [(partition, position), *_] = entry.after.items()
        return NotYetVisible("Contents", partition, position, self.model.positions[partition])


@dataclass
class QueryWorld(World):
    """Everything, and what every client was answered."""

    build: QueryBuild
    answers: list[Answer] = field(default_factory=list)
    projectors: dict[str, ServingProjector] = field(default_factory=dict)
    pools: list[ReplicaPool] = field(default_factory=list)
    left: tuple[int, list[int]] = (0, [])
    """In the end: queries that are parked, and those that each client keeps."""
    processes: list[SendingProcess] = field(default_factory=list)
    behind: dict[int, int] = field(default_factory=dict)
    """By partition: how many events the projector lacks in the end."""

    async def run(self) -> None:
        """The whole story, until everything has come to rest."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SocketLoop)
        loop.connect = self._connect
        self.reads_logs = not {fault.trouble for fault in self.story.faults} <= HARMLESS
        await super().run()
        positions = self.projector.model.positions
        self.behind = {number: disk.log.head() - positions[number] for number, disk in enumerate(self.disks)}
        self.left = self.parked(), [len(pool._pending) for pool in self.pools]
        for one in self.projectors.values():
            one.stop_looking()

    def new_process(self, partition: int) -> SendingProcess:
        """See `World`."""
        self.processes.append(SendingProcess(self, partition))
        return self.processes[-1]

    def new_projector(self) -> ProjectorProcess:
        """See `World`."""
        return ServingProjector(self)

    def _connect_pools(self) -> None:
        build, settings = self.build, replace(SETTINGS, local_sockets=True)

        class Connection(QueryConnection):
            protocol_class = build.client

        class Pool(build.pool):  # type: ignore[misc, name-defined]  # the one that is under test
            connection_class = Connection

        handle: Handle = ActorHandle(self.network, 0, lambda: self.projector)
        self.pools = [Pool("Contents", [handle], settings) for _ in range(CLIENTS)]

    async def _connect(self, client: Any, path: str) -> None:
        projector = self.projectors[path]
        await asyncio.sleep(self.network.delay_s("connect"))
        if projector.ended:
            raise ConnectionRefusedError(path)
        client.connection_made(projector.connect(client))

    def _begin(self, trouble: str, partition: int) -> None:
        """See `World`."""
        if trouble == "connections cut":
            assert isinstance(self.projector, ServingProjector)
            self.projector.cut()  # at both of its ends, those of partitions too
        else:
            super()._begin(trouble, partition)

    async def _send(self, act: Act) -> None:
        """A command, and at once the queries that are to see it: of a kind that waits, several in one call."""
        await super()._send(act)
        purses = [(act.purse + further) % PURSES for further in range(1 + act.number % 3)]
        await asyncio.gather(*[self._ask(act._replace(kind="ask", purse=purse, careful=True)) for purse in purses])

    async def _ask(self, act: Act) -> None:
        """One query by the pool of its client."""
        if not self.pools:
            self._connect_pools()
        after = dict(self._seen[act.client]) if act.careful else {}
        query, seen = InPurse(purse=f"purse-{act.purse}"), list[dict[int, int]]()
        packed, began_s = PackedQuery(InPurse.message_name, encode_message(query)), self.loop.time()
        asked = self.pools[act.client].ask(packed, after, ASK_TIMEOUT_S, seen.append)
        await asyncio.wait([asked], timeout=HANGS_S)
        if not asked.done():
            self.hanging.append(act)
            return
        value = asked.result()
        self.answers.append(Answer(act, began_s, self.loop.time(), value))
        if not isinstance(value, RayfoldError):
            self.reads.append(Read(act, seen[0], after, value))

    def parked(self) -> int:
        """Queries that wait in projectors that have not ended."""
        return sum(len(one.waiting) for one in self.projectors.values() if not one.ended)
