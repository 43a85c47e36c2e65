"""The domain: airports that let flights go, and aircraft that are in one place at a time.

An airport of origin is an aggregate in an actor of its own: three of them take a third of all commands. The 4,043
aircraft are light and many, so they share their partition's actor.

Rule kept here: every rule is one that holds for any airport and any aircraft. None was made for this table, and the
reasons for the numbers stand beside them. What is refused is refused under a stable reason:

======================== ===================================================================================
`time_ran_backwards`     an airport or aircraft that has seen a later instant is given an earlier one
`departed_already`       a flight departs once
`cancelled_already`      a cancelled flight does not depart, and is not cancelled twice
`left_too_early`         a flight does not leave its passengers behind
`too_late_for_its_day`   nothing leaves a day late under its old number
`still_in_the_air`       an aircraft that has not landed cannot take off
`not_back_yet`           an aircraft that landed far away needs the time to come back
`did_not_take_off`       a flight that was cancelled, or never took off with this aircraft, does not land
`landed_too_soon`        no flight is in the air for longer than it takes in all
`faster_than_airliners`  no airliner crosses that distance in that time
======================== ===================================================================================

The state of an airport is bounded: it remembers the flights of the last days only. What it has forgotten cannot
come back, because `time_ran_backwards` and `too_late_for_its_day` would refuse it.

All instants are minutes since 1970 UTC.
"""

from __future__ import annotations

from typing import Final

from rayfold import Aggregate, Command, Event, OwnActor, Rejected, Shared, decide, evolve

YEAR: Final = "2013"
"""The id of the only timetable."""

DAY_MIN: Final = 24 * 60

EARLIEST_MIN: Final = 20
"""Boarding ends 15 to 20 minutes before the time on the ticket; who leaves earlier leaves passengers behind."""

LONGEST_FLIGHT_MIN: Final = DAY_MIN
"""The longest airline flights take 19 hours. An aircraft without a record for a day has landed unrecorded."""

TURNAROUND_MIN: Final = 20
"""The quickest airlines need 20 minutes between landing and leaving again."""

FASTEST_MPH: Final = 640
"""Over the ground, on average: an airliner's 560 mph with a strong jet stream behind it."""


class Depart(Command):
    """Leave the parking position."""

    flight: str
    """Day, carrier and number: unique at one airport."""
    carrier: str
    aircraft: str
    scheduled_min: int
    hour: int
    """Of the schedule, local time, 0 to 23."""
    at_min: int


class Departed(Event):
    """A flight left its parking position."""

    flight: str
    carrier: str
    aircraft: str
    scheduled_min: int
    hour: int
    at_min: int
    late_min: int
    """Negative if early."""


class Cancel(Command):
    """Strike a flight off the schedule."""

    flight: str
    carrier: str
    scheduled_min: int
    hour: int
    at_min: int


class Cancelled(Event):
    """A flight was struck off the schedule."""

    flight: str
    carrier: str
    scheduled_min: int
    hour: int
    at_min: int


class Airport(Aggregate, placement=OwnActor()):
    """Where flights start from. Its id is its three letters."""

    clock_min: int = 0
    """The latest instant it has seen."""
    departed: dict[int, set[str]] = {}
    """The flights that have left, by the day they were scheduled for; the last days only."""
    cancelled: dict[int, set[str]] = {}
    """The flights that were cancelled, likewise."""

    @decide
    def depart(self, command: Depart) -> Departed | Rejected:
        """Let a flight go, once, on its day, and not before its passengers are there."""
        if rejected := self._refused(command.flight, command.scheduled_min, command.at_min):
            return rejected
        late_min = command.at_min - command.scheduled_min
        if late_min < -EARLIEST_MIN:
            return Rejected("left_too_early", flight=command.flight, early_min=-late_min)
        return Departed(**command.model_dump(), late_min=late_min)

    @decide
    def cancel(self, command: Cancel) -> Cancelled | Rejected:
        """Strike a flight that has not left."""
        if rejected := self._refused(command.flight, command.scheduled_min, command.at_min):
            return rejected
        return Cancelled(**command.model_dump())

    @evolve
    def has_departed(self, event: Departed) -> None:
        _remember(self.departed, event.flight, event.scheduled_min, event.at_min)
        self.clock_min = event.at_min

    @evolve
    def has_cancelled(self, event: Cancelled) -> None:
        """Remember that it will not leave."""
        _remember(self.cancelled, event.flight, event.scheduled_min, event.at_min)
        self.clock_min = event.at_min

    def _refused(self, flight: str, scheduled_min: int, at_min: int) -> Rejected | None:
        """What a departure and a cancellation have to keep alike."""
        if at_min < self.clock_min:
            return Rejected("time_ran_backwards", flight=flight, at_min=at_min, clock_min=self.clock_min)
        if at_min - scheduled_min > DAY_MIN:
            return Rejected("too_late_for_its_day", flight=flight, late_min=at_min - scheduled_min)
        if any(flight in flights for flights in self.departed.values()):
            return Rejected("departed_already", flight=flight)
        if any(flight in flights for flights in self.cancelled.values()):
            return Rejected("cancelled_already", flight=flight)
        return None


class TakeOff(Command):
    """Leave for a destination."""

    flight: str
    carrier: str
    origin: str
    destination: str
    distance_miles: int
    due_min: int
    """When it should land."""
    at_min: int


class TookOff(Event):
    """The aircraft is in the air."""

    flight: str
    carrier: str
    origin: str
    destination: str
    distance_miles: int
    due_min: int
    at_min: int


class Land(Command):
    """Arrive where the flight was going."""

    flight: str
    airborne_min: int
    at_min: int


class Landed(Event):
    """The aircraft arrived where the flight was going."""

    flight: str
    carrier: str
    origin: str
    destination: str
    distance_miles: int
    airborne_min: int
    late_min: int
    """Negative if early."""
    at_min: int


class LandAfterDiversion(Command):
    """Arrive after a landing elsewhere. The table does not have how long it was in the air."""

    flight: str
    at_min: int


class LandedAfterDiversion(Event):
    """The aircraft arrived after a landing elsewhere."""

    flight: str
    carrier: str
    origin: str
    destination: str
    at_min: int


class Aircraft(Aggregate, placement=Shared()):
    """One airframe. Its id is its tail number. Only its flights out of New York are known, not those back."""

    flight: str = ""
    """The flight it is in the air with; empty on the ground."""
    carrier: str = ""
    origin: str = ""
    destination: str = ""
    distance_miles: int = 0
    due_min: int = 0
    took_off_min: int = 0
    clock_min: int = 0
    """The latest instant of its events."""
    back_min: int = 0
    """The earliest instant at which it can be in New York again."""

    @decide
    def take_off(self, command: TakeOff) -> TookOff | Rejected:
        """Go, if it is here."""
        if rejected := self._refused(command.at_min):
            return rejected
        if self.flight and command.at_min - self.took_off_min < LONGEST_FLIGHT_MIN:
            return Rejected("still_in_the_air", flight=self.flight, since_min=self.took_off_min)
        if not self.flight and command.at_min < self.back_min:
            return Rejected("not_back_yet", missing_min=self.back_min - command.at_min)
        return TookOff(**command.model_dump())

    @decide
    def land(self, command: Land) -> Landed | Rejected:
        """End the flight it is in the air with."""
        if rejected := self._refused(command.at_min) or self._elsewhere(command.flight):
            return rejected
        if command.airborne_min > command.at_min - self.took_off_min:
            return Rejected("landed_too_soon", flight=self.flight, airborne_min=command.airborne_min)
        if self.distance_miles * 60 > command.airborne_min * FASTEST_MPH:
            return Rejected("faster_than_airliners", flight=self.flight, airborne_min=command.airborne_min)
        return Landed(
            flight=self.flight,
            carrier=self.carrier,
            origin=self.origin,
            destination=self.destination,
            distance_miles=self.distance_miles,
            airborne_min=command.airborne_min,
            late_min=command.at_min - self.due_min,
            at_min=command.at_min,
        )

    @decide
    def land_after_diversion(self, command: LandAfterDiversion) -> LandedAfterDiversion | Rejected:
        """End the flight it is in the air with, by a detour."""
        if rejected := self._refused(command.at_min) or self._elsewhere(command.flight):
            return rejected
        return LandedAfterDiversion(
            flight=self.flight,
            carrier=self.carrier,
            origin=self.origin,
            destination=self.destination,
            at_min=command.at_min,
        )

    @evolve
    def has_taken_off(self, event: TookOff) -> None:
        """It is in the air, and what it carries is known."""
        self.flight, self.carrier = event.flight, event.carrier
        self.origin, self.destination = event.origin, event.destination
        self.distance_miles, self.due_min = event.distance_miles, event.due_min
        self.took_off_min = self.clock_min = event.at_min

    @evolve
    def has_landed(self, event: Landed) -> None:
        """It is far away, and has to come back."""
        self._on_the_ground(event.at_min)

    @evolve
    def has_landed_after_diversion(self, event: LandedAfterDiversion) -> None:
        """It is far away, and has to come back."""
        self._on_the_ground(event.at_min)

    def _refused(self, at_min: int) -> Rejected | None:
        if at_min < self.clock_min:
            return Rejected("time_ran_backwards", at_min=at_min, clock_min=self.clock_min)
        return None

    def _elsewhere(self, flight: str) -> Rejected | None:
        if flight != self.flight:
            return Rejected("did_not_take_off", flight=flight, in_the_air_with=self.flight)
        return None

    def _on_the_ground(self, at_min: int) -> None:
        return_min = -(-self.distance_miles * 60 // FASTEST_MPH)
        self.flight, self.clock_min = "", at_min
        self.back_min = at_min + TURNAROUND_MIN + return_min


def _remember(days: dict[int, set[str]], flight: str, scheduled_min: int, at_min: int) -> None:
    """Note the flight under its day, and forget the days of which nothing can leave or be cancelled any more."""
    days.setdefault(scheduled_min // DAY_MIN, set()).add(flight)
    oldest = (at_min - DAY_MIN) // DAY_MIN
    for day in [day for day in days if day < oldest]:
        del days[day]


class Publish(Command):
    """Announce how many flights there will be, from the first of January on."""

    flights: int


class Published(Event):
    """So many flights there will be."""

    flights: int


class Timetable(Aggregate, placement=Shared()):
    """How many flights of a year a store is about, for all nodes and programs of a cluster to see. Its id is the year.

    It only grows. Fewer flights than were sent into a store before cannot be what the store comes to, whatever is sent,
    so the demo is refused before it sends anything. In a directory the demo leaves a file beside the store instead.
    """

    flights: int = 0

    @decide
    def publish(self, command: Publish) -> Published | Rejected | None:
        """As many as before, or more."""
        if command.flights < self.flights:
            return Rejected("more_are_published", flights=self.flights)
        return Published(flights=command.flights) if command.flights > self.flights else None

    @evolve
    def has_been_published(self, event: Published) -> None:
        """These are to be flown."""
        self.flights = event.flights
