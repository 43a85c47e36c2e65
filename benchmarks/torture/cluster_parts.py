"""kill -9 of single processes of a cluster: supervisors, keepers, partitions, projectors, own actors, one by one.

What holds for all: only who sends to the partition that was killed waits, and after a while everything is as it was:
the keeper has its share, reads go through it, somebody supervises.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Final

from .cluster_living import INVARIANTS_OF_CLUSTERS, NODES, ClusterLiving, cluster_living
from .contract import Context, Findings, Scenario

__all__ = ["SCENARIOS"]

_KINDS: Final = ("SupervisorActor", "KeeperActor", "PartitionActor", "ProjectorActor", "AggregateActor")
_ROUNDS_MAX: Final = 100


def kill_cluster_parts(context: Context) -> Findings:
    """One of each kind, on a node that is drawn; the long form again and again."""
    findings = Findings()
    with cluster_living(context, findings) as bank:
        for _ in range(1 if context.short else _ROUNDS_MAX):
            for kind in _KINDS:
                _kill_one(bank, kind)
            if context.left_s < 0:
                break
    return findings


def _kill_one(bank: ClusterLiving, kind: str) -> None:
    candidates = [(number, pid) for number in range(NODES) for pid in bank.processes(f"ray::{kind}", number)]
    if not candidates:  # own actors have to be there first, and there may be none just after their partition was killed
        return
    number, pid = bank.context.rng.choice(candidates)
    bank.note_fault(bank.at_home_on(number) if kind == "PartitionActor" else [])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        bank.findings.count(f"killed {kind}")
    bank.await_recovered()


SCENARIOS: Final = (
    Scenario(
        "kill-cluster-parts",
        "kill -9 of a supervisor, keepers, partitions, projectors and own actors of a cluster, one at a time",
        kill_cluster_parts,
        invariants=INVARIANTS_OF_CLUSTERS,
        short_s=30,
        long_s=120,
    ),
)
