"""Events as Arrow rows: each field as history gives it, in the type of its annotation, and nothing left out."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, assume, given, settings
from pyarrow import parquet
from pydantic import AwareDatetime, BaseModel, Field, IPvAnyAddress, NaiveDatetime, PositiveInt

from rayfold import Event, InvalidMessage, Recorded, StreamId, UnreadableEvent
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_checked
from rayfold.runtime.log.contract import NewEvent
from rayfold.runtime.read.time_travel import history
from rayfold.runtime.tables.columns import column_of
from rayfold.runtime.tables.event_tables import ClassTable, MixedTable
from rayfold.runtime.tables.plain import json_text, plain
from tests.runtime.encoding.test_roundtrips import EXAMPLES, messages
from tests.support.written import memory_log

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

ALICE = StreamId("Account", "alice")


def rows_of(message: Event) -> list[tuple[Event, Recorded]]:
    """As history gives it, of a log that has it three times, once of a version that no class can read."""
    packed, _ = encode_checked(message)
    name = message.message_name
    later = NewEvent(name, 99, packed)
    log = memory_log([("alice", NewEvent(name, 1, packed)), ("alice", later), ("alice", NewEvent(name, 1, packed))])
    return history(Catalogue(events=[type(message)]), log, 0, ALICE, unreadable="yield")


def same(value: Any, cell: Any, kind: pa.DataType) -> bool:
    """Whether a cell holds just this value."""
    if value is None or cell is None:
        return value is None and cell is None
    if isinstance(value, Enum) and not pa.types.is_string(kind):
        value = value.value
    if pa.types.is_timestamp(kind):
        own = value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
        return bool(own == (cell if kind.tz else cell.replace(tzinfo=UTC)))
    if pa.types.is_list(kind):
        items = sorted(value, key=json_text) if isinstance(value, AbstractSet) else list(value)
        return len(items) == len(cell) and all(map(same, items, cell, [kind.value_type] * len(cell)))
    if pa.types.is_map(kind):
        keys = all(same(key, one, kind.key_type) for key, (one, _) in zip(value, cell, strict=True))
        return keys and all(
            same(item, one, kind.item_type) for item, (_, one) in zip(value.values(), cell, strict=True)
        )
    if pa.types.is_struct(kind):
        get = value.get if isinstance(value, Mapping) else lambda name: getattr(value, name)
        return all(same(get(field.name), cell[field.name], field.type) for field in kind)
    if pa.types.is_string(kind):
        if isinstance(value, str | Enum | Decimal | UUID) or not isinstance(value, int | float | bytes | BaseModel):
            texts = [value.value] if isinstance(value, Enum) else [value, str(value)]
            return cell in texts or json.loads(cell) == json.loads(json_text(value))
        return bool(json.loads(cell) == json.loads(json_text(value)))
    return bool(value == cell or (value != value and cell != cell))


@given(messages(Event))
@settings(
    deadline=None, max_examples=EXAMPLES, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)
def test_what_a_table_has_is_what_history_gives_for_every_type_of_field(message: Event) -> None:
    try:
        rows = rows_of(message)
    except (InvalidMessage, UnicodeError):
        assume(False)
    table = ClassTable(type(message))
    batch = table.batch(rows)
    assert batch.schema == table.schema
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_batches([batch]), file)
    file.seek(0)
    read = parquet.read_table(file)  # what another program sees
    columns = {name: read.column(name).combine_chunks() for name in batch.schema.names}
    for number, (event, recorded) in enumerate(rows):
        assert columns["_position"][number].as_py() == recorded.position
        rest = json.loads(columns["_rest"][number].as_py() or '{"fields": {}}')
        if isinstance(event, UnreadableEvent):
            assert rest["fields"] == json.loads(json_text(event.fields))
            continue
        for name, value in event:
            cell = columns[name][number].as_py()
            if name in rest["fields"]:
                assert cell is None
                assert rest["fields"][name] == json.loads(json_text(value))
            else:
                assert same(value, cell, columns[name].type), (name, value, cell, columns[name].type)
    payloads = MixedTable().batch(rows).column("_payload").to_pylist()
    assert json.loads(payloads[0], parse_constant=pytest.fail) == plain(rows[0][0])
    assert payloads[1] is None


T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    items: tuple[T, ...] = ()


class Tree(BaseModel):
    name: str
    branches: tuple[Tree, ...] = ()


class Nothing(BaseModel):
    pass


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    LOW = 1


class Pair(NamedTuple):
    left: int
    right: str


MONEY = Annotated[Decimal, Field(max_digits=12, decimal_places=2)]
PAGE = pa.struct([("items", pa.list_(pa.int64()))])


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        (bool, pa.bool_()),
        (int, pa.int64()),
        (PositiveInt | None, pa.int64()),
        (float, pa.float64()),
        (str, pa.string()),
        (bytes, pa.binary()),
        (datetime, pa.timestamp("us", "UTC")),
        (AwareDatetime, pa.timestamp("us", "UTC")),
        (NaiveDatetime, pa.timestamp("us")),
        (date, pa.date32()),
        (timedelta, pa.duration("us")),
        (Decimal, pa.string()),
        (MONEY, pa.decimal128(38, 2)),
        (MONEY | None, pa.decimal128(38, 2)),
        (list[MONEY], pa.list_(pa.decimal128(38, 2))),
        (UUID, pa.string()),
        (Colour, pa.string()),
        (Level, pa.int64()),
        (Literal["a", "b"], pa.string()),
        (Literal[1, 2], pa.int64()),
        (Literal["a", 1], pa.string()),
        (tuple[int, ...], pa.list_(pa.int64())),
        (frozenset[str], pa.list_(pa.string())),
        (dict[str, int], pa.map_(pa.string(), pa.int64())),
        (dict[str, Page[int]], pa.map_(pa.string(), PAGE)),
        (Page[int], PAGE),
        (Pair, pa.struct([("left", pa.int64()), ("right", pa.string())])),
        (Tree, pa.struct([("name", pa.string()), ("branches", pa.list_(pa.string()))])),
        (Nothing, pa.string()),
        (tuple[int, str], pa.string()),
        (int | str, pa.string()),
        (Any, pa.string()),
    ],
)
def test_each_annotation_has_its_type(annotation: Any, expected: pa.DataType) -> None:
    assert column_of(annotation).type == expected


class Start(Enum):
    EARLY = time(6)


class Rate(Enum):
    FULL = 1.5


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (time, time(1, 2), "01:02:00"),
        (time | None, time(1, 2, 3, 4, timezone(timedelta(hours=2))), "01:02:03.000004+02:00"),
        (list[time], [time(1)], ["01:00:00"]),
        (dict[time, int], {time(1): 2}, [("01:00:00", 2)]),
        (Decimal, Decimal("1.10"), "1.10"),
        (UUID, UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (PurePosixPath, PurePosixPath("/a/b"), "/a/b"),
        (IPv4Address, IPv4Address("10.0.0.1"), "10.0.0.1"),
        (IPvAnyAddress, IPv4Address("10.0.0.1"), "10.0.0.1"),
        (Start, Start.EARLY, "06:00:00"),
        (Rate, Rate.FULL, 1.5),
        (Literal["a", None], "a", "a"),
        (Decimal | UUID, Decimal("1.10"), "1.10"),
        (Literal["a", 1], "a", '"a"'),
        (Any, time(1, 2), '"01:02:00"'),
    ],
)
def test_text_is_the_stored_form_itself_and_json_only_where_several_types_can_stand(
    annotation: Any, value: Any, expected: Any
) -> None:
    kind, make = column_of(annotation)
    assert pa.array([value if make is None else make(value)], kind).to_pylist() == [expected]


class Counted(Event):
    amount: int
    rate: MONEY = Decimal(1)
    version: int = 0


def placed(event: Event) -> tuple[Event, Recorded]:
    return event, Recorded(ALICE, 1, 0, 1, 1_700_000_000_000_000, bytes(16), b"", bytes(range(16)))


def test_a_value_that_no_column_holds_is_kept_as_text_and_its_neighbours_stay() -> None:
    events = [
        Counted(amount=1, version=7),
        Counted(amount=1 << 63),
        Counted.model_construct(amount=2, rate=Decimal("1.005")),
    ]
    batch = ClassTable(Counted).batch([placed(event) for event in events])
    assert batch.column("amount").to_pylist() == [1, None, 2]
    assert batch.column("rate").to_pylist() == [Decimal(1), Decimal(1), None]
    assert batch.column("version").to_pylist()[0] == 7, "the field, where the place is _version"
    rest = [json.loads(one) if one else None for one in batch.column("_rest").to_pylist()]
    assert rest == [
        None,
        {"why": "they do not fit amount: int64", "fields": {"amount": 1 << 63}},
        {"why": "they do not fit rate: decimal128(38, 2)", "fields": {"rate": "1.005"}},
    ]


def test_the_place_of_an_event_is_in_columns_that_no_field_can_have() -> None:
    [row] = ClassTable(Counted).batch([placed(Counted(amount=1))]).to_pylist()
    assert {name: value for name, value in row.items() if name.startswith("_")} == {
        "_partition": 0,
        "_position": 1,
        "_stream": "Account/alice",
        "_aggregate_id": "alice",
        "_version": 1,
        "_event": "Counted",
        "_recorded_at": datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
        "_command_id": str(UUID(int=0)),
        "_correlation_id": None,
        "_causation_id": str(UUID(bytes=bytes(range(16)))),
        "_rest": None,
    }
