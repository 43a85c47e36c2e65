"""When a schedule is due next, through changes of clocks, leap days and the end of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rayfold.runtime.processes.schedule import FAR_US, next_time_us, schedule_text

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def micro(text: str) -> int:
    return (datetime.fromisoformat(text) - EPOCH) // timedelta(microseconds=1)


def following(text: str, after: str, times: int = 1) -> list[str]:
    found, at_us = [], micro(after)
    for _ in range(times):
        at_us = next_time_us(text, at_us)
        found.append((EPOCH + timedelta(microseconds=at_us)).isoformat())
    return found


def test_a_period_is_due_at_its_multiples_so_that_it_does_not_drift() -> None:
    hourly = schedule_text("1h", None, "UTC")
    assert hourly == schedule_text(timedelta(hours=1), None, "UTC") == "every 3600"
    assert following(hourly, "2026-01-01T10:00:00+00:00", 2) == [
        "2026-01-01T11:00:00+00:00",
        "2026-01-01T12:00:00+00:00",
    ]
    assert following(hourly, "2026-01-01T10:59:59.999999+00:00") == ["2026-01-01T11:00:00+00:00"]


def test_what_falls_into_an_hour_that_is_left_out_comes_right_after_it() -> None:
    nightly = schedule_text(None, "30 2 * * *", "Europe/Berlin")
    assert following(nightly, "2026-03-28T12:00:00+00:00", 2) == [
        "2026-03-29T01:00:00+00:00",  # 03:00 in Berlin, where 02:30 is left out
        "2026-03-30T00:30:00+00:00",
    ]


def test_what_falls_into_an_hour_that_comes_twice_comes_once() -> None:
    nightly = schedule_text(None, "30 2 * * *", "Europe/Berlin")
    assert following(nightly, "2026-10-24T12:00:00+00:00", 2) == [
        "2026-10-25T00:30:00+00:00",
        "2026-10-26T01:30:00+00:00",
    ]


def test_what_comes_every_half_hour_goes_on_while_an_hour_comes_twice() -> None:
    often = schedule_text(None, "*/30 * * * *", "Europe/Berlin")
    times = following(often, "2026-10-24T23:45:00+00:00", 6)
    assert [text[11:16] for text in times] == ["00:00", "00:30", "01:00", "01:30", "02:00", "02:30"]


def test_a_leap_day_is_found_across_years() -> None:
    leap = schedule_text(None, "0 0 29 2 *", "UTC")
    assert following(leap, "2026-01-01T00:00:00+00:00", 2) == ["2028-02-29T00:00:00+00:00", "2032-02-29T00:00:00+00:00"]


@pytest.mark.parametrize("text", ["every 3600", "cron UTC 0 0 29 2 *"])
def test_the_end_of_time_is_far_away_and_no_error(text: str) -> None:
    assert next_time_us(text, FAR_US) == FAR_US
