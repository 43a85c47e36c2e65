"""Home statement: what may happen to a copy of a partition's log, and on whose statement.

Beside the write path. After a move, an interrupted one or one that came to its end, several nodes have a copy of the
same log. One of them is the log; it is at the partition's home. Each other one is removed only on the *statement* of
that home, which is made from its disk and holds for all time: "the partition is at home here by my own map, my log is
not sealed, its epoch is this one, and at position n its chain link is that".

Why that is enough, however late it arrives, whatever else was under way: epochs only rise along the chain of homes
(`sealing.py`), and a copy that is completed for a later move takes over the epoch of that move's seal. So a home whose
epoch is later than a copy's was activated, or had its seal broken, after that copy was completed: the partition will
never go on from it. And a log with the copy's last event, after the same history, holds all that the copy holds.

Rule kept here: where the statement is missing, or does not prove that, the copy is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from ..log.sealing import WriteOwnership

__all__ = ["ARRIVING", "CopyFacts", "HomeStatement", "copy_name", "partition_in", "retired_name", "why_kept"]

ARRIVING: Final = ".arriving"
"""What the folder of a log ends with while it is being copied here."""

RETIRED: Final = ".retired-"
"""... and once another log has its place; the epoch of the log follows."""

REMOVING: Final = ".removing"
"""... and once it was decided that it is removed."""

_NAME: Final = re.compile(r"partition-(?P<number>\d{5})(\.arriving|\.left|\.retired-\d+(\.\d+)?|\.removing)?", re.ASCII)
"""`.left` is what earlier releases called what they were removing."""


class CopyFacts(NamedTuple):
    """One copy of a partition's log on one node, as stored in the copy."""

    name: str
    """The name of its folder in the share."""
    partition: int
    write_ownership: WriteOwnership
    head: int
    chain: bytes
    """The chain link of the event at its head."""


class HomeStatement(NamedTuple):
    """The statement of a partition's home, from its own map and its own log."""

    partition: int
    node_id: str
    since: int
    """The version of the map from which on the partition is at home there."""
    write_ownership: WriteOwnership
    head: int
    chains: Mapping[int, bytes]
    """The chain links at the positions that were asked for, as far as the log has them."""


def copy_name(partition: int, suffix: str = "") -> str:
    """The name of the folder of a partition's log, or with a suffix that of another copy."""
    return f"partition-{partition:05d}{suffix}"


def partition_in(name: str) -> int | None:
    """The partition whose copy a folder of this name holds; None if it is not a copy."""
    found = _NAME.fullmatch(name)
    return None if found is None else int(found["number"])


def retired_name(copy: CopyFacts, taken: set[str]) -> str:
    """What a copy is called when another one takes its place: a name that is not taken."""
    name = copy_name(copy.partition, f"{RETIRED}{copy.write_ownership.epoch}")
    free = (name if number == 0 else f"{name}.{number}" for number in range(len(taken) + 1))
    return next(one for one in free if one not in taken)


def why_kept(copy: CopyFacts, home: HomeStatement) -> str:
    """Why a copy must not be removed on this statement; empty if it may be."""
    if copy.partition != home.partition:
        return f"the statement is about partition {home.partition}"
    if home.write_ownership.successor:
        return "the log of its home is sealed: it is about to move"
    if (present := home.write_ownership.epoch) <= (earlier := copy.write_ownership.epoch):
        return f"the log of its home has epoch {present}, which is not later than {earlier}"
    if home.chains.get(copy.head) != copy.chain:
        return f"the log of its home does not hold its {copy.head:,} events: it ends at {home.head:,}, or differs"
    return ""
