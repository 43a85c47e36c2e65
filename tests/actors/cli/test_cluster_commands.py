"""`rayfold up`, `down`, `node` and `nodes`, as programs: what they print, and what they leave running."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayfold.actors.cluster.cluster_file import CLUSTER_FILE, WISH_FILE, known_wish, read_cluster
from rayfold.actors.cluster.local import LocalCluster
from rayfold.actors.cluster.node import create_or_read_node, hold_node
from tests.actors.cluster.test_local_cluster import await_none, left_over

pytestmark = pytest.mark.slow


def rayfold(*arguments: str | Path, code: int = 0) -> str:
    """What the command prints, both streams together."""
    command = [sys.executable, "-m", "rayfold.actors.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == code, done
    return " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cluster"
    if (tmp_path / "cluster" / CLUSTER_FILE).exists():
        rayfold("down", "--data", tmp_path / "cluster")


def test_a_cluster_is_up_until_it_is_taken_down_and_a_second_up_brings_back_what_was_lost(folder: Path) -> None:
    said = rayfold("up", "--nodes", "2", "--data", folder)
    assert said.startswith("up: 2 nodes, 1 CPU each, at 127.0.0.1:")
    facts = json.loads((folder / CLUSTER_FILE).read_text())
    assert f'cluster="{facts["address"]}"; `rayfold down --data {folder}` stops it' in said
    assert rayfold("up", "--data", folder).startswith(f"up already: 2 nodes at {facts['address']}")

    running = read_cluster(folder)
    assert running is not None
    listed = rayfold("nodes", running.address)
    assert all(one.identity.node_id in listed for one in running.nodes)
    running.kill_node(1)
    assert rayfold("up", "--data", folder).startswith(f"up again: node-1; 2 nodes at {running.address}")

    assert rayfold("down", "--data", folder).startswith("stopped 2 nodes, ")
    assert left_over(folder) == []
    assert sorted(path.name for path in folder.glob("node-?")) == ["node-0", "node-1"]
    assert "no cluster was started here" in rayfold("down", "--data", folder, code=2)


def test_the_port_of_the_head_is_chosen_and_is_the_same_again_after_a_down(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = rayfold("up", "--nodes", "1", "--port", str(port), "--data", folder, code=2)
        assert f"port {port}: another program listens there; stop that, or choose another port" in refused
    said = rayfold("up", "--nodes", "1", "--port", str(port), "--data", folder)
    assert said.startswith(f"up: 1 node, 1 CPU each, at 127.0.0.1:{port} ")
    assert f"runs at port {port}; `rayfold down` first" in rayfold("up", "--port", "1234", "--data", folder, code=2)
    rayfold("down", "--data", folder)
    assert rayfold("up", "--data", folder, "--nodes", "1").startswith(f"up: 1 node, 1 CPU each, at 127.0.0.1:{port} ")


def test_an_up_after_a_down_has_the_nodes_and_the_cpus_that_the_cluster_had(folder: Path) -> None:
    rayfold("up", "--nodes", "1", "--cpus", "2", "--data", folder)
    rayfold("down", "--data", folder)
    assert rayfold("up", "--data", folder).startswith("up: 1 node, 2 CPU each, at ")
    rayfold("down", "--data", folder)
    said = rayfold("up", "--data", folder, "--nodes", "2", "--cpus", "1")
    assert said.startswith("up: 2 nodes, 1 CPU each, at "), "the options of this call count"
    assert known_wish(folder) == LocalCluster(nodes=2, cpus=1)


def test_where_no_wish_is_written_there_are_as_many_nodes_as_data_folders(tmp_path: Path) -> None:
    assert known_wish(tmp_path) == LocalCluster(), "the default, where no cluster ever ran"
    for number in range(4):
        create_or_read_node(tmp_path / f"node-{number}", f"node-{number}")
    for other in ("node-x", "node-7", "node-²"):
        (tmp_path / other).mkdir()
    assert known_wish(tmp_path) == LocalCluster(nodes=4)
    for damaged in ("", "[]", '{"nodes": "many", "cpus": 1}', '{"nodes": 99, "cpus": 1}'):
        (tmp_path / WISH_FILE).write_text(damaged)
        assert known_wish(tmp_path) == LocalCluster(nodes=4)


def test_an_up_that_is_killed_leaves_nothing_running(folder: Path) -> None:
    command = [sys.executable, "-m", "rayfold.actors.cli", "up", "--nodes", "1", "--data", str(folder)]
    with subprocess.Popen(command) as starting:
        while not left_over(folder):
            assert starting.poll() is None
        starting.send_signal(signal.SIGKILL)
    await_none(lambda: left_over(folder))  # a node that is starting sees it once it is up
    assert not (folder / CLUSTER_FILE).exists()


def test_fewer_nodes_than_there_are_is_refused_and_what_no_up_wrote_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / CLUSTER_FILE).write_text("{}")
    said = rayfold("down", "--data", tmp_path, code=2)
    assert "it is not what `rayfold up` wrote: KeyError('format'); remove it, after making sure" in said
    facts = {"format": 1, "address": "127.0.0.1:1", "cpus": 1, "nodes": [], "more": 1}
    one = {"name": "node-0", "node_id": "x", "data": "x", "session": 1, "started": 1, "boot_id": "x"}
    (tmp_path / CLUSTER_FILE).write_text(json.dumps(facts | {"nodes": [one, one]}))
    assert "has 2 nodes, not 1; choose another folder" in rayfold("up", "--nodes", "1", "--data", tmp_path, code=2)
    assert rayfold("down", "--data", tmp_path).startswith("stopped 2 nodes, 0 processes")


def test_node_prints_the_command_that_it_would_become(tmp_path: Path) -> None:
    options = ("--data", tmp_path, "--print")
    said = rayfold("node", "--head", "--name", "one", "--port", "7000", *options, "--", "--num-gpus=1")
    labels = f"rayfold-node={create_or_read_node(tmp_path, 'one').node_id},rayfold-node-name=one"
    for part in (
        f"RAYFOLD_DATA={tmp_path}",
        "RAY_health_check_period_ms=1000",
        f"RAY_gcs_storage_path={tmp_path}/gcs",
        f"start --head --port=7000 --block --labels={labels}",
        "--num-gpus=1",
    ):
        assert part in said
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in said
    joins = rayfold("node", "--address", "one:7000", *options)
    assert "start --address=one:7000 --block" in joins
    assert "RAY_gcs_storage" not in joins


def test_node_wants_either_head_or_an_address(tmp_path: Path) -> None:
    for arguments in ((), ("--head", "--address", "one:7000")):
        said = rayfold("node", "--data", tmp_path, *arguments, code=2)
        assert said == "error: use --head on the first node and --address HOST:PORT, the head's, on every other"


def test_node_refuses_a_data_folder_in_use(tmp_path: Path) -> None:
    create_or_read_node(tmp_path, "one")
    hold = hold_node(tmp_path)
    try:
        assert f"{tmp_path} is in use by a running node" in rayfold("node", "--head", "--data", tmp_path, code=2)
    finally:
        os.close(hold)


def test_node_without_the_token_of_the_head_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    said = rayfold("node", "--address", "one:7000", "--data", tmp_path / "data", code=2)
    assert said.startswith("error: no token here; copy ~/.ray/auth_token of the head's user to the same place")
