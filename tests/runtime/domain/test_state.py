"""State: declared fields, and defaults that no two instances share."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict, deque
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from pydantic import BaseModel, ConfigDict

from rayfold.runtime.domain.aggregate import Aggregate
from rayfold.runtime.domain.projection import Projection
from rayfold.runtime.errors import DefinitionError


class Ledger:
    """Mutable, and hashable all the same, by its identity."""

    def __init__(self) -> None:
        self.lines: list[str] = []


@dataclasses.dataclass(frozen=True)
class Money:
    cents: int = 0


class Colour(Enum):
    RED = 1


class Tally(BaseModel):
    """A model that can change, with a hash of its own."""

    count: int = 0

    def __hash__(self) -> int:
        return hash(self.count)


@dataclasses.dataclass(unsafe_hash=True)
class Score:
    points: int = 0


@dataclasses.dataclass(frozen=True)
class TopologyFeed:
    score: Score = Score()


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    tally: Tally = Tally()


class Meter:
    """A class that can change, with a hash of its own."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Meter) and self.read == other.read

    def __hash__(self) -> int:
        return hash(tuple(self.read))


@dataclasses.dataclass(frozen=True)
class Dashboard:
    meter: Meter = dataclasses.field(default_factory=Meter)


@pytest.mark.parametrize(
    "default",
    [[], {}, set(), [1, [2]], {"a": {"b": []}}, bytearray(b"x"), deque([1]), Counter("ab"), defaultdict(list)],
)
def test_a_mutable_default_of_plain_values_is_copied_for_each_instance(default: Any) -> None:
    cls: type[Any] = type("Car", (Aggregate,), {"__module__": __name__, "__annotations__": {"x": Any}, "x": default})
    one, two = cls("1"), cls("2")
    assert one.x == two.x == default
    assert type(one.x) is type(default)
    assert one.x is not two.x
    assert one.x is not default


def test_a_nested_container_is_copied_too() -> None:
    class Car(Aggregate):
        seats: dict[str, list[int]] = {"front": [1, 2]}

    Car("1").seats["front"].append(3)
    assert Car("2").seats == {"front": [1, 2]}


@pytest.mark.parametrize(
    "default",
    [0, 1.5, "x", b"x", None, (1, "a"), frozenset({1}), date(2024, 1, 1), Money(1), Colour.RED, int, Path("a")],
)
def test_a_default_that_cannot_change_is_shared(default: Any) -> None:
    cls: type[Any] = type("Car", (Aggregate,), {"__module__": __name__, "__annotations__": {"x": Any}, "x": default})
    assert cls("1").x is default


def test_a_default_factory_makes_one_for_each_instance() -> None:
    class Car(Aggregate):
        ledger: Ledger = dataclasses.field(default_factory=Ledger)

    class FastCar(Car):
        pass

    assert Car("1").ledger is not Car("2").ledger
    assert isinstance(FastCar("1").ledger, Ledger)
    assert not hasattr(Car, "ledger")


def test_a_subclass_adds_fields_and_may_change_a_default() -> None:
    class Car(Aggregate):
        seats: int = 4
        names: list[str] = []

    class Bus(Car):
        seats = 40
        names: list[str] = ["bus"]
        line: str = "1"

    assert Bus.state_fields == {"seats": int, "names": list[str], "line": str}
    assert (Bus("x").seats, Bus("x").names, Car("x").seats) == (40, ["bus"], 4)


def test_constants_and_private_fields() -> None:
    class Car(Aggregate):
        WHEELS: ClassVar[dict[str, int]] = {"front": 2}
        DOORS: Final = 4
        limit = 100
        _cache: dict[str, int] = {}

    assert Car.state_fields == {"_cache": dict[str, int]}


def test_the_id_and_version_of_a_new_aggregate() -> None:
    class Car(Aggregate):
        pass

    assert (Car("x").id, Car("x").version, Car().id) == ("x", 0, "")


def refusal_of(body: dict[str, Any], base: type = Aggregate) -> str:
    with pytest.raises(DefinitionError) as caught:
        type("Car", (base,), {"__module__": __name__, **body})
    return str(caught.value)


def test_a_field_without_a_default_is_refused() -> None:
    told = refusal_of({"__annotations__": {"seats": int}})
    assert told == "Car.seats: the field has no default; write what it starts as: seats: ... = ..."


def test_a_default_that_all_instances_would_share_is_refused() -> None:
    told = refusal_of({"__annotations__": {"ledger": Ledger}, "ledger": Ledger()})
    assert told == (
        "Car.ledger: its default is one Ledger that all instances would share; "
        "write dataclasses.field(default_factory=Ledger), or make the value frozen"
    )
    assert "Car.x: its default is one list that" in refusal_of({"__annotations__": {"x": list}, "x": [Ledger()]})


@pytest.mark.parametrize("default", [Tally(), Score(), (Score(),), [Tally()], TopologyFeed(), Frozen()])
def test_a_hash_of_its_own_makes_no_default_one_that_can_be_shared(default: Any) -> None:
    told = refusal_of({"__annotations__": {"x": Any}, "x": default})
    assert f"Car.x: its default is one {type(default).__name__} that all instances would share" in told


@pytest.mark.parametrize("default", [Meter(), (Meter(),), Dashboard(), {"a": Meter()}])
def test_an_object_whose_class_says_nothing_is_copied_for_each_instance(default: Any) -> None:
    cls: type[Any] = type("Car", (Aggregate,), {"__module__": __name__, "__annotations__": {"x": Any}, "x": default})
    one, two = cls("1"), cls("2")
    assert one.x == two.x == default
    assert one.x is not two.x


def test_what_one_aggregate_does_to_its_default_no_other_sees() -> None:
    class Car(Aggregate):
        meter: Meter = Meter()

    Car("1").meter.read.append(3)
    assert Car("2").meter.read == []


def test_a_field_of_dataclasses_without_a_factory_is_refused() -> None:
    told = refusal_of({"__annotations__": {"x": int}, "x": dataclasses.field(default=1)})
    assert told == "Car.x: its field(...) has no default_factory; write field(default_factory=...)"


@pytest.mark.parametrize("value", [[], {}, set(), bytearray()])
def test_a_mutable_attribute_without_annotation_is_refused(value: Any) -> None:
    told = refusal_of({"seats": value})
    assert told == (
        f"Car.seats: it has no annotation, so all instances would share one {type(value).__name__}; "
        "annotate it to make it a field, or ClassVar to make it a constant: seats: ... = ..."
    )


@pytest.mark.parametrize(
    "name", ["id", "version", "aggregate_type", "placement", "snapshot_every", "deciders", "evolvers"]
)
def test_a_name_of_the_aggregate_itself_is_refused_as_a_field(name: str) -> None:
    told = refusal_of({"__annotations__": {name: int}, name: 1})
    assert told == f"Car.{name}: the name is reserved by Rayfold; give the field another name"


@pytest.mark.parametrize("name", ["projection_name", "projection_version", "projectors", "answers", "state_fields"])
def test_a_name_of_the_projection_itself_is_refused(name: str) -> None:
    assert refusal_of({name: 1}, Projection) == f"Car.{name}: the name is reserved by Rayfold; choose another name"


def test_a_method_cannot_bear_a_reserved_name() -> None:
    assert "Car.version: the name is reserved by Rayfold" in refusal_of({"version": lambda self: 1})


def test_an_init_of_its_own_is_refused() -> None:
    told = refusal_of({"__init__": lambda self: None})
    assert told == "Car.__init__: the runtime makes the instances itself; declare fields instead"
