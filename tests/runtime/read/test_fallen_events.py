"""An event that ends the process of a projection: found out by what was in hand, and given up by name."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

import pytest

from rayfold import Event, Lmdb, Projection, Query, answer, project
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.in_hand import InHand
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.read.stores.lmdb import LmdbStore
from rayfold.runtime.stream import StreamId


class Harmless(Event):
    """Counted."""


class Deadly(Event):
    """Ends the process that takes it in."""


class Seen(Query[int]):
    """How many were counted."""


class Setting(Projection, on_failure="quarantine"):
    """Sets aside what it does not survive."""

    seen: int = 0

    @project
    def harmless(self, event: Harmless) -> None:
        self.seen += 1

    @project
    def deadly(self, event: Deadly) -> None:
        os._exit(7)

    @answer
    def asked(self, query: Seen) -> int:
        return self.seen


class Stopping(Projection):
    """Stops at what it does not survive."""

    seen: int = 0

    @project
    def harmless(self, event: Harmless) -> None:
        self.seen += 1

    @project
    def deadly(self, event: Deadly) -> None:
        os._exit(7)


def log_of(*events: Event) -> MemoryLog:
    log = MemoryLog()
    epoch = log.activate()
    for version, event in enumerate(events):
        new = NewEvent(type(event).message_name, 1, encode_message(event))
        log.append(epoch, [Append(StreamId("Thing", "t"), version, (new,), uuid4().bytes, b"d" * 16)])
    return log


def processes_it_takes(
    projection: type[Projection], log: MemoryLog, record: Path, reached: int | None = None
) -> tuple[int, ReadModel]:
    """How many processes it ends, and what the one that survives has made of it. `reached`: where the first one was
    when it was sent the rest."""
    catalogue = Catalogue([], [projection])
    for ended in range(10):
        child = os.fork()
        if not child:
            read_model = ReadModel(projection, catalogue, {0: log}, in_hand=InHand(record))
            if reached is not None and not ended:
                read_model.catch_up(0, reached)
            read_model.catch_up(0)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.waitstatus_to_exitcode(status):
            read_model = ReadModel(projection, catalogue, {0: log}, in_hand=InHand(record))
            read_model.catch_up(0)
            return ended, read_model
    raise AssertionError("it ends one process after the other")


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 1, 30, 600])
def test_the_event_is_set_aside_after_it_was_in_hand_at_two_deaths(tmp_path: Path, before: int) -> None:
    log = log_of(*[Harmless()] * before, Deadly(), *[Harmless()] * 5)
    ended, read_model = processes_it_takes(Setting, log, tmp_path / "record")
    assert ended == 2
    assert read_model.positions == {0: before + 6}
    (entry,) = read_model.quarantined
    assert (entry.position, entry.event) == (before + 1, "Deadly")
    assert "the process ended twice while it was applied" in entry.error
    read_model.close()


@pytest.mark.slow
@pytest.mark.parametrize("before", [1, 30, 600])
def test_a_process_that_begins_again_does_not_end_once_more_on_the_way_there(tmp_path: Path, before: int) -> None:
    log = log_of(*[Harmless()] * before, Deadly(), *[Harmless()] * 5)
    ended, read_model = processes_it_takes(Setting, log, tmp_path / "record", reached=before)
    assert ended == 2
    assert [entry.position for entry in read_model.quarantined] == [before + 1]
    read_model.close()


@pytest.mark.slow
def test_each_of_several_is_found(tmp_path: Path) -> None:
    log = log_of(Harmless(), Deadly(), Harmless(), Deadly(), Harmless())
    ended, read_model = processes_it_takes(Setting, log, tmp_path / "record")
    assert ended <= 4
    assert [entry.position for entry in read_model.quarantined] == [2, 4]
    read_model.close()


@pytest.mark.slow
def test_a_projection_that_stops_says_at_which_event(tmp_path: Path) -> None:
    log = log_of(Harmless(), Deadly(), Harmless())
    ended, read_model = processes_it_takes(Stopping, log, tmp_path / "record")
    assert ended == 2
    assert read_model.positions == {0: 1}
    assert "Stopping failed on event 2 of partition 0: " in str(read_model.failed)
    read_model.close()


class Forking(Projection, store=Lmdb()):
    """Forks a child at each `Deadly`, which comes back from the handler as its parent does."""

    @project
    def harmless(self, event: Harmless) -> None:
        self.rows["harmless"] = self.rows.get("harmless", 0) + 1

    @project
    def deadly(self, event: Deadly) -> None:
        child = os.fork()
        if not child:
            MEMORY["record"].disown()  # as the process of an actor does at every fork
        else:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1

    @answer
    def asked(self, query: Seen) -> int:
        return int(self.rows.get("harmless", 0))


MEMORY: dict[str, InHand] = {}
"""What `Forking` has no other way to."""


@pytest.mark.slow
def test_a_child_that_a_handler_has_forked_ends_before_it_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = LmdbStore.commit

    def noted(store: LmdbStore, checkpoint: bytes) -> None:
        with (tmp_path / "committed").open("a") as file:
            file.write(f"{os.getpid()} ")
        commit(store, checkpoint)

    monkeypatch.setattr(LmdbStore, "commit", noted)
    MEMORY["record"] = InHand(tmp_path / "record")
    log = log_of(Harmless(), Deadly(), Harmless(), Deadly())
    catalogue = Catalogue([], [Forking])
    read_model = ReadModel(Forking, catalogue, {0: log}, directory=tmp_path / "rows", in_hand=MEMORY["record"])
    read_model.catch_up(0)
    read_model.close()
    assert read_model.positions == {0: 4}
    assert set((tmp_path / "committed").read_text().split()) == {str(os.getpid())}
