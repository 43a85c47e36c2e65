"""Errors: each one's sentence, and that it comes out of a pickle and off the wire as it went in."""

from __future__ import annotations

import pickle

import msgpack
import pytest

from rayfold.runtime import errors
from rayfold.runtime.encoding.error_codec import from_wire, to_wire
from rayfold.runtime.errors import (
    CallerError,
    CodeMismatch,
    CommandIdReused,
    Conflict,
    Damaged,
    DefinitionError,
    Fenced,
    HandlerFailed,
    InvalidId,
    InvalidMessage,
    NotInHistory,
    NotPrivate,
    NotYetVisible,
    Overloaded,
    RayfoldError,
    RebuildCancelled,
    Refusal,
    Rejected,
    Sealed,
    StorageFailed,
    StoreError,
    StoreInUse,
    StoreMismatch,
    StoreMissing,
    SubscriptionInUse,
    Unavailable,
    UnknownEvent,
    UnknownName,
)
from rayfold.runtime.stream import StreamId
from tests.support.sentences import SENTENCES

OF_OURS = {name: cls for name, cls in RayfoldError.by_name.items() if cls.__module__ == errors.__name__}


def test_every_error_has_a_sentence_here() -> None:
    assert {type(error) for error, _ in SENTENCES} == set(OF_OURS.values())
    assert set(OF_OURS) == {name for name in errors.__all__ if name not in ("to_wire", "from_wire")}


@pytest.mark.parametrize(("error", "sentence"), SENTENCES, ids=lambda value: type(value).__name__)
def test_an_error_says_its_facts_in_one_sentence_without_a_full_stop(error: RayfoldError, sentence: str) -> None:
    assert str(error) == sentence
    assert "\n" not in sentence
    assert not sentence.endswith(".")


@pytest.mark.parametrize("error", [error for error, _ in SENTENCES], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_comes_out_of_a_pickle_as_it_went_in(error: RayfoldError, protocol: int) -> None:
    copied = pickle.loads(pickle.dumps(error, protocol))
    assert type(copied) is type(error)
    assert copied.args == error.args
    assert vars(copied) == vars(error)
    assert str(copied) == str(error)


@pytest.mark.parametrize("error", [error for error, _ in SENTENCES], ids=lambda error: type(error).__name__)
def test_an_error_comes_off_the_wire_as_it_was_put_on(error: RayfoldError) -> None:
    arrived = from_wire(msgpack.unpackb(msgpack.packb(to_wire(error)), use_list=False))
    assert type(arrived) is type(error)
    assert arrived.args == error.args
    assert vars(arrived) == vars(error)
    assert str(arrived) == str(error)


def test_errors_are_grouped_by_whose_fault_they_are() -> None:
    children = {cls: set(cls.__subclasses__()) & set(OF_OURS.values()) for cls in OF_OURS.values()}
    groups = {cls: below for cls, below in children.items() if below}
    assert groups == {
        RayfoldError: {
            DefinitionError,
            CallerError,
            Refusal,
            HandlerFailed,
            Unavailable,
            Overloaded,
            RebuildCancelled,
            StoreError,
        },
        CallerError: {InvalidMessage, InvalidId, UnknownName, NotInHistory, CommandIdReused},
        Refusal: {Rejected, Conflict},
        Unavailable: {NotYetVisible},
        StoreMismatch: {CodeMismatch},
        StoreError: {
            StoreMissing,
            StoreMismatch,
            StoreInUse,
            SubscriptionInUse,
            StorageFailed,
            NotPrivate,
            Fenced,
            Sealed,
            Damaged,
            UnknownEvent,
        },
    }


def test_errors_are_caught_as_what_python_would_raise_for_the_like() -> None:
    assert issubclass(DefinitionError, TypeError)
    assert issubclass(CallerError, ValueError)
    assert issubclass(Unavailable, TimeoutError)


def test_a_long_id_is_shortened_in_the_sentence_and_kept_in_the_error() -> None:
    error = InvalidId("aggregate id", "x" * 500, "has 500 characters")
    assert str(error) == f"aggregate id '{'x' * 57}...' has 500 characters"
    assert error.value == "x" * 500


def test_a_rejection_may_have_a_fact_of_any_name() -> None:
    rejected = Rejected("full", reason="of seats", self=1, stream="a river", command="halt")
    assert (rejected.reason, rejected.stream, rejected.command) == ("full", None, "")
    assert str(rejected) == "full (reason='of seats', self=1, stream='a river', command='halt')"
    told = Rejected.with_facts(rejected.reason, rejected.facts, "Plane/1", "Board")
    assert str(told).startswith("Plane/1 refused Board: full (reason='of seats'")
    assert vars(pickle.loads(pickle.dumps(told))) == vars(told)


@pytest.mark.parametrize("text", ["Account/alice", "Account/a/b/", "bank.Account/", "Account/\N{SNOWMAN} /"])
def test_a_refusal_says_which_aggregate_it_is_about_as_a_receipt_does(text: str) -> None:
    kind, _, ident = text.partition("/")
    expected = StreamId(kind, ident)
    refusals = [
        Rejected.with_facts("full", {"seats": 3}, text, "Board"),
        Conflict(text, 4, 6),
        CommandIdReused("00" * 16, text),
    ]
    for refusal in refusals:
        for arrived in (refusal, pickle.loads(pickle.dumps(refusal)), from_wire(to_wire(refusal))):
            stream = arrived.stream  # type: ignore[union-attr]  # each of the three has one
            assert (type(stream), stream) == (StreamId, expected)
            assert str(arrived) == str(refusal)


def test_what_a_handler_raised_becomes_one_bounded_line() -> None:
    error = HandlerFailed.caused_by("A.b", "A/1", ValueError("first\n  second\tthird"))
    assert str(error) == "A.b failed on A/1: ValueError: first second third"
    assert str(HandlerFailed.caused_by("A.b", "A/1", KeyError())) == "A.b failed on A/1: KeyError"
    long = HandlerFailed.caused_by("A.b", "A/1", ValueError("x" * 10_000))
    assert len(long.what) == 500
    assert long.what.endswith("x...")


class OfAnApplication(HandlerFailed):
    """An error that no other process needs to know."""


class Overdrawn(Rejected):
    """A rejection with a class of its own."""


def test_an_error_class_of_an_application_travels_as_the_one_it_derives_from() -> None:
    arrived = from_wire(to_wire(OfAnApplication("A.b", "A/1", "no")))
    assert type(arrived) is HandlerFailed
    assert str(arrived) == "A.b failed on A/1: no"
    rejected = from_wire(to_wire(Overdrawn("overdrawn", by=5)))
    assert type(rejected) is Rejected
    assert str(rejected) == "overdrawn (by=5)"


def test_an_error_class_of_an_application_does_not_take_the_name_of_one_of_ours() -> None:
    type("Conflict", (Rejected,), {"__module__": __name__})
    assert type(from_wire(["Conflict", "A/1", 3, 4])) is Conflict


def test_what_would_control_a_terminal_in_an_id_is_escaped_in_the_sentence_and_kept_in_the_error() -> None:
    error = Damaged("Account/\x1b]0;owned\x07\u202e", "one line\nand a forged one\x9b2J")
    assert str(error) == r"Account/\x1b]0;owned\x07\u202e is damaged: one line\nand a forged one\x9b2J"
    assert error.where == "Account/\x1b]0;owned\x07\u202e"
