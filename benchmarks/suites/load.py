"""The load generators: closed loops that keep a number of things in flight, and an open loop that keeps a rate.

Rules kept here: what is warm-up is not counted; in the open loop a latency is counted from the moment at which the
operation was *meant* to be sent, so that a system which stalls cannot slow its own measurement down (coordinated
omission; Tene, "How NOT to Measure Latency"). Only the public calls of a runtime are used, and `NullBank` answers
the same calls at once, which shows how fast the generators themselves are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from rayfold import Envelope, Projection, Query, RayfoldError, Receipt

from .measuring import CpuMeter, new_histogram

if TYPE_CHECKING:
    from hdrh.histogram import HdrHistogram

__all__ = ["Bank", "Load", "NullBank", "OpenLoad", "ask_in_loops", "execute_all", "in_loops", "open_loop"]

FAILURES_KEPT_MAX: Final = 5
"""One line each; the rest is counted."""

OPEN_IN_FLIGHT_MAX: Final = 8_000
"""Of an open loop, below the runtime's own 10,000: beyond it operations wait here, and their latency goes on."""

SLEEP_MIN_S: Final = 0.001
"""The event loop cannot sleep for less: what is due within it is sent now or a millisecond late, and late counts."""

Answer = TypeVar("Answer")


class Bank(Protocol):
    """As much of a runtime as the generators use."""

    def execute_all(
        self, envelopes: Iterable[Envelope], *, in_flight: int = 1024
    ) -> AsyncIterator[tuple[Envelope, Any]]:
        """See `Runtime`."""
        ...

    async def ask(self, projection: type[Projection], query: Query[Answer]) -> Answer:
        """See `Runtime`."""
        ...


@dataclass(slots=True)
class Load:
    """What a closed loop did."""

    counted: int = 0
    """Operations that ended within the timed part."""
    seconds: float = 0.0
    """How long the timed part was."""
    receipts: list[Receipt] = field(default_factory=list)
    """Of everything, warm-up included: what the invariants look for."""
    failures: list[str] = field(default_factory=list)
    failed: int = 0
    cpu_s: dict[str, float] = field(default_factory=dict)
    """By role, within the timed part."""

    def note_failure(self, error: BaseException) -> None:
        """Count an operation that failed, and keep the first few reasons."""
        self.failed += 1
        if len(self.failures) < FAILURES_KEPT_MAX:
            self.failures.append(f"an operation failed: {type(error).__name__}: {error}")


class _Window:
    """The timed part: opens when the warm-up is over, closes when its seconds are."""

    def __init__(self, warm_up_s: float, seconds: float, cpu: CpuMeter | None) -> None:
        self.opens_s = time.perf_counter() + warm_up_s
        self.closes_s = self.opens_s + seconds
        self.opened_s = 0.0
        self.last_s = 0.0
        self.cpu = cpu
        self.cpu_s: dict[str, float] = {}
        self.counted = 0

    def tick(self) -> bool:
        """One operation has ended. Returns whether more shall be sent."""
        now_s = time.perf_counter()
        if now_s < self.opens_s:
            return True
        if not self.opened_s:  # the first one opens it and is not counted: its time was before
            self.opened_s = self.last_s = now_s
            if self.cpu:
                self.cpu.reset()
            return True
        if now_s < self.closes_s:
            self.counted += 1
            self.last_s = now_s
            return True
        self.close()
        return False

    def close(self) -> None:
        """Read the CPU meter, once."""
        if self.cpu and not self.cpu_s:
            self.cpu_s = self.cpu.used_s()

    def fill(self, load: Load) -> None:
        """Hand over what was counted. The time is that from the first to the last of what was counted."""
        self.close()
        load.counted, load.seconds, load.cpu_s = self.counted, self.last_s - self.opened_s, self.cpu_s


async def execute_all(
    bank: Bank, envelopes: Iterator[Envelope], depth: int, warm_up_s: float, seconds: float, cpu: CpuMeter | None = None
) -> Load:
    """Commands through `Runtime.execute_all`, `depth` in flight, until the time is over; then wait for the rest."""
    load, window, going = Load(), _Window(warm_up_s, seconds, cpu), True

    def source() -> Iterator[Envelope]:
        while going:
            yield next(envelopes)

    receipts = load.receipts
    async for _, outcome in bank.execute_all(source(), in_flight=depth):
        if isinstance(outcome, Receipt):
            receipts.append(outcome)
            going = window.tick() and going
        else:
            load.note_failure(outcome)
            going = going and time.perf_counter() < window.closes_s
    window.fill(load)
    return load


async def in_loops(
    operation: Callable[[], Awaitable[object]],
    depth: int,
    warm_up_s: float,
    seconds: float,
    cpu: CpuMeter | None = None,
    histogram: HdrHistogram | None = None,
) -> Load:
    """`depth` loops that each do one operation after the other. Receipts that operations return are kept."""
    load, window = Load(), _Window(warm_up_s, seconds, cpu)

    async def one() -> None:
        going = True
        while going:
            begun_ns = time.perf_counter_ns()
            try:
                result = await operation()
            except RayfoldError as error:
                load.note_failure(error)
                going = time.perf_counter() < window.closes_s
                continue
            if type(result) is Receipt:
                load.receipts.append(result)
            going = window.tick()
            if histogram is not None and going and window.counted:
                histogram.record_value(max(1, (time.perf_counter_ns() - begun_ns) // 1000))

    await asyncio.gather(*(one() for _ in range(depth)))
    window.fill(load)
    return load


async def ask_in_loops(
    bank: Bank,
    projection: type[Projection],
    queries: Iterator[Query[Any]],
    depth: int,
    warm_up_s: float,
    seconds: float,
    cpu: CpuMeter | None = None,
) -> Load:
    """Queries through `Runtime.ask`, `depth` of them in flight."""
    ask = bank.ask
    return await in_loops(lambda: ask(projection, next(queries)), depth, warm_up_s, seconds, cpu)


@dataclass(slots=True)
class OpenLoad:
    """What an open loop did."""

    histogram: HdrHistogram
    """Latencies from the intended moment of sending, in microseconds, warm-up left out."""
    late: HdrHistogram
    """How long after its intended moment each operation was really sent: the generator's own part in it."""
    sent: int = 0
    """Within the timed part."""
    seconds: float = 0.0
    """From the first intended moment of the timed part until its last operation had its answer."""
    receipts: list[Receipt] = field(default_factory=list)
    failures: Load = field(default_factory=Load)


async def open_loop(
    operation: Callable[[], Awaitable[object]], per_second: float, warm_up_s: float, seconds: float
) -> OpenLoad:
    """Start operations at a constant rate whatever becomes of them, and wait for the last."""
    load = OpenLoad(new_histogram(), new_histogram())
    interval_ns = 1e9 / per_second
    warm_up, count = int(warm_up_s * per_second), int((warm_up_s + seconds) * per_second)
    room = asyncio.Semaphore(OPEN_IN_FLIGHT_MAX)
    tasks: set[asyncio.Task[None]] = set()
    start_ns = time.perf_counter_ns()

    async def one(intended_ns: float, counts: bool) -> None:
        try:
            result = await operation()
        except RayfoldError as error:
            load.failures.note_failure(error)
        else:
            if type(result) is Receipt:
                load.receipts.append(result)
            if counts:
                load.histogram.record_value(max(1, int(time.perf_counter_ns() - intended_ns) // 1000))
        finally:
            room.release()

    for number in range(count):
        intended_ns = start_ns + number * interval_ns
        await _until(intended_ns)
        await room.acquire()
        if number >= warm_up:
            load.late.record_value(max(1, int(time.perf_counter_ns() - intended_ns) // 1000))
        task = asyncio.create_task(one(intended_ns, number >= warm_up))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(tasks)
    load.sent = count - warm_up
    load.seconds = (time.perf_counter_ns() - start_ns) / 1e9 - warm_up / per_second
    return load


async def _until(moment_ns: float) -> None:
    """Sleep until a moment, or not at all if it has come. What is due within a millisecond is waited for by yielding
    only when something else is ready to run; sleeping less is not possible."""
    while (ahead_s := (moment_ns - time.perf_counter_ns()) / 1e9) > 0:
        await asyncio.sleep(max(SLEEP_MIN_S, ahead_s))


class NullBank:
    """A system that does nothing and answers at once: the ceiling of the generators."""

    def __init__(self) -> None:
        self._position = 0

    async def execute_all(
        self, envelopes: Iterable[Envelope], *, in_flight: int = 1024
    ) -> AsyncIterator[tuple[Envelope, Any]]:
        """Each command with a receipt that is made up."""
        for envelope in envelopes:
            self._position += 1
            yield envelope, _made_up(self._position)

    async def ask(self, projection: type[Projection], query: Query[Answer]) -> Answer:
        """No answer at all, after giving the others their turn."""
        with suppress(RayfoldError):
            await asyncio.sleep(0)
        nothing: Any = None
        return nothing  # type: ignore[no-any-return]


def _made_up(position: int) -> Receipt:
    from rayfold.runtime.stream import StreamId

    return Receipt(StreamId("Account", "nobody"), 0, position, 1, b"\0" * 16)
