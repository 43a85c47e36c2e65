"""A bank of jars on a cluster of several nodes, deployed and under load: what the scenarios with nodes have in common.

The twin of `local_harness.py`, with real nodes (`LocalNodes`: each a session of processes on this machine) and programs
of their own on each of them. A program on a node that is killed is killed with it, as it would be on a machine.

Rules kept here: what is affected by a fault is noted with its moment, so that it can be told afterwards who waited for
how long, and who had nothing to do with it; at the end everything is stopped, and the logs are read where they lie.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from rayfold.actors.cluster.local import LocalCluster, LocalNode, LocalNodes
from rayfold.runtime.errors import RayfoldError, Unavailable
from rayfold.runtime.store.partition_map import read_map

from .cluster_checking import Fault, check_nothing_runs, check_sessions, check_what_is_left, note_gaps
from .cluster_logs import DataFolder, stopped_store
from .cluster_program import APP
from .cluster_programs import Program, ProgramEnded, Told
from .contract import Context, Findings
from .history import History
from .journal import read_journals
from .local_harness import quantile

__all__ = ["INVARIANTS_OF_CLUSTERS", "ClusterLiving", "Surroundings", "cluster_living", "wait_until"]

INVARIANTS_OF_CLUSTERS: Final = ("I1", "I2", "I3", "I4", "I5", "I7", "I8", "I9", "I11", "I12")
"""What every scenario with nodes looks at. I6 besides, where there is something left that might have written."""

NODES: Final = 3
PARTITIONS: Final = 3
REPLICAS: Final = 2

RECOVERED_MAX_S: Final = 90.0
"""From the end of a fault until all is as it was: a node starts in 5 s on two busy cores, Ray starts its actors again
one after the other, a second each, and what Ray has forgotten is missed after 15 s."""

_DEPLOY_TIMEOUT_S: Final = 180.0

_STARTS_MAX: Final = 3
_TOO_SLOW: Final = "timed out during startup"
"""How Ray says that its processes of a node were not up within its own 30 s, which happens with a load of 30 on two
cores."""

_LOOK_S: Final = 0.1

_EXPECTED: Final = {
    "ray::PartitionActor": PARTITIONS,
    "ray::NodeAgent": NODES,
    "ray::ProjectorActor": REPLICAS,
    "ray::SupervisorActor": 1,
}
"""What runs, on all nodes together, when nothing is wrong: one more is somebody's second copy."""


class Surroundings(NamedTuple):
    """Where the programs of a node are, if that is not simply this machine."""

    within: Sequence[str] = ()
    """The command that runs another one there."""
    environment: Mapping[str, str] | None = None
    """What they have to have in theirs besides."""


@dataclass(slots=True)
class ClusterLiving:
    """A deployed application under torture."""

    nodes: LocalNodes
    context: Context
    findings: Findings
    own: bool
    """Whether there is load for aggregates in actors of their own."""
    clients_on: tuple[int, ...]
    """The nodes that have a program with load."""
    hand_on: int = 0
    """The node of the program that asks how it is, and moves and deploys."""
    local_sockets: bool = False
    surroundings: Callable[[int], Surroundings] = lambda _: Surroundings()
    """Of the programs on a node."""
    programs: dict[int, Program] = field(default_factory=dict)
    """By the number of their node."""
    hand: Program | None = None
    faults: list[Fault] = field(default_factory=list)
    ended: list[Program] = field(default_factory=list)
    """Those that were killed; what they knew still counts."""
    settled_s: list[float] = field(default_factory=list)
    """How long it took after each fault until all was as it was."""
    told_by_load: list[dict[str, Any]] = field(default_factory=list)
    """How programs read that came to their end."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    # --- programs ------------------------------------------------------------------------------------------------

    def program_on(self, number: int) -> Program:
        """A further program, on a node."""
        node, which, where = self.nodes.nodes[number].name, next(self._numbers), self.surroundings(number)
        address, seed, folder = self.nodes.address, self.context.seed, self.context.folder
        return Program(address, node, which, seed, folder, within=where.within, environment=where.environment)

    def connected(self, number: int, *, timeout_s: float = RECOVERED_MAX_S) -> Program:
        """A further program on a node, connected to the application as it is there."""
        program = self.program_on(number)
        try:
            self._connect(program, timeout_s)
        except BaseException:
            self.end_program(program)
            raise
        return program

    def _connect(self, program: Program, timeout_s: float) -> None:
        program.ask("join", timeout_s, timeout_s=timeout_s + 30)
        program.ask("connect", timeout_s, False, timeout_s=timeout_s + 30)

    def the_hand(self) -> Program:
        """The program that asks and moves; another one if it was killed."""
        if self.hand is None:
            self.hand = self.connected(self.hand_on)
        return self.hand

    def lose_hand(self) -> None:
        """Kill the program that asks, in the middle of what it is asking."""
        if self.hand is not None:
            self.end_program(self.hand)
            self.hand = None

    def end_program(self, program: Program) -> None:
        """Kill it, whatever it is doing."""
        program.kill()
        program.__exit__(None, None, None)
        self.ended.append(program)

    def begin_load(self, numbers: Iterable[int] | None = None) -> None:
        """Programs on these nodes (or on all that are to have one) send, and read, until the end."""
        started = {number: self.program_on(number) for number in (self.clients_on if numbers is None else numbers)}
        self.programs |= started  # they start at the same time, and are ended whatever happens to one of them
        for program in started.values():
            program.tell("join", RECOVERED_MAX_S)
        for program in started.values():
            program.answer(RECOVERED_MAX_S + 30)
            program.tell("connect", RECOVERED_MAX_S, False)
        for program in started.values():
            program.answer(RECOVERED_MAX_S + 30)
            program.ask("begin_load", self.own)

    def end_load(self) -> None:
        """All programs send no more, and tell how they read."""
        for program in self.programs.values():
            program.tell("end_load")
        for program in self.programs.values():
            told = program.answer()
            self.told_by_load.append(told)
            self.end_program(program)
        self.programs.clear()

    # --- faults --------------------------------------------------------------------------------------------------

    def note_fault(self, affected: Iterable[int]) -> None:
        """From now on these partitions may not answer."""
        self.faults.append(Fault(time.monotonic(), frozenset(affected)))

    def kill_nodes(self, numbers: Sequence[int]) -> None:
        """SIGKILL to everything on these nodes, the programs too, at the same time."""
        self._lose_programs(numbers)
        for number in numbers:
            self.nodes.signal_node(number, signal.SIGKILL)
        for number in numbers:
            self.nodes.kill_node(number)

    def part_with(self, number: int) -> LocalNode:
        """A node as it is, which is no concern of the others any more: they start another one in its place. Whoever has
        it ends it."""
        self._lose_programs([number])
        node = self.nodes.nodes[number]
        parted = replace(node)
        node.session = node.process = None
        return parted

    def _lose_programs(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if (program := self.programs.pop(number, None)) is not None:
                self.end_program(program)
        if self.hand_on in numbers:
            self.lose_hand()

    def start_nodes(self, numbers: Sequence[int]) -> float:
        """Start these nodes again; seconds that it took. Their programs follow with `begin_load`."""
        began_s = time.monotonic()
        for number in numbers:
            self._start_node(number)
        return time.monotonic() - began_s

    def _start_node(self, number: int) -> None:
        """As whoever runs a node does: one that Ray gave up for want of time is started again."""
        for _ in range(_STARTS_MAX - 1):
            try:
                return self.nodes.start_node(number)
            except Unavailable as error:
                if _TOO_SLOW not in str(error):
                    raise
                self.findings.count("started_in_vain")
        return self.nodes.start_node(number)

    def restart_programs(self) -> None:
        """Programs again on the nodes that should have one."""
        self.begin_load([number for number in self.clients_on if number not in self.programs])

    def homes(self) -> list[int]:
        """Partition -> the number of the node that it is at home on, as the newest map in a share says."""
        maps = [found[0] for node in self.nodes.nodes if (found := read_map(node.data / APP)) is not None]
        newest = max(maps, key=lambda one: one.version)
        numbers = {node.identity.node_id: number for number, node in enumerate(self.nodes.nodes)}
        return [numbers[home] for home in newest.owners]

    def at_home_on(self, number: int) -> list[int]:
        """The partitions of a node."""
        return [partition for partition, home in enumerate(self.homes()) if home == number]

    def await_recovered(self, timeout_s: float = RECOVERED_MAX_S) -> float:
        """I12: every partition acknowledges a command; then everything is as it was. Seconds that it took."""
        began_s = time.monotonic()
        try:
            self.the_hand().ask("acknowledged", list(range(PARTITIONS)), timeout_s, timeout_s=timeout_s + 30)
        except (Told, ProgramEnded) as error:
            self.findings.check("I12", False, f"a partition takes no command {timeout_s:g} s after a fault: {error}")
            raise
        trouble = wait_until(self.trouble, began_s + timeout_s)
        took_s = time.monotonic() - began_s
        self.settled_s.append(took_s)
        self.findings.check("I12", not trouble, f"{timeout_s:g} s after a fault: {trouble}")
        return took_s

    def trouble(self) -> str:
        """What is not as it is to be; empty if all is well."""
        try:
            status = self.the_hand().ask("status")
            for partition in range(PARTITIONS):
                self.the_hand().ask("look", partition)
        except Told as error:
            return str(error)
        for node in status["nodes"]:
            if not node["up"] or node["trouble"]:
                return f"node {node['name']} is {'up' if node['up'] else 'gone'}: {node['trouble']}"
        for one in status["partitions"]:
            if not one["alive"] or one["log_error"]:
                return f"partition {one['partition']} on {one['node']} does not answer: {one['log_error']}"
        for one in status["projectors"]:
            if not one["alive"] or one["failed"]:
                return f"projector {one['projection']} {one['replica']} does not answer: {one['failed']}"
        if status["unavailable"]:
            return f"told to be unavailable: {status['unavailable']}"
        running = {title: len(self.processes(title)) for title in _EXPECTED}
        return "" if running == _EXPECTED else f"there are {running}"

    def processes(self, title: str, number: int | None = None) -> list[int]:
        """The processes of the actors of a class, `ray::NodeAgent` say, of one node or of all."""
        nodes = self.nodes.nodes if number is None else [self.nodes.nodes[number]]
        return [pid for node in nodes if node.session for pid in node.session.members() if _titled(pid, title)]

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all programs, whatever they are doing."""
        for program in self.programs.values():
            self.end_program(program)
        self.programs.clear()
        self.lose_hand()

    def history(self) -> History:
        """What all programs knew, together."""
        return read_journals(program.journal for program in self.ended)

    def data_folders(self) -> list[DataFolder]:
        """Of all nodes."""
        return [DataFolder(node.identity.node_id, node.data) for node in self.nodes.nodes]


@contextlib.contextmanager
def cluster_living(
    context: Context,
    findings: Findings,
    *,
    own: bool = True,
    clients_on: tuple[int, ...] = (0, 1, 2),
    hand_on: int = 0,
    local_sockets: bool = False,
    nodes: LocalNodes | None = None,
    surroundings: Callable[[int], Surroundings] = lambda _: Surroundings(),
) -> Iterator[ClusterLiving]:
    """A fresh cluster with an application that was deployed and is under load. At the end everything is checked: read
    models and logs while it runs, then logs, history and leftovers when nothing runs any more."""
    if nodes is None:
        nodes = LocalNodes(LocalCluster(NODES, cpus=1), context.folder / "cluster", own_actors_max=2, remember=True)
    bank = ClusterLiving(nodes, context, findings, own, clients_on, hand_on, local_sockets, surroundings)
    with nodes:
        try:
            _deploy(bank)
            bank.begin_load()
            bank.the_hand().ask("acknowledged", list(range(PARTITIONS)), RECOVERED_MAX_S)
            yield bank
            bank.end_load()
            totals = _look_while_it_runs(bank)
        finally:
            bank.close()
        nodes.stop(grace_s=0)
    check_nothing_runs(nodes.folder, findings)
    seen = [program.seen for program in bank.ended if program.seen.exists()]
    try:
        store = stopped_store(APP, bank.data_folders())
    except RayfoldError as error:
        findings.violate("I10", f"the shares cannot be opened: {error}")
        return
    check_what_is_left(store, bank.history(), totals, seen, findings)
    check_sessions(bank.told_by_load, findings)
    note_gaps(bank.faults, bank.history(), findings)
    bank.settled_s.sort()
    findings.figures["settled_s_p50"] = quantile(bank.settled_s, 0.5)
    findings.figures["settled_s_max"] = quantile(bank.settled_s, 1.0)


def _deploy(bank: ClusterLiving) -> None:
    deployer = bank.program_on(bank.hand_on)
    try:
        deployer.ask("deploy", PARTITIONS, REPLICAS, bank.local_sockets, timeout_s=_DEPLOY_TIMEOUT_S)
    finally:
        bank.end_program(deployer)


def _look_while_it_runs(bank: ClusterLiving) -> list[dict[str, list[int]]]:
    """Verified by the nodes themselves, and what the read models answer."""
    hand = bank.the_hand()
    problems, events = _verified(hand)
    bank.findings.check("I1", not problems and events > 0, f"verify, on the nodes, of {events} events: {problems}")
    totals: list[dict[str, list[int]]] = hand.ask("totals", REPLICAS + 1)
    return totals


def _verified(hand: Program) -> tuple[list[str], int]:
    """Problems, and how many events were looked at."""
    end_s = time.monotonic() + RECOVERED_MAX_S
    while True:
        try:
            problems, events = hand.ask("verify")
        except Told as error:  # a keeper that was too slow for its supervisor is just being replaced
            if error.kind != "Unavailable" or time.monotonic() > end_s:
                raise
        else:
            return problems, events


def wait_until(trouble: Callable[[], str], deadline_s: float, look_s: float = _LOOK_S) -> str:
    """Look until there is no trouble any more; what there still is at the deadline."""
    while told := trouble():
        if time.monotonic() > deadline_s:
            return told
        time.sleep(look_s)
    return ""


def _titled(pid: int, title: str) -> bool:
    try:
        told = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace").strip()
    except OSError:
        return False
    return told == title or told.startswith(f"{title}.")
