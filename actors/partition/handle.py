"""PartitionHandle: a partition's actor, as its supervisor calls it.

Beside step [3]. Commands do not come this way (`client/transport.py`). `start_partition` has the type checker compare
it with the actor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ...runtime.log.sealing import Seal, WriteOwnership
from ...runtime.write.residents import SavedResident
from ..cluster.rpc import Method, Reply
from .status_records import PartitionAnswer

__all__ = ["PartitionHandle"]


class PartitionHandle(Protocol):
    """The methods of `PartitionActor` (`actor.py`) that open it, read its state, and move it."""

    @property
    def open(self) -> Method[Reply[None]]: ...
    @property
    def prepare(self) -> Method[Reply[None], Sequence[SavedResident]]: ...
    @property
    def residents(self) -> Method[Reply[list[SavedResident]], int]: ...
    @property
    def set_projectors(self) -> Method[Reply[None], tuple[str, ...]]: ...
    @property
    def set_partitions(self) -> Method[None, tuple[str, ...], Mapping[int, str]]: ...
    @property
    def tick(self) -> Method[None]: ...
    @property
    def status(self) -> Method[Reply[PartitionAnswer]]: ...
    @property
    def head(self) -> Method[Reply[int]]: ...
    @property
    def subscription(self) -> Method[Reply[object], str, Sequence[Any]]: ...
    @property
    def renew_member(self) -> Method[Reply[None], str, int, int]: ...
    @property
    def process_id(self) -> Method[Reply[int]]: ...
    @property
    def seal(self) -> Method[Reply[Seal], str]: ...
    @property
    def hand_over(self) -> Method[Reply[WriteOwnership], str, int, int]: ...
    @property
    def unseal(self) -> Method[Reply[None], str, int]: ...
    @property
    def close(self) -> Method[Reply[None]]: ...
