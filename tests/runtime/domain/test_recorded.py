"""The place of a recorded event."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.stream import StreamId

PLACE = Recorded(StreamId("Account", "alice"), 3, 1, 17, 1_704_067_200_123_457, b"\1" * 16, b"\2" * 16, b"")


def test_a_place_names_its_aggregate() -> None:
    assert (PLACE.aggregate_type, PLACE.aggregate_id) == ("Account", "alice")


def test_the_time_is_aware_and_exact_to_the_microsecond() -> None:
    assert PLACE.recorded_at == datetime(2024, 1, 1, 0, 0, 0, 123_457, tzinfo=UTC)
    assert PLACE._replace(recorded_at_us=2**52 + 1).recorded_at.microsecond == (2**52 + 1) % 1_000_000


def test_ids_are_shown_as_uuids_and_a_missing_one_as_none() -> None:
    assert PLACE.command_uuid == UUID(int=0x01010101010101010101010101010101)
    assert PLACE.correlation_uuid == UUID(bytes=b"\2" * 16)
    assert PLACE.causation_uuid is None
    assert PLACE._replace(correlation_id=b"", causation_id=b"\3" * 16).correlation_uuid is None
    assert PLACE._replace(causation_id=b"\3" * 16).causation_uuid == UUID(bytes=b"\3" * 16)
