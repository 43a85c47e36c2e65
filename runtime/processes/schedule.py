"""Schedules: when a `@scheduled` method is due next, and when any timer is, as functions of what is stored.

Beside step [5] of the write path. Before it: a step arms a timer. After it: the agenda holds it until it is due.

Rule kept here: when a timer is due follows from its record alone: from what the record holds, and from when it was
recorded. So every fold of the log makes the same of it, on any machine and after any restart.

Cron expressions are read by CronSim, as Debian's cron reads them: what falls into an hour that a change of clocks
leaves out comes right after it, what falls into one that comes twice comes once, and what comes every few minutes goes
on.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from ..encoding.outputs import FAR_US
from ..errors import DefinitionError
from ..printable import shown

__all__ = ["FAR_US", "next_time_us", "schedule_text"]

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_EVERY: Final = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_FIELDS: Final = 5
_SECOND_US: Final = 1_000_000


def schedule_text(every: object, cron: object, zone: object) -> str:
    """A schedule as it is stored. Raises `DefinitionError` for one that cannot be read."""
    if (every is None) == (cron is None):
        what = "it has neither every= nor cron=" if cron is None else "it has both every= and cron="
        raise DefinitionError("@scheduled", what, 'write @scheduled(every="1h"), or @scheduled(cron="0 3 * * *")')
    if every is not None:
        return f"every {_seconds(every)}"
    if not isinstance(cron, str) or not isinstance(zone, str):
        raise DefinitionError("@scheduled", f"cron={shown(cron)}, zone={shown(zone)} is not text", "give text")
    remedy = "give five fields: minute, hour, day of month, month, day of week"
    if len(cron.split()) != _FIELDS:  # with six CronSim takes the first one for seconds
        raise DefinitionError("@scheduled", f"cron={shown(cron)} has {len(cron.split())} fields", remedy)
    try:
        CronSim(cron, _EPOCH)
    except CronSimError as error:
        raise DefinitionError("@scheduled", f"cron={shown(cron)} cannot be read: {error}", remedy) from None
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        what = f"zone={shown(zone)} is not a time zone that is known here"
        raise DefinitionError("@scheduled", what, 'give an IANA name: "Europe/Berlin"') from None
    return f"cron {zone} {cron}"


def next_time_us(text: str, after_us: int) -> int:
    """The first time of a schedule after this one, both in microseconds since 1970."""
    kind, _, rest = text.partition(" ")
    if kind == "every":
        period_us = int(rest) * _SECOND_US
        return min((after_us // period_us + 1) * period_us, FAR_US)
    zone, _, cron = rest.partition(" ")
    return _next_of_cron(cron, zone, after_us)


def _seconds(every: object) -> int:
    if isinstance(every, timedelta):
        seconds, rest = divmod(every, timedelta(seconds=1))
        if seconds > 0 and not rest:
            return seconds
    elif isinstance(every, str) and (found := _EVERY.fullmatch(every)):
        return int(found[1]) * _UNITS[found[2]]
    what = f"every={shown(every)} is not a period"
    raise DefinitionError("@scheduled", what, 'give a timedelta of whole seconds, or "90s", "15m", "1h", "1d"')


def _next_of_cron(cron: str, zone: str, after_us: int) -> int:
    after = _EPOCH + timedelta(microseconds=min(max(after_us, 0), FAR_US))
    try:
        following = next(CronSim(cron, after.astimezone(ZoneInfo(zone))))
    except (StopIteration, OverflowError):
        return FAR_US
    return min((following.astimezone(UTC) - _EPOCH) // timedelta(microseconds=1), FAR_US)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
