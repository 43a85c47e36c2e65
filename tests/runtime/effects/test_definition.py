"""What an `Effects` class may be: each class that cannot work is refused while it is defined, with what and where."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from rayfold import (
    Application,
    Backoff,
    Call,
    Declined,
    DefinitionError,
    Done,
    Effects,
    Event,
    InvalidMessage,
    NotDone,
    Process,
    Recorded,
    Send,
    Unknown,
    accepted,
    decide,
    effect,
    failed,
    given,
    react,
    refused,
    settle,
)
from rayfold.runtime.effects.results import packed_result, unpacked_result
from rayfold.runtime.processes.effects import Switch
from tests.bank import Account, Deposit


class Asked(Event):
    to: str


class Other(Event):
    to: str


def test_a_class_without_an_effect_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"Empty: it calls nothing; mark an async function @effect\(\)"):

        class Empty(Effects):
            pass


def test_a_plain_function_is_refused() -> None:
    with pytest.raises(DefinitionError, match=r"Plain.call: a @effect function has to be async; write async def"):

        class Plain(Effects):
            @effect()
            def call(self, event: Asked) -> Done:
                return Done()


@pytest.mark.parametrize("second", [Recorded, str, Any])
def test_a_second_parameter_that_is_no_call_is_refused(second: object) -> None:
    async def call(self: Any, event: Asked, more: Any) -> Done:
        return Done()

    call.__annotations__ = {"event": Asked, "more": second, "return": Done}
    with pytest.raises(DefinitionError, match="takes one event class, or also a Call; this one takes Asked"):
        type("Wrong", (Effects,), {"call": effect()(call), "__module__": __name__})


def test_a_function_without_its_return_annotation_is_refused() -> None:
    with pytest.raises(DefinitionError, match="its return annotation is missing; name what it may return: Done"):

        class Silent(Effects):
            @effect()
            async def call(self, event: Asked):  # type: ignore[no-untyped-def]  # noqa: ANN202 - as tested
                return Done()


def test_two_effects_of_one_event_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"Twice.second: Asked is already taken by first"):

        class Twice(Effects):
            @effect()
            async def first(self, event: Asked) -> Done:
                return Done()

            @effect()
            async def second(self, event: Asked) -> Done:
                return Done()


def test_a_field_is_refused_and_a_class_variable_is_not() -> None:
    with pytest.raises(DefinitionError, match=r"Field.url: an Effects class has no state of its own"):

        class Field(Effects):
            url: str = "http://localhost"

            @effect()
            async def call(self, event: Asked) -> Done:
                return Done()

    class Constant(Effects):
        url: ClassVar[str] = "http://localhost"

        @effect()
        async def call(self, event: Asked) -> Done:
            return Done()

    assert Constant.effects["call"].event is Asked


def test_other_handlers_are_refused() -> None:
    with pytest.raises(DefinitionError, match=r"Deciding.deposit: an Effects class has @effect and @settle"):

        class Deciding(Effects):
            @effect()
            async def call(self, event: Asked) -> Done:
                return Done()

            @decide
            def deposit(self, command: Deposit) -> None:
                return None

    with pytest.raises(DefinitionError, match="@effect belongs to an Effects"):

        class Reacting(Process):
            @react(starts=True)
            def asked(self, event: Asked) -> None:
                return None

            @effect()
            async def call(self, event: Asked) -> Done:
                return Done()


def test_a_look_has_to_be_of_an_effect_of_the_class_and_take_its_event() -> None:
    with pytest.raises(DefinitionError, match="is no @effect; write @settle"):

        @settle(test_two_effects_of_one_event_are_refused)
        async def look(self: Any, event: Asked) -> Done:
            return Done()

    with pytest.raises(DefinitionError, match=r"Looking.look: it takes Other, and call takes Asked"):

        class Looking(Effects):
            @effect()
            async def call(self, event: Asked) -> Done:
                return Done()

            @settle(call)
            async def look(self, event: Other) -> Done:
                return Done()

    with pytest.raises(DefinitionError, match=r"Both.again: call is already settled by look"):

        class Both(Effects):
            @effect()
            async def call(self, event: Asked) -> Done:
                return Done()

            @settle(call)
            async def look(self, event: Asked) -> Done:
                return Done()

            @settle(call)
            async def again(self, event: Asked) -> Done:
                return Done()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"timeout_s": 0}, "timeout_s=0 is not over 0"),
        ({"timeout_s": float("nan")}, "timeout_s=nan is not over 0"),
        ({"timeout_s": True}, "timeout_s=True is not over 0"),
        ({"timeout_s": 1e9}, "is not over 0 and up to 86400"),
        ({"at_once": 0}, "at_once=0 is not between"),
        ({"at_once": 10_000}, "at_once=10000 is not between"),
        ({"retry": 3}, "retry=3 is not a Backoff"),
        ({"order_by": "customer"}, "is not a function"),
        ({"repeatable": "yes"}, "is not a bool"),
        ({"target": 7}, "target=7 is not text"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(DefinitionError, match=what):
        effect(**options)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"first_s": -1}, "first_s=-1 is not a number from 0"),
        ({"max_s": float("inf")}, "max_s=inf is not"),
        ({"factor": 0.5}, "factor=0.5 is not between"),
        ({"attempts": 0}, "attempts=0 is not a number from 1"),
    ],
)
def test_pauses_that_cannot_be_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidMessage, match=what):
        Backoff(**options)


def test_pauses_grow_up_to_the_longest() -> None:
    retry = Backoff(first_s=1, max_s=5, factor=2)
    assert [retry.pause_us(made) for made in (1, 2, 3, 4, 1_000_000)] == [1e6, 2e6, 4e6, 5e6, 5e6]


def test_a_name_that_no_timer_can_have_is_refused() -> None:
    async def call(self: Any, event: Asked) -> Done:
        return Done()

    call.__name__ = "x" * 40
    with pytest.raises(DefinitionError, match="its name has over 36 bytes"):
        type("Long", (Effects,), {call.__name__: effect()(call), "__module__": __name__})


def test_a_result_is_checked_where_it_is_made() -> None:
    deposit = Send(Account, "ada", Deposit(amount=5))
    made: Any
    for made, wrong in ((Done, "17"), (Declined, 7), (NotDone, None), (Unknown, 5)):
        with pytest.raises(InvalidMessage):
            made(wrong)
    with pytest.raises(InvalidMessage, match="a result has no undo"):
        Done(Send(Account, "ada", Deposit(amount=5), undo=Deposit(amount=1)))
    with pytest.raises(TypeError, match="it returned None; return Done"):
        packed_result(None)
    assert packed_result(deposit) == packed_result(Done(deposit))
    assert unpacked_result(packed_result(Declined("no_money"))).note == "no_money"
    assert (Done(deposit), Declined("x"), NotDone("x")) == (Done(deposit), Declined("x"), NotDone("x"))


class Calling(Effects):
    @effect()
    async def call(self, event: Asked) -> Done:
        return Done()


class Reacts(Process):
    @react(starts=True)
    def asked(self, event: Asked) -> None:
        return None


def test_each_kind_is_listed_in_its_own_argument() -> None:
    with pytest.raises(DefinitionError, match="processes=: Calling is no process; list it in effects="):
        Application("x", aggregates=[Account], processes=[Calling])  # type: ignore[list-item]  # as tested
    with pytest.raises(DefinitionError, match="effects=: .*Reacts.* is no Effects class"):
        Application("x", aggregates=[Account], effects=[Reacts])  # type: ignore[list-item]  # as tested
    made = Application("x", aggregates=[Account], processes={Reacts: "beginning"}, effects=[Calling], since="now")
    assert made.catalogue.since == {"Reacts": "beginning", "Calling": "now"}


def test_an_instance_of_an_event_with_a_long_id_has_an_id_that_fits() -> None:
    assert Calling.instance_id("order-1", 3) == "order-1:3"
    assert len(Calling.instance_id("x" * 400, 12_345)) < 400


def test_calls_are_switched_at_instances_of_their_own_alone() -> None:
    calling = Calling("order-1:3", 0)
    refused = calling.deciders[Switch].function(calling, Switch(on=False, by="ada", reason="ticket 7"))
    assert refused.reason == "no_switch"


def test_a_call_is_what_a_function_gets() -> None:
    assert [*Call.__dataclass_fields__] == ["key", "attempt", "timeout_s", "id", "recorded", "unknown"]


def test_an_effect_without_options_needs_no_parentheses() -> None:
    class Bare(Effects):
        @effect
        async def call(self, event: Asked) -> Done:
            return Done()

        @settle(call)
        async def look(self, event: Asked) -> Done:
            return Done()

    assert Bare.effects["call"].look == "look"
    given(Bare).when(Asked(to="ada")).then_called("call")


def test_what_is_looked_up_is_not_repeatable_as_well() -> None:
    what = r"Both.look: it looks call up, which is repeatable=True, and so is called again instead; keep one of the two"
    with pytest.raises(DefinitionError, match=what):

        class Both(Effects):
            @effect(repeatable=True)
            async def call(self, event: Asked) -> Done:
                return Done()

            @settle(call)
            async def look(self, event: Asked) -> Done:
                return Done()


@pytest.mark.parametrize("verb", [accepted, refused, failed])
def test_a_mark_of_an_outcome_without_parentheses_is_refused_with_what_to_write(verb: Any) -> None:
    def method(self: Any) -> None: ...

    name = verb.__name__
    what = rf"@{name}: it marks method without parentheses; write @{name}\(Charge\), or @{name}\(\) for all others"
    with pytest.raises(DefinitionError, match=what):
        verb(method)


class Keyed(Effects):
    """Its key is what the event evaluates to."""

    @effect(order_by=lambda event: eval(event.to))
    async def call(self, event: Asked) -> Done:
        return Done()


@pytest.mark.parametrize("key", ["''", "5", "None", "'x' * 401", "'rayfold:x'", "'rayfold:switch:0'"])
def test_what_is_no_key_waits_and_what_it_is_stands_in_the_specification(key: str) -> None:
    case = given(Keyed).when(Asked(to=key))
    case.then_parked("order_by= of Keyed.call: it returned ").then_parked(
        "return text of 1 to 400 bytes that does not begin with rayfold:"
    )
    with pytest.raises(AssertionError, match="nothing is called, it is parked: order_by= of Keyed.call: it returned"):
        case.then_called("call")


def test_an_order_by_that_raises_stands_in_the_specification() -> None:
    with pytest.raises(AssertionError, match=r"it is parked: order_by= of Keyed.call: ZeroDivisionError: division"):
        given(Keyed).when(Asked(to="1 / 0")).then_called("call")


def test_an_event_that_no_effect_takes_is_refused_in_a_specification() -> None:
    with pytest.raises(AssertionError, match=r"no @effect of Keyed takes Other\(to='ada'\)"):
        given(Keyed).when(Other(to="ada"))
