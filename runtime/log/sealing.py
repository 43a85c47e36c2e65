"""Sealing: a log that is handed over to another node takes no event any more, whoever asks.

Beside step [5]. A partition moves in four steps (`actors/moving.py`): its log is copied while it is written; it is
*sealed*; what came last is copied; the copy is activated elsewhere, with a later epoch. The seal is one transaction: it
raises the epoch, which fences off whoever writes, and it is looked at by every later activation, which it refuses. So
nothing can come into the log between the last look at it and the first event of the copy, and no old process, however
late it wakes up, opens it again.

Rule kept here: a seal names for whom it is, and only whoever knows that name can break it, for a hand-over that did not
come about.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..errors import Sealed
from .format import CHAIN_START, META, META_EPOCH, META_SEAL, chain_of, encode_meta

if TYPE_CHECKING:
    import lmdb

    from .reader import LmdbReader
    from .writer import LmdbLog

__all__ = ["Seal", "break_seal", "continue_epochs", "seal"]


class Seal(NamedTuple):
    """What a sealed log ends with."""

    epoch: int
    """No event of this log or of an earlier epoch comes after it."""
    head: int
    """Position of its last event."""
    chain: bytes
    """Of that event: it stands for all events before it."""

    def is_end_of(self, log: LmdbReader) -> bool:
        """Whether this log, a copy, ends with the same event after the same history."""
        return log.head() == self.head and self.chain == _chain_at(log, self.head)


def seal(log: LmdbLog, heir: str) -> Seal:
    """Take no event any more, durably, for the sake of `heir`, which is to go on. Sealing again for it is fine.

    Raises `Sealed` if it is sealed for another, and what writing raises.
    """

    def put(transaction: lmdb.Transaction[bytes]) -> Seal:
        epoch, sealed_for = log.epoch_in(transaction), log.heir_in(transaction)
        if sealed_for not in ("", heir):
            raise Sealed(log.name, sealed_for)
        if not sealed_for:
            epoch += 1
            _put_epoch(log, transaction, epoch)
            content = encode_meta(META_SEAL, heir.encode())
            transaction.put(META_SEAL, content, db=log.environment.database(META))
        return Seal(epoch, log.last_position(transaction), b"")

    sealed = log.environment.write(put)
    return sealed._replace(chain=_chain_at(log, sealed.head))


def break_seal(log: LmdbLog, heir: str) -> None:
    """Let the log be activated again: it was not handed over to `heir` after all. Without a seal nothing happens.

    Only for whoever knows that the copy was never activated. Raises `Sealed` if it is sealed for another.
    """

    def put(transaction: lmdb.Transaction[bytes]) -> None:
        sealed_for = log.heir_in(transaction)
        if sealed_for not in ("", heir):
            raise Sealed(log.name, sealed_for)
        transaction.delete(META_SEAL, db=log.environment.database(META))

    log.environment.write(put)


def continue_epochs(log: LmdbLog, epoch: int) -> None:
    """Have a copy count its epochs on from those of the log that it was made of. Never back."""

    def put(transaction: lmdb.Transaction[bytes]) -> None:
        if epoch > log.epoch_in(transaction):
            _put_epoch(log, transaction, epoch)

    log.environment.write(put)


def _chain_at(log: LmdbReader, position: int) -> bytes:
    return chain_of(log.read(position - 1, 1)[0]) if position else CHAIN_START


def _put_epoch(log: LmdbLog, transaction: lmdb.Transaction[bytes], epoch: int) -> None:
    content = encode_meta(META_EPOCH, epoch.to_bytes(8, "big"))
    transaction.put(META_EPOCH, content, db=log.environment.database(META))
