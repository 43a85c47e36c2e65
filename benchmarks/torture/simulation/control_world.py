"""The control plane in simulated time: nodes with disks, a network, supervisors, and a client that tries everything.

Real are the supervision with its watch, replacements and moves, the agreement about the map (`nodes/agents.py`), what
happens to a node's share (`node_share.py`), what a partition's actor does with its log (`log_owner.py`), sealing and
home statements. Simulated are the clock, the network, disks, and what Ray does: names, processes, restarts.

Each message of the protocol and each write to a disk is a *step*, numbered in the order in which they happen; a plan
has which faults happen at which step (`control_running.py`). After each step the invariants are checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal, NamedTuple, TypeVar

from rayfold.actors.cluster.names import node_agent_name, partition_named
from rayfold.actors.cluster.ray_cluster import ClusterView, NodeFacts
from rayfold.actors.cluster.rpc import replies
from rayfold.actors.control.moves import PartitionMoves
from rayfold.actors.control.partitions import PartitionActors
from rayfold.actors.control.replacements import Replacements
from rayfold.actors.control.rollout import Rollout
from rayfold.actors.control.supervision import Supervision
from rayfold.actors.nodes.agents import NodeAgents
from rayfold.actors.nodes.move_result import MoveResult
from rayfold.actors.packaging.application import ApplicationPlan
from rayfold.actors.packaging.registry import Deployment
from rayfold.actors.packaging.shipping import ship
from rayfold.actors.partition.actor import PartitionPlan
from rayfold.actors.partition.log_owner import LogOwner
from rayfold.actors.settings import Settings
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.errors import RayfoldError, Sealed, StorageFailed, StoreError, Unavailable
from rayfold.runtime.log.sealing import Seal, WriteOwnership
from rayfold.runtime.store.home_statement import copy_name
from rayfold.runtime.store.node_share import NodeShare, check_epoch, check_home
from rayfold.runtime.store.partition_map import PartitionMap

from .clock import SimulatedLoop
from .control_disk import Disk, File, OpenLog
from .network import Handle, Killed, ProcessEnded, fail, tell

__all__ = ["NAMES", "STORIES", "ControlBuild", "ControlLoop", "ControlWorld", "Fault", "Story"]

Result = TypeVar("Result")

A, B, C = "a", "b", "c"
NAMES: Final = {A: "node-a", B: "node-b", C: "node-c"}
APP: Final = "bank"
MOVED: Final = 0
"""The partition that moves, from A to B. C is home to nothing, and the supervisors are there."""

QUIET: Final = frozenset({"head", "map", "execute", "tick", "set_projectors", "residents", "read"})
"""Calls that change nothing, and are too many to be steps."""

MESSAGE_S: Final = 0.003
NOTICED_S: Final = 0.2
RESTART_S: Final = 0.5
AWAY_S: Final = 40.0
"""How long a killed or cut-off node is away, and a disk refuses to be written."""

SUPERVISOR_S: Final = 3.0
"""Until a supervisor that was killed is started again."""

LATE_S: Final = 45.0
"""How late a message is that is delivered beyond the deadline of its sender, or a second time."""

WATCH_S: Final = 4.0
CLIENT_S: Final = 1.0
STORY_AT_S: Final = 3.0
REST_MAX_S: Final = 1500.0
SETTINGS: Final = Settings(silent_s=20.0, local_sockets=False)


Story = Literal["move", "back", "create", "deploy", "drain", "forgotten"]
"""What is done while things go wrong: a partition moves; moves there and back; a store is made; the application gets
new code; a node is emptied; a new node is the only one that is up, and Ray's directory has forgotten the store."""

STORIES: Final[tuple[Story, ...]] = Story.__args__  # type: ignore[attr-defined]


class Fault(NamedTuple):
    """One thing that goes wrong, at one step."""

    step: int
    kind: str


@dataclass(frozen=True, slots=True)
class ControlBuild:
    """The parts that are under test. A planted bug replaces one of them."""

    share: type[NodeShare] = NodeShare
    owner: type[LogOwner] = LogOwner
    shares: type[NodeAgents] = NodeAgents
    moves: type[PartitionMoves] = PartitionMoves
    log: type[OpenLog] = OpenLog


@dataclass(slots=True)
class Node:
    """A machine: its disk outlives everything on it."""

    node_id: str
    disk: Disk
    up: bool = True
    cut: bool = False
    """Its messages do not reach the others, though its processes go on."""
    started: int = 1
    refuses_until_s: float = 0.0


class Process:
    """What runs on a node under a name in Ray."""

    def __init__(self, world: ControlWorld, node: Node, name: str) -> None:
        self.world, self.node, self.name = world, node, name
        self.ended = False

    def handle(self, method: str, *arguments: Any) -> Any:
        """Answer a call."""
        return getattr(self, method)(*arguments)


class _NodeAgentProcess(Process):
    """In place of `NodeAgent`: the same calls, to the same `NodeShare`."""

    @property
    def share(self) -> NodeShare:
        """The decisions about this node's share."""
        return self.world.build.share(self.node.disk, self.node.node_id)

    def handle(self, method: str, *arguments: Any) -> Any:
        doing: dict[str, Any] = {"open": self.share.facts, "read": self._read, "pull": self._pull}
        doing["map"] = lambda: self.node.disk.map
        answer = doing.get(method) or getattr(self.share, method)

        @replies
        def done() -> object:
            return answer(*arguments)

        return done()

    def _read(self, partition: int, what: str, arguments: tuple[int, ...]) -> Any:
        store_map = self.node.disk.map
        if store_map is None:
            raise Unavailable(f"partition {partition}", "its home has not been opened")
        check_home(store_map, partition, self.node.node_id)
        if copy_name(partition) not in self.node.disk.files:
            raise StorageFailed(self.node.node_id, "the log is not here")
        if what == "segment":
            return self.node.disk.piece(copy_name(partition), *arguments)
        if what == "subscription_rows":
            return {}
        return len(self.node.disk.files[copy_name(partition)].values)

    def _pull(self, partition: int, source: str, up_to: int) -> int:
        def fetch(after: int, until: int) -> Any:
            return self.world.call_now(self.node, source, "read", partition, "segment", (after, until)).unwrap()

        return self.share.pull(partition, up_to, fetch)


class _PartitionProcess(Process):
    """In place of `PartitionActor`: the same calls, to the same `LogOwner`."""

    def __init__(self, world: ControlWorld, node: Node, name: str, partition: int) -> None:
        super().__init__(world, node, name)
        self.partition = partition
        self.log: OpenLog | None = None
        self.epoch = 0
        self.owner = world.build.owner(
            f"partition {partition}",
            open_log=self._open_log,
            let_go=self._let_go,
            serves=lambda: self.log is not None,
            map_here=self._map_here,
        )

    @replies
    def prepare(self, _saved: Any) -> None:
        """See `PartitionActor`."""

    @replies
    def residents(self, _first: int) -> list[Any]:
        """See `PartitionActor`: nothing is in memory here."""
        return []

    @replies
    def open(self) -> None:
        self._ensure_open()

    @replies
    def seal(self, successor: str) -> Seal:
        return self.owner.seal(successor)

    @replies
    def hand_over(self, successor: str, epoch: int, version: int) -> WriteOwnership:
        return self.owner.hand_over(successor, epoch, version)

    @replies
    def unseal(self, successor: str, epoch: int) -> None:
        self.owner.unseal(successor, epoch)
        self._ensure_open()

    @replies
    def close(self) -> None:
        self.owner.released = True
        self._let_go()

    def tick(self) -> None:
        with contextlib.suppress(StoreError):
            self._ensure_open()

    @replies
    def set_projectors(self, _names: Any) -> None:
        self.tick()

    @replies
    def head(self) -> int:
        self._ensure_open()
        assert self.log is not None
        return len(self.log.file.values)

    @replies
    def process_id(self) -> int:
        return 1

    def execute(self, value: int) -> bool:
        """A command. Whether it was acknowledged."""
        try:
            self._ensure_open()
            assert self.log is not None
            self.log.append(self.epoch, value)
        except Sealed:
            self.owner.released = True
            return False
        except RayfoldError:
            return False
        return True

    def _ensure_open(self) -> None:
        if self.log is None:
            self.owner.check()
            log = self._open_log()
            self.epoch = log.activate()
            self.log = log

    def _map_here(self) -> PartitionMap:
        store_map = self.node.disk.map
        if store_map is None:
            raise Unavailable(f"partition {self.partition}", "there is no map")
        return store_map

    def _open_log(self) -> OpenLog:
        store_map, name = self._map_here(), copy_name(self.partition)
        check_home(store_map, self.partition, self.node.node_id)
        opened = self.node.disk.open_log(name, create=False)
        check_epoch(store_map, self.partition, opened.file.write_ownership.epoch, name)
        return self.world.build.log(self.node.disk, name, opened.file)

    def _let_go(self) -> None:
        self.log = None


@dataclass(slots=True)
class Record:
    """What Ray knows of an actor: it is started again with its node, until it is killed for good."""

    name: str
    node: Node
    make: Callable[[], Process]
    process: Process | None = None
    killed: bool = False
    served: bool = False
    """A client has learnt of it."""

    def end_process(self) -> None:
        """It ends, if it runs."""
        if self.process is not None:
            self.process.ended = True
            self.process = None


class NamedHandle(Handle):
    """The handle of an actor with a name, held by a supervisor."""

    def __init__(self, world: ControlWorld, sender: Sender, name: str) -> None:
        super().__init__(lambda method, *arguments: world.send(sender, name, method, arguments))
        self.name = name


@dataclass(slots=True)
class Sender:
    """Who calls: a supervisor, which may have ended, or a client."""

    ended: bool = False
    superseded_s: float = math.inf
    """When another supervisor was started."""
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


class ControlLoop(SimulatedLoop):
    """What would be done on another thread is done at once."""

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Done when this returns."""
        done = self.create_future()
        try:
            done.set_result(func(*arguments))
        except Exception as error:
            done.set_exception(error)
        return done


class ControlWorld:
    """One cluster, and what happens to it."""

    def __init__(self, story: Story, plan: Iterable[Fault] = (), build: ControlBuild | None = None) -> None:
        self.story = story
        self.generation = 1
        """Of the code that is deployed."""
        self.build = build or ControlBuild()
        self.plan: dict[int, list[str]] = {}
        for fault in plan:
            self.plan.setdefault(fault.step, []).append(fault.kind)
        self.steps: list[str] = []
        """What each step is, from 1."""
        self.nodes = {node_id: Node(node_id, Disk(node_id, self._writes(node_id))) for node_id in NAMES}
        for node in self.nodes.values():
            node.disk.removes = self._look_at_removal
        if story == "forgotten":
            self.nodes[C].up, self.nodes[C].started = False, 0
        self.actors: dict[str, Record] = {}
        self.supervisors: list[SimulatedSupervision] = []
        self.acknowledged: dict[int, list[int]] = {0: [], 1: []}
        self.moved: list[MoveResult] = []
        self.wrong: list[str] = []
        self.store_known = ""
        """Which store the application has, as Ray's directory keeps it."""
        self.busy_until_s = 0.0
        """Until when some fault goes on."""
        self._values = 0
        self._counting = False
        self.loop: asyncio.AbstractEventLoop

    # --- steps and faults ----------------------------------------------------------------------------------------

    def step(self, what: str, node: Node | None) -> list[str]:
        """The next step. What happens to nodes and supervisors at it happens now; returns the faults of the step
        itself."""
        if not self._counting:
            return []
        self.steps.append(what)
        kinds = self.plan.get(len(self.steps), [])
        for kind in kinds:
            self._happens(kind, node)
        return kinds

    def _happens(self, kind: str, node: Node | None) -> None:
        verb, _, of = kind.partition(" ")
        if verb == "kill" and of in NAMES:
            self._away(self.nodes[of], self._kill_node)
        elif verb == "cut":
            self._away(self.nodes[of], lambda node: setattr(node, "cut", True))
        elif kind == "kill supervisor":
            for supervision in self.supervisors:
                self._end_supervisor(supervision)
            self._later(SUPERVISOR_S, self._begin_supervisor)
        elif kind == "second supervisor":
            self._begin_supervisor()
        elif kind == "disk full" and node is not None:
            node.refuses_until_s = self.loop.time() + AWAY_S
            self._busy(AWAY_S)

    def _away(self, node: Node, how: Callable[[Node], None]) -> None:
        if node.up and not node.cut:
            how(node)
            self._later(AWAY_S, lambda: self._start_node(node))

    def _later(self, delay_s: float, doing: Callable[[], None]) -> None:
        self._busy(delay_s)
        self.loop.call_later(delay_s, doing)

    def _busy(self, for_s: float) -> None:
        self.busy_until_s = max(self.busy_until_s, self.loop.time() + for_s)

    def _kill_node(self, node: Node) -> None:
        node.up = False
        for record in self.actors.values():
            if record.node is node:
                record.end_process()

    def _start_node(self, node: Node) -> None:
        """A node that was cut off ends, as its Ray has given it up, and is started again."""
        self._kill_node(node)
        node.up, node.cut = True, False
        node.started += 1
        self._busy(RESTART_S)
        for record in self.actors.values():
            if record.node is node and not record.killed:
                self.loop.call_later(RESTART_S, self._start_process, record)

    def _start_process(self, record: Record) -> None:
        if record.node.up and not record.killed and record.process is None:
            record.process = record.make()

    def _writes(self, node_id: str) -> Any:
        def write(what: str, effect: Callable[[], Result]) -> Result:
            node = self.nodes[node_id]
            started = node.started
            kinds = self.step(f"{NAMES[node_id]} writes {what}", node)
            if not node.up or node.started != started:
                raise Killed
            if self._counting and self.loop.time() < node.refuses_until_s:
                raise StorageFailed(node_id, "No space left on device")
            result = effect()
            self._look()
            if "written, and reported as failed" in kinds:
                raise StorageFailed(node_id, "Input/output error")
            return result

        return write

    # --- the network ---------------------------------------------------------------------------------------------

    def send(self, sender: Sender, name: str, method: str, arguments: tuple[Any, ...]) -> Future[Any]:
        """A call from where the supervisors are. The future gets no answer if a message was lost."""
        answer: Future[Any] = Future()
        if sender.ended:
            return answer
        record = self.actors.get(name)
        node = None if record is None else record.node
        kinds = [] if method in QUIET else self.step(f"{method} to {name.partition('#')[0]}", node)
        if sender.ended or "message lost" in kinds:
            return answer
        lost = "answer lost" in kinds
        delay_s = MESSAGE_S + (LATE_S if "message late" in kinds else 0.0)
        for one in (delay_s, *((LATE_S,) if "message repeated" in kinds else ())):
            self._busy(one)
            self.loop.call_later(one, self._arrive, sender, name, method, arguments, answer, lost)
        return answer

    def _arrive(
        self, sender: Sender, name: str, method: str, arguments: tuple[Any, ...], answer: Future[Any], lost: bool
    ) -> None:
        record = self.actors.get(name)
        if record is not None and record.node.cut:
            return
        if record is None or record.killed or record.process is None:
            self.loop.call_later(NOTICED_S, fail, answer)
            return
        try:
            result = record.process.handle(method, *arguments)
        except Killed:
            self.loop.call_later(NOTICED_S, fail, answer)
        except Exception as error:
            self.loop.call_later(MESSAGE_S, fail, answer, error)
        else:
            if not lost and not record.node.cut:
                self.loop.call_later(MESSAGE_S, tell, answer, result)

    def call_now(self, caller: Node, name: str, method: str, *arguments: Any) -> Any:
        """A call from one node to another, inside of a call. Raises `Unavailable`."""
        record = self.actors.get(name)
        if record is None or record.process is None or record.node.cut or caller.cut:
            raise Unavailable(name, "no answer in time")
        return record.process.handle(method, *arguments)

    # --- what Ray does -------------------------------------------------------------------------------------------

    def actor(self, name: str, node_id: str, make: Callable[[], Process]) -> None:
        """Have an actor of this name, if there is none."""
        if name not in self.actors:
            record = self.actors[name] = Record(name, self.nodes[node_id], make)
            if record.node.up and not record.node.cut:
                self._start_process(record)

    def end_actor(self, name: str) -> None:
        """End it for good; on a node that is cut off, once that is back."""
        record = self.actors.get(name)
        if record is not None:
            record.killed = True
            if not record.node.cut:
                record.end_process()
            if not name.startswith(f"{APP}/partition-"):
                del self.actors[name]

    def facts(self) -> list[NodeFacts]:
        """The nodes as Ray knows them."""
        return [
            NodeFacts(node.node_id, NAMES[node.node_id], str(node.started), "", node.up and not node.cut)
            for node in self.nodes.values()
            if node.started
        ]

    # --- supervisors and clients ---------------------------------------------------------------------------------

    def _begin_supervisor(self) -> None:
        supervision = SimulatedSupervision(self)
        for earlier in self.supervisors:
            earlier.sender.superseded_s = min(earlier.sender.superseded_s, self.loop.time())
        self.supervisors.append(supervision)
        supervision.go_on(self._supervise(supervision))

    async def _supervise(self, supervision: SimulatedSupervision) -> None:
        try:
            await supervision.start()
            supervision.started = True
        except RayfoldError as error:  # it is started again, as by Ray, until it can
            supervision.failure = str(error)
            self._end_supervisor(supervision)
            self.loop.call_later(SUPERVISOR_S, self._begin_supervisor_if_none)

    def _begin_supervisor_if_none(self) -> None:
        if not self.supervisor:
            self._begin_supervisor()

    def _end_supervisor(self, supervision: SimulatedSupervision) -> None:
        supervision.sender.ended = True
        for task in [*supervision.sender.tasks, *supervision._tasks]:
            if task is not asyncio.current_task():
                task.cancel()

    @property
    def supervisor(self) -> SimulatedSupervision | None:
        """The latest that has not ended."""
        running = [one for one in self.supervisors if not one.sender.ended]
        return running[-1] if running else None

    async def _client(self) -> None:
        """Sends to every actor of a partition that ever served: old ones, too, must not take what is not theirs."""
        while True:
            await asyncio.sleep(CLIENT_S)
            if self._counting and self.loop.time() > max(60.0, self.busy_until_s + 30.0):
                continue
            for record in list(self.actors.values()):
                process = record.process
                if isinstance(process, _PartitionProcess) and (record.served or process.log is not None):
                    record.served = True
                    self._values += 1
                    with contextlib.suppress(Killed):
                        if process.execute(self._values):
                            self.acknowledged[process.partition].append(self._values)

    # --- a run ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """A store is made, a partition moves, and what is planned goes wrong; then everything is to come to rest."""
        self.loop = asyncio.get_running_loop()
        self._counting = self.story == "create"
        self._begin_supervisor()
        client = asyncio.create_task(self._client())
        await asyncio.sleep(STORY_AT_S)
        self._counting = True
        if (supervision := self.supervisor) is not None and supervision.started:
            self._begin_story(supervision)
        trouble, deadline_s = "it was not checked", self.loop.time() + REST_MAX_S
        while trouble and self.loop.time() < deadline_s:
            await asyncio.sleep(WATCH_S)
            if self.loop.time() > self.busy_until_s:
                self._leave_one_supervisor()
                trouble = self._restless()
        client.cancel()
        if trouble:
            self.wrong.append(f"it does not come to rest: {trouble}")
        self._look_at_the_end()

    def _begin_story(self, supervision: SimulatedSupervision) -> None:
        if self.story == "forgotten":  # all nodes that have the store are down, as after a loss of power
            self._end_supervisor(supervision)
            self.store_known = ""
            self._start_node(self.nodes[C])
            for node_id in (A, B):
                self._away(self.nodes[node_id], self._kill_node)
            self._begin_supervisor()
        elif self.story == "deploy":  # as `deployment.py` does it: the supervisor starts again with the next plan
            self.generation += 1
            self._end_supervisor(supervision)
            self._begin_supervisor()
        elif self.story != "create":
            supervision.go_on(self._move(supervision))

    async def _move(self, supervision: SimulatedSupervision) -> None:
        with contextlib.suppress(RayfoldError, ProcessEnded):
            if self.story == "drain":
                for moved in await supervision.moves.drain(A):
                    self._check_moved(moved)
                return
            for to in (B, A) if self.story == "back" else (B,):
                self._check_moved(await supervision.moves.move(MOVED, to))

    def _check_moved(self, moved: MoveResult) -> None:
        self.moved.append(moved)
        (to,) = (node_id for node_id, name in NAMES.items() if name == moved.to)
        file = self.nodes[to].disk.files.get(copy_name(moved.partition))
        store_map = self.nodes[to].disk.map
        came_with = 0 if store_map is None else store_map.epochs[moved.partition]
        opened = file is not None and not file.write_ownership.successor and file.write_ownership.epoch > came_with
        if file is None or not opened or not self._complete(file, moved.partition):
            self._wrong("a move reported success, and the new home has not opened its log")

    def _look_at_removal(self, partition: int, removed: File) -> None:
        """A copy is removed only once a later one was opened that has all that it has."""
        later = (
            not file.write_ownership.successor
            and file.write_ownership.epoch > removed.write_ownership.epoch
            and set(removed.values) <= set(file.values)
            for _, file in self._copies(partition)
            if file is not removed
        )
        if not any(later):
            self._wrong(f"a copy of partition {partition} is removed before a later one was opened with all of it")

    def _leave_one_supervisor(self) -> None:
        """Of two supervisors Ray ends one, once the network is whole again."""
        for supervision in self.supervisors[:-1]:
            if not supervision.sender.ended:
                self._end_supervisor(supervision)
        self._begin_supervisor_if_none()

    # --- invariants ----------------------------------------------------------------------------------------------

    def _copies(self, partition: int) -> Iterator[tuple[str, File]]:
        for node in self.nodes.values():
            yield from (one for one in node.disk.files.items() if one[0].startswith(copy_name(partition)))

    def _complete(self, file: File, partition: int) -> bool:
        return set(self.acknowledged[partition]) <= set(file.values)

    def _look(self) -> None:
        """After each write: never two that can write, a complete copy, one store of the name."""
        for partition, acknowledged in self.acknowledged.items():
            writers = [
                record.name
                for record in self.actors.values()
                if isinstance(record.process, _PartitionProcess)
                and record.process.partition == partition
                and record.process.log is not None
                and record.process.epoch == record.process.log.file.write_ownership.epoch
            ]
            if len(writers) > 1:
                self._wrong(f"partition {partition} can be written by two: {sorted(writers)}")
            kept = (file for name, file in self._copies(partition) if not name.endswith(".removing"))
            if acknowledged and not any(self._complete(file, partition) for file in kept):
                self._wrong(f"no complete copy of partition {partition} exists any more")
        stores = {node.disk.map.store_id for node in self.nodes.values() if node.disk.map is not None}
        if len(stores) > 1:
            self._wrong(f"there are {len(stores)} stores of one name")

    def _wrong(self, what: str) -> None:
        if what not in self.wrong:
            self.wrong.append(what)

    def _restless(self) -> str:
        """What is not yet as it is to be."""
        supervision = self.supervisor
        if supervision is None or not supervision.started:
            return f"no supervisor has started: {supervision and supervision.failure}"
        if supervision.changing.locked():
            return "something is being changed"
        maps = [node.disk.map for node in self.nodes.values()]
        if any(one != supervision.shares.map for one in maps):
            return "the nodes have different maps"
        if supervision.shares.troubles or supervision.replacements.troubles:
            return f"in trouble: {supervision.shares.troubles} {supervision.replacements.troubles}"
        for partition, home in enumerate(supervision.shares.map.owners):
            seated = supervision.partitions.seated[partition]
            process = self.actors[seated.name].process if seated.name in self.actors else None
            if not self.plan and seated.generation < self.generation:  # what fails ends a deployment: it is repeated
                return f"partition {partition} runs the code of generation {seated.generation}"
            if seated.node_id != home or not isinstance(process, _PartitionProcess) or process.log is None:
                return f"partition {partition} is at home on {home}, and not open there"
        seated_names = {one.name for one in supervision.partitions.seated.values()}
        partitions = (name for name, record in self.actors.items() if partition_named(name) and not record.killed)
        if strays := sorted(name for name in partitions if name not in seated_names):
            return f"without a seat: {strays}"
        return ""

    def _look_at_the_end(self) -> None:
        self._look()
        store_map = self.nodes[C].disk.map
        for partition, acknowledged in self.acknowledged.items():
            home = store_map.owners[partition] if store_map is not None else ""
            file = self.nodes[home].disk.files.get(copy_name(partition)) if home else None
            if acknowledged and (file is None or not self._complete(file, partition)):
                held = 0 if file is None else len(file.values)
                self._wrong(f"partition {partition} on {home} has {held} events of {len(acknowledged)} acknowledged")


class SimulatedSupervision(Supervision):
    """The real one, whose actors are here."""

    def __init__(self, world: ControlWorld) -> None:
        self.sender = Sender()
        self.started, self.failure = False, ""
        self._world = world
        cluster: Any = _Cluster(world, self.sender)
        number = len(world.supervisors) + 1
        plan = ApplicationPlan(APP, _catalogue(), 2, {}, SETTINGS, world.generation, create=True)
        super().__init__(plan, cluster, detached=True)
        self.scheduling._incarnation = f"{number:06d}"  # else drawn, and which of two actors is taken up would be, too
        self.rollout = _Rollout(self, lambda: None)
        self.shares = _shares(world, self.sender)
        self.projections = self._projections()
        self.partitions = _PartitionActors(self, world)
        self.moves = world.build.moves(self)
        self.replacements = Replacements(self, self.moves)
        self.watch_s = WATCH_S

    def go_on(self, doing: Coroutine[Any, Any, None]) -> None:
        """In the background, until this supervisor ends."""
        task = asyncio.get_running_loop().create_task(doing)
        self.sender.tasks.add(task)
        task.add_done_callback(self.sender.tasks.discard)

    async def _listed(self) -> list[str]:
        return [name for name, record in self._world.actors.items() if not record.killed]

    def _check_fit(self) -> None:
        """The logs here hold no events of classes."""

    def _known_store(self) -> str:
        return self._world.store_known

    def _remember_store(self, store_id: str) -> None:
        if not self.sender.ended:
            self._world.store_known = store_id

    def going_on(self) -> list[Coroutine[Any, Any, None]]:
        """The client asks every actor often enough, and there are no metrics here."""
        return []


class _Rollout(Rollout):
    """The real one, without Ray's directory: a deployment is another generation, which a supervisor starts with."""

    async def _unfinished(self) -> None:
        return None

    async def _entry(self) -> None:
        return None

    async def _forget(self, entry: Deployment | None) -> None:
        """Nothing was written down."""


class _Cluster:
    """In place of `Cluster`."""

    namespace = "rayfold"

    def __init__(self, world: ControlWorld, sender: Sender) -> None:
        self._world, self._sender = world, sender

    def view(self) -> ClusterView:
        """See `Cluster`. Of two supervisors the earlier one learns of it when it is back in the network."""
        return ClusterView(self._world.facts(), self._world.loop.time() < self._sender.superseded_s + AWAY_S)

    def is_starting(self, actor: NamedHandle) -> bool:
        """See `Cluster`: here a process is there at once."""
        return False

    def actor_named(self, name: str) -> NamedHandle:
        """See `Cluster`. Raises `ValueError`."""
        if name not in self._world.actors or self._world.actors[name].killed:
            raise ValueError(name)
        return NamedHandle(self._world, self._sender, name)


class _PartitionActors(PartitionActors):
    def __init__(self, supervision: SimulatedSupervision, world: ControlWorld) -> None:
        super().__init__(supervision._plan_of, supervision.scheduling, supervision.plan.generation)
        self._world, self._sender = world, supervision.sender

    def start_actor(self, plan: PartitionPlan, name: str) -> NamedHandle:
        if not self._sender.ended:
            node = self._world.nodes[plan.node_id]
            self._world.actor(name, plan.node_id, lambda: _PartitionProcess(self._world, node, name, plan.number))
        return NamedHandle(self._world, self._sender, name)

    def kill(self, actor: Any) -> None:
        if not self._sender.ended:
            self._world.end_actor(actor.name)


def _shares(world: ControlWorld, sender: Sender) -> NodeAgents:
    class _NodeAgents(world.build.shares):  # type: ignore[name-defined, misc]
        def agent(self, node_id: str) -> NamedHandle:
            name = node_agent_name(APP, node_id)
            if not sender.ended:
                world.actor(name, node_id, lambda: _NodeAgentProcess(world, world.nodes[node_id], name))
            return NamedHandle(world, sender, name)

        def replace(self, node_id: str) -> None:
            if not sender.ended:
                world.end_actor(node_agent_name(APP, node_id))
            self.agent(node_id)

    shares: NodeAgents = _NodeAgents(APP, "rayfold", detached=True, silent_s=SETTINGS.silent_s)
    return shares


@cache
def _catalogue() -> bytes:
    """The classes of an application that has none."""
    return ship(Catalogue([], []))
