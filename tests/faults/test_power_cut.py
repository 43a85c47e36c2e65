"""Power cuts, replayed from what a real run wrote to its disk. And that a log without its syncs would not pass."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rayfold.benchmarks.torture.contract import Findings, missing
from rayfold.benchmarks.torture.processes import ForkServer
from rayfold.benchmarks.torture.storage.power_cut import (
    Acknowledgement,
    Disk,
    Step,
    Sync,
    Write,
    cuts,
    images,
    record,
    replay,
    steps_of,
)
from rayfold.benchmarks.torture.storage.workload import FIRST, expected
from rayfold.runtime.store.store import Store
from tests.faults.short_form import SEED, context_in, figure, short_form

pytestmark = pytest.mark.slow

BATCHES = 3
PAGE = 4_096


def test_no_state_that_a_power_cut_may_leave_loses_what_was_acknowledged(tmp_path: Path) -> None:
    findings = short_form("power-cut", tmp_path)
    assert figure(findings, "states_tried") > 150
    assert figure(findings, "losses") == figure(findings, "unreadable") == figure(findings, "twice") == 0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, list[Step]]:
    if missing("strace"):
        pytest.skip(missing("strace"))
    folder = tmp_path_factory.mktemp("recorded") / "run"
    with ForkServer() as server:
        store, steps = record(server, folder, SEED, BATCHES)
    return folder, store, steps


def replayed(recorded: tuple[Path, Store, list[Step]], steps: list[Step], folder: Path) -> Findings:
    """What would be found if the run had done these steps."""
    before, store, _ = recorded
    findings = Findings({"losses": 0, "unreadable": 0})
    wanted = expected(SEED, FIRST + BATCHES + 2)
    content = (before / "before").read_bytes()
    replay(store, content, steps, wanted, random.Random(SEED), 20, findings, context_in(folder))
    return findings


def test_a_log_that_did_not_sync_its_pages_would_be_found_out(
    recorded: tuple[Path, Store, list[Step]], tmp_path: Path
) -> None:
    careless: list[Step] = [step for step in recorded[2] if not isinstance(step, Sync)]
    assert len(careless) < len(recorded[2])
    findings = replayed(recorded, careless, tmp_path)
    assert figure(findings, "unreadable") > 0
    assert not findings.passed


def test_a_log_that_did_not_sync_its_meta_page_would_be_found_out(
    recorded: tuple[Path, Store, list[Step]], tmp_path: Path
) -> None:
    careless: list[Step] = [step._replace(durable=False) if isinstance(step, Write) else step for step in recorded[2]]
    assert careless != recorded[2]
    findings = replayed(recorded, careless, tmp_path)
    assert figure(findings, "losses") > 0
    assert not findings.passed


def test_a_call_that_the_replay_does_not_know_stops_it(tmp_path: Path) -> None:
    hexed = "".join(f"\\x{byte:02x}" for byte in b"/data.mdb")
    trace = tmp_path / "trace"
    trace.write_text(f'openat(AT_FDCWD, "{hexed}", O_RDWR|O_CREAT, 0644) = 6\nftruncate(6, 4096) = 0\n')
    with pytest.raises(ValueError, match="the disk model does not know: ftruncate"):
        steps_of(trace, Path("/data.mdb"))
    trace.write_text(f'openat(AT_FDCWD, "{hexed}", O_RDWR|O_CREAT, 0644) = 6\npwrite64(6, "\\x61"..., 2, 0) = 2\n')
    with pytest.raises(ValueError, match="strace has shortened a string"):
        steps_of(trace, Path("/data.mdb"))


# --- the model of the disk --------------------------------------------------------------------------------------------


def page(letter: str) -> bytes:
    return letter.encode() * PAGE


def states(disk: Disk, limit: int = 16) -> set[bytes]:
    return set(images(disk, random.Random(1), limit))


def test_what_was_not_synced_may_be_there_or_not_page_by_page() -> None:
    disk = Disk(page("a") + page("b"))
    disk.write(Write(0, page("A") + page("B"), durable=False))
    whole = {one for one in states(disk) if set(one) <= set(b"abAB") and len({*one[:PAGE]}) == len({*one[PAGE:]}) == 1}
    assert whole == {first + second for first in (page("a"), page("A")) for second in (page("b"), page("B"))}
    disk.sync()
    assert states(disk) == {page("A") + page("B")}


def test_a_page_written_twice_since_the_last_sync_may_be_either() -> None:
    disk = Disk(page("a"))
    disk.write(Write(0, page("b"), durable=False))
    disk.write(Write(0, page("c"), durable=False))
    assert {page("a"), page("b"), page("c")} <= states(disk)


def test_a_page_may_be_torn_between_sectors_and_nowhere_else() -> None:
    disk = Disk(page("a"))
    disk.write(Write(0, page("b"), durable=False))
    torn = {one for one in states(disk, 400) if len(set(one)) == 2}
    assert torn
    assert all(len(set(one[start : start + 512])) == 1 for one in torn for start in range(0, PAGE, 512))


def test_a_file_that_grew_may_be_short_or_end_in_a_hole() -> None:
    disk = Disk(page("a"))
    disk.write(Write(PAGE, page("b") + page("c"), durable=False))
    lengths = {len(one) for one in states(disk)}
    assert {PAGE, 2 * PAGE, 3 * PAGE} <= lengths
    assert page("a") + bytes(PAGE) + page("c") in states(disk)


def test_a_durable_write_counts_from_its_return_and_an_acknowledgement_from_its_line() -> None:
    steps: list[Step] = [Write(0, page("b"), durable=True), Acknowledgement({"acknowledged": 1})]
    before, after = cuts(page("a"), steps)
    assert (before.told, {page("a"), page("b")} <= states(before.disk)) == ([], True)
    assert (after.told, states(after.disk)) == ([{"acknowledged": 1}], {page("b")})


def test_more_pages_than_can_be_combined_are_sampled_with_each_one_missing_once() -> None:
    pages = 12
    disk = Disk(page("a") * pages)
    disk.write(Write(0, page("b") * pages, durable=False))
    seen = states(disk, 64)
    assert len(seen) <= 64 + 64 // 8
    for missed in range(pages):
        assert page("b") * missed + page("a") + page("b") * (pages - missed - 1) in seen
