"""Nodes in network namespaces of their own, joined by a switch: one is cut off from all others, and healed.

The nodes are what `rayfold node` makes of a machine, `ray start` with our settings, and their programs run beside them
in the same namespaces: nothing of them can reach another node but over its cable. Pulling a cable does to a cluster
what nothing else here does: the node runs on, and its partitions take the commands of the programs beside them, while
for all others it is gone.

Rule kept here: namespaces have names of their own, and are removed with all that is in them, whatever happens.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final, Self

from rayfold.actors.cluster.local import LOG, START_TIMEOUT_S, LocalCluster, LocalNode, LocalNodes
from rayfold.actors.cluster.node import verify_node
from rayfold.actors.cluster.processes import Session
from rayfold.actors.cluster.token import ensure_token
from rayfold.runtime.errors import Unavailable

from ..contract import Context, Findings, scenario
from .harness import INVARIANTS_OF_CLUSTERS, NODE_IS_DOWN, NODES, PARTITIONS, ClusterBank, cluster_bank, wait_until

_NETWORK: Final = "10.213.47"
_PORT: Final = 6379
_UP: Final = "Ray runtime started."
"""What `ray start` prints once its node is up."""

_CUT_SHORT_S: Final = 20.0
_CUT_LONG_S: Final = 200.0
"""Longer than the minute after which a node ends that has learned that its head is gone; one that is cut off learns
nothing."""

_GIVEN_UP_S: Final = 60.0
_ENDED_S: Final = 90.0
_ROUNDS_MAX: Final = 20
_LOOK_S: Final = 0.05


class NetworkNodes(LocalNodes):
    """Nodes on machines of their own, as far as the network goes."""

    def __init__(self, wanted: LocalCluster, folder: Path) -> None:
        super().__init__(wanted, folder, remember=True)
        self._prefix = f"rayfold-{os.getpid()}"
        self._switch = f"{self._prefix}-switch"
        self._temporary = ""
        """Ray's own folder: a short path, for the sockets in it, and not that of other clusters of this machine."""

    def surroundings(self, number: int) -> dict[str, Any]:
        """What programs need to be on a node."""
        return {"within": self._within(number), "environment": {"RAY_TMPDIR": self._temporary}}

    def plug(self, number: int, what: str) -> None:
        """Have the cable of a node be `up` or `down`."""
        _ip("-n", self._switch, "link", "set", f"port{number}", what)

    def start(self) -> None:
        """One after the other: two that start at once choose the same name for their sockets."""
        for number in range(len(self.nodes)):
            self.start_node(number)

    def __enter__(self) -> Self:
        self._temporary = tempfile.mkdtemp(prefix="rft")
        try:
            self._lay_cables()
            super().__enter__()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        try:
            self.stop(grace_s=0)
        finally:
            for name in (self._switch, *map(self._space, range(len(self.nodes)))):
                with contextlib.suppress(subprocess.CalledProcessError):
                    _ip("netns", "del", name)
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _within(self, number: int) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self._space(number))

    def _space(self, number: int) -> str:
        return f"{self._prefix}-{number}"

    def _address(self, number: int) -> str:
        return f"{_NETWORK}.{number + 1}"

    def _lay_cables(self) -> None:
        switch = self._switch
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "type", "bridge")
        _ip("-n", switch, "link", "set", "switch", "up")
        for number in range(len(self.nodes)):
            space, port = self._space(number), f"port{number}"
            _ip("netns", "add", space)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("-n", switch, "link", "set", port, "master", "switch", "up")
            _ip("-n", space, "address", "add", f"{self._address(number)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", space, "link", "set", device, "up")

    def _spawn(self, number: int) -> None:
        node = self.nodes[number]
        verify_node(node.data, node.identity.node_id)
        self._end([node], grace_s=0)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        ensure_token(environment)
        head = f"{self._address(0)}:{_PORT}"
        where = ["--head", f"--port={_PORT}"] if number == 0 else [f"--address={head}"]
        own = [f"--node-ip-address={self._address(number)}", f"--node-name={node.name}"]
        own += ["--include-dashboard=false"] if number == 0 else []
        rayfold = [sys.executable, "-m", "rayfold.actors.cli", "node", f"--data={node.data}", f"--name={node.name}"]
        with (node.data / LOG).open("wb") as log:
            node.process = subprocess.Popen(
                [*self._within(number), *rayfold, f"--cpus={self.wanted.cpus}", *where, "--", *own],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**environment, "RAY_TMPDIR": self._temporary},
                start_new_session=True,
            )
        node.session = Session.led_by(node.process.pid, node.data)
        self.address = head

    def _await_up(self, node: LocalNode) -> None:
        said, end_s = "", time.monotonic() + START_TIMEOUT_S
        while _UP not in said:
            said = (node.data / LOG).read_text(errors="replace")
            if not node.alive or time.monotonic() > end_s:
                self._end([node], grace_s=0)
                raise Unavailable(f"{node.name} (data folder {node.data})", f"it does not come up: {said[-500:]}")
            time.sleep(_LOOK_S)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


# --- the scenario --------------------------------------------------------------------------------------------------


@scenario(
    "cut-off",
    "one node cut off from the network for 20 s, in the long form for 200 s, and healed",
    INVARIANTS_OF_CLUSTERS,
    counts="cut_off named",
    needs=("netns",),
    times=(90, 300, 3.0),
)
def cut_off(context: Context, findings: Findings) -> None:
    """Once for some seconds; in the long form again and again, for minutes."""
    given_up: list[float] = []
    nodes = NetworkNodes(LocalCluster(NODES, cpus=1), context.folder / "cluster")
    with cluster_bank(context, findings, nodes=nodes, surroundings=nodes.surroundings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            _cut_off(bank, nodes, context.rng.randrange(1, NODES), given_up)
    findings.note("given_up_s", given_up, "max")


def _cut_off(bank: ClusterBank, nodes: NetworkNodes, victim: int, given_up: list[float]) -> None:
    findings, node, affected = bank.findings, nodes.nodes[victim], bank.at_home_on(victim)
    others = [one for one in range(PARTITIONS) if one not in affected]
    began_s = time.monotonic()
    bank.note_fault(affected)
    nodes.plug(victim, "down")
    try:
        findings.count("cut_off")
        trouble = wait_until(lambda: bank.not_told(affected, NODE_IS_DOWN), began_s + _GIVEN_UP_S)
        findings.check("I12", not trouble, f"{node.name} is cut off, and {trouble}")
        findings.count("named", not trouble)
        given_up.append(time.monotonic() - began_s)
        bank.acknowledged(others, _GIVEN_UP_S)
        lasts_s = _CUT_SHORT_S if bank.context.short else _CUT_LONG_S
        time.sleep(max(0.0, began_s + lasts_s - time.monotonic()))
        bank.acknowledged(others, _GIVEN_UP_S)
    finally:
        nodes.plug(victim, "up")
    trouble = wait_until(lambda: "it has not ended" if node.alive else "", time.monotonic() + _ENDED_S)
    findings.check("I11", not trouble, f"{node.name} was given up, and is not cut off any more, and {trouble}")
    bank.replace_nodes([victim])  # its program is left, which may hang; of the node nothing should be
