"""How a program without Ray finds the shares of the nodes of its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayfold.actors.cluster.cluster_file import CLUSTER_FILE
from rayfold.actors.nodes import local_shares
from rayfold.actors.nodes.local_shares import NO_SOCKETS
from rayfold.runtime.errors import CallerError
from rayfold.runtime.store.store import open_or_create_store
from rayfold.runtime.store.store_lock import StoreLock

ONE, TWO = "127.0.0.1:6379", "127.0.0.1:6380"


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Two nodes of one cluster and one of another, of which one has no share."""
    places = {name: tmp_path / name for name in ("one", "two", "other", "empty")}
    for name in ("one", "two", "other"):
        open_or_create_store(places[name] / "bank", 1, 1)
    found = [(ONE, places["one"]), (ONE, places["two"]), (ONE, places["empty"]), (TWO, places["other"])]
    monkeypatch.setattr(local_shares, "_nodes_here", lambda: found)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return places


def found(name: str, wanted: str, folder: Path) -> list[str]:
    return [share.path.parent.name for share in local_shares.local_shares(name, wanted, folder)]


@pytest.mark.parametrize("wanted", [ONE, "localhost:6379", "0.0.0.0:6379"])
def test_shares_are_those_of_the_cluster_that_is_named_in_whatever_way(
    nodes: dict[str, Path], wanted: str, tmp_path: Path
) -> None:
    assert found("bank", wanted, tmp_path) == ["one", "two"]
    assert found("shop", wanted, tmp_path) == []


def test_auto_is_the_cluster_of_the_environment_or_of_the_folder_or_the_only_one(
    nodes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CallerError, match=f"2 clusters run on this machine.*: {ONE}, {TWO}; choose one with HOST:PORT"):
        found("bank", "auto", tmp_path)
    (tmp_path / CLUSTER_FILE).write_text(f'{{"address": "{TWO}"}}')
    assert found("bank", "auto", tmp_path) == ["other"]
    monkeypatch.setenv("RAY_ADDRESS", ONE)
    assert found("bank", "auto", tmp_path) == ["one", "two"]
    monkeypatch.delenv("RAY_ADDRESS")
    (tmp_path / CLUSTER_FILE).unlink()
    monkeypatch.setattr(local_shares, "_nodes_here", lambda: [(TWO, nodes["other"])])
    assert found("bank", "auto", tmp_path) == ["other"]
    assert found("bank", "elsewhere:6380", tmp_path) == []


def test_an_agent_that_serves_no_programs_does_not_count_and_one_that_is_away_does(
    nodes: dict[str, Path], tmp_path: Path
) -> None:
    hold = StoreLock(nodes["one"] / "bank", "the node agent of bank")
    hold.publish(NO_SOCKETS)
    assert found("bank", ONE, tmp_path) == ["two"]
    hold.publish({"relay": "/tmp/a"})
    [one, two] = local_shares.local_shares("bank", ONE, tmp_path)
    holder = one.holder()
    assert holder is not None
    assert (holder.connection, two.holder()) == ({"relay": "/tmp/a"}, None)
    hold.release()
    assert one.holder() is None


def test_the_nodes_of_this_machine_are_found_by_their_processes() -> None:
    assert all(address and data.is_absolute() for address, data in local_shares._nodes_here())
