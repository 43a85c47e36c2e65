"""A snapshot is as trustworthy as the chain of its log, or it is not used, and `verify` reports it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayfold.runtime.log.contract import Snapshot
from rayfold.runtime.log.format import (
    SNAPSHOTS,
    chain_of,
    encode_snapshot,
    snapshot_link,
    versioned_key,
)
from rayfold.runtime.log.writer import LmdbLog
from rayfold.runtime.store.store import Store, create_or_open_store
from rayfold.runtime.store.verify import verify_store
from tests.runtime.log.appends import ALICE, BOB, deposits

SCHEMA = b"schema 1"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return create_or_open_store(tmp_path / "store", 1)


@pytest.fixture
def log(store: Store) -> Iterator[LmdbLog]:
    """Alice has four events and snapshots at 2 and 4, Bob one event and a snapshot at 1."""
    log = store.open_log(0)
    epoch = log.activate()
    for stream, amounts, state in (
        (ALICE, (1, 2), b"alice at 2"),
        (BOB, (7,), b"bob at 1"),
        (ALICE, (3, 4), b"alice at 4"),
    ):
        log.append(epoch, [deposits(stream, *amounts)._replace(snapshot=state, snapshot_schema=SCHEMA)])
    yield log
    log.close()


def pairs(log: LmdbLog) -> dict[bytes, bytes]:
    database = log.environment.database(SNAPSHOTS)
    return log.environment.read(lambda txn: dict(txn.cursor(database).iternext()))


def put(log: LmdbLog, version: int, value: bytes) -> None:
    key = versioned_key(ALICE.key, version)
    log.environment.write(lambda txn: txn.put(key, value, db=log.environment.database(SNAPSHOTS)))


def link_at(log: LmdbLog, version: int) -> bytes:
    return chain_of(log.read_stream(ALICE, version, version)[0])


def forged(log: LmdbLog, version: int, state: bytes, link: bytes) -> bytes:
    return encode_snapshot(versioned_key(ALICE.key, version), SCHEMA, state, link)


FORGERIES: dict[str, Callable[[LmdbLog], None]] = {
    "another state, as formats 1 and 2 had it": lambda log: put(log, 4, forged(log, 4, b"rich", b"")),
    "another state with the right link": lambda log: put(log, 4, forged(log, 4, b"rich", link_at(log, 4))),
    "the right state with the link of another event": lambda log: put(
        log, 4, forged(log, 4, b"alice at 4", link_at(log, 3))
    ),
    "the state of an earlier version": lambda log: put(log, 4, forged(log, 4, b"alice at 2", link_at(log, 4))),
    "the right state without a link": lambda log: put(log, 4, forged(log, 4, b"alice at 4", b"")),
    "one where none was saved": lambda log: put(log, 3, forged(log, 3, b"rich", link_at(log, 3))),
    "one beyond the last event": lambda log: put(log, 9, forged(log, 9, b"rich", link_at(log, 4))),
}


def test_the_snapshot_that_was_saved_is_used_and_verified(store: Store, log: LmdbLog) -> None:
    assert log.find_snapshot(ALICE, SCHEMA) == Snapshot(4, b"alice at 4")
    assert log.find_snapshot(ALICE, SCHEMA, 3) == Snapshot(2, b"alice at 2")
    assert log.find_snapshot(BOB, SCHEMA) == Snapshot(1, b"bob at 1")
    assert snapshot_link(pairs(log)[versioned_key(ALICE.key, 4)]) == link_at(log, 4)
    log.close()
    report = verify_store(store.path).partitions[0]
    assert (report.snapshots, report.problems, report.warnings) == (3, [], [])


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_snapshot_that_was_exchanged_is_not_used_and_verify_reports_it(store: Store, log: LmdbLog, kind: str) -> None:
    FORGERIES[kind](log)
    used = log.find_snapshot(ALICE, SCHEMA)
    assert used in (Snapshot(4, b"alice at 4"), Snapshot(2, b"alice at 2")), "a good one before it, or none"
    log.close()
    reader = store.open_reader(0)
    assert reader.find_snapshot(ALICE, SCHEMA) == used, "every reader of the log decides the same"
    reader.close()
    (problem,) = verify_store(store.path).problems
    assert (problem.database, problem.kind) == ("snapshots", "snapshot")
    assert problem.key.startswith("Account/alice version ")


def test_the_snapshot_of_another_stream_is_not_used(store: Store, log: LmdbLog) -> None:
    of_bob = pairs(log)[versioned_key(BOB.key, 1)]
    put(log, 1, encode_snapshot(versioned_key(ALICE.key, 1), SCHEMA, b"bob at 1", snapshot_link(of_bob)))
    assert log.find_snapshot(ALICE, SCHEMA, 1) is None
    log.close()
    assert len(verify_store(store.path).problems) == 1


def test_a_snapshot_under_another_fingerprint_is_another_snapshot(log: LmdbLog) -> None:
    value = encode_snapshot(versioned_key(ALICE.key, 4), b"schema 2", b"alice at 4", link_at(log, 4))
    put(log, 4, value)
    assert log.find_snapshot(ALICE, b"schema 2") is None


def test_old_snapshots_are_thinned_out_and_each_past_version_has_one_that_is_not_far(store: Store) -> None:
    log = store.open_log(0)
    epoch = log.activate()
    for number in range(1, 401):
        saved = deposits(ALICE, number)._replace(snapshot=b"state %d" % number, snapshot_schema=SCHEMA)
        log.append(epoch, [saved])
    versions = [int.from_bytes(key[-8:], "big") for key in pairs(log)]
    assert versions[-4:] == [397, 398, 399, 400]
    assert len(versions) <= 4 + 2 * 9, "some for each doubling of the distance"
    for wanted in range(20, 400, 7):
        found = log.find_snapshot(ALICE, SCHEMA, wanted)
        if found is not None:
            assert wanted - found.version <= 3 * (400 - wanted) + 4
    log.close()
    assert verify_store(store.path).ok
