"""LogHeads: where the logs ended when a read model was opened, and which of them could not be read then.

Beside step [7]. Where a store is spread over nodes, a log may be out of reach because its home is gone. A read model
opens with the others then, and reads the head of that one when its first event arrives.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import Unavailable
from ..log.contract import Reader

__all__ = ["LogHeads"]


class LogHeads:
    """The heads of the logs, each when it was first read."""

    def __init__(self, readers: Mapping[int, Reader]) -> None:
        self.heads: dict[int, int] = {}
        """By partition; 0 for one that is out of reach. Events up to there are replayed, as far as is known."""
        self.unseen: set[int] = set()
        """Those that are out of reach."""
        self._readers = readers

    def look(self) -> None:
        """At all of them."""
        for partition in self._readers:
            self.look_at(partition)

    def look_at(self, partition: int) -> bool:
        """At one. False if it is out of reach."""
        try:
            self.heads[partition] = self._readers[partition].head()
        except Unavailable:
            self.heads[partition] = 0
            self.unseen.add(partition)
            return False
        self.unseen.discard(partition)
        return True
