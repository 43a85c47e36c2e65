"""What has to hold of processes, found by walking the logs of a store that has come to rest.

Beside `checking.py`. Nothing of a courier or an agenda is used: only what is stored, record by record.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from rayfold.runtime.log.contract import StoredEvent
from rayfold.runtime.processes.stored_step import StoredStep, step_in
from rayfold.runtime.store.readable_store import ReadableStore
from rayfold.runtime.stream import REFUSALS, StreamId

from .checking import stored_events
from .contract import Findings


@dataclass(slots=True)
class ProcessWalk:
    """What the logs hold of processes."""

    events: list[StoredEvent] = field(default_factory=list)
    """Of ordinary aggregates."""
    steps: list[StoredStep] = field(default_factory=list)
    executed: Counter[bytes] = field(default_factory=Counter)
    """Command id -> appends that have it."""
    refused: Counter[bytes] = field(default_factory=Counter)
    """Command id -> refusals and other outcomes that are kept under it."""
    recorded_us: dict[tuple[StreamId, int], int] = field(default_factory=dict)
    """When each step was recorded."""
    armed: dict[tuple[StreamId, str, int], int] = field(default_factory=dict)
    """Stream, timer and arming -> when it is due."""

    @classmethod
    def of(cls, store: ReadableStore) -> ProcessWalk:
        """Read all of the logs."""
        walk = cls()
        for events in stored_events(store).values():
            last = b""
            for event in events:
                walk._note(event, first=event.command_id != last)
                last = event.command_id
        return walk

    def _note(self, event: StoredEvent, *, first: bool) -> None:
        if event.stream == REFUSALS:
            self.refused[event.command_id] += 1
        elif first:
            self.executed[event.command_id] += 1
        step = step_in(event)
        if step is None:
            self.events.append(event)
            return
        self.steps.append(step)
        self.recorded_us[step.stream, step.version] = event.recorded_at_us
        for timer in step.timers:
            self.armed[step.stream, timer.name, step.version] = timer.due_us


def check_processes(walk: ProcessWalk, findings: Findings, reacted_to: str) -> None:
    """I13 and I14 but for what is the domain's own. `reacted_to`: the name of the events that are inputs."""
    inputs = Counter(step.input_id for step in walk.steps if step.input_id and not step.waits)
    for input_id, count in inputs.items():
        findings.check("I13", count == 1, f"input {input_id.hex()} was taken in {count} times")
    begun = Counter(step.stream.id for step in walk.steps if step.answered is None and step.fired is None)
    for event in walk.events:
        if event.name == reacted_to:
            holds = begun[event.stream.id] == 1
            findings.check("I13", holds, f"{event.stream} was reacted to {begun[event.stream.id]} times")
    told = Counter((step.stream, step.answered) for step in walk.steps if step.answered is not None)
    for step in walk.steps:
        for sent in step.sends:
            times = walk.executed[sent.send_id] + walk.refused[sent.send_id]
            what = f"{step.stream} sent {sent.name} to {sent.stream}"
            findings.check("I13", times == 1, f"{what}: executed or refused {times} times")
            outcomes = told[step.stream, sent.number]
            findings.check("I13", outcomes == 1, f"{what}: it has {outcomes} outcomes")
        if step.fired is not None:
            due_us = walk.armed.get((step.stream, *step.fired))
            at_us = walk.recorded_us[step.stream, step.version]
            early = due_us is None or at_us < due_us
            findings.check("I14", not early, f"{step.stream}: timer {step.fired} fired at {at_us}, due {due_us}")
