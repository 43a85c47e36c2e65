"""Timers of a partition: each given out once, none early, none that was ended, however many are in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayfold.runtime.log.agenda_file import PLACES, AgendaFile, open_agenda_file
from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.processes.agenda import Agenda
from rayfold.runtime.processes.progress import STEPPED
from rayfold.runtime.processes.stored_step import step_in
from rayfold.runtime.processes.timers import KINDS, Timer, Timers
from rayfold.runtime.stream import StreamId

STREAM = StreamId("Order", "1")
NAMES = st.sampled_from(["unpaid", "unshipped", "a", "ab"])
STREAMS = st.sampled_from([StreamId("Order", str(number)) for number in range(6)])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), STREAMS, NAMES, st.integers(-5, 100)),
        st.tuples(st.just("end"), STREAMS, NAMES),
        st.tuples(st.just("end"), STREAMS, NAMES, st.integers(1, 60)),
        st.tuples(st.just("due"), st.integers(0, 30), st.integers(1, 5)),
        st.tuples(st.just("save")),
        st.tuples(st.just("restart")),
        st.tuples(st.just("again")),
    ),
    max_size=60,
)


@pytest.fixture
def file(tmp_path: Path) -> AgendaFile:
    return open_agenda_file(tmp_path / "agenda", "agenda of partition 0")


def saved(timers: Timers, file: AgendaFile) -> None:
    file.write(timers.changes())
    timers.saved()


@settings(deadline=None, max_examples=150)
@example(
    steps=[("arm", StreamId("Order", "1"), "a", 0), ("save",), ("end", StreamId("Order", "1"), "a", 9), ("restart",)],
    loaded_max=1,
    in_file=True,
)
@given(steps=STEPS, loaded_max=st.integers(1, 8), in_file=st.booleans())
def test_they_are_given_out_as_by_a_plain_list(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Any, ...]], loaded_max: int, in_file: bool
) -> None:
    file = open_agenda_file(tmp_path_factory.mktemp("t") / "a", "agenda")
    timers, now = Timers(file if in_file else None, loaded_max=loaded_max), 0
    armed: dict[tuple[StreamId, str], Timer] = {}
    given_out: set[Timer] = set()
    for version, step in enumerate(steps, 1):
        what, *rest = step
        if what == "arm":
            stream, name, due = rest
            armed[stream, name] = Timer(stream, name, max(due, 0), version)
            timers.arm(stream, name, due, version)
        elif what == "end":
            stream, name, *only = rest
            known = armed.get((stream, name))
            if known is not None and (not only or known.version == only[0]):
                del armed[stream, name]
            timers.end(stream, name, *only)
        elif what == "due":
            now += rest[0]
            due_now = {one for one in armed.values() if one.due_us <= now} - given_out
            found = timers.due(now, rest[1])
            assert set(found) <= due_now
            assert len(found) == min(len(due_now), rest[1])
            assert [one.due_us for one in found] == sorted(one.due_us for one in due_now)[: len(found)]
            given_out |= set(found)
        elif what == "again":
            timers.give_again()
            given_out.clear()
        else:
            saved(timers, file)
            if what == "restart" and in_file:
                timers, given_out = Timers(file, loaded_max=loaded_max), set()
        waiting = [one.due_us for one in armed.values() if one not in given_out]
        assert timers.next_due_us() == min(waiting, default=None)
        assert timers.count == len(armed)
    file.close()


def test_what_is_in_memory_is_bounded(file: AgendaFile) -> None:
    timers = Timers(file, loaded_max=100)
    for number in range(1_000):
        timers.arm(StreamId("Order", str(number)), "unpaid", 10_000 - number, 1)
    saved(timers, file)
    assert len(timers._loaded) == len(timers._next) == 100
    assert [one.due_us for one in timers.due(20_000, 5_000)] == list(range(9_001, 10_001))


def test_a_timer_of_the_year_9999_is_kept_beside_others(file: AgendaFile) -> None:
    timers = Timers(file)
    timers.arm(STREAM, "late", 253_402_300_799_999_999, 1)
    timers.arm(STREAM, "never", 1 << 80, 2)
    timers.arm(STREAM, "past", -(1 << 80), 3)
    saved(timers, file)
    timers = Timers(file)
    assert timers.due(1, 9) == [Timer(STREAM, "past", 0, 3)]
    assert timers.next_due_us() == 253_402_300_799_999_999


def test_the_same_name_of_another_stream_is_another_timer(file: AgendaFile) -> None:
    timers = Timers(file)
    timers.arm(StreamId("Order", "1"), "23", 5, 1)
    timers.arm(StreamId("Order", "12"), "3", 6, 1)
    timers.end(StreamId("Order", "1"), "23")
    assert timers.due(10, 9) == [Timer(StreamId("Order", "12"), "3", 6, 1)]


def test_what_begins_and_ends_between_two_saves_is_not_written(file: AgendaFile) -> None:
    timers = Timers(file)
    timers.arm(STREAM, "kept", 50, 1)
    saved(timers, file)
    timers.arm(STREAM, "short", 60, 2)
    timers.arm(STREAM, "short", 70, 3)
    timers.end(STREAM, "short")
    assert timers.unsaved == 0
    timers.arm(STREAM, "kept", 80, 4)
    timers.end(STREAM, "kept")
    assert timers.unsaved == 1
    saved(timers, file)
    assert (timers.count, Timers(file).count, Timers(file).next_due_us()) == (0, 0, None)
    agenda = Agenda(file)
    step = step_in(SENDING)
    assert step is not None
    agenda.fold(step)
    assert agenda.unsaved == 1
    agenda.close(step.stream, 0)
    assert agenda.unsaved == 0


SENDING = StoredEvent(
    1,
    StreamId("Fulfilment", "1"),
    1,
    STEPPED,
    1,
    msgpack.packb(
        {
            "body": msgpack.packb(
                [0, 0, [], b"", b"", False, "", [[0, 0, b"", "Wallet", "w", "Charge", b"", b""]], "", ""]
            )
        }
    ),
    0,
    bytes(16),
    b"",
    b"",
)
"""A step that has sent one command."""


def test_how_many_are_armed_by_kind_is_saved_with_them(file: AgendaFile) -> None:
    agenda = Agenda(file)
    agenda.timers = timers = Timers(file, loaded_max=3)
    for number in range(10):
        timers.arm(StreamId("Order", str(number)), "unpaid", number, 1)
    timers.arm(StreamId("Other", "1"), "late", 5, 1)
    agenda.save()
    timers.end(StreamId("Order", "1"), "unpaid")
    timers.arm(StreamId("Order", "2"), "unpaid", 70, 2)
    timers.end(StreamId("Other", "1"), "late")
    expected = {("Order", "unpaid"): 9}
    assert timers.kinds() == expected
    agenda.save()
    assert Timers(file).kinds() == expected
    file.write({PLACES: {KINDS: None}})  # as an earlier release has written it
    again = Timers(file, loaded_max=3)
    again.arm(StreamId("Order", "11"), "unpaid", 1, 1)
    assert again.kinds() == {("Order", "unpaid"): 10}
    again.end(StreamId("Order", "5"), "unpaid")
    assert again.kinds() == expected
