"""Effects in a system in memory: fakes stand for what is outside, and the clock for the pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from examples.payments import Buy, Cancel, ChargeRequested, Charging, Confirm, Purchase
from rayfold import (
    Backoff,
    Call,
    Declined,
    Done,
    Effects,
    InvalidMessage,
    NotDone,
    Retry,
    Send,
    Settle,
    Unknown,
    effect,
)
from rayfold.testing import MemoryRuntime, system, system_blocking

ADA: dict[str, Any] = {"by": "ada", "reason": "ticket 7"}
Answers = Callable[[ChargeRequested, Call], Any]


def shop(charge: Answers | None, look: Answers | None = None, **options: Any) -> MemoryRuntime:
    return system(Purchase, Charging, fakes={Charging.charge: charge, Charging.look: look}, **options)


def confirmed(event: ChargeRequested, call: Call) -> Send:
    return Send(Purchase, call.recorded.aggregate_id, Confirm(charge=call.key))


class Scripted:
    """Returns one result after the other, and notes what it was called with."""

    def __init__(self, *results: Any) -> None:
        self.results, self.calls = [*results], list[Call]()

    def __call__(self, event: ChargeRequested, call: Call) -> Any:
        self.calls.append(call)
        return self.results.pop(0) if self.results else confirmed(event, call)


async def state_of(running: MemoryRuntime, order: str) -> str:
    return (await running.state_at(Purchase, order)).state


async def test_what_a_call_has_come_to_has_happened_when_the_command_is_answered() -> None:
    async with shop(confirmed) as running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        assert await state_of(running, "1") == "paid"


async def test_a_call_has_one_key_for_all_attempts_and_each_its_pause() -> None:
    calls = Scripted(NotDone("refused"), NotDone("refused"))
    async with shop(calls) as running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        assert (await state_of(running, "1"), len(calls.calls)) == ("charging", 1)
        running.clock.advance(timedelta(seconds=2))
        running.clock.advance(timedelta(seconds=4))
        assert await state_of(running, "1") == "paid"
    assert len({one.key for one in calls.calls}) == 1
    assert [one.attempt for one in calls.calls] == [1, 2, 3]
    assert calls.calls[0].recorded.aggregate_id == "1"


async def test_an_unknown_end_is_looked_up_and_not_called_again() -> None:
    calls, looks = Scripted(Unknown("reset")), Scripted()
    async with shop(calls, looks) as running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        assert await state_of(running, "1") == "paid"
    assert (len(calls.calls), len(looks.calls)) == (1, 1)
    assert calls.calls[0].key == looks.calls[0].key
    assert looks.calls[0].unknown


async def test_calls_of_one_card_are_made_in_order_and_another_card_is_not_held() -> None:
    calls = Scripted(NotDone("refused"))
    async with shop(calls, partitions=1) as running:
        for order, card in (("1", "ada"), ("2", "ada"), ("3", "bob")):
            await running.execute(Purchase, order, Buy(card=card, amount=5))
        assert [one.recorded.aggregate_id for one in calls.calls] == ["1", "3"]
        running.clock.advance(timedelta(seconds=2))
        assert [one.recorded.aggregate_id for one in calls.calls] == ["1", "3", "1", "2"]


async def test_a_system_that_is_started_again_calls_nothing_again() -> None:
    calls = Scripted()
    running = shop(calls)
    async with running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
    async with running:
        await running.execute(Purchase, "2", Buy(card="ada", amount=5))
    assert [one.recorded.aggregate_id for one in calls.calls] == ["1", "2"]


async def test_a_call_without_a_fake_waits_until_its_end_is_unknown() -> None:
    looks = Scripted()
    async with shop(None, looks) as running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        running.clock.advance(timedelta(minutes=1))
        assert (await state_of(running, "1"), len(looks.calls)) == ("paid", 1)


async def test_what_stands_is_shown_and_settled() -> None:
    async with shop(Scripted(Unknown("reset")), Scripted(*[Unknown("no answer")] * 9)) as running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        running.clock.advance(timedelta(seconds=30))
        settle = Settle.as_result(Done(Send(Purchase, "1", Confirm(charge="7"))), **ADA)
        await running.execute(Charging, "ada", settle)
        assert await state_of(running, "1") == "paid"
        with pytest.raises(Exception, match="no_call"):
            await running.execute(Charging, "ada", settle)


async def test_a_declined_call_leads_to_its_command() -> None:
    def declined(event: ChargeRequested, call: Call) -> Declined:
        return Declined("expired", Send(Purchase, call.recorded.aggregate_id, Cancel(reason="expired")))

    async with shop(declined) as running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        assert await state_of(running, "1") == "cancelled"


class Failing(Effects):
    """Two targets: failures of one have it pause, and not the other."""

    @effect(retry=Backoff(first_s=0, attempts=1))
    async def charge(self, event: ChargeRequested) -> Done:
        return Done()


async def test_a_target_that_fails_pauses_and_is_tried_with_one_call_first() -> None:
    calls = Scripted(*[NotDone("down")] * 6)
    async with system(Purchase, Failing, fakes={Failing.charge: calls}, partitions=1) as running:
        for number in range(9):
            await running.execute(Purchase, str(number), Buy(card="ada", amount=5))
        assert len(calls.calls) == 5
        queue = (await running.status()).partitions[0].courier.calls[0]  # type: ignore[union-attr]  # there is one
        assert (queue.method, queue.waiting, queue.state) == ("charge", 4, "pausing")
        running.clock.advance(timedelta(seconds=1))
        assert len(calls.calls) == 6
        running.clock.advance(timedelta(seconds=2))
        assert len(calls.calls) == 9
        await running.execute(Failing, "0:1", Retry(**ADA))
        assert len(calls.calls) == 10


def test_an_effect_without_a_fake_is_refused_by_name() -> None:
    with pytest.raises(InvalidMessage, match=r"Charging.charge calls the outside, and has no fake; give fakes="):
        system(Purchase, Charging)
    with pytest.raises(InvalidMessage, match=r"the fake is of Failing.charge, which is no function of its effects"):
        system(Purchase, Charging, fakes={Charging.charge: None, Charging.look: None, Failing.charge: None})


async def test_a_fake_may_be_async_and_must_not_wait() -> None:
    async def at_once(event: ChargeRequested, call: Call) -> Send:
        return confirmed(event, call)

    async with shop(at_once) as running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        assert await state_of(running, "1") == "paid"


def test_a_blocking_system_has_effects() -> None:
    fakes = {Charging.charge: confirmed, Charging.look: None}
    with system_blocking(Purchase, effects=[Charging], fakes=fakes) as running:
        running.execute(Purchase, "1", Buy(card="ada", amount=5))
        assert running.state_at(Purchase, "1").state == "paid"


async def test_a_fake_that_raises_or_waits_leaves_the_end_unknown_and_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def wrong(event: ChargeRequested, call: Call) -> Done:
        raise ConnectionResetError("reset")

    async def slow(event: ChargeRequested, call: Call) -> Send:
        await asyncio.sleep(0)
        return confirmed(event, call)

    for fake in (wrong, slow):
        looks = Scripted()
        async with shop(fake, looks) as running:
            await running.execute(Purchase, "1", Buy(card="ada", amount=5))
            assert (await state_of(running, "1"), len(looks.calls)) == ("paid", 1)
    assert "the fake of Charging.charge has failed: ConnectionResetError: reset" in caplog.text
    assert "the fake of charge waits; return its result at once" in caplog.text


class Routed(Effects):
    """Has an order that cannot be found out for some."""

    @effect(order_by=lambda event: str({"ada": "a", "bob": "b"}[event.card]))
    async def charge(self, event: ChargeRequested) -> Done:
        return Done()


async def test_an_event_whose_order_is_not_known_waits_visibly_and_is_sent_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = Scripted()
    async with system(Purchase, Routed, fakes={Routed.charge: calls}) as running:
        await running.execute(Purchase, "1", Buy(card="eve", amount=5))
        assert not calls.calls
        [call] = await running.effects(state="parked")
        assert (call.effects, call.id) == ("Routed", "rayfold:unrouted")
        assert "order_by= of Routed.charge: KeyError: 'eve'" in call.why
        await running.execute(Purchase, "2", Buy(card="ada", amount=5))
        assert [one.id for one in calls.calls] == ["a"]
        reaction = Routed.reactions["ChargeRequested"]
        monkeypatch.setitem(Routed.reactions, "ChargeRequested", reaction._replace(one=lambda event: event.card))
        await running.execute(Routed, "rayfold:unrouted", Retry(**ADA))
        assert [one.id for one in calls.calls] == ["a", "eve"]
        assert not await running.effects()


async def test_a_result_that_is_refused_is_shown() -> None:
    def twice(event: ChargeRequested, call: Call) -> Done:
        return Done(Send(Purchase, "1", Buy(card="ada", amount=1)))

    async with shop(twice) as running:
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        [call] = await running.effects()
        assert call.state == "parked"
        assert call.why == "what its result sends: Buy to Purchase/1 was refused: already_bought"
        with pytest.raises(InvalidMessage, match="state='lost' is none"):
            await running.effects(state="lost")  # type: ignore[arg-type]  # as tested


async def test_calls_are_switched_off_and_on() -> None:
    calls = Scripted()
    async with shop(calls, partitions=3) as running:
        await running.switch_effects(Charging, False, **ADA)
        await running.execute(Purchase, "1", Buy(card="ada", amount=5))
        running.clock.advance(timedelta(days=1))
        assert not calls.calls
        await running.switch_effects(Charging, True, **ADA)
        assert await state_of(running, "1") == "paid"
