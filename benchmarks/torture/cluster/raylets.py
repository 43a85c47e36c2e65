"""The raylet of a node frozen or killed while its actors run on, and a node that runs twice: two copies of one.

A raylet is Ray's own process of a node; actors are its children, and do their work without it. One that stands still is
given up by Ray, and what ran there is started elsewhere, though it runs. And a node that stands still, as a virtual
machine may, is started a second time on its data folder, whose locks do not hold, as when its disk is attached to
another machine. Then the first one wakes up, with its partition, and with commands that have waited in its sockets.

Rule kept here: what the old copy appends is read while no other process can append: its successor is stopped.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from rayfold.actors.cluster.local import LocalNode
from rayfold.actors.cluster.node import LOCK
from rayfold.actors.cluster.processes import end_sessions
from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.log.sealing import continue_epochs
from rayfold.runtime.store.node_store import open_share
from rayfold.runtime.store.store_lock import LOCK as STORE_LOCK

from ...harness.processes import Child, runs, title_of
from ..contract import Context, Findings, scenario
from ..processes import take_over
from .harness import INVARIANTS_OF_CLUSTERS, NODES, PARTITIONS, RECOVERED_MAX_S, ClusterBank, cluster_bank, wait_until
from .program import APP, ProgramError

_KINDS: Final = ("NodeAgent", "PartitionActor", "ProjectorActor", "AggregateActor")
_ROUNDS_MAX: Final = 100

_GIVEN_UP_S: Final = 60.0
"""For Ray to give a node up: 5 to 9 s on a quiet machine."""

_ENDED_S: Final = 60.0
"""For a node that was given up to learn of it, and to end."""

_LIVES_ON_S: Final = 3.0
"""How long the old copies live on beside the new ones, before the raylet goes on."""

_WAKES_S: Final = 5.0
"""For the old copy to do what it has left to do, while its successor is stopped; shorter than the silence after which
that one would be replaced."""

_TRIES_MAX: Final = 10
_LOOK_S: Final = 0.01


@scenario(
    "lose-raylets",
    "SIGSTOP of a raylet until Ray has given its node up, and SIGKILL of one, while its actors live on",
    INVARIANTS_OF_CLUSTERS,
    counts="raylets_killed raylets_frozen old_copies",
    times=(90, 180, 1),
)
def lose_raylets(context: Context, findings: Findings) -> None:
    """One killed, and one frozen until Ray has given its node up; in the long form again and again."""
    given_up: list[float] = []
    with cluster_bank(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            for freezes in (True, False):
                _lose_raylet(bank, _victim(bank), given_up, freezes=freezes)
    findings.note("given_up_s", given_up, "max")


def _victim(bank: ClusterBank) -> int:
    """A node that is not the head, where a projector runs if possible: that is what is started elsewhere."""
    others = [number for number in range(1, NODES) if bank.at_home_on(number)]
    return bank.context.rng.choice([one for one in others if bank.processes("ray::ProjectorActor", one)] or others)


def _lose_raylet(bank: ClusterBank, victim: int, given_up: list[float], *, freezes: bool) -> None:
    node, affected = bank.nodes.nodes[victim], bank.at_home_on(victim)
    raylet = _raylet(bank, victim)
    bank.note_fault(affected)
    if freezes:
        began_s = time.monotonic()
        os.kill(raylet, signal.SIGSTOP)
        bank.findings.count("raylets_frozen")
        trouble = wait_until(lambda: _seen_up(bank, node.name), began_s + _GIVEN_UP_S)
        bank.findings.check("I12", not trouble, f"its raylet is frozen, and {trouble}")
        given_up.append(time.monotonic() - began_s)
        others = [one for one in range(PARTITIONS) if one not in affected]
        bank.acknowledged(others, _GIVEN_UP_S)
        time.sleep(_LIVES_ON_S)
        bank.findings.count("old_copies", sum(len(bank.processes(f"ray::{kind}", victim)) for kind in _KINDS))
        os.kill(raylet, signal.SIGCONT)
    else:
        os.kill(raylet, signal.SIGKILL)
        bank.findings.count("raylets_killed")
    trouble = wait_until(lambda: "it has not ended" if node.alive else "", time.monotonic() + _ENDED_S)
    bank.findings.check("I11", not trouble, f"{node.name} has lost its raylet, and {trouble}")
    bank.replace_nodes([victim])  # its program is left, which may hang; of the node nothing should be


def _seen_up(bank: ClusterBank, name: str) -> str:
    try:
        status = bank.ask("status")
    except ProgramError as error:  # the supervisor was on that node
        return str(error)
    return next((f"{name} is seen up" for one in status["nodes"] if one["name"] == name and one["up"]), "")


def _raylet(bank: ClusterBank, number: int) -> int:
    session = bank.nodes.nodes[number].session
    assert session is not None
    [raylet] = [pid for pid in session.members() if title_of(pid).endswith("/raylet")]
    return raylet


# --- two nodes over one data folder ---------------------------------------------------------------------------------


@scenario(
    "two-of-one",
    "a node frozen, and started a second time on its data folder, past its locks; the first one wakes up",
    f"{INVARIANTS_OF_CLUSTERS} I6",
    counts="copies appended_by_the_old refused_by_the_lock frozen_in_a_transaction",
    times=(70, 120, 1),
)
def two_of_one(context: Context, findings: Findings) -> None:
    """A node is frozen and started a second time on its data folder, whose locks are gone; then the first wakes up."""
    with cluster_bank(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            _two_of_one(bank, _victim(bank))


def _two_of_one(bank: ClusterBank, victim: int) -> None:
    node, [partition, *_] = bank.nodes.nodes[victim], bank.at_home_on(victim)
    bank.note_fault(bank.at_home_on(victim))
    old = _frozen(bank, victim, partition)
    bank.nodes.signal_node(victim, signal.SIGSTOP)
    first = bank.part_with(victim)
    try:
        _check_refused(bank, victim)
        (node.data / LOCK).unlink()
        _without_locks(node.data / APP)
        bank.start_nodes([victim])
        bank.await_recovered()
        successor = _frozen(bank, victim, partition)
        try:
            _wake(bank, victim, partition, old, first)
        finally:
            os.kill(successor, signal.SIGCONT)
        bank.findings.count("copies")
        members = first.session.members if first.session is not None else list
        left = wait_until(lambda: " ".join(map(str, members())), time.monotonic() + _ENDED_S)
        bank.findings.check("I11", not left, f"{node.name} has a successor, and processes of the first run: {left}")
    finally:
        _end(first)
    bank.recover()


def _check_refused(bank: ClusterBank, victim: int) -> None:
    """I6: where the lock of the data folder holds, there is no second node at all."""
    try:
        bank.start_nodes([victim])
        told = "it has started"
    except RayfoldError as error:
        told = str(error)
    bank.findings.count("refused_by_the_lock", "in use" in told)
    bank.findings.check("I6", "in use" in told, f"a second node on a data folder in use: {told}")


def _without_locks(share: Path) -> None:
    """Have a share without a lock, with the same files: the lock of its folder stays with the folder that
    has it."""
    (share / STORE_LOCK).unlink()
    locked = share.with_name(f"{share.name}.locked")
    share.rename(locked)
    share.mkdir(mode=locked.stat().st_mode & 0o777)
    for one in locked.iterdir():
        one.rename(share / one.name)
    locked.rmdir()


def _wake(bank: ClusterBank, victim: int, partition: int, old: int, first: LocalNode) -> None:
    """I6: the first node goes on, its partition with commands in its sockets, and appends nothing."""
    with closing(bank.store_of(victim).open_reader(partition)) as reader:
        before = reader.head()
        if first.session is not None:
            first.session.signal(signal.SIGCONT)
        wait_until(lambda: "it runs" if runs(old) else "", time.monotonic() + _WAKES_S, _LOOK_S)
        after = reader.head()
    bank.findings.count("appended_by_the_old", after - before)
    told = f"partition {partition}: {after - before} appended by process {old} after its successor had taken over"
    bank.findings.check("I6", after == before, told)


def _end(node: LocalNode) -> None:
    if node.session is not None:
        end_sessions([node.session], grace_s=0)
    if node.process is not None:
        node.process.wait()
        for stream in filter(None, (node.process.stdin, node.process.stdout)):
            stream.close()


def _frozen(bank: ClusterBank, number: int, partition: int) -> int:
    """Stop the process of a node's only partition, at a moment at which it does not hold the lock of its log."""
    node = bank.nodes.nodes[number]
    for _ in range(_TRIES_MAX):
        pid = _partition_process(bank, number)
        os.kill(pid, signal.SIGSTOP)
        with Child(write, share=str(node.data / APP), node_id=node.identity.node_id, partition=partition) as child:
            if take_over(child):
                return pid
        os.kill(pid, signal.SIGCONT)
        bank.findings.count("frozen_in_a_transaction")
    raise RuntimeError(f"partition {partition} was stopped inside a transaction {_TRIES_MAX} times in a row")


def _partition_process(bank: ClusterBank, number: int) -> int:
    """The process of a node's only partition. A title that is being changed is none for a moment."""
    found: list[int] = []

    def trouble() -> str:
        found[:] = bank.processes("ray::PartitionActor", number)
        return "" if len(found) == 1 else f"{len(found)} processes of partitions"

    still = wait_until(trouble, time.monotonic() + RECOVERED_MAX_S)
    if still:
        raise RuntimeError(f"node {number} has {still} {RECOVERED_MAX_S:g} s after it was recovered")
    return found[0]


def write(share: str, node_id: str, partition: int) -> None:
    """What the child runs: a transaction of a writer that changes nothing."""
    found = open_share(Path(share), node_id)
    assert found is not None
    print("began", flush=True)
    with closing(found.store.open_log(partition)) as log:
        continue_epochs(log, 0)
        print("done", flush=True)
