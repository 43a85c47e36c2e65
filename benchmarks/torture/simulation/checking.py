"""Checking: the invariants, checked in the logs and in what every client was answered.

Rule kept here: the checker uses nothing that the parts under test report about themselves. It decodes every record,
folds the events with arithmetic of its own, and knows when each append took place from the disk's own book.
"""

from __future__ import annotations

from typing import NamedTuple

import msgpack

from rayfold.runtime.errors import Conflict, Rejected
from rayfold.runtime.log.format import decode_record
from rayfold.runtime.receipt import Receipt
from rayfold.runtime.stream import ANY, StreamId, partition_of

from ..contract import Findings
from .purses import InPurse
from .story import PARTITIONS, PURSES, Act
from .world import Sent, World

__all__ = ["check"]


class _Event(NamedTuple):
    """One event as it is in a log."""

    position: int
    purse: int
    version: int
    amount: int
    number: int
    """Of the act, from the command id."""
    at_s: float


class _State(NamedTuple):
    """A purse from a moment on."""

    from_s: float
    version: int
    money: int


def check(world: World) -> Findings:
    """Everything."""
    findings = Findings()
    events = [_walk(world, number, findings) for number in range(PARTITIONS)]
    acts = {act.number: act for act in world.story.acts}
    stored = _stored(events, acts, findings)
    states = _states(events)
    for sent in world.sent:
        _check_sent(sent, events, stored, states, findings)
    for refused in world.refused:
        what = f"command {refused.act.number} got {refused.error}, and is in the log"
        findings.check("I7", refused.act.number not in stored, what)
    for act in world.hanging:
        findings.violate("I12", f"number {act.number}, to {act.kind}, was never answered")
    _check_order(world, findings)
    _check_reads(world, events, findings)
    return findings


def _partition_of(purse: int) -> int:
    return partition_of(StreamId("Purse", f"purse-{purse}"), PARTITIONS)


def _walk(world: World, partition: int, findings: Findings) -> list[_Event]:
    """The events of a log, with positions, versions and epochs checked."""
    disk, epoch, versions = world.disks[partition], 0, dict.fromkeys(range(PURSES), 0)
    events: list[_Event] = []
    for committed in disk.committed:
        what = f"partition {partition}: epoch {committed.epoch} appended {committed.first} after epoch {epoch}"
        findings.check("I6", committed.epoch >= epoch, what)
        epoch = max(epoch, committed.epoch)
        for position in range(committed.first, committed.last + 1):
            stored = decode_record(disk.log.read(position - 1, 1)[0])
            purse = int(stored.stream.id.removeprefix("purse-"))
            versions[purse] += 1
            at = f"partition {partition}, event {position}"
            findings.check("I4", stored.position == position == len(events) + 1, f"{at} has {stored.position}")
            what = f"{at} is version {stored.version} of {stored.stream}, after {versions[purse] - 1}"
            findings.check("I3", stored.version == versions[purse], what)
            amount = msgpack.unpackb(stored.payload)["amount"] * (1 if stored.name == "PutIn" else -1)
            number = int.from_bytes(stored.command_id, "big")
            events.append(_Event(position, purse, stored.version, amount, number, committed.at_s))
    findings.check("I4", disk.log.head() == len(events), f"partition {partition}: {disk.log.head()} is not the end")
    return events


def _stored(events: list[list[_Event]], acts: dict[int, Act], findings: Findings) -> dict[int, _Event]:
    """The event of each command: one, and the one that was asked for."""
    stored: dict[int, _Event] = {}
    for event in (event for log in events for event in log):
        act = acts.get(event.number)
        asked = act is not None and act.purse == event.purse and act.amount == abs(event.amount)
        findings.check("I2", asked, f"event {event} belongs to no command that was sent")
        findings.check("I2", event.number not in stored, f"command {event.number} took effect twice: {event}")
        stored[event.number] = event
    return stored


def _states(events: list[list[_Event]]) -> dict[int, list[_State]]:
    """What was in each purse, from when on."""
    states = {purse: [_State(0.0, 0, 0)] for purse in range(PURSES)}
    for event in (event for log in events for event in log):
        before = states[event.purse][-1]
        states[event.purse].append(_State(event.at_s, event.version, before.money + event.amount))
    return states


def _check_sent(
    sent: Sent,
    events: list[list[_Event]],
    stored: dict[int, _Event],
    states: dict[int, list[_State]],
    findings: Findings,
) -> None:
    """What a client was answered must be in the log, or must have been true at some moment meanwhile."""
    act, outcome = sent.act, sent.outcome
    partition, event = _partition_of(act.purse), stored.get(act.number)
    if isinstance(outcome, Receipt):
        log = events[partition]
        there = log[outcome.position - 1] if 0 < outcome.position <= len(log) else None
        found = there is not None and (there.number, there.version) == (act.number, outcome.version)
        findings.check("I1", found, f"{outcome} for command {act.number}, but there the log has {there}")
        as_expected = sent.expected_version in (ANY, outcome.version - 1)
        what = f"command {act.number} expected version {sent.expected_version}, and made version {outcome.version}"
        findings.check("I8", as_expected, what)
    elif isinstance(outcome, Rejected | Conflict):
        findings.check("I7", event is None, f"command {act.number} got {outcome}, and is in the log: {event}")
        before = [state for state in states[act.purse] if state.from_s <= sent.began_s][-1:]
        meanwhile = [state for state in states[act.purse] if sent.began_s < state.from_s <= sent.ended_s]
        true_once = any(_refuses(state, sent) for state in [*before, *meanwhile])
        findings.check("I8", true_once, f"command {act.number} got {outcome}, which was true at no time meanwhile")
    if event is not None and act.kind == "take":
        money = states[act.purse][event.version].money
        findings.check("I5", money >= 0, f"purse {act.purse} was left with {money} by command {act.number}")


def _refuses(state: _State, sent: Sent) -> bool:
    if isinstance(sent.outcome, Conflict):
        return sent.expected_version not in (ANY, state.version)
    return sent.act.kind == "take" and sent.act.amount > state.money


def _check_order(world: World, findings: Findings) -> None:
    """What was acknowledged before another began has the lower version; and what one client sent first, too, as long
    as it did not have to send it again. A refusal whose answer is lost is decided again, after what was sent behind it:
    where answers get lost, on the way or with a process that is killed before it gives them, only the first holds,
    unless the command cannot be refused: nothing but a full disk refuses to put something into a purse."""
    done = [one for one in world.sent if isinstance(one.outcome, Receipt)]
    troubles = {fault.trouble for fault in world.story.faults}
    answered = not troubles & world.loses_answers
    refuses_nothing = "full disk" not in troubles
    for first in done:
        for second in done:
            if first.act.purse != second.act.purse or first is second:
                continue
            assert isinstance(first.outcome, Receipt)
            assert isinstance(second.outcome, Receipt)
            in_order = first.outcome.version < second.outcome.version
            if first.ended_s < second.began_s:
                what = f"command {first.act.number} was acknowledged before {second.act.number} began, and comes after"
                findings.check("I8", in_order, what)
            same = first.act.client == second.act.client and first.tries == second.tries == 1
            stays = answered or (refuses_nothing and first.act.kind == "put" and not first.act.careful)
            if stays and same and first.began_s < second.began_s:
                what = f"client {first.act.client} sent {first.act.number} before {second.act.number}: the wrong order"
                findings.check("I8", in_order, what)


def _check_reads(world: World, events: list[list[_Event]], findings: Findings) -> None:
    """Every answer is the fold of a prefix of the log, and of as much as was asked for."""
    for read in world.reads:
        partition = _partition_of(read.act.purse)
        seen = [event for event in events[partition] if event.position <= read.positions[partition]]
        expected = [event.amount for event in seen if event.purse == read.act.purse]
        what = f"query {read.act.number} was answered {read.movements} at {read.positions}, in the log it is {expected}"
        findings.check("I5", read.movements == expected, what)
        short = [number for number, position in read.after.items() if read.positions[number] < position]
        findings.check("I9", not short, f"query {read.act.number} after {read.after} was answered at {read.positions}")
    model, heads = world.projector.model, {number: len(log) for number, log in enumerate(events)}
    findings.check("I5", model.positions == heads, f"in the end the read model is at {model.positions}, not {heads}")
    for purse in range(PURSES):
        query = world.projector.handle("ask", InPurse(purse=f"purse-{purse}"), {})
        expected = [event.amount for event in events[_partition_of(purse)] if event.purse == purse]
        findings.check("I5", query[0] == expected, f"in the end purse {purse} is read as {query[0]}, not {expected}")
