"""How an attempt is made: whatever its function does, there is one result, and what is none means an unknown end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from rayfold import Call, Declined, Done, Effects, Event, NotDone, Send, Unknown, effect, settle
from rayfold.runtime.effects.call_attempt import CallAttempt
from rayfold.runtime.effects.results import DECLINED, DONE, NOT_DONE, UNKNOWN, unpacked_result
from rayfold.runtime.effects.running import made
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.stream import StreamId
from tests.bank import Account, Deposit


class Asked(Event):
    to: str


doing: list[Callable[[Call | None], Any]] = []
"""What the function does."""


class Calling(Effects):
    @effect(timeout_s=0.05)
    async def call(self, event: Asked, call: Call) -> Done:
        done = doing[-1](call)
        return await done if asyncio.iscoroutine(done) else done  # type: ignore[no-any-return]  # as tested

    @settle(call)
    async def look(self, event: Asked) -> Done:
        return Done(note=event.to)


CATALOGUE = Catalogue([Account], processes=[Calling])
KEY = bytes(range(16))


def attempt(method: str = "call", name: str = "Asked", payload: bytes | None = None) -> CallAttempt:
    head = msgpack.packb(("Account", "ada", 3, name, 0, 17, 1, 5, b"c" * 16, b"", b""))
    packed = encode_message(Asked(to="ada")) if payload is None else payload
    stream = StreamId("Calling", "ada:3")
    return CallAttempt(stream, method, 2, 1, KEY, head, packed, 0, b"", unknown=True, hops=0)


async def come_to(does: Callable[[Call | None], Any], one: CallAttempt | None = None) -> tuple[int, str]:
    doing.append(does)
    packed = await made(one or attempt(), CATALOGUE, {"Calling": Calling()})
    result = unpacked_result(packed)
    return result.result, result.note


async def test_a_result_is_what_the_function_returns() -> None:
    assert await come_to(lambda _: Done(note="17")) == (DONE, "17")
    assert await come_to(lambda _: Send(Account, "ada", Deposit(amount=5))) == (DONE, "")
    assert await come_to(lambda _: Declined("no_money")) == (DECLINED, "no_money")
    assert await come_to(lambda _: NotDone("busy")) == (NOT_DONE, "busy")
    assert await come_to(lambda _: Unknown("who knows")) == (UNKNOWN, "who knows")
    assert await come_to(lambda _: Done(note="x" * 5_000)) == (DONE, "x" * 1_000)


async def test_a_function_gets_the_key_the_attempt_and_where_the_event_is_from() -> None:
    seen: list[Call] = []

    def note(call: Call | None) -> Done:
        assert call is not None
        seen.append(call)
        return Done()

    await come_to(note)
    [call] = seen
    assert (call.key, call.attempt, call.timeout_s, call.id, call.unknown) == (KEY.hex(), 2, 0.05, "ada:3", True)
    recorded = call.recorded
    assert (recorded.aggregate_type, recorded.aggregate_id, recorded.version) == ("Account", "ada", 3)
    assert (recorded.partition, recorded.position, recorded.recorded_at_us) == (0, 17, 5)


async def test_a_look_need_not_take_a_call() -> None:
    assert await come_to(lambda _: None, attempt("look")) == (DONE, "ada")


@pytest.mark.parametrize(
    "error", [ValueError("reset"), SystemExit(3), asyncio.CancelledError("gone"), GeneratorExit(), BaseException("any")]
)
async def test_whatever_a_function_raises_its_end_is_unknown(error: BaseException) -> None:
    def raises(_: Call | None) -> Done:
        raise error

    result, why = await come_to(raises)
    assert result == UNKNOWN
    assert type(error).__name__ in why


@pytest.mark.parametrize("wrong", [None, True, "done", Exception("returned"), Done])
async def test_what_is_no_result_is_an_unknown_end(wrong: Any) -> None:
    result, why = await come_to(lambda _: wrong)
    assert result == UNKNOWN
    assert "return Done(), Declined(...), NotDone(...), Unknown(...) or a Send" in why


async def test_a_function_that_takes_too_long_is_cancelled() -> None:
    cancelled: list[bool] = []

    async def hang() -> Done:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)
        return Done()

    assert await come_to(lambda _: hang()) == (UNKNOWN, "it took over 0.05 s")
    assert cancelled == [True]


async def test_a_timeout_of_the_functions_own_is_an_unknown_end() -> None:
    def raises(_: Call | None) -> Done:
        raise TimeoutError("the bank took too long")

    assert await come_to(raises) == (UNKNOWN, "TimeoutError: the bank took too long")


async def test_a_result_that_is_too_large_to_be_stored_is_an_unknown_end() -> None:
    class Note(Deposit):
        text: str = ""

    class Noting(Account, name="Noting"):
        pass

    Noting.deciders = {**Account.deciders, Note: Account.deciders[Deposit]}
    large = Send(Noting, "ada", Note(amount=5, text="x" * 60_000))
    result, why = await come_to(lambda _: Done(*[large] * 5))
    assert result == UNKNOWN
    assert "over 262,144" in why


async def test_what_cannot_be_called_was_not_done() -> None:
    def never(_: Call | None) -> Done:
        raise AssertionError("it was called")

    assert await come_to(never, attempt("other")) == (NOT_DONE, "Calling has no function other here")
    result, why = await come_to(never, attempt(payload=b"\xc1"))
    assert (result, why.startswith("its event cannot be read:")) == (NOT_DONE, True)
    result, why = await come_to(never, attempt(name="Forgotten"))
    assert (result, "Forgotten" in why) == (NOT_DONE, True)
