"""The walk-through of `deploy/README.md`, its commands taken from the page and run: two nodes, one machine.

`ray start` puts nodes on the machine's own address, not on the loopback interface; the traffic stays in this machine,
and the token keeps others out.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray.util

from rayfold.actors.cluster.local import PORTS
from rayfold.actors.cluster.node import read_node
from rayfold.actors.cluster.processes import Session, end_sessions

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "deploy" / "README.md"


def commands() -> list[list[str]]:
    """The commands of the page's blocks that are Rayfold's."""
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.startswith("rayfold ")]


def here(command: list[str], data: Path, address: str) -> list[str]:
    """A command of the page, for this machine: its folder, the address of the head, and few CPUs."""
    places = {"/var/lib/rayfold": str(data), "one:6379": address}
    said = [sys.executable, "-m", "rayfold.actors.cli", *(places.get(word, word) for word in command[1:])]
    if command[1] != "node":
        return said
    return [*said, "--cpus", "1", *(["--port", address.rpartition(":")[2]] if "--head" in command else [])]


@contextlib.contextmanager
def node(command: list[str], data: Path) -> Iterator[None]:
    """It runs in the foreground until it is ended; everything that it started ends with it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True) as run:
        session = Session.led_by(run.pid, data)
        try:
            assert run.stdout is not None
            assert any("Ray runtime started" in line for line in run.stdout)
            threading.Thread(target=run.stdout.read, daemon=True).start()
            yield
        finally:
            assert end_sessions([session], grace_s=10) == []


def free_port() -> int:
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("", port))
            return port
    raise AssertionError("no port is free")


def test_the_walk_through_brings_up_the_nodes_that_it_says(tmp_path: Path) -> None:
    head, other, look = commands()
    address = f"{ray.util.get_node_ip_address()}:{free_port()}"
    one, two = tmp_path / "one", tmp_path / "two"
    with node(here(head, one, address), one), node(here(other, two, address), two):
        listed = subprocess.run(here(look, tmp_path, address), capture_output=True, text=True, timeout=60, check=False)
        assert listed.returncode == 0, listed
        for name, data in (("one", one), ("two", two)):
            assert read_node(data).name == name
            assert read_node(data).node_id in listed.stdout
        assert (one / "gcs" / "session_name").exists()
