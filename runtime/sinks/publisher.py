"""Publisher: one sink at work: its events are read, published, and acknowledged once they are confirmed.

Beside the read path, on a thread of its own in the process of the sinks. Before it: a subscription of the sink's own
(`feed/subscription.py`). After it: the target.

Rules kept here:
- what is acknowledged was confirmed by the target, and everything before it in its partition
- the events of a stream are sent in order, one at a time; of several streams at the same time, at most `at_once`. At
  most a page is in memory
- what is not confirmed is sent again after a pause, without end: one event that the target does not take stops its
  sink, visibly, and no other
- an event is left out only where an operator has decided it, with a name and a reason, and after it was not confirmed
- a sink publishes only while it is on. A store knows which of its sinks are; a restored one has all of them off
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Final, NamedTuple

from ..errors import RayfoldError, failure_text
from ..feed.event_filter import Happened
from ..feed.subscription import Feed
from ..printable import printable_log
from .cloud_event import CloudEvent, cloud_event
from .sink import Sink
from .target import NotConfirmed, Publish

__all__ = ["Publisher", "PublisherFacts"]

log = printable_log(__name__)

BATCH: Final = 256
"""Events that are sent before they are acknowledged together."""

_LOOK_S: Final = 0.2
"""Between two checks whether it is to stop, while there is nothing to publish."""

_SWITCH_S: Final = 2.0
"""Between two checks whether it was switched off, or on."""

_AGAIN_S: Final = 0.5
_AGAIN_MAX_S: Final = 3.0
"""Between two tries to read the store, while a part of it is away."""

_SAVE_S: Final = 0.1
"""Between two acknowledgements: after a crash the events of so long are sent again."""


class PublisherFacts(NamedTuple):
    """What a sink is doing."""

    name: str
    on: bool | None
    """Whether it is switched on; None while that is not known."""
    published: int
    """Events since its process was started."""
    positions: dict[int, int]
    """Partition -> position up to which everything was confirmed."""
    failing_s: float
    """For how long nothing was confirmed although it was tried, in seconds; 0 if all is well."""
    failure: str
    """Why not; empty if all is well."""
    unconfirmed: tuple[str, ...]
    """Ids of the events that were tried and not confirmed."""


class Publisher:
    """One sink."""

    def __init__(
        self, sink: Sink, open_feed: Callable[[], Feed], is_on: Callable[[], bool], is_skipped: Callable[[str], bool]
    ) -> None:
        """`open_feed`: opens its subscription, acknowledged by hand. `is_on`: whether it is switched on. `is_skipped`:
        whether the event of this id is to be left out. All may raise what reading and asking the store raises."""
        self._sink, self._open_feed, self._is_on, self._is_skipped = sink, open_feed, is_on, is_skipped
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._on: bool | None = None
        self._published = 0
        self._positions: dict[int, int] = {}
        self._failing_since_s = 0.0
        self._failure = ""
        self._unconfirmed: set[str] = set()
        self._lost: RayfoldError | None = None
        """Why this process has the sink no more."""

    def start(self) -> None:
        """Publish, on a thread of its own."""
        self._thread = threading.Thread(target=self.run, name=f"rayfold sink {self._sink.name}", daemon=True)
        self._thread.start()

    def stop(self, wait_s: float) -> None:
        """Have it end, and wait for that: what was confirmed is acknowledged."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(wait_s)

    def facts(self) -> PublisherFacts:
        """What it is doing now. From any thread."""
        since_s = self._failing_since_s
        failing_s = time.monotonic() - since_s if since_s else 0.0
        unconfirmed = tuple(sorted(self._unconfirmed.copy()))
        return PublisherFacts(
            self._sink.name, self._on, self._published, dict(self._positions), failing_s, self._failure, unconfirmed
        )

    def run(self) -> None:
        """Publish until `stop`. Raises nothing."""
        made = 0
        while not self._stopping.is_set():
            published = self._published
            try:
                self._on = self._is_on()
                if not self._on:
                    self._is_well()
                    self._stopping.wait(_SWITCH_S)
                    continue
                asyncio.run(self._publish())
            except Exception as error:  # of the target's code there may be any
                made = 1 if self._published > published else made + 1
                self._failed(error)
                self._stopping.wait(self._pause_s(error, made))

    async def _publish(self) -> None:
        """Until it is to stop, or was switched off. Raises whatever keeps it from publishing."""
        with closing(self._open_feed()) as feed:
            self._positions, self._lost = feed.acknowledged, None
            async with self._sink.to.opened() as publish:
                watching = asyncio.create_task(self._watch(feed))
                try:
                    await self._publish_from(feed, publish)
                finally:
                    watching.cancel()
            if self._lost is not None:
                raise self._lost
        self._positions = feed.acknowledged

    async def _publish_from(self, feed: Feed, publish: Publish) -> None:
        saved_s = time.monotonic()
        while not self._over:
            if not feed.buffered and await asyncio.to_thread(feed.follower.wait, _LOOK_S):
                feed.fill()
            feed.asked()
            if batch := feed.take_all(BATCH):
                if not await self._send_all(batch, publish):
                    return
                feed.acknowledge()
            if time.monotonic() - saved_s >= _SAVE_S:
                feed.save()
                self._positions, saved_s = feed.acknowledged, time.monotonic()

    async def _watch(self, feed: Feed) -> None:
        """Notice that it was switched off, or that another process has this sink now, also while nothing is
        confirmed."""
        while True:
            await asyncio.sleep(_SWITCH_S)
            try:
                feed.asked()
            except RayfoldError as error:
                self._lost = error
            with suppress(RayfoldError):  # what cannot be asked now stays as it was
                self._on = await asyncio.to_thread(self._is_on)

    @property
    def _over(self) -> bool:
        return self._stopping.is_set() or not self._on or self._lost is not None

    async def _send_all(self, batch: Sequence[Happened], publish: Publish) -> bool:
        """Return once all of these are confirmed, or it is to stop: then False."""
        streams: dict[str, list[CloudEvent]] = {}
        place, number = None, 0
        for event, recorded in batch:
            number = number + 1 if recorded[2:4] == place else 0  # several of one record
            place = recorded[2:4]
            made = cloud_event(event, recorded, self._sink.source, number)
            streams.setdefault(made.subject, []).append(made)
        room = asyncio.Semaphore(self._sink.at_once)

        async def send(events: Sequence[CloudEvent]) -> bool:
            async with room:
                for one in events:
                    if not await self._send(one, publish):
                        return False
            return True

        async with asyncio.TaskGroup() as sending:
            tasks = [sending.create_task(send(events)) for events in streams.values()]
        return all(task.result() for task in tasks)

    async def _send(self, event: CloudEvent, publish: Publish) -> bool:
        """Until it is confirmed, or left out. False if it is to stop before that."""
        made = 0
        while not self._over:
            try:
                await publish(event)
            except NotConfirmed as error:
                made += 1
                self._failed(error, event.id)
                if await self._skipped_within(self._pause_s(error, made), event.id):
                    return True
            except Exception as error:
                if await self._skipped_within(0.0, event.id):
                    return True
                raise _Failed(event.id) from error
            else:
                self._published += 1
                self._is_well(event.id)
                return True
        return False

    async def _skipped_within(self, pause_s: float, event: str) -> bool:
        """After this pause, or as soon as the event is left out: then True; or as soon as it is to stop."""
        until_s, again_s = time.monotonic() + pause_s, 0.0
        while not self._over:
            if time.monotonic() >= again_s:
                again_s = time.monotonic() + _SWITCH_S
                with suppress(RayfoldError):  # what cannot be asked now is asked again
                    if await asyncio.to_thread(self._is_skipped, event):
                        log.warning("sink %s leaves out %s, as an operator has decided", self._sink.name, event)
                        self._is_well(event)
                        return True
            if (left_s := until_s - time.monotonic()) <= 0:
                break
            await asyncio.sleep(min(left_s, _LOOK_S))
        return False

    def _pause_s(self, error: Exception, made: int) -> float:
        if isinstance(error, RayfoldError):  # the store's: the target has no part in it
            return min(_AGAIN_S * made, _AGAIN_MAX_S)
        pause_s = self._sink.retry.pause_us(made) / 1e6
        asked_s = error.again_s if isinstance(error, NotConfirmed) else None
        return max(pause_s, asked_s or 0.0)

    def _failed(self, error: Exception, event: str = "") -> None:
        while isinstance(error, ExceptionGroup):  # of several streams at the same time: the first one
            error = error.exceptions[0]
        if isinstance(error, _Failed) and isinstance(error.__cause__, Exception):
            event, error = str(error), error.__cause__
        if event:
            self._unconfirmed.add(event)
        what = str(error) if isinstance(error, RayfoldError | NotConfirmed) else failure_text(error)
        what = f"{event}: {what}" if event else what
        if not self._failing_since_s:
            self._failing_since_s = time.monotonic()
            log.warning("sink %s does not publish: %s", self._sink.name, what)
        self._failure = what

    def _is_well(self, event: str = "") -> None:
        """This event was confirmed, or left out; without one, nothing is tried."""
        self._unconfirmed = self._unconfirmed - {event} if event else set()
        self._failing_since_s, self._failure = 0.0, ""


class _Failed(Exception):  # noqa: N818 - not an error of its own
    """The target has raised something else than `NotConfirmed`, which is the cause, for the event of this id."""
