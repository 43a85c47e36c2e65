"""No attribute exists only sometimes: what a method sets on `self`, the class has from the end of its `__init__` on.

Read from the source of `actors/` and `runtime/`. An attribute counts as there if `__init__` sets it on every path that
does not raise, by itself or in a method of its own that it calls; if the class or a base of it has it with a value; or
if it is a field of a dataclass, tuple or message. What is not there yet has a value for that, such as None.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("no_garbage_collection")

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("actors", "runtime")
FIELDS = {"NamedTuple", "TypedDict", "Protocol", "BaseModel", "Message", "Command", "Event", "Query"}
"""Of what derives from these, an annotation without a value is a field, or a promise of what implements it."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(expression: ast.expr) -> str:
    """The last name in a base class or decorator: `dataclass` of `dataclasses.dataclass(frozen=True)`."""
    return ast.unparse(expression).partition("[")[0].partition("(")[0].rpartition(".")[2]


class Classes:
    """The classes of some modules."""

    def __init__(self, trees: Iterable[tuple[str, ast.Module]]) -> None:
        self.all: list[tuple[str, ast.ClassDef]] = []
        self.found: dict[str, ast.ClassDef] = {}
        """By name, for bases."""
        for place, tree in trees:
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self.found[node.name] = node
                    self.all.append((place, node))

    def methods(self, cls: ast.ClassDef) -> dict[str, Function]:
        """Those of a class and its bases, the nearest of each name."""
        found: dict[str, Function] = {}
        for base in reversed(self.bases(cls)):
            found |= self.methods(base)
        return found | {node.name: node for node in cls.body if isinstance(node, Function)}

    def bases(self, cls: ast.ClassDef) -> list[ast.ClassDef]:
        return [self.found[name] for name in map(named, cls.bases) if name in self.found and name != cls.name]

    def has_fields(self, cls: ast.ClassDef) -> bool:
        decorated = "dataclass" in map(named, cls.decorator_list)
        return decorated or bool(FIELDS & {*map(named, cls.bases)}) or any(map(self.has_fields, self.bases(cls)))

    def is_partly_foreign(self, cls: ast.ClassDef) -> bool:
        """Whether a base of another package may have what is set here."""
        known = {*FIELDS, "object", "Generic", "ABC", "Enum", "Exception", "Any"}
        others = [name for name in map(named, cls.bases) if name not in self.found and name not in known]
        return bool(others) or any(map(self.is_partly_foreign, self.bases(cls)))

    def there(self, cls: ast.ClassDef) -> set[str]:
        """The attributes that each instance has."""
        found = set(self.methods(cls))
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and (node.value is not None or self.has_fields(cls)):
                found |= {node.target.id} if isinstance(node.target, ast.Name) else set()
            elif isinstance(node, ast.Assign):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        for node in cls.body:
            if isinstance(node, Function) and node.name in ("__init__", "__new__", "__post_init__"):
                found |= self.set_by(node.body, cls, frozenset())
        for base in self.bases(cls):
            found |= self.there(base)
        return found

    def set_by(self, body: Iterable[ast.stmt], cls: ast.ClassDef, inside: frozenset[str]) -> set[str]:
        """What these statements set on `self`, whichever way they go, unless they raise."""
        found: set[str] = set()
        for statement in body:
            if isinstance(statement, ast.If):
                ways = [way for way in (statement.body, statement.orelse) if not (way and ends_here(way[-1]))]
                found |= set.intersection(*(self.set_by(way, cls, inside) for way in ways)) if ways else set()
            elif isinstance(statement, ast.Try):
                ways = [statement.body + statement.orelse]
                ways += [one.body for one in statement.handlers if not ends_here(one.body[-1])]
                found |= set.intersection(*(self.set_by(way, cls, inside) for way in ways))
                found |= self.set_by(statement.finalbody, cls, inside)
            elif isinstance(statement, ast.With | ast.AsyncWith):
                found |= {one.attr for item in statement.items for one in stored(item)}
                found |= self.set_by(statement.body, cls, inside)
            elif not isinstance(statement, ast.For | ast.While | Function | ast.ClassDef):
                if not (isinstance(statement, ast.AnnAssign) and statement.value is None):
                    found |= {one.attr for one in stored(statement)}
                for called in self.called(statement, cls, inside):
                    found |= self.set_by(called.body, cls, inside | {called.name})
        return found

    def called(self, statement: ast.stmt, cls: ast.ClassDef, inside: frozenset[str]) -> Iterator[Function]:
        """The methods of its own that a statement calls."""
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and is_self(node.func.value):
                method = self.methods(cls).get(node.func.attr)
                if method is not None and method.name not in inside:
                    yield method

    def sometimes(self, cls: ast.ClassDef) -> Iterator[str]:
        """What an instance may lack, and where that shows."""
        there = self.there(cls)
        for node in cls.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id not in there:
                yield f"{node.lineno} {cls.name}.{node.target.id} is declared and has no value"
            if not isinstance(node, Function):
                continue
            for one in stored(node):
                if one.attr not in there and one.attr != "__class__" and not self.is_partly_foreign(cls):
                    yield f"{one.lineno} {cls.name}.{one.attr} is set in {node.name}"
            for part in ast.walk(node):
                if (name := looked_for(part)) is not None:
                    yield f"{node.lineno} {cls.name}.{name} is looked for in {node.name}"
                if isinstance(part, ast.Delete):
                    for target in part.targets:
                        if isinstance(target, ast.Attribute) and is_self(target.value):
                            yield f"{target.lineno} {cls.name}.{target.attr} is deleted"


def looked_for(node: ast.AST) -> str | None:
    """The attribute of `self` that is asked for by its name."""
    match node:
        case ast.Call(ast.Name("hasattr" | "getattr"), [ast.Name("self"), ast.Constant(str() as name), *_]):
            return name
    return None


def ends_here(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Raise)


def is_self(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Name) and expression.id == "self"


def stored(node: ast.AST) -> Iterator[ast.Attribute]:
    for one in ast.walk(node):
        if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Store) and is_self(one.value):
            yield one


@cache
def classes() -> Classes:
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return Classes((str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))) for path in paths)


def test_no_attribute_exists_only_sometimes() -> None:
    known = classes()
    assert {"PartitionActor", "ProjectorActor", "ReadModel"} <= known.found.keys()
    guilty = [f"{place}:{what}" for place, cls in known.all for what in known.sometimes(cls)]
    assert not guilty, "give it a value in __init__ that means that it is not there yet, or make what has it a value"


@pytest.mark.parametrize(
    "body",
    [
        "def __init__(self): self.x: int\n def start(self): self.x = 1",
        "def __init__(self): pass\n def start(self): self.x = 1",
        "x: int\n def start(self): self.x = 1",
        "def __init__(self, a):\n  if a: self.x = 1\n def start(self): self.x = 2",
        "def __init__(self):\n  for self.x in range(3): pass\n def start(self): self.x = 2",
        "def __init__(self):\n  try: self.x = 1\n  except OSError: pass\n def start(self): self.x = 2",
        "def __init__(self): self.x = 1\n def stop(self): del self.x",
        "def stop(self): return hasattr(self, 'x')",
        "def stop(self): return getattr(self, 'x', None)",
        "def __init__(self): later(lambda: None)\n def start(self):\n  with a as self.x: pass",
    ],
)
def test_an_attribute_that_may_be_missing_is_found(body: str) -> None:
    known = Classes([("here", ast.parse(f"class Here:\n {body}"))])
    assert list(known.sometimes(known.found["Here"])) != []


@pytest.mark.parametrize(
    "source",
    [
        "class Here:\n def __init__(self): self.x: int | None = None\n def start(self): self.x = 1",
        "class Here:\n x = 0\n def start(self): self.x = 1",
        "@dataclass\nclass Here:\n x: int\n def start(self): self.x = 1",
        "class Here:\n def __init__(self): self.open()\n def open(self): self.x = 1",
        "class Base:\n def __init__(self): self.x = 0\nclass Here(Base):\n def start(self): self.x = 1",
        "class Here:\n def __init__(self, a):\n  if a: self.x = 1\n  else: self.x = 2\n def start(self): self.x = 3",
        "class Here:\n def __init__(self, a):\n  if a: raise a\n  self.x = 1\n def start(self): self.x = 3",
    ],
)
def test_one_that_is_always_there_is_not_complained_of(source: str) -> None:
    known = Classes([("here", ast.parse(source))])
    assert list(known.sometimes(known.found["Here"])) == []
