"""Facts: the named values of a refusal, as the caller sees them, in any process.

Between steps [4] and [1]: the write loop and a specification make a `Rejected` into the one that the caller gets,
`error_codec.py` packs its facts.

Rules kept here: a caller in the same process, in another one and in `given(...).rejected(...)` sees the same facts;
they share nothing with the state that they were taken from; their number and size are bounded.

What keeps its type: None, bool, int of any size, float, str, bytes, complex, Decimal, UUID, datetime, date,
time, timedelta, and tuples, lists, dicts, sets, frozensets and deques of those. A member of an enum arrives as its
value, and an instance of a subclass of the above as one of its base (a bytearray as bytes), since a caller need not
have the class.
Everything else (a model, a dataclass, an exception) arrives as its text, and so does a container that holds such a
thing where only a list or a dict could carry it.
"""

from __future__ import annotations

from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from typing import Any, Final
from uuid import UUID

import msgpack

from ..errors import Rejected
from ..user_code import class_name
from .tagged import TAGS, pack_tagged, tagged, unpack_tagged

__all__ = ["FACTS_BYTES_MAX", "as_answered", "pack_facts", "shown_as_text", "unpack_facts"]

FACTS_BYTES_MAX: Final = 48 * 1024
"""All facts of one refusal, packed: outcomes travel best under Ray's 100 KB inline, and facts are for people."""

FACTS_MAX: Final = 100
"""Facts that are kept of a refusal whose facts do not fit as they are."""

TEXT_CHARS_MAX: Final = 500
"""The length of a fact that becomes text since they do not fit."""

REASON_CHARS_MAX: Final = 10_000
"""The length of a reason, which is meant to be a short code."""

_UNCHANGED: Final = frozenset({type(None), bool, float, UUID, date, timedelta})
"""Types of facts that arrive as they are, whatever their value."""

_SHORT: Final = 256
"""A text or bytes up to so many characters is a fact without a further check."""


def as_answered(rejected: Rejected, stream: str, command: str) -> Rejected:
    """The refusal as its caller sees it: about which stream and command, with facts that have been through the wire."""
    reason: Any = rejected.reason
    facts = rejected.facts
    if type(reason) is not str or len(reason) > REASON_CHARS_MAX:
        reason = reason if type(reason) is int and -(1 << 63) <= reason < 1 << 63 else shown_as_text(reason)
    elif not reason.isascii():
        reason = _well_formed(reason)
    plain = len(facts) <= FACTS_MAX and all(_arrives_as_it_is(fact) for fact in facts.values())
    return Rejected.with_facts(reason, dict(facts) if plain else unpack_facts(pack_facts(facts)), stream, command)


def pack_facts(facts: dict[str, Any]) -> bytes:
    """The facts as bytes. Never raises: what cannot be carried with its type becomes text."""
    packed = _packed(facts)
    if packed is None:
        packed = _packed({_name(name): _kept(fact) for name, fact in facts.items()})
    if packed is None or len(packed) > FACTS_BYTES_MAX:
        many = len(facts) > FACTS_MAX + 1  # what was packed and unpacked once is packed to the same again
        few = {_name(name): _small(fact) for name, fact in islice(facts.items(), FACTS_MAX if many else None)}
        if many:
            few["shown"] = f"{FACTS_MAX} of {len(facts):,} facts"
        packed = msgpack.packb(few)
    return packed


def unpack_facts(data: bytes) -> dict[str, Any]:
    """The facts that `pack_facts` packed. Raises `ValueError` for other bytes."""
    facts = unpack_tagged(data)
    if type(facts) is not dict:
        raise ValueError("these bytes are not facts")
    return facts


def shown_as_text(value: object) -> str:
    """A value as bounded, well-formed text. Never raises, whatever the code of its class does."""
    try:
        text = value if type(value) is str else str(value)
    except BaseException as error:
        text = f"a {class_name(value)} whose text raises {class_name(error)}"
    return _well_formed(text[:TEXT_CHARS_MAX])


def _arrives_as_it_is(fact: object) -> bool:
    kind = type(fact)
    if kind is str:
        return len(fact) <= _SHORT and fact.isascii()  # type: ignore[arg-type,attr-defined]
    if kind is int:
        return -(1 << 63) <= fact < 1 << 63  # type: ignore[operator]
    if kind is Decimal:
        return len(str(fact)) <= _SHORT
    return kind in _UNCHANGED or (kind is bytes and len(fact) <= _SHORT)  # type: ignore[arg-type]


def _packed(value: Any) -> bytes | None:
    try:
        data = pack_tagged(value, _form)
        unpack_tagged(data)
    except BaseException:  # code of the user's classes runs here, and may raise anything
        return None
    return data


def _form(value: Any) -> Any:
    """What is packed for a value that msgpack does not know."""
    if not isinstance(value, Enum):
        for code, kind, to_form, _ in TAGS:
            if isinstance(value, kind):  # of a subclass too: it arrives as one of its base
                return msgpack.ExtType(code, pack_tagged(to_form(value), _form))
    try:
        return tagged(value)
    except TypeError:
        return str(value)


def _kept(fact: Any) -> Any:
    """One fact that spoils no other: as it is if it can be carried by itself, else its text."""
    return fact if _packed(fact) is not None else shown_as_text(fact)


def _small(fact: Any) -> Any:
    """A fact where all together are too large: numbers stay, the rest is text."""
    if fact is None or type(fact) in (bool, float) or (type(fact) is int and -(1 << 63) <= fact < 1 << 63):
        return fact
    return shown_as_text(fact if type(fact) is str else _repr(fact))


def _repr(value: object) -> str:
    try:
        return repr(value)
    except BaseException as error:
        return f"a {class_name(value)} whose repr raises {class_name(error)}"


def _name(name: object) -> str:
    return shown_as_text(name)


def _well_formed(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
