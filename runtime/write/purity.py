"""Purity: a `@decide` that changes the state is found, whatever becomes of the command.

Step [4] of the write path, around the decide handler, and around that of a specification.

Rule kept here: a state is the fold of the log. A decide handler looks and changes nothing; what it changes nevertheless
is a `HandlerFailed` that names the field, and the state is dropped before anything else uses it.

Two means. *Proof*: most handlers only read, and their bytecode shows it (`reads_only`); they cost nothing. *Witness*:
around every other handler the attributes are compared before and after: those that cannot change by identity, the
others by a digest of what can be reached from them. A digest costs time with the size of the state (about 30 ns for an
item), and is kept while only refusals happen.

What the proof rests on. It is for a class whose state consists of nothing but builtin values, which is shown by its
annotations, its defaults and by what its `@evolve` methods name. Then no method of the user's can be behind an
operator, a subscript or an attribute, and a handler that stores nothing in attributes and subscripts, calls no method
that changes a builtin container, and calls no function that is not known to only read, cannot change the state.
Whatever the proof does not know is left to the witness. Names of the module are looked up when the proof is made.
"""

from __future__ import annotations

import builtins
import dis
import hashlib
import inspect
import math
import re
import types
import typing
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import PosixPath, PurePosixPath, PureWindowsPath, WindowsPath
from typing import Any, Final
from uuid import UUID
from weakref import WeakKeyDictionary
from zoneinfo import ZoneInfo

import msgpack

from ..domain.declaration import arguments_of_union
from ..domain.difference import caches_of
from ..domain.messages import Command, Event, Message
from ..domain.reading import makes_itself, rules_of
from ..effects.open_call import OpenCall
from ..encoding.forms import PACKER_BYTES
from ..errors import Rejected
from ..processes.progress import Progress
from ..user_code import is_ctrl_c

__all__ = ["Witness", "changed", "reads_only", "witness_of"]

Witness = dict[str, Any]
"""The attributes of an instance: values that cannot change, and digests of the others."""

UNCHANGING: Final = frozenset(
    {int, str, bool, float, bytes, type(None), complex, Decimal, Fraction, UUID, date, datetime, time, timedelta}
)
"""Types whose values cannot change, so that the same object has the same value."""

_VALUES: Final = UNCHANGING | {
    *(PosixPath, WindowsPath, PurePosixPath, PureWindowsPath, timezone, ZoneInfo, re.Pattern, range),
    *(IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network),
    *(Progress, OpenCall),
}
"""Those, and others that cannot change though they may keep in themselves what was once asked of them; and where a
process or a call is, which is replaced and never changed."""


class _Digest:
    """What stands for a value that may change."""

    __slots__ = ("digest", "kept")

    def __init__(self, value: object) -> None:
        self.digest, self.kept = _digest(value)
        """`kept`: objects that the digest has by address alone; held, so that no other object gets that address."""


def witness_of(attributes: dict[str, Any]) -> Witness:
    """What `changed` compares with later."""
    if _VALUES.issuperset(map(type, attributes.values())):
        return attributes.copy()
    return {name: one if type(one) in _VALUES else _Digest(one) for name, one in attributes.items()}


def changed(attributes: dict[str, Any], before: Witness) -> str:
    """The name of an attribute that has changed since; empty when none has."""
    for name, value in attributes.items():
        known = before.get(name, _MISSING)
        if known is value:
            continue
        if type(known) is not _Digest or type(value) in _VALUES or known.digest != _digest(value)[0]:
            return name
    for name in before:
        if name not in attributes:
            return name
    return ""


_MISSING: Final = object()


def _digest(value: object) -> tuple[bytes, list[Any]]:
    """A digest of everything that can be reached from a value. It means something in this process alone."""
    kept: list[Any] = []

    def form(one: Any) -> Any:
        return _form(one, kept)

    try:
        packer = msgpack.Packer(default=form, strict_types=True, unicode_errors="surrogatepass", buf_size=PACKER_BYTES)
        packed = packer.pack(value)
    except BaseException as error:  # nested without end, or in a circle
        if is_ctrl_c(error):
            raise
        return _walked(value, kept), kept
    return hashlib.blake2b(packed, digest_size=16).digest(), kept


def _walked(value: object, kept: list[Any]) -> bytes:
    """The same, one after the other and each object once: 40 times as slow, and nothing is too deep for it."""
    digest = hashlib.blake2b(digest_size=16)
    numbers: dict[int, int] = {}
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        kind = type(one)
        digest.update(b"%d:" % id(kind))
        if kind in _VALUES:
            text = repr(one).encode("utf-8", "surrogatepass")
            digest.update(b"%d:%b" % (len(text), text))
            continue
        seen = id(one) in numbers
        digest.update(b"#%d:" % numbers.setdefault(id(one), len(numbers)))
        if seen:
            continue
        kept.append(one)
        parts: Any = one if kind in (list, tuple) else [*one.items()] if kind is dict else _form(one, kept)
        if isinstance(parts, int):
            digest.update(b"@%d:" % parts)
        else:
            digest.update(b"%d:" % len(parts))
            waiting += parts
    return digest.digest()


def _form(value: Any, kept: list[Any]) -> Any:
    """What is packed for a value that msgpack has no form of its own for: of which type it is, and its parts."""
    kind = type(value)
    if kind in _VALUES:
        return [id(kind), repr(value)]
    if kind in _GROUPS:
        return [id(kind), *value]
    if isinstance(value, type | types.FunctionType | types.ModuleType | Enum):
        return _by_address(value, kept)
    attributes = _parts_of(value) if _is_taken_apart(kind) else []
    if attributes and all(base in _KNOWN_BASES or _is_taken_apart(base) for base in kind.__mro__):
        return [id(kind), *attributes]
    try:
        made_by, *parts = value.__reduce_ex__(4)
    except BaseException as error:  # of the value's class
        if is_ctrl_c(error):
            raise
        return [id(kind), *attributes] if attributes else _by_address(value, kept)
    parts = [part if _is_packed(part) else [*part] for part in parts]
    return [id(kind), *attributes, _by_address(made_by, kept), *parts]


def _is_taken_apart(kind: type) -> bool:
    """Whether it is a class in Python, with attributes in a `__dict__` or in slots, or with those of its base alone."""
    if not kind.__flags__ & _HEAP_TYPE:
        return False
    if not vars(kind).keys().isdisjoint(("__dict__", "__slots__", "__weakref__")):
        return True
    return kind.__base__ is not None and kind.__basicsize__ == kind.__base__.__basicsize__ > object.__basicsize__


def _is_packed(part: Any) -> bool:
    return part is None or type(part) in (tuple, dict, list, bytes, str, int)


def _by_address(value: Any, kept: list[Any]) -> int:
    kept.append(value)
    return id(value)


_GROUPS: Final = frozenset({tuple, set, frozenset})
_HEAP_TYPE: Final = 1 << 9
"""Set in the flags of a class that was made in Python."""


def _parts_of(value: Any) -> list[Any]:
    """The attributes of an instance, and its items if its class derives from a builtin container."""
    parts: list[Any] = [_held_by(value)]
    for base in type(value).__mro__:
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                member: Any = vars(base).get(_mangled(base, name))
                try:
                    parts.append([name, member.__get__(value)])
                except AttributeError:
                    continue
    for base, items in _ITEMS_OF:
        if isinstance(value, base):
            parts.append(items(value))
    return parts


def _held_by(value: Any) -> Any:
    """Its `__dict__`, without what a `cached_property` of a class whose fields cannot change has put there: that is
    made of them, and the same whenever it is made."""
    kind: Any = type(value)
    attributes, cached = getattr(value, "__dict__", None), caches_of(kind)
    if not cached or not attributes:
        return attributes
    return {name: one for name, one in attributes.items() if name not in cached}


def _mangled(base: type, name: str) -> str:
    return f"_{base.__name__.lstrip('_')}{name}" if name.startswith("__") and not name.endswith("__") else name


_ITEMS_OF: Final[tuple[tuple[type, Any], ...]] = (
    (dict, lambda value: [*dict.items(value)]),
    (list, lambda value: list.copy(value)),
    (tuple, lambda value: [*tuple.__iter__(value)]),
    (set, lambda value: [*set.__iter__(value)]),
    (frozenset, lambda value: [*frozenset.__iter__(value)]),
    (deque, lambda value: [*deque.__iter__(value)]),
    (bytearray, bytes),
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: value[:]),
)
_KNOWN_BASES: Final = frozenset({object, typing.Generic, *(base for base, _ in _ITEMS_OF)})

# --- the proof ----------------------------------------------------------------------------------------------------


def reads_only(cls: type, function: Any, command: type[Command]) -> bool:
    """Whether the bytecode of a decide handler of `cls` shows that it cannot change the state."""
    if not (_consists_of_builtins(cls) and _has_plain_fields(command)):
        return False
    return _Proof(cls, [cls, command, *cls.evolvers], changes=False).holds(function)  # type: ignore[attr-defined]


def _consists_of_builtins(cls: Any) -> bool:
    """Whether nothing but builtin values can be reached from a state of this class."""
    known = _OF_BUILTINS.get(cls)
    if known is None:
        known = _OF_BUILTINS[cls] = _shows_builtins(cls)
    return known


def _shows_builtins(cls: Any) -> bool:
    if _has_own_access(cls):
        return False
    if not all(_is_plain_type(annotation) for annotation in cls.state_fields.values()):
        return False
    if not all(map(_is_plain_value, vars(cls()).values())):
        return False
    proof = _Proof(cls, [cls, *cls.evolvers], changes=True)
    return all(_is_plain_event(event) and proof.holds(evolve) for event, evolve in cls.evolvers.items())


_OF_BUILTINS: WeakKeyDictionary[type, bool] = WeakKeyDictionary()

_ACCESS: Final = frozenset({"__getattr__", "__getattribute__", "__setattr__", "__delattr__", "__eq__", "__hash__"})


_RUNTIME: Final = __package__.rpartition(".")[0] + "."


def _own_bases(cls: type) -> Iterator[type]:
    """The class and those of its bases that are the user's."""
    for base in cls.__mro__:
        of_a_library = base.__module__.partition(".")[0] in ("builtins", "pydantic", "typing", "abc", "enum")
        if not of_a_library and not base.__module__.startswith(_RUNTIME):
            yield base


def _has_own_access(cls: type) -> bool:
    """Whether code of the user's runs when an attribute is looked up or two instances are compared."""
    found = [vars(base)[name] for base in _own_bases(cls) for name in _ACCESS if name in vars(base)]
    return any(not getattr(function, "__module__", "").startswith("pydantic.") for function in found)


def _has_plain_fields(cls: type[Message]) -> bool:
    if _has_own_access(cls):
        return False
    return all(_is_plain_type(field.annotation) for field in cls.model_fields.values())


def _is_plain_event(cls: type[Event]) -> bool:
    """Whether making one, out of parts of a state, only reads them."""
    if makes_itself(cls) or cls.__private_attributes__ or rules_of(cls):
        return False
    return _has_plain_fields(cls)


def _is_plain_type(annotation: Any) -> bool:
    parts = arguments_of_union(annotation)
    if len(parts) > 1:
        return all(map(_is_plain_type, parts))
    (part,) = parts
    if part in UNCHANGING or part in _CONTAINERS or part is None:
        return True
    if isinstance(part, type) and issubclass(part, Enum):
        return _is_plain_enum(part)
    origin, arguments = typing.get_origin(part), typing.get_args(part)
    if origin is typing.Literal:
        return all(type(value) in UNCHANGING for value in arguments)
    return origin in _CONTAINERS and all(
        argument is Ellipsis or argument == () or _is_plain_type(argument) for argument in arguments
    )


_CONTAINERS: Final = frozenset({list, dict, set, frozenset, tuple, Sequence, Mapping, AbstractSet})


def _is_plain_enum(cls: type[Enum]) -> bool:
    """An enum without code of its own, so that comparing, hashing and showing a member only reads."""
    bases = [base for base in cls.__mro__ if base.__module__ not in ("enum", "builtins")]
    functions = [value for value in vars(cls).values() if isinstance(value, types.FunctionType | property)]
    own = [value for value in functions if getattr(getattr(value, "fget", value), "__module__", "") != "enum"]
    return bases == [cls] and not own and all(type(member.value) in UNCHANGING for member in cls)


def _is_plain_value(value: Any, depth: int = 0) -> bool:
    kind = type(value)
    if kind in UNCHANGING:
        return True
    if depth > 8:
        return False
    if kind is dict:
        return all(_is_plain_value(one, depth + 1) for item in value.items() for one in item)
    if kind in (list, tuple, set, frozenset):
        return all(_is_plain_value(one, depth + 1) for one in value)
    return isinstance(value, Enum) and _is_plain_enum(kind)


_CHANGING: Final = frozenset(
    name
    for kind, reading in (
        (list, {"copy", "count", "index"}),
        (dict, {"copy", "get", "items", "keys", "values", "fromkeys"}),
        (
            set,
            {
                "copy",
                "difference",
                "intersection",
                "isdisjoint",
                "issubset",
                "issuperset",
                "symmetric_difference",
                "union",
            },
        ),
    )
    for name in vars(kind)
    if not name.startswith("_") and name not in reading
)
"""Names of methods that change a builtin container. No builtin value that cannot change has one of these names for
something that a handler would do to a container."""

_CALLABLE: Final = frozenset(
    {abs, all, any, bool, bytes, complex, dict, divmod, enumerate, filter, float, format, frozenset, hash, int}
    | {isinstance, len, list, map, max, min, ord, chr, pow, range, repr, reversed, round, set, sorted, str, sum, tuple}
    | {zip, iter, next, type(None), Decimal, Fraction, UUID, date, datetime, time, timedelta, timezone}
    | {ValueError, TypeError, KeyError, RuntimeError, AssertionError, Exception, ArithmeticError, LookupError}
    | {IndexError, math.floor, math.ceil, math.isfinite, math.isnan, math.sqrt, slice}
)
"""What a handler may call: none of these changes a builtin value, `next` apart, which no state can hold."""

_ITERATORS: Final = (iter, next, map, filter, zip, enumerate, reversed)
"""What an `@evolve` could put into a state that changes when it is read."""

_READING: Final = """
BEFORE_WITH BINARY_OP BINARY_SLICE BINARY_SUBSCR BUILD_CONST_KEY_MAP BUILD_LIST BUILD_MAP BUILD_SET BUILD_SLICE
BUILD_STRING BUILD_TUPLE CACHE CALL CALL_FUNCTION_EX CALL_INTRINSIC_1 CALL_KW CHECK_EXC_MATCH CLEANUP_THROW
COMPARE_OP CONTAINS_OP CONVERT_VALUE COPY COPY_FREE_VARS DELETE_FAST DICT_MERGE DICT_UPDATE END_FOR END_SEND
EXTENDED_ARG FORMAT_SIMPLE FORMAT_VALUE FORMAT_WITH_SPEC FOR_ITER GEN_START GET_AITER GET_ITER GET_LEN
GET_YIELD_FROM_ITER IS_OP JUMP_BACKWARD JUMP_BACKWARD_NO_INTERRUPT JUMP_FORWARD JUMP_IF_FALSE_OR_POP
JUMP_IF_TRUE_OR_POP KW_NAMES LIST_APPEND LIST_EXTEND LIST_TO_TUPLE LOAD_ASSERTION_ERROR LOAD_ATTR LOAD_CLOSURE
LOAD_CONST LOAD_DEREF LOAD_FAST LOAD_FAST_AND_CLEAR LOAD_FAST_CHECK LOAD_FAST_LOAD_FAST LOAD_GLOBAL LOAD_METHOD
MAKE_CELL MAKE_FUNCTION MAP_ADD MATCH_CLASS MATCH_KEYS MATCH_MAPPING MATCH_SEQUENCE NOP POP_EXCEPT
POP_JUMP_BACKWARD_IF_FALSE POP_JUMP_BACKWARD_IF_NONE POP_JUMP_BACKWARD_IF_NOT_NONE POP_JUMP_BACKWARD_IF_TRUE
POP_JUMP_FORWARD_IF_FALSE POP_JUMP_FORWARD_IF_NONE POP_JUMP_FORWARD_IF_NOT_NONE POP_JUMP_FORWARD_IF_TRUE
POP_JUMP_IF_FALSE POP_JUMP_IF_NONE POP_JUMP_IF_NOT_NONE POP_JUMP_IF_TRUE POP_TOP PRECALL PUSH_EXC_INFO PUSH_NULL
RAISE_VARARGS RERAISE RESUME RETURN_CONST RETURN_GENERATOR RETURN_VALUE SEND SET_ADD SET_FUNCTION_ATTRIBUTE
SET_UPDATE STORE_DEREF STORE_FAST STORE_FAST_LOAD_FAST STORE_FAST_MAYBE_NULL STORE_FAST_STORE_FAST SWAP TO_BOOL
UNARY_INVERT UNARY_NEGATIVE UNARY_NOT UNARY_POSITIVE UNPACK_EX UNPACK_SEQUENCE YIELD_VALUE
"""
"""Opcodes of Python 3.11 to 3.13 that change nothing but variables of the handler; new ones are left to the witness."""

_READING_OPCODES: Final = frozenset(_READING.split())
_CHANGING_OPCODES: Final = frozenset({"STORE_ATTR", "DELETE_ATTR", "STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"})


class _Proof:
    """One way through the code of a handler and of the methods of its class that it calls."""

    def __init__(self, cls: Any, owners: Sequence[type], *, changes: bool) -> None:
        """`owners` are the classes of the user's whose attributes a handler can name; `changes`: it is an `@evolve`."""
        self._cls, self._owners, self._changes = cls, owners, changes
        self._seen: set[Any] = set()

    def holds(self, function: Any) -> bool:
        """Whether the code consists of known steps alone."""
        if not isinstance(function, types.FunctionType):
            return False
        if function.__code__ in self._seen:
            return True
        self._seen.add(function.__code__)
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return all(map(_is_plain_value, defaults)) and self._code(function.__code__, function)

    def _code(self, code: types.CodeType, function: types.FunctionType) -> bool:
        if self._changes and code.co_flags & inspect.CO_GENERATOR:
            return False  # a state could keep it, and be changed by whatever asks it for more
        steps = [step for step in dis.get_instructions(code) if step.opname not in ("CACHE", "EXTENDED_ARG")]
        return all(self._step(steps, index, code, function) for index in range(len(steps)))

    def _step(
        self, steps: Sequence[dis.Instruction], index: int, code: types.CodeType, function: types.FunctionType
    ) -> bool:
        step = steps[index]
        name, argument = step.opname, str(step.argval)
        if name in _CHANGING_OPCODES:
            return self._changes and (name != "STORE_ATTR" or self._stores_plainly(argument))
        if name not in _READING_OPCODES:
            return False
        if name in ("LOAD_ATTR", "LOAD_METHOD"):
            fresh = argument in _CHANGING and index > 0 and _is_fresh(steps, steps[index - 1], code)
            return fresh or self._attribute(argument)
        if name in ("LOAD_GLOBAL", "LOAD_DEREF"):
            return self._known(name, argument, function)
        if name == "LOAD_CONST" and isinstance(step.argval, types.CodeType):
            return self._code(step.argval, function)
        if name == "BINARY_OP" and step.argrepr.endswith("=") and not self._changes:
            return _adds_to_a_number(steps, index, code)
        return True

    def _stores_plainly(self, name: str) -> bool:
        return not name.startswith("__") and not hasattr(_static(self._cls, name), "__set__")

    def _attribute(self, name: str) -> bool:
        """Whether looking the name up, on whatever it may be looked up, runs no code that changes a state."""
        if name.startswith("__") or (not self._changes and name in _CHANGING):
            return False
        return all(self._attribute_of(owner, name) for owner in self._owners)

    def _attribute_of(self, owner: Any, name: str) -> bool:
        value = _static(owner, name)
        if (
            value is _MISSING
            or name in getattr(owner, "state_fields", ())
            or name in getattr(owner, "model_fields", ())
        ):
            return True
        if isinstance(value, property):
            return self.holds(value.fget)
        value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
        return self.holds(value) if isinstance(value, types.FunctionType) else _is_plain_value(value)

    def _known(self, step: str, name: str, function: types.FunctionType) -> bool:
        if step == "LOAD_DEREF":
            if name not in function.__code__.co_freevars:
                return True  # a variable of the handler itself, in a comprehension of it
            cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
            try:
                return _is_known(cells[name].cell_contents)
            except (KeyError, ValueError):
                return False
        value = function.__globals__.get(name, getattr(builtins, name, _MISSING))
        return _is_known(value) and not (self._changes and value in _ITERATORS)


def _is_known(value: Any) -> bool:
    """Whether a name of the module may stand in a handler: nothing that it can be used for changes a state."""
    if isinstance(value, type):
        if issubclass(value, Event):
            return _is_plain_event(value)
        if issubclass(value, Rejected):
            return value.__init__ is Rejected.__init__ and value.__new__ is Rejected.__new__
        if issubclass(value, Enum):
            return _is_plain_enum(value) and "_missing_" not in vars(value)
        return value in _CALLABLE
    try:
        return value in _CALLABLE or _is_plain_value(value)
    except TypeError:
        return _is_plain_value(value)


def _static(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in vars(base):
            return vars(base)[name]
    return _MISSING


def _adds_to_a_number(steps: Sequence[dis.Instruction], index: int, code: types.CodeType) -> bool:
    """`total += ...` on a variable that nothing but constants and such sums are put into: never a part of the state."""
    if index + 1 >= len(steps) or steps[index + 1].opname != "STORE_FAST":
        return False
    variable = steps[index + 1].argval
    if variable in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return False
    return all(map(_puts_a_number, _stores(steps, variable)))


def _is_fresh(steps: Sequence[dis.Instruction], step: dis.Instruction, code: types.CodeType) -> bool:
    """`found.append(...)` on a variable that nothing but containers made here are put into."""
    if not step.opname.startswith("LOAD_FAST"):
        return False
    variable = step.argval[-1] if isinstance(step.argval, tuple) else step.argval
    if variable in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        return False
    makers = [*_stores(steps, variable)]
    return bool(makers) and all(maker is not None and maker.opname in _MAKES_A_CONTAINER for maker in makers)


_MAKES_A_CONTAINER: Final = frozenset({"BUILD_LIST", "BUILD_MAP", "BUILD_SET"})


def _stores(steps: Sequence[dis.Instruction], variable: str) -> Iterator[dis.Instruction | None]:
    """What comes just before each step that puts something into a variable."""
    for index, step in enumerate(steps):
        names = step.argval if isinstance(step.argval, tuple) else (step.argval,)
        if step.opname.startswith("STORE_FAST") and variable in names:
            yield steps[index - 1] if index and step.opname == "STORE_FAST" else None


def _puts_a_number(step: dis.Instruction | None) -> bool:
    if step is None:
        return False
    if step.opname == "LOAD_CONST":
        return type(step.argval) in UNCHANGING
    return step.opname == "BINARY_OP" and step.argrepr.endswith("=")
