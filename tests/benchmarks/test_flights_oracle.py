"""The domain, command by command, against the oracle, column by column; and bugs that must not go unseen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfold import Projection, Recorded, derived_id, project
from rayfold.benchmarks.flights.compensation import Paid
from rayfold.benchmarks.flights.domain import Landed
from rayfold.benchmarks.flights.feed import Feed
from rayfold.benchmarks.flights.figures import Distances, Punctuality, Routes
from rayfold.benchmarks.flights.oracle import Expected, expect
from rayfold.benchmarks.flights.table import NEVER, read_flights
from rayfold.benchmarks.flights.verification import Check, Ledger, check_answers, check_figures
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.log.contract import NewEvent, StoredEvent
from rayfold.runtime.log.format import CHAIN_START, NextRecord, decode_record, encode_record
from rayfold.runtime.stream import StreamId
from tests.benchmarks.plain_run import QUESTIONS, PlainRun, table_of, walk

pytestmark = pytest.mark.slow

FLIGHTS = 13_000
"""Enough that each reason to refuse a command occurs. `rayfold demo --all` holds the whole year against the oracle."""


class Sent(NamedTuple):
    """The first flights of the year, sent and counted."""

    feed: Feed
    ledger: Ledger
    expected: Expected
    run: PlainRun


@pytest.fixture(scope="module")
def sent() -> Sent:
    flights = read_flights(FLIGHTS)
    feed, run = Feed(flights), PlainRun()
    return Sent(feed, run.send(feed), expect(flights), run)


def problems_of(*checks: Check) -> list[str]:
    return [problem for check in checks for problem in check.problems]


def answers_of(sent: Sent, *, asked_again: bool = False) -> list[str]:
    return problems_of(*check_answers(sent.expected, sent.feed, sent.ledger, asked_again=asked_again))


@pytest.mark.parametrize("projection", QUESTIONS)
def test_every_figure_of_a_read_model_is_what_the_table_says(sent: Sent, projection: type[Projection]) -> None:
    name = projection.projection_name
    check = check_figures(name, sent.expected.tables[name], sent.run.rows(projection))
    assert check.problems == []
    assert len(sent.expected.tables[name]) > 10


def test_exactly_the_refusals_of_the_oracle_are_told_for_exactly_its_reasons(sent: Sent) -> None:
    assert answers_of(sent) == []
    reasons = {"did_not_take_off": 21, "not_back_yet": 10, "still_in_the_air": 11, "left_too_early": 2}
    assert sent.ledger.rejected_by_reason == reasons
    assert Counter(sent.expected.refused.values()) == reasons
    assert sent.ledger.accepted == sent.expected.accepted == sent.run.events()


def test_the_log_holds_every_acknowledged_event_once(sent: Sent) -> None:
    found = sent.run.walk(sent.feed, sent.ledger)
    assert problems_of(*found.checks) == []
    assert found.facts.events == sent.expected.accepted
    assert found.facts.duplicates == 0


def test_sending_everything_again_adds_no_event_and_tells_the_first_receipts(sent: Sent) -> None:
    before = sent.run.events()
    again = sent._replace(ledger=sent.run.send(sent.feed))
    assert sent.run.events() == before
    assert again.ledger.repeated == again.ledger.accepted == sent.ledger.accepted
    assert again.ledger.position == sent.ledger.position
    assert again.ledger.rejected.keys() == sent.ledger.rejected.keys()
    assert answers_of(again, asked_again=True) == []
    assert problems_of(*sent.run.walk(sent.feed, again.ledger).checks) == []


def test_more_flights_into_the_same_store_come_to_what_all_at_once_come_to() -> None:
    run = PlainRun()
    for count in (1_000, 1_500, 3_000):
        flights = read_flights(count)
        feed, expected = Feed(flights), expect(flights)
        ledger = run.send(feed)
        assert problems_of(*check_answers(expected, feed, ledger, asked_again=True)) == []
        assert problems_of(*run.walk(feed, ledger).checks) == []
        rows = {one: run.rows(one) for one in QUESTIONS}
        names = {one: one.projection_name for one in QUESTIONS}
        checks = [check_figures(names[one], expected.tables[names[one]], rows[one]) for one in QUESTIONS]
        assert problems_of(*checks) == []


# --- random tables, where the real one has few oddities ----------------------------------------------------------


NEARLY = st.integers(-1, 1)
"""Around a limit: a minute before it, on it, and after it."""


@st.composite
def instants(draw: st.DrawFn, last: tuple[int, int, int] | None) -> int:
    """When an aircraft leaves, as often as not about when it just can, given its last departure, landing and miles."""
    if last is None or draw(st.booleans()):
        return draw(st.integers(10_000, 14_000))
    departed_min, landed_min, miles = last
    back_min = landed_min + 20 + -(-miles * 60 // 640)
    return draw(st.sampled_from([departed_min + 1_440, landed_min, back_min])) + draw(NEARLY)


@st.composite
def usual_flights(draw: st.DrawFn, number: int, last: dict[str, tuple[int, int, int]]) -> dict[str, Any]:
    tail, miles = draw(st.sampled_from(["N1", "N2"])), draw(st.integers(1, 3_000))
    delay_min = draw(st.one_of(st.integers(-30, 200), st.integers(-21, -19), st.integers(14, 16)))
    elapsed_min, due_after_min = draw(st.integers(30, 1_439)), draw(st.integers(30, 700))
    departed_min = draw(instants(last.get(tail)))
    scheduled_min, landed_min = departed_min - delay_min, departed_min + elapsed_min
    last[tail] = (departed_min, landed_min, miles)
    quickest_min = max(1, miles * 60 // 640 + draw(NEARLY))
    return {
        "flight": number,
        "carrier": draw(st.sampled_from(["UA", "B6"])),
        "tailnum": tail,
        "origin": draw(st.sampled_from(["EWR", "JFK"])),
        "distance": miles,
        "scheduled_min": scheduled_min,
        "departed_min": departed_min,
        "dep_delay": float(delay_min),
        "due_min": scheduled_min + due_after_min,
        "landed_min": landed_min,
        "arr_delay": float(landed_min - scheduled_min - due_after_min),
        "air_time": float(min(elapsed_min, draw(st.sampled_from([quickest_min, elapsed_min, 30])))),
    }


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    flights, last, nothing = [], dict[str, tuple[int, int, int]](), float("nan")
    for number in range(draw(st.integers(1, 14))):
        flight = draw(usual_flights(number, last))
        kind = draw(st.sampled_from(["usual", "usual", "usual", "diverted", "unseen", "cancelled"]))
        if kind != "usual":
            flight |= {"air_time": nothing, "arr_delay": nothing}
        if kind in ("unseen", "cancelled"):
            flight |= {"arr_time": nothing, "landed_min": NEVER}
        if kind == "cancelled":
            flight |= {"dep_time": nothing, "dep_delay": nothing, "departed_min": NEVER}
        flights.append(flight)
    table = table_of(*flights)
    happened_min = table["departed_min"].where(table["departed_min"] != NEVER, table["scheduled_min"])
    return table.loc[happened_min.sort_values(kind="stable").index].reset_index(drop=True)


@settings(max_examples=150)
@given(tables())
def test_domain_and_oracle_agree_on_any_table(table: pd.DataFrame) -> None:
    feed, run, expected = Feed(table), PlainRun(), expect(table)
    ledger = run.send(feed)
    checks = list(check_answers(expected, feed, ledger, asked_again=False))
    for projection in QUESTIONS:
        name = projection.projection_name
        checks.append(check_figures(name, expected.tables[name], run.rows(projection)))
    assert problems_of(*checks) == []
    again = run.send(feed)
    assert again.repeated == ledger.accepted == run.events()
    assert problems_of(*check_answers(expected, feed, again, asked_again=True)) == []


def test_the_oracle_knows_an_aircraft_that_cannot_be_back() -> None:
    table = table_of({"flight": 1}, {"flight": 2, "departed_min": 180, "scheduled_min": 180, "landed_min": 300})
    assert expect(table).refused == {(1, "TAKE_OFF"): "not_back_yet", (1, "LAND"): "did_not_take_off"}


def test_the_oracle_knows_a_flight_that_was_too_fast() -> None:
    table = table_of({"distance": 2_000, "air_time": 100.0})
    assert expect(table).refused == {(0, "LAND"): "faster_than_airliners"}


def test_the_oracle_knows_a_flight_that_left_too_early() -> None:
    table = table_of({"dep_delay": -21.0, "scheduled_min": 21})
    assert expect(table).refused == {(0, "DEPART"): "left_too_early"}


# --- planted bugs: each must make the verification fail, with what is wrong --------------------------------------


class Twice(Punctuality, name="Punctuality"):
    """Applies the thousandth landing twice."""

    seen: int = 0

    @project
    def landed(self, event: Landed) -> None:
        self.seen += 1
        for _ in range(2 if self.seen == 1_000 else 1):
            super().landed(event)


class Forgetful(Distances, name="Distances"):
    """Drops the thousandth landing."""

    seen: int = 0

    @project
    def landed(self, event: Landed, recorded: Recorded) -> None:
        self.seen += 1
        if self.seen != 1_000:
            super().landed(event, recorded)


class OneMinuteOff(Routes, name="Routes"):
    """Adds a minute to one flight."""

    seen: int = 0

    @project
    def landed(self, event: Landed) -> None:
        self.seen += 1
        super().landed(event)
        if self.seen == 1_000:
            self.routes[event.origin, event.destination].airborne_min += 1


@pytest.mark.parametrize(
    ("buggy", "original", "figures"),
    [
        (Twice, Punctuality, {"landed", "landed_late", "arrival_late_min"}),
        (Forgetful, Distances, {"flights", "distance_miles", "airborne_min"}),
        (OneMinuteOff, Routes, {"airborne_min"}),
    ],
)
def test_a_read_model_that_is_off_by_one_event_is_found(
    sent: Sent, buggy: type[Projection], original: type[Projection], figures: set[str]
) -> None:
    name = original.projection_name
    check = check_figures(name, sent.expected.tables[name], sent.run.rows(buggy, QUESTIONS[original]))
    assert not check.passed
    assert {problem.split(": ")[1].split(" ")[0] for problem in check.problems} <= figures
    assert " in the table " in check.problems[0]


def test_a_row_too_few_and_a_row_too_many_are_found(sent: Sent) -> None:
    rows = sent.run.rows(Punctuality)
    expected = sent.expected.tables["Punctuality"]
    assert check_figures("Punctuality", expected, rows[1:]).problems == ["9E is missing"]
    fewer = {key: row for key, row in expected.items() if key != ("9E",)}
    assert check_figures("Punctuality", fewer, rows).problems == ["9E should not be there"]


class EditedLog:
    """A log whose records went through an edit, positions and checksums made good again."""

    def __init__(self, records: list[bytes], edit: Callable[[list[StoredEvent]], list[StoredEvent]]) -> None:
        events = edit([decode_record(record) for record in records])
        self._records = list(_encoded(events))

    def head(self) -> int:
        return len(self._records)

    def read(self, after: int, limit: int) -> list[bytes]:
        return self._records[after : after + limit]


def _encoded(events: list[StoredEvent]) -> Iterator[bytes]:
    versions: Counter[Any] = Counter()
    for position, event in enumerate(events, start=1):
        versions[event.stream] += 1
        ids = (event.command_id, event.correlation_id, event.causation_id)
        at = NextRecord(position, CHAIN_START, event.stream, versions[event.stream], event.recorded_at_us, *ids)
        yield encode_record(at, NewEvent(event.name, event.schema_version, event.payload))


def edited(sent: Sent, edit: Callable[[list[StoredEvent]], list[StoredEvent]]) -> list[str]:
    """What the walk reports when the first partition's log was edited."""
    first, *others = sent.run.logs
    check = walk(sent.feed, sent.ledger, [EditedLog(first.read(0, 1 << 30), edit), *others])
    return problems_of(*check.checks)


def test_an_unedited_log_passes(sent: Sent) -> None:
    assert edited(sent, lambda events: events) == []


def test_an_acknowledged_event_that_is_not_in_the_log_is_found(sent: Sent) -> None:
    problems = edited(sent, lambda events: events[:-1])
    assert problems == ["1 acknowledged events are not at the positions of their receipts"]


def test_an_event_that_nobody_was_told_of_is_found(sent: Sent) -> None:
    extra = [StoredEvent(0, StreamId("Airport", "XXX"), 1, "Departed", 1, b"\x80", 0, bytes(16), b"", b"")]
    head = sent.run.logs[0].head()
    (problem,) = edited(sent, lambda events: events + extra)
    assert problem.startswith(f"partition 0 position {head + 1}")
    assert problem.endswith("was never acknowledged")


def test_a_command_that_is_stored_twice_is_found(sent: Sent) -> None:
    problems = edited(sent, lambda events: [*events, events[-1]])
    assert any(problem.endswith("repeats a command that is stored already") for problem in problems)


def settling(name: str, claim: str) -> StoredEvent:
    fund, payload, command_id = StreamId("Fund", "UA"), encode_message(Paid(claim=claim)), derived_id(claim, name)
    return StoredEvent(0, fund, 1, name, 1, payload, 0, command_id.bytes, b"", b"")


def opened(claim: str) -> StoredEvent:
    stream = StreamId("Claim", claim)
    return StoredEvent(0, stream, 1, "Opened", 1, b"\x80", 0, derived_id(claim).bytes, b"", b"")


def test_a_claim_that_is_settled_once_is_not_a_problem(sent: Sent) -> None:
    assert edited(sent, lambda events: [*events, opened("UA1 EWR"), settling("Paid", "UA1 EWR")]) == []


def test_a_claim_that_was_not_settled_is_found(sent: Sent) -> None:
    assert edited(sent, lambda events: [*events, opened("UA1 EWR")]) == ["UA1 EWR was opened, and settled 0 times"]


def test_a_claim_that_was_paid_and_noted_is_found(sent: Sent) -> None:
    both = [opened("UA1 EWR"), settling("Paid", "UA1 EWR"), settling("Noted", "UA1 EWR")]
    assert edited(sent, lambda events: events + both) == ["UA1 EWR was opened, and settled 2 times"]


def test_a_payment_that_no_claim_asked_for_is_found(sent: Sent) -> None:
    problems = edited(sent, lambda events: [*events, settling("Paid", "UA1 EWR")])
    assert problems == ["UA1 EWR was never opened, and settled 1 times"]


def test_two_events_that_changed_places_are_found(sent: Sent) -> None:
    problems = edited(sent, lambda events: [*events[:-2], events[-1], events[-2]])
    assert any(problem.endswith("was acknowledged, but another event is in its place") for problem in problems)


def test_a_gap_in_the_positions_is_found(sent: Sent) -> None:
    class Gap(EditedLog):
        def read(self, after: int, limit: int) -> list[bytes]:
            return [record for record in super().read(after, limit) if decode_record(record).position != 5]

    log = Gap(sent.run.logs[0].read(0, 1 << 30), lambda events: events)
    problems = problems_of(*walk(sent.feed, sent.ledger, [log, *sent.run.logs[1:]]).checks)
    assert "partition 0: position 6 follows 4" in problems


def test_a_refusal_that_the_oracle_does_not_know_is_found(sent: Sent) -> None:
    key = next(key for key in sent.expected.refused if key[1] == "TAKE_OFF")
    fewer = {one: reason for one, reason in sent.expected.refused.items() if one != key}
    (problem,) = answers_of(sent._replace(expected=_refusing(sent.expected, fewer)))
    assert problem.startswith("TakeOff to Aircraft/")
    assert problem.endswith("the table has nothing against it")


def test_a_refusal_that_did_not_come_is_found(sent: Sent) -> None:
    more = sent.expected.refused | {(0, "DEPART"): "left_too_early"}
    problems = answers_of(sent._replace(expected=_refusing(sent.expected, more)))
    assert problems == ["flight 0 DEPART was not refused, by the table it is left_too_early"]


def test_another_reason_is_found(sent: Sent) -> None:
    key = next(iter(sent.expected.refused))
    other = sent.expected.refused | {key: "left_too_early"}
    (problem,) = answers_of(sent._replace(expected=_refusing(sent.expected, other)))
    assert problem.endswith("not as left_too_early")


def test_time_that_ran_backwards_is_a_reason_only_for_what_was_asked_again(sent: Sent) -> None:
    again = sent._replace(ledger=sent.run.send(sent.feed))
    assert answers_of(again, asked_again=True) == []
    assert answers_of(again, asked_again=False) != []


def _refusing(expected: Expected, refused: dict[tuple[int, str], str]) -> Expected:
    return Expected(expected.flights, expected.commands, refused, expected.tables)


def test_the_year_has_the_figures_that_the_documentation_states() -> None:
    expected = expect(read_flights())
    documentation = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    assert f"{expected.flights:,} flights, {expected.commands:,} commands" in documentation
    for reason, times in Counter(expected.refused.values()).items():
        assert f"| `{reason}` | {times:,} |" in documentation
