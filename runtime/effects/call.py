"""Call: what an `@effect` or `@settle` function gets beside the event."""

from __future__ import annotations

from dataclasses import dataclass

from ..domain.recorded import Recorded

__all__ = ["Call"]


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt of a call.

    Attributes:
        key: 32 hex digits: the same for every attempt and every look, permanently, and for no other call. Give it to
            the other side, as an idempotency key.
        attempt: From 1; looks are counted too.
        timeout_s: Seconds until the function is cancelled.
        id: Of the instance, by which `rayfold effects` shows the call.
        recorded: Where the event is from.
        unknown: Whether the end of an earlier attempt is unknown: an effect that is `repeatable` is called so.

    Example:
        answer = await bank.post("/charges", amount=event.amount, idempotency_key=call.key)
    """

    key: str
    attempt: int
    timeout_s: float
    id: str
    recorded: Recorded
    unknown: bool = False
