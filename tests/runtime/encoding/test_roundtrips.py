"""Whatever is acknowledged is read back as it was, by every reader; what cannot be is refused by name.

Message classes are generated: fields of every type that has a stored form, nested, in unions, with constraints and
validators, with odd keys, and values of every size. `RAYFOLD_ROUNDTRIPS=2000` tries more examples than the 60 of an
ordinary run.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.domain.projection import Projection, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import DEPTH_MAX, ITEMS_MAX, decode_message
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.encoding.sameness import difference
from rayfold.runtime.errors import HandlerFailed, InvalidMessage
from rayfold.runtime.feed.event_filter import EventFilter
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.time_travel import history
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId
from rayfold.runtime.write.write_loop import WriteLoop

# A thread that another test of this process has left, as one of Ray, may use `random` meanwhile, which counts as ours.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

EXAMPLES = int(os.environ.get("RAYFOLD_ROUNDTRIPS", "60"))


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Point(BaseModel):
    x: int
    label: str | None = None


class Marked(Point):
    mark: str = "m"


@dataclasses.dataclass
class Pair:
    left: int
    right: Decimal = Decimal("1.0")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    at: datetime
    seats: tuple[int, ...] = ()


class Leaf(NamedTuple):
    """An annotation, and values that a maker may put there, right ones and nearly right ones."""

    annotation: Any
    values: st.SearchStrategy[Any]


ZONES: Any = st.sampled_from(
    [None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(timedelta(minutes=19, seconds=32))]
)
LOCAL: Any = st.sampled_from([ZoneInfo("Europe/Amsterdam"), ZoneInfo("America/New_York"), None])
TEXT = st.text(max_size=8) | st.sampled_from(
    ["2026-01-01", "1.50", "red", str(UUID(int=7)), "P1D", "\ud800", "x" * 300]
)
WHOLE = st.integers(-5, 5) | st.integers() | st.sampled_from([1 << 63, -(1 << 63) - 1, (1 << 64) - 1])
TIMES = st.datetimes(timezones=ZONES) | st.datetimes(min_value=datetime(1900, 1, 1), timezones=LOCAL)

LEAVES = [
    Leaf(int, WHOLE | st.booleans()),
    Leaf(str, TEXT),
    Leaf(bytes, st.binary(max_size=8)),
    Leaf(float, st.floats() | st.sampled_from([0.0, -0.0])),
    Leaf(bool, st.booleans()),
    Leaf(Decimal, st.decimals() | st.sampled_from([Decimal("1.00"), Decimal("-0"), Decimal("1E+3")])),
    Leaf(datetime, TIMES),
    Leaf(date, st.dates()),
    Leaf(time, st.times(timezones=ZONES)),
    Leaf(timedelta, st.timedeltas()),
    Leaf(UUID, st.uuids()),
    Leaf(Colour, st.sampled_from(Colour)),
    Leaf(Level, st.sampled_from(Level)),
    Leaf(Literal["a", 1], st.sampled_from(["a", 1])),
    Leaf(ipaddress.IPv4Address, st.ip_addresses(v=4)),
    Leaf(pathlib.PurePosixPath, st.sampled_from([pathlib.PurePosixPath("/a"), pathlib.PurePosixPath("b/c")])),
    Leaf(Point, st.builds(Point, x=st.integers(0, 9)) | st.builds(Marked, x=st.integers(0, 9), mark=TEXT)),
    Leaf(Pair, st.builds(Pair, left=st.integers(0, 9), right=st.decimals(allow_nan=False))),
    Leaf(Strict, st.builds(Strict, at=TIMES)),
    Leaf(Annotated[int, Field(ge=0, lt=100)], WHOLE),
    Leaf(Annotated[int, AfterValidator(lambda value: value + 1)], st.integers(0, 9)),
    Leaf(Annotated[str, BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value)], TEXT),
    Leaf(
        Any,
        st.recursive(
            st.none() | st.booleans() | WHOLE | TEXT | st.floats() | st.decimals() | TIMES,
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.tuples(inner)
                | st.dictionaries(TEXT | st.integers(0, 3), inner, max_size=3)
                | st.frozensets(st.integers(0, 5), max_size=3)
            ),
            max_leaves=6,
        )
        | st.builds(Point, x=st.integers(0, 9)),
    ),
]
KEYS = LEAVES[:3] + LEAVES[5:7] + LEAVES[10:12]


@st.composite
def leaves(draw: st.DrawFn, depth: int = 2) -> Leaf:
    """A leaf, or something built of leaves."""
    leaf: Leaf = draw(st.sampled_from(LEAVES))
    kind = draw(
        st.sampled_from(["leaf"] * 3 + ["list", "tuple", "dict", "set", "sequence", "mapping", "union", "none"])
    )
    if depth == 0 or kind == "leaf":
        return leaf
    inner = draw(leaves(depth - 1))
    many = st.lists(inner.values, max_size=3)
    if kind == "list":
        return Leaf(list[inner.annotation], many)  # type: ignore[name-defined]
    if kind == "tuple":
        return Leaf(tuple[inner.annotation, ...], many.map(tuple))  # type: ignore[name-defined]
    if kind == "sequence":
        return Leaf(Sequence[inner.annotation], many | many.map(tuple))  # type: ignore[name-defined]
    if kind == "none":
        return Leaf(inner.annotation | None, inner.values | st.none())
    if kind == "union":
        return Leaf(leaf.annotation | inner.annotation, leaf.values | inner.values)
    key = draw(st.sampled_from(KEYS))
    if kind == "set":
        return Leaf(
            draw(st.sampled_from([set[key.annotation], frozenset[key.annotation]])),  # type: ignore[name-defined]
            st.sets(key.values, max_size=3) | st.frozensets(key.values, max_size=3),
        )
    pairs = st.dictionaries(key.values, inner.values, max_size=3)
    whole = dict[key.annotation, inner.annotation] if kind == "dict" else Mapping[key.annotation, inner.annotation]  # type: ignore[name-defined]
    return Leaf(whole, pairs)


@st.composite
def messages(draw: st.DrawFn, base: type[Any]) -> Any:
    """A message of a class that is made here: by its constructor, or past its validation."""
    fields = [draw(leaves()) for _ in range(draw(st.integers(1, 3)))]
    names = [f"field_{number}" for number in range(len(fields))]
    annotations = dict(zip(names, (leaf.annotation for leaf in fields), strict=True))
    try:
        cls: Any = type("Made", (base,), {"__annotations__": annotations, "__module__": __name__})
        values = {name: draw(leaf.values) for name, leaf in zip(names, fields, strict=True)}
        if draw(st.integers(0, 4)) == 0:
            return cls.model_construct(**values)
        return cls(**values)
    except (ValidationError, TypeError, UnicodeError):  # a value that no maker gets past, a set of what has no hash
        assume(False)


def sized(annotation: Any, value: Any, base: type[Any] = Event) -> Any:
    """A message with one field, made past validation."""
    cls: Any = type("Made", (base,), {"__annotations__": {"field": annotation}, "__module__": __name__})
    return cls.model_construct(field=value)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def nested_sets(levels: int) -> Any:
    value: Any = frozenset({1})
    for _ in range(levels):
        value = frozenset({value})
    return value


EDGES = [
    (list[int], list(range(ITEMS_MAX))),
    (list[int], list(range(ITEMS_MAX + 1))),
    (dict[int, int], {number: number for number in range(ITEMS_MAX + 1)}),
    (set[int], set(range(ITEMS_MAX + 1))),
    (bytes, b"x" * (1 << 20)),
    (str, "x" * 70_000),
    (dict[int, int], {1: 2}),
    (dict[Any, Any], {(1, "a"): 1, None: 2, True: 3, 1.5: 4, b"x": 5}),
    (Any, nested(DEPTH_MAX - 2)),
    (Any, nested(DEPTH_MAX)),
    (Any, nested_sets(DEPTH_MAX - 3)),
    (Any, nested_sets(DEPTH_MAX)),
    (Any, {"lists": [[1], (2,)], "when": datetime(2026, 1, 1)}),
    (int, "text"),
    (int, True),
    (float, 1),
    (Literal["a"], "b"),
]


def all_readers(event: Event) -> Iterator[tuple[str, Any]]:
    """The outcome of storing the event, then the event as each reader sees it."""
    cls = type(event)

    class Make(Command):
        pass

    class Maker(Aggregate, placement=Shared(), snapshot_every=1):
        seen: list[Any] = []

        @decide
        def make(self, command: Make) -> cls:  # type: ignore[valid-type]
            return event

        @evolve
        def made(self, event: cls) -> None:  # type: ignore[valid-type]
            self.seen = [*self.seen, event]

    class Sees(Projection):
        seen: list[Any] = []

        @project
        def made(self, event: cls) -> None:  # type: ignore[valid-type]
            self.seen.append(event)

    catalogue, stream = Catalogue([Maker], [Sees]), StreamId("Maker", "a")
    with tempfile.TemporaryDirectory() as folder:
        log = open_log(pathlib.Path(folder) / "log", "partition 0")
        loop = WriteLoop(0, log, catalogue)
        loop.activate()
        [outcome] = loop.execute([pack(Envelope(Maker, "a", Make()))[0]]).outcomes
        yield "outcome", outcome
        yield "head", log.head()
        if isinstance(outcome, Receipt):
            yield "the write loop", loop.residents.check_out(stream).seen[0]  # type: ignore[attr-defined]
            again = WriteLoop(0, log, catalogue)
            again.activate()
            yield "the aggregate after a restart", again.residents.load(stream).seen[0]  # type: ignore[attr-defined]
            [(seen, recorded)] = history(catalogue, log, 0, stream)
            yield "history", seen
            model = ReadModel(Sees, catalogue, {0: log})
            model.open()
            model.catch_up(0)
            assert model.failed is None
            yield "the read model", model._kept.model.seen[0]  # type: ignore[attr-defined]
            [record] = log.read(0, 1)
            [chosen] = EventFilter(catalogue).events(decode_record(record), recorded)
            yield "a subscription", chosen
        log.close()


def check(event: Event) -> None:
    seen = dict(all_readers(event))
    outcome, head = seen.pop("outcome"), seen.pop("head")
    if not isinstance(outcome, Receipt):
        assert isinstance(outcome, HandlerFailed | InvalidMessage)
        assert "Made" in str(outcome)
        assert head == 0
        return
    assert len(seen) == 5
    for reader, one in seen.items():
        assert difference(event, one) is None, f"{reader} sees {one!r}"


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(event=messages(Event))
@example(event=sized(str | Decimal, Decimal("9.90")))
@example(event=sized(Point, Marked(x=1, mark="lost")))
@example(event=sized(datetime, datetime(1925, 5, 1, tzinfo=ZoneInfo("Europe/Amsterdam"))))
def test_an_acknowledged_event_is_read_back_as_it_was_by_every_reader(event: Event) -> None:
    check(event)


@pytest.mark.parametrize(("annotation", "value"), EDGES)
def test_so_it_is_at_every_limit(annotation: Any, value: Any) -> None:
    check(sized(annotation, value))


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(command=messages(Command))
def test_a_command_arrives_as_it_was_or_is_not_sent(command: Command) -> None:
    class Anything(Aggregate):
        pass

    packed = None
    with suppress(InvalidMessage):
        packed, _ = pack(Envelope(Anything, "a", command))
    if packed is not None:
        assert difference(command, decode_message(type(command), packed.payload)) is None
