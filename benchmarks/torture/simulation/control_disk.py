"""Simulated disks of nodes: what a node's share lies on, in memory, where any write can be refused or cut off.

The real decisions (`runtime/store/node_share.py`, `sealing.py`, `home_statement.py`) run over it. What has been written
survives the end of every process; a file that was opened before it was renamed or removed is still the same file.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from rayfold.runtime.errors import Damaged, Fenced, StoreMissing
from rayfold.runtime.log.sealing import WriteOwnership, activated
from rayfold.runtime.store.home_statement import CopyFacts, copy_name, partition_in
from rayfold.runtime.store.node_share import Share
from rayfold.runtime.store.partition_map import PartitionMap
from rayfold.runtime.store.store import Store

__all__ = ["Disk", "File", "OpenLog", "Piece", "Writes", "chain_of"]

Result = TypeVar("Result")

PIECE_EVENTS: Final = 64


class Writes(Protocol):
    """Decides what becomes of a write: it is done, refused, done and reported as failed, or the process ends."""

    def __call__(self, what: str, effect: Callable[[], Result]) -> Result:
        """Do it, unless there is a fault here. Raises `StorageFailed`, and what ends a process."""
        ...


class File:
    """A log: who may write it, and its events."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.write_ownership = WriteOwnership()
        self.values: list[int] = []


class Piece(NamedTuple):
    """Adjoining events on their way into a copy, and the chain link of what is before them."""

    after: int
    before: bytes
    values: Sequence[int]

    @property
    def last(self) -> int:
        """The position of its last event."""
        return self.after + len(self.values)


def chain_of(values: Sequence[int]) -> bytes:
    """Stands for all of these events, in this order."""
    return zlib.crc32(repr(list(values)).encode()).to_bytes(4, "big")


class OpenLog:
    """A file, opened to be written. Keeps the contracts of `Sealable` and of a copy."""

    def __init__(self, disk: Disk, name: str, file: File) -> None:
        self.name = name
        self.file = file
        self._disk = disk

    def change_write_ownership(self, change: Callable[[WriteOwnership], WriteOwnership]) -> WriteOwnership:
        def effect() -> WriteOwnership:
            self.file.write_ownership = change(self.file.write_ownership)
            return self.file.write_ownership

        changed = change(self.file.write_ownership)  # what is refused is not written
        return (
            self.file.write_ownership
            if changed == self.file.write_ownership
            else self._disk.write(f"write ownership of {self.name}", effect)
        )

    def activate(self) -> int:
        """Take the log over. Raises `Sealed`."""
        return self.change_write_ownership(lambda present: activated(present, self.name)).epoch

    def append(self, epoch: int, value: int) -> None:
        """Raises `Fenced`."""
        if self.file.write_ownership.epoch != epoch:
            raise Fenced(self.name, epoch, self.file.write_ownership.epoch)
        self.file.values.append(value)

    def end(self) -> tuple[int, bytes]:
        return len(self.file.values), chain_of(self.file.values)

    def add(self, piece: Piece) -> None:
        """Add to a copy. Raises `Damaged` for what does not follow."""
        if (piece.after, piece.before) != self.end():
            raise Damaged(self.name, "its hash does not follow from the events before it")
        self._disk.write(f"piece of {self.name}", lambda: self.file.values.extend(piece.values))

    def close(self) -> None:
        """Nothing is held open."""


class Disk:
    """The `ShareDisk` of one node."""

    def __init__(self, node_id: str, write: Writes) -> None:
        self.manifest: tuple[str, int] | None = None
        self.map: PartitionMap | None = None
        self.proposed: PartitionMap | None = None
        self.files: dict[str, File] = {}
        self.write = write
        self.removes: Callable[[int, File], None] = lambda _partition, _file: None
        """Called before a copy is removed."""
        self._node_id = node_id

    @property
    def path(self) -> Path:
        return Path(self._node_id)

    def open_share(self) -> Share | None:
        if self.manifest is None:
            return None
        store_id, partitions = self.manifest
        at_home = () if self.map is None else self.map.at_home_on(self._node_id)
        away = frozenset(range(partitions)).difference(at_home) if self.map is not None else frozenset[int]()
        return Share(Store(self.path, store_id, partitions, away), self.map)

    def proposal(self) -> PartitionMap | None:
        return self.proposed

    def write_proposal(self, store_map: PartitionMap) -> None:
        self.write("the proposal", lambda: setattr(self, "proposed", store_map))

    def make(self, store_map: PartitionMap) -> None:
        """See `ShareDisk`. Raises `StoreMissing` in place of the real one's error for a store that was in use."""
        if any(file.values or file.write_ownership.epoch for file in self.files.values()):
            raise StoreMissing(str(self.path), "a store here was in use")

        def effect() -> None:
            self.files = {
                copy_name(partition): File(store_map.store_id) for partition in store_map.at_home_on(self._node_id)
            }
            self.manifest = store_map.store_id, len(store_map.owners)

        self.write("the share", effect)

    def write_map(self, store_map: PartitionMap) -> None:
        self.write("the map", lambda: setattr(self, "map", store_map))

    def names(self) -> list[str]:
        return sorted(self.files)

    def look(self, name: str) -> CopyFacts | None:
        file, partition = self.files.get(name), partition_in(name)
        if file is None or partition is None:
            return None
        return CopyFacts(name, partition, file.write_ownership, len(file.values), chain_of(file.values))

    def chain_at(self, name: str, position: int) -> bytes:
        return chain_of(self.files[name].values[:position])

    @contextlib.contextmanager
    def writing(self, name: str, *, create: bool) -> Iterator[Any]:
        yield self.open_log(name, create=create)

    def open_log(self, name: str, *, create: bool) -> OpenLog:
        """A log, opened to be written. Raises `StoreMissing`."""
        if name not in self.files:
            if not create:
                raise StoreMissing(str(self.path), f"{name} is not here")
            assert self.manifest is not None
            file = File(self.manifest[0])
            self.write(f"new {name}", lambda: self.files.setdefault(name, file))
        return OpenLog(self, name, self.files[name])

    def rename(self, name: str, to: str) -> None:
        assert to not in self.files, f"{name} would take the place of {to}"
        self.write(f"{name} renamed to {to}", lambda: self.files.__setitem__(to, self.files.pop(name)))

    def remove(self, name: str) -> None:
        if name in self.files:
            partition = partition_in(name)
            assert partition is not None
            self.removes(partition, self.files[name])
            self.write(f"{name} removed", lambda: self.files.pop(name))

    def piece(self, name: str, after: int, up_to: int) -> Piece | None:
        """What a reader of this log is given for another copy."""
        values = self.files[name].values
        found = values[after : min(up_to, after + PIECE_EVENTS)]
        return Piece(after, chain_of(values[:after]), found) if found else None
