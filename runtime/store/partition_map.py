"""Partition map: which node each partition of a store that is spread over several is at home on.

Beside the write path: read before step [5] can begin on a node. Every node that has a part of the store (its *share*)
keeps a copy of the map, `map.json` in the folder of the share, and the highest version counts.

Rules kept here: a map is a value, and every change of it is a new version. It is written whole or not at all, carries a
checksum, and names the node for which this copy was written, so that a share that ended up in another node's data
folder is refused. Of a node, only its id is known here.

Two maps of one version can differ, if a network was cut while both sides changed theirs. Where a partition is at home
is nevertheless never in doubt: it moves only once its log was handed over at its last home (`sealing.py`), which fixes
the version from which on the new home counts, so of two homes the one of the later version counts (`merged`). A map
only ever repeats what a log has decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from ..durable_files import decode_facts, encode_facts, write_durably
from ..errors import StorageFailed, StoreMismatch
from ..stream import OLD_PLACEMENT

__all__ = ["MAP", "PROPOSAL", "Move", "PartitionMap", "merged", "moves_to_balance", "read_map", "write_map"]

MAP: Final = "map.json"
PROPOSAL: Final = "map.proposed.json"
"""The first map of a store that is being created, on the node that decides which one that is."""
FORMAT: Final = 1

MAP_BYTES_MAX: Final = 1 << 20
"""One of 1,024 partitions has under 50,000."""


@dataclass(frozen=True, slots=True)
class PartitionMap:
    """Where the partitions of one store are at home."""

    store_id: str
    version: int
    """From 1; the highest counts."""
    owners: tuple[str, ...]
    """Partition -> the id of the node that its log lies on."""
    since: tuple[int, ...]
    """Partition -> the version in which it came there."""
    names: Mapping[str, str]
    """Node id -> what people call the node. Of every node that has a share."""
    drained: frozenset[str] = frozenset()
    """Nodes that are to have no partition: they are about to leave."""
    placement: str = OLD_PLACEMENT
    """The rule by which streams find their partitions, as the manifest has it."""
    epochs: tuple[int, ...] = ()
    """Partition -> the epoch with which its log came to its home: a log of an earlier epoch is an old copy."""

    def __post_init__(self) -> None:
        if not self.epochs:
            object.__setattr__(self, "epochs", (0,) * len(self.owners))

    @classmethod
    def spread(cls, store_id: str, partitions: int, names: Mapping[str, str], placement: str = OLD_PLACEMENT) -> Self:
        """The first map of a store, over these nodes in turn."""
        nodes = list(names)
        owners = tuple(nodes[number % len(nodes)] for number in range(partitions))
        return cls(store_id, 1, owners, (1,) * partitions, dict(names), placement=placement)

    def at_home_on(self, node_id: str) -> list[int]:
        """The partitions of a node."""
        return [partition for partition, home in enumerate(self.owners) if home == node_id]

    def name_of(self, node_id: str) -> str:
        """What people call a node."""
        return self.names.get(node_id) or node_id

    def with_home(self, partition: int, node_id: str, *, since: int = 0, epoch: int = 0) -> PartitionMap:
        """A later version, in which this partition is at home there, from `since` on (by default the next version),
        with a log of this epoch."""
        since = since or self.version + 1
        return replace(
            self,
            version=max(self.version + 1, since),
            owners=_with(self.owners, partition, node_id),
            since=_with(self.since, partition, since),
            epochs=_with(self.epochs, partition, epoch),
        )

    def with_nodes(self, names: Mapping[str, str]) -> PartitionMap:
        """The next version, which lists these nodes too; the same one if it lists them already."""
        known = {**self.names, **names}
        return self if known == self.names else replace(self, version=self.version + 1, names=known)

    def with_drained(self, nodes: Iterable[str]) -> PartitionMap:
        """The next version, in which just these nodes are to have no partition; the same one if they were it."""
        drained = frozenset(nodes)
        return self if drained == self.drained else replace(self, version=self.version + 1, drained=drained)


def merged(maps: Iterable[PartitionMap]) -> PartitionMap:
    """The maps of several nodes merged: of each partition's homes the latest, all else from the newest map.

    It is one of them, unless they contradict one another: then it is a later version than all of them.
    """
    newest, *older = sorted(maps, key=lambda one: one.version, reverse=True)
    places = list(zip(newest.owners, newest.since, newest.epochs, strict=True))
    for one in older:
        for partition, place in enumerate(zip(one.owners, one.since, one.epochs, strict=True)):
            if place[1] > places[partition][1]:
                places[partition] = place
    owners, since, epochs = (tuple(column) for column in zip(*places, strict=True))
    if owners == newest.owners and all(one == newest for one in older if one.version == newest.version):
        return newest
    names = {node: name for one in (*older, newest) for node, name in one.names.items()}
    return replace(newest, version=newest.version + 1, owners=owners, since=since, epochs=epochs, names=names)


def _with(values: tuple[Any, ...], index: int, value: Any) -> tuple[Any, ...]:
    return (*values[:index], value, *values[index + 1 :])


class Move(NamedTuple):
    """A partition that is to change its home."""

    partition: int
    to: str
    """The id of a node."""


def moves_to_balance(present: PartitionMap, nodes: Sequence[str]) -> list[Move]:
    """The fewest moves after which these nodes have equally many partitions, give or take one, and the others none.

    Which ones is decided by their order, so that two callers get the same result.
    """
    if not nodes:
        return []
    held = {node: present.at_home_on(node) for node in nodes}
    homeless = [partition for partition, home in enumerate(present.owners) if home not in held]
    least, over = divmod(len(present.owners), len(nodes))
    fullest_first = sorted(nodes, key=lambda node: (-len(held[node]), nodes.index(node)))
    shares = {node: least + (number < over) for number, node in enumerate(fullest_first)}
    for node in nodes:
        homeless += held[node][shares[node] :]
    wanting = [node for node in nodes for _ in range(shares[node] - len(held[node]))]
    return [Move(partition, node) for partition, node in zip(sorted(homeless), wanting, strict=True)]


def write_map(folder: Path, store_map: PartitionMap, here: str, name: str = MAP) -> None:
    """Make this the map in the share of the node `here`. Raises `StorageFailed`."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "here": here,
        "store_id": store_map.store_id,
        "version": store_map.version,
        "homes": list(store_map.owners),
        "since": list(store_map.since),
        "names": dict(store_map.names),
        "drained": sorted(store_map.drained),
        "placement": store_map.placement,
        "epochs": list(store_map.epochs),
    }
    try:
        write_durably(folder / name, encode_facts(facts))
    except OSError as error:
        raise StorageFailed(str(folder / name), f"cannot write the map: {error.strerror or error}") from error


def read_map(folder: Path, name: str = MAP) -> tuple[PartitionMap, str] | None:
    """The map in the folder of a share, and the node for which it was written; None if there is none.

    Raises `StoreMismatch` if it is damaged or of another format, `StorageFailed`.
    """
    path = folder / name
    try:
        with path.open("rb") as file:
            content = file.read(MAP_BYTES_MAX)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageFailed(str(path), f"cannot read the map: {error.strerror or error}") from error
    remedy = f"move {name} away while nothing runs: the other nodes have copies, and the newest of them counts"
    facts = decode_facts(content, path, "the map", remedy)
    if facts.get("format") != FORMAT:
        what = f"the map has format {facts.get('format')}"
        raise StoreMismatch(str(path), what, f"this version of Rayfold reads format {FORMAT}")
    store_map = PartitionMap(
        str(facts["store_id"]),
        int(facts["version"]),
        tuple(map(str, facts["homes"])),
        tuple(map(int, facts["since"])),
        {str(node): str(name) for node, name in dict(facts["names"]).items()},
        frozenset(map(str, facts["drained"])),
        str(facts.get("placement", OLD_PLACEMENT)),
        tuple(map(int, facts.get("epochs", ()))),  # written since a later release
    )
    return store_map, str(facts["here"])
