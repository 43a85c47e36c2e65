"""The code of a user at its worst: a `decide` that raises, returns nonsense, or does not end for long; and a projection
that cannot take in one event.

Each time the one caller gets an error, by name or at its deadline, and all others go on. What blocks its process blocks
the neighbours in it: so the one that loops has an actor of its own, which is what `OwnActor()` is for.
"""

from __future__ import annotations

import time
from typing import Final

from rayfold import Envelope, HandlerFailed, RayfoldError, Unavailable
from rayfold.runtime.receipt import Receipt

from ..bank import POISON, AllTotals, Fragile, Jar, Misbehave, OwnRogue, Put, Rogue, Totals
from ..contract import Context, Findings, scenario
from ..history import Sender
from .harness import INVARIANTS_OF_BANKS, LocalBank, local_bank, until

_LOOP_S: Final = 2.0
_DEADLINE_S: Final = 0.5
_GRACE_MS: Final = 3_000.0
"""By which a busy machine may be late for a deadline: one that is missing would be late without end."""


@scenario(
    "rogue-aggregates",
    "aggregates that raise, return nonsense, or loop for long",
    f"{INVARIANTS_OF_BANKS} I12",
    counts="told_by_name told_at_the_deadline",
    times=(12, 20, 0.3),
)
async def rogues(context: Context, findings: Findings) -> None:
    """Aggregates that raise, return nonsense, and loop."""
    quiet_s = before_s = time.monotonic()
    async with local_bank(context, findings, others=1) as bank:
        sender = bank.begin_load()
        await bank.runtime.execute(OwnRogue, "r", Misbehave(how="well"))

        async def up() -> bool:
            return "r" in await bank.own_pids()

        await until(up, 60.0)
        quiet_s = time.monotonic()
        for _ in context.rounds():
            for aggregate in (Rogue, OwnRogue):
                for how in ("raise", "nonsense"):
                    await _told_by_name(bank, aggregate, how)
            before_s = time.monotonic()
            await _told_at_the_deadline(findings, sender)
    for of, since_s, until_s in (("", quiet_s, before_s), ("beside the loop", before_s, before_s + _LOOP_S)):
        others = [one for one in bank.history.entries if "Rogue" not in one.packed.stream.type]
        told = [one.took_ms for one in others if one.outcome is not None and since_s <= one.sent_s < until_s]
        findings.note("neighbours_ms", told, "p99", of)


async def _told_by_name(bank: LocalBank, aggregate: type[Rogue], how: str) -> None:
    told: RayfoldError | Receipt | None
    try:
        told = await bank.runtime.execute(aggregate, "r", Misbehave(how=how))  # type: ignore[arg-type]
    except RayfoldError as error:
        told = error
    bank.findings.count("told_by_name", isinstance(told, HandlerFailed))
    bank.findings.check("I7", isinstance(told, HandlerFailed), f"{aggregate.__name__} that does {how}: got {told!r}")


async def _told_at_the_deadline(findings: Findings, sender: Sender) -> None:
    """The loop goes on after its caller has its error; a second command waits for its end and is decided then."""
    began_s, loop = time.monotonic(), Misbehave(how="loop", seconds=_LOOP_S)
    entry = await sender.send(Envelope(OwnRogue, "r", loop), timeout_s=_DEADLINE_S)
    late_ms = (entry.told_s - began_s - _DEADLINE_S) * 1e3
    findings.count("told_at_the_deadline", isinstance(entry.outcome, Unavailable))
    findings.check("I7", isinstance(entry.outcome, Unavailable), f"the caller of a loop got {entry.outcome!r}")
    findings.check("I12", late_ms < _GRACE_MS, f"the error came {late_ms:.0f} ms after the deadline")
    after = await sender.send(Envelope(OwnRogue, "r", Misbehave(how="well")), timeout_s=60)
    findings.check("I12", isinstance(after.outcome, Receipt), f"after the loop: {after.outcome!r}")


@scenario(
    "poisoned-projection",
    "one event that a projection cannot take in",
    INVARIANTS_OF_BANKS,
    counts="quarantined",
    times=(8, 10, 0.0),
)
async def poisoned_projection(context: Context, findings: Findings) -> None:
    """An event that one projection cannot take in: set aside, visibly, and neither it nor the other one is wrong."""
    async with local_bank(context, findings, projections=(Totals, Fragile), compared=(Totals,)) as bank:
        sender = bank.begin_load()
        entry = await sender.send(Envelope(Jar, "poisoned", Put(amount=7, note=POISON)))
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
