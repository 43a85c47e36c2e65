"""The figures: five read models of the flights, each with its queries.

Four keep sums for the questions they know. `Delays` keeps facts, every departure as a row of a DuckDB table, and adds
them up in SQL when it is asked: for example by carrier, airport and hour, which are too many combinations to keep sums
for.

Rule kept here: minutes and miles are added up as whole numbers, so that two ways of counting are equal or one of
them is wrong. Averages are made where they are shown.

A row is a mutable value that a projector adds to in place. An answer leaves the projector encoded, so no other code
ever holds a row that changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rayfold import DuckDb, Projection, Query, Recorded, answer, project

from .domain import Cancelled, Departed, Landed, LandedAfterDiversion

LATE_MIN: Final = 15
"""From this many minutes on a flight counts as late: the definition of the bureau that keeps the table."""

WORST: Final = "worst delays"
"""Among the rows, and no read model: the answer to a question that is computed in SQL when it is asked."""


@dataclass(slots=True)
class CarrierFigures:
    """How punctual a carrier is."""

    carrier: str
    departed: int = 0
    departed_late: int = 0
    departure_late_min: int = 0
    """Summed over its departures; early ones count negative."""
    cancelled: int = 0
    landed: int = 0
    landed_late: int = 0
    arrival_late_min: int = 0
    diverted: int = 0
    """Arrived after landing elsewhere; not among `landed`."""


class PunctualityOf(Query[CarrierFigures]):
    """How punctual is this carrier?"""

    carrier: str


class EveryCarrier(Query[tuple[CarrierFigures, ...]]):
    """How punctual is each carrier? In the order of their letters."""


class Punctuality(Projection):
    """Departures and arrivals by carrier."""

    carriers: dict[str, CarrierFigures] = {}

    @project
    def departed(self, event: Departed) -> None:
        row = self._row(event.carrier)
        row.departed += 1
        row.departed_late += event.late_min >= LATE_MIN
        row.departure_late_min += event.late_min

    @project
    def cancelled(self, event: Cancelled) -> None:
        self._row(event.carrier).cancelled += 1

    @project
    def landed(self, event: Landed) -> None:
        row = self._row(event.carrier)
        row.landed += 1
        row.landed_late += event.late_min >= LATE_MIN
        row.arrival_late_min += event.late_min

    @project
    def diverted(self, event: LandedAfterDiversion) -> None:
        """Count an arrival by a detour."""
        self._row(event.carrier).diverted += 1

    @answer
    def of_one(self, query: PunctualityOf) -> CarrierFigures:
        """Zeros for a carrier that never flew."""
        return self.carriers.get(query.carrier) or CarrierFigures(query.carrier)

    @answer
    def of_all(self, query: EveryCarrier) -> tuple[CarrierFigures, ...]:
        return tuple(row for _, row in sorted(self.carriers.items()))

    def _row(self, carrier: str) -> CarrierFigures:
        return self.carriers.get(carrier) or self.carriers.setdefault(carrier, CarrierFigures(carrier))


@dataclass(slots=True)
class RouteFigures:
    """How a route is flown."""

    origin: str
    destination: str
    distance_miles: int
    landed: int = 0
    airborne_min: int = 0
    fastest_min: int = 0
    slowest_min: int = 0
    diverted: int = 0


class EveryRoute(Query[tuple[RouteFigures, ...]]):
    """How is each route flown? In the order of origin and destination."""


class RoutesFrom(Query[tuple[RouteFigures, ...]]):
    """How are the routes out of this airport flown? The busiest first."""

    origin: str


class Routes(Projection):
    """Flights by origin and destination."""

    routes: dict[tuple[str, str], RouteFigures] = {}

    @project
    def landed(self, event: Landed) -> None:
        """Count a flight that arrived."""
        row = self._row(event.origin, event.destination)
        row.distance_miles = max(row.distance_miles, event.distance_miles)
        row.fastest_min = min(row.fastest_min, event.airborne_min) if row.landed else event.airborne_min
        row.slowest_min = max(row.slowest_min, event.airborne_min)
        row.airborne_min += event.airborne_min
        row.landed += 1

    @project
    def diverted(self, event: LandedAfterDiversion) -> None:
        """Count a flight that arrived by a detour."""
        self._row(event.origin, event.destination).diverted += 1

    @answer
    def of_all(self, query: EveryRoute) -> tuple[RouteFigures, ...]:
        return tuple(row for _, row in sorted(self.routes.items()))

    @answer
    def of_one(self, query: RoutesFrom) -> tuple[RouteFigures, ...]:
        rows = [row for row in self.routes.values() if row.origin == query.origin]
        return tuple(sorted(rows, key=lambda row: (-row.landed, row.destination)))

    def _row(self, origin: str, destination: str) -> RouteFigures:
        key = origin, destination
        return self.routes.get(key) or self.routes.setdefault(key, RouteFigures(*key, 0))


@dataclass(slots=True)
class HourFigures:
    """One hour of an airport's schedule, over all days."""

    airport: str
    hour: int
    departed: int = 0
    departed_late: int = 0
    departure_late_min: int = 0
    cancelled: int = 0


class HoursOf(Query[tuple[HourFigures, ...]]):
    """How does this airport's day go? In the order of the hours that have flights."""

    airport: str


class EveryHour(Query[tuple[HourFigures, ...]]):
    """How does each airport's day go?"""


class AirportHours(Projection):
    """Departures by airport and by the hour they were scheduled for, local time."""

    hours: dict[tuple[str, int], HourFigures] = {}

    @project
    def departed(self, event: Departed, recorded: Recorded) -> None:
        """Count a departure. The airport is the aggregate of the event."""
        row = self._row(recorded.aggregate_id, event.hour)
        row.departed += 1
        row.departed_late += event.late_min >= LATE_MIN
        row.departure_late_min += event.late_min

    @project
    def cancelled(self, event: Cancelled, recorded: Recorded) -> None:
        self._row(recorded.aggregate_id, event.hour).cancelled += 1

    @answer
    def of_one(self, query: HoursOf) -> tuple[HourFigures, ...]:
        return tuple(row for (airport, _), row in sorted(self.hours.items()) if airport == query.airport)

    @answer
    def of_all(self, query: EveryHour) -> tuple[HourFigures, ...]:
        return tuple(row for _, row in sorted(self.hours.items()))

    def _row(self, airport: str, hour: int) -> HourFigures:
        key = airport, hour
        return self.hours.get(key) or self.hours.setdefault(key, HourFigures(*key))


@dataclass(slots=True)
class AircraftFigures:
    """How far an aircraft has come."""

    aircraft: str
    flights: int = 0
    distance_miles: int = 0
    airborne_min: int = 0


class MilesOf(Query[AircraftFigures]):
    """How far has this aircraft come?"""

    aircraft: str


class FarthestAircraft(Query[tuple[AircraftFigures, ...]]):
    """Which aircraft have come farthest? The farthest first."""

    limit: int = 10


class EveryAircraft(Query[tuple[AircraftFigures, ...]]):
    """How far has each aircraft come? In the order of their tail numbers."""


class Distances(Projection):
    """Distance by aircraft, of flights that arrived where they were going."""

    aircraft: dict[str, AircraftFigures] = {}

    @project
    def landed(self, event: Landed, recorded: Recorded) -> None:
        """Add a flight. The aircraft is the aggregate of the event."""
        tail = recorded.aggregate_id
        row = self.aircraft.get(tail) or self.aircraft.setdefault(tail, AircraftFigures(tail))
        row.flights += 1
        row.distance_miles += event.distance_miles
        row.airborne_min += event.airborne_min

    @answer
    def of_one(self, query: MilesOf) -> AircraftFigures:
        """Zeros for an aircraft that never landed."""
        return self.aircraft.get(query.aircraft) or AircraftFigures(query.aircraft)

    @answer
    def farthest(self, query: FarthestAircraft) -> tuple[AircraftFigures, ...]:
        """The first few."""
        rows = sorted(self.aircraft.values(), key=lambda row: (-row.distance_miles, row.aircraft))
        return tuple(rows[: query.limit])

    @answer
    def of_all(self, query: EveryAircraft) -> tuple[AircraftFigures, ...]:
        return tuple(row for _, row in sorted(self.aircraft.items()))


LONG_MIN: Final = 60
"""From this many minutes on a delay is long: the connection in the next town is gone."""

SCHEMA: Final = """
SET threads = 1;
CREATE TABLE IF NOT EXISTS departures (airport VARCHAR, carrier VARCHAR, hour INTEGER, late_min INTEGER)
"""

LONG: Final = f"count(*) FILTER (late_min >= {LONG_MIN})"
COMBINATIONS: Final = f"""
SELECT airport, carrier, hour, count(*), sum(late_min)::BIGINT, {LONG} FROM departures GROUP BY ALL
"""


@dataclass(slots=True)
class DelayFigures:
    """The departures of one carrier from one airport at one hour of the schedule."""

    airport: str
    carrier: str
    hour: int
    departed: int
    late_min: int
    """Summed up; early ones count negative."""
    long: int
    """Over an hour late."""


class WorstDelays(Query[tuple[DelayFigures, ...]]):
    """Which flights had better not be booked: the airport, carrier and hour with the largest share of long delays."""

    departed_min: int = 100
    """Combinations with fewer departures are left out: their mean is mostly chance."""
    limit: int = 8


class EveryDelay(Query[tuple[DelayFigures, ...]]):
    """All combinations, in the order of their names."""


class Delays(Projection, store=DuckDb(SCHEMA)):
    """Departures, one row each."""

    @project
    def departed(self, event: Departed, recorded: Recorded) -> None:
        """One more row. The airport is the aggregate of the event."""
        self.append("departures", (recorded.aggregate_id, event.carrier, event.hour, event.late_min))

    @answer
    def worst(self, query: WorstDelays) -> tuple[DelayFigures, ...]:
        """The largest share first."""
        ordered = f"ORDER BY {LONG} / count(*) DESC, airport, carrier, hour LIMIT ?"
        rows = self.sql(f"{COMBINATIONS} HAVING count(*) >= ? {ordered}", [query.departed_min, query.limit])
        return tuple(DelayFigures(*row) for row in rows.fetchall())

    @answer
    def all_of_them(self, query: EveryDelay) -> tuple[DelayFigures, ...]:
        """Every combination that there was."""
        rows = self.sql(f"{COMBINATIONS} ORDER BY airport, carrier, hour")
        return tuple(DelayFigures(*row) for row in rows.fetchall())
