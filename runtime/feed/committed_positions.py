"""CommittedPositions: what a member of a named subscription has acknowledged, kept with the logs of its partitions.

Beside the read path. Before it: `subscription.py`, which reports what has been yielded and acknowledged. After it: the
partitions, which keep it (`group_coordinator.py`), asked over whatever leads to them (`PartitionCalls`).

Rules kept here:
- a member is open once at a time: by the locks of the store where there are any (`member_locks.py`), else by a lease
  that a thread here renews until it is closed
- one that was taken by another holder meanwhile raises `SubscriptionInUse` at the next use
- `save` asks the partitions in which something has changed. Of one that does not answer nothing is lost: it is asked
  again by the next `save`
"""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from ..encoding.facts import shown_as_text
from ..errors import InvalidId, InvalidMessage, RayfoldError, StorageFailed, SubscriptionInUse, Unavailable
from ..printable import printable_log
from ..stream import RESERVED_PREFIX, is_reserved
from .group_coordinator import RENEW_S, coordinator_of, process_here
from .group_share import Divided, partitions_of
from .member_locks import MemberLocks

__all__ = ["MEMBERS_MAX", "CommittedPositions", "Member", "PartitionCalls", "check_member"]

log = printable_log(__name__)

MEMBERS_MAX: Final = 1024
"""Members of one subscription: as many as a store may have partitions."""

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
"""Name of a subscription: a folder's name on every file system."""

_OPEN_S: Final = 10.0
"""How long opening and what is acknowledged by hand wait for a partition that moves, starts again, or is busy. One that
is known to be away is not waited for."""

_CLOSE_S: Final = 2.0
"""How long closing waits: what it cannot save comes again."""

_JOINS_MAX: Final = 10
"""Openings one after the other that find that another process was granted the member later."""

_SILENT_S: Final = 5.0
"""How long a partition that did not answer is not asked again by itself."""


class Member(NamedTuple):
    """Which member of which group."""

    name: str
    number: int
    of: int
    divided: Divided


class PartitionCalls(Protocol):
    """What leads to the partitions of a store. Safe from any thread."""

    @property
    def leased(self) -> bool:
        """Whether members are held by lease: their holders share no folder."""
        ...

    def call(self, partition: int, method: str, *arguments: Any, patience_s: float) -> Any:
        """The answer of a partition's `GroupCoordinator` to one of its methods. Raises its error, and `Unavailable` if
        there is none within so many seconds. Each method may be called again."""
        ...

    def close(self) -> None:
        """Release what this subscription alone has of it."""
        ...


_in_use: Counter[tuple[str, int]] = Counter()
"""The grants that this process has, each with the store that it is of."""

_opening = threading.Lock()
"""Held while this process opens one by lease: its grants are known to others in full."""


class CommittedPositions:
    """The positions of one member, which this process has until `close`. `save` may be called from any thread."""

    def __init__(
        self,
        calls: PartitionCalls,
        locks: MemberLocks | None,
        member: Member,
        start: Mapping[int, int],
        link_at: Callable[[int, int], str],
        store_id: str,
    ) -> None:
        """Open it, or make it: a new subscription begins at `start`, in each partition, and keeps that as its
        beginning. `link_at`: names the history of a partition up to a position.

        Raises `SubscriptionInUse`, `Damaged`, `StoreMismatch`, `NotInHistory`, `Unavailable` or `StorageFailed`.
        """
        self._calls, self._member, self._store_id = calls, member, store_id
        self._coordinator = coordinator_of(member.name, len(start))
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._taken_by: SubscriptionInUse | None = None
        self._silent_until_s: dict[int, float] = {}
        self._positions: dict[int, int] = {}
        self._grant = 0
        with ExitStack() as on_failure:
            if calls.leased:
                with _opening:
                    self._open(start, link_at)
                    _in_use[store_id, self._grant] += 1
                threading.Thread(target=self._renew, name="rayfold lease", daemon=True).start()
            else:
                assert locks is not None  # without leases a member is held by its lock
                on_failure.enter_context(self._locked(locks, start, link_at))
            self._held = on_failure.pop_all()

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything is acknowledged, durably. A copy."""
        return dict(self._positions)

    def check_open(self) -> None:
        """Raises `SubscriptionInUse` if another holder has taken it."""
        if self._taken_by is not None:
            raise SubscriptionInUse(self._taken_by.name, self._taken_by.member, self._taken_by.holder)

    def save(self, positions: Mapping[int, int], *, wait: bool = False) -> None:
        """Acknowledge up to these positions; positions never go back. With `wait` it returns when all of that is on the
        disk, and raises `Unavailable` where it cannot be; without, a partition that does not answer now is asked again
        next time.

        Raises `StorageFailed`, `SubscriptionInUse`; what was saved before stands.
        """
        self._save(positions, _OPEN_S if wait else 0.0, wait=wait)

    def close(self, positions: Mapping[int, int] | None = None) -> None:
        """Acknowledge up to these positions, and let others open it. Closing twice is allowed. A partition that does
        not answer within two seconds gets nothing. Raises what `save` does; it is closed all the same."""
        if self._closed.is_set() or self._process != os.getpid():
            return
        try:
            if positions is not None and self._taken_by is None:
                self._save(positions, _CLOSE_S, wait=False)
        finally:
            self._closed.set()
            with self._held, closing(self._calls):
                if self._calls.leased:
                    with suppress(RayfoldError):
                        self._call(self._coordinator, "leave", self._grant, patience_s=_CLOSE_S)
                    _in_use[self._store_id, self._grant] -= 1
                    if not _in_use[self._store_id, self._grant]:
                        del _in_use[self._store_id, self._grant]

    # -------------------------------------------------------------------------------------------------------------

    def _save(self, positions: Mapping[int, int], patience_s: float, *, wait: bool) -> None:
        with self._lock:
            name = self._member.name
            if self._closed.is_set():
                raise StorageFailed(name, f"subscription {name!r} was closed")
            if self._process != os.getpid():  # its parent may have gone on since
                what = f"subscription {name!r} was opened by process {self._process}; open it again after a fork"
                raise StorageFailed(name, what)
            self.check_open()
            until_s = time.monotonic() + patience_s
            for partition, before in sorted(self._positions.items(), key=self._is_silent):
                position, left_s = positions.get(partition, 0), until_s - time.monotonic()
                if position > before and (left_s > 0 or not self._is_silent((partition, before))):
                    self._save_one(partition, position, max(left_s, 0.0), wait=wait)

    def _is_silent(self, place: tuple[int, int]) -> bool:
        """Whether a partition has not answered the last time, which was just now."""
        return self._silent_until_s.get(place[0], 0.0) > time.monotonic()

    def _save_one(self, partition: int, position: int, patience_s: float, *, wait: bool) -> None:
        try:
            self._call(partition, "save", self._grant, position, patience_s=patience_s)
        except SubscriptionInUse as error:
            self._taken_by = error
            self.check_open()
        except Unavailable as error:
            self._silent_until_s[partition] = time.monotonic() + _SILENT_S
            if wait:
                raise
            log.debug("%s is saved later: %s", self._member.name, error)
        else:
            self._positions[partition] = position

    def _locked(self, locks: MemberLocks, start: Mapping[int, int], link_at: Callable[[int, int], str]) -> ExitStack:
        """Open it under the locks; returns what holds it."""
        name, number, of, divided = self._member
        with locks.opening(name), ExitStack() as on_failure:
            on_failure.enter_context(locks.take(name, number, of))
            before = self._calls.call(self._coordinator, "group", name, patience_s=_OPEN_S)
            members = 0 if before == [of, divided] else before[0] if before else locks.known(name)
            with ExitStack() as others:  # none of the old members is open
                for member in range(members):
                    if member != number:
                        others.enter_context(locks.take(name, member, members))
                self._open(start, link_at)
            return on_failure.pop_all()

    def _open(self, start: Mapping[int, int], link_at: Callable[[int, int], str]) -> None:
        """Be granted the member by its coordinator, and claim its places with that."""
        name, number, of, divided = self._member
        partitions, above, begin = len(start), 0, list[list[Any]]()
        if not self._calls.call(self._coordinator, "group", name, patience_s=_OPEN_S):
            begin = [[start[partition], link_at(partition, start[partition])] for partition in range(partitions)]
        holder = _holder() if self._calls.leased else []
        for _ in range(_JOINS_MAX):
            mine = [grant for (store_id, grant), count in _in_use.items() if store_id == self._store_id and count]
            arguments = (of, divided, begin, holder, mine, above)
            self._grant, division, began = self._call(self._coordinator, "join", *arguments, patience_s=_OPEN_S)
            try:
                above = self._claim_all(partitions_of(number, of, divided, partitions), division, began)
            except BaseException:
                if self._calls.leased:
                    with suppress(RayfoldError):
                        self._call(self._coordinator, "leave", self._grant, patience_s=_CLOSE_S)
                raise
            if not above:
                return
        raise SubscriptionInUse(name, f"{number} of {of}", "other processes, which open it all the time")

    def _claim_all(self, partitions: Sequence[int], division: int, began: Sequence[Sequence[Any]]) -> int:
        """Claim the place in each partition. 0, or a greater grant that one of them was claimed with."""
        of, divided = self._member.of, self._member.divided
        for partition in partitions:
            arguments = (of, divided, division, self._grant, list(began[partition]))
            position, above = self._call(partition, "claim", *arguments, patience_s=_OPEN_S)
            if above:
                return int(above)
            self._positions[partition] = position
        return 0

    def _call(self, partition: int, method: str, *arguments: Any, patience_s: float) -> Any:
        name, number = self._member.name, self._member.number
        return self._calls.call(partition, method, name, number, *arguments, patience_s=patience_s)

    def _renew(self) -> None:
        """On a thread: have the coordinator know that this process lives, until it is closed or taken."""
        while not self._closed.wait(RENEW_S):
            try:
                self._call(self._coordinator, "renew", self._grant, patience_s=0.0)
            except SubscriptionInUse as error:
                self._taken_by = error
                return
            except Exception as error:  # its coordinator is away: none opens it elsewhere then
                log.debug("%s is not renewed now: %s", self._member.name, error)


def _holder() -> list[str]:
    """For `join`: a name for people, and the process."""
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return [f"process {os.getpid()} on {socket.gethostname()}, since {since}", process_here()]


def check_member(name: str, member: int, of: int, *, own: bool = False) -> None:
    """Raises `InvalidId` or `InvalidMessage` for a name or member that cannot be. `own`: it is Rayfold's own."""
    if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
        what = "is not a name of up to 64 ASCII letters, digits, '.', '-' and '_' that begins with a letter or digit"
        raise InvalidId("subscription", shown_as_text(name), what)
    if is_reserved(name) and not own:
        raise InvalidId("subscription", name, f"begins with {RESERVED_PREFIX!r}, which is for Rayfold itself")
    for number in (member, of):
        if isinstance(number, bool) or not isinstance(number, int):
            raise InvalidMessage("subscription", f"member={member!r}, of={of!r} must be numbers", "give member=0, of=3")
    if not 1 <= of <= MEMBERS_MAX:
        raise InvalidMessage("subscription", f"it cannot have {of} members", f"choose 1 to {MEMBERS_MAX:,}")
    if not 0 <= member < of:
        raise InvalidMessage("subscription", f"it has no member {member} of {of}", f"choose 0 to {of - 1}")
