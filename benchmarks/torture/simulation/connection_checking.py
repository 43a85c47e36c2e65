"""What is checked of simulated connections beside the log: how soon callers were answered, what both ends have read,
and that nothing is left waiting.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rayfold.actors.partition.socket_protocol import Request
from rayfold.runtime.encoding.frames import REQUEST
from rayfold.runtime.errors import Conflict, NotYetVisible, RayfoldError, Rejected, StorageFailed, Unavailable
from rayfold.runtime.receipt import Receipt

from ..contract import Findings
from . import query_world
from .checking import check
from .query_world import Answer, QueryWorld
from .socket_network import Link
from .socket_world import PROBE_S, SETTINGS, SocketWorld
from .world import ASK_TIMEOUT_S, Sent

__all__ = ["check_connections", "check_queries"]

LATER_S: Final = 0.06
"""How long after its deadline something is answered at the latest: what is due is looked for every 50 ms."""

HARMLESS: Final = frozenset({"connections cut", "server full", "moved", "own actor", "loading"})
"""Troubles that are over, for a command, long before its deadline."""

COMMAND_PROMPT_S: Final = 1.0
"""For a command when nothing is wrong any more: more than an attempt may take, and half of what a command may."""

QUERY_PROMPT_S: Final = 0.35
"""For a query when nothing is wrong: less than an attempt may take, so none had to be sent again."""

CUT_S: Final = 1.0
"""For a query when nothing but connections was cut: it is sent again at once, and never waits for an attempt's limit
and the next."""


def check_connections(world: SocketWorld) -> Findings:
    """Of commands over sockets."""
    findings = check(world)
    for sent in world.sent:
        _check_time(sent, findings)
        if {fault.trouble for fault in world.story.faults} <= HARMLESS:
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
        prompt = isinstance(outcome, Receipt) and took_s <= COMMAND_PROMPT_S
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


def check_queries(world: QueryWorld) -> Findings:
    """Of queries, and of what is broadcast to those that answer them."""
    findings = check(world)
    only_cut = {fault.trouble for fault in world.story.faults} <= {"connections cut"}
    for answer in world.answers:
        took_s = answer.ended_s - answer.began_s
        soon = not only_cut or (took_s <= CUT_S and not isinstance(answer.value, RayfoldError))
        what = f"query {answer.act.number} got {answer.value} after {took_s:.3f} s, though it was only cut off"
        findings.check("I12", soon, what)
        _check_answer(answer, findings, quiet=not world.story.faults or answer.began_s >= query_world.PROBE_S)
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
        prompt = not isinstance(value, RayfoldError) and took_s <= QUERY_PROMPT_S
        what = f"query {number} got {value} after {took_s:.3f} s, when nothing was wrong"
        findings.check("I12", prompt, what)
