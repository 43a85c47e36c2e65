"""Purity of answers: what an `@answer` changes in a read model does not stay, and what it gives away is not part of it.

Step [8], around the handler, inside `read_model.py`.

Rules kept here: a state is the fold of the log. A handler whose bytecode shows that it only reads runs as it is. Any
other is watched: the attributes and the sizes of containers are compared before and after each query, and the whole
state by a digest, each time while it is small, else as often as a twentieth of the time allows. What was watched only
by its sizes is compared with a fold before a checkpoint of it is written (`ReadModel.checkpoint`). Where an answer has
changed something the query fails by name, and the state is restored from its last copy and the log.

Why not a copy, a proxy or a process for each query: `docs/decisions/0016-answers-change-nothing.md`.
"""

from __future__ import annotations

import builtins
import copy
import dis
import hashlib
import time
import types
from collections import ChainMap, OrderedDict, defaultdict, deque
from collections.abc import Hashable
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar, cast

from ..domain.fingerprint import reached_from
from ..domain.projection import Projection
from ..encoding.saved_state import encode_state
from ..errors import InvalidMessage

__all__ = ["UNCHANGING", "MutationGuard", "own_copy", "reading_answers"]

T = TypeVar("T")

SMALL_BYTES: Final = 16 * 1024
"""A state up to this size is compared whole at each query that might change it, in some 50 us."""

DIGEST_SHARE: Final = 20
"""A larger one is, before and after a query, at most every so many times the seconds that it takes."""

UNCHANGING: Final = frozenset({int, str, bytes, float, bool, type(None), complex})
"""Types of answers that pass as they are."""


def own_copy(answer: T) -> T:
    """The answer for a caller in this process: nothing that he changes in it is a part of the read model."""
    kind = type(answer)
    if kind in UNCHANGING:
        return answer
    if isinstance(answer, list | set) and kind in (list, set) and UNCHANGING.issuperset(map(type, answer)):
        return cast(T, answer.copy())
    if isinstance(answer, dict) and kind is dict and UNCHANGING.issuperset(map(type, chain(answer, answer.values()))):
        return cast(T, answer.copy())
    if isinstance(answer, frozenset) and kind is frozenset and UNCHANGING.issuperset(map(type, answer)):
        return answer
    return copy.deepcopy(answer)


class _Seen(NamedTuple):
    """What a read model looked like."""

    attributes: dict[str, tuple[int, int]]
    """Identity and size of each."""
    digest: bytes
    """The digest of the whole; empty if it was not made."""


class MutationGuard:
    """Watches one read model in memory. Used by the holder of its lock."""

    def __init__(self, model: Projection) -> None:
        self._model = model
        self._state_bytes = 0
        self._digest: tuple[object, bytes] = (None, b"")
        """The change after which the read model was hashed, and its digest then."""
        self._next_s = 0.0
        self.unsure = False
        """Whether something was watched by its sizes only, since `sure` was called."""

    def before(self, place: object) -> _Seen:
        """Hash the read model before code runs that might change it. `place`: the same as long as nothing is taken
        in."""
        attributes = _sizes(self._model)
        if self._state_bytes > SMALL_BYTES and time.monotonic() < self._next_s:
            self.unsure = True
            return _Seen(attributes, b"")
        known, digest = self._digest
        return _Seen(attributes, digest if known == place and digest else self._whole(place))

    def changed(self, before: _Seen, place: object) -> str:
        """What has changed since, in words; empty if nothing has."""
        now = _sizes(self._model)
        for name in before.attributes.keys() | now.keys():
            if before.attributes.get(name) != now.get(name):
                return f"{name} is not what it was"
        if before.digest and before.digest != self._whole(place):
            return "something inside its fields is not what it was"
        return ""

    def _whole(self, place: object) -> bytes:
        began_s = time.monotonic()
        try:
            state = encode_state(self._model)
        except InvalidMessage:  # it is never in a checkpoint either
            self._state_bytes, self._next_s = SMALL_BYTES + 1, began_s + 60
            return b""
        digest = hashlib.blake2b(state, digest_size=16).digest()
        self._state_bytes, self._digest = len(state), (place, digest)
        self._next_s = began_s + DIGEST_SHARE * (time.monotonic() - began_s)
        return digest


def _sizes(model: Projection) -> dict[str, tuple[int, int]]:
    return {name: (id(value), len(value) if hasattr(value, "__len__") else 0) for name, value in model.__dict__.items()}


# --- the proof ------------------------------------------------------------------------------------------------------


def reading_answers(projection: type[Projection]) -> frozenset[Hashable]:
    """The answer handlers whose bytecode shows that they change nothing."""
    if any(issubclass(cls, defaultdict) for cls in reached_from(projection).classes):
        return frozenset()  # looking a key up may add it
    proof = _Proof(projection)
    return frozenset(function for function in projection.answers.values() if proof.holds(function))


_CHANGING: Final = frozenset(
    name
    for kind, reading in (
        (list, {"copy", "count", "index"}),
        (dict, {"copy", "get", "items", "keys", "values", "fromkeys"}),
        (set, {"copy", "difference", "intersection", "isdisjoint", "issubset", "issuperset", "union"}),
        (deque, {"copy", "count", "index", "maxlen"}),
        (OrderedDict, {"copy", "get", "items", "keys", "values", "fromkeys"}),
        (ChainMap, {"copy", "get", "items", "keys", "values", "fromkeys", "maps", "parents"}),
    )
    for name in vars(kind)
    if not name.startswith("_") and name not in reading
) | {"subtract", "send", "throw", "close", "write", "sort", "update"}

_CALLABLE: Final = frozenset(
    {abs, all, any, bool, bytes, complex, dict, divmod, enumerate, filter, float, format, frozenset, hash, int, range}
    | {isinstance, len, list, map, max, min, ord, chr, pow, repr, reversed, round, set, sorted, str, sum, tuple, zip}
    | {ValueError, TypeError, KeyError, LookupError, IndexError, ArithmeticError, RuntimeError, AssertionError, iter}
)

_CHANGING_STEPS: Final = ("STORE_ATTR", "DELETE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE", "STORE_GLOBAL")
_UNKNOWN_STEPS: Final = ("DELETE_GLOBAL", "STORE_NAME", "IMPORT_NAME", "IMPORT_FROM", "LOAD_NAME", "LOAD_BUILD_CLASS")


class _Proof:
    """Whether the code of a handler, and of what it calls, consists of steps that only read."""

    def __init__(self, projection: type[Projection]) -> None:
        self._own = [projection, *reached_from(projection).classes]
        self._seen: set[types.CodeType] = set()

    def holds(self, function: Any) -> bool:
        """True when nothing in it can change what it is given."""
        if not isinstance(function, types.FunctionType):
            return False
        if function.__code__ in self._seen:
            return True
        self._seen.add(function.__code__)
        held = self._code(function.__code__, function)
        if not held:
            self._seen.discard(function.__code__)
        return held

    def _code(self, code: types.CodeType, function: types.FunctionType) -> bool:
        for step in dis.get_instructions(code):
            name = step.opname
            if name in _CHANGING_STEPS or name in _UNKNOWN_STEPS:
                return False
            if name == "BINARY_OP" and step.argrepr.endswith("="):
                return False  # of a list it changes the list
            if name.startswith(("LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR")) and not self._attribute(step.argval):
                return False
            if name == "LOAD_GLOBAL" and not self._global(step.argval, function):
                return False
            if name in ("LOAD_DEREF", "LOAD_CLASSDEREF") and step.argval in function.__code__.co_freevars:
                return False
            if isinstance(step.argval, types.CodeType) and not self._code(step.argval, function):
                return False
        return True

    def _attribute(self, name: str) -> bool:
        """Whether looking it up on anything, and calling what is found, only reads."""
        if name in _CHANGING or name.startswith("__"):
            return False
        for cls in self._own:
            for base in cls.__mro__:
                if name not in vars(base):
                    continue
                value = vars(base)[name]
                if isinstance(value, property):
                    value = value.fget
                elif isinstance(value, staticmethod | classmethod):
                    value = value.__func__
                own_class = bool(base.__flags__ & (1 << 9)) and not base.__module__.startswith(("pydantic", "enum"))
                if own_class and callable(value) and not self.holds(value):
                    return False
                if own_class and hasattr(value, "__get__") and not callable(value) and not _is_slot(value):
                    return False
        return True

    def _global(self, name: str, function: types.FunctionType) -> bool:
        value = function.__globals__.get(name, getattr(builtins, name, None))
        if isinstance(value, types.FunctionType):
            return self.holds(value)
        if isinstance(value, type):
            return value in _CALLABLE or value in self._own
        try:
            return value in _CALLABLE or type(value) in UNCHANGING
        except TypeError:
            return False


def _is_slot(value: Any) -> bool:
    return isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)
