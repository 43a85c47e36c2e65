"""The fingerprint of the code that makes a state: 16 bytes that change with all that can change what handlers do.

Used where a snapshot, a checkpoint or a database of a read model is written and read ([3], [5], [7]): what was saved
under another fingerprint is not used, and the history is folded again.

How: a walk over everything that the handlers can reach, each thing described as text that is the same in every process:
functions by their bytecode, defaults, closures and the globals that they name; classes by their fields, constants and
methods; other values by their content. What is installed (neither the standard library nor the package of the class) is
described by its name and the version of its distribution.

Rules kept here:
- the text does not depend on addresses, hash seeds, or on whether a class was imported or shipped by value; so classes
  and functions count by their short name, and annotations that are still text count as text
- comments, docstrings, line numbers, and handlers that change no state (`@decide`, `@answer`) do not count
- what has no content that could be described (a lock, a file, a socket) or whose content is another one at every start
  (`random.Random`, iterators) counts by its type: a handler whose result depended on it would not be a fold of the log
- a value that each process makes anew (the time of the import) is part of the code's behaviour: it changes the
  fingerprint, so that nothing old is used
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import random
import re
import sys
import sysconfig
import types
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from datetime import date, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from ..printable import printable_log
from ..user_code import is_ctrl_c
from .state import Stateful

__all__ = ["Reached", "fingerprint_of", "reached_from", "state_fingerprint"]

log = printable_log(__name__)

FINGERPRINT_BYTES: Final = 16

SAVED_FORM: Final = 2
"""The form of the bytes of saved states (`saved_state.py`): it is part of the fingerprint, so another one is never
decoded."""

NODES_MAX: Final = 50_000
"""Functions and classes that are examined: some seconds, once. An application has hundreds."""

ITEMS_MAX: Final = 1_000_000
"""Values inside constants that are described one by one: about a second. A larger table counts by its size."""


class Reached(typing.NamedTuple):
    """What a walk from a class has found."""

    fingerprint: bytes
    classes: tuple[type, ...]
    """Every class that the handlers, the fields or the events name."""
    functions: tuple[types.FunctionType, ...]


def state_fingerprint(cls: type[Stateful]) -> bytes:
    """16 bytes that change with the declared fields, their defaults and types, the events, and all code and constants
    that can change what the handlers do. Another Python version gives another fingerprint.

    What cannot be seen: names that are put together at run time and looked up outside the class, and files that a
    handler reads. Raise `state_version=` or `version=` when such a thing changes.
    """
    return reached_from(cls).fingerprint


def reached_from(cls: type[Stateful]) -> Reached:
    """The walk from this class, made once for each class."""
    known: Reached | None = cls.__dict__.get("_reached")
    if known is None:
        walk = _Walk(cls.__module__)
        digest = walk.digest(_roots(cls))
        known = Reached(digest, tuple(walk.classes.values()), tuple(walk.functions.values()))
        cls._reached = _NotShipped(known)
    return known


class _NotShipped(Reached):
    """Kept on the class, and left behind when Ray ships the class: another process makes its own."""

    __slots__ = ()

    def __new__(cls, found: Reached) -> _NotShipped:
        return tuple.__new__(cls, found)

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()


def _nothing() -> None:
    return None


def fingerprint_of(value: object, module: str = "") -> bytes:
    """The same for any function, class or value; `module` is that of the application whose package is examined."""
    return _Walk(module).digest(lambda walk: iter([walk.text(value)]))


def _roots(cls: type[Stateful]) -> Callable[[_Walk], Iterator[str]]:
    """What the walk begins with."""

    def parts(walk: _Walk) -> Iterator[str]:
        # By stored names: code may move, and cloudpickle does not keep the place of a class that is inside a function.
        yield f"form {SAVED_FORM}"
        yield f"{getattr(cls, 'aggregate_type', '')} {getattr(cls, 'projection_name', '')}"
        yield f"{getattr(cls, 'state_version', '')} {getattr(cls, 'projection_version', '')}"
        for name, annotation in cls.state_fields.items():
            yield f"field {name}: {walk.annotation(annotation)}"
        for name, value in sorted(vars(cls()).items()):
            yield f"default {name}: {walk.text(value)}"
        handlers: dict[Any, Any] = {**getattr(cls, "evolvers", {}), **getattr(cls, "projectors", {})}
        for event, handler in handlers.items():
            yield f"event {event.message_name} {event.schema_version}: {walk.text(event)}"
            yield f"by {walk.text(getattr(handler, 'function', handler))}"
        for base in cls.__mro__:  # one by one and without their names: a class that adds nothing is no other code
            if not _is_ours(base.__module__) and base is not object:
                yield from walk.members(base)
        store, key = getattr(cls, "read_store", None), getattr(cls, "part_key", None)
        if store is not None:
            yield f"kept in {store!r}, {getattr(cls, 'parts', 1)} parts"
            yield f"parted by {walk.text(key) if key else 'stream'}"

    return parts


class _Walk:
    """One walk: what has yet to be examined, and the numbers of what was named already."""

    def __init__(self, module: str) -> None:
        self._package = module.partition(".")[0]
        self._numbers: dict[Any, int] = {}
        self._waiting: deque[Callable[[], Iterable[str]]] = deque()
        self._kept: list[Any] = []
        """Keeps a reference to what is identified by its id."""
        self._inside: set[int] = set()
        """Ids of the containers and objects that are being described: one that comes back is a cycle."""
        self._items = 0
        self.classes: dict[int, type] = {}
        self.functions: dict[int, types.FunctionType] = {}

    def digest(self, roots: Callable[[_Walk], Iterator[str]]) -> bytes:
        """Describe the roots, then all that they named, in the order in which it was named."""
        digest = hashlib.blake2b(digest_size=FINGERPRINT_BYTES)
        self._waiting.append(lambda: roots(self))
        looked_at = 0
        while self._waiting:
            looked_at += 1
            if looked_at > NODES_MAX:
                log.warning("over %d functions and classes can be reached: the others do not count", NODES_MAX)
                break
            for part in self._waiting.popleft()():
                text = part.encode("utf-8", "surrogatepass")
                digest.update(len(text).to_bytes(4, "big") + text)
        return digest.digest()

    # --- values --------------------------------------------------------------------------------------------------

    def text(self, value: Any) -> str:
        """A value as text; functions, classes and modules as the number under which they are described later."""
        kind = type(value)
        if kind in _SHOWN_BY_REPR:
            return f"{kind.__name__} {value!r}"
        if isinstance(value, type):
            return self._named(value, lambda: self._class(value))
        if isinstance(value, types.FunctionType):
            return self._named(value, lambda: self._function(value))
        inner = _inner_function(value)
        if inner is not None:
            return f"{kind.__name__}({', '.join(map(self.text, inner))})"
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if id(value) in self._inside:
            return "itself"
        self._items += 1
        if self._items > ITEMS_MAX:
            return f"{kind.__name__} of {len(value) if hasattr(value, '__len__') else 1}"
        self._inside.add(id(value))
        try:
            return self._content(value, kind)
        except RecursionError:
            return f"a deep {kind.__name__}"
        finally:
            self._inside.discard(id(value))

    def _content(self, value: Any, kind: type) -> str:
        if isinstance(value, Enum):
            return f"{self.text(kind)}.{value.name}"
        if isinstance(value, types.CodeType):
            return _code_text(value)
        if isinstance(value, re.Pattern):
            return f"pattern {value.pattern!r} {value.flags}"
        if kind in (list, tuple, deque):
            return f"{kind.__name__}({', '.join(map(self.text, value))}) {getattr(value, 'maxlen', '')}"
        if kind in (set, frozenset):
            return f"{kind.__name__}({', '.join(sorted(self._alone(item) for item in value))})"
        if kind in (dict, types.MappingProxyType):
            return f"{kind.__name__}({', '.join(f'{self.text(k)}: {self.text(v)}' for k, v in value.items())})"
        if isinstance(value, _ONLY_BY_TYPE):
            return f"a {kind.__name__}"
        return self._object(value, kind)

    def _alone(self, value: Any) -> str:
        """Text that does not depend on what was described before: items of a set are sorted by it."""
        if type(value) in _SHOWN_BY_REPR:
            return f"{type(value).__name__} {value!r}"
        walk = _Walk(self._package)
        digest = walk.digest(lambda walk: iter([walk.text(value)]))
        self.classes |= walk.classes
        return digest.hex()

    def _object(self, value: Any, kind: type) -> str:
        """Any other object by what it would be pickled from; nothing is called that it does not bring itself."""
        own_packing = any("__reduce__" in vars(base) or "__reduce_ex__" in vars(base) for base in kind.__mro__[:-1])
        if self._is_own(kind) and not own_packing:
            content: list[Any] = [sorted(_attributes(value).items())]
            if isinstance(value, dict):
                content.append(list(dict.items(value)))
            elif isinstance(value, list | tuple):
                content.append(list(value))
            elif isinstance(value, set | frozenset):
                content.append(set(value))
            elif isinstance(value, str | bytes | int | float):
                content.append(
                    next(base for base in (str, bytes, int, float) if isinstance(value, base)).__repr__(value)
                )
            return f"{self.text(kind)} of {self.text(content)}"
        try:
            reduced = value.__reduce_ex__(4)
        except BaseException as error:  # of the value's class
            if is_ctrl_c(error):
                raise
            return f"a {self.text(kind)}"
        if isinstance(reduced, str):
            return f"{self.text(kind)} {reduced}"
        self._kept.append(reduced)
        made = [list(part) if isinstance(part, Iterator) else part for part in reduced]
        return f"{self.text(kind)} of {', '.join(map(self.text, made))}"

    # --- classes -------------------------------------------------------------------------------------------------

    def _named(self, thing: Any, describe: Callable[[], Iterable[str]]) -> str:
        """`#n`, with the description to come. What is not the application's own is named, with its version."""
        found: dict[int, Any] = self.classes if isinstance(thing, type) else self.functions
        found.setdefault(id(thing), thing)
        if not self._is_own(thing):
            return f"{_origin(thing)} {thing.__name__}"
        number = self._numbers.get(id(thing))
        if number is None:
            number = self._numbers[id(thing)] = len(self._numbers)
            self._waiting.append(describe)
        return f"#{number}"

    def _is_own(self, thing: Any) -> bool:
        module = getattr(thing, "__module__", None) or ""
        return _is_own(module, self._package)

    def _class(self, cls: type) -> Iterator[str]:
        yield f"class {cls.__name__}({', '.join(self.text(base) for base in cls.__bases__)})"
        if type(cls) is not type:
            yield f"made by {self.text(type(cls))}"
        yield from self._fields(cls)
        yield from self.members(cls)

    def members(self, cls: type) -> Iterator[str]:
        """What stands in the body of a class: constants, and methods other than those that change no state."""
        tables = _tables(cls)
        for name, value in sorted(vars(cls).items()):
            if name in _NOISE or name in tables or name.startswith(("__pydantic", "_abc_", "__dataclass_")):
                continue
            if _verb(value) in ("decide", "answer") or _is_generated(cls, value):
                continue
            if issubclass(cls, Enum) and (name in cls.__members__ or name.startswith(("_", "__"))):
                continue
            if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType):
                continue
            yield f"{name} = {self.text(value)}"

    def _fields(self, cls: type) -> Iterator[str]:
        if issubclass(cls, Enum):
            for name, member in cls.__members__.items():
                yield f"member {name} = {self.text(member._value_)}"
        elif issubclass(cls, BaseModel):
            for name, field in cls.model_fields.items():
                made = [field.default, field.default_factory, field.metadata]
                yield f"field {name}: {self.annotation(field.annotation)} {', '.join(map(self.text, made))}"
            yield f"configured {self.text(sorted(cls.model_config.items()))}"
            yield f"private {self.text(sorted(cls.__private_attributes__.items()))}"
        elif dataclasses.is_dataclass(cls):
            for one in dataclasses.fields(cls):
                made = [one.default, one.default_factory, one.init, one.compare, one.hash]
                # A type that is text stays text: what it names cannot be looked up in every process.
                yield f"field {one.name}: {self.annotation(one.type)} {', '.join(map(self.text, made))}"
            yield f"frozen {cls.__dataclass_params__.frozen}"  # type: ignore[attr-defined]

    def annotation(self, annotation: Any) -> str:
        """An annotation as text."""
        if isinstance(annotation, str):
            return annotation
        if isinstance(annotation, list):
            return f"[{', '.join(map(self.annotation, annotation))}]"
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Literal:
            return f"Literal[{', '.join(map(self.text, arguments))}]"
        if origin is typing.Annotated:
            extra = ", ".join(map(self.text, arguments[1:]))
            return f"Annotated[{self.annotation(arguments[0])}, {extra}]"
        if arguments:
            named = "|" if origin in (typing.Union, types.UnionType) else self.annotation(origin)
            return f"{named}[{', '.join(map(self.annotation, arguments))}]"
        if isinstance(annotation, type):
            return self.text(annotation)
        text = repr(annotation)
        return type(annotation).__name__ if " at 0x" in text else text

    # --- functions -----------------------------------------------------------------------------------------------

    def _function(self, function: types.FunctionType) -> Iterator[str]:
        code = function.__code__
        yield _code_text(code)
        yield f"defaults {self.text(function.__defaults__)} {self.text(function.__kwdefaults__)}"
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield f"free {name} = {self.text(cell.cell_contents)}"
            except ValueError:
                yield f"free {name} is empty"
        own = {name: value for name, value in vars(function).items() if name not in ("__rayfold__", "__wrapped__")}
        if own:
            yield f"with {self.text(own)}"
        names, attributes, imports = _names(code)
        for name in sorted(names):
            if name in function.__globals__:
                yield f"global {name} = {self._reached(function.__globals__[name], attributes)}"
        for level, module, wanted in sorted(imports):
            yield from self._imported(function, level, module, attributes | set(wanted))

    def _reached(self, value: Any, attributes: AbstractSet[str], depth: int = 0) -> str:
        """A global; of a module, what the code takes from it: every attribute of a name that the code uses."""
        if not isinstance(value, types.ModuleType):
            return self.text(value)
        if not _is_own(value.__name__, self._package):
            return f"module {_origin(value)}"
        found = sorted(name for name in attributes if name in vars(value))
        if depth > 8:  # a package that holds itself
            return f"module {value.__name__}"
        inside = ", ".join(f"{name} = {self._reached(vars(value)[name], attributes, depth + 1)}" for name in found)
        return f"module ({inside})"

    def _imported(
        self, function: types.FunctionType, level: int, module: str, names: AbstractSet[str]
    ) -> Iterator[str]:
        """What a function imports while it runs."""
        try:
            package = function.__globals__.get("__package__") or ""
            whole = importlib.util.resolve_name("." * level + module, package) if level else module
            if _is_own(whole, self._package):
                yield f"imports {module} {self._reached(importlib.import_module(whole), names)}"
            else:
                yield f"imports {_version_text(whole)}"
        except BaseException as error:  # a module may end with sys.exit
            if is_ctrl_c(error):
                raise
            yield f"imports {module}, which cannot be"


# --- what belongs to whom -------------------------------------------------------------------------------------------

_INFRASTRUCTURE: Final = frozenset({"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "builtins"})
"""Named without their version: what they change does not change what handlers make of an event."""

_OURS: Final = (__package__ or "").partition(".")[0] or "rayfold"


@functools.cache
def _is_own(module: str, package: str) -> bool:
    """Whether it is the application's own code, which is examined."""
    top = module.partition(".")[0]
    if top == package and top != _OURS:
        return True
    if not module or top in sys.stdlib_module_names and top != "__main__" or top in _INFRASTRUCTURE:
        return False
    if top == _OURS:
        return not _is_ours(module)
    return not _is_installed(top)


@functools.cache
def _is_installed(top: str) -> bool:
    """Whether a module is in a folder of installed packages."""
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    file = "" if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), "")
    folders = {sysconfig.get_paths()[key].rstrip("/") + "/" for key in ("purelib", "platlib")}
    return file.startswith(tuple(folders)) or "/dist-packages/" in file


def _origin(thing: Any) -> str:
    return _version_text(getattr(thing, "__module__", None) or getattr(thing, "__name__", ""))


@functools.cache
def _version_text(module: str) -> str:
    """The module, with the version of the distribution that it came with."""
    top = module.partition(".")[0]
    if top == _OURS:
        return top  # where one of our modules lies changes no state
    if top in sys.stdlib_module_names or top in _INFRASTRUCTURE:
        return module
    versions = []
    for distribution in sorted(set(_distributions().get(top, ()))):
        versions.append(f"{distribution} {importlib.metadata.version(distribution)}")
    return f"{top} {', '.join(versions)}"


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    return importlib.metadata.packages_distributions()


# --- pieces ---------------------------------------------------------------------------------------------------------

_SHOWN_BY_REPR: Final = frozenset(
    {type(None), bool, int, float, complex, str, bytes, bytearray, type(...), type(NotImplemented)}
    | {Decimal, UUID, timedelta, date, range, slice}
)

_ONLY_BY_TYPE: Final = (random.Random, types.CoroutineType, Iterator)

_NOISE: Final = frozenset(
    (
        "__dict__",
        "__weakref__",
        "__module__",
        "__doc__",
        "__annotations__",
        "__qualname__",
        "__firstlineno__",
        "__static_attributes__",
        "__match_args__",
        "__orig_bases__",
        "__parameters__",
        "__abstractmethods__",
        "__signature__",
        "__slots__",
        "__class_vars__",
        "__private_attributes__",
        "model_fields",
        "model_config",
        "model_computed_fields",
        "__annotate__",
        "__annotate_func__",
        "__conditional_annotations__",
        "__annotations_cache__",
        "__type_params__",
        "__rayfold__",
        "_reached",
    )
)
"""Attributes of a class that do not affect its behaviour, or that are described with its fields."""


def _tables(cls: type) -> set[str]:
    """Attributes that our own base classes declare: what the class line and the handlers were read into."""
    ours = [base for base in cls.__mro__ if _is_ours(base.__module__)]
    names = {name for base in ours for name in (*vars(base), *base.__dict__.get("__annotations__", ()))}
    return {name for name in names if not name.startswith("__")} - {"upcasters"}


def _is_ours(module: str) -> bool:
    return module == _OURS or module.startswith((f"{_OURS}.runtime", f"{_OURS}.actors"))


def _verb(value: Any) -> str:
    return str(getattr(getattr(value, "__rayfold__", None), "verb", ""))


def _is_generated(cls: type, value: Any) -> bool:
    """Whether it is a method that `@dataclass` has written: its fields describe it completely. One of a frozen class
    with slots holds on to the class as it was before it had slots, which is another one of the same name."""
    code = getattr(value, "__code__", None)
    written = code is not None and code.co_filename == "<string>" and code.co_firstlineno <= 3
    return written and dataclasses.is_dataclass(cls) and value.__name__.startswith("__")


def _inner_function(value: Any) -> list[Any] | None:
    """The functions in what decorators make of one; None for anything else."""
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget, value.fset, value.fdel]
    if isinstance(value, functools.cached_property):
        return [value.func]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, list(value.args), value.keywords]
    if isinstance(value, functools.partialmethod):
        return [value.func, list(value.args), value.keywords]
    if isinstance(value, functools.singledispatchmethod):
        return [value.dispatcher, value.func]
    if isinstance(value, functools._lru_cache_wrapper):
        return [value.__wrapped__]
    if type(value).__name__ == "PydanticDescriptorProxy":  # a validator that its class has not unpacked
        return [value.wrapped]
    return None


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds, in its `__dict__` and its slots."""
    found = dict(getattr(value, "__dict__", ()) or ())
    for base in type(value).__mro__:
        for name, slot in vars(base).items():
            if isinstance(slot, types.MemberDescriptorType) and name not in ("__dict__", "__weakref__"):
                try:
                    found[name] = slot.__get__(value, type(value))
                except AttributeError:
                    continue
    return found


def _code_text(code: types.CodeType) -> str:
    """What the code does, without docstrings, lines and the numbering of its constants."""
    steps = (f"{step.opname} {_constant_text(step.argval)}" for step in dis.get_instructions(code))
    return f"{code.co_argcount} {code.co_kwonlyargcount} {code.co_flags & 0x0C} {'; '.join(steps)}"


def _constant_text(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _code_text(value)
    if isinstance(value, tuple):
        return f"({','.join(map(_constant_text, value))})"
    if isinstance(value, frozenset):
        return f"{{{','.join(sorted(map(_constant_text, value)))}}}"
    return f"{type(value).__name__} {value!r}"


def _names(code: types.CodeType) -> tuple[set[str], set[str], set[tuple[int, str, tuple[str, ...]]]]:
    """The globals, the attributes, and the imports (level, module, names) of code, with those of the code inside it."""
    names: set[str] = set()
    attributes: set[str] = set()
    imports: set[tuple[int, str, tuple[str, ...]]] = set()
    constants: deque[Any] = deque([0, ()], maxlen=2)
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            names.add(step.argval)
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD")):
            attributes.add(step.argval)
        elif step.opname == "IMPORT_NAME":
            level, wanted = constants
            imports.add((level if isinstance(level, int) else 0, step.argval, tuple(wanted or ())))
        elif step.opname.startswith("LOAD_CONST") or step.opname == "LOAD_SMALL_INT":
            constants.append(step.argval)
            if isinstance(step.argval, str) and step.argval.isidentifier():
                attributes.add(step.argval)  # getattr(rules, "fee")
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            for mine, inner in zip((names, attributes, imports), _names(constant), strict=True):
                mine |= inner  # type: ignore[operator]
    return names, attributes, imports
