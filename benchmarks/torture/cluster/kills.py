"""kill -9 on a cluster: of everything on a node, of single processes, and of the program that deploys.

What holds for all: only commands to the partitions that were killed wait, and after a while everything is as it was, by
itself: the node agent has its share, reads go through it, there is a supervisor, and no program that observes the
system starts any part of it. The program that has deployed the application is killed in every scenario with nodes as
soon as it has done so; here it is killed while it deploys new code, at three moments.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final

from ..contract import Context, Findings, scenario
from .harness import (
    HEAD,
    INVARIANTS_OF_CLUSTERS,
    NODES,
    PARTITIONS,
    RECOVERED_MAX_S,
    REPLICAS,
    ClusterBank,
    cluster_bank,
    wait_until,
)
from .program import Program, ProgramError

_KINDS: Final = ("SupervisorActor", "NodeAgent", "PartitionActor", "ProjectorActor", "AggregateActor")
_MOMENTS: Final = ("asked", "taken up", "ended")
"""Of a deployment: some time after it was asked for; the supervisor has the new plan, and replaces actors; at its
end."""

_DEPLOYING_S: Final = 3.0
"""About how long it takes to ship the code, to try it, and to start the supervisor again."""

_DEPLOYED_S: Final = 180.0
"""For a whole deployment."""

_ROUNDS_MAX: Final = 200


@scenario(
    "kill-nodes",
    "kill -9 of every process of a node, of one node after the other, each started again",
    INVARIANTS_OF_CLUSTERS,
    counts="nodes_killed replaced supervisors_revived",
    times=(60, 180, 3.0),
)
def kill_nodes(context: Context, findings: Findings) -> None:
    """One node after the other, the head included."""
    _kill(context, findings, lambda: [context.rng.choice([1, 2] if context.short else range(NODES))])


@scenario(
    "kill-head",
    "kill -9 of every process of the head, with Ray's own directory, started again",
    INVARIANTS_OF_CLUSTERS,
    counts="nodes_killed replaced supervisors_revived",
    times=(60, 180, 3.0),
)
def kill_head(context: Context, findings: Findings) -> None:
    """The head alone: while it is away nothing is started and nothing is found by name, and what runs goes on."""
    _kill(context, findings, lambda: [HEAD])


@scenario(
    "kill-all-nodes",
    "kill -9 of every process of all nodes at once; the deployed application resumes by itself",
    INVARIANTS_OF_CLUSTERS,
    counts="nodes_killed replaced supervisors_revived",
    times=(60, 120, 1),
)
def kill_all_nodes(context: Context, findings: Findings) -> None:
    """All at once, as when the power fails."""
    _kill(context, findings, lambda: range(NODES))


def _kill(context: Context, findings: Findings, next_victims: Callable[[], Iterable[int]]) -> None:
    away_s: list[float] = []
    with cluster_bank(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            victims, before = list(next_victims()), bank.ask("names")
            bank.note_fault(partition for victim in victims for partition in bank.at_home_on(victim))
            began_s = time.monotonic()
            bank.kill_nodes(victims)
            bank.start_nodes(victims)
            away_s.append(time.monotonic() - began_s)
            findings.count("nodes_killed", len(victims))
            bank.await_recovered()
            _note_replaced(before, bank.ask("names"), findings)
            bank.recover()
    findings.note("nodes_away_s", away_s, "p50")


def _note_replaced(before: dict[str, str], after: dict[str, str], findings: Findings) -> None:
    """What Ray has not started again by itself, and we have: another name, or another actor of the same name."""
    findings.count("replaced", len(before.keys() - after.keys()))
    findings.count("supervisors_revived", sum(before.get(name, actor) != actor for name, actor in after.items()))


# --- single processes -------------------------------------------------------------------------------------------------


@scenario(
    "kill-cluster-parts",
    "kill -9 of a supervisor, node agents, partitions, projectors and own actors of a cluster, one at a time",
    INVARIANTS_OF_CLUSTERS,
    times=(60, 120, 1),
)
def kill_cluster_parts(context: Context, findings: Findings) -> None:
    """One of each kind, on a node that is drawn; the long form again and again."""
    with cluster_bank(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            for kind in _KINDS:
                _kill_one(bank, kind)


def _kill_one(bank: ClusterBank, kind: str) -> None:
    def candidates() -> list[tuple[int, int]]:
        return [(number, pid) for number in range(NODES) for pid in bank.processes(f"ray::{kind}", number)]

    # own actors have to be there first, and there may be none just after their partition was killed
    wait_until(lambda: "" if candidates() else "there is none", time.monotonic() + RECOVERED_MAX_S)
    if not (chosen := candidates()):
        bank.findings.reach(False, f"there was no {kind} to be killed")
        return
    number, pid = bank.context.rng.choice(chosen)
    bank.note_fault(bank.at_home_on(number) if kind == "PartitionActor" else [])
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        bank.findings.count(f"killed {kind}")
    bank.await_recovered()


@scenario(
    "kill-deployer",
    "kill -9 of the program that deploys new code, at three moments, while programs that are connected by name go on",
    INVARIANTS_OF_CLUSTERS,
    counts="deployers_killed came_to_their_end had_not_begun taken_back",
    times=(90, 180, 1),
)
def kill_deployer(context: Context, findings: Findings) -> None:
    """At each moment once; the long form again and again."""
    with cluster_bank(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            for moment in _MOMENTS:
                _kill_deployer(bank, moment)
    findings.reach(findings.figures["came_to_their_end"] != 0, "no deployment came to its end")


def _kill_deployer(bank: ClusterBank, moment: str) -> None:
    findings, before = bank.findings, bank.ask("deployed")
    deployer, taken_back = bank.program_on(bank.context.rng.randrange(NODES)), False
    try:
        deployer.ask("join", RECOVERED_MAX_S)
        bank.note_fault(range(PARTITIONS))  # each is handed over to an actor with the new code
        deployer.begin("deploy", PARTITIONS, REPLICAS)
        if moment == "asked":
            time.sleep(bank.context.rng.random() * _DEPLOYING_S)
        elif moment == "taken up":
            trouble = wait_until(lambda: _not_taken_up(bank, before), time.monotonic() + RECOVERED_MAX_S)
            findings.check("I12", not trouble, trouble)
        else:
            taken_back = _taken_back(deployer)
            findings.count("taken_back", taken_back)
    finally:
        bank.end_program(deployer)
    findings.count("deployers_killed")
    bank.await_recovered()
    after = bank.ask("deployed")
    # one killed early has used up its number; one that is taken back leaves the code that was there before
    as_expected = after >= before if moment == "asked" or taken_back else after > before
    told = f"its deployer was killed ({moment}): generation {before} was deployed before, and now {after}"
    findings.check("I12", as_expected, told)
    findings.count("came_to_their_end" if after > before else "had_not_begun")


def _taken_back(deployer: Program) -> bool:
    """Wait for the end of a deployment; whether it was taken back. It is where an actor of it does not come up in time,
    which on a busy enough machine is not a fault: nothing has changed then."""
    try:
        deployer.answer(_DEPLOYED_S)
    except ProgramError as error:
        if error.kind != "Unavailable":
            raise
        return True
    return False


def _not_taken_up(bank: ClusterBank, before: int) -> str:
    generation = bank.ask("status")["generation"]
    return "" if generation > before else f"generation {generation} of the code is still the present one"
