"""The contract of a log, as facts. Every one of them holds for the log on disk and for the one in memory."""

from __future__ import annotations

import os
import unicodedata
from typing import Any, cast

import msgpack
import pytest

from rayfold.runtime.errors import CommandIdReused, Conflict, Fenced, InvalidId, InvalidMessage
from rayfold.runtime.log.contract import Append, Appended, CommandEntry, Holdings, Log, NewEvent, Snapshot
from rayfold.runtime.log.format import RECORD_BYTES_MAX, decode_record, record_position
from rayfold.runtime.log.segment import SegmentReader
from rayfold.runtime.stream import ANY, NO_STREAM, StreamId
from tests.runtime.log.appends import (
    ALICE,
    BOB,
    DIGEST,
    amounts_of,
    command_id,
    deposits,
    positions_of,
    versions_of,
)

CLOSED = NewEvent("Closed", 2, msgpack.packb({"at": 7, "by": "ada"}))
UNENCODABLE = NewEvent("Deposited", 1, cast(bytes, object()))


@pytest.fixture
def epoch(log: Log) -> int:
    return log.activate()


@pytest.fixture
def five(log: Log, epoch: int) -> Log:
    """A log in which alice has events 1..5, 4 and 5 appended at once, with others of bob in between."""
    for append in (
        deposits(ALICE, 1),
        deposits(BOB, 100),
        deposits(ALICE, 2),
        deposits(ALICE, 3),
        deposits(BOB, 101, 102),
        deposits(ALICE, 4, 5),
    ):
        log.append(epoch, [append])
    return log


def snapshot_at(stream: StreamId, state: bytes, schema: bytes = b"schema 1") -> Append:
    return deposits(stream, 1)._replace(snapshot=state, snapshot_schema=schema)


# --- replaying a stream -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"from_version": 3}, [3, 4, 5]),
        ({"to_version": 3}, [1, 2, 3]),
        ({"limit": 3}, [1, 2, 3]),
        ({"from_version": 2, "to_version": 3}, [2, 3]),
        ({"from_version": 2, "to_version": 5, "limit": 2}, [2, 3]),
        ({"from_version": 2, "to_version": 2}, [2]),
        ({"limit": 0}, []),
        ({"from_version": 3, "to_version": 2}, []),
        ({"from_version": 5}, [5]),
        ({"from_version": 6}, []),
        ({"to_version": 0}, []),
        ({"to_version": 4}, [1, 2, 3, 4]),
        ({"from_version": 0, "to_version": 1}, [1]),
        ({"from_version": -3, "limit": 2}, [1, 2]),
        ({"to_version": 99, "limit": 99}, [1, 2, 3, 4, 5]),
    ],
)
def test_a_window_of_a_stream_holds_exactly_its_versions(
    five: Log, window: dict[str, int], expected: list[int]
) -> None:
    records = five.read_stream(ALICE, **window)
    assert versions_of(records) == expected
    assert amounts_of(records) == expected


@pytest.mark.parametrize(("records", "bytes_max"), [(1, 0), (1, 1), (2, 1_500), (3, 2_500), (5, 1 << 40)])
def test_a_page_of_a_stream_ends_once_it_has_so_many_bytes(log: Log, records: int, bytes_max: int) -> None:
    """An event may have a megabyte: a page of a thousand would be a gigabyte, and the writer waits for it."""
    epoch = log.activate()
    for amount in range(1, 6):
        new = NewEvent("Was", 1, msgpack.packb({"amount": amount, "text": "x" * 1_000}))
        log.append(epoch, [Append(ALICE, ANY, (new,), os.urandom(16), bytes(16))])
    assert amounts_of(log.read_stream(ALICE, bytes_max=bytes_max)) == list(range(1, records + 1))
    assert amounts_of(log.read_stream(ALICE, 3, bytes_max=bytes_max)) == list(range(3, min(records + 3, 6)))


def test_an_unknown_stream_has_no_events_and_version_0(five: Log) -> None:
    unknown = StreamId("Account", "nobody")
    assert five.read_stream(unknown) == []
    assert five.version(unknown) == 0


def test_a_stream_has_the_version_of_its_last_event(five: Log) -> None:
    assert five.version(ALICE) == 5
    assert five.version(BOB) == 3


def test_a_stored_event_carries_all_that_was_appended(log: Log, epoch: int) -> None:
    event = NewEvent("Deposited", 7, b"\x81\xa6amount\x05")
    by, correlation, causation = command_id(), b"c" * 16, b"d" * 16
    log.append(epoch, [Append(ALICE, ANY, (event,), by, DIGEST, correlation, causation)])
    stored = decode_record(log.read(0, 1)[0])
    assert stored.recorded_at_us > 1_600_000_000_000_000
    assert stored[:-1] == (
        1,
        ALICE,
        1,
        "Deposited",
        7,
        event.payload,
        stored.recorded_at_us,
        by,
        correlation,
        causation,
    )
    assert stored.headers == {}


# --- the whole log ------------------------------------------------------------------------------------------------


def test_positions_run_from_1_without_gaps_over_all_streams(five: Log) -> None:
    assert positions_of(five.read(0, 100)) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert amounts_of(five.read(0, 100)) == [1, 100, 2, 3, 101, 102, 4, 5]
    assert five.head() == 8


def test_an_empty_log_has_head_0_and_nothing_to_read(log: Log) -> None:
    assert log.head() == 0
    assert log.read(0, 10) == []


@pytest.mark.parametrize(
    ("after", "limit", "expected"),
    [(0, 3, [1, 2, 3]), (6, 10, [7, 8]), (8, 10, []), (99, 10, []), (3, 0, []), (3, -1, []), (-5, 2, [1, 2])],
)
def test_a_read_starts_after_a_position_and_has_a_limit(five: Log, after: int, limit: int, expected: list[int]) -> None:
    assert [record_position(record) for record in five.read(after, limit)] == expected


def test_a_read_stops_once_its_bytes_are_reached_but_gives_at_least_one(five: Log) -> None:
    sizes = [len(record) for record in five.read(0, 100)]
    assert positions_of(five.read(0, 100, bytes_max=1)) == [1]
    assert positions_of(five.read(0, 100, bytes_max=sizes[0])) == [1]
    assert positions_of(five.read(0, 100, bytes_max=sizes[0] + 1)) == [1, 2]


# --- expected versions --------------------------------------------------------------------------------------------


def test_the_exact_expected_version_is_accepted(five: Log, epoch: int) -> None:
    assert five.append(epoch, [deposits(ALICE, 6, expected=5)])[0].version == 6


def test_no_stream_is_accepted_for_a_stream_that_does_not_exist(log: Log, epoch: int) -> None:
    assert log.append(epoch, [deposits(ALICE, 1, expected=NO_STREAM)])[0].version == 1


def test_any_is_accepted_whatever_the_version(five: Log, epoch: int) -> None:
    assert five.append(epoch, [deposits(ALICE, 6, expected=ANY)])[0].version == 6


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        (4, "expected version 4 of Account/alice, but the stream is at 5"),
        (6, "expected version 6 of Account/alice, but the stream is at 5"),
        (NO_STREAM, "expected no stream of Account/alice, but the stream is at 5"),
    ],
)
def test_another_expected_version_is_a_conflict_that_carries_both(
    five: Log, epoch: int, expected: int, sentence: str
) -> None:
    with pytest.raises(Conflict) as caught:
        five.append(epoch, [deposits(ALICE, 6, expected=expected)])
    assert (caught.value.expected_version, caught.value.version) == (expected, 5)
    assert str(caught.value) == sentence
    assert five.head() == 8


def test_a_version_expected_of_a_stream_that_does_not_exist_is_a_conflict(log: Log, epoch: int) -> None:
    with pytest.raises(Conflict, match="expected version 1 of Account/alice, but the stream is at 0"):
        log.append(epoch, [deposits(ALICE, 1, expected=1)])


def test_a_conflict_leaves_nothing_of_the_whole_batch(five: Log, epoch: int) -> None:
    first = deposits(BOB, 7)
    with pytest.raises(Conflict):
        five.append(epoch, [first, deposits(ALICE, 6, expected=9)])
    assert five.head() == 8
    assert five.version(BOB) == 3
    assert five.find_command(first.command_id) is None
    assert five.append(epoch, [first]) == [Appended(9, 4, tuple(five.read(8, 1)))]


# --- batches ------------------------------------------------------------------------------------------------------


def test_an_append_says_where_its_last_event_is_and_hands_out_the_records(log: Log, epoch: int) -> None:
    log.append(epoch, [deposits(BOB, 1)])
    (appended,) = log.append(epoch, [deposits(ALICE, 10, 20, 30)])
    assert (appended.position, appended.version, appended.repeated) == (4, 3, False)
    assert list(appended.records) == log.read(1, 10)


def test_a_later_append_of_a_batch_sees_the_earlier_ones(log: Log, epoch: int) -> None:
    outcomes = log.append(
        epoch,
        [
            deposits(ALICE, 1, expected=NO_STREAM),
            deposits(BOB, 2),
            deposits(ALICE, 3, 4, expected=1),
            deposits(ALICE, 5, expected=3),
        ],
    )
    assert [(one.position, one.version) for one in outcomes] == [(1, 1), (2, 1), (4, 3), (5, 4)]
    assert amounts_of(log.read_stream(ALICE)) == [1, 3, 4, 5]


def test_an_append_of_several_events_is_atomic_also_when_the_last_cannot_be_encoded(log: Log, epoch: int) -> None:
    append = deposits(ALICE, 1, 2)
    broken = append._replace(events=(*append.events, UNENCODABLE))
    with pytest.raises(InvalidMessage, match="event Deposited: its payload is object, not bytes"):
        log.append(epoch, [deposits(BOB, 1), broken])
    assert (log.head(), log.version(ALICE), log.version(BOB)) == (0, 0, 0)
    assert log.find_command(append.command_id) is None
    assert log.append(epoch, [append])[0].version == 2


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (NewEvent("", 1, b""), "event '': its name must be text of 1 to 64 characters"),
        (NewEvent("x" * 65, 1, b""), "its name must be text of 1 to 64 characters"),
        (NewEvent("E", 0, b""), "event E: its schema version is 0, not an int from 1"),
        (NewEvent("E", 1 << 70, b""), "event E: cannot be encoded"),
        (NewEvent("E", 1, b"x" * RECORD_BYTES_MAX), "event E: its payload has 2,097,152 bytes, over the 2,097,152"),
        (NewEvent("E\ud800", 1, b""), "cannot be encoded"),
        (NewEvent("E", 1, cast(Any, "text")), "event E: its payload is str, not bytes"),
    ],
)
def test_an_event_that_no_record_can_hold_is_refused_with_the_reason(
    log: Log, epoch: int, event: NewEvent, sentence: str
) -> None:
    with pytest.raises(InvalidMessage) as caught:
        log.append(epoch, [deposits(ALICE, 1)._replace(events=(event,))])
    assert sentence in str(caught.value)
    assert log.head() == 0


def test_an_empty_batch_does_nothing(log: Log, epoch: int) -> None:
    assert log.append(epoch, []) == []


def test_an_append_of_no_events_writes_nothing_and_sees_its_stream(five: Log, epoch: int) -> None:
    nothing = deposits(BOB, expected=3)._replace(snapshot=b"state", snapshot_schema=b"s")
    assert five.append(epoch, [nothing]) == [Appended(6, 3, ())]
    assert five.find_command(nothing.command_id) is None
    assert five.find_snapshot(BOB, b"s") is None
    assert five.append(epoch, [deposits(ALICE, 1), deposits(BOB)])[1] == Appended(6, 3, ())
    assert five.append(epoch, [deposits(BOB, 1, 2), deposits(ALICE, 1), deposits(BOB)])[2] == Appended(11, 5, ())
    assert five.append(five.activate(), [deposits(BOB)]) == [Appended(11, 5, ())]


def test_an_append_of_no_events_still_checks_the_expected_version(five: Log, epoch: int) -> None:
    with pytest.raises(Conflict):
        five.append(epoch, [deposits(ALICE, expected=4)])


def test_an_append_of_no_events_does_not_make_a_stream_exist(log: Log, epoch: int) -> None:
    assert log.append(epoch, [deposits(ALICE, expected=NO_STREAM)]) == [Appended(0, 0, ())]
    assert log.version(ALICE) == 0
    assert log.append(epoch, [deposits(ALICE, 1, expected=NO_STREAM)])[0].version == 1


# --- command ids --------------------------------------------------------------------------------------------------


def test_a_repeated_command_gets_the_first_receipt_and_adds_nothing(five: Log, epoch: int) -> None:
    command = deposits(ALICE, 6, 7)
    (first,) = five.append(epoch, [command])
    five.append(epoch, [deposits(ALICE, 8)])
    assert five.append(epoch, [command]) == [Appended(first.position, first.version, (), repeated=True)]
    assert five.head() == 11


def test_a_repeat_is_a_repeat_also_when_its_expected_version_is_off_by_now(five: Log, epoch: int) -> None:
    command = deposits(ALICE, 6, expected=5)
    five.append(epoch, [command])
    five.append(epoch, [deposits(ALICE, 7)])
    assert five.append(epoch, [command]) == [Appended(9, 6, (), repeated=True)]


def test_a_repeat_is_a_repeat_also_when_its_events_cannot_be_encoded(five: Log, epoch: int) -> None:
    command = deposits(ALICE, 6)
    five.append(epoch, [command])
    assert five.append(epoch, [command._replace(events=(UNENCODABLE,))]) == [Appended(9, 6, (), repeated=True)]


def test_a_repeat_among_new_commands_stops_none_of_them(five: Log, epoch: int) -> None:
    repeated, new = deposits(BOB, 1), [deposits(ALICE, amount) for amount in (1, 2)]
    first, *_ = five.append(epoch, [repeated])
    before, again, after = five.append(epoch, [new[0], repeated, new[1]])
    assert again == Appended(first.position, first.version, (), repeated=True)
    assert [(done.position, done.version, done.repeated) for done in (before, after)] == [
        (10, 6, False),
        (11, 7, False),
    ]
    assert five.head() == 11
    assert five.version(BOB) == first.version


def test_a_command_repeated_inside_one_batch_takes_effect_once(log: Log, epoch: int) -> None:
    command = deposits(ALICE, 1, expected=NO_STREAM)
    outcomes = log.append(epoch, [command, deposits(BOB, 1), command])
    assert outcomes[2] == Appended(1, 1, (), repeated=True)
    assert log.head() == 2


def test_a_repeat_may_bring_other_events_for_only_its_digest_counts(log: Log, epoch: int) -> None:
    by = command_id()
    log.append(epoch, [deposits(ALICE, 1, by=by)])
    assert log.append(epoch, [deposits(ALICE, by=by)]) == [Appended(1, 1, (), repeated=True)]


@pytest.mark.parametrize("in_one_batch", [True, False])
def test_a_command_id_with_other_content_is_refused_by_name(log: Log, epoch: int, in_one_batch: bool) -> None:
    first = deposits(ALICE, 1, by=command_id(7))
    second = deposits(BOB, 2, by=command_id(7), digest=b"another digest..")
    sentence = (
        "command id 00000000000000000000000000000007 was already used for a different command than this one to"
        " Account/bob; give each new command an id of its own"
    )
    if not in_one_batch:
        log.append(epoch, [first])
    with pytest.raises(CommandIdReused) as caught:
        log.append(epoch, [first, second] if in_one_batch else [second])
    assert str(caught.value) == sentence
    assert log.head() == (0 if in_one_batch else 1)


def test_what_is_stored_about_a_command_can_be_found(five: Log, epoch: int) -> None:
    command = deposits(ALICE, 6, 7)
    five.append(epoch, [command])
    assert five.find_command(command.command_id) == CommandEntry(DIGEST, 10, 7)
    assert five.find_command(command_id()) is None


def test_many_commands_are_found_at_once_each_with_its_entry_or_its_error(five: Log, epoch: int) -> None:
    stored = [deposits(ALICE, amount) for amount in (1, 2)]
    five.append(epoch, stored)
    found = five.find_commands([stored[0].command_id, command_id(), b"short", stored[1].command_id])
    assert found.keys() == {stored[0].command_id, b"short", stored[1].command_id}
    assert [found[command.command_id] for command in stored] == [
        CommandEntry(DIGEST, 9, 6),
        CommandEntry(DIGEST, 10, 7),
    ]
    assert isinstance(found[b"short"], InvalidId)
    assert five.find_commands([]) == {}


@pytest.mark.parametrize("ident", [b"", b"short", b"x" * 17])
def test_a_command_id_that_is_not_16_bytes_is_refused(log: Log, epoch: int, ident: bytes) -> None:
    sentence = f"command id {ident.hex()!r} has {len(ident)} bytes, not 16"
    with pytest.raises(InvalidId) as caught:
        log.append(epoch, [deposits(ALICE, 1)._replace(command_id=ident)])
    assert str(caught.value) == sentence
    with pytest.raises(InvalidId):
        log.find_command(ident)


@pytest.mark.parametrize("part", ["command_digest", "correlation_id", "causation_id"])
def test_other_ids_and_digests_of_another_length_are_refused_too(log: Log, epoch: int, part: str) -> None:
    wrong: dict[str, Any] = {part: b"short"}
    size = 20 if part == "command_digest" else 16
    with pytest.raises(InvalidId, match=f"{part.replace('_', ' ')} '73686f7274' has 5 bytes, not {size}"):
        log.append(epoch, [deposits(ALICE, 1)._replace(**wrong)])


# --- names of streams ---------------------------------------------------------------------------------------------

LOOKALIKES = [
    "a",
    "ab",
    "abc",
    "A",
    "a/b",
    "a/",
    "/a",
    "../a",
    "..",
    ".",
    "a\0",
    "a\0b",
    "\0",
    " a",
    "a ",
    unicodedata.normalize("NFC", "é"),
    unicodedata.normalize("NFD", "é"),
    "ﬁ",
    "fi",
    "\U0001f600",
    "\uffff",
    "x" * 400,
    "x" * 399 + "y",
    "é" * 200,
]


def test_streams_that_look_alike_are_kept_apart_exactly(log: Log, epoch: int) -> None:
    streams = [StreamId(kind, ident) for kind in ("A", "Aa", "a") for ident in LOOKALIKES]
    for index, stream in enumerate(streams):
        log.append(epoch, [deposits(stream, index, expected=NO_STREAM)])
    log.append(epoch, [deposits(stream, -index, expected=1) for index, stream in enumerate(streams)])
    for index, stream in enumerate(streams):
        assert log.version(stream) == 2
        assert amounts_of(log.read_stream(stream)) == [index, -index]
        assert decode_record(log.read_stream(stream, 2)[0]).stream == stream


@pytest.mark.parametrize(
    ("stream", "sentence"),
    [
        (StreamId("Account", ""), "aggregate id '' is empty"),
        (StreamId("Account", "x" * 401), "has 401 characters, over 400 bytes of UTF-8"),
        (StreamId("Account", "é" * 201), "has 402 bytes of UTF-8, over 400"),
        (StreamId("Account", "\ud800"), "is not well-formed Unicode"),
        (StreamId("Acc/ount", "a"), "aggregate type 'Acc/ount' is not an ASCII name of at most 64 characters"),
        (StreamId("", "a"), "aggregate type '' is not an ASCII name of at most 64 characters"),
    ],
)
def test_a_name_that_no_key_can_hold_is_refused_everywhere(
    log: Log, epoch: int, stream: StreamId, sentence: str
) -> None:
    for use in (
        lambda: log.append(epoch, [deposits(stream, 1)]),
        lambda: log.version(stream),
        lambda: log.read_stream(stream),
        lambda: log.find_snapshot(stream, b"s"),
    ):
        with pytest.raises(InvalidId) as caught:
            use()
        assert sentence in str(caught.value)
    assert log.head() == 0


# --- snapshots ----------------------------------------------------------------------------------------------------


@pytest.fixture
def snapped(log: Log, epoch: int) -> Log:
    """Alice has versions 1..6, snapshots at 2 and 4 of schema 1 and at 6 of schema 2."""
    for append in (
        deposits(ALICE, 1),
        snapshot_at(ALICE, b"state at 2"),
        deposits(ALICE, 1),
        snapshot_at(ALICE, b"state at 4"),
        deposits(ALICE, 1),
        snapshot_at(ALICE, b"state at 6", b"schema 2"),
        snapshot_at(BOB, b"state of bob"),
    ):
        log.append(epoch, [append])
    return log


def test_the_latest_snapshot_is_found(snapped: Log) -> None:
    assert snapped.find_snapshot(ALICE, b"schema 2") == Snapshot(6, b"state at 6")


def test_an_outdated_snapshot_is_passed_over(snapped: Log) -> None:
    assert snapped.find_snapshot(ALICE, b"schema 1") == Snapshot(4, b"state at 4")
    assert snapped.find_snapshot(ALICE, b"schema 3") is None


@pytest.mark.parametrize(
    ("at_or_before", "expected"),
    [
        (99, Snapshot(4, b"state at 4")),
        (4, Snapshot(4, b"state at 4")),
        (3, Snapshot(2, b"state at 2")),
        (2, Snapshot(2, b"state at 2")),
        (1, None),
        (0, None),
        (-1, None),
    ],
)
def test_a_snapshot_at_or_before_a_version_is_found(snapped: Log, at_or_before: int, expected: Snapshot | None) -> None:
    assert snapped.find_snapshot(ALICE, b"schema 1", at_or_before) == expected


def test_a_stream_without_snapshots_has_none_though_its_neighbours_have(snapped: Log) -> None:
    for ident in ("alic", "alice2", "aaa", "zzz", "ali"):
        assert snapped.find_snapshot(StreamId("Account", ident), b"schema 1") is None


def test_a_snapshot_stands_at_the_version_after_the_events_it_came_with(log: Log, epoch: int) -> None:
    log.append(epoch, [deposits(ALICE, 1, 2, 3)._replace(snapshot=b"s", snapshot_schema=b"x")])
    assert log.find_snapshot(ALICE, b"x") == Snapshot(3, b"s")


# --- epochs -------------------------------------------------------------------------------------------------------


def test_each_activation_raises_the_epoch(log: Log) -> None:
    assert [log.activate(), log.activate(), log.activate()] == [1, 2, 3]


def test_an_append_of_an_older_epoch_is_refused_and_stores_nothing(five: Log, epoch: int) -> None:
    later = five.activate()
    with pytest.raises(Fenced) as caught:
        five.append(epoch, [deposits(ALICE, 6)])
    assert (caught.value.epoch, caught.value.current_epoch) == (epoch, later)
    assert str(caught.value).endswith(f": epoch {epoch} may not append, epoch {later} has taken over")
    assert five.head() == 8
    assert five.append(later, [deposits(ALICE, 6)])[0].position == 9


@pytest.mark.parametrize("wrong", [0, 2, 99])
def test_an_append_of_an_epoch_that_nobody_activated_is_refused(log: Log, epoch: int, wrong: int) -> None:
    with pytest.raises(Fenced):
        log.append(wrong, [deposits(ALICE, 1)])
    assert log.head() == 0


def test_a_repeat_by_an_older_epoch_is_refused_like_any_append(five: Log, epoch: int) -> None:
    command = deposits(ALICE, 6)
    five.append(epoch, [command])
    five.activate()
    with pytest.raises(Fenced):
        five.append(epoch, [command])


# --- headers ------------------------------------------------------------------------------------------------------


def test_a_header_that_this_version_does_not_know_is_kept_and_ignored(log: Log, epoch: int) -> None:
    headers = {40: "ada", 41: {"tags": ["vip", 7]}, 42: None, 300: b"trace"}
    log.append(epoch, [deposits(ALICE, 1, 2)._replace(headers=headers), deposits(ALICE, 3)])
    stored = [decode_record(record) for record in log.read(0, 9)]
    kept = headers | {41: {"tags": ("vip", 7)}}
    assert [one.headers for one in stored] == [kept, kept, {}]
    assert amounts_of(log.read_stream(ALICE)) == [1, 2, 3]
    assert versions_of(log.read_stream(ALICE, 2)) == [2, 3]


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({"who": 1}, "'who' is not a key of a header"),
        ({-1: 1}, "-1 is not a key of a header"),
        ({True: 1}, "True is not a key of a header"),
        ({70_000: 1}, "70000 is not a key of a header"),
        ({1: object()}, "they cannot be stored"),
        ({1: [None] * 2_000}, "they cannot be stored"),
        ({1: "x" * 70_000}, "they have 70,00. bytes, over 65,536"),
    ],
)
def test_headers_that_no_record_may_carry_are_refused(log: Log, epoch: int, headers: dict[Any, Any], told: str) -> None:
    with pytest.raises(InvalidMessage, match=told):
        log.append(epoch, [deposits(ALICE, 1)._replace(headers=headers)])
    assert log.head() == 0


# --- what the log holds -------------------------------------------------------------------------------------------


def test_a_log_names_the_events_and_aggregates_that_it_holds_and_no_others(log: Log, epoch: int) -> None:
    assert log.holdings() == Holdings({}, frozenset())
    log.declare({("Deposited", 1): b"its shape", ("Withdrawn", 1): b"never appended"})
    log.append(epoch, [deposits(ALICE, 1), Append(StreamId("Till", "1"), ANY, (CLOSED,), command_id(), DIGEST)])
    shape = msgpack.packb({"at": "", "by": ""})
    held = Holdings({("Deposited", 1): b"its shape", ("Closed", 2): shape}, frozenset({"Account", "Till"}))
    assert log.holdings() == held
    log.declare({("Deposited", 1): b"another shape", ("Deposited", 2): b"the next"})
    log.append(epoch, [deposits(ALICE, 2)])
    assert log.holdings() == held, "what was stored with the first event stays"
    log.append(epoch, [deposits(ALICE, 3)._replace(events=(NewEvent("Deposited", 2, b"\x80"),))])
    assert log.holdings().events[("Deposited", 2)] == b"the next"


def test_an_append_that_is_refused_leaves_nothing_in_what_the_log_holds(log: Log, epoch: int) -> None:
    refused = deposits(BOB, 1, expected=7)._replace(events=(CLOSED,))
    with pytest.raises(Conflict):
        log.append(epoch, [deposits(ALICE, 1), refused])
    assert log.holdings() == Holdings({}, frozenset())
    log.append(epoch, [refused._replace(expected_version=ANY)])
    assert list(log.holdings().events) == [("Closed", 2)]


def test_streams_of_rayfolds_own_are_not_among_what_the_log_holds(log: Log, epoch: int) -> None:
    own = Append(StreamId("rayfold.Copies", "1"), ANY, (NewEvent("rayfold.Copied", 1, b"\x80"),), command_id(), DIGEST)
    log.append(epoch, [own, deposits(ALICE, 1)])
    assert log.holdings().aggregates == {"Account"}
    assert list(log.holdings().events) == [("Deposited", 1)]


def test_a_shape_that_is_too_large_is_refused_when_it_is_declared(log: Log) -> None:
    with pytest.raises(InvalidMessage, match="the shape of its version 3 has 2,000,000 bytes, over 1,048,576"):
        log.declare({("Deposited", 3): bytes(2_000_000)})


# --- reading it into another log ----------------------------------------------------------------------------------


def test_a_segment_has_whole_commands_and_what_another_log_needs_of_them(five: Log) -> None:
    reader = cast(SegmentReader, five)
    segment = reader.segment(0, five.head())
    assert segment is not None
    assert (segment.first, segment.last, segment.records) == (1, 8, five.read(0, 100))
    assert (len(segment.digests), segment.secret, set(segment.shapes)) == (6, five.secret(), {("Deposited", 1)})
    part = reader.segment(0, 5)
    assert part is not None
    assert part.last == 4, "event 5 is not the last one of its command"
    assert reader.segment(8, 100) is None
    assert reader.segment(part.last, part.last + 1) is None, "it has whole commands alone"
