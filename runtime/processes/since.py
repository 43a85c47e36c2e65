"""Since: from where on a process that is new to a store takes part.

Beside step [5]. What is given with `since=` becomes a position in each log, once, when the courier of that log is
started with the process for the first time. It is stored there (`places.py`) and never asked for again.

Rule kept here: there is no default. Whether a new process is to react to all that has ever happened is a question that
only its author can answer, unless nothing has happened yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from ..encoding.catalogue import check_listed
from ..errors import CodeMismatch, DefinitionError, InvalidMessage, Misfit
from ..log.contract import Reader
from ..log.format import decode_record
from ..printable import shown
from ..receipt import Receipt
from .places import SENDS_OF_AGGREGATES, Places

__all__ = ["Since", "add_processes", "since_of_all"]

Since = Literal["now", "beginning"] | Receipt
"""From now on; from the first event on; or from behind what a receipt is of."""

_REMEDY: Final = 'give since="now", since="beginning" or a receipt; or a mapping from each class to one of these'


Classes = Sequence[type[Any]] | Mapping[type[Any], Since]


class OtherLog(Protocol):
    """A reader of the log of another partition."""

    def read(self, after: int, limit: int, bytes_max: int = 1 << 62) -> list[bytes]:
        """See `Reader`."""
        ...

    def close(self) -> None:
        """See `Reader`."""
        ...


def since_of_all(processes: Classes, effects: Classes, since: Since | None) -> tuple[list[type[Any]], dict[str, Since]]:
    """The classes of processes and of effects, and from where on each takes part, as far as that is given. Raises
    `InvalidMessage`, and `DefinitionError` for a class that is listed as one of the other kind."""
    mapped = isinstance(processes, Mapping)
    listed, found = _since_by_name("processes", processes, None if mapped and effects else since)
    others, more = _since_by_name("effects", effects, None if isinstance(effects, Mapping) and not mapped else since)
    for one in listed:
        if getattr(one, "is_effects", False):
            raise DefinitionError("processes=", f"{one.__name__} is no process", "list it in effects=")
    for one in others:
        if not getattr(one, "is_effects", False):
            raise DefinitionError("effects=", f"{shown(one)} is no Effects class", "list the classes themselves")
    return [*listed, *others], found | more


def _since_by_name(argument: str, classes: Classes, since: Since | None) -> tuple[list[type[Any]], dict[str, Since]]:
    given: dict[type[Any], Since | None]
    if isinstance(classes, Mapping):
        given = {**classes}
        if since is not None:
            raise InvalidMessage("since", "it is given twice", "give it with each process, or once for all")
    else:
        given = dict.fromkeys(check_listed(argument, classes), since)
    found: dict[str, Since] = {}
    for cls, one in given.items():
        if one is None:
            continue
        if not (one in ("now", "beginning") if isinstance(one, str) else isinstance(one, Receipt)):
            raise InvalidMessage("since", f"is {shown(one)}", _REMEDY)
        found[getattr(cls, "aggregate_type", "")] = one
    return list(given), found


def add_processes(
    places: Places,
    classes: Mapping[str, type[Any]],
    since: Mapping[str, Since],
    partition: int,
    log: Reader,
    store_id: str,
    open_other: Callable[[int], OtherLog],
) -> bool:
    """Add the processes and effects that a log does not know yet to its places. Whether there were any.

    Raises `CodeMismatch` for one of which it is not given since when, `InvalidMessage` for a receipt of another store.
    """
    unknown = [name for name in (*classes, SENDS_OF_AGGREGATES) if name not in places.since]
    head = log.head()
    missing = [name for name in unknown if head and name not in since and name != SENDS_OF_AGGREGATES]
    if missing:
        raise CodeMismatch(f"partition {partition}", [_misfit(name, classes[name]) for name in missing])
    for name in unknown:
        one = since.get(name, "now")
        if isinstance(one, Receipt):
            places.since[name] = _behind(one, partition, log, store_id, open_other)
        else:
            places.since[name] = head if one == "now" else 0
    return bool(unknown)


def _misfit(name: str, cls: type[Any]) -> Misfit:
    kind, are, take = ("effects", "are", "they take") if cls.is_effects else ("process", "is", "it takes")
    what = f"the {kind} {are} new to this store, which has events, and it is not given from where on {take} part"
    return Misfit(f"{kind} {name}", what, _REMEDY)


def _behind(receipt: Receipt, partition: int, log: Reader, store_id: str, open_other: Callable[[int], OtherLog]) -> int:
    """The position behind which events come after what a receipt is of: in another log, by the time."""
    if receipt.store_id and store_id and receipt.store_id != store_id:
        what = f"the receipt is of the store {receipt.store_id}, and this is the store {store_id}"
        raise InvalidMessage("since", what, "give a receipt of this store")
    if receipt.partition == partition:
        return min(receipt.position, log.head())
    other = open_other(receipt.partition)
    try:
        records = other.read(receipt.position - 1, 1)
    finally:
        other.close()
    if not records:
        what = f"partition {receipt.partition} has no position {receipt.position}"
        raise InvalidMessage("since", what, "give a receipt of this store")
    recorded_at_us = decode_record(records[0]).recorded_at_us
    first, last = 0, log.head()
    while first < last:
        middle = (first + last) // 2
        [record] = log.read(middle, 1)
        if decode_record(record).recorded_at_us <= recorded_at_us:
            first = middle + 1
        else:
            last = middle
    return first
