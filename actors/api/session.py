"""Session: read your writes, and never read backwards, for one user of a program.

Beside steps [1] and [8]. Before it: the caller. After it: the client, which a session asks like any other caller, with
an `after=` that has grown with every receipt and every answer.

Rule kept here: the positions of a session only grow. What was written and what was seen in it is seen in every later
answer, by whichever replica of whichever projection; so an answer may be newer than needed, and never older.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, Self, TypeVar
from uuid import UUID

from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Command, Query
from ...runtime.domain.projection import Projection
from ...runtime.errors import InvalidMessage, NotYetVisible, RayfoldError
from ...runtime.read.positions import After, join_place, place_asked, place_of_token, token_of_place
from ...runtime.receipt import Receipt
from ...runtime.stream import ANY
from ..client.client import Client, Until
from ..nodes.store import AnyStore
from .replica import Replica

__all__ = ["Session"]

Answer = TypeVar("Answer")


class _Runtime(Protocol):
    """What a session needs of `Operations`, whose `session` makes it."""

    @property
    def _store(self) -> AnyStore: ...
    @property
    def _client(self) -> Client: ...
    def _token_secret(self) -> bytes: ...
    @property
    def execute(self) -> Callable[..., Awaitable[Receipt]]: ...


class Session:
    """Reads its own writes, and never reads backwards. Made by `Runtime.session`; holds nothing but positions.

    It belongs to the runtime's event loop, and any number of tasks may use it. Calls that overlap do not wait for
    one another: each sees what had been written and seen when it began.

    Example:
        async with bank.session() as me:
            await me.execute(Account, "alice", Deposit(amount=5))
            await me.ask(Balances, BalanceOf(account="alice"))
            token = me.token()  # for a cookie; bank.session(token) continues it
    """

    def __init__(self, runtime: _Runtime, token: str | None) -> None:
        self._runtime = runtime
        self._positions = {} if token is None else place_of_token(token, runtime._store, runtime._token_secret())

    @property
    def positions(self) -> dict[int, int]:
        """Partition -> position up to which everything is seen from now on. A copy; `after=` takes the session too."""
        return dict(self._positions)

    def token(self) -> str:
        """The positions as text, safe in URLs and headers, for `Runtime.session` of any runtime on this store: hand it
        to an HTTP client, and the next request sees what this one did. It is signed with a secret of the store, and
        cannot be made up; its content is not secret. Raises `Unavailable` if that cannot be read."""
        return token_of_place(self._positions, self._runtime._store, self._runtime._token_secret())

    def join(self, after: After) -> None:
        """From now on see this too: a receipt, several, positions, or another session. Raises `InvalidMessage`."""
        join_place(self._positions, place_asked(after, self._runtime._store.partitions, self._runtime._store.store_id))

    async def execute(
        self,
        aggregate: type[Aggregate],
        id: str,
        command: Command,
        *,
        command_id: UUID | None = None,
        expected_version: int = ANY,
        correlation_id: UUID | None = None,
        causation_id: UUID | None = None,
        decisive: bool = False,
        until: Until | None = None,
        events: bool = False,
        timeout_s: float | None = None,
    ) -> Receipt:
        """`Runtime.execute`, which every later answer in this session includes."""
        try:
            receipt = await self._runtime.execute(
                aggregate,
                id,
                command,
                command_id=command_id,
                expected_version=expected_version,
                correlation_id=correlation_id,
                causation_id=causation_id,
                decisive=decisive,
                until=until,
                events=events,
                timeout_s=timeout_s,
            )
        except NotYetVisible as error:
            if error.receipt is not None:
                self.join(error.receipt)
            raise
        self.join(receipt)
        return receipt

    async def ask(
        self, projection: type[Projection], query: Query[Answer], *, timeout_s: float | None = None
    ) -> Answer:
        """`Runtime.ask`, of a replica that has all that this session has written and seen."""
        answer: Answer | RayfoldError = await self._runtime._client.ask(
            projection, query, self._positions, timeout_s, self._saw
        )
        if isinstance(answer, RayfoldError):
            raise answer
        return answer

    async def ask_replica(
        self, replica: Replica[Any], query: Query[Answer], *, timeout_s: float | None = None
    ) -> Answer:
        """`Replica.ask` of an embedded replica; if that has to wait, it does so in a thread."""
        if not isinstance(replica, Replica):
            raise InvalidMessage("ask_replica", f"{replica!r} is not a Replica", "give what `replica(...)` has made")
        if not replica.has(self._positions):
            timeout_s = self._runtime._client.timeout_s(timeout_s)
            await asyncio.to_thread(replica.wait_for, self.positions, timeout_s)
        answer, positions = replica.ask_at(query)
        self._saw(positions)
        return answer

    def _saw(self, positions: dict[int, int]) -> None:
        join_place(self._positions, positions)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Nothing is held, so nothing ends; the block shows what belongs together."""
