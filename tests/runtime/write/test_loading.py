"""A long history is loaded aside: other aggregates are served meanwhile, and the order of commands to it is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.saved_state import encode_state, state_fingerprint
from rayfold.runtime.errors import HandlerFailed
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.stream import ANY, StreamId
from rayfold.runtime.write import loading
from rayfold.runtime.write.loading import LOADED_AT_ONCE_EVENTS, LOADS_MAX, StillLoading
from rayfold.runtime.write.write_loop import WriteLoop
from tests.support.arrivals import error, facts, to

EVENTS = LOADED_AT_ONCE_EVENTS * 2 + 500


class Put(Command):
    amount: int = 1


class Was(Event):
    amount: int = 1
    text: str = ""


class Jar(Aggregate, placement=Shared(), snapshot_every=0):
    total: int = 0

    @decide
    def put(self, command: Put) -> Was:
        return Was(amount=command.amount)

    @evolve
    def was(self, event: Was) -> None:
        if event.amount < 0:
            raise ValueError("a poisoned event")
        self.total += event.amount


def history(log: MemoryLog, name: str, events: int, event: Was | None = None) -> None:
    payload = encode_message(event or Was())
    epoch = log.epoch()
    for start in range(0, events, 1_000):
        new = (NewEvent("Was", 1, payload),) * min(1_000, events - start)
        log.append(epoch, [Append(StreamId("Jar", name), ANY, new, os.urandom(16), bytes(16))])


@pytest.fixture
def loop() -> Iterator[WriteLoop]:
    log = MemoryLog()
    made = WriteLoop(0, log, Catalogue([Jar]))
    made.activate()
    made.residents.load_aside()
    yield made
    made.residents.forget_all()


def log_of(loop: WriteLoop) -> MemoryLog:
    log = loop._log
    assert isinstance(log, MemoryLog)
    return log


def wait(loop: WriteLoop) -> None:
    assert loop.residents._loading is not None
    assert loop.residents._loading.wait(60)


def test_commands_to_a_long_history_wait_while_others_are_served(loop: WriteLoop) -> None:
    history(log_of(loop), "hot", EVENTS)
    commands = [to(Jar, "hot", Put()), to(Jar, "b", Put()), to(Jar, "hot", Put()), to(Jar, "c", Put())]
    loop.residents.begin_batch()
    outcomes = loop.execute(commands).outcomes
    told = "Jar/hot has a long history, which is being loaded; send the command again"
    assert [error(outcomes[0], StillLoading), error(outcomes[2], StillLoading)] == [told, told]
    assert [facts(outcomes[1])[1], facts(outcomes[3])[1]] == [1, 1]
    wait(loop)
    loop.residents.begin_batch()
    outcomes = loop.execute(commands).outcomes
    assert [facts(outcomes[0])[1], facts(outcomes[2])[1]] == [EVENTS + 1, EVENTS + 2]
    resident = loop.residents.check_out(StreamId("Jar", "hot"))
    assert isinstance(resident, Jar)
    assert resident.total == EVENTS + 2


def test_what_is_loaded_in_the_middle_of_a_batch_is_not_used_before_the_next_one(loop: WriteLoop) -> None:
    """Or a later command of the batch would be decided, and an earlier one would come again after it."""
    history(log_of(loop), "hot", EVENTS)
    loop.residents.begin_batch()
    error(loop.execute([to(Jar, "hot", Put())]).outcomes[0], StillLoading)
    wait(loop)
    error(loop.execute([to(Jar, "hot", Put())]).outcomes[0], StillLoading)
    loop.residents.begin_batch()
    assert facts(loop.execute([to(Jar, "hot", Put())]).outcomes[0])[1] == EVENTS + 1


def test_a_short_history_is_loaded_at_once_and_a_repeat_needs_no_loading(loop: WriteLoop) -> None:
    history(log_of(loop), "short", LOADED_AT_ONCE_EVENTS - 1)
    first = to(Jar, "short", Put(), 7)
    loop.residents.begin_batch()
    assert facts(loop.execute([first]).outcomes[0])[1] == LOADED_AT_ONCE_EVENTS
    history(log_of(loop), "short", EVENTS)
    loop.residents.forget_all()
    loop.residents.begin_batch()
    assert facts(loop.execute([first]).outcomes[0])[1:] == (LOADED_AT_ONCE_EVENTS, True)


def test_few_large_events_are_a_long_history_too(loop: WriteLoop) -> None:
    history(log_of(loop), "large", 200, Was(text="x" * 60_000))
    loop.residents.begin_batch()
    error(loop.execute([to(Jar, "large", Put())]).outcomes[0], StillLoading)
    wait(loop)
    loop.residents.begin_batch()
    assert facts(loop.execute([to(Jar, "large", Put())]).outcomes[0])[1] == 201


def test_an_event_that_cannot_be_evolved_is_told_once_it_was_met(loop: WriteLoop) -> None:
    history(log_of(loop), "hot", EVENTS)
    history(log_of(loop), "hot", 1, Was(amount=-1))
    loop.residents.begin_batch()
    error(loop.execute([to(Jar, "hot", Put())]).outcomes[0], StillLoading)
    wait(loop)
    loop.residents.begin_batch()
    told = error(loop.execute([to(Jar, "hot", Put())]).outcomes[0], HandlerFailed)
    assert told == "Jar.was failed on Jar/hot: ValueError: a poisoned event"


def test_what_was_loaded_for_an_activation_is_not_used_by_the_next_one(loop: WriteLoop) -> None:
    history(log_of(loop), "hot", EVENTS)
    loop.residents.begin_batch()
    error(loop.execute([to(Jar, "hot", Put())]).outcomes[0], StillLoading)
    wait(loop)
    loop.activate()
    loop.residents.begin_batch()
    error(loop.execute([to(Jar, "hot", Put())]).outcomes[0], StillLoading)


def test_many_long_histories_are_loaded_one_after_the_other_and_their_number_is_bounded(
    loop: WriteLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "LOADS_MAX", 3)
    names = [f"hot-{number}" for number in range(8)]
    for name in names:
        history(log_of(loop), name, EVENTS)
    waiting, rounds = set(names), 0
    while waiting:
        rounds += 1
        assert rounds < 30
        loop.residents.begin_batch()
        for name in sorted(waiting):
            (outcome,) = loop.execute([to(Jar, name, Put())]).outcomes
            if not isinstance(outcome, StillLoading):
                assert facts(outcome)[1] == EVENTS + 1
                waiting.discard(name)
        assert loop.residents._loading is not None
        assert len(loop.residents._loading) <= 3 < LOADS_MAX
        wait(loop)


class Kept(Jar, name="Kept", placement=Shared(), snapshot_every=2):
    pass


def test_what_is_being_loaded_from_a_snapshot_that_is_not_trusted_any_more_is_not_used() -> None:
    log, stream = MemoryLog(), StreamId("Kept", "a")
    loop = WriteLoop(0, log, Catalogue([Kept]))
    loop.activate()
    new = (NewEvent("Was", 1, encode_message(Was())),) * EVENTS
    log.append(loop.epoch, [Append(stream, ANY, new, os.urandom(16), bytes(16))])
    wrong = Kept("a")
    wrong.total, wrong.version = 1_000_000, 2
    log._snapshots[stream.key] = [(2, state_fingerprint(Kept), encode_state(wrong))]
    loop.residents.load_aside()
    with pytest.raises(StillLoading):
        loop.residents.check_out(stream)
    loop.residents.distrust(stream)
    with pytest.raises(StillLoading):
        loop.residents.check_out(stream)
    assert loop.residents._loading is not None
    assert loop.residents._loading.wait(30)
    loop.residents.begin_batch()
    found = loop.residents.check_out(stream)
    assert isinstance(found, Kept)
    assert (found.total, found.version) == (EVENTS, EVENTS)
