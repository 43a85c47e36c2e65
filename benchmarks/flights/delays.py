"""Delays: every departure as a row of a DuckDB table, for questions that nobody thought of when the demo was written.

The other read models (`figures.py`) keep sums for the questions they know. This one keeps facts, and adds them up in
SQL when it is asked: by carrier, airport and hour, say, which is more combinations than anybody would keep sums for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rayfold import DuckDb, Projection, Query, Recorded, answer, project

from .domain import Departed

__all__ = ["WORST", "DelayFigures", "Delays", "EveryDelay", "WorstDelays"]

LONG_MIN: Final = 60
"""From this many minutes on a delay is long: the connection in the next town is gone."""

WORST: Final = "worst delays"
"""Among the rows, and no read model: the answer to a question that is computed in SQL when it is asked."""

SCHEMA: Final = """
SET threads = 1;
CREATE TABLE IF NOT EXISTS departures (airport VARCHAR, carrier VARCHAR, hour INTEGER, late_min INTEGER)
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
    """Combinations with fewer departures are left out: they say little."""
    limit: int = 8


class EveryDelay(Query[tuple[DelayFigures, ...]]):
    """All combinations, in the order of their names."""


class Delays(Projection, store=DuckDb(SCHEMA)):
    """Departures, one row each."""

    @project
    def departed(self, event: Departed, recorded: Recorded) -> None:
        """One more row. The airport is the aggregate that told of it."""
        self.append("departures", (recorded.aggregate_id, event.carrier, event.hour, event.late_min))

    @answer
    def worst(self, query: WorstDelays) -> tuple[DelayFigures, ...]:
        """The largest share first."""
        rows = self.sql(
            f"""SELECT airport, carrier, hour, count(*), sum(late_min)::BIGINT, count(*) FILTER (late_min >= {LONG_MIN})
            FROM departures GROUP BY ALL HAVING count(*) >= ?
            ORDER BY count(*) FILTER (late_min >= {LONG_MIN}) / count(*) DESC, airport, carrier, hour LIMIT ?""",
            [query.departed_min, query.limit],
        )
        return tuple(DelayFigures(*row) for row in rows.fetchall())

    @answer
    def all_of_them(self, query: EveryDelay) -> tuple[DelayFigures, ...]:
        """Every combination that there was."""
        rows = self.sql(
            f"""SELECT airport, carrier, hour, count(*), sum(late_min)::BIGINT, count(*) FILTER (late_min >= {LONG_MIN})
            FROM departures GROUP BY ALL ORDER BY airport, carrier, hour"""
        )
        return tuple(DelayFigures(*row) for row in rows.fetchall())
