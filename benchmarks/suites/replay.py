"""Replay: what the length of a log costs: rebuilding a read model, starting cold, waking an aggregate, writing on.

Rule kept here: logs are made once per run and size and only read afterwards. Writing on needs a log that changes: up to
a million events it gets a copy each time; the largest is written on in place, where a repetition adds under 1 %.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rayfold import Aggregate, Envelope, Receipt, Shared, StreamId
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message, encode_state, state_fingerprint
from rayfold.runtime.encoding.envelope import new_command_id
from rayfold.runtime.encoding.query_batch import PackedQuery
from rayfold.runtime.log.contract import Append, NewEvent
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.read.read_model import ReadModel
from rayfold.runtime.store.store import Store
from rayfold.runtime.write.residents import Residents

from ..harness.contract import Case, Figure, Options, Parameter, Sample, hold, of_each
from ..workloads.bank import STORES, Account, AllBalances, Balances, Deposit, Deposited, deposits, missing_stores
from ..workloads.grown_log import EVENTS_EACH, account_name, grow, grow_streams
from ..workloads.keys import ACCOUNTS, draw, names
from .invariants import balances_in, read_model_violations
from .load import execute_all
from .measuring import of_times, rate, seconds_of, timed
from .running import Running, fresh_folder, running_bank
from .write import WARM_UP_SHARE, command_figures

COPIED_EVENTS_MAX: Final = 1_000_000
"""A copy of more takes longer than what is measured."""

SNAPSHOT_EVERY: Final = 1_000
"""Events between two snapshots, where there are any: the runtime's own default."""

DEPTH: Final = 1_024


REBUILT_EVENTS: Final = 100_000
REBUILT_DEPTH: Final = 256
"""Commands in flight during a rebuild: enough to keep a partition busy, without a queue of seconds."""

BEFORE_S: Final = 1.0
"""In which the rate of commands without a rebuild is counted."""


class Snapshotted(Account, placement=Shared(), snapshot_every=SNAPSHOT_EVERY):
    """The account with snapshots."""


class Unsnapshotted(Account, placement=Shared(), snapshot_every=0):
    """The account without."""


def sizes_of(options: Options) -> tuple[int, ...]:
    """Events in the logs, the smallest first."""
    return options.events or ((100_000, 300_000) if options.quick else (100_000, 1_000_000, 10_000_000))


def cases(options: Options) -> list[Case]:
    """Each question at each size of the log."""
    sizes = sizes_of(options)
    lengths = (100, 10_000) if options.quick else (10, 100, 1_000, 10_000, 100_000)
    found = of_each("replay", "projection rebuild", _rebuild, [{"events": events} for events in sizes])
    for store, skip in missing_stores(("memory",)):  # that is the first of the cases above
        found += of_each("replay", "rebuild by store", _rebuild, [{"store": store}], skip=skip)
    traffic = [{"traffic": there} for there in ((True,) if options.quick else (False, True))]
    found += of_each("replay", "rebuild while serving", _rebuild_while_serving, traffic)
    found += of_each("replay", "cold start", _cold_start, [{"events": events} for events in sizes])
    kinds = [(length, with_them) for length in lengths for with_them in (False, True)[: 1 + (length >= SNAPSHOT_EVERY)]]
    settings = [{"length": length, "snapshots": snapshots} for length, snapshots in kinds]
    found += of_each("replay", "activation", _activation, settings)
    labelled: list[dict[str, Parameter]] = [{"size": size} for size in sizes[:-1]]
    labelled.append({"size": "largest"})
    return found + of_each("replay", "commands after", _commands_after, labelled, throughput=True)


@dataclass(frozen=True, slots=True)
class _Grown:
    """A log that was made for this run, and what that took."""

    store: Store
    seconds: float
    bytes: int


_grown: dict[tuple[Path, int], _Grown] = {}


def _log_of(options: Options, events: int) -> _Grown:
    """The log of so many events, made if this run has none yet. It is gone with the run's directory."""
    key = (options.directory, events)
    if key not in _grown or not _grown[key].store.path.exists():
        options.directory.mkdir(parents=True, exist_ok=True)
        begun_s = time.perf_counter()
        store = grow(options.directory / f"log-{events}", events)
        size_bytes = (store.partition_path(0) / "data.mdb").stat().st_blocks * 512
        _grown[key] = _Grown(store, time.perf_counter() - begun_s, size_bytes)
    return _grown[key]


def _notes(grown: _Grown) -> dict[str, str | int | float | bool]:
    return {"log_bytes": grown.bytes, "log_made_in_s": round(grown.seconds, 1)}


async def _rebuild(options: Options, events: int | None = None, store: str = "memory") -> Sample:
    """A read model from nothing, in this process: one core, and nothing else going on. By default over the smallest
    log."""
    projection, events = STORES[store], events or sizes_of(options)[0]
    grown = _log_of(options, events)
    with closing(grown.store.open_reader(0)) as reader, fresh_folder(options) as folder:
        up_to = reader.head()
        read_model = ReadModel(projection, Catalogue([Account], [projection]), {0: reader}, directory=folder)
        read_model.open()
        begun_s = time.perf_counter()
        read_model.catch_up(0, up_to)
        seconds = time.perf_counter() - begun_s
        query = PackedQuery(AllBalances.message_name, encode_message(AllBalances()))
        balances: dict[str, int] = read_model.answer([query], lambda answers: answers[0])
        violations = [] if read_model.positions == {0: up_to} else [f"it stopped at {read_model.positions}"]
        if up_to <= COPIED_EVENTS_MAX:  # comparing with another fold takes as long again
            violations += read_model_violations("the rebuilt read model", balances_in([reader]), balances)
        elif sum(balances.values()) < events:
            violations.append(f"{sum(balances.values()):,} were deposited in the read model, {events:,} in the log")
        read_model.close()
    hold(violations)
    return Sample({"events_per_s": rate(up_to, seconds, "events/s")}, notes=_notes(grown))


def rebuild_again(options: Options) -> int:
    """One more rebuild over the smallest log, for what measures it meanwhile. Returns the events."""
    with closing(_log_of(options, sizes_of(options)[0]).store.open_reader(0)) as reader:
        read_model = ReadModel(Balances, Catalogue([Account], [Balances]), {0: reader})
        read_model.catch_up(0)
        return read_model.positions[0]


async def _cold_start(options: Options, events: int) -> Sample:
    """From asking for a runtime until it answers, Ray running: processes, logs, and the read model's catching up."""
    grown = _log_of(options, events)
    begun_s = time.perf_counter()
    async with running_bank(options, replicas=1, aggregates=[Account], store=grown.store.path) as running:
        seconds = time.perf_counter() - begun_s
        reached = (await running.bank.status()).projectors[0].positions
        head = await running.bank.heads()
    hold([] if reached == head else [f"the read model answered at {reached} and the log was at {head}"])
    return Sample({"start_s": seconds_of(seconds)}, notes=_notes(grown))


async def _activation(options: Options, length: int, snapshots: bool) -> Sample:
    """An aggregate that is in no memory, made from the log; in this process."""
    aggregate: type[Aggregate] = Snapshotted if snapshots else Unsnapshotted
    stream = StreamId(aggregate.aggregate_type, "one")
    with fresh_folder(options) as folder:
        store = grow_streams(folder / "store", {"one": length}, aggregate.aggregate_type)
        log = store.open_log(0)
        if snapshots:
            _save_snapshot(log, stream, length)
        residents = Residents(Catalogue([aggregate]), log)
        loaded = residents.load(stream)
        expected = length + snapshots
        done = timed(lambda: residents.load(stream), options.seconds / 4, warm_up=2)
        log.close()
    sound = (loaded.version, loaded.balance) == (expected, expected)  # type: ignore[attr-defined]
    hold([] if sound else [f"{loaded!r} was made from {expected} events"])
    return of_times({"latency": done.latencies}, {})


def _save_snapshot(log: LmdbLog, stream: StreamId, length: int) -> None:
    """One further event, with the snapshot that the runtime would have left there."""
    state = Snapshotted("one")
    state.balance = state.version = length + 1
    event = NewEvent(Deposited.message_name, 1, encode_message(Deposited(amount=1)))
    saved = encode_state(state), state_fingerprint(Snapshotted)
    log.append(log.activate(), [Append(stream, length, (event,), new_command_id(), bytes(16), b"", b"", *saved)])


async def _commands_after(options: Options, size: int | str) -> Sample:
    """Saturated writes to a thousand accounts spread over a log of that many events, each of which is in memory: the
    largest log is not copied, so that the accounts have more events in it with every round."""
    events = sizes_of(options)[-1] if isinstance(size, str) else size
    grown = _log_of(options, events)
    with fresh_folder(options) as folder:
        path = grown.store.path
        if events <= COPIED_EVENTS_MAX:
            path = Path(shutil.copytree(path, folder / "copy"))
        async with running_bank(options, aggregates=[Account], store=path) as running:
            keys = _spread(draw("uniform", options.seed), events)
            envelopes = deposits(keys, options.seed)
            loading = [Envelope(Account, account, Deposit(amount=1)) for account in sorted(set(keys))]
            receipts: list[Receipt] = []
            async for _, outcome in running.bank.execute_all(loading):
                if not isinstance(outcome, Receipt):
                    raise outcome
                receipts.append(outcome)
            load = await execute_all(
                running.bank, envelopes, DEPTH, options.seconds * WARM_UP_SHARE, options.seconds, running.cpu()
            )
            hold(load.failures, await running.violations(receipts + load.receipts))
    notes = running.notes | _notes(grown) | {"events_before": sum(running.started_at.values())}
    return Sample(command_figures(load), notes=notes)


def _spread(keys: list[str], events: int) -> list[str]:
    """The same draw over accounts that lie evenly in the log."""
    accounts = events // EVENTS_EACH
    place = {key: account_name(number * accounts // ACCOUNTS) for number, key in enumerate(names())}
    return [place[key] for key in keys]


async def _rebuild_while_serving(options: Options, traffic: bool) -> Sample:
    """A read model built anew while the runtime serves, as a user sees it: from the call of `bank.rebuild(...)` until
    the new one has taken over, the start of its process included. With traffic, commands keep coming until then, and
    what they do in a second is given beside what they did before it began."""
    async with running_bank(options, replicas=1) as running:
        receipts = await _filled(running, options)
        async with _sending(running, options, traffic) as sent:
            before_per_s = await _rate_over(sent, BEFORE_S) if traffic else 0.0
            counted, begun_s = len(sent), time.perf_counter()
            done = await running.bank.rebuild(Balances)
            seconds = time.perf_counter() - begun_s
            during_per_s = (len(sent) - counted) / seconds
        await running.learn_processes()
        hold(await running.violations(receipts + sent))
    figures = {"events_per_s": rate(done.events, seconds, "events/s")}
    if traffic:
        figures["commands_kept_share"] = Figure(during_per_s / before_per_s, "share", "higher")
    return Sample(figures, notes=running.notes | {"events": done.events, "rebuilt_in_s": round(seconds, 2)})


async def _filled(running: Running, options: Options) -> list[Receipt]:
    """So many deposits, as fast as they go."""
    receipts: list[Receipt] = []
    envelopes = deposits(draw("uniform", options.seed), options.seed)
    source = (envelope for envelope, _ in zip(envelopes, range(REBUILT_EVENTS), strict=False))
    async for _, outcome in running.bank.execute_all(source, in_flight=4_096):
        assert isinstance(outcome, Receipt), outcome
        receipts.append(outcome)
    return receipts


@asynccontextmanager
async def _sending(running: Running, options: Options, traffic: bool) -> AsyncIterator[list[Receipt]]:
    """Commands, for as long as the block takes; what was acknowledged so far is in the list."""
    sent: list[Receipt] = []
    going = traffic

    async def send() -> None:
        envelopes = deposits(draw("uniform", options.seed + 1), options.seed + 1)
        source = iter(lambda: next(envelopes) if going else None, None)
        async for _, outcome in running.bank.execute_all(source, in_flight=REBUILT_DEPTH):
            assert isinstance(outcome, Receipt), outcome
            sent.append(outcome)

    sending = asyncio.create_task(send())
    try:
        yield sent
    finally:
        going = False
        await sending


async def _rate_over(sent: list[Receipt], seconds: float) -> float:
    counted, begun_s = len(sent), time.perf_counter()
    await asyncio.sleep(seconds)
    return (len(sent) - counted) / (time.perf_counter() - begun_s)
