"""Workers are forked from one process of their node, and started by themselves where a fork would not be the same."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rayfold.actors.os_process import fork_server, reaper, waiting_agent
from rayfold.benchmarks.harness.processes import processes_below
from tests.other_user import as_nobody, needs_root
from tests.support.driver import wait_until_gone

ACTORS = """
import json, os, sys, threading
from rayfold.actors.cluster.ray_cluster import Cluster

cluster = Cluster.start_or_join(num_cpus=1, own_actors_max=0)
import ray

@ray.remote(num_cpus=0)
class Looking:
    def facts(self):
        import random, sys
        return {
            "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "path": sys.path,
            "main": sys.modules["__main__"].__file__, "job": ray.get_runtime_context().get_job_id(),
            "oom": open("/proc/self/oom_score_adj").read().strip(), "cwd": os.getcwd(),
            "random": random.random(), "set": os.environ.get("OF_ONE_ACTOR"), "umask": os.umask(0o77),
            "modules": sorted(name for name in sys.modules if name.startswith("rayfold.actors")),
        }

    def touch(self, name):
        os.utime(sys.modules[name].__file__)

def facts(**options):
    actor = Looking.options(**options).remote()
    actors.append(actor)
    return ray.get(actor.facts.remote())

actors = []
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
actors.clear()
cluster.stop()
"""
"""A program with a Ray of its own, which evaluates what it is asked."""


STORED_MAX = 4
"""More workers than Ray has in store here."""


class Program:
    """A program that has started a Ray, as runtimes do."""

    def __init__(self, folder: Path) -> None:
        """In a folder, with that on its path, and without what Python puts there by itself."""
        piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": folder}
        environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
        self.folder = folder
        self.process = subprocess.Popen([sys.executable, "-c", ACTORS], env=environment, **piped)

    def ask(self, expression: str) -> Any:
        """What an expression comes to in it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One Ray for all tests of this file, in order."""
    program = Program(tmp_path_factory.mktemp("program"))
    yield program
    left = processes_below(program.process.pid)
    program.process.communicate(timeout=60)
    wait_until_gone(left, 60)


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def _is_server(pid: int) -> bool:
    try:
        return any(word.endswith("fork_server.py") for word in _command(pid))
    except OSError:
        return False


def server_and_node(program: Program) -> tuple[int, int]:
    """The server that the next worker is forked by, and the node's process. Ray may have some workers in store, whose
    server has ended."""
    for _ in range(STORED_MAX):
        parent: int = program.ask("facts()")["parent"]
        if _is_server(parent):
            return parent, int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    raise AssertionError("no worker was forked")


pytestmark = pytest.mark.slow


def test_workers_are_children_of_one_server_and_as_if_ray_had_started_them(program: Program) -> None:
    first, second = program.ask("[facts(), facts()]")
    assert first["parent"] == second["parent"]
    assert _is_server(first["parent"])
    assert first["pid"] != second["pid"]
    assert first["group"] == first["pid"]
    assert first["oom"] == "1000"
    assert first["random"] != second["random"]
    assert first["job"] == second["job"] == program.ask("ray.get_runtime_context().get_job_id()")
    assert first["main"].endswith("default_worker.py")
    assert str(Path(fork_server.__file__).parent) not in first["path"]
    assert str(program.folder) in first["path"]
    assert first["cwd"] == str(program.folder)
    assert "rayfold.actors.partition.actor" in first["modules"]
    node = int(Path(f"/proc/{first['parent']}/stat").read_text().rpartition(")")[2].split()[1])
    wait_until(lambda: [pid for pid in processes_below(node) if _is_server(pid)] == [first["parent"]])


def wait_until(holds: Callable[[], bool]) -> None:
    """The processes whose place workers took have ended: a moment after Ray knows those."""
    for _ in range(200):
        if holds():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it never came about")


def test_a_worker_with_an_environment_of_its_own_is_started_and_has_it(program: Program) -> None:
    other = program.ask("facts(runtime_env={'env_vars': {'OF_ONE_ACTOR': 'yes'}})")
    assert other["set"] == "yes"
    assert not _is_server(other["parent"])
    assert "rayfold.actors.partition.actor" not in other["modules"]


def test_after_the_server_was_killed_the_next_worker_becomes_one(program: Program) -> None:
    before, _ = server_and_node(program)
    os.kill(before, signal.SIGKILL)
    after, _ = server_and_node(program)
    assert after != before
    assert server_and_node(program)[0] == after


def test_a_server_that_does_not_come_to_fork_leaves_each_worker_to_itself(program: Program) -> None:
    """Whichever process has the server's address, and whatever it answers."""
    server, node = server_and_node(program)
    os.kill(server, signal.SIGKILL)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        for _ in range(100):  # until the kernel has ended the other
            try:
                mute.bind(fork_server._address(node))
                break
            except OSError:
                threading.Event().wait(0.05)
        mute.listen()

        def close_all() -> None:
            while True:
                try:
                    connection, _ = mute.accept()
                except OSError:
                    return
                connection.recv(1)
                connection.close()

        threading.Thread(target=close_all, daemon=True).start()
        parents = [program.ask("facts()")["parent"] for _ in range(STORED_MAX)]
        mute.shutdown(socket.SHUT_RDWR)
    assert parents[-1] == node


def test_garbage_at_the_server_hurts_nobody(program: Program) -> None:
    server, node = server_and_node(program)
    for written in (b"", b"\0\0\0\x04nope", b"\xff\xff\xff\xff", b"\0\0\0\x02{}", b"\0\0\0\x02[]"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(fork_server._address(node))
            if written:
                socket.send_fds(connection, [written], [0, 1, 2])
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
    assert server_and_node(program) == (server, node)


@needs_root
def test_another_user_gets_no_process(program: Program) -> None:
    server, node = server_and_node(program)
    code = """
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
    connection.connect("\\0" + sys.argv[1])
    try:
        socket.send_fds(connection, [b"\\0\\0\\0\\x0d"], [0, 1, 2])
        connection.sendall(b'[[], {}, "/"]')
        print(connection.recv(1))
    except ConnectionError:
        print("refused")
"""
    assert as_nobody(code, fork_server._address(node)[1:]) in ("b''", "refused")
    assert server_and_node(program) == (server, node)


def test_the_port_files_are_those_that_ray_reads(tmp_path: Path) -> None:
    raylet: Any = importlib.import_module("ray._raylet")
    names = (*waiting_agent.DASHBOARD_PORTS, waiting_agent.RUNTIME_ENV_PORT)
    assert names == (
        raylet.METRICS_AGENT_PORT_NAME,
        raylet.METRICS_EXPORT_PORT_NAME,
        raylet.DASHBOARD_AGENT_LISTEN_PORT_NAME,
        raylet.RUNTIME_ENV_AGENT_PORT_NAME,
    )
    options = {"session-dir": str(tmp_path), "node-id": "a" * 56}
    waiting_agent._leave_port(options, names[0], -1)
    assert raylet.wait_for_persisted_port(str(tmp_path), "a" * 56, names[0], timeout_ms=1000) == -1


def test_the_mark_is_that_of_the_reaper() -> None:
    assert fork_server.MARK == reaper.MARK


@pytest.mark.parametrize(
    ("program", "arguments", "code"),
    [(fork_server, [], 1), (waiting_agent, [os.path.join("dashboard", "agent.py"), waiting_agent.MINIMAL], 0)],
)
def test_what_is_started_by_a_node_that_has_ended_since_ends(program: Any, arguments: list[str], code: int) -> None:
    node = subprocess.Popen([sys.executable, "-c", ""])
    node.wait()
    command = [sys.executable, str(program.__file__), *arguments]
    environment = {**os.environ, "RAY_RAYLET_PID": str(node.pid)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (code, "")


@pytest.mark.parametrize(("known", "code"), [(False, 1), (True, 0)])
def test_a_worker_ends_with_its_node_until_that_knows_it(known: bool, code: int) -> None:
    program = """
import sys
from rayfold.actors.os_process import fork_server

known = fork_server._watch_node()
if sys.argv[1:]:
    known.set()
print("watching", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as node:
        environment = os.environ | {"RAY_RAYLET_PID": str(node.pid)}
        command = [sys.executable, "-c", program, *["known"] * known]
        piped: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, **piped) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "watching\n"
            node.kill()
            node.wait()
            if not known:
                assert worker.wait(60) == code
            worker.communicate()
    assert worker.returncode == code
