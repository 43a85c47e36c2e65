"""LingeringPlan: what a program would start a lingering system with, and whether a start with the same has failed while
it waits.

Beside all steps. Around it: `LingeringSystem` (`lingering.py`), and the process that it starts
(`lingering_process.py`). Where several programs start together, one start after the other would fail for the same
reason, each for some seconds. So a start that fails leaves its error in the lock of the store, and those take it for
theirs that have begun to wait before, with the same plan. Who comes later tries again.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Final, Self

from ...runtime.errors import RayfoldError
from ...runtime.store.store_lock import failure_of_last_start
from ..relay.relayed_topology import RELAYED

__all__ = ["LingeringPlan"]

_CLOCK: Final = time.CLOCK_BOOTTIME
"""The same in all processes of a machine, and never set."""


class LingeringPlan:
    """Of one program that waits for one store."""

    def __init__(self, path: Path, packed: bytes, since_s: float) -> None:
        """`packed`: what the process that runs the system gets. `since_s`: when the program has begun to wait."""
        self.packed, self.since_s = packed, since_s
        self._path = path
        self._digest = hashlib.blake2b(packed, digest_size=16).hexdigest()

    @classmethod
    def now(cls, path: Path, packed: bytes) -> Self:
        """Of a program that begins to wait now."""
        return cls(path, packed, time.clock_gettime(_CLOCK))

    def failed_with(self, error: RayfoldError) -> str:
        """What to leave in the lock of the store."""
        return f"{time.clock_gettime(_CLOCK)} {self._digest} {RELAYED.pack(error).hex()}"

    def failure(self) -> RayfoldError | None:
        """What has ended a start with the same since then; None if nothing has."""
        at_s, _, rest = failure_of_last_start(self._path).partition(" ")
        digest, _, error = rest.partition(" ")
        try:
            if digest != self._digest or float(at_s) < self.since_s:
                return None
            failure = RELAYED.unpack(bytes.fromhex(error))
        except (RayfoldError, ValueError):
            return None
        return failure if isinstance(failure, RayfoldError) else None
