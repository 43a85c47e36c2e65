"""Strategies: what Hypothesis makes commands of, from the annotated types and limits of their fields.

Beside step [1] of the write path. Before it: the classes that an aggregate decides. After it: `trial.py` sends what was
made.

Rules kept here: a strategy of the user's for a type counts before everything else; limits that are known narrow what is
made, and all others, validators among them, are left to the class itself, so nothing is sent that the class refuses. A
type of which nothing can be made is a `DefinitionError` with the remedy before the first example.

Small values come often: two commands that name the same thing, or amounts that are close to each other, find more than
numbers of nineteen digits, which come too.
"""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, MutableSequence, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from fractions import Fraction
from typing import Any, Final, NamedTuple
from uuid import UUID

import hypothesis
from annotated_types import GroupedMetadata
from hypothesis import strategies as st
from pydantic import (
    AwareDatetime,
    BaseModel,
    FutureDate,
    FutureDatetime,
    NaiveDatetime,
    PastDate,
    PastDatetime,
    ValidationError,
)
from pydantic.fields import FieldInfo
from typing_extensions import is_typeddict

from ..domain.declaration import arguments_of_union, described, where
from ..domain.messages import Message
from ..encoding.codec import encode_checked
from ..errors import CallerError, DefinitionError, InvalidMessage, failure_text

__all__ = ["Maker", "Strategy"]

Strategy = st.SearchStrategy[Any]

ITEMS_MAX: Final = 3
"""Items of a list, set or dict without a least number: what is printed stays short."""

CHARACTERS_MAX: Final = 20
"""Characters of a text, and bytes, without a least number; likewise."""

TRIED_MAX: Final = 50
"""Commands of a class that are made before it counts as one that cannot be made."""

PROBED_MAX: Final = 10
"""Values of a type that Hypothesis makes by itself before it is trusted with it."""

NESTED_MAX: Final = 2
"""How often a class may hold one of itself: further ones are left out where they can be."""

FEW: Final = 10
"""How many numbers next to 0, or to a limit, come more often."""

_INTEGERS: Final = (-(1 << 63), (1 << 63) - 1)
"""What can be stored of a number without limits of its own."""

_DECIMALS_MAX: Final = 10**12
_PLACES: Final = 4

_ZONES: Final = (UTC, None, timezone(timedelta(hours=2)))


class Limits:
    """What the metadata of an annotation ask of a value. Those that are not known here are left to validation."""

    def __init__(self, metadata: Iterable[Any] = ()) -> None:
        self.strategy: Strategy | None = None
        """A strategy among the metadata, as Hypothesis knows them."""
        self.known: dict[str, Any] = {}
        self._take(metadata)

    def _take(self, metadata: Iterable[Any]) -> None:
        for item in metadata:
            if isinstance(item, st.SearchStrategy):
                self.strategy = item
            elif isinstance(item, FieldInfo):
                self._take(item.metadata)
            elif isinstance(item, GroupedMetadata):
                self._take(item)
            else:
                for name in _LIMITS:
                    if (value := getattr(item, name, None)) is not None:
                        self.known[name] = value

    def get(self, name: str, otherwise: Any = None) -> Any:
        """A limit, or what it is without one."""
        return self.known.get(name, otherwise)

    def whole(self, lowest: int, highest: int, scale: int = 1) -> tuple[int, int]:
        """The least and the greatest whole number of `1 / scale` within the limits, both included."""
        low, high = [], []
        for name, exclusive in (("ge", 0), ("gt", 1)):
            if (limit := self.get(name)) is not None:
                scaled = Fraction(limit) * scale
                low.append(math.floor(scaled) + 1 if exclusive else math.ceil(scaled))
        for name, exclusive in (("le", 0), ("lt", 1)):
            if (limit := self.get(name)) is not None:
                scaled = Fraction(limit) * scale
                high.append(math.ceil(scaled) - 1 if exclusive else math.floor(scaled))
        least = max(low, default=min(lowest, *(one - 1 for one in high)) if high else lowest)
        most = min(high, default=max(highest, *(one + 1 for one in low)) if low else highest)
        return least, most

    def sizes(self, usual: int) -> tuple[int, int]:
        """The least and the greatest length."""
        least = self.get("min_length", 0)
        most = max(least + usual if least else usual, least)
        return least, min(most, self.get("max_length", most))


_LIMITS: Final = (
    *("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern", "max_digits", "decimal_places"),
    *("uuid_version", "allow_inf_nan"),
)


class _Place(NamedTuple):
    """Where in a command a value goes."""

    here: str
    """In words, for errors."""
    above: tuple[type, ...] = ()
    """The classes that it is in."""


class Maker:
    """Makes strategies for commands."""

    def __init__(self, strategies: Mapping[Any, Any], ids: Sequence[str]) -> None:
        """`strategies`: the user's, by type or class of command. `ids`: texts that often come, since commands may name
        aggregates."""
        self._given = _checked(strategies)
        self._ids = tuple(ids)

    def commands(self, cls: type[Message]) -> Strategy:
        """Commands, or events, of this class, or None in place of one that it refuses.

        Raises `DefinitionError` if it refuses nearly all of them, or if one of its types has no strategy.
        """
        refused: list[str] = []
        made = self._lookup(cls)
        if made is None:
            made = self._model(cls, _Place(where(cls))).map(lambda value: _sendable(cls, value, refused))
        _check_made(cls, made, refused)
        refused.append("")  # no more are needed
        return made

    # Types ------------------------------------------------------------------------------------------------------------

    def _of(self, annotation: Any, place: _Place, metadata: Iterable[Any] = ()) -> Strategy:
        """Values of a type. What cannot be made is `st.nothing()`, or a `DefinitionError`."""
        given = self._lookup(annotation)
        if given is not None:
            return given
        limits = Limits(metadata)
        if limits.strategy is not None:
            return limits.strategy
        origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
        if origin is typing.Annotated:
            return self._of(arguments[0], place, [*arguments[1:], *metadata])
        if origin is typing.Literal:
            return st.sampled_from(arguments)
        if hasattr(annotation, "__supertype__"):  # a NewType
            return self._of(annotation.__supertype__, place, metadata)
        if hasattr(annotation, "__value__"):  # `type X = ...`
            return self._of(annotation.__value__, place, metadata)
        parts = arguments_of_union(annotation)
        if len(parts) > 1 or parts[0] is not annotation:
            kinds = sorted(parts, key=lambda part: part is not type(None))  # None is the simplest
            return st.one_of(*(self._of(part, place, metadata) for part in kinds))
        if origin in _COLLECTIONS or annotation in _COLLECTIONS:
            return self._collection(origin or annotation, arguments, place, limits)
        for kind, make in _SCALARS:
            if annotation is kind:
                return make(limits, self._ids)
        if annotation in (Any, object):
            return _ANYTHING
        if isinstance(annotation, type) and origin is None:
            return self._class(annotation, place)
        return self._unknown(annotation, place)

    def _lookup(self, annotation: Any) -> Strategy | None:
        try:
            return self._given.get(annotation)
        except TypeError:  # not hashable: an Annotated with a list in it
            return None

    def _class(self, cls: type, place: _Place) -> Strategy:
        if cls is type(None):
            return st.none()
        if issubclass(cls, Flag):
            return st.sets(st.sampled_from(list(cls))).map(lambda members: _flags(cls, members))
        if issubclass(cls, Enum):
            return st.sampled_from(list(cls))
        if place.above.count(cls) >= NESTED_MAX:
            return st.nothing()
        place = place._replace(above=(*place.above, cls))
        if issubclass(cls, BaseModel):
            return self._model(cls, place).map(lambda values: _validated(cls, values))
        if dataclasses.is_dataclass(cls):
            return self._dataclass(cls, place)
        if is_typeddict(cls):
            return self._typed_dict(cls, place)
        if issubclass(cls, tuple) and hasattr(cls, "_fields"):
            hints = typing.get_type_hints(cls, include_extras=True)
            fields = [self._of(hints.get(name, Any), _within(place, cls, name)) for name in cls._fields]
            return st.tuples(*fields).map(lambda values: cls(*values))
        return self._unknown(cls, place)

    def _collection(self, kind: Any, arguments: tuple[Any, ...], place: _Place, limits: Limits) -> Strategy:
        least, most = limits.sizes(ITEMS_MAX)
        if kind is tuple and arguments and arguments[-1] is not ...:
            return st.tuples(*(self._of(one, place) for one in arguments if one != ()))
        items = self._of(arguments[0], place) if arguments else _ANYTHING
        if kind in _MAPPINGS:
            values = self._of(arguments[1], place) if len(arguments) > 1 else _ANYTHING
            keys = items if arguments else st.text(max_size=FEW)
            return _empty_or(st.dictionaries(keys, values, min_size=least, max_size=most), (keys, values), least, dict)
        if kind in _SETS:
            made = st.frozensets if kind is frozenset else st.sets
            return _empty_or(made(items, min_size=least, max_size=most), (items,), least, kind)
        listed = _empty_or(st.lists(items, min_size=least, max_size=most), (items,), least, list)
        return listed.map(tuple) if kind is tuple else listed

    def _unknown(self, annotation: Any, place: _Place) -> Strategy:
        """What Hypothesis itself knows, by `register_type_strategy` for example."""
        try:
            found = st.from_type(annotation)
            _draw(found, lambda value: None, PROBED_MAX)
        except Exception:  # errors of Hypothesis, and what an `__init__` of the user's raises
            pass
        else:
            return found
        name = described(annotation)
        raise DefinitionError(
            place.here,
            f"Hypothesis cannot make values of {name}",
            f"give explore() a strategy for it: strategies={{{name}: st.builds({name}, ...)}}",
        )

    # Classes ----------------------------------------------------------------------------------------------------------

    def _model(self, cls: type[BaseModel], place: _Place) -> Strategy:
        """Values of the fields of a model, by the names that it is validated with."""
        needed: dict[Any, Strategy] = {}
        optional: dict[Any, Strategy] = {}
        config = cls.model_config
        by_name = config.get("populate_by_name") or config.get("validate_by_name")
        for name, field in cls.model_fields.items():
            if field.init is False:
                continue
            key = name if by_name else _alias_of(name, field)
            always = field.is_required() or field.default_factory is not None
            self._add(needed if always else optional, needed, key, field, _within(place, cls, name))
        return st.fixed_dictionaries(needed, optional=optional)

    def _add(
        self, into: dict[Any, Strategy], needed: dict[Any, Strategy], key: str, field: FieldInfo, place: _Place
    ) -> None:
        """The strategy of one field. One that has a default is left out if nothing can be made of its type."""
        try:
            made = self._of(field.annotation, place, field.metadata)
        except DefinitionError:
            if field.is_required():
                raise
            return
        if into is needed or not made.is_empty:
            into[key] = made

    def _dataclass(self, cls: type, place: _Place) -> Strategy:
        hints = typing.get_type_hints(cls, include_extras=True)
        needed: dict[str, Strategy] = {}
        optional: dict[str, Strategy] = {}
        for field in dataclasses.fields(cls):
            if not field.init:
                continue
            has_default = field.default is not dataclasses.MISSING
            made = self._of(hints[field.name], _within(place, cls, field.name))
            if isinstance(field.default, FieldInfo):  # of a pydantic dataclass
                has_default = not field.default.is_required()
                made = self._of(hints[field.name], _within(place, cls, field.name), field.default.metadata)
            if not (has_default and made.is_empty):
                (optional if has_default else needed)[field.name] = made
        return st.fixed_dictionaries(needed, optional=optional).map(lambda values: _called(cls, values))

    def _typed_dict(self, cls: Any, place: _Place) -> Strategy:
        hints = typing.get_type_hints(cls, include_extras=True)
        made = {name: self._of(_bare(hint), _within(place, cls, name)) for name, hint in hints.items()}
        optional = {name: made.pop(name) for name in cls.__optional_keys__}
        return st.fixed_dictionaries(made, optional={name: one for name, one in optional.items() if not one.is_empty})


def _checked(strategies: Mapping[Any, Any]) -> Mapping[Any, Strategy]:
    for kind, strategy in strategies.items():
        if not isinstance(strategy, st.SearchStrategy):
            name = described(kind)
            what = f"for {name} it has {strategy!r}, which is no strategy of Hypothesis"
            raise InvalidMessage("strategies= of explore()", what, f"give {{{name}: st.builds({name}, ...)}}")
    return strategies


def _within(place: _Place, cls: type, name: str) -> _Place:
    return place._replace(here=where(cls, name))


def _alias_of(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias or field.alias
    if alias is None:
        return name
    if isinstance(alias, str):
        return alias
    return next((one for one in getattr(alias, "choices", ()) if isinstance(one, str)), name)


def _bare(hint: Any) -> Any:
    """The type in `Required[...]`, `NotRequired[...]` or `ReadOnly[...]`."""
    while getattr(typing.get_origin(hint), "__name__", getattr(typing.get_origin(hint), "_name", "")) in _QUALIFIERS:
        (hint,) = typing.get_args(hint)
    return hint


_QUALIFIERS: Final = ("Required", "NotRequired", "ReadOnly")


def _flags(cls: type[Flag], members: set[Any]) -> Any:
    value = cls(0)
    for member in members:
        value |= member
    return value


def _validated(cls: type[BaseModel], values: Any) -> Any:
    """The model, or the values themselves if it refuses them: the command refuses them then."""
    try:
        return cls.model_validate(values)
    except ValidationError:
        return values


def _called(cls: Callable[..., Any], values: dict[str, Any]) -> Any:
    try:
        return cls(**values)
    except (ValueError, TypeError, AssertionError):  # of a `__post_init__`
        return values


def _sendable(cls: type[Message], values: Any, refused: list[str]) -> Message | None:
    """The command, if its class takes the values and it can be stored. The first reason why not is kept."""
    try:
        command = cls.model_validate(values)
        encode_checked(command)
    except ValidationError as error:
        if not refused:
            first = error.errors(include_url=False)[0]
            refused.append(f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": "))
        return None
    except CallerError as error:
        if not refused:
            refused.append(str(error))
        return None
    return command


class _Enough(Exception):  # noqa: N818 - a signal inside this file, not an error
    """One command was made."""


def _check_made(cls: type[Message], strategy: Strategy, refused: Sequence[str]) -> None:
    """Raises `DefinitionError` if no command comes of it, and `InvalidMessage` if something else does."""
    name = cls.__name__
    remedy = f"give explore() a strategy for it: strategies={{{name}: st.builds({name}, ...)}}"

    def take(made: object) -> None:
        if made is not None and type(made) is not cls:
            what = f"the strategy for {name} makes {made!r}, which is no {name}"
            raise InvalidMessage("strategies= of explore()", what)
        if made is not None:
            raise _Enough

    try:
        _draw(strategy, take, TRIED_MAX)
    except _Enough:
        return
    except InvalidMessage:
        raise
    except Exception as error:  # errors of Hypothesis, and of what a strategy of the user's calls
        what = f"Hypothesis cannot make commands of it: {failure_text(error)}"
        raise DefinitionError(where(cls), what, remedy) from error
    why = f" ({refused[0]})" if refused else ""
    what = f"of {TRIED_MAX} commands that Hypothesis has made of its annotations, it has refused all{why}"
    raise DefinitionError(where(cls), what, remedy)


def _draw(strategy: Strategy, take: Callable[[Any], None], examples: int) -> None:
    """Call `take` with so many values. Raises what it raises, and what Hypothesis and the strategy do."""

    @hypothesis.seed(0)
    @hypothesis.settings(**QUIET, max_examples=examples, phases=[hypothesis.Phase.generate])
    @hypothesis.given(strategy)
    def draw(made: Any) -> None:
        take(made)

    draw()


QUIET: Final[dict[str, Any]] = {
    "database": None,
    "deadline": None,
    "derandomize": False,
    "print_blob": False,
    "report_multiple_bugs": False,
    "suppress_health_check": list(hypothesis.HealthCheck),
    "verbosity": hypothesis.Verbosity.quiet,
}
"""Settings of every run: what is found is reported by `explore` itself, and found again by the seed."""


# Scalars --------------------------------------------------------------------------------------------------------------


def _often(few: Strategy, all_of_them: Strategy) -> Strategy:
    return st.one_of(few, all_of_them)


def _whole(limits: Limits, lowest: int, highest: int, scale: int = 1) -> Strategy:
    """Whole numbers of `1 / scale`, within the limits; those next to 0, or to the limit that is next to it, often."""
    least, most = limits.whole(lowest, highest, scale)
    if (step := limits.get("multiple_of")) is not None and (scaled := abs(Fraction(step) * scale)):
        first, last = math.ceil(least / scaled), math.floor(most / scaled)
        return _numbers(first, last).map(lambda number: math.floor(number * scaled))
    return _numbers(least, most)


def _numbers(least: int, most: int) -> Strategy:
    if least > most:
        return st.nothing()
    nearest = min(max(least, 0), most)  # to 0
    few = st.integers(max(least, nearest - FEW), min(most, nearest + FEW))
    return _often(few, st.integers(least, most))


def _integers(limits: Limits, ids: Sequence[str]) -> Strategy:
    return _whole(limits, *_INTEGERS)


def _floats(limits: Limits, ids: Sequence[str]) -> Strategy:
    if (step := limits.get("multiple_of")) is not None:
        least, most = limits.whole(-(1 << 40), 1 << 40)
        return _numbers(math.ceil(least / step), math.floor(most / step)).map(lambda number: number * float(step))
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    odd = bool(limits.get("allow_inf_nan")) and low is None and high is None
    everything = st.floats(
        None if low is None else float(low),
        None if high is None else float(high),
        exclude_min="gt" in limits.known and "ge" not in limits.known,
        exclude_max="lt" in limits.known and "le" not in limits.known,
        allow_nan=odd,
        allow_infinity=odd,
    )
    few = _numbers(*limits.whole(-FEW, FEW)).map(float)
    return everything if few.is_empty else _often(few, everything)


def _decimals(limits: Limits, ids: Sequence[str]) -> Strategy:
    digits, places = limits.get("max_digits"), limits.get("decimal_places")
    if places is None:
        places = _PLACES if digits is None else min(_PLACES, digits)
    most = _DECIMALS_MAX if digits is None else 10 ** max(digits - places, 0)
    scale = 10**places
    bounds = (-most * scale + 1, most * scale - 1)
    fine = _whole(limits, *bounds, scale=scale).map(lambda number: Decimal(number).scaleb(-places))
    coarse = _whole(limits, -most + 1, most - 1).map(Decimal) if most > 1 else st.nothing()
    return fine if coarse.is_empty else _often(coarse, fine)


def _texts(limits: Limits, ids: Sequence[str]) -> Strategy:
    least, most = limits.sizes(CHARACTERS_MAX)
    pattern = limits.get("pattern")
    if pattern is not None:
        expression = getattr(pattern, "pattern", pattern)
        try:
            # at a "$" Python's also match before a line end, and pydantic's do not: nearly half would be refused
            found = st.from_regex(re.compile(re.sub(r"(?<!\\)\$$", r"\\Z", expression)))
        except re.error:  # pydantic's expressions are not quite those of Python
            return st.nothing()
        longest = limits.get("max_length", 1 << 16)
        return found.filter(lambda text: least <= len(text) <= longest)
    few = [text for text in ("a", "b", *ids) if least <= len(text) <= most]
    everything = st.text(min_size=least, max_size=most)
    return _often(st.sampled_from(few), everything) if few else everything


def _bytes(limits: Limits, ids: Sequence[str]) -> Strategy:
    least, most = limits.sizes(CHARACTERS_MAX)
    return st.binary(min_size=least, max_size=most)


def _uuids(limits: Limits, ids: Sequence[str]) -> Strategy:
    version = limits.get("uuid_version")
    few = [UUID(int=number, version=version) for number in (1, 2)]
    return _often(st.sampled_from(few), st.uuids(version=version if version in (1, 2, 3, 4, 5) else None))


def _bounds(limits: Limits, kind: Any, step: timedelta) -> tuple[Any, Any]:
    """The least and the greatest value; `step` is the smallest one between two."""
    least = limits.get("ge", kind.min if "gt" not in limits.known else limits.get("gt") + step)
    most = limits.get("le", kind.max if "lt" not in limits.known else limits.get("lt") - step)
    return least, most


def _dates(limits: Limits, ids: Sequence[str]) -> Strategy:
    least, most = _bounds(limits, date, timedelta(days=1))
    if least > most:
        return st.nothing()
    return _often(st.dates(*_near(date(2024, 1, 1), least, most, timedelta(days=FEW))), st.dates(least, most))


def _datetimes(limits: Limits, ids: Sequence[str], zones: Sequence[Any] = _ZONES) -> Strategy:
    least, most = _bounds(limits, datetime, timedelta(microseconds=1))
    if least.tzinfo is not None or most.tzinfo is not None:
        zones = [UTC]
        least, most = (one.astimezone(UTC).replace(tzinfo=None) if one.tzinfo else one for one in (least, most))
    if least > most:
        return st.nothing()
    near = _near(datetime(2024, 1, 1), least, most, timedelta(days=FEW))
    naive = _often(st.datetimes(*near), st.datetimes(least, most))
    return st.builds(lambda zone, at: at.replace(tzinfo=zone), st.sampled_from(zones), naive)


def _near(first: Any, least: Any, most: Any, width: timedelta) -> tuple[Any, Any]:
    """Two bounds so far apart, from `first` on where the limits let it."""
    first = min(max(first, least), most)
    return first, first + min(width, most - first)


def _times(limits: Limits, ids: Sequence[str]) -> Strategy:
    return st.times(limits.get("ge", limits.get("gt", time.min)), limits.get("le", limits.get("lt", time.max)))


def _spans(limits: Limits, ids: Sequence[str]) -> Strategy:
    least, most = _bounds(limits, timedelta, timedelta(microseconds=1))
    if least > most:
        return st.nothing()
    everything = st.timedeltas(least, most)
    few = [span for span in map(timedelta, range(3)) if least <= span <= most]
    return _often(st.sampled_from(few), everything) if few else everything


def _zoned(zones: Sequence[Any], least: int = 1, most: int = 9999) -> Callable[[Limits, Sequence[str]], Strategy]:
    near = st.datetimes(datetime(least, 1, 1), datetime(most, 12, 31))

    def make(limits: Limits, ids: Sequence[str]) -> Strategy:
        if limits.known:
            return _datetimes(limits, ids, zones)
        return st.builds(lambda zone, at: at.replace(tzinfo=zone), st.sampled_from(zones), near)

    return make


_PAST: Final = (1970, 2019)
_FUTURE: Final = (2200, 2300)

_SCALARS: Final[tuple[tuple[Any, Callable[[Limits, Sequence[str]], Strategy]], ...]] = (
    (int, _integers),
    (str, _texts),
    (bool, lambda limits, ids: st.booleans()),
    (float, _floats),
    (Decimal, _decimals),
    (bytes, _bytes),
    (UUID, _uuids),
    (date, _dates),
    (datetime, _datetimes),
    (time, _times),
    (timedelta, _spans),
    (None, lambda limits, ids: st.none()),
    (AwareDatetime, _zoned([UTC])),
    (NaiveDatetime, _zoned([None])),
    (PastDatetime, _zoned([UTC], *_PAST)),
    (FutureDatetime, _zoned([UTC], *_FUTURE)),
    (PastDate, lambda limits, ids: st.dates(date(_PAST[0], 1, 1), date(_PAST[1], 12, 31))),
    (FutureDate, lambda limits, ids: st.dates(date(_FUTURE[0], 1, 1), date(_FUTURE[1], 12, 31))),
)

_MAPPINGS: Final = (dict, Mapping, MutableMapping)
_SETS: Final = (set, frozenset, AbstractSet)
_COLLECTIONS: Final = (
    *(list, tuple, Sequence, MutableSequence, Iterable, Collection),
    *(_MAPPINGS + _SETS),
)

_ANYTHING: Final[Strategy] = st.one_of(
    st.none(), st.booleans(), st.integers(-FEW, FEW), st.text(max_size=FEW), st.lists(st.booleans(), max_size=2)
)
"""Of a field annotated with `Any`: plain values."""


def _empty_or(made: Strategy, parts: tuple[Strategy, ...], least: int, kind: Any) -> Strategy:
    """Empty ones, where there are no items of a type."""
    if not any(part.is_empty for part in parts):
        return made
    empty = set if kind is AbstractSet else kind
    return st.nothing() if least else st.builds(empty)
