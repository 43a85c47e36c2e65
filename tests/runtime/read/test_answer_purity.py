"""An `@answer` that changes the read model: it fails by name, and nothing of what it changed stays."""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from dataclasses import field
from pathlib import Path
from typing import Any

import pytest

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event, Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import Envelope, pack
from rayfold.runtime.encoding.saved_state import decode_state, encode_state
from rayfold.runtime.errors import HandlerFailed
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.answer_purity import MutationGuard, own_copy, reading_answers
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.write.write_loop import WriteLoop


class Pay(Command):
    amount: int


class Paid(Event):
    amount: int


class Till(Aggregate, placement=Shared()):
    @decide
    def pay(self, command: Pay) -> Paid:
        return Paid(amount=command.amount)

    @evolve
    def paid(self, event: Paid) -> None:
        """No state."""


class Total(Query[int]):
    pass


class Rebind(Query[int]):
    pass


class Insert(Query[int]):
    pass


class Replace(Query[int]):
    pass


class Deep(Query[int]):
    pass


class Whole(Query[dict[str, list[int]]]):
    pass


class New(Query[int]):
    pass


class Raising(Query[int]):
    pass


@dataclasses.dataclass
class Row:
    values: list[int] = field(default_factory=list)


class Sums(Projection):
    total: int = 0
    lists: dict[str, list[int]] = {}
    rows: dict[str, Row] = {}
    filler: str = ""

    @project
    def paid(self, event: Paid) -> None:
        self.total += event.amount
        self.lists.setdefault("all", []).append(event.amount)
        self.rows.setdefault("all", Row()).values.append(event.amount)

    @answer
    def of(self, query: Total) -> int:
        return self.total + sum(len(values) for values in self.lists.values()) - len(self.lists.get("all", ()))

    @answer
    def rebind(self, query: Rebind) -> int:
        self.total += 1
        return self.total

    @answer
    def insert(self, query: Insert) -> int:
        return len(self.lists.setdefault("new", []))

    @answer
    def replace(self, query: Replace) -> int:
        self.lists["all"] = [0]
        return 1

    @answer
    def deep(self, query: Deep) -> int:
        values = self.rows["all"].values
        values += [9]
        return len(values)

    @answer
    def whole(self, query: Whole) -> dict[str, list[int]]:
        return self.lists

    @answer
    def new(self, query: New) -> int:
        self.cache = 1
        return 1

    @answer
    def raising(self, query: Raising) -> int:
        self.lists.clear()
        raise KeyError("x")


class Counting(Projection):
    counts: dict[int, int] = field(default_factory=lambda: defaultdict(int))

    @project
    def paid(self, event: Paid) -> None:
        self.counts[event.amount] += 1

    @answer
    def of(self, query: Total) -> int:
        return self.counts[77]


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    loop = WriteLoop(0, log, CATALOGUE)
    loop.activate()
    for amount in (1, 2, 3):
        loop.execute([pack(Envelope(Till, "a", Pay(amount=amount)))[0]])
    return log


CATALOGUE = Catalogue([Till], [Sums, Counting])


def read_model_of(projection: type[Projection], log: MemoryLog, directory: Path | None = None) -> ReadModel:
    read_model = ReadModel(projection, CATALOGUE, {0: log}, directory=directory)
    read_model.open()
    read_model.catch_up(0)
    return read_model


def ask(read_model: ReadModel, query: Query[Any]) -> Any:
    (answered,) = read_model.answer([(query.message_name, encode_message(query))], lambda answers: answers)
    return answered


def state_of(read_model: ReadModel) -> dict[str, Any]:
    with read_model.reading() as model:
        return {name: repr(value) for name, value in vars(model).items()}


CHANGING = [Rebind(), Insert(), Replace(), Deep(), New(), Raising()]


@pytest.mark.parametrize("query", CHANGING, ids=lambda query: type(query).__name__)
def test_an_answer_that_changes_the_read_model_fails_by_name_and_leaves_nothing(
    log: MemoryLog, query: Query[Any]
) -> None:
    read_model = read_model_of(Sums, log)
    before = state_of(read_model)
    for _ in range(2):
        failed = ask(read_model, query)
        assert isinstance(failed, HandlerFailed)
        assert failed.handler == f"Sums.{type(query).__name__.lower()}"
        assert "it changed the read model, and only @project may" in str(failed)
        assert state_of(read_model) == before
    assert ask(read_model, Total()) == 6
    answering = Sums.answers[type(query)]
    with pytest.raises(HandlerFailed, match="it changed the read model"):
        read_model.answer_here(answering, query)
    assert state_of(read_model) == before


def test_looking_a_missing_key_up_in_a_defaultdict_changes_it(log: MemoryLog) -> None:
    read_model = read_model_of(Counting, log)
    assert isinstance(ask(read_model, Total()), HandlerFailed)
    assert state_of(read_model)["counts"].endswith("{1: 1, 2: 1, 3: 1})")


def test_only_handlers_that_are_shown_to_read_run_unwatched() -> None:
    names = {getattr(function, "__name__", "") for function in reading_answers(Sums)}
    assert names == {"of", "whole"}
    assert reading_answers(Counting) == frozenset()


def test_an_answer_in_this_process_is_a_copy_that_the_caller_may_change(log: MemoryLog) -> None:
    read_model = read_model_of(Sums, log)
    before = state_of(read_model)
    got = read_model.answer_here(Sums.answers[Whole], Whole())
    got["all"].append(99)
    got["new"] = []
    assert state_of(read_model) == before


def test_what_is_changed_while_reading_is_undone(log: MemoryLog) -> None:
    read_model = read_model_of(Sums, log)
    before = state_of(read_model)
    with pytest.raises(HandlerFailed, match=r"Sums\.reading"), read_model.reading() as model:
        model.__dict__["lists"]["all"].append(5)
    assert state_of(read_model) == before


def test_a_large_state_that_a_query_has_changed_never_gets_into_a_checkpoint(log: MemoryLog, tmp_path: Path) -> None:
    class Large(Sums, name="Sums"):
        @project
        def paid(self, event: Paid) -> None:
            self.total += event.amount
            self.filler = "x" * 1_000_000
            self.rows.setdefault("all", Row()).values.append(event.amount)

    read_model = ReadModel(Large, Catalogue([Till], [Large]), {0: log}, directory=tmp_path)
    read_model.open()
    read_model.catch_up(0)
    read_model._guard._state_bytes, read_model._guard._next_s = 1_000_000, float("inf")  # it is watched by sizes only
    assert ask(read_model, Deep()) == 4, "which does not find it"
    assert read_model.checkpoint() == 0, "but this does"
    assert read_model.checkpoint() > 0
    again = ReadModel(Large, Catalogue([Till], [Large]), {0: log}, directory=tmp_path)
    again.open()
    for one in (read_model, again):
        with one.reading() as model:
            assert model.__dict__["rows"]["all"].values == [1, 2, 3]


@pytest.mark.parametrize("answer", [1, "x", None, (1, "x"), frozenset({1})])
def test_what_cannot_change_is_not_copied(answer: object) -> None:
    assert own_copy(answer) is answer


@pytest.mark.parametrize("answer", [[1], {1}, {"a": 1}, {"a": [1]}, [{"a": 1}], Row([1]), ([1],)])
def test_what_can_change_is_copied(answer: object) -> None:
    assert own_copy(answer) == answer
    assert own_copy(answer) is not answer


@dataclasses.dataclass(frozen=True)
class Price:
    cents: int

    @functools.cached_property
    def text(self) -> str:
        return f"{self.cents / 100:.2f}"


class FirstPrice(Query[str]):
    pass


class Prices(Projection):
    all: list[Price] = field(default_factory=list)

    @project
    def paid(self, event: Paid) -> None:
        self.all.append(Price(5))

    @answer
    def first(self, query: FirstPrice) -> str:
        return str(getattr(self.all[0], "text"))  # noqa: B009 - by a way that no bytecode shows to only read


def test_what_a_value_keeps_of_what_it_was_asked_is_no_change_of_the_read_model() -> None:
    model = Prices()
    model.all.append(Price(5))
    before = encode_state(model)
    watch = MutationGuard(model)
    seen = watch.before(1)
    assert model.first(FirstPrice()) == "0.05"
    assert vars(model.all[0])["text"] == "0.05"
    assert watch.changed(seen, 1) == ""
    assert encode_state(model) == before
    assert "text" not in vars(decode_state(Prices, before).all[0])
