"""NodeAgentHandle: the actor of a node, as others call it.

Beside all steps. `start_node_agent` has the type checker compare it with the actor.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ...runtime.log.sealing import Seal
from ...runtime.store.home_statement import CopyFacts, HomeStatement
from ...runtime.store.node_share import ShareFacts
from ...runtime.store.partition_map import PartitionMap
from ...runtime.store.report import Report
from ..cluster.rpc import Method, Reply
from ..packaging.builds import Build

__all__ = ["NodeAgentHandle"]


class NodeAgentHandle(Protocol):
    """The methods of `NodeAgent` (`agent.py`)."""

    @property
    def open(self) -> Method[Reply[ShareFacts]]: ...
    @property
    def propose(self) -> Method[Reply[PartitionMap], PartitionMap]: ...
    @property
    def create(self) -> Method[Reply[None], PartitionMap]: ...
    @property
    def place(self) -> Method[Reply[PartitionMap], PartitionMap]: ...
    @property
    def map(self) -> Method[Reply[PartitionMap | None]]: ...
    @property
    def read(self) -> Method[Reply[object], int, str, Sequence[Any]]: ...
    @property
    def verify(self) -> Method[Reply[Report]]: ...
    @property
    def pull(self) -> Method[Reply[int], int, str, int]: ...
    @property
    def finish(self) -> Method[Reply[None], int, Seal]: ...
    @property
    def home_statement(self) -> Method[Reply[HomeStatement], int, Sequence[int]]: ...
    @property
    def leftovers(self) -> Method[Reply[list[CopyFacts]]]: ...
    @property
    def discard(self) -> Method[Reply[str], str, HomeStatement]: ...
    @property
    def builds(self) -> Method[Reply[dict[tuple[int, int], bool]], str]: ...
    @property
    def lend_checkpoint(self) -> Method[Reply[None], Build, int, int]: ...
    @property
    def mark_serving(self) -> Method[Reply[None], Build]: ...
    @property
    def remove_older(self) -> Method[Reply[None], str, Build]: ...
    @property
    def remove_build(self) -> Method[Reply[None], Build]: ...
    @property
    def remove_folder(self) -> Method[Reply[None], Path]: ...
