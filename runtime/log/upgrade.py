"""Upgrade: a log of format 1 or 2 becomes one of format 3, in the transaction of the activation that takes it over.

Beside step [5]. Records, commands and snapshots stay as they are: a reader of format 3 knows the older layouts, and
both may stand in one log. What is new is put into `meta`: what the log holds, which one scan of its events finds (about
two seconds for a million events), and its secret. Then the format number, so that older readers refuse the log by it.

Rule kept here: never half. One transaction, that of the activation, or nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from secrets import token_bytes
from typing import TYPE_CHECKING

from .format import SECRET_BYTES
from .holdings import Kinds, put_holdings
from .identity import put_format, put_secret

if TYPE_CHECKING:
    import lmdb

__all__ = ["upgrade"]


def upgrade(
    transaction: lmdb.Transaction[bytes], meta: lmdb._Database, indexed: Sequence[int], kinds: Kinds, secret: bytes
) -> None:
    """Make the log one of the present format.

    `indexed`, `kinds` and `secret` are those of the log now (`reader.py`); without a secret it is given one.
    """
    put_holdings(transaction, meta, kinds)
    if not secret:
        put_secret(transaction, meta, token_bytes(SECRET_BYTES))
    put_format(transaction, meta, indexed)
