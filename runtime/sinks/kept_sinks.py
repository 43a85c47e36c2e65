"""Kept sinks: what a store knows of its sinks, whether any process publishes them now or not; and their switches.

Beside the read path, for `Runtime.switch_sink` and `rayfold sinks`. Each partition is asked
(`feed/group_coordinator.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

from ..errors import InvalidMessage, UnknownName
from ..feed.committed_positions import PartitionCalls
from ..feed.group_coordinator import coordinator_of
from ..feed.named_subscriptions import subscriptions_of
from ..printable import shown
from .sink import PREFIX

__all__ = ["KeptSink", "kept_sinks", "skip_event", "switch_sink"]

_ASK_S: Final = 5.0
"""How long a partition may take that is away or busy."""


class KeptSink(NamedTuple):
    """How far a sink is.

    Example:
        for one in bank.sinks():
            print(one.name, "on" if one.on else "off", one.behind)
    """

    name: str
    on: bool
    """Whether it is switched on."""
    positions: Mapping[int, int]
    """Partition -> position up to which everything was confirmed."""
    behind: int
    """Events of the log after these positions, of any type."""
    by: str = ""
    """Who has switched it last; empty if it was not."""
    reason: str = ""
    """Why."""


def kept_sinks(calls: PartitionCalls, partitions: int) -> list[KeptSink]:
    """All that have begun. Raises `Unavailable` for a partition that does not answer, `Damaged`."""
    found = []
    for one in subscriptions_of(calls, None, partitions, own=True):
        if one.name.startswith(PREFIX):
            where = coordinator_of(one.name, partitions)
            on, by, reason = calls.call(where, "switched", one.name, patience_s=_ASK_S)
            found.append(KeptSink(one.name.removeprefix(PREFIX), on, one.positions, one.behind, by, reason))
    return found


def switch_sink(calls: PartitionCalls, partitions: int, name: str, on: bool, by: str, reason: str) -> None:
    """Have a sink publish, or not; who and why are stored with it. What publishes it looks every two seconds. Raises
    `UnknownName` for one that has never begun, `InvalidMessage` without who and why, `Unavailable`."""
    _check_signed("switch_sink", by, reason)
    known = [one.name for one in kept_sinks(calls, partitions)]
    if name not in known:
        raise UnknownName("sink", name, known)
    full = f"{PREFIX}{name}"
    calls.call(coordinator_of(full, partitions), "switch", full, bool(on), by, reason, patience_s=_ASK_S)


def skip_event(
    calls: PartitionCalls, partitions: int, name: str, unconfirmed: Collection[str], event: str, by: str, reason: str
) -> None:
    """Have a sink leave out an event, permanently; who and why are stored with it. `unconfirmed`: those that it tries
    now. Raises `InvalidMessage` for any other event and without who and why, `Unavailable`."""
    _check_signed("skip_event", by, reason)
    if event not in unconfirmed:
        what = f"sink {name} does not wait for {shown(event)} to be confirmed"
        raise InvalidMessage("skip_event", what, f"it waits for: {', '.join(sorted(unconfirmed)) or 'none'}")
    full = f"{PREFIX}{name}"
    calls.call(coordinator_of(full, partitions), "skip", full, event, by, reason, patience_s=_ASK_S)


def _check_signed(what: str, by: str, reason: str) -> None:
    for field, text in (("by", by), ("reason", reason)):
        if not isinstance(text, str) or not text.strip():
            raise InvalidMessage(what, f"{field}={shown(text)}", "give a name and a reason, which are stored")
