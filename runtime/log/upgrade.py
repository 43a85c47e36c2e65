"""Upgrade: a log of format 1 or 2 becomes one of format 3, in the transaction of the activation that takes it over.

Beside step [5]. Records, commands and snapshots stay as they are: a reader of format 3 knows the older layouts, and
both may stand in one log. What is new is put into `meta`: what the log holds, which one scan of its events finds (about
two seconds for a million events), and its secret. Then the format number, so that older readers refuse the log by it.

Rule kept here: never half. One transaction, that of the activation, or nothing.
"""

from __future__ import annotations

from secrets import token_bytes
from typing import TYPE_CHECKING

from .format import META, SECRET_BYTES
from .holdings import put_holdings
from .identity import put_format, put_secret

if TYPE_CHECKING:
    import lmdb

    from .writer import LmdbLog

__all__ = ["upgrade"]


def upgrade(transaction: lmdb.Transaction[bytes], log: LmdbLog) -> None:
    """Make the log one of the present format. Raises `Damaged`; a damaged event is passed over."""
    indexed, kinds = log.indexed_in(transaction), log.kinds_in(transaction)
    put_holdings(transaction, log.environment.database(META), kinds)
    if not log.secret_in(transaction):
        put_secret(transaction, log.environment, token_bytes(SECRET_BYTES))
    put_format(transaction, log.environment, indexed)
