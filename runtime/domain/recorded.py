"""A recorded event's place: where in its stream and in the log it is, when it was written, and what caused it.

What a `@project` handler gets beside the event, in step [7] of the read path.

Rule kept here: order follows from `version` and `position`, never from the clock.

Why a `NamedTuple`: one is built for every event on the catch-up path, where a frozen dataclass costs
four times as much.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from ..printable import shown_id
from ..stream import StreamId

__all__ = ["Recorded"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Recorded(NamedTuple):
    """The place of one stored event. `stream` and `version`, and `partition` and `position`, both identify it.

    Example:
        for event, recorded in bank.history(Account, "alice"):
            print(recorded.version, recorded.recorded_at, event)
    """

    stream: StreamId
    """The history that the event belongs to."""
    version: int
    """In its stream, from 1, gap-free."""
    partition: int
    """The number of the partition that holds the stream."""
    position: int
    """In its partition's log, from 1, gap-free, in commit order. Nothing orders two partitions."""
    recorded_at_us: int
    """Microseconds since 1970 UTC by the writer's clock. For people, never for order."""
    command_id: bytes
    """16 bytes: the command that the event came from."""
    correlation_id: bytes
    """16 bytes or none: the id that a whole conversation shares."""
    causation_id: bytes
    """16 bytes or none: the id of what led to the command."""
    replayed: bool = False
    """True when the event was already in the log when the read model that it is given to was opened (so while that is
    built, rebuilt or catching up after a restart), and when it is taken in once more: after it or a neighbour has
    failed, while one stream is rebuilt, or out of quarantine. False when it arrived afterwards. A handler with an
    effect outside its read model can leave that out when it is set: a first sight may be marked, but what is not
    marked is a first sight, unless the process was killed in the middle of it."""

    def __repr__(self) -> str:
        """All of it, with the ids as UUIDs and those that there are."""
        facts = f"stream={self.stream!r}, version={self.version}, partition={self.partition}, position={self.position}"
        facts += f", recorded_at_us={self.recorded_at_us}, command_uuid={shown_id(self.command_id)}"
        facts += f", correlation_uuid={shown_id(self.correlation_id)}" if self.correlation_id else ""
        facts += f", causation_uuid={shown_id(self.causation_id)}" if self.causation_id else ""
        return f"{type(self).__name__}({facts}" + (", replayed=True)" if self.replayed else ")")

    @property
    def aggregate_type(self) -> str:
        """The type of the aggregate that decided the event."""
        return self.stream.type

    @property
    def aggregate_id(self) -> str:
        """The id of the aggregate that decided the event."""
        return self.stream.id

    @property
    def recorded_at(self) -> datetime:
        """When the event was written, by the writer's clock, in UTC; exact to the microsecond."""
        return _EPOCH + timedelta(microseconds=self.recorded_at_us)

    @property
    def command_uuid(self) -> UUID:
        """`command_id` as a UUID."""
        return UUID(bytes=self.command_id)

    @property
    def correlation_uuid(self) -> UUID | None:
        """`correlation_id` as a UUID, if there is one."""
        return UUID(bytes=self.correlation_id) if self.correlation_id else None

    @property
    def causation_uuid(self) -> UUID | None:
        """`causation_id` as a UUID, if there is one."""
        return UUID(bytes=self.causation_id) if self.causation_id else None
