"""Outcomes: what a caller is answered, as it crosses from an actor back to the client."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from io import BytesIO
from typing import Any, NamedTuple
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.runtime.domain.recorded import Recorded
from rayfold.runtime.encoding.facts import as_answered
from rayfold.runtime.encoding.outcome import (
    Answered,
    Redirect,
    decode_answer,
    decode_outcomes,
    encode_answer,
    encode_outcomes,
)
from rayfold.runtime.errors import (
    Conflict,
    HandlerFailed,
    InvalidId,
    InvalidMessage,
    RayfoldError,
    Rejected,
    UnknownName,
)
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import StreamId
from tests.support.sentences import SENTENCES

ALICE = StreamId("Account", "alice")


class Waiting(NamedTuple):
    """A command that waits for its outcome, as far as an outcome needs to know it."""

    stream: StreamId
    command_id: bytes


def arrived(*outcomes: Answered) -> list[Answered]:
    """The outcomes as the client gets them."""
    commands = [Waiting(ALICE, number.to_bytes(16, "big")) for number in range(len(outcomes))]
    return decode_outcomes(encode_outcomes(outcomes), commands)


def rejected(**facts: Any) -> Rejected:
    """What arrives of a rejection with these facts."""
    (outcome,) = arrived(Rejected.with_facts("reason", facts, "Account/alice", "Deposit"))
    assert isinstance(outcome, Rejected)
    assert (outcome.reason, outcome.stream, outcome.command) == ("reason", ALICE, "Deposit")
    return outcome


# Receipts ------------------------------------------------------------------------------------------------------


def test_receipts_arrive_with_the_stream_and_id_of_their_commands() -> None:
    one = Receipt(ALICE, 3, 1 << 60, 1 << 40, bytes(16), False)
    other = Receipt(ALICE, 0, 1, 1, (1).to_bytes(16, "big"), True)
    assert arrived(one, other) == [one, other]


def test_a_receipt_shows_its_command_id_as_a_uuid() -> None:
    receipt = Receipt(ALICE, 0, 1, 1, UUID(int=7).bytes, event_count=1)
    assert receipt.command_id == UUID(int=7)
    shown = "stream=StreamId(type='Account', id='alice'), partition=0, position=1, version=1, "
    shown += "command_id=UUID('00000000-0000-0000-0000-000000000007'), event_count=1"
    assert repr(receipt) == f"Receipt({shown})"
    assert repr(receipt._replace(repeated=True, carried=(3,))) == f"Receipt({shown}, repeated=True, events=(3,))"


def test_a_recorded_place_shows_its_ids_as_uuids() -> None:
    recorded = Recorded(ALICE, 2, 0, 7, 1_000, UUID(int=7).bytes, b"", UUID(int=8).bytes)
    shown = "stream=StreamId(type='Account', id='alice'), version=2, partition=0, position=7, recorded_at_us=1000, "
    shown += "command_uuid=UUID('00000000-0000-0000-0000-000000000007')"
    causation = "causation_uuid=UUID('00000000-0000-0000-0000-000000000008')"
    assert repr(recorded) == f"Recorded({shown}, {causation})"
    assert repr(recorded._replace(causation_id=b"", replayed=True)) == f"Recorded({shown}, replayed=True)"


def test_no_outcomes_are_no_bytes() -> None:
    assert encode_outcomes([]) == b""
    assert decode_outcomes(b"", []) == []


def test_an_answer_says_too_what_a_batch_costs() -> None:
    receipt = Receipt(ALICE, 3, 7, 2, bytes(16), False)
    answered, batch_cost_s = decode_answer(encode_answer([receipt], 0.00125), [Waiting(ALICE, bytes(16))])
    assert answered == [receipt]
    assert batch_cost_s == pytest.approx(0.00125)
    assert decode_answer(encode_answer([], 0.0), []) == ([], 0.0)


def test_that_an_aggregate_lives_elsewhere_arrives() -> None:
    assert arrived(Redirect("bank:Account/alice"), Redirect("")) == [Redirect("bank:Account/alice"), Redirect("")]


@pytest.mark.parametrize("commands", [0, 1, 3])
def test_another_number_of_outcomes_than_of_commands_is_never_taken_for_an_answer(commands: int) -> None:
    blob = encode_outcomes([Redirect("a"), Redirect("b")])
    with pytest.raises(ValueError, match="argument"):
        decode_outcomes(blob, [Waiting(ALICE, bytes(16))] * commands)


# Errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "sentence"), SENTENCES, ids=lambda value: type(value).__name__)
def test_an_error_of_every_class_arrives_with_its_type_and_text(error: RayfoldError, sentence: str) -> None:
    before, outcome, after = arrived(Redirect("x"), error, Redirect("y"))
    assert (before, after) == (Redirect("x"), Redirect("y"))
    assert type(outcome) is type(error)
    assert str(outcome) == sentence
    assert outcome.args == error.args
    assert vars(outcome) == vars(error)


def test_facts_that_msgpack_carries_arrive_as_they_are() -> None:
    facts = {"none": None, "yes": True, "n": -5, "half": 0.5, "text": "ä", "raw": b"\0", "all": {"a": {1: "x"}}}
    assert rejected(**facts).facts == facts
    assert rejected(many=[1, [2]]).facts == {"many": [1, [2]]}


class Level(Enum):
    HIGH = 3


@dataclass
class Money:
    """As a user has it."""

    cents: int

    def __str__(self) -> str:
        return f"{self.cents} cents"


@pytest.mark.parametrize(
    "fact",
    [
        Decimal("1.50"),
        date(2013, 1, 2),
        datetime(2013, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=5, minutes=30))),
        datetime(1901, 1, 1, tzinfo=timezone(timedelta(minutes=19, seconds=32))),
        time(1, 2, 3),
        timedelta(days=-1, microseconds=1),
        UUID(int=1),
        {"one"},
        frozenset({1, "one"}),
        (1, (2, [3])),
        [(1, 2), {3: (4,)}],
        {(1, "a"): {Decimal("2"): [date(2013, 1, 2)]}},
        1 << 70,
        -(1 << 200),
        complex(1, 2),
        b"x" * 1000,
        -0.0,
        True,
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fact_keeps_its_type(fact: object) -> None:
    arrived_fact = rejected(fact=fact).facts["fact"]
    assert (type(arrived_fact), repr(arrived_fact)) == (type(fact), repr(fact))


@pytest.mark.parametrize(
    ("fact", "told"),
    [
        (Money(5), "5 cents"),
        ([Money(5)], ["5 cents"]),
        ({"a": Money(5)}, {"a": "5 cents"}),
        ({Level.HIGH: (Level.HIGH,)}, {3: (3,)}),
        (Level.HIGH, 3),
        (ALICE, ("Account", "alice")),
        (ValueError("no"), "no"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_fact_whose_class_a_caller_may_not_have_arrives_as_its_value_or_text(fact: object, told: object) -> None:
    assert rejected(fact=fact).facts == {"fact": told}


def test_facts_as_told_in_the_same_process_are_those_that_arrive_from_another() -> None:
    held = [1]
    facts = {"held": held, "money": Money(5), "level": Level.HIGH, "where": ALICE, "tuple": (1,), "text": "x" * 100_000}
    told = as_answered(Rejected("reason", **facts), "Account/alice", "Deposit")
    (outcome,) = arrived(told)
    assert isinstance(outcome, Rejected)
    assert outcome.facts == told.facts
    held.append(2)
    assert told.facts["held"] == "[1]", "too large together: each is shown as text"
    small = as_answered(Rejected("reason", held=held), "Account/alice", "Deposit")
    held.append(3)
    assert small.facts == {"held": [1, 2]}


class Silent:
    """Cannot be shown at all."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def circle() -> list[Any]:
    """A list in itself."""
    inside: list[Any] = []
    inside.append(inside)
    return inside


@pytest.mark.parametrize(
    ("fact", "told"),
    [
        (10**5_000, "a int whose text raises ValueError"),
        ("a\ud800b", "a\\ud800b"),
        ([1, "\ud800"], "[1, '\\ud800']"),
        ({"deep": ["\ud800"]}, "{'deep': ['\\ud800']}"),
        ({"deep": Silent()}, "a dict whose text raises RuntimeError"),
        (Silent(), "a Silent whose text raises RuntimeError"),
        (circle(), "[[...]]"),
        ("x" * 1_000_000, "x" * 500),
        ([0] * 200_000, "[" + "0, " * 166 + "0"),
    ],
    ids=[
        "too long for text",
        "surrogate",
        "list",
        "deep",
        "deep and silent",
        "silent",
        "circle",
        "long",
        "many",
    ],
)
def test_a_fact_that_cannot_be_carried_becomes_bounded_text_and_spoils_no_other(fact: object, told: object) -> None:
    outcome = rejected(fact=fact, other=5, some=True, none=None, half=0.5)
    assert outcome.facts == {"fact": told, "other": 5, "some": True, "none": None, "half": 0.5}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            UnknownName("aggregate", "\ud800", ["Account", "Vault"]),
            "no aggregate is named '\\\\ud800'; known: Account, Vault",
        ),
        (HandlerFailed("A.b", "A/1", "KeyError: \ud800"), "A.b failed on A/1: KeyError: \\ud800"),
        (InvalidId("aggregate id", "\ud800", "is odd"), "aggregate id '\\\\ud800' is odd"),
        (InvalidMessage("Deposit", "\ud800", "\udfff"), "Deposit: \\ud800; \\udfff"),
        (Conflict("A/1", 1 << 70, 3), f"expected version {1 << 70} of A/1, but the stream is at 3"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_whose_facts_cannot_be_carried_keeps_its_type_and_a_readable_text(
    error: RayfoldError, text: str
) -> None:
    (outcome,) = arrived(error)
    assert type(outcome) is type(error)
    assert str(outcome) == text


def test_no_error_is_larger_than_its_bound() -> None:
    facts: dict[str, Any] = {f"fact_{number}": "ä" * 1_000_000 for number in range(50)}
    assert len(encode_outcomes([Rejected("reason", **facts)])) < 100_000
    many: dict[str, Any] = {f"fact_{number}": number for number in range(20_000)}
    blob = encode_outcomes([Rejected.with_facts("reason", many, "Account/alice", "Deposit")])
    assert len(blob) < 5_000
    (outcome,) = decode_outcomes(blob, [Waiting(ALICE, bytes(16))])
    assert isinstance(outcome, Rejected)
    assert len(outcome.facts) == 101
    assert outcome.facts["shown"] == "100 of 20,000 facts"


FACTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.decimals(),
    lambda facts: st.lists(facts) | st.dictionaries(st.text(st.characters()), facts) | st.frozensets(st.integers()),
    max_leaves=20,
)


@pytest.mark.slow
@given(facts=st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), FACTS, max_size=5))
def test_whatever_the_facts_are_the_rejection_arrives_and_so_do_its_neighbours(facts: dict[str, Any]) -> None:
    before, outcome, after = arrived(Redirect("x"), Rejected("reason", **facts), Redirect("y"))
    assert (before, after) == (Redirect("x"), Redirect("y"))
    assert isinstance(outcome, Rejected)
    assert set(outcome.facts) == set(facts)
    assert str(outcome).startswith("reason")


def test_an_outcome_is_plain_msgpack() -> None:
    blob = encode_outcomes([Rejected("reason", fact=Money(5)), Redirect("x")])
    plain = list(msgpack.Unpacker(BytesIO(blob)))
    assert plain == [[1, "Rejected", "reason", msgpack.packb({"fact": "5 cents"}), "", ""], [2, "x"]]
