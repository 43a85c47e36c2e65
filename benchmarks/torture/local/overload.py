"""More than it can do: twice the capacity in an open loop, then half of it; and one jar with half of all the load.

What is checked: what waits is bounded, and what does not fit in is refused by name, and fast; what was acknowledged is
there; afterwards everything is as before within seconds. And what is slow or hot delays nothing else.

An open loop sends by the clock and waits for no answer. Deciding takes a fixed time of CPU here, so that the capacity
is that of the partition and not of the sender. The capacity is what a shared machine gives at that moment: where it
gives more, or less, a moment later, the same is tried again with what it gives then.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Final

from rayfold import Envelope, Overloaded
from rayfold.actors.settings import Settings

from ..bank import Jar, Put, SlowTotals, Totals
from ..contract import Context, Findings, quantile, scenario
from ..history import Entry, Sender
from .harness import INVARIANTS_OF_BANKS, OWN_ACTORS_MAX, LocalBank, local_bank

_SPIN_US: Final = 500
_IN_FLIGHT_MAX: Final = 1_000
"""Of each client: low, so that it is reached within a second here."""

_STEP_S: Final = 0.02
_CAPACITY_S: Final = 1.0
_FAST_REFUSAL_MS: Final = 1_000.0
"""The router refuses by itself, in microseconds; but a process may have to wait for a core. A refusal that came
from beyond a queue would take the deadline of 30 s."""

_NORMAL_AFTER_S: Final = 10.0
_NORMAL_MS: Final = 1_000.0
"""A command that takes longer is still behind a queue."""

_FACTORS: Final = (2, 4, 8)
"""Times the capacity, until a command is refused: it may have been measured while the machine did something else."""

_TRIES_BELOW: Final = 3
"""With half of the capacity, until no command is refused: it may be less a moment after it was measured."""

_RSS_GROWTH_MAX_MIB: Final = 300
"""Of a partition or projector: the log's own pages are counted in it."""


@scenario(
    "overload",
    "twice the capacity in an open loop, then half of it",
    "I1 I2 I3 I4 I5 I7 I8 I11 I12",
    times=(14, 90, 0.3),
)
async def overload(context: Context, findings: Findings) -> None:
    """Twice the capacity for 3 s, or a minute in the long form, then half of it."""
    settings = Settings(timeout_s=30.0, in_flight_max=_IN_FLIGHT_MAX, own_actors_max=OWN_ACTORS_MAX)
    async with local_bank(context, findings, partitions=1, settings=settings) as bank:
        sender = bank.client(settings, timeout_s=30.0)
        await bank.probe(0)
        per_s = await _capacity(bank, sender)
        grown_mib = await bank.memory()
        seconds = 2.0 if context.short else min(60.0, max(10.0, context.left_s - 20))
        sent: list[asyncio.Task[Entry]] = []
        above: list[asyncio.Task[Entry]] = []
        below: list[asyncio.Task[Entry]] = []
        for factor in _FACTORS:
            sent = await _open_loop(sender, factor * per_s, seconds)
            above += sent
            if any(map(_is_refused, sent)):
                break
        ended_s = time.monotonic()
        while await bank.probe(0) > _NORMAL_MS and time.monotonic() - ended_s < _NORMAL_AFTER_S:
            pass
        normal_s = time.monotonic() - ended_s
        for _ in range(_TRIES_BELOW):
            below = await _open_loop(sender, min(per_s, await _capacity(bank, sender)) / 2, seconds / 2)
            await asyncio.gather(*above, *below)
            if not any(map(_is_refused, below)):
                break
        grown = grown_mib()
    _look_at_refusals(findings, [one.result() for one in above], [one.result() for one in below])
    findings.figures |= {
        "capacity_per_s": round(per_s),
        "offered_per_s": round(len(sent) / seconds),
        "back_to_normal_s": round(normal_s, 2),
        "rss_growth_mib_max": grown,
    }
    findings.check("I12", normal_s < _NORMAL_AFTER_S, f"{normal_s:.1f} s after the overload it is not as before")
    findings.check("I11", grown < _RSS_GROWTH_MAX_MIB, f"a process grew by {grown} MiB")


def _look_at_refusals(findings: Findings, above: list[Entry], below: list[Entry]) -> None:
    refused = [entry for entry in above if isinstance(entry.outcome, Overloaded)]
    took_ms = sorted(entry.took_ms for entry in refused)
    findings.figures["refused_above"] = len(refused)
    findings.figures["refused_below"] = sum(isinstance(entry.outcome, Overloaded) for entry in below)
    findings.note("refusal_ms", took_ms, "p99")
    findings.check("I11", bool(refused), "nothing was refused: the queue has no bound, or was not filled")
    findings.check("I11", quantile(took_ms, 0.5) < _FAST_REFUSAL_MS, f"a refusal took {quantile(took_ms, 0.5)} ms")
    findings.check("I11", not findings.figures["refused_below"], "commands were refused at half of the capacity")


def _is_refused(sent: asyncio.Task[Entry]) -> bool:
    """Whether it was refused already."""
    return sent.done() and isinstance(sent.result().outcome, Overloaded)


async def _capacity(bank: LocalBank, sender: Sender) -> float:
    """Commands a second in a closed loop: as many as the partition takes."""
    stop, before = asyncio.Event(), len(bank.history.entries)
    driving = asyncio.create_task(sender.drive((_command(n) for n in itertools.count()), stop, 200))
    began_s = time.monotonic()
    await asyncio.sleep(_CAPACITY_S)
    stop.set()
    await driving
    return (len(bank.history.entries) - before) / (time.monotonic() - began_s)


async def _open_loop(sender: Sender, per_s: float, seconds: float) -> list[asyncio.Task[Entry]]:
    """Send by the clock, whatever becomes of it."""
    sent: list[asyncio.Task[Entry]] = []
    began_s = time.monotonic()
    while (passed_s := time.monotonic() - began_s) < seconds:
        for number in range(len(sent), int(passed_s * per_s)):
            sent.append(asyncio.create_task(sender.send(_command(number))))
        await asyncio.sleep(_STEP_S)
    return sent


def _command(number: int) -> Envelope:
    return Envelope(Jar, f"jar-{number % 40}", Put(amount=1, note=str(number), spin_us=_SPIN_US))


@scenario(
    "hot-and-slow",
    "one aggregate with half of the load, and a projector a hundred times too slow",
    INVARIANTS_OF_BANKS,
    times=(12, 30, 0.5),
)
async def hot_and_slow(context: Context, findings: Findings) -> None:
    """Half of the load goes to one jar; and a projector beside the good one is a hundred times too slow."""
    async with local_bank(context, findings, projections=(Totals, SlowTotals)) as bank:
        bank.begin_load()
        await bank.probe(0)
        grown_mib = await bank.memory()
        quiet_s = time.monotonic()
        seconds = 1.0 if context.short else max(5.0, context.left_s / 4)
        await asyncio.sleep(seconds)
        hot_s = time.monotonic()
        sender, stop = bank.client(), asyncio.Event()
        hot = (Envelope(Jar, "hot", Put(amount=1, note=f"hot {number}")) for number in itertools.count())
        driving = asyncio.create_task(sender.drive(hot, stop, 24))
        await asyncio.sleep(seconds)
        lag = await _lag(bank)
        stop.set()
        await driving
        ended_s = time.monotonic()
        grown = grown_mib()
        await bank.end_load()
    others = [e for e in bank.history.entries if e.packed.stream.id != "hot" and e.outcome is not None]
    beside = [one.took_ms for one in others if hot_s <= one.sent_s < ended_s]
    findings.note("others_ms", (one.took_ms for one in others if quiet_s <= one.sent_s < hot_s), "p99")
    findings.note("others_ms", beside, "p99", "beside the hot one")
    findings.figures |= {
        "slow_projector_lag_events": lag["SlowTotals"],
        "other_projector_lag_events": lag["Totals"],
        "rss_growth_mib_max": grown,
    }
    findings.check("I11", bool(beside), "beside the hot jar no other one was served")
    findings.check("I11", grown < _RSS_GROWTH_MAX_MIB, f"a process grew by {grown} MiB")


async def _lag(bank: LocalBank) -> dict[str, int]:
    """Projection -> events that it is behind."""
    heads = await bank.runtime.heads()
    every = (await bank.runtime.status()).projectors
    return {one.projection: sum(heads[p] - min(heads[p], at) for p, at in one.positions.items()) for one in every}
