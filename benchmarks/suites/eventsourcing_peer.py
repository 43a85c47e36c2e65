"""The bank in the library `eventsourcing`, at its best settings: what a user of Python would take instead.

Rule kept here: nothing that would slow it down. Aggregates are held (not loaded for each command), one event is saved
at a time as its users do, SQLite is in WAL mode with `synchronous=FULL`, its default, which is what an fsync before
each acknowledgement needs; where several processes are faster, several are used. `cached` goes through its repository
with the cache on, without copying and without looking for others' writes.

SQLite recorders of this library cannot be subscribed to, so its projections, and waiting for them, are measured in
memory, which is their fastest form.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.popo import POPOTrackingRecorder
from eventsourcing.projection import ApplicationSubscription, Projection, ProjectionRunner

from ..harness.contract import hold
from ..harness.histogram import Latencies

HELD: Final = 100
"""Accounts that are held."""

PROCESS_TIMEOUT_S: Final = 60.0


class HeldAccount(Aggregate):
    """An account in that library's own style."""

    balance: int

    def __init__(self) -> None:
        self.balance = 0

    @event("Deposited")
    def deposit(self, amount: int) -> None:
        """More money."""
        self.balance += amount


class HeldBank(Application[UUID]):
    """The application that saves them."""


class _Balances(POPOTrackingRecorder):
    """The read model: the balance of every account, kept as a materialised view in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.balances: dict[UUID, int] = {}
        self.target = 0
        self.reached = threading.Event()

    def add(self, account: UUID, amount: int, tracking: Tracking) -> None:
        """One deposit and its place, together."""
        with self._database_lock:
            self._assert_tracking_uniqueness(tracking)
            self._insert_tracking(tracking)
            self.balances[account] = self.balances.get(account, 0) + amount
        if tracking.notification_id == self.target:
            self.reached.set()


class _BalancesProjection(Projection[_Balances]):
    """Feeds the view."""

    name = "balances"

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        """A deposit counts; that an account came into being is only a place to have reached."""
        self.view.add(domain_event.originator_id, getattr(domain_event, "amount", 0), tracking)


IN_MEMORY: Final = {"PERSISTENCE_MODULE": "eventsourcing.popo"}
"""The settings with which the library keeps events in memory."""


def on_sqlite(folder: Path) -> dict[str, str]:
    """The settings with which the library keeps events in a SQLite file."""
    path = str(folder / "bank.sqlite")
    return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": path, "SQLITE_LOCK_TIMEOUT": "60"}


@contextmanager
def _bank(environment: dict[str, str], **settings: str) -> Iterator[HeldBank]:
    with closing(HeldBank(environment | settings)) as bank:
        yield bank


def _open_accounts(bank: HeldBank) -> list[HeldAccount]:
    accounts = [HeldAccount() for _ in range(HELD)]
    bank.save(*accounts)
    return accounts


def _per_s(step: Callable[[int], object], seconds: float) -> float:
    """How often a step goes through in a second, over so many, after a fifth of that as warm-up."""
    number, begun_s = 0, time.perf_counter()
    while time.perf_counter() - begun_s < seconds / 5:
        step(number)
        number += 1
    first, begun_s = number, time.perf_counter()
    while (passed_s := time.perf_counter() - begun_s) < seconds:
        step(number)
        number += 1
    return (number - first) / passed_s


def _hold_that_all_are_stored(bank: HeldBank, accounts: list[HeldAccount]) -> None:
    """Every save is in the store, once."""
    expected, stored = sum(account.version for account in accounts), bank.recorder.max_notification_id()
    hold([] if stored == expected else [f"eventsourcing stored {stored} events of {expected}"])


def _saves_per_s(bank: HeldBank, accounts: list[HeldAccount], seconds: float) -> float:
    """Of held accounts, one event each, in this process."""

    def step(number: int) -> None:
        account = accounts[number % HELD]
        account.deposit(1)
        bank.save(account)

    return _per_s(step, seconds)


def save_held(environment: dict[str, str], seconds: float) -> float:
    """Saves per second of held accounts, one event each, in one process."""
    with _bank(environment) as bank:
        accounts = _open_accounts(bank)
        per_s = _saves_per_s(bank, accounts, seconds)
        _hold_that_all_are_stored(bank, accounts)
        return per_s


def save_cached(environment: dict[str, str], seconds: float) -> float:
    """Load from the cache, deposit, save."""
    settings = {
        "AGGREGATE_CACHE_MAXSIZE": "1000",
        "AGGREGATE_CACHE_FASTFORWARD": "n",
        "DEEPCOPY_FROM_AGGREGATE_CACHE": "n",
    }
    with _bank(environment, **settings) as bank:
        ids = [account.id for account in _open_accounts(bank)]

        def step(number: int) -> None:
            account: HeldAccount = bank.repository.get(ids[number % HELD])
            account.deposit(1)
            bank.save(account)

        per_s = _per_s(step, seconds)
        _hold_that_all_are_stored(bank, [bank.repository.get(one) for one in ids])
        return per_s


def save_in_processes(environment: dict[str, str], processes: int, seconds: float) -> float:
    """Saves per second of so many processes together on one database, each with accounts of its own."""
    with _bank(environment):  # makes the tables before they meet there
        pass
    context = multiprocessing.get_context("spawn")
    barrier, told = context.Barrier(processes), context.SimpleQueue()
    workers = [context.Process(target=_save, args=(environment, seconds, barrier, told)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(PROCESS_TIMEOUT_S + seconds)
        if worker.exitcode is None:
            worker.kill()
    rates: list[float] = []
    while not told.empty():
        rates.append(told.get())
    if failed := processes - len(rates):
        hold([f"{failed} of {processes} processes of eventsourcing failed"])
    return sum(rates)


def _save(environment: dict[str, str], seconds: float, barrier: Any, told: Any) -> None:
    """What each of the processes does. The tables are there: PostgreSQL refuses to have them made twice at once."""
    with _bank(environment, CREATE_TABLE="n") as bank:
        accounts = _open_accounts(bank)
        barrier.wait(PROCESS_TIMEOUT_S)
        told.put(_saves_per_s(bank, accounts, seconds))
        barrier.wait(PROCESS_TIMEOUT_S)


def save_then_wait(seconds: float) -> Latencies:
    """Save, then `runner.wait()` until the read model has it: reading one's own write."""
    latencies = Latencies()
    classes: dict[str, Any] = {"application_class": HeldBank, "projection_class": _BalancesProjection}
    with ProjectionRunner(**classes, view_class=_Balances, env=IN_MEMORY) as runner:
        account = HeldAccount()

        def step() -> None:
            account.deposit(1)
            recordings = runner.app.save(account)
            runner.wait(recordings[-1].notification.id, timeout=10.0)

        step()
        end_s = time.perf_counter() + seconds
        while time.perf_counter() < end_s:
            begun_s = time.perf_counter()
            step()
            latencies.record_s(time.perf_counter() - begun_s)
        seen, expected = runner.view.balances[account.id], account.balance
    hold([] if seen == expected else [f"eventsourcing's read model has {seen}, the account {expected}"])
    return latencies


def catch_up(events: int) -> float:
    """Seconds in which a projection goes through so many events that are there already, in memory."""
    bank = HeldBank(IN_MEMORY)
    accounts = _open_accounts(bank)
    for number in range(events // HELD):
        account = accounts[number % HELD]
        for _ in range(HELD):
            account.deposit(1)
        bank.save(account)
    view = _Balances()
    view.target = bank.recorder.max_notification_id() or 0
    projection = _BalancesProjection(view)
    begun_s = time.perf_counter()
    with ApplicationSubscription(app=bank, gt=None) as subscription:  # as its runner does on a thread of its own, but
        for domain_event, tracking in subscription:  # here on this one: nothing competes for the interpreter
            projection.process_event(domain_event, tracking)
            if view.reached.is_set():
                break
    seconds = time.perf_counter() - begun_s
    expected = {account.id: account.balance for account in accounts}
    bank.close()
    hold([] if view.balances == expected else ["eventsourcing's read model is not the fold of its events"])
    return seconds
