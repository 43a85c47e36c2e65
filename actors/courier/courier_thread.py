"""CourierThread: the thread of a courier, with its event loop, its clock and its router.

Beside step [5], in the actor of a partition (`partition/actor.py`), for as long as that serves. What is to be done is
decided by `Courier` (`runtime/processes/courier.py`); here it is done.

Rules kept here: the writer of the partition is never waited for on the loop, and never waits for it: after a commit it
wakes the loop, and that is all. Places and the agenda are saved now and then, behind what is certain. An error that
is not expected is logged, and the courier begins anew from what is stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Final

from ...runtime.effects.call_attempt import CallAttempt
from ...runtime.effects.call_queue import RunnerName
from ...runtime.encoding.outcome import Outcome
from ...runtime.errors import RayfoldError
from ...runtime.log.contract import NewEvent
from ...runtime.printable import printable_log
from ...runtime.processes.courier import OUT_MAX, TROUBLED_OUT_MAX, Courier, CourierFacts, Delivery
from ..settings import Settings
from .courier_router import CourierRouter, Execute, LocalPartition, ReportLost
from .runner import RunnerHandle
from .runners import Runners

__all__ = ["CourierPlan", "CourierThread", "returned"]

log = printable_log(__name__)

_SAVE_S: Final = 5.0
"""How often the places and the agenda are saved: what happened since is read, and delivered, again after a crash, which
takes a tenth of that."""

_SAVE_CHANGES: Final = 20_000
"""... or sooner, after so many changes, which are in memory."""

_WAIT_MAX_S: Final = 0.5
"""The longest time between two looks: a clock that was set is noticed by then."""

_AGAIN_S: Final = 1.0
"""After an error of its own, before it begins anew."""

_WELL_S: Final = 10.0
"""After so long without another one the error is not shown any more."""

_PAGES_AT_ONCE: Final = 4
"""Pages that are read before the loop has its turn."""

_STOP_S: Final = 5.0

_SWITCH_S: Final = 0.0005
"""How long one thread of this process may keep the others from running, where Python's default is 5 ms. The writer
releases the interpreter for each call of LMDB, and would wait that long to have it back while the courier is at work:
on a busy machine 1.1 to 1.8 times as many steps a second."""


_NOTHING_KNOWN: Final = CourierFacts(0, 0, 0, 0, 0, (), 0, (), 0, 0)

Names = tuple[Sequence[str], Mapping[int, str]]
"""Of the actors of all partitions, and those partitions that are away, with the reason."""


@dataclass(frozen=True, slots=True)
class CourierPlan:
    """What the thread needs to reach others."""

    partition: int
    names: tuple[str, ...]
    """Of the actors of all partitions."""
    unavailable: Mapping[int, str]
    settings: Settings
    placement: str
    store_id: str
    start_runner: Callable[[str], RunnerHandle]
    """Begins to start a runner of these `Effects`."""


class _Waiting:
    """Waits for the outcome of a delivery."""

    __slots__ = ("_delivery", "_thread")

    def __init__(self, thread: CourierThread, delivery: Delivery) -> None:
        self._thread, self._delivery = thread, delivery

    def done(self) -> bool:
        return False

    def set_result(self, outcome: Outcome) -> None:
        self._thread.came_back(self._delivery, outcome)


class CourierThread:
    """Of one activation of a partition."""

    def __init__(
        self,
        plan: CourierPlan,
        new_courier: Callable[[], Courier],
        actor_named: Callable[[str], Any],
        execute: Execute,
        lost: ReportLost,
        store: Callable[[NewEvent], None],
    ) -> None:
        """`new_courier`: from what is stored. `execute`, `lost`: of the partition of this process; `store`: append an
        event to the courier's stream. All three are called on a thread of their own."""
        self._plan, self._new_courier, self._actor_named = plan, new_courier, actor_named
        self._store = store
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="rayfold-courier-here")
        self._here = LocalPartition(self._worker, execute, lost)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._courier: Courier | None = None
        self._router: CourierRouter | None = None
        self._woken = False
        self._scheduled = False
        self._ended = threading.Event()
        self._stopped = threading.Event()
        self._drained = threading.Event()
        self._draining = False
        """Nothing is to be called any more, and what is being called is waited for."""
        self._alarm: asyncio.TimerHandle | None = None
        self._saved_s = 0.0
        self._saved_places = b""
        self._names: Names = (plan.names, plan.unavailable)
        self._known_names: Names = self._names
        """Those that the router has."""
        self._failed: asyncio.Future[None] | None = None
        self._trouble = ""
        """The last error of its own, for a while."""
        self._trouble_s = 0.0
        sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
        self._runners: Runners | None = None
        self._not_reported: list[tuple[CallAttempt, bytes, bool]] = []
        """What attempts came to while the courier began anew."""
        self._thread = threading.Thread(target=self._run, name="rayfold-courier", daemon=True)
        self._thread.start()

    # --- from other threads --------------------------------------------------------------------------------------

    def wake(self) -> None:
        """The log has grown. Costs next to nothing while the courier is at work anyway."""
        if not self._woken:
            self._woken = True
            self._call(self._look)

    def name(self, names: Sequence[str], unavailable: Mapping[int, str]) -> None:
        """The actors of the partitions have these names now, and these are away."""
        self._names = names, unavailable
        self._call(self._rename)

    def facts(self) -> CourierFacts | None:
        """How far it is; None if it is just beginning."""
        courier, trouble = self._courier, self._trouble
        if courier is not None:
            return courier.facts()._replace(trouble=trouble)
        return _NOTHING_KNOWN._replace(trouble=trouble) if trouble else None

    def stop(self, timeout_s: float = _STOP_S) -> None:
        """Save, and end. What is on its way is sent again by the next one. Not to be called by the holder of the
        partition's turn, unless with 0 seconds: then nothing is waited for."""
        if timeout_s and self._runners is not None and self._thread.is_alive():
            self._call(self._drain)
            self._drained.wait(timeout_s / 2)
        self._stopped.set()
        self._call(self._end)
        if timeout_s:
            self._ended.wait(timeout_s)

    def _call(self, what: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(what)

    # --- on the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception:
            log.exception("the courier of partition %d has ended", self._plan.partition)
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)
            self._ended.set()

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        plan = self._plan
        in_flight_max = max(plan.settings.in_flight_max, (OUT_MAX + TROUBLED_OUT_MAX) * len(plan.names))
        settings = replace(plan.settings, in_flight_max=in_flight_max)
        self._runners = Runners(plan.start_runner, self._called, self._runner_changed)
        while not self._stopped.is_set():
            self._failed = self._loop.create_future()
            self._router = CourierRouter(
                plan.partition,
                self._names[0],
                self._actor_named,
                self._here,
                settings,
                plan.placement,
                plan.store_id,
            )
            self._rename()
            try:
                self._courier = self._new_courier()
                for runner in self._runners.up:
                    self._courier.runner_is_up(runner, not self._draining)
                while self._not_reported:
                    call, result, lost = self._not_reported.pop()
                    self._courier.called(call, result, now_us(), lost=lost)
                self._saved_places = self._courier.present_places().event().payload
                self._saved_s = self._loop.time()
                self._look()
                await self._failed
            except Exception as error:
                if self._stopped.is_set():
                    break
                level = log.warning if isinstance(error, RayfoldError) else log.exception
                level("the courier of partition %d begins anew: %s", plan.partition, error)
                self._trouble, self._trouble_s = f"{type(error).__name__}: {error}", self._loop.time()
                await asyncio.sleep(_AGAIN_S)
            finally:
                router, self._router = self._router, None
                courier, self._courier = self._courier, None
                with contextlib.suppress(Exception):
                    await router.drain(0.0)
                if courier is not None:
                    self._finish(courier)
        self._runners.end()

    def _finish(self, courier: Courier) -> None:
        with contextlib.suppress(Exception):  # the log may be closed by now: the next one reads it again
            courier.agenda.save()
            places = courier.present_places().event()
            if courier.has_moved and places.payload != self._saved_places:
                self._store(places)
        courier.agenda.shut()

    def _rename(self) -> None:
        known, self._known_names = self._known_names, self._names
        if self._router is not None:
            self._router.name(*self._names)
            self._schedule()
        try:
            for partition in returned(known, self._names):
                if self._courier is not None:
                    self._courier.probe(partition)
        except Exception as error:
            self._fail(error)

    def _end(self) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(None)

    def _drain(self) -> None:
        """Begin no call any more; `_drained` is set once none is on its way."""
        self._draining = True
        if self._courier is not None and self._runners is not None:
            for runner in self._runners.up:
                self._courier.runner_is_up(runner, False)
        self._see_whether_drained()

    def _called(self, call: CallAttempt, result: bytes, lost: bool) -> None:
        """What an attempt has come to."""
        try:
            if self._courier is None:
                self._not_reported.append((call, result, lost))
                return
            self._courier.called(call, result, now_us(), lost=lost)
            self._schedule()
        except Exception as error:
            self._fail(error)

    def _runner_changed(self, runner: RunnerName, up: bool) -> None:
        """A runner is there, or is not any more."""
        if self._courier is not None:
            self._courier.runner_is_up(runner, up and not self._draining)
            self._schedule()

    def _make_calls(self, courier: Courier) -> None:
        """Hand over the attempts that have begun, and see that what waits has a runner."""
        assert self._runners is not None  # from the start of the courier on
        calls = courier.take_calls()
        if calls:
            self._runners.make(calls)
        if not self._draining:
            self._runners.want(courier.wanted_runners())
        else:
            self._see_whether_drained()

    def _see_whether_drained(self) -> None:
        """An attempt that is beginning is waited for too: it would have no end in the log, though it was not made."""
        courier, runners = self._courier, self._runners
        if (courier is None or not courier.is_calling) and (runners is None or not runners.in_hand):
            self._drained.set()

    def _schedule(self) -> None:
        """Have `_look` called once, after what happens now."""
        if not self._scheduled and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._look)

    def came_back(self, delivery: Delivery, outcome: Outcome) -> None:
        """A delivery has an outcome."""
        try:
            if self._courier is not None and self._router is not None:
                self._courier.outcome(delivery, outcome, now_us())
                self._schedule()
        except Exception as error:
            self._fail(error)

    def _look(self) -> None:
        """Read on, send what is to be sent, and see when there is something to do next."""
        self._scheduled = self._woken = False
        courier, router = self._courier, self._router
        if courier is None or router is None or self._stopped.is_set():
            return
        try:
            more = True
            for _ in range(_PAGES_AT_ONCE):
                more = courier.read()
                self._send(courier, router)
                if not more:
                    break
            self._make_calls(courier)
            self._save_now_and_then(courier)
            if more:
                self._schedule()
            else:
                self._set_alarm(courier)
        except Exception as error:
            self._fail(error)

    def _send(self, courier: Courier, router: CourierRouter) -> None:
        timeout_s = self._plan.settings.timeout_s
        for delivery in courier.take(now_us()):
            assert delivery.command is not None  # one that was taken has it
            router.send(delivery.command, _Waiting(self, delivery), timeout_s)

    def _set_alarm(self, courier: Courier) -> None:
        assert self._loop is not None  # it runs on it
        if self._alarm is not None:
            self._alarm.cancel()
        next_us = courier.next_us()
        wait_s = _WAIT_MAX_S if next_us is None else min(max((next_us - now_us()) / 1e6, 0.0), _WAIT_MAX_S)
        self._alarm = self._loop.call_later(wait_s, self._look)

    def _save_now_and_then(self, courier: Courier) -> None:
        assert self._loop is not None  # it runs on it
        now_s = self._loop.time()
        agenda = courier.agenda
        if now_s - self._saved_s < _SAVE_S and agenda.unsaved < _SAVE_CHANGES:
            return
        self._saved_s = now_s
        if self._trouble and now_s - self._trouble_s > _WELL_S:
            self._trouble = ""
        if agenda.worth_saving:
            agenda.save()
        places = courier.present_places().event()
        if courier.has_moved and places.payload != self._saved_places:
            courier.has_moved = False
            self._saved_places = places.payload
            self._worker.submit(self._store_quietly, places)

    def _store_quietly(self, places: NewEvent) -> None:
        try:
            self._store(places)
        except Exception as error:  # the next time may go better; until then more is delivered again after a crash
            log.warning("the places of the courier of partition %d are not stored: %s", self._plan.partition, error)

    def _fail(self, error: Exception) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_exception(error)


def returned(known: Names, now: Names) -> list[int]:
    """Partitions that were away, or moved, and are there again: the log of one may have been exchanged meanwhile."""
    (before, were_away), (names, are_away) = known, now
    return [
        number
        for number, (old, new) in enumerate(zip(before, names, strict=False))
        if new and number not in are_away and (number in were_away or old != new)
    ]


def now_us() -> int:
    """Microseconds since 1970, by the clock that the log records with."""
    return time.time_ns() // 1000
