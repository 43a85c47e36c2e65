"""The code of a user at its worst: a `decide` that raises, returns nonsense, or does not end for long; and a projection
that cannot take in one event.

Each time the one caller is told, by name or at its deadline, and everybody else goes on. What blocks its process blocks
the neighbours in it: so the one that loops has an actor of its own, which is what `OwnActor()` is for.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from rayfold import Envelope, HandlerFailed, RayfoldError, Unavailable
from rayfold.runtime.receipt import Receipt

from .contract import Context, Findings, Scenario
from .local_harness import Living, living, quantile, until
from .workload import POISON, AllTotals, Fragile, Jar, Misbehave, OwnRogue, Put, Rogue, Totals

__all__ = ["SCENARIOS"]

_LOOP_S: Final = 2.0
_DEADLINE_S: Final = 0.5
_GRACE_MS: Final = 3_000.0
"""By which a busy machine may be late for a deadline: one that is missing would be late for ever."""


def rogues(context: Context) -> Findings:
    """Aggregates that raise, return nonsense, and loop."""
    findings = Findings({"told_by_name": 0, "told_at_the_deadline": 0})
    asyncio.run(_rogues(context, findings))
    return findings


async def _rogues(context: Context, findings: Findings) -> None:
    async with living(context, findings, others=1) as bank:
        bank.begin_load()
        await bank.runtime.execute(OwnRogue, "r", Misbehave(how="well"))
        await until(lambda: _up(bank), 60.0)
        quiet_s = time.monotonic()
        while True:
            for aggregate in (Rogue, OwnRogue):
                for how in ("raise", "nonsense"):
                    await _told_by_name(bank, aggregate, how)
            before_s = time.monotonic()
            await _told_at_the_deadline(bank)
            if context.short or context.left_s < 0:
                break
    alone = _neighbours_ms(bank, quiet_s, before_s)
    beside = _neighbours_ms(bank, before_s, before_s + _LOOP_S)
    findings.figures["neighbours_ms_p99"] = quantile(alone, 0.99)
    findings.figures["neighbours_ms_p99 beside the loop"] = quantile(beside, 0.99)


def _neighbours_ms(bank: Living, since_s: float, until_s: float) -> list[float]:
    """What everybody but the rogues waited, sorted."""
    told = (entry for entry in bank.history.entries if entry.outcome is not None and since_s <= entry.sent_s < until_s)
    return sorted((entry.told_s - entry.sent_s) * 1e3 for entry in told if "Rogue" not in entry.packed.stream.type)


async def _up(bank: Living) -> bool:
    return "r" in await bank.own_pids()


async def _told_by_name(bank: Living, aggregate: type[Rogue], how: str) -> None:
    told: RayfoldError | Receipt | None
    try:
        told = await bank.runtime.execute(aggregate, "r", Misbehave(how=how))  # type: ignore[arg-type]
    except RayfoldError as error:
        told = error
    bank.findings.count("told_by_name", isinstance(told, HandlerFailed))
    bank.findings.check("I7", isinstance(told, HandlerFailed), f"{aggregate.__name__} that does {how}: told {told!r}")


async def _told_at_the_deadline(bank: Living) -> None:
    """The loop goes on after its caller has been told; a second command waits for its end and is decided then."""
    findings, began_s = bank.findings, time.monotonic()
    entry = await bank.senders[0].send(
        Envelope(OwnRogue, "r", Misbehave(how="loop", seconds=_LOOP_S)), timeout_s=_DEADLINE_S
    )
    late_ms = (entry.told_s - began_s - _DEADLINE_S) * 1e3
    findings.count("told_at_the_deadline", isinstance(entry.outcome, Unavailable))
    findings.check("I7", isinstance(entry.outcome, Unavailable), f"the caller of a loop was told {entry.outcome!r}")
    findings.check("I12", late_ms < _GRACE_MS, f"told {late_ms:.0f} ms after the deadline")
    after = await bank.senders[0].send(Envelope(OwnRogue, "r", Misbehave(how="well")), timeout_s=60)
    findings.check("I12", isinstance(after.outcome, Receipt), f"after the loop: {after.outcome!r}")


def poisoned_projection(context: Context) -> Findings:
    """An event that one projection cannot take in: set aside, visibly, and neither it nor the other one is wrong."""
    findings = Findings({"quarantined": 0})
    asyncio.run(_poisoned(context, findings))
    return findings


async def _poisoned(context: Context, findings: Findings) -> None:
    async with living(context, findings, projections=(Totals, Fragile), compared=(Totals,)) as bank:
        bank.begin_load()
        entry = await bank.senders[0].send(Envelope(Jar, "poisoned", Put(amount=7, note=POISON)))
        assert isinstance(entry.outcome, Receipt), entry.outcome

        async def set_aside() -> bool:
            every = (await bank.runtime.status()).projectors
            return any(one.projection == "Fragile" and one.quarantined for one in every)

        findings.check("I5", await until(set_aside, 30.0), "the event is not in quarantine")
        await bank.end_load()
        [fragile] = [one for one in (await bank.runtime.status()).projectors if one.projection == "Fragile"]
        findings.figures["quarantined"] = len(fragile.quarantined)
        places = [(one.partition, one.position) for one in fragile.quarantined]
        findings.check("I5", places == [(entry.outcome.partition, entry.outcome.position)], f"in quarantine: {places}")
        heads = await bank.runtime.heads()
        whole = await bank.runtime.ask(Totals, AllTotals(), after=heads)
        rest = await bank.runtime.ask(Fragile, AllTotals(), after=heads)
        missing = {jar: totals for jar, totals in whole.items() if rest.get(jar) != totals}
        findings.check("I5", missing == {"Jar/poisoned": [7, 1]}, f"the projection lacks {missing}, not one event")
        again = await bank.runtime.retry_quarantined(Fragile)
        findings.check("I5", len(again) == 1, f"tried again, {len(again)} events are still in quarantine")


SCENARIOS: Final = (
    Scenario(
        "rogue-aggregates",
        "aggregates that raise, return nonsense, or loop for long",
        rogues,
        invariants=("I1", "I2", "I3", "I4", "I5", "I7", "I8", "I9", "I11", "I12"),
        short_s=12,
        long_s=20,
        weight=0.3,
    ),
    Scenario(
        "poisoned-projection",
        "one event that a projection cannot take in",
        poisoned_projection,
        invariants=("I1", "I2", "I3", "I4", "I5", "I7", "I8", "I9", "I11"),
        short_s=8,
        long_s=10,
        weight=0.0,
    ),
)
