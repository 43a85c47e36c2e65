"""Gateway: what takes commands and queries, as a type for the code that sends them.

Step [1] of the write path and [8] of the read path, seen from the caller's side. A `Runtime`, a `Connection` and a
`Session` are gateways, and so is any object with these two methods, such as a test's own.

Why only two methods: code that takes one as a parameter is as easy to call from a test as from a web handler. Code that
needs more (`subscribe`, `history`, ...) takes `Operations` or `BlockingOperations`, of which runtimes and connections
are derived.
"""

from __future__ import annotations

from typing import Protocol, TypeVar
from uuid import UUID

from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Command, Query
from ...runtime.domain.projection import Projection
from ...runtime.receipt import Receipt
from ..client.client import Until

__all__ = ["BlockingGateway", "Gateway"]

Answer = TypeVar("Answer")


class Gateway(Protocol):
    """What takes commands and queries, as a type for the code that sends them: `Runtime`, `Connection`, `Session`, or
    an object of your own with these two methods. They raise what `Runtime.execute` and `Runtime.ask` raise.

    Example:
        async def pay(bank: Gateway, account: str, amount: int) -> Receipt:
            return await bank.execute(Account, account, Deposit(amount=amount))
    """

    async def execute(
        self,
        aggregate: type[Aggregate],
        id: str,
        command: Command,
        *,
        command_id: UUID | None = ...,
        expected_version: int = ...,
        correlation_id: UUID | None = ...,
        causation_id: UUID | None = ...,
        decisive: bool = ...,
        until: Until | None = ...,
        events: bool = ...,
        timeout_s: float | None = ...,
    ) -> Receipt:
        """Have the aggregate decide a command; see `Runtime.execute`."""

    async def ask(self, projection: type[Projection], query: Query[Answer], *, timeout_s: float | None = ...) -> Answer:
        """Ask a read model; see `Runtime.ask`."""


class BlockingGateway(Protocol):
    """`Gateway` without `await`: a `BlockingRuntime`, a `BlockingConnection`, a `BlockingSession`, or an object of
    your own.

    Example:
        def pay(bank: BlockingGateway, account: str, amount: int) -> Receipt:
            return bank.execute(Account, account, Deposit(amount=amount))
    """

    def execute(
        self,
        aggregate: type[Aggregate],
        id: str,
        command: Command,
        *,
        command_id: UUID | None = ...,
        expected_version: int = ...,
        correlation_id: UUID | None = ...,
        causation_id: UUID | None = ...,
        decisive: bool = ...,
        until: Until | None = ...,
        events: bool = ...,
        timeout_s: float | None = ...,
    ) -> Receipt:
        """Have the aggregate decide a command; see `Runtime.execute`."""

    def ask(self, projection: type[Projection], query: Query[Answer], *, timeout_s: float | None = ...) -> Answer:
        """Ask a read model; see `Runtime.ask`."""
