"""Moves and rebalancing that are interrupted at each step: by the end of the supervisor, of either node, of a node and
the supervisor at once, of the caller.

Where a move is shows on the disks: a copy arrives, the log is sealed, it is handed over, the map of the old home names
the new one, then that of the new home does, and the old log is removed (`actors/control/moves.py` has the steps). The
scenario reads them all the time, and kills the victim as soon as a step is seen to have begun. What had come about by
the time everything is as it was again is counted: the partition is where it was, or where it was to be, and nowhere
else.

Rule kept here: the system is neither asked where a move is, nor held up; only files are read.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.store.node_store import arriving_path
from rayfold.runtime.store.partition_map import read_map
from rayfold.runtime.store.store import Store

from ...harness.processes import ChildEnded
from ..contract import Context, Findings, scenario
from .harness import INVARIANTS_OF_CLUSTERS, NODES, PARTITIONS, ClusterBank, cluster_bank, wait_until
from .program import APP, ProgramError

STEPS: Final = ("asked", "copying", "sealed", "copied", "handed over", "committed", "given", "left")
"""Of a move, by what is seen: nothing yet; a copy on the new home; the seal; some milliseconds later; the seal made
final; the new map on the old home; on the new home; the old log removed."""

BOTH: Final = " and supervisor"
VICTIMS: Final = ("supervisor", "source", "target", "caller", f"source{BOTH}", f"target{BOTH}")

_SHORT: Final = (
    ("supervisor", "copying"),
    ("supervisor", "sealed"),
    ("supervisor", "committed"),
    ("caller", "copying"),
    (f"source{BOTH}", "handed over"),
)
"""What the short form does; a node that is killed takes longest to come back."""

_ROUNDS_MAX: Final = 100
_COPIED_S: Final = 0.01
"""After the seal: copying the rest takes about as long."""

_STEP_S: Final = 60.0
"""For a step to begin; on a machine where everything else starts too."""

_MOVED_S: Final = 180.0
_SETTLED_S: Final = 60.0
_LOOK_S: Final = 0.0005


class _Move(NamedTuple):
    """A move that is to be interrupted. The nodes by number."""

    partition: int
    source: int
    target: int


@scenario(
    "interrupted-moves",
    "moves and rebalancing, interrupted at each step by the end of the supervisor, of a node, of the caller",
    f"{INVARIANTS_OF_CLUSTERS} I6",
    counts="interrupted moved stayed too_late",
    times=(100, 300, 3.0),
)
def interrupted_moves(context: Context, findings: Findings) -> None:
    """A few in the short form; in the long form each victim at each step, and rebalancing, in an order that is
    drawn."""
    every = [*itertools.product(VICTIMS, STEPS), *(("rebalance", step) for step in STEPS)]
    context.rng.shuffle(every)  # a run that is cut short has tried others than the last one
    tried: set[tuple[str, str]] = set()
    with cluster_bank(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            for victim, step in _SHORT if context.short else every:
                try:
                    _interrupt(bank, victim, step)
                except Exception as error:
                    error.add_note(f"a move interrupted by the end of its {victim}, when it was {step}")
                    error.add_note(f"until then: {findings.figures}, {findings.violations}")
                    raise
                findings.figures["steps_with_victims"] = f"{len(tried := tried | {(victim, step)})} of {len(every)}"
                if not context.short and context.left_s < 0:
                    return


def _interrupt(bank: ClusterBank, victim: str, step: str) -> None:
    findings, what = bank.findings, f"{victim} at {step}"
    if victim == "rebalance":
        for partition in range(PARTITIONS):  # everything on the head, from where it is taken in two moves
            bank.ask("move", partition, bank.nodes.nodes[0].name, timeout_s=_MOVED_S)
    elif set(bank.homes()) == {0}:  # then there is no other node to be the victim
        bank.ask("rebalance", timeout_s=_MOVED_S)
    move = _drawn(bank, victim)
    caller, doomed = bank.operator(), _doomed(bank, victim, move)
    if victim == "rebalance":
        caller.begin("rebalance")
    else:
        caller.begin("move", move.partition, bank.nodes.nodes[move.target].name)
    with _seen(bank, move) as reached:
        trouble = wait_until(lambda: "" if reached(step) else "has not begun", time.monotonic() + _STEP_S, _LOOK_S)
        findings.check("I12", not trouble, f"{what}: the step {trouble}")
        if step == "copied":
            time.sleep(_COPIED_S)
        for pid in doomed:  # first of all: while all processes are listed a move comes to its end
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        lost = _lost(victim, move)
        bank.note_fault({move.partition, *(bank.at_home_on(lost) if lost else [])})
        _kill(bank, victim, move)
        at = next(one for one in reversed(STEPS) if one == "asked" or (one != "copied" and reached(one)))
    findings.count(f"at {at}")
    findings.count("interrupted")
    _heal(bank, victim, move)
    home = bank.homes()[move.partition]
    findings.check("I6", home in (move.source, move.target), f"{what}: partition {move.partition} is at home on {home}")
    findings.count("moved" if home == move.target else "stayed")
    trouble = wait_until(lambda: _two_homes(bank), time.monotonic() + _SETTLED_S)
    findings.check("I6", not trouble, f"{what}: {trouble}")
    _move_on(bank, victim, move, what)


def _drawn(bank: ClusterBank, victim: str) -> _Move:
    """Whichever node is to be killed is not the head: that one's end is another scenario."""
    homes, rng = bank.homes(), bank.context.rng
    if victim == "rebalance":  # it takes the last ones from the fullest, in this order
        return _Move(1, 0, 1)
    moves = [
        _Move(partition, homes[partition], target)
        for partition in range(PARTITIONS)
        for target in range(NODES)
        if target != homes[partition]
    ]
    return rng.choice([one for one in moves if not victim.startswith(("source", "target")) or _lost(victim, one)])


def _lost(victim: str, move: _Move) -> int:
    """The node that is killed; 0 if none is, for it is never the head."""
    return {"source": move.source, "target": move.target}.get(victim.removesuffix(BOTH), 0)


def _doomed(bank: ClusterBank, victim: str, move: _Move) -> list[int]:
    """The processes that do the work of a move, as far as they are the victim's."""
    if victim == "caller":
        return []
    doomed = bank.processes("ray::SupervisorActor") if victim.endswith("supervisor") or victim == "rebalance" else []
    if number := _lost(victim, move):
        doomed += bank.processes("ray::NodeAgent", number) + bank.processes("ray::PartitionActor", number)
    return doomed


def _kill(bank: ClusterBank, victim: str, move: _Move) -> None:
    """What is left of the victim."""
    if victim == "caller":
        bank.lose_operator()
    elif number := _lost(victim, move):
        bank.nodes.signal_node(number, signal.SIGKILL)
        bank.kill_nodes([number])


def _heal(bank: ClusterBank, victim: str, move: _Move) -> None:
    """What was killed is started again, and everything comes to be as it was."""
    if number := _lost(victim, move):
        bank.start_nodes([number])
    if victim != "caller":
        with contextlib.suppress(ProgramError, ChildEnded):  # it is not known, or it has moved
            bank.operator().answer(_MOVED_S)
            bank.findings.count("too_late")
    else:  # the move goes on by itself; the next one would wait for its end
        trouble = wait_until(lambda: _not_moved(bank, move), time.monotonic() + _SETTLED_S)
        bank.findings.check("I12", not trouble, f"its caller was killed: {trouble}")
    bank.recover()


def _not_moved(bank: ClusterBank, move: _Move) -> str:
    return "" if bank.homes()[move.partition] == move.target else f"partition {move.partition} has not moved"


def _move_on(bank: ClusterBank, victim: str, move: _Move, what: str) -> None:
    """What was interrupted can be done."""
    try:
        if victim == "rebalance":
            bank.ask("rebalance", timeout_s=_MOVED_S)
        else:
            bank.ask("move", move.partition, bank.nodes.nodes[move.target].name, timeout_s=_MOVED_S)
        told = ""
    except (ProgramError, ChildEnded) as error:
        told = str(error)
    bank.findings.check("I12", not told, f"{what}: afterwards it cannot be done: {told}")
    homes = bank.homes()
    if victim == "rebalance":
        bank.findings.check("I12", len(set(homes)) == NODES, f"{what}: rebalanced, and the homes are {homes}")


# --- what the disks show -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _seen(bank: ClusterBank, move: _Move) -> Iterator[Callable[[str], bool]]:
    """Gives a function that returns whether a step of a move has begun, by the files of both nodes."""
    old, new = bank.store_of(move.source), bank.store_of(move.target)
    target = bank.nodes.nodes[move.target].identity.node_id
    log, partition = old.partition_path(move.partition), move.partition

    def maps(store: Store) -> bool:
        found = read_map(store.path)
        return found is not None and found[0].owners[partition] == target

    with contextlib.closing(old.open_reader(partition)) as reader:
        looks: dict[str, Callable[[], bool]] = {
            "asked": lambda: True,
            "copying": lambda: arriving_path(new, partition).exists() or maps(old),
            "sealed": lambda: bool(reader.successor()),
            "copied": lambda: bool(reader.successor()),
            "handed over": lambda: bool(reader.write_ownership().since),
            "committed": lambda: maps(old),
            "given": lambda: maps(new),
            "left": lambda: maps(old) and not log.exists(),
        }
        yield lambda step: looks[step]()


def _two_homes(bank: ClusterBank) -> str:
    """I6: every node has the same map, and of each partition one log that is not sealed: that of its home."""
    found = [read_map(node.data / APP) for node in bank.nodes.nodes]
    versions = {one[0].version for one in found if one is not None}
    if len(versions) != 1:
        return f"the nodes have maps {sorted(versions)}"
    homes = bank.homes()
    for number, partition in itertools.product(range(NODES), range(PARTITIONS)):
        open_here = _takes_events(bank, number, partition)
        if open_here != (homes[partition] == number):
            told = "takes events" if open_here else "takes no events"
            return f"partition {partition} is at home on {homes[partition]}, and its log on {number} {told}"
    return ""


def _takes_events(bank: ClusterBank, number: int, partition: int) -> bool:
    """Whether there is a log of this partition on that node which is not sealed."""
    store = bank.store_of(number)
    if not (store.partition_path(partition) / "data.mdb").exists():
        return False
    try:
        with contextlib.closing(store.open_reader(partition)) as reader:
            return not reader.successor()
    except RayfoldError:  # it is being removed
        return False
