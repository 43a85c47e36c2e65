"""Waiting agent: stands in for an agent of a Ray node until one is needed.

Beside all steps. `cluster/ray_node.py` has a node start this file where it would start one of its two agents, with the
agent's own command as arguments. Each of them takes 0.6 s of CPU to start, a node starts no worker before both have
written down their ports, and nothing here uses either: the agent of the dashboard does nothing in a Ray without its
dashboard, and the other one prepares the `runtime_env` of a task. The first never becomes more than this; the second is
started at the same port when a process connects to it. Ray asks again, and then the real one answers.

Rules kept here: it ends with its node; it needs neither ray nor rayfold: 15 ms to start.
"""

from __future__ import annotations

import os
import select
import socket
import sys
from pathlib import Path
from typing import Final

__all__ = ["DASHBOARD_PORTS", "MINIMAL", "RUNTIME_ENV_PORT"]

MINIMAL: Final = "--minimal"
"""What Ray starts the agent of its dashboard with where there is no dashboard."""

DASHBOARD_PORTS: Final = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port")
RUNTIME_ENV_PORT: Final = "runtime_env_agent_port"
"""The files in which Ray's agents leave their ports, without the id of the node."""

_PORT_OPTION: Final = "--runtime-env-agent-port="


def main() -> None:
    """Wait for the end of the node, or until the agent is needed; then become it."""
    command = sys.argv[1:]
    try:
        needed = _needed(command)
    except Exception:  # another version of Ray, or an old kernel: as if this were not here
        needed = command
    if needed is not None:
        os.execv(sys.executable, [sys.executable, "-u", *needed])


def _needed(command: list[str]) -> list[str] | None:
    """The command of the agent, as soon as it is needed; None once the node has ended."""
    options = dict(argument[2:].partition("=")[::2] for argument in command if argument.startswith("--"))
    if os.environ.get("RAY_RAYLET_PID", str(os.getppid())) != str(os.getppid()):
        return None  # it ended before this process ran
    node = os.pidfd_open(os.getppid())
    if command[0].endswith(os.path.join("dashboard", "agent.py")):
        if MINIMAL not in command:
            return command
        for name in DASHBOARD_PORTS:
            _leave_port(options, name, -1)  # as Ray's own does: there is no such server
        select.select([node], [], [])
        return None
    port = int(options.get("runtime-env-agent-port") or 0)
    family, kind, protocol, _, address = socket.getaddrinfo(options["node-ip-address"], port, type=socket.SOCK_STREAM)[
        0
    ]
    with socket.socket(family, kind, protocol) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(address)
        server.listen()
        port = server.getsockname()[1]
        _leave_port(options, RUNTIME_ENV_PORT, port)
        readable, _, _ = select.select([node, server.fileno()], [], [])
    if node in readable:
        return None
    return [one for one in command if not one.startswith(_PORT_OPTION)] + [f"{_PORT_OPTION}{port}"]


def _leave_port(options: dict[str, str], name: str, port: int) -> None:
    """Whole or not at all: the node reads it as soon as it is there."""
    path = Path(options["session-dir"], f"{name}_{options['node-id']}")
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(str(port))
    unfinished.rename(path)


if __name__ == "__main__":
    main()
