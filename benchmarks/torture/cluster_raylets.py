"""The raylet of a node frozen or killed while its actors live on, and a node that is there twice: two of one.

A raylet is Ray's own process of a node; actors are its children, and do their work without it. One that stands still is
given up by Ray, and what ran there is started elsewhere, though it runs. And a node that stands still, as a virtual
machine may, is started a second time on its data folder, whose locks do not hold: its disk is attached to another
machine, say. Then the first one wakes up, with its partition, and with commands that have waited in its sockets.

Rule kept here: what the old copy appends is looked at while nobody else can append: its successor is stopped meanwhile.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from rayfold.actors.cluster.local import LocalNode
from rayfold.actors.cluster.node import LOCK
from rayfold.actors.cluster.processes import end_sessions
from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.log.sealing import continue_epochs
from rayfold.runtime.store.node_store import open_share
from rayfold.runtime.store.store_lock import LOCK as STORE_LOCK

from .child import Child
from .cluster_harness import INVARIANTS_OF_CLUSTERS, NODES, PARTITIONS, ClusterLiving, cluster_living, wait_until
from .cluster_program import APP
from .contract import Context, Findings, Scenario
from .local_harness import quantile

__all__ = ["SCENARIOS"]

_KINDS: Final = ("NodeAgent", "PartitionActor", "ProjectorActor", "AggregateActor")
_ROUNDS_MAX: Final = 100

_GIVEN_UP_S: Final = 60.0
"""For Ray to give a node up: 5 to 9 s on a quiet machine."""

_ENDED_S: Final = 60.0
"""For a node that was given up to hear of it, and to end."""

_LIVES_ON_S: Final = 3.0
"""How long the old copies live on beside the new ones, before the raylet goes on."""

_WAKES_S: Final = 5.0
"""For the old copy to do what it has left to do, while its successor is stopped; shorter than the silence after which
that one would be replaced."""

_LOCK_S: Final = 3.0
"""For a transaction that changes nothing: who has not done it by then waits for a writer that was stopped inside
one."""

_TRIES_MAX: Final = 10
_LOOK_S: Final = 0.01


def lose_raylets(context: Context) -> Findings:
    """One killed, and one frozen until Ray has given its node up; in the long form again and again."""
    findings = Findings({"raylets_killed": 0, "raylets_frozen": 0, "old_copies": 0})
    given_up: list[float] = []
    with cluster_living(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            for freezes in (True, False):
                _lose_raylet(bank, _victim(bank), given_up, freezes=freezes)
    given_up.sort()
    findings.figures["given_up_s_max"] = quantile(given_up, 1.0)
    return findings


def _victim(bank: ClusterLiving) -> int:
    """A node that is not the head, where a projector runs if possible: that is what is started elsewhere."""
    others = [number for number in range(1, NODES) if bank.at_home_on(number)]
    return bank.context.rng.choice([one for one in others if bank.processes("ray::ProjectorActor", one)] or others)


def _lose_raylet(bank: ClusterLiving, victim: int, given_up: list[float], *, freezes: bool) -> None:
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
        bank.the_hand().ask("acknowledged", others, _GIVEN_UP_S)
        time.sleep(_LIVES_ON_S)
        bank.findings.count("old_copies", sum(len(bank.processes(f"ray::{kind}", victim)) for kind in _KINDS))
        os.kill(raylet, signal.SIGCONT)
    else:
        os.kill(raylet, signal.SIGKILL)
        bank.findings.count("raylets_killed")
    trouble = wait_until(lambda: "it has not ended" if node.alive else "", time.monotonic() + _ENDED_S)
    bank.findings.check("I11", not trouble, f"{node.name} has lost its raylet, and {trouble}")
    bank.kill_nodes([victim])  # its program, which may hang; of the node nothing should be left
    bank.start_nodes([victim])
    bank.await_recovered()
    bank.restart_programs()


def _seen_up(bank: ClusterLiving, name: str) -> str:
    status = bank.the_hand().ask("status")
    return next((f"{name} is seen up" for one in status["nodes"] if one["name"] == name and one["up"]), "")


def _raylet(bank: ClusterLiving, number: int) -> int:
    session = bank.nodes.nodes[number].session
    assert session is not None
    [raylet] = [pid for pid in session.members() if _program(pid).endswith("/raylet")]
    return raylet


def _program(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


# --- two nodes over one data folder ---------------------------------------------------------------------------------


def two_of_one(context: Context) -> Findings:
    """A node is frozen and started a second time on its data folder, whose locks are gone; then the first wakes up."""
    findings = Findings({"copies": 0, "appended_by_the_old": 0, "refused_by_the_lock": 0, "frozen_in_a_transaction": 0})
    with cluster_living(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            _two_of_one(bank, _victim(bank))
    return findings


def _two_of_one(bank: ClusterLiving, victim: int) -> None:
    node, [partition, *_] = bank.nodes.nodes[victim], bank.at_home_on(victim)
    bank.note_fault(bank.at_home_on(victim))
    old = _frozen(bank, victim, partition)
    bank.nodes.signal_node(victim, signal.SIGSTOP)
    first = bank.part_with(victim)
    try:
        _check_refused(bank, victim)
        (node.data / LOCK).unlink()
        (node.data / APP / STORE_LOCK).unlink()
        bank.start_nodes([victim])
        bank.await_recovered()
        successor = _frozen(bank, victim, partition)
        try:
            _wake(bank, victim, partition, old, first)
        finally:
            os.kill(successor, signal.SIGCONT)
        bank.findings.count("copies")
        left = wait_until(lambda: _left(first), time.monotonic() + _ENDED_S)
        bank.findings.check("I11", not left, f"{node.name} has a successor, and of the first one there are {left}")
    finally:
        _end(first)
    bank.await_recovered()
    bank.restart_programs()


def _check_refused(bank: ClusterLiving, victim: int) -> None:
    """I6: where the lock of the data folder holds, there is no second node at all."""
    try:
        bank.start_nodes([victim])
        told = "it has started"
    except RayfoldError as error:
        told = str(error)
    bank.findings.count("refused_by_the_lock", "in use" in told)
    bank.findings.check("I6", "in use" in told, f"a second node on a data folder in use: {told}")


def _wake(bank: ClusterLiving, victim: int, partition: int, old: int, first: LocalNode) -> None:
    """I6: the first node goes on, its partition with commands in its sockets, and appends nothing."""
    with _log(bank, victim, partition) as reader:
        before = after = reader.head()
        if first.session is not None:
            first.session.signal(signal.SIGCONT)
        end_s = time.monotonic() + _WAKES_S
        while _runs(old) and time.monotonic() < end_s:
            time.sleep(_LOOK_S)
            after = reader.head()
        after = max(after, reader.head())
    bank.findings.count("appended_by_the_old", after - before)
    told = f"partition {partition}: {after - before} appended by process {old} after its successor had taken over"
    bank.findings.check("I6", after == before, told)


def _left(node: LocalNode) -> str:
    members = node.session.members() if node.session is not None else []
    return f"processes {members}" if members else ""


def _end(node: LocalNode) -> None:
    if node.session is not None:
        end_sessions([node.session], grace_s=0)
    if node.process is not None:
        node.process.wait()
        for stream in filter(None, (node.process.stdin, node.process.stdout)):
            stream.close()


def _frozen(bank: ClusterLiving, number: int, partition: int) -> int:
    """Stop the process of a node's only partition, at a moment at which it has not got the lock of its log."""
    for _ in range(_TRIES_MAX):
        [pid] = bank.processes("ray::PartitionActor", number)
        os.kill(pid, signal.SIGSTOP)
        if _lock_is_free(bank, number, partition):
            return pid
        os.kill(pid, signal.SIGCONT)
        bank.findings.count("frozen_in_a_transaction")
    raise RuntimeError(f"partition {partition} was stopped inside a transaction {_TRIES_MAX} times in a row")


def _lock_is_free(bank: ClusterLiving, number: int, partition: int) -> bool:
    node = bank.nodes.nodes[number]
    share = str(node.data / APP)
    with Child("cluster_raylets:write", share=share, node_id=node.identity.node_id, partition=partition) as child:
        lines = child.lines()
        began = next(lines, "")
        watching = threading.Timer(_LOCK_S, child.kill)
        watching.start()
        done = next(lines, "")
        watching.cancel()
        child.wait()
        if not began:
            raise RuntimeError(f"the lock of partition {partition} cannot be tried:\n{child.errors()}")
    return bool(done)


def write(share: str, node_id: str, partition: int) -> None:
    """What the child runs: a transaction of a writer that changes nothing."""
    found = open_share(Path(share), node_id)
    assert found is not None
    print(json.dumps("began"), flush=True)
    log = found.store.open_log(partition)
    try:
        continue_epochs(log, 0)
        print(json.dumps("done"), flush=True)
    finally:
        log.close()


@contextlib.contextmanager
def _log(bank: ClusterLiving, number: int, partition: int) -> Iterator[Any]:
    node = bank.nodes.nodes[number]
    found = open_share(node.data / APP, node.identity.node_id)
    assert found is not None
    reader = found.store.open_reader(partition)
    try:
        yield reader
    finally:
        reader.close()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


SCENARIOS: Final = (
    Scenario(
        "lose-raylets",
        "SIGSTOP of a raylet until Ray has given its node up, and SIGKILL of one, while its actors live on",
        lose_raylets,
        invariants=INVARIANTS_OF_CLUSTERS,
        short_s=90,
        long_s=180,
    ),
    Scenario(
        "two-of-one",
        "a node frozen, and started a second time on its data folder, past its locks; the first one wakes up",
        two_of_one,
        invariants=(*INVARIANTS_OF_CLUSTERS, "I6"),
        short_s=70,
        long_s=120,
    ),
)
