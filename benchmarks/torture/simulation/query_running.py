"""Query running: stories of queries over sockets one after the other, what is checked in each, and the shortest that
fails.

`python -m rayfold.benchmarks.torture.simulation.query_running SEED [COUNT]` runs the stories of some seeds by
themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

from rayfold.runtime.errors import NotYetVisible, RayfoldError, Unavailable

from ..contract import Findings
from .checking import check
from .clock import simulate
from .query_world import PROBE_S, Answer, QueryBuild, QueryWorld, draw_query_story
from .running import Failure, first_failure, run_from_command_line
from .socket_network import SocketLoop
from .story import Story
from .world import ASK_TIMEOUT_S

__all__ = ["find_query_failure", "run_query_story"]

REAL: Final = QueryBuild()

LATER_S: Final = 0.06
"""How long after its deadline a query is answered at the latest: what is due is looked for every 50 ms."""

PROMPT_S: Final = 0.35
"""For a query when nothing is wrong: less than an attempt may take, so none had to be sent again."""

CUT_S: Final = 1.0
"""For a query when nothing but connections was cut: it is sent again at once, and never waits for an attempt's limit
and the next."""


def run_query_story(story: Story, build: QueryBuild = REAL) -> Findings:
    """One story, from an empty log to rest, and what is wrong afterwards."""
    world = QueryWorld(story, build)
    simulate(world.run(), SocketLoop)
    findings = check(world)
    only_cut = {fault.trouble for fault in story.faults} <= {"connections cut"}
    for answer in world.answers:
        took_s = answer.ended_s - answer.began_s
        soon = not only_cut or (took_s <= CUT_S and not isinstance(answer.value, RayfoldError))
        what = f"query {answer.act.number} got {answer.value} after {took_s:.3f} s, though it was only cut off"
        findings.check("I12", soon, what)
        _check_answer(answer, findings, quiet=not story.faults or answer.began_s >= PROBE_S)
    links = [link for process in world.processes for link in process.links.links]
    for link in links:
        findings.check("I4", not link.refused, f"a partition's connection was ended for {link.refused}")
    findings.count("broadcasts", sum(link.received for link in links))
    if not world.reads_logs:
        what = f"of what was committed the projector was never sent this much, by partition: {world.behind}"
        findings.check("I5", not any(world.behind.values()), what)
    parked, pending = world.left
    findings.check("I11", parked == 0, f"in the end {parked} queries are parked")
    findings.check("I11", not any(pending), f"in the end the clients keep {pending} queries")
    return findings


def _check_answer(answer: Answer, findings: Findings, *, quiet: bool) -> None:
    """No caller waits past a deadline, gets `Unavailable` before it, or waits long when nothing is wrong."""
    number, value, took_s = answer.act.number, answer.value, answer.ended_s - answer.began_s
    findings.check("I12", took_s <= ASK_TIMEOUT_S + LATER_S, f"query {number} took {took_s:.3f} s")
    known = not isinstance(value, RayfoldError) or isinstance(value, NotYetVisible | Unavailable)
    findings.check("I5", known, f"query {number} got {value}")
    if isinstance(value, RayfoldError):
        findings.check("I7", took_s >= ASK_TIMEOUT_S, f"query {number} got {value} after {took_s:.3f} s")
    if quiet:
        prompt = not isinstance(value, RayfoldError) and took_s <= PROMPT_S
        what = f"query {number} got {value} after {took_s:.3f} s, when nothing was wrong"
        findings.check("I12", prompt, what)


def find_query_failure(seeds: Iterable[int], build: QueryBuild = REAL, total: Findings | None = None) -> Failure | None:
    """The first story among these seeds that fails, made short; None if none does."""
    return first_failure(map(draw_query_story, seeds), partial(run_query_story, build=build), total)


if __name__ == "__main__":
    run_from_command_line(find_query_failure)
