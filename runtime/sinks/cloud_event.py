"""CloudEvent: an event of the log in the form in which others take it, CloudEvents 1.0, as JSON.

Beside the read path. Before it: `publisher.py` has read an event. After it: a target (`webhook.py`, `nats.py`).

Rule kept here: what it is made of is in the record, and nothing else: sent again, after whatever time and from
wherever, it has the same bytes. Its `id` is that of the event, permanently: stream and version.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from ..domain.messages import Event
from ..domain.recorded import Recorded

__all__ = ["CONTENT_TYPE", "CloudEvent", "cloud_event"]

CONTENT_TYPE: Final = "application/cloudevents+json; charset=utf-8"


class CloudEvent(NamedTuple):
    """An event as it is published.

    Example:
        async def print_event(event: CloudEvent) -> None:
            print(event.id, event.content.decode())
    """

    id: str
    """Of the event, permanently: `Account/alice:7`. A receiver that has seen it drops it."""
    type: str
    """The stored name of the event."""
    subject: str
    """The stream: `Account/alice`. Events of one subject come in order."""
    aggregate: str
    """The type of the aggregate."""
    content: bytes
    """All of it, as JSON."""

    @property
    def message_id(self) -> str:
        """The id in a form that any header can have: an aggregate's id may have other characters."""
        return f"msg_{hashlib.sha256(self.id.encode()).hexdigest()[:40]}"


def cloud_event(event: Event, recorded: Recorded, source: str, number: int = 0) -> CloudEvent:
    """Make it. `source`: names the system, for the receiver. `number`: which one it is of those that an upcast has made
    of one record. Raises what turning the event's fields into JSON raises."""
    subject = str(recorded.stream)
    ident = f"{subject}:{recorded.version}" + (f".{number}" if number else "")
    fields: dict[str, Any] = {
        "specversion": "1.0",
        "id": ident,
        "source": source,
        "type": event.message_name,
        "subject": subject,
        "time": datetime.fromtimestamp(recorded.recorded_at_us / 1e6, UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "schemaversion": event.schema_version,
        "sequence": f"{recorded.version:020d}",
        "partitionkey": subject,
        "correlationid": _as_text(recorded.correlation_id),
        "causationid": _as_text(recorded.causation_id),
        "data": event.model_dump(mode="json"),
    }
    content = json.dumps({key: value for key, value in fields.items() if value != ""}, ensure_ascii=False).encode()
    return CloudEvent(ident, event.message_name, subject, recorded.stream.type, content)


def _as_text(ident: bytes) -> str:
    return str(uuid.UUID(bytes=ident)) if len(ident) == 16 else ""
