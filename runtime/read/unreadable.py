"""Unreadable events: what a reader gets in place of a stored event that its classes cannot read.

Beside the read path: histories and subscriptions. During a rolling upgrade a program with older classes meets events
of newer ones. It is served what it can read, and at the place of each other event it gets the facts: name, version,
the stored fields as plain values, and why its classes cannot read them.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from ..domain.messages import Event
from ..encoding.codec import decode_payload
from ..errors import InvalidMessage, UnknownEvent
from ..log.contract import StoredEvent
from ..printable import shown

__all__ = ["Unreadable", "UnreadableEvent", "check_unreadable", "unreadable_event"]

Unreadable: TypeAlias = Literal["raise", "yield"]
"""What becomes of an event that cannot be read: an `UnknownEvent` is raised, or an `UnreadableEvent` stands for it."""


class UnreadableEvent(Event):
    """A stored event that the classes of this program cannot read, at its place. It is never stored itself.

    `history` yields it, and subscriptions with `unreadable="yield"`.

    Example:
        for event, recorded in bank.history(Account, "alice"):
            match event:
                case UnreadableEvent():
                    print(recorded.version, event.event, event.why)
    """

    event: str
    """The stored name."""
    stored_version: int
    """The version of its schema."""
    fields: dict[str, Any]
    """What is stored, as plain values; empty if not even that can be decoded."""
    why: str
    """Why the classes of this program cannot read it."""


def unreadable_event(stored: StoredEvent, error: UnknownEvent) -> UnreadableEvent:
    """What stands for this stored event."""
    try:
        fields = {str(name): value for name, value in decode_payload(stored.payload, stored.name).items()}
    except InvalidMessage:
        fields = {}
    # Made without validation: what another release has stored may break any rule of this one.
    return UnreadableEvent.model_construct(
        event=stored.name, stored_version=stored.schema_version, fields=fields, why=error.what
    )


def check_unreadable(unreadable: Unreadable) -> Unreadable:
    """The choice itself. Raises `InvalidMessage` for what is none."""
    if unreadable not in ("raise", "yield"):
        raise InvalidMessage("unreadable", f"is {shown(unreadable)}", 'give "raise" or "yield"')
    return unreadable
