"""Cores for each role, the machine's card, and who uses the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayfold.benchmarks.harness import pinning
from rayfold.benchmarks.harness.conditions import Watcher
from rayfold.benchmarks.harness.machine import describe_machine, filesystem_of, machine_name, same_machine
from rayfold.benchmarks.harness.pinning import pin_processes, place, release_pins
from rayfold.benchmarks.harness.processes import processes_below
from rayfold.benchmarks.harness.watcher import shares


@given(st.integers(4, 128), st.integers(0, 16), st.integers(0, 16))
def test_roles_never_share_a_core(cores: int, writers: int, projectors: int) -> None:
    placement = place(range(cores), writers, projectors)
    assert placement is not None
    roles = [
        placement.daemons,
        placement.generator,
        frozenset().union(*placement.writers),
        frozenset().union(*placement.projectors),
    ]
    assert sum(map(len, roles)) == len(frozenset().union(*roles))
    assert placement.daemons
    assert placement.generator
    assert (len(placement.writers), len(placement.projectors)) == (writers, projectors)
    assert all(placement.writers)
    assert all(placement.projectors)


def test_with_enough_cores_each_process_has_cores_of_its_own() -> None:
    placement = place(range(16), 4, 4)
    assert placement is not None
    each = [*placement.writers, *placement.projectors]
    assert sum(map(len, each)) == len(frozenset().union(*each)) >= 8


def test_three_cores_are_too_few() -> None:
    assert place(range(3), 1, 1) is None


def test_too_few_cores_are_said_and_nothing_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinning, "_ALLOWED", frozenset({0, 1}))
    before = os.sched_getaffinity(0)
    assert pin_processes(writers=[1], projectors=[]) == "not pinned: 2 cores, and disjoint ones need at least 4"
    assert os.sched_getaffinity(0) == before


@pytest.mark.slow
def test_every_thread_of_a_process_is_moved_and_let_go_again(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    one = frozenset(allowed[:1])
    monkeypatch.setattr(pinning, "place", lambda *_: pinning.Placement(one, one, (one,), ()))
    program = (
        "import sys, threading; stop = threading.Event();"
        "threading.Thread(target=stop.wait, daemon=True).start(); print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        try:
            assert writer.pid in processes_below(os.getpid())
            note = pin_processes(writers=[writer.pid], projectors=[])
            assert note is not None
            assert note.startswith("pinned: load generator to ")
            threads = [int(thread) for thread in os.listdir(f"/proc/{writer.pid}/task")]
            assert len(threads) == 2
            assert all(os.sched_getaffinity(thread) == {allowed[0]} for thread in threads)
        finally:
            release_pins()
            writer.communicate()
    assert sorted(os.sched_getaffinity(0)) == allowed


@pytest.mark.slow
def test_the_card_knows_this_machine(tmp_path: Path) -> None:
    card = describe_machine(tmp_path)
    assert card["cores"] == len(os.sched_getaffinity(0))
    assert card["filesystem"] == filesystem_of(tmp_path) != "unknown"
    assert card["packages"]["lmdb"]
    assert all(card[name] for name in ("cpu", "governor", "fsync", "kernel", "python", "rayfold", "commit"))
    assert card["memory_gib"] > 0
    assert same_machine(card, card) == []


def test_memory_is_recognised_as_a_file_system() -> None:
    if not Path("/dev/shm").is_dir():
        pytest.skip("this system has no file system in memory")
    assert filesystem_of(Path("/dev/shm/deeper")) == "tmpfs"


def test_what_differs_between_machines_is_told() -> None:
    assert same_machine({"cpu": "A", "cores": 2}, {"cpu": "A", "cores": 4}) == ["cores: 2 against 4"]


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        ("AMD EPYC 9654 96-Core Processor", "amd-epyc-9654-96-core-8-cores"),
        ("Intel(R) Xeon(R) CPU @ 2.20GHz", "intel-xeon-8-cores"),
        ("", "unknown-8-cores"),
    ],
)
def test_files_are_named_by_machine_and_cores(cpu: str, name: str) -> None:
    assert machine_name({"cpu": cpu, "cores": 8}) == name


def test_the_cpu_time_of_others_is_what_is_neither_ours_nor_stolen() -> None:
    assert shares((0, 0, 0), (1000, 600, 50), 400) == {"ours": 0.4, "others": 0.2, "steal": 0.05}


@pytest.mark.slow
def test_what_children_use_counts_as_ours() -> None:
    with Watcher() as watcher:
        watcher.begin()
        subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
        seen = watcher.end()
    assert seen is not None
    assert seen.ours > 0


def test_without_a_watcher_nobody_has_seen_anything() -> None:
    watcher = Watcher()
    watcher.begin()
    assert watcher.end() is None
