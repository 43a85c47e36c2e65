"""Sealing: a log that is handed over to another node takes no event any more, whatever process tries to append.

Beside step [5]. A partition moves in steps (`actors/control/moves.py`): its log is copied while it is written; it is
*sealed*; what came last is copied; it is *handed over*; the copy is activated elsewhere, under a later epoch. Each of
these is one transaction of the log that is left, so that its order against all others is never in doubt:

- `seal` raises the epoch, which fences the present writer off, and is refused by every later activation
- `break_seal` lets the log be activated again: the move was called off
- `hand_over` makes the seal final, and records since which version of the map the partition is at home elsewhere

A seal is either broken or made final, never both, for any caller at any time: both name the epoch of the seal, and each
later seal has a later one. So the log itself determines which node has the partition; the maps
(`store/partition_map.py`) follow it.

Rule kept here: epochs only rise, along the whole chain of homes. A copy takes over the epoch of the seal that it was
completed for, so of two copies the one of the later epoch is the later one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ..errors import Sealed
from .contract import Reader
from .format import CHAIN_START, META_EPOCH, META_SEAL, chain_of, encode_meta

if TYPE_CHECKING:
    import lmdb

__all__ = [
    "CALLED_OFF",
    "Seal",
    "Sealable",
    "WriteOwnership",
    "activated",
    "break_seal",
    "chain_at",
    "continue_epochs",
    "hand_over",
    "seal",
]

CALLED_OFF: Final = "it is not handed over: this move was called off, and the partition stays on this node"
"""What a late call is answered that would make a seal final which was broken."""


class WriteOwnership(NamedTuple):
    """The right to write a log, as stored in the log itself."""

    epoch: int = 0
    """The epoch of the latest activation, or of the seal."""
    successor: str = ""
    """The node for which the log is sealed; empty if it is not."""
    since: int = 0
    """The version of the map from which on the successor is the partition's home; 0 as long as the seal can be
    broken."""


class Seal(NamedTuple):
    """What a sealed log ends with."""

    epoch: int
    """No event of this log or of an earlier epoch comes after it."""
    head: int
    """Position of its last event."""
    chain: bytes
    """The link of that event: it covers all events before it."""


class Sealable(Protocol):
    """What sealing needs of a log: of the LMDB log, and of the one in the simulation."""

    @property
    def name(self) -> str:
        """What errors call the log."""
        ...

    def change_write_ownership(self, change: Callable[[WriteOwnership], WriteOwnership]) -> WriteOwnership:
        """Replace the log's write ownership by what `change` makes of it, in one durable transaction; nothing is stored
        if it raises. Returns the new one."""
        ...

    def end(self) -> tuple[int, bytes]:
        """Position and chain link of the last event."""
        ...


def _refused(name: str, present: WriteOwnership) -> Sealed:
    """The error for what this write ownership does not allow."""
    if not present.successor:
        return Sealed(name, "", CALLED_OFF)
    if present.since:
        return Sealed(name, present.successor)
    return Sealed(name, present.successor, f"sealed for a move to {present.successor}; nothing is appended to it here")


def activated(present: WriteOwnership, name: str) -> WriteOwnership:
    """The write ownership of the next activation. Raises `Sealed`."""
    if present.successor:
        raise _refused(name, present)
    return present._replace(epoch=present.epoch + 1)


def seal(log: Sealable, successor: str) -> Seal:
    """Take no event any more, durably, for the sake of `successor`, which will continue. Sealing again for it is
    allowed.

    Raises `Sealed` if it is sealed for another or was handed over, and what writing raises.
    """

    def change(present: WriteOwnership) -> WriteOwnership:
        if present.successor not in ("", successor) or present.since:
            raise _refused(log.name, present)
        return present if present.successor else WriteOwnership(present.epoch + 1, successor)

    sealed = log.change_write_ownership(change)
    assert sealed.successor == successor
    assert not sealed.since, "a log that was handed over is not sealed again"
    return Seal(sealed.epoch, *log.end())


def break_seal(log: Sealable, successor: str, epoch: int) -> None:
    """Let the log be activated again: the move for which it was sealed with this epoch was called off. A log that is
    not sealed stays as it is.

    Raises `Sealed` if it was handed over, or is sealed for another move.
    """

    def change(present: WriteOwnership) -> WriteOwnership:
        if present.successor and (present.since or (present.successor, present.epoch) != (successor, epoch)):
            raise _refused(log.name, present)
        return present._replace(successor="")

    log.change_write_ownership(change)


def hand_over(log: Sealable, successor: str, epoch: int, since: int) -> WriteOwnership:
    """Make the seal of this epoch final: the partition is at home on `successor` from version `since` of the map on.
    Returns the write ownership; of a log that was handed over before, the one of that time.

    Raises `Sealed` if the seal was broken meanwhile, or is another one.
    """

    def change(present: WriteOwnership) -> WriteOwnership:
        if (present.successor, present.epoch) != (successor, epoch):
            raise _refused(log.name, present)
        return present if present.since else present._replace(since=since)

    return log.change_write_ownership(change)


def continue_epochs(log: Sealable, epoch: int) -> None:
    """Have a copy count its epochs on from those of the log that it was made of. Never back."""
    log.change_write_ownership(lambda present: present._replace(epoch=max(present.epoch, epoch)))


# --- in LMDB ------------------------------------------------------------------------------------------------------


def put_write_ownership(
    transaction: lmdb.Transaction[bytes], meta: lmdb._Database, write_ownership: WriteOwnership
) -> None:
    """Store who may write."""
    transaction.put(META_EPOCH, encode_meta(META_EPOCH, write_ownership.epoch.to_bytes(8, "big")), db=meta)
    if write_ownership.successor:
        transaction.put(META_SEAL, encode_meta(META_SEAL, encode_seal(write_ownership)), db=meta)
    else:
        transaction.delete(META_SEAL, db=meta)


def encode_seal(write_ownership: WriteOwnership) -> bytes:
    """The successor, and, once it is final, a zero byte and the version. An earlier release takes all of it for the
    name of the successor, and refuses the log just the same."""
    return write_ownership.successor.encode() + (b"\0%d" % write_ownership.since if write_ownership.since else b"")


def decode_seal(epoch: int, stored: bytes) -> WriteOwnership:
    """What `encode_seal` made."""
    successor, _, since = stored.partition(b"\0")
    return WriteOwnership(epoch, successor.decode(errors="replace"), int(since or 0))


def chain_at(log: Reader, position: int) -> bytes:
    """The chain link of the event at a position: it stands for all events up to it."""
    return chain_of(log.read(position - 1, 1)[0]) if position else CHAIN_START
