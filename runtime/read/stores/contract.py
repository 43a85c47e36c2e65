"""What a read store is: the five methods by which a read model is kept, and the declaration that makes one.

Step [7] of the read path, inside `runtime/read/read_model.py`. Before it: a page of records. After it: the next page.

Three stores keep the contract: `memory.py`, `lmdb.py` and `duckdb.py`; `docs/read-models.md` shows a fourth over
sqlite3, and one test suite runs on all of them.

Rules kept here:
- the read model and its checkpoint are committed in ONE transaction, so that every event takes effect exactly once,
  whatever is killed whenever
- a checkpoint is opaque bytes to a store: what they mean, and whether they may be used, is the read model's business
- all calls come one at a time, but from any thread; `begin` to `commit` or `roll_back` is one thread

A store never learns which code wrote what it holds: each version of the code has a directory of its own (named by the
fingerprint), so a store that was written by other code is never even opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

__all__ = ["ReadStore", "StoreKind"]


class ReadStore(Protocol):
    """An open store of one read model."""

    def open(self, model: Any, directory: Path | None) -> bytes | None:
        """Make the store ready in `directory`, which exists, and hand `model` (the projection) what its handlers reach
        the store by, as attributes. Without a directory the store is a temporary one.

        Returns the checkpoint that was committed last, or None for a store that is empty. Raises `StoreError`:
        `Damaged` for what is to be made from the log again, `StorageFailed` for what could be opened another time.
        """
        ...

    def begin(self, *, reading: bool = False) -> None:
        """Begin a transaction. With `reading` for queries: whatever they change must not stay."""
        ...

    def commit(self, checkpoint: bytes) -> None:
        """Commit what was changed since `begin`, together with the checkpoint; both or neither.

        Raises `StorageFailed` when the disk refused; anything else it raises counts against the events of this page.
        """
        ...

    def roll_back(self) -> bytes | None:
        """Forget what was changed since `begin`, and end the transaction. Returns the checkpoint that the store is at
        now, as `open` does: the one committed last or, for a store in memory, an earlier one."""
        ...

    def close(self) -> None:
        """Let go of every resource, uncommitted changes too. Closing twice is fine."""
        ...


class StoreKind(Protocol):
    """What `store=` in a projection's class line takes: a plain value that can be pickled with the class.

    Its `repr` goes into the fingerprint: a projection whose declared store changes is rebuilt.
    """

    def make(self) -> ReadStore:
        """A store that is not open yet. Imports what it needs here, not at the top of its module."""
        ...
