"""Socket running: stories of connections one after the other, what is checked in each, and the shortest that fails.

`python -m rayfold.benchmarks.torture.simulation.socket_running SEED [COUNT]` runs the stories of some seeds by
themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Final

from rayfold.actors.partition.socket_protocol import Request
from rayfold.runtime.encoding.frames import REQUEST
from rayfold.runtime.errors import Conflict, Rejected, StorageFailed, Unavailable
from rayfold.runtime.receipt import Receipt

from ..contract import Context, Findings, scenario
from .checking import check
from .clock import simulate
from .query_running import find_query_failure
from .running import Failure, first_failure, run_from_command_line, run_rounds
from .socket_network import Link, SocketLoop
from .socket_world import PROBE_S, SETTINGS, SocketBuild, SocketWorld, draw_socket_story
from .story import Story
from .world import Sent

__all__ = ["find_socket_failure", "run_socket_story"]

SHORT_STORIES: Final = 100
REAL: Final = SocketBuild()
LATER_S: Final = 0.06
"""How long after its deadline a command is answered at the latest: what is due is looked for every 50 ms."""

HARMLESS: Final = frozenset({"connections cut", "server full", "moved", "own actor", "loading"})
"""Troubles that are over, for a command, long before its deadline."""

PROMPT_S: Final = 1.0
"""For a command when nothing is wrong any more: more than an attempt may take, and half of what a command may."""


def run_socket_story(story: Story, build: SocketBuild = REAL) -> Findings:
    """One story, from an empty log to rest, and what is wrong afterwards."""
    world = SocketWorld(story, build)
    simulate(world.run(), SocketLoop)
    findings = check(world)
    for sent in world.sent:
        _check_time(sent, findings)
        if {fault.trouble for fault in story.faults} <= HARMLESS:
            what = f"command {sent.act.number} was sent {sent.tries} times, though nothing kept it for long"
            findings.check("I12", sent.tries == 1, what)
    for link in world.links:
        _check_link(link, findings)
    for number, router in enumerate(world.routers):
        left = len(router._routing.pending)
        findings.check("I11", left == 0, f"in the end client {number} still keeps {left} commands")
    return findings


def _check_time(sent: Sent, findings: Findings) -> None:
    """No caller waits past a deadline, gets `Unavailable` before it, or waits long when nothing is wrong."""
    act, outcome, took_s = sent.act, sent.outcome, sent.ended_s - sent.began_s
    known = isinstance(outcome, Receipt | Rejected | Conflict | StorageFailed | Unavailable)
    findings.check("I6", known, f"command {act.number} got {outcome}, which is for the router alone")
    limit_s = sent.tries * (SETTINGS.timeout_s + LATER_S)
    findings.check("I12", took_s <= limit_s, f"command {act.number} took {took_s:.3f} s, over {limit_s} s")
    if isinstance(outcome, Unavailable):
        early = took_s < sent.tries * SETTINGS.timeout_s
        findings.check("I7", not early, f"command {act.number} got {outcome} after {took_s:.3f} s")
    if sent.began_s >= PROBE_S:
        prompt = isinstance(outcome, Receipt) and took_s <= PROMPT_S
        what = f"command {act.number} got {outcome} after {took_s:.3f} s, when nothing was wrong any more"
        findings.check("I12", prompt, what)


def _check_link(link: Link, findings: Findings) -> None:
    """Each end reads a beginning of what the other has written, frame by frame, and finds no fault with it."""
    made_of_it = [
        REQUEST.pack(len(one.batch), one.client, one.attempt, one.predecessor) + one.batch for one in link.requests
    ]
    for name, written, read in (("requests", link.sent, made_of_it), ("answers", link.answered, link.client.answers)):
        same = list(read) == list(written[: len(read)])
        findings.check("I4", same, f"a connection's {name} are {_short(read)} at the other end of {_short(written)}")
    for refused in (link.client.refused, link.server.refused):
        findings.check("I4", not refused, f"a connection was ended for {refused}")


def _short(frames: Iterable[bytes | tuple[int, bytes] | Request]) -> str:
    return ", ".join(str(frame)[:60] for frame in list(frames)[-3:])


def find_socket_failure(
    seeds: Iterable[int], build: SocketBuild = REAL, total: Findings | None = None
) -> Failure | None:
    """The first story among these seeds that fails, made short; None if none does."""
    return first_failure(map(draw_socket_story, seeds), partial(run_socket_story, build=build), total)


@scenario(
    "connections",
    "sockets cut within a frame, late and in pieces, partitions and projectors that end and move, in simulated time",
    "I1 I2 I3 I4 I5 I6 I7 I8 I9 I11 I12",
    times=(6.0, 30.0, 1),
)
def simulated_connections(context: Context, findings: Findings) -> None:
    """Stories of this seed and of those after it, of commands and of queries, until one fails."""

    def find(seeds: Iterable[int], *, total: Findings | None) -> Failure | None:
        both = list(seeds)
        return find_socket_failure(both, total=total) or find_query_failure(both, total=total)

    run_rounds(context, findings, find, SHORT_STORIES)


if __name__ == "__main__":
    run_from_command_line(find_socket_failure)
