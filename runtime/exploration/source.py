"""Source: values as Python that makes them again, with the names that it needs.

Beside all steps: what a printed specification consists of.

Rule kept here: short, as a person would write it: fields that have their default are left out.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import linecache
import math
import re
from collections import deque
from collections.abc import Callable
from datetime import date, time, timedelta, timezone
from enum import Enum, Flag
from typing import Any, Final

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

__all__ = ["Names", "Source"]

Names = dict[str, Any]
"""What each name stands for."""

_MODULE: Final = re.compile(r"\b(?:datetime|zoneinfo)\.(?=[A-Za-z])")


class Source:
    """Writes values, and collects the names that it has used."""

    def __init__(self) -> None:
        self.names: Names = {}

    def name(self, thing: Any) -> str:
        """The name of a class or function, as in the module or function that has it."""
        path: str = thing.__qualname__.rpartition("<locals>.")[2]
        if "." not in path:
            self.names[path] = thing
        else:
            root = path.partition(".")[0]
            self.names[root] = getattr(inspect.getmodule(thing), root, None)
        return path

    def function(self, function: Callable[..., Any]) -> str:
        """A function by its name, and a lambda as it was written."""
        if not hasattr(function, "__qualname__"):
            self.names["invariant"] = function
            return "invariant"
        if function.__name__ != "<lambda>":
            return self.name(function)
        text = _lambda(function)
        if text is None:
            self.names["invariant"] = function
            return "invariant"
        self.names |= {name: _value_of(function, name) for name in function.__code__.co_freevars}
        return text

    def value(self, value: Any) -> str:
        """Python that makes the value."""
        kind = type(value)
        if kind is str:
            return _quoted(value)
        if kind is float and not math.isfinite(value):
            return f'float("{value!r}")'
        if isinstance(value, Enum):
            return self._member(value)
        if isinstance(value, BaseModel):
            return self._model(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field for field in dataclasses.fields(value) if field.init]
            return self._call(kind, {field.name: getattr(value, field.name) for field in fields})
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return self._call(kind, {name: getattr(value, name) for name in value._fields})
        if kind in (list, tuple, set, frozenset, dict, deque):
            return self._items(kind, value)
        if isinstance(value, date | time | timedelta | timezone):
            return self._time(value)
        if value is not None and kind not in (int, bool, bytes, float):
            self.names[kind.__name__] = kind
        return _MODULE.sub("", repr(value))

    def _items(self, kind: type, value: Any) -> str:
        if kind is dict:
            return "{" + ", ".join(f"{self.value(key)}: {self.value(item)}" for key, item in value.items()) + "}"
        items = ", ".join(self.value(item) for item in value)
        if kind is list:
            return f"[{items}]"
        if kind is tuple:
            return f"({items},)" if len(value) == 1 else f"({items})"
        if kind is set and value:
            return f"{{{items}}}"
        if kind is deque:
            self.names["deque"] = deque
        return f"{kind.__name__}([{items}])" if value else f"{kind.__name__}()"

    def _time(self, value: Any) -> str:
        import datetime
        import zoneinfo

        text = _MODULE.sub("", repr(value))
        for name in set(re.findall(r"\b([A-Za-z]\w*)(?=[.(])", text)):
            found = getattr(datetime, name, None) or getattr(zoneinfo, name, None)
            if found is not None:
                self.names[name] = found
        return text

    def _member(self, value: Enum) -> str:
        kind = self.name(type(value))
        if isinstance(value, Flag) and (value.name is None or "|" in value.name):
            return f"{kind}({value.value!r})"
        return f"{kind}.{value.name}"

    def _model(self, value: BaseModel) -> str:
        cls = type(value)
        by_name = cls.model_config.get("populate_by_name") or cls.model_config.get("validate_by_name")
        shown = {}
        for name, field in cls.model_fields.items():
            one = getattr(value, name)
            if field.default is not PydanticUndefined and type(one) is type(field.default) and one == field.default:
                continue
            alias = field.validation_alias or field.alias
            shown[alias if isinstance(alias, str) and not by_name else name] = one
        return self._call(cls, shown)

    def _call(self, kind: type, fields: dict[str, Any]) -> str:
        plain = [f"{name}={self.value(one)}" for name, one in fields.items() if name.isidentifier()]
        odd = {name: one for name, one in fields.items() if not name.isidentifier()}
        if odd:
            plain.append(f"**{self.value(odd)}")
        return f"{self.name(kind)}({', '.join(plain)})"


def _quoted(text: str) -> str:
    literal = repr(text)
    return f'"{literal[1:-1]}"' if '"' not in literal and "'" not in literal[1:-1] else literal


def _value_of(function: Callable[..., Any], name: str) -> Any:
    """The value of a variable that a lambda takes from the function around it."""
    code: Any = function
    return code.__closure__[code.__code__.co_freevars.index(name)].cell_contents


def _lambda(function: Any) -> str | None:
    """The text of a lambda, found by where its body stands."""
    code = function.__code__
    text = "".join(linecache.getlines(code.co_filename, function.__globals__))
    bodies = {(line, column) for line, _, column, _ in code.co_positions() if line is not None and column is not None}
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return None
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno:
            inside = {(one.lineno, one.col_offset) for one in ast.walk(node.body) if isinstance(one, ast.expr)}
            if inside & bodies:
                found.append(node)
    if not found:
        return None
    innermost = min(found, key=lambda node: (node.end_lineno or 0, (node.end_col_offset or 0) - node.col_offset))
    segment = ast.get_source_segment(text, innermost)
    return None if segment is None else " ".join(segment.split())
