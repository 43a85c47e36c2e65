"""Sinks: what is published and how it is signed, in which order, when it counts, and what stops one and no other."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_structured_event
from cloudevents.core.formats.json import JSONFormat
from standardwebhooks import Webhook as Verifier

from rayfold import Event, InvalidId, InvalidMessage, UnknownName
from rayfold.runtime.effects.backoff import Backoff
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.feed.committed_positions import CommittedPositions
from rayfold.runtime.feed.subscription import Feed, SubscriptionOptions, open_feed
from rayfold.runtime.sinks.cloud_event import CloudEvent
from rayfold.runtime.sinks.nats import Nats
from rayfold.runtime.sinks.publisher import Publisher
from rayfold.runtime.sinks.sink import Sink, check_sinks
from rayfold.runtime.sinks.target import NotConfirmed, Publish
from rayfold.runtime.sinks.webhook import Webhook
from rayfold.runtime.store.memory_logs import MemoryLogs
from rayfold.runtime.stream import ANY, StreamId
from tests.bank import Account, Deposited, Opened
from tests.runtime.log.appends import DIGEST, command_id
from tests.support.log_calls import LogCalls
from tests.support.receiver import Receiver

pytestmark = pytest.mark.slow  # it listens, and waits for pauses

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"t" * 24).decode()
QUICK = Backoff(first_s=0.01, max_s=0.05)

LOOKING = threading.Event()
"""Waited for between two polls, which take the core from the publisher's thread."""


class World:
    """Logs in memory, and publishers over them."""

    def __init__(self) -> None:
        self.logs = MemoryLogs(2, lambda: 1_700_000_000_123_456)
        self.calls = LogCalls(dict(enumerate(self.logs.logs)), leased=True, store_id=self.logs.store_id)
        self.catalogue = Catalogue([Account], events=[Opened, Deposited])
        self.on = True
        self.skipped: set[str] = set()
        self._written = 0

    def write(self, *events: Event, to: str = "alice") -> None:
        """To one account."""
        from rayfold.runtime.encoding.codec import encode_message
        from rayfold.runtime.log.contract import Append, NewEvent

        stream = StreamId("Account", to)
        log = self.logs.logs[self.logs.partition_of(stream)]
        for event in events:
            self._written += 1
            new = NewEvent(event.message_name, event.schema_version, encode_message(event))
            log.append(log.epoch(), [Append(stream, ANY, (new,), command_id(self._written), DIGEST)])

    def feed(self, sink: Sink) -> Feed:
        def committed(_store: Any, member: Any, start: Any, link_at: Any) -> CommittedPositions:
            return CommittedPositions(self.calls, None, member, start, link_at, self.logs.store_id)

        wanted = SubscriptionOptions(sink.subscription, types=list(sink.types), acknowledge="by hand")
        return open_feed(self.logs, self.catalogue, wanted, committed, own=True)

    def publisher(self, sink: Sink) -> Publisher:
        return Publisher(sink, lambda: self.feed(sink), lambda: self.on, self.skipped.__contains__)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def published(world: World) -> Iterator[Callable[[Sink], Publisher]]:
    """Starts a sink, which ends with the test."""
    with ExitStack() as started:

        def start(sink: Sink) -> Publisher:
            publisher = world.publisher(sink)
            started.callback(publisher.stop, 10.0)
            publisher.start()
            return publisher

        yield start


def amounts(receiver: Receiver) -> list[int]:
    return [json.loads(one.body)["data"]["amount"] for one in receiver.requests]


def test_an_event_is_a_cloud_event_that_is_signed_by_the_scheme(
    world: World, published: Callable[[Sink], Publisher]
) -> None:
    world.write(Opened(owner="Äda"), Deposited(amount=5))
    with Receiver() as receiver:
        to = Webhook(receiver.url, secret=SECRET, headers={"x-key": "k"})
        published(Sink("bank", [Opened, "Deposited"], to=to, since="beginning", source="/bank"))
        receiver.wait_for(lambda: len(receiver.requests) == 2)
    opened, deposited = receiver.requests
    assert opened.headers["x-key"] == "k"
    for secret in (SECRET,):
        Verifier(secret).verify(opened.body, dict(opened.headers))
    with pytest.raises(Exception, match="[Nn]o matching signature"):
        Verifier(OTHER_SECRET).verify(opened.body, dict(opened.headers))
    event: Any = from_structured_event(HTTPMessage(dict(opened.headers), opened.body), JSONFormat())
    assert (event.get_id(), event.get_source(), event.get_type()) == ("Account/alice:1", "/bank", "Opened")
    assert (event.get_subject(), event.get_data()) == ("Account/alice", {"owner": "Äda"})
    assert json.loads(opened.body)["time"] == "2023-11-14T22:13:20.123456Z"
    assert json.loads(deposited.body)["sequence"] == f"{2:020d}"
    assert opened.headers["webhook-id"] != deposited.headers["webhook-id"]


def test_with_two_secrets_either_verifies(world: World, published: Callable[[Sink], Publisher]) -> None:
    world.write(Deposited(amount=5))
    with Receiver() as receiver:
        to = Webhook(receiver.url, secret=(OTHER_SECRET, SECRET))
        published(Sink("bank", Deposited, to=to, since="beginning"))
        receiver.wait_for(lambda: len(receiver.requests) == 1)
    [request] = receiver.requests
    for secret in (SECRET, OTHER_SECRET):
        Verifier(secret).verify(request.body, dict(request.headers))


def test_what_is_not_confirmed_is_sent_again_under_the_same_id_and_in_order(
    world: World, published: Callable[[Sink], Publisher]
) -> None:
    world.write(*(Deposited(amount=number) for number in range(5)))
    seen: list[str] = []
    with Receiver() as receiver:

        def refuses_each_twice(request: Any) -> tuple[int, dict[str, str]]:
            seen.append(request.headers["webhook-id"])
            return (503 if seen.count(request.headers["webhook-id"]) < 3 else 204), {}

        receiver.answer = refuses_each_twice
        publisher = published(Sink("bank", Deposited, to=Webhook(receiver.url), since="beginning", retry=QUICK))
        receiver.wait_for(lambda: len(receiver.requests) == 5)
        publisher.stop(10)
    assert amounts(receiver) == [0, 1, 2, 3, 4]
    assert publisher.facts().failure == ""


def test_a_place_counts_only_what_was_confirmed_and_the_next_process_goes_on_there(
    world: World, published: Callable[[Sink], Publisher]
) -> None:
    world.write(*(Deposited(amount=number) for number in range(3)))
    partition = world.logs.partition_of(StreamId("Account", "alice"))
    with Receiver() as receiver:
        receiver.answer = lambda _request: (500, {})
        sink = Sink("bank", Deposited, to=Webhook(receiver.url), since="beginning", retry=QUICK)
        failing = published(sink)
        receiver.wait_for(lambda: receiver.refused > 3)
        facts = failing.facts()
        assert (facts.positions[partition], facts.published) == (0, 0)
        assert facts.failure == "Account/alice:1: HTTP 500"
        assert facts.failing_s > 0
        failing.stop(10)
        receiver.answer = lambda _request: (200, {})
        following = published(sink)
        receiver.wait_for(lambda: len(receiver.requests) == 3)
        following.stop(10)
        assert following.facts().positions[partition] == 3
        world.write(Deposited(amount=3))
        published(sink)
        receiver.wait_for(lambda: len(receiver.requests) == 4)
    assert amounts(receiver) == [0, 1, 2, 3], "nothing twice, and nothing left out"


def test_a_dead_target_holds_its_own_sink_alone_and_is_caught_up_when_it_is_back(
    world: World, published: Callable[[Sink], Publisher]
) -> None:
    world.write(Deposited(amount=1))
    with Receiver() as ended:
        port = ended._server.server_port
    dead = published(Sink("dead", Deposited, to=Webhook(ended.url), since="beginning", retry=QUICK))
    with Receiver() as receiver:
        published(Sink("alive", Deposited, to=Webhook(receiver.url), since="beginning"))
        receiver.wait_for(lambda: len(receiver.requests) == 1)
        while not dead.facts().failure:
            assert dead.facts().published == 0
    assert "ClientConnectorError" in dead.facts().failure
    with Receiver(port) as back:
        back.wait_for(lambda: len(back.requests) == 1)


def test_a_pause_that_the_target_asks_for_is_kept(world: World, published: Callable[[Sink], Publisher]) -> None:
    world.write(Deposited(amount=1))
    with Receiver() as receiver:
        receiver.answer = lambda _request: (429, {"retry-after": "3600"})
        published(Sink("bank", Deposited, to=Webhook(receiver.url), since="beginning", retry=QUICK))
        receiver.wait_for(lambda: receiver.refused == 1)
        threading.Event().wait(0.5)
        assert receiver.refused == 1


def test_a_sink_that_is_off_publishes_nothing_and_goes_on_where_it_was(
    world: World, published: Callable[[Sink], Publisher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rayfold.runtime.sinks.publisher._SWITCH_S", 0.05)
    with Receiver() as receiver:
        receiver.answer = lambda _request: (500, {})
        world.write(Deposited(amount=1))
        publisher = published(Sink("bank", Deposited, to=Webhook(receiver.url), since="beginning", retry=QUICK))
        receiver.wait_for(lambda: receiver.refused > 1)
        world.on = False
        while publisher.facts().on or publisher.facts().failure:
            LOOKING.wait(0.005)
        receiver.answer = lambda _request: (200, {})
        world.on = True
        receiver.wait_for(lambda: len(receiver.requests) == 1)


def test_streams_are_sent_at_the_same_time_and_each_in_order(
    world: World, published: Callable[[Sink], Publisher]
) -> None:
    for number in range(3):
        for name in ("alice", "bob", "carl"):
            world.write(Deposited(amount=number), to=name)
    target = Counting()
    published(Sink("bank", Deposited, to=target, since="beginning", at_once=2))
    while len(target.events) < 9:
        assert target.most <= 2
    assert target.most == 2
    for name in ("alice", "bob", "carl"):
        assert [one.id for one in target.events if one.subject.endswith(name)] == [
            f"Account/{name}:{number}" for number in (1, 2, 3)
        ]


class Counting:
    """A target that counts what is on its way, and refuses each first attempt."""

    def __init__(self) -> None:
        self.events: list[CloudEvent] = []
        self.most = self._now = 0
        self._lock = threading.Lock()

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Publish]:
        async def publish(event: CloudEvent) -> None:
            self._now += 1
            self.most = max(self.most, self._now)
            await asyncio.sleep(0.01)
            self._now -= 1
            self.events.append(event)

        yield publish


class Breaking:
    """A target with a bug, of all events or of some."""

    def __init__(self, *ids: str, error: Callable[[str], Exception] = ZeroDivisionError) -> None:
        self.taken: list[str] = []
        self._ids, self._error = ids, error

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[Publish]:
        async def publish(event: CloudEvent) -> None:
            if not self._ids or event.id in self._ids:
                raise self._error(event.id)
            self.taken.append(event.id)

        yield publish


def test_a_target_that_raises_anything_is_a_failure_that_is_shown(
    world: World, published: Callable[[Sink], Publisher]
) -> None:
    world.write(Deposited(amount=1))
    publisher = published(Sink("bank", Deposited, to=Breaking(), since="beginning", retry=QUICK))
    while "ZeroDivisionError" not in publisher.facts().failure:
        LOOKING.wait(0.005)


@pytest.mark.parametrize("error", [ZeroDivisionError, NotConfirmed])
def test_an_event_that_a_target_never_takes_can_be_left_out_and_no_other_is(
    world: World, published: Callable[[Sink], Publisher], error: Callable[[str], Exception]
) -> None:
    world.write(*(Deposited(amount=number) for number in range(4)))
    target = Breaking("Account/alice:2", "Account/alice:4", error=error)
    world.skipped.add("Account/alice:1")  # it is confirmed at once
    publisher = published(Sink("bank", Deposited, to=target, since="beginning", retry=QUICK))
    for tried in ("Account/alice:2", "Account/alice:4"):
        while publisher.facts().unconfirmed != (tried,):
            LOOKING.wait(0.005)
        assert publisher.facts().failure.startswith(tried)
        world.skipped.add(tried)
    while sum(publisher.facts().positions.values()) < 4:
        LOOKING.wait(0.005)
    facts = publisher.facts()
    assert list(dict.fromkeys(target.taken)) == ["Account/alice:1", "Account/alice:3"]
    assert (facts.failure, facts.unconfirmed) == ("", ())


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (lambda: Sink("no/name", Deposited, to=Breaking(), since="now"), "is not a name of up to 40"),
        (lambda: Sink("s", [], to=Breaking(), since="now"), "types is empty"),
        (lambda: Sink("s", [int], to=Breaking(), since="now"), "is not a type of event"),  # type: ignore[list-item]
        (lambda: Sink("s", Deposited, to=object(), since="now"), "is no target"),  # type: ignore[arg-type]
        (lambda: Sink("s", Deposited, to=Breaking(), since="then"), "since='then'"),  # type: ignore[arg-type]
        (lambda: Sink("s", Deposited, to=Breaking(), since="now", retry=Backoff(attempts=3)), "has an end"),
        (lambda: Webhook("example.com"), "is no address"),
        (lambda: Webhook("https://example.com", secret="whsec_c2hvcnQ="), "a secret has 5 bytes"),
        (lambda: Webhook("https://example.com", secret="verysecret!"), "a secret is not base64"),
        (lambda: Nats("nats://x", subject="shop.{owner}"), "cannot be filled in"),
        (lambda: Nats("nats://x", subject="shop.>"), "is none"),
    ],
)
def test_what_cannot_be_is_refused_by_name(made: Callable[[], object], error: str) -> None:
    with pytest.raises((InvalidMessage, InvalidId), match=error) as refused:
        made()
    assert "verysecret" not in str(refused.value)


def test_sinks_of_one_application_have_names_of_their_own_and_events_that_there_are(world: World) -> None:
    one = Sink("s", Deposited, to=Breaking(), since="now")
    assert check_sinks([one], world.catalogue) == (one,)
    with pytest.raises(InvalidMessage, match="two are called 's'"):
        check_sinks([one, one], world.catalogue)
    with pytest.raises(UnknownName, match="no event is named 'Nothing'"):
        check_sinks([Sink("s", "Nothing", to=Breaking(), since="now")], world.catalogue)
    assert "whsec" not in repr(Sink("s", Deposited, to=Webhook("https://x.example", secret=SECRET), since="now"))
    assert str(NotConfirmed("why", 3)) == "why"
