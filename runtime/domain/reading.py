"""Reading: how the class of a message takes in what was stored or sent, which differs from how it takes the arguments
of a maker.

Used by the codec at every place where packed fields become a message again, steps [4] and [7].

Rules kept here: validators and constraints are rules for makers. What is stored happened, so an event is read without
the validators of its class (`AfterValidator` and its kin, `@field_validator`, `@model_validator`), without limits
(`ge`, `max_length`, `pattern`), without the wall clock (`FutureDate`) and without `strict`. What makes a value of its
type out of the stored form stays: nested models, enums, discriminators, types with a schema of their own,
`model_post_init`, `__post_init__`. An event class with `validated_when_read=True` is read by its own rules.

A command or a query comes from a maker, so it keeps its rules; only `strict` is left out, which is about the types that
a program may give, where a date has travelled as text.

Why the core schema is walked: it is what pydantic has made of annotations, aliases, generics and forward references
already; the validator that is made of it gives instances of the class itself, at the cost of its own.

Members of a union may differ in their limits alone. So a union tries its members with their limits first.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    PlainValidator,
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    TypeAdapter,
    WrapValidator,
)
from pydantic_core import SchemaValidator

__all__ = ["Reading", "lenient_validator", "lenient_validator_of", "makes_itself", "rules_of"]


class Reading:
    """What the codec keeps for a message class: made at the first use, and again in each process."""

    __slots__ = ("comes_back", "known", "known_by_type", "packs", "validate")

    def __init__(self) -> None:
        self.validate: Callable[..., Any] | None = None
        """Makes a message of decoded fields."""
        self.known: set[tuple[Any, ...]] = set()
        """Names and types of fields that come back as they were whatever their values are (see `codec.py`)."""
        self.comes_back: Callable[[Mapping[str, Any]], bool] = _unknown
        """Whether fields have names and types that are in `known`."""
        self.packs: Callable[[Any], bytes] | None = None
        """What packs the fields of a class that has nothing but plain scalars."""
        self.known_by_type = False
        """Whether the types of its values alone prove that they come back equal."""

    def learn(self, fields: Mapping[str, Any]) -> None:
        """Fields of these names and types come back, whatever their values are."""
        if not self.known:
            self.comes_back = _comparison(fields, self.known)
        self.known.add((*fields, *map(type, fields.values())))

    def __reduce__(self) -> tuple[Any, ...]:
        return (Reading, ())


_COMPARED_MAX: Final = 20
"""Fields that are compared one by one: with many more the lookup in a set is not slower."""


def _unknown(_fields: Mapping[str, Any]) -> bool:
    return False


def _comparison(fields: Mapping[str, Any], known: set[tuple[Any, ...]]) -> Callable[[Mapping[str, Any]], bool]:
    """Compares the names and types of fields with these, and then with all that are known: the lookup in the set takes
    four times as long. One expression that is made for these fields, as dataclasses make theirs."""
    names = {f"type_{index}": type(value) for index, value in enumerate(fields.values())} | {"known": known}
    expression = "(*fields, *map(type, fields.values())) in known"
    if len(fields) <= _COMPARED_MAX:
        tests = [f"type(fields.get({name!r})) is type_{index}" for index, name in enumerate(fields)]
        expression = f"({' and '.join([f'len(fields) == {len(fields)}', *tests])}) or {expression}"
    return eval(f"lambda fields: {expression}", names)  # type: ignore[no-any-return]


_RULES: Final = frozenset({"function-after", "function-before", "function-wrap"})
_STRICT: Final = frozenset({"strict"})
_CLOCK: Final = frozenset({"now_op", "now_utc_offset"})
_LIMITS: Final = frozenset(
    {
        *("gt", "ge", "lt", "le", "multiple_of", "max_digits", "decimal_places", "pattern", "min_length", "max_length"),
        *("strip_whitespace", "to_lower", "to_upper", "tz_constraint", "fail_fast", "allowed_schemes", "host_required"),
    }
)
_CONFIGURED_LIMITS: Final = frozenset(
    {
        *("str_max_length", "str_min_length", "str_strip_whitespace", "str_to_lower", "str_to_upper"),
        *("coerce_numbers_to_str", "revalidate_instances"),
    }
)
_INNER: Final = (
    *("schema", "items_schema", "keys_schema", "values_schema", "choices", "steps", "fields", "definitions"),
    *("python_schema", "arguments_schema", "extras_schema", "extras_keys_schema"),
)
"""Where a core schema keeps others: `lax_schema` and its kin are left out, since they belong to types of pydantic's."""
_UNUSED: Final = frozenset({"serialization", "metadata"})


def lenient_validator(cls: type[BaseModel], *, rules: bool) -> Callable[..., Any]:
    """What makes an instance of `cls` out of decoded fields; with its validators and limits when `rules`.

    Fields are stored under their names, whatever aliases the class has for its callers. That option costs a tenth of
    all the rest, so it is set only for classes with aliases."""
    validate = _validate_of(cls, rules)
    if _has_aliases(cls.__pydantic_core_schema__):
        return functools.partial(validate, by_alias=False, by_name=True)
    return validate


def _has_aliases(schema: Any) -> bool:
    """Whether a core schema, or anything in it, has aliases. True if that is unknown."""
    if not isinstance(schema, dict):
        return True
    left, seen = [schema], set[int]()
    while left:
        one: Any = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict):
            if any("alias" in key for key in one if isinstance(key, str)):
                return True
            left.extend(one.values())
        elif isinstance(one, list | tuple):
            left.extend(one)
    return False


def _validate_of(cls: type[BaseModel], rules: bool) -> Callable[..., Any]:
    if not isinstance(cls.__pydantic_core_schema__, dict):
        cls.model_rebuild()
    schema: Any = cls.__pydantic_core_schema__
    if not isinstance(schema, dict):
        return cls.__pydantic_validator__.validate_python  # it cannot be built; its own validator knows the words
    return _made(_Walk(_Rules(cls), rules=rules, limits=rules), schema, cls.__pydantic_validator__)


def lenient_validator_of(adapter: TypeAdapter[Any], annotation: Any) -> Callable[..., Any]:
    """The same for a `TypeAdapter` of an annotation: of a field of a state, for example."""
    return _made(_Walk(_Rules(annotation), rules=False, limits=False), adapter.core_schema, adapter.validator)


def _made(walk: _Walk, schema: Any, own: Any) -> Callable[..., Any]:
    """The validator of what is left of a schema: the class's own when that is all of it."""
    lenient = walk.of(schema)
    if not walk.changed:
        return own.validate_python  # type: ignore[no-any-return]
    # Otherwise pydantic takes the validators that nested models have already, rules and all.
    return SchemaValidator(lenient, None, _use_prebuilt=False).validate_python


def rules_of(annotation: Any) -> bool:
    """True when validators of the user belong to the class or annotation, or to what it consists of."""
    found = _Rules(annotation)
    return bool(found.functions or found.plain)


def makes_itself(cls: type[BaseModel]) -> bool:
    """True when code of the user's takes part in making an instance, validators apart."""
    own: Any = cls.__init__
    base: Any = BaseModel.__init__
    return cls.model_post_init is not BaseModel.model_post_init or own is not base or cls.__new__ is not object.__new__


class _Rules:
    """The validators that the user has put on a class, an annotation, and on everything that they name."""

    def __init__(self, annotation: Any) -> None:
        self.functions: set[Any] = set()
        self.plain: dict[Any, Any] = {}
        """A `PlainValidator` and what it stands in front of."""
        self._seen: set[int] = set()
        self._collect(annotation)

    def _collect(self, annotation: Any) -> None:
        if id(annotation) in self._seen:
            return
        self._seen.add(id(annotation))
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            self._metadata(annotation.__metadata__, annotation.__origin__)
            self._collect(annotation.__origin__)
        elif origin is not None:
            for part in (origin, *typing.get_args(annotation)):
                for one in part if isinstance(part, list | tuple) else [part]:
                    self._collect(one)
        elif type(annotation).__name__ == "TypeAliasType":
            self._collect(annotation.__value__)
        elif hasattr(annotation, "__supertype__"):
            self._collect(annotation.__supertype__)
        elif isinstance(annotation, type):
            self._class(annotation)

    def _metadata(self, metadata: typing.Iterable[Any], annotation: Any) -> None:
        for item in metadata:
            if isinstance(item, AfterValidator | BeforeValidator | WrapValidator):
                self.functions.add(_plain_function(item.func))
            elif isinstance(item, PlainValidator):
                self.plain[_plain_function(item.func)] = annotation

    def _class(self, cls: type) -> None:
        fields = getattr(cls, "__pydantic_fields__", None)
        decorators = getattr(cls, "__pydantic_decorators__", None)
        if decorators is not None:
            for kind in ("validators", "field_validators", "root_validators", "model_validators"):
                for decorator in getattr(decorators, kind).values():
                    function = _plain_function(decorator.func)
                    names = [name for name in getattr(decorator.info, "fields", ()) if name in (fields or {})]
                    if getattr(decorator.info, "mode", "") == "plain" and names and fields:
                        self.plain[function] = fields[names[0]].annotation
                    else:
                        self.functions.add(function)
        if isinstance(fields, dict):
            for field in fields.values():
                self._metadata(field.metadata, field.annotation)
                self._collect(field.annotation)
        elif dataclasses.is_dataclass(cls) or typing.is_typeddict(cls) or hasattr(cls, "_fields"):
            for annotation in _hints(cls):
                self._collect(annotation)


def _hints(cls: type) -> Iterator[Any]:
    try:
        yield from typing.get_type_hints(cls, include_extras=True).values()
    except (NameError, TypeError, AttributeError, SyntaxError):
        return


def _plain_function(function: Any) -> Any:
    function = getattr(function, "__func__", function)
    return function if _hashable(function) else id(function)


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


class _Walk:
    """One way through a core schema: what is left of it."""

    def __init__(self, found: _Rules, *, rules: bool, limits: bool) -> None:
        self._found, self._rules, self._limits = found, rules, limits
        self.changed = False
        """Whether anything was left out."""

    def of(self, schema: Any) -> Any:
        """The schema without what readers do not apply."""
        kind = schema.get("type")
        if not self._rules and "function" in schema:
            inner = self._without_function(kind, schema)
            if inner is not None:
                self.changed = True
                return inner
        if kind == "lax-or-strict":
            return schema
        dropped = self._dropped(kind)
        self.changed = self.changed or not dropped.isdisjoint(schema)
        left = {key: value for key, value in schema.items() if key not in dropped and key not in _UNUSED}
        for key in _INNER:
            if key in left:
                left[key] = self._inner(left[key])
        if kind == "union" and not self._rules and not self._limits:
            first = _Walk(self._found, rules=False, limits=True)._inner(schema["choices"])
            left["choices"] = [*first, *(choice for choice in left["choices"] if choice not in first)]
        if kind in ("float", "decimal") and not self._limits and left.get("allow_inf_nan") is not True:
            left["allow_inf_nan"] = self.changed = True
        if isinstance(left.get("config"), dict):
            left["config"] = self._config(left["config"])
        return left

    def _dropped(self, kind: Any) -> frozenset[str]:
        dropped = _STRICT
        if not self._rules:
            dropped |= _CLOCK
            if not self._limits:
                dropped |= _LIMITS
                if kind == "uuid":
                    dropped |= {"version"}
        return dropped

    def _inner(self, value: Any) -> Any:
        if isinstance(value, dict):
            if "type" in value and isinstance(value["type"], str):
                return self.of(value)
            return {key: self._inner(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self._inner(one) for one in value])
        return value

    def _without_function(self, kind: Any, schema: Any) -> Any:
        """What stands behind a function that is a rule; None for one that makes the value."""
        function = schema["function"]
        function = _plain_function(function["function"] if isinstance(function, dict) else function)
        if kind in _RULES and (function in self._found.functions or (not self._limits and _is_limit(function))):
            return self.of(schema["schema"])
        if kind == "function-plain" and function in self._found.plain:
            try:
                inner: Any = TypeAdapter(self._found.plain[function]).core_schema
            except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation):
                return None  # nothing but this function knows how such a value is made
            return self.of(inner)
        return None

    def _config(self, config: dict[str, Any]) -> dict[str, Any]:
        dropped = _STRICT if self._limits else _STRICT | _CONFIGURED_LIMITS
        left = {key: value for key, value in config.items() if key not in dropped}
        self.changed = self.changed or len(left) < len(config)
        if not self._limits and "allow_inf_nan" in left:
            left["allow_inf_nan"] = self.changed = True
        return left


def _is_limit(function: Any) -> bool:
    """Whether it is what pydantic makes of a limit that a type does not check by itself, a `Predicate` for example."""
    inner = function.func if isinstance(function, functools.partial) else function
    made_by_pydantic = str(getattr(inner, "__module__", "")).startswith("pydantic.")
    if isinstance(function, functools.partial):
        return made_by_pydantic
    return made_by_pydantic and "apply_known_metadata" in getattr(inner, "__qualname__", "")
