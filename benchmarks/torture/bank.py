"""The bank that is tortured: jars of coins, their read models, and the seeded stream of commands to them.

Rules kept here: each command that takes effect leaves one event (but `Split`), which carries the values of the command,
so that a log can be compared with what was sent, one to one; some commands have to be refused by a rule.

`Jar` is shared, `OwnJar` is the same in an actor of its own, `Till` is one with snapshots, and a command that stores
two events. A `Rogue` does what no aggregate should do. The read models count what is in the jars: as they should, a
hundred times too slowly, or failing on one event.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal

from pydantic import NonNegativeInt, PositiveInt

from rayfold import (
    Aggregate,
    Command,
    Envelope,
    Event,
    OwnActor,
    Projection,
    Query,
    Recorded,
    Rejected,
    Shared,
    answer,
    decide,
    derived_id,
    evolve,
    project,
)

AMOUNT_MAX: Final = 100
TAKES: Final = 0.2
"""The share of commands that take; a good part of them find too little and are refused."""

_SLOW_S: Final = 0.001
"""For one event: about a hundred times what the projection needs by itself."""

POISON: Final = "poison"
"""The note of the event that `Fragile` cannot take in."""


class Put(Command):
    """Put coins in; deciding it takes `spin_us` microseconds of CPU."""

    amount: PositiveInt
    note: str = ""
    spin_us: NonNegativeInt = 0


class Take(Command):
    """Take coins out, if there are as many."""

    amount: PositiveInt
    note: str = ""


class PutIn(Event):
    """Coins came in."""

    amount: int
    note: str


class TakenOut(Event):
    """Coins went out."""

    amount: int
    note: str


class Jar(Aggregate, placement=Shared()):
    """A jar inside its partition's actor."""

    coins: int = 0

    @decide
    def put(self, command: Put) -> PutIn:
        end_s = time.perf_counter() + command.spin_us / 1e6
        while command.spin_us and time.perf_counter() < end_s:
            pass
        return PutIn(amount=command.amount, note=command.note)

    @decide
    def take(self, command: Take) -> TakenOut | Rejected:
        """Not more than there is."""
        if command.amount > self.coins:
            return Rejected("too_few_coins", coins=self.coins)
        return TakenOut(amount=command.amount, note=command.note)

    @evolve
    def put_in(self, event: PutIn) -> None:
        self.coins += event.amount

    @evolve
    def taken_out(self, event: TakenOut) -> None:
        self.coins -= event.amount


class OwnJar(Jar, placement=OwnActor()):
    """The same jar in a Ray actor of its own."""


class Split(Command):
    """Take coins out for two, if there are as many."""

    amounts: tuple[PositiveInt, PositiveInt]


class Till(Jar, placement=Shared(), snapshot_every=5):
    """A jar with snapshots. Few tills have long streams, so that there are some."""

    @decide
    def split(self, command: Split) -> tuple[TakenOut, TakenOut] | Rejected:
        """For both, or for neither."""
        if sum(command.amounts) > self.coins:
            return Rejected("too_few_coins", coins=self.coins)
        one, other = command.amounts
        return TakenOut(amount=one, note="one"), TakenOut(amount=other, note="other")


class Misbehave(Command):
    """What no aggregate should do."""

    how: Literal["well", "raise", "nonsense", "loop"]
    seconds: float = 0.0


class Rogue(Aggregate, placement=Shared()):
    """An aggregate that fails in each of the ways in which the code of a user can."""

    times: int = 0

    @decide
    def misbehave(self, command: Misbehave) -> PutIn:
        """As the command asks."""
        if command.how == "raise":
            raise ValueError("as the command asks")
        if command.how == "nonsense":
            nonsense: Any = 42
            return nonsense  # type: ignore[no-any-return]
        end_s = time.monotonic() + (command.seconds if command.how == "loop" else 0.0)
        while time.monotonic() < end_s:
            pass
        return PutIn(amount=1, note=command.how)

    @evolve
    def put_in(self, event: PutIn) -> None:
        self.times += 1


class OwnRogue(Rogue, placement=OwnActor()):
    """The same in a Ray actor of its own, where it blocks no other aggregate."""


class AllTotals(Query[dict[str, list[int]]]):
    """Every jar: what is compared with a fold of the log."""


class Total(Query[list[int]]):
    """One jar: its coins, and how many events it had."""

    jar: str


class Totals(Projection):
    """Jar -> coins and number of events."""

    totals: dict[str, list[int]] = {}

    @project
    def put_in(self, event: PutIn, recorded: Recorded) -> None:
        self._add(recorded, event.amount)

    @project
    def taken_out(self, event: TakenOut, recorded: Recorded) -> None:
        self._add(recorded, -event.amount)

    def _add(self, recorded: Recorded, amount: int) -> None:
        total = self.totals.setdefault(str(recorded.stream), [0, 0])
        total[0] += amount
        total[1] += 1

    @answer
    def all_totals(self, query: AllTotals) -> dict[str, list[int]]:
        return self.totals

    @answer
    def total(self, query: Total) -> list[int]:
        """Nothing, for a jar without events."""
        return self.totals.get(query.jar, [0, 0])


class SlowTotals(Totals):
    """The same, far too slowly."""

    @project
    def put_in(self, event: PutIn, recorded: Recorded) -> None:
        """More, after a while."""
        time.sleep(_SLOW_S)
        self._add(recorded, event.amount)


class Fragile(Totals, on_failure="quarantine"):
    """The same, but it fails on one event."""

    @project
    def put_in(self, event: PutIn, recorded: Recorded) -> None:
        """More, or an error."""
        if event.note == POISON:
            raise ValueError("cannot swallow this")
        self._add(recorded, event.amount)


def jar_names(count: int) -> list[str]:
    """So many names."""
    return [f"jar-{number}" for number in range(count)]


def puts_and_takes(
    seed: int, client: int, shared: Sequence[str], own: Sequence[str] = (), *, own_share: float = 0.2
) -> Iterator[Envelope]:
    """Commands without end; the n-th of a client under a seed is always the same, with the same id. `own_share` of them
    go to the own jars, if there are any."""
    chosen = random.Random(f"{seed}/{client}")
    number = 0
    while True:
        number += 1
        in_own = bool(own) and chosen.random() < own_share
        name, amount = chosen.choice(own if in_own else shared), chosen.randint(1, AMOUNT_MAX)
        command: Command = Put(amount=amount, note=f"{client}/{number}")
        if chosen.random() < TAKES:
            command = Take(amount=amount, note=f"{client}/{number}")
        identity = derived_id("torture", seed, client, number)
        yield Envelope(OwnJar if in_own else Jar, name, command, identity)
