"""The checks after a cluster under torture has stopped: logs, read models, leftovers, and which partitions waited.

The logs are read from the data folders of the nodes, past everything that ever ran. Rule kept here: by the maps
of the shares each partition has a home, and its log is there; any other copy of it, which a move has left, must be
sealed and a beginning of that log.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import msgpack

from rayfold.actors.cluster.local import LocalNode
from rayfold.actors.cluster.node import DATA_VARIABLE
from rayfold.runtime.errors import RayfoldError, StoreMissing
from rayfold.runtime.log.reader import LmdbReader
from rayfold.runtime.store.node_store import open_share
from rayfold.runtime.store.partition_map import PartitionMap, merged
from rayfold.runtime.store.store import Store
from rayfold.runtime.store.verify import verify_store

from ..checking import check_log, check_read_model, check_report, check_seen, stored_records
from ..contract import Findings
from ..history import History

__all__ = ["Fault", "check_nothing_runs", "check_what_is_left", "longest_gap_s", "note_gaps", "stopped_store"]

_GONE_TIMEOUT_S: Final = 30.0
_LOOK_S: Final = 0.1


class Fault(NamedTuple):
    """Something that was broken."""

    began_s: float
    affected: frozenset[int]
    """Partitions that cannot be expected to answer; the others have to."""


@dataclass(frozen=True, slots=True)
class StoppedStore:
    """A store that is spread over data folders on this machine. Keeps the contract `ReadableStore`."""

    map: PartitionMap
    shares: Mapping[str, Store]
    """By the id of the node."""

    @property
    def store_id(self) -> str:
        """A UUID, made with the store."""
        return self.map.store_id

    @property
    def partitions(self) -> int:
        """How many logs it has."""
        return len(self.map.owners)

    @property
    def placement(self) -> str:
        """The rule by which streams find their partitions."""
        return self.map.placement

    def open_reader(self, partition: int) -> LmdbReader:
        """A reader of one of them, where it is at home."""
        return self.shares[self.map.owners[partition]].open_reader(partition)

    def folder_here(self) -> Path:
        """Nothing is kept beside a store that has stopped."""
        raise StoreMissing("a cluster that has stopped", "nothing is kept beside it")


def stopped_store(name: str, nodes: Iterable[LocalNode]) -> StoppedStore:
    """The store of this name. Raises `StoreMissing` if there is no share of it at all, and what opening one does."""
    shares, maps = {}, []
    for node in nodes:
        share = open_share(node.data / name, node.identity.node_id)
        if share is not None and share.map is not None:
            shares[node.identity.node_id] = share.store
            maps.append(share.map)
    if not maps:
        raise StoreMissing(name, "no node has a share of it")
    return StoppedStore(merged(maps), shares)


def _check_shares(store: StoppedStore, findings: Findings) -> None:
    """I1: every log is sound where it is at home. I6: what is left of it elsewhere was sealed, and is its beginning."""
    for node_id, share in store.shares.items():
        try:
            check_report(verify_store(share.path), findings)
        except RayfoldError as error:
            findings.check("I1", False, f"verify: {error}")
        for partition, home in enumerate(store.map.owners):
            if home != node_id and (share.partition_path(partition) / "data.mdb").exists():
                findings.count("logs_left")
                _check_left(store, share, partition, findings)


def _check_left(store: StoppedStore, share: Store, partition: int, findings: Findings) -> None:
    where = f"partition {partition}, left in {share.path}"
    with contextlib.closing(share.open_reader(partition)) as reader:
        findings.check("I6", bool(reader.successor()), f"{where}: it is not sealed")
    left, present = stored_records(share, partition), stored_records(store, partition)
    for position, record in enumerate(left, 1):
        same = zlib.crc32(record) == zlib.crc32(next(present, b""))
        if not findings.check("I6", same, f"{where}: its event {position} is not that of its successor"):
            return


def check_what_is_left(
    store: StoppedStore,
    history: History,
    totals: Sequence[dict[str, list[int]]],
    seen: Sequence[Path],
    findings: Findings,
) -> None:
    """I1 to I8 over the logs, I5 of what the read models answered, I4 of what the watchers have noted down."""
    _check_shares(store, findings)
    events = check_log(store, history, findings)
    for answered in totals:
        check_read_model("a read model", answered, events, findings)
    for one in seen:
        check_seen(msgpack.unpackb(one.read_bytes()), "", store, findings)


def note_gaps(faults: Sequence[Fault], history: History, findings: Findings) -> None:
    """How long affected partitions acknowledged nothing, and the others: the longest time between two acknowledgements
    from the last one before each fault to the next fault."""
    told: dict[int, list[float]] = {}
    for entry, receipt in history.acknowledged():
        told.setdefault(receipt.partition, []).append(entry.told_s)
    affected: list[float] = []
    others = [0.0]
    ends = [*(fault.began_s for fault in faults[1:]), float("inf")]
    for fault, end_s in zip(faults, ends, strict=False):
        for partition, times in told.items():
            gap_s = longest_gap_s(sorted(times), fault.began_s, end_s)
            (affected if partition in fault.affected else others).append(gap_s)
    findings.figures["faults"] = len(faults)
    findings.note("unavailable_s", affected)
    findings.figures["others_gap_s_max"] = round(max(others), 1)


def longest_gap_s(times: Sequence[float], began_s: float, end_s: float) -> float:
    """Between two of these sorted times: from the last one before `began_s` up to `end_s`."""
    before = [one for one in times if one <= began_s][-1:] or [began_s]
    within = [one for one in times if began_s < one < end_s]
    chosen = [*before, *within, *([end_s] if end_s < float("inf") else [])]
    return max((later - earlier for earlier, later in itertools.pairwise(chosen)), default=0.0)


def check_nothing_runs(folder: Path, findings: Findings) -> None:
    """I11: no process of a node is left."""
    end_s = time.monotonic() + _GONE_TIMEOUT_S
    while (left := _processes_of(folder)) and time.monotonic() < end_s:
        time.sleep(_LOOK_S)
    findings.figures["processes_left"] = len(left)
    findings.check("I11", not left, f"left over after the nodes were stopped: {left}")


def _processes_of(folder: Path) -> list[int]:
    """The processes, of whomever, that were started for a data folder in here."""
    marked = f"{DATA_VARIABLE}={folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has ended, or is not ours
                environment = (entry / "environ").read_bytes()  # empty for a zombie
                if any(one.startswith(marked) for one in environment.split(b"\0")):
                    found.append(int(entry.name))
    return found
