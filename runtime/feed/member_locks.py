"""Member locks: who has a member of a named subscription open, where all who open it share a folder or a process.

Beside the read path. Before it: `committed_positions.py` opens a member. On a cluster, where its holders share nothing,
the coordinator has leases instead (`group_coordinator.py`).

Layout, below the directory of the store::

    subscriptions/mailer/group.lock                    flocked while a member opens
    subscriptions/mailer/member-00000/store.lock       flocked by the process that has the member open; names it

Rules kept here: a lock ends with the process that has it; a name becomes a folder, which belongs to this user alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ..durable_files import fsync_folder
from ..errors import StorageFailed, StoreInUse, StoreMissing, SubscriptionInUse
from ..private import make_private_folder, open_private
from ..store.store_lock import StoreLock, holder_of
from .old_places import member_folder

__all__ = ["FolderLocks", "MemberLocks", "MemoryLocks"]


class MemberLocks(Protocol):
    """The locks of all names of a store."""

    def opening(self, name: str) -> AbstractContextManager[None]:
        """One opens at a time; the others wait."""
        ...

    def take(self, name: str, member: int, of: int) -> ExitStack:
        """Have a member for this process, until that is closed. Raises `SubscriptionInUse`, `StorageFailed`."""
        ...

    def known(self, name: str) -> int:
        """How many members were ever open, of a name of which the partitions know nothing: an earlier release may have
        them open."""
        ...

    def holders(self, name: str, of: int) -> dict[int, str]:
        """Member -> the process that has it, of those that one has."""
        ...


class FolderLocks:
    """Of a store with a folder here."""

    def __init__(self, folder: Path) -> None:
        """`folder`: that of the subscriptions."""
        self._folder = folder

    @contextmanager
    def opening(self, name: str) -> Iterator[None]:
        """See `MemberLocks`: for as long as asking the partitions takes."""
        folder = self._folder / name
        self._make(folder)
        try:
            descriptor = open_private(folder / "group.lock", os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise StorageFailed(str(folder), f"cannot open the subscription: {error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def take(self, name: str, member: int, of: int) -> ExitStack:
        """See `MemberLocks`."""
        folder = member_folder(self._folder / name, member)
        self._make(folder)
        taken = ExitStack()
        try:
            taken.enter_context(StoreLock(folder, f"subscription {name}"))
        except StoreInUse as error:
            raise SubscriptionInUse(name, f"{member} of {of}", error.holder) from None
        return taken

    def known(self, name: str) -> int:
        """See `MemberLocks`."""
        return sum(1 for one in (self._folder / name).glob("member-*"))

    def holders(self, name: str, of: int) -> dict[int, str]:
        """See `MemberLocks`."""
        found = {}
        for member in range(of):
            with contextlib.suppress(StoreMissing):  # there is no lock: none has ever opened it
                if (holder := holder_of(member_folder(self._folder / name, member))) is not None:
                    found[member] = str(holder)
        return found

    def _make(self, folder: Path) -> None:
        """Durably: each folder's name is fsynced into the one above. An existing one belongs to this user alone, or is
        refused: the owner of the folder could have put any place into it."""
        missing = [one for one in (folder, *folder.parents) if one.is_relative_to(self._folder)]
        try:
            for one in reversed(missing):
                there = one.is_dir()
                make_private_folder(one)
                if not there:
                    fsync_folder(one.parent)
        except OSError as error:
            raise StorageFailed(str(folder), f"cannot open the subscription: {error}") from error


class MemoryLocks:
    """Of a store in the memory of this process."""

    def __init__(self, taken: set[tuple[str, int]]) -> None:
        """`taken`: the members that are open, kept with the logs."""
        self._taken = taken

    @contextmanager
    def opening(self, name: str) -> Iterator[None]:
        """See `MemberLocks`."""
        yield

    def take(self, name: str, member: int, of: int) -> ExitStack:
        """See `MemberLocks`."""
        if (name, member) in self._taken:
            raise SubscriptionInUse(name, f"{member} of {of}", "this program")
        self._taken.add((name, member))
        taken = contextlib.ExitStack()
        taken.callback(self._taken.discard, (name, member))
        return taken

    def known(self, name: str) -> int:
        """See `MemberLocks`."""
        return 0

    def holders(self, name: str, of: int) -> dict[int, str]:
        """See `MemberLocks`."""
        return {member: "this program" for member in range(of) if (name, member) in self._taken}
