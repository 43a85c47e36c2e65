"""What the storage scenarios write: a seeded stream of commands, and what must come of it, byte for byte.

A ledger of tills takes deposits, withdrawals (some refused) and transfers (two events each), with notes from none to
several pages, so that commits differ in which pages they touch. The clock ticks by command, not by time.

Rule kept here: everything follows from the seed. So whoever knows the seed knows every record of the log in advance,
including its hash chain, and a log is right if and only if it is the start of that, up to the end of a batch.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Final, NamedTuple
from uuid import UUID

from pydantic import PositiveInt

from rayfold import Aggregate, Command, Envelope, Event, Rejected, Shared, decide, evolve
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import PackedCommand, pack
from rayfold.runtime.encoding.outcome import Outcome
from rayfold.runtime.log.contract import WriteLog
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.write.write_loop import WriteLoop

__all__ = ["TILLS", "Expected", "PayIn", "PayOut", "Till", "batches", "catalogue", "clock", "expected", "write_loop"]

TILLS: Final = 6
"""Few, so that streams get long and most commands meet a stream that is there."""

NOTE_CHARS_MAX: Final = 9_000
"""Of a note: over 4,070 bytes a record takes overflow pages of its own."""

SNAPSHOT_EVERY: Final = 5
FIRST_TICK_US: Final = 1_700_000_000_000_000


class PayIn(Command):
    """Put money in."""

    amount: PositiveInt
    note: str = ""


class PayOut(Command):
    """Take money out."""

    amount: PositiveInt


class Move(Command):
    """Send money away, for a fee: two events from one command."""

    amount: PositiveInt


class PaidIn(Event):
    """Money came in."""

    amount: int
    note: str


class PaidOut(Event):
    """Money went out."""

    amount: int


class FeeTaken(Event):
    """A fee was taken."""

    amount: int


class Till(Aggregate, placement=Shared(), snapshot_every=SNAPSHOT_EVERY):
    """Holds money and never goes below nothing."""

    balance: int = 0
    events_seen: int = 0

    @decide
    def pay_in(self, command: PayIn) -> PaidIn:
        """Always fine."""
        return PaidIn(amount=command.amount, note=command.note)

    @decide
    def pay_out(self, command: PayOut) -> PaidOut | Rejected:
        """As far as the balance goes."""
        if command.amount > self.balance:
            return Rejected("too_little", balance=self.balance)
        return PaidOut(amount=command.amount)

    @decide
    def move(self, command: Move) -> tuple[PaidOut, FeeTaken] | Rejected:
        """The amount and the fee, or neither."""
        if command.amount + 1 > self.balance:
            return Rejected("too_little", balance=self.balance)
        return PaidOut(amount=command.amount), FeeTaken(amount=1)

    @evolve
    def paid_in(self, event: PaidIn) -> None:
        """More."""
        self.balance += event.amount
        self.events_seen += 1

    @evolve
    def paid_out(self, event: PaidOut) -> None:
        """Less."""
        self.balance -= event.amount
        self.events_seen += 1

    @evolve
    def fee_taken(self, event: FeeTaken) -> None:
        """Less."""
        self.balance -= event.amount
        self.events_seen += 1


@cache
def catalogue() -> Catalogue:
    """The classes of the workload."""
    return Catalogue([Till])


def batches(seed: int) -> Iterator[list[PackedCommand]]:
    """Batches of 1 to 6 commands without end, the same for the same seed. Each command id appears once."""
    rng = random.Random(seed)
    for number in itertools.count():
        yield [_command(rng, number * 8 + index) for index in range(rng.choice((1, 1, 2, 3, 6)))]


def _command(rng: random.Random, number: int) -> PackedCommand:
    amount = rng.randint(1, 100)
    command: Command
    kind = rng.random()
    if kind < 0.7:
        command = PayIn(amount=amount, note="n" * rng.choice((0, 30, 300, rng.randint(0, NOTE_CHARS_MAX))))
    else:
        command = PayOut(amount=amount) if kind < 0.85 else Move(amount=amount)
    command_id = UUID(int=rng.getrandbits(128))  # random keys touch the most pages of the index of commands
    return pack(Envelope(Till, f"till-{rng.randrange(TILLS)}", command, command_id))[0]


def clock() -> Callable[[], int]:
    """A clock that every log of the workload gets: the same times whenever and wherever it runs."""
    return lambda: FIRST_TICK_US


def write_loop(log: WriteLog) -> WriteLoop:
    """The real write loop over a log, activated."""
    loop = WriteLoop(0, log, catalogue())
    loop.activate()
    return loop


class Expected(NamedTuple):
    """What the first batches of a seed must come to."""

    batches: list[list[PackedCommand]]
    outcomes: list[list[Outcome]]
    """Of each batch, in order."""
    records: list[bytes]
    """The whole log."""
    ends: list[int]
    """`ends[n]`: how many records there are after n batches."""

    def batches_in(self, records: Sequence[bytes]) -> int | None:
        """How many whole batches these records are, byte for byte; None if they are anything else.

        Batches that store nothing count as done: nothing tells them apart from batches that are still to come.
        """
        if list(records) != self.records[: len(records)] or len(records) not in self.ends:
            return None
        return len(self.ends) - 1 - self.ends[::-1].index(len(records))


@cache
def expected(seed: int, count: int) -> Expected:
    """What the first `count` batches of a seed must come to, from the memory log."""
    log = MemoryLog(clock())
    loop = write_loop(log)
    chosen = list(itertools.islice(batches(seed), count))
    result = Expected(chosen, [], [], [0])
    for batch in chosen:
        done = loop.execute(batch)
        result.outcomes.append(done.outcomes)
        result.records.extend(done.records)
        result.ends.append(len(result.records))
    assert any(isinstance(one, Receipt) for outcomes in result.outcomes for one in outcomes)
    return result
