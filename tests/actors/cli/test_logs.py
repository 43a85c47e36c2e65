"""`rayfold logs`: what actors and handlers logged is found beside a running system and after it, and is printable."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from rayfold import HandlerFailed, Runtime
from rayfold.actors.cli.main import main
from rayfold.actors.cluster.local import LocalCluster, LocalNodes
from rayfold.actors.cluster.ray_cluster import Cluster
from rayfold.actors.observe import session_logs
from rayfold.actors.observe.session_logs import Line, SessionLogs, sessions_of
from rayfold.runtime.store.partition_map import PartitionMap, write_map
from tests.support.chatty import LastWord, Soloist, Speak, Speaker, Words
from tests.support.console import Told, console

pytestmark = pytest.mark.slow

ESCAPES = "\x1b[2J\u202e"
FORGED = "\n2013-11-01T10:00:00.000Z ERROR forged: a line"
WAIT_S = 200.0


def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    """The lines that `rayfold logs` prints."""
    monkeypatch.setattr(sys, "argv", ["rayfold", "logs", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)
    return capsys.readouterr().out.splitlines()


async def test_what_actors_and_handlers_logged_is_shown_with_their_names_traces_included(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = datetime.now(UTC) - timedelta(seconds=1)
    store = tmp_path / "choir"
    async with Runtime(store, aggregates=[Speaker, Soloist], projections=[Words], partitions=1) as choir:
        await choir.execute(Speaker, "a", Speak(text=f"hello {ESCAPES}{FORGED}"))
        deadline_s = time.monotonic() + 60
        while not shown(monkeypatch, capsys, store, "--actor", "Soloist/b") and time.monotonic() < deadline_s:
            await choir.execute(Soloist, "b", Speak(text="alone"), timeout_s=60)  # before it is up, in its partition
            await asyncio.sleep(0.2)
        with pytest.raises(HandlerFailed, match="no words"):
            await choir.execute(Speaker, "a", Speak(text=""))
        receipt = await choir.execute(Speaker, "a", Speak(text="secret"))
        with pytest.raises(HandlerFailed, match="not for you"):
            await choir.ask(Words, LastWord(), after=receipt, timeout_s=60)
        while_it_runs = shown(monkeypatch, capsys, store)
    afterwards = shown(monkeypatch, capsys, store)
    for lines in (while_it_runs, afterwards):
        text = "\n".join(lines)
        assert "Z WARNING chatty: to speak: hello \\x1b[2J\\u202e\n" in text
        assert "partition-0 |   2013-11-01T10:00:00.000Z ERROR forged: a line" in lines
        assert "partition-0 | printed: secret" in lines
        assert "partition-0 |   LookupError: no words" in lines
        assert any(line.startswith("Words-v1/0-0 |") and "not for you" in line for line in lines)
        assert not [line for line in lines if "below the level" in line or "actor_name" in line]
    whole = f"{store}"
    assert all(line.startswith("partition-0 | ") for line in shown(monkeypatch, capsys, whole, "--actor", "partition"))
    own = shown(monkeypatch, capsys, whole, "--actor", "Soloist/b")
    assert any("chatty: to speak: alone" in line for line in own)
    since = f"{before:%Y-%m-%dT%H:%M:%S}"
    assert shown(monkeypatch, capsys, whole, "--since", since) == afterwards
    assert shown(monkeypatch, capsys, whole, "--since", f"{before + timedelta(hours=1):%Y-%m-%dT%H:%M:%S}") == []
    store.rename(tmp_path / "another name")
    assert shown(monkeypatch, capsys, tmp_path / "another name") == afterwards


def test_what_raises_on_a_cluster_is_found_by_its_folder_and_by_the_name_beside_it_and_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chatty = "__import__('tests.support.chatty', fromlist=['x'])"
    options = f"partitions=1, aggregates=[{chatty}.Speaker], projections=[{chatty}.Deaf]"
    folder = tmp_path / "cluster"
    with (
        LocalNodes(LocalCluster(nodes=2, cpus=1), folder) as nodes,
        console(nodes.address, path=tmp_path / "choir", options=options) as choir,
    ):
        choir(f"(chatty := {chatty}) and None")
        choir("(spoken := bank.execute(chatty.Speaker, 'a', chatty.Speak(text='shout'))) and None")
        with pytest.raises(Told, match="too loud"):
            choir("bank.ask(chatty.Deaf, chatty.LastWord(), after=spoken)")
        while_it_runs = shown(monkeypatch, capsys, folder)
    monkeypatch.chdir(tmp_path)  # where nothing has that name
    for lines in (while_it_runs, shown(monkeypatch, capsys, folder), shown(monkeypatch, capsys, "choir")):
        of_projection = [line for line in lines if line.startswith("Deaf-v1/0-0 |")]
        assert any(line.endswith("  ValueError: too loud") for line in of_projection), lines
        assert any("projection Deaf stopped before event 1 of partition 0" in line for line in of_projection)
        assert any(line.endswith("| received: shout") for line in of_projection)
        of_partition = [line.split(" | ") for line in lines if line.startswith("partition-0@")]
        assert any("chatty: to speak: shout" in text for _, text in of_partition)
        assert all(re.fullmatch(r"partition-0@(node-\d|[0-9a-f]{8})", name) for name, _ in of_partition), of_partition


def test_the_actors_of_several_systems_in_one_folder_are_told_apart(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store_map = PartitionMap(str(uuid4()), 1, ("one",), (1,), {"one": "node one"})
    for name in ("alto", "tenor"):
        share = tmp_path / "cluster" / "node-0" / name
        share.mkdir(parents=True)
        write_map(share, store_map, "one")
        write(f"{name}.err", HEAD.format(f"{name}/partition-0@one#1") + f"2026-11-30T01:00:00.000Z INFO {name}: here\n")
    write("4.err", HEAD.format("alto/Words-v2.1/0-0#3.c33bc9.3") + "2026-11-30T01:00:00.000Z INFO alto: built anew\n")
    write("3.err", HEAD.format("other/partition-0@one#1") + "2026-11-30T01:00:00.000Z INFO other: here\n")
    lines = shown(monkeypatch, capsys, tmp_path / "cluster")
    assert sorted(line.split(" | ")[0] for line in lines) == [
        "alto/Words-v2.1/0-0",
        "alto/partition-0@node one",
        "tenor/partition-0@node one",
    ]


async def test_who_follows_sees_what_comes_and_a_closed_pipe_ends_it(cluster: Cluster, tmp_path: Path) -> None:
    store = tmp_path / "choir"
    async with Runtime(store, aggregates=[Speaker], partitions=1) as choir:
        await choir.execute(Speaker, "a", Speak(text="one"))
        with following(store) as process:
            assert process.stdout is not None
            told = [process.stdout.readline()]
            while "chatty: to speak: one" not in told[-1]:
                told.append(process.stdout.readline())
            await choir.execute(Speaker, "a", Speak(text="two"))
            while "chatty: to speak: two" not in told[-1]:
                told.append(process.stdout.readline())
            assert len(told) == len(set(told)), f"a line was printed twice: {told}"
            process.stdout.close()
            await choir.execute(Speaker, "a", Speak(text="three"))
            assert process.wait(WAIT_S) == 0


@contextlib.contextmanager
def following(store: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "rayfold.actors.cli", "logs", str(store), "--follow"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


# --- files ------------------------------------------------------------------------------------------------------------

HEAD = ":job_id:01000000\n:actor_name:PartitionActor\n:actor_name:{}\n"


def of_the_bank(name: str) -> str:
    return name.removeprefix("bank-12345678/") if name.startswith("bank-12345678/") else ""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a file of a worker's, in a session of the given time."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def made(name: str, text: str, session: str = "2026-11-30_01-00-00_000001_7") -> Path:
        logs = tmp_path / "ray" / f"session_{session}" / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        path = logs / f"worker-{name}"
        path.write_text(text)
        return path

    return made


def lines_of(logs: SessionLogs) -> list[tuple[str, str]]:
    return [(line.actor, line.text) for line in logs.lines()]


def test_lines_of_all_actors_of_the_system_come_by_time_and_those_of_others_and_rays_own_do_not(
    write: Callable[..., Path],
) -> None:
    later = "2026-11-30T01:00:02.000Z INFO bank: later"
    rays = "[2026-11-30 01:00:01,123 E 123 456] core_worker.cc:12: something of Ray's\n"
    write("1.err", HEAD.format("bank-12345678/partition-0") + rays + later + "\n  its trace\n")
    write("2.err", HEAD.format("bank-12345678/partition-1") + "2026-11-30T01:00:01.000Z INFO bank: first\n")
    write("3.err", HEAD.format("bank-87654321/partition-0") + "2026-11-30T01:00:01.000Z INFO bank: another store's\n")
    write("4.err", "2026-11-30T01:00:01.000Z INFO bank: of no store\n:actor_name:Plain\n")
    [logs] = sessions_of(of_the_bank)
    first = ("partition-1", "2026-11-30T01:00:01.000Z INFO bank: first")
    assert lines_of(logs) == [first, ("partition-0", later), ("partition-0", "  its trace")]
    assert lines_of(logs) == []


def test_what_comes_later_is_read_from_where_it_was_and_half_a_line_waits(write: Callable[..., Path]) -> None:
    path = write("1.out", HEAD.format("bank-12345678/partition-0") + "half")
    [logs] = sessions_of(of_the_bank)
    assert lines_of(logs) == []
    with path.open("a") as file:
        file.write(" a line\nnext\n")
    assert lines_of(logs) == [("partition-0", "half a line"), ("partition-0", "next")]
    write("2.out", HEAD.format("bank-12345678/partition-1") + "new\n")
    logs.look()
    assert lines_of(logs) == [("partition-1", "new")]


def test_a_name_that_is_printed_later_changes_nothing(write: Callable[..., Path]) -> None:
    write("1.out", HEAD.format("other-99999999/partition-0") + ":actor_name:bank-12345678/partition-0\nforged\n")
    assert list(sessions_of(of_the_bank)) == []


def test_links_are_not_read_and_the_newest_session_comes_first(write: Callable[..., Path], tmp_path: Path) -> None:
    head = HEAD.format("bank-12345678/partition-0")
    old = write("1.out", head + "old\n", "2026-11-29_23-00-00_000001_9")
    new = write("1.out", head + "new\n", "2026-11-30_02-00-00_000001_8")
    (new.parent / "worker-2.out").symlink_to(old)
    (old.parent.parent.parent / "session_2026-12-01_00-00-00_000001_7").symlink_to(old.parent.parent)
    assert [lines_of(logs) for logs in sessions_of(of_the_bank)] == [[("partition-0", "new")], [("partition-0", "old")]]


def test_a_flood_is_kept_up_to_a_bound_the_newest_of_all_files(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_logs, "LINES_MAX", 10)
    for number in range(3):
        stamps = (f"2026-11-30T01:00:{2 * second + number:02}.000Z INFO flood" for second in range(20))
        write(f"{number}.err", HEAD.format(f"bank-12345678/partition-{number}") + "\n".join(stamps) + "\n")
    [logs] = sessions_of(of_the_bank)
    kept: list[Line] = logs.lines()
    assert (len(kept), logs.left_out) == (10, 50)
    assert [line.at.second for line in kept] == [34, 34, 35, 36, 36, 37, 38, 38, 39, 40]


def test_a_store_of_which_nothing_is_there_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rayfold.runtime.store.store import create_or_open_store

    create_or_open_store(tmp_path / "store", 1)
    monkeypatch.setattr(sys, "argv", ["rayfold", "logs", str(tmp_path / "store")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "no lines of its actors are left on this machine" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["rayfold", "logs", str(tmp_path / "store"), "--since", "yesterday"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "--since 'yesterday' is neither an age such as 10m nor a time" in capsys.readouterr().err
