"""OpenModel: a projector's read model from the moment in which it is open, and the logs that it follows.

Steps [7] and [8]. Made by `actor.py` in the phase "open": before it a projector has neither. Here is how far the logs
are read and when that ends; what is done with their events is in `runtime/read/read_model.py`.

Rules kept here: the log of a partition whose node does not answer is passed over, and the others are read; logs are
read in slices, so that the reader can be ended, keeps its deadline, and continues from a checkpoint when it is killed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Event
from typing import Final

from ...runtime.errors import RayfoldError, Unavailable
from ...runtime.log.contract import Reader
from ...runtime.printable import printable_log
from ...runtime.read.positions import join_place
from ...runtime.read.read_model import ReadModel

__all__ = ["OpenModel"]

log = printable_log(__name__)

_EVERYTHING: Final = 1 << 63
"""More than a log has."""

_SLICE: Final = 512
"""Events between two checks whether to end or to make a checkpoint, while catching up: a page of the read model."""


class OpenModel:
    """One read model and its logs. Safe from any thread."""

    def __init__(self, name: str, read_model: ReadModel, readers: Mapping[int, Reader], ending: Event) -> None:
        """`ending`: once it is set nothing more is read."""
        self.read_model = read_model
        self.caught_up_to: dict[int, int] | None = None
        """Where the logs ended when it last caught up with them; None until it has for the first time."""
        self._name = name
        self._readers = readers
        self._ending = ending
        self._without: set[int] = set()
        """Partitions whose logs did not answer at the last look."""

    @property
    def up_to_date(self) -> bool:
        """Whether it has caught up once: it may answer."""
        return self.caught_up_to is not None

    def catch_up(self, after_slice: Callable[[ReadModel], None]) -> None:
        """Read the logs to where they end now, which the end of a log that is being written never is."""
        heads = self.heads()
        for partition, head in heads.items():
            while self._read_on(partition, head):
                after_slice(self.read_model)
        self.caught_up_to = heads

    def read_for(self, afters: Sequence[Mapping[int, int]], deadline_s: float) -> None:
        """Read what the logs have of what these places hold, until a deadline of `time.monotonic`."""
        wanted: dict[int, int] = {}
        for after in afters:
            join_place(wanted, after)
        for partition, position in wanted.items():
            if partition in self._readers:
                while time.monotonic() < deadline_s and self._read_on(partition, position):
                    pass

    def read_on(self, partitions: Iterable[int], limit_s: float) -> None:
        """Read what these logs have, for no longer than this."""
        deadline_s = time.monotonic() + limit_s
        for partition in partitions:
            if partition in self._readers:
                while time.monotonic() < deadline_s and self._read_on(partition, _EVERYTHING):
                    pass

    def is_away(self, partition: int) -> bool:
        """Whether this log is on another node, so that reading it takes a call."""
        return not getattr(self._readers.get(partition), "local", True)

    def heads(self) -> dict[int, int]:
        """Where the logs end now; without those that are on a node which does not answer."""
        heads = {}
        for partition, reader in self._readers.items():
            try:
                heads[partition] = reader.head()
            except Unavailable as error:
                if partition not in self._without:
                    log.warning("%s goes on without partition %d: %s", self._name, partition, error)
                self._without.add(partition)
        self._without -= heads.keys()
        return heads

    def ends(self, partitions: Iterable[int], *, away: bool) -> dict[int, int]:
        """Where these logs end now. Of a log on another node that takes a call: only `away`."""
        ends = {}
        for partition in partitions:
            reader = self._readers.get(partition)
            if reader is not None and (away or not self.is_away(partition)):
                with suppress(RayfoldError):
                    ends[partition] = reader.head()
        return ends

    def _read_on(self, partition: int, up_to: int) -> bool:
        """Take in one slice of what a log has up to this position. False if there is nothing more, or it is to end."""
        read_model = self.read_model
        reached = read_model.positions[partition]
        if reached >= up_to or self._ending.is_set() or read_model.failed is not None:
            return False
        try:
            read_model.catch_up(partition, min(reached + _SLICE, up_to))
        except Unavailable:  # its home has gone in the middle of it
            return False
        return read_model.positions[partition] > reached
