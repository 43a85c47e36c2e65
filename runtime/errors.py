"""Every error of Rayfold: a value with facts, one derived sentence, and a remedy where one exists.

Grouped by the moment at which it can happen and by whose fault it is::

    RayfoldError
    ├── DefinitionError        at import: a message, aggregate or projection is declared wrongly
    ├── CallerError            the caller's mistake; nothing was sent, nothing was stored
    │   ├── InvalidMessage     a command or query that breaks its declaration or a size limit
    │   ├── InvalidId          a stream id, name or command id that cannot be one
    │   ├── UnknownName        an aggregate, command, projection or query that is not registered
    │   ├── NotInHistory       a version, position or time that a history lacks
    │   └── CommandIdReused    the id of a stored command with different content
    ├── Refusal                the command arrived, was decided, and nothing was stored
    │   ├── Rejected           the aggregate's own rule refused
    │   └── Conflict           `expected_version` is not the version of the stream
    ├── HandlerFailed          a handler raised or returned nonsense; nothing of it was stored
    ├── Unavailable            unknown whether it happened, or not sent; sending it again is safe
    │   └── NotYetVisible      a query's `after=` was not reached in time; the write itself stands
    ├── Overloaded             a bounded queue is full; it was not sent
    ├── RebuildCancelled       a read model was not rebuilt after all; what served before goes on
    └── StoreError             the directory or a log in it
        ├── StoreMissing       there is no store in this directory
        ├── StoreMismatch      the store is of another format, shape or identity
        │   └── CodeMismatch   the classes do not fit the events that the store holds
        ├── StoreInUse         another runtime holds the directory
        ├── SubscriptionInUse  the named subscription, or this member of it, is open elsewhere
        ├── StorageFailed      the disk or LMDB refused; what was being written was rolled back
        ├── NotPrivate         another user of the machine owns, or can exchange, what this user would rely on
        ├── Fenced             a later activation has taken the log over
        ├── Sealed             the log is sealed for a move, or moved to another node
        ├── Damaged            stored bytes do not carry the checksum they were written with
        └── UnknownEvent       a stored event that no registered class can read

Errors take positional arguments only and hand them to `super().__init__`, which is what lets pickle (and so
Ray) carry them typed; `error_codec.py` carries them in msgpack, where nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final, NamedTuple, Self

from .printable import printable, shown
from .receipt import Receipt
from .stream import StreamId
from .user_code import class_name

__all__ = [
    "CallerError",
    "CodeMismatch",
    "CommandIdReused",
    "Conflict",
    "Damaged",
    "DefinitionError",
    "Fenced",
    "HandlerFailed",
    "InvalidId",
    "InvalidMessage",
    "NotInHistory",
    "NotPrivate",
    "NotYetVisible",
    "Overloaded",
    "RayfoldError",
    "RebuildCancelled",
    "Refusal",
    "Rejected",
    "Sealed",
    "StorageFailed",
    "StoreError",
    "StoreInUse",
    "StoreMismatch",
    "StoreMissing",
    "SubscriptionInUse",
    "Unavailable",
    "UnknownEvent",
    "UnknownName",
]


_FACT_CHARS_MAX: Final = 1_000
"""Of one fact in the sentence of a `Rejected`: the words of a rule are whole, a list of a million is not."""


_FAILURE_CHARS_READ: Final = 2_000
"""Of the text of an exception, of which 500 are kept: one of many megabytes would hold up all others."""


class RayfoldError(Exception):
    """The root of all errors that Rayfold raises on purpose.

    `str(error)` is one line of English without control characters; the facts are attributes of each class.

    Example:
        try:
            bank.execute(Account, "alice", Deposit(amount=100))
        except RayfoldError as error:
            print(type(error).__name__, error)
    """

    by_name: ClassVar[dict[str, type[RayfoldError]]] = {}

    def __init_subclass__(cls) -> None:
        RayfoldError.by_name.setdefault(cls.__name__, cls)

    def __str__(self) -> str:
        return printable(self.sentence())  # ids and texts in it come from outside

    def sentence(self) -> str:
        """The facts as one line of English, without a full stop."""
        return " ".join(str(arg) for arg in self.args)


def _stream_named(text: str) -> StreamId:
    """The stream of a text like `Account/alice`: no type has a slash in its name, so the first one ends it."""
    kind, _, ident = text.partition("/")
    return StreamId(kind, ident)


def _by_number(name: str) -> tuple[bool, int, str]:
    """A key to sort names by: numbers first, by their value."""
    return (False, int(name), name) if name.isdecimal() else (True, 0, name)


class DefinitionError(RayfoldError, TypeError):
    """A class is declared in a way that cannot work. Raised while the class is being defined, at import.

    Attributes:
        where: The class or method, `Account.deposit` for instance.
        what: What is wrong with it.
        remedy: What would be right; empty if there is no single answer.

    Example:
        try:
            class Open(Query): ...
        except DefinitionError as error:
            print(error.remedy)  # declare its answer: class Open(Query[int])
    """

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        super().__init__(where, what, remedy)
        self.where, self.what, self.remedy = where, what, remedy

    def sentence(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class CallerError(RayfoldError, ValueError):
    """The caller's mistake. Nothing was sent and nothing was stored; the same call fails again.

    Raised itself where a call does not fit the state of the object: a runtime that is not started, or started
    twice.

    Example:
        try:
            bank.execute(Account, "", Deposit(amount=1))
        except CallerError as error:
            print("a fault of this program:", error)
    """


class InvalidMessage(CallerError):
    """A message, or another argument, that breaks its declaration or a limit. Raised before anything is sent.

    Attributes:
        message: The name of the message class or of the argument.
        what: What is wrong.
        remedy: What would be right; may be empty.

    Example:
        try:
            Deposit(amount="much")
        except InvalidMessage as error:
            print(error.message, error.what)
    """

    def __init__(self, message: str, what: str, remedy: str = "") -> None:
        super().__init__(message, what, remedy)
        self.message, self.what, self.remedy = message, what, remedy

    def sentence(self) -> str:
        return f"{self.message}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class InvalidId(CallerError):
    """A stream id, type name or command id that cannot be one: empty, or over its limit (an id has at most 400 bytes
    of UTF-8).

    Attributes:
        kind: Which kind of id.
        value: The id as it was given.
        what: What is wrong with it.

    Example:
        try:
            bank.execute(Account, "x" * 401, Deposit(amount=1))
        except InvalidId as error:
            print(error.kind, error.what)
    """

    def __init__(self, kind: str, value: str, what: str) -> None:
        super().__init__(kind, value, what)
        self.kind, self.value, self.what = kind, value, what

    def sentence(self) -> str:
        shown = self.value if len(self.value) <= 60 else f"{self.value[:57]}..."
        return f"{self.kind} {shown!r} {self.what}"


class UnknownName(CallerError):
    """No aggregate, command, projection or query of this name is registered, or the registered one is another class.

    Attributes:
        kind: "aggregate", "projection", "command", "query" and so on.
        name: The name that was asked for.
        known: The names that are registered. If `name` is among them, another class of that name was registered.
        differs: Which two classes of this name there are, where that is known; else empty.

    Example:
        try:
            bank.ask(Turnover, Total())
        except UnknownName as error:
            print(error.name, "is none of", error.known)
    """

    def __init__(self, kind: str, name: str, known: list[str] | tuple[str, ...] = (), differs: str = "") -> None:
        super().__init__(kind, name, list(known), *([differs] if differs else []))
        self.kind, self.name, self.known, self.differs = kind, name, list(known), differs

    def sentence(self) -> str:
        if self.name in self.known:
            what = f"this {self.name!r} is not the {self.kind} that was registered, but another class of that name"
            if self.differs:
                return f"{what}: {self.differs}; use that one, or restart the runtime with this one"
            return f"{what}; the class was probably defined again; restart the runtime with the new one"
        known = ", ".join(sorted(self.known, key=_by_number)) or "none"
        return f"no {self.kind} is named {self.name!r}; known: {known}"


class NotInHistory(CallerError):
    """A version, position or time that a stream or log does not have. Raised by `history`, `state_at`, `as_of`,
    subscriptions.

    Attributes:
        subject: Whose history: a stream or a partition.
        asked: What was asked for.
        last: The last version or position that exists; 0 if there are no events.

    Example:
        try:
            then = bank.state_at(Account, "alice", version=7)
        except NotInHistory as error:
            print("only", error.last, "events")
    """

    def __init__(self, subject: str, asked: str, last: int) -> None:
        super().__init__(subject, asked, last)
        self.subject, self.asked, self.last = subject, asked, last

    def sentence(self) -> str:
        return f"{self.subject} has no {self.asked}; " + (f"it is at {self.last}" if self.last else "it has no events")


class CommandIdReused(CallerError):
    """A command id that is already stored was sent again with different content. The first command stands.

    Attributes:
        command_id: The id, in hexadecimal.
        stream: The `StreamId` of the second command.
        receipt: The receipt of the first command. None where the first was refused for good (`decisive=True`), and
            where both came at once and neither is stored.

    Example:
        try:
            bank.execute(Account, "alice", Deposit(amount=7), command_id=derived_id("payment", 17))
        except CommandIdReused as error:
            print("payment 17 was", error.receipt)
    """

    def __init__(self, command_id: str, stream: str, first: tuple[str, str, int, int, int, int] | None = None) -> None:
        super().__init__(command_id, stream, first)
        self.command_id, self._stream, self.first = command_id, stream, first

    @property
    def stream(self) -> StreamId:
        """The aggregate that the command with the used id was sent to."""
        return _stream_named(self._stream)

    @property
    def receipt(self) -> Receipt | None:
        """What the command that has this id was answered; its `repeated` is True."""
        if self.first is None:
            return None
        type_name, ident, partition, position, version, count = self.first
        stream = StreamId(type_name, ident)
        return Receipt(stream, partition, position, version, bytes.fromhex(self.command_id), True, "", count)

    def sentence(self) -> str:
        return (
            f"command id {self.command_id} was already used for a different command than this one to"
            f" {self._stream}; give each new command an id of its own"
        )


class Refusal(RayfoldError):
    """The command arrived and was decided, and nothing was stored: `Rejected` or `Conflict`. An answer, not a fault.

    Example:
        try:
            bank.execute(Account, "alice", Withdraw(amount=100))
        except Refusal as refusal:
            print("no:", refusal)
    """


class Rejected(Refusal):
    """The aggregate's own rule refused the command. Return it or raise it in a `@decide` method.

    Plain values and containers of them keep their types as facts; an enum member arrives as its value, anything
    else as its text.

    Attributes:
        reason: A short stable code, `"insufficient_funds"`.
        facts: What the rule knew, by name.
        stream: Whose rule it was, a `StreamId`; added by the runtime. Empty before that.
        command: The name of the command; added by the runtime.

    Example:
        @decide
        def withdraw(self, command: Withdraw) -> Withdrawn | Rejected:
            if command.amount > self.balance:
                return Rejected("insufficient_funds", balance=self.balance)
            return Withdrawn(amount=command.amount)
    """

    def __init__(self, reason: str, /, **facts: Any) -> None:
        super().__init__(reason)
        self.reason: str = reason
        self.facts: dict[str, Any] = facts
        self._stream: str = ""
        """As text, which is how it travels."""
        self.command: str = ""

    @property
    def stream(self) -> StreamId | None:
        """The aggregate that refused; None until the runtime has set it, as in a handler."""
        return _stream_named(self._stream) if self._stream else None

    @classmethod
    def with_facts(cls, reason: str, facts: dict[str, Any], stream: str, command: str) -> Self:
        """The rejection as the caller gets it: with the stream and the command."""
        rejected = cls(reason, **facts)
        rejected._stream, rejected.command = stream, command
        return rejected

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (type(self).with_facts, (self.reason, self.facts, self._stream, self.command))

    def sentence(self) -> str:
        facts = ", ".join(f"{name}={shown(value, _FACT_CHARS_MAX)}" for name, value in self.facts.items())
        who = f"{self._stream} refused {self.command}: " if self._stream else ""
        return f"{who}{self.reason}" + (f" ({facts})" if facts else "")


class Conflict(Refusal):
    """`expected_version` was not the version of the stream. Nothing was stored: read again, and decide again.

    Attributes:
        stream: The `StreamId`.
        expected_version: The version that the command expected; 0 for `NO_STREAM`.
        version: The version that the stream has.

    Example:
        try:
            bank.execute(Account, "alice", Deposit(amount=1), expected_version=receipt.version)
        except Conflict as conflict:
            print("another writer was faster:", conflict.version)
    """

    def __init__(self, stream: str, expected_version: int, version: int) -> None:
        super().__init__(stream, expected_version, version)
        self._stream, self.expected_version, self.version = stream, expected_version, version

    @property
    def stream(self) -> StreamId:
        """The aggregate that the command was sent to."""
        return _stream_named(self._stream)

    def sentence(self) -> str:
        expected = f"version {self.expected_version}" if self.expected_version else "no stream"
        return f"expected {expected} of {self._stream}, but the stream is at {self.version}"


class HandlerFailed(RayfoldError):
    """A handler raised, or returned what it must not. Nothing of it was stored; other aggregates are unaffected.

    Attributes:
        handler: The method, `Account.deposit`.
        subject: The stream, or the query.
        what: The exception as one line of at most 500 characters.

    Example:
        try:
            bank.execute(Account, "alice", Deposit(amount=1))
        except HandlerFailed as failure:
            print(failure.handler, "has a bug:", failure.what)
    """

    def __init__(self, handler: str, subject: str, what: str) -> None:
        super().__init__(handler, subject, what)
        self.handler, self.subject, self.what = handler, subject, what

    @classmethod
    def caused_by(cls, handler: str, subject: str, error: BaseException) -> Self:
        """An exception of a user's handler as one bounded line, for a caller in another process."""
        return cls(handler, subject, failure_text(error))

    def sentence(self) -> str:
        return f"{self.handler} failed on {self.subject}: {self.what}"


def failure_text(error: BaseException) -> str:
    """An exception of the user's code as one bounded line, whatever its class does when it is shown."""
    try:
        said = str.__getitem__(str(error), slice(_FAILURE_CHARS_READ))
    except BaseException as another:
        said = f"its text raises {class_name(another)}"
    text = " ".join(f"{class_name(error)}: {said}".split()).removesuffix(":")
    return text if len(text) <= 500 else f"{text[:497]}..."


class Unavailable(RayfoldError, TimeoutError):
    """No answer in time: whether the command took effect is unknown. Or, by its text, it was not sent.

    In both cases sending the same command id again is safe. A `TimeoutError`. Raised after `timeout_s` (seconds); and
    at once where it is known that nothing can answer, since the partition's node is down for instance: then `what`
    begins `it was not sent`, and this call had no effect.

    Attributes:
        subject: What did not answer: a partition, a projection, the system.
        what: Why, and what helps.

    Example:
        payment = derived_id("payment", 17)
        try:
            bank.execute(Account, "alice", Deposit(amount=5), command_id=payment)
        except Unavailable:
            bank.execute(Account, "alice", Deposit(amount=5), command_id=payment)
    """

    def __init__(self, subject: str, what: str) -> None:
        super().__init__(subject, what)
        self.subject, self.what = subject, what

    def sentence(self) -> str:
        return f"{self.subject}: {self.what}"


class NotYetVisible(Unavailable):
    """The `after=` of a query, or the `until=` of a command, was not reached in time. The write itself stands.

    Attributes:
        subject: The projection.
        partition: The partition whose position was waited for.
        asked: The position that was asked for.
        reached: The position of the replica.
        why: Of `until=`: why the events are not visible everywhere; else empty.
        receipt: Of `until=`: the receipt of the command, which succeeded; else None.

    Example:
        try:
            receipt = bank.execute(Account, "alice", Deposit(amount=5), until=Balances, timeout_s=2)
        except NotYetVisible as late:
            receipt = late.receipt
    """

    receipt: Receipt | None = None

    def __init__(self, subject: str, partition: int, asked: int, reached: int, why: str = "") -> None:
        super().__init__(subject, "not yet visible")
        self.args = (subject, partition, asked, reached, why)
        self.partition, self.asked, self.reached, self.why = partition, asked, reached, why

    def sentence(self) -> str:
        if self.why:
            return f"the command succeeded and its events are stored, but {self.why}"
        return (
            f"{self.subject}: position {self.asked} of partition {self.partition} is not visible yet,"
            f" the replica is at {self.reached}"
        )


class Overloaded(RayfoldError):
    """A bounded queue is full. The message was not sent; slow down, or try again later.

    Attributes:
        queue: Which queue.
        limit: Its bound.
        unit: What the bound counts: commands, bytes.

    Example:
        try:
            bank.execute(Account, "alice", Deposit(amount=5))
        except Overloaded as full:
            print("at most", full.limit, full.unit)
    """

    def __init__(self, queue: str, limit: int, unit: str) -> None:
        super().__init__(queue, limit, unit)
        self.queue, self.limit, self.unit = queue, limit, unit

    def sentence(self) -> str:
        return f"{self.queue}: limit of {self.limit:,} {self.unit} reached; this one was not sent, try again later"


class RebuildCancelled(RayfoldError):
    """A rebuild was cancelled, or interrupted by the end of the runtime. The earlier read model continues to serve.

    Attributes:
        projection: The name of the projection.
        version: The version that was being built.
        what: "was cancelled", or how it was interrupted.

    Example:
        try:
            await rebuild
        except RebuildCancelled as cancelled:
            print(cancelled.projection, cancelled.what)
    """

    def __init__(self, projection: str, version: int, what: str) -> None:
        super().__init__(projection, version, what)
        self.projection, self.version, self.what = projection, version, what

    def sentence(self) -> str:
        return f"the rebuild of {self.projection} version {self.version} {self.what}; what served before goes on"


class StoreError(RayfoldError):
    """Something about the directory of a store, or a log in it. Each kind is a class of its own.

    Example:
        try:
            bank = BlockingRuntime("bank-data", aggregates=[Account]).start()
        except StoreError as error:
            print(error)
    """


class StoreMissing(StoreError):
    """There is no store in this directory.

    Attributes:
        path: The directory.
        what: What was found instead.

    Example:
        try:
            events = subscribe("bank-data", aggregates=[Account])
        except StoreMissing as missing:
            print(missing.path)
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def sentence(self) -> str:
        return f"{self.path}: {self.what}"


class StoreMismatch(StoreError):
    """The store is of another format, number of partitions, or identity than was asked for. It is not changed.

    Attributes:
        path: The directory.
        what: What differs.
        remedy: What would be right; may be empty.

    Example:
        try:
            bank = BlockingRuntime("bank-data", aggregates=[Account], partitions=8).start()
        except StoreMismatch as mismatch:
            print(mismatch.what)
    """

    def __init__(self, path: str, what: str, remedy: str = "") -> None:
        super().__init__(path, what, remedy)
        self.path, self.what, self.remedy = path, what, remedy

    def sentence(self) -> str:
        return f"{self.path}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class Misfit(NamedTuple):
    """One difference between the classes of an application and what a store holds.

    Example:
        for misfit in mismatch.misfits:
            print(misfit.where, misfit.what, misfit.remedy)
    """

    where: str
    """Which event or aggregate it is about: `event 'Deposited' version 1`."""
    what: str
    """What is different."""
    remedy: str
    """What would be right."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


class CodeMismatch(StoreMismatch):
    """The classes of an application do not fit what the store holds. Nothing was started or changed.

    `docs/evolution.md` goes through each kind of change.

    Attributes:
        misfits: Every difference, as a `Misfit` with its remedy.

    Example:
        try:
            bank = BlockingRuntime("bank-data", aggregates=[Account]).start()
        except CodeMismatch as mismatch:
            for misfit in mismatch.misfits:
                print(misfit)
    """

    def __init__(self, path: str, misfits: Sequence[Sequence[str]]) -> None:
        found = [Misfit(*one) for one in misfits]
        super().__init__(path, "the code does not fit what the store holds")
        self.args = (path, [list(one) for one in found])
        self.misfits = found

    def sentence(self) -> str:
        if len(self.misfits) == 1:
            return f"{self.path}: {self.misfits[0]}"
        listed = "; ".join(f"({number}) {one}" for number, one in enumerate(self.misfits, 1))
        return f"{self.path}: {self.what}, in {len(self.misfits)} places: {listed}"


_SHARE = "share it with connect(path), with Runtime(..., linger=True) in each program, or with `rayfold run`"


class StoreInUse(StoreError):
    """Another runtime holds the directory. Programs that share a store connect to the one that runs it.

    Attributes:
        path: The directory.
        holder: Which process, where, since when.

    Example:
        try:
            bank = BlockingRuntime("bank-data", aggregates=[Account]).start()
        except StoreInUse as in_use:
            print("stop this first:", in_use.holder)
    """

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def sentence(self) -> str:
        if not self.holder.startswith("the runtime of process "):
            return f"{self.path} is in use by {self.holder}; wait for its end, or stop it first"
        return f"{self.path} is in use by {self.holder}; {_SHARE}, or stop that runtime first"


class SubscriptionInUse(StoreError):
    """A named subscription, or this member of it, is open already; or it was forgotten while it was open here.

    Attributes:
        name: Its name.
        member: Which member of how many.
        holder: Which process has it open; empty if it was forgotten.

    Example:
        try:
            events = bank.subscribe("mailer")
        except SubscriptionInUse as in_use:
            print(in_use.holder)
    """

    def __init__(self, name: str, member: str, holder: str) -> None:
        super().__init__(name, member, holder)
        self.name, self.member, self.holder = name, member, holder

    def sentence(self) -> str:
        if not self.holder:
            return f"subscription {self.name!r} was forgotten while member {self.member} was open here; open it again"
        return (
            f"subscription {self.name!r}: member {self.member} is in use by {self.holder}; close it there first,"
            " or use another name or member"
        )


class StorageFailed(StoreError):
    """The disk or LMDB refused a write. It was rolled back, and everything stored before is intact.

    Attributes:
        path: The file or directory.
        what: What was refused, and why.

    Example:
        try:
            bank.execute(Account, "alice", Deposit(amount=5))
        except StorageFailed as failure:
            print("full?", failure.what)
    """

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def sentence(self) -> str:
        return f"{self.path}: {self.what}"


class NotPrivate(StoreError):
    """A folder, file or link that another user of the machine owns or can exchange. It was neither read nor written.

    Attributes:
        path: The folder, file or link.
        what: Why it is not private.
        remedy: What helps.

    Example:
        try:
            bank = BlockingRuntime("/tmp/bank-data", aggregates=[Account]).start()
        except NotPrivate as error:
            print(error.path, error.remedy)
    """

    def __init__(self, path: str, what: str, remedy: str = "") -> None:
        super().__init__(path, what, remedy)
        self.path, self.what, self.remedy = path, what, remedy

    def sentence(self) -> str:
        return f"{self.path}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class Fenced(StoreError):
    """An append of an older epoch: a later activation has taken the log over, and this one must stop.

    A client does not see it: its command is sent to the later activation.

    Attributes:
        log: Which log.
        epoch: The epoch of the append; 0 if it is not known.
        current_epoch: The epoch of the log; 0 if it is not known.

    Example:
        try:
            log.append(batch, epoch)
        except Fenced as fenced:
            print(fenced.epoch, "is older than", fenced.current_epoch)
    """

    def __init__(self, log: str, epoch: int, current_epoch: int) -> None:
        super().__init__(log, epoch, current_epoch)
        self.log, self.epoch, self.current_epoch = log, epoch, current_epoch

    def sentence(self) -> str:
        if not 0 < self.epoch < self.current_epoch:
            return f"{self.log}: may not append any more"
        return f"{self.log}: epoch {self.epoch} may not append, epoch {self.current_epoch} has taken over"


class Sealed(StoreError):
    """A log that is sealed for a move or moved to another node, and takes no event here; or a step of a move that its
    log refuses.

    A client does not see it: its command is sent to the new home.

    Attributes:
        log: Which log.
        successor: The node that continues it; empty if none does.
        why: What is refused, and why; empty if the log has moved.

    Example:
        try:
            log.append(batch, epoch)
        except Sealed as sealed:
            print("continues at", sealed.successor)
    """

    def __init__(self, log: str, successor: str, why: str = "") -> None:
        super().__init__(log, successor, *([why] if why else []))
        self.log, self.successor, self.why = log, successor, why

    def sentence(self) -> str:
        return f"{self.log}: {self.why or f'moved to {self.successor}; nothing is appended to it here'}"


class Damaged(StoreError):
    """Stored bytes do not have the checksum that they were written with. Damage is an error, never data.

    Attributes:
        where: The file and record.
        what: What is wrong.

    Example:
        try:
            events = bank.history(Account, "alice")
        except Damaged as damage:
            print("restore a backup of", damage.where)
    """

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)
        self.where, self.what = where, what

    def sentence(self) -> str:
        return f"{self.where} is damaged: {self.what}"


class UnknownEvent(StoreError):
    """A stored event that no registered class can read: its name or schema version is unknown, or its fields do not
    fit.

    Attributes:
        name: The stored name.
        schema_version: The version of its schema.
        what: Why it cannot be read, and which names are known.
        stream: `Account/alice`; empty if unknown.
        version: In its stream, from 1; 0 if unknown.
        position: In its partition, from 1; 0 if unknown.
        partition: The number of the partition; -1 if unknown.

    Example:
        try:
            events = bank.history(Account, "alice", unreadable="raise")
        except UnknownEvent as unknown:
            print(unknown.name, unknown.schema_version, unknown.stream, unknown.version)
    """

    def __init__(
        self,
        name: str,
        schema_version: int,
        what: str,
        stream: str = "",
        version: int = 0,
        position: int = 0,
        partition: int = -1,
    ) -> None:
        super().__init__(name, schema_version, what, stream, version, position, partition)
        self.name, self.schema_version, self.what = name, schema_version, what
        self.stream, self.version, self.position, self.partition = stream, version, position, partition

    def in_partition(self, partition: int) -> UnknownEvent:
        """The same, of this partition."""
        return UnknownEvent(
            self.name, self.schema_version, self.what, self.stream, self.version, self.position, partition
        )

    def sentence(self) -> str:
        place = ""
        if self.partition >= 0:
            place = f" (event {self.position} of partition {self.partition}, {self.stream} {self.version})"
        return f"stored event {self.name!r} version {self.schema_version} cannot be read: {self.what}{place}"


RayfoldError.by_name[RayfoldError.__name__] = RayfoldError
