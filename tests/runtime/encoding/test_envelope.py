"""Envelopes: ids that grow with time, ids computed from keys, digests, and batches of packed commands."""

from __future__ import annotations

import subprocess
import sys
import time
from enum import Enum, IntEnum, StrEnum
from typing import Any
from uuid import RFC_4122, UUID

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rayfold.runtime.domain.messages import Command
from rayfold.runtime.encoding.codec import MESSAGE_BYTES_MAX
from rayfold.runtime.encoding.envelope import (
    Envelope,
    PackedCommand,
    derived_id,
    join,
    new_command_id,
    pack,
    unpack_batch,
)
from rayfold.runtime.errors import InvalidId, InvalidMessage
from rayfold.runtime.stream import ANY, NO_STREAM, StreamId
from tests.bank import Account, Deposit, Deposited, Open, Vault

TEN = Deposit(amount=10)
ID = UUID(int=1)


# Command ids ---------------------------------------------------------------------------------------------------


def test_a_new_id_is_a_uuid_of_version_7_with_the_time_in_front() -> None:
    before_ms = time.time_ns() // 1_000_000
    made = UUID(bytes=new_command_id())
    after_ms = time.time_ns() // 1_000_000
    assert (made.version, made.variant) == (7, RFC_4122)
    assert before_ms <= made.int >> 80 <= after_ms


def test_the_time_below_a_millisecond_is_in_the_id_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for now_ns, prefix in [
        (0, "000000000000-7000"),
        (999_999, "000000000000-7fff"),
        (1_000_000, "000000000001-7000"),
        (1_500_000, "000000000001-7800"),
        (1_700_000_000_000_000_000, "018bcfe56800-7000"),
    ]:
        monkeypatch.setattr(time, "time_ns", lambda now_ns=now_ns: now_ns)
        text = str(UUID(bytes=new_command_id()))
        assert f"{text[:8]}{text[9:13]}-{text[14:18]}" == prefix


def test_ids_sort_as_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_ns = iter(range(10**18, 10**18 + 300_000, 300))
    monkeypatch.setattr(time, "time_ns", lambda: next(clock_ns))
    ids = [new_command_id() for _ in range(1_000)]
    assert ids == sorted(ids)


def test_ids_of_the_same_instant_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    assert len({new_command_id() for _ in range(10_000)}) == 10_000


def test_a_derived_id_is_the_same_for_ever() -> None:
    assert derived_id("payment", 42) == UUID("e054ac59-61dc-875e-876a-d9770175b1fc")
    assert derived_id(b"\x00\xff", UUID(int=7), "ä", -1) == UUID("71be5ebf-5da5-83c0-a86b-525404c8af73")


@pytest.mark.slow
def test_a_derived_id_is_the_same_in_another_process() -> None:
    code = "from rayfold.runtime.encoding.envelope import derived_id; print(derived_id('payment', 42))"
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONHASHSEED": "5"},
    )
    assert told.stdout.strip() == str(derived_id("payment", 42))


def test_a_derived_id_is_a_uuid_of_version_8() -> None:
    for number in range(100):
        made = derived_id(number)
        assert (made.version, made.variant) == (8, RFC_4122)


def test_a_derived_id_tells_types_and_boundaries_of_its_parts_apart() -> None:
    parts: list[tuple[Any, ...]] = [
        ("1",), (1,), (b"1",), ("1", ""), ("", "1"), ("12",), ("1", "2"), (1, 2), (12,), (UUID(int=1),),
        (str(UUID(int=1)),), (-1,), ("int:1:1",),
    ]  # fmt: skip
    assert len({derived_id(*each) for each in parts}) == len(parts)


class Colour(StrEnum):
    RED = "red"


class OldColour(str, Enum):  # noqa: UP042 - the older way is what is tried
    RED = "red"


class Level(IntEnum):
    HIGH = 3


def test_a_part_that_is_an_enum_counts_as_its_value() -> None:
    assert derived_id(Colour.RED) == derived_id(OldColour.RED) == derived_id("red")
    assert derived_id(Level.HIGH) == derived_id(3)


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((), "derived id '' needs at least one part"),
        ((1.5,), "part of a derived id '1.5' is float, not str, int, bytes or UUID"),
        ((True,), "part of a derived id 'True' is bool, not str, int, bytes or UUID"),
        ((None,), "part of a derived id 'None' is NoneType, not str, int, bytes or UUID"),
        (("\ud800",), "part of a derived id 'str' is not well-formed Unicode"),
        ((10**5_000,), "part of a derived id 'int' has over 4,300 digits"),
    ],
)
def test_what_cannot_be_part_of_a_derived_id_is_said(parts: tuple[Any, ...], text: str) -> None:
    with pytest.raises(InvalidId) as raised:
        derived_id(*parts)
    assert str(raised.value) == text


# Packing -------------------------------------------------------------------------------------------------------


def test_what_is_packed_is_unpacked_in_order() -> None:
    envelopes = [
        Envelope(Account, "alice", TEN, ID, 3, UUID(int=2), UUID(int=3)),
        Envelope(Account, "Zoë/../\0", Open(owner="x" * 60_000), UUID(int=4), NO_STREAM),
        Envelope(Vault, "ä" * 200, TEN),
    ]
    packed = [pack(envelope) for envelope in envelopes]
    arrived = list(unpack_batch(join(blob for _, blob in packed)))
    assert arrived == [command for command, _ in packed]
    assert arrived[0] == PackedCommand(
        ID.bytes,
        StreamId("Account", "alice"),
        "Deposit",
        b"\x81\xa6amount\x0a",
        3,
        UUID(int=2).bytes,
        UUID(int=3).bytes,
    )
    assert isinstance(arrived[0].stream, StreamId)
    assert arrived[2].expected_version == ANY
    assert UUID(bytes=arrived[2].command_id).version == 7
    assert (arrived[2].correlation_id, arrived[2].causation_id) == (b"", b"")


def test_an_empty_batch_holds_no_commands() -> None:
    assert list(unpack_batch(b"")) == []


class Large(Command):
    model_config = {"str_max_length": 2_000_000}
    text: str


def test_the_largest_command_fits() -> None:
    command, blob = pack(Envelope(Account, "i" * 400, Large(text="x" * (MESSAGE_BYTES_MAX - 11)), ID))
    assert len(command.payload) == MESSAGE_BYTES_MAX
    assert list(unpack_batch(blob + blob)) == [command, command]


NO_UUID = "not uuid.UUID; derived_id() makes one from a key"
NO_VERSION = "is not a version; give ANY, NO_STREAM or a number from 1"
NO_CLASS = "is not an Aggregate class; give the class itself"
TOO_LARGE = Large(text="x" * MESSAGE_BYTES_MAX)


def envelope(*fields: Any) -> Envelope:
    """One whose types a checker would not let pass."""
    return Envelope(*fields)


@pytest.mark.parametrize(
    ("envelope", "kind", "text"),
    [
        (envelope(Account, "a", TEN, "x"), InvalidId, f"command id 'x' is str, {NO_UUID}"),
        (envelope(Account, "a", TEN, ID, ANY, 5), InvalidId, f"correlation id '5' is int, {NO_UUID}"),
        (envelope(Account, "a", TEN, ID, ANY, None, 1.5), InvalidId, f"causation id '1.5' is float, {NO_UUID}"),
        (envelope(Account, "", TEN), InvalidId, "aggregate id '' is empty"),
        (envelope(Account, "a", TEN, ID, -2), InvalidMessage, f"expected_version: -2 {NO_VERSION}"),
        (envelope(Account, "a", TEN, ID, True), InvalidMessage, f"expected_version: True {NO_VERSION}"),
        (
            envelope(Account, "a", TEN, ID, 1 << 63),
            InvalidMessage,
            f"expected_version: {1 << 63} {NO_VERSION}",
        ),
        (
            envelope(Account, "a", Deposited(amount=1)),
            InvalidMessage,
            "Deposited: is not a Command: it is an Event; events are returned by the @decide method of a command",
        ),
        (envelope(Account(), "a", TEN), InvalidMessage, f"Account: {NO_CLASS}"),
        (envelope("Account", "a", TEN), InvalidMessage, f"str: {NO_CLASS}"),
        (
            envelope(Account, "a", TOO_LARGE),
            InvalidMessage,
            "Large: it has 1,048,587 bytes, over 1,048,576; keep large things elsewhere and send their address",
        ),
    ],
    ids=range(11),
)
def test_an_envelope_that_cannot_be_sent_is_refused_before_it_is(
    envelope: Envelope, kind: type[Exception], text: str
) -> None:
    with pytest.raises(kind) as raised:
        pack(envelope)
    assert str(raised.value) == text


# Digests -------------------------------------------------------------------------------------------------------

BASE = pack(Envelope(Account, "alice", TEN, ID))[0]._replace(content=b"")


SECRET = bytes(range(32))


def test_a_digest_is_the_same_permanently() -> None:
    assert BASE.digest(SECRET).hex() == "c4c3336ee75f2b7f8e49b101fa8b0c79e3127d25"
    assert BASE.old_digest(BASE.payload).hex() == "42340fac924a70d9ddf503d5d4201c5a", "as formats 1 and 2 stored it"


def test_a_digest_cannot_be_found_out_without_the_secret_of_the_log() -> None:
    assert len({BASE.digest(secret) for secret in (SECRET, bytes(32), b"")} | {BASE.old_digest(BASE.payload)}) == 4


def test_a_digest_is_over_stream_name_and_content_and_nothing_else() -> None:
    other = BASE._replace(command_id=bytes(16), expected_version=9, correlation_id=b"c" * 16, causation_id=b"d" * 16)
    assert other.digest(SECRET) == BASE.digest(SECRET)
    assert BASE._replace(decisive=True).digest(SECRET) == BASE.digest(SECRET)
    different = [
        BASE._replace(stream=StreamId("Account", "Alice")),
        BASE._replace(stream=StreamId("Vault", "alice")),
        BASE._replace(name="deposit"),
        BASE._replace(payload=BASE.payload[:-1] + b"\x0b"),
    ]
    assert len({command.digest(SECRET) for command in [BASE, *different]}) == 5


def test_a_digest_keeps_its_parts_apart() -> None:
    def digest(type_name: str, ident: str, name: str, payload: bytes) -> bytes:
        return BASE._replace(stream=StreamId(type_name, ident), name=name, payload=payload).digest(SECRET)

    same_joined = [("AB", "c", "D", b"e"), ("A", "Bc", "D", b"e"), ("AB", "cD", "", b"e"), ("AB", "c", "De", b"")]
    assert len({digest(*parts) for parts in same_joined}) == 4


# Hostile batches -----------------------------------------------------------------------------------------------

GOOD = pack(Envelope(Account, "alice", TEN, ID))[1]


def packed_with(**changes: Any) -> bytes:
    packed: bytes = msgpack.packb(tuple((BASE._asdict() | changes).values()))
    return packed


@pytest.mark.parametrize(
    ("blob", "at_byte", "what"),
    [
        (GOOD + GOOD[:-1], len(GOOD), f"the last of {2 * len(GOOD) - 1} is missing something"),
        (GOOD + b"\xc1", len(GOOD), "FormatError"),
        (b"\xc1", 0, "FormatError"),
        (b"\x05", 0, "cannot unpack non-iterable int object"),
        (b"\x92\x01\x02", 0, "not enough values to unpack (expected 9, got 2)"),
        (b"\x90", 0, "not enough values to unpack (expected 9, got 0)"),
        (b"\x9a" + b"\x01" * 10, 0, "10 exceeds max_array_len(9)"),
        (b"\xdd\xff\xff\xff\xff", 0, "4294967295 exceeds max_array_len(9)"),
        (b"\xc6\x00\x10\x00\x01" + bytes(0x100001), 0, "1048577 exceeds max_bin_len(1048576)"),
        (b"\xda\x01\x91" + b"x" * 401, 0, "401 exceeds max_str_len(400)"),
        (b"\xdf\xff\xff\xff\xff", 0, "4294967295 exceeds max_map_len(0)"),
        (b"\xd4\x05\x00", 0, "2 exceeds max_ext_len(0)"),
        (b"\x91" * 100_000, 0, "StackError"),
        (packed_with(command_id="text"), 0, "a field is of the wrong type"),
        (packed_with(stream=("Account", b"alice")), 0, "a field is of the wrong type"),
        (packed_with(stream=(5, "alice")), 0, "a field is of the wrong type"),
        (packed_with(name=b"Deposit"), 0, "a field is of the wrong type"),
        (packed_with(payload={}), 0, "a field is of the wrong type"),
        (packed_with(expected_version=True), 0, "a field is of the wrong type"),
        (packed_with(expected_version=1.5), 0, "a field is of the wrong type"),
        (packed_with(correlation_id=None), 0, "a field is of the wrong type"),
        (packed_with(content="text"), 0, "a field is of the wrong type"),
        (packed_with(decisive=1), 0, "a field is of the wrong type"),
        (packed_with(stream=("T" * 65, "alice")), 0, "an aggregate type has 65 characters, over 64"),
    ],
    ids=range(24),
)
def test_bytes_that_are_no_batch_are_refused_with_the_place(blob: bytes, at_byte: int, what: str) -> None:
    with pytest.raises(InvalidMessage) as raised:
        list(unpack_batch(blob))
    assert str(raised.value) == f"batch of commands: from byte {at_byte} on it holds no packed command: {what}"


@given(blob=st.binary(max_size=200) | st.binary(max_size=40).map(lambda tail: GOOD + tail))
@example(blob=GOOD + b"\x99" + GOOD[1:])
def test_any_bytes_are_a_batch_whose_digests_can_be_taken_or_refused(blob: bytes) -> None:
    try:
        commands = list(unpack_batch(blob))
    except InvalidMessage:
        return
    assert all(len(command.digest(SECRET)) == 20 for command in commands)
    assert join(msgpack.packb(command) for command in commands) == blob or blob != join([GOOD] * len(commands))
