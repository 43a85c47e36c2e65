"""WriteLoop: a batch of commands in, one outcome for each out, with everything acknowledged on disk.

Step [4] of the write path. Before it: `actors/partition/actor.py` (or `actors/partition/own_actor.py`) hands over a
batch that came through Ray. After it: `runtime/log/writer.py` appends, and the broadcast sends out what was stored.

The whole loop on one screen, `execute`: dedupe, decide, append, adopt. It is plain Python over a `Log`, so it runs
the same in a partition's actor, in the own actor of one aggregate (whose log is its partition, over Ray), and in a
test over memory.

Rules kept here:
- append, then adopt: an aggregate is checked out while the batch works on it and put back after the commit; if
  the append fails, what was decided is forgotten and reloaded from the log
- a command id takes effect at most once: a repeat gets the first receipt, regardless of its expected version
- a refusal of a decisive command is stored under its id before the caller gets it, and every repeat gets the same
- outcomes are values, item by item: a rejected or failing command never fails its neighbours, and commands to one
  aggregate in one batch see each other's effects
- a state is the fold of the log: an event is decoded before it is appended and must come back equal, and what readers
  will see is what the state is evolved with; a decide handler that changes the state is found (see `purity.py`)
- a handler that raises is an error to that caller only, and nothing of it is stored
- what the log refuses for one command's sake is decided again in halves, until that command stands alone
- a loop that was fenced off returns only that: its residents may be old, so its refusals are worth nothing
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple
from weakref import ref

from ..domain.aggregate import Aggregate, outcome_of
from ..domain.messages import Command, Event
from ..encoding.catalogue import Catalogue
from ..encoding.codec import decode_message, encode_checked
from ..encoding.content import old_payloads
from ..encoding.envelope import DIGEST_BYTES, FINAL, PackedCommand
from ..encoding.facts import as_answered
from ..encoding.outcome import Outcome
from ..encoding.outputs import OutputsTooLarge, outputs_header
from ..encoding.saved_state import checked_state, state_fingerprint
from ..errors import (
    CallerError,
    CommandIdReused,
    Conflict,
    Damaged,
    Fenced,
    HandlerFailed,
    InvalidMessage,
    RayfoldError,
    Refusal,
    Rejected,
    StoreError,
)
from ..in_hand import InHand
from ..log.contract import Append, Appended, CommandEntry, NewEvent, WriteLog
from ..log.format import HEADER_HOPS, ID_BYTES, NO_HEADERS, decode_record
from ..printable import exc_info_of, printable_log
from ..receipt import Receipt
from ..stream import ANY, REFUSALS, StreamId
from ..user_code import cause_of, class_name, is_ctrl_c
from .purity import Witness, changed, reads_only, witness_of
from .refusals import REFUSED_VERSION, first_outcome_in, kept_event
from .residents import RESIDENTS_MAX, Residents, evolve_with

__all__ = ["AlreadyStored", "Batch", "WriteLoop"]

logger = printable_log(__name__)

_new: Final = tuple.__new__
"""Makes a named tuple in half the time (0.2 us): the class's own `__new__` is a function in Python."""

_WITNESSES_MAX: Final = 1_000
"""Aggregates whose witness is kept: each holds some 100 bytes, and what its state holds too."""

_LOGGED_MAX: Final = 100
"""Kinds of handler failures that are logged with their trace: a flood of them must not become a flood of logs."""


_NONE: Final[Mapping[bytes, HandlerFailed]] = {}


class AlreadyStored(Exception):  # noqa: N818 - a signal between a remote log and the loop, not an error
    """Raised by a log that detects only while appending that some command ids are stored. Nothing was appended."""

    def __init__(self, entries: dict[bytes, CommandEntry]) -> None:
        super().__init__(entries)
        self.entries = entries


class _ReadsOtherwise(Exception):  # noqa: N818 - a signal inside this file, not an error
    """An event would be read back as something else. Made of the `InvalidMessage` with the field and the reason."""


class Batch(NamedTuple):
    """What became of a batch."""

    outcomes: list[Outcome]
    """One for each command, in order."""
    records: list[bytes]
    """The records that were stored, in position order and without gaps: what is broadcast."""


class _Decided:
    """A batch while it is being decided: the aggregates checked out, the appends, and what is known so far."""

    def __init__(self, size: int) -> None:
        self.outcomes: list[Outcome | None] = [None] * size
        self.appends: list[Append] = []
        self.indexes: list[int] = []
        """Which command each append belongs to."""
        self.kept: dict[int, Outcome] = {}
        """Commands whose refusal, or other outcome without events, is appended, with it: they are answered with it once
        it is stored."""
        self.known: set[int] = set()
        """Commands that were refused before, for good: whatever becomes of this batch."""
        self.reused: list[tuple[int, int]] = []
        """Commands that have the id of an earlier, different one of this batch, with the index of that one."""
        self.working: dict[StreamId, Aggregate] = {}
        self.pending: dict[StreamId, list[NewEvent]] = {}
        """Events decided in this batch and not in the log yet, by stream: packed, since one that was evolved once may
        have become part of a state."""
        self.first_use: dict[bytes, tuple[int, bytes]] = {}
        """Command ids that this batch will store: index and digest, for a repeat inside the batch."""
        self.repeats: list[tuple[int, int]] = []
        """Commands that repeat an earlier one of this batch, with the index of that one."""


class WriteLoop:
    """Decides commands over a log. Used from one thread."""

    def __init__(
        self,
        partition: int,
        log: WriteLog,
        catalogue: Catalogue,
        *,
        residents_max: int = RESIDENTS_MAX,
        in_hand: InHand | None = None,
    ) -> None:
        """`in_hand`: called with each command before any user code sees it, so that its process is not ended by it
        unnoticed."""
        self.partition = partition
        self.epoch = 0
        self.residents = Residents(catalogue, log, residents_max)
        self._log = log
        self._catalogue = catalogue
        self._secret = b""
        """The secret of the log, the key of digests; empty until the first command."""
        self._logged: set[str] = set()
        self._looks_only: dict[tuple[type[Aggregate], type[Command]], bool] = {}
        """Which decide handlers are known to change nothing (see `purity.py`)."""
        self._witnesses: dict[StreamId, tuple[ref[Aggregate], Witness]] = {}
        """Witnesses of states that no event has changed since, so that a refusal costs one digest. Each goes with
        its state, so that how many bytes of them there may be is for the residents alone."""
        self._in_hand = in_hand or InHand(None)
        self._fallen: Mapping[bytes, HandlerFailed] = _NONE

    def activate(self) -> int:
        """Take the log over; until then every append would be refused. Returns the epoch."""
        self.residents.forget_all()
        self._secret = b""
        self._log.declare(self._catalogue.shapes())
        self.epoch = self._log.activate()
        return self.epoch

    def execute(self, commands: Sequence[PackedCommand], fallen: Mapping[bytes, HandlerFailed] = _NONE) -> Batch:
        """One batch, in order. Whatever goes wrong with a command is its outcome, never an exception.

        `fallen`: command ids that are not to be tried again, since a process has ended with them: they have failed.
        """
        self._fallen = fallen
        stored = self._find_stored(commands)
        self.residents.look_up([command[1] for command in commands if command[0] not in stored])
        while True:
            decided = self._decide_all(commands, stored)
            try:
                appended = self._log.append(self.epoch, decided.appends)
            except AlreadyStored as found:
                if stored.keys() >= found.entries.keys():
                    raise AssertionError("the log reported the same repeats twice") from found
                stored |= found.entries
            except StoreError as error:
                return self._fail_batch(commands, decided, error)
            except RayfoldError as error:
                return self._split_batch(commands, decided, error)
            else:
                return self._adopt(commands, decided, appended)

    def _find_stored(self, commands: Sequence[PackedCommand]) -> dict[bytes, CommandEntry | RayfoldError]:
        """What the log holds of each id. An id that is none, or whose entry is damaged, is its own command's error."""
        command_ids = [command.command_id for command in commands]
        try:
            return self._log.find_commands(command_ids)
        except RayfoldError as error:
            return dict.fromkeys(command_ids, error)

    def _decide_all(
        self, commands: Sequence[PackedCommand], stored: dict[bytes, CommandEntry | RayfoldError]
    ) -> _Decided:
        decided = _Decided(len(commands))
        in_hand = self._in_hand
        try:
            for index, command in enumerate(commands):
                in_hand.begin(command[0])
                try:
                    decided.outcomes[index] = self._decide(index, command, stored.get(command.command_id), decided)
                except (CallerError, Refusal, StoreError) as error:
                    decided.outcomes[index] = self._failed(index, command, error, decided)
                except BaseException as error:
                    if is_ctrl_c(error):
                        raise
                    failed = self._handler_failed(command, decided, error)
                    decided.outcomes[index] = self._failed(index, command, failed, decided)
        finally:
            in_hand.end()
        return decided

    def _decide(
        self, index: int, command: PackedCommand, entry: CommandEntry | RayfoldError | None, decided: _Decided
    ) -> Outcome | None:
        """The outcome of one command, or None if the append determines it. What it raises is its outcome too."""
        stream, expected_version = command.stream, command.expected_version
        digest = command.digest(self._secret or self._learn_secret())
        if entry is not None:
            if isinstance(entry, RayfoldError):
                raise entry
            known = self._repeated(command, digest, entry)
            if not isinstance(known, Receipt):
                decided.known.add(index)
            return known
        if (first := decided.first_use.get(command.command_id)) is not None:
            (decided.repeats if first[1] == digest else decided.reused).append((index, first[0]))
            return None
        if self._fallen and (failed := self._fallen.get(command.command_id)) is not None:
            raise failed
        aggregate = self._check_out(stream, decided)
        if expected_version != ANY and expected_version != aggregate.version:
            raise Conflict(str(stream), expected_version, aggregate.version)
        events = self._run_decider(command, aggregate)
        if isinstance(events, Rejected):
            refused = as_answered(events, str(stream), command.name)
            return self._keep(index, command, digest, refused, decided) if command.decisive else refused
        if not events and command.decisive >= FINAL:
            unchanged = Receipt(stream, self.partition, 0, aggregate.version, command.command_id, False, "", 0)
            return self._keep(index, command, digest, unchanged, decided)
        decided.appends.append(self._build_append(command, digest, aggregate, events, decided))
        decided.indexes.append(index)
        if events:  # what leaves no event leaves no id either, in one batch as in two
            decided.first_use[command.command_id] = (index, digest)
        return None

    def _failed(self, index: int, command: PackedCommand, error: RayfoldError, decided: _Decided) -> Outcome | None:
        """The error, or None where it has to be stored first: a final command has failed for good. What is about its
        id, its sender's expectation or the log itself is not its outcome."""
        final = command.decisive >= FINAL and not isinstance(error, StoreError | Refusal | CommandIdReused)
        if not final or len(command.command_id) != ID_BYTES:
            return error
        return self._keep(index, command, command.digest(self._secret or self._learn_secret()), error, decided)

    def _keep(
        self, index: int, command: PackedCommand, digest: bytes, outcome: Outcome, decided: _Decided
    ) -> Outcome | None:
        """Have an outcome without events stored under the command's id; it is answered after that. Only what the
        aggregate itself has decided uses an id up: a `Conflict` is about what the sender expected."""
        command_id, _, _, _, _, correlation_id, causation_id, _, _ = command
        events = (kept_event(outcome),)
        decided.appends.append(Append(REFUSALS, ANY, events, command_id, digest, correlation_id, causation_id))
        decided.indexes.append(index)
        decided.kept[index] = outcome
        decided.first_use[command_id] = (index, digest)
        return None

    def _repeated(self, command: PackedCommand, digest: bytes, entry: CommandEntry) -> Outcome:
        """What a command whose id is stored is answered: what the first one was. Raises `CommandIdReused`."""
        refused, stream = entry.version == REFUSED_VERSION, command.stream
        if entry.digest != digest and not self._is_old_repeat(command, entry.digest):
            first = None
            if not refused:
                kept = decode_record(self._record_at(entry.position)).stream
                count = self._count_events(entry.position, command.command_id)
                first = (kept.type, kept.id, self.partition, entry.position, entry.version, count)
            raise CommandIdReused(_shown(command.command_id), str(stream), first)
        return self._first_outcome(command, entry.position, entry.version)

    def _first_outcome(self, command: PackedCommand, position: int, version: int) -> Outcome:
        """What a repeated command was answered the first time."""
        if version == REFUSED_VERSION:
            return first_outcome_in(self._record_at(position), command, self.partition)
        count = self._count_events(position, command.command_id)
        return Receipt(command.stream, self.partition, position, version, command.command_id, True, "", count)

    def _count_events(self, position: int, command_id: bytes) -> int:
        """How many events the command has whose last one is at this position: those of one command lie together."""
        count = 1
        while position > count and decode_record(self._record_at(position - count)).command_id == command_id:
            count += 1
        return count

    def _record_at(self, position: int) -> bytes:
        records = self._log.read(position - 1, 1)
        if not records:
            raise Damaged(f"event {position} of partition {self.partition}", "it is missing, but a command leads to it")
        return records[0]

    def _is_old_repeat(self, command: PackedCommand, digest: bytes) -> bool:
        """Whether a digest of format 1 or 2, which covers all fields in the order of their class, is this command's."""
        if len(digest) == DIGEST_BYTES:
            return False
        with suppress(RayfoldError):
            known = self._catalogue.command(self._catalogue.aggregate(command.stream.type), command.name)
            payloads = old_payloads(known, command.payload, command.content)
            return any(command.old_digest(payload) == digest for payload in payloads)
        return False

    def _learn_secret(self) -> bytes:
        self._secret = self._log.secret()
        return self._secret

    def _check_out(self, stream: StreamId, decided: _Decided) -> Aggregate:
        """The aggregate as this batch has made it so far: the log first, then what was decided on top of it."""
        aggregate = decided.working.get(stream)
        if aggregate is None:
            aggregate = self.residents.check_out(stream)
            for event in decided.pending.get(stream, ()):
                evolve_with(aggregate, decode_message(self._catalogue.events[event.name], event.payload))
            decided.working[stream] = aggregate
        return aggregate

    def _handler_failed(self, command: PackedCommand, decided: _Decided, error: BaseException) -> RayfoldError:
        """Code of the user's raised and may have left the state half-changed: drop it, the next use folds it anew.

        Besides handlers, that is whatever a message class brings along: validators, serializers, default factories.
        """
        self._in_hand.came_back()
        decided.working.pop(command.stream, None)
        if type(error) is HandlerFailed:  # `isinstance` asks the value too, whose code may raise
            failed = error
        else:
            failed = HandlerFailed.caused_by(f"the code of {command.name}", str(command.stream), error)
        self._log_once(failed, cause_of(error))
        return failed

    def _log_once(self, failed: HandlerFailed, cause: BaseException) -> None:
        """The caller gets one line; to repair the handler the trace is needed, once for each kind of failure."""
        kind = f"{failed.handler} {class_name(cause)}"
        if kind not in self._logged and len(self._logged) < _LOGGED_MAX:
            self._logged.add(kind)
            logger.warning("%s (further ones of this kind are not logged)", failed, exc_info=exc_info_of(cause))

    def _run_decider(self, command: PackedCommand, aggregate: Aggregate) -> list[Event] | Rejected:
        """Validate the payload and run the decide handler, whose exceptions do not affect other commands."""
        message_class = self._catalogue.command(type(aggregate), command.name)
        message: Command = decode_message(message_class, command.payload)
        key = type(aggregate), message_class
        looks_only = self._looks_only.get(key)
        if looks_only is None:
            looks_only = self._looks_only[key] = reads_only(key[0], aggregate.deciders[message_class].function, key[1])
        before = None if looks_only else self._witness(command.stream, aggregate)
        try:
            outcome = outcome_of(aggregate, message)
        except HandlerFailed:
            raise
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            raise HandlerFailed.caused_by(self._handler(command, aggregate), str(command.stream), error) from error
        if before is not None and (name := changed(aggregate.__dict__, before)):
            what = f"it changed {name} of the state; only @evolve may: return an event that describes the change"
            raise HandlerFailed(self._handler(command, aggregate), str(command.stream), what)
        return outcome

    def _witness(self, stream: StreamId, aggregate: Aggregate) -> Witness:
        """What the state is compared with after a decide handler that is not known to only look."""
        known = self._witnesses.get(stream)
        if known is not None and known[0]() is aggregate:
            return known[1]
        witness = witness_of(aggregate.__dict__)
        if len(self._witnesses) >= _WITNESSES_MAX:
            self._witnesses.clear()
        self._witnesses[stream] = ref(aggregate, lambda gone: self._drop_witness(stream, gone)), witness
        return witness

    def _drop_witness(self, stream: StreamId, gone: ref[Aggregate]) -> None:
        """The state is not in memory any more. Called from any thread; at the worst one look more is needed."""
        if (known := self._witnesses.get(stream)) is not None and known[0] is gone:
            self._witnesses.pop(stream, None)

    def _handler(self, command: PackedCommand, aggregate: Aggregate) -> str:
        message_class = self._catalogue.command(type(aggregate), command.name)
        return f"{type(aggregate).__name__}.{aggregate.deciders[message_class].name}"

    def _build_append(
        self, command: PackedCommand, digest: bytes, aggregate: Aggregate, events: list[Event], decided: _Decided
    ) -> Append:
        """What to append for these events, with the aggregate advanced by them, as readers will see them."""
        stream, version = command.stream, aggregate.version
        encoded, seen = [], []
        try:
            for event in events:  # all of them before any evolves
                payload, as_read = encode_checked(event, _ReadsOtherwise)
                encoded.append(_new(NewEvent, (event.message_name, event.schema_version, payload)))
                seen.append(as_read)
            headers = NO_HEADERS if type(events) is list else outputs_header(events, stream, command.command_id)
        except (_ReadsOtherwise, OutputsTooLarge) as error:
            raise HandlerFailed(self._handler(command, aggregate), str(stream), str(error)) from None
        if self._witnesses and events:
            self._witnesses.pop(stream, None)
        for as_read in seen:
            evolve_with(aggregate, as_read)
        if stream in decided.pending:
            decided.pending[stream] += encoded
        else:
            decided.pending[stream] = encoded
        command_id, _, _, _, _, correlation_id, causation_id, _, decisive = command
        if decisive > FINAL:
            headers = {**headers, HEADER_HOPS: decisive - FINAL}
        snapshot, schema = self._snapshot(aggregate, version)
        return _new(
            Append,
            (
                stream,
                version,
                tuple(encoded),
                command_id,
                digest,
                correlation_id,
                causation_id,
                snapshot,
                schema,
                headers,
            ),
        )

    def _snapshot(self, aggregate: Aggregate, version_before: int) -> tuple[bytes, bytes]:
        """The saved state and its fingerprint, if one is due at this version. A hint: a state that would not come back
        as it is only makes the next activation slower, so it is logged, once for each reason, and fails no command."""
        every = aggregate.snapshot_every
        if not every or aggregate.version // every == version_before // every:
            return b"", b""
        try:
            return checked_state(aggregate), state_fingerprint(type(aggregate))
        except BaseException as error:
            if is_ctrl_c(error):
                raise
            if str(error) not in self._logged and len(self._logged) < _LOGGED_MAX:
                self._logged.add(str(error))
                subject = f"{aggregate.aggregate_type}/{aggregate.id}"
                what = str(error) if isinstance(error, InvalidMessage) else repr(error)
                logger.warning("no snapshot of %s: %s (logged once for each reason)", subject, what)
            return b"", b""

    def _adopt(self, commands: Sequence[PackedCommand], decided: _Decided, appended: Iterable[Appended]) -> Batch:
        """The log has committed: receipts for the callers, and the new states become the residents."""
        records: list[bytes] = []
        outcomes, partition = decided.outcomes, self.partition
        for index, append, done in zip(decided.indexes, decided.appends, appended, strict=True):
            command_id, stream = commands[index][:2]
            position, version, stored, repeated = done
            if not repeated:
                facts = (stream, partition, position, version, command_id, False, "", len(append.events), None)
                outcomes[index] = decided.kept.get(index) or _new(Receipt, facts)
                records += stored
                continue
            outcomes[index] = self._first_outcome(commands[index], position, version)
            decided.working.pop(stream, None)  # known to the log alone: its events were decided here, and not appended
        for index, first in decided.reused:
            outcomes[index] = _reused(commands[index], outcomes[first])
        for index, first in decided.repeats:
            outcome = outcomes[first]
            outcomes[index] = outcome._replace(repeated=True) if isinstance(outcome, Receipt) else outcome
        for stream, aggregate in decided.working.items():
            self.residents.put_back(aggregate, stream)
        self.residents.grew(sum(map(len, records)))
        return Batch(_complete(outcomes), records)

    def _fail_batch(self, commands: Sequence[PackedCommand], decided: _Decided, error: RayfoldError) -> Batch:
        """Nothing was appended: forget what was decided. What was refused because of it is void as well, and if another
        process writes this log now, so is whatever else was decided on these residents."""
        fenced = isinstance(error, Fenced)
        if fenced:
            self.residents.forget_all()
        lost: set[StreamId | bytes] = set()
        for index, command in enumerate(commands):
            outcome = decided.outcomes[index]
            stands = isinstance(outcome, Receipt) or index in decided.known
            if outcome is None:
                lost |= {command.stream, command.command_id}
            elif stands or not (fenced or _depends_on_lost(lost, outcome, command)):
                continue
            decided.outcomes[index] = error
        return Batch(_complete(decided.outcomes), [])

    def _split_batch(self, commands: Sequence[PackedCommand], decided: _Decided, error: RayfoldError) -> Batch:
        """The log refuses the whole batch for something in it: in halves then, so that it costs no neighbour."""
        if len(decided.appends) < 2:
            return self._fail_batch(commands, decided, error)
        middle = decided.indexes[len(decided.indexes) // 2]
        fallen = self._fallen
        first, second = self.execute(commands[:middle], fallen), self.execute(commands[middle:], fallen)
        return Batch(first.outcomes + second.outcomes, first.records + second.records)


def _depends_on_lost(lost: set[StreamId | bytes], outcome: Outcome, command: PackedCommand) -> bool:
    """Whether what a command was refused for is something that this batch has decided and lost."""
    if isinstance(outcome, CommandIdReused):
        return command.command_id in lost
    return isinstance(outcome, Refusal | HandlerFailed) and command.stream in lost


def _complete(outcomes: list[Outcome | None]) -> list[Outcome]:
    complete = [outcome for outcome in outcomes if outcome is not None]
    assert len(complete) == len(outcomes), "a command without an outcome"
    return complete


def _reused(command: PackedCommand, first: Outcome | None) -> CommandIdReused:
    """The error for a command with the id of another one of its batch, which was answered that."""
    receipt = None
    if isinstance(first, Receipt):
        stream, partition, position, version, _, _, _, count, _ = first
        receipt = (stream.type, stream.id, partition, position, version, count)
    return CommandIdReused(_shown(command.command_id), str(command.stream), receipt)


def _shown(command_id: bytes) -> str:
    return command_id.hex()
