"""kill -9 of everything on a node: of one after the other, of the head, of all at once. Each is started again.

Rule kept here: nobody lends a hand. What was deployed goes on by itself once its nodes are back, and whoever looks at
it starts nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from .cluster_harness import INVARIANTS_OF_CLUSTERS, NODES, ClusterLiving, cluster_living
from .contract import Context, Findings, Scenario
from .local_harness import quantile

__all__ = ["SCENARIOS"]

ROUNDS_SHORT: Final = 1
ROUNDS_MAX: Final = 200

HEAD: Final = 0


def kill_nodes(context: Context) -> Findings:
    """One node after the other, the head included."""

    def next_ones(bank: ClusterLiving) -> Sequence[int]:
        return [context.rng.choice([1, 2] if context.short else range(NODES))]

    return _kill(context, next_ones)


def kill_head(context: Context) -> Findings:
    """The head alone: while it is away nothing is started and nobody is found by name, and what runs goes on."""
    return _kill(context, lambda _: [HEAD])


def kill_all_nodes(context: Context) -> Findings:
    """All at once, as when the power fails."""
    return _kill(context, lambda _: range(NODES))


def _kill(context: Context, next_ones: Callable[[ClusterLiving], Sequence[int]]) -> Findings:
    findings = Findings({"nodes_killed": 0, "replaced": 0, "supervisors_revived": 0})
    away_s: list[float] = []
    with cluster_living(context, findings) as bank:
        for _ in range(ROUNDS_SHORT if context.short else ROUNDS_MAX):
            victims, before = next_ones(bank), bank.the_hand().ask("names")
            bank.note_fault(partition for victim in victims for partition in bank.at_home_on(victim))
            began_s = time.monotonic()
            bank.kill_nodes(victims)
            bank.start_nodes(victims)
            away_s.append(time.monotonic() - began_s)
            findings.count("nodes_killed", len(victims))
            bank.await_recovered()
            _note_replaced(before, bank.the_hand().ask("names"), findings)
            bank.restart_programs()
            if context.left_s < 0:
                break
    away_s.sort()
    findings.figures["nodes_away_s_p50"] = quantile(away_s, 0.5)
    return findings


def _note_replaced(before: dict[str, str], after: dict[str, str], findings: Findings) -> None:
    """What Ray has not started again by itself, and we have: another name, or another actor of the same name."""
    findings.count("replaced", len(before.keys() - after.keys()))
    findings.count("supervisors_revived", sum(before.get(name, actor) != actor for name, actor in after.items()))


SCENARIOS: Final = (
    Scenario(
        "kill-nodes",
        "kill -9 of every process of a node, of one node after the other, each started again",
        kill_nodes,
        invariants=INVARIANTS_OF_CLUSTERS,
        short_s=60,
        long_s=180,
        weight=3.0,
    ),
    Scenario(
        "kill-head",
        "kill -9 of every process of the head, with Ray's own directory, started again",
        kill_head,
        invariants=INVARIANTS_OF_CLUSTERS,
        short_s=60,
        long_s=180,
        weight=3.0,
    ),
    Scenario(
        "kill-all-nodes",
        "kill -9 of every process of all nodes at once; the deployed application resumes by itself",
        kill_all_nodes,
        invariants=INVARIANTS_OF_CLUSTERS,
        short_s=60,
        long_s=120,
    ),
)
