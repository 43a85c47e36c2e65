"""Time travel for a running system: histories and past states of aggregates, and read models as of a place.

Beside the read path; `runtime/read/time_travel.py` defines the questions. Histories and states are read from the log in
the caller's own process, in a thread. A read model as of a place is folded from the log in Ray tasks, one for each part
that has to be asked, so that a long fold uses other cores than the caller's; in a program without Ray, and of logs in
memory, in threads. It is thrown away with its answer.

Rules kept here: no actor is asked, started or slowed; what runs for longer than its deadline, or for a caller who has
given up, is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

from ...runtime.arguments import checked_timeout, unregistered, unregistered_message
from ...runtime.domain.aggregate import Aggregate
from ...runtime.domain.messages import Event, Query
from ...runtime.domain.projection import Projection
from ...runtime.domain.recorded import Recorded
from ...runtime.encoding.catalogue import Catalogue
from ...runtime.encoding.codec import encode_checked
from ...runtime.encoding.query_batch import PackedQuery
from ...runtime.errors import (
    HandlerFailed,
    InvalidMessage,
    RayfoldError,
    Unavailable,
    UnknownEvent,
)
from ...runtime.log.contract import Reader
from ...runtime.log.format import stream_id
from ...runtime.printable import shown
from ...runtime.read.positions import check_store
from ...runtime.read.read_model import ReadModel
from ...runtime.read.routes import merged_answer, part_asked
from ...runtime.read.time_travel import (
    checked_place,
    events_of_command,
    fold_up_to,
    history,
    microseconds,
    place_at,
    place_of,
    state_at,
)
from ...runtime.read.unreadable import Unreadable
from ...runtime.receipt import Receipt
from ...runtime.store.memory_logs import MemoryLogs
from ...runtime.stream import StreamId
from ...runtime.user_code import is_ctrl_c
from ..client.merging import merge_in_thread
from ..cluster.scheduling import on_this_node
from ..nodes.store import AnyStore, open_patient_reader

__all__ = ["AS_OF_TIMEOUT_S", "TimeTravel"]

AS_OF_TIMEOUT_S: Final = 600.0
"""Timeout for a read model as of a place, unless the call sets another: at 200,000 events a second, 100 million
events."""

Place = Receipt | datetime | Mapping[int, int]
"""What a read model may be asked as of."""

A = TypeVar("A", bound=Aggregate)
Answer = TypeVar("Answer")


class TimeTravel:
    """Questions about the past of one store."""

    def __init__(self, store: AnyStore, catalogue: Catalogue) -> None:
        self._store = store
        self._catalogue = catalogue

    async def history(
        self,
        aggregate: type[Aggregate],
        id: str,
        from_version: int,
        to_version: int | None,
        unreadable: Unreadable = "yield",
    ) -> list[tuple[Event, Recorded]]:
        """See `Runtime.history`."""
        stream = self._stream(aggregate, id)

        def read(partition: int, reader: Reader) -> list[tuple[Event, Recorded]]:
            return history(self._catalogue, reader, partition, stream, from_version, to_version, unreadable=unreadable)

        return await asyncio.to_thread(self._read, stream, read)

    async def events_of(self, receipt: Receipt) -> list[Event]:
        """See `Runtime.events_of`."""
        if not isinstance(receipt, Receipt):
            raise InvalidMessage("events_of", f"{shown(receipt)} is not a Receipt", "give what `execute` has returned")
        check_store("events_of", receipt, self._store.store_id)
        stream = receipt.stream

        def read(_partition: int, reader: Reader) -> list[Event]:
            return events_of_command(self._catalogue, reader, stream, receipt.version, receipt.command_bytes)

        return await asyncio.to_thread(self._read, stream, read)

    async def state_at(self, aggregate: type[A], id: str, version: int | None, at: datetime | None) -> A:
        """See `Runtime.state_at`."""
        stream = self._stream(aggregate, id)

        def read(partition: int, reader: Reader) -> A:
            try:
                return state_at(self._catalogue, reader, aggregate, stream, version, at)
            except UnknownEvent as error:
                raise error.in_partition(partition) from None

        return await asyncio.to_thread(self._read, stream, read)

    async def as_of(
        self,
        projection: type[Projection],
        place: Place,
        query: Query[Answer],
        timeout_s: float | None,
        progress: Callable[[int, int], None] | None,
    ) -> Answer:
        """See `Runtime.as_of`."""
        part = _asked_part(projection, query)
        parts = list(range(projection.parts)) if part is None else [part]
        timeout_s = AS_OF_TIMEOUT_S if timeout_s is None else checked_timeout(timeout_s)
        deadline_s = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                reached = await self._place(place)
                answers = await self._folded(projection, reached, query, parts, progress)
        except RayfoldError:
            raise
        except TimeoutError:
            what = f"not folded within {timeout_s} s; set timeout_s= for a long log"
            raise Unavailable(projection.projection_name, what) from None
        if part is not None:
            alone: Answer = answers[0]
            return alone
        name = f"{projection.projection_name} {query.message_name}"
        merge = partial(merged_answer, projection, query, answers)
        answer: Answer | RayfoldError = await merge_in_thread(name, merge, deadline_s - time.monotonic())
        if isinstance(answer, RayfoldError):
            raise answer
        return answer

    async def _place(self, place: Place) -> dict[int, int]:
        """The position of every partition. To find a time the log is searched, elsewhere."""
        if isinstance(place, Mapping):
            with _readers(self._store) as readers:
                return checked_place(readers, place)
        if not isinstance(place, Receipt | datetime):
            raise InvalidMessage(
                "as_of", f"{shown(place)} is not a place", "give positions, a receipt or an aware datetime"
            )
        if isinstance(place, Receipt):
            check_store("as_of", place, self._store.store_id)
        if isinstance(place, datetime):
            microseconds(place, "as_of")  # the caller's mistake is found here
        found = [one async for one in self._searched(place)]
        return dict(found[-1])

    async def _folded(
        self,
        projection: type[Projection],
        place: dict[int, int],
        query: Query[Any],
        parts: Sequence[int],
        progress: Callable[[int, int], None] | None,
    ) -> list[Any]:
        """The answer of each part, each folded in a task of its own."""
        packed = PackedQuery(query.message_name, encode_checked(query)[0])
        total, done = sum(place.values()) * len(parts), 0

        async def fold(part: int) -> Any:
            nonlocal done
            answers: list[Any] = []
            async for grown, answers in self._fold(projection, part, packed, place):  # noqa: B007 - the last counts
                done += grown
                if grown and progress is not None:
                    _report(progress, done, total)
            return answers[0]

        answers = await _all_or_none([asyncio.ensure_future(fold(part)) for part in parts])
        for answer in answers:
            if isinstance(answer, RayfoldError):
                raise answer
        return answers

    def _is_read_here(self) -> bool:
        """Whether no task could read it, or there are none: logs in memory are in this process alone."""
        return isinstance(self._store, MemoryLogs) or not _has_ray()

    def _searched(self, place: Receipt | datetime) -> AsyncIterator[dict[int, int]]:
        """What `_search` yields, from wherever it runs; so with `_fold`."""
        if self._is_read_here():
            return _results_here(_search(self._store, place))
        return _results(_search, self._store, place)

    def _fold(
        self, projection: type[Projection], part: int, query: PackedQuery, place: Mapping[int, int]
    ) -> AsyncIterator[tuple[int, list[Any]]]:
        narrowed = self._catalogue.narrowed(projection)
        if self._is_read_here():
            return _results_here(_fold(self._store, narrowed, projection.projection_name, part, query, place))
        from ..packaging.shipping import ship

        classes = ship(narrowed)
        return _results(_fold_shipped, self._store, classes, projection.projection_name, part, query, place)

    def _stream(self, aggregate: type[Aggregate], id: str) -> StreamId:
        name, known = getattr(aggregate, "aggregate_type", ""), self._catalogue.aggregates
        if name not in known or known[name] is not aggregate:
            raise unregistered("aggregate", aggregate, known)
        return stream_id(name, id)

    def _read(self, stream: StreamId, read: Callable[[int, Reader], Any]) -> Any:
        """What `read` makes of the log that has the stream."""
        partition = self._store.partition_of(stream)
        reader = open_patient_reader(self._store, partition)
        try:
            return read(partition, reader)
        finally:
            reader.close()


def _asked_part(projection: type[Projection], query: Query[Any]) -> int | None:
    """The part to ask; None for all. Raises `InvalidMessage`, `UnknownName`, `HandlerFailed`."""
    if type(query) not in projection.answers:
        raise unregistered_message(f"query of {projection.projection_name}", query, projection.answers, Query)
    return part_asked(projection, query, projection.parts)


def _report(progress: Callable[[int, int], None], done: int, total: int) -> None:
    """Call it on this event loop, which what it raises must not end."""
    try:
        progress(done, total)
    except Exception:
        raise
    except BaseException as error:
        if is_ctrl_c(error):
            raise
        raise HandlerFailed.caused_by("as_of(progress=...)", f"{done:,} of {total:,} events", error) from error


async def _all_or_none(doing: Sequence[asyncio.Future[Any]]) -> list[Any]:
    """What they come to. The first that fails, or a caller that gives up waiting, cancels all."""
    try:
        return await asyncio.gather(*doing)
    except BaseException:
        for one in doing:
            one.cancel()
        await asyncio.gather(*doing, return_exceptions=True)
        raise


# --- in Ray tasks -------------------------------------------------------------------------------------------------


async def _results(function: Callable[..., Iterator[Any]], *arguments: Any) -> AsyncIterator[Any]:
    """What a generator yields that runs in a Ray task on this machine, where the logs are. To be iterated to its end,
    so that it can release what it has used; a caller that fails or is cancelled on the way cancels the task."""
    import ray

    options: Any = ray.remote(function)
    running = options.options(num_returns="streaming", max_retries=1, **on_this_node()).remote(*arguments)
    try:
        async for ref in running:
            yield await ref
    except BaseException as error:
        with contextlib.suppress(Exception):
            ray.cancel(running)
        if not isinstance(error, ray.exceptions.RayError):
            raise
        cause = getattr(error, "cause", None)
        if isinstance(cause, RayfoldError):
            raise cause from None
        text = " ".join(str(cause or error).split())
        raise Unavailable("time travel", f"the task that reads the log failed: {text:.300}") from error


async def _results_here(running: Iterator[Any]) -> AsyncIterator[Any]:
    """The same in threads of this program, one after the other."""
    end = object()
    step: asyncio.Future[Any] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, running, end))
            if (found := await asyncio.shield(step)) is end:
                return
            yield found
    finally:
        if step is not None:
            await asyncio.wait({step})  # a page; a caller that has given up does not end the thread
        await asyncio.to_thread(running.close)  # type: ignore[attr-defined]  # it is a generator


def _has_ray() -> bool:
    """Whether this program uses Ray; it is not imported for the answer."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _search(store: AnyStore, place: Receipt | datetime) -> Iterator[dict[int, int]]:
    """The position of every partition at a place."""
    with _readers(store) as readers:
        if isinstance(place, Receipt):
            yield place_of(readers, place.partition, place.position)
        else:
            yield place_at(readers, microseconds(place))


def _fold_shipped(
    store: AnyStore, classes: bytes, name: str, part: int, query: PackedQuery, place: Mapping[int, int]
) -> Iterator[tuple[int, list[Any]]]:
    from ..packaging.shipping import unship

    yield from _fold(store, unship(classes), name, part, query, place)  # Ray streams generators only


def _fold(
    store: AnyStore, application: Catalogue, name: str, part: int, query: PackedQuery, place: Mapping[int, int]
) -> Iterator[tuple[int, list[Any]]]:
    """How many events further, again and again, and at the end the answer in a list of one."""
    with _readers(store) as readers:
        read_model = ReadModel(application.projection(name), application, readers, directory=None, part=part)
        read_model.open()
        try:
            for grown in fold_up_to(read_model, place):
                yield grown, []
            yield 0, read_model.answer([query], lambda answers: answers)
        finally:
            read_model.close()


@contextmanager
def _readers(store: AnyStore) -> Iterator[dict[int, Reader]]:
    with contextlib.ExitStack() as opened:
        readers: dict[int, Reader] = {}
        for number in range(store.partitions):
            readers[number] = open_patient_reader(store, number)
            opened.callback(readers[number].close)
        yield readers
