"""Parameters that Python has repeated are those of one function."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import copy_signatures
from tools.copy_signatures import COPIES, OVERLOADED, Copy, Named, copied, overloads

SOURCE = """
class Till:
    async def pay(self, account: str, *, amount: int = 1, urgent: bool = False) -> None: ...
"""

SESSION = """
class Session:
    async def pay(self, account: str, *, amount: int = 1) -> None:
        await self.till.pay(account, amount=amount)
"""

GATEWAY = """
class Gateway(Protocol):
    async def pay(self, account: str) -> None: ...
"""

BESIDE = """
@overload
def pay(path: str, account: str, *, types: type[T], amount: int = ...) -> T: ...
@overload
def pay(path: str, account: str, *, types: None = ..., amount: int = ...) -> int: ...
def pay(path: str, account: str, *, types: Any = None, amount: int = 1) -> Any:
    ...
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(copy_signatures, "ROOT", tmp_path)
    for name, text in (("till.py", SOURCE), ("session.py", SESSION), ("gateway.py", GATEWAY), ("beside.py", BESIDE)):
        (tmp_path / name).write_text(text)
    return tmp_path


def edited(source: str, edits: list[copy_signatures.Edit]) -> str:
    for begin, end, text in sorted(edits, reverse=True):
        source = source[:begin] + text + source[end:]
    return source


def test_every_copy_is_up_to_date() -> None:
    for one in COPIES:
        assert not copied((copy_signatures.ROOT / one.target.file).read_text(), one), one.target
    for named in OVERLOADED:
        assert not overloads((copy_signatures.ROOT / named.file).read_text(), named), named


def test_a_method_and_what_it_passes_on_get_a_new_parameter(folder: Path) -> None:
    one = Copy(Named("till.py", "Till.pay"), Named("session.py", "Session.pay"), call="self.till.pay")
    made = edited(SESSION, copied(SESSION, one))
    assert "def pay(self, account: str, *, amount: int=1, urgent: bool=False) -> None:" in made
    assert "await self.till.pay(account, amount=amount, urgent=urgent)" in made
    assert copied(made, one) == []


def test_a_protocol_has_no_defaults(folder: Path) -> None:
    one = Copy(Named("till.py", "Till.pay"), Named("gateway.py", "Gateway.pay"), declares=True)
    assert "(self, account: str, *, amount: int=..., urgent: bool=...) -> None" in edited(GATEWAY, copied(GATEWAY, one))


def test_overloads_keep_what_differs_in_them(folder: Path) -> None:
    named = Named("beside.py", "pay")
    whole = edited(BESIDE, copied(BESIDE, Copy(Named("till.py", "Till.pay"), named)))
    assert "def pay(path: str, account: str, *, types: Any=None, amount: int=1, urgent: bool=False) -> Any" in whole
    made = edited(whole, overloads(whole, named))
    assert "(path: str, account: str, *, types: type[T], amount: int=..., urgent: bool=...) -> T: ..." in made
    assert "(path: str, account: str, *, types: None=..., amount: int=..., urgent: bool=...) -> int: ..." in made
