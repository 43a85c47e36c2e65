"""Saved state: everything that an aggregate or a projection holds, as bytes from which it comes back as it was.

What a snapshot (written at step [5], read at [3]), a projector's checkpoint and a kept copy hold.

Rules kept here:
- what is restored equals what was saved, in type too, regardless of the annotations; what cannot be is refused with
  class, field and reason, and then there is no snapshot or checkpoint
- nothing of the user's runs while a state is restored: no validator, no `__init__`, no `__post_init__`. Objects are
  made empty and their attributes are set, so a rule that came later cannot make a saved state wrong
- only classes that the handlers, fields and events of the class name can be made (`fingerprint.py` finds them), so
  bytes can never name one that the application does not use
- two places that hold one changeable object would come back with an object each, so such a state is refused
- a saved state is never trusted beyond its fingerprint: when the declared state or the code that evolves it changes,
  the fingerprint does, and the history is folded again

Why msgpack with strict types: it packs exactly `dict`, `list`, `str`, `int`, `float`, `bool`, `bytes` and None in C,
and leaves everything else, subclasses too, to a hook. So what no hook has seen comes back as it was without a check: a
million accounts (`dict[str, int]`) cost nothing extra. The hook writes extension types that carry the type of a value.
"""

from __future__ import annotations

import functools
import types
import typing
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from itertools import chain
from pathlib import PosixPath, PurePosixPath, PureWindowsPath
from typing import Any, Final, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
from pydantic import (
    BaseModel,
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    PydanticUserError,
    TypeAdapter,
)
from pydantic_core import MultiHostUrl, PydanticSerializationError, TzInfo, Url

from ..domain.declaration import described, where
from ..domain.difference import attributes_of, caches_of, difference, shown, slots_of
from ..domain.fingerprint import fingerprint_of, reached_from, state_fingerprint
from ..domain.messages import Payload
from ..domain.state import Stateful
from ..errors import DefinitionError, InvalidMessage
from ..user_code import class_name, is_ctrl_c
from .forms import NESTED_MAX, PACKER_BYTES, stored_form, unpack_nested

__all__ = [
    "STATE_BYTES_MAX",
    "check_annotations",
    "check_restored",
    "check_state_fields",
    "checked_state",
    "decode_state",
    "encode_state",
    "pack_value",
    "state_fingerprint",
    "unpack_value",
]

STATE_BYTES_MAX: Final = 1 << 30
"""One saved state: it is held in memory whole, twice while it is packed."""

_VISITED_MAX: Final = 100_000_000
"""Values that are visited in one state: more do not fit into memory, unless tuples hold one another many times."""

_LEVELS_MAX: Final = NESTED_MAX
"""Levels of nesting in one state: what can be read again."""

_LAMBDAS_MAX: Final = 8
"""The depth of a `defaultdict` in a `defaultdict` in a ..., for each field."""

S = TypeVar("S", bound=Stateful)


def encode_state(instance: Stateful) -> bytes:
    """Everything that the instance holds, as bytes; equal states give equal bytes.

    Raises `InvalidMessage`, naming the class, the field and the reason, for what would not come back as it is.
    """
    return _encoded(instance, _form_of(type(instance)))


def checked_state(instance: Stateful, compared_bytes_max: int = STATE_BYTES_MAX) -> bytes:
    """The same, restored and compared with the instance, value by value. Raises `InvalidMessage`.

    A state in which there is nothing but plain values needs no comparing: msgpack's own types come back as they are.
    One of over `compared_bytes_max` bytes is not compared here: `check_restored` does without the instance.
    """
    form = _form_of(type(instance))
    hooked_before = form.hooked
    state = _encoded(instance, form)
    if form.hooked != hooked_before and len(state) <= compared_bytes_max:
        place = (instance.id, instance.version) if _has_id(type(instance)) else ("", 0)  # type: ignore[attr-defined]
        found = difference(instance, decode_state(type(instance), state, *place))
        if found:
            raise InvalidMessage(where(type(instance)), f"it would not come back as it is: {found}", _REMEDY)
    return state


def check_restored(cls: type[Stateful], state: bytes) -> None:
    """Restore these bytes and encode them again: they must be the same. For a large state that has been encoded, while
    others change it. Raises `InvalidMessage`."""
    form = _form_of(cls)
    if form.objects and _encoded(decode_state(cls, state), form) != state:
        raise InvalidMessage(where(cls), "its state would come back as another one", _REMEDY)


def decode_state(cls: type[S], data: bytes, id: str = "", version: int = 0) -> S:
    """An instance with the state that `encode_state` saved. `id` and `version` are for an aggregate.

    Raises `InvalidMessage` when the bytes hold anything else than a state of this class.
    """
    try:
        unpacker = msgpack.Unpacker(
            ext_hook=_form_of(cls).from_form, strict_map_key=False, max_buffer_size=min(len(data), STATE_BYTES_MAX) or 1
        )
        unpacker.feed(data)
        count = unpacker.unpack()
        if type(count) is not int or not 0 <= count <= len(data):
            raise ValueError("no number of fields")
        values = {unpacker.unpack(): unpacker.unpack() for _ in range(count)}
        if not all(type(name) is str for name in values) or not values.keys() >= cls.state_fields.keys():
            raise ValueError("other fields")
        if unpacker.tell() != len(data):
            raise ValueError("more than a state")
    except BaseException as error:  # user code runs in `__hash__` and `__eq__` of keys, and may raise anything
        if is_ctrl_c(error):
            raise
        raise InvalidMessage(where(cls), f"these bytes are not a state of it: {_first_line(error)}") from error
    instance = cls.__new__(cls)
    if _has_id(cls):
        instance.__dict__.update(id=id, version=version)
    instance.__dict__.update(values)
    return instance


def pack_value(value: Any) -> bytes:
    """A plain value as bytes that `unpack_value` turns into an equal one, in type too. Raises `TypeError`, `ValueError`
    or `OverflowError` for what no tag stands for."""
    return _PLAIN.packed(value, lifts=True)


def unpack_value(data: bytes) -> Any:
    """The value that `pack_value` packed. Raises `ValueError` or `TypeError` for other bytes."""
    return unpack_nested(data, _PLAIN.from_form)


def check_annotations(instance: Stateful) -> None:
    """Raise `InvalidMessage`, naming the field, for a value that is not what the field is annotated with. It would be
    saved as it is, but is a mistake in the handler."""
    for name, annotation in instance.state_fields.items():
        try:
            adapter = TypeAdapter(annotation)
        except PydanticUserError:
            continue
        try:
            adapter.dump_python(getattr(instance, name), by_alias=False, round_trip=True, warnings="error")
        except (PydanticSerializationError, TypeError, ValueError, OverflowError, RecursionError) as error:
            what = f"its field {name} cannot be saved: {_first_line(error)}"
            raise InvalidMessage(
                where(type(instance)), what, f"keep it to its annotation, {described(annotation)}"
            ) from error


def check_state_fields(cls: type[Stateful]) -> None:
    """Raise `DefinitionError` for a field whose annotation cannot be saved."""
    for name, annotation in cls.state_fields.items():
        try:
            TypeAdapter(annotation)
        except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
            raise DefinitionError(
                where(cls, name),
                f"values of {described(annotation)} cannot be saved in a snapshot",
                "use plain values, dataclasses or pydantic models",
            ) from error
        except PydanticUserError:  # a TypedDict of `typing` before Python 3.12: a plain dict
            continue


_REMEDY: Final = "keep plain values, containers, dataclasses and models in it, each in one place"


def _encoded(instance: Stateful, form: _Form) -> bytes:
    cls = type(instance)
    own = _has_id(cls)
    values = {name: value for name, value in attributes_of(instance).items() if not (own and name in ("id", "version"))}
    if missing := cls.state_fields.keys() - values.keys():
        raise InvalidMessage(
            where(cls), f"its field {min(missing)} is gone", "set it to a value instead of deleting it"
        )
    parts, seen = [form.packed(len(values))], dict[int, str]()
    for name, value in values.items():
        try:
            lifts = _survey(value, name, seen)
            parts.append(form.packed(name))
            parts.append(form.packed(value, name, lifts))
        except BaseException as error:  # user code runs in `__eq__` and `__hash__`, and may raise anything
            if is_ctrl_c(error):
                raise
            what = f"its field {name} cannot be saved: {_first_line(error)}"
            raise InvalidMessage(where(cls), what, _REMEDY) from error
    state = b"".join(parts)
    if len(state) > STATE_BYTES_MAX:
        raise InvalidMessage(where(cls), f"its state has {len(state):,} bytes, over {STATE_BYTES_MAX:,}")
    return state


def _has_id(cls: type[Stateful]) -> bool:
    """Whether the runtime sets `id` and `version`, which are no state: of aggregates."""
    return hasattr(cls, "aggregate_type")


# --- one object in two places -----------------------------------------------------------------------------------

_LEAVES: Final = frozenset(
    {type(None), bool, int, float, str, bytes, complex, datetime, date, time, timedelta, timezone, ZoneInfo, TzInfo}
    | {Decimal, UUID, Fraction, range, PosixPath, PurePosixPath, PureWindowsPath, Url, MultiHostUrl}
    | {IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network}
)
"""What holds nothing that could change."""

_REFUSED: Final = (memoryview, msgpack.ExtType, msgpack.Timestamp)
"""What msgpack would pack as something else."""


def _survey(value: Any, field: str, seen: dict[int, str]) -> bool:
    """Raise `ValueError` if something that can change is reached twice, so that it would come back as two things.
    Returns whether there is a bytearray, which msgpack would pack as bytes.

    Layer by layer, with the loops over items in C: a dict of a million ints takes 20 ms. `seen` has the ids of what was
    found in this state so far, and in which field.
    """
    layer, visited, levels, lifts = [value], 0, 0, False
    while kinds := set(map(type, layer)) - _LEAVES:
        following: list[Any] = []
        for kind in kinds:
            group = [item for item in layer if type(item) is kind]
            visited += len(group)
            if issubclass(kind, _REFUSED):
                raise TypeError(f"a {kind.__name__} cannot be stored")
            if issubclass(kind, Enum | type) or kind is types.FunctionType:
                continue
            lifts |= kind is bytearray
            if not _is_frozen(kind):  # type: ignore[arg-type]  # every class can be hashed
                _count(group, kind, field, seen)
            following += _inside(group, kind)
        levels += 1
        if visited > _VISITED_MAX or levels > _LEVELS_MAX:
            raise ValueError(f"it is nested over {_LEVELS_MAX} levels deep, or holds over {_VISITED_MAX:,} values")
        layer = following
    return lifts


def _count(group: list[Any], kind: type, field: str, seen: dict[int, str]) -> None:
    fresh = dict.fromkeys(map(id, group), field)
    if len(fresh) != len(group):
        raise ValueError(f"it holds one {kind.__name__} in two places, or one that holds itself")
    if not seen.keys().isdisjoint(fresh):
        other = seen[next(iter(seen.keys() & fresh.keys()))]
        where_else = (
            "in two places, or one that holds itself" if other == field else f"that its field {other} holds too"
        )
        raise ValueError(f"it holds one {kind.__name__} {where_else}")
    seen |= fresh


@functools.lru_cache(maxsize=4096)
def _is_frozen(kind: Any) -> bool:
    """Whether values of this class can be in two places: their content is visited, they themselves cannot change."""
    if issubclass(kind, BaseModel):
        return bool(kind.model_config.get("frozen"))
    parameters = getattr(kind, "__dataclass_params__", None)
    if parameters is not None:
        return bool(parameters.frozen)
    return issubclass(kind, tuple | frozenset | str | int | float | bytes | datetime | date | Decimal)


def _inside(group: list[Any], kind: type) -> Iterable[Any]:
    """What these values of one class hold: the items that are not plain, and the values of attributes."""
    layers: list[Iterable[Any]] = []
    if issubclass(kind, dict):
        layers += [chain.from_iterable(map(dict.keys, group)), chain.from_iterable(map(dict.values, group))]
    elif issubclass(kind, list | tuple | set | frozenset | deque):
        layers.append(chain.from_iterable(group))
    if kind not in _WITHOUT_ATTRIBUTES:
        if kind.__dictoffset__ and not slots_of(kind):  # most classes
            layers.append(chain.from_iterable(item.__dict__.values() for item in group))
        else:
            layers.append(chain.from_iterable(attributes_of(item).values() for item in group))
    return [item for layer in layers for item in layer if type(item) not in _LEAVES]


_WITHOUT_ATTRIBUTES: Final = frozenset({dict, list, tuple, set, frozenset, deque, bytearray, defaultdict})


def _lifted(value: Any) -> Any:
    """The value with what stands for a bytearray in its lists and dicts."""
    kind = type(value)
    if kind is bytearray:
        return msgpack.ExtType(10, msgpack.packb(bytes(value)))
    if kind is list:
        return list(map(_lifted, value))
    if kind is dict:
        return {key: _lifted(item) for key, item in value.items()}
    return value


# --- forms --------------------------------------------------------------------------------------------------------


class _Form:
    """How values are packed for one class: with the classes and functions that its handlers name."""

    def __init__(self, classes: Sequence[type] = (), functions: Sequence[types.FunctionType] = ()) -> None:
        self._classes = _classes_by_name(_with_what_they_hold(classes)) | _classes_by_name(classes)
        self._names = {one: name for name, one in self._classes.items() if one is not None}
        self._functions = _by_name(functions)
        self._defaults: dict[str, tuple[Any, ...]] = {}
        """Factories of the defaultdicts that fields start with, by field."""
        self._field = ""
        self._shapes: dict[type, _Shape] = {}
        self._lifts = False
        self.hooked = self.objects = 0
        """Count the values that msgpack does not know, and those of the application's own classes, that were packed."""

    def start_from(self, cls: type[Stateful]) -> None:
        """Take the factories that no name stands for from a fresh state: the lambda of a `defaultdict`, and the lambda
        in what that makes."""
        for name, value in vars(cls()).items():
            found = []
            while isinstance(value, defaultdict) and isinstance(value.default_factory, types.FunctionType):
                found.append(value.default_factory)
                value = value.default_factory() if len(found) < _LAMBDAS_MAX else None
            self._defaults[name] = tuple(found)

    def packed(self, value: Any, field: str = "", lifts: bool = False) -> bytes:
        """The bytes of the value of a field. `lifts`: there is a bytearray in it."""
        self._field, self._lifts = field, lifts
        return self._packed(value)

    def _packed(self, value: Any) -> bytes:
        if self._lifts:
            value = _lifted(value)
        packed: bytes = msgpack.Packer(default=self.to_form, strict_types=True, buf_size=PACKER_BYTES).pack(value)
        return packed

    # --- to bytes ------------------------------------------------------------------------------------------------

    def to_form(self, value: Any) -> Any:
        """What the packer writes for a value that msgpack does not know. Raises `TypeError`, with the reason."""
        kind = type(value)
        tag = _FORM_BY_TYPE.get(kind)
        if tag is not None:
            code, form = tag
            self.hooked += 1
            return msgpack.ExtType(code, self._packed(form(self, value)))
        if isinstance(value, Enum):
            self.hooked += 1
            return msgpack.ExtType(_ENUM, self._packed(self._enum(value, kind)))
        if isinstance(value, type):
            return msgpack.ExtType(_CLASS, self._packed(self._name_of_class(value)))
        return msgpack.ExtType(_OBJECT, self._packed(self._object(value, kind)))

    def _enum(self, value: Enum, kind: type[Enum]) -> list[Any]:
        name = self._name_of_class(kind)
        if isinstance(value, Flag) and kind.__members__.get(value.name or "") is not value:
            return [name, value._value_]
        if kind.__members__.get(value.name) is not value:
            raise TypeError(f"{shown(value)} is not a member of {kind.__name__}")
        return [name, value.name]

    def _object(self, value: Any, kind: type) -> list[Any]:
        self.hooked += 1
        self.objects += 1
        shape = self._shapes.get(kind) or self._shape(kind)
        content = None if shape.base is None else _BASES[shape.base][0](self, value)
        attributes = value.__dict__ if shape.only_dict else attributes_of(value)
        if not shape.caches.isdisjoint(attributes):  # they are made again on demand
            attributes = {name: one for name, one in attributes.items() if name not in shape.caches}
        return [shape.name, content, attributes]

    def _shape(self, kind: type) -> _Shape:
        name = self._name_of_class(kind)
        for base in kind.__mro__:
            if base is object or base in _BASES:
                break
            if not base.__flags__ & _HEAP_TYPE or base.__flags__ & _IMMUTABLE_TYPE:
                raise TypeError(f"a {kind.__name__} holds what only its own code can read")
        for refused in (Callable, Iterator, BaseException, Stateful):
            if issubclass(kind, refused):  # type: ignore[arg-type]
                raise TypeError(f"a {kind.__name__} is not a value")
        slots = slots_of(kind)
        shape = self._shapes[kind] = _Shape(
            name,
            None if base is object else base,
            dict(slots),
            bool(kind.__dictoffset__) and not slots,
            caches_of(kind),
        )
        return shape

    def _name_of_class(self, cls: type) -> str:
        name = self._names.get(cls)
        if name is not None:
            return name
        if cls.__name__ in self._classes:
            raise TypeError(f"two classes that its handlers name are called {cls.__name__}")
        raise TypeError(f"neither its fields nor its handlers name the class {cls.__name__}")

    def factory_form(self, factory: Any) -> Any:
        """What stands for the `default_factory` of a defaultdict."""
        if factory is None:
            return None
        if isinstance(factory, type):
            return ["builtin", factory.__name__] if factory in _FACTORIES else ["class", self._name_of_class(factory)]
        if isinstance(factory, functools.partial) and not factory.keywords:
            return ["partial", self.factory_form(factory.func), [self.factory_form(part) for part in factory.args]]
        if isinstance(factory, types.FunctionType):
            name: str = factory.__name__
            if self._functions.get(name) is factory:
                return ["function", name]
            for number, known in enumerate(self._defaults.get(self._field, ())):
                if known is factory or (known.__code__ == factory.__code__ and not factory.__closure__):
                    return ["default", self._field, number]
        what = f"nothing names the default_factory of a defaultdict, {shown(factory)}"
        raise TypeError(f"{what}; use a class or a function of a module")

    # --- and back ------------------------------------------------------------------------------------------------

    def from_form(self, code: int, data: bytes) -> Any:
        """The value of an extension type. Raises `ValueError`, `TypeError` or `KeyError` for bytes that are none."""
        content = unpack_nested(data, self.from_form)
        if code in _FROM_FORM:
            return _FROM_FORM[code](self, content)
        if code == _ENUM:
            name, member = content
            cls: Any = self._class_named(name)
            return cls.__members__[member] if isinstance(member, str) and member in cls.__members__ else cls(member)
        if code == _CLASS:
            return self._class_named(content)
        if code == _OBJECT:
            return self._made(*content)
        raise ValueError(f"no value is tagged {code}")

    def _made(self, name: str, content: Any, attributes: dict[str, Any]) -> Any:
        """An object of this class, made empty and filled; none of its own code runs."""
        cls = self._class_named(name)
        shape = self._shapes.get(cls) or self._shape(cls)
        made: Any = object.__new__(cls) if shape.base is None else _BASES[shape.base][1](self, cls, content)
        if not attributes:
            return made
        if not shape.slots:
            made.__dict__.update(attributes)
            return made
        for attribute, value in attributes.items():
            slot = shape.slots.get(attribute)
            if slot is not None:
                slot.__set__(made, value)
            else:
                made.__dict__[attribute] = value
        return made

    def _class_named(self, name: Any) -> type:
        known: type | None = self._classes.get(name)
        if known is None:
            raise ValueError(f"no class {name} is known here")
        return known

    def factory_from(self, form: Any) -> Any:
        """The `default_factory` that `factory_form` describes."""
        if form is None:
            return None
        kind, name, *rest = form
        if kind == "builtin":
            return _FACTORIES_BY_NAME[name]
        if kind == "class":
            return self._class_named(name)
        if kind == "partial":
            return functools.partial(self.factory_from(name), *map(self.factory_from, rest[0]))
        if kind == "function" and self._functions.get(name) is not None:
            return self._functions[name]
        return self._defaults[name][rest[0]]

    def __reduce__(self) -> tuple[Any, ...]:
        """Not shipped with the class that it is kept on: another process makes its own."""
        return _nothing, ()


class _PlainForm(_Form):
    """For a single value, where no class of an application is known: of a member or a subclass its plain value."""

    def to_form(self, value: Any) -> Any:
        """See `_Form.to_form`."""
        if type(value) in _FORM_BY_TYPE:
            return super().to_form(value)
        if isinstance(value, Enum):
            return value.value
        kinds: tuple[Callable[[Any], Any], ...] = (str, bytes, int, float, dict, list)
        for kind in kinds:
            if isinstance(value, kind):  # type: ignore[arg-type]
                return kind(value)
        return stored_form(value)


class _Shape(typing.NamedTuple):
    """How objects of one class are packed."""

    name: str
    base: type | None
    """The class among those of the language that it is derived from."""
    slots: dict[str, Any]
    only_dict: bool
    """It has nothing but a `__dict__`."""
    caches: frozenset[str]
    """What it may hold that is made of the rest (`difference.caches_of`)."""


def _nothing() -> None:
    return None


def _by_name(things: Iterable[Any]) -> dict[str, Any]:
    """By their names; None for a name that two of them have."""
    found: dict[str, Any] = {}
    for thing in things:
        name = thing.__name__
        found[name] = thing if found.get(name, thing) is thing else None
    return found


def _classes_by_name(classes: Iterable[type]) -> dict[str, Any]:
    """By their names, where several have one by name and content, which is the same in every process; None for an
    ambiguous name."""
    found = _by_name(classes)
    for cls in classes:
        if found[cls.__name__] is None:
            name = f"{cls.__name__} {fingerprint_of(cls, cls.__module__).hex()}"
            found[name] = cls if found.get(name, cls) is cls else None
    return found


def _form_of(cls: type[Stateful]) -> _Form:
    known: _Form | None = cls.__dict__.get("_form")
    if known is None:
        reached = reached_from(cls)
        known = _Form(reached.classes, reached.functions)
        known.start_from(cls)
        cls._form = known
    return known


def _with_what_they_hold(classes: Iterable[type]) -> list[type]:
    """The classes, those that their fields are annotated with, and the classes derived from any of them."""
    found: dict[int, type] = {}
    waiting: deque[Any] = deque(classes)
    while waiting:
        one = waiting.popleft()
        if typing.get_args(one):
            waiting += [typing.get_origin(one), *typing.get_args(one)]
        if not isinstance(one, type) or id(one) in found or one in _FORM_BY_TYPE or one in _FACTORIES:
            continue
        found[id(one)] = one
        if not one.__flags__ & _HEAP_TYPE or one.__module__ in _TOO_GENERAL:
            continue
        waiting += type.__subclasses__(one)
        with suppress(Exception):  # text that names what is no more, or not here
            waiting += typing.get_type_hints(one).values()
    return list(found.values())


_TOO_GENERAL: Final = ("abc", "collections.abc", "enum", "typing", "pydantic.main", Payload.__module__)
"""Modules of classes that nearly everything is derived from."""

_HEAP_TYPE: Final = 1 << 9
_IMMUTABLE_TYPE: Final = 1 << 8
"""Flags of CPython's types: of classes written in Python only the first is set."""

_ENUM, _CLASS, _OBJECT = 32, 33, 34


def _items_of_set(form: _Form, value: Any) -> list[Any]:
    """In the order of their packed bytes: the same in every process, whatever its hash seed."""
    items = list(chain(value))
    if len(items) < 2:  # sets in sets would otherwise take twice the time for each level
        return items
    if all(type(item) is str for item in items):  # most sets, and ten times as fast
        return sorted(items)
    return sorted(items, key=form._packed)


def _moment(form: _Form, value: Any) -> Any:
    """Text where that is complete; with the zone and the fold where they are more than an offset."""
    zone = value.tzinfo
    nameless = type(zone) is timezone and zone.tzname(None) == timezone(zone.utcoffset(None)).tzname(None)
    if value.fold == 0 and (zone is None or nameless):
        return value.isoformat()
    return [value.replace(tzinfo=None, fold=0).isoformat(), value.fold, _zone(zone)]


def _zone(zone: Any) -> Any:
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key is not None:
        return ["key", zone.key]
    if type(zone) is TzInfo:
        return ["pydantic", int((zone.utcoffset(None) or timedelta(0)).total_seconds())]
    if type(zone) is timezone:
        offset = zone.utcoffset(None)
        return ["offset", [offset.days, offset.seconds, offset.microseconds], zone.tzname(None)]
    raise TypeError(f"a {type(zone).__name__} cannot be stored")


def _moment_from(kind: Any, form: Any) -> Any:
    if isinstance(form, str):
        return kind.fromisoformat(form)
    text, fold, zone = form
    return kind.fromisoformat(text).replace(fold=fold, tzinfo=_zone_from(zone))


def _zone_from(form: Any) -> Any:
    if form is None:
        return None
    kind, what, *name = form
    if kind == "key":
        return ZoneInfo(what)
    if kind == "pydantic":
        return TzInfo(what)
    zone = timezone(timedelta(*what))
    return zone if [zone.tzname(None)] == name else timezone(timedelta(*what), *name)


def _ordered(made: Any, items: Any) -> Any:
    for key, value in items:
        OrderedDict.__setitem__(made, key, value)
    return made


def _filled(kind: Any, fill: Callable[[Any, Any], Any]) -> Callable[[_Form, type, Any], Any]:
    """Makes an empty one of a class derived from `kind`, and fills it with `kind`'s own method."""

    def make(form: _Form, cls: type, content: Any) -> Any:
        made = kind.__new__(cls)
        fill(made, content)
        return made

    return make


def _of_defaultdict(form: _Form, value: Any) -> list[Any]:
    return [form.factory_form(value.default_factory), dict(dict.items(value))]


def _make_defaultdict(form: _Form, cls: type, content: Any) -> Any:
    made: Any = defaultdict.__new__(cls)
    made.default_factory = form.factory_from(content[0])
    dict.update(made, content[1])
    return made


def _make_deque(form: _Form, cls: type, content: Any) -> Any:
    made: Any = deque.__new__(cls)
    deque.__init__(made, content[1], content[0])
    return made


_BASES: Final[dict[type, tuple[Callable[[_Form, Any], Any], Callable[[_Form, type, Any], Any]]]] = {
    defaultdict: (_of_defaultdict, _make_defaultdict),
    OrderedDict: (lambda _, value: list(map(list, OrderedDict.items(value))), _filled(OrderedDict, _ordered)),
    dict: (lambda _, value: dict(dict.items(value)), _filled(dict, dict.update)),
    list: (lambda _, value: list(list.__iter__(value)), _filled(list, list.extend)),
    set: (_items_of_set, _filled(set, set.update)),
    frozenset: (_items_of_set, lambda _, cls, content: frozenset.__new__(cls, content)),
    tuple: (lambda _, value: list(tuple.__iter__(value)), lambda _, cls, content: tuple.__new__(cls, content)),
    deque: (lambda _, value: [value.maxlen, list(deque.__iter__(value))], _make_deque),
    str: (lambda _, value: str.__str__(value), lambda _, cls, content: str.__new__(cls, content)),
    bytes: (lambda _, value: bytes(value), lambda _, cls, content: bytes.__new__(cls, content)),
    int: (lambda _, value: int.__int__(value), lambda _, cls, content: int.__new__(cls, content)),
    float: (lambda _, value: float.__float__(value), lambda _, cls, content: float.__new__(cls, content)),
}
"""What the application's classes may be derived from: how its part is packed, and how it is made of that."""

_ADDRESSES: Final = {
    kind.__name__: kind
    for kind in (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network, Url, MultiHostUrl)
}
_PATHS: Final = {kind.__name__: kind for kind in (PosixPath, PurePosixPath, PureWindowsPath)}

_TAGS: tuple[tuple[int, type, Callable[[_Form, Any], Any], Callable[[_Form, Any], Any]], ...] = (
    (1, tuple, lambda _, value: list(value), lambda _, form: tuple(form)),
    (2, set, _items_of_set, lambda _, form: set(form)),
    (3, frozenset, _items_of_set, lambda _, form: frozenset(form)),
    (4, datetime, _moment, lambda _, form: _moment_from(datetime, form)),
    (5, date, lambda _, value: value.isoformat(), lambda _, form: date.fromisoformat(form)),
    (6, time, _moment, lambda _, form: _moment_from(time, form)),
    (
        7,
        timedelta,
        lambda _, value: [value.days, value.seconds, value.microseconds],
        lambda _, form: timedelta(*form),
    ),
    (8, Decimal, lambda _, value: str(value), lambda _, form: Decimal(form)),
    (9, UUID, lambda _, value: str(value), lambda _, form: UUID(form)),
    (10, bytearray, lambda _, value: bytes(value), lambda _, form: bytearray(form)),
    (11, int, lambda _, value: hex(value), lambda _, form: int(form, 0)),  # beyond 64 bits: others msgpack packs itself
    (12, complex, lambda _, value: [value.real, value.imag], lambda _, form: complex(*form)),
    (13, deque, _BASES[deque][0], lambda form, content: _make_deque(form, deque, content)),
    (14, defaultdict, _of_defaultdict, lambda form, content: _make_defaultdict(form, defaultdict, content)),
    (15, OrderedDict, _BASES[OrderedDict][0], lambda _, form: _ordered(OrderedDict(), form)),
    (16, Counter, _BASES[dict][0], lambda form, content: _BASES[dict][1](form, Counter, content)),
    (17, Fraction, lambda _, value: [value.numerator, value.denominator], lambda _, form: Fraction(*form)),
    (18, range, lambda _, value: [value.start, value.stop, value.step], lambda _, form: range(*form)),
    (19, ZoneInfo, lambda _, value: _zone(value), lambda _, form: _zone_from(form)),
    (20, timezone, lambda _, value: _zone(value), lambda _, form: _zone_from(form)),
    (21, TzInfo, lambda _, value: _zone(value), lambda _, form: _zone_from(form)),
    *(
        (22 + number, kind, lambda _, value: str(value), lambda _, form, kind=kind: kind(form))
        for number, kind in enumerate((*_ADDRESSES.values(),))
    ),
    *(
        (40 + number, kind, lambda _, value: str(value), lambda _, form, kind=kind: kind(form))
        for number, kind in enumerate(_PATHS.values())
    ),
)
"""Number, type, what is packed under the number, and how that turns back. The numbers are stored: never reuse one."""

_FORM_BY_TYPE: Final = {kind: (code, to_form) for code, kind, to_form, _ in _TAGS}
_FROM_FORM: Final = {code: from_form for code, _, _, from_form in _TAGS}

_FACTORIES: Final = frozenset(
    {int, float, complex, str, bytes, bool, list, dict, set, frozenset, tuple, bytearray, object}
    | {Counter, OrderedDict, defaultdict, deque, Decimal, Fraction, timedelta}
)
_FACTORIES_BY_NAME: Final = {kind.__name__: kind for kind in _FACTORIES}

_PLAIN: Final = _PlainForm()
"""Without any class of an application: for single values."""


def _first_line(error: BaseException) -> str:
    try:
        said = str(error).splitlines()
    except BaseException:  # of an exception of the user's
        said = []
    return said[-1].strip() if said else class_name(error)
