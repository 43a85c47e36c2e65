"""Access to a default local runtime: who is let in without the token, with a wrong one, over which port or file.

A program starts a runtime with the defaults. Then its listening sockets are read from the kernel, its token and its
sockets are checked as files, and strangers try to join its Ray and to start an actor in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from rayfold import BlockingRuntime
from rayfold.actors.cluster.environment import prepare_environment

from ...harness.processes import Child, processes_below
from ..bank import Jar, Put, Totals
from ..contract import Context, Findings, scenario

_JOINING_S: Final = 90.0
"""Until a stranger that was neither let in nor turned away counts as turned away."""

_TRUSTED: Final = "with the token"

_IMPATIENT: Final = {"RAY_NUM_REDIS_GET_RETRIES": "2"}
"""How often a Ray that is not let in tries again, each time for a second; it is 20 times by default."""

_LISTENS: Final = "0A"
"""How /proc/net/tcp writes it."""


@scenario(
    "doors",
    "clients without a token and with a wrong one; open ports; modes of token and sockets",
    "I11",
    counts="listening beyond_loopback strangers let_in",
    times=(25, 20, 0.0),
)
def access(context: Context, findings: Findings) -> None:
    """One program, checked from outside."""
    with Child(run, path=str(context.folder / "store")) as child:
        told = json.loads(next(child.lines()))
        _look_at_ports(processes_below(child.pid), findings)
        _look_at_files(processes_below(child.pid), findings)
        clients = {**_strangers(context), _TRUSTED: {"RAY_AUTH_MODE": "token"}}
        with ThreadPoolExecutor(len(clients)) as pool:  # each takes seconds to be turned away
            answers = pool.map(lambda environment: _let_in(told["address"], environment), clients.values())
            let_in = dict(zip(clients, answers, strict=True))
        findings.check("I11", let_in.pop(_TRUSTED), "not even the right token opens: nothing was shown")
        for kind, came_in in let_in.items():
            findings.count("strangers")
            findings.count("let_in", came_in)
            findings.check("I11", not came_in, f"a client {kind} was let in and had its code run")
        child.signal(signal.SIGINT)
        child.wait()


def _strangers(context: Context) -> dict[str, dict[str, str]]:
    empty = context.folder / "nobody"
    empty.mkdir()
    return {
        "without a token": {"RAY_AUTH_MODE": "disabled", "HOME": str(empty)},
        "with a wrong token": {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "00" * 32},
    }


def _let_in(address: str, environment: dict[str, str]) -> bool:
    """Whether a process can connect and have a task run. A failure is what is hoped for, whichever it is."""
    child = Child(join, {**environment, **_IMPATIENT}, address=address)
    with child as one, contextlib.suppress(TimeoutError):  # it still waits to be let in
        return "ran\n" in list(one.lines(_JOINING_S))
    return False


def _look_at_ports(pids: set[int], findings: Findings) -> None:
    addresses = _listening(pids)
    outside = [address for address in addresses if not address.startswith("127.")]
    findings.figures["listening"] = len(addresses)
    findings.figures["beyond_loopback"] = len(outside)
    findings.check("I11", bool(addresses), "it listens nowhere: the wrong place was checked")
    findings.check("I11", not outside, f"it listens beyond the loopback interface: {outside}")


def _look_at_files(pids: set[int], findings: Findings) -> None:
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray" / "auth_token"))
    folder = Path(tempfile.gettempdir()) / f"rayfold-{os.getuid()}"
    sockets = [path for path in _bound(pids) if path.parent == folder]  # other runtimes of this user have theirs there
    findings.figures["sockets"] = len(sockets)
    findings.check("I11", bool(sockets), f"there is no socket in {folder}: the wrong place was checked")
    for path, mode in {token: 0o600, folder: 0o700, **dict.fromkeys(sockets, 0o600)}.items():
        found = stat.S_IMODE(path.stat().st_mode)
        findings.check("I11", found == mode, f"{path} has mode {found:04o}, not {mode:04o}")


def _sockets(pids: set[int]) -> set[str]:
    """The inodes of all sockets that these processes hold."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it has ended
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    found = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(descriptor))
                    inodes |= {found[1]} if found else set()
    return inodes


def _bound(pids: set[int]) -> set[Path]:
    """The paths of all UNIX sockets that these processes hold."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    inodes = _sockets(pids)
    return {Path(fields[7]) for fields in lines if len(fields) > 7 and fields[6] in inodes}


def _listening(pids: set[int]) -> list[str]:
    """The addresses, with ports, of all listening TCP sockets that these processes hold."""
    inodes = _sockets(pids)
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTENS and fields[9] in inodes:
                host, port = fields[1].split(":")
                last = ".".join(str(byte) for byte in reversed(bytes.fromhex(host[-8:])))  # a mapped one ends in it
                addresses.append(f"{last}:{int(port, 16)}")
    return addresses


def run(path: str) -> None:
    """What the child runs: a runtime with the defaults, until it is interrupted."""
    with BlockingRuntime(path, aggregates=[Jar], projections=[Totals], num_cpus=2) as bank:
        bank.execute(Jar, "a", Put(amount=1))
        import ray

        print(json.dumps({"address": ray.get_runtime_context().gcs_address}), flush=True)
        signal.pause()


def join(address: str) -> None:
    """What a stranger runs: join, and have something run there."""
    prepare_environment()  # all but the token, which the stranger has or has not
    import ray

    ray.init(address=address, namespace="rayfold", log_to_driver=False)

    def code() -> str:
        return "ran"

    remote: Any = ray.remote
    print(ray.get(remote(num_cpus=0)(code).remote(), timeout=30), flush=True)
