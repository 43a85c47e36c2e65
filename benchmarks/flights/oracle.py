"""The oracle: every figure and every refusal, counted from the table alone.

Rule kept here: nothing of the domain is used, neither its messages nor its rules nor their constants. What is shared
is `table`, that is the reading of the raw columns and the four instants; delays, miles and minutes in the air come
from the raw columns, where the bureau wrote them, while the domain derives delays from the instants.

The two countings also go different ways. The domain goes through commands in the order of time and knows one command
at a time. The oracle goes flight by flight through the life of each aircraft, and sums up whole columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .compensation import LATE_MIN, PAYMENTS_MAX
from .table import NEVER

if TYPE_CHECKING:
    import pandas as pd

Table = dict[tuple[Any, ...], dict[str, Any]]
"""A read model as plain values: from the key of a row to its figures by name."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a run over some flights must come to."""

    flights: int
    commands: int
    refused: dict[tuple[int, str], str]
    """Which commands are refused, and why: from the place of the flight in the table and the step of the flight
    (`LAND`, `DEPART`, `TAKE_OFF`, `CANCEL`) to the reason."""
    tables: dict[str, Table]
    """By the name of the read model."""

    @property
    def accepted(self) -> int:
        """Commands that are stored; each of them is one event."""
        return self.commands - len(self.refused)


def expect(flights: pd.DataFrame) -> Expected:
    """Count everything. `flights` is what `read_flights` returns, whole or in part."""
    flights = flights.copy()
    left, arrived = flights["dep_time"].notna(), flights["arr_time"].notna()
    too_early = flights["dep_delay"] < -20
    grounded = _fly(flights[left])
    took_off = left & ~flights.index.isin(grounded)
    impossible = took_off & (flights["distance"] * 60 > flights["air_time"] * 640)
    flights["is_departed"] = left & ~too_early
    flights["is_cancelled"] = ~left
    flights["is_diverted"] = took_off & arrived & flights["air_time"].isna()
    flights["is_landed"] = took_off & flights["air_time"].notna() & ~impossible
    refused = {(flight, "TAKE_OFF"): reason for flight, reason in grounded.items()}
    refused |= _all_of("DEPART", "left_too_early", too_early)
    refused |= _all_of("LAND", "did_not_take_off", left & arrived & ~took_off)
    refused |= _all_of("LAND", "faster_than_airliners", impossible)
    commands = 2 * int(left.sum()) + int(arrived.sum()) + int((~left).sum())
    return Expected(len(flights), commands, refused, _tables(flights))


def _all_of(step: str, reason: str, are: pd.Series) -> dict[tuple[int, str], str]:
    return dict.fromkeys(((flight, step) for flight in are.index[are].tolist()), reason)


def _fly(flights: pd.DataFrame) -> dict[int, str]:
    """Fly each aircraft's flights one after the other: which could not take off, by their index, and why."""
    refusals: dict[int, str] = {}
    columns = ["tailnum", "departed_min", "landed_min", "distance", "air_time"]
    before: dict[str, tuple[int, int, int, bool]] = {}
    for index, tail, departed_min, landed_min, distance, air_time in flights[columns].itertuples():
        last = before.get(tail)
        reason = _cannot_leave(departed_min, *last) if last else ""
        if reason:
            refusals[index] = reason
        else:
            credible = landed_min != NEVER and not distance * 60 > air_time * 640  # a diverted flight's is NaN
            before[tail] = (departed_min, landed_min, distance, credible)
    return refusals


def _cannot_leave(departed_min: int, last_departed_min: int, last_landed_min: int, miles: int, landed: bool) -> str:
    """Why an aircraft cannot leave New York, given its last flight from there; empty if it can."""
    if landed and last_landed_min <= departed_min:
        return "not_back_yet" if (departed_min - last_landed_min - 20) * 640 < miles * 60 else ""
    return "still_in_the_air" if departed_min - last_departed_min < 24 * 60 else ""


def _tables(flights: pd.DataFrame) -> dict[str, Table]:
    """The read models as sums of columns."""
    left, off, diverted = (flights[flights[name]] for name in ("is_departed", "is_cancelled", "is_diverted"))
    landed = flights[flights["is_landed"]]
    route, hour, delay = ["origin", "dest"], ["origin", "hour"], ["origin", "carrier", "hour"]
    return {
        "Punctuality": _joined(
            departed=_count(left, ["carrier"]),
            departed_late=_count(left[left["dep_delay"] >= 15], ["carrier"]),
            departure_late_min=_sum(left, ["carrier"], "dep_delay"),
            cancelled=_count(off, ["carrier"]),
            landed=_count(landed, ["carrier"]),
            landed_late=_count(landed[landed["arr_delay"] >= 15], ["carrier"]),
            arrival_late_min=_sum(landed, ["carrier"], "arr_delay"),
            diverted=_count(diverted, ["carrier"]),
        ),
        "Routes": _joined(
            distance_miles=landed.groupby(route)["distance"].max(),
            landed=_count(landed, route),
            airborne_min=_sum(landed, route, "air_time"),
            fastest_min=landed.groupby(route)["air_time"].min(),
            slowest_min=landed.groupby(route)["air_time"].max(),
            diverted=_count(diverted, route),
        ),
        "AirportHours": _joined(
            departed=_count(left, hour),
            departed_late=_count(left[left["dep_delay"] >= 15], hour),
            departure_late_min=_sum(left, hour, "dep_delay"),
            cancelled=_count(off, hour),
        ),
        "Distances": _joined(
            flights=_count(landed, ["tailnum"]),
            distance_miles=_sum(landed, ["tailnum"], "distance"),
            airborne_min=_sum(landed, ["tailnum"], "air_time"),
        ),
        "Claims": _claims(landed[landed["arr_delay"] >= LATE_MIN]),
        "Delays": _joined(
            departed=_count(left, delay),
            late_min=_sum(left, delay, "dep_delay"),
            long=_count(left[left["dep_delay"] >= 60], delay),
        ),
    }


def _claims(late: pd.DataFrame) -> Table:
    """A carrier pays as many as its fund is enough for, whichever they are."""
    opened = _count(late, ["carrier"])
    paid = opened.clip(upper=PAYMENTS_MAX)
    return _joined(opened=opened, paid=paid, owed=opened - paid, late_min=_sum(late, ["carrier"], "arr_delay"))


def _count(flights: pd.DataFrame, key: list[str]) -> pd.Series:
    return flights.groupby(key).size()


def _sum(flights: pd.DataFrame, key: list[str], column: str) -> pd.Series:
    return flights.groupby(key)[column].sum()


def _joined(**columns: pd.Series) -> Table:
    """Columns over the same kind of key as rows; a figure that a key does not have is 0."""
    import pandas as pd

    frame = pd.DataFrame(columns).fillna(0).astype("int64")
    names = [str(name) for name in frame.columns]
    keys = (key if isinstance(key, tuple) else (key,) for key in frame.index.tolist())
    return {key: dict(zip(names, row, strict=True)) for key, row in zip(keys, frame.to_numpy().tolist(), strict=True)}
