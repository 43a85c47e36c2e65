"""GroupCoordinator: what one partition does for subscriptions of a name: keeps how far they are, and who has them open.

Beside the write path, in the process that writes the partition's log. Before it: `committed_positions.py` asks,
wherever the subscriber is. After it: rows in the log (`log/subscription_rows.py`).

Each partition keeps the *place* of every member that reads it: how far it has acknowledged there. One of them, the
*coordinator* of the name, also keeps how many members there are, where the first of them began, and who has which
open. Rows, each packed as a list::

    NAME/group         at the coordinator: [division, of, divided]; another number of members is another division
    NAME/begin         at the coordinator: [[position, link], ...], where the name began in each partition
    NAME/hold/00002    at the coordinator: [grant, holder, process]; the holder is empty once it has closed
    NAME/from          [division, of, divided, position, grant]: where the members of this division began here
    NAME/place/00002   [position, grant]: how far that member has acknowledged here
    NAME/on            of a sink, at the coordinator: [the id of the store that it is switched on in, by whom, why]

Rules kept here:
- a place only rises, never beyond what the log holds, and is changed by the grant alone that has claimed it last
- each opening gets a *grant*, a number that only rises: what an earlier holder sends late is refused
- a member is open once: until its holder closes it, its process is seen to have ended, or its lease has run out, which
  it renews every few seconds. After a restart or a move of the coordinator every lease begins anew
- another number of members begins, in each partition, at the lowest place that any of the old ones has there, and only
  when none of those is open
- a place that an earlier release has kept in files is taken over once, and never again (`old_places.py`)
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgpack

from ..errors import Damaged, InvalidMessage, NotInHistory, RayfoldError, StoreMismatch, SubscriptionInUse, Unavailable
from ..log.contract import Reader
from ..log.format import chain_of
from ..log.subscription_rows import Change, MemoryRows, SubscriptionRows
from ..printable import printable_log
from ..store.store_lock import pids_here
from ..stream import RESERVED_PREFIX
from .group_share import Divided, readers_of
from .old_places import is_old, old_names, old_place, with_remedy

__all__ = [
    "LEASE_S",
    "RENEW_S",
    "RowLog",
    "GroupCoordinator",
    "coordinator_of",
    "link_at",
    "rows_up_to",
    "process_here",
    "restored_rows",
]

log = printable_log(__name__)

LEASE_S: Final = 10.0
"""How long a member stays taken whose holder renews no more: four times as long as between two renewals."""

RENEW_S: Final = 2.5
"""Between two renewals of a lease: one call each."""

_LINK_DIGITS: Final = 16
"""Digits kept of the link at a position: enough to detect a log that was put back by mistake."""

_TEXT_MAX: Final = 500
"""Characters that are kept of a name or a reason."""

RESTORED: Final = f"{RESERVED_PREFIX}restored/store"
"""The row that a log of a restored store has: which store it was."""

_TAKEN: Final = "another process, which has opened it since"

_REFUSED: Final = -1
"""The division of places that could not be taken over from files; the row has the reason."""

_POSITION_AT: Final = {"place": 0, "from": 3}
"""Where a row of this kind has its position."""


class RowLog(Reader, Protocol):
    """A log with the rows of subscriptions."""

    def subscription_rows(self, prefix: str = "") -> dict[str, bytes]:
        """The rows whose keys begin so."""
        ...


class _Held(NamedTuple):
    """Who has a member open, as this process knows it."""

    grant: int
    holder: str
    process: str
    seen_s: float
    """When it was granted, or renewed last."""


class GroupCoordinator:
    """Of one partition. `renew` may be called from any thread, and everything else from one at a time."""

    def __init__(
        self,
        source: RowLog,
        change: Callable[[Change[Any]], Any],
        partition: int,
        partitions: int,
        store_id: str,
        files: Path | None,
    ) -> None:
        """`change`: changes the rows of `source` in one transaction. `files`: the folder in which an earlier release
        kept places, if there is one."""
        self._log, self._change = source, change
        self._partition, self._partitions, self._store_id = partition, partitions, store_id
        self._files = files
        self._lock = threading.Lock()
        self._holds: dict[tuple[str, int], _Held] = {}
        try:
            for key, content in source.subscription_rows().items():
                name, kind, *number = key.split("/")
                if kind == "hold":
                    grant, holder, process = _unpacked(content, key)
                    self._holds[name, int(number[0])] = _Held(grant, holder, process, time.monotonic())
        except Damaged as error:  # commands are decided all the same; who opens that name gets the error
            log.error("partition %d does not know who has subscriptions open: %s", partition, error)

    METHODS: Final = frozenset(
        {"group", "join", "claim", "save", "leave", "forget", "listed", "switched", "switch", "skip", "skipped"}
    )
    """What may be asked by other processes, besides `renew`."""

    def take_over_files(self) -> None:
        """Take over what an earlier release kept in files, of all names, before the log may move away from them. What
        cannot be is refused wherever the name is opened; but files of another store are left out."""
        if self._files is None:
            return
        for name in old_names(self._files):
            if self._log.subscription_rows(f"{name}/from"):
                continue
            places = None
            try:
                places = old_place(self._files, name, self._partition, self._store_id)
                row: list[Any] = [0, 1, "by stream", self._lowest_of(name, places) or 0, 0]
            except RayfoldError as error:
                log.error("partition %d does not take over %s: %s", self._partition, name, error)
                if isinstance(error, StoreMismatch) and places is None:
                    continue
                row = [_REFUSED, 1, "by stream", 0, 0, str(error)]
            self._put(f"{name}/from", row)

    def _put(self, key: str, row: Sequence[Any]) -> None:
        self._change(lambda rows: rows.put(key, msgpack.packb(row)))

    # --- at the coordinator of a name ----------------------------------------------------------------------------

    def group(self, name: str) -> list[Any]:
        """[how many members, how they divide the events]; empty if the name is new."""
        found = self._log.subscription_rows(f"{name}/group").get(f"{name}/group")
        return [] if found is None else _unpacked(found, name)[1:3]

    def join(
        self,
        name: str,
        member: int,
        of: int,
        divided: Divided,
        begin: Sequence[Sequence[Any]],
        holder: Sequence[str],
        mine: Sequence[int],
        above: int,
    ) -> list[Any]:
        """Open a member: [its grant, the division, where the name began]. `begin`: where it begins if it is new,
        position and link in each partition. `holder`: a name for people and the process, of a member that is held by
        lease; nothing for one that is held otherwise. `mine`: the grants that the process of the holder has in use.
        `above`: the grant has to be greater.

        Raises `SubscriptionInUse`, and `Unavailable` for a new name without a beginning.
        """
        if holder:
            group = self.group(name)
            if group and group != [of, divided]:
                self._check_none_open(name, group[0], holder[1], mine)
            self._check_free(name, member, of, holder[1], mine)
        group_key, begin_key, hold_key = f"{name}/group", f"{name}/begin", f"{name}/hold/{member:05d}"

        def join(rows: SubscriptionRows) -> list[Any]:
            stored = rows.find(group_key)
            before = rows.find(hold_key)
            earlier = 0 if before is None else int(_unpacked(before, hold_key)[0])
            division = 0 if stored is None else int(_unpacked(stored, group_key)[0])
            grant = max(time.time_ns() // 1000, earlier + 1, above + 1, division + 1)
            if stored is None or _unpacked(stored, group_key)[1:] != [of, divided]:
                if stored is None and not begin:
                    raise Unavailable(f"subscription {name!r}", "it was just forgotten; open it again")
                if stored is None:
                    rows.put(begin_key, msgpack.packb([list(one) for one in begin]))
                for key in rows.beginning(f"{name}/hold/"):
                    rows.remove(key)
                division = grant
                rows.put(group_key, msgpack.packb([division, of, divided]))
            rows.put(hold_key, msgpack.packb([grant, *(holder or ["", ""])]))
            return [grant, division, _unpacked(rows.find(begin_key) or b"\x90", begin_key)]

        joined: list[Any] = self._change(join)
        with self._lock:
            for held in [one for one in self._holds if one[0] == name and one[1] >= of]:
                del self._holds[held]
            who, process = holder or ("", "")
            self._holds[name, member] = _Held(joined[0], who, process, time.monotonic())
        return joined

    def renew(self, name: str, member: int, grant: int) -> None:
        """The holder of this grant has the member open. Raises `SubscriptionInUse` if another one has taken it, and
        without a holder if it was forgotten."""
        with self._lock:
            hold = self._holds.get((name, member))
            if hold is None or hold.grant > grant:
                is_known = any(one == name for one, _ in self._holds)
                raise SubscriptionInUse(name, str(member), _TAKEN if is_known else "")
            if hold.grant == grant:
                self._holds[name, member] = hold._replace(seen_s=time.monotonic())

    def leave(self, name: str, member: int, grant: int) -> None:
        """The holder of this grant has closed the member."""
        key = f"{name}/hold/{member:05d}"

        def leave(rows: SubscriptionRows) -> None:
            stored = rows.find(key)
            if stored is not None and _unpacked(stored, key)[0] == grant:
                rows.put(key, msgpack.packb([grant, "", ""]))

        self._change(leave)
        with self._lock:
            hold = self._holds.get((name, member))
            if hold is not None and hold.grant == grant:
                self._holds[name, member] = hold._replace(holder="", process="")

    def _check_free(self, name: str, member: int, of: int, process: str, mine: Sequence[int]) -> None:
        with self._lock:
            hold = self._holds.get((name, member))
        if hold is not None and _is_open(hold, process, mine):
            raise SubscriptionInUse(name, f"{member} of {of}", hold.holder)

    def _check_none_open(self, name: str, of: int, process: str = "", mine: Sequence[int] = ()) -> None:
        """Before the number of members changes, which was `of`."""
        with self._lock:
            for (held, member), hold in self._holds.items():
                if held == name and _is_open(hold, process, mine):
                    raise SubscriptionInUse(name, f"{member} of {of}", hold.holder)

    def switched(self, name: str) -> list[Any]:
        """[whether a sink is switched on in this very store, by whom, and why]. One that is new is, from now on; but
        not in a store that was restored, in which none is until it is switched on."""
        key = f"{name}/on"
        stored = self._log.subscription_rows(key).get(key)
        if stored is None:
            restored = bool(self._log.subscription_rows(RESTORED))
            if not restored:
                self.switch(name, True, "", "")
            return [not restored, "", ""]
        store_id, by, reason = _unpacked(stored, key)
        return [store_id == self._store_id, by, reason]

    def switch(self, name: str, on: bool, by: str, reason: str) -> None:
        """Have a sink publish, or not, from now on."""
        self._put(f"{name}/on", [self._store_id if on else "", by[:_TEXT_MAX], reason[:_TEXT_MAX]])

    def skip(self, name: str, event: str, by: str, reason: str) -> None:
        """Have a sink leave out an event which its target never takes; permanently."""
        self._put(_skip_key(name, event), [event, by[:_TEXT_MAX], reason[:_TEXT_MAX]])

    def skipped(self, name: str, event: str) -> bool:
        """Whether an operator has decided so."""
        key = _skip_key(name, event)
        return bool(self._log.subscription_rows(key))

    # --- at every partition --------------------------------------------------------------------------------------

    def claim(
        self, name: str, member: int, of: int, divided: Divided, division: int, grant: int, begin: Sequence[Any]
    ) -> list[int]:
        """The place of a member here, which only the holder of this grant may change from now on: [the position, 0]; or
        [0, a grant] if a greater one has claimed it. `begin`: position and link where the name began.

        Raises `StoreMismatch`, `NotInHistory`, `Damaged`.
        """
        key, mine = f"{name}/from", f"{name}/place/{member:05d}"
        known, old = self._log.subscription_rows(key).get(key), None
        if known is None or _unpacked(known, key)[0] == _REFUSED:
            old = self._old_place(name)
            if old is None and known is None:
                self._check_link(name, int(begin[0]), str(begin[1]))

        def claim(rows: SubscriptionRows) -> list[int]:
            stored = rows.find(key)
            if stored is None or old is not None:
                rows.put(key, msgpack.packb([division, of, divided, int(begin[0]) if old is None else old, grant]))
            else:
                before, old_of, old_divided, began, latest, *_ = _unpacked(stored, key)
                if before == _REFUSED:
                    raise Damaged(f"subscription {name}", _why_refused(stored, name))
                if before != division:
                    if latest > grant:
                        return [0, latest]
                    began = self._lowest(rows, name, old_of, old_divided, began)
                    for outdated in rows.beginning(f"{name}/place/"):
                        rows.remove(outdated)
                rows.put(key, msgpack.packb([division, of, divided, began, max(grant, latest)]))
            place = rows.find(mine)
            position, latest = (
                [int(_unpacked(rows.find(key) or b"", key)[3]), 0] if place is None else _unpacked(place, mine)
            )
            if latest > grant:
                return [0, latest]
            rows.put(mine, msgpack.packb([position, grant]))
            return [position, 0]

        position, greater = self._change(claim)
        if position > (head := self._log.head()):
            raise NotInHistory(f"partition {self._partition}", f"position {position}", head)
        return [position, greater]

    def save(self, name: str, member: int, grant: int, position: int) -> None:
        """This member has acknowledged up to this position here. Raises `SubscriptionInUse` for the grant of an earlier
        holder, and `InvalidMessage` for a position that the log lacks."""
        key = f"{name}/place/{member:05d}"
        if position > (head := self._log.head()):
            what = f"position {position:,} cannot be acknowledged: partition {self._partition} is at {head:,}"
            raise InvalidMessage("subscription", what)

        def save(rows: SubscriptionRows) -> None:
            stored = rows.find(key)
            present, latest = (0, 0) if stored is None else _unpacked(stored, key)
            if latest != grant:
                is_known = rows.find(f"{name}/from") is not None
                raise SubscriptionInUse(name, str(member), _TAKEN if is_known else "")
            if position > present:
                rows.put(key, msgpack.packb([position, grant]))

        self._change(save)

    def forget(self, name: str) -> bool:
        """Forget a name, with what an earlier release has kept of it here. Whether there was anything. Raises
        `SubscriptionInUse` at its coordinator, if a member is open."""
        self._check_none_open(name, *(self.group(name)[:1] or [1]))

        def forget(rows: SubscriptionRows) -> bool:
            for key in (found := rows.beginning(f"{name}/")):
                rows.remove(key)
            return bool(found)

        forgotten: bool = self._change(forget)
        forgotten = forgotten or (self._files is not None and is_old(self._files, name))
        with self._lock:
            for held in [one for one in self._holds if one[0] == name]:
                del self._holds[held]
        if self._files is not None:
            shutil.rmtree(self._files / name, ignore_errors=True)
        return forgotten

    def listed(self) -> list[Any]:
        """[the head, [name, members, lowest place here, where it began, who has which member open, why it cannot be
        opened], ...]; a place or a beginning that is kept elsewhere alone is None, or empty."""
        rows = MemoryRows(self._log.subscription_rows())
        with self._lock:
            holds = [(key, hold.holder) for key, hold in self._holds.items() if _is_open(hold, "", ())]
        found = []
        names = {key.split("/")[0] for key in rows.kept if key != RESTORED}
        for name in sorted(names.union(old_names(self._files) if self._files is not None else ())):
            here, group = rows.find(f"{name}/from"), rows.find(f"{name}/group")
            place, why, division = None, "", 0
            if here is not None:
                division, of, divided, began, *_ = _unpacked(here, name)
                place = self._lowest(rows, name, of, divided, began)
            if here is None or division == _REFUSED:  # as an opening does
                try:
                    old = self._old_place(name)
                    place = place if old is None else old
                    why = _why_refused(here, name) if old is None and here is not None else ""
                except RayfoldError as error:
                    why = str(error)
            members = 1 if group is None else _unpacked(group, name)[1]
            begin = _unpacked(rows.find(f"{name}/begin") or b"\x90", name)
            held = [[member, holder] for (of_name, member), holder in holds if of_name == name]
            found.append([name, members, place, [at for at, _ in begin], held, why])
        return [self._log.head(), found]

    def _lowest(self, rows: SubscriptionRows, name: str, of: int, divided: Divided, began: int) -> int:
        """The lowest place here of any of the members of the present division."""
        places = {key: int(_unpacked(content, key)[0]) for key, content in rows.beginning(f"{name}/place/").items()}
        readers = readers_of(self._partition, of, divided, self._partitions)
        return min(places.get(f"{name}/place/{member:05d}", began) for member in readers)

    def _old_place(self, name: str) -> int | None:
        """Where members of a name stand here that an earlier release has kept in files; None if there is none. Raises
        what `old_place` does, and what `_check_link` does."""
        if self._files is None:
            return None
        return self._lowest_of(name, old_place(self._files, name, self._partition, self._store_id))

    def _lowest_of(self, name: str, places: Sequence[tuple[int, str]] | None) -> int | None:
        for position, link in places or ():
            self._check_link(name, position, link)
        return None if places is None else min(position for position, _ in places)

    def _check_link(self, name: str, position: int, link: str) -> None:
        """That the history here is the one in which this position was noted. Raises `StoreMismatch`, `NotInHistory`."""
        if position > (head := self._log.head()):
            raise NotInHistory(f"partition {self._partition}", f"position {position}", head)
        if link and link_at(self._log, position) != link:
            what = f"event {position:,} of partition {self._partition} is not the one that was acknowledged"
            remedy = "verify the store; forget the subscription to begin anew with the log as it is now"
            raise StoreMismatch(f"subscription {name}", f"{what}: the log follows another history now", remedy)


def link_at(source: Reader, position: int) -> str:
    """Names the history of a log up to a position; empty for none. Raises what reading raises."""
    records = source.read(position - 1, 1) if position else []
    return chain_of(records[0]).hex()[:_LINK_DIGITS] if records else ""


def restored_rows(store_id: str) -> dict[str, bytes]:
    """What a log has of a store that was restored from a backup of this one, permanently."""
    return {RESTORED: msgpack.packb([store_id])}


def rows_up_to(rows: Mapping[str, bytes], partition: int, heads: Mapping[int, int]) -> dict[str, bytes]:
    """These rows of a partition for a store whose logs end at these positions: no place is beyond the end, and no
    member is open. What comes behind the end is new to every subscription."""
    found = {}
    for key, content in rows.items():
        kind, row = key.split("/")[1], _unpacked(content, key)
        if kind == "begin":
            row = [[min(at, heads[other]), link if at <= heads[other] else ""] for other, (at, link) in enumerate(row)]
        elif kind in _POSITION_AT:
            row[_POSITION_AT[kind]] = min(row[_POSITION_AT[kind]], heads[partition])
        if kind != "hold":
            found[key] = msgpack.packb(row)
    return found


def coordinator_of(name: str, partitions: int) -> int:
    """The partition that is the coordinator of a name: always the same, and spread over all."""
    return zlib.crc32(name.encode()) % partitions


def process_here() -> str:
    """Names this process for coordinators: its namespace of process ids, its id, and when it was started."""
    return f"{pids_here()}|{os.getpid()}|{_started(os.getpid())}"


def _skip_key(name: str, event: str) -> str:
    """An event's id may be longer than a key."""
    return f"{name}/skip/{hashlib.blake2b(event.encode(), digest_size=16).hexdigest()}"


def _is_open(hold: _Held, process: str, mine: Sequence[int]) -> bool:
    """Whether its holder still has it, as far as can be known. `process`: who asks, which has these grants in use."""
    if not hold.holder:
        return False
    if hold.process == process:
        return hold.grant in mine
    namespace, process_id, started = hold.process.rsplit("|", 2)
    if namespace == pids_here() and _started(int(process_id)) != started:
        return False  # its process has ended, on this machine
    return time.monotonic() - hold.seen_s <= LEASE_S


def _why_refused(stored: bytes, name: str) -> str:
    """Why the files of an earlier release were not taken over, of a row that has that."""
    return with_remedy(str(_unpacked(stored, name)[5]), name)


def _started(process_id: int) -> str:
    """When a process was started, in ticks since this machine was; empty if there is none."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{process_id}/stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    return ""


def _unpacked(content: bytes, key: str) -> list[Any]:
    try:
        found: list[Any] = msgpack.unpackb(content, strict_map_key=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise Damaged(f"subscription {key}", "its row is not what was written") from error
    return found
