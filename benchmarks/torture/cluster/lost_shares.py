"""Data folders, shares and logs that are gone, changed places, or are another store's: named, and nothing made anew.

Each damage is done to nodes that have stopped; they are started again, first beside nodes that run, then all together,
as after a night. Senders to the partitions concerned get an error that names it; the other partitions go on. Then what
was taken away is brought back, and everything is there.

Rule kept here: damage is done by renaming, and is undone by renaming back.
"""

from __future__ import annotations

import contextlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple

from rayfold.runtime.errors import RayfoldError
from rayfold.runtime.store.node_store import node_share
from rayfold.runtime.store.partition_map import PartitionMap, write_map

from ..contract import Context, Findings, scenario
from .harness import INVARIANTS_OF_CLUSTERS, NODE_IS_DOWN, NODES, PARTITIONS, ClusterBank, cluster_bank, wait_until
from .program import APP, ProgramError

_TOLD_TIMEOUT_S: Final = 60.0
"""For a node to be welcomed, and its trouble to be known."""

_ROUNDS_MAX: Final = 20


class Damage(NamedTuple):
    """Something that is wrong with the data folders of nodes."""

    name: str
    done: Callable[[ClusterBank, Sequence[int]], AbstractContextManager[Sequence[Path]]]
    """Does it to these nodes, and undoes it; gives the logs that must not come to be meanwhile."""
    victims: int
    """How many nodes it takes."""
    says: str
    """What the errors of the partitions of these nodes contain."""
    starts: bool = True
    """Whether the nodes start all the same."""


@scenario(
    "lost-shares",
    "data folders, shares and logs that are gone, swapped, or another store's",
    f"{INVARIANTS_OF_CLUSTERS} I10",
    counts="damages named logs_made_anew",
    times=(80, 300, 1),
)
def lost_shares(context: Context, findings: Findings) -> None:
    """The short form does two damages, beside nodes that run; the long form each, and before all are started, too."""
    every = [(damage, all_stopped) for all_stopped in (False, True) for damage in _DAMAGES]
    chosen = context.rng.sample(every[: len(_DAMAGES)], 2) if context.short else every
    with cluster_bank(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            for damage, all_stopped in chosen:
                _try(bank, damage, all_stopped=all_stopped)
                if not context.short and context.left_s < 0:
                    return


def _try(bank: ClusterBank, damage: Damage, *, all_stopped: bool) -> None:
    victims = [1, 2][: damage.victims]
    stopped = list(range(NODES)) if all_stopped else victims
    affected = [partition for victim in victims for partition in bank.at_home_on(victim)]
    where = f"{damage.name}, {'all nodes' if all_stopped else 'its node'} stopped"
    bank.findings.count("damages")
    bank.note_fault(range(PARTITIONS) if all_stopped else affected)
    bank.kill_nodes(stopped)
    with damage.done(bank, victims) as forbidden:
        _start(bank, damage, stopped, victims, where)
        _look(bank, damage, affected, where)
        made = [str(log) for log in forbidden if log.exists()]
        bank.findings.count("logs_made_anew", len(made))
        bank.findings.check("I10", not made, f"{where}: made anew: {made}")
        bank.kill_nodes([victim for victim in victims if bank.nodes.nodes[victim].alive])
    bank.start_nodes(victims)
    bank.recover()


def _start(bank: ClusterBank, damage: Damage, stopped: Sequence[int], victims: Sequence[int], where: str) -> None:
    for number in stopped:
        if damage.starts or number not in victims:
            bank.start_nodes([number])
            continue
        try:
            bank.start_nodes([number])
            told = "it has started"
        except RayfoldError as error:
            told = str(error)
        bank.findings.check("I10", damage.says in told, f"{where}: {told}")


def _look(bank: ClusterBank, damage: Damage, affected: Sequence[int], where: str) -> None:
    """I10: the errors of the partitions concerned name what is wrong; all others take commands."""
    others = [partition for partition in range(PARTITIONS) if partition not in affected]
    try:
        bank.acknowledged(others, _TOLD_TIMEOUT_S)
        told = ""
    except ProgramError as error:
        told = str(error)
    bank.findings.check("I12", not told, f"{where}: {others} do not go on: {told}")
    expected = damage.says if damage.starts else NODE_IS_DOWN
    trouble = wait_until(lambda: bank.not_told(affected, expected), time.monotonic() + _TOLD_TIMEOUT_S)
    bank.findings.count("named", not trouble)
    bank.findings.check("I10", not trouble, f"{where}: {trouble}")


# --- what can be wrong --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _away(path: Path) -> Iterator[None]:
    """Somewhere else for a while. What has taken its place meanwhile gives way."""
    aside = path.with_name(f"{path.name}.aside")
    path.rename(aside)
    try:
        yield
    finally:
        shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)


def _logs(bank: ClusterBank, number: int) -> list[Path]:
    share = bank.nodes.nodes[number].data / APP
    return [share / f"partition-{partition:05d}" / "data.mdb" for partition in range(PARTITIONS)]


@contextlib.contextmanager
def _data_folder_gone(bank: ClusterBank, victims: Sequence[int]) -> Iterator[Sequence[Path]]:
    with _away(bank.nodes.nodes[victims[0]].data):
        yield _logs(bank, victims[0])


@contextlib.contextmanager
def _share_gone(bank: ClusterBank, victims: Sequence[int]) -> Iterator[Sequence[Path]]:
    with _away(bank.nodes.nodes[victims[0]].data / APP):
        yield _logs(bank, victims[0])


@contextlib.contextmanager
def _log_gone(bank: ClusterBank, victims: Sequence[int]) -> Iterator[Sequence[Path]]:
    [lost, *_] = [log for log in _logs(bank, victims[0]) if log.exists()]
    with _away(lost.parent):
        yield [lost]


@contextlib.contextmanager
def _shares_swapped(bank: ClusterBank, victims: Sequence[int]) -> Iterator[Sequence[Path]]:
    one, other = (bank.nodes.nodes[victim].data / APP for victim in victims)
    _swap(one, other)
    try:
        yield [log for victim in victims for log in _logs(bank, victim) if not log.exists()]
    finally:
        _swap(one, other)


def _swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


@contextlib.contextmanager
def _share_of_another(bank: ClusterBank, victims: Sequence[int]) -> Iterator[Sequence[Path]]:
    node = bank.nodes.nodes[victims[0]]
    names = {one.identity.node_id: one.name for one in bank.nodes.nodes}
    with _away(node.data / APP):
        other = PartitionMap.spread(str(uuid.uuid4()), PARTITIONS, names)
        node_share(node.data / APP, node.identity.node_id).create(other)
        write_map(node.data / APP, other, node.identity.node_id)
        yield [log for log in _logs(bank, victims[0]) if not log.exists()]


_DAMAGES: Final = (
    Damage("a data folder gone", _data_folder_gone, 1, "no node.json here, where the data folder of node", False),
    Damage("a share gone", _share_gone, 1, "is gone, with partitions"),
    Damage("a partition's log gone", _log_gone, 1, "is not here"),
    Damage("two nodes' shares swapped", _shares_swapped, 2, "shares must not change places"),
    Damage("another store's share", _share_of_another, 1, "and the other nodes have store"),
)
