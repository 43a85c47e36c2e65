"""A program of a cluster, in a process of its own: it joins, sends, reads, and does what its standard input asks for.

A process can be connected to one Ray only, and one whose node is killed hangs or ends. So every client of a cluster
under torture is a child, on a node of its own choice, and what it knew is in its journal (`history.py`). `Program` is
the scenario's end of it: over it the child gets its orders, is waited for, and is killed.

Rules kept here: one line in, one line out, both JSON; an error of ours is an answer, and no answer is waited for
without a deadline, for a program whose node is gone may hang. The load goes to each partition by itself, so that one
which is away takes no client from the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import msgpack

from rayfold import Aggregate, Envelope, RayfoldError, derived_id
from rayfold.actors.api.connection import Connection
from rayfold.actors.cluster.environment import prepare_environment
from rayfold.actors.cluster.names import supervisor_name
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.packaging.application import Application
from rayfold.actors.settings import Settings
from rayfold.actors.system.remote import RemoteSystem
from rayfold.runtime.log.format import stream_id
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.store.readable_store import ReadableStore
from rayfold.runtime.stream import partition_of

from ...harness.processes import Child, ChildEnded
from ..bank import AllTotals, Jar, OwnJar, Put, Totals, puts_and_takes
from ..checking import Watcher, read_own_writes
from ..contract import Findings
from ..history import JournaledHistory, Sender

__all__ = ["APP", "Program", "ProgramError"]

_ANSWER_TIMEOUT_S: Final = 120.0
"""For what takes seconds at most, on a machine where everything else starts at the same time."""

APP: Final = "torture"
"""The name of the application, and of the folder of its shares."""

DEPTH: Final = 2
"""Commands in flight of one program to one partition."""

PAUSE_S: Final = 0.01
"""Between two commands of one in flight: some hundred commands a second and partition, which leave the nodes the CPU
that they need to come back, and show a gap of some hundredths of a second."""

_JARS: Final = 8
"""Of one partition."""

_ATTEMPT_S: Final = 20.0
"""For a command; after it the outcome is unknown, and the sender sends it again."""

_LOOK_S: Final = 0.5
"""Between two looks of the watcher, which reads through the node agents."""

_PROBE_TIMEOUT_S: Final = 2.0
_RETRY_S: Final = 0.05
_JOIN_RETRY_S: Final = 0.25


class ProgramError(Exception):
    """An error of ours that a program got; its type and its sentence."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.kind, self.text = kind, text

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}"


class Program(Child):
    """One program, as the scenario holds it."""

    def __init__(self, address: str, node: str, number: int, seed: int, folder: Path, **options: Any) -> None:
        """`number`: of no other program of this scenario. `folder`: for its journal, and its standard error.
        `options`: see `Child`."""
        given: dict[str, Any] = {"address": address, "node": node, "number": number, "seed": seed}
        errors = folder / f"program-{number}.log"
        super().__init__(serve, listens=True, errors=errors, folder=str(folder), **given, **options)
        self.name = f"program {number} on {node}"
        self.journal = folder / f"journal-{number}"
        self.seen = folder / f"seen-{number}"
        """What its watcher has read; not there if the program was killed."""

    def begin(self, what: str, *arguments: Any) -> None:
        """Have it begin with something, whose `answer` is waited for later. Raises `ChildEnded`."""
        self.write_line(json.dumps([what, *arguments]))

    def answer(self, timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
        """What came of it. Raises `ProgramError`, and `ChildEnded` if it has ended or prints nothing for so long."""
        try:
            told = json.loads(self.next_line(timeout_s))
        except TimeoutError:
            raise ChildEnded(f"{self.name} has not answered for {timeout_s:g} s") from None
        if "error" in told:
            raise ProgramError(told["error"], told["text"])
        return told["answer"]

    def ask(self, what: str, *arguments: Any, timeout_s: float = _ANSWER_TIMEOUT_S) -> Any:
        """Have it do something, and what came of it."""
        self.begin(what, *arguments)
        return self.answer(timeout_s)


# --- in the child -----------------------------------------------------------------------------------------------------


def _jars_of(aggregate: type[Aggregate], partition: int, store: ReadableStore, count: int) -> list[str]:
    """So many names of jars of a kind that live in a partition."""
    names = (f"jar-{number}" for number in itertools.count())
    kind = aggregate.aggregate_type
    place = partial(partition_of, partitions=store.partitions, placement=store.placement)
    there = (name for name in names if place(stream_id(kind, name)) == partition)
    return list(itertools.islice(there, count))


class _Program:
    """One program. Used on its event loop only."""

    def __init__(self, address: str, number: int, seed: int, folder: Path) -> None:
        self._address, self._number, self._seed, self._folder = address, number, seed, folder
        self._history = JournaledHistory(folder / f"journal-{number}")
        self._bank: Connection
        self._sender: Sender
        self._stop = asyncio.Event()
        self._load: list[asyncio.Task[None]] = []
        self._watcher: Watcher | None = None
        self._probes = itertools.count()
        self._findings = Findings({"session_reads": 0, "unanswered_queries": 0})

    # --- the system ----------------------------------------------------------------------------------------------

    async def join(self, timeout_s: float) -> None:
        """Join the cluster, also if it is not up yet."""
        await self._until(timeout_s, lambda: asyncio.to_thread(_joined, self._address))

    async def connect(self, timeout_s: float) -> None:
        """Find the application, also if it is not to be found yet. Nothing is done for it: it has to be there by
        itself."""
        self._bank = await self._until(timeout_s, lambda: _PlainConnection(APP, None, self._address).start())
        client = cast(RemoteSystem, self._bank._running).client
        self._sender = Sender(client._router, self._history, self._seed + self._number, _ATTEMPT_S)

    async def deploy(self, partitions: int, replicas: int) -> int:
        """Deploy the application, or deploy it again; its generation."""
        from rayfold.actors.control.deployment import await_deployed, begin_deployment

        settings = Settings(timeout_s=30.0, own_actors_max=2, local_sockets=False)  # between machines there are none
        parts: dict[str, Any] = {"aggregates": [Jar, OwnJar], "projections": [Totals], "settings": settings}
        application = Application(APP, partitions=partitions, replicas=replicas, **parts)
        cluster = _joined(self._address)
        plan = await begin_deployment(application, cluster, create=True)
        return (await await_deployed(plan, cluster)).generation

    async def deployed(self) -> int:
        """The generation of the code, once nothing is being deployed."""
        rolled = await cast(RemoteSystem, self._bank._running).ask(lambda supervisor: supervisor.deployed)
        return int(rolled.generation)

    async def status(self) -> dict[str, Any]:
        """The supervisor's status of everything, and the partitions that are unavailable by the topology."""
        status = await self._bank.status()
        topology = cast(RemoteSystem, self._bank._running)._present
        return {
            "partitions": [one._asdict() for one in status.partitions],
            "projectors": [one._replace(quarantined=())._asdict() for one in status.projectors],
            "nodes": [one._asdict() for one in status.nodes],
            "unavailable": dict(topology.unavailable),
            "generation": topology.generation,
        }

    async def names(self) -> dict[str, str]:
        """Every actor of the application, by its name, with Ray's id of it: another one is another actor."""
        from ray.util import list_named_actors

        names = await asyncio.to_thread(list_named_actors)
        actors = {}
        for name in names:
            if name == supervisor_name(APP) or name.startswith(f"{APP}/"):
                with contextlib.suppress(ValueError):
                    actors[name] = self._cluster.actor_named(name)._actor_id.hex()
        return actors

    async def verify(self) -> list[Any]:
        """Problems that the nodes find in their logs, at most a few; and how many events were checked."""
        report = await self._bank.verify()
        return [[str(problem) for problem in report.problems[:3]], sum(one.events for one in report.partitions)]

    async def move(self, partition: int, node: str) -> list[Any]:
        """See `Connection.move`."""
        return list(await self._bank.move(partition, node))

    async def rebalance(self) -> int:
        """See `Connection.rebalance`; how many moves it took."""
        return len(await self._bank.rebalance())

    async def totals(self, times: int) -> list[dict[str, list[int]]]:
        """The read model so many times, from one replica after the other, each at the end of all logs or beyond."""
        heads = await self._bank.heads()
        return [await self._bank.ask(Totals, AllTotals(), after=heads, timeout_s=60) for _ in range(times)]

    async def look(self, partition: int) -> int:
        """How many events of a partition this program can read, through the node agent of its home."""
        with contextlib.closing(self._bank._store.open_reader(partition)) as reader:
            return await asyncio.to_thread(reader.head)

    # --- the load ------------------------------------------------------------------------------------------------

    async def begin_load(self) -> None:
        """Send to every partition, to aggregates in it and in actors of their own, and read in a session, until
        `end_load`."""
        store = self._bank._store
        for partition in range(store.partitions):
            client = self._number * 1000 + partition * 2
            shared, own = _jars_of(Jar, partition, store, _JARS), _jars_of(OwnJar, partition, store, 1)
            self._begin(puts_and_takes(self._seed, client, shared), DEPTH)
            self._begin(puts_and_takes(self._seed, client + 1, [], own, own_share=1.0), 1)
        self._load.append(asyncio.create_task(self._read_own_writes()))
        self._watcher = Watcher(self._bank._store, _LOOK_S)

    def _begin(self, commands: Iterator[Envelope], depth: int) -> None:
        driving = self._sender.drive(commands, self._stop, depth, pause_s=PAUSE_S)
        self._load.append(asyncio.create_task(driving))

    async def end_load(self) -> dict[str, Any]:
        """Send no more; what the reading has found, once every command has its last outcome."""
        self._stop.set()
        await asyncio.gather(*self._load)
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
            (self._folder / f"seen-{self._number}").write_bytes(msgpack.packb(self._watcher.seen))
            failed = self._watcher.failed
            self._findings.check("I4", not failed, f"a reader beside the writers failed: {failed}")
        return asdict(self._findings)

    async def acknowledged(self, partitions: list[int], timeout_s: float) -> None:
        """A command to each of these partitions, sent now, is acknowledged. Raises the last error if one is not."""
        await asyncio.gather(*(self._probe(one, time.monotonic() + timeout_s) for one in partitions))

    async def _probe(self, partition: int, deadline_s: float) -> None:
        [jar] = _jars_of(Jar, partition, self._bank._store, 1)
        outcome: Any = None
        while not isinstance(outcome, Receipt):
            if outcome is not None:
                if time.monotonic() > deadline_s:
                    raise outcome
                await asyncio.sleep(_RETRY_S)
            identity = derived_id("probe", self._seed, self._number, next(self._probes))
            envelope = Envelope(Jar, jar, Put(amount=1, note="probe"), identity)
            outcome = (await self._sender.send(envelope, _PROBE_TIMEOUT_S)).outcome

    async def _read_own_writes(self) -> None:
        def unanswered(_error: RayfoldError) -> None:
            self._findings.count("unanswered_queries")

        session, jar = self._bank.session(), f"session-{self._number}"
        await read_own_writes(session, self._sender, jar, self._stop, self._findings, unanswered, _ATTEMPT_S)

    # -------------------------------------------------------------------------------------------------------------

    @property
    def _cluster(self) -> Cluster:
        return cast(RemoteSystem, self._bank._running)._cluster

    async def _until(self, timeout_s: float, trying: Any) -> Any:
        """Try again until it succeeds. Raises the last failure."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                return await trying()
            except Exception:
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(_JOIN_RETRY_S)


class _PlainConnection(Connection):
    """A connection that observes the application as it is, and does not start its supervisor."""

    def _made(self) -> RemoteSystem:
        return _PlainSystem(self.name, None)


class _PlainSystem(RemoteSystem):
    async def start(self) -> None:
        """See `RemoteSystem`."""
        await self.attach(Cluster.inside())


def _joined(address: str) -> Cluster:
    return Cluster.start_or_join(num_cpus=None, own_actors_max=0, cluster=address)


def _attach_to(node: str) -> None:
    """Have the Ray of this process hang on the node of this name. Of several on one machine it takes the head, and a
    program of another machine would hang on that machine's."""
    from ray._private import services

    chosen: Any = partial(services.get_node_to_connect_for_driver)

    def of_that_name(*arguments: Any, **options: Any) -> Any:
        return chosen(*arguments, **{**options, "node_name": node})

    services.get_node_to_connect_for_driver = of_that_name


async def _obey(program: _Program, answers: Any) -> None:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        what, *arguments = json.loads(line)
        try:
            told = {"answer": await getattr(program, what)(*arguments)}
        except Exception as error:
            told = {"error": type(error).__name__, "text": " ".join(str(error).split())}
        print(json.dumps(told), file=answers, flush=True)


def serve(address: str, node: str, number: int, seed: int, folder: str) -> None:
    """What the child runs, until its standard input ends. `node`: the name of the one that it is on; empty for any."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # Ray writes there, whenever a node is lost
    prepare_environment(loopback=address.startswith("127."))
    if node:
        _attach_to(node)

    async def run() -> None:
        await _obey(_Program(address, number, seed, Path(folder)), answers)

    asyncio.run(run())
    os._exit(0)  # a Ray whose node is gone would have us wait
