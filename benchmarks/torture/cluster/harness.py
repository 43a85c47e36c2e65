"""A bank on a cluster of several nodes, deployed and under load: what the scenarios with nodes have in common.

The twin of `local/harness.py`, with real nodes (`LocalNodes`: each a session of processes on this machine) and programs
of their own on each of them. A program on a node that is killed is killed with it, as it would be on a machine.

Rules kept here: what is affected by a fault is noted with its moment, so that it is known afterwards which callers
waited for how long, and which had nothing to do with it; at the end everything is stopped, and the logs are read where
they lie.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rayfold.actors.cluster.local import LocalCluster, LocalNode, LocalNodes
from rayfold.runtime.errors import RayfoldError, Unavailable
from rayfold.runtime.store.node_store import open_share
from rayfold.runtime.store.partition_map import read_map
from rayfold.runtime.store.store import Store

from ...harness.processes import ChildEnded, title_of
from ..contract import Context, Findings
from ..history import read_journals
from .checking import Fault, check_nothing_runs, check_what_is_left, note_gaps, stopped_store
from .program import APP, Program, ProgramError

__all__ = ["INVARIANTS_OF_CLUSTERS", "ClusterBank", "cluster_bank", "wait_until"]

INVARIANTS_OF_CLUSTERS: Final = "I1 I2 I3 I4 I5 I7 I8 I9 I11 I12"
"""What every scenario with nodes checks. I6 besides, where there is something left that might have written."""

HEAD: Final = 0
NODES: Final = 3
PARTITIONS: Final = 3
REPLICAS: Final = 2

RECOVERED_MAX_S: Final = 90.0
"""From the end of a fault until all is as it was: a node starts in 5 s on two busy cores, Ray starts its actors again
one after the other, a second each, and what Ray has forgotten is missed after 15 s."""

_DEPLOY_TIMEOUT_S: Final = 180.0

_STARTS_MAX: Final = 3
NODE_IS_DOWN: Final = "has been down since"
"""What an error contains about a partition whose node has ended, or is cut off."""

_TOO_SLOW: Final = "timed out during startup"
"""How Ray reports that its processes of a node were not up within its own 30 s, which happens with a load of 30 on two
cores."""

_ATTEMPT_S: Final = 3.0
_LOOK_S: Final = 0.1

_EXPECTED: Final = {
    "ray::PartitionActor": PARTITIONS,
    "ray::NodeAgent": NODES,
    "ray::ProjectorActor": REPLICAS,
    "ray::SupervisorActor": 1,
}
"""What runs, on all nodes together, when nothing is wrong: one more is a second copy of one of them."""


@dataclass(slots=True)
class ClusterBank:
    """A deployed application under torture."""

    nodes: LocalNodes
    context: Context
    findings: Findings
    surroundings: Callable[[int], Mapping[str, Any]] = lambda _: {}
    """Of the programs on a node: options of `Child`, if that is not simply this machine."""
    programs: dict[int, Program] = field(default_factory=dict)
    """Those with load, by the number of their node."""
    faults: list[Fault] = field(default_factory=list)
    ended: list[Program] = field(default_factory=list)
    """Those that were killed; what they knew still counts."""
    settled_s: list[float] = field(default_factory=list)
    """How long it took after each fault until all was as it was."""
    _operator: Program | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    # --- programs ------------------------------------------------------------------------------------------------

    def program_on(self, number: int) -> Program:
        """A further program, on a node."""
        place = self.nodes.address, self.nodes.nodes[number].name
        seed, folder = self.context.seed, self.context.folder
        return Program(*place, next(self._numbers), seed, folder, **self.surroundings(number))

    def operator(self) -> Program:
        """The program that asks how it is, and moves and deploys, on the head; another one if it was killed."""
        if self._operator is None:
            self._operator = program = self.program_on(HEAD)
            try:
                for what in ("join", "connect"):
                    program.ask(what, RECOVERED_MAX_S, timeout_s=RECOVERED_MAX_S + 30)
            except BaseException:
                self.lose_operator()
                raise
        return self._operator

    def ask(self, what: str, *arguments: Any, **options: Any) -> Any:
        """Have the operator do something. See `Program.ask`."""
        return self.operator().ask(what, *arguments, **options)

    def lose_operator(self) -> None:
        """Kill the program that asks, in the middle of what it is asking."""
        if self._operator is not None:
            self.end_program(self._operator)
            self._operator = None

    def end_program(self, program: Program) -> None:
        """Kill it, whatever it is doing."""
        program.signal()
        program.__exit__()
        self.ended.append(program)

    def begin_load(self, numbers: Iterable[int] = range(NODES)) -> None:
        """Programs on these nodes send, and read, until the end."""
        started = {number: self.program_on(number) for number in numbers}
        self.programs |= started  # they start at the same time, and are ended whatever happens to one of them
        for what in ("join", "connect"):
            for program in started.values():
                program.begin(what, RECOVERED_MAX_S)
            for program in started.values():
                program.answer(RECOVERED_MAX_S + 30)
        for program in started.values():
            program.ask("begin_load")

    def end_load(self) -> None:
        """All programs send no more, and report what they found when they read."""
        for program in self.programs.values():
            program.begin("end_load")
        for program in self.programs.values():
            self.findings.include(Findings.of(program.answer()))
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
        """A node as it is, which does not belong to the cluster any more: another one is started in its place. The
        caller ends it."""
        self._lose_programs([number])
        node = self.nodes.nodes[number]
        parted = replace(node)
        node.session = node.process = None
        return parted

    def _lose_programs(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if (program := self.programs.pop(number, None)) is not None:
                self.end_program(program)
        if HEAD in numbers:
            self.lose_operator()

    def start_nodes(self, numbers: Iterable[int]) -> None:
        """Start these nodes again; one that Ray gave up for want of time is started once more, as its operator would.
        Their programs follow with `recover`."""
        for number, tries in itertools.product(numbers, range(_STARTS_MAX, 0, -1)):
            if not self.nodes.nodes[number].alive:
                try:
                    self.nodes.start_node(number)
                except Unavailable as error:
                    if _TOO_SLOW not in str(error) or tries == 1:
                        raise
                    self.findings.count("started_in_vain")

    def replace_nodes(self, numbers: Sequence[int]) -> None:
        """Kill what is left of nodes, start them again, and wait until everything is as it was."""
        self.kill_nodes(numbers)
        self.start_nodes(numbers)
        self.recover()

    def recover(self) -> None:
        """Wait until everything is as it was, with programs again on all nodes."""
        self.await_recovered()
        self.begin_load([number for number in range(NODES) if number not in self.programs])

    def store_of(self, number: int) -> Store:
        """The share of a node."""
        node = self.nodes.nodes[number]
        share = open_share(node.data / APP, node.identity.node_id)
        assert share is not None
        return share.store

    def acknowledged(self, partitions: Iterable[int], timeout_s: float = RECOVERED_MAX_S) -> None:
        """Each of these takes a command in time. Raises `ProgramError`, and `ChildEnded`."""
        self.ask("acknowledged", list(partitions), timeout_s, timeout_s=timeout_s + 30)

    def not_told(self, partitions: Iterable[int], expected: str) -> str:
        """Which of these takes commands, or refuses them with another error than expected; empty if none does."""
        told = []
        for partition in partitions:
            try:
                self.ask("acknowledged", [partition], _ATTEMPT_S)
                told.append(f"partition {partition} takes commands")
            except (ProgramError, ChildEnded) as error:
                told += [] if isinstance(error, ProgramError) and expected in error.text else [str(error)]
        return "; ".join(told)

    def homes(self) -> list[int]:
        """Partition -> the number of the node that it is at home on, by the newest map in a share."""
        maps = [found[0] for node in self.nodes.nodes if (found := read_map(node.data / APP)) is not None]
        newest = max(maps, key=lambda one: one.version)
        numbers = {node.identity.node_id: number for number, node in enumerate(self.nodes.nodes)}
        return [numbers[home] for home in newest.owners]

    def at_home_on(self, number: int) -> list[int]:
        """The partitions of a node."""
        return [partition for partition, home in enumerate(self.homes()) if home == number]

    def await_recovered(self) -> None:
        """I12: every partition acknowledges a command; then everything is as it was."""
        began_s = time.monotonic()
        try:
            self.acknowledged(range(PARTITIONS))
        except (ProgramError, ChildEnded) as error:
            told = f"a partition takes no command {RECOVERED_MAX_S:g} s after a fault: {error}"
            self.findings.check("I12", False, told)
            raise
        trouble = wait_until(self.trouble, began_s + RECOVERED_MAX_S)
        self.settled_s.append(time.monotonic() - began_s)
        self.findings.check("I12", not trouble, f"{RECOVERED_MAX_S:g} s after a fault: {trouble}")

    def trouble(self) -> str:
        """What is not as it is to be; empty if all is well."""
        try:
            status = self.ask("status")
            for partition in range(PARTITIONS):
                self.ask("look", partition)
        except ProgramError as error:
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
            return f"unavailable by the topology: {status['unavailable']}"
        running = {title: len(self.processes(title)) for title in _EXPECTED}
        return "" if running == _EXPECTED else f"there are {running}"

    def processes(self, title: str, number: int | None = None) -> list[int]:
        """The processes of the actors of a class, for example `ray::NodeAgent`, of one node or of all."""
        nodes = self.nodes.nodes if number is None else [self.nodes.nodes[number]]

        def is_titled(pid: int) -> bool:
            told = title_of(pid)
            return told == title or told.startswith(f"{title}.")

        return [pid for node in nodes if node.session for pid in node.session.members() if is_titled(pid)]

    # --- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all programs, whatever they are doing."""
        for program in self.programs.values():
            self.end_program(program)
        self.programs.clear()
        self.lose_operator()

    def _verified(self) -> tuple[list[str], int]:
        """Problems, and how many events were checked."""
        end_s = time.monotonic() + RECOVERED_MAX_S
        while True:
            try:
                problems, events = self.ask("verify")
            except ProgramError as error:  # a node agent that was too slow for its supervisor is just being replaced
                if error.kind != "Unavailable" or time.monotonic() > end_s:
                    raise
            else:
                return problems, events

    def check_while_it_runs(self) -> list[dict[str, list[int]]]:
        """I1: verified by the nodes themselves. Returns what the read models answer."""
        problems, events = self._verified()
        self.findings.check("I1", not problems and events > 0, f"verify, on the nodes, of {events} events: {problems}")
        totals: list[dict[str, list[int]]] = self.ask("totals", REPLICAS + 1)
        return totals


@contextlib.contextmanager
def cluster_bank(
    context: Context,
    findings: Findings,
    *,
    nodes: LocalNodes | None = None,
    surroundings: Callable[[int], Mapping[str, Any]] = lambda _: {},
) -> Iterator[ClusterBank]:
    """A fresh cluster with an application that was deployed and is under load. At the end everything is checked: read
    models and logs while it runs, then logs, history and leftovers when nothing runs any more."""
    if nodes is None:
        nodes = LocalNodes(LocalCluster(NODES, cpus=1), context.folder / "cluster", own_actors_max=2, remember=True)
    bank = ClusterBank(nodes, context, findings, surroundings)
    with nodes:
        try:
            deployer = bank.program_on(HEAD)
            try:
                deployer.ask("deploy", PARTITIONS, REPLICAS, timeout_s=_DEPLOY_TIMEOUT_S)
            finally:
                bank.end_program(deployer)
            bank.begin_load()
            bank.acknowledged(range(PARTITIONS))
            yield bank
            bank.end_load()
            totals = bank.check_while_it_runs()
        finally:
            bank.close()
        nodes.stop(grace_s=0)
    check_nothing_runs(nodes.folder, findings)
    seen = [program.seen for program in bank.ended if program.seen.exists()]
    try:
        store = stopped_store(APP, nodes.nodes)
    except RayfoldError as error:
        findings.violate("I10", f"the shares cannot be opened: {error}")
        return
    history = read_journals(program.journal for program in bank.ended)
    check_what_is_left(store, history, totals, seen, findings)
    findings.check("I9", int(findings.figures.get("session_reads", 0)) > 0, "no session has read anything")
    note_gaps(bank.faults, history, findings)
    findings.note("settled_s", bank.settled_s)


def wait_until(trouble: Callable[[], str], deadline_s: float, look_s: float = _LOOK_S) -> str:
    """Look until there is no trouble any more; what there still is at the deadline."""
    while told := trouble():
        if time.monotonic() > deadline_s:
            return told
        time.sleep(look_s)
    return ""
