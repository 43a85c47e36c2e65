"""Sink: which events of an application are published, and where to. What an application declares.

Beside the read path. `publisher.py` does it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal

from ..domain.messages import Event
from ..effects.backoff import Backoff
from ..encoding.catalogue import Catalogue
from ..encoding.facts import shown_as_text
from ..errors import InvalidId, InvalidMessage
from ..feed.event_filter import EventFilter
from ..printable import shown
from ..stream import RESERVED_PREFIX
from .target import Target

__all__ = ["Sink", "check_sinks"]

PREFIX: Final = f"{RESERVED_PREFIX}sink."
"""What the names of their subscriptions begin with."""

NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,39}")

SINKS_MAX: Final = 64
"""Of one application: a thread and a subscription each."""

_AT_ONCE_MAX: Final = 256


class Sink:
    """Events that are published to another system, each until that has confirmed it.

    Args:
        name: Under which its place is kept, permanently.
        types: Event classes, or names of events.
        to: A `Webhook`, a `Nats`, or another `Target`.
        since: Where it begins when it is new: with the `"beginning"` of the log, or `"now"`. There is no default.
        source: What names this system for the receiver, a URI such as `/shop`; by default the sink's name with a slash.
        at_once: Streams whose events are sent at the same time. The events of one stream are sent one after the other.
        retry: The pauses after an attempt that was not confirmed.

    Raises:
        InvalidMessage: What cannot be. `InvalidId` for a name.

    Example:
        orders = Sink("orders", [Placed, Paid], to=Webhook("https://example.com/events", secret=secret), since="now")
        async with Runtime("shop", aggregates=[Order], sinks=[orders]) as shop:
            ...
    """

    def __init__(
        self,
        name: str,
        types: type[Event] | str | Sequence[type[Event] | str],
        *,
        to: Target,
        since: Literal["beginning", "now"],
        source: str = "",
        at_once: int = 16,
        retry: Backoff | None = None,
    ) -> None:
        if not isinstance(name, str) or not NAME_PATTERN.fullmatch(name):
            what = "is not a name of up to 40 ASCII letters, digits, '-' and '_' that begins with a letter or digit"
            raise InvalidId("sink", shown_as_text(name), what)
        if not callable(getattr(to, "opened", None)):
            raise InvalidMessage("Sink", f"to={shown(to)} is no target", "give a Webhook, a Nats, or another Target")
        if since not in ("beginning", "now"):
            raise InvalidMessage("Sink", f"since={shown(since)}", "give 'beginning' or 'now'")
        if isinstance(at_once, bool) or not isinstance(at_once, int) or not 1 <= at_once <= _AT_ONCE_MAX:
            raise InvalidMessage("Sink", f"at_once={shown(at_once)}", f"give 1 to {_AT_ONCE_MAX}")
        if retry is not None and (not isinstance(retry, Backoff) or retry.attempts is not None):
            what = f"retry={shown(retry)} has an end, or is no Backoff"
            raise InvalidMessage("Sink", what, "give Backoff(first_s=1, max_s=300)")
        self.name, self.to, self.since, self.at_once = name, to, since, at_once
        self.types = _names_of(types)
        """The names of the events."""
        self.source = source or f"/{name}"
        self.retry = Backoff() if retry is None else retry

    @property
    def subscription(self) -> str:
        """The name under which its place is kept."""
        return f"{PREFIX}{self.name}"

    def __repr__(self) -> str:
        return f"Sink({self.name!r}, {list(self.types)!r}, to={self.to!r})"


def _names_of(types: Any) -> tuple[str, ...]:
    given = [types] if isinstance(types, type | str) else list(types)
    if not given:
        raise InvalidMessage("Sink", "types is empty, so that nothing would ever be published", "name some events")
    names = []
    for one in given:
        name = one if isinstance(one, str) else getattr(one, "message_name", None)
        if not isinstance(name, str):
            raise InvalidMessage("Sink", f"{shown(one)} is not a type of event", "give event classes, or names")
        names.append(name)
    return tuple(names)


def check_sinks(sinks: Any, catalogue: Catalogue) -> tuple[Sink, ...]:
    """The sinks of an application. Raises `InvalidMessage` and `UnknownName`."""
    found = tuple(sinks)
    for one in found:
        if not isinstance(one, Sink):
            raise InvalidMessage("sinks", f"{shown(one)} is none", "give Sink(...)")
        EventFilter(catalogue, list(one.types))
    names = [one.name for one in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidMessage("sinks", f"two are called {twice[0]!r}", "give each a name of its own")
    if len(found) > SINKS_MAX:
        raise InvalidMessage("sinks", f"there are {len(found)}", f"have at most {SINKS_MAX}")
    return found
