"""The codec: what goes in comes back equal, bytes are the same everywhere, and bombs are refused before they go off."""

from __future__ import annotations

import enum
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from functools import cached_property
from ipaddress import IPv4Address
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PlainSerializer, PositiveInt, SecretStr, computed_field

from rayfold.runtime.domain.messages import Command, Event, Message
from rayfold.runtime.encoding.codec import (
    DEPTH_MAX,
    ITEMS_MAX,
    MESSAGE_BYTES_MAX,
    decode_message,
    decode_payload,
    encode_message,
)
from rayfold.runtime.errors import InvalidMessage
from tests.bank import Close, Deposit, Deposited

ROOT = Path(__file__).parents[3]


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


class Size(enum.IntEnum):
    SMALL = 1


class Shape(enum.StrEnum):
    ROUND = "round"


class Point(BaseModel):
    model_config = ConfigDict(frozen=True, serialize_by_alias=True)
    x: int = Field(alias="X")
    when: datetime | None = None


@dataclass(frozen=True)
class Pair:
    left: Decimal
    right: frozenset[int]


class Scalars(Event):
    number: int
    real: float
    text: str | None
    flag: bool
    raw: bytes
    kind: Literal["a", 1]
    limited: Annotated[str, Field(max_length=10)]
    nothing: None = None


class Plain(Event):
    at: datetime
    day: date
    clock: time
    span: timedelta
    price: Decimal
    key: UUID
    colour: Colour
    size: Size
    shape: Shape
    address: IPv4Address
    tags: frozenset[str]
    numbers: set[int]
    pairs: tuple[tuple[str, Decimal], ...]
    many: list[date]
    by_day: dict[date, list[int]]
    by_pair: Mapping[tuple[str, int], UUID]
    sequence: Sequence[int]


class Nested(Event):
    point: Point
    points: tuple[Point, ...]
    pair: Pair
    path: Path
    price: Annotated[Decimal, PlainSerializer(str)]


UTC_PLUS_2 = timezone(timedelta(hours=2))

scalars = st.builds(
    Scalars,
    number=st.integers(-(2**63), 2**64 - 1),
    real=st.floats(allow_nan=False, allow_infinity=False),
    text=st.none() | st.text(),
    flag=st.booleans(),
    raw=st.binary(),
    kind=st.sampled_from(["a", 1]),
    limited=st.text(max_size=10),
)
clocks = st.times(timezones=st.sampled_from([None, UTC, UTC_PLUS_2]))
plains = st.builds(
    Plain,
    at=st.datetimes(timezones=st.sampled_from([None, UTC, UTC_PLUS_2])).map(lambda at: at.replace(fold=0)),
    day=st.dates(),
    clock=clocks.map(lambda clock: clock.replace(fold=0)),
    span=st.timedeltas(),
    price=st.decimals(allow_nan=False, allow_infinity=False),
    key=st.uuids(),
    colour=st.sampled_from(Colour),
    size=st.sampled_from(Size),
    shape=st.sampled_from(Shape),
    address=st.ip_addresses(v=4),
    tags=st.frozensets(st.text()),
    numbers=st.sets(st.integers(-(2**63), 2**64 - 1)),
    pairs=st.lists(st.tuples(st.text(), st.decimals(allow_nan=False, allow_infinity=False))).map(tuple),
    many=st.lists(st.dates()),
    by_day=st.dictionaries(st.dates(), st.lists(st.integers(0, 9))),
    by_pair=st.dictionaries(st.tuples(st.text(), st.integers(0, 9)), st.uuids()),
    sequence=st.lists(st.integers(0, 9)).map(tuple),
)
points = st.builds(Point, X=st.integers(0, 9), when=st.none() | st.datetimes())
nesteds = st.builds(
    Nested,
    point=points,
    points=st.lists(points, max_size=3).map(tuple),
    pair=st.builds(
        Pair, left=st.decimals(allow_nan=False, allow_infinity=False), right=st.frozensets(st.integers(0, 9))
    ),
    path=st.sampled_from([Path("a/b"), Path("/")]),
    price=st.decimals(allow_nan=False, allow_infinity=False),
)


@given(message=st.one_of(scalars, plains, nesteds))
def test_a_message_comes_back_equal(message: Message) -> None:
    packed = encode_message(message)
    back = decode_message(type(message), packed)
    assert back == message
    assert {name: type(value) for name, value in back} == {name: type(value) for name, value in message}
    assert encode_message(back) == packed


def test_each_kind_of_class_is_packed_in_its_own_way() -> None:
    ways = [Scalars.packing, Plain.packing, Nested.packing]
    for cls in (Scalars, Plain, Nested):
        with pytest.raises(InvalidMessage):
            encode_message(cls.model_construct(number=object(), at=object(), point=object()))
    assert [Scalars.packing, Plain.packing, Nested.packing] == [1, 2, 3], ways


def test_a_message_is_a_msgpack_map_of_its_fields() -> None:
    assert encode_message(Deposited(amount=5)) == b"\x82\xa6amount\x05\xa8currency\xa3EUR"
    assert encode_message(Close()) == b"\x80"
    assert decode_message(Close, b"\x80") == Close()


def test_the_bytes_are_the_same_in_whatever_order_the_fields_are_given() -> None:
    packed = encode_message(Deposited(amount=5, currency="EUR"))
    assert encode_message(Deposited(currency="EUR", amount=5)) == packed
    assert encode_message(Deposited(amount=5)) == packed
    assert encode_message(Deposited(amount=4).model_copy(update={"amount": 5})) == packed


@pytest.mark.slow
def test_the_bytes_are_the_same_whatever_the_hash_seed() -> None:
    script = (
        "from rayfold.runtime.encoding.codec import encode_message\n"
        "from rayfold.runtime.domain.messages import Event\n"
        "class Tagged(Event):\n"
        "    tags: frozenset[str]\n"
        "    pairs: frozenset[tuple[str, int | None]]\n"
        "tags = frozenset('abcdefghij')\n"
        "print(encode_message(Tagged(tags=tags, pairs=frozenset((t, None) for t in tags))).hex())\n"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(seen) == 1


def test_fields_are_stored_under_their_names_whatever_their_aliases() -> None:
    class Aliased(Event):
        amount: int = Field(alias="Amount")
        note: str = Field(default="", validation_alias=AliasChoices("n", "remark"), serialization_alias="NOTE")

    message = Aliased(Amount=5, n="x")  # type: ignore[call-arg]
    assert encode_message(message) == msgpack.packb({"amount": 5, "note": "x"})
    assert decode_message(Aliased, encode_message(message)) == message


def test_what_is_computed_from_the_fields_is_not_stored() -> None:
    class Rectangle(Event):
        width: int
        height: int

        @computed_field  # type: ignore[prop-decorator]
        @property
        def area(self) -> int:
            return self.width * self.height

        @cached_property
        def perimeter(self) -> int:
            return 2 * (self.width + self.height)

    rectangle = Rectangle(width=2, height=3)
    assert (rectangle.area, rectangle.perimeter) == (6, 10)
    assert encode_message(rectangle) == msgpack.packb({"width": 2, "height": 3})


def test_a_serializer_of_the_users_own_is_used() -> None:
    class Priced(Event):
        cents: Annotated[int, PlainSerializer(lambda cents: cents / 100)]

    assert encode_message(Priced(cents=250)) == msgpack.packb({"cents": 2.5})


# What cannot be packed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**5000], ids=["2**64", "-2**63-1", "10**5000"])
def test_an_integer_beyond_64_bits_is_refused_by_field(number: int) -> None:
    class Counted(Event):
        count: int

    with pytest.raises(InvalidMessage) as caught:
        encode_message(Counted.model_construct(count=number))
    assert str(caught.value).startswith("Counted: count is ")
    assert str(caught.value).endswith(": it does not fit 64 bits; store it as text")
    assert len(str(caught.value)) < 200


def test_an_integer_beyond_64_bits_inside_a_container_is_refused_by_field() -> None:
    class Counted(Event):
        ok: int
        counts: tuple[int, ...]

    with pytest.raises(
        InvalidMessage, match=r"Counted: counts is \(1, 18446744073709551616\): it does not fit 64 bits"
    ):
        encode_message(Counted(ok=1, counts=(1, 2**64)))


def test_text_that_is_not_well_formed_is_refused_by_field() -> None:
    class Noted(Event):
        note: str

    with pytest.raises(InvalidMessage) as caught:
        encode_message(Noted.model_construct(note="a\udc80"))
    assert str(caught.value) == r"Noted: note is 'a\udc80': it is not well-formed Unicode"


@pytest.mark.parametrize("value", ["text", 7])
def test_what_a_serializer_raises_is_told_and_not_taken_for_a_wrong_value(value: object) -> None:
    def written(value: object) -> object:
        raise ValueError("the till is closed")

    class Noted(Event):
        note: Annotated[Any, PlainSerializer(written)]

    with pytest.raises(InvalidMessage, match=r"Noted: note is ('text'|7): .*ValueError: the till is closed"):
        encode_message(Noted(note=value))


def test_a_value_that_nobody_can_store_is_refused_by_field() -> None:
    class Odd(Event):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        ok: int
        thing: Any

    class Secret(Event):
        password: SecretStr

    with pytest.raises(InvalidMessage, match="Odd: thing is <object object at .*>: .*object.*"):
        encode_message(Odd(ok=1, thing=object()))
    with pytest.raises(InvalidMessage, match=r"Secret: password is .*\*\*\*.*: SecretStr cannot be stored"):
        encode_message(Secret(password=SecretStr("hush")))


def test_the_packer_is_as_good_as_new_after_a_failure() -> None:
    with pytest.raises(InvalidMessage):
        encode_message(Deposit.model_construct(amount=object()))
    assert encode_message(Deposit(amount=1)) == b"\x81\xa6amount\x01"


def test_a_message_over_the_limit_is_refused_in_both_directions() -> None:
    class Bulky(Event):
        data: bytes

    assert encode_message(Bulky(data=b"x" * (MESSAGE_BYTES_MAX - 100)))
    with pytest.raises(InvalidMessage) as caught:
        encode_message(Bulky(data=b"x" * MESSAGE_BYTES_MAX))
    assert str(caught.value) == (
        "Bulky: it has 1,048,587 bytes, over 1,048,576; keep large things elsewhere and send their address"
    )
    with pytest.raises(InvalidMessage, match="Deposit: it has 1,048,577 bytes, over 1,048,576"):
        decode_message(Deposit, b"\x00" * (MESSAGE_BYTES_MAX + 1))


# What cannot be unpacked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        ({"amount": -5}, "Deposit: amount is -5: input should be greater than 0"),
        ({}, "Deposit: amount is missing"),
        (
            {"amuont": 5},
            "Deposit: amount is missing, amuont is not a field of it, did you mean amount?; its fields are amount",
        ),
        ({"amount": "x" * 100}, f"Deposit: amount is '{'x' * 56}...: input should be a valid integer"),
        (
            {"amount": 1, "a": 1, "b": 2, "c": 3, "d": 4},
            "Deposit: a is not a field of it, b is not a field of it, c is not a field of it, and 1 more;"
            " its fields are amount",
        ),
        ({"amount": math.nan}, "Deposit: amount is nan: input should be a finite number"),
    ],
)
def test_a_payload_that_does_not_fit_the_class_says_what_would(payload: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_message(Deposit, msgpack.packb(payload))
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize(
    "data", [b"", b"\x81", b"\xc1", b"\x80\x80", b"\x05", b"\x90", b"\xc0", b"\xa1x", b"\x81\xa1\xff\x00"]
)
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidMessage, match="Deposit: its bytes "):
        decode_message(Deposit, data)


def test_a_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="Deposit: "):
        decode_message(Deposit, msgpack.packb({1: 2, b"x": 3, "amount": 1}))


@given(data=st.binary(max_size=200))
def test_no_bytes_raise_anything_but_invalid_message(data: bytes) -> None:
    for cls in (Deposit, Scalars, Plain, Nested):
        try:
            decode_message(cls, data)
        except InvalidMessage:
            continue
        assert cls is Deposit


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdf\xff\xff\xff\xff",  # a map of 4 billion items by its head
        b"\xdd\xff\xff\xff\xff",  # a list of as many
        b"\xdb\xff\xff\xff\xff",  # a string of 4 GiB
        b"\xc6\xff\xff\xff\xff",  # bytes of 4 GiB
        b"\x81\xa1x\xdd" + (ITEMS_MAX + 1).to_bytes(4, "big") + b"\x80" * (ITEMS_MAX + 1),
        b"\x81\xa1x\xc7\x01\x05x",  # an extension type
        b"\x81\xa1x\xd6\xff\x00\x00\x00\x00",  # a timestamp
    ],
)
def test_a_bomb_is_refused_before_it_goes_off(bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(InvalidMessage):
            decode_payload(bomb)
        assert tracemalloc.get_traced_memory()[1] < 4 * MESSAGE_BYTES_MAX
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_the_worst_message_that_is_decoded_stays_within_its_bound() -> None:
    lists = (b"\xdd" + (100_000).to_bytes(4, "big") + b"\x80" * 100_000) * 10
    worst = b"\x81\xa1x\x9a" + lists
    assert len(worst) < MESSAGE_BYTES_MAX
    inner = decode_payload(worst)["x"]
    size_bytes = sum(sys.getsizeof(maps) + sum(map(sys.getsizeof, maps)) for maps in inner)
    assert 60_000_000 < size_bytes < 80_000_000


def nested(levels: int) -> bytes:
    """A message of one field, whose value is a list in a list, `levels` deep in all."""
    return b"\x81\xa5thing" + b"\x91" * (levels - 1) + b"\x05"


def test_a_message_nested_too_deep_is_refused_in_both_directions() -> None:
    class Anything(Event):
        thing: Any

    assert decode_message(Anything, nested(DEPTH_MAX))
    for levels in (DEPTH_MAX + 1, 500, 5_000, 500_000):
        with pytest.raises(InvalidMessage, match="nested over 64 levels deep|its bytes are not a message"):
            decode_message(Anything, nested(levels))
    deep: Any = 5
    for _ in range(DEPTH_MAX):
        deep = [deep]
    with pytest.raises(InvalidMessage, match="Anything: it is nested over 64 levels deep"):
        encode_message(Anything(thing=deep))
    assert encode_message(Anything(thing=deep[0]))


def test_messages_packed_by_several_threads_at_once_are_packed_right() -> None:
    class Dated(Event):
        number: int
        days: tuple[date, ...]

    def wrong(start: int) -> list[int]:
        days = (date(2024, 1, 1), date(2024, 1, 2))
        return [
            number
            for number in range(start, start + 2_000)
            if decode_message(Deposit, encode_message(Deposit(amount=number))).amount != number
            or decode_message(Dated, encode_message(Dated(number=number, days=days))).number != number
        ]

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(wrong, (1, 10_001, 20_001, 30_001))) == [[], [], [], []]
    finally:
        sys.setswitchinterval(interval_s)


def test_positive_int_and_friends_are_packed_as_plain_scalars() -> None:
    class Limited(Command):
        a: PositiveInt
        b: Annotated[str, Field(min_length=1, pattern="x")]
        c: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    encode_message(Limited(a=1, b="x", c=0))
    assert Limited.packing == 1
