"""Node: an identity that survives restarts, is never made anew over damage; a data folder for one node at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from rayfold import InvalidId, StoreInUse, StoreMismatch, StoreMissing
from rayfold.actors.cluster.node import (
    DATA_VARIABLE,
    NODE_FILE,
    create_or_read_node,
    data_folder_here,
    hold_node,
    read_node,
    verify_node,
)
from rayfold.runtime.store.store import create_or_open_store


def test_an_identity_is_made_once_and_its_name_stands(tmp_path: Path) -> None:
    made = create_or_read_node(tmp_path / "data", "one")
    assert str(UUID(made.node_id)) == made.node_id
    assert create_or_read_node(tmp_path / "data", "another") == made
    assert read_node(tmp_path / "data") == made
    assert made.labels == {"rayfold-node": made.node_id, "rayfold-node-name": "one"}
    assert [path.name for path in (tmp_path / "data").iterdir()] == [NODE_FILE]


def test_nodes_of_the_same_name_are_told_apart_by_their_ids(tmp_path: Path) -> None:
    assert create_or_read_node(tmp_path / "a", "one").node_id != create_or_read_node(tmp_path / "b", "one").node_id


@pytest.mark.parametrize("name", ["", "-one", "one.", "a b", "a/b", "x" * 64, "knöten"])
def test_a_name_that_cannot_be_a_label_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidId, match="must be 1 to 63 letters"):
        create_or_read_node(tmp_path / "data", name)
    assert not (tmp_path / "data").exists()


def test_a_folder_of_other_things_does_not_become_a_data_folder_and_stays_as_it_is(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    home.chmod(0o755)
    (home / "notes").write_text("mine")
    with pytest.raises(StoreMismatch, match=r"neither a node's nor a store: notes; choose an empty folder"):
        create_or_read_node(home, "one")
    assert (home.stat().st_mode & 0o777, [one.name for one in home.iterdir()]) == (0o755, ["notes"])


def test_a_folder_with_a_store_or_the_root_of_a_disk_becomes_a_data_folder(tmp_path: Path) -> None:
    create_or_open_store(tmp_path / "data" / "bank", 1)
    (tmp_path / "data" / "lost+found").mkdir()
    assert create_or_read_node(tmp_path / "data", "one").name == "one"


def test_a_folder_without_an_identity_is_not_a_data_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="this is not the data folder of a node: it holds no node.json"):
        read_node(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is not what was written"),
        (b"[1]", "it is not what was written"),
        (b'{"format": 1, "node_id": "x", "name": "one"}', "it is not what was written"),
        (b'{"format": 1, "node_id": "x", "name": "one", "checksum": "00000000"}', "its checksum is wrong"),
    ],
)
def test_a_damaged_identity_is_an_error_and_never_made_anew(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / NODE_FILE).write_bytes(content)
    with pytest.raises(StoreMismatch, match=f"{told}; restore node.json from a copy"):
        create_or_read_node(tmp_path, "one")
    assert (tmp_path / NODE_FILE).read_bytes() == content


def test_an_identity_with_another_name_written_into_it_is_damaged(tmp_path: Path) -> None:
    create_or_read_node(tmp_path, "one")
    facts = json.loads((tmp_path / NODE_FILE).read_text()) | {"name": "two"}
    (tmp_path / NODE_FILE).write_text(json.dumps(facts))
    with pytest.raises(StoreMismatch, match="its checksum is wrong"):
        read_node(tmp_path)


def test_the_data_folder_of_another_node_is_refused_with_both_ids(tmp_path: Path) -> None:
    one, two = create_or_read_node(tmp_path / "1", "one"), create_or_read_node(tmp_path / "2", "two")
    assert verify_node(tmp_path / "1", one.node_id) == one
    with pytest.raises(StoreMismatch) as told:
        verify_node(tmp_path / "2", one.node_id)
    assert str(told.value) == (
        f"{tmp_path / '2'}: this is the data folder of node two ({two.node_id}), but the Ray node here is labelled"
        f" rayfold-node={one.node_id}; start each node with the data folder that is its own"
    )


def test_a_data_folder_that_is_gone_is_told_with_the_node_it_belongs_to(tmp_path: Path) -> None:
    with pytest.raises(StoreMissing, match="where the data folder of node abc belongs; bring it back"):
        verify_node(tmp_path, "abc")


def test_a_process_finds_its_data_folder_in_its_environment() -> None:
    assert data_folder_here({DATA_VARIABLE: "/data"}) == Path("/data")
    assert data_folder_here({}) is None


@pytest.mark.slow
def test_a_data_folder_is_held_by_one_process_and_what_it_becomes_until_that_ends(tmp_path: Path) -> None:
    create_or_read_node(tmp_path, "one")
    becomes = (
        "import os, sys; from rayfold.actors.cluster.node import hold_node; hold_node(sys.argv[1]);"
        "os.execvp('sh', ['sh', '-c', 'echo held; read line'])"
    )
    command = [sys.executable, "-c", becomes, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreInUse, match=rf"is in use by a running node \(process {holder.pid}\)"):
            hold_node(tmp_path)
        holder.kill()
        holder.wait()
    os.close(hold_node(tmp_path))
