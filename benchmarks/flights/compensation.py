"""Compensation: what a flight that landed three hours late leads to, as a process with a timer.

A claim is opened, the carrier has some time to object, and then it is paid from the carrier's fund. A fund that is
spent refuses, and the claim is noted by the authority instead: so a timer, a refusal and a second command are on the
way of each claim, and processes are killed on it.

Rule kept here: how many are paid and how many noted does not depend on which come first, so that both can be counted
from the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from rayfold import (
    Aggregate,
    Command,
    Ended,
    Event,
    Process,
    Projection,
    Query,
    Recorded,
    Rejected,
    Send,
    Shared,
    Wake,
    accepted,
    answer,
    decide,
    evolve,
    project,
    react,
    refused,
    woken,
)

from .domain import Landed

LATE_MIN: Final = 180
"""From three hours on passengers are compensated: the rule of European Union law, which here holds for New York."""

PAYMENTS_MAX: Final = 5
"""What the fund of one carrier is enough for: so little that a short run spends one."""

OBJECTION_S: Final = 1.0
"""For the carrier to object: in life some weeks, and here a part of the run."""

AUTHORITY: Final = "New York"
"""The id of the only authority."""


class Pay(Command):
    """Pay a claim."""

    claim: str


class Paid(Event):
    """A claim was paid."""

    claim: str


class Fund(Aggregate, placement=Shared()):
    """What a carrier has set aside. Its id is the carrier's two letters."""

    payments: int = 0

    @decide
    def pay(self, command: Pay) -> Paid | Rejected:
        """As long as there is something."""
        return Paid(claim=command.claim) if self.payments < PAYMENTS_MAX else Rejected("fund_is_spent")

    @evolve
    def has_paid(self, event: Paid) -> None:
        self.payments += 1


class Note(Command):
    """Keep a claim that the carrier's fund did not pay."""

    claim: str
    carrier: str


class Noted(Event):
    """A claim is owed."""

    claim: str
    carrier: str


class Authority(Aggregate, placement=Shared()):
    """Who keeps the claims that are owed."""

    owed: int = 0

    @decide
    def note(self, command: Note) -> Noted:
        return Noted(claim=command.claim, carrier=command.carrier)

    @evolve
    def has_noted(self, event: Noted) -> None:
        self.owed += 1


class Opened(Event):
    """There is a claim against this carrier."""

    carrier: str
    late_min: int


class Claim(Process):
    """The claim of a flight's passengers. Its id is the flight and where it came from."""

    carrier: str = ""

    @react(one=lambda event: f"{event.flight} {event.origin}" if event.late_min >= LATE_MIN else None, starts=True)
    def landed(self, event: Landed) -> Iterator[Opened | Wake]:
        """Open it, and wait for objections."""
        yield Opened(carrier=event.carrier, late_min=event.late_min)
        yield Wake("objection", after=timedelta(seconds=OBJECTION_S))

    @woken("objection")
    def undisputed(self) -> Send:
        """None came in time."""
        return Send(Fund, self.carrier, Pay(claim=self.id))

    @refused(Pay)
    def fund_is_spent(self, refusal: Rejected) -> Send:
        """It is still owed."""
        return Send(Authority, AUTHORITY, Note(claim=self.id, carrier=self.carrier))

    @accepted(Pay)
    def paid(self) -> Ended:
        """The passengers have their money."""
        return Ended("paid")

    @accepted(Note)
    def noted(self) -> Ended:
        """They will have it later."""
        return Ended("owed")

    @evolve
    def opened(self, event: Opened) -> None:
        self.carrier = event.carrier


@dataclass(slots=True)
class ClaimFigures:
    """What became of the claims against a carrier."""

    carrier: str
    opened: int = 0
    paid: int = 0
    owed: int = 0
    late_min: int = 0
    """Of all these flights together."""


class EveryClaim(Query[tuple[ClaimFigures, ...]]):
    """What became of the claims against each carrier? In the order of their letters."""


class Claims(Projection):
    """Claims by carrier."""

    carriers: dict[str, ClaimFigures] = {}

    @project
    def opened(self, event: Opened) -> None:
        row = self._row(event.carrier)
        row.opened += 1
        row.late_min += event.late_min

    @project
    def paid(self, event: Paid, recorded: Recorded) -> None:
        """Count a payment. The carrier is the aggregate of the event."""
        self._row(recorded.aggregate_id).paid += 1

    @project
    def noted(self, event: Noted) -> None:
        self._row(event.carrier).owed += 1

    @answer
    def of_all(self, query: EveryClaim) -> tuple[ClaimFigures, ...]:
        """All that have claims against them."""
        return tuple(row for _, row in sorted(self.carriers.items()))

    def _row(self, carrier: str) -> ClaimFigures:
        return self.carriers.get(carrier) or self.carriers.setdefault(carrier, ClaimFigures(carrier))
