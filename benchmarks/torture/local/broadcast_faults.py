"""A broadcast that drops, repeats, reorders and shortens: a real projector actor has to be right all the same.

Beside step [7]. Nothing else feeds this projector: its store is written to here, and what is broadcast comes from here.
Each answer has the position that it is of, and has to be the fold of the log up to exactly that position.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from typing import Any, Final

import msgpack

from rayfold import Envelope, RayfoldError
from rayfold.actors.sockets.query_frames import Answered
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.codec import encode_message
from rayfold.runtime.encoding.envelope import pack
from rayfold.runtime.encoding.query_batch import PackedQuery, join_queries
from rayfold.runtime.log.format import decode_record, record_position
from rayfold.runtime.store.store import create_or_open_store
from rayfold.runtime.write.write_loop import WriteLoop

from ..bank import AllTotals, Jar, Put, Totals, jar_names
from ..contract import Context, Findings, scenario
from .harness import ray_of_this_process

_BATCHES_SHORT: Final = 300
_BATCHES_LONG: Final = 20_000
_ASK_EVERY: Final = 10
_HELD_MAX: Final = 8
"""Messages that the network holds back to deliver out of order."""

_ANSWER_S: Final = 30.0

Message = tuple[int, list[bytes], int]
"""First position, records, head of the log: what a broadcast carries."""


@scenario(
    "hostile-broadcast",
    "a broadcast that drops, repeats, reorders and shortens, into a real projector",
    "I5 I9 I12",
    counts="messages dropped repeated reordered shortened answers",
    times=(6, 20, 1),
)
async def hostile_broadcast(context: Context, findings: Findings) -> None:
    """One projector, one partition, and a network between them."""
    cluster = ray_of_this_process()
    from rayfold.actors.cluster.rpc import call, kill
    from rayfold.actors.packaging.shipping import ship
    from rayfold.actors.projection.actor import ProjectorPlan, start_projector

    store = create_or_open_store(context.folder / "store", 1)
    catalogue = Catalogue([Jar], [Totals])
    plan = ProjectorPlan("Totals", 0, 0, context.folder / "projector", ship(catalogue), store)
    with closing(store.open_log(0)) as log:
        writer = WriteLoop(0, log, catalogue)
        writer.activate()
        actor = start_projector(plan, f"hostile-{store.store_id[:8]}", cluster.namespace)
        try:
            await call(actor.open, timeout_s=None)
            await _Feed(context, findings, writer, actor).run()
        finally:
            kill(actor)


class _Feed:
    """Writes, broadcasts badly, asks, and compares."""

    def __init__(self, context: Context, findings: Findings, writer: WriteLoop, actor: Any) -> None:
        self._context, self._findings, self._writer, self._actor = context, findings, writer, actor
        self._rng = context.rng
        self._held: list[Message] = []
        self._fold: dict[str, list[int]] = {}
        self._folds: list[dict[str, list[int]]] = [{}]
        """After each position, the jar that changed: enough to fold up to any position."""
        self._head = self._reached = 0
        self._repairs_ms: list[float] = []
        self._behind = False
        """A message was left out, so the next one that arrives has a gap before it."""

    async def run(self) -> None:
        """All batches, and at the end what everything came to."""
        for number in range(_BATCHES_SHORT if self._context.short else _BATCHES_LONG):
            await self._send(self._write())
            if number % _ASK_EVERY == 0:
                await self._ask()
            if self._context.left_s < 0 and number >= _BATCHES_SHORT:  # however long its projector took to start
                break
        await self._deliver((self._head + 1, [], self._head))
        await self._ask()
        figures = self._findings.figures
        self._findings.check("I5", self._reached == self._head, f"it came to {self._reached} of {self._head}")
        figures["gaps_repaired"] = len(self._repairs_ms)
        self._findings.note("gap_repair_ms", self._repairs_ms)
        self._findings.reach(bool(self._repairs_ms), "no gap was ever repaired")
        slowest_ms = max(self._repairs_ms, default=0.0)
        self._findings.check("I12", slowest_ms < _ANSWER_S * 1e3, f"a gap was repaired after {slowest_ms} ms only")
        for fault in ("dropped", "repeated", "reordered", "shortened"):
            self._findings.reach(figures[fault] != 0, f"no message was {fault}")

    def _write(self) -> Message:
        """A batch of commands, decided and committed."""
        names, rng = jar_names(20), self._rng
        sent = [
            pack(Envelope(Jar, rng.choice(names), Put(amount=rng.randint(1, 9))))[0] for _ in range(rng.randint(1, 8))
        ]
        records = self._writer.execute(sent).records
        for record in records:
            stored = decode_record(record)
            total = self._fold.setdefault(str(stored.stream), [0, 0])
            total[0] += msgpack.unpackb(stored.payload)["amount"]
            total[1] += 1
            self._folds.append({str(stored.stream): list(total)})
        self._head += len(records)
        return record_position(records[0]), list(records), self._head

    async def _send(self, message: Message) -> None:
        """What a broadcast may do to a message."""
        first, records, head = message
        self._findings.count("messages")
        fault = self._rng.random()
        if fault < 0.2:
            self._findings.count("dropped")
            self._behind = True
        elif fault < 0.35:
            self._findings.count("reordered")
            self._held.append(message)
            self._behind = True
        elif fault < 0.5 and len(records) > 1:
            self._findings.count("shortened")
            cut = self._rng.randrange(1, len(records))
            await self._deliver((first + cut, records[cut:], head))
        else:
            await self._deliver(message)
            if fault > 0.85:
                self._findings.count("repeated")
                await self._deliver(message)
        while self._held and (len(self._held) > _HELD_MAX or self._rng.random() < 0.3):
            await self._deliver(self._held.pop(self._rng.randrange(len(self._held))))

    async def _deliver(self, message: Message) -> None:
        began_s, gap = time.perf_counter(), self._behind and message[2] == self._head
        await _answer(self._actor.apply.remote(0, *message))
        if gap:
            self._repairs_ms.append((time.perf_counter() - began_s) * 1e3)
            self._behind = False

    async def _ask(self) -> None:
        """One answer, with the position that it is of."""
        query = PackedQuery(AllTotals.message_name, encode_message(AllTotals()))
        replied: Answered = await _answer(self._actor.ask.remote(join_queries([query]), {}))
        import ray.cloudpickle

        [answered] = ray.cloudpickle.loads(replied.answers)
        self._findings.count("answers")
        reached = replied.positions[0]
        self._findings.check("I9", reached >= self._reached, f"it was at {self._reached}, and is at {reached}")
        self._reached = reached
        expected: dict[str, list[int]] = {}
        for change in self._folds[: reached + 1]:
            expected.update(change)
        right = not isinstance(answered, RayfoldError) and answered == expected
        self._findings.check("I5", right, f"at position {reached} it answers {str(answered)[:200]}")


async def _answer(call: Any) -> Any:
    return await asyncio.wait_for(asyncio.wrap_future(call.future()), _ANSWER_S)
