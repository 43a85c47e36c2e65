"""SinksHandle: the actor of the sinks, as its system calls it.

Beside all steps. `start_sinks` has the type checker compare it with the actor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from ...runtime.sinks.publisher import PublisherFacts
from ..cluster.rpc import Method, Reply

__all__ = ["SinksAnswer", "SinksHandle"]


class SinksAnswer(NamedTuple):
    """What the actor reports of itself."""

    pid: int
    sinks: list[PublisherFacts]


class SinksHandle(Protocol):
    """The methods of `SinksActor` (`actor.py`)."""

    @property
    def open(self) -> Method[Reply[None]]: ...
    @property
    def set_partitions(self) -> Method[None, tuple[str, ...], Mapping[int, str]]: ...
    @property
    def process_id(self) -> Method[Reply[int]]: ...
    @property
    def status(self) -> Method[Reply[SinksAnswer]]: ...
    @property
    def close(self) -> Method[Reply[None]]: ...
