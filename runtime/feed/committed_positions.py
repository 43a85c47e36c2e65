"""What a named subscription has acknowledged: one small file for each of its members, below the store.

Beside the read path. Before it: `subscription.py`, which reports what has been yielded and acknowledged. After it: the
disk.

Layout, below the directory of the store::

    subscriptions/mailer/group.json                    how many members share the work now, and where each begins
    subscriptions/mailer/group.lock                    flocked while a member opens
    subscriptions/mailer/member-00000/positions.json   how far this member has acknowledged
    subscriptions/mailer/member-00000/store.lock       flocked by the process that has the member open; names it

Rules kept here:
- a file is written beside its place, fsynced and moved there, and then its folder is fsynced: it is there whole or not
  at all. It carries a checksum and the id of its store; what decayed is `Damaged`, never a fresh beginning
- a position is kept with the link of the hash chain there (16 digits of it), and compared when it is opened: in a log
  that was cut, exchanged or put back it stands for another event, and everything up to it would be left out in silence
- a member is open once at a time; the lock ends with the process that has it
- a name becomes a folder, so it is ASCII without separators and begins with a letter or digit
- the number of members changes only while none of them is open. Each new one begins at the lowest position that any of
  the old ones has acknowledged: some events come again, none is left out
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from ..durable_files import checksum_of, fsync_folder, write_durably
from ..encoding.facts import shown_as_text
from ..errors import (
    Damaged,
    InvalidId,
    InvalidMessage,
    StorageFailed,
    StoreError,
    StoreInUse,
    StoreMismatch,
    SubscriptionInUse,
)
from ..log.format import chain_of
from ..private import make_private_folder, open_private
from ..store.readable_store import ReadableStore
from ..store.store_lock import StoreLock
from ..stream import RESERVED_PREFIX, is_reserved

__all__ = ["MEMBERS_MAX", "CommittedPositions", "check_member"]

MEMBERS_MAX: Final = 1024
"""Members of one subscription: as many as a store may have partitions, and far more than one machine runs."""

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Name of a subscription: a folder's name on every file system."""

_FILE_BYTES_MAX: Final = 65_536
"""1,024 partitions with positions of 19 digits and their links have under 50,000."""

_LINK_DIGITS: Final = 16
"""Bytes kept of the link at a position: enough to detect a log that was put back by mistake."""


def check_member(name: str, member: int, of: int) -> None:
    """Raises `InvalidId` or `InvalidMessage` for a name or member that cannot be."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        what = "is not a name of up to 64 ASCII letters, digits, '.', '-' and '_' that begins with a letter or digit"
        raise InvalidId("subscription", shown_as_text(name), what)
    if is_reserved(name):
        raise InvalidId("subscription", name, f"begins with {RESERVED_PREFIX!r}, which is for Rayfold itself")
    for number in (member, of):
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidMessage("subscription", f"member={member!r}, of={of!r} must be numbers", "give member=0, of=3")
    if not 1 <= of <= MEMBERS_MAX:
        raise InvalidMessage("subscription", f"it cannot have {of} members", f"choose 1 to {MEMBERS_MAX:,}")
    if not 0 <= member < of:
        raise InvalidMessage("subscription", f"it has no member {member} of {of}", f"choose 0 to {of - 1}")


class HeldMember(Protocol):
    """A member of a subscription that is open."""

    def release(self) -> None:
        """Let others have it."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class CommittedPositions:
    """The positions of one member, which this process holds until `close`. `save` may be called from any thread."""

    def __init__(self, store: ReadableStore, name: str, member: int, of: int, start: Mapping[int, int]) -> None:
        """Open it, or make it: a new subscription begins at `start`, and keeps that as its beginning.

        Raises `InvalidId`, `InvalidMessage`, `SubscriptionInUse`, `Damaged`, `StoreMismatch` or `StorageFailed`.
        """
        check_member(name, member, of)
        self._store = store
        self._folder = self._folder_of(name)
        self._name, self._member, self._of = name, member, of
        self._process = os.getpid()
        self._lock = threading.Lock()
        try:
            self._make_folder(member_folder(self._folder, member))
            with self._group_locked(), ExitStack() as on_failure:
                self._hold: HeldMember | None = on_failure.enter_context(self._held(member, of))
                self._positions = self._join_group(start)
                on_failure.pop_all()
        except OSError as error:
            raise StorageFailed(str(self._folder), f"cannot open the subscription: {error}") from error

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything is acknowledged, durably. A copy."""
        return dict(self._positions)

    def save(self, positions: Mapping[int, int]) -> None:
        """Acknowledge up to these positions; returns when that is on the disk. Positions never go back.

        Raises `StorageFailed`; then what was saved before stands.
        """
        with self._lock:
            if self._hold is None:
                raise StorageFailed(str(self._folder), f"subscription {self._name!r} was closed")
            if self._process != os.getpid():  # its parent may have gone on since
                what = f"subscription {self._name!r} was opened by process {self._process}; open it again after a fork"
                raise StorageFailed(str(self._folder), what)
            raised = {partition: max(positions.get(partition, 0), old) for partition, old in self._positions.items()}
            if raised == self._positions:
                return
            path = member_folder(self._folder, self._member) / "positions.json"
            self._links |= {p: self._link(p, at) for p, at in raised.items() if at != self._positions[p]}
            links = [self._links[partition] for partition in raised]
            self._write(path, {"generation": self._generation, "positions": list(raised.values()), "links": links})
            self._positions = raised

    def close(self) -> None:
        """Let others open it. Closing twice is allowed."""
        with self._lock:
            hold, self._hold = self._hold, None
        if hold is not None:
            hold.release()

    def _folder_of(self, name: str) -> Path:
        return self._store.folder_here() / "subscriptions" / name

    def _join_group(self, start: Mapping[int, int]) -> dict[int, int]:
        """Make the group if it is new, and return where this member stands. The caller has locked both."""
        group = self._read(self._folder / "group.json")
        if group is None:
            group = {"generation": 1, "members": self._of, **self._beginning(start)}
            self._write(self._folder / "group.json", group)
        elif group["members"] != self._of:
            group = self._regrouped(group)
        self._generation = int(group["generation"])
        positions = self._positions_of(self._member, group)
        self._links = {partition: self._link(partition, at) for partition, at in positions.items()}
        return positions

    def _positions_of(self, member: int, group: dict[str, Any]) -> dict[int, int]:
        """Those it has saved since the number of members last changed, or else where all of them began. Raises
        `StoreMismatch` if they are of another history than the log is now, `NotInHistory` if the log is shorter."""
        path = member_folder(self._folder, member) / "positions.json"
        saved = self._read(path)
        if saved is None or saved["generation"] != group["generation"]:
            path, saved = self._folder / "group.json", group
        positions = dict(enumerate(saved["positions"] if "positions" in saved else saved["start"]))
        for partition, link in enumerate(saved.get("links", ())):  # written since a later release
            if link and (found := self._link(partition, positions[partition])) and found != link:
                what = f"event {positions[partition]:,} of partition {partition} is not the one that was acknowledged"
                remedy = "verify the store; remove the subscription's folder to begin anew with the log as it is now"
                raise StoreMismatch(str(path), f"{what}: the log follows another history now", remedy)
        return positions

    def _link(self, partition: int, position: int) -> str:
        """Names the history up to a position; empty for none, and where that cannot be read: reading raises the
        error."""
        if not position:
            return ""
        try:
            reader = self._store.open_reader(partition)
            try:
                records = reader.read(position - 1, 1)
            finally:
                reader.close()
        except StoreError:
            return ""
        return chain_of(records[0]).hex()[:_LINK_DIGITS] if records else ""

    def _beginning(self, start: Mapping[int, int]) -> dict[str, list[Any]]:
        partitions = range(self._store.partitions)
        return {"start": [start[p] for p in partitions], "links": [self._link(p, start[p]) for p in partitions]}

    def _regrouped(self, group: dict[str, Any]) -> dict[str, Any]:
        """Give the work to another number of members, while none of the old ones is open."""
        old = int(group["members"])
        with ExitStack() as holds:
            for member in range(old):
                if member != self._member:
                    self._make_folder(member_folder(self._folder, member))
                    holds.enter_context(self._held(member, old))
            reached = [self._positions_of(member, group) for member in range(old)]
            lowest = {partition: min(one[partition] for one in reached) for partition in range(self._store.partitions)}
            group = {"generation": group["generation"] + 1, "members": self._of, **self._beginning(lowest)}
            self._write(self._folder / "group.json", group)
        return group

    def _held(self, member: int, of: int) -> HeldMember:
        try:
            return StoreLock(member_folder(self._folder, member), f"subscription {self._name}")
        except StoreInUse as error:
            raise SubscriptionInUse(self._name, f"{member} of {of}", error.holder) from None

    @contextmanager
    def _group_locked(self) -> Iterator[None]:
        """One opens at a time. The others wait for as long as reading and writing a few small files takes."""
        descriptor = open_private(self._folder / "group.lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _make_folder(self, folder: Path) -> None:
        """Durably: each folder's name is fsynced into the one above. An existing one belongs to this user alone, or is
        refused: the owner of the folder could have put any place into it."""
        for one in (self._folder.parent, self._folder, folder):
            there = one.is_dir()
            make_private_folder(one)
            if not there:
                fsync_folder(one.parent)

    def _write(self, path: Path, facts: dict[str, Any]) -> None:
        facts = {"format": 1, "store_id": self._store.store_id, **facts}
        content = json.dumps({**facts, "checksum": checksum_of(facts)}) + "\n"
        try:
            write_durably(path, content.encode())
        except OSError as error:
            raise StorageFailed(str(path), f"cannot save it: {error.strerror or error}") from error

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The facts in a file; None if there is none."""
        try:
            with os.fdopen(open_private(path, os.O_RDONLY), "rb") as file:
                content = file.read(_FILE_BYTES_MAX)
        except FileNotFoundError:
            return None
        try:
            facts: dict[str, Any] = json.loads(content)
            checksum = facts.pop("checksum")
        except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
            raise Damaged(
                str(path), "it is not what was written; remove the subscription's folder to begin anew"
            ) from error
        if checksum != checksum_of(facts):
            raise Damaged(str(path), "its checksum is wrong; remove the subscription's folder to begin anew")
        if facts["store_id"] != self._store.store_id:
            what = f"this is a subscription to the store {facts['store_id']}, not to {self._store.store_id}"
            raise StoreMismatch(str(path), what, "remove the subscription's folder, or put the right store back")
        return facts


def member_folder(folder: Path, member: int) -> Path:
    """The folder of one member of a subscription."""
    return folder / f"member-{member:05d}"
