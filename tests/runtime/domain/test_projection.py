"""Projections: what a class may declare, and the error for each mistake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Dict, List, Optional  # noqa: UP035

import pytest

from rayfold.runtime.domain.aggregate import evolve
from rayfold.runtime.domain.messages import Event, Query
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.errors import DefinitionError
from tests.bank import BalanceOf, Balances, Deposited, EventsSeen, Opened, Richest, Turnover


class Count(Query[int]):
    pass


def test_handlers_are_found_by_their_annotation() -> None:
    assert {event.__name__ for event in Balances.projectors} == {
        "Opened",
        "Deposited",
        "Withdrawn",
        "Paid",
        "FeeCharged",
    }
    assert set(Balances.answers) == {BalanceOf, Richest}
    assert Balances.answers[BalanceOf] is Balances.balance


def test_a_projector_may_take_where_the_event_is_recorded_or_not() -> None:
    assert Turnover.projectors[Deposited].takes_recorded
    assert not Turnover.projectors[Opened].takes_recorded


def test_the_name_and_version_are_stated_in_the_class_line() -> None:
    class Sums(Projection, name="sums", version=3):
        pass

    assert (Balances.projection_name, Balances.projection_version) == ("Balances", 1)
    assert (Sums.projection_name, Sums.projection_version) == ("sums", 3)


def test_two_instances_share_no_state() -> None:
    one, two = Balances(), Balances()
    one.balances["alice"] = 1
    assert two.balances == {}


def test_a_subclass_inherits_and_overrides_handlers() -> None:
    class Generous(Balances):
        @answer
        def balance(self, query: BalanceOf) -> int:
            return 1_000

    assert Generous().answers[BalanceOf](Generous(), BalanceOf(account="x")) == 1_000
    assert Generous.projectors == Balances.projectors


@pytest.mark.parametrize(
    ("promised", "returned"),
    [
        (int, int),
        (list[int], List[int]),  # noqa: UP006
        (int | None, Optional[int]),  # noqa: UP045
        (None | int, int | None),
        (dict[str, list[int]], Dict[str, List[int]]),  # noqa: UP006
        (None, type(None)),
        (Any, str),
    ],
)
def test_an_answer_of_the_promised_type_is_accepted_however_it_is_spelled(promised: Any, returned: Any) -> None:
    class Ask(Query[promised]):
        pass

    def reply(self: Any, query: Ask) -> Any: ...

    reply.__annotations__ = {"query": Ask, "return": returned}
    cls = type("Sums", (Projection,), {"__module__": __name__, "reply": answer(reply)})
    assert list(cls.answers) == [Ask]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("promised", "returned"), [(int, str), (list[int], list[str]), (int | None, int), (dict[str, int], list[int])]
)
def test_an_answer_of_another_type_is_refused(promised: Any, returned: Any) -> None:
    class Ask(Query[promised]):
        pass

    def reply(self: Any, query: Ask) -> Any: ...

    reply.__annotations__ = {"query": Ask, "return": returned}
    with pytest.raises(DefinitionError, match="Sums.reply: it returns .*, but Ask promises "):
        type("Sums", (Projection,), {"__module__": __name__, "reply": answer(reply)})


def test_the_words_for_an_answer_of_another_type() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Sums(Projection):
            @answer
            def count(self, query: Count) -> str:
                return ""

    assert str(caught.value) == (
        "Sums.count: it returns str, but Count promises int; annotate it -> int, or derive the query from Query[str]"
    )


def test_a_missing_return_annotation_of_an_answer_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Sums(Projection):
            @answer
            def count(self, query: Count): ...  # type: ignore[no-untyped-def]  # noqa: ANN202

    assert str(caught.value) == (
        "Sums.count: its return annotation is missing; annotate it with the query's answer type"
    )


def test_two_answers_for_one_query_are_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Sums(Projection):
            @answer
            def count(self, query: Count) -> int:
                return 1

            @answer
            def number(self, query: Count) -> int:
                return 1

    assert str(caught.value) == "Sums.number: Count is already handled by count; keep one of the two methods"


def test_two_projectors_for_one_event_are_refused() -> None:
    with pytest.raises(DefinitionError, match="Sums.again: Opened is already handled by opened"):

        class Sums(Projection):
            @project
            def opened(self, event: Opened) -> None: ...

            @project
            def again(self, event: Opened, recorded: Recorded) -> None: ...


def test_a_projector_of_a_query_or_of_every_event_is_refused() -> None:
    with pytest.raises(DefinitionError, match="Sums.x: 'event' is annotated with EventsSeen, which is not an Event"):

        class Sums(Projection):
            @project
            def x(self, event: EventsSeen) -> None: ...

    with pytest.raises(DefinitionError, match="All.x: 'event' is annotated with Event itself; name the one class"):

        class All(Projection):
            @project
            def x(self, event: Event) -> None: ...


def test_a_second_parameter_that_is_not_recorded_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Sums(Projection):
            @project
            def opened(self, event: Opened, when: int) -> None: ...

    assert str(caught.value) == (
        "Sums.opened: its second parameter 'when' is annotated with int; annotate it with Recorded"
    )
    with pytest.raises(DefinitionError, match="its second parameter 'when' is without an annotation"):

        class More(Projection):
            @project
            def opened(self, event: Opened, when) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001


def test_a_projector_with_a_third_parameter_is_refused() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Sums(Projection):
            @project
            def opened(self, event: Opened, recorded: Recorded, more: int) -> None: ...

    assert str(caught.value) == (
        "Sums.opened: a @project method takes self and one event, or also a Recorded, "
        "this one takes self, event, recorded, more; change its parameters"
    )


def test_a_projector_that_returns_something_is_refused() -> None:
    with pytest.raises(DefinitionError, match="Sums.opened: a @project method changes self and returns nothing"):

        class Sums(Projection):
            @project
            def opened(self, event: Opened) -> int:
                return 1


def test_an_answer_that_is_async_or_yields_is_refused() -> None:
    with pytest.raises(DefinitionError, match="Sums.count: a @answer method cannot be async"):

        class Sums(Projection):
            @answer
            async def count(self, query: Count) -> int:
                return 1

    with pytest.raises(DefinitionError, match="More.count: a @answer method cannot be async"):

        class More(Projection):
            @answer
            async def count(self, query: Count) -> AsyncIterator[int]:
                yield 1

    with pytest.raises(DefinitionError, match="Most.count: a @answer method cannot yield"):

        class Most(Projection):
            @answer
            def count(self, query: Count) -> Iterator[int]:
                yield 1


def test_a_mark_of_aggregates_is_refused_on_a_projection() -> None:
    with pytest.raises(DefinitionError) as caught:

        class Sums(Projection):
            @evolve
            def opened(self, event: Opened) -> None: ...

    assert str(caught.value) == "Sums.opened: @evolve belongs to an Aggregate; move it there"


@pytest.mark.parametrize("version", [0, True, "1"])
def test_a_version_counts_from_1(version: Any) -> None:
    with pytest.raises(DefinitionError, match=f"Sums: version={version!r} is not a version; count from 1"):

        class Sums(Projection, version=version):
            pass


def test_a_projection_whose_name_begins_with_rayfold_and_a_dot_is_refused() -> None:
    with pytest.raises(DefinitionError, match="'rayfold.Counts' begins with 'rayfold.'"):

        class Counts(Projection, name="rayfold.Counts"):
            pass
