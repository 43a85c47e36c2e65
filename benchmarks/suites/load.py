"""The load generators: closed loops that keep a number of things in flight, and an open loop that keeps a rate.

Rules kept here: what is warm-up is not counted; in the open loop a latency is counted from the moment at which the
operation was *meant* to be sent, so that a system which stalls cannot slow its own measurement down (coordinated
omission; Tene, "How NOT to Measure Latency"). Only the public calls of a runtime are used, and `NullBank` answers
the same calls at once, which shows how fast the generators themselves are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from rayfold import Envelope, Projection, Query, RayfoldError, Receipt, StreamId

from ..harness.histogram import Latencies
from .measuring import CpuMeter

FAILURES_KEPT_MAX: Final = 5
"""One line each; the rest is counted."""

OPEN_IN_FLIGHT_MAX: Final = 8_000
"""Of an open loop, below the runtime's own 10,000: beyond it operations wait here, and their latency goes on."""

SLEEP_MIN_S: Final = 0.001
"""The event loop cannot sleep for less: what is due within it is sent now or a millisecond late, and late counts."""

YIELD_EVERY: Final = 64
"""Operations that are sent in one go when the generator is behind, before answers get their turn."""


class Bank(Protocol):
    """As much of a runtime as the generators use."""

    def execute_all(
        self, envelopes: Iterable[Envelope], *, in_flight: int = 1024
    ) -> AsyncIterator[tuple[Envelope, Any]]:
        """See `Runtime`."""
        ...

    def ask_all(
        self, projection: type[Projection], queries: Iterable[Query[Any]], *, in_flight: int = 1024
    ) -> AsyncIterator[tuple[Query[Any], Any]]:
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
    """The timed part: from the end of the warm-up, for so many seconds.

    Both ends are fixed beforehand. Answers come in bursts of a batch, and a part that began with a burst would count
    one burst too many.
    """

    def __init__(self, warm_up_s: float, seconds: float, cpu: CpuMeter | None) -> None:
        self.opens_s = time.perf_counter() + warm_up_s
        self.closes_s = self.opens_s + seconds
        self.counted = 0
        self._cpu = cpu
        self._cpu_s: dict[str, float] | None = None

    def tick(self) -> bool:
        """One operation has ended. Returns whether more shall be sent."""
        now_s = time.perf_counter()
        if now_s < self.opens_s:
            return True
        if now_s < self.closes_s:
            if not self.counted and self._cpu:
                self._cpu.reset()
            self.counted += 1
            return True
        self._close()
        return False

    def _close(self) -> None:
        """Read the CPU meter, once."""
        if self._cpu_s is None:
            self._cpu_s = self._cpu.used_s() if self._cpu else {}

    def fill(self, load: Load) -> None:
        """Hand over what was counted."""
        self._close()
        load.counted, load.seconds, load.cpu_s = self.counted, self.closes_s - self.opens_s, self._cpu_s or {}


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
    histogram: Latencies | None = None,
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
                histogram.record_us((time.perf_counter_ns() - begun_ns) // 1000)

    await asyncio.gather(*(one() for _ in range(depth)))
    window.fill(load)
    return load


async def ask_all(
    bank: Bank,
    projection: type[Projection],
    queries: Iterator[Query[Any]],
    depth: int,
    warm_up_s: float,
    seconds: float,
    cpu: CpuMeter | None = None,
) -> Load:
    """Queries through `Runtime.ask_all`, `depth` in flight, until the time is over."""
    load, window, going = Load(), _Window(warm_up_s, seconds, cpu), True

    def source() -> Iterator[Query[Any]]:
        while going:
            yield next(queries)

    async for _, answer in bank.ask_all(projection, source(), in_flight=depth):
        if isinstance(answer, RayfoldError):
            load.note_failure(answer)
            going = going and time.perf_counter() < window.closes_s
        else:
            going = window.tick() and going
    window.fill(load)
    return load


@dataclass(frozen=True, slots=True)
class ConstantPace:
    """When each request of an open loop is meant to be sent: number `n`, counted from 0, at `n / rate_per_s`.

    It never reads answers, so a slow system cannot slow down the load that it is measured with, and a latency
    counted from the intended time holds the wait of everything that queued behind a stall (coordinated omission).
    """

    rate_per_s: float
    seconds: float

    def __post_init__(self) -> None:
        if not (self.rate_per_s > 0 and math.isfinite(self.rate_per_s)):
            raise ValueError(f"a rate of {self.rate_per_s} requests/s sends nothing, or everything at once")
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise ValueError(f"a schedule of {self.seconds} s has no end or no length")

    @property
    def total(self) -> int:
        """How many requests there are; at least one."""
        return max(1, round(self.rate_per_s * self.seconds))

    def intended_s(self, number: int) -> float:
        """When the request is meant to be sent, in seconds after the start."""
        return number / self.rate_per_s


@dataclass(slots=True)
class OpenLoad:
    """What an open loop did."""

    histogram: Latencies
    """Latencies from the intended moment of sending, in microseconds, warm-up left out."""
    late: Latencies
    """How long after its intended moment each operation was really sent: the generator's own part in it."""
    offered_per_s: float
    """The rate at which operations were meant to be sent."""
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
    load = OpenLoad(Latencies(), Latencies(), per_second)
    pace = ConstantPace(per_second, warm_up_s + seconds)
    warm_up = int(warm_up_s * per_second)
    room = asyncio.Semaphore(OPEN_IN_FLIGHT_MAX)
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
                load.histogram.record_us(int(time.perf_counter_ns() - intended_ns) // 1000)
        finally:
            room.release()

    async with asyncio.TaskGroup() as tasks:
        for number in range(pace.total):
            intended_ns = start_ns + pace.intended_s(number) * 1e9
            await _until(intended_ns)
            if number % YIELD_EVERY == 0:
                await asyncio.sleep(0)
            await room.acquire()
            if number >= warm_up:
                load.late.record_us(int(time.perf_counter_ns() - intended_ns) // 1000)
            tasks.create_task(one(intended_ns, number >= warm_up))
    load.sent = pace.total - warm_up
    load.seconds = (time.perf_counter_ns() - start_ns) / 1e9 - pace.intended_s(warm_up)
    return load


async def _until(moment_ns: float) -> None:
    """Sleep until a moment, or not at all if it has come."""
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

    async def ask_all(
        self, projection: type[Projection], queries: Iterable[Query[Any]], *, in_flight: int = 1024
    ) -> AsyncIterator[tuple[Query[Any], Any]]:
        """Each query with an answer that is made up."""
        for query in queries:
            yield query, 0


_NOBODY: Final = StreamId("Account", "nobody")


def _made_up(position: int) -> Receipt:
    return Receipt(_NOBODY, 0, position, 1, b"\0" * 16)
