"""The actor of the sinks: it begins by itself, once, whatever asks it to."""

from __future__ import annotations

import threading
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from rayfold import DefinitionError, Sink
from rayfold.actors.sinks import actor
from rayfold.actors.sinks.actor import SinksActor, SinksPlan
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.sinks.publisher import Publisher
from rayfold.runtime.sinks.target import Publish
from rayfold.runtime.store.store import Store
from tests.bank import Account


class Nowhere:
    """A target that is never opened."""

    def opened(self) -> AbstractAsyncContextManager[Publish]:
        raise AssertionError("it is opened")


PLAN = SinksPlan(Store(Path("bank"), "x", 1), b"", "rayfold", ("bank/partition-0",))


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts the sinks that have begun."""
    catalogue, begun = Catalogue([Account]), threading.Semaphore(0)
    catalogue.sinks = (Sink("mails", "Deposited", to=Nowhere(), since="now"),)
    monkeypatch.setattr(actor, "unship", lambda _classes: catalogue)
    monkeypatch.setattr(Publisher, "start", lambda _self: begun.release())
    return begun


def test_after_a_restart_it_begins_without_being_asked_and_no_sink_twice(begun: threading.Semaphore) -> None:
    started: Any = SinksActor(PLAN)
    assert begun.acquire(timeout=60)
    for _ in range(3):
        assert started.open().error is None
    assert not begun.acquire(blocking=False)
    [facts] = started.status().unwrap().sinks
    assert (facts.name, facts.on) == ("mails", None)


def test_who_asks_it_to_open_gets_what_keeps_it_from_that_and_it_is_tried_again(
    begun: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = vars(actor)["unship"]

    def fails(_classes: bytes) -> Catalogue:
        raise DefinitionError("the application's classes", "cannot be loaded", "mend them")

    monkeypatch.setattr(actor, "unship", fails)
    started: Any = SinksActor(PLAN)
    assert isinstance(started.open().error, DefinitionError)
    assert started.status().unwrap().sinks == []
    monkeypatch.setattr(actor, "unship", good)
    assert started.open().error is None
    assert begun.acquire(timeout=60)
