"""Messages: commands, events and queries, as frozen pydantic models with stable names.

Step [1] of the write path packs a command, step [4] turns it into events, step [8] answers a query.

Rules kept here: a message cannot change once it is made; it refuses what it does not declare (extra fields, NaN,
strings without end); its stored name and, for an event, its schema version are stated, never guessed from a module
path, so that code can move without touching what is stored. Whatever breaks a rule is a `DefinitionError` while the
class is being defined.

Why `Query` is not a pydantic generic: `Query[int]` would be a class made on the fly, which cloudpickle (and so Ray)
cannot find again. It is an ordinary `types.GenericAlias`; a type checker sees a generic class all the same.
"""

from __future__ import annotations

from types import GenericAlias
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from ..errors import DefinitionError
from .declaration import being_unpickled, checked_name, is_count_from_1, is_mutable, where
from .reading import Reading
from .storable import check_storable
from .upcast import Payload, Upcaster, collected_upcasters, upcast

__all__ = ["STRING_LENGTH_MAX", "Command", "Event", "Message", "Payload", "Query", "upcast"]

STRING_LENGTH_MAX = 65_536
"""Characters in one string field, because pydantic's default has no bound. A class may state its own limit with
`model_config = ConfigDict(str_max_length=...)`; the whole message stays under `codec.MESSAGE_BYTES_MAX`."""

Answer = TypeVar("Answer", covariant=True)

_NOT_STATED: Any = object()

RESERVED = frozenset(
    {"message_name", "packing", "schema_version", "upcasters", "answer_type", "validated_when_read"},
)


def _check_fields(cls: type[BaseModel]) -> None:
    for name, field in cls.model_fields.items():
        here = where(cls, name)
        if name in RESERVED:
            raise DefinitionError(here, "the name is reserved by Rayfold", "give the field another name")
        if is_mutable(field.default):
            raise DefinitionError(
                here,
                f"its default is a mutable {type(field.default).__name__}",
                "use a tuple or frozenset, or Field(default_factory=...)",
            )


def _check_config(cls: type[BaseModel]) -> None:
    if not cls.model_config.get("frozen"):
        raise DefinitionError(where(cls), "its model_config takes frozen away", "messages cannot change once made")
    if cls.model_config.get("extra") != "forbid":
        raise DefinitionError(where(cls), "its model_config allows undeclared fields", 'leave extra="forbid"')


class Message(BaseModel):
    """What `Command`, `Event` and `Query` share. Derive from one of those."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        str_max_length=STRING_LENGTH_MAX,
        validate_default=True,
    )

    message_name: ClassVar[str] = "Message"
    """The stable name: the class name unless the class line has `name="..."`."""

    packing: ClassVar[int] = 0
    """How the codec packs this class; found out at its first use (see `codec.py`)."""

    def __init_subclass__(cls, *, name: str | None = None, **config: Any) -> None:
        """Accept `name=`; the work is done once pydantic has collected the fields."""

    def __str__(self) -> str:
        """With its class, as the repr: `Deposited(amount=1)`. Pydantic's own text has the fields alone."""
        return repr(self)

    _rayfold_reading: ClassVar[Reading] = Reading()
    """How the codec reads this class; made at its first use (see `reading.py`)."""

    @classmethod
    def __pydantic_init_subclass__(cls, *, name: str | None = None, **unknown: Any) -> None:
        """Name the class and check what it declares. Raises `DefinitionError`."""
        if being_unpickled():  # what is set here would stay where it should be inherited
            return
        if unknown:
            options = ", ".join(sorted(unknown))
            raise DefinitionError(where(cls), f"the class line has {options}, which no message takes", "give name=...")
        cls.message_name = checked_name(cls, name)
        cls.packing = 0
        cls._rayfold_reading = Reading()
        _check_fields(cls)
        _check_config(cls)
        check_storable(cls)


class Command(Message):
    """A wish, in the imperative: `Deposit`. An aggregate decides what becomes of it.

    A frozen pydantic model; its fields may have limits and validators. Raises `InvalidMessage` for fields that
    break them, and `DefinitionError` while the class is defined if it cannot be stored. `name=` in the class line
    gives a stable name other than the class's own.

    Example:
        class Deposit(Command):
            amount: int = Field(gt=0)
    """


class Event(Message):
    """A fact, in the past tense: `Deposited`.

    `name` and `version` in the class line are the storage format: an event is stored under them, and read by
    whatever class has the name then. A version above 1 needs an `@upcast` from every version before it; else
    `DefinitionError`.

    Validators and limits are rules for the code that makes an event. A stored event happened, so it is read without
    them, without `strict` and without the clock; with `validated_when_read=True` in the class line it is read with
    them. One event has at most 1 MiB of payload.

    Example:
        class Deposited(Event, name="Deposited", version=2):
            amount: int
            currency: str

            @staticmethod
            @upcast(from_version=1)
            def in_euros(old: Payload) -> Payload:
                return old | {"currency": "EUR"}
    """

    validated_when_read: ClassVar[bool] = False
    """Whether stored events of this class are read with its validators and limits. Then a stored event that breaks a
    rule that came later is `UnknownEvent`."""

    schema_version: ClassVar[int] = 1
    upcasters: ClassVar[dict[int, Upcaster]] = {}
    """From a version to the function that makes the next one of it."""

    def __init_subclass__(
        cls, *, name: str | None = None, version: int = 1, validated_when_read: bool | None = None, **config: Any
    ) -> None:
        """Accept what the class line may state; the work is done once pydantic has collected the fields."""

    @classmethod
    def __pydantic_init_subclass__(
        cls, *, name: str | None = None, version: int = 1, validated_when_read: bool | None = None, **unknown: Any
    ) -> None:
        """Name the class, number its schema and collect its upcasters. Raises `DefinitionError`."""
        super().__pydantic_init_subclass__(name=name, **unknown)
        if being_unpickled():
            return
        if validated_when_read is not None:
            cls.validated_when_read = bool(validated_when_read)
        if not is_count_from_1(version):
            raise DefinitionError(where(cls), f"version={version!r} is not a schema version", "count from 1")
        cls.schema_version = version
        cls.upcasters = collected_upcasters(cls)


if TYPE_CHECKING:

    class Query(Message, Generic[Answer]):
        """A question to one projection, typed by its answer. Raises `DefinitionError` if the class does not name an
        answer type.

        Example:
            class BalanceOf(Query[int]):
                account: str

            balance = bank.ask(Balances, BalanceOf(account="alice"))  # an int, also for a type checker
        """

        answer_type: ClassVar[Any]

else:

    class Query(Message):
        """A question to one projection, typed by its answer. Raises `DefinitionError` if the class does not name an
        answer type.

        Example:
            class BalanceOf(Query[int]):
                account: str

            balance = bank.ask(Balances, BalanceOf(account="alice"))  # an int, also for a type checker
        """

        answer_type: ClassVar[Any] = _NOT_STATED

        def __class_getitem__(cls, answer: Any) -> GenericAlias:
            """`Query[int]`: remembered as an ordinary alias, so no class is made on the fly."""
            if cls is not Query:
                raise DefinitionError(where(cls), "its answer type is already stated", "derive from Query[...] itself")
            if isinstance(answer, str):
                raise DefinitionError(f"Query[{answer!r}]", "the answer type is text", "write the type itself")
            return GenericAlias(cls, (answer,))

        @classmethod
        def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
            """Take the answer type out of `Query[...]`."""
            super().__pydantic_init_subclass__(**kwargs)
            for base in cls.__dict__.get("__orig_bases__", ()):
                if isinstance(base, GenericAlias) and base.__origin__ is Query:
                    (cls.answer_type,) = base.__args__
            if cls.answer_type is _NOT_STATED and not being_unpickled():
                remedy = f"declare its answer: class {cls.__name__}(Query[int])"
                raise DefinitionError(where(cls), "it has no answer type", remedy)
