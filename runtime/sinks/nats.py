"""Nats: events to a stream of NATS JetStream.

Beside the read path, in the process of the sinks. Needs nats-py (`pip install rayfold[nats]`), and on the server a
stream that takes the subjects.

Rules kept here: the acknowledgement of the stream is the confirmation, with which the event is stored there; each
message has the event's id as `Nats-Msg-Id`, so that the server drops what comes again within the stream's window.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import CallerError, InvalidMessage
from ..printable import shown
from .cloud_event import CONTENT_TYPE, CloudEvent
from .target import NotConfirmed, Publish

__all__ = ["Nats"]

CONNECT_S: Final = 5
"""For one attempt to connect. The sink tries again by itself."""


@dataclass(frozen=True)
class Nats:
    """Subjects of NATS that events are published to.

    Args:
        servers: `"nats://HOST:PORT"`, or several of one cluster.
        subject: May have `{type}`, the name of the event, and `{aggregate}`, the type of its aggregate:
            `"shop.{aggregate}.{type}"`.
        timeout_s: For one acknowledgement, in seconds.
        options: Further options of `nats.connect`: `user_credentials`, `token`, `tls`, ...

    Raises:
        InvalidMessage: What cannot be.

    Example:
        to = Nats("nats://127.0.0.1:4222", subject="shop.{type}")
    """

    servers: str | Sequence[str]
    subject: str
    timeout_s: float = 5.0
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        """Refuse a subject that cannot be."""
        try:
            made = self.subject.format(type="T", aggregate="A")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            what = f"subject={shown(self.subject)} cannot be filled in"
            raise InvalidMessage("Nats", what, "use {type} and {aggregate} alone") from error
        if not made or any(one in made for one in " *>\t\r\n") or "" in made.split("."):
            remedy = "give words with dots between them, without spaces and wildcards"
            raise InvalidMessage("Nats", f"subject={shown(self.subject)} is none", remedy)

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Publish]:
        """See `Target`. Raises `CallerError` without nats-py."""
        try:
            from nats.aio.client import Client
            from nats.errors import Error
        except ImportError as error:
            raise CallerError("Nats needs the package nats-py: pip install rayfold[nats]") from error
        servers = [self.servers] if isinstance(self.servers, str) else list(self.servers)
        given = {"max_reconnect_attempts": -1, "reconnect_time_wait": 1, "pending_size": -1, **self.options}
        connection = Client()
        try:
            async with asyncio.timeout(CONNECT_S):
                await connection.connect(servers, error_cb=_ignored, connect_timeout=CONNECT_S, **given)
        except (Error, OSError, TimeoutError) as error:
            await connection.close()
            raise NotConfirmed(f"cannot connect: {type(error).__name__}: {error}".rstrip(": ")) from error
        stream = connection.jetstream(timeout=self.timeout_s)

        async def publish(event: CloudEvent) -> None:
            subject = self.subject.format(type=event.type, aggregate=event.aggregate)
            headers = {"Nats-Msg-Id": event.message_id, "Content-Type": CONTENT_TYPE}
            try:
                await stream.publish(subject, event.content, headers=headers)
            except (Error, OSError, TimeoutError) as error:
                raise NotConfirmed(f"{type(error).__name__}: {error}".rstrip(": ")) from error

        try:
            yield publish
        finally:
            with contextlib.suppress(Error, OSError, TimeoutError):
                await connection.close()


async def _ignored(_error: Exception) -> None:
    """What the connection reports aside: whatever is not confirmed is sent again."""
