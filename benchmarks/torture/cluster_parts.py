"""kill -9 of single processes of a cluster: supervisors, keepers, partitions, projectors, own actors; and of whoever
deploys.

What holds for all: only who sends to the partition that was killed waits, and after a while everything is as it was:
the keeper has its share, reads go through it, somebody supervises. Whoever has deployed the application is killed in
every scenario with nodes as soon as it has done so; here it is killed while it deploys new code, at three moments.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Final

from .cluster_harness import (
    INVARIANTS_OF_CLUSTERS,
    NODES,
    PARTITIONS,
    RECOVERED_MAX_S,
    REPLICAS,
    ClusterLiving,
    cluster_living,
    wait_until,
)
from .cluster_programs import Program, Told
from .contract import Context, Findings, Scenario

__all__ = ["SCENARIOS"]

_KINDS: Final = ("SupervisorActor", "NodeAgent", "PartitionActor", "ProjectorActor", "AggregateActor")
_MOMENTS: Final = ("asked", "taken up", "ended")
"""Of a deployment: some time after it was asked for; the supervisor has the new plan, and replaces actors; at its
end."""

_DEPLOYING_S: Final = 3.0
"""About how long it takes to ship the code, to try it, and to start the supervisor again."""

_DEPLOYED_S: Final = 180.0
"""For a whole deployment."""

_ROUNDS_MAX: Final = 100


def kill_cluster_parts(context: Context) -> Findings:
    """One of each kind, on a node that is drawn; the long form again and again."""
    findings = Findings()
    with cluster_living(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            for kind in _KINDS:
                _kill_one(bank, kind)
    return findings


def _kill_one(bank: ClusterLiving, kind: str) -> None:
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


def kill_deployer(context: Context) -> Findings:
    """At each moment once; the long form again and again."""
    findings = Findings({"deployers_killed": 0, "came_to_their_end": 0, "had_not_begun": 0, "taken_back": 0})
    with cluster_living(context, findings) as bank:
        for _ in context.rounds(_ROUNDS_MAX):
            for moment in _MOMENTS:
                _kill_deployer(bank, moment)
    findings.reach(findings.figures["came_to_their_end"] != 0, "no deployment came to its end")
    return findings


def _kill_deployer(bank: ClusterLiving, moment: str) -> None:
    findings, before = bank.findings, bank.the_hand().ask("deployed")
    deployer, taken_back = bank.program_on(bank.context.rng.randrange(NODES)), False
    try:
        deployer.ask("join", RECOVERED_MAX_S)
        bank.note_fault(range(PARTITIONS))  # each is handed over to an actor with the new code
        deployer.tell("deploy", PARTITIONS, REPLICAS, bank.local_sockets)
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
    after = bank.the_hand().ask("deployed")
    # one killed early has used up its number; one that is taken back leaves the code that was there before
    as_expected = after >= before if moment == "asked" or taken_back else after > before
    told = f"its deployer was killed ({moment}): generation {before} was deployed before, and now {after}"
    findings.check("I12", as_expected, told)
    findings.count("came_to_their_end" if after > before else "had_not_begun")


def _taken_back(deployer: Program) -> bool:
    """Wait for the end of a deployment. It is taken back, and says so, where an actor of it does not come up in time,
    which on a busy enough machine is no fault: nothing has changed then."""
    try:
        deployer.answer(_DEPLOYED_S)
    except Told as error:
        if error.kind != "Unavailable":
            raise
        return True
    return False


def _not_taken_up(bank: ClusterLiving, before: int) -> str:
    generation = bank.the_hand().ask("status")["generation"]
    return "" if generation > before else f"generation {generation} of the code is still the present one"


SCENARIOS: Final = (
    Scenario(
        "kill-cluster-parts",
        "kill -9 of a supervisor, keepers, partitions, projectors and own actors of a cluster, one at a time",
        kill_cluster_parts,
        invariants=INVARIANTS_OF_CLUSTERS,
        short_s=60,
        long_s=120,
    ),
    Scenario(
        "kill-deployer",
        "kill -9 of whoever deploys new code, at three moments, while programs that are connected by name go on",
        kill_deployer,
        invariants=INVARIANTS_OF_CLUSTERS,
        short_s=90,
        long_s=180,
    ),
)
