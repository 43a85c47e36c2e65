"""LogOwner: whether a partition's actor has the log, and how it gives it up for another node.

Beside step [3], in the actor of a partition (`actor.py`). The actor opens its log at the first call and serves; to give
it up it closes it, and changes its write ownership (`sealing.py`), which decides. What is known here is only what this
process has done; every change is decided by the log, in one transaction.

Rule kept here: what comes too late changes nothing. A seal that was broken is not made final, one that is final is not
broken, and an actor that serves is not disturbed by either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from ...runtime.errors import Sealed
from ...runtime.log.sealing import CALLED_OFF, Seal, Sealable, WriteOwnership, break_seal, hand_over, seal
from ...runtime.store.partition_map import PartitionMap

__all__ = ["LogOwner"]

Result = TypeVar("Result")


class OwnedLog(Sealable, Protocol):
    """The log of a partition, opened to be written."""

    def close(self) -> None:
        """Close its files."""
        ...


class LogOwner:
    """Of one partition."""

    def __init__(
        self,
        name: str,
        *,
        open_log: Callable[[], OwnedLog],
        let_go: Callable[[], None],
        serves: Callable[[], bool],
        map_here: Callable[[], PartitionMap],
    ) -> None:
        """`let_go`: closes the log if the actor has it open. `serves`: whether it has."""
        self.released = False
        """The log was given up, by `seal` or by the end of the actor: whatever is asked here is answered with that."""
        self._name = name
        self._open_log = open_log
        self._let_go = let_go
        self._serves = serves
        self._map_here = map_here

    def check(self) -> None:
        """Raises `Sealed` if the log was given up."""
        if self.released:
            raise Sealed(self._name, "another node")

    def seal(self, successor: str) -> Seal:
        """Take no command any more: the partition will continue at `successor`. Safe to repeat. Raises `Sealed`."""
        self.released = True
        return self._with_log(lambda log: seal(log, successor))

    def unseal(self, successor: str, epoch: int) -> None:
        """The move for which the log was sealed with this epoch was called off: commands are taken again.

        Raises `Sealed` if it was handed over, or is sealed for another move.
        """
        if not self._serves():
            self._with_log(lambda log: break_seal(log, successor, epoch))
            self.released = False

    def hand_over(self, successor: str, epoch: int, version: int) -> WriteOwnership:
        """Make the seal of this epoch final: the partition is at home on `successor` from this version of the map on,
        or from a later one. Safe to repeat. Raises `Sealed` if the move was called off."""
        if self._serves():
            raise Sealed(self._name, "", CALLED_OFF)
        since = max(version, self._map_here().version + 1)
        return self._with_log(lambda log: hand_over(log, successor, epoch, since))

    def _with_log(self, change: Callable[[OwnedLog], Result]) -> Result:
        self._let_go()
        assert not self._serves(), "the write ownership of a log changes while no process writes it"
        log = self._open_log()
        try:
            return change(log)
        finally:
            log.close()
