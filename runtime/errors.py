"""Every error of Rayfold: a value with facts, one derived sentence, and a remedy where one exists.

Grouped by the moment at which it can happen and by whose fault it is::

    RayfoldError
    ├── DefinitionError        at import: a message, aggregate or projection is declared wrongly
    ├── CallerError            the caller's mistake; nothing was sent, nothing was stored
    │   ├── InvalidMessage     a command or query that breaks its declaration or a size limit
    │   ├── InvalidId          a stream id, name or command id that cannot be one
    │   ├── UnknownName        an aggregate, command, projection or query nobody registered
    │   ├── NotInHistory       a version, position or time that a history has not got
    │   └── CommandIdReused    the id of a stored command with different content
    ├── Refusal                the command arrived, was looked at, and nothing was stored
    │   ├── Rejected           the aggregate's own rule says no
    │   └── Conflict           `expected_version` is not the version of the stream
    ├── HandlerFailed          a handler raised or returned nonsense; nothing of it was stored
    ├── Unavailable            unknown whether it happened; sending the same command again is safe
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
        ├── Sealed             the log was handed over to another node and takes no event here
        ├── Damaged            stored bytes do not carry the checksum they were written with
        └── UnknownEvent       a stored event that no registered class can read

Errors take positional arguments only and hand them to `super().__init__`, which is what lets pickle (and so
Ray) carry them typed; `error_codec.py` carries them in msgpack, where nothing is ever unpickled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

from .printable import printable
from .receipt import Receipt
from .stream import StreamId

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


class RayfoldError(Exception):
    """The root: catch it to catch everything Rayfold raises on purpose."""

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


class DefinitionError(RayfoldError, TypeError):
    """A class is declared in a way that cannot work. Raised while the class is being defined."""

    def __init__(self, where: str, what: str, remedy: str = "") -> None:
        super().__init__(where, what, remedy)
        self.where, self.what, self.remedy = where, what, remedy

    def sentence(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class CallerError(RayfoldError, ValueError):
    """The caller's mistake. Nothing was sent, nothing was stored."""


class InvalidMessage(CallerError):
    """A message that breaks its declaration or a limit: which message, what is wrong, what would be right."""

    def __init__(self, message: str, what: str, remedy: str = "") -> None:
        super().__init__(message, what, remedy)
        self.message, self.what, self.remedy = message, what, remedy

    def sentence(self) -> str:
        return f"{self.message}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class InvalidId(CallerError):
    """A stream id, type name or command id that cannot be one: the kind of id, the value, what is wrong."""

    def __init__(self, kind: str, value: str, what: str) -> None:
        super().__init__(kind, value, what)
        self.kind, self.value, self.what = kind, value, what

    def sentence(self) -> str:
        shown = self.value if len(self.value) <= 60 else f"{self.value[:57]}..."
        return f"{self.kind} {shown!r} {self.what}"


class UnknownName(CallerError):
    """Nothing of this name is registered: the kind, the name, and the names that are. Or what is registered under this
    name is another class, and `differs` says which the two are, where their places do."""

    def __init__(self, kind: str, name: str, known: list[str] | tuple[str, ...] = (), differs: str = "") -> None:
        super().__init__(kind, name, list(known), *([differs] if differs else []))
        self.kind, self.name, self.known, self.differs = kind, name, list(known), differs

    def sentence(self) -> str:
        if self.name in self.known:
            what = f"this {self.name!r} is not the {self.kind} that was registered, but another class of that name"
            if self.differs:
                return f"{what}: {self.differs}; use that one, or start the runtime again, with this one"
            return f"{what}; its definition ran again, perhaps; start the runtime again, with this one"
        known = ", ".join(sorted(self.known)) or "none"
        return f"no {self.kind} is named {self.name!r}; known: {known}"


class NotInHistory(CallerError):
    """A version, position or time that a stream or log has not got: whose history, what was asked for, its last."""

    def __init__(self, subject: str, asked: str, last: int) -> None:
        super().__init__(subject, asked, last)
        self.subject, self.asked, self.last = subject, asked, last

    def sentence(self) -> str:
        return f"{self.subject} has no {self.asked}; " + (f"it is at {self.last}" if self.last else "it has no events")


class CommandIdReused(CallerError):
    """A command id that is already stored came back with different content; the first one stands.

    `receipt` is that of the first one. It is None where the first one was refused for good (`decisive=True`), and
    where both came at once and neither is stored.
    """

    def __init__(self, command_id: str, stream: str, first: tuple[str, str, int, int, int] | None = None) -> None:
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
        type_name, ident, partition, position, version = self.first
        stream = StreamId(type_name, ident)
        return Receipt(stream, partition, position, version, bytes.fromhex(self.command_id), True)

    def sentence(self) -> str:
        return (
            f"command id {self.command_id} was already used for a different command than this one to"
            f" {self._stream}; give each new command an id of its own"
        )


class Refusal(RayfoldError):
    """The command arrived and was looked at, and nothing was stored."""


class Rejected(Refusal):
    """The aggregate's own rule says no. Return it or raise it in a `@decide` method.

    `reason` is a short stable code (`"insufficient_funds"`), `facts` are what the rule knew. Plain values, and
    containers of them, arrive with their types; a member of an enum as its value; anything else as its text. The
    runtime adds the `stream` and the `command` that were refused.
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
        """The aggregate that refused; None until the runtime has said so, as in a handler."""
        return _stream_named(self._stream) if self._stream else None

    @classmethod
    def told(cls, reason: str, facts: dict[str, Any], stream: str, command: str) -> Self:
        """The rejection as the caller is told it: with the stream and the command it is about."""
        rejected = cls(reason, **facts)
        rejected._stream, rejected.command = stream, command
        return rejected

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (type(self).told, (self.reason, self.facts, self._stream, self.command))

    def sentence(self) -> str:
        facts = ", ".join(f"{name}={value!r}" for name, value in self.facts.items())
        who = f"{self._stream} refused {self.command}: " if self._stream else ""
        return f"{who}{self.reason}" + (f" ({facts})" if facts else "")


class Conflict(Refusal):
    """`expected_version` was not the version of the stream."""

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
    """A handler raised, or returned what it must not. Nothing of it was stored; neighbours are unaffected."""

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
        said = str(error)
    except BaseException as another:
        said = f"its text raises {type(another).__name__}"
    text = " ".join(f"{type(error).__name__}: {said}".split()).removesuffix(":")
    return text if len(text) <= 500 else f"{text[:497]}..."


class Unavailable(RayfoldError, TimeoutError):
    """Nobody answered in time. It is unknown whether it happened; the same command id may be sent again."""

    def __init__(self, subject: str, what: str) -> None:
        super().__init__(subject, what)
        self.subject, self.what = subject, what

    def sentence(self) -> str:
        return f"{self.subject}: {self.what}"


class NotYetVisible(Unavailable):
    """A query's `after=` was not reached in time. The write stands; only this replica had not seen it yet.

    Of `execute(..., until=)`: the command succeeded, with this `receipt`, and `why` it is not visible everywhere.
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
    """A bounded queue is full. The message was not sent; slow down or try again later."""

    def __init__(self, queue: str, limit: int, unit: str) -> None:
        super().__init__(queue, limit, unit)
        self.queue, self.limit, self.unit = queue, limit, unit

    def sentence(self) -> str:
        return f"{self.queue} is full at {self.limit:,} {self.unit}; it was not sent, try again later"


class RebuildCancelled(RayfoldError):
    """A rebuild ended before it took over, because somebody wanted it to. What served before goes on serving."""

    def __init__(self, projection: str, version: int, what: str) -> None:
        super().__init__(projection, version, what)
        self.projection, self.version, self.what = projection, version, what

    def sentence(self) -> str:
        return f"the rebuild of {self.projection} version {self.version} {self.what}; what served before goes on"


class StoreError(RayfoldError):
    """The directory of a store, or a log in it."""


class StoreMissing(StoreError):
    """There is no store in this directory."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def sentence(self) -> str:
        return f"{self.path}: {self.what}"


class StoreMismatch(StoreError):
    """The store is of another format, shape or identity than was asked for."""

    def __init__(self, path: str, what: str, remedy: str = "") -> None:
        super().__init__(path, what, remedy)
        self.path, self.what, self.remedy = path, what, remedy

    def sentence(self) -> str:
        return f"{self.path}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class Misfit(NamedTuple):
    """One difference between the classes of an application and what a store holds."""

    where: str
    """Which event or aggregate it is about: `event 'Deposited' version 1`."""
    what: str
    """What is different."""
    remedy: str
    """What would be right."""

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.remedy}"


class CodeMismatch(StoreMismatch):
    """The classes of an application do not fit what the store holds: each difference, and what would be right.

    Nothing was started or changed. `misfits` has all of them; `docs/evolution.md` goes through each kind of change.
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


class StoreInUse(StoreError):
    """Another runtime holds the directory: which one, where, since when."""

    def __init__(self, path: str, holder: str) -> None:
        super().__init__(path, holder)
        self.path, self.holder = path, holder

    def sentence(self) -> str:
        return f"{self.path} is in use by {self.holder}; stop that runtime first, or use another directory"


class SubscriptionInUse(StoreError):
    """A durable subscription is open already: its name, which member of how many, and who has it."""

    def __init__(self, name: str, member: str, holder: str) -> None:
        super().__init__(name, member, holder)
        self.name, self.member, self.holder = name, member, holder

    def sentence(self) -> str:
        return (
            f"subscription {self.name!r}: member {self.member} is in use by {self.holder}; close it there first,"
            " or use another name or member"
        )


class StorageFailed(StoreError):
    """The disk or LMDB refused a write; it was rolled back and everything stored before is intact."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def sentence(self) -> str:
        return f"{self.path}: {self.what}"


class NotPrivate(StoreError):
    """A folder, file or link that another user of the machine owns or can exchange: where, why, and what helps.

    Nothing was read from it and nothing was written to it.
    """

    def __init__(self, path: str, what: str, remedy: str = "") -> None:
        super().__init__(path, what, remedy)
        self.path, self.what, self.remedy = path, what, remedy

    def sentence(self) -> str:
        return f"{self.path}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class Fenced(StoreError):
    """An append of an older epoch: a later activation has taken the log over, and this one must stop."""

    def __init__(self, log: str, epoch: int, current_epoch: int) -> None:
        super().__init__(log, epoch, current_epoch)
        self.log, self.epoch, self.current_epoch = log, epoch, current_epoch

    def sentence(self) -> str:
        return f"{self.log}: epoch {self.epoch} may not append, epoch {self.current_epoch} has taken over"


class Sealed(StoreError):
    """A log that was handed over: which one, and who goes on with it."""

    def __init__(self, log: str, heir: str) -> None:
        super().__init__(log, heir)
        self.log, self.heir = log, heir

    def sentence(self) -> str:
        return f"{self.log}: it was handed over to {self.heir}, where it goes on; nothing is appended to it here"


class Damaged(StoreError):
    """Stored bytes do not carry the checksum they were written with: where, and what is wrong."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(where, what)
        self.where, self.what = where, what

    def sentence(self) -> str:
        return f"{self.where} is damaged: {self.what}"


class UnknownEvent(StoreError):
    """A stored event that no registered class can read: its name, its schema version, what is known, and where it is.

    `stream` and `version`, `partition` and `position` say which event it is; a partition of -1 is not known.
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
