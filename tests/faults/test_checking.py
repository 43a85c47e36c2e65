"""The checks themselves, over a real log and a history that does not fit it: each lie is found, the truth passes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from rayfold import Envelope, Receipt, Rejected
from rayfold.actors.control.supervision import Supervision
from rayfold.benchmarks.torture.bank import Jar, Put
from rayfold.benchmarks.torture.checking import check_log
from rayfold.benchmarks.torture.cluster.harness import NODE_IS_DOWN
from rayfold.benchmarks.torture.contract import Findings
from rayfold.benchmarks.torture.history import Entry, History
from rayfold.runtime.encoding.catalogue import Catalogue
from rayfold.runtime.encoding.envelope import pack
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.write.write_loop import WriteLoop


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_or_open_store(tmp_path / "store", 1)


@pytest.fixture
def history(store: Store) -> History:
    """Four commands to one jar, one after the other, each acknowledged before the next was sent."""
    told = History()
    log = store.open_log(0)
    loop = WriteLoop(0, log, Catalogue([Jar]))
    loop.activate()
    for number in range(4):
        entry = Entry(pack(Envelope(Jar, "a", Put(amount=1 + number, note=str(number))))[0])
        [outcome] = loop.execute([entry.packed]).outcomes
        assert isinstance(outcome, Receipt)
        entry.sent_s, entry.told_s, entry.outcome = 10.0 * number, 10.0 * number + 1, outcome
        told.entries.append(entry)
    log.close()
    return told


def broken(store: Store, history: History) -> set[str]:
    findings = Findings()
    check_log(store, history, findings)
    return {violation.invariant for violation in findings.violations}


def receipt(entry: Entry) -> Receipt:
    assert isinstance(entry.outcome, Receipt)
    return entry.outcome


def test_a_history_that_fits_the_log_passes(store: Store, history: History) -> None:
    assert broken(store, history) == set()


@pytest.mark.slow
def test_an_acknowledged_command_that_is_not_in_the_log_is_found(store: Store, history: History) -> None:
    lost = Entry(pack(Envelope(Jar, "a", Put(amount=1)))[0])
    lost.outcome = receipt(history.entries[3])._replace(position=5, version=5, command_bytes=lost.packed.command_id)
    history.entries.append(lost)
    assert broken(store, history) == {"I1"}


def test_another_content_than_was_sent_is_found(store: Store, history: History) -> None:
    entry = history.entries[1]
    sent = pack(Envelope(Jar, "a", Put(amount=99, note="1")))[0]
    entry.packed = entry.packed._replace(payload=sent.payload)
    assert broken(store, history) == {"I1"}


def test_a_refused_command_that_is_in_the_log_is_found(store: Store, history: History) -> None:
    history.entries[0].outcome = Rejected("no")
    assert broken(store, history) == {"I7"}


def test_an_event_that_nobody_sent_is_found(store: Store, history: History) -> None:
    del history.entries[2]
    assert broken(store, history) == {"I7"}


def test_a_repeat_that_was_told_another_receipt_is_found(store: Store, history: History) -> None:
    history.entries[0].repeats.append(receipt(history.entries[1])._replace(repeated=True))
    assert broken(store, history) == {"I2"}


def test_a_lower_version_than_one_acknowledged_before_is_found(store: Store, history: History) -> None:
    history.entries[0].sent_s, history.entries[0].told_s = 50.0, 51.0
    assert broken(store, history) == {"I8"}


def test_a_node_that_is_down_is_named_as_the_scenarios_of_clusters_expect() -> None:
    assert NODE_IS_DOWN in inspect.getsource(Supervision._gone)
