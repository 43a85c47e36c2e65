"""The feed: the table as commands, in the order in which things happened.

A flight that left is three commands, `Depart` to its airport and `TakeOff` and `Land` to its aircraft; one that was
cancelled is one. 458 flights have no arrival, and so no `Land`.

Rule kept here: the same table gives the same commands in the same order under the same ids, which come from the
flight and the step alone. That is what makes a second run on one store a run of repeats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from rayfold import Command, Envelope, derived_id

from .domain import Aircraft, Airport, Cancel, Depart, Land, LandAfterDiversion, TakeOff
from .table import NEVER

if TYPE_CHECKING:
    import pandas as pd


class Step(IntEnum):
    """What a command is about. Of what happens in one minute, the lower number comes first."""

    LAND = 0
    DEPART = 1
    TAKE_OFF = 2
    CANCEL = 3


_IN_THE_AIR: Final = {Step.TAKE_OFF, Step.LAND}
"""The steps of an aircraft; the others are of an airport."""


class _Flight(NamedTuple):
    """What commands need to know of one flight."""

    flight: str
    carrier: str
    aircraft: str
    origin: str
    destination: str
    distance_miles: int
    airborne_min: int
    """`NEVER` for a diverted flight."""
    hour: int
    scheduled_min: int
    departed_min: int
    due_min: int
    landed_min: int


class Feed:
    """The commands of some flights. Each has a number, from 0, in the order of sending."""

    def __init__(self, flights: pd.DataFrame) -> None:
        self._flights = [_Flight(*row) for row in _columns(flights)]
        self._steps = _in_order(self._flights)

    def __len__(self) -> int:
        return len(self._steps)

    def envelopes(self, numbers: Iterable[int] | None = None) -> Iterator[Envelope]:
        """The commands of these numbers, or all of them, made as they are asked for."""
        return map(self.envelope, range(len(self)) if numbers is None else numbers)

    def envelope(self, number: int) -> Envelope:
        """The command of this number with its address."""
        step, flight = self._step(number)
        aggregate, ident = (Aircraft, flight.aircraft) if step in _IN_THE_AIR else (Airport, flight.origin)
        return Envelope(aggregate, ident, _command(step, flight), self.command_id(number))

    def command_id(self, number: int) -> UUID:
        """The id of that command, from nothing but the flight and the step."""
        step, flight = self._step(number)
        return derived_id(flight.origin, flight.flight, step.name)

    def step(self, number: int) -> tuple[int, str]:
        """Which flight of the table that command is about, and which step of it."""
        _, step, flight = self._steps[number]
        return flight, step.name

    def _step(self, number: int) -> tuple[Step, _Flight]:
        _, step, index = self._steps[number]
        return step, self._flights[index]


def _command(step: Step, flight: _Flight) -> Depart | Cancel | TakeOff | Land | LandAfterDiversion:
    if step is Step.CANCEL:
        return Cancel(**_fields(Cancel, flight), at_min=flight.scheduled_min)
    if step is Step.DEPART:
        return Depart(**_fields(Depart, flight), at_min=flight.departed_min)
    if step is Step.TAKE_OFF:
        return TakeOff(**_fields(TakeOff, flight), at_min=flight.departed_min)
    if flight.airborne_min == NEVER:
        return LandAfterDiversion(flight=flight.flight, at_min=flight.landed_min)
    return Land(flight=flight.flight, airborne_min=flight.airborne_min, at_min=flight.landed_min)


def _fields(command: type[Command], flight: _Flight) -> dict[str, Any]:
    """What a command takes over from its flight: all but the instant."""
    return {name: getattr(flight, name) for name in command.model_fields if name != "at_min"}


def _in_order(flights: list[_Flight]) -> list[tuple[int, Step, int]]:
    """Every step of every flight as instant, step, and number of the flight; in that order."""
    steps: list[tuple[int, Step, int]] = []
    for number, flight in enumerate(flights):
        if flight.departed_min == NEVER:
            steps.append((flight.scheduled_min, Step.CANCEL, number))
            continue
        steps.append((flight.departed_min, Step.DEPART, number))
        steps.append((flight.departed_min, Step.TAKE_OFF, number))
        if flight.landed_min != NEVER:
            steps.append((flight.landed_min, Step.LAND, number))
    steps.sort()
    return steps


def _columns(flights: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """The fields of `_Flight`, flight by flight, as plain values."""
    days = zip(flights["year"], flights["month"], flights["day"], strict=True)
    names = zip(days, flights["carrier"], flights["flight"], strict=True)
    columns = [
        flights["carrier"],
        flights["tailnum"].fillna(""),
        flights["origin"],
        flights["dest"],
        flights["distance"],
        flights["air_time"].fillna(NEVER).astype("int64"),
        flights["hour"],
        flights["scheduled_min"],
        flights["departed_min"],
        flights["due_min"],
        flights["landed_min"],
    ]
    flight = (f"{y}-{m:02}-{d:02} {carrier}{number}" for (y, m, d), carrier, number in names)
    return zip(flight, *(column.tolist() for column in columns), strict=True)
