"""Receipt: the answer to an acknowledged command, and the token that makes a later query see it."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from .printable import shown_id
from .stream import StreamId

__all__ = ["Receipt"]


class Receipt(NamedTuple):
    """The events of a command are fsynced. Pass it as `after=` to a query to read your own write.

    A tuple, because one is made for each command.

    Example:
        receipt = bank.execute(Account, "alice", Deposit(amount=100))
        bank.ask(Balances, BalanceOf(account="alice"), after=receipt)
    """

    stream: StreamId
    """The aggregate that took the command."""
    partition: int
    """The partition whose log holds the events."""
    position: int
    """In that log: the position of the command's last event. A read model that has come this far has it. Of a command
    without events: of the last event of its aggregate, on which it was decided; 0 if there is none."""
    version: int
    """The version of the stream after the command's last event."""
    command_bytes: bytes
    """The command's id, as its 16 bytes."""
    repeated: bool = False
    """True when this command id had been stored before: the facts are those of the first time."""
    store_id: str = ""
    """Id of the store whose log holds the events: a restored store has another one, and its positions mean something
    else. Empty where that is not known, as inside an actor."""

    event_count: int = 0
    """How many events the command had: their versions are `version - event_count + 1` to `version`."""

    carried: tuple[Any, ...] | None = None
    """The events, if `execute` was asked for them: see `events`."""

    @property
    def events(self) -> tuple[Any, ...]:
        """The events of the command, in order, as readers see them; none if it had no events. Only of a
        receipt that `execute(..., events=True)` has returned; of any other one ask the runtime: `events_of(receipt)`.
        Raises `AttributeError` for a receipt without them."""
        if self.carried is None:
            remedy = "use execute(..., events=True), or ask the runtime: events_of(receipt)"
            raise AttributeError(f"this receipt does not carry the events of its command; {remedy}")
        return self.carried

    def __repr__(self) -> str:
        """The facts as they are given to a caller: the id of the command as a UUID, and what is not usual."""
        facts = f"stream={self.stream!r}, partition={self.partition}, position={self.position}, version={self.version}"
        facts += f", command_id={shown_id(self.command_bytes)}, event_count={self.event_count}"
        facts += ", repeated=True" if self.repeated else ""
        facts += f", store_id={self.store_id!r}" if self.store_id else ""
        return f"{type(self).__name__}({facts}" + ("" if self.carried is None else f", events={self.carried!r}") + ")"

    @property
    def command_id(self) -> UUID:
        """The id the command was sent with: the key of its at-most-once effect."""
        return UUID(bytes=self.command_bytes)
