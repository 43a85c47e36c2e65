"""Windows over random histories, on both logs, against the plainest model there is: a list."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from rayfold.runtime.log.contract import Log
from rayfold.runtime.log.folder import open_log
from rayfold.runtime.log.format import record_position
from rayfold.runtime.log.memory import MemoryLog
from rayfold.runtime.stream import StreamId
from tests.runtime.log.appends import amounts_of, deposits

STREAMS = [StreamId("A", "x"), StreamId("A", "xy"), StreamId("Ax", "y")]
bounds = st.integers(min_value=-1, max_value=15)
appends = st.tuples(st.sampled_from(STREAMS), st.integers(min_value=0, max_value=4))
batches = st.lists(st.lists(appends, max_size=4), max_size=6)


def check_windows(
    log: Log, history: list[list[tuple[StreamId, int]]], first: int, last: int | None, limit: int | None
) -> None:
    """Append the history to the log and to lists, and compare every answer."""
    everything: list[int] = []
    of: dict[StreamId, list[int]] = {stream: [] for stream in STREAMS}
    epoch = log.activate()
    for batch in history:
        planned, places = [], []
        for stream, count in batch:
            amounts = list(range(len(everything), len(everything) + count))
            planned.append(deposits(stream, *amounts, expected=len(of[stream])))
            everything += amounts
            of[stream] += amounts
            places.append(of[stream][-1] + 1 if of[stream] else 0)
        outcomes = log.append(epoch, planned)
        assert all(len(one.records) == len(append.events) for one, append in zip(outcomes, planned, strict=True))
        assert [one.position for one in outcomes] == places
    assert log.head() == len(everything)
    for stream in STREAMS:
        wanted = [
            amount
            for version, amount in enumerate(of[stream], 1)
            if version >= first and (last is None or version <= last)
        ][:limit]
        assert log.version(stream) == len(of[stream])
        assert amounts_of(log.read_stream(stream, first, last, limit)) == wanted
    found = log.read(first, 100 if limit is None else limit)
    assert amounts_of(found) == everything[max(first, 0) :][: 100 if limit is None else limit]
    assert [record_position(one) for one in found] == list(range(max(first, 0) + 1, max(first, 0) + 1 + len(found)))


@given(batches, bounds, st.none() | bounds, st.none() | bounds.filter(lambda limit: limit >= 0))
def test_windows_of_the_memory_log_are_those_of_a_list(
    history: list[list[tuple[StreamId, int]]], first: int, last: int | None, limit: int | None
) -> None:
    check_windows(MemoryLog(), history, first, last, limit)


@settings(max_examples=40)
@given(batches, bounds, st.none() | bounds, st.none() | bounds.filter(lambda limit: limit >= 0))
def test_windows_of_the_log_on_disk_are_those_of_a_list(
    history: list[list[tuple[StreamId, int]]], first: int, last: int | None, limit: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log = open_log(Path(folder), "partition 0")
        try:
            check_windows(log, history, first, last, limit)
        finally:
            log.close()
