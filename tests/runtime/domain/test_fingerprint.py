"""The fingerprint: whatever can change what handlers do changes it, and nothing else does."""

# ruff: noqa: E501 - programs in strings

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

HEADER = """
from __future__ import annotations
import dataclasses, enum, functools, math, operator, random, re, threading, itertools, json
from collections import defaultdict
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, NamedTuple
import pydantic
from pydantic import BaseModel, Field, field_validator
from rayfold.runtime.domain.aggregate import Aggregate, Shared, decide, evolve
from rayfold.runtime.domain.messages import Command, Event
from rayfold.runtime.domain.projection import Projection, answer, project
from rayfold.runtime.encoding.saved_state import state_fingerprint
"""

PLAIN = """
class Buy(Command):
    cents: int
class Bought(Event):
    cents: int
class Shop(Aggregate, name="Shop"):
    points: int = 0
    @decide
    def buy(self, command: Buy) -> Bought: return Bought(cents=command.cents)
    @evolve
    def bought(self, event: Bought) -> None:
        self.points += event.cents
"""


def shop(before: str = "", inside: str = "", evolving: str = "self.points += event.cents", event: str = "") -> str:
    """The application with something before the class, in it, in its handler, or in its event."""
    return f"""
class Buy(Command):
    cents: int
{before}
class Bought(Event):
    cents: int
    {event or "..."}
class Shop(Aggregate, name="Shop"):
    points: int = 0
    {inside or "..."}
    @decide
    def buy(self, command: Buy) -> Bought: return Bought(cents=command.cents)
    @evolve
    def bought(self, event: Bought) -> None:
        {evolving}
"""


def fingerprint(source: str) -> bytes:
    module: Any = types.ModuleType("shop_of_a_test")
    sys.modules["shop_of_a_test"] = module
    try:
        exec(compile(HEADER + source, "shop.py", "exec"), vars(module))
        found: bytes = module.state_fingerprint(module.Shop)
    finally:
        del sys.modules["shop_of_a_test"]
    return found


LOGGED = """
def logged(function):
    @functools.wraps(function)
    def wrapper(self, event: Bought) -> None:
        return function(self, event)
    return wrapper
"""

CHANGES: dict[str, str] = {
    "a constant of the class": shop(inside="FEE: ClassVar[int] = <1>"),
    "a constant of the class that is a table": shop(inside="FEES: ClassVar[dict] = {'a': [1, {<1>}]}"),
    "a constant of the module": shop("FEE = <1>", evolving="self.points += FEE"),
    "a constant of the module that is a table": shop("FEES = {'a': (<1>,)}", evolving="self.points += FEES['a'][0]"),
    "the order of a table": shop("FEES = {<'a': 1, 'b'|'b': 1, 'a'>: 2}", evolving="self.points += min(FEES.values())"),
    "a set": shop("FEES = frozenset({'x', 'y', 'z<1>'})", evolving="self.points += len(FEES)"),
    "a decimal": shop("FEE = Decimal('0.<1>')", evolving="self.points += int(FEE)"),
    "a function of the module": shop("def fee(n): return n * <1>", evolving="self.points += fee(event.cents)"),
    "a function that a function calls": shop(
        "def deep(n): return n * <1>\ndef fee(n): return deep(n)", evolving="self.points += fee(event.cents)"
    ),
    "a global of a nested function": shop(
        "FEE = <1>\ndef fee(n):\n    def inner(): return FEE\n    return inner()", evolving="self.points += fee(event.cents)"
    ),
    "a global in a comprehension": shop("FEE = <1>", evolving="self.points += sum(FEE for _ in range(2))"),
    "a lambda": shop("fee = lambda n: n * <1>", evolving="self.points += fee(event.cents)"),
    "a default": shop(inside="def worth(self, n, fee=<1>): return n * fee", evolving="self.points += self.worth(1)"),
    "a default of a keyword": shop(
        inside="def worth(self, n, *, fee=<1>): return n * fee", evolving="self.points += self.worth(1)"
    ),
    "a default of a handler's helper": shop("def fee(n, by=<1>): return n", evolving="self.points += fee(1)"),
    "a closure": shop(
        "def maker(by):\n    def fee(n): return n * by\n    return fee\nfee = maker(<1>)", evolving="self.points += fee(1)"
    ),
    "a partial": shop("fee = functools.partial(operator.mul, <1>)", evolving="self.points += fee(event.cents)"),
    "a partial by keyword": shop("fee = functools.partial(int, base=<1> + 8)", evolving="self.points += fee('1')"),
    "a cached function": shop(
        "@functools.lru_cache\ndef fee(n): return n * <1>", evolving="self.points += fee(event.cents)"
    ),
    "a singledispatch function": shop(
        "@functools.singledispatch\ndef fee(n): return 0\n@fee.register\ndef _(n: int): return n * <1>",
        evolving="self.points += fee(event.cents)",
    ),
    "a cached property": shop(
        inside="@functools.cached_property\n    def fee(self): return <1>", evolving="self.points += self.fee"
    ),
    "a property": shop(inside="@property\n    def fee(self): return <1>", evolving="self.points += self.fee"),
    "a static method": shop(inside="@staticmethod\n    def fee(): return <1>", evolving="self.points += self.fee()"),
    "a class method": shop(inside="@classmethod\n    def fee(cls): return <1>", evolving="self.points += self.fee()"),
    "what a property's setter does": shop(
        inside="@property\n    def fee(self): return 1\n    @fee.setter\n    def fee(self, n): self.points = <1>"
    ),
    "a method of the event": shop(event="def worth(self): return self.cents * <1>"),
    "a property of the event": shop(event="@property\n    def worth(self): return self.cents * <1>"),
    "a constant of the event": shop(event="FEE: ClassVar[int] = <1>"),
    "a mixin": shop("class Mixed:\n    FEE: ClassVar[int] = <1>").replace("Shop(Aggregate", "Shop(Mixed, Aggregate"),
    "a method of a mixin": shop("class Mixed:\n    def fee(self): return <1>").replace("Shop(Aggregate", "Shop(Mixed, Aggregate"),
    "a base's method that super calls": shop(
        "class Mixed:\n    def fee(self): return <1>", inside="def fee(self): return super().fee()"
    ).replace("Shop(Aggregate", "Shop(Mixed, Aggregate"),
    "a value object's method": shop(
        "@dataclass\nclass Money:\n    n: int\n    def worth(self): return self.n * <1>",
        evolving="self.points += Money(event.cents).worth()",
    ),
    "a value object's __post_init__": shop(
        "@dataclass\nclass Money:\n    n: int\n    def __post_init__(self): self.n *= <1>",
        evolving="self.points += Money(event.cents).n",
    ),
    "a value object's operator": shop(
        "class Money(NamedTuple):\n    n: int\n    def __add__(self, other): return self.n * <1>",
        evolving="self.points += Money(event.cents) + 1",
    ),
    "a value object's default": shop(
        "@dataclass\nclass Money:\n    n: int\n    by: int = <1>", evolving="self.points += Money(event.cents).by"
    ),
    "a value object's default factory": shop(
        "@dataclass\nclass Money:\n    by: list = field(default_factory=lambda: [<1>])",
        evolving="self.points += Money().by[0]",
    ),
    "a model's default": shop("class Money(BaseModel):\n    by: int = <1>", evolving="self.points += Money().by"),
    "a model's validator": shop(
        "class Money(BaseModel):\n    n: int\n    @field_validator('n')\n    @classmethod\n    def times(cls, n): return n * <1>",
        evolving="self.points += Money(n=1).n",
    ),
    "a model's constraint": shop(
        "class Money(BaseModel):\n    n: Annotated[int, Field(ge=<1>)] = 5", evolving="self.points += Money().n"
    ),
    "an enum's value": shop("class Rate(enum.Enum):\n    ONE = <1>", evolving="self.points += Rate.ONE.value"),
    "an enum's method": shop(
        "class Rate(enum.Enum):\n    ONE = 1\n    def of(self): return <1>", evolving="self.points += Rate.ONE.of()"
    ),
    "an object of the module": shop(
        "class Rates:\n    def __init__(self, n): self.n = n\nrates = Rates(<1>)", evolving="self.points += rates.n"
    ),
    "an object with slots": shop(
        "class Rates:\n    __slots__ = ('n',)\n    def __init__(self, n): self.n = n\nrates = Rates(<1>)",
        evolving="self.points += rates.n",
    ),
    "a function in a table": shop(
        "def fee(n): return <1>\nTABLE = {'a': fee}", evolving="self.points += TABLE['a'](event.cents)"
    ),
    "a method of an object in a table": shop(
        "class Rates:\n    def of(self): return <1>\nTABLE = [Rates().of]", evolving="self.points += TABLE[0]()"
    ),
    "a pattern": shop("FIND = re.compile('a<1>')", evolving="self.points += len(FIND.findall('a1'))"),
    "a keyword of a decorator": shop(
        "def times(by):\n    def decorate(function):\n        @functools.wraps(function)\n"
        "        def wrapper(self, event: Bought) -> None:\n            for _ in range(by): function(self, event)\n"
        "        return wrapper\n    return decorate",
        event="...",
    ).replace("    @evolve\n", "    @evolve\n    @times(<1>)\n").replace("class Bought", "class Bought", 1),
    "what a decorator wraps": shop(LOGGED, evolving="self.points += <1>").replace("    @evolve\n", "    @evolve\n    @logged\n"),
    "the default of a field": shop(inside="extra: int = <1>"),
    "the default factory of a field": shop(inside="extra: dict = field(default_factory=lambda: defaultdict(lambda: <1>))"),
    "a literal of a field": shop(inside="extra: Literal[<1>] | None = None"),
    "a metaclass": shop(
        "class Meta(type):\n    def fee(cls): return <1>\nclass Rates(metaclass=Meta): ...",
        evolving="self.points += Rates.fee()",
    ),
    "a descriptor": shop(
        "class Fee:\n    def __get__(self, *_): return <1>", inside="fee: ClassVar = Fee()", evolving="self.points += self.fee"
    ),
    "an attribute of a function": shop("def fee(): return fee.rate\nfee.rate = <1>", evolving="self.points += fee()"),
    "a class by another class": shop(
        "class A:\n    n = <1>\nclass B:\n    a = A", evolving="self.points += B.a.n"
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_changes_with(change: str) -> None:
    source = CHANGES[change]
    if "|" in source and "<'a'" in source:
        left, _, rest = source.partition("<")
        options, _, right = rest.partition(">")
        one, other = (f"{left}{option}{right}" for option in options.split("|"))
    else:
        assert "<1>" in source
        one, other = source.replace("<1>", "1"), source.replace("<1>", "2")
    assert fingerprint(one) == fingerprint(one)
    assert fingerprint(one) != fingerprint(other)


SAME: dict[str, tuple[str, str]] = {
    "a docstring": (shop("def fee(n): return n", evolving="fee(1)"), shop("def fee(n):\n    'Why.'\n    return n", evolving="fee(1)")),
    "a comment": (shop(), shop("# why")),
    "a constant that no handler names": (shop("OTHER = 1"), shop("OTHER = 2")),
    "what decides": (shop(), shop().replace("cents=command.cents", "cents=command.cents + 1")),
    "an unseeded generator": (shop("r = random.Random()", evolving="r"), shop("r = random.Random()", evolving="r")),
    "a lock": (shop("lock = threading.Lock()", evolving="lock"), shop("lock = threading.Lock()", evolving="lock")),
    "a counter": (shop("c = itertools.count()", evolving="c"), shop("c = itertools.count()\nnext(c)", evolving="c")),
    "a filled cache": (
        shop("@functools.lru_cache\ndef fee(n): return n", evolving="fee(1)"),
        shop("@functools.lru_cache\ndef fee(n): return n\nfee(1)", evolving="fee(1)"),
    ),
    "an object without content": (shop("o = object()", evolving="o"), shop("o = object()", evolving="o")),
    "a table that holds itself": (shop("t = []\nt.append(t)", evolving="t"), shop("t = []\nt.append(t)", evolving="t")),
}  # fmt: skip


@pytest.mark.parametrize("what", SAME)
def test_the_fingerprint_stays_with(what: str) -> None:
    one, other = SAME[what]
    assert fingerprint(one) == fingerprint(other)


PROGRAM = (
    HEADER
    + '''
import sys
import ray.cloudpickle as cloudpickle
class Rate(enum.Enum):
    """A rate."""
    ONE = "one"
    TWO = "two"
class Frozen(BaseModel):
    tags: frozenset[str] = frozenset({"a", "b", "c", "d"})
    def worth(self) -> int: return len(self.tags)
@dataclass(frozen=True, slots=True)
class Money:
    n: int
    lines: "list[Rate]" = field(default_factory=list)
class Base:
    def fee(self): return 1
class Seat(NamedTuple):
    row: int
class Bought(Event):
    cents: int
    rate: Rate = Rate.ONE
    money: Money | None = None
WORDS = {"alpha", "beta", "gamma", "delta", ("t", "u"), frozenset({"v", "w"})}
TABLE = {Rate.ONE: 1, Rate.TWO: {"x": WORDS}}
def cached(n: int) -> int: return n + len(WORDS)
def dispatched(n): return Seat(1), json.dumps(n)
def rate_of(event: Bought) -> int:
    def inner(word: str) -> bool: return word in {"alpha", "beta"} and word in TABLE
    return sum(map(inner, WORDS)) + cached(1) + dispatched(1) + pydantic.TypeAdapter(int).validate_python(1)
class Shop(Base, Aggregate, name="Shop"):
    points: int = 0
    seen: set[str] = set()
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(lambda: 0))
    STEP: ClassVar[Any] = functools.partial(operator.mul, 3)
    made: "dict[str, Money]" = {}
    @evolve
    def bought(self, event: Bought) -> None:
        self.points += rate_of(event) + self.STEP(1) + Frozen().worth() + super().fee()
        self.made["x"] = Money(1)
if len(sys.argv) > 1:
    data = sys.stdin.buffer.read()
    loaded = cloudpickle.loads(data)
    print(state_fingerprint(loaded).hex(), state_fingerprint(cloudpickle.loads(cloudpickle.dumps(loaded))).hex())
else:
    first = state_fingerprint(Shop)
    sys.stdout.buffer.write(first + cloudpickle.dumps(Shop))
'''
)


def in_a_function(source: str) -> str:
    header, _, body = source.partition("import sys\n")
    future, _, rest = header.partition("annotations\n")
    return f"{future}annotations\n{rest}def main():\n" + textwrap.indent("import sys\n" + body, "    ") + "\nmain()\n"


@pytest.mark.slow
@pytest.mark.parametrize("arranged", [lambda source: source, in_a_function], ids=["of a script", "of a function"])
def test_the_fingerprint_is_the_same_in_every_process_and_after_shipping_by_value(
    arranged: object, tmp_path: Path
) -> None:
    assert callable(arranged)
    program = tmp_path / "program.py"
    program.write_text(arranged(PROGRAM))
    receiver = tmp_path / "receiver.py"
    receiver.write_text(
        "import sys, ray.cloudpickle as cloudpickle\nfrom rayfold.runtime.encoding.saved_state import state_fingerprint\n"
        "loaded = cloudpickle.loads(sys.stdin.buffer.read())\n"
        "print(state_fingerprint(loaded).hex(), state_fingerprint(cloudpickle.loads(cloudpickle.dumps(loaded))).hex())\n"
    )
    found = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        sent = subprocess.run([sys.executable, program], capture_output=True, check=True, env=env).stdout
        found.add(sent[:16].hex())
        env["PYTHONHASHSEED"] = seed + "1"
        got = subprocess.run([sys.executable, receiver], input=sent[16:], capture_output=True, check=True, env=env)
        found |= set(got.stdout.decode().split())
    assert len(found) == 1


def test_a_function_of_another_module_of_the_application_counts_and_an_installed_one_by_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "rules_of_a_test.py").write_text("RATE = 1\ndef fee(n): return n * RATE\n")
    for text in (
        "import rules_of_a_test as rules",
        "from rules_of_a_test import fee\nclass rules: fee = staticmethod(fee)",
    ):
        source = shop(text, evolving="self.points += rules.fee(event.cents)")
        inside = shop(evolving="from rules_of_a_test import fee; self.points += fee(event.cents)")
        import rules_of_a_test  # type: ignore[import-not-found]

        before = fingerprint(source), fingerprint(inside)
        monkeypatch.setattr(rules_of_a_test, "RATE", 2)
        after = fingerprint(source), fingerprint(inside)
        assert before[0] != after[0]
        assert before[1] != after[1]
        monkeypatch.setattr(rules_of_a_test, "RATE", 1)
        assert (fingerprint(source), fingerprint(inside)) == before
