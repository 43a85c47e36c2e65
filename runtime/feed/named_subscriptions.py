"""Named subscriptions: which there are, how far each is, who has it open; and how one is forgotten.

Beside the read path, for `Runtime.subscriptions` and `rayfold subscriptions`. Each partition is asked
(`group_coordinator.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

from ..stream import is_reserved
from .committed_positions import PartitionCalls, check_member
from .group_coordinator import coordinator_of
from .member_locks import MemberLocks

__all__ = ["SubscriptionStatus", "forget_subscription", "subscriptions_of"]

_ASK_S: Final = 5.0
"""How long a partition may take that is away or busy."""


class SubscriptionStatus(NamedTuple):
    """How far a named subscription is, and who has it open.

    Example:
        for one in bank.subscriptions():
            print(one.name, one.behind, one.holders)
    """

    name: str
    members: int
    """How many members share it."""
    positions: Mapping[int, int]
    """Partition -> position up to which everything is acknowledged."""
    behind: int
    """How many events are not, of any type: one that is filtered out counts until the subscription has passed it."""
    holders: Mapping[int, str]
    """Member -> the process that has it open. A member that no process has is not here."""
    problem: str = ""
    """Why it cannot be opened; empty if it can."""


def subscriptions_of(
    calls: PartitionCalls, locks: MemberLocks | None, partitions: int, *, own: bool = False
) -> list[SubscriptionStatus]:
    """All of a store, in the order of their names: those of programs, or Rayfold's `own`, which are those of sinks.
    Raises `Unavailable` for a partition that does not answer, `Damaged`."""
    answers = [calls.call(partition, "listed", patience_s=_ASK_S) for partition in range(partitions)]
    heads = [head for head, _ in answers]
    kept: dict[str, dict[int, list[Any]]] = {}
    for partition, (_, names) in enumerate(answers):
        for name, *facts in names:
            if is_reserved(name) is own:
                kept.setdefault(name, {})[partition] = facts
    found = []
    for name, at in sorted(kept.items()):
        _, _, began, held, _ = at.get(coordinator_of(name, partitions), [1, None, [], [], ""])
        known = {partition: place for partition, (_, place, *_) in at.items() if place is not None}
        problem = next((one[4] for _, one in sorted(at.items()) if one[4]), "")
        positions = {one: known.get(one, began[one] if began else 0) for one in range(partitions)}
        of = at[coordinator_of(name, partitions)][0] if coordinator_of(name, partitions) in at else 1
        holders = locks.holders(name, of) if locks is not None else dict(held)
        behind = sum(max(head - positions[one], 0) for one, head in enumerate(heads))
        found.append(SubscriptionStatus(name, of, positions, behind, holders, problem))
    return found


def forget_subscription(calls: PartitionCalls, locks: MemberLocks | None, name: str, partitions: int) -> bool:
    """Forget how far a name is: the next subscription of that name is a new one. False if there is none.

    Raises `SubscriptionInUse` while a member is open, `InvalidId`, and `Unavailable`: then it may be half forgotten,
    and is to be forgotten again.
    """
    check_member(name, 0, 1)
    coordinator = coordinator_of(name, partitions)
    with ExitStack() as taken:
        if locks is not None:
            taken.enter_context(locks.opening(name))
            group = calls.call(coordinator, "group", name, patience_s=_ASK_S)
            for member in range(group[0] if group else 1):
                taken.enter_context(locks.take(name, member, group[0] if group else 1))
        order = [coordinator, *(partition for partition in range(partitions) if partition != coordinator)]
        forgotten = [calls.call(partition, "forget", name, patience_s=_ASK_S) for partition in order]
    return any(forgotten)
