"""Processes: how a class of processes is explored: with events, outcomes and time that Hypothesis makes.

Beside step [4] of the write path. Before it: `explore`. After it: a specification (`runtime/testing.py`), which runs
each step over the real write loop.

Rules checked here, after each step: no instance is parked; an input that comes again leaves nothing; the state is a
fold of the stream, also after a crash; each invariant holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

from hypothesis import strategies as st

from ..domain.messages import Event
from ..errors import InvalidMessage, RayfoldError
from ..processes.kinds import ACCEPTED, FAILED, REFUSED
from ..processes.process import Process
from ..testing import ProcessCase, given, holds, name_of
from .source import Source
from .specification import Case, chain, is_same_failure
from .strategies import Maker, Strategy
from .trial import Invariant, Tally

__all__ = ["ProcessExploration"]

_SECONDS: Final = (1, 60, 900, 3_600, 86_400, 2_592_000)
"""How much time may pass: timers are of seconds, minutes, hours, days."""

_REASON: Final = "refused"

_CALLS: Final = {ACCEPTED: "when_accepted", REFUSED: "when_refused", FAILED: "when_failed"}


class ProcessStep(NamedTuple):
    """One step of a trial."""

    kind: Literal["event", "outcome", "later", "again", "crash"]
    event: Event | None = None
    pick: int = 0
    """Of `outcome`: which of what was sent. Of `again`: which of the inputs."""
    result: int = ACCEPTED
    seconds: int = 0


class BrokenProcess(NamedTuple):
    """Something that has to be true is not. Has what `Broken` has (`trial.py`)."""

    kind: Literal["invariant", "handler", "state", "rayfold"]
    subject: str
    what: str
    done: tuple[ProcessStep | tuple[int, type[Any]], ...]
    """The events, outcomes by their command, and times until then."""
    error: BaseException | None = None

    @property
    def size(self) -> tuple[int, int]:
        """How much there is to read in it."""
        return len(self.done), len(repr(self.done))

    @property
    def about(self) -> tuple[str, str]:
        """The same for all that are the same mistake."""
        return self.kind, self.subject


class ProcessExploration:
    """The `Exploration` of a class of processes: of one instance."""

    def __init__(self, subject: type[Process], invariants: Sequence[Invariant], maker: Maker) -> None:
        """Raises `DefinitionError` if an event cannot be made."""
        self.tally = Tally(list(subject.reactions))
        self._subject, self._invariants = subject, invariants
        self._events = [maker.commands(reaction.event) for reaction in subject.reactions.values()]

    def steps(self, most: int) -> Strategy:
        """At most so many steps, with events that start an instance first, most of the time."""
        events = st.one_of(*self._events).map(lambda event: ProcessStep("event", event))
        picks = st.integers(0, 1_000)
        results = st.sampled_from([ACCEPTED, ACCEPTED, REFUSED, FAILED])
        outcomes = st.builds(lambda pick, result: ProcessStep("outcome", pick=pick, result=result), picks, results)
        times = st.sampled_from(_SECONDS).map(lambda seconds: ProcessStep("later", seconds=seconds))
        again = picks.map(lambda pick: ProcessStep("again", pick=pick))
        kinds = [events, events, outcomes, outcomes, outcomes, times, times, again, st.just(ProcessStep("crash"))]
        return st.lists(st.sampled_from(kinds).flatmap(lambda kind: kind), max_size=most)

    def run(self, steps: Sequence[ProcessStep]) -> BrokenProcess | None:
        """One trial: the first thing that was not true, or None."""
        self.tally.examples += 1
        return _Trial(self._subject, self._invariants, self.tally).run(steps)

    def simpler(self, steps: Sequence[ProcessStep]) -> Iterator[Sequence[ProcessStep]]:
        """The same with one step less."""
        for number in reversed(range(len(steps))):
            yield [*steps[:number], *steps[number + 1 :]]

    def printed(self, broken: BrokenProcess) -> str:
        """What was found, as a specification with its imports; or as its steps."""
        source = Source()
        source.names["given"] = given
        links = [f"given({source.name(self._subject)})", *(_link(source, step) for step in broken.done)]
        if broken.kind == "invariant":
            invariant = next(one for one in self._invariants if name_of(one) == broken.subject)
            links.append(f".then_holds({source.function(invariant)})")
        else:
            links.append(".then_goes_on()" if broken.kind == "handler" else ".after_crash()")
        case = Case(chain(links), source.names)
        surroundings: dict[str, Any] = {}
        for one in self._invariants:
            surroundings |= getattr(one, "__globals__", {})
        failure = case.failure(surroundings)
        if failure is not None and is_same_failure(broken.kind, broken.error, failure):
            return f"{case.imports}\n\n{case.text}"
        return f"no specification of it fails by itself. The steps were\n{case.text}"


def _link(source: Source, step: Any) -> str:
    if isinstance(step, ProcessStep):
        if step.kind == "later":
            return f".later(seconds={step.seconds})"
        return f".when({source.value(step.event)})"
    result, command = step
    more = f', "{_REASON}"' if result == REFUSED else ""
    return f".{_CALLS[result]}({source.name(command)}{more})"


class _Trial:
    """One instance."""

    def __init__(self, subject: type[Process], invariants: Sequence[Invariant], tally: Tally) -> None:
        self._subject, self._invariants, self._tally = subject, invariants, tally
        self._case: ProcessCase[Any] = given(subject)
        self._done: list[Any] = []

    def run(self, steps: Sequence[ProcessStep]) -> BrokenProcess | None:
        for step in steps:
            broken = self._take(step)
            if broken is not None:
                return broken
        return self._crash()

    def _take(self, step: ProcessStep) -> BrokenProcess | None:
        case = self._case
        if step.kind == "crash":
            return self._crash()
        if step.kind == "again":
            return self._again(step.pick)
        if step.kind == "event":
            if step.event is None:
                return None
            try:
                case.when(step.event)
            except InvalidMessage:  # nothing that a program could have stored
                return None
            except AssertionError as error:
                if "is for the instance" in str(error):  # of another instance
                    return None
                return BrokenProcess("handler", "state", str(error), (*self._done, step), error)
            self._tally.accepted[step.event.message_name] += 1
            self._done.append(step)
        elif step.kind == "later":
            case.later(seconds=step.seconds)
            self._done.append(step)
        else:
            self._outcome(step)
        return self._checked()

    def _outcome(self, step: ProcessStep) -> None:
        """What was sent is answered, with an outcome that the process has a method for, or that it may pass over."""
        waiting = self._case.commands_sent
        if not waiting:
            return
        command, compensates = waiting[step.pick % len(waiting)]
        result, methods = step.result, self._subject.outcome_methods
        takes = (result, command.message_name) in methods or (result, "") in methods
        if compensates or not takes:
            result = ACCEPTED
        if result == REFUSED:
            self._case.when_refused(command, _REASON)
        elif result == FAILED:
            self._case.when_failed(command)
        else:
            self._case.when_accepted(command)
        self._done.append((result, command))

    def _checked(self) -> BrokenProcess | None:
        process, done = self._case.process, tuple(self._done)
        if parked := process.progress.parked:
            subject = parked.partition(":")[0]
            return BrokenProcess("handler", subject, parked, done, self._case.error)
        if not process.version:
            return None
        for invariant in self._invariants:
            try:
                if holds(invariant, process):
                    continue
                what, error = "does not hold", None
            except Exception as raised:
                what, error = f"raised {type(raised).__name__}: {raised}", raised
            name = name_of(invariant)
            return BrokenProcess("invariant", name, f"{name} {what}\n  {process!r}", done, error)
        return None

    def _again(self, pick: int) -> BrokenProcess | None:
        """An input comes once more: it is a repeat, so nothing happens."""
        before = self._case.process.version
        self._case.give_again(pick)
        self._tally.repeated += 1
        if self._case.process.version != before:
            return BrokenProcess("rayfold", "repeat", "an input that came again was taken in again", tuple(self._done))
        return None

    def _crash(self) -> BrokenProcess | None:
        self._tally.crashes += 1
        try:
            self._case.after_crash()
        except (AssertionError, RayfoldError) as error:
            return BrokenProcess("state", "", str(error), tuple(self._done), error.__cause__)
        return None
