"""Trial: steps over the real write loop and a log in memory, and after each what has to be true.

Beside step [4] of the write path. Before it: Hypothesis has made the steps (`aggregates.py`). After it: the first thing
that is wrong, as `Broken`, with what was done until then.

Rules checked here, after each step: a handler raises nothing but `Rejected`; a state equals a fold of its events, also
after a crash, with and without a snapshot; a command changes its own aggregate alone; a command that comes again is a
repeat; what is refused, fails, or is not appended stores nothing; each invariant holds.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple
from uuid import UUID

from ..checks.standing import copied, folded, unlike_its_fold
from ..domain.aggregate import Aggregate
from ..domain.difference import difference
from ..domain.messages import Command, Event
from ..encoding.catalogue import Catalogue
from ..encoding.envelope import Envelope, PackedCommand, pack
from ..encoding.outcome import Outcome
from ..errors import CallerError, HandlerFailed, RayfoldError, Rejected, StorageFailed
from ..log.contract import Append, Appended
from ..log.format import decode_record
from ..log.memory import MemoryLog
from ..printable import printable_log
from ..receipt import Receipt
from ..stream import StreamId
from ..testing import holds, name_of
from ..user_code import cause_of, class_name
from ..write.residents import SavedResident
from ..write.write_loop import WriteLoop

__all__ = ["Broken", "Done", "Invariant", "Step", "Tally", "Trial", "without_logs"]

Invariant = Callable[[Any], object]
"""A function of an aggregate that returns something false, or raises, if it is violated. None is true."""


class Step(NamedTuple):
    """One step of a trial."""

    kind: Literal["send", "send again", "save", "crash"]
    id: str = ""
    command: Command | None = None
    lost: bool = False
    """Of `send`: at the first attempt the append fails, and the command is sent again. Of `crash`: the saved states are
    lost too."""
    pick: int = 0
    """Of `send again`: which of the commands that took effect."""


class Done(NamedTuple):
    """A command that was sent, and what became of it."""

    id: str
    command: Command
    outcome: tuple[Event, ...] | Rejected
    version: int
    """Of the aggregate before it."""
    has_outputs: bool = False
    """Whether it may have led to more than events."""


class Tally:
    """What was done in all trials of a run."""

    def __init__(self, commands: Sequence[str]) -> None:
        self.accepted = Counter[str](dict.fromkeys(commands, 0))
        self.refused = Counter[str](dict.fromkeys(commands, 0))
        self.examples = self.repeated = self.crashes = 0


class Broken(Exception):  # noqa: N818 - a signal inside this room, not an error
    """Something that has to be true is not."""

    def __init__(
        self,
        kind: Literal["invariant", "handler", "state", "rayfold"],
        subject: str,
        what: str,
        trial: Trial,
        id: str,
        *,
        command: Command | None = None,
        error: BaseException | None = None,
    ) -> None:
        """`subject`: what it is about, the name of a handler or invariant for instance: one thing that is wrong is made
        smaller and not exchanged for another. `command`: the one that failed, which is not among what was done."""
        super().__init__(kind, subject, what)
        self.kind, self.subject, self.what = kind, subject, what
        self.done, self.id, self.command, self.error = tuple(trial.done), id, command, error

    def invariant(self, invariants: Sequence[Invariant]) -> Invariant:
        """Which of them does not hold."""
        return next(one for one in invariants if name_of(one) == self.subject)

    @property
    def size(self) -> tuple[int, int]:
        """How much there is to read in it."""
        return len(self.done), len(repr(self.done))

    @property
    def about(self) -> tuple[str, str]:
        """The same for all that are the same mistake."""
        return self.kind, self.subject


class _Log(MemoryLog):
    """One that can refuse an append, as a full disk does."""

    def __init__(self) -> None:
        super().__init__()
        self.full = False

    def append(self, epoch: int, appends: Sequence[Append]) -> list[Appended]:
        """Once `full` is set, the next one fails."""
        if self.full:
            self.full = False
            raise StorageFailed("disk", "no space left")
        return super().append(epoch, appends)


class Trial:
    """Aggregates of one class over one log."""

    def __init__(
        self, subject: type[Aggregate], catalogue: Catalogue, invariants: Sequence[Invariant], tally: Tally, often: bool
    ) -> None:
        """`often`: fold after each step, not only after a crash and at the end. A fold may hide what instances have in
        common, since it makes one more of them."""
        self.done: list[Done] = []
        self._often = often
        self._subject, self._catalogue, self._invariants, self._tally = subject, catalogue, invariants, tally
        self._log = _Log()
        self._taken: list[tuple[PackedCommand, Receipt]] = []
        self._sent = 0
        self._kept: dict[str, Aggregate] = {}
        """A copy of each state that exists, as the last step has left it."""
        self._saved: list[SavedResident] = []
        self._loop = self._started()

    def take(self, step: Step) -> None:
        """One step. Raises `Broken`."""
        if step.kind == "send":
            self._send(step)
        elif step.kind == "send again":
            self._send_again(step.pick)
        elif step.kind == "save":
            self._saved = self._loop.residents.saved(0)
        else:
            self._crash(lost=step.lost)

    def end(self) -> None:
        """What has to be true at the end, of every aggregate. Raises `Broken`."""
        for id in self._kept:
            self._check_fold(id, self._resident(id), "")
        self._crash(lost=False)

    # Steps ------------------------------------------------------------------------------------------------------------

    def _send(self, step: Step) -> None:
        assert step.command is not None  # a step of this kind has one
        self._sent += 1
        try:
            packed, _ = pack(Envelope(self._subject, step.id, step.command, UUID(int=self._sent)))
        except CallerError:  # nothing that a program could send
            return
        head, before = self._log.head(), self._version(step.id)
        if step.lost:
            self._log.full = True
            self._execute(packed)
            self._log.full = False
            if self._log.head() != head:
                raise Broken(
                    "rayfold", "append", f"an append of {step.command!r} failed, and stored events", self, step.id
                )
        outcome = self._execute(packed)
        if isinstance(outcome, Receipt):
            events = self._events_since(head)
            self.done.append(Done(step.id, step.command, events, before, self._subject.has_outputs))
            self._tally.accepted[step.command.message_name] += 1
            if events:
                self._taken.append((packed, outcome))
        else:
            self._check_refused(step, outcome, head, before)
        self._check_states(step.id, "")
        self._check_invariants(step.id)

    def _check_refused(self, step: Step, outcome: Outcome, head: int, before: int) -> None:
        """A refusal, or a failure: which one may be, and that nothing was stored."""
        assert step.command is not None  # a step of this kind has one
        if self._log.head() != head:
            raise Broken("rayfold", "refusal", f"{step.command!r} was refused, and stored events", self, step.id)
        if not isinstance(outcome, Rejected):
            assert not isinstance(outcome, Receipt)
            cause = cause_of(outcome)
            subject = f"{outcome.handler if isinstance(outcome, HandlerFailed) else ''} {class_name(cause)}"
            raise Broken("handler", subject, str(outcome), self, step.id, command=step.command, error=cause)
        self.done.append(Done(step.id, step.command, outcome, before))
        self._tally.refused[step.command.message_name] += 1

    def _send_again(self, pick: int) -> None:
        """A command comes once more, as after a lost answer: it has taken effect, so nothing happens."""
        if not self._taken:
            return
        packed, first = self._taken[pick % len(self._taken)]
        head = self._log.head()
        outcome = self._execute(packed)
        if outcome != first._replace(repeated=True) or self._log.head() != head:
            what = f"{packed.name} was sent again, and its outcome was {outcome!r}"
            raise Broken("rayfold", "repeat", what, self, packed.stream.id)
        self._tally.repeated += 1
        self._check_states(packed.stream.id, "after a command that came again")

    def _crash(self, *, lost: bool) -> None:
        """The process ends, and the next one folds the log, or begins with the states that were saved."""
        self._loop = self._started()
        if not lost:
            self._loop.residents.offer(self._saved)
        self._tally.crashes += 1
        saved = "" if lost or not self._saved else ", folded from a saved state"
        for id in self._kept:
            self._check_fold(id, self._resident(id), f"after a crash{saved}")

    def _started(self) -> WriteLoop:
        loop = WriteLoop(0, self._log, self._catalogue)
        loop.activate()
        return loop

    def _execute(self, packed: PackedCommand) -> Outcome:
        (outcome,) = self._loop.execute([packed]).outcomes
        return outcome

    # What has to be true ----------------------------------------------------------------------------------------------

    def _check_states(self, id: str, when: str) -> None:
        """That the states of the others are as they were, and that of this aggregate is a fold of its events."""
        for other, kept in self._kept.items():
            if other != id and (what := difference(kept, self._resident(other))):
                name = self._subject.aggregate_type
                raise Broken("state", "", f"what became of {name}/{id} has changed {name}/{other}: {what}", self, other)
        resident = self._resident(id)
        if resident.version:
            if self._often:
                self._check_fold(id, resident, when)
            copy_of = copied(resident)
            if copy_of is not None:
                self._kept[id] = copy_of

    def _check_fold(self, id: str, resident: Aggregate, when: str) -> None:
        stream = StreamId(self._subject.aggregate_type, id)

        def fold() -> Aggregate:
            return folded(self._catalogue, self._log, stream, resident.version)

        try:
            what = unlike_its_fold(resident, fold)
            if not what and id in self._kept and self._kept[id].version == resident.version:
                what = difference(self._kept[id], resident)
        except RayfoldError as error:
            raise Broken("state", "", f"it cannot be folded: {error}", self, id, error=error.__cause__) from error
        if what:
            where = f"{stream} at version {resident.version} {when}".rstrip()
            raise Broken("state", "", f"{where} is not the fold of its events: {what}", self, id)

    def _check_invariants(self, id: str) -> None:
        resident = self._resident(id)
        if not resident.version:
            return
        for invariant in self._invariants:
            aggregate = copied(resident)
            if aggregate is None:
                aggregate = resident
            try:
                if holds(invariant, aggregate):
                    continue
                what, error = "does not hold", None
            except Exception as raised:
                what, error = f"raised {type(raised).__name__}: {raised}", raised
            name = name_of(invariant)
            raise Broken("invariant", name, f"{name} {what}\n  {resident!r}", self, id, error=error)

    def _resident(self, id: str) -> Aggregate:
        """The state that the next command would be decided on. It stays where it is."""
        stream = StreamId(self._subject.aggregate_type, id)
        try:
            resident = self._loop.residents.check_out(stream)
        except RayfoldError as error:
            raise Broken("state", "", f"it cannot be folded: {error}", self, id, error=error.__cause__) from error
        self._loop.residents.put_back(resident, stream)
        return resident

    def _version(self, id: str) -> int:
        return self._log.version(StreamId(self._subject.aggregate_type, id))

    def _events_since(self, head: int) -> tuple[Event, ...]:
        records = self._log.read(head, 1 << 20)
        return tuple(self._catalogue.decode_event(decode_record(record)) for record in records)


@contextmanager
def without_logs() -> Iterator[None]:
    """Without what this thread would log of failing handlers: what is found is reported once, and made smaller in
    hundreds of attempts."""
    this_thread = threading.get_ident()

    def passes(record: logging.LogRecord) -> bool:
        return record.thread != this_thread

    logger = printable_log(WriteLoop.__module__)
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)
